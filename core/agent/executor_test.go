package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// custom is a custom executor's side of its stream.
type custom struct {
	w  *world
	id string

	mu      sync.Mutex
	events  []*executorv1.Event
	changed chan struct{}
	done    chan struct{}
}

func (x *custom) Send(e *executorv1.Event) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	select {
	case <-x.done:
		return false
	default:
	}
	x.events = append(x.events, e)
	close(x.changed)
	x.changed = make(chan struct{})
	return true
}

func (x *custom) Close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	select {
	case <-x.done:
	default:
		close(x.done)
	}
}

func (x *custom) Done() <-chan struct{} { return x.done }

func (w *world) call(executor string, typ executorv1.Call_Type) *executorv1.Call {
	return &executorv1.Call{
		FrameworkId: &mesosv1.FrameworkID{Value: new("F")},
		ExecutorId:  &mesosv1.ExecutorID{Value: &executor},
		Type:        typ.Enum(),
	}
}

func (w *world) subscribe(id string, s *executorv1.Call_Subscribe) *custom {
	w.t.Helper()
	x := &custom{w: w, id: id, changed: make(chan struct{}), done: make(chan struct{})}
	call := w.call(id, executorv1.Call_SUBSCRIBE)
	call.Subscribe = s
	if err := w.agent.ExecutorSubscribe(context.Background(), call, x); err != nil {
		w.t.Fatalf("ExecutorSubscribe: %v", err)
	}
	return x
}

// await returns the n-th event of a type, from 1 on.
func (x *custom) await(typ executorv1.Event_Type, n int) *executorv1.Event {
	x.w.t.Helper()
	limit := time.NewTimer(time.Hour)
	defer limit.Stop()
	for {
		x.mu.Lock()
		changed, k := x.changed, 0
		for _, e := range x.events {
			if e.GetType() == typ {
				if k++; k == n {
					x.mu.Unlock()
					return e
				}
			}
		}
		x.mu.Unlock()
		select {
		case <-changed:
		case <-limit.C:
			x.w.t.Fatalf("no %v number %d; executor %s got %v", typ, n, x.id, x.types())
		}
	}
}

func (x *custom) types() []executorv1.Event_Type {
	x.mu.Lock()
	defer x.mu.Unlock()
	var ts []executorv1.Event_Type
	for _, e := range x.events {
		ts = append(ts, e.GetType())
	}
	return ts
}

func status(task string, state mesosv1.TaskState) *mesosv1.TaskStatus {
	id := uuid.New()
	return &mesosv1.TaskStatus{TaskId: &mesosv1.TaskID{Value: &task}, State: state.Enum(), Uuid: id[:]}
}

func (x *custom) update(s *mesosv1.TaskStatus) error {
	call := x.w.call(x.id, executorv1.Call_UPDATE)
	call.Update = &executorv1.Call_Update{Status: s}
	return x.w.agent.ExecutorCall(context.Background(), call)
}

// report sends an update and waits until it is acknowledged.
func (x *custom) report(task string, state mesosv1.TaskState) *mesosv1.TaskStatus {
	x.w.t.Helper()
	s := status(task, state)
	id := bytes.Clone(s.Uuid)
	n := len(x.types())
	if err := x.update(s); err != nil {
		x.w.t.Fatalf("UPDATE %v of %s: %v", state, task, err)
	}
	synctest.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.events[n:] {
		if e.GetType() == executorv1.Event_ACKNOWLEDGED && bytes.Equal(e.GetAcknowledged().GetUuid(), id) {
			return s
		}
	}
	x.w.t.Fatalf("UPDATE %v of %s was not acknowledged", state, task)
	return nil
}

func forExecutor(task, executor string) *mesosv1.TaskInfo {
	t := command(task, "")
	t.Command = nil
	t.Executor = &mesosv1.ExecutorInfo{
		ExecutorId: &mesosv1.ExecutorID{Value: &executor},
		Command:    &mesosv1.CommandInfo{Value: new("sleep")},
		Resources:  resources.MustParse("cpus:0.5;mem:16").Resources(),
	}
	return t
}

func httpStatus(err error) int {
	var s interface{ HTTPStatus() int }
	if errors.As(err, &s) {
		return s.HTTPStatus()
	}
	return 0
}

func (w *world) executorContainer(id string) string {
	w.agent.mu.Lock()
	defer w.agent.mu.Unlock()
	return string(w.agent.frameworks["F"].executors[ExecutorID(id)].container)
}

func TestCustomExecutorRunsSeveralTasks(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), forExecutor("a", "e"))
		w.launch(checkpointed("F"), forExecutor("b", "e"))
		synctest.Wait()
		x := w.subscribe("e", &executorv1.Call_Subscribe{})
		s := x.await(executorv1.Event_SUBSCRIBED, 1).GetSubscribed()
		if s.GetExecutorInfo().GetExecutorId().GetValue() != "e" || s.GetFrameworkInfo().GetId().GetValue() != "F" ||
			s.GetAgentInfo().GetId().GetValue() != "M-S0" || s.GetContainerId().GetValue() != w.executorContainer("e") {
			t.Errorf("SUBSCRIBED = %v", s)
		}
		for i, want := range []string{"a", "b"} {
			if got := x.await(executorv1.Event_LAUNCH, i+1).GetLaunch().GetTask().GetTaskId().GetValue(); got != want {
				t.Errorf("LAUNCH %d is of %q, want %q", i, got, want)
			}
		}
		equal(t, "cpus the container got", w.host.updates, []float64{2.5})
		x.report("a", mesosv1.TaskState_TASK_RUNNING)
		u := w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		if st := u.GetStatus(); u.GetExecutorId() != "e" || st.GetExecutorId().GetValue() != "e" || st.GetAgentId().GetValue() != "M-S0" ||
			st.GetTimestamp() == 0 || st.GetSource() != mesosv1.TaskStatus_SOURCE_EXECUTOR || st.GetContainerStatus().GetContainerId() == nil {
			t.Errorf("update = %v, want what the executor left out filled in", u)
		}
		x.report("a", mesosv1.TaskState_TASK_FINISHED)
		x.report("b", mesosv1.TaskState_TASK_FINISHED)
		synctest.Wait()
		w.launch(checkpointed("F"), forExecutor("c", "e"))
		if got := x.await(executorv1.Event_LAUNCH, 3).GetLaunch().GetTask().GetTaskId().GetValue(); got != "c" {
			t.Errorf("LAUNCH 3 is of %q, want c", got)
		}
		if last := w.host.updates[len(w.host.updates)-1]; last != 1.5 {
			t.Errorf("cpus of the container with one task = %v, want 1.5", last)
		}
		if len(w.host.procs) != 1 {
			t.Errorf("%d containers, want one executor for all", len(w.host.procs))
		}
		// It ends: its task fails, and the master hears of both.
		w.host.end(w.executorContainer("e"), 1<<8)
		f := w.master.await(t, "c", mesosv1.TaskState_TASK_FAILED).GetStatus()
		if f.GetReason() != mesosv1.TaskStatus_REASON_EXECUTOR_TERMINATED || f.GetMessage() != "Executor exited with status 1" {
			t.Errorf("status = %v, want EXECUTOR_TERMINATED", f)
		}
		w.master.wait(t, "ExecutorExited", func() bool {
			for _, m := range w.master.received {
				if e := m.GetExecutorExited(); e != nil {
					return e.GetExecutorId() == "e" && e.GetFrameworkId() == "F" && e.GetStatus() == 256
				}
			}
			return false
		})
		synctest.Wait()
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v after all is over, want nothing", got)
		}
	})
}

func TestExecutorCallsAreRefusedWithTheCodesOfMesos(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launch(checkpointed("F"), forExecutor("a", "e"))
		synctest.Wait()
		update := w.call("e", executorv1.Call_UPDATE)
		update.Update = &executorv1.Call_Update{Status: status("a", mesosv1.TaskState_TASK_RUNNING)}
		stranger := w.call("x", executorv1.Call_MESSAGE)
		other := w.call("e", executorv1.Call_MESSAGE)
		other.FrameworkId.Value = new("G")
		for _, test := range []struct {
			name string
			call *executorv1.Call
			want int
		}{
			{"not subscribed", update, 403},
			{"unknown executor", stranger, 400},
			{"unknown framework", other, 400},
		} {
			if got := httpStatus(w.agent.ExecutorCall(context.Background(), test.call)); got != test.want {
				t.Errorf("%s: status %d, want %d", test.name, got, test.want)
			}
		}
		if err := w.agent.ExecutorCall(context.Background(), w.call("x", executorv1.Call_HEARTBEAT)); err != nil {
			t.Errorf("HEARTBEAT of nobody: %v, want nil", err)
		}
		if err := w.agent.ExecutorSubscribe(context.Background(), stranger, &custom{}); httpStatus(err) != 400 {
			t.Errorf("SUBSCRIBE of an unknown executor: %v, want 400", err)
		}
		x := w.subscribe("e", nil)
		if err := x.update(status("a", mesosv1.TaskState_TASK_STAGING)); httpStatus(err) != 400 {
			t.Errorf("UPDATE with TASK_STAGING: %v, want 400", err)
		}
		bare := status("a", mesosv1.TaskState_TASK_RUNNING)
		bare.Uuid = nil
		if err := x.update(bare); httpStatus(err) != 400 {
			t.Errorf("UPDATE without uuid: %v, want 400", err)
		}
		if err := w.agent.ExecutorCall(context.Background(), w.call("e", executorv1.Call_HEARTBEAT)); err != nil {
			t.Errorf("HEARTBEAT: %v, want nil", err)
		}
		for range maxPendingUpdates {
			if err := x.update(status("a", mesosv1.TaskState_TASK_RUNNING)); err != nil {
				t.Fatal(err)
			}
		}
		if err := x.update(status("a", mesosv1.TaskState_TASK_RUNNING)); httpStatus(err) != 503 {
			t.Errorf("one update too many: %v, want 503", err)
		}
	})
}

func TestRepeatedAndLateUpdatesAreAcknowledgedAndDropped(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), forExecutor("a", "e"))
		synctest.Wait()
		x := w.subscribe("e", nil)
		x.await(executorv1.Event_LAUNCH, 1)
		s := x.report("a", mesosv1.TaskState_TASK_RUNNING)
		n := len(x.types())
		if err := x.update(s.CloneVT()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(x.types()) != n+1 {
			t.Error("a repeated update was not acknowledged again")
		}
		x.report("a", mesosv1.TaskState_TASK_FINISHED)
		x.report("a", mesosv1.TaskState_TASK_FAILED)
		x.report("nobody", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		equal(t, "states", w.master.states(""), []string{"TASK_RUNNING", "TASK_FINISHED"})
	})
}

func TestMessagesPassBetweenSchedulerAndExecutor(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launch(checkpointed("F"), forExecutor("a", "e"))
		synctest.Wait()
		x := w.subscribe("e", nil)
		w.master.send(t, &clusterv1.ToAgent_FrameworkMessage{FrameworkMessage: &clusterv1.FrameworkMessage{
			FrameworkId: "F", ExecutorId: "e", Data: []byte("down")}})
		if got := x.await(executorv1.Event_MESSAGE, 1).GetMessage().GetData(); string(got) != "down" {
			t.Errorf("the executor got %q", got)
		}
		call := w.call("e", executorv1.Call_MESSAGE)
		call.Message = &executorv1.Call_Message{Data: []byte("up")}
		if err := w.agent.ExecutorCall(context.Background(), call); err != nil {
			t.Fatal(err)
		}
		w.master.wait(t, "message", func() bool {
			for _, m := range w.master.received {
				if string(m.GetFrameworkMessage().GetData()) == "up" {
					return true
				}
			}
			return false
		})
	})
}

func TestExecutorThatDoesNotSubscribeIsDestroyed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		began := time.Now()
		w.launch(checkpointed("F"), forExecutor("a", "e"))
		s := w.master.await(t, "a", mesosv1.TaskState_TASK_FAILED).GetStatus()
		if took := time.Since(began); took != time.Minute || s.GetReason() != mesosv1.TaskStatus_REASON_EXECUTOR_REGISTRATION_TIMEOUT {
			t.Errorf("after %v: %v, want EXECUTOR_REGISTRATION_TIMEOUT after 1m", took, s)
		}
	})
}

func TestKillReachesTheExecutorOrEndsWhatItDoesNotHave(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), forExecutor("a", "e"))
		w.launch(checkpointed("F"), forExecutor("b", "e"))
		synctest.Wait()
		w.kill("a") // still with the agent
		s := w.master.await(t, "a", mesosv1.TaskState_TASK_KILLED).GetStatus()
		if s.GetReason() != mesosv1.TaskStatus_REASON_TASK_KILLED_DURING_LAUNCH {
			t.Errorf("status = %v, want TASK_KILLED_DURING_LAUNCH", s)
		}
		x := w.subscribe("e", nil)
		if got := x.await(executorv1.Event_LAUNCH, 1).GetLaunch().GetTask().GetTaskId().GetValue(); got != "b" {
			t.Errorf("the executor got task %q, want only b", got)
		}
		w.kill("b", 7*time.Second)
		k := x.await(executorv1.Event_KILL, 1).GetKill()
		if k.GetTaskId().GetValue() != "b" || k.GetKillPolicy().GetGracePeriod().GetNanoseconds() != int64(7*time.Second) {
			t.Errorf("KILL = %v, want b with its policy", k)
		}
		x.report("b", mesosv1.TaskState_TASK_KILLED)
	})
}

func TestKillOfTheOnlyTaskEndsAnExecutorThatNeverSubscribed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), forExecutor("a", "e"))
		synctest.Wait()
		w.kill("a")
		w.master.await(t, "a", mesosv1.TaskState_TASK_KILLED)
		synctest.Wait()
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v, want nothing", got)
		}
	})
}

func TestShutdownAsksFirstAndThenDestroys(t *testing.T) {
	for _, obeys := range []bool{true, false} {
		t.Run(fmt.Sprint("obeys ", obeys), func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.master.autoAck = true
				w.start()
				w.launch(checkpointed("F"), forExecutor("a", "e"))
				synctest.Wait()
				x := w.subscribe("e", nil)
				x.await(executorv1.Event_LAUNCH, 1)
				began := time.Now()
				w.master.send(t, &clusterv1.ToAgent_ShutdownExecutor{ShutdownExecutor: &clusterv1.ShutdownExecutor{FrameworkId: "F", ExecutorId: "e"}})
				x.await(executorv1.Event_SHUTDOWN, 1)
				want := 5 * time.Second
				state := mesosv1.TaskState_TASK_FAILED
				if obeys {
					want = 0
					state = mesosv1.TaskState_TASK_KILLED
					x.report("a", state)
					w.host.end(w.executorContainer("e"), 0)
				}
				w.master.await(t, "a", state)
				<-x.done
				if took := time.Since(began); took != want {
					t.Errorf("the executor ended after %v, want %v", took, want)
				}
			})
		})
	}
}

func TestSecondSubscriptionTakesOverAndBringsWhatWasLost(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launch(checkpointed("F"), forExecutor("a", "e"))
		w.launch(checkpointed("F"), forExecutor("b", "e"))
		synctest.Wait()
		first := w.subscribe("e", nil)
		task := first.await(executorv1.Event_LAUNCH, 1).GetLaunch().GetTask()
		first.await(executorv1.Event_LAUNCH, 2)
		s := status("a", mesosv1.TaskState_TASK_RUNNING) // never arrived
		second := w.subscribe("e", &executorv1.Call_Subscribe{
			UnacknowledgedTasks:   []*mesosv1.TaskInfo{task},
			UnacknowledgedUpdates: []*executorv1.Call_Update{{Status: s}},
		})
		<-first.done
		second.await(executorv1.Event_ACKNOWLEDGED, 1)
		// a is known to it; b never reached it, as it does not name it.
		if got := second.await(executorv1.Event_LAUNCH, 1).GetLaunch().GetTask().GetTaskId().GetValue(); got != "b" {
			t.Errorf("LAUNCH after the second subscription is of %q, want b", got)
		}
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
	})
}

func TestContainerThatCannotGrowLosesItsTasks(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.host.failUpdate = errors.New("isolator(cgroups): memory.limit_in_bytes: device or resource busy")
		w.start()
		w.launch(checkpointed("F", mesosv1.FrameworkInfo_Capability_PARTITION_AWARE), forExecutor("a", "e"))
		synctest.Wait()
		w.subscribe("e", nil)
		s := w.master.await(t, "a", mesosv1.TaskState_TASK_GONE).GetStatus()
		if s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_UPDATE_FAILED {
			t.Errorf("status = %v, want CONTAINER_UPDATE_FAILED", s)
		}
	})
}

func TestExecutorIsGivenItsToken(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.deps.ExecutorToken = func(framework, executor, container string) string {
			return framework + "/" + executor + "/" + container
		}
		seen := w.watched(nil)
		w.start()
		w.launch(checkpointed("F"), forExecutor("a", "e"))
		w.launch(checkpointed("F"), command("t", "sleep"))
		w.master.await(t, "t", mesosv1.TaskState_TASK_STARTING)
		synctest.Wait()
		for id, c := range seen() {
			got, want := c.GetEnvironment()["MESOS_EXECUTOR_AUTHENTICATION_TOKEN"], ""
			if c.GetExecutorId() == "e" {
				want = "F/e/" + id
			}
			if got != want {
				t.Errorf("token of executor %s = %q, want %q", c.GetExecutorId(), got, want)
			}
		}
	})
}
