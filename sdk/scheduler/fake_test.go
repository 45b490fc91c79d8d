package scheduler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

// master is a fake of a master's scheduler API. subscribe plays each subscription; other calls are remembered and
// answered 202, or with what refuse says.
type master struct {
	t         *testing.T
	subscribe func(s *subscription)

	mu     sync.Mutex // guards what follows
	calls  []*schedulerv1.Call
	refuse int           // status code for calls other than SUBSCRIBE
	called chan struct{} // closed and replaced at each call
	count  int           // subscriptions so far
}

func newMaster(t *testing.T, subscribe func(*subscription)) *master {
	return &master{t: t, subscribe: subscribe, called: make(chan struct{})}
}

// subscription is one SUBSCRIBE on its way.
type subscription struct {
	call *schedulerv1.Call
	n    int // 1 for the first
	w    http.ResponseWriter
	r    *http.Request
	m    *master
}

// answer refuses or redirects the subscription.
func (s *subscription) answer(code int, text string) { http.Error(s.w, text, code) }

// begin opens the stream and sends SUBSCRIBED.
func (s *subscription) begin(framework string, heartbeat float64) {
	s.w.Header().Set("Content-Type", mediaType)
	s.w.Header().Set("Mesos-Stream-Id", fmt.Sprintf("stream-%d", s.n))
	s.send(&schedulerv1.Event{
		Type: schedulerv1.Event_SUBSCRIBED.Enum(),
		Subscribed: &schedulerv1.Event_Subscribed{
			FrameworkId: &mesosv1.FrameworkID{Value: &framework}, HeartbeatIntervalSeconds: &heartbeat,
		},
	})
}

func (s *subscription) send(e *schedulerv1.Event) {
	data, err := e.MarshalVT()
	if err != nil {
		s.m.t.Errorf("encode %s: %v", e.GetType(), err)
		return
	}
	_, _ = s.w.Write(recordio.Append(nil, data)) // the client may have gone
	s.w.(http.Flusher).Flush()
}

func (s *subscription) update(task, uuid string) {
	agent, state := "agent", mesosv1.TaskState_TASK_RUNNING
	s.send(&schedulerv1.Event{Type: schedulerv1.Event_UPDATE.Enum(), Update: &schedulerv1.Event_Update{Status: &mesosv1.TaskStatus{
		TaskId: &mesosv1.TaskID{Value: &task}, AgentId: &mesosv1.AgentID{Value: &agent}, State: &state, Uuid: []byte(uuid),
	}}})
}

func (s *subscription) heartbeat() {
	s.send(&schedulerv1.Event{Type: schedulerv1.Event_HEARTBEAT.Enum()})
}

func (s *subscription) fail(message string) {
	s.send(&schedulerv1.Event{Type: schedulerv1.Event_ERROR.Enum(), Error: &schedulerv1.Event_Error{Message: &message}})
}

// hold keeps the stream open until the client leaves.
func (s *subscription) hold() { <-s.r.Context().Done() }

func (m *master) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	call := &schedulerv1.Call{}
	if err == nil {
		err = call.UnmarshalVT(body)
	}
	if err != nil || r.Method != http.MethodPost || r.URL.Path != path || r.Header.Get("Content-Type") != mediaType || r.Header.Get("Accept") != mediaType {
		m.t.Errorf("%s %s with %v: %v", r.Method, r.URL, r.Header, err)
		http.Error(w, "bad", http.StatusBadRequest)
		return
	}
	if call.GetType() == schedulerv1.Call_SUBSCRIBE {
		m.mu.Lock()
		m.count++
		n := m.count
		m.mu.Unlock()
		m.subscribe(&subscription{call: call, n: n, w: w, r: r, m: m})
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if want := fmt.Sprintf("stream-%d", m.count); r.Header.Get("Mesos-Stream-Id") != want {
		m.t.Errorf("%s came with stream id %q, want %q", call.GetType(), r.Header.Get("Mesos-Stream-Id"), want)
	}
	m.calls = append(m.calls, call)
	close(m.called)
	m.called = make(chan struct{})
	if m.refuse != 0 {
		http.Error(w, "not now", m.refuse)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// subscriptions is how many there were.
func (m *master) subscriptions() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count
}

// awaitCall waits until n calls other than SUBSCRIBE have come, and returns the last of them.
func (m *master) awaitCall(ctx context.Context, n int) *schedulerv1.Call {
	for {
		m.mu.Lock()
		calls, called := m.calls, m.called
		m.mu.Unlock()
		if len(calls) >= n {
			return calls[n-1]
		}
		select {
		case <-called:
		case <-ctx.Done():
			m.t.Errorf("wait for call %d: %v; there were %v", n, ctx.Err(), calls)
			return nil
		}
	}
}

// listen serves the master on a real port.
func (m *master) listen() string {
	srv := httptest.NewServer(m)
	m.t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// network is a transport without sockets, so that waiting for it costs no time under synctest. Hosts that are not in it
// refuse connections.
type network map[string]http.Handler

func (n network) RoundTrip(r *http.Request) (*http.Response, error) {
	h, ok := n[r.URL.Host]
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	read, write := io.Pipe()
	w := &answer{header: http.Header{}, body: write, begun: make(chan struct{})}
	// A client that leaves breaks the stream, on either side.
	stop := context.AfterFunc(r.Context(), func() {
		read.CloseWithError(r.Context().Err())
		write.CloseWithError(r.Context().Err())
	})
	go func() {
		defer stop()
		h.ServeHTTP(w, r)
		w.WriteHeader(http.StatusOK)
		write.Close()
	}()
	select {
	case <-w.begun:
		return &http.Response{StatusCode: w.code, Header: w.header.Clone(), Body: read, Request: r}, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// answer is what a handler of the network writes to.
type answer struct {
	header http.Header
	body   *io.PipeWriter
	once   sync.Once
	code   int
	begun  chan struct{}
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(code int) {
	a.once.Do(func() {
		a.code = code
		close(a.begun)
	})
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(p)
}

func (a *answer) Flush() {}

// client returns a client on the network; cfg's framework is filled in.
func (n network) client(cfg Config) *Client {
	name, user := "sample", "nobody"
	cfg.Framework = &mesosv1.FrameworkInfo{Name: &name, User: &user}
	c := New(cfg)
	c.hc.Transport = n
	return c
}
