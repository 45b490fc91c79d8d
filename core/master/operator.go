package master

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// OperatorCall carries out a call of the operator API. Reads are answered from the newest view and see
// all that was answered before.
//
// Errors: a Refusal with 400 (what the call names does not exist or is wrong), 403, or 501 for calls
// that this master does not know.
func (m *Master) OperatorCall(ctx context.Context, principal string, call *masterv1.Call) (*masterv1.Response, error) {
	v := m.view.Load()
	if agentID, op := operationCall(call); op != nil {
		return nil, m.operateForOperator(ctx, principal, agentID, op)
	}
	if resp, ok, err := m.maintenanceCall(ctx, principal, call); ok {
		return resp, err
	}
	switch call.GetType() {
	case masterv1.Call_GET_HEALTH:
		return &masterv1.Response{
			Type:      masterv1.Response_GET_HEALTH.Enum(),
			GetHealth: &masterv1.Response_GetHealth{Healthy: ptr(true)},
		}, nil
	case masterv1.Call_GET_FLAGS:
		if err := m.approve(ctx, principal, "VIEW_FLAGS"); err != nil {
			return nil, forbidden("%v", err)
		}
		flags := &masterv1.Response_GetFlags{}
		for _, name := range sortedKeys(m.cfg.Flags) {
			flags.Flags = append(flags.Flags, &mesosv1.Flag{Name: ptr(name), Value: ptr(m.cfg.Flags[name])})
		}
		return &masterv1.Response{Type: masterv1.Response_GET_FLAGS.Enum(), GetFlags: flags}, nil
	case masterv1.Call_GET_VERSION:
		return &masterv1.Response{
			Type:       masterv1.Response_GET_VERSION.Enum(),
			GetVersion: &masterv1.Response_GetVersion{VersionInfo: m.versionInfo()},
		}, nil
	case masterv1.Call_GET_METRICS:
		values := v.snapshot(m.cfg.Now())
		v.frameworkMetrics(values)
		metrics := &masterv1.Response_GetMetrics{}
		for _, name := range sortedKeys(values) {
			metrics.Metrics = append(metrics.Metrics, &mesosv1.Metric{Name: ptr(name), Value: ptr(values[name])})
		}
		return &masterv1.Response{Type: masterv1.Response_GET_METRICS.Enum(), GetMetrics: metrics}, nil
	case masterv1.Call_GET_MASTER:
		return &masterv1.Response{
			Type: masterv1.Response_GET_MASTER.Enum(),
			GetMaster: &masterv1.Response_GetMaster{
				MasterInfo:  v.info,
				StartTime:   ptr(seconds(m.metrics.started)),
				ElectedTime: ptr(seconds(v.elected)),
			},
		}, nil
	case masterv1.Call_GET_STATE:
		return &masterv1.Response{Type: masterv1.Response_GET_STATE.Enum(), GetState: v.getState()}, nil
	case masterv1.Call_GET_TASKS:
		return &masterv1.Response{Type: masterv1.Response_GET_TASKS.Enum(), GetTasks: v.getTasks()}, nil
	case masterv1.Call_GET_EXECUTORS:
		return &masterv1.Response{Type: masterv1.Response_GET_EXECUTORS.Enum(), GetExecutors: v.getExecutors()}, nil
	case masterv1.Call_GET_FRAMEWORKS:
		return &masterv1.Response{Type: masterv1.Response_GET_FRAMEWORKS.Enum(), GetFrameworks: v.getFrameworks()}, nil
	case masterv1.Call_GET_AGENTS:
		return &masterv1.Response{Type: masterv1.Response_GET_AGENTS.Enum(), GetAgents: v.getAgents()}, nil
	case masterv1.Call_GET_OPERATIONS:
		operations := &masterv1.Response_GetOperations{}
		for o := range v.operations.all() {
			operations.Operations = append(operations.Operations, o)
		}
		return &masterv1.Response{Type: masterv1.Response_GET_OPERATIONS.Enum(), GetOperations: operations}, nil
	case masterv1.Call_GET_QUOTA:
		return &masterv1.Response{Type: masterv1.Response_GET_QUOTA.Enum(), GetQuota: m.getQuota(ctx, principal, v)}, nil
	case masterv1.Call_SET_QUOTA:
		return nil, m.setQuota(ctx, principal, call.GetSetQuota().GetQuotaRequest())
	case masterv1.Call_REMOVE_QUOTA:
		return nil, m.removeQuota(ctx, principal, call.GetRemoveQuota().GetRole())
	case masterv1.Call_UPDATE_QUOTA:
		return nil, m.updateQuota(ctx, principal, call.GetUpdateQuota())
	case masterv1.Call_DEACTIVATE_AGENT:
		return nil, m.deactivateAgent(ctx, principal, call.GetDeactivateAgent().GetAgentId().GetValue())
	case masterv1.Call_REACTIVATE_AGENT:
		return nil, m.reactivateAgent(ctx, principal, call.GetReactivateAgent().GetAgentId().GetValue())
	case masterv1.Call_DRAIN_AGENT:
		return nil, m.drainAgent(ctx, principal, call.GetDrainAgent())
	case masterv1.Call_MARK_AGENT_GONE:
		return nil, m.markAgentGone(ctx, principal, call.GetMarkAgentGone().GetAgentId().GetValue())
	case masterv1.Call_GET_LOGGING_LEVEL:
		return &masterv1.Response{
			Type:            masterv1.Response_GET_LOGGING_LEVEL.Enum(),
			GetLoggingLevel: &masterv1.Response_GetLoggingLevel{Level: ptr(m.verbosity())},
		}, nil
	case masterv1.Call_SET_LOGGING_LEVEL:
		return nil, m.setVerbosity(ctx, principal, call.GetSetLoggingLevel())
	case masterv1.Call_GET_ROLES:
		return &masterv1.Response{Type: masterv1.Response_GET_ROLES.Enum(), GetRoles: v.getRoles()}, nil
	case masterv1.Call_GET_WEIGHTS:
		return &masterv1.Response{Type: masterv1.Response_GET_WEIGHTS.Enum(), GetWeights: v.getWeights()}, nil
	case masterv1.Call_UPDATE_WEIGHTS:
		return nil, m.updateWeights(ctx, principal, call.GetUpdateWeights().GetWeightInfos())
	case masterv1.Call_TEARDOWN:
		return nil, m.teardown(ctx, principal, call.GetTeardown().GetFrameworkId().GetValue())
	case masterv1.Call_SUBSCRIBE:
		return nil, badRequest("A SUBSCRIBE has no place here")
	}
	return nil, notImplemented("Call %s is not supported by this master", call.GetType())
}

// versionInfo describes the build.
func (m *Master) versionInfo() *mesosv1.VersionInfo {
	info := &mesosv1.VersionInfo{Version: &m.cfg.Version}
	if m.cfg.BuildDate != "" {
		info.BuildDate = &m.cfg.BuildDate
	}
	if m.cfg.BuildUser != "" {
		info.BuildUser = &m.cfg.BuildUser
	}
	return info
}

func (v *view) getRoles() *masterv1.Response_GetRoles {
	out := &masterv1.Response_GetRoles{}
	for _, r := range v.roles() {
		m := &mesosv1.Role{Name: &r.name, Weight: &r.weight, Resources: r.usage.used.Add(r.usage.offered).Resources()}
		for _, id := range r.frameworks {
			m.Frameworks = append(m.Frameworks, &mesosv1.FrameworkID{Value: &id})
		}
		out.Roles = append(out.Roles, m)
	}
	return out
}

func (v *view) getWeights() *masterv1.Response_GetWeights {
	out := &masterv1.Response_GetWeights{}
	for _, name := range sortedKeys(v.weights) {
		out.WeightInfos = append(out.WeightInfos, &mesosv1.WeightInfo{Role: ptr(name), Weight: ptr(v.weights[name])})
	}
	return out
}

// updateWeights sets the weights of roles, all or none, once the registry has them.
func (m *Master) updateWeights(ctx context.Context, principal string, infos []*mesosv1.WeightInfo) error {
	weights := make(map[string]float64, len(infos))
	for _, w := range infos {
		if err := resources.ValidateRole(w.GetRole()); err != nil {
			return badRequest("Invalid weight: %v", err)
		}
		if err := m.cfg.knownRole(w.GetRole()); err != nil {
			return badRequest("Invalid weight: %v", err)
		}
		if x := w.GetWeight(); !(x > 0) || math.IsInf(x, 0) {
			return badRequest("Invalid weight '%v' for role '%s': Weights must be positive", x, w.GetRole())
		}
		weights[w.GetRole()] = w.GetWeight()
	}
	for _, role := range sortedKeys(weights) {
		if err := m.approve(ctx, principal, "UPDATE_WEIGHT", role); err != nil {
			return forbidden("%v", err)
		}
	}
	if len(weights) == 0 {
		return nil
	}
	return m.doPersisted(ctx, weightsSet(weights), func(now time.Time) {
		all := make(map[string]float64, len(m.s.weights)+len(weights))
		for role, w := range m.s.weights {
			all[role] = w
		}
		for role, w := range weights {
			all[role] = w
			m.s.allocator.SetWeight(role, w)
		}
		m.s.weights, m.s.views.weights, m.s.views.changed = all, all, true
		for _, f := range m.s.sortedFrameworks() {
			// What was offered by the old weights is offered anew by the new ones.
			for _, o := range sortedOffers(f.offers) {
				m.s.rescind(o, nil, now)
			}
		}
		m.s.allocateBy(now)
	})
}

// teardown removes a framework at an operator's request.
func (m *Master) teardown(ctx context.Context, principal, id string) error {
	f := m.view.Load().framework(id)
	if f == nil {
		return badRequest("No framework found with specified ID")
	}
	if err := m.approve(ctx, principal, "TEARDOWN_FRAMEWORK", f.info.GetPrincipal()); err != nil {
		return forbidden("%v", err)
	}
	return m.do(ctx, func(now time.Time) {
		if f := m.s.frameworks[id]; f != nil {
			m.s.removeFramework(f, now)
		}
	})
}

// OperatorStream carries events to one subscriber; it is core/api's. Send queues and never blocks.
type OperatorStream = interface {
	Send(*masterv1.Event) bool
	Close()
	Done() <-chan struct{}
}

// subscriber is one operator stream. Events are queued from the moment at which its first message, the
// state, was taken; that message is made outside the loop, for it may be large.
type subscriber struct {
	stream OperatorStream

	mu      sync.Mutex
	waiting []*masterv1.Event // guarded by mu; queued until the state was sent
	started bool              // guarded by mu; the state was sent
	closed  bool              // guarded by mu
}

// maxWaiting bounds the events that come while the first message is made, which takes a second or two
// at most. A subscriber with more is cut off; it can come again.
const maxWaiting = 100_000

// send queues an event. It is false when the stream has ended.
func (u *subscriber) send(e *masterv1.Event) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return false
	}
	if u.started {
		return u.stream.Send(e)
	}
	if len(u.waiting) >= maxWaiting {
		u.closed = true
		u.stream.Close()
		return false
	}
	u.waiting = append(u.waiting, e)
	return true
}

// start sends the first message and what has come since.
func (u *subscriber) start(first *masterv1.Event) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return
	}
	u.stream.Send(first)
	for _, e := range u.waiting {
		u.stream.Send(e)
	}
	u.waiting, u.started = nil, true
}

func (u *subscriber) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed, u.waiting = true, nil
	u.stream.Close()
}

// OperatorSubscribe begins a stream: the state of now, then what changes.
func (m *Master) OperatorSubscribe(ctx context.Context, principal string, stream OperatorStream) error {
	u := &subscriber{stream: stream}
	var v *view
	err := m.do(ctx, func(time.Time) {
		s := m.s
		if s.cfg.MaxOperatorEventStreamSubscribers == 0 {
			u.close()
			return
		}
		if len(s.subscribers) >= s.cfg.MaxOperatorEventStreamSubscribers {
			s.subscribers[0].close()
			s.subscribers = s.subscribers[1:]
		}
		v = s.views.publish()
		s.subscribers = append(s.subscribers, u)
		s.metrics.subscribers.Store(int64(len(s.subscribers)))
		m.watch(stream.Done(), func(time.Time) { s.unsubscribe(u) })
	})
	if err != nil || v == nil {
		return err
	}
	if !m.goWatch(func() {
		u.start(&masterv1.Event{
			Type: masterv1.Event_SUBSCRIBED.Enum(),
			Subscribed: &masterv1.Event_Subscribed{
				GetState:                 v.getState(),
				HeartbeatIntervalSeconds: ptr(heartbeatSeconds),
			},
		})
	}) {
		return errStopped
	}
	return nil
}

func (s *state) unsubscribe(u *subscriber) {
	for i := range s.subscribers {
		if s.subscribers[i] == u {
			s.subscribers = append(s.subscribers[:i:i], s.subscribers[i+1:]...)
			break
		}
	}
	s.metrics.subscribers.Store(int64(len(s.subscribers)))
}

// emit gives an event to all subscribers. make is called only if there are any.
func (s *state) emit(make func() *masterv1.Event) {
	if len(s.subscribers) == 0 {
		return
	}
	e := make()
	for _, u := range s.subscribers {
		u.send(e) // one that has ended is removed by its watch
	}
}

func (s *state) emitTaskAdded(t *mesosv1.Task) {
	s.emit(func() *masterv1.Event {
		return &masterv1.Event{Type: masterv1.Event_TASK_ADDED.Enum(), TaskAdded: &masterv1.Event_TaskAdded{Task: t}}
	})
}

func (s *state) emitTaskUpdated(t *task, status *mesosv1.TaskStatus) {
	s.emit(func() *masterv1.Event {
		return &masterv1.Event{Type: masterv1.Event_TASK_UPDATED.Enum(), TaskUpdated: &masterv1.Event_TaskUpdated{
			FrameworkId: t.proto.FrameworkId, Status: status, State: t.state().Enum()}}
	})
}

func (s *state) emitAgentAdded(a *agent) {
	s.emit(func() *masterv1.Event {
		e := s.views.agents.get(a.slot)
		return &masterv1.Event{Type: masterv1.Event_AGENT_ADDED.Enum(), AgentAdded: &masterv1.Event_AgentAdded{
			Agent: e.message(new(usage))}}
	})
}

func (s *state) emitAgentRemoved(id *mesosv1.AgentID) {
	s.emit(func() *masterv1.Event {
		return &masterv1.Event{Type: masterv1.Event_AGENT_REMOVED.Enum(), AgentRemoved: &masterv1.Event_AgentRemoved{AgentId: id}}
	})
}

func (s *state) emitFrameworkAdded(f *framework) {
	s.emit(func() *masterv1.Event {
		return &masterv1.Event{Type: masterv1.Event_FRAMEWORK_ADDED.Enum(),
			FrameworkAdded: &masterv1.Event_FrameworkAdded{Framework: s.frameworkMessage(f)}}
	})
}

func (s *state) emitFrameworkUpdated(f *framework) {
	s.emit(func() *masterv1.Event {
		return &masterv1.Event{Type: masterv1.Event_FRAMEWORK_UPDATED.Enum(),
			FrameworkUpdated: &masterv1.Event_FrameworkUpdated{Framework: s.frameworkMessage(f)}}
	})
}

func (s *state) emitFrameworkRemoved(f *framework) {
	s.emit(func() *masterv1.Event {
		return &masterv1.Event{Type: masterv1.Event_FRAMEWORK_REMOVED.Enum(),
			FrameworkRemoved: &masterv1.Event_FrameworkRemoved{FrameworkInfo: f.info}}
	})
}

// frameworkMessage is a framework as it is now, with what it uses and is offered.
func (s *state) frameworkMessage(f *framework) *masterv1.Response_GetFrameworks_Framework {
	u := new(usage)
	for _, t := range f.tasks {
		if !t.released {
			u.used = u.used.Add(t.resources)
		}
	}
	for e := range f.executors {
		u.used = u.used.Add(e.resources)
	}
	for _, o := range sortedOffers(f.offers) {
		u.offered = u.offered.Add(o.resources)
		u.offers = append(u.offers, &offerEntry{proto: o.proto})
	}
	for o := range f.inverses {
		u.inverses = append(u.inverses, o.proto)
	}
	slices.SortFunc(u.inverses, func(a, b *mesosv1.InverseOffer) int {
		return compareIDs(a.GetId().GetValue(), b.GetId().GetValue())
	})
	return s.views.frameworks.get(f.slot).message(u)
}
