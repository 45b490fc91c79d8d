package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

// agentMedia is what the headers of a request to the agent's operator API say about both directions.
type agentMedia struct {
	in        codec.Type
	inStream  bool // the body is a RecordIO stream of calls
	out       codec.Type
	outStream bool // the answer is declared as RecordIO, not as its records' type
}

// readAgentMedia checks the headers, in the agent's order: the body's type, then what the client takes.
func readAgentMedia(r *http.Request) (media agentMedia, err error) {
	notAcceptable := statusf(http.StatusNotAcceptable, "Expecting 'Accept' to allow %s or %s or %s",
		codec.TypeJSON, codec.TypeProtobuf, codec.TypeRecordIO)

	messageType, hasMessageType := r.Header.Get("Message-Content-Type"), r.Header.Get("Message-Content-Type") != ""
	if r.Header.Get("Content-Type") == codec.TypeRecordIO {
		media.inStream = true
		if !hasMessageType {
			return media, statusf(http.StatusBadRequest, "Expecting 'Message-Content-Type' to be set for streaming requests")
		}
		var ok bool
		if media.in, ok = codec.FromContentType(messageType); !ok {
			return media, statusf(http.StatusUnsupportedMediaType, "Expecting 'Message-Content-Type' of %s or %s", codec.TypeJSON, codec.TypeProtobuf)
		}
	} else {
		if media.in, err = contentType(r); err != nil {
			return media, err
		}
		if hasMessageType {
			return media, statusf(http.StatusUnsupportedMediaType, "Expecting 'Message-Content-Type' to be not set for non-streaming requests")
		}
	}

	accept := r.Header.Values("Accept")
	messageAccept := r.Header.Values("Message-Accept")
	var ok bool
	if media.out, ok = codec.FromAccept(accept); ok {
		if len(messageAccept) > 0 {
			return media, statusf(http.StatusNotAcceptable, "Expecting 'Message-Accept' to be not set for non-streaming responses")
		}
		return media, nil
	}
	if !codec.Accepts(accept, codec.TypeRecordIO) {
		return media, notAcceptable
	}
	media.outStream = true
	if media.out, ok = codec.FromAccept(messageAccept); !ok {
		return media, statusf(http.StatusNotAcceptable, "Expecting 'Message-Accept' to allow %s or %s", codec.TypeJSON, codec.TypeProtobuf)
	}
	return media, nil
}

// operator answers one POST to the agent's operator API.
func (a *agentEdge) operator(w http.ResponseWriter, r *http.Request, principal string) error {
	media, err := readAgentMedia(r)
	if err != nil {
		return err
	}
	if media.inStream {
		return a.attachInput(w, r, principal, media)
	}
	call := new(agentv1.Call)
	if _, err := readCall(w, r, "agent::Call", call); err != nil {
		return err
	}
	if err := validateAgentCall(call); err != nil {
		return statusf(http.StatusBadRequest, "Failed to validate agent::Call: %v", err)
	}
	if action := agentAction(call.GetType()); action != "" && a.cfg.Approver != nil {
		if err := a.cfg.Approver.Approve(r.Context(), principal, action, "/api/v1"); err != nil {
			return err
		}
	}
	switch call.GetType() {
	case agentv1.Call_UNKNOWN:
		writeEmpty(w, http.StatusNotImplemented)
		return nil
	case agentv1.Call_ATTACH_CONTAINER_INPUT:
		return statusf(http.StatusUnsupportedMediaType, "Expecting 'Content-Type' to be %s for %s call", codec.TypeRecordIO, call.GetType())
	case agentv1.Call_ATTACH_CONTAINER_OUTPUT:
		return a.output(w, r, media, func(s ProcessIOStream) error {
			return a.io.AttachOutput(r.Context(), principal, call.GetAttachContainerOutput().GetContainerId(), s)
		})
	case agentv1.Call_LAUNCH_NESTED_CONTAINER_SESSION:
		return a.output(w, r, media, func(s ProcessIOStream) error {
			return a.io.LaunchSession(r.Context(), principal, call.GetLaunchNestedContainerSession(), s)
		})
	}
	if media.outStream {
		return statusf(http.StatusNotAcceptable, "Streaming response is not supported for %s call", call.GetType())
	}
	resp, err := a.answer(r, principal, call)
	if err != nil && r.Context().Err() != nil {
		// Nobody hears it: a client that waited for a container has left, which is nothing to look into.
		return statusf(http.StatusRequestTimeout, "The client has left")
	}
	if err != nil {
		return err
	}
	if resp == nil {
		writeEmpty(w, http.StatusOK)
		return nil
	}
	return writeMessage(w, r, media.out, resp)
}

// agentAction is the action of a call that has no object, empty where none is asked for here: files are asked for by
// their path, and containers by the agent, which knows whose they are.
func agentAction(t agentv1.Call_Type) string {
	switch t {
	case agentv1.Call_GET_FLAGS:
		return "VIEW_FLAGS"
	case agentv1.Call_SET_LOGGING_LEVEL:
		return "SET_LOG_LEVEL"
	case agentv1.Call_PRUNE_IMAGES:
		return "PRUNE_IMAGES"
	}
	return ""
}

// answer makes the response of a call that does not stream; nil is an empty one.
func (a *agentEdge) answer(r *http.Request, principal string, call *agentv1.Call) (*agentv1.Response, error) {
	switch call.GetType() {
	case agentv1.Call_LIST_FILES:
		infos, err := a.list(r.Context(), principal, call.GetListFiles().GetPath())
		if err != nil {
			return nil, err
		}
		return &agentv1.Response{
			Type:      agentv1.Response_LIST_FILES.Enum(),
			ListFiles: &agentv1.Response_ListFiles{FileInfos: infos},
		}, nil
	case agentv1.Call_READ_FILE:
		data, size, err := a.readFile(r.Context(), principal, call.GetReadFile().GetPath(), call.GetReadFile().GetOffset(), call.GetReadFile().Length)
		if err != nil {
			return nil, err
		}
		return &agentv1.Response{
			Type:     agentv1.Response_READ_FILE.Enum(),
			ReadFile: &agentv1.Response_ReadFile{Size: proto.Uint64(size), Data: data},
		}, nil
	}
	return a.agent.OperatorCall(r.Context(), principal, call)
}

// listModules answers /modules.
func (a *agentEdge) listModules(w http.ResponseWriter, r *http.Request, _ string) error {
	body, err := json.Marshal(a.modules())
	if err != nil {
		return fmt.Errorf("encode the modules: %w", err)
	}
	writeBody(w, r, codec.TypeJSON, body)
	return nil
}

// output answers with a stream of a container's output, which begin starts.
func (a *agentEdge) output(w http.ResponseWriter, r *http.Request, media agentMedia, begin func(ProcessIOStream) error) error {
	if a.io == nil {
		return errNoContainerIO
	}
	s := newStream(media.out, processIOHeartbeatInterval, &agentv1.ProcessIO{
		Type: agentv1.ProcessIO_CONTROL.Enum(),
		Control: &agentv1.ProcessIO_Control{
			Type: agentv1.ProcessIO_Control_HEARTBEAT.Enum(),
			Heartbeat: &agentv1.ProcessIO_Control_Heartbeat{
				Interval: &mesosv1.DurationInfo{Nanoseconds: proto.Int64(processIOHeartbeatInterval.Nanoseconds())},
			},
		},
	}, nil)
	s.patience = processIOPatience
	defer s.end()
	if err := begin(s); err != nil {
		return err
	}
	if media.outStream {
		s.contentType = codec.TypeRecordIO
		w.Header().Set("Message-Content-Type", media.out.String())
	}
	serveStream(a.edge, w, r, s, "/api/v1", "")
	return nil
}

var errNoContainerIO = statusf(http.StatusNotImplemented, "This agent does not attach to containers")

// maxInputRecord bounds one record of input. Clients send what a terminal or a pipe gives them at once.
const maxInputRecord = 1 << 20

// attachInput answers ATTACH_CONTAINER_INPUT, whose body is a stream of calls: one that names the
// container, then any number with input. The answer comes when the input ends, or the container does.
func (a *agentEdge) attachInput(w http.ResponseWriter, r *http.Request, principal string, media agentMedia) error {
	unlimitBodyTime(w)
	in := &inputs{media: media.in, records: recordio.NewReader(r.Body, maxInputRecord), next: make(chan input), stop: make(chan struct{})}
	var reading sync.WaitGroup
	reading.Go(in.read)
	err := a.feed(r, principal, in)
	close(in.stop)
	if !errors.Is(in.last, io.EOF) {
		// The client may keep its upload open for hours. Reading it ends here, and with it the connection: the
		// server takes a reading that was broken off for the client's leaving.
		w.Header().Set("Connection", "close")
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
	}
	reading.Wait()
	if err != nil {
		return err
	}
	writeEmpty(w, http.StatusOK)
	return nil
}

// feed hands an upload to the container that its first record names, and returns when either ended.
func (a *agentEdge) feed(r *http.Request, principal string, in *inputs) error {
	first, err := in.get(r.Context())
	if errors.Is(err, io.EOF) {
		return statusf(http.StatusBadRequest, "Received EOF while reading request body")
	}
	if err != nil {
		return err
	}
	if first.GetType() != agentv1.Call_AttachContainerInput_CONTAINER_ID || first.ContainerId == nil {
		return statusf(http.StatusBadRequest, "Expecting 'attach_container_input.container_id' in the first record")
	}
	if err := validateContainerID(first.GetContainerId()); err != nil {
		return statusf(http.StatusBadRequest, "'attach_container_input.container_id' is invalid: %v", err)
	}
	if a.io == nil {
		return errNoContainerIO
	}
	err = a.io.AttachInput(r.Context(), principal, first.GetContainerId(), func(ctx context.Context) (*agentv1.ProcessIO, error) {
		call, err := in.get(ctx)
		if err != nil {
			return nil, err
		}
		if err := validateInput(call); err != nil {
			return nil, statusf(http.StatusBadRequest, "Failed to validate agent::Call: %v", err)
		}
		return call.ProcessIo, nil
	})
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("attach input: %w", err)
	}
	return nil
}

// inputs are the records of an upload.
type inputs struct {
	media   codec.Type
	records *recordio.Reader
	next    chan input
	stop    chan struct{} // closed when nobody wants more
	last    error         // what get returned when there was no more
}

type input struct {
	call *agentv1.Call_AttachContainerInput
	err  error
}

// read decodes records until there is no more, or nobody wants more.
func (in *inputs) read() {
	for {
		call, err := in.decode()
		select {
		case in.next <- input{call, err}:
		case <-in.stop:
			return
		}
		if err != nil {
			return
		}
	}
}

// get returns the next record; at the end of the upload io.EOF, and again io.EOF.
func (in *inputs) get(ctx context.Context) (*agentv1.Call_AttachContainerInput, error) {
	if in.last != nil {
		return nil, in.last
	}
	select {
	case x := <-in.next:
		in.last = x.err
		return x.call, x.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (in *inputs) decode() (*agentv1.Call_AttachContainerInput, error) {
	record, err := in.records.Next()
	if errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	if err != nil {
		return nil, statusf(http.StatusBadRequest, "Failed to read the request body: %s", clip(err.Error()))
	}
	call := new(agentv1.Call)
	if err := codec.Unmarshal(in.media, record, call); err != nil {
		return nil, statusf(http.StatusBadRequest, "Failed to parse body into agent::Call protobuf: %s", clip(err.Error()))
	}
	if err := validateAgentCall(call); err != nil {
		return nil, statusf(http.StatusBadRequest, "Failed to validate agent::Call: %v", err)
	}
	if call.GetType() != agentv1.Call_ATTACH_CONTAINER_INPUT {
		return nil, statusf(http.StatusUnsupportedMediaType, "Streaming 'Content-Type' %s is not supported for %s call", codec.TypeRecordIO, call.GetType())
	}
	return call.GetAttachContainerInput(), nil
}
