package process_test

import (
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/process"
)

func newLauncher(_ testing.TB, e *launchertest.Env) launcher.Launcher {
	return process.New(e.Shim, e.Cgroups, e.Log)
}

func TestConformance(t *testing.T) { launchertest.Conformance(t, newLauncher) }

func BenchmarkLaunchTrue(b *testing.B) { launchertest.BenchmarkLaunchTrue(b, newLauncher) }
