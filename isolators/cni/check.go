package cni

import (
	"context"
	"fmt"
	"sync"
	"time"

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

// start begins a round; what it finds is told as the module's health.
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
	failed, first := 0, ""
	for _, rec := range records {
		if ctx.Err() != nil {
			return
		}
		if err := i.checkOne(ctx, cfg, rec); err != nil && ctx.Err() == nil {
			if failed++; first == "" {
				first = fmt.Sprintf("container %s: %v", rec.GetContainer().GetId(), err)
			}
		}
	}
	i.events.Metrics(
		&modulev1.Metrics_Sample{Name: "checked_containers", Value: float64(len(records))},
		&modulev1.Metrics_Sample{Name: "failed_checks", Value: float64(failed)})
	if failed > 0 {
		i.events.Health(modulev1.Health_DEGRADED, fmt.Sprintf("networks of %d of %d running containers fail their check; %s", failed, len(records), first))
	}
}

// checkOne checks one container's networks. One that is being cleaned up is in order.
func (i *Isolator) checkOne(ctx context.Context, cfg *Config, rec *isolatorv1.ContainerRecord) error {
	ctx, leave, err := i.enter(ctx, rec.GetContainer().GetId(), checking)
	if err != nil {
		return nil // another call for it is at work
	}
	defer leave()
	_, r := i.find(cfg, rec)
	if r == nil {
		return nil // cleaned up meanwhile
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
		if err := in.check(ctx, net, a.Result); err != nil && ctx.Err() == nil {
			return fmt.Errorf("network %s: %w", a.Network, err)
		}
	}
	return nil
}
