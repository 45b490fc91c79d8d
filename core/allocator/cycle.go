package allocator

import (
	"cmp"
	"slices"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// Allocate shares what is free and returns the offers to make, at most one per framework,
// role and agent. What is offered counts as had by the framework from then on.
//
// First roles whose guarantee is unmet are served on every agent, then all roles. Agents
// come in random order; on each, roles and then frameworks come in the order of their
// dominant shares (or of chance: Options.RoleSorter), and the first that wants what is there gets
// all it may have.
func (a *Allocator) Allocate(now time.Time) []Offer {
	if a.pausedAt(now) {
		return nil
	}
	a.Resume()
	a.cycle++
	a.readmit(now)
	a.expireFilters(now)
	if a.resort {
		a.sortAll(a.root)
		a.resort = false
	}
	c := &cycle{Allocator: a, now: now}
	agents := a.candidates()
	if len(a.root.children) == 0 {
		return nil
	}
	if len(a.quotas) > 0 && len(agents)+len(a.held) > 0 {
		c.headroom = a.newHeadroom()
		c.made = make(map[offerKey]int)
	}
	c.stages(agents)
	c.serveHeld()
	for _, ag := range c.again {
		a.touch(ag)
	}
	return c.offers
}

// stages hands out agents: first to roles whose guarantee is unmet, then to all.
func (c *cycle) stages(agents []*agent) {
	if c.headroom != nil {
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
}

// serveHeld looks again at agents of which quotas kept something back in an earlier cycle, as far
// as there is more room than there was then.
func (c *cycle) serveHeld() {
	if c.headroom == nil || len(c.held) == 0 {
		return
	}
	defer c.remember(c.headroom)
	const some = 32 // offers made before it is seen what room they left
	grown := c.grown(c.headroom)
	if grown == 0 {
		return
	}
	var list []*agent
	for _, ag := range c.held {
		if ag.cut&grown != 0 && ag.looked != c.cycle {
			list = append(list, ag)
		}
	}
	c.shuffle(list)
	// One after another: rooms only shrink, and most end when little of the list is done.
	next := len(c.offers) + some
	for i := range list {
		if len(c.offers) >= next {
			next = len(c.offers) + some
			if grown = c.grown(c.headroom); grown == 0 {
				return
			}
		}
		if list[i].cut&grown != 0 {
			c.unhold(list[i])
			c.stages(list[i : i+1])
		}
	}
}

// candidates returns the agents to look at, in random order, and notes that they are being looked
// at. The order is a matter of their ids and of the cycle only: neither when they were added nor
// what happened to them counts.
func (a *Allocator) candidates() []*agent {
	if a.all {
		for _, ag := range a.agentList {
			ag.refusedBase.remove(a.fresh)
			ag.refusedNow.remove(a.fresh)
			if !ag.free.Empty() {
				a.touch(ag)
			}
		}
		a.all = false
		clear(a.fresh)
	}
	var out []*agent
	for _, ag := range a.dirty {
		ag.dirty = false
		a.unhold(ag)
		if a.candidate(ag) && !ag.free.Empty() {
			ag.looked = a.cycle
			out = append(out, ag)
		}
	}
	clear(a.dirty)
	a.dirty = a.dirty[:0]
	a.shuffle(out)
	return out
}

// shuffle puts agents in random order.
func (a *Allocator) shuffle(agents []*agent) {
	salt := a.random.Uint64()
	for _, ag := range agents {
		ag.turn = mix(ag.hash ^ salt)
	}
	slices.SortFunc(agents, func(x, y *agent) int {
		if x.turn != y.turn {
			return cmp.Compare(x.turn, y.turn)
		}
		return cmp.Compare(x.id, y.id)
	})
}

// mix spreads the bits of a number over all of it.
//
// Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

type offerKey struct {
	client *client
	agent  *agent
}

// cycle is one call of Allocate.
type cycle struct {
	*Allocator
	now        time.Time
	headroom   *headroom // nil if there are no quotas
	guarantees bool      // in the first stage
	offers     []Offer
	made       map[offerKey]int // index in offers; only where two stages may give twice
	charged    []*client        // given something on this agent; to be put in their places
	plain      bool             // nothing of this agent is reserved or revocable
	available  resources.Set    // of this agent, what the role whose turn it is may have
	amounts    vector           // of this agent, if it is plain, what is free
	again      []*agent         // to be looked at in the next cycle
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
	if c.plain = isPlain(ag.free); c.plain && c.headroom != nil {
		if c.root.hopeless == c.cycle {
			c.hold(ag, everything)
			return
		}
		c.amounts = c.amounts[:0]
		c.addCounted(&c.amounts, ag.free)
	}
	c.visit(c.root, ag)
	for _, cl := range c.charged {
		c.settle(cl, 1)
	}
	c.charged = c.charged[:0]
}

// visit offers an agent to the roles below a node, in their turn. It is false once nothing
// is left. The order is not changed while the agent is handed out.
func (c *cycle) visit(n *node, ag *agent) bool {
	if c.options.RoleSorter == Random {
		for t := c.order(n); len(t.list) > 0; {
			if !c.visitChild(t.next(c.random), ag) {
				return false
			}
		}
		return true
	}
	for _, child := range n.children {
		if !c.visitChild(child, ag) {
			return false
		}
	}
	return true
}

func (c *cycle) visitChild(n *node, ag *agent) bool {
	switch {
	case c.plain && n.hopeless == c.cycle:
		c.hold(ag, everything)
		return true
	case n.leaf != nil:
		c.offerRole(n.leaf, ag)
	default:
		c.visit(n, ag)
	}
	return !ag.free.Empty()
}

// offerRole offers an agent to the frameworks of a role, in their turn.
func (c *cycle) offerRole(r *role, ag *agent) {
	if c.guarantees && !r.top.lacking() {
		return
	}
	if !ag.hierarchical && isNested(r.name) {
		return
	}
	if len(r.clients) > 64 && ag.blockedAll(r) {
		return
	}
	c.available = ag.free
	if !c.plain {
		c.available = ag.free.AllocatableTo(r.name)
	}
	if c.options.FrameworkSorter == Random {
		for t := c.inTurn(r); len(t.list) > 0 && !c.available.Empty(); {
			if !c.offerClient(r, ag, t.next(c.random)) {
				return
			}
		}
		return
	}
	for _, cl := range r.clients {
		if c.available.Empty() || !c.offerClient(r, ag, cl) {
			return
		}
	}
}

// offerClient offers what is available of an agent to a framework. It is false if the others of
// the role need not be asked.
func (c *cycle) offerClient(r *role, ag *agent, cl *client) bool {
	if ag.blocked(cl) {
		return true
	}
	if fw := cl.framework; fw.trial != nil && (fw.trial != ag || fw.trialCycle != c.cycle) {
		return true // one agent at a time, until it answers
	}
	if c.headroom != nil && c.plain {
		// What a role may have only shrinks during a cycle: no need to ask twice.
		if cl.hopeless != c.cycle && !c.possible(c.headroom, r.top, cl, nil) {
			c.giveUp(cl)
		}
		if cl.hopeless == c.cycle || ag.shared.Empty() && !c.possible(c.headroom, r.top, cl, c.amounts) {
			c.hold(ag, everything)
			return true
		}
	}
	offerable, ok := c.offerable(ag, cl, c.available)
	if !ok {
		ag.block(cl)
		return true
	}
	if ag.sharedCycle == c.cycle {
		if offerable = offerable.NonShared(); !c.wanted(ag, cl, offerable) {
			c.again = append(c.again, ag)
			return true
		}
	}
	if c.headroom != nil {
		var progress bool
		var cut uint64
		if offerable, progress, cut = c.chop(c.headroom, r.top, offerable); cut != 0 {
			c.hold(ag, cut)
		}
		if c.guarantees && !progress {
			return false // all frameworks of the role would get the same
		}
		if offerable.NonShared().Empty() || !c.wanted(ag, cl, offerable) {
			return true
		}
	}
	c.give(ag, cl, offerable)
	c.available = ag.free.AllocatableTo(r.name)
	return true
}

// giveUp notes that quotas leave a client nothing of a plain agent for the rest of the cycle, and
// which nodes have no other.
func (c *cycle) giveUp(cl *client) {
	cl.hopeless = c.cycle
	for n := cl.role.node; n != nil; n = n.parent {
		if n.countedIn != c.cycle {
			n.countedIn, n.without = c.cycle, 0
		}
		if n.without++; n.without == n.active {
			n.hopeless = c.cycle
		}
	}
}

// offerable returns what of the available resources a client could be offered if there were
// no quotas. The answer depends on nothing but the agent's free resources, the client's filters
// and what the framework said, and if it is nothing it is nothing for any part of available too.
func (a *Allocator) offerable(ag *agent, cl *client, available resources.Set) (offer resources.Set, ok bool) {
	fw := cl.framework
	if fw.multiRole && !ag.multiRole || !ag.hierarchical && isNested(cl.role.name) ||
		ag.gpus && !fw.gpus && !a.options.OfferGPUsToAll ||
		a.options.Region != "" && ag.region != "" && ag.region != a.options.Region && !fw.regions ||
		!fw.constraints.allow(cl.role.name, ag.info) {
		return resources.Set{}, false
	}
	if available = a.usable(fw, available); available.Empty() {
		return available, false
	}
	available = a.withShared(ag, cl, available)
	return available, a.wanted(ag, cl, available)
}

// usable returns the resources that a framework knows how to use.
func (a *Allocator) usable(fw *framework, s resources.Set) resources.Set {
	if fw.revocable && fw.refinement {
		return s
	}
	return s.Filter(func(e *resources.Entry) bool {
		return (fw.revocable || !e.Revocable()) && (fw.refinement || !e.Refined())
	})
}

// withShared adds the shared volumes that a client may have.
func (a *Allocator) withShared(ag *agent, cl *client, s resources.Set) resources.Set {
	if !cl.framework.shared || ag.shared.Empty() {
		return s
	}
	return s.Add(a.usable(cl.framework, ag.shared.AllocatableTo(cl.role.name)))
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
	counted := make(vector, 0, 8)
	c.addCounted(&counted, own)
	ag.counted.add(counted, -1)
	c.spare.add(counted, -1)
	if c.plain {
		c.amounts.add(counted, -1)
	}
	if c.headroom != nil {
		c.headroom.give(cl.role.top, counted)
	}
	lacked := c.guarantees && cl.role.top.lacking()
	ag.allocs[fw] = ag.allocs[fw].Add(allocated)
	fw.on[ag] = struct{}{}
	ag.allocated = ag.allocated.Add(own)
	ag.free = ag.free.Subtract(own)
	ag.whole = false
	if fw.silent > 0 {
		fw.trial, fw.trialCycle = ag, c.cycle
	}
	cl.charge(c.scalars(s), 1)
	cl.role.top.used.add(counted, 1)
	cl.offered = c.now
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

// everything stands for all names where it is not known which were in the way.
const everything = ^uint64(0)

// hold notes that something of an agent is kept back for quota.
func (a *Allocator) hold(ag *agent, cut uint64) {
	ag.cut |= cut
	if ag.heldPlace == 0 {
		a.held = append(a.held, ag)
		ag.heldPlace = len(a.held)
	}
}

// unhold undoes hold.
func (a *Allocator) unhold(ag *agent) {
	ag.cut = 0
	if ag.heldPlace == 0 {
		return
	}
	last := a.held[len(a.held)-1]
	a.held[ag.heldPlace-1], last.heldPlace = last, ag.heldPlace
	a.held[len(a.held)-1] = nil
	a.held = a.held[:len(a.held)-1]
	ag.heldPlace = 0
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
