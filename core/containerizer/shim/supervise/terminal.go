package supervise

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// openTerminal makes a terminal, keeps its master and returns the other end.
func (st *streams) openTerminal() (slave int, err error) {
	master, err := openMaster(st.c.spec.TerminalRoot)
	if err != nil {
		return -1, err
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		_ = syscall.Close(master)
		return -1, fail("unlock terminal", "", err)
	}
	// By the master itself: the name that it has in its own file system may be another's here.
	peer, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC)
	if errno != 0 {
		_ = syscall.Close(master)
		return -1, fail("open terminal", "", errno)
	}
	slave = int(peer)
	st.c.own(slave, -1) // its group stays that of terminals
	if err := st.useTerminal(master); err != nil {
		_ = syscall.Close(slave)
		return -1, err
	}
	return slave, nil
}

// openMaster makes a terminal in the dev/pts below root, where there is one, else in the shim's own.
func openMaster(root string) (int, error) {
	const flags = syscall.O_RDWR | syscall.O_NOCTTY | syscall.O_CLOEXEC
	if node := terminalsBelow(root); node >= 0 {
		master, err := syscall.Open("/proc/self/fd/"+itoa(uint64(node)), flags, 0)
		_ = syscall.Close(node)
		if err == nil {
			return master, nil
		}
	}
	master, err := syscall.Open("/dev/ptmx", flags, 0)
	if err != nil {
		return -1, fail("open", "/dev/ptmx", err)
	}
	return master, nil
}

// terminalsBelow returns a descriptor of dev/pts/ptmx below root, or -1. The folder is a container's, whose root user
// may have put anything there: no link is followed, and nothing is opened that is not what it should be.
func terminalsBelow(root string) int {
	if root == "" {
		return -1
	}
	dir, err := syscall.Open(root, unix.O_PATH|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	defer syscall.Close(dir)
	node, err := unix.Openat2(dir, "dev/pts/ptmx", &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1 // also of a kernel before 5.6, which cannot be asked so
	}
	var file syscall.Stat_t
	var system syscall.Statfs_t
	if syscall.Fstat(node, &file) != nil || syscall.Fstatfs(node, &system) != nil || system.Type != unix.DEVPTS_SUPER_MAGIC ||
		file.Mode&syscall.S_IFMT != syscall.S_IFCHR || file.Rdev != unix.Mkdev(5, 2) {
		_ = syscall.Close(node)
		return -1
	}
	return node
}

// useTerminal takes a terminal's master for input and output.
func (st *streams) useTerminal(master int) error {
	in, err := unix.FcntlInt(uintptr(master), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		_ = syscall.Close(master)
		return fail("keep terminal", "", err)
	}
	_ = syscall.SetNonblock(master, true)
	st.in, st.out[0].fd = in, master
	spec := st.c.spec
	rows, columns := spec.Rows, spec.Columns
	if rows == 0 || columns == 0 {
		rows, columns = 24, 80
	}
	return st.resize(rows, columns)
}

func (st *streams) resize(rows, columns uint16) error {
	if err := unix.IoctlSetWinsize(st.in, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		return fail("set size of terminal", "", err)
	}
	return nil
}

// readConsole receives the terminal that a runtime has made: first its connection, then the descriptor on it.
func (c *container) readConsole() {
	if !c.accepted {
		fd, _, err := syscall.Accept4(c.console, syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
		if err != nil {
			return
		}
		closeFD(&c.console)
		c.console, c.accepted = fd, true
		_ = syscall.Unlink(c.spec.RunDir + "/" + wire.ConsoleName)
	}
	name, rights := make([]byte, 512), make([]byte, syscall.CmsgSpace(4))
	_, n, _, _, err := syscall.Recvmsg(c.console, name, rights, syscall.MSG_CMSG_CLOEXEC)
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return
	}
	closeFD(&c.console)
	if err != nil {
		return
	}
	fd := descriptor(rights[:n])
	if fd == 0 {
		return
	}
	if c.streams.out[0].fd >= 0 || c.streams.out[0].done {
		_ = syscall.Close(fd)
		return
	}
	if err := c.streams.useTerminal(fd); err != nil {
		c.streams.finished(0)
	}
}
