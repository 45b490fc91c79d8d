package supervised

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/supervise"
)

// BootID names this boot of the machine.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// A procStat holds what is used of /proc/PID/stat.
type procStat struct {
	state   byte
	session int
	ticks   uint64
}

func readStat(pid int) (procStat, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, false
	}
	// The name may hold spaces and parentheses: count from the last of these.
	_, rest, ok := bytes.Cut(b[bytes.LastIndexByte(b, ')')+1:], []byte(" "))
	f := bytes.Fields(rest)
	if !ok || len(f) < 20 {
		return procStat{}, false
	}
	session, err := strconv.Atoi(string(f[3]))
	if err != nil {
		return procStat{}, false
	}
	ticks, err := strconv.ParseUint(string(f[19]), 10, 64)
	return procStat{state: f[0][0], session: session, ticks: ticks}, err == nil
}

// isSame says whether pid is still the process that started at ticks, and not ended.
func isSame(pid int, ticks uint64) bool {
	s, ok := readStat(pid)
	return ok && s.ticks == ticks && s.state != 'Z' && s.state != 'X'
}

// readExit reads the record that a shim leaves of the end.
func readExit(runDir string) (end, bool) {
	b, err := os.ReadFile(filepath.Join(runDir, supervise.ExitName))
	if err != nil {
		return end{}, false
	}
	f := strings.Fields(string(b))
	if len(f) < 1 {
		return end{}, false
	}
	status, err := strconv.ParseUint(f[0], 10, 32)
	return end{status: int(status), known: err == nil}, err == nil
}

// signalAlone signals the process group without the help of a shim.
func (h *Handle) signalAlone(sig syscall.Signal) error {
	if !isSame(h.rec.Pid, h.rec.StartTicks) {
		return syscall.ESRCH
	}
	err := syscall.Kill(-h.rec.Pid, sig)
	if err == syscall.ESRCH {
		err = syscall.Kill(h.rec.Pid, sig)
	}
	return err
}

// killAlone kills, where there is neither cgroup nor shim, the first process and its session. A
// process that made a session of its own is not found this way; a shim or a cgroup finds it.
func (h *Handle) killAlone(ctx context.Context) error {
	boot, err := BootID()
	if err != nil {
		return err
	}
	if boot != h.rec.BootID {
		return nil
	}
	for pause := 200 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		left, err := h.members()
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill session %d: %d processes left: %w", h.rec.Pid, len(left), ctx.Err())
		case <-time.After(pause):
		}
	}
}

// members are the first process, and without cgroup and shim also its session, as far as they run.
// A session keeps its number reserved while it has members, so those started later than the first
// process belong to it, unless the number came round again after all had ended: a stranger leading
// a session of that number is told by its start time.
func (h *Handle) members() ([]int, error) {
	var list []int
	if isSame(h.rec.Pid, h.rec.StartTicks) {
		list = append(list, h.rec.Pid)
	}
	if h.group != nil || h.shim() != nil {
		return list, nil
	}
	if s, ok := readStat(h.rec.Pid); ok && s.ticks != h.rec.StartTicks {
		return nil, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == h.rec.Pid {
			continue
		}
		if s, ok := readStat(pid); ok && s.session == h.rec.Pid && s.ticks >= h.rec.StartTicks && s.state != 'Z' && s.state != 'X' {
			list = append(list, pid)
		}
	}
	return list, nil
}

// exitInfoTimeout is how long to look for the status of a process that has ended without its shim:
// whoever inherited it has to reap it first, and a busy first process of a system takes its time.
const exitInfoTimeout = 3 * time.Second

// openPidfd returns a descriptor of the process that started at ticks, or -1. Whoever holds one when
// the process ends can ask how it ended, also after it was reaped.
func openPidfd(pid int, ticks uint64) int {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return -1
	}
	// The descriptor is held, so the pid cannot change hands between here and there.
	if s, ok := readStat(pid); !ok || s.ticks != ticks {
		_ = unix.Close(fd)
		return -1
	}
	return fd
}

// watch waits for the first process without a shim. The status is the kernel's, where it gives that
// to others than the parent, or the record's, if the shim lived to write it.
func (h *Handle) watch(ctx context.Context) (end, error) {
	h.mu.Lock()
	fd, err := -1, error(nil)
	if h.pidfd >= 0 {
		fd, err = unix.FcntlInt(uintptr(h.pidfd), unix.F_DUPFD_CLOEXEC, 0)
	}
	h.mu.Unlock()
	if err != nil {
		return end{}, fmt.Errorf("watch process %d: %w", h.rec.Pid, err)
	}
	if fd < 0 { // it had ended before anyone could look
		e, _ := readExit(h.rec.RunDir)
		return e, nil
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := f.SyscallConn()
	if err != nil {
		return end{}, fmt.Errorf("watch pidfd: %w", err)
	}
	err = conn.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n > 0
	})
	if ctx.Err() != nil {
		return end{}, ctx.Err()
	}
	if err != nil {
		return end{}, fmt.Errorf("watch pidfd: %w", err)
	}
	giveUp := time.Now().Add(exitInfoTimeout)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if e, ok := readExit(h.rec.RunDir); ok {
			return e, nil
		}
		status, ok, err := exitStatus(conn)
		if ok {
			return end{status: status, known: true}, nil
		}
		if err != nil || time.Now().After(giveUp) {
			return end{}, nil // the kernel does not tell, or nobody reaps it
		}
		select {
		case <-ctx.Done():
			return end{}, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// pidfdInfo is struct pidfd_info of linux/pidfd.h in its first version.
type pidfdInfo struct {
	mask     uint64
	cgroupid uint64
	ids      [11]uint32
	exitCode int32
}

const (
	pidfdInfoExit = 1 << 3
	// _IOWR(0xFF, 11, struct pidfd_info)
	pidfdGetInfo = 3<<30 | unsafe.Sizeof(pidfdInfo{})<<16 | 0xFF<<8 | 11
)

// exitStatus asks the kernel (from 6.15) for the wait status of a process that was reaped. ok is
// false while it is not; an error means that this kernel never tells.
func exitStatus(conn syscall.RawConn) (status int, ok bool, err error) {
	info := pidfdInfo{mask: pidfdInfoExit}
	var errno syscall.Errno
	cerr := conn.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	})
	if cerr != nil {
		return 0, false, cerr
	}
	if errno == syscall.ENOTTY || errno == syscall.EINVAL {
		return 0, false, errno
	}
	return int(info.exitCode), errno == 0 && info.mask&pidfdInfoExit != 0, nil
}
