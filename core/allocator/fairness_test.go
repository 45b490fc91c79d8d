package allocator

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// slots adds agents of one cpu, each of them room for one task.
func slots(a *Allocator, from, to int) {
	for i := from; i < to; i++ {
		a.AddAgent(fmt.Sprintf("s%04d", i), &mesosv1.AgentInfo{Hostname: ptr(fmt.Sprintf("h%04d", i))}, agentCapabilities,
			resources.MustParse("cpus:1;mem:100"), nil)
	}
}

// Ten frameworks in a tree of roles with weights 1, 2 and 3, all of which would take everything.
// Tasks end at random; what they leave goes to whose turn it is.
func TestWeightsAreKeptUnderFullLoad(t *testing.T) {
	const agents = 1200
	weights := map[string]float64{"a": 1, "b": 2, "c": 3, "c/x": 1, "c/y": 3}
	// Of six parts: a one, shared by three; b two, by four; c three, of which x has one quarter and y
	// three, by two frameworks.
	want := map[string]float64{
		"a1": 1. / 18, "a2": 1. / 18, "a3": 1. / 18, "b1": 1. / 12, "b2": 1. / 12, "b3": 1. / 12, "b4": 1. / 12,
		"x1": 1. / 8, "y1": 3. / 16, "y2": 3. / 16,
	}
	role := map[byte]string{'a': "a", 'b': "b", 'x': "c/x", 'y': "c/y"}
	a := New(Options{Seed: 1})
	for name, w := range weights {
		a.SetWeight(name, w)
	}
	for id := range want {
		a.AddFramework(id, frameworkInfo([]string{role[id[0]]}), nil, true)
	}
	slots(a, 0, agents)
	running := a.Allocate(epoch)
	check := func(when string) {
		t.Helper()
		got := map[string]int{}
		for _, o := range running {
			got[o.FrameworkID]++
		}
		for id, w := range want {
			if share := float64(got[id]) / agents; math.Abs(share/w-1) > 0.05 {
				t.Errorf("%s: %s has %.4f of the cluster, want %.4f within 5 %%", when, id, share, w)
			}
		}
	}
	check("at first")
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		for range 60 {
			i := r.IntN(len(running))
			o := running[i]
			running = slices.Delete(running, i, i+1)
			a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, nil, epoch)
		}
		running = append(running, a.Allocate(epoch)...)
		if len(running) != agents {
			t.Fatalf("round %d: %d of %d agents in use", round, len(running), agents)
		}
		if round%20 == 19 {
			check(fmt.Sprintf("after round %d", round))
		}
	}
	// A weight that changes is followed as tasks end.
	a.SetWeight("a", 4) // of nine parts now: four, two, three
	for i := range want {
		want[i] *= 6. / 9
		if i[0] == 'a' {
			want[i] *= 4
		}
	}
	for range 200 {
		for range 60 {
			i := r.IntN(len(running))
			o := running[i]
			running = slices.Delete(running, i, i+1)
			a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, nil, epoch)
		}
		running = append(running, a.Allocate(epoch)...)
	}
	check("after the weight changed")
}

func TestAFrameworkThatNeverAnswersDelaysOthersNoLongerThanTheLease(t *testing.T) {
	const lease = time.Minute
	a := New(Options{Seed: 3})
	for i := range 10 {
		a.AddFramework(fmt.Sprintf("f%d", i), frameworkInfo([]string{"eng"}), nil, true)
	}
	slots(a, 0, 100)
	const mute = "f0"
	now := epoch
	out := map[string]Offer{} // of mute, by agent
	has := 0
	allocate := func() {
		for _, o := range a.Allocate(now) {
			if o.FrameworkID == mute {
				out[o.AgentID] = o
				continue
			}
			has++ // launched, and runs
			a.RecoverResources(o.FrameworkID, o.AgentID, resources.Set{}, &mesosv1.Filters{}, now)
		}
	}
	expire := func() {
		for _, id := range sortedKeys(out) {
			a.ExpireOffer(mute, id, out[id].Resources, now, lease)
		}
		clear(out)
	}
	allocate()
	if len(out) != 10 || has != 90 {
		t.Fatalf("at first %d are with the mute and %d with others, want its tenth", len(out), has)
	}
	now = now.Add(lease)
	expire()
	allocate()
	if len(out) != 0 || has != 100 {
		t.Errorf("after the lease and one allocation %d are with the mute and %d with others, want none and all", len(out), has)
	}

	// Over a long time of coming and going it is in the way of one agent at a time, for a small part
	// of the time.
	var busy, whole time.Duration
	until := time.Time{}
	for range 3600 {
		now = now.Add(time.Second)
		whole += time.Second
		if len(out) > 0 {
			busy += time.Second
			if !now.Before(until) {
				expire()
			}
		}
		ag := a.agents[fmt.Sprintf("s%04d", int(whole/time.Second)%100)]
		for _, fw := range sortedFrameworks(ag.allocs) {
			if fw.id != mute {
				has--
				a.RecoverResources(fw.id, ag.id, ag.allocs[fw], nil, now)
			}
		}
		before := len(out)
		allocate()
		if len(out) > 1 {
			t.Fatalf("after %v the mute keeps %d agents from others, want one at most", whole, len(out))
		}
		if len(out) > before {
			until = now.Add(lease)
		}
		if len(out)+has != 100 {
			t.Fatalf("after %v %d agents are with the mute and %d with others, want all", whole, len(out), has)
		}
	}
	if busy > whole/8 {
		t.Errorf("for %v of %v an agent was with the mute, want less than an eighth", busy, whole)
	}
}

func sortedFrameworks(m map[*framework]resources.Set) []*framework {
	out := make([]*framework, 0, len(m))
	for fw := range m {
		out = append(out, fw)
	}
	slices.SortFunc(out, func(x, y *framework) int { return strings.Compare(x.id, y.id) })
	return out
}

// A slow framework that refuses everything, and holds nothing, would have every agent first. It
// is in the way a few times only; then those who want something go before it.
func TestARefuserIsSeldomInTheWayOfOthers(t *testing.T) {
	const answers, runs = 1100 * time.Millisecond, time.Second
	wasted := func(keep bool) (part float64) {
		a := New(Options{Seed: 4, KeepPlace: keep})
		a.AddFramework("refuser", frameworkInfo([]string{"a"}), nil, true)
		a.AddFramework("worker", frameworkInfo([]string{"b"}), nil, true)
		a.AddAgent("base", &mesosv1.AgentInfo{Hostname: ptr("h")}, agentCapabilities, resources.MustParse("cpus:1;mem:100"),
			map[string]resources.Set{"worker": resources.MustParse("cpus:1;mem:100").Allocate("b")})
		slots(a, 0, 1)
		now, with := epoch, time.Duration(0)
		for range 1000 {
			offers := a.Allocate(now)
			if len(offers) == 0 {
				now = now.Add(10 * time.Millisecond)
				continue
			}
			o := offers[0]
			if o.FrameworkID == "refuser" {
				now, with = now.Add(answers), with+answers
				a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, &mesosv1.Filters{RefuseSeconds: ptr(0.)}, now)
				continue
			}
			a.RecoverResources(o.FrameworkID, o.AgentID, resources.Set{}, &mesosv1.Filters{}, now) // all of it is used
			now = now.Add(runs)
			a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, nil, now)
		}
		return float64(with) / float64(now.Sub(epoch))
	}
	if part := wasted(false); part > 0.1 {
		t.Errorf("the refuser had the agent for %.2f of the time, want a tenth at most", part)
	}
	if part := wasted(true); part < 0.4 {
		t.Errorf("the refuser had the agent for %.2f of the time though it keeps its place, want nearly half, or this test shows nothing", part)
	}
}

// Each of the random sorters gives all the same chance, or as much as the weights say, and draws
// the same for the same seed.
func TestRandomSortersKeepToTheWeights(t *testing.T) {
	deal := func(o Options) map[string]int {
		a := New(o)
		a.SetWeight("b", 2)
		a.SetWeight("c", 3)
		for _, id := range []string{"a1", "a2", "b1", "c1", "c2", "c3"} {
			a.AddFramework(id, frameworkInfo([]string{id[:1]}), nil, true)
		}
		slots(a, 0, 6000)
		got := map[string]int{}
		for _, o := range a.Allocate(epoch) {
			got[o.FrameworkID]++
		}
		return got
	}
	for _, o := range []Options{
		{RoleSorter: Random, FrameworkSorter: Random, Seed: 1}, {RoleSorter: Random, Seed: 2}, {FrameworkSorter: Random, Seed: 3},
	} {
		got := deal(o)
		for id, want := range map[string]float64{"a1": 500, "a2": 500, "b1": 2000, "c1": 1000, "c2": 1000, "c3": 1000} {
			if math.Abs(float64(got[id])/want-1) > 0.1 {
				t.Errorf("sorters %q and %q: %s got %d of 6000 agents, want about %v", o.RoleSorter, o.FrameworkSorter, id, got[id], want)
			}
		}
		if again := deal(o); !reflect.DeepEqual(got, again) {
			t.Errorf("sorters %q and %q: %v, then %v with the same seed", o.RoleSorter, o.FrameworkSorter, got, again)
		}
		o.Seed += 100
		if other := deal(o); reflect.DeepEqual(got, other) {
			t.Errorf("sorters %q and %q: %v with two seeds", o.RoleSorter, o.FrameworkSorter, got)
		}
	}
	// Weights far apart are drawn too, though almost all draws are thrown away.
	tn := turns[int]{list: []int{0, 1, 2}, weight: func(i int) float64 { return []float64{1e-9, 1e-9, 2e-9}[i] }, most: 1}
	counts := [3]int{}
	random := rand.New(rand.NewPCG(1, 1))
	for range 4000 {
		counts[tn.list[tn.draw(random)]]++
	}
	if counts[0] < 850 || counts[1] < 850 || counts[2] < 1800 {
		t.Errorf("drawn %v of 4000 with weights 1, 1, 2", counts)
	}
}

// What is offered does not depend on the order in which agents, frameworks, weights and quotas
// became known.
func TestOffersDoNotDependOnTheOrderOfArrival(t *testing.T) {
	deal := func(shuffle *rand.Rand, o Options) string {
		a := New(o)
		var calls []func()
		for i := range 12 {
			role := []string{"eng", "eng/dev", "ops", "ml"}[i%4]
			calls = append(calls, func() { a.AddFramework(fmt.Sprintf("f%02d", i), frameworkInfo([]string{role}), nil, true) })
		}
		for i := range 60 {
			calls = append(calls, func() {
				total, err := set(historySets[i%3])
				if err != nil {
					panic(err)
				}
				a.AddAgent(fmt.Sprintf("s%02d", i), &mesosv1.AgentInfo{Hostname: ptr("h")}, agentCapabilities, total, nil)
			})
		}
		calls = append(calls,
			func() { a.SetWeight("ops", 2) },
			func() { a.SetQuota("ml", resources.Quantities{"cpus": 9}, resources.Quantities{"cpus": 30}) },
			func() { a.SetQuota("eng", nil, resources.Quantities{"mem": 20000, "cpus": 100}) })
		if shuffle != nil {
			shuffle.Shuffle(len(calls), func(i, j int) { calls[i], calls[j] = calls[j], calls[i] })
		}
		for _, call := range calls {
			call()
		}
		first := a.Allocate(epoch)
		for i, o := range first {
			if i%3 == 0 {
				a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, nil, epoch)
			}
		}
		return formatOffers(first) + "\n" + formatOffers(a.Allocate(epoch))
	}
	for _, o := range []Options{{Seed: 5}, {Seed: 6, RoleSorter: Random, FrameworkSorter: Random}} {
		want := deal(nil, o)
		for i := range 20 {
			if got := deal(rand.New(rand.NewPCG(uint64(i), 9)), o); got != want {
				t.Fatalf("seed %d, order %d:\n%s\nwant\n%s", o.Seed, i, got, want)
			}
		}
	}
}

// What is offered and comes back leaves everything as it was.
func TestAllocateAndRecoverCancelOut(t *testing.T) {
	histories(t, func(t *testing.T, seed uint64) {
		h := newHistory(seed, true, true)
		rounds := 0
		for range 600 {
			h.step()
			before := h.picture()
			offers := h.Allocate(h.now)
			if len(offers) == 0 {
				continue
			}
			rounds++
			for _, i := range h.random.Perm(len(offers)) {
				o := offers[i]
				h.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, nil, h.now)
			}
			if after := h.picture(); after != before {
				t.Fatalf("before:\n%s\nafter:\n%s", before, after)
			}
		}
		if known(seed) && rounds < 50 {
			t.Errorf("%d rounds with offers, want more for it to mean anything", rounds)
		}
	})
}

// picture is all that counts of who has what.
func (h *history) picture() string {
	var b strings.Builder
	for _, id := range sortedKeys(h.Allocator.agents) {
		ag := h.Allocator.agents[id]
		fmt.Fprintf(&b, "%s: %v free, %d frameworks\n", id, ag.free.Quantities(), len(ag.allocs))
	}
	for _, name := range sortedKeys(h.tops) {
		fmt.Fprintf(&b, "%s: %v\n", name, h.Consumed(name))
	}
	for _, c := range h.clients {
		if c != nil && (c.subscribed || h.dominant(c.alloc) > 0) {
			fmt.Fprintf(&b, "%s in %s: %v of %v\n", c.framework.id, c.role.name, h.quantities(c.alloc), h.quantities(c.role.node.alloc))
		}
	}
	return b.String()
}

// Batch work fills the cluster, and a service still comes to its guarantee: at once as far as it is
// kept free, and as tasks end for what was guaranteed later.
func TestAServiceScalesToItsGuaranteeAmongBatchWork(t *testing.T) {
	a := New(Options{Seed: 8})
	a.SetQuota("service", resources.Quantities{"cpus": 20}, nil)
	for i := range 9 {
		a.AddFramework(fmt.Sprintf("batch%d", i), frameworkInfo([]string{"batch"}), nil, true)
	}
	slots(a, 0, 100)
	running := a.Allocate(epoch)
	if got := a.Consumed("batch")["cpus"]; got != 80 {
		t.Fatalf("batch work got %v cpus of 100, want all but the guaranteed 20", got)
	}
	a.AddFramework("web", frameworkInfo([]string{"service"}), nil, true)
	a.Allocate(epoch)
	if got := a.Consumed("service")["cpus"]; got != 20 {
		t.Errorf("the service got %v cpus in one allocation, want 20", got)
	}
	// The guarantee grows to 50: as the tasks of others end the service has what they leave.
	a.SetQuota("service", resources.Quantities{"cpus": 50}, resources.Quantities{"cpus": 50})
	for i, o := range running[:30] {
		a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, nil, epoch)
		a.Allocate(epoch)
		if got := a.Consumed("service")["cpus"]; got != float64(21+i) {
			t.Fatalf("after %d tasks ended the service has %v cpus, want %d", i+1, got, 21+i)
		}
	}
	o := running[30]
	a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, nil, epoch)
	a.Allocate(epoch)
	if got := a.Consumed("service")["cpus"]; got != 50 {
		t.Errorf("the service has %v cpus, its limit is 50", got)
	}
}

func TestNothingIsOfferedDuringAPause(t *testing.T) {
	a := New(Options{})
	a.AddFramework("f", frameworkInfo([]string{"eng"}), nil, true)
	slots(a, 0, 2)
	a.Pause(epoch.Add(10 * time.Minute))
	if got := a.Allocate(epoch); got != nil {
		t.Errorf("paused: %s", formatOffers(got))
	}
	if got := a.NextExpiry(); !got.Equal(epoch.Add(10 * time.Minute)) {
		t.Errorf("NextExpiry = %v, want the end of the pause", got)
	}
	a.Resume()
	if got := a.Allocate(epoch); len(got) != 2 {
		t.Errorf("resumed: %d offers, want 2", len(got))
	}
	slots(a, 2, 3)
	a.Pause(epoch.Add(time.Minute))
	if got := a.Allocate(epoch.Add(time.Minute)); len(got) != 1 {
		t.Errorf("after the pause: %d offers, want 1", len(got))
	}
	if got := a.NextExpiry(); !got.IsZero() {
		t.Errorf("NextExpiry = %v after the pause, want none", got)
	}
}

// A cycle looks at the agents that something happened to, also where quotas keep something back of
// others.
func TestOnlyAgentsThatChangedAreLookedAt(t *testing.T) {
	for _, quota := range []bool{false, true} {
		a := New(Options{Seed: 9})
		if quota {
			a.SetQuota("kept", resources.Quantities{"cpus": 300}, nil)
			a.SetQuota("eng", nil, resources.Quantities{"cpus": 900})
		}
		for i := range 3 {
			a.AddFramework(fmt.Sprintf("f%d", i), frameworkInfo([]string{"eng"}), nil, true)
		}
		slots(a, 0, 1000)
		offers := a.Allocate(epoch)
		looked := func() (n int) {
			for _, ag := range a.agentList {
				if ag.looked == a.cycle {
					n++
				}
			}
			return n
		}
		if n := looked(); n != 1000 {
			t.Fatalf("quota %v: the first cycle looked at %d agents, want all", quota, n)
		}
		for i := range 10 {
			o := offers[i]
			a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, nil, epoch)
			if n := len(a.Allocate(epoch)); n != 1 {
				t.Fatalf("quota %v: %d offers, want 1", quota, n)
			}
			if n := looked(); n != 1 {
				t.Errorf("quota %v: one agent changed, and %d were looked at", quota, n)
			}
		}
		// When there is more room, as much as there is room for is looked at.
		if !quota {
			continue
		}
		a.DeactivateFramework("f0")
		a.DeactivateFramework("f1")
		o := offers[slices.IndexFunc(offers, func(o Offer) bool { return o.FrameworkID == "f0" })]
		a.DeactivateAgent(o.AgentID)
		a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, nil, epoch)
		a.Allocate(epoch)
		if n := looked(); n > 0 {
			t.Errorf("a guarantee has no more room than before, and %d agents were looked at", n)
		}
		a.SetQuota("kept", resources.Quantities{"cpus": 250}, nil)
		if n := len(a.Allocate(epoch)); n == 0 {
			t.Error("nothing was offered of what is no longer guaranteed")
		}
	}
}

// Guarantees beyond reason are kept as far as there is anything, and none wraps around.
func TestEndlessGuaranteesKeepEverything(t *testing.T) {
	a := New(Options{})
	for i := range 100 {
		a.SetQuota(fmt.Sprintf("r%d", i), resources.Quantities{"cpus": 1e300}, resources.Quantities{"cpus": math.Inf(1)})
	}
	a.AddFramework("f", frameworkInfo([]string{"other"}), nil, true)
	slots(a, 0, 3)
	for _, o := range a.Allocate(epoch) {
		if o.Resources.Scalar("cpus") > 0 {
			t.Errorf("offered %s", o.Resources)
		}
	}
	a.AddFramework("g", frameworkInfo([]string{"r7"}), nil, true)
	a.Allocate(epoch)
	if got := a.Consumed("r7")["cpus"]; got != 3 {
		t.Errorf("the guaranteed role got %v cpus, want 3", got)
	}
	if e := a.Explain(Question{FrameworkID: "f", Need: resources.Quantities{"cpus": math.Inf(1)}}, epoch); e.Fits != 0 || len(e.Closest) == 0 {
		t.Errorf("an endless need fits on %d agents, %d changes", e.Fits, len(e.Closest))
	}
}
