package provisioner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	continuity "github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

// nonblock keeps an open from waiting for the other end of a pipe.
const nonblock = unix.O_NONBLOCK

// readOnlyMount keeps everybody from writing.
const readOnlyMount = unix.MS_RDONLY

// maxMountData is what mount(2) takes as options: a page.
const maxMountData = 4095

// mountOverlay mounts the container's own layer over lower, topmost first, at dir/rootfs.
func mountOverlay(dir string, lower []string, flags uintptr) error {
	upper, work, rootfs := filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "rootfs")
	for _, d := range []string{upper, work, rootfs} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	// The root of the mount has the mode and owner of the upper layer's.
	info, err := os.Stat(lower[0])
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	if err := os.Chown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := os.Chmod(upper, info.Mode()); err != nil {
		return err
	}
	below := make([]string, len(lower))
	for n, l := range lower {
		below[n] = escape(l, true)
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(below, ":"), escape(upper, false), escape(work, false))
	if len(data) > maxMountData {
		return mountLong(rootfs, lower, upper, work, flags)
	}
	if err := unix.Mount("overlay", rootfs, "overlay", flags, data); err != nil {
		return &os.PathError{Op: "mount overlay", Path: rootfs, Err: err}
	}
	return nil
}

// mountLong mounts what is too long for mount(2), one layer after the other. Linux 6.8 can.
func mountLong(rootfs string, lower []string, upper, work string, flags uintptr) error {
	fail := func(step string, err error) error {
		return &os.PathError{Op: fmt.Sprintf("mount overlay of %d layers: %s", len(lower), step), Path: rootfs, Err: err}
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail("fsopen", err)
	}
	defer unix.Close(fs)
	for _, l := range lower {
		if err := unix.FsconfigSetString(fs, "lowerdir+", l); err != nil {
			return fail("add "+l, err)
		}
	}
	if err := unix.FsconfigSetString(fs, "upperdir", upper); err != nil {
		return fail("add "+upper, err)
	}
	if err := unix.FsconfigSetString(fs, "workdir", work); err != nil {
		return fail("add "+work, err)
	}
	if flags&unix.MS_RDONLY != 0 {
		if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
			return fail("make it read-only", err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fail("create", err)
	}
	attr := 0
	if flags&unix.MS_RDONLY != 0 {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return fail("fsmount", err)
	}
	defer unix.Close(m)
	if err := unix.MoveMount(m, "", unix.AT_FDCWD, rootfs, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail("move_mount", err)
	}
	return nil
}

// escape protects what overlayfs would take for the end of a path: commas end an option, colons a lower layer.
func escape(path string, layer bool) string {
	r := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	if layer {
		r = strings.NewReplacer(`\`, `\\`, `,`, `\,`, `:`, `\:`)
	}
	return r.Replace(path)
}

// probeOverlay tries a mount.
func probeOverlay(tmp string) error {
	dir, err := os.MkdirTemp(tmp, "probe-")
	if err != nil {
		return err
	}
	lower := filepath.Join(dir, "lower")
	err = os.Mkdir(lower, 0o755)
	if err == nil {
		if err = mountOverlay(dir, []string{lower}, 0); err == nil {
			err = unmount(filepath.Join(dir, "rootfs"))
		}
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// unmount takes away every mount at path; none is fine. One that is busy is detached: it goes with its last user.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL), errors.Is(err, fs.ErrNotExist): // not a mount, or nothing at all
			return nil
		case errors.Is(err, unix.EPERM) && os.Geteuid() != 0: // and so it cannot have been ours
			return nil
		default:
			return &os.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
}

// copyTree copies lower with owners, modes, links and attributes.
func copyTree(ctx context.Context, to, lower string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	return continuity.CopyDir(to, lower)
}

// syncTree writes everything of the file system that holds path to disk.
func syncTree(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return &os.PathError{Op: "sync", Path: path, Err: err}
	}
	return nil
}

// stampOf tells one state of a file from another.
func stampOf(info os.FileInfo) string {
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf(" %d %d %d %d.%d %d.%d", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
}

// diskUsed is the share of a file system that is in use, as far as ordinary users may use it.
func diskUsed(dir string) (float64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	used := st.Blocks - st.Bfree
	if used+st.Bavail == 0 {
		return 0, nil
	}
	return float64(used) / float64(used+st.Bavail), nil
}
