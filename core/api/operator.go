package api

import (
	"net/http"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

// operator answers one POST to the master's operator API.
func (m *masterEdge) operator(w http.ResponseWriter, r *http.Request, principal string) error {
	call := new(masterv1.Call)
	if _, err := readCall(w, r, "master::Call", call); err != nil {
		return err
	}
	if err := validateMasterCall(call); err != nil {
		return statusf(http.StatusBadRequest, "Failed to validate master::Call: %v", err)
	}
	t, err := accepted(r)
	if err != nil {
		return err
	}
	var resp *masterv1.Response
	switch call.GetType() {
	case masterv1.Call_UNKNOWN:
		writeEmpty(w, http.StatusNotImplemented)
		return nil
	case masterv1.Call_SUBSCRIBE:
		return m.operatorSubscribe(w, r, principal, t)
	case masterv1.Call_LIST_FILES:
		infos, err := m.list(r.Context(), principal, call.GetListFiles().GetPath())
		if err != nil {
			return err
		}
		resp = &masterv1.Response{
			Type:      masterv1.Response_LIST_FILES.Enum(),
			ListFiles: &masterv1.Response_ListFiles{FileInfos: infos},
		}
	case masterv1.Call_READ_FILE:
		data, size, err := m.readFile(r.Context(), principal, call.GetReadFile().GetPath(), call.GetReadFile().GetOffset(), call.GetReadFile().Length)
		if err != nil {
			return err
		}
		resp = &masterv1.Response{
			Type:     masterv1.Response_READ_FILE.Enum(),
			ReadFile: &masterv1.Response_ReadFile{Size: proto.Uint64(size), Data: data},
		}
	default:
		if resp, err = m.master.OperatorCall(r.Context(), principal, call); err != nil {
			return err
		}
	}
	if resp == nil {
		writeEmpty(w, operatorEmptyStatus(call.GetType()))
		return nil
	}
	return writeMessage(w, r, t, resp)
}

// operatorEmptyStatus is the status of an answer without a body: 202 for what an agent has yet to do.
func operatorEmptyStatus(t masterv1.Call_Type) int {
	switch t {
	case masterv1.Call_RESERVE_RESOURCES, masterv1.Call_UNRESERVE_RESOURCES,
		masterv1.Call_CREATE_VOLUMES, masterv1.Call_DESTROY_VOLUMES,
		masterv1.Call_GROW_VOLUME, masterv1.Call_SHRINK_VOLUME:
		return http.StatusAccepted
	}
	return http.StatusOK
}

func (m *masterEdge) operatorSubscribe(w http.ResponseWriter, r *http.Request, principal string, t codec.Type) error {
	s := newStream(t, m.cfg.HeartbeatInterval,
		&masterv1.Event{Type: masterv1.Event_HEARTBEAT.Enum()},
		func(e *masterv1.Event) bool { return e.GetType() == masterv1.Event_SUBSCRIBED })
	defer s.end()
	if err := m.master.OperatorSubscribe(r.Context(), principal, s); err != nil {
		return err
	}
	serveStream(m.edge, w, r, s, "/api/v1", "")
	return nil
}

// notLeading answers what only a recovered leader can: with the leader's address, or 503.
func (m *masterEdge) notLeading(w http.ResponseWriter, r *http.Request) bool {
	leads, recovered, addr := m.master.Leader()
	switch {
	case leads && recovered:
		return false
	case leads:
		writeError(w, http.StatusServiceUnavailable, "Master has not finished recovery")
	case addr == "":
		writeError(w, http.StatusServiceUnavailable, "No leader elected")
	default:
		location := "//" + addr + r.URL.EscapedPath()
		if r.URL.RawQuery != "" {
			location += "?" + r.URL.RawQuery
		}
		redirectTo(w, location)
	}
	return true
}

// redirectTo answers 307. The location has no scheme: clients take host and port from it and keep the
// scheme they came with.
func redirectTo(w http.ResponseWriter, location string) {
	w.Header().Set("Location", location)
	writeEmpty(w, http.StatusTemporaryRedirect)
}

// redirect answers /redirect, the leader's own too.
func (m *masterEdge) redirect(w http.ResponseWriter, r *http.Request, _ string) error {
	leads, _, addr := m.master.Leader()
	if addr == "" && leads {
		addr = r.Host
	}
	if addr == "" {
		return statusf(http.StatusServiceUnavailable, "No leader elected")
	}
	redirectTo(w, "//"+addr)
	return nil
}
