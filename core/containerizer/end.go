package containerizer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

func timestampNow() *timestamppb.Timestamp { return timestamppb.New(time.Now()) }

// watch waits for the end of a running container, publishes how it ended at once, and takes everything back after
// that. It returns early only when the containerizer is closed.
func (c *Containerizer) watch(ct *container) {
	ct.mu.Lock()
	h := ct.handle
	ct.mu.Unlock()
	waitStatus, known, err := h.Wait(c.life)
	if c.life.Err() != nil {
		return
	}
	if err != nil {
		// The shim is unreachable, not necessarily the process. Whatever runs is about to be killed: a container that
		// nobody can watch must not go on beside its replacement.
		c.log.Warn("lost sight of a container", "container", ct.id, "error", err)
		known = false
		ctx, cancel := context.WithTimeout(c.life, destroyTimeout)
		if err := ct.destroyHandle(ctx); err != nil {
			c.log.Warn("container cannot be killed", "container", ct.id, "error", err)
		}
		cancel()
	}
	c.finish(ct, c.verdict(ct, waitStatus, known))
	c.settle(ct, errUntried)
}

// verdict says how a container ended. A clean exit is told without asking anybody. After any other the isolators that
// know about limits are asked first, since their word must be in the task's last status.
func (c *Containerizer) verdict(ct *container, waitStatus int, known bool) *containerv1.Termination {
	end := &containerv1.Termination{Time: timestampNow()}
	if known {
		s := int32(waitStatus)
		end.WaitStatus = &s
	}
	ct.mu.Lock()
	adopt(end, ct.why)
	ct.mu.Unlock()
	if end.GetState() != "" || known && waitStatus == 0 {
		return end
	}
	if l := c.limitReached(ct); l != nil {
		adopt(end, limitation(l))
		if held := c.held(ct); held != ct {
			c.limit(held, l) // the module's own word of it may come when this one is forgotten
		}
	} else if !known {
		end.State, end.Message = mesosv1.TaskState_TASK_FAILED.String(), statusUnknown
	}
	return end
}

// statusUnknown is the message for containers whose exit status nobody saw.
const statusUnknown = "container status unknown"

// adopt takes over what why says, if anything.
func adopt(end, why *containerv1.Termination) {
	if why == nil {
		return
	}
	end.State, end.Reason, end.Message = why.GetState(), why.GetReason(), why.GetMessage()
	end.LimitedResources = why.GetLimitedResources()
}

// limitReached asks the isolators of a container that ended whether it reached a limit. The first in order wins.
func (c *Containerizer) limitReached(ct *container) *modulev1.Limitation {
	list := c.isolators().list
	found := make([]*modulev1.Limitation, len(list))
	ctx, cancel := context.WithTimeout(c.life, reasonTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for n, i := range list {
		if !i.Wants("status") || !ct.takesPart(i.Name()) {
			continue
		}
		record := ct.record(i.Name(), true)
		wg.Go(func() {
			a, err := i.Status(ctx, &isolatorv1.StatusRequest{Records: []*isolatorv1.ContainerRecord{record}})
			if err != nil {
				c.log.Warn("nobody knows whether a container reached a limit", "container", ct.id, "error", err)
				return
			}
			if l := a.GetResults()[ct.id].GetLimitation(); l != nil && l.GetReason() != "" {
				found[n] = l
			}
		})
	}
	wg.Wait()
	for _, l := range found {
		if l != nil {
			return l
		}
	}
	return nil
}

// finish publishes how a container ended.
func (c *Containerizer) finish(ct *container, end *containerv1.Termination) {
	ct.change(func() {
		ct.phase = containerv1.Checkpoint_ENDED
		ct.termination = end
	})
	close(ct.ended)
}

// errUntried stands for a dismantling that has not been tried yet.
var errUntried = errors.New("not tried yet")

// dismantle takes back, last first, what a container was given: its processes and cgroup, what the isolators did, its
// root filesystem, what its launcher keeps. Steps that are done are not done again; the error tells what is owed.
//
// Nothing after the first step is tried before it succeeded: a module that takes a network or a mount away under
// living processes does harm.
//
// Containers nested in it go before it.
func (c *Containerizer) dismantle(ctx context.Context, ct *container) error {
	kill, cancel := context.WithTimeout(ctx, destroyTimeout)
	err := c.endNested(kill, ct)
	if err == nil {
		err = c.fence(kill, ct)
	}
	cancel()
	if err == nil {
		err = c.endHelpers(ctx, ct.id)
	}
	if err != nil {
		return err
	}
	clean, cancel := context.WithTimeout(ctx, cleanupTimeout)
	err = c.cleanup(clean, ct)
	cancel()
	if c.cfg.Images != nil && usesImages(ct.spec) {
		err = errors.Join(err, c.cfg.Images.Remove(ctx, ct.id))
	}
	return errors.Join(err, c.unstage(ct.id))
}

// endNested ends what is nested in a container that ended.
func (c *Containerizer) endNested(ctx context.Context, ct *container) error {
	ct.mu.Lock()
	why := ct.termination
	if why == nil {
		why = ct.why
	}
	ct.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	return c.destroyNested(ctx, ct, why)
}

// fence proves that no process of the container is left.
func (c *Containerizer) fence(ctx context.Context, ct *container) error {
	ct.mu.Lock()
	name, state, h := ct.launcherName, ct.launcherState, ct.handle
	ct.mu.Unlock()
	switch {
	case h != nil:
		if err := ct.destroyHandle(ctx); err != nil {
			return fmt.Errorf("launcher(%s): %w", name, err)
		}
	case name != "" && len(state) > 0: // known from a checkpoint only
		if err := c.reattach(ctx, ct); err != nil {
			// Its launcher is gone from the configuration, or no longer understands the state. The cgroup still says
			// who belongs to the container.
			if c.cfg.Fence == nil || ct.spec.GetCgroup() == "" {
				return err
			}
			if fenceErr := c.cfg.Fence(ctx, ct.spec.GetCgroup()); fenceErr != nil {
				return errors.Join(err, fenceErr)
			}
			break
		}
		if err := ct.destroyHandle(ctx); err != nil {
			return fmt.Errorf("launcher(%s): %w", name, err)
		}
	case ct.found: // the last agent may have died in Create, and nobody was told of what it made
		for _, l := range c.cfg.Launchers {
			if d, ok := l.(discarder); ok {
				if err := d.Discard(ctx, ct.spec, filepath.Join(c.runDir, shortName(ct.id))); err != nil {
					return err // the launcher names itself
				}
			}
		}
		if c.cfg.Fence != nil && ct.spec.GetCgroup() != "" {
			if err := c.cfg.Fence(ctx, ct.spec.GetCgroup()); err != nil {
				return fmt.Errorf("kill what was being launched: %w", err)
			}
		}
	}
	ct.change(func() { ct.launcherState = nil })
	return nil
}

// A discarder is a launcher that can take down what a Create left that never returned; nil when there is nothing.
type discarder interface {
	Discard(ctx context.Context, c *containerv1.Container, runDir string) error
}

// settle repeats the dismantling until nothing is owed, then waits for the agent to let go of the container, drops it
// from the store and frees its id. It returns early when the containerizer is closed; Recover takes it up again then.
func (c *Containerizer) settle(ct *container, owed error) {
	if errors.Is(owed, errUntried) {
		// How it ended is written before what tells it (the shim's record) is removed: by the agent, as a rule, which
		// says so by letting go of the container, and else here.
		if !c.letGo(ct) {
			if err := c.save(c.life, ct); err != nil && c.life.Err() == nil {
				c.log.Error("end of a container is not written", "error", err)
			}
		}
		if ct.hasReaders() {
			// Failure is found again by what follows, and owed then.
			_ = c.endNested(c.life, ct)
			c.awaitReaders(ct)
		}
		owed = c.dismantle(c.life, ct)
	}
	if owed != nil {
		c.owe(ct, owed)
		for next := range c.retries() {
			if owed = c.dismantle(c.life, ct); owed == nil {
				break
			}
			if next == retryMost {
				c.owe(ct, owed)
			}
		}
	}
	if owed != nil {
		return // closed
	}
	select {
	case <-ct.dropped:
	case <-c.life.Done():
		return
	}
	if !c.forgetNested(ct) {
		return // closed
	}
	if err := c.drop(ct); err != nil {
		c.log.Warn("checkpoint of a container stays", "error", err)
		for range c.retries() {
			if c.drop(ct) == nil {
				break
			}
		}
	}
}

// forgetNested lets go of what was nested in a container that is let go of, and returns when nothing of it is left: an
// id below another means nothing without it. It says false when the containerizer is closed.
func (c *Containerizer) forgetNested(ct *container) bool {
	for _, child := range c.childrenOf(ct.id) {
		child.forget()
		select {
		case <-child.gone:
		case <-c.life.Done():
			return false
		}
	}
	return true
}

// forgetPatience is how long the agent may take to write down how a container ended, before that is done here. It takes
// a millisecond.
const forgetPatience = 200 * time.Millisecond

// letGo waits a moment for the agent to let go of a container that ended, and says whether it did.
func (c *Containerizer) letGo(ct *container) bool {
	ct.saving.Lock()
	ct.mu.Lock()
	written := ct.saved == ct.version
	ct.mu.Unlock()
	ct.saving.Unlock()
	if written {
		return false // nothing to wait for
	}
	timer := time.NewTimer(forgetPatience)
	defer timer.Stop()
	select {
	case <-ct.dropped:
		return true
	case <-timer.C:
	case <-c.life.Done():
	}
	return false
}

// owe writes down what is left to be done, so that it survives the agent.
func (c *Containerizer) owe(ct *container, owed error) {
	if c.life.Err() != nil {
		return
	}
	c.log.Warn("cleanup of a container is owed", "container", ct.id, "error", owed)
	if err := c.save(c.life, ct); err != nil && c.life.Err() == nil {
		c.log.Error("owed cleanup is not written", "error", err)
		return
	}
	if ct.debug {
		return // its intent is all that tells of it
	}
	if err := c.dropIntent(ct.id); err != nil {
		c.log.Warn("intent of a failed launch stays", "error", err)
	}
}

// drop removes what is kept of a container and frees its id.
func (c *Containerizer) drop(ct *container) error {
	ct.saving.Lock()
	defer ct.saving.Unlock()
	if ct.stored {
		ctx, cancel := context.WithTimeout(c.life, storeTimeout)
		defer cancel()
		if err := c.cfg.Store.DeleteContainer(ctx, ct.id); err != nil {
			return fmt.Errorf("drop container %s: %w", ct.id, err)
		}
	}
	if err := c.dropIntent(ct.id); err != nil {
		return fmt.Errorf("drop container %s: %w", ct.id, err)
	}
	ct.deleted = true
	ct.dropStreams()
	c.mu.Lock()
	delete(c.containers, ct.id)
	c.mu.Unlock()
	close(ct.gone)
	return nil
}
