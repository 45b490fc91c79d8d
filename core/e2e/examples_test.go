package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// example builds one of sdk/examples into the cluster's folder.
func example(t *testing.T, c *cluster.Cluster, name string) string {
	t.Helper()
	path := filepath.Join(c.Dir, name)
	build := exec.Command("go", "build", "-o", path, "../../sdk/examples/"+name)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return path
}

func TestTheExampleBatchSchedulerTriesAgainAndSurvivesItsDeath(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	program := example(t, c, "batch-scheduler")
	gate, tried := filepath.Join(c.Dir, "gate"), filepath.Join(c.Dir, "tried")
	jobs := filepath.Join(c.Dir, "jobs.txt")
	text := fmt.Sprintf("# three jobs\necho fine\ntest -e %s || { touch %s; exit 1; }\nuntil [ -e %s ]; do sleep 0.1; done\n", tried, tried, gate)
	if err := os.WriteFile(jobs, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(c.Dir, 0o777); err != nil { // whatever user the jobs run as
		t.Fatal(err)
	}
	args := []string{"--master", c.Master, "--attempts", "3", "--backoff", "100ms", "--state", filepath.Join(c.Dir, "state.json"), jobs}
	first := exec.CommandContext(ctx, program, args...)
	out := &strings.Builder{}
	first.Stdout, first.Stderr = out, out
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	running := func() string {
		return mosaic(t, c, 0, "task", "ls", "-o", "json").Stdout
	}
	eventually(t, "only the job that waits to be left", 20*time.Second, func() bool {
		_, err := os.Stat(tried)
		return err == nil && strings.Count(running(), `"TASK_RUNNING"`) == 1
	})
	if err := first.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // killed
	if strings.Count(running(), `"TASK_RUNNING"`) != 1 {
		t.Errorf("the job did not survive its scheduler:\n%s", running())
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	second := exec.CommandContext(ctx, program, args...)
	end, err := second.CombinedOutput()
	if err != nil {
		t.Fatalf("second run: %v\n%s\nfirst run:\n%s", err, end, out)
	}
}

func TestTheExampleExecutorRunsTasksAndAnswers(t *testing.T) {
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	program := example(t, c, "custom-executor")
	f, err := cluster.Subscribe(ctx, c.Master, "custom", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 1, 256)
	if err != nil {
		t.Fatal(err)
	}
	e := httpExecutor(o, "pool", program)
	e.Command = &mesosv1.CommandInfo{
		Value: proto.String("./custom-executor"),
		Uris:  []*mesosv1.CommandInfo_URI{{Value: proto.String("file://" + program), Executable: proto.Bool(true)}},
	}
	if err := f.Launch(ctx, o, executorTask(o, e, "stays", "sleep 1000"), executorTask(o, e, "ends", "exit 0"), executorTask(o, e, "fails", "exit 3")); err != nil {
		t.Fatal(err)
	}
	for task, state := range map[string]mesosv1.TaskState{
		"stays": mesosv1.TaskState_TASK_RUNNING, "ends": mesosv1.TaskState_TASK_FINISHED, "fails": mesosv1.TaskState_TASK_FAILED,
	} {
		if _, err := f.State(ctx, []string{task}, state); err != nil {
			t.Fatalf("%v\n%s", err, c.Logs())
		}
	}
	eventually(t, "the executor's answer", 10*time.Second, func() bool {
		err := f.Client().Call(ctx, &schedulerv1.Call{Type: schedulerv1.Call_MESSAGE.Enum(), Message: &schedulerv1.Call_Message{
			AgentId: o.GetAgentId(), ExecutorId: e.GetExecutorId(), Data: []byte("status"),
		}})
		return err == nil && strings.Contains(strings.Join(f.Messages(), "\n"), `{"running":["stays"],"ended":2}`)
	})
	err = f.Client().Call(ctx, &schedulerv1.Call{Type: schedulerv1.Call_KILL.Enum(), Kill: &schedulerv1.Call_Kill{TaskId: &mesosv1.TaskID{Value: proto.String("stays")}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(ctx, []string{"stays"}, mesosv1.TaskState_TASK_KILLED); err != nil {
		t.Fatal(err)
	}
}
