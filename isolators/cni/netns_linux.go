package cni

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// threadNetns is the network namespace of the calling thread.
const threadNetns = "/proc/thread-self/ns/net"

// makeNetns makes a network namespace whose loopback is up and mounts it on path, so that it lives without a process.
// One that is there already is kept.
func makeNetns(path string) error {
	if isNetns(path) {
		return nil
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o400)
	if err != nil {
		return err
	}
	file.Close()
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		if err := raiseLoopback(); err != nil {
			return fmt.Errorf("loopback: %w", err)
		}
		if err := unix.Mount(threadNetns, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount network namespace on %s: %w", path, err)
		}
		return nil
	})
}

// inNetns calls f on a thread that is in the namespace mounted on path.
func inNetns(path string, f func() error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return onThread(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread calls f on a thread of its own, which may change its network namespace. The thread comes back to the one it
// was in, or ends.
func onThread(f func() error) error {
	done := make(chan struct{})
	err := errors.New("the thread's work was given up")
	go func() {
		defer close(done)
		runtime.LockOSThread() // a goroutine that ends locked takes its thread with it
		home, failed := unix.Open(threadNetns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if failed != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("own network namespace: %w", failed)
			return
		}
		defer unix.Close(home)
		err = f()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	return err
}

// raiseLoopback sets the interface lo of this thread's namespace up.
func raiseLoopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, request); err != nil {
		return err
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, request)
}

// isNetns says whether a namespace is mounted on path, and not merely a file: what is left after the machine's restart.
func isNetns(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// dropNetns lets go of the namespace mounted on path. Its interfaces go when nobody else is in it.
func dropNetns(path string) error {
	for isNetns(path) { // mounted twice where two had made it at the same time
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount network namespace %s: %w", path, err)
		}
	}
	return nil
}
