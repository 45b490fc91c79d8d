package containerizer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// nestedIn describes a container of class DEFAULT nested in parent.
func nestedIn(parent *containerv1.Container, id string) *containerv1.Container {
	shell, value := true, "sleep 1000"
	return &containerv1.Container{
		Id: parent.Id + "." + id, ParentId: parent.Id, Generation: 1, FrameworkId: parent.FrameworkId, ExecutorId: parent.ExecutorId,
		Command: &mesosv1.CommandInfo{Shell: &shell, Value: &value}, Sandbox: filepath.Join(parent.Sandbox, "containers", id),
	}
}

func ownCgroup(c *containerv1.Container) *containerv1.Container {
	no := false
	c.ContainerInfo = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: &mesosv1.LinuxInfo{ShareCgroups: &no}}
	return c
}

func launch(t *testing.T, c *Containerizer, list ...*containerv1.Container) {
	t.Helper()
	for _, x := range list {
		if _, err := c.Launch(t.Context(), x); err != nil {
			t.Fatalf("Launch(%s): %v", x.Id, err)
		}
	}
}

func wait(t *testing.T, c *Containerizer, id string) *containerv1.Termination {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	end, err := c.Wait(ctx, id)
	if err != nil {
		t.Fatalf("Wait(%s): %v", id, err)
	}
	return end
}

func TestNestedContainerJoinsTheNamespacesThatNobodyMakesAnew(t *testing.T) {
	m := newMachine(t)
	a := &fakeIsolator{m: m, name: "a"}
	a.onPrepare = func(_ context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
		p := &containerv1.Proposal{Namespaces: []*containerv1.Namespace{{Type: containerv1.Namespace_PID}}}
		if r.GetContainer().GetParentId() == "" {
			p.Namespaces = append(p.Namespaces, &containerv1.Namespace{Type: containerv1.Namespace_NETWORK}, &containerv1.Namespace{Type: containerv1.Namespace_IPC})
		}
		return &isolatorv1.PrepareResponse{Proposal: p}, nil
	}
	c, _ := startAgent(t, m, t.TempDir(), a)
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	child := nestedIn(root, "child")
	launch(t, c, root, child, nestedIn(child, "grand"))
	for _, id := range []string{"root.child", "root.child.grand"} {
		var got []string
		for _, n := range m.process(id).request.Proposal.GetNamespaces() {
			got = append(got, n.GetType().String()+" "+n.GetPath())
		}
		slices.Sort(got)
		want := []string{"IPC /ns/root/IPC", "NETWORK /ns/root/NETWORK", "PID "}
		if !slices.Equal(got, want) {
			t.Errorf("namespaces of %s: got %q, want a pid namespace of its own and the root's otherwise", id, got)
		}
	}
}

func TestNestedContainerLivesBelowItsParentsCgroup(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	shared, own := nestedIn(root, "a"), ownCgroup(nestedIn(root, "b"))
	shared.Cgroup = root.Cgroup // as whoever describes it may say
	launch(t, c, root, shared, own, nestedIn(shared, "c"))
	for id, want := range map[string]string{
		"root.a": "mosaic/root/nested-a", "root.b": "mosaic/root/b", "root.a.c": "mosaic/root/nested-a/nested-c",
	} {
		r := m.process(id).request
		if got := r.Container.GetCgroup(); got != want {
			t.Errorf("cgroup of %s: got %q, want %q", id, got, want)
		}
		if got := r.Within; got != filepath.Dir(want) {
			t.Errorf("outer cgroup of %s: got %q, want %q", id, got, filepath.Dir(want))
		}
		if h, ok := r.Beside.(*fakeHandle); !ok || h.p.id != "root" {
			t.Errorf("%s is created beside %v, want the root container", id, r.Beside)
		}
		if r.Container.GetUser() != "root" {
			t.Errorf("user of %s: got %q, want the parent's", id, r.Container.GetUser())
		}
	}
}

func TestNestedContainersEndBeforeTheirParentAndWithIt(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "a"})
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	child := nestedIn(root, "child")
	launch(t, c, root, child, nestedIn(child, "grand"), nestedIn(root, "other"))
	if err := c.Destroy(t.Context(), "root", &containerv1.Termination{Message: "enough"}); err != nil {
		t.Fatalf("Destroy: %v", err)
	}
	for _, id := range []string{"root.child", "root.child.grand", "root.other"} {
		if end := wait(t, c, id); end.GetWaitStatus() != 9 || !strings.Contains(end.GetMessage(), "nested in") {
			t.Errorf("Wait(%s) = %v, want it killed, and why", id, end)
		}
	}
	if _, err := c.Launch(t.Context(), nestedIn(root, "late")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Launch in a container that ended = %v, want ErrNotRunning", err)
	}
	if err := c.Forget(t.Context(), "root"); err != nil {
		t.Errorf("Forget: %v", err)
	}
	waitFor(t, "nothing is left", func() bool { return len(c.all()) == 0 && len(m.disk) == 0 })
	h := m.history()
	order := []string{"destroy root.child.grand", "destroy root.child", "destroy root"}
	at := -1
	for _, step := range order {
		n := slices.Index(h, step)
		if n <= at {
			t.Errorf("history: %q at %d, want it after %d:\n%s", step, n, at, strings.Join(h, "\n"))
		}
		at = n
	}
}

func TestNestedContainersEndWhenTheirParentsProcessDoes(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	launch(t, c, root, nestedIn(root, "child"))
	m.exit("root", 0)
	if end := wait(t, c, "root.child"); end.GetWaitStatus() != 9 {
		t.Errorf("Wait = %v, want it killed", end)
	}
}

func TestEndOfANestedContainerIsToldUntilItIsRemoved(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "a"})
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	child := nestedIn(root, "child")
	launch(t, c, root, child)
	if err := c.Remove(t.Context(), child.Id); !errors.Is(err, ErrRunning) {
		t.Errorf("Remove of a running container = %v, want ErrRunning", err)
	}
	m.exit(child.Id, 256)
	for range 2 {
		if end := wait(t, c, child.Id); end.GetWaitStatus() != 256 {
			t.Errorf("Wait = %v, want status 256", end)
		}
	}
	waitFor(t, "its traces to be gone", func() bool { return m.process(child.Id) == nil })
	if end := wait(t, c, child.Id); end.GetWaitStatus() != 256 {
		t.Errorf("Wait = %v, want status 256", end)
	}
	if got := c.Containers(); len(got) != 2 || got[1].ID != child.Id || got[1].ParentID != "root" || got[1].Running || !got[0].Running {
		t.Errorf("Containers() = %+v, want both, the nested one ended", got)
	}
	if err := c.Remove(t.Context(), child.Id); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	if _, err := os.Stat(child.Sandbox); !os.IsNotExist(err) {
		t.Errorf("sandbox after Remove: %v, want it gone", err)
	}
	if _, err := c.Wait(t.Context(), child.Id); !errors.Is(err, ErrNotFound) {
		t.Errorf("Wait after Remove = %v, want ErrNotFound", err)
	}
	if err := c.Remove(t.Context(), child.Id); err != nil {
		t.Errorf("Remove of an unknown container = %v, want success", err)
	}
	if err := c.Remove(t.Context(), "root"); err == nil {
		t.Error("Remove of an executor's container succeeded, want an error")
	}
	if left := m.left(child.Id); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	launch(t, c, child) // its id is free
}

func TestRemoveWaitsForOwedCleanup(t *testing.T) {
	m := newMachine(t)
	var broken = true
	a := &fakeIsolator{m: m, name: "a"}
	a.onCleanup = func(*isolatorv1.CleanupRequest) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if broken {
			return errors.New("still mounted")
		}
		return nil
	}
	c, _ := startAgent(t, m, t.TempDir(), a)
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	child := nestedIn(root, "child")
	launch(t, c, root, child)
	m.exit(child.Id, 0)
	wait(t, c, child.Id)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Remove(ctx, child.Id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Remove = %v, want that its cleanup is not done", err)
	}
	if _, err := os.Stat(child.Sandbox); err != nil {
		t.Errorf("sandbox: %v, want it untouched while something may be mounted in it", err)
	}
	m.mu.Lock()
	broken = false
	m.mu.Unlock()
	if err := c.Remove(t.Context(), child.Id); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func TestLimitOfASharedCgroupEndsTheWholeContainer(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	launch(t, c, root, nestedIn(root, "child"), nestedIn(root, "other"))
	reason := mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_MEMORY.String()
	c.Limited("cgroups", &modulev1.Limitation{ContainerId: "root.child", Reason: reason, Message: "Memory limit exceeded"})
	for _, id := range []string{"root.child", "root.other", "root"} {
		if end := wait(t, c, id); end.GetReason() != reason || end.GetState() != "TASK_FAILED" {
			t.Errorf("Wait(%s) = %v, want the limitation", id, end)
		}
	}
}

func TestLimitOfAnOwnCgroupEndsTheNestedContainerAlone(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	launch(t, c, root, ownCgroup(nestedIn(root, "child")), nestedIn(root, "other"))
	reason := mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_MEMORY.String()
	c.Limited("cgroups", &modulev1.Limitation{ContainerId: "root.child", Reason: reason})
	if end := wait(t, c, "root.child"); end.GetReason() != reason {
		t.Errorf("Wait = %v, want the limitation", end)
	}
	for _, id := range []string{"root", "root.other"} {
		if !m.runs(id) {
			t.Errorf("%s ended, want it to go on", id)
		}
	}
}

func TestOOMFoundAtTheEndOfANestedContainerEndsTheOneThatItSharesWith(t *testing.T) {
	m := newMachine(t)
	reason := mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_MEMORY.String()
	a := &fakeIsolator{m: m, name: "a", calls: []string{"status"}}
	a.onStatus = func(r *isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error) {
		results := map[string]*isolatorv1.StatusResult{}
		for _, rec := range r.GetRecords() {
			if id := rec.GetContainer().GetId(); id == "root.child" {
				results[id] = &isolatorv1.StatusResult{Limitation: &modulev1.Limitation{ContainerId: id, Reason: reason}}
			}
		}
		return &isolatorv1.StatusResponse{Results: results}, nil
	}
	c, _ := startAgent(t, m, t.TempDir(), a)
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	launch(t, c, root, nestedIn(root, "child"))
	m.exit("root.child", int(syscall.SIGKILL))
	for _, id := range []string{"root.child", "root"} {
		if end := wait(t, c, id); end.GetReason() != reason {
			t.Errorf("Wait(%s) = %v, want the limitation", id, end)
		}
	}
}

func TestIsolatorsThatDoNotNestAreNotAsked(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "flat", flat: true}, &fakeIsolator{m: m, name: "deep"})
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	alone := testContainer(t, "alone")
	alone.Standalone = true
	launch(t, c, root, nestedIn(root, "child"), alone)
	h := m.history()
	for step, want := range map[string]bool{
		"prepare flat root": true, "prepare flat root.child": false, "prepare deep root.child": true,
		"prepare flat alone": false, "prepare deep alone": true,
	} {
		if got := slices.Contains(h, step); got != want {
			t.Errorf("%q happened: %v, want %v", step, got, want)
		}
	}
}

func TestNestedAndStandaloneContainersOutliveTheAgent(t *testing.T) {
	m, dir := newMachine(t), t.TempDir()
	c, _ := startAgent(t, m, dir, &fakeIsolator{m: m, name: "a"})
	kept, lost := testContainer(t, "kept"), testContainer(t, "lost")
	alone := testContainer(t, "alone")
	alone.Standalone = true
	in := nestedIn(alone, "in")
	launch(t, c, kept, nestedIn(kept, "a"), nestedIn(kept, "b"), lost, nestedIn(lost, "a"), alone, in)
	pid := m.process("kept.a").pid
	stopAgent(t, c)
	m.exit("kept.b", 512)

	c, _ = startAgent(t, m, dir, &fakeIsolator{m: m, name: "a"})
	defer stopAgent(t, c)
	found, err := c.Recover(t.Context(), []string{"kept", "kept.b"})
	if err != nil || len(found) != 2 {
		t.Fatalf("Recover = %v, %v, want the two that are known", found, err)
	}
	if got := found[1]; got.GetPhase() != containerv1.Checkpoint_ENDED || got.GetTermination().GetWaitStatus() != 512 {
		t.Errorf("kept.b: %v, want its end with its status", got)
	}
	if p := m.process("kept.a"); !m.runs("kept.a") || p.pid != pid {
		t.Errorf("kept.a: want it to run under pid %d", pid)
	}
	for _, id := range []string{"lost", "lost.a"} {
		waitFor(t, id+" to be gone", func() bool { return len(m.left(id)) == 0 })
	}
	var ids []string
	for _, k := range c.Containers() {
		ids = append(ids, k.ID)
	}
	if want := []string{"alone", "alone.in", "kept", "kept.a", "kept.b"}; !slices.Equal(ids, want) {
		t.Errorf("Containers() = %v, want %v", ids, want)
	}
	m.exit("alone", 768)
	if end := wait(t, c, "alone"); end.GetWaitStatus() != 768 {
		t.Errorf("Wait(alone) = %v, want status 768", end)
	}
	if end := wait(t, c, "alone.in"); end.GetWaitStatus() != 9 {
		t.Errorf("Wait(alone.in) = %v, want it killed with its parent", end)
	}
	if err := c.Remove(t.Context(), "alone"); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if _, err := os.Stat(alone.Sandbox); !os.IsNotExist(err) {
		t.Errorf("sandbox after Remove: %v, want it gone", err)
	}
}

func TestParentThatEndedWhileTheAgentWasAwayTakesWhatIsNestedInIt(t *testing.T) {
	m, dir := newMachine(t), t.TempDir()
	c, _ := startAgent(t, m, dir)
	root := testContainer(t, "root")
	child := nestedIn(root, "child")
	launch(t, c, root, child, nestedIn(child, "grand"))
	stopAgent(t, c)
	m.exit("root", 0)

	c, _ = startAgent(t, m, dir)
	defer stopAgent(t, c)
	if _, err := c.Recover(t.Context(), []string{"root", child.Id}); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	for _, id := range []string{child.Id, child.Id + ".grand"} {
		if end := wait(t, c, id); end.GetWaitStatus() != 9 {
			t.Errorf("Wait(%s) = %v, want it killed", id, end)
		}
	}
	if end := wait(t, c, "root"); end.WaitStatus == nil || *end.WaitStatus != 0 {
		t.Errorf("Wait(root) = %v, want status 0", end)
	}
	if err := c.Forget(t.Context(), "root"); err != nil {
		t.Errorf("Forget: %v", err)
	}
	waitFor(t, "nothing is left", func() bool { return len(c.all()) == 0 && len(m.disk) == 0 })
}

func TestStandaloneContainerBelongsToNobody(t *testing.T) {
	c, _ := startAgent(t, newMachine(t), t.TempDir())
	defer stopAgent(t, c)
	for what, change := range map[string]func(*containerv1.Container){
		"a framework": func(x *containerv1.Container) { x.FrameworkId = "f" },
		"an executor": func(x *containerv1.Container) { x.ExecutorId = "e" },
		"a parent":    func(x *containerv1.Container) { x.ParentId, x.Id = "root", "root.alone" },
	} {
		x := testContainer(t, "alone")
		x.Standalone = true
		change(x)
		if _, err := c.Launch(t.Context(), x); err == nil {
			t.Errorf("Launch of a standalone container with %s succeeded, want an error", what)
		}
	}
}

// TestNestedLaunchCutAnywhereLeavesNothing kills the agent after every step of a nested launch.
func TestNestedLaunchCutAnywhereLeavesNothing(t *testing.T) {
	for cut := 1; ; cut++ {
		m, dir := newMachine(t), t.TempDir()
		a := &fakeIsolator{m: m, name: "a", state: []byte("s"), calls: []string{"isolate"}}
		c, _ := startAgent(t, m, dir, a)
		root := testContainer(t, "root")
		child := nestedIn(root, "child")
		launch(t, c, root)
		m.mu.Lock()
		m.cutAfter = m.steps + cut
		m.mu.Unlock()
		_, err := c.Launch(t.Context(), child)
		if err == nil {
			stopAgent(t, c)
			if cut < 5 {
				t.Fatalf("a nested launch took %d steps, want more", cut)
			}
			return
		}
		stopAgent(t, c)
		m.revive()

		c, _ = startAgent(t, m, dir, a)
		found, err := c.Recover(t.Context(), []string{"root", child.Id})
		if err != nil {
			t.Fatalf("cut after %d: Recover: %v", cut, err)
		}
		if len(found) == 1 { // no instruction of it ran: it may be launched again
			launch(t, c, child)
		}
		if p := m.process(child.Id); p == nil || !p.started {
			t.Errorf("cut after %d: process %+v, want it started once", cut, p)
		}
		if err := c.Destroy(t.Context(), "root", nil); err != nil {
			t.Errorf("cut after %d: Destroy: %v", cut, err)
		}
		if err := c.Forget(t.Context(), "root"); err != nil {
			t.Errorf("cut after %d: Forget: %v", cut, err)
		}
		waitFor(t, "nothing is left", func() bool { return len(c.all()) == 0 && len(m.disk) == 0 && len(m.left(child.Id)) == 0 })
		stopAgent(t, c)
	}
}

func makePipe(t *testing.T, path string) {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestNothingIsNestedInWhatIsBeingDestroyed lets launches race with the end of the container that they are nested in:
// in whatever order they come, nothing runs when Destroy returns.
func TestNothingIsNestedInWhatIsBeingDestroyed(t *testing.T) {
	for round := range 50 {
		m := newMachine(t)
		c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "a"})
		root := testContainer(t, "root")
		launch(t, c, root)
		var wg sync.WaitGroup
		for n := range 4 {
			child := nestedIn(root, fmt.Sprintf("n%d", n))
			wg.Go(func() {
				if _, err := c.Launch(t.Context(), child); err == nil {
					_, _ = c.Launch(t.Context(), nestedIn(child, "deep")) // or is too late
				}
			})
		}
		var err error
		if round%2 == 0 {
			err = c.Destroy(t.Context(), "root", nil)
		} else {
			m.exit("root", 0)
			wait(t, c, "root")
		}
		if err != nil {
			t.Errorf("Destroy: %v", err)
		}
		wg.Wait()
		if err := c.Forget(t.Context(), "root"); err != nil {
			t.Errorf("Forget: %v", err)
		}
		waitFor(t, "nothing is left", func() bool { return len(c.all()) == 0 && len(m.disk) == 0 })
		m.mu.Lock()
		if len(m.processes) > 0 {
			t.Errorf("round %d: %d processes are left", round, len(m.processes))
		}
		m.mu.Unlock()
		stopAgent(t, c)
	}
}
