package master

import (
	"context"
	"net/http"
	"time"

	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// What operators do to agents: deactivate and reactivate them, drain them, mark them gone. Each is in the registry
// before it has an effect, and holds for agents that are away, or that this master has yet to hear of, too.

// standing is where an agent that the registry knows stands. One field at most is set.
type standing struct {
	agent       *agent
	recovered   *recoveredAgent
	unreachable *registry.Departure
}

func (s *state) standing(id string) standing {
	if a := s.agents[id]; a != nil {
		return standing{agent: a}
	}
	if r := s.recovered[id]; r != nil {
		return standing{recovered: r}
	}
	if d, ok := s.unreachable[id]; ok {
		return standing{unreachable: &d}
	}
	return standing{}
}

func (x standing) known() bool { return x != standing{} }

// leaving says whether a change that ends the agent's registration is under way.
func (x standing) leaving() bool {
	return x.agent != nil && x.agent.leaving || x.recovered != nil && x.recovered.leaving
}

func (x standing) record() registry.Agent {
	switch {
	case x.agent != nil:
		return x.agent.record
	case x.recovered != nil:
		return x.recovered.record
	}
	return x.unreachable.Agent
}

// decidePersisted has decide say, in the loop, what the registry shall know and what follows, and returns when that
// has happened and is visible; or with decide's error.
func (m *Master) decidePersisted(ctx context.Context, decide func(now time.Time) ([]change, func(now time.Time), error)) error {
	written := make(chan struct{})
	var refused error
	err := m.do(ctx, func(now time.Time) {
		changes, then, err := decide(now)
		if err != nil {
			refused = err
			return
		}
		m.s.persist(changes, func(now time.Time) {
			then(now)
			close(written)
		})
	})
	if err == nil {
		err = refused
	}
	if err != nil {
		return err
	}
	select {
	case <-written:
		return m.do(ctx, func(time.Time) {}) // the round that closed written publishes after it
	case <-ctx.Done():
		return &Refusal{Status: http.StatusServiceUnavailable, Text: "The registry has not answered yet"}
	case <-m.stopped:
		return errStopped
	}
}

// changeRecord replaces what the registry has of an agent by what change makes of it.
func (m *Master) changeRecord(ctx context.Context, id string, change func(standing, registry.Agent) (registry.Agent, error)) error {
	s := m.s
	return m.decidePersisted(ctx, func(time.Time) ([]registry.Change, func(time.Time), error) {
		x := s.standing(id)
		if !x.known() {
			return nil, nil, badRequest("No agent found with specified ID")
		}
		if x.leaving() {
			return nil, nil, conflict("Agent %s is being removed", id)
		}
		record, err := change(x, x.record())
		if err != nil {
			return nil, nil, err
		}
		// What is written about the agent from here on must have it; effects wait for the registry.
		var changes []registry.Change
		switch {
		case x.agent != nil:
			x.agent.record = record
			changes = append(changes, registry.PutAgent(id, record))
		case x.recovered != nil:
			x.recovered.record = record
			changes = append(changes, registry.PutAgent(id, record))
		default:
			x.unreachable.Agent = record
			s.unreachable[id] = *x.unreachable
			changes = append(changes, registry.PutUnreachable(id, *x.unreachable))
		}
		return changes, func(now time.Time) {
			if a := s.agents[id]; a != nil {
				s.obeyRecord(a, now)
			}
		}, nil
	})
}

// obeyRecord has an agent be as its record says: offered or not, draining or not.
func (s *state) obeyRecord(a *agent, now time.Time) {
	if a.offerable() {
		s.allocator.ActivateAgent(a.id)
	} else {
		s.rescindAll(a, now)
		s.allocator.DeactivateAgent(a.id)
	}
	if d := a.record.Drain; d.GetState() == mesosv1.DrainState_DRAINING {
		if a.drainStarted.IsZero() {
			a.drainStarted = now
		}
		s.draining[a.id] = a
		s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_Drain{Drain: &clusterv1.Drain{Config: d.GetConfig()}}})
	} else {
		delete(s.draining, a.id)
		if d == nil {
			a.drainStarted = time.Time{}
		}
	}
	s.showAgent(a)
	s.allocateBy(now)
}

// finishDrains ends the drains of agents that have nothing left: no task, no operation that somebody waits for.
func (s *state) finishDrains(now time.Time) {
	if len(s.draining) == 0 {
		return
	}
	for _, id := range sortedKeys(s.draining) {
		a := s.draining[id]
		if s.agents[id] != a || a.leaving {
			delete(s.draining, id)
			continue
		}
		if len(a.tasks) > 0 || len(a.operations) > 0 {
			continue
		}
		delete(s.draining, a.id)
		config := a.record.Drain.GetConfig()
		s.log.Info("agent drained", "agent", a.id, "mark_gone", config.GetMarkGone())
		if config.GetMarkGone() {
			s.markGone(a, now, func() {})
			continue
		}
		a.record.Drain = &mesosv1.DrainInfo{State: mesosv1.DrainState_DRAINED.Enum(), Config: config}
		s.persist([]change{registry.PutAgent(a.id, a.record)}, func(now time.Time) {
			if s.agents[a.id] == a {
				s.showAgent(a)
			}
		})
	}
}

func (m *Master) deactivateAgent(ctx context.Context, principal, id string) error {
	if err := m.approve(ctx, principal, "DEACTIVATE_AGENT"); err != nil {
		return forbidden("%v", err)
	}
	return m.changeRecord(ctx, id, func(_ standing, r registry.Agent) (registry.Agent, error) {
		r.Deactivated = true
		return r, nil
	})
}

func (m *Master) reactivateAgent(ctx context.Context, principal, id string) error {
	if err := m.approve(ctx, principal, "REACTIVATE_AGENT"); err != nil {
		return forbidden("%v", err)
	}
	return m.changeRecord(ctx, id, func(_ standing, r registry.Agent) (registry.Agent, error) {
		switch {
		case r.Drain != nil && r.Drain.GetState() == mesosv1.DrainState_DRAINING:
			return r, badRequest("Agent %s is still in the DRAINING state", id)
		case !r.Deactivated && r.Drain == nil:
			return r, badRequest("Agent %s is not deactivated", id)
		}
		r.Deactivated, r.Drain = false, nil
		return r, nil
	})
}

// drainAgent has an agent end all its tasks and take no more, whether it is there now or comes back later.
func (m *Master) drainAgent(ctx context.Context, principal string, call *masterv1.Call_DrainAgent) error {
	if err := m.approve(ctx, principal, "DRAIN_AGENT"); err != nil {
		return forbidden("%v", err)
	}
	config := &mesosv1.DrainConfig{}
	if call.GetMarkGone() {
		if err := m.approve(ctx, principal, "MARK_AGENT_GONE"); err != nil {
			return forbidden("%v", err)
		}
		config.MarkGone = ptr(true)
	}
	if d := call.GetMaxGracePeriod(); d != nil {
		if err := d.CheckValid(); err != nil || d.AsDuration() < 0 {
			return badRequest("Invalid 'max_grace_period': want a duration that is not negative")
		}
		config.MaxGracePeriod = &mesosv1.DurationInfo{Nanoseconds: ptr(d.AsDuration().Nanoseconds())}
	}
	s := m.s
	id := call.GetAgentId().GetValue()
	return m.changeRecord(ctx, id, func(x standing, r registry.Agent) (registry.Agent, error) {
		if x.agent != nil && !x.agent.can(mesosv1.AgentInfo_Capability_AGENT_DRAINING) {
			return r, badRequest("Agent %s is not capable of being drained", id)
		}
		if x.agent != nil && s.machineOf(x.agent.info, x.agent.peer) != nil || x.agent == nil && s.machineOf(r.Info, "") != nil {
			return r, badRequest("Agent %s is currently in a maintenance window", id)
		}
		r.Deactivated = true
		r.Drain = &mesosv1.DrainInfo{State: mesosv1.DrainState_DRAINING.Enum(), Config: config}
		return r, nil
	})
}

// markAgentGone ends an agent for ever, wherever it stands.
//
// Errors: 404 for an agent that nobody knows, 503 while it is being removed for another reason.
func (m *Master) markAgentGone(ctx context.Context, principal, id string) error {
	if err := m.approve(ctx, principal, "MARK_AGENT_GONE"); err != nil {
		return forbidden("%v", err)
	}
	s := m.s
	return m.decidePersisted(ctx, func(now time.Time) ([]change, func(time.Time), error) {
		if _, ok := s.gone[id]; ok {
			return nil, func(time.Time) {}, nil
		}
		x := s.standing(id)
		switch {
		case !x.known():
			return nil, nil, &Refusal{http.StatusNotFound, "No agent found with specified ID"}
		case x.leaving():
			return nil, nil, &Refusal{http.StatusServiceUnavailable, "Agent " + id + " is in the process of another transition"}
		}
		departure := registry.Departure{Since: now, Agent: x.record()}
		switch {
		case x.agent != nil:
			changes, then := s.departForGood(x.agent, now)
			return changes, then, nil
		case x.recovered != nil:
			x.recovered.leaving = true
			return []change{registry.PutGone(id, departure), registry.RemoveAgent(id)}, func(now time.Time) {
				s.forgetRecovered(id)
				s.gone[id] = departure.Since
				s.emitAgentRemoved(&mesosv1.AgentID{Value: &id})
			}, nil
		}
		return []change{registry.PutGone(id, departure), registry.RemoveUnreachable(id)}, func(now time.Time) {
			s.forgetUnreachable(id)
			s.gone[id] = departure.Since
			if a := s.agents[id]; a != nil { // it came back meanwhile
				s.removeAgent(a, s.goneRemoval(a), now)
			}
			s.unreachableTasksGone(id, now)
		}, nil
	})
}

func (s *state) goneRemoval(a *agent) removal {
	return removal{
		state:   mesosv1.TaskState_TASK_GONE_BY_OPERATOR,
		reason:  mesosv1.TaskStatus_REASON_AGENT_REMOVED_BY_OPERATOR,
		message: "Agent " + a.info.GetHostname() + " was marked gone by an operator",
	}
}

// departForGood is what the registry must know before a registered agent is gone, and how it goes then.
func (s *state) departForGood(a *agent, now time.Time) ([]change, func(time.Time)) {
	a.leaving = true
	s.rescindAll(a, now)
	s.rescindInverses(a)
	s.allocator.DeactivateAgent(a.id)
	return []change{registry.PutGone(a.id, registry.Departure{Since: now, Agent: a.record}), registry.RemoveAgent(a.id)},
		func(then time.Time) {
			s.gone[a.id] = now
			r := s.goneRemoval(a)
			s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_Shutdown{Shutdown: &clusterv1.Shutdown{Message: r.message}}})
			s.removeAgent(a, r, then)
		}
}

// markGone has a registered agent be gone, and runs then when it is.
func (s *state) markGone(a *agent, now time.Time, then func()) {
	changes, effect := s.departForGood(a, now)
	s.persist(changes, func(now time.Time) {
		effect(now)
		then()
	})
}

// unreachableTasksGone ends the tasks that were unreachable with an agent that is gone now.
func (s *state) unreachableTasksGone(id string, now time.Time) {
	for _, f := range s.sortedFrameworks() {
		for _, t := range append([]*task(nil), f.unreachableTasks.tasks...) {
			if t == nil || t.proto.GetAgentId().GetValue() != id {
				continue
			}
			state := f.lost(mesosv1.TaskState_TASK_GONE_BY_OPERATOR)
			status := s.masterStatus(t.proto, state, mesosv1.TaskStatus_REASON_AGENT_REMOVED_BY_OPERATOR,
				"Agent was marked gone by an operator", now)
			f.unreachableTasks.take(s, t.id())
			ended := &task{proto: withStatus(t.proto, state, status), framework: f, released: true}
			ended.slot = s.views.tasks.add(&taskEntry{proto: ended.proto, kind: taskCompleted})
			s.countUpdate(f, status)
			s.sendUpdate(f, status)
			s.emitTaskUpdated(ended, status)
			f.completedTasks.add(s, ended, taskCompleted, s.cfg.MaxCompletedTasksPerFramework)
		}
	}
}
