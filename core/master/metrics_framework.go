package master

import (
	"net/url"
	"strings"
	"sync/atomic"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// Sizes of the enumerations that are counted by value; what a newer proto adds is not counted until they grow.
const (
	callTypes      = 32
	eventTypes     = 32
	operationTypes = 32
	taskStates     = 16
)

// tallies count by a number; what is out of range is not counted. The loop counts, anybody reads.
type tallies []atomic.Uint64

func (t tallies) add(i int32) {
	if i >= 0 && int(i) < len(t) {
		t[i].Add(1)
	}
}

func (t tallies) sum() (n uint64) {
	for i := range t {
		n += t[i].Load()
	}
	return n
}

// frameworkMetrics are what the master counts of one framework.
type frameworkMetrics struct {
	calls, events, operations, ended           tallies // by type; tasks that ended by state
	offersSent, offersAccepted, offersDeclined atomic.Uint64
	offersRescinded                            atomic.Uint64
}

func newFrameworkMetrics() *frameworkMetrics {
	return &frameworkMetrics{
		calls:      make(tallies, callTypes),
		events:     make(tallies, eventTypes),
		operations: make(tallies, operationTypes),
		ended:      make(tallies, taskStates),
	}
}

// metricPart is a name as a part of a metric's name.
func metricPart(name string) string { return strings.ReplaceAll(url.QueryEscape(name), "+", "%20") }

// activeStates are the states of tasks that may go on, in which they are counted by framework.
var activeStates = []mesosv1.TaskState{
	mesosv1.TaskState_TASK_STAGING, mesosv1.TaskState_TASK_STARTING, mesosv1.TaskState_TASK_RUNNING,
	mesosv1.TaskState_TASK_KILLING, mesosv1.TaskState_TASK_UNREACHABLE,
}

// frameworkMetrics adds the metrics of single frameworks, by the names that Mesos gives them, and the messages of
// frameworks by principal.
func (v *view) frameworkMetrics(out map[string]float64) {
	active := make(map[string]*[taskStates]float64)
	for t := range v.tasks.all() {
		id, state := t.proto.GetFrameworkId().GetValue(), int(t.proto.GetState())
		if t.kind == taskCompleted || state < 0 || state >= taskStates {
			continue
		}
		counts := active[id]
		if counts == nil {
			counts = new([taskStates]float64)
			active[id] = counts
		}
		counts[state]++
	}
	for f := range v.frameworks.all() {
		if f.complete {
			continue
		}
		m := f.metrics
		calls := float64(m.calls.sum())
		if p := f.info.GetPrincipal(); p != "" {
			out["frameworks/"+metricPart(p)+"/messages_received"] += calls
			out["frameworks/"+metricPart(p)+"/messages_processed"] += calls
		}
		if v.cfg.NoPerFrameworkMetrics {
			continue
		}
		prefix := "master/frameworks/" + metricPart(f.info.GetName()) + "/" + metricPart(f.id) + "/"
		out[prefix+"subscribed"] = 0
		if f.connected {
			out[prefix+"subscribed"] = 1
		}
		addTallies(out, prefix+"calls", m.calls, schedulerv1.Call_Type_name)
		addTallies(out, prefix+"events", m.events, schedulerv1.Event_Type_name)
		addTallies(out, prefix+"operations", m.operations, mesosv1.Offer_Operation_Type_name)
		for _, state := range activeStates {
			n := 0.0
			if counts := active[f.id]; counts != nil {
				n = counts[state]
			}
			out[prefix+"tasks/active/"+strings.ToLower(state.String())] = n
		}
		for state := range endStates {
			out[prefix+"tasks/terminal/"+strings.ToLower(state.String())] = float64(m.ended[state].Load())
		}
		out[prefix+"offers/sent"] = float64(m.offersSent.Load())
		out[prefix+"offers/accepted"] = float64(m.offersAccepted.Load())
		out[prefix+"offers/declined"] = float64(m.offersDeclined.Load())
		out[prefix+"offers/rescinded"] = float64(m.offersRescinded.Load())
		for _, role := range f.roles {
			n := 0.0
			if contains(f.suppressed, role) {
				n = 1
			}
			out[prefix+"roles/"+metricPart(role)+"/suppressed"] = n
		}
	}
}

// addTallies adds a sum and what it is the sum of.
func addTallies(out map[string]float64, key string, t tallies, names map[int32]string) {
	out[key] = float64(t.sum())
	for i := range t {
		if name, ok := names[int32(i)]; ok && name != "UNKNOWN" {
			out[key+"/"+strings.ToLower(name)] = float64(t[i].Load())
		}
	}
}
