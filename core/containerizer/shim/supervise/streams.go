package supervise

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// streams are what a first process reads and writes when that is not files: pipes or a terminal, of which the shim
// holds the other ends. Input comes from clients. Output goes to the files, if any, and to every client that reads.
//
// Each output has a ring that is both history and buffer: what is taken from the process is put there once, and each
// client is sent from its own position. Whom the ring overtakes is cut off. Nobody is waited for, with one exception:
// the first client that ever reads, where there are no files. It is the one a session was begun for, and somebody who
// reads slowly there, because he pages through the output, wants all of it; so a process is held up then as it is in a
// pipe between two commands, until that client reads on or goes away. Before anybody has read, the process is held up
// too once the ring is full, for a while: a session's client comes a little later than its process.
type streams struct {
	c        *container
	terminal bool
	logged   bool // for nobody to attach to: output goes to files, and nobody is waited for
	in       int  // where input is written, -1 when it has ended
	out      [2]output

	pending  []byte // input taken from a client, which the process does not take yet
	ending   bool   // input ends after pending
	lastByte byte   // that was written

	read     bool    // somebody has read, or was waited for long enough
	fullAt   int64   // when a ring became full that nobody has read, in nanoseconds of the monotonic clock; 0: none has
	first    *client // the first who did, while it is there and waited for
	deadline int64   // when to stop waiting for output after the end, in nanoseconds of the monotonic clock; 0: no end yet
}

// ringSize is how much of an output is kept for clients; also what a client may lag behind beside what the socket
// holds. A power of two.
const ringSize = 64 << 10

// patience is how long output is waited for after the process ended, while others hold its streams open.
const patience = 1_000_000_000

// courtesy is how long a process whose output fills a ring is held up for the first reader.
const courtesy = 10_000_000_000

// An output is one stream of output.
type output struct {
	fd   int // -1 when there is none yet, or no more
	file int // where output goes too, or -1
	log  log // how that is rotated
	to   int // the output whose file it is: its own, but where two are to go into one that is rotated
	rest []byte
	slow int64 // since when rest waits, in nanoseconds of the monotonic clock
	lost bool  // it waited too long: what comes is dropped until the file takes something
	done bool  // nothing follows
	hung bool  // the terminal has nobody at the other end; somebody may come
	left int   // how many bytes more are taken, once its deadline has passed; -1 for all

	ring  []byte // nil while it is not needed
	from  uint64 // position where the ring began, counted in bytes from the start
	head  uint64 // position after the newest byte
	given uint64 // position up to which something was sent to a client
}

// tail is the position of the oldest byte that is kept.
func (o *output) tail() uint64 {
	if o.head-o.from > ringSize {
		return o.head - ringSize
	}
	return o.from
}

// openStreams makes the streams of a process. It returns the process's ends; null is its descriptor 0 where nothing
// else is.
func (c *container) openStreams(null int, names [2]string) ([]int, error) {
	st := &streams{c: c, terminal: c.spec.Streams == wire.StreamsTerminal, logged: c.spec.Streams == wire.StreamsLogged, in: -1}
	for i := range st.out {
		st.out[i] = output{fd: -1, file: -1, left: -1, to: i, log: log{dir: -1}}
	}
	c.streams = st
	files := []int{null}
	for i, name := range names {
		if name == "" || st.terminal && i == 1 {
			continue
		}
		if i == 1 && st.out[0].log.size > 0 && name == names[0] {
			st.out[1].to = 0
			continue
		}
		fd, err := openLog(name, int(c.spec.LogUID), int(c.spec.LogGID))
		if err != nil {
			return files, fail("open", name, err)
		}
		st.out[i].file = fd
		if err := st.out[i].log.open(fd, name, [2]wire.Rotation{c.spec.RotateStdout, c.spec.RotateStderr}[i]); err != nil {
			return files, fail("open the folder of", name, err)
		}
	}
	if st.terminal {
		st.out[1].done = true
		if len(c.spec.Runtime.Argv) > 0 { // it makes the terminal, and needs no streams itself
			return append(files, null, null), nil
		}
		slave, err := st.openTerminal()
		if err != nil {
			return files, err
		}
		_ = syscall.Close(null)
		return []int{slave, slave, slave}, nil
	}
	for i := range 3 {
		if i == 0 && st.logged {
			continue // it reads what null is
		}
		var p [2]int
		if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
			return files, fail("make pipe", "", err)
		}
		ours, theirs := p[0], p[1]
		if i == 0 {
			_ = syscall.Close(null)
			ours, theirs = p[1], p[0]
			files = nil
			st.in = ours
		} else {
			st.out[i-1].fd = ours
		}
		_ = syscall.SetNonblock(ours, true)
		c.own(theirs, int(c.spec.LogGID))
		if st.logged {
			theirs = forBoth(theirs)
		}
		files = append(files, theirs)
	}
	return files, nil
}

// own gives a stream to the container's user, who may open it again by the names that /dev/stdout and its like lead to.
// A group of -1 leaves that.
func (c *container) own(fd, gid int) {
	if syscall.Geteuid() == 0 {
		_ = syscall.Fchown(fd, int(c.spec.LogUID), gid)
	}
}

func (st *streams) close() {
	closeFD(&st.in)
	for i := range st.out {
		o := &st.out[i]
		closeFD(&o.fd)
		closeFD(&o.file)
		closeFD(&o.log.dir)
		o.done = true
		o.dropRing()
	}
}

// clients says how many are attached, and how many of them read.
func (st *streams) clients() (attached, readers int) {
	for _, cn := range st.c.s.conns {
		if cn.of == st.c && cn.out != nil && cn.fd >= 0 {
			attached++
			if cn.out.reads {
				readers++
			}
		}
	}
	return attached, readers
}

// tidy gives back the rings that nobody needs.
func (st *streams) tidy() {
	if attached, _ := st.clients(); attached > 0 {
		return
	}
	for i := range st.out {
		if o := &st.out[i]; o.file >= 0 {
			o.dropRing()
		}
	}
}

// takes says whether output i is to be polled.
func (st *streams) takes(i int) bool {
	o := &st.out[i]
	return o.fd >= 0 && !o.hung && len(st.out[o.to].rest) == 0 && st.room(i) > 0
}

// room is how much of output i may be taken from the process.
func (st *streams) room(i int) int {
	o := &st.out[i]
	n := wire.MaxChunk
	switch {
	case st.first != nil:
		n = min(n, ringSize-int(o.head-st.first.pos[i]))
	case !st.read && !st.filed():
		n = min(n, ringSize-int(o.head-o.from))
	}
	if o.left >= 0 {
		n = min(n, o.left)
	}
	return n
}

// filed says whether output goes to a file: then nobody is waited for.
func (st *streams) filed() bool { return st.logged || st.out[0].file >= 0 || st.out[1].file >= 0 }

// take reads output i from the process, once, and passes it on.
func (st *streams) take(i int) {
	o, s := &st.out[i], st.c.s
	if !st.takes(i) {
		return
	}
	b := s.buffer()[:st.room(i)]
	n, err := syscall.Read(o.fd, b)
	switch {
	case err == syscall.EINTR:
		return
	case err == syscall.EAGAIN:
		if o.left >= 0 {
			st.finished(i)
		}
		return
	case err == syscall.EIO && st.terminal && !st.c.state.Exited:
		o.hung = true
		return
	case err != nil || n <= 0:
		st.finished(i)
		return
	}
	b = b[:n]
	st.store(i, b)
	if attached, _ := st.clients(); o.file < 0 || attached > 0 {
		st.keep(i, b)
	}
	if o.left >= 0 {
		if o.left -= n; o.left == 0 {
			st.finished(i)
			return
		}
	}
	st.flush()
}

// finished notes that nothing more comes from output i.
func (st *streams) finished(i int) {
	o := &st.out[i]
	closeFD(&o.fd)
	o.done = true
	st.closeFile(&st.out[o.to])
	st.flush()
}

// closeFile closes the file of an output once nothing goes there any more.
func (st *streams) closeFile(o *output) {
	for i := range st.out {
		if other := &st.out[i]; &st.out[other.to] == o && !other.done {
			return
		}
	}
	if len(o.rest) == 0 {
		closeFD(&o.file)
		closeFD(&o.log.dir)
	}
}

// store writes what output i brought to its file, and rotates that. A full disk loses output and holds up nobody; a named
// pipe whose reader is slow holds up the process, as it would if the process wrote to it itself, but not for ever where
// the reader is a logger's.
func (st *streams) store(i int, b []byte) {
	o := &st.out[st.out[i].to]
	for o.file >= 0 && len(b) > 0 {
		if o.log.size > 0 && o.log.full(b) {
			o.rotate(st.c)
			if o.file < 0 {
				return
			}
		}
		n, err := syscall.Write(o.file, b[:o.log.piece(b)])
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			if o.lost {
				return
			}
			if o.rest == nil {
				o.slow = now()
			}
			o.rest = append(o.rest[:0], b...)
			return
		case err != nil:
			return
		default:
			o.lost = false
			o.log.wrote(b[:n])
			b = b[n:]
		}
	}
}

// storeRest goes on where store was held up.
func (st *streams) storeRest(i int) {
	o := &st.out[i]
	b, n := o.rest, len(o.rest)
	slow := o.slow
	o.rest = nil
	st.store(i, b)
	if len(o.rest) == n {
		o.slow = slow // it took nothing
	}
	st.closeFile(o)
}

// keep puts output into its ring, for clients now and later.
func (st *streams) keep(i int, b []byte) {
	o := &st.out[i]
	if o.ring == nil {
		ring, err := syscall.Mmap(-1, 0, ringSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
		if err != nil {
			return
		}
		o.ring, o.from = ring, o.head
	}
	for _, cn := range st.c.s.conns {
		if cl := cn.out; cn.of == st.c && cl != nil && cl.reads && o.head+uint64(len(b))-cl.pos[i] > ringSize {
			cl.cutOff(st)
		}
	}
	for len(b) > 0 {
		n := copy(o.ring[o.head%ringSize:], b)
		o.head += uint64(n)
		b = b[n:]
	}
}

// dropRing gives back a ring.
func (o *output) dropRing() {
	if o.ring != nil {
		_ = syscall.Munmap(o.ring)
		o.ring, o.from = nil, o.head
	}
}

// flush sends every client what it may be sent.
func (st *streams) flush() {
	for _, cn := range st.c.s.conns {
		if cn.of == st.c && cn.out != nil {
			cn.flush()
		}
	}
}

// finish is called when the process has ended.
func (st *streams) finish() {
	if st.deadline == 0 {
		st.deadline = now() + patience
	}
	st.pending, st.ending = nil, false
	if !st.terminal { // the master of a terminal takes no more either, but has its size
		closeFD(&st.in)
	}
	for i := range st.out {
		st.out[i].hung = false
	}
}

// lastWords takes what lies in the pipes of a process that ended, or of what it left behind, before anybody is told of
// the end: a log is then whole for whoever reads it after that, and when the shim ends with it.
func (st *streams) lastWords() {
	if !st.logged {
		return
	}
	for i := range st.out {
		n := 0
		if fd := st.out[i].fd; fd >= 0 {
			n, _ = unix.IoctlGetInt(fd, unix.TIOCINQ)
		}
		// What is written meanwhile, by others that hold the pipe, does not count.
		for n > 0 && st.takes(i) {
			n -= st.room(i)
			st.take(i)
		}
	}
}

// due does what has come due: it stops waiting for a first reader, and, at the end, for output: what is there by then is
// still taken, and nothing that comes later. It returns how long it is until it is to be called again, in nanoseconds;
// -1 for ever.
func (st *streams) due() int64 {
	timeout := int64(-1)
	at := now()
	if !st.read && !st.filed() && (st.room(0) == 0 || st.room(1) == 0) {
		if st.fullAt == 0 {
			st.fullAt = at
		}
		if timeout = st.fullAt + courtesy - at; timeout <= 0 {
			st.read, timeout = true, -1
		}
	}
	for i := range st.out {
		o := &st.out[i]
		if !st.logged || len(o.rest) == 0 {
			continue
		}
		left := o.slow + courtesy - at
		if left <= 0 {
			o.rest, o.lost = nil, true
			st.closeFile(o)
		} else if timeout < 0 || left < timeout {
			timeout = left
		}
	}
	if st.deadline == 0 {
		return timeout
	}
	for i := range st.out {
		o := &st.out[i]
		if o.done || o.left >= 0 {
			continue
		}
		if left := st.deadline - at; left > 0 {
			if timeout < 0 || left < timeout {
				timeout = left
			}
			continue
		}
		if o.fd >= 0 {
			n, err := unix.IoctlGetInt(o.fd, unix.TIOCINQ)
			if o.left = n; err == nil && n > 0 {
				continue
			}
		}
		st.finished(i)
	}
	return timeout
}

func now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// buffer is where bytes are put on their way from one descriptor to another.
func (s *supervisor) buffer() []byte {
	if s.scratch == nil {
		s.scratch = make([]byte, wire.MaxChunk)
	}
	return s.scratch
}
