package cgroups

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// IO are limits of one block device, for each container.
type IO struct {
	Device    string      `hcl:"device" doc:"Block device, such as /dev/sda; the whole disk, not a part of it."`
	ReadBPS   module.Size `hcl:"read_per_second,optional" doc:"Most bytes read in a second; 0 is no limit."`
	WriteBPS  module.Size `hcl:"write_per_second,optional" doc:"Most bytes written in a second; 0 is no limit."`
	ReadIOPS  int         `hcl:"reads_per_second,optional" doc:"Most reads in a second; 0 is no limit." min:"0"`
	WriteIOPS int         `hcl:"writes_per_second,optional" doc:"Most writes in a second; 0 is no limit." min:"0"`
}

// hugePages is a size of huge pages as the kernel names it.
var hugePages = regexp.MustCompile(`^[0-9]{1,4}(KB|MB|GB)$`)

// check is what a schema cannot say.
func check(c *Config) error {
	var errs []error
	if c.ExclusiveCores != "" {
		if _, err := parseCores(c.ExclusiveCores); err != nil {
			errs = append(errs, module.Wrong("exclusive_cores", "%v", err))
		}
	}
	for size, limit := range c.HugetlbLimits {
		if !hugePages.MatchString(size) {
			errs = append(errs, module.Wrong("hugetlb_limits", "got pages of %.40q, want a size such as 2MB or 1GB", size))
		} else if _, err := resources.ParseBytes(limit); err != nil {
			errs = append(errs, module.Wrong("hugetlb_limits", "pages of %s: %v", size, err))
		}
	}
	if _, err := c.classes(); err != nil {
		errs = append(errs, err)
	}
	for n, text := range c.AllowedDevices {
		if _, err := parseDevice(text); err != nil {
			errs = append(errs, module.Wrong(fmt.Sprintf("allowed_devices[%d]", n), "%v", err))
		}
	}
	if len(c.AllowedDevices) > 0 && !c.RestrictDevices {
		errs = append(errs, module.Wrong("allowed_devices", "got a list, and all devices are allowed without restrict_devices"))
	}
	all := counters()
	for n, name := range c.PerfEvents {
		if _, ok := all[name]; !ok {
			errs = append(errs, module.Wrong(fmt.Sprintf("perf_events[%d]", n), "got %.40q, want one of %s", name, strings.Join(slices.Sorted(maps.Keys(all)), ", ")))
		}
		if slices.Index(c.PerfEvents, name) != n {
			errs = append(errs, module.Wrong(fmt.Sprintf("perf_events[%d]", n), "got %.40q a second time", name))
		}
	}
	if len(c.PerfEvents) > 0 && c.PerfDuration > c.PerfInterval {
		errs = append(errs, module.Wrong("perf_duration", "got %s, want no more than perf_interval, %s", c.PerfDuration, c.PerfInterval))
	}
	if c.IO != nil && !filepath.IsAbs(c.IO.Device) {
		errs = append(errs, module.Wrong("io.device", "got %q, want an absolute path", c.IO.Device))
	}
	return errors.Join(errs...)
}

// classes are the network classes that containers get, one each: primary:first to primary:last.
type classes struct{ primary, first, last uint32 }

func (c classes) empty() bool { return c.primary == 0 }

// classes reads the handles as tc and Mesos write them: 0x0010, and 0x0001,0xffff.
func (c *Config) classes() (classes, error) {
	if c.NetClsPrimary == "" {
		if c.NetClsSecondary != "" {
			return classes{}, module.Wrong("net_cls_secondary_handles", "got handles, and they need net_cls_primary_handle")
		}
		return classes{}, nil
	}
	handle := func(text string) (uint32, error) {
		n, err := strconv.ParseUint(text, 0, 16)
		if err != nil || n == 0 {
			return 0, fmt.Errorf("got %.40q, want a number from 0x0001 to 0xffff", text)
		}
		return uint32(n), nil
	}
	p, err := handle(c.NetClsPrimary)
	if err != nil {
		return classes{}, module.Wrong("net_cls_primary_handle", "%v", err)
	}
	set := classes{primary: p, first: 1, last: 0xffff}
	if c.NetClsSecondary != "" {
		a, b, ok := strings.Cut(c.NetClsSecondary, ",")
		var errA, errB error
		set.first, errA = handle(strings.TrimSpace(a))
		set.last, errB = handle(strings.TrimSpace(b))
		if !ok || errA != nil || errB != nil || set.last < set.first {
			return classes{}, module.Wrong("net_cls_secondary_handles", "got %.40q, want first and last as in 0x0001,0xffff", c.NetClsSecondary)
		}
	}
	return set, nil
}

// pick gives the container's own class, or the lowest that is free; 0 if there are none at all.
func (c classes) pick(before grant, others []grant) (uint32, error) {
	if c.empty() {
		return 0, nil
	}
	taken := map[uint32]bool{}
	for _, g := range others {
		taken[g.ClassID] = true
	}
	low, high := c.primary<<16|c.first, c.primary<<16|c.last
	if before.ClassID >= low && before.ClassID <= high && !taken[before.ClassID] {
		return before.ClassID, nil
	}
	for id := uint64(low); id <= uint64(high); id++ {
		if !taken[uint32(id)] {
			return uint32(id), nil
		}
	}
	return 0, status.Errorf(codes.ResourceExhausted, "all network classes of handle %#04x are taken", c.primary)
}

// furnish adds to a container's settings what the configuration says of the further subsystems. What the machine lacks
// fails the launch when the agent writes it.
func (i *Isolator) furnish(set *containerv1.CgroupResources, c *containerv1.Container, had grant) error {
	cfg, v2 := i.config.Get(), i.version.Load() == 2
	file := func(v1, v2Name, value string) {
		name := v1
		if v2 {
			name = v2Name
		}
		if set.Files == nil {
			set.Files = map[string]string{}
		}
		set.Files[name] = value
	}
	for _, size := range slices.Sorted(maps.Keys(cfg.HugetlbLimits)) {
		limit, err := resources.ParseBytes(cfg.HugetlbLimits[size])
		if err != nil {
			return module.FailedPrecondition("hugetlb_limits: %v", err)
		}
		file("hugetlb/hugetlb."+size+".limit_in_bytes", "hugetlb."+size+".max", strconv.FormatUint(uint64(limit), 10))
	}
	if cfg.IO != nil {
		if err := cfg.IO.write(file, v2); err != nil {
			return err
		}
	}
	if had.ClassID != 0 {
		if v2 {
			return module.FailedPrecondition("net_cls_primary_handle: cgroup version 2 has no network classes")
		}
		file("net_cls/net_cls.classid", "", strconv.FormatUint(uint64(had.ClassID), 10))
	}
	if cfg.RestrictDevices && c.GetParentId() == "" {
		rules, err := deviceRules(cfg.AllowedDevices)
		if err != nil {
			return err
		}
		set.DeviceRules = rules
	}
	return nil
}

// write sets the limits of one device. The kernel takes one device in each write, and the agent writes each file once.
func (d *IO) write(file func(v1, v2, value string), v2 bool) error {
	var st unix.Stat_t
	if err := unix.Stat(d.Device, &st); err != nil {
		return module.FailedPrecondition("io.device %s: %v", d.Device, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return module.FailedPrecondition("io.device %s: it is no block device", d.Device)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	var words []string
	for _, l := range []struct {
		v1, v2 string
		value  uint64
	}{
		{"read_bps_device", "rbps", uint64(d.ReadBPS)}, {"write_bps_device", "wbps", uint64(d.WriteBPS)},
		{"read_iops_device", "riops", uint64(d.ReadIOPS)}, {"write_iops_device", "wiops", uint64(d.WriteIOPS)},
	} {
		if l.value == 0 {
			continue
		}
		words = append(words, fmt.Sprintf("%s=%d", l.v2, l.value))
		if !v2 {
			file("blkio/blkio.throttle."+l.v1, "", fmt.Sprintf("%s %d", number, l.value))
		}
	}
	if v2 && len(words) > 0 {
		file("", "io.max", number+" "+strings.Join(words, " "))
	}
	return nil
}

// usual are the devices that every container may open: making nodes, which opens nothing; console, terminals, ptmx and
// pts, tun, null, zero, full, random, urandom.
//
// Source: the list of Mesos (src/slave/containerizer/mesos/isolators/cgroups/subsystems/devices.cpp there).
var usual = []string{
	"c *:* m", "b *:* m", "c 5:1 rwm", "c 4:0 rwm", "c 4:1 rwm", "c 136:* rwm", "c 5:2 rwm", "c 10:200 rwm",
	"c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 5:0 rwm", "c 1:9 rwm", "c 1:8 rwm",
}

// deviceRules are a list of what may be opened: the usual devices and further ones.
func deviceRules(more []string) ([]*containerv1.DeviceRule, error) {
	rules := []*containerv1.DeviceRule{{Type: "a"}}
	for _, text := range slices.Concat(usual, more) {
		d, err := parseDevice(text)
		if err != nil {
			return nil, module.FailedPrecondition("allowed_devices: %v", err)
		}
		r, err := d.rule()
		if err != nil {
			return nil, module.FailedPrecondition("allowed_devices: %v", err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// device is one entry of a list of devices: a path, or a type with numbers.
type device struct {
	path         string
	kind         string
	major, minor *int64 // nil is any
	access       string
}

// parseDevice reads "/dev/fuse", "/dev/fuse:rw" or "c 10:229 rw", where a number may be *.
func parseDevice(text string) (device, error) {
	wrong := fmt.Errorf("got %.60q, want a path with access as in /dev/fuse:rw, or numbers as in c 10:229 rw", text)
	if strings.HasPrefix(text, "/") {
		path, access, ok := strings.Cut(text, ":")
		if !ok {
			access = "rw"
		}
		if access == "" || strings.Trim(access, "rwm") != "" || filepath.Clean(path) != path {
			return device{}, wrong
		}
		return device{path: path, access: access}, nil
	}
	parts := strings.Fields(text)
	if len(parts) != 3 || parts[0] != "c" && parts[0] != "b" || strings.Trim(parts[2], "rwm") != "" {
		return device{}, wrong
	}
	d := device{kind: parts[0], access: parts[2]}
	major, minor, ok := strings.Cut(parts[1], ":")
	if !ok {
		return device{}, wrong
	}
	for _, n := range []struct {
		text string
		to   **int64
	}{{major, &d.major}, {minor, &d.minor}} {
		if n.text == "*" {
			continue
		}
		v, err := strconv.ParseUint(n.text, 10, 20)
		if err != nil {
			return device{}, wrong
		}
		number := int64(v)
		*n.to = &number
	}
	return d, nil
}

// rule looks a path up on the machine.
func (d device) rule() (*containerv1.DeviceRule, error) {
	r := &containerv1.DeviceRule{Allow: true, Type: d.kind, Major: d.major, Minor: d.minor, Access: d.access}
	if d.path == "" {
		return r, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(d.path, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", d.path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		r.Type = "c"
	case unix.S_IFBLK:
		r.Type = "b"
	default:
		return nil, fmt.Errorf("%s is no device", d.path)
	}
	major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	r.Major, r.Minor = &major, &minor
	return r, nil
}
