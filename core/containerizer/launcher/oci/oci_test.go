package oci_test

import (
	"errors"
	"fmt"
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

func TestRooted(t *testing.T) { launchertest.Rooted(t, newLauncher) }

func TestSharing(t *testing.T) { launchertest.Sharing(t, newLauncher) }

func BenchmarkLaunchTrue(b *testing.B) { launchertest.BenchmarkLaunchTrue(b, newLauncher) }

func TestKilledAgentFindsItsContainersAgain(t *testing.T) {
	runc(t)
	launchertest.KilledAgent(t, newLauncher)
}

// TestTerminalOfAnImage: the runtime makes the terminal inside, and sends it to the shim.
func TestTerminalOfAnImage(t *testing.T) {
	e := launchertest.New(t)
	l := newLauncher(t, e)
	image := launchertest.Image(t, e)
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
