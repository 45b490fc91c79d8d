// Package allocator decides which role is offered which resources, and when.
//
// Free resources of an agent go, as a whole, to the framework that has the least of its
// dominant resource, in the role that has the least for its weight, at every level of the
// tree of roles. Guarantees are served first, limits are kept, and what guarantees still
// need is left free. The package is pure: it reads no clock and no random source but its
// seed, does no I/O, and its answers depend neither on the order of a map nor on that in which
// agents and frameworks came, so the same calls always give the same offers. Only agents that
// something happened to are looked at, and those of which quotas kept something back if there
// is more room than there was then.
//
// Frameworks that let offers expire, or that keep offers long and refuse them, do not keep others
// waiting: see ExpireOffer and Options.KeepPlace. Explain says why there are no more offers.
//
// It keeps its state in memory only and is rebuilt when a master is elected. It does not know
// frameworks' connections or authorization: the master decides when to allocate (and may Pause
// it until enough agents are back), sends the offers, and tells what became of them. Inverse
// offers and maintenance are the master's. It is not safe for use by several goroutines.
//
// Source: Ghodsi et al., "Dominant Resource Fairness: Fair Allocation of Multiple Resource
// Types", NSDI 2011; the hierarchy and the stages follow Apache Mesos.
package allocator

import (
	"math/rand/v2"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// Options are what an operator may set. The zero value is Mesos's defaults.
type Options struct {
	// MinAllocatable are alternatives: what covers none of them is not offered. Empty means
	// 0.01 cpus or 32 MiB of memory. Frameworks may set their own per role.
	MinAllocatable []resources.Quantities
	// ShareExcluded are names of resources that do not count in the dominant share.
	ShareExcluded []string
	// OfferGPUsToAll offers agents that have gpus to frameworks that did not say they can use them.
	OfferGPUsToAll bool
	// Region is where the masters are. Agents of another region are offered only to frameworks
	// that said they want them. Empty: all agents are local.
	Region string
	// MinFilter is the shortest time for which a refusal holds. 0 means one second, which is
	// Mesos's allocation interval.
	MinFilter time.Duration
	// ReofferDelay is how long a refusal "for 0 seconds" holds, so that a framework that
	// refuses everything for no time does not keep the master busy. 0 means 100 ms.
	ReofferDelay time.Duration
	// RoleSorter and FrameworkSorter say whose turn it is among roles and among the frameworks of
	// a role: "drf" (the default, also if empty) for the one with the least dominant share,
	// "random" for any, with a chance as high as its weight.
	RoleSorter, FrameworkSorter string
	// KeepPlace leaves frameworks that are slow to refuse all they are offered in their place, as
	// Mesos does. Without it they go behind the others for a while.
	KeepPlace bool
	// Seed decides the order in which agents are handed out, and what "random" is.
	Seed uint64
}

// The values of Options.RoleSorter and Options.FrameworkSorter.
const (
	DRF    = "drf"
	Random = "random"
)

const (
	defaultMinFilter    = time.Second
	defaultReofferDelay = 100 * time.Millisecond
)

// Offer is what Allocate proposes: resources of one agent for one framework in one role. The
// resources carry the role in their allocation_info and count as the framework's until they
// come back by RecoverResources.
type Offer struct {
	FrameworkID string
	Role        string
	AgentID     string
	Resources   resources.Set
}

// Allocator holds who has what. See the package comment.
type Allocator struct {
	options Options
	minimum []need // compiled from options.MinAllocatable
	random  *rand.Rand

	names    map[string]int // index of each scalar's name in every vector
	excluded []bool         // by index: left out of shares

	agents    map[string]*agent
	agentList []*agent // same agents, in an order that depends on the history only
	byName    []*agent // same agents by host name; nil until Explain asks for it
	dirty     []*agent // those to look at in the next cycle; may hold removed ones
	all       bool     // look at all agents of which something is free in the next cycle
	fresh     bitset   // clients to be asked anew about all agents
	total     vector   // of all agents
	whitelist map[string]bool

	frameworks map[string]*framework
	clients    []*client // by index; nil where free
	freeIndex  []int

	root   *node
	roles  map[string]*role
	tops   map[string]*top
	resort bool // the total changed: every share is out of date

	quotas     []*top   // top-level roles that have one, in any order
	guaranteed vector   // sum of all guarantees, to know which resources any guarantee names
	spare      vector   // free on all candidates, neither reserved nor revocable
	held       []*agent // with resources that quotas kept back in an earlier cycle, in any order
	surplus    vector   // beyond guarantees when the last cycle ended: see headroom.grown

	filters  filterHeap
	aside    []*framework // offered nothing for a while: see ExpireOffer
	yielders []*client    // behind the others for a while: see refusedAll
	paused   time.Time    // no offers before then
	cycle    uint64
}

// New returns an allocator without agents and frameworks.
func New(o Options) *Allocator {
	if len(o.MinAllocatable) == 0 {
		o.MinAllocatable = []resources.Quantities{{"cpus": 0.01}, {"mem": 32}}
	}
	if o.MinFilter == 0 {
		o.MinFilter = defaultMinFilter
	}
	if o.ReofferDelay == 0 {
		o.ReofferDelay = defaultReofferDelay
	}
	a := &Allocator{
		options:    o,
		random:     rand.New(rand.NewPCG(o.Seed, 0x6d6f73616963)),
		names:      make(map[string]int),
		agents:     make(map[string]*agent),
		frameworks: make(map[string]*framework),
		root:       &node{weight: 1, kids: make(map[string]*node)},
		roles:      make(map[string]*role),
		tops:       make(map[string]*top),
	}
	a.minimum = a.compileNeeds(o.MinAllocatable)
	for _, name := range o.ShareExcluded {
		a.excluded[a.index(name)] = true
	}
	return a
}

// index returns the place of a scalar's name in vectors.
func (a *Allocator) index(name string) int {
	i, ok := a.names[name]
	if !ok {
		i = len(a.names)
		a.names[name] = i
		a.excluded = append(a.excluded, false)
	}
	return i
}

// vector holds thousandths of scalars by Allocator.index. Missing places count as 0.
type vector []int64

func (v *vector) at(i int) *int64 {
	for len(*v) <= i {
		*v = append(*v, 0)
	}
	return &(*v)[i]
}

func (v vector) get(i int) int64 {
	if i < len(v) {
		return v[i]
	}
	return 0
}

// add adds sign times o.
func (v *vector) add(o vector, sign int64) {
	for i, x := range o {
		if x != 0 {
			*v.at(i) += sign * x
		}
	}
}

// scalars adds up a set's scalars by name; every copy of a shared volume counts.
func (a *Allocator) scalars(s resources.Set) vector {
	v := make(vector, 0, 8)
	entries := s.Entries()
	for i := range entries {
		if e := &entries[i]; e.Type() == mesosv1.Value_SCALAR {
			*v.at(a.index(e.Name())) += e.Milli() * int64(e.Copies())
		}
	}
	return v
}

// need is one alternative of what an offer must at least hold.
type need []struct {
	index int
	name  string
	milli int64
}

func (a *Allocator) compileNeeds(alternatives []resources.Quantities) []need {
	out := make([]need, 0, len(alternatives))
	for _, q := range alternatives {
		names := q.Names()
		n := make(need, len(names))
		for i, name := range names {
			n[i].index, n[i].name, n[i].milli = a.index(name), name, milli(q[name])
		}
		out = append(out, n)
	}
	return out
}

// enough says whether a set covers one of the alternatives.
func enough(alternatives []need, s resources.Set) bool {
	for _, n := range alternatives {
		covered := true
		for _, x := range n {
			covered = covered && s.Milli(x.name) >= x.milli
		}
		if covered {
			return true
		}
	}
	return len(alternatives) == 0
}
