package master

import (
	"bytes"
	"strings"
	"time"

	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// sendUpdate gives a framework a task's status.
func (s *state) sendUpdate(f *framework, status *mesosv1.TaskStatus) {
	s.send(f, &schedulerv1.Event{
		Type:   schedulerv1.Event_UPDATE.Enum(),
		Update: &schedulerv1.Event_Update{Status: status},
	})
}

// masterStatus is a status that the master makes: without uuid, so it is not acknowledged.
func (s *state) masterStatus(t *mesosv1.Task, state mesosv1.TaskState, reason mesosv1.TaskStatus_Reason, message string, now time.Time) *mesosv1.TaskStatus {
	status := &mesosv1.TaskStatus{
		TaskId:     t.TaskId,
		AgentId:    t.AgentId,
		ExecutorId: t.ExecutorId,
		State:      state.Enum(),
		Source:     mesosv1.TaskStatus_SOURCE_MASTER.Enum(),
		Reason:     reason.Enum(),
		Message:    &message,
		Timestamp:  ptr(seconds(now)),
	}
	if n := len(t.Statuses); n > 0 {
		last := t.Statuses[n-1]
		status.ContainerStatus, status.Healthy, status.CheckStatus = last.ContainerStatus, last.Healthy, last.CheckStatus
	}
	return status
}

// currentStatus is the status of a task as the master knows it: of the last update that went to the
// framework, for a later one has yet to be acknowledged.
func (s *state) currentStatus(t *mesosv1.Task, reason mesosv1.TaskStatus_Reason, message string, now time.Time) *mesosv1.TaskStatus {
	state := t.GetState()
	if t.StatusUpdateState != nil {
		state = t.GetStatusUpdateState()
	}
	return s.masterStatus(t, state, reason, message, now)
}

// countUpdate counts a status that was not counted before.
func (s *state) countUpdate(f *framework, status *mesosv1.TaskStatus) {
	s.metrics.taskState(status.GetState())
	f.metrics.ended.add(int32(status.GetState()))
	s.metrics.taskReason(status)
}

// statusUpdate takes an update from an agent: the state advances at once, and the framework is told
// each time, until it acknowledges.
func (s *state) statusUpdate(a *agent, u *clusterv1.StatusUpdate, now time.Time) {
	status := u.GetStatus()
	if status == nil || validateID(status.GetTaskId().GetValue()) != nil {
		s.metrics.invalidUpdates.Add(1)
		return
	}
	f := s.frameworks[u.GetFrameworkId()]
	if f == nil {
		// The framework was removed while the update was under way, or nobody knows it.
		s.metrics.invalidUpdates.Add(1)
		s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_ShutdownFramework{
			ShutdownFramework: &clusterv1.ShutdownFramework{FrameworkId: u.GetFrameworkId()}}})
		return
	}
	if status.AgentId == nil {
		status.AgentId = a.info.Id
	}
	if state := f.lost(status.GetState()); state != status.GetState() {
		status.State = state.Enum()
	}
	t := f.tasks[status.GetTaskId().GetValue()]
	if t == nil || t.agent != a {
		// Completed already, its acknowledgement was lost: the framework will say so again.
		s.metrics.invalidUpdates.Add(1)
		s.sendUpdate(f, status)
		return
	}
	s.metrics.validUpdates.Add(1)
	repeated := len(status.Uuid) > 0 && bytes.Equal(status.Uuid, t.proto.StatusUpdateUuid)
	if !repeated {
		latest := status.GetState()
		if n, ok := mesosv1.TaskState_value[u.GetLatestState()]; ok {
			latest = f.lost(mesosv1.TaskState(n))
		}
		ended := terminal(t.state())
		if ended {
			latest = t.state()
		}
		if terminal(latest) {
			s.release(t, now)
			t.kill = nil
		}
		s.setTask(t, withStatus(t.proto, latest, status))
		s.metrics.taskReason(status)
		if terminal(latest) && !ended {
			s.metrics.taskState(latest)
			f.metrics.ended.add(int32(latest))
		}
		s.emitTaskUpdated(t, status)
	}
	if len(status.Uuid) > 0 {
		t.unacknowledged = status
	}
	s.sendUpdate(f, status)
	if len(status.Uuid) == 0 && terminal(status.GetState()) {
		s.completeTask(t, now)
	}
	s.endLeftAlone(f, now)
}

// acknowledge passes a framework's acknowledgement on. That of a terminal update ends the task.
func (s *state) acknowledge(f *framework, ack *schedulerv1.Call_Acknowledge, now time.Time) {
	id := ack.GetTaskId().GetValue()
	if t := f.tasks[id]; t != nil {
		s.metrics.validAcks.Add(1)
		if bytes.Equal(t.unacknowledged.GetUuid(), ack.GetUuid()) {
			t.unacknowledged = nil
		}
		if terminal(t.proto.GetStatusUpdateState()) && t.proto.StatusUpdateState != nil &&
			bytes.Equal(t.proto.StatusUpdateUuid, ack.GetUuid()) {
			s.completeTask(t, now)
		}
	} else {
		s.metrics.invalidAcks.Add(1)
	}
	a := s.agents[ack.GetAgentId().GetValue()]
	if a == nil {
		return // it will send the update again when it is back
	}
	msg := &clusterv1.Acknowledge{FrameworkId: f.id, TaskId: id, Uuid: ack.GetUuid()}
	if a.conn == nil {
		if len(a.owedAcks) < maxOwedAcks {
			a.owedAcks = append(a.owedAcks, msg)
		}
		return
	}
	s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_Acknowledge{Acknowledge: msg}})
}

// kill passes a KILL on, and remembers it until the task has ended.
func (s *state) kill(f *framework, call *schedulerv1.Call_Kill, now time.Time) {
	t := f.tasks[call.GetTaskId().GetValue()]
	if t == nil {
		s.reconcileTask(f, call.GetTaskId(), call.GetAgentId(), now)
		return
	}
	if call.AgentId != nil && call.GetAgentId().GetValue() != t.agent.id {
		s.log.Warn("kill names the wrong agent", "framework", f.id, "task", t.id(),
			"got", call.GetAgentId().GetValue(), "want", t.agent.id)
		return
	}
	msg := &clusterv1.KillTask{FrameworkId: f.id, TaskId: t.id(), KillPolicy: call.KillPolicy}
	if !terminal(t.state()) {
		t.kill = msg
	}
	s.tell(t.agent, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_KillTask{KillTask: msg}})
}

// loseTask ends a task of which its agent knows nothing.
func (s *state) loseTask(t *task, state mesosv1.TaskState, reason mesosv1.TaskStatus_Reason, message string, now time.Time) {
	s.loseTaskUntil(t, removal{state: state, reason: reason, message: message}, now)
}

// loseTaskUntil ends a task whose agent is given up, or, for a framework that knows how to wait, makes
// it unreachable.
func (s *state) loseTaskUntil(t *task, r removal, now time.Time) {
	f := t.framework
	state := r.state
	if t.state() == mesosv1.TaskState_TASK_STAGING && state == mesosv1.TaskState_TASK_GONE {
		state = mesosv1.TaskState_TASK_DROPPED // it may never have been there
	}
	state = f.lost(state)
	status := s.masterStatus(t.proto, state, r.reason, r.message, now)
	status.UnreachableTime = timeInfo(r.unreachable)
	s.release(t, now)
	s.setTask(t, withStatus(t.proto, state, status))
	s.countUpdate(f, status)
	s.sendUpdate(f, status)
	s.emitTaskUpdated(t, status)
	if state != mesosv1.TaskState_TASK_UNREACHABLE {
		s.completeTask(t, now)
		return
	}
	delete(f.tasks, t.id())
	delete(t.agent.tasks, t)
	f.unreachableTasks.add(s, t, taskUnreachable, s.cfg.MaxUnreachableTasksPerFramework)
}

// bye removes an agent that goes for good.
func (s *state) bye(a *agent, b *clusterv1.Bye) {
	s.metrics.byes.Add(1)
	message := "Agent unregistered"
	if m := strings.TrimSpace(b.GetMessage()); m != "" {
		message += ": " + m
	}
	s.dismiss(a, []change{registry.RemoveAgent(a.id)}, removal{
		state:   mesosv1.TaskState_TASK_GONE,
		reason:  mesosv1.TaskStatus_REASON_AGENT_REMOVED,
		message: message,
		metric:  &s.metrics.removedUnregistered,
	})
}
