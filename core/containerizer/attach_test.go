package containerizer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// fakeStreams are the standard streams of a process: what it wrote so far is given to the first that reads.
type fakeStreams struct {
	mu     sync.Mutex
	cond   *sync.Cond
	out    []launcher.Chunk // written and not read by anybody
	over   bool
	input  bytes.Buffer
	closed int // ends of input
	sizes  []string
	open   int // clients
	block  bool
}

func newFakeStreams() *fakeStreams {
	s := &fakeStreams{}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *fakeStreams) write(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out = append(s.out, launcher.Chunk{Data: []byte(text), Stderr: strings.HasPrefix(text, "!")})
	s.cond.Broadcast()
}

func (s *fakeStreams) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.cond.Broadcast()
}

func (s *fakeStreams) clients() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// fakeClient is one client of them.
type fakeClient struct {
	s      *fakeStreams
	closed bool // guarded by s.mu
}

func (h *fakeHandle) Attach(context.Context) (launcher.Streams, error) {
	s := h.p.streams
	if s == nil {
		return nil, launcher.ErrNotAttached
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open++
	return &fakeClient{s: s}, nil
}

func (c *fakeClient) Read() (launcher.Chunk, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for {
		switch {
		case c.closed:
			return launcher.Chunk{}, net.ErrClosed
		case len(c.s.out) > 0:
			next := c.s.out[0]
			c.s.out = c.s.out[1:]
			return next, nil
		case c.s.over:
			return launcher.Chunk{}, io.EOF
		}
		c.s.cond.Wait()
	}
}

func (c *fakeClient) Write(p []byte) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for c.s.block && !c.closed {
		c.s.cond.Wait()
	}
	switch {
	case c.closed:
		return net.ErrClosed
	case c.s.over:
		return launcher.ErrEnded
	}
	c.s.input.Write(p)
	return nil
}

func (c *fakeClient) CloseWrite() error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.closed++
	return nil
}

func (c *fakeClient) Resize(rows, columns uint16) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.sizes = append(c.s.sizes, fmt.Sprintf("%dx%d", rows, columns))
	return nil
}

func (c *fakeClient) Close() error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.s.open--
	}
	c.s.cond.Broadcast()
	return nil
}

// session describes a session in parent.
func session(parent *containerv1.Container, id string, streams containerv1.Container_Streams) *containerv1.Container {
	c := within(parent, id, "sh")
	c.Streams = streams
	return c
}

// collect gathers what AttachOutput sends, stderr marked by itself.
func collect(c *Containerizer, ctx context.Context, id string) (text func() string, done chan error) {
	var mu sync.Mutex
	var all strings.Builder
	done = make(chan error, 1)
	go func() {
		done <- c.AttachOutput(ctx, id, func(p *agentv1.ProcessIO) bool {
			mu.Lock()
			defer mu.Unlock()
			if p.GetData().GetType() == agentv1.ProcessIO_Data_STDERR {
				all.WriteString("(stderr)")
			}
			all.Write(p.GetData().GetData())
			return true
		})
	}()
	return func() string { mu.Lock(); defer mu.Unlock(); return all.String() }, done
}

func data(text string) *agentv1.ProcessIO {
	return &agentv1.ProcessIO{Type: agentv1.ProcessIO_DATA.Enum(), Data: &agentv1.ProcessIO_Data{
		Type: agentv1.ProcessIO_Data_STDIN.Enum(), Data: []byte(text)}}
}

func window(rows, columns uint32) *agentv1.ProcessIO {
	return &agentv1.ProcessIO{Type: agentv1.ProcessIO_CONTROL.Enum(), Control: &agentv1.ProcessIO_Control{
		Type:    agentv1.ProcessIO_Control_TTY_INFO.Enum(),
		TtyInfo: &mesosv1.TTYInfo{WindowSize: &mesosv1.TTYInfo_WindowSize{Rows: &rows, Columns: &columns}},
	}}
}

// sequence returns pieces one after the other, then last.
func sequence(last error, pieces ...*agentv1.ProcessIO) func() (*agentv1.ProcessIO, error) {
	return func() (*agentv1.ProcessIO, error) {
		if len(pieces) == 0 {
			return nil, last
		}
		next := pieces[0]
		pieces = pieces[1:]
		return next, nil
	}
}

func TestSessionLosesNothingHoweverShortItIs(t *testing.T) {
	m := newMachine(t)
	c, l := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	launch(t, c, root)
	l.fail = func(step string) error {
		if step == "start" { // its streams are open by now
			if p := m.process("root.s"); p.streams.clients() != 1 {
				t.Errorf("clients before the start: got %d, want 1", p.streams.clients())
			}
		}
		return nil
	}
	launch(t, c, session(root, "s", containerv1.Container_ATTACHED))
	p := m.process("root.s")
	if r := p.request; r.Streams != containerv1.Container_ATTACHED || r.Stdout != "" || r.Stderr != "" {
		t.Errorf("request: streams %s to %q and %q, want them attached and no file", r.Streams, r.Stdout, r.Stderr)
	}
	p.streams.write("hello\n")
	p.streams.write("!oh\n")
	p.streams.end()
	m.exit("root.s", 0)
	waitFor(t, "its traces to be gone", func() bool { return m.process("root.s") == nil })
	text, done := collect(c, t.Context(), "root.s")
	if err := <-done; err != nil {
		t.Errorf("AttachOutput: %v", err)
	}
	if got := text(); got != "hello\n(stderr)!oh\n" {
		t.Errorf("output: got %q", got)
	}
	if err := c.Forget(t.Context(), "root.s"); err != nil {
		t.Errorf("Forget: %v", err)
	}
	waitFor(t, "it is forgotten", func() bool { _, err := c.find("root.s"); return err != nil })
	if n := p.streams.clients(); n != 0 {
		t.Errorf("clients left: %d", n)
	}
}

func TestSessionThatNobodyReadsIsLetGoOf(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	launch(t, c, root, session(root, "s", containerv1.Container_ATTACHED))
	p := m.process("root.s")
	if err := c.Destroy(t.Context(), "root.s", nil); err != nil {
		t.Fatalf("Destroy: %v", err)
	}
	if err := c.Forget(t.Context(), "root.s"); err != nil {
		t.Errorf("Forget: %v", err)
	}
	waitFor(t, "its streams are closed", func() bool { return p.streams.clients() == 0 })
}

func TestLastOutputIsReadBeforeAContainerIsTakenDown(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	launch(t, c, root, session(root, "s", containerv1.Container_ATTACHED))
	p := m.process("root.s")
	reading, goOn := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	var got []string
	go func() {
		done <- c.AttachOutput(t.Context(), "root.s", func(x *agentv1.ProcessIO) bool {
			if len(got) == 0 {
				close(reading)
				<-goOn // a slow line
			}
			got = append(got, string(x.GetData().GetData()))
			return true
		})
	}()
	p.streams.write("one")
	<-reading
	p.streams.write("two")
	p.streams.end()
	m.exit("root.s", 0)
	wait(t, c, "root.s") // its end is told meanwhile
	if err := c.Forget(t.Context(), "root.s"); err != nil {
		t.Errorf("Forget: %v", err)
	}
	if slices.Contains(m.history(), "destroy root.s") {
		t.Error("it was taken down while its output was being read")
	}
	close(goOn)
	if err := <-done; err != nil || !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("AttachOutput sent %q, %v, want both", got, err)
	}
	waitFor(t, "it is taken down", func() bool { return slices.Contains(m.history(), "destroy root.s") })
}

func TestAttachEndsWithItsContextAndWithItsClient(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	launch(t, c, root, session(root, "s", containerv1.Container_ATTACHED))
	p := m.process("root.s")
	ctx, cancel := context.WithCancel(t.Context())
	_, done := collect(c, ctx, "root.s")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("AttachOutput = %v, want that it was canceled", err)
	}
	p.streams.write("x")
	if err := c.AttachOutput(t.Context(), "root.s", func(*agentv1.ProcessIO) bool { return false }); err != nil {
		t.Errorf("AttachOutput whose client is gone = %v, want nil", err)
	}
	p.streams.mu.Lock()
	p.streams.block = true
	p.streams.mu.Unlock()
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.AttachInput(ctx, "root.s", sequence(io.EOF, data("x"))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("AttachInput to a process that does not read = %v, want the deadline", err)
	}
	if n := p.streams.clients(); n != 0 {
		t.Errorf("clients left: %d", n)
	}
}

func TestInputReachesTheProcess(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	s := session(root, "s", containerv1.Container_TERMINAL)
	s.TerminalRows, s.TerminalColumns = 5, 7
	launch(t, c, root, s)
	p := m.process("root.s")
	if r := p.request; r.Rows != 5 || r.Columns != 7 || !slices.Contains(r.Env, "TERM="+defaultTerm) {
		t.Errorf("request: %d rows, %d columns, environment %v, want 5, 7 and a TERM", r.Rows, r.Columns, r.Env)
	}
	beat := &agentv1.ProcessIO{Type: agentv1.ProcessIO_CONTROL.Enum(), Control: &agentv1.ProcessIO_Control{Type: agentv1.ProcessIO_Control_HEARTBEAT.Enum()}}
	if err := c.AttachInput(t.Context(), "root.s", sequence(io.EOF, data("ab"), beat, window(30, 100), data("c"), data(""))); err != nil {
		t.Fatalf("AttachInput: %v", err)
	}
	p.streams.mu.Lock()
	if got := fmt.Sprint(p.streams.input.String(), p.streams.closed, p.streams.sizes); got != "abc1 [30x100]" {
		t.Errorf("the process got %s, want abc, one end, and the size", got)
	}
	p.streams.mu.Unlock()
	for what, bad := range map[string]*agentv1.ProcessIO{
		"no type":   {},
		"output":    {Type: agentv1.ProcessIO_DATA.Enum(), Data: &agentv1.ProcessIO_Data{Type: agentv1.ProcessIO_Data_STDOUT.Enum(), Data: []byte("x")}},
		"no data":   {Type: agentv1.ProcessIO_DATA.Enum()},
		"a window":  window(70000, 1),
		"no window": {Type: agentv1.ProcessIO_CONTROL.Enum(), Control: &agentv1.ProcessIO_Control{Type: agentv1.ProcessIO_Control_TTY_INFO.Enum()}},
		"control":   {Type: agentv1.ProcessIO_CONTROL.Enum()},
		"nothing":   nil,
	} {
		if err := c.AttachInput(t.Context(), "root.s", sequence(io.EOF, bad)); !errors.Is(err, ErrInput) {
			t.Errorf("AttachInput of %s = %v, want ErrInput", what, err)
		}
	}
	broken := errors.New("the line broke")
	if err := c.AttachInput(t.Context(), "root.s", sequence(broken, data("d"))); !errors.Is(err, broken) {
		t.Errorf("AttachInput = %v, want what next said", err)
	}
	p.streams.end()
	if err := c.AttachInput(t.Context(), "root.s", sequence(broken, data("e"))); err != nil {
		t.Errorf("AttachInput to a process that ended = %v, want nil: nobody wants it", err)
	}
}

func TestWhatCannotBeAttachedTo(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	launch(t, c, root, session(root, "s", containerv1.Container_ATTACHED))
	none := sequence(io.EOF)
	if err := c.AttachInput(t.Context(), "root", none); !errors.Is(err, ErrNotAttachable) {
		t.Errorf("AttachInput to a container whose output goes to files = %v, want ErrNotAttachable", err)
	}
	if err := c.AttachInput(t.Context(), "nobody", none); !errors.Is(err, ErrNotFound) {
		t.Errorf("AttachInput to an unknown container = %v, want ErrNotFound", err)
	}
	if err := c.AttachOutput(t.Context(), "nobody", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("AttachOutput to an unknown container = %v, want ErrNotFound", err)
	}
	m.process("root.s").streams.end()
	m.exit("root.s", 0)
	wait(t, c, "root.s")
	if err := c.AttachInput(t.Context(), "root.s", none); !errors.Is(err, ErrNotRunning) {
		t.Errorf("AttachInput to a container that ended = %v, want ErrNotRunning", err)
	}
}

func TestTerminalIsAskedForInTheWordsOfMesos(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	rows, columns := uint32(10), uint32(20)
	tty := &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), TtyInfo: &mesosv1.TTYInfo{
		WindowSize: &mesosv1.TTYInfo_WindowSize{Rows: &rows, Columns: &columns}}}
	root.ContainerInfo = tty
	s := session(root, "s", containerv1.Container_FILES)
	s.ContainerInfo = proto.CloneOf(tty)
	launch(t, c, root, s)
	for _, id := range []string{"root", "root.s"} {
		r := m.process(id).request
		if r.Streams != containerv1.Container_TERMINAL || r.Rows != 10 || r.Columns != 20 {
			t.Errorf("request of %s: %s of %dx%d, want a terminal of 10x20", id, r.Streams, r.Rows, r.Columns)
		}
		if (r.Stdout == "") != (id == "root.s") {
			t.Errorf("output of %s goes to %q", id, r.Stdout)
		}
	}
	wide := session(root, "wide", containerv1.Container_TERMINAL)
	wide.TerminalColumns = 70000
	if _, err := c.Launch(t.Context(), wide); err == nil {
		t.Error("Launch with a terminal of 70000 columns succeeded, want an error")
	}
}

func TestOutputToFilesIsFollowedFromItsPresentEnd(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	launch(t, c, root)
	write := func(name, text string) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(root.Sandbox, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	write("stdout", "before\n")
	text, done := collect(c, t.Context(), "root")
	expect := func(want string) {
		t.Helper()
		waitFor(t, "output "+want, func() bool { return text() == want })
	}
	waitFor(t, "the files are open", func() bool { // by then it has begun at their end
		fds, _ := filepath.Glob("/proc/self/fd/*")
		return slices.ContainsFunc(fds, func(fd string) bool {
			to, _ := os.Readlink(fd)
			return to == filepath.Join(root.Sandbox, "stderr")
		})
	})
	write("stdout", "one\n")
	expect("one\n")
	write("stderr", "two\n")
	expect("one\n(stderr)two\n")
	if err := os.Truncate(filepath.Join(root.Sandbox, "stdout"), 0); err != nil {
		t.Fatal(err)
	}
	write("stdout", "3\n")
	expect("one\n(stderr)two\n3\n")
	if err := os.Rename(filepath.Join(root.Sandbox, "stdout"), filepath.Join(root.Sandbox, "stdout.1")); err != nil {
		t.Fatal(err)
	}
	write("stdout", "four\n")
	expect("one\n(stderr)two\n3\nfour\n")
	// A link is not followed, whatever it leads to.
	if err := os.Remove(filepath.Join(root.Sandbox, "stderr")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(root.Sandbox, "stderr")); err != nil {
		t.Fatal(err)
	}
	write("stdout", "last")
	m.exit("root", 0)
	if err := <-done; err != nil {
		t.Errorf("AttachOutput: %v", err)
	}
	expect("one\n(stderr)two\n3\nfour\nlast")
}
