package disk_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/isolators/disk"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// xfs is a file system for the test, mounted with the options. It needs mkfs.xfs, a loop device and a kernel with XFS,
// and one whose XFS has quotas for those.
func xfs(t *testing.T, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	mkfs, err := exec.LookPath("mkfs.xfs")
	if err != nil {
		t.Skip("this machine has no mkfs.xfs")
	}
	base := t.TempDir()
	image, at := filepath.Join(base, "image"), filepath.Join(base, "at")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(512<<20), f.Close(), os.Mkdir(at, 0o755)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-q", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.xfs: %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop,"+options, image, at).CombinedOutput(); err != nil {
		t.Skipf("this machine does not mount XFS with %s: %s", options, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return at
}

// in is a container with its sandbox on that file system.
func in(t *testing.T, at, id string, mb float64) *isolatorv1.ContainerRecord {
	t.Helper()
	r := record(t, id, room(mb))
	r.Container.Sandbox = filepath.Join(at, id)
	if err := os.Mkdir(r.Container.Sandbox, 0o755); err != nil {
		t.Fatal(err)
	}
	return r
}

// overfill writes 8 MB into a new file of a folder.
func overfill(dir, name string) error {
	return os.WriteFile(filepath.Join(dir, name), make([]byte, 8<<20), 0o644)
}

func TestXFSKeepsContainersToTheirLimit(t *testing.T) {
	at := xfs(t, "prjquota")
	c := moduletest.Start(t, disk.New(), `{"projects":"5000-5010","enforce":true,"interval":20000000}`)
	r := in(t, at, "c", 4)
	fetched := filepath.Join(r.Container.Sandbox, "fetched")
	if err := os.Mkdir(fetched, 0o755); err != nil {
		t.Fatal(err)
	}
	fill(t, fetched, 2) // before there is a project
	launch(t, c, r)
	// The kernel says ENOSPC for projects where it says EDQUOT for users: a folder is like a small disk.
	if err := overfill(r.Container.Sandbox, "big"); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		t.Errorf("writing 8 MB where 4 are allowed = %v, want ENOSPC or EDQUOT", err)
	}
	// More room is there at once, and less is kept as well.
	r.Container.Resources = []*mesosv1.Resource{room(16)}
	update := func() {
		t.Helper()
		if _, err := c.Isolator.Update(t.Context(), &isolatorv1.UpdateRequest{OperationId: "op", Record: r}); err != nil {
			t.Fatal(err)
		}
	}
	update()
	if err := overfill(r.Container.Sandbox, "big"); err != nil {
		t.Errorf("writing 8 MB where 16 are allowed by now = %v", err)
	}
	r.Container.Resources = []*mesosv1.Resource{room(4)}
	update()
	if err := overfill(r.Container.Sandbox, "more"); err == nil {
		t.Error("8 MB more were written where 4 are allowed again")
	}
	// What is renamed into the sandbox from outside must not be had for nothing.
	outside := filepath.Join(at, "outside")
	if err := os.WriteFile(outside, make([]byte, 8<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(outside, filepath.Join(r.Container.Sandbox, "inside")); !errors.Is(err, unix.EXDEV) {
		t.Errorf("renaming a file of no project into the sandbox = %v, want EXDEV", err)
	}
	cleanup(t, c, r)
	if err := overfill(r.Container.Sandbox, "big"); err != nil {
		t.Errorf("writing after the cleanup = %v, want no limit any more", err)
	}
}

func TestProjectsOnXFSOutliveTheModuleAndAreFreedForTheNext(t *testing.T) {
	at := xfs(t, "prjquota")
	const config = `{"projects":"5000-5001","enforce":true,"interval":20000000}`
	c := moduletest.Start(t, disk.New(), config)
	a, b := in(t, at, "a", 4), in(t, at, "b", 4)
	for _, r := range []*isolatorv1.ContainerRecord{a, b} {
		if err := prepare(c, r); err != nil {
			t.Fatal(err)
		}
		fill(t, r.Container.Sandbox, 3)
	}
	// The module is another process now, and did not hear of b's Prepare.
	b.State, b.StateVersion, b.Pid = nil, 0, 0
	c = moduletest.Start(t, disk.New(), config)
	recover(t, c, a, b)
	for _, r := range []*isolatorv1.ContainerRecord{a, b} {
		if err := overfill(r.Container.Sandbox, "big"); err == nil {
			t.Errorf("after the restart %s writes 8 MB where 4 are allowed", r.Container.Id)
		}
	}
	third := in(t, at, "third", 4)
	if err := prepare(c, third); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "in use") {
		t.Errorf("Prepare of a third container with two projects = %v, want FailedPrecondition", err)
	}
	cleanup(t, c, a)
	if err := prepare(c, third); err != nil || string(third.State) != string(a.State) {
		t.Errorf("Prepare after a's end: %v, %s; want a's project %s, though its files are still there", err, third.State, a.State)
	}
	cleanup(t, c, b)
	cleanup(t, c, third)
	for _, dir := range []string{"a", "b", "third"} {
		if err := overfill(filepath.Join(at, dir), "big"); err != nil {
			t.Errorf("writing into %s after its cleanup = %v, want no limit any more", dir, err)
		}
	}
}

func TestAnXFSWithoutProjectQuotasIsRefused(t *testing.T) {
	for _, options := range []string{"noquota", "uquota", "pqnoenforce"} {
		t.Run(options, func(t *testing.T) {
			at := xfs(t, options)
			c := moduletest.Start(t, disk.New(), `{"projects":"5000-5010"}`)
			r := &isolatorv1.ContainerRecord{Container: record(t, "c").Container}
			r.Container.Sandbox = at
			_, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{OperationId: "op", Container: r.Container})
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "prjquota") {
				t.Errorf("Prepare = %v, want FailedPrecondition that names prjquota", err)
			}
		})
	}
}
