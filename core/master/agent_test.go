package master

import (
	"context"
	"errors"
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

func TestMessagesToAgentsCarryTheTerm(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		f.launch(o, commandTask("t1", o, "cpus:1;mem:32"))
		msgs := a.take()
		if len(msgs) != 2 {
			t.Fatalf("messages = %v, want Registered and RunTask", msgs)
		}
		for _, m := range msgs {
			if m.GetTerm() != 2 { // the memory registry is made in term 1
				t.Errorf("term = %d, want 2", m.GetTerm())
			}
		}
	})
}

func TestSilentAgentBecomesUnreachableAndItsTasksWithIt(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		old, _ := c.framework(oldInfo())
		o := one(t, "offers", offers(events))
		events = f.accept([]*mesosv1.Offer{o}, &mesosv1.Filters{RefuseSeconds: ptr(3600.0)}, launch(commandTask("t1", o, "cpus:1;mem:32")))
		f.ack(one(t, "updates", updates(events)))
		c.pass(time.Second)
		p := one(t, "offers", offers(old.stream.take()))
		old.ack(one(t, "updates", updates(old.accept([]*mesosv1.Offer{p}, &mesosv1.Filters{RefuseSeconds: ptr(3600.0)}, launch(commandTask("t2", p, "cpus:1;mem:32"))))))
		f.stream.take()
		old.stream.take()

		a.mu.Lock()
		a.silent = true
		a.mu.Unlock()
		c.pass(70 * time.Second)
		if us := append(updates(f.stream.take()), updates(old.stream.take())...); len(us) != 0 {
			t.Errorf("updates before 75 s: %v", us)
		}
		c.pass(20 * time.Second)
		events = f.stream.take()
		u := one(t, "updates", updates(events))
		if u.GetState() != mesosv1.TaskState_TASK_UNREACHABLE || u.GetReason() != mesosv1.TaskStatus_REASON_AGENT_REMOVED ||
			u.UnreachableTime == nil || u.Uuid != nil || u.GetContainerStatus().GetContainerId().GetValue() != "c-t1" {
			t.Errorf("update = %v, want TASK_UNREACHABLE, REASON_AGENT_REMOVED, a time, a container, no uuid", u)
		}
		var failures int
		for _, e := range events {
			if e.GetFailure().GetAgentId().GetValue() == a.id() {
				failures++
			}
		}
		if failures != 1 {
			t.Errorf("%d FAILURE events, want 1", failures)
		}
		if u := one(t, "updates", updates(old.stream.take())); u.GetState() != mesosv1.TaskState_TASK_LOST {
			t.Errorf("update of the old framework = %v, want TASK_LOST", u)
		}
		tasks := c.get(masterv1.Call_GET_TASKS).GetGetTasks()
		if len(tasks.Tasks) != 0 || len(tasks.UnreachableTasks) != 1 || len(tasks.CompletedTasks) != 1 {
			t.Errorf("tasks = %v, want one unreachable and one completed", tasks)
		}
		if n := len(c.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetAgents()); n != 0 {
			t.Errorf("%d agents, want none", n)
		}
		// Explicit reconciliation knows the agent.
		us := updates(f.call(&schedulerv1.Call{Type: schedulerv1.Call_RECONCILE.Enum(), Reconcile: &schedulerv1.Call_Reconcile{
			Tasks: []*schedulerv1.Call_Reconcile_Task{
				{TaskId: &mesosv1.TaskID{Value: ptr("t1")}},
				{TaskId: &mesosv1.TaskID{Value: ptr("other")}, AgentId: o.AgentId},
			}}}))
		if len(us) != 2 || us[0].GetState() != mesosv1.TaskState_TASK_UNREACHABLE || us[1].GetState() != mesosv1.TaskState_TASK_UNREACHABLE || us[1].UnreachableTime == nil {
			t.Errorf("reconciled: %v, want TASK_UNREACHABLE twice", us)
		}

		// It comes back, with everything that runs on it.
		a.mu.Lock()
		a.silent = false
		a.mu.Unlock()
		<-a.ended
		a.connect()
		c.pass(time.Second)
		if u := one(t, "updates", updates(f.stream.take())); u.GetState() != mesosv1.TaskState_TASK_RUNNING || u.GetReason() != mesosv1.TaskStatus_REASON_AGENT_REREGISTERED {
			t.Errorf("update = %v, want TASK_RUNNING with REASON_AGENT_REREGISTERED", u)
		}
		if u := one(t, "updates", updates(old.stream.take())); u.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("update of the old framework = %v, want TASK_RUNNING", u)
		}
		tasks = c.get(masterv1.Call_GET_TASKS).GetGetTasks()
		if len(tasks.Tasks) != 2 || len(tasks.UnreachableTasks) != 0 || len(tasks.CompletedTasks) != 0 {
			t.Errorf("tasks after its return = %v, want two that run", tasks)
		}
	})
}

func TestDisconnectedAgentKeepsItsTasksAndLosesItsOffers(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		b := c.agentAt("other.example", 5051, "cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		if n := len(offers(events)); n != 2 {
			t.Fatalf("%d offers, want 2", n)
		}
		for _, o := range offers(events) {
			if o.GetAgentId().GetValue() == b.id() {
				f.launch(o, commandTask("t1", o, "cpus:1;mem:32"))
			}
		}
		a.disconnect()
		if e := one(t, "events", f.stream.take()); e.GetRescind() == nil {
			t.Errorf("event = %v, want RESCIND", e)
		}
		b.disconnect()
		c.pass(30 * time.Second)
		if us := updates(f.stream.take()); len(us) != 0 {
			t.Errorf("updates: %v, want none while the agent may come back", us)
		}
		b.connect()
		c.pass(5 * time.Second)
		events = f.stream.take()
		if us := updates(events); len(us) != 0 {
			t.Errorf("updates: %v, want none for a task that goes on", us)
		}
		if o := one(t, "offers", offers(events)); o.GetAgentId().GetValue() != b.id() {
			t.Errorf("offer of %s, want of the agent that is back", o.GetAgentId().GetValue())
		}
	})
}

func TestTasksThatAReturningAgentDoesNotNameAreGone(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		f.launch(o, commandTask("ran", o, "cpus:1;mem:32"))
		a.mu.Lock()
		a.idle = true
		a.mu.Unlock()
		c.pass(6 * time.Second)
		o = one(t, "offers", offers(f.stream.take()))
		f.launch(o, commandTask("staging", o, "cpus:1;mem:32"))
		a.disconnect()
		clear(a.tasks)
		a.connect()
		c.settle()
		want := map[string]mesosv1.TaskState{"ran": mesosv1.TaskState_TASK_GONE, "staging": mesosv1.TaskState_TASK_DROPPED}
		c.pass(time.Second)
		events = f.stream.take()
		us := updates(events)
		if len(us) != 2 {
			t.Fatalf("updates = %v, want two", us)
		}
		for _, u := range us {
			if id := u.GetTaskId().GetValue(); u.GetState() != want[id] || u.Uuid != nil {
				t.Errorf("update of %s = %v, want %s without uuid", id, u, want[id])
			}
		}
		var got resources.Set
		for _, o := range offers(events) {
			got = got.Add(resources.New(o.Resources...).Unallocate())
		}
		if !got.Equal(resources.MustParse("cpus:4;mem:1024")) {
			t.Errorf("offered %v, want all", got)
		}
	})
}

func TestSecondStreamOfAnAgentReplacesTheFirst(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		first, conn, stop := a.ended, a.conn, a.close
		a.connect()
		c.settle()
		select {
		case <-first:
		default:
			t.Error("the first stream is open, want it ended")
		}
		stop()
		conn.Close()
		c.settle()
		agents := c.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetAgents()
		if x := one(t, "agents", agents); !x.GetActive() {
			t.Error("the agent is not active, though its second stream stands")
		}
	})
}

func TestAgentThatSaysByeIsRemoved(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		f.launch(o, commandTask("t1", o, "cpus:1;mem:32"))
		a.say(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Bye{Bye: &clusterv1.Bye{Message: "reboot"}}})
		if u := one(t, "updates", updates(f.stream.take())); u.GetState() != mesosv1.TaskState_TASK_GONE {
			t.Errorf("update = %v, want TASK_GONE", u)
		}
		if n := len(c.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetAgents()); n != 0 {
			t.Errorf("%d agents, want none", n)
		}
	})
}

func TestNewAgentAtTheAddressOfOneThatIsAwayTakesItsPlace(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		first := a.id()
		a.disconnect()
		a.info.Id = nil
		a.connect()
		c.settle()
		if a.id() == first || a.id() == "" {
			t.Errorf("id = %q, want a new one", a.id())
		}
		x := one(t, "agents", c.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetAgents())
		if got := x.GetAgentInfo().GetId().GetValue(); got != a.id() {
			t.Errorf("agent = %s, want %s", got, a.id())
		}
	})
}

func TestAgentAtTheAddressOfAConnectedOneIsRefused(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		twin := &fakeAgent{c: c, info: &mesosv1.AgentInfo{Hostname: a.info.Hostname, Port: a.info.Port}}
		c.agents = append(c.agents, twin)
		twin.connect()
		c.settle()
		if r := one(t, "messages", twin.take()).GetRefused(); r == nil || r.GetFatal() {
			t.Errorf("message = %v, want Refused, to be tried again", r)
		}
	})
}

func TestChangedResourcesReplaceOffers(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		one(t, "offers", offers(events))
		a.say(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_ResourcesChanged{ResourcesChanged: &clusterv1.ResourcesChanged{
			TotalResources: resources.MustParse("cpus:8;mem:2048").Resources()}}})
		events = f.stream.take()
		if len(events) != 2 || events[0].GetRescind() == nil {
			t.Fatalf("events = %v, want RESCIND and OFFERS", events)
		}
		if got := resources.New(offers(events)[0].Resources...).Unallocate(); !got.Equal(resources.MustParse("cpus:8;mem:2048")) {
			t.Errorf("offered %v, want cpus:8;mem:2048", got)
		}
	})
}

func TestStreamWithoutHelloIsEnded(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		stream, err := clusterv1.NewMasterClient(a.conn).Connect(t.Context())
		if err != nil {
			t.Fatalf("Connect: %v", err)
		}
		if err := stream.Send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Pong{Pong: &clusterv1.Pong{}}}); err != nil {
			t.Fatalf("Send: %v", err)
		}
		if _, err := stream.Recv(); err == nil {
			t.Error("a stream that begins with a Pong goes on, want an error")
		}
		mute, err := clusterv1.NewMasterClient(a.conn).Connect(t.Context())
		if err != nil {
			t.Fatalf("Connect: %v", err)
		}
		begun := time.Now()
		if _, err := mute.Recv(); err == nil || time.Since(begun) < helloTimeout {
			t.Errorf("a stream without a word ended with %v after %v, want an error after %v", err, time.Since(begun), helloTimeout)
		}
	})
}

func TestMasterRestartKeepsTasksAndIds(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo("eng"))
		o := one(t, "offers", offers(events))
		f.ack(one(t, "updates", updates(f.launch(o, commandTask("t1", o, "cpus:1;mem:32")))))
		agentID, info := a.id(), f.info
		c.cancel()
		if err := <-c.ended; err != nil {
			t.Fatalf("Run = %v", err)
		}
		c.ended <- nil // for stop
		c.server.Stop()
		<-a.ended

		next := startCluster(t, Config{ID: "N"}, Deps{Registry: c.registry})
		defer next.stop()
		if x := one(t, "recovered agents", next.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetRecoveredAgents()); x.GetId().GetValue() != agentID {
			t.Errorf("recovered agent %v, want %s", x, agentID)
		}
		// An unknown task gets no answer while an agent that may run it is expected back.
		g := &scheduler{c: next, info: info.CloneVT()}
		_ = g.subscribe()
		if g.id != f.id {
			t.Fatalf("framework id = %q, want %q", g.id, f.id)
		}
		reconcile := &schedulerv1.Call{Type: schedulerv1.Call_RECONCILE.Enum(), Reconcile: &schedulerv1.Call_Reconcile{
			Tasks: []*schedulerv1.Call_Reconcile_Task{{TaskId: &mesosv1.TaskID{Value: ptr("t1")}, AgentId: o.AgentId}}}}
		if us := updates(g.call(reconcile)); len(us) != 0 {
			t.Errorf("reconciled before the agent is back: %v", us)
		}
		a.c = next
		next.agents = append(next.agents, a)
		c.agents = nil
		a.connect()
		next.settle()
		if a.id() != agentID {
			t.Errorf("agent id = %q, want %q", a.id(), agentID)
		}
		if u := one(t, "updates", updates(g.call(reconcile))); u.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("reconciled: %v, want TASK_RUNNING", u)
		}
		next.pass(time.Second)
		tasks := next.get(masterv1.Call_GET_TASKS).GetGetTasks().GetTasks()
		if x := one(t, "tasks", tasks); x.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("task = %v, want it running", x)
		}
		a.set(g, "t1", mesosv1.TaskState_TASK_FAILED)
		if u := one(t, "updates", updates(g.stream.take())); u.GetState() != mesosv1.TaskState_TASK_FAILED {
			t.Errorf("update = %v, want TASK_FAILED", u)
		}
	})
}

func TestAgentsBringTheirFrameworksToANewMaster(t *testing.T) {
	inBubble(t, Config{AgentReregisterTimeout: 10 * time.Minute}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo("eng"))
		o := one(t, "offers", offers(events))
		f.launch(o, commandTask("t1", o, "cpus:1;mem:32"))
		c.cancel()
		<-c.ended
		c.ended <- nil
		c.server.Stop()
		<-a.ended
		next := startCluster(t, Config{ID: "N"}, Deps{Registry: c.registry})
		defer next.stop()
		a.c, next.agents, c.agents = next, []*fakeAgent{a}, nil
		a.connect()
		next.settle()
		x := one(t, "frameworks", next.get(masterv1.Call_GET_FRAMEWORKS).GetGetFrameworks().GetFrameworks())
		if !x.GetRecovered() || x.GetConnected() || x.GetFrameworkInfo().GetName() != "f" {
			t.Errorf("framework = %v, want it recovered and not connected", x)
		}
		other, events := next.framework(frameworkInfo("eng"))
		if got := resources.New(one(t, "offers", offers(events)).Resources...).Unallocate(); !got.Equal(resources.MustParse("cpus:3;mem:992")) {
			t.Errorf("another is offered %v, want what the recovered framework does not use", got)
		}
		_ = other
		g := &scheduler{c: next, info: f.info.CloneVT()}
		_ = g.subscribe()
		if g.id != f.id {
			t.Errorf("id = %q, want %q", g.id, f.id)
		}
		if x := next.get(masterv1.Call_GET_FRAMEWORKS).GetGetFrameworks().GetFrameworks()[0]; x.GetRecovered() || !x.GetConnected() {
			t.Errorf("framework = %v, want it connected", x)
		}
	})
}

func TestAgentsThatDoNotReturnToANewMasterBecomeUnreachable(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		id := a.id()
		c.cancel()
		<-c.ended
		c.ended <- nil
		next := startCluster(t, Config{ID: "N"}, Deps{Registry: c.registry})
		defer next.stop()
		next.pass(11 * time.Minute)
		if x := next.get(masterv1.Call_GET_AGENTS).GetGetAgents(); len(x.GetRecoveredAgents()) != 0 {
			t.Errorf("recovered agents = %v, want none", x)
		}
		f, _ := next.framework(frameworkInfo())
		us := updates(f.call(&schedulerv1.Call{Type: schedulerv1.Call_RECONCILE.Enum(), Reconcile: &schedulerv1.Call_Reconcile{
			Tasks: []*schedulerv1.Call_Reconcile_Task{{TaskId: &mesosv1.TaskID{Value: ptr("t")}, AgentId: &mesosv1.AgentID{Value: &id}}}}}))
		if u := one(t, "updates", us); u.GetState() != mesosv1.TaskState_TASK_UNREACHABLE {
			t.Errorf("reconciled: %v, want TASK_UNREACHABLE", u)
		}
	})
}

func TestRegistryThatFailsStopsTheMaster(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		store := registry.NewMemory()
		broken := startCluster(t, Config{ID: "B"}, Deps{Registry: store})
		broken.settle()
		store.Fail(errors.New("disk full"))
		a := &fakeAgent{c: broken, info: &mesosv1.AgentInfo{Hostname: ptr("h"), Port: ptr(int32(1))}}
		a.connect()
		if err := <-broken.ended; err == nil {
			t.Error("Run = nil, want the registry's error")
		}
		broken.ended <- nil
		broken.agents = append(broken.agents, a)
		broken.stop()
		if a.id() != "" {
			t.Error("the agent was registered, though the registry does not know it")
		}
	})
}

func TestMasterThatLosesLeadershipStops(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		store := registry.NewMemory()
		deposed := startCluster(t, Config{ID: "B"}, Deps{Registry: store})
		store.Depose()
		if err := <-deposed.ended; !errors.Is(err, ErrLeadershipLost) {
			t.Errorf("Run = %v, want ErrLeadershipLost", err)
		}
		if leads, _, _ := deposed.m.Leader(); leads {
			t.Error("Leader says that it leads")
		}
		deposed.ended <- nil
		deposed.stop()
	})
}

func TestAgentThatReadsNothingHoldsNobodyUp(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:100000;mem:10000000")
		release := make(chan struct{})
		defer close(release)
		a.mu.Lock()
		a.onReceive = func(*clusterv1.ToAgent) bool {
			<-release
			return true
		}
		a.mu.Unlock()
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		var tasks []*mesosv1.TaskInfo
		for i := range 3000 {
			x := commandTask(fmt.Sprint("t", i), o, "cpus:0.1;mem:32")
			x.Data = make([]byte, 2000)
			tasks = append(tasks, x)
		}
		f.launch(o, tasks...)
		c.pass(2 * time.Minute)
		if n := len(c.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetAgents()); n != 0 {
			t.Errorf("%d agents after two minutes without a pong, want none", n)
		}
		if us := updates(f.stream.take()); len(us) != 3000 {
			t.Errorf("%d updates, want 3000 unreachable tasks", len(us))
		}
	})
}

func TestUnreachableAgentsAreForgottenAfterTwoWeeks(t *testing.T) {
	inBubble(t, Config{PingInterval: time.Hour}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		id := a.id()
		a.disconnect()
		known := func() int {
			s, err := c.registry.Load(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			return len(s.Unreachable)
		}
		c.pass(7 * time.Hour)
		if known() != 1 {
			t.Fatalf("the registry knows %d unreachable agents, want %s", known(), id)
		}
		c.pass(14 * 24 * time.Hour)
		if known() != 0 {
			t.Errorf("the registry knows %d unreachable agents after two weeks, want none", known())
		}
	})
}

func TestOutboxIsBounded(t *testing.T) {
	o := newOutbox()
	for i := range maxOutbox {
		if !o.push(&clusterv1.ToAgent{}) {
			t.Fatalf("push %d = false", i)
		}
	}
	if o.push(&clusterv1.ToAgent{}) {
		t.Error("push into a full outbox = true, want false")
	}
	var sent int
	if err := o.pump(func(*clusterv1.ToAgent) error { sent++; return nil }); err != nil || sent != maxOutbox {
		t.Errorf("pump = %v after %d, want nil after all", err, sent)
	}
	if o.push(&clusterv1.ToAgent{}) {
		t.Error("push after the end = true, want false")
	}
}

func TestAgentThatIsGoneMayNotReturn(t *testing.T) {
	store := registry.NewMemory()
	if err := store.Apply(context.Background(), []registry.Change{registry.PutGone("L-S0", registry.Departure{Since: time.Unix(1e9, 0)})}); err != nil {
		t.Fatal(err)
	}
	inBubble(t, Config{}, Deps{Registry: store}, func(t *testing.T, c *cluster) {
		a := &fakeAgent{c: c, info: &mesosv1.AgentInfo{Hostname: ptr("h"), Port: ptr(int32(1)), Id: &mesosv1.AgentID{Value: ptr("L-S0")}}}
		c.agents = append(c.agents, a)
		a.connect()
		c.settle()
		if m := one(t, "messages", a.take()); m.GetShutdown() == nil {
			t.Errorf("message = %v, want Shutdown: its tasks must not go on either", m)
		}
	})
}

func TestDeactivatedAgentIsNotOffered(t *testing.T) {
	store := registry.NewMemory()
	info := &mesosv1.AgentInfo{Hostname: ptr("h"), Port: ptr(int32(1)), Id: &mesosv1.AgentID{Value: ptr("L-S0")},
		Resources: resources.MustParse("cpus:4;mem:1024").Resources()}
	if err := store.Apply(context.Background(), []registry.Change{registry.PutAgent("L-S0", registry.Agent{Info: info, Deactivated: true})}); err != nil {
		t.Fatal(err)
	}
	inBubble(t, Config{}, Deps{Registry: store}, func(t *testing.T, c *cluster) {
		a := &fakeAgent{c: c, info: info.CloneVT()}
		c.agents = append(c.agents, a)
		a.connect()
		_, events := c.framework(frameworkInfo())
		if got := offers(events); len(got) != 0 {
			t.Errorf("offers = %v, want none", got)
		}
		if x := one(t, "agents", c.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetAgents()); !x.GetDeactivated() || x.GetActive() {
			t.Errorf("agent = %v, want it deactivated", x)
		}
	})
}

func TestAgentsOlderThanTheOldestThatIsKnownAreRefused(t *testing.T) {
	for version, want := range map[string]bool{"1.0.0": true, "1.12.0": true, "2": true, "1.11.0-rc1": true, "1.0": true,
		"0.28.2": false, "": false, "new": false, "-1.0.0": false} {
		if got := versionAtLeast(version, minAgentVersion); got != want {
			t.Errorf("versionAtLeast(%q, %q) = %v, want %v", version, minAgentVersion, got, want)
		}
	}
}

func TestAnAgentThatReturnsWithOtherAttributesIsOfferedByThem(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		s := &scheduler{c: c, info: frameworkInfo("a"), stream: newRecorder[*schedulerv1.Event]()}
		call := &schedulerv1.Call{Type: schedulerv1.Call_SUBSCRIBE.Enum(), Subscribe: &schedulerv1.Call_Subscribe{
			FrameworkInfo: s.info, OfferConstraints: &schedulerv1.OfferConstraints{RoleConstraints: map[string]*schedulerv1.OfferConstraints_RoleConstraints{
				"a": {Groups: []*schedulerv1.OfferConstraints_RoleConstraints_Group{{AttributeConstraints: []*schedulerv1.AttributeConstraint{{
					Selector:  &schedulerv1.AttributeConstraint_Selector{Selector: &schedulerv1.AttributeConstraint_Selector_AttributeName{AttributeName: "rack"}},
					Predicate: &schedulerv1.AttributeConstraint_Predicate{Predicate: &schedulerv1.AttributeConstraint_Predicate_Exists_{Exists: &schedulerv1.AttributeConstraint_Predicate_Exists{}}},
				}}}}}}}}}
		if _, err := c.m.SchedulerSubscribe(context.Background(), "", call, s.stream); err != nil {
			t.Fatal(err)
		}
		c.pass(2 * time.Second)
		if got := offers(s.stream.take()); len(got) != 0 {
			t.Fatalf("offered %v, which has no rack", got)
		}
		a.disconnect()
		a.info.Attributes = []*mesosv1.Attribute{{Name: ptr("rack"), Type: mesosv1.Value_TEXT.Enum(), Text: &mesosv1.Value_Text{Value: ptr("r1")}}}
		a.connect()
		c.pass(2 * time.Second)
		o := one(t, "offers", offers(s.stream.take()))
		if len(o.GetAttributes()) != 1 || total(o).Scalar("cpus") != 4 {
			t.Errorf("offer = %v, want all of the agent with its new attribute", o)
		}
	})
}
