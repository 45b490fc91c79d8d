package authorizertest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mosaic-cluster/mosaic/sdk/authorizer/authorizertest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// TestMain lets the test's own executable be a module with the fault that its argument names.
func TestMain(m *testing.M) {
	if os.Getenv("MOSAIC_MODULE") != "" {
		module.Serve(&faulty{fault: os.Args[1]})
		return
	}
	os.Exit(m.Run())
}

// faulty allows what values name: "www" to everybody, anything to alice. It has one fault.
type faulty struct {
	authorizerv1.UnimplementedAuthorizerServer
	fault string

	mu       sync.Mutex // guards what follows
	revision uint64
	calls    int
	held     []*os.File
}

func (f *faulty) Info() module.Info {
	return module.Info{
		Kind: "authorizer", Name: "faulty", Version: "1.0.0", Doc: "has one fault",
		Configured: func(context.Context, *modulev1.NodeFacts) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.revision == 0 {
				f.revision = 5
			} else if f.fault == "revision falls" {
				f.revision--
			}
			return nil
		},
	}
}

func (f *faulty) allowed(s *authorizerv1.Subject, o *authorizerv1.Object) bool {
	if f.fault == "takes names as patterns" && s.GetValue() == "%" {
		return true
	}
	return s.GetValue() == "alice" || o.GetValue() == "www"
}

func (f *faulty) Approver(_ context.Context, r *authorizerv1.ApproverRequest) (*authorizerv1.ApproverResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	rules := &authorizerv1.Rules{Rules: []*authorizerv1.Rule{{Match: authorizerv1.Rule_VALUES, Values: []string{"www"}, Allow: true}}}
	if r.GetSubject().GetValue() == "alice" {
		rules.OtherwiseAllow = true
	}
	answer := &authorizerv1.ApproverResponse{Decision: &authorizerv1.ApproverResponse_Rules{Rules: rules}, Revision: f.revision}
	switch f.fault {
	case "no decision":
		if r.GetAction() == "MARK_AGENT_GONE" {
			answer.Decision = nil
		}
	case "rule without a match":
		rules.Rules[0].Match = authorizerv1.Rule_MATCH_UNSPECIFIED
	case "changes its mind":
		rules.OtherwiseAllow = f.calls%2 == 0
	case "rules and answers differ":
		rules.Rules[0].Values[0] = "web"
	case "knows nobody":
		if r.Subject == nil {
			answer.Decision = &authorizerv1.ApproverResponse_AllowAll{AllowAll: &authorizerv1.AllowAll{}}
		}
	case "crashes on an unknown action":
		if !strings.Contains(r.GetAction(), "_") || r.GetAction() == "NO_SUCH_ACTION" {
			os.Exit(3)
		}
	case "remembers everybody":
		if null, err := os.Open(os.DevNull); err == nil {
			f.held = append(f.held, null)
		}
	case "depends on the process":
		rules.Rules[0].Values = append(rules.Rules[0].Values, fmt.Sprint(os.Getpid()))
	}
	return answer, nil
}

func (f *faulty) Authorize(_ context.Context, r *authorizerv1.AuthorizeRequest) (*authorizerv1.AuthorizeResponse, error) {
	if f.fault == "fails for a long name" && len(r.GetSubject().GetValue()) > 1000 {
		return nil, errors.New("buffer too small")
	}
	answer := &authorizerv1.AuthorizeResponse{}
	for _, o := range r.GetObjects() {
		answer.Allowed = append(answer.Allowed, f.allowed(r.GetSubject(), o))
	}
	if f.fault == "answers backwards" {
		slices.Reverse(answer.Allowed)
	}
	if f.fault == "answers one less" && len(answer.Allowed) > 100 {
		answer.Allowed = answer.Allowed[1:]
	}
	return answer, nil
}

func run(t *testing.T, fault string, only ...string) []kit.Result {
	t.Helper()
	cases := authorizertest.Cases(kit.Program{Path: os.Args[0], Args: []string{fault}}.Dial)
	if len(only) > 0 {
		cases = slices.DeleteFunc(cases, func(c kit.Case) bool { return !slices.Contains(only, c.Name) })
		if len(cases) != len(only) {
			t.Fatalf("of the cases %q there are %d", only, len(cases))
		}
	}
	r := kit.NewReporter(t.Context(), cases, nil)
	kit.Run(r, kit.Full, cases)
	return r.Results()
}

func TestAnAuthorizerWithoutFaultConforms(t *testing.T) {
	for _, r := range run(t, "none") {
		if r.Result == kit.Failed {
			t.Errorf("%s: %v", r.Case, r.Reasons)
		}
	}
}

func TestEachFaultIsFound(t *testing.T) {
	for fault, name := range map[string]string{
		"no decision":                  "EveryActionGetsADecision",
		"rule without a match":         "RulesAreWellFormed",
		"changes its mind":             "SameQuestionTwiceGivesTheSame",
		"rules and answers differ":     "AuthorizeAgreesWithTheApprover",
		"answers backwards":            "AuthorizeAnswersForEachObjectInOrder",
		"answers one less":             "AuthorizeAnswersForEachObjectInOrder",
		"knows nobody":                 "NobodyIsAPrincipalToo",
		"crashes on an unknown action": "UnknownActionIsNoCrash",
		"fails for a long name":        "HostileSubjectsAreNoCrash",
		"takes names as patterns":      "HostileSubjectsGetNoMoreThanOthers",
		"revision falls":               "RevisionNeverFalls",
		"depends on the process":       "ANewInstanceDecidesTheSame",
		"remembers everybody":          "AThousandQuestionsLeaveNothingBehind",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel() // each has processes of its own, and mostly waits
			for _, r := range run(t, fault, name) {
				if r.Result != kit.Failed {
					t.Errorf("%s = %s %v, want it to fail", r.Case, r.Result, r.Reasons)
				}
			}
		})
	}
}
