package cni

import (
	"fmt"
	"slices"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// BenchmarkNetworks measures Prepare, which runs ADD, and Cleanup, which runs DEL, of one container at a time.
func BenchmarkNetworks(b *testing.B) {
	type kind struct {
		name, backend string
		info          *mesosv1.NetworkInfo
	}
	kinds := []kind{{"bridge", "none", named("mosaic")}}
	for _, backend := range backends(b) {
		kinds = append(kinds,
			kind{"bridge+masquerade/" + backend, backend, named("mosaic")},
			kind{"bridge+masquerade+port/" + backend, backend, published("mosaic", 18080, 80)})
	}
	for _, k := range kinds {
		b.Run(k.name, func(b *testing.B) {
			h := bridged(b, k.backend)
			var adds, dels []time.Duration
			for n := 0; b.Loop(); n++ {
				c := asking(fmt.Sprintf("bench-%d", n), k.info)
				begin := time.Now()
				r, err := h.prepare(c)
				if err != nil {
					b.Fatal(err)
				}
				adds = append(adds, time.Since(begin))
				begin = time.Now()
				h.cleanup(&isolatorv1.ContainerRecord{Container: c, State: r.GetState(), StateVersion: r.GetStateVersion()})
				dels = append(dels, time.Since(begin))
			}
			median := func(list []time.Duration) float64 {
				slices.Sort(list)
				return list[len(list)/2].Seconds() * 1000
			}
			b.ReportMetric(median(adds), "ms/add")
			b.ReportMetric(median(dels), "ms/del")
			b.ReportMetric(adds[0].Seconds()*1000, "ms/add-min")
			b.ReportMetric(dels[0].Seconds()*1000, "ms/del-min")
		})
	}
}

// BenchmarkUsage measures the statistics of 100 containers in one call.
func BenchmarkUsage(b *testing.B) {
	h := scripted(b, answers("10.1.2.3/16"))
	var records []*isolatorv1.ContainerRecord
	for n := range 100 {
		records = append(records, h.launch(asking(fmt.Sprintf("bench-%d", n), named("net"))))
	}
	for b.Loop() {
		a, err := h.Client.Isolator.Usage(h.context(), &isolatorv1.UsageRequest{Records: records})
		if err != nil || len(a.GetResults()) != len(records) {
			b.Fatalf("Usage = %d results, %v", len(a.GetResults()), err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(records)), "us/container")
}
