package modulehost

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

const (
	// firstBackoff and maxBackoff bound the pause before a module that does not come up is tried again.
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 30 * time.Second
	// steadyAfter is how long a module has to be up until its past is forgotten.
	steadyAfter = 60 * time.Second
	// freeRestarts is how many times in steadyAfter a module that had come up is restarted without a pause. A start
	// takes 10 ms, so this many cost nothing, and somebody who kills a module a few times in a row does not make
	// launches wait; a module that crashes with every call runs into the pauses after a moment.
	freeRestarts = 30
	// drainPatience is how long a module may finish its calls before it is stopped.
	drainPatience = 3 * time.Second
	// exitPatience is how long a drained module may take to end by itself.
	exitPatience = 500 * time.Millisecond
)

// State says how a module is.
type State string

// The states of a module.
const (
	StateStarting   State = "starting"   // its process is being started and told what it has to know
	StateUp         State = "up"         // takes calls
	StateDegraded   State = "degraded"   // takes calls and says that it works with less
	StateFailed     State = "failed"     // up, but says that it cannot work: launches that need it fail
	StateRecovering State = "recovering" // being told what lives
	StateDown       State = "down"       // will be started again
	StateStopped    State = "stopped"    // the host is closed, or the composition cannot be run
)

// module is one module of the composition through all its lives.
type module struct {
	host *Host
	cfg  ModuleConfig
	log  *slog.Logger
	pump *logPump
	cred *syscall.Credential
	// program is the file found for a module that the bundle does not hold; whoever starts the module alone uses it.
	program string
	owed    atomic.Int64

	first     chan error        // gets the outcome of the first start
	kicks     chan kick         // asks for a restart
	recovers  chan chan<- error // asks for another Recover
	stopped   chan struct{}     // closed when run has returned
	breaker   breaker
	keys      keyedLock
	approvers *approverCache // authorizers
	prepares  progressTable  // isolators: deadlines that progress can move

	mu       sync.Mutex // guards what follows
	state    State
	reason   string
	since    time.Time
	changed  chan struct{} // closed and replaced whenever life or state changes
	life     *life         // nil unless it takes calls
	attended *life         // the one whose process runs; nil between two
	pid      int           // of the running process, 0 without one
	digest   string
	desc     *modulev1.DescribeResponse // the last one known
	service  string                     // contract chosen
	// What the module found of the machine's resources, in any life; configured says that it was asked.
	found      []*mesosv1.Resource
	configured bool
	restarts   int
	health     *modulev1.Health
	heartbeat  time.Time
}

// kick asks the run loop to end the present life and begin another.
type kick struct {
	life   *life // the one that is to end; nil if there was none
	reason string
	drain  bool // let calls in flight finish
}

func newModule(h *Host, cfg ModuleConfig) (*module, error) {
	cred, err := lookupUser(cfg.User)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.id(), err)
	}
	log := h.log.With("module", cfg.id())
	m := &module{
		host: h, cfg: cfg, log: log, cred: cred,
		pump:      newLogPump(log, h.opts.LogDir, cfg.Kind+"-"+strings.ReplaceAll(cfg.Name, "_", "-")),
		first:     make(chan error, 1),
		kicks:     make(chan kick, 1),
		recovers:  make(chan chan<- error),
		stopped:   make(chan struct{}),
		approvers: newApproverCache(),
		state:     StateStarting,
		since:     time.Now(),
		changed:   make(chan struct{}),
	}
	h.metrics.add(m)
	return m, nil
}

// run keeps the module up until ctx ends: it starts it, attends it, and starts it again when it ended.
func (m *module) run(ctx context.Context) {
	defer close(m.stopped)
	defer m.set(StateStopped, "the host is closed", nil)
	var pause backoff
	for first := true; ; first = false {
		l, err := m.bringUp(ctx)
		if err != nil {
			m.set(StateDown, err.Error(), nil)
		} else {
			m.attends(l)
			m.set(StateUp, "", l)
		}
		if first {
			m.first <- err
		}
		var composition *CompositionError
		switch {
		case ctx.Err() != nil:
			if l != nil {
				m.end(l, true)
			}
			return
		case errors.As(err, &composition) && first:
			return // Start fails; there is nothing to try again
		case err != nil:
			m.log.Error("module does not come up", "error", err)
		default:
			m.log.Info("module is up", "pid", l.process.ID(), "version", l.desc.GetVersion(), "service", l.contract.service)
			k := m.attend(ctx, l)
			m.set(StateDown, k.reason, nil)
			m.end(l, k.drain)
			m.attends(nil)
			if ctx.Err() != nil {
				return
			}
			m.log.Warn("module is restarted", "reason", k.reason)
		}
		m.mu.Lock()
		m.restarts++
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-m.kicks: // somebody wants it now
		case <-time.After(pause.next(err == nil, time.Now())):
		}
		m.set(StateStarting, m.lastReason(), nil)
	}
}

// attend waits until the life must end and says why.
func (m *module) attend(ctx context.Context, l *life) kick {
	for {
		select {
		case <-ctx.Done():
			return kick{reason: "the host is closing", drain: true}
		case k := <-m.kicks:
			if k.life == l { // a wish that came for the life before is fulfilled
				return k
			}
		case <-l.lost:
			return kick{reason: l.obituary()}
		case done := <-m.recovers:
			m.set(StateRecovering, "is told what lives", nil)
			err := m.recover(ctx, l)
			done <- err
			if err != nil {
				return kick{reason: err.Error()}
			}
			m.set(StateUp, "", l)
		}
	}
}

// end stops the process of a life, gently if drain, and waits until everything of it is dead.
func (m *module) end(l *life, drain bool) {
	if drain && l.process.alive() {
		ctx, cancel := context.WithTimeout(context.Background(), drainPatience)
		go func() {
			select {
			case <-m.host.hurry:
				cancel()
			case <-ctx.Done():
			}
		}()
		l.drain(ctx)
		cancel()
	}
	l.close()
	m.mu.Lock()
	m.pid = 0
	m.mu.Unlock()
}

// attends says which life is to end when a restart is asked for, whether it takes calls at the moment or not.
func (m *module) attends(l *life) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attended = l
}

func (m *module) present() *life {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.attended
}

// kick asks for a restart; one that is asked for already stands for both, if it is of the same life.
func (m *module) kick(k kick) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case asked := <-m.kicks:
		if asked.life == k.life {
			k = asked
		}
	default:
	}
	m.kicks <- k // there is room: whoever sends has the lock
}

// restart ends the present life gently and waits for the next.
func (m *module) restart(ctx context.Context) error {
	before := m.present()
	m.kick(kick{life: before, reason: "restart asked for", drain: true})
	for {
		m.mu.Lock()
		now, changed, reason := m.life, m.changed, m.reason
		m.mu.Unlock()
		if now != nil && now != before {
			return nil
		}
		select {
		case <-changed:
		case <-m.stopped:
			return fmt.Errorf("%s: %s", m.cfg.id(), "the host is closed")
		case <-ctx.Done():
			return fmt.Errorf("%s: restart: %s: %w", m.cfg.id(), reason, ctx.Err())
		}
	}
}

// recoverAgain has a module that is up told once more what lives. One that is not is told when it comes up.
func (m *module) recoverAgain(ctx context.Context) error {
	for {
		m.mu.Lock()
		up, changed := m.life != nil, m.changed
		starting := m.state == StateStarting
		m.mu.Unlock()
		if !up && !starting {
			return nil
		}
		done := make(chan error, 1)
		select {
		case m.recovers <- done:
			select {
			case err := <-done:
				return err
			case <-ctx.Done():
				return fmt.Errorf("%s: Recover: %w", m.cfg.id(), ctx.Err())
			}
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s: Recover: %w", m.cfg.id(), ctx.Err())
		}
	}
}

// set changes the state and wakes those who wait for a life.
func (m *module) set(s State, reason string, l *life) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != s {
		m.since = time.Now()
	}
	m.state, m.reason, m.life = s, reason, l
	switch {
	case s == StateStarting || s == StateDown:
		m.health = nil
	case s == StateUp && m.health != nil:
		m.applyHealth(m.health) // told before it was up
		return
	}
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *module) lastReason() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reason
}

// acquire gives a life that takes calls, waiting for one until ctx ends.
func (m *module) acquire(ctx context.Context) (*life, error) {
	for {
		m.mu.Lock()
		l, changed, state, reason := m.life, m.changed, m.state, m.reason
		m.mu.Unlock()
		if l != nil {
			return l, nil
		}
		if state == StateStopped {
			return nil, status.Error(codes.Unavailable, "module is stopped: "+reason)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if reason == "" {
				return nil, status.Errorf(codes.Unavailable, "module is %s", state)
			}
			return nil, status.Errorf(codes.Unavailable, "module is %s: %s", state, reason)
		}
	}
}

// current gives the life that takes calls; nil if there is none right now.
func (m *module) current() *life {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.life
}

// description gives what the module said of itself last; nil if it never came up and nothing is cached.
func (m *module) description() *modulev1.DescribeResponse {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.desc
}

// backoff gives the pauses between the lives of one module.
type backoff struct {
	last     time.Duration
	restarts []time.Time // without a pause, within steadyAfter
	lastAt   time.Time
}

// next gives the pause before the next start. wasUp says that the life that ended had come up.
func (b *backoff) next(wasUp bool, now time.Time) time.Duration {
	if !b.lastAt.IsZero() && wasUp && now.Sub(b.lastAt) > steadyAfter {
		*b = backoff{}
	}
	b.lastAt = now
	fresh := b.restarts[:0]
	for _, t := range b.restarts {
		if now.Sub(t) < steadyAfter {
			fresh = append(fresh, t)
		}
	}
	b.restarts = fresh
	free := freeRestarts
	if !wasUp {
		free = 1
	}
	if len(b.restarts) < free {
		b.restarts = append(b.restarts, now)
		b.last = 0
		return 0
	}
	b.last = min(max(2*b.last, firstBackoff), maxBackoff)
	// A fifth either way, so that the modules of many agents that lost the same thing do not come back at once.
	return time.Duration(float64(b.last) * (0.8 + 0.4*rand.Float64()))
}

// A breaker counts what goes wrong inside a module: missed deadlines, answers that are no answers.
type breaker struct {
	mu     sync.Mutex // guards misses
	misses []time.Time
}

const (
	// breakerMisses within breakerWindow restart the module: one slow call is not a dead module, five are.
	breakerMisses = 5
	breakerWindow = 30 * time.Second
)

// miss counts one and says whether that is enough. The count then begins anew, so that it is one restart.
func (b *breaker) miss(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	recent := b.misses[:0]
	for _, t := range b.misses {
		if now.Sub(t) < breakerWindow {
			recent = append(recent, t)
		}
	}
	b.misses = append(recent, now)
	if len(b.misses) < breakerMisses {
		return false
	}
	b.misses = nil
	return true
}

// keyedLock lets one call at a time through for each key.
type keyedLock struct {
	mu   sync.Mutex // guards held
	held map[string]chan struct{}
}

// lock waits for the key until ctx ends and returns what gives it back.
func (k *keyedLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		held, taken := k.held[key]
		if !taken {
			if k.held == nil {
				k.held = make(map[string]chan struct{})
			}
			mine := make(chan struct{})
			k.held[key] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, key)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, status.Error(codes.Aborted, "another call for this container is still at work")
		}
	}
}
