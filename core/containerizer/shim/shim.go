// Package shim is the agent's side of a container's shim: making the sealed copy that shims run
// from, starting one, and talking to it, now or after a restart of the agent.
//
// A Client promises that every call ends with its context, and that a lost shim is reported as
// ErrLost by every call, once and for all. What a lost shim means for the container is decided by
// the launcher. The shim itself is the package supervise, the messages are in wire, and the command
// that runs both is mosaic-shim, which links nothing of this package.
package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A Binary is a program that is started often. Where the kernel allows it is a sealed copy in
// memory: replacing the file on disk does not mix versions, and no container that gets hold of the
// descriptor can change it.
type Binary struct {
	path   string
	memory *os.File // nil when the file itself is used
}

// maxBinary bounds what is copied to memory; the largest OCI runtimes have some 60 MiB.
const maxBinary = 256 << 20

// Open makes a sealed copy of the program at path, which is looked up along PATH when it has no
// slash. A script, whose interpreter could not read a copy, and any program where the kernel refuses
// to execute copies, is used from the file itself. Close it when no more processes are to be started
// from it; those running keep theirs.
func Open(path string) (*Binary, error) {
	path, err := exec.LookPath(path)
	if err != nil {
		return nil, fmt.Errorf("open program: %w", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("open program: %w", err)
	}
	b := &Binary{path: path}
	memory, err := seal(path)
	if err != nil {
		return nil, fmt.Errorf("copy program %s: %w", path, err)
	}
	b.memory = memory
	return b, nil
}

// seal copies path to sealed memory. The file is nil when it could not be executed from there.
func seal(path string) (*os.File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	var magic [2]byte
	if _, err := src.ReadAt(magic[:], 0); err != nil {
		return nil, err
	}
	if string(magic[:]) == "#!" {
		return nil, nil
	}
	fd, err := unix.MemfdCreate(filepath.Base(path), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(filepath.Base(path), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, nil // ENOSYS, or EACCES with vm.memfd_noexec
	}
	memory := os.NewFile(uintptr(fd), "memfd:"+filepath.Base(path))
	n, err := io.Copy(memory, io.LimitReader(src, maxBinary+1))
	if err == nil && n > maxBinary {
		err = fmt.Errorf("got more than %d bytes", maxBinary)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		_ = memory.Close()
		return nil, err
	}
	return memory, nil
}

// Path is where the program is on disk.
func (b *Binary) Path() string { return b.path }

// Sealed says whether processes run from a sealed copy.
func (b *Binary) Sealed() bool { return b.memory != nil }

// exec is the path by which a child of this process executes the program.
func (b *Binary) exec() string {
	if b.memory == nil {
		return b.path
	}
	return fmt.Sprintf("/proc/self/fd/%d", b.memory.Fd())
}

// Close gives up the copy.
func (b *Binary) Close() error {
	if b.memory == nil {
		return nil
	}
	return b.memory.Close()
}
