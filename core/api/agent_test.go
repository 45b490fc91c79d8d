package api_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/api"
	"github.com/mosaic-cluster/mosaic/core/api/codec"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

const (
	executorIDs       = `"executor_id":{"value":"e"},"framework_id":{"value":"f"}`
	executorSubscribe = `{"type":"SUBSCRIBE","subscribe":{},` + executorIDs + `}`
	uuidV4            = `"WJ5GrPsWRIuwTKjN0vJ7sg=="`
)

func executorUpdate(status string) string {
	return `{"type":"UPDATE","update":{"status":{"task_id":{"value":"t"},` + status + `}},` + executorIDs + `}`
}

func TestExecutorAnswersInMesossOrder(t *testing.T) {
	a := newFakeAgent()
	server := serveAgent(t, a)
	running := executorUpdate(`"state":"TASK_RUNNING","source":"SOURCE_EXECUTOR","uuid":` + uuidV4)
	for _, c := range []struct {
		what, method, body string
		headers            []string
		status             int
		text               string
	}{
		{"method", "GET", "", nil, 405, "Expecting one of { 'POST' }, but received 'GET'"},
		{"no content type", "POST", "x", nil, 400, "Expecting 'Content-Type' to be present"},
		{"wrong content type", "POST", "x", []string{"Content-Type: text/xml"}, 415, "Expecting 'Content-Type'"},
		{"body", "POST", "[]", []string{sendJSON}, 400, "got a list, want an object"},
		{"executor id", "POST", `{"type":"SUBSCRIBE","subscribe":{},"framework_id":{"value":"f"}}`, []string{sendJSON}, 400, "executor_id: missing required field"},
		{"type", "POST", `{` + executorIDs + `}`, []string{sendJSON}, 400, "Failed to validate executor::Call: Expecting 'type' to be present"},
		{"message", "POST", `{"type":"SUBSCRIBE",` + executorIDs + `}`, []string{sendJSON}, 400, "Expecting 'subscribe' to be present"},
		{"accept", "POST", executorSubscribe, []string{sendJSON, "Accept: text/html"}, 406, "Expecting 'Accept' to allow"},
		{"no uuid", "POST", executorUpdate(`"state":"TASK_RUNNING","source":"SOURCE_EXECUTOR"`), []string{sendJSON}, 400, "Expecting 'uuid' to be present"},
		{"no valid uuid", "POST", executorUpdate(`"state":"TASK_RUNNING","source":"SOURCE_EXECUTOR","uuid":"AAAA"`), []string{sendJSON}, 400, "Not a valid UUID"},
		{"source", "POST", executorUpdate(`"state":"TASK_RUNNING","uuid":` + uuidV4), []string{sendJSON}, 400, "invalid source, expecting 'SOURCE_EXECUTOR'"},
		{"staging", "POST", executorUpdate(`"state":"TASK_STAGING","source":"SOURCE_EXECUTOR","uuid":` + uuidV4), []string{sendJSON}, 400, "Received TASK_STAGING"},
		{"another executor", "POST", executorUpdate(`"state":"TASK_RUNNING","source":"SOURCE_EXECUTOR","executor_id":{"value":"g"},"uuid":` + uuidV4), []string{sendJSON}, 400, "ExecutorID in Call: e does not match"},
		{"framework unknown", "POST", `{"type":"SUBSCRIBE","subscribe":{},"executor_id":{"value":"e"},"framework_id":{"value":"unknown"}}`, []string{sendJSON}, 400, "Framework cannot be found"},
		{"not subscribed", "POST", running, []string{sendJSON}, 403, "Executor is not subscribed"},
		{"heartbeat", "POST", `{"type":"HEARTBEAT",` + executorIDs + `}`, []string{sendJSON}, 202, ""},
	} {
		resp, body := do(t, request(t, c.method, server.URL+"/api/v1/executor", c.body, c.headers...))
		if resp.StatusCode != c.status || !strings.Contains(body, c.text) {
			t.Errorf("%s: %d %q, want %d %q", c.what, resp.StatusCode, body, c.status, c.text)
		}
	}

	resp, err := http.DefaultTransport.RoundTrip(request(t, "POST", server.URL+"/slave(1)/api/v1/executor", executorSubscribe, sendJSON, wantJSON))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := recordio.NewReader(resp.Body, 0)
	for _, want := range []string{"SUBSCRIBED", "HEARTBEAT"} {
		if got, err := r.Next(); err != nil || !strings.HasPrefix(string(got), `{"type":"`+want+`"`) {
			t.Fatalf("record %s, %v; want %s", got, err, want)
		}
	}
	for body, status := range map[string]int{
		running:                                  202,
		`{"type":"UNKNOWN",` + executorIDs + `}`: 501,
		`{"type":"MESSAGE","message":{"data":"AAAA"},` + executorIDs + `}`: 202,
	} {
		if resp, text := do(t, request(t, "POST", server.URL+"/api/v1/executor", body, sendJSON)); resp.StatusCode != status || text != "" {
			t.Errorf("%s once subscribed: %d %q, want %d", body, resp.StatusCode, text, status)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.updates) != 3 {
		t.Errorf("the agent got %d calls, want 3", len(a.updates))
	}
}

func TestARecoveringAgentAnswers503(t *testing.T) {
	a := newFakeAgent()
	a.recovered = false
	server := serveAgent(t, a)
	for path, want := range map[string]int{
		"/api/v1/executor": 503, "/api/v1": 503, "/state": 503, "/containers": 503, "/monitor/statistics": 503,
		"/health": 200, "/version": 200, "/flags": 200, "/metrics/snapshot": 200, "/": 200,
	} {
		if resp, body := do(t, request(t, "GET", server.URL+path, "")); resp.StatusCode != want {
			t.Errorf("GET %s: %d %q, want %d", path, resp.StatusCode, body, want)
		}
	}
}

func TestAgentsOperatorAPIChoosesMediaTypesAsMesosDoes(t *testing.T) {
	server := serveAgent(t, newFakeAgent())
	const (
		health     = `{"type":"GET_HEALTH"}`
		attachOut  = `{"type":"ATTACH_CONTAINER_OUTPUT","attach_container_output":{"container_id":{"value":"c"}}}`
		recordIO   = "application/recordio"
		inRecordIO = "Content-Type: " + recordIO
		acRecordIO = "Accept: " + recordIO
	)
	for _, c := range []struct {
		what, body string
		headers    []string
		status     int
		text       string
	}{
		{"no content type, nothing acceptable", "x", []string{"Accept: text/html"}, 400, "Expecting 'Content-Type' to be present"},
		{"wrong content type", "x", []string{"Content-Type: text/html", "Accept: text/html"}, 415, "Expecting 'Content-Type'"},
		{"accept before the body", "x", []string{sendJSON, "Accept: text/html"}, 406, "Expecting 'Accept' to allow application/json or application/x-protobuf or application/recordio"},
		{"body", "x", []string{sendJSON}, 400, "Failed to convert JSON into agent::Call protobuf"},
		{"type", "{}", []string{sendJSON}, 400, "Failed to validate agent::Call: Expecting 'type' to be present"},
		{"message type without a stream", health, []string{sendJSON, "Message-Content-Type: application/json"}, 415, "'Message-Content-Type' to be not set"},
		{"message accept without a stream", health, []string{sendJSON, "Message-Accept: application/json"}, 406, "'Message-Accept' to be not set"},
		{"stream without message type", "x", []string{inRecordIO}, 400, "'Message-Content-Type' to be set"},
		{"stream of something", "x", []string{inRecordIO, "Message-Content-Type: text/html"}, 415, "Expecting 'Message-Content-Type' of"},
		{"stream of what cannot stream", "21\n" + health, []string{inRecordIO, "Message-Content-Type: application/json"}, 415, "not supported for GET_HEALTH call"},
		{"input without a stream", `{"type":"ATTACH_CONTAINER_INPUT","attach_container_input":{}}`, []string{sendJSON}, 415, "Expecting 'Content-Type' to be application/recordio for ATTACH_CONTAINER_INPUT call"},
		{"streamed answer of what cannot stream", health, []string{sendJSON, acRecordIO}, 406, "Streaming response is not supported for GET_HEALTH call"},
		{"streamed answer of something", attachOut, []string{sendJSON, acRecordIO, "Message-Accept: text/html"}, 406, "Expecting 'Message-Accept' to allow"},
		{"no container", `{"type":"WAIT_CONTAINER","wait_container":{"container_id":{"value":""}}}`, []string{sendJSON}, 400, "'wait_container.container_id' is invalid: 'ContainerID.value' must be non-empty"},
		{"container with a dot", `{"type":"KILL_CONTAINER","kill_container":{"container_id":{"value":"a.b"}}}`, []string{sendJSON}, 400, "invalid character"},
		{"parent that is too long", `{"type":"REMOVE_CONTAINER","remove_container":{"container_id":{"value":"a","parent":{"value":"` + strings.Repeat("p", 243) + `"}}}}`, []string{sendJSON}, 400, "at most 242"},
		{"nesting", `{"type":"KILL_CONTAINER","kill_container":{"container_id":` + strings.Repeat(`{"value":"a","parent":`, 40) + `{"value":"a"}` + strings.Repeat(`}`, 40) + `}}`, []string{sendJSON}, 400, "more than 32 levels of nesting"},
		{"no parent", `{"type":"LAUNCH_NESTED_CONTAINER","launch_nested_container":{"container_id":{"value":"a"}}}`, []string{sendJSON}, 400, "Expecting 'launch_nested_container.container_id.parent' to be present"},
		{"unknown container", strings.Replace(attachOut, `"c"`, `"unknown"`, 1), []string{sendJSON}, 404, "Container cannot be found"},
		{"unknown call", `{"type":"UNKNOWN"}`, []string{sendJSON}, 501, ""},
		{"health", health, []string{sendJSON}, 200, `{"type":"GET_HEALTH","get_health":{"healthy":true}}`},
		{"what may do without its message", `{"type":"GET_CONTAINERS"}`, []string{sendJSON}, 200, ""},
		{"already there", `{"type":"LAUNCH_CONTAINER","launch_container":{"container_id":{"value":"c"}}}`, []string{sendJSON}, 202, ""},
	} {
		resp, body := do(t, request(t, "POST", server.URL+"/api/v1", c.body, c.headers...))
		if resp.StatusCode != c.status || !strings.Contains(body, c.text) || c.text == "" && body != "" {
			t.Errorf("%s: %d %q, want %d %q", c.what, resp.StatusCode, body, c.status, c.text)
		}
	}

	output := `{"type":"DATA","data":{"type":"STDOUT","data":"aGVsbG8="}}`
	want := fmt.Sprintf("%d\n%s", len(output), output)
	for _, c := range []struct {
		headers           []string
		mediaType, record string
	}{
		{[]string{sendJSON, wantJSON}, "application/json", ""},
		{[]string{sendJSON, acRecordIO, "Message-Accept: application/json"}, recordIO, "application/json"},
	} {
		resp, body := do(t, request(t, "POST", server.URL+"/api/v1", attachOut, c.headers...))
		if resp.StatusCode != 200 || body != want || resp.Header.Get("Content-Type") != c.mediaType || resp.Header.Get("Message-Content-Type") != c.record {
			t.Errorf("output with %v: %d %q %v, want %q as %s of %q", c.headers, resp.StatusCode, body, resp.Header, want, c.mediaType, c.record)
		}
	}
	session := `{"type":"LAUNCH_NESTED_CONTAINER_SESSION","launch_nested_container_session":{"container_id":{"value":"c","parent":{"value":"p"}},"command":{"value":"hello"}}}`
	if resp, body := do(t, request(t, "POST", server.URL+"/api/v1", session, sendJSON, wantJSON)); resp.StatusCode != 200 || body != want {
		t.Errorf("session: %d %q, want %q", resp.StatusCode, body, want)
	}
	bare := serveAgent(t, newFakeAgent(), func(_ *api.Config, d *api.AgentDeps) { d.ContainerIO = nil })
	if resp, body := do(t, request(t, "POST", bare.URL+"/api/v1", attachOut, sendJSON)); resp.StatusCode != 501 {
		t.Errorf("an agent that cannot attach: %d %q, want 501", resp.StatusCode, body)
	}
}

func TestInputIsAnEndlessUploadThatIsAnsweredAtItsEnd(t *testing.T) {
	a := newFakeAgent()
	server := serveAgent(t, a)
	record := func(mt codec.Type, in *agentv1.Call_AttachContainerInput) string {
		return string(recordio.Append(nil, []byte(encode(t, mt, &agentv1.Call{
			Type: agentv1.Call_ATTACH_CONTAINER_INPUT.Enum(), AttachContainerInput: in,
		}))))
	}
	data := func(text string) *agentv1.Call_AttachContainerInput {
		return &agentv1.Call_AttachContainerInput{
			Type: agentv1.Call_AttachContainerInput_PROCESS_IO.Enum(),
			ProcessIo: &agentv1.ProcessIO{
				Type: agentv1.ProcessIO_DATA.Enum(),
				Data: &agentv1.ProcessIO_Data{Type: agentv1.ProcessIO_Data_STDIN.Enum(), Data: []byte(text)},
			},
		}
	}
	container := func(id string) *agentv1.Call_AttachContainerInput {
		return &agentv1.Call_AttachContainerInput{
			Type: agentv1.Call_AttachContainerInput_CONTAINER_ID.Enum(), ContainerId: containerID(id),
		}
	}
	for _, mt := range []codec.Type{codec.JSON, codec.Protobuf} {
		headers := []string{"Content-Type: application/recordio", "Message-Content-Type: " + mt.String()}
		// The upload is a pipe: what is written arrives before the upload ends.
		body, upload := io.Pipe()
		r := request(t, "POST", server.URL+"/api/v1", "", headers...)
		r.Body, r.ContentLength = body, -1
		answered := make(chan int, 1)
		go func() {
			resp, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				t.Log(err)
				answered <- 0
				return
			}
			resp.Body.Close()
			answered <- resp.StatusCode
		}()
		fmt.Fprint(upload, record(mt, container("c")), record(mt, data("ls\n")))
		select {
		case got := <-a.fed:
			if got != "ls\n" {
				t.Errorf("%v: the container got %q while the upload goes on", mt, got)
			}
		case status := <-answered:
			t.Fatalf("%v: answered %d before the container was fed", mt, status)
		}
		select {
		case status := <-answered:
			t.Fatalf("%v: answered %d before the upload ended", mt, status)
		default:
		}
		fmt.Fprint(upload, record(mt, data("exit\n")))
		upload.Close()
		if status := <-answered; status != 200 {
			t.Errorf("%v: answered %d, want 200", mt, status)
		}
		if got := <-a.fed; got != "exit\n" {
			t.Errorf("%v: the container got %q at last", mt, got)
		}

		for what, c := range map[string]struct {
			body   string
			status int
		}{
			"nothing":            {"", 400},
			"no record":          {"abc", 400},
			"a huge record":      {"99999999999\n", 400},
			"half a record":      {record(mt, container("c")) + "10\nabc", 400},
			"garbage":            {record(mt, container("c")) + "3\n\xff\xff\xff", 400},
			"input first":        {record(mt, data("x")), 400},
			"no input":           {record(mt, container("c")) + record(mt, container("c")), 400},
			"a bad container id": {record(mt, container("../c")), 400},
			"unknown container":  {record(mt, container("unknown")), 404},
		} {
			if resp, text := do(t, request(t, "POST", server.URL+"/api/v1", c.body, headers...)); resp.StatusCode != c.status {
				t.Errorf("%v: %s: %d %q, want %d", mt, what, resp.StatusCode, text, c.status)
			}
		}
	}
}
