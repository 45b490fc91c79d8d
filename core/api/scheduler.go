package api

import (
	"net/http"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// streamIDHeader names a scheduler's subscription: in the answer to SUBSCRIBE, then in each call.
const streamIDHeader = "Mesos-Stream-Id"

// scheduler answers one POST to the scheduler API. The order of checks is Mesos's.
func (m *masterEdge) scheduler(w http.ResponseWriter, r *http.Request, principal string) error {
	call := new(schedulerv1.Call)
	if _, err := readCall(w, r, "scheduler::Call", call); err != nil {
		return err
	}
	if err := validateSchedulerCall(call); err != nil {
		return statusf(http.StatusBadRequest, "Failed to validate scheduler::Call: %v", err)
	}
	_, hasStreamID := r.Header[streamIDHeader]
	switch call.GetType() {
	case schedulerv1.Call_SUBSCRIBE:
		t, err := accepted(r)
		if err != nil {
			return err
		}
		if hasStreamID {
			return statusf(http.StatusBadRequest, "Subscribe calls should not include the '%s' header", streamIDHeader)
		}
		return m.schedulerSubscribe(w, r, principal, call, t)
	case schedulerv1.Call_RECONCILE_OPERATIONS:
		if _, err := accepted(r); err != nil {
			return err
		}
	}
	err := m.master.SchedulerCall(r.Context(), principal, r.Header.Get(streamIDHeader), call)
	if err != nil {
		return err
	}
	switch call.GetType() {
	case schedulerv1.Call_UNKNOWN:
		writeEmpty(w, http.StatusNotImplemented)
	case schedulerv1.Call_UPDATE_FRAMEWORK:
		writeEmpty(w, http.StatusOK)
	default:
		writeEmpty(w, http.StatusAccepted)
	}
	return nil
}

func (m *masterEdge) schedulerSubscribe(w http.ResponseWriter, r *http.Request, principal string, call *schedulerv1.Call, t codec.Type) error {
	s := newStream(t, m.cfg.HeartbeatInterval,
		&schedulerv1.Event{Type: schedulerv1.Event_HEARTBEAT.Enum()},
		func(e *schedulerv1.Event) bool { return e.GetType() == schedulerv1.Event_SUBSCRIBED })
	defer s.end()
	id, err := m.master.SchedulerSubscribe(r.Context(), principal, call, s)
	if err != nil {
		return err
	}
	serveStream(m.edge, w, r, s, "/api/v1/scheduler", id)
	return nil
}
