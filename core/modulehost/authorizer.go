package modulehost

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"

	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
)

type authorizerCalls interface {
	Approver(ctx context.Context, r *authorizerv1.ApproverRequest) (*authorizerv1.ApproverResponse, error)
	Authorize(ctx context.Context, r *authorizerv1.AuthorizeRequest) (*authorizerv1.AuthorizeResponse, error)
}

type authorizerV1 struct{ client authorizerv1.AuthorizerClient }

func liftAuthorizerV1(conn grpc.ClientConnInterface) any {
	return authorizerV1{authorizerv1.NewAuthorizerClient(conn)}
}

func (a authorizerV1) Approver(ctx context.Context, r *authorizerv1.ApproverRequest) (*authorizerv1.ApproverResponse, error) {
	return a.client.Approver(ctx, r)
}

func (a authorizerV1) Authorize(ctx context.Context, r *authorizerv1.AuthorizeRequest) (*authorizerv1.AuthorizeResponse, error) {
	return a.client.Authorize(ctx, r)
}

const (
	// maxAuthorize is how many objects one Authorize may carry, by its contract.
	maxAuthorize = 10_000
	// maxApprovers bounds the cache; principals times actions of a large cluster fit.
	maxApprovers = 16_384
	// maxRuleValues bounds what one approver may hold in memory here.
	maxRuleValues = 1 << 20
)

// Authorizer says who may do what. Whatever goes wrong with its module is an error, never a yes.
type Authorizer struct{ m *module }

// Authorizer gives the authorizer of the composition; nil if there is none.
func (h *Host) Authorizer() *Authorizer {
	if ms := h.ofKind(KindAuthorizer); len(ms) > 0 {
		return &Authorizer{ms[0]}
	}
	return nil
}

// Approver decides on the objects of one principal and action, mostly without asking anybody.
type Approver struct {
	a       *Authorizer
	subject *authorizerv1.Subject
	action  string
	rules   *rules // nil: ask
}

// Approve decides for each object, in order. nil objects asks once for an action that has none.
//
// Errors: UNAVAILABLE or DEADLINE_EXCEEDED when the module does not answer; the request is then refused with 503.
func (a *Authorizer) Approve(ctx context.Context, subject *authorizerv1.Subject, action string, objects []*authorizerv1.Object) ([]bool, error) {
	approver, err := a.Approver(ctx, subject, action)
	if err != nil {
		return nil, err
	}
	if len(objects) == 0 {
		objects = []*authorizerv1.Object{{}}
	}
	return approver.Allowed(ctx, objects)
}

// Approver gives the approver of a principal and an action, from the cache while the module has not revised it.
func (a *Authorizer) Approver(ctx context.Context, subject *authorizerv1.Subject, action string) (*Approver, error) {
	// The life is part of the key: a module that was started again counts its revisions anew. While it is down no
	// approver of before is used: it may have been revised.
	began, err := a.m.acquireWithin(ctx, "approver")
	if err != nil {
		return nil, a.m.name("Approver", err)
	}
	key := approverKey(subject, action)
	if r, ok := a.m.approvers.get(began, key); ok {
		return &Approver{a, subject, action, r}, nil
	}
	answer, err := call(ctx, a.m, request{name: "Approver"}, func(ctx context.Context, c authorizerCalls) (*authorizerv1.ApproverResponse, error) {
		return c.Approver(ctx, &authorizerv1.ApproverRequest{Subject: subject, Action: action})
	}, checkApprover)
	if err != nil {
		return nil, err
	}
	r := compileRules(answer)
	a.m.approvers.put(began, key, r, answer.GetRevision())
	return &Approver{a, subject, action, r}, nil
}

// Allowed decides for each object, in order.
func (p *Approver) Allowed(ctx context.Context, objects []*authorizerv1.Object) ([]bool, error) {
	out := make([]bool, 0, len(objects))
	if p.rules != nil {
		for _, o := range objects {
			out = append(out, p.rules.allowed(o))
		}
		return out, nil
	}
	for batch := range slices.Chunk(objects, maxAuthorize) {
		answer, err := call(ctx, p.a.m, request{name: "Authorize"}, func(ctx context.Context, c authorizerCalls) (*authorizerv1.AuthorizeResponse, error) {
			return c.Authorize(ctx, &authorizerv1.AuthorizeRequest{Subject: p.subject, Action: p.action, Objects: batch})
		}, func(_ *life, r *authorizerv1.AuthorizeResponse) error {
			if len(r.GetAllowed()) != len(batch) {
				return fmt.Errorf("%d answers for %d objects", len(r.GetAllowed()), len(batch))
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		out = append(out, answer.GetAllowed()...)
	}
	return out, nil
}

func checkApprover(_ *life, r *authorizerv1.ApproverResponse) error {
	if r.GetDecision() == nil {
		return fmt.Errorf("no decision")
	}
	values := 0
	for i, rule := range r.GetRules().GetRules() {
		if m := rule.GetMatch(); m != authorizerv1.Rule_ANY && m != authorizerv1.Rule_VALUES {
			return fmt.Errorf("rules[%d].match is %d, want ANY or VALUES", i, m)
		}
		values += len(rule.GetValues())
	}
	if values > maxRuleValues {
		return fmt.Errorf("rules with %d values, want at most %d", values, maxRuleValues)
	}
	return nil
}

// rules decide without the module. The first that matches does.
type rules struct {
	list      []rule
	otherwise bool
}

type rule struct {
	any      bool
	values   map[string]bool
	prefixes []string // "a/" for "a/%": every descendant of a
	allow    bool
}

// compileRules gives the rules of an answer; nil when the module wants to be asked.
func compileRules(r *authorizerv1.ApproverResponse) *rules {
	switch d := r.GetDecision().(type) {
	case *authorizerv1.ApproverResponse_AllowAll:
		return &rules{otherwise: true}
	case *authorizerv1.ApproverResponse_Rules:
		out := &rules{otherwise: d.Rules.GetOtherwiseAllow()}
		for _, in := range d.Rules.GetRules() {
			one := rule{any: in.GetMatch() == authorizerv1.Rule_ANY, allow: in.GetAllow(), values: make(map[string]bool)}
			for _, v := range in.GetValues() {
				if parent, ok := strings.CutSuffix(v, "/%"); ok {
					one.prefixes = append(one.prefixes, parent+"/")
				} else {
					one.values[v] = true
				}
			}
			out.list = append(out.list, one)
		}
		return out
	case *authorizerv1.ApproverResponse_Ask:
		return nil
	default:
		return &rules{} // deny
	}
}

func (r *rules) allowed(o *authorizerv1.Object) bool {
	for _, one := range r.list {
		if one.matches(o) {
			return one.allow
		}
	}
	return r.otherwise
}

func (r *rule) matches(o *authorizerv1.Object) bool {
	if r.any {
		return true
	}
	if o == nil || o.Value == nil {
		return false
	}
	if r.values[*o.Value] {
		return true
	}
	return slices.ContainsFunc(r.prefixes, func(p string) bool { return strings.HasPrefix(*o.Value, p) })
}

func approverKey(s *authorizerv1.Subject, action string) string {
	var b strings.Builder
	b.WriteString(action)
	if s != nil && s.Value != nil {
		fmt.Fprintf(&b, "\x00+%d:%s", len(*s.Value), *s.Value)
	}
	for _, k := range slices.Sorted(maps.Keys(s.GetClaims())) {
		fmt.Fprintf(&b, "\x00%d:%s%d:%s", len(k), k, len(s.Claims[k]), s.Claims[k])
	}
	return b.String()
}

// approverCache keeps compiled approvers of the module's present life.
type approverCache struct {
	mu       sync.Mutex // guards what follows
	life     *life
	revision uint64 // approvers of before are void
	entries  map[string]approverEntry
}

type approverEntry struct {
	rules    *rules
	revision uint64
}

func newApproverCache() *approverCache { return &approverCache{} }

func (c *approverCache) get(l *life, key string) (*rules, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok || c.life != l || e.revision < c.revision {
		return nil, false
	}
	return e.rules, true
}

func (c *approverCache) put(l *life, key string, r *rules, revision uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life != l {
		c.life, c.revision, c.entries = l, 0, nil
	}
	if c.entries == nil || len(c.entries) >= maxApprovers {
		c.entries = make(map[string]approverEntry)
	}
	c.entries[key] = approverEntry{r, revision}
}

// revise voids what was handed out before a revision.
func (c *approverCache) revise(l *life, revision uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life != l {
		c.life, c.revision, c.entries = l, 0, nil
	}
	if revision > c.revision {
		c.revision = revision
	}
}

// acquireWithin waits for a life as long as the named call may take.
func (m *module) acquireWithin(ctx context.Context, name string) (*life, error) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout(name, deadline(name)))
	defer cancel()
	return m.acquire(ctx)
}
