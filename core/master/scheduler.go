package master

import (
	"context"
	"fmt"
	"slices"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	allocatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/allocator"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// SchedulerSubscribe accepts a framework's SUBSCRIBE and returns the id of its stream. A framework that
// is refused gets an ERROR on the stream, which is then closed, and a nil error.
func (m *Master) SchedulerSubscribe(ctx context.Context, principal string, call *schedulerv1.Call, stream SchedulerStream) (string, error) {
	streamID, err := newUUID(m.cfg.Rand)
	if err != nil {
		return "", err
	}
	m.metrics.call("subscribe")
	subscribe := call.GetSubscribe()
	info := subscribe.GetFrameworkInfo()
	if info == nil {
		return "", badRequest("Expecting 'subscribe.framework_info' to be present")
	}
	if got, want := call.GetFrameworkId().GetValue(), info.GetId().GetValue(); got != want {
		return "", badRequest("'framework_id' is %q, want the id in 'subscribe.framework_info', %q", got, want)
	}
	wanted, err := constraintsOf(subscribe.GetOfferConstraints(), rolesOf(info))
	if err == nil {
		err = m.checkFramework(info, subscribe.GetSuppressedRoles())
	}
	if err == nil {
		info, err = withPrincipal(info, principal)
	}
	if err != nil {
		refuseStream(stream, err.Error())
		return streamID, nil
	}
	for _, role := range rolesOf(info) {
		if err := m.approve(ctx, principal, "REGISTER_FRAMEWORK", role); err != nil {
			refuseStream(stream, fmt.Sprintf("Framework %q is not authorized to use role %q: %v", info.GetName(), role, err))
			return streamID, nil
		}
	}
	sub := subscription{
		info:        info,
		suppressed:  subscribe.GetSuppressedRoles(),
		constraints: wanted,
		stream:      stream,
		streamID:    streamID,
	}
	if err := m.do(ctx, func(now time.Time) { m.s.subscribe(sub, now) }); err != nil {
		return "", err
	}
	return streamID, nil
}

// withPrincipal fills the principal in where a framework left it out.
//
// Errors: the framework names another than the one that it authenticated as.
func withPrincipal(info *mesosv1.FrameworkInfo, principal string) (*mesosv1.FrameworkInfo, error) {
	switch {
	case principal == "":
		return info, nil
	case info.Principal == nil:
		info = info.CloneVT()
		info.Principal = &principal
		return info, nil
	case info.GetPrincipal() != principal:
		return nil, fmt.Errorf("Authenticated principal '%s' does not match principal '%s' set in `FrameworkInfo`", principal, info.GetPrincipal())
	}
	return info, nil
}

// SchedulerCall carries out any other call of a framework.
//
// Errors: a Refusal with 400 or 403 when the framework, its principal or its stream is not the right
// one, or with what is wrong with the call; 409 when the framework was removed while it was being updated; nil means
// accepted, its effects come as events.
func (m *Master) SchedulerCall(ctx context.Context, principal, streamID string, call *schedulerv1.Call) error {
	c := schedulerCall{call: call}
	id := call.GetFrameworkId().GetValue()
	var refused error
	if call.GetType() == schedulerv1.Call_UPDATE_FRAMEWORK {
		err := m.do(ctx, func(time.Time) { refused = checkCaller(m.s.frameworks[id], principal, streamID) })
		if err != nil {
			return err
		}
		if refused != nil {
			return refused
		}
	}
	unfit := m.prepareCall(ctx, principal, &c)
	err := m.do(ctx, func(now time.Time) {
		f := m.s.frameworks[id]
		if f == nil && call.GetType() == schedulerv1.Call_UPDATE_FRAMEWORK {
			refused = conflict("Framework %s was removed while it was being updated", id)
			return
		}
		if refused = checkCaller(f, principal, streamID); refused != nil {
			return
		}
		if refused = unfit; refused == nil {
			refused = m.s.schedulerCall(f, c, now)
		}
	})
	if err != nil {
		return err
	}
	return refused
}

// schedulerCall is a call with what was found out about it outside the loop.
type schedulerCall struct {
	call *schedulerv1.Call
	// denied holds, by user, why tasks may not be run as that user.
	denied      map[string]error
	constraints constraints
}

// prepareCall does what may take time or ask someone, before it is known whether the caller is who it
// says; its error counts only if so.
func (m *Master) prepareCall(ctx context.Context, principal string, c *schedulerCall) error {
	switch c.call.GetType() {
	case schedulerv1.Call_ACCEPT:
		c.denied = m.approveAccept(ctx, c.call)
	case schedulerv1.Call_UPDATE_FRAMEWORK:
		update := c.call.GetUpdateFramework()
		info := update.GetFrameworkInfo()
		var err error
		if c.constraints, err = constraintsOf(update.GetOfferConstraints(), rolesOf(info)); err != nil {
			return badRequest("%v", err)
		}
		if err := m.checkFramework(info, update.GetSuppressedRoles()); err != nil {
			return badRequest("%v", err)
		}
		for _, role := range rolesOf(info) {
			if err := m.approve(ctx, principal, "REGISTER_FRAMEWORK", role); err != nil {
				return forbidden("Framework %q is not authorized to use role %q: %v", info.GetName(), role, err)
			}
		}
	}
	return nil
}

// checkCaller says why a call does not come from a framework on its stream.
func checkCaller(f *framework, principal, streamID string) error {
	switch {
	case f == nil:
		return badRequest("Framework cannot be found")
	case principal != "" && principal != f.info.GetPrincipal():
		return badRequest("Authenticated principal '%s' does not match principal '%s' set in `FrameworkInfo`", principal, f.info.GetPrincipal())
	case f.stream == nil:
		return forbidden("Framework is not subscribed")
	case streamID == "":
		return badRequest("All non-subscribe calls should include the 'Mesos-Stream-Id' header")
	case streamID != f.streamID:
		return badRequest("The stream ID '%s' included in this request didn't match the stream ID currently associated with framework ID '%s'", streamID, f.id)
	}
	return nil
}

// schedulerCall dispatches a call of a framework that is connected.
func (s *state) schedulerCall(f *framework, c schedulerCall, now time.Time) error {
	call := c.call
	s.metrics.call(call.GetType().String())
	f.metrics.calls.add(int32(call.GetType()))
	switch call.GetType() {
	case schedulerv1.Call_TEARDOWN:
		s.removeFramework(f, now)
	case schedulerv1.Call_ACCEPT:
		s.accept(f, call.GetAccept(), c.denied, now)
	case schedulerv1.Call_DECLINE:
		s.decline(f, call.GetDecline(), now)
	case schedulerv1.Call_REVIVE:
		s.revive(f, call.GetRevive().GetRoles(), now)
	case schedulerv1.Call_SUPPRESS:
		s.suppress(f, call.GetSuppress().GetRoles())
	case schedulerv1.Call_KILL:
		s.kill(f, call.GetKill(), now)
	case schedulerv1.Call_SHUTDOWN:
		s.shutdownExecutor(f, call.GetShutdown())
	case schedulerv1.Call_ACKNOWLEDGE:
		s.acknowledge(f, call.GetAcknowledge(), now)
	case schedulerv1.Call_RECONCILE:
		s.reconcile(f, call.GetReconcile(), now)
	case schedulerv1.Call_RECONCILE_OPERATIONS:
		s.reconcileOperations(f, call.GetReconcileOperations())
	case schedulerv1.Call_MESSAGE:
		s.messageToExecutor(f, call.GetMessage())
	case schedulerv1.Call_UPDATE_FRAMEWORK:
		return s.updateFramework(f, c, now)
	case schedulerv1.Call_ACKNOWLEDGE_OPERATION_STATUS:
		s.acknowledgeOperation(f, call.GetAcknowledgeOperationStatus())
	case schedulerv1.Call_ACCEPT_INVERSE_OFFERS:
		x := call.GetAcceptInverseOffers()
		s.answerInverses(f, x.GetInverseOfferIds(), allocatorv1.InverseOfferStatus_ACCEPT, x.GetFilters(), now)
	case schedulerv1.Call_DECLINE_INVERSE_OFFERS:
		x := call.GetDeclineInverseOffers()
		s.answerInverses(f, x.GetInverseOfferIds(), allocatorv1.InverseOfferStatus_DECLINE, x.GetFilters(), now)
	case schedulerv1.Call_REQUEST: // ignored, as in Mesos
	case schedulerv1.Call_SUBSCRIBE:
		return badRequest("A SUBSCRIBE has no place here")
	default:
		return notImplemented("Call type %s is not known", call.GetType())
	}
	return nil
}

// updateFramework changes a framework without a new subscription.
func (s *state) updateFramework(f *framework, c schedulerCall, now time.Time) error {
	update := c.call.GetUpdateFramework()
	info := update.GetFrameworkInfo().CloneVT()
	if info.Principal == nil { // left out, as at subscription
		info.Principal = f.info.Principal
	}
	switch {
	case info.GetId().GetValue() != f.id:
		return badRequest("'framework_info.id' is %q, want %q", info.GetId().GetValue(), f.id)
	case info.GetUser() != f.info.GetUser():
		return badRequest("Updating 'FrameworkInfo.user' is unsupported")
	case info.GetCheckpoint() != f.info.GetCheckpoint():
		return badRequest("Updating 'FrameworkInfo.checkpoint' is unsupported")
	case info.GetPrincipal() != f.info.GetPrincipal():
		return badRequest("Changing framework's principal is not allowed")
	}
	s.setFrameworkInfo(f, info)
	f.constraints, f.suppressed = c.constraints, update.GetSuppressedRoles()
	s.allocator.UpdateFramework(f.id, info, update.GetSuppressedRoles())
	s.allocator.SetConstraints(f.id, c.constraints.compiled)
	for o := range f.offers {
		if !contains(f.roles, o.role) {
			s.rescind(o, nil, now)
		}
	}
	s.showFramework(f)
	s.emitFrameworkUpdated(f)
	s.allocateBy(now)
	return nil
}

// revive un-suppresses roles (all when none is named), drops their filters and makes offers at once.
func (s *state) revive(f *framework, roles []string, now time.Time) {
	roles = f.choose(roles)
	if len(roles) == 0 {
		return
	}
	s.allocator.Revive(f.id, roles...)
	if len(f.suppressed) > 0 {
		f.suppressed = slices.DeleteFunc(slices.Clone(f.suppressed), func(r string) bool { return contains(roles, r) })
		s.showFramework(f)
	}
	s.reviveInverses(f)
	s.allocateBy(now)
}

// suppress ends offers for roles, all when none is named.
func (s *state) suppress(f *framework, roles []string) {
	roles = f.choose(roles)
	if len(roles) == 0 {
		return
	}
	s.allocator.Suppress(f.id, roles...)
	suppressed := slices.Clone(f.suppressed)
	for _, r := range roles {
		if !contains(suppressed, r) {
			suppressed = append(suppressed, r)
		}
	}
	f.suppressed = suppressed
	s.showFramework(f)
}

// choose returns the roles that a call names; all when it names none, and none when one of them is not
// the framework's: Mesos drops such a call.
func (f *framework) choose(roles []string) []string {
	if len(roles) == 0 {
		return f.roles
	}
	for _, r := range roles {
		if !contains(f.roles, r) {
			return nil
		}
	}
	return roles
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
