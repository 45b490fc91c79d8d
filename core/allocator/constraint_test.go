package allocator

import (
	"strings"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

func attribute(name string) *schedulerv1.AttributeConstraint_Selector {
	return &schedulerv1.AttributeConstraint_Selector{Selector: &schedulerv1.AttributeConstraint_Selector_AttributeName{AttributeName: name}}
}

func pseudo(kind schedulerv1.AttributeConstraint_Selector_PseudoattributeType) *schedulerv1.AttributeConstraint_Selector {
	return &schedulerv1.AttributeConstraint_Selector{Selector: &schedulerv1.AttributeConstraint_Selector_PseudoattributeType_{PseudoattributeType: kind}}
}

// is makes a constraint out of "exists", "!exists", "=text", "!=text", "~regex" or "!~regex".
func is(s *schedulerv1.AttributeConstraint_Selector, predicate string) *schedulerv1.AttributeConstraint {
	p := &schedulerv1.AttributeConstraint_Predicate{}
	switch {
	case predicate == "exists":
		p.Predicate = &schedulerv1.AttributeConstraint_Predicate_Exists_{Exists: &schedulerv1.AttributeConstraint_Predicate_Exists{}}
	case predicate == "!exists":
		p.Predicate = &schedulerv1.AttributeConstraint_Predicate_NotExists_{NotExists: &schedulerv1.AttributeConstraint_Predicate_NotExists{}}
	case predicate[0] == '=':
		p.Predicate = &schedulerv1.AttributeConstraint_Predicate_TextEquals_{TextEquals: &schedulerv1.AttributeConstraint_Predicate_TextEquals{Value: ptr(predicate[1:])}}
	case predicate[0] == '~':
		p.Predicate = &schedulerv1.AttributeConstraint_Predicate_TextMatches_{TextMatches: &schedulerv1.AttributeConstraint_Predicate_TextMatches{Regex: ptr(predicate[1:])}}
	case predicate[1] == '=':
		p.Predicate = &schedulerv1.AttributeConstraint_Predicate_TextNotEquals_{TextNotEquals: &schedulerv1.AttributeConstraint_Predicate_TextNotEquals{Value: ptr(predicate[2:])}}
	default:
		p.Predicate = &schedulerv1.AttributeConstraint_Predicate_TextNotMatches_{TextNotMatches: &schedulerv1.AttributeConstraint_Predicate_TextNotMatches{Regex: ptr(predicate[2:])}}
	}
	return &schedulerv1.AttributeConstraint{Selector: s, Predicate: p}
}

// constraints for the role "eng": any of the groups.
func constraints(groups ...[]*schedulerv1.AttributeConstraint) *schedulerv1.OfferConstraints {
	rc := &schedulerv1.OfferConstraints_RoleConstraints{}
	for _, g := range groups {
		rc.Groups = append(rc.Groups, &schedulerv1.OfferConstraints_RoleConstraints_Group{AttributeConstraints: g})
	}
	return &schedulerv1.OfferConstraints{RoleConstraints: map[string]*schedulerv1.OfferConstraints_RoleConstraints{"eng": rc}}
}

func TestConstraintsDecideWhichAgentsAreOffered(t *testing.T) {
	attributes, err := resources.ParseAttributes("rack:r1;rack:r2;size:10;zone:here")
	if err != nil {
		t.Fatal(err)
	}
	info := &mesosv1.AgentInfo{Hostname: ptr("h1.example"), Attributes: attributes, Domain: &mesosv1.DomainInfo{
		FaultDomain: &mesosv1.DomainInfo_FaultDomain{
			Region: &mesosv1.DomainInfo_FaultDomain_RegionInfo{Name: ptr("west")},
			Zone:   &mesosv1.DomainInfo_FaultDomain_ZoneInfo{Name: ptr("w1")}}}}
	type cs = []*schedulerv1.AttributeConstraint
	for _, tt := range []struct {
		name   string
		groups []cs
		want   bool
	}{
		{"exists", []cs{{is(attribute("rack"), "exists")}}, true},
		{"does not exist", []cs{{is(attribute("row"), "exists")}}, false},
		{"not exists", []cs{{is(attribute("row"), "!exists")}}, true},
		{"one of two is equal", []cs{{is(attribute("rack"), "=r2")}}, true},
		{"neither is equal", []cs{{is(attribute("rack"), "=r3")}}, false},
		{"one must not be equal, and is", []cs{{is(attribute("rack"), "!=r2")}}, false},
		{"none is equal", []cs{{is(attribute("rack"), "!=r3")}}, true},
		{"not equal, not there", []cs{{is(attribute("row"), "!=x")}}, true},
		{"equal, not there", []cs{{is(attribute("row"), "=x")}}, false},
		{"no text, equal", []cs{{is(attribute("size"), "=10")}}, true},
		{"no text, not equal", []cs{{is(attribute("size"), "!=10")}}, true},
		{"matches", []cs{{is(attribute("rack"), "~r[0-9]")}}, true},
		{"matches a part only", []cs{{is(attribute("zone"), "~her")}}, false},
		{"alternatives match whole", []cs{{is(attribute("zone"), "~he|re")}}, false},
		{"not matches", []cs{{is(attribute("rack"), "!~r[1]")}}, false},
		{"host", []cs{{is(pseudo(schedulerv1.AttributeConstraint_Selector_HOSTNAME), `~h\d\.example`)}}, true},
		{"region", []cs{{is(pseudo(schedulerv1.AttributeConstraint_Selector_REGION), "=west")}}, true},
		{"zone", []cs{{is(pseudo(schedulerv1.AttributeConstraint_Selector_ZONE), "=here")}}, false},
		{"all of a group", []cs{{is(attribute("rack"), "=r1"), is(attribute("zone"), "=there")}}, false},
		{"any of the groups", []cs{{is(attribute("zone"), "=there")}, {is(attribute("zone"), "=here")}}, true},
	} {
		c, err := CompileConstraints(constraints(tt.groups...))
		if err != nil {
			t.Errorf("%s: CompileConstraints: %v", tt.name, err)
			continue
		}
		if got := c.allow("eng", info); got != tt.want {
			t.Errorf("%s: allow = %v, want %v", tt.name, got, tt.want)
		}
		if !c.allow("ops", info) {
			t.Errorf("%s: another role is constrained too", tt.name)
		}
	}
}

func TestConstraintsApplyFromTheMomentTheyAreSet(t *testing.T) {
	a := New(Options{})
	a.AddFramework("f1", frameworkInfo([]string{"eng"}), nil, true)
	a.AddAgent("s1", &mesosv1.AgentInfo{Hostname: ptr("h1")}, agentCapabilities, resources.MustParse("cpus:1;mem:64"), nil)
	c, err := CompileConstraints(constraints([]*schedulerv1.AttributeConstraint{is(pseudo(schedulerv1.AttributeConstraint_Selector_HOSTNAME), "=h2")}))
	if err != nil {
		t.Fatal(err)
	}
	a.SetConstraints("f1", c)
	if got := a.Allocate(epoch); len(got) != 0 {
		t.Errorf("constrained: %s", formatOffers(got))
	}
	why := a.Explain(Question{FrameworkID: "f1", Role: "eng"}, epoch).Asked[0].Reasons
	if len(why) != 1 || why[0].Code != Constrained || !strings.HasSuffix(why[0].Text, `: hostname must equal "h2"`) {
		t.Errorf("reasons %+v, want one %q", why, Constrained)
	}
	a.SetConstraints("f1", nil)
	if got := a.Allocate(epoch); len(got) != 1 {
		t.Errorf("no longer constrained: %d offers, want 1", len(got))
	}
}

func TestWrongConstraintsAreRefused(t *testing.T) {
	for name, c := range map[string]*schedulerv1.OfferConstraints{
		"no groups":    constraints(),
		"empty group":  constraints(nil),
		"no selector":  constraints([]*schedulerv1.AttributeConstraint{is(nil, "exists")}),
		"unknown":      constraints([]*schedulerv1.AttributeConstraint{is(pseudo(schedulerv1.AttributeConstraint_Selector_UNKNOWN), "exists")}),
		"no predicate": constraints([]*schedulerv1.AttributeConstraint{{Selector: attribute("a")}}),
		"bad regex":    constraints([]*schedulerv1.AttributeConstraint{is(attribute("a"), "~(")}),
		"escaping":     constraints([]*schedulerv1.AttributeConstraint{is(attribute("a"), "~a)|(b")}),
		"long regex":   constraints([]*schedulerv1.AttributeConstraint{is(attribute("a"), "~"+strings.Repeat("a", 5000))}),
		"large regex":  constraints([]*schedulerv1.AttributeConstraint{is(attribute("a"), "~((a{9}){9}){9}")}),
	} {
		if _, err := CompileConstraints(c); err == nil {
			t.Errorf("%s: CompileConstraints succeeded", name)
		}
	}
}
