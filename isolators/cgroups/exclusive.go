package cgroups

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Who has cores of its own: containers that ask for it by the label, or all whose cpus are whole.
const (
	exclusiveLabel = "mosaic.cpus"
	exclusiveValue = "exclusive"
	exclusiveAsked = "asked"
	exclusiveWhole = "whole"
)

// stateVersion is that of grant in JSON.
const stateVersion = 1

// grant is what one container has and no other may: it is the module's only state, and the agent keeps it.
type grant struct {
	Cores   []int  `json:"cores,omitempty"`
	ClassID uint32 `json:"class_id,omitempty"`
}

func (g grant) empty() bool { return len(g.Cores) == 0 && g.ClassID == 0 }

func (g grant) marshal() ([]byte, error) {
	if g.empty() {
		return nil, nil
	}
	return json.Marshal(g)
}

// grants says who has what. Nothing in it is given again before its Cleanup.
type grants struct {
	mu     sync.Mutex // guards what follows
	by     map[string]grant
	opaque map[string]bool // containers whose state we cannot read
	told   bool            // Recover has said what lives
	freed  chan struct{}   // closed and replaced when something was given back
}

func newGrants() *grants {
	return &grants{by: map[string]grant{}, opaque: map[string]bool{}, freed: make(chan struct{})}
}

// await is change, but waits for a while where something is taken: a task's end is told, and its cpus are offered again,
// before its container is cleaned up.
func (g *grants) await(ctx context.Context, patience time.Duration, id string, f func(before grant, others []grant) (grant, error)) (grant, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		g.mu.Lock()
		freed := g.freed
		g.mu.Unlock()
		now, err := g.change(id, f)
		if status.Code(err) != codes.ResourceExhausted || patience == 0 {
			return now, err
		}
		select {
		case <-freed:
		case <-timer.C:
			return grant{}, err
		case <-ctx.Done():
			return grant{}, status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (g *grants) of(id string) grant {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.by[id]
}

// change replaces what a container has by what f makes of it and of all that others have. An error changes nothing.
func (g *grants) change(id string, f func(before grant, others []grant) (grant, error)) (grant, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.told {
		return grant{}, status.Error(codes.Unavailable, "which cores live containers have is not known yet")
	}
	for other := range g.opaque {
		return grant{}, module.FailedPrecondition("container %s has cores or a network class by a state that this version cannot read: no more are given until it has ended", other)
	}
	var others []grant
	for other, had := range g.by {
		if other != id {
			others = append(others, had)
		}
	}
	now, err := f(g.by[id], others)
	if err != nil {
		return grant{}, err
	}
	if had := g.by[id]; len(now.Cores) < len(had.Cores) {
		g.free()
	}
	if now.empty() {
		delete(g.by, id)
	} else {
		g.by[id] = now
	}
	return now, nil
}

// recover takes over what the agent kept. It takes nothing away: what was given since the agent last wrote is given.
func (g *grants) recover(id string, state []byte, version uint32) error {
	var had grant
	err := fmt.Errorf("state version %d, want %d", version, stateVersion)
	if version == stateVersion {
		err = json.Unmarshal(state, &had)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, known := g.by[id]; known {
		return nil
	}
	if err != nil {
		g.opaque[id] = true
		return err
	}
	delete(g.opaque, id)
	if !had.empty() {
		g.by[id] = had
	}
	return nil
}

func (g *grants) known() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.told = true
}

func (g *grants) forget(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.by, id)
	delete(g.opaque, id)
	g.free()
}

// free wakes those that wait. mu is held.
func (g *grants) free() {
	close(g.freed)
	g.freed = make(chan struct{})
}

// mostCores bounds numbers of cores; Linux can be built for 8192.
const mostCores = 1 << 13

// parseCores reads a list of cores as the kernel writes it: "0-3,7".
func parseCores(text string) ([]int, error) {
	var list []int
	for _, part := range strings.Split(strings.TrimSpace(text), ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("got %.40q, want a list such as 0-3,7", text)
		}
		b, err := strconv.ParseUint(last, 10, 16)
		if err != nil || b < a || b >= mostCores {
			return nil, fmt.Errorf("got %.40q, want a list such as 0-3,7", text)
		}
		for n := int(a); n <= int(b); n++ {
			if !slices.Contains(list, n) {
				list = append(list, n)
			}
		}
	}
	slices.Sort(list)
	return list, nil
}

// formatCores writes a sorted list as the kernel does.
func formatCores(list []int) string {
	var b strings.Builder
	for i := 0; i < len(list); {
		j := i
		for j+1 < len(list) && list[j+1] == list[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(list[i]))
		if j > i {
			b.WriteString("-" + strconv.Itoa(list[j]))
		}
		i = j + 1
	}
	return b.String()
}

// onlineCores are those of the machine.
func onlineCores() ([]int, error) {
	text, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, err
	}
	return parseCores(string(text))
}

// cores are the two sets that the machine's cores are divided into; both empty if nothing is exclusive.
type cores struct{ exclusive, shared []int }

// divide checks the configured list against the machine.
func divide(list string, online []int) (cores, error) {
	if list == "" {
		return cores{}, nil
	}
	var c cores
	var err error
	if c.exclusive, err = parseCores(list); err != nil {
		return cores{}, module.Wrong("exclusive_cores", "%v", err)
	}
	for _, n := range c.exclusive {
		if !slices.Contains(online, n) {
			return cores{}, module.Wrong("exclusive_cores", "got core %d, want some of %s, which this machine has", n, formatCores(online))
		}
	}
	c.shared = slices.DeleteFunc(slices.Clone(online), func(n int) bool { return slices.Contains(c.exclusive, n) })
	if len(c.shared) == 0 {
		return cores{}, module.Wrong("exclusive_cores", "got all cores of the machine, want at least one left for containers without cores of their own")
	}
	return c, nil
}

// wantsCores says how many cores of its own a container is to have; must says that it asked for them.
func wantsCores(cfg *Config, c *containerv1.Container) (n int, must bool, err error) {
	cpus, revocable := sum(c.GetResources(), "cpus")
	whole := cpus >= 1 && cpus == math.Trunc(cpus) && cpus < mostCores && !revocable
	switch v := c.GetLabels()[exclusiveLabel]; v {
	case "":
	case exclusiveValue:
		if !whole {
			return 0, true, module.InvalidArgument("label %s=%s: got %v cpus, want a whole number that is not revocable", exclusiveLabel, exclusiveValue, cpus)
		}
		return int(cpus), true, nil
	default:
		return 0, true, module.InvalidArgument("label %s: got %.40q, want %s", exclusiveLabel, v, exclusiveValue)
	}
	if cfg.ExclusiveFor == exclusiveWhole && whole {
		return int(cpus), false, nil
	}
	return 0, false, nil
}

// pick gives n cores out of all: those that the container has first, then the lowest that are free. Less than n is nil.
func pick(all []int, n int, before grant, others []grant) []int {
	var list []int
	add := func(from []int) {
		for _, core := range from {
			taken := slices.ContainsFunc(others, func(g grant) bool { return slices.Contains(g.Cores, core) })
			if len(list) < n && !taken && !slices.Contains(list, core) && slices.Contains(all, core) {
				list = append(list, core)
			}
		}
	}
	add(before.Cores)
	add(all)
	if len(list) < n {
		return nil
	}
	slices.Sort(list)
	return list
}

// assign gives a container its cores and network class, as far as the configuration has such, and the cpuset that
// follows. Those without cores of their own run on the cores that are nobody's.
func (i *Isolator) assign(ctx context.Context, c *containerv1.Container) (had grant, cpuset string, err error) {
	cfg, set := i.config.Get(), i.divided()
	n, must, err := wantsCores(cfg, c)
	if err != nil {
		return grant{}, "", err
	}
	if len(set.exclusive) == 0 {
		if must {
			return grant{}, "", module.FailedPrecondition("no cores are set aside here for containers of their own (exclusive_cores)")
		}
		n = 0
	}
	if n > len(set.exclusive) {
		if must {
			return grant{}, "", status.Errorf(codes.ResourceExhausted, "got a request for %d cores of its own, and there are %d here", n, len(set.exclusive))
		}
		n = 0
	}
	classes, err := cfg.classes()
	if err != nil {
		return grant{}, "", module.FailedPrecondition("%v", err)
	}
	before := i.grants.of(c.GetId())
	if n > 0 || !classes.empty() || !before.empty() {
		had, err = i.grants.await(ctx, cfg.Patience, c.GetId(), func(before grant, others []grant) (now grant, err error) {
			if n > 0 {
				if now.Cores = pick(set.exclusive, n, before, others); now.Cores == nil && must {
					free := len(set.exclusive)
					for _, g := range others {
						free -= len(g.Cores)
					}
					return now, status.Errorf(codes.ResourceExhausted, "got a request for %d cores of its own, and %d of %d are free here", n, max(free, 0), len(set.exclusive))
				}
			}
			now.ClassID, err = classes.pick(before, others)
			return now, err
		})
		if err != nil {
			return grant{}, "", err
		}
	}
	if len(had.Cores) > 0 {
		return had, formatCores(had.Cores), nil
	}
	return had, formatCores(set.shared), nil
}

func (i *Isolator) divided() cores {
	if p := i.cores.Load(); p != nil {
		return *p
	}
	return cores{}
}
