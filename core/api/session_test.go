package api_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/api"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// echoing is a fake of an agent whose sessions say what they are fed, in capitals, until the end of input.
type echoing struct {
	*fakeAgent
	mu      sync.Mutex // guards session
	session api.ProcessIOStream
	ended   chan struct{}
	gone    chan struct{}
}

func (e *echoing) LaunchSession(_ context.Context, _ string, call *agentv1.Call_LaunchNestedContainerSession, s api.ProcessIOStream) error {
	if call.GetCommand().GetValue() == "missing" {
		return httpError{400, "exec: missing: not found"}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session = s
	gone := e.gone
	go func() {
		<-s.Done()
		close(gone)
	}()
	return nil
}

func (e *echoing) AttachInput(ctx context.Context, _ string, _ *mesosv1.ContainerID, next func(context.Context) (*agentv1.ProcessIO, error)) error {
	e.mu.Lock()
	s := e.session
	e.mu.Unlock()
	for {
		in, err := next(ctx)
		if err != nil {
			return err
		}
		switch data := in.GetData(); {
		case in.GetControl().GetTtyInfo() != nil:
			sendOutput(s, "resized ")
		case data == nil:
		case len(data.GetData()) == 0:
			s.Close()
			close(e.ended)
		default:
			sendOutput(s, strings.ToUpper(string(data.GetData())))
		}
	}
}

func (e *echoing) OperatorCall(ctx context.Context, principal string, call *agentv1.Call) (*agentv1.Response, error) {
	if call.GetType() != agentv1.Call_WAIT_CONTAINER {
		return e.fakeAgent.OperatorCall(ctx, principal, call)
	}
	select {
	case <-e.ended:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return &agentv1.Response{
		Type:          agentv1.Response_WAIT_CONTAINER.Enum(),
		WaitContainer: &agentv1.Response_WaitContainer{ExitStatus: proto.Int32(512)},
	}, nil
}

func TestTheClientsSessionsWorkHere(t *testing.T) {
	e := &echoing{fakeAgent: newFakeAgent(), ended: make(chan struct{}), gone: make(chan struct{})}
	server := serveAgent(t, e.fakeAgent, func(_ *api.Config, d *api.AgentDeps) { d.Agent, d.ContainerIO = e, e })
	a := operator.NewAgent(server.URL)
	parent := containerID("task")
	_, err := a.Session(t.Context(), parent, &mesosv1.CommandInfo{Value: proto.String("missing")}, operator.SessionOptions{})
	var refused *operator.StatusError
	if !errors.As(err, &refused) || refused.Code != 400 || !strings.Contains(refused.Message, "exec: missing") {
		t.Errorf("a session of what is missing = %v, want 400 and why", err)
	}
	for range 3 { // connections are used again
		e.ended, e.gone = make(chan struct{}), make(chan struct{})
		s, err := a.Session(t.Context(), parent, &mesosv1.CommandInfo{Value: proto.String("cat")}, operator.SessionOptions{TTY: true, Rows: 1, Columns: 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(s.Stdin, "hello "); err != nil {
			t.Errorf("Write = %v", err)
		}
		said := make([]byte, 6)
		if _, err := io.ReadFull(s.Stdout, said); err != nil || string(said) != "HELLO " {
			t.Errorf("read %q, %v; want the answer while the session goes on", said, err)
		}
		if err := s.Resize(2, 2); err != nil {
			t.Errorf("Resize = %v", err)
		}
		said = make([]byte, 8)
		if _, err := io.ReadFull(s.Stdout, said); err != nil || string(said) != "resized " {
			t.Errorf("read %q, %v; want word of the new size", said, err)
		}
		if err := s.Stdin.Close(); err != nil {
			t.Errorf("Close of the input = %v", err)
		}
		if rest, err := io.ReadAll(s.Stdout); err != nil || len(rest) != 0 {
			t.Errorf("read %q, %v; want the end", rest, err)
		}
		if status, err := s.Wait(t.Context()); err != nil || status != 512 {
			t.Errorf("Wait = %d, %v; want 512", status, err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		<-e.gone
	}
}
