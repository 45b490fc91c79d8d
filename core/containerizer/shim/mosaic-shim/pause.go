package main

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// `mosaic-shim pause` is the first process of the container around those of a task group. It holds open what they share
// and does nothing until it is killed.

// pauses tells whether the command line says so, and nobody waits for a shim at the other end of the descriptor. It is
// read from /proc: package os, which knows it, would cost each shim memory.
func pauses() bool {
	if inherited(wire.ConnFD) {
		return false
	}
	fd, err := syscall.Open("/proc/self/cmdline", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	const word = "\x00pause\x00"
	b := make([]byte, 4096)
	n, err := syscall.Read(fd, b)
	return err == nil && n >= len(word) && string(b[n-len(word):n]) == word
}

// pause never returns. Where it is the first process of a pid namespace, processes whose parents died come to it, and
// leave nothing behind, since it says that it does not want to hear of them.
func pause() {
	action := struct {
		handler, flags, restorer, mask uintptr
	}{handler: 1} // SIG_IGN
	_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(syscall.SIGCHLD), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	for {
		_, _ = unix.Ppoll(nil, nil, nil) // until a signal that is not the end
	}
}
