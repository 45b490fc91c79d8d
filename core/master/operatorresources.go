package master

import (
	"context"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// operationCall returns the operation and the agent that a call of an operator is about; nil if it is about something
// else.
func operationCall(call *masterv1.Call) (agentID string, op *mesosv1.Offer_Operation) {
	switch call.GetType() {
	case masterv1.Call_RESERVE_RESOURCES:
		c := call.GetReserveResources()
		return c.GetAgentId().GetValue(), &mesosv1.Offer_Operation{
			Type:    mesosv1.Offer_Operation_RESERVE.Enum(),
			Reserve: &mesosv1.Offer_Operation_Reserve{Resources: c.GetResources(), Source: c.GetSource()},
		}
	case masterv1.Call_UNRESERVE_RESOURCES:
		c := call.GetUnreserveResources()
		return c.GetAgentId().GetValue(), &mesosv1.Offer_Operation{
			Type:      mesosv1.Offer_Operation_UNRESERVE.Enum(),
			Unreserve: &mesosv1.Offer_Operation_Unreserve{Resources: c.GetResources()},
		}
	case masterv1.Call_CREATE_VOLUMES:
		c := call.GetCreateVolumes()
		return c.GetAgentId().GetValue(), &mesosv1.Offer_Operation{
			Type:   mesosv1.Offer_Operation_CREATE.Enum(),
			Create: &mesosv1.Offer_Operation_Create{Volumes: c.GetVolumes()},
		}
	case masterv1.Call_DESTROY_VOLUMES:
		c := call.GetDestroyVolumes()
		return c.GetAgentId().GetValue(), &mesosv1.Offer_Operation{
			Type:    mesosv1.Offer_Operation_DESTROY.Enum(),
			Destroy: &mesosv1.Offer_Operation_Destroy{Volumes: c.GetVolumes()},
		}
	case masterv1.Call_GROW_VOLUME:
		c := call.GetGrowVolume()
		return c.GetAgentId().GetValue(), &mesosv1.Offer_Operation{
			Type:       mesosv1.Offer_Operation_GROW_VOLUME.Enum(),
			GrowVolume: &mesosv1.Offer_Operation_GrowVolume{Volume: c.GetVolume(), Addition: c.GetAddition()},
		}
	case masterv1.Call_SHRINK_VOLUME:
		c := call.GetShrinkVolume()
		return c.GetAgentId().GetValue(), &mesosv1.Offer_Operation{
			Type:         mesosv1.Offer_Operation_SHRINK_VOLUME.Enum(),
			ShrinkVolume: &mesosv1.Offer_Operation_ShrinkVolume{Volume: c.GetVolume(), Subtract: c.GetSubtract()},
		}
	}
	return "", nil
}

// operateForOperator has an agent carry out an operation on what no task uses. Offers that stand in the way are
// rescinded, no more of them than need be.
//
// Errors: 400 for an unknown agent or an operation that is wrong in itself, 403, 409 when the resources are in use or
// not there, or the agent is away.
func (m *Master) operateForOperator(ctx context.Context, principal, agentID string, op *mesosv1.Offer_Operation) error {
	for _, p := range permissionsFor(op) {
		if err := m.approve(ctx, principal, p.action, p.object); err != nil {
			return forbidden("%v", err)
		}
	}
	var refused error
	err := m.do(ctx, func(now time.Time) { refused = m.s.operateUnused(agentID, op, principal, now) })
	if err != nil {
		return err
	}
	return refused
}

func (s *state) operateUnused(agentID string, op *mesosv1.Offer_Operation, principal string, now time.Time) error {
	a := s.agents[agentID]
	if a == nil {
		return badRequest("No agent found with specified ID")
	}
	if err := checkOperation(op, a, nil, principal); err != nil {
		return badRequest("Invalid %s operation on agent %s: %v", op.GetType(), a.id, err)
	}
	if err := resources.ValidateAll(op.GetReserve().GetSource()); err != nil {
		return badRequest("Invalid %s operation on agent %s: source: %v", op.GetType(), a.id, err)
	}
	op = unallocatedOperation(op)
	conversions, err := resources.Conversions(op)
	if err != nil {
		return badRequest("Invalid %s operation on agent %s: %v", op.GetType(), a.id, err)
	}
	if a.conn == nil || a.leaving {
		return conflict("Agent %s is not connected", a.id)
	}
	free := s.unused(a)
	after, total := free, a.total
	var shared resources.Set
	for _, c := range conversions {
		if s.volumeInUse(a, c.Consumed) {
			return conflict("Persistent volumes in use: %s", c.Consumed)
		}
		if after, err = after.Apply(c); err != nil {
			return conflict("%s on agent %s: what no task uses is not enough: %v", op.GetType(), a.id, err)
		}
		if total, err = total.Apply(c); err != nil {
			return conflict("%s on agent %s: %v", op.GetType(), a.id, err)
		}
		shared = shared.Add(c.Consumed.Shared())
	}
	s.rescindShared(a, shared, now)
	needed := free.Subtract(after).NonShared()
	var offered resources.Set
	for o := range a.offers { // sums do not depend on the order
		offered = offered.Add(o.resources.NonShared().Unallocate())
	}
	for _, o := range sortedOffers(a.offers) {
		if free.Subtract(offered).Contains(needed) {
			break
		}
		held := o.resources.NonShared().Unallocate()
		if held.Subtract(needed).Equal(held) {
			continue // has nothing of it
		}
		offered = offered.Subtract(held)
		s.rescind(o, nil, now)
	}
	s.allocator.UpdateAgentTotal(a.id, total)
	if err := s.begin(a, nil, op, total); err != nil {
		return err
	}
	s.allocateBy(now)
	return nil
}

// unused is what of an agent no task and no executor has, offered or not.
func (s *state) unused(a *agent) resources.Set {
	var used resources.Set
	for t := range a.tasks {
		if !t.released {
			used = used.Add(t.resources.NonShared().Unallocate())
		}
	}
	for _, e := range a.executors {
		used = used.Add(e.resources.NonShared().Unallocate())
	}
	return a.total.Subtract(used)
}
