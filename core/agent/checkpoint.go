package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/proto"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Buckets of the file. They belong to the agent (record.go and completed.go say what is in them), but for the last one,
// which is the containerizer's.
var (
	bucketAgent      = []byte("agent")
	bucketFrameworks = []byte("frameworks")
	bucketExecutors  = []byte("executors")
	bucketTasks      = []byte("tasks")
	bucketProgress   = []byte("progress")
	bucketUpdates    = []byte("updates")
	bucketContainers = []byte("containers")
)

var buckets = [][]byte{
	bucketAgent, bucketFrameworks, bucketExecutors, bucketTasks, bucketProgress, bucketUpdates, bucketContainers,
	bucketOperations, bucketGuests,
	bucketPastFrameworks, bucketPastExecutors, bucketPastTasks,
}

// lockTimeout is how long OpenStore waits for another agent to let go of the file. One that was killed lets go at
// once, one that was told to stop needs a moment; one that is still there after two seconds will not go.
const lockTimeout = 2 * time.Second

// ErrStoreClosed is returned by writes after Close.
var ErrStoreClosed = errors.New("checkpoint store is closed")

// lazyDelay is how long a write that nobody waits for may wait for others to share a sync with.
const lazyDelay = 20 * time.Millisecond

// Store keeps what must survive the agent in one bbolt file. Writers queue; one goroutine writes all that is
// queued in one transaction and one fsync, so that a thousand launches at once cost a few syncs and not a
// thousand, and a lone one waits for nobody. Lazy writes are not worth a sync of their own at once: they go with
// the next that is, or after a moment.
//
// Writes become durable in the order in which they were submitted. After a write has failed, all later ones
// fail with the same error: what is on disk is always a prefix of what was submitted.
type Store struct {
	db *bbolt.DB

	mu     sync.Mutex // guards what follows
	queue  []write
	urgent bool      // something in queue is not lazy
	since  time.Time // when the first lazy write came to an empty queue
	err    error     // first failed write, or ErrStoreClosed
	wake   chan struct{}
	ended  chan struct{}
	failed chan struct{} // closed when err is set by a write
	closed bool

	// beforeCommit is called before each transaction with its number, from 1 on; an error fails it. Set
	// by crash tests only, before the first write.
	beforeCommit func(n int, ops []op) error
	commits      int
}

// op sets key in bucket, or deletes it when value is nil.
type op struct {
	bucket, key, value []byte
}

type write struct {
	ops  []op
	done func(error)
}

// OpenStore opens the checkpoint file at path, and makes it and its folder if need be. Only one process can
// have it open.
func OpenStore(path string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("open checkpoints: %w", err)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:         lockTimeout,
		FreelistType:    bbolt.FreelistMapType,
		NoFreelistSync:  true,
		InitialMmapSize: 16 << 20,
	})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("open checkpoints %s: another process has the file open; is an agent running on this work directory?", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open checkpoints %s: %w; if the file is damaged beyond repair, move it away: the agent then starts as a new one", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("open checkpoints %s: %w", path, err)
	}
	s := &Store{db: db, wake: make(chan struct{}, 1), ended: make(chan struct{}), failed: make(chan struct{})}
	go s.run()
	return s, nil
}

// Close writes what is queued and closes the file.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		<-s.ended
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.signal()
	<-s.ended
	return s.db.Close()
}

// submit queues ops, to be written together, and returns at once. done is called from the store's goroutine,
// in the order of submission, when they are on disk or never will be. It must not block.
func (s *Store) submit(ops []op, done func(error)) { s.add(write{ops, done}, false) }

// submitLazily is submit for what is in no hurry.
func (s *Store) submitLazily(ops []op, done func(error)) { s.add(write{ops, done}, true) }

func (s *Store) add(w write, lazy bool) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		w.done(ErrStoreClosed)
		return
	}
	if len(s.queue) == 0 {
		s.urgent, s.since = false, time.Now()
	}
	s.urgent = s.urgent || !lazy
	s.queue = append(s.queue, w)
	s.mu.Unlock()
	s.signal()
}

// put writes ops and returns when they are on disk. When ctx ends first, they may yet be written.
func (s *Store) put(ctx context.Context, ops []op) error {
	return s.wait(ctx, func(done func(error)) { s.submit(ops, done) })
}

// wait returns what submit's write came to.
func (s *Store) wait(ctx context.Context, submit func(done func(error))) error {
	result := make(chan error, 1)
	submit(func(err error) { result <- err })
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// failure returns the first error of a write.
func (s *Store) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *Store) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Store) run() {
	defer close(s.ended)
	for {
		s.mu.Lock()
		if wait := lazyDelay - time.Since(s.since); len(s.queue) > 0 && !s.urgent && !s.closed && wait > 0 {
			s.mu.Unlock()
			timer := time.NewTimer(wait)
			select {
			case <-s.wake:
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		batch, closed, err := s.queue, s.closed, s.err
		s.queue = nil
		s.mu.Unlock()
		if len(batch) == 0 {
			if closed {
				return
			}
			<-s.wake
			continue
		}
		if err == nil {
			if err = s.commit(batch); err != nil {
				s.mu.Lock()
				s.err = err
				s.mu.Unlock()
				close(s.failed)
			}
		}
		for _, w := range batch {
			w.done(err)
		}
	}
}

func (s *Store) commit(batch []write) error {
	var ops []op
	for _, w := range batch {
		ops = append(ops, w.ops...)
	}
	if len(ops) == 0 {
		return nil
	}
	s.commits++
	if s.beforeCommit != nil {
		if err := s.beforeCommit(s.commits, ops); err != nil {
			return err
		}
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		for _, o := range ops {
			b := tx.Bucket(o.bucket)
			if o.value == nil {
				if err := b.Delete(o.key); err != nil {
					return err
				}
				continue
			}
			if err := b.Put(o.key, o.value); err != nil {
				return fmt.Errorf("key %q: %w", o.key, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write checkpoints: %w", err)
	}
	return nil
}

// each calls fn for the keys and values of a bucket in order. They are only valid during the call.
func (s *Store) each(bucket []byte, fn func(key, value []byte) error) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(fn)
	})
}

// PutContainer writes a container's checkpoint; it is on disk when PutContainer returns.
func (s *Store) PutContainer(ctx context.Context, cp *containerv1.Checkpoint) error {
	id := cp.GetContainer().GetId()
	if id == "" {
		return errors.New("checkpoint of a container: no id")
	}
	value, err := proto.Marshal(cp)
	if err != nil {
		return fmt.Errorf("checkpoint container %s: %w", id, err)
	}
	if err := s.put(ctx, []op{{bucketContainers, []byte(id), value}}); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", id, err)
	}
	return nil
}

// DeleteContainer forgets a container, on disk when it returns. One that is not there is no error. It takes its time,
// for nothing waits for it but what comes after the container.
func (s *Store) DeleteContainer(ctx context.Context, id string) error {
	if id == "" {
		return nil
	}
	forget := []op{{bucketContainers, []byte(id), nil}}
	if err := s.wait(ctx, func(done func(error)) { s.submitLazily(forget, done) }); err != nil {
		return fmt.Errorf("forget container %s: %w", id, err)
	}
	return nil
}

// Containers returns all containers' checkpoints, in the order of their ids.
func (s *Store) Containers(ctx context.Context) ([]*containerv1.Checkpoint, error) {
	var all []*containerv1.Checkpoint
	err := s.each(bucketContainers, func(key, value []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		cp := new(containerv1.Checkpoint)
		if err := proto.Unmarshal(value, cp); err != nil {
			return fmt.Errorf("container %s: %w", key, err)
		}
		all = append(all, cp)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	return all, nil
}
