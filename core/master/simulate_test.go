package master

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// simulation is a running master with many agents and frameworks in memory. Agents are at the other end of real streams
// but for gRPC, and answer each task with RUNNING at once; frameworks make calls as the edge would.
type simulation struct {
	testing.TB
	m      *Master
	cancel context.CancelFunc
	ended  chan error
	agents []*simulatedAgent
	others sync.WaitGroup
}

func simulate(t testing.TB, cfg Config, agents int, text string) *simulation {
	t.Helper()
	cfg.ID, cfg.Hostname = "M", "master.example"
	m, err := New(cfg, Deps{Registry: registry.NewMemory()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &simulation{TB: t, m: m, cancel: cancel, ended: make(chan error, 1)}
	go func() { s.ended <- m.Run(ctx) }()
	for {
		if _, recovered, _ := m.Leader(); recovered {
			break
		}
		time.Sleep(time.Millisecond)
	}
	set := resources.MustParse(text)
	for i := range agents {
		at := &net.TCPAddr{IP: net.IPv4(10, byte(i>>16), byte(i>>8), byte(i)), Port: 1}
		a := &simulatedAgent{ctx: peer.NewContext(ctx, &peer.Peer{Addr: at}), number: uint32(i), toMaster: make(chan *clusterv1.FromAgent, 64), registered: make(chan struct{})}
		a.total = set.Resources()
		s.agents = append(s.agents, a)
		s.others.Go(func() { (&connector{master: m}).Connect(a) })
		a.toMaster <- &clusterv1.FromAgent{Message: &clusterv1.FromAgent_Hello{Hello: &clusterv1.Hello{
			Agent:   &mesosv1.AgentInfo{Hostname: ptr(fmt.Sprintf("host%d", i)), Port: ptr(int32(5051)), Resources: a.total},
			Version: "1.12.0", Capabilities: []string{"MULTI_ROLE", "HIERARCHICAL_ROLE", "RESERVATION_REFINEMENT"},
		}}}
	}
	for _, a := range s.agents {
		<-a.registered
	}
	return s
}

func (s *simulation) stop() {
	s.Helper()
	s.cancel()
	if err := <-s.ended; err != nil {
		s.Errorf("Run = %v", err)
	}
	s.others.Wait()
}

// simulatedAgent is an agent's end of a stream, as the master sees it.
type simulatedAgent struct {
	grpc.ServerStream
	ctx        context.Context
	number     uint32
	total      []*mesosv1.Resource
	toMaster   chan *clusterv1.FromAgent
	registered chan struct{}
	id         *mesosv1.AgentID
	updates    atomic.Uint32
	// more says whether an acknowledged task has something new to tell; set before there are tasks.
	more func() bool
	mu   sync.Mutex
	runs []*clusterv1.RunTask // guarded by mu
}

func (a *simulatedAgent) Context() context.Context { return a.ctx }

func (a *simulatedAgent) Recv() (*clusterv1.FromAgent, error) {
	select {
	case m := <-a.toMaster:
		return m, nil
	case <-a.ctx.Done():
		return nil, io.EOF
	}
}

func (a *simulatedAgent) say(m *clusterv1.FromAgent) error {
	select {
	case a.toMaster <- m:
		return nil
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
}

// Send is called by the one goroutine that empties the agent's outbox.
func (a *simulatedAgent) Send(m *clusterv1.ToAgent) error {
	switch x := m.Message.(type) {
	case *clusterv1.ToAgent_Registered:
		a.id = x.Registered.AgentId
		close(a.registered)
	case *clusterv1.ToAgent_Ping:
		return a.say(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Pong{Pong: &clusterv1.Pong{}}})
	case *clusterv1.ToAgent_RunTask:
		if a.more != nil {
			a.mu.Lock()
			a.runs = append(a.runs, x.RunTask)
			a.mu.Unlock()
		}
		return a.say(a.update(x.RunTask.GetFramework().GetId().GetValue(), x.RunTask.GetTask().GetTaskId(), mesosv1.TaskState_TASK_RUNNING))
	case *clusterv1.ToAgent_Acknowledge:
		if a.more != nil && a.more() {
			return a.say(a.update(x.Acknowledge.GetFrameworkId(), &mesosv1.TaskID{Value: ptr(x.Acknowledge.GetTaskId())}, mesosv1.TaskState_TASK_RUNNING))
		}
	}
	return nil
}

// update is the next state of a task, as an agent tells it.
func (a *simulatedAgent) update(framework string, task *mesosv1.TaskID, state mesosv1.TaskState) *clusterv1.FromAgent {
	uuid := make([]byte, 16)
	binary.BigEndian.PutUint32(uuid, a.number)
	binary.BigEndian.PutUint32(uuid[9:], a.updates.Add(1))
	uuid[6], uuid[8] = 0x40, 0x80
	return &clusterv1.FromAgent{Message: &clusterv1.FromAgent_Update{Update: &clusterv1.StatusUpdate{
		FrameworkId: framework, LatestState: state.String(),
		Status: &mesosv1.TaskStatus{
			TaskId: task, AgentId: a.id, State: state.Enum(), Uuid: uuid,
			Source: mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum(), Timestamp: ptr(1e9),
			ContainerStatus: &mesosv1.ContainerStatus{ContainerId: &mesosv1.ContainerID{Value: ptr("c-" + task.GetValue())}},
		},
	}}}
}

// queue is a stream whose events wait for whoever takes them.
type queue struct {
	mu     sync.Mutex
	events []*schedulerv1.Event
	wake   chan struct{}
	done   chan struct{}
	close  sync.Once
}

func (q *queue) Send(e *schedulerv1.Event) bool {
	q.mu.Lock()
	q.events = append(q.events, e)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return true
}

func (q *queue) Close()                { q.close.Do(func() { close(q.done) }) }
func (q *queue) Done() <-chan struct{} { return q.done }

// take waits for events; nil when the stream has ended.
func (q *queue) take() []*schedulerv1.Event {
	for {
		q.mu.Lock()
		events := q.events
		q.events = nil
		q.mu.Unlock()
		if len(events) > 0 {
			return events
		}
		select {
		case <-q.wake:
		case <-q.done:
			return nil
		}
	}
}

// simulatedFramework launches tasks, one for each offer unless told otherwise, and acknowledges their updates.
type simulatedFramework struct {
	s        *simulation
	id       *mesosv1.FrameworkID
	streamID string
	queue    *queue
	perOffer int
	template []*mesosv1.Resource
	next     func() int // number of the next task; negative when there are enough
	running  func(u *mesosv1.TaskStatus)
}

func (s *simulation) framework(role string, perOffer int, text string, next func() int, running func(*mesosv1.TaskStatus)) *simulatedFramework {
	s.Helper()
	f := &simulatedFramework{s: s, queue: &queue{wake: make(chan struct{}, 1), done: make(chan struct{})}, perOffer: perOffer,
		template: resources.MustParse(text).Resources(), next: next, running: running}
	id, err := s.m.SchedulerSubscribe(context.Background(), "", &schedulerv1.Call{
		Type: schedulerv1.Call_SUBSCRIBE.Enum(), Subscribe: &schedulerv1.Call_Subscribe{FrameworkInfo: frameworkInfo(role)}}, f.queue)
	if err != nil {
		s.Fatal(err)
	}
	f.streamID = id
	events := f.queue.take()
	f.id = events[0].GetSubscribed().GetFrameworkId()
	f.queue.mu.Lock()
	f.queue.events = append(events[1:], f.queue.events...)
	f.queue.mu.Unlock()
	select {
	case f.queue.wake <- struct{}{}:
	default:
	}
	s.others.Go(f.run)
	return f
}

func (f *simulatedFramework) call(call *schedulerv1.Call) {
	call.FrameworkId = f.id
	if err := f.s.m.SchedulerCall(context.Background(), "", f.streamID, call); err != nil && f.s.m.recovered.Load() {
		f.s.Errorf("SchedulerCall %s: %v", call.GetType(), err)
	}
}

func (f *simulatedFramework) run() {
	for {
		events := f.queue.take()
		if events == nil {
			return
		}
		for _, e := range events {
			switch e.GetType() {
			case schedulerv1.Event_OFFERS:
				for _, o := range e.GetOffers().GetOffers() {
					f.answer(o)
				}
			case schedulerv1.Event_UPDATE:
				u := e.GetUpdate().GetStatus()
				if u.Uuid != nil {
					f.call(&schedulerv1.Call{Type: schedulerv1.Call_ACKNOWLEDGE.Enum(), Acknowledge: &schedulerv1.Call_Acknowledge{
						AgentId: u.AgentId, TaskId: u.TaskId, Uuid: u.Uuid}})
				}
				f.running(u)
			}
		}
	}
}

// answer launches tasks on an offer, as many as are wanted and fit.
func (f *simulatedFramework) answer(o *mesosv1.Offer) {
	var tasks []*mesosv1.TaskInfo
	left, need := resources.New(o.Resources...).Unallocate(), resources.New(f.template...)
	for range f.perOffer {
		if !left.Contains(need) {
			break
		}
		left = left.Subtract(need)
		n := f.next()
		if n < 0 {
			break
		}
		id := fmt.Sprintf("task-%d", n)
		rs := make([]*mesosv1.Resource, len(f.template))
		for i, r := range f.template {
			rs[i] = r.CloneVT()
		}
		tasks = append(tasks, &mesosv1.TaskInfo{Name: &id, TaskId: &mesosv1.TaskID{Value: &id}, AgentId: o.AgentId,
			Resources: rs, Command: &mesosv1.CommandInfo{Value: ptr("sleep 1000")}})
	}
	if len(tasks) == 0 {
		f.call(&schedulerv1.Call{Type: schedulerv1.Call_DECLINE.Enum(), Decline: &schedulerv1.Call_Decline{
			OfferIds: []*mesosv1.OfferID{o.Id}, Filters: &mesosv1.Filters{RefuseSeconds: ptr(3600.0)}}})
		return
	}
	f.call(&schedulerv1.Call{Type: schedulerv1.Call_ACCEPT.Enum(), Accept: &schedulerv1.Call_Accept{
		OfferIds: []*mesosv1.OfferID{o.Id}, Operations: []*mesosv1.Offer_Operation{launch(tasks...)},
		Filters: &mesosv1.Filters{RefuseSeconds: ptr(0.0)}}})
}

// place launches tasks and returns when each tenth part of them ran.
func (s *simulation) place(frameworks, tasks, perOffer int, text string) []time.Time {
	s.Helper()
	var launched, ran atomic.Int64
	at := make([]time.Time, 11)
	at[0] = time.Now()
	done := make(chan struct{})
	next := func() int {
		if n := launched.Add(1); n <= int64(tasks) {
			return int(n)
		}
		return -1
	}
	running := func(u *mesosv1.TaskStatus) {
		if u.GetState() != mesosv1.TaskState_TASK_RUNNING {
			s.Errorf("update = %v, want TASK_RUNNING", u)
		}
		n := int(ran.Add(1))
		if n%(tasks/10) == 0 && n/(tasks/10) <= 10 {
			at[n/(tasks/10)] = time.Now()
		}
		if n == tasks {
			close(done)
		}
	}
	for i := range frameworks {
		s.framework(fmt.Sprintf("role%d", i%4), perOffer, text, next, running)
	}
	select {
	case <-done:
	case <-time.After(5 * time.Minute):
		s.Fatalf("%d of %d tasks run", ran.Load(), tasks)
	}
	return at
}

func TestASimulatedClusterPlacesAllTasks(t *testing.T) {
	s := simulate(t, Config{}, 50, "cpus:32;mem:65536;disk:100000;ports:[31000-32000]")
	defer s.stop()
	s.place(5, 1000, 1, "cpus:1;mem:128")
	if n := s.m.view.Load().tasks.length; n != 1000 {
		t.Errorf("%d tasks in the view, want 1000", n)
	}
}

// BenchmarkPlacements is from an offer to TASK_RUNNING and its acknowledgement, 100,000 times on 5,000 agents.
func BenchmarkPlacements(b *testing.B) {
	for _, perOffer := range []int{1, 10} {
		b.Run(fmt.Sprintf("%d per offer", perOffer), func(b *testing.B) {
			const agents, frameworks, tasks = 5000, 20, 100_000
			for range b.N {
				b.StopTimer()
				s := simulate(b, Config{}, agents, "cpus:32;mem:65536;disk:100000;ports:[31000-32000]")
				b.StartTimer()
				cpu := cpuTime()
				at := s.place(frameworks, tasks, perOffer, "cpus:1;mem:128")
				b.StopTimer()
				b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/tasks, "cpu-us/placement")
				b.ReportMetric(tasks/at[10].Sub(at[0]).Seconds(), "placements/s")
				b.ReportMetric(tasks/10/at[1].Sub(at[0]).Seconds(), "first-10000/s")
				b.ReportMetric(tasks/10/at[10].Sub(at[9]).Seconds(), "last-10000/s")
				runtime.GC()
				var mem runtime.MemStats
				runtime.ReadMemStats(&mem)
				b.ReportMetric(float64(mem.HeapAlloc)/tasks, "heap-B/task")
				s.stop()
			}
		})
	}
}

// BenchmarkStatusUpdates is 100,000 updates from agents to frameworks, each acknowledged back to the agent before the
// task's next one, of 10,000 tasks on 1,000 agents.
func BenchmarkStatusUpdates(b *testing.B) {
	const agents, frameworks, tasks, updates = 1000, 10, 10_000, 100_000
	for range b.N {
		b.StopTimer()
		s := simulate(b, Config{}, agents, "cpus:32;mem:65536")
		var told, heard, ran, launched atomic.Int64
		started, done := make(chan struct{}), make(chan struct{})
		var begin atomic.Bool
		for _, a := range s.agents {
			a.more = func() bool { return begin.Load() && told.Add(1) <= updates }
		}
		next := func() int {
			if n := launched.Add(1); n <= tasks {
				return int(n)
			}
			return -1
		}
		running := func(*mesosv1.TaskStatus) {
			if n := ran.Add(1); n == tasks {
				close(started)
			} else if n > tasks && heard.Add(1) == updates {
				close(done)
			}
		}
		runtime.GC()
		var before, after, kept runtime.MemStats
		for i := range frameworks {
			s.framework(fmt.Sprintf("role%d", i%4), 10, "cpus:1;mem:128", next, running)
		}
		<-started
		runtime.ReadMemStats(&before)
		begun, cpu := time.Now(), cpuTime()
		b.StartTimer()
		begin.Store(true)
		for _, a := range s.agents {
			a.mu.Lock()
			for _, r := range a.runs {
				if told.Add(1) <= updates {
					a.say(a.update(r.GetFramework().GetId().GetValue(), r.GetTask().GetTaskId(), mesosv1.TaskState_TASK_RUNNING))
				}
			}
			a.mu.Unlock()
		}
		<-done
		b.StopTimer()
		took := time.Since(begun)
		b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/updates, "cpu-us/update")
		runtime.ReadMemStats(&after)
		runtime.GC()
		runtime.ReadMemStats(&kept)
		b.ReportMetric(updates/took.Seconds(), "updates/s")
		b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/updates, "alloc-B/update")
		b.ReportMetric(float64(kept.HeapAlloc)/(1<<20), "heap-MiB")
		s.stop()
	}
}
