package master

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// counter counts up; any goroutine may read it.
type counter = *atomic.Uint64

// metrics are what the master counts. Gauges are worked out from the view when someone asks.
type metrics struct {
	started time.Time // never changed

	allocations                                                 atomic.Uint64
	allocationTime, allocationLatency                           timing
	loadTime, storeTime                                         timing // of the registry
	registrySize                                                atomic.Int64
	offersSent, offersAccepted, offersDeclined, offersRescinded atomic.Uint64
	launches                                                    atomic.Uint64
	registrations, reregistrations, removals                    atomic.Uint64
	removedUnhealthy, removedUnregistered, removedRegistered    atomic.Uint64
	recoveryRemovals                                            atomic.Uint64
	unreachableScheduled, unreachableCompleted                  atomic.Uint64
	unreachableCanceled                                         atomic.Uint64
	validUpdates, invalidUpdates, validAcks, invalidAcks        atomic.Uint64
	validFrameworkMessages, invalidFrameworkMessages            atomic.Uint64
	validExecutorMessages, invalidExecutorMessages              atomic.Uint64
	validOperations, invalidOperations                          atomic.Uint64
	validOperationAcks, invalidOperationAcks                    atomic.Uint64
	executorsExited, resourcesChanged, byes, disconnections     atomic.Uint64
	resubscriptions                                             atomic.Uint64
	subscribers                                                 atomic.Int64
	offerFilters                                                atomic.Pointer[map[string]int] // by role; replaced, never changed

	named sync.Map // string to counter: those that appear on first use
}

func newMetrics(started time.Time) *metrics { return &metrics{started: started} }

func (m *metrics) count(name string) {
	c, ok := m.named.Load(name)
	if !ok {
		c, _ = m.named.LoadOrStore(name, new(atomic.Uint64))
	}
	c.(*atomic.Uint64).Add(1)
}

// callNames are the keys of Mesos for the calls of schedulers.
var callNames = map[string]string{
	"TEARDOWN":                     "messages_unregister_framework",
	"ACCEPT":                       "messages_launch_tasks",
	"DECLINE":                      "messages_decline_offers",
	"REVIVE":                       "messages_revive_offers",
	"SUPPRESS":                     "messages_suppress_offers",
	"KILL":                         "messages_kill_task",
	"ACKNOWLEDGE":                  "messages_status_update_acknowledgement",
	"RECONCILE":                    "messages_reconcile_tasks",
	"RECONCILE_OPERATIONS":         "messages_reconcile_operations",
	"MESSAGE":                      "messages_framework_to_executor",
	"REQUEST":                      "messages_resource_request",
	"ACKNOWLEDGE_OPERATION_STATUS": "messages_operation_status_update_acknowledgement",
	"subscribe":                    "messages_register_framework",
}

func (m *metrics) call(name string) {
	if key, ok := callNames[name]; ok {
		m.count("master/" + key)
	}
}

// endStates are the states that are counted when a task gets there.
var endStates = map[mesosv1.TaskState]string{
	mesosv1.TaskState_TASK_FINISHED:         "master/tasks_finished",
	mesosv1.TaskState_TASK_FAILED:           "master/tasks_failed",
	mesosv1.TaskState_TASK_KILLED:           "master/tasks_killed",
	mesosv1.TaskState_TASK_LOST:             "master/tasks_lost",
	mesosv1.TaskState_TASK_ERROR:            "master/tasks_error",
	mesosv1.TaskState_TASK_DROPPED:          "master/tasks_dropped",
	mesosv1.TaskState_TASK_GONE:             "master/tasks_gone",
	mesosv1.TaskState_TASK_GONE_BY_OPERATOR: "master/tasks_gone_by_operator",
}

func (m *metrics) taskState(state mesosv1.TaskState) {
	if key, ok := endStates[state]; ok {
		m.count(key)
	}
}

// taskReason counts an update by its state, source and reason, as far as it has them.
func (m *metrics) taskReason(s *mesosv1.TaskStatus) {
	if s.Reason == nil || s.Source == nil {
		return
	}
	reason := strings.ToLower(s.GetReason().String())
	// The older names are what tools look for.
	reason = strings.Replace(reason, "reason_agent_", "reason_slave_", 1)
	source := strings.Replace(strings.ToLower(s.GetSource().String()), "source_agent", "source_slave", 1)
	m.count("master/" + strings.ToLower(s.GetState().String()) + "/" + source + "/" + reason)
}

// snapshot returns all metrics but those of single frameworks, by the names that Mesos gives them.
func (v *view) snapshot(now time.Time) map[string]float64 {
	m := v.metrics
	out := map[string]float64{
		"master/elected":     0,
		"master/uptime_secs": now.Sub(m.started).Seconds(),

		"master/slave_registrations":                float64(m.registrations.Load()),
		"master/slave_reregistrations":              float64(m.reregistrations.Load()),
		"master/slave_removals":                     float64(m.removals.Load()),
		"master/slave_removals/reason_unhealthy":    float64(m.removedUnhealthy.Load()),
		"master/slave_removals/reason_unregistered": float64(m.removedUnregistered.Load()),
		"master/slave_removals/reason_registered":   float64(m.removedRegistered.Load()),
		"master/slave_unreachable_scheduled":        float64(m.unreachableScheduled.Load()),
		"master/slave_unreachable_completed":        float64(m.unreachableCompleted.Load()),
		"master/slave_unreachable_canceled":         float64(m.unreachableCanceled.Load()),
		"master/slave_shutdowns_scheduled":          0,
		"master/slave_shutdowns_completed":          0,
		"master/slave_shutdowns_canceled":           0,
		"master/recovery_slave_removals":            float64(m.recoveryRemovals.Load()),

		"master/valid_status_updates":                   float64(m.validUpdates.Load()),
		"master/invalid_status_updates":                 float64(m.invalidUpdates.Load()),
		"master/valid_status_update_acknowledgements":   float64(m.validAcks.Load()),
		"master/invalid_status_update_acknowledgements": float64(m.invalidAcks.Load()),
		"master/valid_framework_to_executor_messages":   float64(m.validFrameworkMessages.Load()),
		"master/invalid_framework_to_executor_messages": float64(m.invalidFrameworkMessages.Load()),
		"master/valid_executor_to_framework_messages":   float64(m.validExecutorMessages.Load()),
		"master/invalid_executor_to_framework_messages": float64(m.invalidExecutorMessages.Load()),
		"master/messages_status_update":                 float64(m.validUpdates.Load() + m.invalidUpdates.Load()),
		"master/messages_register_slave":                float64(m.registrations.Load()),
		"master/messages_reregister_slave":              float64(m.reregistrations.Load()),
		"master/dropped_messages":                       0,
		"master/event_queue_messages":                   0,
		"master/event_queue_dispatches":                 0,
		"master/event_queue_http_requests":              0,
		"master/operator_event_stream_subscribers":      float64(m.subscribers.Load()),
		"master/http_cache_hits":                        0,

		"master/offers/sent":      float64(m.offersSent.Load()),
		"master/offers/accepted":  float64(m.offersAccepted.Load()),
		"master/offers/declined":  float64(m.offersDeclined.Load()),
		"master/offers/rescinded": float64(m.offersRescinded.Load()),
		"master/tasks_launched":   float64(m.launches.Load()),

		"allocator/mesos/allocation_runs":        float64(m.allocations.Load()),
		"allocator/mesos/event_queue_dispatches": 0,
		"allocator/event_queue_dispatches":       0,
		"registrar/queued_operations":            0,
		"registrar/log/recovered":                0,
		"registrar/registry_size_bytes":          float64(m.registrySize.Load()),

		"master/valid_operation_status_updates":                   float64(m.validOperations.Load()),
		"master/invalid_operation_status_updates":                 float64(m.invalidOperations.Load()),
		"master/valid_operation_status_update_acknowledgements":   float64(m.validOperationAcks.Load()),
		"master/invalid_operation_status_update_acknowledgements": float64(m.invalidOperationAcks.Load()),
		"master/messages_operation_status_update":                 float64(m.validOperations.Load() + m.invalidOperations.Load()),
		"master/messages_executor_to_framework":                   float64(m.validExecutorMessages.Load() + m.invalidExecutorMessages.Load()),
		"master/messages_exited_executor":                         float64(m.executorsExited.Load()),
		"master/messages_update_slave":                            float64(m.resourcesChanged.Load()),
		"master/messages_unregister_slave":                        float64(m.byes.Load()),
		"master/messages_deactivate_framework":                    float64(m.disconnections.Load()),
		"master/messages_reregister_framework":                    float64(m.resubscriptions.Load()),
		"master/messages_authenticate":                            0, // nobody authenticates by messages
	}
	m.allocationTime.show(out, "allocator/mesos/allocation_run_ms")
	m.allocationLatency.show(out, "allocator/mesos/allocation_run_latency_ms")
	m.loadTime.show(out, "registrar/state_fetch_ms")
	m.storeTime.show(out, "registrar/state_store_ms")
	systemMetrics(out)
	if !v.elected.IsZero() {
		out["master/elected"], out["registrar/log/recovered"] = 1, 1
	}
	for _, key := range callNames {
		out["master/"+key] = 0
	}
	for _, key := range endStates {
		out[key] = 0
	}
	m.named.Range(func(name, c any) bool {
		out[name.(string)] = float64(c.(*atomic.Uint64).Load())
		return true
	})
	v.gauges(out)
	v.operationMetrics(out)
	v.allocatorMetrics(out)
	return out
}

// gauges adds what is worked out from the state of the cluster.
func (v *view) gauges(out map[string]float64) {
	state := map[mesosv1.TaskState]string{
		mesosv1.TaskState_TASK_STAGING:  "master/tasks_staging",
		mesosv1.TaskState_TASK_STARTING: "master/tasks_starting",
		mesosv1.TaskState_TASK_RUNNING:  "master/tasks_running",
		mesosv1.TaskState_TASK_KILLING:  "master/tasks_killing",
	}
	for _, key := range state {
		out[key] = 0
	}
	out["master/tasks_unreachable"] = 0
	for t := range v.tasks.all() {
		switch t.kind {
		case taskActive:
			if key, ok := state[t.proto.GetState()]; ok {
				out[key]++
			}
		case taskUnreachable:
			out["master/tasks_unreachable"]++
		}
	}
	var frameworks, away float64
	for f := range v.frameworks.all() {
		switch {
		case f.complete:
		case f.connected:
			frameworks++
		default:
			away++
		}
	}
	out["master/frameworks_connected"], out["master/frameworks_active"] = frameworks, frameworks
	out["master/frameworks_disconnected"], out["master/frameworks_inactive"] = away, away
	out["master/outstanding_offers"] = float64(v.offers.length)

	var active, connected float64
	names := []string{"cpus", "gpus", "mem", "disk"}
	total, used := make(map[string]float64), make(map[string]float64)
	t := v.tally()
	for a := range v.agents.all() {
		if a.active {
			active++
		}
		if a.connected {
			connected++
		}
		u := usageOf(t.agents, a.id).used
		for _, n := range names {
			total[n] += a.total.NonRevocable().Scalar(n)
			total[n+"_revocable"] += a.total.Revocable().Scalar(n)
			used[n] += u.NonRevocable().Scalar(n)
			used[n+"_revocable"] += u.Revocable().Scalar(n)
		}
	}
	for _, n := range names {
		for _, n := range []string{n, n + "_revocable"} {
			out["master/"+n+"_total"] = total[n]
			out["master/"+n+"_used"] = used[n]
			out["master/"+n+"_percent"] = 0
			if total[n] > 0 {
				out["master/"+n+"_percent"] = used[n] / total[n]
			}
		}
	}
	all := float64(v.agents.length)
	out["master/slaves_active"], out["master/slaves_inactive"] = active, all-active
	out["master/slaves_connected"], out["master/slaves_disconnected"] = connected, all-connected
	out["master/slaves_unreachable"] = float64(v.away)
}
