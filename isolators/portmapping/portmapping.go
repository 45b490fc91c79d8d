// Package portmapping is the isolator that gives every container without an address of its own a network namespace in
// which it has the machine's address, and a range of ports nobody else uses.
//
// It promises that two containers never send from or receive on the same port, that packets from outside reach a
// container only on ports it was given, and that a container sends and receives no faster than its limits. It measures
// what each sends and receives. Everything it makes are objects of the kernel: a pair of linked interfaces and one
// queue each, and two small programs with one table of ports between them, which outlive the module. The table is the
// only record of who has which port, so that there is no other that could differ from it.
//
// It leaves containers with named networks to others, and names (hosts, resolv.conf) to the machine's. The choice of
// means is told in docs/decisions/0010.
package portmapping

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// Config is what the operator may set. The names are those of Mesos's agent flags where it has one.
type Config struct {
	Uplink    string `hcl:"eth0_name,optional" doc:"Interface that leads outside; unset takes the default route's."`
	Address   string `hcl:"address,optional" doc:"The machine's IPv4 address that containers share; unset takes the first of the interface."`
	Ephemeral string `hcl:"ephemeral_ports,optional" doc:"Ports from which containers get their ranges, such as [40000-59999]; the machine itself must not use them."`
	Per       int    `hcl:"ephemeral_ports_per_container,optional" doc:"Size of a container's range." min:"16" max:"32768"`

	EgressRate    module.Size `hcl:"egress_rate_limit_per_container,optional" doc:"Most bytes per second that a container sends; 0 is no limit."`
	EgressPerCPU  module.Size `hcl:"egress_rate_per_cpu,optional" doc:"The same for each cpu of the container."`
	EgressMin     module.Size `hcl:"minimum_egress_rate_limit,optional" doc:"Least limit that follows from cpus."`
	EgressMax     module.Size `hcl:"maximum_egress_rate_limit,optional" doc:"Highest limit that follows from cpus; 0 is none."`
	EgressCeil    module.Size `hcl:"egress_ceil_limit,optional" doc:"Bytes per second within a burst; 0 is the limit itself."`
	EgressBurst   module.Size `hcl:"egress_burst,optional" doc:"Bytes that may be sent at once before the limit holds."`
	UniqueFlow    bool        `hcl:"egress_unique_flow_per_container,optional" doc:"A fair queue (fq_codel) for each container, so that bulk does not delay the rest."`
	IngressRate   module.Size `hcl:"ingress_rate_limit_per_container,optional" doc:"Most bytes per second that a container receives; 0 is no limit."`
	IngressPerCPU module.Size `hcl:"ingress_rate_per_cpu,optional" doc:"The same for each cpu of the container."`
	IngressMin    module.Size `hcl:"minimum_ingress_rate_limit,optional" doc:"Least limit that follows from cpus."`
	IngressMax    module.Size `hcl:"maximum_ingress_rate_limit,optional" doc:"Highest limit that follows from cpus; 0 is none."`
	IngressCeil   module.Size `hcl:"ingress_ceil_limit,optional" doc:"Bytes per second within a burst; 0 is the limit itself."`
	IngressBurst  module.Size `hcl:"ingress_burst,optional" doc:"Bytes that may be received at once before the limit holds."`

	Patience time.Duration `hcl:"patience,optional" doc:"How long a launch waits for ports whose container has ended and is not cleaned up yet." min:"0s" max:"4s"`

	Summary bool `hcl:"network_enable_socket_statistics_summary,optional" doc:"Count a container's connections."`
	Details bool `hcl:"network_enable_socket_statistics_details,optional" doc:"Percentiles of the round trip times of its connections."`
	SNMP    bool `hcl:"network_enable_snmp_statistics,optional" doc:"The kernel's counters of IP, ICMP, TCP and UDP."`
}

// pool gives the ports that ranges are taken from.
func (c *Config) pool() (resources.Ranges, error) {
	var list []resources.Range
	inner := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(c.Ephemeral), "["), "]")
	for part := range strings.SplitSeq(inner, ",") {
		first, last, _ := strings.Cut(strings.TrimSpace(part), "-")
		begin, err1 := strconv.ParseUint(first, 10, 16)
		end, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || begin < 1024 || end < begin {
			return nil, fmt.Errorf("got %q, want ranges of ports from 1024 to 65535 such as [40000-59999]", c.Ephemeral)
		}
		list = append(list, resources.Range{Begin: begin, End: end})
	}
	return resources.NewRanges(list...), nil
}

func validate(c *Config) error {
	var errs []error
	if pool, err := c.pool(); err != nil {
		errs = append(errs, module.Wrong("ephemeral_ports", "%v", err))
	} else if pool.Count() < uint64(c.Per) {
		errs = append(errs, module.Wrong("ephemeral_ports_per_container", "got %d, want no more than the %d of ephemeral_ports", c.Per, pool.Count()))
	}
	if c.Address != "" {
		if a, err := netip.ParseAddr(c.Address); err != nil || !a.Is4() {
			errs = append(errs, module.Wrong("address", "got %q, want an IPv4 address", c.Address))
		}
	}
	if len(c.Uplink) > 15 || strings.ContainsAny(c.Uplink, "/ \x00") {
		errs = append(errs, module.Wrong("eth0_name", "got %q, want the name of an interface", c.Uplink))
	}
	for _, x := range []struct {
		name      string
		low, high module.Size
	}{{"egress", c.EgressMin, c.EgressMax}, {"ingress", c.IngressMin, c.IngressMax}} {
		if x.high > 0 && x.low > x.high {
			errs = append(errs, module.Wrong("minimum_"+x.name+"_rate_limit", "got %d, want no more than maximum_%s_rate_limit, which is %d", x.low, x.name, x.high))
		}
	}
	return errors.Join(errs...)
}

// Isolator is the module.
type Isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config *module.Config[Config]
	events *module.Events

	mu       sync.Mutex // guards what follows; held while ports are given out, never while interfaces are made
	steering *steering  // nil until the first container
	at       uplink     // what steering was made for
	told     bool       // health was told once
	missing  string     // what was missing then

	freed chan struct{} // closed and replaced when ports were given back
}

// New returns the module with its defaults: ranges of 1024 ports above those that Linux itself uses, no limits.
func New() *Isolator {
	return &Isolator{
		config: module.NewConfig(Config{Ephemeral: "[61000-65535]", Per: 1024, EgressBurst: 32 << 10, IngressBurst: 32 << 10, Patience: 3 * time.Second}, validate),
		events: module.NewEvents(), freed: make(chan struct{}),
	}
}

// Info describes the module.
func (i *Isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "port_mapping", Version: "1.0.0", Doc: "ports, rate limits and statistics for containers that share the machine's address",
		Calls: []string{"isolate", "update", "usage"}, Powers: []string{"mounts", "namespaces"}, Standalone: true, NeedsRoot: true,
		Platforms: []string{"linux/amd64", "linux/arm64"}, Config: i.config, Events: i.events, Configured: i.configured,
	}
}

// configured looks whether the machine has what is needed; it changes nothing. Ports that the agent offers cannot be a
// container's of its own as well.
func (i *Isolator) configured(_ context.Context, node *modulev1.NodeFacts) error {
	if pool, err := i.config.Get().pool(); err == nil {
		if both := pool.Intersect(rangesOf(node.GetPorts())); len(both) > 0 {
			return module.Wrong("ephemeral_ports", "got %s, of which the agent offers %v as ports in its resources: want ports that it does not offer", i.config.Get().Ephemeral, both)
		}
	}
	i.mu.Lock()
	i.forget() // another interface or address may hold
	i.mu.Unlock()
	i.health(i.ready())
	return nil
}

// health tells of what is missing, and when it no longer is. Degraded and not failed, since each launch looks again: an
// uplink may come up after the agent.
func (i *Isolator) health(missing error) {
	reason := ""
	if missing != nil {
		reason = missing.Error()
	}
	i.mu.Lock()
	same := i.told && i.missing == reason
	i.told, i.missing = true, reason
	i.mu.Unlock()
	switch {
	case same:
	case reason == "":
		i.events.Health(modulev1.Health_OK, "")
	default:
		i.events.Health(modulev1.Health_DEGRADED, reason)
	}
}

// ready says what is missing on the machine.
func (i *Isolator) ready() error {
	cfg := i.config.Get()
	if _, err := findUplink(cfg); err != nil {
		return err
	}
	return poolIsFree(cfg)
}

// addressed says whether a container has its network from somebody else.
func addressed(c *containerv1.Container) bool {
	info := c.GetContainerInfo()
	for _, n := range info.GetNetworkInfos() {
		if n.GetName() != "" {
			return true
		}
	}
	switch info.GetDocker().GetNetwork() {
	case mesosv1.ContainerInfo_DockerInfo_BRIDGE, mesosv1.ContainerInfo_DockerInfo_USER:
		return info.GetDocker().Network != nil
	}
	return false
}

// mine says whether a container is to have ports from here. Nested ones share their root's network.
func mine(c *containerv1.Container) bool { return c.GetParentId() == "" && !addressed(c) }

// askable refuses what a container asks of its network and does not get here.
func askable(c *containerv1.Container) error {
	for _, n := range c.GetContainerInfo().GetNetworkInfos() {
		for _, a := range n.GetIpAddresses() {
			if a.GetIpAddress() != "" || a.GetProtocol() == mesosv1.NetworkInfo_IPv6 {
				return module.FailedPrecondition("a container without a named network has the machine's IPv4 address and no other")
			}
		}
		for _, m := range n.GetPortMappings() {
			if m.GetHostPort() != m.GetContainerPort() {
				return module.FailedPrecondition("port %d as %d: a container without a named network listens on the ports that it was given", m.GetHostPort(), m.GetContainerPort())
			}
			if port := uint64(m.GetHostPort()); !portsOf(c).Contains(resources.Ranges{{Begin: port, End: port}}) {
				return module.FailedPrecondition("port %d is asked for, but was not given to the container", port)
			}
		}
	}
	return nil
}

// Prepare proposes the namespace. It is furnished in Isolate, when there is one.
func (i *Isolator) Prepare(_ context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	c := r.GetContainer()
	if !mine(c) {
		return &isolatorv1.PrepareResponse{}, nil
	}
	if err := askable(c); err != nil {
		return nil, err
	}
	p := &containerv1.Proposal{Namespaces: []*containerv1.Namespace{{Type: containerv1.Namespace_NETWORK}}}
	if c.GetRootfs() != "" {
		// It shares the machine's address, and so its names.
		for _, file := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
			p.Mounts = append(p.Mounts, &containerv1.Mount{Destination: file, Source: file, Type: "bind", Options: []string{"bind", "ro"}})
		}
	}
	return &isolatorv1.PrepareResponse{Proposal: p}, nil
}

// Isolate furnishes the container's namespace: ports, interfaces, routes and limits.
func (i *Isolator) Isolate(ctx context.Context, r *isolatorv1.IsolateRequest) (*isolatorv1.IsolateResponse, error) {
	if !mine(r.GetRecord().GetContainer()) {
		return &isolatorv1.IsolateResponse{}, nil
	}
	if err := i.furnish(ctx, r.GetRecord(), i.config.Get().Patience); err != nil {
		return nil, err
	}
	return &isolatorv1.IsolateResponse{}, nil
}

// Update takes over other ports and limits.
func (i *Isolator) Update(ctx context.Context, r *isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
	if rec := r.GetRecord(); mine(rec.GetContainer()) && rec.GetPid() > 0 {
		if err := i.furnish(ctx, rec, i.config.Get().Patience); err != nil {
			return nil, err
		}
	}
	return &isolatorv1.UpdateResponse{}, nil
}

// Recover furnishes anew what lives: what is there is left as it is. What cannot be furnished is reported by health,
// since the container runs.
func (i *Isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	for {
		page, err := s.Recv()
		if err != nil {
			return s.SendAndClose(&isolatorv1.RecoverResponse{})
		}
		for _, r := range page.GetContainers() {
			c := r.GetContainer()
			if r.GetOrphan() || !mine(c) || r.GetPid() <= 0 || !isFurnished(c.GetId()) {
				continue
			}
			if err := i.furnish(s.Context(), r, 0); err != nil {
				i.events.Health(modulev1.Health_DEGRADED, fmt.Sprintf("network of container %.80s: %v", c.GetId(), err))
			}
		}
	}
}

// Cleanup takes the container's interfaces and ports back, and after the last container the programs.
func (i *Isolator) Cleanup(_ context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	id := r.GetRecord().GetContainer().GetId()
	// The interface first: as long as it exists, packets for its ports must not go to another.
	if err := removeLink(id); err != nil {
		return nil, module.FailedPrecondition("remove the interface of container %.80q: %v", id, err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.steering == nil {
		s, err := findSteering()
		if err != nil {
			return nil, module.FailedPrecondition("find the table of ports: %v", err)
		}
		if s == nil {
			return &isolatorv1.CleanupResponse{}, nil // nothing was ever made
		}
		defer s.close()
		return &isolatorv1.CleanupResponse{}, s.release(id)
	}
	if err := i.steering.release(id); err != nil {
		return nil, err
	}
	close(i.freed)
	i.freed = make(chan struct{})
	if i.steering.gone {
		i.forget()
	}
	return &isolatorv1.CleanupResponse{}, nil
}

// forget lets go of the programs without taking them away; mu is held.
func (i *Isolator) forget() {
	if i.steering != nil {
		i.steering.close()
		i.steering = nil
	}
}
