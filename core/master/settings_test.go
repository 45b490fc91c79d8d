package master

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

func domain(region, zone string) *mesosv1.DomainInfo {
	return &mesosv1.DomainInfo{FaultDomain: &mesosv1.DomainInfo_FaultDomain{
		Region: &mesosv1.DomainInfo_FaultDomain_RegionInfo{Name: &region},
		Zone:   &mesosv1.DomainInfo_FaultDomain_ZoneInfo{Name: &zone},
	}}
}

// newFakeAgent is an agent that is not connected.
func (c *cluster) newFakeAgent(hostname, text string) *fakeAgent {
	a := &fakeAgent{
		c:          c,
		info:       &mesosv1.AgentInfo{Hostname: &hostname, Port: ptr(int32(5051)), Resources: resources.MustParse(text).Resources()},
		tasks:      make(map[string]*mesosv1.Task),
		executors:  make(map[string]*clusterv1.ExecutorRecord),
		frameworks: make(map[string]*mesosv1.FrameworkInfo),
		operations: make(map[string]*mesosv1.Operation),
		total:      resources.MustParse(text),
	}
	c.agents = append(c.agents, a)
	return a
}

func TestRemoteAgentsAreOfferedToThoseWhoKnowRegions(t *testing.T) {
	inBubble(t, Config{Domain: domain("west", "1")}, Deps{}, func(t *testing.T, c *cluster) {
		for host, d := range map[string]*mesosv1.DomainInfo{"near": domain("west", "2"), "far": domain("east", "1"), "nowhere": nil} {
			a := c.newFakeAgent(host, "cpus:1;mem:100")
			a.info.Domain = d
			a.connect()
		}
		c.settle()
		aware := frameworkInfo("a")
		aware.Capabilities = append(aware.Capabilities, &mesosv1.FrameworkInfo_Capability{Type: mesosv1.FrameworkInfo_Capability_REGION_AWARE.Enum()})
		plain, events := c.framework(frameworkInfo("a"))
		got := make(map[string]*mesosv1.Offer)
		for _, o := range offers(events) {
			got[o.GetHostname()] = o
		}
		if len(got) != 2 || got["far"] != nil {
			t.Fatalf("a framework that does not know regions was offered %v", got)
		}
		if !got["near"].GetDomain().EqualVT(domain("west", "2")) {
			t.Errorf("offer has domain %v", got["near"].GetDomain())
		}
		plain.call(declineAll(got))
		_, events = c.framework(aware)
		found := false
		for _, o := range offers(events) {
			found = found || o.GetHostname() == "far"
		}
		if !found {
			t.Errorf("a framework that knows regions was offered %v, want far among them", offers(events))
		}
		if d := c.get(masterv1.Call_GET_MASTER).GetGetMaster().GetMasterInfo().GetDomain(); !d.EqualVT(domain("west", "1")) {
			t.Errorf("master's domain = %v", d)
		}
	})
}

func TestAgentsWhoseDomainDoesNotSuitTheMasterAreRefusedForNow(t *testing.T) {
	for name, x := range map[string]struct {
		cfg   Config
		agent *mesosv1.DomainInfo
	}{
		"domain where the master has none": {Config{}, domain("west", "1")},
		"none where one is required":       {Config{Domain: domain("west", "1"), RequireAgentDomain: true}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, x.cfg, Deps{}, func(t *testing.T, c *cluster) {
				a := c.newFakeAgent("host", "cpus:1;mem:100")
				a.info.Domain = x.agent
				a.connect()
				c.settle()
				if r := one(t, "refusals", taken[*clusterv1.ToAgent_Refused](a)); r.Refused.GetFatal() || !strings.Contains(r.Refused.GetMessage(), "fault domain") {
					t.Errorf("refusal = %v, want one that is not for good", r)
				}
			})
		})
	}
}

func TestOnlyHostsOnTheWhitelistAreOffered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "whitelist")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n\n")
	inBubble(t, Config{Whitelist: path}, Deps{}, func(t *testing.T, c *cluster) {
		c.agentAt("one", 1, "cpus:1;mem:100")
		c.agentAt("two", 2, "cpus:1;mem:100")
		s, events := c.framework(frameworkInfo("a"))
		if o := one(t, "offers", offers(events)); o.GetHostname() != "one" {
			t.Errorf("offered %s, want one", o.GetHostname())
		}
		write("one\n two \n")
		c.pass(6 * time.Second)
		if o := one(t, "offers after the change", offers(s.stream.take())); o.GetHostname() != "two" {
			t.Errorf("offered %s, want two", o.GetHostname())
		}
		// An empty file stops offers; a file that is gone changes nothing; "*" lifts everything.
		write("")
		c.pass(6 * time.Second)
		c.agentAt("three", 3, "cpus:1;mem:100")
		os.Remove(path)
		c.pass(6 * time.Second)
		if got := offers(s.stream.take()); len(got) != 0 {
			t.Errorf("offered %v although nothing is on the list", got)
		}
		write("*")
		c.pass(6 * time.Second)
		if o := one(t, "offers", offers(s.stream.take())); o.GetHostname() != "three" {
			t.Errorf("offered %s, want three", o.GetHostname())
		}
	})
}

func TestOnlyRolesOnTheWhitelistMayBeUsed(t *testing.T) {
	inBubble(t, Config{Roles: []string{"eng", "ops"}}, Deps{}, func(t *testing.T, c *cluster) {
		for _, role := range []string{"batch", "eng/dev"} {
			s := &scheduler{c: c, info: frameworkInfo(role)}
			if e := one(t, "events", s.subscribe()); !strings.Contains(e.GetError().GetMessage(), "Role '"+role+"' is not present") {
				t.Errorf("event = %v, want ERROR for role %s", e, role)
			}
		}
		c.framework(frameworkInfo("eng", "*"))
		if code, text := c.operate(weightsCall("batch", 2)); code != 400 || !strings.Contains(text, "not present") {
			t.Errorf("UPDATE_WEIGHTS = %d %s, want 400", code, text)
		}
		if code, text := c.operate(quotaCall(true, quotaOf("batch", "cpus:1", ""))); code != 400 || !strings.Contains(text, "not present") {
			t.Errorf("UPDATE_QUOTA = %d %s, want 400", code, text)
		}
		var names []string
		for _, r := range c.get(masterv1.Call_GET_ROLES).GetGetRoles().GetRoles() {
			names = append(names, r.GetName())
		}
		if got := strings.Join(names, " "); got != "* eng ops" {
			t.Errorf("roles = %s, want those that may be used", got)
		}
	})
}

func weightsCall(role string, weight float64) *masterv1.Call {
	return &masterv1.Call{Type: masterv1.Call_UPDATE_WEIGHTS.Enum(), UpdateWeights: &masterv1.Call_UpdateWeights{
		WeightInfos: []*mesosv1.WeightInfo{{Role: &role, Weight: &weight}}}}
}

func TestTasksThatAreNotCheckpointedEndWithTheAgentsConnection(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		info := frameworkInfo("a")
		info.Checkpoint = nil
		s := c.withTask(info, "lost")
		kept := c.withTask(frameworkInfo("b"), "kept")
		a.disconnect()
		if u := one(t, "updates", updates(s.stream.take())); u.GetState() != mesosv1.TaskState_TASK_GONE || u.GetReason() != mesosv1.TaskStatus_REASON_AGENT_DISCONNECTED || u.Uuid != nil {
			t.Errorf("update = %v, want TASK_GONE with REASON_AGENT_DISCONNECTED", u)
		}
		if got := updates(kept.stream.take()); len(got) != 0 {
			t.Errorf("updates = %v for a framework that checkpoints, want none", got)
		}
		a.take()
		a.connect() // it was only the connection: the task still runs, and must not
		c.settle()
		if k := one(t, "kills", taken[*clusterv1.ToAgent_KillTask](a)); k.KillTask.GetTaskId() != "lost" {
			t.Errorf("kill = %v, want that of the lost task", k)
		}
	})
}

func TestAgentsAreGivenUpOneAtATimeWhereThatIsAsked(t *testing.T) {
	inBubble(t, Config{RemovalInterval: time.Minute}, Deps{}, func(t *testing.T, c *cluster) {
		var all []*fakeAgent
		for i := range 3 {
			a := c.agentAt("host", int32(i+1), "cpus:1;mem:100")
			a.mu.Lock()
			a.silent = true
			a.mu.Unlock()
			all = append(all, a)
		}
		left := func() int { return len(c.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetAgents()) }
		c.pass(95 * time.Second)
		if n := left(); n != 2 {
			t.Errorf("%d agents after 95 s, want 2", n)
		}
		// One says something before it is its turn.
		all[2].mu.Lock()
		all[2].silent = false
		all[2].mu.Unlock()
		c.pass(3 * time.Minute)
		if n := left(); n != 1 {
			t.Errorf("%d agents after all, want the one that spoke", n)
		}
		values := c.legacy("/metrics/snapshot", "")
		for name, want := range map[string]float64{"scheduled": 3, "completed": 2, "canceled": 1} {
			if got := values["master/slave_unreachable_"+name]; got != want {
				t.Errorf("slave_unreachable_%s = %v, want %v", name, got, want)
			}
		}
	})
}

func TestAMasterThatMissesTooManyAgentsStops(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		for i := range 4 {
			c.agentAt("host", int32(i+1), "cpus:1;mem:100")
		}
		next := startCluster(t, Config{ID: "N", RecoveryRemovalLimit: 0.5}, Deps{Registry: c.registry})
		<-c.ended
		c.ended <- nil
		next.pass(11 * time.Minute)
		err := <-next.ended
		if err == nil || !strings.Contains(err.Error(), "4 of 4 agents did not return") {
			t.Errorf("Run = %v, want that four agents are missing", err)
		}
		next.ended <- nil
		next.stop()
		snapshot, err := c.registry.Load(context.Background())
		if err != nil || len(snapshot.Agents) != 4 {
			t.Errorf("registry has %d agents, %v, want all four", len(snapshot.Agents), err)
		}
	})
}

func TestTheLogSaysMoreForAsLongAsAnOperatorWants(t *testing.T) {
	level := new(slog.LevelVar)
	inBubble(t, Config{}, Deps{LogLevel: level}, func(t *testing.T, c *cluster) {
		set := func(n uint32, d time.Duration) *masterv1.Call {
			return &masterv1.Call{Type: masterv1.Call_SET_LOGGING_LEVEL.Enum(), SetLoggingLevel: &masterv1.Call_SetLoggingLevel{
				Level: &n, Duration: &mesosv1.DurationInfo{Nanoseconds: ptr(d.Nanoseconds())}}}
		}
		c.must(set(2, time.Minute))
		if got := c.get(masterv1.Call_GET_LOGGING_LEVEL).GetGetLoggingLevel().GetLevel(); got != 1 || level.Level() != slog.LevelDebug {
			t.Errorf("level = %d, %v, want 1 and debug", got, level.Level())
		}
		c.pass(61 * time.Second)
		if got := c.get(masterv1.Call_GET_LOGGING_LEVEL).GetGetLoggingLevel().GetLevel(); got != 0 || level.Level() != slog.LevelInfo {
			t.Errorf("level = %d, %v after the time, want 0 and info", got, level.Level())
		}
		if code, _ := c.operate(set(1, -1)); code != 400 {
			t.Errorf("SET_LOGGING_LEVEL for less than nothing = %d, want 400", code)
		}
	})
}

func TestAFrameworkThatNeverAnswersDelaysNobodyPastTheLease(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		const agents = 10
		for i := range agents {
			c.agentAt("host", int32(i+1), "cpus:1;mem:100")
		}
		silent, events := c.framework(frameworkInfo("a"))
		if n := len(offers(events)); n != agents {
			t.Fatalf("the first was offered %d agents, want all", n)
		}
		var others []*scheduler
		for range 9 {
			s, _ := c.framework(frameworkInfo("a"))
			others = append(others, s)
		}
		c.pass(61*time.Second + time.Second)
		got := 0
		for _, s := range others {
			for _, o := range offers(s.stream.take()) {
				got++
				s.launch(o, commandTask(fmt.Sprintf("t%d", got), o, "cpus:1;mem:100"))
			}
		}
		if got != agents {
			t.Errorf("the others were offered %d agents after the lease, want %d", got, agents)
		}
		rescinded := 0
		for _, e := range silent.stream.take() {
			if e.GetRescind() != nil {
				rescinded++
			}
		}
		if rescinded != agents {
			t.Errorf("%d RESCIND, want %d", rescinded, agents)
		}
		if n := c.legacy("/metrics/snapshot", "")["master/offers/rescinded"]; n != float64(agents) {
			t.Errorf("offers/rescinded = %v", n)
		}
	})
}

func TestOffersNeverExpireWhereThatIsAsked(t *testing.T) {
	inBubble(t, Config{OfferTimeout: -1}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:1;mem:100")
		s, events := c.framework(frameworkInfo("a"))
		o := one(t, "offers", offers(events))
		c.pass(24 * time.Hour)
		if got := s.stream.take(); len(got) != 0 {
			t.Errorf("events = %v, want none", got)
		}
		if u := one(t, "updates", updates(s.launch(o, commandTask("t", o, "cpus:1;mem:100")))); u.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("update = %v, want TASK_RUNNING", u)
		}
	})
}

func TestOfferFiltersMustBeNumbers(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		info := frameworkInfo("a")
		info.OfferFilters = map[string]*mesosv1.OfferFilters{"a": {MinAllocatableResources: &mesosv1.OfferFilters_MinAllocatableResources{
			Quantities: []*mesosv1.OfferFilters_ResourceQuantities{{Quantities: map[string]*mesosv1.Value_Scalar{"cpus": {Value: ptr(-1.0)}}}}}}}
		s := &scheduler{c: c, info: info}
		if e := one(t, "events", s.subscribe()); !strings.Contains(e.GetError().GetMessage(), "'cpus' is -1") {
			t.Errorf("event = %v, want ERROR", e)
		}
	})
}

func TestConfigurationsThatMakeNoSenseAreRefused(t *testing.T) {
	for name, cfg := range map[string]Config{
		"sorter":        {RoleSorter: "fair"},
		"role":          {Roles: []string{"a b"}},
		"domain":        {Domain: &mesosv1.DomainInfo{}},
		"removal limit": {RecoveryRemovalLimit: 1.5},
	} {
		cfg.Hostname = "m"
		if m, err := New(cfg, Deps{Registry: registry.NewMemory()}); err == nil || m != nil || errors.Is(err, ErrLeadershipLost) {
			t.Errorf("%s: New = %v, %v, want an error", name, m, err)
		}
	}
}

// declineAll refuses offers for a long time.
func declineAll(all map[string]*mesosv1.Offer) *schedulerv1.Call {
	call := &schedulerv1.Call{Type: schedulerv1.Call_DECLINE.Enum(), Decline: &schedulerv1.Call_Decline{
		Filters: &mesosv1.Filters{RefuseSeconds: ptr(1e6)}}}
	for _, o := range all {
		call.Decline.OfferIds = append(call.Decline.OfferIds, o.Id)
	}
	return call
}

func TestAgentsThatLeftAreForgottenByAgeAndNumber(t *testing.T) {
	store := registry.NewMemory()
	start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where a bubble's clock begins
	var changes []registry.Change
	for i := range 5 {
		d := registry.Departure{Since: start.Add(-time.Duration(i) * time.Hour), Agent: registry.Agent{Info: &mesosv1.AgentInfo{Hostname: ptr("h")}}}
		changes = append(changes, registry.PutUnreachable(fmt.Sprintf("U%d", i), d), registry.PutGone(fmt.Sprintf("G%d", i), d))
	}
	if err := store.Apply(context.Background(), changes); err != nil {
		t.Fatal(err)
	}
	cfg := Config{RegistryGCInterval: time.Minute, RegistryMaxAge: 3*time.Hour + 30*time.Minute, RegistryMaxAgents: 2}
	inBubble(t, cfg, Deps{Registry: store}, func(t *testing.T, c *cluster) {
		c.pass(2 * time.Minute)
		left := func() (unreachable, gone string) {
			s, err := store.Load(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(sortedKeys(s.Unreachable), " "), strings.Join(sortedKeys(s.Gone), " ")
		}
		if u, g := left(); u != "U0 U1" || g != "G0 G1" {
			t.Errorf("unreachable %s, gone %s, want the newest two of each", u, g)
		}
		c.pass(3 * time.Hour)
		if u, g := left(); u != "U0" || g != "G0" {
			t.Errorf("unreachable %s, gone %s after three hours, want the newest of each", u, g)
		}
		if n := len(c.m.s.gone); n != 1 {
			t.Errorf("the master knows %d agents that are gone, want one", n)
		}
	})
}

func TestFlagsAreForThoseWhoMaySeeThem(t *testing.T) {
	cfg := Config{Flags: map[string]string{"work_dir": "/var"}, Cluster: "prod"}
	inBubble(t, cfg, Deps{Approvers: denials{"VIEW_FLAGS ": true}}, func(t *testing.T, c *cluster) {
		if code, _ := c.operate(&masterv1.Call{Type: masterv1.Call_GET_FLAGS.Enum()}); code != 403 {
			t.Errorf("GET_FLAGS = %d, want 403", code)
		}
		state := c.legacy("/state", "")
		for _, name := range []string{"flags", "cluster"} {
			if x, ok := state[name]; ok {
				t.Errorf("/state has %s %v", name, x)
			}
		}
	})
}

func TestOperatorsMayBeWithoutStreams(t *testing.T) {
	inBubble(t, Config{MaxOperatorEventStreamSubscribers: -1}, Deps{}, func(t *testing.T, c *cluster) {
		r := newRecorder[*masterv1.Event]()
		if err := c.m.OperatorSubscribe(context.Background(), "", r); err != nil || !r.closed() {
			t.Errorf("OperatorSubscribe = %v, closed %v, want a stream that has ended", err, r.closed())
		}
	})
}

func TestOffersInRolesThatAFrameworkLeavesAreTakenBack(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agentAt("one", 1, "cpus(a):1;mem(a):100")
		c.agentAt("two", 2, "cpus(b):1;mem(b):100")
		s, events := c.framework(frameworkInfo("a", "b"))
		byRole := make(map[string]*mesosv1.Offer)
		for _, o := range offers(events) {
			byRole[o.GetAllocationInfo().GetRole()] = o
		}
		if len(byRole) != 2 {
			t.Fatalf("offers = %v, want one in each role", byRole)
		}
		s.info.Roles = []string{"b"}
		events = s.call(&schedulerv1.Call{Type: schedulerv1.Call_UPDATE_FRAMEWORK.Enum(), UpdateFramework: &schedulerv1.Call_UpdateFramework{FrameworkInfo: s.info}})
		if e := one(t, "events", events); e.GetRescind().GetOfferId().GetValue() != byRole["a"].GetId().GetValue() {
			t.Errorf("event = %v, want RESCIND of the offer in role a", e)
		}
		// Subscribing anew takes all back, and what is offered then is in the new roles only.
		s.info.Roles = []string{"a"}
		events = s.subscribe()
		c.pass(2 * time.Second)
		if o := one(t, "offers", offers(append(events, s.stream.take()...))); o.GetAllocationInfo().GetRole() != "a" {
			t.Errorf("offer = %v, want one in role a", o)
		}
	})
}

func TestSuppressedRolesAreThoseOfTheLastSubscription(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agentAt("one", 1, "cpus(a):1;mem(a):100")
		s := &scheduler{c: c, info: frameworkInfo("a")}
		if got := offers(s.subscribe("a")); len(got) != 0 {
			t.Errorf("offers = %v in a suppressed role", got)
		}
		if got := offers(s.subscribe()); len(got) != 1 {
			t.Errorf("offers = %v after a subscription that suppresses nothing, want one", got)
		}
		s.call(&schedulerv1.Call{Type: schedulerv1.Call_SUPPRESS.Enum()})
		if got := offers(append(s.subscribe(), s.next2()...)); len(got) != 1 {
			t.Errorf("offers = %v, want one: a new subscription says anew what is suppressed", got)
		}
		s.call(&schedulerv1.Call{Type: schedulerv1.Call_UPDATE_FRAMEWORK.Enum(), UpdateFramework: &schedulerv1.Call_UpdateFramework{
			FrameworkInfo: s.info, SuppressedRoles: []string{"a"}}})
		c.agentAt("two", 2, "cpus(a):1;mem(a):100")
		if got := offers(s.next2()); len(got) != 0 {
			t.Errorf("offers = %v in a role that an update suppressed", got)
		}
	})
}
