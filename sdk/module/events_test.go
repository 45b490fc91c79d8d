package module

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// listener is a host's end of Watch.
type listener struct {
	grpc.ServerStream
	ctx context.Context
	got chan *modulev1.WatchEvent
}

func (l *listener) Context() context.Context { return l.ctx }

func (l *listener) Send(e *modulev1.WatchEvent) error {
	l.got <- e
	return nil
}

// listen serves events until the test's bubble ends.
func listen(t *testing.T, e *Events, since uint64, done chan struct{}) (*listener, chan error) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	l := &listener{ctx: ctx, got: make(chan *modulev1.WatchEvent, 4096)}
	ended := make(chan error, 1)
	go func() { ended <- e.serve(since, l, done) }()
	return l, ended
}

func limitation(n int) *modulev1.Limitation {
	return &modulev1.Limitation{ContainerId: fmt.Sprint("c", n)}
}

func TestAHeartbeatComesEachTenSecondsWithARisingNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, done := NewEvents(), make(chan struct{})
		l, ended := listen(t, e, 0, done)
		var last uint64
		for range 3 {
			before := time.Now()
			ev := <-l.got
			if ev.GetHeartbeat() == nil || time.Since(before) != 10*time.Second || ev.GetSequence() <= last {
				t.Errorf("event %v after %v, want a heartbeat after 10 s with a number above %d", ev, time.Since(before), last)
			}
			last = ev.GetSequence()
		}
		close(done)
		if err := <-ended; err != nil {
			t.Errorf("Watch ended with %v, want success", err)
		}
	})
}

func TestABrokenStreamGoesOnWhereItEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, done := NewEvents(), make(chan struct{})
		e.Limit(limitation(1)) // before anybody listens
		e.Limit(limitation(2))
		e.Limit(limitation(3))
		l, ended := listen(t, e, 0, done)
		first := <-l.got
		if first.GetLimitation().GetContainerId() != "c1" {
			t.Errorf("first event %v, want the one from before the stream", first)
		}
		again, endedToo := listen(t, e, first.GetSequence(), done)
		for _, want := range []string{"c2", "c3"} {
			if ev := <-again.got; ev.GetLimitation().GetContainerId() != want {
				t.Errorf("event %v, want the limitation of %s", ev, want)
			}
		}
		e.Limit(limitation(4))
		close(done)
		<-ended
		<-endedToo
		if ev := <-again.got; ev.GetLimitation().GetContainerId() != "c4" {
			t.Errorf("event %v, want also what was said last before the end", ev)
		}
	})
}

func TestNoEventHasALowerNumberThanAHeartbeatBeforeIt(t *testing.T) {
	e := NewEvents()
	e.Limit(limitation(1))
	list := e.beat(0)
	if len(list) != 2 || list[0].GetLimitation() == nil || list[1].GetHeartbeat() == nil || !slices.IsSortedFunc(list, func(a, b *modulev1.WatchEvent) int { return int(a.Sequence) - int(b.Sequence) }) {
		t.Errorf("beat = %v, want the limitation and then the heartbeat", list)
	}
}

func TestMetricsDoNotPushOutLimitations(t *testing.T) {
	e := NewEvents()
	e.Limit(limitation(1))
	for range 10 * keptEvents {
		e.Metrics(&modulev1.Metrics_Sample{Name: "n"})
		e.Health(modulev1.Health_OK, "")
		e.Revise(1)
	}
	list, _ := e.after(0)
	if len(list) != 4 || list[0].GetLimitation() == nil {
		t.Errorf("%d events kept, want the limitation and the newest of each other kind", len(list))
	}
	for n := range 10 * keptEvents {
		e.Limit(limitation(n))
	}
	if list, _ := e.after(0); len(list) != keptEvents {
		t.Errorf("%d events kept, want at most %d", len(list), keptEvents)
	}
}
