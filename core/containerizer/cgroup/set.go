package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Asks says whether r sets anything.
func Asks(r *containerv1.CgroupResources) bool {
	return r != nil && (r.CpuShares != nil || r.CpuQuotaUs != nil || r.CpuPeriodUs != nil || r.CpusetCpus != "" ||
		r.CpusetMems != "" || r.MemoryLimitBytes != nil || r.MemoryReservationBytes != nil || r.MemorySwapBytes != nil ||
		r.PidsLimit != nil || len(r.DeviceRules) > 0 || len(r.Files) > 0)
}

// Set writes those settings of r that are set. It stops at the first that cannot be written, and
// names it.
func (g *Group) Set(r *containerv1.CgroupResources) error {
	if !Asks(r) {
		return nil
	}
	var err error
	if g.h.legacy() {
		err = g.setV1(r)
	} else {
		err = g.setV2(r)
	}
	if err == nil {
		err = g.setFiles(r.Files)
	}
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", g.rel, err)
	}
	return nil
}

// put writes a setting of a version 1 controller, or of version 2 with controller "". The file's
// name tells the controller then.
func (g *Group) put(controller, file, value string) error {
	dir := filepath.Join(g.h.unified, g.rel)
	if controller != "" {
		if err := g.use(controller); err != nil {
			return fmt.Errorf("set %s: %w", file, err)
		}
		dir = filepath.Join(g.h.v1[controller], g.rel)
	}
	err := write(filepath.Join(dir, file), value)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set %s: this machine's %s controller does not have it", file, controllerOf(file))
	}
	if err != nil {
		return fmt.Errorf("set %s: %w", file, err)
	}
	return nil
}

func controllerOf(file string) string {
	c, _, _ := strings.Cut(file, ".")
	return c
}

func (g *Group) setV1(r *containerv1.CgroupResources) error {
	var todo []error
	add := func(err error) { todo = append(todo, err) }
	if r.CpuShares != nil {
		add(g.put("cpu", "cpu.shares", strconv.FormatUint(*r.CpuShares, 10)))
	}
	add(g.setQuotaV1(r))
	if r.CpusetCpus != "" {
		add(g.put("cpuset", "cpuset.cpus", r.CpusetCpus))
	}
	if r.CpusetMems != "" {
		add(g.put("cpuset", "cpuset.mems", r.CpusetMems))
	}
	add(g.setMemoryV1(r))
	if r.MemoryReservationBytes != nil {
		add(g.put("memory", "memory.soft_limit_in_bytes", strconv.FormatInt(*r.MemoryReservationBytes, 10)))
	}
	if r.PidsLimit != nil {
		add(g.put("pids", "pids.max", maximum(*r.PidsLimit)))
	}
	add(g.setDevices(r.DeviceRules))
	return first(todo)
}

// first returns the first error of a list. Settings do not depend on each other, so that all are
// tried: a container that fails to start leaves none of them, and an update does what it can.
func first(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// setQuotaV1 writes quota and period. The kernel compares both with the parent's at each write, so
// one order may be refused where the other is not.
func (g *Group) setQuotaV1(r *containerv1.CgroupResources) error {
	quota := func() error {
		if r.CpuQuotaUs == nil {
			return nil
		}
		return g.put("cpu", "cpu.cfs_quota_us", strconv.FormatInt(*r.CpuQuotaUs, 10))
	}
	if r.CpuPeriodUs == nil {
		return quota()
	}
	period := func() error {
		return g.put("cpu", "cpu.cfs_period_us", strconv.FormatUint(*r.CpuPeriodUs, 10))
	}
	if err := period(); err == nil {
		return quota()
	} else if r.CpuQuotaUs == nil || !errors.Is(err, syscall.EINVAL) {
		return err
	}
	if err := quota(); err != nil {
		return err
	}
	return period()
}

// setMemoryV1 writes the limits of memory, and of memory and swap together. The second may never
// be below the first, so the one that grows goes first.
func (g *Group) setMemoryV1(r *containerv1.CgroupResources) error {
	memory := func() error {
		if r.MemoryLimitBytes == nil {
			return nil
		}
		return g.put("memory", "memory.limit_in_bytes", strconv.FormatInt(*r.MemoryLimitBytes, 10))
	}
	if r.MemorySwapBytes == nil {
		return memory()
	}
	swap := func() error {
		return g.put("memory", "memory.memsw.limit_in_bytes", strconv.FormatInt(*r.MemorySwapBytes, 10))
	}
	grow := *r.MemorySwapBytes < 0
	if !grow {
		b, err := os.ReadFile(filepath.Join(g.dirs()["memory"], "memory.memsw.limit_in_bytes"))
		if err == nil {
			now, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			grow = err == nil && now < *r.MemorySwapBytes
		}
	}
	if grow {
		return first([]error{swap(), memory()})
	}
	return first([]error{memory(), swap()})
}

func (g *Group) setDevices(rules []*containerv1.DeviceRule) error {
	if len(rules) == 0 {
		return nil
	}
	if err := g.use("devices"); err != nil {
		return fmt.Errorf("set devices: %w", err)
	}
	open := map[string]*os.File{} // a container has a dozen rules and two files
	defer func() {
		for _, f := range open {
			_ = f.Close() // what was written is in effect
		}
	}()
	for _, d := range rules {
		file := "devices.deny"
		if d.Allow {
			file = "devices.allow"
		}
		line, err := deviceLine(d)
		if err == nil && open[file] == nil {
			open[file], err = os.OpenFile(filepath.Join(g.h.v1["devices"], g.rel, file), os.O_WRONLY, 0)
		}
		if err == nil {
			_, err = open[file].WriteString(line)
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", file, err)
		}
	}
	return nil
}

// deviceLine is a rule as the kernel takes it.
func deviceLine(d *containerv1.DeviceRule) (string, error) {
	number := func(n *int64) string {
		if n == nil {
			return "*"
		}
		return strconv.FormatInt(*n, 10)
	}
	access := d.Access
	if access == "" {
		access = "rwm"
	}
	switch d.Type {
	case "a":
		return "a", nil
	case "b", "c":
		return d.Type + " " + number(d.Major) + ":" + number(d.Minor) + " " + access, nil
	}
	return "", fmt.Errorf("device type %q, want a, b or c", d.Type)
}

func maximum(v int64) string {
	if v < 0 {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}

func (g *Group) setV2(r *containerv1.CgroupResources) error {
	var todo []error
	add := func(file, value string) { todo = append(todo, g.put("", file, value)) }
	if r.CpuShares != nil {
		add("cpu.weight", strconv.FormatUint(Weight(*r.CpuShares), 10))
	}
	if r.CpuQuotaUs != nil || r.CpuPeriodUs != nil {
		value := "max"
		if r.CpuQuotaUs != nil && *r.CpuQuotaUs > 0 {
			value = strconv.FormatInt(*r.CpuQuotaUs, 10)
		} else if r.CpuQuotaUs == nil {
			if b, err := os.ReadFile(filepath.Join(g.CloneInto(), "cpu.max")); err == nil {
				value, _, _ = strings.Cut(strings.TrimSpace(string(b)), " ")
			}
		}
		if r.CpuPeriodUs != nil {
			value += " " + strconv.FormatUint(*r.CpuPeriodUs, 10)
		}
		add("cpu.max", value)
	}
	if r.CpusetCpus != "" {
		add("cpuset.cpus", r.CpusetCpus)
	}
	if r.CpusetMems != "" {
		add("cpuset.mems", r.CpusetMems)
	}
	if r.MemoryLimitBytes != nil {
		add("memory.max", maximum(*r.MemoryLimitBytes))
	}
	if r.MemoryReservationBytes != nil {
		add("memory.low", maximum(*r.MemoryReservationBytes))
	}
	if r.MemorySwapBytes != nil {
		swap, err := swapOnly(r)
		if err != nil {
			return err
		}
		add("memory.swap.max", swap)
	}
	if r.PidsLimit != nil {
		add("pids.max", maximum(*r.PidsLimit))
	}
	if len(r.DeviceRules) > 0 {
		todo = append(todo, errors.New("device rules: on cgroup version 2 only an OCI runtime can apply them"))
	}
	return first(todo)
}

// swapOnly converts a limit of memory and swap together, as version 1 counts, to one of swap.
func swapOnly(r *containerv1.CgroupResources) (string, error) {
	if *r.MemorySwapBytes < 0 {
		return "max", nil
	}
	if r.MemoryLimitBytes == nil || *r.MemoryLimitBytes < 0 {
		return "", errors.New("memory and swap together are limited, but memory is not")
	}
	swap := *r.MemorySwapBytes - *r.MemoryLimitBytes
	if swap < 0 {
		return "", fmt.Errorf("memory and swap together: got %d, want at least the memory's %d", *r.MemorySwapBytes, *r.MemoryLimitBytes)
	}
	return strconv.FormatInt(swap, 10), nil
}

// Weight converts cpu shares, 2 to 262144, to a cpu weight, 1 to 10000, such that smallest,
// greatest and default (1024 and 100) meet.
//
// Source: the conversion of runc since 1.3, a quadratic fit in the logarithm.
func Weight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

var fileName = regexp.MustCompile(`^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)+$`)

// setFiles writes files by name: "memory/memory.swappiness" on version 1, "memory.high" on 2. The
// files of the group mechanism itself are not settings and are refused.
func (g *Group) setFiles(files map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		controller, file := "", name
		if g.h.legacy() {
			var ok bool
			if controller, file, ok = strings.Cut(name, "/"); !ok || controller == systemd {
				return fmt.Errorf("set %q: want controller/file on cgroup version 1", name)
			}
		}
		if !fileName.MatchString(file) || strings.HasPrefix(file, "cgroup.") {
			return fmt.Errorf("set %q: not the name of a setting", name)
		}
		if err := g.put(controller, file, files[name]); err != nil {
			return err
		}
	}
	return nil
}
