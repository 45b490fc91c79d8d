package resources

import (
	"fmt"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// The wire has two formats for reservations. The old one (pre-refinement) is `role` plus
// `reservation`, and has room for one; the new one (post-refinement) is the stack
// `reservations`. Everything inside Mosaic uses the new one; frameworks without the
// RESERVATION_REFINEMENT capability see the old one, and endpoints show both where they can.

// ToPostRefinement returns the resources in the new format. The messages given are not
// changed; nested messages are shared with them.
func ToPostRefinement(rs []*mesosv1.Resource) []*mesosv1.Resource {
	return mapResources(rs, func(r *mesosv1.Resource) {
		r.Reservations = reservationsOf(r)
		r.Role, r.Reservation = nil, nil
	})
}

// ToPreRefinement returns the resources in the old format. Unreserved ones get the role "*".
//
// Errors: a refined reservation cannot be written in the old format. The caller leaves such
// resources out of what it sends to clients that know the old format only.
func ToPreRefinement(rs []*mesosv1.Resource) ([]*mesosv1.Resource, error) {
	for _, r := range rs {
		if len(r.GetReservations()) > 1 {
			return nil, fmt.Errorf("resource %q: a refined reservation has no old format", r.GetName())
		}
	}
	return mapResources(rs, func(r *mesosv1.Resource) {
		setOld(r, reservationsOf(r))
		r.Reservations = nil
	}), nil
}

// ToEndpoint returns the resources in both formats at once, as Mesos's endpoints show them;
// refined ones in the new format only.
func ToEndpoint(rs []*mesosv1.Resource) []*mesosv1.Resource {
	return mapResources(rs, func(r *mesosv1.Resource) {
		r.Reservations = reservationsOf(r)
		r.Role, r.Reservation = nil, nil
		if len(r.Reservations) <= 1 {
			setOld(r, r.Reservations)
		}
	})
}

// setOld writes a stack of at most one reservation into role and reservation.
func setOld(r *mesosv1.Resource, stack []*mesosv1.Resource_ReservationInfo) {
	role := "*"
	r.Reservation = nil
	if len(stack) == 1 {
		role = stack[0].GetRole()
		if stack[0].GetType() == mesosv1.Resource_ReservationInfo_DYNAMIC {
			r.Reservation = &mesosv1.Resource_ReservationInfo{
				Principal: stack[0].Principal,
				Labels:    stack[0].Labels,
			}
		}
	}
	r.Role = &role
}

func mapResources(rs []*mesosv1.Resource, change func(*mesosv1.Resource)) []*mesosv1.Resource {
	if len(rs) == 0 {
		return nil
	}
	out := make([]*mesosv1.Resource, len(rs))
	for i, r := range rs {
		c := shallow(r)
		change(c)
		out[i] = c
	}
	return out
}

func shallow(r *mesosv1.Resource) *mesosv1.Resource {
	return &mesosv1.Resource{
		ProviderId: r.ProviderId, Name: r.Name, Type: r.Type,
		Scalar: r.Scalar, Ranges: r.Ranges, Set: r.Set,
		Role: r.Role, AllocationInfo: r.AllocationInfo,
		Reservation: r.Reservation, Reservations: r.Reservations,
		Disk: r.Disk, Revocable: r.Revocable, Shared: r.Shared,
	}
}
