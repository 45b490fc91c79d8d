package modulehost

import (
	"context"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// deadline gives the time that a call may take where the composition says nothing else.
//
// Source: the module contract, section 1.1.
func deadline(call string) time.Duration {
	switch call {
	case "prepare":
		return 15 * time.Second
	case "isolate", "validate":
		return 5 * time.Second
	case "update":
		return 10 * time.Second
	case "usage", "status":
		return 2 * time.Second
	case "cleanup":
		return 60 * time.Second
	case "recover":
		return 30 * time.Second
	case "resolve", "logger":
		return 10 * time.Second
	default:
		// Authorizers, authenticators and hooks stand in the way of a request.
		return 2 * time.Second
	}
}

// timeout gives the deadline of a call: the operator's, or else def.
func (m *module) timeout(call string, def time.Duration) time.Duration {
	if d, ok := m.cfg.Timeouts[call]; ok && d > 0 {
		return d
	}
	return def
}

// A request is one call to a module.
type request struct {
	name      string // of the call, as the contract writes it: Prepare
	container string // at most one call is in flight for it; empty for calls that are of no container
	operation string // operation id, by which progress can move the deadline
}

// attempts is how often one call is sent when the module dies under it: a second time, to the next life, since every
// call may be repeated with its operation id. Not more: a call that kills the module must not kill it again and again.
const attempts = 2

// call carries one call to a module: it waits for the module and for the call before, sends it with its deadline,
// has check look at the answer, and gives every error the module's name. It holds no lock while the module works but
// the one of its container.
func call[C, A any](ctx context.Context, m *module, r request, send func(context.Context, C) (A, error), check func(*life, A) error) (A, error) {
	began := time.Now()
	answer, err := callOnce(ctx, m, r, send, check)
	m.host.metrics.observe(m, r.name, status.Code(err), time.Since(began))
	if err != nil {
		var none A
		return none, m.name(r.name, err)
	}
	return answer, nil
}

func callOnce[C, A any](ctx context.Context, m *module, r request, send func(context.Context, C) (A, error), check func(*life, A) error) (A, error) {
	var none A
	limit := m.timeout(strings.ToLower(r.name), deadline(strings.ToLower(r.name)))
	var soft context.Context
	var end func()
	if r.operation == "" {
		soft, end = context.WithTimeout(ctx, limit)
	} else {
		// Progress may move the deadline: the module is told the last possible one, and we hold the nearer ourselves.
		soft, end = m.prepares.begin(ctx, r.operation, limit)
	}
	defer end()
	if r.container != "" {
		unlock, err := m.keys.lock(soft, r.container)
		if err != nil {
			return none, err
		}
		defer unlock()
	}
	for try := 1; ; try++ {
		l, err := m.acquire(soft)
		if err != nil {
			return none, err
		}
		answer, err := send(soft, l.calls.(C))
		if err == nil {
			if err := check(l, answer); err != nil {
				m.missed()
				return none, status.Error(codes.Internal, "answer is not valid: "+err.Error())
			}
			return answer, nil
		}
		switch {
		case ctx.Err() != nil:
			// The caller went away; the module is not to blame.
			return none, status.FromContextError(ctx.Err()).Err()
		case soft.Err() != nil:
			m.missed()
			return none, status.Errorf(codes.DeadlineExceeded, "no answer within %s", limit)
		case l.isLost() && try < attempts:
			m.leave(l)
			continue
		case l.isLost():
			m.leave(l)
			return none, status.Error(codes.Unavailable, "module died during the call: "+l.obituary())
		}
		err = meaning(err)
		switch status.Code(err) {
		case codes.Internal, codes.Unknown, codes.DataLoss, codes.Unimplemented:
			m.missed()
		}
		return none, err
	}
}

// leave takes a lost life from those who would call it, a moment before the run loop does.
func (m *module) leave(l *life) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life == l {
		m.life = nil
	}
}

// missed counts what is the module's own fault, and restarts it when that was enough.
func (m *module) missed() {
	if m.breaker.miss(time.Now()) {
		m.host.metrics.tripped(m)
		m.kick(kick{life: m.present(), reason: "too many calls missed their deadline or had no valid answer"})
	}
}

// meaning gives an error of the transport the code that it has for the caller.
func meaning(err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return status.Error(codes.Internal, err.Error())
	}
	switch {
	case s.Code() == codes.ResourceExhausted && strings.Contains(s.Message(), "larger than max"):
		// gRPC uses this code for an answer above the limit; to the core it means that the machine is full.
		return status.Errorf(codes.Internal, "answer of more than %d MiB", maxMessage>>20)
	case s.Code() == codes.Canceled || s.Code() == codes.DeadlineExceeded:
		// Neither we nor our caller ended it, so the module says it of itself.
		return status.Error(codes.Internal, "module gave up: "+s.Message())
	case s.Code() == codes.Unknown:
		return status.Error(codes.Internal, s.Message())
	}
	return status.Error(s.Code(), s.Message())
}

// maxErrorText bounds what of a module's error text is passed on.
const maxErrorText = 4 << 10

// name puts the module's name before an error and keeps its code.
func (m *module) name(call string, err error) error {
	s := status.Convert(err)
	return &callError{
		status: status.Newf(s.Code(), "%s: %s: %s", m.cfg.id(), call, cutText(strings.ToValidUTF8(s.Message(), "\uFFFD"), maxErrorText)),
	}
}

// callError reads as one path of names, without gRPC's preamble, and still gives its code to status.FromError.
type callError struct{ status *status.Status }

func (e *callError) Error() string              { return e.status.Message() }
func (e *callError) GRPCStatus() *status.Status { return e.status }

// progressTable holds the deadlines of the calls that progress can move.
type progressTable struct {
	mu    sync.Mutex // guards calls
	calls map[string]*movingDeadline
}

type movingDeadline struct {
	timer *time.Timer
	last  time.Time // never beyond this
}

// maxExtension is how many times the configured deadline a module may take in all when it reports progress.
const maxExtension = 5

// begin gives a context that ends after limit unless progress moves its end; end forgets it.
func (t *progressTable) begin(ctx context.Context, operation string, limit time.Duration) (soft context.Context, end func()) {
	now := time.Now()
	hard, cancel := context.WithDeadlineCause(ctx, now.Add(maxExtension*limit), context.DeadlineExceeded)
	d := &movingDeadline{timer: time.AfterFunc(limit, cancel), last: now.Add(maxExtension * limit)}
	t.mu.Lock()
	if t.calls == nil {
		t.calls = make(map[string]*movingDeadline)
	}
	t.calls[operation] = d
	t.mu.Unlock()
	return hard, func() {
		t.mu.Lock()
		if t.calls[operation] == d {
			delete(t.calls, operation)
		}
		t.mu.Unlock()
		d.timer.Stop()
		cancel()
	}
}

// extend moves the end of a call to now plus by; unknown operations are ignored.
func (t *progressTable) extend(operation string, by time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d, ok := t.calls[operation]; ok && d.timer.Stop() {
		d.timer.Reset(max(0, min(by, time.Until(d.last))))
	}
}
