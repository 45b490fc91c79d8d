package master

import (
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// task is one task of a framework that is connected or expected back, until its terminal update was
// acknowledged.
type task struct {
	proto     *mesosv1.Task // immutable: a change replaces it
	framework *framework
	agent     *agent        // nil when unreachable
	resources resources.Set // with allocation info
	slot      int           // in the view

	// released: the resources went back to the allocator, for the task has ended.
	released bool
	// unacknowledged is the last update with a uuid that the framework has not acknowledged.
	unacknowledged *mesosv1.TaskStatus
	// kill is what the framework wants; it is said again to an agent that returns.
	kill *clusterv1.KillTask
}

func (t *task) id() string               { return t.proto.GetTaskId().GetValue() }
func (t *task) state() mesosv1.TaskState { return t.proto.GetState() }

// terminal says whether nothing follows a state.
func terminal(s mesosv1.TaskState) bool {
	switch s {
	case mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_KILLED,
		mesosv1.TaskState_TASK_ERROR, mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_DROPPED,
		mesosv1.TaskState_TASK_GONE, mesosv1.TaskState_TASK_GONE_BY_OPERATOR:
		return true
	}
	return false
}

// newTask is the master's record of a task that is handed to an agent.
func newTask(info *mesosv1.TaskInfo, frameworkID *mesosv1.FrameworkID, user string, rs []*mesosv1.Resource) *mesosv1.Task {
	t := &mesosv1.Task{
		Name:        info.Name,
		TaskId:      info.TaskId,
		FrameworkId: frameworkID,
		AgentId:     info.AgentId,
		State:       mesosv1.TaskState_TASK_STAGING.Enum(),
		Resources:   rs,
		Labels:      info.Labels,
		Discovery:   info.Discovery,
		Container:   info.Container,
		HealthCheck: info.HealthCheck,
		KillPolicy:  info.KillPolicy,
		User:        &user,
		Limits:      info.Limits,
	}
	if info.Executor != nil {
		t.ExecutorId = info.Executor.ExecutorId
	}
	return t
}

// copyTask copies a task without what is nested in it, which is never changed.
func copyTask(t *mesosv1.Task) *mesosv1.Task {
	return &mesosv1.Task{
		Name:              t.Name,
		TaskId:            t.TaskId,
		FrameworkId:       t.FrameworkId,
		ExecutorId:        t.ExecutorId,
		AgentId:           t.AgentId,
		State:             t.State,
		Resources:         t.Resources,
		Statuses:          t.Statuses,
		StatusUpdateState: t.StatusUpdateState,
		StatusUpdateUuid:  t.StatusUpdateUuid,
		Labels:            t.Labels,
		Discovery:         t.Discovery,
		Container:         t.Container,
		HealthCheck:       t.HealthCheck,
		KillPolicy:        t.KillPolicy,
		User:              t.User,
		Limits:            t.Limits,
	}
}

// withStatus returns the task in the given state, with status at the end of its history. A status of
// the same state as the last one replaces it: health changes must not make the history grow.
func withStatus(t *mesosv1.Task, state mesosv1.TaskState, status *mesosv1.TaskStatus) *mesosv1.Task {
	c := copyTask(t)
	c.State = state.Enum()
	c.StatusUpdateState = status.State
	c.StatusUpdateUuid = status.Uuid
	kept := t.Statuses
	if n := len(kept); n > 0 && kept[n-1].GetState() == status.GetState() {
		kept = kept[:n-1]
	}
	c.Statuses = append(kept[:len(kept):len(kept)], historyStatus(status))
	return c
}

// historyStatus is what of a status is kept: the data is for the scheduler only and may be large.
func historyStatus(s *mesosv1.TaskStatus) *mesosv1.TaskStatus {
	if len(s.Data) == 0 {
		return s
	}
	c := s.CloneVT()
	c.Data = nil
	return c
}

// addTask begins to know a task that holds its resources already, as far as the allocator goes.
func (s *state) addTask(f *framework, a *agent, proto *mesosv1.Task, set resources.Set) *task {
	t := &task{proto: proto, framework: f, agent: a, resources: set, released: terminal(proto.GetState())}
	f.tasks[t.id()] = t
	a.tasks[t] = struct{}{}
	t.slot = s.views.tasks.add(t.entry())
	s.emitTaskAdded(proto)
	return t
}

// setTask replaces what is known of a task.
func (s *state) setTask(t *task, proto *mesosv1.Task) {
	t.proto = proto
	s.views.tasks.set(t.slot, t.entry())
}

// entry is a task as the view shows it: one that has ended uses nothing.
func (t *task) entry() *taskEntry {
	e := &taskEntry{proto: t.proto, kind: taskActive}
	if !t.released {
		e.set = t.resources
	}
	return e
}

// release gives the resources of a task that has ended back, once.
func (s *state) release(t *task, now time.Time) {
	if t.released {
		return
	}
	t.released = true
	if t.agent == nil {
		return
	}
	s.allocator.RecoverResources(t.framework.id, t.agent.id, t.resources, nil, now)
	s.allocateBy(now.Add(freedDelay))
}

// completeTask moves a task into its framework's history.
func (s *state) completeTask(t *task, now time.Time) {
	s.release(t, now)
	delete(t.framework.tasks, t.id())
	if t.agent != nil {
		delete(t.agent.tasks, t)
		t.agent = nil
	}
	t.framework.completedTasks.add(s, t, taskCompleted, s.cfg.MaxCompletedTasksPerFramework)
}

// history keeps the last of a framework's tasks that are completed, or that are unreachable.
type history struct {
	tasks []*task // oldest first; nil where one was taken out
	byID  map[string]*task
	count int // of those in tasks that are not nil
}

func (h *history) add(s *state, t *task, kind taskKind, limit int) {
	s.views.tasks.set(t.slot, &taskEntry{proto: t.proto, kind: kind})
	t.agent, t.kill, t.unacknowledged, t.resources = nil, nil, nil, resources.Set{}
	h.tasks = append(h.tasks, t)
	if h.byID == nil {
		h.byID = make(map[string]*task)
	}
	h.byID[t.id()] = t
	h.count++
	for h.count > limit || len(h.tasks) > 0 && h.tasks[0] == nil {
		first := h.tasks[0]
		h.tasks[0] = nil
		h.tasks = h.tasks[1:]
		if first != nil {
			h.drop(s, first)
		}
	}
}

// drop forgets a task of the history.
func (h *history) drop(s *state, t *task) {
	s.views.tasks.remove(t.slot)
	h.count--
	if h.byID[t.id()] == t {
		delete(h.byID, t.id())
	}
}

// take removes and forgets the task of that id, for it has come back.
func (h *history) take(s *state, id string) {
	t := h.byID[id]
	if t == nil {
		return
	}
	for i := range h.tasks {
		if h.tasks[i] == t {
			h.tasks[i] = nil
		}
	}
	h.drop(s, t)
}

// clear forgets all.
func (h *history) clear(s *state) {
	for _, t := range h.tasks {
		if t != nil {
			h.drop(s, t)
		}
	}
	*h = history{}
}
