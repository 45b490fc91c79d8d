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

// applyOperation refuses operations on resources, which this agent does not have yet. One without id wants no
// answer; the master has then the agent's next totals to go by.
func (a *Agent) applyOperation(m *clusterv1.ApplyOperation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	op := m.GetOperation()
	a.log.Warn("refused an operation", "framework", m.GetFrameworkId(), "type", op.GetType())
	if a.master == nil {
		return
	}
	s := &mesosv1.OperationStatus{
		OperationId: op.GetId(),
		State:       mesosv1.OperationState_OPERATION_ERROR.Enum(),
		Message:     new("this agent applies no operations to its resources"),
		AgentId:     a.info.GetId(),
	}
	a.master.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_OperationUpdate{OperationUpdate: &clusterv1.OperationUpdate{
		FrameworkId:   m.GetFrameworkId(),
		Status:        s,
		LatestStatus:  s,
		OperationUuid: m.GetOperationUuid(),
	}}})
}
