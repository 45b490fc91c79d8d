package master

import (
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// reconcile tells a framework the state of the tasks that it names, or of all when it names none.
func (s *state) reconcile(f *framework, call *schedulerv1.Call_Reconcile, now time.Time) {
	if len(call.GetTasks()) > 0 {
		for _, t := range call.GetTasks() {
			s.reconcileTask(f, t.GetTaskId(), t.GetAgentId(), now)
		}
		return
	}
	for _, t := range sortedTasks(f.tasks) {
		s.sendUpdate(f, s.currentStatus(t.proto, mesosv1.TaskStatus_REASON_RECONCILIATION, "Reconciliation: Latest task state", now))
	}
}

// reconcileTask tells a framework what is known of one task. It says nothing while an agent that may
// run the task has yet to return to this master.
func (s *state) reconcileTask(f *framework, id *mesosv1.TaskID, agentID *mesosv1.AgentID, now time.Time) {
	const reason = mesosv1.TaskStatus_REASON_RECONCILIATION
	if t := f.tasks[id.GetValue()]; t != nil {
		s.sendUpdate(f, s.currentStatus(t.proto, reason, "Reconciliation: Latest task state", now))
		return
	}
	if t := f.unreachableTasks.byID[id.GetValue()]; t != nil {
		status := s.masterStatus(t.proto, f.lost(mesosv1.TaskState_TASK_UNREACHABLE), reason, "Reconciliation: Task is unreachable", now)
		status.UnreachableTime = timeInfo(s.unreachable[t.proto.GetAgentId().GetValue()].Since)
		s.sendUpdate(f, status)
		return
	}
	unknown := &mesosv1.Task{TaskId: id, AgentId: agentID}
	answer := func(state mesosv1.TaskState, message string) *mesosv1.TaskStatus {
		return s.masterStatus(unknown, f.lost(state), reason, "Reconciliation: "+message, now)
	}
	agent := agentID.GetValue()
	switch {
	case agentID == nil && len(s.recovered) > 0, s.recovered[agent] != nil:
	case s.agents[agent] != nil:
		s.sendUpdate(f, answer(mesosv1.TaskState_TASK_GONE, "Task is unknown to the agent"))
	case !s.unreachable[agent].Since.IsZero():
		status := answer(mesosv1.TaskState_TASK_UNREACHABLE, "Task is unreachable")
		status.UnreachableTime = timeInfo(s.unreachable[agent].Since)
		s.sendUpdate(f, status)
	case !s.gone[agent].IsZero():
		s.sendUpdate(f, answer(mesosv1.TaskState_TASK_GONE_BY_OPERATOR, "Task is gone by operator"))
	default:
		s.sendUpdate(f, answer(mesosv1.TaskState_TASK_UNKNOWN, "Task is unknown"))
	}
}
