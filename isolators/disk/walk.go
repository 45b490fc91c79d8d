package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	// deepest is how far down folders are walked into; each level holds a descriptor. What a task hides further down
	// cannot be measured, and that is an error.
	deepest = 500
	// maxLinks bounds how many files with several names are remembered. Beyond it they count once for each name.
	maxLinks = 1 << 20
	// batch is how many names of a folder are read at a time, and how often a walk looks whether it shall end.
	batch = 256
	// blockSize is the unit in which the kernel tells what a file takes.
	blockSize = 512
)

// errTooDeep is returned for folders that are nested too deep to be measured.
var errTooDeep = fmt.Errorf("folders are nested more than %d deep", deepest)

// walker adds up what files take on one mount.
type walker struct {
	ctx   context.Context
	dev   uint64
	mount uint64
	used  uint64
	seen  map[uint64]bool // inodes of files with several names

	do   func(f *os.File, st *unix.Statx_t) error // if not nil, for each file and folder
	last bool                                     // for a folder after what is in it, not before
}

// measure adds up what a folder and all below it take on the disk, in bytes, as du(1) does. It follows no links, enters
// no other mounts, and ends when ctx does. Files that come and go meanwhile may or may not be counted.
func measure(ctx context.Context, dir string) (uint64, error) {
	w := &walker{ctx: ctx, seen: map[uint64]bool{}}
	err := w.walk(dir)
	return w.used, err
}

func (w *walker) walk(dir string) error {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Statx_t
	if err := look(f, "", &st); err != nil {
		return err
	}
	w.dev, w.mount = device(&st), st.Mnt_id
	return w.folder(f, &st, 0)
}

// look asks for what counts of a file in a folder, or of the folder itself without a name.
func look(dir *os.File, name string, st *unix.Statx_t) error {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	err := unix.Statx(int(dir.Fd()), name, flags, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_NLINK|unix.STATX_BLOCKS|unix.STATX_MNT_ID, st)
	if err != nil {
		return &os.PathError{Op: "statx", Path: dir.Name() + "/" + name, Err: err}
	}
	return nil
}

func device(st *unix.Statx_t) uint64 { return unix.Mkdev(st.Dev_major, st.Dev_minor) }

// ours says whether a file is on the mount that is measured.
func (w *walker) ours(st *unix.Statx_t) bool { return device(st) == w.dev && st.Mnt_id == w.mount }

// folder adds up an open folder.
func (w *walker) folder(f *os.File, st *unix.Statx_t, depth int) error {
	w.used += st.Blocks * blockSize
	if w.do != nil && !w.last {
		if err := w.do(f, st); err != nil {
			return err
		}
	}
	if err := w.inside(f, depth); err != nil || w.do == nil || !w.last {
		return err
	}
	return w.do(f, st)
}

// inside adds up what is in a folder.
func (w *walker) inside(f *os.File, depth int) error {
	for {
		if w.ctx.Err() != nil {
			return w.ctx.Err()
		}
		names, err := f.Readdirnames(batch)
		for _, name := range names {
			if err := w.entry(f, name, depth); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT):
			return nil // the latter if the folder itself was removed
		case err != nil:
			return err
		}
	}
}

func (w *walker) entry(dir *os.File, name string, depth int) error {
	var st unix.Statx_t
	err := look(dir, name, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return err
	case !w.ours(&st):
		return nil
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR || kind == unix.S_IFREG && w.do != nil {
		return w.open(dir, name, depth)
	}
	w.count(&st)
	return nil
}

func (w *walker) count(st *unix.Statx_t) {
	if st.Nlink > 1 {
		if w.seen[st.Ino] {
			return
		}
		if len(w.seen) < maxLinks {
			w.seen[st.Ino] = true
		}
	}
	w.used += st.Blocks * blockSize
}

// open opens a file or folder and looks at it again: another may have its name by now.
func (w *walker) open(dir *os.File, name string, depth int) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO):
		return nil
	case err != nil:
		return &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Statx_t
	if err := look(f, "", &st); err != nil {
		return err
	}
	switch {
	case !w.ours(&st):
		return nil
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		w.count(&st)
		if w.do != nil {
			return w.do(f, &st)
		}
		return nil
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil
	case depth == deepest:
		return errTooDeep
	}
	return w.folder(f, &st, depth+1)
}

// humbly runs f on a thread of the operating system that has the lowest priority for processors and disks, and ends
// with f. Never on the process's first, which cannot end.
func humbly(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			humbly(f) // elsewhere, since this one is taken
			runtime.UnlockOSThread()
			return
		}
		const (
			lowest    = 19
			whoThread = 1       // IOPRIO_WHO_PROCESS, which is a thread
			idle      = 3 << 13 // IOPRIO_CLASS_IDLE
		)
		// Without success it is measured all the same.
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), lowest)
		_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoThread, uintptr(unix.Gettid()), idle)
		f() // and never unlocked
	}()
	<-done
}
