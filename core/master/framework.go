package master

import (
	"slices"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// SchedulerStream carries events to one framework; it is core/api's. Send queues and never blocks.
type SchedulerStream = interface {
	Send(*schedulerv1.Event) bool
	Close()
	Done() <-chan struct{}
}

// heartbeatSeconds is what frameworks and operators are told; the edge sends the heartbeats.
const heartbeatSeconds = 15.0

// framework is one that is connected, or expected back, or (in state.completed) removed.
type framework struct {
	id          string
	info        *mesosv1.FrameworkInfo // immutable, with id
	roles       []string
	suppressed  []string // replaced, never changed
	can         capabilities
	metrics     *frameworkMetrics
	constraints constraints

	stream   SchedulerStream // nil while disconnected
	streamID string
	// returned: it has subscribed at this master; false for one known from agents only.
	returned                               bool
	removal                                *timer // runs when it is not back in time
	registered, reregistered, unregistered time.Time

	tasks            map[string]*task // by id, until acknowledged to the end
	completedTasks   history
	unreachableTasks history
	executors        map[*executor]struct{}
	offers           map[*offer]struct{}
	inverses         map[*inverseOffer]struct{}
	slot             int // in the view
}

// capabilities are a framework's, as far as the master cares.
type capabilities struct {
	multiRole, refinement, partitionAware, shared bool
}

func capabilitiesOf(info *mesosv1.FrameworkInfo) capabilities {
	var c capabilities
	for _, x := range info.GetCapabilities() {
		switch x.GetType() {
		case mesosv1.FrameworkInfo_Capability_MULTI_ROLE:
			c.multiRole = true
		case mesosv1.FrameworkInfo_Capability_RESERVATION_REFINEMENT:
			c.refinement = true
		case mesosv1.FrameworkInfo_Capability_PARTITION_AWARE:
			c.partitionAware = true
		case mesosv1.FrameworkInfo_Capability_SHARED_RESOURCES:
			c.shared = true
		}
	}
	return c
}

// rolesOf returns the roles that a framework subscribes to.
func rolesOf(info *mesosv1.FrameworkInfo) []string {
	if capabilitiesOf(info).multiRole {
		return info.GetRoles()
	}
	return []string{info.GetRole()} // the proto's default is "*"
}

// lost is a state as a framework sees it: one that is not PARTITION_AWARE knows TASK_LOST only.
func (f *framework) lost(state mesosv1.TaskState) mesosv1.TaskState {
	if f.can.partitionAware {
		return state
	}
	switch state {
	case mesosv1.TaskState_TASK_DROPPED, mesosv1.TaskState_TASK_UNREACHABLE, mesosv1.TaskState_TASK_GONE,
		mesosv1.TaskState_TASK_GONE_BY_OPERATOR, mesosv1.TaskState_TASK_UNKNOWN:
		return mesosv1.TaskState_TASK_LOST
	}
	return state
}

// send gives an event to the framework. A stream that takes no more is noticed when it is done.
func (s *state) send(f *framework, e *schedulerv1.Event) {
	if f.stream != nil {
		f.metrics.events.add(int32(e.GetType()))
		f.stream.Send(e)
	}
}

// subscription is a SUBSCRIBE that was found well formed and approved.
type subscription struct {
	info        *mesosv1.FrameworkInfo
	suppressed  []string
	constraints constraints
	stream      SchedulerStream
	streamID    string
}

// refuseStream ends a stream that was accepted with the reason why it is of no use.
func refuseStream(stream SchedulerStream, reason string) {
	stream.Send(&schedulerv1.Event{
		Type:  schedulerv1.Event_ERROR.Enum(),
		Error: &schedulerv1.Event_Error{Message: &reason},
	})
	stream.Close()
}

// subscribe connects a framework: a new one, one that takes over from its own former connection, or
// one that a former master knew.
func (s *state) subscribe(sub subscription, now time.Time) {
	id := sub.info.GetId().GetValue()
	if s.completedIDs[id] {
		refuseStream(sub.stream, "Framework has been removed")
		return
	}
	f := s.frameworks[id]
	if f != nil && f.info.GetPrincipal() != sub.info.GetPrincipal() {
		refuseStream(sub.stream, "Changing framework's principal is not allowed")
		return
	}
	if id == "" {
		id = s.newFrameworkID()
	}
	info := sub.info.CloneVT()
	info.Id = &mesosv1.FrameworkID{Value: &id}

	if f == nil {
		f = s.addFramework(info, now)
		f.registered = now
		s.attach(f, sub, now)
		s.allocator.AddFramework(id, info, sub.suppressed, true)
		s.allocator.SetConstraints(id, sub.constraints.compiled)
		s.showFramework(f)
		s.emitFrameworkAdded(f)
	} else {
		s.metrics.resubscriptions.Add(1)
		if f.stream != nil {
			refuseStream(f.stream, "Framework failed over")
			f.stream = nil
		}
		s.takeBackOffers(f, now)
		s.takeBackInverses(f)
		s.timers.stop(f.removal)
		f.removal = nil
		if f.returned {
			f.reregistered = now
		} else if f.registered.IsZero() {
			f.registered = now
		}
		s.setFrameworkInfo(f, info)
		s.attach(f, sub, now)
		s.allocator.DeactivateFramework(id) // which drops its filters
		s.allocator.UpdateFramework(id, f.info, sub.suppressed)
		s.allocator.SetConstraints(id, sub.constraints.compiled)
		s.allocator.ActivateFramework(id)
		s.showFramework(f)
		s.emitFrameworkUpdated(f)
	}
	s.allocateBy(now)
	for _, t := range sortedTasks(f.tasks) {
		if t.unacknowledged != nil {
			s.sendUpdate(f, t.unacknowledged)
		}
	}
	s.sendUnacknowledged(f)
	s.log.Info("framework subscribed", "framework", id, "name", info.GetName())
}

// attach makes a stream the framework's and says SUBSCRIBED on it.
func (s *state) attach(f *framework, sub subscription, now time.Time) {
	f.stream, f.streamID, f.returned = sub.stream, sub.streamID, true
	f.constraints, f.suppressed = sub.constraints, sub.suppressed
	f.metrics.calls.add(int32(schedulerv1.Call_SUBSCRIBE))
	s.send(f, &schedulerv1.Event{
		Type: schedulerv1.Event_SUBSCRIBED.Enum(),
		Subscribed: &schedulerv1.Event_Subscribed{
			FrameworkId:              f.info.Id,
			HeartbeatIntervalSeconds: ptr(heartbeatSeconds),
			MasterInfo:               s.info,
		},
	})
	id, streamID := f.id, f.streamID
	s.m.watch(sub.stream.Done(), func(now time.Time) { s.disconnect(id, streamID, now) })
}

// addFramework begins to know a framework, which the caller tells the allocator about.
func (s *state) addFramework(info *mesosv1.FrameworkInfo, now time.Time) *framework {
	f := &framework{
		id:        info.GetId().GetValue(),
		info:      info,
		roles:     rolesOf(info),
		can:       capabilitiesOf(info),
		metrics:   newFrameworkMetrics(),
		tasks:     make(map[string]*task),
		executors: make(map[*executor]struct{}),
		offers:    make(map[*offer]struct{}),
		inverses:  make(map[*inverseOffer]struct{}),
	}
	s.frameworks[f.id] = f
	f.slot = s.views.frameworks.add(nil)
	return f
}

// recoverFramework begins to know a framework that an agent runs tasks of and that has not subscribed
// at this master yet.
func (s *state) recoverFramework(info *mesosv1.FrameworkInfo, now time.Time) *framework {
	info = info.CloneVT()
	f := s.addFramework(info, now)
	s.allocator.AddFramework(f.id, info, nil, false)
	s.showFramework(f)
	s.emitFrameworkAdded(f)
	// It may be as slow to come back as agents may, however short its own timeout: with a master
	// down nobody could have subscribed.
	s.expect(f, max(failoverTimeout(info), s.cfg.AgentReregisterTimeout), now)
	return f
}

// setFrameworkInfo takes over what may change of a FrameworkInfo and tells the agents.
func (s *state) setFrameworkInfo(f *framework, info *mesosv1.FrameworkInfo) {
	info.User, info.Checkpoint = f.info.User, f.info.Checkpoint
	f.info = info
	f.roles = rolesOf(info)
	f.can = capabilitiesOf(info)
	for _, a := range s.agentsOf(f) {
		s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_UpdateFramework{
			UpdateFramework: &clusterv1.UpdateFramework{Framework: info}}})
	}
}

// failoverTimeout is how long a framework may be away. Its validity was checked.
func failoverTimeout(info *mesosv1.FrameworkInfo) time.Duration {
	return time.Duration(info.GetFailoverTimeout() * float64(time.Second))
}

// expect removes the framework unless it is back in time.
func (s *state) expect(f *framework, timeout time.Duration, now time.Time) {
	f.removal = s.timers.set(now.Add(timeout), func(now time.Time) {
		s.log.Info("framework did not return in time", "framework", f.id, "timeout", timeout)
		s.removeFramework(f, now)
	})
}

// disconnect notes that a stream of a framework has ended.
func (s *state) disconnect(id, streamID string, now time.Time) {
	f := s.frameworks[id]
	if f == nil || f.streamID != streamID || f.stream == nil {
		return // an older stream
	}
	f.stream = nil
	s.metrics.disconnections.Add(1)
	s.allocator.DeactivateFramework(f.id)
	s.takeBackOffers(f, now)
	s.takeBackInverses(f)
	s.showFramework(f)
	s.emitFrameworkUpdated(f)
	s.log.Info("framework disconnected", "framework", f.id, "failover_timeout", failoverTimeout(f.info))
	s.expect(f, failoverTimeout(f.info), now)
	s.endLeftAlone(f, now)
}

// removeFramework ends a framework for good: its tasks are killed, its executors shut down.
func (s *state) removeFramework(f *framework, now time.Time) {
	for _, a := range s.agentsOf(f) {
		s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_ShutdownFramework{
			ShutdownFramework: &clusterv1.ShutdownFramework{FrameworkId: f.id}}})
	}
	if f.stream != nil {
		f.stream.Close()
		f.stream = nil
	}
	s.timers.stop(f.removal)
	s.takeBackOffers(f, now)
	s.takeBackInverses(f)
	s.forgetAnswers(f)
	for _, t := range sortedTasks(f.tasks) {
		if !terminal(t.state()) {
			status := s.masterStatus(t.proto, mesosv1.TaskState_TASK_KILLED,
				mesosv1.TaskStatus_REASON_FRAMEWORK_REMOVED, "Framework "+f.id+" was removed", now)
			s.setTask(t, withStatus(t.proto, mesosv1.TaskState_TASK_KILLED, status))
			s.countUpdate(f, status)
			s.emitTaskUpdated(t, status)
		}
		s.completeTask(t, now)
	}
	for _, e := range sortedExecutors(f.executors) {
		s.removeExecutor(e, now)
	}
	s.allocator.RemoveFramework(f.id)
	f.unregistered = now
	delete(s.frameworks, f.id)
	s.completed = append(s.completed, f)
	s.completedIDs[f.id] = true
	if len(s.completed) > s.cfg.MaxCompletedFrameworks {
		oldest := s.completed[0]
		s.completed = slices.Delete(s.completed, 0, 1)
		delete(s.completedIDs, oldest.id)
		oldest.completedTasks.clear(s)
		oldest.unreachableTasks.clear(s)
		s.views.frameworks.remove(oldest.slot)
	}
	if s.completedIDs[f.id] {
		s.showFramework(f)
	}
	s.emitFrameworkRemoved(f)
	s.allocateBy(now)
	s.log.Info("framework removed", "framework", f.id)
}

// agentsOf returns the agents that run something of a framework, by id.
func (s *state) agentsOf(f *framework) []*agent {
	set := make(map[*agent]bool)
	for _, t := range f.tasks {
		if t.agent != nil {
			set[t.agent] = true
		}
	}
	for e := range f.executors {
		set[e.agent] = true
	}
	out := make([]*agent, 0, len(set))
	for a := range set {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b *agent) int { return compareIDs(a.id, b.id) })
	return out
}
