package containerizer

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// helped is an isolator whose containers have one helper, which is a script of a shell. What it writes to $TO beginning
// with pid is read by copierPids.
func helped(t *testing.T, file, script string, restart bool) *fakeIsolator {
	return &fakeIsolator{m: newMachine(t), name: "helped", onPrepare: func(context.Context, *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
		return &isolatorv1.PrepareResponse{Helpers: []*containerv1.Helper{{
			Name: "daemon", Argv: []string{"/bin/sh", "-c", `echo "pid $$" >>"$TO"; ` + script},
			Environment: map[string]string{"TO": file}, Restart: restart,
		}}}, nil
	}}
}

func TestRealHelperOfAnIsolatorServesItsContainerAllItsLife(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	pipe := filepath.Join(filepath.Dir(file), "pipe")
	if err := unix.Mkfifo(pipe, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(pipe, 0o666); err != nil {
		t.Fatal(err)
	}
	// It serves its own pid, and takes its leave when it is asked to.
	i := helped(t, file, `trap 'echo leave >>"$TO"; exit' TERM; while :; do echo $$ >`+pipe+`; sleep 0.1; done`, true)
	var atCleanup []int
	i.onCleanup = func(*isolatorv1.CleanupRequest) error {
		for _, pid := range copierPids(t, file) {
			if syscall.Kill(pid, 0) == nil {
				atCleanup = append(atCleanup, pid)
			}
		}
		return nil
	}
	r := newRig(t, i)
	c := r.start(t)
	script := `for n in 1 2; do until [ -e go$n ]; do sleep 0.02; done; cat ` + pipe + `; done`
	ct := r.container("c1", script)
	ct.User = "root" // who may go where the pipe is
	if _, err := c.Launch(launchertest.Context(t), ct); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	release := func(name string) {
		if err := os.WriteFile(filepath.Join(ct.Sandbox, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the helper", func() bool { return len(copierPids(t, file)) == 1 })
	first := copierPids(t, file)[0]
	if cgroups, err := os.ReadFile("/proc/" + strconv.Itoa(first) + "/cgroup"); err != nil || !strings.Contains(string(cgroups), r.env.Root+"/c1.h0") {
		t.Errorf("the helper's cgroup: got %s, %v, want one of its own", cgroups, err)
	}
	release("go1")
	waitFor(t, "an answer", func() bool { return r.output(t, "c1") != "" })

	stopAgent(t, c)
	c = r.start(t)
	defer stopAgent(t, c)
	if _, err := c.Recover(t.Context(), []string{"c1"}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatalf("the helper after the agent's restart: %v", err)
	}
	waitFor(t, "another helper", func() bool { return len(copierPids(t, file)) == 2 })
	release("go2")
	if end := r.finish(t, c, "c1"); end.WaitStatus == nil || end.GetWaitStatus() != 0 {
		t.Errorf("end: got %v, want exit 0", end)
	}
	pids := copierPids(t, file)
	if want := strconv.Itoa(first) + "\n" + strconv.Itoa(pids[1]); r.output(t, "c1") != want {
		t.Errorf("the container read %q, want %q: what was served before and after the restart", r.output(t, "c1"), want)
	}
	if b, err := os.ReadFile(file); err != nil || !strings.HasSuffix(string(b), "leave\n") {
		t.Errorf("the helper's log is %q, %v; want that it was asked to end", b, err)
	}
	if len(atCleanup) > 0 {
		t.Errorf("helpers %v lived when their isolator was asked to clean up", atCleanup)
	}
	r.nothingOfHelpers(t)
}

func TestRealHelperOfAnIsolatorThatEndsTakesItsContainerAlong(t *testing.T) {
	for name, script := range map[string]string{
		"status 0x700": "until [ -e $TO.go ]; do sleep 0.02; done; exit 7",
		"status 0x0":   "until [ -e $TO.go ]; do sleep 0.02; done", // nothing that it was to read has ended
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "log")
			r := newRig(t, helped(t, file, script, false))
			c := r.start(t)
			defer stopAgent(t, c)
			if _, err := c.Launch(launchertest.Context(t), r.container("c1", "sleep 1000")); err != nil {
				t.Fatalf("Launch: %v", err)
			}
			if err := os.WriteFile(file+".go", nil, 0o644); err != nil {
				t.Fatal(err)
			}
			end := r.finish(t, c, "c1")
			if end.GetState() != "TASK_FAILED" || !strings.Contains(end.GetMessage(), "isolator(helped): helper daemon: it ended with wait "+name) {
				t.Errorf("end: got %v, want it to name the helper and its end", end)
			}
			r.nothingOfHelpers(t)
		})
	}
}

func TestRealLaunchThatFailsEndsItsHelpers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	i := helped(t, file, `trap "" TERM; while :; do sleep 0.1; done`, true) // it does not even listen
	r := newRig(t, i)
	c := r.start(t)
	defer stopAgent(t, c)
	ct := r.container("c1", "/no/such/program")
	ct.Command.Shell = new(bool)
	if _, err := c.Launch(launchertest.Context(t), ct); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Fatalf("Launch: got %v, want it to fail for its command", err)
	}
	waitFor(t, "it to be taken back", func() bool { _, err := c.find("c1"); return err != nil })
	for _, pid := range copierPids(t, file) {
		if syscall.Kill(pid, 0) == nil {
			t.Errorf("helper %d lives", pid)
		}
	}
	r.nothingOfHelpers(t)

	i.onPrepare = func(context.Context, *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
		return &isolatorv1.PrepareResponse{Helpers: []*containerv1.Helper{{Name: "daemon", Argv: []string{"/no/such"}}}}, nil
	}
	if _, err := c.Launch(launchertest.Context(t), r.container("c2", "true")); err == nil || !strings.Contains(err.Error(), "isolator(helped): helper daemon: ") {
		t.Errorf("Launch with a helper that is not there: got %v, want it named", err)
	}
	waitFor(t, "it to be taken back", func() bool { _, err := c.find("c2"); return err != nil })
	r.nothingOfHelpers(t)
}
