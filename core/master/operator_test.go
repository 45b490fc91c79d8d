package master

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

func TestOperatorStreamTellsWhatHappensAfterTheState(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		stream := newRecorder[*masterv1.Event]()
		if err := c.m.OperatorSubscribe(context.Background(), "", stream); err != nil {
			t.Fatalf("OperatorSubscribe: %v", err)
		}
		c.settle()
		first := one(t, "events", stream.take()).GetSubscribed()
		if first.GetHeartbeatIntervalSeconds() != 15 || len(first.GetGetState().GetGetAgents().GetAgents()) != 1 {
			t.Errorf("SUBSCRIBED = %v, want 15 s and one agent", first)
		}
		b := c.agentAt("other.example", 7, "cpus:1;mem:10")
		f, events := c.framework(frameworkInfo())
		for _, o := range offers(events) {
			if o.GetAgentId().GetValue() == b.id() {
				f.ack(one(t, "updates", updates(f.launch(o, commandTask("t1", o, "cpus:1;mem:10")))))
			}
		}
		b.set(f, "t1", mesosv1.TaskState_TASK_FINISHED)
		f.stream.Close()
		c.settle()
		f.subscribe()
		f.call(&schedulerv1.Call{Type: schedulerv1.Call_TEARDOWN.Enum()})
		b.disconnect()
		c.pass(2 * time.Minute)
		var got []string
		for _, e := range stream.take() {
			text := e.GetType().String()
			if u := e.GetTaskUpdated(); u != nil {
				text += " " + u.GetState().String()
			}
			got = append(got, text)
		}
		want := "AGENT_ADDED FRAMEWORK_ADDED TASK_ADDED TASK_UPDATED TASK_RUNNING TASK_UPDATED TASK_FINISHED" +
			" FRAMEWORK_UPDATED FRAMEWORK_UPDATED FRAMEWORK_REMOVED AGENT_REMOVED"
		if s := strings.Join(got, " "); s != want {
			t.Errorf("events = %s, want %s", s, want)
		}
	})
}

func TestOldestOperatorStreamGivesWayToANewOne(t *testing.T) {
	inBubble(t, Config{MaxOperatorEventStreamSubscribers: 2}, Deps{}, func(t *testing.T, c *cluster) {
		var streams []*recorder[*masterv1.Event]
		for range 3 {
			s := newRecorder[*masterv1.Event]()
			streams = append(streams, s)
			if err := c.m.OperatorSubscribe(context.Background(), "", s); err != nil {
				t.Fatalf("OperatorSubscribe: %v", err)
			}
			c.settle()
		}
		if !streams[0].closed() || streams[1].closed() || streams[2].closed() {
			t.Errorf("closed = %v %v %v, want the oldest only", streams[0].closed(), streams[1].closed(), streams[2].closed())
		}
	})
}

func TestWeightsAreKeptAndSurviveTheMaster(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		set := func(role string, w float64) error {
			_, err := c.m.OperatorCall(context.Background(), "", &masterv1.Call{Type: masterv1.Call_UPDATE_WEIGHTS.Enum(),
				UpdateWeights: &masterv1.Call_UpdateWeights{WeightInfos: []*mesosv1.WeightInfo{{Role: &role, Weight: &w}}}})
			return err
		}
		for _, bad := range []float64{0, -1, math.NaN(), math.Inf(1)} {
			if err := set("eng", bad); statusOf(err) != 400 {
				t.Errorf("weight %v = %v, want a 400", bad, err)
			}
		}
		if err := set("eng", 3); err != nil {
			t.Fatalf("UPDATE_WEIGHTS: %v", err)
		}
		if w := one(t, "weights", c.get(masterv1.Call_GET_WEIGHTS).GetGetWeights().GetWeightInfos()); w.GetRole() != "eng" || w.GetWeight() != 3 {
			t.Errorf("weight = %v, want eng 3", w)
		}
		if r := one(t, "roles", c.get(masterv1.Call_GET_ROLES).GetGetRoles().GetRoles()); r.GetName() != "eng" || r.GetWeight() != 3 {
			t.Errorf("role = %v, want eng 3", r)
		}
		f, _ := c.framework(frameworkInfo("eng"))
		g, _ := c.framework(frameworkInfo("ops"))
		for i := range 8 {
			c.agentAt("agent.example", int32(6000+i), "cpus:1;mem:100")
		}
		c.pass(2 * time.Second)
		if nf, ng := len(offers(f.stream.take())), len(offers(g.stream.take())); nf != 6 || ng != 2 {
			t.Errorf("offers = %d and %d, want 6 and 2 for weights 3 and 1", nf, ng)
		}
		next := startCluster(t, Config{ID: "N"}, Deps{Registry: c.registry})
		defer next.stop()
		if w := one(t, "weights at the next master", next.get(masterv1.Call_GET_WEIGHTS).GetGetWeights().GetWeightInfos()); w.GetWeight() != 3 {
			t.Errorf("weight = %v, want 3", w)
		}
		if err := <-c.ended; err != ErrLeadershipLost {
			t.Errorf("Run of the first master = %v, want ErrLeadershipLost", err)
		}
		c.ended <- nil
	})
}

func TestEveryOtherReadAnswersAndUnknownCallsAreNotImplemented(t *testing.T) {
	cfg := Config{Flags: map[string]string{"work_dir": "/var"}, Version: "1.12.0"}
	inBubble(t, cfg, Deps{}, func(t *testing.T, c *cluster) {
		if !c.get(masterv1.Call_GET_HEALTH).GetGetHealth().GetHealthy() {
			t.Error("not healthy")
		}
		if v := c.get(masterv1.Call_GET_VERSION).GetGetVersion().GetVersionInfo().GetVersion(); v != "1.12.0" {
			t.Errorf("version = %q", v)
		}
		if f := one(t, "flags", c.get(masterv1.Call_GET_FLAGS).GetGetFlags().GetFlags()); f.GetName() != "work_dir" || f.GetValue() != "/var" {
			t.Errorf("flag = %v", f)
		}
		if m := c.get(masterv1.Call_GET_MASTER).GetGetMaster(); m.GetMasterInfo().GetId() != "M" || m.GetElectedTime() == 0 {
			t.Errorf("GET_MASTER = %v", m)
		}
		metrics := map[string]float64{}
		for _, m := range c.get(masterv1.Call_GET_METRICS).GetGetMetrics().GetMetrics() {
			metrics[m.GetName()] = m.GetValue()
		}
		if metrics["master/elected"] != 1 || metrics["master/slave_registrations"] != 0 {
			t.Errorf("metrics = %v", metrics)
		}
		for _, x := range []masterv1.Call_Type{masterv1.Call_UNKNOWN, masterv1.Call_LIST_FILES} {
			if _, err := c.m.OperatorCall(context.Background(), "", &masterv1.Call{Type: x.Enum()}); statusOf(err) != 501 {
				t.Errorf("%s = %v, want a 501", x, err)
			}
		}
	})
}

// legacy reads an older endpoint.
func (c *cluster) legacy(endpoint, query string) map[string]any {
	c.Helper()
	q, err := url.ParseQuery(query)
	if err != nil {
		c.Fatal(err)
	}
	body, err := c.m.Legacy(context.Background(), "", endpoint, q)
	if err != nil {
		c.Fatalf("Legacy %s: %v", endpoint, err)
	}
	var out map[string]any
	if err := json.Unmarshal(body, &out); err != nil {
		c.Fatalf("Legacy %s: %v in %s", endpoint, err, body)
	}
	return out
}

// at follows keys and indices into decoded JSON.
func at(t testing.TB, v any, path ...any) any {
	t.Helper()
	for i, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			x, ok := m[p]
			if !ok {
				t.Fatalf("no %v in %v", path[:i+1], v)
			}
			v = x
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				t.Fatalf("no %v in %v", path[:i+1], v)
			}
			v = l[p]
		}
	}
	return v
}

func TestLegacyBodiesHaveWhatToolsRead(t *testing.T) {
	inBubble(t, Config{Flags: map[string]string{"port": "5050"}, Cluster: "test"}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024;ports:[31000-31009];cpus(eng):1")
		info := frameworkInfo("eng")
		info.Principal = ptr("ann")
		f, events := c.framework(info)
		o := one(t, "offers", offers(events))
		task := commandTask("t1", o, "cpus:1;mem:32;ports:[31001-31002]")
		task.Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: ptr("k"), Value: ptr("v\n\"")}}}
		task.Limits = map[string]*mesosv1.Value_Scalar{"cpus": {Value: ptr(2.0)}}
		task.Discovery = &mesosv1.DiscoveryInfo{Visibility: mesosv1.DiscoveryInfo_CLUSTER.Enum(), Name: ptr("web")}
		f.launch(o, task)

		for _, test := range []struct {
			endpoint, query string
			path            []any
			want            any
		}{
			{"/state", "", []any{"leader"}, "master@127.0.0.1:5050"},
			{"/state", "", []any{"pid"}, "master@127.0.0.1:5050"},
			{"/state", "", []any{"cluster"}, "test"},
			{"/state", "", []any{"flags", "port"}, "5050"},
			{"/state", "", []any{"leader_info", "hostname"}, "master.example"},
			{"/state", "", []any{"activated_slaves"}, 1.0},
			{"/state", "", []any{"slaves", 0, "pid"}, "slave(1)@agent.example:5051"},
			{"/state", "", []any{"slaves", 0, "resources", "cpus"}, 5.0},
			{"/state", "", []any{"slaves", 0, "used_resources", "cpus"}, 1.0},
			{"/state", "", []any{"slaves", 0, "used_resources", "disk"}, 0.0},
			{"/state", "", []any{"slaves", 0, "reserved_resources", "eng", "cpus"}, 1.0},
			{"/state", "", []any{"slaves", 0, "unreserved_resources", "cpus"}, 4.0},
			{"/state", "", []any{"frameworks", 0, "tasks", 0, "id"}, "t1"},
			{"/state", "", []any{"frameworks", 0, "tasks", 0, "state"}, "TASK_RUNNING"},
			{"/state", "", []any{"frameworks", 0, "tasks", 0, "slave_id"}, a.id()},
			{"/state", "", []any{"frameworks", 0, "tasks", 0, "resources", "ports"}, "[31001-31002]"},
			{"/state", "", []any{"frameworks", 0, "tasks", 0, "limits", "cpus"}, 2.0},
			{"/state", "", []any{"frameworks", 0, "tasks", 0, "role"}, "eng"},
			{"/state", "", []any{"frameworks", 0, "tasks", 0, "labels", 0, "value"}, "v\n\""},
			{"/state", "", []any{"frameworks", 0, "tasks", 0, "discovery", "name"}, "web"},
			{"/state", "", []any{"frameworks", 0, "tasks", 0, "statuses", 0, "state"}, "TASK_RUNNING"},
			{"/state", "", []any{"frameworks", 0, "tasks", 0, "statuses", 0, "container_status", "container_id", "value"}, "c-t1"},
			{"/state", "", []any{"frameworks", 0, "roles", 0}, "eng"},
			{"/state", "", []any{"frameworks", 0, "used_resources", "mem"}, 32.0},
			{"/state", "", []any{"frameworks", 0, "principal"}, "ann"},
			{"/state", "", []any{"orphan_tasks"}, []any{}},
			{"/slaves", "slave_id=" + a.id(), []any{"slaves", 0, "used_resources_full", 0, "name"}, "cpus"},
			{"/slaves", "slave_id=nobody", []any{"slaves"}, []any{}},
			{"/frameworks", "framework_id=" + f.id, []any{"frameworks", 0, "name"}, "f"},
			{"/frameworks", "framework_id=nobody", []any{"frameworks"}, []any{}},
			{"/tasks", "", []any{"tasks", 0, "name"}, "t1"},
			{"/tasks", "offset=1", []any{"tasks"}, []any{}},
			{"/tasks", "task_id=other", []any{"tasks"}, []any{}},
			{"/roles", "", []any{"roles", 0, "name"}, "eng"},
			{"/roles", "", []any{"roles", 0, "allocated", "cpus"}, 1.0},
			{"/roles", "", []any{"roles", 0, "reserved", "cpus"}, 1.0},
			{"/roles", "", []any{"roles", 0, "frameworks", 0}, f.id},
			{"/state-summary", "", []any{"slaves", 0, "TASK_RUNNING"}, 1.0},
			{"/state-summary", "", []any{"slaves", 0, "framework_ids", 0}, f.id},
			{"/state-summary", "", []any{"frameworks", 0, "slave_ids", 0}, a.id()},
			{"/flags", "", []any{"flags", "port"}, "5050"},
			{"/metrics/snapshot", "", []any{"master/tasks_running"}, 1.0},
			{"/metrics/snapshot", "", []any{"master/slaves_active"}, 1.0},
			{"/metrics/snapshot", "", []any{"master/cpus_used"}, 1.0},
			{"/metrics/snapshot", "", []any{"master/cpus_percent"}, 0.2},
			{"/metrics/snapshot", "", []any{"master/messages_launch_tasks"}, 1.0},
		} {
			got := at(t, c.legacy(test.endpoint, test.query), test.path...)
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("%s?%s %v = %v, want %v", test.endpoint, test.query, test.path, got, test.want)
			}
		}
		for _, bad := range []string{"limit=x", "offset=-1"} {
			q, _ := url.ParseQuery(bad)
			if _, err := c.m.Legacy(context.Background(), "", "/tasks", q); statusOf(err) != 400 {
				t.Errorf("/tasks?%s = %v, want a 400", bad, err)
			}
		}
		if _, err := c.m.Legacy(context.Background(), "", "/nothing", nil); statusOf(err) != 404 {
			t.Errorf("/nothing = %v, want a 404", err)
		}
	})
}

func TestCompletedAndOfferedShowInStates(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo("eng"))
		one(t, "offers", offers(events))
		if x := one(t, "frameworks", c.get(masterv1.Call_GET_STATE).GetGetState().GetGetFrameworks().GetFrameworks()); len(x.GetOffers()) != 1 || len(x.GetOfferedResources()) != 2 {
			t.Errorf("framework = %v, want its offer", x)
		}
		if got := at(t, c.legacy("/state", ""), "frameworks", 0, "offers", 0, "resources", "cpus"); got != 4.0 {
			t.Errorf("offered cpus = %v, want 4", got)
		}
		f.call(&schedulerv1.Call{Type: schedulerv1.Call_TEARDOWN.Enum()})
		if x := one(t, "completed frameworks", c.get(masterv1.Call_GET_FRAMEWORKS).GetGetFrameworks().GetCompletedFrameworks()); x.GetActive() || x.UnregisteredTime == nil {
			t.Errorf("framework = %v, want it inactive with an unregistered_time", x)
		}
		if got := at(t, c.legacy("/state", ""), "completed_frameworks", 0, "id"); got != f.id {
			t.Errorf("completed framework = %v, want %s", got, f.id)
		}
	})
}

func TestEncodedReadsAreWhatTheMessagesEncodeTo(t *testing.T) {
	m := bigState(t, 3, 5)
	gone := m.s.agents["M-S2"]
	m.s.removeAgent(gone, removal{state: mesosv1.TaskState_TASK_UNREACHABLE, reason: mesosv1.TaskStatus_REASON_AGENT_REMOVED,
		unreachable: time.Unix(1e9, 0), metric: &m.metrics.removedUnhealthy}, time.Unix(1e9, 0))
	m.view.Store(m.s.views.publish())
	for _, x := range []masterv1.Call_Type{masterv1.Call_GET_STATE, masterv1.Call_GET_TASKS} {
		call := &masterv1.Call{Type: x.Enum()}
		r, err := m.OperatorCall(context.Background(), "", call)
		if err != nil {
			t.Fatalf("OperatorCall %s: %v", x, err)
		}
		want, err := r.MarshalVT()
		if err != nil {
			t.Fatalf("MarshalVT: %v", err)
		}
		got, ok, err := m.OperatorEncoded(context.Background(), "", call, false)
		if err != nil || !ok || string(got) != string(want) {
			t.Errorf("OperatorEncoded %s in protobuf = %d bytes, %v, %v; want the %d bytes that the message encodes to", x, len(got), ok, err, len(want))
		}
		got, ok, err = m.OperatorEncoded(context.Background(), "", call, true)
		if err != nil || !ok || string(got) != string(r.AppendJSON(nil)) {
			t.Errorf("OperatorEncoded %s in JSON = %s, %v, %v; want %s", x, got, ok, err, r.AppendJSON(nil))
		}
	}
	if _, ok, err := m.OperatorEncoded(context.Background(), "", &masterv1.Call{Type: masterv1.Call_GET_ROLES.Enum()}, true); ok || err != nil {
		t.Errorf("OperatorEncoded GET_ROLES = %v, %v, want it left to OperatorCall", ok, err)
	}
}

func TestViewIsTheSameWhileNothingHappens(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		c.pass(time.Second)
		before := c.m.view.Load()
		c.pass(time.Minute)
		if c.m.view.Load() != before {
			t.Error("the view was made anew in a minute without events")
		}
		c.framework(frameworkInfo())
		if c.m.view.Load() == before {
			t.Error("the view is the same after a framework came")
		}
	})
}

func TestPrometheusGetsTheSameMetrics(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		r := prometheus.NewPedanticRegistry()
		if err := r.Register(c.m.Collector()); err != nil {
			t.Fatalf("Register: %v", err)
		}
		families, err := r.Gather()
		if err != nil {
			t.Fatalf("Gather: %v", err)
		}
		for _, f := range families {
			if f.GetName() == "mosaic_master_slaves_active" {
				if v := f.GetMetric()[0].GetUntyped().GetValue(); v != 1 {
					t.Errorf("mosaic_master_slaves_active = %v, want 1", v)
				}
				return
			}
		}
		t.Error("there is no mosaic_master_slaves_active")
	})
}
