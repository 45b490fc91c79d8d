package allocator

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
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

// maxPopulation keeps long histories from growing without end.
const maxPopulation = 25

func newHistory(seed uint64, withQuota, withShared bool) *history {
	o := Options{Seed: seed, Region: "home"}
	if seed%5 == 0 {
		o.RoleSorter = Random
	}
	if seed%7 == 0 {
		o.FrameworkSorter = Random
	}
	return &history{
		Allocator: New(o), random: rand.New(rand.NewPCG(seed, 1)), now: epoch,
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
		mesosv1.FrameworkInfo_Capability_REGION_AWARE,
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
		if r.IntN(12) == 0 {
			h.ExpireOffer(o.FrameworkID, o.AgentID, back, h.now, 10*time.Second)
			break
		}
		h.RecoverResources(o.FrameworkID, o.AgentID, back, filters, h.now)
	case n < 68 && len(h.frameworks) < maxPopulation:
		h.next++
		id := fmt.Sprintf("f%d", h.next)
		h.frameworks = append(h.frameworks, id)
		h.AddFramework(id, h.info(), nil, r.IntN(10) > 0)
	case n >= 62 && n < 74 && len(h.agents) < maxPopulation || n < 76 && len(h.agents) < 5:
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
		info := &mesosv1.AgentInfo{Hostname: ptr(id)}
		if r.IntN(5) == 0 {
			info.Domain = &mesosv1.DomainInfo{FaultDomain: &mesosv1.DomainInfo_FaultDomain{
				Region: &mesosv1.DomainInfo_FaultDomain_RegionInfo{Name: ptr(pick(r, []string{"home", "moon"}))}}}
		}
		h.AddAgent(id, info, agentCapabilities, total, used)
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
	case n < 95 && r.IntN(3) == 0:
		switch r.IntN(5) {
		case 4: // half of the agents, or all again
			c, err := CompileConstraints(constraints([]*schedulerv1.AttributeConstraint{
				is(pseudo(schedulerv1.AttributeConstraint_Selector_HOSTNAME), "~.*["+pick(r, []string{"02468", "13579", "0-9"})+"]")}))
			if err != nil {
				panic(err)
			}
			h.SetConstraints(framework(), c)
		case 0:
			h.Pause(h.now.Add(time.Duration(r.IntN(5)) * time.Second))
		case 1:
			h.Resume()
		case 2:
			h.Answered(framework(), h.now)
		default:
			if r.IntN(4) > 0 || len(h.agents) == 0 {
				h.SetWhitelist(nil)
			} else {
				h.SetWhitelist(h.agents[:len(h.agents)/2+1])
			}
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

// known says whether a seed is a fixed one. A new one may make a dull history, in which little can
// go wrong: what it must show at least is asked of the fixed ones.
func known(seed uint64) bool { return seed <= 5 }

// histories runs a test with fixed seeds and one that is new each time, or that which
// MOSAIC_HISTORY_SEED names; the name of the test says which.
func histories(t *testing.T, run func(t *testing.T, seed uint64)) {
	for _, seed := range []uint64{1, 2, 3, 4, 5, newSeed(t)} {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { run(t, seed) })
	}
}

func newSeed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("MOSAIC_HISTORY_SEED")
	if text == "" {
		return uint64(time.Now().UnixNano())
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("MOSAIC_HISTORY_SEED: %v", err)
	}
	return seed
}

// live makes steps of a history and checks what must hold after each. How often everything is
// recounted is the caller's: it costs more than the step.
func (h *history) live(t *testing.T, steps, recount int) (offered int) {
	t.Helper()
	consumed := map[*top]vector{}
	for i := range steps {
		clear(consumed)
		for _, tp := range h.tops {
			consumed[tp] = slices.Clone(tp.used)
		}
		made := h.step()
		offered += len(made)
		if i%recount == 0 {
			checkBooks(t, h.Allocator)
			h.checkReserve(t)
			h.checkFilters(t)
		}
		seen := map[string]bool{}
		for _, o := range made {
			key := o.FrameworkID + " " + o.Role + " " + o.AgentID
			if seen[key] {
				t.Fatalf("step %d: two offers to %s in one cycle", i, key)
			}
			seen[key] = true
			h.checkAgent(t, i, o.AgentID)
		}
		if len(made) == 0 {
			continue
		}
		for _, tp := range h.tops {
			for j := range tp.limit {
				if grown := tp.used.get(j) > consumed[tp].get(j); grown && tp.limit[j] != unlimited && tp.consumed(j) > tp.limit[j] {
					t.Fatalf("step %d: role %s grew to %d of resource %d, its limit is %d", i, tp.name, tp.consumed(j), j, tp.limit[j])
				}
			}
		}
		h.checkGuarantees(t, i)
		if i%recount == 0 {
			h.checkNothingLeft(t, i)
		}
	}
	return offered
}

// checkAgent compares what the allocator says is given away of an agent with what was given away.
func (h *history) checkAgent(t *testing.T, step int, id string) {
	t.Helper()
	ag := h.Allocator.agents[id]
	var out resources.Set
	for _, o := range h.offers {
		if o.AgentID == id {
			out = out.Add(o.Resources.NonShared().Unallocate())
		}
	}
	if !out.Equal(ag.allocated) {
		t.Fatalf("step %d: agent %s: %s is out, the allocator thinks %s", step, id, out, ag.allocated)
	}
	// The revocable total may have shrunk below what is had; nothing else ever does here.
	if !ag.total.Contains(out.NonRevocable()) {
		t.Fatalf("step %d: agent %s has %s, and %s is given away", step, id, ag.total, out)
	}
}

// checkGuarantees says whether a guarantee is unmet though what it lacks is free, and someone is
// there to take it, right after an allocation: guarantees are met within one round.
func (h *history) checkGuarantees(t *testing.T, step int) {
	t.Helper()
	for _, tp := range h.tops {
		for i := range tp.guarantee {
			if tp.unmet(i) < 10 { // less is never offered
				continue
			}
			for _, cl := range h.clients {
				if cl == nil || !cl.listed || cl.role.top != tp || cl.framework.trial != nil {
					continue
				}
				for _, ag := range h.agentList {
					if !h.candidate(ag) {
						continue
					}
					free := ag.free.AllocatableTo(cl.role.name)
					if whole, ok := h.offerable(ag, cl, free); ok && h.scalars(countedForQuota(whole)).get(i) >= 10 && tp.room(i) >= 10 &&
						h.wanted(ag, cl, whole.Named("cpus").Unreserved().NonRevocable().Limit(func(*resources.Entry) int64 { return min(tp.unmet(i), tp.room(i)) })) {
						t.Fatalf("step %d: role %s lacks %d of its guarantee, and %s of agent %s is free for framework %s",
							step, tp.name, tp.unmet(i), free, ag.id, cl.framework.id)
					}
				}
			}
		}
	}
}

// checkNothingLeft says whether an allocation has left anything that a framework could have been
// given, by looking at every agent for every framework.
func (h *history) checkNothingLeft(t *testing.T, step int) {
	t.Helper()
	var room *headroom
	if len(h.quotas) > 0 {
		room = h.newHeadroom()
	}
	for _, ag := range h.agentList {
		if !h.candidate(ag) {
			continue
		}
		for _, cl := range h.clients {
			if cl == nil || !cl.listed || cl.framework.trial != nil {
				continue
			}
			s, ok := h.offerable(ag, cl, ag.free.AllocatableTo(cl.role.name))
			if !ok {
				continue
			}
			if s = s.NonShared(); room != nil {
				s, _, _ = h.chop(room, cl.role.top, s)
			}
			if !s.Empty() && h.wanted(ag, cl, s) {
				t.Fatalf("step %d: %s of agent %s was left, though %s would have it in %s", step, s, ag.id, cl.framework.id, cl.role.name)
			}
		}
	}
}

// checkReserve compares what is counted as free with what is.
func (h *history) checkReserve(t *testing.T) {
	t.Helper()
	var want vector
	for _, ag := range h.agentList {
		if h.candidate(ag) {
			want.add(h.scalars(countedForQuota(ag.free)), 1)
		}
	}
	got := h.newHeadroom().available
	for i := range max(len(got), len(want)) {
		if got.get(i) != want.get(i) {
			t.Fatalf("free and not reserved: counted %v, recounted %v", got, want)
		}
	}
}

// checkFilters compares the refusals that are counted with those that there are.
func (h *history) checkFilters(t *testing.T) {
	t.Helper()
	want := make(map[string]int)
	for _, c := range h.clients {
		if c == nil {
			continue
		}
		for _, fs := range c.filters {
			if len(fs) > 0 {
				want[c.role.name] += len(fs)
			}
		}
	}
	if got := h.OfferFilters(); !maps.Equal(got, want) {
		t.Fatalf("OfferFilters() = %v, recounted %v", got, want)
	}
}

func TestBooksBalanceOverRandomHistories(t *testing.T) {
	histories(t, func(t *testing.T, seed uint64) {
		h := newHistory(seed, seed%2 == 0, true)
		if offered := h.live(t, 2000, 1); known(seed) && offered < 200 {
			t.Errorf("%d offers in the whole history, want more for it to mean anything", offered)
		}
		h.end(t)
	})
}

// One long history: MOSAIC_HISTORY_EVENTS says how long, ten thousand events if it is not set.
func TestBooksBalanceOverALongHistory(t *testing.T) {
	events := 10_000
	if text := os.Getenv("MOSAIC_HISTORY_EVENTS"); text != "" {
		var err error
		if events, err = strconv.Atoi(text); err != nil {
			t.Fatalf("MOSAIC_HISTORY_EVENTS: %v", err)
		}
	}
	seed := newSeed(t)
	t.Logf("seed %d, %d events", seed, events)
	h := newHistory(seed, true, true)
	if offered := h.live(t, events, 10); offered < events/100 {
		t.Errorf("seed %d: %d offers in the whole history, want more for it to mean anything", seed, offered)
	}
	h.end(t)
}

// end brings back all that is out: then everything is free, and nothing is left behind.
func (h *history) end(t *testing.T) {
	t.Helper()
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
	if len(h.roles) != 0 || len(h.Allocator.frameworks) != 0 || len(h.filters) != 0 || len(h.freeIndex) != len(h.clients) ||
		len(h.aside) != 0 || len(h.yielders) != 0 {
		t.Errorf("left behind: %d roles, %d frameworks, %d filters, %d clients, %d aside, %d yielding", len(h.roles), len(h.Allocator.frameworks),
			len(h.filters), len(h.clients)-len(h.freeIndex), len(h.aside), len(h.yielders))
	}
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
