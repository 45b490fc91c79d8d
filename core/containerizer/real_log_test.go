package containerizer

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	containerloggerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/containerlogger/v1"
)

// fakeLogger answers what it is made of.
type fakeLogger func(*containerv1.Container) (*containerloggerv1.PrepareResponse, error)

func (f fakeLogger) Prepare(_ context.Context, r *containerloggerv1.PrepareRequest) (*containerloggerv1.PrepareResponse, error) {
	return f(r.GetContainer())
}

func toPath(path string, size uint64, keep uint32) *containerloggerv1.Sink {
	return &containerloggerv1.Sink{Sink: &containerloggerv1.Sink_Path{Path: path}, RotateBytes: size, Keep: keep}
}

func toHelper(name string) *containerloggerv1.Sink {
	return &containerloggerv1.Sink{Sink: &containerloggerv1.Sink_Helper{Helper: name}}
}

// copier is a logger whose helper appends its own pid and what it reads to a file.
func copier(file string, restart bool) fakeLogger {
	return func(*containerv1.Container) (*containerloggerv1.PrepareResponse, error) {
		return &containerloggerv1.PrepareResponse{Stdout: toHelper("copy"), Stderr: toHelper("copy"), Helpers: []*containerv1.Helper{{
			Name: "copy", Argv: []string{"/bin/sh", "-c", `echo "pid $$" >>"$TO"; exec cat >>"$TO"`},
			Environment: map[string]string{"TO": file}, Restart: restart,
		}}}, nil
	}
}

// copierPids are the pids of the copiers that have run.
func copierPids(t *testing.T, file string) (pids []int) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if p, ok := strings.CutPrefix(line, "pid "); ok {
			pid, err := strconv.Atoi(p)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// nothingOfHelpers checks that no helper left a file or a cgroup.
func (r *rig) nothingOfHelpers(t *testing.T) {
	t.Helper()
	if left, err := filepath.Glob(filepath.Join(r.cfg.RunDir, "h", "*")); err != nil || len(left) > 0 {
		t.Errorf("run directory: got %v, %v, want nothing of helpers", left, err)
	}
	if left, err := filepath.Glob("/sys/fs/cgroup/*/" + r.env.Root + "/*.h*"); err != nil || len(left) > 0 {
		t.Errorf("cgroups: got %v, %v, want none of helpers", left, err)
	}
}

func TestRealOutputIsRotatedInTheSandbox(t *testing.T) {
	r := newRig(t)
	c := r.start(t)
	defer stopAgent(t, c)
	c.UseLogger(fakeLogger(func(ct *containerv1.Container) (*containerloggerv1.PrepareResponse, error) {
		return &containerloggerv1.PrepareResponse{
			Stdout: toPath(ct.GetSandbox()+"/stdout", 10000, 2), Stderr: toPath(ct.GetSandbox()+"/errors", 0, 0),
		}, nil
	}))
	if _, err := c.Launch(t.Context(), r.container("c1", "seq 1 10000; echo wrong >&2")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	r.finish(t, c, "c1")
	sandbox := filepath.Join(r.env.Dir, "sandboxes", "c1")
	var all strings.Builder
	for _, name := range []string{"stdout.2", "stdout.1", "stdout"} {
		b, err := os.ReadFile(filepath.Join(sandbox, name))
		if err != nil || len(b) == 0 || len(b) > 10010 {
			t.Errorf("%s: got %d bytes, %v, want up to 10000", name, len(b), err)
		}
		info, err := os.Stat(filepath.Join(sandbox, name))
		if err != nil || info.Sys().(*syscall.Stat_t).Uid != 65534 {
			t.Errorf("%s: got %v, %v, want it to be the user's", name, info, err)
		}
		all.Write(b)
	}
	lines := strings.Split(strings.TrimSpace(all.String()), "\n")
	first, err := strconv.Atoi(lines[0])
	if err != nil {
		t.Fatal(err)
	}
	for n, line := range lines {
		if line != strconv.Itoa(first+n) {
			t.Fatalf("line %d: got %q, want %d", n, line, first+n)
		}
	}
	if lines[len(lines)-1] != "10000" {
		t.Errorf("last line: got %s, want 10000", lines[len(lines)-1])
	}
	if b, err := os.ReadFile(filepath.Join(sandbox, "errors")); err != nil || string(b) != "wrong\n" {
		t.Errorf("errors: got %q, %v", b, err)
	}
	r.nothingOfHelpers(t)
}

func TestRealLoggerKilledTheTaskLivesAndTheLogGoesOn(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(r.env.Dir, "log")
	c := r.start(t)
	c.UseLogger(copier(file, true))
	sandbox := filepath.Join(r.env.Dir, "sandboxes", "c1")
	script := `n=0; while [ ! -e stop ]; do n=$((n+1)); echo "line $n"; echo "error $n" >&2; sleep 0.01; done; echo "last $n"`
	if _, err := c.Launch(t.Context(), r.container("c1", script)); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	for kills := 1; kills <= 3; kills++ {
		waitFor(t, "a helper to run", func() bool { return len(copierPids(t, file)) >= kills })
		if err := syscall.Kill(copierPids(t, file)[kills-1], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the fourth helper", func() bool { return len(copierPids(t, file)) == 4 })

	// The agent goes and comes again: the helper is the same.
	stopAgent(t, c)
	c = r.start(t)
	defer stopAgent(t, c)
	found, err := c.Recover(t.Context(), []string{"c1"})
	if err != nil || len(found) != 1 || found[0].GetPhase() != containerv1.Checkpoint_RUNNING {
		t.Fatalf("Recover = %v, %v, want c1 running", found, err)
	}
	if err := syscall.Kill(copierPids(t, file)[3], syscall.SIGKILL); err != nil {
		t.Fatalf("the helper after the agent's restart: %v", err)
	}
	waitFor(t, "a helper started by the new agent", func() bool { return len(copierPids(t, file)) == 5 })
	if err := os.WriteFile(filepath.Join(sandbox, "stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if end := r.finish(t, c, "c1"); end.WaitStatus == nil || end.GetWaitStatus() != 0 {
		t.Errorf("end: got %v, want exit 0", end)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, count, ok := strings.Cut(strings.TrimSpace(string(b[strings.LastIndex(string(b), "last "):])), " ")
	total, err := strconv.Atoi(count)
	if !ok || err != nil {
		t.Fatalf("the log ends with %q", b[max(0, len(b)-100):])
	}
	missing := 0
	for n := 1; n <= total; n++ {
		if !strings.Contains(string(b), fmt.Sprintf("line %d\n", n)) {
			missing++
		}
	}
	// A helper that is killed may have read a piece and not written it.
	if missing > 20 {
		t.Errorf("of %d lines %d are missing, want only what a killed helper had in hand", total, missing)
	}
	r.nothingOfHelpers(t)
}

func TestRealHelperThatIsNotToBeStartedAgainTakesItsContainerAlong(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(r.env.Dir, "log")
	c := r.start(t)
	defer stopAgent(t, c)
	c.UseLogger(copier(file, false))
	if _, err := c.Launch(t.Context(), r.container("c1", "echo up; sleep 1000")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	waitFor(t, "the helper", func() bool { return len(copierPids(t, file)) == 1 })
	if err := syscall.Kill(copierPids(t, file)[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	end := r.finish(t, c, "c1")
	if end.GetState() != "TASK_FAILED" || !strings.Contains(end.GetMessage(), "container_logger: helper copy: it ended with wait status 0x9") {
		t.Errorf("end: got %v, want it to name the helper", end)
	}
	r.nothingOfHelpers(t)
}

func TestRealHelpersOfAContainerThatEndedMeanwhileEndToo(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(r.env.Dir, "log")
	c := r.start(t)
	c.UseLogger(fakeLogger(func(*containerv1.Container) (*containerloggerv1.PrepareResponse, error) {
		return &containerloggerv1.PrepareResponse{Helpers: []*containerv1.Helper{ // one that reads nothing and never ends
			{Name: "deaf", Argv: []string{"/bin/sh", "-c", `echo "pid $$" >>` + file + `; exec sleep 1000`}, Restart: true},
		}}, nil
	}))
	if _, err := c.Launch(t.Context(), r.container("c1", "echo up; until [ -e stop ]; do sleep 0.02; done")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	waitFor(t, "the helper", func() bool { return len(copierPids(t, file)) == 1 })
	stopAgent(t, c)
	c = r.start(t)
	defer stopAgent(t, c)
	if _, err := c.Recover(t.Context(), nil); err != nil { // nobody wants it
		t.Fatal(err)
	}
	waitFor(t, "it to be taken back", func() bool { _, err := c.find("c1"); return err != nil })
	if pids := copierPids(t, file); len(pids) != 1 || syscall.Kill(pids[0], 0) == nil {
		t.Errorf("helpers: got %v, want one that is gone", pids)
	}
	r.nothingOfHelpers(t)
}

func TestRealLaunchWhoseLoggerFailsOrRefuses(t *testing.T) {
	r := newRig(t)
	c := r.start(t)
	defer stopAgent(t, c)
	c.UseLogger(fakeLogger(func(*containerv1.Container) (*containerloggerv1.PrepareResponse, error) {
		return nil, status.Error(codes.Unavailable, "down")
	}))
	if _, err := c.Launch(t.Context(), r.container("plain", "echo hello")); err != nil {
		t.Fatalf("Launch without its logger: %v, want plain files", err)
	}
	r.finish(t, c, "plain")
	if got := r.output(t, "plain"); got != "hello" {
		t.Errorf("stdout: got %q, want hello", got)
	}
	for want, answer := range map[string]fakeLogger{
		"no such size": func(*containerv1.Container) (*containerloggerv1.PrepareResponse, error) {
			return nil, status.Error(codes.InvalidArgument, "no such size")
		},
		"want a file in the sandbox itself": func(ct *containerv1.Container) (*containerloggerv1.PrepareResponse, error) {
			return &containerloggerv1.PrepareResponse{Stdout: toPath(ct.GetSandbox()+"/a/b", 0, 0)}, nil
		},
		"container_logger: helper broken": func(*containerv1.Container) (*containerloggerv1.PrepareResponse, error) {
			return &containerloggerv1.PrepareResponse{Stderr: toHelper("broken"), Helpers: []*containerv1.Helper{{Name: "broken", Argv: []string{"/no/such"}}}}, nil
		},
	} {
		c.UseLogger(answer)
		if _, err := c.Launch(t.Context(), r.container("c1", "touch ran")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Launch: got %v, want it to say %q", err, want)
		}
		waitFor(t, "it to be taken back", func() bool { _, err := c.find("c1"); return err != nil })
		if _, err := os.Stat(filepath.Join(r.env.Dir, "sandboxes", "c1", "ran")); err == nil {
			t.Error("the command ran")
		}
	}
	r.nothingOfHelpers(t)
}

func TestRealOutputOfANestedContainerIsRotatedInItsSandboxWhereverThatIsMoved(t *testing.T) {
	r := newRig(t)
	c := r.start(t)
	defer stopAgent(t, c)
	c.UseLogger(fakeLogger(func(ct *containerv1.Container) (*containerloggerv1.PrepareResponse, error) {
		return &containerloggerv1.PrepareResponse{Stdout: toPath(ct.GetSandbox()+"/stdout", 5000, 100)}, nil
	}))
	root := r.container("pod", "sleep 1000")
	if _, err := c.Launch(t.Context(), root); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	child := r.child(root, "one", "", "seq 1 1000; until [ -e go ]; do sleep 0.02; done; seq 1001 3000")
	uri := filepath.Join(r.env.Dir, "fetched")
	if err := os.WriteFile(uri, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	child.Command.Uris = []*mesosv1.CommandInfo_URI{{Value: &uri}}
	if _, err := c.Launch(t.Context(), child); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	if _, err := os.Stat(filepath.Join(child.Sandbox, "fetched")); err != nil {
		t.Errorf("what was fetched: %v", err)
	}
	// The pod's own tasks put a link in its place, to where the agent may write and they may not.
	trap, moved := filepath.Join(r.env.Dir, "trap"), child.Sandbox+"-moved"
	if err := os.Mkdir(trap, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(child.Sandbox, moved); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(trap, child.Sandbox); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(moved, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if end, err := c.Wait(launchertest.Context(t), child.Id); err != nil || end.GetWaitStatus() != 0 {
		t.Errorf("Wait = %v, %v, want exit 0", end, err)
	}
	if entries, err := os.ReadDir(trap); err != nil || len(entries) > 0 {
		t.Errorf("trap: got %v, %v, want nothing in it", entries, err)
	}
	b, err := os.ReadFile(filepath.Join(moved, "stdout"))
	if err != nil || !strings.HasSuffix(string(b), "\n3000\n") {
		t.Errorf("stdout: got %q, %v, want the last line", b[max(0, len(b)-20):], err)
	}
	if _, err := os.Stat(filepath.Join(moved, "stdout.2")); err != nil {
		t.Errorf("rotated files: %v", err)
	}
	if err := c.Destroy(launchertest.Context(t), "pod", nil); err != nil {
		t.Fatal(err)
	}
	r.finish(t, c, "pod")
	r.nothingOfHelpers(t)
}

func TestRealOutputGoesToASyslogDaemonByTheForwarder(t *testing.T) {
	r := newRig(t)
	program := filepath.Join(r.env.Dir, "forwarder")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "../../modules/containerloggers/syslog/mosaic-syslog-forwarder")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	socket := filepath.Join(r.env.Dir, "log")
	daemon, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	c := r.start(t)
	defer stopAgent(t, c)
	c.UseLogger(fakeLogger(func(ct *containerv1.Container) (*containerloggerv1.PrepareResponse, error) {
		a := &containerloggerv1.PrepareResponse{Stdout: toHelper("stdout"), Stderr: toHelper("stderr")}
		for name, severity := range map[string]string{"stdout": "6", "stderr": "3"} {
			a.Helpers = append(a.Helpers, &containerv1.Helper{
				Name: name, Restart: true, Environment: map[string]string{"GOMAXPROCS": "1"},
				Argv: []string{program, "-address", "unix://" + socket, "-app", "t1", "-procid", ct.GetId(), "-severity", severity},
			})
		}
		return a, nil
	}))
	if _, err := c.Launch(t.Context(), r.container("c1", "seq 1 2000; echo wrong >&2; cat go; sleep 0.1; echo end")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	if err := daemon.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	next, wrong, b := 1, 0, make([]byte, 9000)
	for ended := false; !ended || wrong < 2; { // cat complains too
		n, err := daemon.Read(b)
		if err != nil {
			t.Fatalf("after line %d: %v", next-1, err)
		}
		head, text, _ := strings.Cut(string(b[:n]), " t1[c1]: ")
		switch {
		case strings.HasPrefix(head, "<11>"):
			wrong++
		case text == "end" && next == 2001:
			ended = true
		case text == strconv.Itoa(next) && strings.HasPrefix(head, "<14>"):
			next++
		default:
			t.Fatalf("got %q after line %d", b[:n], next-1)
		}
	}
	r.finish(t, c, "c1")
	r.nothingOfHelpers(t)
}

func TestRealRemainsOfAHelperThatWasBeingMadeAreTakenAway(t *testing.T) {
	r := newRig(t)
	for _, id := range []string{"c1", "known"} {
		// As it is when the agent dies in the middle: a run folder, a cgroup, and no record yet.
		if err := os.MkdirAll(filepath.Join(r.cfg.RunDir, "h", id, "0.run"), 0o700); err != nil {
			t.Fatal(err)
		}
		g, err := r.env.Cgroups.Group(r.env.Root + "/" + id + ".h0")
		if err == nil {
			err = g.Create()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	c := r.start(t)
	defer stopAgent(t, c)
	if _, err := c.Recover(t.Context(), []string{"known"}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "known to be taken back", func() bool { _, err := c.find("known"); return err != nil })
	r.nothingOfHelpers(t)
}
