package master

import (
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

func TestTaskLivesFromOfferToAcknowledgedEnd(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:2;mem:1024;disk:100;ports:[31000-31009]")
		if got, want := a.id(), "M-S0"; got != want {
			t.Errorf("agent id = %q, want %q", got, want)
		}
		f, events := c.framework(frameworkInfo("eng"))
		if f.id != "M-0000" {
			t.Errorf("framework id = %q, want M-0000", f.id)
		}
		o := one(t, "offers", offers(events))
		if o.GetId().GetValue() != "M-O0" || o.GetAllocationInfo().GetRole() != "eng" || o.GetUrl().GetPath() != "/slave(1)" {
			t.Errorf("offer = %v", o)
		}
		a.take()

		update := one(t, "updates", updates(f.launch(o, commandTask("t1", o, "cpus:1;mem:32;ports:[31001-31002]"))))
		if update.GetState() != mesosv1.TaskState_TASK_RUNNING || len(update.Uuid) != 16 {
			t.Fatalf("update = %v, want TASK_RUNNING with a uuid", update)
		}
		run := one(t, "RunTask", taken[*clusterv1.ToAgent_RunTask](a)).RunTask
		if got := resources.New(run.GetTask().GetResources()...); !got.Equal(resources.MustParse("cpus:1;mem:32;ports:[31001-31002]").Allocate("eng")) {
			t.Errorf("RunTask has %v", got)
		}
		if got := c.get(masterv1.Call_GET_TASKS).GetGetTasks().GetTasks(); len(got) != 1 || got[0].GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("GET_TASKS = %v, want one that runs", got)
		}
		f.ack(update)
		if ack := one(t, "Acknowledge", taken[*clusterv1.ToAgent_Acknowledge](a)).Acknowledge; string(ack.GetUuid()) != string(update.GetUuid()) {
			t.Errorf("acknowledged %x, want %x", ack.GetUuid(), update.GetUuid())
		}

		a.set(f, "t1", mesosv1.TaskState_TASK_FINISHED)
		c.pass(freedDelay)
		events = f.stream.take()
		end := one(t, "updates", updates(events))
		if end.GetState() != mesosv1.TaskState_TASK_FINISHED {
			t.Fatalf("update = %v, want TASK_FINISHED", end)
		}
		if o := one(t, "offers", offers(events)); !resources.New(o.Resources...).Equal(resources.MustParse("cpus:2;mem:1024;disk:100;ports:[31000-31009]").Allocate("eng")) {
			t.Errorf("offered after the end: %v, want all", o.Resources)
		}
		tasks := c.get(masterv1.Call_GET_TASKS).GetGetTasks()
		if len(tasks.Tasks) != 1 || len(tasks.CompletedTasks) != 0 {
			t.Errorf("before the acknowledgement: %d tasks, %d completed, want 1, 0", len(tasks.Tasks), len(tasks.CompletedTasks))
		}
		f.ack(end)
		tasks = c.get(masterv1.Call_GET_TASKS).GetGetTasks()
		if len(tasks.Tasks) != 0 || len(tasks.CompletedTasks) != 1 {
			t.Fatalf("after the acknowledgement: %d tasks, %d completed, want 0, 1", len(tasks.Tasks), len(tasks.CompletedTasks))
		}
		if n := len(tasks.CompletedTasks[0].Statuses); n != 2 {
			t.Errorf("history has %d statuses, want 2", n)
		}
		if len(a.tasks) != 0 {
			t.Errorf("agent still has %v", a.tasks)
		}
	})
}

func TestUnusedRestOfAnOfferComesBackAfterItsFilter(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:2;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		refuse := 10.0
		f.accept([]*mesosv1.Offer{o}, &mesosv1.Filters{RefuseSeconds: &refuse}, launch(commandTask("t1", o, "cpus:0.5;mem:32")))
		c.pass(9 * time.Second)
		if got := offers(f.stream.take()); len(got) != 0 {
			t.Errorf("offers within the filter: %v", got)
		}
		c.pass(2 * time.Second)
		rest := one(t, "offers", offers(f.stream.take()))
		if got := resources.New(rest.Resources...).Unallocate(); !got.Equal(resources.MustParse("cpus:1.5;mem:992")) {
			t.Errorf("offered %v, want cpus:1.5;mem:992", got)
		}
	})
}

func TestDeclineFiltersUntilRevived(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:2;mem:1024")
		f, events := c.framework(frameworkInfo())
		f.decline(3600, offers(events)...)
		c.pass(time.Minute)
		if got := offers(f.stream.take()); len(got) != 0 {
			t.Errorf("offers after DECLINE: %v", got)
		}
		events = f.call(&schedulerv1.Call{Type: schedulerv1.Call_REVIVE.Enum(), Revive: &schedulerv1.Call_Revive{}})
		one(t, "offers after REVIVE", offers(events))
	})
}

func TestSuppressedRoleGetsNoOffersUntilRevived(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		f := &scheduler{c: c, info: frameworkInfo("eng")}
		f.subscribe("eng")
		c.agent("cpus:2;mem:1024")
		c.pass(3 * time.Second)
		if got := offers(f.stream.take()); len(got) != 0 {
			t.Errorf("offers while suppressed: %v", got)
		}
		events := f.call(&schedulerv1.Call{Type: schedulerv1.Call_REVIVE.Enum(), Revive: &schedulerv1.Call_Revive{Roles: []string{"eng"}}})
		o := one(t, "offers after REVIVE", offers(events))
		f.call(&schedulerv1.Call{Type: schedulerv1.Call_SUPPRESS.Enum(), Suppress: &schedulerv1.Call_Suppress{}})
		f.decline(0, o)
		c.pass(5 * time.Second)
		if got := offers(f.stream.take()); len(got) != 0 {
			t.Errorf("offers after SUPPRESS: %v", got)
		}
	})
}

func TestOldFrameworkSeesOldResourceFormat(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:2;mem:1024")
		f, events := c.framework(oldInfo())
		o := one(t, "offers", offers(events))
		if o.AllocationInfo != nil {
			t.Errorf("offer has allocation_info %v, want none without MULTI_ROLE", o.AllocationInfo)
		}
		for _, r := range o.Resources {
			if r.AllocationInfo != nil || r.GetRole() != "*" || len(r.Reservations) != 0 || r.Role == nil {
				t.Errorf("resource = %v, want role \"*\" and no allocation_info", r)
			}
		}
		task := commandTask("t1", o, "cpus:1;mem:32")
		task.Resources = o.Resources
		if u := one(t, "updates", updates(f.launch(o, task))); u.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("update = %v, want TASK_RUNNING", u)
		}
	})
}

func TestInvalidOffersDropTasksAndGiveTheValidOnesBack(t *testing.T) {
	for name, test := range map[string]struct {
		info *mesosv1.FrameworkInfo
		want mesosv1.TaskState
	}{
		"partition aware": {frameworkInfo(), mesosv1.TaskState_TASK_DROPPED},
		"old":             {oldInfo(), mesosv1.TaskState_TASK_LOST},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
				c.agent("cpus:2;mem:1024")
				f, events := c.framework(test.info)
				o := one(t, "offers", offers(events))
				stale := &mesosv1.Offer{Id: &mesosv1.OfferID{Value: ptr("M-O99")}, AgentId: o.AgentId}
				events = f.accept([]*mesosv1.Offer{o, stale}, nil, launch(commandTask("t1", o, "cpus:1;mem:32")))
				u := one(t, "updates", updates(events))
				if u.GetState() != test.want || u.GetReason() != mesosv1.TaskStatus_REASON_INVALID_OFFERS || u.Uuid != nil ||
					u.GetSource() != mesosv1.TaskStatus_SOURCE_MASTER {
					t.Errorf("update = %v, want %s, REASON_INVALID_OFFERS, from the master, without uuid", u, test.want)
				}
				c.pass(2 * time.Second)
				if got := append(offers(events), offers(f.stream.take())...); len(got) != 1 {
					t.Errorf("offers = %v, want the valid one again", got)
				}
			})
		})
	}
}

func TestInvalidTasksAreErrorsAndOthersOfTheSameCallRun(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		task := func(id string, change func(*mesosv1.TaskInfo)) *mesosv1.TaskInfo {
			x := commandTask(id, o, "cpus:0.1;mem:32")
			change(x)
			return x
		}
		events = f.launch(o,
			task("a/b", func(*mesosv1.TaskInfo) {}),
			task("too-big", func(x *mesosv1.TaskInfo) { x.Resources = resources.MustParse("cpus:5").Resources() }),
			task("no-resources", func(x *mesosv1.TaskInfo) { x.Resources = nil }),
			task("other-agent", func(x *mesosv1.TaskInfo) { x.AgentId = &mesosv1.AgentID{Value: ptr("M-S7")} }),
			task("both", func(x *mesosv1.TaskInfo) {
				x.Executor = &mesosv1.ExecutorInfo{ExecutorId: &mesosv1.ExecutorID{Value: ptr("e")}, Command: x.Command}
			}),
			task("neither", func(x *mesosv1.TaskInfo) { x.Command = nil }),
			task("half-gpu", func(x *mesosv1.TaskInfo) {
				r := resources.MustParse("cpus:0.1").Resources()[0]
				r.Name, r.Scalar = ptr("gpus"), &mesosv1.Value_Scalar{Value: ptr(0.5)}
				x.Resources = append(x.Resources, r)
			}),
			task("limit", func(x *mesosv1.TaskInfo) {
				x.Limits = map[string]*mesosv1.Value_Scalar{"cpus": {Value: ptr(0.05)}}
			}),
			task("grace", func(x *mesosv1.TaskInfo) {
				x.KillPolicy = &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: ptr(int64(-1))}}
			}),
			task("good", func(*mesosv1.TaskInfo) {}),
			task("good", func(*mesosv1.TaskInfo) {}),
		)
		var running int
		for _, u := range updates(events) {
			id := u.GetTaskId().GetValue()
			switch {
			case id == "good" && u.GetState() == mesosv1.TaskState_TASK_RUNNING:
				running++
			case u.GetState() != mesosv1.TaskState_TASK_ERROR || u.GetReason() != mesosv1.TaskStatus_REASON_TASK_INVALID || u.GetMessage() == "":
				t.Errorf("update of %s = %v, want TASK_ERROR with REASON_TASK_INVALID and a message", id, u)
			}
		}
		if n := len(updates(events)); n != 11 || running != 1 {
			t.Errorf("%d updates and %d running, want 11 and 1", n, running)
		}
	})
}

func TestThousandTasksInOneAccept(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:1000;mem:100000")
		a.mu.Lock()
		a.idle = true
		a.mu.Unlock()
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		var tasks []*mesosv1.TaskInfo
		for i := range 1000 {
			tasks = append(tasks, commandTask(string(rune('a'+i%26))+time.Duration(i).String(), o, "cpus:0.5;mem:32"))
		}
		f.launch(o, tasks...)
		if n := len(taken[*clusterv1.ToAgent_RunTask](a)); n != 1000 {
			t.Errorf("agent got %d tasks, want 1000", n)
		}
		if n := len(c.get(masterv1.Call_GET_TASKS).GetGetTasks().GetTasks()); n != 1000 {
			t.Errorf("GET_TASKS has %d tasks, want 1000", n)
		}
	})
}

func TestKillGoesToTheAgentAndUnknownTasksAreReconciled(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		f.launch(o, commandTask("t1", o, "cpus:1;mem:32"))
		if u := one(t, "updates", updates(f.kill("t1"))); u.GetState() != mesosv1.TaskState_TASK_KILLED {
			t.Errorf("update = %v, want TASK_KILLED", u)
		}
		if u := one(t, "updates", updates(f.kill("nobody"))); u.GetState() != mesosv1.TaskState_TASK_UNKNOWN || u.GetReason() != mesosv1.TaskStatus_REASON_RECONCILIATION {
			t.Errorf("update = %v, want TASK_UNKNOWN by reconciliation", u)
		}
		_ = a
	})
}

func TestKillWhileAgentIsAwayIsSaidWhenItReturns(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		u := one(t, "updates", updates(f.launch(o, commandTask("t1", o, "cpus:1;mem:32"))))
		a.disconnect()
		f.kill("t1")
		f.ack(u)
		f.stream.take()
		a.take()
		a.connect()
		c.settle()
		if u := one(t, "updates", updates(f.stream.take())); u.GetState() != mesosv1.TaskState_TASK_KILLED {
			t.Errorf("update = %v, want TASK_KILLED", u)
		}
		var acks int
		for _, m := range a.take() {
			if m.GetAcknowledge() != nil {
				acks++
			}
		}
		if acks != 1 {
			t.Errorf("agent got %d acknowledgements, want the one that it missed", acks)
		}
	})
}

func TestCustomExecutorIsChargedOnceAndMustStayTheSame(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		executor := func(command string) *mesosv1.ExecutorInfo {
			return &mesosv1.ExecutorInfo{
				ExecutorId: &mesosv1.ExecutorID{Value: ptr("e1")},
				Command:    &mesosv1.CommandInfo{Value: &command},
				Resources:  resources.MustParse("cpus:1;mem:64").Resources(),
			}
		}
		task := func(id, command string) *mesosv1.TaskInfo {
			x := commandTask(id, o, "cpus:1;mem:32")
			x.Command, x.Executor = nil, executor(command)
			return x
		}
		events = f.launch(o, task("t1", "run"), task("t2", "run"), task("t3", "other"))
		states := map[string]mesosv1.TaskState{}
		for _, u := range updates(events) {
			states[u.GetTaskId().GetValue()] = u.GetState()
		}
		if states["t1"] != mesosv1.TaskState_TASK_RUNNING || states["t2"] != mesosv1.TaskState_TASK_RUNNING || states["t3"] != mesosv1.TaskState_TASK_ERROR {
			t.Errorf("states = %v, want t1 and t2 running and t3 an error", states)
		}
		c.pass(6 * time.Second)
		rest := one(t, "offers", offers(f.stream.take()))
		if got := resources.New(rest.Resources...).Unallocate(); !got.Equal(resources.MustParse("cpus:1;mem:896")) {
			t.Errorf("left: %v, want cpus:1;mem:896", got)
		}
		if len(rest.ExecutorIds) != 1 {
			t.Errorf("offer names executors %v, want e1", rest.ExecutorIds)
		}

		f.call(&schedulerv1.Call{Type: schedulerv1.Call_MESSAGE.Enum(), Message: &schedulerv1.Call_Message{
			AgentId: o.AgentId, ExecutorId: executor("").ExecutorId, Data: []byte("ping")}})
		if m := one(t, "messages", taken[*clusterv1.ToAgent_FrameworkMessage](a)).FrameworkMessage; string(m.GetData()) != "ping" {
			t.Errorf("message = %v", m)
		}
		a.say(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_FrameworkMessage{FrameworkMessage: &clusterv1.FrameworkMessage{
			FrameworkId: f.id, ExecutorId: "e1", Data: []byte("pong")}}})
		if e := one(t, "events", f.stream.take()); string(e.GetMessage().GetData()) != "pong" {
			t.Errorf("event = %v, want MESSAGE pong", e)
		}
		f.call(&schedulerv1.Call{Type: schedulerv1.Call_SHUTDOWN.Enum(), Shutdown: &schedulerv1.Call_Shutdown{
			AgentId: o.AgentId, ExecutorId: executor("").ExecutorId}})
		one(t, "ShutdownExecutor", taken[*clusterv1.ToAgent_ShutdownExecutor](a))
		a.say(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_ExecutorExited{ExecutorExited: &clusterv1.ExecutorExited{
			FrameworkId: f.id, ExecutorId: "e1", Status: 256}}})
		if e := one(t, "events", f.stream.take()); e.GetFailure().GetExecutorId().GetValue() != "e1" || e.GetFailure().GetStatus() != 256 {
			t.Errorf("event = %v, want FAILURE of e1 with status 256", e)
		}
	})
}

func TestTaskGroupIsAllOrNothing(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024;disk:100")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		group := func(executor string, tasks ...*mesosv1.TaskInfo) *mesosv1.Offer_Operation {
			return &mesosv1.Offer_Operation{
				Type: mesosv1.Offer_Operation_LAUNCH_GROUP.Enum(),
				LaunchGroup: &mesosv1.Offer_Operation_LaunchGroup{
					Executor: &mesosv1.ExecutorInfo{
						Type:       mesosv1.ExecutorInfo_DEFAULT.Enum(),
						ExecutorId: &mesosv1.ExecutorID{Value: &executor},
						Resources:  resources.MustParse("cpus:0.1;mem:32;disk:1").Resources(),
					},
					TaskGroup: &mesosv1.TaskGroupInfo{Tasks: tasks},
				},
			}
		}
		events = f.accept([]*mesosv1.Offer{o}, nil,
			group("bad", commandTask("b1", o, "cpus:1;mem:32"), commandTask("b2", o, "cpus:9;mem:32")),
			group("good", commandTask("g1", o, "cpus:1;mem:32"), commandTask("g2", o, "cpus:1;mem:32")))
		us := updates(events)
		if len(us) != 2 {
			t.Fatalf("updates = %v, want two errors", us)
		}
		for _, u := range us {
			if u.GetState() != mesosv1.TaskState_TASK_ERROR || u.GetReason() != mesosv1.TaskStatus_REASON_TASK_GROUP_INVALID {
				t.Errorf("update = %v, want TASK_ERROR with REASON_TASK_GROUP_INVALID", u)
			}
		}
		g := one(t, "RunTaskGroup", taken[*clusterv1.ToAgent_RunTaskGroup](a)).RunTaskGroup
		if len(g.GetTaskGroup().GetTasks()) != 2 || g.GetExecutor().GetFrameworkId().GetValue() != f.id {
			t.Errorf("RunTaskGroup = %v", g)
		}
	})
}

func TestResourceOfAmountZeroIsIgnored(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		task := commandTask("t1", o, "cpus:1;mem:32")
		task.Resources = append(task.Resources, &mesosv1.Resource{
			Name: ptr("gpus"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: ptr(0.0)}})
		if u := one(t, "updates", updates(f.launch(o, task))); u.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("update = %v, want TASK_RUNNING", u)
		}
	})
}

func TestAcceptWithoutOperationsIsADecline(t *testing.T) {
	for name, ops := range map[string][]*mesosv1.Offer_Operation{"none": nil, "LAUNCH without tasks": {launch()}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
				c.agent("cpus:4;mem:1024")
				f, events := c.framework(frameworkInfo())
				f.accept(offers(events), &mesosv1.Filters{RefuseSeconds: ptr(60.0)}, ops...)
				c.pass(59 * time.Second)
				if got := f.stream.take(); len(got) != 0 {
					t.Errorf("events within the filter: %v", got)
				}
				c.pass(2 * time.Second)
				one(t, "offers after the filter", offers(f.stream.take()))
			})
		})
	}
}

func TestUnsupportedOperationWithAnIDIsAnswered(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		f, events := c.framework(frameworkInfo("eng"))
		o := one(t, "offers", offers(events))
		op := &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_RESERVE.Enum(), Id: &mesosv1.OperationID{Value: ptr("op")},
			Reserve: &mesosv1.Offer_Operation_Reserve{}}
		events = f.accept([]*mesosv1.Offer{o}, nil, op, launch(commandTask("t1", o, "cpus:1;mem:32")))
		if s := events[0].GetUpdateOperationStatus().GetStatus(); s.GetState() != mesosv1.OperationState_OPERATION_ERROR || s.GetOperationId().GetValue() != "op" {
			t.Errorf("first event = %v, want OPERATION_ERROR of op", events[0])
		}
		if u := one(t, "updates", updates(events)); u.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("update = %v, want the task after it to run", u)
		}
	})
}
