package master

import (
	"errors"
	"fmt"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// What an operation must look like, and who must allow it, whoever asks for it.

// operands are the resources that an operation names.
func operands(op *mesosv1.Offer_Operation) []*mesosv1.Resource {
	switch op.GetType() {
	case mesosv1.Offer_Operation_RESERVE:
		return op.GetReserve().GetResources()
	case mesosv1.Offer_Operation_UNRESERVE:
		return op.GetUnreserve().GetResources()
	case mesosv1.Offer_Operation_CREATE:
		return op.GetCreate().GetVolumes()
	case mesosv1.Offer_Operation_DESTROY:
		return op.GetDestroy().GetVolumes()
	case mesosv1.Offer_Operation_GROW_VOLUME:
		if g := op.GetGrowVolume(); g.GetVolume() != nil && g.GetAddition() != nil {
			return []*mesosv1.Resource{g.Volume, g.Addition}
		}
	case mesosv1.Offer_Operation_SHRINK_VOLUME:
		if v := op.GetShrinkVolume().GetVolume(); v != nil {
			return []*mesosv1.Resource{v}
		}
	}
	return nil
}

// reservation is the innermost reservation of a resource, in either form; nil if there is none.
func reservation(r *mesosv1.Resource) *mesosv1.Resource_ReservationInfo {
	for _, e := range resources.New(r).Entries() {
		if stack := e.Reservations(); len(stack) > 0 {
			return stack[len(stack)-1]
		}
	}
	return nil
}

// checkOperation says what is wrong with an operation, apart from whether its resources are there. f is nil for an
// operator's; principal is the caller's, "" for someone who is not authenticated.
func checkOperation(op *mesosv1.Offer_Operation, a *agent, f *framework, principal string) error {
	switch op.GetType() {
	case mesosv1.Offer_Operation_RESERVE, mesosv1.Offer_Operation_UNRESERVE, mesosv1.Offer_Operation_CREATE,
		mesosv1.Offer_Operation_DESTROY, mesosv1.Offer_Operation_GROW_VOLUME, mesosv1.Offer_Operation_SHRINK_VOLUME:
	default:
		return fmt.Errorf("Operation %s is not supported by this master", op.GetType())
	}
	rs := operands(op)
	if len(rs) == 0 {
		return fmt.Errorf("Operation %s names no resources", op.GetType())
	}
	if err := resources.ValidateAll(rs); err != nil {
		return fmt.Errorf("Invalid resources: %w", err)
	}
	for _, r := range rs {
		if r.GetProviderId() != nil {
			return errors.New("Operations on resources of resource providers are not supported by this master")
		}
	}
	switch op.GetType() {
	case mesosv1.Offer_Operation_RESERVE:
		for _, r := range rs {
			if err := checkReserve(r, f, principal); err != nil {
				return err
			}
		}
	case mesosv1.Offer_Operation_UNRESERVE:
		for _, r := range rs {
			set := resources.New(r)
			switch {
			case reservation(r).GetType() != mesosv1.Resource_ReservationInfo_DYNAMIC:
				return fmt.Errorf("Resource %s is not dynamically reserved", set)
			case r.GetDisk().GetPersistence() != nil:
				return fmt.Errorf("A dynamically reserved persistent volume %s cannot be unreserved directly. "+
					"Please destroy the persistent volume first then unreserve the resource", set)
			}
		}
	case mesosv1.Offer_Operation_CREATE:
		return checkCreate(rs, a, f, principal)
	case mesosv1.Offer_Operation_DESTROY:
		for _, r := range rs {
			if r.GetDisk().GetPersistence() == nil {
				return fmt.Errorf("Resource %s is not a persistent volume", resources.New(r))
			}
		}
	default:
		if !a.can(mesosv1.AgentInfo_Capability_RESIZE_VOLUME) {
			return fmt.Errorf("Volume %s cannot be resized on agent %s that does not have the RESIZE_VOLUME capability", resources.New(rs[0]), a.id)
		}
	}
	return nil
}

func checkReserve(r *mesosv1.Resource, f *framework, principal string) error {
	set := resources.New(r)
	info := reservation(r)
	switch {
	case info.GetType() != mesosv1.Resource_ReservationInfo_DYNAMIC:
		return fmt.Errorf("Resource %s is not dynamically reserved", set)
	case r.GetDisk().GetPersistence() != nil:
		return fmt.Errorf("A persistent volume %s must already be reserved", set)
	case r.Revocable != nil:
		return fmt.Errorf("Revocable resource %s cannot be reserved", set)
	case principal != "" && info.Principal == nil:
		return fmt.Errorf("A reserve operation was attempted by principal '%s', but there is a reserved resource in the request with no principal set", principal)
	case principal != "" && info.GetPrincipal() != principal:
		return fmt.Errorf("A reserve operation was attempted by authenticated principal '%s', which does not match a reserved resource in the request with principal '%s'",
			principal, info.GetPrincipal())
	}
	if f == nil {
		return nil
	}
	for _, role := range f.roles {
		// A framework may refine what its role has, for a role below.
		if role == info.GetRole() || resources.IsSubrole(info.GetRole(), role) {
			return nil
		}
	}
	return fmt.Errorf("A reserve operation was attempted for a resource with role '%s', but the framework can only reserve resources with roles %q",
		info.GetRole(), f.roles)
}

func checkCreate(rs []*mesosv1.Resource, a *agent, f *framework, principal string) error {
	type name struct{ role, id string }
	seen := make(map[name]bool)
	for _, e := range a.total.PersistentVolumes().Entries() {
		seen[name{e.ReservedTo(), e.Disk().GetPersistence().GetId()}] = true
	}
	for _, r := range rs {
		set := resources.New(r)
		p, v := r.GetDisk().GetPersistence(), r.GetDisk().GetVolume()
		n := name{reservation(r).GetRole(), p.GetId()}
		switch {
		case p == nil:
			return fmt.Errorf("Resource %s is not a persistent volume", set)
		case v == nil:
			return errors.New("Expecting 'volume' to be set for persistent volume")
		case v.HostPath != nil:
			return errors.New("Expecting 'host_path' to be unset for persistent volume")
		case v.GetContainerPath() == "":
			return errors.New("Expecting 'container_path' to be set for persistent volume")
		case v.GetMode() != mesosv1.Volume_RW:
			return errors.New("Persistent volume must be created with mode RW")
		case seen[n]:
			return fmt.Errorf("Persistence ID '%s' is in use by role '%s' on the agent already", n.id, n.role)
		case r.Shared != nil && f != nil && !f.can.shared:
			return errors.New("Create operation for shared volumes is attempted by a framework without the SHARED_RESOURCES capability")
		case principal != "" && p.Principal == nil:
			return fmt.Errorf("Create volume operation attempted by principal '%s', but there is no principal set in 'DiskInfo.Persistence'", principal)
		case principal != "" && p.GetPrincipal() != principal:
			return fmt.Errorf("Create volume operation attempted by principal '%s', which does not match the principal '%s' in 'DiskInfo.Persistence'",
				principal, p.GetPrincipal())
		}
		seen[n] = true
	}
	return nil
}

// permission is one thing that an authorizer is asked about.
type permission struct{ action, object string }

// key is a permission's place among those that were asked for; no user has such a name.
func (p permission) key() string { return p.action + "\x00" + p.object }

// permissionsFor are what an operation needs.
func permissionsFor(op *mesosv1.Offer_Operation) []permission {
	var out []permission
	for _, r := range operands(op) {
		info := reservation(r)
		switch op.GetType() {
		case mesosv1.Offer_Operation_RESERVE:
			out = append(out, permission{"RESERVE_RESOURCES", info.GetRole()})
		case mesosv1.Offer_Operation_UNRESERVE:
			out = append(out, permission{"UNRESERVE_RESOURCES", info.GetPrincipal()})
		case mesosv1.Offer_Operation_CREATE:
			out = append(out, permission{"CREATE_VOLUME", info.GetRole()})
		case mesosv1.Offer_Operation_DESTROY:
			out = append(out, permission{"DESTROY_VOLUME", r.GetDisk().GetPersistence().GetPrincipal()})
		default:
			out = append(out, permission{"RESIZE_VOLUME", info.GetRole()})
		}
	}
	for _, r := range op.GetReserve().GetSource() {
		out = append(out, permission{"UNRESERVE_RESOURCES", reservation(r).GetPrincipal()})
	}
	return out
}

// mayOperate says why an operation is not allowed.
func (x *acceptance) mayOperate(op *mesosv1.Offer_Operation) error {
	if x.denied == nil {
		return nil
	}
	for _, p := range permissionsFor(op) {
		err, asked := x.denied[p.key()]
		if !asked {
			err = errors.New("nobody was asked")
		}
		if err != nil {
			return fmt.Errorf("Not authorized to %s '%s': %w", p.action, p.object, err)
		}
	}
	return nil
}

// allocatedOperation returns an operation whose resources are allocated to the role.
//
// Errors: one of them says that it is allocated to another.
func allocatedOperation(op *mesosv1.Offer_Operation, role string) (*mesosv1.Offer_Operation, error) {
	op = op.CloneVT()
	for _, r := range operands(op) {
		if a := r.GetAllocationInfo(); a != nil && a.Role != nil && a.GetRole() != role {
			return nil, fmt.Errorf("resource %q is allocated to role %q, want %q", r.GetName(), a.GetRole(), role)
		}
		r.AllocationInfo = &mesosv1.Resource_AllocationInfo{Role: &role}
	}
	return op, nil
}

// unallocatedOperation returns an operation whose resources are allocated to nobody.
func unallocatedOperation(op *mesosv1.Offer_Operation) *mesosv1.Offer_Operation {
	op = op.CloneVT()
	for _, r := range append(operands(op), op.GetReserve().GetSource()...) {
		r.AllocationInfo = nil
	}
	return op
}

func unallocatedConversion(c resources.Conversion) resources.Conversion {
	return resources.Conversion{Consumed: c.Consumed.Unallocate(), Converted: c.Converted.Unallocate()}
}
