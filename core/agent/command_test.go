package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// in runs a test in a bubble, where time costs nothing.
func in(t *testing.T, fn func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) { fn(t, newWorld(t)) })
}

func TestCommandTaskRunsAndFinishes(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launch(checkpointed("F"), command("t", "true"))

		u := w.master.await(t, "t", mesosv1.TaskState_TASK_STARTING)
		s := u.GetStatus()
		if u.GetExecutorId() != "t" || s.GetExecutorId().GetValue() != "t" || s.GetAgentId().GetValue() != "M-S0" ||
			len(s.GetUuid()) != 16 || s.GetTimestamp() == 0 || s.GetContainerStatus().GetContainerId().GetValue() == "" ||
			s.GetSource() != mesosv1.TaskStatus_SOURCE_EXECUTOR {
			t.Errorf("TASK_STARTING = %v, want ids, uuid, timestamp, source and container", u)
		}
		synctest.Wait()
		equal(t, "states before an acknowledgement", w.master.states("t"), []string{"TASK_STARTING"})

		w.master.ack(t, u)
		u = w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		if u.GetLatestState() != "TASK_FINISHED" || !u.GetTerminalLatest() {
			t.Errorf("TASK_RUNNING of a task that ended: latest state %q, terminal %v", u.GetLatestState(), u.GetTerminalLatest())
		}
		w.master.ack(t, u)
		u = w.master.await(t, "t", mesosv1.TaskState_TASK_FINISHED)
		if u.GetStatus().GetMessage() != "Command exited with status 0" || u.GetStatus().Reason != nil {
			t.Errorf("TASK_FINISHED = %v, want the message of Mesos and no reason", u.GetStatus())
		}
		w.master.ack(t, u)
		synctest.Wait()
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v after the last acknowledgement, want nothing", got)
		}
	})
}

func TestExitDecidesTheTerminalState(t *testing.T) {
	limited := &containerv1.Termination{
		State: "TASK_FAILED", Reason: "REASON_CONTAINER_LIMITATION_MEMORY", Message: "memory limit of 32 MB exceeded",
		LimitedResources: []*mesosv1.Resource{{Name: new("mem"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: new(32.0)}}},
	}
	for _, test := range []struct {
		name    string
		status  int32
		why     *containerv1.Termination
		state   mesosv1.TaskState
		reason  string
		message string
	}{
		{"zero", 0, nil, mesosv1.TaskState_TASK_FINISHED, "", "Command exited with status 0"},
		{"nine", 9 << 8, nil, mesosv1.TaskState_TASK_FAILED, "", "Command exited with status 9"},
		{"SIGSEGV", 11, nil, mesosv1.TaskState_TASK_FAILED, "", "Command terminated with signal Segmentation fault"},
		{"SIGKILL", 9, nil, mesosv1.TaskState_TASK_FAILED, "", "Command terminated with signal Killed"},
		{"limitation", 9, limited, mesosv1.TaskState_TASK_FAILED, "REASON_CONTAINER_LIMITATION_MEMORY", "memory limit of 32 MB exceeded"},
		{"words nobody knows", 0, &containerv1.Termination{State: "TASK_WELL", Reason: "REASON_NONE"}, mesosv1.TaskState_TASK_FINISHED, "", "Command exited with status 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.master.autoAck = true
				w.start()
				w.launch(checkpointed("F"), command("t", "sleep"))
				w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
				w.host.mu.Lock()
				w.host.procs[w.hostContainer()].end(test.status, test.why)
				w.host.mu.Unlock()
				s := w.master.await(t, "t", test.state).GetStatus()
				reason := ""
				if s.Reason != nil {
					reason = s.GetReason().String()
				}
				if reason != test.reason || s.GetMessage() != test.message {
					t.Errorf("%v: reason %q, message %q, want %q, %q", s.GetState(), reason, s.GetMessage(), test.reason, test.message)
				}
				if test.why == limited && len(s.GetLimitation().GetResources()) != 1 {
					t.Errorf("limitation = %v, want mem", s.GetLimitation())
				}
			})
		})
	}
}

// hostContainer returns the only container. The caller holds host.mu.
func (w *world) hostContainer() string {
	for id := range w.host.procs {
		return id
	}
	return ""
}

func TestFailedLaunchFailsTheTaskAndSaysWhy(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.host.launches = func(context.Context, *containerv1.Container) error {
			return errors.New("isolator(rlimits): nofile: soft 4096 above hard 1024")
		}
		w.start()
		w.launch(checkpointed("F"), command("t", "true"))
		s := w.master.await(t, "t", mesosv1.TaskState_TASK_FAILED).GetStatus()
		if s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED || s.GetSource() != mesosv1.TaskStatus_SOURCE_AGENT ||
			s.GetMessage() != "isolator(rlimits): nofile: soft 4096 above hard 1024" {
			t.Errorf("status = %v, want CONTAINER_LAUNCH_FAILED with the isolator's words", s)
		}
		if s.GetContainerStatus().GetContainerId().GetValue() == "" {
			t.Error("the status of a failed launch names no container")
		}
	})
}

func TestKillSendsTermAndThenDestroys(t *testing.T) {
	for _, test := range []struct {
		name, command string
		policy        time.Duration // of the task; 0 for none
		grace         []time.Duration
		capable       bool
		took          time.Duration
		signals       int
		message       string
		history       []string
	}{
		{"obedient", "sleep", 0, nil, false, 0, 1, "Command terminated with signal Terminated",
			[]string{"TASK_STARTING", "TASK_RUNNING", "TASK_KILLED"}},
		{"stubborn, default grace", "stubborn", 0, nil, false, 3 * time.Second, 1, "Command terminated with signal Killed",
			[]string{"TASK_STARTING", "TASK_RUNNING", "TASK_KILLED"}},
		{"grace of the task", "stubborn", 8 * time.Second, nil, false, 8 * time.Second, 1, "Command terminated with signal Killed",
			[]string{"TASK_STARTING", "TASK_RUNNING", "TASK_KILLED"}},
		{"grace of the kill goes before", "stubborn", 8 * time.Second, []time.Duration{time.Second}, false, time.Second, 1,
			"Command terminated with signal Killed", []string{"TASK_STARTING", "TASK_RUNNING", "TASK_KILLED"}},
		{"no grace at all", "stubborn", 8 * time.Second, []time.Duration{0}, false, 0, 0,
			"Command terminated with signal Killed", []string{"TASK_STARTING", "TASK_RUNNING", "TASK_KILLED"}},
		{"framework that knows TASK_KILLING", "stubborn", 0, nil, true, 3 * time.Second, 1, "Command terminated with signal Killed",
			[]string{"TASK_STARTING", "TASK_RUNNING", "TASK_KILLING", "TASK_KILLED"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.master.autoAck = true
				w.start()
				f := checkpointed("F")
				if test.capable {
					f = checkpointed("F", mesosv1.FrameworkInfo_Capability_TASK_KILLING_STATE)
				}
				task := command("t", test.command)
				if test.policy > 0 {
					task.KillPolicy = &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: new(int64(test.policy))}}
				}
				w.launch(f, task)
				w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
				synctest.Wait()
				began := time.Now()
				w.kill("t", test.grace...)
				s := w.master.await(t, "t", mesosv1.TaskState_TASK_KILLED).GetStatus()
				if took := time.Since(began); took != test.took {
					t.Errorf("the kill took %v, want %v", took, test.took)
				}
				if s.GetMessage() != test.message || s.Reason != nil {
					t.Errorf("status = %v, want message %q and no reason", s, test.message)
				}
				equal(t, "history", w.master.history("t"), test.history)
				w.host.mu.Lock()
				defer w.host.mu.Unlock()
				if p := w.host.procs[w.hostContainer()]; len(p.signals) != test.signals {
					t.Errorf("signals sent = %v, want %d", p.signals, test.signals)
				}
			})
		})
	}
}

func TestSecondKillCanOnlyShortenTheGrace(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), command("t", "stubborn"))
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		began := time.Now()
		w.kill("t", time.Minute)
		time.Sleep(10 * time.Second)
		w.kill("t", time.Hour)
		w.kill("t", 30*time.Second)
		w.master.await(t, "t", mesosv1.TaskState_TASK_KILLED)
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("killed after %v, want 30s from the first kill", took)
		}
	})
}

func TestKilledTaskThatExitsZeroIsStillKilled(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), command("t", "stubborn"))
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		w.kill("t")
		synctest.Wait()
		w.host.end(w.container("t"), 0)
		w.master.await(t, "t", mesosv1.TaskState_TASK_KILLED)
	})
}

func TestKillBeforeTheLaunchLaunchesNothing(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.config.LaunchParallelism = 1
		gate := make(chan struct{})
		w.host.launches = func(ctx context.Context, c *containerv1.Container) error {
			select {
			case <-gate:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		w.start()
		w.launch(checkpointed("F"), command("first", "sleep"))
		w.launch(checkpointed("F"), command("queued", "sleep"))
		w.master.await(t, "first", mesosv1.TaskState_TASK_STARTING)
		w.kill("queued")
		s := w.master.await(t, "queued", mesosv1.TaskState_TASK_KILLED).GetStatus()
		if s.GetReason() != mesosv1.TaskStatus_REASON_TASK_KILLED_DURING_LAUNCH {
			t.Errorf("status of the queued task = %v, want TASK_KILLED_DURING_LAUNCH", s)
		}
		w.kill("first") // in the middle of its launch, which is cut short
		s = w.master.await(t, "first", mesosv1.TaskState_TASK_KILLED).GetStatus()
		if s.GetReason() != mesosv1.TaskStatus_REASON_TASK_KILLED_DURING_LAUNCH {
			t.Errorf("status of the launching task = %v, want TASK_KILLED_DURING_LAUNCH", s)
		}
		w.host.mu.Lock()
		defer w.host.mu.Unlock()
		if len(w.host.procs) != 0 {
			t.Errorf("%d processes were started, want none", len(w.host.procs))
		}
	})
}

func TestMaxCompletionTimeEndsTheTask(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		task := command("t", "stubborn")
		task.MaxCompletionTime = &mesosv1.DurationInfo{Nanoseconds: new(int64(20 * time.Second))}
		began := time.Now()
		w.launch(checkpointed("F"), task)
		s := w.master.await(t, "t", mesosv1.TaskState_TASK_FAILED).GetStatus()
		if took := time.Since(began); took != 20*time.Second {
			t.Errorf("ended after %v, want 20s", took)
		}
		if s.GetReason() != mesosv1.TaskStatus_REASON_MAX_COMPLETION_TIME_REACHED {
			t.Errorf("status = %v, want MAX_COMPLETION_TIME_REACHED", s)
		}
	})
}

func TestKillCancelsMaxCompletionTime(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		task := command("t", "stubborn")
		task.MaxCompletionTime = &mesosv1.DurationInfo{Nanoseconds: new(int64(20 * time.Second))}
		w.launch(checkpointed("F"), task)
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		w.kill("t", time.Minute)
		w.master.await(t, "t", mesosv1.TaskState_TASK_KILLED)
		equal(t, "history", w.master.history("t"), []string{"TASK_STARTING", "TASK_RUNNING", "TASK_KILLED"})
	})
}

func TestKillOfAnUnknownTaskIsAnswered(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.kill("nobody")
		w.master.await(t, "nobody", mesosv1.TaskState_TASK_GONE)
	})
}

func TestUnseenEndOfAKilledTaskIsItsKill(t *testing.T) {
	unseen := &containerv1.Termination{State: "TASK_FAILED", Message: "container status unknown"}
	limit := &containerv1.Termination{State: "TASK_FAILED", Reason: "REASON_CONTAINER_LIMITATION_MEMORY"}
	killed, expired := progress{kill: time.Now()}, progress{expired: true}
	for _, test := range []struct {
		name  string
		p     progress
		end   *containerv1.Termination
		state mesosv1.TaskState
	}{
		{"nobody asked", progress{}, unseen, mesosv1.TaskState_TASK_FAILED},
		{"killed", killed, unseen, mesosv1.TaskState_TASK_KILLED},
		{"expired", expired, unseen, mesosv1.TaskState_TASK_FAILED},
		{"over a limit while it was killed", killed, limit, mesosv1.TaskState_TASK_FAILED},
		{"no word at all", progress{}, &containerv1.Termination{}, mesosv1.TaskState_TASK_FAILED},
	} {
		task := &task{info: command("t", "true"), progress: test.p}
		s := outcome(task, phaseRunning, test.end, nil)
		if s.GetState() != test.state || s.GetState() == mesosv1.TaskState_TASK_FAILED && s.GetMessage() == "" && s.Reason == nil {
			t.Errorf("%s: outcome = %v, want %v and why", test.name, s, test.state)
		}
		if test.p.expired && s.GetReason() != mesosv1.TaskStatus_REASON_MAX_COMPLETION_TIME_REACHED {
			t.Errorf("%s: outcome = %v, want MAX_COMPLETION_TIME_REACHED", test.name, s)
		}
	}
}
