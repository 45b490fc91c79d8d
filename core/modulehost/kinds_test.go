package modulehost

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	authenticatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authenticator/v1"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
	containerloggerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/containerlogger/v1"
	hookv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/hook/v1"
	resourceestimatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceestimator/v1"
	secretresolverv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/secretresolver/v1"
)

func startAuthorizer(t *testing.T) *Authorizer {
	t.Helper()
	c := testConfig("authorizer")
	c.Kind = KindAuthorizer
	return startHost(t, Options{}, c).Authorizer()
}

func objects(values ...string) []*authorizerv1.Object {
	out := make([]*authorizerv1.Object, len(values))
	for i, v := range values {
		out[i] = &authorizerv1.Object{Value: proto.String(v)}
	}
	return out
}

func TestApproversDecideAsTheModuleSays(t *testing.T) {
	a := startAuthorizer(t)
	for _, c := range []struct {
		action  string
		objects []*authorizerv1.Object
		want    string
	}{
		{"ALLOW", objects("a", "b"), "[true true]"},
		{"ALLOW", nil, "[true]"},
		{"DENY", objects("a"), "[false]"},
		{"DENY", nil, "[false]"},
		{"RULES", objects("eng/dev", "eng/secret", "eng/a/b", "eng", "ops", "other"), "[true false true false true false]"},
		{"RULES", []*authorizerv1.Object{{}, nil}, "[false false]"},
		{"ASK", objects("yes", "no"), "[true false]"},
	} {
		got, err := a.Approve(t.Context(), nil, c.action, c.objects)
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("Approve(%s, %v) = %v, %v, want %s", c.action, c.objects, got, err, c.want)
		}
	}
}

func TestManyObjectsAreAskedInBatches(t *testing.T) {
	a := startAuthorizer(t)
	many := make([]string, 2*maxAuthorize+1)
	many[len(many)-1] = "yes"
	got, err := a.Approve(t.Context(), nil, "ASK", objects(many...))
	if err != nil || len(got) != len(many) || got[0] || !got[len(got)-1] {
		t.Errorf("Approve of %d objects gave %d answers, %v", len(many), len(got), err)
	}
}

func TestAnAuthorizerThatLiesOrDiesNeverSaysYes(t *testing.T) {
	a := startAuthorizer(t)
	for _, c := range []struct {
		action  string
		objects []*authorizerv1.Object
		code    codes.Code
	}{
		{"LIE", objects("a"), codes.Internal},
		{"ASK", objects("yes", "short"), codes.Internal},
		{"CRASH", objects("a"), codes.Unavailable},
	} {
		got, err := a.Approve(t.Context(), nil, c.action, c.objects)
		if got != nil || status.Code(err) != c.code || !strings.HasPrefix(err.Error(), "authorizer(test): ") {
			t.Errorf("Approve(%s) = %v, %v, want %s and no answer", c.action, got, err, c.code)
		}
	}
}

// askedFor says how often the module was asked for an approver, which its answer to COUNT tells.
func askedFor(t *testing.T, a *Authorizer, limit int) int {
	t.Helper()
	for n := range limit {
		got, err := a.Approve(t.Context(), nil, "COUNT", objects(fmt.Sprint(n)))
		if err != nil {
			t.Fatalf("Approve: %v", err)
		}
		if got[0] {
			return n
		}
	}
	t.Fatalf("the module was asked more than %d times", limit)
	return 0
}

func TestApproversAreKeptUntilTheirRevisionOrTheModuleChanges(t *testing.T) {
	a := startAuthorizer(t)
	if got := askedFor(t, a, 10); got != 1 {
		t.Errorf("many decisions asked the module %d times, want 1", got)
	}
	alice := &authorizerv1.Subject{Value: proto.String("alice")}
	if _, err := a.Approve(t.Context(), alice, "ALLOW", nil); err != nil {
		t.Fatal(err)
	}
	if got := askedFor(t, a, 10); got != 1 {
		t.Errorf("another principal's approver changed this one: asked %d times", got)
	}
	if _, err := a.Approve(t.Context(), nil, "REVISE", nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the revision voids the approver", func() bool { return askedFor(t, a, 10) == 4 })

	pid := a.m.status().PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the module is back", func() bool { return a.m.status().PID != pid && a.m.status().State == StateUp })
	if got := askedFor(t, a, 10); got != 1 {
		t.Errorf("an approver of the module's former life was used: the new one was asked %d times, want 1", got)
	}
}

func TestSubjectsThatDifferHaveTheirOwnApprovers(t *testing.T) {
	claims := func(kv ...string) *authorizerv1.Subject {
		s := &authorizerv1.Subject{Claims: map[string]string{}}
		for i := 0; i < len(kv); i += 2 {
			s.Claims[kv[i]] = kv[i+1]
		}
		return s
	}
	seen := make(map[string]int)
	for i, s := range []*authorizerv1.Subject{
		nil, {Value: proto.String("")}, {Value: proto.String("a")}, claims("a", "b"), claims("a", "b", "c", "d"),
		claims("ab", ""), claims("a", "b\x001:c1:d"), {Value: proto.String("a\x001:a1:b")},
	} {
		key := approverKey(s, "ACTION")
		if j, twice := seen[key]; twice {
			t.Errorf("subjects %d and %d have one key %q", j, i, key)
		}
		seen[key] = i
	}
}

func TestEstimatesComeAndEndWithTheModule(t *testing.T) {
	c := testConfig("estimator")
	c.Kind = KindResourceEstimator
	h := startHost(t, Options{}, c)
	usage := make(chan *resourceestimatorv1.UsageReport)
	got := make(chan *resourceestimatorv1.Estimation, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.Estimator().Run(t.Context(), usage, func(e *resourceestimatorv1.Estimation) { got <- e })
	}()
	report := func(executors int) {
		usage <- &resourceestimatorv1.UsageReport{Executors: make([]*resourceestimatorv1.ExecutorUsage, executors)}
	}
	report(2)
	if e := <-got; len(e.GetRevocable()) != 1 || e.GetRevocable()[0].GetScalar().GetValue() != 2 {
		t.Errorf("estimate = %v, want 2 revocable cpus", e)
	}
	report(13) // the module dies of it
	if e := <-got; len(e.GetRevocable()) != 0 {
		t.Errorf("estimate when the module is lost = %v, want nothing revocable", e)
	}
	// Reports while it is down are thrown away, and some time it is back.
	eventually(t, "estimates come again", func() bool {
		report(3)
		select {
		case e := <-got:
			return len(e.GetRevocable()) == 1
		case <-time.After(20 * time.Millisecond):
			return false
		}
	})
}

func TestMetricsTellOfEachModuleAndItsOwnSeriesCannotSpoilThem(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	h := startHost(t, Options{Metrics: registry}, testConfig("good"))
	h.SetOwed("test", 3)
	mustPrepare(t, h, "metrics")
	series := func() map[string]float64 {
		families, err := registry.Gather()
		if err != nil {
			t.Fatalf("Gather: %v", err)
		}
		out := make(map[string]float64)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					name += fmt.Sprintf(" %s=%s", l.GetName(), l.GetValue())
				}
				switch {
				case m.GetCounter() != nil:
					out[name] = m.GetCounter().GetValue()
				case m.GetGauge() != nil:
					out[name] = m.GetGauge().GetValue()
				case m.GetHistogram() != nil:
					out[name] = float64(m.GetHistogram().GetSampleCount())
				}
			}
		}
		return out
	}
	const own = "mosaic_isolator_test_dropped_packets_total nic=eth0"
	eventually(t, "the module's own series are there", func() bool { _, ok := series()[own]; return ok })
	got := series()
	for name, want := range map[string]float64{
		own: 7,
		"mosaic_module_calls_total call=Prepare code=OK kind=isolator module=test": 1,
		"mosaic_module_call_seconds call=Prepare kind=isolator module=test":        1,
		"mosaic_module_calls_total call=Recover code=OK kind=isolator module=test": 1,
		"mosaic_module_up kind=isolator module=test":                               1,
		"mosaic_module_restarts_total kind=isolator module=test":                   0,
		"mosaic_module_cleanups_owed kind=isolator module=test":                    3,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s = %v (there: %v), want %v", name, v, ok, want)
		}
	}
	if got["mosaic_module_memory_bytes kind=isolator module=test"] < 1<<20 {
		t.Errorf("memory = %v, want the module's", got["mosaic_module_memory_bytes kind=isolator module=test"])
	}
	count := 0
	for name := range got {
		if strings.HasPrefix(name, "mosaic_isolator_test_") {
			count++
		}
	}
	if count != maxSeries {
		t.Errorf("the module has %d series of its own, want %d", count, maxSeries)
	}
}

func startKind(t *testing.T, how, kind string) *Host {
	t.Helper()
	c := testConfig(how)
	c.Kind = kind
	return startHost(t, Options{}, c)
}

// outcome gives an error with its code, or what came.
func outcome(got any, err error) string {
	if err != nil {
		return status.Code(err).String() + " " + err.Error()
	}
	return fmt.Sprint(got)
}

func TestAnAuthenticatorGivesAPrincipalOrAnError(t *testing.T) {
	a := startKind(t, "authenticator", KindAuthenticator).Authenticator()
	for header, want := range map[string]string{
		"alice":  "alice",
		"nobody": "Internal authenticator(test): Authenticate: answer is not valid: a principal without value and claims",
		"":       "Internal authenticator(test): Authenticate: answer is not valid: no result",
	} {
		r, err := a.Authenticate(t.Context(), &authenticatorv1.AuthenticateRequest{Headers: map[string]string{"Authorization": header}})
		if got := outcome(r.GetPrincipal().GetValue(), err); got != want {
			t.Errorf("Authenticate(%q) = %s, want %s", header, got, want)
		}
	}
}

func TestSecretsAreBounded(t *testing.T) {
	s := startKind(t, "secrets", KindSecretResolver).SecretResolver()
	for principal, want := range map[string]string{
		"alice":   "s3cret",
		"mallory": "PermissionDenied secret_resolver(test): Resolve: not yours",
		"big":     "Internal secret_resolver(test): Resolve: answer is not valid: secret of 1048577 bytes, want at most 1048576",
	} {
		r, err := s.Resolve(t.Context(), &secretresolverv1.ResolveRequest{Secret: &mesosv1.Secret{}, Principal: principal})
		if got := outcome(string(r.GetData()), err); got != want {
			t.Errorf("Resolve for %s = %s, want %s", principal, got, want)
		}
	}
}

func TestSinksOfALoggerAreChecked(t *testing.T) {
	l := startKind(t, "logger", KindContainerLogger).ContainerLogger()
	for id, want := range map[string]string{
		"c":         "/var/log/task",
		"relative":  `Internal container_logger(test): Logger: answer is not valid: sink "log", want an absolute path`,
		"no-helper": `Internal container_logger(test): Logger: answer is not valid: sink is the helper "ghost", which is not among its helpers`,
	} {
		r, err := l.Prepare(t.Context(), &containerloggerv1.PrepareRequest{Container: prepareRequest(id).GetContainer()})
		if got := outcome(r.GetStdout().GetPath(), err); got != want {
			t.Errorf("Prepare(%s) = %s, want %s", id, got, want)
		}
	}
}

func TestHooksDecorateAndAreChecked(t *testing.T) {
	h := startKind(t, "hook", KindHook).Hooks()[0]
	if h.Name() != "test" || !h.Wants("decorate_environment") || h.Wants("notify") {
		t.Errorf("hook %s wants decorate_environment=%v notify=%v", h.Name(), h.Wants("decorate_environment"), h.Wants("notify"))
	}
	for id, want := range map[string]string{
		"c":     "map[ADDED:1]",
		"wrong": `Internal hook(test): DecorateEnvironment: answer is not valid: environment: "A=B" is no name of a variable`,
	} {
		r, err := h.DecorateEnvironment(t.Context(), &hookv1.DecorateEnvironmentRequest{Container: prepareRequest(id).GetContainer()})
		if got := outcome(r.GetEnvironment(), err); got != want {
			t.Errorf("DecorateEnvironment(%s) = %s, want %s", id, got, want)
		}
	}
	if err := h.Notify(t.Context(), &hookv1.NotifyRequest{Event: "fetched"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("Notify on a hook without it = %v, want UNIMPLEMENTED", err)
	}
}
