package containerizer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

func TestLaunchAppliesWhatIsolatorsProposeAndTakesItBackAtTheEnd(t *testing.T) {
	m := newMachine(t)
	shares := uint64(512)
	a := &fakeIsolator{m: m, name: "a", state: []byte("mine"), calls: []string{"isolate"},
		proposal: &containerv1.Proposal{Cgroup: &containerv1.CgroupResources{CpuShares: &shares}}}
	b := &fakeIsolator{m: m, name: "b", proposal: &containerv1.Proposal{Environment: map[string]string{"B": "1"}}}
	c, _ := startAgent(t, m, t.TempDir(), a, b)
	defer stopAgent(t, c)

	pid, err := c.Launch(t.Context(), testContainer(t, "c1"))
	if err != nil {
		t.Fatalf("Launch: %v", err)
	}
	p := m.process("c1")
	if p == nil || int(pid) != p.pid || !p.started {
		t.Fatalf("Launch: got pid %d of process %+v, want it started", pid, p)
	}
	if p.cgroup.GetCpuShares() != 512 || !slices.Contains(p.request.Env, "B=1") {
		t.Errorf("request: got cgroup %v and environment %v, want both proposals", p.cgroup, p.request.Env)
	}
	m.exit("c1", 0)
	end, err := c.Wait(t.Context(), "c1")
	if err != nil || end.WaitStatus == nil || *end.WaitStatus != 0 || end.GetState() != "" {
		t.Errorf("Wait: got %v, %v, want wait status 0 and no state", end, err)
	}
	if err := c.Forget(t.Context(), "c1"); err != nil {
		t.Errorf("Forget: %v", err)
	}
	waitFor(t, "everything is taken back", func() bool { return len(m.left("c1")) == 0 })
	got := m.history()
	for _, pair := range [][2]string{
		{"prepare a c1", "create c1"}, {"create c1", "put c1 CREATED"}, {"put c1 CREATED", "start c1"},
		{"isolate a c1", "start c1"}, {"destroy c1", "cleanup b c1"},
		{"cleanup b c1", "cleanup a c1"}, {"cleanup a c1", "delete c1"},
	} {
		if first, second := slices.Index(got, pair[0]), slices.Index(got, pair[1]); first < 0 || second < 0 || first > second {
			t.Errorf("history: got %q at %d and %q at %d, want the one before the other:\n%s", pair[0], first, pair[1], second, strings.Join(got, "\n"))
		}
	}
	if slices.Contains(got, "put c1 ENDED") {
		t.Error("history: the end is written although the agent has it written already")
	}
}

func TestEndThatTheAgentDoesNotWriteDownIsWrittenBeforeItsTracesGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "a"})
		defer stopAgent(t, c)
		if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		m.exit("c1", 0)
		time.Sleep(forgetPatience)
		synctest.Wait()
		h := m.history()
		if put, destroy := slices.Index(h, "put c1 ENDED"), slices.Index(h, "destroy c1"); put < 0 || destroy < put {
			t.Errorf("history: got %v, want the end written, then its traces destroyed", h)
		}
	})
}

func TestOnlyOneDurableWriteLiesOnTheWayToARunningContainer(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "a"})
	defer stopAgent(t, c)
	if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	h := m.history()
	before := h[:slices.Index(h, "start c1")]
	puts := slices.DeleteFunc(slices.Clone(before), func(s string) bool { return !strings.HasPrefix(s, "put ") })
	if len(puts) != 1 || puts[0] != "put c1 CREATED" {
		t.Errorf("writes before the start: got %v, want the one of phase CREATED", puts)
	}
}

// placedIsolator knows where the operator wrote it down.
type placedIsolator struct {
	fakeIsolator
	where string
}

func (i *placedIsolator) Where() string { return i.where }

func TestConflictSaysWhereInTheComposition(t *testing.T) {
	m := newMachine(t)
	pid := &containerv1.Proposal{Namespaces: []*containerv1.Namespace{{Type: containerv1.Namespace_PID}}}
	c, _ := startAgent(t, m, t.TempDir(),
		&placedIsolator{fakeIsolator{m: m, name: "a", proposal: pid}, "agent.hcl:3"},
		&placedIsolator{fakeIsolator{m: m, name: "b", proposal: pid}, "agent.hcl:7"})
	defer stopAgent(t, c)
	_, err := c.Launch(t.Context(), testContainer(t, "c1"))
	want := "isolator(a) (agent.hcl:3) and isolator(b) (agent.hcl:7) both set namespaces.PID: drop one of them, or withhold the power with `allow`"
	if err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("Launch: got %v, want %s", err, want)
	}
}

func TestConflictingIsolatorsFailTheLaunchAndAreNamed(t *testing.T) {
	m := newMachine(t)
	pid := &containerv1.Proposal{Namespaces: []*containerv1.Namespace{{Type: containerv1.Namespace_PID}}}
	c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "a", proposal: pid}, &fakeIsolator{m: m, name: "b", proposal: pid})
	defer stopAgent(t, c)
	_, err := c.Launch(t.Context(), testContainer(t, "c1"))
	want := "launch container c1: isolator(a) and isolator(b) both set namespaces.PID: drop one of them, or withhold the power with `allow`"
	if err == nil || err.Error() != want {
		t.Errorf("Launch: got %v, want %s", err, want)
	}
	waitFor(t, "everything is undone", func() bool { return len(m.left("c1")) == 0 })
}

func TestFailedLaunchIsUndoneLastFirst(t *testing.T) {
	steps := []struct {
		name string
		set  func(a, b *fakeIsolator, l *fakeLauncher)
		want string   // in the error
		undo []string // the end of the history
	}{
		{"prepare", func(a, b *fakeIsolator, l *fakeLauncher) {
			b.after = []string{"a"}
			b.onPrepare = func(context.Context, *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
				return nil, errors.New("isolator(b): no")
			}
		}, "isolator(b): no", []string{"cleanup b c1", "cleanup a c1"}},
		{"validate", func(a, b *fakeIsolator, l *fakeLauncher) {
			a.calls = []string{"validate"}
			a.onValidate = func(*isolatorv1.ValidateRequest) error { return errors.New("isolator(a): not like this") }
		}, "isolator(a): not like this", []string{"cleanup b c1", "cleanup a c1"}},
		{"supports", func(a, b *fakeIsolator, l *fakeLauncher) {
			l.refuses = func(*launcher.Request) error { return errors.New("mounts") }
		}, "no launcher can apply it: launcher(fake): mounts", []string{"cleanup b c1", "cleanup a c1"}},
		{"create", func(a, b *fakeIsolator, l *fakeLauncher) {
			l.fail = failAt("create")
		}, "launcher(fake): create fails", []string{"cleanup b c1", "cleanup a c1"}},
		{"isolate", func(a, b *fakeIsolator, l *fakeLauncher) {
			b.calls = []string{"isolate"}
			b.onIsolate = func(*isolatorv1.IsolateRequest) error { return errors.New("isolator(b): no") }
		}, "isolator(b): no", []string{"destroy c1", "cleanup b c1", "cleanup a c1", "delete c1"}},
		{"start", func(a, b *fakeIsolator, l *fakeLauncher) {
			l.fail = failAt("start")
		}, "launcher(fake): start fails", []string{"destroy c1", "cleanup b c1", "cleanup a c1", "delete c1"}},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			m := newMachine(t)
			a, b := &fakeIsolator{m: m, name: "a"}, &fakeIsolator{m: m, name: "b"}
			c, l := startAgent(t, m, t.TempDir())
			defer stopAgent(t, c)
			s.set(a, b, l)
			if err := c.Use([]Isolator{a, b}); err != nil {
				t.Fatalf("Use: %v", err)
			}
			_, err := c.Launch(t.Context(), testContainer(t, "c1"))
			if err == nil || !strings.HasSuffix(err.Error(), s.want) || !strings.HasPrefix(err.Error(), "launch container c1: ") {
				t.Errorf("Launch: got %v, want launch container c1: ... %s", err, s.want)
			}
			waitFor(t, "everything is undone", func() bool {
				_, err := c.find("c1")
				return len(m.left("c1")) == 0 && errors.Is(err, ErrNotFound)
			})
			h := m.history()
			if got := h[max(0, len(h)-len(s.undo)):]; !slices.Equal(got, s.undo) {
				t.Errorf("undone: got %v, want it to end with %v", h, s.undo)
			}
			l.fail, l.refuses, a.onValidate, b.onPrepare, b.onIsolate = nil, nil, nil, nil, nil
			if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
				t.Errorf("Launch again: got %v, want the id to be free", err)
			}
		})
	}
}

func failAt(at string) func(string) error {
	return func(step string) error {
		if step == at {
			return fmt.Errorf("%s fails", at)
		}
		return nil
	}
}

func TestPrepareRunsAtOnceButAlongDeclaredEdges(t *testing.T) {
	m := newMachine(t)
	var meet sync.WaitGroup
	meet.Add(2)
	together := func(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
		meet.Done()
		meet.Wait() // passes only when both are in Prepare at the same time
		return &isolatorv1.PrepareResponse{Proposal: &containerv1.Proposal{Environment: map[string]string{"FROM_A": "1"}}}, nil
	}
	a := &fakeIsolator{m: m, name: "a", onPrepare: together}
	b := &fakeIsolator{m: m, name: "b", onPrepare: func(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
		_, err := together(ctx, r)
		return &isolatorv1.PrepareResponse{}, err
	}}
	var sofar *containerv1.Spec
	last := &fakeIsolator{m: m, name: "last", after: []string{"a", "absent"}, onPrepare: func(_ context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
		sofar = r.GetSoFar()
		return &isolatorv1.PrepareResponse{}, nil
	}}
	c, _ := startAgent(t, m, t.TempDir(), last, a, b)
	defer stopAgent(t, c)
	if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	if sofar.GetMerged().GetEnvironment()["FROM_A"] != "1" || sofar.GetOwners()["environment.FROM_A"] != "a" {
		t.Errorf("Prepare after a: got %v so far, want a's variable and its owner", sofar)
	}
}

func TestIsolatorsThatWaitForEachOtherAreRefusedByName(t *testing.T) {
	m := newMachine(t)
	_, err := New(Config{
		Launchers: []launcher.Launcher{&fakeLauncher{m: m, name: "fake"}}, Store: fakeStore{m}, RunDir: t.TempDir(),
		Isolators: []Isolator{
			&fakeIsolator{m: m, name: "x"},
			&fakeIsolator{m: m, name: "a", after: []string{"b"}}, &fakeIsolator{m: m, name: "b", after: []string{"a"}},
		},
	})
	if err == nil || !strings.Contains(err.Error(), "isolator(a) after isolator(b) after isolator(a)") || strings.Contains(err.Error(), "(x)") {
		t.Errorf("New: got %v, want an error that names a and b and nobody else", err)
	}
}

func TestTheFirstLauncherThatSupportsAllIsChosen(t *testing.T) {
	m := newMachine(t)
	simple := &fakeLauncher{m: m, name: "simple", refuses: func(r *launcher.Request) error {
		if len(r.Proposal.GetMounts()) > 0 {
			return errors.New("mounts")
		}
		return nil
	}}
	full := &fakeLauncher{m: m, name: "full"}
	mounts := &fakeIsolator{m: m, name: "mounts"}
	c, err := New(Config{Launchers: []launcher.Launcher{simple, full}, Store: fakeStore{m}, RunDir: t.TempDir(), Isolators: []Isolator{mounts}, BootID: m.boot})
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	defer stopAgent(t, c)
	for want, proposal := range map[string]*containerv1.Proposal{
		"simple": nil, "full": {Mounts: []*containerv1.Mount{{Destination: "/x", Type: "tmpfs"}}},
	} {
		mounts.proposal = proposal
		if _, err := c.Launch(t.Context(), testContainer(t, want)); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		ct, err := c.find(want)
		if err != nil || ct.launcherName != want {
			t.Errorf("launcher for %v: got %v, %v, want %s", proposal, ct.launcherName, err, want)
		}
	}
}

func TestOptionalIsolatorThatIsDownDoesNotStopALaunch(t *testing.T) {
	m := newMachine(t)
	down := &fakeIsolator{m: m, name: "down", optional: true, calls: []string{"isolate"}, onPrepare: func(context.Context, *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
		return nil, status.Error(codes.Unavailable, "isolator(down): is restarting")
	}}
	c, _ := startAgent(t, m, t.TempDir(), down)
	defer stopAgent(t, c)
	if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
		t.Fatalf("Launch: got %v, want it to go on without isolator(down)", err)
	}
	if got := c.Skipped()["down"]; got != 1 {
		t.Errorf("Skipped: got %d, want 1", got)
	}
	if slices.Contains(m.history(), "isolate down c1") {
		t.Error("isolator(down) was asked to isolate what it never prepared")
	}
	if err := c.Destroy(t.Context(), "c1", nil); err != nil {
		t.Fatalf("Destroy: %v", err)
	}
	waitFor(t, "its cleanup, since its Prepare was sent", func() bool { return slices.Contains(m.history(), "cleanup down c1") })

	down.onPrepare = func(context.Context, *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
		return nil, status.Error(codes.InvalidArgument, "isolator(down): no such limit")
	}
	if _, err := c.Launch(t.Context(), testContainer(t, "c2")); err == nil {
		t.Error("Launch: got no error, want the refusal of a module that is there")
	}
	down.onPrepare, down.calls = nil, []string{"validate"}
	down.onValidate = func(*isolatorv1.ValidateRequest) error {
		return status.Error(codes.FailedPrecondition, "isolator(down): not on this machine")
	}
	if _, err := c.Launch(t.Context(), testContainer(t, "c3")); err == nil {
		t.Error("Launch: got no error, want the refusal of a validator")
	}
}

func TestPrepareStillAtWorkIsAskedAgainWithTheSameOperation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		var operations []string
		busy := &fakeIsolator{m: m, name: "busy"}
		busy.onPrepare = func(_ context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
			operations = append(operations, r.GetOperationId())
			if len(operations) < 4 {
				return nil, status.Error(codes.Aborted, "isolator(busy): still at it")
			}
			return &isolatorv1.PrepareResponse{}, nil
		}
		c, _ := startAgent(t, m, t.TempDir(), busy)
		defer stopAgent(t, c)
		if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		if len(operations) != 4 || len(slices.Compact(operations)) != 1 {
			t.Errorf("operations: got %v, want one id four times", operations)
		}
	})
}

func TestNestedAndStandaloneContainersAskOnlyThoseThatTakePart(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "all"}, &fakeIsolator{m: m, name: "flat", flat: true})
	defer stopAgent(t, c)
	standalone := testContainer(t, "s")
	standalone.Standalone = true
	nested := testContainer(t, "root.child")
	nested.ParentId = "root"
	for _, want := range []*containerv1.Container{testContainer(t, "root"), standalone, nested} {
		if _, err := c.Launch(t.Context(), want); err != nil {
			t.Fatalf("Launch(%s): %v", want.GetId(), err)
		}
	}
	h := m.history()
	for line, want := range map[string]bool{
		"prepare flat root": true, "prepare flat s": false, "prepare flat root.child": false, "prepare all root.child": true,
	} {
		if got := slices.Contains(h, line); got != want {
			t.Errorf("%s: got %v, want %v", line, got, want)
		}
	}
	orphan := testContainer(t, "nobody.child")
	orphan.ParentId = "nobody"
	if _, err := c.Launch(t.Context(), orphan); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Launch below a parent that is not there: got %v, want %v", err, ErrNotRunning)
	}
	if err := c.Destroy(t.Context(), "root", nil); err != nil {
		t.Fatalf("Destroy: %v", err)
	}
	if _, err := c.Wait(t.Context(), "root.child"); err != nil {
		t.Errorf("Wait for the child of a destroyed parent: %v", err)
	}
}

func TestLaunchRefusesWhatCannotBe(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	for name, change := range map[string]func(*containerv1.Container){
		"slash in id":       func(x *containerv1.Container) { x.Id = "a/b" },
		"dots as id":        func(x *containerv1.Container) { x.Id = ".." },
		"no id":             func(x *containerv1.Container) { x.Id = "" },
		"long id":           func(x *containerv1.Container) { x.Id = strings.Repeat("x", 243) },
		"wrong parent":      func(x *containerv1.Container) { x.Id, x.ParentId = "a.b", "c" },
		"no command":        func(x *containerv1.Container) { x.Command = nil },
		"relative sandbox":  func(x *containerv1.Container) { x.Sandbox = "sandbox" },
		"escaping cgroup":   func(x *containerv1.Container) { x.Cgroup = "../../x" },
		"relative image":    func(x *containerv1.Container) { x.LocalImage = "alpine" },
		"image without one": func(x *containerv1.Container) { x.LocalImage = "/image" },
	} {
		want := testContainer(t, "ok")
		change(want)
		if _, err := c.Launch(t.Context(), want); err == nil {
			t.Errorf("Launch with %s: got no error, want one", name)
		}
	}
	if _, err := c.Launch(t.Context(), testContainer(t, "twice")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	if _, err := c.Launch(t.Context(), testContainer(t, "twice")); !errors.Is(err, ErrExists) {
		t.Errorf("Launch of an id in use: got %v, want %v", err, ErrExists)
	}
}

func TestHundredLaunchesAtOnce(t *testing.T) {
	m := newMachine(t)
	var isolators []Isolator
	for _, name := range []string{"a", "b", "c"} {
		isolators = append(isolators, &fakeIsolator{m: m, name: name, state: []byte(name), calls: []string{"isolate", "status", "usage", "validate"}})
	}
	c, _ := startAgent(t, m, t.TempDir(), isolators...)
	defer stopAgent(t, c)
	var wg sync.WaitGroup
	for n := range 100 {
		id := fmt.Sprintf("c%d", n)
		want := testContainer(t, id)
		wg.Go(func() {
			if _, err := c.Launch(t.Context(), want); err != nil {
				t.Errorf("Launch(%s): %v", id, err)
				return
			}
			if n%2 == 0 {
				m.exit(id, n)
			} else if err := c.Destroy(t.Context(), id, nil); err != nil {
				t.Errorf("Destroy(%s): %v", id, err)
			}
			if _, err := c.Wait(t.Context(), id); err != nil {
				t.Errorf("Wait(%s): %v", id, err)
			}
			if err := c.Forget(t.Context(), id); err != nil {
				t.Errorf("Forget(%s): %v", id, err)
			}
		})
		wg.Go(func() {
			c.Records("a")
			if _, err := c.Usage(t.Context(), []string{id}); err != nil {
				t.Errorf("Usage: %v", err)
			}
			c.Owed()
		})
	}
	wg.Wait()
	waitFor(t, "all are gone", func() bool { return len(c.all()) == 0 })
	for n := range 100 {
		if left := m.left(fmt.Sprintf("c%d", n)); len(left) > 0 {
			t.Errorf("container c%d: got %v left, want nothing", n, left)
		}
	}
}

// waitFor polls for something that happens in the background, with a generous deadline.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
