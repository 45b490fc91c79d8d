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
// /state-summary, /slaves, /frameworks, /tasks, /roles, /flags, /metrics/snapshot.
//
// Errors: a Refusal with 400 for a query that makes no sense, 404 for an endpoint that there is not.
func (m *Master) Legacy(_ context.Context, _, endpoint string, query url.Values) ([]byte, error) {
	v := m.view.Load()
	switch endpoint {
	case "/state":
		return m.legacyState(v), nil
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
	case "/flags":
		return mesosjson.CloseObject(appendFlags([]byte{'{'}, m.cfg.Flags)), nil
	case "/metrics/snapshot":
		values := v.snapshot(m.cfg.Now())
		b := []byte{'{'}
		for _, name := range sortedKeys(values) {
			b = number(b, name, values[name])
		}
		return mesosjson.CloseObject(b), nil
	}
	return nil, &Refusal{Status: 404, Text: fmt.Sprintf("There is no endpoint %s", endpoint)}
}

// The helpers below append one member and a comma; mesosjson.CloseObject turns the last comma into the
// closing bracket.

func key(b []byte, name string) []byte {
	b = mesosjson.AppendString(b, name)
	return append(b, ':')
}

func text(b []byte, name, value string) []byte {
	return append(mesosjson.AppendString(key(b, name), value), ',')
}

func number(b []byte, name string, value float64) []byte {
	return append(mesosjson.AppendDouble(key(b, name), value), ',')
}

func integer(b []byte, name string, value int64) []byte {
	return append(strconv.AppendInt(key(b, name), value, 10), ',')
}

func boolean(b []byte, name string, value bool) []byte {
	return append(strconv.AppendBool(key(b, name), value), ',')
}

// object appends a member that body fills.
func object(b []byte, name string, body func([]byte) []byte) []byte {
	b = append(key(b, name), '{')
	return append(mesosjson.CloseObject(body(b)), ',')
}

// list appends a member whose elements body appends, each with a comma behind it.
func list(b []byte, name string, body func([]byte) []byte) []byte {
	return append(array(key(b, name), body), ',')
}

// array appends a list without a name.
func array(b []byte, body func([]byte) []byte) []byte {
	b = body(append(b, '['))
	if b[len(b)-1] == ',' {
		b = b[:len(b)-1]
	}
	return append(b, ']')
}

func texts(b []byte, name string, values []string) []byte {
	return list(b, name, func(b []byte) []byte {
		for _, v := range values {
			b = append(mesosjson.AppendString(b, v), ',')
		}
		return b
	})
}

// message appends a member that is a message in the v1 form.
func message(b []byte, name string, m mesosjson.Appender) []byte {
	return append(m.AppendJSON(key(b, name)), ',')
}

// summary appends resources as older endpoints sum them up: cpus, gpus, mem and disk always, the rest if
// there is any, revocable ones under names of their own.
func summary(b []byte, name string, set resources.Set) []byte {
	return object(b, name, func(b []byte) []byte {
		b = summaryPart(b, set.NonRevocable(), "", true)
		return summaryPart(b, set.Revocable(), "_revocable", false)
	})
}

func summaryPart(b []byte, set resources.Set, suffix string, always bool) []byte {
	kinds := make(map[string]mesosv1.Value_Type)
	if always {
		for _, n := range []string{"cpus", "gpus", "mem", "disk"} {
			kinds[n] = mesosv1.Value_SCALAR
		}
	}
	entries := set.Entries()
	for i := range entries {
		kinds[entries[i].Name()] = entries[i].Type()
	}
	for _, n := range sortedKeys(kinds) {
		switch kinds[n] {
		case mesosv1.Value_RANGES:
			b = text(b, n+suffix, set.Ranges(n).String())
		case mesosv1.Value_SET:
			b = text(b, n+suffix, "{"+join(set.Items(n))+"}")
		default:
			b = number(b, n+suffix, set.Scalar(n))
		}
	}
	return b
}

func join(items []string) string {
	var b []byte
	for i, s := range items {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(b, s...)
	}
	return string(b)
}

// reserved appends reservations by role.
func reserved(b []byte, name string, total resources.Set) []byte {
	byRole := total.Reservations()
	return object(b, name, func(b []byte) []byte {
		for _, role := range sortedKeys(byRole) {
			b = summary(b, role, byRole[role])
		}
		return b
	})
}

// quantities appends scalars above zero.
func quantities(b []byte, name string, q resources.Quantities) []byte {
	return object(b, name, func(b []byte) []byte {
		for _, n := range q.Names() {
			b = number(b, n, q[n])
		}
		return b
	})
}

func appendFlags(b []byte, flags map[string]string) []byte {
	return object(b, "flags", func(b []byte) []byte {
		for _, n := range sortedKeys(flags) {
			b = text(b, n, flags[n])
		}
		return b
	})
}

func labels(b []byte, name string, l *mesosv1.Labels) []byte {
	if l == nil {
		return b
	}
	return list(b, name, func(b []byte) []byte {
		for _, x := range l.GetLabels() {
			b = append(x.AppendJSON(b), ',')
		}
		return b
	})
}

func attributes(b []byte, name string, attrs []*mesosv1.Attribute) []byte {
	return object(b, name, func(b []byte) []byte {
		for _, a := range attrs {
			switch a.GetType() {
			case mesosv1.Value_SCALAR:
				b = number(b, a.GetName(), a.GetScalar().GetValue())
			case mesosv1.Value_TEXT:
				b = text(b, a.GetName(), a.GetText().GetValue())
			case mesosv1.Value_RANGES:
				b = text(b, a.GetName(), rangesText(a.GetRanges()))
			case mesosv1.Value_SET:
				b = text(b, a.GetName(), "{"+join(a.GetSet().GetItem())+"}")
			}
		}
		return b
	})
}

func rangesText(r *mesosv1.Value_Ranges) string {
	var list []resources.Range
	for _, x := range r.GetRange() {
		list = append(list, resources.Range{Begin: x.GetBegin(), End: x.GetEnd()})
	}
	return resources.NewRanges(list...).String()
}

// legacyJSON is a task as older endpoints show it.
func (e *taskEntry) legacyJSON() []byte {
	return e.legacy.get(func() []byte {
		t := e.proto
		b := append(make([]byte, 0, 512), '{')
		b = text(b, "id", t.GetTaskId().GetValue())
		b = text(b, "name", t.GetName())
		b = text(b, "framework_id", t.GetFrameworkId().GetValue())
		b = text(b, "executor_id", t.GetExecutorId().GetValue())
		b = text(b, "slave_id", t.GetAgentId().GetValue())
		b = text(b, "state", t.GetState().String())
		set := resources.New(t.GetResources()...)
		b = summary(b, "resources", set)
		if len(t.Limits) > 0 {
			b = object(b, "limits", func(b []byte) []byte {
				for _, n := range sortedKeys(t.Limits) {
					b = number(b, n, t.Limits[n].GetValue())
				}
				return b
			})
		}
		b = text(b, "role", allocationRole(set))
		b = list(b, "statuses", func(b []byte) []byte {
			for _, s := range t.Statuses {
				b = append(appendStatus(b, s), ',')
			}
			return b
		})
		if t.GetUser() != "" {
			b = text(b, "user", t.GetUser())
		}
		b = labels(b, "labels", t.Labels)
		if t.Discovery != nil {
			b = message(b, "discovery", t.Discovery)
		}
		if t.Container != nil {
			b = message(b, "container", t.Container)
		}
		if t.HealthCheck != nil {
			b = message(b, "health_check", t.HealthCheck)
		}
		return append(mesosjson.CloseObject(b), ',')
	})
}

func appendStatus(b []byte, s *mesosv1.TaskStatus) []byte {
	b = append(b, '{')
	b = text(b, "state", s.GetState().String())
	b = number(b, "timestamp", s.GetTimestamp())
	b = labels(b, "labels", s.Labels)
	if c := s.ContainerStatus; c != nil {
		b = object(b, "container_status", func(b []byte) []byte {
			if c.ContainerId != nil {
				b = message(b, "container_id", c.ContainerId)
			}
			if len(c.NetworkInfos) > 0 {
				b = list(b, "network_infos", func(b []byte) []byte {
					for _, n := range c.NetworkInfos {
						b = append(appendNetwork(b, n), ',')
					}
					return b
				})
			}
			if c.CgroupInfo != nil {
				b = message(b, "cgroup_info", c.CgroupInfo)
			}
			return b
		})
	}
	if s.Healthy != nil {
		b = boolean(b, "healthy", s.GetHealthy())
	}
	return mesosjson.CloseObject(b)
}

func appendNetwork(b []byte, n *mesosv1.NetworkInfo) []byte {
	b = append(b, '{')
	if len(n.Groups) > 0 {
		b = texts(b, "groups", n.Groups)
	}
	b = labels(b, "labels", n.Labels)
	if len(n.IpAddresses) > 0 {
		b = list(b, "ip_addresses", func(b []byte) []byte {
			for _, a := range n.IpAddresses {
				b = append(a.AppendJSON(b), ',')
			}
			return b
		})
	}
	if n.Name != nil {
		b = text(b, "name", n.GetName())
	}
	if len(n.PortMappings) > 0 {
		b = list(b, "port_mappings", func(b []byte) []byte {
			for _, p := range n.PortMappings {
				b = append(p.AppendJSON(b), ',')
			}
			return b
		})
	}
	return mesosjson.CloseObject(b)
}

// legacyJSON is an executor as older endpoints show it.
func (e *executorEntry) legacyJSON() []byte {
	return e.legacy.get(func() []byte {
		b := append(make([]byte, 0, 512), '{')
		b = text(b, "executor_id", e.info.GetExecutorId().GetValue())
		b = text(b, "name", e.info.GetName())
		b = text(b, "framework_id", e.frameworkID)
		b = object(b, "command", func(b []byte) []byte {
			c := e.info.GetCommand()
			if c == nil {
				return b
			}
			b = boolean(b, "shell", c.GetShell())
			if c.Value != nil {
				b = text(b, "value", c.GetValue())
			}
			b = texts(b, "argv", c.GetArguments())
			if c.Environment != nil {
				b = message(b, "environment", c.Environment)
			}
			return list(b, "uris", func(b []byte) []byte {
				for _, u := range c.GetUris() {
					b = append(b, '{')
					b = text(b, "value", u.GetValue())
					b = boolean(b, "executable", u.GetExecutable())
					b = append(mesosjson.CloseObject(b), ',')
				}
				return b
			})
		})
		b = summary(b, "resources", e.set)
		if role := allocationRole(e.set); role != "" {
			b = text(b, "role", role)
		}
		b = labels(b, "labels", e.info.Labels)
		if e.info.Type != nil {
			b = text(b, "type", e.info.GetType().String())
		}
		b = text(b, "slave_id", e.agentID.GetValue())
		return append(mesosjson.CloseObject(b), ',')
	})
}

func (e *offerEntry) appendLegacy(b []byte) []byte {
	b = append(b, '{')
	b = text(b, "id", e.proto.GetId().GetValue())
	b = text(b, "framework_id", e.proto.GetFrameworkId().GetValue())
	b = object(b, "allocation_info", func(b []byte) []byte { return text(b, "role", e.role) })
	b = text(b, "slave_id", e.proto.GetAgentId().GetValue())
	b = summary(b, "resources", e.set)
	return mesosjson.CloseObject(b)
}

// appendLegacy appends the members of an agent; full adds the lists that only /slaves has.
func (a *agentEntry) appendLegacy(b []byte, u *usage, full bool) []byte {
	b = text(b, "id", a.id)
	b = text(b, "hostname", a.info.GetHostname())
	b = integer(b, "port", int64(a.info.GetPort()))
	b = attributes(b, "attributes", a.info.GetAttributes())
	if a.info.Domain != nil {
		b = message(b, "domain", a.info.Domain)
	}
	b = text(b, "pid", a.pid)
	b = number(b, "registered_time", seconds(a.registered))
	if !a.reregistered.IsZero() {
		b = number(b, "reregistered_time", seconds(a.reregistered))
	}
	b = summary(b, "resources", a.total)
	b = summary(b, "used_resources", u.used)
	b = summary(b, "offered_resources", u.offered)
	b = reserved(b, "reserved_resources", a.total)
	b = summary(b, "unreserved_resources", a.total.Unreserved())
	b = boolean(b, "active", a.active)
	b = boolean(b, "deactivated", a.deactivated)
	b = text(b, "version", a.version)
	b = texts(b, "capabilities", a.capabilities)
	if !full {
		return b
	}
	resourceList := func(b []byte, name string, set resources.Set) []byte {
		return list(b, name, func(b []byte) []byte {
			for _, r := range resources.ToEndpoint(set.Resources()) {
				b = append(r.AppendJSON(b), ',')
			}
			return b
		})
	}
	byRole := a.total.Reservations()
	b = object(b, "reserved_resources_full", func(b []byte) []byte {
		for _, role := range sortedKeys(byRole) {
			b = resourceList(b, role, byRole[role])
		}
		return b
	})
	b = resourceList(b, "unreserved_resources_full", a.total.Unreserved())
	b = resourceList(b, "used_resources_full", u.used)
	return resourceList(b, "offered_resources_full", u.offered)
}

func (v *view) appendRecovered(b []byte) []byte {
	return list(b, "recovered_slaves", func(b []byte) []byte {
		for _, a := range v.recovered {
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

// appendLegacyHead appends the members of a framework that all lists have.
func (f *frameworkEntry) appendLegacyHead(b []byte, u *usage) []byte {
	b = text(b, "id", f.id)
	b = text(b, "name", f.info.GetName())
	b = summary(b, "used_resources", u.used)
	b = summary(b, "offered_resources", u.offered)
	b = list(b, "capabilities", func(b []byte) []byte {
		for _, c := range f.info.GetCapabilities() {
			b = append(mesosjson.AppendString(b, c.GetType().String()), ',')
		}
		return b
	})
	b = text(b, "hostname", f.info.GetHostname())
	b = text(b, "webui_url", f.info.GetWebuiUrl())
	b = boolean(b, "active", f.active)
	b = boolean(b, "connected", f.connected)
	return boolean(b, "recovered", f.recovered)
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

func (f *frameworkEntry) appendLegacy(b []byte, u *usage, h *holdings) []byte {
	b = append(b, '{')
	b = f.appendLegacyHead(b, u)
	b = text(b, "user", f.info.GetUser())
	b = number(b, "failover_timeout", f.info.GetFailoverTimeout())
	b = boolean(b, "checkpoint", f.info.GetCheckpoint())
	b = number(b, "registered_time", seconds(f.registered))
	b = number(b, "unregistered_time", seconds(f.unregistered))
	if !f.reregistered.IsZero() {
		b = number(b, "reregistered_time", seconds(f.reregistered))
	}
	if f.info.Principal != nil {
		b = text(b, "principal", f.info.GetPrincipal())
	}
	b = summary(b, "resources", u.used.Add(u.offered))
	if capabilitiesOf(f.info).multiRole {
		b = texts(b, "roles", f.roles)
	} else {
		b = text(b, "role", f.info.GetRole())
	}
	for i, name := range []string{"tasks", "unreachable_tasks", "completed_tasks"} {
		b = list(b, name, func(b []byte) []byte {
			if h != nil {
				for _, t := range h.tasks[i] {
					b = append(b, t.legacyJSON()...)
				}
			}
			return b
		})
	}
	b = list(b, "offers", func(b []byte) []byte {
		for _, o := range u.offers {
			b = append(o.appendLegacy(b), ',')
		}
		return b
	})
	b = list(b, "executors", func(b []byte) []byte {
		if h != nil {
			for _, e := range h.executors {
				b = append(b, e.legacyJSON()...)
			}
		}
		return b
	})
	b = labels(b, "labels", f.info.Labels)
	if f.constraints.proto != nil {
		b = message(b, "offer_constraints", f.constraints.proto)
	} else {
		b = object(b, "offer_constraints", func(b []byte) []byte { return b })
	}
	return mesosjson.CloseObject(b)
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

func (m *Master) legacyState(v *view) []byte {
	b := append(make([]byte, 0, 4096+1024*v.tasks.length), '{')
	b = text(b, "version", m.cfg.Version)
	b = text(b, "build_date", m.cfg.BuildDate)
	b = text(b, "build_user", m.cfg.BuildUser)
	b = number(b, "build_time", 0)
	b = number(b, "start_time", seconds(v.elected))
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
	b = text(b, "leader", v.info.GetPid())
	b = object(b, "leader_info", func(b []byte) []byte {
		b = text(b, "id", v.info.GetId())
		b = text(b, "pid", v.info.GetPid())
		b = integer(b, "port", int64(v.info.GetPort()))
		return text(b, "hostname", v.info.GetHostname())
	})
	if m.cfg.Cluster != "" {
		b = text(b, "cluster", m.cfg.Cluster)
	}
	b = appendFlags(b, m.cfg.Flags)
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
			used, offered := r.usage.used.Quantities(), r.usage.offered.Quantities()
			b = object(b, "quota", func(b []byte) []byte {
				b = text(b, "role", r.name)
				b = quantities(b, "guarantee", nil)
				b = quantities(b, "limit", nil)
				return quantities(b, "consumed", used.Add(offered))
			})
			b = quantities(b, "resources", used.Add(offered))
			b = quantities(b, "allocated", used)
			b = quantities(b, "offered", offered)
			b = quantities(b, "reserved", r.reserved.Quantities())
			b = texts(b, "frameworks", r.frameworks)
			b = append(mesosjson.CloseObject(b), ',')
		}
		return b
	})
	return mesosjson.CloseObject(b)
}

// agentPID is an agent's address in the form that tools take apart.
func agentPID(host string, port int32) string {
	return fmt.Sprintf("slave(1)@%s:%d", host, port)
}
