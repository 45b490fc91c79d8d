package allocator

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// What is explained is what happens: an agent without a reason is one of which the framework would
// be given something, were it alone; one with a reason is none.
func TestExplanationsAgreeWithWhatIsOffered(t *testing.T) {
	histories(t, func(t *testing.T, seed uint64) {
		h := newHistory(seed, seed%2 == 0, true)
		would, not := 0, 0
		for step := range 1500 {
			h.step()
			if step%25 != 0 {
				continue
			}
			h.expireFilters(h.now)
			if !slices.IsSortedFunc(h.byName, compareNames) || h.byName != nil && len(h.byName) != len(h.agentList) {
				t.Fatalf("step %d: %d agents by name, of %d, or they are not in order", step, len(h.byName), len(h.agentList))
			}
			for _, id := range h.frameworks {
				e := h.Explain(Question{FrameworkID: id, Examples: 1000}, h.now)
				for _, s := range e.Asked {
					want := h.offerableAgents(t, id, s.Role)
					if s.Offerable != len(want) {
						t.Fatalf("step %d: %d agents can be offered to %s in %s (%v), explained are %d: %+v",
							step, len(want), id, s.Role, want, s.Offerable, s.Reasons)
					}
					h.checkReasons(t, step, s, want)
					would, not = would+len(want), not+len(h.agents)-len(want)
				}
			}
		}
		if known(seed) && (would < 200 || not < 200) {
			t.Errorf("%d agents could be offered and %d not, want more for it to mean anything", would, not)
		}
	})
}

// offerableAgents returns the agents of which a framework would be given something.
func (h *history) offerableAgents(t *testing.T, frameworkID, role string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	fw := h.Allocator.frameworks[frameworkID]
	for _, cl := range fw.clients {
		if cl.role.name != role || !cl.subscribed || !fw.active || cl.suppressed || fw.until.After(h.now) || fw.trial != nil || h.pausedAt(h.now) {
			continue
		}
		var room *headroom
		if len(h.quotas) > 0 {
			room = h.newHeadroom()
		}
		for _, ag := range h.agentList {
			if !h.candidate(ag) {
				continue
			}
			s, ok := h.offerable(ag, cl, ag.free.AllocatableTo(role))
			if ok && room != nil {
				s, _, _ = h.chop(room, cl.role.top, s)
				ok = !s.NonShared().Empty() && h.wanted(ag, cl, s)
			}
			if ok {
				out[ag.hostname+" ("+ag.id+")"] = true
			}
		}
	}
	return out
}

// checkReasons looks that every agent that cannot be offered has a reason, and others have none.
func (h *history) checkReasons(t *testing.T, step int, s Subject, want map[string]bool) {
	t.Helper()
	general := false
	named := map[string]int{}
	for _, r := range s.Reasons {
		if len(r.Examples) == 0 {
			general = true
			if r.Agents != len(h.agents) {
				t.Fatalf("step %d: reason %q is about all agents, and counts %d of %d", step, r.Code, r.Agents, len(h.agents))
			}
			continue
		}
		if len(r.Examples) != r.Agents {
			t.Fatalf("step %d: reason %q names %d agents and counts %d", step, r.Code, len(r.Examples), r.Agents)
		}
		for _, name := range r.Examples {
			named[name]++
		}
	}
	only := 0
	for _, n := range named {
		if n == 1 && !general {
			only++
		}
	}
	for _, r := range s.Reasons {
		only -= r.Only
	}
	if only != 0 {
		t.Fatalf("step %d: the agents with one reason are miscounted by %d: %+v", step, only, s.Reasons)
	}
	for _, ag := range h.agentList {
		name := ag.hostname + " (" + ag.id + ")"
		if want[name] == (named[name] > 0 || general) {
			t.Fatalf("step %d: agent %s can be offered: %v; it has %d reasons of its own: %+v", step, name, want[name], named[name], s.Reasons)
		}
	}
}

// Where a task is said to fit, the framework gets an offer that holds it; where it is said that
// steps would make it fit, it gets none that does.
func TestATaskFitsWhereItIsSaidTo(t *testing.T) {
	histories(t, func(t *testing.T, seed uint64) {
		h := newHistory(seed, seed%2 == 0, false)
		fit, not := 0, 0
		for step := range 1200 {
			h.step()
			if step%30 != 0 {
				continue
			}
			h.expireFilters(h.now)
			need := resources.Quantities{"cpus": float64(1 + h.random.IntN(4)), "mem": float64(1 + h.random.IntN(90))}
			for _, id := range h.frameworks {
				for _, cl := range h.Allocator.frameworks[id].clients {
					if !cl.subscribed {
						continue
					}
					e := h.Explain(Question{FrameworkID: id, Role: cl.role.name, Need: need, Examples: 1000}, h.now)
					want := map[string]bool{}
					for name := range h.offerableAgents(t, id, cl.role.name) {
						ag := h.Allocator.agents[strings.TrimSuffix(name[strings.Index(name, "(")+1:], ")")]
						s, _ := h.offerable(ag, cl, ag.free.AllocatableTo(cl.role.name))
						if len(h.quotas) > 0 {
							s, _, _ = h.chop(h.newHeadroom(), cl.role.top, s)
						}
						if holds(s, need) {
							want[name] = true
						}
					}
					got := map[string]bool{}
					for _, name := range e.FitsOn {
						got[name] = true
					}
					if !reflect.DeepEqual(got, want) || e.Fits != len(want) {
						t.Fatalf("step %d: %v for %s in %s fits on %v, want %v; closest %+v\n%s", step, need, id, cl.role.name, got, want, e.Closest, h.picture())
					}
					if (len(e.Closest) > 0) != (e.Fits == 0 && len(h.agents) > 0) {
						t.Fatalf("step %d: fits on %d agents, and %d changes are proposed", step, e.Fits, len(e.Closest))
					}
					if e.Fits > 0 {
						fit++
					} else {
						not++
					}
				}
			}
		}
		if known(seed) && (fit < 20 || not < 20) {
			t.Errorf("%d fitted and %d did not, want more for it to mean anything", fit, not)
		}
	})
}

// holds says whether a task with a need could be made of an offer: of each resource it takes what
// is revocable or what is not.
func holds(s resources.Set, need resources.Quantities) bool {
	for name, amount := range need {
		if s.Revocable().Scalar(name) < amount && s.NonRevocable().Scalar(name) < amount {
			return false
		}
	}
	return true
}

// Doing what is proposed makes the task fit.
func TestTheProposedChangeIsEnough(t *testing.T) {
	for _, tt := range []struct {
		code StepCode
		set  func(a *Allocator)
		fix  func(a *Allocator, s Step, c Change)
	}{
		{StepLimit, func(a *Allocator) {
			a.SetQuota("eng", nil, resources.Quantities{"cpus": 1.5})
		}, func(a *Allocator, s Step, c Change) {
			a.SetQuota(s.Role, nil, resources.Quantities{s.Resource: 1.5 + s.Amount})
		}},
		{StepLimit, func(a *Allocator) { // it is above its limit already
			a.AddAgent("other", &mesosv1.AgentInfo{Hostname: ptr("z")}, agentCapabilities, resources.MustParse("cpus:1"),
				map[string]resources.Set{"f": resources.MustParse("cpus:1").Allocate("eng")})
			a.SetQuota("eng", nil, resources.Quantities{"cpus": 0.25})
			a.DeactivateAgent("other")
		}, func(a *Allocator, s Step, c Change) {
			a.SetQuota(s.Role, nil, resources.Quantities{s.Resource: 0.25 + s.Amount})
		}},
		{StepGuarantee, func(a *Allocator) {
			a.SetQuota("vip", resources.Quantities{"cpus": 3}, nil)
		}, func(a *Allocator, s Step, c Change) {
			a.SetQuota("vip", resources.Quantities{"cpus": 3 - s.Amount}, nil)
		}},
		{StepRevive, func(a *Allocator) { a.Suppress("f") }, func(a *Allocator, _ Step, c Change) { a.Revive(c.FrameworkID, c.Role) }},
		{StepConnect, func(a *Allocator) { a.DeactivateFramework("f") }, func(a *Allocator, _ Step, c Change) { a.ActivateFramework(c.FrameworkID) }},
		{StepActivate, func(a *Allocator) { a.DeactivateAgent("s") }, func(a *Allocator, _ Step, c Change) { a.ActivateAgent(c.AgentID) }},
		{StepWhitelist, func(a *Allocator) { a.SetWhitelist([]string{"x"}) }, func(a *Allocator, _ Step, c Change) { a.SetWhitelist([]string{c.Hostname}) }},
		{StepFilter, func(a *Allocator) {
			o := a.Allocate(epoch)[0]
			a.RecoverResources("f", "s", o.Resources, &mesosv1.Filters{RefuseSeconds: ptr(1000.)}, epoch)
		}, func(a *Allocator, _ Step, c Change) { a.Revive(c.FrameworkID) }},
		{StepAnswer, func(a *Allocator) {
			o := a.Allocate(epoch)[0]
			a.ExpireOffer("f", "s", o.Resources, epoch, 60e9)
		}, func(a *Allocator, _ Step, c Change) { a.Answered(c.FrameworkID, epoch) }},
		{StepWait, func(a *Allocator) { a.Pause(epoch.Add(60e9)) }, func(a *Allocator, _ Step, c Change) { a.Resume() }},
		{StepFree, func(a *Allocator) {
			a.Allocate(epoch)
		}, func(a *Allocator, s Step, c Change) {
			a.RecoverResources("f", c.AgentID, resources.MustParse(fmt.Sprintf("%s:%v", s.Resource, s.Amount)).Allocate("eng"), nil, epoch)
		}},
		{StepLarger, func(a *Allocator) {
			a.UpdateAgentTotal("s", resources.MustParse("cpus:1;mem:100"))
		}, func(a *Allocator, s Step, c Change) {
			a.UpdateAgentTotal(c.AgentID, resources.MustParse(fmt.Sprintf("cpus:%v;mem:100", 1+s.Amount)))
		}},
		{StepUnreserve, func(a *Allocator) {
			total, _ := set("cpus(ops):4;mem:100")
			a.UpdateAgentTotal("s", total)
		}, func(a *Allocator, s Step, c Change) {
			total, _ := set(fmt.Sprintf("cpus(ops):%v;cpus:%v;mem:100", 4-s.Amount, s.Amount))
			a.UpdateAgentTotal(c.AgentID, total)
		}},
	} {
		t.Run(string(tt.code), func(t *testing.T) {
			a := New(Options{})
			a.AddFramework("f", frameworkInfo([]string{"eng"}), nil, true)
			a.AddAgent("s", &mesosv1.AgentInfo{Hostname: ptr("h")}, agentCapabilities, resources.MustParse("cpus:4;mem:100"), nil)
			q := Question{FrameworkID: "f", Role: "eng", Need: resources.Quantities{"cpus": 2}}
			if e := a.Explain(q, epoch); e.Fits != 1 {
				t.Fatalf("before anything happened it fits on %d agents: %+v", e.Fits, e)
			}
			tt.set(a)
			e := a.Explain(q, epoch)
			if e.Fits != 0 || len(e.Closest) == 0 || len(e.Closest[0].Steps) != 1 || e.Closest[0].Steps[0].Code != tt.code {
				t.Fatalf("fits on %d, closest %+v, want one step %q", e.Fits, e.Closest, tt.code)
			}
			tt.fix(a, e.Closest[0].Steps[0], e.Closest[0])
			if e := a.Explain(q, epoch); e.Fits != 1 {
				t.Fatalf("after %q it does not fit: %+v", e.Closest[0].Text, e)
			}
			offers := a.Allocate(epoch)
			if len(offers) != 1 || !holds(offers[0].Resources.Unallocate(), q.Need) {
				t.Errorf("offered %s, want what is needed", formatOffers(offers))
			}
		})
	}
}

// Answers are the same whatever the order of maps, change nothing, and take no names in.
func TestExplainIsDeterministicAndChangesNothing(t *testing.T) {
	x, y := newHistory(11, true, true), newHistory(11, true, true)
	for i := range 800 {
		a, b := formatOffers(x.step()), formatOffers(y.step())
		if a != b {
			t.Fatalf("step %d: explaining changed what is offered:\n%s\nwant\n%s", i, b, a)
		}
		if i%10 != 0 || len(y.frameworks) == 0 {
			continue
		}
		for _, q := range []Question{
			{}, {Role: "eng"}, {Role: "no/such"}, {FrameworkID: "no such"}, {FrameworkID: y.frameworks[0], Need: resources.Quantities{"cpus": 2, "unheard": 1}, Ports: 3},
			{Need: resources.Quantities{"mem": 1e9}}, {Role: "ops", Need: resources.Quantities{"cpus": 1}},
		} {
			names, tops := len(y.names), len(y.tops)
			one, err := json.Marshal(y.Explain(q, y.now))
			if err != nil {
				t.Fatal(err)
			}
			two, _ := json.Marshal(y.Explain(q, y.now))
			if string(one) != string(two) {
				t.Fatalf("step %d: two answers to %+v:\n%s\n%s", i, q, one, two)
			}
			if len(y.names) != names || len(y.tops) != tops {
				t.Fatalf("step %d: asking %+v left names behind", i, q)
			}
		}
	}
}

// A large cluster is looked at for as many frameworks as fit a bounded time.
func TestExplainLooksAtABoundedNumberOfAgents(t *testing.T) {
	a := newCluster(Options{}, 3000, 300)
	e := a.Explain(Question{Role: "role"}, epoch)
	examined := 0
	for i, s := range e.Asked {
		if s.Examined {
			examined++
		}
		if s.Turn != i+1 {
			t.Fatalf("subject %d has turn %d, want those in line in their turn", i, s.Turn)
		}
	}
	if examined != maxPairs/3000 || len(e.Asked) != maxAsked || e.More != 300-maxAsked {
		t.Errorf("looked at %d frameworks of %d, and %d more; want %d of %d and %d", examined, len(e.Asked), e.More, maxPairs/3000, maxAsked, 300-maxAsked)
	}
	if s := e.Asked[0]; s.Offerable != 3000 || len(s.Reasons) != 0 {
		t.Errorf("the first can be offered %d agents, want all: %+v", s.Offerable, s.Reasons)
	}
}

func TestPortsByNumberAreExplainedByNumber(t *testing.T) {
	a := New(Options{})
	a.AddFramework("f", frameworkInfo([]string{"eng"}), nil, true)
	a.AddFramework("other", frameworkInfo([]string{"ops"}), nil, true)
	a.AddAgent("s", &mesosv1.AgentInfo{Hostname: ptr("h")}, agentCapabilities, resources.MustParse("cpus:4;mem:100;ports:[31000-31002]"), nil)
	ask := func(first, last uint64, others int) Explanation {
		return a.Explain(Question{FrameworkID: "f", Role: "eng", PortRanges: resources.NewRanges(resources.Range{Begin: first, End: last}), Ports: others}, epoch)
	}
	if e := ask(31001, 31002, 1); e.Fits != 1 {
		t.Errorf("two ports by number and one more of three: %+v, want it to fit", e)
	}
	if e := ask(31001, 31002, 2); e.Fits != 0 {
		t.Errorf("two ports by number and two more of three: %+v, want it not to fit", e)
	}
	e := ask(31002, 31003, 0)
	if len(e.Closest) != 1 || e.Closest[0].Text != "have an agent offer ports 31003; this one has 31000-31002" {
		t.Errorf("a port that no agent has: %+v", e.Closest)
	}
	o := a.Allocate(epoch)[0]
	free := resources.MustParse("cpus:4;mem:100;ports:[31000-31001]")
	a.RecoverResources(o.FrameworkID, "s", free.Allocate(o.Role), nil, epoch)
	e = ask(31001, 31002, 0)
	if want := "free ports 31002 on the agent, where framework " + o.FrameworkID + " has 1"; len(e.Closest) == 0 || e.Closest[0].Text != want {
		t.Errorf("a port that is taken: %+v, want %q", e.Closest, want)
	}
}
