package allocator

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// reasons gathers why one client is not offered agents.
type reasons struct {
	*explainer
	client *client
	found  []*reason // that hold whatever the agent
	agents []*reason // that hold for some agents, in the order in which they were found
	now    []*reason // scratch: those of one agent
}

type reason struct{ Reason }

type holder struct {
	framework *framework
	role      string
}

type holding struct {
	agents int
	last   *agent // that was counted
	amount vector
	share  float64
}

// general finds the reasons that hold whatever the agent.
func (g *reasons) general() {
	c, fw := g.client, g.client.framework
	add := func(code Code, until time.Time, format string, args ...any) {
		g.found = append(g.found, &reason{Reason: Reason{Code: code, Text: fmt.Sprintf(format, args...), Until: until}})
	}
	if len(g.explainer.agents) == 0 {
		add(NoAgents, time.Time{}, "there are no agents")
	}
	if g.pausedAt(g.explainer.now) {
		add(WaitingForAgents, g.paused, "the master waits for agents that a former one knew: what seems free may be needed for guarantees")
	}
	switch {
	case fw.id == "" && g.deserted && g.question.Role != "":
		add(NoFrameworks, time.Time{}, "no framework is in role %q", c.role.name)
		return
	case fw.id == "":
		return
	case !fw.known:
		add(UnknownFramework, time.Time{}, "the framework is not known")
		return
	case !fw.active:
		add(Inactive, time.Time{}, "the framework is disconnected or deactivated")
	}
	if !c.subscribed {
		add(NotInRole, time.Time{}, "the framework is not in role %q", c.role.name)
	}
	if c.suppressed {
		add(Suppressed, time.Time{}, "the framework suppressed offers in role %q", c.role.name)
	}
	switch {
	case fw.until.After(g.explainer.now):
		add(Silent, fw.until, "the framework let offers expire %s without an answer", times(fw.silent))
	case fw.trial != nil:
		add(OneAtATime, time.Time{}, "the framework let offers expire without an answer, and is offered one agent at a time until it answers: %s now",
			name(fw.trial))
	}
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// agent finds the reasons that hold for one agent. It is true if there are none, and the agent has
// something for the client when its turn comes.
func (g *reasons) agent(ag *agent) bool {
	g.now = g.now[:0]
	c, fw := g.client, g.client.framework
	if !ag.active {
		g.add(ag, AgentInactive, "")
	}
	if g.whitelist != nil && !g.whitelist[ag.hostname] {
		g.add(ag, NotWhitelisted, "")
	}
	if fw.multiRole && !ag.multiRole || !ag.hierarchical && isNested(c.role.name) {
		g.add(ag, AgentTooOld, "")
	}
	if ag.gpus && !fw.gpus && !g.options.OfferGPUsToAll {
		g.add(ag, NeedsGPUs, "")
	}
	if g.options.Region != "" && ag.region != "" && ag.region != g.options.Region && !fw.regions {
		g.add(ag, OtherRegion, "")
	}
	if !fw.constraints.allow(c.role.name, ag.info) {
		g.add(ag, Constrained, failedText(fw.constraints.failed(c.role.name, ag.info)))
	}
	g.free(ag)
	for _, r := range g.now {
		if len(g.now) == 1 && len(g.found) == 0 {
			r.Only++
		}
	}
	return len(g.now) == 0
}

func failedText(text string, others int) string {
	if others > 0 {
		return fmt.Sprintf("%s, and %d more groups", text, others)
	}
	return text
}

// free finds the reasons that lie in what is free.
func (g *reasons) free(ag *agent) {
	c, fw := g.client, g.client.framework
	if ag.free.Empty() {
		g.add(ag, NothingFree, "")
		return
	}
	mine := ag.free
	if !isPlain(mine) {
		mine = mine.AllocatableTo(c.role.name)
	}
	if mine.Empty() {
		g.add(ag, Reserved, "")
		return
	}
	available := g.usable(fw, mine)
	if available.Empty() {
		if fw.revocable || !mine.NonRevocable().Empty() {
			g.add(ag, OnlyRefined, "")
		} else {
			g.add(ag, OnlyRevocable, "")
		}
		return
	}
	available = g.withShared(ag, c, available)
	if !enough(c.minimum, available) {
		g.add(ag, TooSmall, "")
		return
	}
	part := available
	if h := g.headroom; h != nil {
		part, _, _ = g.chop(h, c.role.top, available)
		if part.NonShared().Empty() || !enough(c.minimum, part) {
			within, _, _ := g.chop(g.limits, c.role.top, available)
			if within.NonShared().Empty() || !enough(c.minimum, within) {
				g.add(ag, QuotaLimit, "")
			} else {
				g.add(ag, Guarantees, "")
			}
			part = available
		}
	}
	if until, yes := g.refused(c, ag, part); yes {
		r := g.add(ag, Filtered, "")
		if r.Until.IsZero() || until.Before(r.Until) {
			r.Until = until
		}
	}
}

// refused says whether filters cover a set, and until when.
func (x *explainer) refused(c *client, ag *agent, s resources.Set) (until time.Time, yes bool) {
	for _, f := range c.filters[ag] {
		if f.until.After(x.now) && f.until.After(until) && f.refused.Contains(s) {
			until, yes = f.until, true
		}
	}
	return until, yes
}

// add counts an agent for a reason. detail tells reasons of one code apart.
func (g *reasons) add(ag *agent, code Code, detail string) *reason {
	var r *reason
	variants := 0
	for _, have := range g.agents {
		if have.Code != code {
			continue
		}
		if variants++; have.Text == detail || variants == maxVariants {
			r = have
			break
		}
	}
	if r == nil {
		r = &reason{Reason: Reason{Code: code, Text: detail}}
		g.agents = append(g.agents, r)
	}
	if r.Agents++; len(r.Examples) < g.question.Examples {
		r.Examples = append(r.Examples, name(ag))
	}
	g.now = append(g.now, r)
	return r
}

func name(ag *agent) string { return ag.hostname + " (" + ag.id + ")" }

// holders returns who has most of the agents of which nothing is free. That is the same for all
// who are asked about.
func (x *explainer) holders() []Holder {
	if x.top != nil {
		return x.top
	}
	all := make(map[holder]*holding)
	for _, ag := range x.agents {
		if !ag.free.Empty() {
			continue
		}
		for fw, s := range ag.allocs { // sums: the order does not matter
			var h *holding
			last := ""
			entries := s.Entries()
			for i := range entries {
				e := &entries[i]
				if to := e.AllocatedTo(); h == nil || to != last {
					key := holder{fw, to}
					if last, h = to, all[key]; h == nil {
						h = &holding{}
						all[key] = h
					}
					if h.last != ag {
						h.last = ag
						h.agents++
					}
				}
				if e.Milli() > 0 {
					*h.amount.at(x.index(e.Name())) += e.Milli()
				}
			}
		}
	}
	x.top = x.most(all)
	return x.top
}

// consumers returns who has most of what a top-level role consumes.
func (x *explainer) consumers(t *top) []Holder {
	all := make(map[holder]*holding)
	for _, c := range x.Allocator.clients {
		if c != nil && c.role.top == t && x.dominant(c.alloc) > 0 {
			all[holder{c.framework, c.role.name}] = &holding{agents: len(c.framework.on), amount: c.alloc}
		}
	}
	return x.most(all)
}

// most returns the largest holders by dominant share.
func (x *explainer) most(all map[holder]*holding) []Holder {
	keys := make([]holder, 0, len(all))
	for k, h := range all {
		h.share = x.dominant(h.amount)
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b holder) int {
		if c := cmp.Compare(all[b].share, all[a].share); c != 0 {
			return c
		}
		return cmp.Or(strings.Compare(a.framework.id, b.framework.id), strings.Compare(a.role, b.role))
	})
	out := make([]Holder, 0, maxHolders)
	for _, k := range keys[:min(len(keys), maxHolders)] {
		h := all[k]
		out = append(out, Holder{FrameworkID: k.framework.id, Role: k.role, Agents: h.agents, Resources: x.quantities(h.amount)})
	}
	return out
}

// sorted puts the reasons in words and in order: those that hold for all agents, then by number.
func (g *reasons) sorted() []Reason {
	slices.SortStableFunc(g.agents, func(a, b *reason) int {
		return cmp.Or(cmp.Compare(b.Agents, a.Agents), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Text, b.Text))
	})
	out := make([]Reason, 0, len(g.found)+len(g.agents))
	for _, r := range g.found {
		r.Agents = len(g.explainer.agents)
		out = append(out, r.Reason)
	}
	for _, r := range g.agents {
		r.Text = g.text(r.Code, r.Text)
		switch r.Code {
		case NothingFree:
			r.Holders = g.holders()
		case QuotaLimit:
			r.Holders = g.consumers(g.client.role.top)
		}
		out = append(out, r.Reason)
	}
	return out
}

// text is the sentence for a reason.
func (g *reasons) text(code Code, detail string) string {
	c := g.client
	switch code {
	case AgentInactive:
		return "the agent is deactivated, draining or disconnected"
	case NotWhitelisted:
		return "the agent is not on the whitelist"
	case AgentTooOld:
		return "the agent does not know roles of this form"
	case NeedsGPUs:
		return "the agent has gpus and the framework did not ask for GPU_RESOURCES"
	case OtherRegion:
		return fmt.Sprintf("the agent is not in region %q and the framework is not REGION_AWARE", g.options.Region)
	case Constrained:
		return "the agent does not meet the framework's offer constraints: " + detail
	case NothingFree:
		return "nothing is free"
	case Reserved:
		return fmt.Sprintf("what is free is reserved for roles other than %q", c.role.name)
	case OnlyRevocable:
		return "what is free is revocable and the framework did not ask for REVOCABLE_RESOURCES"
	case OnlyRefined:
		return "what is free has refined reservations and the framework did not ask for RESERVATION_REFINEMENT"
	case TooSmall:
		return "less is free than the least that is offered, which is " + needsText(c.minimum)
	case Filtered:
		return "the framework refused what is free"
	case QuotaLimit:
		return "the quota limit leaves too little: " + g.limitText(c.role.top)
	case Guarantees:
		return "what is free is kept for guarantees: " + g.lackText(c.role.top)
	}
	return string(code)
}

// limitText says how much of its limits a role consumes.
func (x *explainer) limitText(t *top) string {
	var parts []string
	for _, name := range sortedKeys(x.names) {
		if i := x.names[name]; i < len(t.limit) && t.limit[i] != unlimited {
			parts = append(parts, fmt.Sprintf("%s %s of %s", name, amount(t.consumed(i)), amount(t.limit[i])))
		}
	}
	return fmt.Sprintf("role %q consumes %s", t.name, strings.Join(parts, ", "))
}

// maxLacking bounds the roles named in a sentence.
const maxLacking = 3

// lackText says what other roles lack of their guarantees.
func (x *explainer) lackText(but *top) string {
	var parts []string
	more := 0
	for _, name := range sortedKeys(x.tops) {
		t := x.tops[name]
		if t == but || !t.lacking() {
			continue
		}
		if len(parts) == maxLacking {
			more++
			continue
		}
		var v vector
		for i := range t.guarantee {
			*v.at(i) = t.unmet(i)
		}
		parts = append(parts, fmt.Sprintf("role %q lacks %s", name, x.quantities(v)))
	}
	if more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more roles", more))
	}
	return strings.Join(parts, ", ")
}

func needsText(alternatives []need) string {
	var out []string
	for _, n := range alternatives {
		var parts []string
		for _, x := range n {
			parts = append(parts, x.name+":"+amount(x.milli))
		}
		out = append(out, strings.Join(parts, "; "))
	}
	return strings.Join(out, " or ")
}

// amount writes thousandths.
func amount(milli int64) string {
	return strings.TrimRight(strings.TrimRight(fmt.Sprintf("%d.%03d", milli/1000, milli%1000), "0"), ".")
}

// unboundedLike returns an available vector under which guarantees of others bind nothing.
func unboundedLike(h *headroom) vector {
	v := make(vector, max(len(h.available), len(h.required)))
	for i := range v {
		v[i] = unlimited / 4
	}
	return v
}
