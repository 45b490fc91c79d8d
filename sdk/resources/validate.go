package resources

import (
	"errors"
	"fmt"
	"math"
	"slices"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// Validate says what is wrong with a resource, in either reservation format: its name, that
// it has exactly the value of its type, that the value is positive or zero, ranges ordered
// and apart, items unique, gpus whole; that reservations refine one another; that disks,
// volumes and sharing go together.
func Validate(r *mesosv1.Resource) error {
	if r.GetName() == "" {
		return errors.New("resource: empty name")
	}
	if err := validateValue(r); err != nil {
		return fmt.Errorf("resource %q: %w", r.GetName(), err)
	}
	if err := validateReservations(r); err != nil {
		return fmt.Errorf("resource %q: %w", r.GetName(), err)
	}
	if err := validateDisk(r); err != nil {
		return fmt.Errorf("resource %q: %w", r.GetName(), err)
	}
	if a := r.AllocationInfo; a != nil && a.Role != nil {
		if err := ValidateRole(a.GetRole()); err != nil {
			return fmt.Errorf("resource %q: allocation_info: %w", r.GetName(), err)
		}
	}
	return nil
}

// ValidateAll validates each resource.
func ValidateAll(rs []*mesosv1.Resource) error {
	for _, r := range rs {
		if err := Validate(r); err != nil {
			return err
		}
	}
	return nil
}

func validateValue(r *mesosv1.Resource) error {
	if r.Type == nil {
		return errors.New("no type")
	}
	has := func(scalar, ranges, set bool) bool {
		return (r.Scalar != nil) == scalar && (r.Ranges != nil) == ranges && (r.Set != nil) == set
	}
	switch r.GetType() {
	case mesosv1.Value_SCALAR:
		if !has(true, false, false) || r.Scalar.Value == nil {
			return errors.New("type SCALAR needs a scalar and nothing else")
		}
		v := r.Scalar.GetValue()
		switch {
		case math.IsNaN(v) || math.IsInf(v, 0):
			return fmt.Errorf("scalar %v is not a finite number", v)
		case v < 0:
			return fmt.Errorf("scalar %v is negative", v)
		case v > fromMilli(maxMilli):
			return fmt.Errorf("scalar %v is above %v", v, fromMilli(maxMilli))
		case r.GetName() == "gpus" && v != math.Trunc(v):
			return fmt.Errorf("%v is not a whole number", v)
		}
	case mesosv1.Value_RANGES:
		if !has(false, true, false) {
			return errors.New("type RANGES needs ranges and nothing else")
		}
		return validateRanges(r.Ranges)
	case mesosv1.Value_SET:
		if !has(false, false, true) {
			return errors.New("type SET needs a set and nothing else")
		}
		if items := r.Set.GetItem(); len(newItems(items)) != len(items) {
			return errors.New("set holds an item twice")
		}
	default:
		return fmt.Errorf("type %v is not one a resource can have", r.GetType())
	}
	return nil
}

func validateRanges(v *mesosv1.Value_Ranges) error {
	rs := make([]Range, 0, len(v.GetRange()))
	for _, x := range v.GetRange() {
		if x.GetBegin() > x.GetEnd() {
			return fmt.Errorf("range %d-%d ends before it begins", x.GetBegin(), x.GetEnd())
		}
		rs = append(rs, Range{x.GetBegin(), x.GetEnd()})
	}
	slices.SortFunc(rs, compareBegin)
	for i := 1; i < len(rs); i++ {
		if rs[i].Begin <= rs[i-1].End {
			return fmt.Errorf("ranges %d-%d and %d-%d overlap", rs[i-1].Begin, rs[i-1].End, rs[i].Begin, rs[i].End)
		}
	}
	return nil
}

func validateReservations(r *mesosv1.Resource) error {
	if len(r.GetReservations()) == 0 {
		role := r.GetRole()
		if err := ValidateRole(role); err != nil {
			return err
		}
		if r.Reservation == nil {
			return nil
		}
		if role == "*" {
			return errors.New(`role "*" cannot be dynamically reserved`)
		}
		if r.Reservation.Role != nil || r.Reservation.Type != nil {
			return errors.New("reservation: type and role belong in reservations only")
		}
		return nil
	}
	if r.Role != nil && r.GetRole() != "*" || r.Reservation != nil {
		return errors.New("both reservations and role or reservation are set")
	}
	outer := ""
	for i, v := range r.Reservations {
		if v.Role == nil {
			return fmt.Errorf("reservations[%d]: no role", i)
		}
		if err := ValidateRole(v.GetRole()); err != nil {
			return fmt.Errorf("reservations[%d]: %w", i, err)
		}
		if v.GetRole() == "*" {
			return fmt.Errorf(`reservations[%d]: role "*" cannot be reserved to`, i)
		}
		switch v.GetType() {
		case mesosv1.Resource_ReservationInfo_DYNAMIC:
		case mesosv1.Resource_ReservationInfo_STATIC:
			if i > 0 {
				return fmt.Errorf("reservations[%d]: only the first may be static", i)
			}
		default:
			return fmt.Errorf("reservations[%d]: type %v is neither STATIC nor DYNAMIC", i, v.GetType())
		}
		if i > 0 && !IsSubrole(v.GetRole(), outer) {
			return fmt.Errorf("reservations[%d]: role %q does not refine %q", i, v.GetRole(), outer)
		}
		outer = v.GetRole()
	}
	return nil
}

func validateDisk(r *mesosv1.Resource) error {
	if d := r.Disk; d != nil {
		if r.GetName() != "disk" {
			return errors.New("disk is set, and the name is not \"disk\"")
		}
		if d.Source != nil {
			switch t := d.Source.GetType(); t {
			case mesosv1.Resource_DiskInfo_Source_PATH, mesosv1.Resource_DiskInfo_Source_MOUNT,
				mesosv1.Resource_DiskInfo_Source_BLOCK, mesosv1.Resource_DiskInfo_Source_RAW:
			default:
				return fmt.Errorf("disk source type %v is unknown", t)
			}
		}
		if p := d.Persistence; p != nil {
			if err := validateVolumeID(p.GetId()); err != nil {
				return err
			}
			if r.Revocable != nil {
				return errors.New("a persistent volume cannot be revocable")
			}
			if len(reservationsOf(r)) == 0 {
				return errors.New("a persistent volume must be reserved")
			}
		}
	}
	if r.Shared != nil && r.GetDisk().GetPersistence() == nil {
		return errors.New("only persistent volumes can be shared")
	}
	return nil
}

// validateVolumeID refuses ids that could not be a directory's name: agents keep volumes in
// directories of that name.
func validateVolumeID(id string) error {
	if id == "" || id == "." || id == ".." || len(id) > 255 {
		return fmt.Errorf("persistence id %q cannot be a directory's name", id)
	}
	for _, c := range []byte(id) {
		if c == '/' || c == '\\' || c < ' ' || c == 0x7f {
			return fmt.Errorf("persistence id %q holds a slash or a control character", id)
		}
	}
	return nil
}
