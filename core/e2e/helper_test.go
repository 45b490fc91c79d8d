package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// daemonCluster starts a cluster whose containers have a helper of the isolator in daemonmodule. It returns the folder
// in which that keeps theirs.
func daemonCluster(t *testing.T, block, settings string) (*cluster.Cluster, string) {
	t.Helper()
	needRoot(t)
	c := prepare(t, cluster.Options{})
	dir := t.TempDir()
	c.Composition = fmt.Sprintf("isolator \"cgroups\" {}\nisolator \"linux\" {}\nisolator \"daemon\" {\n  command = %q\n%s  config {\n    dir = %q\n%s  }\n}\n",
		helper(t, c, "daemonmodule"), block, dir, settings)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatalf("start a cluster: %v", err)
	}
	return c, dir
}

// nothingOfHelpers checks that nothing is left of helpers and of what their module keeps in dir.
func nothingOfHelpers(t *testing.T, c *cluster.Cluster, dir string) {
	t.Helper()
	left := func() (list []string) {
		for _, pattern := range []string{
			filepath.Join(c.RunDir(), "h", "*"), filepath.Join(dir, "*"), "/sys/fs/cgroup/*/" + c.CgroupRoot() + "/*.h*", "/sys/fs/cgroup/" + c.CgroupRoot() + "/*.h*",
		} {
			found, err := filepath.Glob(pattern)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, found...)
		}
		return list
	}
	eventually(t, "nothing is left of helpers", 20*time.Second, func() bool { return len(left()) == 0 })
}

func TestAHelperOfAnIsolatorServesItsContainerThroughTheDeathOfTheAgent(t *testing.T) {
	c, dir := daemonCluster(t, "", "")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	image := busyboxRoot(t)
	f, err := cluster.Subscribe(ctx, c.Master, "helped", "*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Disconnect)
	launchOne(ctx, t, f, "task", "exec sleep 1000", func(task *mesosv1.TaskInfo) { imageOf(task, image) })
	served := func() int {
		t.Helper()
		pid, err := strconv.Atoi(strings.TrimSpace(mosaic(t, c, 0, "task", "exec", "task", "--", "/bin/cat", "/served/pid").Stdout))
		if err != nil {
			t.Fatalf("/served/pid: %v", err)
		}
		return pid
	}
	first := served()
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", first))
	if err != nil || !strings.Contains(string(groups), c.CgroupRoot()+"/") || !strings.Contains(string(groups), ".h0\n") {
		t.Errorf("the helper's cgroups: %s, %v; want one of its own below the agent's", groups, err)
	}

	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if !alive(first) {
		t.Error("the helper died with the agent")
	}
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitAgentRecovered(ctx); err != nil {
		t.Fatal(err)
	}
	if again := served(); again != first {
		t.Errorf("after the agent's death process %d serves, want %d as before", again, first)
	}

	// One that dies while nobody looks is started again by the next agent, as by the one that sees it.
	for _, look := range []bool{true, false} {
		old := served()
		if !look {
			if err := c.KillAgent(); err != nil {
				t.Fatal(err)
			}
		}
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if !look {
			if err := c.StartAgent(); err != nil {
				t.Fatal(err)
			}
			if err := c.WaitAgentRecovered(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if now := served(); now == old {
			t.Errorf("after its helper's death the container is served by %d still", now)
		}
	}
	for _, u := range f.Updates("task") {
		if s := u.Status.GetState(); s != mesosv1.TaskState_TASK_STARTING && s != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("the task had update %s: %s", s, u.Status.GetMessage())
		}
	}
	last := served()
	mosaic(t, c, 0, "task", "kill", "task")
	nothingOfHelpers(t, c, dir)
	if alive(last) {
		t.Errorf("helper %d outlives its container", last)
	}
}

func TestAHelperThatIsNotToBeStartedAgainTakesItsTaskAlong(t *testing.T) {
	c, dir := daemonCluster(t, "", "    once = true\n")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	image := busyboxRoot(t)
	f, err := cluster.Subscribe(ctx, c.Master, "helped", "*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Disconnect)
	launchOne(ctx, t, f, "task", "exec sleep 1000", func(task *mesosv1.TaskInfo) { imageOf(task, image) })
	pid, err := strconv.Atoi(strings.TrimSpace(mosaic(t, c, 0, "task", "exec", "task", "--", "/bin/cat", "/served/pid").Stdout))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ended, err := f.State(ctx, []string{"task"}, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_KILLED)
	if err != nil {
		t.Fatal(err)
	}
	if s := ended["task"].Status; s.GetState() != mesosv1.TaskState_TASK_FAILED || !strings.Contains(s.GetMessage(), "isolator(daemon): helper serve: it ended") {
		t.Errorf("the task ended as %s: %s; want TASK_FAILED for its helper", s.GetState(), s.GetMessage())
	}
	nothingOfHelpers(t, c, dir)
}

func TestAHelperNeedsThePowerForIt(t *testing.T) {
	c, dir := daemonCluster(t, "  allow   = [\"mounts\"]\n", "")
	r := mosaic(t, c, 125, "run", "-v", "--image", busyboxRoot(t), "--mem", "64", "--", "/bin/cat", "/served/pid")
	if !strings.Contains(r.Stderr, "isolator(daemon)") || !strings.Contains(r.Stderr, "helpers") {
		t.Errorf("a helper without the power: %q, want the launch refused by its name", r.Stderr)
	}
	nothingOfHelpers(t, c, dir)
}
