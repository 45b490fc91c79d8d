package master

import (
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

// leftAlone is a framework that wants to end with its tasks, if it says so.
func leftAlone(says bool) *mesosv1.FrameworkInfo {
	info := frameworkInfo()
	if says {
		info.Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: ptr("mosaic.ends"), Value: ptr("with_its_tasks")}}}
	}
	return info
}

// known are the ids of frameworks that have not ended.
func (c *cluster) known() map[string]bool {
	ids := map[string]bool{}
	for _, f := range c.get(masterv1.Call_GET_FRAMEWORKS).GetGetFrameworks().GetFrameworks() {
		ids[f.GetFrameworkInfo().GetId().GetValue()] = true
	}
	return ids
}

func TestFrameworkThatIsAwayEndsWithItsLastTaskIfItSaysSo(t *testing.T) {
	for _, says := range []bool{true, false} {
		inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
			a := c.agent("cpus:4;mem:1024")
			f, events := c.framework(leftAlone(says))
			o := one(t, "offers", offers(events))
			f.launch(o, commandTask("t1", o, "cpus:1;mem:32"), commandTask("t2", o, "cpus:1;mem:32"))
			for _, id := range []string{"t1", "t2"} {
				a.set(f, id, mesosv1.TaskState_TASK_RUNNING)
			}
			f.stream.Close()
			c.settle()
			a.set(f, "t1", mesosv1.TaskState_TASK_FINISHED)
			c.pass(time.Minute)
			if !c.known()[f.id] {
				t.Fatal("the framework is gone while a task of it runs")
			}
			a.set(f, "t2", mesosv1.TaskState_TASK_FAILED)
			c.pass(time.Minute)
			if c.known()[f.id] == says {
				t.Errorf("the framework that says %v is known = %v after its last task", says, !says)
			}
			var states []mesosv1.TaskState
			for _, task := range c.get(masterv1.Call_GET_TASKS).GetGetTasks().GetCompletedTasks() {
				states = append(states, task.GetState())
			}
			if says && len(states) != 2 {
				t.Errorf("completed tasks = %v, want both as they ended", states)
			}
		})
	}
}

func TestFrameworkThatWantsToEndWithItsTasksMayBeAwayBeforeTheFirst(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		f, _ := c.framework(leftAlone(true))
		f.stream.Close()
		c.pass(time.Minute)
		if !c.known()[f.id] {
			t.Error("the framework ended before it had any task")
		}
	})
}

func TestFrameworkThatWantsToEndWithItsTasksStaysWhileItIsThere(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(leftAlone(true))
		o := one(t, "offers", offers(events))
		f.launch(o, commandTask("t1", o, "cpus:1;mem:32"))
		a.set(f, "t1", mesosv1.TaskState_TASK_FINISHED)
		c.pass(time.Minute)
		if !c.known()[f.id] {
			t.Error("the framework ended while its scheduler is there")
		}
		f.stream.Close()
		c.pass(time.Minute)
		if c.known()[f.id] {
			t.Error("the framework is known after its scheduler left, with no task that has not ended")
		}
	})
}
