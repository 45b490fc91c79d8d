package kit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	// handshakeTimeout is the host's patience for the handshake line.
	handshakeTimeout = 5 * time.Second
	// stopTimeout is how long a module may take to end when told to.
	stopTimeout = 5 * time.Second
	// maxMessage bounds messages both ways, as the contract says.
	maxMessage = 16 << 20
	// keptOutput is how much of a module's output is kept for the report.
	keptOutput = 4 << 10
	// maxLine bounds the handshake line; a real one has about 120 bytes.
	maxLine = 4 << 10
)

// Program is a module's executable, in any language.
type Program struct {
	Path string
	Args []string
	// User runs it as another user; nil is our own.
	User *syscall.Credential
}

// Dial starts the program as a host does: with the handshake's environment and no other, and its standard input a pipe
// whose end says that the host has gone.
func (p Program) Dial(ctx context.Context) (grpc.ClientConnInterface, func() bool, error) {
	r, err := p.start(ctx)
	if err != nil {
		return nil, nil, err
	}
	return r, r.stop, nil
}

// running is one process of a Program and the connection to it.
type running struct {
	*grpc.ClientConn
	program   Program
	cmd       *exec.Cmd
	dir       string // of its socket
	stdin     io.Closer
	handshake time.Duration
	printed   tail
	log       tail
	ended     chan struct{}
	read      chan struct{} // closed when standard output has been read to its end
}

func (p Program) start(ctx context.Context) (_ *running, err error) {
	path, err := filepath.Abs(p.Path)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "mkit-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the module's socket: %w", err)
	}
	r := &running{program: p, dir: dir, ended: make(chan struct{}), read: make(chan struct{})}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	if p.User != nil {
		if err := os.Chown(dir, int(p.User.Uid), int(p.User.Gid)); err != nil {
			return nil, fmt.Errorf("give the socket's folder to the module's user: %w", err)
		}
	}
	r.cmd = exec.Command(path, p.Args...)
	if p.User != nil {
		file, err := reachable(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		// Through a descriptor, as the host does: the folders above may be closed to the user.
		r.cmd.Path, r.cmd.ExtraFiles = "/proc/self/fd/3", []*os.File{file}
	}
	r.cmd.Dir = "/"
	r.cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "TMPDIR=" + dir,
		"MOSAIC_MODULE=mosaic.module.v1", "MOSAIC_MODULE_FILE=" + path,
		"PLUGIN_PROTOCOL_VERSIONS=1", "PLUGIN_MIN_PORT=10000", "PLUGIN_MAX_PORT=25000", "PLUGIN_UNIX_SOCKET_DIR=" + dir,
	}
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Credential: p.User}
	stdin, err := r.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	r.stdin = stdin
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	r.cmd.Stdout = outW
	r.cmd.Stderr = &r.log
	r.cmd.WaitDelay = 200 * time.Millisecond // of what a module forked and left with its error stream

	begin := time.Now()
	if err := r.spawn(); err != nil {
		outR.Close()
		outW.Close()
		if p.User != nil && errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("%w: uid %d may not execute %s", ErrCannotRun, p.User.Uid, path)
		}
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	outW.Close()
	lines := make(chan string, 1)
	go func() {
		defer close(r.read)
		r.readOutput(outR, lines)
	}()
	timer := time.NewTimer(handshakeTimeout)
	defer timer.Stop()
	var line string
	select {
	case line = <-lines:
	case <-timer.C:
		err = fmt.Errorf("no handshake line within %s", handshakeTimeout)
	case <-ctx.Done():
		err = ctx.Err()
	}
	r.handshake = time.Since(begin)
	var address string
	if err == nil {
		address, err = parseHandshake(line, dir)
	}
	if err == nil {
		r.ClientConn, err = connect(address)
	}
	if err != nil {
		r.Kill()
		if words := r.Log(); words != "" {
			err = fmt.Errorf("%w; it wrote: %s", err, words)
		}
		return nil, err
	}
	return r, nil
}

// reachable opens an executable that another user shall run. A script reads what lies beside it, so that the folders
// above must be open to everybody.
func reachable(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	var magic [2]byte
	if n, _ := file.ReadAt(magic[:], 0); n < len(magic) || string(magic[:]) != "#!" {
		return file, nil
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode()&0o005 != 0o005 {
			file.Close()
			return nil, fmt.Errorf("%w: it is a script, and %s is closed to other users", ErrCannotRun, dir)
		}
		if dir == filepath.Dir(dir) {
			return file, nil
		}
	}
}

// spawn starts the process from a thread that lives as long as it does: the kernel sends the death signal when the
// thread dies that forked.
func (r *running) spawn() error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := r.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = r.cmd.Wait() // how it ended is no matter; that it did is
		close(r.ended)
	}()
	return <-started
}

// readOutput hands on the first line and keeps what comes after it.
func (r *running) readOutput(out io.ReadCloser, first chan<- string) {
	defer out.Close()
	buf := bufio.NewReaderSize(out, maxLine)
	line, err := buf.ReadSlice('\n')
	first <- string(line)
	if err == nil || errors.Is(err, bufio.ErrBufferFull) {
		_, _ = io.Copy(&r.printed, buf)
	}
}

// parseHandshake reads the line core|application|network|address|protocol|certificate|..., of which the host wants
// 1|1|unix|<a socket in its folder>|grpc.
func parseHandshake(line, dir string) (address string, err error) {
	if line == "" {
		return "", errors.New("ended before its handshake line")
	}
	parts := strings.Split(strings.TrimSpace(line), "|")
	if len(parts) < 5 {
		return "", fmt.Errorf("wrote %q, want the handshake line 1|1|unix|SOCKET|grpc|", cut(line, 200))
	}
	for i, want := range []string{"1", "1", "unix", "", "grpc"} {
		if want != "" && parts[i] != want {
			return "", fmt.Errorf("handshake line %q: field %d is %q, want %q", cut(line, 200), i+1, cut(parts[i], 40), want)
		}
	}
	if filepath.Dir(filepath.Clean(parts[3])) != filepath.Clean(dir) {
		return "", fmt.Errorf("the module listens on %s, want a socket in PLUGIN_UNIX_SOCKET_DIR, which is %s", cut(parts[3], 200), dir)
	}
	return parts[3], nil
}

func connect(address string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///module",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", address)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(2*maxMessage)),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithIdleTimeout(0))
	if err != nil {
		return nil, fmt.Errorf("connect to the module: %w", err)
	}
	return conn, nil
}

// stop ends the module as a host does, and by force when it does not end.
func (r *running) stop() bool {
	exited := r.over(0)
	if !exited {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		_ = r.Invoke(ctx, "/plugin.GRPCController/Shutdown", &emptypb.Empty{}, &emptypb.Empty{}) // not every language has it
		cancel()
		r.HangUp()
		exited = r.over(stopTimeout)
	}
	r.Kill()
	return exited
}

// over says whether the process has ended or ends within d.
func (r *running) over(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.ended:
		return true
	default:
	}
	select {
	case <-r.ended:
		return true
	case <-timer.C:
		return false
	}
}

// Program is what runs.
func (r *running) Program() Program { return r.program }

// Pid is the process's number.
func (r *running) Pid() int { return r.cmd.Process.Pid }

// Kill kills it with all that it left behind.
func (r *running) Kill() {
	if !r.over(0) {
		_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
		_ = r.cmd.Process.Kill()
	}
	<-r.ended
	for _, pid := range r.Leftovers() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-r.read // nobody is left who could hold the other end
	if r.ClientConn != nil {
		_ = r.Close() // broken already
	}
	os.RemoveAll(r.dir)
}

// HangUp closes its standard input.
func (r *running) HangUp() { r.stdin.Close() }

// Ended is closed at its end.
func (r *running) Ended() <-chan struct{} { return r.ended }

// Handshake is how long the start took.
func (r *running) Handshake() time.Duration { return r.handshake }

// Printed is what came on standard output after the handshake line.
func (r *running) Printed() string { return r.printed.String() }

// Log is the end of standard error.
func (r *running) Log() string { return strings.TrimSpace(r.log.String()) }

// Leftovers finds processes by the environment that they inherited: its socket folder is in no other.
func (r *running) Leftovers() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	mark := []byte("PLUGIN_UNIX_SOCKET_DIR=" + r.dir + "\x00")
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == r.cmd.Process.Pid || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err == nil && bytes.Contains(env, mark) {
			found = append(found, pid)
		}
	}
	return found
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex // guards data
	data []byte
}

func (b *tail) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p...)
	if len(b.data) > 2*keptOutput {
		b.data = append(b.data[:0], b.data[len(b.data)-keptOutput:]...)
	}
	return len(p), nil
}

func (b *tail) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.data[max(0, len(b.data)-keptOutput):])
}

// cut shortens text for a message.
func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}
