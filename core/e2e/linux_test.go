package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

func TestSeccompAndCapabilitiesAreInForceInBothLaunchers(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Dev: true, Composition: `
isolator "cgroups" {}
isolator "linux" {
  config {
    bounding_capabilities  = ["CHOWN", "KILL"]
    effective_capabilities = ["CHOWN"]
    seccomp_default        = "default"
    no_new_privileges      = true
  }
}
`})
	root := filepath.Join(c.Dir, "rootfs")
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(root, "bin", "inside"), "./inside")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the program inside: %v\n%s", err, out)
	}
	for name, args := range map[string][]string{
		"process": {"run", "--", "cat", "/proc/self/status"},
		"oci":     {"run", "--image", root, "--mem", "64", "--", "/bin/inside", "/proc/self/status"},
	} {
		out := mosaic(t, c, 0, args...).Stdout
		// CAP_CHOWN is bit 0, CAP_KILL bit 5; mode 2 of seccomp is a filter.
		for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000001", "CapBnd:\t0000000000000021"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s launcher: status\n%s\nwant %q", name, out, want)
			}
		}
	}
}
