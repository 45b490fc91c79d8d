package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

func TestTasksSurviveTheirAgent(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		const n = 50
		for i := range n {
			w.launch(checkpointed("F"), command(fmt.Sprint("t", i), "sleep"))
		}
		for i := range n {
			w.master.await(t, fmt.Sprint("t", i), mesosv1.TaskState_TASK_RUNNING)
		}
		synctest.Wait()
		pids := make(map[string]int32)
		for id, p := range w.host.procs {
			pids[id] = p.pid
		}
		w.crash()
		w.host.end(w.container("t7"), 9<<8)
		w.host.end(w.container("t8"), 11)
		w.host.end(w.container("t9"), 0)
		w.start()
		if got := len(w.master.hello().GetTasks()); got != n {
			t.Errorf("Hello names %d tasks, want %d", got, n)
		}
		for id, want := range map[string]struct {
			state   mesosv1.TaskState
			message string
		}{
			"t7": {mesosv1.TaskState_TASK_FAILED, "Command exited with status 9"},
			"t8": {mesosv1.TaskState_TASK_FAILED, "Command terminated with signal Segmentation fault"},
			"t9": {mesosv1.TaskState_TASK_FINISHED, "Command exited with status 0"},
		} {
			if got := w.master.await(t, id, want.state).GetStatus().GetMessage(); got != want.message {
				t.Errorf("message of %s = %q, want %q", id, got, want.message)
			}
		}
		synctest.Wait()
		for i := range n {
			if want := 2 + map[bool]int{true: 1}[i >= 7 && i <= 9]; len(w.master.history(fmt.Sprint("t", i))) != want {
				t.Errorf("history of t%d = %v", i, w.master.history(fmt.Sprint("t", i)))
			}
		}
		for id, p := range w.host.procs {
			if p.pid != pids[id] || w.host.started[id] != 1 {
				t.Errorf("container %s: pid %d, started %d times, want pid %d, once", id, p.pid, w.host.started[id], pids[id])
			}
		}
		// It is in charge of them: a kill reaches the old process.
		w.kill("t0")
		w.master.await(t, "t0", mesosv1.TaskState_TASK_KILLED)
	})
}

// A crash at any write, then a second one during recovery, must leave every task with the one history it would have had.
func TestCrashAtEveryWriteLosesNothing(t *testing.T) {
	for n := 1; ; n++ {
		crashed := false
		t.Run(fmt.Sprint("write ", n), func(t *testing.T) {
			in(t, func(t *testing.T, w *world) { crashed = crashAt(t, w, n, n%7+1) })
		})
		if !crashed || t.Failed() {
			if n < 15 { // how many it makes depends on which share a sync
				t.Errorf("the scenario made only %d writes, want more to crash at", n)
			}
			return
		}
	}
}

// The same for task groups.
func TestCrashAtEveryWriteOfAGroupLosesNothing(t *testing.T) {
	for n := 1; ; n++ {
		crashed := false
		t.Run(fmt.Sprint("write ", n), func(t *testing.T) {
			in(t, func(t *testing.T, w *world) { crashed = crashGroupAt(t, w, n, n%5+1) })
		})
		if !crashed || t.Failed() {
			if n < 15 {
				t.Errorf("the scenario made only %d writes, want more to crash at", n)
			}
			return
		}
	}
}

// mortal runs agents of which each dies at one of its writes.
type mortal struct {
	w      *world
	struck atomic.Bool // the write came, and was not made
}

// open runs an agent whose n-th write fails.
func (x *mortal) open(n int) {
	var armed atomic.Bool // New writes too, and a test cannot go on without an agent
	x.struck.Store(false)
	k := 0
	x.w.open(func(int, []op) error {
		if !armed.Load() {
			return nil
		}
		if k++; k == n {
			x.struck.Store(true)
			return errCrash
		}
		return nil
	})
	armed.Store(true)
	x.w.run()
}

// down ends the agent, if it did not die before. It returns whether it did.
func (x *mortal) down() bool {
	if !x.struck.Load() {
		x.w.crash()
		return false
	}
	if err := <-x.w.done; !errors.Is(err, errCrash) {
		x.w.t.Fatalf("Run = %v, want the crash", err)
	}
	x.w.close()
	return true
}

// crashGroupAt has an agent die at its n-th write and the next one at its m-th, with a group of which one task fails, a
// group that finishes, both in one executor, and an executor that is shut down. Then all must have come to its end, each
// process been started at most once after it was seen running, and nothing be left. It returns false when there was no
// n-th write.
func crashGroupAt(t *testing.T, w *world, n, m int) bool {
	w.master.autoAck = true
	agents := mortal{w: w}
	f := checkpointed("F")
	before := w.master.count()
	agents.open(n)
	synctest.Wait()
	if w.master.count() > before {
		for _, x := range []any{
			groupOf(f, builtin("e"), command("fails", "exit 7"), command("killed", "sleep"), command("stubborn", "stubborn")),
			groupOf(f, builtin("e"), command("done", "true"), command("ends", "sleep")),
			groupOf(f, builtin("x"), command("shut", "sleep")),
			&clusterv1.ToAgent_ShutdownExecutor{ShutdownExecutor: &clusterv1.ShutdownExecutor{FrameworkId: "F", ExecutorId: "x"}},
		} {
			w.try(x)
			synctest.Wait()
		}
	}
	tasks := []string{"fails", "killed", "stubborn", "done", "ends", "shut"}
	first := agents.down()
	ran := make(map[string]bool)
	for _, id := range tasks {
		ran[id] = slices.Contains(w.master.history(id), "TASK_RUNNING")
	}
	agents.open(m)
	synctest.Wait()
	agents.down()
	w.start()
	synctest.Wait()
	time.Sleep(30 * time.Second) // graces are over
	w.agent.mu.Lock()
	here := w.agent.find("F", "ends") != nil
	w.agent.mu.Unlock()
	if here {
		w.master.await(t, "ends", mesosv1.TaskState_TASK_RUNNING)
		w.host.end(w.container("ends"), 0)
	}
	// A shutdown that was lost is repeated, as schedulers do.
	w.try(&clusterv1.ToAgent_ShutdownExecutor{ShutdownExecutor: &clusterv1.ShutdownExecutor{FrameworkId: "F", ExecutorId: "x"}})
	time.Sleep(30 * time.Minute)
	synctest.Wait()
	for id, ends := range map[string][]string{
		"fails": {"TASK_FAILED"}, "killed": {"TASK_KILLED"}, "stubborn": {"TASK_KILLED"}, "done": {"TASK_FINISHED"},
		"ends": {"TASK_FINISHED"}, "shut": {"TASK_KILLED"},
	} {
		got := w.master.history(id)
		if len(got) == 0 {
			continue // the agent died before it was written down
		}
		whole := append([]string{"TASK_STARTING", "TASK_RUNNING"}, ends...)
		short := append([]string{"TASK_STARTING"}, ends...) // ended before it was known to run
		if !slices.Equal(got, whole) && !slices.Equal(got, short) && !slices.Equal(got, ends) {
			t.Errorf("history of %q = %v, want %v, or the end of it", id, got, whole)
		}
		if ran[id] && w.host.started[w.container(id)] != 1 {
			t.Errorf("%q was seen running before the crash and was started %d times", id, w.host.started[w.container(id)])
		}
	}
	all := func(ids ...string) (n int) {
		for _, id := range ids {
			if len(w.master.history(id)) > 0 {
				n++
			}
		}
		return n
	}
	if n := all("fails", "killed", "stubborn"); n != 0 && n != 3 {
		t.Errorf("%d tasks of a group of three were ever heard of", n)
	}
	if got := w.records(); len(got) != 0 {
		t.Errorf("the store holds %v at the end, want nothing", got)
	}
	for id := range w.host.procs {
		if w.host.alive(id) {
			t.Errorf("container %s still runs at the end", id)
		}
	}
	return first
}

// crashAt runs a scenario whose n-th write is never made, recovers, with the m-th write of the recovery not made
// either, and recovers again. It returns false when there was no n-th write.
func crashAt(t *testing.T, w *world, n, m int) bool {
	w.master.autoAck = true
	agents := mortal{w: w}
	before := w.master.count()
	agents.open(n)
	// Each step goes on when the agent has done all it does, dead or alive.
	synctest.Wait()
	if w.master.count() > before {
		w.try(&clusterv1.ToAgent_RunTask{RunTask: &clusterv1.RunTask{Framework: checkpointed("F"), Task: command("stays", "sleep")}})
		synctest.Wait()
		w.try(&clusterv1.ToAgent_RunTask{RunTask: &clusterv1.RunTask{Framework: checkpointed("F"), Task: command("fails", "exit 7")}})
		synctest.Wait()
		w.try(&clusterv1.ToAgent_RunTask{RunTask: &clusterv1.RunTask{Framework: checkpointed("F"), Task: command("killed", "stubborn")}})
		synctest.Wait()
		w.try(&clusterv1.ToAgent_KillTask{KillTask: &clusterv1.KillTask{FrameworkId: "F", TaskId: "killed"}})
		synctest.Wait()
	}
	crashed := agents.down()
	seen := make(map[string][]string)
	ran := make(map[string]bool)
	for _, id := range []string{"stays", "fails", "killed"} {
		seen[id] = w.master.history(id)
		ran[id] = slices.Contains(seen[id], "TASK_RUNNING")
	}
	starts := func(id string) int {
		if len(w.master.updates(id)) == 0 {
			return 0
		}
		return w.host.started[w.container(id)]
	}

	// The second agent dies as well.
	agents.open(m)
	synctest.Wait()
	agents.down()
	if starts("stays") > 0 {
		w.host.end(w.container("stays"), 3<<8)
	}

	w.start()
	synctest.Wait()
	named := make(map[string]bool)
	w.agent.mu.Lock()
	for _, f := range w.agent.frameworks {
		for id := range f.tasks {
			named[string(id)] = true
		}
	}
	w.agent.mu.Unlock()
	if named["stays"] && len(w.master.history("stays")) < 3 { // it was launched only now
		w.master.await(t, "stays", mesosv1.TaskState_TASK_RUNNING)
		w.host.end(w.container("stays"), 3<<8)
	}
	w.try(&clusterv1.ToAgent_KillTask{KillTask: &clusterv1.KillTask{FrameworkId: "F", TaskId: "killed"}}) // as masters do
	time.Sleep(time.Minute)
	synctest.Wait()
	for id, last := range map[string]string{"stays": "TASK_FAILED", "fails": "TASK_FAILED", "killed": "TASK_KILLED"} {
		got := w.master.history(id)
		if len(seen[id]) == 0 && (len(got) == 0 || slices.Equal(got, []string{"TASK_LOST"}) || slices.Equal(got, []string{"TASK_GONE"})) {
			continue // it was never accepted, and the master was not told otherwise
		}
		valid := [][]string{
			{"TASK_STARTING", "TASK_RUNNING", last},
			{"TASK_STARTING", last}, // ended, or killed, before it was known to run
			{last},                  // killed before its launch
		}
		// The answer to a kill of what is long over.
		if k := len(got); k > 1 && (got[k-1] == "TASK_GONE" || got[k-1] == "TASK_LOST") {
			got = got[:k-1]
		}
		if !slices.ContainsFunc(valid, func(v []string) bool { return slices.Equal(v, got) }) {
			t.Errorf("history of %q = %v (before the crash %v), want one of %v", id, got, seen[id], valid)
		}
		if ran[id] && starts(id) != 1 {
			t.Errorf("%q was seen running before the crash and was started %d times", id, starts(id))
		}
	}
	for _, u := range w.master.updates("") {
		s := u.GetStatus()
		want := map[string]string{"stays": "Command exited with status 3", "fails": "Command exited with status 7"}[s.GetTaskId().GetValue()]
		if s.GetState() == mesosv1.TaskState_TASK_FAILED && s.GetMessage() != want {
			t.Errorf("%s: message %q, want %q", s.GetTaskId().GetValue(), s.GetMessage(), want)
		}
	}
	if got := w.records(); len(got) != 0 {
		t.Errorf("the store holds %v at the end, want nothing", got)
	}
	return crashed
}

// try sends to the agent, if there is one.
func (w *world) try(x any) {
	w.master.mu.Lock()
	defer w.master.mu.Unlock()
	if w.master.current != nil {
		w.master.current.Send(w.master.message(x)) // lost, as on the wire, when the agent is dead
	}
}

func TestKillUnderWayGoesOnAfterARestart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), command("t", "stubborn"))
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		began := time.Now()
		w.kill("t", time.Minute)
		synctest.Wait()
		w.crash()
		time.Sleep(20 * time.Second)
		w.start()
		w.master.await(t, "t", mesosv1.TaskState_TASK_KILLED)
		if took := time.Since(began); took != time.Minute {
			t.Errorf("killed after %v, want the 1m of its grace, restart included", took)
		}
	})
}

func TestMaxCompletionTimeCountsAcrossARestart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		began := time.Now()
		task := command("t", "sleep")
		task.MaxCompletionTime = &mesosv1.DurationInfo{Nanoseconds: new(int64(time.Minute))}
		w.launch(checkpointed("F"), task)
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		w.crash()
		time.Sleep(20 * time.Second)
		w.start()
		s := w.master.await(t, "t", mesosv1.TaskState_TASK_FAILED).GetStatus()
		if took := time.Since(began); took != time.Minute || s.GetReason() != mesosv1.TaskStatus_REASON_MAX_COMPLETION_TIME_REACHED {
			t.Errorf("after %v: %v, want MAX_COMPLETION_TIME_REACHED after 1m", took, s)
		}
	})
}

func TestFrameworkWithoutCheckpointsLosesItsTasksOnRestart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		f := checkpointed("F", mesosv1.FrameworkInfo_Capability_PARTITION_AWARE)
		f.Checkpoint = nil
		w.launch(f, command("t", "sleep"))
		w.launch(f, forExecutor("c", "e"))
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		x := w.subscribe("e", nil)
		x.await(executorv1.Event_LAUNCH, 1)
		x.report("c", mesosv1.TaskState_TASK_RUNNING)
		w.crash()
		w.start()
		for _, id := range []string{"t", "c"} {
			s := w.master.await(t, id, mesosv1.TaskState_TASK_GONE).GetStatus()
			if s.GetReason() != mesosv1.TaskStatus_REASON_AGENT_RESTARTED {
				t.Errorf("status of %s = %v, want AGENT_RESTARTED", id, s)
			}
		}
		synctest.Wait()
		for id, p := range w.host.procs {
			select {
			case <-p.ended:
			default:
				t.Errorf("container %s still runs", id)
			}
		}
	})
}

func TestCustomExecutorComesBackAfterARestart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launch(checkpointed("F"), forExecutor("a", "e"))
		w.launch(checkpointed("F"), forExecutor("b", "e"))
		synctest.Wait()
		x := w.subscribe("e", nil)
		x.await(executorv1.Event_LAUNCH, 2)
		s := x.report("a", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		w.crash()
		w.start()
		x = w.subscribe("e", &executorv1.Call_Subscribe{
			UnacknowledgedTasks:   []*mesosv1.TaskInfo{forExecutor("b", "e")},
			UnacknowledgedUpdates: []*executorv1.Call_Update{{Status: s.CloneVT()}},
		})
		x.await(executorv1.Event_ACKNOWLEDGED, 1)
		synctest.Wait()
		for _, typ := range x.types() {
			if typ == executorv1.Event_LAUNCH {
				t.Error("the executor got a task again that it has")
			}
		}
		w.master.autoAck = true
		x.report("a", mesosv1.TaskState_TASK_FINISHED)
		x.report("b", mesosv1.TaskState_TASK_FINISHED)
		for _, u := range w.master.updates("a")[:1] {
			w.master.ack(t, u)
		}
		w.master.await(t, "a", mesosv1.TaskState_TASK_FINISHED)
		w.master.await(t, "b", mesosv1.TaskState_TASK_FINISHED)
		if len(w.host.procs) != 1 {
			t.Errorf("%d executors were started, want one", len(w.host.procs))
		}
		equal(t, "history of a", w.master.history("a"), []string{"TASK_RUNNING", "TASK_FINISHED"})
	})
}

func TestExecutorThatDoesNotComeBackIsDestroyed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), forExecutor("a", "e"))
		synctest.Wait()
		x := w.subscribe("e", nil)
		x.await(executorv1.Event_LAUNCH, 1)
		x.report("a", mesosv1.TaskState_TASK_RUNNING)
		w.crash()
		began := time.Now()
		w.start()
		s := w.master.await(t, "a", mesosv1.TaskState_TASK_FAILED).GetStatus()
		if took := time.Since(began); took != 2*time.Second || s.GetReason() != mesosv1.TaskStatus_REASON_EXECUTOR_REREGISTRATION_TIMEOUT {
			t.Errorf("after %v: %v, want EXECUTOR_REREGISTRATION_TIMEOUT after 2s", took, s)
		}
	})
}

func TestQueuedTasksAreLaunchedByTheNextAgent(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.config.LaunchParallelism = 1
		w.start()
		for i := range 30 {
			w.launch(checkpointed("F"), command(fmt.Sprint("t", i), "sleep"))
		}
		w.launch(checkpointed("F"), forExecutor("c", "e"))
		w.master.await(t, "t3", mesosv1.TaskState_TASK_RUNNING)
		w.crash()
		w.start()
		hello := w.master.hello()
		for _, x := range hello.GetTasks() {
			if x.GetTaskId().GetValue() == "c" {
				synctest.Wait()
				w.subscribe("e", nil).await(executorv1.Event_LAUNCH, 1)
				continue
			}
			w.master.await(t, x.GetTaskId().GetValue(), mesosv1.TaskState_TASK_RUNNING)
		}
		for id, n := range w.host.started {
			if n > 1 && w.host.procs[id] == nil {
				t.Errorf("container %s was started %d times", id, n)
			}
		}
	})
}

func TestAgentRefusesToComeBackAsSomebodyElse(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.stop()
		w.config.Hostname = "elsewhere"
		store, err := OpenStore(w.dir + "/checkpoints.db")
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		_, err = New(w.config, Deps{Containerizer: &containers{w.host, store}, Store: store, Logger: w.logger()})
		if err == nil || !strings.Contains(err.Error(), `hostname: got "elsewhere", this agent is "here"`) {
			t.Errorf("New = %v, want the field, both values", err)
		}
	})
}

func TestRebootedAgentMayChangeAndBecomesANewOne(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launch(checkpointed("F"), command("t", "sleep"))
		w.master.await(t, "t", mesosv1.TaskState_TASK_STARTING)
		synctest.Wait()
		if err := w.store.put(t.Context(), []op{{bucketAgent, keyBoot, []byte("an earlier boot")}}); err != nil {
			t.Fatal(err)
		}
		w.crash()
		w.config.Resources = "cpus:2;mem:1024;disk:10"
		w.start()
		if h := w.master.hello(); h.GetAgent().GetId() != nil || len(h.GetTasks()) != 0 {
			t.Errorf("Hello = %v, want no id and no tasks", h)
		}
		for _, p := range w.host.procs {
			<-p.ended // as an orphan
		}
	})
}
