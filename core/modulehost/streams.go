package modulehost

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	resourceproviderpb "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/resource_provider"
	qoscontrollerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/qoscontroller/v1"
	resourceestimatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceestimator/v1"
	resourceproviderv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceprovider/v1"
)

// The kinds that talk on one stream for their life: resource estimator, QoS controller, resource provider.

// stream is a bidirectional stream as the host's kinds speak it.
type stream[Out, In any] interface {
	Send(Out) error
	Recv() (In, error)
}

// opener opens a stream of a kind over a life.
type opener[Out, In any] interface {
	open(ctx context.Context) (stream[Out, In], error)
}

// openFunc is an opener as contracts make them.
type openFunc[Out, In any] func(ctx context.Context) (stream[Out, In], error)

func (f openFunc[Out, In]) open(ctx context.Context) (stream[Out, In], error) { return f(ctx) }

func liftEstimatorV1(conn grpc.ClientConnInterface) any {
	client := resourceestimatorv1.NewResourceEstimatorClient(conn)
	return openFunc[*resourceestimatorv1.UsageReport, *resourceestimatorv1.Estimation](
		func(ctx context.Context) (stream[*resourceestimatorv1.UsageReport, *resourceestimatorv1.Estimation], error) {
			return client.Estimate(ctx)
		})
}

func liftQoSControllerV1(conn grpc.ClientConnInterface) any {
	client := qoscontrollerv1.NewQoSControllerClient(conn)
	return openFunc[*qoscontrollerv1.Situation, *qoscontrollerv1.Corrections](
		func(ctx context.Context) (stream[*qoscontrollerv1.Situation, *qoscontrollerv1.Corrections], error) {
			return client.Correct(ctx)
		})
}

func liftResourceProviderV1(conn grpc.ClientConnInterface) any {
	client := resourceproviderv1.NewResourceProviderClient(conn)
	return openFunc[*resourceproviderpb.Event, *resourceproviderpb.Call](
		func(ctx context.Context) (stream[*resourceproviderpb.Event, *resourceproviderpb.Call], error) {
			return client.Connect(ctx)
		})
}

// streamRetry is the pause before a stream that broke is opened again on a module that lives.
const streamRetry = time.Second

// keepStream holds a stream to the module open until ctx ends. It sends what comes from in, gives what check lets
// through to got, and calls broken whenever the stream breaks.
func keepStream[Out, In any](ctx context.Context, m *module, name string, in <-chan Out, check func(In) error, got func(In), broken func(error)) {
	for ctx.Err() == nil {
		var l *life
		var err error
		if l = m.current(); l == nil {
			discarding(in, func() { l, err = m.acquire(ctx) })
		}
		if err != nil {
			if ctx.Err() == nil { // the host is closed
				broken(m.name(name, err))
			}
			return
		}
		err = oneStream(ctx, l, in, check, got)
		if ctx.Err() != nil {
			return
		}
		if l.isLost() {
			m.leave(l)
		}
		broken(m.name(name, err))
		discarding(in, func() {
			select {
			case <-time.After(streamRetry):
			case <-ctx.Done():
			}
		})
	}
}

// discarding throws away what comes from in while wait waits: a report is of its moment, and who sends it must not be
// held up by a module that is down.
func discarding[T any](in <-chan T, wait func()) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case _, ok := <-in:
				if !ok {
					in = nil
				}
			case <-stop:
				return
			}
		}
	}()
	wait()
	close(stop)
	<-stopped
}

func oneStream[Out, In any](ctx context.Context, l *life, in <-chan Out, check func(In) error, got func(In)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := l.calls.(opener[Out, In]).open(ctx)
	if err != nil {
		return err
	}
	received := make(chan error, 1)
	go func() {
		defer cancel() // ends a Send that the module does not take
		for {
			answer, err := s.Recv()
			if err == nil {
				if err = check(answer); err != nil {
					err = fmt.Errorf("answer is not valid: %w", err)
					l.module.missed()
				}
			}
			if err != nil {
				received <- err
				return
			}
			got(answer)
		}
	}()
	for {
		select {
		case out, ok := <-in:
			if !ok {
				in = nil
				continue
			}
			if err := s.Send(out); err != nil {
				cancel()
				return <-received
			}
		case err := <-received:
			return err
		case <-ctx.Done():
			return <-received
		}
	}
}

// Estimator says how much of what is allocated but idle may be lent out.
type Estimator struct{ m *module }

// Estimator gives the resource estimator of the composition; nil if there is none.
func (h *Host) Estimator() *Estimator {
	if ms := h.ofKind(KindResourceEstimator); len(ms) > 0 {
		return &Estimator{ms[0]}
	}
	return nil
}

// Run sends what comes from usage and gives each estimate to got, until ctx ends. When the module is lost got is given
// an empty estimate: no revocable resources until it is back.
func (e *Estimator) Run(ctx context.Context, usage <-chan *resourceestimatorv1.UsageReport, got func(*resourceestimatorv1.Estimation)) {
	keepStream(ctx, e.m, "Estimate", usage, func(a *resourceestimatorv1.Estimation) error {
		for i, r := range a.GetRevocable() {
			if r.GetRevocable() == nil {
				return fmt.Errorf("revocable[%d] is not revocable", i)
			}
		}
		return checkNumbers(a)
	}, got, func(err error) {
		e.m.log.Warn("no estimates", "error", err)
		got(&resourceestimatorv1.Estimation{})
	})
}

// QoSController says which revocable executors must go.
type QoSController struct{ m *module }

// QoSController gives the QoS controller of the composition; nil if there is none.
func (h *Host) QoSController() *QoSController {
	if ms := h.ofKind(KindQoSController); len(ms) > 0 {
		return &QoSController{ms[0]}
	}
	return nil
}

// Run sends what comes from situations and gives each set of corrections to got, until ctx ends. While the module is
// lost there are none.
func (q *QoSController) Run(ctx context.Context, situations <-chan *qoscontrollerv1.Situation, got func(*qoscontrollerv1.Corrections)) {
	keepStream(ctx, q.m, "Correct", situations, func(a *qoscontrollerv1.Corrections) error {
		return checkBounds(a.ProtoReflect(), "")
	}, got, func(err error) { q.m.log.Warn("no corrections", "error", err) })
}

// ResourceProvider has resources of its own for the agent to offer.
type ResourceProvider struct{ m *module }

// ResourceProviders gives the resource providers in the order of the composition.
func (h *Host) ResourceProviders() []*ResourceProvider {
	var out []*ResourceProvider
	for _, m := range h.ofKind(KindResourceProvider) {
		out = append(out, &ResourceProvider{m})
	}
	return out
}

// Name gives its name in the composition.
func (r *ResourceProvider) Name() string { return r.m.cfg.Name }

// Run sends what comes from events and gives each call to got, until ctx ends. lost is called when the module is: its
// resources leave the offers until it subscribes again.
func (r *ResourceProvider) Run(ctx context.Context, events <-chan *resourceproviderpb.Event, got func(*resourceproviderpb.Call), lost func(error)) {
	keepStream(ctx, r.m, "Connect", events, func(c *resourceproviderpb.Call) error {
		return checkBounds(c.ProtoReflect(), "")
	}, got, lost)
}
