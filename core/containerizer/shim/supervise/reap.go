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

// collect takes every child that has ended, and reports whether none is left. mu is held.
func (s *supervisor) collect() bool {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil: // ECHILD
			s.childless = true
			s.killing = answerAll(s.killing, wire.KindOK, nil)
			s.wake()
			return true
		case pid == 0:
			if len(s.killing) > 0 {
				s.killDescendants() // one that was just born may have come to us
			}
			return false
		case pid == s.runtime:
			s.runtimeEnded(uint32(ws))
		case pid == s.state.Pid:
			s.ended(uint32(ws))
		case s.runtime != 0:
			s.orphans[s.orphanN%len(s.orphans)] = ended{pid, uint32(ws)}
			s.orphanN++
		}
	}
}

// ended records and tells how the first process ended.
func (s *supervisor) ended(status uint32) {
	s.state.Exited, s.state.WaitStatus = true, status
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &ts)
	// The record is for an agent that is away; one that waits is told first.
	s.ending = answerAll(s.ending, wire.KindExit, s.state.Append(nil))
	if s.creating != nil { // died before it was ready
		w := s.creating
		s.creating = nil
		text := s.stageErr
		if text == "" {
			text = "the first process ended before it was ready"
		}
		w.conn.send(wire.KindError, w.id, wire.AppendError(nil, int(syscall.ESRCH), text))
	}
	_ = s.record(ExitName, itoa(uint64(status))+" "+itoa(uint64(ts.Sec))+"\n")
}

// runtimeEnded takes over what the runtime's create command made.
func (s *supervisor) runtimeEnded(status uint32) {
	s.runtime = 0
	ws := syscall.WaitStatus(status)
	refuse := func(err error) {
		s.failCreate(err)
		s.killDescendants()
	}
	if ws != 0 {
		text := "exit status " + itoa(uint64(ws.ExitStatus()))
		if ws.Signaled() {
			text = "killed by signal " + itoa(uint64(ws.Signal()))
		}
		if s.stageErr != "" {
			text = s.stageErr
		}
		s.failText("create: " + text)
		s.killDescendants()
		return
	}
	pid, ok := readPid(s.spec.Runtime.PidFile)
	if !ok {
		s.failText("create: no pid in " + s.spec.Runtime.PidFile)
		s.killDescendants()
		return
	}
	for _, o := range s.orphans[:min(s.orphanN, len(s.orphans))] {
		if o.pid == pid { // ended already
			s.state.Pid, s.startable = pid, true
			s.failText("the first process ended before it was ready")
			s.ended(o.status)
			return
		}
	}
	if err := s.adopt(pid); err != nil {
		refuse(err)
		return
	}
	s.created()
}

func (s *supervisor) failText(text string) {
	if w := s.creating; w != nil {
		s.creating = nil
		w.conn.send(wire.KindError, w.id, wire.AppendError(nil, 0, text))
	}
}

// wake ends the poll of serve when nobody is connected, by shutting down the listener, which then
// polls as readable: there is nothing left to serve.
func (s *supervisor) wake() {
	if len(s.conns) == 0 {
		_ = syscall.Shutdown(s.listener, syscall.SHUT_RDWR)
	}
}
