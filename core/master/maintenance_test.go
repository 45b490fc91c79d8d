package master

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	allocatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/allocator"
	maintenancev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/maintenance"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

func machineID(hostname string) *mesosv1.MachineID { return &mesosv1.MachineID{Hostname: &hostname} }

// window is one in which machines are away for an hour from start on.
func window(start time.Time, hostnames ...string) *maintenancev1.Window {
	w := &maintenancev1.Window{Unavailability: &mesosv1.Unavailability{
		Start: timeInfo(start), Duration: &mesosv1.DurationInfo{Nanoseconds: ptr(time.Hour.Nanoseconds())}}}
	for _, h := range hostnames {
		w.MachineIds = append(w.MachineIds, machineID(h))
	}
	return w
}

func scheduleCall(windows ...*maintenancev1.Window) *masterv1.Call {
	return &masterv1.Call{Type: masterv1.Call_UPDATE_MAINTENANCE_SCHEDULE.Enum(),
		UpdateMaintenanceSchedule: &masterv1.Call_UpdateMaintenanceSchedule{Schedule: &maintenancev1.Schedule{Windows: windows}}}
}

func startCall(hostnames ...string) *masterv1.Call {
	call := &masterv1.Call{Type: masterv1.Call_START_MAINTENANCE.Enum(), StartMaintenance: &masterv1.Call_StartMaintenance{}}
	for _, h := range hostnames {
		call.StartMaintenance.Machines = append(call.StartMaintenance.Machines, machineID(h))
	}
	return call
}

func stopCall(hostnames ...string) *masterv1.Call {
	call := &masterv1.Call{Type: masterv1.Call_STOP_MAINTENANCE.Enum(), StopMaintenance: &masterv1.Call_StopMaintenance{}}
	for _, h := range hostnames {
		call.StopMaintenance.Machines = append(call.StopMaintenance.Machines, machineID(h))
	}
	return call
}

func (c *cluster) maintenanceStatus() *maintenancev1.ClusterStatus {
	c.Helper()
	return c.get(masterv1.Call_GET_MAINTENANCE_STATUS).GetGetMaintenanceStatus().GetStatus()
}

func (c *cluster) maintenanceSchedule() *maintenancev1.Schedule {
	c.Helper()
	return c.get(masterv1.Call_GET_MAINTENANCE_SCHEDULE).GetGetMaintenanceSchedule().GetSchedule()
}

// inverseOffers returns the inverse offers in events.
func inverseOffers(events []*schedulerv1.Event) []*mesosv1.InverseOffer {
	var out []*mesosv1.InverseOffer
	for _, e := range events {
		out = append(out, e.GetInverseOffers().GetInverseOffers()...)
	}
	return out
}

// kinds returns the types of events.
func kinds(events []*schedulerv1.Event) []string {
	var out []string
	for _, e := range events {
		out = append(out, e.GetType().String())
	}
	return out
}

func (s *scheduler) answerInverse(accept bool, refuse float64, list ...*mesosv1.InverseOffer) []*schedulerv1.Event {
	s.c.Helper()
	var ids []*mesosv1.OfferID
	for _, o := range list {
		ids = append(ids, o.Id)
	}
	filters := &mesosv1.Filters{RefuseSeconds: &refuse}
	if accept {
		return s.call(&schedulerv1.Call{Type: schedulerv1.Call_ACCEPT_INVERSE_OFFERS.Enum(),
			AcceptInverseOffers: &schedulerv1.Call_AcceptInverseOffers{InverseOfferIds: ids, Filters: filters}})
	}
	return s.call(&schedulerv1.Call{Type: schedulerv1.Call_DECLINE_INVERSE_OFFERS.Enum(),
		DeclineInverseOffers: &schedulerv1.Call_DeclineInverseOffers{InverseOfferIds: ids, Filters: filters}})
}

// withTask is a framework with a task on the only agent, and no offers.
func (c *cluster) withTask(info *mesosv1.FrameworkInfo, id string) *scheduler {
	c.Helper()
	s, events := c.framework(info)
	o := one(c.TB, "offers", offers(events))
	s.accept([]*mesosv1.Offer{o}, &mesosv1.Filters{RefuseSeconds: ptr(1e6)}, launch(commandTask(id, o, "cpus:1;mem:32")))
	s.stream.take()
	return s
}

func TestAWindowShowsInOffersAndInverseOffersAsk(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		s := c.withTask(frameworkInfo("a"), "t1")
		waiting, events := c.framework(frameworkInfo("b"))
		held := one(t, "offers", offers(events))
		if held.Unavailability != nil {
			t.Errorf("unavailability = %v before there is a window", held.Unavailability)
		}
		w := window(time.Now().Add(time.Hour), "AGENT.example")
		c.must(scheduleCall(w))
		c.settle()

		inverse := one(t, "inverse offers", inverseOffers(s.stream.take()))
		if !inverse.GetUnavailability().EqualVT(w.Unavailability) || inverse.GetAgentId().GetValue() != c.agents[0].id() ||
			len(inverse.Resources) != 0 || inverse.GetFrameworkId().GetValue() != s.id || inverse.GetUrl().GetPath() != "/slave(1)" {
			t.Errorf("inverse offer = %v", inverse)
		}
		events = waiting.stream.take()
		if got := strings.Join(kinds(events), " "); got != "RESCIND OFFERS INVERSE_OFFERS" {
			t.Errorf("events = %s, want RESCIND OFFERS INVERSE_OFFERS", got)
		}
		if o := one(t, "offers", offers(events)); !o.GetUnavailability().EqualVT(w.Unavailability) {
			t.Errorf("offer has unavailability %v, want %v", o.Unavailability, w.Unavailability)
		}
		for _, f := range c.get(masterv1.Call_GET_FRAMEWORKS).GetGetFrameworks().GetFrameworks() {
			if len(f.GetInverseOffers()) != 1 {
				t.Errorf("GET_FRAMEWORKS shows inverse offers %v of %s, want one", f.GetInverseOffers(), f.GetFrameworkInfo().GetId())
			}
		}
		c.pass(10 * time.Second)
		if again := inverseOffers(s.stream.take()); len(again) != 0 {
			t.Errorf("asked again before the answer: %v", again)
		}

		// The answer shows, and the filter holds.
		s.answerInverse(true, 30, inverse)
		c.pass(29 * time.Second)
		if again := inverseOffers(s.stream.take()); len(again) != 0 {
			t.Errorf("asked again within the filter: %v", again)
		}
		status := c.maintenanceStatus()
		d := one(t, "draining machines", status.GetDrainingMachines())
		if d.GetId().GetHostname() != "AGENT.example" || len(status.GetDownMachines()) != 0 {
			t.Errorf("status = %v", status)
		}
		if x := one(t, "statuses", d.GetStatuses()); x.GetStatus() != allocatorv1.InverseOfferStatus_ACCEPT || x.GetFrameworkId().GetValue() != s.id || x.GetTimestamp() == nil {
			t.Errorf("answer = %v, want that of %s", x, s.id)
		}
		c.pass(2 * time.Second)
		inverse = one(t, "inverse offers after the filter", inverseOffers(s.stream.take()))
		s.answerInverse(false, 0, inverse)
		if x := c.maintenanceStatus().GetDrainingMachines()[0].GetStatuses()[0]; x.GetStatus() != allocatorv1.InverseOfferStatus_DECLINE {
			t.Errorf("answer = %v, want DECLINE", x)
		}
		// An answer to one that is gone, or is another's, is ignored.
		s.answerInverse(true, 0, inverse)
		if x := c.maintenanceStatus().GetDrainingMachines()[0].GetStatuses()[0]; x.GetStatus() != allocatorv1.InverseOfferStatus_DECLINE {
			t.Errorf("answer = %v after one that came too late, want DECLINE", x)
		}

		// The end of the window takes it all back.
		c.pass(2 * time.Second)
		if got := inverseOffers(s.stream.take()); len(got) != 1 {
			t.Fatalf("inverse offers without filter = %v, want one", got)
		}
		c.must(scheduleCall())
		if got := strings.Join(kinds(s.stream.take()), " "); got != "RESCIND_INVERSE_OFFER" {
			t.Errorf("events = %s, want RESCIND_INVERSE_OFFER", got)
		}
		if status := c.maintenanceStatus(); len(status.GetDrainingMachines())+len(status.GetDownMachines()) != 0 {
			t.Errorf("status = %v, want nothing", status)
		}
	})
}

func TestReviveAsksAboutMaintenanceAgain(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		s := c.withTask(frameworkInfo("a"), "t1")
		c.must(scheduleCall(window(time.Now(), "agent.example")))
		s.answerInverse(false, 1e6, one(t, "inverse offers", inverseOffers(s.stream.take())))
		c.pass(time.Minute)
		if got := inverseOffers(s.stream.take()); len(got) != 0 {
			t.Errorf("asked within the filter: %v", got)
		}
		events := s.call(&schedulerv1.Call{Type: schedulerv1.Call_REVIVE.Enum()})
		one(t, "inverse offers after REVIVE", inverseOffers(append(events, s.next2()...)))
	})
}

func TestInverseOffersGoWithTheirFrameworkAndAgent(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		s := c.withTask(frameworkInfo("a"), "t1")
		c.must(scheduleCall(window(time.Now(), "agent.example")))
		first := one(t, "inverse offers", inverseOffers(s.stream.take()))
		events := s.subscribe()
		second := one(t, "inverse offers after failover", inverseOffers(append(events, s.next2()...)))
		if second.GetId().GetValue() == first.GetId().GetValue() {
			t.Errorf("inverse offer %s outlives the stream that it was made on", first.GetId())
		}
		a.disconnect()
		if got := strings.Join(kinds(s.stream.take()), " "); !strings.Contains(got, "RESCIND_INVERSE_OFFER") {
			t.Errorf("events = %s, want RESCIND_INVERSE_OFFER", got)
		}
		a.connect()
		c.pass(2 * time.Second)
		one(t, "inverse offers after the agent is back", inverseOffers(s.stream.take()))
		s.call(&schedulerv1.Call{Type: schedulerv1.Call_TEARDOWN.Enum()})
		if n := len(c.m.s.inverses); n != 0 {
			t.Errorf("%d inverse offers of nobody", n)
		}
	})
}

// next2 returns what comes within two seconds.
func (s *scheduler) next2() []*schedulerv1.Event {
	s.c.pass(2 * time.Second)
	return s.stream.take()
}

func TestInverseOffersExpireAsOffersDo(t *testing.T) {
	inBubble(t, Config{OfferTimeout: 10 * time.Second}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		s := c.withTask(frameworkInfo("a"), "t1")
		c.must(scheduleCall(window(time.Now(), "agent.example")))
		first := one(t, "inverse offers", inverseOffers(s.stream.take()))
		c.pass(12 * time.Second)
		events := s.stream.take()
		if len(events) == 0 || events[0].GetRescindInverseOffer().GetInverseOfferId().GetValue() != first.GetId().GetValue() {
			t.Fatalf("events = %v, want RESCIND_INVERSE_OFFER of %s", events, first.GetId())
		}
		one(t, "inverse offers afterwards", inverseOffers(events))
	})
}

func TestSchedulesThatAreWrongAreRefused(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		now := time.Now()
		negative := window(now, "a")
		negative.Unavailability.Duration.Nanoseconds = ptr(int64(-1))
		nobody := window(now)
		nobody.MachineIds = []*mesosv1.MachineID{{}}
		badIP := window(now)
		badIP.MachineIds = []*mesosv1.MachineID{{Ip: ptr("10.0.0.256")}}
		for want, call := range map[string]*masterv1.Call{
			"window is empty":             scheduleCall(window(now)),
			"'duration' is negative":      scheduleCall(negative),
			"are empty":                   scheduleCall(nobody),
			"Failed to parse":             scheduleCall(badIP),
			"more than once in the sched": scheduleCall(window(now, "a"), window(now, "A")),
			"List of machines is empty":   startCall(),
			"more than once in the list":  startCall("a", "a"),
			"not part of a maintenance":   startCall("a"),
			"is not part of":              stopCall("a"),
		} {
			if code, text := c.operate(call); code != 400 || !strings.Contains(text, want) {
				t.Errorf("%s = %d %s, want 400 with %q", call.GetType(), code, text, want)
			}
		}
		c.must(scheduleCall(window(now, "a")))
		if code, text := c.operate(stopCall("a")); code != 400 || !strings.Contains(text, "not in DOWN mode") {
			t.Errorf("STOP_MAINTENANCE of a draining machine = %d %s, want 400", code, text)
		}
		c.must(startCall("a"))
		if code, text := c.operate(startCall("a")); code != 400 || !strings.Contains(text, "not in DRAINING mode") {
			t.Errorf("START_MAINTENANCE of a machine that is down = %d %s, want 400", code, text)
		}
		if code, text := c.operate(scheduleCall(window(now, "b"))); code != 400 || !strings.Contains(text, "cannot be removed") {
			t.Errorf("schedule without a machine that is down = %d %s, want 400", code, text)
		}
	})
}

func TestMachinesThatAreDownHaveNoAgents(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		s := c.withTask(frameworkInfo("a"), "t1")
		c.must(scheduleCall(window(time.Now(), "agent.example", "other.example")))
		if code, text := c.operate(drainCall(a.id(), false)); code != 400 || !strings.Contains(text, "maintenance window") {
			t.Errorf("DRAIN_AGENT in a window = %d %s, want 400", code, text)
		}
		s.stream.take()
		a.take()
		c.must(startCall("agent.example"))
		one(t, "shutdowns", taken[*clusterv1.ToAgent_Shutdown](a))
		events := s.stream.take()
		if u := one(t, "updates", updates(events)); u.GetState() != mesosv1.TaskState_TASK_GONE || u.GetReason() != mesosv1.TaskStatus_REASON_AGENT_REMOVED {
			t.Errorf("update = %v, want TASK_GONE of an agent that was removed", u)
		}
		if n := len(c.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetAgents()); n != 0 {
			t.Errorf("%d agents, want none", n)
		}
		status := c.maintenanceStatus()
		if id := one(t, "down machines", status.GetDownMachines()); id.GetHostname() != "agent.example" {
			t.Errorf("down: %v", id)
		}
		one(t, "draining machines", status.GetDrainingMachines())
		snapshot, err := c.registry.Load(context.Background())
		if err != nil || len(snapshot.Machines) != 2 || len(snapshot.Agents) != 0 {
			t.Errorf("registry has machines %v and agents %v, %v", snapshot.Machines, snapshot.Agents, err)
		}

		// Neither the old agent nor a new one may come, also at the next master.
		next := startCluster(t, Config{ID: "N"}, Deps{Registry: c.registry})
		defer next.stop()
		<-c.ended
		c.ended <- nil
		x := &fakeAgent{c: next, info: a.info, tasks: a.tasks, executors: a.executors, frameworks: a.frameworks, total: a.total, operations: a.operations}
		next.agents = append(next.agents, x)
		x.connect()
		next.settle()
		one(t, "shutdowns of the one that returns", taken[*clusterv1.ToAgent_Shutdown](x))
		<-x.ended
		if len(next.m.s.agents) != 0 {
			t.Errorf("an agent on a machine that is down was registered")
		}
		next.must(stopCall("agent.example"))
		schedule := next.maintenanceSchedule()
		if w := one(t, "windows", schedule.GetWindows()); len(w.GetMachineIds()) != 1 || w.GetMachineIds()[0].GetHostname() != "other.example" {
			t.Errorf("schedule = %v, want other.example only", schedule)
		}
		next.agent("cpus:4;mem:1024")
	})
}

// gate is a registry whose writes wait while it is shut.
type gate struct {
	registry.Store
	mu   sync.Mutex
	shut chan struct{} // guarded by mu; nil while it is open
}

func (g *gate) Apply(ctx context.Context, changes []registry.Change) error {
	g.mu.Lock()
	shut := g.shut
	g.mu.Unlock()
	if shut != nil {
		<-shut
	}
	return g.Store.Apply(ctx, changes)
}

// close has writes wait until the function that it returns is called.
func (g *gate) close() (open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	shut := make(chan struct{})
	g.shut = shut
	return func() {
		g.mu.Lock()
		g.shut = nil
		g.mu.Unlock()
		close(shut)
	}
}

func TestMaintenanceIsWrittenBeforeItHolds(t *testing.T) {
	store := &gate{Store: registry.NewMemory()}
	inBubble(t, Config{}, Deps{Registry: store}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		s := c.withTask(frameworkInfo("a"), "t1")
		// each carries out a call whose write waits, and holds that nothing has happened until then.
		each := func(call *masterv1.Call) {
			t.Helper()
			open := store.close()
			answered := make(chan error, 1)
			go func() {
				_, err := c.m.OperatorCall(context.Background(), "", call)
				answered <- err
			}()
			c.settle()
			if got := s.stream.take(); len(got) != 0 || len(answered) != 0 {
				t.Errorf("%s: events %v and %d answers before it was written", call.GetType(), got, len(answered))
			}
			open()
			c.settle()
			if err := <-answered; err != nil {
				t.Errorf("%s = %v", call.GetType(), err)
			}
		}
		each(scheduleCall(window(time.Now(), "agent.example")))
		one(t, "inverse offers", inverseOffers(s.stream.take()))
		each(startCall("agent.example"))
		one(t, "updates", updates(s.stream.take()))
		each(stopCall("agent.example"))
	})
}

// What is decided while another write is under way counts with it.
func TestDecisionsOnMaintenanceCountWithThoseThatAreBeingWritten(t *testing.T) {
	store := &gate{Store: registry.NewMemory()}
	inBubble(t, Config{}, Deps{Registry: store}, func(t *testing.T, c *cluster) {
		c.must(scheduleCall(window(time.Now(), "a", "b")))
		open := store.close()
		answers := make(chan error, 2)
		for _, call := range []*masterv1.Call{startCall("a"), scheduleCall(window(time.Now(), "b"))} {
			go func() {
				_, err := c.m.OperatorCall(context.Background(), "", call)
				answers <- err
			}()
			c.settle()
		}
		if code := statusOf(<-answers); code != 400 {
			t.Errorf("a schedule without the machine that goes down = %d, want 400", code)
		}
		open()
		c.settle()
		if err := <-answers; err != nil {
			t.Errorf("START_MAINTENANCE = %v", err)
		}
	})
}

func TestMaintenanceNeedsPermissionForEachMachine(t *testing.T) {
	inBubble(t, Config{}, Deps{Approvers: denyMachine("b")}, func(t *testing.T, c *cluster) {
		now := time.Now()
		if code, _ := c.operate(scheduleCall(window(now, "a", "b"))); code != 403 {
			t.Errorf("schedule of a machine that is not ours = %d, want 403", code)
		}
		c.must(scheduleCall(window(now, "a")))
		for _, call := range []*masterv1.Call{startCall("b"), stopCall("b")} {
			if code, _ := c.operate(call); code != 403 {
				t.Errorf("%s = %d, want 403", call.GetType(), code)
			}
		}
		// What one may not see is left out.
		c.m.do(context.Background(), func(now time.Time) {
			c.m.s.setMaintenance(newMaintenance(&maintenancev1.Schedule{Windows: []*maintenancev1.Window{window(now, "a", "b"), window(now, "b")}}, []*mesosv1.MachineInfo{
				{Id: machineID("a"), Mode: mesosv1.MachineInfo_DRAINING.Enum()}, {Id: machineID("b"), Mode: mesosv1.MachineInfo_DOWN.Enum()}}), now)
		})
		if w := one(t, "windows", c.maintenanceSchedule().GetWindows()); len(w.GetMachineIds()) != 1 {
			t.Errorf("window = %v, want machine a only", w)
		}
		if status := c.maintenanceStatus(); len(status.GetDownMachines()) != 0 || len(status.GetDrainingMachines()) != 1 {
			t.Errorf("status = %v, want machine a only", status)
		}
	})
}

// denyMachine refuses everything about one machine.
type denyMachine string

func (d denyMachine) Approve(_ context.Context, _, action string, object ...string) error {
	for _, o := range object {
		if o == string(d) {
			return fmt.Errorf("%s on %s", action, o)
		}
	}
	return nil
}
