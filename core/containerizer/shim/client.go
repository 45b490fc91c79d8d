package shim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/supervise"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// ErrLost is returned by calls to a shim that is no longer there, or does not speak sense.
var ErrLost = errors.New("shim is lost")

// A RefusedError is the shim's own answer that something could not be done.
type RefusedError struct {
	Text  string
	Errno syscall.Errno // 0 when there is none
}

func (e *RefusedError) Error() string { return e.Text }

// Unwrap lets errors.Is find the errno.
func (e *RefusedError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// writeTimeout bounds the writing of a request. A healthy shim reads within microseconds.
const writeTimeout = 10 * time.Second

// A Client is a connection to one shim.
type Client struct {
	conn net.Conn
	proc *os.Process // the shim, when this process started it

	lost   chan struct{} // closed when the connection is gone
	exited chan struct{} // closed when the container's first process has ended
	done   chan struct{} // closed when the reading goroutine has ended

	mu      sync.Mutex // guards what follows
	closing bool       // Close was called: the shim is meant to live on
	nextID  uint32
	calls   map[uint32]chan frame
	end     wire.State // set before exited is closed
}

type frame struct {
	kind    uint8
	payload []byte
}

// exitID is the id of the one Wait that every client sends.
const exitID = 0

// quiet keeps the Go runtime of a shim small: one processor, no garbage collection below a bound
// that it never reaches, and no huge pages: many distributions give them unasked, and the heap of a
// shim fills a quarter of one.
var quiet = []string{"GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=16MiB", "GODEBUG=disablethp=1"}

// SpawnOptions say where a shim itself lives.
type SpawnOptions struct {
	// Cgroup, if not empty, is a version 2 cgroup the shim is born in.
	Cgroup string
	// Runtime, if not nil, is handed to the shim at wire.RuntimeFD.
	Runtime *Binary
}

// Spawn starts a shim that waits for its Spec. The shim has its own session and nothing of this
// process but the connection, so that it outlives it. If this process ends, or the client is
// closed, before Start, the shim kills what it made and ends.
func Spawn(b *Binary, opts SpawnOptions) (*Client, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "shim"), os.NewFile(uintptr(pair[1]), "shim")
	defer theirs.Close()
	defer ours.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	defer null.Close()
	attr := &os.ProcAttr{Dir: "/", Env: quiet, Files: []*os.File{null, null, null, theirs}, Sys: &syscall.SysProcAttr{Setsid: true}}
	if opts.Runtime != nil && opts.Runtime.memory != nil {
		attr.Files = append(attr.Files, opts.Runtime.memory)
	}
	if opts.Cgroup != "" {
		dir, err := os.Open(opts.Cgroup)
		if err != nil {
			return nil, fmt.Errorf("start shim: %w", err)
		}
		defer dir.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(dir.Fd())
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	proc, err := os.StartProcess(b.exec(), []string{"mosaic-shim"}, attr)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("start shim: %w", err)
	}
	return newClient(conn, proc), nil
}

// RuntimePath is how a shim names the program given as SpawnOptions.Runtime.
func RuntimePath(b *Binary) string {
	if b.memory == nil {
		return b.path
	}
	return wire.RuntimePath
}

// Connect connects to the shim that keeps the container whose run folder is dir. The error matches ErrLost when there is
// none, or none that listens.
func Connect(ctx context.Context, dir string) (*Client, error) {
	conn, err := dial(ctx, dir)
	if err != nil {
		return nil, err
	}
	c := newClient(conn, nil)
	if err := c.watch(); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// Beside connects to the shim that keeps the first container, whose run folder is dir, for Create of one more. runtime,
// if not nil, is handed to the shim, unless it has one; abilities are those of package wire that it must have beside.
// ErrLost when there is no shim that can do it: it is gone, its container does not run, or it is too old.
func Beside(ctx context.Context, dir string, runtime *Binary, abilities uint32) (*Client, error) {
	conn, err := dial(ctx, dir)
	if err != nil {
		return nil, err
	}
	c := newClient(conn, nil)
	if err := c.enlist(ctx, runtime, abilities|wire.CanKeepMore); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("shim in %s cannot keep another container: %w", dir, err)
	}
	return c, nil
}

// enlist makes sure that the shim can keep one more container.
func (c *Client) enlist(ctx context.Context, runtime *Binary, abilities uint32) error {
	s, err := c.State(ctx)
	if err != nil {
		return err
	}
	if s.Abilities&abilities != abilities || !s.Started || s.Exited {
		return ErrLost
	}
	if runtime == nil || runtime.memory == nil || s.Abilities&wire.CanRun != 0 {
		return nil
	}
	if s.Abilities&wire.CanTake == 0 {
		return ErrLost
	}
	_, err = c.callWith(ctx, wire.KindRuntime, nil, runtime.memory)
	return err
}

// dial connects to the socket in dir.
func dial(ctx context.Context, dir string) (net.Conn, error) {
	d, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("connect to shim in %s: %w", dir, ErrLost)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to shim: %w", err)
	}
	defer d.Close()
	// Through the descriptor, so that the folder's length does not count against the address.
	name := fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), supervise.SocketName)
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", name)
	for pause := time.Millisecond; errors.Is(err, syscall.EAGAIN); pause *= 2 { // many connect at once
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to shim in %s: %w", dir, ctx.Err())
		case <-time.After(pause):
		}
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", name)
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("connect to shim in %s: %w", dir, ErrLost)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to shim in %s: %w", dir, err)
	}
	return conn, nil
}

func newClient(conn net.Conn, proc *os.Process) *Client {
	c := &Client{
		conn: conn, proc: proc,
		lost: make(chan struct{}), exited: make(chan struct{}), done: make(chan struct{}),
		nextID: exitID + 1, calls: map[uint32]chan frame{},
	}
	go c.read()
	return c
}

// read distributes answers until the connection ends, and reaps the shim if it was our child. The
// connection ends when the shim does, so no thread waits for it before.
func (c *Client) read() {
	defer close(c.done)
	r := bufio.NewReaderSize(c.conn, 512)
	for {
		f, id, err := readFrame(r)
		if err != nil {
			break
		}
		if id == exitID {
			if s, err := wire.ParseState(f.payload); err == nil && f.kind == wire.KindExit && s.Exited {
				c.mu.Lock()
				select {
				case <-c.exited:
				default:
					c.end = s
					close(c.exited)
				}
				c.mu.Unlock()
			}
			continue
		}
		c.mu.Lock()
		ch := c.calls[id]
		delete(c.calls, id)
		c.mu.Unlock()
		if ch != nil {
			ch <- f // has room for one
		}
	}
	close(c.lost)
	_ = c.conn.Close()
	if c.proc == nil {
		return
	}
	c.mu.Lock()
	closing := c.closing
	c.mu.Unlock()
	if !closing {
		c.reap()
	}
	_ = c.proc.Release()
}

// reap takes the exit of a shim that closed its connection. One that closed it and lives on is
// broken; it is left to the system then, rather than waited for.
func (c *Client) reap() {
	for pause := 100 * time.Microsecond; pause < 2*time.Second; pause *= 2 {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(c.proc.Pid, &ws, syscall.WNOHANG, nil)
		if pid != 0 || (err != nil && err != syscall.EINTR) {
			break
		}
		time.Sleep(pause)
	}
}

// maxAnswer bounds what a shim may answer: states and one line of error.
const maxAnswer = 64 << 10

func readFrame(r *bufio.Reader) (frame, uint32, error) {
	var h [wire.HeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, 0, err
	}
	n, kind, id, err := wire.Header(h[:])
	if err != nil {
		return frame{}, 0, err
	}
	if n > maxAnswer {
		return frame{}, 0, wire.ErrMalformed
	}
	f := frame{kind: kind, payload: make([]byte, n)}
	_, err = io.ReadFull(r, f.payload)
	return f, id, err
}

// call sends a request and waits for its answer.
func (c *Client) call(ctx context.Context, kind uint8, payload []byte) (frame, error) {
	return c.callWith(ctx, kind, payload, nil)
}

// callWith is call with a file that goes along, if it is not nil.
func (c *Client) callWith(ctx context.Context, kind uint8, payload []byte, along *os.File) (frame, error) {
	ch := make(chan frame, 1)
	c.mu.Lock()
	id := c.nextID
	if c.nextID++; c.nextID == exitID {
		c.nextID++
	}
	c.calls[id] = ch
	err := c.send(kind, id, payload, along)
	c.mu.Unlock()
	forget := func() {
		c.mu.Lock()
		delete(c.calls, id)
		c.mu.Unlock()
	}
	if err != nil {
		forget()
		return frame{}, err
	}
	var f frame
	select {
	case f = <-ch:
	case <-ctx.Done():
		forget()
		return frame{}, ctx.Err()
	case <-c.lost:
		select {
		case f = <-ch: // it came before the end
		default:
			return frame{}, ErrLost
		}
	}
	if f.kind == wire.KindError {
		errno, text, err := wire.ParseError(f.payload)
		if err != nil {
			return frame{}, ErrLost
		}
		return frame{}, &RefusedError{Text: text, Errno: syscall.Errno(errno)}
	}
	return f, nil
}

// send writes a frame. mu is held, or the client not shared yet.
func (c *Client) send(kind uint8, id uint32, payload []byte, along *os.File) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return ErrLost
	}
	b := wire.AppendFrame(nil, kind, id, payload)
	var err error
	if conn, ok := c.conn.(*net.UnixConn); ok && along != nil {
		_, _, err = conn.WriteMsgUnix(b, syscall.UnixRights(int(along.Fd())), nil)
	} else {
		_, err = c.conn.Write(b)
	}
	if err != nil {
		_ = c.conn.Close() // what was written of the frame cannot be taken back
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return nil
}

// watch asks for the end of the first process, once per client.
func (c *Client) watch() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.send(wire.KindWait, exitID, nil, nil)
}

// Create hands over the spec and returns when the first process exists and is held.
func (c *Client) Create(ctx context.Context, spec *wire.Spec) (wire.State, error) {
	payload := spec.Append(nil)
	if len(payload) > wire.MaxPayload {
		return wire.State{}, fmt.Errorf("arguments and settings: got %d bytes, want at most %d", len(payload), wire.MaxPayload)
	}
	s, err := c.state(ctx, wire.KindCreate, payload)
	if err != nil {
		return s, err
	}
	return s, c.watch()
}

// State asks how the container is.
func (c *Client) State(ctx context.Context) (wire.State, error) {
	return c.state(ctx, wire.KindState, nil)
}

func (c *Client) state(ctx context.Context, kind uint8, payload []byte) (wire.State, error) {
	f, err := c.call(ctx, kind, payload)
	if err != nil {
		return wire.State{}, err
	}
	s, err := wire.ParseState(f.payload)
	if err != nil {
		return wire.State{}, ErrLost
	}
	return s, nil
}

// Start lets the held process go and returns when the command is being executed.
func (c *Client) Start(ctx context.Context) error {
	_, err := c.call(ctx, wire.KindStart, nil)
	return err
}

// Signal sends sig to the process group of the first process. The error matches syscall.ESRCH when
// that has ended.
func (c *Client) Signal(ctx context.Context, sig syscall.Signal) error {
	_, err := c.call(ctx, wire.KindSignal, wire.AppendUint32(nil, uint32(sig)))
	return err
}

// Resize changes the size of the container's terminal. The error matches syscall.ENOTTY when it has none.
func (c *Client) Resize(ctx context.Context, rows, columns uint16) error {
	_, err := c.call(ctx, wire.KindResize, wire.AppendSize(nil, rows, columns))
	return err
}

// Kill kills every process of the container, and returns when none is left: for the first container of a shim, whatever
// descends from the shim, for another, what descends from its first process and the session of that.
func (c *Client) Kill(ctx context.Context) error {
	_, err := c.call(ctx, wire.KindKill, nil)
	return err
}

// Release lets the shim forget the container, and end if it is its first. It is refused while the container's first
// process lives.
func (c *Client) Release(ctx context.Context) error {
	_, err := c.call(ctx, wire.KindRelease, nil)
	return err
}

// Exited is closed when the first process has ended; End then says how.
func (c *Client) Exited() <-chan struct{} { return c.exited }

// End is the state at the end of the first process, once Exited is closed.
func (c *Client) End() wire.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end
}

// Lost is closed when the shim is gone. The end of the first process may still have come before.
func (c *Client) Lost() <-chan struct{} { return c.lost }

// Close gives up the connection and waits for what belongs to it. The shim lives on if it was
// started; when this process ends, the system's first process reaps it.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	err := c.conn.Close()
	<-c.done
	return err
}

// Dismiss kills the container's processes, lets the shim forget it, and waits until the connection, and with the first
// container the shim, is gone. Nil when it was gone already.
func (c *Client) Dismiss(ctx context.Context) error {
	err := c.Kill(ctx)
	if err == nil {
		err = c.Release(ctx)
	}
	if err != nil && !errors.Is(err, ErrLost) {
		return fmt.Errorf("end shim: %w", err)
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end shim: %w", ctx.Err())
	}
}

// Pid is the shim's process if this process started it, else 0.
func (c *Client) Pid() int {
	if c.proc == nil {
		return 0
	}
	return c.proc.Pid
}

// Abandon ends a shim whose container is not wanted: one that was never started kills what it made
// when its connection ends. It waits for the shim to end, which has to be this process's child.
func (c *Client) Abandon(ctx context.Context) error {
	if conn, ok := c.conn.(*net.UnixConn); ok {
		// Half a close: the shim sees the end, and we see when it has gone.
		_ = conn.CloseWrite()
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		_ = c.conn.Close()
		return fmt.Errorf("end shim: %w", ctx.Err())
	}
}
