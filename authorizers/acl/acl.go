// Package acl is the authorizer that decides by access control lists: who may do which action to what, in the terms of
// Mesos's local authorizer and, if the operator likes, in its very JSON.
//
// It promises Mesos's decisions: the lists of an action in their order, the first whose principals and objects both
// match decides, and `permissive` decides when none does. It denies everything until it is configured. It leaves
// keeping and applying its answers to the host, and who a principal is to the authenticators.
package acl

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// maxObjects is how many objects the contract allows in one Authorize.
const maxObjects = 10_000

// Config is what the operator may set.
type Config struct {
	Permissive bool   `hcl:"permissive,optional" doc:"What holds when no list matches."`
	File       string `hcl:"file,optional" doc:"File with the lists, in HCL or in Mesos's JSON; read again at each reload." conflicts:"json"`
	JSON       string `hcl:"json,optional" doc:"The lists in Mesos's JSON."`
	Lists      []List `hcl:"acl,block" doc:"One list; they come before those of file or json."`

	policy *policy // what all of it together says
}

// List is one access control list.
type List struct {
	Name       string   `hcl:"name,label" doc:"Name of the list as in Mesos, such as run_tasks."`
	Principals []string `hcl:"principals,optional" doc:"Who; [\"ANY\"] is everybody, [\"NONE\"] nobody."`
	Objects    []string `hcl:"objects,optional" doc:"Roles, users, paths or principals, by the list; [\"ANY\"] is all, [\"NONE\"] none. \"a/%\" is every role below a."`
}

// Authorizer is the module.
type Authorizer struct {
	authorizerv1.UnimplementedAuthorizerServer
	config   *module.Config[Config]
	events   *module.Events
	revision atomic.Uint64 // of the newest policy
}

// New returns the module with its defaults: permissive and without lists, as Mesos is.
func New() *Authorizer {
	return &Authorizer{config: module.NewConfig(Config{Permissive: true}, load), events: module.NewEvents()}
}

// Info describes the module.
func (a *Authorizer) Info() module.Info {
	return module.Info{
		Kind: "authorizer", Name: "acl", Version: "1.0.0", Doc: "access control lists as Mesos has them",
		Config: a.config, Configured: a.configured, Events: a.events,
	}
}

// load reads everything that a configuration names. It runs before the configuration is taken, so that a file with a
// mistake changes nothing.
func load(c *Config) error {
	p := newPolicy(c.Permissive)
	var errs []error
	for n, l := range c.Lists {
		if err := p.addBlock(l); err != nil {
			errs = append(errs, blockError(n, err))
		}
	}
	if c.File != "" {
		if err := p.addFile(c.File); err != nil {
			errs = append(errs, fileError(c.File, err))
		}
	}
	if c.JSON != "" {
		if err := p.addJSON([]byte(c.JSON)); err != nil {
			errs = append(errs, module.Wrong("json", "%v", err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c.policy = p
	return nil
}

// configured voids the approvers of before. The number is stored in the policy first: an approver made of the new
// policy before that has no number, and is asked for once more.
func (a *Authorizer) configured(context.Context, *modulev1.NodeFacts) error {
	revision := a.revision.Add(1)
	a.config.Get().policy.revision.Store(revision)
	a.events.Revise(revision)
	return nil
}

// Approver says how to decide for a principal and an action.
func (a *Authorizer) Approver(_ context.Context, r *authorizerv1.ApproverRequest) (*authorizerv1.ApproverResponse, error) {
	p := a.config.Get().policy
	if p == nil { // not configured
		return &authorizerv1.ApproverResponse{Decision: &authorizerv1.ApproverResponse_DenyAll{DenyAll: &authorizerv1.DenyAll{}}}, nil
	}
	answer, err := p.approver(r.GetSubject(), r.GetAction())
	if err != nil {
		return nil, err
	}
	answer.Revision = p.revision.Load()
	return answer, nil
}

// Authorize decides for each object.
func (a *Authorizer) Authorize(_ context.Context, r *authorizerv1.AuthorizeRequest) (*authorizerv1.AuthorizeResponse, error) {
	if n := len(r.GetObjects()); n > maxObjects {
		return nil, module.InvalidArgument("objects: got %d, want at most %d", n, maxObjects)
	}
	answer := &authorizerv1.AuthorizeResponse{Allowed: make([]bool, len(r.GetObjects()))}
	p := a.config.Get().policy
	if p == nil {
		return answer, nil
	}
	for n, o := range r.GetObjects() {
		allowed, err := p.authorized(r.GetSubject(), r.GetAction(), o)
		if err != nil {
			return nil, err
		}
		answer.Allowed[n] = allowed
	}
	return answer, nil
}
