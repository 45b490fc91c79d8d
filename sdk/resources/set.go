// Package resources is the algebra of what agents have and tasks use: cpus, memory, disks,
// ports, devices, with their reservations, volumes, revocability and allocation.
//
// A Set is a normalised, immutable value: amounts of the same resource are merged, empty
// amounts are left out, both reservation formats of the wire become one. Scalars are kept
// in thousandths, as Mesos does, so that sums are exact and adding then subtracting leaves
// nothing behind. Operations never change their operands and never panic on what came over
// the wire; whether a message is well formed is the question Validate answers.
//
// It leaves to others who may have what (the allocator), whether a principal may reserve
// it (the authorizer), and how amounts are enforced (isolators).
package resources

import (
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// Set is a collection of resources. The zero value is the empty set. Sets are values: every
// method returns a new one, and they may be shared between goroutines.
//
// Entries keep the order in which they were first added, so the same history gives the same
// order; Equal does not look at it.
type Set struct {
	entries []Entry // never changed after the set was made; entries may share backing arrays
}

// New returns the set of the given resources, in either reservation format.
//
// Resources of amount nothing are left out, and so are malformed ones (no value, a negative
// or undefined scalar): callers at an edge ask Validate first. The messages are not kept or
// changed, but their nested messages (reservations, disk) are referred to and must not be
// changed afterwards.
func New(rs ...*mesosv1.Resource) Set {
	if len(rs) == 0 {
		return Set{}
	}
	entries := make([]Entry, 0, len(rs))
	for _, r := range rs {
		if e, ok := newEntry(r); ok {
			entries = addEntry(entries, e)
		}
	}
	return Set{entries}
}

// Resources returns the set as messages in the post-refinement format (`reservations`), one
// per entry. The messages are the caller's; what is nested in them (reservations, disk) is
// shared and must be cloned before it is changed.
func (s Set) Resources() []*mesosv1.Resource {
	if len(s.entries) == 0 {
		return nil
	}
	out := make([]*mesosv1.Resource, len(s.entries))
	for i := range s.entries {
		out[i] = s.entries[i].Resource()
	}
	return out
}

// Empty says whether there is nothing in the set.
func (s Set) Empty() bool { return len(s.entries) == 0 }

// Len is the number of entries.
func (s Set) Len() int { return len(s.entries) }

// Entries returns the entries to be read. The slice must not be changed.
func (s Set) Entries() []Entry { return s.entries }

// Add returns what is in either set. Shared volumes of both become one with more copies.
func (s Set) Add(o Set) Set {
	switch {
	case len(o.entries) == 0:
		return s
	case len(s.entries) == 0:
		return o
	}
	out := make([]Entry, len(s.entries), len(s.entries)+len(o.entries))
	copy(out, s.entries)
	for i := range o.entries {
		out = addEntry(out, o.entries[i])
	}
	return Set{out}
}

// Sum adds up any number of sets with one copy of the result.
func Sum(sets ...Set) Set {
	n := 0
	for _, s := range sets {
		n += len(s.entries)
	}
	if n == 0 {
		return Set{}
	}
	out := make([]Entry, 0, n)
	for _, s := range sets {
		for i := range s.entries {
			out = addEntry(out, s.entries[i])
		}
	}
	return Set{out}
}

// Subtract returns s without what is in o. What o has and s has not is ignored: use Contains
// first where it matters.
func (s Set) Subtract(o Set) Set {
	if len(o.entries) == 0 || len(s.entries) == 0 {
		return s
	}
	if len(s.entries) == len(o.entries) && &s.entries[0] == &o.entries[0] {
		return Set{} // a set less itself, which is how whole agents are handed out
	}
	out := make([]Entry, len(s.entries))
	copy(out, s.entries)
	for i := range o.entries {
		out = subtractEntry(out, &o.entries[i])
	}
	if len(out) == 0 {
		return Set{}
	}
	return Set{out}
}

// Contains says whether all of o is in s: amounts, ranges and items as subsets; reservations,
// volumes, providers, revocability and allocation exactly.
func (s Set) Contains(o Set) bool {
	for i := range o.entries {
		e := &o.entries[i]
		if !e.id.atomic {
			j := find(s.entries, e)
			if j < 0 || !s.entries[j].covers(e) {
				return false
			}
			continue
		}
		want := 0
		for k := range o.entries[:i+1] {
			if o.entries[k].equal(e) {
				want++
			}
		}
		if e.id.shared {
			want = e.copies
		}
		if s.count(e) < want {
			return false
		}
	}
	return true
}

// count is the number of times that the atomic entry e is in s, or of copies if it is shared.
func (s Set) count(e *Entry) int {
	n := 0
	for i := range s.entries {
		if s.entries[i].equal(e) {
			if e.id.shared {
				return s.entries[i].copies
			}
			n++
		}
	}
	return n
}

// Equal says whether both sets hold the same, in any order.
func (s Set) Equal(o Set) bool {
	return len(s.entries) == len(o.entries) && s.Contains(o) && o.Contains(s)
}

// Intersects says whether any entry of o is in s in the amount o has of it.
func (s Set) Intersects(o Set) bool {
	for i := range o.entries {
		if s.Contains(Set{o.entries[i : i+1]}) {
			return true
		}
	}
	return false
}

// find returns the index of the entry that e merges with, or -1.
func find(entries []Entry, e *Entry) int {
	for i := range entries {
		if entries[i].same(e) {
			return i
		}
	}
	return -1
}

// findEqual returns the index of the entry that equals e in identity and value, or -1.
func findEqual(entries []Entry, e *Entry) int {
	for i := range entries {
		if entries[i].equal(e) {
			return i
		}
	}
	return -1
}

// addEntry adds e to entries, which the caller owns.
func addEntry(entries []Entry, e Entry) []Entry {
	if e.id.atomic {
		if e.id.shared {
			if i := findEqual(entries, &e); i >= 0 {
				entries[i].copies += e.copies
				return entries
			}
		}
		return append(entries, e)
	}
	i := find(entries, &e)
	if i < 0 {
		return append(entries, e)
	}
	have := &entries[i]
	switch e.id.kind {
	case mesosv1.Value_SCALAR:
		have.milli = addMilli(have.milli, e.milli)
	case mesosv1.Value_RANGES:
		have.ranges = have.ranges.Union(e.ranges)
	case mesosv1.Value_SET:
		have.items = unionItems(have.items, e.items)
	}
	return entries
}

// subtractEntry takes e from entries, which the caller owns.
func subtractEntry(entries []Entry, e *Entry) []Entry {
	if e.id.atomic {
		i := findEqual(entries, e)
		if i < 0 {
			return entries
		}
		if entries[i].copies -= e.copies; entries[i].copies <= 0 {
			return remove(entries, i)
		}
		return entries
	}
	i := find(entries, e)
	if i < 0 {
		return entries
	}
	have := &entries[i]
	switch e.id.kind {
	case mesosv1.Value_SCALAR:
		have.milli -= e.milli
	case mesosv1.Value_RANGES:
		have.ranges = have.ranges.Subtract(e.ranges)
	case mesosv1.Value_SET:
		have.items = subtractItems(have.items, e.items)
	}
	if have.nothing() {
		return remove(entries, i)
	}
	return entries
}

func remove(entries []Entry, i int) []Entry {
	copy(entries[i:], entries[i+1:])
	entries[len(entries)-1] = Entry{}
	return entries[:len(entries)-1]
}
