package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// registryPage is what the image of the tests' registry serves.
const registryPage = "hello from a container\n"

// imageRegistry starts a registry of its own for the test and returns the name of its image.
func imageRegistry(t *testing.T, args ...string) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a busybox to make an image of: " + err.Error())
	}
	if out, err := exec.CommandContext(t.Context(), "ldd", busybox).CombinedOutput(); err == nil {
		t.Skipf("needs a static busybox: %s", out)
	}
	program := filepath.Join(t.TempDir(), "registry")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./registry")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the registry: %v\n%s", err, out)
	}
	cmd := exec.Command(program, append([]string{"-busybox", busybox, "-page", registryPage}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the registry ended: %v", err)
	}
	return strings.TrimSpace(line)
}
