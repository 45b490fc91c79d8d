package volumes

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/sdk/module"
)

// view is a container's files as it sees them itself: through its first process, which is held.
type view struct {
	root  *os.File // its root
	space *os.File // its mount namespace
	list  string   // file with its mounts
}

// openView opens the view of a process, which must have mounts of its own: in ours nothing may be mounted for anybody.
func openView(pid int32) (*view, error) {
	if pid <= 0 {
		return nil, errors.New("it has no process")
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	space, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return nil, err
	}
	its, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", space.Fd()))
	if err == nil && its == own {
		err = errors.New("it has no mount namespace of its own")
	}
	if err != nil {
		return nil, errors.Join(err, space.Close())
	}
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, errors.Join(err, space.Close())
	}
	return &view{root: root, space: space, list: fmt.Sprintf("/proc/%d/mountinfo", pid)}, nil
}

func (v *view) Close() error { return errors.Join(v.root.Close(), v.space.Close()) }

// open opens a path of the container. Links in it lead where they lead in the container, never out of it.
func (v *view) open(p string, flags int) (*os.File, error) {
	fd, err := unix.Openat2(int(v.root.Fd()), p, &unix.OpenHow{
		Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: p, Err: err}
	}
	return os.NewFile(uintptr(fd), p), nil
}

// check says whether at a volume's place lies what was looked at in Prepare.
func (v *view) check(want seen) error {
	f, err := v.open(want.At, unix.O_PATH)
	if err != nil {
		return module.FailedPrecondition("volume at %s: it is not there after it was mounted: %v", want.At, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return module.FailedPrecondition("volume at %s: %v", want.At, err)
	}
	if st.Dev != want.Dev || st.Ino != want.Ino {
		return module.FailedPrecondition("volume at %s: what was mounted is not what was asked for; somebody exchanged it meanwhile", want.At)
	}
	if want.Peers == "" {
		return nil
	}
	// Launchers differ in whether they can do this, and none says so.
	id, err := mountOf(int(f.Fd()), "")
	if err != nil {
		return module.FailedPrecondition("volume at %s: %v", want.At, err)
	}
	if peers, _, err := sharing(v.list, id); err != nil || peers != want.Peers {
		return module.FailedPrecondition("volume at %s: what is mounted in it would not show on this machine, although that was asked for (BIDIRECTIONAL)", want.At)
	}
	return nil
}

// hand mounts a file with data at a place of the container, where a file must be. What it was handed before is left.
func (v *view) hand(at string, data []byte, name string) error {
	target, err := v.open(at, unix.O_PATH)
	if err != nil {
		return err
	}
	defer target.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(target.Fd()), &fs); err != nil {
		return os.NewSyscallError("statfs", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(target.Fd()), &st); err != nil {
		return os.NewSyscallError("stat", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR: // the place that Prepare proposed
	case unix.S_IFREG:
		if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
			return nil // a call before did it
		}
		fallthrough
	default:
		return errors.New("its place was not kept free")
	}
	uid, mode := v.owner(name)
	return onOwnThread(func() error {
		tree, err := fileInMemory(data, uid, mode)
		if err != nil {
			return err
		}
		defer unix.Close(tree)
		if err := unix.Setns(int(v.space.Fd()), unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return os.NewSyscallError("move_mount", unix.MoveMount(tree, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
	})
}

// maxPasswd bounds what is read of a container's list of users.
const maxPasswd = 1 << 20

// owner is the number of the container's user, and with which mode a secret is for that user alone. A name that the
// container's list of users does not have leaves the secret to whoever is in the container: nobody else gets there.
func (v *view) owner(name string) (uid int, mode uint32) {
	if name == "" {
		return 0, 0o400
	}
	list := io.Reader(strings.NewReader(""))
	if f, err := v.open("/etc/passwd", unix.O_RDONLY|unix.O_NONBLOCK); err == nil {
		defer f.Close()
		list = io.LimitReader(f, maxPasswd)
	}
	who, err := user.GetExecUser(name, nil, list, nil)
	if err != nil {
		return 0, 0o444
	}
	return who.Uid, 0o400
}

// fileInMemory returns a mount of a file that is read-only, never swapped, and in no mount namespace yet. It takes the
// calling thread into a mount namespace of its own.
func fileInMemory(data []byte, uid int, mode uint32) (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return -1, os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, os.NewSyscallError("make mounts private", err)
	}
	const where = "/dev" // any folder: what it hides is hidden from this thread alone
	size := fmt.Sprintf("size=%d,mode=0700", max(2*len(data), 64<<10))
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	err := unix.Mount("mosaic-secret", where, "tmpfs", flags, size+",noswap")
	if errors.Is(err, unix.EINVAL) { // a kernel before 6.3 may swap tmpfs, but never ramfs
		err = unix.Mount("mosaic-secret", where, "ramfs", flags, "mode=0700")
	}
	if err != nil {
		return -1, os.NewSyscallError("mount", err)
	}
	file := filepath.Join(where, "secret")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return -1, err
	}
	if err := os.Chown(file, uid, 0); err != nil {
		return -1, err
	}
	if err := os.Chmod(file, os.FileMode(mode)); err != nil {
		return -1, err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, file, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("open_tree", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		_ = unix.Close(tree)
		return -1, os.NewSyscallError("mount_setattr", err)
	}
	return tree, nil
}

// onOwnThread runs f on a thread of the operating system that ends with it, so that what f does to its thread meets
// nobody else. Never on the process's first, which cannot end.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			done <- onOwnThread(f) // elsewhere, since this one is taken
			runtime.UnlockOSThread()
			return
		}
		done <- f() // and never unlocked
	}()
	return <-done
}
