package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// bucketGuests holds id -> Container for the containers that were launched over the API, without what they run.
var bucketGuests = []byte("guests")

// maxEndedGuests bounds how many containers that ended the agent remembers below one root: an executor that launches one
// after the other and removes none must not fill the memory. The oldest are forgotten; their sandboxes stay.
const maxEndedGuests = 1000

// guest is a container that was launched over the API. It is on disk before it is launched, and kept when it ended until
// it is removed, its root ends, or its sandbox is collected. A session is not on disk: it ends with the agent.
type guest struct {
	spec    *containerv1.Container
	path    containerPath
	session bool

	launched chan struct{} // closed when its launch is over
	ended    chan struct{} // closed when it has ended, or was not launched
	cancel   context.CancelFunc

	// Guarded by Agent.mu until the channels are closed.
	status  *mesosv1.ContainerStatus
	failure error                 // of the launch
	end     *containerTermination // nil with ended closed: it was not launched
	at      time.Time             // of its end
	forget  *timer                // of a session that ended
}

func newGuest(c *containerv1.Container, session bool) *guest {
	return &guest{
		spec: c, path: pathOfID(c.GetId()), session: session,
		launched: make(chan struct{}), ended: make(chan struct{}),
	}
}

// running tells whether it was launched and has not ended.
func (g *guest) running() bool {
	select {
	case <-g.launched:
		return !g.over()
	default:
		return false
	}
}

// over tells whether it has ended, or will never run.
func (g *guest) over() bool {
	select {
	case <-g.ended:
		return true
	default:
		return false
	}
}

// root is the id of the container that it ends with, whichever lies between.
func (g *guest) root() ContainerID { return g.path.root() }

// startGuest writes g down and launches it. ctx ends the launch. The caller holds the lock.
func (a *Agent) startGuest(ctx context.Context, g *guest) {
	var c change
	if a.work.Err() != nil {
		a.guestLaunched(&c, g, nil, context.Cause(a.work))
		return
	}
	if !g.session {
		data, err := encodeGuest(g.spec)
		if err != nil {
			a.fail(err)
			return
		}
		c.put(bucketGuests, []byte(g.spec.GetId()), data)
	}
	written := make(chan struct{})
	c.then(func() { close(written) })
	a.do(&c)
	a.spawn(func(work context.Context) {
		var err error
		select {
		case <-written:
			_, err = a.ctzr.Launch(ctx, g.spec)
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-work.Done():
			err = context.Cause(work)
		}
		var status *mesosv1.ContainerStatus
		if err == nil {
			status = a.statusOfGuest(ctx, g)
		}
		g.cancel()
		a.decide(func(c *change) { a.guestLaunched(c, g, status, err) })
	})
}

// encodeGuest leaves out what may hold secrets, and is in the containerizer's checkpoint anyway.
func encodeGuest(c *containerv1.Container) ([]byte, error) {
	c = proto.CloneOf(c)
	c.Command, c.ContainerInfo, c.Environment = nil, nil, nil
	data, err := proto.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode container %s: %w", c.GetId(), err)
	}
	return data, nil
}

func (a *Agent) statusOfGuest(ctx context.Context, g *guest) *mesosv1.ContainerStatus {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	s, err := a.ctzr.Status(ctx, g.spec.GetId())
	if err != nil || s == nil {
		s = &mesosv1.ContainerStatus{} // it may have ended already
	}
	s.ContainerId = g.path.message()
	return s
}

// guestLaunched goes on after a launch.
func (a *Agent) guestLaunched(c *change, g *guest, status *mesosv1.ContainerStatus, err error) {
	if err != nil {
		g.failure = refuse(http.StatusBadRequest, "Failed to launch container: %v", err)
		if a.work.Err() != nil {
			// The next start undoes it.
			g.failure = refuse(http.StatusServiceUnavailable, "The agent stopped while the container was being launched")
		} else {
			a.log.Info("a container is not launched", "container", g.spec.GetId(), "error", err)
			a.deleteGuest(c, g)
		}
		close(g.ended)
		close(g.launched)
		return
	}
	g.status = status
	close(g.launched)
	a.watchGuest(g)
	a.watchParent(g)
}

// deleteGuest takes g out of memory and off the disk.
func (a *Agent) deleteGuest(c *change, g *guest) {
	a.timers.stop(g.forget)
	if id := g.spec.GetId(); a.guests[id] == g {
		delete(a.guests, id)
		if !g.session {
			c.delete(bucketGuests, []byte(id))
		}
	}
}

// watchGuest waits for the end of g. The caller holds the lock.
func (a *Agent) watchGuest(g *guest) {
	a.spawn(func(ctx context.Context) {
		end, err := a.ctzr.Wait(ctx, g.spec.GetId())
		if ctx.Err() != nil {
			return // the container outlives us
		}
		if err != nil || end == nil {
			end = &containerTermination{Message: fmt.Sprintf("nobody knows how it ended: %v", err)}
		}
		if g.spec.GetStandalone() {
			a.touchSandbox(g.spec.GetSandbox())
		}
		a.decide(func(c *change) { a.guestEnded(c, g, end) })
	})
}

// touchSandbox has the age of a sandbox count from now (gc.go).
func (a *Agent) touchSandbox(dir string) {
	if now := time.Now(); dir != "" {
		if err := os.Chtimes(dir, now, now); err != nil && !os.IsNotExist(err) {
			a.log.Warn("touch sandbox", "error", err)
		}
	}
}

func (a *Agent) guestEnded(c *change, g *guest, end *containerTermination) {
	g.end, g.at = end, time.Now()
	close(g.ended)
	a.dropBelow(c, g.path)
	if g.session {
		g.forget = a.timers.after(sessionMemory, func() {
			a.decide(func(c *change) { a.deleteGuest(c, g) })
		})
	}
	a.boundEnded(c, g.root())
}

// boundEnded forgets the oldest of too many containers that ended below one root.
func (a *Agent) boundEnded(c *change, root ContainerID) {
	var ended []*guest
	for _, g := range a.guests {
		if g.root() == root && g.path.nested() && g.over() {
			ended = append(ended, g)
		}
	}
	if len(ended) <= maxEndedGuests {
		return
	}
	slices.SortFunc(ended, func(x, y *guest) int { return x.at.Compare(y.at) })
	for _, g := range ended[:len(ended)-maxEndedGuests] {
		a.dropGuest(c, g)
	}
}

// dropBelow forgets what was nested in a container that ended: its end was theirs.
func (a *Agent) dropBelow(c *change, p containerPath) {
	for _, g := range a.guests {
		if g.path.below(p.id()) {
			a.dropGuest(c, g)
		}
	}
}

// dropGuest forgets g as soon as it has ended. Its sandbox stays.
func (a *Agent) dropGuest(c *change, g *guest) {
	a.deleteGuest(c, g)
	c.then(func() { a.forgetGuest(g) })
}

// forgetGuest has the containerizer forget g, once it has ended. The caller holds the lock.
func (a *Agent) forgetGuest(g *guest) {
	a.spawn(func(ctx context.Context) {
		select {
		case <-g.ended:
		case <-ctx.Done():
			return
		}
		once, cancel := context.WithTimeout(ctx, destroyTimeout)
		defer cancel()
		if err := a.ctzr.Forget(once, g.spec.GetId()); err != nil && ctx.Err() == nil {
			a.log.Warn("forget container", "container", g.spec.GetId(), "error", err)
		}
	})
}

// watchParent sees to it that what is nested in the container of an executor or a task is forgotten with it. The caller
// holds the lock.
func (a *Agent) watchParent(g *guest) {
	if !g.path.nested() {
		return
	}
	p := g.path.up()
	id := p.id()
	if a.guests[id] != nil || a.guestParents[id] {
		return // guests are watched themselves
	}
	a.guestParents[id] = true
	a.spawn(func(ctx context.Context) {
		_, err := a.ctzr.Wait(ctx, id)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			a.log.Debug("a container with others in it is gone", "container", id, "error", err)
		}
		a.decide(func(c *change) {
			delete(a.guestParents, id)
			a.dropBelow(c, p)
		})
	})
}

// removeGuest removes all of a container that ended.
func (a *Agent) removeGuest(ctx context.Context, g *guest) error {
	if !g.session {
		once, cancel := context.WithTimeout(ctx, destroyTimeout)
		defer cancel()
		if err := a.ctzr.Remove(once, g.spec.GetId()); err != nil {
			return err
		}
	}
	written := make(chan struct{})
	a.decide(func(c *change) {
		a.deleteGuest(c, g)
		c.then(func() { close(written) })
	})
	select {
	case <-written:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// loadGuests reads the containers that were launched over the API, and returns the ids of those whose root is still
// there. The caller holds the lock; executors are known by now.
func (a *Agent) loadGuests() ([]string, error) {
	err := a.store.each(bucketGuests, func(key, value []byte) error {
		c := new(containerv1.Container)
		if err := proto.Unmarshal(value, c); err != nil {
			return fmt.Errorf("container %s: %w", key, err)
		}
		if c.GetId() != string(key) {
			return fmt.Errorf("container %s: %w", key, errRecord)
		}
		a.guests[c.GetId()] = newGuest(c, false)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var ids []string
	for id, g := range a.guests {
		e, outer := a.containers[g.root()], a.guests[string(g.root())]
		if outer != nil || e != nil && (e.command == nil || !terminal(e.command.state)) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// recoverGuests goes on with the containers that were launched over the API, as they were found. What was not found was
// never started, and whoever wanted it has been told nothing.
func (a *Agent) recoverGuests(c *change, found map[ContainerID]*containerv1.Checkpoint) {
	for _, g := range slices.SortedFunc(maps.Values(a.guests), func(x, y *guest) int {
		return cmp.Compare(x.spec.GetId(), y.spec.GetId())
	}) {
		cp := found[ContainerID(g.spec.GetId())]
		if cp == nil {
			close(g.ended)
			close(g.launched)
			a.deleteGuest(c, g)
			continue
		}
		g.status = &mesosv1.ContainerStatus{ContainerId: g.path.message()}
		if cp.GetPhase() != containerv1.Checkpoint_ENDED && cp.GetPid() > 0 {
			g.status.ExecutorPid = new(uint32(cp.GetPid()))
		}
		close(g.launched)
		c.then(func() {
			a.watchGuest(g)
			a.watchParent(g)
		})
	}
}
