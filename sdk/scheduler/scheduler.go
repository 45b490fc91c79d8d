// Package scheduler is a client of the scheduler API, for those who write frameworks.
//
// It subscribes, reconnects with backoff and resubscribes under the same framework id and with the same roles suppressed,
// tries each master it knows and follows a redirect to the leading one, acknowledges updates of tasks and operations once
// they have been handled, and asks for a reconciliation after each reconnection. Which offers to accept and which tasks
// to run again is the framework's business.
//
// Source: the scheduler HTTP API of Apache Mesos, version 1.
package scheduler

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
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

const (
	mediaType = "application/x-protobuf"
	path      = "/api/v1/scheduler"
	// callTimeout bounds one call other than SUBSCRIBE. Masters answer at once; ten seconds is a master in trouble.
	callTimeout = 10 * time.Second
	// subscribeTimeout bounds the wait for the answer to SUBSCRIBE. A master asks its authorizer before it answers, and
	// after a failover thousands of frameworks come at once.
	subscribeTimeout = 30 * time.Second
	// firstSilence is how long a stream may be silent before SUBSCRIBED has said how often heartbeats come.
	firstSilence = time.Minute
	// maxRedirects is how often SUBSCRIBE is sent on: masters that disagree on who leads settle it within a retry or two.
	maxRedirects = 4
	// missedHeartbeats is how many heartbeats may fail to come before the stream counts as dead.
	missedHeartbeats = 3
	// maxEvent bounds one event. Offers of some thousand agents are a few MiB.
	maxEvent = 64 << 20
	// maxRefusal bounds what is read of a refusal's text.
	maxRefusal = 64 << 10
)

// StatusError is a refusal of a call. The caller must change something, unless Code is 503.
type StatusError struct {
	Code    int
	Message string
}

func (e *StatusError) Error() string { return fmt.Sprintf("master answered %d: %s", e.Code, e.Message) }

// FatalError is an ERROR event: the master has ended the subscription for good, for instance because the framework
// was removed or another instance took over. The framework stops.
type FatalError struct{ Message string }

func (e *FatalError) Error() string { return "master ended the subscription: " + e.Message }

// ErrNotSubscribed is returned by calls made before SUBSCRIBED came or while the client reconnects. The caller tries
// again later, or drops what the call was for.
var ErrNotSubscribed = errors.New("not subscribed")

// Config says who subscribes and where.
type Config struct {
	// Master is host:port of a master; a redirect to the leader is followed.
	Master string
	// Masters are more of them, tried in turn while no leader is found.
	Masters []string
	// Framework is what to subscribe with; its id is filled in by the first SUBSCRIBED. A framework that was restarted
	// gives the id that it had: it then takes over its tasks, and is told how they are.
	Framework *mesosv1.FrameworkInfo
	// SuppressedRoles start without offers.
	SuppressedRoles []string
	// MaxBackoff bounds the pause between attempts to connect; 0 means 15 s.
	MaxBackoff time.Duration
	// GiveUpAfter ends Run when no attempt succeeded for so long; 0 means never.
	GiveUpAfter time.Duration
	Logger      *slog.Logger // nil discards
}

// Client is one framework's connection. Its methods may be called from several goroutines.
type Client struct {
	cfg Config
	hc  *http.Client
	log *slog.Logger

	mu         sync.Mutex // guards what follows
	framework  *mesosv1.FrameworkInfo
	suppressed suppressed
	operations bool // some of the framework's operations have ids: their states are asked for
	streamID   string
	leader     string // host:port that took the subscription; calls go there
}

// New returns a client; nothing is dialed before Run.
func New(cfg Config) *Client {
	if cfg.MaxBackoff == 0 {
		cfg.MaxBackoff = 15 * time.Second
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = nil
	t.DialContext = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	t.DisableCompression = true
	if cfg.Master != "" {
		cfg.Masters = append([]string{cfg.Master}, cfg.Masters...)
	}
	return &Client{
		cfg: cfg, log: log, framework: cfg.Framework.CloneVT(), suppressed: suppress(cfg.SuppressedRoles),
		hc: &http.Client{Transport: t, CheckRedirect: redirected},
	}
}

// redirected sends a call on to the master that a redirect names. Only its host counts: not every master says the path.
func redirected(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("redirected %d times", len(via))
	}
	req.URL.Path, req.URL.RawQuery = path, ""
	return nil
}

// FrameworkID is the id that the master gave, or nil before the first SUBSCRIBED.
func (c *Client) FrameworkID() *mesosv1.FrameworkID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.framework.GetId()
}

// Run subscribes and hands each event to handle, in order, until ctx ends, handle fails, or the master ends the
// subscription. An UPDATE is acknowledged after handle returned nil for it.
//
// Errors: *FatalError; what handle returned; *StatusError when SUBSCRIBE itself is refused with 4xx; the last
// connection error after GiveUpAfter. When ctx ends it returns ctx's error.
func (c *Client) Run(ctx context.Context, handle func(context.Context, *schedulerv1.Event) error) error {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = 100 * time.Millisecond
	b.MaxInterval = c.cfg.MaxBackoff
	defer c.hc.CloseIdleConnections()
	lost := time.Now()
	for attempt := 0; ; attempt++ {
		subscribed, err := c.session(ctx, c.master(attempt), handle)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if final(err) {
			return unwrapHandler(err)
		}
		if subscribed {
			b.Reset()
			attempt-- // who led last may still
			lost = time.Now()
		} else if c.cfg.GiveUpAfter > 0 && time.Since(lost) > c.cfg.GiveUpAfter {
			return err
		}
		pause := b.NextBackOff()
		c.log.Warn("subscription lost", "error", err, "retry_in", pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// master is whom an attempt begins with.
func (c *Client) master(attempt int) string {
	if len(c.cfg.Masters) == 0 {
		return ""
	}
	return c.cfg.Masters[attempt%len(c.cfg.Masters)]
}

// handlerError marks errors of the framework's own handler, which end Run.
type handlerError struct{ error }

func (e handlerError) Unwrap() error { return e.error }

func final(err error) bool {
	var fatal *FatalError
	var status *StatusError
	var handler handlerError
	return errors.As(err, &fatal) || errors.As(err, &handler) ||
		errors.As(err, &status) && status.Code/100 == 4
}

func unwrapHandler(err error) error {
	var handler handlerError
	if errors.As(err, &handler) {
		return handler.error
	}
	return err
}

// session is one subscription, beginning with a master, from SUBSCRIBE to the end of the stream. It says whether
// SUBSCRIBED came.
func (c *Client) session(ctx context.Context, master string, handle func(context.Context, *schedulerv1.Event) error) (bool, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.mu.Lock()
	framework := c.framework.CloneVT()
	c.mu.Unlock()
	again := framework.GetId() != nil
	watchdog := time.AfterFunc(subscribeTimeout, func() { cancel(errSilent) })
	defer watchdog.Stop()
	resp, err := c.subscribe(ctx, master, framework)
	if err != nil {
		return false, orSilent(ctx, err)
	}
	defer resp.Body.Close()
	defer c.setStream("", "")

	silence := firstSilence
	events := recordio.NewReader(resp.Body, maxEvent)
	subscribed := false
	for {
		watchdog.Reset(silence)
		record, err := events.Next()
		if err != nil {
			return subscribed, orSilent(ctx, fmt.Errorf("read events: %w", err))
		}
		// The handler may take its time: that is not the master's silence.
		if !watchdog.Stop() {
			return subscribed, errSilent
		}
		event := &schedulerv1.Event{}
		if err := event.UnmarshalVT(record); err != nil {
			return subscribed, fmt.Errorf("decode event: %w", err)
		}
		switch event.GetType() {
		case schedulerv1.Event_SUBSCRIBED:
			subscribed = true
			c.mu.Lock()
			c.framework.Id = event.GetSubscribed().GetFrameworkId()
			c.mu.Unlock()
			c.setStream(resp.Header.Get("Mesos-Stream-Id"), resp.Request.URL.Host)
			if s := event.GetSubscribed().GetHeartbeatIntervalSeconds(); s > 0 {
				silence = time.Duration(s * missedHeartbeats * float64(time.Second))
			}
		case schedulerv1.Event_ERROR:
			return subscribed, &FatalError{Message: event.GetError().GetMessage()}
		case schedulerv1.Event_HEARTBEAT:
			continue
		}
		if err := handle(ctx, event); err != nil {
			return subscribed, handlerError{err}
		}
		if err := c.afterEvent(ctx, event, again); err != nil && !errors.Is(err, ErrNotSubscribed) {
			c.log.Warn("follow up on event", "type", event.GetType(), "error", err)
		}
	}
}

// errSilent ends a session with a master that says nothing any more. Run subscribes again.
var errSilent = errors.New("the master is silent")

// orSilent is the reason of a failed call or read: the master's silence, if that is what ended the session.
func orSilent(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errSilent) {
		return errSilent
	}
	return err
}

// afterEvent does what every framework must: acknowledge updates, reconcile after a reconnection. Updates that were not
// acknowledged come again.
func (c *Client) afterEvent(ctx context.Context, event *schedulerv1.Event, again bool) error {
	switch event.GetType() {
	case schedulerv1.Event_UPDATE:
		status := event.GetUpdate().GetStatus()
		if len(status.GetUuid()) == 0 {
			return nil
		}
		return c.Acknowledge(ctx, status)
	case schedulerv1.Event_UPDATE_OPERATION_STATUS:
		status := event.GetUpdateOperationStatus().GetStatus()
		c.setOperations()
		if len(status.GetUuid().GetValue()) == 0 {
			return nil
		}
		return c.AcknowledgeOperation(ctx, status)
	case schedulerv1.Event_SUBSCRIBED:
		if !again {
			return nil
		}
		err := c.Reconcile(ctx)
		c.mu.Lock()
		operations := c.operations
		c.mu.Unlock()
		if operations && err == nil {
			err = c.ReconcileOperations(ctx)
		}
		return err
	}
	return nil
}

func (c *Client) setStream(id, leader string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streamID, c.leader = id, leader
}

func (c *Client) subscribe(ctx context.Context, master string, framework *mesosv1.FrameworkInfo) (*http.Response, error) {
	c.mu.Lock()
	roles := c.suppressed.list()
	c.mu.Unlock()
	call := &schedulerv1.Call{
		FrameworkId: framework.GetId(),
		Type:        schedulerv1.Call_SUBSCRIBE.Enum(),
		Subscribe:   &schedulerv1.Call_Subscribe{FrameworkInfo: framework, SuppressedRoles: roles},
	}
	resp, err := c.post(ctx, master, "", call)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return resp, nil
}

// Call makes one call of the subscribed framework; the framework id is filled in.
//
// Errors: ErrNotSubscribed; *StatusError when the master refuses. A nil error means that the master has it; the
// effect comes as events.
func (c *Client) Call(ctx context.Context, call *schedulerv1.Call) error {
	c.mu.Lock()
	stream, leader, id := c.streamID, c.leader, c.framework.GetId()
	c.mu.Unlock()
	if stream == "" {
		return ErrNotSubscribed
	}
	call.FrameworkId = id
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.post(ctx, leader, stream, call)
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
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	return &StatusError{Code: resp.StatusCode, Message: strings.TrimSpace(string(text))}
}

func (c *Client) post(ctx context.Context, addr, stream string, call *schedulerv1.Call) (*http.Response, error) {
	body, err := call.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", call.GetType(), err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("master address %q: %w", addr, err)
	}
	req.Header.Set("Content-Type", mediaType)
	req.Header.Set("Accept", mediaType)
	if stream != "" {
		req.Header.Set("Mesos-Stream-Id", stream)
	}
	resp, err := c.hc.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s at master %s: %w", call.GetType(), addr, err)
	}
	return resp, nil
}
