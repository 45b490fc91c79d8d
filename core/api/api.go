// Package api is the HTTP edge of master and agent: the v1 APIs of Mesos (scheduler, executor,
// operator), the older JSON endpoints that tools read, files, health, version and metrics.
//
// It promises that what is on the wire is what Mesos puts there: paths, order of checks, status codes,
// headers, sentences, and both encodings; that every request is bounded in size, time and memory,
// whatever its bytes; and that a slow reader of a stream costs at most its buffer. It keeps no state of
// the cluster. What calls mean is left to Master and Agent, interfaces that core/master and core/agent
// satisfy without knowing this package: every type in them is from the standard library or sdk.
//
// All that can be asked for stands in one table per server (routes.go): dispatch, documentation,
// authentication, authorization and metrics are made from it.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// The streams that this package hands to Master and Agent are aliases of interface literals, so that
// those packages can spell the same type without importing this one.
//
// Send queues an event and returns at once; the event must not be changed afterwards. It returns false
// when the stream has ended, or is cut off now because its reader is too slow. Close ends the stream
// after what was sent. Done is closed when the stream has ended, for whatever reason. All three may be
// called from any goroutine, repeatedly. A HEARTBEAT follows each SUBSCRIBED, and then one per interval:
// these the stream makes itself.
type (
	// SchedulerStream carries events to one framework.
	SchedulerStream = interface {
		Send(*schedulerv1.Event) bool
		Close()
		Done() <-chan struct{}
	}
	// OperatorStream carries events to one subscriber of the master's operator API.
	OperatorStream = interface {
		Send(*masterv1.Event) bool
		Close()
		Done() <-chan struct{}
	}
	// ExecutorStream carries events to one executor.
	ExecutorStream = interface {
		Send(*executorv1.Event) bool
		Close()
		Done() <-chan struct{}
	}
	// ProcessIOStream carries a container's output to whoever attached to it. Its Send waits while the reader is slow:
	// what a container prints is not lost because a person pages through it.
	ProcessIOStream = interface {
		Send(*agentv1.ProcessIO) bool
		Close()
		Done() <-chan struct{}
	}
)

// Errors that a Master, an Agent, an Authenticator or an Approver returns choose the answer: one that
// has a method HTTPStatus() int, itself or in its chain, gives the status, and its text is the body.
// A status below 300 is an answer without a body ("202, already there"). Any other error is a 500,
// and logged.

// Master is what the edge of a master calls. Every context ends with the request, not with the stream.
type Master interface {
	// Leader tells whether this master leads, whether it has then recovered, and else the leader's
	// address as host:port, empty when none is known. It is asked for each request.
	Leader() (leads, recovered bool, addr string)

	// SchedulerSubscribe accepts a SUBSCRIBE and returns the id of the stream at once; events, also
	// those sent before it returns, follow the headers. A refusal by policy is an ERROR event on an
	// accepted stream that is then closed; an error is for requests that get no stream at all.
	SchedulerSubscribe(ctx context.Context, principal string, call *schedulerv1.Call, s SchedulerStream) (streamID string, err error)

	// SchedulerCall takes any other call, well formed: its type is set, and what the type needs is
	// there. streamID is the Mesos-Stream-Id header, empty when missing. nil is answered 202 (200 for
	// UPDATE_FRAMEWORK). For UNKNOWN, nil is answered 501.
	SchedulerCall(ctx context.Context, principal, streamID string, call *schedulerv1.Call) error

	// OperatorCall takes every call of the operator API but SUBSCRIBE, LIST_FILES and READ_FILE. A nil
	// response is an empty 200, or 202 for the calls whose effect comes later.
	OperatorCall(ctx context.Context, principal string, call *masterv1.Call) (*masterv1.Response, error)

	// OperatorSubscribe begins a stream with SUBSCRIBED. It returns at once.
	OperatorSubscribe(ctx context.Context, principal string, s OperatorStream) error

	// Legacy returns the JSON body of an older endpoint: /state, /state-summary, /slaves, /frameworks,
	// /tasks, /roles, /flags, /quota, /weights, /maintenance/schedule, /maintenance/status or
	// /metrics/snapshot; and of /mosaic/v1/explain, which Mesos does not have.
	Legacy(ctx context.Context, principal, endpoint string, query url.Values) ([]byte, error)

	// LegacyWrite does what a request to an older endpoint asks: /quota (POST), /quota/ROLE (DELETE; the
	// role as it is, with slashes), /weights (PUT), /maintenance/schedule, /machine/down, /machine/up,
	// /reserve, /unreserve, /create-volumes, /destroy-volumes or /teardown (all POST). form is the decoded
	// body of the last five and nil for the others, whose body is JSON and has not been looked at. A nil
	// answer is an empty 200, or 202 where an agent has yet to do it.
	LegacyWrite(ctx context.Context, principal, endpoint, method string, query, form url.Values, body []byte) (resp []byte, err error)
}

// Agent is what the edge of an agent calls. Contexts and errors are as in Master.
type Agent interface {
	// Recovered is false until executors may reconnect; every call is then answered 503.
	Recovered() bool

	// ExecutorSubscribe accepts an executor's SUBSCRIBE and returns at once; events follow.
	ExecutorSubscribe(ctx context.Context, call *executorv1.Call, s ExecutorStream) error

	// ExecutorCall takes an executor's other calls, well formed. nil is answered 202.
	ExecutorCall(ctx context.Context, call *executorv1.Call) error

	// OperatorCall takes every call of the operator API but LIST_FILES, READ_FILE and those that
	// stream. A nil response is an empty 200.
	OperatorCall(ctx context.Context, principal string, call *agentv1.Call) (*agentv1.Response, error)

	// Legacy returns the JSON body of an older endpoint: /state, /flags, /containers,
	// /monitor/statistics or /metrics/snapshot.
	Legacy(ctx context.Context, principal, endpoint string, query url.Values) ([]byte, error)
}

// ContainerIO is the part of an agent that attaches clients to containers. Errors are as in Master.
type ContainerIO interface {
	// AttachOutput sends a container's output from now on to s, and returns at once.
	AttachOutput(ctx context.Context, principal string, id *mesosv1.ContainerID, s ProcessIOStream) error

	// AttachInput feeds a container what next returns, until that is io.EOF (nil is then answered 200)
	// or another error, which it passes on, or the container has ended (nil as well). ctx ends with the
	// request; next waits for the client at most until the context that it is given ends.
	AttachInput(ctx context.Context, principal string, id *mesosv1.ContainerID, next func(context.Context) (*agentv1.ProcessIO, error)) error

	// LaunchSession launches a nested container, sends its output to s, and returns at once. The
	// container is destroyed when s is done.
	LaunchSession(ctx context.Context, principal string, call *agentv1.Call_LaunchNestedContainerSession, s ProcessIOStream) error
}

// Sandboxes says which files may be read over HTTP.
type Sandboxes interface {
	// ResolveFile returns the folder or file of this machine that a virtual path stands for. Everything
	// below a folder may be read; this package sees to it that nothing outside is, whatever links
	// a task has put there. Paths below what is published need not be answered.
	//
	// Errors: fs.ErrNotExist when nothing is published under that path.
	ResolveFile(virtual string) (hostpath string, err error)
}

// Config is what master's and agent's edges have in common.
type Config struct {
	// Version is what /version answers. Its version must be dotted numbers: clients parse it.
	Version *mesosv1.VersionInfo

	// HeartbeatInterval is the time between heartbeats on streams to schedulers and operators; 0 means
	// 15 s. Clients give up on a stream after missing a few.
	HeartbeatInterval time.Duration

	// ExecutorHeartbeatInterval is the same for executors; 0 means 30 min, as in Mesos, whose
	// heartbeats only keep middleboxes from forgetting the connection.
	ExecutorHeartbeatInterval time.Duration

	// Authenticators holds an Authenticator per realm. Requests to realms without one are anonymous,
	// and an Authorization header on them is ignored.
	Authenticators map[string]Authenticator

	// Approver, if not nil, is asked before a route with an action is served.
	Approver Approver

	// Metrics, if not nil, is served at /metrics, and gets the edge's own metrics.
	Metrics *prometheus.Registry

	// Log gets what went wrong on our side. Required.
	Log *slog.Logger
}

const (
	defaultHeartbeatInterval         = 15 * time.Second
	defaultExecutorHeartbeatInterval = 30 * time.Minute
	// processIOHeartbeatInterval is Mesos's default of --http_heartbeat_interval.
	processIOHeartbeatInterval = 30 * time.Second
)

// MasterDeps is what the edge of a master calls.
type MasterDeps struct {
	Master Master       // required
	Files  Sandboxes    // nil publishes nothing
	UI     http.Handler // serves / and below; nil answers / with an empty 200
}

// AgentDeps is what the edge of an agent calls.
type AgentDeps struct {
	Agent       Agent       // required
	ContainerIO ContainerIO // nil answers 501 to the calls that stream
	Files       Sandboxes   // nil publishes nothing
	Modules     func() any  // what /mosaic/v1/modules shows, as JSON; nil leaves the path out
	Images      Images      // nil leaves the paths of images out
}

// NewMaster returns the handler of everything a master answers over HTTP.
func NewMaster(cfg Config, deps MasterDeps) *Server {
	m := &masterEdge{
		edge:   newEdge(cfg, deps.Files),
		master: deps.Master,
		ui:     deps.UI,
	}
	return newServer(m.edge, "/master", m.routes())
}

// NewAgent returns the handler of everything an agent answers over HTTP.
func NewAgent(cfg Config, deps AgentDeps) *Server {
	a := &agentEdge{
		edge:    newEdge(cfg, deps.Files),
		agent:   deps.Agent,
		modules: deps.Modules,
		io:      deps.ContainerIO,
		images:  deps.Images,
	}
	return newServer(a.edge, "/slave(1)", a.routes())
}

// edge is what the handlers of both servers share.
type edge struct {
	cfg   Config
	files Sandboxes
	log   *slog.Logger
}

func newEdge(cfg Config, files Sandboxes) *edge {
	if cfg.HeartbeatInterval <= 0 {
		cfg.HeartbeatInterval = defaultHeartbeatInterval
	}
	if cfg.ExecutorHeartbeatInterval <= 0 {
		cfg.ExecutorHeartbeatInterval = defaultExecutorHeartbeatInterval
	}
	return &edge{cfg: cfg, files: files, log: cfg.Log}
}

type masterEdge struct {
	*edge
	master Master
	ui     http.Handler
}

type agentEdge struct {
	*edge
	agent   Agent
	io      ContainerIO
	modules func() any
	images  Images
}
