package master

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// BenchmarkAcceptToRunTask is the time from an ACCEPT until the agent has the task, over gRPC in memory.
func BenchmarkAcceptToRunTask(b *testing.B) {
	c := startCluster(b, Config{}, Deps{})
	defer c.stop()
	a := &benchAgent{got: make(chan struct{}, 1)}
	a.connect(b, c)
	defer a.stop()
	s := &scheduler{c: c, info: frameworkInfo(), stream: newRecorder[*schedulerv1.Event]()}
	id, err := c.m.SchedulerSubscribe(context.Background(), "", &schedulerv1.Call{
		Type: schedulerv1.Call_SUBSCRIBE.Enum(), Subscribe: &schedulerv1.Call_Subscribe{FrameworkInfo: s.info}}, s.stream)
	if err != nil {
		b.Fatal(err)
	}
	s.streamID = id
	s.id = s.stream.take()[0].GetSubscribed().GetFrameworkId().GetValue()
	refuse := 0.0
	var total time.Duration
	for i := range b.N {
		var o *mesosv1.Offer
		for o == nil {
			if got := offers(s.stream.take()); len(got) > 0 {
				o = got[0]
				break
			}
			if err := s.try(&schedulerv1.Call{Type: schedulerv1.Call_REVIVE.Enum()}); err != nil {
				b.Fatal(err)
			}
		}
		begun := time.Now()
		err := s.try(&schedulerv1.Call{Type: schedulerv1.Call_ACCEPT.Enum(), Accept: &schedulerv1.Call_Accept{
			OfferIds:   []*mesosv1.OfferID{o.Id},
			Operations: []*mesosv1.Offer_Operation{launch(commandTask(fmt.Sprint("t", i), o, "cpus:0.1;mem:32"))},
			Filters:    &mesosv1.Filters{RefuseSeconds: &refuse},
		}})
		if err != nil {
			b.Fatal(err)
		}
		<-a.got
		total += time.Since(begun)
	}
	b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "ns/launch")
}

// benchAgent tells when a task has come.
type benchAgent struct {
	fakeAgent
	got chan struct{}
}

func (a *benchAgent) connect(b *testing.B, c *cluster) {
	a.c = c
	a.info = &mesosv1.AgentInfo{Hostname: ptr("h"), Port: ptr(int32(1)), Resources: resources.MustParse("cpus:1000000;mem:100000000").Resources()}
	a.frameworks = make(map[string]*mesosv1.FrameworkInfo)
	a.onReceive = func(m *clusterv1.ToAgent) bool {
		if m.GetRunTask() != nil {
			a.got <- struct{}{}
			return true
		}
		return false
	}
	a.fakeAgent.connect()
}

func (a *benchAgent) stop() {
	for _, end := range a.opened {
		end()
	}
}

// bigState returns a master with agents times tasks, half of them completed. It is not running.
func bigState(tb testing.TB, agents, tasks int) *Master {
	m, err := New(Config{ID: "M", Hostname: "m"}, Deps{Registry: registry.NewMemory()})
	if err != nil {
		tb.Fatal(err)
	}
	s := m.s
	now := time.Unix(1e9, 0)
	info := frameworkInfo("a")
	info.Id = &mesosv1.FrameworkID{Value: ptr("M-0000")}
	s.cfg.MaxCompletedTasksPerFramework = agents * tasks
	f := s.recoverFramework(info, now)
	set := resources.MustParse("cpus:0.1;mem:32").Allocate("a")
	for i := range agents {
		host := fmt.Sprintf("host%d", i)
		id := s.newAgentID()
		ai := &mesosv1.AgentInfo{Id: &mesosv1.AgentID{Value: &id}, Hostname: &host, Resources: resources.MustParse("cpus:16;mem:65536;disk:100000;ports:[31000-32000]").Resources()}
		s.register(&agentConn{out: newOutbox()}, &clusterv1.Hello{Agent: ai}, registry.Agent{Info: ai}, false, now)
		for j := range tasks {
			tid := fmt.Sprintf("task-%d-%d", i, j)
			t := s.addTask(f, s.agents[id], &mesosv1.Task{
				Name: &tid, TaskId: &mesosv1.TaskID{Value: &tid}, FrameworkId: info.Id, AgentId: ai.Id,
				State: mesosv1.TaskState_TASK_RUNNING.Enum(), Resources: set.Resources(),
				Statuses: []*mesosv1.TaskStatus{{TaskId: &mesosv1.TaskID{Value: &tid}, State: mesosv1.TaskState_TASK_RUNNING.Enum(), Timestamp: ptr(1e9)}},
			}, set)
			if j%2 == 1 {
				s.completeTask(t, now)
			}
		}
	}
	m.view.Store(s.views.publish())
	return m
}

func BenchmarkStateOf1000AgentsAnd10000Tasks(b *testing.B) {
	m := bigState(b, 1000, 10)
	call := &masterv1.Call{Type: masterv1.Call_GET_STATE.Enum()}
	b.Run("protobuf", func(b *testing.B) {
		for range b.N {
			m.s.views.changed = true
			m.view.Store(m.s.views.publish())
			r, err := m.OperatorCall(context.Background(), "", call)
			if err != nil {
				b.Fatal(err)
			}
			data, err := r.MarshalVT()
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
		}
	})
	b.Run("json", func(b *testing.B) {
		for range b.N {
			m.s.views.changed = true
			m.view.Store(m.s.views.publish())
			r, err := m.OperatorCall(context.Background(), "", call)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(r.AppendJSON(nil))))
		}
	})
	b.Run("encoded", func(b *testing.B) {
		for range b.N {
			m.s.views.changed = true // a new view, of the same objects
			m.view.Store(m.s.views.publish())
			data, _, err := m.OperatorEncoded(context.Background(), "", call, true)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
		}
	})
	b.Run("legacy", func(b *testing.B) {
		for range b.N {
			m.s.views.changed = true
			m.view.Store(m.s.views.publish())
			data, err := m.Legacy(context.Background(), "", "/state", nil)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
		}
	})
}

// BenchmarkPublishAfterOneUpdate is what a round costs for the view when one task of many changed.
func BenchmarkPublishAfterOneUpdate(b *testing.B) {
	m := bigState(b, 1000, 100)
	s := m.s
	var some *task
	for _, t := range s.frameworks["M-0000"].tasks {
		some = t
		break
	}
	status := &mesosv1.TaskStatus{TaskId: some.proto.TaskId, State: mesosv1.TaskState_TASK_RUNNING.Enum()}
	b.ResetTimer()
	for range b.N {
		s.setTask(some, withStatus(some.proto, mesosv1.TaskState_TASK_RUNNING, status))
		m.view.Store(s.views.publish())
	}
}

// BenchmarkAgentsReturnToANewMaster is what 1,000 agents with 10 tasks each cost the loop of a master
// that was just elected.
func BenchmarkAgentsReturnToANewMaster(b *testing.B) {
	const agents, tasks = 1000, 10
	info := frameworkInfo("a")
	info.Id = &mesosv1.FrameworkID{Value: ptr("L-0000")}
	set := resources.MustParse("cpus:0.1;mem:32").Allocate("a")
	var hellos []*clusterv1.Hello
	snapshot := &registry.Snapshot{Agents: make(map[string]registry.Agent)}
	for i := range agents {
		id, host := fmt.Sprintf("L-S%d", i), fmt.Sprintf("host%d", i)
		ai := &mesosv1.AgentInfo{Id: &mesosv1.AgentID{Value: &id}, Hostname: &host, Resources: resources.MustParse("cpus:16;mem:65536;disk:100000;ports:[31000-32000]").Resources()}
		h := &clusterv1.Hello{Agent: ai, Frameworks: []*mesosv1.FrameworkInfo{info}}
		for j := range tasks {
			tid := fmt.Sprintf("task-%d-%d", i, j)
			h.Tasks = append(h.Tasks, &mesosv1.Task{
				Name: &tid, TaskId: &mesosv1.TaskID{Value: &tid}, FrameworkId: info.Id, AgentId: ai.Id,
				State: mesosv1.TaskState_TASK_RUNNING.Enum(), Resources: set.Resources()})
		}
		hellos = append(hellos, h)
		snapshot.Agents[id] = registry.Agent{Info: ai}
	}
	for range b.N {
		m, err := New(Config{ID: "M", Hostname: "m"}, Deps{Registry: registry.NewMemory()})
		if err != nil {
			b.Fatal(err)
		}
		now := time.Unix(1e9, 0)
		m.s.recover(now, snapshot)
		for _, h := range hellos {
			m.s.hello(&agentConn{out: newOutbox()}, h, now)
			m.view.Store(m.s.views.publish())
		}
		if n := m.view.Load().tasks.length; n != agents*tasks {
			b.Fatalf("%d tasks, want %d", n, agents*tasks)
		}
	}
}

// BenchmarkExplain10000Agents is what a question costs the loop.
func BenchmarkExplain10000Agents(b *testing.B) {
	m := bigState(b, 10_000, 1)
	info := frameworkInfo("a")
	info.Id = &mesosv1.FrameworkID{Value: ptr("M-0001")}
	m.s.recoverFramework(info, time.Unix(1e9, 0))
	m.s.allocator.ActivateFramework("M-0001")
	for i := range 20 {
		id := fmt.Sprintf("M-1%03d", i)
		info := frameworkInfo("a")
		info.Id = &mesosv1.FrameworkID{Value: &id}
		m.s.recoverFramework(info, time.Unix(1e9, 0))
		m.s.allocator.ActivateFramework(id)
	}
	now := time.Unix(1e9+1, 0)
	for name, query := range map[string]map[string][]string{
		"framework": {"framework": {"M-0001"}, "need": {"cpus:64;mem:1024"}},
		"role":      {"role": {"a"}, "need": {"cpus:64;mem:1024"}},
	} {
		q, err := explainQuestion(query)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			for range b.N {
				if x := m.s.allocator.Explain(q, now); x.Agents != 10_000 || x.Fits != 0 {
					b.Fatalf("explanation = %+v", x)
				}
			}
		})
	}
}
