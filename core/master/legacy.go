package master

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"

	"github.com/mosaic-cluster/mosaic/sdk/mesosjson"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// Legacy returns the body of one of Mesos's older JSON endpoints, which tools poll: /state,
// /state-summary, /slaves, /frameworks, /tasks, /roles, /flags, /metrics/snapshot, /quota, /weights,
// /maintenance/schedule, /maintenance/status; and of /mosaic/v1/explain.
//
// Errors: a Refusal with 400 for a query that makes no sense, 404 for an endpoint that there is not.
func (m *Master) Legacy(ctx context.Context, principal, endpoint string, query url.Values) ([]byte, error) {
	v := m.view.Load()
	switch endpoint {
	case "/state":
		return m.legacyState(v, m.approve(ctx, principal, "VIEW_FLAGS") == nil), nil
	case "/state-summary":
		return v.legacySummary(), nil
	case "/slaves":
		return v.legacySlaves(query.Get("slave_id")), nil
	case "/frameworks":
		return v.legacyFrameworks(query.Get("framework_id")), nil
	case "/tasks":
		return v.legacyTasks(query)
	case "/roles":
		return v.legacyRoles(), nil
	case "/quota":
		return m.getQuota(ctx, principal, v).GetStatus().AppendJSON(nil), nil
	case "/weights":
		return array(nil, func(b []byte) []byte {
			for _, w := range v.getWeights().GetWeightInfos() {
				b = append(w.AppendJSON(b), ',')
			}
			return b
		}), nil
	case "/maintenance/schedule":
		return m.getSchedule(ctx, principal).AppendJSON(nil), nil
	case "/maintenance/status":
		status, err := m.getMaintenanceStatus(ctx, principal)
		if err != nil {
			return nil, err
		}
		return status.AppendJSON(nil), nil
	case "/mosaic/v1/explain":
		return m.explain(ctx, query)
	case "/flags":
		return mesosjson.CloseObject(appendFlags([]byte{'{'}, m.cfg.Flags)), nil
	case "/metrics/snapshot":
		values := v.snapshot(m.cfg.Now())
		v.frameworkMetrics(values)
		b := []byte{'{'}
		for _, name := range sortedKeys(values) {
			b = number(b, name, values[name])
		}
		return mesosjson.CloseObject(b), nil
	}
	return nil, &Refusal{Status: 404, Text: fmt.Sprintf("There is no endpoint %s", endpoint)}
}

func (v *view) appendRecovered(b []byte) []byte {
	return list(b, "recovered_slaves", func(b []byte) []byte {
		for a := range v.recovered.all() {
			b = append(b, '{')
			b = text(b, "id", a.GetId().GetValue())
			b = text(b, "hostname", a.GetHostname())
			b = integer(b, "port", int64(a.GetPort()))
			b = attributes(b, "attributes", a.GetAttributes())
			if a.Domain != nil {
				b = message(b, "domain", a.Domain)
			}
			b = append(mesosjson.CloseObject(b), ',')
		}
		return b
	})
}

// holdings are what one framework has, for /state.
type holdings struct {
	tasks     [3][]*taskEntry // by taskKind
	executors []*executorEntry
}

// holdings sorts tasks and executors by framework.
func (v *view) holdings() map[string]*holdings {
	out := make(map[string]*holdings)
	of := func(id string) *holdings {
		h := out[id]
		if h == nil {
			h = new(holdings)
			out[id] = h
		}
		return h
	}
	for t := range v.tasks.all() {
		h := of(t.proto.GetFrameworkId().GetValue())
		h.tasks[t.kind] = append(h.tasks[t.kind], t)
	}
	for e := range v.executors.all() {
		h := of(e.frameworkID)
		h.executors = append(h.executors, e)
	}
	return out
}

// appendFrameworks appends the lists of frameworks that are, and that were.
func (v *view) appendFrameworks(b []byte, only string) []byte {
	t, held := v.tally(), v.holdings()
	for _, complete := range []bool{false, true} {
		name := "frameworks"
		if complete {
			name = "completed_frameworks"
		}
		b = list(b, name, func(b []byte) []byte {
			for f := range v.frameworks.all() {
				if f.complete == complete && (only == "" || only == f.id) {
					b = append(f.appendLegacy(b, usageOf(t.frameworks, f.id), held[f.id]), ',')
				}
			}
			return b
		})
	}
	return list(b, "unregistered_frameworks", func(b []byte) []byte { return b })
}

// appendAgents appends the list of agents and that of those expected back.
func (v *view) appendAgents(b []byte, only string, full bool) []byte {
	t := v.tally()
	b = list(b, "slaves", func(b []byte) []byte {
		for a := range v.agents.all() {
			if only == "" || only == a.id {
				b = a.appendLegacy(append(b, '{'), usageOf(t.agents, a.id), full)
				b = append(mesosjson.CloseObject(b), ',')
			}
		}
		return b
	})
	return v.appendRecovered(b)
}

// legacyState is the body of /state; how the master was started is for those who may see its flags.
func (m *Master) legacyState(v *view, flags bool) []byte {
	b := append(make([]byte, 0, 4096+1024*v.tasks.length), '{')
	b = text(b, "version", m.cfg.Version)
	b = text(b, "build_date", m.cfg.BuildDate)
	b = text(b, "build_user", m.cfg.BuildUser)
	b = number(b, "build_time", 0)
	b = number(b, "start_time", seconds(m.metrics.started))
	b = number(b, "elected_time", seconds(v.elected))
	b = text(b, "id", v.info.GetId())
	b = text(b, "pid", v.info.GetPid())
	b = text(b, "hostname", v.info.GetHostname())
	b = list(b, "capabilities", func(b []byte) []byte {
		for _, c := range v.info.GetCapabilities() {
			b = append(mesosjson.AppendString(b, c.GetType().String()), ',')
		}
		return b
	})
	var active int64
	for a := range v.agents.all() {
		if a.active {
			active++
		}
	}
	b = integer(b, "activated_slaves", active)
	b = integer(b, "deactivated_slaves", int64(v.agents.length)-active)
	b = integer(b, "unreachable_slaves", int64(v.away))
	if v.info.Domain != nil {
		b = message(b, "domain", v.info.Domain)
	}
	b = text(b, "leader", v.info.GetPid())
	b = object(b, "leader_info", func(b []byte) []byte {
		b = text(b, "id", v.info.GetId())
		b = text(b, "pid", v.info.GetPid())
		b = integer(b, "port", int64(v.info.GetPort()))
		if v.info.Domain != nil {
			b = message(b, "domain", v.info.Domain)
		}
		return text(b, "hostname", v.info.GetHostname())
	})
	if flags {
		if m.cfg.Cluster != "" {
			b = text(b, "cluster", m.cfg.Cluster)
		}
		b = appendFlags(b, m.cfg.Flags)
	}
	b = v.appendAgents(b, "", false)
	b = v.appendFrameworks(b, "")
	b = list(b, "orphan_tasks", func(b []byte) []byte { return b })
	return mesosjson.CloseObject(b)
}

func (v *view) legacySlaves(only string) []byte {
	return mesosjson.CloseObject(v.appendAgents([]byte{'{'}, only, true))
}

func (v *view) legacyFrameworks(only string) []byte {
	return mesosjson.CloseObject(v.appendFrameworks([]byte{'{'}, only))
}

// taskCounts are numbers of tasks by state, and with whom.
type taskCounts struct {
	states map[mesosv1.TaskState]int64
	others map[string]bool
}

var summaryStates = []mesosv1.TaskState{
	mesosv1.TaskState_TASK_STAGING, mesosv1.TaskState_TASK_STARTING, mesosv1.TaskState_TASK_RUNNING,
	mesosv1.TaskState_TASK_KILLING, mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_KILLED,
	mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_ERROR,
	mesosv1.TaskState_TASK_UNREACHABLE,
}

func (c *taskCounts) append(b []byte, others string) []byte {
	for _, s := range summaryStates {
		var n int64
		if c != nil {
			n = c.states[s]
		}
		b = integer(b, s.String(), n)
	}
	var ids []string
	if c != nil {
		ids = sortedKeys(c.others)
	}
	return texts(b, others, ids)
}

func (v *view) legacySummary() []byte {
	agents, frameworks := make(map[string]*taskCounts), make(map[string]*taskCounts)
	add := func(m map[string]*taskCounts, id, other string, state mesosv1.TaskState) {
		c := m[id]
		if c == nil {
			c = &taskCounts{make(map[mesosv1.TaskState]int64), make(map[string]bool)}
			m[id] = c
		}
		c.states[state]++
		c.others[other] = true
	}
	for e := range v.tasks.all() {
		a, f := e.proto.GetAgentId().GetValue(), e.proto.GetFrameworkId().GetValue()
		add(agents, a, f, e.proto.GetState())
		add(frameworks, f, a, e.proto.GetState())
	}
	t := v.tally()
	b := text([]byte{'{'}, "hostname", v.info.GetHostname())
	if v.cfg.Cluster != "" {
		b = text(b, "cluster", v.cfg.Cluster)
	}
	b = list(b, "slaves", func(b []byte) []byte {
		for a := range v.agents.all() {
			b = a.appendLegacy(append(b, '{'), usageOf(t.agents, a.id), false)
			b = append(mesosjson.CloseObject(agents[a.id].append(b, "framework_ids")), ',')
		}
		return b
	})
	b = list(b, "frameworks", func(b []byte) []byte {
		for f := range v.frameworks.all() {
			if !f.complete {
				b = f.appendLegacyHead(append(b, '{'), usageOf(t.frameworks, f.id))
				b = append(mesosjson.CloseObject(frameworks[f.id].append(b, "slave_ids")), ',')
			}
		}
		return b
	})
	return mesosjson.CloseObject(b)
}

// legacyTasks returns a page of all tasks, newest first unless asked otherwise.
func (v *view) legacyTasks(query url.Values) ([]byte, error) {
	limit, offset := 100, 0
	for name, into := range map[string]*int{"limit": &limit, "offset": &offset} {
		s := query.Get(name)
		if s == "" {
			continue
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return nil, badRequest("Failed to parse %s: got %q, want a number of 0 or more", name, s)
		}
		*into = n
	}
	framework, id := query.Get("framework_id"), query.Get("task_id")
	var tasks []*taskEntry
	for t := range v.tasks.all() {
		if (framework == "" || framework == t.proto.GetFrameworkId().GetValue()) &&
			(id == "" || id == t.proto.GetTaskId().GetValue()) {
			tasks = append(tasks, t)
		}
	}
	begin := func(t *taskEntry) float64 {
		if len(t.proto.Statuses) == 0 {
			return math.Inf(1) // it has only just been launched
		}
		return t.proto.Statuses[0].GetTimestamp()
	}
	slices.SortStableFunc(tasks, func(a, b *taskEntry) int {
		c := cmp.Or(cmp.Compare(begin(a), begin(b)), compareIDs(a.proto.GetTaskId().GetValue(), b.proto.GetTaskId().GetValue()))
		if query.Get("order") != "asc" {
			c = -c
		}
		return c
	})
	tasks = tasks[min(offset, len(tasks)):]
	tasks = tasks[:min(limit, len(tasks))]
	b := list([]byte{'{'}, "tasks", func(b []byte) []byte {
		for _, t := range tasks {
			b = append(b, t.legacyJSON()...)
		}
		return b
	})
	return mesosjson.CloseObject(b), nil
}

func (v *view) legacyRoles() []byte {
	b := list([]byte{'{'}, "roles", func(b []byte) []byte {
		for _, r := range v.roles() {
			b = text(append(b, '{'), "name", r.name)
			b = number(b, "weight", r.weight)
			q := v.quotas[r.name]
			b = object(b, "quota", func(b []byte) []byte {
				b = text(b, "role", r.name)
				b = quantities(b, "guarantee", resources.QuantitiesOf(q.GetGuarantees()))
				b = quantities(b, "limit", resources.QuantitiesOf(q.GetLimits()))
				return quantities(b, "consumed", r.consumed)
			})
			b = quantities(b, "resources", r.usage.used.Quantities().Add(r.usage.offered.Quantities()))
			b = quantities(b, "allocated", r.allocated)
			b = quantities(b, "offered", r.offered)
			b = quantities(b, "reserved", r.reserved)
			b = texts(b, "frameworks", r.frameworks)
			b = append(mesosjson.CloseObject(b), ',')
		}
		return b
	})
	return mesosjson.CloseObject(b)
}
