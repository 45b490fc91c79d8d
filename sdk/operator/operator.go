// Package operator is a client of the operator APIs of masters and agents, for tools.
//
// It sends protobuf, follows a master's redirect to the leader, and turns refusals into *StatusError. It keeps no
// state and retries nothing: a tool decides itself what is worth repeating. A Session is the exception that lasts: a
// process in a container with its standard streams, until it is closed.
package operator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

const (
	mediaType = "application/x-protobuf"
	// maxAnswer bounds what is read of one answer. The full state of 10,000 agents is about 35 MB.
	maxAnswer = 1 << 30
	// dialTimeout tells an unreachable address from a slow one soon.
	dialTimeout = 5 * time.Second
)

// StatusError is an answer other than 2xx. The caller shows Message: it is a sentence for people.
type StatusError struct {
	Code    int
	Message string
}

func (e *StatusError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("answered %d %s", e.Code, http.StatusText(e.Code))
	}
	return fmt.Sprintf("answered %d: %s", e.Code, e.Message)
}

// endpoint is one server's /api/v1.
type endpoint struct {
	what string // "master" or "agent", for errors
	addr string
	hc   *http.Client
}

func newEndpoint(what, addr string) endpoint {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = nil
	t.DialContext = (&net.Dialer{Timeout: dialTimeout}).DialContext
	return endpoint{what: what, addr: strings.TrimPrefix(addr, "http://"), hc: &http.Client{Transport: t}}
}

// message is what generated messages with fast codecs offer.
type message interface {
	MarshalVT() ([]byte, error)
	UnmarshalVT([]byte) error
}

// call makes one call and returns the status of its answer, one of 2xx.
func (e endpoint) call(ctx context.Context, call, answer message) (int, error) {
	body, err := call.MarshalVT()
	if err != nil {
		return 0, fmt.Errorf("encode call: %w", err)
	}
	resp, err := e.post(ctx, bytes.NewReader(body), "Content-Type", mediaType, "Accept", mediaType)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return 0, refusal(resp)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, fmt.Errorf("read answer of %s %s: %w", e.what, e.addr, err)
	}
	if len(data) == 0 {
		return resp.StatusCode, nil
	}
	if err := answer.UnmarshalVT(data); err != nil {
		return 0, fmt.Errorf("decode answer of %s %s: %w", e.what, e.addr, err)
	}
	return resp.StatusCode, nil
}

// maxRefusal bounds what is read of a refusal's text.
const maxRefusal = 64 << 10

// refusal makes an error of an answer other than 2xx.
func refusal(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal)) // the code is what counts
	return &StatusError{Code: resp.StatusCode, Message: strings.TrimSpace(string(text))}
}

// post sends a body with headers given as names and values.
func (e endpoint) post(ctx context.Context, body io.Reader, headers ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+e.addr+"/api/v1", body)
	if err != nil {
		return nil, fmt.Errorf("%s address %q: %w", e.what, e.addr, err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := e.hc.Do(req)
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return nil, err
		}
		return nil, fmt.Errorf("reach the %s at %s: %w", e.what, e.addr, unwrapURL(err))
	}
	return resp, nil
}

// Get reads a path beside the RPC endpoint, such as /version, and returns the body.
//
// Errors: *StatusError for answers other than 2xx.
func (e endpoint) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.addr+path, nil)
	if err != nil {
		return nil, fmt.Errorf("%s address %q: %w", e.what, e.addr, err)
	}
	resp, err := e.hc.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reach the %s at %s: %w", e.what, e.addr, unwrapURL(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, refusal(resp)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read %s of %s %s: %w", path, e.what, e.addr, err)
	}
	return data, nil
}

// unwrapURL drops the method and URL that net/http puts before its errors: the caller has named the server already.
func unwrapURL(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok || u.Unwrap() == nil {
			return err
		}
		if _, isNet := err.(*net.OpError); isNet { //nolint:errorlint // this link of the chain, not one below it
			return err
		}
		err = u.Unwrap()
	}
}

// Master is a client of one master, which may send it on to the leader.
type Master struct{ endpoint }

// NewMaster returns a client of the master at addr (host:port). Nothing is dialed yet.
func NewMaster(addr string) *Master { return &Master{newEndpoint("master", addr)} }

// Call makes one call that is not a stream. The answer is empty for calls that have none.
//
// Errors: *StatusError when the master refuses; anything else means that it could not be reached.
func (m *Master) Call(ctx context.Context, call *masterv1.Call) (*masterv1.Response, error) {
	answer := &masterv1.Response{}
	if _, err := m.call(ctx, call, answer); err != nil {
		return nil, err
	}
	return answer, nil
}

// Get reads a path of the master, such as /version.
func (m *Master) Get(ctx context.Context, path string) ([]byte, error) { return m.get(ctx, path) }

// Agent is a client of one agent.
type Agent struct{ endpoint }

// NewAgent returns a client of the agent at addr (host:port). Nothing is dialed yet.
func NewAgent(addr string) *Agent { return &Agent{newEndpoint("agent", addr)} }

// Call makes one call that is not a stream. The answer is empty for calls that have none.
//
// Errors: *StatusError when the agent refuses; anything else means that it could not be reached.
func (a *Agent) Call(ctx context.Context, call *agentv1.Call) (*agentv1.Response, error) {
	answer := &agentv1.Response{}
	if _, err := a.call(ctx, call, answer); err != nil {
		return nil, err
	}
	return answer, nil
}

// Get reads a path of the agent, such as /version.
func (a *Agent) Get(ctx context.Context, path string) ([]byte, error) { return a.get(ctx, path) }
