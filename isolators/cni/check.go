package cni

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// checks lets plugins check running containers' networks, one after the other: nobody waits for it. A later round takes
// the place of one that goes on.
type checks struct {
	mu   sync.Mutex // guards stop and done
	stop context.CancelFunc
	done chan struct{} // closed when the round is over
}

// start begins a round; what it finds is told as the module's health, as long as the containers live.
func (c *checks) start(i *Isolator, cfg *Config, records []*isolatorv1.ContainerRecord) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stop != nil {
		c.stop()
		<-c.done
	}
	c.stop = nil
	if len(records) == 0 {
		return
	}
	// Each plugin has its own bound, and no chain is longer than a dozen or so.
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(len(records))*time.Minute)
	c.stop, c.done = cancel, make(chan struct{})
	done := c.done
	go func() {
		defer close(done)
		defer cancel()
		i.checkAll(ctx, cfg, records)
	}()
}

// wait returns when the round that goes on is over.
func (c *checks) wait() {
	c.mu.Lock()
	done := c.done
	c.mu.Unlock()
	if done != nil {
		<-done
	}
}

func (i *Isolator) checkAll(ctx context.Context, cfg *Config, records []*isolatorv1.ContainerRecord) {
	failed := 0
	for _, rec := range records {
		if ctx.Err() != nil {
			return
		}
		if i.checkOne(ctx, cfg, rec) != nil {
			failed++
		}
	}
	i.events.Metrics(
		&modulev1.Metrics_Sample{Name: "checked_containers", Value: float64(len(records))},
		&modulev1.Metrics_Sample{Name: "failed_checks", Value: float64(failed)})
}

// health is what is wrong, as far as the host is told.
type health struct {
	mu       sync.Mutex        // guards what follows
	problems []string          // of the configuration
	failing  map[string]string // running containers that failed their check, with the reason
}

// set changes it and tells the host if it is another.
func (h *health) set(events *module.Events, change func(*health)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.reason()
	change(h)
	switch after := h.reason(); {
	case after == before:
	case after == "":
		events.Health(modulev1.Health_OK, "")
	default:
		events.Health(modulev1.Health_DEGRADED, after)
	}
}

// ended forgets a container's failure with the container.
func (h *health) ended(events *module.Events, id string) {
	h.set(events, func(h *health) { delete(h.failing, id) })
}

// reason needs mu held.
func (h *health) reason() string {
	list := slices.Clone(h.problems)
	if len(h.failing) > 0 {
		first := slices.Min(slices.Collect(maps.Keys(h.failing)))
		list = append(list, fmt.Sprintf("networks of %d running containers fail their check, of container %s: %s", len(h.failing), first, h.failing[first]))
	}
	return strings.Join(list, "; ")
}

// checkOne checks one container's networks, and tells what fails as health. One that is being cleaned up is in order.
func (i *Isolator) checkOne(ctx context.Context, cfg *Config, rec *isolatorv1.ContainerRecord) (err error) {
	ctx, leave, err := i.enter(ctx, rec.GetContainer().GetId(), checking)
	if err != nil {
		return nil // another call for it is at work
	}
	defer leave()
	defer func() { // before leave, so that a Cleanup finds it to be forgotten
		if ctx.Err() != nil {
			err = nil
		}
		if err != nil {
			i.health.set(i.events, func(h *health) { h.failing[rec.GetContainer().GetId()] = err.Error() })
		}
	}()
	f, _ := i.find(cfg, rec)
	r, err := f.load()
	if err != nil || r == nil {
		return err // without a record it was cleaned up meanwhile
	}
	if !isNetns(r.Netns) {
		return fmt.Errorf("network namespace %s is gone", r.Netns)
	}
	for n := range r.Networks {
		a := &r.Networks[n]
		if a.Gone || len(a.Config) == 0 {
			continue
		}
		net, err := parseNetwork(a.Config)
		if err != nil {
			return err
		}
		in, err := cfg.invocation(r, a)
		if err != nil {
			return err
		}
		if err := in.check(ctx, net, a.Result); err != nil {
			return fmt.Errorf("network %s: %w", a.Network, err)
		}
		if err := connect(ctx, r, a, nobodyYields); err != nil { // what a firewall that was loaded anew has lost
			return fmt.Errorf("network %s: %w", a.Network, err)
		}
	}
	return nil
}
