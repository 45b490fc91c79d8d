package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"

	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

// enterable is an agent whose containers are processes of this machine, with a terminal or pipes.
type enterable struct {
	t   *testing.T
	srv *httptest.Server

	mu         sync.Mutex // guards what follows
	containers map[string]*contained
	launched   []*agentv1.Call_LaunchNestedContainerSession
	killed     []*mesosv1.ContainerID
	refuse     string // what a launch is refused with
}

// contained is a process that can be attached to.
type contained struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	tty    *os.File                // nil with pipes
	output chan *agentv1.ProcessIO // for who attaches
	ended  chan struct{}

	mu     sync.Mutex // guards log
	log    []byte     // all output, as in the file in a sandbox
	status syscall.WaitStatus
}

func newEnterable(t *testing.T) *enterable {
	a := &enterable{t: t, containers: map[string]*contained{}}
	a.srv = httptest.NewServer(a)
	t.Cleanup(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, c := range a.containers {
			_ = c.cmd.Process.Kill()
			<-c.ended
		}
		a.srv.CloseClientConnections()
		a.srv.Close()
	})
	return a
}

// run starts a process as container id.
func (a *enterable) run(id string, argv []string, env []string, tty bool, size *mesosv1.TTYInfo_WindowSize) (*contained, error) {
	c := &contained{cmd: exec.Command(argv[0], argv[1:]...), output: make(chan *agentv1.ProcessIO, 1024), ended: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), env...)
	var outputs sync.WaitGroup
	copied := func(r io.Reader, stream agentv1.ProcessIO_Data_Type) {
		outputs.Go(func() {
			for {
				buf := make([]byte, 8192)
				n, err := r.Read(buf)
				if n > 0 {
					c.mu.Lock()
					c.log = append(c.log, buf[:n]...)
					c.mu.Unlock()
					c.output <- &agentv1.ProcessIO{Type: agentv1.ProcessIO_DATA.Enum(), Data: &agentv1.ProcessIO_Data{Type: &stream, Data: buf[:n]}}
				}
				if err != nil {
					return
				}
			}
		})
	}
	if tty {
		f, err := pty.StartWithSize(c.cmd, &pty.Winsize{Rows: uint16(size.GetRows()), Cols: uint16(size.GetColumns())})
		if err != nil {
			return nil, err
		}
		c.tty, c.in = f, f
		copied(f, agentv1.ProcessIO_Data_STDOUT)
	} else {
		in, err := c.cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		out, err := c.cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		errs, err := c.cmd.StderrPipe()
		if err != nil {
			return nil, err
		}
		c.in = in
		if err := c.cmd.Start(); err != nil {
			return nil, err
		}
		copied(out, agentv1.ProcessIO_Data_STDOUT)
		copied(errs, agentv1.ProcessIO_Data_STDERR)
	}
	go func() {
		defer close(c.ended)
		outputs.Wait()
		close(c.output)
		_ = c.cmd.Wait() // the status tells
		c.status = c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	}()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.containers[id] = c
	return c, nil
}

// await returns once the output has a text.
func (c *contained) await(text string) {
	for {
		c.mu.Lock()
		found := bytes.Contains(c.log, []byte(text))
		c.mu.Unlock()
		if found {
			return
		}
		runtime.Gosched()
	}
}

func (a *enterable) find(id *mesosv1.ContainerID) *contained {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.containers[id.GetValue()]
}

func (a *enterable) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Content-Type") == "application/recordio" {
		a.input(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	call := &agentv1.Call{}
	if err == nil {
		err = call.UnmarshalVT(body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	switch call.GetType() {
	case agentv1.Call_LAUNCH_NESTED_CONTAINER_SESSION:
		launch := call.GetLaunchNestedContainerSession()
		a.mu.Lock()
		a.launched = append(a.launched, launch)
		refuse := a.refuse
		a.mu.Unlock()
		if refuse != "" {
			http.Error(w, refuse, http.StatusBadRequest)
			return
		}
		var env []string
		for _, v := range launch.GetCommand().GetEnvironment().GetVariables() {
			env = append(env, v.GetName()+"="+v.GetValue())
		}
		tty := launch.GetContainer().GetTtyInfo()
		c, err := a.run(launch.GetContainerId().GetValue(), launch.GetCommand().GetArguments(), env, tty != nil, tty.GetWindowSize())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if !a.stream(w, r, c) {
			_ = c.cmd.Process.Kill() // a session ends with its connection
		}
	case agentv1.Call_ATTACH_CONTAINER_OUTPUT:
		c := a.find(call.GetAttachContainerOutput().GetContainerId())
		if c == nil {
			http.NotFound(w, r)
			return
		}
		a.stream(w, r, c)
	case agentv1.Call_WAIT_CONTAINER:
		c := a.find(call.GetWaitContainer().GetContainerId())
		if c == nil {
			http.NotFound(w, r)
			return
		}
		select {
		case <-c.ended:
		case <-r.Context().Done():
			return
		}
		data, err := (&agentv1.Response{
			Type: agentv1.Response_WAIT_CONTAINER.Enum(), WaitContainer: &agentv1.Response_WaitContainer{ExitStatus: ptr(int32(c.status))},
		}).MarshalVT()
		if err != nil {
			a.t.Errorf("encode: %v", err)
		}
		_, _ = w.Write(data)
	case agentv1.Call_READ_FILE:
		read := call.GetReadFile() // the path is a container's id
		c := a.find(&mesosv1.ContainerID{Value: read.Path})
		if c == nil {
			http.NotFound(w, r)
			return
		}
		c.mu.Lock()
		begin := min(read.GetOffset(), uint64(len(c.log)))
		end := min(begin+read.GetLength(), uint64(len(c.log)))
		data, err := (&agentv1.Response{Type: agentv1.Response_READ_FILE.Enum(), ReadFile: &agentv1.Response_ReadFile{
			Data: c.log[begin:end], Size: ptr(uint64(len(c.log))),
		}}).MarshalVT()
		c.mu.Unlock()
		if err != nil {
			a.t.Errorf("encode: %v", err)
		}
		_, _ = w.Write(data)
	case agentv1.Call_KILL_CONTAINER:
		c := a.find(call.GetKillContainer().GetContainerId())
		if c == nil {
			http.NotFound(w, r)
			return
		}
		a.mu.Lock()
		a.killed = append(a.killed, call.GetKillContainer().GetContainerId())
		a.mu.Unlock()
		_ = c.cmd.Process.Signal(syscall.Signal(call.GetKillContainer().GetSignal()))
	default:
		http.Error(w, "no such call here: "+call.GetType().String(), http.StatusNotImplemented)
	}
}

// stream sends output until it ends, or the client leaves: then it returns false.
func (a *enterable) stream(w http.ResponseWriter, r *http.Request, c *contained) bool {
	w.Header().Set("Content-Type", "application/recordio")
	w.Header().Set("Message-Content-Type", "application/x-protobuf")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	_ = flush.Flush()
	out := recordio.NewWriter(w)
	for {
		select {
		case <-r.Context().Done():
			return false
		case p, ok := <-c.output:
			if !ok {
				return true
			}
			data, err := p.MarshalVT()
			if err != nil {
				a.t.Errorf("encode: %v", err)
			}
			if out.Write(data) != nil || flush.Flush() != nil {
				return false
			}
		}
	}
}

// input feeds a container what a stream of records holds.
func (a *enterable) input(w http.ResponseWriter, r *http.Request) {
	records := recordio.NewReader(r.Body, 1<<20)
	var c *contained
	for {
		record, err := records.Next()
		if err != nil {
			return
		}
		call := &agentv1.Call{}
		if err := call.UnmarshalVT(record); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		in := call.GetAttachContainerInput()
		if in.GetType() == agentv1.Call_AttachContainerInput_CONTAINER_ID {
			if c = a.find(in.GetContainerId()); c == nil {
				http.NotFound(w, r)
				return
			}
			continue
		}
		p := in.GetProcessIo()
		switch {
		case p.GetType() == agentv1.ProcessIO_CONTROL && p.GetControl().GetTtyInfo() != nil && c.tty != nil:
			size := p.GetControl().GetTtyInfo().GetWindowSize()
			_ = pty.Setsize(c.tty, &pty.Winsize{Rows: uint16(size.GetRows()), Cols: uint16(size.GetColumns())})
		case p.GetType() == agentv1.ProcessIO_DATA && len(p.GetData().GetData()) > 0:
			_, _ = c.in.Write(p.GetData().GetData())
		case p.GetType() == agentv1.ProcessIO_DATA && c.tty != nil:
			_, _ = c.in.Write([]byte{4})
		case p.GetType() == agentv1.ProcessIO_DATA:
			_ = c.in.Close()
		}
	}
}

// clusterOf is a master whose agents all are this one.
func (a *enterable) clusterOf(t *testing.T, change func(*mesosv1.Task)) string {
	t.Helper()
	host, port, err := net.SplitHostPort(a.srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	s := state()
	for _, agent := range s.GetAgents.GetAgents() {
		agent.AgentInfo.Hostname, agent.AgentInfo.Port = &host, ptr(int32(n))
	}
	if change != nil {
		change(s.GetTasks.GetTasks()[0])
	}
	return fakeMaster(t, s)
}

// atTerminal is a command that runs at a terminal.
type atTerminal struct {
	t     *testing.T
	keys  *os.File // what a person has before them
	tty   *os.File // what the command has
	state unix.Termios
	done  chan error

	mu     sync.Mutex // guards screen
	screen bytes.Buffer
	news   chan struct{}
}

// terminalFor makes a terminal of a size, and shows what comes up on it.
func terminalFor(t *testing.T, rows, columns uint16) *atTerminal {
	t.Helper()
	keys, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	a := &atTerminal{t: t, keys: keys, tty: tty, done: make(chan error, 1), news: make(chan struct{}, 1)}
	if err := pty.Setsize(keys, &pty.Winsize{Rows: rows, Cols: columns}); err != nil {
		t.Fatal(err)
	}
	a.state = a.termios()
	shown, err := newPolled(keys)
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := shown.Read(buf)
			a.mu.Lock()
			a.screen.Write(buf[:n])
			a.mu.Unlock()
			select {
			case a.news <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		shown.stop()
		reading.Wait()
		shown.Close()
		tty.Close()
		keys.Close()
	})
	return a
}

func runAtTerminal(t *testing.T, rows, columns uint16, args ...string) *atTerminal {
	t.Helper()
	a := terminalFor(t, rows, columns)
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(a.tty)
	root.SetOut(a.tty)
	root.SetErr(a.tty)
	go func() { a.done <- root.ExecuteContext(context.Background()) }()
	return a
}

func (a *atTerminal) termios() unix.Termios {
	a.t.Helper()
	state, err := unix.IoctlGetTermios(int(a.tty.Fd()), unix.TCGETS)
	if err != nil {
		a.t.Fatal(err)
	}
	return *state
}

func (a *atTerminal) typeKeys(keys string) {
	a.t.Helper()
	if _, err := a.keys.WriteString(keys); err != nil {
		a.t.Fatal(err)
	}
}

// see waits until the screen has a text, and returns what came up to it.
func (a *atTerminal) see(text string) {
	a.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		a.mu.Lock()
		i := strings.Index(a.screen.String(), text)
		if i >= 0 {
			a.screen.Next(i + len(text))
		}
		screen := a.screen.String()
		a.mu.Unlock()
		if i >= 0 {
			return
		}
		select {
		case <-a.news:
		case <-deadline:
			a.t.Fatalf("screen %q, want %q", screen, text)
		}
	}
}

// end waits for the command and looks at the terminal it leaves.
func (a *atTerminal) end(code int) {
	a.t.Helper()
	select {
	case err := <-a.done:
		if got := silently(a.t, err); got != code {
			a.t.Errorf("ended with code %d (%v), want %d", got, err, code)
		}
	case <-time.After(10 * time.Second):
		a.t.Fatal("the command does not end")
	}
	if now := a.termios(); now != a.state {
		a.t.Errorf("terminal is %+v afterwards, was %+v", now, a.state)
	}
}
