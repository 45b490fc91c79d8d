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

func TestChecksOfAGroupPauseWhileThereIsNoAgent(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		s := &script{words: []string{"0", "3"}}
		w.host.launches = s.launch
		w.start()
		a := command("a", "sleep")
		a.Check = commandCheck()
		w.launchGroup(checkpointed("F"), builtin("e"), a)
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		w.crash()
		time.Sleep(time.Minute)
		if n := len(s.ran()); n != 1 {
			t.Errorf("%d checks ran, want one", n)
		}
		w.start()
		w.master.wait(t, "another result", func() bool {
			for _, u := range w.master.updatesLocked("a") {
				if u.GetStatus().GetCheckStatus().GetCommand().GetExitCode() == 3 {
					return true
				}
			}
			return false
		})
	})
}

func TestGroupsSurviveTheirAgent(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), command("a", "sleep"), command("b", "stubborn"))
		w.launchGroup(checkpointed("F"), builtin("e"), command("c", "sleep"))
		for _, id := range []string{"a", "b", "c"} {
			w.master.await(t, id, mesosv1.TaskState_TASK_RUNNING)
		}
		synctest.Wait()
		w.crash()
		w.host.end(w.container("a"), 7<<8)
		time.Sleep(time.Minute)
		w.start()
		h := w.master.hello()
		if len(h.GetTasks()) != 3 || len(h.GetExecutors()) != 1 || h.GetExecutors()[0].GetContainerId() != w.root("a") {
			t.Errorf("Hello names %v and %v, want three tasks of one executor", h.GetTasks(), h.GetExecutors())
		}
		if s := w.master.await(t, "a", mesosv1.TaskState_TASK_FAILED).GetStatus(); s.GetMessage() != "Command exited with status 7" {
			t.Errorf("status of a = %v, want what it exited with", s)
		}
		w.master.await(t, "b", mesosv1.TaskState_TASK_KILLED)
		time.Sleep(time.Minute)
		synctest.Wait()
		equal(t, "history of c", w.master.history("c"), []string{"TASK_STARTING", "TASK_RUNNING"})
		for id, n := range w.host.started {
			if n != 1 {
				t.Errorf("container %s was started %d times", id, n)
			}
		}
		w.kill("c")
		w.master.await(t, "c", mesosv1.TaskState_TASK_KILLED)
		time.Sleep(2 * idleTime)
		synctest.Wait()
		if got := w.records(); len(got) != 0 || w.host.alive(w.root("a")) {
			t.Errorf("the store holds %v at the end, want nothing", got)
		}
	})
}

func TestATaskKilledBeforeItsLaunchEndsItsGroupAfterARestart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.host.launches = func(ctx context.Context, c *containerv1.Container) error {
			if c.GetTaskId() == "a" {
				<-ctx.Done()
				time.Sleep(time.Second) // in which the agent dies
				return ctx.Err()
			}
			return nil
		}
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), command("a", "sleep"), command("b", "sleep"), command("c", "sleep"))
		w.master.await(t, "b", mesosv1.TaskState_TASK_RUNNING)
		w.master.await(t, "c", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		w.kill("a")
		synctest.Wait()
		w.crash()
		b, c := w.container("b"), w.container("c")
		w.start()
		w.master.await(t, "a", mesosv1.TaskState_TASK_KILLED)
		for _, id := range []string{"b", "c"} {
			if s := w.master.await(t, id, mesosv1.TaskState_TASK_KILLED).GetStatus(); s.GetMessage() != "Command terminated with signal Terminated" {
				t.Errorf("status of %s = %v, want what it ended with", id, s)
			}
		}
		time.Sleep(2 * idleTime)
		synctest.Wait()
		for _, id := range []string{b, c} {
			if w.host.alive(id) {
				t.Errorf("container %s outlives its task", id)
			}
		}
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v at the end, want nothing", got)
		}
	})
}

func TestGroupsOfFrameworksWithoutCheckpointsEndWithTheirAgent(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		f := checkpointed("F", mesosv1.FrameworkInfo_Capability_PARTITION_AWARE)
		f.Checkpoint = nil
		w.launchGroup(f, builtin("e"), command("a", "sleep"), command("b", "sleep"))
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		w.master.await(t, "b", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		w.crash()
		w.start()
		for _, id := range []string{"a", "b"} {
			s := w.master.await(t, id, mesosv1.TaskState_TASK_GONE).GetStatus()
			if s.GetReason() != mesosv1.TaskStatus_REASON_AGENT_RESTARTED {
				t.Errorf("status of %s = %v, want AGENT_RESTARTED", id, s)
			}
		}
		synctest.Wait()
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v at the end, want nothing", got)
		}
	})
}

func TestShutdownOfAGroupsExecutorGoesOnAfterARestart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		slow := command("a", "stubborn")
		slow.KillPolicy = &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: new(int64(time.Hour))}}
		w.launchGroup(checkpointed("F"), builtin("e"), slow)
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		w.master.send(t, &clusterv1.ToAgent_ShutdownExecutor{ShutdownExecutor: &clusterv1.ShutdownExecutor{FrameworkId: "F", ExecutorId: "e"}})
		synctest.Wait()
		w.crash()
		w.start()
		began := time.Now()
		w.master.await(t, "a", mesosv1.TaskState_TASK_KILLED)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("killed after %v, want at most the 5s that an executor has", took)
		}
	})
}

func TestExecutorOfGroupsThatIsGoneFailsItsTasks(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), command("a", "sleep"), command("b", "sleep"))
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		w.master.await(t, "b", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		root := w.root("a")
		for _, id := range []string{root, w.container("a"), w.container("b")} {
			if err := w.store.DeleteContainer(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		w.crash()
		w.start()
		for _, id := range []string{"a", "b"} {
			s := w.master.await(t, id, mesosv1.TaskState_TASK_FAILED).GetStatus()
			if s.GetReason() != mesosv1.TaskStatus_REASON_EXECUTOR_TERMINATED {
				t.Errorf("status of %s = %v, want EXECUTOR_TERMINATED", id, s)
			}
		}
		synctest.Wait()
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v at the end, want nothing", fmt.Sprint(got))
		}
	})
}
