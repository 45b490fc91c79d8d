package agent

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// What the agent has to offer: what the configuration says, and for the four resources of Mesos that it does not
// mention, what the machine has, less what Mesos leaves to the system.

const (
	// DefaultPorts is what is offered of ports where the configuration does not mention them.
	DefaultPorts = "ports:[31000-32000]"

	mib = 1 << 20
	gib = 1 << 30
)

// agentInfo describes the agent by its configuration, without an id.
func (c *Config) agentInfo() (*mesosv1.AgentInfo, error) {
	hostname := c.Hostname
	if hostname == "" {
		h, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("hostname: %w", err)
		}
		hostname = h
	}
	rs, err := c.resources(machine{})
	if err != nil {
		return nil, err
	}
	attributes, err := resources.ParseAttributes(c.Attributes)
	if err != nil {
		return nil, fmt.Errorf("attributes: %w", err)
	}
	return &mesosv1.AgentInfo{
		Hostname:   new(hostname),
		Port:       new(int32(c.Port)),
		Resources:  rs,
		Attributes: attributes,
		Domain:     c.Domain,
	}, nil
}

// resources completes the configured resources with detected ones.
func (c *Config) resources(m facts) ([]*mesosv1.Resource, error) {
	role := c.DefaultRole
	if role == "" {
		role = "*"
	}
	rs, err := resources.Parse(c.Resources, role)
	if err != nil {
		return nil, err
	}
	set := resources.New(rs...)
	for _, name := range []string{"cpus", "mem", "disk", "ports"} {
		if !set.Named(name).Empty() {
			continue
		}
		text := DefaultPorts
		if name != "ports" {
			var v float64
			switch name {
			case "cpus":
				v = float64(m.cpus())
			case "mem":
				b, err := m.memory()
				if err != nil {
					return nil, fmt.Errorf("detect mem: %w; set it in resources", err)
				}
				v = float64(share(b, 2*gib, gib) / mib)
			case "disk":
				b, err := m.disk(c.WorkDir)
				if err != nil {
					return nil, fmt.Errorf("detect disk: %w; set it in resources", err)
				}
				v = float64(share(b, 10*gib, 5*gib) / mib)
			}
			text = fmt.Sprintf("%s:%v", name, v)
		}
		more, err := resources.Parse(text, role)
		if err != nil {
			return nil, fmt.Errorf("detected %w", err)
		}
		set = set.Add(resources.New(more...))
	}
	return set.Resources(), nil
}

// share leaves rest to the system where there is more than enough, else half. Source: Mesos, which does so for mem
// (1 of more than 2 GB) and disk (5 of more than 10 GB).
func share(have, enough, rest uint64) uint64 {
	if have > enough {
		return have - rest
	}
	return have / 2
}

// facts are what a machine has.
type facts interface {
	cpus() int
	memory() (bytes uint64, err error)
	disk(dir string) (bytes uint64, err error)
}

type machine struct{}

func (machine) cpus() int { return runtime.NumCPU() }

func (machine) memory() (uint64, error) {
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err != nil {
		return 0, fmt.Errorf("sysinfo: %w", err)
	}
	return uint64(s.Totalram) * uint64(s.Unit), nil
}

func (machine) disk(dir string) (uint64, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return s.Blocks * uint64(s.Bsize), nil
}

// compatible says what of new an agent that was old may not come back with. Source: Mesos,
// src/slave/compatibility.cpp.
func compatible(old, new *mesosv1.AgentInfo, policy string) error {
	additive := policy == "additive"
	switch {
	case old.GetHostname() != new.GetHostname():
		return fmt.Errorf("hostname: got %q, this agent is %q", new.GetHostname(), old.GetHostname())
	case old.GetPort() != new.GetPort():
		return fmt.Errorf("port: got %d, this agent has %d", new.GetPort(), old.GetPort())
	case !old.GetDomain().EqualVT(new.GetDomain()) && !(additive && old.GetDomain() == nil):
		return fmt.Errorf("domain: got %v, this agent is in %v", new.GetDomain(), old.GetDomain())
	}
	was, is := resources.New(old.GetResources()...), resources.New(new.GetResources()...)
	if !was.Equal(is) && !(additive && is.Contains(was)) {
		return fmt.Errorf("resources: got %v, this agent has %v", is, was)
	}
	missing := func(have, want []*mesosv1.Attribute) *mesosv1.Attribute {
		for _, w := range want {
			found := false
			for _, h := range have {
				found = found || sameAttribute(h, w, additive)
			}
			if !found {
				return w
			}
		}
		return nil
	}
	if x := missing(new.GetAttributes(), old.GetAttributes()); x != nil {
		return fmt.Errorf("attribute %q: this agent has it with another value", x.GetName())
	}
	if !additive {
		if x := missing(old.GetAttributes(), new.GetAttributes()); x != nil {
			return fmt.Errorf("attribute %q: this agent does not have it, or with another value", x.GetName())
		}
	}
	return nil
}

// sameAttribute tells whether have serves where want was; ranges may grow when additive.
func sameAttribute(have, want *mesosv1.Attribute, additive bool) bool {
	if have.EqualVT(want) {
		return true
	}
	if !additive || have.GetName() != want.GetName() || have.GetType() != mesosv1.Value_RANGES ||
		want.GetType() != mesosv1.Value_RANGES {
		return false
	}
	return rangesOf(have).Contains(rangesOf(want))
}

func rangesOf(a *mesosv1.Attribute) resources.Ranges {
	var rs []resources.Range
	for _, r := range a.GetRanges().GetRange() {
		rs = append(rs, resources.Range{Begin: r.GetBegin(), End: r.GetEnd()})
	}
	return resources.NewRanges(rs...)
}
