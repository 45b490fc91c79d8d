package modulehost

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// executable is one module's file, opened once. Everything said of it afterwards, its digest and what is executed, is
// of this descriptor and not of the path, so that nobody can change the file in between.
type executable struct {
	file   *os.File
	path   string
	digest string // "sha256:" and 64 hex digits
	script bool   // begins with #!, so that its interpreter has to read it again
}

// errChecksum says that the file is not the one that the composition pins.
var errChecksum = errors.New("checksum differs")

// errUntrusted says that somebody else could change the file.
var errUntrusted = errors.New("file is not safe to run")

// digestKey names one content of one file as far as the kernel can tell without reading it.
type digestKey struct {
	dev, ino   uint64
	size       int64
	mtim, ctim unix.Timespec
}

// digests remembers what files were hashed, so that a restart does not read the file again and so that all modules of
// the bundle, being one file, are hashed once.
type digests struct {
	mu    sync.Mutex // guards known; held while hashing, so that one file is read once
	known map[digestKey]string
}

// maxDigests bounds the cache; an agent has tens of modules, and an entry is gone with the next upgrade.
const maxDigests = 1024

// open opens path for execution, refuses it when others could change it, and compares its digest with want, which may
// be empty. The caller closes the file.
//
// Errors: fs.ErrNotExist and its like, errUntrusted, errChecksum.
func (d *digests) open(path, want string) (*executable, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("command %q: want an absolute path", path)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open module: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	file := os.NewFile(uintptr(fd), path)
	exe, err := d.inspect(file, path, want)
	if err != nil {
		file.Close()
		return nil, err
	}
	return exe, nil
}

func (d *digests) inspect(file *os.File, path, want string) (*executable, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if st.Mode&0o111 == 0 {
		return nil, fmt.Errorf("%s is not executable", path)
	}
	if err := trusted(path, &st); err != nil {
		return nil, err
	}
	// The folder is judged where the file really lies, behind symbolic links.
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil {
		return nil, fmt.Errorf("find %s behind its links: %w", path, err)
	}
	folder := filepath.Dir(real)
	var dir unix.Stat_t
	if err := unix.Stat(folder, &dir); err != nil {
		return nil, fmt.Errorf("stat %s: %w", folder, err)
	}
	if err := trusted(folder, &dir); err != nil {
		return nil, err
	}

	key := digestKey{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtim: st.Mtim, ctim: st.Ctim}
	digest, err := d.of(key, file)
	if err != nil {
		return nil, fmt.Errorf("hash %s: %w", path, err)
	}
	if want != "" && digest != strings.ToLower(want) {
		return nil, fmt.Errorf("%w: %s is %s, want %s", errChecksum, path, digest, want)
	}
	var magic [2]byte
	n, _ := file.ReadAt(magic[:], 0)
	return &executable{file: file, path: path, digest: digest, script: n == 2 && string(magic[:]) == "#!"}, nil
}

func (d *digests) of(key digestKey, file *os.File) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if digest, ok := d.known[key]; ok {
		return digest, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(file, 0, key.size)); err != nil {
		return "", err
	}
	digest := "sha256:" + hex.EncodeToString(h.Sum(nil))
	if d.known == nil || len(d.known) >= maxDigests {
		d.known = make(map[digestKey]string)
	}
	d.known[key] = digest
	return digest, nil
}

// trusted refuses what somebody other than root and ourselves could write to.
func trusted(path string, st *unix.Stat_t) error {
	euid, egid := uint32(os.Geteuid()), uint32(os.Getegid())
	switch {
	case st.Uid != 0 && st.Uid != euid:
		return fmt.Errorf("%w: %s belongs to uid %d; chown it to root", errUntrusted, path, st.Uid)
	case st.Mode&0o002 != 0:
		return fmt.Errorf("%w: %s is writable by everybody; chmod o-w it", errUntrusted, path)
	case st.Mode&0o020 != 0 && st.Gid != 0 && st.Gid != egid:
		return fmt.Errorf("%w: %s is writable by group %d; chmod g-w it", errUntrusted, path, st.Gid)
	}
	return nil
}
