package containerizer

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// within describes a debug container in parent.
func within(parent *containerv1.Container, id, script string) *containerv1.Container {
	return &containerv1.Container{
		Id: parent.Id + "." + id, ParentId: parent.Id, Generation: 1, Class: containerv1.Container_DEBUG,
		Command: &mesosv1.CommandInfo{Value: &script}, Sandbox: parent.Sandbox, Cgroup: parent.Cgroup + "/" + id,
	}
}

// debug runs a debug container to its end and returns its exit code.
func debug(t *testing.T, r *rig, c *Containerizer, want *containerv1.Container) int {
	t.Helper()
	if _, err := c.Launch(launchertest.Context(t), want); err != nil {
		t.Fatalf("Launch(%s): %v", want.Id, err)
	}
	end := r.finish(t, c, want.Id)
	if end.WaitStatus == nil {
		t.Fatalf("Wait(%s) = %v, want a wait status", want.Id, end)
	}
	return syscall.WaitStatus(*end.WaitStatus).ExitStatus()
}

func TestRealDebugContainerSharesEverythingWithItsParent(t *testing.T) {
	yes, soft := true, uint64(77)
	m := newMachine(t)
	r := newRig(t, &fakeIsolator{m: m, name: "all", proposal: &containerv1.Proposal{
		Environment: map[string]string{"FROM": "isolator"}, NoNewPrivileges: &yes, Hostname: "inside",
		Rlimits: []*containerv1.Rlimit{{Type: "RLIMIT_NOFILE", Soft: soft, Hard: soft}},
		Namespaces: []*containerv1.Namespace{
			{Type: containerv1.Namespace_PID}, {Type: containerv1.Namespace_MOUNT}, {Type: containerv1.Namespace_UTS},
			{Type: containerv1.Namespace_IPC}, {Type: containerv1.Namespace_NETWORK},
		},
		// Of a controller that containers usually have no group in.
		Cgroup: &containerv1.CgroupResources{CpusetCpus: "0"},
	}})
	c := r.start(t)
	defer stopAgent(t, c)
	parent := r.container("c1", `readlink /proc/self/ns/* > namespaces; touch ready; exec sleep 1000`)
	parent.Command.Environment = &mesosv1.Environment{Variables: []*mesosv1.Environment_Variable{variable("A", "task"), variable("B", "task")}}
	if _, err := c.Launch(launchertest.Context(t), parent); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	waitFor(t, "the parent to be ready", func() bool {
		_, err := os.Stat(filepath.Join(parent.Sandbox, "ready"))
		return err == nil
	})
	stores := len(m.disk)
	want := within(parent, "k1", `readlink /proc/self/ns/* | diff namespaces - || exit 2
[ "$(id -un)" = nobody ] || exit 3
[ "$PWD" = "$MESOS_SANDBOX" ] || exit 4
[ "$A$B$FROM" = taskcheckisolator ] || exit 5
[ "$(ulimit -n)" = 77 ] || exit 6
grep -q '^NoNewPrivs:.*1' /proc/self/status || exit 7
[ "$(hostname)" = inside ] || exit 8
[ $(grep -c "$CG/k1" /proc/self/cgroup) = $(grep -c "$CG" /proc/1/cgroup) ] || exit 9
[ "$(tr '\0' ' ' </proc/1/cmdline)" = "sleep 1000 " ] || exit 10
echo seen; exit 42`)
	want.Command.Environment = &mesosv1.Environment{Variables: []*mesosv1.Environment_Variable{variable("B", "check"), variable("CG", parent.Cgroup)}}
	if code := debug(t, r, c, want); code != 42 {
		b, _ := os.ReadFile(filepath.Join(parent.Sandbox, "stderr"))
		t.Fatalf("debug container: exit %d, want 42: %s", code, b)
	}
	if b, err := os.ReadFile(filepath.Join(parent.Sandbox, "stderr")); err != nil || strings.TrimSpace(string(b)) != "seen" {
		t.Errorf("stderr of the parent = %q, %v, want the debug container's output", b, err)
	}
	if len(m.disk) != stores {
		t.Errorf("%d checkpoints are stored, want %d: a debug container has none", len(m.disk), stores)
	}
	if left := m.left(want.Id); len(left) > 0 {
		t.Errorf("left of the debug container: %v", left)
	}

	// Killing it leaves its parent alone.
	slow := within(parent, "k2", "sleep 1000 & sleep 1000")
	if _, err := c.Launch(launchertest.Context(t), slow); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	if err := c.Destroy(launchertest.Context(t), slow.Id, nil); err != nil {
		t.Fatalf("Destroy: %v", err)
	}
	r.finish(t, c, slow.Id)
	if code := debug(t, r, c, within(parent, "k3", "true")); code != 0 {
		t.Errorf("debug container after another was destroyed: exit %d, want 0", code)
	}

	// Its parent's end is its own.
	last := within(parent, "k4", "sleep 1000")
	if _, err := c.Launch(launchertest.Context(t), last); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	if err := c.Signal(launchertest.Context(t), "c1", int(syscall.SIGKILL)); err != nil {
		t.Fatalf("Signal: %v", err)
	}
	r.finish(t, c, last.Id)
	if _, err := c.Launch(launchertest.Context(t), within(parent, "k5", "true")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Launch in a parent that ended = %v, want ErrNotRunning", err)
	}
	r.finish(t, c, "c1")
	waitFor(t, "all are taken back", func() bool { return len(c.all()) == 0 })
}

func TestRealDebugContainerEndsWithTheAgent(t *testing.T) {
	r := newRig(t)
	c := r.start(t)
	parent := r.container("c1", "sleep 1000")
	if _, err := c.Launch(launchertest.Context(t), parent); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	want := within(parent, "k1", "trap '' TERM; sleep 1000")
	pid, err := c.Launch(launchertest.Context(t), want)
	if err != nil {
		t.Fatalf("Launch: %v", err)
	}
	stopAgent(t, c)
	if err := syscall.Kill(int(pid), 0); err != nil {
		t.Fatalf("debug container after its agent: %v, want it to run still", err)
	}

	c = r.start(t)
	defer stopAgent(t, c)
	found, err := c.Recover(launchertest.Context(t), []string{"c1"})
	if err != nil || len(found) != 1 || found[0].GetPhase() != containerv1.Checkpoint_RUNNING {
		t.Fatalf("Recover = %v, %v, want the parent, running", found, err)
	}
	waitFor(t, "the debug container to be gone", func() bool { return syscall.Kill(int(pid), 0) != nil && len(c.all()) == 1 })
	if code := debug(t, r, c, within(parent, "k1", "exit 5")); code != 5 {
		t.Errorf("debug container after recovery: exit %d, want 5", code)
	}
	if err := c.Destroy(launchertest.Context(t), "c1", nil); err != nil {
		t.Errorf("Destroy: %v", err)
	}
	r.finish(t, c, "c1")
}

func TestRealDebugContainerRunsInsideAnImage(t *testing.T) {
	r := newRig(t)
	if len(r.cfg.Launchers) < 2 {
		t.Skip("there is no runc, neither in bin nor on the path")
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("there is no static busybox to make an image of")
	}
	image := filepath.Join(r.env.Dir, "image")
	for _, dir := range []string{"bin", "etc", "proc"} {
		if err := os.MkdirAll(filepath.Join(image, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, body := range map[string]string{"bin/busybox": string(program), "etc/passwd": "app:x:4242:4243::/:/bin/sh\n"} {
		if err := os.WriteFile(filepath.Join(image, name), []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sh", "id", "sleep"} {
		if err := os.Symlink("busybox", filepath.Join(image, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	c := r.start(t)
	defer stopAgent(t, c)
	parent := r.container("c1", "sleep 1000")
	parent.LocalImage, parent.User = image, "app"
	if _, err := c.Launch(launchertest.Context(t), parent); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	want := within(parent, "k1", `[ "$(id -u):$(id -g)" = 4242:4243 ] || exit 2
[ ! -e /home ] || exit 3
[ "$PWD" = /mnt/mesos/sandbox ] || exit 4
exit 42`)
	if code := debug(t, r, c, want); code != 42 {
		t.Errorf("debug container in an image: exit %d, want 42", code)
	}
	if err := c.Destroy(launchertest.Context(t), "c1", nil); err != nil {
		t.Errorf("Destroy: %v", err)
	}
	r.finish(t, c, "c1")
}

func TestRealDebugContainerOfAnotherUserHasNothingOfRoots(t *testing.T) {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE"}
	m := newMachine(t)
	r := newRig(t, &fakeIsolator{m: m, name: "all", proposal: &containerv1.Proposal{
		Capabilities: &containerv1.Capabilities{Bounding: caps, Effective: caps, Permitted: caps},
	}})
	c := r.start(t)
	defer stopAgent(t, c)
	parent := r.container("c1", `exec sleep 1000`)
	parent.User = "root"
	if _, err := c.Launch(launchertest.Context(t), parent); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	if code := debug(t, r, c, within(parent, "root", `grep -q 'CapEff:.*0000000000000003' /proc/self/status`)); code != 0 {
		t.Errorf("root's capabilities: grep ended with %d, want its container's two", code)
	}
	program := filepath.Join(t.TempDir(), "roots")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	other := within(parent, "other", program)
	other.User, other.Command.Shell = "65534", new(bool)
	if _, err := c.Launch(launchertest.Context(t), other); err == nil {
		t.Errorf("Launch of a program that only root may execute as another user worked, want it refused")
	}
	if err := c.Destroy(launchertest.Context(t), parent.Id, nil); err != nil {
		t.Error(err)
	}
	r.finish(t, c, parent.Id)
}

func TestDebugContainerThatAsksForItsOwnIsRefused(t *testing.T) {
	c, _ := startAgent(t, newMachine(t), t.TempDir())
	defer stopAgent(t, c)
	parent := &containerv1.Container{Id: "c1", Sandbox: "/s/c1", Cgroup: "mosaic/c1"}
	for what, change := range map[string]func(*containerv1.Container){
		"no parent":      func(x *containerv1.Container) { x.ParentId, x.Id = "", "k" },
		"an image":       func(x *containerv1.Container) { x.LocalImage = "/image" },
		"a container":    func(x *containerv1.Container) { x.ContainerInfo = &mesosv1.ContainerInfo{} },
		"no command":     func(x *containerv1.Container) { x.Command.Value = nil },
		"uris":           func(x *containerv1.Container) { x.Command.Uris = []*mesosv1.CommandInfo_URI{{Value: new("/f")}} },
		"unknown parent": func(*containerv1.Container) {},
	} {
		x := within(parent, "k1", "true")
		change(x)
		if _, err := c.Launch(t.Context(), x); err == nil {
			t.Errorf("Launch of a debug container with %s succeeded, want an error", what)
		}
	}
}

func TestNothingIsNestedInADebugContainer(t *testing.T) {
	c, _ := startAgent(t, newMachine(t), t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	check := within(root, "k", "true")
	launch(t, c, root, check)
	for _, x := range []*containerv1.Container{within(check, "l", "true"), nestedIn(check, "n")} {
		if _, err := c.Launch(t.Context(), x); err == nil || !strings.Contains(err.Error(), "debug container") {
			t.Errorf("Launch(%s) = %v, want it refused", x.Id, err)
		}
	}
}
