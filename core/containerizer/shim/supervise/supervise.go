// Package supervise is the shim: the parent of a container's first process, which keeps its exit status and its
// streams, and outlives the agent. It keeps further containers, nested in the first or beside it, when it is asked to.
//
// It promises to answer a socket for each container while that runs, to leave `pid` and `exit` records in
// the run folder by rename, so that they are whole or absent, and to reap everything the containers
// leave behind. A container that was never started dies with the agent that created it. A process is never held up by
// a client, but for the first reader of a session; see streams.go. It knows no isolators and no checkpoints; cgroups
// it only puts the first process into.
//
// Its memory is paid once per container: it uses plain system calls and two goroutines, one waiting
// for messages and one for the end of children. The garbage collector is off (see the agent's
// environment for it) and what it allocates after the start is bounded by the requests it answers; only one that is
// asked to keep more and more containers collects now and then.
package supervise

import (
	"runtime"
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

// A supervisor is the whole state of a shim.
type supervisor struct {
	self    int // pid of the shim
	wake    int // event counter that ends the poll of serve
	reserve int // a descriptor to give up when there are no more, see accept

	mu         sync.Mutex // guards everything below, and all containers
	containers []*container
	conns      []*conn
	abilities  uint32

	orphans   [64]ended // ends of unknown children seen while a runtime was creating, the newest ones
	orphanN   int
	childless bool // waitid found no children
	litter    int  // bytes that containers left since the last collection, about

	list          []process // of the machine; see kill.go, as the two below
	entries, stat []byte
	name          [32]byte

	vectors [3]unix.Iovec // for gather, as message
	message unix.Msghdr
	scratch []byte // what is read from processes and clients, on its way; made at first use
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

// Run serves until the first container has ended and was released or forgotten, and returns the
// process's exit code. conn is the connection of the agent, spec the first frame on it with id.
// runtime says that a runtime was handed over at wire.RuntimeFD.
// Run must be called on a locked thread.
func Run(fd int, id uint32, spec *wire.Spec, runtime bool) int {
	s := &supervisor{self: syscall.Getpid(), wake: -1, reserve: -1, abilities: wire.CanKeepMore | wire.CanTake | wire.CanRoot}
	if runtime {
		s.abilities |= wire.CanRun
	}
	c := s.newContainer(spec)
	_ = syscall.SetNonblock(fd, true)
	cn := &conn{fd: fd, of: c}
	s.conns = append(s.conns, cn)
	c.creating = &waiter{cn, id}
	err := s.prepare()
	if err == nil {
		s.mu.Lock()
		err = c.create()
		s.mu.Unlock()
	}
	if err != nil {
		c.failCreate(err)
		return 1
	}
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
	var err error
	s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fail("make event counter", "", err)
	}
	s.keepReserve()
	if s.abilities&wire.CanRun == 0 {
		// Nothing else is to be at the descriptor that a runtime may come to.
		return putRuntime(s.wake)
	}
	return nil
}

// keepReserve opens the descriptor that accept gives up.
func (s *supervisor) keepReserve() {
	if fd, err := unix.FcntlInt(uintptr(s.wake), unix.F_DUPFD_CLOEXEC, 0); err == nil {
		s.reserve = fd
	}
}

// putRuntime puts a copy of fd where a runtime is found.
func putRuntime(fd int) error {
	if fd == wire.RuntimeFD {
		return nil
	}
	if err := unix.Dup3(fd, wire.RuntimeFD, unix.O_CLOEXEC); err != nil {
		return fail("keep runtime", "", err)
	}
	return nil
}

// maxLitter is how many bytes containers may have left before they are collected. One leaves its spec, twice, and about
// litterOfOne more.
const (
	maxLitter   = 1 << 20
	litterOfOne = 4 << 10
)

// keepMore creates a container that a client asks for, which from then on is what its connection is about. When that
// fails the connection is closed: what is sent on it next is meant for the new container, and not for the first.
func (s *supervisor) keepMore(cn *conn, id uint32, payload []byte) {
	refuse := func(errno syscall.Errno, text string) {
		cn.send(wire.KindError, id, wire.AppendError(nil, int(errno), text))
		cn.close()
	}
	spec, err := wire.ParseSpec(payload)
	if err != nil || spec.RunDir == "" || spec.RunDir[0] != '/' {
		refuse(syscall.EINVAL, "malformed container")
		return
	}
	first := s.containers[0]
	if cn.of != first || !first.state.Started || first.state.Exited || s.childless {
		refuse(syscall.ESRCH, "the container beside which it was to be does not run")
		return
	}
	if !s.hasFilesFor(len(s.containers) + 1) {
		refuse(syscall.EMFILE, "too many containers are kept by one shim")
		return
	}
	if s.litter += 2*len(payload) + litterOfOne; s.litter > maxLitter {
		s.litter = 0
		runtime.GC()
	}
	c := s.newContainer(spec)
	s.forget(cn) // what it waited for of the first container
	cn.of = c
	c.creating = &waiter{cn, id}
	if err := c.create(); err != nil {
		c.failCreate(err)
		if c.over() {
			s.drop(c)
		}
	}
}

// hasFilesFor says whether so many containers leave some of the descriptors that there may be. One has at most eight
// open, connections not counted: a listener, three streams, two files and their folders.
func (s *supervisor) hasFilesFor(containers int) bool {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return true
	}
	return uint64(16+8*containers+len(s.conns)) <= limit.Cur-limit.Cur/8
}

// drop forgets a container that has ended, with all that is kept for it.
func (s *supervisor) drop(c *container) {
	for _, cn := range s.conns {
		if cn.of == c {
			cn.close()
		}
	}
	if c.streams != nil {
		c.streams.lastWords()
	}
	c.close()
	for i, o := range s.containers {
		if o == c {
			s.containers = append(s.containers[:i], s.containers[i+1:]...)
			break
		}
	}
}

// rouse ends the poll of serve, which then looks at everything again.
func (s *supervisor) rouse() {
	one := [8]byte{1}
	_, _ = syscall.Write(s.wake, one[:])
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
