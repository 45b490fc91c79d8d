package executor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
)

// maxUpdates bounds the updates that wait for their acknowledgement. An agent acknowledges within a disk write, so that
// they are as many only while it is away: a thousand tasks with sixty-four news each.
const maxUpdates = 1 << 16

// ErrTooManyUpdates is returned by Update when the agent has not acknowledged any for long. The executor does without
// this update; nothing of what it sent before is lost.
var ErrTooManyUpdates = errors.New("too many updates wait for their acknowledgement")

// pending is what the agent may not know.
type pending struct {
	tasks   []*mesosv1.TaskInfo       // launched, and no update acknowledged; in order of their launch
	updates []*executorv1.Call_Update // in order
	sent    int                       // how many of them the agent that is subscribed now has been sent
}

// subscribe is what SUBSCRIBE says of it. Whatever it names needs not be sent once more.
func (p *pending) subscribe() *executorv1.Call_Subscribe {
	p.sent = len(p.updates)
	return &executorv1.Call_Subscribe{UnacknowledgedTasks: slices.Clone(p.tasks), UnacknowledgedUpdates: slices.Clone(p.updates)}
}

// note remembers what an event says, before it is handled.
func (c *Client) note(event *executorv1.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch event.GetType() {
	case executorv1.Event_LAUNCH:
		c.pending.tasks = append(c.pending.tasks, event.GetLaunch().GetTask())
	case executorv1.Event_LAUNCH_GROUP:
		c.pending.tasks = append(c.pending.tasks, event.GetLaunchGroup().GetTaskGroup().GetTasks()...)
	case executorv1.Event_ACKNOWLEDGED:
		ack := event.GetAcknowledged()
		c.pending.tasks = slices.DeleteFunc(c.pending.tasks, func(t *mesosv1.TaskInfo) bool {
			return t.GetTaskId().GetValue() == ack.GetTaskId().GetValue()
		})
		c.drop(ack.GetUuid())
	}
}

// drop removes an update. The caller holds the lock.
func (c *Client) drop(uuid []byte) {
	i := slices.IndexFunc(c.pending.updates, func(u *executorv1.Call_Update) bool { return bytes.Equal(u.GetStatus().GetUuid(), uuid) })
	if i < 0 {
		return
	}
	c.pending.updates = slices.Delete(c.pending.updates, i, i+1)
	if i < c.pending.sent {
		c.pending.sent--
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// idle tells whether all updates have been acknowledged.
func (c *Client) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pending.updates) == 0
}

// Update tells the agent and the framework how a task is. It returns at once; the update reaches the agent in its turn,
// and again after each reconnection until it has been acknowledged. Its task_id and state are required; uuid, timestamp,
// source and executor_id are filled in.
//
// Errors: the status makes no sense; ErrTooManyUpdates.
func (c *Client) Update(status *mesosv1.TaskStatus) error {
	if status.GetTaskId().GetValue() == "" || status.State == nil {
		return fmt.Errorf("update %v: task_id or state is missing", status)
	}
	id := uuid.New()
	status = status.CloneVT()
	status.Uuid = id[:]
	status.Source = mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum()
	status.ExecutorId = &mesosv1.ExecutorID{Value: &c.cfg.Environment.ExecutorID}
	if status.Timestamp == nil {
		status.Timestamp = new(float64(time.Now().UnixNano()) / 1e9)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending.updates) >= maxUpdates {
		return ErrTooManyUpdates
	}
	c.pending.updates = append(c.pending.updates, &executorv1.Call_Update{Status: status})
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return nil
}

// UpdateState is Update for what most updates say: a state, and words for people.
func (c *Client) UpdateState(task *mesosv1.TaskID, state mesosv1.TaskState, message string) error {
	s := &mesosv1.TaskStatus{TaskId: task, State: &state}
	if message != "" {
		s.Message = &message
	}
	return c.Update(s)
}

// Flush waits until every update has been acknowledged: an executor that ends by itself then leaves nothing behind. It
// must not be called by a handler.
func (c *Client) Flush(ctx context.Context) error {
	for {
		c.mu.Lock()
		n, changed := len(c.pending.updates), c.changed
		c.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d updates are not acknowledged: %w", n, ctx.Err())
		}
	}
}

// next is the first update that has not been sent; nil when there is none.
func (c *Client) next() *executorv1.Call_Update {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending.sent == len(c.pending.updates) {
		return nil
	}
	return c.pending.updates[c.pending.sent]
}

// setSent remembers that the agent has an update, unless it has acknowledged it meanwhile.
func (c *Client) setSent(u *executorv1.Call_Update) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := &c.pending; p.sent < len(p.updates) && p.updates[p.sent] == u {
		p.sent++
	}
}

// sendUpdates sends what there is to send until ctx, the session's, ends. When it cannot, it cancels the session: the
// next one says what did not arrive.
func (c *Client) sendUpdates(ctx context.Context, cancel context.CancelCauseFunc) {
	heartbeats := time.NewTicker(heartbeatInterval)
	defer heartbeats.Stop()
	for {
		for u := c.next(); u != nil; u = c.next() {
			if ctx.Err() != nil {
				return
			}
			call := c.call(executorv1.Call_UPDATE)
			call.Update = u
			err := c.do(ctx, call)
			var refused *StatusError
			switch {
			case errors.As(err, &refused) && refused.Code == 400:
				// It would be refused for ever, and hold up those behind it.
				c.log.Error("agent refuses an update", "task", u.GetStatus().GetTaskId().GetValue(), "state", u.GetStatus().GetState(), "error", err)
				c.mu.Lock()
				c.drop(u.GetStatus().GetUuid())
				c.mu.Unlock()
			case err != nil:
				cancel(err)
				return
			default:
				c.setSent(u)
			}
		}
		select {
		case <-c.wake:
		case <-heartbeats.C:
			if err := c.do(ctx, c.call(executorv1.Call_HEARTBEAT)); err != nil {
				cancel(err)
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
