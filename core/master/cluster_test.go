package master

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// cluster is a master with what it takes to talk to it as agents and frameworks do: gRPC over memory,
// and streams that record. Tests run it in a synctest bubble, where settle waits until nothing more
// happens without time passing.
type cluster struct {
	testing.TB
	m        *Master
	registry registry.Store
	listener *bufconn.Listener
	server   *grpc.Server
	cancel   context.CancelFunc
	ended    chan error
	agents   []*fakeAgent
}

// inBubble runs a test with a cluster in a synctest bubble.
func inBubble(t *testing.T, cfg Config, deps Deps, test func(t *testing.T, c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := startCluster(t, cfg, deps)
		defer c.stop()
		test(t, c)
	})
}

func startCluster(t testing.TB, cfg Config, deps Deps) *cluster {
	t.Helper()
	if cfg.Hostname == "" {
		cfg.Hostname = "master.example"
	}
	if cfg.ID == "" {
		cfg.ID = "M"
	}
	if deps.Registry == nil {
		deps.Registry = registry.NewMemory()
	}
	m, err := New(cfg, deps)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &cluster{TB: t, m: m, registry: deps.Registry, listener: bufconn.Listen(1 << 20), server: grpc.NewServer(),
		cancel: cancel, ended: make(chan error, 1)}
	m.Register(c.server)
	go c.server.Serve(c.listener)
	go func() { c.ended <- m.Run(ctx) }()
	for {
		if _, recovered, _ := m.Leader(); recovered {
			break
		}
		select {
		case err := <-c.ended:
			t.Fatalf("Run ended: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	return c
}

func (c *cluster) stop() {
	c.Helper()
	c.cancel()
	if err := <-c.ended; err != nil {
		c.Errorf("Run = %v, want nil", err)
	}
	c.server.Stop()
	for _, a := range c.agents {
		for _, end := range a.opened {
			end()
		}
	}
}

// settle waits until nobody does anything any more without time passing.
func (c *cluster) settle() { synctest.Wait() }

// pass lets time go by, and what happens then.
func (c *cluster) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// recorder is a stream that keeps what was sent.
type recorder[E any] struct {
	mu     sync.Mutex
	events []E
	ended  bool
	done   chan struct{}
}

func newRecorder[E any]() *recorder[E] { return &recorder[E]{done: make(chan struct{})} }

func (r *recorder[E]) Send(e E) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return false
	}
	r.events = append(r.events, e)
	return true
}

func (r *recorder[E]) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		r.ended = true
		close(r.done)
	}
}

func (r *recorder[E]) Done() <-chan struct{} { return r.done }

func (r *recorder[E]) closed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended
}

// take returns what was sent since the last take.
func (r *recorder[E]) take() []E {
	r.mu.Lock()
	defer r.mu.Unlock()
	events := r.events
	r.events = nil
	return events
}

// scheduler is a framework's side.
type scheduler struct {
	c         *cluster
	principal string
	info      *mesosv1.FrameworkInfo
	id        string
	stream    *recorder[*schedulerv1.Event]
	streamID  string
}

func frameworkInfo(roles ...string) *mesosv1.FrameworkInfo {
	info := &mesosv1.FrameworkInfo{User: ptr("nobody"), Name: ptr("f"), FailoverTimeout: ptr(3600.0), Checkpoint: ptr(true)}
	for _, x := range []mesosv1.FrameworkInfo_Capability_Type{
		mesosv1.FrameworkInfo_Capability_MULTI_ROLE,
		mesosv1.FrameworkInfo_Capability_PARTITION_AWARE,
		mesosv1.FrameworkInfo_Capability_RESERVATION_REFINEMENT,
	} {
		info.Capabilities = append(info.Capabilities, &mesosv1.FrameworkInfo_Capability{Type: x.Enum()})
	}
	if len(roles) == 0 {
		roles = []string{"*"}
	}
	info.Roles = roles
	return info
}

// oldInfo is a framework without any capability.
func oldInfo() *mesosv1.FrameworkInfo {
	return &mesosv1.FrameworkInfo{User: ptr("nobody"), Name: ptr("old"), FailoverTimeout: ptr(3600.0)}
}

// subscribe subscribes and returns what came first.
func (s *scheduler) subscribe(suppressed ...string) []*schedulerv1.Event {
	s.c.Helper()
	s.stream = newRecorder[*schedulerv1.Event]()
	call := &schedulerv1.Call{
		Type:        schedulerv1.Call_SUBSCRIBE.Enum(),
		FrameworkId: s.info.Id,
		Subscribe:   &schedulerv1.Call_Subscribe{FrameworkInfo: s.info, SuppressedRoles: suppressed},
	}
	id, err := s.c.m.SchedulerSubscribe(context.Background(), s.principal, call, s.stream)
	if err != nil {
		s.c.Fatalf("SchedulerSubscribe: %v", err)
	}
	s.streamID = id
	s.c.settle()
	events := s.stream.take()
	if len(events) > 0 && events[0].GetType() == schedulerv1.Event_SUBSCRIBED {
		s.id = events[0].GetSubscribed().GetFrameworkId().GetValue()
		s.info.Id = &mesosv1.FrameworkID{Value: &s.id}
	}
	return events
}

// framework subscribes a framework and returns it with its first events after SUBSCRIBED.
func (c *cluster) framework(info *mesosv1.FrameworkInfo) (*scheduler, []*schedulerv1.Event) {
	c.Helper()
	s := &scheduler{c: c, info: info}
	events := s.subscribe()
	if len(events) == 0 || events[0].GetType() != schedulerv1.Event_SUBSCRIBED {
		c.Fatalf("first events = %v, want SUBSCRIBED", events)
	}
	return s, events[1:]
}

// try makes a call and returns its answer.
func (s *scheduler) try(call *schedulerv1.Call) error {
	call.FrameworkId = &mesosv1.FrameworkID{Value: &s.id}
	return s.c.m.SchedulerCall(context.Background(), s.principal, s.streamID, call)
}

// call makes a call that must be accepted and returns the events that follow.
func (s *scheduler) call(call *schedulerv1.Call) []*schedulerv1.Event {
	s.c.Helper()
	if err := s.try(call); err != nil {
		s.c.Fatalf("SchedulerCall %s: %v", call.GetType(), err)
	}
	s.c.settle()
	return s.stream.take()
}

func (s *scheduler) accept(offers []*mesosv1.Offer, filters *mesosv1.Filters, ops ...*mesosv1.Offer_Operation) []*schedulerv1.Event {
	s.c.Helper()
	call := &schedulerv1.Call{Type: schedulerv1.Call_ACCEPT.Enum(), Accept: &schedulerv1.Call_Accept{Operations: ops, Filters: filters}}
	for _, o := range offers {
		call.Accept.OfferIds = append(call.Accept.OfferIds, o.Id)
	}
	return s.call(call)
}

func (s *scheduler) launch(o *mesosv1.Offer, tasks ...*mesosv1.TaskInfo) []*schedulerv1.Event {
	s.c.Helper()
	return s.accept([]*mesosv1.Offer{o}, nil, launch(tasks...))
}

func (s *scheduler) decline(refuse float64, offers ...*mesosv1.Offer) []*schedulerv1.Event {
	s.c.Helper()
	call := &schedulerv1.Call{Type: schedulerv1.Call_DECLINE.Enum(), Decline: &schedulerv1.Call_Decline{
		Filters: &mesosv1.Filters{RefuseSeconds: &refuse}}}
	for _, o := range offers {
		call.Decline.OfferIds = append(call.Decline.OfferIds, o.Id)
	}
	return s.call(call)
}

func (s *scheduler) ack(u *mesosv1.TaskStatus) []*schedulerv1.Event {
	s.c.Helper()
	return s.call(&schedulerv1.Call{Type: schedulerv1.Call_ACKNOWLEDGE.Enum(), Acknowledge: &schedulerv1.Call_Acknowledge{
		AgentId: u.AgentId, TaskId: u.TaskId, Uuid: u.Uuid}})
}

func (s *scheduler) kill(taskID string) []*schedulerv1.Event {
	s.c.Helper()
	return s.call(&schedulerv1.Call{Type: schedulerv1.Call_KILL.Enum(), Kill: &schedulerv1.Call_Kill{TaskId: &mesosv1.TaskID{Value: &taskID}}})
}

func launch(tasks ...*mesosv1.TaskInfo) *mesosv1.Offer_Operation {
	return &mesosv1.Offer_Operation{
		Type:   mesosv1.Offer_Operation_LAUNCH.Enum(),
		Launch: &mesosv1.Offer_Operation_Launch{TaskInfos: tasks},
	}
}

// commandTask is a task for an offer's agent.
func commandTask(id string, o *mesosv1.Offer, text string) *mesosv1.TaskInfo {
	return &mesosv1.TaskInfo{
		Name:      ptr(id),
		TaskId:    &mesosv1.TaskID{Value: &id},
		AgentId:   o.AgentId,
		Resources: resources.MustParse(text).Resources(),
		Command:   &mesosv1.CommandInfo{Value: ptr("sleep 1000")},
	}
}

// offers returns the offers in events.
func offers(events []*schedulerv1.Event) []*mesosv1.Offer {
	var out []*mesosv1.Offer
	for _, e := range events {
		out = append(out, e.GetOffers().GetOffers()...)
	}
	return out
}

// updates returns the statuses in events.
func updates(events []*schedulerv1.Event) []*mesosv1.TaskStatus {
	var out []*mesosv1.TaskStatus
	for _, e := range events {
		if e.GetType() == schedulerv1.Event_UPDATE {
			out = append(out, e.GetUpdate().GetStatus())
		}
	}
	return out
}

// one returns the only element of a list.
func one[T any](t testing.TB, what string, list []T) T {
	t.Helper()
	if len(list) != 1 {
		t.Fatalf("%s = %v, want one", what, list)
	}
	return list[0]
}

// fakeAgent behaves as an agent does towards a master: it keeps tasks, repeats nothing by itself, and
// answers pings unless silent.
type fakeAgent struct {
	c      *cluster
	info   *mesosv1.AgentInfo
	conn   *grpc.ClientConn
	close  context.CancelFunc
	ended  chan struct{} // the stream has ended
	opened []func()      // end every stream that there was

	mu         sync.Mutex
	stream     clusterv1.Master_ConnectClient
	silent     bool // guarded by mu; answers no ping
	idle       bool // guarded by mu; does nothing with tasks
	received   []*clusterv1.ToAgent
	tasks      map[string]*mesosv1.Task // by framework/task
	executors  map[string]*clusterv1.ExecutorRecord
	frameworks map[string]*mesosv1.FrameworkInfo
	total      resources.Set                 // with what operations made
	operations map[string]*mesosv1.Operation // by uuid, until acknowledged
	uuids      byte
	onReceive  func(*clusterv1.ToAgent) bool // optional; true if that was all
}

func (c *cluster) agent(text string) *fakeAgent {
	c.Helper()
	return c.agentAt("agent.example", 5051, text)
}

func (c *cluster) agentAt(hostname string, port int32, text string) *fakeAgent {
	c.Helper()
	a := &fakeAgent{
		c: c,
		info: &mesosv1.AgentInfo{Hostname: &hostname, Port: &port,
			Resources: resources.MustParse(text).Resources()},
		tasks:      make(map[string]*mesosv1.Task),
		executors:  make(map[string]*clusterv1.ExecutorRecord),
		frameworks: make(map[string]*mesosv1.FrameworkInfo),
		operations: make(map[string]*mesosv1.Operation),
		total:      resources.MustParse(text),
	}
	c.agents = append(c.agents, a)
	a.connect()
	c.settle()
	if a.id() == "" {
		c.Fatalf("agent at %s:%d was not registered: %v", hostname, port, a.take())
	}
	return a
}

func (a *fakeAgent) id() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.info.GetId().GetValue()
}

// connect opens a stream and says Hello with all that the agent has.
func (a *fakeAgent) connect() {
	a.c.Helper()
	conn, err := grpc.NewClient("passthrough:///master",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return a.c.listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		a.c.Fatalf("NewClient: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := clusterv1.NewMasterClient(conn).Connect(ctx)
	if err != nil {
		a.c.Fatalf("Connect: %v", err)
	}
	ended := make(chan struct{})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conn, a.close, a.stream, a.ended = conn, cancel, stream, ended
	a.opened = append(a.opened, func() {
		cancel()
		<-ended
		conn.Close()
	})
	hello := &clusterv1.Hello{
		Agent: a.info.CloneVT(), Version: "1.12.0", Session: fmt.Sprint(time.Now().UnixNano()),
		Capabilities: []string{"MULTI_ROLE", "HIERARCHICAL_ROLE", "RESERVATION_REFINEMENT", "TASK_RESOURCE_LIMITS",
			"AGENT_OPERATION_FEEDBACK", "RESIZE_VOLUME", "AGENT_DRAINING"},
		TotalResources: a.total.Resources(),
	}
	for _, k := range sortedKeys(a.operations) {
		hello.Operations = append(hello.Operations, a.operations[k])
	}
	if a.info.Id != nil {
		for _, k := range sortedKeys(a.tasks) {
			hello.Tasks = append(hello.Tasks, a.tasks[k])
		}
		for _, k := range sortedKeys(a.executors) {
			hello.Executors = append(hello.Executors, a.executors[k])
		}
		for _, k := range sortedKeys(a.frameworks) {
			hello.Frameworks = append(hello.Frameworks, a.frameworks[k])
		}
	}
	a.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Hello{Hello: hello}})
	go func() {
		defer close(ended)
		for {
			msg, err := stream.Recv()
			if err != nil {
				return
			}
			a.receive(msg)
		}
	}()
}

// disconnect ends the stream; what the agent has stays.
func (a *fakeAgent) disconnect() {
	a.close()
	<-a.ended
	a.conn.Close()
	a.c.settle()
}

// send sends; mu is held.
func (a *fakeAgent) send(msg *clusterv1.FromAgent) {
	if err := a.stream.Send(msg); err != nil && !errors.Is(err, context.Canceled) {
		a.c.Logf("agent %s: send: %v", a.info.GetId().GetValue(), err)
	}
}

func (a *fakeAgent) receive(msg *clusterv1.ToAgent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ping := msg.Message.(*clusterv1.ToAgent_Ping); ping {
		if !a.silent {
			a.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Pong{Pong: &clusterv1.Pong{}}})
		}
		return
	}
	if a.onReceive != nil && a.onReceive(msg) {
		return
	}
	a.received = append(a.received, msg)
	switch x := msg.Message.(type) {
	case *clusterv1.ToAgent_Registered:
		a.info.Id = x.Registered.AgentId
	case *clusterv1.ToAgent_RunTask:
		f, t := x.RunTask.Framework, x.RunTask.Task
		a.frameworks[f.GetId().GetValue()] = f
		task := newTask(t, f.Id, "nobody", t.Resources)
		a.tasks[f.GetId().GetValue()+"/"+t.GetTaskId().GetValue()] = task
		if e := t.Executor; e != nil {
			a.executors[f.GetId().GetValue()+"/"+e.GetExecutorId().GetValue()] = &clusterv1.ExecutorRecord{
				Executor: e, FrameworkId: f.GetId().GetValue()}
		}
		if !a.idle {
			a.update(task, mesosv1.TaskState_TASK_RUNNING)
		}
	case *clusterv1.ToAgent_KillTask:
		t := a.tasks[x.KillTask.GetFrameworkId()+"/"+x.KillTask.GetTaskId()]
		if t != nil && !a.idle && !terminal(t.GetState()) {
			a.update(t, mesosv1.TaskState_TASK_KILLED)
		}
	case *clusterv1.ToAgent_Acknowledge:
		k := x.Acknowledge.GetFrameworkId() + "/" + x.Acknowledge.GetTaskId()
		if t := a.tasks[k]; t != nil && terminal(t.GetState()) && string(t.StatusUpdateUuid) == string(x.Acknowledge.Uuid) {
			delete(a.tasks, k)
		}
	case *clusterv1.ToAgent_ApplyOperation:
		a.apply(x.ApplyOperation)
	case *clusterv1.ToAgent_AcknowledgeOperation:
		delete(a.operations, string(x.AcknowledgeOperation.GetOperationUuid()))
	case *clusterv1.ToAgent_ShutdownFramework:
		for k, t := range a.tasks {
			if t.GetFrameworkId().GetValue() == x.ShutdownFramework.GetFrameworkId() {
				delete(a.tasks, k)
			}
		}
		delete(a.frameworks, x.ShutdownFramework.GetFrameworkId())
	}
}

// apply carries an operation out, or refuses it as an agent does; mu is held.
func (a *fakeAgent) apply(m *clusterv1.ApplyOperation) {
	a.uuids++
	status := &mesosv1.OperationStatus{
		OperationId: m.GetOperation().GetId(), AgentId: a.info.Id, State: mesosv1.OperationState_OPERATION_FINISHED.Enum(),
		Uuid: &mesosv1.UUID{Value: []byte{0: 2, 6: 0x40, 8: 0x80, 15: a.uuids}},
	}
	total, err := a.total.ApplyOperation(unallocatedOperation(m.GetOperation()))
	if err == nil {
		a.total = total
	} else {
		status.State, status.Message = mesosv1.OperationState_OPERATION_ERROR.Enum(), ptr(err.Error())
	}
	op := &mesosv1.Operation{AgentId: a.info.Id, Info: m.GetOperation(), LatestStatus: status, Uuid: &mesosv1.UUID{Value: m.GetOperationUuid()}}
	if m.GetFrameworkId() != "" {
		op.FrameworkId = &mesosv1.FrameworkID{Value: &m.FrameworkId}
	}
	a.operations[string(m.GetOperationUuid())] = op
	a.tellOperation(op)
	if err != nil {
		a.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_ResourcesChanged{
			ResourcesChanged: &clusterv1.ResourcesChanged{TotalResources: a.total.Resources()}}})
	}
}

// tellOperation sends the newest status of an operation; mu is held.
func (a *fakeAgent) tellOperation(op *mesosv1.Operation) {
	a.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_OperationUpdate{OperationUpdate: &clusterv1.OperationUpdate{
		FrameworkId: op.GetFrameworkId().GetValue(), Status: op.LatestStatus, LatestStatus: op.LatestStatus,
		OperationUuid: op.GetUuid().GetValue()}}})
}

// waiting is the number of operations that the agent has no acknowledgement of.
func (a *fakeAgent) waiting() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.operations)
}

// has returns what the agent has.
func (a *fakeAgent) has() resources.Set {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.total
}

// update sends a new state of a task; mu is held.
func (a *fakeAgent) update(t *mesosv1.Task, state mesosv1.TaskState) {
	a.uuids++
	uuid := []byte{0: 1, 6: 0x40, 8: 0x80, 15: a.uuids}
	t.State, t.StatusUpdateState, t.StatusUpdateUuid = state.Enum(), state.Enum(), uuid
	status := &mesosv1.TaskStatus{
		TaskId: t.TaskId, AgentId: a.info.Id, ExecutorId: t.ExecutorId, State: state.Enum(), Uuid: uuid,
		Source: mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum(), Timestamp: ptr(seconds(time.Now())),
		ContainerStatus: &mesosv1.ContainerStatus{ContainerId: &mesosv1.ContainerID{Value: ptr("c-" + t.GetTaskId().GetValue())}},
	}
	t.Statuses = append(t.Statuses, status)
	a.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Update{Update: &clusterv1.StatusUpdate{
		FrameworkId: t.GetFrameworkId().GetValue(), ExecutorId: t.GetExecutorId().GetValue(),
		Status: status, LatestState: state.String()}}})
}

// set changes a task's state and tells the master.
func (a *fakeAgent) set(s *scheduler, id string, state mesosv1.TaskState) {
	a.c.Helper()
	a.mu.Lock()
	t := a.tasks[s.id+"/"+id]
	if t == nil {
		a.mu.Unlock()
		a.c.Fatalf("agent has no task %s of %s", id, s.id)
	}
	a.update(t, state)
	a.mu.Unlock()
	a.c.settle()
}

// say sends a message as it is.
func (a *fakeAgent) say(msg *clusterv1.FromAgent) {
	a.mu.Lock()
	a.send(msg)
	a.mu.Unlock()
	a.c.settle()
}

// take returns what was received since the last take, without pings.
func (a *fakeAgent) take() []*clusterv1.ToAgent {
	a.mu.Lock()
	defer a.mu.Unlock()
	msgs := a.received
	a.received = nil
	return msgs
}

// taken returns those of the messages received since the last take that are of one kind.
func taken[T any](a *fakeAgent) []T {
	var out []T
	for _, m := range a.take() {
		if x, ok := any(m.Message).(T); ok {
			out = append(out, x)
		}
	}
	return out
}

// get makes an operator call.
func (c *cluster) get(t masterv1.Call_Type) *masterv1.Response {
	c.Helper()
	r, err := c.m.OperatorCall(context.Background(), "", &masterv1.Call{Type: t.Enum()})
	if err != nil {
		c.Fatalf("OperatorCall %s: %v", t, err)
	}
	return r
}
