// Package kit is what the conformance kits of all kinds share: cases with names and levels, the two ways to run them
// (in `go test` and from `mosaic module test`), the module under test as a process or in the test's own process, and
// the cases that hold for every kind.
//
// It promises that a case never reaches past the module's contract: it speaks gRPC and, where the module is a process,
// looks at what everybody can see of a process. What a kind's calls must do is left to that kind's kit, such as
// sdk/isolator/isolatortest.
package kit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// Level is how much is tested; each includes those before it.
type Level int

const (
	// Core is what a host relies on at every launch.
	Core Level = iota + 1
	// Full adds repetition, wrong order, crashes, hostile input and numbers.
	Full
	// Stress adds long runs whose result is figures.
	Stress
)

// String gives the level as it is written on the command line.
func (l Level) String() string {
	switch l {
	case Core:
		return "core"
	case Full:
		return "full"
	case Stress:
		return "stress"
	}
	return fmt.Sprintf("level %d", int(l))
}

// ParseLevel reads a level's name.
func ParseLevel(s string) (Level, error) {
	for _, l := range []Level{Core, Full, Stress} {
		if l.String() == s {
			return l, nil
		}
	}
	return 0, fmt.Errorf("level: got %q, want core, full or stress", s)
}

// T is what a case reports to. Fatalf and Skipf end the case.
type T interface {
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Logf(format string, args ...any)
	Helper()
	Failed() bool
	// Cleanup calls f when the case has ended, last first.
	Cleanup(f func())
	// Context ends with the case.
	Context() context.Context
}

// Runner runs cases, also several at once.
type Runner interface {
	Run(name string, f func(T))
}

// Case is one sentence that a module must make true.
type Case struct {
	Level Level
	// Name is the sentence, such as CleanupOfUnknownContainerSucceeds.
	Name string
	// Why says what breaks for operators when it does not hold.
	Why string
	Do  func(t T)
	// Beside runs the case while the others run: it does little but wait.
	Beside bool
}

// caseTimeout is how long a case may take before everything it does is cancelled; the longest takes about 15 s on a
// busy machine.
const caseTimeout = 2 * time.Minute

// stressTimeout is the same for cases that run long on purpose.
const stressTimeout = 15 * time.Minute

// Run runs the cases up to a level, one after the other but for those that mostly wait.
func Run(r Runner, level Level, cases []Case) {
	var wg sync.WaitGroup
	for _, c := range cases {
		if c.Beside && c.Level <= level {
			wg.Go(func() { run(r, c) })
		}
	}
	for _, c := range cases {
		if !c.Beside && c.Level <= level {
			run(r, c)
		}
	}
	wg.Wait()
}

func run(r Runner, c Case) {
	r.Run(c.Name, func(t T) {
		t.Helper()
		limit := caseTimeout
		if c.Level == Stress {
			limit = stressTimeout
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		defer func() {
			if t.Failed() {
				t.Logf("it matters because %s", c.Why)
			}
		}()
		c.Do(&bounded{t, ctx})
	})
}

// bounded is a T whose context ends in time.
type bounded struct {
	T
	ctx context.Context
}

func (b *bounded) Context() context.Context { return b.ctx }

// unwrap gives the T below, for what only some have.
func (b *bounded) unwrap() T { return b.T }

// Measure reports a figure that is neither right nor wrong.
func Measure(t T, name string, value float64, unit string) {
	t.Helper()
	inner := t
	for {
		if m, ok := inner.(interface {
			Measure(name string, value float64, unit string)
		}); ok {
			m.Measure(name, value, unit)
			return
		}
		u, ok := inner.(interface{ unwrap() T })
		if !ok {
			t.Logf("%s: %.4g %s", name, value, unit)
			return
		}
		inner = u.unwrap()
	}
}

// Dial starts a fresh instance of the module and connects to it. stop ends it, first as a host does and after 5 s by
// force; exited says that force was not needed. What it returns may be a Process too, which some cases need.
type Dial func(ctx context.Context) (conn grpc.ClientConnInterface, stop func() (exited bool), err error)

// Process is a module that runs as a process of its own.
type Process interface {
	// Program is what runs.
	Program() Program
	// Pid is the module's first process.
	Pid() int
	// Kill ends it as SIGKILL does, and returns when it is dead.
	Kill()
	// HangUp is what the module sees when its host dies: its standard input ends.
	HangUp()
	// Ended is closed when it has ended.
	Ended() <-chan struct{}
	// Handshake is how long it took from the start to the handshake line.
	Handshake() time.Duration
	// Printed is what it wrote to standard output after that line, at most 4 KiB.
	Printed() string
	// Log is the end of what it wrote to standard error, at most 4 KiB.
	Log() string
	// Leftovers are the processes that it started and that still run, also those that left its session.
	Leftovers() []int
}

// ErrCannotRun says that the module cannot be run in the way that a case wants, through no fault of its own.
var ErrCannotRun = errors.New("cannot be run this way here")
