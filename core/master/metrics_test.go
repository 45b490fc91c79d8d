package master

import (
	"fmt"
	"strings"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

func TestMetricsOfAFrameworkTellWhatItDid(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		info := frameworkInfo("eng/dev", "ops")
		info.Name, info.Principal = ptr("my framework/1"), ptr("p q")
		s, events := c.framework(info)
		all := offers(events)
		s.launch(all[0], commandTask("t1", all[0], "cpus:1;mem:32"), commandTask("t2", all[0], "cpus:1;mem:32"))
		a.set(s, "t1", mesosv1.TaskState_TASK_FINISHED)
		s.call(&schedulerv1.Call{Type: schedulerv1.Call_SUPPRESS.Enum(), Suppress: &schedulerv1.Call_Suppress{Roles: []string{"ops"}}})
		values := c.legacy("/metrics/snapshot", "")
		prefix := "master/frameworks/my%20framework%2F1/" + s.id + "/"
		for name, want := range map[string]float64{
			"subscribed":                   1,
			"calls":                        3,
			"calls/subscribe":              1,
			"calls/accept":                 1,
			"calls/suppress":               1,
			"calls/decline":                0,
			"events/subscribed":            1,
			"events/update":                3,
			"operations":                   1,
			"operations/launch":            1,
			"tasks/active/task_running":    1,
			"tasks/active/task_staging":    0,
			"tasks/terminal/task_finished": 1,
			"tasks/terminal/task_failed":   0,
			"offers/accepted":              1,
			"offers/declined":              0,
			"roles/eng%2Fdev/suppressed":   0,
			"roles/ops/suppressed":         1,
		} {
			if got, ok := values[prefix+name]; !ok || got != want {
				t.Errorf("%s = %v, want %v", prefix+name, got, want)
			}
		}
		if got := values["frameworks/p%20q/messages_received"]; got != 3.0 {
			t.Errorf("messages of the principal = %v, want 3", got)
		}
		s.call(&schedulerv1.Call{Type: schedulerv1.Call_TEARDOWN.Enum()})
		for name := range c.legacy("/metrics/snapshot", "") {
			if strings.HasPrefix(name, "master/frameworks/") {
				t.Fatalf("%s is there although the framework is not", name)
			}
		}
	})
}

func TestMetricsOfFrameworksCanBeLeftOut(t *testing.T) {
	inBubble(t, Config{NoPerFrameworkMetrics: true}, Deps{}, func(t *testing.T, c *cluster) {
		c.framework(frameworkInfo("a"))
		for name := range c.legacy("/metrics/snapshot", "") {
			if strings.HasPrefix(name, "master/frameworks/") {
				t.Fatalf("%s is there", name)
			}
		}
	})
}

func TestEveryMetricThatMesosAlwaysHasIsThere(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024;disk:100")
		c.framework(frameworkInfo("eng"))
		c.must(quotaCall(false, quotaOf("eng", "cpus:1", "mem:512")))
		c.pass(2 * time.Second)
		values := c.legacy("/metrics/snapshot", "")
		var names []string
		add := func(format string, parts ...string) {
			for _, p := range parts {
				names = append(names, fmt.Sprintf(format, p))
			}
		}
		for _, suffix := range []string{"total", "used", "percent", "revocable_total", "revocable_used", "revocable_percent"} {
			add("master/%s_"+suffix, "cpus", "gpus", "mem", "disk")
		}
		add("master/%s", "elected", "uptime_secs", "slaves_connected", "slaves_disconnected", "slaves_active", "slaves_inactive",
			"slaves_unreachable", "slave_registrations", "slave_reregistrations", "slave_removals", "slave_removals/reason_unhealthy",
			"slave_removals/reason_unregistered", "slave_removals/reason_registered", "slave_shutdowns_scheduled",
			"slave_shutdowns_completed", "slave_shutdowns_canceled", "slave_unreachable_scheduled", "slave_unreachable_completed",
			"slave_unreachable_canceled", "recovery_slave_removals", "frameworks_connected", "frameworks_disconnected",
			"frameworks_active", "frameworks_inactive", "outstanding_offers", "dropped_messages", "event_queue_messages",
			"event_queue_dispatches", "event_queue_http_requests", "operator_event_stream_subscribers", "http_cache_hits")
		add("master/tasks_%s", "staging", "starting", "running", "killing", "unreachable", "finished", "failed", "killed", "lost",
			"error", "dropped", "gone", "gone_by_operator")
		add("master/messages_%s", "authenticate", "register_framework", "reregister_framework", "unregister_framework",
			"deactivate_framework", "kill_task", "status_update_acknowledgement", "operation_status_update_acknowledgement",
			"resource_request", "launch_tasks", "decline_offers", "revive_offers", "suppress_offers", "reconcile_operations",
			"reconcile_tasks", "framework_to_executor", "executor_to_framework", "register_slave", "reregister_slave",
			"unregister_slave", "status_update", "operation_status_update", "exited_executor", "update_slave")
		for _, valid := range []string{"valid", "invalid"} {
			add("master/"+valid+"_%s", "framework_to_executor_messages", "executor_to_framework_messages", "status_updates",
				"status_update_acknowledgements", "operation_status_updates", "operation_status_update_acknowledgements")
		}
		for _, kind := range []string{"", "reserve/", "unreserve/", "create/", "destroy/", "grow_volume/", "shrink_volume/", "create_disk/", "destroy_disk/"} {
			add("master/operations/"+kind+"%s", "total", "pending", "recovering", "unreachable", "finished", "failed", "error", "dropped", "gone_by_operator")
		}
		for _, timer := range []string{"registrar/state_fetch_ms", "registrar/state_store_ms", "allocator/mesos/allocation_run_ms", "allocator/mesos/allocation_run_latency_ms"} {
			add(timer+"%s", "", "/count", "/max", "/min", "/p50", "/p90", "/p95", "/p99", "/p999", "/p9999")
		}
		add("%s", "registrar/queued_operations", "registrar/log/recovered", "registrar/registry_size_bytes", "allocator/event_queue_dispatches",
			"allocator/mesos/event_queue_dispatches", "allocator/mesos/allocation_runs", "allocator/mesos/roles/eng/shares/dominant",
			"allocator/mesos/quota/roles/eng/resources/cpus/guarantee", "allocator/mesos/quota/roles/eng/resources/mem/limit",
			"allocator/mesos/quota/roles/eng/resources/mem/offered_or_allocated", "system/cpus_total")
		for _, r := range []string{"cpus", "mem", "disk"} {
			add("allocator/mesos/resources/"+r+"/%s", "total", "offered_or_allocated")
		}
		for _, name := range names {
			if _, ok := values[name]; !ok {
				t.Errorf("%s is missing", name)
			}
		}
		if got := values["allocator/mesos/quota/roles/eng/resources/mem/limit"]; got != 512.0 {
			t.Errorf("limit = %v, want 512", got)
		}
		before, _ := values["registrar/registry_size_bytes"].(float64)
		c.must(quotaCall(false, quotaOf("sales", "cpus:1", "mem:512")))
		c.pass(2 * time.Second)
		after, _ := c.legacy("/metrics/snapshot", "")["registrar/registry_size_bytes"].(float64)
		if before <= 0 || after <= before {
			t.Errorf("size of the registry = %v, then %v with one quota more, want it to grow", before, after)
		}
	})
}

func TestOperationsAreCountedByTypeAndState(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		s, events := c.framework(frameworkInfo("eng"))
		s.accept(offers(events), nil, reserve("x", reservedFor("eng", "cpus:1")...), reserve("y", reservedFor("eng", "cpus:100")...))
		values := c.legacy("/metrics/snapshot", "")
		for name, want := range map[string]float64{"finished": 1, "error": 1, "reserve/finished": 1, "reserve/error": 1, "create/finished": 0, "total": 1, "reserve/total": 1} {
			if got := values["master/operations/"+name]; got != want {
				t.Errorf("operations/%s = %v, want %v", name, got, want)
			}
		}
	})
}

func TestDisconnectedAndDeactivatedAgentsAreCountedApart(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agentAt("one", 1, "cpus:1;mem:100")
		c.agentAt("two", 2, "cpus:1;mem:100").disconnect()
		c.must(deactivateCall(a.id()))
		values := c.legacy("/metrics/snapshot", "")
		for name, want := range map[string]float64{"connected": 1, "disconnected": 1, "active": 0, "inactive": 2} {
			if got := values["master/slaves_"+name]; got != want {
				t.Errorf("slaves_%s = %v, want %v", name, got, want)
			}
		}
		if n := len(c.get(masterv1.Call_GET_METRICS).GetGetMetrics().GetMetrics()); n != len(values) {
			t.Errorf("GET_METRICS has %d metrics, /metrics/snapshot %d", n, len(values))
		}
	})
}

func TestRefusalsThatHoldAreCountedByRole(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agentAt("one", 1, "cpus:1;mem:100")
		c.agentAt("two", 2, "cpus:1;mem:100")
		f, events := c.framework(frameworkInfo("eng"))
		c.framework(frameworkInfo("ops"))
		count := func(when string, want float64) {
			t.Helper()
			c.pass(3 * time.Second)
			values := c.legacy("/metrics/snapshot", "")
			if got, other := values["allocator/mesos/offer_filters/roles/eng/active"], values["allocator/mesos/offer_filters/roles/ops/active"]; got != want || other != 0.0 {
				t.Errorf("refusals %s: %v in eng, %v in ops, want %v and 0", when, got, other, want)
			}
		}
		f.decline(60, offers(events)...)
		count("after two offers were declined", 2)
		c.pass(time.Minute)
		count("a minute later", 0)
	})
}

func TestTimingsKeepTheLastThousand(t *testing.T) {
	var x timing
	for i := range 2500 {
		x.add(time.Duration(i) * time.Millisecond)
	}
	out := make(map[string]float64)
	x.show(out, "t")
	for name, want := range map[string]float64{"t": 2499, "t/count": 2500, "t/min": 1500, "t/max": 2499, "t/p50": 1999, "t/p99": 2489, "t/p9999": 2499} {
		if out[name] != want {
			t.Errorf("%s = %v, want %v", name, out[name], want)
		}
	}
}
