// Package launchertest tests launchers: what every implementation of launcher.Launcher must do, and
// the machine that such tests need (a shim built from source, a cgroup root of their own).
package launchertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/containerizer/cgroup"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// An Env is what a test of a launcher works in.
type Env struct {
	Shim    *shim.Binary
	Cgroups *cgroup.Hierarchy
	Root    string // cgroup root of this process's tests
	Dir     string // short folder for run folders and outputs
	Log     *slog.Logger

	n int
}

// build compiles the shim, once per test process, and returns the program.
var build = sync.OnceValues(func() (program []byte, err error) {
	dir, err := os.MkdirTemp("", "mosaic-shim-test-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bin := filepath.Join(dir, "mosaic-shim")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "github.com/mosaic-cluster/mosaic/core/containerizer/shim/mosaic-shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build shim: %w\n%s", err, out)
	}
	return os.ReadFile(bin)
})

// settle is how long processes may take that end by themselves: spare shims of an agent that was killed.
const settle = 3 * time.Second

// New makes an environment, and removes it at the end of the test: any process left is an error.
func New(t testing.TB) *Env {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers of other users, cgroups and namespaces need root")
	}
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "mt")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "mosaic-shim")
	if err := os.WriteFile(bin, program, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := shim.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	e := &Env{
		Shim: b, Cgroups: h, Root: fmt.Sprintf("mosaic-test-%d-%s", os.Getpid(), filepath.Base(dir)), Dir: dir,
		Log: quietLog(),
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		root, err := h.Group(e.Root)
		if err != nil {
			t.Fatal(err)
		}
		pids, err := root.Pids()
		for deadline := time.Now().Add(settle); err == nil && len(pids) > 0 && time.Now().Before(deadline); pids, err = root.Pids() {
			time.Sleep(10 * time.Millisecond) // they are nobody's children, so there is nothing to wait for
		}
		if err != nil || len(pids) > 0 {
			t.Errorf("after the test %d processes are left in %s (%v), error %v", len(pids), e.Root, pids, err)
		}
		if err := root.Kill(ctx); err != nil {
			t.Error(err)
		}
		if err := root.Remove(ctx); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return e
}

func quietLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}

// Request asks for a container that runs argv as root, with the environment's output files.
func (e *Env) Request(argv ...string) *launcher.Request {
	e.n++
	id := fmt.Sprintf("c%d", e.n)
	return &launcher.Request{
		Container: &containerv1.Container{Id: id, Generation: 1, Cgroup: e.Root + "/" + id},
		Proposal:  &containerv1.Proposal{},
		Argv:      argv,
		Env:       []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "GREETING=hello"},
		Dir:       "/",
		Stdout:    filepath.Join(e.Dir, id+".out"),
		Stderr:    filepath.Join(e.Dir, id+".err"),
		RunDir:    filepath.Join(e.Dir, id),
	}
}

// Context ends well before the test does.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Start creates and starts a container, which is destroyed at the end of the test.
func Start(t testing.TB, l launcher.Launcher, r *launcher.Request) launcher.Handle {
	t.Helper()
	h := Create(t, l, r)
	if err := h.Start(Context(t)); err != nil {
		t.Fatalf("Start(%v) = %v", r.Argv, err)
	}
	return h
}

// Create creates a container, which is destroyed at the end of the test.
func Create(t testing.TB, l launcher.Launcher, r *launcher.Request) launcher.Handle {
	t.Helper()
	if err := l.Supports(r); err != nil {
		t.Fatalf("Supports(%v) = %v, want nil", r.Argv, err)
	}
	h, err := l.Create(Context(t), r)
	if err != nil {
		t.Fatalf("Create(%v) = %v", r.Argv, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := h.Destroy(ctx); err != nil {
			t.Errorf("Destroy = %v", err)
		}
	})
	return h
}

// Wait waits for a container whose status must be known.
func Wait(t testing.TB, h launcher.Handle) int {
	t.Helper()
	status, known, err := h.Wait(Context(t))
	if err != nil || !known {
		t.Fatalf("Wait = %#x, known %v, %v", status, known, err)
	}
	return status
}

// Run runs a container to its end and returns its status and standard output. What it wrote to
// standard error is logged.
func Run(t testing.TB, l launcher.Launcher, r *launcher.Request) (int, string) {
	t.Helper()
	h := Start(t, l, r)
	status := Wait(t, h)
	return status, Output(t, r)
}

// Output is what a container wrote so far.
func Output(t testing.TB, r *launcher.Request) string {
	t.Helper()
	out, err := os.ReadFile(r.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(r.Stderr); err == nil && len(bytes.TrimSpace(b)) > 0 {
		t.Logf("%v wrote to standard error: %s", r.Argv, b)
	}
	return string(out)
}

// Eventually looks again and again until ok, or fails the test.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("it did not come about that %s", what)
		case <-tick.C:
		}
	}
}
