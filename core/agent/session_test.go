package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// fakeIO are the streams of a process in memory: what it is fed it prints, and at the end of its input it ends with 0.
type fakeIO struct {
	out     chan *agentv1.ProcessIO
	windows []*mesosv1.TTYInfo_WindowSize // guarded by host.mu
}

func (h *host) ioOf(id string) *fakeIO {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.attached == nil {
		h.attached = make(map[string]*fakeIO)
	}
	if h.attached[id] == nil {
		h.attached[id] = &fakeIO{out: make(chan *agentv1.ProcessIO, 64)}
	}
	return h.attached[id]
}

// print has a process print.
func (h *host) print(id, text string) { h.ioOf(id).out <- stdout(text) }

func stdout(text string) *agentv1.ProcessIO {
	return &agentv1.ProcessIO{
		Type: agentv1.ProcessIO_DATA.Enum(),
		Data: &agentv1.ProcessIO_Data{Type: agentv1.ProcessIO_Data_STDOUT.Enum(), Data: []byte(text)},
	}
}

func stdin(text string) *agentv1.ProcessIO {
	return &agentv1.ProcessIO{
		Type: agentv1.ProcessIO_DATA.Enum(),
		Data: &agentv1.ProcessIO_Data{Type: agentv1.ProcessIO_Data_STDIN.Enum(), Data: []byte(text)},
	}
}

func window(rows, columns uint32) *agentv1.ProcessIO {
	return &agentv1.ProcessIO{Type: agentv1.ProcessIO_CONTROL.Enum(), Control: &agentv1.ProcessIO_Control{
		Type:    agentv1.ProcessIO_Control_TTY_INFO.Enum(),
		TtyInfo: &mesosv1.TTYInfo{WindowSize: &mesosv1.TTYInfo_WindowSize{Rows: new(rows), Columns: new(columns)}},
	}}
}

// described is a container as it was launched, nil when it was forgotten.
func (x *containers) described(id string) *containerv1.Container {
	all, err := x.store.Containers(context.Background())
	if err != nil {
		return nil
	}
	for _, cp := range all {
		if cp.GetContainer().GetId() == id {
			return cp.GetContainer()
		}
	}
	return nil
}

var errNoStreams = errors.New("container has no streams to attach to")

func (x *containers) AttachOutput(ctx context.Context, id string, send func(*agentv1.ProcessIO) bool) error {
	p, err := x.find(id)
	if err != nil {
		return err
	}
	if x.described(id).GetStreams() == containerv1.Container_FILES {
		return errNoStreams
	}
	streams := x.ioOf(id)
	for {
		select {
		case m := <-streams.out:
			if !send(m) {
				return nil
			}
			continue
		default:
		}
		select {
		case m := <-streams.out:
			if !send(m) {
				return nil
			}
		case <-p.ended:
			if len(streams.out) == 0 {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (x *containers) AttachInput(_ context.Context, id string, next func() (*agentv1.ProcessIO, error)) error {
	if _, err := x.find(id); err != nil {
		return err
	}
	if x.described(id).GetStreams() == containerv1.Container_FILES {
		return errNoStreams
	}
	streams := x.ioOf(id)
	for {
		m, err := next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case m.GetControl().GetTtyInfo() != nil:
			x.mu.Lock()
			streams.windows = append(streams.windows, m.GetControl().GetTtyInfo().GetWindowSize())
			x.mu.Unlock()
		case m.GetType() == agentv1.ProcessIO_DATA && len(m.GetData().GetData()) == 0:
			x.end(id, 0)
		case m.GetType() == agentv1.ProcessIO_DATA:
			streams.out <- stdout(string(m.GetData().GetData()))
		}
	}
}

func (x *containers) Remove(ctx context.Context, id string) error {
	p, err := x.find(id)
	if err != nil {
		return nil
	}
	select {
	case <-p.ended:
	default:
		return fmt.Errorf("container %s has not ended", id)
	}
	if c := x.described(id); c != nil {
		if err := os.RemoveAll(c.GetSandbox()); err != nil {
			return err
		}
	}
	x.mu.Lock()
	delete(x.procs, id)
	x.mu.Unlock()
	return x.store.DeleteContainer(ctx, id)
}

// client reads a stream of output.
type client struct {
	mu     sync.Mutex
	text   bytes.Buffer // guarded by mu
	closed bool         // guarded by mu
	gone   chan struct{}
	once   sync.Once
}

func newClient() *client { return &client{gone: make(chan struct{})} }

func (c *client) Send(m *agentv1.ProcessIO) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.gone:
		return false
	default:
	}
	c.text.Write(m.GetData().GetData())
	return !c.closed
}

// Close ends the stream: all was read at once.
func (c *client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.leave()
}

func (c *client) Done() <-chan struct{} { return c.gone }

// leave is what happens when the client's connection is cut.
func (c *client) leave() { c.once.Do(func() { close(c.gone) }) }

func (c *client) got() (text string, closed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String(), c.closed
}

// feed is an upload: next waits for what is put in.
type feed chan *agentv1.ProcessIO

func (f feed) next(ctx context.Context) (*agentv1.ProcessIO, error) {
	select {
	case m, ok := <-f:
		if !ok {
			return nil, io.EOF
		}
		return m, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// session is a call for one more command in a container.
func session(parent, id, command string) *agentv1.Call_LaunchNestedContainerSession {
	return &agentv1.Call_LaunchNestedContainerSession{
		ContainerId: nestedID(parent, id), Command: &mesosv1.CommandInfo{Value: new(command)},
	}
}

// nestedID is the id of a container in one of a task of w.
func nestedID(parent string, id string) *mesosv1.ContainerID {
	return append(pathOfID(parent), id).message()
}

// withTask starts an agent with a running command task, and returns its container.
func (w *world) withTask() string {
	w.t.Helper()
	w.start()
	w.launch(checkpointed("F"), command("t", "sleep"))
	w.master.ack(w.t, w.master.await(w.t, "t", mesosv1.TaskState_TASK_STARTING))
	w.master.ack(w.t, w.master.await(w.t, "t", mesosv1.TaskState_TASK_RUNNING))
	synctest.Wait()
	return w.container("t")
}

// withExecutor starts an agent with a custom executor that has subscribed, and returns its container.
func (w *world) withExecutor() string {
	w.t.Helper()
	w.start()
	w.launch(checkpointed("F"), forExecutor("c", "e"))
	synctest.Wait()
	x := w.subscribe("e", nil)
	x.await(executorv1.Event_LAUNCH, 1)
	synctest.Wait()
	return x.await(executorv1.Event_SUBSCRIBED, 1).GetSubscribed().GetContainerId().GetValue()
}

func (h *host) runs(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.procs[id]
	if p == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

func TestSessionIsOverWhenItsClientIsGone(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withTask()
		c := newClient()
		if err := w.agent.LaunchSession(t.Context(), "", session(root, "s", "sh"), c); err != nil {
			t.Fatal(err)
		}
		id := root + ".s"
		w.host.print(id, "$ ")
		synctest.Wait()
		if text, closed := c.got(); text != "$ " || closed {
			t.Errorf("the client got %q, closed %v", text, closed)
		}
		if d := (&containers{w.host, w.store}).described(id); d.GetClass() != containerv1.Container_DEBUG || d.GetStreams() != containerv1.Container_ATTACHED ||
			d.GetParentId() != root || d.GetUser() == "" || d.GetSandbox() == "" || d.GetContainerInfo() != nil {
			t.Errorf("the session was launched as %v", d)
		}
		began := time.Now()
		c.leave()
		synctest.Wait()
		if w.host.runs(id) || !w.host.runs(root) {
			t.Errorf("session runs %v, task runs %v; want only the task", w.host.runs(id), w.host.runs(root))
		}
		if d := time.Since(began); d >= time.Second {
			t.Errorf("it took %v", d)
		}
		if r, err := w.wait(nestedID(root, "s")); err != nil || r.GetExitStatus() != 9 {
			t.Errorf("WAIT_NESTED_CONTAINER afterwards = %v, %v; want status 9", r, err)
		}
	})
}

func TestSessionThatEndsAtOnceLosesNothing(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withTask()
		for n := range 20 {
			own := fmt.Sprintf("s%d", n)
			id, c := root+"."+own, newClient()
			w.host.print(id, "all that it says")
			if err := w.agent.LaunchSession(t.Context(), "", session(root, own, "exit 3"), c); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if text, closed := c.got(); text != "all that it says" || !closed {
				t.Errorf("the client got %q, closed %v", text, closed)
			}
			if r, err := w.wait(nestedID(root, own)); err != nil || r.GetExitStatus() != 3<<8 {
				t.Errorf("WAIT_NESTED_CONTAINER = %v, %v; want status 768", r, err)
			}
		}
		synctest.Wait()
		if n := w.records()["containers"]; n != 1 {
			t.Errorf("%d containers are on record, want the task's alone", n)
		}
		time.Sleep(sessionMemory + time.Second)
		synctest.Wait()
		if _, err := w.wait(nestedID(root, "s1")); httpStatus(err) != 404 {
			t.Errorf("WAIT_NESTED_CONTAINER after %v: %v, want 404", sessionMemory, err)
		}
		if n := len(w.agent.guests); n != 0 {
			t.Errorf("the agent remembers %d sessions", n)
		}
	})
}

func TestSessionTakesInputAndWindowSizes(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withExecutor()
		call := session(root, "s", "cat")
		call.Container = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), TtyInfo: &mesosv1.TTYInfo{
			WindowSize: &mesosv1.TTYInfo_WindowSize{Rows: new(uint32(50)), Columns: new(uint32(132))},
		}}
		c := newClient()
		if err := w.agent.LaunchSession(t.Context(), "", call, c); err != nil {
			t.Fatal(err)
		}
		id := root + ".s"
		if d := (&containers{w.host, w.store}).described(id); d.GetStreams() != containerv1.Container_TERMINAL || d.GetTerminalRows() != 50 || d.GetTerminalColumns() != 132 {
			t.Errorf("the session has %v of %d x %d, want a terminal of 50 x 132", d.GetStreams(), d.GetTerminalRows(), d.GetTerminalColumns())
		}
		second := newClient() // attached beside the first
		if err := w.agent.AttachOutput(t.Context(), "", nestedID(root, "s"), second); err != nil {
			t.Fatal(err)
		}
		input, fed := make(feed), make(chan error, 1)
		go func() { fed <- w.agent.AttachInput(t.Context(), "", nestedID(root, "s"), input.next) }()
		input <- stdin("hello")
		input <- window(10, 20)
		synctest.Wait()
		one, _ := c.got()
		two, _ := second.got()
		if one+two != "hello" { // in memory each piece goes to one of them
			t.Errorf("the clients got %q and %q", one, two)
		}
		w.host.mu.Lock()
		if ws := w.host.attached[id].windows; len(ws) != 1 || ws[0].GetRows() != 10 || ws[0].GetColumns() != 20 {
			t.Errorf("windows = %v", ws)
		}
		w.host.mu.Unlock()
		input <- stdin("")
		if err := <-fed; err != nil {
			t.Errorf("AttachInput = %v, want nil after the end of the container", err)
		}
		synctest.Wait()
		if _, closed := c.got(); !closed {
			t.Error("the stream goes on after the end of the session")
		}
		if _, closed := second.got(); !closed {
			t.Error("the second stream goes on after the end of the session")
		}
		if r, err := w.wait(nestedID(root, "s")); err != nil || r.GetExitStatus() != 0 || r.ExitStatus == nil {
			t.Errorf("WAIT_NESTED_CONTAINER = %v, %v; want status 0", r, err)
		}
	})
}

func TestAttachSaysWhyItCannot(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withTask()
		task := &mesosv1.ContainerID{Value: &root}
		if err := w.agent.AttachOutput(t.Context(), "", task, newClient()); httpStatus(err) != 500 {
			t.Errorf("output of a container without streams: %v, want 500", err)
		}
		empty := func(context.Context) (*agentv1.ProcessIO, error) { return nil, io.EOF }
		if err := w.agent.AttachInput(t.Context(), "", task, empty); httpStatus(err) != 500 {
			t.Errorf("input of a container without streams: %v, want 500", err)
		}
		for _, id := range []*mesosv1.ContainerID{{Value: new("nobody")}, nestedID(root, "nobody"), nestedID("nobody", "x")} {
			if err := w.agent.AttachOutput(t.Context(), "", id, newClient()); httpStatus(err) != 404 {
				t.Errorf("output of %v: %v, want 404", id, err)
			}
			if err := w.agent.AttachInput(t.Context(), "", id, empty); httpStatus(err) != 404 {
				t.Errorf("input of %v: %v, want 404", id, err)
			}
		}
		if err := w.agent.LaunchSession(t.Context(), "", session(root, "s", "sh"), newClient()); err != nil {
			t.Fatal(err)
		}
		broken := refuse(400, "no such record")
		err := w.agent.AttachInput(t.Context(), "", nestedID(root, "s"), func(context.Context) (*agentv1.ProcessIO, error) { return nil, broken })
		if !errors.Is(err, broken) {
			t.Errorf("AttachInput of a client that errs = %v, want %v", err, broken)
		}
	})
}

func TestSessionsAreRefusedForWhatTheyCannotHave(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withTask()
		mesos := mesosv1.ContainerInfo_MESOS.Enum()
		for what, change := range map[string]func(*agentv1.Call_LaunchNestedContainerSession){
			"no command": func(c *agentv1.Call_LaunchNestedContainerSession) { c.Command = nil },
			"no parent": func(c *agentv1.Call_LaunchNestedContainerSession) {
				c.ContainerId = &mesosv1.ContainerID{Value: new("x")}
			},
			"uris": func(c *agentv1.Call_LaunchNestedContainerSession) {
				c.Command.Uris = []*mesosv1.CommandInfo_URI{{Value: new("http://x")}}
			},
			"image": func(c *agentv1.Call_LaunchNestedContainerSession) {
				c.Container = &mesosv1.ContainerInfo{Type: mesos, Mesos: &mesosv1.ContainerInfo_MesosInfo{Image: &mesosv1.Image{}}}
			},
			"volumes": func(c *agentv1.Call_LaunchNestedContainerSession) {
				c.Container = &mesosv1.ContainerInfo{Type: mesos, Volumes: []*mesosv1.Volume{{ContainerPath: new("/x")}}}
			},
			"docker": func(c *agentv1.Call_LaunchNestedContainerSession) {
				c.Container = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_DOCKER.Enum()}
			},
			"unknown parent": func(c *agentv1.Call_LaunchNestedContainerSession) { c.ContainerId = nestedID("nobody", "x") },
		} {
			call := session(root, "x", "sh")
			change(call)
			if err := w.agent.LaunchSession(t.Context(), "", call, newClient()); httpStatus(err) != 400 {
				t.Errorf("%s: %v, want 400", what, err)
			}
		}
		if err := w.agent.LaunchSession(t.Context(), "", session(root, "x", "sh"), newClient()); err != nil {
			t.Fatal(err)
		}
		if err := w.agent.LaunchSession(t.Context(), "", session(root, "x", "sh"), newClient()); httpStatus(err) != 202 {
			t.Errorf("the same id twice: %v, want 202", err)
		}
		if err := w.agent.LaunchSession(t.Context(), "", session(root+".x", "y", "sh"), newClient()); httpStatus(err) != 400 {
			t.Errorf("a session in a session: %v, want 400", err)
		}
	})
}

func TestSessionWhoseClientLeavesDuringTheLaunchIsNotLaunched(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withTask()
		w.host.launches = func(ctx context.Context, _ *containerv1.Container) error {
			<-ctx.Done()
			return ctx.Err()
		}
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- w.agent.LaunchSession(ctx, "", session(root, "s", "sh"), newClient()) }()
		synctest.Wait()
		cancel()
		if err := <-result; httpStatus(err) != 400 {
			t.Errorf("LaunchSession = %v, want 400", err)
		}
		if w.host.runs(root+".s") || len(w.agent.guests) != 0 {
			t.Error("something of the session is left")
		}
	})
}

func TestSessionsEndWithTheirParentAndWithTheAgent(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withTask()
		first, second := newClient(), newClient()
		if err := w.agent.LaunchSession(t.Context(), "", session(root, "a", "sh"), first); err != nil {
			t.Fatal(err)
		}
		w.stop()
		if _, closed := first.got(); !closed {
			t.Error("the stream goes on after the agent stopped")
		}
		if w.host.runs(root+".a") || !w.host.runs(root) {
			t.Errorf("after the agent's end: session %v, task %v; want only the task", w.host.runs(root+".a"), w.host.runs(root))
		}
		w.start()
		if w.host.runs(root+".a") || !w.host.runs(root) {
			t.Errorf("after the restart: session %v, task %v; want only the task", w.host.runs(root+".a"), w.host.runs(root))
		}
		if err := w.agent.LaunchSession(t.Context(), "", session(root, "b", "sh"), second); err != nil {
			t.Fatal(err)
		}
		w.kill("t")
		w.master.await(t, "t", mesosv1.TaskState_TASK_KILLED)
		synctest.Wait()
		if _, closed := second.got(); !closed || w.host.runs(root+".b") {
			t.Error("the session outlives its parent")
		}
	})
}

func TestInputEndsWithTheContainerThoughItsClientSaysNothing(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withTask()
		if err := w.agent.LaunchSession(t.Context(), "", session(root, "s", "sh"), newClient()); err != nil {
			t.Fatal(err)
		}
		result := make(chan error, 1)
		go func() { result <- w.agent.AttachInput(t.Context(), "", nestedID(root, "s"), make(feed).next) }()
		synctest.Wait()
		select {
		case err := <-result:
			t.Fatalf("AttachInput = %v while its client may still speak", err)
		default:
		}
		w.host.end(root+".s", 0)
		if err := <-result; err != nil {
			t.Errorf("AttachInput = %v, want nil", err)
		}
	})
}

func TestTasksWithATerminalCanBeAttachedTo(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		task := command("t", "sleep")
		task.Container = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), TtyInfo: &mesosv1.TTYInfo{}}
		w.launch(checkpointed("F"), task)
		w.master.ack(t, w.master.await(t, "t", mesosv1.TaskState_TASK_STARTING))
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		root, c := w.container("t"), newClient()
		if err := w.agent.AttachOutput(t.Context(), "", &mesosv1.ContainerID{Value: &root}, c); err != nil {
			t.Fatal(err)
		}
		w.host.print(root, "bash$ ")
		synctest.Wait()
		c.leave()
		synctest.Wait()
		if text, _ := c.got(); text != "bash$ " || !w.host.runs(root) {
			t.Errorf("got %q, the task runs: %v", text, w.host.runs(root))
		}
	})
}

// wait is WAIT_NESTED_CONTAINER.
func (w *world) wait(id *mesosv1.ContainerID) (*agentv1.Response_WaitNestedContainer, error) {
	r, err := w.agent.OperatorCall(context.Background(), "", &agentv1.Call{
		Type:                agentv1.Call_WAIT_NESTED_CONTAINER.Enum(),
		WaitNestedContainer: &agentv1.Call_WaitNestedContainer{ContainerId: id},
	})
	return r.GetWaitNestedContainer(), err
}
