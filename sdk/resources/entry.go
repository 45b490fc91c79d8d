package resources

import (
	"encoding/binary"
	"math"
	"slices"
	"unique"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// Entry is one resource of a Set: what it is, how much, and to which role it is allocated.
// Entries are read only.
type Entry struct {
	id     *identity
	alloc  string // role it is allocated to, or ""
	milli  int64  // scalar amount in thousandths
	ranges Ranges // normalised; never changed in place
	items  []string
	copies int // how many times an atomic entry is held; above 1 for shared ones only
}

// identity is what makes two amounts the same resource: everything but the amount and the
// role that it is allocated to. Entries of different sets point to the same one where they
// come from one another, which makes comparing them cheap.
type identity struct {
	handle       unique.Handle[string]
	template     *mesosv1.Resource // without value and allocation; never changed
	name         string
	reservedTo   string // role of the innermost reservation, or ""
	reservations []*mesosv1.Resource_ReservationInfo
	kind         mesosv1.Value_Type
	revocable    bool
	shared       bool
	persistent   bool
	// atomic: only whole, never merged or split: persistent volumes, shared resources, and
	// disks that are one device (MOUNT, BLOCK, RAW with an id).
	atomic bool
}

// newEntry reads a message. It is false for one without an amount or without a usable value.
func newEntry(r *mesosv1.Resource) (Entry, bool) {
	if r == nil {
		return Entry{}, false
	}
	e := Entry{copies: 1, alloc: r.GetAllocationInfo().GetRole()}
	switch r.GetType() {
	case mesosv1.Value_SCALAR:
		e.milli = toMilli(r.GetScalar().GetValue())
	case mesosv1.Value_RANGES:
		e.ranges = newRanges(r.GetRanges())
	case mesosv1.Value_SET:
		e.items = newItems(r.GetSet().GetItem())
	default:
		return Entry{}, false
	}
	if e.milli <= 0 && len(e.ranges) == 0 && len(e.items) == 0 {
		return Entry{}, false
	}
	e.id = newIdentity(r)
	return e, true
}

func newIdentity(r *mesosv1.Resource) *identity {
	id := &identity{
		name:         r.GetName(),
		kind:         r.GetType(),
		reservations: reservationsOf(r),
		revocable:    r.Revocable != nil,
		shared:       r.Shared != nil,
		persistent:   r.GetDisk().GetPersistence() != nil,
	}
	if n := len(id.reservations); n > 0 {
		id.reservedTo = id.reservations[n-1].GetRole()
	}
	id.atomic = id.shared || id.persistent
	if src := r.GetDisk().GetSource(); src != nil {
		switch src.GetType() {
		case mesosv1.Resource_DiskInfo_Source_MOUNT, mesosv1.Resource_DiskInfo_Source_BLOCK:
			id.atomic = true
		case mesosv1.Resource_DiskInfo_Source_RAW:
			id.atomic = id.atomic || src.Id != nil
		}
	}
	id.template = &mesosv1.Resource{
		ProviderId:   r.ProviderId,
		Name:         r.Name,
		Type:         r.Type,
		Reservations: id.reservations,
		Disk:         r.Disk,
		Revocable:    r.Revocable,
		Shared:       r.Shared,
	}
	var buf [128]byte
	id.handle = unique.Make(string(appendKey(buf[:0], id.template)))
	return id
}

// reservationsOf returns the reservation stack of a message in either format.
func reservationsOf(r *mesosv1.Resource) []*mesosv1.Resource_ReservationInfo {
	if len(r.GetReservations()) > 0 {
		return r.Reservations
	}
	role := r.GetRole()
	if (role == "*" || role == "") && r.Reservation == nil {
		return nil
	}
	out := &mesosv1.Resource_ReservationInfo{
		Type: mesosv1.Resource_ReservationInfo_STATIC.Enum(),
		Role: &role,
	}
	if old := r.Reservation; old != nil {
		out.Type = mesosv1.Resource_ReservationInfo_DYNAMIC.Enum()
		out.Principal = old.Principal
		out.Labels = old.Labels
	}
	return []*mesosv1.Resource_ReservationInfo{out}
}

// appendKey appends a string that two templates have in common exactly if Mesos calls them
// the same resource: the volume of a disk (how it is used) and the principal who made a
// volume do not count, nor does the order of labels.
func appendKey(b []byte, r *mesosv1.Resource) []byte {
	b = appendString(b, r.GetName())
	b = append(b, byte(r.GetType()))
	if r.ProviderId != nil {
		b = appendString(append(b, 'p'), r.ProviderId.GetValue())
	}
	for _, v := range r.Reservations {
		b = append(b, 'r', byte(v.GetType()))
		b = appendString(b, v.GetRole())
		if v.Principal != nil {
			b = appendString(append(b, 'P'), v.GetPrincipal())
		}
		b = appendLabels(b, v.Labels)
	}
	if d := r.Disk; d != nil {
		b = append(b, 'd')
		if s := d.Source; s != nil {
			b = append(b, 's', byte(s.GetType()))
			b = appendOptional(b, 'a', s.Path != nil, s.Path.GetRoot())
			b = appendOptional(b, 'm', s.Mount != nil, s.Mount.GetRoot())
			b = appendOptional(b, 'v', s.Vendor != nil, s.GetVendor())
			b = appendOptional(b, 'i', s.Id != nil, s.GetId())
			b = appendOptional(b, 'f', s.Profile != nil, s.GetProfile())
			b = appendLabels(b, s.Metadata)
		}
		if d.Persistence != nil {
			b = appendString(append(b, 'e'), d.Persistence.GetId())
		}
	}
	if r.Revocable != nil {
		b = append(b, 'R')
	}
	if r.Shared != nil {
		b = append(b, 'S')
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendOptional(b []byte, tag byte, present bool, s string) []byte {
	if !present {
		return b
	}
	return appendString(append(b, tag), s)
}

func appendLabels(b []byte, l *mesosv1.Labels) []byte {
	if l == nil {
		return b
	}
	all := make([]string, 0, len(l.GetLabels()))
	for _, x := range l.GetLabels() {
		k := appendString(nil, x.GetKey())
		all = append(all, string(appendOptional(k, 'v', x.Value != nil, x.GetValue())))
	}
	slices.Sort(all)
	b = binary.AppendUvarint(append(b, 'l'), uint64(len(all)))
	for _, s := range all {
		b = appendString(b, s)
	}
	return b
}

// same says whether both are the same resource, in whatever amounts.
func (e *Entry) same(o *Entry) bool {
	return (e.id == o.id || e.id.handle == o.id.handle) && e.alloc == o.alloc
}

// sameValue says whether the amounts are equal; copies do not count.
func (e *Entry) sameValue(o *Entry) bool {
	return e.milli == o.milli && slices.Equal(e.ranges, o.ranges) && slices.Equal(e.items, o.items)
}

func (e *Entry) equal(o *Entry) bool { return e.same(o) && e.sameValue(o) }

// covers says whether e, the same resource as o, has at least as much of it.
func (e *Entry) covers(o *Entry) bool {
	switch e.id.kind {
	case mesosv1.Value_SCALAR:
		return e.milli >= o.milli
	case mesosv1.Value_RANGES:
		return e.ranges.Contains(o.ranges)
	default:
		return containsItems(e.items, o.items)
	}
}

func (e *Entry) nothing() bool {
	switch e.id.kind {
	case mesosv1.Value_SCALAR:
		return e.milli <= 0
	case mesosv1.Value_RANGES:
		return len(e.ranges) == 0
	default:
		return len(e.items) == 0
	}
}

// Name is the resource's name, as "cpus".
func (e *Entry) Name() string { return e.id.name }

// Type is SCALAR, RANGES or SET.
func (e *Entry) Type() mesosv1.Value_Type { return e.id.kind }

// Scalar is the amount of a scalar, in the resource's own unit (cpus; MiB for mem and disk).
func (e *Entry) Scalar() float64 { return fromMilli(e.milli) }

// Milli is the amount of a scalar in thousandths.
func (e *Entry) Milli() int64 { return e.milli }

// Ranges are the ranges of an entry of that type. They must not be changed.
func (e *Entry) Ranges() Ranges { return e.ranges }

// Items are the sorted items of a set. They must not be changed.
func (e *Entry) Items() []string { return e.items }

// Copies is how many times a shared volume is held; 1 for everything else.
func (e *Entry) Copies() int { return e.copies }

// AllocatedTo is the role that the entry is allocated to, or "".
func (e *Entry) AllocatedTo() string { return e.alloc }

// ReservedTo is the role of the innermost reservation, or "" if unreserved.
func (e *Entry) ReservedTo() string { return e.id.reservedTo }

// Reservations is the stack of reservations, outermost first. It must not be changed.
func (e *Entry) Reservations() []*mesosv1.Resource_ReservationInfo { return e.id.reservations }

// Refined says whether a reservation lies on another.
func (e *Entry) Refined() bool { return len(e.id.reservations) > 1 }

// DynamicallyReserved says whether the innermost reservation was made by an operation.
func (e *Entry) DynamicallyReserved() bool {
	n := len(e.id.reservations)
	return n > 0 && e.id.reservations[n-1].GetType() == mesosv1.Resource_ReservationInfo_DYNAMIC
}

// Revocable says whether the entry may be taken back.
func (e *Entry) Revocable() bool { return e.id.revocable }

// Shared says whether several tasks may hold the entry at once.
func (e *Entry) Shared() bool { return e.id.shared }

// Persistent says whether the entry is a persistent volume.
func (e *Entry) Persistent() bool { return e.id.persistent }

// Divisible says whether a part of the entry can be used by itself. Persistent volumes, shared
// resources and disks that are one device are taken whole or not at all.
func (e *Entry) Divisible() bool { return !e.id.atomic }

// Disk is the entry's disk, or nil. It must not be changed.
func (e *Entry) Disk() *mesosv1.Resource_DiskInfo { return e.id.template.GetDisk() }

// ProviderID is the resource provider that the entry belongs to, or "" for the agent's own.
func (e *Entry) ProviderID() string { return e.id.template.GetProviderId().GetValue() }

// Resource returns the entry as a message, as Set.Resources does.
func (e *Entry) Resource() *mesosv1.Resource {
	t := e.id.template
	r := &mesosv1.Resource{
		ProviderId:   t.ProviderId,
		Name:         t.Name,
		Type:         t.Type,
		Reservations: t.Reservations,
		Disk:         t.Disk,
		Revocable:    t.Revocable,
		Shared:       t.Shared,
	}
	if e.alloc != "" {
		role := e.alloc
		r.AllocationInfo = &mesosv1.Resource_AllocationInfo{Role: &role}
	}
	switch e.id.kind {
	case mesosv1.Value_SCALAR:
		v := fromMilli(e.milli)
		r.Scalar = &mesosv1.Value_Scalar{Value: &v}
	case mesosv1.Value_RANGES:
		r.Ranges = e.ranges.Value()
	case mesosv1.Value_SET:
		r.Set = &mesosv1.Value_Set{Item: slices.Clone(e.items)}
	}
	return r
}

// maxMilli bounds scalars, so that sums of many cannot overflow: a thousand million million
// units, above any cluster's bytes counted in MiB.
const maxMilli = math.MaxInt64 / 4

// toMilli rounds to thousandths. Undefined values count as nothing, too large ones as the largest.
func toMilli(v float64) int64 {
	if math.IsNaN(v) {
		return 0
	}
	v = math.Round(v * 1000)
	return int64(max(-float64(maxMilli), min(float64(maxMilli), v)))
}

func fromMilli(m int64) float64 { return float64(m) / 1000 }

func addMilli(a, b int64) int64 { return min(a+b, maxMilli) }
