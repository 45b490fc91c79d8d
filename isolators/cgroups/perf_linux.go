package cgroups

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/reflect/protoreflect"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// mostCounters bounds how many descriptors are open at a time: one for each event, core and container. Further
// containers are counted after the first ones.
const mostCounters = 512

// counter is one thing that the kernel counts; its name with underscores is its field in PerfStatistics.
type counter struct {
	name   string
	kind   uint32
	config uint64
}

// counters are all that there are, under the names of perf(1).
func counters() map[string]counter {
	m := map[string]counter{}
	add := func(kind uint32, config uint64, name string) { m[name] = counter{name, kind, config} }
	for config, name := range map[uint64]string{
		unix.PERF_COUNT_HW_CPU_CYCLES: "cycles", unix.PERF_COUNT_HW_INSTRUCTIONS: "instructions",
		unix.PERF_COUNT_HW_CACHE_REFERENCES: "cache-references", unix.PERF_COUNT_HW_CACHE_MISSES: "cache-misses",
		unix.PERF_COUNT_HW_BRANCH_INSTRUCTIONS: "branches", unix.PERF_COUNT_HW_BRANCH_MISSES: "branch-misses",
		unix.PERF_COUNT_HW_BUS_CYCLES: "bus-cycles", unix.PERF_COUNT_HW_REF_CPU_CYCLES: "ref-cycles",
		unix.PERF_COUNT_HW_STALLED_CYCLES_FRONTEND: "stalled-cycles-frontend", unix.PERF_COUNT_HW_STALLED_CYCLES_BACKEND: "stalled-cycles-backend",
	} {
		add(unix.PERF_TYPE_HARDWARE, config, name)
	}
	for config, name := range map[uint64]string{
		unix.PERF_COUNT_SW_CPU_CLOCK: "cpu-clock", unix.PERF_COUNT_SW_TASK_CLOCK: "task-clock", unix.PERF_COUNT_SW_PAGE_FAULTS: "page-faults",
		unix.PERF_COUNT_SW_PAGE_FAULTS_MIN: "minor-faults", unix.PERF_COUNT_SW_PAGE_FAULTS_MAJ: "major-faults",
		unix.PERF_COUNT_SW_CONTEXT_SWITCHES: "context-switches", unix.PERF_COUNT_SW_CPU_MIGRATIONS: "cpu-migrations",
		unix.PERF_COUNT_SW_ALIGNMENT_FAULTS: "alignment-faults", unix.PERF_COUNT_SW_EMULATION_FAULTS: "emulation-faults",
	} {
		add(unix.PERF_TYPE_SOFTWARE, config, name)
	}
	for cache, name := range map[uint64]string{
		unix.PERF_COUNT_HW_CACHE_L1D: "l1-dcache", unix.PERF_COUNT_HW_CACHE_L1I: "l1-icache", unix.PERF_COUNT_HW_CACHE_LL: "llc",
		unix.PERF_COUNT_HW_CACHE_DTLB: "dtlb", unix.PERF_COUNT_HW_CACHE_ITLB: "itlb", unix.PERF_COUNT_HW_CACHE_BPU: "branch", unix.PERF_COUNT_HW_CACHE_NODE: "node",
	} {
		for op, words := range map[uint64][2]string{
			unix.PERF_COUNT_HW_CACHE_OP_READ: {"loads", "load-misses"}, unix.PERF_COUNT_HW_CACHE_OP_WRITE: {"stores", "store-misses"},
			unix.PERF_COUNT_HW_CACHE_OP_PREFETCH: {"prefetches", "prefetch-misses"},
		} {
			for result, word := range words {
				add(unix.PERF_TYPE_HW_CACHE, cache|op<<8|uint64(result)<<16, name+"-"+word)
			}
		}
	}
	fields := (&mesosv1.PerfStatistics{}).ProtoReflect().Descriptor().Fields()
	maps.DeleteFunc(m, func(name string, _ counter) bool { return fields.ByName(fieldName(name)) == nil })
	return m
}

func fieldName(name string) protoreflect.Name {
	return protoreflect.Name(strings.ReplaceAll(name, "-", "_"))
}

// open begins to count in a cgroup on one core, or, with cgroup -1, in this process.
func (c counter) open(cgroup, core int) (int, error) {
	attr := unix.PerfEventAttr{
		Type: c.kind, Config: c.config, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})), //nolint:gosec // the kernel's own way to tell versions apart
		Read_format: unix.PERF_FORMAT_TOTAL_TIME_ENABLED | unix.PERF_FORMAT_TOTAL_TIME_RUNNING,
	}
	if cgroup < 0 {
		return unix.PerfEventOpen(&attr, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	}
	return unix.PerfEventOpen(&attr, cgroup, core, -1, unix.PERF_FLAG_PID_CGROUP|unix.PERF_FLAG_FD_CLOEXEC)
}

// count reads a counter. A core that has fewer registers than events counts each for a part of the time, and the kernel
// says which part.
func count(fd int) (float64, error) {
	var b [24]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return 0, err
	}
	value, enabled, running := binary.NativeEndian.Uint64(b[0:]), binary.NativeEndian.Uint64(b[8:]), binary.NativeEndian.Uint64(b[16:])
	if n != len(b) || running == 0 {
		return 0, nil // it never ran there
	}
	return float64(value) * float64(enabled) / float64(running), nil
}

// sampler counts events in containers from time to time.
type sampler struct {
	counters           []counter
	cores              []int
	interval, duration time.Duration

	stop context.CancelFunc
	done sync.WaitGroup

	mu   sync.Mutex // guards what follows
	dirs map[string]string
	last map[string]*mesosv1.PerfStatistics
}

// newSampler checks that the machine counts these events, and begins. The error names the first that it does not.
func newSampler(cfg *Config, before *sampler) (*sampler, error) {
	all, s := counters(), &sampler{
		interval: cfg.PerfInterval, duration: cfg.PerfDuration, dirs: map[string]string{}, last: map[string]*mesosv1.PerfStatistics{},
	}
	for _, name := range cfg.PerfEvents {
		c := all[name]
		fd, err := c.open(-1, -1)
		if err != nil {
			return nil, fmt.Errorf("%s: this machine does not count it: %w", name, err)
		}
		_ = unix.Close(fd)
		s.counters = append(s.counters, c)
	}
	var err error
	if s.cores, err = onlineCores(); err != nil {
		return nil, err
	}
	if before != nil {
		before.mu.Lock()
		s.dirs = maps.Clone(before.dirs)
		before.mu.Unlock()
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	s.done.Go(func() { s.run(ctx) })
	return s, nil
}

// end stops counting and waits until nothing is open any more.
func (s *sampler) end() {
	s.stop()
	s.done.Wait()
}

func (s *sampler) run(ctx context.Context) {
	t := time.NewTicker(s.interval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			s.round(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// round counts once in each container, in as many at a time as descriptors allow.
func (s *sampler) round(ctx context.Context) {
	s.mu.Lock()
	dirs := maps.Clone(s.dirs)
	s.mu.Unlock()
	atOnce := max(1, mostCounters/max(1, len(s.counters)*len(s.cores)))
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(dirs)), atOnce) {
		open := map[string][][]int{} // by container: descriptors by event
		for _, id := range ids {
			if fds, err := s.open(dirs[id]); err == nil { // else it has ended
				open[id] = fds
			}
		}
		begin := time.Now()
		select {
		case <-time.After(s.duration):
		case <-ctx.Done():
		}
		took := time.Since(begin)
		for id, fds := range open {
			p := s.read(fds)
			timestamp, seconds := float64(begin.UnixMicro())/1e6, took.Seconds()
			p.Timestamp, p.Duration = &timestamp, &seconds
			s.mu.Lock()
			if _, lives := s.dirs[id]; lives && ctx.Err() == nil {
				s.last[id] = p
			}
			s.mu.Unlock()
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// open opens all counters of a cgroup, or none.
func (s *sampler) open(dir string) (all [][]int, err error) {
	group, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer group.Close()
	for _, c := range s.counters {
		var fds []int
		for _, core := range s.cores {
			fd, err := c.open(int(group.Fd()), core)
			if errors.Is(err, unix.ENODEV) {
				continue // the core was taken away
			}
			if err != nil {
				closeAll(append(all, fds))
				return nil, err
			}
			fds = append(fds, fd)
		}
		all = append(all, fds)
	}
	return all, nil
}

func closeAll(all [][]int) {
	for _, fds := range all {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

// read sums each counter up over the cores and closes it. Clocks are in milliseconds, as perf(1) gives them.
func (s *sampler) read(all [][]int) *mesosv1.PerfStatistics {
	defer closeAll(all)
	p := &mesosv1.PerfStatistics{}
	m := p.ProtoReflect()
	for n, c := range s.counters {
		sum := 0.0
		for _, fd := range all[n] {
			v, err := count(fd)
			if err != nil {
				continue
			}
			sum += v
		}
		f := m.Descriptor().Fields().ByName(fieldName(c.name))
		if f.Kind() == protoreflect.DoubleKind {
			m.Set(f, protoreflect.ValueOfFloat64(sum/1e6))
		} else {
			m.Set(f, protoreflect.ValueOfUint64(uint64(sum)))
		}
	}
	return p
}

// follow and forget are for a nil sampler, too: nothing is counted then.
func (s *sampler) follow(id, dir string) {
	if s == nil || dir == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs[id] = dir
}

func (s *sampler) forget(id string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.dirs, id)
	delete(s.last, id)
}

// latest is what was counted last in a container, nil if nothing was.
func (s *sampler) latest(id string) *mesosv1.PerfStatistics {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last[id]
}
