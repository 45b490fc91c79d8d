package api_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

const subscribeBody = `{"type":"SUBSCRIBE","subscribe":{"framework_info":{"user":"root","name":"test"}}}`

// subscription is a test's open stream.
type subscription struct {
	resp    *http.Response
	records *recordio.Reader
	cancel  func()
	mt      codec.Type
}

func (s *subscription) event(t *testing.T) *schedulerv1.Event {
	t.Helper()
	record, err := s.records.Next()
	if err != nil {
		t.Fatalf("next event: %v", err)
	}
	e := new(schedulerv1.Event)
	if err := codec.Unmarshal(s.mt, record, e); err != nil {
		t.Fatalf("event %q: %v", record, err)
	}
	return e
}

func (s *subscription) streamID() string {
	return "Mesos-Stream-Id: " + s.resp.Header.Get("Mesos-Stream-Id")
}

// subscribe opens a stream and reads SUBSCRIBED and the heartbeat behind it.
func subscribe(t *testing.T, server *httptest.Server, mt codec.Type, body string) (*subscription, string) {
	t.Helper()
	s := openStream(t, server, mt, body)
	e := s.event(t)
	if e.GetType() != schedulerv1.Event_SUBSCRIBED {
		t.Fatalf("first event is %v, want SUBSCRIBED", e)
	}
	if h := s.event(t); h.GetType() != schedulerv1.Event_HEARTBEAT {
		t.Fatalf("second event is %v, want HEARTBEAT", h)
	}
	return s, e.GetSubscribed().GetFrameworkId().GetValue()
}

func openStream(t *testing.T, server *httptest.Server, mt codec.Type, body string) *subscription {
	t.Helper()
	r := request(t, "POST", server.URL+"/api/v1/scheduler", body,
		"Content-Type: "+mt.String(), "Accept: "+mt.String(), "Accept-Encoding: gzip", "Connection: close")
	transport := &http.Transport{DisableCompression: true}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return &subscription{resp, recordio.NewReader(resp.Body, 0), func() { resp.Body.Close() }, mt}
}

// TestSchedulerAnswersInMesossOrder: each request is wrong in all the ways behind the one that is named.
func TestSchedulerAnswersInMesossOrder(t *testing.T) {
	m := newFakeMaster()
	server := serveMaster(t, m)
	sub, id := subscribe(t, server, codec.JSON, subscribeBody)
	framework := fmt.Sprintf(`"framework_id":{"value":%q}`, id)
	const uuid = `"WJ5GrPsWRIuwTKjN0vJ7sg=="` // version 4
	for _, c := range []struct {
		what, method, body string
		headers            []string
		status             int
		text               string
	}{
		{"method", "GET", "", nil, 405, "Expecting one of { 'POST' }, but received 'GET'"},
		{"no content type", "POST", "x", nil, 400, "Expecting 'Content-Type' to be present"},
		{"wrong content type", "POST", "x", []string{"Content-Type: text/plain"}, 415, "Expecting 'Content-Type' of application/json or application/x-protobuf"},
		{"wrong encoding", "POST", "x", []string{sendJSON, "Content-Encoding: br"}, 415, "Content-Encoding"},
		{"body is no JSON", "POST", "x", []string{sendJSON, "Accept: text/html"}, 400, "Failed to convert JSON into scheduler::Call protobuf: unexpected character at byte 0"},
		{"body is no protobuf", "POST", "x", []string{sendProtobuf}, 400, "Failed to parse body into scheduler::Call protobuf: malformed protobuf"},
		{"empty JSON body", "POST", "", []string{sendJSON}, 400, "got end of text"},
		{"empty protobuf body", "POST", "", []string{sendProtobuf}, 400, "Expecting 'type' to be present"},
		{"no type", "POST", `{}`, []string{sendJSON}, 400, "Failed to validate scheduler::Call: Expecting 'type' to be present"},
		{"type of another time", "POST", `{"type":"LATER"}`, []string{sendJSON}, 400, "Expecting 'type' to be present"},
		{"no subscribe", "POST", `{"type":"SUBSCRIBE"}`, []string{sendJSON}, 400, "Expecting 'subscribe' to be present"},
		{"required field", "POST", `{"type":"SUBSCRIBE","subscribe":{}}`, []string{sendJSON}, 400, "subscribe.framework_info: missing required field"},
		{"ids that differ", "POST", `{"framework_id":{"value":"a"},"type":"SUBSCRIBE","subscribe":{"framework_info":{"user":"u","name":"n"}}}`, []string{sendJSON}, 400, "'framework_id' differs from 'subscribe.framework_info.id'"},
		{"ids that differ the other way", "POST", `{"type":"SUBSCRIBE","subscribe":{"framework_info":{"id":{"value":"a"},"user":"u","name":"n"}}}`, []string{sendJSON}, 400, "differs"},
		{"no framework id", "POST", `{"type":"DECLINE"}`, []string{sendJSON}, 400, "Expecting 'framework_id' to be present"},
		{"no decline", "POST", `{"type":"DECLINE","framework_id":{"value":"x"}}`, []string{sendJSON}, 400, "Expecting 'decline' to be present"},
		{"no message of the type, though others", "POST", `{"type":"ACCEPT","framework_id":{"value":"x"},"decline":{}}`, []string{sendJSON}, 400, "Expecting 'accept' to be present"},
		{"uuid too short", "POST", `{"type":"ACKNOWLEDGE","framework_id":{"value":"x"},"acknowledge":{"agent_id":{"value":"a"},"task_id":{"value":"t"},"uuid":"AAAA"}}`, []string{sendJSON}, 400, "Not a valid UUID: got 3 bytes, want 16"},
		{"uuid of no version", "POST", `{"type":"ACKNOWLEDGE","framework_id":{"value":"x"},"acknowledge":{"agent_id":{"value":"a"},"task_id":{"value":"t"},"uuid":"AAAAAAAAAAAAAAAAAAAAAA=="}}`, []string{sendJSON}, 400, "unknown version or variant"},
		{"operation acknowledged without an agent", "POST", `{"type":"ACKNOWLEDGE_OPERATION_STATUS","framework_id":{"value":"x"},"acknowledge_operation_status":{"uuid":` + uuid + `,"operation_id":{"value":"o"}}}`, []string{sendJSON}, 400, "Expecting 'agent_id' to be present"},
		{"subscribe, not acceptable", "POST", subscribeBody, []string{sendJSON, "Accept: text/html", "Mesos-Stream-Id: x"}, 406, "Expecting 'Accept' to allow application/json or application/x-protobuf"},
		{"reconcile operations, not acceptable", "POST", `{"type":"RECONCILE_OPERATIONS","reconcile_operations":{},` + framework + `}`, []string{sendJSON, "Accept: text/html"}, 406, "Expecting 'Accept'"},
		{"subscribe with a stream id", "POST", subscribeBody, []string{sendJSON, wantJSON, "Mesos-Stream-Id: x"}, 400, "should not include the 'Mesos-Stream-Id' header"},
		{"unknown framework", "POST", `{"type":"REVIVE","framework_id":{"value":"x"}}`, []string{sendJSON}, 400, "Framework cannot be found"},
		{"no stream id", "POST", `{"type":"REVIVE",` + framework + `}`, []string{sendJSON}, 400, "stream ID"},
		{"empty stream id", "POST", `{"type":"REVIVE",` + framework + `}`, []string{sendJSON, "Mesos-Stream-Id: "}, 400, "stream ID"},
		{"wrong stream id", "POST", `{"type":"REVIVE",` + framework + `}`, []string{sendJSON, "Mesos-Stream-Id: y"}, 400, "stream ID"},
		{"refused by the master", "POST", `{"type":"SUBSCRIBE","subscribe":{"framework_info":{"user":"root","name":"too many"}}}`, []string{sendJSON}, 429, "Too many frameworks"},
		{"unknown call", "POST", `{"type":"UNKNOWN",` + framework + `}`, []string{sendJSON, sub.streamID()}, 501, ""},
		{"revive", "POST", `{"type":"REVIVE",` + framework + `}`, []string{sendJSON, "Accept: text/html", sub.streamID()}, 202, ""},
		{"suppress", "POST", `{"type":"SUPPRESS",` + framework + `}`, []string{sendJSON, sub.streamID()}, 202, ""},
		{"parameters of the content type", "POST", `{"type":"TEARDOWN",` + framework + `}`, []string{sendJSON + "; charset=utf-8", sub.streamID()}, 202, ""},
		{"decline of nothing", "POST", `{"type":"DECLINE","decline":{},` + framework + `}`, []string{sendJSON, sub.streamID()}, 202, ""},
		{"acknowledge", "POST", `{"type":"ACKNOWLEDGE","acknowledge":{"agent_id":{"value":"a"},"task_id":{"value":"t"},"uuid":` + uuid + `},` + framework + `}`, []string{sendJSON, sub.streamID()}, 202, ""},
		{"update", "POST", `{"type":"UPDATE_FRAMEWORK","update_framework":{"framework_info":{"id":{"value":"` + id + `"},"user":"u","name":"n"}},` + framework + `}`, []string{sendJSON, sub.streamID()}, 200, ""},
		{"a needless Authorization header", "POST", `{"type":"REVIVE",` + framework + `}`, []string{sendJSON, "Authorization: Basic Og==", sub.streamID()}, 202, ""},
	} {
		resp, body := do(t, request(t, c.method, server.URL+"/api/v1/scheduler", c.body, c.headers...))
		if resp.StatusCode != c.status || !strings.Contains(body, c.text) {
			t.Errorf("%s: %d %q, want %d %q", c.what, resp.StatusCode, body, c.status, c.text)
			continue
		}
		if c.text == "" {
			if body != "" || resp.Header.Get("Content-Length") != "0" || resp.Header["Content-Type"] != nil {
				t.Errorf("%s: body %q, headers %v; want Content-Length 0 and no Content-Type", c.what, body, resp.Header)
			}
		} else if got := resp.Header.Get("Content-Type"); got != "text/plain; charset=utf-8" {
			t.Errorf("%s: Content-Type %q, want text/plain; charset=utf-8", c.what, got)
		}
		if got := resp.Header.Get("Allow"); (c.status == 405) != (got == "POST") {
			t.Errorf("%s: Allow %q", c.what, got)
		}
	}
}

func TestProtobufAndJSONCallsArriveAlike(t *testing.T) {
	m := newFakeMaster()
	server := serveMaster(t, m)
	for _, mt := range []codec.Type{codec.JSON, codec.Protobuf} {
		sub, id := subscribe(t, server, mt, encode(t, mt, &schedulerv1.Call{
			Type: schedulerv1.Call_SUBSCRIBE.Enum(),
			Subscribe: &schedulerv1.Call_Subscribe{
				FrameworkInfo: &mesosv1.FrameworkInfo{User: proto.String("u"), Name: proto.String("n")},
			},
		}))
		call := &schedulerv1.Call{
			FrameworkId: &mesosv1.FrameworkID{Value: proto.String(id)},
			Type:        schedulerv1.Call_KILL.Enum(),
			Kill:        &schedulerv1.Call_Kill{TaskId: &mesosv1.TaskID{Value: proto.String("t")}},
		}
		resp, body := do(t, request(t, "POST", server.URL+"/api/v1/scheduler", encode(t, mt, call), "Content-Type: "+mt.String(), sub.streamID()))
		if resp.StatusCode != 202 {
			t.Fatalf("%v: %d %q, want 202", mt, resp.StatusCode, body)
		}
		m.mu.Lock()
		got := m.calls[len(m.calls)-1]
		m.mu.Unlock()
		if !proto.Equal(got, call) {
			t.Errorf("%v: the master got %v, want %v", mt, got, call)
		}
	}
}

func TestSubscribeAnswersWithAnEndlessChunkedStream(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	for _, mt := range []codec.Type{codec.JSON, codec.Protobuf} {
		sub, _ := subscribe(t, server, mt, string(encodeSubscribe(t, mt)))
		resp := sub.resp
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != mt.String() {
			t.Errorf("%v: %d %q, want 200 and exactly the media type", mt, resp.StatusCode, resp.Header.Get("Content-Type"))
		}
		if len(resp.TransferEncoding) != 1 || resp.TransferEncoding[0] != "chunked" {
			t.Errorf("%v: transfer encoding %v, want chunked", mt, resp.TransferEncoding)
		}
		if resp.Header.Get("Content-Encoding") != "" {
			t.Errorf("%v: content encoding %q, want none on a stream", mt, resp.Header.Get("Content-Encoding"))
		}
		if id := resp.Header.Get("Mesos-Stream-Id"); len(id) != 36 {
			t.Errorf("%v: Mesos-Stream-Id %q, want a UUID", mt, id)
		}
	}
}

func encodeSubscribe(t *testing.T, mt codec.Type) string {
	return encode(t, mt, &schedulerv1.Call{
		Type: schedulerv1.Call_SUBSCRIBE.Enum(),
		Subscribe: &schedulerv1.Call_Subscribe{
			FrameworkInfo: &mesosv1.FrameworkInfo{User: proto.String("u"), Name: proto.String("n")},
		},
	})
}

// Clients of the time split the stream at line feeds, and read the bytes themselves.
func TestTheBytesOfASubscriptionAreMesoss(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /api/v1/scheduler HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\naccept: application/json\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(subscribeBody), subscribeBody)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	const subscribed = `{"type":"SUBSCRIBED","subscribed":{"framework_id":{"value":"fake-0000"},"heartbeat_interval_seconds":15.0}}`
	want := fmt.Sprintf("%d\n%s20\n{\"type\":\"HEARTBEAT\"}", len(subscribed), subscribed)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != want {
		t.Errorf("the stream begins %q, %v; want %q", got, err, want)
	}
}

func TestARefusalIsAnErrorEventOnAClosedStream(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	s := openStream(t, server, codec.JSON, `{"type":"SUBSCRIBE","subscribe":{"framework_info":{"user":"root","name":"refused"}}}`)
	if s.resp.StatusCode != 200 {
		t.Errorf("status %d, want 200", s.resp.StatusCode)
	}
	if e := s.event(t); e.GetError().GetMessage() != "Framework is not authorized" {
		t.Errorf("event %v, want the ERROR", e)
	}
	if record, err := s.records.Next(); err != io.EOF {
		t.Errorf("after the ERROR came %q, %v; want the stream's proper end", record, err)
	}
}

func TestFailoverEndsTheOldStream(t *testing.T) {
	m := newFakeMaster()
	server := serveMaster(t, m)
	old, id := subscribe(t, server, codec.JSON, subscribeBody)
	again := fmt.Sprintf(`{"framework_id":{"value":%q},"type":"SUBSCRIBE","subscribe":{"framework_info":{"id":{"value":%q},"user":"root","name":"test"}}}`, id, id)
	now, _ := subscribe(t, server, codec.JSON, again)
	if e := old.event(t); e.GetError().GetMessage() != "Framework failed over" {
		t.Errorf("the old stream got %v, want the ERROR", e)
	}
	if _, err := old.records.Next(); err != io.EOF {
		t.Errorf("the old stream goes on with %v, want its end", err)
	}
	revive := fmt.Sprintf(`{"framework_id":{"value":%q},"type":"REVIVE"}`, id)
	if resp, body := do(t, request(t, "POST", server.URL+"/api/v1/scheduler", revive, sendJSON, old.streamID())); resp.StatusCode != 400 {
		t.Errorf("a call with the old stream's id: %d %q, want 400", resp.StatusCode, body)
	}
	if resp, body := do(t, request(t, "POST", server.URL+"/api/v1/scheduler", revive, sendJSON, now.streamID())); resp.StatusCode != 202 {
		t.Errorf("a call with the new stream's id: %d %q, want 202", resp.StatusCode, body)
	}
}

func TestTheMasterLearnsThatAClientIsGone(t *testing.T) {
	m := newFakeMaster()
	server := serveMaster(t, m)
	sub, id := subscribe(t, server, codec.JSON, subscribeBody)
	m.mu.Lock()
	stream := m.frameworks[id].stream
	m.mu.Unlock()
	select {
	case <-stream.Done():
		t.Fatal("Done is closed while the client reads")
	default:
	}
	sub.cancel()
	select {
	case <-stream.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("Done is not closed 10 s after the client went")
	}
	if stream.Send(&schedulerv1.Event{Type: schedulerv1.Event_HEARTBEAT.Enum()}) {
		t.Error("Send on an ended stream = true, want false")
	}
	stream.Close() // harmless
}

func TestOnlyARecoveredLeaderAnswers(t *testing.T) {
	m := newFakeMaster()
	server := serveMaster(t, m)
	for _, c := range []struct {
		leads, recovered bool
		addr, path       string
		status           int
		location, text   string
	}{
		{false, false, "10.0.0.1:5050", "/api/v1/scheduler", 307, "//10.0.0.1:5050/api/v1/scheduler", ""},
		{false, false, "10.0.0.1:5050", "/master/state?jsonp=a%20b&x=1", 307, "//10.0.0.1:5050/master/state?jsonp=a%20b&x=1", ""},
		{false, false, "10.0.0.1:5050", "/api/v1", 307, "//10.0.0.1:5050/api/v1", ""},
		{false, false, "10.0.0.1:5050", "/redirect", 307, "//10.0.0.1:5050", ""},
		{false, false, "10.0.0.1:5050", "/master/redirect", 307, "//10.0.0.1:5050", ""},
		{true, true, "10.0.0.1:5050", "/redirect", 307, "//10.0.0.1:5050", ""},
		{false, false, "", "/redirect", 503, "", "No leader elected"},
		{false, false, "", "/api/v1/scheduler", 503, "", "No leader elected"},
		{false, false, "", "/tasks", 503, "", "No leader elected"},
		{true, false, "", "/api/v1/scheduler", 503, "", "Master has not finished recovery"},
		{true, false, "", "/state-summary", 503, "", "Master has not finished recovery"},
		{false, false, "", "/health", 200, "", ""},
		{false, false, "", "/version", 200, "", "1.12.0"},
		{false, false, "", "/flags", 200, "", "/flags"},
		{false, false, "", "/metrics/snapshot", 200, "", "master/elected"},
	} {
		m.setLeader(c.leads, c.recovered, c.addr)
		// GET is the wrong method for half of them: who does not lead says so first.
		resp, body := do(t, request(t, "GET", server.URL+c.path, ""))
		if resp.StatusCode != c.status || resp.Header.Get("Location") != c.location || !strings.Contains(body, c.text) {
			t.Errorf("GET %s with leads=%v recovered=%v leader=%q: %d Location %q %q; want %d %q %q", c.path,
				c.leads, c.recovered, c.addr, resp.StatusCode, resp.Header.Get("Location"), body, c.status, c.location, c.text)
		}
	}
}
