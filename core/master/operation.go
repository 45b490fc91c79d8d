package master

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// Operations on agents' resources. The master counts with the result at once, so that what comes later in the same
// ACCEPT can use it; the agent writes it down and says so. Nothing of it is in the registry: agents know their
// reservations, volumes and unacknowledged operations, and say so when they register.

// orphanTimeout is how long the end of an operation waits for its framework to return. Mesos's.
const orphanTimeout = 10 * time.Minute

// operation is one that an agent was told of, until its end is acknowledged.
type operation struct {
	proto *mesosv1.Operation // immutable: a change replaces it
	agent *agent
	// orphaned is when its end first came without a framework to be told.
	orphaned time.Time
	sequence uint64 // in the order in which they were begun
	slot     int    // in the view
}

// operationKey names an operation as its framework does.
type operationKey struct{ framework, id string }

func (o *operation) uuid() string { return string(o.proto.GetUuid().GetValue()) }

func (o *operation) key() operationKey {
	return operationKey{o.proto.GetFrameworkId().GetValue(), o.proto.GetInfo().GetId().GetValue()}
}

func operationEnded(s mesosv1.OperationState) bool {
	switch s {
	case mesosv1.OperationState_OPERATION_FINISHED, mesosv1.OperationState_OPERATION_FAILED,
		mesosv1.OperationState_OPERATION_ERROR, mesosv1.OperationState_OPERATION_DROPPED,
		mesosv1.OperationState_OPERATION_GONE_BY_OPERATOR:
		return true
	}
	return false
}

// addOperation begins to know an operation.
func (s *state) addOperation(a *agent, proto *mesosv1.Operation) *operation {
	s.nextOperation++
	o := &operation{proto: proto, agent: a, sequence: s.nextOperation}
	if a.operations == nil {
		a.operations = make(map[string]*operation)
	}
	a.operations[o.uuid()] = o
	if proto.GetInfo().GetId() != nil {
		s.operations[o.key()] = o
	}
	o.slot = s.views.operations.add(proto)
	return o
}

// removeOperation forgets one.
func (s *state) removeOperation(o *operation) {
	delete(o.agent.operations, o.uuid())
	if s.operations[o.key()] == o {
		delete(s.operations, o.key())
	}
	s.views.operations.remove(o.slot)
}

func sortedOperations(a *agent) []*operation {
	out := make([]*operation, 0, len(a.operations))
	for _, id := range sortedKeys(a.operations) {
		out = append(out, a.operations[id])
	}
	return out
}

// begin has an agent carry out an operation after which it has total. f is nil for an operator's.
func (s *state) begin(a *agent, f *framework, op *mesosv1.Offer_Operation, total resources.Set) error {
	id, err := newUUID(s.cfg.Rand)
	if err != nil {
		return err
	}
	raw, err := uuid.Parse(id)
	if err != nil {
		return fmt.Errorf("make a uuid: %w", err)
	}
	status := &mesosv1.OperationStatus{
		OperationId: op.Id,
		State:       mesosv1.OperationState_OPERATION_PENDING.Enum(),
		AgentId:     a.info.Id,
	}
	proto := &mesosv1.Operation{
		AgentId:      a.info.Id,
		Info:         op,
		LatestStatus: status,
		Uuid:         &mesosv1.UUID{Value: raw[:]},
	}
	apply := &clusterv1.ApplyOperation{Operation: op, OperationUuid: raw[:], TotalAfter: total.Resources()}
	if f != nil {
		proto.FrameworkId = f.info.Id
		apply.FrameworkId = f.id
	}
	s.addOperation(a, proto)
	a.total = total
	s.showAgent(a)
	s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_ApplyOperation{ApplyOperation: apply}})
	return nil
}

// operate carries out one operation of an ACCEPT on what is left of the offers, or says why not.
func (s *state) operate(x *acceptance, op *mesosv1.Offer_Operation, now time.Time) {
	f, a := x.framework, x.agent
	if err := s.tryOperate(x, op, now); err != nil {
		s.failOperation(f, op, a, mesosv1.OperationState_OPERATION_ERROR, err.Error())
	}
}

func (s *state) tryOperate(x *acceptance, op *mesosv1.Offer_Operation, now time.Time) error {
	f, a := x.framework, x.agent
	if op.Id != nil {
		if err := validateID(op.GetId().GetValue()); err != nil {
			return fmt.Errorf("Operation ID is invalid: %w", err)
		}
		if s.operations[operationKey{f.id, op.GetId().GetValue()}] != nil {
			return fmt.Errorf("Operation ID '%s' is already in use", op.GetId().GetValue())
		}
		if !a.can(mesosv1.AgentInfo_Capability_AGENT_OPERATION_FEEDBACK) {
			return errors.New("Operation on agent default resources cannot have an id: the agent gives no feedback")
		}
	}
	if len(op.GetReserve().GetSource()) > 0 {
		return errors.New("'source' is for operators only")
	}
	if err := checkOperation(op, a, f, f.info.GetPrincipal()); err != nil {
		return err
	}
	if err := x.mayOperate(op); err != nil {
		return err
	}
	op, err := allocatedOperation(op, x.role)
	if err != nil {
		return err
	}
	conversions, err := resources.Conversions(op)
	if err != nil {
		return err
	}
	remaining, total := x.remaining, a.total
	var consumed, converted resources.Set
	for _, c := range conversions {
		if op.GetType() == mesosv1.Offer_Operation_DESTROY {
			if s.volumeInUse(a, c.Consumed) {
				return fmt.Errorf("Persistent volumes in use: %s", c.Consumed)
			}
		}
		if remaining, err = remaining.Apply(c); err != nil {
			return err
		}
		for shared := c.Consumed.Shared(); !shared.Empty() && remaining.Contains(shared); {
			remaining = remaining.Subtract(shared) // further copies of what is destroyed
		}
		if total, err = total.Apply(unallocatedConversion(c)); err != nil {
			return err
		}
		consumed, converted = consumed.Add(c.Consumed), converted.Add(c.Converted)
	}
	if shared := consumed.Shared(); op.GetType() == mesosv1.Offer_Operation_DESTROY && !shared.Empty() {
		s.rescindShared(a, shared.Unallocate(), now)
	}
	if err := s.allocator.UpdateAllocation(f.id, a.id, x.remaining, remaining); err != nil {
		return err
	}
	if err := s.begin(a, f, op, total); err != nil {
		return err
	}
	x.remaining = remaining
	x.converted = x.converted.Subtract(consumed).Add(converted)
	switch op.GetType() {
	case mesosv1.Offer_Operation_CREATE:
		x.shared = x.shared.Add(converted.Shared())
	case mesosv1.Offer_Operation_DESTROY:
		x.shared = x.shared.Subtract(consumed.Shared())
	case mesosv1.Offer_Operation_GROW_VOLUME, mesosv1.Offer_Operation_SHRINK_VOLUME:
		// As in Mesos, nothing in the same ACCEPT uses what was resized.
		x.remaining, x.held = remaining.Subtract(converted), x.held.Add(converted)
	}
	return nil
}

// settle gives back what an ACCEPT left. What operations made is offered again at once, however long the framework
// does not want the rest. A framework that took something and refuses the rest for no time is next in line as anybody
// else, while one that refuses all there is for no time waits for a moment.
func (s *state) settle(x *acceptance, filters *mesosv1.Filters, now time.Time) {
	back := x.remaining.Add(x.held)
	rest := back.Subtract(x.converted)
	made := back.Subtract(rest)
	s.allocator.RecoverResources(x.framework.id, x.agent.id, made, nil, now)
	refusal := filtersOf(filters)
	if refusal.RefuseSeconds != nil && refusal.GetRefuseSeconds() == 0 && !x.offered.Subtract(rest).Empty() {
		s.allocator.RecoverResources(x.framework.id, x.agent.id, rest, nil, now)
		rest = resources.Set{}
	}
	// With nothing left too: the allocator learns what the framework makes of its offers.
	s.allocator.RecoverResources(x.framework.id, x.agent.id, rest, refusal, now)
	if !back.Empty() {
		s.allocateBy(now)
	}
}

// copyShared lets several tasks of one ACCEPT use a shared volume that the offers held once.
func (s *state) copyShared(x *acceptance, need resources.Set) {
	for _, v := range need.Shared().Resources() {
		one := resources.New(v)
		if !x.shared.Contains(one) || x.remaining.Contains(one) {
			continue
		}
		more := x.remaining.Add(one)
		if err := s.allocator.UpdateAllocation(x.framework.id, x.agent.id, x.remaining, more); err == nil {
			x.remaining = more
		}
	}
}

// volumeInUse says whether a task or executor has one of the volumes in set. Those that are not shared nobody else
// can have been offered meanwhile.
func (s *state) volumeInUse(a *agent, set resources.Set) bool {
	for _, v := range set.PersistentVolumes().Unallocate().Resources() {
		one := resources.New(v)
		for t := range a.tasks {
			if !t.released && t.resources.Unallocate().Contains(one) {
				return true
			}
		}
		for _, e := range a.executors {
			if e.resources.Unallocate().Contains(one) {
				return true
			}
		}
	}
	return false
}

// rescindShared takes back the offers that hold one of the shared volumes in set.
func (s *state) rescindShared(a *agent, set resources.Set, now time.Time) {
	for _, o := range sortedOffers(a.offers) {
		for _, v := range set.Resources() {
			if o.resources.Unallocate().Contains(resources.New(v)) {
				s.rescind(o, nil, now)
				break
			}
		}
	}
}

// operationUpdate takes the state of an operation from its agent and passes it on. Where nobody waits for it, the
// master acknowledges it itself.
func (s *state) operationUpdate(a *agent, u *clusterv1.OperationUpdate, now time.Time) {
	status := u.GetStatus()
	if status == nil || len(u.GetOperationUuid()) == 0 {
		s.metrics.invalidOperations.Add(1)
		return
	}
	s.metrics.validOperations.Add(1)
	o := a.operations[string(u.GetOperationUuid())]
	if o == nil { // its acknowledgement was lost
		s.tell(a, acknowledgement(u.GetOperationUuid(), status))
		return
	}
	if !bytes.Equal(o.proto.GetLatestStatus().GetUuid().GetValue(), status.GetUuid().GetValue()) {
		s.setOperation(o, status)
	}
	id := o.key().framework
	f := s.frameworks[id]
	switch {
	case o.proto.GetInfo().GetId() == nil || f == nil && s.completedIDs[id]:
		s.endOperation(o)
	case f != nil:
		o.orphaned = time.Time{}
		s.sendOperationStatus(f, status)
	case o.orphaned.IsZero():
		o.orphaned = now
	case now.Sub(o.orphaned) >= orphanTimeout:
		s.log.Info("operation without framework", "framework", id, "operation", o.key().id)
		s.endOperation(o)
	}
}

// setOperation notes the newest status of an operation.
func (s *state) setOperation(o *operation, status *mesosv1.OperationStatus) {
	p := o.proto
	if p.GetLatestStatus().GetState() != status.GetState() {
		s.metrics.operation(p.GetInfo().GetType(), status.GetState())
	}
	o.proto = &mesosv1.Operation{
		FrameworkId: p.FrameworkId, AgentId: p.AgentId, Info: p.Info, Uuid: p.Uuid,
		LatestStatus: status, Statuses: append(p.Statuses[:len(p.Statuses):len(p.Statuses)], status),
	}
	s.views.operations.set(o.slot, o.proto)
}

func acknowledgement(operation []byte, status *mesosv1.OperationStatus) *clusterv1.ToAgent {
	return &clusterv1.ToAgent{Message: &clusterv1.ToAgent_AcknowledgeOperation{AcknowledgeOperation: &clusterv1.AcknowledgeOperation{
		OperationUuid: operation, StatusUuid: status.GetUuid().GetValue()}}}
}

// endOperation acknowledges the newest status of an operation, and forgets the operation when it has ended.
func (s *state) endOperation(o *operation) {
	s.tell(o.agent, acknowledgement(o.proto.GetUuid().GetValue(), o.proto.GetLatestStatus()))
	if operationEnded(o.proto.GetLatestStatus().GetState()) {
		s.removeOperation(o)
	}
}

// acknowledgeOperation takes a framework's acknowledgement.
func (s *state) acknowledgeOperation(f *framework, call *schedulerv1.Call_AcknowledgeOperationStatus) {
	o := s.operations[operationKey{f.id, call.GetOperationId().GetValue()}]
	if o == nil || !bytes.Equal(o.proto.GetLatestStatus().GetUuid().GetValue(), call.GetUuid()) {
		s.metrics.invalidOperationAcks.Add(1)
		s.log.Debug("acknowledgement of an operation that does not wait for one", "framework", f.id, "operation", call.GetOperationId().GetValue())
		return
	}
	s.metrics.validOperationAcks.Add(1)
	s.endOperation(o)
}

// sendUnacknowledged repeats to a framework that has come back what it has not acknowledged of its operations.
func (s *state) sendUnacknowledged(f *framework) {
	for _, o := range s.operationsOf(f) {
		if o.proto.GetLatestStatus().GetUuid() != nil {
			s.sendOperationStatus(f, o.proto.LatestStatus)
		}
	}
}

// operationsOf returns the operations of a framework that have ids, by id.
func (s *state) operationsOf(f *framework) []*operation {
	var out []*operation
	for k, o := range s.operations {
		if k.framework == f.id {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(x, y *operation) int { return compareIDs(x.key().id, y.key().id) })
	return out
}

// readdOperations takes over the operations that an agent names. Those that it does not name and that were under way
// never reached it.
func (s *state) readdOperations(a *agent, named []*mesosv1.Operation) {
	seen := make(map[string]bool, len(named))
	for _, p := range named {
		id := string(p.GetUuid().GetValue())
		if len(id) != 16 || p.GetInfo() == nil || p.GetLatestStatus() == nil {
			continue
		}
		seen[id] = true
		if o := a.operations[id]; o != nil {
			s.setOperation(o, p.LatestStatus)
			continue
		}
		if k := (operationKey{p.GetFrameworkId().GetValue(), p.GetInfo().GetId().GetValue()}); k.id != "" && s.operations[k] != nil {
			continue // the same id on two agents: the first keeps it
		}
		s.addOperation(a, p)
	}
	for _, o := range sortedOperations(a) {
		if seen[o.uuid()] {
			continue
		}
		if !operationEnded(o.proto.GetLatestStatus().GetState()) {
			s.reportOperation(o, mesosv1.OperationState_OPERATION_DROPPED, "Operation did not reach the agent")
		}
		s.removeOperation(o)
	}
}

// endOperations forgets the operations of an agent that is given up, and says what became of them.
func (s *state) endOperations(a *agent, state mesosv1.OperationState, message string) {
	for _, o := range sortedOperations(a) {
		s.reportOperation(o, state, message)
		s.removeOperation(o)
	}
}

// withPending is what an agent that reports total will have when it has carried out what it has not answered yet:
// its report and the master's operations have crossed.
func (s *state) withPending(a *agent, total resources.Set) resources.Set {
	var pending []*operation
	for _, o := range a.operations {
		if o.proto.GetLatestStatus().GetState() == mesosv1.OperationState_OPERATION_PENDING {
			pending = append(pending, o)
		}
	}
	slices.SortFunc(pending, func(x, y *operation) int { return cmp.Compare(x.sequence, y.sequence) })
	for _, o := range pending {
		if next, err := total.ApplyOperation(unallocatedOperation(o.proto.Info)); err == nil {
			total = next
		} // else the agent will refuse it
	}
	return total
}

// reportOperation tells the framework of an operation what the master makes of it. Without a uuid: there is nothing to
// acknowledge.
func (s *state) reportOperation(o *operation, state mesosv1.OperationState, message string) {
	if !operationEnded(o.proto.GetLatestStatus().GetState()) {
		s.metrics.operation(o.proto.GetInfo().GetType(), state)
	}
	if f := s.frameworks[o.key().framework]; f != nil && o.proto.GetInfo().GetId() != nil {
		s.sendOperationStatus(f, &mesosv1.OperationStatus{
			OperationId: o.proto.Info.Id, State: state.Enum(), Message: &message, AgentId: o.agent.info.Id,
		})
	}
}

// reconcileOperations tells a framework the state of the operations that it names, or of all when it names none.
func (s *state) reconcileOperations(f *framework, call *schedulerv1.Call_ReconcileOperations) {
	if len(call.GetOperations()) == 0 {
		for _, o := range s.operationsOf(f) {
			s.sendOperationStatus(f, reconciled(o))
		}
		return
	}
	for _, op := range call.GetOperations() {
		if o := s.operations[operationKey{f.id, op.GetOperationId().GetValue()}]; o != nil {
			s.sendOperationStatus(f, reconciled(o))
			continue
		}
		agent := op.GetAgentId().GetValue()
		state := mesosv1.OperationState_OPERATION_UNKNOWN
		message := "Reconciliation: Operation is unknown"
		switch {
		case s.recovered[agent] != nil:
			state, message = mesosv1.OperationState_OPERATION_RECOVERING, "Reconciliation: Agent is recovered but has not re-registered"
		case !s.unreachable[agent].Since.IsZero():
			state, message = mesosv1.OperationState_OPERATION_UNREACHABLE, "Reconciliation: Agent is unreachable"
		case !s.gone[agent].IsZero():
			state, message = mesosv1.OperationState_OPERATION_GONE_BY_OPERATOR, "Reconciliation: Agent marked gone by operator"
		}
		s.sendOperationStatus(f, &mesosv1.OperationStatus{
			OperationId:        op.OperationId,
			State:              state.Enum(),
			Message:            &message,
			AgentId:            op.AgentId,
			ResourceProviderId: op.ResourceProviderId,
		})
	}
}

// reconciled is the newest status of an operation, as an answer that is not acknowledged.
func reconciled(o *operation) *mesosv1.OperationStatus {
	status := o.proto.GetLatestStatus().CloneVT()
	status.Uuid = nil
	return status
}
