package allocator

import (
	"cmp"
	"slices"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// framework is what the allocator knows of a framework.
type framework struct {
	id      string
	known   bool // AddFramework was called; if not, it only holds what an agent reported
	active  bool
	clients []*client
	on      map[*agent]struct{} // where it has something

	constraints *Constraints // nil if there are none

	gpus, revocable, shared, refinement, regions, multiRole bool // what it said it can use

	// See ExpireOffer.
	answered    time.Time // when it last answered an offer
	silent      int       // how often in a row it let offers expire
	silentSince time.Time // when they last expired
	until       time.Time // offered nothing before then; zero if it is not in Allocator.aside
	trial       *agent    // of a silent framework: the one agent it is offered; nil if none is
	trialCycle  uint64    // when that was
}

// AddFramework adds a framework, or takes it up again under new information. suppressed are
// roles in which it wants no offers for now. A framework that is not active gets none at all.
func (a *Allocator) AddFramework(id string, info *mesosv1.FrameworkInfo, suppressed []string, active bool) {
	fw := a.framework(id)
	fw.known, fw.active = true, active
	a.pardon(fw)
	a.update(fw, info, suppressed)
}

// UpdateFramework replaces a framework's information and its suppressed roles. Filters of
// roles it stays in are kept.
func (a *Allocator) UpdateFramework(id string, info *mesosv1.FrameworkInfo, suppressed []string) {
	if fw := a.frameworks[id]; fw != nil && fw.known {
		a.update(fw, info, suppressed)
	}
}

// ActivateFramework lets a framework have offers again.
func (a *Allocator) ActivateFramework(id string) {
	if fw := a.frameworks[id]; fw != nil && fw.known && !fw.active {
		fw.active = true
		a.pardon(fw)
		for _, c := range fw.clients {
			a.relist(c)
		}
	}
}

// DeactivateFramework stops offers to a framework and drops its filters. What it has is left
// alone; offers that are out are the master's to rescind.
func (a *Allocator) DeactivateFramework(id string) {
	fw := a.frameworks[id]
	if fw == nil {
		return
	}
	fw.active = false
	for _, c := range fw.clients {
		a.dropAllFilters(c)
		a.relist(c)
	}
}

// RemoveFramework takes a framework away; all that it has is free again.
func (a *Allocator) RemoveFramework(id string) {
	fw := a.frameworks[id]
	if fw == nil {
		return
	}
	fw.known, fw.active = false, false
	a.pardon(fw)
	for ag := range fw.on { // in any order: nothing depends on it
		a.discharge(ag, fw, ag.allocs[fw])
		a.refresh(ag)
	}
	for _, c := range slices.Clone(fw.clients) {
		c.subscribed = false
		a.forgetClient(c)
	}
	a.forget(fw)
}

// Suppress stops offers to a framework in the roles, or in all it has if none is named.
func (a *Allocator) Suppress(id string, roles ...string) { a.suppress(id, roles, true) }

// Revive undoes Suppress and drops all filters in the roles, or in all the framework has if
// none is named.
func (a *Allocator) Revive(id string, roles ...string) { a.suppress(id, roles, false) }

func (a *Allocator) suppress(id string, roles []string, suppressed bool) {
	fw := a.frameworks[id]
	if fw == nil {
		return
	}
	if !suppressed {
		a.pardon(fw)
	}
	for _, c := range fw.clients {
		if len(roles) > 0 && !slices.Contains(roles, c.role.name) {
			continue
		}
		c.suppressed = suppressed
		if !suppressed {
			a.tookSome(c) // it wants something now
			a.dropAllFilters(c)
		}
		a.relist(c)
	}
}

// framework returns the framework of that id, made if need be.
func (a *Allocator) framework(id string) *framework {
	fw := a.frameworks[id]
	if fw == nil {
		fw = &framework{id: id, on: make(map[*agent]struct{})}
		a.frameworks[id] = fw
	}
	return fw
}

// client returns a framework in a role, made if need be.
func (a *Allocator) client(fw *framework, roleName string) *client {
	for _, c := range fw.clients {
		if c.role.name == roleName {
			return c
		}
	}
	c := &client{framework: fw, role: a.role(roleName), filters: make(map[*agent][]*filter)}
	c.role.members++
	if n := len(a.freeIndex); n > 0 {
		c.index, a.freeIndex = a.freeIndex[n-1], a.freeIndex[:n-1]
		a.clients[c.index] = c
	} else {
		c.index = len(a.clients)
		a.clients = append(a.clients, c)
	}
	fw.clients = append(fw.clients, c)
	return c
}

// forgetClient takes away a client that is no longer subscribed and has nothing.
func (a *Allocator) forgetClient(c *client) {
	a.relist(c)
	for _, x := range c.alloc {
		if c.subscribed || x != 0 {
			return
		}
	}
	for ag := range c.framework.on {
		if hasRole(ag.allocs[c.framework], c.role.name) {
			return // ports or other things that are not scalars
		}
	}
	a.dropAllFilters(c)
	a.tookSome(c)
	a.fresh.set(c.index) // for who has the index next
	a.clients[c.index] = nil
	a.freeIndex = append(a.freeIndex, c.index)
	fw := c.framework
	fw.clients = slices.DeleteFunc(fw.clients, func(x *client) bool { return x == c })
	c.role.members--
	a.dropRole(c.role)
}

// forget takes away what is not needed any more of a framework that has lost something.
func (a *Allocator) forget(fw *framework) {
	for _, c := range slices.Clone(fw.clients) {
		if !c.subscribed {
			a.forgetClient(c)
		}
	}
	if !fw.known && len(fw.clients) == 0 {
		delete(a.frameworks, fw.id)
	}
}

// withRole gives resources without an allocation_info the framework's role, which is clear if
// it has one; else they are nobody's in particular.
func (fw *framework) withRole(s resources.Set) resources.Set {
	if !hasRole(s, "") {
		return s
	}
	role := "*"
	if len(fw.clients) == 1 {
		role = fw.clients[0].role.name
	}
	return resources.Sum(
		s.Filter(func(e *resources.Entry) bool { return e.AllocatedTo() != "" }),
		s.Filter(func(e *resources.Entry) bool { return e.AllocatedTo() == "" }).Allocate(role),
	)
}

func hasRole(s resources.Set, role string) bool {
	entries := s.Entries()
	for i := range entries {
		if entries[i].AllocatedTo() == role {
			return true
		}
	}
	return false
}

// update reads what a framework says of itself.
func (a *Allocator) update(fw *framework, info *mesosv1.FrameworkInfo, suppressed []string) {
	fw.gpus, fw.revocable, fw.shared, fw.refinement, fw.regions, fw.multiRole = false, false, false, false, false, false
	for _, c := range info.GetCapabilities() {
		switch c.GetType() {
		case mesosv1.FrameworkInfo_Capability_GPU_RESOURCES:
			fw.gpus = true
		case mesosv1.FrameworkInfo_Capability_REVOCABLE_RESOURCES:
			fw.revocable = true
		case mesosv1.FrameworkInfo_Capability_SHARED_RESOURCES:
			fw.shared = true
		case mesosv1.FrameworkInfo_Capability_RESERVATION_REFINEMENT:
			fw.refinement = true
		case mesosv1.FrameworkInfo_Capability_REGION_AWARE:
			fw.regions = true
		case mesosv1.FrameworkInfo_Capability_MULTI_ROLE:
			fw.multiRole = true
		}
	}
	wanted := []string{info.GetRole()}
	if fw.multiRole {
		wanted = info.GetRoles()
	}
	for _, name := range wanted {
		a.client(fw, name)
	}
	for _, c := range slices.Clone(fw.clients) {
		c.subscribed = slices.Contains(wanted, c.role.name)
		c.suppressed = slices.Contains(suppressed, c.role.name)
		c.minimum = a.minimum
		if m := info.GetOfferFilters()[c.role.name].GetMinAllocatableResources(); m != nil {
			var alternatives []resources.Quantities
			for _, q := range m.GetQuantities() {
				alternatives = append(alternatives, resources.QuantitiesOf(q.GetQuantities()))
			}
			c.minimum = a.compileNeeds(alternatives)
		}
		if !c.subscribed {
			a.dropAllFilters(c)
			a.forgetClient(c)
			continue
		}
		a.relist(c)
	}
}

// relist puts a client in line for offers, or out of it. In line it is asked anew about
// every agent.
func (a *Allocator) relist(c *client) {
	want := c.framework.active && c.framework.until.IsZero() && c.subscribed && !c.suppressed
	a.list(c, want)
	if want {
		a.fresh.set(c.index)
		a.all = true
	}
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
