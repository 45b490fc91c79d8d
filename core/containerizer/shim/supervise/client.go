package supervise

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// maxClients bounds the streams of one container: a session has one or two, and people who look on are few.
const maxClients = 32

// A client is a connection that has turned into a stream.
type client struct {
	reads bool // it asked for output, and takes it
	slow  bool // it was cut off, and gets what rest holds
	full  bool // its socket takes no more now
	ended bool // it was sent the end
	pos   [2]uint64

	// The frame on its way: head of it, then size bytes from the ring of output which, or rest.
	head  [wire.HeaderSize]byte
	sent  int // of head and bytes together
	size  int
	which int
	busy  bool
	rest  []byte

	input int // bytes of an input frame that are still to come
}

// attach turns a connection into a stream.
func (s *supervisor) attach(cn *conn, id uint32) {
	refuse := func(errno syscall.Errno, text string) {
		cn.send(wire.KindError, id, wire.AppendError(nil, int(errno), text))
	}
	if cn.of.streams == nil {
		refuse(syscall.ENXIO, "its streams are files")
		return
	}
	n := 0
	for _, o := range s.conns {
		if o.of == cn.of && o.out != nil {
			n++
		}
	}
	if n >= maxClients {
		refuse(syscall.EUSERS, "too many are attached")
		return
	}
	s.forget(cn)
	cn.send(wire.KindOK, id, nil)
	cn.out = &client{}
	for i := range cn.out.pos {
		cn.out.pos[i] = cn.of.streams.out[i].head
	}
}

// listen begins to send output to a client: from when it attached, or, if nobody else reads, what nobody was given.
func (st *streams) listen(cn *conn) {
	cl := cn.out
	if cl.reads || cl.ended {
		return
	}
	_, readers := st.clients()
	alone := readers == 0
	cl.reads = true
	for i := range st.out {
		o := &st.out[i]
		if alone {
			cl.pos[i] = min(cl.pos[i], o.given)
		}
		cl.pos[i] = max(cl.pos[i], o.tail())
	}
	if !st.read && !st.filed() {
		st.first = cl
	}
	st.read = true
	cn.flush()
}

// leave stops sending to a client.
func (st *streams) leave(cl *client) {
	cl.reads = false
	if st.first == cl {
		st.first = nil
	}
}

// cutOff stops sending to a client that the ring overtakes. What it was begun to be sent is kept for it, so that it is
// told of its fate at the end of a whole frame.
func (cl *client) cutOff(st *streams) {
	cl.reads, cl.slow = false, true
	if !cl.busy {
		return
	}
	n := cl.size - max(0, cl.sent-wire.HeaderSize)
	a, b := st.out[cl.which].slices(cl.pos[cl.which], n)
	cl.rest = append(append(make([]byte, 0, n), a...), b...)
}

// slices are n bytes of the ring from a position on, in two parts.
func (o *output) slices(pos uint64, n int) (a, b []byte) {
	at := int(pos % ringSize)
	if at+n <= ringSize {
		return o.ring[at : at+n], nil
	}
	return o.ring[at:], o.ring[:n-(ringSize-at)]
}

// wants says whether there is something to send.
func (cl *client) wants(st *streams) bool {
	if cl.busy {
		return true
	}
	if cl.slow {
		return !cl.ended
	}
	if !cl.reads || cl.ended {
		return false
	}
	for i := range st.out {
		if cl.pos[i] < st.out[i].head {
			return true
		}
	}
	return st.out[0].done && st.out[1].done
}

// next begins the next frame, if there is one.
func (cl *client) next(st *streams) bool {
	kind := uint8(0)
	cl.size = 0
	switch {
	case cl.ended:
	case cl.slow:
		kind = wire.KindSlow
	case cl.reads:
		for i, k := range [2]uint8{wire.KindOut, wire.KindErrOut} {
			if n := st.out[i].head - cl.pos[i]; n > 0 {
				kind, cl.which, cl.size = k, i, int(min(n, wire.MaxChunk))
				break
			}
		}
		if kind == 0 && st.out[0].done && st.out[1].done {
			kind = wire.KindOutEnd
		}
	}
	if kind == 0 {
		return false
	}
	cl.ended = kind == wire.KindSlow || kind == wire.KindOutEnd
	n := cl.size
	cl.head = [wire.HeaderSize]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24), 8: kind}
	cl.busy, cl.sent, cl.rest = true, 0, nil
	return true
}

// flush sends a client as much as its socket takes.
func (cn *conn) flush() {
	cl, st := cn.out, cn.of.streams
	for cn.fd >= 0 && (cl.busy || cl.next(st)) {
		head, a, b, done := []byte(nil), cl.rest, []byte(nil), 0
		if cl.sent < wire.HeaderSize {
			head = cl.head[cl.sent:]
		} else {
			done = cl.sent - wire.HeaderSize
		}
		if cl.rest == nil && cl.size > done {
			a, b = st.out[cl.which].slices(cl.pos[cl.which], cl.size-done)
		}
		n, err := cn.of.s.gather(cn.fd, head, a, b)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			cl.full = true
			return
		case err != nil:
			// Nobody reads there any more. What was written before is still taken.
			cl.busy, cl.ended, cl.slow = false, true, false
			st.leave(cl)
			return
		}
		cl.advance(st, n)
		if !cl.busy && cl.ended {
			_ = syscall.Shutdown(cn.fd, syscall.SHUT_WR)
			st.leave(cl)
			return
		}
	}
	cl.full = false
}

// advance notes that n bytes of the frame were sent.
func (cl *client) advance(st *streams, n int) {
	of := n
	if cl.sent < wire.HeaderSize {
		of = max(0, n-(wire.HeaderSize-cl.sent))
	}
	cl.sent += n
	if cl.rest != nil {
		cl.rest = cl.rest[of:]
	} else if of > 0 {
		cl.pos[cl.which] += uint64(of)
		o := &st.out[cl.which]
		o.given = max(o.given, cl.pos[cl.which])
	}
	cl.busy = cl.sent < wire.HeaderSize+cl.size
}

// gather sends three pieces as one, as far as they fit, without making anything: what is sent has no bound, and what
// would be left of each call is not collected.
func (s *supervisor) gather(fd int, pieces ...[]byte) (int, error) {
	n := 0
	for _, p := range pieces {
		if len(p) > 0 {
			s.vectors[n].Base = &p[0]
			s.vectors[n].SetLen(len(p))
			n++
		}
	}
	s.message.Iov = &s.vectors[0]
	s.message.SetIovlen(n)
	sent, _, errno := syscall.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.message)), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	s.vectors = [3]unix.Iovec{}
	if errno != 0 {
		return 0, errno
	}
	return int(sent), nil
}
