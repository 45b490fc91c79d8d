package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/supervised"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// specVersion is the oldest that says all that is said here; older runtimes accept it too.
const specVersion = "1.0.2"

// maskedPaths and readonlyPaths are kept from containers with a root file system of their own: files
// below /proc and /sys that tell about, or change, the whole machine.
//
// Source: the lists that OCI runtimes generate by default.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// defaultMounts are those of a container with a root file system of its own.
func defaultMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
}

// spec converts a request to an OCI configuration. version is that of the machine's cgroups.
func spec(r *launcher.Request, version int) (*specs.Spec, error) {
	p := r.Proposal
	if p == nil {
		p = &containerv1.Proposal{}
	}
	ns, err := supervised.ParseNamespaces(p)
	if err != nil {
		return nil, err
	}
	process, err := processOf(r, p)
	if err != nil {
		return nil, err
	}
	linux, err := linuxOf(r, p, ns, version)
	if err != nil {
		return nil, err
	}
	mounts, err := mountsOf(r, p, ns)
	if err != nil {
		return nil, err
	}
	root := r.Container.GetRootfs()
	if root != "" {
		linux.RootfsPropagation = propagate(mounts)
	}
	if root == "" {
		root = filepath.Join(r.RunDir, supervised.RootDir)
	}
	return &specs.Spec{
		Version: specVersion, Process: process, Linux: linux, Mounts: mounts,
		Root: &specs.Root{Path: root, Readonly: r.ReadOnly && r.Container.GetRootfs() != ""}, Hostname: p.GetHostname(),
	}, nil
}

// commandLine is r's command line for a runtime, which calls a program by no other name than its path.
func commandLine(r *launcher.Request) []string {
	if r.Path == "" {
		return r.Argv
	}
	return append([]string{r.Path}, r.Argv[1:]...)
}

func processOf(r *launcher.Request, p *containerv1.Proposal) (*specs.Process, error) {
	proc := &specs.Process{
		User: specs.User{UID: r.User.UID, GID: r.User.GID, AdditionalGids: r.User.Groups},
		Args: commandLine(r), Env: r.Env, Cwd: r.Dir, NoNewPrivileges: p.GetNoNewPrivileges(),
	}
	if r.Streams == containerv1.Container_TERMINAL {
		proc.Terminal = true
		if r.Rows > 0 && r.Columns > 0 {
			proc.ConsoleSize = &specs.Box{Height: uint(r.Rows), Width: uint(r.Columns)}
		}
	}
	if proc.Cwd == "" {
		proc.Cwd = "/"
	}
	if !filepath.IsAbs(proc.Cwd) {
		return nil, fmt.Errorf("working directory %q, which is not absolute", proc.Cwd)
	}
	for _, l := range p.GetRlimits() {
		if _, err := supervised.Rlimit(l.GetType()); err != nil {
			return nil, err
		}
		proc.Rlimits = append(proc.Rlimits, specs.POSIXRlimit{Type: l.GetType(), Soft: l.GetSoft(), Hard: l.GetHard()})
	}
	if p.OomScoreAdj != nil {
		score := int(*p.OomScoreAdj)
		proc.OOMScoreAdj = &score
	}
	c := p.GetCapabilities()
	if c == nil {
		// No opinion: what a process of that user would have without a runtime.
		mask, err := supervised.BoundingSet()
		if err != nil {
			return nil, err
		}
		all := supervised.CapabilityNames(mask)
		proc.Capabilities = &specs.LinuxCapabilities{Bounding: all}
		if r.User.UID == 0 {
			proc.Capabilities.Effective, proc.Capabilities.Permitted = all, all
		}
		return proc, nil
	}
	for _, set := range [][]string{c.GetBounding(), c.GetEffective(), c.GetPermitted(), c.GetInheritable(), c.GetAmbient()} {
		if _, err := supervised.CapabilityMask(set); err != nil {
			return nil, err
		}
	}
	proc.Capabilities = &specs.LinuxCapabilities{
		Bounding: c.GetBounding(), Effective: c.GetEffective(), Permitted: c.GetPermitted(),
		Inheritable: c.GetInheritable(), Ambient: c.GetAmbient(),
	}
	return proc, nil
}

var namespaceNames = []struct {
	flag uint64
	name specs.LinuxNamespaceType
}{
	{unix.CLONE_NEWPID, specs.PIDNamespace},
	{unix.CLONE_NEWIPC, specs.IPCNamespace},
	{unix.CLONE_NEWUTS, specs.UTSNamespace},
	{unix.CLONE_NEWNET, specs.NetworkNamespace},
	{unix.CLONE_NEWCGROUP, specs.CgroupNamespace},
}

func linuxOf(r *launcher.Request, p *containerv1.Proposal, ns supervised.Namespaces, version int) (*specs.Linux, error) {
	l := &specs.Linux{
		Namespaces:    []specs.LinuxNamespace{{Type: specs.MountNamespace}},
		MaskedPaths:   slices.Clone(p.GetMaskedPaths()),
		ReadonlyPaths: slices.Clone(p.GetReadonlyPaths()),
		Resources:     resourcesOf(r, p, version),
	}
	if r.Container.GetCgroup() != "" && version != 0 {
		l.CgroupsPath = "/" + r.Container.GetCgroup()
	}
	for _, n := range namespaceNames {
		if ns.Own(n.flag) {
			l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: n.name, Path: ns.Join[n.flag]})
		}
	}
	if r.Container.GetRootfs() != "" && !r.Privileged {
		l.MaskedPaths = union(maskedPaths, l.MaskedPaths)
		l.ReadonlyPaths = union(readonlyPaths, l.ReadonlyPaths)
	}
	for name, value := range p.GetSysctls() {
		if err := supervised.CheckSysctl(name, ns); err != nil {
			return nil, err
		}
		if l.Sysctl == nil {
			l.Sysctl = map[string]string{}
		}
		l.Sysctl[name] = value
	}
	for _, d := range p.GetDevices() {
		mode, uid, gid := fileMode(d.GetMode()), d.GetUid(), d.GetGid()
		if !filepath.IsAbs(d.GetPath()) {
			return nil, fmt.Errorf("device %q, whose path is not absolute", d.GetPath())
		}
		l.Devices = append(l.Devices, specs.LinuxDevice{
			Path: d.GetPath(), Type: d.GetType(), Major: d.GetMajor(), Minor: d.GetMinor(), FileMode: &mode, UID: &uid, GID: &gid,
		})
	}
	if s := p.GetSeccomp(); s != nil {
		l.Seccomp = &specs.LinuxSeccomp{}
		if err := json.Unmarshal([]byte(s.GetOciJson()), l.Seccomp); err != nil {
			return nil, fmt.Errorf("seccomp profile: %w", err)
		}
	}
	return l, nil
}

func union(a, b []string) []string {
	list := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// resourcesOf repeats the cgroup's settings for the runtime, which would otherwise set its own, and
// gives it the device rules, which it alone can apply on version 2.
func resourcesOf(r *launcher.Request, p *containerv1.Proposal, version int) *specs.LinuxResources {
	c := p.GetCgroup()
	if c == nil {
		c = &containerv1.CgroupResources{}
	}
	res := &specs.LinuxResources{}
	if version == 0 {
		return res
	}
	if c.CpuShares != nil || c.CpuQuotaUs != nil || c.CpuPeriodUs != nil || c.CpusetCpus != "" || c.CpusetMems != "" {
		res.CPU = &specs.LinuxCPU{Shares: c.CpuShares, Quota: c.CpuQuotaUs, Period: c.CpuPeriodUs, Cpus: c.CpusetCpus, Mems: c.CpusetMems}
	}
	if c.MemoryLimitBytes != nil || c.MemoryReservationBytes != nil || c.MemorySwapBytes != nil {
		res.Memory = &specs.LinuxMemory{Limit: c.MemoryLimitBytes, Reservation: c.MemoryReservationBytes, Swap: c.MemorySwapBytes}
	}
	if c.PidsLimit != nil {
		limit := *c.PidsLimit
		res.Pids = &specs.LinuxPids{Limit: &limit}
	}
	switch {
	case len(c.DeviceRules) > 0:
		for _, d := range c.DeviceRules {
			rule := specs.LinuxDeviceCgroup{Allow: d.GetAllow(), Type: d.GetType(), Major: d.Major, Minor: d.Minor, Access: d.GetAccess()}
			if rule.Access == "" {
				rule.Access = "rwm"
			}
			res.Devices = append(res.Devices, rule)
		}
	case r.Container.GetRootfs() != "":
		res.Devices = append(res.Devices, specs.LinuxDeviceCgroup{Allow: false, Access: "rwm"})
	default: // the host's file system, and no opinion: as for any process of the host
		res.Devices = append(res.Devices, specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"})
	}
	for _, d := range p.GetDevices() {
		if d.GetType() == "p" {
			continue
		}
		major, minor := d.GetMajor(), d.GetMinor()
		rule := specs.LinuxDeviceCgroup{Allow: true, Type: d.GetType(), Major: &major, Minor: &minor, Access: d.GetAccess()}
		if rule.Access == "" {
			rule.Access = "rwm"
		}
		res.Devices = append(res.Devices, rule)
	}
	return res
}

// mountsOf are the container's mounts: the usual ones where it has a root file system of its own,
// unless something else is wanted there, then the proposal's in their order.
func mountsOf(r *launcher.Request, p *containerv1.Proposal, ns supervised.Namespaces) ([]specs.Mount, error) {
	var list []specs.Mount
	c := r.Container
	switch {
	case c.GetRootfs() != "":
		list = defaultMounts()
	default:
		// The host's devices as they are: without this the runtime makes nodes of its own in them.
		list = append(list, specs.Mount{Destination: "/dev", Type: "bind", Source: "/dev", Options: []string{"rbind"}})
		if ns.New&unix.CLONE_NEWPID != 0 {
			list = append(list, specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}})
		}
	}
	list = slices.DeleteFunc(list, func(m specs.Mount) bool {
		return slices.ContainsFunc(p.GetMounts(), func(o *containerv1.Mount) bool { return filepath.Clean(o.GetDestination()) == m.Destination })
	})
	for _, m := range p.GetMounts() {
		o := specs.Mount{Destination: m.GetDestination(), Type: m.GetType(), Source: m.GetSource(), Options: slices.Clone(m.GetOptions())}
		if !filepath.IsAbs(o.Destination) {
			return nil, fmt.Errorf("mount %q, whose destination is not absolute", o.Destination)
		}
		if o.Type == "bind" {
			if !filepath.IsAbs(o.Source) {
				return nil, fmt.Errorf("mount %s, whose source %q is not absolute", o.Destination, o.Source)
			}
			if !slices.Contains(o.Options, "bind") && !slices.Contains(o.Options, "rbind") {
				o.Options = append(o.Options, "rbind")
			}
		}
		if o.Source == "" {
			o.Source = o.Type
		}
		list = append(list, o)
	}
	return list, nil
}

func fileMode(bits uint32) os.FileMode {
	if bits == 0 {
		bits = 0o660
	}
	return os.FileMode(bits & 0o777)
}
