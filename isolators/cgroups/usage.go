package cgroups

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// ticksPerSecond is the unit of cpuacct.stat; Linux has shown 100 to user space on every platform Go runs on.
const ticksPerSecond = 100

// Usage reads the statistics of many containers.
func (i *Isolator) Usage(ctx context.Context, r *isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error) {
	results := map[string]*isolatorv1.UsageResult{}
	for _, rec := range r.GetRecords() {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		g := groupOf(rec)
		if len(g) == 0 {
			continue
		}
		id := rec.GetContainer().GetId()
		s := statistics(g)
		if s == nil {
			results[id] = &isolatorv1.UsageResult{Error: "the container's cgroup is gone"}
			continue
		}
		s.Perf = i.perf.Load().latest(id)
		cpus, _ := sum(rec.GetContainer().GetResources(), "cpus")
		s.CpusSoftLimit = &cpus
		limit, ok := rec.GetContainer().GetLimits()["cpus"]
		if !ok {
			limit = cpus
		}
		s.CpusLimit = &limit
		results[id] = &isolatorv1.UsageResult{Statistics: s}
	}
	return &isolatorv1.UsageResponse{Results: results}, nil
}

// statistics reads one cgroup; nil if it does not exist any more.
func statistics(g group) *mesosv1.ResourceStatistics {
	s := &mesosv1.ResourceStatistics{Timestamp: proto.Float64(float64(time.Now().UnixMicro()) / 1e6)}
	if g.unified() {
		return g.statisticsV2(s)
	}
	return g.statisticsV1(s)
}

func (g group) statisticsV1(s *mesosv1.ResourceStatistics) *mesosv1.ResourceStatistics {
	found := false
	if acct := g.fields("cpuacct", "cpuacct.stat"); len(acct) > 0 {
		found = true
		s.CpusUserTimeSecs = proto.Float64(float64(acct["user"]) / ticksPerSecond)
		s.CpusSystemTimeSecs = proto.Float64(float64(acct["system"]) / ticksPerSecond)
	}
	if cpu := g.fields("cpu", "cpu.stat"); len(cpu) > 0 {
		found = true
		g.throttling(s, cpu, time.Duration(cpu["throttled_time"]))
	}
	if used, ok := g.number("memory", "memory.usage_in_bytes"); ok {
		found = true
		s.MemTotalBytes = proto.Uint64(uint64(used))
		m := g.fields("memory", "memory.stat")
		s.MemRssBytes = proto.Uint64(m["total_rss"])
		s.MemAnonBytes = proto.Uint64(m["total_rss"])
		s.MemCacheBytes = proto.Uint64(m["total_cache"])
		s.MemFileBytes = proto.Uint64(m["total_cache"])
		s.MemMappedFileBytes = proto.Uint64(m["total_mapped_file"])
		s.MemSwapBytes = proto.Uint64(m["total_swap"])
		s.MemUnevictableBytes = proto.Uint64(m["total_unevictable"])
		if n, ok := g.number("memory", "memory.memsw.usage_in_bytes"); ok {
			s.MemTotalMemswBytes = proto.Uint64(uint64(n))
		}
		if n, ok := g.number("memory", "memory.soft_limit_in_bytes"); ok && n >= 0 {
			s.MemSoftLimitBytes = proto.Uint64(uint64(n))
		}
	}
	if !found {
		return nil
	}
	g.common(s)
	if procs, ok := g.lines("tasks"); ok {
		s.Threads = &procs
	}
	return s
}

func (g group) statisticsV2(s *mesosv1.ResourceStatistics) *mesosv1.ResourceStatistics {
	cpu := g.fields("cpu", "cpu.stat")
	if len(cpu) == 0 {
		return nil
	}
	s.CpusUserTimeSecs = proto.Float64(float64(cpu["user_usec"]) / 1e6)
	s.CpusSystemTimeSecs = proto.Float64(float64(cpu["system_usec"]) / 1e6)
	g.throttling(s, cpu, time.Duration(cpu["throttled_usec"])*time.Microsecond)
	if used, ok := g.number("memory", "memory.current"); ok {
		s.MemTotalBytes = proto.Uint64(uint64(used))
		m := g.fields("memory", "memory.stat")
		s.MemRssBytes = proto.Uint64(m["anon"])
		s.MemAnonBytes = proto.Uint64(m["anon"])
		s.MemCacheBytes = proto.Uint64(m["file"])
		s.MemFileBytes = proto.Uint64(m["file"])
		s.MemMappedFileBytes = proto.Uint64(m["file_mapped"])
		s.MemUnevictableBytes = proto.Uint64(m["unevictable"])
		if n, ok := g.number("memory", "memory.swap.current"); ok {
			s.MemSwapBytes = proto.Uint64(uint64(n))
			s.MemTotalMemswBytes = proto.Uint64(uint64(n + used))
		}
		if n, ok := g.number("memory", "memory.low"); ok && n >= 0 {
			s.MemSoftLimitBytes = proto.Uint64(uint64(n))
		}
	}
	g.common(s)
	if n, ok := g.number("pids", "pids.current"); ok && n >= 0 {
		s.Threads = proto.Uint32(uint32(n))
	}
	return s
}

func (g group) throttling(s *mesosv1.ResourceStatistics, cpu map[string]uint64, throttled time.Duration) {
	s.CpusNrPeriods = proto.Uint32(uint32(cpu["nr_periods"]))
	s.CpusNrThrottled = proto.Uint32(uint32(cpu["nr_throttled"]))
	s.CpusThrottledTimeSecs = proto.Float64(throttled.Seconds())
}

// common reads what both versions have.
func (g group) common(s *mesosv1.ResourceStatistics) {
	if n, ok := g.memoryLimit(); ok && n >= 0 {
		s.MemLimitBytes = proto.Uint64(uint64(n))
	}
	s.BlkioStatistics = g.blkio()
	if procs, ok := g.lines("cgroup.procs"); ok {
		s.Processes = &procs
	}
}

// lines counts the lines of a file that every controller's folder has, here and in the groups nested in it.
func (g group) lines(file string) (uint32, bool) {
	for _, controller := range []string{"pids", "memory", "cpu"} {
		if dir := g.path(controller); dir != "" {
			if n, ok := linesBelow(dir, file, 0); ok {
				return n, true
			}
		}
	}
	return 0, false
}

// deepest bounds how far down nested groups are looked into; containers are nested far less deep.
const deepest = 16

func linesBelow(dir, file string, depth int) (uint32, bool) {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, false
	}
	n := uint32(strings.Count(string(text), "\n"))
	info, err := os.Lstat(dir)
	if err != nil || depth == deepest {
		return n, true
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink == 2 {
		return n, true // nothing is nested: a control group has exactly two links then
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return n, true
	}
	for _, e := range entries {
		if e.IsDir() {
			more, _ := linesBelow(filepath.Join(dir, e.Name()), file, depth+1)
			n += more
		}
	}
	return n, true
}
