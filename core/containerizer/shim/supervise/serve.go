package supervise

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// maxConns bounds the connections about one container, streams not counted: the agent uses one, and for a moment one for
// each container that it is creating beside the first.
const maxConns = 64

// killPause is how long to wait between two looks at a container beside the first that is being killed, in
// nanoseconds: not all of its processes are children whose end is told.
const killPause = 5_000_000

// A source is whose descriptor is polled.
type source struct {
	what  uint8
	which int // of the outputs
	c     *container
	conn  *conn
}

const (
	isWake = iota
	isListener
	isStage
	isConsole
	isInput
	isOutput
	isFile
	isConn
)

// polled are the descriptors to wait for, and whose they are.
type polled struct {
	fds     []unix.PollFd
	sources []source
}

func (p *polled) add(fd int, events int16, of source) {
	if fd >= 0 && events != 0 {
		p.fds = append(p.fds, unix.PollFd{Fd: int32(fd), Events: events})
		p.sources = append(p.sources, of)
	}
}

// serve answers requests and moves bytes until there is nothing left to keep.
func (s *supervisor) serve() int {
	var p polled
	for {
		s.mu.Lock()
		timeout, done := s.settle()
		if done {
			for _, c := range s.containers {
				if c.streams != nil {
					c.streams.lastWords()
				}
			}
			s.mu.Unlock()
			return 0
		}
		s.gatherPolled(&p)
		s.mu.Unlock()

		if err := poll(p.fds, timeout); err != nil {
			if err == syscall.EINTR {
				continue
			}
			return 1
		}

		s.mu.Lock()
		released := false
		for i, f := range p.fds {
			if f.Revents != 0 {
				released = s.happened(&p.sources[i], int(f.Fd), f.Revents) || released
			}
		}
		s.dropClosed()
		s.mu.Unlock()
		if released {
			return 0
		}
	}
}

// gatherPolled lists what to wait for.
func (s *supervisor) gatherPolled(p *polled) {
	p.fds, p.sources = p.fds[:0], p.sources[:0]
	p.add(s.wake, unix.POLLIN, source{what: isWake})
	for _, c := range s.containers {
		p.add(c.listener, unix.POLLIN, source{what: isListener, c: c})
		p.add(c.stage, unix.POLLIN, source{what: isStage, c: c})
		p.add(c.console, unix.POLLIN, source{what: isConsole, c: c})
		if st := c.streams; st != nil {
			if st.blocked() {
				p.add(st.in, unix.POLLOUT, source{what: isInput, c: c})
			}
			for i := range st.out {
				if st.takes(i) {
					p.add(st.out[i].fd, unix.POLLIN, source{what: isOutput, which: i, c: c})
				}
				if len(st.out[i].rest) > 0 {
					p.add(st.out[i].file, unix.POLLOUT, source{what: isFile, which: i, c: c})
				}
			}
		}
	}
	for _, cn := range s.conns {
		events := int16(unix.POLLIN)
		if cn.out != nil {
			if cn.held() {
				events = 0
			}
			if cn.out.wants(cn.of.streams) {
				events |= unix.POLLOUT
			}
		}
		p.add(cn.fd, events, source{what: isConn, conn: cn})
	}
}

// happened handles what is said of a descriptor, unless it is another by now. Nothing is believed but what is then
// read. It reports whether the shim was released.
func (s *supervisor) happened(of *source, fd int, events int16) (released bool) {
	c := of.c
	switch of.what {
	case isWake:
		var b [8]byte
		_, _ = syscall.Read(s.wake, b[:])
	case isListener:
		if c.listener == fd {
			s.accept(c)
		}
	case isStage:
		if c.stage == fd {
			c.readStage()
		}
	case isConsole:
		if c.console == fd {
			c.readConsole()
		}
	case isInput:
		if c.streams.in == fd && c.streams.blocked() {
			c.streams.feedRest()
		}
	case isOutput:
		if c.streams.out[of.which].fd == fd {
			c.streams.take(of.which)
		}
	case isFile:
		if c.streams.out[of.which].file == fd {
			c.streams.storeRest(of.which)
		}
	case isConn:
		cn := of.conn
		switch {
		case cn.fd != fd:
		case cn.out == nil:
			return s.read(cn)
		default:
			cn.flush()
			if events&^unix.POLLOUT != 0 && !cn.held() {
				s.readStream(cn)
			}
		}
	}
	return false
}

// settle does what has come due, and says how long the next poll may last, in nanoseconds or -1, and whether nothing
// is left to do: the first container has ended and left nothing, and nobody is connected. Then the exit
// record says all there is to know. A container that was never started has nobody to start it once
// the last connection is gone; it is killed, and so its end is waited for.
func (s *supervisor) settle() (timeout int64, done bool) {
	timeout = -1
	within := func(ns int64) {
		if ns >= 0 && (timeout < 0 || ns < timeout) {
			timeout = ns
		}
	}
	for i := len(s.containers) - 1; i >= 0; i-- {
		c := s.containers[i]
		if c.streams != nil {
			within(c.streams.due())
		}
		alone := !s.attended(c)
		if alone && !c.state.Started && (c.isFirst() && !s.childless || !c.over()) {
			s.kill(c)
		}
		if c.isFirst() {
			continue
		}
		if alone && c.over() {
			s.drop(c)
			continue
		}
		if len(c.killing) > 0 {
			if s.kill(c) == 0 && c.over() {
				c.killing = answerAll(c.killing, wire.KindOK, nil)
				continue
			}
			within(killPause)
		}
	}
	s.dropClosed()
	return timeout, len(s.conns) == 0 && s.childless
}

// attended says whether anyone is connected about c.
func (s *supervisor) attended(c *container) bool {
	for _, cn := range s.conns {
		if cn.of == c && cn.fd >= 0 {
			return true
		}
	}
	return false
}

// poll waits for events, for timeout nanoseconds unless that is negative.
func poll(fds []unix.PollFd, timeout int64) error {
	var ts *unix.Timespec
	if timeout >= 0 {
		t := unix.NsecToTimespec(timeout)
		ts = &t
	}
	_, _, errno := syscall.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	runtime.KeepAlive(fds)
	if errno != 0 {
		return errno
	}
	return nil
}

func (s *supervisor) accept(c *container) {
	fd, _, err := syscall.Accept4(c.listener, syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
	if err == syscall.EMFILE || err == syscall.ENFILE {
		// It would be there to be accepted for ever: it is accepted in place of the descriptor kept for this, and closed.
		closeFD(&s.reserve)
		if fd, _, err = syscall.Accept4(c.listener, syscall.SOCK_CLOEXEC); err == nil {
			_ = syscall.Close(fd)
		}
		s.keepReserve()
		return
	}
	if err != nil {
		return // gone again
	}
	n := 0
	for _, cn := range s.conns {
		if cn.of == c && cn.out == nil {
			n++
		}
	}
	if n >= maxConns {
		_ = syscall.Close(fd)
		return
	}
	s.conns = append(s.conns, &conn{fd: fd, of: c})
}
