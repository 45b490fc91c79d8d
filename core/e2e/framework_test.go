package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	"github.com/mosaic-cluster/mosaic/sdk/scheduler"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// jsonStream is a subscription made of net/http and encoding/json. Updates are acknowledged as they are read.
type jsonStream struct {
	t         *testing.T
	master    string
	id        string // Mesos-Stream-Id
	framework string
	resp      *http.Response
	r         *bufio.Reader
	passed    map[string][]object // events that came before what was waited for
}

// subscribeJSON subscribes; framework is empty for a new one.
func subscribeJSON(ctx context.Context, t *testing.T, master, framework string, info object) *jsonStream {
	t.Helper()
	call := object{"type": "SUBSCRIBE", "subscribe": object{"framework_info": info}}
	if framework != "" {
		info["id"] = object{"value": framework}
		call["framework_id"] = info["id"]
	}
	body, err := json.Marshal(call)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := post(ctx, master, "/api/v1/scheduler", "application/json", "", body)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("SUBSCRIBE answered %s: %s", resp.Status, text)
	}
	return &jsonStream{t: t, master: master, id: resp.Header.Get("Mesos-Stream-Id"), framework: framework, resp: resp, r: bufio.NewReader(resp.Body), passed: map[string][]object{}}
}

// call makes a call and returns status code and text.
func (s *jsonStream) call(ctx context.Context, kind string, content object) (int, string) {
	s.t.Helper()
	call := object{"type": kind, "framework_id": object{"value": s.framework}}
	if content != nil {
		call[strings.ToLower(kind)] = content
	}
	body, err := json.Marshal(call)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := post(ctx, s.master, "/api/v1/scheduler", "application/json", s.id, body)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

// must makes a call that the master takes.
func (s *jsonStream) must(ctx context.Context, kind string, content object) {
	s.t.Helper()
	if code, text := s.call(ctx, kind, content); code != http.StatusAccepted {
		s.t.Fatalf("%s answered %d: %s, want 202", kind, code, text)
	}
}

// next is the next event of a kind that nobody has asked for; an error says that the stream has ended.
func (s *jsonStream) next(ctx context.Context, kind string) (object, error) {
	s.t.Helper()
	if list := s.passed[kind]; len(list) > 0 {
		s.passed[kind] = list[1:]
		return list[0], nil
	}
	for {
		record, err := readRecord(s.r)
		if err != nil {
			return nil, fmt.Errorf("wait for %s: %w", kind, err)
		}
		var event object
		if err := json.Unmarshal(record, &event); err != nil {
			return nil, err
		}
		if event["type"] == "SUBSCRIBED" {
			s.framework, _ = dig(event, "subscribed", "framework_id", "value").(string)
		}
		if status := dig(event, "update", "status"); status != nil && dig(status, "uuid") != nil {
			s.must(ctx, "ACKNOWLEDGE", object{"agent_id": dig(status, "agent_id"), "task_id": dig(status, "task_id"), "uuid": dig(status, "uuid")})
		}
		if event["type"] == kind {
			return event, nil
		}
		passed, _ := event["type"].(string)
		s.passed[passed] = append(s.passed[passed], event)
	}
}

// want is the next event of a kind, which must come.
func (s *jsonStream) want(ctx context.Context, kind string) object {
	s.t.Helper()
	event, err := s.next(ctx, kind)
	if err != nil {
		s.t.Fatal(err)
	}
	return event
}

// launchJSON runs a command with the next offer and waits for TASK_RUNNING. The command's pid is returned.
func (s *jsonStream) launchJSON(ctx context.Context, name string) int {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), name)
	offer := dig(s.want(ctx, "OFFERS"), "offers", "offers", "0")
	s.must(ctx, "ACCEPT", object{"offer_ids": []any{dig(offer, "id")}, "operations": []any{object{
		"type": "LAUNCH", "launch": object{"task_infos": []any{object{
			"name": name, "task_id": object{"value": name}, "agent_id": dig(offer, "agent_id"),
			"command": object{"value": fmt.Sprintf("echo $$ >%s.tmp; mv %[1]s.tmp %[1]s; exec sleep 1000", file)},
			"resources": []any{
				object{"name": "cpus", "type": "SCALAR", "scalar": object{"value": 0.1}}, object{"name": "mem", "type": "SCALAR", "scalar": object{"value": 32}},
			},
		}}},
	}}})
	for dig(s.want(ctx, "UPDATE"), "update", "status", "state") != "TASK_RUNNING" {
	}
	var pid int
	eventually(s.t, "the task's pid", 5*time.Second, func() bool {
		data, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		_, err = fmt.Sscan(string(data), &pid)
		return err == nil
	})
	return pid
}

func jsonFramework(name string, failover float64) object {
	return object{
		"user": currentUser(), "name": name, "failover_timeout": failover, "checkpoint": true,
		"capabilities": []any{object{"type": "PARTITION_AWARE"}},
	}
}

// currentUser is who runs the test: an agent of an ordinary user runs tasks of nobody else.
func currentUser() string {
	u, err := user.Current()
	if err != nil {
		return "root"
	}
	return u.Username
}

func TestASchedulerThatTakesOverFindsItsTasks(t *testing.T) {
	c := start(t, cluster.Options{Dev: true, Composition: hostPids})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	old := subscribeJSON(ctx, t, c.Master, "", jsonFramework("failover", 60))
	old.want(ctx, "SUBSCRIBED")
	pid := old.launchJSON(ctx, "stays")

	// While the first is connected: the second takes over at once.
	second := subscribeJSON(ctx, t, c.Master, old.framework, jsonFramework("failover", 60))
	if e := second.want(ctx, "SUBSCRIBED"); dig(e, "subscribed", "framework_id", "value") != old.framework {
		t.Errorf("SUBSCRIBED as %v, want %s", dig(e, "subscribed", "framework_id"), old.framework)
	}
	if e := old.want(ctx, "ERROR"); !strings.Contains(fmt.Sprint(dig(e, "error", "message")), "Framework failed over") {
		t.Errorf("old stream got %v, want ERROR Framework failed over", e)
	}
	if e, err := old.next(ctx, "anything"); !errors.Is(err, io.EOF) {
		t.Errorf("old stream after ERROR: %v, %v; want its end", e, err)
	}
	if code, text := old.call(ctx, "REVIVE", nil); code != http.StatusBadRequest {
		t.Errorf("REVIVE with the old stream's id answered %d %s, want 400", code, text)
	}

	// A stream that breaks, as with kill -9: the third comes within the failover timeout.
	second.resp.Body.Close()
	third := subscribeJSON(ctx, t, c.Master, old.framework, jsonFramework("failover", 60))
	third.want(ctx, "SUBSCRIBED")
	third.must(ctx, "RECONCILE", object{"tasks": []any{}})
	status := dig(third.want(ctx, "UPDATE"), "update", "status")
	if dig(status, "task_id", "value") != "stays" || dig(status, "state") != "TASK_RUNNING" || dig(status, "reason") != "REASON_RECONCILIATION" || dig(status, "uuid") != nil {
		t.Errorf("implicit reconciliation gave %v, want TASK_RUNNING of the task without a uuid", status)
	}
	if !alive(pid) {
		t.Error("the task did not survive the failovers")
	}
	third.want(ctx, "OFFERS") // what the others were offered is offered again
	third.must(ctx, "TEARDOWN", nil)
	eventually(t, "the task's end", 20*time.Second, func() bool { return !alive(pid) })
}

func TestAFrameworkThatStaysAwayIsRemovedWithItsTasks(t *testing.T) {
	c := start(t, cluster.Options{Dev: true, Composition: hostPids})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := subscribeJSON(ctx, t, c.Master, "", jsonFramework("leaves", 1))
	s.want(ctx, "SUBSCRIBED")
	pid := s.launchJSON(ctx, "ends")
	s.resp.Body.Close()
	eventually(t, "the task's end after the failover timeout", 20*time.Second, func() bool { return !alive(pid) })
	eventually(t, "the framework is completed", 10*time.Second, func() bool {
		r := mosaic(t, c, 0, "framework", "ls", "--all")
		return strings.Contains(r.Stdout, "completed") && strings.Contains(r.Stdout, s.framework)
	})
	if r := mosaic(t, c, 0, "framework", "ls"); strings.Contains(r.Stdout, s.framework) {
		t.Errorf("framework ls:\n%s\nwant it without the one that was removed", r.Stdout)
	}
	again := subscribeJSON(ctx, t, c.Master, s.framework, jsonFramework("leaves", 1))
	if e := again.want(ctx, "ERROR"); !strings.Contains(fmt.Sprint(dig(e, "error", "message")), "Framework has been removed") {
		t.Errorf("subscribing again: %v, want ERROR Framework has been removed", e)
	}
}

func TestKillingMosaicRunEndsItsTask(t *testing.T) {
	c := start(t, cluster.Options{Dev: true, Composition: hostPids})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	file := filepath.Join(t.TempDir(), "pid")
	cmd := c.Command(ctx, "run", "--shell", "--", "echo $$ >"+file+".tmp; mv "+file+".tmp "+file+"; exec sleep 1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	eventually(t, "the task runs", 10*time.Second, func() bool {
		data, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		_, err = fmt.Sscan(string(data), &pid)
		return err == nil
	})
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	eventually(t, "the task ends with its framework", 10*time.Second, func() bool { return !alive(pid) })
}

func TestTeardownEndsTheTasksAndTheFramework(t *testing.T) {
	c := start(t, cluster.Options{Dev: true, Composition: hostPids})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	fl := launchFleet(ctx, t, c, 3, func(int) string { return "sleep 1000" })
	pids := fl.pids(t)
	id := fl.Client().FrameworkID().GetValue()
	if err := fl.Client().Teardown(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all tasks end", 20*time.Second, func() bool {
		for _, pid := range pids {
			if alive(pid) {
				return false
			}
		}
		return true
	})
	eventually(t, "tasks and framework are over", 10*time.Second, func() bool {
		return strings.Count(mosaic(t, c, 0, "task", "ls", "--all").Stdout, "TASK_KILLED") == 3 &&
			strings.Contains(mosaic(t, c, 0, "framework", "ls", "--all").Stdout, "completed")
	})
	// The client subscribes again when its stream ends, and learns that this is for good.
	var fatal *scheduler.FatalError
	if err := fl.Ended(ctx); !errors.As(err, &fatal) || !strings.Contains(fatal.Message, "removed") {
		t.Errorf("framework %s ended with %v, want ERROR Framework has been removed", id, err)
	}
	var refused *scheduler.StatusError
	if err := fl.Client().Revive(ctx); !errors.Is(err, scheduler.ErrNotSubscribed) && !errors.As(err, &refused) {
		t.Errorf("REVIVE after TEARDOWN = %v, want a refusal", err)
	}
}

func TestReconciliationTellsWhatIsKnown(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, test := range []struct {
		name  string
		aware bool
		want  map[string]mesosv1.TaskState
	}{
		{"partition-aware", true, map[string]mesosv1.TaskState{
			"runs": mesosv1.TaskState_TASK_RUNNING, "never-here": mesosv1.TaskState_TASK_GONE, "nowhere": mesosv1.TaskState_TASK_UNKNOWN,
		}},
		{"not aware", false, map[string]mesosv1.TaskState{
			"runs": mesosv1.TaskState_TASK_RUNNING, "never-here": mesosv1.TaskState_TASK_LOST, "nowhere": mesosv1.TaskState_TASK_LOST,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			info := &mesosv1.FrameworkInfo{Name: &test.name, User: proto.String(currentUser()), Checkpoint: proto.Bool(true)}
			if test.aware {
				info.Capabilities = []*mesosv1.FrameworkInfo_Capability{{Type: mesosv1.FrameworkInfo_Capability_PARTITION_AWARE.Enum()}}
			}
			f, err := cluster.SubscribeAs(ctx, c.Master, info)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := f.Teardown(ctx); err != nil {
					t.Error(err)
				}
			}()
			o, err := f.Offer(ctx, 0.1, 32)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Launch(ctx, o, cluster.Task(o, "runs", 0.1, 32, cluster.Exec("sleep", "1000"))); err != nil {
				t.Fatal(err)
			}
			if _, err := f.State(ctx, []string{"runs"}, mesosv1.TaskState_TASK_RUNNING); err != nil {
				t.Fatal(err)
			}
			ask := func(id, agent string) *schedulerv1.Call_Reconcile_Task {
				return &schedulerv1.Call_Reconcile_Task{TaskId: &mesosv1.TaskID{Value: &id}, AgentId: &mesosv1.AgentID{Value: &agent}}
			}
			here := o.GetAgentId().GetValue()
			err = f.Client().Call(ctx, &schedulerv1.Call{Type: schedulerv1.Call_RECONCILE.Enum(), Reconcile: &schedulerv1.Call_Reconcile{
				Tasks: []*schedulerv1.Call_Reconcile_Task{ask("runs", here), ask("never-here", here), ask("nowhere", "no-such-agent")},
			}})
			if err != nil {
				t.Fatal(err)
			}
			reconciled := func(id string) *mesosv1.TaskStatus {
				var last *mesosv1.TaskStatus
				eventually(t, "an answer about "+id, 10*time.Second, func() bool {
					for _, u := range f.Updates(id) {
						if u.Status.GetReason() == mesosv1.TaskStatus_REASON_RECONCILIATION {
							last = u.Status
						}
					}
					return last != nil
				})
				return last
			}
			for id, want := range test.want {
				s := reconciled(id)
				if s.GetState() != want || s.GetSource() != mesosv1.TaskStatus_SOURCE_MASTER || len(s.GetUuid()) != 0 {
					t.Errorf("%s: %v, want %s by the master without a uuid", id, s, want)
				}
			}
			before := len(f.Updates("runs"))
			if err := f.Client().Call(ctx, &schedulerv1.Call{Type: schedulerv1.Call_RECONCILE.Enum(), Reconcile: &schedulerv1.Call_Reconcile{}}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the implicit answer", 10*time.Second, func() bool { return len(f.Updates("runs")) == before+1 })
			if n := len(f.Updates("never-here")); n != 1 {
				t.Errorf("never-here has %d updates, want the explicit one only", n)
			}
		})
	}
}

// allocations is how often the master has allocated.
func allocations(ctx context.Context, t *testing.T, master string) float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+master+"/metrics/snapshot", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var m map[string]float64
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		t.Fatalf("metrics of the master: %v", err)
	}
	n, ok := m["allocator/mesos/allocation_runs"]
	if !ok {
		t.Fatalf("metrics of the master have no allocator/mesos/allocation_runs")
	}
	return n
}

func TestFiltersAndSuppressionHoldOffersBack(t *testing.T) {
	c := prepare(t, cluster.Options{})
	file := filepath.Join(c.Dir, "master.hcl")
	if err := os.WriteFile(file, []byte("master {\n  allocation_interval = \"50ms\"\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.MasterArgs = []string{"--config", file}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	f, err := cluster.Subscribe(ctx, c.Master, "picky", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	take := func() []*mesosv1.OfferID {
		t.Helper()
		o, err := f.Offer(ctx, 4, 4096)
		if err != nil {
			t.Fatal(err)
		}
		return []*mesosv1.OfferID{o.GetId()}
	}
	// quiet waits for some rounds of the allocator, none of which may make an offer.
	quiet := func(why string) {
		t.Helper()
		begun := allocations(ctx, t, c.Master)
		eventually(t, "ten allocations", 20*time.Second, func() bool { return allocations(ctx, t, c.Master) >= begun+10 })
		if f.Offers() != 0 {
			t.Errorf("%s: %d offers, want none", why, f.Offers())
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	offer := take()
	must(f.Client().Decline(ctx, offer, time.Hour))
	quiet("declined for an hour")
	must(f.Client().Revive(ctx))
	offer = take()
	begun := time.Now()
	must(f.Client().Decline(ctx, offer, time.Second))
	offer = take()
	if d := time.Since(begun); d < 900*time.Millisecond {
		t.Errorf("declined for 1 s, offered again after %v", d)
	}
	must(f.Client().Suppress(ctx))
	must(f.Client().Decline(ctx, offer, 0))
	quiet("suppressed")
	must(f.Client().Revive(ctx))
	take()
}

func TestTwoFrameworksOfTwoRolesShareFairly(t *testing.T) {
	c := start(t, cluster.Options{Dev: true, Resources: "cpus:4;mem:4096;disk:1000"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const all = 20 // tasks that fit
	var frameworks []*cluster.Framework
	for _, role := range []string{"web", "batch"} {
		f, err := cluster.Subscribe(ctx, c.Master, role, role)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Disconnect()
		frameworks = append(frameworks, f)
	}
	// Each wants all there is and takes it task by task.
	launching, stop := context.WithCancel(ctx)
	defer stop()
	launched := make(chan int)
	failed := make(chan error, 2)
	for i, f := range frameworks {
		go func() {
			for n := 0; ; n++ {
				o, err := f.Offer(launching, 0.2, 32)
				if err == nil {
					err = f.Launch(launching, o, cluster.Task(o, fmt.Sprintf("task-%d-%d", i, n), 0.2, 32, cluster.Exec("sleep", "1000")))
				}
				if launching.Err() != nil {
					failed <- nil
					return
				}
				if err != nil {
					failed <- err
					return
				}
				select {
				case launched <- i:
				case <-launching.Done():
				}
			}
		}()
	}
	var count [2]int
	for count[0]+count[1] < all {
		select {
		case i := <-launched:
			count[i]++
		case err := <-failed:
			t.Fatal(err)
		case <-ctx.Done():
			t.Fatalf("%v tasks launched: %v", count, ctx.Err())
		}
	}
	stop()
	if d := math.Abs(float64(count[0] - count[1])); d > 2 {
		t.Errorf("the roles have %d and %d tasks, want about %d each", count[0], count[1], all/2)
	}
	for range frameworks {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	for i, f := range frameworks {
		var ids []string
		for n := range count[i] {
			ids = append(ids, fmt.Sprintf("task-%d-%d", i, n))
		}
		if _, err := f.State(ctx, ids, mesosv1.TaskState_TASK_RUNNING); err != nil {
			t.Error(err)
		}
	}
}

func TestTasksThatAreWrongAreErrors(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "wrong", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 1, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Launch(ctx, o, cluster.Task(o, "lives", 0.1, 32, cluster.Exec("sleep", "1000"))); err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(ctx, []string{"lives"}, mesosv1.TaskState_TASK_RUNNING); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*mesosv1.TaskInfo){
		"no resources":    func(t *mesosv1.TaskInfo) { t.Resources = nil },
		"more than there": func(t *mesosv1.TaskInfo) { t.Resources[0].Scalar.Value = proto.Float64(1000) },
		"negative":        func(t *mesosv1.TaskInfo) { t.Resources[0].Scalar.Value = proto.Float64(-1) },
		"another agent":   func(t *mesosv1.TaskInfo) { t.AgentId = &mesosv1.AgentID{Value: proto.String("elsewhere")} },
		"nothing to run":  func(t *mesosv1.TaskInfo) { t.Command = nil },
		"two to run": func(t *mesosv1.TaskInfo) {
			t.Executor = httpExecutor(o, "e", "/x")
		},
		"a slash in its id": func(t *mesosv1.TaskInfo) { t.TaskId = &mesosv1.TaskID{Value: proto.String("a/b")} },
		"a limit below its request": func(t *mesosv1.TaskInfo) {
			t.Limits = map[string]*mesosv1.Value_Scalar{"mem": {Value: proto.Float64(1)}}
		},
		"a limit of another kind": func(t *mesosv1.TaskInfo) {
			t.Limits = map[string]*mesosv1.Value_Scalar{"disk": {Value: proto.Float64(1000)}}
		},
		"a negative grace": func(t *mesosv1.TaskInfo) {
			t.KillPolicy = &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: proto.Int64(-1)}}
		},
	} {
		o, err := f.Offer(ctx, 1, 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		task := cluster.Task(o, strings.ReplaceAll(name, " ", "-"), 0.1, 32, cluster.Exec("true"))
		spoil(task)
		if err := f.Launch(ctx, o, task); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		id := task.GetTaskId().GetValue()
		got, err := f.State(ctx, []string{id}, mesosv1.TaskState_TASK_ERROR, mesosv1.TaskState_TASK_RUNNING, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_DROPPED)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		s := got[id].Status
		if s.GetState() != mesosv1.TaskState_TASK_ERROR || s.GetReason() != mesosv1.TaskStatus_REASON_TASK_INVALID ||
			s.GetSource() != mesosv1.TaskStatus_SOURCE_MASTER || s.GetMessage() == "" || len(s.GetUuid()) != 0 {
			t.Errorf("%s: %v; want TASK_ERROR, REASON_TASK_INVALID by the master, with a message and no uuid", name, s)
		}
	}
	// The id of a task that lives cannot be used again, and the task goes on.
	if o, err = f.Offer(ctx, 1, 64); err != nil {
		t.Fatal(err)
	}
	if err := f.Launch(ctx, o, cluster.Task(o, "lives", 0.1, 32, cluster.Exec("true"))); err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(ctx, []string{"lives"}, mesosv1.TaskState_TASK_ERROR); err != nil {
		t.Error(err)
	}
	if r := mosaic(t, c, 0, "task", "ls"); strings.Count(r.Stdout, "TASK_RUNNING") != 1 {
		t.Errorf("task ls:\n%s\nwant the one that lives", r.Stdout)
	}
}

func TestWhatIsLaunchedOnAnOldOfferIsDropped(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, aware := range map[string]bool{"partition-aware": true, "not aware": false} {
		info := &mesosv1.FrameworkInfo{Name: &name, User: proto.String(currentUser())}
		want := mesosv1.TaskState_TASK_LOST
		if aware {
			info.Capabilities = []*mesosv1.FrameworkInfo_Capability{{Type: mesosv1.FrameworkInfo_Capability_PARTITION_AWARE.Enum()}}
			want = mesosv1.TaskState_TASK_DROPPED
		}
		f, err := cluster.SubscribeAs(ctx, c.Master, info)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Disconnect()
		o, err := f.Offer(ctx, 1, 64)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Client().Decline(ctx, []*mesosv1.OfferID{o.GetId()}, time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := f.Launch(ctx, o, cluster.Task(o, "late", 0.1, 32, cluster.Exec("true"))); err != nil {
			t.Fatal(err)
		}
		got, err := f.State(ctx, []string{"late"}, want)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s := got["late"].Status; s.GetReason() != mesosv1.TaskStatus_REASON_INVALID_OFFERS || s.GetSource() != mesosv1.TaskStatus_SOURCE_MASTER {
			t.Errorf("%s: %v, want REASON_INVALID_OFFERS by the master", name, s)
		}
	}
}

func TestInvalidTasksInJSON(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := subscribeJSON(ctx, t, c.Master, "", jsonFramework("wrong", 0))
	s.want(ctx, "SUBSCRIBED")
	offer := dig(s.want(ctx, "OFFERS"), "offers", "offers", "0")
	task := func(id string) object {
		return object{
			"name": id, "task_id": object{"value": id}, "agent_id": dig(offer, "agent_id"), "command": object{"value": "true"},
			"data":      base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0, 255}, 10)),
			"resources": []any{object{"name": "cpus", "type": "SCALAR", "scalar": object{"value": 0.1}}, object{"name": "mem", "type": "SCALAR", "scalar": object{"value": 32}}},
		}
	}
	wrong := task("wrong")
	delete(wrong, "resources")
	launch := object{"offer_ids": []any{dig(offer, "id")}, "operations": []any{object{"type": "LAUNCH", "launch": object{"task_infos": []any{wrong, task("right")}}}}}
	s.must(ctx, "ACCEPT", launch)
	states := map[string]string{}
	for states["right"] != "TASK_FINISHED" || states["wrong"] == "" {
		status := dig(s.want(ctx, "UPDATE"), "update", "status")
		id, _ := dig(status, "task_id", "value").(string)
		states[id], _ = dig(status, "state").(string)
	}
	if states["wrong"] != "TASK_ERROR" {
		t.Errorf("states %v, want TASK_ERROR for the wrong one; the other is not held back by it", states)
	}
	// The same offer again is stale by now.
	launch["operations"] = []any{object{"type": "LAUNCH", "launch": object{"task_infos": []any{task("late")}}}}
	s.must(ctx, "ACCEPT", launch)
	status := dig(s.want(ctx, "UPDATE"), "update", "status")
	if dig(status, "task_id", "value") != "late" || dig(status, "state") != "TASK_DROPPED" || dig(status, "reason") != "REASON_INVALID_OFFERS" {
		t.Errorf("on a stale offer: %v, want TASK_DROPPED, REASON_INVALID_OFFERS", status)
	}
}
