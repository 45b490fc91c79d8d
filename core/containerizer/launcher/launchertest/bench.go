package launchertest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
)

// BenchmarkLaunchTrue measures Create, Start and the end of /bin/true as Wait tells it, one after
// the other. Taking down is not counted. The median is reported: the mean of launches follows its
// tail.
func BenchmarkLaunchTrue(b *testing.B, with func(t testing.TB, e *Env) launcher.Launcher) {
	e := New(b)
	l := with(b, e)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // a busy machine is slow
	defer cancel()
	var took []time.Duration
	for b.Loop() {
		from := time.Now()
		h, err := l.Create(ctx, e.Request("/bin/true"))
		if err != nil {
			b.Fatal(err)
		}
		if err := h.Start(ctx); err != nil {
			b.Fatal(err)
		}
		if _, known, err := h.Wait(ctx); err != nil || !known {
			b.Fatalf("Wait: known %v, %v", known, err)
		}
		took = append(took, time.Since(from))
		b.StopTimer()
		if err := h.Destroy(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}
