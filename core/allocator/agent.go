package allocator

import (
	"cmp"
	"slices"
	"strings"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// agent is what the allocator knows of an agent.
type agent struct {
	id       string
	hash     uint64 // of the id
	turn     uint64 // in the cycle: lower comes first
	place    int    // in Allocator.agentList
	hostname string
	region   string
	info     *mesosv1.AgentInfo // not changed after AddAgent

	multiRole, hierarchical bool // what the agent understands

	total     resources.Set
	shared    resources.Set // the shared volumes of total: offered again and again
	allocated resources.Set // what frameworks have, without shared volumes and roles
	free      resources.Set // total without allocated and shared
	allocs    map[*framework]resources.Set
	gpus      bool

	amounts  vector          // scalars of total, as counted in Allocator.total
	counted  vector          // of free, as counted in Allocator.spare
	reserved map[*top]vector // scalars reserved below each top-level role

	active  bool
	removed bool
	dirty   bool // in Allocator.dirty

	heldPlace int    // in Allocator.held, counted from 1; 0 if it is not there
	cut       uint64 // what was kept back: a bit for each name

	// Clients that can be offered nothing are not asked again in vain. Who can have nothing of
	// some resources can have nothing of a part of them either, so what is learnt lasts while
	// free shrinks: refusedBase holds for whatever is part of base, refusedNow for free only.
	base        resources.Set
	whole       bool // free is all of base
	refusedBase bitset
	refusedNow  bitset

	filters     int    // of any client
	sharedCycle uint64 // cycle in which the shared volumes were last offered
	looked      uint64 // cycle in which it was last looked at
}

// blocked says whether a client is known to get nothing of what is free.
func (ag *agent) blocked(c *client) bool {
	return ag.refusedBase.has(c.index) || ag.refusedNow.has(c.index)
}

// blockedAll says whether that is known of all clients of a role.
func (ag *agent) blockedAll(r *role) bool {
	for i, word := range r.listed {
		if i < len(ag.refusedBase) {
			word &^= ag.refusedBase[i]
		}
		if i < len(ag.refusedNow) {
			word &^= ag.refusedNow[i]
		}
		if word != 0 {
			return false
		}
	}
	return true
}

func (ag *agent) block(c *client) {
	if ag.whole {
		ag.refusedBase.set(c.index)
	} else {
		ag.refusedNow.set(c.index)
	}
}

func (ag *agent) unblock(c *client) {
	ag.refusedBase.clear(c.index)
	ag.refusedNow.clear(c.index)
}

type bitset []uint64

func (b bitset) has(i int) bool { return i>>6 < len(b) && b[i>>6]&(1<<(i&63)) != 0 }

func (b bitset) clear(i int) {
	if i>>6 < len(b) {
		b[i>>6] &^= 1 << (i & 63)
	}
}

// remove clears all bits of o.
func (b bitset) remove(o bitset) {
	for i := range min(len(b), len(o)) {
		b[i] &^= o[i]
	}
}

func (b *bitset) set(i int) {
	for i>>6 >= len(*b) {
		*b = append(*b, 0)
	}
	(*b)[i>>6] |= 1 << (i & 63)
}

// AddAgent adds an agent with what frameworks already use on it, by framework id; those
// resources carry the role they are allocated to. Frameworks need not be known yet: a new
// master hears of agents first. An agent that is there already is replaced.
func (a *Allocator) AddAgent(id string, info *mesosv1.AgentInfo, capabilities []*mesosv1.AgentInfo_Capability, total resources.Set, used map[string]resources.Set) {
	a.RemoveAgent(id)
	ag := &agent{
		id:       id,
		hash:     hash(id),
		place:    len(a.agentList),
		hostname: info.GetHostname(),
		info:     info,
		region:   info.GetDomain().GetFaultDomain().GetRegion().GetName(),
		allocs:   make(map[*framework]resources.Set),
		active:   true,
	}
	for _, c := range capabilities {
		switch c.GetType() {
		case mesosv1.AgentInfo_Capability_MULTI_ROLE:
			ag.multiRole = true
		case mesosv1.AgentInfo_Capability_HIERARCHICAL_ROLE:
			ag.hierarchical = true
		}
	}
	a.agents[id] = ag
	a.agentList = append(a.agentList, ag)
	if a.byName != nil {
		at, _ := slices.BinarySearchFunc(a.byName, ag, compareNames)
		a.byName = slices.Insert(a.byName, at, ag)
	}
	for _, frameworkID := range sortedKeys(used) {
		if used[frameworkID].Empty() {
			continue
		}
		fw := a.framework(frameworkID)
		a.charge(ag, fw, fw.withRole(used[frameworkID]))
	}
	a.setTotal(ag, total)
}

// compareNames orders agents by host name.
func compareNames(a, b *agent) int {
	return cmp.Or(strings.Compare(a.hostname, b.hostname), strings.Compare(a.id, b.id))
}

// hash is FNV-1a.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// RemoveAgent takes an agent away with all that frameworks have on it.
func (a *Allocator) RemoveAgent(id string) {
	ag := a.agents[id]
	if ag == nil {
		return
	}
	for fw, s := range ag.allocs {
		a.discharge(ag, fw, s)
		a.endTrial(fw, ag)
		a.forget(fw)
	}
	a.setTotal(ag, resources.Set{})
	a.unhold(ag)
	if ag.filters > 0 {
		for _, c := range a.clients {
			if c != nil {
				a.dropFilters(c, ag)
			}
		}
	}
	ag.removed = true
	if at, yes := slices.BinarySearchFunc(a.byName, ag, compareNames); yes {
		a.byName = slices.Delete(a.byName, at, at+1)
	}
	a.recount(ag)
	delete(a.agents, id)
	last := a.agentList[len(a.agentList)-1]
	a.agentList[ag.place], last.place = last, ag.place
	a.agentList[len(a.agentList)-1] = nil
	a.agentList = a.agentList[:len(a.agentList)-1]
}

// UpdateAgentTotal replaces all that an agent has: after operations on what nobody uses, a
// reconfiguration, or a new estimate of what can be oversubscribed. What frameworks have is
// left alone, even if there is less now.
func (a *Allocator) UpdateAgentTotal(id string, total resources.Set) {
	if ag := a.agents[id]; ag != nil {
		a.setTotal(ag, total)
	}
}

// ActivateAgent lets an agent be offered, as it is after AddAgent.
func (a *Allocator) ActivateAgent(id string) {
	if ag := a.agents[id]; ag != nil && !ag.active {
		ag.active = true
		a.recount(ag)
		a.touch(ag)
	}
}

// DeactivateAgent stops offers of an agent. What frameworks have is left alone; offers that
// are out are the master's to rescind.
func (a *Allocator) DeactivateAgent(id string) {
	if ag := a.agents[id]; ag != nil {
		ag.active = false
		a.recount(ag)
		a.unhold(ag) // it is looked at when it is active again
	}
}

// SetWhitelist restricts offers to agents with these hostnames; nil lifts the restriction.
func (a *Allocator) SetWhitelist(hostnames []string) {
	a.whitelist = nil
	if hostnames != nil {
		a.whitelist = make(map[string]bool, len(hostnames))
		for _, h := range hostnames {
			a.whitelist[h] = true
		}
	}
	for _, ag := range a.agentList {
		a.recount(ag)
		a.touch(ag)
	}
}

// candidate says whether an agent may be offered at all.
func (a *Allocator) candidate(ag *agent) bool {
	return ag.active && !ag.removed && (a.whitelist == nil || a.whitelist[ag.hostname])
}

// touch has the agent looked at in the next cycle.
func (a *Allocator) touch(ag *agent) {
	if !ag.dirty {
		ag.dirty = true
		a.dirty = append(a.dirty, ag)
	}
}

// setTotal replaces an agent's total and what is counted from it.
func (a *Allocator) setTotal(ag *agent, total resources.Set) {
	before := ag.amounts
	a.total.add(before, -1)
	for t, v := range ag.reserved {
		t.reserved.add(v, -1)
		defer a.release(t)
	}
	total = total.Unallocate()
	ag.total, ag.shared = total, total.Shared()
	ag.amounts, ag.reserved = a.scalars(total), nil
	entries := total.Entries()
	for i := range entries {
		e := &entries[i]
		if e.ReservedTo() == "" || e.Type() != mesosv1.Value_SCALAR {
			continue
		}
		if ag.reserved == nil {
			ag.reserved = make(map[*top]vector)
		}
		t := a.top(e.ReservedTo())
		v, known := ag.reserved[t]
		if !known {
			t.refs++
		}
		*v.at(a.index(e.Name())) += e.Milli()
		ag.reserved[t] = v
	}
	a.total.add(ag.amounts, 1)
	for t, v := range ag.reserved {
		t.reserved.add(v, 1)
	}
	ag.gpus = total.Milli("gpus") > 0
	ag.base = resources.Set{} // shared volumes and gpus may have changed: nothing learnt holds
	clear(ag.refusedBase)
	a.resort = a.resort || !slices.Equal(before, ag.amounts)
	a.refresh(ag)
}

// refresh computes what is free after something came back or the total changed.
func (a *Allocator) refresh(ag *agent) {
	ag.free = ag.total.NonShared().Subtract(ag.allocated)
	clear(ag.refusedNow)
	if !ag.base.Contains(ag.free) {
		ag.base = ag.free
		clear(ag.refusedBase)
	}
	ag.whole = ag.free.Contains(ag.base)
	a.recount(ag)
	a.touch(ag)
}

// recount counts what an agent has free that guarantees may need.
func (a *Allocator) recount(ag *agent) {
	a.spare.add(ag.counted, -1)
	ag.counted = ag.counted[:0]
	if a.candidate(ag) {
		a.addCounted(&ag.counted, ag.free)
	}
	a.spare.add(ag.counted, 1)
}

// charge books resources, each with the role it is allocated to, on a framework. Places in
// the order of turns are not touched.
func (a *Allocator) charge(ag *agent, fw *framework, s resources.Set) {
	entries := s.Entries()
	if len(entries) == 0 {
		return
	}
	ag.allocs[fw] = ag.allocs[fw].Add(s)
	fw.on[ag] = struct{}{}
	ag.allocated = ag.allocated.Add(s.NonShared().Unallocate())
	a.book(fw, s, 1)
}

// discharge undoes charge. s must be part of what the framework has on the agent.
func (a *Allocator) discharge(ag *agent, fw *framework, s resources.Set) {
	left := ag.allocs[fw].Subtract(s)
	if left.Empty() {
		delete(ag.allocs, fw)
		delete(fw.on, ag)
	} else {
		ag.allocs[fw] = left
	}
	ag.allocated = ag.allocated.Subtract(s.NonShared().Unallocate())
	a.book(fw, s, -1)
}

// book adds to or takes from what the clients of a framework, their roles and the quotas
// have, and puts the clients in their places.
func (a *Allocator) book(fw *framework, s resources.Set, sign int64) {
	roles := s.Allocations()
	for _, name := range sortedKeys(roles) {
		part := roles[name]
		c := a.client(fw, name)
		c.charge(a.scalars(part), sign)
		c.role.top.used.add(a.scalars(countedForQuota(part)), sign)
		a.settle(c, 0)
	}
}
