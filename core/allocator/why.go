package allocator

import (
	"slices"
	"time"
)

// Verdict says why a framework is not offered an agent, or that it would be.
type Verdict string

// The verdicts, in the order in which they are looked for.
const (
	UnknownFramework   Verdict = "the framework is not known"
	FrameworkNotActive Verdict = "the framework is not connected or deactivated"
	NotInRole          Verdict = "the framework is not in this role"
	Suppressed         Verdict = "the framework suppressed offers for this role"
	AgentNotActive     Verdict = "the agent is deactivated"
	NotWhitelisted     Verdict = "the agent is not on the whitelist"
	NothingFree        Verdict = "nothing that this framework may have is free"
	AgentTooOld        Verdict = "the agent does not know roles of this form"
	NeedsGPUs          Verdict = "the agent has gpus and the framework did not ask for GPU_RESOURCES"
	RemoteRegion       Verdict = "the agent is in another region and the framework is not REGION_AWARE"
	Constrained        Verdict = "the agent does not meet the framework's offer constraints"
	TooSmall           Verdict = "less is free than the smallest amount offered"
	Filtered           Verdict = "the framework refused these resources"
	QuotaLimit         Verdict = "the quota limit of the role is reached"
	KeptForGuarantees  Verdict = "what is free is kept for guarantees of other roles"
	Offered            Verdict = "it is the framework's to be offered when its turn comes"
)

// A Reason is a verdict and the agents it holds for.
type Reason struct {
	Verdict Verdict
	Agents  int       // how many; 0 where the verdict is about the framework itself
	Until   time.Time // Filtered only: when the first of the filters ends
}

// Why says why a framework is not offered more in a role: the reasons, each with the number
// of agents that it holds for. It changes nothing.
func (a *Allocator) Why(frameworkID, roleName string) []Reason {
	fw := a.frameworks[frameworkID]
	if fw == nil || !fw.known {
		return []Reason{{Verdict: UnknownFramework}}
	}
	if !fw.active {
		return []Reason{{Verdict: FrameworkNotActive}}
	}
	i := slices.IndexFunc(fw.clients, func(c *client) bool { return c.role.name == roleName && c.subscribed })
	if i < 0 {
		return []Reason{{Verdict: NotInRole}}
	}
	cl := fw.clients[i]
	if cl.suppressed {
		return []Reason{{Verdict: Suppressed}}
	}
	var h *headroom
	if a.quotas > 0 {
		h = a.newHeadroom()
	}
	var out []Reason
	for _, ag := range a.agentList {
		verdict, until := a.verdict(h, ag, cl)
		i := slices.IndexFunc(out, func(r Reason) bool { return r.Verdict == verdict })
		if i < 0 {
			i = len(out)
			out = append(out, Reason{Verdict: verdict, Until: until})
		}
		out[i].Agents++
		if until.Before(out[i].Until) {
			out[i].Until = until
		}
	}
	slices.SortStableFunc(out, func(x, y Reason) int { return y.Agents - x.Agents })
	return out
}

func (a *Allocator) verdict(h *headroom, ag *agent, cl *client) (Verdict, time.Time) {
	switch {
	case !ag.active:
		return AgentNotActive, time.Time{}
	case !a.candidate(ag):
		return NotWhitelisted, time.Time{}
	}
	available := ag.free.AllocatableTo(cl.role.name)
	if available.Empty() {
		return NothingFree, time.Time{}
	}
	offerable, verdict := a.offerable(ag, cl, available)
	if verdict == Filtered {
		var until time.Time
		for _, f := range cl.filters[ag] {
			if f.refused.Contains(offerable) && f.until.After(until) {
				until = f.until
			}
		}
		return Filtered, until
	}
	if verdict != Offered || h == nil {
		return verdict, time.Time{}
	}
	part, _ := a.chop(h, cl.role.top, offerable)
	if a.wanted(ag, cl, part) && !part.NonShared().Empty() {
		return Offered, time.Time{}
	}
	part, _ = a.chop(&headroom{available: unboundedLike(h)}, cl.role.top, offerable)
	if a.wanted(ag, cl, part) {
		return KeptForGuarantees, time.Time{}
	}
	return QuotaLimit, time.Time{}
}

// unboundedLike returns an available vector under which guarantees of others bind nothing.
func unboundedLike(h *headroom) vector {
	v := make(vector, max(len(h.available), len(h.required)))
	for i := range v {
		v[i] = unlimited / 4
	}
	return v
}
