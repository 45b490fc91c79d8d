package authorizer_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/authorizer"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
)

func rules(otherwise bool, list ...*authorizerv1.Rule) *authorizerv1.ApproverResponse {
	return &authorizerv1.ApproverResponse{Decision: &authorizerv1.ApproverResponse_Rules{Rules: &authorizerv1.Rules{Rules: list, OtherwiseAllow: otherwise}}}
}

func values(allow bool, v ...string) *authorizerv1.Rule {
	return &authorizerv1.Rule{Match: authorizerv1.Rule_VALUES, Values: v, Allow: allow}
}

func TestTheFirstRuleThatMatchesDecides(t *testing.T) {
	all := &authorizerv1.ApproverResponse{Decision: &authorizerv1.ApproverResponse_AllowAll{AllowAll: &authorizerv1.AllowAll{}}}
	none := &authorizerv1.ApproverResponse{Decision: &authorizerv1.ApproverResponse_DenyAll{DenyAll: &authorizerv1.DenyAll{}}}
	ask := &authorizerv1.ApproverResponse{Decision: &authorizerv1.ApproverResponse_Ask{Ask: &authorizerv1.Ask{}}}
	mixed := rules(true, values(true, "eng/web"), values(false, "eng/%", "root"), values(true, "root"))
	for _, test := range []struct {
		r             *authorizerv1.ApproverResponse
		value         *string
		allowed, asks bool
	}{
		{all, nil, true, false}, {none, nil, false, false}, {ask, nil, false, true}, {&authorizerv1.ApproverResponse{}, nil, false, false},
		{mixed, proto.String("eng/web"), true, false}, {mixed, proto.String("eng/db"), false, false}, {mixed, proto.String("eng/db/x"), false, false},
		{mixed, proto.String("eng"), true, false}, {mixed, proto.String("engine"), true, false}, {mixed, proto.String("root"), false, false},
		{mixed, nil, true, false}, {mixed, proto.String(""), true, false},
		{rules(false, &authorizerv1.Rule{Match: authorizerv1.Rule_ANY, Allow: true}), nil, true, false},
		{rules(false, &authorizerv1.Rule{Allow: true}), nil, false, false},
	} {
		allowed, asks := authorizer.Decide(test.r, &authorizerv1.Object{Value: test.value})
		if allowed != test.allowed || asks != test.asks {
			t.Errorf("Decide(%v, %v) = %v, %v; want %v, %v", test.r, test.value, allowed, asks, test.allowed, test.asks)
		}
	}
}

func TestApproversThatTheCoreRefusesAreTold(t *testing.T) {
	for want, r := range map[string]*authorizerv1.ApproverResponse{
		"no decision":         {},
		"match is 0":          rules(true, &authorizerv1.Rule{}),
		"no value at all":     rules(true, values(true)),
		"after it never deci": rules(true, &authorizerv1.Rule{Match: authorizerv1.Rule_ANY}, values(true, "x")),
	} {
		if got := strings.Join(authorizer.CheckApprover(r), "\n"); !strings.Contains(got, want) {
			t.Errorf("CheckApprover(%v) = %q, want it to tell of %q", r, got, want)
		}
	}
	if got := authorizer.CheckApprover(rules(false, values(true, "a"), &authorizerv1.Rule{Match: authorizerv1.Rule_ANY})); len(got) > 0 {
		t.Errorf("CheckApprover of a right one = %q", got)
	}
}
