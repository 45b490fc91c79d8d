package agent

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// The built-in executor of task groups. Its container holds a program that does nothing, and what the tasks share:
// network, sandbox and, unless they ask for their own, cgroup. Each task is a container nested in it, with a life as in
// command.go. When a task of a group ends otherwise than FINISHED, the others of its group are killed. The container
// grows before tasks are launched and shrinks after they ended; when none is left it is ended as well, and its
// framework has to launch it anew.

// ofGroups tells whether e is the agent's own executor of task groups.
func (e *executor) ofGroups() bool {
	return e.command == nil && e.info.GetType() == mesosv1.ExecutorInfo_DEFAULT
}

// newNested makes the unit of one task in the container of e.
func newNested(e *executor, t *task) *executor {
	return &executor{
		framework:  e.framework,
		id:         e.id,
		command:    t,
		parent:     e,
		container:  t.progress.container,
		generation: t.generation,
	}
}

// holds tells whether a container is e's or directly in it.
func (e *executor) holds(id ContainerID) bool {
	return id == e.container || strings.HasPrefix(string(id), string(e.container)+".")
}

// own is the last part of the id of a container, by which its sandbox is called.
func (id ContainerID) own() string { return string(id)[strings.LastIndexByte(string(id), '.')+1:] }

// mesos spells the id as Mesos does, which nests messages.
func (id ContainerID) mesos() *mesosv1.ContainerID {
	var x *mesosv1.ContainerID
	for part := range strings.SplitSeq(string(id), ".") {
		x = &mesosv1.ContainerID{Value: new(part), Parent: x}
	}
	return x
}

func byArrival(x, y *task) int { return cmp.Or(cmp.Compare(x.order, y.order), cmp.Compare(x.id, y.id)) }

func (e *executor) sortedTasks() []*task { return slices.SortedFunc(maps.Values(e.tasks), byArrival) }

// pause is the command of the container around a group's.
func (a *Agent) pause() *mesosv1.CommandInfo {
	argv := a.cfg.Pause
	if len(argv) == 0 {
		return nil // was refused; of an agent before us that had one, the launch fails
	}
	return &mesosv1.CommandInfo{Shell: new(false), Value: new(argv[0]), Arguments: argv}
}

// sharesCgroup tells whether a nested container lives under the limits of the one around it, which is the default.
func (e *executor) sharesCgroup() bool {
	return e.command.info.GetContainer().GetLinuxInfo().GetShareCgroups()
}

// allowance is what a container may use.
type allowance struct {
	resources []*mesosv1.Resource
	limits    map[string]float64
}

func (x *allowance) equal(y *allowance) bool {
	return x != nil && maps.Equal(x.limits, y.limits) && resources.New(x.resources...).Equal(resources.New(y.resources...))
}

// allowance is what the containerizer is told of e.resources: the container of a group's executor may use all that its
// tasks may, but their volumes are theirs; and a task that lives in its cgroup has only its volumes for itself.
func (e *executor) allowance() *allowance {
	var x allowance
	x.resources, x.limits = e.resources()
	volume := func(r *mesosv1.Resource) bool { return r.GetDisk().GetPersistence() != nil }
	switch {
	case e.parent != nil && e.sharesCgroup():
		x.limits = nil
		x.resources = slices.DeleteFunc(slices.Clone(x.resources), func(r *mesosv1.Resource) bool { return !volume(r) })
	case e.ofGroups():
		x.resources = slices.DeleteFunc(slices.Clone(x.resources), volume)
		for _, r := range e.info.GetResources() {
			if volume(r) {
				x.resources = append(x.resources, r)
			}
		}
	}
	return &x
}

// groupsLaunched goes on when the container around the tasks' is there.
func (a *Agent) groupsLaunched(c *change, e *executor) {
	e.launched = true
	e.phase = phaseRunning
	a.checkpoint(c, e)
	if e.shutdown || !e.busy() {
		a.endGroups(c, e)
		return
	}
	c.then(func() { a.deliver(e) })
}

// memberEnded goes on after the container of a group's task has ended, or never was.
func (a *Agent) memberEnded(c *change, t *task) {
	e := t.executor.parent
	// When all that is in the executor ends, each task's end is the executor's.
	together := e.phase >= phaseTerminating || e.destroying || t.executor.above != nil
	if t.state != mesosv1.TaskState_TASK_FINISHED && !together && !t.framework.terminating {
		for _, x := range t.members() {
			if !terminal(x.state) && x.kill.IsZero() {
				a.kill(c, x, nil)
			}
		}
	}
	switch {
	case e.busy():
		c.then(func() { a.deliver(e) }) // which takes back what the task does not need any more
	case t.executor.above == nil: // else it has ended, and is about to be told so
		a.endGroups(c, e)
	}
	a.settleGroups(c, e)
}

// idleTime is how long an executor without tasks stays for the framework's next group: one that is launched on hearing
// of the end of the last finds it. As long as with Mesos.
const idleTime = time.Second

// endGroups ends an executor that has nothing left to do, at once where nothing can follow. What its tasks came to is
// written down before.
func (a *Agent) endGroups(c *change, e *executor) {
	switch e.phase {
	case phaseAccepted, phaseQueued:
		a.ended(c, e, nil, errKilledBeforeLaunch)
	case phaseLaunching:
		c.then(func() { e.cancelLaunch() })
	case phaseRunning:
		if e.shutdown || e.framework.terminating || a.leaving || a.drain != nil {
			e.phase, e.idle = phaseTerminating, !e.destroying // with what is in it
			c.then(func() { a.destroy(e, nil) })
			return
		}
		c.then(func() {
			a.timers.stop(e.timer)
			e.timer = a.timers.after(idleTime, func() {
				a.mu.Lock()
				defer a.mu.Unlock()
				if e.phase == phaseRunning && !e.shutdown && !e.busy() {
					e.phase, e.idle = phaseTerminating, true
					a.destroy(e, nil)
				}
			})
		})
	}
}

// shutDownGroups kills all tasks of an executor, each with the time it has for that, but all within what the executor
// has.
func (a *Agent) shutDownGroups(c *change, e *executor) {
	if e.phase >= phaseTerminating {
		return
	}
	a.checkpoint(c, e)
	if !e.busy() {
		a.endGroups(c, e)
		return
	}
	c.then(func() {
		a.timers.stop(e.timer)
		e.timer = a.timers.after(a.shutdownGrace(e), func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			if e.phase == phaseRunning {
				a.destroy(e, nil)
			}
		})
	})
	for _, t := range e.sortedTasks() {
		if !terminal(t.state) {
			a.kill(c, t, nil)
		}
	}
}

// errExecutorGone is how the end of a task is told whose executor has ended under it.
var errExecutorGone = errors.New("the executor of the task has ended")

// groupsEnded goes on after the container around the tasks' has ended, or could not be made. The containers in it have
// ended too, or are about to.
func (a *Agent) groupsEnded(c *change, e *executor, end *containerTermination, err error) {
	a.timers.stop(e.timer)
	e.end, e.endErr = end, err
	for _, t := range e.sortedTasks() {
		switch unit := t.executor; unit.phase {
		case phaseAccepted, phaseQueued:
			a.ended(c, unit, nil, errExecutorGone)
		case phaseLaunching:
			c.then(func() { unit.cancelLaunch() })
		}
	}
	a.settleGroups(c, e)
}

// settleGroups says that an executor is over when all of it is.
func (a *Agent) settleGroups(c *change, e *executor) {
	if e.phase != phaseTerminated || e.over {
		return
	}
	for _, t := range e.tasks {
		if t.executor.phase != phaseTerminated {
			return
		}
	}
	e.over = true
	if e.launched {
		status := int32(-1)
		switch {
		case e.idle && e.end.GetReason() == "":
			status = 0 // it did what it was for; how it was ended is nobody's concern
		case e.end != nil && e.end.WaitStatus != nil:
			status = e.end.GetWaitStatus()
		}
		c.then(func() {
			a.forget(e)
			a.sayExited(e, status)
		})
	}
	a.forgetExecutor(c, e)
	a.forgetFramework(c, e.framework)
	a.finishDrain(c)
}

// sayExited tells the master of an executor's end. The caller holds the lock.
func (a *Agent) sayExited(e *executor, status int32) {
	if a.master == nil {
		return
	}
	a.master.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_ExecutorExited{
		ExecutorExited: &clusterv1.ExecutorExited{
			FrameworkId: string(e.framework.id),
			ExecutorId:  string(e.id),
			Status:      status,
		},
	}})
}

// aboveTimeout bounds the question whether a container ended because the one around it does. That one's end comes a
// moment later, since it is ended from the inside out.
const aboveTimeout = time.Second

// unexplained tells whether a nested container may have ended because the one around it did: it was killed, and nobody
// said why.
func unexplained(end *containerTermination) bool {
	if end == nil || end.GetReason() != "" || end.GetState() != "" {
		return false
	}
	return end.WaitStatus == nil || syscall.WaitStatus(end.GetWaitStatus()).Signaled() &&
		syscall.WaitStatus(end.GetWaitStatus()).Signal() == syscall.SIGKILL
}

// endAbove returns how the container around that of e ended, if it did and e's may have ended with it.
func (a *Agent) endAbove(ctx context.Context, e *executor, end *containerTermination) *containerTermination {
	if e.parent == nil || !unexplained(end) {
		return nil
	}
	a.mu.Lock()
	wanted := !e.command.kill.IsZero() || e.command.expired || e.destroying
	a.mu.Unlock()
	if wanted {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, aboveTimeout)
	defer cancel()
	around, err := a.ctzr.Wait(ctx, string(e.parent.container))
	if err != nil {
		return nil
	}
	return around
}

// taskOutcome is the terminal status of e's task. A task of a group that nobody wanted to end and that ended with its
// executor says what the executor's end was.
func (e *executor) taskOutcome(was phase, end *containerTermination, err error) *mesosv1.TaskStatus {
	t, p := e.command, e.parent
	if p == nil || !t.kill.IsZero() || t.expired {
		return outcome(t, was, end, err)
	}
	switch {
	case p.phase == phaseTerminated && (err != nil || unexplained(end)):
		return p.outcome(p.end, p.endErr)
	case e.above != nil && unexplained(end):
		return p.outcome(e.above, nil)
	}
	return outcome(t, was, end, err)
}

// recoverGroups goes on with an executor of task groups and its tasks.
func (a *Agent) recoverGroups(c *change, e *executor, found map[ContainerID]*containerv1.Checkpoint) {
	cp := found[e.container]
	for _, t := range e.tasks {
		t.stored = true
		if terminal(t.state) {
			t.executor.phase = phaseTerminated
		}
	}
	if cp == nil && e.launched {
		e.phase = phaseRunning
		for _, t := range e.sortedTasks() {
			if own := found[t.executor.container]; own != nil && !terminal(t.state) {
				a.recoverCommand(c, t, own)
			}
		}
		a.ended(c, e, nil, errors.New("the container of the executor is gone"))
		return
	}
	if cp != nil {
		e.launched = true
		e.phase = phaseRunning
		e.pid = cp.GetPid()
	}
	kept := e.framework.info.GetCheckpoint()
	// Those that have a container come first: a task that was killed before it had one ends its group, and whoever is
	// then not known to run would count as never launched, and its container would be nobody's.
	for _, t := range e.sortedTasks() {
		if own := found[t.executor.container]; own != nil && !terminal(t.state) {
			a.recoverCommand(c, t, own)
		}
	}
	for _, t := range e.sortedTasks() {
		switch unit := t.executor; {
		case terminal(t.state) || found[unit.container] != nil:
		case cp == nil && !kept && t.kill.IsZero():
			unit.phase = phaseTerminated
			a.update(c, t, a.restarted(e.framework))
		default:
			a.recoverCommand(c, t, nil)
		}
	}
	switch {
	case e.phase == phaseTerminated: // its last task was recovered as killed
	case cp == nil && !e.busy():
		a.ended(c, e, nil, errKilledBeforeLaunch)
	case cp == nil:
		e.generation++
		a.checkpoint(c, e)
		c.then(func() { a.enqueue(e) })
	default:
		c.then(func() { a.await(e) })
		switch {
		case cp.GetPhase() == containerv1.Checkpoint_ENDED:
			e.phase, e.idle = phaseTerminating, !e.busy()
		case !kept:
			e.phase = phaseTerminating
			a.abandon(c, e)
		case e.phase == phaseTerminating: // likewise, and it is being ended
		case !e.busy():
			a.endGroups(c, e)
		case e.shutdown:
			a.shutDownGroups(c, e)
		default:
			c.then(func() { a.spawn(func(ctx context.Context) { a.resumeGroups(ctx, e) }) })
		}
	}
}

// resumeGroups launches what the agent before did not get to. Tasks are told the address of the executor's container,
// which is asked for before.
func (a *Agent) resumeGroups(ctx context.Context, e *executor) {
	status := a.statusOf(ctx, e)
	a.mu.Lock()
	defer a.mu.Unlock()
	e.status = status
	a.deliver(e)
}
