package supervise

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A process is what counts of one here.
type process struct {
	pid, parent, session int
	ticks                uint64
	ended                bool // and not yet reaped
	below                bool // the shim
	member               bool // of the container in question
}

// kill sends SIGKILL to every process of a container that is found, and returns how many there were.
//
// Of the first container that is everything below the shim. Of another it is what descends from its first process, and
// that process's session; what left both, by a daemon's way of starting, is found by its cgroup, where it has one, and
// else ends with the first container. What is born meanwhile is met by the next call.
func (s *supervisor) kill(c *container) int {
	list := s.processes()
	for i := range list {
		list[i].below = list[i].parent == s.self
	}
	spread(list, func(p *process) *bool { return &p.below })
	leader := find(list, c.state.Pid)
	if leader != nil && c.state.StartTicks != 0 && leader.ticks != c.state.StartTicks {
		leader = nil // the number came round again, and a session of that number is not ours
	} else if leader == nil && c.state.Pid != 0 {
		leader = &process{pid: c.state.Pid} // ended; its session may live on
	}
	for i := range list {
		p := &list[i]
		p.member = p.below && (c.isFirst() || c.runtime != 0 && p.pid == c.runtime ||
			leader != nil && (p.pid == leader.pid || p.session == leader.pid))
	}
	spread(list, func(p *process) *bool { return &p.member })
	n := 0
	for _, p := range list {
		if p.member && !p.ended {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
			n++
		}
	}
	return n
}

// spread passes a mark on from parents to children.
func spread(list []process, mark func(*process) *bool) {
	for again := true; again; {
		again = false
		for i := range list {
			p := &list[i]
			if parent := find(list, p.parent); !*mark(p) && parent != nil && *mark(parent) {
				*mark(p), again = true, true
			}
		}
	}
}

// find looks a pid up in a list that is ordered by it.
func find(list []process, pid int) *process {
	from, to := 0, len(list)
	for from < to {
		if mid := (from + to) / 2; list[mid].pid < pid {
			from = mid + 1
		} else {
			to = mid
		}
	}
	if from < len(list) && list[from].pid == pid {
		return &list[from]
	}
	return nil
}

// processes lists those of the machine, ordered by pid as the kernel does. The list is good until the next call: this
// is done again and again while something is being killed, and nothing here is collected.
func (s *supervisor) processes() []process {
	fd, err := syscall.Open("/proc", syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(fd)
	if s.entries == nil {
		s.entries, s.stat = make([]byte, 8192), make([]byte, 1024)
	}
	list := s.list[:0]
	for {
		n, err := syscall.ReadDirent(fd, s.entries)
		if n <= 0 || err != nil {
			break
		}
		// struct linux_dirent64: 8 bytes each of inode and offset, 2 of length, 1 of type, the name ending in 0.
		for b := s.entries[:n]; len(b) > 19; {
			size := int(b[16]) | int(b[17])<<8
			if size < 20 || size > len(b) {
				break
			}
			pid := 0
			for _, d := range b[19:size] {
				if d < '0' || d > '9' {
					if d != 0 {
						pid = 0
					}
					break
				}
				pid = pid*10 + int(d-'0')
			}
			b = b[size:]
			if pid == 0 {
				continue
			}
			if p, ok := s.look(pid); ok && (len(list) == 0 || list[len(list)-1].pid < pid) {
				list = append(list, p)
			}
		}
	}
	s.list = list
	return list
}

// look reads /proc/PID/stat without making anything.
func (s *supervisor) look(pid int) (process, bool) {
	name := append(s.name[:0], "/proc/"...)
	at := len(name)
	for v := pid; v > 0; v /= 10 {
		name = append(name, byte('0'+v%10))
	}
	for i, j := at, len(name)-1; i < j; i, j = i+1, j-1 {
		name[i], name[j] = name[j], name[i]
	}
	name = append(name, "/stat\x00"...)
	here := unix.AT_FDCWD
	fd, _, errno := syscall.Syscall6(unix.SYS_OPENAT, uintptr(here), uintptr(unsafe.Pointer(&name[0])), syscall.O_RDONLY|syscall.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return process{}, false
	}
	n, err := syscall.Read(int(fd), s.stat)
	_ = syscall.Close(int(fd))
	if n <= 0 || err != nil {
		return process{}, false
	}
	// pid (name) state parent group session ...: the name may hold anything, so count from its last parenthesis.
	b := s.stat[:n]
	for i := n - 1; i >= 0; i-- {
		if b[i] == ')' {
			b = b[i+1:]
			break
		}
	}
	p := process{pid: pid}
	field, v := 2, uint64(0)
	for _, c := range b {
		switch {
		case c == ' ' || c == '\n':
			switch field {
			case 4:
				p.parent = int(v)
			case 6:
				p.session = int(v)
			case 22:
				p.ticks = v
				return p, true
			}
			field, v = field+1, 0
		case field == 3:
			p.ended = c == 'Z' || c == 'X'
		case c >= '0' && c <= '9':
			v = v*10 + uint64(c-'0')
		}
	}
	return process{}, false
}
