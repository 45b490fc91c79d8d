package master

import (
	"bytes"
	"strings"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// Rules of the scheduler API that no other test is about.

func (c *cluster) frameworkNamed(id string) *masterv1.Response_GetFrameworks_Framework {
	c.Helper()
	for _, f := range c.get(masterv1.Call_GET_FRAMEWORKS).GetGetFrameworks().GetFrameworks() {
		if f.GetFrameworkInfo().GetId().GetValue() == id {
			return f
		}
	}
	c.Fatalf("no framework %s", id)
	return nil
}

func TestResubscriptionChangesWhatMayChangeAndKeepsTheRest(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		s := c.withTask(frameworkInfo("a"), "t")
		a.take()
		s.info.Name, s.info.Hostname, s.info.WebuiUrl = ptr("new"), ptr("host"), ptr("http://ui")
		s.info.FailoverTimeout = ptr(7.0)
		s.info.Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: ptr("k")}}}
		s.info.Roles = []string{"a", "b"}
		s.info.User, s.info.Checkpoint = ptr("somebody"), ptr(false)
		s.subscribe()
		info := c.frameworkNamed(s.id).GetFrameworkInfo()
		if info.GetName() != "new" || info.GetHostname() != "host" || info.GetWebuiUrl() != "http://ui" || info.GetFailoverTimeout() != 7 ||
			len(info.GetLabels().GetLabels()) != 1 || strings.Join(info.GetRoles(), " ") != "a b" {
			t.Errorf("framework = %v, want what the subscription said", info)
		}
		if info.GetUser() != "nobody" || !info.GetCheckpoint() {
			t.Errorf("user %q, checkpoint %v: may not change, and no error says so", info.GetUser(), info.GetCheckpoint())
		}
		u := one(t, "UpdateFramework", taken[*clusterv1.ToAgent_UpdateFramework](a))
		if u.UpdateFramework.GetFramework().GetName() != "new" {
			t.Errorf("the agent was told %v", u.UpdateFramework)
		}
	})
}

func TestAPrincipalMayNotChangeAtResubscription(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		info := frameworkInfo("a")
		info.Principal = ptr("ann")
		s, _ := c.framework(info)
		before := s.stream
		s.info.Principal = ptr("bob")
		if e := one(t, "events", s.subscribe()); !strings.Contains(e.GetError().GetMessage(), "principal") {
			t.Errorf("event = %v, want ERROR about the principal", e)
		}
		if before.closed() {
			t.Error("the refused subscription ended the framework's stream")
		}
	})
}

func TestUpdateFrameworkWithoutPrincipalKeepsIt(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		s := &scheduler{c: c, info: frameworkInfo("a"), principal: "ann"}
		s.subscribe()
		info := s.info.CloneVT()
		info.Name = ptr("new")
		s.call(&schedulerv1.Call{Type: schedulerv1.Call_UPDATE_FRAMEWORK.Enum(), UpdateFramework: &schedulerv1.Call_UpdateFramework{FrameworkInfo: info}})
		if got := c.frameworkNamed(s.id).GetFrameworkInfo(); got.GetPrincipal() != "ann" || got.GetName() != "new" {
			t.Errorf("framework = %v, want the new name and the old principal", got)
		}
	})
}

func TestAFrameworkThatWasRemovedMayNotReturn(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		info := frameworkInfo("a")
		info.FailoverTimeout = nil // which is none
		s, _ := c.framework(info)
		s.stream.Close()
		c.settle()
		if e := one(t, "events", s.subscribe()); e.GetError().GetMessage() != "Framework has been removed" {
			t.Errorf("event = %v, want ERROR", e)
		}
	})
}

func TestKillThatNamesTheWrongAgentIsDropped(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agentAt("one", 1, "cpus:4;mem:1024")
		s := c.withTask(frameworkInfo("a"), "t")
		b := c.agentAt("two", 2, "cpus:4;mem:1024")
		a.take()
		kill := func(agent string) {
			s.call(&schedulerv1.Call{Type: schedulerv1.Call_KILL.Enum(), Kill: &schedulerv1.Call_Kill{
				TaskId: &mesosv1.TaskID{Value: ptr("t")}, AgentId: agentID(agent),
				KillPolicy: &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: ptr(int64(5))}}}})
		}
		kill(b.id())
		if got := taken[*clusterv1.ToAgent_KillTask](a); len(got) != 0 {
			t.Errorf("kill = %v, want none", got)
		}
		kill(a.id())
		if k := one(t, "kills", taken[*clusterv1.ToAgent_KillTask](a)); k.KillTask.GetKillPolicy().GetGracePeriod().GetNanoseconds() != 5 {
			t.Errorf("kill = %v, want the policy of the call", k)
		}
	})
}

func TestRequestIsAcceptedAndDoesNothing(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		s, _ := c.framework(frameworkInfo("a"))
		events := s.call(&schedulerv1.Call{Type: schedulerv1.Call_REQUEST.Enum(), Request: &schedulerv1.Call_Request{}})
		if len(events) != 0 {
			t.Errorf("events = %v, want none", events)
		}
	})
}

func TestTheLatestStateShowsWhileAnUpdateWaits(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		s := c.withTask(frameworkInfo("a"), "t")
		// The agent has more to say, and says so with the first update again.
		a.mu.Lock()
		task := a.tasks[s.id+"/t"]
		status := task.Statuses[0].CloneVT()
		status.Uuid = bytes.Repeat([]byte{7}, 16)
		a.mu.Unlock()
		a.say(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Update{Update: &clusterv1.StatusUpdate{
			FrameworkId: s.id, Status: status, LatestState: "TASK_FINISHED"}}})
		if u := one(t, "updates", updates(s.stream.take())); u.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("update = %v, want TASK_RUNNING", u)
		}
		if got := at(t, c.legacy("/state", ""), "frameworks", 0, "tasks", 0, "state"); got != "TASK_FINISHED" {
			t.Errorf("/state shows %v, want the latest state", got)
		}
		// Its resources are free at once, and the task is not over before its last update is acknowledged.
		if got := at(t, c.legacy("/state", ""), "slaves", 0, "used_resources", "cpus"); got != 0.0 {
			t.Errorf("%v cpus are used, want none", got)
		}
		s.ack(status)
		if n := len(c.get(masterv1.Call_GET_TASKS).GetGetTasks().GetTasks()); n != 1 {
			t.Errorf("%d tasks after the acknowledgement of TASK_RUNNING, want one", n)
		}
	})
}

func TestOffersRespectTheFrameworksOwnMinimum(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agentAt("small", 1, "cpus:1;mem:64")
		c.agentAt("large", 2, "cpus:8;mem:4096")
		info := frameworkInfo("a")
		info.OfferFilters = map[string]*mesosv1.OfferFilters{"a": {MinAllocatableResources: &mesosv1.OfferFilters_MinAllocatableResources{
			Quantities: []*mesosv1.OfferFilters_ResourceQuantities{{Quantities: scalars("cpus:4;mem:100")}}}}}
		_, events := c.framework(info)
		if o := one(t, "offers", offers(events)); o.GetHostname() != "large" {
			t.Errorf("offered %s, want large only", o.GetHostname())
		}
	})
}

func TestRefusalsLastAsLongAsTheySay(t *testing.T) {
	for name, x := range map[string]struct {
		refuse    float64
		not, then time.Duration
	}{
		"not said, as a negative one": {-1, 4 * time.Second, 7 * time.Second},
		"zero":                        {0, 0, 2 * time.Second},
		"less than an allocation":     {0.2, 500 * time.Millisecond, 3 * time.Second},
		"a minute":                    {60, 59 * time.Second, 62 * time.Second},
		"more than a year":            {1e12, 364 * 24 * time.Hour, 366 * 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config{AllocationInterval: time.Second, PingInterval: 1000 * time.Hour}, Deps{}, func(t *testing.T, c *cluster) {
				if x.not > time.Hour { // a year of seconds is a long test: look at the filter's end instead
					c.agent("cpus:1;mem:100")
					s, events := c.framework(frameworkInfo("a"))
					begun := time.Now()
					s.decline(x.refuse, offers(events)...)
					var end time.Time
					c.m.do(t.Context(), func(time.Time) { end = c.m.s.allocator.NextExpiry() })
					if d := end.Sub(begun); d != 365*24*time.Hour {
						t.Errorf("the filter lasts %v, want a year", d)
					}
					return
				}
				c.agent("cpus:1;mem:100")
				s, events := c.framework(frameworkInfo("a"))
				events = s.decline(x.refuse, offers(events)...)
				c.pass(x.not)
				if got := offers(append(events, s.stream.take()...)); len(got) != 0 {
					t.Errorf("offered again within %v", x.not)
				}
				c.pass(x.then - x.not)
				if got := offers(s.stream.take()); len(got) != 1 {
					t.Errorf("%d offers after %v, want one", len(got), x.then)
				}
			})
		})
	}
}

func TestTheRestOfAnOfferComesBackAtOnceToWhoUsedSomeAndRefusesNothing(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		s, events := c.framework(frameworkInfo("a"))
		o := one(t, "offers", offers(events))
		events = s.accept([]*mesosv1.Offer{o}, &mesosv1.Filters{RefuseSeconds: ptr(0.0)}, launch(commandTask("t1", o, "cpus:1;mem:100")))
		next := one(t, "offers without time passing", offers(events))
		if total(next).Scalar("cpus") != 3 {
			t.Errorf("offered %s, want the three cpus that are left", total(next))
		}
		// Who used nothing has refused.
		if got := offers(s.accept([]*mesosv1.Offer{next}, &mesosv1.Filters{RefuseSeconds: ptr(0.0)})); len(got) != 0 {
			t.Errorf("offered again at once after a refusal: %v", got)
		}
		c.pass(200 * time.Millisecond)
		one(t, "offers after a moment", offers(s.stream.take()))
	})
}

func TestAGuaranteeIsFreedFromOffersOfOthersBeforeItsFrameworkIsThere(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:4096;disk:1000")
		hog, events := c.framework(frameworkInfo("hog"))
		all := one(t, "offers", offers(events))
		c.must(quotaCall(false, quotaOf("vip", "cpus:2.5;mem:512", "")))
		if o := one(t, "offers to hog", hog.next()); total(o).Scalar("cpus") > 1.5 || total(o).Scalar("mem") > 4096-512 {
			t.Errorf("hog is offered %s, want what the guarantee leaves", total(o))
		}
		if _, ok := c.m.s.offers[all.GetId().GetValue()]; ok {
			t.Error("the offer of everything still stands")
		}
		_, events = c.framework(frameworkInfo("vip"))
		o := one(t, "offers to vip", offers(events))
		if total(o).Scalar("cpus") < 2.5 || total(o).Scalar("mem") < 512 {
			t.Errorf("vip was offered %s, want its guarantee", total(o))
		}
	})
}
