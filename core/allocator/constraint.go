package allocator

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

const (
	// maxRegex and maxProgram bound the expressions that frameworks send: they are tried on
	// every agent. The numbers are Mesos's, --offer_constraints_re2_max_mem and
	// --offer_constraints_re2_max_program_size.
	maxRegex   = 4096
	maxProgram = 100
)

// Constraints are a framework's offer constraints, checked and ready to be used.
type Constraints struct {
	roles map[string][]group
}

// group is a list of tests that an agent must pass, all of them.
type group []test

type test struct {
	text string // what must be, as in: attribute "rack" must equal "r1"
	pass func(*mesosv1.AgentInfo) bool
}

// CompileConstraints checks the offer constraints that a framework sent. What is wrong is for
// the framework to know.
func CompileConstraints(c *schedulerv1.OfferConstraints) (*Constraints, error) {
	out := &Constraints{roles: make(map[string][]group, len(c.GetRoleConstraints()))}
	for _, role := range sortedKeys(c.GetRoleConstraints()) {
		groups := c.GetRoleConstraints()[role].GetGroups()
		if len(groups) == 0 {
			return nil, fmt.Errorf("offer constraints of role %q: no groups", role)
		}
		for i, g := range groups {
			if len(g.GetAttributeConstraints()) == 0 {
				return nil, fmt.Errorf("offer constraints of role %q: group %d is empty", role, i)
			}
			var tests group
			for j, ac := range g.GetAttributeConstraints() {
				pass, err := compileConstraint(ac)
				if err != nil {
					return nil, fmt.Errorf("offer constraints of role %q: group %d: constraint %d: %w", role, i, j, err)
				}
				tests = append(tests, test{describe(ac), pass})
			}
			out.roles[role] = append(out.roles[role], tests)
		}
	}
	return out, nil
}

// Roles returns the roles that are constrained, in order.
func (c *Constraints) Roles() []string {
	if c == nil {
		return nil
	}
	return sortedKeys(c.roles)
}

// SetConstraints replaces a framework's offer constraints; nil takes them away.
func (a *Allocator) SetConstraints(frameworkID string, c *Constraints) {
	fw := a.frameworks[frameworkID]
	if fw == nil {
		return
	}
	fw.constraints = c
	for _, cl := range fw.clients {
		a.relist(cl)
	}
}

// allow says whether an agent may be offered in a role: without constraints any, else one
// that passes all tests of a group.
func (c *Constraints) allow(role string, info *mesosv1.AgentInfo) bool {
	if c == nil || len(c.roles[role]) == 0 {
		return true
	}
next:
	for _, g := range c.roles[role] {
		for _, test := range g {
			if !test.pass(info) {
				continue next
			}
		}
		return true
	}
	return false
}

// failed returns the first test of the first group that an agent does not pass, and how many other
// groups there are. Call it for agents that are not allowed.
func (c *Constraints) failed(role string, info *mesosv1.AgentInfo) (text string, others int) {
	groups := c.roles[role]
	for _, test := range groups[0] {
		if !test.pass(info) {
			return test.text, len(groups) - 1
		}
	}
	return "", len(groups) - 1
}

// describe puts a constraint in words.
func describe(c *schedulerv1.AttributeConstraint) string {
	what := ""
	switch s := c.GetSelector().GetSelector().(type) {
	case *schedulerv1.AttributeConstraint_Selector_AttributeName:
		what = fmt.Sprintf("attribute %.60q", s.AttributeName)
	case *schedulerv1.AttributeConstraint_Selector_PseudoattributeType_:
		what = strings.ToLower(s.PseudoattributeType.String())
	}
	switch p := c.GetPredicate().GetPredicate().(type) {
	case *schedulerv1.AttributeConstraint_Predicate_Exists_:
		return what + " must exist"
	case *schedulerv1.AttributeConstraint_Predicate_NotExists_:
		return what + " must not exist"
	case *schedulerv1.AttributeConstraint_Predicate_TextEquals_:
		return fmt.Sprintf("%s must equal %.60q", what, p.TextEquals.GetValue())
	case *schedulerv1.AttributeConstraint_Predicate_TextNotEquals_:
		return fmt.Sprintf("%s must not equal %.60q", what, p.TextNotEquals.GetValue())
	case *schedulerv1.AttributeConstraint_Predicate_TextMatches_:
		return fmt.Sprintf("%s must match %.60q", what, p.TextMatches.GetRegex())
	case *schedulerv1.AttributeConstraint_Predicate_TextNotMatches_:
		return fmt.Sprintf("%s must not match %.60q", what, p.TextNotMatches.GetRegex())
	}
	return what
}

// candidate is what a constraint looks at: an attribute's text, or that it is no text.
type candidate struct {
	text   string
	isText bool
}

func compileConstraint(c *schedulerv1.AttributeConstraint) (func(*mesosv1.AgentInfo) bool, error) {
	find, err := compileSelector(c.GetSelector())
	if err != nil {
		return nil, err
	}
	var match func(string) bool
	negated := false
	switch p := c.GetPredicate().GetPredicate().(type) {
	case *schedulerv1.AttributeConstraint_Predicate_Exists_:
		return func(info *mesosv1.AgentInfo) bool { return len(find(info)) > 0 }, nil
	case *schedulerv1.AttributeConstraint_Predicate_NotExists_:
		return func(info *mesosv1.AgentInfo) bool { return len(find(info)) == 0 }, nil
	case *schedulerv1.AttributeConstraint_Predicate_TextEquals_:
		match = func(s string) bool { return s == p.TextEquals.GetValue() }
	case *schedulerv1.AttributeConstraint_Predicate_TextNotEquals_:
		match, negated = func(s string) bool { return s == p.TextNotEquals.GetValue() }, true
	case *schedulerv1.AttributeConstraint_Predicate_TextMatches_:
		match, err = compileRegex(p.TextMatches.GetRegex())
	case *schedulerv1.AttributeConstraint_Predicate_TextNotMatches_:
		match, err = compileRegex(p.TextNotMatches.GetRegex())
		negated = true
	default:
		err = errors.New("no predicate that is known")
	}
	if err != nil {
		return nil, err
	}
	// Of several attributes of a name one must match, or none if negated. Text tests say
	// nothing about attributes that are not text: those pass both ways.
	return func(info *mesosv1.AgentInfo) bool {
		for _, x := range find(info) {
			switch {
			case negated && x.isText && match(x.text):
				return false
			case !negated && (!x.isText || match(x.text)):
				return true
			}
		}
		return negated
	}, nil
}

func compileSelector(s *schedulerv1.AttributeConstraint_Selector) (func(*mesosv1.AgentInfo) []candidate, error) {
	text := func(s string) []candidate { return []candidate{{s, true}} }
	switch s := s.GetSelector().(type) {
	case *schedulerv1.AttributeConstraint_Selector_AttributeName:
		return func(info *mesosv1.AgentInfo) (out []candidate) {
			for _, a := range info.GetAttributes() {
				if a.GetName() == s.AttributeName {
					out = append(out, candidate{a.GetText().GetValue(), a.GetType() == mesosv1.Value_TEXT})
				}
			}
			return out
		}, nil
	case *schedulerv1.AttributeConstraint_Selector_PseudoattributeType_:
		switch s.PseudoattributeType {
		case schedulerv1.AttributeConstraint_Selector_HOSTNAME:
			return func(info *mesosv1.AgentInfo) []candidate { return text(info.GetHostname()) }, nil
		case schedulerv1.AttributeConstraint_Selector_REGION:
			return func(info *mesosv1.AgentInfo) []candidate {
				if r := info.GetDomain().GetFaultDomain().GetRegion(); r != nil {
					return text(r.GetName())
				}
				return nil
			}, nil
		case schedulerv1.AttributeConstraint_Selector_ZONE:
			return func(info *mesosv1.AgentInfo) []candidate {
				if z := info.GetDomain().GetFaultDomain().GetZone(); z != nil {
					return text(z.GetName())
				}
				return nil
			}, nil
		}
	}
	return nil, errors.New("no selector that is known")
}

// compileRegex compiles an expression that must match the whole text.
func compileRegex(text string) (func(string) bool, error) {
	if len(text) > maxRegex {
		return nil, fmt.Errorf("expression of %d bytes, at most %d are taken", len(text), maxRegex)
	}
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, err
	}
	if n := len(program.Inst); n > maxProgram {
		return nil, fmt.Errorf("expression %.100q needs a program of %d steps, at most %d are taken", text, n, maxProgram)
	}
	re, err := regexp.Compile(`\A(?:` + text + `)\z`)
	if err != nil {
		return nil, err
	}
	return re.MatchString, nil
}
