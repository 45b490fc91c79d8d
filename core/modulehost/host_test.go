package modulehost

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// cgroupRoot is where the modules of one host of a test live.
func cgroupRoot(t *testing.T) string {
	return fmt.Sprintf("mosaic-test-modulehost-%d/%x", os.Getpid(), sha256.Sum256([]byte(t.TempDir())))[:64]
}

func testOptions(t *testing.T) Options {
	t.Helper()
	o := Options{
		Version: "test",
		Logger:  slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		LogDir:  filepath.Join(t.TempDir(), "logs"),
	}
	if os.Geteuid() == 0 {
		o.Cgroup = cgroupRoot(t)
		t.Cleanup(func() { removeCgroups(t, o.Cgroup) })
	}
	return o
}

// removeCgroups removes the folder of a host, and that of the test run with the last of them.
func removeCgroups(t *testing.T, relative string) {
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		found, err := filepath.Glob(pattern + relative)
		if err != nil {
			t.Error(err)
		}
		if len(found) > 0 {
			t.Errorf("the host left %v behind", found)
		}
		// The folder of the test run goes with the last of its hosts.
		os.Remove(filepath.Dir(strings.Replace(pattern, "*", "pids", 1) + relative))
		os.Remove(filepath.Dir(strings.Replace(pattern, "*", "memory", 1) + relative))
	}
}

func testConfig(how string) ModuleConfig {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return ModuleConfig{Kind: KindIsolator, Name: "test", Command: exe, Args: []string{how}, Required: true}
}

// startHost starts modules and closes them with the test.
func startHost(t *testing.T, o Options, configs ...ModuleConfig) *Host {
	t.Helper()
	base := testOptions(t)
	base.contracts, base.Containers, base.Metrics, base.CacheDir = o.contracts, o.Containers, o.Metrics, o.CacheDir
	base.Bundle, base.ProgramDirs = o.Bundle, o.ProgramDirs
	if o.Logger != nil {
		base.Logger = o.Logger
	}
	h, err := Start(t.Context(), base, configs)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := h.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return h
}

func prepareRequest(id string) *isolatorv1.PrepareRequest {
	return &isolatorv1.PrepareRequest{OperationId: "op-" + id, Container: &containerv1.Container{Id: id, Generation: 1}}
}

// mustPrepare prepares a container and gives the environment, in which the test module tells of itself.
func mustPrepare(t *testing.T, h *Host, id string) map[string]string {
	t.Helper()
	r, err := h.Isolators()[0].Prepare(t.Context(), prepareRequest(id))
	if err != nil {
		t.Fatalf("Prepare(%s): %v", id, err)
	}
	return r.GetProposal().GetEnvironment()
}

// eventually waits for what another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s in vain until %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// fakeContainers holds containers as the agent would.
type fakeContainers struct {
	mu      sync.Mutex
	records []*isolatorv1.ContainerRecord
	limited []*modulev1.Limitation
}

func (f *fakeContainers) Records(string) []*isolatorv1.ContainerRecord {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.records
}

func (f *fakeContainers) Limited(_ string, l *modulev1.Limitation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limited = append(f.limited, l)
}

func (f *fakeContainers) limitations() []*modulev1.Limitation {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*modulev1.Limitation(nil), f.limited...)
}

func records(n int) []*isolatorv1.ContainerRecord {
	out := make([]*isolatorv1.ContainerRecord, n)
	for i := range out {
		out[i] = &isolatorv1.ContainerRecord{
			Container: &containerv1.Container{Id: fmt.Sprintf("c%04d", i), Generation: 1}, State: []byte("s"), StateVersion: 1,
		}
	}
	return out
}

// parseConfig parses a config body as it stands in a file.
func parseConfig(t *testing.T, text string) ModuleConfig {
	t.Helper()
	f, diags := hclsyntax.ParseConfig([]byte(text), "site.hcl", hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatalf("parse: %v", diags)
	}
	c := testConfig("good")
	c.Config, c.Source = f.Body, []byte(text)
	c.Range = hcl.Range{Filename: "site.hcl", Start: hcl.InitialPos, End: hcl.InitialPos}
	return c
}

func TestAModuleIsStartedConfiguredAndCalled(t *testing.T) {
	c := parseConfig(t, `policy = "strict"`)
	h := startHost(t, Options{}, c)
	i := h.Isolators()[0]
	if i.Name() != "test" || !i.Required() || !i.Wants("usage") || i.Wants("validate") || !i.Nesting() || i.Standalone() || fmt.Sprint(i.After()) != "[filesystem]" {
		t.Errorf("isolator is %s required=%v usage=%v validate=%v nesting=%v standalone=%v after=%v",
			i.Name(), i.Required(), i.Wants("usage"), i.Wants("validate"), i.Nesting(), i.Standalone(), i.After())
	}
	r, err := i.Prepare(t.Context(), prepareRequest("c1"))
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	env := r.GetProposal().GetEnvironment()
	if !strings.Contains(env["CONFIG"], `"policy":"strict"`) || !strings.Contains(env["CONFIG"], `"count":3`) {
		t.Errorf("Configure got %s, want the policy of the composition and the default count", env["CONFIG"])
	}
	if env["GRANTED"] != "environment,mounts,cgroup" {
		t.Errorf("Prepare granted %s, want what the module declares", env["GRANTED"])
	}
	if string(r.GetState()) != "state of c1" {
		t.Errorf("Prepare gave state %q", r.GetState())
	}
	for _, secret := range []string{"HOME=", "GOCACHE="} {
		if strings.Contains(env["ENV"], secret) {
			t.Errorf("the module's environment has the agent's %s", secret)
		}
	}
	s := h.Status()[0]
	if s.State != StateUp || s.PID == 0 || s.Version != "1.2.3" || !strings.HasPrefix(s.Digest, "sha256:") || s.Memory == 0 || s.Restarts != 0 {
		t.Errorf("Status() = %+v", s)
	}
	if reasons := h.Degraded(); len(reasons) > 0 {
		t.Errorf("Degraded() = %v, want none", reasons)
	}
}
