package operator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

// containers is a fake of an agent's container API. A launched session runs program; containers that are attached to are
// made with run. As in an agent, a session's process ends with the connection of its output.
type containers struct {
	t *testing.T
	// program is the process of a session. It returns its exit status.
	program   func(p *process) int32
	heartbeat time.Duration // announced, sent once

	mu      sync.Mutex // guards running
	running map[string]*process
}

func newContainers(t *testing.T, program func(*process) int32) *containers {
	return &containers{t: t, program: program, running: map[string]*process{}}
}

// process is what runs in a container.
type process struct {
	ctx    context.Context // ends with the process's container
	launch *agentv1.Call_LaunchNestedContainerSession
	in     *io.PipeReader // standard input
	feed   *io.PipeWriter
	sizes  chan *mesosv1.TTYInfo_WindowSize
	out    func(agentv1.ProcessIO_Data_Type, string)
	done   chan struct{}
	status *int32 // after done; nil if it was killed
}

func (c *containers) add(id string, p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.in, p.feed = io.Pipe()
	p.done, p.sizes = make(chan struct{}), make(chan *mesosv1.TTYInfo_WindowSize, 8)
	c.running[id] = p
}

func (c *containers) find(id *mesosv1.ContainerID) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running[id.GetValue()]
}

const (
	protobuf = "application/x-protobuf"
	record   = "application/recordio"
)

func (c *containers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Content-Type") == record {
		c.attachInput(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	call := &agentv1.Call{}
	if err == nil {
		err = call.UnmarshalVT(body)
	}
	if err != nil || r.Header.Get("Content-Type") != protobuf {
		c.t.Errorf("%v with %v: %v", call, r.Header, err)
	}
	switch call.GetType() {
	case agentv1.Call_LAUNCH_NESTED_CONTAINER_SESSION:
		launch := call.GetLaunchNestedContainerSession()
		if launch.GetCommand().GetValue() == "missing" {
			http.Error(w, "exec: missing: not found", http.StatusBadRequest)
			return
		}
		ctx, kill := context.WithCancel(r.Context())
		defer kill()
		p := &process{ctx: ctx, launch: launch}
		c.add(launch.GetContainerId().GetValue(), p)
		p.out = c.output(w, r) // only now the client knows that it is there
		defer func() {
			p.in.CloseWithError(io.ErrClosedPipe)
			close(p.done)
		}()
		if status := c.program(p); ctx.Err() == nil {
			p.status = &status
		}
	case agentv1.Call_ATTACH_CONTAINER_OUTPUT:
		p := c.find(call.GetAttachContainerOutput().GetContainerId())
		if p == nil {
			http.Error(w, "no such container", http.StatusNotFound)
			return
		}
		out := c.output(w, r)
		out(agentv1.ProcessIO_Data_STDOUT, "so far")
		select {
		case <-p.done:
		case <-r.Context().Done():
		}
	case agentv1.Call_WAIT_CONTAINER:
		p := c.find(call.GetWaitContainer().GetContainerId())
		if p == nil {
			http.Error(w, "no such container", http.StatusNotFound)
			return
		}
		select {
		case <-p.done:
		case <-r.Context().Done():
			return
		}
		answer := &agentv1.Response_WaitContainer{ExitStatus: p.status}
		if p.status == nil {
			answer.State = mesosv1.TaskState_TASK_KILLED.Enum()
			answer.Message = new("destroyed")
		}
		c.write(w, &agentv1.Response{Type: agentv1.Response_WAIT_CONTAINER.Enum(), WaitContainer: answer})
	default:
		c.t.Errorf("call %v", call)
	}
}

func (c *containers) write(w io.Writer, m interface{ MarshalVT() ([]byte, error) }) {
	data, err := m.MarshalVT()
	if err != nil {
		c.t.Errorf("encode: %v", err)
	}
	_, _ = w.Write(data) // the client may have gone
}

// output begins a stream and returns what writes to it.
func (c *containers) output(w http.ResponseWriter, r *http.Request) func(agentv1.ProcessIO_Data_Type, string) {
	if r.Header.Get("Accept") != record || r.Header.Get("Message-Accept") != protobuf {
		c.t.Errorf("headers %v, want RecordIO of protobuf", r.Header)
	}
	w.Header().Set("Content-Type", record)
	w.WriteHeader(http.StatusOK)
	var mu sync.Mutex
	send := func(io *agentv1.ProcessIO) {
		mu.Lock()
		defer mu.Unlock()
		data, err := io.MarshalVT()
		if err != nil {
			c.t.Errorf("encode: %v", err)
		}
		_, _ = w.Write(recordio.Append(nil, data))
		w.(http.Flusher).Flush()
	}
	if c.heartbeat > 0 {
		send(&agentv1.ProcessIO{Type: agentv1.ProcessIO_CONTROL.Enum(), Control: &agentv1.ProcessIO_Control{
			Type:      agentv1.ProcessIO_Control_HEARTBEAT.Enum(),
			Heartbeat: &agentv1.ProcessIO_Control_Heartbeat{Interval: &mesosv1.DurationInfo{Nanoseconds: new(int64(c.heartbeat))}},
		}})
	}
	w.(http.Flusher).Flush()
	return func(t agentv1.ProcessIO_Data_Type, text string) {
		send(&agentv1.ProcessIO{Type: agentv1.ProcessIO_DATA.Enum(), Data: &agentv1.ProcessIO_Data{Type: &t, Data: []byte(text)}})
	}
}

func (c *containers) attachInput(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Message-Content-Type") != protobuf {
		c.t.Errorf("headers %v, want messages in protobuf", r.Header)
	}
	records := recordio.NewReader(r.Body, 1<<20)
	next := func() (*agentv1.Call_AttachContainerInput, error) {
		data, err := records.Next()
		if err != nil {
			return nil, err
		}
		call := &agentv1.Call{}
		if err := call.UnmarshalVT(data); err != nil || call.GetType() != agentv1.Call_ATTACH_CONTAINER_INPUT {
			c.t.Errorf("record %v: %v", call, err)
		}
		return call.GetAttachContainerInput(), nil
	}
	first, err := next()
	if err != nil {
		return // the process had ended before its input was attached
	}
	if first.GetType() != agentv1.Call_AttachContainerInput_CONTAINER_ID {
		c.t.Errorf("first record %v, want a container's id", first)
		return
	}
	p := c.find(first.GetContainerId())
	if p == nil {
		http.Error(w, "no such container", http.StatusNotFound)
		return
	}
	for {
		in, err := next()
		if err != nil {
			return
		}
		switch io := in.GetProcessIo(); io.GetType() {
		case agentv1.ProcessIO_DATA:
			if io.GetData().GetType() != agentv1.ProcessIO_Data_STDIN || io.GetData().Data == nil {
				c.t.Errorf("input %v, want bytes for standard input", io)
			}
			if len(io.GetData().GetData()) == 0 {
				p.feed.Close()
			} else if _, err := p.feed.Write(io.GetData().GetData()); err != nil {
				return
			}
		case agentv1.ProcessIO_CONTROL:
			if size := io.GetControl().GetTtyInfo().GetWindowSize(); size != nil {
				p.sizes <- size
			}
		}
	}
}

var task = &mesosv1.ContainerID{Value: new("task"), Parent: &mesosv1.ContainerID{Value: new("executor")}}

func shell(line string) *mesosv1.CommandInfo { return &mesosv1.CommandInfo{Value: &line} }

// both reads both streams to their end.
func both(s *operator.Session) (stdout, stderr string, err error) {
	var group sync.WaitGroup
	var out, errs []byte
	var errErr error
	group.Go(func() { errs, errErr = io.ReadAll(s.Stderr) })
	out, err = io.ReadAll(s.Stdout)
	group.Wait()
	return string(out), string(errs), errors.Join(err, errErr)
}

func TestASessionHasTheStreamsOfItsProcess(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 10<<10) // several records
	c := newContainers(t, func(p *process) int32 {
		if id := p.launch.GetContainerId(); id.GetParent().GetValue() != "task" || id.GetParent().GetParent().GetValue() != "executor" || id.GetValue() == "" {
			t.Errorf("launched %v, want an id of its own below the task's", id)
		}
		if p.launch.GetCommand().GetValue() != "cat" || p.launch.GetContainer() != nil {
			t.Errorf("launched %v, want cat in its parent's image", p.launch)
		}
		data, err := io.ReadAll(p.in) // until the end of input
		if err != nil {
			t.Errorf("read input: %v", err)
		}
		p.out(agentv1.ProcessIO_Data_STDERR, fmt.Sprint(len(data), " bytes"))
		p.out(agentv1.ProcessIO_Data_STDOUT, string(data))
		return 3 << 8
	})
	s, err := operator.NewAgent(listen(t, c.ServeHTTP)).Session(timeout(t), task, shell("cat"), operator.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var typing sync.WaitGroup
	typing.Go(func() {
		if n, err := io.WriteString(s.Stdin, big); n != len(big) || err != nil {
			t.Errorf("Write = %d, %v; want all %d", n, err, len(big))
		}
		for range 2 {
			if err := s.Stdin.Close(); err != nil {
				t.Errorf("Close of the input = %v", err)
			}
		}
		if _, err := io.WriteString(s.Stdin, "more"); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Write after Close = %v, want a closed pipe", err)
		}
	})
	stdout, stderr, err := both(s)
	typing.Wait()
	if err != nil || stdout != big || stderr != fmt.Sprint(len(big), " bytes") {
		t.Errorf("streams of %d and %q, %v; want %d and their number", len(stdout), stderr, err, len(big))
	}
	for range 2 {
		if status, err := s.Wait(timeout(t)); status != 3<<8 || err != nil {
			t.Errorf("Wait = %d, %v; want exit code 3", status, err)
		}
	}
}

func TestASessionWithATerminalIsResized(t *testing.T) {
	c := newContainers(t, func(p *process) int32 {
		size := p.launch.GetContainer().GetTtyInfo().GetWindowSize()
		p.out(agentv1.ProcessIO_Data_STDOUT, fmt.Sprintf("%dx%d", size.GetRows(), size.GetColumns()))
		select {
		case size = <-p.sizes:
			p.out(agentv1.ProcessIO_Data_STDOUT, fmt.Sprintf(" %dx%d", size.GetRows(), size.GetColumns()))
		case <-p.ctx.Done():
		}
		return 0
	})
	a := operator.NewAgent(listen(t, c.ServeHTTP))
	s, err := a.Session(timeout(t), task, shell("sh"), operator.SessionOptions{TTY: true, Rows: 24, Columns: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Resize(50, 132); err != nil {
		t.Errorf("Resize = %v", err)
	}
	if stdout, stderr, err := both(s); stdout != "24x80 50x132" || stderr != "" || err != nil {
		t.Errorf("output %q and %q, %v; want both sizes", stdout, stderr, err)
	}
	if status, err := s.Wait(timeout(t)); status != 0 || err != nil {
		t.Errorf("Wait = %d, %v; want 0", status, err)
	}
	// A container of the caller's keeps what it says.
	mine := &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), Hostname: new("h")}
	c.program = func(p *process) int32 {
		if got := p.launch.GetContainer(); got.GetHostname() != "h" || got.TtyInfo == nil || got.GetTtyInfo().WindowSize != nil {
			t.Errorf("launched in %v, want the container given, with a terminal of no size", got)
		}
		return 0
	}
	if s, err = a.Session(timeout(t), task, nil, operator.SessionOptions{TTY: true, Container: mine}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Wait(timeout(t)); err != nil || mine.TtyInfo != nil {
		t.Errorf("Wait = %v with %v; want no error and the caller's container unchanged", err, mine)
	}
}

func TestResizeDoesNotWaitForInputThatNobodyReads(t *testing.T) {
	c := newContainers(t, func(p *process) int32 { // reads nothing
		<-p.ctx.Done()
		return 0
	})
	s, err := operator.NewAgent(listen(t, c.ServeHTTP)).Session(timeout(t), task, shell("sleep"), operator.SessionOptions{TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := s.Stdin.Write(make([]byte, 64<<20)) // more than all that lies between holds
		wrote <- err
	}()
	for n := range 1000 {
		if err := s.Resize(uint16(n+1), 80); err != nil {
			t.Fatalf("Resize %d = %v", n, err)
		}
	}
	select {
	case err := <-wrote:
		t.Errorf("Write = %v, want it to wait for the process", err)
	default:
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	if err := <-wrote; err == nil {
		t.Error("Write succeeded, want the closed session")
	}
	if err := s.Resize(1, 1); err == nil {
		t.Error("Resize of a closed session succeeded")
	}
}

func TestClosingASessionKillsItsProcess(t *testing.T) {
	killed := make(chan struct{})
	c := newContainers(t, func(p *process) int32 {
		p.out(agentv1.ProcessIO_Data_STDOUT, "ready")
		<-p.ctx.Done()
		close(killed)
		return 0
	})
	s, err := operator.NewAgent(listen(t, c.ServeHTTP)).Session(timeout(t), task, shell("sleep"), operator.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ready := make([]byte, 5)
	if _, err := io.ReadFull(s.Stdout, ready); err != nil {
		t.Errorf("read: %v", err)
	}
	s.Close()
	select {
	case <-killed:
	case <-timeout(t).Done():
		t.Error("the process runs on")
	}
	if _, err := s.Stdout.Read(ready); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Read = %v, want a closed pipe", err)
	}
	if _, err := s.Wait(timeout(t)); err == nil {
		t.Error("Wait after Close knows how it ended")
	}
}

func TestASessionEndsWithItsContext(t *testing.T) {
	c := newContainers(t, func(p *process) int32 {
		p.out(agentv1.ProcessIO_Data_STDOUT, "nobody reads this")
		<-p.ctx.Done()
		return 0
	})
	ctx, cancel := context.WithCancel(timeout(t))
	s, err := operator.NewAgent(listen(t, c.ServeHTTP)).Session(ctx, task, shell("sleep"), operator.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cancel()
	if _, err := io.ReadAll(s.Stderr); !errors.Is(err, context.Canceled) {
		t.Errorf("read = %v, want the context's error", err)
	}
	if _, err := s.Wait(timeout(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait = %v, want the context's error", err)
	}
}

func TestAProcessThatCannotBeLaunchedIsTheCallersError(t *testing.T) {
	c := newContainers(t, nil)
	a := operator.NewAgent(listen(t, c.ServeHTTP))
	for name, open := range map[string]struct {
		do   func() (*operator.Session, error)
		code int
	}{
		"session": {func() (*operator.Session, error) {
			return a.Session(timeout(t), task, shell("missing"), operator.SessionOptions{})
		}, 400},
		"attach": {func() (*operator.Session, error) {
			return a.Attach(timeout(t), task, operator.AttachOptions{Input: true})
		}, 404},
	} {
		_, err := open.do()
		var status *operator.StatusError
		if !errors.As(err, &status) || status.Code != open.code || status.Message == "" {
			t.Errorf("%s = %v, want %d and the agent's words", name, err, open.code)
		}
	}
	if _, err := operator.NewAgent("127.0.0.1:1").Session(timeout(t), task, shell("sh"), operator.SessionOptions{}); err == nil || !strings.Contains(err.Error(), "reach the agent at 127.0.0.1:1") {
		t.Errorf("Session with nobody = %v, want the agent named", err)
	}
}

func TestAttachingLeavesTheContainerAsItIs(t *testing.T) {
	c := newContainers(t, nil)
	p := &process{ctx: t.Context()}
	c.add("task", p)
	a := operator.NewAgent(listen(t, c.ServeHTTP))
	s, err := a.Attach(timeout(t), task, operator.AttachOptions{Input: true})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() {
		line := make([]byte, 5)
		_, _ = io.ReadFull(p.in, line)
		got <- string(line)
	}()
	if _, err := io.WriteString(s.Stdin, "hello"); err != nil {
		t.Errorf("Write = %v", err)
	}
	so := make([]byte, 6)
	if _, err := io.ReadFull(s.Stdout, so); string(so) != "so far" || err != nil {
		t.Errorf("read %q, %v; want what was said", so, err)
	}
	if line := <-got; line != "hello" {
		t.Errorf("the process read %q, want hello", line)
	}
	s.Close()
	select {
	case <-p.done:
		t.Error("the container ended with the session")
	default:
	}

	watch, err := a.Attach(timeout(t), task, operator.AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	if watch.Stdin != nil {
		t.Error("there is input, want none")
	}
	if err := watch.Resize(1, 1); !errors.Is(err, operator.ErrNoInput) {
		t.Errorf("Resize = %v, want ErrNoInput", err)
	}
	close(p.done) // killed: no exit status
	if stdout, _, err := both(watch); stdout != "so far" || err != nil {
		t.Errorf("read %q, %v; want the end of output", stdout, err)
	}
	_, err = watch.Wait(timeout(t))
	var ended *operator.ContainerError
	if !errors.As(err, &ended) || err.Error() != "container ended without an exit status: TASK_KILLED: destroyed" {
		t.Errorf("Wait = %v, want how it ended", err)
	}
}

func TestInputThatIsRefusedFailsTheWrite(t *testing.T) {
	c := newContainers(t, func(p *process) int32 {
		<-p.ctx.Done()
		return 0
	})
	h := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Content-Type") == record {
			http.Error(w, "may not", http.StatusForbidden)
			return
		}
		c.ServeHTTP(w, r)
	}
	s, err := operator.NewAgent(listen(t, h)).Session(timeout(t), task, shell("sh"), operator.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for err == nil {
		_, err = io.WriteString(s.Stdin, "x")
	}
	var status *operator.StatusError
	if !errors.As(err, &status) || status.Code != 403 {
		t.Errorf("Write = %v, want 403", err)
	}
	if err := s.Resize(1, 1); !errors.As(err, &status) {
		t.Errorf("Resize = %v, want 403", err)
	}
}

func TestALostAgentIsNotTheEndOfOutput(t *testing.T) {
	var half bytes.Buffer
	half.WriteString("100\nabc")
	for name, h := range map[string]func(http.ResponseWriter, *http.Request, *containers){
		"cut inside a record": func(w http.ResponseWriter, _ *http.Request, _ *containers) { _, _ = w.Write(half.Bytes()) },
		"garbage":             func(w http.ResponseWriter, _ *http.Request, _ *containers) { _, _ = io.WriteString(w, "hello") },
		"no message":          func(w http.ResponseWriter, _ *http.Request, _ *containers) { _, _ = io.WriteString(w, "1\n\xff") },
		"too large":           func(w http.ResponseWriter, _ *http.Request, _ *containers) { _, _ = io.WriteString(w, "999999999\n") },
		"broken connection": func(http.ResponseWriter, *http.Request, *containers) {
			panic(http.ErrAbortHandler)
		},
		"silence": func(w http.ResponseWriter, r *http.Request, c *containers) {
			c.heartbeat = 10 * time.Millisecond
			c.output(w, r)
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newContainers(t, nil)
			a := operator.NewAgent(listen(t, func(w http.ResponseWriter, r *http.Request) {
				if name != "silence" {
					c.output(w, r)
				}
				h(w, r, c)
			}))
			s, err := a.Attach(timeout(t), task, operator.AttachOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, _, err := both(s); err == nil {
				t.Error("the output ended as if the process had")
			}
		})
	}
}
