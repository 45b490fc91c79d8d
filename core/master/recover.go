package master

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// maxBatch bounds the changes of one transaction: etcd takes 128 operations unless told otherwise, and
// some are the registry's own.
const maxBatch = 120

// change is one thing that the registry must know before it takes effect.
type change = registry.Change

// step is changes that are made together, and what follows from them.
type step struct {
	changes []change
	then    func(now time.Time)
}

// agentAdmitted has the registry know an agent as one that may register.
func agentAdmitted(a registry.Agent) []change {
	id := a.Info.GetId().GetValue()
	return []change{registry.PutAgent(id, a), registry.RemoveUnreachable(id)}
}

// agentUnreachable has the registry know that an agent was given up for now.
func agentUnreachable(a registry.Agent, since time.Time) []change {
	id := a.Info.GetId().GetValue()
	return []change{registry.PutUnreachable(id, registry.Departure{Since: since, Agent: a}), registry.RemoveAgent(id)}
}

// weightsSet has the registry know weights of roles.
func weightsSet(weights map[string]float64) []change {
	var out []change
	for _, role := range sortedKeys(weights) {
		out = append(out, registry.PutWeight(role, weights[role]))
	}
	return out
}

// loadRegistry reads what former masters left.
func (m *Master) loadRegistry(ctx context.Context) (*registry.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.RegistryTimeout)
	defer cancel()
	started := time.Now()
	snapshot, err := m.deps.Registry.Load(ctx)
	m.metrics.loadTime.add(time.Since(started))
	if err != nil {
		return nil, fmt.Errorf("load the registry: %w", err)
	}
	m.metrics.registrySize.Store(m.deps.Registry.Size())
	return snapshot, nil
}

// runRegistrar writes batches of steps, one batch at a time, and has the loop go on after each. A batch
// that cannot be written ends the master: what it decided may or may not be known to the next one.
func (m *Master) runRegistrar(ctx context.Context, batches <-chan []step, fail context.CancelCauseFunc) {
	for steps := range batches {
		if ctx.Err() != nil {
			continue // the loop has ended; drain
		}
		var changes []change
		for _, x := range steps {
			changes = append(changes, x.changes...)
		}
		started := time.Now()
		bounded, cancel := context.WithTimeout(ctx, m.cfg.RegistryTimeout)
		err := m.deps.Registry.Apply(bounded, changes)
		cancel()
		if errors.Is(err, registry.ErrNotLeader) {
			fail(ErrLeadershipLost)
			continue
		}
		if err != nil {
			fail(fmt.Errorf("write %d changes to the registry: %w", len(changes), err))
			continue
		}
		m.metrics.storeTime.add(time.Since(started))
		m.metrics.registrySize.Store(m.deps.Registry.Size())
		m.post(ctx, func(now time.Time) {
			m.s.registrarBusy = false
			for _, x := range steps {
				x.then(now)
			}
		})
	}
}

// persist has the registry know of changes, all or none, and then runs what follows from them.
func (s *state) persist(changes []change, then func(now time.Time)) {
	s.pending = append(s.pending, step{changes, then})
}

// flushRegistry hands what has gathered to the registrar, if that is not writing.
func (s *state) flushRegistry() {
	if s.registrarBusy || len(s.pending) == 0 {
		return
	}
	n, size := 1, len(s.pending[0].changes)
	for n < len(s.pending) && size+len(s.pending[n].changes) <= maxBatch {
		size += len(s.pending[n].changes)
		n++
	}
	s.registrarBusy = true
	s.batches <- s.pending[:n:n] // has room: one batch is under way at most
	s.pending = s.pending[n:]
}

// doPersisted has the registry know of changes, then runs then in the loop, and returns when its
// effects are visible.
func (m *Master) doPersisted(ctx context.Context, changes []change, then func(now time.Time)) error {
	written := make(chan struct{})
	err := m.do(ctx, func(time.Time) {
		m.s.persist(changes, func(now time.Time) {
			then(now)
			close(written)
		})
	})
	if err != nil {
		return err
	}
	select {
	case <-written:
		// The round that closed written publishes after it; another one makes sure of that.
		return m.do(ctx, func(time.Time) {})
	case <-ctx.Done():
		return fmt.Errorf("wait for the registry: %w", ctx.Err())
	case <-m.stopped:
		return errStopped
	}
}

// recover takes over what former masters left: agents that were admitted are expected back, and given
// up when they do not come in time.
func (s *state) recover(now time.Time, snapshot *registry.Snapshot) {
	for id, a := range snapshot.Agents {
		s.recovered[id] = &recoveredAgent{record: a, slot: s.views.recovered.add(a.Info)}
	}
	for id, d := range snapshot.Unreachable {
		s.addUnreachable(id, d)
	}
	for id, d := range snapshot.Gone {
		s.gone[id] = d.Since
	}
	quotas := make(map[string]*quotav1.QuotaConfig, len(snapshot.Quotas))
	for _, role := range sortedKeys(snapshot.Quotas) {
		q := snapshot.Quotas[role]
		quotas[role] = q
		s.allocator.SetQuota(role, resources.QuantitiesOf(q.GetGuarantees()), resources.QuantitiesOf(q.GetLimits()))
	}
	weights := make(map[string]float64, len(snapshot.Weights))
	for role, w := range snapshot.Weights { // the order does not matter
		weights[role] = w
		s.allocator.SetWeight(role, w)
	}
	s.maintenance = newMaintenance(snapshot.Schedule, snapshot.Machines)
	s.decided, s.views.schedule = s.maintenance, s.maintenance.schedule
	s.weights, s.views.weights = weights, weights
	s.quotas, s.views.quotas = quotas, quotas
	if s.expected = len(s.recovered); s.expected > 0 && len(quotas) > 0 {
		s.pausedUntil = now.Add(quotaPause)
		s.allocator.Pause(s.pausedUntil)
	}
	s.views.elected, s.views.changed = now, true
	s.allocateAt = now
	s.persist([]change{registry.PutMaster(s.info)}, func(time.Time) {})
	s.timers.set(now.Add(s.cfg.RegistryGCInterval), s.prune)
	if len(s.recovered) > 0 {
		s.timers.set(now.Add(s.cfg.AgentReregisterTimeout), s.giveUpRecovered)
	}
}

// forgetRecovered notes that an agent is no longer expected back, if it was.
func (s *state) forgetRecovered(id string) {
	if r := s.recovered[id]; r != nil {
		s.views.recovered.remove(r.slot)
		delete(s.recovered, id)
	}
}

// addUnreachable and forgetUnreachable keep the number in the view right.
func (s *state) addUnreachable(id string, d registry.Departure) {
	s.unreachable[id] = d
	s.views.away, s.views.changed = len(s.unreachable), true
}

func (s *state) forgetUnreachable(id string) {
	delete(s.unreachable, id)
	s.views.away, s.views.changed = len(s.unreachable), true
}

// giveUpRecovered makes agents unreachable that did not return to this master. Their tasks are not known
// here; frameworks learn about them by reconciliation.
func (s *state) giveUpRecovered(now time.Time) {
	if part := float64(len(s.recovered)) / float64(max(1, s.expected)); part > s.cfg.RecoveryRemovalLimit {
		s.fail(fmt.Errorf("%d of %d agents did not return within %v, more than the limit of %.0f %%: is the network in order?",
			len(s.recovered), s.expected, s.cfg.AgentReregisterTimeout, 100*s.cfg.RecoveryRemovalLimit))
		return
	}
	for _, id := range sortedKeys(s.recovered) {
		r := s.recovered[id]
		s.timers.set(s.removalTurn(now), func(now time.Time) {
			if s.recovered[id] == r && !r.leaving {
				s.giveUpOneRecovered(id, r, now)
			}
		})
	}
}

func (s *state) giveUpOneRecovered(id string, r *recoveredAgent, now time.Time) {
	r.leaving = true
	s.persist(agentUnreachable(r.record, now), func(now time.Time) {
		if s.recovered[id] != r {
			return
		}
		s.forgetRecovered(id)
		s.addUnreachable(id, registry.Departure{Since: now, Agent: r.record})
		s.metrics.recoveryRemovals.Add(1)
		s.emitAgentRemoved(&mesosv1.AgentID{Value: &id})
		s.log.Warn("agent did not return", "agent", id, "timeout", s.cfg.AgentReregisterTimeout)
	})
}

// prune forgets agents that have been unreachable or gone for too long, or are too many: the oldest first. What is
// forgotten may come back, but reconciliation no longer says of its tasks what became of the agent.
func (s *state) prune(now time.Time) {
	s.timers.set(now.Add(s.cfg.RegistryGCInterval), s.prune)
	since := make(map[string]time.Time, len(s.unreachable))
	for id, d := range s.unreachable {
		since[id] = d.Since
	}
	for _, id := range s.outdated(since, now) {
		s.persist([]change{registry.RemoveUnreachable(id)}, func(time.Time) {
			if s.unreachable[id].Since.Equal(since[id]) {
				s.forgetUnreachable(id)
			}
		})
	}
	for _, id := range s.outdated(s.gone, now) {
		s.persist([]change{registry.RemoveGone(id)}, func(time.Time) { delete(s.gone, id) })
	}
}

// outdated returns those of the agents that departed at some time that are to be forgotten.
func (s *state) outdated(since map[string]time.Time, now time.Time) []string {
	ids := sortedKeys(since)
	slices.SortStableFunc(ids, func(a, b string) int { return since[a].Compare(since[b]) })
	for i, id := range ids {
		if len(ids)-i <= s.cfg.RegistryMaxAgents && now.Sub(since[id]) <= s.cfg.RegistryMaxAge {
			return ids[:i]
		}
	}
	return ids
}
