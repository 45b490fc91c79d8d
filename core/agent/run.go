package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// launchTimeout bounds one launch, downloads of images and artifacts included. What takes longer than a
// quarter of an hour hangs.
const launchTimeout = 15 * time.Minute

// slowLaunch is how long a launch keeps its slot. One that takes longer waits for a network or a disk rather
// than for the processor, and others need not wait with it.
const slowLaunch = time.Second

// maxSlow bounds launches that gave their slot away. Each may be a download; beyond this many the network is what
// they wait for.
const maxSlow = 128

// runTask takes a task. When it is on disk it is launched; the master hears of it by its updates.
func (a *Agent) runTask(m *clusterv1.RunTask) {
	a.decide(func(c *change) {
		info := m.GetTask()
		id := TaskID(info.GetTaskId().GetValue())
		f, err := a.framework(c, m.GetFramework())
		if err != nil {
			a.log.Warn("refused a task", "task", id, "error", err)
			return
		}
		if f.tasks[id] != nil {
			a.log.Warn("ignored a task that is already here", "framework", f.id, "task", id)
			return
		}
		if f.terminating || a.leaving {
			// Its updates have no reader, so nothing is written down.
			a.answer(f.id, id, f.lost(mesosv1.TaskState_TASK_DROPPED), mesosv1.TaskStatus_REASON_FRAMEWORK_REMOVED,
				"the framework or the agent is being shut down")
			a.forgetFramework(c, f)
			return
		}
		if err := checkID(string(id)); err != nil {
			// It cannot be written down under such an id, so this answer is not repeated.
			a.answer(f.id, id, f.lost(mesosv1.TaskState_TASK_ERROR), mesosv1.TaskStatus_REASON_TASK_INVALID,
				"task id: "+err.Error())
			a.forgetFramework(c, f)
			return
		}
		t := &task{framework: f, id: id, info: info, state: mesosv1.TaskState_TASK_STAGING}
		if state, reason, text := a.refusal(f, info); text != "" {
			a.place(t, nil)
			a.accept(c, t)
			t.executor.phase = phaseTerminated
			a.update(c, t, &mesosv1.TaskStatus{
				State:   f.lost(state).Enum(),
				Reason:  reason.Enum(),
				Message: new(text),
				Source:  mesosv1.TaskStatus_SOURCE_AGENT.Enum(),
			})
			return
		}
		if info.GetExecutor() != nil {
			a.runCustom(c, t)
			return
		}
		a.place(t, nil)
		a.accept(c, t)
		c.then(func() { a.enqueue(t.executor) })
	})
}

// refusal says why a task cannot run here, or returns an empty text.
func (a *Agent) refusal(f *framework, info *mesosv1.TaskInfo) (mesosv1.TaskState, mesosv1.TaskStatus_Reason, string) {
	invalid := func(format string, args ...any) (mesosv1.TaskState, mesosv1.TaskStatus_Reason, string) {
		return mesosv1.TaskState_TASK_ERROR, mesosv1.TaskStatus_REASON_TASK_INVALID, fmt.Sprintf(format, args...)
	}
	switch {
	case a.drain != nil:
		return mesosv1.TaskState_TASK_DROPPED, mesosv1.TaskStatus_REASON_AGENT_DRAINING, "the agent is being drained"
	case info.GetAgentId().GetValue() != a.info.GetId().GetValue():
		return invalid("the task is for agent %q, this is %q", info.GetAgentId().GetValue(), a.info.GetId().GetValue())
	case info.GetExecutor() == nil && info.GetCommand() == nil:
		return invalid("the task has neither command nor executor")
	}
	if err := a.unknownResources(info.GetResources()); err != nil {
		return mesosv1.TaskState_TASK_DROPPED, mesosv1.TaskStatus_REASON_RESOURCES_UNKNOWN, err.Error()
	}
	if x := info.GetExecutor(); x != nil {
		if err := checkID(x.GetExecutorId().GetValue()); err != nil {
			return invalid("executor id: %v", err)
		}
		if x.GetType() == mesosv1.ExecutorInfo_DEFAULT {
			return invalid("executors of type DEFAULT run task groups, this is a single task")
		}
		if x.GetCommand() == nil {
			return invalid("executor %q has no command", x.GetExecutorId().GetValue())
		}
	}
	return 0, 0, ""
}

// place gives a task its executor: e, or one of its own for a command task.
func (a *Agent) place(t *task, e *executor) {
	if e == nil {
		e = &executor{
			framework:  t.framework,
			id:         ExecutorID(t.id),
			command:    t,
			container:  ContainerID(uuid.NewString()),
			generation: 1,
		}
		e.directory = a.sandbox(e)
		a.containers[e.container] = e
	}
	t.executor = e
	t.progress.container, t.generation = e.container, e.generation
	a.arrivals++
	t.order = a.arrivals
	t.framework.tasks[t.id] = t
	if !t.command() {
		t.owner().tasks[t.id] = t
	}
}

// accept writes a task down.
func (a *Agent) accept(c *change, t *task) {
	data, err := t.info.MarshalVT()
	if err != nil {
		// A message that came over the wire can be written again.
		a.fail(fmt.Errorf("encode task %s: %w", t.id, err))
		return
	}
	key := recordKey(string(t.framework.id), string(t.id))
	c.put(bucketTasks, key, data)
	c.put(bucketProgress, key, t.progress.encode())
}

func (c *change) progress(t *task) {
	c.put(bucketProgress, recordKey(string(t.framework.id), string(t.id)), t.progress.encode())
}

// enqueue lets an accepted executor wait for its turn. The caller holds the lock.
func (a *Agent) enqueue(e *executor) {
	if e.phase != phaseAccepted || a.stopping {
		return // killed, or left for the next start
	}
	e.phase = phaseQueued
	a.queue = append(a.queue, e)
	a.schedule()
}

// schedule begins launches, oldest first, while there are slots. The caller holds the lock.
func (a *Agent) schedule() {
	for a.launching < a.cfg.LaunchParallelism && len(a.queue) > 0 && !a.stopping {
		e := a.queue[0]
		a.queue[0] = nil
		a.queue = a.queue[1:]
		if e.phase == phaseQueued {
			a.launching++
			a.launch(e)
		}
	}
}

// launch starts e's container in a goroutine of its own. The task is on disk by now; TASK_STARTING is written
// while the launch goes on, and in front of all the containerizer writes.
func (a *Agent) launch(e *executor) {
	var c change
	e.phase = phaseLaunching
	if t := e.command; t != nil {
		t.delivered = true
		t.started = time.Now()
		c.progress(t)
		if t.state == mesosv1.TaskState_TASK_STAGING { // else an agent before us said so
			a.update(&c, t, &mesosv1.TaskStatus{
				State:  mesosv1.TaskState_TASK_STARTING.Enum(),
				Source: mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum(),
			})
		}
		a.limitTime(t)
	}
	a.do(&c)

	slow, over := false, false
	slot := a.timers.after(slowLaunch, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if !over && a.slow < maxSlow {
			slow = true
			a.slow++
			a.launching--
			a.schedule()
		}
	})
	container := a.containerOf(e)
	e.applied = e.allowance()
	ctx, cancel := context.WithTimeout(a.work, launchTimeout)
	e.cancelLaunch = cancel
	e.launchDone = make(chan struct{})
	a.spawn(func(context.Context) {
		defer close(e.launchDone)
		defer cancel()
		var pid int32
		var status *mesosv1.ContainerStatus
		var inspected []byte
		err := a.makeFolders(e)
		if err == nil {
			pid, err = a.ctzr.Launch(ctx, container)
		}
		if err == nil {
			status = a.statusOf(ctx, e)
			inspected = a.inspect(e, status)
		}
		a.timers.stop(slot)
		a.decide(func(c *change) {
			over = true
			if slow {
				a.slow--
			} else {
				a.launching--
			}
			a.schedule()
			e.inspected = inspected
			a.launched(c, e, pid, status, err)
		})
	})
}

// launched goes on after a launch.
func (a *Agent) launched(c *change, e *executor, pid int32, status *mesosv1.ContainerStatus, err error) {
	if err != nil && a.work.Err() != nil {
		return // the agent stops: its next start launches again
	}
	if err != nil {
		a.counters.launchErrors++
		a.log.Warn("launch failed", "framework", e.framework.id, "executor", e.id, "container", e.container, "error", err)
		a.ended(c, e, nil, err)
		return
	}
	e.pid, e.status = pid, status
	switch {
	case e.command != nil:
		a.commandLaunched(c, e)
	case e.ofGroups():
		a.groupsLaunched(c, e)
	default:
		a.customLaunched(c, e)
	}
	a.await(e)
}

// await watches a container until it ends. The caller holds the lock.
func (a *Agent) await(e *executor) {
	a.spawn(func(ctx context.Context) {
		end, err := a.ctzr.Wait(ctx, string(e.container))
		if ctx.Err() != nil {
			return // the container outlives us
		}
		if err != nil {
			err = fmt.Errorf("wait for container %s: %w", e.container, err)
		} else if end == nil {
			err = fmt.Errorf("wait for container %s: no result", e.container)
		}
		above := a.endAbove(ctx, e, end)
		a.decide(func(c *change) {
			e.above = above
			a.ended(c, e, end, err)
		})
	})
}

// statusTimeout bounds asking for a container's addresses and cgroup: a launch does not fail for them.
const statusTimeout = 2 * time.Second

func (a *Agent) statusOf(ctx context.Context, e *executor) *mesosv1.ContainerStatus {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	s, err := a.ctzr.Status(ctx, string(e.container))
	if err != nil || s == nil {
		if err != nil && !errors.Is(err, context.Canceled) {
			a.log.Warn("no status of a container", "container", e.container, "error", err)
		}
		return nil
	}
	s.ContainerId = e.container.mesos()
	return s
}

// destroyTimeout bounds one attempt to destroy a container, destroyRetry* the time between attempts. Nothing
// is given up: the kernel lets go of a process in the end.
const (
	destroyTimeout  = time.Minute
	destroyRetryMin = time.Second
	destroyRetryMax = time.Minute
)

// destroy kills e's container until it is dead. Wait then tells of it. The caller holds the lock.
func (a *Agent) destroy(e *executor, why *containerTermination) {
	if e.destroying || e.phase == phaseTerminated {
		return
	}
	e.destroying = true
	a.spawn(func(ctx context.Context) {
		for wait := destroyRetryMin; ; wait = min(2*wait, destroyRetryMax) {
			once, cancel := context.WithTimeout(ctx, destroyTimeout)
			err := a.ctzr.Destroy(once, string(e.container), why)
			cancel()
			a.mu.Lock()
			over := e.phase == phaseTerminated // meanwhile, and perhaps forgotten
			a.mu.Unlock()
			if err == nil || over || ctx.Err() != nil {
				return
			}
			a.log.Error("destroy failed, will be tried again", "container", e.container, "after", wait, "error", err)
			if !sleep(ctx, wait) {
				return
			}
		}
	})
}

// sleep returns false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// forget tells the containerizer that a container's end is on disk here. The caller holds the lock.
func (a *Agent) forget(e *executor) {
	a.spawn(func(ctx context.Context) {
		// The age of a sandbox counts from here (gc.go), not from the last time a file was made in it.
		if now := time.Now(); e.directory != "" {
			if err := os.Chtimes(e.directory, now, now); err != nil && !os.IsNotExist(err) {
				a.log.Warn("touch sandbox", "error", err)
			}
		}
		ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
		defer cancel()
		if err := a.ctzr.Forget(ctx, string(e.container)); err != nil && ctx.Err() == nil {
			a.log.Warn("forget container", "container", e.container, "error", err)
		}
	})
}
