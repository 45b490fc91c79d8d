package master

import (
	"time"

	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// How agents are given up: asked for signs of life, declared unreachable in turn, removed with what they ran.

// loseUncheckpointed ends what frameworks that do not checkpoint have on an agent that is away: it may have been
// restarted, and such tasks do not survive that. If it was not, it is told to kill them when it returns.
func (s *state) loseUncheckpointed(a *agent, now time.Time) {
	if a.leaving {
		return
	}
	for _, t := range sortedAgentTasks(a) {
		if t.framework.info.GetCheckpoint() || terminal(t.state()) {
			continue
		}
		s.loseTask(t, mesosv1.TaskState_TASK_GONE, mesosv1.TaskStatus_REASON_AGENT_DISCONNECTED,
			"Agent "+a.info.GetHostname()+" disconnected", now)
	}
	for _, e := range executorsOf(a) {
		if !e.framework.info.GetCheckpoint() {
			s.removeExecutor(e, now)
		}
	}
}

// pingAgent asks the agent for a sign of life at every interval, also while it has no stream, and gives
// it up after too many without one.
func (s *state) pingAgent(a *agent, now time.Time) {
	if a.awaiting {
		if a.missed++; a.missed >= s.cfg.MaxPingTimeouts && !a.leaving {
			s.log.Warn("agent does not answer pings", "agent", a.id, "missed", a.missed)
			s.giveUp(a, now)
		}
	}
	a.awaiting = true
	s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_Ping{Ping: &clusterv1.Ping{}}})
	a.ping = s.timers.set(now.Add(s.cfg.PingInterval), func(now time.Time) { s.pingAgent(a, now) })
}

// removal is what becomes of the tasks of an agent that is given up.
type removal struct {
	state       mesosv1.TaskState
	reason      mesosv1.TaskStatus_Reason
	message     string
	unreachable time.Time // set if it may return
	metric      counter   // nil if there is none for it
}

// operations is what becomes of operations.
func (r *removal) operations() mesosv1.OperationState {
	switch {
	case !r.unreachable.IsZero():
		return mesosv1.OperationState_OPERATION_UNREACHABLE
	case r.state == mesosv1.TaskState_TASK_GONE_BY_OPERATOR:
		return mesosv1.OperationState_OPERATION_GONE_BY_OPERATOR
	}
	return mesosv1.OperationState_OPERATION_DROPPED
}

// giveUp has an agent be unreachable when it is its turn.
func (s *state) giveUp(a *agent, now time.Time) {
	if a.removal != nil {
		return
	}
	s.metrics.unreachableScheduled.Add(1)
	a.removal = s.timers.set(s.removalTurn(now), func(now time.Time) {
		a.removal = nil
		if !a.leaving {
			s.metrics.unreachableCompleted.Add(1)
			s.markUnreachable(a, now)
		}
	})
}

// answered notes a sign of life of an agent, which is not given up then.
func (s *state) answered(a *agent) {
	a.missed, a.awaiting = 0, false
	if a.removal != nil {
		s.timers.stop(a.removal)
		a.removal = nil
		s.metrics.unreachableCanceled.Add(1)
	}
}

// removalTurn is when the next agent may be given up.
func (s *state) removalTurn(now time.Time) time.Time {
	if s.cfg.RemovalInterval <= 0 {
		return now
	}
	at := s.nextRemoval
	if at.Before(now) {
		at = now
	}
	s.nextRemoval = at.Add(s.cfg.RemovalInterval)
	return at
}

// markUnreachable gives up an agent that may return.
func (s *state) markUnreachable(a *agent, now time.Time) {
	s.dismiss(a, agentUnreachable(a.record, now), removal{
		state:       mesosv1.TaskState_TASK_UNREACHABLE,
		reason:      mesosv1.TaskStatus_REASON_AGENT_REMOVED,
		message:     "Agent " + a.info.GetHostname() + " is unreachable",
		unreachable: now,
		metric:      &s.metrics.removedUnhealthy,
	})
}

// dismiss ends an agent's registration once the registry has it.
func (s *state) dismiss(a *agent, changes []change, r removal) {
	a.leaving = true
	s.rescindAll(a, s.cfg.Now())
	s.rescindInverses(a)
	s.allocator.DeactivateAgent(a.id)
	s.persist(changes, func(now time.Time) { s.removeAgent(a, r, now) })
}

// removeAgent forgets an agent and says what became of its tasks.
func (s *state) removeAgent(a *agent, r removal, now time.Time) {
	if a.conn != nil {
		a.conn.agent = nil
		a.conn.out.close()
		a.conn = nil
	}
	s.timers.stop(a.ping)
	s.timers.stop(a.removal)
	s.rescindAll(a, now)
	s.rescindInverses(a)
	delete(s.unavailable, a.id)
	for _, e := range executorsOf(a) {
		s.removeExecutor(e, now)
	}
	for _, t := range sortedAgentTasks(a) {
		if terminal(t.state()) {
			s.completeTask(t, now)
			continue
		}
		s.loseTaskUntil(t, r, now)
	}
	s.endOperations(a, r.operations(), r.message)
	s.allocator.RemoveAgent(a.id)
	delete(s.agents, a.id)
	if s.byAddress[addressOf(a.info)] == a {
		delete(s.byAddress, addressOf(a.info))
	}
	s.views.agents.remove(a.slot)
	if !r.unreachable.IsZero() {
		s.addUnreachable(a.id, registry.Departure{Since: r.unreachable, Agent: a.record})
	}
	if r.metric != nil {
		r.metric.Add(1)
	}
	s.metrics.removals.Add(1)
	s.emitAgentRemoved(a.info.Id)
	for _, f := range s.sortedFrameworks() {
		s.send(f, &schedulerv1.Event{
			Type:    schedulerv1.Event_FAILURE.Enum(),
			Failure: &schedulerv1.Event_Failure{AgentId: a.info.Id},
		})
	}
	s.log.Warn("agent removed", "agent", a.id, "reason", r.message)
}
