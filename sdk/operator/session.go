package operator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

const (
	streamType = "application/recordio"
	// maxOutput bounds one record of output. Agents send what a pipe gives them at once.
	maxOutput = 4 << 20
	// missedHeartbeats is for how many intervals an agent may say nothing before its stream counts as dead.
	missedHeartbeats = 3
	// detachTimeout is how long Close waits for the agent to answer that it has all of the input.
	detachTimeout = time.Second
)

// ErrNoInput is returned by Resize of a session that was attached without input.
var ErrNoInput = errors.New("the session has no input")

// errSilent ends a session with an agent that says nothing any more.
var errSilent = errors.New("the agent is silent")

// SessionOptions says how a session's process is started.
type SessionOptions struct {
	// TTY gives it a terminal; its standard error then comes on Stdout.
	TTY bool
	// Rows and Columns are the terminal's size; 0 leaves it to the agent.
	Rows, Columns uint16
	// Container is what else it runs in; its tty_info is filled in. nil is its parent's image and namespaces.
	Container *mesosv1.ContainerInfo
}

// AttachOptions says what of a container to attach to; its output always is.
type AttachOptions struct {
	// Input attaches to standard input too. Several may: what they write is mixed.
	Input bool
}

// Session is a process in a container, with its standard streams. Its parts may be used from several goroutines.
//
// Stdout and Stderr are to be read until io.EOF, both at the same time, as of any process with pipes: what is not read
// holds up the other. Another error than io.EOF means that the agent was lost. A Session must be closed.
type Session struct {
	// ID is the container's id.
	ID *mesosv1.ContainerID
	// Stdout and Stderr are what the process writes. What a process with a terminal writes comes on Stdout.
	Stdout, Stderr io.Reader
	// Stdin is what the process reads; nil when not attached. Write blocks while the process does not read. Close is the
	// end of input: of a pipe, or ^D on a terminal.
	Stdin io.WriteCloser

	agent  *Agent
	cancel context.CancelCauseFunc
	group  sync.WaitGroup
	in     *input     // nil without input
	exit   chan ended // holds how a launched process ended, once it has; nil when it was not launched here
}

// ended is how a process ended, or why that is not known.
type ended struct {
	answer *agentv1.Response_WaitContainer
	err    error
}

// Session launches a process in the container parent, such as a shell beside a task, and attaches to it. The process is
// killed when the session is closed, when ctx ends, or when the connection is lost.
//
// Errors: *StatusError when the agent refuses, with 400 and the reason when the process could not be launched.
func (a *Agent) Session(ctx context.Context, parent *mesosv1.ContainerID, cmd *mesosv1.CommandInfo, o SessionOptions) (*Session, error) {
	id := &mesosv1.ContainerID{Value: new(uuid.NewString()), Parent: parent}
	container := o.Container.CloneVT()
	if o.TTY {
		if container == nil {
			container = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum()}
		}
		container.TtyInfo = &mesosv1.TTYInfo{}
		if o.Rows > 0 && o.Columns > 0 {
			container.TtyInfo.WindowSize = windowSize(o.Rows, o.Columns)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s, err := a.open(ctx, cancel, id, &agentv1.Call{
		Type: agentv1.Call_LAUNCH_NESTED_CONTAINER_SESSION.Enum(),
		LaunchNestedContainerSession: &agentv1.Call_LaunchNestedContainerSession{
			ContainerId: id, Command: cmd, Container: container,
		},
	}, true)
	if err != nil {
		return nil, err
	}
	// An agent forgets the container soon after it has ended: who asks only then may come too late.
	s.exit = make(chan ended, 1)
	s.group.Go(func() {
		answer, err := a.WaitContainer(ctx, id)
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		s.exit <- ended{answer, err}
	})
	return s, nil
}

// Attach attaches to a running container, from now on. Closing the session leaves the container as it is.
//
// Errors: *StatusError, with 404 for a container that the agent does not know, and 500 for one without streams.
func (a *Agent) Attach(ctx context.Context, id *mesosv1.ContainerID, o AttachOptions) (*Session, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	return a.open(ctx, cancel, id, &agentv1.Call{
		Type:                  agentv1.Call_ATTACH_CONTAINER_OUTPUT.Enum(),
		AttachContainerOutput: &agentv1.Call_AttachContainerOutput{ContainerId: id},
	}, o.Input)
}

// open makes the call that answers with output, and attaches to the input once the container is there. ctx is the
// session's, which cancel ends.
func (a *Agent) open(ctx context.Context, cancel context.CancelCauseFunc, id *mesosv1.ContainerID, call *agentv1.Call, withInput bool) (*Session, error) {
	resp, err := a.stream(ctx, call)
	if err != nil {
		cancel(err)
		return nil, err
	}
	stdout, toStdout := io.Pipe()
	stderr, toStderr := io.Pipe()
	s := &Session{ID: id, Stdout: stdout, Stderr: stderr, agent: a, cancel: cancel}
	inputCtx, endInput := context.WithCancel(ctx)
	if withInput {
		s.in = newInput()
		s.Stdin = s.in
		s.group.Go(func() { s.in.attach(inputCtx, a, id) })
	}
	over := func(err error) {
		toStdout.CloseWithError(err)
		toStderr.CloseWithError(err)
	}
	// Output that nobody reads must not outlive the session.
	stop := context.AfterFunc(ctx, func() { over(context.Cause(ctx)) })
	s.group.Go(func() {
		defer endInput() // nobody reads it any more
		defer stop()
		defer resp.Body.Close()
		err := copyOutput(ctx, cancel, resp.Body, toStdout, toStderr)
		over(err)
		if err == nil && s.in != nil {
			s.in.end(detachTimeout) // an agent takes an upload that breaks off for a lost client
		}
	})
	return s, nil
}

// stream makes a call that is answered with a stream of output.
func (a *Agent) stream(ctx context.Context, call *agentv1.Call) (*http.Response, error) {
	body, err := call.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", call.GetType(), err)
	}
	resp, err := a.post(ctx, bytes.NewReader(body), "Content-Type", mediaType, "Accept", streamType, "Message-Accept", mediaType)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return resp, nil
}

// copyOutput hands on output until it ends, and returns nil then, or why it broke off. cancel ends ctx, which body
// hangs on.
func copyOutput(ctx context.Context, cancel context.CancelCauseFunc, body io.Reader, stdout, stderr io.Writer) error {
	records := recordio.NewReader(body, maxOutput)
	watchdog := time.AfterFunc(math.MaxInt64, func() { cancel(errSilent) })
	defer watchdog.Stop()
	silence := time.Duration(math.MaxInt64) // not every agent sends heartbeats; with the first it says how often
	for {
		watchdog.Reset(silence)
		record, err := records.Next()
		watchdog.Stop() // whoever reads the output may take its time: that is not the agent's silence
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("read output: %w", err)
		}
		out := &agentv1.ProcessIO{}
		if err := out.UnmarshalVT(record); err != nil {
			return fmt.Errorf("decode output: %w", err)
		}
		switch data := out.GetData().GetData(); {
		case len(data) > 0 && out.GetData().GetType() == agentv1.ProcessIO_Data_STDERR:
			_, err = stderr.Write(data)
		case len(data) > 0:
			_, err = stdout.Write(data)
		}
		if err != nil {
			return err // the session is over, and this why
		}
		if n := out.GetControl().GetHeartbeat().GetInterval().GetNanoseconds(); n > 0 && n < int64(time.Hour) {
			silence = missedHeartbeats * time.Duration(n)
		}
	}
}

// Wait waits until the process has ended and returns how, as wait(2) gives it: exit code 1 is 256. Output may still be
// on its way then; it ends with io.EOF.
//
// Errors: *ContainerError when it ended without an exit status; *StatusError when the agent does not know; ctx's error.
func (s *Session) Wait(ctx context.Context) (waitStatus int, err error) {
	var e ended
	if s.exit == nil {
		e.answer, e.err = s.agent.WaitContainer(ctx, s.ID)
	} else {
		select {
		case e = <-s.exit:
			s.exit <- e // for who asks next
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	if e.err != nil {
		return 0, e.err
	}
	if e.answer.ExitStatus == nil {
		return 0, &ContainerError{Answer: e.answer}
	}
	return int(e.answer.GetExitStatus()), nil
}

// ContainerError says that a container ended without an exit status: it was destroyed, or never ran.
type ContainerError struct {
	Answer *agentv1.Response_WaitContainer
}

func (e *ContainerError) Error() string {
	text := "container ended without an exit status"
	if e.Answer.State != nil {
		text += ": " + e.Answer.GetState().String()
	}
	if e.Answer.Reason != nil {
		text += ", " + e.Answer.GetReason().String()
	}
	if e.Answer.GetMessage() != "" {
		text += ": " + e.Answer.GetMessage()
	}
	return text
}

// Resize tells the terminal its new size. It does not wait for input that the process has not read yet.
//
// Errors: ErrNoInput; or what ended the input.
func (s *Session) Resize(rows, columns uint16) error {
	if s.in == nil {
		return ErrNoInput
	}
	return s.in.resize(rows, columns)
}

// Close ends the session: a process that it launched is killed, a container that it attached to goes on. What was
// written to Stdin has then been handed to the agent, if that takes it within a second.
func (s *Session) Close() error {
	if s.in != nil {
		s.in.end(detachTimeout)
	}
	s.cancel(io.ErrClosedPipe)
	s.group.Wait()
	return nil
}
