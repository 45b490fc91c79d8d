package master

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

func TestSubscribedNamesMasterAndHeartbeat(t *testing.T) {
	inBubble(t, Config{IP: "127.0.0.1", Port: 5050}, Deps{}, func(t *testing.T, c *cluster) {
		s := &scheduler{c: c, info: frameworkInfo()}
		e := s.subscribe()[0].GetSubscribed()
		if e.GetHeartbeatIntervalSeconds() != 15 {
			t.Errorf("heartbeat interval = %v, want 15", e.GetHeartbeatIntervalSeconds())
		}
		m := e.GetMasterInfo()
		if m.GetIp() != 16777343 || m.GetPort() != 5050 || m.GetPid() != "master@127.0.0.1:5050" || m.GetHostname() != "master.example" {
			t.Errorf("master_info = %v", m)
		}
		for _, x := range m.GetCapabilities() {
			if s := x.GetType().String(); s != "AGENT_UPDATE" && s != "AGENT_DRAINING" {
				t.Errorf("master_info has capability %s, which clients of the era do not know", s)
			}
		}
	})
}

func TestBadSubscriptionsGetAnErrorEventAndTheEnd(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*scheduler)
		want   string
	}{
		"role invalid":           {func(s *scheduler) { s.info.Roles = []string{"a//b"} }, "role"},
		"role twice":             {func(s *scheduler) { s.info.Roles = []string{"a", "a"} }, "duplicate"},
		"role and roles":         {func(s *scheduler) { s.info.Role = ptr("x") }, "MULTI_ROLE"},
		"roles without":          {func(s *scheduler) { s.info.Capabilities = nil }, "MULTI_ROLE"},
		"timeout negative":       {func(s *scheduler) { s.info.FailoverTimeout = ptr(-1.0) }, "failover_timeout"},
		"timeout huge":           {func(s *scheduler) { s.info.FailoverTimeout = ptr(1e30) }, "failover_timeout"},
		"another's principal":    {func(s *scheduler) { s.principal, s.info.Principal = "ann", ptr("bob") }, "does not match principal"},
		"id with slash":          {func(s *scheduler) { s.info.Id = &mesosv1.FrameworkID{Value: ptr("a/b")} }, "ID"},
		"filter of other's role": {func(s *scheduler) { s.info.OfferFilters = map[string]*mesosv1.OfferFilters{"other": {}} }, "other"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
				s := &scheduler{c: c, info: frameworkInfo("a")}
				test.change(s)
				e := one(t, "events", s.subscribe())
				if !strings.Contains(e.GetError().GetMessage(), test.want) {
					t.Errorf("event = %v, want an ERROR that says %q", e, test.want)
				}
				if !s.stream.closed() {
					t.Error("the stream is open, want it closed")
				}
			})
		})
	}
}

func TestSuppressedRolesMustBeTheFrameworksOwn(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		s := &scheduler{c: c, info: frameworkInfo("a")}
		e := one(t, "events", s.subscribe("b"))
		if e.GetType() != schedulerv1.Event_ERROR {
			t.Errorf("event = %v, want ERROR", e)
		}
	})
}

func TestFailoverTellsTheOldStreamAndKeepsTasks(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		u := one(t, "updates", updates(f.launch(o, commandTask("t1", o, "cpus:1;mem:32"))))
		a.take()

		next := &scheduler{c: c, info: f.info.CloneVT()}
		next.info.Name, next.info.User = ptr("renamed"), ptr("someone")
		events = next.subscribe()
		if next.id != f.id {
			t.Fatalf("id after failover = %q, want %q", next.id, f.id)
		}
		old := one(t, "events on the old stream", f.stream.take())
		if old.GetError().GetMessage() != "Framework failed over" || !f.stream.closed() {
			t.Errorf("old stream got %v, closed %v; want ERROR Framework failed over and the end", old, f.stream.closed())
		}
		if again := one(t, "updates", updates(events)); string(again.Uuid) != string(u.Uuid) {
			t.Errorf("update after failover = %v, want the unacknowledged one again", again)
		}
		if len(offers(events)) != 1 {
			t.Errorf("offers after failover: %v, want what is free", offers(events))
		}
		info := one(t, "UpdateFramework", taken[*clusterv1.ToAgent_UpdateFramework](a)).UpdateFramework.GetFramework()
		if info.GetName() != "renamed" || info.GetUser() != "nobody" {
			t.Errorf("agent was told %v, want the new name and the old user", info)
		}
		if err := f.try(&schedulerv1.Call{Type: schedulerv1.Call_REVIVE.Enum()}); statusOf(err) != 400 {
			t.Errorf("call on the old stream = %v, want a 400", err)
		}
		next.ack(u)
	})
}

// statusOf is the HTTP status that an error chooses.
func statusOf(err error) int {
	var r *Refusal
	if errors.As(err, &r) {
		return r.HTTPStatus()
	}
	return 0
}

func TestCallsAreRefusedInMesosOrder(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		f := &scheduler{c: c, info: frameworkInfo(), principal: "ann"}
		f.subscribe()
		revive := func(change func(*scheduler)) error {
			s := *f
			change(&s)
			return s.try(&schedulerv1.Call{Type: schedulerv1.Call_REVIVE.Enum()})
		}
		for name, test := range map[string]struct {
			change func(*scheduler)
			status int
			text   string
		}{
			"unknown framework": {func(s *scheduler) { s.id = "nobody" }, 400, "Framework cannot be found"},
			"other principal":   {func(s *scheduler) { s.principal = "bob" }, 400, "principal"},
			"no stream id":      {func(s *scheduler) { s.streamID = "" }, 400, "Mesos-Stream-Id"},
			"other stream id":   {func(s *scheduler) { s.streamID = "x" }, 400, "stream ID"},
		} {
			if err := revive(test.change); statusOf(err) != test.status || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%s: %v (%d), want %d with %q", name, err, statusOf(err), test.status, test.text)
			}
		}
		stranger := *f
		stranger.id = "nobody"
		bad := &schedulerv1.Call{Type: schedulerv1.Call_UPDATE_FRAMEWORK.Enum(), UpdateFramework: &schedulerv1.Call_UpdateFramework{
			FrameworkInfo: &mesosv1.FrameworkInfo{User: ptr("u"), Name: ptr("n"), Role: ptr("a//b")}}}
		if err := stranger.try(bad); err == nil || err.Error() != "Framework cannot be found" {
			t.Errorf("bad call of a stranger = %v, want Framework cannot be found", err)
		}
		if err := revive(func(*scheduler) {}); err != nil {
			t.Errorf("good call: %v", err)
		}
		f.stream.Close()
		c.settle()
		if err := revive(func(*scheduler) {}); statusOf(err) != 403 {
			t.Errorf("call after the stream ended = %v, want a 403", err)
		}
		if err := f.try(&schedulerv1.Call{}); statusOf(err) != 403 {
			t.Errorf("unknown call while disconnected = %v, want a 403", err)
		}
		f.subscribe()
		if err := f.try(&schedulerv1.Call{}); statusOf(err) != 501 {
			t.Errorf("unknown call = %v, want a 501", err)
		}
	})
}

func TestFrameworkThatDoesNotReturnIsRemovedWithItsTasks(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		info := frameworkInfo()
		info.FailoverTimeout = ptr(60.0)
		f, events := c.framework(info)
		o := one(t, "offers", offers(events))
		f.launch(o, commandTask("t1", o, "cpus:1;mem:32"))
		f.stream.Close()
		c.pass(59 * time.Second)
		if x := c.get(masterv1.Call_GET_FRAMEWORKS).GetGetFrameworks().GetFrameworks(); len(x) != 1 || x[0].GetActive() || x[0].GetConnected() {
			t.Errorf("frameworks while away = %v, want it, inactive", x)
		}
		a.take()
		c.pass(2 * time.Second)
		x := c.get(masterv1.Call_GET_FRAMEWORKS).GetGetFrameworks()
		if len(x.GetFrameworks()) != 0 || len(x.GetCompletedFrameworks()) != 1 {
			t.Errorf("frameworks = %v, want it completed", x)
		}
		one(t, "ShutdownFramework", taken[*clusterv1.ToAgent_ShutdownFramework](a))
		tasks := c.get(masterv1.Call_GET_TASKS).GetGetTasks()
		if len(tasks.GetCompletedTasks()) != 1 || tasks.CompletedTasks[0].GetState() != mesosv1.TaskState_TASK_KILLED {
			t.Errorf("tasks = %v, want t1 killed", tasks)
		}
		if e := one(t, "events", f.subscribe()); e.GetError().GetMessage() != "Framework has been removed" {
			t.Errorf("event = %v, want ERROR Framework has been removed", e)
		}
	})
}

func TestTeardownByFrameworkAndByOperator(t *testing.T) {
	for _, by := range []string{"framework", "operator"} {
		t.Run(by, func(t *testing.T) {
			inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
				a := c.agent("cpus:4;mem:1024")
				f, events := c.framework(frameworkInfo())
				other, _ := c.framework(frameworkInfo("other"))
				o := one(t, "offers", offers(events))
				f.launch(o, commandTask("t1", o, "cpus:1;mem:32"))
				if by == "framework" {
					f.call(&schedulerv1.Call{Type: schedulerv1.Call_TEARDOWN.Enum()})
				} else {
					_, err := c.m.OperatorCall(context.Background(), "", &masterv1.Call{Type: masterv1.Call_TEARDOWN.Enum(),
						Teardown: &masterv1.Call_Teardown{FrameworkId: &mesosv1.FrameworkID{Value: &f.id}}})
					if err != nil {
						t.Fatalf("TEARDOWN: %v", err)
					}
					c.settle()
				}
				if !f.stream.closed() {
					t.Error("the framework's stream is open, want it closed")
				}
				var got resources.Set
				for _, o := range offers(other.stream.take()) {
					got = got.Add(resources.New(o.Resources...).Unallocate())
				}
				if !got.Equal(resources.MustParse("cpus:4;mem:1024")) {
					t.Errorf("the other framework is offered %v, want all", got)
				}
				one(t, "ShutdownFramework", taken[*clusterv1.ToAgent_ShutdownFramework](a))
			})
		})
	}
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		_, err := c.m.OperatorCall(context.Background(), "", &masterv1.Call{Type: masterv1.Call_TEARDOWN.Enum(),
			Teardown: &masterv1.Call_Teardown{FrameworkId: &mesosv1.FrameworkID{Value: ptr("nobody")}}})
		if statusOf(err) != 400 {
			t.Errorf("TEARDOWN of nobody = %v, want a 400", err)
		}
	})
}

func TestTwoFrameworksInTwoRolesShare(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		f, _ := c.framework(frameworkInfo("a"))
		g, _ := c.framework(frameworkInfo("b"))
		for i := range 10 {
			c.agentAt("agent.example", int32(6000+i), "cpus:1;mem:100")
		}
		c.pass(2 * time.Second)
		of, og := offers(f.stream.take()), offers(g.stream.take())
		if len(of) != 5 || len(og) != 5 {
			t.Errorf("offers = %d and %d, want 5 and 5", len(of), len(og))
		}
		seen := map[string]bool{}
		for _, o := range append(of, og...) {
			if id := o.GetAgentId().GetValue(); seen[id] {
				t.Errorf("agent %s is offered twice", id)
			} else {
				seen[id] = true
			}
		}
	})
}

func TestOffersExpireAndAreOfferedAnew(t *testing.T) {
	inBubble(t, Config{OfferTimeout: 10 * time.Second}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		c.pass(12 * time.Second)
		events = f.stream.take()
		if len(events) == 0 || events[0].GetRescind().GetOfferId().GetValue() != o.GetId().GetValue() {
			t.Fatalf("events = %v, want RESCIND of %s first", events, o.GetId().GetValue())
		}
		if early := offers(events); len(early) != 0 {
			t.Errorf("offered again at once, although it said nothing: %v", early)
		}
		c.pass(10 * time.Second)
		if again := one(t, "offers", offers(f.stream.take())); again.GetId().GetValue() == o.GetId().GetValue() {
			t.Errorf("the new offer has the old id")
		}
		late := f.launch(o, commandTask("t1", o, "cpus:1;mem:32"))
		if u := one(t, "updates", updates(late)); u.GetReason() != mesosv1.TaskStatus_REASON_INVALID_OFFERS {
			t.Errorf("update = %v, want REASON_INVALID_OFFERS", u)
		}
	})
}

func TestOfferConstraintsKeepAgentsAway(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		s := &scheduler{c: c, info: frameworkInfo("a")}
		s.stream = newRecorder[*schedulerv1.Event]()
		want := func(hostname string) *schedulerv1.OfferConstraints {
			return &schedulerv1.OfferConstraints{RoleConstraints: map[string]*schedulerv1.OfferConstraints_RoleConstraints{
				"a": {Groups: []*schedulerv1.OfferConstraints_RoleConstraints_Group{{
					AttributeConstraints: []*schedulerv1.AttributeConstraint{{
						Selector: &schedulerv1.AttributeConstraint_Selector{
							Selector: &schedulerv1.AttributeConstraint_Selector_PseudoattributeType_{
								PseudoattributeType: schedulerv1.AttributeConstraint_Selector_HOSTNAME}},
						Predicate: &schedulerv1.AttributeConstraint_Predicate{
							Predicate: &schedulerv1.AttributeConstraint_Predicate_TextMatches_{
								TextMatches: &schedulerv1.AttributeConstraint_Predicate_TextMatches{Regex: &hostname}}},
					}}}}}}}
		}
		call := &schedulerv1.Call{Type: schedulerv1.Call_SUBSCRIBE.Enum(),
			Subscribe: &schedulerv1.Call_Subscribe{FrameworkInfo: s.info, OfferConstraints: want("b.*")}}
		id, err := c.m.SchedulerSubscribe(context.Background(), "", call, s.stream)
		if err != nil {
			t.Fatalf("SchedulerSubscribe: %v", err)
		}
		s.streamID = id
		c.agentAt("alpha", 1, "cpus:1;mem:100")
		c.agentAt("beta", 2, "cpus:1;mem:100")
		c.pass(3 * time.Second)
		events := s.stream.take()
		s.id = events[0].GetSubscribed().GetFrameworkId().GetValue()
		if o := one(t, "offers", offers(events)); o.GetHostname() != "beta" {
			t.Errorf("offered %s, want beta", o.GetHostname())
		}
		s.info.Id = &mesosv1.FrameworkID{Value: &s.id}
		events = s.call(&schedulerv1.Call{Type: schedulerv1.Call_UPDATE_FRAMEWORK.Enum(), UpdateFramework: &schedulerv1.Call_UpdateFramework{
			FrameworkInfo: s.info, OfferConstraints: want("alph.")}})
		if o := one(t, "offers", offers(events)); o.GetHostname() != "alpha" {
			t.Errorf("offered %s after the update, want alpha", o.GetHostname())
		}
		for _, bad := range []*schedulerv1.OfferConstraints{want("("), want(strings.Repeat("a", 2000)),
			{RoleConstraints: map[string]*schedulerv1.OfferConstraints_RoleConstraints{"zzz": nil}}} {
			err := s.try(&schedulerv1.Call{Type: schedulerv1.Call_UPDATE_FRAMEWORK.Enum(), UpdateFramework: &schedulerv1.Call_UpdateFramework{
				FrameworkInfo: s.info, OfferConstraints: bad}})
			if statusOf(err) != 400 {
				t.Errorf("UPDATE_FRAMEWORK with bad constraints = %v, want a 400", err)
			}
		}
	})
}

func TestUpdateFrameworkRefusesWhatMayNotChange(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo("a"))
		one(t, "offers", offers(events))
		update := func(change func(*mesosv1.FrameworkInfo)) error {
			info := f.info.CloneVT()
			change(info)
			return f.try(&schedulerv1.Call{Type: schedulerv1.Call_UPDATE_FRAMEWORK.Enum(),
				UpdateFramework: &schedulerv1.Call_UpdateFramework{FrameworkInfo: info}})
		}
		for name, change := range map[string]func(*mesosv1.FrameworkInfo){
			"user":       func(i *mesosv1.FrameworkInfo) { i.User = ptr("x") },
			"checkpoint": func(i *mesosv1.FrameworkInfo) { i.Checkpoint = ptr(false) },
			"principal":  func(i *mesosv1.FrameworkInfo) { i.Principal = ptr("x") },
			"role":       func(i *mesosv1.FrameworkInfo) { i.Roles = []string{"a//"} },
		} {
			if err := update(change); statusOf(err) != 400 {
				t.Errorf("change of %s = %v, want a 400", name, err)
			}
		}
		if err := update(func(i *mesosv1.FrameworkInfo) { i.Roles = []string{"b"} }); err != nil {
			t.Fatalf("change of roles: %v", err)
		}
		c.pass(2 * time.Second)
		events = f.stream.take()
		if len(events) == 0 || events[0].GetRescind() == nil {
			t.Errorf("events = %v, want the offer in the old role rescinded first", events)
		}
		if o := one(t, "offers", offers(events)); o.GetAllocationInfo().GetRole() != "b" {
			t.Errorf("offer in role %q, want b", o.GetAllocationInfo().GetRole())
		}
	})
}

// interloper is an Approvers that does something while it is asked.
type interloper map[string]func()

func (i interloper) Approve(_ context.Context, _, action string, object ...string) error {
	if f := i[action+" "+strings.Join(object, " ")]; f != nil {
		f()
	}
	return nil
}

func TestAFrameworkRemovedWhileItIsUpdatedIsAConflict(t *testing.T) {
	meanwhile := make(interloper)
	inBubble(t, Config{}, Deps{Approvers: meanwhile}, func(t *testing.T, c *cluster) {
		f, _ := c.framework(frameworkInfo("a"))
		info := f.info.CloneVT()
		info.Roles = []string{"a", "b"}
		update := &schedulerv1.Call{Type: schedulerv1.Call_UPDATE_FRAMEWORK.Enum(), UpdateFramework: &schedulerv1.Call_UpdateFramework{FrameworkInfo: info}}
		meanwhile["REGISTER_FRAMEWORK b"] = func() {
			c.must(&masterv1.Call{Type: masterv1.Call_TEARDOWN.Enum(), Teardown: &masterv1.Call_Teardown{FrameworkId: &mesosv1.FrameworkID{Value: &f.id}}})
		}
		if err := f.try(update); statusOf(err) != 409 {
			t.Errorf("UPDATE_FRAMEWORK of a framework that is removed meanwhile = %v, want a 409", err)
		}
		if err := f.try(update); statusOf(err) != 400 {
			t.Errorf("UPDATE_FRAMEWORK of a framework that was removed = %v, want a 400", err)
		}
	})
}

// denials is an Approvers that says no to what it lists.
type denials map[string]bool

func (d denials) Approve(_ context.Context, principal, action string, object ...string) error {
	if d[action+" "+strings.Join(object, " ")] {
		return errors.New("denied")
	}
	return nil
}

func TestWithoutApprovalNothingHappens(t *testing.T) {
	deps := Deps{Approvers: denials{"REGISTER_FRAMEWORK secret": true, "RUN_TASK root": true, "TEARDOWN_FRAMEWORK ": true}}
	inBubble(t, Config{}, deps, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		s := &scheduler{c: c, info: frameworkInfo("secret")}
		if e := one(t, "events", s.subscribe()); !strings.Contains(e.GetError().GetMessage(), "is not authorized") {
			t.Errorf("event = %v, want ERROR not authorized", e)
		}
		f, events := c.framework(frameworkInfo("open"))
		o := one(t, "offers", offers(events))
		task := commandTask("t1", o, "cpus:1;mem:32")
		task.Command.User = ptr("root")
		if u := one(t, "updates", updates(f.launch(o, task))); u.GetState() != mesosv1.TaskState_TASK_ERROR || u.GetReason() != mesosv1.TaskStatus_REASON_TASK_UNAUTHORIZED {
			t.Errorf("update = %v, want TASK_ERROR with REASON_TASK_UNAUTHORIZED", u)
		}
		_, err := c.m.OperatorCall(context.Background(), "", &masterv1.Call{Type: masterv1.Call_TEARDOWN.Enum(),
			Teardown: &masterv1.Call_Teardown{FrameworkId: &mesosv1.FrameworkID{Value: &f.id}}})
		if statusOf(err) != 403 {
			t.Errorf("TEARDOWN = %v, want a 403", err)
		}
	})
}

func TestOnlySoManyCompletedFrameworksAreKept(t *testing.T) {
	inBubble(t, Config{MaxCompletedFrameworks: 3}, Deps{}, func(t *testing.T, c *cluster) {
		for range 5 {
			f, _ := c.framework(frameworkInfo())
			f.call(&schedulerv1.Call{Type: schedulerv1.Call_TEARDOWN.Enum()})
		}
		if n := len(c.get(masterv1.Call_GET_FRAMEWORKS).GetGetFrameworks().GetCompletedFrameworks()); n != 3 {
			t.Errorf("%d completed frameworks, want 3", n)
		}
	})
}

func TestOnlySoManyCompletedTasksAreKept(t *testing.T) {
	inBubble(t, Config{MaxCompletedTasksPerFramework: 2}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:8;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		ids := []string{"t1", "t2", "t3", "t4"}
		var tasks []*mesosv1.TaskInfo
		for _, id := range ids {
			tasks = append(tasks, commandTask(id, o, "cpus:1;mem:32"))
		}
		f.launch(o, tasks...)
		for _, id := range ids {
			a.set(f, id, mesosv1.TaskState_TASK_FINISHED)
			f.ack(one(t, "updates", updates(f.stream.take())))
		}
		got := c.get(masterv1.Call_GET_TASKS).GetGetTasks()
		if len(got.GetTasks()) != 0 || len(got.GetCompletedTasks()) != 2 {
			t.Fatalf("tasks = %d, completed = %d, want 0 and 2", len(got.GetTasks()), len(got.GetCompletedTasks()))
		}
		for _, x := range got.GetCompletedTasks() {
			if id := x.GetTaskId().GetValue(); id != "t3" && id != "t4" {
				t.Errorf("%s is kept, want the last two", id)
			}
		}
	})
}
