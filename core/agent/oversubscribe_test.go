package agent

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	qoscontrollerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/qoscontroller/v1"
	resourceestimatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceestimator/v1"
)

// talk is a stream in memory: what is sent is kept, what is to be received comes through a channel that the end of the
// context closes.
type talk[S, R any] struct {
	ctx  context.Context
	in   chan R
	mu   sync.Mutex
	sent []S
}

func (x *talk[S, R]) Send(s S) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sent = append(x.sent, s)
	return x.ctx.Err()
}

func (x *talk[S, R]) Recv() (R, error) {
	var zero R
	select {
	case r, ok := <-x.in:
		if !ok {
			return zero, errors.New("the module died")
		}
		return r, nil
	case <-x.ctx.Done():
		return zero, x.ctx.Err()
	}
}

func (x *talk[S, R]) last() (S, int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.sent[len(x.sent)-1], len(x.sent)
}

func revocable(text string) []*mesosv1.Resource {
	rs := resources.MustParse(text).Resources()
	for _, r := range rs {
		r.Revocable = &mesosv1.Resource_RevocableInfo{}
	}
	return rs
}

func (m *controller) lent() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var s []string
	for _, x := range m.received {
		if c := x.GetResourcesChanged(); c != nil {
			s = append(s, resources.New(c.GetOversubscribedResources()...).String())
		}
	}
	return s
}

func TestEstimatesReachTheMasterAndEndWithTheModule(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		streams := make(chan *talk[*resourceestimatorv1.UsageReport, *resourceestimatorv1.Estimation], 10)
		w.deps.Estimate = func(ctx context.Context) (EstimateStream, error) {
			x := &talk[*resourceestimatorv1.UsageReport, *resourceestimatorv1.Estimation]{ctx: ctx, in: make(chan *resourceestimatorv1.Estimation)}
			streams <- x
			return x, nil
		}
		w.master.autoAck = true
		w.start()
		x := <-streams
		w.launch(checkpointed("F"), command("t", "sleep"))
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		time.Sleep(16 * time.Second)
		report, n := x.last()
		if n != 2 || len(report.GetExecutors()) != 1 || len(report.GetTotal()) != 4 {
			t.Errorf("after 16s %d reports, the last of %v", n, report)
		}
		if e := report.GetExecutors()[0]; e.GetTaskIds()[0] != "t" || e.GetStatistics().GetMemRssBytes() != 4096 || len(e.GetAllocated()) != 2 {
			t.Errorf("usage = %v", e)
		}
		x.in <- &resourceestimatorv1.Estimation{Revocable: revocable("cpus:2")}
		x.in <- &resourceestimatorv1.Estimation{Revocable: revocable("cpus:2")} // no change
		synctest.Wait()
		if got := w.master.lent(); len(got) != 1 {
			t.Errorf("the master was told %v, want cpus:2 once", got)
		}
		if w.agent.metrics()["slave/cpus_revocable_total"] != 2 {
			t.Error("the metrics do not show the revocable cpus")
		}
		close(x.in)
		x = <-streams // opened again
		synctest.Wait()
		if got := w.master.lent(); len(got) != 2 || got[1] != "" {
			t.Errorf("the master was told %q, want that nothing is lent any more", got)
		}
		// A lie is as good as no answer.
		x.in <- &resourceestimatorv1.Estimation{Revocable: resources.MustParse("cpus:9").Resources()}
		<-streams
		synctest.Wait()
		if got := w.master.lent(); len(got) != 2 {
			t.Errorf("the master was told %q of an estimate that is not revocable", got)
		}
	})
}

func TestCorrectionsEndOnlyBorrowers(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		streams := make(chan *talk[*qoscontrollerv1.Situation, *qoscontrollerv1.Corrections], 10)
		w.deps.Correct = func(ctx context.Context) (CorrectStream, error) {
			x := &talk[*qoscontrollerv1.Situation, *qoscontrollerv1.Corrections]{ctx: ctx, in: make(chan *qoscontrollerv1.Corrections)}
			streams <- x
			return x, nil
		}
		w.master.autoAck = true
		w.start()
		x := <-streams
		f := checkpointed("F", mesosv1.FrameworkInfo_Capability_PARTITION_AWARE)
		borrower := command("borrower", "sleep")
		borrower.Resources = append(revocable("cpus:1"), resources.MustParse("mem:32").Resources()...)
		w.launch(f, borrower)
		w.launch(f, command("owner", "sleep"))
		w.master.await(t, "borrower", mesosv1.TaskState_TASK_RUNNING)
		w.master.await(t, "owner", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		var cs []*qoscontrollerv1.Correction
		for _, id := range []string{"owner", "borrower"} {
			cs = append(cs, &qoscontrollerv1.Correction{FrameworkId: "F", ExecutorId: id, ContainerId: w.container(id), Message: "load 9"})
		}
		cs = append(cs, &qoscontrollerv1.Correction{FrameworkId: "F", ExecutorId: "nobody", ContainerId: "none"})
		x.in <- &qoscontrollerv1.Corrections{Corrections: cs}
		s := w.master.await(t, "borrower", mesosv1.TaskState_TASK_GONE).GetStatus()
		if s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_PREEMPTED || s.GetMessage() != "load 9" {
			t.Errorf("status = %v, want CONTAINER_PREEMPTED and the controller's message", s)
		}
		synctest.Wait()
		equal(t, "history of owner", w.master.history("owner"), []string{"TASK_STARTING", "TASK_RUNNING"})
	})
}
