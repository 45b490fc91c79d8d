package agent

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// Status updates, in order per task: each is on disk before the master sees it, is repeated until the
// scheduler acknowledges it, and only then makes way for the next.

// Mesos's times between repetitions of an update.
const (
	updateRetryMin = 10 * time.Second
	updateRetryMax = 10 * time.Minute
)

// endNotice is how long after an update was sent it is repeated for the sake of an end behind it: a scheduler that is
// there acknowledges in milliseconds.
const endNotice = time.Second

// historyKept is how many acknowledged updates of a task are kept. The last one tells a new master about the
// container's addresses; the uuids of the others recognise what an executor repeats.
const historyKept = 8

// maxPendingUpdates bounds what an executor may leave unacknowledged per task. Schedulers acknowledge within
// seconds; a thousand is an executor that reports in a loop.
const maxPendingUpdates = 1000

type update struct {
	sequence     uint64
	status       *mesosv1.TaskStatus // never changed
	durable      bool
	acknowledged bool
}

// update adds a status to a task: it advances the task, fills in what is missing, and has the status written
// and then sent. s must not be changed afterwards. It returns false when the task has ended before.
func (a *Agent) update(c *change, t *task, s *mesosv1.TaskStatus) bool {
	if terminal(t.state) {
		return false
	}
	if t.framework.terminating {
		t.state = s.GetState() // nobody is left to be told
		return true
	}
	e := t.executor
	s.TaskId = &mesosv1.TaskID{Value: new(string(t.id))}
	s.AgentId = a.info.GetId()
	if s.GetExecutorId() == nil {
		s.ExecutorId = &mesosv1.ExecutorID{Value: new(t.executorID())}
	}
	if s.Timestamp == nil {
		s.Timestamp = new(float64(time.Now().UnixNano()) / 1e9)
	}
	if s.Uuid == nil {
		id := uuid.New()
		s.Uuid = id[:]
	}
	s.ContainerStatus = containerStatus(e, s.GetContainerStatus())
	a.drained(t, s)
	t.carryChecks(s)

	t.state = s.GetState()
	t.sequence++
	u := &update{sequence: t.sequence, status: s}
	data, err := encodeUpdate(s, false)
	if err != nil {
		a.fail(fmt.Errorf("encode update of task %s: %w", t.id, err))
		return false
	}
	t.updates = append(t.updates, u)
	c.put(bucketUpdates, updateKey(t.framework.id, t.id, u.sequence), data)
	if terminal(t.state) {
		a.counters.count(t.state)
		a.timers.stop(t.killTimer)
		a.timers.stop(t.maxTimer)
	}
	c.then(func() {
		u.durable = true
		switch {
		case t.head() == u:
			a.send(t)
		case terminal(u.status.GetState()):
			a.hasten(t)
		}
	})
	return true
}

// hasten repeats the head soon, since what is queued behind it is the end: with the head the master learns of that, and
// a framework that is away would else keep it waiting for all of the backoff. An acknowledgement that is merely on its
// way is given its time. The caller holds the lock.
func (a *Agent) hasten(t *task) {
	u := t.head()
	if u == nil || t.settling || a.master == nil {
		return // what comes in between sends it
	}
	a.timers.stop(t.retry)
	t.retry = a.timers.after(max(0, time.Until(t.sent.Add(endNotice))), func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if t.head() == u {
			t.backoff = 0
			a.send(t)
		}
	})
}

// containerStatus is what an update says about the container: the executor's word, over the containerizer's,
// over the bare id.
func containerStatus(e *executor, said *mesosv1.ContainerStatus) *mesosv1.ContainerStatus {
	if said == nil && e.status != nil && e.parent == nil {
		return e.status
	}
	if said == nil {
		said = &mesosv1.ContainerStatus{}
	}
	said.ContainerId = e.container.mesos()
	if known := e.status; known != nil {
		if len(said.NetworkInfos) == 0 {
			said.NetworkInfos = known.NetworkInfos
		}
		if said.CgroupInfo == nil {
			said.CgroupInfo = known.CgroupInfo
		}
		if said.ExecutorPid == nil {
			said.ExecutorPid = known.ExecutorPid
		}
	}
	if p := e.parent; p != nil && len(said.NetworkInfos) == 0 {
		said.NetworkInfos = p.status.GetNetworkInfos() // whose network it is in
	}
	return said
}

// head is the update that waits for its acknowledgement, or nil.
func (t *task) head() *update {
	for _, u := range t.updates {
		if !u.acknowledged {
			return u
		}
	}
	return nil
}

func (t *task) pending() int {
	n := 0
	for _, u := range t.updates {
		if !u.acknowledged {
			n++
		}
	}
	return n
}

// send gives the head to the master, and again later. Without a master nothing is sent: registering does.
// The caller holds the lock.
func (a *Agent) send(t *task) {
	u := t.head()
	if u == nil || !u.durable || t.settling || a.master == nil {
		return
	}
	a.master.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Update{Update: &clusterv1.StatusUpdate{
		FrameworkId:    string(t.framework.id),
		ExecutorId:     t.executorID(),
		Status:         u.status,
		LatestState:    t.state.String(),
		TerminalLatest: terminal(t.state),
	}}})
	t.sent = time.Now()
	a.timers.stop(t.retry)
	if t.backoff == 0 {
		t.backoff = updateRetryMin
	}
	t.retry = a.timers.after(t.backoff, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if t.head() == u {
			t.backoff = min(2*t.backoff, updateRetryMax)
			a.send(t)
		}
	})
}

// sendAll repeats the update of each task that waits, after a registration. The caller holds the lock.
func (a *Agent) sendAll() {
	for _, f := range a.frameworks {
		for _, t := range f.tasks {
			t.backoff = 0
			a.send(t)
		}
	}
}

// answer sends an update about a task that is not here. It is not repeated: whoever asked may ask again.
func (a *Agent) answer(f FrameworkID, t TaskID, state mesosv1.TaskState, reason mesosv1.TaskStatus_Reason, text string) {
	if a.master == nil {
		return
	}
	id := uuid.New()
	a.master.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Update{Update: &clusterv1.StatusUpdate{
		FrameworkId: string(f),
		Status: &mesosv1.TaskStatus{
			TaskId:    &mesosv1.TaskID{Value: new(string(t))},
			AgentId:   a.info.GetId(),
			State:     state.Enum(),
			Reason:    reason.Enum(),
			Message:   new(text),
			Source:    mesosv1.TaskStatus_SOURCE_AGENT.Enum(),
			Timestamp: new(float64(time.Now().UnixNano()) / 1e9),
			Uuid:      id[:],
		},
		LatestState:    state.String(),
		TerminalLatest: terminal(state),
	}}})
}

// lost returns the state that a framework which does not know about partitions sees instead of state.
func (f *framework) lost(state mesosv1.TaskState) mesosv1.TaskState {
	switch state {
	case mesosv1.TaskState_TASK_DROPPED, mesosv1.TaskState_TASK_GONE, mesosv1.TaskState_TASK_GONE_BY_OPERATOR,
		mesosv1.TaskState_TASK_UNREACHABLE, mesosv1.TaskState_TASK_UNKNOWN:
		if !f.partitionAware() {
			return mesosv1.TaskState_TASK_LOST
		}
	}
	return state
}

// acknowledge takes the scheduler's acknowledgement. When it is on disk the next update is sent, or the task
// is done. An acknowledgement that does not fit is an old one repeated.
func (a *Agent) acknowledge(m *clusterv1.Acknowledge) {
	a.decide(func(c *change) {
		t := a.find(FrameworkID(m.GetFrameworkId()), TaskID(m.GetTaskId()))
		if t == nil {
			a.log.Debug("acknowledgement for an unknown task", "framework", m.GetFrameworkId(), "task", m.GetTaskId())
			return
		}
		u := t.head()
		if u == nil || !u.durable || !bytes.Equal(u.status.GetUuid(), m.GetUuid()) {
			a.log.Debug("acknowledgement of an update that does not wait for one", "framework", t.framework.id, "task", t.id)
			return
		}
		u.acknowledged = true
		a.timers.stop(t.retry)
		t.backoff = 0
		c.lazy = t.head() == nil // else the next update waits for this
		if terminal(u.status.GetState()) {
			a.forgetTask(c, t)
			return
		}
		data, err := encodeUpdate(u.status, true)
		if err != nil {
			a.fail(fmt.Errorf("encode update of task %s: %w", t.id, err))
			return
		}
		c.put(bucketUpdates, updateKey(t.framework.id, t.id, u.sequence), data)
		a.trim(c, t)
		t.settling = true
		c.then(func() {
			t.settling = false
			a.send(t)
		})
	})
}

// trim drops the oldest acknowledged updates.
func (a *Agent) trim(c *change, t *task) {
	surplus := len(t.updates) - t.pending() - historyKept
	if surplus <= 0 {
		return
	}
	for _, u := range t.updates[:surplus] {
		c.delete(bucketUpdates, updateKey(t.framework.id, t.id, u.sequence))
	}
	t.updates = slices.Delete(t.updates, 0, surplus)
}

// seen tells whether an update with this uuid was taken before.
func (t *task) seen(id []byte) bool {
	return slices.ContainsFunc(t.updates, func(u *update) bool { return bytes.Equal(u.status.GetUuid(), id) })
}
