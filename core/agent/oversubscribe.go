package agent

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	qoscontrollerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/qoscontroller/v1"
	resourceestimatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceestimator/v1"
)

// Oversubscription: a resource estimator says what of the allocated may be lent out, a QoS controller says which
// borrowers must go. Both are told what runs and what it uses. Without an answer nothing is lent and nobody goes.

// EstimateStream is one conversation with the resource estimator. It ends with the context it was opened with.
type EstimateStream interface {
	Send(*resourceestimatorv1.UsageReport) error
	Recv() (*resourceestimatorv1.Estimation, error)
}

// CorrectStream is one conversation with the QoS controller.
type CorrectStream interface {
	Send(*qoscontrollerv1.Situation) error
	Recv() (*qoscontrollerv1.Corrections, error)
}

// Time between attempts to open a stream that broke. The module itself is restarted by its host.
const (
	streamRetryMin = 100 * time.Millisecond
	streamRetryMax = 30 * time.Second
)

// usageTimeout bounds measuring all containers once.
const usageTimeout = 10 * time.Second

// oversubscribe keeps the conversation with the estimator going until ctx ends.
func (a *Agent) oversubscribe(ctx context.Context) {
	converse(ctx, a, "resource estimator", a.cfg.OversubscribedResourcesInterval,
		func(ctx context.Context) (func() error, func() error, error) {
			s, err := a.deps.Estimate(ctx)
			if err != nil {
				return nil, nil, err
			}
			send := func() error { return s.Send(a.usageReport(ctx)) }
			receive := func() error {
				e, err := s.Recv()
				if err != nil {
					return err
				}
				return a.estimated(e.GetRevocable())
			}
			return send, receive, nil
		})
	if err := a.estimated(nil); err != nil {
		a.log.Error("no estimate", "error", err)
	}
}

// obeyCorrections does the same with the QoS controller.
func (a *Agent) obeyCorrections(ctx context.Context) {
	converse(ctx, a, "QoS controller", a.cfg.QoSCorrectionInterval,
		func(ctx context.Context) (func() error, func() error, error) {
			s, err := a.deps.Correct(ctx)
			if err != nil {
				return nil, nil, err
			}
			send := func() error {
				x := &qoscontrollerv1.Situation{Usage: a.usageReport(ctx)}
				x.Load_1, x.Load_5, x.Load_15 = loadAverages()
				return s.Send(x)
			}
			receive := func() error {
				cs, err := s.Recv()
				if err != nil {
					return err
				}
				for _, x := range cs.GetCorrections() {
					a.correct(x)
				}
				return nil
			}
			return send, receive, nil
		})
}

// converse opens streams, one after the other, sends at each interval and receives in between.
func converse(ctx context.Context, a *Agent, who string, interval time.Duration,
	open func(ctx context.Context) (send, receive func() error, err error)) {
	retry := streamRetryMin
	for {
		began := time.Now()
		err := conversation(ctx, interval, open)
		if ctx.Err() != nil {
			return
		}
		a.log.Warn("the conversation with the "+who+" broke off", "again_in", retry, "error", err)
		if err := a.conversationEnded(who); err != nil {
			a.log.Error("no estimate", "error", err)
		}
		if time.Since(began) > streamRetryMax {
			retry = streamRetryMin
		}
		if !sleep(ctx, retry) {
			return
		}
		retry = min(2*retry, streamRetryMax)
	}
}

func (a *Agent) conversationEnded(who string) error {
	if who != "resource estimator" {
		return nil
	}
	return a.estimated(nil)
}

func conversation(ctx context.Context, interval time.Duration,
	open func(ctx context.Context) (send, receive func() error, err error)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	send, receive, err := open(ctx)
	if err != nil {
		return err
	}
	var receiver sync.WaitGroup
	defer receiver.Wait()
	defer cancel(nil)
	receiver.Go(func() {
		for {
			if err := receive(); err != nil {
				cancel(err)
				return
			}
		}
	})
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := send(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// estimated takes an estimate, and tells the master when it differs from the one before.
func (a *Agent) estimated(rs []*mesosv1.Resource) error {
	if err := resources.ValidateAll(rs); err != nil {
		return fmt.Errorf("estimate: %w", err)
	}
	for _, r := range rs {
		if r.GetRevocable() == nil {
			return fmt.Errorf("estimate: %s is not revocable", r.GetName())
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if resources.New(rs...).Equal(resources.New(a.revocable...)) {
		return nil
	}
	a.revocable = rs
	a.sendRevocable()
	return nil
}

// sendRevocable tells the master what may be lent out, if that is not what it was told last. mu is held.
func (a *Agent) sendRevocable() {
	if a.master == nil || resources.New(a.revocable...).Equal(resources.New(a.toldRevocable...)) {
		return
	}
	a.toldRevocable = a.revocable
	a.master.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_ResourcesChanged{
		ResourcesChanged: &clusterv1.ResourcesChanged{
			TotalResources:          a.holdings.announced.Resources(),
			OversubscribedResources: a.revocable,
		},
	}})
}

// correct destroys the executor a correction names. Only what runs on revocable resources may be named: the others
// are what the controller protects.
func (a *Agent) correct(x *qoscontrollerv1.Correction) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.containers[ContainerID(x.GetContainerId())]
	if e == nil || string(e.framework.id) != x.GetFrameworkId() || string(e.id) != x.GetExecutorId() {
		a.log.Debug("correction of an executor that is not here", "container", x.GetContainerId())
		return
	}
	if e.phase != phaseRunning && e.phase != phaseRegistering {
		return
	}
	if rs, _ := e.resources(); resources.New(rs...).Revocable().Empty() {
		a.log.Warn("refused to preempt an executor without revocable resources", "container", e.container, "executor", e.id)
		return
	}
	a.counters.preempted++
	message := x.GetMessage()
	if message == "" {
		message = "preempted for the sake of others"
	}
	a.destroy(e, &containerTermination{
		State:   e.framework.lost(mesosv1.TaskState_TASK_GONE).String(),
		Reason:  mesosv1.TaskStatus_REASON_CONTAINER_PREEMPTED.String(),
		Message: message,
	})
}

// usageReport measures what runs.
func (a *Agent) usageReport(ctx context.Context) *resourceestimatorv1.UsageReport {
	a.mu.Lock()
	r := &resourceestimatorv1.UsageReport{Total: a.info.GetResources()}
	var ids []string
	for _, e := range a.containers {
		if !e.running() {
			continue
		}
		ids = append(ids, string(e.container))
		u := &resourceestimatorv1.ExecutorUsage{
			Executor:    e.describe(),
			FrameworkId: string(e.framework.id),
			ContainerId: string(e.container),
		}
		u.Allocated, _ = e.resources()
		if e.command != nil {
			u.TaskIds = []string{string(e.command.id)}
		}
		for id, t := range e.tasks {
			if !terminal(t.state) {
				u.TaskIds = append(u.TaskIds, string(id))
			}
		}
		slices.Sort(u.TaskIds)
		r.Executors = append(r.Executors, u)
	}
	a.mu.Unlock()
	slices.SortFunc(r.Executors, func(x, y *resourceestimatorv1.ExecutorUsage) int {
		return strings.Compare(x.ContainerId, y.ContainerId)
	})
	if len(ids) == 0 {
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	usage, err := a.ctzr.Usage(ctx, ids)
	if err != nil {
		a.log.Warn("measure containers", "error", err)
	}
	for _, u := range r.Executors {
		u.Statistics = usage[u.ContainerId]
	}
	return r
}

// running tells whether there is a container to measure.
func (e *executor) running() bool {
	return e.phase == phaseRegistering || e.phase == phaseRunning || e.phase == phaseTerminating
}

// loadAverages of the machine over 1, 5 and 15 minutes; zeros where it does not say.
func loadAverages() (one, five, fifteen float64) {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, 0, 0
	}
	f := strings.Fields(string(b))
	if len(f) < 3 {
		return 0, 0, 0
	}
	var v [3]float64
	for i := range v {
		if v[i], err = strconv.ParseFloat(f[i], 64); err != nil {
			return 0, 0, 0
		}
	}
	return v[0], v[1], v[2]
}
