package allocator

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// Question asks why there are no more offers: of a framework, of a role, or of one in the other.
type Question struct {
	FrameworkID string
	Role        string
	// Need is what a task would take, Ports how many ports. If either is given, the answer says
	// where the task would fit, and what is closest to it. Without a framework that is for any that
	// might come to the role, which is "*" if none is named, as well as for those that are there.
	Need  resources.Quantities
	Ports int
	// PortRanges are ports that it needs and no others; Ports are besides.
	PortRanges resources.Ranges
	// Examples bounds the agents named for each reason. 0 means 3.
	Examples int
}

// Explanation is the answer to a Question, ready to be shown as JSON. Equal state gives an equal
// answer, in an equal order.
type Explanation struct {
	Agents int       `json:"agents"` // known to the allocator
	Asked  []Subject `json:"asked"`
	// More is how many frameworks are not in Asked, for it would have taken long.
	More   int         `json:"more,omitempty"`
	Quotas []RoleQuota `json:"quotas,omitempty"` // of the top-level roles of who is asked about

	Need resources.Quantities `json:"need,omitempty"` // how many ports among them
	// Fits is on how many agents what is needed would be offered when the turn comes.
	Fits    int      `json:"fits"`
	FitsOn  []string `json:"fits_on,omitempty"` // examples, as in Reason
	Closest []Change `json:"closest,omitempty"` // if it fits nowhere, the smallest changes first
}

// Subject is a framework in a role and why it is not offered more.
type Subject struct {
	FrameworkID string  `json:"framework_id,omitempty"` // empty: any framework
	Role        string  `json:"role"`
	Share       float64 `json:"share"` // its dominant share of the cluster, from 0 to 1
	// Turn is 1 for who is offered the next agent, 2 for the one after, and so on; 0 if it is not
	// in line, or if chance decides.
	Turn int `json:"turn,omitempty"`
	// Offerable is of how many agents it will be offered something when its turn comes.
	Offerable int      `json:"offerable"`
	Examined  bool     `json:"examined"` // agents were looked at; if not, only reasons that hold for all are given
	Reasons   []Reason `json:"reasons"`
}

// Reason is why a framework is not offered some agents.
type Reason struct {
	Code   Code   `json:"code"`
	Text   string `json:"text"`
	Agents int    `json:"agents"` // for how many agents it holds; all of them if it is not about agents
	// Only is for how many agents it is the only reason: so many would it bring to end it.
	Only     int       `json:"only"`
	Examples []string  `json:"examples,omitempty"` // "HOSTNAME (ID)", in order
	Until    time.Time `json:"until,omitzero"`     // when it first ends for one, where a time ends it
	// Holders are those who have most: of the agents of which nothing is free, or of what counts
	// against the limit.
	Holders []Holder `json:"holders,omitempty"`
}

// Holder is who has what others might want.
type Holder struct {
	FrameworkID string               `json:"framework_id"`
	Role        string               `json:"role"`
	Agents      int                  `json:"agents"` // on how many
	Resources   resources.Quantities `json:"resources"`
}

// RoleQuota is the quota of a top-level role and what it consumes.
type RoleQuota struct {
	Role       string               `json:"role"`
	Guarantees resources.Quantities `json:"guarantees,omitempty"`
	Limits     resources.Quantities `json:"limits,omitempty"`
	Consumed   resources.Quantities `json:"consumed,omitempty"`
}

// Code names a reason or a step. Codes do not change; there may be more in time.
type Code string

// Reasons that are about the cluster, a framework or a role.
const (
	NoAgents         Code = "no_agents"
	WaitingForAgents Code = "waiting_for_agents" // Pause
	UnknownFramework Code = "unknown_framework"
	NoFrameworks     Code = "no_frameworks"
	Inactive         Code = "framework_inactive"
	NotInRole        Code = "not_in_role"
	Suppressed       Code = "suppressed"
	Silent           Code = "silent" // ExpireOffer
	OneAtATime       Code = "one_offer_at_a_time"
)

// Reasons that are about agents.
const (
	AgentInactive  Code = "agent_inactive"
	NotWhitelisted Code = "not_whitelisted"
	AgentTooOld    Code = "agent_capability"
	NeedsGPUs      Code = "gpu_capability"
	OtherRegion    Code = "other_region"
	Constrained    Code = "constraint"
	NothingFree    Code = "nothing_free"
	Reserved       Code = "reserved"
	OnlyRevocable  Code = "revocable_capability"
	OnlyRefined    Code = "refinement_capability"
	TooSmall       Code = "too_small"
	Filtered       Code = "filtered"
	QuotaLimit     Code = "quota_limit"
	Guarantees     Code = "guarantees"
)

const (
	defaultExamples = 3
	// maxPairs bounds the agents times frameworks that are looked at for one answer. One framework
	// is always looked at: with 10,000 agents that takes about 10 ms, and a second one 3 ms more.
	maxPairs    = 20_000
	maxAsked    = 200 // frameworks in an answer
	maxHolders  = 5
	maxClosest  = 5
	maxVariants = 16 // of one code: constraints differ from agent to agent
)

// explainer works on one answer.
type explainer struct {
	*Allocator
	now      time.Time
	question Question
	needs    []requirement
	agents   []*agent  // by host name
	headroom *headroom // nil if there are no quotas
	limits   *headroom // one under which only limits bind
	turns    map[*client]int
	deserted bool    // no framework is in the role that is asked about
	largest  []int64 // of each of needs, the most that an agent has

	out     Explanation
	top     []Holder // of agents of which nothing is free; nil until asked
	fits    map[*agent]bool
	closest []*change
	scratch []step
	haves   []have
}

// Explain says why there are no more offers, counted by reason, and where a task would fit or what
// keeps it from fitting. It changes nothing. It looks at each agent once for each framework that it
// looks at, and at a bounded number of those.
func (a *Allocator) Explain(q Question, now time.Time) Explanation {
	if q.Examples <= 0 {
		q.Examples = defaultExamples
	}
	if a.byName == nil {
		a.byName = slices.Clone(a.agentList)
		slices.SortFunc(a.byName, compareNames)
	}
	x := &explainer{Allocator: a, now: now, question: q, agents: a.byName, fits: make(map[*agent]bool)}
	x.out.Agents = len(x.agents)
	if a.resort {
		a.sortAll(a.root)
		a.resort = false
	}
	if len(a.quotas) > 0 {
		x.headroom = a.newHeadroom()
		x.limits = &headroom{available: unboundedLike(x.headroom)}
	}
	x.inTurn()
	x.prepareNeeds()
	clients := x.clients()
	x.quotaOf(clients)
	if over := len(clients) - maxAsked; over > 0 {
		x.out.More, clients = over, clients[:maxAsked]
	}
	x.out.Asked = x.subjects(clients)
	x.finish()
	return x.out
}

// inTurn numbers the clients that are in line.
func (x *explainer) inTurn() {
	x.turns = make(map[*client]int)
	if x.options.RoleSorter == Random || x.options.FrameworkSorter == Random {
		return
	}
	var walk func(*node)
	walk = func(n *node) {
		if n.leaf != nil {
			for _, c := range n.leaf.clients {
				x.turns[c] = len(x.turns) + 1
			}
		}
		for _, k := range n.children {
			walk(k)
		}
	}
	walk(x.root)
}

// clients returns whom the question is about: those in line first, in their turn.
func (x *explainer) clients() []*client {
	q := x.question
	if q.FrameworkID != "" {
		fw := x.frameworks[q.FrameworkID]
		if fw == nil || !fw.known {
			x.out.Asked = nil
			return []*client{x.anyone(&framework{id: q.FrameworkID}, cmp.Or(q.Role, "*"))}
		}
		var out []*client
		for _, c := range fw.clients {
			if c.role.name == q.Role || q.Role == "" && c.subscribed {
				out = append(out, c)
			}
		}
		if len(out) == 0 {
			out = append(out, x.anyone(fw, cmp.Or(q.Role, "*")))
		}
		x.sort(out)
		return out
	}
	var out []*client
	for _, c := range x.Allocator.clients {
		if c != nil && c.subscribed && (c.role.name == q.Role || q.Role == "" && len(x.needs) == 0) {
			out = append(out, c)
		}
	}
	x.deserted = len(out) == 0
	x.sort(out)
	if len(out) == 0 || len(x.needs) > 0 {
		// Those who are there may be gone or want nothing; who asks may be about to start another.
		able := &framework{known: true, active: true, gpus: true, shared: true, refinement: true, regions: true, multiRole: true}
		out = slices.Insert(out, 0, x.anyone(able, cmp.Or(q.Role, "*")))
	}
	return out
}

func (x *explainer) sort(clients []*client) {
	slices.SortFunc(clients, func(a, b *client) int {
		ta, tb := x.turns[a], x.turns[b]
		if (ta == 0) != (tb == 0) {
			return after(ta == 0)
		}
		return cmp.Or(cmp.Compare(ta, tb), cmp.Compare(a.framework.id, b.framework.id), cmp.Compare(a.role.name, b.role.name))
	})
}

// anyone returns a client that is not there: what if this framework were in this role?
func (x *explainer) anyone(fw *framework, roleName string) *client {
	r := x.roles[roleName]
	if r == nil {
		name, _, _ := strings.Cut(roleName, "/")
		t := x.tops[name]
		if t == nil {
			t = &top{name: name}
		}
		r = &role{name: roleName, top: t}
	}
	return &client{framework: fw, role: r, minimum: x.minimum, imagined: true}
}

// quotaOf adds the quotas of the top-level roles of clients.
func (x *explainer) quotaOf(clients []*client) {
	seen := make(map[*top]bool)
	for _, c := range clients {
		if t := c.role.top; t.hasQuota && !seen[t] {
			seen[t] = true
			x.out.Quotas = append(x.out.Quotas, RoleQuota{
				Role: t.name, Guarantees: x.quantities(t.guarantee), Limits: x.quantities(t.limit), Consumed: x.Consumed(t.name),
			})
		}
	}
	slices.SortFunc(x.out.Quotas, func(a, b RoleQuota) int { return cmp.Compare(a.Role, b.Role) })
}

// quantities names what a vector holds. Places without a limit are left out.
func (a *Allocator) quantities(v vector) resources.Quantities {
	q := resources.Quantities{}
	for name, i := range a.names {
		if i < len(v) && v[i] != 0 && v[i] != unlimited {
			q[name] = float64(v[i]) / 1000
		}
	}
	return q
}

// subjects says what holds for each client. Agents are looked at by agents, not by clients: what costs time is to
// fetch them from memory.
func (x *explainer) subjects(clients []*client) []Subject {
	out := make([]Subject, len(clients))
	all := make([]reasons, len(clients))
	var examined []int
	for i, c := range clients {
		examine := i == 0 || (i+1)*len(x.agents) <= maxPairs
		out[i] = Subject{FrameworkID: c.framework.id, Role: c.role.name, Share: x.dominant(c.alloc), Turn: x.turns[c], Examined: examine}
		all[i] = reasons{explainer: x, client: c}
		all[i].general()
		if examine && (c.framework.known || !c.imagined) {
			examined = append(examined, i)
		}
	}
	for _, ag := range x.agents {
		for _, i := range examined {
			g := &all[i]
			if g.agent(ag) && len(g.found) == 0 {
				out[i].Offerable++
			}
			if len(x.needs) > 0 {
				x.consider(g.client, ag, g.found)
			}
		}
	}
	for i := range all {
		out[i].Reasons = all[i].sorted()
	}
	return out
}
