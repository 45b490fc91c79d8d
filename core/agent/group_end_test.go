package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// What one task comes to, and what that does to the other one of its group and to that of another group.
func TestEndOfATaskEndsItsGroupUnlessItFinished(t *testing.T) {
	killing := mesosv1.FrameworkInfo_Capability_TASK_KILLING_STATE
	for name, test := range map[string]struct {
		task    func(*mesosv1.TaskInfo)
		end     func(w *world)
		first   string // history of the task after TASK_RUNNING
		reason  mesosv1.TaskStatus_Reason
		second  []string // of the other one
		capable bool
	}{
		"finished": {
			end:   func(w *world) { w.host.end(w.container("a"), 0) },
			first: "TASK_FINISHED",
		},
		"failed": {
			end:   func(w *world) { w.host.end(w.container("a"), 3<<8) },
			first: "TASK_FAILED", second: []string{"TASK_KILLED"},
		},
		"failed, and the framework wants to know": {
			end:   func(w *world) { w.host.end(w.container("a"), 3<<8) },
			first: "TASK_FAILED", second: []string{"TASK_KILLING", "TASK_KILLED"}, capable: true,
		},
		"killed": {
			end:   func(w *world) { w.kill("a") },
			first: "TASK_KILLED", second: []string{"TASK_KILLED"},
		},
		"out of time": {
			task: func(t *mesosv1.TaskInfo) {
				t.MaxCompletionTime = &mesosv1.DurationInfo{Nanoseconds: new(int64(5 * time.Second))}
			},
			end:   func(*world) {},
			first: "TASK_FAILED", reason: mesosv1.TaskStatus_REASON_MAX_COMPLETION_TIME_REACHED, second: []string{"TASK_KILLED"},
		},
		"out of memory": {
			end: func(w *world) {
				c := &containers{w.host, nil}
				c.Destroy(context.Background(), w.container("a"), &containerv1.Termination{
					Reason: "REASON_CONTAINER_LIMITATION_MEMORY", Message: "memory limit exceeded",
				})
			},
			first: "TASK_FAILED", reason: mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_MEMORY, second: []string{"TASK_KILLED"},
		},
		"killed by somebody": {
			end:   func(w *world) { w.host.end(w.container("a"), 9) },
			first: "TASK_FAILED", second: []string{"TASK_KILLED"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.master.autoAck = true
				w.start()
				f := checkpointed("F")
				if test.capable {
					f = checkpointed("F", killing)
				}
				a := command("a", "sleep")
				if test.task != nil {
					test.task(a)
				}
				w.launchGroup(f, builtin("e"), a, command("b", "sleep"))
				w.launchGroup(f, builtin("e"), command("c", "sleep"))
				for _, id := range []string{"a", "b", "c"} {
					w.master.await(t, id, mesosv1.TaskState_TASK_RUNNING)
				}
				synctest.Wait()
				test.end(w)
				time.Sleep(time.Minute)
				synctest.Wait()
				begun := []string{"TASK_STARTING", "TASK_RUNNING"}
				equal(t, "history of a", w.master.history("a"), append(slices.Clone(begun), test.first))
				equal(t, "history of b", w.master.history("b"), append(slices.Clone(begun), test.second...))
				equal(t, "history of c", w.master.history("c"), begun)
				us := w.master.updates("a")
				if s := us[len(us)-1].GetStatus(); s.GetReason() != test.reason {
					t.Errorf("status of a = %v, want reason %v", s, test.reason)
				}
				us = w.master.updates("b")
				if s := us[len(us)-1].GetStatus(); s.Reason != nil {
					t.Errorf("status of b = %v, want no reason", s)
				}
				if !w.host.alive(w.root("c")) {
					t.Error("the executor was ended while a task of it runs")
				}
			})
		})
	}
}

func TestGroupWhoseTaskCannotBeLaunchedIsEnded(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.config.LaunchParallelism = 1
		w.watched(func(_ context.Context, c *containerv1.Container) error {
			if c.GetTaskId() == "b" {
				return errors.New("isolator(x): no")
			}
			return nil
		})
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), command("a", "sleep"), command("b", "sleep"), command("c", "sleep"))
		s := w.master.await(t, "b", mesosv1.TaskState_TASK_FAILED).GetStatus()
		if s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED || !strings.Contains(s.GetMessage(), "isolator(x): no") {
			t.Errorf("status of b = %v, want CONTAINER_LAUNCH_FAILED and why", s)
		}
		if s := w.master.await(t, "a", mesosv1.TaskState_TASK_KILLED).GetStatus(); s.Reason != nil {
			t.Errorf("status of a = %v, want no reason", s)
		}
		s = w.master.await(t, "c", mesosv1.TaskState_TASK_KILLED).GetStatus()
		if s.GetReason() != mesosv1.TaskStatus_REASON_TASK_KILLED_DURING_LAUNCH {
			t.Errorf("status of c = %v, want TASK_KILLED_DURING_LAUNCH: it never was", s)
		}
		time.Sleep(2 * idleTime)
		synctest.Wait()
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v at the end, want nothing", got)
		}
	})
}

func TestGroupWhoseExecutorCannotBeLaunchedFails(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.watched(func(context.Context, *containerv1.Container) error { return errors.New("no room") })
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), command("a", "sleep"), command("b", "sleep"))
		for _, id := range []string{"a", "b"} {
			s := w.master.await(t, id, mesosv1.TaskState_TASK_FAILED).GetStatus()
			if s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED || !strings.Contains(s.GetMessage(), "no room") {
				t.Errorf("status of %s = %v, want CONTAINER_LAUNCH_FAILED and why", id, s)
			}
			equal(t, "history of "+id, w.master.history(id), []string{"TASK_FAILED"})
		}
		synctest.Wait()
		if got, exits := w.records(), w.master.exits(); len(got) != 0 || len(exits) != 0 {
			t.Errorf("records %v, exits %v: want nothing of an executor that never was", got, exits)
		}
	})
}

func TestGroupIsKilledBeforeItWasLaunched(t *testing.T) {
	for name, slow := range map[string]func(c *containerv1.Container) bool{
		"while its executor is made":    func(c *containerv1.Container) bool { return c.GetParentId() == "" },
		"while another task is fetched": func(c *containerv1.Container) bool { return c.GetTaskId() == "b" },
		"while it is fetched itself":    func(c *containerv1.Container) bool { return c.GetTaskId() == "a" },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.master.autoAck = true
				w.config.LaunchParallelism = 1
				w.watched(func(ctx context.Context, c *containerv1.Container) error {
					if slow(c) {
						<-ctx.Done()
						return ctx.Err()
					}
					return nil
				})
				w.start()
				w.launchGroup(checkpointed("F"), builtin("e"), command("b", "sleep"), command("a", "sleep"))
				time.Sleep(time.Millisecond)
				synctest.Wait()
				began := time.Now()
				w.kill("a")
				s := w.master.await(t, "a", mesosv1.TaskState_TASK_KILLED).GetStatus()
				if s.GetReason() != mesosv1.TaskStatus_REASON_TASK_KILLED_DURING_LAUNCH {
					t.Errorf("status of a = %v, want TASK_KILLED_DURING_LAUNCH", s)
				}
				w.master.await(t, "b", mesosv1.TaskState_TASK_KILLED)
				if took := time.Since(began); took > 4*time.Second {
					t.Errorf("killed after %v", took)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if got := w.records(); len(got) != 0 {
					t.Errorf("the store holds %v at the end, want nothing", got)
				}
			})
		})
	}
}

func TestAnExecutorThatShutsDownInTimeDidNotFail(t *testing.T) {
	for task, want := range map[string]int32{"sleep": 0, "stubborn": int32(syscall.SIGKILL)} {
		t.Run(task, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.master.autoAck = true
				w.start()
				a := command("a", task)
				a.KillPolicy = &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: new(int64(time.Hour))}}
				w.launchGroup(checkpointed("F"), builtin("e"), a)
				w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
				synctest.Wait()
				w.master.send(t, &clusterv1.ToAgent_ShutdownExecutor{ShutdownExecutor: &clusterv1.ShutdownExecutor{FrameworkId: "F", ExecutorId: "e"}})
				w.master.await(t, "a", mesosv1.TaskState_TASK_KILLED)
				time.Sleep(time.Second)
				synctest.Wait()
				if got, told := w.master.exits()["e"]; !told || got != want {
					t.Errorf("exit of the executor: status %d, told: %v, want %d", got, told, want)
				}
			})
		})
	}
}

func TestShutdownOfAGroupsExecutor(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		x := builtin("e")
		x.ShutdownGracePeriod = &mesosv1.DurationInfo{Nanoseconds: new(int64(10 * time.Second))}
		slow := command("b", "stubborn")
		slow.KillPolicy = &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: new(int64(time.Hour))}}
		w.launchGroup(checkpointed("F"), x, command("a", "sleep"), slow)
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		w.master.await(t, "b", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		began := time.Now()
		w.master.send(t, &clusterv1.ToAgent_ShutdownExecutor{ShutdownExecutor: &clusterv1.ShutdownExecutor{FrameworkId: "F", ExecutorId: "e"}})
		w.master.await(t, "a", mesosv1.TaskState_TASK_KILLED)
		if took := time.Since(began); took > time.Second {
			t.Errorf("a task that obeys SIGTERM ended after %v", took)
		}
		synctest.Wait()
		w.launchGroup(checkpointed("F"), builtin("e"), command("c", "sleep"))
		w.master.await(t, "c", mesosv1.TaskState_TASK_LOST)
		w.master.await(t, "b", mesosv1.TaskState_TASK_KILLED)
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("a task that does not obey ended after %v, want the 10s of its executor", took)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v at the end, want nothing", got)
		}
	})
}

// The container around ends: by itself, by a limit, by the quality of service.
func TestEndOfTheContainerAroundIsTheEndOfItsTasks(t *testing.T) {
	for name, test := range map[string]struct {
		end    func(w *world, root string)
		state  mesosv1.TaskState
		reason mesosv1.TaskStatus_Reason
		text   string
	}{
		"killed": {
			func(w *world, root string) { w.host.end(root, 9) },
			mesosv1.TaskState_TASK_FAILED, mesosv1.TaskStatus_REASON_EXECUTOR_TERMINATED, "Executor terminated with signal Killed",
		},
		"out of memory": {
			func(w *world, root string) {
				(&containers{w.host, nil}).Destroy(context.Background(), root, &containerv1.Termination{
					State: "TASK_FAILED", Reason: "REASON_CONTAINER_LIMITATION_MEMORY", Message: "memory limit exceeded",
				})
			},
			mesosv1.TaskState_TASK_FAILED, mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_MEMORY, "memory limit exceeded",
		},
		"preempted": {
			func(w *world, root string) {
				(&containers{w.host, nil}).Destroy(context.Background(), root, &containerv1.Termination{
					State: "TASK_LOST", Reason: "REASON_CONTAINER_PREEMPTED", Message: "preempted",
				})
			},
			mesosv1.TaskState_TASK_LOST, mesosv1.TaskStatus_REASON_CONTAINER_PREEMPTED, "preempted",
		},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.master.autoAck = true
				w.start()
				w.launchGroup(checkpointed("F"), builtin("e"), command("a", "sleep"))
				w.launchGroup(checkpointed("F"), builtin("e"), command("b", "sleep"))
				w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
				w.master.await(t, "b", mesosv1.TaskState_TASK_RUNNING)
				test.end(w, w.root("a"))
				for _, id := range []string{"a", "b"} {
					s := w.master.await(t, id, test.state).GetStatus()
					if s.GetReason() != test.reason || s.GetMessage() != test.text {
						t.Errorf("status of %s = %v, want %v, %q", id, s, test.reason, test.text)
					}
				}
				synctest.Wait()
				if got := w.records(); len(got) != 0 {
					t.Errorf("the store holds %v at the end, want nothing", got)
				}
				if status, told := w.master.exits()["e"]; !told || status != 9 {
					t.Errorf("exit of the executor = %d, told: %v; want 9", status, told)
				}
			})
		})
	}
}

func TestEndOfAFrameworkEndsItsGroups(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), command("a", "sleep"), command("b", "stubborn"))
		w.launchGroup(checkpointed("F"), builtin("x"), command("c", "true"))
		w.master.await(t, "a", mesosv1.TaskState_TASK_STARTING)
		synctest.Wait()
		w.master.send(t, &clusterv1.ToAgent_ShutdownFramework{ShutdownFramework: &clusterv1.ShutdownFramework{FrameworkId: "F"}})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v at the end, want nothing", got)
		}
		for id := range w.host.procs {
			if w.host.alive(id) {
				t.Errorf("container %s still runs", id)
			}
		}
	})
}

func TestDrainKillsGroups(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), command("a", "sleep"), command("b", "stubborn"))
		w.master.await(t, "b", mesosv1.TaskState_TASK_RUNNING)
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		w.launchGroup(checkpointed("F"), builtin("idle"), command("c", "true"))
		w.master.await(t, "c", mesosv1.TaskState_TASK_FINISHED)
		w.master.send(t, &clusterv1.ToAgent_Drain{Drain: &clusterv1.Drain{Config: &mesosv1.DrainConfig{}}})
		for _, id := range []string{"a", "b"} {
			if s := w.master.await(t, id, mesosv1.TaskState_TASK_KILLED).GetStatus(); s.GetReason() != mesosv1.TaskStatus_REASON_AGENT_DRAINING {
				t.Errorf("status of %s = %v, want AGENT_DRAINING", id, s)
			}
		}
		synctest.Wait()
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v after the drain, want nothing", got)
		}
	})
}

func TestGroupsContainerThatCannotGrowLosesItsTasks(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), command("a", "sleep"))
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		w.host.mu.Lock()
		w.host.failUpdate = errors.New("no more")
		w.host.mu.Unlock()
		w.launchGroup(checkpointed("F"), builtin("e"), command("b", "sleep"))
		for _, id := range []string{"a", "b"} {
			s := w.master.await(t, id, mesosv1.TaskState_TASK_LOST).GetStatus()
			if s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_UPDATE_FAILED || !strings.Contains(s.GetMessage(), "no more") {
				t.Errorf("status of %s = %v, want CONTAINER_UPDATE_FAILED and why", id, s)
			}
		}
		synctest.Wait()
		if got := w.records(); len(got) != 0 {
			t.Errorf("the store holds %v at the end, want nothing", got)
		}
	})
}
