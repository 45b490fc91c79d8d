package containerizer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Folders that a container is to see, and whose paths others could bend until the launcher mounts them, are mounted
// beforehand at a place that is the agent's alone: a folder of another container's sandbox, in which that container
// may put links as it likes, and what only another mount namespace shows. The places are below RunDir/v, one folder
// for each container; they go with the container. No other folder of RunDir is touched: in RunDir/m are modules' sockets.

func (c *Containerizer) stagedDir(id string) string {
	return filepath.Join(c.cfg.RunDir, "v", shortName(id))
}

// stage mounts tree, a descriptor of open_tree(2), for a container and returns where. A tree is a folder or one file.
func (c *Containerizer) stage(id, name string, tree int, folder bool) (string, error) {
	place := filepath.Join(c.stagedDir(id), name)
	if err := os.MkdirAll(filepath.Dir(place), 0o700); err != nil {
		return "", err
	}
	if folder {
		if err := os.Mkdir(place, 0o700); err != nil {
			return "", err
		}
	} else if err := os.WriteFile(place, nil, 0o600); err != nil {
		return "", err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", &os.PathError{Op: "move_mount", Path: place, Err: err}
	}
	// The copy of a shared mount is shared with it: taking the copy away would take away what is mounted below the
	// original.
	if err := unix.Mount("", place, "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", &os.PathError{Op: "make private", Path: place, Err: err}
	}
	return place, nil
}

// unstage takes away what was staged for a container; nil when there is nothing. What is below the places is never
// touched.
func (c *Containerizer) unstage(id string) error { return unstageAll(c.stagedDir(id)) }

func unstageAll(dir string) error {
	places, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take away mounts: %w", err)
	}
	for _, p := range places {
		place := filepath.Join(dir, p.Name())
		// Not mounted (EINVAL): the last agent died in between, or the machine was started anew.
		if err := unix.Unmount(place, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("take away mounts: %w", &os.PathError{Op: "umount", Path: place, Err: err})
		}
		if err := os.Remove(place); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("take away mounts: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("take away mounts: %w", err)
	}
	return nil
}

// unstageStrangers takes away what was staged for containers that are not there any more.
func (c *Containerizer) unstageStrangers() {
	root := filepath.Join(c.cfg.RunDir, "v")
	dirs, err := os.ReadDir(root)
	if err != nil {
		return // none was ever made
	}
	known := map[string]bool{}
	for _, ct := range c.all() {
		known[shortName(ct.id)] = true
	}
	for _, d := range dirs {
		if known[d.Name()] {
			continue
		}
		if err := unstageAll(filepath.Join(root, d.Name())); err != nil {
			c.log.Warn("mounts of a container that is gone stay", "error", err)
		}
	}
}

const treeFlags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE

// treeAt copies what is mounted at, and below, an open folder or file. The caller closes the descriptor.
func treeAt(f *os.File) (int, error) {
	tree, err := unix.OpenTree(int(f.Fd()), "", treeFlags|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: f.Name(), Err: err}
	}
	return tree, nil
}

// treeOf copies the mounts at and below path as process pid sees it. The caller closes the descriptor.
func treeOf(pid int, path string) (tree int, err error) {
	view, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return -1, err
	}
	defer view.Close()
	onOwnThread(func() {
		tree = -1
		// A thread that shares its root with others may not enter a mount namespace.
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			err = os.NewSyscallError("unshare", err)
			return
		}
		if err = unix.Setns(int(view.Fd()), unix.CLONE_NEWNS); err != nil {
			err = os.NewSyscallError("setns", err)
			return
		}
		if tree, err = unix.OpenTree(unix.AT_FDCWD, path, treeFlags|unix.AT_SYMLINK_NOFOLLOW); err != nil {
			tree, err = -1, &os.PathError{Op: "open_tree", Path: path, Err: err}
		}
	})
	return tree, err
}

// onOwnThread runs f on a thread of the operating system that ends with it, so that what f does to its thread meets
// nobody else. Never on the process's first, whose /proc/self others read, and which cannot end.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			onOwnThread(f) // elsewhere, since this one is taken
			runtime.UnlockOSThread()
			return
		}
		f() // and never unlocked
	}()
	<-done
}
