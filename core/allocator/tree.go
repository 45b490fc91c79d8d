package allocator

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// node is a place in the tree of roles where siblings compete. The role "eng/dev" is the
// node "dev" below the node "eng". Frameworks sit at a leaf named "." below their role's
// node, so that a role's own frameworks compete with the roles below it as one of them.
type node struct {
	name   string
	parent *node
	kids   map[string]*node
	leaf   *role // set for leaves only
	weight float64

	alloc vector // everything below
	count uint64 // allocations ever made below: decides between equal shares
	share float64
	// active is the number of frameworks below that can be offered something. Nodes without
	// any are not in their parent's children.
	active   int
	yielding int     // how many of those go behind others; all: the node does too
	children []*node // in the order of their turn

	// For the cycle that is named: how many clients below can have nothing for the rest of it, and
	// whether that is all of them.
	countedIn, hopeless uint64
	without             int

	drawnIn uint64 // cycle that turns is for
	turns   turns[*node]
}

// role is a role that frameworks are in, or have something in.
type role struct {
	name    string
	node    *node // its leaf
	top     *top
	clients []*client // those that can be offered something, in the order of their turn
	listed  bitset    // the same clients by index
	members int       // all clients
	filters int       // of all clients

	drawnIn uint64 // cycle that turns is for
	turns   turns[*client]
}

// client is a framework in one of its roles.
type client struct {
	index      int
	framework  *framework
	role       *role
	subscribed bool // the framework names the role; if not, the client only holds what is left
	suppressed bool
	listed     bool // in role.clients
	imagined   bool // not there, only asked about: see Explain
	minimum    []need
	hopeless   uint64 // cycle in which quotas were found to leave it nothing

	// See refusedAll.
	offered      time.Time // when it was last offered something
	refusals     int       // how often in a row it refused all it was offered, and was slow
	refusedCycle uint64    // cycle in which it last did
	yields       bool      // goes behind the others; in Allocator.yielders
	yieldUntil   time.Time

	alloc   vector
	count   uint64
	share   float64
	filters map[*agent][]*filter
}

// role returns the role of that name, made if need be.
func (a *Allocator) role(name string) *role {
	if r := a.roles[name]; r != nil {
		return r
	}
	r := &role{name: name, top: a.top(name), node: a.node(name).child(".")}
	r.node.leaf = r
	r.top.refs++
	a.roles[name] = r
	return r
}

// node returns the node of a role, made if need be.
func (a *Allocator) node(roleName string) *node {
	n := a.root
	for part := range strings.SplitSeq(roleName, "/") {
		n = n.child(part)
	}
	return n
}

func (n *node) child(name string) *node {
	c := n.kids[name]
	if c == nil {
		c = &node{name: name, parent: n, kids: make(map[string]*node), weight: 1}
		n.kids[name] = c
	}
	return c
}

// prune takes a node away, and those above it, if nothing is known about it any more.
func (n *node) prune() {
	for n.parent != nil && len(n.kids) == 0 && n.leaf == nil && n.weight == 1 {
		delete(n.parent.kids, n.name)
		n = n.parent
	}
}

// dropRole forgets a role without clients. What it had allocated is nothing by then.
func (a *Allocator) dropRole(r *role) {
	if r.members > 0 {
		return
	}
	delete(a.roles, r.name)
	r.node.leaf = nil
	r.node.prune()
	a.release(r.top)
}

// SetWeight sets the weight of a role, in the place it has among its siblings. 1 is the
// default; weights that are not above 0 count as 1.
func (a *Allocator) SetWeight(roleName string, weight float64) {
	if !(weight > 0) {
		weight = 1
	}
	n := a.node(roleName)
	n.weight = weight
	a.placeNode(n)
	n.prune()
}

// dominant returns the largest part that v has of any resource of the cluster.
func (a *Allocator) dominant(v vector) float64 {
	share := 0.0
	for i, x := range v {
		if x > 0 && !a.excluded[i] {
			if total := a.total.get(i); total > 0 {
				share = max(share, float64(x)/float64(total))
			}
		}
	}
	return share
}

func compareClients(x, y *client) int {
	if x.yields != y.yields {
		return after(x.yields)
	}
	if c := cmp.Compare(x.share, y.share); c != 0 {
		return c
	}
	if c := cmp.Compare(x.count, y.count); c != 0 {
		return c
	}
	return cmp.Compare(x.framework.id, y.framework.id)
}

func compareNodes(x, y *node) int {
	if x.yields() != y.yields() {
		return after(x.yields())
	}
	if c := cmp.Compare(x.share, y.share); c != 0 {
		return c
	}
	if c := cmp.Compare(x.count, y.count); c != 0 {
		return c
	}
	return cmp.Compare(x.name, y.name)
}

// yields says whether all frameworks below go behind others.
func (n *node) yields() bool { return n.active > 0 && n.yielding == n.active }

func after(yes bool) int {
	if yes {
		return 1
	}
	return -1
}

// reorder moves item, whose key change alters, to its new place in a sorted list. It is not
// in the list if before says so.
func reorder[T comparable](list []T, item T, compare func(T, T) int, listed bool, change func()) []T {
	if !listed {
		change()
		at, _ := slices.BinarySearchFunc(list, item, compare)
		return slices.Insert(list, at, item)
	}
	from, found := slices.BinarySearchFunc(list, item, compare)
	if !found || list[from] != item {
		from = slices.Index(list, item) // cannot be, unless a key was changed behind the list's back
	}
	change()
	if (from == 0 || compare(list[from-1], item) < 0) && (from == len(list)-1 || compare(item, list[from+1]) < 0) {
		return list
	}
	if from > 0 && compare(item, list[from-1]) < 0 {
		to, _ := slices.BinarySearchFunc(list[:from], item, compare)
		copy(list[to+1:from+1], list[to:from])
		list[to] = item
		return list
	}
	to, _ := slices.BinarySearchFunc(list[from+1:], item, compare)
	copy(list[from:from+to], list[from+1:from+1+to])
	list[from+to] = item
	return list
}

// placeClient computes a client's share and puts it where its turn is.
func (a *Allocator) placeClient(c *client, count uint64) {
	change := func() { c.share, c.count = a.dominant(c.alloc), count }
	if !c.listed {
		change()
		return
	}
	c.role.clients = reorder(c.role.clients, c, compareClients, true, change)
}

// placeNode computes a node's share and puts it where its turn is.
func (a *Allocator) placeNode(n *node) { a.placeNodeCount(n, n.count) }

func (a *Allocator) placeNodeCount(n *node, count uint64) {
	change := func() { n.share, n.count = a.dominant(n.alloc)/n.weight, count }
	if n.parent == nil || n.active == 0 {
		change()
		return
	}
	n.parent.children = reorder(n.parent.children, n, compareNodes, true, change)
}

// list lets a client be offered something, or stops that.
func (a *Allocator) list(c *client, want bool) {
	if c.listed == want {
		return
	}
	c.listed = want
	delta := 1
	if want {
		c.share = a.dominant(c.alloc)
		c.role.clients = reorder(c.role.clients, c, compareClients, false, func() {})
		c.role.listed.set(c.index)
	} else {
		delta = -1
		i := slices.Index(c.role.clients, c)
		c.role.clients = slices.Delete(c.role.clients, i, i+1)
		c.role.listed.clear(c.index)
	}
	yielding := 0
	if c.yields {
		yielding = delta
	}
	for n := c.role.node; n.parent != nil; n = n.parent {
		p, before := n.parent, n.active
		if n.active+delta == 0 {
			i := slices.Index(p.children, n)
			p.children = slices.Delete(p.children, i, i+1)
		}
		change := func() { n.active, n.yielding = n.active+delta, n.yielding+yielding }
		switch {
		case before == 0:
			n.share = a.dominant(n.alloc) / n.weight
			p.children = reorder(p.children, n, compareNodes, false, change)
		case before+delta == 0:
			change()
		default:
			p.children = reorder(p.children, n, compareNodes, true, change)
		}
	}
	a.root.active += delta
}

// yield puts a client behind the others, or back in its place.
func (a *Allocator) yield(c *client, yes bool) {
	change := func() { c.yields = yes }
	if !c.listed {
		change()
		return
	}
	c.role.clients = reorder(c.role.clients, c, compareClients, true, change)
	delta := 1
	if !yes {
		delta = -1
	}
	for n := c.role.node; n.parent != nil; n = n.parent {
		n.parent.children = reorder(n.parent.children, n, compareNodes, true, func() { n.yielding += delta })
	}
}

// sortAll computes every share anew, after the cluster's total has changed.
func (a *Allocator) sortAll(n *node) {
	if n.leaf != nil {
		for _, c := range n.leaf.clients {
			c.share = a.dominant(c.alloc)
		}
		slices.SortFunc(n.leaf.clients, compareClients)
	}
	for _, c := range n.children {
		c.share = a.dominant(c.alloc) / c.weight
		a.sortAll(c)
	}
	slices.SortFunc(n.children, compareNodes)
}

// charge adds to (sign 1) or takes from (sign -1) what a client and everything above it
// have. Places in the lists are not touched: see settle.
func (c *client) charge(v vector, sign int64) {
	c.alloc.add(v, sign)
	for n := c.role.node; n != nil; n = n.parent {
		n.alloc.add(v, sign)
	}
}

// settle puts a client and everything above it in their places after a charge.
func (a *Allocator) settle(c *client, allocations uint64) {
	a.placeClient(c, c.count+allocations)
	for n := c.role.node; n.parent != nil; n = n.parent {
		a.placeNodeCount(n, n.count+allocations)
	}
}
