package allocator

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// history drives an allocator with random calls, as a master would, and remembers what it
// would have to remember.
type history struct {
	*Allocator
	random     *rand.Rand
	now        time.Time
	frameworks []string
	agents     []string
	offers     []Offer // out or running
	next       int
	withQuota  bool
	withShared bool
}

func newHistory(seed uint64, withQuota, withShared bool) *history {
	return &history{
		Allocator: New(Options{Seed: seed}), random: rand.New(rand.NewPCG(seed, 1)), now: epoch,
		withQuota: withQuota, withShared: withShared,
	}
}

var (
	historyRoles = []string{"eng", "eng/dev", "eng/qa", "ops", "ml", "*"}
	historySets  = []string{
		"cpus:4;mem:4096;ports:[1-100]", "cpus:16;mem:1024;disk:100", "cpus:2;mem:64;cpus(eng):2;mem(eng):512",
		"cpus(ops):4;mem(ops):64;cpus(eng|eng/dev):1;mem(eng|eng/dev):99", "cpus:8;mem:999;cpus{REV}:5", "gpus:4;cpus:4;mem:100", "cpus:0.005;mem:8",
	}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func (h *history) set(text string) resources.Set {
	if h.withShared && h.random.IntN(3) == 0 {
		text += ";disk(eng)[v]<SHARED>:10"
	}
	s, err := set(text)
	if err != nil {
		panic(err)
	}
	return s
}

func (h *history) info() *mesosv1.FrameworkInfo {
	var roles []string
	for _, r := range historyRoles {
		if h.random.IntN(3) == 0 {
			roles = append(roles, r)
		}
	}
	if len(roles) == 0 {
		roles = []string{pick(h.random, historyRoles)}
	}
	var caps []mesosv1.FrameworkInfo_Capability_Type
	for _, c := range []mesosv1.FrameworkInfo_Capability_Type{
		mesosv1.FrameworkInfo_Capability_GPU_RESOURCES, mesosv1.FrameworkInfo_Capability_REVOCABLE_RESOURCES,
		mesosv1.FrameworkInfo_Capability_RESERVATION_REFINEMENT, mesosv1.FrameworkInfo_Capability_SHARED_RESOURCES,
	} {
		if h.random.IntN(2) == 0 {
			caps = append(caps, c)
		}
	}
	return frameworkInfo(roles, caps...)
}

// drop forgets what the master thinks is out for a framework or an agent.
func (h *history) drop(match func(Offer) bool) { h.offers = slices.DeleteFunc(h.offers, match) }

// step makes one random call and returns the offers it led to.
func (h *history) step() (made []Offer) {
	r := h.random
	h.now = h.now.Add(time.Duration(r.IntN(4)) * 500 * time.Millisecond) // often the same time twice
	framework := func() string {
		if len(h.frameworks) == 0 {
			return "none"
		}
		return pick(r, h.frameworks)
	}
	agent := func() string {
		if len(h.agents) == 0 {
			return "none"
		}
		return pick(r, h.agents)
	}
	switch n := r.IntN(100); {
	case n < 30:
		made = h.Allocate(h.now)
		h.offers = append(h.offers, made...)
	case n < 62 && len(h.offers) > 0: // all or a part comes back
		i := r.IntN(len(h.offers))
		o := h.offers[i]
		back := o.Resources
		if r.IntN(3) == 0 {
			back = back.Limit(func(e *resources.Entry) int64 { return e.Milli() / 2 / 1000 * 1000 }).
				Filter(func(e *resources.Entry) bool { return !e.Shared() })
		}
		rest := o.Resources.Subtract(back)
		if rest.Empty() {
			h.offers = slices.Delete(h.offers, i, i+1)
		} else {
			h.offers[i].Resources = rest
		}
		var filters *mesosv1.Filters
		switch r.IntN(4) {
		case 0:
			filters = &mesosv1.Filters{}
		case 1:
			filters = &mesosv1.Filters{RefuseSeconds: ptr(float64(r.IntN(20)))}
		}
		h.RecoverResources(o.FrameworkID, o.AgentID, back, filters, h.now)
	case n < 68:
		h.next++
		id := fmt.Sprintf("f%d", h.next)
		h.frameworks = append(h.frameworks, id)
		h.AddFramework(id, h.info(), nil, r.IntN(10) > 0)
	case n < 74 || n < 76 && len(h.agents) < 5:
		h.next++
		id := fmt.Sprintf("s%d", h.next)
		h.agents = append(h.agents, id)
		total := h.set(pick(r, historySets))
		var used map[string]resources.Set
		if r.IntN(4) == 0 {
			fw, role := fmt.Sprintf("f%d", r.IntN(h.next+1)), pick(r, historyRoles)
			part := total.NonShared().Unreserved().NonRevocable()
			used = map[string]resources.Set{fw: part.Allocate(role)}
			h.offers = append(h.offers, Offer{FrameworkID: fw, Role: role, AgentID: id, Resources: part.Allocate(role)})
		}
		h.AddAgent(id, &mesosv1.AgentInfo{Hostname: ptr(id)}, agentCapabilities, total, used)
	case n < 77 && len(h.agents) > 4:
		i := r.IntN(len(h.agents))
		id := h.agents[i]
		h.agents = slices.Delete(h.agents, i, i+1)
		h.RemoveAgent(id)
		h.drop(func(o Offer) bool { return o.AgentID == id })
	case n < 79 && len(h.frameworks) > 3:
		i := r.IntN(len(h.frameworks))
		id := h.frameworks[i]
		h.frameworks = slices.Delete(h.frameworks, i, i+1)
		h.RemoveFramework(id)
		h.drop(func(o Offer) bool { return o.FrameworkID == id })
	case n < 81:
		h.UpdateFramework(framework(), h.info(), nil)
	case n < 83:
		h.Suppress(framework(), historyRoles[:r.IntN(3)]...)
	case n < 86:
		h.Revive(framework(), historyRoles[:r.IntN(3)]...)
	case n < 87:
		h.DeactivateFramework(framework())
	case n < 89:
		h.ActivateFramework(framework())
	case n < 90:
		h.DeactivateAgent(agent())
	case n < 92:
		h.ActivateAgent(agent())
	case n < 94: // what can be oversubscribed has changed
		if id := agent(); h.Allocator.agents[id] != nil {
			total := h.Allocator.agents[id].total.NonRevocable()
			if r.IntN(2) == 0 {
				total = total.Add(h.set("cpus{REV}:7").NonShared())
			}
			h.UpdateAgentTotal(id, total)
		}
	case n < 95:
		h.SetWeight(pick(r, historyRoles), float64(1+r.IntN(3)))
	case n < 97 && len(h.offers) > 0: // an offer's cpus are reserved, or no longer
		i := r.IntN(len(h.offers))
		o := &h.offers[i]
		cpus := o.Resources.Named("cpus").Unreserved().NonRevocable()
		if cpus.Empty() {
			break
		}
		reserved := resources.Set{}
		for _, m := range cpus.Resources() {
			m.Reservations = append(m.Reservations, &mesosv1.Resource_ReservationInfo{
				Type: mesosv1.Resource_ReservationInfo_DYNAMIC.Enum(), Role: ptr("ops")})
			reserved = reserved.Add(resources.New(m))
		}
		if err := h.UpdateAllocation(o.FrameworkID, o.AgentID, cpus, reserved); err != nil {
			panic(err)
		}
		o.Resources = o.Resources.Subtract(cpus).Add(reserved)
	case h.withQuota:
		role := pick(r, []string{"eng", "ops", "ml", "*"})
		if r.IntN(4) == 0 {
			h.RemoveQuota(role)
			break
		}
		guarantee := float64(r.IntN(6))
		h.SetQuota(role, resources.Quantities{"cpus": guarantee}, resources.Quantities{"cpus": guarantee + float64(r.IntN(20)), "mem": 5000})
	}
	return made
}

// histories runs a test with fixed seeds and one that is new each time; the name says which.
func histories(t *testing.T, run func(t *testing.T, seed uint64)) {
	seeds := []uint64{1, 2, 3, 4, 5, uint64(time.Now().UnixNano())}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { run(t, seed) })
	}
}

func TestBooksBalanceOverRandomHistories(t *testing.T) {
	histories(t, func(t *testing.T, seed uint64) {
		h := newHistory(seed, seed%2 == 0, true)
		offered := 0
		for i := range 2000 {
			limits := map[*top]vector{}
			for _, tp := range h.tops {
				limits[tp] = append(vector{}, tp.used...)
			}
			made := h.step()
			offered += len(made)
			checkBooks(t, h.Allocator)
			seen := map[string]bool{}
			for _, o := range made {
				key := o.FrameworkID + " " + o.Role + " " + o.AgentID
				if seen[key] {
					t.Fatalf("step %d: two offers to %s in one cycle", i, key)
				}
				seen[key] = true
				ag := h.Allocator.agents[o.AgentID]
				// The revocable total may have shrunk below what is had; nothing else ever does here.
				if !ag.total.Contains(ag.allocated.NonRevocable()) {
					t.Fatalf("step %d: agent %s has %s, and %s is given away", i, ag.id, ag.total, ag.allocated)
				}
			}
			if len(made) == 0 {
				continue
			}
			for _, tp := range h.tops {
				for j := range tp.limit {
					if grown := tp.used.get(j) > limits[tp].get(j); grown && tp.limit[j] != unlimited && tp.consumed(j) > tp.limit[j] {
						t.Fatalf("step %d: role %s grew to %d of resource %d, its limit is %d", i, tp.name, tp.consumed(j), j, tp.limit[j])
					}
				}
			}
		}
		if offered < 200 {
			t.Errorf("%d offers in the whole history, want more for it to mean anything", offered)
		}
		// All that is out comes back: then everything is free.
		for _, o := range h.offers {
			h.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, nil, h.now)
		}
		checkBooks(t, h.Allocator)
		for _, ag := range h.agentList {
			if !ag.free.Equal(ag.total.NonShared()) {
				t.Errorf("agent %s: free is %s, want all of %s", ag.id, ag.free, ag.total)
			}
		}
		for _, id := range h.frameworks {
			h.RemoveFramework(id)
		}
		for _, id := range h.agents {
			h.RemoveAgent(id)
		}
		checkBooks(t, h.Allocator)
		if len(h.roles) != 0 || len(h.Allocator.frameworks) != 0 || len(h.filters) != 0 || len(h.freeIndex) != len(h.clients) {
			t.Errorf("left behind: %d roles, %d frameworks, %d filters, %d clients", len(h.roles), len(h.Allocator.frameworks), len(h.filters), len(h.clients)-len(h.freeIndex))
		}
	})
}

// Looking at dirty agents only must not miss anything: what a cycle leaves, a cycle that
// looks at everything with fresh eyes leaves too.
func TestNothingIsOverlookedByLookingAtDirtyAgentsOnly(t *testing.T) {
	histories(t, func(t *testing.T, seed uint64) {
		h := newHistory(seed, seed%2 == 0, false)
		for i := range 1500 {
			h.step()
			if i%5 != 0 {
				continue
			}
			h.offers = append(h.offers, h.Allocate(h.now)...)
			for _, ag := range h.agentList {
				clear(ag.refusedBase)
				clear(ag.refusedNow)
				h.touch(ag)
			}
			h.resort = true
			if more := h.Allocate(h.now); len(more) > 0 {
				t.Fatalf("step %d: overlooked %s", i, formatOffers(more))
			}
			checkBooks(t, h.Allocator)
		}
	})
}

func TestSameHistoryGivesSameOffers(t *testing.T) {
	histories(t, func(t *testing.T, seed uint64) {
		x, y := newHistory(seed, true, true), newHistory(seed, true, true)
		for i := range 1500 {
			if a, b := formatOffers(x.step()), formatOffers(y.step()); a != b {
				t.Fatalf("step %d:\n%s\n  and\n%s", i, a, b)
			}
			if a, b := x.NextExpiry(), y.NextExpiry(); !a.Equal(b) {
				t.Fatalf("step %d: next expiry %v and %v", i, a, b)
			}
		}
	})
}

func formatOffers(offers []Offer) string {
	out := ""
	for _, o := range offers {
		out += fmt.Sprintf("%s %s %s %s\n", o.FrameworkID, o.Role, o.AgentID, o.Resources)
	}
	return out
}
