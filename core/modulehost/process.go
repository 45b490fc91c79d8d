package modulehost

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// handshakeTimeout is how long a module may take from its exec to its handshake line. Go modules take 7 ms, Python
	// ones 120 ms; the rest is for a busy machine.
	handshakeTimeout = 5 * time.Second
	// maxHandshakeLine bounds the first line of a module's output; the real one has about 120 bytes.
	maxHandshakeLine = 4 << 10
	// pipePatience is how long output is still read after the end of a module whose descendants keep it open.
	pipePatience = 200 * time.Millisecond
)

// process is one life of a module's process. It satisfies go-plugin's runner.Runner, which asks of it the start, the
// handshake line and the address; everything after that goes past go-plugin.
type process struct {
	spawner *spawner
	pump    *logPump
	exe     *executable
	args    []string
	env     []string
	uid     uint32
	cred    *syscall.Credential
	cgroup  *moduleCgroup
	sockets string // folder of its socket, 0700, removed at the end

	first io.ReadCloser // the handshake line for go-plugin
	stdin *os.File      // closing it tells modules in any language that their host is gone

	proc   atomic.Pointer[os.Process] // nil before the start
	doomed atomic.Bool                // to be killed as soon as it is started
	ended  chan struct{}              // closed when the first process is reaped and everything in its cgroup is dead
	end    string                     // how it ended; read after ended
	pipes  sync.WaitGroup
}

// lookupUser gives the credentials of a user by name or number; nil for an empty name.
func lookupUser(name string) (*syscall.Credential, error) {
	if name == "" {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		byID, idErr := user.LookupId(name)
		if idErr != nil {
			return nil, fmt.Errorf("user %q: %w", name, err)
		}
		u = byID
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %q: uid %s: %w", name, u.Uid, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %q: gid %s: %w", name, u.Gid, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// prepare takes over what go-plugin settled for the start: the environment and the folder for the socket.
func (p *process) prepare(cmd *exec.Cmd, sockets string) error {
	p.sockets = sockets
	p.uid = uint32(os.Geteuid())
	if p.cred != nil {
		p.uid = p.cred.Uid
		if err := os.Chown(sockets, int(p.cred.Uid), int(p.cred.Gid)); err != nil {
			return fmt.Errorf("give the socket folder to the module's user: %w", err)
		}
	}
	// Nothing of the agent's own environment: it may hold secrets, and modules must not depend on it.
	p.env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LANG=C.UTF-8",
		"TMPDIR=" + sockets,
		"MOSAIC_MODULE_FILE=" + p.exe.path,
	}, cmd.Env...)
	return nil
}

// Start starts the process. Part of runner.Runner.
func (p *process) Start(context.Context) error {
	var files []*os.File // to close when done
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	pipe := func() (r, w *os.File, err error) {
		r, w, err = os.Pipe()
		if err == nil {
			files = append(files, r, w)
		}
		return r, w, err
	}
	inR, inW, err := pipe()
	if err != nil {
		return err
	}
	outR, outW, err := pipe()
	if err != nil {
		return err
	}
	errR, errW, err := pipe()
	if err != nil {
		return err
	}
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   p.env,
		Files: []*os.File{inR, outW, errW},
		Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Credential: p.cred},
	}
	// The descriptor that was hashed is what is executed. A script is read once more by its interpreter, through the
	// same descriptor, which is then left open as number 3.
	path := fmt.Sprintf("/proc/self/fd/%d", p.exe.file.Fd())
	if p.exe.script {
		attr.Files = append(attr.Files, p.exe.file)
		path = "/proc/self/fd/3"
	}
	var inside []v1Mount
	if p.cgroup.exists() {
		inside = p.cgroup.v1
		if p.cgroup.unified != "" {
			folder, err := os.Open(p.cgroup.unified)
			if err != nil {
				return fmt.Errorf("open cgroup: %w", err)
			}
			files = append(files, folder)
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(folder.Fd())
		}
	}
	proc, err := p.spawner.start(path, append([]string{p.exe.path}, p.args...), attr, inside)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.exe.path, err)
	}
	p.proc.Store(proc)
	if p.doomed.Load() {
		_ = proc.Kill()
	}
	files = []*os.File{inR, outW, errW}
	p.stdin = inW

	gone := make(chan struct{}) // the first process is reaped
	line, give := io.Pipe()
	p.first = line
	p.pipes.Add(2)
	go func() {
		defer p.pipes.Done()
		drain(outR, gone, pipePatience, func(r io.Reader) { p.readOutput(r, give) })
	}()
	go func() {
		defer p.pipes.Done()
		drain(errR, gone, pipePatience, p.pump.read)
	}()
	go p.wait(proc, gone)
	return nil
}

// readOutput hands the first line to go-plugin and takes the rest for log lines, so that a module that prints is
// neither blocked nor misunderstood.
func (p *process) readOutput(r io.Reader, handshake *io.PipeWriter) {
	buf := bufio.NewReaderSize(r, maxHandshakeLine)
	line, err := buf.ReadSlice('\n')
	_, _ = handshake.Write(line) // fails only when nobody waits for it any more
	handshake.Close()
	if err == nil || errors.Is(err, bufio.ErrBufferFull) {
		p.pump.read(buf)
	}
}

func (p *process) wait(proc *os.Process, gone chan<- struct{}) {
	// Its session and process group have its number, which stays taken until it is reaped: so the group is killed
	// between the end and the reaping, when the number cannot be anybody else's.
	if err := waitEnded(proc.Pid); err == nil {
		_ = unix.Kill(-proc.Pid, unix.SIGKILL)
	}
	state, err := proc.Wait()
	switch {
	case err != nil:
		p.end = err.Error()
	default:
		p.end = state.String()
	}
	if p.cgroup.exists() {
		if err := p.cgroup.kill(); err != nil {
			p.pump.out.Warn("kill what the module left behind", "error", err)
		}
	}
	close(gone)
	p.stdin.Close()
	p.exe.file.Close()
	if p.cgroup.exists() {
		p.cgroup.remove()
	}
	_ = os.RemoveAll(p.sockets)
	close(p.ended)
}

// discard undoes what was made for a process that never started.
func (p *process) discard() {
	p.exe.file.Close()
	if p.cgroup.exists() {
		p.cgroup.remove()
	}
	if p.sockets != "" {
		_ = os.RemoveAll(p.sockets)
	}
	close(p.ended)
}

// waitEnded waits until a child has ended, and does not reap it.
func waitEnded(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// kill ends the module and everything it forked, and returns when all of it is dead. One that is not started yet is
// killed at its start.
func (p *process) kill() {
	p.doomed.Store(true)
	if proc := p.proc.Load(); proc != nil {
		_ = proc.Kill() // os.ErrProcessDone is what we want
		<-p.ended
	}
}

// alive says whether the process and what it forked have not ended.
func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// The rest of runner.Runner.

// Wait waits for the end.
func (p *process) Wait(context.Context) error {
	<-p.ended
	return nil
}

// Kill ends the module.
func (p *process) Kill(context.Context) error {
	p.kill()
	return nil
}

// Stdout gives the handshake line only.
func (p *process) Stdout() io.ReadCloser { return p.first }

// Stderr is empty: the log pump reads the real one.
func (p *process) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name gives the path of the executable.
func (p *process) Name() string { return p.exe.path }

// ID gives the process number.
func (p *process) ID() string {
	if proc := p.proc.Load(); proc != nil {
		return strconv.Itoa(proc.Pid)
	}
	return ""
}

// Diagnose adds nothing: the supervisor knows the end of the process and its last words.
func (p *process) Diagnose(context.Context) string { return "" }

// PluginToHost refuses any address but a unix socket in the module's own folder: a module must not be able to send the
// agent to somebody else's socket.
func (p *process) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" {
		return "", "", fmt.Errorf("the module listens on %q, want a unix socket", network)
	}
	if filepath.Dir(filepath.Clean(address)) != filepath.Clean(p.sockets) {
		return "", "", fmt.Errorf("the module listens on %s, want a socket in %s (PLUGIN_UNIX_SOCKET_DIR)", address, p.sockets)
	}
	return network, address, nil
}

// HostToPlugin is for go-plugin's broker, which is not used.
func (p *process) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// dial connects to the module's socket and refuses a peer that is not the module's user.
func (p *process) dial(ctx context.Context, address string) (net.Conn, error) {
	info, err := os.Lstat(address)
	if err != nil {
		return nil, fmt.Errorf("find the module's socket: %w", err)
	}
	if info.Mode()&os.ModeSocket == 0 {
		return nil, fmt.Errorf("%s is not a socket", address)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", address)
	if err != nil {
		return nil, fmt.Errorf("connect to the module: %w", err)
	}
	if err := checkPeer(conn.(*net.UnixConn), p.uid); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func checkPeer(conn *net.UnixConn, want uint32) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("find the peer of the socket: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return fmt.Errorf("find the peer of the socket: %w", err)
	}
	if credErr != nil {
		return fmt.Errorf("find the peer of the socket: %w", credErr)
	}
	if cred.Uid != want {
		return fmt.Errorf("the module's socket is served by uid %d, want %d", cred.Uid, want)
	}
	return nil
}
