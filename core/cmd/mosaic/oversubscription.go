package main

import (
	"context"

	qoscontrollerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/qoscontroller/v1"
	resourceestimatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceestimator/v1"

	"github.com/mosaic-cluster/mosaic/core/agent"
	"github.com/mosaic-cluster/mosaic/core/modulehost"
)

// pipe is a conversation as the agent has it, over channels as the module host has it.
type pipe[Q, A any] struct {
	ctx context.Context
	in  chan Q
	out chan A
}

// newPipe starts run, which carries what is sent to a module and its answers back, until ctx ends.
func newPipe[Q, A any](ctx context.Context, run func(context.Context, <-chan Q, func(A))) *pipe[Q, A] {
	p := &pipe[Q, A]{ctx: ctx, in: make(chan Q), out: make(chan A)}
	go run(ctx, p.in, func(a A) { // ends with ctx, as the stream that it stands for
		select {
		case p.out <- a:
		case <-ctx.Done():
		}
	})
	return p
}

// Send hands one question over.
func (p *pipe[Q, A]) Send(q Q) error {
	select {
	case p.in <- q:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

// Recv waits for an answer.
func (p *pipe[Q, A]) Recv() (A, error) {
	select {
	case a := <-p.out:
		return a, nil
	case <-p.ctx.Done():
		var none A
		return none, p.ctx.Err()
	}
}

// oversubscription connects the composition's estimator and QoS controller, if it has them.
func oversubscription(h *modulehost.Host, deps *agent.Deps) {
	if e := h.Estimator(); e != nil {
		deps.Estimate = func(ctx context.Context) (agent.EstimateStream, error) {
			return newPipe[*resourceestimatorv1.UsageReport, *resourceestimatorv1.Estimation](ctx, e.Run), nil
		}
	}
	if q := h.QoSController(); q != nil {
		deps.Correct = func(ctx context.Context) (agent.CorrectStream, error) {
			return newPipe[*qoscontrollerv1.Situation, *qoscontrollerv1.Corrections](ctx, q.Run), nil
		}
	}
}
