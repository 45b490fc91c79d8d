package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mosaic-cluster/mosaic/core/config"
	"github.com/mosaic-cluster/mosaic/core/modulehost"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
	secretresolverv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/secretresolver/v1"
)

// Which daemon runs the modules of which kind. Kinds that neither uses are refused: a module that is configured and
// never asked would be worse than none.
func agentKinds() []string {
	return []string{
		modulehost.KindIsolator, modulehost.KindResourceEstimator, modulehost.KindQoSController, modulehost.KindSecretResolver,
		modulehost.KindContainerLogger, modulehost.KindAuthorizer,
	}
}

func masterKinds() []string { return []string{modulehost.KindAuthorizer} }

// refuseUnused says which blocks have no effect, with their places.
func refuseUnused(c *config.Config) config.Diagnostics {
	var diags hcl.Diagnostics
	for _, m := range c.Modules {
		if slices.Contains(agentKinds(), m.Kind) || slices.Contains(masterKinds(), m.Kind) {
			continue
		}
		diags = append(diags, &hcl.Diagnostic{
			Severity: hcl.DiagError, Subject: m.Range.Ptr(),
			Summary: fmt.Sprintf("%s(%s): this version asks no modules of this kind", m.Kind, m.Name),
			Detail:  "The contract is settled, but neither master nor agent uses it yet; take the block out.",
		})
	}
	return config.FromHCL(diags, c.Files)
}

// ofKinds are the modules that one daemon runs, in the composition's order.
func ofKinds(c *config.Config, kinds []string) []modulehost.ModuleConfig {
	return slices.DeleteFunc(moduleConfigs(c), func(m modulehost.ModuleConfig) bool { return !slices.Contains(kinds, m.Kind) })
}

// masterModules starts the modules that a master asks; nil if the composition has none.
func masterModules(ctx context.Context, c *config.Config, workDir string, log *slog.Logger, metrics prometheus.Registerer) (*modulehost.Host, error) {
	modules := ofKinds(c, masterKinds())
	if len(modules) == 0 {
		return nil, nil
	}
	bundle, err := beside("mosaic-modules")
	if err != nil {
		return nil, err
	}
	programs, err := programDirs(c.Master.ModuleDir)
	if err != nil {
		return nil, err
	}
	node, err := nodeFacts(workDir, "mosaic-master")
	if err != nil {
		return nil, err
	}
	host, err := modulehost.Start(ctx, modulehost.Options{
		Version: version, Bundle: bundle, ProgramDirs: programs, RunDir: filepath.Join(runDir(workDir), "m"), LogDir: filepath.Join(workDir, "logs", "modules"),
		CacheDir: schemaCacheDir(), Node: node, Logger: log, Metrics: metrics,
	}, modules)
	if err != nil {
		return nil, compositionError(err, c)
	}
	return host, nil
}

// approvers asks the composition's authorizer. Whatever goes wrong is a no.
type approvers struct{ authorizer *modulehost.Authorizer }

// refusal is a no with the status that the HTTP edge answers.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string   { return r.text }
func (r *refusal) HTTPStatus() int { return r.status }

// Approve returns nil for yes.
func (a approvers) Approve(ctx context.Context, principal, action string, object ...string) error {
	var objects []*authorizerv1.Object
	for _, o := range object {
		objects = append(objects, &authorizerv1.Object{Value: &o})
	}
	return a.decide(ctx, principal, action, objects, object)
}

// decide asks for some objects at once; named is how a refusal calls them.
func (a approvers) decide(ctx context.Context, principal, action string, objects []*authorizerv1.Object, named []string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var subject *authorizerv1.Subject
	who := "a client that is not authenticated"
	if principal != "" {
		subject = &authorizerv1.Subject{Value: &principal}
		who = fmt.Sprintf("principal %q", principal)
	}
	allowed, err := a.authorizer.Approve(ctx, subject, action, objects)
	if err != nil {
		return &refusal{http.StatusServiceUnavailable, fmt.Sprintf("cannot tell whether %s may do this: %v", who, err)}
	}
	if slices.Contains(allowed, false) {
		return &refusal{http.StatusForbidden, fmt.Sprintf("%s is not authorized to %s %v", who, action, named)}
	}
	return nil
}

// onContainers asks for what is done to an agent's containers.
type onContainers struct{ approvers }

// Approve returns nil for yes. A refusal names the user the container runs as, which is what rules are about.
func (c onContainers) Approve(ctx context.Context, principal, action string, object *authorizerv1.Object) error {
	var named []string
	if object.GetValue() != "" {
		named = append(named, object.GetValue())
	}
	return c.decide(ctx, principal, action, []*authorizerv1.Object{object}, named)
}

// routes asks for the routes of the HTTP edge.
type routes struct{ approvers }

// Approve returns nil for yes.
func (r routes) Approve(ctx context.Context, principal, action, object string) error {
	return r.approvers.Approve(ctx, principal, action, object)
}

// secrets resolves secrets by the composition's resolver, once its host is there.
type secrets struct{ host *modulehost.Host }

func (s *secrets) resolve(ctx context.Context, secret *mesosv1.Secret) ([]byte, error) {
	if s.host == nil || s.host.SecretResolver() == nil {
		return nil, fmt.Errorf("the composition has no secret_resolver")
	}
	r, err := s.host.SecretResolver().Resolve(ctx, &secretresolverv1.ResolveRequest{Secret: secret})
	if err != nil {
		return nil, err
	}
	return r.GetData(), nil
}

// owedInterval is how often the modules' status learns of outstanding cleanups.
const owedInterval = 2 * time.Second

// reportOwed tells the host how many cleanups each module is owed, until ctx ends.
func reportOwed(ctx context.Context, host *modulehost.Host, owed func() map[string]int) error {
	tick := time.NewTicker(owedInterval)
	defer tick.Stop()
	told := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := owed()
		for name := range told {
			if now[name] == 0 {
				host.SetOwed("isolator/"+name, 0)
				delete(told, name)
			}
		}
		for name, n := range now {
			host.SetOwed("isolator/"+name, n)
			told[name] = true
		}
	}
}
