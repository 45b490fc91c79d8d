package modulehost

import (
	"fmt"
	"slices"

	"github.com/hashicorp/hcl/v2"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// maxFound bounds how many resources one module finds: kinds of devices, of which a machine has a few.
const maxFound = 256

// Found is what one isolator found of the machine's resources.
type Found struct {
	Module string // isolator(nvidia_gpu)
	// Where its block is in the composition.
	Range hcl.Range
	// Scalars without a role, each name once.
	Resources []*mesosv1.Resource
	// Whether it has come up and was asked. What one that has not would find is not known.
	Known bool
	// Why it found less than it should have, if it says.
	Reason string
}

// Found tells of all isolators what they found, in the order of the composition.
func (h *Host) Found() []Found {
	var list []Found
	for _, m := range h.ofKind(KindIsolator) {
		m.mu.Lock()
		list = append(list, Found{Module: m.cfg.id(), Range: m.cfg.Range, Resources: slices.Clone(m.found), Known: m.configured, Reason: m.reason})
		m.mu.Unlock()
	}
	return list
}

// checkFound refuses what an agent could not offer as it is told.
func checkFound(kind string, list []*mesosv1.Resource) error {
	if len(list) > 0 && kind != KindIsolator {
		return fmt.Errorf("resources of a module of kind %s, want them of isolators only", kind)
	}
	if len(list) > maxFound {
		return fmt.Errorf("%d resources, want at most %d", len(list), maxFound)
	}
	seen := map[string]bool{}
	for _, r := range list {
		name := r.GetName()
		if err := resources.Validate(r); err != nil {
			return fmt.Errorf("resources: %w", err)
		}
		switch {
		case len(name) > 128:
			return fmt.Errorf("resource %q has a name of %d bytes, want at most 128", cutText(name, 64), len(name))
		case slices.Contains([]string{"cpus", "mem", "disk", "ports"}, name):
			return fmt.Errorf("resource %s is the agent's own to find", name)
		case r.GetType() != mesosv1.Value_SCALAR:
			return fmt.Errorf("resource %s is of type %s, want a number", name, r.GetType())
		case len(r.GetReservations()) > 0 || r.Role != nil && r.GetRole() != "*" || r.Reservation != nil || r.Disk != nil || r.Revocable != nil ||
			r.Shared != nil || r.ProviderId != nil || r.AllocationInfo != nil:
			return fmt.Errorf("resource %s: want an amount and nothing else", name)
		case seen[name]:
			return fmt.Errorf("resource %s twice", name)
		}
		seen[name] = true
	}
	return nil
}
