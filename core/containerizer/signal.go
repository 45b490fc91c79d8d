package containerizer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
)

// Signal sends sig to the process group of the container's first process.
//
// The kernel keeps from the first process of a pid namespace every signal that it does not handle, so that a command
// without such a handler could not be asked to end there. What the signal does to any other process is done to it
// then: it ends, and its status says by which signal.
func (c *Containerizer) Signal(ctx context.Context, id string, sig int) error {
	ct, err := c.find(id)
	if err != nil {
		return err
	}
	h := ct.running()
	if h == nil {
		return fmt.Errorf("signal container %s: %w", id, ErrNotRunning)
	}
	ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	kept := isKept(int32(h.Pid()), sig)
	err = h.Signal(ctx, syscall.Signal(sig))
	if err == nil && kept {
		ct.mu.Lock()
		ct.fatal = sig
		ct.mu.Unlock()
		if err = h.Signal(ctx, syscall.SIGKILL); errors.Is(err, launcher.ErrEnded) {
			err = nil // by the first
		}
	}
	if err != nil {
		return fmt.Errorf("signal container %s: %w", id, err)
	}
	return nil
}

// endedBy is the wait status of a container's first process, in which a kill that stands for another signal is that.
func (ct *container) endedBy(waitStatus int) int {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	if w := syscall.WaitStatus(waitStatus); ct.fatal != 0 && w.Signaled() && w.Signal() == syscall.SIGKILL {
		return ct.fatal
	}
	return waitStatus
}

// isKept says whether the kernel would keep from a process a signal that ends any other: the process is the first of a
// pid namespace below ours and neither handles, ignores nor blocks it. False when nobody can say.
func isKept(pid int32, sig int) bool {
	if sig < 1 || sig > 64 || !ends(syscall.Signal(sig)) {
		return false
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	defer f.Close()
	first, masks := false, 0
	bit := uint64(1) << (sig - 1)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		switch name {
		case "NSpid": // ours, and those of the namespaces below, down to its own
			ids := strings.Fields(value)
			first = len(ids) > 1 && ids[len(ids)-1] == "1"
		case "SigBlk", "SigIgn", "SigCgt":
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil || mask&bit != 0 {
				return false
			}
			masks++
		}
	}
	return first && masks == 3
}

// ends says whether a signal ends a process that does nothing about it. SIGKILL is not among them: nothing keeps it.
//
// Source: signal(7).
func ends(sig syscall.Signal) bool {
	switch sig {
	case syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGCHLD, syscall.SIGCONT, syscall.SIGURG, syscall.SIGWINCH,
		syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU:
		return false
	}
	return true
}
