package main

import (
	"bufio"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// libraryRows are figures that Go benchmarks of single packages measure: which benchmark, which of its figures, what the
// row is called, and its goal. Those of time are wall time in milliseconds.
var libraryRows = []struct {
	pkg, bench, unit string
	row              row
}{
	{"allocator", "Allocate10000x1000", "ns/op", row{name: "allocate/10000x1000", unit: "ms", goal: 100}},
	{"allocator", "Allocate20000x2000", "ns/op", row{name: "allocate/20000x2000", unit: "ms", goal: 350}},
	{"allocator", "AllocateLargeAndSmallQuota/drf", "ns/op", row{name: "allocate/large-quota", unit: "ms", goal: 1500}},
	{"allocator", "AllocateLargeAndSmallQuotaNothing/drf", "ns/op", row{name: "allocate/large-quota-nothing", unit: "ms", goal: 150}},
	{"allocator", "Allocate10000x1000OnePercent", "ns/op", row{name: "allocate/10000x1000-1%", unit: "ms", goal: 5}},
	{"allocator", "Allocate20000x2000OnePercent", "ns/op", row{name: "allocate/20000x2000-1%", unit: "ms", goal: 5}},
	{"master", "Placements/1_per_offer", "placements/s", row{name: "placements/in-memory-1-per-offer", unit: "/s", goal: -5000}},
	{"master", "Placements/10_per_offer", "placements/s", row{name: "placements/in-memory-10-per-offer", unit: "/s", goal: -5000}},
	{"master", "StatusUpdates", "updates/s", row{name: "updates/in-memory-master", unit: "/s"}},
	{"master", "StatusUpdates", "heap-MiB", row{name: "updates/in-memory-master-heap", unit: "MiB"}},
}

var libraryLine = regexp.MustCompile(`^Benchmark(\S+?)(-\d+)?\s+\d+\s+(.*)$`)

// library runs the Go benchmarks behind the rows that are wanted.
func (b *bench) library() error {
	for _, pkg := range []string{"allocator", "master"} {
		var names []string
		for _, r := range libraryRows {
			if name, _, _ := strings.Cut(r.bench, "/"); r.pkg == pkg && b.report.wants(r.row.name) {
				names = append(names, name)
			}
		}
		if len(names) == 0 {
			continue
		}
		cmd := exec.CommandContext(b.ctx, "go", "test", "./core/"+pkg, "-run", "^$", "-bench", "^Benchmark("+strings.Join(names, "|")+")$", "-benchtime", "5x", "-timeout", "10m")
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("benchmarks of %s: %w\n%s", pkg, err, out)
		}
		figures := map[string]map[string]float64{}
		for s := bufio.NewScanner(strings.NewReader(string(out))); s.Scan(); {
			m := libraryLine.FindStringSubmatch(s.Text())
			if m == nil {
				continue
			}
			figures[m[1]] = map[string]float64{}
			for fields := strings.Fields(m[3]); len(fields) >= 2; fields = fields[2:] {
				v, err := strconv.ParseFloat(fields[0], 64)
				if err != nil {
					return fmt.Errorf("benchmark line %q: %w", s.Text(), err)
				}
				figures[m[1]][fields[1]] = v
			}
		}
		for _, r := range libraryRows {
			if r.pkg != pkg || !b.report.wants(r.row.name) {
				continue
			}
			v, ok := figures[r.bench][r.unit]
			if !ok {
				return fmt.Errorf("benchmarks of %s: no %s of %s in\n%s", pkg, r.unit, r.bench, out)
			}
			if r.unit == "ns/op" {
				v /= 1e6
			}
			r.row.value = v
			b.report.add(r.row)
		}
	}
	return nil
}
