//go:build linux

package registry

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkFloor is the least that a durable write costs: appending 512 bytes and fdatasync.
func BenchmarkFloor(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "floor"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 512)
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	reportMedian(b, took)
}

func reportMedian(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
}

func BenchmarkApply(b *testing.B) {
	a := Agent{Info: agentInfo(string(make([]byte, 480)))}
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := open(b, b.TempDir())
			lead(b, s)
			var (
				wg   sync.WaitGroup
				next atomic.Int64
				mu   sync.Mutex
				all  []time.Duration
			)
			b.ResetTimer()
			for w := range writers {
				wg.Go(func() {
					var took []time.Duration
					for next.Add(1) <= int64(b.N) {
						began := time.Now()
						if err := s.Apply(context.Background(), []Change{PutAgent(fmt.Sprintf("S%d", w), a)}); err != nil {
							b.Error(err)
							return
						}
						took = append(took, time.Since(began))
					}
					mu.Lock()
					all = append(all, took...)
					mu.Unlock()
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
			reportMedian(b, all)
		})
	}
	b.Run("batches of 100", func(b *testing.B) {
		s := open(b, b.TempDir())
		lead(b, s)
		var batch []Change
		for i := range 100 {
			batch = append(batch, PutAgent(fmt.Sprintf("S%d", i), a))
		}
		for b.Loop() {
			if err := s.Apply(context.Background(), batch); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds(), "records/s")
	})
}

// BenchmarkOpen is from nothing to leading, in a new directory and in one with 10,000 agents.
func BenchmarkOpen(b *testing.B) {
	cycle := func(b *testing.B, dir string, load bool) {
		s, err := OpenEmbedded(context.Background(), EmbeddedConfig{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		lead(b, s)
		if load {
			if _, err := s.Load(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		s.Close()
		b.StartTimer()
	}
	b.Run("new", func(b *testing.B) {
		for i := range b.N {
			cycle(b, filepath.Join(b.TempDir(), fmt.Sprint(i)), false)
		}
	})
	b.Run("10000 agents", func(b *testing.B) {
		dir := b.TempDir()
		s := open(b, dir)
		lead(b, s)
		var all []Change
		for i := range 10000 {
			all = append(all, PutAgent(fmt.Sprintf("S%d", i), Agent{Info: agentInfo(string(make([]byte, 480)))}))
		}
		if err := s.Apply(context.Background(), all); err != nil {
			b.Fatal(err)
		}
		s.Close()
		b.ResetTimer()
		for range b.N {
			cycle(b, dir, true)
		}
	})
}
