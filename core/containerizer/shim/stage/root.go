package stage

import (
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// A root file system is put together in the mount namespace of the container, which is new, before it becomes the root:
// everything is mounted by descriptors, and every place in it is looked up with the root as the ceiling, so that no link
// in an image or a volume, whoever changes it meanwhile, leads a mount elsewhere. What hides and protects comes last,
// from inside.

// late is a mount that becomes read-only when all is in place: something may have to be made in it before.
type late struct {
	fd   int
	name string
}

// enterRoot puts r together and makes it the root of this process.
func enterRoot(r *wire.Root) error {
	// Whatever keys the agent has are none of the container's. Kernels without keys have none to keep.
	if _, _, errno := syscall.Syscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0); errno != 0 && errno != syscall.ENOSYS {
		return fail("leave the agent's keyring", errno)
	}
	mask := syscall.Umask(0)
	defer syscall.Umask(mask)
	root, err := openRoot(r.Path)
	if err != nil {
		return fail("root "+r.Path, err)
	}
	var held []late
	for i := range r.Mounts {
		m := &r.Mounts[i]
		fd, err := mount(root, m)
		if err != nil {
			return fail("mount "+m.Destination, err)
		}
		if m.Type != "" && m.Set&unix.MOUNT_ATTR_RDONLY != 0 && waits(m) {
			held = append(held, late{fd, m.Destination})
			continue
		}
		_ = syscall.Close(fd)
	}
	for i := range r.Devices {
		if err := makeNode(root, &r.Devices[i]); err != nil {
			return fail("make device "+r.Devices[i].Path, err)
		}
	}
	if r.OwnDev {
		if err := linkDevices(root); err != nil {
			return err
		}
	}
	if err := pivot(root); err != nil {
		return fail("enter root "+r.Path, err)
	}
	_ = syscall.Close(root)
	if r.OwnDev {
		if err := ownNull(); err != nil {
			return fail("open the container's /dev/null", err)
		}
	}
	for _, l := range held {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(l.fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fail("make "+l.name+" read-only", err)
		}
		_ = syscall.Close(l.fd)
	}
	return nil
}

// protect makes a root what it is to be at last, from inside: nothing in it can be made any more.
func protect(r *wire.Root) error {
	for _, p := range r.Fixed {
		if err := fix(p); err != nil {
			return fail("make "+p+" read-only", err)
		}
	}
	if len(r.Masked) > 0 {
		if err := hide(r.Masked); err != nil {
			return err
		}
	}
	if r.ReadOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &attr); err != nil {
			return fail("make the root read-only", err)
		}
	}
	return nil
}

// openRoot binds a folder to itself, since only a mount can become the root, and opens it.
func openRoot(path string) (int, error) {
	tree, err := openTree(path, true)
	if err != nil {
		return -1, err
	}
	defer syscall.Close(tree)
	if err := moveMount(tree, unix.AT_FDCWD, path); err != nil {
		return -1, err
	}
	return unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// waits says whether something may yet be mounted or made in a file system of the container's own.
func waits(m *wire.Mount) bool { return m.Type == "tmpfs" || m.Destination == "/dev" }

// mount makes one mount and returns it.
func mount(root int, m *wire.Mount) (int, error) {
	tree, folder, err := newMount(m)
	if err != nil {
		return -1, err
	}
	err = place(root, m, tree, folder)
	if err != nil {
		_ = syscall.Close(tree)
		return -1, err
	}
	return tree, nil
}

// newMount makes a mount that is nowhere yet, and says whether it is a folder.
func newMount(m *wire.Mount) (tree int, folder bool, err error) {
	set := m.Set
	if m.Type == "" {
		if tree, err = openTree(m.Source, m.Recursive); err != nil {
			return -1, false, fail("source "+m.Source, err)
		}
	} else {
		if waits(m) {
			set &^= unix.MOUNT_ATTR_RDONLY
		}
		if tree, err = newFileSystem(m); err != nil {
			return -1, false, err
		}
	}
	var st syscall.Stat_t
	if err = syscall.Fstat(tree, &st); err == nil && set|m.Clear != 0 {
		attr := unix.MountAttr{Attr_set: set, Attr_clr: m.Clear}
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr)
	}
	if err == nil && m.Propagation != 0 {
		attr := unix.MountAttr{Propagation: m.Propagation &^ unix.MS_REC}
		flags := uint(unix.AT_EMPTY_PATH)
		if m.Propagation&unix.MS_REC != 0 {
			flags |= unix.AT_RECURSIVE
		}
		err = unix.MountSetattr(tree, "", flags, &attr)
	}
	if err != nil {
		_ = syscall.Close(tree)
		return -1, false, err
	}
	return tree, st.Mode&syscall.S_IFMT == syscall.S_IFDIR, nil
}

// newFileSystem makes an instance of a file system, mounted nowhere.
func newFileSystem(m *wire.Mount) (int, error) {
	fs, err := fsopen(m.Type)
	if err != nil {
		return -1, fail("file system "+m.Type, err)
	}
	defer syscall.Close(fs)
	if m.Source != "" {
		if err := unix.FsconfigSetString(fs, "source", m.Source); err != nil {
			return -1, fail("source "+m.Source, err)
		}
	}
	if m.Set&unix.MOUNT_ATTR_RDONLY != 0 && !waits(m) {
		if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
			return -1, fail("option ro", err)
		}
	}
	for _, o := range m.Options {
		name, value, given := strings.Cut(o, "=")
		if given {
			err = unix.FsconfigSetString(fs, name, value)
		} else {
			err = unix.FsconfigSetFlag(fs, name)
		}
		if err != nil {
			return -1, fail("option "+o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	fd, _, errno := syscall.Syscall(unix.SYS_FSMOUNT, uintptr(fs), unix.FSMOUNT_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func fsopen(name string) (int, error) {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return -1, err
	}
	fd, _, errno := syscall.Syscall(unix.SYS_FSOPEN, uintptr(unsafe.Pointer(p)), unix.FSOPEN_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func openTree(path string, recursive bool) (int, error) {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return -1, err
	}
	here, flags := unix.AT_FDCWD, uintptr(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, _, errno := syscall.Syscall(unix.SYS_OPEN_TREE, uintptr(here), uintptr(unsafe.Pointer(p)), flags)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// moveMount puts a mount at path, or, if that is empty, onto what dir is.
func moveMount(tree, dir int, path string) error {
	flags := uintptr(unix.MOVE_MOUNT_F_EMPTY_PATH)
	if path == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	to, err := syscall.BytePtrFromString(path)
	if err != nil {
		return err
	}
	none := [1]byte{}
	_, _, errno := syscall.Syscall6(unix.SYS_MOVE_MOUNT, uintptr(tree), uintptr(unsafe.Pointer(&none)), uintptr(dir), uintptr(unsafe.Pointer(to)), flags, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// place puts a mount where it belongs. File systems of the kernel's go to plain folders only, and nothing goes into
// /proc, whose files whoever sets up a container has to trust.
func place(root int, m *wire.Mount, tree int, folder bool) error {
	resolve := uint64(0)
	if m.Type == "proc" || m.Type == "sysfs" {
		resolve = unix.RESOLVE_NO_SYMLINKS
	}
	dst, err := openPlace(root, m.Destination, folder, resolve)
	if err != nil {
		return err
	}
	defer syscall.Close(dst)
	var fs syscall.Statfs_t
	if err := syscall.Fstatfs(dst, &fs); err != nil {
		return err
	}
	if fs.Type == unix.PROC_SUPER_MAGIC {
		return fail("it lies in /proc", syscall.EPERM)
	}
	return moveMount(tree, dst, "")
}

// maxLinks is how many links that lead to nothing yet are followed for one place, as many as the kernel follows of others.
const maxLinks = 40

// openPlace opens a place below the root, made when missing, as a folder or an empty file. Where a link leads to nothing
// yet, as /var/run of some images, what it leads to is made.
func openPlace(root int, path string, folder bool, resolve uint64) (int, error) {
	return openPlaceBy(root, path, folder, resolve, maxLinks)
}

func openPlaceBy(root int, path string, folder bool, resolve uint64, links int) (int, error) {
	fd, err := openBelow(root, path, 0, resolve)
	if err != syscall.ENOENT {
		return fd, err
	}
	dir, name, err := openParent(root, path, resolve, links)
	if err != nil {
		return -1, err
	}
	defer syscall.Close(dir)
	if to, ok := linkAt(dir, name); ok && resolve&unix.RESOLVE_NO_SYMLINKS == 0 {
		if links == 0 {
			return -1, syscall.ELOOP
		}
		if to[0] != '/' {
			to = path[:strings.LastIndexByte(path, '/')+1] + to
		}
		return openPlaceBy(root, to, folder, resolve, links-1)
	}
	if folder {
		err = unix.Mkdirat(dir, name, 0o755)
	} else {
		err = unix.Mknodat(dir, name, syscall.S_IFREG|0o644, 0)
	}
	// There by now: if it is a link it is not followed, and stays an error.
	if err != nil && err != syscall.EEXIST {
		return -1, err
	}
	return unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// linkAt reads a link, without what ends its path in vain; false for what is none, or leads nowhere.
func linkAt(dir int, name string) (string, bool) {
	var b [syscall.PathMax]byte
	n, err := unix.Readlinkat(dir, name, b[:])
	if err != nil || n == len(b) {
		return "", false
	}
	to := strings.TrimRight(string(b[:n]), "/")
	return to, to != ""
}

// openParent opens the folder around a place below the root, made when missing, and says the last name.
func openParent(root int, path string, resolve uint64, links int) (dir int, name string, err error) {
	at := strings.LastIndexByte(path, '/')
	outer, name := path[:at], path[at+1:]
	if name == "" {
		return -1, "", syscall.EINVAL
	}
	if outer == "" {
		outer = "/"
	}
	dir, err = openBelow(root, outer, unix.O_DIRECTORY, resolve)
	if err == syscall.ENOENT {
		dir, err = openPlaceBy(root, outer, true, resolve, links)
	}
	return dir, name, err
}

// openBelow opens a path as if root were the root.
func openBelow(root int, path string, flags, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve}
	for {
		fd, err := unix.Openat2(root, path, &how)
		if err != syscall.EAGAIN { // something was renamed or mounted meanwhile
			return fd, err
		}
	}
}

// makeNode makes a device. What was there under that name goes, unless it is a folder.
func makeNode(root int, d *wire.Device) error {
	dir, name, err := openParent(root, d.Path, 0, maxLinks)
	if err != nil {
		return err
	}
	defer syscall.Close(dir)
	err = unix.Mknodat(dir, name, d.Mode, int(d.Dev))
	if err == syscall.EEXIST {
		var st unix.Stat_t
		if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&syscall.S_IFMT == d.Mode&syscall.S_IFMT && st.Rdev == d.Dev {
			return nil // it is there: of a folder of the host's, perhaps, and not ours to change
		}
		if err = unix.Unlinkat(dir, name, 0); err == nil {
			err = unix.Mknodat(dir, name, d.Mode, int(d.Dev))
		}
	}
	if err == nil {
		err = unix.Fchownat(dir, name, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW)
	}
	return err
}

// deviceLinks are what programs expect to find in /dev.
var deviceLinks = [...][2]string{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	{"core", "/proc/kcore"}, {"ptmx", "pts/ptmx"},
}

func linkDevices(root int) error {
	dev, err := openPlace(root, "/dev", true, 0)
	if err != nil {
		return fail("open /dev", err)
	}
	defer syscall.Close(dev)
	for _, l := range deviceLinks {
		switch l[0] {
		case "ptmx": // an image's own would be another terminal's
			_ = unix.Unlinkat(dev, l[0], 0)
		case "core":
			var st syscall.Stat_t
			if syscall.Stat(l[1], &st) != nil {
				continue // this kernel shows no memory
			}
		}
		if err := unix.Symlinkat(l[1], dev, l[0]); err != nil && err != syscall.EEXIST {
			return fail("link /dev/"+l[0], err)
		}
	}
	return nil
}

// pivot makes an open mount the root, and takes what was the root away from this process's sight.
func pivot(root int) error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(old)
	if err := syscall.Fchdir(root); err != nil {
		return err
	}
	// Onto itself: the old root is then mounted over the new one, and is taken away from there.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fail("pivot", err)
	}
	if err := syscall.Fchdir(old); err != nil {
		return err
	}
	// It has been a slave of the machine's mounts all along (before), so that this is seen here alone.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fail("leave the old root", err)
	}
	return syscall.Chdir("/")
}

// isNull says whether a file is the device that swallows everything.
func isNull(st *syscall.Stat_t) bool {
	return st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}

// openNull opens the container's own /dev/null, and nothing else under that name.
func openNull(flags int) (int, error) {
	fd, err := unix.Open("/dev/null", flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil || !isNull(&st) {
		_ = syscall.Close(fd)
		return -1, syscall.ENODEV
	}
	return fd, nil
}

// ownNull puts the container's /dev/null in the place of the machine's among the standard files: whoever has the
// machine's open can change its mode.
func ownNull() error {
	own, err := openNull(unix.O_RDWR)
	if err != nil {
		return err
	}
	defer syscall.Close(own)
	for fd := range 3 {
		var st syscall.Stat_t
		if err := syscall.Fstat(fd, &st); err == nil && isNull(&st) {
			if err := unix.Dup3(own, fd, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// fix keeps what is at path, if anything is, from being written.
func fix(path string) error {
	tree, err := openTree(path, true)
	if err == syscall.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer syscall.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return err
	}
	return moveMount(tree, unix.AT_FDCWD, path)
}

// hide puts an empty folder, or the container's /dev/null, over what is at the paths.
func hide(paths []string) error {
	null, err := openNull(unix.O_PATH)
	if err != nil {
		return fail("open the container's /dev/null", err)
	}
	_ = syscall.Close(null)
	empty := -1 // one folder for all
	for _, p := range paths {
		var st syscall.Stat_t
		fd, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == syscall.ENOENT || err == syscall.ENOTDIR {
			continue
		}
		if err == nil {
			if err = syscall.Fstat(fd, &st); err == nil {
				err = cover(fd, st.Mode&syscall.S_IFMT == syscall.S_IFDIR, &empty)
			}
			_ = syscall.Close(fd)
		}
		if err != nil {
			return fail("hide "+p, err)
		}
	}
	closeFD(&empty)
	return nil
}

// cover mounts something that holds nothing over what is open.
func cover(fd int, folder bool, empty *int) error {
	if !folder {
		null, err := openTree("/dev/null", false)
		if err != nil {
			return err
		}
		defer syscall.Close(null)
		var st syscall.Stat_t
		if err := syscall.Fstat(null, &st); err != nil || !isNull(&st) {
			return syscall.ENODEV
		}
		return moveMount(null, fd, "")
	}
	if *empty < 0 {
		var err error
		for _, files := range [...]string{"nr_inodes=1", "nr_inodes=2"} { // some kernels count the folder itself twice
			*empty, err = newFileSystem(&wire.Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"nr_blocks=1", files, "ro"}})
			if err == nil {
				break
			}
		}
		if err != nil {
			return err
		}
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(*empty, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return err
		}
		return moveMount(*empty, fd, "")
	}
	here := unix.AT_EMPTY_PATH | unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	none := [1]byte{}
	again, _, errno := syscall.Syscall(unix.SYS_OPEN_TREE, uintptr(*empty), uintptr(unsafe.Pointer(&none)), uintptr(here))
	if errno != 0 {
		return errno
	}
	defer syscall.Close(int(again))
	return moveMount(int(again), fd, "")
}

func closeFD(fd *int) {
	if *fd >= 0 {
		_ = syscall.Close(*fd)
		*fd = -1
	}
}

// makeFolder makes a working directory that an image lacks, and what lies above it.
func makeFolder(path string) error {
	for at := 1; at <= len(path); at++ {
		if at < len(path) && path[at] != '/' {
			continue
		}
		if err := syscall.Mkdir(path[:at], 0o755); err != nil && err != syscall.EEXIST {
			var st syscall.Stat_t
			if syscall.Stat(path[:at], &st) != nil {
				return err
			}
		}
	}
	return nil
}

// inside makes sure that the working directory lies below the root: a path may lead through a descriptor that is not
// the container's.
func inside() error {
	var b [syscall.PathMax]byte
	n, err := syscall.Getcwd(b[:])
	if err != nil {
		return err
	}
	if n < 1 || b[0] != '/' { // "(unreachable)", says the kernel
		return syscall.EXDEV
	}
	return nil
}

// giveStreams lets the container's user open its standard files again by their names in /dev.
func giveStreams(uid uint32) error {
	for fd := range 3 {
		var st syscall.Stat_t
		if err := syscall.Fstat(fd, &st); err != nil || st.Uid == uid || isNull(&st) {
			continue
		}
		if err := syscall.Fchown(fd, int(uid), -1); err != nil && err != syscall.EPERM && err != syscall.EROFS {
			return err
		}
	}
	return nil
}

// maxUsers bounds what is read of a list of users.
const maxUsers = 1 << 20

// home is the folder of a user in the container's own list, or the root.
func home(uid uint32) string {
	fd, err := unix.Open("/etc/passwd", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return "/"
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if syscall.Fstat(fd, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return "/"
	}
	list := make([]byte, 0, 4096)
	for len(list) < maxUsers {
		if len(list) == cap(list) {
			list = append(list, 0)[:len(list)]
		}
		n, err := syscall.Read(fd, list[len(list):cap(list)])
		if err == syscall.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			break
		}
		list = list[:len(list)+n]
	}
	want := itoa(int(uid))
	for line := range strings.SplitSeq(string(list), "\n") {
		f := strings.Split(line, ":")
		if len(f) > 5 && f[2] == want && f[5] != "" {
			return f[5]
		}
	}
	return "/"
}

// withHome is an environment with HOME.
func withHome(env []string, uid uint32) []string {
	out := make([]string, 0, len(env)+1)
	for _, kv := range env {
		if kv == "HOME=" {
			continue
		}
		if strings.HasPrefix(kv, "HOME=") {
			return env
		}
		out = append(out, kv)
	}
	return append(out, "HOME="+home(uid))
}
