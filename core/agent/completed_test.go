package agent

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
)

// state is what GET_STATE shows.
func (w *world) state() *agentv1.Response_GetState {
	w.t.Helper()
	r, err := w.agent.OperatorCall(w.t.Context(), "", &agentv1.Call{Type: agentv1.Call_GET_STATE.Enum()})
	if err != nil {
		w.t.Fatalf("GET_STATE: %v", err)
	}
	return r.GetGetState()
}

func taskNames(tasks []*mesosv1.Task) []string {
	var ids []string
	for _, x := range tasks {
		ids = append(ids, x.GetTaskId().GetValue())
	}
	return ids
}

// count returns how many records a bucket holds.
func (w *world) count(bucket []byte) int {
	w.records() // writes what is queued
	n := 0
	w.store.each(bucket, func(_, _ []byte) error {
		n++
		return nil
	})
	return n
}

func TestWhatIsOverIsShownAfterARestart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), command("stays", "sleep"))
		for _, id := range []string{"a", "b"} {
			w.launch(checkpointed("F"), command(id, "exit 3"))
			w.master.await(t, id, mesosv1.TaskState_TASK_FAILED)
			synctest.Wait()
		}
		w.launchGroup(checkpointed("G"), builtin("e"), command("c", "true"), command("d", "true"))
		w.master.await(t, "c", mesosv1.TaskState_TASK_FINISHED)
		w.master.await(t, "d", mesosv1.TaskState_TASK_FINISHED)
		time.Sleep(time.Minute)
		synctest.Wait()
		before := w.state()
		if got := len(before.GetGetFrameworks().GetCompletedFrameworks()); got != 1 {
			t.Fatalf("%d completed frameworks, want G", got)
		}
		for range 2 { // what was read is written as well as what was made
			w.crash()
			w.start()
		}
		after := w.state()
		equal(t, "completed tasks", taskNames(after.GetGetTasks().GetCompletedTasks()), taskNames(before.GetGetTasks().GetCompletedTasks()))
		for i, x := range after.GetGetTasks().GetCompletedTasks() {
			if !x.EqualVT(before.GetGetTasks().GetCompletedTasks()[i]) {
				t.Errorf("completed task = %v, before the restart %v", x, before.GetGetTasks().GetCompletedTasks()[i])
			}
		}
		if !after.GetGetExecutors().EqualVT(before.GetGetExecutors()) || !after.GetGetFrameworks().EqualVT(before.GetGetFrameworks()) {
			t.Errorf("state = %v, before the restart %v", after, before)
		}
		equal(t, "completed tasks in Hello", taskNames(w.master.hello().GetCompletedTasks()), []string{"a", "b"})

		// A framework that comes back has its past.
		w.launch(checkpointed("G"), command("x", "sleep"))
		w.master.await(t, "x", mesosv1.TaskState_TASK_RUNNING)
		if s := w.state(); len(s.GetGetFrameworks().GetCompletedFrameworks()) != 0 || len(s.GetGetTasks().GetCompletedTasks()) != 4 {
			t.Errorf("state = %v, want G among the frameworks and its tasks with it", s)
		}
		if n := w.count(bucketPastFrameworks); n != 0 {
			t.Errorf("%d past frameworks on disk, want none", n)
		}
	})
}

func TestThePastIsBounded(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.open(nil)
		a := w.agent
		const extra = 7
		for n := range maxCompletedFrameworks + extra {
			var c change
			f := newFramework(FrameworkID(fmt.Sprintf("f%02d", n)), checkpointed(fmt.Sprintf("f%02d", n)))
			a.frameworks[f.id] = f
			executors, tasks := 1, 1
			if n == maxCompletedFrameworks {
				executors = maxCompletedExecutors + extra
			}
			if n == maxCompletedFrameworks+1 {
				tasks = maxCompletedTasks + extra
			}
			for i := range executors {
				e := newExecutor(f, "e", builtin("e"))
				e.container = ContainerID(fmt.Sprint("c", i))
				for k := range tasks {
					x := &task{framework: f, executor: e, id: TaskID(fmt.Sprint("t", k)), info: command(fmt.Sprint("t", k), "true")}
					a.remember(&c, x)
				}
			}
			a.forgetFramework(&c, f)
			a.do(&c)
		}
		frameworks, executors, tasks := w.count(bucketPastFrameworks), w.count(bucketPastExecutors), w.count(bucketPastTasks)
		if frameworks != maxCompletedFrameworks || executors != maxCompletedFrameworks-1+maxCompletedExecutors ||
			tasks != maxCompletedFrameworks-2+maxCompletedExecutors+maxCompletedTasks {
			t.Errorf("on disk are %d frameworks, %d executors, %d tasks: more or less than the bounds", frameworks, executors, tasks)
		}
		was := a.completed
		w.store.Close()
		w.open(nil)
		var c change
		if err := w.agent.loadPast(&c); err != nil || len(c.ops) != 0 {
			t.Fatalf("loadPast = %v, and %d records do not fit", err, len(c.ops))
		}
		if len(w.agent.completed) != len(was) {
			t.Fatalf("%d frameworks were read, want %d", len(w.agent.completed), len(was))
		}
		for i, x := range w.agent.completed {
			if x.info.GetId().GetValue() != was[i].info.GetId().GetValue() || len(x.executors) != len(was[i].executors) {
				t.Fatalf("framework %d = %v with %d executors, want %v with %d", i, x.info.GetId(), len(x.executors), was[i].info.GetId(), len(was[i].executors))
			}
			for k, e := range x.executors {
				if e.container != was[i].executors[k].container || !slices.Equal(taskNames(e.tasks), taskNames(was[i].executors[k].tasks)) {
					t.Errorf("executor %d of framework %d differs after it was read", k, i)
				}
			}
		}
		w.store.Close()
		w.agent = nil
	})
}

func TestThePastIsAsLongAsConfigured(t *testing.T) {
	for most, want := range map[int][]string{-1: nil, 2: {"b", "c"}} {
		in(t, func(t *testing.T, w *world) {
			w.config.MaxCompletedExecutors = most
			w.master.autoAck = true
			w.start()
			w.launch(checkpointed("F"), command("stays", "sleep"))
			for _, id := range []string{"a", "b", "c"} {
				w.launch(checkpointed("F"), command(id, "true"))
				w.master.await(t, id, mesosv1.TaskState_TASK_FINISHED)
				synctest.Wait()
			}
			for range 2 {
				equal(t, "completed tasks", taskNames(w.state().GetGetTasks().GetCompletedTasks()), want)
				w.records()
				w.crash()
				w.start()
			}
		})
	}
}

func TestDamagedPastIsLeftOut(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), command("a", "true"))
		w.master.await(t, "a", mesosv1.TaskState_TASK_FINISHED)
		synctest.Wait()
		junk := []byte{0xff, 0xff, 0xff}
		err := w.store.put(t.Context(), []op{
			{bucketPastFrameworks, []byte("G"), junk},
			{bucketPastExecutors, []byte("F"), junk},
			{bucketPastExecutors, pastKey("F", "c"), junk},
			{bucketPastExecutors, pastKey("nobody", "c"), appendUint(nil, 3, 1)},
			{bucketPastTasks, []byte("short"), junk},
			{bucketPastTasks, pastTaskKey("F", "c", 0), junk},
			{bucketPastTasks, pastTaskKey("F", "d", 0), []byte{}},
			{bucketPastTasks, pastTaskKey("F", "d", 2), []byte{}},
		})
		if err != nil {
			t.Fatal(err)
		}
		w.crash()
		w.start()
		equal(t, "completed tasks", taskNames(w.state().GetGetTasks().GetCompletedTasks()), []string{"a"})
		if f, e, x := w.count(bucketPastFrameworks), w.count(bucketPastExecutors), w.count(bucketPastTasks); f != 1 || e != 1 || x != 1 {
			t.Errorf("on disk are %d, %d and %d records, want one of each: the rest fits nothing", f, e, x)
		}
	})
}
