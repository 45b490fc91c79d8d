// Package module is what the author of a module needs: a main of one line, typed configuration with a schema, events
// to the host, and a logger that the host understands.
//
//	func main() { module.Serve(rlimits.New()) }
//
// It speaks the transport (go-plugin's handshake, gRPC over a unix socket, the health service) and the calls that every
// kind has (mosaic.module.v1.Module). The calls of the module's kind are the generated server interface of its
// contract, which the module implements itself: nothing stands between author and contract.
package module

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	authenticatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authenticator/v1"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
	containerloggerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/containerlogger/v1"
	hookv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/hook/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
	qoscontrollerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/qoscontroller/v1"
	resourceestimatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceestimator/v1"
	resourceproviderv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceprovider/v1"
	secretresolverv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/secretresolver/v1"
)

// Module is anything with a description that also implements the server interface of its kind, such as
// isolatorv1.IsolatorServer.
type Module interface {
	Info() Info
}

// Info describes a module. It is the same at every call.
type Info struct {
	Kind    string // required: isolator, authorizer ... as in the composition
	Name    string // required: lower_snake_case
	Version string // required
	Doc     string // required: one line for people

	// Calls beyond those every module of the kind has, such as "usage".
	Calls []string
	// Powers that its proposals use, such as "rlimits".
	Powers []string
	// After names isolators whose Prepare must end before this one's begins.
	After []string

	Nesting    bool // takes part in nested containers
	Standalone bool // takes part in standalone containers
	NeedsRoot  bool
	Platforms  []string // GOOS/GOARCH; empty means wherever it starts

	// MinState and MaxState are the versions of its own state that it can read; 0 means that it keeps none.
	MinState, MaxState uint32

	// Config is a *Config[T], or nil for a module without configuration.
	Config Configurer
	// Configured, if not nil, is called after each configuration that was taken. An error refuses it after all, and
	// the one before holds again.
	Configured func(ctx context.Context, node *modulev1.NodeFacts) error
	// Resources, if not nil, says after each configuration what resources of the machine the module found, such as
	// gpus: 2. Isolators only.
	Resources func() []*mesosv1.Resource
	// Events, if not nil, are what Watch sends.
	Events *Events
	// Host, if not nil, is filled with a way to ask the host.
	Host *Host
}

// maxMessage bounds a message in either direction, as the contract says.
const maxMessage = 16 << 20

// NewServer returns a gRPC server with everything registered that the module offers, and the health service; opts come
// before its own. moduletest serves a module with it in process.
func NewServer(m Module, opts ...grpc.ServerOption) *grpc.Server {
	s := newServer(m, opts...)
	h := health.NewServer()
	h.SetServingStatus("plugin", healthv1.HealthCheckResponse_SERVING)
	healthv1.RegisterHealthServer(s, h)
	return s
}

// newServer is NewServer without the health service, which go-plugin registers itself.
func newServer(m Module, opts ...grpc.ServerOption) *grpc.Server {
	c := &control{info: m.Info(), drained: make(chan struct{})}
	opts = append(opts,
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(c.unary), grpc.ChainStreamInterceptor(c.stream))
	s := grpc.NewServer(opts...)
	modulev1.RegisterModuleServer(s, c)
	c.services = registerKinds(s, m)
	return s
}

// registerKinds registers every kind's service that m implements and returns their names.
func registerKinds(s *grpc.Server, m Module) []string {
	var names []string
	add := func(desc *grpc.ServiceDesc, ok bool) {
		if ok {
			s.RegisterService(desc, m)
			names = append(names, desc.ServiceName)
		}
	}
	_, ok := m.(isolatorv1.IsolatorServer)
	add(&isolatorv1.Isolator_ServiceDesc, ok)
	_, ok = m.(authorizerv1.AuthorizerServer)
	add(&authorizerv1.Authorizer_ServiceDesc, ok)
	_, ok = m.(authenticatorv1.AuthenticatorServer)
	add(&authenticatorv1.Authenticator_ServiceDesc, ok)
	_, ok = m.(resourceestimatorv1.ResourceEstimatorServer)
	add(&resourceestimatorv1.ResourceEstimator_ServiceDesc, ok)
	_, ok = m.(qoscontrollerv1.QoSControllerServer)
	add(&qoscontrollerv1.QoSController_ServiceDesc, ok)
	_, ok = m.(resourceproviderv1.ResourceProviderServer)
	add(&resourceproviderv1.ResourceProvider_ServiceDesc, ok)
	_, ok = m.(secretresolverv1.SecretResolverServer)
	add(&secretresolverv1.SecretResolver_ServiceDesc, ok)
	_, ok = m.(containerloggerv1.ContainerLoggerServer)
	add(&containerloggerv1.ContainerLogger_ServiceDesc, ok)
	_, ok = m.(hookv1.HookServer)
	add(&hookv1.Hook_ServiceDesc, ok)
	return names
}

// control answers the calls that every module has.
type control struct {
	modulev1.UnimplementedModuleServer
	info     Info
	services []string

	configure sync.Mutex // one configuration at a time

	mu       sync.Mutex    // guards what follows
	draining bool          // no new calls
	calls    int           // unary calls of the kind in flight
	idle     chan struct{} // closed when draining and calls is 0
	once     sync.Once
	drained  chan struct{} // closed when Drain was called
}

func (c *control) Describe(context.Context, *modulev1.DescribeRequest) (*modulev1.DescribeResponse, error) {
	i := c.info
	d := &modulev1.DescribeResponse{
		Kind: i.Kind, Name: i.Name, Version: i.Version, Doc: i.Doc, Services: c.services, Calls: i.Calls, Powers: i.Powers,
		After: i.After, Nesting: i.Nesting, Standalone: i.Standalone, NeedsRoot: i.NeedsRoot, Platforms: i.Platforms,
		MinStateVersion: i.MinState, MaxStateVersion: i.MaxState, Schema: &modulev1.Schema{},
	}
	if i.Config != nil {
		schema, err := i.Config.Schema()
		if err != nil {
			return nil, status.Errorf(codes.Internal, "schema of the configuration: %v", err)
		}
		d.Schema = schema
	}
	return d, nil
}

func (c *control) Configure(ctx context.Context, r *modulev1.ConfigureRequest) (*modulev1.ConfigureResponse, error) {
	c.configure.Lock()
	defer c.configure.Unlock()
	take := func() func() { return func() {} }
	if c.info.Config != nil {
		var errs []*modulev1.AttributeError
		take, errs = c.info.Config.Check(r.GetConfigJson())
		if len(errs) > 0 {
			return &modulev1.ConfigureResponse{Errors: errs}, nil
		}
	}
	if r.GetDryRun() {
		return &modulev1.ConfigureResponse{}, nil
	}
	undo := take()
	if c.info.Configured != nil {
		if err := c.info.Configured(ctx, r.GetNode()); err != nil {
			undo()
			if _, ok := status.FromError(err); ok {
				return nil, err
			}
			return &modulev1.ConfigureResponse{Errors: attributeErrors(err)}, nil
		}
	}
	answer := &modulev1.ConfigureResponse{}
	if c.info.Resources != nil {
		answer.Resources = c.info.Resources()
	}
	return answer, nil
}

func (c *control) Watch(r *modulev1.WatchRequest, s grpc.ServerStreamingServer[modulev1.WatchEvent]) error {
	events := c.info.Events
	if events == nil {
		events = NewEvents()
	}
	return events.serve(r.GetSince(), s, c.drained)
}

func (c *control) Ask(s grpc.BidiStreamingServer[modulev1.Reply, modulev1.Question]) error {
	if c.info.Host == nil {
		return nil
	}
	return c.info.Host.serve(s, c.drained)
}

func (c *control) Drain(ctx context.Context, _ *modulev1.DrainRequest) (*modulev1.DrainResponse, error) {
	c.mu.Lock()
	c.draining = true
	if c.idle == nil {
		c.idle = make(chan struct{})
		if c.calls == 0 {
			close(c.idle)
		}
	}
	idle := c.idle
	c.mu.Unlock()
	c.once.Do(func() { close(c.drained) })
	select {
	case <-idle:
		return &modulev1.DrainResponse{}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// own says whether a method belongs to every module or to gRPC, so that draining does not stop it.
func own(method string) bool {
	return strings.HasPrefix(method, "/mosaic.module.") || strings.HasPrefix(method, "/grpc.")
}

func (c *control) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	if !own(info.FullMethod) {
		if !c.enter() {
			return nil, status.Error(codes.Unavailable, "the module is draining")
		}
		defer c.leave()
	}
	resp, err = handle(ctx, req)
	if err != nil {
		err = fromContext(ctx, err)
	}
	return resp, err
}

// fromContext gives errors without a code one.
func fromContext(ctx context.Context, err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	return status.Error(codes.Internal, err.Error())
}

func (c *control) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	c.mu.Lock()
	draining := c.draining
	c.mu.Unlock()
	if draining && !own(info.FullMethod) {
		return status.Error(codes.Unavailable, "the module is draining")
	}
	return handle(srv, s)
}

func (c *control) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return false
	}
	c.calls++
	return true
}

func (c *control) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls--
	if c.draining && c.calls == 0 {
		close(c.idle)
	}
}

// InvalidArgument is an error of the caller: it must change something and not repeat the call.
func InvalidArgument(format string, args ...any) error {
	return status.Error(codes.InvalidArgument, fmt.Sprintf(format, args...))
}

// FailedPrecondition is an error of the machine; the text is shown to the operator.
func FailedPrecondition(format string, args ...any) error {
	return status.Error(codes.FailedPrecondition, fmt.Sprintf(format, args...))
}
