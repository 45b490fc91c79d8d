package allocator

import (
	"fmt"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// RecoverResources takes back what a framework was offered or has: an offer declined or
// rescinded, the unused part of an accepted one, a task's resources when it has ended. Each
// resource carries the role it is allocated to; what the framework does not have is ignored.
//
// filters, if not nil, is the framework's refusal, and makes this its answer to an offer, also
// where nothing came back: it is not offered these resources of this agent, nor any part of
// them, for refuse_seconds (5 if unset) from now on.
func (a *Allocator) RecoverResources(frameworkID, agentID string, s resources.Set, filters *mesosv1.Filters, now time.Time) {
	fw, ag := a.frameworks[frameworkID], a.agents[agentID]
	if fw == nil || ag == nil {
		return
	}
	s = fw.withRole(s)
	var until time.Time
	if filters != nil {
		until = now.Add(a.refusal(filters))
		a.answered(fw, now) // first, for who is not in line is given no filter
	}
	a.recover(fw, ag, s, until)
	if filters != nil {
		a.judge(fw, ag, s, now)
	}
	a.forget(fw)
}

// recover takes back what a framework had; if until is set, the framework is not offered it again
// before then. It is false if there was nothing to take back.
func (a *Allocator) recover(fw *framework, ag *agent, s resources.Set, until time.Time) bool {
	if ag == nil || s.Empty() {
		return false
	}
	s = fw.withRole(s)
	if has := ag.allocs[fw]; !has.Contains(s) {
		s = common(has, s)
		if s.Empty() {
			return false
		}
	}
	a.discharge(ag, fw, s)
	a.refresh(ag)
	if !until.IsZero() {
		roles := s.Allocations()
		for _, name := range sortedKeys(roles) {
			if c := a.client(fw, name); c.listed {
				a.refuse(c, ag, roles[name].Unallocate(), until)
			}
		}
	}
	a.endTrial(fw, ag)
	return true
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
