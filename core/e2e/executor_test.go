package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// helper builds one of the programs below this folder into the cluster's folder.
func helper(t *testing.T, c *cluster.Cluster, name string) string {
	t.Helper()
	path := filepath.Join(c.Dir, name)
	build := exec.Command("go", "build", "-o", path, "./"+name)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return path
}

// httpExecutor is an executor that is fetched into its sandbox and runs core/e2e/httpexecutor.
func httpExecutor(o *mesosv1.Offer, id, program string) *mesosv1.ExecutorInfo {
	amount := func(name string, v float64) *mesosv1.Resource {
		return &mesosv1.Resource{
			Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &v}, AllocationInfo: o.GetAllocationInfo(),
		}
	}
	return &mesosv1.ExecutorInfo{
		Type: mesosv1.ExecutorInfo_CUSTOM.Enum(), ExecutorId: &mesosv1.ExecutorID{Value: &id},
		Command: &mesosv1.CommandInfo{
			Shell: proto.Bool(false), Value: proto.String("./httpexecutor"), Arguments: []string{"httpexecutor"},
			Uris: []*mesosv1.CommandInfo_URI{{Value: proto.String("file://" + program), Executable: proto.Bool(true)}},
		},
		Resources: []*mesosv1.Resource{amount("cpus", 0.1), amount("mem", 64)},
	}
}

// executorTask is a task of a custom executor; what says what it does.
func executorTask(o *mesosv1.Offer, e *mesosv1.ExecutorInfo, id, what string) *mesosv1.TaskInfo {
	task := cluster.Task(o, id, 0.1, 32, nil)
	task.Executor, task.Data = e, []byte(what)
	return task
}

func TestAnExecutorOfNothingButAnHTTPLibraryRunsItsTasks(t *testing.T) {
	c := start(t, cluster.Options{Composition: hostPids})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	program := helper(t, c, "httpexecutor")
	f, err := cluster.Subscribe(ctx, c.Master, "custom", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 1, 256)
	if err != nil {
		t.Fatal(err)
	}
	gate := filepath.Join(t.TempDir(), "gate")
	e := httpExecutor(o, "exec-1", program)
	if err := f.Launch(ctx, o, executorTask(o, e, "stay", "stay"), executorTask(o, e, "finish", "finish")); err != nil {
		t.Fatal(err)
	}
	running, err := f.State(ctx, []string{"stay", "finish"}, mesosv1.TaskState_TASK_RUNNING)
	if err != nil {
		t.Fatalf("%v\n%s", err, c.Logs())
	}
	for id, u := range running {
		if u.Status.GetSource() != mesosv1.TaskStatus_SOURCE_EXECUTOR || u.Status.GetExecutorId().GetValue() != "exec-1" ||
			u.Status.GetContainerStatus().GetContainerId().GetValue() == "" || len(u.Status.GetUuid()) != 16 {
			t.Errorf("first update of %s: %v, want the executor's with its container and a uuid", id, u.Status)
		}
	}
	if a, b := running["stay"].Status.GetContainerStatus().GetContainerId(), running["finish"].Status.GetContainerStatus().GetContainerId(); a.GetValue() != b.GetValue() {
		t.Errorf("tasks run in containers %v and %v, want one executor", a, b)
	}
	if _, err := f.State(ctx, []string{"finish"}, mesosv1.TaskState_TASK_FINISHED); err != nil {
		t.Fatal(err)
	}

	// A later task goes to the executor that runs.
	if o, err = f.Offer(ctx, 0.1, 32); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(o.GetExecutorIds(), func(id *mesosv1.ExecutorID) bool { return id.GetValue() == "exec-1" }) {
		t.Errorf("offer names executors %v, want exec-1", o.GetExecutorIds())
	}
	if err := f.Launch(ctx, o, executorTask(o, e, "later", "until "+gate)); err != nil {
		t.Fatal(err)
	}
	later, err := f.State(ctx, []string{"later"}, mesosv1.TaskState_TASK_RUNNING)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := running["stay"].Status.GetContainerStatus().GetContainerId(), later["later"].Status.GetContainerStatus().GetContainerId(); a.GetValue() != b.GetValue() {
		t.Errorf("the later task runs in %v, want %v", b, a)
	}
	message := func(text string) {
		t.Helper()
		eventually(t, "the executor's answer to "+text, 20*time.Second, func() bool {
			// Best effort: one that comes while the executor is away is lost.
			err := f.Client().Call(ctx, &schedulerv1.Call{Type: schedulerv1.Call_MESSAGE.Enum(), Message: &schedulerv1.Call_Message{
				AgentId: o.GetAgentId(), ExecutorId: e.GetExecutorId(), Data: []byte(text),
			}})
			if err != nil {
				t.Fatal(err)
			}
			return slices.Contains(f.Messages(), "echo: "+text)
		})
	}
	message("hello")

	sandbox := filepath.Join(c.Dir, "agent", "slaves", o.GetAgentId().GetValue(), "frameworks", f.Client().FrameworkID().GetValue(), "executors", "exec-1", "runs", "latest")
	pid := func() (n int) {
		data, err := os.ReadFile(filepath.Join(sandbox, "executor.pid"))
		if err == nil {
			_, err = fmt.Sscan(string(data), &n)
		}
		if err != nil {
			t.Fatalf("the executor's pid: %v", err)
		}
		return n
	}
	before := pid()
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil { // "later" ends while nobody listens
		t.Fatal(err)
	}
	if !alive(before) {
		t.Error("the executor ended with its agent")
	}
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	finished, err := f.State(ctx, []string{"later"}, mesosv1.TaskState_TASK_FINISHED)
	if err != nil {
		t.Fatalf("the update of the outage: %v\n%s", err, c.Logs())
	}
	if m := finished["later"].Status.GetMessage(); m != gate+" is there" {
		t.Errorf("message %q, want the executor's own", m)
	}
	message("still there?")
	if now := pid(); now != before || !alive(now) {
		t.Errorf("the executor's pid was %d and is %d", before, now)
	}

	if o, err = f.Offer(ctx, 0.1, 32); err != nil {
		t.Fatal(err)
	}
	if err := f.Launch(ctx, o, executorTask(o, e, "kill-me", "stay")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(ctx, []string{"kill-me"}, mesosv1.TaskState_TASK_RUNNING); err != nil {
		t.Fatal(err)
	}
	if err := f.Client().Kill(ctx, &mesosv1.TaskID{Value: proto.String("kill-me")}, nil); err != nil {
		t.Fatal(err)
	}
	killed, err := f.State(ctx, []string{"kill-me"}, mesosv1.TaskState_TASK_KILLED)
	if err != nil {
		t.Fatal(err)
	}
	if m := killed["kill-me"].Status.GetMessage(); m != "killed as told" {
		t.Errorf("message %q, want the executor's own", m)
	}

	if err := f.Client().Call(ctx, &schedulerv1.Call{Type: schedulerv1.Call_SHUTDOWN.Enum(), Shutdown: &schedulerv1.Call_Shutdown{
		AgentId: o.GetAgentId(), ExecutorId: e.GetExecutorId(),
	}}); err != nil {
		t.Fatal(err)
	}
	down, err := f.State(ctx, []string{"stay"}, mesosv1.TaskState_TASK_KILLED, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_GONE)
	if err != nil {
		t.Fatal(err)
	}
	if s := down["stay"].Status; s.GetState() != mesosv1.TaskState_TASK_KILLED || s.GetMessage() != "shut down as told" {
		t.Errorf("after SHUTDOWN the task is %s %q, want TASK_KILLED by the executor", s.GetState(), s.GetMessage())
	}
	failure, err := f.Failure(ctx, "exec-1")
	if err != nil {
		t.Fatal(err)
	}
	if failure.GetAgentId().GetValue() != o.GetAgentId().GetValue() || failure.GetStatus() != 0 {
		t.Errorf("FAILURE %v, want the agent and status 0", failure)
	}
	eventually(t, "the executor ends", 10*time.Second, func() bool { return !alive(before) })
	// What it held is offered again.
	if _, err := f.Offer(ctx, 4, 4096); err != nil {
		t.Error(err)
	}
}

func TestTheTasksOfAnExecutorThatDiesFail(t *testing.T) {
	c := start(t, cluster.Options{Dev: true, Composition: hostPids})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	program := helper(t, c, "httpexecutor")
	f, err := cluster.Subscribe(ctx, c.Master, "custom", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 1, 256)
	if err != nil {
		t.Fatal(err)
	}
	dies, never := httpExecutor(o, "dies", program), httpExecutor(o, "never", "/no/such/program")
	if err := f.Launch(ctx, o, executorTask(o, dies, "orphan", "stay"), executorTask(o, never, "unborn", "stay")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(ctx, []string{"orphan"}, mesosv1.TaskState_TASK_RUNNING); err != nil {
		t.Fatal(err)
	}
	ended := []mesosv1.TaskState{mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_GONE, mesosv1.TaskState_TASK_DROPPED, mesosv1.TaskState_TASK_KILLED}
	got, err := f.State(ctx, []string{"unborn"}, ended...)
	if err != nil {
		t.Fatal(err)
	}
	if s := got["unborn"].Status; s.GetState() != mesosv1.TaskState_TASK_FAILED || s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED {
		t.Errorf("task of an executor that cannot be fetched: %s %s %q, want TASK_FAILED, REASON_CONTAINER_LAUNCH_FAILED", s.GetState(), s.GetReason(), s.GetMessage())
	}
	matches, err := filepath.Glob(filepath.Join(c.Dir, "work", "agent", "slaves", "*", "frameworks", "*", "executors", "dies", "runs", "latest", "executor.pid"))
	if err != nil || len(matches) != 1 {
		t.Fatalf("the executor's pid file: %v, %v", matches, err)
	}
	data, err := os.ReadFile(matches[0])
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(data), &pid); err != nil {
		t.Fatal(err)
	}
	if p, err := os.FindProcess(pid); err != nil || p.Kill() != nil {
		t.Fatalf("kill the executor: %v", err)
	}
	if got, err = f.State(ctx, []string{"orphan"}, ended...); err != nil {
		t.Fatal(err)
	}
	if s := got["orphan"].Status; s.GetState() != mesosv1.TaskState_TASK_FAILED || s.GetReason() != mesosv1.TaskStatus_REASON_EXECUTOR_TERMINATED {
		t.Errorf("task of a killed executor: %s %s %q, want TASK_FAILED, REASON_EXECUTOR_TERMINATED", s.GetState(), s.GetReason(), s.GetMessage())
	}
	failure, err := f.Failure(ctx, "dies")
	if err != nil {
		t.Fatal(err)
	}
	if failure.GetStatus() != 9 {
		t.Errorf("FAILURE %v, want the wait status of SIGKILL", failure)
	}
}
