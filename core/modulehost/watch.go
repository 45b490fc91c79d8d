package modulehost

import (
	"context"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

const (
	// heartbeatGrace is how long a module may be silent on Watch, which beats each 10 s, until it counts as degraded.
	// It is never killed for that alone.
	heartbeatGrace = 30 * time.Second
	// watchEvents is how many events a second are taken from one module; more wait in the stream's window, which
	// then holds the module up and not the agent.
	watchEvents = 1000
	// watchRetry is the pause before a broken stream of a living module is opened again.
	watchRetry = 500 * time.Millisecond
)

// watch keeps the Watch stream of one life open.
func (m *module) watch(ctx context.Context, l *life) {
	limit := rate.NewLimiter(watchEvents, watchEvents)
	m.beat(time.Now())
	silence := time.NewTicker(heartbeatGrace / 3)
	defer silence.Stop()
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		var since uint64
		for ctx.Err() == nil {
			err := m.watchStream(ctx, l, limit, &since)
			if status.Code(err) == codes.Unimplemented {
				m.beat(time.Time{}) // it has nothing to tell, and owes no heartbeat
				return
			}
			select {
			case <-time.After(watchRetry):
			case <-ctx.Done():
			}
		}
	}()
	for {
		select {
		case <-watching:
			return
		case <-ctx.Done():
			<-watching
			return
		case now := <-silence.C:
			m.checkHeartbeat(l, now)
		}
	}
}

func (m *module) watchStream(ctx context.Context, l *life, limit *rate.Limiter, since *uint64) error {
	stream, err := l.control.Watch(ctx, &modulev1.WatchRequest{Since: *since})
	if err != nil {
		return err
	}
	for {
		if err := limit.Wait(ctx); err != nil {
			return err
		}
		event, err := stream.Recv()
		if err != nil {
			return err
		}
		if event.GetSequence() <= *since {
			continue // told before
		}
		*since = event.GetSequence()
		m.beat(time.Now())
		m.take(l, event)
	}
}

// take acts on one event. What is malformed is logged and dropped: an event is nobody's call.
func (m *module) take(l *life, e *modulev1.WatchEvent) {
	switch {
	case e.GetLimitation() != nil:
		limitation := e.GetLimitation()
		if err := checkLimitation(limitation); err != nil {
			m.log.Warn("module reports a limitation that is not valid", "error", err)
			return
		}
		if c := m.host.attached(); c != nil {
			c.Limited(m.cfg.Name, limitation)
		}
	case e.GetHealth() != nil:
		m.setHealth(l, e.GetHealth())
	case e.GetMetrics() != nil:
		m.host.metrics.take(m, e.GetMetrics())
	case e.GetProgress() != nil:
		p := e.GetProgress()
		m.prepares.extend(p.GetOperationId(), time.Duration(min(p.GetExtendMs(), uint64(time.Hour/time.Millisecond)))*time.Millisecond)
	case e.GetRevision() != nil:
		m.approvers.revise(l, e.GetRevision().GetRevision())
	}
}

// setHealth shows what the module says of itself. A failed module keeps its life: calls for what runs still reach it.
func (m *module) setHealth(l *life, h *modulev1.Health) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life != l {
		m.health = h
		return
	}
	m.applyHealth(h)
}

// applyHealth needs mu held.
func (m *module) applyHealth(h *modulev1.Health) {
	state, reason := StateUp, ""
	switch h.GetState() {
	case modulev1.Health_DEGRADED:
		state, reason = StateDegraded, cutText(h.GetReason(), 1024)
	case modulev1.Health_FAILED:
		state, reason = StateFailed, cutText(h.GetReason(), 1024)
	}
	if m.state != state {
		m.since = time.Now()
	}
	m.health, m.state, m.reason = h, state, reason
	close(m.changed)
	m.changed = make(chan struct{})
}

// failing gives why launches that need the module must not go on, if it says so itself.
func (m *module) failing() (reason string, failing bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reason, m.state == StateFailed
}

func (m *module) beat(t time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heartbeat = t
}

// checkHeartbeat marks a silent module as degraded by a timer, not when somebody looks, and takes that back when it
// is heard again.
func (m *module) checkHeartbeat(l *life, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life != l || m.heartbeat.IsZero() {
		return
	}
	silent := now.Sub(m.heartbeat) > heartbeatGrace
	switch {
	case silent && m.state == StateUp:
		m.state, m.reason, m.since = StateDegraded, silentReason, now
	case !silent && m.state == StateDegraded && m.reason == silentReason:
		m.state, m.reason, m.since = StateUp, "", now
	}
}

const silentReason = "no heartbeat"
