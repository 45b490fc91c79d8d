package disk

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, file string, size int) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func measured(t *testing.T, dir string) uint64 {
	t.Helper()
	n, err := measure(context.Background(), dir)
	if err != nil {
		t.Fatalf("measure: %v", err)
	}
	return n
}

func TestWhatIsMeasuredIsWhatTheDiskHolds(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	base := measured(t, dir)
	write(t, outside+"/big", 4<<20)
	write(t, dir+"/a/b/file", 1<<20)
	for _, link := range []string{"/again", "/a/and-again"} {
		if err := os.Link(dir+"/a/b/file", dir+link); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(dir+"/pipe", 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(1<<30), f.Close()); err != nil {
		t.Fatal(err)
	}
	got := measured(t, dir) - base
	if got < 1<<20 || got > 1<<20+64<<10 {
		t.Errorf("measured %d, want 1 MiB and a few folders: one file with three names, a link out, a pipe, a hole", got)
	}
}

func TestOtherMountsAreNotMeasured(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir, outside := t.TempDir(), t.TempDir()
	write(t, outside+"/big", 4<<20)
	for name, mount := range map[string]func(string) error{
		"tmpfs": func(at string) error { return unix.Mount("tmpfs", at, "tmpfs", 0, "") },
		"bind":  func(at string) error { return unix.Mount(outside, at, "", unix.MS_BIND, "") },
	} {
		at := filepath.Join(dir, name)
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := mount(at); err != nil {
			t.Skipf("this machine does not mount: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(at, 0); err != nil {
				t.Errorf("unmount: %v", err) // also if something of ours was left open there
			}
		})
	}
	write(t, dir+"/tmpfs/big", 4<<20)
	if got := measured(t, dir); got > 1<<20 {
		t.Errorf("measured %d with two mounts below, want them left out", got)
	}
}

func TestFoldersTooDeepAreAnErrorAndNotZero(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range deepest + 5 {
		if err := unix.Mkdirat(fd, "d", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		_ = unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	_ = unix.Close(fd)
	if _, err := measure(context.Background(), dir); !errors.Is(err, errTooDeep) {
		t.Errorf("measure = %v, want errTooDeep", err)
	}
}

func TestMeasuringEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/file", 10)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := measure(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("measure with a context that ended = %v", err)
	}
}

func TestALinkInPlaceOfTheSandboxIsNotFollowed(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/etc", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if n, err := measure(context.Background(), dir+"/link"); err == nil {
		t.Errorf("measure of a link = %d, want an error", n)
	}
}
