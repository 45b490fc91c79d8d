package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// errDetached is returned by converse when the detach keys were typed.
var errDetached = errors.New("detached")

const (
	// exitStatusTimeout bounds the wait for how a process ended whose output has ended.
	exitStatusTimeout = 10 * time.Second
	// inputGrace is how long the output may go on after the agent refused input. One that ends was too short for any.
	inputGrace = time.Second
	// redrawDelay is between the two sizes that have a program draw again. The agent must get both.
	redrawDelay = 100 * time.Millisecond
)

// conversation connects a session in a container with the streams of this process.
type conversation struct {
	in       io.Reader // nil: the process is sent nothing
	out, err io.Writer
	// terminal says that the process has a terminal: ours, if it is one, is raw meanwhile, so that every key reaches
	// the process and is echoed by it alone.
	terminal bool
	detach   detacher
	// redraw has the process draw its screen again, for who comes later: programs do when the window changes.
	redraw bool
	// kill sends the process a signal that came to us; nil: a signal ends the conversation only.
	kill func(ctx context.Context, signal int) error
}

// converse copies until the output has ended and returns the wait(2) status of the process. When it returns the session
// is closed, the terminal is as it was, and nothing more is read from the input.
//
// Errors: errDetached; *exitError with 128 plus its number for a signal that was not the process's to handle.
func (c *conversation) converse(ctx context.Context, s *operator.Session) (status int, err error) {
	var g sync.WaitGroup
	var input *polled
	var before *term.State
	signals := make(chan os.Signal, 8)
	// Who gets SIGPIPE told is not killed by it, and can put the terminal right.
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGWINCH)
	defer func() {
		if input != nil {
			input.stop()
		}
		_ = s.Close() // ends the copying, in both directions
		if before != nil {
			err = errors.Join(err, restored(terminalOf(c.in), before))
		}
		signal.Stop(signals) // should our own output be stuck, the next signal is the last
		g.Wait()
		if input != nil {
			input.Close()
		}
	}()
	raw := c.terminal && c.in != nil && terminalOf(c.in) >= 0
	if raw {
		if before, err = term.MakeRaw(terminalOf(c.in)); err != nil {
			return 0, fmt.Errorf("make the terminal raw: %w", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type exit struct {
		status int
		err    error
	}
	exited := make(chan exit, 1)
	g.Go(func() { // from the beginning: an agent forgets containers soon
		status, err := s.Wait(ctx)
		exited <- exit{status, err}
	})
	printed := make(chan error, 2)
	g.Go(func() { printed <- copied(c.out, s.Stdout) })
	g.Go(func() { printed <- copied(c.err, s.Stderr) })
	printing := 2
	typed := make(chan error, 1)
	if c.in != nil {
		in := c.in
		if f, ok := in.(*os.File); ok {
			if input, err = newPolled(f); err != nil {
				return 0, err
			}
			in = input
		}
		g.Go(func() { typed <- c.feed(in, s.Stdin) })
	} else if s.Stdin != nil && !c.terminal {
		// No input is the end of input. A terminal has none: ^D would be a key that nobody typed.
		g.Go(func() { _ = s.Stdin.Close() })
	}
	c.resize(s, 0)
	var settle, giveUp, late <-chan time.Time
	if c.redraw {
		c.resize(s, 1)
		settle = time.After(redrawDelay)
	}
	var end *exit
	var refused error              // of input
	passed := false                // a signal was passed on
	handled := make(chan error, 1) // and that ended
	for {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case err := <-printed:
			if errors.Is(err, syscall.EPIPE) { // who reads us has seen enough, and that is no news to anybody
				return 0, &exitError{code: 128 + int(syscall.SIGPIPE)}
			}
			if err != nil {
				return 0, err
			}
			if printing--; printing > 0 {
				continue
			}
			if end != nil {
				return end.status, end.err
			}
			giveUp, late = nil, time.After(exitStatusTimeout)
		case <-late:
			return 0, fmt.Errorf("the output has ended, but the agent did not say within %s how the process did", exitStatusTimeout)
		case e := <-exited:
			if printing == 0 {
				return e.status, e.err
			}
			end, giveUp = &e, nil // its last words are still to come
		case err := <-typed:
			if errors.Is(err, errDetached) {
				return 0, err
			}
			if err != nil {
				refused, giveUp = err, time.After(inputGrace)
			}
		case <-giveUp:
			return 0, fmt.Errorf("send input: %w", refused)
		case err := <-handled:
			if err != nil {
				return 0, err
			}
		case <-settle:
			c.resize(s, 0)
		case sig := <-signals:
			switch n := int(sig.(syscall.Signal)); sig {
			case syscall.SIGWINCH:
				c.resize(s, 0)
			case syscall.SIGPIPE: // the write says so too
			case syscall.SIGINT, syscall.SIGTERM:
				if raw || passed || c.kill == nil {
					return 0, &exitError{code: 128 + n}
				}
				passed = true
				g.Go(func() { handled <- c.kill(ctx, n) })
			default:
				return 0, &exitError{code: 128 + n}
			}
		}
	}
}

// restored puts a terminal back.
func restored(fd int, before *term.State) error {
	if err := term.Restore(fd, before); err != nil && !errors.Is(err, syscall.EIO) { // hung up meanwhile
		return fmt.Errorf("restore the terminal (type 'reset'): %w", err)
	}
	return nil
}

// copied copies output to its end.
func copied(to io.Writer, from io.Reader) error {
	_, err := io.Copy(to, from)
	return err
}

// feed copies what is typed, to the end of the input.
//
// Errors: errDetached; *operator.StatusError when the agent refuses the input. That the process does not read any more
// is none: its output tells how it ended.
func (c *conversation) feed(in io.Reader, out io.WriteCloser) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := in.Read(buf)
		pass, detached := c.detach.feed(buf[:n])
		if len(pass) > 0 {
			if _, err := out.Write(pass); err != nil {
				var refused *operator.StatusError
				if errors.As(err, &refused) {
					return err
				}
				return nil //nolint:nilerr // see above
			}
		}
		switch {
		case detached:
			return errDetached
		case errors.Is(err, errStopped):
			return nil
		case errors.Is(err, io.EOF):
			_ = out.Close() // as above
			return nil
		case err != nil:
			return err
		}
	}
}

// resize tells the process the size of our window, if both have a terminal, and that it has some rows more.
func (c *conversation) resize(s *operator.Session, more uint16) {
	if rows, columns := windowSize(c.out, c.in); c.terminal && rows > 0 {
		_ = s.Resize(rows+more, columns) // an input that has ended has no terminal to size; its output goes on
	}
}

// exitCode is what a shell would say of a wait(2) status.
func exitCode(status int) int {
	w := syscall.WaitStatus(status)
	if w.Signaled() {
		return 128 + int(w.Signal())
	}
	return w.ExitStatus()
}
