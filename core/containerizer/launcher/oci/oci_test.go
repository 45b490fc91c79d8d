package oci_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/oci"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/process"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func TestMain(m *testing.M) {
	launchertest.BeCreator(func(e *launchertest.Env) (launcher.Launcher, error) {
		path, err := runcPath()
		if err != nil {
			return nil, err
		}
		b, err := shim.Open(path)
		if err != nil {
			return nil, err
		}
		return oci.New(e.Shim, b, e.Cgroups, e.Log), nil
	})
	os.Exit(m.Run())
}

// runcPath finds the runc that the build makes, or else the system's.
func runcPath() (string, error) {
	path, err := filepath.Abs("../../../../bin/runc")
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return exec.LookPath("runc")
	}
	return path, nil
}

func runc(t testing.TB) *shim.Binary {
	t.Helper()
	path, err := runcPath()
	if err != nil {
		t.Skip("there is no runc, neither in bin nor on the path")
	}
	b, err := shim.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func newLauncher(t testing.TB, e *launchertest.Env) launcher.Launcher {
	return oci.New(e.Shim, runc(t), e.Cgroups, e.Log)
}

func TestConformance(t *testing.T) { launchertest.Conformance(t, newLauncher) }

func TestStreaming(t *testing.T) { launchertest.Streaming(t, newLauncher) }

func TestKilledAgentsTerminalsGoOn(t *testing.T) {
	runc(t)
	launchertest.KilledAgentsTerminals(t, newLauncher)
}

func TestSharing(t *testing.T) { launchertest.Sharing(t, newLauncher) }

func BenchmarkLaunchTrue(b *testing.B) { launchertest.BenchmarkLaunchTrue(b, newLauncher) }

func TestKilledAgentFindsItsContainersAgain(t *testing.T) {
	runc(t)
	launchertest.KilledAgent(t, newLauncher)
}

// rootfs makes a root file system of one static busybox.
func rootfs(t *testing.T, e *launchertest.Env) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("there is no busybox to make a root file system of")
	}
	dir := filepath.Join(e.Dir, "image")
	for _, d := range []string{"bin", "proc", "sys", "dev", "etc", "tmp", "mnt"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	src, err := os.Open(busybox)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(filepath.Join(dir, "bin/busybox"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "ls", "id", "mount", "hostname", "head", "wc", "stat", "touch", "dd", "tty", "stty"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestTerminalOfAnImage: the runtime makes the terminal inside, and sends it to the shim.
func TestTerminalOfAnImage(t *testing.T) {
	e := launchertest.New(t)
	l := newLauncher(t, e)
	image := rootfs(t, e)
	first := e.Request("sleep", "1000")
	h := launchertest.Start(t, l, first)
	for name, r := range map[string]*launcher.Request{
		"alone":  e.Attached(containerv1.Container_TERMINAL, "sh", "-c", "tty; stty size; id -u; read x; echo got $x >/dev/tty"),
		"beside": e.Session(h, first, containerv1.Container_TERMINAL, "sh", "-c", "tty; stty size; id -u; read x; echo got $x >/dev/tty"),
	} {
		r.Container.Rootfs = image
		r.Proposal.Namespaces = []*containerv1.Namespace{{Type: containerv1.Namespace_PID}}
		r.User = launcher.User{UID: 1000, GID: 1000}
		r.Rows, r.Columns = 40, 132
		s := launchertest.Attach(t, launchertest.Start(t, l, r))
		launchertest.ReadUntil(t, s, "40 132\r\n1000\r\n")
		if err := s.Resize(10, 20); err != nil {
			t.Errorf("%s: Resize = %v", name, err)
		}
		if err := s.Write([]byte("it\n")); err != nil {
			t.Errorf("%s: Write = %v", name, err)
		}
		if out, _ := launchertest.ReadAll(t, s); !strings.Contains(out, "got it\r\n") {
			t.Errorf("%s: output = %q", name, out)
		}
		if _, err := os.Lstat(filepath.Join(r.RunDir, "tty")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the socket for the terminal is left: %v", name, err)
		}
	}
}

// TestBesideABareProcess: a shim that was started without the runtime is handed it with the first that needs it.
func TestBesideABareProcess(t *testing.T) {
	e := launchertest.New(t)
	l := newLauncher(t, e)
	first := e.Request("sleep", "1000")
	h := launchertest.Start(t, process.New(e.Shim, e.Cgroups, e.Log), first)
	for range 2 {
		n := launchertest.Start(t, l, e.Session(h, first, containerv1.Container_ATTACHED, "echo", "fine"))
		if out, _ := launchertest.ReadAll(t, launchertest.Attach(t, n)); out != "fine\n" {
			t.Errorf("output = %q, want fine", out)
		}
		if got, want := launchertest.ShimOfState(t, n), first.RunDir; got != want {
			t.Errorf("it is kept by the shim in %q, want that in %q", got, want)
		}
	}
	if err := h.Signal(launchertest.Context(t), syscall.SIGCONT); err != nil {
		t.Errorf("Signal to the first = %v", err)
	}
}

func TestRootFileSystemIsItsOwn(t *testing.T) {
	e := launchertest.New(t)
	l := newLauncher(t, e)
	r := e.Request("sh", "-c", "ls /; head -c 1 /proc/kcore | wc -c; ls /sys/firmware | wc -l; echo x > /proc/sys/kernel/hostname || echo refused; head -c 3 /dev/zero | wc -c; touch /made; cat /proc/self/cgroup")
	r.Container.Rootfs = rootfs(t, e)
	limit := int64(96 << 20)
	r.Proposal.Cgroup = &containerv1.CgroupResources{MemoryLimitBytes: &limit}
	r.Proposal.Namespaces = []*containerv1.Namespace{{Type: containerv1.Namespace_PID}}
	h := launchertest.Create(t, l, r)
	file, hierarchies := filepath.Join(h.Cgroups()["memory"], "memory.limit_in_bytes"), 5
	if e.Cgroups.Version() == 2 {
		file, hierarchies = filepath.Join(h.Cgroups()[""], "memory.max"), 1
	}
	b, err := os.ReadFile(file)
	if err != nil || strings.TrimSpace(string(b)) != fmt.Sprint(limit) {
		t.Errorf("memory limit = %q (%v), want %d", b, err, limit)
	}
	if err := h.Start(launchertest.Context(t)); err != nil {
		t.Fatal(err)
	}
	launchertest.Wait(t, h)
	out := launchertest.Output(t, r)
	want := "bin\ndev\netc\nmnt\nproc\nsys\ntmp\n0\n0\nrefused\n3\n"
	if !strings.HasPrefix(out, want) {
		t.Errorf("got %q, want it to begin with %q", out, want)
	}
	if _, err := os.Stat(filepath.Join(r.Container.Rootfs, "made")); err != nil {
		t.Error(err)
	}
	if strings.Count(out, "/"+r.Container.Cgroup+"\n") < hierarchies {
		t.Errorf("cgroups: %s", out)
	}
}

func TestMountsMasksAndDevices(t *testing.T) {
	e := launchertest.New(t)
	l := newLauncher(t, e)
	shared := filepath.Join(e.Dir, "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(shared, "file"), []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := e.Request("sh", "-c", "cat /data/file; touch /data/x 2>/dev/null || echo ' read-only'; cat /secret; touch /etc/x 2>/dev/null || echo fixed; echo > /dev/full2 || echo full; cat /dev/mem2 2>/dev/null || echo denied; mount")
	r.Container.Rootfs = rootfs(t, e)
	if err := os.WriteFile(filepath.Join(r.Container.Rootfs, "secret"), []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.Proposal.Mounts = []*containerv1.Mount{
		{Destination: "/data", Source: shared, Type: "bind", Options: []string{"ro"}},
		{Destination: "/mnt", Source: "tmpfs", Type: "tmpfs", Options: []string{"size=1m"}},
	}
	r.Proposal.MaskedPaths = []string{"/secret"}
	r.Proposal.ReadonlyPaths = []string{"/etc"}
	r.Proposal.Devices = []*containerv1.Device{{Path: "/dev/full2", Type: "c", Major: 1, Minor: 7, Mode: 0o666, Access: "rw"}}
	_, out := launchertest.Run(t, l, r)
	if !strings.HasPrefix(out, "from the host read-only\nfixed\nfull\ndenied\n") || !strings.Contains(out, " on /mnt type tmpfs (rw,relatime,size=1024k") {
		t.Errorf("got %s", out)
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), e.Dir) {
		t.Errorf("mounts of the container are seen on the host (%v):\n%s", err, b)
	}
}

func TestMountsOnTheHostFileSystem(t *testing.T) {
	e := launchertest.New(t)
	l := newLauncher(t, e)
	shared, target := filepath.Join(e.Dir, "shared"), filepath.Join(e.Dir, "target")
	for _, d := range []string{shared, target} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(shared, "file"), []byte("shared\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := e.Request("sh", "-c", "cat "+target+"/file; ls "+e.Dir+"; cat /etc/hostname; ls /dev/null; touch "+target+"/made")
	r.Proposal.Mounts = []*containerv1.Mount{{Destination: target, Source: shared, Type: "bind"}}
	_, out := launchertest.Run(t, l, r)
	if !strings.HasPrefix(out, "shared\n") || !strings.Contains(out, "target\n") || !strings.HasSuffix(out, "/dev/null\n") {
		t.Errorf("got %q", out)
	}
	if _, err := os.Stat(filepath.Join(shared, "made")); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(target); err != nil || len(entries) > 0 {
		t.Errorf("the mount is seen on the host: %v, %v", entries, err)
	}
}

func TestErrorsCarryTheRuntimesMessage(t *testing.T) {
	e := launchertest.New(t)
	l := newLauncher(t, e)
	r := e.Request("true")
	r.Proposal.Mounts = []*containerv1.Mount{{Destination: "/mnt", Source: "/no/such/source", Type: "bind"}}
	_, err := l.Create(launchertest.Context(t), r)
	if err == nil || !strings.Contains(err.Error(), "/no/such/source") || !strings.HasPrefix(err.Error(), "launcher(oci): ") {
		t.Errorf("Create = %v, want an error with what runc says", err)
	}
	if _, err := os.Lstat(r.RunDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("run folder after a failed Create: %v", err)
	}
}

// TestAnotherRuntimeIsStartedAndDeletedByItself wraps runc in a script that hides its pipe, so that
// it looks like a runtime that holds its processes in a way of its own.
func TestAnotherRuntimeIsStartedAndDeletedByItself(t *testing.T) {
	e := launchertest.New(t)
	path, err := runcPath()
	if err != nil {
		t.Skip("there is no runc, neither in bin nor on the path")
	}
	calls := filepath.Join(e.Dir, "calls")
	script := filepath.Join(e.Dir, "runtime")
	// The state goes to a folder of another name below the one asked for.
	text := fmt.Sprintf("#!/bin/sh\nshift\nroot=$1\nshift\nshift 4\necho $1 >> %s\nexec %s --root $root/deeper \"$@\"\n", calls, path)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := shim.Open(script)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	l := oci.New(e.Shim, b, e.Cgroups, e.Log)
	r := e.Request("sh", "-c", "echo $GREETING; exit 5")
	h := launchertest.Start(t, l, r)
	if ws := syscall.WaitStatus(launchertest.Wait(t, h)); ws.ExitStatus() != 5 {
		t.Errorf("Wait = %#x, want exit 5", ws)
	}
	if out := launchertest.Output(t, r); out != "hello\n" {
		t.Errorf("output = %q", out)
	}
	if err := h.Destroy(launchertest.Context(t)); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(calls); err != nil || string(got) != "create\nstart\ndelete\n" {
		t.Errorf("the runtime was called for %q (%v), want create, start, delete", got, err)
	}
}
