// Package stage is what the first process of a container does to itself before it becomes the
// container's command: namespaces, mounts and names first, then it holds until it is let go, then
// limits, identity, capabilities and filter, then exec.
//
// It promises that nothing of the command runs before the word to go, and that whatever could not
// be applied stops the exec and is said on the socket. What to apply is decided elsewhere.
//
// Everything is done with raw calls on one thread, which the exec keeps; the others end with it.
package stage

import (
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// Run applies st and executes its command. It returns only when that failed, after telling conn,
// with the exit code for the process. It must be called on a locked thread.
func Run(conn int, st *wire.Stage) int {
	code := 1
	err := before(st)
	if err == nil && !st.NoHold {
		err = hold(conn)
	}
	if err == nil {
		code, err = after(conn, st)
	}
	if err == errAbandoned {
		return code
	}
	_, _ = syscall.Write(conn, []byte(err.Error()))
	return code
}

// An opError says what was being done to what.
type opError struct {
	what string
	err  error
}

func (e *opError) Error() string { return e.what + ": " + e.err.Error() }

func fail(what string, err error) error { return &opError{what, err} }

// errAbandoned: the shim ended while the process was held. Nobody is left to tell.
var errAbandoned = syscall.EPIPE

// hold says that everything before is done and waits for the word to go.
func hold(conn int) error {
	if _, err := syscall.Write(conn, []byte{wire.StageHolds}); err != nil {
		return errAbandoned
	}
	var b [1]byte
	for {
		n, err := syscall.Read(conn, b[:])
		if err == syscall.EINTR {
			continue
		}
		if n != 1 || err != nil {
			return errAbandoned
		}
		return nil
	}
}

func before(st *wire.Stage) error {
	if guarded(st) {
		// What others in namespaces that are joined could do to this process as long as it is the agent's.
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
			return fail("become undumpable", err)
		}
	}
	for _, j := range st.Joins {
		if err := join(j); err != nil {
			return fail("join namespace "+j.Path, err)
		}
	}
	if st.PrivateMounts || st.Root != nil {
		// Mounts of the host still appear, ours stay here.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return fail("make mounts private", err)
		}
	}
	if st.BindRoot != "" {
		if err := unix.Mount("/", st.BindRoot, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fail("bind / to "+st.BindRoot, err)
		}
	}
	if st.Proc {
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fail("mount /proc", err)
		}
	}
	if st.Loopback {
		if err := raiseLoopback(); err != nil {
			return fail("raise loopback", err)
		}
	}
	if st.Hostname != "" {
		if err := unix.Sethostname([]byte(st.Hostname)); err != nil {
			return fail("set hostname "+st.Hostname, err)
		}
	}
	if st.Root == nil {
		return nil
	}
	// By the machine's /proc, which no image and no volume had a hand in.
	if err := tune(st); err != nil {
		return err
	}
	if err := enterRoot(st.Root); err != nil {
		return err
	}
	if err := makeFolder(st.Dir); err != nil {
		return fail("make "+st.Dir, err)
	}
	return protect(st.Root)
}

// guarded says whether this process comes where others are, or where others have put the files: to them it must neither be
// of use, nor be led back out.
func guarded(st *wire.Stage) bool { return st.Root != nil || len(st.Joins) > 0 }

// tune writes settings of the kernel for this process and its namespaces.
func tune(st *wire.Stage) error {
	for _, c := range st.Sysctls {
		if err := writeFile("/proc/sys/"+c.File, c.Value); err != nil {
			return fail("set sysctl "+c.File, err)
		}
	}
	if st.HasOOMScore {
		if err := writeFile("/proc/self/oom_score_adj", itoa(int(st.OOMScore))); err != nil {
			return fail("set oom_score_adj "+itoa(int(st.OOMScore)), err)
		}
	}
	return nil
}

// join enters a namespace with this thread. A mount namespace can only be entered by a thread that
// shares its root and working directory with no other.
func join(j wire.Join) error {
	fd, err := syscall.Open(j.Path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if j.Type == unix.CLONE_NEWNS {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
	}
	return unix.Setns(fd, int(j.Type))
}

func raiseLoopback() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// after applies what must come last and executes. The order matters:
//
//   - what needs the agent's privileges (sysctls, limits, score) before these are dropped;
//   - the bounding set before the identity, since dropping from it needs a capability;
//   - the permitted set is kept over the change of identity, then narrowed to what was asked;
//   - the filter last, so that it need not allow any of this; but without no_new_privs only a
//     privileged process may load one, so then it comes before.
func after(conn int, st *wire.Stage) (int, error) {
	if st.CgroupNamespace {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return 1, fail("new cgroup namespace", err)
		}
	}
	if st.Root == nil {
		if err := tune(st); err != nil {
			return 1, err
		}
	}
	for _, l := range st.Rlimits {
		rl := unix.Rlimit{Cur: l.Soft, Max: l.Hard}
		if err := unix.Prlimit(0, int(l.Resource), &rl, nil); err != nil {
			return 1, fail("set rlimit "+itoa(int(l.Resource)), err)
		}
	}
	if st.Root != nil {
		if err := giveStreams(st.UID); err != nil {
			return 1, fail("hand over the standard streams", err)
		}
		if st.Root.Home {
			st.Env = withHome(st.Env, st.UID)
		}
	}
	if len(st.Seccomp) > 0 && !st.NoNewPrivileges {
		if err := loadFilter(st.Seccomp); err != nil {
			return 1, fail("load seccomp filter", err)
		}
	}
	entered := chdir(st.Dir) // as the agent: folders above a sandbox need not be open to the user
	if err := become(st); err != nil {
		return 1, err
	}
	if entered != nil {
		if err := chdir(st.Dir); err != nil { // a network file system may trust the user alone
			return 1, fail("enter "+st.Dir, err)
		}
	}
	if guarded(st) {
		if err := inside(); err != nil {
			return 1, fail("enter "+st.Dir, err)
		}
	}
	if st.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return 1, fail("set no_new_privs", err)
		}
	}
	x, err := prepareExec(st)
	if err != nil {
		return 1, err
	}
	resetSignals()
	if _, err := syscall.Write(conn, []byte{wire.StageExecutes}); err != nil {
		return 1, errAbandoned
	}
	if len(st.Seccomp) > 0 && st.NoNewPrivileges {
		if err := loadFilter(st.Seccomp); err != nil {
			return 1, fail("load seccomp filter", err)
		}
	}
	switch errno := x.run(); errno {
	case syscall.ENOENT:
		return 127, fail("exec "+program(st), errno)
	case syscall.ENOEXEC:
		return 126, fail("exec "+program(st)+", which is for another kind of machine", errno)
	default:
		return 126, fail("exec "+program(st), errno)
	}
}

func chdir(dir string) error {
	if dir == "" {
		dir = "/"
	}
	return syscall.Chdir(dir)
}

// become takes on the user and the capabilities.
func become(st *wire.Stage) error {
	if st.HasCapabilities {
		if err := dropBounding(st.Capabilities.Bounding); err != nil {
			return fail("drop from bounding set", err)
		}
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			return fail("keep capabilities", err)
		}
	}
	if st.SwitchUser {
		var groups unsafe.Pointer
		if len(st.Groups) > 0 {
			groups = unsafe.Pointer(&st.Groups[0])
		}
		if _, _, e := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(st.Groups)), uintptr(groups), 0); e != 0 {
			return fail("set groups", e)
		}
		g, u := uintptr(st.GID), uintptr(st.UID)
		if _, _, e := syscall.RawSyscall(unix.SYS_SETRESGID, g, g, g); e != 0 {
			return fail("set gid "+itoa(int(st.GID)), e)
		}
		if _, _, e := syscall.RawSyscall(unix.SYS_SETRESUID, u, u, u); e != 0 {
			return fail("set uid "+itoa(int(st.UID)), e)
		}
	}
	if st.HasCapabilities {
		return setCapabilities(st.Capabilities)
	}
	return nil
}

// lastCapability is above any capability the kernel may have; asking for more ends with EINVAL.
const lastCapability = 63

func dropBounding(keep uint64) error {
	for c := range uint(lastCapability + 1) {
		if keep&(1<<c) != 0 {
			continue
		}
		had, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err == syscall.EINVAL {
			return nil // no such capability, nor any above
		}
		if err != nil {
			return err
		}
		if had == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

func setCapabilities(c wire.Capabilities) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(c.Effective), Permitted: uint32(c.Permitted), Inheritable: uint32(c.Inheritable)},
		{Effective: uint32(c.Effective >> 32), Permitted: uint32(c.Permitted >> 32), Inheritable: uint32(c.Inheritable >> 32)},
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); e != 0 {
		return fail("set capabilities", e)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && err != syscall.EINVAL {
		return fail("clear ambient capabilities", err)
	}
	for i := range uint(lastCapability + 1) {
		if c.Ambient&(1<<i) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(i), 0, 0); err != nil {
			return fail("raise ambient capability "+itoa(int(i)), err)
		}
	}
	return nil
}

// loadFilter installs a seccomp filter on this thread, the one that executes.
func loadFilter(bpf []byte) error {
	// The records must be aligned as the kernel reads them.
	recs := make([]unix.SockFilter, len(bpf)/8)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&recs[0])), len(bpf)), bpf)
	prog := unix.SockFprog{Len: uint16(len(recs)), Filter: &recs[0]}
	if len(recs) > 1<<15 {
		return syscall.EINVAL
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	}
	return nil
}

// resetSignals gives the command default dispositions and an empty mask, whatever the shim ignores.
func resetSignals() {
	for sig := 1; sig <= 64; sig++ {
		var act [4]uintptr // SIG_DFL
		_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
	}
	var none uint64
	_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
}

// An execution is an exec with everything allocated, so that nothing but execve is called once a
// filter is loaded.
type execution struct {
	paths []*byte
	argv  []*byte
	shell []*byte // argv with /bin/sh and the path before it, for a script without #!
	env   []*byte
	sh    *byte
}

// defaultPath is searched when the environment has no PATH, as execvp does.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func prepareExec(st *wire.Stage) (*execution, error) {
	x := &execution{}
	var err error
	if x.argv, err = syscall.SlicePtrFromStrings(st.Argv); err != nil {
		return nil, fail("argument", err)
	}
	if x.env, err = syscall.SlicePtrFromStrings(st.Env); err != nil {
		return nil, fail("environment", err)
	}
	for _, p := range candidates(program(st), st.Env) {
		b, err := syscall.BytePtrFromString(p)
		if err != nil {
			return nil, fail("path "+p, err)
		}
		x.paths = append(x.paths, b)
	}
	if x.sh, err = syscall.BytePtrFromString("/bin/sh"); err != nil {
		return nil, err
	}
	x.shell = append([]*byte{x.sh, nil}, x.argv[1:]...)
	return x, nil
}

// program is what to execute; by convention the command line begins with its name, but need not.
func program(st *wire.Stage) string {
	if st.Path != "" {
		return st.Path
	}
	return st.Argv[0]
}

// candidates are the paths to try for name, in order.
func candidates(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	path := defaultPath
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
			break
		}
	}
	var list []string
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			dir = "."
		}
		list = append(list, dir+"/"+name)
	}
	return list
}

// run tries the candidates as execvp does: on to the next when one is not there or may not be
// executed, and through the shell when it has no known format. It returns the error to report.
func (x *execution) run() syscall.Errno {
	worst := syscall.ENOENT
	for _, p := range x.paths {
		e := execve(p, x.argv, x.env)
		if e == syscall.ENOEXEC && !machineCode(p) {
			x.shell[1] = p
			e = execve(x.sh, x.shell, x.env)
		}
		switch e {
		case syscall.ENOENT, syscall.ENOTDIR:
		case syscall.EACCES:
			worst = e
		default:
			return e
		}
	}
	return worst
}

// machineCode says whether a file that the kernel does not take is a program all the same: for another kind of machine. A
// shell would read it as a script, and say something that nobody understands.
func machineCode(path *byte) bool {
	fd, err := syscall.Open(unix.BytePtrToString(path), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	var head [4]byte
	n, err := syscall.Read(fd, head[:])
	return err == nil && n == len(head) && string(head[:]) == "\x7fELF"
}

func execve(path *byte, argv, env []*byte) syscall.Errno {
	_, _, e := syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0])))
	return e
}

func writeFile(name, text string) error {
	fd, err := syscall.Open(name, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	_, err = syscall.Write(fd, []byte(text))
	return err
}

func itoa(v int) string {
	var b [20]byte
	i, neg := len(b), v < 0
	if neg {
		v = -v
	}
	for {
		i--
		b[i] = byte('0' + v%10)
		if v /= 10; v == 0 {
			break
		}
	}
	if neg {
		i--
		b[i] = '-'
	}
	return string(b[i:])
}
