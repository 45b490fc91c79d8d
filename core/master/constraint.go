package master

import (
	"fmt"
	"regexp"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// maxPattern bounds the patterns in offer constraints, in bytes. Go's patterns take time linear in the
// text, but their programs grow with repetition counts.
const maxPattern = 1024

// constraints are a framework's OfferConstraints, checked and compiled. The zero value allows all.
type constraints struct {
	proto  *schedulerv1.OfferConstraints
	groups map[string][][]predicate // by role: an agent fits if all of one group hold
}

// predicate says whether an agent fits one AttributeConstraint.
type predicate func(*mesosv1.AgentInfo) bool

// constraintsOf compiles offer constraints.
//
// Errors: one for a role that is not among roles, an empty group, or a constraint that lacks its
// selector or predicate or has a pattern that is too long or does not compile.
func constraintsOf(c *schedulerv1.OfferConstraints, roles []string) (constraints, error) {
	out := constraints{proto: c}
	for role, rc := range c.GetRoleConstraints() {
		if !contains(roles, role) {
			return constraints{}, fmt.Errorf("Offer constraints name role %q, to which the framework is not subscribed", role)
		}
		if len(rc.GetGroups()) == 0 {
			return constraints{}, fmt.Errorf("Offer constraints for role %q are empty", role)
		}
		for _, g := range rc.GetGroups() {
			if len(g.GetAttributeConstraints()) == 0 {
				return constraints{}, fmt.Errorf("Offer constraints for role %q have an empty group", role)
			}
			var all []predicate
			for _, ac := range g.GetAttributeConstraints() {
				p, err := compileConstraint(ac)
				if err != nil {
					return constraints{}, fmt.Errorf("Offer constraints for role %q: %w", role, err)
				}
				all = append(all, p)
			}
			if out.groups == nil {
				out.groups = make(map[string][][]predicate)
			}
			out.groups[role] = append(out.groups[role], all)
		}
	}
	return out, nil
}

// allow says whether an agent may be offered to the framework in a role.
func (c constraints) allow(role string, a *mesosv1.AgentInfo) bool {
	groups, ok := c.groups[role]
	if !ok {
		return true
	}
	for _, g := range groups {
		fits := true
		for _, p := range g {
			if !p(a) {
				fits = false
				break
			}
		}
		if fits {
			return true
		}
	}
	return false
}

// compileConstraint makes one constraint a predicate. Of several attributes with the selected name one
// that matches suffices, and for the negative predicates none may match; attributes that are not text
// fit all predicates on text.
func compileConstraint(ac *schedulerv1.AttributeConstraint) (predicate, error) {
	values, err := compileSelector(ac.GetSelector())
	if err != nil {
		return nil, err
	}
	text := func(match func(string) bool, want bool) predicate {
		return func(a *mesosv1.AgentInfo) bool {
			found := values(a)
			for _, v := range found {
				if !v.text {
					return true
				}
				if match(v.value) {
					return want
				}
			}
			return !want
		}
	}
	switch p := ac.GetPredicate().GetPredicate().(type) {
	case *schedulerv1.AttributeConstraint_Predicate_Exists_:
		return func(a *mesosv1.AgentInfo) bool { return len(values(a)) > 0 }, nil
	case *schedulerv1.AttributeConstraint_Predicate_NotExists_:
		return func(a *mesosv1.AgentInfo) bool { return len(values(a)) == 0 }, nil
	case *schedulerv1.AttributeConstraint_Predicate_TextEquals_:
		want := p.TextEquals.GetValue()
		return text(func(s string) bool { return s == want }, true), nil
	case *schedulerv1.AttributeConstraint_Predicate_TextNotEquals_:
		want := p.TextNotEquals.GetValue()
		return text(func(s string) bool { return s == want }, false), nil
	case *schedulerv1.AttributeConstraint_Predicate_TextMatches_:
		re, err := compilePattern(p.TextMatches.GetRegex())
		if err != nil {
			return nil, err
		}
		return text(re.MatchString, true), nil
	case *schedulerv1.AttributeConstraint_Predicate_TextNotMatches_:
		re, err := compilePattern(p.TextNotMatches.GetRegex())
		if err != nil {
			return nil, err
		}
		return text(re.MatchString, false), nil
	}
	return nil, fmt.Errorf("a constraint has no predicate that is known")
}

// compilePattern compiles a pattern that has to match the whole text.
func compilePattern(pattern string) (*regexp.Regexp, error) {
	if len(pattern) > maxPattern {
		return nil, fmt.Errorf("a pattern has %d bytes, want at most %d", len(pattern), maxPattern)
	}
	re, err := regexp.Compile(`\A(?:` + pattern + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("pattern %q: %w", pattern, err)
	}
	return re, nil
}

// attributeValue is what a selector finds.
type attributeValue struct {
	value string
	text  bool
}

func compileSelector(sel *schedulerv1.AttributeConstraint_Selector) (func(*mesosv1.AgentInfo) []attributeValue, error) {
	one := func(v string) []attributeValue {
		if v == "" {
			return nil
		}
		return []attributeValue{{v, true}}
	}
	switch x := sel.GetSelector().(type) {
	case *schedulerv1.AttributeConstraint_Selector_AttributeName:
		name := x.AttributeName
		return func(a *mesosv1.AgentInfo) []attributeValue {
			var out []attributeValue
			for _, attr := range a.GetAttributes() {
				if attr.GetName() == name {
					out = append(out, attributeValue{attr.GetText().GetValue(), attr.GetType() == mesosv1.Value_TEXT})
				}
			}
			return out
		}, nil
	case *schedulerv1.AttributeConstraint_Selector_PseudoattributeType_:
		switch x.PseudoattributeType {
		case schedulerv1.AttributeConstraint_Selector_HOSTNAME:
			return func(a *mesosv1.AgentInfo) []attributeValue { return one(a.GetHostname()) }, nil
		case schedulerv1.AttributeConstraint_Selector_REGION:
			return func(a *mesosv1.AgentInfo) []attributeValue {
				return one(a.GetDomain().GetFaultDomain().GetRegion().GetName())
			}, nil
		case schedulerv1.AttributeConstraint_Selector_ZONE:
			return func(a *mesosv1.AgentInfo) []attributeValue {
				return one(a.GetDomain().GetFaultDomain().GetZone().GetName())
			}, nil
		}
	}
	return nil, fmt.Errorf("a constraint has no selector that is known")
}
