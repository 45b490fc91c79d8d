package agent

import (
	"cmp"
	"context"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/mesosjson"
	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// The older JSON endpoints, in the form that tools written for Mesos read.

// Legacy returns the body of /state, /flags, /containers, /monitor/statistics or /metrics/snapshot.
func (a *Agent) Legacy(ctx context.Context, principal, endpoint string, query url.Values) ([]byte, error) {
	switch endpoint {
	case "/state":
		return a.legacyState(), nil
	case "/flags":
		return closed(appendFlags([]byte{'{'}, a.cfg.flags())), nil
	case "/containers":
		return a.legacyContainers(ctx, principal, query)
	case "/monitor/statistics":
		return a.legacyStatistics(ctx, principal)
	case "/metrics/snapshot":
		if t := query.Get("timeout"); t != "" && !durationText(t) {
			return nil, refuse(http.StatusBadRequest, "Invalid timeout '%s'", t)
		}
		return closed(appendNumbers([]byte{'{'}, a.metrics())), nil
	default:
		return nil, refuse(http.StatusNotFound, "No such endpoint")
	}
}

// Members are appended with a comma behind each; closed turns the last one into the bracket.

func closed(b []byte) []byte { return mesosjson.CloseObject(b) }

func closedList(b []byte) []byte {
	if b[len(b)-1] == ',' {
		b[len(b)-1] = ']'
		return b
	}
	return append(b, ']')
}

func key(b []byte, name string) []byte { return append(mesosjson.AppendString(b, name), ':') }

func text(b []byte, name, v string) []byte {
	return append(mesosjson.AppendString(key(b, name), v), ',')
}

func number(b []byte, name string, v float64) []byte {
	return append(mesosjson.AppendDouble(key(b, name), v), ',')
}

func boolean(b []byte, name string, v bool) []byte {
	return append(mesosjson.AppendBool(key(b, name), v), ',')
}

func message(b []byte, name string, v mesosjson.Appender) []byte {
	return append(v.AppendJSON(key(b, name)), ',')
}

func texts(b []byte, name string, vs []string) []byte {
	b = append(key(b, name), '[')
	for _, v := range vs {
		b = append(mesosjson.AppendString(b, v), ',')
	}
	return append(closedList(b), ',')
}

func list[T any](b []byte, name string, vs []T, element func([]byte, T) []byte) []byte {
	b = append(key(b, name), '[')
	for _, v := range vs {
		b = append(element(b, v), ',')
	}
	return append(closedList(b), ',')
}

func appendMessage[T mesosjson.Appender](b []byte, v T) []byte { return v.AppendJSON(b) }

func appendNumbers(b []byte, m map[string]float64) []byte {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		b = number(b, name, m[name])
	}
	return b
}

func appendFlags(b []byte, flags map[string]string) []byte {
	b = append(key(b, "flags"), '{')
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		b = text(b, name, flags[name])
	}
	return append(closed(b), ',')
}

// summary appends the sums by name: cpus, gpus, mem and disk always, ranges and sets as text, revocable ones apart.
func summary(b []byte, s resources.Set) []byte {
	b = append(b, '{')
	one := func(s resources.Set, suffix string, always ...string) {
		kinds := make(map[string]mesosv1.Value_Type)
		for _, name := range always {
			kinds[name] = mesosv1.Value_SCALAR
		}
		for i := range s.Entries() {
			e := &s.Entries()[i]
			kinds[e.Name()] = e.Type()
		}
		for _, name := range slices.Sorted(maps.Keys(kinds)) {
			switch kinds[name] {
			case mesosv1.Value_SCALAR:
				b = number(b, name+suffix, s.Scalar(name))
			case mesosv1.Value_RANGES:
				b = text(b, name+suffix, s.Ranges(name).String())
			case mesosv1.Value_SET:
				b = text(b, name+suffix, "{"+strings.Join(s.Items(name), ", ")+"}")
			}
		}
	}
	one(s.NonRevocable(), "", "cpus", "gpus", "mem", "disk")
	one(s.Revocable(), "_revocable")
	return closed(b)
}

func summaryMember(b []byte, name string, s resources.Set) []byte {
	return append(summary(key(b, name), s), ',')
}

// byRole appends an object of summaries by role.
func byRole(b []byte, name string, sets map[string]resources.Set) []byte {
	b = append(key(b, name), '{')
	for _, role := range slices.Sorted(maps.Keys(sets)) {
		b = summaryMember(b, role, sets[role])
	}
	return append(closed(b), ',')
}

func (a *Agent) legacyState() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.cfg.Version
	b := text([]byte{'{'}, "version", v.GetVersion())
	for name, value := range map[string]*string{"git_sha": v.GitSha, "git_branch": v.GitBranch, "git_tag": v.GitTag} {
		if value != nil {
			b = text(b, name, *value)
		}
	}
	b = text(b, "build_date", v.GetBuildDate())
	b = number(b, "build_time", v.GetBuildTime())
	b = text(b, "build_user", v.GetBuildUser())
	b = number(b, "start_time", seconds(a.started))
	b = text(b, "id", a.info.GetId().GetValue())
	b = text(b, "pid", "slave(1)@"+net.JoinHostPort(a.cfg.IP, strconv.Itoa(a.cfg.Port)))
	b = text(b, "hostname", a.info.GetHostname())
	b = texts(b, "capabilities", capabilities())
	if d := a.info.GetDomain(); d != nil {
		b = message(b, "domain", d)
	}
	if a.drain != nil {
		b = message(b, "drain_config", a.drain)
		b = number(b, "estimated_drain_start_time_seconds", seconds(a.drainSince))
	}
	total := a.holdings.total.Add(resources.New(a.revocable...))
	var used resources.Set
	for _, e := range a.containers {
		if e.phase != phaseTerminated {
			rs, _ := e.resources()
			used = used.Add(resources.New(rs...))
		}
	}
	b = summaryMember(b, "resources", total)
	b = byRole(b, "reserved_resources", total.Reservations())
	b = summaryMember(b, "unreserved_resources", total.Unreserved())
	b = append(key(b, "reserved_resources_full"), '{')
	reserved := total.Reservations()
	for _, role := range slices.Sorted(maps.Keys(reserved)) {
		b = list(b, role, resources.ToEndpoint(reserved[role].Resources()), appendMessage)
	}
	b = append(closed(b), ',')
	b = list(b, "unreserved_resources_full", resources.ToEndpoint(total.Unreserved().Resources()), appendMessage)
	b = byRole(b, "reserved_resources_allocated", used.Reservations())
	b = summaryMember(b, "unreserved_resources_allocated", used.Unreserved())
	b = list(b, "resource_providers", []string(nil), mesosjson.AppendString)
	b = appendAttributes(b, a.info.GetAttributes())
	if h := a.masterInfo.GetHostname(); h != "" {
		b = text(b, "master_hostname", h)
	}
	b = appendFlags(b, a.cfg.flags())
	b = list(b, "frameworks", a.sortedFrameworks(), func(b []byte, f *framework) []byte {
		b = appendFramework(b, f.info)
		b = list(b, "executors", f.sortedUnits(), appendExecutor)
		past := slices.DeleteFunc(slices.Clone(f.completed), func(x completedExecutor) bool { return a.present(x.container) })
		return closed(list(b, "completed_executors", past, appendCompleted))
	})
	b = list(b, "completed_frameworks", a.completed, func(b []byte, f *completedFramework) []byte {
		b = appendFramework(b, f.info)
		b = list(b, "executors", []*executor(nil), appendExecutor)
		return closed(list(b, "completed_executors", f.executors, appendCompleted))
	})
	return closed(b)
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

func appendAttributes(b []byte, as []*mesosv1.Attribute) []byte {
	b = append(key(b, "attributes"), '{')
	for _, x := range as {
		switch x.GetType() {
		case mesosv1.Value_SCALAR:
			b = number(b, x.GetName(), x.GetScalar().GetValue())
		case mesosv1.Value_TEXT:
			b = text(b, x.GetName(), x.GetText().GetValue())
		case mesosv1.Value_RANGES:
			b = text(b, x.GetName(), rangesOf(x).String())
		case mesosv1.Value_SET:
			b = text(b, x.GetName(), "{"+strings.Join(x.GetSet().GetItem(), ", ")+"}")
		}
	}
	return append(closed(b), ',')
}

// appendFramework leaves the object open.
func appendFramework(b []byte, f *mesosv1.FrameworkInfo) []byte {
	b = text(append(b, '{'), "id", f.GetId().GetValue())
	b = text(b, "name", f.GetName())
	b = text(b, "user", f.GetUser())
	b = number(b, "failover_timeout", f.GetFailoverTimeout())
	b = boolean(b, "checkpoint", f.GetCheckpoint())
	b = text(b, "hostname", f.GetHostname())
	if f.Principal != nil {
		b = text(b, "principal", f.GetPrincipal())
	}
	for _, c := range f.GetCapabilities() {
		if c.GetType() == mesosv1.FrameworkInfo_Capability_MULTI_ROLE {
			return texts(b, "roles", f.GetRoles())
		}
	}
	return text(b, "role", f.GetRole())
}

// appendExecutorInfo leaves the object open.
func appendExecutorInfo(b []byte, x *mesosv1.ExecutorInfo, container ContainerID, directory string, rs resources.Set) []byte {
	b = text(append(b, '{'), "id", x.GetExecutorId().GetValue())
	b = text(b, "name", x.GetName())
	b = text(b, "source", x.GetSource())
	b = text(b, "container", string(container))
	b = text(b, "directory", directory)
	b = summaryMember(b, "resources", rs)
	if role := roleOf(rs.Resources()); role != "" {
		b = text(b, "role", role)
	}
	if ls := x.GetLabels().GetLabels(); len(ls) > 0 {
		b = list(b, "labels", ls, appendMessage)
	}
	if x.Type != nil {
		b = text(b, "type", x.GetType().String())
	}
	return b
}

func roleOf(rs []*mesosv1.Resource) string {
	for _, r := range rs {
		if role := r.GetAllocationInfo().GetRole(); role != "" {
			return role
		}
	}
	return ""
}

func appendExecutor(b []byte, e *executor) []byte {
	var rs []*mesosv1.Resource
	if e.phase != phaseTerminated {
		rs, _ = e.resources()
	}
	b = appendExecutorInfo(b, e.describe(), e.container, e.directory, resources.New(rs...))
	var queued []*mesosv1.TaskInfo
	var tasks []*mesosv1.Task
	all := []*task{e.command}
	if e.command == nil {
		all = slices.SortedFunc(maps.Values(e.tasks), func(x, y *task) int { return cmp.Compare(x.order, y.order) })
	}
	for _, t := range all {
		if t.queued() && !terminal(t.state) {
			queued = append(queued, t.info)
		} else {
			tasks = append(tasks, t.describe())
		}
	}
	b = list(b, "tasks", tasks, appendTask)
	b = list(b, "queued_tasks", queued, appendQueued)
	var past []*mesosv1.Task
	for _, x := range e.framework.completed {
		if x.container == e.container {
			past = x.tasks
		}
	}
	return closed(list(b, "completed_tasks", past, appendTask))
}

func appendCompleted(b []byte, x completedExecutor) []byte {
	b = appendExecutorInfo(b, x.info, x.container, x.directory, resources.Set{})
	b = list(b, "tasks", []*mesosv1.Task(nil), appendTask)
	b = list(b, "queued_tasks", []*mesosv1.TaskInfo(nil), appendQueued)
	return closed(list(b, "completed_tasks", x.tasks, appendTask))
}

func appendQueued(b []byte, t *mesosv1.TaskInfo) []byte {
	b = text(append(b, '{'), "id", t.GetTaskId().GetValue())
	b = text(b, "name", t.GetName())
	b = text(b, "slave_id", t.GetAgentId().GetValue())
	b = summaryMember(b, "resources", resources.New(t.GetResources()...))
	b = text(b, "role", roleOf(t.GetResources()))
	if t.Command != nil {
		b = message(b, "command", t.Command)
	}
	if x := t.GetExecutor(); x != nil {
		b = text(b, "executor_id", x.GetExecutorId().GetValue())
	}
	if t.Discovery != nil {
		b = message(b, "discovery", t.Discovery)
	}
	return closed(b)
}

func appendTask(b []byte, t *mesosv1.Task) []byte {
	b = text(append(b, '{'), "id", t.GetTaskId().GetValue())
	b = text(b, "name", t.GetName())
	b = text(b, "framework_id", t.GetFrameworkId().GetValue())
	b = text(b, "executor_id", t.GetExecutorId().GetValue())
	b = text(b, "slave_id", t.GetAgentId().GetValue())
	b = text(b, "state", t.GetState().String())
	b = summaryMember(b, "resources", resources.New(t.GetResources()...))
	if len(t.GetLimits()) > 0 {
		b = append(key(b, "limits"), '{')
		for _, name := range slices.Sorted(maps.Keys(t.GetLimits())) {
			b = number(b, name, t.GetLimits()[name].GetValue())
		}
		b = append(closed(b), ',')
	}
	b = text(b, "role", roleOf(t.GetResources()))
	b = list(b, "statuses", t.GetStatuses(), appendStatus)
	if t.User != nil {
		b = text(b, "user", t.GetUser())
	}
	if ls := t.GetLabels().GetLabels(); len(ls) > 0 {
		b = list(b, "labels", ls, appendMessage)
	}
	if t.Discovery != nil {
		b = message(b, "discovery", t.Discovery)
	}
	if t.Container != nil {
		b = message(b, "container", t.Container)
	}
	if t.HealthCheck != nil {
		b = message(b, "health_check", t.HealthCheck)
	}
	return closed(b)
}

func appendStatus(b []byte, s *mesosv1.TaskStatus) []byte {
	b = text(append(b, '{'), "state", s.GetState().String())
	b = number(b, "timestamp", s.GetTimestamp())
	if ls := s.GetLabels().GetLabels(); len(ls) > 0 {
		b = list(b, "labels", ls, appendMessage)
	}
	if s.ContainerStatus != nil {
		b = message(b, "container_status", s.ContainerStatus)
	}
	if s.Healthy != nil {
		b = boolean(b, "healthy", s.GetHealthy())
	}
	return closed(b)
}

// appendContainer leaves the object open.
func appendContainer(b []byte, v containerView) []byte {
	b = append(b, '{')
	if v.executor == nil {
		return b
	}
	b = text(b, "framework_id", string(v.framework))
	b = text(b, "executor_id", v.executor.GetExecutorId().GetValue())
	b = text(b, "executor_name", v.executor.GetName())
	return text(b, "source", v.executor.GetSource())
}

func (a *Agent) legacyContainers(ctx context.Context, principal string, query url.Values) ([]byte, error) {
	container, framework, executor := query.Get("container_id"), query.Get("framework_id"), query.Get("executor_id")
	if executor != "" && framework == "" || container != "" && framework+executor != "" {
		return nil, refuse(http.StatusBadRequest, "Expecting 'container_id', or 'framework_id' with or without 'executor_id'")
	}
	show := map[string]bool{"show_nested": false, "show_standalone": false}
	for name := range show {
		if v := query.Get(name); v != "" {
			on, err := strconv.ParseBool(v)
			if err != nil {
				return nil, refuse(http.StatusBadRequest, "Failed to parse '%s': got '%s', want true or false", name, v)
			}
			show[name] = on
		}
	}
	vs, usage, err := a.views(ctx, principal, show["show_nested"], show["show_standalone"])
	if err != nil {
		return nil, err
	}
	b := []byte{'['}
	for _, v := range vs {
		if container != "" && v.path.own() != container || framework != "" && string(v.framework) != framework ||
			executor != "" && v.executor.GetExecutorId().GetValue() != executor {
			continue
		}
		b = text(appendContainer(b, v), "container_id", v.path.own())
		if v.status != nil {
			b = message(b, "status", v.status)
		}
		if s := usage[v.path.id()]; s != nil {
			b = message(b, "statistics", s)
		}
		b = append(closed(b), ',')
	}
	return closedList(b), nil
}

func (a *Agent) legacyStatistics(ctx context.Context, principal string) ([]byte, error) {
	vs, usage, err := a.views(ctx, principal, false, false)
	if err != nil {
		return nil, err
	}
	b := []byte{'['}
	for _, v := range vs {
		if s := usage[v.path.id()]; s != nil {
			b = append(closed(message(appendContainer(b, v), "statistics", s)), ',')
		}
	}
	return closedList(b), nil
}

// durationText tells whether s is a duration in Mesos's spelling.
func durationText(s string) bool {
	for _, unit := range []string{"weeks", "days", "hrs", "mins", "secs", "ms", "us", "ns"} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			v, err := strconv.ParseFloat(n, 64)
			return err == nil && v >= 0
		}
	}
	return false
}
