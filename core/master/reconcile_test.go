package master

import (
	"fmt"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

func reconcile(tasks ...*schedulerv1.Call_Reconcile_Task) *schedulerv1.Call {
	return &schedulerv1.Call{Type: schedulerv1.Call_RECONCILE.Enum(), Reconcile: &schedulerv1.Call_Reconcile{Tasks: tasks}}
}

func TestReconciliationAnswersByWhatIsKnown(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		f.launch(o, commandTask("t1", o, "cpus:1;mem:32"), commandTask("t2", o, "cpus:1;mem:32"))
		task := func(id, agent string) *schedulerv1.Call_Reconcile_Task {
			x := &schedulerv1.Call_Reconcile_Task{TaskId: &mesosv1.TaskID{Value: &id}}
			if agent != "" {
				x.AgentId = &mesosv1.AgentID{Value: &agent}
			}
			return x
		}
		var got []string
		for _, u := range updates(f.call(reconcile(
			task("t1", ""), task("t2", a.id()), task("x1", a.id()), task("x2", "nobody"), task("x3", "")))) {
			if u.Uuid != nil || u.GetSource() != mesosv1.TaskStatus_SOURCE_MASTER || u.GetReason() != mesosv1.TaskStatus_REASON_RECONCILIATION {
				t.Errorf("update = %v, want it without uuid, by the master, for reconciliation", u)
			}
			got = append(got, u.GetTaskId().GetValue()+" "+u.GetState().String())
		}
		want := "[t1 TASK_RUNNING t2 TASK_RUNNING x1 TASK_GONE x2 TASK_UNKNOWN x3 TASK_UNKNOWN]"
		if fmt.Sprint(got) != want {
			t.Errorf("explicit: %v, want %v", got, want)
		}
		us := updates(f.call(reconcile()))
		if len(us) != 2 || us[0].GetContainerStatus().GetContainerId().GetValue() != "c-t1" {
			t.Errorf("implicit: %v, want t1 and t2 with their containers", us)
		}
		old, _ := c.framework(oldInfo())
		if u := one(t, "updates", updates(old.call(reconcile(task("x", a.id()))))); u.GetState() != mesosv1.TaskState_TASK_LOST {
			t.Errorf("for an old framework: %v, want TASK_LOST", u)
		}
	})
}

func TestReconciledStateIsNotAheadOfWhatWasSent(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		f.launch(o, commandTask("t1", o, "cpus:1;mem:32"))
		// The agent sends the update whose turn it is, and says that the task has ended since.
		a.mu.Lock()
		status := a.tasks[f.id+"/t1"].Statuses[0].CloneVT()
		a.mu.Unlock()
		status.Uuid[15] = 99
		a.say(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Update{Update: &clusterv1.StatusUpdate{
			FrameworkId: f.id, Status: status, LatestState: "TASK_FINISHED"}}})
		if x := one(t, "tasks", c.get(masterv1.Call_GET_TASKS).GetGetTasks().GetTasks()); x.GetState() != mesosv1.TaskState_TASK_FINISHED {
			t.Errorf("GET_TASKS has %v, want the latest state, TASK_FINISHED", x)
		}
		f.stream.take()
		if u := one(t, "updates", updates(f.call(reconcile()))); u.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("update = %v, want TASK_RUNNING", u)
		}
	})
}
