package resources

import (
	"errors"
	"fmt"
	"slices"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// Conversion is what an operation does to resources: Consumed goes, Converted comes instead.
type Conversion struct {
	Consumed  Set
	Converted Set
}

// Apply carries a conversion out. It fails, and nothing is changed, if s has not what the
// conversion consumes.
func (s Set) Apply(c Conversion) (Set, error) {
	if !s.Contains(c.Consumed) {
		return Set{}, fmt.Errorf("%s does not contain %s", s, c.Consumed)
	}
	return s.Subtract(c.Consumed).Add(c.Converted), nil
}

// ApplyOperation carries out all conversions of an operation, in order, or none.
func (s Set) ApplyOperation(op *mesosv1.Offer_Operation) (Set, error) {
	conversions, err := Conversions(op)
	if err != nil {
		return Set{}, err
	}
	for _, c := range conversions {
		if s, err = s.Apply(c); err != nil {
			return Set{}, fmt.Errorf("%v: %w", op.GetType(), err)
		}
	}
	return s, nil
}

// Conversions returns what an operation does: RESERVE, UNRESERVE, CREATE, DESTROY,
// GROW_VOLUME and SHRINK_VOLUME. LAUNCH and LAUNCH_GROUP convert nothing.
//
// Errors: the operation is malformed, or is one whose result only a resource provider knows
// (CREATE_DISK, DESTROY_DISK). Whether the resources are there is for Apply to say.
func Conversions(op *mesosv1.Offer_Operation) ([]Conversion, error) {
	fail := func(err error) ([]Conversion, error) {
		return nil, fmt.Errorf("%v: %w", op.GetType(), err)
	}
	each := func(rs []*mesosv1.Resource, convert func(*mesosv1.Resource) (Conversion, error)) ([]Conversion, error) {
		var out []Conversion
		for _, r := range rs {
			if err := Validate(r); err != nil {
				return fail(err)
			}
			c, err := convert(r)
			if err != nil {
				return fail(fmt.Errorf("resource %q: %w", r.GetName(), err))
			}
			out = append(out, c)
		}
		return out, nil
	}
	switch op.GetType() {
	case mesosv1.Offer_Operation_LAUNCH, mesosv1.Offer_Operation_LAUNCH_GROUP:
		return nil, nil
	case mesosv1.Offer_Operation_RESERVE:
		if source := op.GetReserve().GetSource(); len(source) > 0 {
			c, err := convertReReserve(source, op.GetReserve().GetResources())
			if err != nil {
				return fail(err)
			}
			return []Conversion{c}, nil
		}
		return each(op.GetReserve().GetResources(), convertReserve)
	case mesosv1.Offer_Operation_UNRESERVE:
		return each(op.GetUnreserve().GetResources(), convertUnreserve)
	case mesosv1.Offer_Operation_CREATE:
		return each(op.GetCreate().GetVolumes(), convertCreate)
	case mesosv1.Offer_Operation_DESTROY:
		return each(op.GetDestroy().GetVolumes(), convertDestroy)
	case mesosv1.Offer_Operation_GROW_VOLUME:
		c, err := convertGrow(op.GetGrowVolume().GetVolume(), op.GetGrowVolume().GetAddition())
		if err != nil {
			return fail(err)
		}
		return []Conversion{c}, nil
	case mesosv1.Offer_Operation_SHRINK_VOLUME:
		c, err := convertShrink(op.GetShrinkVolume().GetVolume(), op.GetShrinkVolume().GetSubtract())
		if err != nil {
			return fail(err)
		}
		return []Conversion{c}, nil
	default:
		return fail(errors.New("what it converts is not known beforehand"))
	}
}

// pop returns r without its innermost reservation.
func pop(r *mesosv1.Resource) (*mesosv1.Resource, error) {
	stack := reservationsOf(r)
	if len(stack) == 0 {
		return nil, errors.New("is not reserved")
	}
	if stack[len(stack)-1].GetType() != mesosv1.Resource_ReservationInfo_DYNAMIC {
		return nil, errors.New("is reserved statically, not by an operation")
	}
	c := shallow(r)
	c.Role, c.Reservation = nil, nil
	c.Reservations = slices.Clone(stack[:len(stack)-1])
	return c, nil
}

func convertReserve(r *mesosv1.Resource) (Conversion, error) {
	before, err := pop(r)
	if err != nil {
		return Conversion{}, err
	}
	if r.GetDisk().GetPersistence() != nil {
		return Conversion{}, errors.New("a persistent volume cannot be reserved again")
	}
	return Conversion{Consumed: New(before), Converted: New(r)}, nil
}

func convertUnreserve(r *mesosv1.Resource) (Conversion, error) {
	after, err := pop(r)
	if err != nil {
		return Conversion{}, err
	}
	if r.GetDisk().GetPersistence() != nil {
		return Conversion{}, errors.New("a persistent volume must be destroyed before it is unreserved")
	}
	return Conversion{Consumed: New(r), Converted: New(after)}, nil
}

// convertReReserve replaces the reservations of source by those of target.
func convertReReserve(source, target []*mesosv1.Resource) (Conversion, error) {
	for _, r := range slices.Concat(source, target) {
		if err := Validate(r); err != nil {
			return Conversion{}, err
		}
		if r.GetDisk().GetPersistence() != nil {
			return Conversion{}, fmt.Errorf("resource %q: a persistent volume cannot be reserved again", r.GetName())
		}
	}
	bare := func(rs []*mesosv1.Resource) Set {
		return New(mapResources(rs, func(r *mesosv1.Resource) {
			r.Role, r.Reservation, r.Reservations = nil, nil, nil
		})...)
	}
	if a, b := bare(source), bare(target); !a.Equal(b) {
		return Conversion{}, fmt.Errorf("source %s and resources %s differ in more than reservations", a, b)
	}
	return Conversion{Consumed: New(source...), Converted: New(target...)}, nil
}

// stripVolume returns the disk space that a volume was made of.
func stripVolume(v *mesosv1.Resource) *mesosv1.Resource {
	c := shallow(v)
	c.Shared = nil
	c.Disk = nil
	if src := v.GetDisk().GetSource(); src != nil {
		c.Disk = &mesosv1.Resource_DiskInfo{Source: src}
	}
	return c
}

func checkVolume(v *mesosv1.Resource) error {
	if v.GetDisk().GetPersistence() == nil {
		return errors.New("is not a persistent volume")
	}
	switch v.GetDisk().GetSource().GetType() {
	case mesosv1.Resource_DiskInfo_Source_BLOCK, mesosv1.Resource_DiskInfo_Source_RAW:
		return fmt.Errorf("a persistent volume cannot be made on a disk of type %v", v.GetDisk().GetSource().GetType())
	}
	return nil
}

func convertCreate(v *mesosv1.Resource) (Conversion, error) {
	if err := checkVolume(v); err != nil {
		return Conversion{}, err
	}
	return Conversion{Consumed: New(stripVolume(v)), Converted: New(v)}, nil
}

func convertDestroy(v *mesosv1.Resource) (Conversion, error) {
	if err := checkVolume(v); err != nil {
		return Conversion{}, err
	}
	return Conversion{Consumed: New(v), Converted: New(stripVolume(v))}, nil
}

func checkResize(v *mesosv1.Resource) error {
	if err := Validate(v); err != nil {
		return err
	}
	if err := checkVolume(v); err != nil {
		return fmt.Errorf("resource %q: %w", v.GetName(), err)
	}
	if v.Shared != nil {
		return errors.New("a shared volume cannot be resized")
	}
	if v.GetDisk().GetSource().GetType() == mesosv1.Resource_DiskInfo_Source_MOUNT {
		return errors.New("a volume on a disk of type MOUNT cannot be resized")
	}
	return nil
}

func convertGrow(v, addition *mesosv1.Resource) (Conversion, error) {
	if err := checkResize(v); err != nil {
		return Conversion{}, err
	}
	if err := Validate(addition); err != nil {
		return Conversion{}, fmt.Errorf("addition: %w", err)
	}
	space, extra := New(stripVolume(v)), New(addition)
	if extra.Len() != 1 || space.Len() != 1 || !space.entries[0].same(&extra.entries[0]) {
		return Conversion{}, fmt.Errorf("addition %s is not more of what the volume is made of, %s", extra, space)
	}
	grown := withMilli(v, addMilli(toMilli(v.GetScalar().GetValue()), extra.entries[0].milli))
	return Conversion{Consumed: New(v).Add(extra), Converted: New(grown)}, nil
}

func convertShrink(v *mesosv1.Resource, by *mesosv1.Value_Scalar) (Conversion, error) {
	if err := checkResize(v); err != nil {
		return Conversion{}, err
	}
	size, less := toMilli(v.GetScalar().GetValue()), toMilli(by.GetValue())
	if less <= 0 || less >= size {
		return Conversion{}, fmt.Errorf("subtract %v must be above 0 and below the volume's size %v", by.GetValue(), fromMilli(size))
	}
	return Conversion{
		Consumed:  New(v),
		Converted: New(withMilli(v, size-less), withMilli(stripVolume(v), less)),
	}, nil
}

func withMilli(r *mesosv1.Resource, milli int64) *mesosv1.Resource {
	c := shallow(r)
	v := fromMilli(milli)
	c.Scalar = &mesosv1.Value_Scalar{Value: &v}
	return c
}
