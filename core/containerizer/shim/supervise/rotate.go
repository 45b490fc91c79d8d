package supervise

import (
	"bytes"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// A log is how the file of an output is rotated. Whoever owns the folder may put anything in the way; then the file
// grows on until it is full again.
type log struct {
	size uint64 // at which it is rotated; 0: never
	keep uint32
	dir  int    // that the file is in, -1 when it is not rotated
	name string // in there
	has  uint64 // bytes in the file
	mid  bool   // its last byte does not end a line
}

// maxKeep bounds how many names are changed at once.
const maxKeep = 1000

// open takes up the file behind fd, whose path is name, if it is a regular one.
func (l *log) open(fd int, name string, r wire.Rotation) error {
	var info syscall.Stat_t
	if r.Size == 0 || syscall.Fstat(fd, &info) != nil || info.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return nil
	}
	slash := len(name) - 1
	for slash >= 0 && name[slash] != '/' {
		slash--
	}
	var err error
	if l.dir, err = syscall.Open(name[:slash+1], syscall.O_DIRECTORY|syscall.O_CLOEXEC|unix.O_PATH, 0); err != nil {
		l.dir = -1
		return err
	}
	l.size, l.keep, l.name, l.has = r.Size, min(r.Keep, maxKeep), name[slash+1:], uint64(info.Size)
	return nil
}

// full says whether the file is to be rotated before b is written: when not even its first line has room.
func (l *log) full(b []byte) bool {
	return l.has > 0 && l.cut(b) == 0
}

// piece is how much of b goes into the file as it is.
func (l *log) piece(b []byte) int {
	if l.size == 0 {
		return len(b)
	}
	if n := l.cut(b); n > 0 {
		return n
	}
	return min(len(b), int(l.size)) // a line longer than a file
}

// cut is how much of b has room in the file: all of it, or up to the end of a line. The rest of a line that was begun
// goes where its beginning is, unless that makes the file twice as large as it may be.
func (l *log) cut(b []byte) int {
	room := int64(l.size) - int64(l.has)
	if int64(len(b)) <= room {
		return len(b)
	}
	if room > 0 {
		if n := bytes.LastIndexByte(b[:room], '\n') + 1; n > 0 {
			return n
		}
	}
	if !l.mid {
		return 0
	}
	n := bytes.IndexByte(b, '\n') + 1
	if n == 0 {
		n = len(b)
	}
	if int64(n) <= room+int64(l.size) {
		return n
	}
	return 0
}

func (l *log) wrote(b []byte) {
	l.has += uint64(len(b))
	if len(b) > 0 {
		l.mid = b[len(b)-1] != '\n'
	}
}

// rotate renames the file and those before it, drops the oldest, and begins a new one.
func (o *output) rotate(c *container) {
	l := &o.log
	l.has = 0 // whatever comes of it: it is tried again when as much has been written
	numbered := func(n uint32) string { return l.name + "." + itoa(uint64(n)) }
	from := l.keep
	for from > 0 && unix.Faccessat(l.dir, numbered(from), unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) != nil {
		from-- // nothing there: nothing to be moved so far
	}
	for n := min(from, l.keep-min(l.keep, 1)); n > 0; n-- {
		if err := unix.Renameat(l.dir, numbered(n), l.dir, numbered(n+1)); err != nil && err != unix.ENOENT {
			return
		}
	}
	var err error
	if l.keep > 0 {
		err = unix.Renameat(l.dir, l.name, l.dir, numbered(1))
	} else {
		err = unix.Unlinkat(l.dir, l.name, 0)
	}
	if err != nil && err != unix.ENOENT {
		return
	}
	fd, err := unix.Openat(l.dir, l.name, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return // it goes on in the renamed one
	}
	if syscall.Geteuid() == 0 {
		_ = syscall.Fchown(fd, int(c.spec.LogUID), int(c.spec.LogGID))
	}
	closeFD(&o.file)
	o.file, l.mid = fd, false
}

// forBoth opens the writing end of a pipe anew for both directions. A process that holds it so is not killed by what it
// writes when its shim is; it is held up, once the pipe is full.
func forBoth(fd int) int {
	both, err := syscall.Open("/proc/self/fd/"+itoa(uint64(fd)), syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fd
	}
	_ = syscall.Close(fd)
	return both
}
