package api

import (
	"net/http"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
)

// executor answers one POST to the executor API.
func (a *agentEdge) executor(w http.ResponseWriter, r *http.Request, _ string) error {
	call := new(executorv1.Call)
	if _, err := readCall(w, r, "executor::Call", call); err != nil {
		return err
	}
	if err := validateExecutorCall(call); err != nil {
		return statusf(http.StatusBadRequest, "Failed to validate executor::Call: %v", err)
	}
	switch call.GetType() {
	case executorv1.Call_SUBSCRIBE:
		t, err := accepted(r)
		if err != nil {
			return err
		}
		return a.executorSubscribe(w, r, call, t)
	case executorv1.Call_HEARTBEAT:
		// It keeps the connection known to what lies between, and means nothing else.
		writeEmpty(w, http.StatusAccepted)
		return nil
	}
	if err := a.agent.ExecutorCall(r.Context(), call); err != nil {
		return err
	}
	if call.GetType() == executorv1.Call_UNKNOWN {
		writeEmpty(w, http.StatusNotImplemented)
		return nil
	}
	writeEmpty(w, http.StatusAccepted)
	return nil
}

func (a *agentEdge) executorSubscribe(w http.ResponseWriter, r *http.Request, call *executorv1.Call, t codec.Type) error {
	s := newStream(t, a.cfg.ExecutorHeartbeatInterval,
		&executorv1.Event{Type: executorv1.Event_HEARTBEAT.Enum()},
		func(e *executorv1.Event) bool { return e.GetType() == executorv1.Event_SUBSCRIBED })
	defer s.end()
	if err := a.agent.ExecutorSubscribe(r.Context(), call, s); err != nil {
		return err
	}
	serveStream(a.edge, w, r, s, "/api/v1/executor", "")
	return nil
}

// notRecovered answers 503 while the agent cannot know what runs.
func (a *agentEdge) notRecovered(w http.ResponseWriter, _ *http.Request) bool {
	if a.agent.Recovered() {
		return false
	}
	writeError(w, http.StatusServiceUnavailable, "Agent has not finished recovery")
	return true
}
