package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// Operations on the agent's own resources: reservations and persistent volumes. The master counts with their result
// before the agent has heard of them. Here an operation and the total after it are written together; then the disk
// follows (operation_volume.go), and then the master is told, again and again until it acknowledges.
//
// One that cannot be carried out changes nothing. The master is told why, and what the agent really has.

var (
	bucketOperations = []byte("operations") // uuid -> mesos.v1.Operation
	keyResources     = []byte("resources")  // in bucketAgent: holdings
)

// operation is one that was decided and whose end the master has not acknowledged.
type operation struct {
	proto   *mesosv1.Operation // never changed
	durable bool
	retry   *timer
	backoff time.Duration
}

// holdings is what operations made of the configured resources.
type holdings struct {
	total resources.Set
	// announced is the total as the master was told it: with the operations whose end was sent, and no others.
	announced resources.Set
	version   uint64 // of total: the number of operations
	told      uint64 // the version of announced
	wipes     []wipe // volumes that were destroyed and whose folders are not known to be moved away
}

// announce notes that the master is told of total as it was at a version.
func (h *holdings) announce(total resources.Set, version uint64) {
	if version >= h.told {
		h.announced, h.told = total, version
	}
}

// applyOperation carries an operation out, once however often it comes.
func (a *Agent) applyOperation(m *clusterv1.ApplyOperation) {
	a.decide(func(c *change) {
		id := m.GetOperationUuid()
		if len(id) != 16 || m.GetOperation() == nil {
			a.log.Warn("ignored a malformed operation", "framework", m.GetFrameworkId())
			return
		}
		if o := a.operations[string(id)]; o != nil {
			a.sendOperation(o)
			return
		}
		op := unallocated(m.GetOperation())
		fresh := uuid.New()
		status := &mesosv1.OperationStatus{
			OperationId: op.Id,
			AgentId:     a.info.GetId(),
			Uuid:        &mesosv1.UUID{Value: fresh[:]},
		}
		next, converted, err := a.convert(op)
		if err == nil {
			status.State = mesosv1.OperationState_OPERATION_FINISHED.Enum()
			status.ConvertedResources = converted.Resources()
			a.holdings.total = next
			a.holdings.version++
			a.holdings.wipes = append(a.holdings.wipes, wipesOf(op, uuid.UUID(id).String())...)
			err = a.putHoldings(c)
			if err != nil {
				a.fail(err)
				return
			}
			c.then(a.settleVolumes)
		} else {
			a.log.Warn("operation not carried out", "framework", m.GetFrameworkId(), "type", op.GetType(), "error", err)
			status.State = mesosv1.OperationState_OPERATION_ERROR.Enum()
			status.Message = new(err.Error())
		}
		o := &operation{proto: &mesosv1.Operation{
			AgentId:      a.info.GetId(),
			Info:         op,
			LatestStatus: status,
			Statuses:     []*mesosv1.OperationStatus{status},
			Uuid:         &mesosv1.UUID{Value: id},
		}}
		if f := m.GetFrameworkId(); f != "" {
			o.proto.FrameworkId = &mesosv1.FrameworkID{Value: new(f)}
		}
		data, err := o.proto.MarshalVT()
		if err != nil {
			a.fail(fmt.Errorf("encode operation %x: %w", id, err))
			return
		}
		c.put(bucketOperations, id, data)
		a.operations[string(id)] = o
		total, version := a.holdings.total, a.holdings.version
		expected := resources.New(m.GetTotalAfter()...).NonRevocable()
		c.then(func() {
			o.durable = true
			a.holdings.announce(total, version)
			a.sendOperation(o)
			if len(m.GetTotalAfter()) > 0 && !expected.Equal(total) {
				a.sendTotal()
			}
		})
	})
}

// convert returns what the agent has after an operation, and what the operation makes.
//
// Errors: the operation is malformed, or not for an agent; what it needs is not there; a volume that it takes away or
// resizes is in use.
func (a *Agent) convert(op *mesosv1.Offer_Operation) (next, converted resources.Set, err error) {
	conversions, err := resources.Conversions(op)
	if err != nil {
		return next, converted, err
	}
	if len(conversions) == 0 {
		return next, converted, fmt.Errorf("%s is no operation on resources", op.GetType())
	}
	next = a.holdings.total
	for _, x := range conversions {
		switch op.GetType() {
		case mesosv1.Offer_Operation_DESTROY, mesosv1.Offer_Operation_GROW_VOLUME, mesosv1.Offer_Operation_SHRINK_VOLUME:
			for _, v := range x.Consumed.PersistentVolumes().Resources() {
				if user := a.userOf(v); user != "" {
					return next, converted, fmt.Errorf("persistent volume %q is in use by %s", v.GetDisk().GetPersistence().GetId(), user)
				}
			}
		case mesosv1.Offer_Operation_CREATE:
			for _, v := range x.Converted.PersistentVolumes().Resources() {
				if _, err := a.volumeDir(v); err != nil {
					return next, converted, err
				}
				if holds(next, v) {
					return next, converted, fmt.Errorf("persistence id %q exists already", v.GetDisk().GetPersistence().GetId())
				}
			}
		}
		if next, err = next.Apply(x); err != nil {
			return next, converted, err
		}
		converted = converted.Add(x.Converted)
	}
	return next, converted, nil
}

// holds tells whether a volume of that id and role is in s, of whatever size.
func holds(s resources.Set, v *mesosv1.Resource) bool {
	role := reservedTo(v)
	for _, e := range s.PersistentVolumes().Entries() {
		if e.Disk().GetPersistence().GetId() == v.GetDisk().GetPersistence().GetId() && e.ReservedTo() == role {
			return true
		}
	}
	return false
}

// reservedTo is the role that a resource is reserved to.
func reservedTo(r *mesosv1.Resource) string {
	for _, e := range resources.New(r).Entries() {
		return e.ReservedTo()
	}
	return ""
}

// userOf names a task or executor whose container uses a volume; "" if there is none.
func (a *Agent) userOf(v *mesosv1.Resource) string {
	for _, e := range a.containers {
		if e.phase == phaseTerminated {
			continue
		}
		used, _ := e.resources()
		if holds(resources.New(used...), v) {
			return fmt.Sprintf("executor %s of framework %s", e.id, e.framework.id)
		}
	}
	return ""
}

// unknownResources says which reservations and volumes of a task this agent does not have.
func (a *Agent) unknownResources(rs []*mesosv1.Resource) error {
	special := resources.New(rs...).Unallocate().Filter(func(e *resources.Entry) bool {
		return e.Persistent() || e.DynamicallyReserved()
	})
	if missing := special.Subtract(a.holdings.total); !missing.Empty() && !a.holdings.total.Contains(special) {
		return fmt.Errorf("the agent does not have %s", missing)
	}
	return nil
}

// unallocated returns an operation whose resources do not say whom they are allocated to, which is no business of
// the agent's total.
func unallocated(op *mesosv1.Offer_Operation) *mesosv1.Offer_Operation {
	op = op.CloneVT()
	lists := [][]*mesosv1.Resource{
		op.GetReserve().GetResources(), op.GetReserve().GetSource(), op.GetUnreserve().GetResources(),
		op.GetCreate().GetVolumes(), op.GetDestroy().GetVolumes(),
		{op.GetGrowVolume().GetVolume(), op.GetGrowVolume().GetAddition(), op.GetShrinkVolume().GetVolume()},
	}
	for _, list := range lists {
		for _, r := range list {
			if r != nil {
				r.AllocationInfo = nil
			}
		}
	}
	return op
}

// sendOperation tells the master how an operation ended, and again later. The caller holds the lock.
func (a *Agent) sendOperation(o *operation) {
	if !o.durable || a.master == nil {
		return
	}
	a.master.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_OperationUpdate{OperationUpdate: &clusterv1.OperationUpdate{
		FrameworkId:   o.proto.GetFrameworkId().GetValue(),
		Status:        o.proto.LatestStatus,
		LatestStatus:  o.proto.LatestStatus,
		OperationUuid: o.proto.GetUuid().GetValue(),
	}}})
	if o.proto.LatestStatus.GetState() != mesosv1.OperationState_OPERATION_FINISHED {
		a.sendTotal() // the master counted with another end
	}
	a.timers.stop(o.retry)
	if o.backoff == 0 {
		o.backoff = updateRetryMin
	}
	o.retry = a.timers.after(o.backoff, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.operations[string(o.proto.GetUuid().GetValue())] == o {
			o.backoff = min(2*o.backoff, updateRetryMax)
			a.sendOperation(o)
		}
	})
}

// sendOperations repeats all that wait, after a registration. The caller holds the lock.
func (a *Agent) sendOperations() {
	for _, o := range a.operations {
		o.backoff = 0
		a.sendOperation(o)
	}
}

// sendTotal tells the master what the agent has. The caller holds the lock, and there is a master.
func (a *Agent) sendTotal() {
	if a.master == nil {
		return
	}
	a.master.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_ResourcesChanged{ResourcesChanged: &clusterv1.ResourcesChanged{
		TotalResources:          a.holdings.announced.Resources(),
		OversubscribedResources: a.revocable,
	}}})
}

// acknowledgeOperation ends the repetition of an operation's status, and the agent's memory of it.
func (a *Agent) acknowledgeOperation(m *clusterv1.AcknowledgeOperation) {
	a.decide(func(c *change) {
		o := a.operations[string(m.GetOperationUuid())]
		if o == nil || !o.durable || !bytes.Equal(o.proto.GetLatestStatus().GetUuid().GetValue(), m.GetStatusUuid()) {
			a.log.Debug("acknowledgement of an operation that does not wait for one")
			return
		}
		a.timers.stop(o.retry)
		delete(a.operations, string(m.GetOperationUuid()))
		c.delete(bucketOperations, m.GetOperationUuid())
	})
}

// operationRecords are the operations that wait, for a Hello. The caller holds the lock.
func (a *Agent) operationRecords() []*mesosv1.Operation {
	var all []*mesosv1.Operation
	for _, o := range a.operations {
		all = append(all, o.proto)
	}
	slices.SortFunc(all, func(x, y *mesosv1.Operation) int {
		return bytes.Compare(x.GetUuid().GetValue(), y.GetUuid().GetValue())
	})
	return all
}

// putHoldings writes the total, as its difference to what the agent was configured with: a configuration with more
// resources can take it over.
func (a *Agent) putHoldings(c *change) error {
	configured := resources.New(a.info.GetResources()...)
	var b []byte
	for i, set := range []resources.Set{configured.Subtract(a.holdings.total), a.holdings.total.Subtract(configured)} {
		for _, r := range set.Resources() {
			data, err := r.MarshalVT()
			if err != nil {
				return fmt.Errorf("encode resources: %w", err)
			}
			b = appendData(b, protowire.Number(i+1), data)
		}
	}
	for _, w := range a.holdings.wipes {
		data, err := w.volume.MarshalVT()
		if err != nil {
			return fmt.Errorf("encode volume: %w", err)
		}
		b = appendData(b, 3, appendData(appendText(nil, 1, w.id), 2, data))
	}
	if b == nil {
		b = []byte{}
	}
	c.put(bucketAgent, keyResources, b)
	return nil
}

// recoverHoldings reads what operations made of the agent's resources. It outlives the agent's id.
//
// Errors: the record is damaged, or what is reserved is no longer among the configured resources.
func (a *Agent) recoverHoldings() error {
	configured := resources.New(a.info.GetResources()...)
	a.holdings.total = configured
	a.operations = make(map[string]*operation)
	var saved []byte
	err := a.store.each(bucketAgent, func(key, value []byte) error {
		if bytes.Equal(key, keyResources) {
			saved = bytes.Clone(value)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var consumed, converted []*mesosv1.Resource
	err = fields(saved, func(num protowire.Number, _ uint64, data []byte) error {
		if num == 3 {
			w, err := decodeWipe(data)
			a.holdings.wipes = append(a.holdings.wipes, w)
			return err
		}
		r := new(mesosv1.Resource)
		if err := r.UnmarshalVT(data); err != nil {
			return err
		}
		switch num {
		case 1:
			consumed = append(consumed, r)
		case 2:
			converted = append(converted, r)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("checkpointed resources: %w", err)
	}
	gone, come := resources.New(consumed...), resources.New(converted...)
	if !configured.Contains(gone) {
		return fmt.Errorf("checkpointed reservations and volumes %s were made of %s, which is not in the configured resources %s; "+
			"set the old resources again, or undo the reservations first", come, gone, configured)
	}
	a.holdings.total = configured.Subtract(gone).Add(come)
	a.holdings.announced = a.holdings.total
	var stale []op
	err = a.store.each(bucketOperations, func(key, value []byte) error {
		o := &operation{proto: new(mesosv1.Operation), durable: true}
		if err := o.proto.UnmarshalVT(value); err != nil {
			return fmt.Errorf("operation %x: %w", key, err)
		}
		if !bytes.Equal(o.proto.GetUuid().GetValue(), key) {
			return fmt.Errorf("operation %x: %w", key, errors.Join(errRecord, errors.New("it has another uuid")))
		}
		if o.proto.GetAgentId().GetValue() != a.info.GetId().GetValue() {
			// Of the agent that this one was before; the master has ended it.
			stale = append(stale, op{bucketOperations, bytes.Clone(key), nil})
			return nil
		}
		a.operations[string(key)] = o
		return nil
	})
	if err != nil || len(stale) == 0 {
		return err
	}
	return a.store.put(context.Background(), stale)
}
