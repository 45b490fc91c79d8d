package agent

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

func TestUpdateIsRepeatedWithDoublingUntilAcknowledged(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		began := time.Now()
		w.launch(checkpointed("F"), command("t", "sleep"))
		u := w.master.await(t, "t", mesosv1.TaskState_TASK_STARTING)
		var at []time.Duration
		for len(at) < 10 {
			n := len(w.master.updates("t"))
			w.master.wait(t, "a repetition", func() bool { return len(w.master.updatesLocked("t")) > n })
			at = append(at, time.Since(began))
		}
		want := []time.Duration{10, 30, 70, 150, 310, 630, 1230, 1830, 2430, 3030}
		for i := range want {
			want[i] *= time.Second
		}
		equal(t, "times of repetition", at, want)
		for _, r := range w.master.updates("t") {
			if !bytes.Equal(r.GetStatus().GetUuid(), u.GetStatus().GetUuid()) {
				t.Errorf("a repetition is %v, want the same uuid", r)
			}
		}
		w.master.ack(t, u)
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		// The next one starts over with the first interval.
		n := len(w.master.updates("t"))
		began = time.Now()
		w.master.wait(t, "a repetition", func() bool { return len(w.master.updatesLocked("t")) > n })
		if took := time.Since(began); took != updateRetryMin {
			t.Errorf("the next update was repeated after %v, want %v", took, updateRetryMin)
		}
	})
}

func TestAcknowledgementThatDoesNotFitChangesNothing(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launch(checkpointed("F"), command("t", "sleep"))
		u := w.master.await(t, "t", mesosv1.TaskState_TASK_STARTING)
		for _, x := range []*clusterv1.Acknowledge{
			{FrameworkId: "F", TaskId: "t", Uuid: bytes.Repeat([]byte{7}, 16)},
			{FrameworkId: "F", TaskId: "other", Uuid: u.GetStatus().GetUuid()},
			{FrameworkId: "G", TaskId: "t", Uuid: u.GetStatus().GetUuid()},
			{FrameworkId: "F", TaskId: "t"},
		} {
			w.master.send(t, &clusterv1.ToAgent_Acknowledge{Acknowledge: x})
		}
		synctest.Wait()
		equal(t, "history", w.master.history("t"), []string{"TASK_STARTING"})
		w.master.ack(t, u)
		w.master.ack(t, u) // twice
		synctest.Wait()
		equal(t, "history", w.master.history("t"), []string{"TASK_STARTING", "TASK_RUNNING"})
	})
}

func TestNewConnectionRepeatsWhatWaits(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launch(checkpointed("F"), command("t", "sleep"))
		w.master.await(t, "t", mesosv1.TaskState_TASK_STARTING)
		synctest.Wait()
		n := w.master.count()
		w.master.dropStream()
		w.master.wait(t, "another registration", func() bool { return w.master.streams > n })
		synctest.Wait()
		equal(t, "states", w.master.states("t"), []string{"TASK_STARTING", "TASK_STARTING"})
		hello := w.master.hello()
		if hello.GetAgent().GetId().GetValue() != "M-S0" || len(hello.GetTasks()) != 1 || len(hello.GetFrameworks()) != 1 {
			t.Fatalf("Hello = %v, want the id, the task and the framework", hello)
		}
		if x := hello.GetTasks()[0]; x.GetState() != mesosv1.TaskState_TASK_RUNNING || x.ExecutorId != nil || len(x.GetStatuses()) != 1 ||
			x.GetStatusUpdateState() != mesosv1.TaskState_TASK_STARTING {
			t.Errorf("task in Hello = %v, want state RUNNING, its one sent status, no executor", x)
		}
	})
}

func TestUpdatesMadeWithoutMasterAreDelivered(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), command("t", "sleep"))
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		w.master.setRefusal(&clusterv1.Refused{Message: "not leading"})
		w.master.dropStream()
		synctest.Wait()
		w.host.end(w.container("t"), 3<<8)
		time.Sleep(5 * time.Minute)
		equal(t, "history before the master is back", w.master.history("t"), []string{"TASK_STARTING", "TASK_RUNNING"})
		w.master.setRefusal(nil)
		s := w.master.await(t, "t", mesosv1.TaskState_TASK_FAILED).GetStatus()
		if s.GetMessage() != "Command exited with status 3" {
			t.Errorf("message = %q", s.GetMessage())
		}
	})
}

func TestThousandTasksRunAndEnd(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.config.LaunchParallelism = 8
		w.start()
		const n = 1000
		for i := range n {
			w.launch(checkpointed("F"), command("t"+strings.Repeat("x", i%7)+time.Duration(i).String(), "true"))
		}
		finished := func() int {
			k := 0
			for _, u := range w.master.updatesLocked("") {
				if u.GetStatus().GetState() == mesosv1.TaskState_TASK_FINISHED {
					k++
				}
			}
			return k
		}
		w.master.wait(t, "end of all", func() bool { return finished() >= n })
		synctest.Wait()
		if got := len(w.master.updates("")); got != 3*n {
			t.Errorf("the master got %d updates of %d tasks, want three each and none twice", got, n)
		}
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v after all was acknowledged, want nothing", got)
		}
		if w.host.peak > 8 {
			t.Errorf("%d launches at once, want at most 8", w.host.peak)
		}
		// Every task makes nine writes; together they must need far fewer syncs.
		if w.store.commits > 9*n/2 {
			t.Errorf("%d commits for %d tasks: writes are not grouped", w.store.commits, n)
		}
	})
}

func TestNothingIsSentBeforeItIsOnDisk(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		gate := make(chan struct{})
		w.store.beforeCommit = func(int, []op) error { // no write is under way
			<-gate
			return nil
		}
		w.launch(checkpointed("F"), command("t", "true"))
		w.launch(checkpointed("F"), forExecutor("c", "e"))
		for range 3 {
			n := w.master.count()
			w.master.dropStream()
			w.master.wait(t, "a registration", func() bool { return w.master.streams > n })
			time.Sleep(time.Minute)
		}
		if got := w.master.states(""); len(got) != 0 || len(w.host.started) != 0 {
			t.Errorf("before the first write the master got %v and %d containers were started", got, len(w.host.started))
		}
		close(gate)
		w.master.await(t, "t", mesosv1.TaskState_TASK_STARTING)
	})
}

// Whoever does not acknowledge an update shall not keep the task's end from the master.
func TestEndBehindAnUnacknowledgedUpdateIsToldAtOnce(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launch(checkpointed("F"), command("t", "sleep"))
		u := w.master.await(t, "t", mesosv1.TaskState_TASK_STARTING)
		synctest.Wait()
		time.Sleep(2 * time.Hour) // repeated every ten minutes by now
		synctest.Wait()
		n := len(w.master.updates("t"))
		w.host.end(u.GetStatus().GetContainerStatus().GetContainerId().GetValue(), 3<<8)
		synctest.Wait()
		us := w.master.updates("t")[n:]
		if len(us) != 1 || us[0].GetLatestState() != "TASK_FAILED" || !us[0].GetTerminalLatest() ||
			!bytes.Equal(us[0].GetStatus().GetUuid(), u.GetStatus().GetUuid()) {
			t.Errorf("after the end came %v, want the update that waits with TASK_FAILED as latest state", us)
		}
	})
}

func TestEndBehindAnUpdateUnderWayRepeatsNothing(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launch(checkpointed("F"), command("t", "true"))
		u := w.master.await(t, "t", mesosv1.TaskState_TASK_STARTING)
		synctest.Wait()
		time.Sleep(endNotice - time.Millisecond)
		synctest.Wait()
		if n := len(w.master.updates("t")); n != 1 {
			t.Errorf("%d updates were sent while an acknowledgement could be on its way, want 1", n)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if us := w.master.updates("t"); len(us) != 2 || us[1].GetLatestState() != "TASK_FINISHED" {
			t.Errorf("updates after %v = %v, want the first one repeated with the end", endNotice, us)
		}
		w.master.autoAck = true
		w.master.ack(t, u)
		w.master.await(t, "t", mesosv1.TaskState_TASK_FINISHED)
		equal(t, "history", w.master.history("t"), []string{"TASK_STARTING", "TASK_RUNNING", "TASK_FINISHED"})
	})
}
