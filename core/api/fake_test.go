package api_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/api"
	"github.com/mosaic-cluster/mosaic/core/api/codec"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// httpError is an error that chooses its status, as core/master's do.
type httpError struct {
	status int
	text   string
}

func (e httpError) Error() string   { return e.text }
func (e httpError) HTTPStatus() int { return e.status }

// fakeMaster keeps frameworks and subscriptions in memory and behaves as a master does towards the edge.
type fakeMaster struct {
	mu         sync.Mutex
	leads      bool
	recovered  bool
	leader     string
	frameworks map[string]*fakeFramework
	operators  []api.OperatorStream
	calls      []*schedulerv1.Call
	principals []string
	writes     []legacyWrite
	metrics    string // body of /metrics/snapshot
	onOperator func(*masterv1.Call) (*masterv1.Response, error)
}

type fakeFramework struct {
	streamID string
	stream   api.SchedulerStream
}

func newFakeMaster() *fakeMaster {
	return &fakeMaster{leads: true, recovered: true, frameworks: map[string]*fakeFramework{}, metrics: `{"master/elected":1.0}`}
}

func (m *fakeMaster) Leader() (leads, recovered bool, addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leads, m.recovered, m.leader
}

func (m *fakeMaster) setLeader(leads, recovered bool, addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leads, m.recovered, m.leader = leads, recovered, addr
}

func (m *fakeMaster) SchedulerSubscribe(_ context.Context, principal string, call *schedulerv1.Call, s api.SchedulerStream) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.principals = append(m.principals, principal)
	info := call.GetSubscribe().GetFrameworkInfo()
	switch info.GetName() {
	case "too many":
		return "", httpError{http.StatusTooManyRequests, "Too many frameworks"}
	case "panic":
		panic("a bug of ours")
	case "refused":
		s.Send(&schedulerv1.Event{
			Type:  schedulerv1.Event_ERROR.Enum(),
			Error: &schedulerv1.Event_Error{Message: proto.String("Framework is not authorized")},
		})
		s.Close()
		return "5b8ac2f0-0000-4000-8000-000000000000", nil
	}
	id := info.GetId().GetValue()
	if id == "" {
		id = fmt.Sprintf("fake-%04d", len(m.frameworks))
	}
	f := m.frameworks[id]
	if f == nil {
		f = &fakeFramework{}
		m.frameworks[id] = f
	} else {
		f.stream.Send(&schedulerv1.Event{
			Type:  schedulerv1.Event_ERROR.Enum(),
			Error: &schedulerv1.Event_Error{Message: proto.String("Framework failed over")},
		})
		f.stream.Close()
	}
	f.stream = s
	f.streamID = fmt.Sprintf("5b8ac2f0-0000-4000-8000-%012d", len(m.principals))
	s.Send(&schedulerv1.Event{
		Type: schedulerv1.Event_SUBSCRIBED.Enum(),
		Subscribed: &schedulerv1.Event_Subscribed{
			FrameworkId:              &mesosv1.FrameworkID{Value: proto.String(id)},
			HeartbeatIntervalSeconds: proto.Float64(15),
		},
	})
	return f.streamID, nil
}

func (m *fakeMaster) SchedulerCall(_ context.Context, principal, streamID string, call *schedulerv1.Call) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.frameworks[call.GetFrameworkId().GetValue()]
	switch {
	case f == nil:
		return httpError{http.StatusBadRequest, "Framework cannot be found"}
	case streamID != f.streamID:
		return fmt.Errorf("call of framework: %w", httpError{http.StatusBadRequest, "The stream ID does not match"})
	}
	m.calls = append(m.calls, call)
	return nil
}

func (m *fakeMaster) OperatorCall(_ context.Context, _ string, call *masterv1.Call) (*masterv1.Response, error) {
	m.mu.Lock()
	hook := m.onOperator
	m.mu.Unlock()
	if hook != nil {
		return hook(call)
	}
	switch call.GetType() {
	case masterv1.Call_GET_HEALTH:
		return &masterv1.Response{
			Type:      masterv1.Response_GET_HEALTH.Enum(),
			GetHealth: &masterv1.Response_GetHealth{Healthy: proto.Bool(true)},
		}, nil
	case masterv1.Call_MARK_AGENT_GONE:
		return nil, httpError{http.StatusNotFound, "Agent is unknown"}
	case masterv1.Call_GET_METRICS:
		return nil, fmt.Errorf("disk on fire")
	}
	return nil, nil
}

func (m *fakeMaster) OperatorSubscribe(_ context.Context, _ string, s api.OperatorStream) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.operators = append(m.operators, s)
	s.Send(&masterv1.Event{
		Type:       masterv1.Event_SUBSCRIBED.Enum(),
		Subscribed: &masterv1.Event_Subscribed{HeartbeatIntervalSeconds: proto.Float64(15)},
	})
	return nil
}

func (m *fakeMaster) Legacy(_ context.Context, _, endpoint string, query url.Values) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case endpoint == "/metrics/snapshot":
		if query.Get("timeout") == "never" {
			return nil, httpError{http.StatusBadRequest, "Failed to parse timeout"}
		}
		return []byte(m.metrics), nil
	case query.Get("framework_id") != "":
		return fmt.Appendf(nil, `{"endpoint":%q,"framework_id":%q}`, endpoint, query.Get("framework_id")), nil
	}
	return fmt.Appendf(nil, `{"endpoint":%q}`, endpoint), nil
}

// legacyWrite is what LegacyWrite was called with.
type legacyWrite struct {
	principal, endpoint, method string
	query, form                 url.Values
	body                        string
}

func (m *fakeMaster) LegacyWrite(_ context.Context, principal, endpoint, method string, query, form url.Values, body []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes = append(m.writes, legacyWrite{principal, endpoint, method, query, form, string(body)})
	switch {
	case form.Get("slaveId") == "unknown":
		return nil, httpError{http.StatusBadRequest, "No agent found with specified ID"}
	case form.Get("slaveId") == "busy":
		return nil, httpError{http.StatusConflict, "Invalid RESERVE operation on agent busy"}
	case string(body) == `"answer"`:
		return []byte(`{"answered":true}`), nil
	}
	return nil, nil
}

// fakeAgent keeps executors in memory.
type fakeAgent struct {
	mu        sync.Mutex
	recovered bool
	executors map[string]api.ExecutorStream
	updates   []*executorv1.Call
	fed       chan string // what containers were fed
}

func newFakeAgent() *fakeAgent {
	return &fakeAgent{recovered: true, executors: map[string]api.ExecutorStream{}, fed: make(chan string, 16)}
}

func (a *fakeAgent) Recovered() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.recovered
}

func (a *fakeAgent) ExecutorSubscribe(_ context.Context, call *executorv1.Call, s api.ExecutorStream) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if call.GetFrameworkId().GetValue() == "unknown" {
		return httpError{http.StatusBadRequest, "Framework cannot be found"}
	}
	a.executors[call.GetExecutorId().GetValue()] = s
	s.Send(&executorv1.Event{
		Type: executorv1.Event_SUBSCRIBED.Enum(),
		Subscribed: &executorv1.Event_Subscribed{
			ExecutorInfo:  &mesosv1.ExecutorInfo{ExecutorId: call.ExecutorId},
			FrameworkInfo: &mesosv1.FrameworkInfo{User: proto.String("u"), Name: proto.String("n")},
			AgentInfo:     &mesosv1.AgentInfo{Hostname: proto.String("h")},
		},
	})
	return nil
}

func (a *fakeAgent) ExecutorCall(_ context.Context, call *executorv1.Call) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.executors[call.GetExecutorId().GetValue()] == nil {
		return httpError{http.StatusForbidden, "Executor is not subscribed"}
	}
	a.updates = append(a.updates, call)
	return nil
}

func (a *fakeAgent) OperatorCall(_ context.Context, _ string, call *agentv1.Call) (*agentv1.Response, error) {
	switch call.GetType() {
	case agentv1.Call_GET_HEALTH:
		return &agentv1.Response{
			Type:      agentv1.Response_GET_HEALTH.Enum(),
			GetHealth: &agentv1.Response_GetHealth{Healthy: proto.Bool(true)},
		}, nil
	case agentv1.Call_LAUNCH_CONTAINER:
		return nil, httpError{http.StatusAccepted, "It is there already"}
	}
	return nil, nil
}

func (a *fakeAgent) Legacy(_ context.Context, _, endpoint string, _ url.Values) ([]byte, error) {
	return fmt.Appendf(nil, `{"endpoint":%q}`, endpoint), nil
}

func (a *fakeAgent) AttachOutput(_ context.Context, _ string, id *mesosv1.ContainerID, s api.ProcessIOStream) error {
	if id.GetValue() == "unknown" {
		return httpError{http.StatusNotFound, "Container cannot be found"}
	}
	sendOutput(s, "hello")
	s.Close()
	return nil
}

func (a *fakeAgent) LaunchSession(_ context.Context, _ string, call *agentv1.Call_LaunchNestedContainerSession, s api.ProcessIOStream) error {
	sendOutput(s, call.GetCommand().GetValue())
	s.Close()
	return nil
}

func sendOutput(s api.ProcessIOStream, text string) {
	s.Send(&agentv1.ProcessIO{
		Type: agentv1.ProcessIO_DATA.Enum(),
		Data: &agentv1.ProcessIO_Data{Type: agentv1.ProcessIO_Data_STDOUT.Enum(), Data: []byte(text)},
	})
}

func (a *fakeAgent) AttachInput(ctx context.Context, _ string, id *mesosv1.ContainerID, next func(context.Context) (*agentv1.ProcessIO, error)) error {
	if id.GetValue() == "unknown" {
		return httpError{http.StatusNotFound, "Container cannot be found"}
	}
	for {
		in, err := next(ctx)
		if err != nil {
			return err
		}
		a.fed <- string(in.GetData().GetData())
	}
}

// fakeFiles publishes host paths under virtual ones.
type fakeFiles map[string]string

func (f fakeFiles) ResolveFile(virtual string) (string, error) {
	if host, ok := f[virtual]; ok {
		return host, nil
	}
	return "", fs.ErrNotExist
}

var testVersion = &mesosv1.VersionInfo{
	Version: proto.String("1.12.0"), BuildDate: proto.String("2026-01-01"),
	BuildTime: proto.Float64(1767225600), BuildUser: proto.String("mosaic"),
}

func testConfig(t *testing.T) api.Config {
	return api.Config{Version: testVersion, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))}
}

// testWriter sends logs where a failing test shows them.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Helper()
	w.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

// serveMaster runs a master's edge until the test ends.
func serveMaster(t *testing.T, m *fakeMaster, change ...func(*api.Config, *api.MasterDeps)) *httptest.Server {
	t.Helper()
	cfg, deps := testConfig(t), api.MasterDeps{Master: m}
	for _, c := range change {
		c(&cfg, &deps)
	}
	return serve(t, api.NewMaster(cfg, deps))
}

func serveAgent(t *testing.T, a *fakeAgent, change ...func(*api.Config, *api.AgentDeps)) *httptest.Server {
	t.Helper()
	cfg, deps := testConfig(t), api.AgentDeps{Agent: a, ContainerIO: a}
	for _, c := range change {
		c(&cfg, &deps)
	}
	return serve(t, api.NewAgent(cfg, deps))
}

func serve(t *testing.T, h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(testWriter{t}, nil), slog.LevelInfo)
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// request builds a request whose headers are given as "Name: value".
func request(t *testing.T, method, target, body string, headers ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	return r
}

// do sends a request and returns the answer with its whole body.
func do(t *testing.T, r *http.Request) (*http.Response, string) {
	t.Helper()
	transport := &http.Transport{DisableCompression: true}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(r) // follows no redirect
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: read the answer: %v", r.Method, r.URL, err)
	}
	return resp, string(body)
}

const (
	sendJSON     = "Content-Type: application/json"
	sendProtobuf = "Content-Type: application/x-protobuf"
	wantJSON     = "Accept: application/json"
	wantProtobuf = "Accept: application/x-protobuf"
)

// encode returns m in a media type.
func encode(t *testing.T, mt codec.Type, m codec.Message) string {
	t.Helper()
	b, err := codec.Append(mt, nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func containerID(value string) *mesosv1.ContainerID {
	return &mesosv1.ContainerID{Value: proto.String(value)}
}
