package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
)

func (w *world) ask(typ agentv1.Call_Type) *agentv1.Response {
	w.t.Helper()
	r, err := w.agent.OperatorCall(context.Background(), "", &agentv1.Call{Type: typ.Enum()})
	if err != nil {
		w.t.Fatalf("%v: %v", typ, err)
	}
	return r
}

func (w *world) legacy(endpoint string, query url.Values) any {
	w.t.Helper()
	b, err := w.agent.Legacy(context.Background(), "", endpoint, query)
	if err != nil {
		w.t.Fatalf("%s: %v", endpoint, err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		w.t.Fatalf("%s is not JSON: %v\n%s", endpoint, err, b)
	}
	return v
}

// at follows a path such as "frameworks.0.id" through JSON.
func at(v any, path string) any {
	for part := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[part]
		case []any:
			var i int
			if _, err := fmt.Sscan(part, &i); err != nil || i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

// populate leaves one running, one terminated and one completed command task, and a custom executor with a task.
func (w *world) populate() {
	w.start()
	task := command("runs", "sleep 1000 and then some more")
	task.Resources = resources.New(task.Resources...).Allocate("eng").Resources()
	w.launch(checkpointed("F"), task)
	w.launch(checkpointed("F"), command("over", "true"))
	w.launch(checkpointed("F"), command("unacked", "exit 3"))
	w.launch(checkpointed("F"), forExecutor("c", "e"))
	for _, id := range []string{"runs", "over", "unacked"} {
		w.master.ack(w.t, w.master.await(w.t, id, mesosv1.TaskState_TASK_STARTING))
		w.master.ack(w.t, w.master.await(w.t, id, mesosv1.TaskState_TASK_RUNNING))
	}
	w.master.ack(w.t, w.master.await(w.t, "over", mesosv1.TaskState_TASK_FINISHED))
	w.master.await(w.t, "unacked", mesosv1.TaskState_TASK_FAILED)
	synctest.Wait()
	x := w.subscribe("e", nil)
	x.await(executorv1.Event_LAUNCH, 1)
	w.launch(checkpointed("F"), command("late", "sleep"))
	w.master.await(w.t, "late", mesosv1.TaskState_TASK_STARTING)
	synctest.Wait()
}

func TestViewsShowWhatIsThere(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.populate()
		names := func(ts []*mesosv1.Task) []string {
			var s []string
			for _, x := range ts {
				s = append(s, x.GetName())
			}
			return s
		}
		tasks := w.ask(agentv1.Call_GET_TASKS).GetGetTasks()
		equal(t, "launched tasks", names(tasks.GetLaunchedTasks()), []string{"runs", "c", "late"})
		equal(t, "terminated tasks", names(tasks.GetTerminatedTasks()), []string{"unacked"})
		equal(t, "completed tasks", names(tasks.GetCompletedTasks()), []string{"over"})
		if s := tasks.GetCompletedTasks()[0].GetStatuses(); len(s) != 3 {
			t.Errorf("statuses of the completed task = %v, want all three", s)
		}
		state := w.ask(agentv1.Call_GET_STATE).GetGetState()
		if n := len(state.GetGetFrameworks().GetFrameworks()); n != 1 {
			t.Errorf("%d frameworks, want 1", n)
		}
		var infos []string
		for _, x := range state.GetGetExecutors().GetExecutors() {
			infos = append(infos, x.GetExecutorInfo().GetExecutorId().GetValue()+": "+x.GetExecutorInfo().GetName())
		}
		equal(t, "executors", infos, []string{"e: ", "runs: Command Executor (Task: runs) (Command: sh -c 'sleep 1000 a...')",
			"late: Command Executor (Task: late) (Command: sh -c 'sleep')"})
		if n := len(state.GetGetExecutors().GetCompletedExecutors()); n != 2 {
			t.Errorf("%d completed executors, want 2", n)
		}
		containers := w.ask(agentv1.Call_GET_CONTAINERS).GetGetContainers().GetContainers()
		if len(containers) != 3 {
			t.Fatalf("%d containers, want 3", len(containers))
		}
		for _, c := range containers {
			if c.GetResourceStatistics().GetMemRssBytes() != 4096 || c.GetContainerStatus().GetExecutorPid() == 0 || c.GetExecutorId() == nil {
				t.Errorf("container = %v, want executor, statistics and status", c)
			}
		}
		if a := w.ask(agentv1.Call_GET_AGENT).GetGetAgent().GetAgentInfo(); a.GetId().GetValue() != "M-S0" {
			t.Errorf("GET_AGENT = %v", a)
		}
		if !w.ask(agentv1.Call_GET_HEALTH).GetGetHealth().GetHealthy() {
			t.Error("GET_HEALTH says no")
		}
		flags := make(map[string]string)
		for _, f := range w.ask(agentv1.Call_GET_FLAGS).GetGetFlags().GetFlags() {
			flags[f.GetName()] = f.GetValue()
		}
		if flags["work_dir"] != w.config.WorkDir || flags["executor_registration_timeout"] != "1mins" {
			t.Errorf("flags = %v", flags)
		}
		_, err := w.agent.OperatorCall(t.Context(), "", &agentv1.Call{Type: agentv1.Call_PRUNE_IMAGES.Enum()})
		if httpStatus(err) != 501 {
			t.Errorf("PRUNE_IMAGES: %v, want 501", err)
		}
	})
}

func TestMetricsCountUnderTheNamesOfMesos(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.populate()
		m := w.agent.metrics()
		for name, want := range map[string]float64{
			"slave/registered": 1, "slave/tasks_running": 2, "slave/tasks_staging": 1, "slave/tasks_finished": 1, "slave/tasks_failed": 1,
			"slave/cpus_total": 4, "slave/cpus_used": 3.5, "slave/cpus_percent": 3.5 / 4, "slave/frameworks_active": 1,
			"slave/executors_running": 3,
		} {
			if m[name] != want {
				t.Errorf("%s = %v, want %v", name, m[name], want)
			}
		}
		if got := w.legacy("/metrics/snapshot", url.Values{"timeout": {"100ms"}}); at(got, "slave/tasks_running") != 2.0 {
			t.Errorf("/metrics/snapshot: tasks_running = %v", at(got, "slave/tasks_running"))
		}
		if _, err := w.agent.Legacy(t.Context(), "", "/metrics/snapshot", url.Values{"timeout": {"soon"}}); httpStatus(err) != 400 {
			t.Errorf("timeout=soon: %v, want 400", err)
		}
	})
}

func TestLegacyStateIsWhatToolsRead(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.config.Attributes = "rack:a1;slots:4;ports:[1-3]"
		w.populate()
		state := w.legacy("/state", nil)
		for path, want := range map[string]any{
			"id": "M-S0", "pid": "slave(1)@127.0.0.1:5051", "hostname": "here", "resources.cpus": 4.0, "resources.gpus": 0.0,
			"resources.ports": "[31000-32000]", "attributes.rack": "a1", "attributes.slots": 4.0, "attributes.ports": "[1-3]",
			"unreserved_resources_allocated.cpus": 3.5, "flags.hostname": "here",
			"frameworks.0.id": "F", "frameworks.0.checkpoint": true, "frameworks.0.role": "*",
			"frameworks.0.executors.0.id": "e", "frameworks.0.executors.0.tasks.0.id": "c",
			"frameworks.0.executors.0.tasks.0.executor_id": "e",
			"frameworks.0.executors.1.source":              "runs", "frameworks.0.executors.1.role": "eng",
			"frameworks.0.executors.1.tasks.0.state":            "TASK_RUNNING",
			"frameworks.0.executors.1.tasks.0.executor_id":      "",
			"frameworks.0.executors.1.tasks.0.statuses.1.state": "TASK_RUNNING",
			"frameworks.0.completed_executors.0.id":             "over",
		} {
			if got := at(state, path); got != want {
				t.Errorf("/state: %s = %v, want %v", path, got, want)
			}
		}
		dir, _ := at(state, "frameworks.0.executors.1.directory").(string)
		if id, _ := at(state, "frameworks.0.executors.1.container").(string); id == "" || !strings.HasSuffix(dir, "/runs/"+id) {
			t.Errorf("container %q, directory %q", id, dir)
		}
		all := w.legacy("/containers", nil).([]any)
		one := w.legacy("/containers", url.Values{"framework_id": {"F"}, "executor_id": {"e"}}).([]any)
		if len(all) != 3 || len(one) != 1 || at(one, "0.executor_id") != "e" || at(one, "0.statistics.mem_rss_bytes") != 4096.0 ||
			at(one, "0.status.container_id.value") != at(one, "0.container_id") {
			t.Errorf("/containers: %d, with a query %v", len(all), one)
		}
		if _, err := w.agent.Legacy(t.Context(), "", "/containers", url.Values{"executor_id": {"e"}}); httpStatus(err) != 400 {
			t.Errorf("/containers?executor_id=e: %v, want 400", err)
		}
		if got := w.legacy("/monitor/statistics", nil).([]any); len(got) != 3 || at(got, "0.statistics.timestamp") != 1.0 {
			t.Errorf("/monitor/statistics = %v", got)
		}
		if got := w.legacy("/flags", nil); at(got, "flags.port") != "5051" {
			t.Errorf("/flags = %v", got)
		}
	})
}

func TestOperatorWaitsForAndKillsContainers(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.populate()
		id := &mesosv1.ContainerID{Value: new(w.container("runs"))}
		exit := make(chan *agentv1.Response_WaitContainer)
		go func() {
			r, err := w.agent.OperatorCall(context.Background(), "", &agentv1.Call{
				Type: agentv1.Call_WAIT_CONTAINER.Enum(), WaitContainer: &agentv1.Call_WaitContainer{ContainerId: id}})
			if err != nil {
				t.Error(err)
			}
			exit <- r.GetWaitContainer()
		}()
		synctest.Wait()
		kill := &agentv1.Call{Type: agentv1.Call_KILL_CONTAINER.Enum(), KillContainer: &agentv1.Call_KillContainer{ContainerId: id}}
		if _, err := w.agent.OperatorCall(t.Context(), "", kill); err != nil {
			t.Fatal(err)
		}
		if r := <-exit; r.GetExitStatus() != 9 {
			t.Errorf("WAIT_CONTAINER = %v, want wait status 9", r)
		}
		w.master.await(t, "runs", mesosv1.TaskState_TASK_FAILED)
		if _, err := w.agent.OperatorCall(t.Context(), "", kill); httpStatus(err) != 404 {
			t.Errorf("KILL_CONTAINER of what ended: %v, want 404", err)
		}
	})
}

func TestUsageIsMeasuredOnceForManyReaders(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.populate()
		before := w.host.measured
		for range 20 {
			w.ask(agentv1.Call_GET_CONTAINERS)
		}
		if n := w.host.measured - before; n != 1 {
			t.Errorf("20 reads at once measured %d times", n)
		}
		time.Sleep(usageFresh)
		w.ask(agentv1.Call_GET_CONTAINERS)
		if n := w.host.measured - before; n != 2 {
			t.Errorf("a later read measured %d times more, want once", n-1)
		}
	})
}

func TestLoggingLevelGoesBackByItself(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.deps.LogLevel = new(slog.LevelVar)
		w.start()
		_, err := w.agent.OperatorCall(t.Context(), "", &agentv1.Call{Type: agentv1.Call_SET_LOGGING_LEVEL.Enum(),
			SetLoggingLevel: &agentv1.Call_SetLoggingLevel{Level: new(uint32(2)), Duration: &mesosv1.DurationInfo{Nanoseconds: new(int64(time.Minute))}}})
		if err != nil {
			t.Fatal(err)
		}
		if w.deps.LogLevel.Level() != slog.LevelDebug || w.ask(agentv1.Call_GET_LOGGING_LEVEL).GetGetLoggingLevel().GetLevel() == 0 {
			t.Error("the level did not change")
		}
		time.Sleep(time.Minute + time.Second)
		if w.deps.LogLevel.Level() != slog.LevelInfo {
			t.Error("the level did not go back")
		}
	})
}

func TestSandboxesAreFoundByTheirPaths(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		for range 2 {
			w.launch(checkpointed("F"), command("t", "true"))
			w.master.await(t, "t", mesosv1.TaskState_TASK_FINISHED)
			synctest.Wait()
		}
		runs := filepath.Join(w.config.WorkDir, "slaves/M-S0/frameworks/F/executors/t/runs")
		last := w.master.updates("t")[len(w.master.updates("t"))-1]
		id := last.GetStatus().GetContainerStatus().GetContainerId().GetValue()
		want := filepath.Join(runs, id)
		if err := os.MkdirAll(want, 0o750); err != nil { // the containerizer's work
			t.Fatal(err)
		}
		for _, virtual := range []string{
			want, want + "/", filepath.Join(runs, "latest"), "/frameworks/F/executors/t/runs/latest", "/frameworks/F/executors/t/runs/" + id,
		} {
			if got, err := w.agent.ResolveFile(virtual); err != nil || got != want {
				t.Errorf("ResolveFile(%q) = %q, %v, want %q", virtual, got, err, want)
			}
		}
		if err := os.Symlink("/etc", filepath.Join(runs, "link")); err != nil {
			t.Fatal(err)
		}
		for _, virtual := range []string{
			"", "/", "/etc/passwd", w.config.WorkDir, runs, runs + "/../../../../../../..", filepath.Join(runs, "link"), want + "/stdout",
			"/frameworks/F/executors/t/runs/none", "/frameworks/../../executors/t/runs/latest", w.config.WorkDir + "/slaves/../../x",
		} {
			if got, err := w.agent.ResolveFile(virtual); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("ResolveFile(%q) = %q, %v, want ErrNotExist", virtual, got, err)
			}
		}
	})
}
