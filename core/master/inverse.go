package master

import (
	"slices"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	allocatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/allocator"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// Inverse offers ask frameworks to leave an agent whose machine goes away. The answers are for the operator to see;
// whether the machine waits for anybody is the operator's business.

// unavailability is when an agent's machine goes away, and what frameworks say to it.
type unavailability struct {
	proto       *mesosv1.Unavailability // immutable
	outstanding map[*framework]*inverseOffer
	answers     map[*framework]*allocatorv1.InverseOfferStatus
	refused     map[*framework]time.Time // not asked again before
}

// inverseOffer is a question that a framework has not answered.
type inverseOffer struct {
	id        string
	framework *framework
	agent     *agent
	proto     *mesosv1.InverseOffer // immutable
	expiry    *timer                // nil when offers do not expire
	slot      int                   // in the view
}

// defaultRefusal is how long a framework that says nothing else is not asked again, and maxRefusal the longest it may
// say. Mesos's.
const (
	defaultRefusal = 5 * time.Second
	maxRefusal     = 365 * 24 * time.Hour
)

// statuses are the answers so far, by framework.
func (u *unavailability) statuses() []*allocatorv1.InverseOfferStatus {
	out := make([]*allocatorv1.InverseOfferStatus, 0, len(u.answers))
	for _, x := range u.answers {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b *allocatorv1.InverseOfferStatus) int {
		return compareIDs(a.GetFrameworkId().GetValue(), b.GetFrameworkId().GetValue())
	})
	return out
}

// setUnavailability notes when an agent's machine goes away, nil for never. What was offered without knowing it is taken
// back and offered anew.
func (s *state) setUnavailability(a *agent, u *mesosv1.Unavailability, now time.Time) {
	if a.unavailable == nil && u == nil || a.unavailable != nil && u != nil && a.unavailable.proto.EqualVT(u) {
		return
	}
	s.rescindAll(a, now)
	s.rescindInverses(a)
	if u == nil {
		a.unavailable = nil
		delete(s.unavailable, a.id)
		return
	}
	a.unavailable = &unavailability{
		proto:       u,
		outstanding: make(map[*framework]*inverseOffer),
		answers:     make(map[*framework]*allocatorv1.InverseOfferStatus),
		refused:     make(map[*framework]time.Time),
	}
	s.unavailable[a.id] = a
	s.nextInverse = time.Time{}
}

// makeInverseOffers asks, once in an allocation interval, every framework that has something on an agent whose machine goes away, or was offered
// something there, once until it has answered and its filter has ended.
func (s *state) makeInverseOffers(now time.Time) {
	if len(s.unavailable) == 0 || now.Before(s.nextInverse) {
		return
	}
	// However often offers are made: all of the cluster may be scheduled, and this looks at every task there.
	s.nextInverse = now.Add(s.cfg.AllocationInterval)
	made := make(map[*framework][]*mesosv1.InverseOffer)
	for _, id := range sortedKeys(s.unavailable) {
		a := s.unavailable[id]
		if a.conn == nil || a.leaving {
			continue
		}
		for _, f := range frameworksOn(a) {
			u := a.unavailable
			if f.stream == nil || u.outstanding[f] != nil || now.Before(u.refused[f]) {
				continue
			}
			delete(u.refused, f)
			made[f] = append(made[f], s.addInverse(f, a, now).proto)
		}
	}
	for _, f := range s.sortedFrameworks() {
		if len(made[f]) > 0 {
			s.send(f, &schedulerv1.Event{
				Type:          schedulerv1.Event_INVERSE_OFFERS.Enum(),
				InverseOffers: &schedulerv1.Event_InverseOffers{InverseOffers: made[f]},
			})
		}
	}
}

// frameworksOn returns the frameworks that have resources of an agent, by id.
func frameworksOn(a *agent) []*framework {
	set := make(map[*framework]bool)
	for t := range a.tasks {
		if !t.released {
			set[t.framework] = true
		}
	}
	for _, e := range a.executors {
		set[e.framework] = true
	}
	for o := range a.offers {
		set[o.framework] = true
	}
	out := make([]*framework, 0, len(set))
	for f := range set {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *framework) int { return compareIDs(a.id, b.id) })
	return out
}

func (s *state) addInverse(f *framework, a *agent, now time.Time) *inverseOffer {
	o := &inverseOffer{id: s.newOfferID(), framework: f, agent: a}
	o.proto = &mesosv1.InverseOffer{
		Id:             &mesosv1.OfferID{Value: &o.id},
		Url:            agentURL(a),
		FrameworkId:    f.info.Id,
		AgentId:        a.info.Id,
		Unavailability: a.unavailable.proto,
	}
	s.inverses[o.id] = o
	f.inverses[o] = struct{}{}
	a.unavailable.outstanding[f] = o
	o.slot = s.views.inverses.add(o.proto)
	if s.cfg.OfferTimeout > 0 {
		o.expiry = s.timers.set(now.Add(s.cfg.OfferTimeout), func(time.Time) { s.rescindInverse(o) })
	}
	return o
}

// dropInverse forgets an inverse offer.
func (s *state) dropInverse(o *inverseOffer) {
	s.timers.stop(o.expiry)
	delete(s.inverses, o.id)
	delete(o.framework.inverses, o)
	if u := o.agent.unavailable; u != nil && u.outstanding[o.framework] == o {
		delete(u.outstanding, o.framework)
	}
	s.views.inverses.remove(o.slot)
}

// rescindInverse takes an inverse offer back and says so.
func (s *state) rescindInverse(o *inverseOffer) {
	s.dropInverse(o)
	s.send(o.framework, &schedulerv1.Event{
		Type:                schedulerv1.Event_RESCIND_INVERSE_OFFER.Enum(),
		RescindInverseOffer: &schedulerv1.Event_RescindInverseOffer{InverseOfferId: o.proto.Id},
	})
}

// rescindInverses takes back the inverse offers of an agent.
func (s *state) rescindInverses(a *agent) {
	if a.unavailable == nil {
		return
	}
	for _, f := range frameworksIn(a.unavailable.outstanding) {
		s.rescindInverse(a.unavailable.outstanding[f])
	}
}

func frameworksIn(m map[*framework]*inverseOffer) []*framework {
	out := make([]*framework, 0, len(m))
	for f := range m {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *framework) int { return compareIDs(a.id, b.id) })
	return out
}

// takeBackInverses takes back the inverse offers of a framework that has no stream to be told on.
func (s *state) takeBackInverses(f *framework) {
	for o := range f.inverses { // nobody is told: the order does not matter
		s.dropInverse(o)
	}
}

// forgetAnswers forgets what a framework that is removed has said.
func (s *state) forgetAnswers(f *framework) {
	for _, a := range s.unavailable { // the order does not matter
		delete(a.unavailable.answers, f)
		delete(a.unavailable.refused, f)
	}
}

// reviveInverses has a framework be asked again, whatever it refused.
func (s *state) reviveInverses(f *framework) {
	for _, a := range s.unavailable { // the order does not matter
		delete(a.unavailable.refused, f)
	}
	s.nextInverse = time.Time{}
}

// answerInverses takes a framework's answer. Inverse offers that are not the framework's, or are gone, are ignored: the
// call may have crossed a RESCIND_INVERSE_OFFER.
func (s *state) answerInverses(f *framework, ids []*mesosv1.OfferID, answer allocatorv1.InverseOfferStatus_Status, filters *mesosv1.Filters, now time.Time) {
	for _, id := range ids {
		o := s.inverses[id.GetValue()]
		if o == nil || o.framework != f {
			s.log.Debug("answer to an inverse offer that does not stand", "framework", f.id, "inverse_offer", id.GetValue())
			continue
		}
		s.dropInverse(o)
		u := o.agent.unavailable
		u.answers[f] = &allocatorv1.InverseOfferStatus{
			Status: answer.Enum(), FrameworkId: f.info.Id, Timestamp: timeInfo(now)}
		if d := refusal(filters); d > 0 {
			u.refused[f] = now.Add(d)
		}
	}
}

// refusal is how long a framework wants to be left alone.
func refusal(f *mesosv1.Filters) time.Duration {
	if f == nil || f.RefuseSeconds == nil {
		return defaultRefusal
	}
	switch x := f.GetRefuseSeconds(); {
	case x == 0:
		return 0
	case !(x > 0): // also what is no number
		return defaultRefusal
	case x >= maxRefusal.Seconds():
		return maxRefusal
	default:
		return time.Duration(x * float64(time.Second))
	}
}
