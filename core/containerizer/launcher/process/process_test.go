package process_test

import (
	"syscall"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/process"
)

func TestSmoke(t *testing.T) {
	e := launchertest.New(t)
	l := process.New(e.Shim, e.Cgroups, e.Log)
	status, out := launchertest.Run(t, l, e.Request("sh", "-c", "echo $GREETING; cat /proc/self/cgroup; exit 7"))
	if ws := syscall.WaitStatus(status); ws.ExitStatus() != 7 {
		t.Error(ws, out)
	}
	t.Log(out)
}

func BenchmarkTrue(b *testing.B) {
	e := launchertest.New(b)
	l := process.New(e.Shim, e.Cgroups, e.Log)
	ctx := launchertest.Context(b)
	for b.Loop() {
		h, err := l.Create(ctx, e.Request("/bin/true"))
		if err != nil {
			b.Fatal(err)
		}
		if err := h.Start(ctx); err != nil {
			b.Fatal(err)
		}
		if _, known, err := h.Wait(ctx); err != nil || !known {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := h.Destroy(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
