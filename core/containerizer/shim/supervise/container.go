package supervise

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// A container is one of those a shim keeps: the first, whose end is the shim's, or one beside it. The supervisor's
// lock guards it.
type container struct {
	s        *supervisor
	spec     *wire.Spec
	listener int
	stage    int // our end of the stage's socket, -1 without one

	state     wire.State
	startable bool           // the first process exists and is held
	staged    bool           // a stage holds the first process, until it executes
	executes  bool           // the stage is about to execute the command
	creating  *waiter        // who waits for Created
	starting  []waiter       // who waits for the start
	ending    []waiter       // who waits for the end
	killing   []waiter       // who waits for the last process
	stageErr  string         // what the stage complained about
	fatal     syscall.Signal // that SIGKILL was sent for, 0 if none
	runtime   int            // pid of the runtime's create command while it runs
	console   int            // socket to which a runtime sends a terminal, then the connection to it, -1 without one
	accepted  bool           // console is the connection
	streams   *streams       // nil when the streams are files
}

func (s *supervisor) newContainer(spec *wire.Spec) *container {
	c := &container{s: s, spec: spec, listener: -1, stage: -1, console: -1}
	s.containers = append(s.containers, c)
	return c
}

// isFirst says whether this is the container whose end is the shim's.
func (c *container) isFirst() bool { return c.s.containers[0] == c }

// open makes the sockets in the run folder. It goes there for the time, and then back to where no folder is that
// someone may want to remove or unmount: a socket's name is relative, so that the folder's own length does not count
// against the 108 bytes of an address.
func (c *container) open() error {
	if err := syscall.Chdir(c.spec.RunDir); err != nil {
		return fail("enter", c.spec.RunDir, err)
	}
	var err error
	c.listener, err = listen(SocketName)
	if err == nil && c.spec.Streams == wire.StreamsTerminal && len(c.spec.Runtime.Argv) > 0 {
		c.console, err = listen(wire.ConsoleName)
	}
	if err != nil {
		err = fail("listen in", c.spec.RunDir, err)
	}
	if cerr := syscall.Chdir("/"); cerr != nil && err == nil {
		err = fail("enter", "/", cerr)
	}
	return err
}

func listen(name string) (int, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	_ = syscall.Unlink(name)
	err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: name})
	if err == nil {
		// Only the owner may connect: whoever does can signal the container.
		err = syscall.Chmod(name, 0o600)
	}
	if err == nil {
		err = syscall.Listen(fd, maxConns)
	}
	if err != nil {
		_ = syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}

// close gives up every descriptor. The process, if there is one, is not concerned.
func (c *container) close() {
	for _, fd := range []*int{&c.listener, &c.stage, &c.console} {
		closeFD(fd)
	}
	if c.streams != nil {
		c.streams.close()
	}
}

func closeFD(fd *int) {
	if *fd >= 0 {
		_ = syscall.Close(*fd)
		*fd = -1
	}
}

// failCreate answers the pending create with err.
func (c *container) failCreate(err error) {
	errno := 0
	if e, ok := err.(*opError); ok {
		errno = int(e.errno)
	}
	c.failWith(errno, err.Error())
}

func (c *container) failWith(errno int, text string) {
	if w := c.creating; w != nil {
		c.creating = nil
		w.conn.send(wire.KindError, w.id, wire.AppendError(nil, errno, text))
	}
}

// created answers the pending create.
func (c *container) created() {
	if c.creating != nil {
		c.creating.conn.send(wire.KindCreated, c.creating.id, c.stateFrame())
		c.creating = nil
	}
}

func (c *container) stateFrame() []byte {
	st := c.state
	st.Abilities = c.s.abilities
	return st.Append(nil)
}

// over says whether no first process is there and none will be.
func (c *container) over() bool {
	return c.runtime == 0 && (c.state.Exited || c.state.Pid == 0 && c.creating == nil)
}

// start lets the held process go. The answer follows when the stage's socket closes, which the
// exec of the command does, or when the stage complains.
func (c *container) start(w waiter) {
	switch {
	case c.stageErr != "":
		w.conn.send(wire.KindError, w.id, wire.AppendError(nil, 0, c.stageErr))
		return
	case c.state.Exited || !c.startable || c.stage < 0 && c.staged && !c.executes:
		w.conn.send(wire.KindError, w.id, wire.AppendError(nil, int(syscall.ESRCH), "no process"))
		return
	case c.stage < 0: // no stage holds it: an OCI runtime does, or it was let go before
		c.state.Started = true
		w.conn.send(wire.KindOK, w.id, nil)
		return
	}
	c.starting = append(c.starting, w)
	if !c.state.Started {
		c.state.Started = true
		if _, err := syscall.Write(c.stage, []byte{'g'}); err != nil {
			c.readStage() // it is dead; say what is known
		}
	}
}

// readStage takes what the stage says: that it holds, that it executes, an error text, or the end.
func (c *container) readStage() {
	var buf [1024]byte
	n, err := syscall.Read(c.stage, buf[:])
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return
	}
	b := buf[:max(n, 0)]
	for len(b) > 0 && b[0] <= wire.StageExecutes {
		switch b[0] {
		case wire.StageHolds:
			c.created()
		case wire.StageExecutes:
			c.executes = true
		}
		b = b[1:]
	}
	if len(b) > 0 {
		c.stageErr = string(b)
		if c.creating != nil && c.runtime == 0 {
			c.failWith(0, c.stageErr)
		}
		c.starting = answerAll(c.starting, wire.KindError, wire.AppendError(nil, 0, c.stageErr))
	}
	if n > 0 {
		return // the end follows
	}
	closeFD(&c.stage)
	if c.executes {
		c.starting = answerAll(c.starting, wire.KindOK, nil)
		return
	}
	const text = "the first process ended before it could execute the command"
	c.starting = answerAll(c.starting, wire.KindError, wire.AppendError(nil, int(syscall.ESRCH), text))
}

// signal sends sig to the first process and its group. The process is not reaped while the lock is held, so
// its pid is its own.
//
// The first process of a pid namespace is deaf to signals it has no handler for, where any other would
// end: sleep or a shell would then take no notice of SIGTERM. It is killed instead, which is what the
// default action comes to, and its status says that it ended by sig.
func (c *container) signal(sig syscall.Signal) error {
	deaf := sig != syscall.SIGKILL && endsByDefault(sig) && isDeafInit(c.state.Pid, sig)
	err := syscall.Kill(-c.state.Pid, sig)
	if err == syscall.ESRCH { // it leads no group
		err = syscall.Kill(c.state.Pid, sig)
	}
	if err == nil && deaf {
		c.fatal = sig
		err = syscall.Kill(c.state.Pid, syscall.SIGKILL)
	}
	return err
}

// record writes a file in the run folder, whole or not at all.
func (c *container) record(name, text string) error {
	whole := c.spec.RunDir + "/" + name
	tmp := whole + ".new"
	fd, err := unix.Open(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fail("make record", name, err)
	}
	err = writeAll(fd, []byte(text))
	_ = unix.Close(fd)
	if err == nil {
		err = unix.Rename(tmp, whole)
	}
	if err != nil {
		return fail("write record", name, err)
	}
	return nil
}
