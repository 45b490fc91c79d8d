package allocator

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// Allocate shares what is free and returns the offers to make, at most one per framework,
// role and agent. What is offered counts as had by the framework from then on.
//
// First roles whose guarantee is unmet are served on every agent, then all roles. Agents
// come in random order; on each, roles and then frameworks come in the order of their
// dominant shares, and the first that wants what is there gets all it may have.
func (a *Allocator) Allocate(now time.Time) []Offer {
	a.cycle++
	a.expireFilters(now)
	if a.resort {
		a.sortAll(a.root)
		a.resort = false
	}
	agents := a.candidates()
	if len(agents) == 0 || len(a.root.children) == 0 {
		return nil
	}
	a.random.Shuffle(len(agents), func(i, j int) { agents[i], agents[j] = agents[j], agents[i] })

	c := &cycle{Allocator: a}
	if a.quotas > 0 {
		c.headroom = a.newHeadroom()
		c.made = make(map[offerKey]int)
		c.guarantees = true
		for _, ag := range agents {
			if c.headroom.lacking == 0 {
				break
			}
			c.serve(ag)
		}
		c.guarantees = false
	}
	for _, ag := range agents {
		c.serve(ag)
	}
	return c.offers
}

// candidates returns the agents to look at, and notes that they are being looked at.
func (a *Allocator) candidates() []*agent {
	// What was kept back for quota may be free to go once anything has moved anywhere.
	if a.moved {
		for _, ag := range a.held {
			ag.held = false
			a.touch(ag)
		}
		a.held = a.held[:0]
		a.moved = false
	}
	var out []*agent
	for _, ag := range a.dirty {
		ag.dirty = false
		if a.candidate(ag) && !ag.free.Empty() {
			out = append(out, ag)
		}
	}
	a.dirty = a.dirty[:0]
	// Several filters may have ended at the same time, in any order.
	slices.SortFunc(out, func(x, y *agent) int { return cmp.Compare(x.place, y.place) })
	return out
}

type offerKey struct {
	client *client
	agent  *agent
}

// cycle is one call of Allocate.
type cycle struct {
	*Allocator
	headroom   *headroom // nil if there are no quotas
	guarantees bool      // in the first stage
	offers     []Offer
	made       map[offerKey]int // index in offers; only where two stages may give twice
	charged    []*client        // given something on this agent; to be put in their places
	plain      bool             // nothing of this agent is reserved or revocable
}

func isPlain(s resources.Set) bool {
	entries := s.Entries()
	for i := range entries {
		if entries[i].ReservedTo() != "" || entries[i].Revocable() {
			return false
		}
	}
	return true
}

// serve hands out an agent.
func (c *cycle) serve(ag *agent) {
	if ag.free.Empty() {
		return
	}
	c.plain = isPlain(ag.free)
	c.visit(c.root, ag)
	for _, cl := range c.charged {
		c.settle(cl, 1)
	}
	c.charged = c.charged[:0]
}

// visit offers an agent to the roles below a node, in their turn. It is false once nothing
// is left. The order is not changed while the agent is handed out.
func (c *cycle) visit(n *node, ag *agent) bool {
	for _, child := range n.children {
		if child.leaf != nil {
			c.offerRole(child.leaf, ag)
		} else {
			c.visit(child, ag)
		}
		if ag.free.Empty() {
			return false
		}
	}
	return true
}

// offerRole offers an agent to the frameworks of a role, in their turn.
func (c *cycle) offerRole(r *role, ag *agent) {
	if c.guarantees && !r.top.lacking() {
		return
	}
	if !ag.hierarchical && isNested(r.name) {
		return
	}
	available := ag.free
	if !c.plain {
		available = available.AllocatableTo(r.name)
	}
	for _, cl := range r.clients {
		if available.Empty() {
			return
		}
		if ag.blocked(cl) {
			continue
		}
		if c.headroom != nil && c.plain {
			// What a role may have only shrinks during a cycle: no need to ask twice.
			if cl.hopeless != c.cycle && !c.possible(c.headroom, r.top, cl) {
				cl.hopeless = c.cycle
			}
			if cl.hopeless == c.cycle {
				c.hold(ag)
				continue
			}
		}
		offerable, why := c.offerable(ag, cl, available)
		if why != Offered {
			ag.block(cl)
			continue
		}
		if ag.sharedCycle == c.cycle {
			if offerable = offerable.NonShared(); !c.wanted(ag, cl, offerable) {
				c.hold(ag)
				continue
			}
		}
		if c.headroom != nil {
			whole := offerable
			progress := false
			if offerable, progress = c.chop(c.headroom, r.top, whole); offerable.Len() < whole.Len() || !offerable.Equal(whole) {
				c.hold(ag)
			}
			if c.guarantees && !progress {
				return // all frameworks of the role would get the same
			}
			if offerable.NonShared().Empty() || !c.wanted(ag, cl, offerable) {
				continue
			}
		}
		c.give(ag, cl, offerable)
		available = ag.free.AllocatableTo(r.name)
	}
}

// offerable returns what of the available resources a client could be offered if there were
// no quotas, or why that is nothing. The answer depends on nothing but the agent's free
// resources, the client's filters and what the framework said, and if it is nothing it is
// nothing for any part of available too.
func (a *Allocator) offerable(ag *agent, cl *client, available resources.Set) (resources.Set, Verdict) {
	fw := cl.framework
	switch {
	case fw.multiRole && !ag.multiRole, !ag.hierarchical && isNested(cl.role.name):
		return resources.Set{}, AgentTooOld
	case ag.gpus && !fw.gpus && !a.options.OfferGPUsToAll:
		return resources.Set{}, NeedsGPUs
	case a.options.Region != "" && ag.region != "" && ag.region != a.options.Region && !fw.regions:
		return resources.Set{}, RemoteRegion
	case !fw.constraints.allow(cl.role.name, ag.info):
		return resources.Set{}, Constrained
	}
	if !fw.revocable || !fw.refinement {
		available = available.Filter(func(e *resources.Entry) bool {
			return (fw.revocable || !e.Revocable()) && (fw.refinement || !e.Refined())
		})
	}
	if available.Empty() {
		return available, NothingFree
	}
	if fw.shared && !ag.shared.Empty() {
		shared := ag.shared.AllocatableTo(cl.role.name)
		if !fw.refinement {
			shared = shared.Filter(func(e *resources.Entry) bool { return !e.Refined() })
		}
		available = available.Add(shared)
	}
	if !enough(cl.minimum, available) {
		return available, TooSmall
	}
	if cl.refuses(ag, available) {
		return available, Filtered
	}
	return available, Offered
}

// wanted says whether a part of what a client could be offered is still worth offering.
func (a *Allocator) wanted(ag *agent, cl *client, part resources.Set) bool {
	return enough(cl.minimum, part) && !cl.refuses(ag, part)
}

// give books an offer.
func (c *cycle) give(ag *agent, cl *client, s resources.Set) {
	fw := cl.framework
	allocated := s.Allocate(cl.role.name)
	own := s.NonShared()
	if own.Len() != s.Len() {
		ag.sharedCycle = c.cycle
	}
	counted := c.scalars(countedForQuota(own))
	if c.headroom != nil {
		c.headroom.give(cl.role.top, counted)
	}
	lacked := c.guarantees && cl.role.top.lacking()
	ag.allocs[fw] = ag.allocs[fw].Add(allocated)
	ag.allocated = ag.allocated.Add(own)
	ag.free = ag.free.Subtract(own)
	ag.whole = false
	cl.charge(c.scalars(s), 1)
	cl.role.top.used.add(counted, 1)
	c.charged = append(c.charged, cl)
	if lacked && !cl.role.top.lacking() {
		c.headroom.lacking--
	}

	if c.made != nil {
		key := offerKey{cl, ag}
		if i, again := c.made[key]; again {
			c.offers[i].Resources = c.offers[i].Resources.Add(allocated)
			return
		}
		c.made[key] = len(c.offers)
	}
	c.offers = append(c.offers, Offer{FrameworkID: fw.id, Role: cl.role.name, AgentID: ag.id, Resources: allocated})
}

// hold notes that something of an agent is kept back for quota.
func (c *cycle) hold(ag *agent) {
	if !ag.held {
		ag.held = true
		c.held = append(c.held, ag)
	}
}

// lacking says whether any guarantee of the role is unmet.
func (t *top) lacking() bool {
	for i := range t.guarantee {
		if t.unmet(i) > 0 {
			return true
		}
	}
	return false
}

func isNested(role string) bool {
	for i := range len(role) {
		if role[i] == '/' {
			return true
		}
	}
	return false
}

// RecoverResources takes back what a framework was offered or has: an offer declined or
// rescinded, the unused part of an accepted one, a task's resources when it has ended. Each
// resource carries the role it is allocated to; what the framework does not have is ignored.
//
// filters, if not nil, is the framework's refusal: it is not offered these resources of this
// agent, nor any part of them, for refuse_seconds (5 if unset) from now on.
func (a *Allocator) RecoverResources(frameworkID, agentID string, s resources.Set, filters *mesosv1.Filters, now time.Time) {
	fw, ag := a.frameworks[frameworkID], a.agents[agentID]
	if fw == nil || ag == nil || s.Empty() {
		return
	}
	s = fw.withRole(s)
	if has := ag.allocs[fw]; !has.Contains(s) {
		s = common(has, s)
		if s.Empty() {
			return
		}
	}
	a.discharge(ag, fw, s)
	a.refresh(ag)
	if filters != nil {
		until := now.Add(a.refusal(filters))
		roles := s.Allocations()
		for _, name := range sortedKeys(roles) {
			if c := a.client(fw, name); c.listed {
				a.refuse(c, ag, roles[name].Unallocate(), until)
			}
		}
	}
	a.forget(fw)
}

// UpdateAllocation replaces, in what a framework has on an agent, the resources that
// operations consumed by those they were converted to, both with the role they are allocated
// to; the agent's total follows.
//
// Errors: the framework does not have on this agent what is to be replaced. Nothing is
// changed then.
func (a *Allocator) UpdateAllocation(frameworkID, agentID string, offered, converted resources.Set) error {
	fw, ag := a.frameworks[frameworkID], a.agents[agentID]
	if fw == nil || ag == nil {
		return fmt.Errorf("update allocation of framework %s on agent %s: not known", frameworkID, agentID)
	}
	offered, converted = fw.withRole(offered), fw.withRole(converted)
	if has := ag.allocs[fw]; !has.Contains(offered) {
		return fmt.Errorf("update allocation of framework %s on agent %s: it has %s, not %s", frameworkID, agentID, has, offered)
	}
	if offered.Equal(converted) {
		return nil
	}
	a.discharge(ag, fw, offered)
	a.charge(ag, fw, converted)
	before, after := singleCopies(offered.Unallocate()), singleCopies(converted.Unallocate())
	gone, come := before.Subtract(after), after.Subtract(before)
	come = come.Filter(func(e *resources.Entry) bool { // a further copy of a volume adds nothing
		return !e.Shared() || !ag.total.Contains(resources.New(e.Resource()))
	})
	a.setTotal(ag, ag.total.Subtract(gone).Add(come))
	a.forget(fw)
	return nil
}

// common returns what of s is in has.
func common(has, s resources.Set) resources.Set {
	return s.Subtract(s.Subtract(has))
}

// singleCopies returns the set with one copy of each shared volume.
func singleCopies(s resources.Set) resources.Set {
	if s.Shared().Empty() {
		return s
	}
	return resources.New(s.Resources()...)
}
