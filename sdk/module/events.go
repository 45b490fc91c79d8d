package module

import (
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

const (
	// heartbeatInterval is how often the contract wants a sign of life.
	heartbeatInterval = 10 * time.Second
	// keptEvents is how many events are kept for a host that opens its stream again. A limitation lost would leave a
	// container over its limit, so this is far more than come in the half second a host is away.
	keptEvents = 1024
)

// Events are what a module tells its host without being asked. They go out on Watch, and again after a broken stream.
type Events struct {
	mu       sync.Mutex // guards what follows
	sequence uint64
	kept     []*modulev1.WatchEvent
	changed  chan struct{} // closed and replaced at each event
}

// NewEvents returns an empty queue.
func NewEvents() *Events { return &Events{changed: make(chan struct{})} }

func (e *Events) add(ev *modulev1.WatchEvent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sequence++
	ev.Sequence, ev.Time = e.sequence, timestamppb.Now()
	e.kept = slices.DeleteFunc(e.kept, func(old *modulev1.WatchEvent) bool { return replaces(ev, old) })
	e.kept = append(e.kept, ev)
	if len(e.kept) > keptEvents {
		e.kept = append(e.kept[:0], e.kept[len(e.kept)-keptEvents:]...)
	}
	close(e.changed)
	e.changed = make(chan struct{})
}

// replaces says whether an event makes an older one worthless: what a module is or has counts only as it is now. Such
// events must not push out limitations.
func replaces(ev, old *modulev1.WatchEvent) bool {
	return ev.GetHealth() != nil && old.GetHealth() != nil || ev.GetMetrics() != nil && old.GetMetrics() != nil ||
		ev.GetRevision() != nil && old.GetRevision() != nil
}

// Limit says that a container has reached a limit and must end.
func (e *Events) Limit(l *modulev1.Limitation) {
	e.add(&modulev1.WatchEvent{Event: &modulev1.WatchEvent_Limitation{Limitation: l}})
}

// Health says how the module is. reason is for people and required unless state is OK.
func (e *Events) Health(state modulev1.Health_State, reason string) {
	e.add(&modulev1.WatchEvent{Event: &modulev1.WatchEvent_Health{
		Health: &modulev1.Health{State: state, Reason: reason, Since: timestamppb.Now()},
	}})
}

// Metrics replaces the module's own series; the host puts mosaic_<kind>_<name>_ before their names.
func (e *Events) Metrics(samples ...*modulev1.Metrics_Sample) {
	e.add(&modulev1.WatchEvent{Event: &modulev1.WatchEvent_Metrics{Metrics: &modulev1.Metrics{Samples: samples}}})
}

// Progress says that a long Prepare is alive and needs this much longer from now.
func (e *Events) Progress(operationID string, extend time.Duration, message string) {
	e.add(&modulev1.WatchEvent{Event: &modulev1.WatchEvent_Progress{Progress: &modulev1.Progress{
		OperationId: operationID, ExtendMs: uint64(extend.Milliseconds()), Message: message,
	}}})
}

// Revise says that approvers handed out before this revision are void.
func (e *Events) Revise(revision uint64) {
	e.add(&modulev1.WatchEvent{Event: &modulev1.WatchEvent_Revision{Revision: &modulev1.Revision{Revision: revision}}})
}

// after returns what came after a sequence number, and a channel that is closed at the next event.
func (e *Events) after(since uint64) ([]*modulev1.WatchEvent, chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.keptAfter(since), e.changed
}

// keptAfter needs mu held.
func (e *Events) keptAfter(since uint64) []*modulev1.WatchEvent {
	i := slices.IndexFunc(e.kept, func(ev *modulev1.WatchEvent) bool { return ev.Sequence > since })
	if i < 0 {
		return nil
	}
	return slices.Clone(e.kept[i:])
}

// beat returns a heartbeat, and before it what came after a sequence number. The heartbeat is not kept but takes a
// number of its own, so that the host sees it as new; a host that has seen it takes no event with a lower one.
func (e *Events) beat(since uint64) []*modulev1.WatchEvent {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sequence++
	return append(e.keptAfter(since), &modulev1.WatchEvent{
		Sequence: e.sequence, Time: timestamppb.Now(), Event: &modulev1.WatchEvent_Heartbeat{Heartbeat: &modulev1.Heartbeat{}},
	})
}

// serve sends events until the stream or the module ends. What was said before the first stream is sent too: nobody
// has heard it.
func (e *Events) serve(since uint64, s grpc.ServerStreamingServer[modulev1.WatchEvent], done <-chan struct{}) error {
	beat := time.NewTicker(heartbeatInterval)
	defer beat.Stop()
	send := func(events []*modulev1.WatchEvent) error {
		for _, ev := range events {
			if err := s.Send(ev); err != nil {
				return err
			}
			since = ev.Sequence
		}
		return nil
	}
	for {
		events, changed := e.after(since)
		if err := send(events); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-beat.C:
			if err := send(e.beat(since)); err != nil {
				return err
			}
		case <-done:
			events, _ := e.after(since) // what was said last is heard
			return send(events)
		case <-s.Context().Done():
			return nil
		}
	}
}
