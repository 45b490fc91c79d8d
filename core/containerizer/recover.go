package containerizer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// recoverWidth bounds how many containers are re-attached at once: each waits for its shim far longer than it
// computes, and a thousand must not open a thousand sockets at the same moment.
const recoverWidth = 32

// load reads what the last agent left: checkpoints and intents. Nothing is touched.
func (c *Containerizer) load() error {
	ctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	kept, err := c.cfg.Store.Containers(ctx)
	if err != nil {
		return fmt.Errorf("read checkpoints: %w", err)
	}
	for _, cp := range kept {
		if cp.GetContainer().GetId() == "" {
			return errors.New("read checkpoints: one has no container id")
		}
		c.containers[cp.GetContainer().GetId()] = fromCheckpoint(cp, true)
	}
	opened, intended, err := openIntents(filepath.Join(c.cfg.RunDir, "intents"))
	if err != nil {
		return err
	}
	c.intents = opened
	for _, cp := range intended {
		id := cp.GetContainer().GetId()
		switch ct := c.containers[id]; {
		case ct == nil:
			c.containers[id] = fromCheckpoint(cp, false)
		case ct.phase == containerv1.Checkpoint_CREATED:
			ct.held = true
		}
	}
	return nil
}

func fromCheckpoint(cp *containerv1.Checkpoint, stored bool) *container {
	ct := newContainer(cp.GetContainer())
	ct.phase, ct.modules = cp.GetPhase(), cp.GetModules()
	ct.launcherName, ct.launcherState = cp.GetLauncher(), cp.GetLauncherState()
	ct.merged, ct.pid, ct.ticks, ct.bootID = cp.GetSpec(), cp.GetPid(), cp.GetPidStartTicks(), cp.GetBootId()
	ct.cgroups, ct.termination = cp.GetCgroups(), cp.GetTermination()
	ct.found = true
	if stored {
		ct.version, ct.saved, ct.stored = 1, 1, true
	}
	close(ct.launched)
	if ct.phase == containerv1.Checkpoint_ENDED {
		if ct.termination == nil {
			ct.termination = &containerv1.Termination{}
		}
		if ct.termination.GetReason() == mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED.String() {
			ct.reason = isolatorv1.CleanupRequest_LAUNCH_FAILED
		}
		close(ct.ended)
	}
	return ct
}

// Recover takes up every container that the store or an intent knows.
//
// known are the ids that the agent still answers for. Of those whose command has been started Recover returns one
// checkpoint each, RUNNING or ENDED, in order of their ids: running ones are watched again under the same pid; those
// that ended meanwhile carry the true status if anything knows it, else TASK_FAILED and "container status unknown". The
// agent forgets the ENDED ones when it has told their end.
//
// An id in known that is not returned ran no instruction of its command and may be launched (again): a launch that the
// agent's death cut off is undone, modules are told to clean up also after ids without any trace (see Launch), and
// Launch waits for that.
//
// Standalone containers, and what is nested in them or in a container in known, go on as well, without being returned
// unless they are in known; Containers lists them. A container whose parent ended meanwhile is ended after it was
// found, as at any other time.
//
// All others are orphans: killed and cleaned up. When Recover returns, nothing else runs, unless it could not be killed;
// then its id stays taken until it is. Cleanups go on in the background.
//
// Errors: the root filesystems could not be looked through, or ctx ended. Recover may be called again.
func (c *Containerizer) Recover(ctx context.Context, known []string) ([]*containerv1.Checkpoint, error) {
	wanted := map[string]bool{}
	for _, id := range known {
		wanted[id] = true
	}
	if c.cfg.Images != nil {
		var live []string
		for _, ct := range c.all() {
			live = append(live, ct.id)
		}
		if err := c.cfg.Images.Recover(ctx, live); err != nil {
			return nil, fmt.Errorf("recover images: %w", err)
		}
	}
	c.warm()
	c.unstageStrangers()
	c.endStrayHelpers(ctx)
	list := c.all()
	for _, level := range deepestFirst(list) {
		c.each32(level, func(ct *container) { c.resume(ctx, ct, c.isWanted(ct, wanted)) })
	}
	c.cleanTraceless(known)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("recover containers: %w", err)
	}
	var result []*containerv1.Checkpoint
	for _, ct := range list {
		if wanted[ct.id] && !ct.isForgotten() {
			cp, _ := ct.checkpoint()
			result = append(result, proto.CloneOf(cp))
		}
	}
	slices.SortFunc(result, func(a, b *containerv1.Checkpoint) int {
		return cmp.Compare(a.GetContainer().GetId(), b.GetContainer().GetId())
	})
	return result, nil
}

// deepestFirst sorts containers by how deep they are nested. A container that is found ended takes down at once what
// is nested in it, which must be known by then.
func deepestFirst(list []*container) [][]*container {
	var levels [][]*container
	for _, ct := range list {
		depth := strings.Count(ct.id, ".")
		for len(levels) <= depth {
			levels = append(levels, nil)
		}
		levels[depth] = append(levels[depth], ct)
	}
	slices.Reverse(levels)
	return levels
}

// isWanted says whether a container that was found may go on: the agent answers for it or for the root container that
// it is nested in, or an operator launched that one.
func (c *Containerizer) isWanted(ct *container, known map[string]bool) bool {
	if known[ct.id] {
		return true
	}
	for id := ct.spec.GetParentId(); id != ""; {
		parent, err := c.find(id)
		if err != nil {
			return false // a piece of something that is gone
		}
		ct, id = parent, parent.spec.GetParentId()
	}
	return known[ct.id] || ct.spec.GetStandalone()
}

func (c *Containerizer) each32(list []*container, f func(*container)) {
	var wg sync.WaitGroup
	places := make(chan struct{}, recoverWidth)
	for _, ct := range list {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			f(ct)
		})
	}
	wg.Wait()
}

// resume takes up one container as it was found.
func (c *Containerizer) resume(ctx context.Context, ct *container, wanted bool) {
	ct.mu.Lock()
	phase, taken := ct.phase, ct.resumed
	ct.resumed = true
	ct.mu.Unlock()
	if taken {
		return // an earlier Recover, or a Launch, has it
	}
	if !wanted {
		ct.mu.Lock()
		ct.orphan = true
		if phase != containerv1.Checkpoint_ENDED {
			ct.reason = isolatorv1.CleanupRequest_ORPHAN
		}
		ct.mu.Unlock()
		ct.forget()
	}
	switch {
	case phase == containerv1.Checkpoint_ENDED:
		c.wg.Go(func() { c.settle(ct, errUntried) })
	case phase == containerv1.Checkpoint_PREPARING, phase == containerv1.Checkpoint_CREATED && ct.held:
		ct.forget()
		c.endUnwatched(ctx, ct, &containerv1.Termination{
			State:   mesosv1.TaskState_TASK_FAILED.String(),
			Reason:  mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED.String(),
			Message: "the agent ended while the container was being launched",
		}, isolatorv1.CleanupRequest_LAUNCH_FAILED)
	case !wanted:
		c.endUnwatched(ctx, ct, &containerv1.Termination{Message: "nobody wants the container any more"}, isolatorv1.CleanupRequest_ORPHAN)
	default:
		c.readopt(ctx, ct)
	}
}

// endUnwatched ends a container that is not to go on. The fence is tried here and now, so that nothing of it runs when
// Recover returns.
func (c *Containerizer) endUnwatched(ctx context.Context, ct *container, end *containerv1.Termination, reason isolatorv1.CleanupRequest_Reason) {
	end.Time = timestampNow()
	ct.change(func() { ct.reason = reason })
	fence, cancel := context.WithTimeout(ctx, destroyTimeout)
	if err := c.fence(fence, ct); err != nil {
		c.log.Warn("remains of a container cannot be removed yet", "container", ct.id, "error", err)
	}
	cancel()
	c.finish(ct, end)
	c.wg.Go(func() { c.settle(ct, errUntried) })
}

// readopt watches a container again, or finds out how it ended.
func (c *Containerizer) readopt(ctx context.Context, ct *container) {
	if err := c.reattach(ctx, ct); err != nil {
		// It cannot be reached, and its launcher cannot say that it is gone. A container that nobody can watch is ended.
		c.log.Error("container cannot be found again; it will be ended", "container", ct.id, "error", err)
		c.endUnwatched(ctx, ct, &containerv1.Termination{
			State: mesosv1.TaskState_TASK_FAILED.String(), Message: statusUnknown + ": " + err.Error(),
		}, isolatorv1.CleanupRequest_ENDED)
		return
	}
	ct.mu.Lock()
	h, phase, lost := ct.handle, ct.phase, ct.lost
	ct.mu.Unlock()
	if h == nil {
		waitStatus, known := 0, false
		if lost != nil {
			waitStatus, known = lost.WaitStatus, lost.Known
		}
		c.finish(ct, c.verdict(ct, waitStatus, known))
		c.wg.Go(func() { c.settle(ct, errUntried) })
		return
	}
	if phase == containerv1.Checkpoint_CREATED {
		// Isolated it is, since its intent is gone, and its process had been told to go, or was about to be. Telling it
		// once more is harmless; that it has ended is found by watching, and so is how, if its command was not there.
		if err := start(ctx, h); err != nil && !errors.Is(err, launcher.ErrEnded) {
			c.endUnwatched(ctx, ct, &containerv1.Termination{
				State:   mesosv1.TaskState_TASK_FAILED.String(),
				Reason:  mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED.String(),
				Message: fmt.Sprintf("the agent ended while the container was being started: launcher(%s): %v", ct.launcherName, err),
			}, isolatorv1.CleanupRequest_LAUNCH_FAILED)
			return
		}
		ct.mu.Lock()
		ct.phase = containerv1.Checkpoint_RUNNING // unwritten; see runs
		ct.mu.Unlock()
	}
	c.takeUpHelpers(ctx, ct.id, false)
	c.wg.Go(func() { c.watch(ct) })
}

// reattach sets the handle of a container known from its checkpoint, or notes how it was lost. After a reboot there is
// nothing to find: no process of it lives, and its status died with the machine.
func (c *Containerizer) reattach(ctx context.Context, ct *container) error {
	ct.mu.Lock()
	name, state, boot := ct.launcherName, ct.launcherState, ct.bootID
	ct.mu.Unlock()
	if boot != c.cfg.BootID {
		ct.mu.Lock()
		ct.lost = &launcher.GoneError{Why: "the machine was restarted"}
		ct.mu.Unlock()
		return nil
	}
	i := slices.IndexFunc(c.cfg.Launchers, func(l launcher.Launcher) bool { return l.Name() == name })
	if i < 0 {
		return fmt.Errorf("launcher(%s) is not configured", name)
	}
	ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	h, err := c.cfg.Launchers[i].Reattach(ctx, state)
	var gone *launcher.GoneError
	switch {
	case errors.As(err, &gone):
		ct.mu.Lock()
		ct.lost = gone
		ct.mu.Unlock()
		return nil
	case errors.Is(err, launcher.ErrGone):
		ct.mu.Lock()
		ct.lost = &launcher.GoneError{Why: err.Error()}
		ct.mu.Unlock()
		return nil
	case err != nil:
		return err // the launcher names itself
	}
	ct.mu.Lock()
	same := int32(h.Pid()) == ct.pid && h.StartTicks() == ct.ticks
	if same {
		ct.handle = h
	}
	ct.mu.Unlock()
	if !same {
		return fmt.Errorf("launcher(%s): found process %d started at %d, want %d started at %d", name, h.Pid(), h.StartTicks(), ct.pid, ct.ticks)
	}
	return nil
}

// cleanTraceless has modules clean up after ids that the agent wrote down and of which nothing else is known: most
// were never launched, and of some a power cut may have taken the intent (see Launch).
func (c *Containerizer) cleanTraceless(known []string) {
	for _, id := range known {
		ct := newContainer(&containerv1.Container{Id: id, ParentId: parentOf(id), Generation: 1, Cgroup: path.Join(c.cfg.CgroupRoot, id)})
		for _, i := range c.isolators().forContainer(ct.spec) {
			ct.modules = append(ct.modules, &containerv1.ModuleState{Module: i.Name()})
		}
		ct.reason, ct.found, ct.resumed = isolatorv1.CleanupRequest_LAUNCH_FAILED, true, true
		ct.phase, ct.termination = containerv1.Checkpoint_ENDED, &containerv1.Termination{}
		c.mu.Lock()
		if c.containers[id] != nil {
			c.mu.Unlock()
			continue
		}
		c.containers[id] = ct
		c.mu.Unlock()
		close(ct.launched)
		close(ct.ended)
		ct.forget()
		c.wg.Go(func() { c.settle(ct, c.dismantle(c.life, ct)) })
	}
}
