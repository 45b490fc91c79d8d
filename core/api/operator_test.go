package api_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/api"
	"github.com/mosaic-cluster/mosaic/core/api/codec"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

func TestOperatorAnswersInMesossOrder(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	const resource = `{"name":"disk","type":"SCALAR","scalar":{"value":1}}`
	for _, c := range []struct {
		what, method, body string
		headers            []string
		status             int
		text               string
	}{
		{"method", "PUT", "", nil, 405, "Expecting one of { 'POST' }, but received 'PUT'"},
		{"no content type", "POST", "x", nil, 400, "Expecting 'Content-Type' to be present"},
		{"wrong content type", "POST", "x", []string{"Content-Type: application/recordio"}, 415, "Expecting 'Content-Type'"},
		{"body", "POST", "{", []string{sendJSON, "Accept: text/html"}, 400, "Failed to convert JSON into master::Call protobuf"},
		{"type", "POST", "{}", []string{sendJSON, "Accept: text/html"}, 400, "Failed to validate master::Call: Expecting 'type' to be present"},
		{"message", "POST", `{"type":"TEARDOWN"}`, []string{sendJSON, "Accept: text/html"}, 400, "Expecting 'teardown' to be present"},
		{"agent to grow on", "POST", `{"type":"GROW_VOLUME","grow_volume":{"volume":` + resource + `,"addition":` + resource + `}}`, []string{sendJSON}, 400, "Expecting 'grow_volume.agent_id' to be present"},
		{"agent to shrink on", "POST", `{"type":"SHRINK_VOLUME","shrink_volume":{"volume":` + resource + `,"subtract":{"value":1}}}`, []string{sendJSON}, 400, "Expecting 'shrink_volume.agent_id' to be present"},
		{"accept", "POST", `{"type":"GET_HEALTH"}`, []string{sendJSON, "Accept: text/html"}, 406, "Expecting 'Accept' to allow"},
		{"accept of a stream", "POST", `{"type":"SUBSCRIBE"}`, []string{sendJSON, "Accept: application/recordio"}, 406, "Expecting 'Accept' to allow"},
		{"unknown call", "POST", `{"type":"UNKNOWN"}`, []string{sendJSON}, 501, ""},
		{"error with a status", "POST", `{"type":"MARK_AGENT_GONE","mark_agent_gone":{"agent_id":{"value":"a"}}}`, []string{sendJSON}, 404, "Agent is unknown"},
		{"error without a status", "POST", `{"type":"GET_METRICS","get_metrics":{}}`, []string{sendJSON}, 500, "disk on fire"},
		{"empty answer", "POST", `{"type":"TEARDOWN","teardown":{"framework_id":{"value":"f"}}}`, []string{sendJSON}, 200, ""},
		{"answer to come", "POST", `{"type":"RESERVE_RESOURCES","reserve_resources":{"agent_id":{"value":"a"},"resources":` + resource + `}}`, []string{sendJSON}, 202, ""},
		{"answer", "POST", `{"type":"GET_HEALTH"}`, []string{sendJSON}, 200, `{"type":"GET_HEALTH","get_health":{"healthy":true}}`},
	} {
		resp, body := do(t, request(t, c.method, server.URL+"/api/v1", c.body, c.headers...))
		if resp.StatusCode != c.status || !strings.Contains(body, c.text) {
			t.Errorf("%s: %d %q, want %d %q", c.what, resp.StatusCode, body, c.status, c.text)
		}
		if c.text == "" && (body != "" || resp.Header.Get("Content-Length") != "0" || resp.Header["Content-Type"] != nil) {
			t.Errorf("%s: %q, headers %v; want nothing", c.what, body, resp.Header)
		}
	}
}

func TestOperatorAnswersInWhatIsAccepted(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	want := &masterv1.Response{
		Type:      masterv1.Response_GET_HEALTH.Enum(),
		GetHealth: &masterv1.Response_GetHealth{Healthy: proto.Bool(true)},
	}
	call := &masterv1.Call{Type: masterv1.Call_GET_HEALTH.Enum()}
	for _, in := range []codec.Type{codec.JSON, codec.Protobuf} {
		for _, out := range []codec.Type{codec.JSON, codec.Protobuf} {
			resp, body := do(t, request(t, "POST", server.URL+"/api/v1", encode(t, in, call), "Content-Type: "+in.String(), "Accept: "+out.String()))
			if got := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || got != out.String() {
				t.Errorf("%v to %v: %d %q", in, out, resp.StatusCode, got)
			}
			var got masterv1.Response
			if err := codec.Unmarshal(out, []byte(body), &got); err != nil || !proto.Equal(&got, want) {
				t.Errorf("%v to %v: %v, %v; want %v", in, out, &got, err, want)
			}
		}
	}
}

// TestEveryMasterCallIsChecked sends each type without what it needs, and each with.
func TestEveryMasterCallIsChecked(t *testing.T) {
	m := newFakeMaster()
	var got []masterv1.Call_Type
	m.onOperator = func(c *masterv1.Call) (*masterv1.Response, error) {
		got = append(got, c.GetType())
		return nil, nil
	}
	server := serveMaster(t, m)
	fields := (&masterv1.Call{}).ProtoReflect().Descriptor().Fields()
	for number, name := range masterv1.Call_Type_name {
		field := fields.ByTextName(strings.ToLower(name))
		switch name {
		case "UNKNOWN", "SUBSCRIBE", "LIST_FILES", "READ_FILE":
			continue
		}
		got = nil
		resp, body := do(t, request(t, "POST", server.URL+"/api/v1", fmt.Sprintf(`{"type":%q}`, name), sendJSON))
		switch {
		case field == nil && (resp.StatusCode != 200 || len(got) != 1 || got[0] != masterv1.Call_Type(number)):
			t.Errorf("%s alone: %d %q and the master got %v, want 200 and the call", name, resp.StatusCode, body, got)
		case field != nil && (resp.StatusCode != 400 || len(got) != 0):
			t.Errorf("%s alone: %d %q and the master got %v, want 400 and nothing", name, resp.StatusCode, body, got)
		}
	}
}

func TestTheOperatorsStreamBegins(t *testing.T) {
	m := newFakeMaster()
	server := serveMaster(t, m)
	transport := &http.Transport{DisableCompression: true}
	resp, err := transport.RoundTrip(request(t, "POST", server.URL+"/api/v1", `{"type":"SUBSCRIBE"}`, sendJSON, wantJSON, "Accept-Encoding: gzip"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Content-Encoding") != "" || resp.Header.Get("Mesos-Stream-Id") != "" {
		t.Errorf("answer %d %v", resp.StatusCode, resp.Header)
	}
	r := recordio.NewReader(resp.Body, 0)
	for _, want := range []string{`{"type":"SUBSCRIBED","subscribed":{"heartbeat_interval_seconds":15.0}}`, `{"type":"HEARTBEAT"}`} {
		if got, err := r.Next(); err != nil || string(got) != want {
			t.Errorf("record %s, %v; want %s", got, err, want)
		}
	}
	m.mu.Lock()
	stream := m.operators[0]
	m.mu.Unlock()
	stream.Send(&masterv1.Event{
		Type:         masterv1.Event_AGENT_REMOVED.Enum(),
		AgentRemoved: &masterv1.Event_AgentRemoved{AgentId: &mesosv1.AgentID{Value: proto.String("a")}},
	})
	stream.Close()
	if got, err := r.Next(); err != nil || string(got) != `{"type":"AGENT_REMOVED","agent_removed":{"agent_id":{"value":"a"}}}` {
		t.Errorf("record %s, %v", got, err)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("after Close: %v, want the end", err)
	}
}

func TestLongAnswersAreCompressedWhenAsked(t *testing.T) {
	m := newFakeMaster()
	server := serveMaster(t, m)
	for _, c := range []struct {
		length int
		accept string
		want   bool
	}{{1023, "gzip", false}, {1024, "gzip", true}, {1 << 20, "gzip, deflate", true}, {1 << 20, "deflate", false}, {1 << 20, "gzip;q=0", false}} {
		m.mu.Lock()
		m.metrics = `{"` + strings.Repeat("x", c.length-len(`{"":1.0}`)) + `":1.0}`
		want := m.metrics
		m.mu.Unlock()
		resp, body := do(t, request(t, "GET", server.URL+"/metrics/snapshot", "", "Accept-Encoding: "+c.accept))
		if got := resp.Header.Get("Content-Encoding") == "gzip"; got != c.want {
			t.Errorf("%d bytes, Accept-Encoding %q: compressed %v, want %v", c.length, c.accept, got, c.want)
			continue
		}
		if c.want {
			z, err := gzip.NewReader(strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			plain, err := io.ReadAll(z)
			if err != nil {
				t.Fatal(err)
			}
			body = string(plain)
		} else if resp.ContentLength != int64(c.length) {
			t.Errorf("%d bytes: Content-Length %d", c.length, resp.ContentLength)
		}
		if body != want {
			t.Errorf("%d bytes, Accept-Encoding %q: the body is not what the master made", c.length, c.accept)
		}
	}
}

func TestPathsLeadWhereMesossLead(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	for _, c := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/state", 200, `{"endpoint":"/state"}`},
		{"GET", "/master/state", 200, `{"endpoint":"/state"}`},
		{"GET", "/master/state/", 200, `{"endpoint":"/state"}`},
		{"POST", "/master/state", 200, `{"endpoint":"/state"}`},
		{"DELETE", "/roles", 200, `{"endpoint":"/roles"}`},
		{"GET", "/slaves/S0", 200, `{"endpoint":"/slaves"}`},
		{"GET", "/master/frameworks/", 200, `{"endpoint":"/frameworks"}`},
		{"GET", "/frameworks?framework_id=f", 200, `{"endpoint":"/frameworks","framework_id":"f"}`},
		{"GET", "/state-summary", 200, `{"endpoint":"/state-summary"}`},
		{"GET", "/tasks?jsonp=angular.callbacks._0", 200, `angular.callbacks._0({"endpoint":"/tasks"});`},
		{"GET", "/tasks?jsonp=alert(1)//", 400, "Invalid 'jsonp' parameter"},
		{"GET", "/metrics/snapshot?timeout=never", 400, "Failed to parse timeout"},
		{"POST", "/api/v1/operator", 400, "Expecting 'Content-Type' to be present"},
		{"POST", "/master/api/v1/", 400, "Expecting 'Content-Type' to be present"},
		{"GET", "/", 200, ""},
		{"GET", "/master", 200, ""},
		{"GET", "/health", 200, ""},
		{"GET", "/master/health", 200, ""},
		{"GET", "/version", 200, `{"version":"1.12.0","build_date":"2026-01-01","build_time":1767225600.0,"build_user":"mosaic"}`},
		{"GET", "/redirect/to", 404, "Not found: /redirect/to"},
		{"GET", "/statement", 404, "Not found: /statement"},
		{"GET", "/masterstate", 404, "Not found"},
		{"GET", "/slave(1)/state", 404, "Not found"},
		{"GET", "//state", 404, "Not found"},
	} {
		resp, body := do(t, request(t, c.method, server.URL+c.path, ""))
		if resp.StatusCode != c.status || body != c.body && (c.status == 200 || !strings.Contains(body, c.body)) {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.path, resp.StatusCode, body, c.status, c.body)
		}
	}
	for path, want := range map[string]string{"/state": "application/json", "/state?jsonp=f": "text/javascript", "/nothing": "text/plain; charset=utf-8"} {
		if resp, _ := do(t, request(t, "GET", server.URL+path, "")); resp.Header.Get("Content-Type") != want {
			t.Errorf("GET %s: Content-Type %q, want %q", path, resp.Header.Get("Content-Type"), want)
		}
	}
	agent := serveAgent(t, newFakeAgent())
	for _, path := range []string{"/slave(1)/state", "/slave%281%29/state", "/state"} {
		if resp, body := do(t, request(t, "GET", agent.URL+path, "")); resp.StatusCode != 200 || body != `{"endpoint":"/state"}` {
			t.Errorf("agent GET %s: %d %q", path, resp.StatusCode, body)
		}
	}
}

func TestABugAnswers500AndTheServerGoesOn(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	resp, body := do(t, request(t, "POST", server.URL+"/api/v1/scheduler", `{"type":"SUBSCRIBE","subscribe":{"framework_info":{"user":"u","name":"panic"}}}`, sendJSON))
	if resp.StatusCode != 500 || body != "Internal error" {
		t.Errorf("%d %q, want 500 and nothing about the bug", resp.StatusCode, body)
	}
	if resp, _ := do(t, request(t, "GET", server.URL+"/health", "")); resp.StatusCode != 200 {
		t.Errorf("/health afterwards: %d", resp.StatusCode)
	}
}

type authenticator func(*http.Request) (string, error)

func (a authenticator) Authenticate(r *http.Request) (string, error) { return a(r) }

type approver func(principal, action, object string) error

func (a approver) Approve(_ context.Context, principal, action, object string) error {
	return a(principal, action, object)
}

func TestRealmsAreAuthenticatedApart(t *testing.T) {
	m := newFakeMaster()
	server := serveMaster(t, m, func(c *api.Config, _ *api.MasterDeps) {
		c.Authenticators = map[string]api.Authenticator{
			api.RealmScheduler: authenticator(func(r *http.Request) (string, error) {
				name, password, _ := r.BasicAuth()
				switch {
				case name == "claims":
					return "", httpError{403, "A principal without a value"}
				case password != "secret":
					return "", errors.New("wrong name or word")
				}
				return name, nil
			}),
		}
	})
	post := func(auth ...string) (*http.Response, string) {
		return do(t, request(t, "POST", server.URL+"/api/v1/scheduler", `{"type":"REVIVE","framework_id":{"value":"x"}}`, append(auth, sendJSON)...))
	}
	if resp, body := post(); resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") != `Basic realm="mesos-master-scheduler"` || !strings.Contains(body, "wrong name") {
		t.Errorf("anonymous: %d %v %q, want 401 and the challenge", resp.StatusCode, resp.Header, body)
	}
	if resp, body := post("Authorization: Basic Y2xhaW1zOng="); resp.StatusCode != 403 { // claims:x
		t.Errorf("claims without a value: %d %q, want 403", resp.StatusCode, body)
	}
	if resp, body := post("Authorization: Basic YWxpY2U6c2VjcmV0"); resp.StatusCode != 400 || body != "Framework cannot be found" { // alice:secret
		t.Errorf("alice: %d %q, want to get through", resp.StatusCode, body)
	}
	if resp, _ := do(t, request(t, "GET", server.URL+"/state", "", "Authorization: Basic Og==")); resp.StatusCode != 200 {
		t.Errorf("a realm without an authenticator: %d, want 200", resp.StatusCode)
	}
	r := request(t, "POST", server.URL+"/api/v1/scheduler", `{"type":"SUBSCRIBE","subscribe":{"framework_info":{"user":"u","name":"refused"}}}`, sendJSON)
	r.SetBasicAuth("alice", "secret")
	do(t, r)
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.principals) != 1 || m.principals[0] != "alice" {
		t.Errorf("the master was told of %q, want alice", m.principals)
	}
}

func TestMetricsCountByRouteAndCode(t *testing.T) {
	registry := prometheus.NewRegistry()
	server := serveMaster(t, newFakeMaster(), func(c *api.Config, _ *api.MasterDeps) { c.Metrics = registry })
	serveAgent(t, newFakeAgent(), func(c *api.Config, _ *api.AgentDeps) { c.Metrics = registry }) // one process, one registry
	do(t, request(t, "GET", server.URL+"/master/state", ""))
	do(t, request(t, "GET", server.URL+"/no/such/path", ""))
	resp, body := do(t, request(t, "GET", server.URL+"/metrics", ""))
	for _, want := range []string{
		`mosaic_api_requests_total{code="200",route="/state"} 1`,
		`mosaic_api_requests_total{code="404",route="none"} 1`,
		`mosaic_api_request_seconds_count{route="/state"} 1`,
	} {
		if resp.StatusCode != 200 || !strings.Contains(body, want) {
			t.Errorf("/metrics: %d, without %s:\n%s", resp.StatusCode, want, body)
		}
	}
	if resp, body := do(t, request(t, "GET", server.URL+"/metrics/snapshot", "")); !json.Valid([]byte(body)) || resp.StatusCode != 200 {
		t.Errorf("/metrics/snapshot: %d %q, want Mesos's JSON", resp.StatusCode, body)
	}
}

func TestModulesAreShownAsTheProgramDescribesThem(t *testing.T) {
	rows := []map[string]any{{"name": "cgroups", "restarts": 2}}
	server := serveAgent(t, newFakeAgent(), func(_ *api.Config, d *api.AgentDeps) { d.Modules = func() any { return rows } })
	resp, body := do(t, request(t, "GET", server.URL+"/modules", ""))
	if want := `[{"name":"cgroups","restarts":2}]`; resp.StatusCode != 200 || body != want || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("/modules: %d %s, want %s", resp.StatusCode, body, want)
	}
	none := serveAgent(t, newFakeAgent())
	if resp, _ := do(t, request(t, "GET", none.URL+"/modules", "")); resp.StatusCode != 404 {
		t.Errorf("/modules where there are none to show: %d, want 404", resp.StatusCode)
	}
}

func TestHelpListsEveryRoute(t *testing.T) {
	m := api.NewMaster(testConfig(t), api.MasterDeps{Master: newFakeMaster()})
	_, body := do(t, request(t, "GET", serve(t, m).URL+"/help", ""))
	for _, r := range m.Routes() {
		if !strings.Contains(body, r.Path) || !strings.Contains(body, r.Doc) {
			t.Errorf("/help lacks %s:\n%s", r.Path, body)
		}
	}
}

func TestEveryRouteIsDocumented(t *testing.T) {
	m := api.NewMaster(testConfig(t), api.MasterDeps{Master: newFakeMaster()})
	a := api.NewAgent(testConfig(t), api.AgentDeps{Agent: newFakeAgent()})
	for _, routes := range [][]api.Route{m.Routes(), a.Routes()} {
		if len(routes) < 10 {
			t.Errorf("%d routes", len(routes))
		}
		for _, r := range routes {
			if !strings.HasPrefix(r.Path, "/") || !strings.HasSuffix(r.Doc, ".") {
				t.Errorf("route %q: Doc %q, want a sentence", r.Path, r.Doc)
			}
			if strings.HasPrefix(r.Path, "/api/") && r.Realm == "" {
				t.Errorf("route %q has no realm", r.Path)
			}
		}
	}
}

func TestAClientThatLeavesIsNobodysFault(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := newFakeMaster()
	asked := make(chan struct{})
	m.onOperator = func(*masterv1.Call) (*masterv1.Response, error) {
		close(asked)
		return nil, nil
	}
	var log bytes.Buffer // written by the server only, which has ended when it is read
	waits := waitingMaster{m}
	server := serveMaster(t, m, func(c *api.Config, d *api.MasterDeps) {
		c.Metrics, d.Master = registry, waits
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		r := request(t, "POST", server.URL+"/api/v1", `{"type":"GET_HEALTH"}`, sendJSON).WithContext(ctx)
		resp, err := (&http.Transport{}).RoundTrip(r)
		if err == nil {
			resp.Body.Close()
		}
		left <- err
	}()
	<-asked
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the call that was given up: %v", err)
	}
	server.Close() // waits for the handler
	if strings.Contains(log.String(), "ERROR") {
		t.Errorf("logged %s, want nothing: nothing went wrong", &log)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprint(families); !strings.Contains(text, `value:"499"`) {
		t.Errorf("metrics %s, want the request counted as 499", text)
	}
}

// waitingMaster takes operator calls and waits until whoever made them has left.
type waitingMaster struct{ *fakeMaster }

func (m waitingMaster) OperatorCall(ctx context.Context, principal string, call *masterv1.Call) (*masterv1.Response, error) {
	if _, err := m.fakeMaster.OperatorCall(ctx, principal, call); err != nil {
		return nil, err
	}
	<-ctx.Done()
	return nil, fmt.Errorf("ask the allocator: %w", context.Cause(ctx))
}
