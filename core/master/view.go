package master

import (
	"slices"
	"strings"
	"sync"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	maintenancev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/maintenance"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// taskKind is in which list of its framework a task is.
type taskKind uint8

const (
	taskActive      taskKind = iota // not yet acknowledged to the end
	taskUnreachable                 // its agent is unreachable
	taskCompleted
)

// Entries are what the view shows of one object. They are immutable but for the encoded forms, which
// are made when first asked for and kept as long as the object does not change.
type (
	taskEntry struct {
		proto   *mesosv1.Task
		set     resources.Set // what it uses; empty once it has ended
		kind    taskKind
		encoded [2]encoded // by format; in protobuf with the tag of the list it is in
		legacy  encoded
	}
	executorEntry struct {
		info        *mesosv1.ExecutorInfo
		agentID     *mesosv1.AgentID
		frameworkID string
		set         resources.Set
		legacy      encoded
	}
	offerEntry struct {
		proto *mesosv1.Offer
		set   resources.Set
		role  string
	}
	frameworkEntry struct {
		id                                     string
		info                                   *mesosv1.FrameworkInfo
		roles                                  []string
		constraints                            constraints
		active, connected, recovered, complete bool
		registered, reregistered, unregistered time.Time
		suppressed                             []string
		metrics                                *frameworkMetrics
	}
	agentEntry struct {
		id                       string
		info                     *mesosv1.AgentInfo
		version, pid             string
		active, connected        bool
		deactivated              bool
		drain                    *mesosv1.DrainInfo
		drainStarted             time.Time
		total                    resources.Set
		capabilities             []string
		registered, reregistered time.Time
	}
)

// encoded is one encoded form of an entry.
type encoded struct {
	once sync.Once
	data []byte
	err  error
}

// get returns the form, made by make the first time.
func (e *encoded) get(make func() ([]byte, error)) ([]byte, error) {
	e.once.Do(func() { e.data, e.err = make() })
	return e.data, e.err
}

// viewBuilder is the loop's side of the view.
type viewBuilder struct {
	cfg     *Config
	info    *mesosv1.MasterInfo
	metrics *metrics

	tasks      table[taskEntry]
	executors  table[executorEntry]
	offers     table[offerEntry]
	inverses   table[mesosv1.InverseOffer]
	operations table[mesosv1.Operation]
	frameworks table[frameworkEntry]
	agents     table[agentEntry]
	recovered  table[mesosv1.AgentInfo]
	away       int                // agents that are unreachable
	weights    map[string]float64 // replaced, never changed
	quotas     map[string]*quotav1.QuotaConfig
	schedule   *maintenancev1.Schedule
	elected    time.Time

	changed bool  // something outside the tables changed since last
	last    *view // what was published last
}

func newViewBuilder(cfg *Config, info *mesosv1.MasterInfo, m *metrics) *viewBuilder {
	return &viewBuilder{cfg: cfg, info: info, metrics: m}
}

// publish returns the view of now. It costs what changed since the last one, which it returns again if
// nothing did.
func (b *viewBuilder) publish() *view {
	if b.last != nil && !b.changed && !b.tasks.fresh && !b.executors.fresh && !b.offers.fresh && !b.inverses.fresh && !b.operations.fresh &&
		!b.frameworks.fresh && !b.agents.fresh && !b.recovered.fresh {
		return b.last
	}
	b.changed = false
	b.last = &view{
		cfg:        b.cfg,
		info:       b.info,
		metrics:    b.metrics,
		tasks:      b.tasks.snapshot(),
		executors:  b.executors.snapshot(),
		offers:     b.offers.snapshot(),
		inverses:   b.inverses.snapshot(),
		operations: b.operations.snapshot(),
		frameworks: b.frameworks.snapshot(),
		agents:     b.agents.snapshot(),
		recovered:  b.recovered.snapshot(),
		away:       b.away,
		weights:    b.weights,
		quotas:     b.quotas,
		schedule:   b.schedule,
		elected:    b.elected,
	}
	return b.last
}

// view is the cluster at one moment, for those who read. Nothing in it changes, and it is safe for
// use by many goroutines.
type view struct {
	cfg        *Config
	info       *mesosv1.MasterInfo
	metrics    *metrics
	tasks      snapshot[taskEntry]
	executors  snapshot[executorEntry]
	offers     snapshot[offerEntry]
	inverses   snapshot[mesosv1.InverseOffer]
	operations snapshot[mesosv1.Operation]
	frameworks snapshot[frameworkEntry]
	agents     snapshot[agentEntry]
	recovered  snapshot[mesosv1.AgentInfo]
	away       int
	weights    map[string]float64
	quotas     map[string]*quotav1.QuotaConfig
	schedule   *maintenancev1.Schedule
	elected    time.Time

	tallyOnce sync.Once
	tallied   *tally
	bodies    bodies
}

// framework returns a framework by id, nil if it is not registered.
func (v *view) framework(id string) *frameworkEntry {
	for f := range v.frameworks.all() {
		if f.id == id && !f.complete {
			return f
		}
	}
	return nil
}

// tally is what tasks, executors and offers add up to.
type tally struct {
	agents     map[string]*usage
	frameworks map[string]*usage
	roles      map[string]*usage
}

// usage is what one agent, framework or role has.
type usage struct {
	used, offered resources.Set
	offers        []*offerEntry
	inverses      []*mesosv1.InverseOffer
}

// tally adds up once per view, when first asked.
func (v *view) tally() *tally {
	v.tallyOnce.Do(func() {
		t := &tally{make(map[string]*usage), make(map[string]*usage), make(map[string]*usage)}
		of := func(m map[string]*usage, key string) *usage {
			u := m[key]
			if u == nil {
				u = new(usage)
				m[key] = u
			}
			return u
		}
		use := func(agent, framework string, set resources.Set) {
			if set.Empty() {
				return
			}
			a, f, r := of(t.agents, agent), of(t.frameworks, framework), of(t.roles, allocationRole(set))
			a.used, f.used, r.used = a.used.Add(set), f.used.Add(set), r.used.Add(set)
		}
		for e := range v.tasks.all() {
			use(e.proto.GetAgentId().GetValue(), e.proto.GetFrameworkId().GetValue(), e.set)
		}
		for e := range v.executors.all() {
			use(e.agentID.GetValue(), e.frameworkID, e.set)
		}
		for o := range v.offers.all() {
			for _, u := range []*usage{
				of(t.agents, o.proto.GetAgentId().GetValue()),
				of(t.frameworks, o.proto.GetFrameworkId().GetValue()),
				of(t.roles, o.role),
			} {
				u.offered = u.offered.Add(o.set)
				u.offers = append(u.offers, o)
			}
		}
		for o := range v.inverses.all() {
			u := of(t.frameworks, o.GetFrameworkId().GetValue())
			u.inverses = append(u.inverses, o)
		}
		v.tallied = t
	})
	return v.tallied
}

// allocationRole is the role that resources are allocated to; all of one task have the same.
func allocationRole(set resources.Set) string {
	entries := set.Entries()
	if len(entries) == 0 {
		return ""
	}
	return entries[0].AllocatedTo()
}

// of returns the usage under a key, never nil.
func usageOf(m map[string]*usage, key string) *usage {
	if u := m[key]; u != nil {
		return u
	}
	return new(usage)
}

// showFramework shows a framework in the view as it is now.
func (s *state) showFramework(f *framework) {
	s.views.frameworks.set(f.slot, &frameworkEntry{
		id:           f.id,
		info:         f.info,
		roles:        f.roles,
		constraints:  f.constraints,
		active:       f.stream != nil,
		connected:    f.stream != nil,
		recovered:    !f.returned && f.unregistered.IsZero(),
		complete:     !f.unregistered.IsZero(),
		registered:   f.registered,
		reregistered: f.reregistered,
		unregistered: f.unregistered,
		suppressed:   f.suppressed,
		metrics:      f.metrics,
	})
}

// showAgent shows an agent in the view as it is now.
func (s *state) showAgent(a *agent) {
	e := &agentEntry{
		id:           a.id,
		info:         a.info,
		version:      a.version,
		active:       a.offerable(),
		connected:    a.conn != nil,
		deactivated:  a.record.Deactivated,
		drain:        a.record.Drain,
		drainStarted: a.drainStarted,
		total:        a.total,
		registered:   a.registered,
		reregistered: a.reregistered,
	}
	host := a.info.GetHostname()
	if ip := a.ip(); ip != nil {
		host = *ip
	}
	e.pid = agentPID(host, a.info.GetPort())
	for name := range a.capabilities {
		e.capabilities = append(e.capabilities, name)
	}
	slices.Sort(e.capabilities)
	s.views.agents.set(a.slot, e)
}

// getTasks is the body of GET_TASKS.
func (v *view) getTasks() *masterv1.Response_GetTasks {
	out := &masterv1.Response_GetTasks{}
	for e := range v.tasks.all() {
		switch e.kind {
		case taskActive:
			out.Tasks = append(out.Tasks, e.proto)
		case taskUnreachable:
			out.UnreachableTasks = append(out.UnreachableTasks, e.proto)
		case taskCompleted:
			out.CompletedTasks = append(out.CompletedTasks, e.proto)
		}
	}
	return out
}

// getExecutors is the body of GET_EXECUTORS.
func (v *view) getExecutors() *masterv1.Response_GetExecutors {
	out := &masterv1.Response_GetExecutors{}
	for e := range v.executors.all() {
		out.Executors = append(out.Executors, &masterv1.Response_GetExecutors_Executor{ExecutorInfo: e.info, AgentId: e.agentID})
	}
	return out
}

// getFrameworks is the body of GET_FRAMEWORKS.
func (v *view) getFrameworks() *masterv1.Response_GetFrameworks {
	out := &masterv1.Response_GetFrameworks{}
	t := v.tally()
	for f := range v.frameworks.all() {
		m := f.message(usageOf(t.frameworks, f.id))
		if f.complete {
			out.CompletedFrameworks = append(out.CompletedFrameworks, m)
		} else {
			out.Frameworks = append(out.Frameworks, m)
		}
	}
	return out
}

// message is a framework as the operator API shows it.
func (f *frameworkEntry) message(u *usage) *masterv1.Response_GetFrameworks_Framework {
	m := &masterv1.Response_GetFrameworks_Framework{
		FrameworkInfo:      f.info,
		Active:             &f.active,
		Connected:          &f.connected,
		Recovered:          &f.recovered,
		RegisteredTime:     timeInfo(f.registered),
		ReregisteredTime:   timeInfo(f.reregistered),
		UnregisteredTime:   timeInfo(f.unregistered),
		AllocatedResources: u.used.Resources(),
		OfferedResources:   u.offered.Resources(),
		OfferConstraints:   f.constraints.proto,
		InverseOffers:      u.inverses,
	}
	for _, o := range u.offers {
		m.Offers = append(m.Offers, o.proto)
	}
	return m
}

// getAgents is the body of GET_AGENTS.
func (v *view) getAgents() *masterv1.Response_GetAgents {
	out := &masterv1.Response_GetAgents{}
	for info := range v.recovered.all() {
		out.RecoveredAgents = append(out.RecoveredAgents, info)
	}
	t := v.tally()
	for a := range v.agents.all() {
		out.Agents = append(out.Agents, a.message(usageOf(t.agents, a.id)))
	}
	return out
}

// message is an agent as the operator API shows it.
func (a *agentEntry) message(u *usage) *masterv1.Response_GetAgents_Agent {
	m := &masterv1.Response_GetAgents_Agent{
		AgentInfo:          a.info,
		Active:             &a.active,
		Deactivated:        &a.deactivated,
		Version:            &a.version,
		Pid:                &a.pid,
		RegisteredTime:     timeInfo(a.registered),
		ReregisteredTime:   timeInfo(a.reregistered),
		TotalResources:     resources.ToEndpoint(a.total.Resources()),
		AllocatedResources: resources.ToEndpoint(u.used.Resources()),
		OfferedResources:   resources.ToEndpoint(u.offered.Resources()),
		Capabilities:       capabilityMessages(a.capabilities),
		DrainInfo:          a.drain,
	}
	if !a.drainStarted.IsZero() {
		m.EstimatedDrainStartTime = timeInfo(a.drainStarted)
	}
	return m
}

// getState is the body of GET_STATE.
func (v *view) getState() *masterv1.Response_GetState {
	return &masterv1.Response_GetState{
		GetTasks:      v.getTasks(),
		GetExecutors:  v.getExecutors(),
		GetFrameworks: v.getFrameworks(),
		GetAgents:     v.getAgents(),
	}
}

// role is what is known of one role.
type role struct {
	name       string
	weight     float64
	frameworks []string
	usage      *usage // of the role itself
	// What the role and those below it have together. What counts against a quota is what is reserved, and what else
	// is allocated and not revocable.
	allocated, offered, reserved, consumed resources.Quantities
}

// roles returns the roles that may be used, or, if that is not restricted, every role that has a framework, a
// reservation, resources, a weight or a quota, and those above them; by name.
func (v *view) roles() []*role {
	byName := make(map[string]*role)
	of := func(name string) *role {
		r := byName[name]
		if r == nil {
			r = &role{name: name, weight: 1, usage: new(usage)}
			r.allocated, r.offered, r.reserved, r.consumed = resources.Quantities{}, resources.Quantities{}, resources.Quantities{}, resources.Quantities{}
			if w, ok := v.weights[name]; ok {
				r.weight = w
			}
			byName[name] = r
		}
		return r
	}
	for f := range v.frameworks.all() {
		if f.complete {
			continue
		}
		for _, name := range f.roles {
			r := of(name)
			r.frameworks = append(r.frameworks, f.id)
		}
	}
	for name, u := range v.tally().roles {
		of(name).usage = u
	}
	for name := range v.weights {
		of(name)
	}
	for name := range v.quotas {
		of(name)
	}
	for _, name := range v.cfg.Roles {
		of(name)
	}
	reserved := make(map[string]resources.Set)
	for a := range v.agents.all() {
		for name, set := range a.total.Reservations() {
			of(name)
			reserved[name] = reserved[name].Add(set)
		}
	}
	for _, name := range sortedKeys(byName) {
		for i, c := range name {
			if c == '/' {
				of(name[:i])
			}
		}
	}
	for _, name := range sortedKeys(byName) {
		own := byName[name].usage
		allocated, offered, held := own.used.Quantities(), own.offered.Quantities(), reserved[name].Quantities()
		consumed := held.Add(countedForQuota(own.used))
		for above := name; above != ""; above = above[:max(0, strings.LastIndexByte(above, '/'))] {
			r := byName[above]
			r.allocated, r.offered = r.allocated.Add(allocated), r.offered.Add(offered)
			r.reserved, r.consumed = r.reserved.Add(held), r.consumed.Add(consumed)
		}
	}
	out := make([]*role, 0, len(byName))
	for _, name := range sortedKeys(byName) {
		if v.cfg.knownRole(name) != nil {
			continue
		}
		slices.SortFunc(byName[name].frameworks, compareIDs)
		out = append(out, byName[name])
	}
	return out
}

func sortedKeys[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
