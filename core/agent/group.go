package agent

import (
	"fmt"
	"slices"

	"github.com/google/uuid"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// Task groups: tasks that come together for one executor and are accepted together or not at all. A custom executor is
// handed the group and does with it what it likes; for an executor of type DEFAULT the agent itself runs the tasks
// (group_executor.go).

// runTaskGroup takes a task group. When all of it is on disk it is launched; the master hears of it by the updates of
// its tasks.
func (a *Agent) runTaskGroup(m *clusterv1.RunTaskGroup) {
	a.decide(func(c *change) {
		f, err := a.framework(c, m.GetFramework())
		if err != nil {
			a.log.Warn("refused a task group", "error", err)
			return
		}
		defer func() { a.forgetFramework(c, f) }() // if nothing of it is here after all
		x, infos := m.GetExecutor(), m.GetTaskGroup().GetTasks()
		state, reason, text := a.groupRefusal(f, x, infos)
		if text != "" {
			a.refuseGroup(c, f, x, infos, state, reason, text)
			return
		}
		e := f.executors[ExecutorID(x.GetExecutorId().GetValue())]
		fresh := e == nil
		if fresh {
			e = a.addExecutor(c, f, x)
		}
		group := a.arrivals + 1 // the number of its first task
		tasks := make([]*task, len(infos))
		for i, info := range infos {
			t := &task{framework: f, id: TaskID(info.GetTaskId().GetValue()), info: info, state: mesosv1.TaskState_TASK_STAGING}
			t.progress.executor, t.group = e.id, group
			unit := e
			if e.ofGroups() {
				t.progress.container, t.generation = e.container+"."+ContainerID(uuid.NewString()), 1
				unit = newNested(e, t)
				unit.directory = a.sandbox(unit)
			}
			a.place(t, unit)
			a.accept(c, t)
			tasks[i] = t
		}
		c.then(func() {
			for _, t := range tasks {
				t.stored = true
			}
			if fresh {
				a.enqueue(e)
			} else {
				a.deliver(e)
			}
		})
	})
}

// groupRefusal says why a group cannot run here, or returns an empty text.
func (a *Agent) groupRefusal(f *framework, x *mesosv1.ExecutorInfo, infos []*mesosv1.TaskInfo) (mesosv1.TaskState, mesosv1.TaskStatus_Reason, string) {
	invalid := func(format string, args ...any) (mesosv1.TaskState, mesosv1.TaskStatus_Reason, string) {
		return mesosv1.TaskState_TASK_ERROR, mesosv1.TaskStatus_REASON_TASK_GROUP_INVALID, fmt.Sprintf(format, args...)
	}
	dropped := func(reason mesosv1.TaskStatus_Reason, text string) (mesosv1.TaskState, mesosv1.TaskStatus_Reason, string) {
		return mesosv1.TaskState_TASK_DROPPED, reason, text
	}
	id := x.GetExecutorId().GetValue()
	builtin := x.GetType() == mesosv1.ExecutorInfo_DEFAULT
	e := f.executors[ExecutorID(id)]
	if err := checkID(id); err != nil {
		return invalid("executor id: %v", err)
	}
	switch {
	case f.terminating || a.leaving:
		return dropped(mesosv1.TaskStatus_REASON_FRAMEWORK_REMOVED, "the framework or the agent is being shut down")
	case a.drain != nil:
		return dropped(mesosv1.TaskStatus_REASON_AGENT_DRAINING, "the agent is being drained")
	case builtin && len(a.cfg.Pause) == 0:
		return invalid("this agent has no program to hold the containers of a task group together")
	case builtin && (x.GetCommand() != nil || x.GetContainer().GetMesos().GetImage() != nil || x.GetContainer().GetDocker() != nil):
		return invalid("executor %q is of type DEFAULT and has a command or an image", id)
	case !builtin && x.GetCommand() == nil:
		return invalid("executor %q has no command", id)
	case e != nil && e.ofGroups() != builtin:
		return invalid("executor %q is here with another type", id)
	case e != nil && (e.shutdown || e.phase >= phaseTerminating):
		return dropped(mesosv1.TaskStatus_REASON_EXECUTOR_TERMINATED, "executor "+id+" is ending")
	}
	if err := a.unknownResources(x.GetResources()); err != nil {
		return dropped(mesosv1.TaskStatus_REASON_RESOURCES_UNKNOWN, err.Error())
	}
	seen := make(map[TaskID]bool, len(infos))
	for _, info := range infos {
		t := TaskID(info.GetTaskId().GetValue())
		switch {
		case checkID(string(t)) != nil:
			return invalid("task id: %v", checkID(string(t)))
		case seen[t] || f.tasks[t] != nil:
			return invalid("task %q is already here", t)
		case info.GetAgentId().GetValue() != a.info.GetId().GetValue():
			return invalid("task %q is for agent %q, this is %q", t, info.GetAgentId().GetValue(), a.info.GetId().GetValue())
		case builtin && info.GetCommand() == nil:
			return invalid("task %q has no command", t)
		}
		seen[t] = true
		if err := a.unknownResources(info.GetResources()); err != nil {
			return dropped(mesosv1.TaskStatus_REASON_RESOURCES_UNKNOWN, err.Error())
		}
	}
	return 0, 0, ""
}

// refuseGroup answers for each task of a group, as the scheduler tracks them singly. Those that are here already go on.
func (a *Agent) refuseGroup(c *change, f *framework, x *mesosv1.ExecutorInfo, infos []*mesosv1.TaskInfo,
	state mesosv1.TaskState, reason mesosv1.TaskStatus_Reason, text string,
) {
	state = f.lost(state)
	for _, info := range infos {
		id := TaskID(info.GetTaskId().GetValue())
		if f.tasks[id] != nil {
			a.log.Warn("ignored a task that is already here", "framework", f.id, "task", id)
			continue
		}
		if f.terminating || a.leaving || checkID(string(id)) != nil {
			// Nobody reads it, or it cannot be written down under such an id: this answer is not repeated.
			a.answer(f.id, id, state, reason, text)
			continue
		}
		t := &task{framework: f, id: id, info: info, state: mesosv1.TaskState_TASK_STAGING}
		if name := x.GetExecutorId().GetValue(); checkID(name) == nil {
			t.progress.executor = ExecutorID(name)
		}
		a.place(t, nil)
		a.accept(c, t)
		t.executor.phase = phaseTerminated
		a.update(c, t, &mesosv1.TaskStatus{
			State:   state.Enum(),
			Reason:  reason.Enum(),
			Message: new(text),
			Source:  mesosv1.TaskStatus_SOURCE_AGENT.Enum(),
		})
	}
}

// members are the tasks that came with t, t included; only t if it came alone. Oldest first.
func (t *task) members() []*task {
	if t.group == 0 {
		return []*task{t}
	}
	var ts []*task
	for _, x := range t.owner().tasks {
		if x.group == t.group {
			ts = append(ts, x)
		}
	}
	slices.SortFunc(ts, byArrival)
	return ts
}
