package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

func TestRunShowsTheOutputAndEndsWithTheTasksCode(t *testing.T) {
	// The host's pids: a task that is the first of its own pid namespace cannot kill itself.
	c := start(t, cluster.Options{Dev: true, Composition: hostPids})
	for _, test := range []struct {
		name   string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"output", []string{"run", "--", "echo", "hello  there"}, 0, "hello  there\n", ""},
		{"environment", []string{"run", "--env", "WHO=world", "--shell", "--", "echo hi $WHO"}, 0, "hi world\n", ""},
		{"standard error", []string{"run", "--shell", "--", "echo bad >&2; exit 3"}, 3, "", "bad\n"},
		{"signal", []string{"run", "--shell", "--", "kill -9 $$"}, 137, "", "Killed"},
		{"no such program", []string{"run", "--", "/no/such/program"}, 125, "", "/no/such/program"},
		{"nothing to run", []string{"run"}, 2, "", "COMMAND"},
		{"bad flag", []string{"run", "--cpu", "1", "--", "true"}, 2, "", "unknown flag: --cpu"},
		{"nowhere to run", []string{"run", "--cpus", "1000", "--wait", "1s", "--", "true"}, 125, "", "cpus:1000"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := mosaic(t, c, test.code, test.args...)
			if r.Stdout != test.stdout {
				t.Errorf("stdout %q, want %q", r.Stdout, test.stdout)
			}
			if !strings.Contains(r.Stderr, test.stderr) {
				t.Errorf("stderr %q, want it to contain %q", r.Stderr, test.stderr)
			}
		})
	}
}

func TestRunSaysSoWhenThereIsNoCluster(t *testing.T) {
	c := prepare(t, cluster.Options{})
	r := mosaic(t, c, 125, "run", "--", "true")
	if !strings.Contains(r.Stderr, "mosaic dev") {
		t.Errorf("stderr %q, want a hint at 'mosaic dev'", r.Stderr)
	}
	r = mosaic(t, c, 1, "task", "ls")
	if !strings.Contains(r.Stderr, c.Master) {
		t.Errorf("stderr %q, want it to name %s", r.Stderr, c.Master)
	}
}

func TestInterruptingRunKillsTheTask(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := c.Command(ctx, "run", "--name", "long", "--shell", "--", "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	buf := make([]byte, 1024)
	for !strings.Contains(seen.String(), "ready") {
		n, err := out.Read(buf)
		if err != nil {
			t.Fatalf("read output: %v, so far %q", err, seen.String())
		}
		seen.Write(buf[:n])
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := out.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			break
		}
	}
	err = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 143 {
		t.Errorf("exit code %d (%v), want 143: the task was killed", code, err)
	}
	if !strings.Contains(seen.String(), "bye") {
		t.Errorf("output %q, want the task's last word after SIGTERM", seen.String())
	}
	if r := mosaic(t, c, 0, "task", "ls", "--all"); !strings.Contains(r.Stdout, "TASK_KILLED") {
		t.Errorf("task ls --all:\n%s\nwant TASK_KILLED", r.Stdout)
	}
}

func TestADetachedTaskStaysUntilItIsKilled(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	r := mosaic(t, c, 0, "run", "--detach", "--name", "stay", "--shell", "--", "echo started; sleep 1000")
	id := strings.TrimSpace(r.Stdout)
	if !strings.HasPrefix(id, "stay-") {
		t.Fatalf("run --detach printed %q, want the task's id", r.Stdout)
	}
	eventually(t, "the task's output", 5*time.Second, func() bool {
		return strings.Contains(mosaic(t, c, 0, "task", "logs", id).Stdout, "started")
	})
	if r := mosaic(t, c, 0, "task", "ls"); !strings.Contains(r.Stdout, "TASK_RUNNING") {
		t.Fatalf("task ls:\n%s\nwant TASK_RUNNING", r.Stdout)
	}
	if r := mosaic(t, c, 0, "task", "ls", "-o", "json"); !strings.Contains(r.Stdout, `"state": "TASK_RUNNING"`) {
		t.Errorf("task ls -o json:\n%s", r.Stdout)
	}
	if r := mosaic(t, c, 0, "framework", "ls"); !strings.Contains(r.Stdout, "mosaic run") {
		t.Errorf("framework ls:\n%s", r.Stdout)
	}
	mosaic(t, c, 0, "task", "kill", "stay")
	eventually(t, "the task's end", 10*time.Second, func() bool {
		return strings.Contains(mosaic(t, c, 0, "task", "ls", "--all").Stdout, "TASK_KILLED")
	})
	if r := mosaic(t, c, 1, "task", "logs", "no-such-task"); !strings.Contains(r.Stderr, "no-such-task") {
		t.Errorf("task logs of nothing: %q", r.Stderr)
	}
}

func TestATaskHasTheLimitsItAskedFor(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Dev: true, Composition: `
isolator "cgroups" {
  config { cpu_hard_limit = true }
}
isolator "rlimits" {}
isolator "namespaces" {}
isolator "linux" {}
`})
	r := mosaic(t, c, 0, "run", "--cpus", "0.5", "--mem", "64", "--shell", "--", "cat /proc/self/cgroup; sleep 0.2")
	files := map[string]string{"cpu": "cpu.cfs_quota_us", "memory": "memory.limit_in_bytes"}
	if !strings.Contains(r.Stdout, c.CgroupRoot()) {
		t.Fatalf("/proc/self/cgroup:\n%s\nwant it below %s", r.Stdout, c.CgroupRoot())
	}
	r = mosaic(t, c, 0, "run", "--cpus", "0.5", "--mem", "64", "--shell", "--", `
for c in cpu:cpu.cfs_quota_us cpu:cpu.cfs_period_us memory:memory.limit_in_bytes; do
  dir=$(awk -F: -v c=${c%%:*} '$2 ~ "(^|,)" c "(,|$)" {print $3}' /proc/self/cgroup)
  echo ${c#*:}=$(cat /sys/fs/cgroup/${c%%:*}$dir/${c#*:})
done`)
	for _, want := range []string{"cpu.cfs_quota_us=50000", "cpu.cfs_period_us=100000", "memory.limit_in_bytes=67108864"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("cgroup files %v:\n%s\nwant %s", files, r.Stdout, want)
		}
	}

	// A busy loop that takes its time of the processor, however busy the machine is: it may not have it sooner.
	r = mosaic(t, c, 0, "run", "--cpus", "0.5", "--mem", "64", "--shell", "--",
		`dir=$(awk -F: '$2 ~ "(^|,)cpuacct(,|$)" {print $3}' /proc/self/cgroup)
f=/sys/fs/cgroup/cpuacct$dir/cpuacct.usage; s=$(date +%s%N)
while [ $(cat $f) -lt 900000000 ]; do i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; done
echo used $(cat $f) wall $(( $(date +%s%N) - s ))`)
	f := strings.Fields(r.Stdout)
	if len(f) != 4 {
		t.Fatalf("busy loop printed %q", r.Stdout)
	}
	used, _ := strconv.ParseFloat(f[1], 64)
	wall, _ := strconv.ParseFloat(f[3], 64)
	if share := used / wall; share > 0.6 || share == 0 {
		t.Errorf("busy loop under 0.5 cpus used %.2f of a core, want half of one at most", share)
	}
}

func TestATaskOverItsMemoryIsKilledAndToldWhy(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Dev: true})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "hog", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 0.5, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Launch(ctx, o, cluster.Task(o, "hog", 0.5, 64, cluster.Exec("tail", "/dev/zero"))); err != nil {
		t.Fatal(err)
	}
	got, err := f.State(ctx, []string{"hog"}, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_FINISHED)
	if err != nil {
		t.Fatal(err)
	}
	s := got["hog"].Status
	if s.GetState() != mesosv1.TaskState_TASK_FAILED || s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_MEMORY {
		t.Errorf("ended as %s, %s: %s; want TASK_FAILED, REASON_CONTAINER_LIMITATION_MEMORY", s.GetState(), s.GetReason(), s.GetMessage())
	}
	if len(s.GetLimitation().GetResources()) == 0 {
		t.Errorf("the update names no limited resource: %v", s)
	}
}

func TestATaskRunsInItsOwnRootFilesystem(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Dev: true})
	root := filepath.Join(c.Dir, "rootfs")
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(root, "bin", "inside"), "./inside")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the program inside: %v\n%s", err, out)
	}
	r := mosaic(t, c, 0, "run", "--image", root, "--mem", "64", "--", "/bin/inside", "/proc/self/status")
	for _, want := range []string{"pid 1, uid 0", "working directory: /mnt/mesos/sandbox"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("inside the image:\n%s\nwant %q", r.Stdout, want)
		}
	}
	if strings.Contains(r.Stdout, "home") {
		t.Errorf("the host's root shows inside the image:\n%s", r.Stdout)
	}
	if r := mosaic(t, c, 125, "run", "--image", "/no/such/image", "--", "/bin/inside"); !strings.Contains(r.Stderr, "/no/such/image") {
		t.Errorf("stderr %q, want it to name the image that is not there", r.Stderr)
	}
}

// alive says whether a process exists and is no zombie.
func alive(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(data), ") ")
	return ok && rest != "" && rest[0] != 'Z' && syscall.Kill(pid, 0) == nil
}
