// Package e2e drives the built programs from outside, as frameworks, operators and vendors do.
//
// Each test starts a cluster of its own (package cluster) and uses public APIs only.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// bin is the folder of the programs under test.
var bin string

// TestMain builds the programs once, so that a test never runs yesterday's.
func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	root, err := filepath.Abs("../..")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	bin = filepath.Join(root, "bin")
	cmd := exec.Command("make", "-s", "-C", root, "build")
	cmd.Env = append(os.Environ(), "MAKEFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
		return 1
	}
	return checkTable(root, m.Run())
}

var clusters atomic.Int32

// needRoot skips a test that needs cgroups, namespaces or other users.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: cgroups and namespaces")
	}
}

// start starts a cluster that ends with the test.
func start(t *testing.T, o cluster.Options) *cluster.Cluster {
	t.Helper()
	c := prepare(t, o)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatalf("start a cluster: %v", err)
	}
	return c
}

// prepare sets a cluster up without starting it.
func prepare(t *testing.T, o cluster.Options) *cluster.Cluster {
	t.Helper()
	// Sockets lie below the folder, and their paths must stay short: t.TempDir is too long.
	dir, err := os.MkdirTemp("", "me2e-")
	if err != nil {
		t.Fatal(err)
	}
	o.Bin, o.Dir = bin, dir
	o.Name = fmt.Sprintf("%d-%d", os.Getpid(), clusters.Add(1))
	c, err := cluster.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Errorf("stop the cluster: %v", err)
		}
		if t.Failed() {
			t.Log(c.Logs())
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the cluster's folder: %v", err)
		}
	})
	return c
}

// mosaic runs a command that must end with the given code.
func mosaic(t *testing.T, c *cluster.Cluster, code int, args ...string) cluster.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := c.Mosaic(ctx, args...)
	if err != nil {
		t.Fatalf("mosaic %s: %v", strings.Join(args, " "), err)
	}
	if r.Code != code {
		t.Fatalf("mosaic %s: exit code %d, want %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.Code, code, r.Stdout, r.Stderr)
	}
	return r
}

// eventually waits for a condition that other processes bring about.
func eventually(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, within)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
