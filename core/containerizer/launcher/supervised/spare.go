package supervised

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/mosaic-cluster/mosaic/core/containerizer/cgroup"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
)

// spareShims is how many shims are kept ready. Starting one takes a third of a launch; when many launches come at
// once the processors are busy anyway, and only the first ones gain.
const spareShims = 2

// spareDelay is how long nobody must have taken a spare before new ones are started: not beside the launch that took it.
const spareDelay = 10 * time.Millisecond

// spares are shims that run already and wait to be told what to supervise. They hold nothing, and end with this
// process or with cool, whichever is first.
type spares struct {
	bin     *shim.Binary
	runtime *shim.Binary // handed to each, nil without
	home    *cgroup.Group
	log     *slog.Logger

	taken chan struct{} // room for one; told by take
	done  chan struct{} // closed when refill has ended

	mu    sync.Mutex // guards ready
	ready []*shim.Client
}

// Warm keeps some shims ready for containers below the cgroup root, until Cool. runtime, if not nil, is what they are
// handed. It is called once, before the first Spawn.
func (n *Nest) Warm(root string, runtime *shim.Binary) {
	s := &spares{
		bin: n.bin, runtime: runtime, home: n.shimGroup(root), log: n.log,
		taken: make(chan struct{}, 1), done: make(chan struct{}),
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.spares, n.cool = s, cancel
	go s.refill(ctx)
}

// Cool ends the spares. Spawn goes on without.
func (n *Nest) Cool(ctx context.Context) error {
	if n.spares == nil {
		return nil
	}
	n.cool()
	<-n.spares.done
	for c := n.spares.take(n.spares.home, n.spares.runtime); c != nil; c = n.spares.take(n.spares.home, n.spares.runtime) {
		if err := c.Abandon(ctx); err != nil {
			return err
		}
	}
	return nil
}

// take gives a spare that fits, or nil.
func (s *spares) take(home *cgroup.Group, runtime *shim.Binary) *shim.Client {
	if s == nil || s.home != home || s.runtime != runtime {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.ready) > 0 {
		c := s.ready[0]
		s.ready = s.ready[1:]
		select {
		case s.taken <- struct{}{}:
		default:
		}
		select {
		case <-c.Lost(): // somebody killed it
			continue
		default:
			return c
		}
	}
	return nil
}

// refill starts spares whenever some are missing and launches are quiet.
func (s *spares) refill(ctx context.Context) {
	defer close(s.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.taken:
			timer.Reset(spareDelay)
		case <-timer.C:
			s.fill(ctx)
		}
	}
}

func (s *spares) fill(ctx context.Context) {
	for ctx.Err() == nil {
		s.mu.Lock()
		full := len(s.ready) >= spareShims
		s.mu.Unlock()
		if full {
			return
		}
		c, err := shim.Spawn(s.bin, spawnOptions(s.home, s.runtime))
		if err != nil {
			s.log.Warn("no spare shim", "error", err)
			return // launches say it louder; the next one asks again
		}
		s.mu.Lock()
		s.ready = append(s.ready, c)
		s.mu.Unlock()
	}
}

func spawnOptions(home *cgroup.Group, runtime *shim.Binary) shim.SpawnOptions {
	opts := shim.SpawnOptions{Runtime: runtime}
	if home != nil {
		opts.Cgroup = home.CloneInto()
	}
	return opts
}
