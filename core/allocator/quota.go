package allocator

import (
	"math"
	"slices"
	"strings"

	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// unlimited stands for no limit.
const unlimited = math.MaxInt64

// mostGuaranteed bounds a guarantee, in thousandths, so that thousands of them can be added up:
// more than any cluster has.
const mostGuaranteed = 1 << 48

// top is a top-level role, the level at which quotas are.
type top struct {
	name      string
	guarantee vector
	limit     vector // unlimited where there is none; missing places too
	hasQuota  bool
	reserved  vector // reserved on agents for the role and those below, in use or not
	used      vector // had by the role and those below: neither reserved nor revocable
	refs      int    // roles, reservations on agents and quota that are the reason to know it
	rooms     vector // what room was when the last cycle ended: see headroom.grown
}

// top returns the top-level role that a role lies below, made if need be. Who keeps it counts in
// refs and calls release in the end.
func (a *Allocator) top(roleName string) *top {
	name, _, _ := strings.Cut(roleName, "/")
	t := a.tops[name]
	if t == nil {
		t = &top{name: name}
		a.tops[name] = t
	}
	return t
}

// release forgets a top-level role that nothing is known about any more.
func (a *Allocator) release(t *top) {
	if t.refs--; t.refs == 0 {
		delete(a.tops, t.name)
	}
}

// consumed is what counts against a quota: reservations, used or not, and what else is had.
func (t *top) consumed(i int) int64 { return t.reserved.get(i) + t.used.get(i) }

// unmet is how much of the guarantee is not consumed.
func (t *top) unmet(i int) int64 { return max(0, t.guarantee.get(i)-t.consumed(i)) }

// room is how much more the limit allows.
func (t *top) room(i int) int64 {
	if i >= len(t.limit) || t.limit[i] == unlimited {
		return unlimited
	}
	return max(0, t.limit[i]-t.consumed(i))
}

// SetQuota gives a top-level role its guarantees and limits, replacing earlier ones. What is
// not named is not guaranteed and not limited. Whether the cluster can keep the guarantees
// is for the master to check.
func (a *Allocator) SetQuota(roleName string, guarantees, limits resources.Quantities) {
	a.RemoveQuota(roleName)
	t := a.top(roleName)
	for name, v := range guarantees {
		*t.guarantee.at(a.index(name)) = min(milli(v), mostGuaranteed)
	}
	for name, v := range limits {
		i := a.index(name)
		for len(t.limit) <= i {
			t.limit = append(t.limit, unlimited)
		}
		t.limit[i] = milli(v)
	}
	t.hasQuota = true
	t.refs++
	a.quotas = append(a.quotas, t)
	a.guaranteed.add(t.guarantee, 1)
	a.all = true
}

// RemoveQuota takes a role's quota away.
func (a *Allocator) RemoveQuota(roleName string) {
	t := a.tops[roleName]
	if t == nil || !t.hasQuota {
		return
	}
	a.guaranteed.add(t.guarantee, -1)
	t.guarantee, t.limit, t.rooms, t.hasQuota = nil, nil, nil, false
	a.quotas = slices.DeleteFunc(a.quotas, func(x *top) bool { return x == t })
	a.release(t)
	a.all = true
}

// Consumed returns what counts against the quota of a top-level role: what is reserved for it
// and the roles below, and what else frameworks have there.
func (a *Allocator) Consumed(roleName string) resources.Quantities {
	q := resources.Quantities{}
	if t := a.tops[roleName]; t != nil {
		for name, i := range a.names {
			if x := t.consumed(i); x > 0 {
				q[name] = float64(x) / 1000
			}
		}
	}
	return q
}

func milli(v float64) int64 {
	if math.IsNaN(v) || v <= 0 {
		return 0
	}
	if v = math.Round(v * 1000); v >= math.MaxInt64/4 {
		return unlimited
	}
	return int64(v)
}

// countedForQuota returns what of s counts as used: neither reserved (counted where it is
// reserved) nor revocable nor shared.
func countedForQuota(s resources.Set) resources.Set {
	return s.Filter(func(e *resources.Entry) bool { return e.ReservedTo() == "" && !e.Revocable() })
}

// addCounted adds to v what of s, which is nobody's yet, would count as used: what
// countedForQuota says, without making a set of it.
func (a *Allocator) addCounted(v *vector, s resources.Set) {
	entries := s.Entries()
	for i := range entries {
		if e := &entries[i]; e.Milli() > 0 && e.ReservedTo() == "" && !e.Revocable() {
			*v.at(a.index(e.Name())) += e.Milli() * int64(e.Copies())
		}
	}
}

// headroom is, during a cycle, what may be given away without endangering a guarantee.
type headroom struct {
	available vector // free on all candidates, neither reserved nor revocable
	required  vector // what guarantees still lack
	lacking   int    // how many roles have an unmet guarantee
	rooms     vector // scratch of chop
}

func (a *Allocator) newHeadroom() *headroom {
	h := &headroom{available: slices.Clone(a.spare)}
	for _, t := range a.quotas { // sums of integers: the order does not matter
		for i := range t.guarantee {
			*h.required.at(i) += t.unmet(i)
		}
		if t.lacking() {
			h.lacking++
		}
	}
	return h
}

// surplus is how much of a scalar is free beyond what guarantees lack.
func (h *headroom) surplus(i int) int64 { return max(0, h.available.get(i)-h.required.get(i)) }

// remember notes how much room everybody is left with at the end of a cycle.
func (a *Allocator) remember(h *headroom) {
	for i := range len(a.names) {
		*a.surplus.at(i) = h.surplus(i)
		for _, t := range a.quotas {
			*t.rooms.at(i) = a.room(h, t, i)
		}
	}
}

// grown says of which scalars anybody may have more than at the end of the last cycle, a bit for
// each. What was kept back of others then would be kept back again.
func (a *Allocator) grown(h *headroom) (mask uint64) {
	for i := range len(a.names) {
		grown := a.guaranteed.get(i) > 0 && h.surplus(i) > a.surplus.get(i)
		for _, t := range a.quotas {
			grown = grown || a.room(h, t, i) > t.rooms.get(i)
		}
		if grown {
			mask |= bit(i)
		}
	}
	return mask
}

// bit is a place in a mask of names. Names beyond those it has room for share the last.
func bit(i int) uint64 { return 1 << min(i, 63) }

// room is how much of a scalar a role may still have, of what is not reserved: what its own
// guarantee lacks, and beyond that what its limit and the guarantees of others leave.
func (a *Allocator) room(h *headroom, t *top, i int) int64 {
	room := t.room(i)
	if a.guaranteed.get(i) > 0 {
		room = min(room, h.surplus(i)+t.unmet(i))
	}
	return room
}

// possible says whether a role may have enough of anything that a client would want it: of any
// agent, or of one on which that much is free. It is a quick answer for agents where nothing is
// reserved or revocable.
func (a *Allocator) possible(h *headroom, t *top, cl *client, free vector) bool {
	for _, n := range cl.minimum {
		covered := true
		for _, x := range n {
			covered = covered && a.room(h, t, x.index) >= x.milli && (free == nil || free.get(x.index) >= x.milli)
		}
		if covered {
			return true
		}
	}
	return len(cl.minimum) == 0
}

// chop returns the part of s that a role may have: of scalars no more than room says, and
// reservations, revocable resources and what is not a scalar whole. progress says whether the
// part brings the role closer to its guarantee or holds reservations; cut, a bit for each name,
// of what there would have been more.
func (a *Allocator) chop(h *headroom, t *top, s resources.Set) (part resources.Set, progress bool, cut uint64) {
	rooms := h.rooms[:0]
	for i := range len(a.names) {
		rooms = append(rooms, a.room(h, t, i))
	}
	h.rooms = rooms
	part = s.Limit(func(e *resources.Entry) int64 {
		if e.ReservedTo() != "" {
			progress = true
			return e.Milli()
		}
		if e.Revocable() {
			return e.Milli()
		}
		i := a.index(e.Name())
		amount := min(e.Milli(), rooms[i])
		if e.Name() == "gpus" {
			amount -= amount % 1000 // gpus are whole
		}
		if amount < e.Milli() {
			cut |= bit(i)
			if !e.Divisible() {
				return 0
			}
		}
		rooms[i] -= amount
		progress = progress || amount > 0 && t.unmet(i) > 0
		return amount
	})
	return part, progress, cut
}

// give takes from the headroom what a role was given. Called before it is booked.
func (h *headroom) give(t *top, counted vector) {
	for i, x := range counted {
		*h.available.at(i) -= x
		*h.required.at(i) -= min(x, t.unmet(i))
	}
}
