package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// script makes the runs of a task's COMMAND checks do what it says, one word each and the last for ever: "0" to "255"
// are exit codes, "hang" never ends, "broken" cannot be launched. It notes when they ran.
type script struct {
	mu    sync.Mutex // guards all
	words []string
	runs  []time.Time
	seen  []*containerv1.Container
}

func (s *script) launch(_ context.Context, c *containerv1.Container) error {
	if c.GetClass() != containerv1.Container_DEBUG {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	word := s.words[min(len(s.runs), len(s.words)-1)]
	s.runs = append(s.runs, time.Now())
	s.seen = append(s.seen, proto.CloneOf(c))
	switch word {
	case "hang":
		c.Command.Value = new("sleep")
	case "broken":
		return errors.New("there is no such command")
	default:
		c.Command.Value = new("exit " + word)
	}
	return nil
}

// ran returns when the checks ran.
func (s *script) ran() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.runs)
}

// reports returns what the updates of a task say, in seconds since TASK_RUNNING, repetitions left out.
func reports(m *controller, task string) []string {
	var list []string
	var began float64
	seen := make(map[string]bool)
	for _, u := range m.updates(task) {
		s := u.GetStatus()
		if seen[string(s.GetUuid())] {
			continue
		}
		seen[string(s.GetUuid())] = true
		if s.GetState() == mesosv1.TaskState_TASK_RUNNING && s.Reason == nil {
			began = s.GetTimestamp()
		}
		if s.GetState() == mesosv1.TaskState_TASK_STARTING {
			continue
		}
		text := fmt.Sprintf("%.0f %s", math.Round(s.GetTimestamp()-began), strings.TrimPrefix(s.GetState().String(), "TASK_"))
		switch s.GetReason() {
		case mesosv1.TaskStatus_REASON_TASK_HEALTH_CHECK_STATUS_UPDATED:
			text += " health"
		case mesosv1.TaskStatus_REASON_TASK_CHECK_STATUS_UPDATED:
			text += " check"
		}
		if s.Healthy != nil {
			text += fmt.Sprintf(" healthy=%v", s.GetHealthy())
		}
		if k := s.GetCheckStatus(); k != nil {
			text += " " + strings.ToLower(k.GetType().String()) + "="
			if k.GetCommand().ExitCode != nil {
				text += fmt.Sprint(k.GetCommand().GetExitCode())
			}
		}
		list = append(list, text)
	}
	return list
}

func commandHealth(change func(*mesosv1.HealthCheck)) *mesosv1.HealthCheck {
	h := &mesosv1.HealthCheck{Type: mesosv1.HealthCheck_COMMAND.Enum(), Command: &mesosv1.CommandInfo{Value: new("probe")}}
	if change != nil {
		change(h)
	}
	return h
}

func commandCheck() *mesosv1.CheckInfo {
	return &mesosv1.CheckInfo{
		Type:    mesosv1.CheckInfo_COMMAND.Enum(),
		Command: &mesosv1.CheckInfo_Command{Command: &mesosv1.CommandInfo{Value: new("probe")}},
	}
}

func TestHealthChecksKeepTheirTimes(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*mesosv1.HealthCheck)
		words  string
		runs   []int // seconds since TASK_RUNNING
		want   []string
	}{
		"a healthy task is said so once": {
			nil, "0", []int{15, 25, 35, 45, 55, 65, 75, 85, 95}, []string{"0 RUNNING", "15 RUNNING health healthy=true"},
		},
		"three failures in a row kill": {
			nil, "1", []int{15, 25, 35},
			[]string{"0 RUNNING", "15 RUNNING health healthy=false", "25 RUNNING health healthy=false", "35 RUNNING health healthy=false", "35 KILLED healthy=false"},
		},
		"a success between failures counts anew": {
			nil, "0 1 1 0 1 1 1", []int{15, 25, 35, 45, 55, 65, 75},
			[]string{
				"0 RUNNING", "15 RUNNING health healthy=true", "25 RUNNING health healthy=false", "35 RUNNING health healthy=false",
				"45 RUNNING health healthy=true", "55 RUNNING health healthy=false", "65 RUNNING health healthy=false",
				"75 RUNNING health healthy=false", "75 KILLED healthy=false",
			},
		},
		"failures in the grace period do not count": {
			func(h *mesosv1.HealthCheck) { h.GracePeriodSeconds = new(36.0) }, "1", []int{15, 25, 35, 45, 55, 65},
			[]string{"0 RUNNING", "45 RUNNING health healthy=false", "55 RUNNING health healthy=false", "65 RUNNING health healthy=false", "65 KILLED healthy=false"},
		},
		"the first success ends the grace period": {
			func(h *mesosv1.HealthCheck) { h.GracePeriodSeconds = new(1000.0) }, "1 0 1", []int{15, 25, 35, 45, 55},
			[]string{
				"0 RUNNING", "25 RUNNING health healthy=true", "35 RUNNING health healthy=false",
				"45 RUNNING health healthy=false", "55 RUNNING health healthy=false", "55 KILLED healthy=false",
			},
		},
		"a timeout is a failure, and the interval begins after it": {
			func(h *mesosv1.HealthCheck) { h.TimeoutSeconds = new(5.0) }, "hang", []int{15, 30, 45},
			[]string{"0 RUNNING", "20 RUNNING health healthy=false", "35 RUNNING health healthy=false", "50 RUNNING health healthy=false", "50 KILLED healthy=false"},
		},
		"a command that cannot be run is a failure": {
			func(h *mesosv1.HealthCheck) { h.ConsecutiveFailures = new(uint32(1)) }, "broken", []int{15},
			[]string{"0 RUNNING", "15 RUNNING health healthy=false", "15 KILLED healthy=false"},
		},
		"times of its own, and no type": {
			func(h *mesosv1.HealthCheck) {
				h.Type, h.DelaySeconds, h.IntervalSeconds, h.GracePeriodSeconds = nil, new(0.0), new(2.0), new(0.0)
				h.ConsecutiveFailures = new(uint32(2))
			}, "1", []int{0, 2},
			[]string{"0 RUNNING", "0 RUNNING health healthy=false", "2 RUNNING health healthy=false", "2 KILLED healthy=false"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.master.autoAck = true
				s := &script{words: strings.Fields(test.words)}
				w.host.launches = s.launch
				w.start()
				began := time.Now()
				task := command("t", "sleep")
				task.HealthCheck = commandHealth(test.change)
				w.launch(checkpointed("F"), task)
				time.Sleep(100 * time.Second)
				synctest.Wait()
				equal(t, "updates", reports(w.master, "t"), test.want)
				var runs []int
				for _, at := range s.ran() {
					runs = append(runs, int(at.Sub(began).Round(time.Second)/time.Second))
				}
				equal(t, "seconds of runs", runs, test.runs)
			})
		})
	}
}

func TestChecksReportEachChangeAndNeverKill(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		s := &script{words: strings.Fields("0 0 3 3 hang hang 3")}
		w.host.launches = s.launch
		w.start()
		task := command("t", "sleep")
		task.Check = commandCheck()
		task.Check.TimeoutSeconds = new(5.0)
		w.launch(checkpointed("F"), task)
		time.Sleep(120 * time.Second)
		w.kill("t")
		w.master.await(t, "t", mesosv1.TaskState_TASK_KILLED)
		equal(t, "updates", reports(w.master, "t"), []string{
			"0 RUNNING command=", "15 RUNNING check command=0", "35 RUNNING check command=3",
			"60 RUNNING check command=", "85 RUNNING check command=3", "120 KILLED command=3",
		})
		if first := w.master.updates("t")[0].GetStatus(); first.GetCheckStatus().GetCommand() == nil || first.GetCheckStatus().GetCommand().ExitCode != nil {
			t.Errorf("check status of TASK_STARTING = %v, want a command without exit code", first.GetCheckStatus())
		}
		before := len(s.ran())
		time.Sleep(time.Hour)
		if n := len(s.ran()); n != before {
			t.Errorf("%d runs after the task's end", n-before)
		}
		if left := w.records(); len(left) > 0 {
			t.Errorf("records after the task's end = %v, want none", left)
		}
	})
}

func TestHealthCheckAndCheckOfOneTaskAreReportedTogether(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		s := &script{words: []string{"4", "0"}} // the check comes first
		w.host.launches = s.launch
		w.start()
		task := command("t", "sleep")
		task.Check, task.HealthCheck = commandCheck(), commandHealth(nil)
		task.Check.DelaySeconds, task.Check.IntervalSeconds = new(10.0), new(1000.0)
		w.launch(checkpointed("F"), task)
		time.Sleep(30 * time.Second)
		equal(t, "updates", reports(w.master, "t"), []string{
			"0 RUNNING command=", "10 RUNNING check command=4", "15 RUNNING health healthy=true command=4",
		})
	})
}

func TestCommandCheckRunsInTheTasksContainer(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		s := &script{words: []string{"0"}}
		w.host.launches = s.launch
		w.start()
		task := command("t", "sleep")
		task.HealthCheck = commandHealth(func(h *mesosv1.HealthCheck) {
			h.Command.User = new("root")
			h.Command.Uris = []*mesosv1.CommandInfo_URI{{Value: new("http://somewhere/")}}
			h.Command.Environment = &mesosv1.Environment{Variables: []*mesosv1.Environment_Variable{{Name: new("A"), Value: new("b")}}}
		})
		w.launch(checkpointed("F"), task)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.seen) != 1 {
			t.Fatalf("%d runs, want 1", len(s.seen))
		}
		c, parent := s.seen[0], w.container("t")
		own := strings.TrimPrefix(c.GetId(), parent+".")
		if c.GetParentId() != parent || own == c.GetId() || c.GetCgroup() != "mosaic/"+parent+"/debug-"+own || c.GetTaskId() != "t" ||
			!strings.HasSuffix(c.GetSandbox(), "/runs/"+parent) || len(c.GetResources()) > 0 || c.ContainerInfo != nil {
			t.Errorf("container of the check = %v, want one of class DEBUG within %s", c, parent)
		}
		if c.Command.User != nil || len(c.Command.Uris) > 0 || len(c.GetCommand().GetEnvironment().GetVariables()) != 1 {
			t.Errorf("command of the check = %v, want its variables and neither user nor uris", c.Command)
		}
	})
}

func TestChecksGoOnAfterTheAgentsRestart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		s := &script{words: strings.Fields("0 1 1 hang")}
		w.host.launches = s.launch
		w.start()
		task := command("t", "sleep")
		task.HealthCheck, task.Check = commandHealth(nil), commandCheck()
		task.Check.DelaySeconds = new(300.0)
		w.launch(checkpointed("F"), task)
		time.Sleep(46 * time.Second) // at 45 the third failure hangs
		w.crash()
		s.mu.Lock()
		s.words, s.runs = []string{"2"}, nil
		s.mu.Unlock()
		time.Sleep(time.Minute)
		w.start()
		w.master.await(t, "t", mesosv1.TaskState_TASK_KILLED)
		equal(t, "updates", reports(w.master, "t"), []string{
			"0 RUNNING command=", "15 RUNNING health healthy=true command=", "25 RUNNING health healthy=false command=",
			"35 RUNNING health healthy=false command=", "106 RUNNING health healthy=false command=", "106 KILLED healthy=false command=",
		})
	})
}

func TestWhatATaskWasKilledForIsKnownAfterTheAgentsRestart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		s := &script{words: []string{"1"}}
		w.host.launches = s.launch
		w.start()
		task := command("t", "stubborn")
		task.HealthCheck = commandHealth(nil)
		task.KillPolicy = &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: new(int64(20 * time.Second))}}
		w.launch(checkpointed("F"), task)
		time.Sleep(40 * time.Second) // killed at 35
		w.crash()
		w.start()
		if last := w.master.await(t, "t", mesosv1.TaskState_TASK_KILLED).GetStatus(); last.Healthy == nil || last.GetHealthy() || last.Reason != nil {
			t.Errorf("TASK_KILLED = %v, want healthy=false and no reason", last)
		}
		if n := len(s.ran()); n != 3 {
			t.Errorf("%d runs, want 3: a task that is being killed is not checked", n)
		}
	})
}

func TestADelayThatTheAgentsRestartInterruptsIsNotBegunAnew(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		s := &script{words: []string{"0"}}
		w.host.launches = s.launch
		w.start()
		task := command("t", "sleep")
		task.HealthCheck = commandHealth(func(h *mesosv1.HealthCheck) { h.DelaySeconds = new(60.0) })
		w.launch(checkpointed("F"), task)
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		time.Sleep(20 * time.Second)
		w.crash()
		w.start()
		time.Sleep(60 * time.Second)
		equal(t, "updates", reports(w.master, "t"), []string{"0 RUNNING", "60 RUNNING health healthy=true"})
	})
}

func TestAHangingCheckHarmsOnlyItself(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.config.Resources = "cpus:1000;mem:100000;disk:1000"
		var quick atomic.Int32
		w.host.launches = func(_ context.Context, c *containerv1.Container) error {
			if c.GetClass() != containerv1.Container_DEBUG {
				return nil
			}
			c.Command.Value = new("sleep")
			if c.GetTaskId() == "quick" {
				quick.Add(1)
				c.Command.Value = new("exit 0")
			}
			return nil
		}
		w.start()
		for i := range 10 {
			task := command(fmt.Sprint("hangs", i), "sleep")
			task.HealthCheck = commandHealth(func(h *mesosv1.HealthCheck) { h.TimeoutSeconds = new(0.0) })
			w.launch(checkpointed("F"), task)
		}
		task := command("quick", "sleep")
		task.HealthCheck = commandHealth(func(h *mesosv1.HealthCheck) { h.DelaySeconds = new(15.1) })
		w.launch(checkpointed("F"), task)
		time.Sleep(time.Minute)
		if n := quick.Load(); n < 4 {
			t.Errorf("the quick check ran %d times in a minute beside ten that hang, want at least 4", n)
		}
		for i := range 10 {
			if all := reports(w.master, fmt.Sprint("hangs", i)); len(all) != 1 {
				t.Errorf("updates of a task whose check hangs = %v, want TASK_RUNNING alone", all)
			}
		}
		w.kill("hangs0")
		w.master.await(t, "hangs0", mesosv1.TaskState_TASK_KILLED)
	})
}

func TestResultsDoNotPileUpWhileNobodyAcknowledges(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		s := &script{}
		for i := range 4 * maxPendingReports {
			s.words = append(s.words, fmt.Sprint(i%2))
		}
		s.words = append(s.words, "7")
		w.host.launches = s.launch
		w.start()
		task := command("t", "sleep")
		task.Check = commandCheck()
		task.Check.IntervalSeconds = new(1.0)
		w.launch(checkpointed("F"), task)
		time.Sleep(5 * maxPendingReports * time.Second)
		synctest.Wait()
		if n := w.records()[string(bucketUpdates)]; n != maxPendingReports {
			t.Errorf("%d updates are kept, want %d", n, maxPendingReports)
		}
		w.master.mu.Lock()
		w.master.autoAck = true
		w.master.mu.Unlock()
		w.master.ack(t, w.master.updates("t")[0])
		w.master.wait(t, "the newest result", func() bool {
			all := w.master.updatesLocked("t")
			return all[len(all)-1].GetStatus().GetCheckStatus().GetCommand().GetExitCode() == 7
		})
	})
}

func TestResultsOfChecksReadAsMesosSays(t *testing.T) {
	for name, test := range map[string]struct {
		r    result
		kind mesosv1.CheckInfo_Type
		want string
	}{
		"exit code":            {result{exit: new(int32(3))}, mesosv1.CheckInfo_COMMAND, `type:COMMAND command:{exit_code:3}`},
		"no exit code":         {result{err: errors.New("x")}, mesosv1.CheckInfo_COMMAND, `type:COMMAND command:{}`},
		"status code":          {result{code: new(uint32(404))}, mesosv1.CheckInfo_HTTP, `type:HTTP http:{status_code:404}`},
		"no status code":       {result{}, mesosv1.CheckInfo_HTTP, `type:HTTP http:{}`},
		"connection":           {result{connected: new(true)}, mesosv1.CheckInfo_TCP, `type:TCP tcp:{succeeded:true}`},
		"connection refused":   {result{connected: new(false)}, mesosv1.CheckInfo_TCP, `type:TCP tcp:{succeeded:false}`},
		"neither of the three": {result{}, mesosv1.CheckInfo_UNKNOWN, `type:UNKNOWN`},
	} {
		if got := strings.Join(strings.Fields(test.r.status(test.kind).String()), " "); got != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
}

func TestCustomExecutorsDoTheirOwnChecks(t *testing.T) {
	task := &task{executor: &executor{}, info: &mesosv1.TaskInfo{HealthCheck: commandHealth(nil), Check: commandCheck()}}
	if list := checkersOf(task); len(list) > 0 {
		t.Errorf("checks of a custom executor's task = %v, want none of the agent's", list)
	}
	s := &mesosv1.TaskStatus{State: mesosv1.TaskState_TASK_RUNNING.Enum(), Source: mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum()}
	if task.carryChecks(s); s.CheckStatus != nil || s.Healthy != nil {
		t.Errorf("status of a custom executor's task = %v, want it as the executor sent it", s)
	}
}

func TestTimesOfChecksAreBounded(t *testing.T) {
	for in, want := range map[float64]time.Duration{
		0: 0, -1: 0, 0.5: 500 * time.Millisecond, 15: 15 * time.Second, 1e300: maxCheckTime, math.Inf(1): maxCheckTime, math.NaN(): 0,
	} {
		if got := checkTime(in); got != want {
			t.Errorf("checkTime(%v) = %v, want %v", in, got, want)
		}
	}
}
