package master

import (
	"context"
	"errors"
	"fmt"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// approveAccept asks once for each user that the tasks of an ACCEPT are to run as, and for what its other
// operations need, and returns why not, nil for yes, by user or permission. The map is nil when nobody needs to be
// asked.
func (m *Master) approveAccept(ctx context.Context, call *schedulerv1.Call) map[string]error {
	if m.deps.Approvers == nil {
		return nil
	}
	denied := make(map[string]error)
	f := m.view.Load().framework(call.GetFrameworkId().GetValue())
	if f == nil {
		return denied // whom nobody was asked about may run nothing
	}
	// The framework's principal decides, which checkCaller holds against the caller's.
	principal := f.info.GetPrincipal()
	ask := func(user string) {
		if _, asked := denied[user]; !asked {
			denied[user] = m.approve(ctx, principal, "RUN_TASK", user)
		}
	}
	for _, op := range call.GetAccept().GetOperations() {
		for _, p := range permissionsFor(op) {
			if _, asked := denied[p.key()]; !asked {
				denied[p.key()] = m.approve(ctx, principal, p.action, p.object)
			}
		}
		for _, t := range op.GetLaunch().GetTaskInfos() {
			ask(userOf(t, t.GetExecutor(), f.info))
		}
		if g := op.GetLaunchGroup(); g != nil {
			for _, t := range g.GetTaskGroup().GetTasks() {
				ask(userOf(t, g.GetExecutor(), f.info))
			}
		}
	}
	return denied
}

// userOf is the user that a task runs as: its command's, its executor's, else the framework's.
func userOf(t *mesosv1.TaskInfo, e *mesosv1.ExecutorInfo, f *mesosv1.FrameworkInfo) string {
	switch {
	case t.GetCommand().GetUser() != "":
		return t.GetCommand().GetUser()
	case e.GetCommand().GetUser() != "":
		return e.GetCommand().GetUser()
	}
	return f.GetUser()
}

// acceptance is one ACCEPT while its operations are carried out in order.
type acceptance struct {
	framework *framework
	agent     *agent
	role      string
	offered   resources.Set // all that the offers held
	remaining resources.Set // of the offers, not yet used
	converted resources.Set // made by operations; what is left of it is offered again at once
	held      resources.Set // resized volumes, which nothing in the same call uses
	shared    resources.Set // shared volumes, of which tasks may have as many copies as they want
	denied    map[string]error
}

// mayRun says why tasks may not be run as a user.
func (x *acceptance) mayRun(user string) error {
	if x.denied == nil {
		return nil
	}
	err, asked := x.denied[user]
	if !asked {
		return errors.New("nobody was asked")
	}
	return err
}

// accept carries out operations on what the offers hold, in order, and gives the rest back with the
// call's filters.
func (s *state) accept(f *framework, call *schedulerv1.Call_Accept, denied map[string]error, now time.Time) {
	s.allocator.Answered(f.id, now)
	offers, err := s.chosenOffers(f, call.GetOfferIds())
	if err != nil {
		for _, o := range offers {
			s.dropOffer(o)
			s.allocator.RecoverResources(f.id, o.agent.id, o.resources, nil, now)
		}
		s.allocateBy(now)
		s.dropOperations(f, call.GetOperations(), err, now)
		return
	}
	x := &acceptance{framework: f, agent: offers[0].agent, role: offers[0].role, denied: denied}
	sets := make([]resources.Set, len(offers))
	for i, o := range offers {
		s.dropOffer(o)
		sets[i] = o.resources
	}
	x.remaining = resources.Sum(sets...)
	x.offered, x.shared = x.remaining, x.remaining.Shared()
	s.metrics.offersAccepted.Add(uint64(len(offers)))
	f.metrics.offersAccepted.Add(uint64(len(offers)))
	for _, op := range call.GetOperations() {
		f.metrics.operations.add(int32(op.GetType()))
		switch op.GetType() {
		case mesosv1.Offer_Operation_LAUNCH:
			for _, t := range op.GetLaunch().GetTaskInfos() {
				s.launch(x, t, op.Id, now)
			}
		case mesosv1.Offer_Operation_LAUNCH_GROUP:
			s.launchGroup(x, op.GetLaunchGroup(), op.Id, now)
		default:
			s.operate(x, op, now)
		}
	}
	s.settle(x, call.GetFilters(), now)
}

// chosenOffers returns the offers that an answer names.
//
// Errors: one is not outstanding, is not the framework's, is named twice, or they are not of one agent
// and role. The offers returned then are those that are the framework's: they are spent all the same.
func (s *state) chosenOffers(f *framework, ids []*mesosv1.OfferID) (offers []*offer, err error) {
	if len(ids) == 0 {
		return nil, errors.New("No offers specified")
	}
	seen := make(map[string]bool, len(ids))
	for _, id := range ids {
		id := id.GetValue()
		o := s.offers[id]
		switch {
		case seen[id]:
			err = errors.Join(err, fmt.Errorf("Duplicate offer %s in offer list", id))
			continue
		case o == nil:
			err = errors.Join(err, fmt.Errorf("Offer %s is no longer valid", id))
		case o.framework != f:
			err = errors.Join(err, fmt.Errorf("Offer %s is of framework %s, not of %s", id, o.framework.id, f.id))
		default:
			offers = append(offers, o)
		}
		seen[id] = true
	}
	for _, o := range offers {
		if o.agent != offers[0].agent || o.role != offers[0].role {
			err = errors.Join(err, fmt.Errorf("Offers %s and %s are not of the same agent and role", offers[0].id, o.id))
		}
	}
	return offers, err
}

// dropOperations answers operations on offers that do not stand.
func (s *state) dropOperations(f *framework, ops []*mesosv1.Offer_Operation, why error, now time.Time) {
	drop := func(t *mesosv1.TaskInfo) {
		s.failTask(f, t, f.lost(mesosv1.TaskState_TASK_DROPPED), mesosv1.TaskStatus_REASON_INVALID_OFFERS,
			"Task launched with invalid offers: "+why.Error(), now)
	}
	for _, op := range ops {
		switch op.GetType() {
		case mesosv1.Offer_Operation_LAUNCH:
			for _, t := range op.GetLaunch().GetTaskInfos() {
				drop(t)
			}
		case mesosv1.Offer_Operation_LAUNCH_GROUP:
			for _, t := range op.GetLaunchGroup().GetTaskGroup().GetTasks() {
				drop(t)
			}
		default:
			s.failOperation(f, op, nil, mesosv1.OperationState_OPERATION_ERROR, "Operation attempted with invalid offers: "+why.Error())
		}
	}
}

// failTask tells a framework about a task that never was.
func (s *state) failTask(f *framework, t *mesosv1.TaskInfo, state mesosv1.TaskState, reason mesosv1.TaskStatus_Reason, message string, now time.Time) {
	status := &mesosv1.TaskStatus{
		TaskId:    t.TaskId,
		AgentId:   t.AgentId,
		State:     state.Enum(),
		Source:    mesosv1.TaskStatus_SOURCE_MASTER.Enum(),
		Reason:    reason.Enum(),
		Message:   &message,
		Timestamp: ptr(seconds(now)),
	}
	if t.Executor != nil {
		status.ExecutorId = t.Executor.ExecutorId
	}
	s.countUpdate(f, status)
	s.sendUpdate(f, status)
}

// failOperation answers an operation that has an id; nobody can be told about one without.
func (s *state) failOperation(f *framework, op *mesosv1.Offer_Operation, a *agent, state mesosv1.OperationState, message string) {
	s.metrics.operation(op.GetType(), state)
	if op.Id == nil {
		s.log.Warn("operation not carried out", "framework", f.id, "type", op.GetType().String(), "reason", message)
		return
	}
	status := &mesosv1.OperationStatus{OperationId: op.Id, State: state.Enum(), Message: &message}
	if a != nil {
		status.AgentId = a.info.Id
	}
	s.sendOperationStatus(f, status)
}

func (s *state) sendOperationStatus(f *framework, status *mesosv1.OperationStatus) {
	if !f.can.refinement && len(status.GetConvertedResources()) > 0 {
		if old, err := resources.ToPreRefinement(status.ConvertedResources); err == nil {
			status = status.CloneVT()
			status.ConvertedResources = old
		}
	}
	s.send(f, &schedulerv1.Event{
		Type:                  schedulerv1.Event_UPDATE_OPERATION_STATUS.Enum(),
		UpdateOperationStatus: &schedulerv1.Event_UpdateOperationStatus{Status: status},
	})
}

// launch hands one task to the agent, or tells the framework why not.
func (s *state) launch(x *acceptance, t *mesosv1.TaskInfo, operation *mesosv1.OperationID, now time.Time) {
	f, a := x.framework, x.agent
	invalid := func(err error) {
		s.failTask(f, t, mesosv1.TaskState_TASK_ERROR, mesosv1.TaskStatus_REASON_TASK_INVALID, err.Error(), now)
	}
	if operation != nil {
		invalid(errors.New("Operation 'LAUNCH' does not support operation ids"))
		return
	}
	if err := validateTask(t, f, a); err != nil {
		invalid(err)
		return
	}
	if err := validateAlone(t); err != nil {
		invalid(err)
		return
	}
	if (t.Command == nil) == (t.Executor == nil) {
		invalid(errors.New("Task should have at least one (but not both) of CommandInfo or ExecutorInfo present"))
		return
	}
	if s.cfg.NoRootSubmissions && userOf(t, t.Executor, f.info) == "root" {
		invalid(errors.New("Tasks may not run as root"))
		return
	}
	set, err := allocated(t.Resources, x.role)
	if err != nil {
		invalid(fmt.Errorf("Task uses invalid resources: %w", err))
		return
	}
	need := set
	var e *executor
	if t.Executor != nil {
		if e, err = s.executorFor(x, t.Executor); err != nil {
			invalid(err)
			return
		}
		if !e.known {
			need = set.Add(e.resources)
		}
	}
	s.copyShared(x, need)
	if !x.remaining.Contains(need) {
		invalid(fmt.Errorf("Total resources %s required by task and its executor is more than available %s", need, x.remaining))
		return
	}
	user := userOf(t, t.Executor, f.info)
	if err := x.mayRun(user); err != nil {
		s.failTask(f, t, mesosv1.TaskState_TASK_ERROR, mesosv1.TaskStatus_REASON_TASK_UNAUTHORIZED,
			fmt.Sprintf("Not authorized to launch as user '%s': %v", user, err), now)
		return
	}

	x.remaining = x.remaining.Subtract(need)
	t.Resources = set.Resources()
	if e != nil {
		t.Executor = e.info
		s.addExecutor(e)
	}
	s.addTask(f, a, newTask(t, f.info.Id, user, t.Resources), set)
	s.metrics.launches.Add(1)
	s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_RunTask{
		RunTask: &clusterv1.RunTask{Framework: f.info, Task: t}}})
}

// launchGroup hands a task group to the agent, all of it or nothing.
func (s *state) launchGroup(x *acceptance, g *mesosv1.Offer_Operation_LaunchGroup, operation *mesosv1.OperationID, now time.Time) {
	f, a := x.framework, x.agent
	fail := func(reason mesosv1.TaskStatus_Reason, err error) {
		for _, t := range g.GetTaskGroup().GetTasks() {
			s.failTask(f, t, mesosv1.TaskState_TASK_ERROR, reason, err.Error(), now)
		}
	}
	invalid := func(err error) { fail(mesosv1.TaskStatus_REASON_TASK_GROUP_INVALID, err) }
	if operation != nil {
		invalid(errors.New("Operation 'LAUNCH_GROUP' does not support operation ids"))
		return
	}
	if err := validateGroup(g); err != nil {
		invalid(err)
		return
	}
	e, err := s.executorFor(x, g.GetExecutor())
	if err != nil {
		invalid(err)
		return
	}
	if err := validateGroupContainers(g, tasksOf(e)); err != nil {
		invalid(err)
		return
	}
	var need resources.Set
	if !e.known {
		need = e.resources
		if err := validateGroupExecutor(e.resources); err != nil {
			invalid(err)
			return
		}
	}
	tasks := g.GetTaskGroup().GetTasks()
	sets := make([]resources.Set, len(tasks))
	ids := make(map[string]bool, len(tasks))
	for i, t := range tasks {
		if err := validateTask(t, f, a); err != nil {
			invalid(fmt.Errorf("Task '%s' is invalid: %w", t.GetTaskId().GetValue(), err))
			return
		}
		if ids[t.GetTaskId().GetValue()] {
			invalid(fmt.Errorf("Task group has two tasks with the id '%s'", t.GetTaskId().GetValue()))
			return
		}
		ids[t.GetTaskId().GetValue()] = true
		if sets[i], err = allocated(t.Resources, x.role); err != nil {
			invalid(fmt.Errorf("Task '%s' uses invalid resources: %w", t.GetTaskId().GetValue(), err))
			return
		}
		need = need.Add(sets[i])
	}
	s.copyShared(x, need)
	if !x.remaining.Contains(need) {
		invalid(fmt.Errorf("Total resources %s required by task group and its executor are more than available %s", need, x.remaining))
		return
	}
	for _, t := range tasks {
		user := userOf(t, g.GetExecutor(), f.info)
		if err := x.mayRun(user); err != nil {
			fail(mesosv1.TaskStatus_REASON_TASK_GROUP_UNAUTHORIZED, fmt.Errorf("Not authorized to launch as user '%s': %w", user, err))
			return
		}
	}

	x.remaining = x.remaining.Subtract(need)
	s.addExecutor(e)
	for i, t := range tasks {
		t.Resources = sets[i].Resources()
		record := newTask(t, f.info.Id, userOf(t, e.info, f.info), t.Resources)
		record.ExecutorId = e.info.ExecutorId
		s.addTask(f, a, record, sets[i])
		s.metrics.launches.Add(1)
	}
	s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_RunTaskGroup{RunTaskGroup: &clusterv1.RunTaskGroup{
		Framework: f.info, Executor: e.info, TaskGroup: g.TaskGroup}}})
}

// allocated reads resources that a framework asks for in one role: what they are allocated to is
// filled in, and must be that role where it is given.
func allocated(rs []*mesosv1.Resource, role string) (resources.Set, error) {
	if err := resources.ValidateAll(rs); err != nil {
		return resources.Set{}, err
	}
	for _, r := range rs {
		if a := r.GetAllocationInfo(); a != nil && a.Role != nil && a.GetRole() != role {
			return resources.Set{}, fmt.Errorf("resource %q is allocated to role %q, want %q", r.GetName(), a.GetRole(), role)
		}
	}
	return resources.New(rs...).Allocate(role), nil
}
