// Package cni is the isolator for networks: it gives a container a network namespace of its own and joins it to the
// networks that it names, by the plugins of the Container Network Interface.
//
// It promises that a container that asks for a network runs in it or not at all; that its addresses, its published
// ports and its names hold as long as it lives, whatever happens to this module or the agent; and that the DEL of each
// ADD that may have run is run in the end. The namespace is mounted on a file of its own, so that neither a process of
// the container's nor this one is needed for that.
//
// What a network is, and what becomes of packets, it leaves to the plugins. Entering the namespace, and mounting the
// files that go with it, is the agent's.
package cni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"runtime"
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

// Config is what the operator may set.
type Config struct {
	ConfigDir      string        `hcl:"config_dir,optional" doc:"Folder of network configurations: .conflist, .conf, .json. Read at each launch."`
	PluginsDir     string        `hcl:"plugins_dir,optional" doc:"Folders of CNI plugins, divided by colons."`
	RunDir         string        `hcl:"run_dir,optional" doc:"Folder for namespaces and records of containers; best one that a restart of the machine empties."`
	DefaultBridge  bool          `hcl:"default_bridge,optional" doc:"Provide the built-in bridge network, also for docker's network mode BRIDGE."`
	BridgeName     string        `hcl:"bridge_name,optional" doc:"Network that docker's mode BRIDGE means, and name of the built-in one."`
	BridgeSubnet   string        `hcl:"bridge_subnet,optional" doc:"Subnet of the built-in network, as 10.88.0.0/16; unset takes one that this machine has no route to."`
	BridgeBackend  string        `hcl:"bridge_backend,optional" doc:"What makes the built-in network's rules; auto is nftables, or iptables where the kernel has none." oneof:"auto,iptables,nftables,none"`
	PluginTimeout  time.Duration `hcl:"plugin_timeout,optional" doc:"How long a plugin may take before it is killed." min:"100ms" max:"10m"`
	Nameservers    []string      `hcl:"nameservers,optional" doc:"Name servers of containers whose networks name none; unset takes the host's."`
	Search         []string      `hcl:"search,optional" doc:"Search domains that go with them."`
	Options        []string      `hcl:"options,optional" doc:"Resolver options that go with them."`
	CheckOnRecover bool          `hcl:"check_on_recover,optional" doc:"Let plugins check the networks of running containers after a restart."`
}

// plugins are the folders of plugins.
func (cfg *Config) plugins() []string {
	return slices.DeleteFunc(strings.Split(cfg.PluginsDir, ":"), func(dir string) bool { return dir == "" })
}

// Isolator is the module.
type Isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config *module.Config[Config]
	events *module.Events

	adds, dels turns // plugins at work

	mu     sync.Mutex       // guards what follows
	busy   map[string]*work // by container
	subnet netip.Prefix     // of the built-in network, once chosen
	freed  chan struct{}    // closed and replaced when published ports were given back

	portPatience time.Duration // tests have less
	checks       checks
	health       health
}

// New returns the module with its defaults: no networks.
func New() *Isolator {
	// Plugins wait for each other's locks on tables and leases more than they compute.
	width := max(4, 2*runtime.NumCPU())
	return &Isolator{
		config: module.NewConfig(Config{
			PluginsDir: "/opt/cni/bin", RunDir: "/run/mosaic/cni", BridgeName: "mosaic", BridgeBackend: "auto",
			PluginTimeout: 10 * time.Second, CheckOnRecover: true,
		}, validate),
		events: module.NewEvents(), adds: make(turns, width), dels: make(turns, width), busy: map[string]*work{},
		freed: make(chan struct{}), portPatience: portPatience,
		health: health{failing: map[string]string{}},
	}
}

func validate(cfg *Config) error {
	var errs []error
	absolute := func(path, name string) {
		if path != "" && (!filepath.IsAbs(path) || strings.ContainsRune(path, 0)) {
			errs = append(errs, module.Wrong(name, "got %q, want an absolute path", path))
		}
	}
	absolute(cfg.ConfigDir, "config_dir")
	absolute(cfg.RunDir, "run_dir")
	for _, dir := range cfg.plugins() {
		absolute(dir, "plugins_dir")
	}
	if cfg.RunDir == "" {
		errs = append(errs, module.Wrong("run_dir", "got nothing, want a folder"))
	}
	if cfg.PluginTimeout <= 0 {
		errs = append(errs, module.Wrong("plugin_timeout", "got %s, want some time", cfg.PluginTimeout))
	}
	if cfg.BridgeSubnet != "" {
		p, err := netip.ParsePrefix(cfg.BridgeSubnet)
		if err != nil || !p.Addr().Is4() || p.Bits() > 29 || p != p.Masked() {
			errs = append(errs, module.Wrong("bridge_subnet", "got %q, want an IPv4 subnet of at most 29 bits such as 10.88.0.0/16", cfg.BridgeSubnet))
		}
	}
	for _, s := range cfg.Nameservers {
		if _, err := netip.ParseAddr(s); err != nil {
			errs = append(errs, module.Wrong("nameservers", "got %q, want an address", s))
		}
	}
	if cfg.BridgeName == "" {
		errs = append(errs, module.Wrong("bridge_name", "got nothing, want a name"))
	}
	return errors.Join(errs...)
}

// Info describes the module.
func (i *Isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "cni", Version: "1.0.0", Doc: "networks of containers, by CNI plugins",
		Calls: []string{"usage", "status"}, Powers: []string{"hostname", "mounts", "namespaces"},
		Nesting: true, Standalone: true, NeedsRoot: true, Platforms: []string{"linux/amd64", "linux/arm64"},
		MinState: stateVersion, MaxState: stateVersion,
		Config: i.config, Events: i.events, Configured: i.configured,
	}
}

// configured looks at the networks once, so that what is wrong is seen before a launch fails of it.
func (i *Isolator) configured(context.Context, *modulev1.NodeFacts) error {
	cfg := i.config.Get()
	all, problems := readNetworks(cfg.ConfigDir)
	if cfg.DefaultBridge {
		n, err := builtIn(cfg.BridgeName, netip.MustParsePrefix("10.88.0.0/16"), cfg.backend())
		if err != nil {
			return module.Wrong("bridge_name", "%v", err)
		}
		if all[n.Name] == nil {
			all[n.Name] = n
		}
		if cfg.backend() == byNobody && cfg.BridgeBackend != byNobody {
			problems = append(problems, fmt.Errorf("the kernel has no nftables, and iptables is not here: containers on network %s reach this machine only, and publish no ports", cfg.BridgeName))
		}
	}
	for _, n := range all {
		if err := n.missing(cfg.plugins()); err != nil {
			problems = append(problems, err)
		}
	}
	texts := make([]string, len(problems))
	for n, err := range problems {
		texts[n] = err.Error()
	}
	slices.Sort(texts)
	i.health.set(i.events, func(h *health) { h.problems = texts })
	return nil
}

// backend is what makes the built-in network's rules.
func (cfg *Config) backend() string {
	if cfg.BridgeBackend == "auto" {
		return ruleMaker()
	}
	return cfg.BridgeBackend
}

// networks are those that there are now, with what is wrong with others. A configured one takes the built-in one's place.
func (i *Isolator) networks(cfg *Config) (map[string]*network, []error, error) {
	all, broken := readNetworks(cfg.ConfigDir)
	if !cfg.DefaultBridge || all[cfg.BridgeName] != nil {
		return all, broken, nil
	}
	subnet, err := i.bridgeSubnet(cfg)
	if err != nil {
		return nil, nil, module.FailedPrecondition("network %s: %v", cfg.BridgeName, err)
	}
	n, err := builtIn(cfg.BridgeName, subnet, cfg.backend())
	if err != nil {
		return nil, nil, module.FailedPrecondition("network %s: %v", cfg.BridgeName, err)
	}
	all[n.Name] = n
	return all, broken, nil
}

func (i *Isolator) bridgeSubnet(cfg *Config) (netip.Prefix, error) {
	if cfg.BridgeSubnet != "" {
		return netip.ParsePrefix(cfg.BridgeSubnet)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.subnet.IsValid() {
		subnet, err := chooseSubnet(leases)
		if err != nil {
			return subnet, err
		}
		i.subnet = subnet
	}
	return i.subnet, nil
}

// work is what goes on for one container.
type work struct {
	kind kind
	stop context.CancelFunc
	done chan struct{}
}

// kind is what sort of work it is. Each ends those before it for its own sake: nobody who prepares wants to know what a
// check says, and who cleans up has given up on the Prepare.
type kind int

const (
	checking kind = iota
	preparing
	cleaning
)

// enter notes that a call is at work for a container, ends what has to give way to it, and waits for that. A second call
// of a kind is told to ask again: the first may have missed its deadline and still be waiting for a plugin to die.
func (i *Isolator) enter(ctx context.Context, id string, k kind) (_ context.Context, leave func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	i.mu.Lock()
	defer i.mu.Unlock()
	for i.busy[id] != nil {
		w := i.busy[id]
		if w.kind >= k {
			cancel()
			return nil, nil, status.Errorf(codes.Aborted, "another call for container %s is still at work", id)
		}
		w.stop()
		i.mu.Unlock()
		<-w.done
		i.mu.Lock()
	}
	w := &work{kind: k, stop: cancel, done: make(chan struct{})}
	i.busy[id] = w
	return ctx, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.busy, id)
		cancel()
		close(w.done)
	}, nil
}

// Prepare joins the container's networks and proposes the namespace and what goes with it.
func (i *Isolator) Prepare(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	cfg, c := i.config.Get(), r.GetContainer()
	w, err := wishOf(c, cfg.BridgeName)
	if err != nil {
		return nil, err
	}
	if !w.own && w.hostname == "" {
		return &isolatorv1.PrepareResponse{}, nil // the host's network, or the parent's
	}
	uts := &containerv1.Namespace{Type: containerv1.Namespace_UTS}
	if !w.own {
		return &isolatorv1.PrepareResponse{Proposal: &containerv1.Proposal{Namespaces: []*containerv1.Namespace{uts}, Hostname: w.hostname}}, nil
	}
	if c.GetId() == "" {
		return nil, module.InvalidArgument("a container without an id")
	}
	ctx, leave, err := i.enter(ctx, c.GetId(), preparing)
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err() // its Cleanup may have been here before it
	}
	done, err := i.adds.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	made, err := i.attach(ctx, cfg, r.GetOperationId(), c, w)
	if err != nil {
		return nil, err
	}
	state, err := made.state()
	if err != nil {
		return nil, err
	}
	return &isolatorv1.PrepareResponse{
		Proposal: &containerv1.Proposal{
			Namespaces: []*containerv1.Namespace{{Type: containerv1.Namespace_NETWORK, Path: made.Netns}, uts},
			Mounts:     mounts(folderOf(cfg.RunDir, c.GetId()), made, c),
			Hostname:   made.Hostname,
		},
		State: state, StateVersion: stateVersion,
	}, nil
}

// find returns a container's folder and record: the one in the folder, or else the agent's copy; nil if there is
// neither.
func (i *Isolator) find(cfg *Config, rec *isolatorv1.ContainerRecord) (folder, *record) {
	id := rec.GetContainer().GetId()
	f := folderOf(cfg.RunDir, id)
	kept := (*record)(nil)
	if rec.GetStateVersion() == stateVersion {
		kept = parseRecord(rec.GetState())
	}
	if kept != nil && kept.ID != pluginID(id) {
		kept = nil // another's
	}
	if kept != nil && filepath.IsAbs(kept.Netns) && filepath.Clean(kept.Netns) == kept.Netns &&
		filepath.Base(kept.Netns) == "netns" && filepath.Base(filepath.Dir(kept.Netns)) == kept.ID {
		f = folder(filepath.Dir(kept.Netns)) // run_dir may have been another then
	}
	r, _ := f.load() // what cannot be read is as good as lost
	return f, cmp.Or(r, kept)
}

// Cleanup takes back whatever there is of a container's networks.
func (i *Isolator) Cleanup(ctx context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	cfg, c := i.config.Get(), r.GetRecord().GetContainer()
	if c.GetId() == "" {
		return &isolatorv1.CleanupResponse{}, nil
	}
	ctx, leave, err := i.enter(ctx, c.GetId(), cleaning)
	if err != nil {
		return nil, err
	}
	defer leave()
	f, made := i.find(cfg, r.GetRecord())
	if made == nil {
		if made = i.guess(cfg, c); made == nil {
			made = &record{ID: pluginID(c.GetId()), Done: true}
		}
	}
	if slices.ContainsFunc(made.Networks, func(a attachment) bool { return a.Begun && !a.Gone }) {
		// The next task may have the ports already. They do not wait for their turn at plugins.
		if err := i.disconnect(ctx, made); err != nil {
			return nil, explain(ctx, err)
		}
		done, err := i.dels.enter(ctx)
		if err != nil {
			return nil, err
		}
		defer done()
	}
	// Rules that this module makes itself are found by the container's id as they are.
	begun := slices.ContainsFunc(made.Networks, func(a attachment) bool { return a.Begun && a.Rules != byKernel })
	if err := i.detach(ctx, cfg, f, made); err != nil {
		return nil, explain(ctx, err)
	}
	if _, err := exec.LookPath("iptables-save"); err == nil && begun {
		if err := i.sweepRules(ctx, made.ID); err != nil {
			return nil, explain(ctx, err)
		}
	}
	i.health.ended(i.events, c.GetId())
	return &isolatorv1.CleanupResponse{}, nil
}

// Recover says which containers' states it cannot read, and has the networks of the others checked.
func (i *Isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	cfg := i.config.Get()
	answer := &isolatorv1.RecoverResponse{}
	var live []*isolatorv1.ContainerRecord
	for {
		page, err := s.Recv()
		if err != nil {
			break
		}
		for _, r := range page.GetContainers() {
			switch {
			case len(r.GetState()) == 0:
			case r.GetStateVersion() != stateVersion || parseRecord(r.GetState()) == nil:
				answer.Unknown = append(answer.Unknown, r.GetContainer().GetId())
			case !r.GetOrphan() && r.GetPid() > 0 && cfg.CheckOnRecover:
				live = append(live, &isolatorv1.ContainerRecord{
					Container: &containerv1.Container{Id: r.GetContainer().GetId()},
					State:     r.GetState(), StateVersion: r.GetStateVersion(),
				})
			}
		}
	}
	i.checks.start(i, cfg, live)
	return s.SendAndClose(answer)
}

// Status tells the addresses of containers. Those nested in one that has networks, and without their own, have its.
func (i *Isolator) Status(_ context.Context, r *isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error) {
	cfg := i.config.Get()
	results := map[string]*isolatorv1.StatusResult{}
	for _, rec := range r.GetRecords() {
		made := parseRecord(rec.GetState())
		for id := rec.GetContainer().GetParentId(); made == nil && id != ""; id = parentOf(id) {
			made, _ = folderOf(cfg.RunDir, id).load() // gone with the parent, at the worst
		}
		if made == nil || len(made.Networks) == 0 {
			continue
		}
		results[rec.GetContainer().GetId()] = &isolatorv1.StatusResult{Status: &mesosv1.ContainerStatus{NetworkInfos: made.infos()}}
	}
	return &isolatorv1.StatusResponse{Results: results}, nil
}

// parentOf is the id of the container that id is nested in, or "".
func parentOf(id string) string {
	if dot := strings.LastIndexByte(id, '.'); dot > 0 {
		return id[:dot]
	}
	return ""
}

// infos are the networks as they were asked for, with the addresses that were given.
func (r *record) infos() []*mesosv1.NetworkInfo {
	var list []*mesosv1.NetworkInfo
	for n := range r.Networks {
		a := &r.Networks[n]
		info := a.info()
		info.IpAddresses = nil
		for _, ip := range addresses(a.Result) {
			protocol, text := mesosv1.NetworkInfo_IPv4, ip.String()
			if ip.Is6() {
				protocol = mesosv1.NetworkInfo_IPv6
			}
			info.IpAddresses = append(info.IpAddresses, &mesosv1.NetworkInfo_IPAddress{Protocol: &protocol, IpAddress: &text})
		}
		list = append(list, info)
	}
	return list
}

// Usage measures containers with a namespace of their own.
func (i *Isolator) Usage(_ context.Context, r *isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error) {
	cfg := i.config.Get()
	results := map[string]*isolatorv1.UsageResult{}
	for _, rec := range r.GetRecords() {
		if len(rec.GetState()) == 0 {
			continue
		}
		id := rec.GetContainer().GetId()
		netns := folderOf(cfg.RunDir, id).netns()
		if !isNetns(netns) {
			_, made := i.find(cfg, rec)
			if made == nil {
				continue
			}
			netns = made.Netns
		}
		s, err := measure(netns)
		if err != nil {
			results[id] = &isolatorv1.UsageResult{Error: fmt.Sprintf("network namespace of container %s: %v", id, err)}
			continue
		}
		results[id] = &isolatorv1.UsageResult{Statistics: s}
	}
	return &isolatorv1.UsageResponse{Results: results}, nil
}
