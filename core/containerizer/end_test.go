package containerizer

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

func TestIsolatorsAreAskedForALimitBeforeABadEndIsTold(t *testing.T) {
	memory := &modulev1.Limitation{Reason: "REASON_CONTAINER_LIMITATION_MEMORY", Message: "memory limit exceeded"}
	for name, x := range map[string]struct {
		status int
		limit  *modulev1.Limitation
		err    error
		asked  bool
		state  string
		reason string
	}{
		"clean exit":                 {status: 0, limit: memory, asked: false},
		"killed at the memory limit": {status: int(syscall.SIGKILL), limit: memory, asked: true, state: "TASK_FAILED", reason: memory.Reason},
		"failed by itself":           {status: 1 << 8, asked: true},
		"killed, module broken":      {status: int(syscall.SIGKILL), err: errors.New("isolator(a): crashed"), asked: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			asked := false
			a := &fakeIsolator{m: m, name: "a", calls: []string{"status"}, onStatus: func(r *isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error) {
				asked = true
				if m.process("c1") == nil {
					t.Error("Status was asked after the container's cgroup was removed")
				}
				return &isolatorv1.StatusResponse{Results: map[string]*isolatorv1.StatusResult{"c1": {Limitation: x.limit}}}, x.err
			}}
			c, _ := startAgent(t, m, t.TempDir(), a)
			defer stopAgent(t, c)
			if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
				t.Fatalf("Launch: %v", err)
			}
			asked = false // for the first Status; that was not about limits
			m.exit("c1", x.status)
			end, err := c.Wait(t.Context(), "c1")
			if err != nil || end.WaitStatus == nil || int(*end.WaitStatus) != x.status || end.GetState() != x.state || end.GetReason() != x.reason {
				t.Errorf("Wait: got %v, %v, want wait status %d, state %q, reason %q", end, err, x.status, x.state, x.reason)
			}
			if asked != x.asked {
				t.Errorf("isolator asked: got %v, want %v", asked, x.asked)
			}
		})
	}
}

func TestASilentIsolatorHoldsTheLastStatusUpForASecondOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		a := &silentIsolator{fakeIsolator{m: m, name: "a", calls: []string{"status"}}}
		c, _ := startAgent(t, m, t.TempDir(), a)
		defer stopAgent(t, c)
		if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		began := time.Now()
		m.exit("c1", 9)
		if _, err := c.Wait(t.Context(), "c1"); err != nil {
			t.Fatalf("Wait: %v", err)
		}
		if took := time.Since(began); took != reasonTimeout {
			t.Errorf("end was told after %s, want %s", took, reasonTimeout)
		}
	})
}

// silentIsolator never answers Status.
type silentIsolator struct{ fakeIsolator }

func (i *silentIsolator) Status(ctx context.Context, _ *isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestAContainerThatReachesALimitIsDestroyedForIt(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "a"})
	defer stopAgent(t, c)
	if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	c.Limited("a", &modulev1.Limitation{ContainerId: "nobody", Reason: "REASON_CONTAINER_LIMITATION_DISK"})
	c.Limited("a", &modulev1.Limitation{ContainerId: "c1", Reason: "REASON_CONTAINER_LIMITATION_DISK", Message: "full",
		Resources: []*mesosv1.Resource{{Name: new("disk"), Type: mesosv1.Value_SCALAR.Enum()}}})
	end, err := c.Wait(t.Context(), "c1")
	if err != nil || end.GetState() != "TASK_FAILED" || end.GetReason() != "REASON_CONTAINER_LIMITATION_DISK" || end.GetMessage() != "full" || len(end.GetLimitedResources()) != 1 {
		t.Errorf("Wait: got %v, %v, want the limitation", end, err)
	}
}

func TestTheFirstReasonGivenForAnEndWins(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	for _, state := range []string{"TASK_GONE", "TASK_LOST"} {
		if err := c.Destroy(t.Context(), "c1", &containerv1.Termination{State: state}); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	}
	for range 2 { // Wait may be repeated
		if end, err := c.Wait(t.Context(), "c1"); err != nil || end.GetState() != "TASK_GONE" {
			t.Errorf("Wait: got %v, %v, want TASK_GONE", end, err)
		}
	}
	if err := c.Destroy(t.Context(), "nobody", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("Destroy of nobody: got %v, want %v", err, ErrNotFound)
	}
	if err := c.Signal(t.Context(), "c1", int(syscall.SIGTERM)); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Signal after the end: got %v, want %v", err, ErrNotRunning)
	}
}

func TestDestroyEndsALaunch(t *testing.T) {
	synctest.Test(t, destroyEndsALaunch)
}

func destroyEndsALaunch(t *testing.T) {
	m := newMachine(t)
	inPrepare := make(chan struct{})
	a := &fakeIsolator{m: m, name: "a", onPrepare: func(ctx context.Context, _ *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
		close(inPrepare)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	c, _ := startAgent(t, m, t.TempDir(), a)
	defer stopAgent(t, c)
	failed := make(chan error, 1)
	want := testContainer(t, "c1")
	go func() {
		_, err := c.Launch(t.Context(), want)
		failed <- err
	}()
	<-inPrepare
	if err := c.Forget(t.Context(), "c1"); err == nil {
		t.Error("Forget of a container that has not ended: got no error, want one")
	}
	waited := make(chan *containerv1.Termination, 1)
	go func() {
		end, err := c.Wait(t.Context(), "c1")
		if err != nil {
			t.Errorf("Wait: %v", err)
		}
		waited <- end
	}()
	synctest.Wait() // until the waiter waits
	if err := c.Destroy(t.Context(), "c1", &containerv1.Termination{State: "TASK_KILLED"}); err != nil {
		t.Errorf("Destroy: %v", err)
	}
	if err := <-failed; !errors.Is(err, errDestroyed) {
		t.Errorf("Launch: got %v, want %v", err, errDestroyed)
	}
	if got := m.left("c1"); len(got) > 0 {
		t.Errorf("left: got %v, want nothing", got)
	}
	if end := <-waited; end.GetState() != "TASK_KILLED" {
		t.Errorf("Wait: got %v, want the state that Destroy gave", end)
	}
}

func TestLaunchThatWaitsForAModuleEndsWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		inPrepare, free := make(chan struct{}), make(chan struct{})
		hangs := &fakeIsolator{m: m, name: "hangs",
			onPrepare: func(ctx context.Context, _ *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
				close(inPrepare)
				<-ctx.Done()
				return nil, status.FromContextError(ctx.Err()).Err()
			},
			onCleanup: func(*isolatorv1.CleanupRequest) error { <-free; return nil },
		}
		c, _ := startAgent(t, m, t.TempDir(), hangs)
		defer stopAgent(t, c)
		ctx, kill := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() {
			_, err := c.Launch(ctx, testContainer(t, "c1"))
			failed <- err
		}()
		<-inPrepare
		began := time.Now()
		kill()
		if err := <-failed; status.Code(err) != codes.Canceled {
			t.Errorf("Launch: got %v, want that it was cancelled", err)
		}
		if took := time.Since(began); took > killPatience {
			t.Errorf("Launch returned %v after its end was asked for, want at most %v", took, killPatience)
		}
		if owed := c.Owed()["hangs"]; owed != 1 {
			t.Errorf("cleanups owed: got %d, want the one that hangs", owed)
		}
		close(free)
		synctest.Wait()
		if got := m.left("c1"); len(got) > 0 {
			t.Errorf("left: got %v, want nothing", got)
		}
	})
}

func TestDestroyGoesOnInTheBackgroundWhenAProcessDoesNotDie(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "a"})
	defer stopAgent(t, c)
	if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	m.mu.Lock()
	m.processes["c1"].stuck = true
	m.mu.Unlock()
	if err := c.Destroy(t.Context(), "c1", nil); err == nil || !strings.Contains(err.Error(), "destroy container c1: kill its processes") {
		t.Errorf("Destroy: got %v, want what could not be done", err)
	}
	m.mu.Lock()
	m.processes["c1"].stuck = false
	m.mu.Unlock()
	if _, err := c.Wait(t.Context(), "c1"); err != nil {
		t.Errorf("Wait: %v", err)
	}
}

func TestUsageOfAllContainersIsOneCallAModule(t *testing.T) {
	m := newMachine(t)
	measure := func(set func(*mesosv1.ResourceStatistics)) func(*isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error) {
		return func(r *isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error) {
			a := &isolatorv1.UsageResponse{Results: map[string]*isolatorv1.UsageResult{}}
			for _, record := range r.GetRecords() {
				if record.GetContainer().GetCommand() != nil || record.GetPid() == 0 || len(record.GetCgroups()) == 0 {
					t.Errorf("Usage: got record %v, want pid and cgroups, and no command", record)
				}
				s := &mesosv1.ResourceStatistics{}
				set(s)
				a.Results[record.GetContainer().GetId()] = &isolatorv1.UsageResult{Statistics: s}
			}
			return a, nil
		}
	}
	cpu := &fakeIsolator{m: m, name: "cpu", calls: []string{"usage"}, onUsage: measure(func(s *mesosv1.ResourceStatistics) { s.CpusUserTimeSecs = new(1.5) })}
	mem := &fakeIsolator{m: m, name: "mem", calls: []string{"usage"}, onUsage: measure(func(s *mesosv1.ResourceStatistics) { s.MemRssBytes = new(uint64(7)) })}
	broken := &fakeIsolator{m: m, name: "broken", calls: []string{"usage"}, onUsage: func(*isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error) {
		return nil, errors.New("isolator(broken): crashed")
	}}
	c, _ := startAgent(t, m, t.TempDir(), cpu, mem, broken, &fakeIsolator{m: m, name: "blind"})
	defer stopAgent(t, c)
	ids := []string{"c1", "c2", "c3"}
	for _, id := range ids {
		if _, err := c.Launch(t.Context(), testContainer(t, id)); err != nil {
			t.Fatalf("Launch: %v", err)
		}
	}
	usage, err := c.Usage(t.Context(), append(ids, "nobody"))
	if err != nil || len(usage) != 3 {
		t.Fatalf("Usage: got %v, %v, want three containers", usage, err)
	}
	for id, s := range usage {
		if s.GetCpusUserTimeSecs() != 1.5 || s.GetMemRssBytes() != 7 || s.GetTimestamp() == 0 {
			t.Errorf("Usage of %s: got %v, want both modules' figures and a time", id, s)
		}
	}
	if cpu.usageCalls != 1 || mem.usageCalls != 1 {
		t.Errorf("calls: got %d and %d, want one each", cpu.usageCalls, mem.usageCalls)
	}
	only, _ := startAgent(t, m, t.TempDir(), broken)
	defer stopAgent(t, only)
	if _, err := only.Launch(t.Context(), testContainer(t, "c4")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	if _, err := only.Usage(t.Context(), []string{"c4"}); err == nil {
		t.Error("Usage when nobody answers: got no error, want one")
	}
}

func TestStatusNestsIdsAndAddsWhatModulesKnow(t *testing.T) {
	m := newMachine(t)
	address := "10.0.0.7"
	net := &fakeIsolator{m: m, name: "net", calls: []string{"status"}, onStatus: func(r *isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error) {
		a := &isolatorv1.StatusResponse{Results: map[string]*isolatorv1.StatusResult{}}
		for _, record := range r.GetRecords() {
			a.Results[record.GetContainer().GetId()] = &isolatorv1.StatusResult{Status: &mesosv1.ContainerStatus{
				ContainerId: &mesosv1.ContainerID{Value: new("a lie")}, ExecutorPid: new(uint32(1)),
				NetworkInfos: []*mesosv1.NetworkInfo{{IpAddresses: []*mesosv1.NetworkInfo_IPAddress{{IpAddress: &address}}}},
			}}
		}
		return a, nil
	}}
	c, _ := startAgent(t, m, t.TempDir(), net)
	defer stopAgent(t, c)
	if _, err := c.Launch(t.Context(), testContainer(t, "root")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	child := testContainer(t, "root.child")
	child.ParentId = "root"
	pid, err := c.Launch(t.Context(), child)
	if err != nil {
		t.Fatalf("Launch: %v", err)
	}
	s, err := c.Status(t.Context(), "root.child")
	if err != nil {
		t.Fatalf("Status: %v", err)
	}
	if s.GetContainerId().GetValue() != "child" || s.GetContainerId().GetParent().GetValue() != "root" || s.GetContainerId().GetParent().GetParent() != nil {
		t.Errorf("container id: got %v, want child of root", s.GetContainerId())
	}
	if s.GetExecutorPid() != uint32(pid) || len(s.GetNetworkInfos()) != 1 {
		t.Errorf("Status: got %v, want pid %d and one address", s, pid)
	}
}

func TestUpdateIsAppliedWhenAllAgreeAndKept(t *testing.T) {
	m, dir := newMachine(t), t.TempDir()
	shares := func(n uint64) *containerv1.Proposal {
		return &containerv1.Proposal{Cgroup: &containerv1.CgroupResources{CpuShares: &n}}
	}
	cpu := &fakeIsolator{m: m, name: "cpu", proposal: shares(100), calls: []string{"update"}}
	other := &fakeIsolator{m: m, name: "other", calls: []string{"update"}}
	cpu.onUpdate = func(r *isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
		if r.GetOperationId() == "" || r.GetRecord().GetContainer().GetLimits()["cpus"] != math.Inf(1) {
			t.Errorf("Update: got %v, want an operation and the new limits", r)
		}
		return &isolatorv1.UpdateResponse{Proposal: shares(200), State: []byte("200"), StateVersion: 1}, nil
	}
	c, _ := startAgent(t, m, dir, cpu, other)
	if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	limits := map[string]float64{"cpus": math.Inf(1)}
	for name, refuse := range map[string]func(*isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error){
		"isolator(other): no": func(*isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
			return nil, errors.New("isolator(other): no")
		},
		"isolator(cpu) and isolator(other) both set cgroup.cpu_shares: drop one of them, or withhold the power with `allow`": func(*isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
			return &isolatorv1.UpdateResponse{Proposal: shares(300)}, nil
		},
		"isolator(other) set hostname of a running container, want only cgroup": func(*isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
			return &isolatorv1.UpdateResponse{Proposal: &containerv1.Proposal{Hostname: "x"}}, nil
		},
	} {
		other.onUpdate = refuse
		if err := c.Update(t.Context(), "c1", nil, limits); err == nil || err.Error() != "update container c1: "+name {
			t.Errorf("Update: got %v, want %s", err, name)
		}
		if got := m.process("c1").cgroup.GetCpuShares(); got != 100 {
			t.Errorf("shares after a refused update: got %d, want 100", got)
		}
	}
	other.onUpdate = nil
	for range 2 {
		if err := c.Update(t.Context(), "c1", []*mesosv1.Resource{{Name: new("cpus"), Type: mesosv1.Value_SCALAR.Enum()}}, limits); err != nil {
			t.Fatalf("Update: %v", err)
		}
	}
	if got := m.process("c1").cgroup.GetCpuShares(); got != 200 {
		t.Errorf("shares: got %d, want 200", got)
	}
	stopAgent(t, c)
	c, _ = startAgent(t, m, dir, cpu, other)
	defer stopAgent(t, c)
	r := c.Records("cpu")
	if len(r) != 1 || string(r[0].GetState()) != "200" || len(r[0].GetContainer().GetResources()) != 1 {
		t.Errorf("Records after a restart: got %v, want the new state and resources", r)
	}
	if err := c.Update(t.Context(), "nobody", nil, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("Update of nobody: got %v, want %v", err, ErrNotFound)
	}
}

func TestHostileAnswersFailTheirLaunchOnly(t *testing.T) {
	m := newMachine(t)
	bad := &fakeIsolator{m: m, name: "bad"}
	c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "good", proposal: &containerv1.Proposal{Environment: map[string]string{"A": "1"}}}, bad)
	defer stopAgent(t, c)
	for name, p := range map[string]*containerv1.Proposal{
		"environment of another": {Environment: map[string]string{"A": "2"}},
		"name with =":            {Environment: map[string]string{"B=C": "2"}},
		"zero byte":              {Environment: map[string]string{"B": "\x00"}},
		"same mount twice":       {Mounts: []*containerv1.Mount{{Destination: "/x"}, {Destination: "/x"}}},
		"same namespace twice":   {Namespaces: []*containerv1.Namespace{{Type: 1}, {Type: 1}}},
		"same limit twice":       {Rlimits: []*containerv1.Rlimit{{Type: "RLIMIT_AS"}, {Type: "RLIMIT_AS"}}},
	} {
		bad.proposal = p
		if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err == nil {
			t.Errorf("Launch with %s: got no error, want one", name)
		}
	}
	bad.proposal = nil
	for _, answer := range []*isolatorv1.PrepareResponse{
		nil,
		{Proposal: &containerv1.Proposal{Mounts: []*containerv1.Mount{nil}, Namespaces: []*containerv1.Namespace{nil}, Cgroup: &containerv1.CgroupResources{}}},
	} {
		bad.onPrepare = func(context.Context, *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
			return answer, nil
		}
		if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err == nil {
			if err := c.Destroy(t.Context(), "c1", nil); err != nil {
				t.Errorf("Destroy: %v", err)
			}
			if err := c.Forget(t.Context(), "c1"); err != nil {
				t.Errorf("Forget: %v", err)
			}
		}
	}
	waitFor(t, "nothing is left", func() bool { return len(m.left("c1")) == 0 })
	bad.onPrepare = nil
	if _, err := c.Launch(t.Context(), testContainer(t, "c2")); err != nil {
		t.Errorf("Launch afterwards: %v", err)
	}
	if !slices.Contains(m.process("c2").request.Env, "A=1") {
		t.Errorf("environment: got %v, want the good module's", m.process("c2").request.Env)
	}
}
