// Command authorizer-hello is the smallest authorizer that decides something: everybody may look, and the administrators
// may do everything.
package main

import (
	"context"
	"slices"
	"strings"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
)

func main() { module.Serve(newModule()) }

// config is what an operator may set in the module's config block.
type config struct {
	Administrators []string `hcl:"administrators,optional" doc:"Principals who may do everything."`
}

type authorizer struct {
	authorizerv1.UnimplementedAuthorizerServer
	config *module.Config[config]
}

func newModule() *authorizer {
	return &authorizer{config: module.NewConfig(config{}, nil)}
}

// Info is what the host knows of the module before it runs.
func (a *authorizer) Info() module.Info {
	return module.Info{
		Kind: "authorizer", Name: "hello", Version: "1.0.0", Doc: "lets everybody look and administrators do everything",
		Config: a.config,
	}
}

// allowed is the whole policy.
func (a *authorizer) allowed(who *authorizerv1.Subject, action string) bool {
	looks := strings.HasPrefix(action, "VIEW_") || strings.HasPrefix(action, "GET_")
	return looks || who.GetValue() != "" && slices.Contains(a.config.Get().Administrators, who.GetValue())
}

// Approver says how to decide for a principal and an action; the host keeps the answer and asks no more. A policy that
// looks at objects answers with rules, or asks to be asked.
func (a *authorizer) Approver(_ context.Context, r *authorizerv1.ApproverRequest) (*authorizerv1.ApproverResponse, error) {
	if a.allowed(r.GetSubject(), r.GetAction()) {
		return &authorizerv1.ApproverResponse{Decision: &authorizerv1.ApproverResponse_AllowAll{AllowAll: &authorizerv1.AllowAll{}}}, nil
	}
	return &authorizerv1.ApproverResponse{Decision: &authorizerv1.ApproverResponse_DenyAll{DenyAll: &authorizerv1.DenyAll{}}}, nil
}

// Authorize decides for each object, in order.
func (a *authorizer) Authorize(_ context.Context, r *authorizerv1.AuthorizeRequest) (*authorizerv1.AuthorizeResponse, error) {
	answer := &authorizerv1.AuthorizeResponse{}
	for range r.GetObjects() {
		answer.Allowed = append(answer.Allowed, a.allowed(r.GetSubject(), r.GetAction()))
	}
	return answer, nil
}
