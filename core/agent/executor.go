package agent

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Custom executors: processes of the framework's that run its tasks and speak /api/v1/executor. One is launched
// with its first task and lives until it ends itself, is shut down, or its agent gives it up.

// ExecutorStream carries events to one executor. Send never blocks; it returns false when the stream is over.
// The edge that serves executors spells the same type.
type ExecutorStream = interface {
	Send(*executorv1.Event) bool
	Close()
	Done() <-chan struct{}
}

// resizeTimeout bounds changing what a running container may use; module calls may be part of it.
const resizeTimeout = 30 * time.Second

func newExecutor(f *framework, id ExecutorID, info *mesosv1.ExecutorInfo) *executor {
	return &executor{framework: f, id: id, info: info, tasks: make(map[TaskID]*task)}
}

// checkpoint writes an executor with tasks down.
func (a *Agent) checkpoint(c *change, e *executor) {
	r := executorRecord{info: e.info, container: e.container, generation: e.generation, launched: e.launched, shutdown: e.shutdown}
	data, err := r.encode()
	if err != nil {
		a.fail(err)
		return
	}
	c.put(bucketExecutors, recordKey(string(e.framework.id), string(e.id)), data)
}

// runCustom takes a task for a custom executor.
func (a *Agent) runCustom(c *change, t *task) {
	f := t.framework
	id := ExecutorID(t.info.GetExecutor().GetExecutorId().GetValue())
	e := f.executors[id]
	switch {
	case e == nil:
		e = a.addExecutor(c, f, t.info.GetExecutor())
		a.place(t, e)
		a.accept(c, t)
		c.then(func() {
			t.stored = true
			a.enqueue(e)
		})
	case e.phase >= phaseTerminating:
		a.place(t, nil)
		a.accept(c, t)
		t.executor.phase = phaseTerminated
		a.update(c, t, &mesosv1.TaskStatus{
			State:   f.lost(mesosv1.TaskState_TASK_DROPPED).Enum(),
			Reason:  mesosv1.TaskStatus_REASON_EXECUTOR_TERMINATED.Enum(),
			Message: new("executor " + string(id) + " is ending"),
			Source:  mesosv1.TaskStatus_SOURCE_AGENT.Enum(),
		})
	default:
		a.place(t, e)
		a.accept(c, t)
		c.then(func() {
			t.stored = true
			a.deliver(e)
		})
	}
}

// addExecutor makes the executor that info describes and writes it down.
func (a *Agent) addExecutor(c *change, f *framework, info *mesosv1.ExecutorInfo) *executor {
	e := newExecutor(f, ExecutorID(info.GetExecutorId().GetValue()), info)
	if e.info.GetFrameworkId() == nil {
		e.info = e.info.CloneVT()
		e.info.FrameworkId = &mesosv1.FrameworkID{Value: new(string(f.id))}
	}
	e.container, e.generation = ContainerID(uuid.NewString()), 1
	e.directory = a.sandbox(e)
	f.executors[e.id] = e
	a.containers[e.container] = e
	a.checkpoint(c, e)
	return e
}

func (a *Agent) customLaunched(c *change, e *executor) {
	e.launched = true
	e.phase = phaseRegistering
	a.checkpoint(c, e)
	switch {
	case e.shutdown || !e.busy():
		c.then(func() { a.destroy(e, nil) })
	case e.stream != nil: // faster than its launch
		e.phase = phaseRunning
		c.then(func() { a.deliver(e) })
	default:
		a.expectSubscription(e, a.cfg.ExecutorRegistrationTimeout, mesosv1.TaskStatus_REASON_EXECUTOR_REGISTRATION_TIMEOUT)
	}
}

// expectSubscription gives an executor until timeout to subscribe.
func (a *Agent) expectSubscription(e *executor, timeout time.Duration, reason mesosv1.TaskStatus_Reason) {
	e.timer = a.timers.after(timeout, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if e.phase != phaseRegistering {
			return
		}
		e.phase = phaseTerminating
		a.destroy(e, &containerTermination{
			State:   mesosv1.TaskState_TASK_FAILED.String(),
			Reason:  reason.String(),
			Message: "the executor did not subscribe within " + timeout.String(),
		})
	})
}

// busy tells whether any of its tasks has not ended.
func (e *executor) busy() bool {
	for _, t := range e.tasks {
		if !terminal(t.state) {
			return true
		}
	}
	return false
}

// deliver has the container grow or shrink to what its tasks need, and then gives the executor those that it
// does not have yet. The caller holds the lock.
func (a *Agent) deliver(e *executor) {
	e.resize = true
	if e.resizing || e.phase != phaseRunning {
		return
	}
	e.resizing = true
	a.spawn(func(ctx context.Context) {
		for a.resizeOnce(ctx, e) {
		}
	})
}

// resizeOnce returns whether it must be done again.
func (a *Agent) resizeOnce(ctx context.Context, e *executor) bool {
	a.mu.Lock()
	e.resize = false
	want := e.allowance()
	waiting := e.waiting()
	skip := e.ofGroups() && e.applied.equal(want)
	a.mu.Unlock()

	var err error
	if !skip {
		once, cancel := context.WithTimeout(ctx, resizeTimeout)
		err = a.ctzr.Update(once, string(e.container), want.resources, want.limits)
		cancel()
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case ctx.Err() != nil || e.phase != phaseRunning:
		e.resizing = false
		return false
	case err != nil && len(waiting) > 0:
		// Tasks beyond what the container may use are worse than no tasks.
		e.phase = phaseTerminating
		a.destroy(e, &containerTermination{
			State:   e.framework.lost(mesosv1.TaskState_TASK_GONE).String(),
			Reason:  mesosv1.TaskStatus_REASON_CONTAINER_UPDATE_FAILED.String(),
			Message: "update container: " + err.Error(),
		})
	case err != nil:
		a.log.Warn("container keeps resources of tasks that ended", "container", e.container, "error", err)
	case e.ofGroups():
		e.applied = want
		for _, t := range waiting {
			a.enqueue(t.executor)
		}
	default:
		e.handOver(waiting)
	}
	if !e.resize {
		e.resizing = false
	}
	return e.resize
}

// handOver gives a custom executor those of its tasks that it does not have yet, those of a group together or not at
// all. The caller holds the lock.
func (e *executor) handOver(waiting []*task) {
	for len(waiting) > 0 && e.stream != nil {
		first := waiting[0]
		n := 1
		for first.group != 0 && n < len(waiting) && waiting[n].group == first.group {
			n++
		}
		some := waiting[:n]
		waiting = waiting[n:]
		if slices.ContainsFunc(some, func(t *task) bool { return t.delivered || terminal(t.state) }) {
			continue // meanwhile; a group is killed as a whole
		}
		event := &executorv1.Event{
			Type:   executorv1.Event_LAUNCH.Enum(),
			Launch: &executorv1.Event_Launch{Task: first.info},
		}
		if first.group != 0 {
			group := &mesosv1.TaskGroupInfo{}
			for _, t := range some {
				group.Tasks = append(group.Tasks, t.info)
			}
			event = &executorv1.Event{
				Type:        executorv1.Event_LAUNCH_GROUP.Enum(),
				LaunchGroup: &executorv1.Event_LaunchGroup{TaskGroup: group},
			}
		}
		sent := e.stream.Send(event)
		for _, t := range some {
			t.delivered = sent
		}
	}
}

// waiting returns the tasks that are on disk and that the executor does not have, oldest first.
func (e *executor) waiting() []*task {
	var ts []*task
	for _, t := range e.tasks {
		if t.stored && !t.delivered && !terminal(t.state) {
			ts = append(ts, t)
		}
	}
	slices.SortFunc(ts, func(x, y *task) int { return cmp.Compare(x.order, y.order) })
	return ts
}

// lookup finds the executor of a call, or says 400.
func (a *Agent) lookup(call *executorv1.Call) (*executor, error) {
	if !a.recovered {
		return nil, refuse(http.StatusServiceUnavailable, "Agent has not finished recovery")
	}
	f := a.frameworks[FrameworkID(call.GetFrameworkId().GetValue())]
	if f == nil {
		return nil, refuse(http.StatusBadRequest, "Framework cannot be found")
	}
	e := f.executors[ExecutorID(call.GetExecutorId().GetValue())]
	if e == nil || e.ofGroups() { // that one is the agent itself
		return nil, refuse(http.StatusBadRequest, "Executor cannot be found")
	}
	return e, nil
}

// ExecutorSubscribe accepts an executor's SUBSCRIBE. A second one takes the place of the first.
func (a *Agent) ExecutorSubscribe(_ context.Context, call *executorv1.Call, s ExecutorStream) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, err := a.lookup(call)
	if err != nil {
		return err
	}
	if e.phase >= phaseTerminating || e.shutdown {
		s.Send(&executorv1.Event{Type: executorv1.Event_SHUTDOWN.Enum()})
		s.Close()
		return nil
	}
	if e.stream != nil {
		e.stream.Close()
	}
	e.stream = s
	s.Send(&executorv1.Event{
		Type: executorv1.Event_SUBSCRIBED.Enum(),
		Subscribed: &executorv1.Event_Subscribed{
			ExecutorInfo:  e.info,
			FrameworkInfo: e.framework.info,
			AgentInfo:     a.info,
			ContainerId:   &mesosv1.ContainerID{Value: new(string(e.container))},
		},
	})
	a.spawn(func(ctx context.Context) {
		select {
		case <-s.Done():
		case <-ctx.Done():
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if e.stream == s {
			e.stream = nil
		}
	})
	// Before SUBSCRIBED is answered the executor may have forgotten what never reached it: a task it has
	// not reported on and does not name did not arrive.
	has := make(map[string]bool)
	for _, t := range call.GetSubscribe().GetUnacknowledgedTasks() {
		has[t.GetTaskId().GetValue()] = true
	}
	arrived := make(map[uint64]bool) // groups: of one that came, all came
	for _, t := range e.tasks {
		if t.state != mesosv1.TaskState_TASK_STAGING || has[string(t.id)] {
			arrived[t.group] = true
		}
	}
	for _, t := range e.tasks {
		if t.delivered && t.state == mesosv1.TaskState_TASK_STAGING && !has[string(t.id)] && (t.group == 0 || !arrived[t.group]) {
			t.delivered = false
		}
	}
	var c change
	for _, u := range call.GetSubscribe().GetUnacknowledgedUpdates() {
		if err := a.takeUpdate(&c, e, u.GetStatus()); err != nil {
			a.log.Warn("refused an executor's repeated update", "framework", e.framework.id, "executor", e.id, "error", err)
		}
	}
	a.do(&c)
	for _, t := range e.tasks {
		if t.delivered && !t.kill.IsZero() && !terminal(t.state) {
			e.sendKill(t, nil)
		}
	}
	if e.phase == phaseRegistering {
		e.phase = phaseRunning
		a.timers.stop(e.timer)
		if !e.busy() {
			// All it was to run was killed meanwhile, or has ended while the agent was away.
			if !e.hasHistory() {
				a.shutDownExecutor(e)
				return nil
			}
		}
	}
	a.deliver(e)
	return nil
}

// hasHistory tells whether the executor ever reported on a task.
func (e *executor) hasHistory() bool {
	for _, t := range e.tasks {
		if t.delivered {
			return true
		}
	}
	return e.reported
}

// ExecutorCall takes UPDATE, MESSAGE and HEARTBEAT of a subscribed executor. An UPDATE is answered before it is
// on disk; ACKNOWLEDGED tells of that.
func (a *Agent) ExecutorCall(_ context.Context, call *executorv1.Call) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.recovered && call.GetType() == executorv1.Call_HEARTBEAT {
		return nil // it keeps a connection open, whoever sends it
	}
	e, err := a.lookup(call)
	if err != nil {
		return err
	}
	if e.stream == nil {
		return refuse(http.StatusForbidden, "Executor is not subscribed")
	}
	switch call.GetType() {
	case executorv1.Call_UPDATE:
		var c change
		err := a.takeUpdate(&c, e, call.GetUpdate().GetStatus())
		a.do(&c)
		return err
	case executorv1.Call_MESSAGE:
		a.counters.frameworkMessages++
		if a.master != nil {
			a.master.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_FrameworkMessage{
				FrameworkMessage: &clusterv1.FrameworkMessage{
					FrameworkId: string(e.framework.id),
					ExecutorId:  string(e.id),
					Data:        call.GetMessage().GetData(),
				},
			}})
		}
		return nil
	case executorv1.Call_SUBSCRIBE:
		return nil
	default:
		return refuse(http.StatusNotImplemented, "Received 'UNKNOWN' call")
	}
}

// takeUpdate takes an executor's status update. One that was taken before, or that comes too late, is
// acknowledged and else ignored.
func (a *Agent) takeUpdate(c *change, e *executor, s *mesosv1.TaskStatus) error {
	id := TaskID(s.GetTaskId().GetValue())
	uuid := s.GetUuid()
	if len(uuid) == 0 {
		a.counters.invalidUpdates++
		return refuse(http.StatusBadRequest, "Expecting 'uuid' to be present")
	}
	if s.GetState() == mesosv1.TaskState_TASK_STAGING || s.State == nil {
		a.counters.invalidUpdates++
		return refuse(http.StatusBadRequest, "An executor cannot report %s", mesosv1.TaskState_TASK_STAGING)
	}
	t := e.tasks[id]
	switch {
	case t == nil:
		a.counters.invalidUpdates++
		a.log.Warn("executor reports on a task that it does not have", "framework", e.framework.id, "executor", e.id, "task", id)
	case t.seen(uuid) || terminal(t.state):
	case t.pending() >= maxPendingUpdates:
		return refuse(http.StatusServiceUnavailable, "task %s has %d updates that the scheduler has not acknowledged", id, maxPendingUpdates)
	default:
		a.counters.validUpdates++
		e.reported = true
		t.delivered = true
		s.Source = mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum()
		s.ExecutorId = nil // its own, whatever it says
		a.update(c, t, s)
		if terminal(t.state) {
			c.then(func() { a.deliver(e) })
		}
	}
	c.then(func() {
		if e.stream != nil {
			e.stream.Send(&executorv1.Event{
				Type: executorv1.Event_ACKNOWLEDGED.Enum(),
				Acknowledged: &executorv1.Event_Acknowledged{
					TaskId: &mesosv1.TaskID{Value: new(string(id))},
					Uuid:   uuid,
				},
			})
		}
	})
	return nil
}

// messageToExecutor hands over a scheduler's message, or drops it: neither side is promised delivery.
func (a *Agent) messageToExecutor(m *clusterv1.FrameworkMessage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f := a.frameworks[FrameworkID(m.GetFrameworkId())]; f != nil {
		if e := f.executors[ExecutorID(m.GetExecutorId())]; e != nil && e.stream != nil && e.phase == phaseRunning {
			a.counters.frameworkMessages++
			e.stream.Send(&executorv1.Event{
				Type:    executorv1.Event_MESSAGE.Enum(),
				Message: &executorv1.Event_Message{Data: m.GetData()},
			})
			return
		}
	}
	a.counters.droppedMessages++
}

func (e *executor) sendKill(t *task, policy *mesosv1.KillPolicy) {
	if e.stream != nil {
		e.stream.Send(&executorv1.Event{
			Type: executorv1.Event_KILL.Enum(),
			Kill: &executorv1.Event_Kill{TaskId: t.info.GetTaskId(), KillPolicy: policy},
		})
	}
}

// killCustom has an executor kill a task. One that it does not have yet is killed here.
func (a *Agent) killCustom(c *change, t *task, policy *mesosv1.KillPolicy) {
	e := t.executor
	t.draining = t.draining || a.drain != nil
	if t.delivered {
		if t.kill.IsZero() {
			t.kill = time.Now()
			c.progress(t)
		}
		if most := a.drain.GetMaxGracePeriod(); most != nil {
			grace := a.graceOf(t, policy)
			policy = &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: new(int64(grace))}}
		}
		c.then(func() { e.sendKill(t, policy) })
		return
	}
	for _, x := range t.members() { // a group is handed over as a whole, or not at all
		x.draining = t.draining
		a.update(c, x, &mesosv1.TaskStatus{
			State:   mesosv1.TaskState_TASK_KILLED.Enum(),
			Reason:  mesosv1.TaskStatus_REASON_TASK_KILLED_DURING_LAUNCH.Enum(),
			Message: new("the task was killed before its executor had it"),
			Source:  mesosv1.TaskStatus_SOURCE_AGENT.Enum(),
		})
	}
	if e.phase < phaseRunning && !e.busy() {
		a.stopExecutor(c, e)
	}
}

// stopExecutor ends an executor by the means that its phase allows.
func (a *Agent) stopExecutor(c *change, e *executor) {
	e.shutdown = true
	if e.ofGroups() {
		a.shutDownGroups(c, e)
		return
	}
	switch e.phase {
	case phaseAccepted, phaseQueued:
		a.ended(c, e, nil, errKilledBeforeLaunch)
	case phaseLaunching:
		a.checkpoint(c, e)
		c.then(func() { e.cancelLaunch() })
	case phaseRegistering, phaseRunning:
		a.checkpoint(c, e)
		c.then(func() { a.shutDownExecutor(e) })
	}
}

// shutDownExecutor asks an executor to end, and destroys it when it does not in time. The caller holds the lock.
func (a *Agent) shutDownExecutor(e *executor) {
	if e.phase >= phaseTerminating {
		return
	}
	e.phase = phaseTerminating
	a.timers.stop(e.timer)
	if e.stream == nil || !e.stream.Send(&executorv1.Event{Type: executorv1.Event_SHUTDOWN.Enum()}) {
		a.destroy(e, nil)
		return
	}
	e.timer = a.timers.after(a.shutdownGrace(e), func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.destroy(e, nil)
	})
}

func (a *Agent) shutdownExecutor(m *clusterv1.ShutdownExecutor) {
	a.decide(func(c *change) {
		f := a.frameworks[FrameworkID(m.GetFrameworkId())]
		if f == nil {
			return
		}
		if e := f.executors[ExecutorID(m.GetExecutorId())]; e != nil {
			a.stopExecutor(c, e)
		} else if t := f.tasks[TaskID(m.GetExecutorId())]; t != nil && t.command() && !terminal(t.state) {
			a.kill(c, t, nil)
		}
	})
}

// customEnded goes on after an executor's container ended, or could not be started.
func (a *Agent) customEnded(c *change, e *executor, end *containerTermination, err error) {
	a.timers.stop(e.timer)
	if e.stream != nil {
		e.stream.Close()
		e.stream = nil
	}
	for _, t := range e.tasks {
		switch {
		case e.framework.terminating:
			a.forgetTask(c, t)
		case !terminal(t.state):
			a.update(c, t, e.outcome(end, err))
		}
	}
	if e.launched {
		status := int32(-1)
		if end != nil && end.WaitStatus != nil {
			status = end.GetWaitStatus()
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

// outcome is the status of a task whose executor is no more.
func (e *executor) outcome(end *containerTermination, err error) *mesosv1.TaskStatus {
	s := &mesosv1.TaskStatus{Source: mesosv1.TaskStatus_SOURCE_AGENT.Enum()}
	if text, ok := describeExit(end); ok {
		s.Message = new("Executor " + text)
	}
	if decided(s, end) {
		return s
	}
	s.State = mesosv1.TaskState_TASK_FAILED.Enum()
	s.Reason = mesosv1.TaskStatus_REASON_EXECUTOR_TERMINATED.Enum()
	switch {
	case err != nil && !e.launched:
		s.Reason = mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED.Enum()
		s.Message = new(err.Error())
	case err != nil:
		s.Message = new(err.Error())
	case s.Message == nil:
		s.Message = new("Executor ended with an unknown status")
		if end.GetMessage() != "" {
			s.Message = new(end.GetMessage())
		}
	}
	return s
}

// recoverCustom goes on with a custom executor. It returns true when the executor shall subscribe again.
func (a *Agent) recoverCustom(c *change, e *executor, cp *containerv1.Checkpoint) bool {
	for _, t := range e.tasks {
		t.stored = true
		t.delivered = e.launched || cp != nil
		if t.state != mesosv1.TaskState_TASK_STAGING {
			e.reported = true
		}
	}
	switch {
	case cp == nil && e.launched:
		e.phase = phaseRunning
		a.ended(c, e, nil, errors.New("the container of the executor is gone"))
		return false
	case cp == nil && (e.shutdown || !e.busy()):
		a.ended(c, e, nil, errKilledBeforeLaunch)
		return false
	case cp == nil && !e.framework.info.GetCheckpoint():
		for _, t := range e.tasks {
			a.update(c, t, a.restarted(e.framework))
		}
		a.ended(c, e, nil, errNotCheckpointed)
		return false
	case cp == nil:
		e.generation++
		a.checkpoint(c, e)
		c.then(func() { a.enqueue(e) })
		return false
	}
	e.launched = true
	e.phase = phaseRegistering
	e.pid = cp.GetPid()
	c.then(func() { a.await(e) })
	switch {
	case cp.GetPhase() == containerv1.Checkpoint_ENDED:
		e.phase = phaseTerminating
		return false
	case !e.framework.info.GetCheckpoint():
		e.phase = phaseTerminating
		a.abandon(c, e)
		return false
	case e.shutdown:
		c.then(func() { a.shutDownExecutor(e) })
		return false
	}
	a.expectSubscription(e, a.cfg.ExecutorReregistrationTimeout, mesosv1.TaskStatus_REASON_EXECUTOR_REREGISTRATION_TIMEOUT)
	return true
}
