// Package supervise is the shim: the parent of one container's first process, which keeps its exit
// status and outlives the agent.
//
// It promises to answer its socket while the container runs, to leave `pid` and `exit` records in
// the run folder by rename, so that they are whole or absent, and to reap everything the container
// leaves behind. A container that was never started dies with the agent that created it. It knows
// no isolators and no checkpoints; cgroups it only puts the first process into.
//
// Its memory is paid once per container: it uses plain system calls and two goroutines, one waiting
// for messages and one for the end of children. The garbage collector is off (see the agent's
// environment for it) and what it allocates after the start is bounded by the requests it answers.
package supervise

import (
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// Names of the files in a run folder. The records hold decimal numbers with a newline: pid and
// start ticks; wait status and Unix time in seconds.
const (
	SocketName = "sock"
	PidName    = "pid"
	ExitName   = "exit"
)

// maxConns bounds the connections held: the agent uses one, an operator's tools a second.
const maxConns = 8

// A supervisor is the whole state of a shim.
type supervisor struct {
	self int // pid of the shim

	mu       sync.Mutex // guards everything below
	spec     *wire.Spec
	dir      int // descriptor of the run folder
	listener int
	stage    int // our end of the stage's socket, -1 without one
	conns    []*conn

	state     wire.State
	startable bool      // the first process exists and is held
	staged    bool      // a stage holds the first process, until it executes
	executes  bool      // the stage is about to execute the command
	creating  *waiter   // who waits for Created
	starting  []waiter  // who waits for the start
	ending    []waiter  // who waits for the end
	killing   []waiter  // who waits for the last descendant
	stageErr  string    // what the stage complained about
	runtime   int       // pid of the runtime's create command while it runs
	orphans   [64]ended // ends seen while the runtime was creating, the newest ones
	orphanN   int
	childless bool // waitid found no children
}

// A waiter is a request to be answered later.
type waiter struct {
	conn *conn
	id   uint32
}

type ended struct {
	pid    int
	status uint32
}

// Run serves until the container has ended and was released or forgotten, and returns the
// process's exit code. conn is the connection of the agent, spec the first frame on it with id.
// Run must be called on a locked thread.
func Run(fd int, id uint32, spec *wire.Spec) int {
	s := &supervisor{self: syscall.Getpid(), spec: spec, dir: -1, listener: -1, stage: -1}
	_ = syscall.SetNonblock(fd, true)
	c := &conn{fd: fd}
	s.conns = append(s.conns, c)
	s.creating = &waiter{c, id}
	if err := s.prepare(); err != nil {
		s.failCreate(err)
		return 1
	}
	s.mu.Lock()
	err := s.create()
	if err != nil {
		s.failCreate(err)
		s.mu.Unlock()
		return 1
	}
	s.mu.Unlock()
	go s.reap()
	return s.serve()
}

// prepare makes this process a shim.
func (s *supervisor) prepare() error {
	ignoreSignals()
	syscall.Umask(0o022)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fail("become subreaper", "", err)
	}
	// The name in ps and top; at most 15 bytes count.
	name := append([]byte("mosaic-shim"), 0)
	_ = unix.Prctl(unix.PR_SET_NAME, addr(name), 0, 0, 0)
	if err := syscall.Chdir(s.spec.RunDir); err != nil {
		return fail("enter", s.spec.RunDir, err)
	}
	var err error
	s.dir, err = syscall.Open(".", syscall.O_DIRECTORY|syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fail("open", s.spec.RunDir, err)
	}
	s.listener, err = listen()
	if err != nil {
		return fail("listen in", s.spec.RunDir, err)
	}
	// Stay in no folder that someone may want to remove or unmount.
	if err := syscall.Chdir("/"); err != nil {
		return fail("enter", "/", err)
	}
	return nil
}

// listen binds the socket by a name relative to the current folder, so that the folder's own
// length does not count against the 108 bytes of an address.
func listen() (int, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	_ = syscall.Unlink(SocketName)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: SocketName}); err != nil {
		return -1, err
	}
	// Only the owner may connect: whoever does can signal the container.
	if err := syscall.Chmod(SocketName, 0o600); err != nil {
		return -1, err
	}
	return fd, syscall.Listen(fd, maxConns)
}

// failCreate answers the pending create with err. The caller ends the shim.
func (s *supervisor) failCreate(err error) {
	w := s.creating
	s.creating = nil
	if w == nil {
		return
	}
	errno := 0
	if e, ok := err.(*opError); ok {
		errno = int(e.errno)
	}
	w.conn.send(wire.KindError, w.id, wire.AppendError(nil, errno, err.Error()))
}

// created answers the pending create.
func (s *supervisor) created() {
	if s.creating != nil {
		s.creating.conn.send(wire.KindCreated, s.creating.id, s.state.Append(nil))
		s.creating = nil
	}
}

// An opError says what was being done to what. It is small where fmt would not be.
type opError struct {
	op, what string
	errno    syscall.Errno
}

func (e *opError) Error() string {
	t := e.op
	if e.what != "" {
		t += " " + e.what
	}
	return t + ": " + e.errno.Error()
}

func fail(op, what string, err error) error {
	e, ok := err.(syscall.Errno)
	if !ok {
		e = syscall.EIO
	}
	return &opError{op, what, e}
}
