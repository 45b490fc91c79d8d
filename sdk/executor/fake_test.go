package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

// agent is a fake of an agent with one executor. It remembers tasks and updates as an agent does on its disk, and
// may cut the connections at any step.
type agent struct {
	t *testing.T
	// cut is asked before each step; true breaks all connections there.
	cut func(step string) bool
	// refuse, if not nil, gives the code that a call is refused with; 0 takes it.
	refuse func(*executorv1.Call) int

	mu       sync.Mutex // guards what follows
	waiting  []string   // tasks to be launched
	launched map[string]bool
	updates  []*mesosv1.TaskStatus // each once, as they came
	repeated int                   // updates that came again
	calls    []*executorv1.Call
	stream   *stream
	begun    int           // subscriptions
	changed  chan struct{} // closed and replaced at each change
	shutDown bool          // to be told
}

func newAgent(t *testing.T, tasks ...string) *agent {
	return &agent{
		t: t, waiting: tasks, launched: map[string]bool{}, changed: make(chan struct{}),
		cut: func(string) bool { return false },
	}
}

// stream is what an executor subscribed to. Events wait in a queue, so that the agent never waits for a reader.
type stream struct {
	events chan *executorv1.Event
	broken chan struct{}
	once   sync.Once
}

func (s *stream) cut() { s.once.Do(func() { close(s.broken) }) }

// step says whether the connection is cut here. The caller holds the lock.
func (a *agent) step(name string) bool {
	if !a.cut(name) {
		return false
	}
	if a.stream != nil {
		a.stream.cut()
	}
	return true
}

// send queues an event, if somebody is there.
func (a *agent) send(e *executorv1.Event) {
	if a.stream == nil || a.step("before "+e.GetType().String()) {
		return
	}
	a.stream.events <- e
	a.step("after " + e.GetType().String())
}

func (a *agent) signal() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// take remembers an update and acknowledges it.
func (a *agent) take(s *mesosv1.TaskStatus) {
	known := false
	for _, u := range a.updates {
		known = known || string(u.GetUuid()) == string(s.GetUuid())
	}
	if known {
		a.repeated++
	} else {
		a.updates = append(a.updates, s)
	}
	a.send(&executorv1.Event{
		Type:         executorv1.Event_ACKNOWLEDGED.Enum(),
		Acknowledged: &executorv1.Event_Acknowledged{TaskId: s.TaskId, Uuid: s.Uuid},
	})
	a.signal()
}

func (a *agent) launch(id string) {
	a.launched[id] = true
	a.send(&executorv1.Event{
		Type: executorv1.Event_LAUNCH.Enum(),
		Launch: &executorv1.Event_Launch{Task: &mesosv1.TaskInfo{
			Name: &id, TaskId: &mesosv1.TaskID{Value: &id}, AgentId: &mesosv1.AgentID{Value: new("a")},
		}},
	})
}

// subscribe plays an agent's side of a subscription, up to what it sends at once.
func (a *agent) subscribe(call *executorv1.Call_Subscribe) *stream {
	if a.stream != nil {
		a.stream.cut()
	}
	s := &stream{events: make(chan *executorv1.Event, 1024), broken: make(chan struct{})}
	a.stream = s
	a.begun++
	a.send(&executorv1.Event{Type: executorv1.Event_SUBSCRIBED.Enum(), Subscribed: &executorv1.Event_Subscribed{
		ExecutorInfo: &mesosv1.ExecutorInfo{ExecutorId: &mesosv1.ExecutorID{Value: new("e")}},
		FrameworkInfo: &mesosv1.FrameworkInfo{
			User: new("u"), Name: new("n"),
		},
		AgentInfo: &mesosv1.AgentInfo{Hostname: new("h")},
	}})
	has := map[string]bool{}
	for _, t := range call.GetUnacknowledgedTasks() {
		has[t.GetTaskId().GetValue()] = true
	}
	for _, u := range a.updates {
		has[u.GetTaskId().GetValue()] = true
	}
	for _, u := range call.GetUnacknowledgedUpdates() {
		has[u.GetStatus().GetTaskId().GetValue()] = true
		a.take(u.GetStatus())
	}
	for _, id := range a.waiting {
		if !a.launched[id] || !has[id] {
			a.launch(id)
		}
	}
	if a.shutDown {
		a.send(&executorv1.Event{Type: executorv1.Event_SHUTDOWN.Enum()})
	}
	a.signal()
	return s
}

func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	call := &executorv1.Call{}
	if err == nil {
		err = call.UnmarshalVT(body)
	}
	if err != nil || r.Method != http.MethodPost || r.URL.Path != path || r.Header.Get("Content-Type") != mediaType ||
		r.Header.Get("Accept") != mediaType || call.GetExecutorId().GetValue() != "e" || call.GetFrameworkId().GetValue() != "f" {
		a.t.Errorf("%s %s with %v: %v, %v", r.Method, r.URL, r.Header, call, err)
		http.Error(w, "bad", http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	a.calls = append(a.calls, call)
	if a.refuse != nil {
		if code := a.refuse(call); code != 0 {
			a.signal()
			a.mu.Unlock()
			http.Error(w, "not now", code)
			return
		}
	}
	if a.step(call.GetType().String() + " arrives") {
		a.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	switch call.GetType() {
	case executorv1.Call_SUBSCRIBE:
		s := a.subscribe(call.GetSubscribe())
		a.mu.Unlock()
		a.serve(w, r, s)
		return
	case executorv1.Call_UPDATE:
		a.take(call.GetUpdate().GetStatus())
	default:
		a.signal()
	}
	lost := a.step(call.GetType().String() + " is answered")
	a.mu.Unlock()
	if lost {
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(http.StatusAccepted)
}

// serve writes a stream's events until somebody leaves.
func (a *agent) serve(w http.ResponseWriter, r *http.Request, s *stream) {
	w.Header().Set("Content-Type", mediaType)
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for {
		select {
		case <-s.broken:
			// What was sent before may still arrive.
			for {
				select {
				case e := <-s.events:
					a.write(w, e)
					continue
				default:
				}
				panic(http.ErrAbortHandler)
			}
		case <-r.Context().Done():
			return
		case e := <-s.events:
			a.write(w, e)
		}
	}
}

func (a *agent) write(w http.ResponseWriter, e *executorv1.Event) {
	data, err := e.MarshalVT()
	if err != nil {
		a.t.Errorf("encode %s: %v", e.GetType(), err)
	}
	_, _ = w.Write(recordio.Append(nil, data)) // the executor may have gone
	w.(http.Flusher).Flush()
}

// await waits until is, called under the lock, holds.
func (a *agent) await(ctx context.Context, what string, is func() bool) {
	a.t.Helper()
	for {
		a.mu.Lock()
		ok, changed := is(), a.changed
		a.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			a.t.Errorf("wait for %s: %v", what, ctx.Err())
			return
		}
	}
}

// do runs f under the lock.
func (a *agent) do(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// states are the updates that came, as TASK:STATE.
func (a *agent) states() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, u := range a.updates {
		out = append(out, fmt.Sprint(u.GetTaskId().GetValue(), ":", u.GetState()))
	}
	return out
}

// network is a transport without sockets, so that waiting for it costs no time under synctest. handler may change; nil
// refuses connections.
type network struct {
	mu      sync.Mutex // guards handler
	handler http.Handler
}

func (n *network) set(h http.Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.handler = h
}

func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	n.mu.Lock()
	h := n.handler
	n.mu.Unlock()
	if h == nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	read, write := io.Pipe()
	w := &answer{header: http.Header{}, body: write, begun: make(chan struct{})}
	// A client that leaves breaks the stream, on either side.
	stop := context.AfterFunc(r.Context(), func() {
		read.CloseWithError(r.Context().Err())
		write.CloseWithError(r.Context().Err())
	})
	aborted := make(chan struct{})
	go func() {
		defer stop()
		defer func() {
			if v := recover(); v != nil {
				close(aborted)
				write.CloseWithError(io.ErrUnexpectedEOF)
			}
		}()
		h.ServeHTTP(w, r)
		w.WriteHeader(http.StatusOK)
		write.Close()
	}()
	select {
	case <-w.begun:
		return &http.Response{StatusCode: w.code, Header: w.header.Clone(), Body: read, Request: r}, nil
	case <-aborted:
		return nil, io.ErrUnexpectedEOF
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
