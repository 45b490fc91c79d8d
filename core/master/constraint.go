package master

import (
	"fmt"

	"github.com/mosaic-cluster/mosaic/core/allocator"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// constraints are a framework's OfferConstraints, checked and compiled. The zero value allows all.
type constraints struct {
	proto    *schedulerv1.OfferConstraints
	compiled *allocator.Constraints // nil if there are none
}

// constraintsOf compiles offer constraints.
//
// Errors: one for a role that is not among roles, and what the allocator finds wrong.
func constraintsOf(c *schedulerv1.OfferConstraints, roles []string) (constraints, error) {
	if c == nil {
		return constraints{}, nil
	}
	for _, role := range sortedKeys(c.GetRoleConstraints()) {
		if !contains(roles, role) {
			return constraints{}, fmt.Errorf("Offer constraints name role %q, to which the framework is not subscribed", role)
		}
	}
	compiled, err := allocator.CompileConstraints(c)
	if err != nil {
		return constraints{}, fmt.Errorf("Invalid offer constraints: %w", err)
	}
	return constraints{c, compiled}, nil
}

// checkOfferFilters says what is wrong with the filters that a framework sets for its roles.
func checkOfferFilters(info *mesosv1.FrameworkInfo, roles map[string]bool) error {
	filters := info.GetOfferFilters()
	for _, role := range sortedKeys(filters) {
		if !roles[role] {
			return fmt.Errorf("Offer filters name role %q, which is not one of the framework's", role)
		}
		for _, q := range filters[role].GetMinAllocatableResources().GetQuantities() {
			for _, name := range sortedKeys(q.GetQuantities()) {
				if v := q.GetQuantities()[name].GetValue(); !(v >= 0) || v > maxQuantity {
					return fmt.Errorf("Offer filters of role %q: '%s' is %v, want a number from 0 to %v", role, name, v, float64(maxQuantity))
				}
			}
		}
	}
	return nil
}

// maxQuantity is more of anything than a cluster has, and still exact in thousandths.
const maxQuantity = 1e12
