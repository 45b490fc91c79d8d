package supervise

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// reap waits for children, its own and those the container leaves behind, until there are none.
// No child can appear after that: whatever descends from the shim hangs below a child of it.
//
// It looks first and takes under the lock, so that a pid a request is about to signal cannot have
// been given to someone else.
func (s *supervisor) reap() {
	for {
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err == syscall.EINTR {
			continue
		}
		s.mu.Lock()
		done := s.collect()
		s.mu.Unlock()
		if done {
			return
		}
	}
}

// collect takes every child that has ended, and reports whether none is left. The lock is held.
func (s *supervisor) collect() bool {
	defer s.rouse()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil: // ECHILD
			s.childless = true
			for _, c := range s.containers {
				c.killing = answerAll(c.killing, wire.KindOK, nil)
			}
			return true
		case pid == 0:
			if first := s.containers[0]; len(first.killing) > 0 {
				s.kill(first) // one that was just born may have come to us
			}
			return false
		default:
			s.childEnded(pid, uint32(ws))
		}
	}
}

func (s *supervisor) childEnded(pid int, status uint32) {
	creating := false
	for _, c := range s.containers {
		switch {
		case pid == c.runtime:
			c.runtimeEnded(status)
			return
		case pid == c.state.Pid:
			c.ended(status)
			return
		}
		creating = creating || c.runtime != 0
	}
	if creating {
		s.orphans[s.orphanN%len(s.orphans)] = ended{pid, status}
		s.orphanN++
	}
}

// ended records and tells how the first process ended.
func (c *container) ended(status uint32) {
	if c.fatal != 0 && syscall.WaitStatus(status).Signal() == syscall.SIGKILL {
		status = uint32(c.fatal) // there is no bit for a core: none was written
	}
	c.state.Exited, c.state.WaitStatus = true, status
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &ts)
	if c.streams != nil {
		c.streams.lastWords()
		c.streams.finish()
	}
	// The record is for an agent that is away; one that waits is told first.
	c.ending = answerAll(c.ending, wire.KindExit, c.stateFrame())
	text := c.stageErr
	if text == "" {
		text = "the first process ended before it was ready"
	}
	c.failWith(int(syscall.ESRCH), text)
	_ = c.record(ExitName, itoa(uint64(status))+" "+itoa(uint64(ts.Sec))+"\n")
}

// runtimeEnded takes over what the runtime's create command made.
func (c *container) runtimeEnded(status uint32) {
	c.runtime = 0
	ws := syscall.WaitStatus(status)
	if ws != 0 {
		text := "exit status " + itoa(uint64(ws.ExitStatus()))
		if ws.Signaled() {
			text = "killed by signal " + itoa(uint64(ws.Signal()))
		}
		if c.stageErr != "" {
			text = c.stageErr
		}
		c.failWith(0, "create: "+text)
		c.s.kill(c)
		return
	}
	pid, ok := readPid(c.spec.Runtime.PidFile)
	if !ok {
		c.failWith(0, "create: no pid in "+c.spec.Runtime.PidFile)
		c.s.kill(c)
		return
	}
	for _, o := range c.s.orphans[:min(c.s.orphanN, len(c.s.orphans))] {
		if o.pid == pid { // ended already
			c.state.Pid, c.startable = pid, true
			c.failWith(0, "the first process ended before it was ready")
			c.ended(o.status)
			return
		}
	}
	if err := c.adopt(pid); err != nil {
		c.state.Pid = pid // to be killed and waited for
		c.failCreate(err)
		c.s.kill(c)
		return
	}
	c.created()
}
