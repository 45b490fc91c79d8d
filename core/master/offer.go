package master

import (
	"cmp"
	"slices"
	"time"

	"github.com/mosaic-cluster/mosaic/core/allocator"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// offer is resources of one agent that one framework may use in one role, until it answers or the
// offer is rescinded.
type offer struct {
	id        string
	framework *framework
	agent     *agent
	role      string
	resources resources.Set  // with allocation info
	proto     *mesosv1.Offer // as the framework got it
	expiry    *timer         // nil when offers do not expire
	slot      int            // in the view
}

// allocateBy has the next allocation no later than t, but not in the pause after the last one.
func (s *state) allocateBy(t time.Time) {
	if t.Before(s.notBefore) {
		t = s.notBefore
	}
	if t.Before(s.allocateAt) {
		s.allocateAt = t
	}
}

// allocateIfDue makes offers when it is time: an event asked for it, or the interval has passed.
//
// Where one allocation takes long, the next waits twice that time, so that the loop does other things
// most of the time however large the cluster is.
func (s *state) allocateIfDue(now time.Time) {
	if now.Before(s.allocateAt) {
		return
	}
	due := s.allocateAt
	s.notBefore, s.allocateAt = time.Time{}, now.Add(s.cfg.AllocationInterval)
	if s.waitsForAgents(now) {
		return
	}
	s.metrics.allocationLatency.add(now.Sub(due))
	s.makeOffers(s.allocator.Allocate(now), now)
	s.makeInverseOffers(now)
	s.countFilters(now)
	ended := s.cfg.Now()
	cost := ended.Sub(now)
	s.notBefore = ended.Add(2 * cost)
	if t := s.allocator.NextExpiry(); !t.IsZero() {
		s.allocateBy(t)
	}
	s.metrics.allocations.Add(1)
	s.metrics.allocationTime.add(cost)
}

// countFilters notes how many refusals hold, no more than once in an allocation interval: there may be many roles.
func (s *state) countFilters(now time.Time) {
	if now.Before(s.countAt) {
		return
	}
	s.countAt = now.Add(s.cfg.AllocationInterval)
	counts := s.allocator.OfferFilters()
	s.metrics.offerFilters.Store(&counts)
}

// makeOffers sends what the allocator proposes, one event per framework.
func (s *state) makeOffers(proposed []allocator.Offer, now time.Time) {
	byFramework := make(map[string][]*mesosv1.Offer)
	var order []*framework
	for _, p := range proposed {
		f, a := s.frameworks[p.FrameworkID], s.agents[p.AgentID]
		if f == nil || a == nil || f.stream == nil || a.conn == nil {
			s.allocator.RecoverResources(p.FrameworkID, p.AgentID, p.Resources, nil, now)
			continue
		}
		o := s.addOffer(f, a, p.Role, p.Resources, now)
		if byFramework[f.id] == nil {
			order = append(order, f)
		}
		byFramework[f.id] = append(byFramework[f.id], o.proto)
	}
	for _, f := range order {
		offers := byFramework[f.id]
		s.metrics.offersSent.Add(uint64(len(offers)))
		f.metrics.offersSent.Add(uint64(len(offers)))
		s.send(f, &schedulerv1.Event{
			Type:   schedulerv1.Event_OFFERS.Enum(),
			Offers: &schedulerv1.Event_Offers{Offers: offers},
		})
	}
}

func (s *state) addOffer(f *framework, a *agent, role string, set resources.Set, now time.Time) *offer {
	o := &offer{id: s.newOfferID(), framework: f, agent: a, role: role, resources: set}
	o.proto = offerMessage(o)
	s.offers[o.id] = o
	f.offers[o] = struct{}{}
	a.offers[o] = struct{}{}
	o.slot = s.views.offers.add(&offerEntry{proto: o.proto, set: set, role: role})
	if s.cfg.OfferTimeout > 0 {
		o.expiry = s.timers.set(now.Add(s.cfg.OfferTimeout), func(now time.Time) { s.expire(o, now) })
	}
	return o
}

// expire takes back an offer that its framework did not answer within the lease. The allocator sees to it that such a
// framework does not get in the way of the others.
func (s *state) expire(o *offer, now time.Time) {
	s.dropOffer(o)
	s.allocator.ExpireOffer(o.framework.id, o.agent.id, o.resources, now, s.cfg.OfferTimeout)
	s.tellRescinded(o)
	s.allocateBy(now)
}

// offerMessage is an offer in the form that the framework's capabilities ask for.
func offerMessage(o *offer) *mesosv1.Offer {
	f, a := o.framework, o.agent
	m := &mesosv1.Offer{
		Id:          &mesosv1.OfferID{Value: &o.id},
		FrameworkId: f.info.Id,
		AgentId:     a.info.Id,
		Hostname:    a.info.Hostname,
		Url:         agentURL(a),
		Domain:      a.info.Domain,
		Attributes:  a.info.Attributes,
	}
	if a.unavailable != nil {
		m.Unavailability = a.unavailable.proto
	}
	for key, e := range a.executors {
		if key.framework == f.id {
			m.ExecutorIds = append(m.ExecutorIds, e.info.ExecutorId)
		}
	}
	slices.SortFunc(m.ExecutorIds, func(a, b *mesosv1.ExecutorID) int { return cmp.Compare(a.GetValue(), b.GetValue()) })
	set := o.resources
	if f.can.multiRole {
		m.AllocationInfo = &mesosv1.Resource_AllocationInfo{Role: &o.role}
	} else {
		set = set.Unallocate()
	}
	m.Resources = set.Resources()
	if !f.can.refinement {
		// The allocator gives no refined reservation to a framework that cannot read it.
		if old, err := resources.ToPreRefinement(m.Resources); err == nil {
			m.Resources = old
		}
	}
	return m
}

// agentURL is where frameworks reach an agent.
func agentURL(a *agent) *mesosv1.URL {
	return &mesosv1.URL{
		Scheme: ptr("http"),
		Address: &mesosv1.Address{
			Hostname: a.info.Hostname,
			Ip:       a.ip(),
			Port:     ptr(a.info.GetPort()),
		},
		Path: ptr("/slave(1)"),
	}
}

// dropOffer forgets an offer; what becomes of its resources is the caller's.
func (s *state) dropOffer(o *offer) {
	s.timers.stop(o.expiry)
	delete(s.offers, o.id)
	delete(o.framework.offers, o)
	delete(o.agent.offers, o)
	s.views.offers.remove(o.slot)
}

// rescind takes an offer back and says so.
func (s *state) rescind(o *offer, filters *mesosv1.Filters, now time.Time) {
	s.dropOffer(o)
	s.allocator.RecoverResources(o.framework.id, o.agent.id, o.resources, filters, now)
	s.tellRescinded(o)
}

func (s *state) tellRescinded(o *offer) {
	s.metrics.offersRescinded.Add(1)
	o.framework.metrics.offersRescinded.Add(1)
	s.send(o.framework, &schedulerv1.Event{
		Type:    schedulerv1.Event_RESCIND.Enum(),
		Rescind: &schedulerv1.Event_Rescind{OfferId: o.proto.Id},
	})
}

// rescindAll takes back the offers of an agent.
func (s *state) rescindAll(a *agent, now time.Time) {
	for _, o := range sortedOffers(a.offers) {
		s.rescind(o, nil, now)
	}
}

// takeBackOffers takes back the offers of a framework that has no stream to be told on.
func (s *state) takeBackOffers(f *framework, now time.Time) {
	for _, o := range sortedOffers(f.offers) {
		s.dropOffer(o)
		s.allocator.RecoverResources(f.id, o.agent.id, o.resources, nil, now)
	}
}

// decline gives offers back with a filter. Offers that are not the framework's, or are gone, are
// ignored: the call may have crossed a RESCIND.
func (s *state) decline(f *framework, call *schedulerv1.Call_Decline, now time.Time) {
	s.allocator.Answered(f.id, now)
	for _, id := range call.GetOfferIds() {
		o := s.offers[id.GetValue()]
		if o == nil || o.framework != f {
			continue
		}
		s.dropOffer(o)
		s.allocator.RecoverResources(f.id, o.agent.id, o.resources, filtersOf(call.GetFilters()), now)
		s.metrics.offersDeclined.Add(1)
		f.metrics.offersDeclined.Add(1)
	}
	s.allocateBy(now) // others may want it; the filter holds it back from this framework
}

// filtersOf fills the default in: an answer without filters refuses for 5 s.
func filtersOf(f *mesosv1.Filters) *mesosv1.Filters {
	if f == nil {
		return &mesosv1.Filters{}
	}
	return f
}

func sortedOffers(set map[*offer]struct{}) []*offer {
	out := make([]*offer, 0, len(set))
	for o := range set {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b *offer) int { return compareIDs(a.id, b.id) })
	return out
}

// compareIDs orders ids by length first, which puts -O9 before -O10.
func compareIDs(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}

func sortedTasks(tasks map[string]*task) []*task {
	out := make([]*task, 0, len(tasks))
	for _, t := range tasks {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *task) int { return compareIDs(a.id(), b.id()) })
	return out
}
