package master

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// maxOwedAcks bounds the acknowledgements kept for an agent that is away. One that is lost costs one
// more delivery of that update.
const maxOwedAcks = 10_000

// agent is one that is registered, whether its stream stands or not.
type agent struct {
	id           string
	info         *mesosv1.AgentInfo // immutable, with id
	record       registry.Agent     // as the registry has it
	version      string
	capabilities map[string]bool
	total        resources.Set // with oversubscribed resources
	peer         string        // IP address that it connects from; empty if unknown

	conn *agentConn // nil while disconnected
	// leaving: a change in the registry that ends its registration is under way.
	leaving                  bool
	registered, reregistered time.Time
	drainStarted             time.Time       // zero unless it is drained, or was and is not reactivated
	unavailable              *unavailability // nil unless its machine is to go away

	ping     *timer
	removal  *timer // runs when it is its turn to be given up; nil while there is no reason to
	awaiting bool   // the last ping has no answer yet
	missed   int    // pings without an answer, in a row

	tasks     map[*task]struct{}
	executors map[executorKey]*executor
	offers    map[*offer]struct{}
	// operations are those it has not been acknowledged for, by uuid; nil when there was none.
	operations map[string]*operation
	owedAcks   []*clusterv1.Acknowledge
	slot       int // in the view
}

// recoveredAgent was admitted by a former master and has not returned yet.
type recoveredAgent struct {
	record  registry.Agent
	leaving bool
	slot    int // in the view
}

type executorKey struct{ framework, executor string }

// executor is one that tasks were launched with and whose end was not reported.
type executor struct {
	info      *mesosv1.ExecutorInfo // immutable, with framework_id and allocated resources
	framework *framework
	agent     *agent
	resources resources.Set
	known     bool // it is in its agent's executors, and its resources are accounted for
	slot      int  // in the view
}

// can says whether the agent has a capability.
func (a *agent) can(c mesosv1.AgentInfo_Capability_Type) bool { return a.capabilities[c.String()] }

// offerable says whether the agent may be offered: it is there, and no operator holds it back.
func (a *agent) offerable() bool {
	return a.conn != nil && !a.leaving && !a.record.Deactivated && a.record.Drain == nil
}

// ip is the agent's address for those who want numbers; nil if it is not known.
func (a *agent) ip() *string {
	if a.peer != "" {
		return &a.peer
	}
	if net.ParseIP(a.info.GetHostname()) != nil {
		return a.info.Hostname
	}
	return nil
}

// tell queues a message to an agent. While it is away, what matters is said when it returns.
func (s *state) tell(a *agent, msg *clusterv1.ToAgent) {
	if a.conn != nil {
		a.conn.out.push(s.message(msg))
	}
}

// refuseAgent ends a stream with the reason why the agent may not register.
func (s *state) refuseAgent(c *agentConn, fatal bool, format string, args ...any) {
	reason := fmt.Sprintf(format, args...)
	s.log.Warn("agent refused", "reason", reason, "fatal", fatal)
	c.out.push(s.message(&clusterv1.ToAgent{Message: &clusterv1.ToAgent_Refused{
		Refused: &clusterv1.Refused{Message: reason, Fatal: fatal}}}))
	c.out.close()
}

// shutDown ends a stream with the order to end all tasks and then the agent.
func (s *state) shutDown(c *agentConn, why string) {
	s.log.Warn("agent shut down", "reason", why)
	c.out.push(s.message(&clusterv1.ToAgent{Message: &clusterv1.ToAgent_Shutdown{Shutdown: &clusterv1.Shutdown{Message: why}}}))
	c.out.close()
}

// hello registers an agent: a new one, one whose stream broke, one that a former master admitted, or
// one that was unreachable.
func (s *state) hello(c *agentConn, h *clusterv1.Hello, now time.Time) {
	if c.greeted {
		s.refuseAgent(c, false, "a second Hello on one stream")
		return
	}
	c.greeted = true
	info := h.GetAgent()
	if err := validateAgent(h); err != nil {
		s.refuseAgent(c, true, "%v", err)
		return
	}
	if s.refuseDown(c, info) {
		return
	}
	// Not for good: an agent with another configuration may come back with its tasks.
	switch {
	case !versionAtLeast(h.GetVersion(), minAgentVersion):
		s.refuseAgent(c, false, "the agent has version %q, want %v or later", h.GetVersion(), minAgentVersion)
		return
	case s.cfg.RequireAgentDomain && info.GetDomain().GetFaultDomain() == nil:
		s.refuseAgent(c, false, "the agent has no fault domain, and this master requires one")
		return
	case s.cfg.Domain == nil && info.GetDomain().GetFaultDomain() != nil:
		s.refuseAgent(c, false, "the agent has a fault domain, and this master has none")
		return
	}
	id := info.GetId().GetValue()
	if id == "" {
		s.admit(c, h, now)
		return
	}
	if _, ok := s.gone[id]; ok {
		s.shutDown(c, "Agent "+id+" was marked gone and may not return")
		return
	}
	if a := s.agents[id]; a != nil {
		switch {
		case a.leaving:
			s.refuseAgent(c, false, "agent %s is being removed; try again", id)
		case a.info.GetHostname() != info.GetHostname() || a.info.GetPort() != info.GetPort():
			s.refuseAgent(c, true, "agent %s is at %s:%d, was at %s:%d; its address may not change",
				id, info.GetHostname(), info.GetPort(), a.info.GetHostname(), a.info.GetPort())
		case !a.info.EqualVT(info):
			record := a.record
			record.Info = info
			s.persist(agentAdmitted(record), func(now time.Time) {
				if s.agents[id] == a && !a.leaving {
					a.record = record
					s.reconnect(a, c, h, now)
				}
			})
		default:
			s.reconnect(a, c, h, now)
		}
		return
	}
	r := s.recovered[id]
	if r != nil && r.leaving {
		s.refuseAgent(c, false, "agent %s is being removed; try again", id)
		return
	}
	var record registry.Agent
	if r != nil {
		record = r.record
	} else {
		record = s.unreachable[id].Agent
	}
	if r != nil && record.Info.EqualVT(info) {
		s.forgetRecovered(id)
		s.register(c, h, record, false, now)
		return
	}
	record.Info = info
	// Changed since, unreachable until now, or of a registry that was lost: the registry first.
	s.persist(agentAdmitted(record), func(now time.Time) {
		if s.agents[id] != nil {
			s.refuseAgent(c, false, "agent %s is registered by another stream; try again", id)
			return
		}
		_, wasUnreachable := s.unreachable[id]
		s.forgetUnreachable(id)
		s.forgetRecovered(id)
		s.register(c, h, record, wasUnreachable, now)
	})
}

// minAgentVersion is the oldest version of an agent that may register.
const minAgentVersion = "1.0.0"

// versionAtLeast compares dotted numbers; what comes after the third, or after the number, does not count.
func versionAtLeast(version, least string) bool {
	parse := func(text string) (v [3]int, ok bool) {
		for i, part := range strings.SplitN(text, ".", 4) {
			if i == len(v) {
				break
			}
			digits := part[:len(part)-len(strings.TrimLeft(part, "0123456789"))]
			n, err := strconv.Atoi(digits)
			if err != nil {
				return v, false
			}
			v[i] = n
		}
		return v, true
	}
	a, ok := parse(version)
	b, _ := parse(least)
	return ok && slices.Compare(a[:], b[:]) >= 0
}

// validateAgent says what is wrong with a Hello.
func validateAgent(h *clusterv1.Hello) error {
	info := h.GetAgent()
	switch {
	case info == nil:
		return fmt.Errorf("the Hello has no agent")
	case info.GetHostname() == "":
		return fmt.Errorf("the agent has no hostname")
	}
	if id := info.GetId().GetValue(); id != "" {
		if err := validateID(id); err != nil {
			return fmt.Errorf("agent ID is invalid: %w", err)
		}
	}
	for _, rs := range [][]*mesosv1.Resource{info.GetResources(), h.GetTotalResources(), h.GetOversubscribedResources()} {
		if err := resources.ValidateAll(rs); err != nil {
			return fmt.Errorf("agent's resources are invalid: %w", err)
		}
	}
	return nil
}

// admit gives a new agent its id. Where an agent is known at the same address and is not connected,
// the new one has taken its place: it was started anew without its checkpoints.
func (s *state) admit(c *agentConn, h *clusterv1.Hello, now time.Time) {
	if old := s.byAddress[addressOf(h.Agent)]; old != nil && h.Agent.GetPort() != 0 {
		if old.conn != nil || old.leaving {
			s.refuseAgent(c, false, "agent %s at %s is still connected; try again", old.id, addressOf(old.info))
			return
		}
		s.dismiss(old, []change{registry.RemoveAgent(old.id)}, removal{
			state: mesosv1.TaskState_TASK_GONE, reason: mesosv1.TaskStatus_REASON_AGENT_REMOVED,
			message: "A new agent registered at the same address", metric: &s.metrics.removedRegistered,
		})
	}
	id := s.newAgentID()
	info := h.Agent.CloneVT()
	info.Id = &mesosv1.AgentID{Value: &id}
	h.Agent = info
	record := registry.Agent{Info: info}
	s.persist(agentAdmitted(record), func(now time.Time) { s.register(c, h, record, false, now) })
}

// addressOf is where an agent is reached.
func addressOf(info *mesosv1.AgentInfo) string {
	return net.JoinHostPort(info.GetHostname(), strconv.Itoa(int(info.GetPort())))
}

// register makes an agent that the registry knows part of the cluster, with all that it runs.
func (s *state) register(c *agentConn, h *clusterv1.Hello, record registry.Agent, wasUnreachable bool, now time.Time) {
	id := record.Info.GetId().GetValue()
	a := &agent{
		id:         id,
		info:       record.Info,
		record:     record,
		registered: now,
		tasks:      make(map[*task]struct{}),
		executors:  make(map[executorKey]*executor),
		offers:     make(map[*offer]struct{}),
	}
	s.agents[id] = a
	s.byAddress[addressOf(a.info)] = a
	s.connect(a, c, h)
	a.slot = s.views.agents.add(nil)
	s.showAgent(a)
	s.emitAgentAdded(a)
	if len(h.GetTasks())+len(h.GetExecutors())+len(h.GetFrameworks()) > 0 {
		s.metrics.reregistrations.Add(1)
	} else {
		s.metrics.registrations.Add(1)
	}

	shutdown := make(map[string]bool)
	for _, e := range h.GetExecutors() {
		if f := s.frameworkOf(h, e.GetFrameworkId(), shutdown, now); f != nil {
			s.readdExecutor(f, a, e.GetExecutor())
		}
	}
	var returned []*task
	for _, proto := range h.GetTasks() {
		f := s.frameworkOf(h, proto.GetFrameworkId().GetValue(), shutdown, now)
		if f == nil {
			continue
		}
		if t := s.readdTask(f, a, proto); t != nil && wasUnreachable && !terminal(t.state()) {
			returned = append(returned, t)
		}
	}
	s.readdOperations(a, h.GetOperations())
	s.tellAllocator(a, h)
	s.allocateBy(now)
	for _, t := range returned {
		status := s.currentStatus(t.proto, mesosv1.TaskStatus_REASON_AGENT_REREGISTERED, "Agent reregistered", now)
		s.countUpdate(t.framework, status)
		s.sendUpdate(t.framework, status)
		s.emitTaskUpdated(t, status)
	}
	s.tellShutdown(a, shutdown)
	s.tellFrameworks(a, h)
	if a.record.Drain != nil {
		s.obeyRecord(a, now)
	}
	s.pingAgent(a, now)
	s.obeyMaintenance(a, now)
	s.log.Info("agent registered", "agent", id, "hostname", a.info.GetHostname(), "tasks", len(a.tasks), "resources", a.total.String())
}

// tellAllocator has the allocator know an agent, as it says it is, with what frameworks use there.
func (s *state) tellAllocator(a *agent, h *clusterv1.Hello) {
	used := make(map[string]resources.Set)
	for t := range a.tasks { // sums do not depend on the order
		if !t.released {
			used[t.framework.id] = used[t.framework.id].Add(t.resources)
		}
	}
	for _, e := range a.executors {
		used[e.framework.id] = used[e.framework.id].Add(e.resources)
	}
	s.allocator.AddAgent(a.id, a.info, capabilityMessages(h.GetCapabilities()), a.total, used)
	if !a.offerable() {
		s.allocator.DeactivateAgent(a.id)
	}
}

// connect makes a stream the agent's, and answers on it.
func (s *state) connect(a *agent, c *agentConn, h *clusterv1.Hello) {
	if a.conn != nil && a.conn != c {
		a.conn.agent = nil
		a.conn.out.close()
	}
	a.conn, c.agent = c, a
	a.version = h.GetVersion()
	a.peer = c.peer
	a.capabilities = make(map[string]bool)
	for _, name := range h.GetCapabilities() {
		a.capabilities[name] = true
	}
	a.total = totalOf(a.info, h.GetTotalResources(), h.GetOversubscribedResources())
	s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_Registered{Registered: &clusterv1.Registered{
		AgentId: a.info.Id,
		Master:  s.info,
		// As long as the master itself waits before it gives the agent up.
		PingTimeoutMs: (time.Duration(s.cfg.MaxPingTimeouts) * s.cfg.PingInterval).Milliseconds(),
	}}})
	if c.ended { // while the registry was written
		a.conn, c.agent = nil, nil
	}
}

// totalOf is what an agent has: what it checkpointed if it says so, else what it was started with.
func totalOf(info *mesosv1.AgentInfo, total, oversubscribed []*mesosv1.Resource) resources.Set {
	if len(total) == 0 {
		total = info.GetResources()
	}
	return resources.New(total...).Add(resources.New(oversubscribed...))
}

// capabilityMessages are an agent's capabilities as messages, in the order of their numbers. Names that
// the wire does not know are left out.
func capabilityMessages(names []string) []*mesosv1.AgentInfo_Capability {
	var types []mesosv1.AgentInfo_Capability_Type
	for _, name := range names {
		if n, ok := mesosv1.AgentInfo_Capability_Type_value[name]; ok {
			types = append(types, mesosv1.AgentInfo_Capability_Type(n))
		}
	}
	slices.Sort(types)
	out := make([]*mesosv1.AgentInfo_Capability, len(types))
	for i := range types {
		out[i] = &mesosv1.AgentInfo_Capability{Type: &types[i]}
	}
	return out
}

// frameworkOf finds the framework of something that a returning agent runs, and begins to know it where
// only the agent does. It is nil, and noted in shutdown, for one that was removed or that nobody knows.
func (s *state) frameworkOf(h *clusterv1.Hello, id string, shutdown map[string]bool, now time.Time) *framework {
	if f := s.frameworks[id]; f != nil {
		return f
	}
	if !s.completedIDs[id] && validateID(id) == nil {
		for _, info := range h.GetFrameworks() {
			if info.GetId().GetValue() == id {
				return s.recoverFramework(info, now)
			}
		}
	}
	shutdown[id] = true
	return nil
}

// readdTask begins to know a task that a returning agent names. It is nil for one that cannot be.
func (s *state) readdTask(f *framework, a *agent, proto *mesosv1.Task) *task {
	id := proto.GetTaskId().GetValue()
	if validateID(id) != nil || f.tasks[id] != nil {
		return nil
	}
	proto = copyTask(proto)
	proto.AgentId = a.info.Id
	set := resources.New(proto.GetResources()...)
	f.unreachableTasks.take(s, id)
	f.completedTasks.take(s, id)
	if n := len(proto.Statuses); n > 0 && terminal(proto.GetState()) && proto.StatusUpdateUuid == nil {
		proto.StatusUpdateState, proto.StatusUpdateUuid = proto.Statuses[n-1].State, proto.Statuses[n-1].Uuid
	}
	return s.addTask(f, a, proto, set)
}

// readdExecutor begins to know an executor that a returning agent names.
func (s *state) readdExecutor(f *framework, a *agent, info *mesosv1.ExecutorInfo) {
	if a.executors[executorKey{f.id, info.GetExecutorId().GetValue()}] != nil || info.GetExecutorId() == nil {
		return
	}
	s.addExecutor(&executor{info: info, framework: f, agent: a, resources: resources.New(info.GetResources()...)})
}

// tellShutdown has a returning agent end frameworks that are no more.
func (s *state) tellShutdown(a *agent, ids map[string]bool) {
	for _, id := range sortedKeys(ids) {
		s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_ShutdownFramework{
			ShutdownFramework: &clusterv1.ShutdownFramework{FrameworkId: id}}})
	}
}

// tellFrameworks gives a returning agent the newest FrameworkInfo of those it has an older one of.
func (s *state) tellFrameworks(a *agent, h *clusterv1.Hello) {
	for _, old := range h.GetFrameworks() {
		if f := s.frameworks[old.GetId().GetValue()]; f != nil && !f.info.EqualVT(old) {
			s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_UpdateFramework{
				UpdateFramework: &clusterv1.UpdateFramework{Framework: f.info}}})
		}
	}
}

// reconnect gives a registered agent its new stream, and makes both sides agree on what it runs.
func (s *state) reconnect(a *agent, c *agentConn, h *clusterv1.Hello, now time.Time) {
	info, capabilities := a.info, a.capabilities
	a.info = h.Agent
	a.reregistered = now
	s.connect(a, c, h)
	s.metrics.reregistrations.Add(1)
	if info.EqualVT(a.info) && maps.Equal(capabilities, a.capabilities) {
		s.allocator.UpdateAgentTotal(a.id, a.total)
	} else { // other attributes, another domain, a newer version: it may be for others now
		s.rescindAll(a, now)
		s.tellAllocator(a, h)
	}
	s.showAgent(a)
	if a.conn == nil {
		s.allocator.DeactivateAgent(a.id)
		return // it will be back, and say all this again
	}
	if a.offerable() {
		s.allocator.ActivateAgent(a.id)
	}

	shutdown := make(map[string]bool)
	named := make(map[*task]bool)
	for _, proto := range h.GetTasks() {
		f := s.frameworkOf(h, proto.GetFrameworkId().GetValue(), shutdown, now)
		if f == nil {
			continue
		}
		t := f.tasks[proto.GetTaskId().GetValue()]
		switch {
		case t != nil && t.agent == a:
			named[t] = true
			if terminal(proto.GetState()) && !terminal(t.state()) {
				// Its update is on its way; the resources are free already.
				c := copyTask(t.proto)
				c.State = proto.State
				s.release(t, now)
				s.setTask(t, c)
			}
		case !terminal(proto.GetState()):
			// Declared lost since, or launched by nobody: it must not run unaccounted for.
			s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_KillTask{
				KillTask: &clusterv1.KillTask{FrameworkId: f.id, TaskId: proto.GetTaskId().GetValue()}}})
		}
	}
	for _, t := range sortedAgentTasks(a) {
		switch {
		case !named[t] && terminal(t.state()):
			s.completeTask(t, now)
		case !named[t]:
			s.loseTask(t, mesosv1.TaskState_TASK_GONE, mesosv1.TaskStatus_REASON_RECONCILIATION,
				"Reconciliation: task unknown to the agent", now)
		case t.kill != nil:
			s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_KillTask{KillTask: t.kill}})
		}
	}
	s.readdOperations(a, h.GetOperations())
	alive := make(map[executorKey]bool)
	for _, e := range h.GetExecutors() {
		key := executorKey{e.GetFrameworkId(), e.GetExecutor().GetExecutorId().GetValue()}
		alive[key] = true
		if a.executors[key] == nil {
			s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_ShutdownExecutor{
				ShutdownExecutor: &clusterv1.ShutdownExecutor{FrameworkId: key.framework, ExecutorId: key.executor}}})
		}
	}
	for _, e := range executorsOf(a) {
		if !alive[executorKey{e.framework.id, e.info.GetExecutorId().GetValue()}] {
			s.removeExecutor(e, now)
		}
	}
	for _, info := range h.GetFrameworks() {
		if id := info.GetId().GetValue(); s.completedIDs[id] {
			shutdown[id] = true
		}
	}
	owed := a.owedAcks
	a.owedAcks = nil
	for _, ack := range owed {
		s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_Acknowledge{Acknowledge: ack}})
	}
	s.tellShutdown(a, shutdown)
	s.tellFrameworks(a, h)
	s.answered(a)
	if a.record.Drain != nil {
		s.obeyRecord(a, now)
	}
	s.obeyMaintenance(a, now)
	s.allocateBy(now)
	s.log.Info("agent reconnected", "agent", a.id, "tasks", len(a.tasks))
}

// agentDisconnected notes that a stream has ended. The agent's tasks go on.
func (s *state) agentDisconnected(c *agentConn, now time.Time) {
	c.ended = true
	c.out.close()
	a := c.agent
	if a == nil || a.conn != c {
		return
	}
	a.conn, c.agent = nil, nil
	s.rescindAll(a, now)
	s.rescindInverses(a)
	s.allocator.DeactivateAgent(a.id)
	s.showAgent(a)
	s.loseUncheckpointed(a, now)
	s.log.Info("agent disconnected", "agent", a.id)
}

// sortedFrameworks returns the frameworks in the order of their ids.
func (s *state) sortedFrameworks() []*framework {
	out := make([]*framework, 0, len(s.frameworks))
	for _, f := range s.frameworks {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *framework) int { return compareIDs(a.id, b.id) })
	return out
}

func sortedAgentTasks(a *agent) []*task {
	out := make([]*task, 0, len(a.tasks))
	for t := range a.tasks {
		out = append(out, t)
	}
	slices.SortFunc(out, func(x, y *task) int {
		if c := compareIDs(x.framework.id, y.framework.id); c != 0 {
			return c
		}
		return compareIDs(x.id(), y.id())
	})
	return out
}

// resourcesChanged takes over what an agent has now.
func (s *state) resourcesChanged(a *agent, r *clusterv1.ResourcesChanged, now time.Time) {
	s.metrics.resourcesChanged.Add(1)
	for _, rs := range [][]*mesosv1.Resource{r.GetTotalResources(), r.GetOversubscribedResources()} {
		if err := resources.ValidateAll(rs); err != nil {
			s.log.Warn("agent reports invalid resources", "agent", a.id, "error", err)
			return
		}
	}
	a.total = s.withPending(a, totalOf(a.info, r.GetTotalResources(), r.GetOversubscribedResources()))
	// Offers may hold what is no more; the others come again at once.
	s.rescindAll(a, now)
	s.allocator.UpdateAgentTotal(a.id, a.total)
	s.showAgent(a)
	s.allocateBy(now)
}
