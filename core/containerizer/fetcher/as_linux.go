package fetcher

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nonblock keeps an open from waiting for the other end of a pipe.
const nonblock = unix.O_NONBLOCK

// as runs f with the rights of a user at files, and only there: the kernel's file system identity belongs to the
// thread, so f must do its file work itself, not in goroutines. With a nil user f runs as the agent.
//
// The thread is given back as it was, or not at all: a goroutine that ends on a locked thread takes it along.
func as(user *User, f func() error) error {
	if user == nil || os.Geteuid() != 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() { // ends with f; as waits for it
		runtime.LockOSThread()
		groups, err := unix.Getgroups()
		if err == nil {
			err = become(user.UID, user.GID, user.Groups)
		}
		if err != nil {
			done <- fmt.Errorf("act as user %d: %w", user.UID, err)
			return // still locked: the thread ends
		}
		err = f()
		back := make([]uint32, len(groups))
		for n, g := range groups {
			back[n] = uint32(g)
		}
		if become(0, 0, back) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// become sets the identity of this thread alone. syscall.Setgroups and its like would change all threads.
func become(uid, gid uint32, groups []uint32) error {
	if uid != 0 { // groups while we still may
		if err := setgroups(groups); err != nil {
			return err
		}
	}
	if err := setfs(unix.SYS_SETFSGID, gid); err != nil {
		return err
	}
	if err := setfs(unix.SYS_SETFSUID, uid); err != nil {
		return err
	}
	if uid == 0 {
		return setgroups(groups)
	}
	return nil
}

// setfs makes one of the two calls that tell no error but the value before: asked a second time, with one that is
// never valid, they tell what holds.
func setfs(call uintptr, id uint32) error {
	_, _, _ = unix.RawSyscall(call, uintptr(id), 0, 0)
	if now, _, _ := unix.RawSyscall(call, uintptr(^uint32(0)), 0, 0); uint32(now) != id {
		return fmt.Errorf("set file system id %d: got %d", id, uint32(now))
	}
	return nil
}

func setgroups(groups []uint32) error {
	var first unsafe.Pointer
	if len(groups) > 0 {
		first = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0); errno != 0 {
		return fmt.Errorf("set groups: %w", errno)
	}
	return nil
}
