package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Quotas is what a file system offers that counts by project: a number that a folder hands on to all that is made in it.
// The kernel's is for XFS mounted with prjquota; tests have one of their own.
type Quotas interface {
	// Supported says what a folder's file system lacks; nil if nothing.
	Supported(dir string) error
	// Project is a folder's project; 0 is none.
	Project(dir string) (uint32, error)
	// Assign gives a folder and all below it to a project.
	Assign(ctx context.Context, dir string, project uint32) error
	// Limit sets how many bytes a project may use on the file system of dir; 0 is no limit.
	Limit(dir string, project uint32, most uint64) error
	// Used is how many bytes a project uses on the file system of dir.
	Used(dir string, project uint32) (uint64, error)
}

// kernelQuotas are those of XFS.
// Source: quotactl(2), and include/uapi/linux/dqblk_xfs.h and fs.h of Linux.
type kernelQuotas struct{}

const (
	projectQuota = 2 // PRJQUOTA

	xGetQuota  = 'X'<<8 + 3 // Q_XGETQUOTA
	xSetLimit  = 'X'<<8 + 4 // Q_XSETQLIM
	xGetStatus = 'X'<<8 + 5 // Q_XGETQSTAT

	projectsCounted  = 1 << 4 // FS_QUOTA_PDQ_ACCT
	projectsEnforced = 1 << 5 // FS_QUOTA_PDQ_ENFD

	setSoft = 1 << 2 // FS_DQ_BSOFT
	setHard = 1 << 3 // FS_DQ_BHARD

	getAttributes = 0x801c581f // FS_IOC_FSGETXATTR
	setAttributes = 0x401c5820 // FS_IOC_FSSETXATTR
	handOn        = 0x200      // FS_XFLAG_PROJINHERIT
)

// diskQuota is struct fs_disk_quota. Amounts are in blocks of 512 bytes.
type diskQuota struct {
	Version, Flags                         int8
	Fields                                 uint16
	ID                                     uint32
	Hard, Soft, InodeHard, InodeSoft       uint64
	Blocks, Inodes                         uint64
	InodeTimer, BlockTimer                 int32
	InodeWarnings, BlockWarnings           uint16
	_                                      int32
	RealtimeHard, RealtimeSoft, RealtimeIn uint64
	RealtimeTimer                          int32
	RealtimeWarnings                       uint16
	_                                      int16
	_                                      [8]byte
}

// attributes is struct fsxattr.
type attributes struct {
	Flags, ExtentSize, Extents, Project, CowExtentSize uint32
	_                                                  [8]byte
}

// quotactl asks the file system of dir, which need not exist itself.
func quotactl(dir string, command int, id uint32, data unsafe.Pointer) error {
	f, err := openNearest(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	full := uintptr(command<<8 | projectQuota)
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.Fd(), full, uintptr(id), uintptr(data), 0, 0)
	if errno != unix.ENOSYS {
		return os.NewSyscallError("quotactl_fd", value(errno))
	}
	// Before Linux 5.14 the device must be named.
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		found := unix.Mkdev(uint32(m.Major), uint32(m.Minor)) == st.Dev
		return !found, found
	})
	if err != nil || len(mounts) == 0 {
		return errors.Join(fmt.Errorf("find the device of %s", dir), err)
	}
	device, err := unix.BytePtrFromString(mounts[0].Source)
	if err != nil {
		return err
	}
	_, _, errno = unix.Syscall6(unix.SYS_QUOTACTL, full, uintptr(unsafe.Pointer(device)), uintptr(id), uintptr(data), 0, 0)
	return os.NewSyscallError("quotactl", value(errno))
}

func value(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// openNearest opens a folder or the nearest above it that exists.
func openNearest(dir string) (*os.File, error) {
	for {
		f, err := os.OpenFile(dir, unix.O_DIRECTORY, 0)
		if err == nil || !errors.Is(err, os.ErrNotExist) || dir == filepath.Dir(dir) {
			return f, err
		}
		dir = filepath.Dir(dir)
	}
}

// Supported implements Quotas.
func (kernelQuotas) Supported(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if fs.Type != unix.XFS_SUPER_MAGIC {
		return fmt.Errorf("%s is not on XFS", dir)
	}
	var status [128]byte // struct fs_quota_stat, which is shorter
	err := quotactl(dir, xGetStatus, 0, unsafe.Pointer(&status))
	// An XFS without any quota has none of the calls, and one may also be mounted with other quotas only.
	if err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("ask XFS for its quotas: %w", err)
	}
	if flags := binary.NativeEndian.Uint16(status[2:]); err != nil || flags&projectsCounted == 0 || flags&projectsEnforced == 0 {
		return fmt.Errorf("the XFS of %s is not mounted with prjquota", dir)
	}
	return nil
}

// Project implements Quotas.
func (kernelQuotas) Project(dir string) (uint32, error) {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	a, err := attributesOf(f)
	return a.Project, err
}

func attributesOf(f *os.File) (a attributes, err error) {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), getAttributes, uintptr(unsafe.Pointer(&a)))
	return a, os.NewSyscallError("FS_IOC_FSGETXATTR", value(errno))
}

// Assign implements Quotas. Files that cannot be opened (links, devices, pipes) stay with the project that they have:
// they take no blocks. A folder gets its project before what is in it, so that new files have it too, and loses it
// after that, so that who comes again sees that something is left to do.
func (kernelQuotas) Assign(ctx context.Context, dir string, project uint32) error {
	w := &walker{ctx: ctx, seen: map[uint64]bool{}, last: project == 0}
	w.do = func(f *os.File, st *unix.Statx_t) error {
		a, err := attributesOf(f)
		if err != nil {
			return err
		}
		next := a
		next.Project = project
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			next.Flags &^= handOn
			if project != 0 {
				next.Flags |= handOn
			}
		}
		if next == a {
			return nil
		}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), setAttributes, uintptr(unsafe.Pointer(&next)))
		return os.NewSyscallError("FS_IOC_FSSETXATTR", value(errno))
	}
	return w.walk(dir)
}

// Limit implements Quotas.
func (kernelQuotas) Limit(dir string, project uint32, most uint64) error {
	blocks := (most + blockSize - 1) / blockSize
	q := diskQuota{Version: 1, Flags: projectQuota, Fields: setSoft | setHard, ID: project, Hard: blocks, Soft: blocks}
	return quotactl(dir, xSetLimit, project, unsafe.Pointer(&q))
}

// Used implements Quotas.
func (kernelQuotas) Used(dir string, project uint32) (uint64, error) {
	var q diskQuota
	err := quotactl(dir, xGetQuota, project, unsafe.Pointer(&q))
	if errors.Is(err, unix.ENOENT) {
		return 0, nil // nothing was ever counted
	}
	return q.Blocks * blockSize, err
}
