package resources

import (
	"fmt"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// ReconfigurationPolicy says how an agent may change between two starts and keep its id.
type ReconfigurationPolicy string

// The policies, as Mesos has them.
const (
	ReconfigureEqual    ReconfigurationPolicy = "equal"    // not at all
	ReconfigureAdditive ReconfigurationPolicy = "additive" // more resources and attributes, a domain
)

// CheckReconfiguration says which change from before to now the policy does not allow: its
// error names the field and both values. Port 0 is not compared, it means any.
//
// Source: Mesos's --reconfiguration_policy.
func CheckReconfiguration(policy ReconfigurationPolicy, before, now *mesosv1.AgentInfo) error {
	if policy != ReconfigureEqual && policy != ReconfigureAdditive {
		return fmt.Errorf("reconfiguration policy %q: want %q or %q", policy, ReconfigureEqual, ReconfigureAdditive)
	}
	if before.GetHostname() != now.GetHostname() {
		return fmt.Errorf("hostname: got %q, want %q as before", now.GetHostname(), before.GetHostname())
	}
	if before.GetPort() != now.GetPort() && now.GetPort() != 0 {
		return fmt.Errorf("port: got %d, want %d as before", now.GetPort(), before.GetPort())
	}
	had, has := New(before.GetResources()...), New(now.GetResources()...)
	if policy == ReconfigureEqual {
		if !before.GetDomain().EqualVT(now.GetDomain()) {
			return fmt.Errorf("domain: got %v, want %v as before", now.GetDomain(), before.GetDomain())
		}
		if !had.Equal(has) {
			return fmt.Errorf("resources: got %s, want %s as before", has, had)
		}
		if len(before.GetAttributes()) != len(now.GetAttributes()) {
			return fmt.Errorf("attributes: got %d, want %d as before", len(now.GetAttributes()), len(before.GetAttributes()))
		}
		return checkAttributes(before, now, func(a, b *mesosv1.Attribute) bool { return a.EqualVT(b) })
	}
	if before.Domain != nil && !before.GetDomain().EqualVT(now.GetDomain()) {
		return fmt.Errorf("domain: got %v, want %v as before", now.GetDomain(), before.GetDomain())
	}
	if !has.Contains(had) {
		return fmt.Errorf("resources: got %s, which lacks some of %s as before", has, had)
	}
	return checkAttributes(before, now, func(a, b *mesosv1.Attribute) bool {
		if a.GetType() == mesosv1.Value_RANGES && b.GetType() == mesosv1.Value_RANGES {
			return newRanges(b.GetRanges()).Contains(newRanges(a.GetRanges()))
		}
		return a.EqualVT(b)
	})
}

// checkAttributes says which old attribute has no new one of its name that may follow it.
func checkAttributes(before, now *mesosv1.AgentInfo, follows func(a, b *mesosv1.Attribute) bool) error {
	used := make([]bool, len(now.GetAttributes()))
next:
	for _, a := range before.GetAttributes() {
		for i, b := range now.GetAttributes() {
			if !used[i] && a.GetName() == b.GetName() && follows(a, b) {
				used[i] = true
				continue next
			}
		}
		return fmt.Errorf("attribute %q: is gone or has another value than before (%v)", a.GetName(), a)
	}
	return nil
}
