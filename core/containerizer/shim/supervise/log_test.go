package supervise

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestALogIsAFileOrANamedPipeAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	for name, test := range map[string]struct {
		make func(at string) error
		want error
	}{
		"missing": {func(string) error { return nil }, nil},
		"file":    {func(at string) error { return os.WriteFile(at, []byte("before\n"), 0o644) }, nil},
		"pipe":    {func(at string) error { return unix.Mkfifo(at, 0o600) }, nil},
		"link":    {func(at string) error { return os.Symlink("file", at) }, syscall.ELOOP},
		"nowhere": {func(at string) error { return os.Symlink("not-there", at) }, syscall.ELOOP},
		"folder":  {func(at string) error { return os.Mkdir(at, 0o755) }, syscall.EPERM},
		"socket":  {func(at string) error { return unix.Mknod(at, unix.S_IFSOCK|0o600, 0) }, syscall.EPERM},
		"device":  {func(at string) error { return unix.Mknod(at, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }, syscall.EPERM},
	} {
		t.Run(name, func(t *testing.T) {
			at := filepath.Join(dir, name)
			err := test.make(at)
			if name == "device" && err == syscall.EPERM {
				t.Skip("needs root: device nodes")
			}
			if err != nil {
				t.Fatal(err)
			}
			fd, err := openLog(at, os.Getuid(), os.Getgid())
			if err != test.want {
				t.Fatalf("openLog = %v, want %v", err, test.want)
			}
			if err != nil {
				return
			}
			defer syscall.Close(fd)
			if _, err := syscall.Write(fd, []byte("after\n")); err != nil {
				t.Errorf("write: %v", err)
			}
			if name != "file" {
				return
			}
			if b, err := os.ReadFile(at); string(b) != "before\nafter\n" {
				t.Errorf("the file holds %q, %v; want what was added at its end", b, err)
			}
		})
	}
}
