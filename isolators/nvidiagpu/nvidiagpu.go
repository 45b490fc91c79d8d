// Package nvidiagpu is the isolator for NVIDIA GPUs. It finds them, gives each to one container at a time, says which
// device nodes that container has and which it may not open, shows the driver's libraries to images that ask for them,
// and measures.
//
// It promises that no GPU and no part of one is given twice: not after a crash either, since what a container has is
// kept by the agent, and comes back before anything new is given. It only proposes; the agent makes nodes and mounts.
// It tells the agent how many there are to offer. It runs in a process of its own, because a driver that fails takes the
// process that loaded it along.
package nvidiagpu

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// wishLabel is the label of a task that would have certain GPUs, by names as in a CDI specification.
const wishLabel = "mosaic.gpus"

// defaultPath is what a program without a PATH has.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Config is what the operator may set.
type Config struct {
	Devices         []string      `hcl:"devices,optional" doc:"GPUs to use, by index or UUID; all when empty."`
	Library         string        `hcl:"library,optional" doc:"NVIDIA's management library."`
	DriverRoot      string        `hcl:"driver_root,optional" doc:"Where the driver is installed."`
	Volume          string        `hcl:"volume,optional" doc:"Where containers find the driver's libraries and programs."`
	DenyOthers      bool          `hcl:"deny_others,optional" doc:"Containers on the host's file system cannot open GPUs that were not given to them."`
	CDISpec         string        `hcl:"cdi_spec,optional" doc:"File for a CDI specification of the GPUs, for other runtimes; none when empty."`
	Patience        time.Duration `hcl:"patience,optional" doc:"How long a launch waits for GPUs whose container has ended and is not cleaned up yet." min:"0s" max:"10s"`
	MeasureInterval time.Duration `hcl:"measure_interval,optional" doc:"Time between two measurements of all GPUs; 0 measures nothing." min:"0s"`
}

// Isolator is the module.
type Isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config *module.Config[Config]
	events *module.Events
	open   func(path string) Library
	table  *table

	finding sync.Mutex // one discovery at a time

	mu       sync.Mutex // guards what follows
	at       [2]string  // name of library, and the driver's root
	library  Library    // nil until one was found
	told     bool       // Recover has said what lives
	node     *modulev1.NodeFacts
	all      []Device // of the machine
	pool     []Device // those of them that may be given
	broken   map[string]string
	errors   map[string]float64 // faults by GPU, for the metrics
	stop     context.CancelFunc // of the watch; nil without one
	watching *sync.WaitGroup
}

// New returns the module with its defaults.
func New() *Isolator { return With(Open) }

// With returns the module with another way to open the driver's library.
func With(open func(path string) Library) *Isolator {
	return &Isolator{
		config: module.NewConfig(Config{
			Library: DefaultLibrary, DriverRoot: "/", Volume: "/usr/local/nvidia", DenyOthers: true, Patience: 5 * time.Second, MeasureInterval: 15 * time.Second,
		}, check),
		events: module.NewEvents(), open: open, table: newTable(), broken: map[string]string{}, errors: map[string]float64{},
	}
}

func check(c *Config) error {
	var errs []error
	for name, p := range map[string]string{"driver_root": c.DriverRoot, "volume": c.Volume, "cdi_spec": c.CDISpec} {
		if (p != "" || name != "cdi_spec") && !filepath.IsAbs(p) {
			errs = append(errs, module.Wrong(name, "got %q, want an absolute path", p))
		}
	}
	if c.Library == "" {
		errs = append(errs, module.Wrong("library", "got nothing, want %s or a path", DefaultLibrary))
	}
	if e := filepath.Ext(c.CDISpec); c.CDISpec != "" && e != ".json" {
		errs = append(errs, module.Wrong("cdi_spec", "got a name that ends in %q, want .json", e))
	}
	return errors.Join(errs...)
}

// Info describes the module.
func (i *Isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "nvidia_gpu", Version: "1.0.0", Doc: "NVIDIA GPUs and parts of them, one container each",
		Powers: []string{"cgroup", "devices", "environment", "mounts"}, Calls: []string{"update"}, After: []string{"cgroups", "devices"},
		Nesting: true, Standalone: true, MinState: stateVersion, MaxState: stateVersion,
		Config: i.config, Events: i.events, Configured: i.configured, Resources: i.resources,
	}
}

// configured looks for GPUs anew. A machine without any is no mistake: one composition serves a whole cluster.
func (i *Isolator) configured(_ context.Context, node *modulev1.NodeFacts) error {
	cfg := i.config.Get()
	i.unwatch()
	i.mu.Lock()
	if at := [2]string{cfg.Library, cfg.DriverRoot}; at != i.at {
		i.library, i.at = nil, at
	}
	i.node = node
	clear(i.broken)
	i.mu.Unlock()
	return i.discover(cfg)
}

// resources are what the agent can offer: all that may be given, also of those that are just broken.
func (i *Isolator) resources() []*mesosv1.Resource {
	i.mu.Lock()
	defer i.mu.Unlock()
	return resourcesOf(i.pool)
}

// discover lists the GPUs and says how the module is. Its error is a mistake of the configuration.
func (i *Isolator) discover(cfg *Config) error {
	i.finding.Lock()
	defer i.finding.Unlock()
	i.mu.Lock()
	l := i.library
	i.mu.Unlock()
	var all []Device
	var err error
	if l == nil {
		l, all, err = find(cfg.Library, driver(cfg.DriverRoot), i.open)
	} else {
		all, err = l.Devices()
	}
	if err == nil {
		i.mu.Lock()
		i.library = l
		i.mu.Unlock()
	} else {
		i.take(nil, nil)
		i.events.Health(modulev1.Health_DEGRADED, err.Error())
		return nil
	}
	pool := all
	if len(cfg.Devices) > 0 {
		for n, name := range cfg.Devices {
			if !slices.ContainsFunc(all, func(d Device) bool { return d.is(name) }) {
				return module.Wrong("devices["+itoa(n)+"]", "got %q, want one of the GPUs of this machine: %s", name, strings.Join(uuids(all), ", "))
			}
		}
		pool = slices.DeleteFunc(slices.Clone(all), func(d Device) bool { return !slices.ContainsFunc(cfg.Devices, d.is) })
	}
	i.take(all, pool)
	if len(all) == 0 {
		i.events.Health(modulev1.Health_DEGRADED, "no GPUs: the driver is there, and finds none")
		return nil
	}
	if cfg.CDISpec != "" {
		if err := writeCDI(cfg.CDISpec, driver(cfg.DriverRoot), cfg.Volume, pool); err != nil {
			i.events.Health(modulev1.Health_DEGRADED, "write the CDI specification: "+err.Error())
			i.startWatch(l, pool, cfg.MeasureInterval)
			return nil
		}
	}
	if _, err := driver(cfg.DriverRoot).nodes(pool); err != nil {
		i.events.Health(modulev1.Health_DEGRADED, "GPUs cannot be given to containers: "+err.Error())
	} else {
		i.events.Health(modulev1.Health_OK, "")
	}
	i.startWatch(l, pool, cfg.MeasureInterval)
	return nil
}

func (i *Isolator) take(all, pool []Device) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.all, i.pool = all, pool
}

// inventory is what there is, and what of it is whole and may be given.
func (i *Isolator) inventory() (node *modulev1.NodeFacts, all, pool []Device) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.node, i.all, slices.DeleteFunc(slices.Clone(i.pool), func(d Device) bool {
		return i.broken[d.UUID] != "" || d.Parent != "" && i.broken[d.Parent] != ""
	})
}

// shared are the devices of a nested container that has no resources of its own, as the tasks of a group: all that its
// root has, and its siblings have them, too.
func (i *Isolator) shared(c *containerv1.Container, all []Device) []Device {
	root := i.table.of(rootOf(c.GetId()))
	return slices.DeleteFunc(slices.Clone(all), func(d Device) bool { return !slices.Contains(root, d.UUID) })
}

// wishes are the names in a task's label: CDI names, or what follows their last sign.
func wishes(c *containerv1.Container) ([]string, error) {
	text := c.GetLabels()[wishLabel]
	if text == "" {
		return nil, nil
	}
	var list []string
	for _, name := range strings.Split(text, ",") {
		kind, device, ok := strings.Cut(strings.TrimSpace(name), "=")
		if !ok {
			kind, device = cdiKind, kind
		}
		if kind != cdiKind || device == "" || len(list) == most {
			return nil, module.InvalidArgument("label %s: got %.80q, want names such as %s=0", wishLabel, name, cdiKind)
		}
		if device != "all" {
			list = append(list, device)
		}
	}
	return list, nil
}

// Prepare gives a container its GPUs.
func (i *Isolator) Prepare(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	cfg, c := i.config.Get(), r.GetContainer()
	if c.GetClass() == containerv1.Container_DEBUG {
		return &isolatorv1.PrepareResponse{}, nil // shares everything with its parent
	}
	want, err := requested(c.GetResources())
	if err != nil {
		return nil, err
	}
	names, err := wishes(c)
	if err != nil {
		return nil, err
	}
	node, all, pool := i.inventory()
	if len(want) > 0 && len(all) == 0 { // the driver may have come meanwhile
		if err := i.discover(cfg); err != nil {
			return nil, module.FailedPrecondition("%v", err)
		}
		node, all, pool = i.inventory()
	}
	if len(want) > 0 && !i.recovered() {
		return nil, status.Error(codes.Unavailable, "which GPUs live containers have is not known yet")
	}
	given, own := []Device(nil), c.GetParentId() == "" || len(c.GetResources()) > 0
	if own {
		given, err = i.table.await(ctx, cfg.Patience, c.GetId(), want, pool, names)
	} else {
		given = i.shared(c, all)
	}
	if err != nil {
		return nil, err
	}
	p := &containerv1.Proposal{}
	if err := i.propose(p, cfg, c, node, all, given, r.GetSoFar()); err != nil {
		i.table.forget(c.GetId())
		if status.Code(err) != codes.Unknown {
			return nil, err
		}
		return nil, module.FailedPrecondition("%v", err)
	}
	answer := &isolatorv1.PrepareResponse{}
	if own && len(given) > 0 {
		state, err := json.Marshal(holding{Devices: uuids(given)})
		if err != nil {
			return nil, err
		}
		answer.State, answer.StateVersion = state, stateVersion
	}
	if len(p.GetDevices()) > 0 || len(p.GetMounts()) > 0 || len(p.GetEnvironment()) > 0 || p.GetCgroup() != nil {
		answer.Proposal = p
	}
	return answer, nil
}

// propose fills in what makes given usable, and the other GPUs not.
func (i *Isolator) propose(p *containerv1.Proposal, cfg *Config, c *containerv1.Container, node *modulev1.NodeFacts, all, given []Device, soFar *containerv1.Spec) error {
	d := driver(cfg.DriverRoot)
	var nodes []*containerv1.Device
	if len(given) > 0 {
		if node.GetCgroupVersion() == 0 {
			return errors.New("this machine gives the agent no cgroups, so that GPUs cannot be kept apart")
		}
		var err error
		if nodes, err = d.nodes(given); err != nil {
			return err
		}
	}
	nested := c.GetParentId() != ""
	env := map[string]string{}
	switch {
	case c.GetRootfs() != "": // an own /dev, where nothing is that is not asked for
		p.Devices = nodes
	case !nested:
		p.Cgroup = rules(cfg, d, node, all, given, nodes, soFar)
	case len(given) > 0: // in the cgroup of its root, which may open what the whole group has
		env[cudaDevices] = strings.Join(uuids(given), ",")
	}

	has := environmentOf(c)
	parts, err := asked(c, has)
	if err != nil {
		return err
	}
	if c.GetRootfs() != "" && len(parts) > 0 {
		p.Mounts = d.volume(cfg.Volume, parts)
		if len(p.Mounts) == 0 && len(all) > 0 {
			return errors.New("the image asks for the driver's libraries, and there are none below " + cfg.DriverRoot)
		}
		prepend := func(name, folder, otherwise string) {
			have := has[name]
			if have == "" {
				have = otherwise
			}
			if len(p.Mounts) > 0 && !slices.Contains(strings.Split(have, ":"), folder) {
				env[name] = strings.TrimSuffix(folder+":"+have, ":")
			}
		}
		prepend("PATH", filepath.Join(cfg.Volume, "bin"), defaultPath)
		prepend("LD_LIBRARY_PATH", filepath.Join(cfg.Volume, "lib64"), "")
	}
	switch {
	case len(given) > 0:
		env[visibleDevices] = strings.Join(uuids(given), ",")
	case has[visibleDevices] != "":
		env[visibleDevices] = "void" // whatever the image would like to have
	}
	if len(env) > 0 {
		p.Environment = env
	}
	return nil
}

// rules are for a container that sees the host's /dev: it may open its own GPUs and none of the others. Where an
// isolator before us lets it open only what is on a list, its own are put on that list, and the others are not on it.
func rules(cfg *Config, d driver, node *modulev1.NodeFacts, all, given []Device, nodes []*containerv1.Device, soFar *containerv1.Spec) *containerv1.CgroupResources {
	set := &containerv1.CgroupResources{}
	if len(soFar.GetMerged().GetCgroup().GetDeviceRules()) > 0 {
		for _, n := range nodes {
			set.DeviceRules = append(set.DeviceRules, &containerv1.DeviceRule{Allow: true, Type: "c", Major: &n.Major, Minor: &n.Minor, Access: "rwm"})
		}
	} else if cfg.DenyOthers && node.GetCgroupVersion() != 0 {
		deny := others(d, all, given, nodes)
		if len(deny) > 0 {
			set.DeviceRules = append([]*containerv1.DeviceRule{{Allow: true, Type: "a"}}, deny...)
		}
	}
	if len(set.DeviceRules) == 0 {
		return nil
	}
	return set
}

// others are rules against the nodes of GPUs that were not given. Making nodes stays allowed: it opens nothing, and
// runtimes that start containers within this one must be able to allow it in general.
func others(d driver, all, given []Device, nodes []*containerv1.Device) []*containerv1.DeviceRule {
	var deny []*containerv1.DeviceRule
	seen := map[string]bool{}
	for _, n := range nodes {
		seen[n.GetPath()] = true
	}
	for _, dev := range all {
		if slices.ContainsFunc(given, func(g Device) bool { return g.UUID == dev.UUID }) {
			continue
		}
		list, _ := d.own(dev) // one that has no nodes cannot be opened either
		for _, n := range list {
			if !seen[n.GetPath()] {
				seen[n.GetPath()] = true
				deny = append(deny, &containerv1.DeviceRule{Type: "c", Major: &n.Major, Minor: &n.Minor, Access: "rw"})
			}
		}
	}
	return deny
}

// Update follows a container that gets more GPUs or fewer. Only one that sees the host's /dev can be given more while
// it runs, and only where the launcher writes the rules: on cgroup version 1.
func (i *Isolator) Update(ctx context.Context, r *isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
	cfg, c := i.config.Get(), r.GetRecord().GetContainer()
	if c.GetParentId() != "" || c.GetClass() == containerv1.Container_DEBUG {
		return &isolatorv1.UpdateResponse{}, nil
	}
	want, err := requested(c.GetResources())
	if err != nil {
		return nil, err
	}
	node, all, pool := i.inventory()
	before := i.table.of(c.GetId())
	has := map[string]int{}
	for _, d := range all {
		if slices.Contains(before, d.UUID) {
			has[d.Resource()]++
		}
	}
	if equal(want, has) {
		return &isolatorv1.UpdateResponse{}, nil
	}
	if c.GetRootfs() != "" || node.GetCgroupVersion() != 1 {
		for name, n := range want {
			if n > has[name] {
				return nil, module.FailedPrecondition("%s: got a request for %d, and the container runs with %d: the device nodes of one with an image, or on cgroup version 2, cannot be changed while it runs", name, n, has[name])
			}
		}
		return &isolatorv1.UpdateResponse{}, nil // it could still open them: they are its own until it ends
	}
	// What it holds it may keep, even if it would not be given anew.
	for _, d := range all {
		if slices.Contains(before, d.UUID) && !slices.ContainsFunc(pool, func(p Device) bool { return p.UUID == d.UUID }) {
			pool = append(pool, d)
		}
	}
	given, err := i.table.await(ctx, cfg.Patience, c.GetId(), want, pool, nil)
	if err != nil {
		return nil, err
	}
	d := driver(cfg.DriverRoot)
	var nodes []*containerv1.Device
	if len(given) > 0 {
		if nodes, err = d.nodes(given); err != nil {
			return nil, module.FailedPrecondition("%v", err)
		}
	}
	set := &containerv1.CgroupResources{}
	for _, n := range nodes {
		set.DeviceRules = append(set.DeviceRules, &containerv1.DeviceRule{Allow: true, Type: "c", Major: &n.Major, Minor: &n.Minor, Access: "rwm"})
	}
	set.DeviceRules = append(set.DeviceRules, others(d, all, given, nodes)...)
	state, err := json.Marshal(holding{Devices: uuids(given)})
	if err != nil {
		return nil, err
	}
	answer := &isolatorv1.UpdateResponse{State: state, StateVersion: stateVersion}
	if len(set.DeviceRules) > 0 {
		answer.Proposal = &containerv1.Proposal{Cgroup: set}
	}
	return answer, nil
}

func equal(a, b map[string]int) bool {
	for name, n := range a {
		if b[name] != n {
			return false
		}
	}
	for name, n := range b {
		if a[name] != n {
			return false
		}
	}
	return true
}

// Recover learns again who has what.
func (i *Isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	answer := &isolatorv1.RecoverResponse{}
	for {
		page, err := s.Recv()
		if errors.Is(err, io.EOF) {
			i.mu.Lock()
			i.told = true
			i.mu.Unlock()
			return s.SendAndClose(answer)
		}
		if err != nil {
			return err
		}
		for _, r := range page.GetContainers() {
			id := r.GetContainer().GetId()
			if len(r.GetState()) == 0 {
				continue // it was given nothing
			}
			if i.table.recover(id, r.GetState(), r.GetStateVersion()) != nil {
				answer.Unknown = append(answer.Unknown, id)
			}
		}
	}
}

func (i *Isolator) recovered() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.told
}

// Cleanup gives back what the container had. Its processes are gone by now.
func (i *Isolator) Cleanup(_ context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	i.table.forget(r.GetRecord().GetContainer().GetId())
	return &isolatorv1.CleanupResponse{}, nil
}
