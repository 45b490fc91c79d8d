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

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// asNobody prepares a cluster that runs as the user nobody, who has no home.
func asNobody(t *testing.T, o cluster.Options) *cluster.Cluster {
	t.Helper()
	const nobody = 65534
	o.User = &syscall.Credential{Uid: nobody, Gid: nobody}
	c := prepare(t, o)
	// The folder for sockets goes with the cluster's.
	c.Env = []string{"HOME=/nonexistent", "USER=nobody", "XDG_CACHE_HOME=", "XDG_RUNTIME_DIR=" + c.Dir}
	return c
}

// startAsNobody starts what asNobody prepares.
func startAsNobody(t *testing.T, o cluster.Options) *cluster.Cluster {
	t.Helper()
	c := asNobody(t, o)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatalf("start a cluster: %v", err)
	}
	return c
}

func TestAnOrdinaryUserHasACluster(t *testing.T) {
	needRoot(t)
	c := startAsNobody(t, cluster.Options{Dev: true})
	eventually(t, "mosaic dev says what a user who is not root does not get", 10*time.Second, func() bool {
		return strings.Contains(c.Logs(), "Not root")
	})
	r := mosaic(t, c, 0, "run", "--shell", "--", "id -u; pwd; echo $((6*7)) >&2")
	if lines := strings.Fields(r.Stdout); len(lines) != 2 || lines[0] != "65534" || !strings.HasPrefix(lines[1], c.Dir) || r.Stderr != "42\n" {
		t.Errorf("stdout %q, stderr %q, want the user nobody in the cluster's folder", r.Stdout, r.Stderr)
	}
	mosaic(t, c, 7, "run", "--shell", "--", "exit 7")
	id := strings.TrimSpace(mosaic(t, c, 0, "run", "--detach", "--name", "stay", "--", "sleep", "1000").Stdout)
	if r := mosaic(t, c, 0, "task", "ls"); !strings.Contains(r.Stdout, id) || !strings.Contains(r.Stdout, "TASK_RUNNING") {
		t.Errorf("task ls:\n%s\nwant %s", r.Stdout, id)
	}
	mosaic(t, c, 0, "task", "kill", id)
	eventually(t, "the task's end", 10*time.Second, func() bool {
		return strings.Contains(mosaic(t, c, 0, "task", "ls", "--all").Stdout, "TASK_KILLED")
	})
}

func TestATaskOfAnOrdinaryUserHasNoImageOrSaysWhy(t *testing.T) {
	needRoot(t)
	c := startAsNobody(t, cluster.Options{Dev: true})
	root := filepath.Join(c.Dir, "rootfs")
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(root, "bin", "inside"), "./inside")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the program inside: %v\n%s", err, out)
	}
	r := mosaic(t, c, 125, "run", "--image", root, "--", "/bin/inside")
	if !strings.Contains(r.Stderr, "root") {
		t.Errorf("run --image said %q, want what the machine does not allow", r.Stderr)
	}
	// That task is the only one that suffers.
	mosaic(t, c, 0, "run", "--", "true")
}

func TestALimitThatAnOrdinaryUserCannotSetIsNamed(t *testing.T) {
	needRoot(t)
	c := asNobody(t, cluster.Options{Dev: true, Composition: "isolator \"cgroups\" {\n  config { cpu_hard_limit = true }\n}\n"})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.Start(ctx); err != nil { // refused at start
		if !strings.Contains(err.Error(), "cgroup") {
			t.Errorf("start: %v, want the isolator named", err)
		}
		return
	}
	r := mosaic(t, c, 125, "run", "--", "true") // or at launch, but never run without
	if !strings.Contains(r.Stderr, "cgroup") {
		t.Errorf("run said %q, want the isolator named", r.Stderr)
	}
}

func TestAnOrdinaryUsersTasksSurviveTheAgent(t *testing.T) {
	needRoot(t)
	c := startAsNobody(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f, err := cluster.SubscribeAs(ctx, c.Master, &mesosv1.FrameworkInfo{Name: proto.String("survivor"), User: proto.String("nobody"), Checkpoint: proto.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 0.1, 32)
	if err != nil {
		t.Fatal(err)
	}
	file, gate := filepath.Join(c.Dir, "pid"), filepath.Join(c.Dir, "gate")
	line := fmt.Sprintf("echo $$ >%s.tmp; mv %[1]s.tmp %[1]s; while ! [ -e %s ]; do sleep 0.05; done; exit 3", file, gate)
	if err := f.Launch(ctx, o, cluster.Task(o, "stay", 0.1, 32, cluster.Shell(line))); err != nil {
		t.Fatal(err)
	}
	var pid int
	eventually(t, "the task's pid", 10*time.Second, func() bool {
		data, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		_, err = fmt.Sscan(string(data), &pid)
		return err == nil
	})
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitAgentRecovered(ctx); err != nil {
		t.Fatal(err)
	}
	if !alive(pid) {
		t.Error("the task ended with its agent")
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := f.State(ctx, []string{"stay"}, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_FINISHED)
	if err != nil {
		t.Fatal(err)
	}
	if s := got["stay"].Status; s.GetState() != mesosv1.TaskState_TASK_FAILED || s.GetMessage() != "Command exited with status 3" {
		t.Errorf("ended as %s %q, want TASK_FAILED with its exit code", s.GetState(), s.GetMessage())
	}
}
