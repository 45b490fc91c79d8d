package containerizer

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTakingAMountAwayLeavesWhatItWasMadeOf(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	c, _ := startAgent(t, newMachine(t), t.TempDir())
	defer stopAgent(t, c)
	outer := t.TempDir()
	inner := filepath.Join(outer, "inner")
	for _, dir := range []string{outer, inner} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(inner, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(outer)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tree, err := treeAt(f)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	place, err := c.stage("c", "v0", tree, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(place, "inner", "file")); err != nil {
		t.Errorf("what is mounted below: %v, want it to be seen", err)
	}
	if err := c.unstage("c"); err != nil {
		t.Errorf("unstage: %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("file below the original after the copy was taken away: %v", err)
	}
	if err := c.unstage("c"); err != nil {
		t.Errorf("unstage again: %v", err)
	}
}

func TestMountsOfAnotherProcessAreCopiedOnAThreadThatEnds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("entering a mount namespace needs root")
	}
	before, err := os.Stat("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		tree, err := treeOf(os.Getpid(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(tree)
	}
	if tree, err := treeOf(os.Getpid(), "/no/such/place"); err == nil || tree != -1 {
		t.Errorf("treeOf what is not there = %d, %v, want an error", tree, err)
	}
	if now, err := os.Stat("/proc/self/ns/mnt"); err != nil || !os.SameFile(before, now) {
		t.Errorf("mount namespace of the process: %v, want it unchanged", err)
	}
}
