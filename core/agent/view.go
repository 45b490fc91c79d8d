package agent

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
)

// What operators may see and do over the v1 API.

// OperatorCall answers a call of the agent's operator API that needs no stream and no files.
//
// Errors have a method HTTPStatus: 404 for containers that are not here, 501 for calls this agent does not know.
func (a *Agent) OperatorCall(ctx context.Context, principal string, call *agentv1.Call) (*agentv1.Response, error) {
	switch call.GetType() {
	case agentv1.Call_GET_HEALTH:
		return &agentv1.Response{
			Type:      agentv1.Response_GET_HEALTH.Enum(),
			GetHealth: &agentv1.Response_GetHealth{Healthy: new(true)},
		}, nil
	case agentv1.Call_GET_FLAGS:
		r := &agentv1.Response_GetFlags{}
		flags := a.cfg.flags()
		for _, name := range slices.Sorted(maps.Keys(flags)) {
			r.Flags = append(r.Flags, &mesosv1.Flag{Name: new(name), Value: new(flags[name])})
		}
		return &agentv1.Response{Type: agentv1.Response_GET_FLAGS.Enum(), GetFlags: r}, nil
	case agentv1.Call_GET_VERSION:
		return &agentv1.Response{
			Type:       agentv1.Response_GET_VERSION.Enum(),
			GetVersion: &agentv1.Response_GetVersion{VersionInfo: a.cfg.Version},
		}, nil
	case agentv1.Call_GET_METRICS:
		r := &agentv1.Response_GetMetrics{}
		values := a.metrics()
		for _, name := range slices.Sorted(maps.Keys(values)) {
			r.Metrics = append(r.Metrics, &mesosv1.Metric{Name: new(name), Value: new(values[name])})
		}
		return &agentv1.Response{Type: agentv1.Response_GET_METRICS.Enum(), GetMetrics: r}, nil
	case agentv1.Call_GET_LOGGING_LEVEL:
		return &agentv1.Response{
			Type:            agentv1.Response_GET_LOGGING_LEVEL.Enum(),
			GetLoggingLevel: &agentv1.Response_GetLoggingLevel{Level: new(a.verbosity())},
		}, nil
	case agentv1.Call_SET_LOGGING_LEVEL:
		return nil, a.setVerbosity(call.GetSetLoggingLevel())
	case agentv1.Call_GET_STATE:
		a.mu.Lock()
		defer a.mu.Unlock()
		return &agentv1.Response{Type: agentv1.Response_GET_STATE.Enum(), GetState: &agentv1.Response_GetState{
			GetTasks:      a.getTasks(),
			GetExecutors:  a.getExecutors(),
			GetFrameworks: a.getFrameworks(),
		}}, nil
	case agentv1.Call_GET_CONTAINERS:
		r, err := a.getContainers(ctx, principal, call.GetGetContainers())
		if err != nil {
			return nil, err
		}
		return &agentv1.Response{Type: agentv1.Response_GET_CONTAINERS.Enum(), GetContainers: r}, nil
	case agentv1.Call_GET_FRAMEWORKS:
		a.mu.Lock()
		defer a.mu.Unlock()
		return &agentv1.Response{Type: agentv1.Response_GET_FRAMEWORKS.Enum(), GetFrameworks: a.getFrameworks()}, nil
	case agentv1.Call_GET_EXECUTORS:
		a.mu.Lock()
		defer a.mu.Unlock()
		return &agentv1.Response{Type: agentv1.Response_GET_EXECUTORS.Enum(), GetExecutors: a.getExecutors()}, nil
	case agentv1.Call_GET_TASKS:
		a.mu.Lock()
		defer a.mu.Unlock()
		return &agentv1.Response{Type: agentv1.Response_GET_TASKS.Enum(), GetTasks: a.getTasks()}, nil
	case agentv1.Call_GET_OPERATIONS:
		a.mu.Lock()
		defer a.mu.Unlock()
		return &agentv1.Response{
			Type:          agentv1.Response_GET_OPERATIONS.Enum(),
			GetOperations: &agentv1.Response_GetOperations{Operations: a.operationRecords()},
		}, nil
	case agentv1.Call_GET_RESOURCE_PROVIDERS:
		return &agentv1.Response{
			Type:                 agentv1.Response_GET_RESOURCE_PROVIDERS.Enum(),
			GetResourceProviders: &agentv1.Response_GetResourceProviders{},
		}, nil
	case agentv1.Call_GET_AGENT:
		a.mu.Lock()
		defer a.mu.Unlock()
		r := &agentv1.Response_GetAgent{AgentInfo: a.info, DrainConfig: a.drain}
		if a.drain != nil {
			r.EstimatedDrainStartTime = &mesosv1.TimeInfo{Nanoseconds: new(a.drainSince.UnixNano())}
		}
		return &agentv1.Response{Type: agentv1.Response_GET_AGENT.Enum(), GetAgent: r}, nil
	case agentv1.Call_PRUNE_IMAGES:
		return nil, a.pruneImages(ctx, call.GetPruneImages())
	default:
		return a.containerCall(ctx, principal, call)
	}
}

func (a *Agent) getTasks() *agentv1.Response_GetTasks {
	r := &agentv1.Response_GetTasks{}
	for _, f := range a.sortedFrameworks() {
		for _, t := range f.sortedTasks() {
			switch x := t.describe(); {
			case terminal(t.state):
				r.TerminatedTasks = append(r.TerminatedTasks, x)
			case t.queued():
				r.QueuedTasks = append(r.QueuedTasks, x)
			default:
				r.LaunchedTasks = append(r.LaunchedTasks, x)
			}
		}
	}
	for _, f := range a.allCompleted() {
		for _, x := range f.executors {
			r.CompletedTasks = append(r.CompletedTasks, x.tasks...)
		}
	}
	return r
}

// queued tells whether nothing of the task runs yet.
func (t *task) queued() bool {
	if t.command() {
		return t.executor.phase < phaseLaunching
	}
	return !t.delivered
}

// allCompleted returns what is over, also of frameworks that still have something here.
func (a *Agent) allCompleted() []*completedFramework {
	all := slices.Clone(a.completed)
	for _, f := range a.sortedFrameworks() {
		all = append(all, &completedFramework{f.info, f.completed})
	}
	return all
}

// sortedUnits returns the framework's executors, the built-in ones of its command tasks included.
func (f *framework) sortedUnits() []*executor {
	all := f.sortedExecutors()
	for _, t := range f.sortedTasks() {
		if t.command() {
			all = append(all, t.executor)
		}
	}
	return all
}

func (a *Agent) getExecutors() *agentv1.Response_GetExecutors {
	r := &agentv1.Response_GetExecutors{}
	for _, f := range a.sortedFrameworks() {
		for _, e := range f.sortedUnits() {
			x := &agentv1.Response_GetExecutors_Executor{ExecutorInfo: e.describe()}
			if e.phase == phaseTerminated {
				r.CompletedExecutors = append(r.CompletedExecutors, x)
			} else {
				r.Executors = append(r.Executors, x)
			}
		}
	}
	for _, f := range a.allCompleted() {
		for _, x := range f.executors {
			if !a.present(x.container) {
				r.CompletedExecutors = append(r.CompletedExecutors, &agentv1.Response_GetExecutors_Executor{ExecutorInfo: x.info})
			}
		}
	}
	return r
}

// present tells whether a container is still accounted for: a custom executor with completed tasks may well run.
func (a *Agent) present(id ContainerID) bool { return a.containers[id] != nil }

func (a *Agent) getFrameworks() *agentv1.Response_GetFrameworks {
	r := &agentv1.Response_GetFrameworks{}
	for _, f := range a.sortedFrameworks() {
		r.Frameworks = append(r.Frameworks, &agentv1.Response_GetFrameworks_Framework{FrameworkInfo: f.info})
	}
	for _, f := range a.completed {
		r.CompletedFrameworks = append(r.CompletedFrameworks, &agentv1.Response_GetFrameworks_Framework{FrameworkInfo: f.info})
	}
	return r
}

// containerView is what the views show of one container.
type containerView struct {
	framework FrameworkID
	executor  *mesosv1.ExecutorInfo // nil for standalone containers and those in them
	path      containerPath
	user      string
	status    *mesosv1.ContainerStatus
}

// views returns the running containers, by id, and what they use; of nested ones and standalone ones those that are
// wanted, and only what the principal may see. Status is what the last update said: asking again for a thousand
// containers would take longer than a reader waits.
//
// Errors: nobody can tell what the principal may see.
func (a *Agent) views(ctx context.Context, principal string, nested, standalone bool) ([]containerView, map[string]*mesosv1.ResourceStatistics, error) {
	a.mu.Lock()
	var all []containerView
	for _, e := range a.containers {
		if !e.running() {
			continue
		}
		root := containerView{
			framework: e.framework.id, executor: e.describe(), path: pathOfID(string(e.container)),
			user: a.executorUser(e), status: containerStatus(e, nil),
		}
		all = append(all, root)
		for _, t := range e.tasks {
			if x := t.executor; x.parent == e && x.running() {
				v := root
				v.path, v.status = pathOfID(string(x.container)), containerStatus(x, nil)
				all = append(all, v)
			}
		}
	}
	for _, g := range a.guests {
		if !g.running() {
			continue
		}
		v := containerView{path: g.path, user: g.spec.GetUser(), status: g.status}
		if e := a.containers[g.root()]; e != nil {
			v.framework, v.executor, v.user = e.framework.id, e.describe(), a.executorUser(e)
		}
		all = append(all, v)
	}
	a.mu.Unlock()
	slices.SortFunc(all, func(x, y containerView) int { return slices.Compare(x.path, y.path) })
	var ids []string // of all: the next reader may want others
	var vs []containerView
	for _, v := range all {
		ids = append(ids, v.path.id())
		if v.path.nested() && !nested || v.executor == nil && !standalone {
			continue
		}
		ok, err := a.visible(ctx, principal, v)
		if err != nil {
			return nil, nil, err
		}
		if ok {
			vs = append(vs, v)
		}
	}
	if len(vs) == 0 {
		return nil, nil, nil
	}
	return vs, a.usage.get(ctx, a, ids), nil
}

func (a *Agent) getContainers(ctx context.Context, principal string, call *agentv1.Call_GetContainers) (*agentv1.Response_GetContainers, error) {
	r := &agentv1.Response_GetContainers{}
	vs, usage, err := a.views(ctx, principal, call.GetShowNested(), call.GetShowStandalone())
	if err != nil {
		return nil, err
	}
	for _, v := range vs {
		c := &agentv1.Response_GetContainers_Container{
			// Without its parents, as in Mesos; the status has them.
			ContainerId:        &mesosv1.ContainerID{Value: new(v.path.own())},
			ContainerStatus:    v.status,
			ResourceStatistics: usage[v.path.id()],
		}
		if v.executor != nil {
			c.FrameworkId = &mesosv1.FrameworkID{Value: new(string(v.framework))}
			c.ExecutorId, c.ExecutorName = v.executor.GetExecutorId(), new(v.executor.GetName())
		}
		r.Containers = append(r.Containers, c)
	}
	return r, nil
}

// usageFresh is how old measurements may be that a reader gets. Mesos lets two readers a second measure.
const usageFresh = 500 * time.Millisecond

// usageCache measures at most once at a time, however many readers there are.
type usageCache struct {
	mu      sync.Mutex // guards what follows
	at      time.Time
	values  map[string]*mesosv1.ResourceStatistics
	running chan struct{} // closed when the measurement under way is done; nil without one
}

func (u *usageCache) get(ctx context.Context, a *Agent, ids []string) map[string]*mesosv1.ResourceStatistics {
	for {
		u.mu.Lock()
		if !u.at.IsZero() && time.Since(u.at) < usageFresh {
			defer u.mu.Unlock()
			return u.values
		}
		if wait := u.running; wait != nil {
			u.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		done := make(chan struct{})
		u.running = done
		u.mu.Unlock()

		// Not the reader's context: others wait for this too.
		limit, cancel := context.WithTimeout(a.work, usageTimeout)
		values, err := a.ctzr.Usage(limit, ids)
		cancel()
		if err != nil {
			a.log.Warn("measure containers", "error", err)
		}
		u.mu.Lock()
		u.at, u.values, u.running = time.Now(), values, nil
		close(done)
		u.mu.Unlock()
		return values
	}
}

// verbosity is the logging level as Mesos counts: 0 is normal, more is more.
func (a *Agent) verbosity() uint32 {
	if a.deps.LogLevel != nil && a.deps.LogLevel.Level() < slog.LevelInfo {
		return 1
	}
	return 0
}

// setVerbosity changes the logging level for a while.
func (a *Agent) setVerbosity(c *agentv1.Call_SetLoggingLevel) error {
	level := a.deps.LogLevel
	if level == nil {
		return refuse(http.StatusNotImplemented, "This agent's logging level cannot be changed")
	}
	if c.GetLevel() > 3 {
		return refuse(http.StatusBadRequest, "Invalid level '%d': want 0 to 3", c.GetLevel())
	}
	d := time.Duration(c.GetDuration().GetNanoseconds())
	if d < 0 {
		return refuse(http.StatusBadRequest, "Invalid duration: got %v", d)
	}
	level.Set(slog.LevelInfo)
	if c.GetLevel() > 0 {
		level.Set(slog.LevelDebug)
		a.timers.after(d, func() { level.Set(slog.LevelInfo) })
	}
	return nil
}

// flags shows the configuration under Mesos's names.
func (c *Config) flags() map[string]string {
	f := map[string]string{
		"work_dir":                          c.WorkDir,
		"master":                            strings.Join(c.Masters, ","),
		"hostname":                          c.Hostname,
		"ip":                                c.IP,
		"port":                              strconv.Itoa(c.Port),
		"resources":                         c.Resources,
		"default_role":                      cmp.Or(c.DefaultRole, "*"),
		"attributes":                        c.Attributes,
		"reconfiguration_policy":            c.ReconfigurationPolicy,
		"cgroups_root":                      c.CgroupRoot,
		"switch_user":                       strconv.FormatBool(!c.KeepUser),
		"sandbox_directory":                 c.SandboxDirectory,
		"executor_registration_timeout":     mesosDuration(c.ExecutorRegistrationTimeout),
		"executor_reregistration_timeout":   mesosDuration(c.ExecutorReregistrationTimeout),
		"executor_shutdown_grace_period":    mesosDuration(c.ExecutorShutdownGracePeriod),
		"recovery_timeout":                  mesosDuration(c.RecoveryTimeout),
		"oversubscribed_resources_interval": mesosDuration(c.OversubscribedResourcesInterval),
		"qos_correction_interval_min":       mesosDuration(c.QoSCorrectionInterval),
		"gc_delay":                          mesosDuration(c.GCDelay),
		"gc_disk_headroom":                  strconv.FormatFloat(c.GCDiskHeadroom, 'f', -1, 64),
		"disk_watch_interval":               mesosDuration(c.DiskWatchInterval),
	}
	for k, v := range c.Flags {
		f[k] = v
	}
	for k, v := range f {
		if v == "" {
			delete(f, k)
		}
	}
	return f
}
