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
	mounts, err := mountsOf(r, ns)
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
		Resources:     resourcesOf(p, version),
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
		l.MaskedPaths = union(supervised.MaskedPaths(), l.MaskedPaths)
		l.ReadonlyPaths = union(supervised.ReadonlyPaths(), l.ReadonlyPaths)
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

// resourcesOf repeats the cgroup's settings for the runtime, which would otherwise set its own. The rules for devices
// come later.
func resourcesOf(p *containerv1.Proposal, version int) *specs.LinuxResources {
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
	return res
}

// deviceRules are rules in the runtime's words.
func deviceRules(rules []*containerv1.DeviceRule) []specs.LinuxDeviceCgroup {
	var list []specs.LinuxDeviceCgroup
	for _, d := range rules {
		rule := specs.LinuxDeviceCgroup{Allow: d.GetAllow(), Type: d.GetType(), Major: d.Major, Minor: d.Minor, Access: d.GetAccess()}
		if rule.Type == "a" {
			rule.Type = ""
		}
		list = append(list, rule)
	}
	return list
}

// mountsOf are the container's mounts in the runtime's words.
func mountsOf(r *launcher.Request, ns supervised.Namespaces) ([]specs.Mount, error) {
	var list []specs.Mount
	for _, m := range supervised.Mounts(r, ns) {
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
