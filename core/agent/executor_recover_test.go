package agent

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// dutiful is a custom executor that does what Mesos asks of one: it keeps what was not acknowledged, and says it again
// when it subscribes anew. One lives per container.
type dutiful struct {
	stream *custom
	read   int // events taken
	tasks  map[string]*mesosv1.TaskInfo
	next   map[string]mesosv1.TaskState // to report; 0 (TASK_STARTING) when done
	open   map[string]*mesosv1.TaskStatus
	over   int
}

// act lets it go on: subscribe if it must, take events, report one state per task.
func (x *dutiful) act(w *world) {
	if x.stream == nil {
		s := &executorv1.Call_Subscribe{}
		for _, u := range x.open {
			s.UnacknowledgedUpdates = append(s.UnacknowledgedUpdates, &executorv1.Call_Update{Status: u.CloneVT()})
		}
		for id, t := range x.tasks {
			if x.next[id] == mesosv1.TaskState_TASK_RUNNING {
				s.UnacknowledgedTasks = append(s.UnacknowledgedTasks, t)
			}
		}
		c := &custom{w: w, id: "e", changed: make(chan struct{}), done: make(chan struct{})}
		call := w.call("e", executorv1.Call_SUBSCRIBE)
		call.Subscribe = s
		if err := w.agent.ExecutorSubscribe(context.Background(), call, c); err != nil {
			return // the agent is not ready; later
		}
		x.stream, x.read = c, 0
		synctest.Wait()
	}
	x.stream.mu.Lock()
	events := x.stream.events[x.read:]
	x.read = len(x.stream.events)
	x.stream.mu.Unlock()
	take := func(t *mesosv1.TaskInfo) {
		id := t.GetTaskId().GetValue()
		if x.tasks[id] != nil {
			w.t.Errorf("the executor was given task %s twice", id)
		}
		x.tasks[id], x.next[id] = t, mesosv1.TaskState_TASK_RUNNING
	}
	for _, e := range events {
		switch e.GetType() {
		case executorv1.Event_LAUNCH:
			take(e.GetLaunch().GetTask())
		case executorv1.Event_LAUNCH_GROUP:
			if n := len(e.GetLaunchGroup().GetTaskGroup().GetTasks()); n != 2 {
				w.t.Errorf("the executor was given %d tasks of a group of two", n)
			}
			for _, t := range e.GetLaunchGroup().GetTaskGroup().GetTasks() {
				take(t)
			}
		case executorv1.Event_ACKNOWLEDGED:
			id := e.GetAcknowledged().GetTaskId().GetValue()
			if u := x.open[id]; u != nil && string(u.GetUuid()) == string(e.GetAcknowledged().GetUuid()) {
				delete(x.open, id)
				if u.GetState() == mesosv1.TaskState_TASK_FINISHED {
					x.over++
				}
			}
		}
	}
	for id, state := range x.next {
		if state == 0 || x.open[id] != nil {
			continue
		}
		u := status(id, state)
		if err := x.stream.update(u.CloneVT()); err != nil {
			continue // the stream is cut; the next one brings it
		}
		x.open[id] = u
		x.next[id] = map[mesosv1.TaskState]mesosv1.TaskState{mesosv1.TaskState_TASK_RUNNING: mesosv1.TaskState_TASK_FINISHED}[state]
	}
}

func TestCrashAtEveryWriteLosesNothingOfACustomExecutor(t *testing.T) {
	for n := 1; ; n++ {
		crashed := false
		t.Run(fmt.Sprint("write ", n), func(t *testing.T) {
			in(t, func(t *testing.T, w *world) { crashed = crashExecutorAt(t, w, n) })
		})
		if !crashed || t.Failed() {
			if n < 10 {
				t.Errorf("the scenario made only %d writes, want more to crash at", n)
			}
			return
		}
	}
}

func crashExecutorAt(t *testing.T, w *world, n int) (crashed bool) {
	w.master.autoAck = true
	var armed atomic.Bool
	k := 0
	w.open(func(int, []op) error {
		if !armed.Load() {
			return nil
		}
		if k++; k == n {
			return errCrash
		}
		return nil
	})
	armed.Store(true)
	w.run()
	synctest.Wait()
	executors := make(map[string]*dutiful) // by container
	sent := false
	for range 60 {
		synctest.Wait()
		select {
		case err := <-w.done:
			if crashed || !errors.Is(err, errCrash) {
				t.Fatalf("Run = %v", err)
			}
			crashed = true
			w.close()
			for _, x := range executors {
				x.stream = nil
			}
			w.start()
			continue
		default:
		}
		if !sent && w.master.count() > 0 {
			sent = true
			for _, id := range []string{"a", "b"} {
				w.try(&clusterv1.ToAgent_RunTask{RunTask: &clusterv1.RunTask{Framework: checkpointed("F"), Task: forExecutor(id, "e")}})
				synctest.Wait()
			}
			w.try(groupOf(checkpointed("F"), forExecutor("", "e").GetExecutor(), command("c", ""), command("d", "")))
			synctest.Wait()
		}
		w.host.mu.Lock()
		var alive []string
		for id, p := range w.host.procs {
			select {
			case <-p.ended:
			default:
				alive = append(alive, id)
			}
		}
		w.host.mu.Unlock()
		if len(alive) > 1 {
			t.Fatalf("%d executors run at once", len(alive))
		}
		for _, id := range alive {
			x := executors[id]
			if x == nil {
				x = &dutiful{tasks: make(map[string]*mesosv1.TaskInfo), next: make(map[string]mesosv1.TaskState), open: make(map[string]*mesosv1.TaskStatus)}
				executors[id] = x
			}
			if x.act(w); len(x.tasks) > 0 && x.over == len(x.tasks) {
				w.host.end(id, 0)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(5 * time.Minute) // what never came to an executor is given up
	synctest.Wait()
	for _, id := range []string{"a", "b", "c", "d"} {
		if got := w.master.history(id); len(got) > 0 {
			equal(t, "history of "+id, got, []string{"TASK_RUNNING", "TASK_FINISHED"})
		}
	}
	if !crashed && len(w.master.history("d")) == 0 {
		t.Error("without a crash nothing was heard of d")
	}
	if c, d := len(w.master.history("c")), len(w.master.history("d")); (c == 0) != (d == 0) {
		t.Errorf("of the tasks of a group %d and %d updates came, want of both or of none", c, d)
	}
	if got := w.records(); len(got) != 0 {
		t.Errorf("the store holds %v at the end, want nothing", got)
	}
	return crashed
}
