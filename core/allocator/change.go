package allocator

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// Change is what would make a task fit on an agent: all of the steps.
type Change struct {
	// Cost orders changes: the sum of what the steps cost, as Step says.
	Cost        int    `json:"cost"`
	Text        string `json:"text"`
	Steps       []Step `json:"steps"`
	FrameworkID string `json:"framework_id,omitempty"`
	Role        string `json:"role"`
	AgentID     string `json:"agent_id"`
	Hostname    string `json:"hostname"`
	// Agents is how many agents the same steps would do for; this one comes first by host name.
	Agents int `json:"agents"`
	// Short is what the agent has too little free of.
	Short resources.Quantities `json:"short,omitempty"`
}

// Step is a part of a Change. Costs say how much of an effort it is for those concerned, in steps
// as large as a refusal that has to run out:
//
//	 1  filter (wait, or REVIVE), wait
//	 2  revive, answer
//	 4  capability, constraint, minimum: the framework says something else of itself
//	 5  connect, subscribe
//	 6  limit: the operator raises it
//	 8  activate, whitelist: the operator admits the agent
//	10  guarantee: the operator lowers one, or more agents come
//	12  unreserve: and up to 20 more, as the part of the need that is reserved for others
//	20  free: something must end; and up to 20 more, as the part of the need that is not free
//	30  upgrade: the agent's software is too old
//	100 larger: no such agent is there; and up to 100 more, as the part of the need that it lacks
type Step struct {
	Code     StepCode  `json:"code"`
	Text     string    `json:"text"`
	Cost     int       `json:"cost"`
	Role     string    `json:"role,omitempty"`     // whose limit or guarantee it is
	Resource string    `json:"resource,omitempty"` // and of what
	Amount   float64   `json:"amount,omitempty"`   // by how much
	Until    time.Time `json:"until,omitzero"`     // when time alone would do
}

// StepCode names a step. Codes do not change; there may be more in time.
type StepCode string

// The steps.
const (
	StepFilter     StepCode = "filter"
	StepWait       StepCode = "wait"
	StepRevive     StepCode = "revive"
	StepAnswer     StepCode = "answer"
	StepCapability StepCode = "capability"
	StepConstraint StepCode = "constraint"
	StepMinimum    StepCode = "minimum"
	StepConnect    StepCode = "connect"
	StepSubscribe  StepCode = "subscribe"
	StepLimit      StepCode = "limit"
	StepActivate   StepCode = "activate"
	StepWhitelist  StepCode = "whitelist"
	StepGuarantee  StepCode = "guarantee"
	StepUnreserve  StepCode = "unreserve"
	StepFree       StepCode = "free"
	StepUpgrade    StepCode = "upgrade"
	StepLarger     StepCode = "larger"
)

var stepCosts = map[StepCode]int{
	StepFilter: 1, StepWait: 1, StepRevive: 2, StepAnswer: 2, StepCapability: 4, StepConstraint: 4, StepMinimum: 4,
	StepConnect: 5, StepSubscribe: 5, StepLimit: 6, StepActivate: 8, StepWhitelist: 8, StepGuarantee: 10,
	StepUnreserve: 12, StepFree: 20, StepUpgrade: 30, StepLarger: 100,
}

// requirement is how much a task needs of something. Ports are counted in thousandths too.
type requirement struct {
	name  string
	milli int64
	ports bool
	these resources.Ranges // these ports, and no others
}

// have is what an agent has of something that is needed.
type have struct {
	free      int64 // for the client, and not revocable
	revocable int64 // free, if the client may have that
	refined   int64 // free, had it the capability
	reserved  int64 // the part of free that is reserved, and does not count against a limit
	mine      int64 // free or used, not reserved for others
	all       int64
}

// change is a candidate for Explanation.Closest, without words.
type change struct {
	client *client
	agent  *agent
	agents int
	cost   int
	steps  []step
}

type step struct {
	code   StepCode
	name   string // of a resource, a capability or a role
	amount int64
	total  int64 // StepLarger: what the agent has
	these  bool  // it is about the ports that are needed by number
	until  time.Time
	cost   int
}

func (x *explainer) prepareNeeds() {
	q := x.question
	for _, name := range q.Need.Names() {
		x.needs = append(x.needs, requirement{name: name, milli: min(milli(q.Need[name]), mostGuaranteed)})
	}
	named := int(min(q.PortRanges.Count(), 1<<20))
	if named > 0 {
		x.needs = append(x.needs, requirement{name: "ports", milli: int64(named) * 1000, ports: true, these: q.PortRanges})
	}
	if q.Ports > 0 {
		x.needs = append(x.needs, requirement{name: "ports", milli: int64(min(q.Ports, 1<<20)+named) * 1000, ports: true})
	}
	if len(x.needs) == 0 {
		return
	}
	x.out.Need = make(resources.Quantities)
	for _, n := range x.needs {
		x.out.Need[n.name] = float64(n.milli) / 1000
	}
	x.largest = make([]int64, len(x.needs))
}

// count appends what an agent has of each thing that is needed, for a client.
func (x *explainer) count(out []have, c *client, ag *agent) []have {
	for range x.needs {
		out = append(out, have{})
	}
	each := func(s resources.Set, use func(*have, *resources.Entry, int64)) {
		entries := s.Entries()
		for i := range entries {
			e := &entries[i]
			if !e.Divisible() {
				continue // volumes and whole disks are not what a task means by disk
			}
			for j := range x.needs {
				switch n := &x.needs[j]; {
				case e.Name() != n.name:
				case n.ports && e.Type() == mesosv1.Value_RANGES:
					ports := e.Ranges()
					if len(n.these) > 0 {
						ports = ports.Intersect(n.these)
					}
					use(&out[j], e, int64(min(ports.Count(), 1<<32))*1000)
				case !n.ports && e.Type() == mesosv1.Value_SCALAR:
					use(&out[j], e, e.Milli())
				}
			}
		}
	}
	own := func(e *resources.Entry) bool {
		to := e.ReservedTo()
		return to == "" || to == c.role.name || resources.IsSubrole(c.role.name, to)
	}
	each(ag.total, func(h *have, e *resources.Entry, amount int64) {
		if e.Revocable() {
			return
		}
		h.all += amount
		if own(e) {
			h.mine += amount
		}
	})
	fw := c.framework
	each(ag.free, func(h *have, e *resources.Entry, amount int64) {
		switch {
		case !own(e):
		case e.Revocable():
			h.revocable += amount
		case e.Refined() && !fw.refinement:
			h.refined += amount
		default:
			h.free += amount
			if e.ReservedTo() != "" {
				h.reserved += amount
			}
		}
	})
	return out
}

// consider looks what keeps the task from one agent, if it were offered to one client. general are
// the reasons that hold for all agents.
func (x *explainer) consider(c *client, ag *agent, general []*reason) {
	s := x.scratch[:0]
	add := func(code StepCode, st step) {
		st.code, st.cost = code, st.cost+stepCosts[code]
		s = append(s, st)
	}
	for _, r := range general {
		switch r.Code {
		case WaitingForAgents:
			add(StepWait, step{until: r.Until})
		case Inactive:
			add(StepConnect, step{})
		case NotInRole:
			add(StepSubscribe, step{name: c.role.name})
		case Suppressed:
			add(StepRevive, step{name: c.role.name})
		case Silent, OneAtATime:
			add(StepAnswer, step{until: r.Until})
		}
	}
	fw := c.framework
	if !ag.active {
		add(StepActivate, step{})
	}
	if x.whitelist != nil && !x.whitelist[ag.hostname] {
		add(StepWhitelist, step{})
	}
	if fw.multiRole && !ag.multiRole || !ag.hierarchical && isNested(c.role.name) {
		add(StepUpgrade, step{})
	}
	if ag.gpus && !fw.gpus && !x.options.OfferGPUsToAll {
		add(StepCapability, step{name: "GPU_RESOURCES"})
	}
	if x.options.Region != "" && ag.region != "" && ag.region != x.options.Region && !fw.regions {
		add(StepCapability, step{name: "REGION_AWARE"})
	}
	if !fw.constraints.allow(c.role.name, ag.info) {
		add(StepConstraint, step{name: failedText(fw.constraints.failed(c.role.name, ag.info))})
	}
	s = x.amounts(c, ag, s)
	x.scratch = s
	if len(s) == 0 {
		if !x.fits[ag] {
			x.fits[ag] = true
			x.out.Fits++
			if len(x.out.FitsOn) < x.question.Examples {
				x.out.FitsOn = append(x.out.FitsOn, name(ag))
			}
		}
		return
	}
	x.keep(c, ag, s)
}

// amounts appends the steps that lie in how much there is.
func (x *explainer) amounts(c *client, ag *agent, s []step) []step {
	x.haves = x.count(x.haves[:0], c, ag)
	refined := false
	for i, n := range x.needs {
		x.largest[i] = max(x.largest[i], x.haves[i].all)
		if h := &x.haves[i]; h.free < n.milli && h.free+h.refined >= n.milli {
			refined = true
		}
	}
	if refined {
		s = append(s, step{code: StepCapability, name: "RESERVATION_REFINEMENT", cost: stepCosts[StepCapability]})
	}
	var revocable, short bool
	for i, n := range x.needs {
		h := &x.haves[i]
		if refined {
			h.free, h.reserved = h.free+h.refined, h.reserved+h.refined
		}
		before := len(s)
		s = x.lacks(c, n, h, s)
		if len(s) == before {
			continue
		}
		// A task takes one kind of a resource, and what is revocable has no limits.
		cost := 0
		for _, st := range s[before:] {
			cost += st.cost
		}
		if h.revocable >= n.milli && (c.framework.revocable || revocable || cost > stepCosts[StepCapability]) {
			s = s[:before]
			revocable = true
			continue
		}
		short = short || h.free < n.milli
	}
	if revocable && !c.framework.revocable {
		s = append(s, step{code: StepCapability, name: "REVOCABLE_RESOURCES", cost: stepCosts[StepCapability]})
	}
	if short {
		return s // once more is free, a refusal of what is free now says nothing
	}
	available := x.withShared(ag, c, x.usable(c.framework, ag.free.AllocatableTo(c.role.name)))
	if x.headroom != nil {
		available, _, _ = x.chop(x.headroom, c.role.top, available)
	}
	if !enough(c.minimum, available) && !x.covered(c.minimum) {
		s = append(s, step{code: StepMinimum, cost: stepCosts[StepMinimum]})
	}
	if until, yes := x.refused(c, ag, available); yes {
		s = append(s, step{code: StepFilter, until: until, cost: stepCosts[StepFilter]})
	}
	return s
}

// lacks appends the steps for one thing that is needed.
func (x *explainer) lacks(c *client, n requirement, h *have, s []step) []step {
	missing := max(0, n.milli-h.free)
	if missing > 0 {
		st := step{name: n.name, amount: missing, these: len(n.these) > 0}
		switch {
		case h.mine >= n.milli:
			st.code, st.cost = StepFree, part(missing, n.milli, 20)
		case h.all >= n.milli:
			st.amount = n.milli - h.mine
			st.code, st.cost = StepUnreserve, part(st.amount, n.milli, 20)
		default:
			st.amount, st.total = n.milli-h.all, h.all
			st.code, st.cost = StepLarger, part(st.amount, n.milli, 100)
		}
		if !slices.ContainsFunc(s, func(o step) bool { return o.code == st.code }) {
			st.cost += stepCosts[st.code] // once for all that is short: it is one task that must end
		}
		s = append(s, st)
	}
	at, known := x.names[n.name]
	if n.ports || x.headroom == nil || !known {
		return s
	}
	// What is not reserved counts against quotas.
	counted := max(0, n.milli-h.reserved)
	t := c.role.top
	if at < len(t.limit) && t.limit[at] != unlimited {
		if over := t.consumed(at) + counted - t.limit[at]; counted > 0 && over > 0 {
			s = append(s, step{code: StepLimit, name: n.name, amount: over, cost: stepCosts[StepLimit]})
		}
	}
	if x.guaranteed.get(at) > 0 {
		surplus := max(0, x.headroom.available.get(at)+missing-x.headroom.required.get(at))
		if over := counted - surplus - t.unmet(at); over > 0 {
			s = append(s, step{code: StepGuarantee, name: n.name, amount: over, cost: stepCosts[StepGuarantee]})
		}
	}
	return s
}

// part is of whole the part that is missing, as a cost of at most most.
func part(missing, whole int64, most int) int {
	return int(float64(most)*float64(missing)/float64(whole) + 0.999)
}

// covered says whether what is needed is enough for one of the alternatives by itself.
func (x *explainer) covered(alternatives []need) bool {
	for _, n := range alternatives {
		all := true
		for _, y := range n {
			i := slices.IndexFunc(x.needs, func(r requirement) bool { return r.name == y.name && !r.ports })
			all = all && i >= 0 && x.needs[i].milli >= y.milli
		}
		if all {
			return true
		}
	}
	return len(alternatives) == 0
}

// keep remembers a candidate if it is among the best. Of equal ones the first is kept, and the
// others are counted.
func (x *explainer) keep(c *client, ag *agent, steps []step) {
	cost := 0
	for i := range steps {
		cost += steps[i].cost
	}
	for _, k := range x.closest {
		if k.cost == cost && k.client == c && slices.Equal(k.steps, steps) {
			k.agents++
			return
		}
	}
	at, _ := slices.BinarySearchFunc(x.closest, cost, func(k *change, cost int) int {
		return cmp.Or(cmp.Compare(k.cost, cost), -1) // after its equals
	})
	if at == maxClosest {
		return
	}
	x.closest = slices.Insert(x.closest, at, &change{client: c, agent: ag, agents: 1, cost: cost, steps: slices.Clone(steps)})
	x.closest = x.closest[:min(len(x.closest), maxClosest)]
}

// finish puts the best changes in words, if the task fits nowhere.
func (x *explainer) finish() {
	if x.out.Fits > 0 || len(x.needs) == 0 {
		return
	}
	for _, k := range x.closest {
		ch := Change{
			Cost: k.cost, FrameworkID: k.client.framework.id, Role: k.client.role.name,
			AgentID: k.agent.id, Hostname: k.agent.hostname, Agents: k.agents,
		}
		var texts []string
		for _, st := range k.steps {
			text := x.stepText(k, st)
			texts = append(texts, text)
			out := Step{Code: st.code, Text: text, Cost: st.cost, Until: st.until}
			switch st.code {
			case StepFree, StepUnreserve, StepLarger:
				if ch.Short == nil {
					ch.Short = make(resources.Quantities)
				}
				ch.Short[st.name] = float64(st.amount) / 1000
				out.Resource, out.Amount = st.name, float64(st.amount)/1000
			case StepLimit, StepGuarantee:
				out.Resource, out.Amount, out.Role = st.name, float64(st.amount)/1000, k.client.role.top.name
			}
			ch.Steps = append(ch.Steps, out)
		}
		ch.Text = strings.Join(texts, "; and ")
		x.out.Closest = append(x.out.Closest, ch)
	}
}

func (x *explainer) stepText(k *change, s step) string {
	t := k.client.role.top
	switch s.code {
	case StepFilter:
		return "wait until the framework's refusal ends, or have it revive offers"
	case StepWait:
		return "wait for the agents that a former master knew"
	case StepRevive:
		return fmt.Sprintf("have the framework revive offers in role %q", s.name)
	case StepAnswer:
		return "have the framework answer its offers"
	case StepCapability:
		return "give the framework the capability " + s.name
	case StepConstraint:
		return "change the framework's offer constraints: " + s.name
	case StepMinimum:
		return "lower the least that the framework wants to be offered, which is " + needsText(k.client.minimum)
	case StepConnect:
		return "connect or activate the framework"
	case StepSubscribe:
		return fmt.Sprintf("subscribe the framework in role %q", s.name)
	case StepLimit:
		i := x.names[s.name]
		return fmt.Sprintf("raise the limit of role %q by %s of %s (it consumes %s of %s)",
			t.name, amount(s.amount), s.name, amount(t.consumed(i)), amount(t.limit[i]))
	case StepActivate:
		return "activate the agent"
	case StepWhitelist:
		return "put the agent on the whitelist"
	case StepGuarantee:
		return fmt.Sprintf("have %s of %s less kept for guarantees (%s)", amount(s.amount), s.name, x.lackText(t))
	case StepUnreserve:
		return fmt.Sprintf("unreserve %s of %s, which the agent has for other roles", amount(s.amount), s.name)
	case StepFree:
		if s.these {
			return fmt.Sprintf("free ports %s on the agent%s", portsText(x.question.PortRanges.Subtract(k.agent.free.Ranges("ports"))), x.mostlyHeld(k.agent, s.name, x.question.PortRanges))
		}
		return fmt.Sprintf("free %s of %s on the agent%s", amount(s.amount), s.name, x.mostlyHeld(k.agent, s.name, nil))
	case StepUpgrade:
		return "bring the agent up to a version that knows roles of this form"
	case StepLarger:
		if s.these {
			has := k.agent.total.Ranges("ports")
			return fmt.Sprintf("have an agent offer ports %s; this one has %s", portsText(x.question.PortRanges.Subtract(has)), portsText(has))
		}
		if most := x.mostOf(s.name); most > s.total {
			return fmt.Sprintf("have an agent with %s more of %s than this one, which has %s; the largest has %s",
				amount(s.amount), s.name, amount(s.total), amount(most))
		}
		if s.total == 0 {
			return fmt.Sprintf("have an agent with %s of %s: none has any", amount(s.amount), s.name)
		}
		return fmt.Sprintf("have an agent with %s more of %s: none has more than %s", amount(s.amount), s.name, amount(s.total))
	}
	return string(s.code)
}

// portsText names ports: 80, 8000-8099.
func portsText(rs resources.Ranges) string {
	if len(rs) == 0 {
		return "none"
	}
	parts := make([]string, 0, len(rs))
	for _, r := range rs {
		part := strconv.FormatUint(r.Begin, 10)
		if r.End > r.Begin {
			part += "-" + strconv.FormatUint(r.End, 10)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", ")
}

// mostOf is how much of something that is needed the largest agent has. Whoever is asked about first looks at all agents.
func (x *explainer) mostOf(name string) int64 {
	i := slices.IndexFunc(x.needs, func(n requirement) bool { return n.name == name && len(n.these) == 0 })
	return x.largest[i]
}

// mostlyHeld says who has most of a resource of an agent; of these ports, if some are given.
func (x *explainer) mostlyHeld(ag *agent, resource string, these resources.Ranges) string {
	var by *framework
	var most int64
	for fw, s := range ag.allocs {
		m := s.Milli(resource)
		if resource == "ports" {
			ports := s.Ranges(resource)
			if len(these) > 0 {
				ports = ports.Intersect(these)
			}
			m = int64(min(ports.Count(), 1<<32)) * 1000
		}
		if m > most || m == most && m > 0 && fw.id < by.id {
			by, most = fw, m
		}
	}
	if by == nil {
		return ""
	}
	return fmt.Sprintf(", where framework %s has %s", by.id, amount(most))
}
