package process_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/containerizer/cgroup"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/process"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func TestMain(m *testing.M) {
	launchertest.BeCreator(func(e *launchertest.Env) (launcher.Launcher, error) {
		return process.New(e.Shim, e.Cgroups, e.Log), nil
	})
	if path := os.Getenv(plainVariable); path != "" {
		if err := bePlainUser(path, os.Getenv("MOSAIC_TEST_DIR")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestProgramIsCalledByTheNameInItsCommandLine(t *testing.T) {
	e := launchertest.New(t)
	r := e.Request("renamed", "-c", `echo "$0"`)
	r.Path = "/bin/sh"
	h := launchertest.Start(t, process.New(e.Shim, e.Cgroups, e.Log), r)
	if status := launchertest.Wait(t, h); status != 0 {
		t.Errorf("Wait = %#x, want 0", status)
	}
	if out, err := os.ReadFile(r.Stdout); err != nil || string(out) != "renamed\n" {
		t.Errorf("output = %q, %v, want the name", out, err)
	}
}

// plainVariable makes the test program an agent of a plain user. It holds the path of the shim.
const plainVariable = "MOSAIC_TEST_PLAIN"

// bePlainUser launches what a plain user may, and what not, and returns what was wrong.
func bePlainUser(path, dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	b, err := shim.Open(path)
	if err != nil {
		return err
	}
	h, err := cgroup.Detect()
	if err != nil {
		return err
	}
	l := process.New(b, h, slog.New(slog.DiscardHandler))
	r := &launcher.Request{
		Container: &containerv1.Container{Id: "c1", Cgroup: "mosaic-test-plain/c1"}, Proposal: &containerv1.Proposal{},
		Argv: []string{"sh", "-c", "id -u; sleep 1000 & exit 3"}, Env: []string{"PATH=/usr/bin:/bin"}, Stdout: filepath.Join(dir, "out"), RunDir: filepath.Join(dir, "c1"),
		User: launcher.User{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())},
	}
	c, err := l.Create(ctx, r)
	if err != nil {
		return err
	}
	if err := c.Start(ctx); err != nil {
		return err
	}
	if s, known, err := c.Wait(ctx); err != nil || !known || syscall.WaitStatus(s).ExitStatus() != 3 {
		return fmt.Errorf("Wait = %#x, %v, %w, want exit 3", s, known, err)
	}
	if err := c.Destroy(ctx); err != nil {
		return err
	}
	if err := syscall.Kill(-c.Pid(), 0); !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("after Destroy the session is there: %w", err)
	}
	if out, err := os.ReadFile(r.Stdout); err != nil || string(out) != fmt.Sprintf("%d\n", os.Geteuid()) {
		return fmt.Errorf("output = %q, %w", out, err)
	}
	limit := int64(1 << 26)
	r.Proposal.Cgroup = &containerv1.CgroupResources{MemoryLimitBytes: &limit}
	if _, err := l.Create(ctx, r); !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("Create with a limit = %w, want permission denied", err)
	}
	r.Proposal.Cgroup, r.User.UID = nil, 0
	if err := l.Supports(r); err == nil {
		return errors.New("Supports of another user = nil")
	}
	return nil
}

func TestPlainUserLaunchesWithoutCgroups(t *testing.T) {
	e := launchertest.New(t)
	dir := filepath.Join(e.Dir, "plain")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	// The test program lies where a plain user may not look: it is executed through a descriptor.
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{self}
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), plainVariable+"="+e.Shim.Path(), "MOSAIC_TEST_DIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as a plain user: %v\n%s", err, out)
	}
}

func newLauncher(_ testing.TB, e *launchertest.Env) launcher.Launcher {
	return process.New(e.Shim, e.Cgroups, e.Log)
}

func TestConformance(t *testing.T) { launchertest.Conformance(t, newLauncher) }

func newRooted(t testing.TB, e *launchertest.Env) launcher.Launcher {
	if e.Cgroups.Version() == 2 {
		t.Skip("only a runtime keeps devices from a container on version 2 of cgroups")
	}
	return process.New(e.Shim, e.Cgroups, e.Log).WithRoots()
}

func TestRooted(t *testing.T) { launchertest.Rooted(t, newRooted) }

func TestStreaming(t *testing.T) { launchertest.Streaming(t, newLauncher) }

func TestKilledAgentsTerminalsGoOn(t *testing.T) { launchertest.KilledAgentsTerminals(t, newLauncher) }

func TestSharing(t *testing.T) { launchertest.Sharing(t, newLauncher) }

func BenchmarkLaunchTrue(b *testing.B) { launchertest.BenchmarkLaunchTrue(b, newLauncher) }

// maxShim is what a shim may cost while its container runs: it is paid once per container.
const maxShim = 1200 // KiB

func TestIdleShimIsSmall(t *testing.T) {
	e := launchertest.New(t)
	private, drop := launchertest.IdleMemory(t, e, newLauncher(t, e), 40)
	t.Logf("private memory of a shim %d KiB; available memory dropped by %d KiB a container", private, drop)
	if private > maxShim {
		t.Errorf("private memory of a shim = %d KiB, want at most %d", private, maxShim)
	}
}

func TestKilledAgentFindsItsContainersAgain(t *testing.T) { launchertest.KilledAgent(t, newLauncher) }

func TestSupportsRefusesWhatNeedsARuntime(t *testing.T) {
	e := launchertest.New(t)
	l := newLauncher(t, e)
	for want, change := range map[string]func(r *launcher.Request){
		"root file system": func(r *launcher.Request) { r.Container.Rootfs = "/srv" },
		"mounts (/data)": func(r *launcher.Request) {
			r.Proposal.Mounts = []*containerv1.Mount{{Destination: "/data"}}
		},
		"masked paths":     func(r *launcher.Request) { r.Proposal.MaskedPaths = []string{"/proc/kcore"} },
		"read-only paths":  func(r *launcher.Request) { r.Proposal.ReadonlyPaths = []string{"/proc/sys"} },
		"devices (/dev/x)": func(r *launcher.Request) { r.Proposal.Devices = []*containerv1.Device{{Path: "/dev/x"}} },
		"uts namespace":    func(r *launcher.Request) { r.Proposal.Hostname = "h" },
		"windows":          func(r *launcher.Request) { r.Proposal.WindowsJob = &containerv1.WindowsJob{} },
		"no command":       func(r *launcher.Request) { r.Argv = nil },
		"unknown capability": func(r *launcher.Request) {
			r.Proposal.Capabilities = &containerv1.Capabilities{Bounding: []string{"CAP_X"}}
		},
		"compiled filter of 7": func(r *launcher.Request) { r.Proposal.Seccomp = &containerv1.Seccomp{Bpf: make([]byte, 7)} },
		"user namespaces": func(r *launcher.Request) {
			r.Proposal.Namespaces = []*containerv1.Namespace{{Type: containerv1.Namespace_USER}}
		},
		"given twice": func(r *launcher.Request) {
			r.Proposal.Namespaces = []*containerv1.Namespace{{Type: containerv1.Namespace_IPC}, {Type: containerv1.Namespace_IPC, Path: "/x"}}
		},
	} {
		r := e.Request("true")
		change(r)
		if err := l.Supports(r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Supports = %v, want an error with %q", err, want)
		}
	}
}

func TestWithoutCgroupsTheSessionIsKilled(t *testing.T) {
	e := launchertest.New(t)
	l := process.New(e.Shim, nil, e.Log)
	r := e.Request("sh", "-c", "sleep 1000 & setsid sleep 1000 & (sleep 1000 & sleep 1000) & echo $!; wait")
	h := launchertest.Start(t, l, r)
	launchertest.Eventually(t, "the children run", func() bool { return launchertest.Output(t, r) != "" })
	if len(h.Cgroups()) > 0 {
		t.Errorf("Cgroups = %v, want none", h.Cgroups())
	}
	shim := launchertest.ShimOf(t, h)
	if err := h.Destroy(launchertest.Context(t)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(-h.Pid(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("after Destroy the group is there: %v", err)
	}
	if err := syscall.Kill(shim, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("after Destroy the shim is there: %v", err)
	}

	limit := int64(1 << 26)
	r = e.Request("true")
	r.Proposal.Cgroup = &containerv1.CgroupResources{MemoryLimitBytes: &limit}
	if _, err := l.Create(launchertest.Context(t), r); err == nil || !strings.Contains(err.Error(), "no cgroup") {
		t.Errorf("Create with a limit but no cgroups = %v, want an error that says so", err)
	}
}

// TestDeathBeforeTheCommandIsNoStart: the stage needs a few threads, and a limit below them ends it.
func TestDeathBeforeTheCommandIsNoStart(t *testing.T) {
	e := launchertest.New(t)
	l := newLauncher(t, e)
	for limit := int64(1); limit <= 3; limit++ {
		r := e.Request("true")
		r.Proposal.Cgroup = &containerv1.CgroupResources{PidsLimit: &limit}
		h, err := l.Create(launchertest.Context(t), r)
		if err == nil {
			err = h.Start(launchertest.Context(t))
			if derr := h.Destroy(launchertest.Context(t)); derr != nil {
				t.Error(derr)
			}
		}
		if err == nil {
			t.Errorf("with a limit of %d processes the command is said to have started", limit)
		}
	}
}

func TestFiftyLaunchesAtOnce(t *testing.T) {
	e := launchertest.New(t)
	l := newLauncher(t, e)
	requests := make([]*launcher.Request, 50)
	for i := range requests {
		requests[i] = e.Request("true")
	}
	var wg sync.WaitGroup
	for _, r := range requests {
		wg.Go(func() {
			ctx := launchertest.Context(t)
			h, err := l.Create(ctx, r)
			if err != nil {
				t.Error(err)
				return
			}
			if err := h.Start(ctx); err != nil {
				t.Error(err)
			}
			if s, known, err := h.Wait(ctx); s != 0 || !known || err != nil {
				t.Errorf("Wait = %#x, %v, %v", s, known, err)
			}
			if err := h.Destroy(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// BenchmarkThroughput launches /bin/true on as many lanes as an agent of two processors uses, taking
// down included.
func BenchmarkThroughput(b *testing.B) {
	e := launchertest.New(b)
	l := newLauncher(b, e)
	ctx := launchertest.Context(b)
	requests := make(chan *launcher.Request)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for r := range requests {
				h, err := l.Create(ctx, r)
				if err != nil {
					b.Error(err)
					continue
				}
				if err := h.Start(ctx); err != nil {
					b.Error(err)
				}
				if _, _, err := h.Wait(ctx); err != nil {
					b.Error(err)
				}
				if err := h.Destroy(ctx); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for b.Loop() {
		requests <- e.Request("/bin/true")
	}
	close(requests)
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "launches/s")
}
