package containerizer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// slowStore writes in the order of the calls, as an agent's store does, each after a delay. Who does not wait for a
// write does not stop it.
type slowStore struct {
	fakeStore
	delay func() time.Duration
	queue chan func()
	ended chan struct{}
}

func newSlowStore(m *machine, delay func() time.Duration) *slowStore {
	s := &slowStore{fakeStore: fakeStore{m}, delay: delay, queue: make(chan func(), 1000), ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		for write := range s.queue {
			time.Sleep(s.delay())
			write()
		}
	}()
	return s
}

func (s *slowStore) close() {
	close(s.queue)
	<-s.ended
}

func (s *slowStore) wait(ctx context.Context, write func() error) error {
	result := make(chan error, 1)
	s.queue <- func() { result <- write() }
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *slowStore) PutContainer(ctx context.Context, cp *containerv1.Checkpoint) error {
	return s.wait(ctx, func() error { return s.fakeStore.PutContainer(context.Background(), cp) })
}

func (s *slowStore) DeleteContainer(ctx context.Context, id string) error {
	return s.wait(ctx, func() error { return s.fakeStore.DeleteContainer(context.Background(), id) })
}

// TestRefusedLaunchLeavesNothingInASlowStore: the checkpoint is being written while an isolator refuses, and lands when
// nobody waits for it any more.
func TestRefusedLaunchLeavesNothingInASlowStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		b := &fakeIsolator{m: m, name: "b", calls: []string{"isolate"}, onIsolate: func(*isolatorv1.IsolateRequest) error {
			return errors.New("isolator(b): no")
		}}
		c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "a"}, b)
		store := newSlowStore(m, func() time.Duration { return time.Second })
		c.cfg.Store = store
		if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err == nil {
			t.Error("Launch: got no error, want the isolator's refusal")
		}
		waitFor(t, "the id is free", func() bool { return len(c.all()) == 0 })
		stopAgent(t, c)
		store.close() // what was asked of it is done
		if left := m.left("c1"); len(left) > 0 {
			t.Errorf("got %v left, want nothing; history %v", left, m.history())
		}
	})
}

func TestLaunchesThatEndAnywhereLeaveNothingInASlowStore(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		random := rand.New(rand.NewPCG(seed, 1))
		delay := func() time.Duration {
			mu.Lock()
			defer mu.Unlock()
			return time.Duration(random.IntN(10)) * time.Millisecond
		}
		m := newMachine(t)
		b := &fakeIsolator{m: m, name: "b", calls: []string{"isolate"}, onIsolate: func(*isolatorv1.IsolateRequest) error {
			time.Sleep(delay())
			if delay() < 5*time.Millisecond {
				return errors.New("isolator(b): no")
			}
			return nil
		}}
		c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "a"}, b)
		store := newSlowStore(m, delay)
		c.cfg.Store = store
		var wg sync.WaitGroup
		for n := range 20 {
			id := fmt.Sprintf("c%d", n)
			want := testContainer(t, id)
			patience := 20 * delay()
			wg.Go(func() {
				for range 5 { // the id is used again
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					_, err := c.Launch(ctx, want)
					cancel()
					if err != nil {
						continue
					}
					if err := c.Destroy(t.Context(), id, nil); err != nil {
						t.Errorf("Destroy(%s): %v", id, err)
					}
					if err := c.Forget(t.Context(), id); err != nil {
						t.Errorf("Forget(%s): %v", id, err)
					}
				}
			})
		}
		wg.Wait()
		waitFor(t, "all ids are free", func() bool { return len(c.all()) == 0 })
		stopAgent(t, c)
		store.close()
		for n := range 20 {
			if left := m.left(fmt.Sprintf("c%d", n)); len(left) > 0 {
				t.Errorf("container c%d: got %v left, want nothing", n, left)
			}
		}
	})
}
