package process_test

import (
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/process"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func TestMain(m *testing.M) {
	launchertest.BeCreator(func(e *launchertest.Env) (launcher.Launcher, error) {
		return process.New(e.Shim, e.Cgroups, e.Log), nil
	})
	os.Exit(m.Run())
}

func newLauncher(_ testing.TB, e *launchertest.Env) launcher.Launcher {
	return process.New(e.Shim, e.Cgroups, e.Log)
}

func TestConformance(t *testing.T) { launchertest.Conformance(t, newLauncher) }

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
