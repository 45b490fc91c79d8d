package oci_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/oci"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
)

func runc(t testing.TB) *shim.Binary {
	path, err := filepath.Abs("../../../../bin/runc")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		if path, err = exec.LookPath("runc"); err != nil {
			t.Skip("there is no runc, neither in bin nor on the path")
		}
	}
	b, err := shim.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func newLauncher(t testing.TB, e *launchertest.Env) launcher.Launcher {
	return oci.New(e.Shim, runc(t), e.Cgroups, e.Log)
}

func TestConformance(t *testing.T) { launchertest.Conformance(t, newLauncher) }

func BenchmarkLaunchTrue(b *testing.B) { launchertest.BenchmarkLaunchTrue(b, newLauncher) }
