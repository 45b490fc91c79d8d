package containerizer

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// How a container of type DOCKER begins and how it is asked to end: by an init if it wants one, and by the signal that
// it or its image names.

// initPlace is where a container sees the init that it asks for: in /dev, which is its own and of memory, so that its
// root file system keeps no trace of it.
const initPlace = "/dev/init"

// begin puts the init that the container asks for before its command.
func (w *dockerWish) begin(program string, p *containerv1.Proposal) error {
	if !w.init {
		return nil
	}
	if program == "" {
		return errors.New("parameter init: this agent has no program for it")
	}
	if slices.ContainsFunc(p.GetMounts(), func(m *containerv1.Mount) bool { return m.GetDestination() == initPlace }) {
		return errors.New("parameter init: " + initPlace + " is its place, and something is mounted there")
	}
	p.Arguments = append([]string{initPlace}, p.Arguments...)
	p.Mounts = append(p.Mounts, &containerv1.Mount{
		Destination: initPlace, Source: program, Type: "bind", Options: []string{"bind", "ro", "nosuid", "nodev"},
	})
	return nil
}

// stopSignal is what asks a container to end that was sent sig: its own signal where sig is the usual one.
func (ct *container) stopSignal(sig syscall.Signal) syscall.Signal {
	ct.mu.Lock()
	name := ct.spec.GetImageConfig().GetStopSignal()
	ct.mu.Unlock()
	if sig != syscall.SIGTERM || name == "" {
		return sig
	}
	if own, ok := signalNamed(name); ok {
		return own
	}
	return sig // an image's, which nobody here can change
}

// The signals of real time, as the C libraries of Linux count them.
const (
	realTimeMin = 34
	realTimeMax = 64
)

// signalNamed is a signal by its number, or by its name with or without SIG: SIGQUIT, quit, 3, SIGRTMIN+3.
func signalNamed(text string) (syscall.Signal, bool) {
	if n, err := strconv.Atoi(text); err == nil {
		return syscall.Signal(n), n > 0 && n <= realTimeMax
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	for _, x := range []struct {
		prefix     string
		base, sign int
	}{{"RTMIN", realTimeMin, 1}, {"RTMAX", realTimeMax, -1}} {
		rest, ok := strings.CutPrefix(name, x.prefix)
		if !ok {
			continue
		}
		by := 0
		if rest != "" {
			n, err := strconv.Atoi(rest) // with its sign
			if err != nil || n*x.sign < 0 || rest[0] != "+-"[(1-x.sign)/2] {
				return 0, false
			}
			by = n
		}
		n := x.base + by
		return syscall.Signal(n), n >= realTimeMin && n <= realTimeMax
	}
	n := unix.SignalNum("SIG" + name)
	return n, n > 0
}
