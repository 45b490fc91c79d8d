package master

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mosaic-cluster/mosaic/core/allocator"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// operate makes a call of the operator API and returns the status of its refusal, 0 for none, and the text.
func (c *cluster) operate(call *masterv1.Call) (int, string) {
	c.Helper()
	_, err := c.m.OperatorCall(context.Background(), "", call)
	c.settle()
	if err == nil {
		return 0, ""
	}
	return statusOf(err), err.Error()
}

// must makes a call that is carried out.
func (c *cluster) must(call *masterv1.Call) {
	c.Helper()
	if code, text := c.operate(call); code != 0 {
		c.Fatalf("OperatorCall %s = %d %s", call.GetType(), code, text)
	}
}

func agentID(id string) *mesosv1.AgentID { return &mesosv1.AgentID{Value: &id} }

func reserveCall(id string, source []*mesosv1.Resource, rs ...*mesosv1.Resource) *masterv1.Call {
	return &masterv1.Call{Type: masterv1.Call_RESERVE_RESOURCES.Enum(),
		ReserveResources: &masterv1.Call_ReserveResources{AgentId: agentID(id), Resources: rs, Source: source}}
}

func unreserveCall(id string, rs ...*mesosv1.Resource) *masterv1.Call {
	return &masterv1.Call{Type: masterv1.Call_UNRESERVE_RESOURCES.Enum(),
		UnreserveResources: &masterv1.Call_UnreserveResources{AgentId: agentID(id), Resources: rs}}
}

func createCall(id string, vs ...*mesosv1.Resource) *masterv1.Call {
	return &masterv1.Call{Type: masterv1.Call_CREATE_VOLUMES.Enum(),
		CreateVolumes: &masterv1.Call_CreateVolumes{AgentId: agentID(id), Volumes: vs}}
}

func destroyCall(id string, vs ...*mesosv1.Resource) *masterv1.Call {
	return &masterv1.Call{Type: masterv1.Call_DESTROY_VOLUMES.Enum(),
		DestroyVolumes: &masterv1.Call_DestroyVolumes{AgentId: agentID(id), Volumes: vs}}
}

func deactivateCall(id string) *masterv1.Call {
	return &masterv1.Call{Type: masterv1.Call_DEACTIVATE_AGENT.Enum(), DeactivateAgent: &masterv1.Call_DeactivateAgent{AgentId: agentID(id)}}
}

func reactivateCall(id string) *masterv1.Call {
	return &masterv1.Call{Type: masterv1.Call_REACTIVATE_AGENT.Enum(), ReactivateAgent: &masterv1.Call_ReactivateAgent{AgentId: agentID(id)}}
}

func drainCall(id string, gone bool) *masterv1.Call {
	return &masterv1.Call{Type: masterv1.Call_DRAIN_AGENT.Enum(), DrainAgent: &masterv1.Call_DrainAgent{
		AgentId: agentID(id), MarkGone: &gone, MaxGracePeriod: durationpb.New(7 * time.Second)}}
}

func goneCall(id string) *masterv1.Call {
	return &masterv1.Call{Type: masterv1.Call_MARK_AGENT_GONE.Enum(), MarkAgentGone: &masterv1.Call_MarkAgentGone{AgentId: agentID(id)}}
}

func scalars(text string) map[string]*mesosv1.Value_Scalar {
	return resources.MustParse(text).Quantities().Scalars()
}

func quotaCall(force bool, configs ...*quotav1.QuotaConfig) *masterv1.Call {
	return &masterv1.Call{Type: masterv1.Call_UPDATE_QUOTA.Enum(), UpdateQuota: &masterv1.Call_UpdateQuota{Force: &force, QuotaConfigs: configs}}
}

func quotaOf(role, guarantees, limits string) *quotav1.QuotaConfig {
	q := &quotav1.QuotaConfig{Role: &role}
	if guarantees != "" {
		q.Guarantees = scalars(guarantees)
	}
	if limits != "" {
		q.Limits = scalars(limits)
	}
	return q
}

// onlyAgent is the agent as GET_AGENTS shows it.
func (c *cluster) onlyAgent() *masterv1.Response_GetAgents_Agent {
	c.Helper()
	return one(c.TB, "agents", c.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetAgents())
}

func TestOperatorsReserveAndMakeVolumesOfWhatIsOffered(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024;disk:1000")
		s, events := c.framework(frameworkInfo("ops"))
		o := one(t, "offers", offers(events))
		s.launch(o, commandTask("t", o, "cpus:1;mem:128"))
		s.next()
		if code, text := c.operate(reserveCall(a.id(), nil, reservedFor("eng", "cpus:4")...)); code != 409 {
			t.Errorf("reserving what a task uses = %d %s, want 409", code, text)
		}
		c.must(reserveCall(a.id(), nil, reservedFor("eng", "cpus:2;disk:100")...))
		rescinded := false
		for _, e := range s.stream.take() {
			rescinded = rescinded || e.GetRescind() != nil
		}
		if !rescinded {
			t.Error("the offer that held the resources was not rescinded")
		}
		v := volumeOf("eng", "v", 60)
		c.must(createCall(a.id(), v))
		if got := a.has(); !got.Contains(resources.New(append(reservedFor("eng", "cpus:2;disk:40"), v)...)) {
			t.Errorf("agent has %s, want reservation and volume", got)
		}
		if a.waiting() != 0 {
			t.Errorf("%d operations wait; the master acknowledges an operator's", a.waiting())
		}
		if o := one(t, "offers to ops", s.next()); total(o).Scalar("cpus") != 1 || total(o).Scalar("disk") != 900 {
			t.Errorf("ops is offered %s, want what is neither used nor reserved", total(o))
		}
		for name, x := range map[string]struct {
			call *masterv1.Call
			want int
		}{
			"unknown agent":            {reserveCall("none", nil, reservedFor("eng", "cpus:1")...), 400},
			"not reserved":             {reserveCall(a.id(), nil, resources.MustParse("cpus:1").Resources()...), 400},
			"unreserve what is not":    {unreserveCall(a.id(), reservedFor("eng", "cpus:3")...), 409},
			"unreserve a volume":       {unreserveCall(a.id(), v), 400},
			"same volume again":        {createCall(a.id(), volumeOf("eng", "v", 10)), 400},
			"volume of too much":       {createCall(a.id(), volumeOf("eng", "w", 100)), 409},
			"destroy what is not":      {destroyCall(a.id(), volumeOf("eng", "w", 10)), 409},
			"source that is not there": {reserveCall(a.id(), reservedFor("x", "cpus:1"), reservedFor("eng", "cpus:1")...), 409},
		} {
			if code, text := c.operate(x.call); code != x.want {
				t.Errorf("%s = %d %s, want %d", name, code, text, x.want)
			}
		}
		// A volume that a task uses stays.
		eng, events := c.framework(frameworkInfo("eng"))
		o = one(t, "offers to eng", offers(events))
		user := volumeTask("v", o, v)
		user.Resources = append(reservedFor("eng", "cpus:0.1"), v)
		eng.launch(o, user)
		if code, text := c.operate(destroyCall(a.id(), v)); code != 409 || !strings.Contains(text, "in use") {
			t.Errorf("DESTROY_VOLUMES of a used volume = %d %s, want 409", code, text)
		}
		a.set(eng, "v", mesosv1.TaskState_TASK_FINISHED)
		c.must(destroyCall(a.id(), v))
		// A reservation changes hands, and goes.
		c.must(reserveCall(a.id(), reservedFor("eng", "cpus:2"), reservedFor("ops", "cpus:2")...))
		c.must(unreserveCall(a.id(), reservedFor("ops", "cpus:2")...))
		c.must(unreserveCall(a.id(), reservedFor("eng", "disk:100")...))
		if !a.has().Equal(resources.MustParse("cpus:4;mem:1024;disk:1000")) {
			t.Errorf("agent has %s, want what it began with", a.has())
		}
		a.disconnect()
		if code, _ := c.operate(reserveCall(a.id(), nil, reservedFor("eng", "cpus:1")...)); code != 409 {
			t.Errorf("reserving on an agent that is away = %d, want 409", code)
		}
	})
}

func TestDeactivationLastsUntilReactivation(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		s, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		s.launch(o, commandTask("t", o, "cpus:1;mem:128"))
		s.next()
		for _, id := range []string{"none", ""} {
			if code, _ := c.operate(deactivateCall(id)); code != 400 {
				t.Errorf("DEACTIVATE_AGENT of %q = %d, want 400", id, code)
			}
		}
		if code, _ := c.operate(reactivateCall(a.id())); code != 400 {
			t.Errorf("REACTIVATE_AGENT of an active agent = %d, want 400", code)
		}
		c.must(deactivateCall(a.id()))
		if got := s.next(); len(got) != 0 {
			t.Errorf("offers of a deactivated agent: %v", got)
		}
		if x := c.onlyAgent(); !x.GetDeactivated() || x.GetActive() {
			t.Errorf("agent = %v, want it deactivated", x)
		}
		next := func() *cluster {
			c.cancel()
			if err := <-c.ended; err != nil {
				t.Fatal(err)
			}
			return startCluster(t, Config{ID: "N"}, Deps{Registry: c.registry})
		}()
		defer next.stop()
		c.ended <- nil // for stop, which has nothing left to wait for
		b := &fakeAgent{c: next, info: a.info, tasks: a.tasks, executors: a.executors, frameworks: a.frameworks, total: a.total, operations: a.operations}
		next.agents = append(next.agents, b)
		b.connect()
		next.settle()
		s2 := &scheduler{c: next, info: s.info}
		s2.subscribe()
		if got := s2.next(); len(got) != 0 {
			t.Errorf("offers after a failover: %v", got)
		}
		if len(next.get(masterv1.Call_GET_TASKS).GetGetTasks().GetTasks()) != 1 {
			t.Error("the task of a deactivated agent did not go on")
		}
		next.must(reactivateCall(b.id()))
		if got := s2.next(); len(got) != 1 {
			t.Errorf("offers after reactivation = %v, want one", got)
		}
	})
}

func TestDrainEndsWhenTheLastTaskIsAcknowledged(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		s, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		s.launch(o, commandTask("t", o, "cpus:1;mem:128"))
		s.next()
		a.take()
		c.must(drainCall(a.id(), false))
		d := one(t, "drains", taken[*clusterv1.ToAgent_Drain](a))
		if d.Drain.GetConfig().GetMaxGracePeriod().GetNanoseconds() != int64(7*time.Second) {
			t.Errorf("the agent was told %v", d)
		}
		if x := c.onlyAgent(); x.GetDrainInfo().GetState() != mesosv1.DrainState_DRAINING || !x.GetDeactivated() || x.GetEstimatedDrainStartTime() == nil {
			t.Errorf("agent = %v, want it draining", x)
		}
		if code, _ := c.operate(reactivateCall(a.id())); code != 400 {
			t.Errorf("REACTIVATE_AGENT while draining = %d, want 400", code)
		}
		a.disconnect()
		a.connect()
		c.settle()
		one(t, "drains after a reconnection", taken[*clusterv1.ToAgent_Drain](a))
		a.set(s, "t", mesosv1.TaskState_TASK_KILLED)
		if x := c.onlyAgent(); x.GetDrainInfo().GetState() != mesosv1.DrainState_DRAINING {
			t.Errorf("before the acknowledgement = %v, want it draining", x.GetDrainInfo())
		}
		for _, u := range updates(s.stream.take()) {
			s.ack(u)
		}
		if x := c.onlyAgent(); x.GetDrainInfo().GetState() != mesosv1.DrainState_DRAINED {
			t.Errorf("after it = %v, want it drained", x.GetDrainInfo())
		}
		snapshot, err := c.registry.Load(context.Background())
		if err != nil || snapshot.Agents[a.id()].Drain.GetState() != mesosv1.DrainState_DRAINED {
			t.Errorf("registry has %v, %v", snapshot.Agents[a.id()].Drain, err)
		}
		if got := s.next(); len(got) != 0 {
			t.Errorf("offers of a drained agent: %v", got)
		}
		c.must(reactivateCall(a.id()))
		if got := s.next(); len(got) != 1 {
			t.Errorf("offers after reactivation = %v, want one", got)
		}
		if x := c.onlyAgent(); x.DrainInfo != nil || x.EstimatedDrainStartTime != nil || x.GetDeactivated() {
			t.Errorf("agent = %v, want nothing left of the drain", x)
		}
	})
}

func TestAnAgentDrainedForGoodIsGone(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		c.must(drainCall(a.id(), true))
		c.pass(time.Second)
		if got := c.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetAgents(); len(got) != 0 {
			t.Errorf("agents = %v, want none", got)
		}
		one(t, "shutdowns", taken[*clusterv1.ToAgent_Shutdown](a))
		if code, _ := c.operate(drainCall(a.id(), false)); code != 400 {
			t.Errorf("DRAIN_AGENT of an agent that is gone = %d, want 400", code)
		}
	})
}

func TestTasksOfAnAgentMarkedGoneAreGoneByOperator(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		s, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		s.launch(o, commandTask("t", o, "cpus:1;mem:128"))
		if code, _ := c.operate(goneCall("none")); code != 404 {
			t.Errorf("MARK_AGENT_GONE of an unknown agent = %d, want 404", code)
		}
		a.take()
		c.must(goneCall(a.id()))
		u := one(t, "updates", updates(s.stream.take()))
		if u.GetState() != mesosv1.TaskState_TASK_GONE_BY_OPERATOR || u.GetReason() != mesosv1.TaskStatus_REASON_AGENT_REMOVED_BY_OPERATOR {
			t.Errorf("update = %v, want TASK_GONE_BY_OPERATOR", u)
		}
		one(t, "shutdowns", taken[*clusterv1.ToAgent_Shutdown](a))
		a.connect()
		c.settle()
		if m := one(t, "messages to the agent that came back", a.take()); m.GetShutdown() == nil {
			t.Errorf("answer = %v, want Shutdown", m)
		}
		c.must(goneCall(a.id())) // again is no error
	})
}

func TestUnreachableTasksOfAnAgentMarkedGoneEnd(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		s, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		s.launch(o, commandTask("t", o, "cpus:1;mem:128"))
		a.mu.Lock()
		a.silent = true
		a.mu.Unlock()
		c.pass(2 * time.Minute)
		s.stream.take()
		c.must(goneCall(a.id()))
		if u := one(t, "updates", updates(s.stream.take())); u.GetState() != mesosv1.TaskState_TASK_GONE_BY_OPERATOR {
			t.Errorf("update = %v, want TASK_GONE_BY_OPERATOR", u)
		}
		got := c.get(masterv1.Call_GET_TASKS).GetGetTasks()
		if len(got.GetUnreachableTasks()) != 0 || len(got.GetCompletedTasks()) != 1 {
			t.Errorf("GET_TASKS = %v, want the task completed", got)
		}
	})
}

func TestQuotasAreCheckedAndKept(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:8;mem:4096")
		if status := c.get(masterv1.Call_GET_QUOTA).GetGetQuota().GetStatus(); status == nil || len(status.GetConfigs()) != 0 {
			t.Errorf("GET_QUOTA = %v, want an empty status", status)
		}
		for want, configs := range map[string][]*quotav1.QuotaConfig{
			"nested role":         {quotaOf("eng/dev", "cpus:1", "")},
			"above its limit":     {quotaOf("eng", "cpus:2", "cpus:1")},
			"named twice":         {quotaOf("eng", "cpus:1", ""), quotaOf("eng", "", "cpus:1")},
			"all guarantees":      {quotaOf("eng", "cpus:5", ""), quotaOf("ops", "cpus:4", "")},
			"Invalid QuotaConfig": {quotaOf("-eng", "cpus:1", "")},
		} {
			if code, text := c.operate(quotaCall(false, configs...)); code != 400 || !strings.Contains(text, want) {
				t.Errorf("UPDATE_QUOTA = %d %s, want 400 with %q", code, text, want)
			}
		}
		s, events := c.framework(frameworkInfo("eng"))
		o := one(t, "offers", offers(events))
		s.launch(o, commandTask("t", o, "cpus:3;mem:128"))
		s.next()
		if code, text := c.operate(quotaCall(false, quotaOf("eng", "", "cpus:2"))); code != 400 || !strings.Contains(text, "consumes 3") {
			t.Errorf("UPDATE_QUOTA below what is consumed = %d %s, want 400", code, text)
		}
		c.must(quotaCall(false, quotaOf("eng", "", "cpus:4;mem:1024")))
		if o := one(t, "offers", s.next()); total(o).Scalar("cpus") > 1 || total(o).Scalar("mem") > 896 {
			t.Errorf("offered %s, want no more than the limit leaves", total(o))
		}
		c.must(quotaCall(true, quotaOf("eng", "", "cpus:2")))
		for _, o := range s.next() {
			if total(o).Scalar("cpus") > 0 {
				t.Errorf("offered %s beyond the limit", total(o))
			}
		}
		// What others hold in offers becomes free for a guarantee.
		other, _ := c.framework(frameworkInfo("batch"))
		if o := one(t, "offers to batch", other.next()); total(o).Scalar("cpus") != 5 {
			t.Fatalf("batch was offered %s, want the five cpus that are left", total(o))
		}
		c.must(quotaCall(false, quotaOf("vip", "cpus:4", "")))
		vip, events := c.framework(frameworkInfo("vip"))
		if o := one(t, "offers to vip", append(offers(events), vip.next()...)[:1]); total(o).Scalar("cpus") < 4 {
			t.Errorf("vip was offered %s, want its guarantee", total(o))
		}
		snapshot, err := c.registry.Load(context.Background())
		if err != nil || len(snapshot.Quotas) != 2 {
			t.Errorf("registry has %v, %v, want two quotas", snapshot.Quotas, err)
		}
		c.must(quotaCall(false, quotaOf("vip", "", "")))
		status := c.get(masterv1.Call_GET_QUOTA).GetGetQuota().GetStatus()
		if q := one(t, "quotas", status.GetConfigs()); q.GetRole() != "eng" || q.GetLimits()["cpus"].GetValue() != 2 {
			t.Errorf("GET_QUOTA = %v, want that of eng", status)
		}
	})
}

func TestANewMasterWithQuotasWaitsForItsAgents(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agentAt("a.example", 1, "cpus:4;mem:1024")
		b := c.agentAt("b.example", 2, "cpus:4;mem:1024")
		c.must(quotaCall(false, quotaOf("vip", "cpus:4", "")))
		next := startCluster(t, Config{ID: "N"}, Deps{Registry: c.registry})
		defer next.stop()
		<-c.ended // deposed
		c.ended <- nil
		back := func(old *fakeAgent) {
			x := &fakeAgent{c: next, info: old.info, tasks: old.tasks, executors: old.executors, frameworks: old.frameworks, total: old.total, operations: old.operations}
			next.agents = append(next.agents, x)
			x.connect()
			next.settle()
		}
		s, events := next.framework(frameworkInfo("batch"))
		back(a)
		if got := append(offers(events), s.next()...); len(got) != 0 {
			t.Errorf("offers before enough agents are back: %v", got)
		}
		var x allocator.Explanation
		if err := json.Unmarshal([]byte(next.raw("/mosaic/v1/explain", "role=batch")), &x); err != nil {
			t.Fatal(err)
		}
		if r := one(t, "subjects", x.Asked).Reasons; len(r) == 0 || r[0].Code != allocator.WaitingForAgents {
			t.Errorf("reasons = %+v, want first that the master waits for agents", r)
		}
		back(b)
		if got := s.next(); len(got) == 0 {
			t.Error("no offers although all agents are back")
		}
	})
}
