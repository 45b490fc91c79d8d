// Command mosaic-shim supervises one container. It is started by the agent and by itself, never by
// hand: the first frame on descriptor 3 says whether it is to be a shim or the stage before a
// container's command. See the packages supervise and stage. `mosaic-shim pause` is a container's
// command that does nothing (pause.go).
package main

import (
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/stage"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/supervise"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

func main() {
	// Namespaces, credentials and children's namespaces belong to a thread.
	runtime.LockOSThread()
	syscall.Exit(run())
}

func run() int {
	if pauses() {
		pause()
	}
	runtime := inherited(wire.RuntimeFD)
	// Whatever else the starter had open is no business of a shim, and less of a container.
	_ = unix.CloseRange(wire.RuntimeFD+1, ^uint(0), 0)
	for fd := wire.ConnFD; fd <= wire.RuntimeFD; fd++ {
		syscall.CloseOnExec(fd)
	}
	kind, id, payload, ok := firstFrame(wire.ConnFD)
	if !ok {
		const usage = "mosaic-shim: is started by the mosaic agent, not by hand\n"
		_, _ = syscall.Write(2, []byte(usage))
		return 64
	}
	switch kind {
	case wire.KindCreate:
		spec, err := wire.ParseSpec(payload)
		if err != nil {
			return 65
		}
		return supervise.Run(wire.ConnFD, id, spec, runtime)
	case wire.KindStage:
		st, err := wire.ParseStage(payload)
		if err != nil {
			_, _ = syscall.Write(wire.ConnFD, []byte("stage: "+err.Error()))
			return 65
		}
		return stage.Run(wire.ConnFD, st)
	}
	return 64
}

// inherited says whether a descriptor was handed to this program: those that its own runtime opens are closed on exec.
func inherited(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil && flags&unix.FD_CLOEXEC == 0
}

// firstFrame reads one frame from a blocking socket.
func firstFrame(fd int) (kind uint8, id uint32, payload []byte, ok bool) {
	var h [wire.HeaderSize]byte
	if !readFull(fd, h[:]) {
		return 0, 0, nil, false
	}
	n, kind, id, err := wire.Header(h[:])
	if err != nil {
		return 0, 0, nil, false
	}
	payload = make([]byte, n)
	return kind, id, payload, readFull(fd, payload)
}

func readFull(fd int, b []byte) bool {
	for len(b) > 0 {
		n, err := syscall.Read(fd, b)
		if err == syscall.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			return false
		}
		b = b[n:]
	}
	return true
}
