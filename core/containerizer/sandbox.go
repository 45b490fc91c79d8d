package containerizer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// The sandbox of a root container lies in folders of the agent's. That of a nested one lies in its root's, where tasks
// may rename folders and put links in their places at any moment: it is only ever reached from the root's sandbox down,
// by calls that do not leave it.

// makeSandbox makes a container's sandbox, readable for the user alone, with the two files that take the output. Nothing
// in it is followed: a sandbox that exists may hold what an earlier container put there.
func (c *Containerizer) makeSandbox(spec *containerv1.Container, user launcher.User) error {
	outer, name, err := c.openOuter(spec)
	if err != nil {
		return err
	}
	if outer != nil {
		defer outer.Close()
		if err := outer.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := outer.Mkdir(name, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	} else {
		if err := os.MkdirAll(filepath.Dir(spec.GetSandbox()), 0o755); err != nil {
			return err
		}
		if err := os.Mkdir(spec.GetSandbox(), 0o750); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	dir, err := c.openSandboxDir(spec)
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, name := range []string{"stdout", "stderr"} {
		f, err := logFile(dir, name)
		if err != nil {
			return &os.PathError{Op: "create", Path: filepath.Join(spec.GetSandbox(), name), Err: err}
		}
		if c.cfg.SwitchUser {
			err = unix.Fchownat(f, "", int(user.UID), int(user.GID), unix.AT_EMPTY_PATH)
		}
		unix.Close(f)
		if err != nil {
			return &os.PathError{Op: "chown", Path: filepath.Join(spec.GetSandbox(), name), Err: err}
		}
	}
	if c.cfg.SwitchUser {
		return dir.Chown(int(user.UID), int(user.GID))
	}
	return nil
}

// logFile makes a file for output in a sandbox, unless it is there, and returns it. Of what is there, which in the sandbox
// of a nested container may be the parent's doing, nothing is opened: some devices do things when they are.
func logFile(dir *os.File, name string) (int, error) {
	f, err := unix.Openat(int(dir.Fd()), name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if !errors.Is(err, unix.EEXIST) {
		return f, err
	}
	if f, err = unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
		return -1, err
	}
	var info unix.Stat_t
	if err = unix.Fstat(f, &info); err == nil && info.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("there is something else of that name, want a file")
	}
	if err != nil {
		unix.Close(f)
		return -1, err
	}
	return f, nil
}

// openOuter opens the sandbox of the root container that a container is nested in, and says where in it the container's
// own is; nil when it is not in there.
func (c *Containerizer) openOuter(spec *containerv1.Container) (outer *os.Root, name string, err error) {
	if spec.GetParentId() == "" {
		return nil, "", nil
	}
	root, err := c.find(rootOf(spec.GetId()))
	if err != nil {
		return nil, "", err
	}
	root.mu.Lock()
	base := root.spec.GetSandbox()
	root.mu.Unlock()
	name, err = filepath.Rel(base, spec.GetSandbox())
	if err != nil || !filepath.IsLocal(name) || name == "." {
		return nil, "", nil
	}
	outer, err = os.OpenRoot(base)
	return outer, name, err
}

// openSandbox opens a container's sandbox for calls that do not leave it.
func (c *Containerizer) openSandbox(spec *containerv1.Container) (*os.Root, error) {
	outer, name, err := c.openOuter(spec)
	if err != nil {
		return nil, err
	}
	if outer == nil {
		return os.OpenRoot(spec.GetSandbox())
	}
	defer outer.Close()
	if info, err := outer.Lstat(name); err != nil || !info.IsDir() {
		return nil, errors.Join(fmt.Errorf("sandbox %s: want a folder", spec.GetSandbox()), err)
	}
	return outer.OpenRoot(name)
}

// openSandboxDir opens the folder itself, without following a link in its place.
func (c *Containerizer) openSandboxDir(spec *containerv1.Container) (*os.File, error) {
	outer, _, err := c.openOuter(spec)
	if err != nil {
		return nil, err
	}
	if outer == nil {
		return os.OpenFile(spec.GetSandbox(), unix.O_DIRECTORY|unix.O_NOFOLLOW|os.O_RDONLY, 0)
	}
	if err := outer.Close(); err != nil {
		return nil, err
	}
	root, err := c.openSandbox(spec)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.Open(".")
}

// logsOf are the files that take a container's output, for its launcher to open while dir, its sandbox, is open here.
func logsOf(dir *os.File) (stdout, stderr string) {
	at := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), dir.Fd())
	return at + "/stdout", at + "/stderr"
}
