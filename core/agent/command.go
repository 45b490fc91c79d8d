package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

type containerTermination = containerv1.Termination

// The built-in executor of command tasks: a task is a container, and its life is TASK_STARTING when the launch
// begins, TASK_RUNNING when the process runs, and a terminal state when the container has ended. The tasks of a group
// live so too, in containers nested in that of their executor (group_executor.go).

// killGrace is the time between SIGTERM and SIGKILL when nobody asked for another.
const killGrace = 3 * time.Second

// signalTimeout bounds sending a signal through the shim. A shim that does not answer leads to Destroy.
const signalTimeout = 5 * time.Second

func (a *Agent) commandLaunched(c *change, e *executor) {
	t := e.command
	e.phase = phaseRunning
	s := &mesosv1.TaskStatus{
		State:  mesosv1.TaskState_TASK_RUNNING.Enum(),
		Source: mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum(),
	}
	e.describeDocker(s)
	a.update(c, t, s)
	switch {
	case t.expired:
		c.then(func() { a.destroy(e, nil) })
	case !t.kill.IsZero(): // asked for while it was being launched
		a.beginKill(c, t)
	default:
		a.beginChecks(c, t)
	}
}

// limitTime starts the clock of max_completion_time, which runs from TASK_STARTING.
func (a *Agent) limitTime(t *task) {
	limit := t.info.GetMaxCompletionTime()
	if limit == nil || !t.kill.IsZero() || t.expired {
		return
	}
	left := time.Until(t.started.Add(time.Duration(limit.GetNanoseconds())))
	t.maxTimer = a.timers.after(max(left, 0), func() {
		a.decide(func(c *change) { a.expire(c, t) })
	})
}

// expire ends a task whose time is up, at once. A kill under way goes before it.
func (a *Agent) expire(c *change, t *task) {
	e := t.executor
	if terminal(t.state) || !t.kill.IsZero() || t.expired {
		return
	}
	t.expired = true
	a.stopChecks(t)
	c.progress(t)
	c.then(func() {
		switch e.phase {
		case phaseLaunching:
			e.cancelLaunch()
		case phaseRunning:
			a.destroy(e, nil)
		}
	})
}

// killTask obeys the master's KillTask. Of what is unknown here the master is told so.
func (a *Agent) killTask(m *clusterv1.KillTask) {
	a.decide(func(c *change) {
		f, id := FrameworkID(m.GetFrameworkId()), TaskID(m.GetTaskId())
		t := a.find(f, id)
		switch {
		case t == nil:
			state := mesosv1.TaskState_TASK_GONE
			if fw := a.frameworks[f]; fw != nil {
				state = fw.lost(state)
			}
			a.answer(f, id, state, mesosv1.TaskStatus_REASON_TASK_UNKNOWN, "the agent has no such task")
		case terminal(t.state):
			// The scheduler hears of it as soon as it acknowledges what it has.
		case t.builtin():
			a.kill(c, t, m.GetKillPolicy())
		default:
			a.killCustom(c, t, m.GetKillPolicy())
		}
	})
}

// graceOf is the time a task gets between SIGTERM and SIGKILL: as the kill says, else as the task says, else as its
// container of type DOCKER does, else the default; while the agent drains, at most what the drain allows.
func (a *Agent) graceOf(t *task, policy *mesosv1.KillPolicy) time.Duration {
	grace := killGrace
	if g, ok := t.stopTimeout(); ok {
		grace = g
	}
	if g := t.info.GetKillPolicy().GetGracePeriod(); g != nil {
		grace = time.Duration(g.GetNanoseconds())
	}
	if g := policy.GetGracePeriod(); g != nil {
		grace = time.Duration(g.GetNanoseconds())
	}
	if most := a.drain.GetMaxGracePeriod(); most != nil {
		grace = min(grace, time.Duration(most.GetNanoseconds()))
	}
	return max(grace, 0)
}

// kill begins to end a task that has a container, or hastens an end that has begun.
func (a *Agent) kill(c *change, t *task, policy *mesosv1.KillPolicy) {
	e := t.executor
	grace := a.graceOf(t, policy)
	again := !t.kill.IsZero()
	if again {
		// Time already given counts; a second kill can shorten it, never extend it.
		if grace >= t.grace {
			return
		}
	} else {
		t.kill = time.Now()
		a.timers.stop(t.maxTimer)
		a.stopChecks(t)
	}
	t.grace = grace
	t.draining = t.draining || a.drain != nil
	switch e.phase {
	case phaseAccepted, phaseQueued:
		a.ended(c, e, nil, errKilledBeforeLaunch)
	case phaseLaunching:
		c.progress(t)
		c.then(func() { e.cancelLaunch() })
	case phaseRunning:
		c.progress(t)
		if again {
			c.then(func() { a.escalateAt(t) })
			return
		}
		a.beginKill(c, t)
	}
}

// beginKill sends SIGTERM and sees to it that SIGKILL follows. That the task is being killed is on disk
// before: an agent that dies in between must not take the exit for a failure.
func (a *Agent) beginKill(c *change, t *task) {
	if t.framework.capable(mesosv1.FrameworkInfo_Capability_TASK_KILLING_STATE) &&
		t.state != mesosv1.TaskState_TASK_KILLING {
		a.update(c, t, &mesosv1.TaskStatus{
			State:  mesosv1.TaskState_TASK_KILLING.Enum(),
			Source: mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum(),
		})
	}
	c.then(func() {
		if t.grace > 0 {
			a.terminate(t.executor)
		}
		a.escalateAt(t)
	})
}

// terminate sends SIGTERM. The caller holds the lock.
func (a *Agent) terminate(e *executor) {
	a.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, signalTimeout)
		defer cancel()
		if err := a.ctzr.Signal(ctx, string(e.container), int(syscall.SIGTERM)); err != nil {
			a.log.Warn("signal container", "container", e.container, "error", err)
		}
	})
}

// escalateAt destroys the container when the grace period is over. The caller holds the lock.
func (a *Agent) escalateAt(t *task) {
	a.timers.stop(t.killTimer)
	left := time.Until(t.kill.Add(t.grace))
	if left <= 0 {
		a.destroy(t.executor, nil)
		return
	}
	t.killTimer = a.timers.after(left, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if !terminal(t.state) {
			a.destroy(t.executor, nil)
		}
	})
}

// errKilledBeforeLaunch is how ended is told of a task whose process never was.
var errKilledBeforeLaunch = fmt.Errorf("the task was killed before it was launched")

// ended goes on after a container has ended, or could not be started: then end is nil and err says why.
func (a *Agent) ended(c *change, e *executor, end *containerTermination, err error) {
	if e.phase == phaseTerminated {
		return
	}
	was := e.phase
	e.phase = phaseTerminated
	if e.parent == nil {
		a.counters.executorsEnded++
	}
	if was == phaseQueued {
		a.queue = slices.DeleteFunc(a.queue, func(x *executor) bool { return x == e })
	}
	switch {
	case e.ofGroups():
		a.groupsEnded(c, e, end, err)
		return
	case e.command == nil:
		a.customEnded(c, e, end, err)
		return
	}
	t := e.command
	a.stopChecks(t)
	if t.framework.terminating {
		t.state = mesosv1.TaskState_TASK_KILLED
		a.forgetTask(c, t) // nobody is left to acknowledge
	} else {
		a.update(c, t, e.taskOutcome(was, end, err))
	}
	if was != phaseAccepted && was != phaseQueued {
		c.then(func() { a.forget(e) })
	}
	if e.parent != nil {
		a.memberEnded(c, t)
	}
}

// outcome is the terminal status of a task that has a container. What the containerizer decided (a limit was reached) wins
// over the time limit, that over a kill, and that over the exit status.
func outcome(t *task, was phase, end *containerTermination, err error) *mesosv1.TaskStatus {
	s := &mesosv1.TaskStatus{Source: mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum()}
	if text, ok := describeExit(end); ok {
		s.Message = new("Command " + text)
		if t.isDocker() {
			s.Message = new("Container " + text)
		}
	}
	killed := !t.kill.IsZero()
	running := was == phaseRunning
	// A container whose end nobody saw "failed" only if nobody wanted it to end.
	unseen := end.GetReason() == "" && end != nil && end.WaitStatus == nil && (killed || t.expired)
	switch {
	case !unseen && decided(s, end):
		s.Source = mesosv1.TaskStatus_SOURCE_AGENT.Enum()
	case t.expired:
		s.State = mesosv1.TaskState_TASK_FAILED.Enum()
		s.Reason = mesosv1.TaskStatus_REASON_MAX_COMPLETION_TIME_REACHED.Enum()
		s.Message = new("the task did not end within its max_completion_time of " +
			time.Duration(t.info.GetMaxCompletionTime().GetNanoseconds()).String())
	case killed && !running:
		s.State = mesosv1.TaskState_TASK_KILLED.Enum()
		s.Reason = mesosv1.TaskStatus_REASON_TASK_KILLED_DURING_LAUNCH.Enum()
		s.Source = mesosv1.TaskStatus_SOURCE_AGENT.Enum()
		s.Message = new("the task was killed while it was being launched")
		if errors.Is(err, errKilledBeforeLaunch) {
			s.Message = new(err.Error())
		}
	case killed:
		s.State = mesosv1.TaskState_TASK_KILLED.Enum()
	case err != nil:
		s.State = mesosv1.TaskState_TASK_FAILED.Enum()
		s.Source = mesosv1.TaskStatus_SOURCE_AGENT.Enum()
		s.Message = new(err.Error())
		if !running {
			s.Reason = mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED.Enum()
		}
	case end.WaitStatus == nil:
		s.State = mesosv1.TaskState_TASK_FAILED.Enum()
		s.Source = mesosv1.TaskStatus_SOURCE_AGENT.Enum()
		s.Message = new("Command ended with an unknown status")
		if end.GetMessage() != "" {
			s.Message = new(end.GetMessage())
		}
	case end.GetWaitStatus() == 0:
		s.State = mesosv1.TaskState_TASK_FINISHED.Enum()
	default:
		s.State = mesosv1.TaskState_TASK_FAILED.Enum()
	}
	return s
}

// decided fills in what the containerizer decided, if it did. Words it does not know are left out.
func decided(s *mesosv1.TaskStatus, end *containerTermination) bool {
	state, ok := mesosv1.TaskState_value[end.GetState()]
	reason, known := mesosv1.TaskStatus_Reason_value[end.GetReason()]
	if !ok && !known {
		return false
	}
	if !ok || !terminal(mesosv1.TaskState(state)) {
		state = int32(mesosv1.TaskState_TASK_FAILED)
	}
	s.State = mesosv1.TaskState(state).Enum()
	if known {
		s.Reason = mesosv1.TaskStatus_Reason(reason).Enum()
	}
	if end.GetMessage() != "" {
		s.Message = new(end.GetMessage())
	}
	if rs := end.GetLimitedResources(); len(rs) > 0 {
		s.Limitation = &mesosv1.TaskResourceLimitation{Resources: rs}
	}
	return true
}

// describeExit words a wait(2) status as Mesos does.
func describeExit(end *containerTermination) (string, bool) {
	if end == nil || end.WaitStatus == nil {
		return "", false
	}
	switch w := syscall.WaitStatus(end.GetWaitStatus()); {
	case w.Exited():
		return fmt.Sprintf("exited with status %d", w.ExitStatus()), true
	case w.Signaled():
		return "terminated with signal " + signalText(w.Signal()), true
	default:
		return fmt.Sprintf("ended with wait status %#x", uint32(w)), true
	}
}

// signalText describes a signal in the words of strsignal(3) of the GNU C library, which is what Mesos puts
// into its messages and tools look for.
func signalText(s syscall.Signal) string {
	texts := [...]string{
		1: "Hangup", 2: "Interrupt", 3: "Quit", 4: "Illegal instruction", 5: "Trace/breakpoint trap", 6: "Aborted",
		7: "Bus error", 8: "Floating point exception", 9: "Killed", 10: "User defined signal 1",
		11: "Segmentation fault", 12: "User defined signal 2", 13: "Broken pipe", 14: "Alarm clock",
		15: "Terminated", 16: "Stack fault", 17: "Child exited", 18: "Continued", 19: "Stopped (signal)",
		20: "Stopped", 21: "Stopped (tty input)", 22: "Stopped (tty output)", 23: "Urgent I/O condition",
		24: "CPU time limit exceeded", 25: "File size limit exceeded", 26: "Virtual timer expired",
		27: "Profiling timer expired", 28: "Window changed", 29: "I/O possible", 30: "Power failure",
		31: "Bad system call",
	}
	switch n := int(s); {
	case n > 0 && n < len(texts):
		return texts[n]
	case n >= 34 && n <= 64:
		return fmt.Sprintf("Real-time signal %d", n-34)
	default:
		return fmt.Sprintf("Unknown signal %d", n)
	}
}
