package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// launchOne runs one task, as change wants it, and returns once it runs.
func launchOne(ctx context.Context, t *testing.T, f *cluster.Framework, id, line string, change func(*mesosv1.TaskInfo)) {
	t.Helper()
	o, err := f.Offer(ctx, 0.1, 32)
	if err != nil {
		t.Fatal(err)
	}
	task := cluster.Task(o, id, 0.1, 32, cluster.Shell(line))
	change(task)
	if err := f.Launch(ctx, o, task); err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(ctx, []string{id}, mesosv1.TaskState_TASK_RUNNING); err != nil {
		t.Fatal(err)
	}
}

func checkFramework(ctx context.Context, t *testing.T, c *cluster.Cluster) *cluster.Framework {
	t.Helper()
	f, err := cluster.Subscribe(ctx, c.Master, "checks", "*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Disconnect)
	return f
}

// health says what the updates of a task said of its health, the one that launched it left out.
func health(f *cluster.Framework, id string) []string {
	var list []string
	for _, u := range f.Updates(id) {
		if u.Status.GetReason() == mesosv1.TaskStatus_REASON_TASK_HEALTH_CHECK_STATUS_UPDATED || u.Status.GetState() == mesosv1.TaskState_TASK_KILLED {
			list = append(list, fmt.Sprintf("%s %v", strings.TrimPrefix(u.Status.GetState().String(), "TASK_"), u.Status.Healthy != nil && u.Status.GetHealthy()))
		}
	}
	return list
}

// shownHealthy says whether the states of master and agent hold a status of the task that calls it healthy.
func shownHealthy(ctx context.Context, t *testing.T, c *cluster.Cluster, id string) bool {
	t.Helper()
	fromMaster, err := operator.NewMaster(c.Master).Call(ctx, &masterv1.Call{Type: masterv1.Call_GET_TASKS.Enum()})
	if err != nil {
		t.Fatal(err)
	}
	fromAgent, err := operator.NewAgent(c.Agent).Call(ctx, &agentv1.Call{Type: agentv1.Call_GET_TASKS.Enum()})
	if err != nil {
		t.Fatal(err)
	}
	shown := func(tasks []*mesosv1.Task) bool {
		return slices.ContainsFunc(tasks, func(task *mesosv1.Task) bool {
			n := len(task.GetStatuses())
			return task.GetTaskId().GetValue() == id && n > 0 && task.GetStatuses()[n-1].GetHealthy()
		})
	}
	return shown(fromMaster.GetGetTasks().GetTasks()) && shown(fromAgent.GetGetTasks().GetLaunchedTasks())
}

func TestATaskWhoseHTTPHealthCheckTurnsBadIsKilledAfterThreeFailures(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Composition: hostPids})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// The task is a sleep, and the test answers for it: tasks share the host's network.
	var bad atomic.Bool
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if bad.Load() || r.URL.Path != "/health" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	go server.Serve(l)
	defer server.Close()
	f := checkFramework(ctx, t, c)
	launchOne(ctx, t, f, "web", "exec sleep 1000", func(task *mesosv1.TaskInfo) {
		task.HealthCheck = &mesosv1.HealthCheck{
			DelaySeconds: proto.Float64(0), IntervalSeconds: proto.Float64(0.2), GracePeriodSeconds: proto.Float64(0),
			Http: &mesosv1.HealthCheck_HTTPCheckInfo{Port: proto.Uint32(uint32(l.Addr().(*net.TCPAddr).Port)), Path: proto.String("/health")},
		}
	})
	eventually(t, "the task is healthy", 10*time.Second, func() bool { return slices.Contains(health(f, "web"), "RUNNING true") })
	eventually(t, "master and agent show it", 10*time.Second, func() bool { return shownHealthy(ctx, t, c, "web") })
	bad.Store(true)
	ended, err := f.State(ctx, []string{"web"}, mesosv1.TaskState_TASK_KILLED, mesosv1.TaskState_TASK_FAILED)
	if err != nil {
		t.Fatal(err)
	}
	if s := ended["web"].Status; s.GetState() != mesosv1.TaskState_TASK_KILLED || s.Healthy == nil || s.GetHealthy() || s.Reason != nil {
		t.Errorf("the task ended as %v, want TASK_KILLED with healthy=false and no reason", s)
	}
	want := []string{"RUNNING true", "RUNNING false", "RUNNING false", "RUNNING false", "KILLED false"}
	if got := health(f, "web"); !slices.Equal(got, want) {
		t.Errorf("updates = %v, want %v", got, want)
	}
}

func TestACommandChecksExitCodeShowsInUpdatesAlsoAfterTheAgentWasKilled(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{}) // the bundle's composition: namespaces of the task's own
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f := checkFramework(ctx, t, c)
	// Only in the task's sandbox and pid namespace, with its variable, does the check exit with what the file says.
	launchOne(ctx, t, f, "job", "echo 3 > code; exec sleep 1000", func(task *mesosv1.TaskInfo) {
		task.Command.Environment = &mesosv1.Environment{Variables: []*mesosv1.Environment_Variable{{Name: proto.String("FILE"), Value: proto.String("code")}}}
		task.Check = &mesosv1.CheckInfo{
			DelaySeconds: proto.Float64(0.2), IntervalSeconds: proto.Float64(0.2),
			Command: &mesosv1.CheckInfo_Command{Command: cluster.Shell(`grep -q sleep /proc/1/cmdline || exit 99; exit $(cat $FILE)`)},
		}
	})
	reported := func(code int32) func() bool {
		return func() bool {
			all := f.Updates("job")
			last := all[len(all)-1].Status
			return last.GetReason() == mesosv1.TaskStatus_REASON_TASK_CHECK_STATUS_UPDATED && last.GetState() == mesosv1.TaskState_TASK_RUNNING &&
				last.GetCheckStatus().GetType() == mesosv1.CheckInfo_COMMAND && last.GetCheckStatus().GetCommand().GetExitCode() == code
		}
	}
	eventually(t, "exit code 3 is reported", 10*time.Second, reported(3))
	if all := f.Updates("job"); all[0].Status.GetCheckStatus().GetCommand() == nil || all[0].Status.GetCheckStatus().GetCommand().ExitCode != nil {
		t.Errorf("first update = %v, want a check status without exit code", all[0].Status)
	}
	files, err := filepath.Glob(filepath.Join(c.Dir, "agent", "slaves", "*", "frameworks", "*", "executors", "job", "runs", "*", "code"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the task's file: %v, %v", files, err)
	}
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files[0], []byte("4\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "exit code 4 is reported", 20*time.Second, reported(4))
	if err := f.Client().Kill(ctx, &mesosv1.TaskID{Value: proto.String("job")}, nil); err != nil {
		t.Fatal(err)
	}
	ended, err := f.State(ctx, []string{"job"}, mesosv1.TaskState_TASK_KILLED, mesosv1.TaskState_TASK_FAILED)
	if err != nil {
		t.Fatal(err)
	}
	if s := ended["job"].Status; s.GetState() != mesosv1.TaskState_TASK_KILLED || s.GetCheckStatus().GetCommand().GetExitCode() != 4 {
		t.Errorf("the task ended as %v, want TASK_KILLED with the last exit code", s)
	}
}

func TestACheckThatHangsWhenTheAgentIsKilledIsTakenDown(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Composition: hostPids})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f := checkFramework(ctx, t, c)
	dir := t.TempDir()
	launchOne(ctx, t, f, "job", "exec sleep 1000", func(task *mesosv1.TaskInfo) {
		task.HealthCheck = &mesosv1.HealthCheck{
			DelaySeconds: proto.Float64(0), IntervalSeconds: proto.Float64(0.1), GracePeriodSeconds: proto.Float64(0),
			Command: cluster.Shell(fmt.Sprintf(`mkdir %s/once || exit 0; echo $$ > %[1]s/new; mv %[1]s/new %[1]s/pid; exec sleep 1000`, dir)),
		}
	})
	var pid int
	eventually(t, "the check runs", 10*time.Second, func() bool {
		data, err := os.ReadFile(filepath.Join(dir, "pid"))
		if err != nil {
			return false
		}
		_, err = fmt.Sscan(string(data), &pid)
		return err == nil
	})
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if !alive(pid) {
		t.Fatal("the check ended with its agent, and shows nothing")
	}
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the check is gone", 20*time.Second, func() bool { return !alive(pid) })
	eventually(t, "the next check passes", 20*time.Second, func() bool { return slices.Equal(health(f, "job"), []string{"RUNNING true"}) })
}

func TestAnInvalidCheckIsATaskError(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	f := checkFramework(ctx, t, c)
	o, err := f.Offer(ctx, 0.1, 32)
	if err != nil {
		t.Fatal(err)
	}
	task := cluster.Task(o, "bad", 0.1, 32, cluster.Exec("true"))
	task.HealthCheck = &mesosv1.HealthCheck{Http: &mesosv1.HealthCheck_HTTPCheckInfo{Port: proto.Uint32(80), Path: proto.String("health")}}
	if err := f.Launch(ctx, o, task); err != nil {
		t.Fatal(err)
	}
	ended, err := f.State(ctx, []string{"bad"}, mesosv1.TaskState_TASK_ERROR, mesosv1.TaskState_TASK_FINISHED)
	if err != nil {
		t.Fatal(err)
	}
	if s := ended["bad"].Status; s.GetReason() != mesosv1.TaskStatus_REASON_TASK_INVALID || !strings.Contains(s.GetMessage(), "must start with '/'") {
		t.Errorf("the task ended as %v, want TASK_ERROR, REASON_TASK_INVALID and what is wrong", s)
	}
}
