package oci_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

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

func TestSmoke(t *testing.T) {
	e := launchertest.New(t)
	l := oci.New(e.Shim, runc(t), e.Cgroups, e.Log)
	status, out := launchertest.Run(t, l, e.Request("sh", "-c", "echo $GREETING; cat /proc/self/cgroup; exit 7"))
	if ws := syscall.WaitStatus(status); ws.ExitStatus() != 7 {
		t.Error(ws, out)
	}
	t.Log(out)
}
