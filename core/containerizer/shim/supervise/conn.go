package supervise

import (
	"syscall"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// maxRequest bounds a request other than a creation: none of them carries more than a few numbers.
const maxRequest = 64

// A conn is one connection, about one container. What it sends is collected in buf until a frame is whole, or in spec
// if it is a creation.
type conn struct {
	fd   int // -1 when closed
	of   *container
	out  *client // not nil when it has turned into a stream
	buf  [wire.HeaderSize + maxRequest]byte
	n    int
	sent int    // a descriptor that came along, 0 for none
	spec []byte // as much as is there; its capacity is the whole length
}

// send writes a frame. A client that does not read its answers loses its connection: nothing may
// hold up the shim.
func (cn *conn) send(kind uint8, id uint32, payload []byte) {
	if cn.fd < 0 {
		return
	}
	b := wire.AppendFrame(nil, kind, id, payload)
	for len(b) > 0 {
		n, err := syscall.SendmsgN(cn.fd, b, nil, nil, syscall.MSG_NOSIGNAL|syscall.MSG_DONTWAIT)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			_ = syscall.Shutdown(cn.fd, syscall.SHUT_RDWR) // the loop sees the end and closes it
			return
		}
		b = b[n:]
	}
}

func (cn *conn) close() {
	if cn.fd < 0 {
		return
	}
	_ = syscall.Close(cn.fd)
	cn.fd = -1
	cn.dropSent()
	if cn.out != nil {
		cn.of.streams.leave(cn.out)
		cn.of.streams.tidy()
	}
}

// read takes what a client sent and handles whole frames. It reports whether the shim was released.
func (s *supervisor) read(cn *conn) (released bool) {
	room := cn.buf[cn.n:]
	if cn.spec != nil {
		room = cn.spec[len(cn.spec):cap(cn.spec)]
	}
	n, err := cn.receive(room)
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return false
	}
	if err != nil || n <= 0 {
		cn.close()
		return false
	}
	if cn.spec != nil {
		if cn.spec = cn.spec[:len(cn.spec)+n]; len(cn.spec) == cap(cn.spec) {
			_, _, id, _ := wire.Header(cn.buf[:])
			spec := cn.spec
			cn.spec, cn.n = nil, 0
			s.keepMore(cn, id, spec)
		}
		return false
	}
	cn.n += n
	for cn.fd >= 0 && cn.out == nil && cn.n >= wire.HeaderSize {
		size, kind, id, err := wire.Header(cn.buf[:cn.n])
		if err == nil && kind == wire.KindCreate && size > maxRequest {
			// The rest comes by itself; the header stays where it is, for its id.
			cn.spec = append(make([]byte, 0, size), cn.buf[wire.HeaderSize:cn.n]...)
			cn.n = wire.HeaderSize
			return released
		}
		if err != nil || size > maxRequest {
			cn.close()
			return released
		}
		if cn.n < wire.HeaderSize+size {
			break
		}
		released = s.handle(cn, kind, id, cn.buf[wire.HeaderSize:wire.HeaderSize+size]) || released
		copy(cn.buf[:], cn.buf[wire.HeaderSize+size:cn.n])
		cn.n -= wire.HeaderSize + size
	}
	if cn.out != nil && cn.n > 0 {
		cn.close() // it has not waited for the answer
	}
	return released
}

// receive reads, and takes a descriptor that comes along where there is use for one.
func (cn *conn) receive(b []byte) (int, error) {
	if cn.of.s.abilities&wire.CanRun != 0 {
		return syscall.Read(cn.fd, b)
	}
	rights := make([]byte, syscall.CmsgSpace(4))
	n, m, _, _, err := syscall.Recvmsg(cn.fd, b, rights, syscall.MSG_CMSG_CLOEXEC)
	if fd := descriptor(rights[:m]); err == nil && fd > 0 {
		cn.dropSent()
		cn.sent = fd
	}
	return n, err
}

func (cn *conn) dropSent() {
	if cn.sent > 0 {
		_ = syscall.Close(cn.sent)
		cn.sent = 0
	}
}

// descriptor is the one that came with a message, 0 for none.
func descriptor(rights []byte) int {
	messages, err := syscall.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		return 0
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0
	}
	return fds[0]
}

// handle answers a request. It reports whether the shim was released.
func (s *supervisor) handle(cn *conn, kind uint8, id uint32, payload []byte) (released bool) {
	refuse := func(errno syscall.Errno, text string) {
		cn.send(wire.KindError, id, wire.AppendError(nil, int(errno), text))
	}
	c := cn.of
	switch kind {
	case wire.KindCreate:
		s.keepMore(cn, id, payload)
	case wire.KindState:
		cn.send(wire.KindStateIs, id, c.stateFrame())
	case wire.KindStart:
		c.start(waiter{cn, id})
	case wire.KindWait:
		if c.state.Exited {
			cn.send(wire.KindExit, id, c.stateFrame())
			return false
		}
		c.ending = append(c.ending, waiter{cn, id})
	case wire.KindSignal:
		sig, err := wire.ParseUint32(payload)
		if err != nil || sig == 0 || sig > 64 {
			refuse(syscall.EINVAL, "no such signal")
			return false
		}
		if c.state.Exited || c.state.Pid == 0 {
			refuse(syscall.ESRCH, "no process")
			return false
		}
		if err := c.signal(syscall.Signal(sig)); err != nil {
			errno, _ := err.(syscall.Errno)
			refuse(errno, "kill: "+err.Error())
			return false
		}
		cn.send(wire.KindOK, id, nil)
	case wire.KindKill:
		if s.childless {
			cn.send(wire.KindOK, id, nil)
			return false
		}
		c.killing = append(c.killing, waiter{cn, id})
		if c.isFirst() {
			s.kill(c)
		} // and of another, settle does
	case wire.KindRelease:
		if !s.childless && !c.over() {
			refuse(syscall.EBUSY, "the container is running")
			return false
		}
		if c.streams != nil {
			c.streams.lastWords()
		}
		cn.send(wire.KindOK, id, nil)
		if c.isFirst() {
			return true
		}
		s.drop(c)
	case wire.KindResize:
		rows, columns, err := wire.ParseSize(payload)
		if st := c.streams; err != nil || st == nil || !st.terminal || st.in < 0 {
			refuse(syscall.ENOTTY, "no terminal")
			return false
		}
		if err := c.streams.resize(rows, columns); err != nil {
			refuse(syscall.EIO, err.Error())
			return false
		}
		cn.send(wire.KindOK, id, nil)
	case wire.KindRuntime:
		if s.abilities&wire.CanRun == 0 {
			if cn.sent == 0 {
				refuse(syscall.EBADF, "no runtime came along")
				return false
			}
			if err := putRuntime(cn.sent); err != nil {
				refuse(syscall.EIO, err.Error())
				return false
			}
			s.abilities |= wire.CanRun
		}
		cn.dropSent()
		cn.send(wire.KindOK, id, nil)
	case wire.KindAttach:
		s.attach(cn, id)
	default:
		refuse(syscall.ENOSYS, "unknown request")
	}
	return false
}

// dropClosed forgets closed connections and what they waited for.
func (s *supervisor) dropClosed() {
	open := s.conns[:0]
	for _, cn := range s.conns {
		if cn.fd >= 0 {
			open = append(open, cn)
		}
	}
	clear(s.conns[len(open):])
	if len(open) == len(s.conns) {
		return
	}
	s.conns = open
	s.forget(nil)
}

// forget drops what was waited for by cn, and by connections that are closed.
func (s *supervisor) forget(cn *conn) {
	for _, c := range s.containers {
		c.starting = without(c.starting, cn)
		c.ending = without(c.ending, cn)
		c.killing = without(c.killing, cn)
	}
}

func without(ws []waiter, cn *conn) []waiter {
	kept := ws[:0]
	for _, w := range ws {
		if w.conn.fd >= 0 && w.conn != cn {
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
