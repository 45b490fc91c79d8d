package master

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// executorFor returns the executor that a task names: the running one, which must be described alike,
// or a new one that nothing is accounted for yet.
func (s *state) executorFor(x *acceptance, info *mesosv1.ExecutorInfo) (*executor, error) {
	f, a := x.framework, x.agent
	if err := validateExecutor(info, f); err != nil {
		return nil, err
	}
	set, err := allocated(info.GetResources(), x.role)
	if err != nil {
		return nil, fmt.Errorf("Executor uses invalid resources: %w", err)
	}
	old := a.executors[executorKey{f.id, info.GetExecutorId().GetValue()}]
	info = info.CloneVT()
	info.FrameworkId = f.info.Id
	info.Resources = nil
	if old != nil {
		same := old.info.CloneVT()
		same.Resources = nil
		if !same.EqualVT(info) || !old.resources.Equal(set) {
			return nil, fmt.Errorf("ExecutorInfo is not compatible with existing ExecutorInfo with same ExecutorID '%s'", info.GetExecutorId().GetValue())
		}
		return old, nil
	}
	info.Resources = set.Resources()
	return &executor{info: info, framework: f, agent: a, resources: set}, nil
}

// addExecutor begins to know an executor whose resources the allocator counts already.
func (s *state) addExecutor(e *executor) {
	if e.known {
		return
	}
	e.known = true
	e.agent.executors[executorKey{e.framework.id, e.info.GetExecutorId().GetValue()}] = e
	e.framework.executors[e] = struct{}{}
	e.slot = s.views.executors.add(&executorEntry{
		info: e.info, agentID: e.agent.info.Id, frameworkID: e.framework.id, set: e.resources})
}

// removeExecutor forgets an executor and gives its resources back.
func (s *state) removeExecutor(e *executor, now time.Time) {
	if !e.known {
		return
	}
	e.known = false
	delete(e.agent.executors, executorKey{e.framework.id, e.info.GetExecutorId().GetValue()})
	delete(e.framework.executors, e)
	s.views.executors.remove(e.slot)
	if !e.resources.Empty() {
		s.allocator.RecoverResources(e.framework.id, e.agent.id, e.resources, nil, now)
		s.allocateBy(now.Add(freedDelay))
	}
}

// sortedExecutors returns executors in an order that is always the same.
func sortedExecutors(set map[*executor]struct{}) []*executor {
	out := make([]*executor, 0, len(set))
	for e := range set {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *executor) int {
		return cmp.Or(compareIDs(a.agent.id, b.agent.id), compareIDs(a.framework.id, b.framework.id),
			compareIDs(a.info.GetExecutorId().GetValue(), b.info.GetExecutorId().GetValue()))
	})
	return out
}

// executorsOf returns an agent's executors in an order that is always the same.
func executorsOf(a *agent) []*executor {
	set := make(map[*executor]struct{}, len(a.executors))
	for _, e := range a.executors {
		set[e] = struct{}{}
	}
	return sortedExecutors(set)
}

// executorExited takes the end of an executor from its agent. Its tasks' updates come by themselves.
func (s *state) executorExited(a *agent, x *clusterv1.ExecutorExited, now time.Time) {
	s.metrics.executorsExited.Add(1)
	e := a.executors[executorKey{x.GetFrameworkId(), x.GetExecutorId()}]
	if e == nil {
		return
	}
	s.removeExecutor(e, now)
	s.send(e.framework, &schedulerv1.Event{
		Type: schedulerv1.Event_FAILURE.Enum(),
		Failure: &schedulerv1.Event_Failure{
			AgentId:    a.info.Id,
			ExecutorId: e.info.ExecutorId,
			Status:     ptr(x.GetStatus()),
		},
	})
}

// shutdownExecutor passes a SHUTDOWN on.
func (s *state) shutdownExecutor(f *framework, call *schedulerv1.Call_Shutdown) {
	a := s.agents[call.GetAgentId().GetValue()]
	if a == nil {
		return
	}
	s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_ShutdownExecutor{ShutdownExecutor: &clusterv1.ShutdownExecutor{
		FrameworkId: f.id, ExecutorId: call.GetExecutorId().GetValue()}}})
}

// messageToExecutor passes a scheduler's message on; messages are best effort.
func (s *state) messageToExecutor(f *framework, call *schedulerv1.Call_Message) {
	a := s.agents[call.GetAgentId().GetValue()]
	if a == nil || a.conn == nil {
		s.metrics.invalidFrameworkMessages.Add(1)
		return
	}
	s.metrics.validFrameworkMessages.Add(1)
	s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_FrameworkMessage{FrameworkMessage: &clusterv1.FrameworkMessage{
		FrameworkId: f.id, ExecutorId: call.GetExecutorId().GetValue(), Data: call.GetData()}}})
}

// messageToFramework passes an executor's message on.
func (s *state) messageToFramework(a *agent, m *clusterv1.FrameworkMessage) {
	f := s.frameworks[m.GetFrameworkId()]
	if f == nil || f.stream == nil {
		s.metrics.invalidExecutorMessages.Add(1)
		return
	}
	s.metrics.validExecutorMessages.Add(1)
	s.send(f, &schedulerv1.Event{
		Type: schedulerv1.Event_MESSAGE.Enum(),
		Message: &schedulerv1.Event_Message{
			AgentId:    a.info.Id,
			ExecutorId: &mesosv1.ExecutorID{Value: ptr(m.GetExecutorId())},
			Data:       append([]byte{}, m.GetData()...),
		},
	})
}
