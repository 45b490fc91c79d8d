package nvidiagpu

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

func itoa(n int) string { return strconv.Itoa(n) }

// mostSeries is how many series a module may have, by the contract. On a machine with more than that the last GPUs go
// without figures.
const mostSeries = 200

// startWatch begins to measure and to listen for errors, until unwatch.
func (i *Isolator) startWatch(l Library, pool []Device, every time.Duration) {
	i.unwatch()
	ctx, cancel := context.WithCancel(context.Background())
	wg := &sync.WaitGroup{}
	if every > 0 {
		wg.Go(func() {
			t := time.NewTicker(every)
			defer t.Stop()
			for {
				i.measure(l, pool)
				select {
				case <-t.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wg.Go(func() {
		if err := l.Faults(ctx, i.fault); err != nil && ctx.Err() == nil {
			i.events.Health(modulev1.Health_DEGRADED, "errors of GPUs are not heard of: "+err.Error())
		}
	})
	i.mu.Lock()
	defer i.mu.Unlock()
	i.stop, i.watching = cancel, wg
}

// unwatch ends what startWatch began and waits for its end.
func (i *Isolator) unwatch() {
	i.mu.Lock()
	stop, wg := i.stop, i.watching
	i.stop, i.watching = nil, nil
	i.mu.Unlock()
	if stop != nil {
		stop()
		wg.Wait()
	}
}

// measure sends the figures of all GPUs, with the container that has each.
func (i *Isolator) measure(l Library, pool []Device) {
	owners := i.table.owners()
	i.mu.Lock()
	faults := maps.Clone(i.errors)
	i.mu.Unlock()
	samples := []*modulev1.Metrics_Sample{{Name: "devices", Value: float64(len(pool))}, {Name: "devices_given", Value: float64(len(owners))}}
	for _, d := range pool {
		labels := map[string]string{"uuid": d.UUID, "gpu": itoa(d.Index), "container": owners[d.UUID]}
		if d.Parent != "" {
			labels["profile"] = d.Profile
		}
		f := l.Measure(d.UUID)
		of := d.UUID
		if d.Parent != "" {
			of = d.Parent
		}
		for _, name := range slices.Sorted(maps.Keys(f)) {
			samples = append(samples, &modulev1.Metrics_Sample{Name: name, Labels: labels, Value: f[name]})
		}
		samples = append(samples, &modulev1.Metrics_Sample{Name: "faults_total", Labels: labels, Value: faults[of], Counter: true})
	}
	if len(samples) > mostSeries {
		samples = samples[:mostSeries]
	}
	i.events.Metrics(samples...)
}

// fault notes an error that a GPU reported. One whose own fault it was is given to no further container; those that have
// it go on, for they may not have noticed, and who has lost something ends by itself.
func (i *Isolator) fault(f Fault) {
	i.mu.Lock()
	var hit []string
	for _, d := range i.all {
		gpu := d.UUID
		if d.Parent != "" {
			gpu = d.Parent
		}
		if (f.UUID == "" || f.UUID == gpu || f.UUID == d.UUID) && !slices.Contains(hit, gpu) {
			hit = append(hit, gpu)
		}
	}
	why := "XID " + strconv.FormatUint(f.XID, 10)
	if f.XID == 0 {
		why = "an uncorrectable memory error"
	}
	for _, gpu := range hit {
		i.errors[gpu]++
		if f.Fatal() {
			i.broken[gpu] = why
		}
	}
	var words []string
	for _, gpu := range slices.Sorted(maps.Keys(i.broken)) {
		words = append(words, gpu+" reported "+i.broken[gpu])
	}
	i.mu.Unlock()
	if len(words) > 0 && f.Fatal() {
		i.events.Health(modulev1.Health_DEGRADED, strings.Join(words, "; ")+": no container gets it until the module is configured anew")
	}
}
