package master

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// reserved returns resources reserved dynamically to a role.
func reservedFor(role, text string) []*mesosv1.Resource {
	rs := resources.MustParse(text).Resources()
	for _, r := range rs {
		r.Role = nil
		r.Reservations = append(r.Reservations, &mesosv1.Resource_ReservationInfo{
			Type: mesosv1.Resource_ReservationInfo_DYNAMIC.Enum(), Role: &role})
	}
	return rs
}

// volumeOf is a persistent volume of a role on its reserved disk.
func volumeOf(role, id string, mib float64) *mesosv1.Resource {
	v := reservedFor(role, "disk:1")[0]
	v.Scalar.Value = &mib
	v.Disk = &mesosv1.Resource_DiskInfo{
		Persistence: &mesosv1.Resource_DiskInfo_Persistence{Id: &id},
		Volume:      &mesosv1.Volume{ContainerPath: ptr("data"), Mode: mesosv1.Volume_RW.Enum()},
	}
	return v
}

func sharedVolumeOf(role, id string, mib float64) *mesosv1.Resource {
	v := volumeOf(role, id, mib)
	v.Shared = &mesosv1.Resource_SharedInfo{}
	return v
}

func operationID(id string) *mesosv1.OperationID {
	if id == "" {
		return nil
	}
	return &mesosv1.OperationID{Value: &id}
}

func reserve(id string, rs ...*mesosv1.Resource) *mesosv1.Offer_Operation {
	return &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_RESERVE.Enum(), Id: operationID(id),
		Reserve: &mesosv1.Offer_Operation_Reserve{Resources: rs}}
}

func unreserve(id string, rs ...*mesosv1.Resource) *mesosv1.Offer_Operation {
	return &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_UNRESERVE.Enum(), Id: operationID(id),
		Unreserve: &mesosv1.Offer_Operation_Unreserve{Resources: rs}}
}

func create(id string, vs ...*mesosv1.Resource) *mesosv1.Offer_Operation {
	return &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_CREATE.Enum(), Id: operationID(id),
		Create: &mesosv1.Offer_Operation_Create{Volumes: vs}}
}

func destroy(id string, vs ...*mesosv1.Resource) *mesosv1.Offer_Operation {
	return &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_DESTROY.Enum(), Id: operationID(id),
		Destroy: &mesosv1.Offer_Operation_Destroy{Volumes: vs}}
}

func grow(id string, v, by *mesosv1.Resource) *mesosv1.Offer_Operation {
	return &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_GROW_VOLUME.Enum(), Id: operationID(id),
		GrowVolume: &mesosv1.Offer_Operation_GrowVolume{Volume: v, Addition: by}}
}

func shrink(id string, v *mesosv1.Resource, by float64) *mesosv1.Offer_Operation {
	return &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_SHRINK_VOLUME.Enum(), Id: operationID(id),
		ShrinkVolume: &mesosv1.Offer_Operation_ShrinkVolume{Volume: v, Subtract: &mesosv1.Value_Scalar{Value: &by}}}
}

// statuses returns the operation statuses in events.
func statuses(events []*schedulerv1.Event) []*mesosv1.OperationStatus {
	var out []*mesosv1.OperationStatus
	for _, e := range events {
		if e.GetType() == schedulerv1.Event_UPDATE_OPERATION_STATUS {
			out = append(out, e.GetUpdateOperationStatus().GetStatus())
		}
	}
	return out
}

func (s *scheduler) ackOperation(u *mesosv1.OperationStatus) []*schedulerv1.Event {
	s.c.Helper()
	return s.call(&schedulerv1.Call{Type: schedulerv1.Call_ACKNOWLEDGE_OPERATION_STATUS.Enum(),
		AcknowledgeOperationStatus: &schedulerv1.Call_AcknowledgeOperationStatus{
			AgentId: u.AgentId, OperationId: u.OperationId, Uuid: u.GetUuid().GetValue()}})
}

// volumeTask uses a volume.
func volumeTask(id string, o *mesosv1.Offer, v *mesosv1.Resource) *mesosv1.TaskInfo {
	t := commandTask(id, o, "cpus:0.1;mem:32")
	t.Resources = append(t.Resources, v)
	return t
}

// next returns the offers that the framework holds when its refusals are over.
func (s *scheduler) next() []*mesosv1.Offer {
	s.c.Helper()
	s.c.pass(10 * time.Second)
	s.stream.take()
	for _, f := range s.c.get(masterv1.Call_GET_FRAMEWORKS).GetGetFrameworks().GetFrameworks() {
		if f.GetFrameworkInfo().GetId().GetValue() == s.id {
			return f.GetOffers()
		}
	}
	return nil
}

// total is what an offer holds.
func total(o *mesosv1.Offer) resources.Set { return resources.New(o.Resources...).Unallocate() }

func TestOneAcceptReservesCreatesAndLaunches(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024;disk:1000")
		s, events := c.framework(frameworkInfo("eng"))
		o := one(t, "offers", offers(events))
		v := volumeOf("eng", "v1", 100)
		space := reservedFor("eng", "disk:100")[0]
		events = s.accept([]*mesosv1.Offer{o}, nil,
			reserve("op-reserve", space), create("op-create", v), launch(volumeTask("t", o, v)))
		got := statuses(events)
		if len(got) != 2 {
			t.Fatalf("operation statuses = %v, want two", got)
		}
		for i, id := range []string{"op-reserve", "op-create"} {
			if got[i].GetOperationId().GetValue() != id || got[i].GetState() != mesosv1.OperationState_OPERATION_FINISHED ||
				len(got[i].GetUuid().GetValue()) != 16 || got[i].GetAgentId().GetValue() != a.id() {
				t.Errorf("status %d = %v, want %s finished with uuid and agent", i, got[i], id)
			}
		}
		if u := one(t, "updates", updates(events)); u.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("update = %v, want TASK_RUNNING", u)
		}
		if !a.has().Contains(resources.New(v)) {
			t.Errorf("agent has %s, want the volume", a.has())
		}
		// In order on the wire: the agent makes the volume before it runs the task.
		var order []string
		for _, m := range a.take() {
			switch x := m.Message.(type) {
			case *clusterv1.ToAgent_ApplyOperation:
				order = append(order, x.ApplyOperation.GetOperation().GetType().String())
			case *clusterv1.ToAgent_RunTask:
				order = append(order, "RUN")
			}
		}
		if strings.Join(order, " ") != "RESERVE CREATE RUN" {
			t.Errorf("agent was told %v", order)
		}
		// Until acknowledged they are shown, and waited for by the agent.
		if ops := c.get(masterv1.Call_GET_OPERATIONS).GetGetOperations().GetOperations(); len(ops) != 2 {
			t.Errorf("GET_OPERATIONS = %v, want two", ops)
		}
		for _, u := range got {
			s.ackOperation(u)
		}
		if n := a.waiting(); n != 0 {
			t.Errorf("%d operations wait for an acknowledgement, want none", n)
		}
		if ops := c.get(masterv1.Call_GET_OPERATIONS).GetGetOperations().GetOperations(); len(ops) != 0 {
			t.Errorf("GET_OPERATIONS = %v, want none", ops)
		}
		// The task ends; the volume is offered again, to the role only.
		a.set(s, "t", mesosv1.TaskState_TASK_FINISHED)
		s.ack(updates(s.stream.take())[0])
		var seen resources.Set
		for _, o := range s.next() {
			seen = seen.Add(total(o))
		}
		if !seen.Contains(resources.New(v)) {
			t.Errorf("offered again: %s, want the volume", seen)
		}
	})
}

func TestWhatIsReservedIsNotOfferedToOtherRoles(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024;disk:1000")
		s, events := c.framework(frameworkInfo("eng"))
		mine := resources.New(reservedFor("eng", "cpus:3;mem:512")...)
		// A long filter holds back what was refused, not what was just reserved.
		events = s.accept(offers(events), &mesosv1.Filters{RefuseSeconds: ptr(3600.0)}, reserve("", mine.Resources()...))
		o := one(t, "offers to eng", append(offers(events), s.next()...)[:1])
		if !total(o).Contains(mine) {
			t.Errorf("eng was offered %s, want its reservation", total(o))
		}
		s.decline(3600, s.next()...)
		other, _ := c.framework(frameworkInfo("ops"))
		if o := one(t, "offers to ops", other.next()); total(o).Scalar("cpus") != 1 {
			t.Errorf("ops was offered %s, want the one cpu that is not reserved", total(o))
		}
	})
}

func TestOperationsThatAreWrongAreErrors(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024;disk:1000")
		s, events := c.framework(frameworkInfo("eng"))
		held := one(t, "offers", offers(events))
		events = s.accept([]*mesosv1.Offer{held}, &mesosv1.Filters{RefuseSeconds: ptr(0.0)},
			reserve("r", reservedFor("eng", "disk:200")[0]), create("c", volumeOf("eng", "v1", 50)))
		for _, u := range statuses(events) {
			s.ackOperation(u)
		}
		hosted := volumeOf("eng", "v9", 10)
		hosted.Disk.Volume.HostPath = ptr("/etc")
		readOnly := volumeOf("eng", "v9", 10)
		readOnly.Disk.Volume.Mode = mesosv1.Volume_RO.Enum()
		foreign := resources.New(reservedFor("eng", "cpus:1")...).Allocate("ops").Resources()[0]
		sourced := reserve("x", reservedFor("eng", "cpus:1")...)
		sourced.Reserve.Source = resources.MustParse("cpus:1").Resources()
		named := reserve("", reservedFor("eng", "cpus:1")...)
		for want, op := range map[string]*mesosv1.Offer_Operation{
			"does not contain":                       reserve("x", reservedFor("eng", "cpus:400")...),
			"can only reserve resources":             reserve("x", reservedFor("ops", "cpus:1")...),
			"is not dynamically reserved":            reserve("x", resources.MustParse("cpus:1").Resources()...),
			"names no resources":                     reserve("x"),
			"Invalid resources":                      unreserve("x", &mesosv1.Resource{Name: ptr("cpus")}),
			"destroy the persistent volume first":    unreserve("x", volumeOf("eng", "v1", 50)),
			"is in use by role":                      create("x", volumeOf("eng", "v1", 10)),
			"'host_path' to be unset":                create("x", hosted),
			"mode RW":                                create("x", readOnly),
			"SHARED_RESOURCES":                       create("x", sharedVolumeOf("eng", "v2", 10)),
			"is not a persistent volume":             destroy("x", reservedFor("eng", "disk:10")...),
			"does not contain disk":                  destroy("x", volumeOf("eng", "v7", 10)),
			"not more of what the volume is made of": grow("x", volumeOf("eng", "v1", 50), reservedFor("eng", "cpus:1")[0]),
			"below the volume's size":                shrink("x", volumeOf("eng", "v1", 50), 50),
			"allocated to role":                      reserve("x", foreign),
			"'source' is for operators":              sourced,
			"not supported":                          {Type: mesosv1.Offer_Operation_CREATE_DISK.Enum(), Id: operationID("x")},
			"Operation ID is invalid":                reserve("a/b", named.Reserve.Resources...),
		} {
			before := a.has()
			offer := s.next()
			if len(offer) == 0 {
				t.Fatalf("%s: no offer", want)
			}
			events := s.accept(offer, &mesosv1.Filters{RefuseSeconds: ptr(0.0)}, op)
			got := one(t, want, statuses(events))
			if got.GetState() != mesosv1.OperationState_OPERATION_ERROR || !strings.Contains(got.GetMessage(), want) || got.Uuid != nil {
				t.Errorf("%s = %v, want OPERATION_ERROR with %q and no uuid", op.GetType(), got, want)
			}
			if !a.has().Equal(before) {
				t.Errorf("%s: the agent has %s, had %s", want, a.has(), before)
			}
		}
	})
}

func TestPrincipalsOfReservationsAndVolumesAreTheCallers(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024;disk:1000")
		info := frameworkInfo("eng")
		info.Principal = ptr("alice")
		s, events := c.framework(info)
		missing := reservedFor("eng", "disk:10")[0]
		other := reservedFor("eng", "disk:10")[0]
		other.Reservations[0].Principal = ptr("bob")
		right := reservedFor("eng", "disk:10")[0]
		right.Reservations[0].Principal = ptr("alice")
		anonymous := volumeOf("eng", "v", 10)
		anonymous.Reservations[0].Principal = ptr("alice")
		events = s.accept(offers(events), nil, reserve("1", missing), reserve("2", other), reserve("3", right), create("4", anonymous))
		want := map[string]mesosv1.OperationState{
			"1": mesosv1.OperationState_OPERATION_ERROR, "2": mesosv1.OperationState_OPERATION_ERROR,
			"3": mesosv1.OperationState_OPERATION_FINISHED, "4": mesosv1.OperationState_OPERATION_ERROR,
		}
		got := statuses(events)
		if len(got) != len(want) {
			t.Fatalf("statuses = %v, want four", got)
		}
		for _, u := range got {
			if u.GetState() != want[u.GetOperationId().GetValue()] {
				t.Errorf("status = %v, want %s", u, want[u.GetOperationId().GetValue()])
			}
		}
	})
}

// denier allows all but some actions.
type denier map[string]bool

func (d denier) Approve(_ context.Context, _, action string, object ...string) error {
	if d[action] || len(object) > 0 && d[action+" "+object[0]] {
		return errors.New("denied")
	}
	return nil
}

func TestOperationsNeedPermission(t *testing.T) {
	deny := denier{"RESERVE_RESOURCES eng": true, "CREATE_VOLUME ops": true}
	inBubble(t, Config{}, Deps{Approvers: deny}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024;disk:1000")
		s, events := c.framework(frameworkInfo("eng"))
		got := one(t, "statuses", statuses(s.accept(offers(events), nil, reserve("x", reservedFor("eng", "cpus:1")...))))
		if got.GetState() != mesosv1.OperationState_OPERATION_ERROR || !strings.Contains(got.GetMessage(), "Not authorized to RESERVE_RESOURCES 'eng'") {
			t.Errorf("status = %v, want an error that names the permission", got)
		}
		_, err := c.m.OperatorCall(context.Background(), "", &masterv1.Call{Type: masterv1.Call_RESERVE_RESOURCES.Enum(),
			ReserveResources: &masterv1.Call_ReserveResources{AgentId: a.info.Id, Resources: reservedFor("eng", "cpus:1")}})
		if statusOf(err) != 403 {
			t.Errorf("RESERVE_RESOURCES = %v, want a 403", err)
		}
	})
}

func TestVolumesAreResizedAndNothingInTheSameCallUsesThem(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024;disk:1000")
		s, events := c.framework(frameworkInfo("eng"))
		s.accept(offers(events), nil, reserve("", reservedFor("eng", "disk:100")[0]), create("", volumeOf("eng", "v", 50)))
		if got := a.waiting(); got != 0 {
			t.Errorf("%d operations without id wait, want the master to acknowledge them", got)
		}
		o := s.next()
		bigger := volumeOf("eng", "v", 70)
		events = s.accept(o, nil, grow("g", volumeOf("eng", "v", 50), reservedFor("eng", "disk:20")[0]), launch(volumeTask("t", o[0], bigger)))
		if u := one(t, "statuses", statuses(events)); u.GetState() != mesosv1.OperationState_OPERATION_FINISHED {
			t.Errorf("GROW_VOLUME = %v", u)
		}
		if u := one(t, "updates", updates(events)); u.GetState() != mesosv1.TaskState_TASK_ERROR {
			t.Errorf("task on a volume that grew in the same call = %v, want TASK_ERROR", u)
		}
		o = s.next()
		events = s.accept(o, nil, shrink("s", bigger, 40))
		if u := one(t, "statuses", statuses(events)); u.GetState() != mesosv1.OperationState_OPERATION_FINISHED {
			t.Errorf("SHRINK_VOLUME = %v", u)
		}
		if !a.has().Contains(resources.New(volumeOf("eng", "v", 30), reservedFor("eng", "disk:70")[0])) {
			t.Errorf("agent has %s, want a volume of 30 and 70 beside it", a.has())
		}
	})
}

func TestSharedVolumesServeSeveralTasksAndAreNotDestroyedWhileUsed(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024;disk:1000")
		info := frameworkInfo("eng")
		info.Capabilities = append(info.Capabilities, &mesosv1.FrameworkInfo_Capability{Type: mesosv1.FrameworkInfo_Capability_SHARED_RESOURCES.Enum()})
		s, events := c.framework(info)
		o := one(t, "offers", offers(events))
		v := sharedVolumeOf("eng", "v", 10)
		events = s.accept([]*mesosv1.Offer{o}, nil, reserve("", reservedFor("eng", "disk:10")[0]), create("", v),
			launch(volumeTask("t1", o, v), volumeTask("t2", o, v)))
		if got := updates(events); len(got) != 2 || got[0].GetState() != mesosv1.TaskState_TASK_RUNNING || got[1].GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Fatalf("updates = %v, want both running", got)
		}
		try := func() *mesosv1.OperationStatus {
			t.Helper()
			return one(t, "statuses", statuses(s.accept(s.next(), nil, destroy("d", v))))
		}
		if u := try(); u.GetState() != mesosv1.OperationState_OPERATION_ERROR || !strings.Contains(u.GetMessage(), "in use") {
			t.Errorf("DESTROY of a used shared volume = %v, want an error", u)
		}
		for _, id := range []string{"t1", "t2"} {
			a.set(s, id, mesosv1.TaskState_TASK_FINISHED)
		}
		u := one(t, "statuses", statuses(s.accept(s.next(), nil, destroy("d", v))))
		if u.GetState() != mesosv1.OperationState_OPERATION_FINISHED || a.has().Contains(resources.New(v)) {
			t.Errorf("DESTROY = %v; the agent has %s", u, a.has())
		}
	})
}

func TestUnacknowledgedOperationsSurviveTheFrameworksAndTheMastersAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := registry.NewMemory()
		v := volumeOf("eng", "v", 10)
		c := startCluster(t, Config{}, Deps{Registry: store})
		a := c.agent("cpus:4;mem:1024;disk:1000")
		s, events := c.framework(frameworkInfo("eng"))
		id := s.id
		got := statuses(s.accept(offers(events), nil, reserve("", reservedFor("eng", "disk:10")[0]), create("op", v)))
		uuid := string(one(t, "statuses", got).GetUuid().GetValue())
		s.stream.Close()
		c.settle()
		again := statuses(s.subscribe())
		if string(one(t, "statuses after resubscription", again).GetUuid().GetValue()) != uuid {
			t.Errorf("status after resubscription = %v, want the same again", again)
		}
		c.stop()

		c = startCluster(t, Config{ID: "N"}, Deps{Registry: store})
		defer c.stop()
		info := frameworkInfo("eng")
		info.Id = &mesosv1.FrameworkID{Value: &id}
		s = &scheduler{c: c, info: info}
		s.subscribe()
		reconcile := func(agent string, ids ...string) []*mesosv1.OperationStatus {
			call := &schedulerv1.Call_ReconcileOperations{}
			for _, x := range ids {
				op := &schedulerv1.Call_ReconcileOperations_Operation{OperationId: operationID(x)}
				if agent != "" {
					op.AgentId = &mesosv1.AgentID{Value: &agent}
				}
				call.Operations = append(call.Operations, op)
			}
			return statuses(s.call(&schedulerv1.Call{Type: schedulerv1.Call_RECONCILE_OPERATIONS.Enum(), ReconcileOperations: call}))
		}
		if u := one(t, "statuses", reconcile(a.info.GetId().GetValue(), "op")); u.GetState() != mesosv1.OperationState_OPERATION_RECOVERING {
			t.Errorf("before the agent is back = %v, want OPERATION_RECOVERING", u)
		}
		b := &fakeAgent{c: c, info: a.info, tasks: a.tasks, executors: a.executors, frameworks: a.frameworks, total: a.total, operations: a.operations}
		c.agents = append(c.agents, b)
		b.connect()
		c.settle()
		b.mu.Lock()
		for _, op := range b.operations { // which an agent does at registration
			b.tellOperation(op)
		}
		b.mu.Unlock()
		c.settle()
		u := one(t, "statuses from the new master", statuses(s.stream.take()))
		if string(u.GetUuid().GetValue()) != uuid || u.GetState() != mesosv1.OperationState_OPERATION_FINISHED {
			t.Errorf("status from the new master = %v, want the one that was not acknowledged", u)
		}
		for _, ids := range [][]string{nil, {"op"}} {
			if u := one(t, "reconciled", reconcile("", ids...)); u.GetState() != mesosv1.OperationState_OPERATION_FINISHED || u.Uuid != nil {
				t.Errorf("RECONCILE_OPERATIONS(%v) = %v, want it finished, without uuid", ids, u)
			}
		}
		if u := one(t, "reconciled", reconcile(b.info.GetId().GetValue(), "none")); u.GetState() != mesosv1.OperationState_OPERATION_UNKNOWN {
			t.Errorf("unknown operation = %v", u)
		}
		s.ackOperation(u)
		if b.waiting() != 0 || len(reconcile("")) != 0 {
			t.Errorf("after its acknowledgement the operation is still known")
		}
		agent := one(t, "agents", c.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetAgents())
		if !resources.New(agent.GetTotalResources()...).Contains(resources.New(resources.ToEndpoint([]*mesosv1.Resource{v})...)) {
			t.Errorf("the new master shows %v, want the volume", agent.GetTotalResources())
		}
	})
}

func TestAnOperationThatDidNotReachTheAgentIsDropped(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024;disk:1000")
		s, events := c.framework(frameworkInfo("eng"))
		a.mu.Lock()
		a.onReceive = func(m *clusterv1.ToAgent) bool { return m.GetApplyOperation() != nil } // lost on the way
		a.mu.Unlock()
		s.accept(offers(events), nil, reserve("op", reservedFor("eng", "cpus:1")...))
		a.disconnect()
		a.mu.Lock()
		a.onReceive = nil
		a.mu.Unlock()
		a.connect()
		c.settle()
		u := one(t, "statuses", statuses(s.stream.take()))
		if u.GetState() != mesosv1.OperationState_OPERATION_DROPPED || u.Uuid != nil {
			t.Errorf("status = %v, want OPERATION_DROPPED without uuid", u)
		}
		agent := one(t, "agents", c.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetAgents())
		if !resources.New(agent.GetTotalResources()...).Reserved().Empty() {
			t.Errorf("agent = %v, want nothing reserved", agent.GetTotalResources())
		}
	})
}

func TestOperationsOfAnAgentThatIsLostAreUnreachableOrGone(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024;disk:1000")
		s, events := c.framework(frameworkInfo("eng"))
		s.accept(offers(events), nil, reserve("op", reservedFor("eng", "cpus:1")...))
		a.mu.Lock()
		a.silent = true
		a.mu.Unlock()
		c.pass(2 * time.Minute)
		u := one(t, "statuses", statuses(s.stream.take()))
		if u.GetState() != mesosv1.OperationState_OPERATION_UNREACHABLE {
			t.Errorf("status = %v, want OPERATION_UNREACHABLE", u)
		}
		if _, err := c.m.OperatorCall(context.Background(), "", &masterv1.Call{Type: masterv1.Call_MARK_AGENT_GONE.Enum(),
			MarkAgentGone: &masterv1.Call_MarkAgentGone{AgentId: a.info.Id}}); err != nil {
			t.Fatalf("MARK_AGENT_GONE: %v", err)
		}
		got := statuses(s.call(&schedulerv1.Call{Type: schedulerv1.Call_RECONCILE_OPERATIONS.Enum(),
			ReconcileOperations: &schedulerv1.Call_ReconcileOperations{Operations: []*schedulerv1.Call_ReconcileOperations_Operation{
				{OperationId: operationID("op"), AgentId: a.info.Id}}}}))
		if u := one(t, "reconciled", got); u.GetState() != mesosv1.OperationState_OPERATION_GONE_BY_OPERATOR {
			t.Errorf("reconciled = %v, want OPERATION_GONE_BY_OPERATOR", u)
		}
	})
}

func TestReportsThatCrossAnOperationDoNotUndoIt(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024;disk:1000")
		s, events := c.framework(frameworkInfo("eng"))
		a.mu.Lock()
		a.onReceive = func(m *clusterv1.ToAgent) bool { return m.GetApplyOperation() != nil }
		a.mu.Unlock()
		s.accept(offers(events), nil, reserve("op", reservedFor("eng", "cpus:1")...))
		a.say(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_ResourcesChanged{
			ResourcesChanged: &clusterv1.ResourcesChanged{TotalResources: a.has().Resources()}}})
		agent := one(t, "agents", c.get(masterv1.Call_GET_AGENTS).GetGetAgents().GetAgents())
		if got := resources.New(agent.GetTotalResources()...).Reserved().Scalar("cpus"); got != 1 {
			t.Errorf("reserved after a report from before the operation: %v cpus, want 1", got)
		}
	})
}
