package api_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/api"
	"github.com/mosaic-cluster/mosaic/core/api/codec"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

// containerAgent is a fakeAgent with containers in memory: their ids, and whether they run. What the container "broken"
// is asked for goes wrong; whoever asks for "forbidden" may not.
type containerAgent struct {
	*fakeAgent
	mu       sync.Mutex
	running  map[string]bool          // by path
	attached chan api.ProcessIOStream // streams of clients, as they come
	windows  []string
	waits    chan context.Context // of WAIT_CONTAINER for "long"
	ended    chan struct{}        // closed when what is fed ends
}

func newContainerAgent() *containerAgent {
	return &containerAgent{
		fakeAgent: newFakeAgent(), running: map[string]bool{"root": true}, attached: make(chan api.ProcessIOStream, 16), ended: make(chan struct{}), waits: make(chan context.Context, 1),
	}
}

func serveContainers(t *testing.T, a *containerAgent, change ...func(*api.Config, *api.AgentDeps)) *httptest.Server {
	return serveAgent(t, a.fakeAgent, append(change, func(_ *api.Config, d *api.AgentDeps) { d.Agent, d.ContainerIO = a, a })...)
}

func pathOf(id *mesosv1.ContainerID) string {
	if id.GetParent() == nil {
		return id.GetValue()
	}
	return pathOf(id.GetParent()) + "." + id.GetValue()
}

func (a *containerAgent) check(id *mesosv1.ContainerID) error {
	switch id.GetValue() {
	case "forbidden":
		return httpError{403, "Not authorized"}
	case "broken":
		return errors.New("the shim does not answer")
	}
	return nil
}

func (a *containerAgent) OperatorCall(ctx context.Context, principal string, call *agentv1.Call) (*agentv1.Response, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	missing := httpError{404, "Container cannot be found"}
	launch := func(id *mesosv1.ContainerID) error {
		_, there := a.running[pathOf(id)]
		_, parent := a.running[pathOf(id.GetParent())]
		switch err := a.check(id); {
		case err != nil:
			return err
		case there:
			return httpError{202, "It is there already"}
		case id.GetParent() != nil && !parent:
			return httpError{400, "Failed to launch container: parent container does not exist"}
		}
		a.running[pathOf(id)] = true
		return nil
	}
	end := func(id *mesosv1.ContainerID, remove bool) error {
		runs, there := a.running[pathOf(id)]
		switch err := a.check(id); {
		case err != nil:
			return err
		case remove && runs:
			return httpError{500, "it has not terminated yet"}
		case remove:
			delete(a.running, pathOf(id))
			return nil
		case !there || !runs:
			return missing
		}
		a.running[pathOf(id)] = false
		return nil
	}
	switch call.GetType() {
	case agentv1.Call_LAUNCH_CONTAINER:
		return nil, launch(call.GetLaunchContainer().GetContainerId())
	case agentv1.Call_LAUNCH_NESTED_CONTAINER:
		return nil, launch(call.GetLaunchNestedContainer().GetContainerId())
	case agentv1.Call_KILL_CONTAINER:
		return nil, end(call.GetKillContainer().GetContainerId(), false)
	case agentv1.Call_KILL_NESTED_CONTAINER:
		return nil, end(call.GetKillNestedContainer().GetContainerId(), false)
	case agentv1.Call_REMOVE_CONTAINER:
		return nil, end(call.GetRemoveContainer().GetContainerId(), true)
	case agentv1.Call_REMOVE_NESTED_CONTAINER:
		return nil, end(call.GetRemoveNestedContainer().GetContainerId(), true)
	case agentv1.Call_WAIT_CONTAINER, agentv1.Call_WAIT_NESTED_CONTAINER:
		id := call.GetWaitContainer().GetContainerId()
		if id == nil {
			id = call.GetWaitNestedContainer().GetContainerId()
		}
		if err := a.check(id); err != nil {
			return nil, err
		}
		if id.GetValue() == "long" {
			a.waits <- ctx
			<-ctx.Done()
			return nil, ctx.Err()
		}
		if runs, there := a.running[pathOf(id)]; !there || runs {
			return nil, missing
		}
		if call.GetType() == agentv1.Call_WAIT_CONTAINER {
			return &agentv1.Response{Type: agentv1.Response_WAIT_CONTAINER.Enum(), WaitContainer: &agentv1.Response_WaitContainer{ExitStatus: proto.Int32(256)}}, nil
		}
		return &agentv1.Response{Type: agentv1.Response_WAIT_NESTED_CONTAINER.Enum(), WaitNestedContainer: &agentv1.Response_WaitNestedContainer{ExitStatus: proto.Int32(256)}}, nil
	}
	return a.fakeAgent.OperatorCall(ctx, principal, call)
}

func (a *containerAgent) attach(id *mesosv1.ContainerID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.check(id); err != nil {
		return err
	}
	if id.GetValue() == "files" {
		return httpError{500, "container has no streams to attach to"}
	}
	if !a.running[pathOf(id)] {
		return httpError{404, "Container cannot be found"}
	}
	return nil
}

func (a *containerAgent) AttachOutput(_ context.Context, _ string, id *mesosv1.ContainerID, s api.ProcessIOStream) error {
	if err := a.attach(id); err != nil {
		return err
	}
	a.attached <- s
	return nil
}

func (a *containerAgent) LaunchSession(_ context.Context, _ string, call *agentv1.Call_LaunchNestedContainerSession, s api.ProcessIOStream) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := call.GetContainerId()
	switch err := a.check(id); {
	case err != nil:
		return err
	case !a.running[pathOf(id.GetParent())]:
		return httpError{400, "Failed to launch container: parent container does not exist"}
	}
	a.running[pathOf(id)] = true
	a.attached <- s
	return nil
}

func (a *containerAgent) AttachInput(ctx context.Context, _ string, id *mesosv1.ContainerID, next func(context.Context) (*agentv1.ProcessIO, error)) error {
	if err := a.attach(id); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-a.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		in, err := next(ctx)
		select {
		case <-a.ended:
			return nil
		default:
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if w := in.GetControl().GetTtyInfo().GetWindowSize(); w != nil {
			a.mu.Lock()
			a.windows = append(a.windows, fmt.Sprintf("%dx%d", w.GetRows(), w.GetColumns()))
			a.mu.Unlock()
			continue
		}
		if in.GetType() == agentv1.ProcessIO_DATA {
			a.fed <- string(in.GetData().GetData())
		}
	}
}

// stream returns the stream of the client that attached next.
func (a *containerAgent) stream(t *testing.T) api.ProcessIOStream {
	t.Helper()
	select {
	case s := <-a.attached:
		return s
	case <-time.After(20 * time.Second):
		t.Fatal("nobody attached")
		return nil
	}
}

func nested(path ...string) *mesosv1.ContainerID {
	var id *mesosv1.ContainerID
	for _, v := range path {
		id = &mesosv1.ContainerID{Value: proto.String(v), Parent: id}
	}
	return id
}

var bothTypes = []codec.Type{codec.JSON, codec.Protobuf}

// headersOf are those of a call without a stream in either direction.
func headersOf(mt codec.Type) []string {
	return []string{"Content-Type: " + mt.String(), "Accept: " + mt.String()}
}

// The calls of spec section 2.2 that are about one container, with every code that they may have.
func TestContainerCallsHaveMesossCodes(t *testing.T) {
	type calls map[string]func(id *mesosv1.ContainerID) *agentv1.Call
	launch := calls{
		"LAUNCH_CONTAINER": func(id *mesosv1.ContainerID) *agentv1.Call {
			return &agentv1.Call{Type: agentv1.Call_LAUNCH_CONTAINER.Enum(), LaunchContainer: &agentv1.Call_LaunchContainer{ContainerId: id}}
		},
		"LAUNCH_NESTED_CONTAINER": func(id *mesosv1.ContainerID) *agentv1.Call {
			return &agentv1.Call{Type: agentv1.Call_LAUNCH_NESTED_CONTAINER.Enum(), LaunchNestedContainer: &agentv1.Call_LaunchNestedContainer{ContainerId: id}}
		},
	}
	wait := calls{
		"WAIT_CONTAINER": func(id *mesosv1.ContainerID) *agentv1.Call {
			return &agentv1.Call{Type: agentv1.Call_WAIT_CONTAINER.Enum(), WaitContainer: &agentv1.Call_WaitContainer{ContainerId: id}}
		},
		"WAIT_NESTED_CONTAINER": func(id *mesosv1.ContainerID) *agentv1.Call {
			return &agentv1.Call{Type: agentv1.Call_WAIT_NESTED_CONTAINER.Enum(), WaitNestedContainer: &agentv1.Call_WaitNestedContainer{ContainerId: id}}
		},
	}
	kill := calls{
		"KILL_CONTAINER": func(id *mesosv1.ContainerID) *agentv1.Call {
			return &agentv1.Call{Type: agentv1.Call_KILL_CONTAINER.Enum(), KillContainer: &agentv1.Call_KillContainer{ContainerId: id, Signal: proto.Int32(15)}}
		},
		"KILL_NESTED_CONTAINER": func(id *mesosv1.ContainerID) *agentv1.Call {
			return &agentv1.Call{Type: agentv1.Call_KILL_NESTED_CONTAINER.Enum(), KillNestedContainer: &agentv1.Call_KillNestedContainer{ContainerId: id}}
		},
	}
	remove := calls{
		"REMOVE_CONTAINER": func(id *mesosv1.ContainerID) *agentv1.Call {
			return &agentv1.Call{Type: agentv1.Call_REMOVE_CONTAINER.Enum(), RemoveContainer: &agentv1.Call_RemoveContainer{ContainerId: id}}
		},
		"REMOVE_NESTED_CONTAINER": func(id *mesosv1.ContainerID) *agentv1.Call {
			return &agentv1.Call{Type: agentv1.Call_REMOVE_NESTED_CONTAINER.Enum(), RemoveNestedContainer: &agentv1.Call_RemoveNestedContainer{ContainerId: id}}
		},
	}
	ours := nested("root", "c")
	for _, mt := range bothTypes {
		for _, name := range []string{"_CONTAINER", "_NESTED_CONTAINER"} {
			a := newContainerAgent()
			server := serveContainers(t, a)
			of := func(c calls) func(*mesosv1.ContainerID) *agentv1.Call {
				for n, make := range c {
					if strings.HasSuffix(n, "_NESTED_CONTAINER") == (name == "_NESTED_CONTAINER") {
						return make
					}
				}
				return nil
			}
			for i, c := range []struct {
				call   *agentv1.Call
				status int
				body   string // that the answer holds; "" is no body at all
			}{
				{of(wait)(ours), 404, "cannot be found"},
				{of(kill)(ours), 404, "cannot be found"},
				{of(remove)(ours), 200, ""},
				{of(launch)(ours), 200, ""},
				{of(launch)(ours), 202, ""},
				{of(launch)(nested("nobody", "c")), 400, "parent container does not exist"},
				{of(remove)(ours), 500, "has not terminated"},
				{of(kill)(ours), 200, ""},
				{of(kill)(ours), 404, "cannot be found"},
				{of(wait)(ours), 200, "wait"},
				{of(remove)(ours), 200, ""},
				{of(wait)(ours), 404, "cannot be found"},
				{of(launch)(nested("root", "forbidden")), 403, "Not authorized"},
				{of(wait)(nested("root", "forbidden")), 403, "Not authorized"},
				{of(kill)(nested("root", "forbidden")), 403, "Not authorized"},
				{of(remove)(nested("root", "forbidden")), 403, "Not authorized"},
				{of(kill)(nested("root", "broken")), 500, "the shim does not answer"},
			} {
				resp, body := do(t, request(t, "POST", server.URL+"/api/v1", encode(t, mt, c.call), headersOf(mt)...))
				switch {
				case resp.StatusCode != c.status:
					t.Errorf("%v %d %v: %d %q, want %d", mt, i, c.call.GetType(), resp.StatusCode, body, c.status)
				case c.status > 299 && (!strings.Contains(body, c.body) || resp.Header.Get("Content-Type") != "text/plain; charset=utf-8"):
					t.Errorf("%v %d %v: %q of %q, want a sentence with %q", mt, i, c.call.GetType(), body, resp.Header.Get("Content-Type"), c.body)
				case c.body == "" && (body != "" || resp.ContentLength != 0 || resp.Header.Get("Content-Type") != ""):
					t.Errorf("%v %d %v: %q, want nothing", mt, i, c.call.GetType(), body)
				case c.body == "wait":
					answer := new(agentv1.Response)
					if err := codec.Unmarshal(mt, []byte(body), answer); err != nil || answer.GetType().String() != c.call.GetType().String() ||
						answer.GetWaitContainer().GetExitStatus()+answer.GetWaitNestedContainer().GetExitStatus() != 256 || resp.Header.Get("Content-Type") != mt.String() {
						t.Errorf("%v %d %v: %v, %v", mt, i, c.call.GetType(), answer, err)
					}
				}
			}
		}
	}
}

// The media types of spec section 2.2.
func TestStreamsOfContainersHaveMesossMediaTypes(t *testing.T) {
	a := newContainerAgent()
	a.running["root.c"] = true
	server := serveContainers(t, a)
	const recordIO = "application/recordio"
	output := func(id *mesosv1.ContainerID) *agentv1.Call {
		return &agentv1.Call{Type: agentv1.Call_ATTACH_CONTAINER_OUTPUT.Enum(), AttachContainerOutput: &agentv1.Call_AttachContainerOutput{ContainerId: id}}
	}
	session := func(id *mesosv1.ContainerID) *agentv1.Call {
		return &agentv1.Call{Type: agentv1.Call_LAUNCH_NESTED_CONTAINER_SESSION.Enum(),
			LaunchNestedContainerSession: &agentv1.Call_LaunchNestedContainerSession{ContainerId: id, Command: &mesosv1.CommandInfo{Value: proto.String("sh")}}}
	}
	calls := map[string]struct {
		make func(*mesosv1.ContainerID) *agentv1.Call
		path []string
	}{"ATTACH_CONTAINER_OUTPUT": {output, []string{"root", "c"}}, "LAUNCH_NESTED_CONTAINER_SESSION": {session, []string{"root", "s"}}}
	for name, call := range calls {
		for _, send := range bothTypes {
			for _, take := range bothTypes {
				for _, framed := range []bool{false, true} {
					headers := []string{"Content-Type: " + send.String(), "Accept: " + take.String()}
					if framed {
						headers = []string{"Content-Type: " + send.String(), "Accept: " + recordIO, "Message-Accept: " + take.String()}
					}
					body := encode(t, send, call.make(nested(call.path...)))
					resp, err := http.DefaultTransport.RoundTrip(request(t, "POST", server.URL+"/api/v1", body, headers...))
					if err != nil {
						t.Fatal(err)
					}
					s := a.stream(t)
					sendOutput(s, "hello")
					s.Send(&agentv1.ProcessIO{Type: agentv1.ProcessIO_DATA.Enum(),
						Data: &agentv1.ProcessIO_Data{Type: agentv1.ProcessIO_Data_STDERR.Enum(), Data: []byte("\x00\xff\n")}})
					s.Close()
					r := recordio.NewReader(resp.Body, 0)
					var got []string
					for {
						record, err := r.Next()
						if errors.Is(err, io.EOF) {
							break
						}
						m := new(agentv1.ProcessIO)
						if err == nil {
							err = codec.Unmarshal(take, record, m)
						}
						if err != nil {
							t.Fatalf("%s: %v", name, err)
						}
						got = append(got, m.GetData().GetType().String()+" "+string(m.GetData().GetData()))
					}
					resp.Body.Close()
					if len(got) != 2 || got[0] != "STDOUT hello" || got[1] != "STDERR \x00\xff\n" {
						t.Errorf("%s with %v: got %q", name, headers, got)
					}
					wantType, wantMessage := take.String(), ""
					if framed {
						wantType, wantMessage = recordIO, take.String()
					}
					if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != wantType || resp.Header.Get("Message-Content-Type") != wantMessage {
						t.Errorf("%s with %v: %d %v, want %s of %q", name, headers, resp.StatusCode, resp.Header, wantType, wantMessage)
					}
				}
			}
			for path, want := range map[string]int{"root.forbidden": 403, "root.files": 500, "root.unknown": 404, "root.broken": 500} {
				if name == "LAUNCH_NESTED_CONTAINER_SESSION" && want != 403 && path != "root.broken" {
					continue // it is not there before
				}
				resp, text := do(t, request(t, "POST", server.URL+"/api/v1", encode(t, send, call.make(nested(strings.Split(path, ".")...))), headersOf(send)...))
				if resp.StatusCode != want {
					t.Errorf("%s of %s: %d %q, want %d", name, path, resp.StatusCode, text, want)
				}
			}
		}
	}
	for _, send := range bothTypes {
		resp, text := do(t, request(t, "POST", server.URL+"/api/v1", encode(t, send, session(nested("nobody", "s"))), headersOf(send)...))
		if resp.StatusCode != 400 || !strings.Contains(text, "parent container does not exist") {
			t.Errorf("a session in nothing: %d %q, want 400", resp.StatusCode, text)
		}
		body := encode(t, send, &agentv1.Call{Type: agentv1.Call_WAIT_CONTAINER.Enum(), WaitContainer: &agentv1.Call_WaitContainer{ContainerId: nested("root")}})
		for what, c := range map[string]struct {
			headers []string
			status  int
		}{
			"a framed answer":     {[]string{"Content-Type: " + send.String(), "Accept: " + recordIO, "Message-Accept: " + send.String()}, 406},
			"a message accept":    {[]string{"Content-Type: " + send.String(), "Accept: " + send.String(), "Message-Accept: " + send.String()}, 406},
			"a message type":      {[]string{"Content-Type: " + send.String(), "Message-Content-Type: " + send.String()}, 415},
			"a framed call":       {[]string{"Content-Type: " + recordIO, "Message-Content-Type: " + send.String()}, 400},
			"a call of no type":   {[]string{"Content-Type: " + recordIO}, 400},
			"a call of some type": {[]string{"Content-Type: " + recordIO, "Message-Content-Type: text/plain"}, 415},
		} {
			if resp, text := do(t, request(t, "POST", server.URL+"/api/v1", body, c.headers...)); resp.StatusCode != c.status {
				t.Errorf("%v WAIT_CONTAINER with %s: %d %q, want %d", send, what, resp.StatusCode, text, c.status)
			}
		}
		framed := string(recordio.Append(nil, []byte(body)))
		if resp, text := do(t, request(t, "POST", server.URL+"/api/v1", framed, "Content-Type: "+recordIO, "Message-Content-Type: "+send.String())); resp.StatusCode != 415 {
			t.Errorf("%v WAIT_CONTAINER as a stream: %d %q, want 415", send, resp.StatusCode, text)
		}
	}
}

func TestLaunchesAreValidated(t *testing.T) {
	server := serveContainers(t, newContainerAgent())
	const (
		top     = `{"value":"x"}`
		first   = `{"value":"x","parent":{"value":"root"}}`
		second  = `{"value":"x","parent":{"value":"y","parent":{"value":"root"}}}`
		cpus    = `"resources":[{"name":"cpus","type":"SCALAR","scalar":{"value":1}}]`
		limit   = `"limits":{"cpus":{"value":1}}`
		shares  = `"container":{"type":"MESOS","linux_info":{"share_cgroups":true}}`
		apart   = `"container":{"type":"MESOS","linux_info":{"share_cgroups":false}}`
		command = `"command":{"value":"x"}`
	)
	resource := func(more string) string {
		return `"resources":[{"name":"disk","type":"SCALAR","scalar":{"value":1},` + more + `}]`
	}
	for _, c := range []struct {
		id, rest string
		status   int
		text     string
	}{
		{top, command, 200, ""},
		{`{"value":"` + strings.Repeat("a", 242) + `"}`, command, 200, ""},
		{`{"value":"` + strings.Repeat("a", 243) + `"}`, command, 400, "at most 242"},
		{`{"value":""}`, command, 400, "must be non-empty"},
		{`{"value":"a.b"}`, command, 400, "invalid character"},
		{`{"value":"a b"}`, command, 400, "invalid character"},
		{`{"value":"../b"}`, command, 400, "invalid character"},
		{`{}`, command, 400, "missing required field"},
		{`{"value":"t2"}`, cpus + "," + limit, 200, ""},
		{`{"value":"t3"}`, shares, 400, "share_cgroups' must not be true"},
		{`{"value":"t4"}`, apart, 200, ""},
		{first, cpus, 400, "Resources and limits may only be specified for a nested container when"},
		{first, limit, 400, "Resources and limits may only be specified for a nested container when"},
		{first, cpus + "," + shares, 400, "Resources and limits may only be specified for a nested container when"},
		{first, cpus + "," + limit + "," + apart, 200, ""},
		{second, cpus + "," + apart, 400, "without parent and those directly in one"},
		{second, limit, 400, "without parent and those directly in one"},
		{second, apart, 400, "second level or deeper"},
		{top, `"resources":[{"name":"cpus","type":"SCALAR"}]`, 400, "Invalid resources"},
		{top, `"resources":[{"name":"cpus","type":"SCALAR","scalar":{"value":-1}}]`, 400, "Invalid resources"},
		{top, resource(`"reservations":[{"type":"DYNAMIC","role":"a"}]`), 400, "is reserved"},
		{top, resource(`"role":"a"`), 400, "is reserved"},
		{top, resource(`"revocable":{}`), 400, "is revocable"},
		{top, resource(`"reservations":[{"type":"DYNAMIC","role":"a"}],"disk":{"persistence":{"id":"i"},"volume":{"container_path":"p","mode":"RW"}}`), 400, "is a persistent volume"},
		{top, `"limits":{"mem":{"value":-1}}`, 400, "'launch_container.limits' is invalid"},
		{top, `"limits":{"mem":{"value":NaN}}`, 400, ""},
		{`{"value":"t5"}`, `"limits":{"mem":{"value":Infinity}}`, 200, ""},
		{top, `"command":{"value":"x","environment":{"variables":[{"name":"A"}]}}`, 400, "environment variable 'A'"},
		{top, `"command":{"value":"x","environment":{"variables":[{"name":"A","type":"SECRET","value":"x"}]}}`, 400, "environment variable 'A'"},
		{top, `"command":{"value":"x","uris":[{"value":""}]}`, 400, "a URI is empty"},
		{top, `"container":{"type":"MESOS","tty_info":{"window_size":{"rows":65536,"columns":1}}}`, 400, "a terminal has at most"},
		{top, `"container":{"type":"MESOS","volumes":[{"mode":"RW","container_path":""}]}`, 400, "no 'container_path'"},
	} {
		body := `{"type":"LAUNCH_CONTAINER","launch_container":{"container_id":` + c.id + `,` + c.rest + `}}`
		resp, text := do(t, request(t, "POST", server.URL+"/api/v1", body, sendJSON))
		if resp.StatusCode != c.status || !strings.Contains(text, c.text) {
			t.Errorf("%s: %d %q, want %d %q", body, resp.StatusCode, text, c.status, c.text)
		}
		if c.status == 400 && c.text == "a terminal has at most" { // the session's is checked likewise
			body := `{"type":"LAUNCH_NESTED_CONTAINER_SESSION","launch_nested_container_session":{"container_id":` + first + `,` + c.rest + `}}`
			if resp, text := do(t, request(t, "POST", server.URL+"/api/v1", body, sendJSON)); resp.StatusCode != 400 {
				t.Errorf("%s: %d %q, want 400", body, resp.StatusCode, text)
			}
		}
	}
}

func TestWaitingIsOverWhenItsClientHasLeft(t *testing.T) {
	a := newContainerAgent()
	var log bytes.Buffer
	server := serveContainers(t, a, func(c *api.Config, _ *api.AgentDeps) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	ctx, cancel := context.WithCancel(t.Context())
	r := request(t, "POST", server.URL+"/api/v1", `{"type":"WAIT_CONTAINER","wait_container":{"container_id":{"value":"long"}}}`, sendJSON).WithContext(ctx)
	left := make(chan error, 1)
	go func() {
		_, err := (&http.Transport{}).RoundTrip(r)
		left <- err
	}()
	wait := <-a.waits
	cancel()
	if err := <-left; err == nil {
		t.Error("the client got an answer")
	}
	select {
	case <-wait.Done():
	case <-time.After(20 * time.Second):
		t.Error("the agent waits for nobody")
	}
	server.Close() // the handler has returned
	if log.Len() > 0 {
		t.Errorf("it was logged as a fault: %s", log.String())
	}
}

func TestSessionEndsWithinASecondOfItsClient(t *testing.T) {
	a := newContainerAgent()
	server := serveContainers(t, a)
	body := `{"type":"LAUNCH_NESTED_CONTAINER_SESSION","launch_nested_container_session":{"container_id":{"value":"s","parent":{"value":"root"}},"command":{"value":"sh"}}}`
	for _, how := range []string{"in order", "by reset"} {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /api/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAccept: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v, %v", resp, err)
		}
		s := a.stream(t)
		if how == "by reset" {
			if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
				t.Fatal(err)
			}
		}
		conn.Close()
		began := time.Now()
		select {
		case <-s.Done():
			if d := time.Since(began); d > time.Second {
				t.Errorf("%s: the stream ended %v after its client", how, d)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: the stream goes on without its client", how)
		}
	}
}

// What a person pages through waits, and is bounded while it does.
func TestOutputWaitsForASlowReader(t *testing.T) {
	a := newContainerAgent()
	server := serveContainers(t, a)
	call := &agentv1.Call{Type: agentv1.Call_ATTACH_CONTAINER_OUTPUT.Enum(), AttachContainerOutput: &agentv1.Call_AttachContainerOutput{ContainerId: nested("root")}}
	resp, err := http.DefaultTransport.RoundTrip(request(t, "POST", server.URL+"/api/v1", encode(t, codec.Protobuf, call), headersOf(codec.Protobuf)...))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	s := a.stream(t)
	const pieces, size = 1024, 64 << 10 // twice what cuts off another stream
	before := heap()
	sent := make(chan int, pieces)
	go func() {
		defer s.Close()
		piece := strings.Repeat("x", size)
		for n := range pieces {
			if !s.Send(dataOf(agentv1.ProcessIO_Data_STDOUT, piece)) {
				t.Errorf("piece %d was refused", n)
				return
			}
			sent <- n
		}
	}()
	r := recordio.NewReader(resp.Body, 0)
	total := 0
	for n := 0; ; n++ {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		m := new(agentv1.ProcessIO)
		if err := codec.Unmarshal(codec.Protobuf, record, m); err != nil {
			t.Fatal(err)
		}
		total += len(m.GetData().GetData())
		if n == 10 {
			if now := heap(); now > before+24<<20 {
				t.Errorf("while the reader is slow the heap went from %d to %d bytes", before, now)
			}
		}
	}
	if total != pieces*size {
		t.Errorf("the reader got %d bytes, want %d", total, pieces*size)
	}
}

func TestASendThatWaitsEndsWithItsStream(t *testing.T) {
	a := newContainerAgent()
	server := serveContainers(t, a)
	call := &agentv1.Call{Type: agentv1.Call_ATTACH_CONTAINER_OUTPUT.Enum(), AttachContainerOutput: &agentv1.Call_AttachContainerOutput{ContainerId: nested("root")}}
	resp, err := http.DefaultTransport.RoundTrip(request(t, "POST", server.URL+"/api/v1", encode(t, codec.Protobuf, call), headersOf(codec.Protobuf)...))
	if err != nil {
		t.Fatal(err)
	}
	s := a.stream(t)
	refused := make(chan bool)
	for range 3 {
		go func() {
			piece := strings.Repeat("x", 64<<10)
			for s.Send(dataOf(agentv1.ProcessIO_Data_STDOUT, piece)) {
			}
			refused <- true
		}()
	}
	resp.Body.Close()
	for range 3 {
		select {
		case <-refused:
		case <-time.After(20 * time.Second):
			t.Fatal("a Send waits for a reader that is gone")
		}
	}
}

func TestOutputStreamsHaveAHeartbeatEach30Seconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newContainerAgent()
		conns := make(pipeListener, 1)
		server := &http.Server{Handler: api.NewAgent(testConfig(t), api.AgentDeps{Agent: a, ContainerIO: a})}
		served := make(chan error, 1)
		go func() { served <- server.Serve(conns) }()
		here, there := net.Pipe()
		conns <- there
		body := `{"type":"ATTACH_CONTAINER_OUTPUT","attach_container_output":{"container_id":{"value":"root"}}}`
		fmt.Fprintf(here, "POST /api/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		resp, err := http.ReadResponse(bufio.NewReader(here), nil)
		if err != nil {
			t.Fatal(err)
		}
		r, began := recordio.NewReader(resp.Body, 0), time.Now()
		for n := range 3 {
			record, err := r.Next()
			if want := time.Duration(n+1) * 30 * time.Second; err != nil || time.Since(began) != want ||
				string(record) != `{"type":"CONTROL","control":{"type":"HEARTBEAT","heartbeat":{"interval":{"nanoseconds":30000000000}}}}` {
				t.Errorf("after %v: %s, %v; want a heartbeat after %v", time.Since(began), record, err, want)
			}
		}
		here.Close()
		server.Close()
		<-served
	})
}
