package acl

import (
	"strings"
	"sync/atomic"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
)

// entity is one side of a list: all, nobody, or some by name.
type entity struct {
	any, none bool
	values    []string
}

// entry is one list as the operator wrote it.
type entry struct{ subjects, objects entity }

// policy is all lists together. It does not change once it is loaded.
type policy struct {
	permissive bool
	actions    map[string]action
	lists      map[string]list    // by name
	entries    map[string][]entry // by name of the list, in order
	revision   atomic.Uint64      // 0 until it is in force
}

func newPolicy(permissive bool) *policy {
	p := &policy{permissive: permissive, actions: map[string]action{}, lists: map[string]list{}, entries: map[string][]entry{}}
	for _, a := range actions() {
		p.actions[a.name] = a
		p.lists[a.list.name] = a.list
		if a.parent.name != "" {
			p.lists[a.parent.name] = a.parent
		}
	}
	return p
}

// The meaning of NONE, in Mesos and here: a list with NONE matches everybody who is asked about, and denies. A request
// without principal, or without object, counts as one for ANY: it is matched by ANY and NONE, and allowed by ANY.

// matchesSubject says whether a list applies to a principal; name is nil without one.
func (e entity) matchesSubject(name *string) bool {
	if e.any || e.none {
		return true
	}
	if name == nil {
		return false
	}
	for _, v := range e.values {
		if v == *name {
			return true
		}
	}
	return false
}

// rules are the lists that apply to a principal, as rules on objects.
func (p *policy) rules(l list, name *string) (out []*authorizerv1.Rule, otherwise bool) {
	for _, e := range p.entries[l.name] {
		if !e.subjects.matchesSubject(name) {
			continue
		}
		rule := &authorizerv1.Rule{Match: authorizerv1.Rule_ANY, Allow: !e.subjects.none && !e.objects.none}
		if !e.objects.any && !e.objects.none {
			rule.Match, rule.Values = authorizerv1.Rule_VALUES, e.objects.values
		}
		out = append(out, rule)
		if rule.Match == authorizerv1.Rule_ANY {
			return out[:len(out)-1], rule.Allow // nothing after it is ever asked
		}
	}
	return out, p.permissive
}

// evaluate decides about one value; nil is an object without one.
func evaluate(rules []*authorizerv1.Rule, otherwise bool, value *string) bool {
	for _, r := range rules {
		for _, v := range r.GetValues() {
			if value == nil {
				break
			}
			parent, below := strings.CutSuffix(v, "%")
			if v == *value || below && strings.HasSuffix(parent, "/") && strings.HasPrefix(*value, parent) {
				return r.GetAllow()
			}
		}
	}
	return otherwise
}

// constant says whether rules decide the same for every object.
func constant(rules []*authorizerv1.Rule, otherwise bool) bool {
	for _, r := range rules {
		if r.GetAllow() != otherwise {
			return false
		}
	}
	return true
}

// who is the name of a principal, nil if there is none.
func who(s *authorizerv1.Subject) *string {
	if s == nil {
		return nil
	}
	return s.Value
}

func (p *policy) action(name string) (action, error) {
	a, ok := p.actions[name]
	if !ok {
		return a, module.InvalidArgument("action: got %q, want one of Mesos's", name)
	}
	return a, nil
}

// approver gives the lists of an action in the form that the host can apply itself, wherever there is one.
func (p *policy) approver(s *authorizerv1.Subject, name string) (*authorizerv1.ApproverResponse, error) {
	a, err := p.action(name)
	if err != nil {
		return nil, err
	}
	rules, otherwise := p.rules(a.list, who(s))
	never := constant(rules, otherwise) && !otherwise
	ask := false
	if a.parent.name != "" {
		parents, other := p.rules(a.parent, who(s))
		switch {
		case constant(parents, other) && other: // the parent's user is no matter
		case constant(parents, other):
			never = true
		default:
			ask = !never
		}
	}
	if claim, _ := implied(name); claim != "" && s.GetClaims()[claim] != "" {
		ask, never = true, false // it depends on the container
	}
	switch {
	case never:
		return &authorizerv1.ApproverResponse{Decision: &authorizerv1.ApproverResponse_DenyAll{DenyAll: &authorizerv1.DenyAll{}}}, nil
	case ask:
		return &authorizerv1.ApproverResponse{Decision: &authorizerv1.ApproverResponse_Ask{Ask: &authorizerv1.Ask{}}}, nil
	case constant(rules, otherwise):
		return &authorizerv1.ApproverResponse{Decision: &authorizerv1.ApproverResponse_AllowAll{AllowAll: &authorizerv1.AllowAll{}}}, nil
	}
	return &authorizerv1.ApproverResponse{Decision: &authorizerv1.ApproverResponse_Rules{
		Rules: &authorizerv1.Rules{Rules: rules, OtherwiseAllow: otherwise},
	}}, nil
}

// authorized decides about one object.
func (p *policy) authorized(s *authorizerv1.Subject, name string, o *authorizerv1.Object) (bool, error) {
	a, err := p.action(name)
	if err != nil {
		return false, err
	}
	if claim, nested := implied(name); claim != "" {
		id, own := o.GetContainerId(), s.GetClaims()[claim]
		if own != "" && (nested && (id == own || strings.HasPrefix(id, own+".")) || !nested && strings.HasPrefix(id, own)) {
			return true, nil
		}
		if own != "" && who(s) == nil {
			return false, nil // an executor or provider by claims only has no other rights here
		}
	}
	rules, otherwise := p.rules(a.list, who(s))
	if !evaluate(rules, otherwise, o.Value) {
		return false, nil
	}
	if a.parent.name == "" {
		return true, nil
	}
	rules, otherwise = p.rules(a.parent, who(s))
	return evaluate(rules, otherwise, o.ParentValue), nil
}
