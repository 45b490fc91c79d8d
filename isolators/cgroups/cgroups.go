// Package cgroups is the isolator for what cgroups limit: processor time and cores, memory, processes, devices, huge
// pages, disks, network classes. It turns what a container asks for into settings of its cgroup, which the agent writes;
// it reads statistics, and it reports containers that ran out of memory.
//
// It promises the figures of Mesos (shares, quota, limits) on cgroup versions 1 and 2. What it must know of a container
// stands in the cgroup's own files, whose paths come with each call; which cores and network class a container has to
// itself is its only state, and the agent keeps that.
package cgroups

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// Figures of Mesos (src/slave/containerizer/mesos/isolators/cgroups/constants.hpp there).
const (
	sharesPerCPU          = 1024
	sharesPerRevocableCPU = 10
	minShares             = 2
	periodUs              = 100_000
	minQuotaUs            = 1000
	minMemory             = 32 << 20
	megabyte              = 1 << 20
)

// Config is what the operator may set.
type Config struct {
	CPUHardLimit         bool `hcl:"cpu_hard_limit,optional" doc:"A container may not use more than the cpus it asked for, even when they are idle."`
	LimitSwap            bool `hcl:"limit_swap,optional" doc:"The memory limit holds for memory and swap together."`
	RevocableLowPriority bool `hcl:"revocable_cpu_low_priority,optional" doc:"Containers on revocable cpus get a hundredth of the weight."`
	PidsLimit            int  `hcl:"pids_limit,optional" doc:"Most processes and threads of a container; 0 is no limit." min:"0"`

	ExclusiveCores  string            `hcl:"exclusive_cores,optional" doc:"Cores that belong to one container at a time, such as 2-7; all others share the rest."`
	ExclusiveFor    string            `hcl:"exclusive_cores_for,optional" doc:"Who has such cores: those that ask by the label mosaic.cpus=exclusive, or all with whole cpus." oneof:"asked,whole"`
	Patience        time.Duration     `hcl:"patience,optional" doc:"How long a launch waits for cores whose container has ended and is not cleaned up yet." min:"0s" max:"10s"`
	HugetlbLimits   map[string]string `hcl:"hugetlb_limits,optional" doc:"Most huge pages of a container in bytes, by their size."`
	NetClsPrimary   string            `hcl:"net_cls_primary_handle,optional" doc:"Upper half of the network class of each container, such as 0x0010; none when empty."`
	NetClsSecondary string            `hcl:"net_cls_secondary_handles,optional" doc:"First and last lower half of network classes, such as 0x0001,0xffff."`
	RestrictDevices bool              `hcl:"restrict_devices,optional" doc:"Containers can open the usual devices and those listed, and no other."`
	AllowedDevices  []string          `hcl:"allowed_devices,optional" doc:"Further devices that they can open, as /dev/fuse:rw or c 10:229 rw."`
	PerfEvents      []string          `hcl:"perf_events,optional" doc:"Events to count in each container, by the names of perf(1), such as cycles."`
	PerfInterval    time.Duration     `hcl:"perf_interval,optional" doc:"Time between two counts." min:"1ms"`
	PerfDuration    time.Duration     `hcl:"perf_duration,optional" doc:"How long one count lasts." min:"1ms"`
	IO              *IO               `hcl:"io,block" doc:"Limits of one block device for each container."`
}

// Isolator is the module.
type Isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config *module.Config[Config]
	events *module.Events

	grants *grants

	machine atomic.Uint64 // the machine's memory in bytes
	version atomic.Uint32 // of cgroups
	cores   atomic.Pointer[cores]
	perf    atomic.Pointer[sampler] // nil where nothing is counted

	mu    sync.Mutex // guards watch
	watch *watcher   // nil until a container is to be watched
}

// New returns the module with its defaults.
func New() *Isolator {
	return &Isolator{
		config: module.NewConfig(Config{RevocableLowPriority: true, ExclusiveFor: exclusiveAsked, Patience: 5 * time.Second, PerfInterval: time.Minute, PerfDuration: 10 * time.Second}, check),
		events: module.NewEvents(), grants: newGrants(),
	}
}

// Info describes the module.
func (i *Isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "cgroups", Version: "1.1.0", Doc: "limits of processor time, memory, processes and devices, and their use",
		Calls: []string{"isolate", "update", "usage", "status"}, Powers: []string{"cgroup", "oom_score"},
		Nesting: true, Standalone: true, MinState: stateVersion, MaxState: stateVersion, Config: i.config, Events: i.events, Configured: i.configured,
	}
}

func (i *Isolator) configured(_ context.Context, node *modulev1.NodeFacts) error {
	set := cores{}
	if list := i.config.Get().ExclusiveCores; list != "" {
		online, err := onlineCores()
		if err != nil {
			return module.Wrong("exclusive_cores", "read which cores this machine has: %v", err)
		}
		if set, err = divide(list, online); err != nil {
			return err
		}
	}
	if err := i.count(node); err != nil {
		return err
	}
	i.cores.Store(&set)
	i.version.Store(node.GetCgroupVersion())
	i.machine.Store(node.GetMemBytes())
	if node.GetCgroupVersion() == 0 {
		i.events.Health(modulev1.Health_DEGRADED, "this machine gives the agent no cgroups: limits cannot be set")
	} else {
		i.events.Health(modulev1.Health_OK, "")
	}
	return nil
}

// count begins to count events anew, as the configuration says.
func (i *Isolator) count(node *modulev1.NodeFacts) error {
	cfg, before := i.config.Get(), i.perf.Load()
	var next *sampler
	if len(cfg.PerfEvents) > 0 {
		if node.GetCgroupVersion() != 2 && node.GetCgroupRoots()["perf_event"] == "" {
			return module.Wrong("perf_events", "got events, and containers have a group in which they are counted on cgroup version 2 only")
		}
		var err error
		if next, err = newSampler(cfg, before); err != nil {
			return module.Wrong("perf_events", "%v", err)
		}
	}
	i.perf.Store(next)
	if before != nil {
		before.end()
	}
	return nil
}

// sum adds a scalar over a container's resources; revocable is true if there is some and all of it is revocable.
func sum(list []*mesosv1.Resource, name string) (total float64, revocable bool) {
	revocable = true
	for _, r := range list {
		if r.GetName() == name && r.GetType() == mesosv1.Value_SCALAR {
			total += r.GetScalar().GetValue()
			revocable = revocable && r.Revocable != nil
		}
	}
	return total, revocable && total > 0
}

// own says whether a container has limits of its own. Nested ones have the parent's unless they ask not to share its
// cgroup, debug containers always: the cgroup that they live in is there to be emptied.
func own(c *containerv1.Container) bool {
	if c.GetParentId() == "" {
		return true
	}
	return c.GetClass() != containerv1.Container_DEBUG && !c.GetContainerInfo().GetLinuxInfo().GetShareCgroups()
}

// oomScore makes the kernel prefer containers that may use more memory than they asked for, those that asked for least
// first. Nil leaves the score as it is. Custom executors keep theirs, since their tasks would die with them.
func (i *Isolator) oomScore(c *containerv1.Container) *int32 {
	mem, _ := sum(c.GetResources(), "mem")
	limit, ok := c.GetLimits()["mem"]
	total := float64(i.machine.Load())
	if !ok || !(limit > mem) || total == 0 || c.GetTaskId() == "" && c.GetParentId() == "" {
		return nil
	}
	// In thousandths of the machine's memory, as the kernel counts it.
	score := int32(min(max(1000-1000*mem*megabyte/total, 2), 999))
	return &score
}

// settings are those of the container's own cgroup.
func (i *Isolator) settings(c *containerv1.Container) (*containerv1.CgroupResources, error) {
	cfg := i.config.Get()
	set := &containerv1.CgroupResources{}

	cpus, revocable := sum(c.GetResources(), "cpus")
	if err := amount("cpus", cpus); err != nil {
		return nil, err
	}
	if cpus > 0 {
		per := float64(sharesPerCPU)
		if revocable && cfg.RevocableLowPriority {
			per = sharesPerRevocableCPU
		}
		shares := max(uint64(cpus*per), minShares)
		set.CpuShares = &shares
	}
	limit, explicit := c.GetLimits()["cpus"]
	if !explicit && cfg.CPUHardLimit {
		limit = cpus
	}
	if explicit || cfg.CPUHardLimit {
		if !math.IsInf(limit, 1) {
			if err := amount("limit of cpus", limit); err != nil {
				return nil, err
			}
		}
		quota, period := int64(-1), uint64(periodUs)
		if limit < math.MaxInt64/periodUs && limit > 0 {
			quota = max(int64(limit*periodUs), minQuotaUs)
		}
		set.CpuQuotaUs, set.CpuPeriodUs = &quota, &period
	}

	mem, _ := sum(c.GetResources(), "mem")
	if err := amount("mem", mem); err != nil {
		return nil, err
	}
	hard, explicit := c.GetLimits()["mem"]
	if !explicit {
		hard = mem
	}
	if mem > 0 {
		soft := bytes(mem)
		set.MemoryReservationBytes = &soft
	}
	if hard > 0 {
		bound := int64(-1)
		if !math.IsInf(hard, 1) {
			if err := amount("limit of mem", hard); err != nil {
				return nil, err
			}
			bound = bytes(hard)
		}
		set.MemoryLimitBytes = &bound
		if cfg.LimitSwap {
			set.MemorySwapBytes = &bound
		}
	}
	if n := int64(cfg.PidsLimit); n > 0 {
		set.PidsLimit = &n
	}
	return set, nil
}

// amount refuses what no machine has: a request that overflows would become a limit that does not limit.
func amount(what string, v float64) error {
	if math.IsNaN(v) || v < 0 || v > 1<<40 {
		return module.InvalidArgument("%s: got %v, want a sensible amount", what, v)
	}
	return nil
}

func bytes(megabytes float64) int64 { return max(int64(megabytes*megabyte), minMemory) }

// Prepare proposes the settings.
func (i *Isolator) Prepare(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	c := r.GetContainer()
	answer := &isolatorv1.PrepareResponse{Proposal: &containerv1.Proposal{OomScoreAdj: i.oomScore(c)}}
	if !own(c) {
		return answer, nil
	}
	set, had, err := i.all(ctx, c)
	if err != nil {
		return nil, err
	}
	answer.Proposal.Cgroup = set
	if answer.State, err = had.marshal(); err != nil {
		return nil, err
	}
	if len(answer.State) > 0 {
		answer.StateVersion = stateVersion
	}
	return answer, nil
}

// all are the settings of a container with a cgroup of its own, and what it has that no other may have.
func (i *Isolator) all(ctx context.Context, c *containerv1.Container) (*containerv1.CgroupResources, grant, error) {
	set, err := i.settings(c)
	if err != nil {
		return nil, grant{}, err
	}
	var had grant
	if c.GetParentId() == "" { // nested ones have their root's
		if had, set.CpusetCpus, err = i.assign(ctx, c); err != nil {
			return nil, grant{}, err
		}
	}
	return set, had, i.furnish(set, c, had)
}

// Update proposes the settings for new resources. A memory limit is never lowered: the kernel would refuse, or kill.
func (i *Isolator) Update(ctx context.Context, r *isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
	c := r.GetRecord().GetContainer()
	if !own(c) {
		return &isolatorv1.UpdateResponse{}, nil
	}
	set, err := i.settings(c)
	if err != nil {
		return nil, err
	}
	var had grant
	if c.GetParentId() == "" {
		if had, set.CpusetCpus, err = i.assign(ctx, c); err != nil {
			return nil, err
		}
	}
	if now, ok := groupOf(r.GetRecord()).memoryLimit(); ok && set.MemoryLimitBytes != nil && *set.MemoryLimitBytes >= 0 {
		if now < 0 || now > *set.MemoryLimitBytes {
			set.MemoryLimitBytes, set.MemorySwapBytes = nil, nil
		}
	}
	answer := &isolatorv1.UpdateResponse{Proposal: &containerv1.Proposal{Cgroup: set}}
	before := len(r.GetRecord().GetState()) > 0
	if answer.State, err = had.marshal(); err != nil {
		return nil, err
	}
	if len(answer.State) == 0 && before {
		answer.State = []byte("{}") // it has given back what it had
	}
	if len(answer.State) > 0 {
		answer.StateVersion = stateVersion
	}
	return answer, nil
}

// Isolate begins to watch the container's memory.
func (i *Isolator) Isolate(_ context.Context, r *isolatorv1.IsolateRequest) (*isolatorv1.IsolateResponse, error) {
	i.perf.Load().follow(r.GetRecord().GetContainer().GetId(), groupOf(r.GetRecord()).path("perf_event"))
	if err := i.follow(r.GetRecord()); err != nil {
		return nil, module.FailedPrecondition("watch the memory of container %s: %v", r.GetRecord().GetContainer().GetId(), err)
	}
	return &isolatorv1.IsolateResponse{}, nil
}

// Recover watches what lives, and reports what ran out of memory while nobody watched.
func (i *Isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	answer := &isolatorv1.RecoverResponse{}
	for {
		page, err := s.Recv()
		if errors.Is(err, io.EOF) {
			i.grants.known()
			return s.SendAndClose(answer)
		}
		if err != nil {
			return err
		}
		for _, r := range page.GetContainers() {
			if len(r.GetState()) > 0 && i.grants.recover(r.GetContainer().GetId(), r.GetState(), r.GetStateVersion()) != nil {
				answer.Unknown = append(answer.Unknown, r.GetContainer().GetId())
			}
			if !r.GetOrphan() && len(r.GetCgroups()) > 0 {
				i.perf.Load().follow(r.GetContainer().GetId(), groupOf(r).path("perf_event"))
				_ = i.follow(r) // its cgroup may have ended meanwhile; Status tells why then
				if w := i.watching(); w != nil {
					w.look(r.GetContainer().GetId())
				}
			}
		}
	}
}

// Status says whether a container ran out of memory, also after its end.
func (i *Isolator) Status(_ context.Context, r *isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error) {
	watch := i.watching()
	results := map[string]*isolatorv1.StatusResult{}
	for _, rec := range r.GetRecords() {
		g := groupOf(rec)
		id := rec.GetContainer().GetId()
		result := &isolatorv1.StatusResult{}
		if class := i.grants.of(id).ClassID; class != 0 {
			result.Status = &mesosv1.ContainerStatus{CgroupInfo: &mesosv1.CgroupInfo{NetCls: &mesosv1.CgroupInfo_NetCls{Classid: &class}}}
			results[id] = result
		}
		if g.path("memory") == "" {
			continue
		}
		switch {
		case g.oomKills() > 0:
			result.Limitation = limitation(id, g)
		case watch != nil:
			result.Limitation = watch.reported(id) // the cgroup may be gone
		}
		results[id] = result
	}
	return &isolatorv1.StatusResponse{Results: results}, nil
}

// limitation describes the end of memory as Mesos does. A nested container may have reached the limit of one above it;
// where there is no limit, the machine's memory was all used.
func limitation(id string, g group) *modulev1.Limitation {
	g = g.limiting()
	limit, _ := g.memoryLimit()
	l := &modulev1.Limitation{ContainerId: id, Reason: mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_MEMORY.String()}
	used := fmt.Sprintf("Maximum Used: %dMB", g.memoryMost()/megabyte)
	if limit > 0 {
		l.Message = fmt.Sprintf("Memory limit exceeded: Requested: %dMB %s", limit/megabyte, used)
		mb := float64(limit) / megabyte
		name, role := "mem", "*"
		l.Resources = []*mesosv1.Resource{{
			Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Role: &role, Scalar: &mesosv1.Value_Scalar{Value: &mb},
		}}
	} else {
		l.Message = "The machine is out of memory and the kernel killed a process of the container: Requested: no limit " + used
	}
	if text, ok := g.read("memory", "memory.stat"); ok {
		l.Message += "\n\nMEMORY STATISTICS: \n" + text + "\n"
	}
	return l
}

// Cleanup forgets the container. Its cgroup is the agent's to remove.
func (i *Isolator) Cleanup(_ context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	i.grants.forget(r.GetRecord().GetContainer().GetId())
	i.perf.Load().forget(r.GetRecord().GetContainer().GetId())
	if w := i.watching(); w != nil {
		w.forget(r.GetRecord().GetContainer().GetId())
	}
	return &isolatorv1.CleanupResponse{}, nil
}

func (i *Isolator) watching() *watcher {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.watch
}

// follow watches one container; twice is once.
func (i *Isolator) follow(r *isolatorv1.ContainerRecord) error {
	g := groupOf(r)
	if g.path("memory") == "" {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.watch == nil {
		w, err := newWatcher(i.events.Limit)
		if err != nil {
			return err
		}
		i.watch = w
	}
	return i.watch.follow(r.GetContainer().GetId(), g)
}

// group is a container's cgroup: one folder for each controller, or one for all under the name "".
type group map[string]string

func groupOf(r *isolatorv1.ContainerRecord) group { return r.GetCgroups() }

func (g group) unified() bool { return g[""] != "" }

// path is the folder of a controller, or "" if it has none.
func (g group) path(controller string) string {
	p := g[controller]
	if p == "" {
		p = g[""]
	}
	if !strings.HasPrefix(p, "/") || strings.Contains(p, "/../") {
		return ""
	}
	return p
}

// read gives a file's text; a cgroup may end at any moment, so that an error is no more than an absent figure.
func (g group) read(controller, file string) (string, bool) {
	dir := g.path(controller)
	if dir == "" {
		return "", false
	}
	data, err := os.ReadFile(dir + "/" + file)
	return strings.TrimSpace(string(data)), err == nil
}

// number reads a file with one number; "max" is -1.
func (g group) number(controller, file string) (int64, bool) {
	text, ok := g.read(controller, file)
	if !ok {
		return 0, false
	}
	if text == "max" {
		return -1, true
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, false
	}
	if n >= math.MaxInt64/4096*4096 { // how version 1 writes no limit
		return -1, true
	}
	return int64(n), true
}

// fields reads a file of "name number" lines.
func (g group) fields(controller, file string) map[string]uint64 {
	text, _ := g.read(controller, file)
	return parseFields(text)
}

func parseFields(text string) map[string]uint64 {
	m := map[string]uint64{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(value, 10, 64); ok && err == nil {
			m[name] = n
		}
	}
	return m
}

// memoryLimit is the hard limit in bytes, -1 for none.
func (g group) memoryLimit() (int64, bool) {
	if g.unified() {
		return g.number("memory", "memory.max")
	}
	return g.number("memory", "memory.limit_in_bytes")
}

// limiting is the group's own memory group, or the nearest above it that has a limit, if there is one.
func (g group) limiting() group {
	const most = 16 // levels; containers are nested far less deep
	at := g.path("memory")
	for range most {
		here := group{"memory": at}
		if g.unified() {
			here = group{"": at}
		}
		limit, ok := here.memoryLimit()
		if !ok {
			break // above the hierarchy's root
		}
		if limit >= 0 {
			return here
		}
		at = filepath.Dir(at)
	}
	return g
}

// memoryMost is the most memory ever used.
func (g group) memoryMost() int64 {
	file := "memory.max_usage_in_bytes"
	if g.unified() {
		file = "memory.peak"
	}
	n, _ := g.number("memory", file)
	return max(n, 0)
}

// oomKills counts the processes that the kernel killed for want of memory: this group's own, and, where it was this
// group that reached its limit, those nested in it. On version 1 a nested group counts for itself alone.
func (g group) oomKills() uint64 {
	if !g.unified() {
		return g.fields("memory", "memory.oom_control")["oom_kill"]
	}
	all := g.fields("memory", "memory.events")["oom_kill"]
	local, ok := g.read("memory", "memory.events.local")
	if !ok {
		return all // a kernel before 5.2 does not tell them apart
	}
	mine := parseFields(local)
	if mine["oom"] > 0 {
		return all
	}
	// A container that others can be nested in keeps its processes in a leaf.
	return mine["oom_kill"] + g.fields("memory", "leaf/memory.events.local")["oom_kill"]
}
