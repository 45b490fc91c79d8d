package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	"github.com/mosaic-cluster/mosaic/sdk/scheduler"
)

const (
	scaleAgents     = 5_000
	scaleFrameworks = 10
	scaleTasks      = 100_000
	// scaleBatch is how many tasks a framework launches with one ACCEPT.
	scaleBatch = 10
	// scaleRoom is how many tasks fit on an agent: twice what comes, so that the last find room as the first did.
	scaleRoom = 2 * scaleTasks / scaleAgents
)

// placer launches tasks on whatever it is offered, and counts what runs.
type placer struct {
	client *scheduler.Client
	name   string

	mu       sync.Mutex
	next     int
	left     int
	launched []time.Time // when the ACCEPT was answered, one entry per task
	running  int
	done     chan struct{} // closed when all run
	total    int
}

func (p *placer) offers(ctx context.Context, offers []*mesosv1.Offer) error {
	for _, o := range offers {
		p.mu.Lock()
		n := min(scaleBatch, p.left, int(cluster.Scalar(o.GetResources(), "cpus")))
		p.left -= n
		first := p.next
		p.next += n
		p.mu.Unlock()
		ids := []*mesosv1.OfferID{o.GetId()}
		if n <= 0 {
			if err := p.client.Decline(ctx, ids, time.Hour); err != nil {
				return err
			}
			continue
		}
		tasks := make([]*mesosv1.TaskInfo, n)
		for i := range tasks {
			tasks[i] = cluster.Task(o, fmt.Sprintf("%s-%d", p.name, first+i), 1, 32, cluster.Exec("true"))
		}
		err := p.client.Accept(ctx, ids, []*mesosv1.Offer_Operation{{
			Type: mesosv1.Offer_Operation_LAUNCH.Enum(), Launch: &mesosv1.Offer_Operation_Launch{TaskInfos: tasks},
		}}, 0)
		if err != nil {
			return err
		}
		now := time.Now()
		p.mu.Lock()
		for range n {
			p.launched = append(p.launched, now)
		}
		p.mu.Unlock()
	}
	return nil
}

func (p *placer) event(ctx context.Context, e *schedulerv1.Event) error {
	switch e.GetType() {
	case schedulerv1.Event_OFFERS:
		return p.offers(ctx, e.GetOffers().GetOffers())
	case schedulerv1.Event_UPDATE:
		s := e.GetUpdate().GetStatus()
		if s.GetState() != mesosv1.TaskState_TASK_RUNNING {
			return fmt.Errorf("task %s is %s: %s", s.GetTaskId().GetValue(), s.GetState(), s.GetMessage())
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.running++; p.running == p.total {
			close(p.done)
		}
	}
	return nil
}

// placements measures how fast the master places tasks on simulated agents, and whether the last are slower.
func (b *bench) placements() (err error) {
	if !b.report.wants("placements") {
		return nil
	}
	b.n++
	c, err := cluster.New(cluster.Options{Bin: b.bin, Dir: fmt.Sprintf("%s/%d", b.dir, b.n), Name: fmt.Sprintf("bench-%d", b.n)})
	if err != nil {
		return err
	}
	if err := c.StartMaster(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	ctx, cancel := context.WithTimeout(b.ctx, 5*time.Minute)
	defer cancel()
	if err := c.WaitMaster(ctx); err != nil {
		return err
	}
	amount := func(name string, v float64) *mesosv1.Resource {
		return &mesosv1.Resource{Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &v}}
	}
	t := time.Now()
	f, err := startFleet(ctx, c.Master, scaleAgents, []*mesosv1.Resource{amount("cpus", scaleRoom), amount("mem", 32*scaleRoom), amount("disk", 10000)})
	if err != nil {
		return fmt.Errorf("register %d agents: %w", scaleAgents, err)
	}
	b.report.add(row{fmt.Sprintf("placements/%d-agents-registered", scaleAgents), time.Since(t).Seconds(), "s", 0, 0})

	running, stop := context.WithCancel(ctx)
	group, gctx := errgroup.WithContext(running)
	var placers []*placer
	t = time.Now()
	for i := range scaleFrameworks {
		name, user := fmt.Sprintf("placer-%d", i), "root"
		p := &placer{name: name, left: scaleTasks / scaleFrameworks, total: scaleTasks / scaleFrameworks, done: make(chan struct{})}
		p.client = scheduler.New(scheduler.Config{Master: c.Master, Framework: &mesosv1.FrameworkInfo{
			Name: &name, User: &user, Roles: []string{name},
			Capabilities: []*mesosv1.FrameworkInfo_Capability{{Type: mesosv1.FrameworkInfo_Capability_MULTI_ROLE.Enum()}},
		}})
		placers = append(placers, p)
		group.Go(func() error { return p.client.Run(gctx, p.event) })
	}
	var all []time.Time
	for _, p := range placers {
		select {
		case <-p.done:
			all = append(all, p.launched...)
		case <-gctx.Done():
			stop()
			return errors.Join(fmt.Errorf("place tasks: %w", group.Wait()), f.stop())
		}
	}
	seen := time.Since(t)
	stop()
	_ = group.Wait() // told to end
	// Placed is what the master had answered by then.
	within := func(from, to int) float64 {
		slices.SortFunc(all, time.Time.Compare)
		begin := t
		if from > 0 {
			begin = all[from-1]
		}
		return float64(to-from) / all[to-1].Sub(begin).Seconds()
	}
	n := len(all)
	b.report.add(row{"placements/rate", within(0, n), "/s", 0, -5000})
	b.report.add(row{"placements/first-10000", within(0, n/10), "/s", 0, 0})
	b.report.add(row{"placements/last-10000", within(n-n/10, n), "/s", 0, -0.98 * within(0, n/10)})
	b.report.add(row{"placements/running-seen-rate", float64(n) / seen.Seconds(), "/s", 0, 0})
	rss, err := rssMiB(c.MasterPid())
	if err != nil {
		return err
	}
	b.report.add(row{"placements/master-rss", rss, "MiB", 0, 0})
	return f.stop()
}
