package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Random lives of an agent: tasks come alone and in groups, end, fail to launch and are killed, the agent is killed and started again, the
// master comes and goes, acknowledgements are lost. Whatever happens, each task that the agent once reported on has one
// well-formed history with one end, and when all is over nothing is left, neither processes nor records.
// MOSAIC_HISTORY_SEED is the first seed; the schedule of goroutines has a say beside it.
func TestRandomHistoriesEndWell(t *testing.T) {
	const lives, steps = 25, 60
	base := uint64(time.Now().UnixNano())
	if text := os.Getenv("MOSAIC_HISTORY_SEED"); text != "" {
		var err error
		if base, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("MOSAIC_HISTORY_SEED: %v", err)
		}
	}
	for i := range uint64(lives) {
		seed := base + i
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			in(t, func(t *testing.T, w *world) { live(t, w, rand.New(rand.NewPCG(seed, 1)), steps) })
		})
	}
}

func live(t *testing.T, w *world, r *rand.Rand, steps int) {
	w.config.LaunchParallelism = 1 + r.IntN(3)
	var launches rand.PCG // the host's own, so that the order of launches does not change the test's
	launches.Seed(r.Uint64(), 2)
	w.host.launches = func(ctx context.Context, c *containerv1.Container) error {
		w.host.mu.Lock()
		n := rand.New(&launches).IntN(10)
		w.host.mu.Unlock()
		switch {
		case n == 0:
			return errors.New("isolator(x): no")
		case n < 4:
			if !sleep(ctx, time.Duration(n)*time.Second) {
				return ctx.Err()
			}
		}
		return nil
	}
	f := checkpointed("F", mesosv1.FrameworkInfo_Capability_TASK_KILLING_STATE, mesosv1.FrameworkInfo_Capability_PARTITION_AWARE)
	w.start()
	var tasks []string
	running := func() []string {
		w.host.mu.Lock()
		defer w.host.mu.Unlock()
		var ids []string
		for id, p := range w.host.procs {
			select {
			case <-p.ended:
			default:
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		return ids
	}
	for range steps {
		switch r.IntN(12) {
		case 0, 1, 2, 3:
			group := make([]*mesosv1.TaskInfo, 1)
			if r.IntN(3) == 0 {
				group = make([]*mesosv1.TaskInfo, 1+r.IntN(3))
			}
			for i := range group {
				id := fmt.Sprint("t", len(tasks))
				tasks = append(tasks, id)
				group[i] = command(id, []string{"true", "exit 3", "sleep", "sleep", "stubborn"}[r.IntN(5)])
				if r.IntN(5) == 0 {
					group[i].MaxCompletionTime = &mesosv1.DurationInfo{Nanoseconds: new(int64(time.Duration(1+r.IntN(60)) * time.Second))}
				}
			}
			if len(group) == 1 && r.IntN(3) > 0 {
				w.try(&clusterv1.ToAgent_RunTask{RunTask: &clusterv1.RunTask{Framework: f, Task: group[0]}})
			} else {
				w.try(groupOf(f, builtin(fmt.Sprint("e", r.IntN(3))), group...))
			}
		case 4, 5:
			if r.IntN(10) == 0 {
				w.try(&clusterv1.ToAgent_ShutdownExecutor{ShutdownExecutor: &clusterv1.ShutdownExecutor{
					FrameworkId: "F", ExecutorId: fmt.Sprint("e", r.IntN(3)),
				}})
			} else if len(tasks) > 0 {
				w.try(&clusterv1.ToAgent_KillTask{KillTask: &clusterv1.KillTask{FrameworkId: "F", TaskId: tasks[r.IntN(len(tasks))]}})
			}
		case 6:
			if ids := running(); len(ids) > 0 {
				w.host.end(ids[r.IntN(len(ids))], int32(r.IntN(3))<<8)
			}
		case 7:
			if r.IntN(3) == 0 {
				w.stop()
			} else {
				w.crash()
			}
			time.Sleep(time.Duration(r.IntN(20)) * time.Second)
			w.start()
		case 8:
			n := w.master.count()
			w.master.dropStream()
			w.master.wait(t, "another registration", func() bool { return w.master.streams > n })
		case 9: // acknowledge some, the rest is repeated
			us := w.master.updates("")
			for range min(5, len(us)) {
				w.try(&clusterv1.ToAgent_Acknowledge{Acknowledge: ackOf(us[r.IntN(len(us))])})
			}
		case 10:
			time.Sleep(time.Duration(r.IntN(15)) * time.Second)
		case 11:
			w.master.mu.Lock()
			w.master.autoAck = !w.master.autoAck
			w.master.mu.Unlock()
		}
		if r.IntN(2) == 0 {
			synctest.Wait()
		}
	}
	// The end: all is killed and acknowledged.
	w.master.mu.Lock()
	w.master.autoAck = true
	w.master.mu.Unlock()
	synctest.Wait()
	for range 3 {
		for _, id := range tasks {
			w.try(&clusterv1.ToAgent_KillTask{KillTask: &clusterv1.KillTask{FrameworkId: "F", TaskId: id}})
		}
		time.Sleep(30 * time.Minute)
		synctest.Wait()
	}
	if got := w.records(); len(got) != 0 {
		t.Errorf("the store holds %v at the end, want nothing", got)
	}
	if ids := running(); len(ids) > 0 {
		t.Errorf("containers %v still run at the end", ids)
	}
	order := []string{"TASK_STARTING", "TASK_RUNNING", "TASK_KILLING", ""}
	for _, id := range tasks {
		got := w.master.history(id)
		// Answers to kills of what is not here any more, which are no part of the task's own history.
		got = slices.DeleteFunc(got, func(s string) bool { return s == "TASK_GONE" })
		if len(got) == 0 {
			continue // it never reached a living agent, or came to one that did not live to write it down
		}
		at := 0
		for i, s := range got {
			last := i == len(got)-1
			if terminal(mesosv1.TaskState(mesosv1.TaskState_value[s])) != last {
				t.Errorf("history of %s = %v, want one terminal state, at the end", id, got)
				break
			}
			k := slices.Index(order, s)
			if last {
				k = len(order) - 1
			}
			if k < at {
				t.Errorf("history of %s = %v, want the order of a life", id, got)
				break
			}
			at = k + 1
		}
	}
}
