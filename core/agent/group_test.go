package agent

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func builtin(id string) *mesosv1.ExecutorInfo {
	return &mesosv1.ExecutorInfo{
		Type:       mesosv1.ExecutorInfo_DEFAULT.Enum(),
		ExecutorId: &mesosv1.ExecutorID{Value: &id},
		Resources:  resources.MustParse("cpus:0.1;mem:32;disk:10").Resources(),
	}
}

func groupOf(f *mesosv1.FrameworkInfo, x *mesosv1.ExecutorInfo, tasks ...*mesosv1.TaskInfo) *clusterv1.ToAgent_RunTaskGroup {
	return &clusterv1.ToAgent_RunTaskGroup{RunTaskGroup: &clusterv1.RunTaskGroup{
		Framework: f, Executor: x, TaskGroup: &mesosv1.TaskGroupInfo{Tasks: tasks},
	}}
}

func (w *world) launchGroup(f *mesosv1.FrameworkInfo, x *mesosv1.ExecutorInfo, tasks ...*mesosv1.TaskInfo) {
	w.t.Helper()
	w.master.send(w.t, groupOf(f, x, tasks...))
}

// watched notes every container that is launched, and calls next for it.
func (w *world) watched(next func(ctx context.Context, c *containerv1.Container) error) func() map[string]*containerv1.Container {
	seen := make(map[string]*containerv1.Container) // guarded by host.mu
	w.host.launches = func(ctx context.Context, c *containerv1.Container) error {
		w.host.mu.Lock()
		seen[c.GetId()] = proto.CloneOf(c)
		w.host.mu.Unlock()
		if next != nil {
			return next(ctx, c)
		}
		return nil
	}
	return func() map[string]*containerv1.Container {
		w.host.mu.Lock()
		defer w.host.mu.Unlock()
		all := make(map[string]*containerv1.Container, len(seen))
		for id, c := range seen {
			all[id] = c
		}
		return all
	}
}

// root is the id of the container around that of a task.
func (w *world) root(task string) string {
	w.t.Helper()
	root, _, nested := strings.Cut(w.container(task), ".")
	if !nested {
		w.t.Fatalf("container %s of %s is not nested", root, task)
	}
	return root
}

// alive tells whether a container's process runs.
func (h *host) alive(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.procs[id]
	if p == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// exits are the statuses of the executors whose end the master was told.
func (m *controller) exits() map[string]int32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[string]int32)
	for _, msg := range m.received {
		if x := msg.GetExecutorExited(); x != nil {
			all[x.GetExecutorId()] = x.GetStatus()
		}
	}
	return all
}

func TestTaskGroupRunsInOneContainer(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.config.IP = "10.0.0.7"
		seen := w.watched(nil)
		w.start()
		a, b := command("a", "sleep"), command("b", "sleep")
		b.Command.User = new("bob")
		b.Command.Environment = &mesosv1.Environment{Variables: []*mesosv1.Environment_Variable{{Name: new("X"), Value: new("1")}}}
		b.Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: new("k"), Value: new("v")}}}
		for _, x := range []*mesosv1.TaskInfo{a, b} {
			for _, r := range x.Resources {
				r.AllocationInfo = &mesosv1.Resource_AllocationInfo{Role: new("dev")}
			}
		}
		w.master.autoAck = true
		w.launchGroup(checkpointed("F"), builtin("e"), a, b)
		for _, id := range []string{"a", "b"} {
			u := w.master.await(t, id, mesosv1.TaskState_TASK_RUNNING)
			if s := u.GetStatus(); u.GetExecutorId() != "e" || s.GetExecutorId().GetValue() != "e" || s.GetAgentId().GetValue() != "M-S0" {
				t.Errorf("update of %s = %v, want executor e", id, u)
			}
			equal(t, "history of "+id, w.master.history(id), []string{"TASK_STARTING", "TASK_RUNNING"})
		}
		root := w.root("a")
		if w.root("b") != root || w.container("a") == w.container("b") {
			t.Errorf("containers %s and %s, want two in one", w.container("a"), w.container("b"))
		}
		around, in := seen()[root], seen()[w.container("b")]
		if around.GetParentId() != "" || around.GetExecutorId() != "e" || around.GetTaskId() != "" ||
			around.GetCommand().GetValue() != "pause" || around.GetCommand().GetShell() || len(around.GetCommand().GetArguments()) != 1 {
			t.Errorf("container around = %v, want one of executor e that pauses", around)
		}
		if got, want := resources.New(around.GetResources()...).Scalar("cpus"), 2.1; got != want {
			t.Errorf("cpus around = %v, want %v: the executor's and its tasks'", got, want)
		}
		child := strings.TrimPrefix(in.GetId(), root+".")
		if in.GetParentId() != root || in.GetTaskId() != "b" || in.GetExecutorId() != "e" || in.GetCommand().GetUser() != "bob" ||
			in.GetSandbox() != filepath.Join(around.GetSandbox(), "containers", child) ||
			in.GetCgroup() != around.GetCgroup()+"/nested-"+child || in.GetLabels()["k"] != "v" {
			t.Errorf("container of b = %v", in)
		}
		if len(in.GetResources()) != 0 || len(in.GetLimits()) != 0 {
			t.Errorf("resources of a container that shares the cgroup = %v, %v, want none", in.GetResources(), in.GetLimits())
		}
		for name, want := range map[string]string{
			"MESOS_EXECUTOR_ID": "e", "MESOS_FRAMEWORK_ID": "F", "MESOS_CONTAINER_IP": "10.0.0.7", "MESOS_ALLOCATION_ROLE": "dev",
			"MESOS_SANDBOX": in.GetSandbox(), "MESOS_DIRECTORY": in.GetSandbox(),
		} {
			if got := in.GetEnvironment()[name]; got != want {
				t.Errorf("%s = %q, want %q", name, got, want)
			}
		}
		if target, err := os.Readlink(filepath.Join(around.GetSandbox(), "tasks", "b")); err != nil || target != "../containers/"+child {
			t.Errorf("link tasks/b = %q, %v, want to ../containers/%s", target, err, child)
		}
		if _, err := os.Stat(filepath.Join(around.GetSandbox(), "tasks", "b")); err != nil {
			t.Errorf("the link of b leads nowhere: %v", err)
		}

		w.host.end(w.container("a"), 0)
		w.master.await(t, "a", mesosv1.TaskState_TASK_FINISHED)
		time.Sleep(time.Minute)
		if !w.host.alive(w.container("b")) || !w.host.alive(root) {
			t.Error("a task that finishes takes others with it")
		}
		w.host.end(w.container("b"), 0)
		s := w.master.await(t, "b", mesosv1.TaskState_TASK_FINISHED).GetStatus()
		if s.GetMessage() != "Command exited with status 0" || s.Reason != nil {
			t.Errorf("status of b = %v", s)
		}
		w.master.wait(t, "end of the executor", func() bool {
			return slices.ContainsFunc(w.master.received, func(m *clusterv1.FromAgent) bool { return m.GetExecutorExited() != nil })
		})
		synctest.Wait()
		if status := w.master.exits()["e"]; status != 0 || w.host.alive(root) {
			t.Errorf("exit of the executor = %d, its container runs: %v; want 0 and no", status, w.host.alive(root))
		}
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v at the end, want nothing", got)
		}
	})
}

func TestSeveralGroupsShareOneExecutor(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), command("a", "sleep"))
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		if len(w.host.updates) != 0 {
			t.Errorf("updates of a container that was launched with all it needs = %v, want none", w.host.updates)
		}
		w.launchGroup(checkpointed("F"), builtin("e"), command("b", "sleep"), command("c", "sleep"))
		w.master.await(t, "b", mesosv1.TaskState_TASK_RUNNING)
		w.master.await(t, "c", mesosv1.TaskState_TASK_RUNNING)
		if w.root("c") != w.root("a") {
			t.Errorf("containers of a and c are in %s and %s, want one", w.root("a"), w.root("c"))
		}
		w.host.end(w.container("b"), 0)
		w.host.end(w.container("c"), 0)
		w.master.await(t, "c", mesosv1.TaskState_TASK_FINISHED)
		synctest.Wait()
		if n := len(w.host.updates); n == 0 || math.Abs(w.host.updates[0]-3.1) > 1e-9 || math.Abs(w.host.updates[n-1]-1.1) > 1e-9 {
			t.Errorf("cpus of the container's updates = %v, want 3.1 first and 1.1 at last", w.host.updates)
		}
		root := w.root("a")
		w.host.end(w.container("a"), 0)
		w.master.await(t, "a", mesosv1.TaskState_TASK_FINISHED)
		synctest.Wait()
		// One that comes at once finds the executor, one that comes later another of its name.
		w.launchGroup(checkpointed("F"), builtin("e"), command("next", "true"))
		w.master.await(t, "next", mesosv1.TaskState_TASK_FINISHED)
		if w.root("next") != root {
			t.Error("a group that was launched on the end of the last one did not find its executor")
		}
		time.Sleep(2 * idleTime)
		synctest.Wait()
		w.launchGroup(checkpointed("F"), builtin("e"), command("d", "sleep"))
		w.master.await(t, "d", mesosv1.TaskState_TASK_RUNNING)
		if w.root("d") == root {
			t.Error("a group was launched into an executor that has ended")
		}
	})
}

func TestGroupThatFindsItsExecutorEndingIsDropped(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), command("a", "true"))
		w.master.await(t, "a", mesosv1.TaskState_TASK_STARTING)
		time.Sleep(2 * idleTime) // it has ended, and nobody acknowledged what its task came to
		synctest.Wait()
		w.launchGroup(checkpointed("F"), builtin("e"), command("b", "sleep"))
		s := w.master.await(t, "b", mesosv1.TaskState_TASK_LOST).GetStatus()
		if s.GetReason() != mesosv1.TaskStatus_REASON_EXECUTOR_TERMINATED || s.GetExecutorId().GetValue() != "e" {
			t.Errorf("status of b = %v, want EXECUTOR_TERMINATED", s)
		}
	})
}

func TestLimitsOfAGroupAddUp(t *testing.T) {
	limited := func(id string, own bool, limits map[string]float64) *mesosv1.TaskInfo {
		x := command(id, "sleep")
		for name, v := range limits {
			if x.Limits == nil {
				x.Limits = make(map[string]*mesosv1.Value_Scalar)
			}
			x.Limits[name] = &mesosv1.Value_Scalar{Value: new(v)}
		}
		x.Container = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: &mesosv1.LinuxInfo{ShareCgroups: new(!own)}}
		return x
	}
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		seen := w.watched(nil)
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), limited("a", true, map[string]float64{"cpus": 2, "mem": math.Inf(1)}), limited("b", true, nil))
		w.launchGroup(checkpointed("F"), builtin("shared"), limited("c", false, nil))
		for _, id := range []string{"a", "b", "c"} {
			w.master.await(t, id, mesosv1.TaskState_TASK_RUNNING)
		}
		root, c := seen()[w.root("a")], seen()[w.container("a")]
		if got := root.GetLimits(); len(got) != 2 || math.Abs(got["cpus"]-3.1) > 1e-9 || !math.IsInf(got["mem"], 1) {
			t.Errorf("limits around = %v, want cpus 0.1 + 2 + 1 and mem without end", got)
		}
		if got := c.GetLimits(); len(got) != 2 || got["cpus"] != 2 || !math.IsInf(got["mem"], 1) {
			t.Errorf("limits of a = %v, want its own", got)
		}
		if got := resources.New(c.GetResources()...).Scalar("cpus"); got != 1 || strings.Contains(c.GetCgroup(), "nested-") {
			t.Errorf("cpus of a = %v in cgroup %s, want 1 in one of its own", got, c.GetCgroup())
		}
		if shared := seen()[w.container("c")]; !strings.Contains(shared.GetCgroup(), "/nested-") || len(shared.GetResources()) != 0 {
			t.Errorf("container of c = %v, want none of its own", shared)
		}
	})
}

func TestVolumesOfAGroupAreThoseOfItsTasks(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		task := command("a", "sleep")
		disk := resources.MustParse("disk:5").Resources()[0]
		disk.Disk = &mesosv1.Resource_DiskInfo{
			Persistence: &mesosv1.Resource_DiskInfo_Persistence{Id: new("v")},
			Volume:      &mesosv1.Volume{ContainerPath: new("data"), Mode: mesosv1.Volume_RW.Enum()},
		}
		task.Resources = append(task.Resources, disk)
		w.open(nil)
		f := newFramework("F", checkpointed("F"))
		e := newExecutor(f, "e", builtin("e"))
		e.container = "root"
		x := &task0{framework: f, id: "a", info: task, state: mesosv1.TaskState_TASK_STAGING}
		x.progress.container = "root.a"
		x.executor = newNested(e, x)
		e.tasks["a"] = x
		for _, r := range e.allowance().resources {
			if r.GetDisk().GetPersistence() != nil {
				t.Errorf("the container around has the volume %v", r)
			}
		}
		if got := x.executor.allowance().resources; len(got) != 1 || got[0].GetDisk().GetVolume().GetContainerPath() != "data" {
			t.Errorf("the container of the task has %v, want the volume", got)
		}
		if all, _ := e.resources(); !slices.ContainsFunc(all, func(r *mesosv1.Resource) bool { return r.GetDisk().GetPersistence() != nil }) {
			t.Error("the executor is not charged for the volume")
		}
		w.store.Close()
		w.agent = nil
	})
}

// task0 is task where the name is taken.
type task0 = task

func TestGroupIsRefusedAsAWhole(t *testing.T) {
	foreign := command("b", "sleep")
	foreign.AgentId.Value = new("M-S9")
	nothing := command("b", "")
	nothing.Command = nil
	reserved := command("b", "sleep")
	reserved.Resources = append(reserved.Resources, resources.MustParse("disk(r):5").Resources()...)
	reserved.Resources[len(reserved.Resources)-1].Reservations = []*mesosv1.Resource_ReservationInfo{{
		Type: mesosv1.Resource_ReservationInfo_DYNAMIC.Enum(), Role: new("r"),
	}}
	commanded := builtin("e")
	commanded.Command = &mesosv1.CommandInfo{Value: new("x")}
	named := builtin("..")
	custom := builtin("e")
	custom.Type = mesosv1.ExecutorInfo_CUSTOM.Enum()
	for name, test := range map[string]struct {
		executor *mesosv1.ExecutorInfo
		other    *mesosv1.TaskInfo
		state    mesosv1.TaskState
		reason   mesosv1.TaskStatus_Reason
		text     string
	}{
		"a task for another agent":        {builtin("e"), foreign, mesosv1.TaskState_TASK_ERROR, mesosv1.TaskStatus_REASON_TASK_GROUP_INVALID, `task "b" is for agent "M-S9"`},
		"a task without command":          {builtin("e"), nothing, mesosv1.TaskState_TASK_ERROR, mesosv1.TaskStatus_REASON_TASK_GROUP_INVALID, `task "b" has no command`},
		"a reservation that is not here":  {builtin("e"), reserved, mesosv1.TaskState_TASK_LOST, mesosv1.TaskStatus_REASON_RESOURCES_UNKNOWN, "the agent does not have"},
		"two of one name":                 {builtin("e"), command("a", "sleep"), mesosv1.TaskState_TASK_ERROR, mesosv1.TaskStatus_REASON_TASK_GROUP_INVALID, `task "a" is already here`},
		"an executor with a command":      {commanded, command("b", "sleep"), mesosv1.TaskState_TASK_ERROR, mesosv1.TaskStatus_REASON_TASK_GROUP_INVALID, "has a command or an image"},
		"a custom one without a command":  {custom, command("b", "sleep"), mesosv1.TaskState_TASK_ERROR, mesosv1.TaskStatus_REASON_TASK_GROUP_INVALID, "has no command"},
		"an executor that names a folder": {named, command("b", "sleep"), mesosv1.TaskState_TASK_ERROR, mesosv1.TaskStatus_REASON_TASK_GROUP_INVALID, "stands for a folder"},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.master.autoAck = true
				w.start()
				w.launchGroup(checkpointed("F"), test.executor, command("a", "sleep"), test.other)
				for _, id := range []string{"a", test.other.GetTaskId().GetValue()} {
					s := w.master.await(t, id, test.state).GetStatus()
					if s.GetReason() != test.reason || !strings.Contains(s.GetMessage(), test.text) {
						t.Errorf("status of %s = %v, want %v, %q", id, s, test.reason, test.text)
					}
				}
				synctest.Wait()
				if len(w.host.procs) != 0 || len(w.records()) != 0 {
					t.Errorf("%d containers were launched, the store holds %v", len(w.host.procs), w.records())
				}
			})
		})
	}
}

func TestAgentWithoutPauseRefusesGroups(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.config.Pause = nil
		w.master.autoAck = true
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), command("a", "sleep"))
		s := w.master.await(t, "a", mesosv1.TaskState_TASK_ERROR).GetStatus()
		if s.GetReason() != mesosv1.TaskStatus_REASON_TASK_GROUP_INVALID {
			t.Errorf("status = %v, want TASK_GROUP_INVALID", s)
		}
	})
}

func TestNobodySubscribesAsTheBuiltInExecutor(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), command("a", "sleep"))
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		x := &custom{w: w, id: "e", changed: make(chan struct{}), done: make(chan struct{})}
		if err := w.agent.ExecutorSubscribe(t.Context(), w.call("e", executorv1.Call_SUBSCRIBE), x); httpStatus(err) != 400 {
			t.Errorf("ExecutorSubscribe = %v, want 400", err)
		}
	})
}

func TestTasksOfAGroupKnowTheAddressOfTheirExecutor(t *testing.T) {
	e := &executor{status: &mesosv1.ContainerStatus{NetworkInfos: []*mesosv1.NetworkInfo{
		{}, {IpAddresses: []*mesosv1.NetworkInfo_IPAddress{{IpAddress: new("192.0.2.3")}}},
	}}}
	a := &Agent{cfg: Config{IP: "127.0.0.1"}}
	if got := a.addressOf(e); got != "192.0.2.3" {
		t.Errorf("addressOf = %s, want the container's", got)
	}
	unit := &executor{parent: e, container: "r.c"}
	s := containerStatus(unit, nil)
	if id := s.GetContainerId(); id.GetValue() != "c" || id.GetParent().GetValue() != "r" || id.GetParent().GetParent() != nil {
		t.Errorf("container id = %v, want c in r", id)
	}
	if len(s.GetNetworkInfos()) != 2 {
		t.Errorf("networks = %v, want those of the executor", s.GetNetworkInfos())
	}
}

func TestLinksToSandboxesStayInside(t *testing.T) {
	dir := t.TempDir()
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "tasks")); err != nil {
		t.Fatal(err)
	}
	e := &executor{container: "r", directory: dir}
	unit := &executor{parent: e, container: "r.c", command: &task{id: "t"}}
	if err := unit.linkTask(); err == nil {
		t.Error("linkTask followed a link of the task's out of the sandbox")
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Errorf("outside there is %v", entries)
	}
	if err := os.Remove(filepath.Join(dir, "tasks")); err != nil {
		t.Fatal(err)
	}
	for _, child := range []string{"r.c", "r.c", "r.d"} { // again after a crash, and anew
		unit.container = ContainerID(child)
		if err := unit.linkTask(); err != nil {
			t.Fatalf("linkTask: %v", err)
		}
		if got, _ := os.Readlink(filepath.Join(dir, "tasks", "t")); got != "../containers/"+unit.container.own() {
			t.Errorf("link = %s", got)
		}
	}
}

func TestHealthChecksOfAGroup(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		s := &script{words: []string{"0", "1"}}
		w.host.launches = s.launch
		w.start()
		a := command("a", "sleep")
		a.HealthCheck = commandHealth(nil)
		w.launchGroup(checkpointed("F"), builtin("e"), a, command("b", "sleep"))
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		w.master.await(t, "a", mesosv1.TaskState_TASK_KILLED)
		w.master.await(t, "b", mesosv1.TaskState_TASK_KILLED)
		equal(t, "reports", reports(w.master, "a"), []string{
			"0 RUNNING", "15 RUNNING health healthy=true", "25 RUNNING health healthy=false", "35 RUNNING health healthy=false",
			"45 RUNNING health healthy=false", "45 KILLED healthy=false",
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range s.seen {
			if c.GetParentId() != w.container("a") || !strings.HasPrefix(c.GetId(), w.container("a")+".") {
				t.Errorf("check ran in %s, want in the container of its task %s", c.GetParentId(), w.container("a"))
			}
		}
	})
}

func TestCustomExecutorIsHandedAGroupAsAWhole(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		info := forExecutor("x", "e").GetExecutor()
		info.Type = mesosv1.ExecutorInfo_CUSTOM.Enum()
		w.launchGroup(checkpointed("F"), info, command("a", "sleep"), command("b", "sleep"))
		w.launchGroup(checkpointed("F"), info, command("c", "sleep"))
		w.launchGroup(checkpointed("F"), info, command("d", "sleep"), command("e", "sleep"))
		single := forExecutor("s", "e")
		single.Executor = info
		w.launch(checkpointed("F"), single)
		synctest.Wait()
		w.kill("e") // and with it d
		for _, id := range []string{"d", "e"} {
			u := w.master.await(t, id, mesosv1.TaskState_TASK_KILLED)
			if s := u.GetStatus(); s.GetReason() != mesosv1.TaskStatus_REASON_TASK_KILLED_DURING_LAUNCH || u.GetExecutorId() != "e" {
				t.Errorf("update of %s = %v, want TASK_KILLED_DURING_LAUNCH of executor e", id, u)
			}
		}
		x := w.subscribe("e", nil)
		x.await(executorv1.Event_LAUNCH, 1)
		names := func(e *executorv1.Event) []string {
			var ids []string
			for _, t := range e.GetLaunchGroup().GetTaskGroup().GetTasks() {
				ids = append(ids, t.GetTaskId().GetValue())
			}
			return ids
		}
		equal(t, "first group", names(x.await(executorv1.Event_LAUNCH_GROUP, 1)), []string{"a", "b"})
		equal(t, "second group", names(x.await(executorv1.Event_LAUNCH_GROUP, 2)), []string{"c"})
		x.report("a", mesosv1.TaskState_TASK_RUNNING)
		x.report("c", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()

		// b has come with a, of which the executor reported; what it says nothing of is b's own affair. s never came.
		w.crash()
		w.start()
		x = w.subscribe("e", nil)
		synctest.Wait()
		equal(t, "events after a restart", x.types(), []executorv1.Event_Type{executorv1.Event_SUBSCRIBED, executorv1.Event_LAUNCH})
		for _, u := range w.master.hello().GetTasks() {
			if u.GetExecutorId().GetValue() != "e" {
				t.Errorf("task %v of Hello has executor %v, want e", u.GetTaskId(), u.GetExecutorId())
			}
		}
		x.report("b", mesosv1.TaskState_TASK_FINISHED)
		w.master.await(t, "b", mesosv1.TaskState_TASK_FINISHED)
	})
}
