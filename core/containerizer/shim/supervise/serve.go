package supervise

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// maxRequest bounds a request after the first: none of them carries more than a number.
const maxRequest = 64

// A conn is one client. What it sends is collected in buf until a frame is whole.
type conn struct {
	fd  int // -1 when closed
	buf [wire.HeaderSize + maxRequest]byte
	n   int
}

// send writes a frame. A client that does not read its answers loses its connection: nothing may
// hold up the shim.
func (c *conn) send(kind uint8, id uint32, payload []byte) {
	if c.fd < 0 {
		return
	}
	b := wire.AppendFrame(nil, kind, id, payload)
	for len(b) > 0 {
		n, err := syscall.SendmsgN(c.fd, b, nil, nil, syscall.MSG_NOSIGNAL|syscall.MSG_DONTWAIT)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			_ = syscall.Shutdown(c.fd, syscall.SHUT_RDWR) // the loop sees the end and closes it
			return
		}
		b = b[n:]
	}
}

// serve answers requests until there is nothing left to keep.
func (s *supervisor) serve() int {
	fds := make([]unix.PollFd, 0, maxConns+2)
	for {
		s.mu.Lock()
		if s.finished() {
			s.mu.Unlock()
			return 0
		}
		fds = append(fds[:0], unix.PollFd{Fd: int32(s.listener), Events: unix.POLLIN})
		fds = append(fds, unix.PollFd{Fd: int32(s.stage), Events: unix.POLLIN}) // -1 is skipped by the kernel
		for _, c := range s.conns {
			fds = append(fds, unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN})
		}
		s.mu.Unlock()

		if err := poll(fds); err != nil {
			if err == syscall.EINTR {
				continue
			}
			return 1
		}

		s.mu.Lock()
		released := false
		if fds[1].Revents != 0 && s.stage == int(fds[1].Fd) {
			s.readStage()
		}
		for i, c := range s.conns[:len(fds)-2] {
			if fds[i+2].Revents != 0 {
				released = s.read(c) || released
			}
		}
		s.dropClosed()
		if fds[0].Revents != 0 {
			s.accept()
		}
		s.mu.Unlock()
		if released {
			return 0
		}
	}
}

// finished says whether the container ended, left nothing, and nobody is connected: then the exit
// record says all there is to know. A container that was never started has nobody to start it once
// the last connection is gone; it is killed, and so its end is waited for here.
func (s *supervisor) finished() bool {
	if len(s.conns) > 0 {
		return false
	}
	if !s.state.Started {
		s.killDescendants()
	}
	return s.childless
}

func poll(fds []unix.PollFd) error {
	_, _, errno := syscall.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), 0, 0, 0, 0)
	runtime.KeepAlive(fds)
	if errno != 0 {
		return errno
	}
	return nil
}

func (s *supervisor) accept() {
	fd, _, err := syscall.Accept4(s.listener, syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
	if err != nil {
		return // gone again
	}
	if len(s.conns) >= maxConns {
		_ = syscall.Close(fd)
		return
	}
	s.conns = append(s.conns, &conn{fd: fd})
}

// read takes what c sent and handles whole frames. It reports whether the shim was released.
func (s *supervisor) read(c *conn) (released bool) {
	n, err := syscall.Read(c.fd, c.buf[c.n:])
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return false
	}
	if err != nil || n <= 0 {
		c.close()
		return false
	}
	c.n += n
	for c.n >= wire.HeaderSize {
		size, kind, id, err := wire.Header(c.buf[:c.n])
		if err != nil || size > maxRequest {
			c.close()
			return released
		}
		if c.n < wire.HeaderSize+size {
			break
		}
		released = s.handle(c, kind, id, c.buf[wire.HeaderSize:wire.HeaderSize+size]) || released
		copy(c.buf[:], c.buf[wire.HeaderSize+size:c.n])
		c.n -= wire.HeaderSize + size
	}
	return released
}

func (s *supervisor) handle(c *conn, kind uint8, id uint32, payload []byte) (released bool) {
	refuse := func(errno syscall.Errno, text string) {
		c.send(wire.KindError, id, wire.AppendError(nil, int(errno), text))
	}
	switch kind {
	case wire.KindState:
		c.send(wire.KindStateIs, id, s.state.Append(nil))
	case wire.KindStart:
		s.start(waiter{c, id})
	case wire.KindWait:
		if s.state.Exited {
			c.send(wire.KindExit, id, s.state.Append(nil))
			return false
		}
		s.ending = append(s.ending, waiter{c, id})
	case wire.KindSignal:
		sig, err := wire.ParseUint32(payload)
		if err != nil || sig == 0 || sig > 64 {
			refuse(syscall.EINVAL, "no such signal")
			return false
		}
		if s.state.Exited || s.state.Pid == 0 {
			refuse(syscall.ESRCH, "no process")
			return false
		}
		if err := s.signal(syscall.Signal(sig)); err != nil {
			errno, _ := err.(syscall.Errno)
			refuse(errno, "kill: "+err.Error())
			return false
		}
		c.send(wire.KindOK, id, nil)
	case wire.KindKill:
		if s.childless {
			c.send(wire.KindOK, id, nil)
			return false
		}
		s.killing = append(s.killing, waiter{c, id})
		s.killDescendants()
	case wire.KindRelease:
		if !s.childless && !s.state.Exited {
			refuse(syscall.EBUSY, "the container is running")
			return false
		}
		c.send(wire.KindOK, id, nil)
		return true
	default:
		refuse(syscall.ENOSYS, "unknown request")
	}
	return false
}

// signal sends sig to the first process and its group. The process is not reaped while mu is held, so
// its pid is its own.
//
// The first process of a pid namespace is deaf to signals it has no handler for, where any other would
// end: sleep or a shell would then take no notice of SIGTERM. It is killed instead, which is what the
// default action comes to.
func (s *supervisor) signal(sig syscall.Signal) error {
	deaf := sig != syscall.SIGKILL && endsByDefault(sig) && isDeafInit(s.state.Pid, sig)
	err := syscall.Kill(-s.state.Pid, sig)
	if err == syscall.ESRCH { // it leads no group
		err = syscall.Kill(s.state.Pid, sig)
	}
	if err == nil && deaf {
		err = syscall.Kill(s.state.Pid, syscall.SIGKILL)
	}
	return err
}

func (c *conn) close() {
	_ = syscall.Close(c.fd)
	c.fd = -1
}

// dropClosed forgets closed connections and what they waited for.
func (s *supervisor) dropClosed() {
	open := s.conns[:0]
	for _, c := range s.conns {
		if c.fd >= 0 {
			open = append(open, c)
		}
	}
	clear(s.conns[len(open):])
	if len(open) == len(s.conns) {
		return
	}
	s.conns = open
	s.starting = withoutClosed(s.starting)
	s.ending = withoutClosed(s.ending)
	s.killing = withoutClosed(s.killing)
}

func withoutClosed(ws []waiter) []waiter {
	kept := ws[:0]
	for _, w := range ws {
		if w.conn.fd >= 0 {
			kept = append(kept, w)
		}
	}
	clear(ws[len(kept):])
	return kept
}

// answerAll answers every waiter and returns the empty list.
func answerAll(ws []waiter, kind uint8, payload []byte) []waiter {
	for _, w := range ws {
		w.conn.send(kind, w.id, payload)
	}
	clear(ws)
	return ws[:0]
}

// start lets the held process go. The answer follows when the stage's socket closes, which the
// exec of the command does, or when the stage complains.
func (s *supervisor) start(w waiter) {
	switch {
	case s.stageErr != "":
		w.conn.send(wire.KindError, w.id, wire.AppendError(nil, 0, s.stageErr))
		return
	case s.state.Exited || !s.startable || s.stage < 0 && s.staged && !s.executes:
		w.conn.send(wire.KindError, w.id, wire.AppendError(nil, int(syscall.ESRCH), "no process"))
		return
	case s.stage < 0: // no stage holds it: an OCI runtime does, or it was let go before
		s.state.Started = true
		w.conn.send(wire.KindOK, w.id, nil)
		return
	}
	s.starting = append(s.starting, w)
	if !s.state.Started {
		s.state.Started = true
		if _, err := syscall.Write(s.stage, []byte{'g'}); err != nil {
			s.readStage() // it is dead; say what is known
		}
	}
}

// readStage takes what the stage says: that it holds, that it executes, an error text, or the end.
func (s *supervisor) readStage() {
	var buf [1024]byte
	n, err := syscall.Read(s.stage, buf[:])
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return
	}
	b := buf[:max(n, 0)]
	for len(b) > 0 && b[0] <= wire.StageExecutes {
		switch b[0] {
		case wire.StageHolds:
			s.created()
		case wire.StageExecutes:
			s.executes = true
		}
		b = b[1:]
	}
	if len(b) > 0 {
		s.stageErr = string(b)
		if s.creating != nil && s.runtime == 0 {
			s.failText(s.stageErr)
		}
		s.starting = answerAll(s.starting, wire.KindError, wire.AppendError(nil, 0, s.stageErr))
	}
	if n > 0 {
		return // the end follows
	}
	_ = syscall.Close(s.stage)
	s.stage = -1
	if s.executes {
		s.starting = answerAll(s.starting, wire.KindOK, nil)
		return
	}
	const text = "the first process ended before it could execute the command"
	s.starting = answerAll(s.starting, wire.KindError, wire.AppendError(nil, int(syscall.ESRCH), text))
}
