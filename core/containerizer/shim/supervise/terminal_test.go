package supervise

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// What a container's root user may put in the place of its terminals.
func TestTerminalsAreMadeOnlyWhereTerminalsAre(t *testing.T) {
	for what, put := range map[string]func(dir string) error{
		"nothing":  func(string) error { return nil },
		"a folder": func(dir string) error { return os.MkdirAll(filepath.Join(dir, "dev/pts/ptmx"), 0o755) },
		"a file":   func(dir string) error { return os.WriteFile(filepath.Join(dir, "dev/pts/ptmx"), nil, 0o600) },
		"a link":   func(dir string) error { return os.Symlink("/dev/pts/ptmx", filepath.Join(dir, "dev/pts/ptmx")) },
		"a link to terminals": func(dir string) error {
			if err := os.Remove(filepath.Join(dir, "dev/pts")); err != nil {
				return err
			}
			return os.Symlink("/dev/pts", filepath.Join(dir, "dev/pts"))
		},
		"a pipe": func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "dev/pts/ptmx"), 0o600) },
	} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "dev/pts"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := put(dir); err != nil {
			t.Fatal(err)
		}
		if fd := terminalsBelow(dir); fd >= 0 {
			_ = syscall.Close(fd)
			t.Errorf("terminalsBelow with %s = %d, want none", what, fd)
		}
	}
}

func TestATerminalIsMadeWhereItIsAskedForElseInTheMachines(t *testing.T) {
	if _, err := os.Stat("/dev/pts/ptmx"); err != nil || os.Geteuid() != 0 {
		t.Skip("there is no /dev/pts/ptmx that this user may open")
	}
	if fd := terminalsBelow("/"); fd < 0 {
		t.Error("terminalsBelow(/) found none")
	} else {
		_ = syscall.Close(fd)
	}
	for _, root := range []string{"", "/", t.TempDir()} {
		fd, err := openMaster(root)
		if err != nil {
			t.Errorf("openMaster(%q): %v", root, err)
			continue
		}
		name, err := os.Readlink("/proc/self/fd/" + itoa(uint64(fd)))
		if err != nil || !strings.HasSuffix(name, "ptmx") {
			t.Errorf("openMaster(%q) opened %q, %v, want a ptmx", root, name, err)
		}
		_ = syscall.Close(fd)
	}
}
