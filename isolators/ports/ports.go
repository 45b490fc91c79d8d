// Package ports is the isolator that finds containers listening on TCP ports of the machine that were not given to
// them. What it finds it reports, or, where the operator wants that, it has the container ended.
//
// It looks at the kernel's list of listening sockets at intervals and finds their owners by the container's cgroup, so
// that a container cannot hide one by its name or its parent. It promises to see every listener that lives longer than
// an interval; what comes and goes in between it does not see, and nothing here keeps a container from binding.
// Containers with a network namespace of their own have no listener on the machine and are never found. It changes
// nothing on the machine and keeps no state but in memory: Recover tells it what lives.
package ports

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// Config is what the operator may set. The names are those of Mesos's agent flags.
type Config struct {
	Enforce       bool          `hcl:"enforce_container_ports,optional" doc:"End containers that listen on ports they were not given; otherwise they are only reported."`
	AgentOnly     bool          `hcl:"check_agent_port_range_only,optional" doc:"Look only at ports of agent_port_range: others are free to all." conflicts:"container_ports_isolated_range"`
	AgentRange    string        `hcl:"agent_port_range,optional" doc:"The ports that the agent offers; unset takes those it tells."`
	IsolatedRange string        `hcl:"container_ports_isolated_range,optional" doc:"Look only at these ports, such as [1024-32767,61000-65535]; unset looks at all."`
	Interval      time.Duration `hcl:"container_ports_watch_interval,optional" doc:"Time between two looks." min:"10ms"`
}

// watched gives the ports that are looked at, where the agent offers these.
func (c *Config) watched(offered resources.Ranges) (resources.Ranges, error) {
	text := "[1-65535]"
	switch {
	case c.AgentOnly && c.AgentRange == "":
		return offered, nil
	case c.AgentOnly:
		text = c.AgentRange
	case c.IsolatedRange != "":
		text = c.IsolatedRange
	}
	return parseRanges(text)
}

// parseRanges reads "[31000-32000,33000-33000]", also without brackets and with single ports.
func parseRanges(text string) (resources.Ranges, error) {
	var list []resources.Range
	inner := strings.TrimSpace(text)
	inner = strings.TrimSuffix(strings.TrimPrefix(inner, "["), "]")
	for part := range strings.SplitSeq(inner, ",") {
		first, last, ok := strings.Cut(strings.TrimSpace(part), "-")
		if !ok {
			last = first
		}
		begin, err1 := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
		end, err2 := strconv.ParseUint(strings.TrimSpace(last), 10, 16)
		if err1 != nil || err2 != nil || begin == 0 || end < begin {
			return nil, fmt.Errorf("got %q, want ranges of ports such as [31000-32000,33000-33100]", text)
		}
		list = append(list, resources.Range{Begin: begin, End: end})
	}
	return resources.NewRanges(list...), nil
}

func validate(c *Config) error {
	var errs []error
	if c.AgentRange != "" {
		if _, err := parseRanges(c.AgentRange); err != nil {
			errs = append(errs, module.Wrong("agent_port_range", "%v", err))
		}
	}
	if c.IsolatedRange != "" {
		if _, err := parseRanges(c.IsolatedRange); err != nil {
			errs = append(errs, module.Wrong("container_ports_isolated_range", "%v", err))
		}
		if c.AgentOnly {
			errs = append(errs, module.Wrong("container_ports_isolated_range", "got it together with check_agent_port_range_only, want one of them"))
		}
	}
	return errors.Join(errs...)
}

// Isolator is the module.
type Isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config *module.Config[Config]
	events *module.Events
	log    *slog.Logger
	wake   chan struct{} // ends the wait between two looks early

	mu         sync.Mutex               // guards what follows
	containers map[string]tracked       // by id
	offered    resources.Ranges         // ports that the agent offers
	looking    bool                     // the goroutine that looks lives
	said       map[string]string        // last report by container id, so that it is not repeated each interval
	blind      string                   // why the last look failed
	totals     struct{ limited uint64 } // containers reported to be ended
}

// tracked is what is known of a container.
type tracked struct {
	root    string            // id of the root container it belongs to
	ports   resources.Ranges  // given to it
	cgroups map[string]string // controller to folder
}

// New returns the module with the defaults of Mesos: a look every 30 seconds that only reports.
func New() *Isolator {
	return &Isolator{
		config: module.NewConfig(Config{Interval: 30 * time.Second}, validate),
		events: module.NewEvents(), log: module.NewLogger(), wake: make(chan struct{}, 1),
		containers: map[string]tracked{}, said: map[string]string{},
	}
}

// Info describes the module.
func (i *Isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "ports", Version: "1.0.0", Doc: "finds listeners on ports that a container was not given",
		Calls: []string{"isolate", "update"}, Nesting: true, Standalone: true, NeedsRoot: true,
		Platforms: []string{"linux/amd64", "linux/arm64"}, Config: i.config, Events: i.events, Configured: i.configured,
	}
}

func (i *Isolator) configured(_ context.Context, node *modulev1.NodeFacts) error {
	i.mu.Lock()
	i.offered = rangesOf(node.GetPorts())
	i.mu.Unlock()
	_, err := listeners()
	switch {
	case err != nil && i.config.Get().Enforce:
		i.events.Health(modulev1.Health_FAILED, "listening sockets cannot be listed: "+err.Error())
	case err != nil:
		i.events.Health(modulev1.Health_DEGRADED, "listening sockets cannot be listed: "+err.Error())
	case node.GetCgroupVersion() == 0:
		i.events.Health(modulev1.Health_DEGRADED, "this machine gives containers no cgroups: whose a listener is cannot be told")
	default:
		i.events.Health(modulev1.Health_OK, "")
	}
	i.nudge() // another interval may hold
	return nil
}

func (i *Isolator) nudge() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// portsOf adds the ports of a container's resources.
func portsOf(c *containerv1.Container) resources.Ranges {
	var list []resources.Range
	for _, r := range c.GetResources() {
		if r.GetName() != "ports" || r.GetType() != mesosv1.Value_RANGES {
			continue
		}
		list = append(list, rangesOf(r.GetRanges())...)
	}
	return resources.NewRanges(list...)
}

func rangesOf(v *mesosv1.Value_Ranges) resources.Ranges {
	var list []resources.Range
	for _, r := range v.GetRange() {
		list = append(list, resources.Range{Begin: r.GetBegin(), End: r.GetEnd()})
	}
	return resources.NewRanges(list...)
}

// Prepare has nothing to propose.
func (i *Isolator) Prepare(context.Context, *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	return &isolatorv1.PrepareResponse{}, nil
}

// Isolate begins to look at the container.
func (i *Isolator) Isolate(_ context.Context, r *isolatorv1.IsolateRequest) (*isolatorv1.IsolateResponse, error) {
	if len(processFolders(r.GetRecord().GetCgroups())) == 0 && i.config.Get().Enforce {
		return nil, module.FailedPrecondition("container %.80q has no cgroup: whose a listener is cannot be told, and enforce_container_ports is set", r.GetRecord().GetContainer().GetId())
	}
	i.follow(r.GetRecord())
	return &isolatorv1.IsolateResponse{}, nil
}

// Update takes other ports over.
func (i *Isolator) Update(_ context.Context, r *isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
	i.follow(r.GetRecord())
	return &isolatorv1.UpdateResponse{}, nil
}

// Recover looks at what lives.
func (i *Isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	for {
		page, err := s.Recv()
		if err != nil {
			return s.SendAndClose(&isolatorv1.RecoverResponse{})
		}
		for _, r := range page.GetContainers() {
			if !r.GetOrphan() {
				i.follow(r)
			}
		}
	}
}

// Cleanup forgets the container.
func (i *Isolator) Cleanup(_ context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	id := r.GetRecord().GetContainer().GetId()
	delete(i.containers, id)
	delete(i.said, id)
	if len(i.containers) == 0 {
		i.nudge() // so that the goroutine ends
	}
	return &isolatorv1.CleanupResponse{}, nil
}

// follow begins to look at a container, or takes over what changed. One without a cgroup has no processes that could
// be found.
func (i *Isolator) follow(r *isolatorv1.ContainerRecord) {
	c := r.GetContainer()
	if len(processFolders(r.GetCgroups())) == 0 {
		return
	}
	root, _, _ := strings.Cut(c.GetId(), ".")
	i.mu.Lock()
	defer i.mu.Unlock()
	i.containers[c.GetId()] = tracked{root: root, ports: portsOf(c), cgroups: r.GetCgroups()}
	if !i.looking {
		i.looking = true
		go i.look() // lives while there are containers
	}
}
