package supervise

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// goQuiet keeps the runtime of a stage small; a stage lives for milliseconds.
var goQuiet = []string{"GOMAXPROCS=1", "GOGC=off"}

// create makes the first process, or starts the runtime that will. The lock is held.
func (c *container) create() error {
	spec := c.spec
	if err := c.open(); err != nil {
		return err
	}
	files, err := c.openFiles()
	defer func() { closeAll(files) }()
	if err != nil {
		return err
	}
	argv, env, path := spec.Runtime.Argv, spec.Runtime.Env, ""
	attr := &syscall.ProcAttr{Sys: &syscall.SysProcAttr{}}
	if len(spec.Stage) > 0 {
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return fail("make socket pair", "", err)
		}
		c.stage, c.staged = pair[0], len(spec.Runtime.Argv) == 0
		files = append(files, pair[1])
		argv, env, path = []string{"mosaic-shim-stage", spec.ID}, goQuiet, "/proc/self/exe"
	} else if len(argv) > 0 {
		path = argv[0]
	}
	if path == "" {
		return fail("create", spec.ID, syscall.EINVAL)
	}
	attr.Env = env
	attr.Files = make([]uintptr, len(files))
	for i, fd := range files {
		attr.Files[i] = uintptr(fd)
	}
	if len(spec.Runtime.Argv) > 0 && len(spec.Stage) > 0 {
		attr.Files = append(attr.Files, wire.RuntimeFD)
	}
	attr.Sys.Setsid = true
	attr.Sys.Setctty = spec.Streams == wire.StreamsTerminal && len(spec.Runtime.Argv) == 0 // by descriptor 0
	attr.Sys.Cloneflags = uintptr(spec.CloneFlags)
	if spec.PidNamespace != "" {
		leave, err := enterPidNamespace(spec.PidNamespace)
		if err != nil {
			return err
		}
		defer leave()
	}
	pid, err := c.fork(path, argv, attr)
	if err != nil {
		return err
	}
	if len(spec.Stage) > 0 {
		if err := writeAll(c.stage, wire.AppendFrame(nil, wire.KindStage, 0, spec.Stage)); err != nil {
			return c.undo(pid, fail("hand over to stage", "", err))
		}
		_ = syscall.SetNonblock(c.stage, true)
	}
	c.spec.Stage = nil // may be large
	if len(spec.Runtime.Argv) > 0 {
		c.runtime = pid
		return nil
	}
	if err := c.adopt(pid); err != nil {
		return c.undo(pid, err)
	}
	if !spec.AwaitReady {
		c.created()
	}
	return nil
}

// fork makes the child in the container's cgroups: in those of version 1 by visiting them with this
// thread, in that of version 2 by cloning into it.
func (c *container) fork(path string, argv []string, attr *syscall.ProcAttr) (int, error) {
	if c.spec.CloneInto != "" {
		fd, err := syscall.Open(c.spec.CloneInto, unix.O_PATH|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return 0, fail("open cgroup", c.spec.CloneInto, err)
		}
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, fd
		defer syscall.Close(fd)
	}
	pid := 0
	err := visit(c.spec.EnterFiles)
	if err == nil {
		pid, err = syscall.ForkExec(path, argv, attr)
		if err != nil {
			err = fail("clone", path, err)
		}
	}
	// Back home whatever happened: the container's end must not be the shim's.
	if herr := visit(c.spec.LeaveFiles); herr != nil && err == nil {
		err = c.undo(pid, herr)
	}
	return pid, err
}

// visit moves this thread through the tasks files of cgroups.
func visit(files []string) error {
	for _, f := range files {
		if err := writeFile(f, "0"); err != nil {
			return fail("enter cgroup by", f, err)
		}
	}
	return nil
}

// adopt takes pid as the first process: into its cgroups, where it is not there already, its record
// written.
func (c *container) adopt(pid int) error {
	for _, f := range c.spec.JoinFiles {
		if lists(f, pid) {
			continue
		}
		if err := writeFile(f, itoa(uint64(pid))); err != nil {
			return fail("write", f, err)
		}
	}
	ticks, ok := startTicks(pid)
	if !ok {
		return fail("read start time of", itoa(uint64(pid)), syscall.ESRCH)
	}
	c.state.Pid, c.state.StartTicks = pid, ticks
	c.startable = true
	return c.record(PidName, itoa(uint64(pid))+" "+itoa(ticks)+"\n")
}

// lists says whether a file of process ids has pid on a line.
func lists(name string, pid int) bool {
	b, _ := readFile(name, 4096)
	from := 0
	for i, c := range b {
		if c != '\n' {
			continue
		}
		if v, ok := atoi(string(b[from:i])); ok && int(v) == pid {
			return true
		}
		from = i + 1
	}
	return false
}

// undo kills a child whose creation failed half way, and returns why.
func (c *container) undo(pid int, why error) error {
	_ = syscall.Kill(pid, syscall.SIGKILL)
	for {
		_, err := syscall.Wait4(pid, nil, 0, nil)
		if err != syscall.EINTR {
			return why
		}
	}
}

// enterPidNamespace lets the next children be made in the namespace at path, until leave. It concerns this thread
// alone, which also forks.
func enterPidNamespace(path string) (leave func(), err error) {
	own, err := syscall.Open("/proc/thread-self/ns/pid", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fail("open", "the pid namespace", err)
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Setns(fd, unix.CLONE_NEWPID)
		_ = syscall.Close(fd)
	}
	if err != nil {
		_ = syscall.Close(own)
		return nil, fail("join", path, err)
	}
	return func() {
		_ = unix.Setns(own, unix.CLONE_NEWPID)
		_ = syscall.Close(own)
	}, nil
}

// openFiles opens the standard files of the first process, and keeps the other ends of those that are streams.
func (c *container) openFiles() ([]int, error) {
	null, err := syscall.Open("/dev/null", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fail("open", "/dev/null", err)
	}
	files := []int{null}
	if c.spec.Stdin != "" {
		fd, err := syscall.Open(c.spec.Stdin, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if err != nil {
			return files, fail("open", c.spec.Stdin, err)
		}
		_ = syscall.Close(null)
		null, files[0] = fd, fd
		if err := syscall.SetNonblock(fd, false); err != nil {
			return files, fail("open", c.spec.Stdin, err)
		}
	}
	names := [2]string{c.spec.Stdout, c.spec.Stderr}
	if c.spec.Streams != wire.StreamsFiles {
		return c.openStreams(null, names)
	}
	for _, name := range names {
		var fd int
		if name == "" {
			fd, err = syscall.Open("/dev/null", syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
		} else {
			fd, err = openLog(name, int(c.spec.LogUID), int(c.spec.LogGID))
			if err == nil {
				err = syscall.SetNonblock(fd, false)
			}
		}
		if err != nil {
			return files, fail("open", name, err)
		}
		files = append(files, fd)
	}
	return files, nil
}

// openLog opens a file to append to, and makes it for uid and gid when it is missing. The folder
// may belong to the container's user, who may have put anything there: no link is followed, and nothing but a file or a
// named pipe is opened, least of all a device, which the container may make but not open. The descriptor does not
// block; a regular file does not care.
func openLog(name string, uid, gid int) (int, error) {
	const flags = syscall.O_WRONLY | syscall.O_APPEND | syscall.O_CLOEXEC | syscall.O_NONBLOCK
	fd, err := syscall.Open(name, flags|syscall.O_NOFOLLOW|syscall.O_CREAT|syscall.O_EXCL, 0o644)
	if err == nil {
		if syscall.Geteuid() == 0 {
			if err := syscall.Fchown(fd, uid, gid); err != nil {
				_ = syscall.Close(fd)
				return -1, err
			}
		}
		return fd, nil
	}
	if err != syscall.EEXIST {
		return -1, err
	}
	at, err := syscall.Open(name, unix.O_PATH|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	defer syscall.Close(at)
	var info syscall.Stat_t
	if err := syscall.Fstat(at, &info); err != nil {
		return -1, err
	}
	switch info.Mode & syscall.S_IFMT {
	case syscall.S_IFREG, syscall.S_IFIFO:
	case syscall.S_IFLNK:
		return -1, syscall.ELOOP
	default:
		return -1, syscall.EPERM
	}
	same := "/proc/self/fd/" + strconv.Itoa(at)
	fd, err = syscall.Open(same, flags, 0)
	if err == syscall.ENXIO {
		// A named pipe that nobody reads yet. Opened for both it does not block, and a reader that
		// comes and goes does not kill the container.
		fd, err = syscall.Open(same, flags&^syscall.O_WRONLY|syscall.O_RDWR, 0)
	}
	if err != nil {
		return -1, err
	}
	return fd, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = syscall.Close(fd)
	}
}
