package supervise

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A procStat is the content of /proc/PID/stat.
type procStat []byte

func stat(pid int) (procStat, bool) {
	b, ok := readFile("/proc/"+itoa(uint64(pid))+"/stat", 1024)
	return procStat(b), ok
}

// field returns field i as proc(5) counts them, from 3 on. The second, the name, may hold spaces
// and parentheses and is skipped by looking for the last of these.
func (p procStat) field(i int) string {
	at := -1
	for j, c := range p {
		if c == ')' {
			at = j
		}
	}
	if at < 0 {
		return ""
	}
	n, from := 2, at+1
	for j := at + 1; j <= len(p); j++ {
		if j == len(p) || p[j] == ' ' || p[j] == '\n' {
			if n == i {
				return string(p[from:j])
			}
			n, from = n+1, j+1
		}
	}
	return ""
}

// startTicks is when pid started, in clock ticks since boot.
func startTicks(pid int) (uint64, bool) {
	f, ok := stat(pid)
	if !ok {
		return 0, false
	}
	return atoi(f.field(22))
}

// endsByDefault says whether a process without a handler ends by sig, signal(7).
func endsByDefault(sig syscall.Signal) bool {
	switch sig {
	case syscall.SIGCHLD, syscall.SIGCONT, syscall.SIGURG, syscall.SIGWINCH,
		syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU:
		return false
	}
	return true
}

// isDeafInit says whether pid is the first process of a pid namespace below ours and neither handles
// nor ignores sig.
func isDeafInit(pid int, sig syscall.Signal) bool {
	b, ok := readFile("/proc/"+itoa(uint64(pid))+"/status", 8192)
	if !ok {
		return false
	}
	// NSpid lists its pid in each namespace from ours inwards, divided by tabs.
	ids := statusField(b, "NSpid:")
	n := len(ids)
	if n < 3 || ids[n-1] != '1' || ids[n-2] != '\t' {
		return false
	}
	caught, ok1 := parseHex(statusField(b, "SigCgt:"))
	ignored, ok2 := parseHex(statusField(b, "SigIgn:"))
	return ok1 && ok2 && (caught|ignored)&(1<<(uint(sig)-1)) == 0
}

// statusField returns the value of a line of /proc/PID/status.
func statusField(b []byte, name string) string {
	for from := 0; from < len(b); {
		to := from
		for to < len(b) && b[to] != '\n' {
			to++
		}
		if line := string(b[from:to]); len(line) > len(name) && line[:len(name)] == name {
			for line = line[len(name):]; line != "" && (line[0] == ' ' || line[0] == '\t'); {
				line = line[1:]
			}
			return line
		}
		from = to + 1
	}
	return ""
}

func parseHex(s string) (uint64, bool) {
	var v uint64
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			v = v<<4 | uint64(c-'0')
		case c >= 'a' && c <= 'f':
			v = v<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return v, s != "" && len(s) <= 16
}

func readPid(name string) (int, bool) {
	b, ok := readFile(name, 32)
	if !ok {
		return 0, false
	}
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == ' ') {
		b = b[:len(b)-1]
	}
	pid, ok := atoi(string(b))
	return int(pid), ok && pid > 0 && pid < 1<<31
}

func readFile(name string, limit int) ([]byte, bool) {
	return readInto(name, make([]byte, limit))
}

// readInto reads a file as far as b has room.
func readInto(name string, b []byte) ([]byte, bool) {
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	defer syscall.Close(fd)
	n := 0
	for n < len(b) {
		m, err := syscall.Read(fd, b[n:])
		if err == syscall.EINTR {
			continue
		}
		if m <= 0 || err != nil {
			break
		}
		n += m
	}
	return b[:n], n > 0
}

func writeFile(name, text string) error {
	fd, err := syscall.Open(name, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return writeAll(fd, []byte(text))
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := syscall.Write(fd, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// ignoreSignals lets the shim live through the end of terminals, of readers, and of the agent's
// service. Only SIGKILL and a release end it.
func ignoreSignals() {
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGPIPE, syscall.SIGUSR1, syscall.SIGUSR2} {
		// struct sigaction: handler (SIG_IGN is 1), flags, restorer, mask
		act := [4]uintptr{1, 0, 0, 0}
		_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
	}
}

func addr(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

func itoa(v uint64) string {
	var b [20]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + v%10)
		if v /= 10; v == 0 {
			return string(b[i:])
		}
	}
}

func atoi(s string) (uint64, bool) {
	if s == "" || len(s) > 19 {
		return 0, false
	}
	var v uint64
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		v = v*10 + uint64(s[i]-'0')
	}
	return v, true
}
