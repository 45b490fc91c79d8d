package agent

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func TestSlowLaunchesDoNotHoldUpOthers(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.config.LaunchParallelism = 2
		w.host.launches = func(ctx context.Context, c *containerv1.Container) error {
			if c.GetCommand().GetValue() != "true" {
				time.Sleep(10 * time.Minute) // a download
			}
			return nil
		}
		w.start()
		began := time.Now()
		for i := range 4 {
			w.launch(checkpointed("F"), command(fmt.Sprint("slow", i), "exit 0"))
		}
		w.launch(checkpointed("F"), command("quick", "true"))
		w.master.await(t, "quick", mesosv1.TaskState_TASK_FINISHED)
		if took := time.Since(began); took > 3*slowLaunch {
			t.Errorf("a quick task behind slow ones took %v", took)
		}
		for i := range 4 {
			w.master.await(t, fmt.Sprint("slow", i), mesosv1.TaskState_TASK_FINISHED)
		}
	})
}

func TestLaunchesAreFirstComeFirstServed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.config.LaunchParallelism = 1
		var order []string
		w.host.launches = func(_ context.Context, c *containerv1.Container) error {
			order = append(order, c.GetTaskId())
			time.Sleep(10 * time.Millisecond)
			return nil
		}
		w.start()
		var want []string
		for i := range 20 {
			id := fmt.Sprintf("t%02d", i)
			want = append(want, id)
			w.launch(checkpointed("F"), command(id, "true"))
		}
		w.master.await(t, want[19], mesosv1.TaskState_TASK_FINISHED)
		equal(t, "order of launches", order, want)
	})
}

func TestContainerDescribesTheTask(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.config.KeepUser = false
		w.master.autoAck = true
		var got *containerv1.Container
		w.host.launches = func(_ context.Context, c *containerv1.Container) error {
			got = c
			return nil
		}
		w.start()
		task := command("t", "true")
		task.Limits = map[string]*mesosv1.Value_Scalar{"cpus": {Value: new(2.0)}}
		task.Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: new("app"), Value: new("web")}}}
		task.Command.User = new("daemon")
		w.launch(checkpointed("F"), task)
		w.master.await(t, "t", mesosv1.TaskState_TASK_FINISHED)
		id := got.GetId()
		sandbox := w.config.WorkDir + "/slaves/M-S0/frameworks/F/executors/t/runs/" + id
		if got.GetSandbox() != sandbox || got.GetSandboxInContainer() != sandbox || got.GetCgroup() != "mosaic/"+id ||
			got.GetUser() != "daemon" || got.GetGeneration() != 1 || got.GetTaskId() != "t" || got.GetExecutorId() != "t" ||
			got.GetAgentId() != "M-S0" || got.GetLimits()["cpus"] != 2 || got.GetLabels()["app"] != "web" || len(got.GetResources()) != 2 {
			t.Errorf("container = %v", got)
		}
		for name, want := range map[string]string{
			"MESOS_FRAMEWORK_ID": "F", "MESOS_EXECUTOR_ID": "t", "MESOS_SLAVE_ID": "M-S0", "MESOS_DIRECTORY": sandbox,
			"MESOS_SANDBOX": sandbox, "MESOS_AGENT_ENDPOINT": "127.0.0.1:5051", "MESOS_SLAVE_PID": "slave(1)@127.0.0.1:5051",
			"MESOS_CHECKPOINT": "1", "MESOS_RECOVERY_TIMEOUT": "15mins", "MESOS_SUBSCRIPTION_BACKOFF_MAX": "2secs",
			"MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": "5secs",
		} {
			if got.GetEnvironment()[name] != want {
				t.Errorf("%s = %q, want %q", name, got.GetEnvironment()[name], want)
			}
		}
	})
}

func TestTaskThatCannotRunHereIsRefused(t *testing.T) {
	elsewhere := command("t", "true")
	elsewhere.AgentId.Value = new("M-S9")
	nothing := command("t", "")
	nothing.Command = nil
	group := command("t", "true")
	group.Executor = &mesosv1.ExecutorInfo{ExecutorId: &mesosv1.ExecutorID{Value: new("e")}, Type: mesosv1.ExecutorInfo_DEFAULT.Enum()}
	slash := command("t", "true")
	slash.Executor = &mesosv1.ExecutorInfo{ExecutorId: &mesosv1.ExecutorID{Value: new("../e")}, Command: &mesosv1.CommandInfo{}}
	for name, task := range map[string]*mesosv1.TaskInfo{
		"another agent": elsewhere, "nothing to run": nothing, "default executor": group, "executor id with a slash": slash,
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.master.autoAck = true
				w.start()
				w.launch(checkpointed("F"), task)
				s := w.master.await(t, "t", mesosv1.TaskState_TASK_ERROR).GetStatus()
				if s.GetReason() != mesosv1.TaskStatus_REASON_TASK_INVALID || s.GetMessage() == "" {
					t.Errorf("status = %v, want TASK_INVALID and a message", s)
				}
				synctest.Wait()
				if got := w.records(); len(got) != 0 {
					t.Errorf("the store holds %v, want nothing", got)
				}
			})
		})
	}
}

func TestTaskGroupsAreRefusedTaskByTask(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.master.send(t, &clusterv1.ToAgent_RunTaskGroup{RunTaskGroup: &clusterv1.RunTaskGroup{
			Framework: checkpointed("F"),
			TaskGroup: &mesosv1.TaskGroupInfo{Tasks: []*mesosv1.TaskInfo{command("a", "true"), command("b", "true")}},
		}})
		w.master.await(t, "a", mesosv1.TaskState_TASK_ERROR)
		w.master.await(t, "b", mesosv1.TaskState_TASK_ERROR)
	})
}

func TestTaskWithAnIdThatIsNoFileNameIsRefused(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launch(checkpointed("F"), command("..", "true"))
		w.master.await(t, "..", mesosv1.TaskState_TASK_ERROR)
		w.launch(checkpointed("F/../G"), command("t", "true"))
		w.launch(checkpointed("F"), command("t", "true"))
		w.master.await(t, "t", mesosv1.TaskState_TASK_STARTING)
	})
}

func TestFrameworkShutdownKillsItsTasksSilently(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), command("a", "sleep"))
		w.launch(checkpointed("F"), command("b", "stubborn"))
		w.launch(checkpointed("G"), command("other", "sleep"))
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		w.master.await(t, "b", mesosv1.TaskState_TASK_RUNNING)
		w.master.await(t, "other", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		w.master.send(t, &clusterv1.ToAgent_ShutdownFramework{ShutdownFramework: &clusterv1.ShutdownFramework{FrameworkId: "F"}})
		time.Sleep(killGrace)
		synctest.Wait()
		w.launch(checkpointed("G"), command("more", "true")) // the agent goes on
		w.master.await(t, "more", mesosv1.TaskState_TASK_FINISHED)
		synctest.Wait()
		for _, id := range []string{"a", "b"} {
			equal(t, "history of "+id, w.master.history(id), []string{"TASK_STARTING", "TASK_RUNNING"})
			select {
			case <-w.host.procs[w.container(id)].ended:
			default:
				t.Errorf("the process of %s still runs", id)
			}
		}
		got := w.records()
		if got["tasks"] != 1 || got["frameworks"] != 1 {
			t.Errorf("the store holds %v, want one task of the other framework", got)
		}
	})
}

func TestTaskForAFrameworkThatIsEndingIsDropped(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), command("a", "stubborn"))
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		w.master.send(t, &clusterv1.ToAgent_ShutdownFramework{ShutdownFramework: &clusterv1.ShutdownFramework{FrameworkId: "F"}})
		w.launch(checkpointed("F"), command("b", "true"))
		w.master.await(t, "b", mesosv1.TaskState_TASK_LOST)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v, want nothing", got)
		}
	})
}

func TestChangedFrameworkIsWrittenDown(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launch(checkpointed("F"), command("t", "sleep"))
		changed := checkpointed("F", mesosv1.FrameworkInfo_Capability_PARTITION_AWARE)
		changed.Name = new("renamed")
		w.launch(changed, command("u", "sleep"))
		synctest.Wait()
		w.crash()
		w.start()
		if fs := w.master.hello().GetFrameworks(); len(fs) != 1 || fs[0].GetName() != "renamed" {
			t.Errorf("frameworks in Hello = %v, want the changed one", fs)
		}
	})
}

func TestDrainKillsAndRefuses(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launch(checkpointed("F", mesosv1.FrameworkInfo_Capability_PARTITION_AWARE, mesosv1.FrameworkInfo_Capability_TASK_KILLING_STATE),
			command("t", "stubborn"))
		w.master.ack(t, w.master.await(t, "t", mesosv1.TaskState_TASK_STARTING))
		w.master.ack(t, w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING))
		synctest.Wait()
		began := time.Now()
		w.master.send(t, &clusterv1.ToAgent_Drain{Drain: &clusterv1.Drain{Config: &mesosv1.DrainConfig{
			MaxGracePeriod: &mesosv1.DurationInfo{Nanoseconds: new(int64(time.Second))},
		}}})
		killing := w.master.await(t, "t", mesosv1.TaskState_TASK_KILLING)
		w.master.ack(t, killing)
		killed := w.master.await(t, "t", mesosv1.TaskState_TASK_KILLED)
		if took := time.Since(began); took != time.Second {
			t.Errorf("the drain took %v, want the 1s it allows", took)
		}
		for _, u := range []*clusterv1.StatusUpdate{killing, killed} {
			if u.GetStatus().GetReason() != mesosv1.TaskStatus_REASON_AGENT_DRAINING {
				t.Errorf("update = %v, want reason AGENT_DRAINING", u)
			}
		}
		w.launch(checkpointed("F", mesosv1.FrameworkInfo_Capability_PARTITION_AWARE), command("late", "true"))
		w.master.ack(t, w.master.await(t, "late", mesosv1.TaskState_TASK_DROPPED))
		w.master.ack(t, killed)
		synctest.Wait()
		w.launch(checkpointed("F"), command("after", "true"))
		w.master.await(t, "after", mesosv1.TaskState_TASK_STARTING)
	})
}
