package containerizer

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// An intent says: Prepare may have been sent for this container, and its command has not been started. It holds a
// checkpoint in phase PREPARING. It is written without a sync, since it need only outlive the agent's process (see
// Launch), and goes just before the command is started.
//
// All intents are in one file that only grows while it is in use: an append costs a few microseconds, making and
// removing a file for each launch half a millisecond. A record is the length of its payload and the payload's CRC-32C,
// both little endian, 4 bytes each, and the payload: a Checkpoint; one without phase ends the intent of its id. A record
// cut short by the agent's death, and whatever follows it, was never relied upon.
type intents struct {
	path string

	mu   sync.Mutex
	f    *os.File          // guarded by mu
	size int64             // guarded by mu
	live map[string][]byte // guarded by mu; records by container id
}

const (
	recordHead = 8
	// maxIntent bounds a record; a container's description with the states of its modules stays far below.
	maxIntent = 64 << 20
	// compactAt is the size from which the file is written anew with what still holds.
	compactAt = 4 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// openIntents reads the file and begins it anew with the intents that still hold, which it returns.
func openIntents(path string) (*intents, []*containerv1.Checkpoint, error) {
	i := &intents{path: path, live: map[string][]byte{}}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("read intents: %w", err)
	}
	found := map[string]*containerv1.Checkpoint{}
	for len(b) >= recordHead {
		n := binary.LittleEndian.Uint32(b)
		if n > maxIntent || uint64(len(b)) < recordHead+uint64(n) {
			break
		}
		record, payload := b[:recordHead+n], b[recordHead:recordHead+n]
		cp := &containerv1.Checkpoint{}
		if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(b[4:]) || proto.Unmarshal(payload, cp) != nil {
			break
		}
		b = b[len(record):]
		id := cp.GetContainer().GetId()
		if cp.GetPhase() == containerv1.Checkpoint_PHASE_UNSPECIFIED {
			delete(found, id)
			delete(i.live, id)
			continue
		}
		found[id], i.live[id] = cp, record
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.compact(); err != nil {
		return nil, nil, err
	}
	return i, slices.Collect(maps.Values(found)), nil
}

// compact writes the file anew. mu is held.
func (i *intents) compact() error {
	f, err := os.OpenFile(i.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("write intents: %w", err)
	}
	var all []byte
	for _, record := range i.live {
		all = append(all, record...)
	}
	_, err = f.Write(all)
	if err == nil {
		err = os.Rename(i.path+".new", i.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write intents: %w", err), f.Close())
	}
	if i.f != nil {
		err = i.f.Close()
	}
	i.f, i.size = f, int64(len(all))
	return err
}

// write appends one record and keeps live in step.
func (i *intents) write(cp *containerv1.Checkpoint) error {
	payload, err := proto.Marshal(cp)
	if err != nil {
		return fmt.Errorf("write intent: %w", err)
	}
	if len(payload) > maxIntent {
		return fmt.Errorf("write intent: %d bytes, want at most %d", len(payload), maxIntent)
	}
	record := make([]byte, recordHead, recordHead+len(payload))
	binary.LittleEndian.PutUint32(record, uint32(len(payload)))
	binary.LittleEndian.PutUint32(record[4:], crc32.Checksum(payload, castagnoli))
	record = append(record, payload...)

	i.mu.Lock()
	defer i.mu.Unlock()
	id := cp.GetContainer().GetId()
	ends := cp.GetPhase() == containerv1.Checkpoint_PHASE_UNSPECIFIED
	if ends && i.live[id] == nil {
		return nil
	}
	if _, err := i.f.Write(record); err != nil {
		// Part of it may be there. What comes after it would not be found again, so the file is begun anew.
		return errors.Join(fmt.Errorf("write intent: %w", err), i.compact())
	}
	i.size += int64(len(record))
	if ends {
		delete(i.live, id)
	} else {
		i.live[id] = record
	}
	if i.size > compactAt && i.size > 2*i.need() {
		return i.compact()
	}
	return nil
}

// need is the size of what still holds. mu is held.
func (i *intents) need() int64 {
	var n int64
	for _, record := range i.live {
		n += int64(len(record))
	}
	return n
}

func (i *intents) close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.f.Close()
}

// shortName is a file name for a container: its id if that is short, else a digest of it. Sockets in run directories
// must stay under 108 bytes.
func shortName(id string) string {
	if len(id) <= 36 { // a UUID, as agents make them
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return "h-" + hex.EncodeToString(sum[:15])
}

// intend lists the modules whose Prepare is going to be sent and writes the intent.
func (c *Containerizer) intend(ct *container, list []Isolator) error {
	modules := make([]*containerv1.ModuleState, len(list))
	for n, i := range list {
		modules[n] = &containerv1.ModuleState{Module: i.Name(), OperationId: newOperation()}
	}
	ct.change(func() { ct.modules = modules })
	return c.writeIntent(ct)
}

// writeIntent writes the intent, or replaces it with one that holds the modules' states.
func (c *Containerizer) writeIntent(ct *container) error {
	cp, _ := ct.checkpoint()
	return c.intents.write(cp)
}

func (c *Containerizer) dropIntent(id string) error {
	return c.intents.write(&containerv1.Checkpoint{Container: &containerv1.Container{Id: id}})
}
