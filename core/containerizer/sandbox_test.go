package containerizer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOutputOfANestedContainerGoesToNothingThatItsParentMade(t *testing.T) {
	c, _ := startAgent(t, newMachine(t), t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	launch(t, c, root)
	for id, put := range map[string]func(at string) error{
		"link":   func(at string) error { return os.Symlink("/dev/null", at) },
		"pipe":   func(at string) error { return unix.Mkfifo(at, 0o600) },
		"folder": func(at string) error { return os.Mkdir(at, 0o755) },
		"socket": func(at string) error { return unix.Mknod(at, unix.S_IFSOCK|0o600, 0) },
	} {
		sandbox := filepath.Join(root.Sandbox, "containers", id)
		if err := os.MkdirAll(sandbox, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := put(filepath.Join(sandbox, "stderr")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Launch(t.Context(), nestedIn(root, id)); err == nil || !strings.Contains(err.Error(), "stderr: there is something else of that name") {
			t.Errorf("Launch with a %s where its output goes = %v, want it refused", id, err)
		}
	}
	// A file is as good as a new one.
	sandbox := filepath.Join(root.Sandbox, "containers", "file")
	if err := os.MkdirAll(sandbox, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sandbox, "stderr"), []byte("before\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	launch(t, c, nestedIn(root, "file"))
	if b, err := os.ReadFile(filepath.Join(sandbox, "stderr")); err != nil || string(b) != "before\n" {
		t.Errorf("the file holds %q, %v; want what was there", b, err)
	}
}
