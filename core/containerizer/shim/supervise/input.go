package supervise

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// held says whether what a client sends is left in its socket: it is input, and the process takes none. That a client
// wants output is always heard: the process may take no input just because nobody takes its output.
func (cn *conn) held() bool { return cn.out.input > 0 && cn.of.streams.blocked() }

// readStream takes what a client sends: input, and what it wants.
func (s *supervisor) readStream(cn *conn) {
	cl, st := cn.out, cn.of.streams
	if cl.input > 0 {
		b := s.buffer()
		n, err := syscall.Read(cn.fd, b[:min(cl.input, len(b))])
		if err == syscall.EAGAIN || err == syscall.EINTR {
			return
		}
		if err != nil || n <= 0 {
			cn.close()
			return
		}
		cl.input -= n
		st.feed(b[:n])
		return
	}
	n, err := syscall.Read(cn.fd, cn.buf[cn.n:wire.HeaderSize])
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return
	}
	if err != nil || n <= 0 {
		cn.close()
		return
	}
	if cn.n += n; cn.n < wire.HeaderSize {
		return
	}
	cn.n = 0
	size, kind, _, err := wire.Header(cn.buf[:])
	switch {
	case err != nil || size > wire.MaxChunk:
		cn.close()
	case kind == wire.KindRead && size == 0:
		st.listen(cn)
	case kind == wire.KindInput:
		cl.input = size
	case kind == wire.KindInputEnd && size == 0:
		st.endInput()
	default:
		cn.close()
	}
}

// blocked says whether there is input that the process does not take.
func (st *streams) blocked() bool { return len(st.pending) > 0 }

// feed gives input to the process, and keeps what it does not take. Input that nobody can read any more is dropped.
func (st *streams) feed(b []byte) {
	for len(b) > 0 && st.in >= 0 && !st.c.state.Exited {
		n, err := syscall.Write(st.in, b)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			st.pending = append(st.pending[:0], b...)
			return
		case err != nil: // EPIPE, or EIO of a terminal
			if !st.terminal {
				closeFD(&st.in)
			}
			return
		default:
			st.lastByte = b[n-1]
			b = b[n:]
		}
	}
}

// feedRest goes on where feed was held up.
func (st *streams) feedRest() {
	b := st.pending
	st.pending = nil // feed may keep a part of b, and not in the same place
	st.feed(b)
	if len(st.pending) == 0 {
		if cap(st.pending) == 0 {
			st.pending = b[:0]
		}
		if st.ending {
			st.ending = false
			st.endInput()
		}
	}
}

// endInput ends the input after what is pending: the pipe is closed; into a terminal the end-of-file character is
// typed. Twice, if a line was begun and the terminal collects lines: the first one then only ends the line.
func (st *streams) endInput() {
	switch {
	case st.blocked():
		st.ending = true
	case st.in < 0:
	case !st.terminal:
		closeFD(&st.in)
	default:
		eof := [2]byte{4, 4}
		n := 1
		if t, err := unix.IoctlGetTermios(st.in, unix.TCGETS); err == nil {
			eof[0], eof[1] = t.Cc[unix.VEOF], t.Cc[unix.VEOF]
			if t.Lflag&unix.ICANON != 0 && st.lastByte != 0 && st.lastByte != '\n' && st.lastByte != '\r' && st.lastByte != eof[0] {
				n = 2
			}
		}
		st.feed(eof[:n])
	}
}
