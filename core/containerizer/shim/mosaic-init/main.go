// Command mosaic-init is the first process of a container that asks for an init: `mosaic-init COMMAND [ARGUMENT...]`
// starts the command, buries what it leaves behind, and passes signals on to it.
//
// It promises that the command finds streams, terminal and signals as it would without an init, and that it ends as the
// command does: with its exit code, or with 128 and the number of the signal that ended it. What is left in the container
// is ended by the kernel then. It is seen by the container, so it is no program that runs outside of containers.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit codes as of shells: for commands that are not there and that cannot be executed; and for what is wrong here.
const (
	exitMissing       = 127
	exitNotExecutable = 126
	exitUsage         = 64
)

func main() { os.Exit(run(os.Args[1:])) }

func run(argv []string) int {
	if len(argv) == 0 {
		fmt.Fprintln(os.Stderr, "mosaic-init: a command is missing: mosaic-init COMMAND [ARGUMENT...]")
		return exitUsage
	}
	// Before anything is started whose end could be missed.
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	if os.Getpid() != 1 { // in a pid namespace of others orphans would go to them
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	child, err := start(argv)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mosaic-init:", err)
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return exitMissing
		}
		return exitNotExecutable
	}
	for s := range signals {
		switch s {
		case syscall.SIGCHLD:
			if code, ended := bury(child); ended {
				return code
			}
		case syscall.SIGURG: // this program's own, from its runtime
		default:
			_ = syscall.Kill(child, s.(syscall.Signal))
		}
	}
	panic("unreachable: nobody closes the signals")
}

// start starts the command in a process group of its own: what is sent to that of the first process would come to it
// twice. At a terminal that group is the one in front, which keys interrupt.
func start(argv []string) (pid int, err error) {
	program, err := exec.LookPath(argv[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return 0, err
	}
	pid, err = syscall.ForkExec(program, argv, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return 0, &fs.PathError{Op: "execute", Path: program, Err: err}
	}
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		// Done here rather than by the child, which would have to ignore a signal for it that the command is not to
		// ignore. A command that read before it was in front has been stopped.
		if unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, pid) == nil {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
	return pid, nil
}

// bury takes all children that have ended, and says whether the command is among them, with the code to end with.
func bury(command int) (code int, ended bool) {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil || pid == 0:
			return code, ended
		case pid == command && ws.Signaled():
			code, ended = 128+int(ws.Signal()), true
		case pid == command:
			code, ended = ws.ExitStatus(), true
		}
	}
}
