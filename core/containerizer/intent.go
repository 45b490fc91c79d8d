package containerizer

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// An intent is a file that says: Prepare may have been sent for this container. It holds a checkpoint in phase
// PREPARING and is not synced, since it need only outlive the agent's process (see Launch). It goes when a durable
// checkpoint has taken its place.

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
		modules[n] = &containerv1.ModuleState{Module: i.Name(), OperationId: uuid.NewString()}
	}
	ct.change(func() { ct.modules = modules })
	return c.writeIntent(ct)
}

// writeIntent replaces the intent. By rename, so that the first one is not lost when the agent dies while writing the
// second, with the states that Cleanup will want.
func (c *Containerizer) writeIntent(ct *container) error {
	cp, _ := ct.checkpoint()
	b, err := proto.Marshal(cp)
	if err != nil {
		return fmt.Errorf("write intent: %w", err)
	}
	path := filepath.Join(c.intents, shortName(ct.id))
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("write intent: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write intent: %w", err)
	}
	return nil
}

func (c *Containerizer) dropIntent(id string) {
	if err := os.Remove(filepath.Join(c.intents, shortName(id))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("remove intent", "container", id, "error", err)
	}
}

// readIntents returns the intents that are there. One that cannot be read was never finished, so nothing was sent
// after it; it is removed.
func (c *Containerizer) readIntents() ([]*containerv1.Checkpoint, error) {
	entries, err := os.ReadDir(c.intents)
	if err != nil {
		return nil, fmt.Errorf("read intents: %w", err)
	}
	var list []*containerv1.Checkpoint
	for _, e := range entries {
		path := filepath.Join(c.intents, e.Name())
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read intents: %w", err)
		}
		cp := &containerv1.Checkpoint{}
		if err := proto.Unmarshal(b, cp); err != nil || shortName(cp.GetContainer().GetId()) != e.Name() {
			c.log.Warn("intent was never finished", "file", path)
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("read intents: %w", err)
			}
			continue
		}
		list = append(list, cp)
	}
	return list, nil
}
