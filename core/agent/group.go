package agent

import (
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// runTaskGroup refuses a task group: this agent has no executor for them. Each task is answered for, as the
// scheduler tracks them singly.
func (a *Agent) runTaskGroup(m *clusterv1.RunTaskGroup) {
	a.decide(func(c *change) {
		f, err := a.framework(c, m.GetFramework())
		if err != nil {
			a.log.Warn("refused a task group", "error", err)
			return
		}
		for _, info := range m.GetTaskGroup().GetTasks() {
			id := TaskID(info.GetTaskId().GetValue())
			if f.tasks[id] != nil {
				continue
			}
			const text = "this agent runs no task groups"
			if checkID(string(id)) != nil {
				a.answer(f.id, id, mesosv1.TaskState_TASK_ERROR, mesosv1.TaskStatus_REASON_TASK_GROUP_INVALID, text)
				continue
			}
			t := &task{framework: f, id: id, info: info, state: mesosv1.TaskState_TASK_STAGING}
			a.place(t, nil)
			a.accept(c, t)
			t.executor.phase = phaseTerminated
			a.update(c, t, &mesosv1.TaskStatus{
				State:   mesosv1.TaskState_TASK_ERROR.Enum(),
				Reason:  mesosv1.TaskStatus_REASON_TASK_GROUP_INVALID.Enum(),
				Message: new(text),
				Source:  mesosv1.TaskStatus_SOURCE_AGENT.Enum(),
			})
		}
		a.forgetFramework(c, f)
	})
}
