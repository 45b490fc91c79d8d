package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// What `mosaic task exec` and `attach` do with the terminal they are typed at.

// defaultDetachKeys are those of other container tools.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseDetachKeys reads keys as "ctrl-p,ctrl-q" or "a,b": the bytes that a terminal sends for them. Nothing is none.
func parseDetachKeys(text string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	var keys []byte
	for key := range strings.SplitSeq(text, ",") {
		control, ok := strings.CutPrefix(key, "ctrl-")
		switch {
		case ok && len(control) == 1 && strings.Contains("abcdefghijklmnopqrstuvwxyz@[\\]^_", control):
			keys = append(keys, strings.ToUpper(control)[0]&0x1f)
		case len(key) == 1 && key[0] > ' ' && key[0] < 0x7f:
			keys = append(keys, key[0])
		default:
			return nil, fmt.Errorf("key %q: want one character, or ctrl- and one of a-z @ [ \\ ] ^ _", key)
		}
	}
	return keys, nil
}

// detacher looks for the detach keys in what is typed.
type detacher struct {
	keys []byte
	// hold keeps back what may be the beginning of the keys until it is known not to be, so that the process never
	// sees them. Without it nothing is late: the process sees all but the last key.
	hold bool
	seen []byte // the beginning of keys that was typed last
}

// feed takes what was typed and returns what the process is to get, and whether the keys were complete.
func (d *detacher) feed(typed []byte) (pass []byte, detached bool) {
	if len(d.keys) == 0 {
		return typed, false
	}
	for _, b := range typed {
		d.seen = append(d.seen, b)
		if bytes.Equal(d.seen, d.keys) {
			return pass, true
		}
		if !d.hold {
			pass = append(pass, b)
		}
		for !bytes.HasPrefix(d.keys, d.seen) {
			if d.hold {
				pass = append(pass, d.seen[0])
			}
			d.seen = d.seen[1:]
		}
	}
	return pass, false
}

// errStopped ends a polled read that was told to stop.
var errStopped = errors.New("stopped")

// polled reads a file until it is told to stop. A read of a terminal cannot be interrupted, and what it took in after
// the end would be missing to whoever reads the terminal next.
type polled struct {
	fd      int
	wake    *os.File // readable once stop was called
	stopped *os.File // its other end
}

func newPolled(f *os.File) (*polled, error) {
	wake, stopped, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	return &polled{fd: int(f.Fd()), wake: wake, stopped: stopped}, nil
}

// Read reads what is there, waiting for the first byte.
//
// Errors: io.EOF at the end, also of a terminal that was hung up; errStopped.
func (p *polled) Read(b []byte) (int, error) {
	wake := int(p.wake.Fd())
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return 0, fmt.Errorf("poll standard input: %w", err)
		}
		if fds[1].Revents != 0 {
			return 0, errStopped
		}
		n, err := unix.Read(p.fd, b)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.EIO): // a terminal that is no more
			return 0, io.EOF
		case err != nil:
			return 0, fmt.Errorf("read standard input: %w", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// stop ends the read under way and all others. Close is called when nobody reads any more.
func (p *polled) stop() { _ = p.stopped.Close() }

// Close gives back what the reader holds; the file stays open.
func (p *polled) Close() { _ = p.wake.Close() }

// terminalOf is the descriptor of the terminal that a stream is, or -1.
func terminalOf(stream any) int {
	f, ok := stream.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return -1
	}
	return int(f.Fd())
}

// windowSize is the size of the first of the streams that is a terminal; 0 if none is.
func windowSize(streams ...any) (rows, columns uint16) {
	for _, s := range streams {
		if fd := terminalOf(s); fd >= 0 {
			if w, h, err := term.GetSize(fd); err == nil && w > 0 && h > 0 && w < 1<<16 && h < 1<<16 {
				return uint16(h), uint16(w)
			}
		}
	}
	return 0, 0
}
