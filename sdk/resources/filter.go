package resources

import (
	"strings"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// Filter returns the entries for which keep is true. Where that is all, it is s itself.
func (s Set) Filter(keep func(*Entry) bool) Set {
	for i := range s.entries {
		if keep(&s.entries[i]) {
			continue
		}
		out := make([]Entry, i, len(s.entries))
		copy(out, s.entries)
		for j := i + 1; j < len(s.entries); j++ {
			if keep(&s.entries[j]) {
				out = append(out, s.entries[j])
			}
		}
		return Set{out}
	}
	return s
}

// Limit returns the set with at most most(entry) thousandths of every scalar; other entries stay
// as they are. Of an entry that cannot be divided nothing is kept if not all of it may be.
func (s Set) Limit(most func(*Entry) int64) Set {
	var out []Entry // nil until something differs from s
	for i := range s.entries {
		e := &s.entries[i]
		amount := e.milli
		if e.id.kind == mesosv1.Value_SCALAR {
			amount = min(amount, most(e))
		}
		if amount == e.milli {
			if out != nil {
				out = append(out, *e)
			}
			continue
		}
		if out == nil {
			out = append(make([]Entry, 0, len(s.entries)), s.entries[:i]...)
		}
		if amount > 0 && e.Divisible() {
			part := *e
			part.milli = amount
			out = append(out, part)
		}
	}
	if out == nil {
		return s
	}
	return Set{out}
}

// Unreserved returns what is reserved to nobody.
func (s Set) Unreserved() Set {
	return s.Filter(func(e *Entry) bool { return e.id.reservedTo == "" })
}

// Reserved returns what is reserved to any role.
func (s Set) Reserved() Set {
	return s.Filter(func(e *Entry) bool { return e.id.reservedTo != "" })
}

// ReservedTo returns what is reserved to this very role.
func (s Set) ReservedTo(role string) Set {
	return s.Filter(func(e *Entry) bool { return e.id.reservedTo == role && role != "" })
}

// AllocatableTo returns what may be offered to a role: the unreserved, and what is reserved
// to the role itself or to a role above it.
func (s Set) AllocatableTo(role string) Set {
	return s.Filter(func(e *Entry) bool {
		return e.id.reservedTo == "" || role == e.id.reservedTo || IsSubrole(role, e.id.reservedTo)
	})
}

// Reservations returns what is reserved, by the role of the innermost reservation.
func (s Set) Reservations() map[string]Set {
	var out map[string]Set
	for i := range s.entries {
		if role := s.entries[i].id.reservedTo; role != "" {
			if out == nil {
				out = make(map[string]Set)
			}
			out[role] = Set{addEntry(out[role].entries, s.entries[i])}
		}
	}
	return out
}

// Allocations returns the entries by the role they are allocated to; "" holds the others.
func (s Set) Allocations() map[string]Set {
	out := make(map[string]Set)
	for i := range s.entries {
		role := s.entries[i].alloc
		out[role] = Set{addEntry(out[role].entries, s.entries[i])}
	}
	return out
}

// Revocable returns what may be taken back.
func (s Set) Revocable() Set { return s.Filter((*Entry).Revocable) }

// NonRevocable returns what may not be taken back.
func (s Set) NonRevocable() Set {
	return s.Filter(func(e *Entry) bool { return !e.id.revocable })
}

// Shared returns the shared volumes.
func (s Set) Shared() Set { return s.Filter((*Entry).Shared) }

// NonShared returns all but the shared volumes.
func (s Set) NonShared() Set { return s.Filter(func(e *Entry) bool { return !e.id.shared }) }

// PersistentVolumes returns the persistent volumes, shared ones too.
func (s Set) PersistentVolumes() Set { return s.Filter((*Entry).Persistent) }

// Scalars returns the scalar resources.
func (s Set) Scalars() Set {
	return s.Filter(func(e *Entry) bool { return e.id.kind == mesosv1.Value_SCALAR })
}

// Named returns the entries of that name.
func (s Set) Named(name string) Set {
	return s.Filter(func(e *Entry) bool { return e.id.name == name })
}

// Provider returns what belongs to a resource provider; "" asks for the agent's own.
func (s Set) Provider(id string) Set {
	return s.Filter(func(e *Entry) bool { return e.ProviderID() == id })
}

// Scalar adds up all scalars of that name, reserved and revocable ones too.
func (s Set) Scalar(name string) float64 { return fromMilli(s.Milli(name)) }

// Milli is Scalar in thousandths.
func (s Set) Milli(name string) int64 {
	var sum int64
	for i := range s.entries {
		if s.entries[i].id.name == name {
			sum = addMilli(sum, s.entries[i].milli)
		}
	}
	return sum
}

// Ranges joins all ranges of that name.
func (s Set) Ranges(name string) Ranges {
	var out Ranges
	for i := range s.entries {
		if e := &s.entries[i]; e.id.name == name && e.id.kind == mesosv1.Value_RANGES {
			out = out.Union(e.ranges)
		}
	}
	return out
}

// Items joins all sets of that name.
func (s Set) Items(name string) []string {
	var out []string
	for i := range s.entries {
		if e := &s.entries[i]; e.id.name == name && e.id.kind == mesosv1.Value_SET {
			out = unionItems(out, e.items)
		}
	}
	return out
}

// Allocate returns the set with every entry allocated to the role.
func (s Set) Allocate(role string) Set { return s.reallocate(role) }

// Unallocate returns the set with no entry allocated to a role.
func (s Set) Unallocate() Set { return s.reallocate("") }

func (s Set) reallocate(role string) Set {
	done := true
	for i := range s.entries {
		done = done && s.entries[i].alloc == role
	}
	if done {
		return s
	}
	out := make([]Entry, 0, len(s.entries))
	for _, e := range s.entries {
		e.alloc = role
		out = addEntry(out, e) // what was allocated to two roles may become one entry
	}
	return Set{out}
}

// IsSubrole says whether role lies below ancestor in the tree of roles: "eng/dev" below "eng".
func IsSubrole(role, ancestor string) bool {
	return len(role) > len(ancestor) && role[len(ancestor)] == '/' && strings.HasPrefix(role, ancestor)
}
