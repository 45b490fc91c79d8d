// Package executor is a client of the executor API, for those who write custom executors: programs that an agent starts
// for a framework, and that run its tasks.
//
// It reads what the agent has put into the environment, subscribes, reconnects with backoff when the agent goes away and
// says then what the agent may have missed, repeats updates until they are acknowledged, gives up when the agent stays
// away for longer than the recovery timeout, and sees that the last updates get out before the grace period of a
// shutdown is over. What a task is, and how it is run and killed, is the executor's business.
//
// Source: the executor HTTP API of Apache Mesos, version 1.
package executor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

const (
	mediaType = "application/x-protobuf"
	path      = "/api/v1/executor"
	// callTimeout bounds one call other than SUBSCRIBE. Agents answer at once; ten seconds is an agent in trouble.
	callTimeout = 10 * time.Second
	// subscribeTimeout bounds the wait for SUBSCRIBED. An agent answers at once, or refuses while it recovers.
	subscribeTimeout = 10 * time.Second
	// firstTimeout is how long the first subscription may take. Agents kill an executor that has not subscribed within a
	// minute.
	firstTimeout = time.Minute
	// heartbeatInterval is how often the connection for calls is used when there is nothing to say, as in Mesos.
	heartbeatInterval = 30 * time.Minute
	// maxEvent bounds one event; the largest launches a group of tasks.
	maxEvent = 64 << 20
	// maxRefusal bounds what is read of a refusal's text.
	maxRefusal = 64 << 10
)

// StatusError is a refusal of a call. The caller must change something, unless Code is 503.
type StatusError struct {
	Code    int
	Message string
}

func (e *StatusError) Error() string { return fmt.Sprintf("agent answered %d: %s", e.Code, e.Message) }

// FatalError is an ERROR event: the agent has ended the subscription for good.
type FatalError struct{ Message string }

func (e *FatalError) Error() string { return "agent ended the subscription: " + e.Message }

// ErrAgentLost is returned by Run when the agent was away for longer than the recovery timeout, or at all for a framework
// that does not checkpoint. The agent will not know the executor again; its tasks must not go on.
var ErrAgentLost = errors.New("agent is lost")

// ErrNotSubscribed is returned by Message while the client is not connected. Messages are not kept.
var ErrNotSubscribed = errors.New("not subscribed")

// Config says who subscribes and where.
type Config struct {
	Environment Environment
	Logger      *slog.Logger // nil discards
}

// Client is one executor's connection to its agent. Its methods may be called from several goroutines.
type Client struct {
	cfg Config
	hc  *http.Client
	log *slog.Logger

	mu         sync.Mutex // guards what follows
	pending    pending
	subscribed bool
	changed    chan struct{} // closed and replaced when pending has shrunk
	wake       chan struct{} // holds one token when there is something to send
}

// New returns a client; nothing is dialed before Run.
func New(cfg Config) *Client {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	e := &cfg.Environment
	if e.SubscriptionBackoffMax <= 0 {
		e.SubscriptionBackoffMax = defaultBackoffMax
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = nil
	t.DisableCompression = true
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	t.DialContext = dialer.DialContext
	if e.DomainSocket != "" {
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", e.DomainSocket)
		}
	}
	return &Client{
		cfg: cfg, log: log, hc: &http.Client{Transport: t},
		changed: make(chan struct{}), wake: make(chan struct{}, 1),
	}
}

// Handler handles one event. Its context is Run's, and outlasts a reconnection; SHUTDOWN's ends with the grace period. It
// must not wait for acknowledgements: they are events too. An error ends Run.
type Handler func(context.Context, *executorv1.Event) error

// Run subscribes and hands each event to handle, in order, one at a time, until the executor is shut down.
//
// SHUTDOWN is the last event that asks for something: the handler kills what runs and updates it, before its context
// ends. Run then waits until all updates are acknowledged, within the grace period, and returns nil. It hands out a
// SHUTDOWN of its own when the agent is lost, and then returns ErrAgentLost.
//
// Errors: ErrAgentLost; *FatalError; *StatusError when SUBSCRIBE itself is refused with 4xx; what handle returned; ctx's
// error when that ends, without a SHUTDOWN.
func (c *Client) Run(ctx context.Context, handle Handler) error {
	defer c.hc.CloseIdleConnections()
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = min(50*time.Millisecond, c.cfg.Environment.SubscriptionBackoffMax)
	// The longest pause, with its random part, must be over before a restarted agent has lost patience: that is what it
	// says the maximum is.
	b.MaxInterval = c.cfg.Environment.SubscriptionBackoffMax / 2
	deadline := time.Now().Add(firstTimeout)
	for {
		subscribed, err := c.session(ctx, deadline, handle)
		switch {
		case errors.Is(err, errShutDown):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		}
		var handler handlerError
		if errors.As(err, &handler) {
			return handler.error
		}
		if subscribed {
			b.Reset()
			deadline = time.Now().Add(c.cfg.Environment.RecoveryTimeout)
		}
		left := time.Until(deadline)
		if final(err) || left <= 0 {
			c.log.Error("agent is lost", "error", err)
			return c.lost(ctx, handle, err)
		}
		pause := min(b.NextBackOff(), left)
		c.log.Warn("agent is away", "error", err, "retry_in", pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// handlerError marks errors of the executor's own handler, which end Run.
type handlerError struct{ error }

func (e handlerError) Unwrap() error { return e.error }

// final tells whether trying again is of no use.
func final(err error) bool {
	var fatal *FatalError
	var status *StatusError
	return errors.As(err, &fatal) || errors.As(err, &status) && status.Code/100 == 4
}

// lost has the handler shut down although no agent asks for it, and returns why.
func (c *Client) lost(ctx context.Context, handle Handler, cause error) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Environment.ShutdownGracePeriod)
	defer cancel()
	if err := handle(ctx, &executorv1.Event{Type: executorv1.Event_SHUTDOWN.Enum()}); err != nil {
		return err
	}
	if final(cause) {
		return cause
	}
	return fmt.Errorf("%w: %w", ErrAgentLost, cause)
}

// errShutDown ends the last session.
var errShutDown = errors.New("shut down")

// errGrace ends a session whose agent kills the executor now.
var errGrace = errors.New("grace period is over")

// session is one subscription from SUBSCRIBE to the end of the stream. It says whether SUBSCRIBED came, before deadline.
func (c *Client) session(run context.Context, deadline time.Time, handle Handler) (subscribed bool, err error) {
	ctx, cancel := context.WithCancelCause(run)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel(nil)
	patience := max(min(subscribeTimeout, time.Until(deadline)), time.Millisecond)
	watchdog := time.AfterFunc(patience, func() { cancel(errSilent) })
	defer watchdog.Stop()
	because := func(err error) error {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	resp, err := c.subscribe(ctx)
	if err != nil {
		return false, because(err)
	}
	defer resp.Body.Close()
	defer c.setSubscribed(false)

	events := recordio.NewReader(resp.Body, maxEvent)
	shutdown := false
	for {
		record, err := events.Next()
		if err != nil {
			if shutdown {
				c.log.Warn("agent left while updates were on their way", "error", because(err))
				return subscribed, errShutDown
			}
			return subscribed, because(fmt.Errorf("read events: %w", err))
		}
		event := &executorv1.Event{}
		if err := event.UnmarshalVT(record); err != nil {
			return subscribed, fmt.Errorf("decode event: %w", err)
		}
		handlerCtx := run
		switch event.GetType() {
		case executorv1.Event_SUBSCRIBED:
			if !watchdog.Stop() {
				return false, errSilent
			}
			if !subscribed {
				subscribed = true
				c.setSubscribed(true)
				group.Go(func() { c.sendUpdates(ctx, cancel) })
			}
		case executorv1.Event_HEARTBEAT:
			continue
		case executorv1.Event_ERROR:
			return subscribed, &FatalError{Message: event.GetError().GetMessage()}
		case executorv1.Event_SHUTDOWN:
			if shutdown {
				continue
			}
			shutdown = true
			watchdog.Stop()
			grace := c.cfg.Environment.ShutdownGracePeriod
			end := time.AfterFunc(grace, func() { cancel(errGrace) })
			defer end.Stop()
			// A tenth is for the last updates.
			var stop context.CancelFunc
			handlerCtx, stop = context.WithTimeout(run, grace-grace/10)
			defer stop()
		}
		c.note(event)
		if err := handle(handlerCtx, event); err != nil {
			return subscribed, handlerError{err}
		}
		if shutdown && c.idle() {
			return subscribed, errShutDown
		}
	}
}

// errSilent ends an attempt at an agent that says nothing.
var errSilent = errors.New("the agent is silent")

func (c *Client) setSubscribed(v bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subscribed = v
}

func (c *Client) subscribe(ctx context.Context) (*http.Response, error) {
	c.mu.Lock()
	call := c.call(executorv1.Call_SUBSCRIBE)
	call.Subscribe = c.pending.subscribe()
	c.mu.Unlock()
	resp, err := c.post(ctx, call)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return resp, nil
}

func (c *Client) call(t executorv1.Call_Type) *executorv1.Call {
	return &executorv1.Call{
		Type:        t.Enum(),
		ExecutorId:  &mesosv1.ExecutorID{Value: &c.cfg.Environment.ExecutorID},
		FrameworkId: &mesosv1.FrameworkID{Value: &c.cfg.Environment.FrameworkID},
	}
}

// Message sends data to the framework, at most once.
//
// Errors: ErrNotSubscribed; *StatusError when the agent refuses it.
func (c *Client) Message(ctx context.Context, data []byte) error {
	c.mu.Lock()
	subscribed := c.subscribed
	c.mu.Unlock()
	if !subscribed {
		return ErrNotSubscribed
	}
	call := c.call(executorv1.Call_MESSAGE)
	call.Message = &executorv1.Call_Message{Data: data}
	return c.do(ctx, call)
}

// do makes a call other than SUBSCRIBE.
func (c *Client) do(ctx context.Context, call *executorv1.Call) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.post(ctx, call)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return refusal(resp)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxRefusal))
	return err
}

func refusal(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal)) // the code is what counts
	return &StatusError{Code: resp.StatusCode, Message: strings.TrimSpace(string(text))}
}

func (c *Client) post(ctx context.Context, call *executorv1.Call) (*http.Response, error) {
	body, err := call.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", call.GetType(), err)
	}
	addr := c.cfg.Environment.AgentEndpoint
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("agent address %q: %w", addr, err)
	}
	req.Header.Set("Content-Type", mediaType)
	req.Header.Set("Accept", mediaType)
	if token := c.cfg.Environment.AuthenticationToken; token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.hc.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s at agent %s: %w", call.GetType(), addr, err)
	}
	return resp, nil
}
