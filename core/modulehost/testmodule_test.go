package modulehost

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	authenticatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authenticator/v1"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	containerloggerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/containerlogger/v1"
	hookv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/hook/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
	resourceestimatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceestimator/v1"
	secretresolverv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/secretresolver/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// The test executable is every module of the tests: started with the cookie of the handshake it behaves as its first
// argument says. "good" is a module as it should be; the others are hostile in one way each.
func TestMain(m *testing.M) {
	if os.Getenv(cookieKey) == cookieValue {
		beModule(os.Args[1])
		os.Exit(0)
	}
	if os.Getenv(hostKey) != "" {
		beHost()
	}
	os.Exit(m.Run())
}

// hostKey in the environment makes the test executable a host, to be killed.
const hostKey = "MOSAIC_TEST_HOST"

// beHost starts a module, tells its process, and waits to be killed.
func beHost() {
	h, err := Start(context.Background(), Options{RunDir: os.Getenv(hostKey)}, []ModuleConfig{testConfig("ignores the end of its input")})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(h.Status()[0].PID)
	select {}
}

func beModule(how string) {
	switch how {
	case "silent": // never gives its handshake
		select {}
	case "exits":
		fmt.Fprintln(os.Stderr, "no such device")
		os.Exit(3)
	case "garbage":
		fmt.Println("Hello, I am a module!")
	case "endless line":
		for {
			os.Stdout.Write(bytes.Repeat([]byte("x"), 4096))
		}
	case "foreign socket":
		fmt.Printf("1|1|unix|/tmp/somebody-elses.sock|grpc|\n")
		select {}
	case "tcp":
		fmt.Printf("1|1|tcp|127.0.0.1:1|grpc|\n")
		select {}
	case "drips":
		drip()
	case "deaf": // accepts connections and never answers
		listenAnd(func(c net.Conn) { io.Copy(io.Discard, c) })
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: protocolVersion, MagicCookieKey: cookieKey, MagicCookieValue: cookieValue,
		},
		Plugins: plugin.PluginSet{pluginName: &served{how: how}},
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(maxMessage), grpc.ForceServerCodecV2(giantCodec{}))...)
		},
		Logger: hclog.NewNullLogger(),
	})
}

// listenAnd prints a handshake that is right and treats every connection by serve.
func listenAnd(serve func(net.Conn)) {
	l, err := net.Listen("unix", filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "s"))
	if err != nil {
		os.Exit(4)
	}
	fmt.Printf("1|1|unix|%s|grpc|\n", l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			os.Exit(5)
		}
		go serve(c)
	}
}

// drip answers a byte at a time of what looks like HTTP/2 settings without end.
func drip() {
	listenAnd(func(c net.Conn) {
		for i := 0; ; i++ {
			frame := []byte{0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100}
			if _, err := c.Write(frame[i%len(frame) : i%len(frame)+1]); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}

// giantCodec sends an answer of 1 GiB for a PrepareResponse whose state says so, without having it in memory.
type giantCodec struct{}

const giant = "1 GiB, please"

func (giantCodec) Name() string { return "proto" }

func (giantCodec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(*isolatorv1.PrepareResponse); ok && string(r.GetState()) == giant {
		piece := mem.SliceBuffer(make([]byte, 1<<20))
		return slices.Repeat(mem.BufferSlice{piece}, 1024), nil
	}
	b, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

func (giantCodec) Unmarshal(data mem.BufferSlice, v any) error {
	return proto.Unmarshal(data.Materialize(), v.(proto.Message))
}

type served struct {
	plugin.NetRPCUnsupportedPlugin
	how string
}

func (s *served) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error {
	m := &testModule{how: s.how, watchers: make(chan *modulev1.WatchEvent, 100), prepared: make(map[string]int)}
	modulev1.RegisterModuleServer(server, m)
	switch s.how {
	case "authorizer":
		authorizerv1.RegisterAuthorizerServer(server, testAuthorizer{m: m})
	case "estimator":
		resourceestimatorv1.RegisterResourceEstimatorServer(server, testEstimator{})
	case "authenticator":
		authenticatorv1.RegisterAuthenticatorServer(server, testAuthenticator{})
	case "secrets":
		secretresolverv1.RegisterSecretResolverServer(server, testSecrets{})
	case "logger":
		containerloggerv1.RegisterContainerLoggerServer(server, testLogger{})
	case "hook":
		hookv1.RegisterHookServer(server, testHook{})
	case "v2":
		registerIsolatorV2(server, m)
	case "v1 and v2":
		isolatorv1.RegisterIsolatorServer(server, m)
		registerIsolatorV2(server, m)
	default:
		isolatorv1.RegisterIsolatorServer(server, m)
	}
	return nil
}

func (s *served) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}

// testModule is an isolator that behaves, but for what how says.
type testModule struct {
	modulev1.UnimplementedModuleServer
	isolatorv1.UnimplementedIsolatorServer
	how      string
	watchers chan *modulev1.WatchEvent

	mu        sync.Mutex
	config    string
	pages     []int
	recovered []string
	prepared  map[string]int
}

func (m *testModule) Describe(ctx context.Context, r *modulev1.DescribeRequest) (*modulev1.DescribeResponse, error) {
	d := &modulev1.DescribeResponse{
		Kind: KindIsolator, Name: "test", Version: "1.2.3", Services: []string{"mosaic.isolator.v1.Isolator"},
		Calls:  []string{"isolate", "update", "usage", "status", "watch"},
		Powers: []string{"environment", "mounts", "cgroup"}, After: []string{"filesystem"},
		MinStateVersion: 1, MaxStateVersion: 2, Nesting: true, Doc: "For tests.",
		Schema: testSchema(),
	}
	switch m.how {
	case "hangs in Describe":
		<-ctx.Done()
	case "wrong kind":
		d.Kind = KindAuthorizer
	case "wrong schema":
		d.Schema.Attributes[0].DefaultJson = "{"
	case "unknown power":
		d.Powers = append(d.Powers, "everything")
	case "v2":
		d.Services = []string{"mosaic.isolator.v2.Isolator"}
	case "v1 and v2":
		d.Services = append(d.Services, "mosaic.isolator.v2.Isolator")
	case "v9":
		d.Services = []string{"mosaic.isolator.v9.Isolator"}
	case "no service":
		d.Services = nil
	case "authorizer":
		d.Kind, d.Services = KindAuthorizer, []string{"mosaic.authorizer.v1.Authorizer"}
	case "estimator":
		d.Kind, d.Services = KindResourceEstimator, []string{"mosaic.resourceestimator.v1.ResourceEstimator"}
	case "authenticator":
		d.Kind, d.Services = KindAuthenticator, []string{"mosaic.authenticator.v1.Authenticator"}
	case "secrets":
		d.Kind, d.Services = KindSecretResolver, []string{"mosaic.secretresolver.v1.SecretResolver"}
	case "logger":
		d.Kind, d.Services = KindContainerLogger, []string{"mosaic.containerlogger.v1.ContainerLogger"}
	case "hook":
		d.Kind, d.Services, d.Calls = KindHook, []string{"mosaic.hook.v1.Hook"}, []string{"decorate_environment"}
	case "forks":
		fork()
	case "ignores the end of its input":
		signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	}
	return d, nil
}

// fork starts processes that leave the module's session and hold its error stream open.
func fork() {
	for range 3 {
		c := exec.Command("/bin/sleep", "1000")
		c.Stderr = os.NewFile(2, "stderr")
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := c.Start(); err == nil {
			fmt.Fprintf(os.NewFile(2, "stderr"), "forked %d\n", c.Process.Pid)
		}
	}
}

func (m *testModule) Configure(_ context.Context, r *modulev1.ConfigureRequest) (*modulev1.ConfigureResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.config = r.GetConfigJson()
	if strings.Contains(m.config, `"unlucky"`) {
		return &modulev1.ConfigureResponse{Errors: []*modulev1.AttributeError{{
			Path: "limit[0].soft", Message: "got 13, want a lucky number", Suggestion: "7",
		}}}, nil
	}
	answer := &modulev1.ConfigureResponse{}
	if text, ok := strings.CutPrefix(m.how, "finds "); ok {
		answer.Resources = resources.MustParse(text).Resources()
	}
	return answer, nil
}

func (m *testModule) Watch(_ *modulev1.WatchRequest, s grpc.ServerStreamingServer[modulev1.WatchEvent]) error {
	sequence := uint64(0)
	for {
		select {
		case <-s.Context().Done():
			return nil
		case e := <-m.watchers:
			sequence++
			e.Sequence, e.Time = sequence, timestamppb.Now()
			if err := s.Send(e); err != nil {
				return err
			}
		}
	}
}

func (m *testModule) Ask(s grpc.BidiStreamingServer[modulev1.Reply, modulev1.Question]) error {
	if m.how != "asks" {
		return nil
	}
	token := ""
	total := 0
	for id := uint64(1); ; id++ {
		q := &modulev1.Question{Id: id, Question: &modulev1.Question_Containers{Containers: &modulev1.ContainersQuestion{PageToken: token}}}
		if err := s.Send(q); err != nil {
			return err
		}
		r, err := s.Recv()
		if err != nil {
			return err
		}
		total += len(r.GetContainers().GetContainers())
		if token = r.GetContainers().GetNextPageToken(); token == "" {
			m.watchers <- &modulev1.WatchEvent{Event: &modulev1.WatchEvent_Limitation{Limitation: &modulev1.Limitation{
				ContainerId: "asked", Reason: "REASON_CONTAINER_LIMITATION", Message: fmt.Sprintf("%d in %d pages", total, id),
			}}}
			return nil
		}
	}
}

func (m *testModule) Drain(context.Context, *modulev1.DrainRequest) (*modulev1.DrainResponse, error) {
	fmt.Fprintln(os.NewFile(2, "stderr"), "draining")
	return &modulev1.DrainResponse{}, nil
}

func (m *testModule) Recover(s grpc.ClientStreamingServer[isolatorv1.RecoverRequest, isolatorv1.RecoverResponse]) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.recovered, m.pages = nil, nil
	for {
		page, err := s.Recv()
		if err == io.EOF {
			return s.SendAndClose(&isolatorv1.RecoverResponse{})
		}
		if err != nil {
			return err
		}
		m.pages = append(m.pages, len(page.GetContainers()))
		for _, c := range page.GetContainers() {
			m.recovered = append(m.recovered, c.GetContainer().GetId())
		}
	}
}

func (m *testModule) Prepare(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	id := r.GetContainer().GetId()
	m.mu.Lock()
	m.prepared[id]++
	out := &isolatorv1.PrepareResponse{
		Proposal: &containerv1.Proposal{Environment: map[string]string{
			"PID":       fmt.Sprint(os.Getpid()),
			"CONFIG":    m.config,
			"RECOVERED": strings.Join(m.recovered, ","),
			"PAGES":     fmt.Sprint(m.pages),
			"GRANTED":   strings.Join(r.GetGranted(), ","),
			"ENV":       strings.Join(os.Environ(), "\n"),
		}},
		State: []byte("state of " + id), StateVersion: 1,
	}
	m.mu.Unlock()
	switch id {
	case "hang":
		<-ctx.Done()
		return nil, ctx.Err()
	case "hang-for-ever":
		select {}
	case "crash":
		os.Exit(7)
	case "panic":
		panic("module has a bug")
	case "fail":
		return nil, status.Error(codes.FailedPrecondition, "no such device")
	case "unavailable":
		return nil, status.Error(codes.Unavailable, "device is busy")
	case "giant":
		return &isolatorv1.PrepareResponse{State: []byte(giant)}, nil
	case "undeclared":
		out.Proposal.Hostname = "evil"
	case "mounts":
		out.Proposal.Mounts = []*containerv1.Mount{{Destination: "/data", Source: "/srv", Type: "bind"}}
	case "relative":
		out.Proposal.Mounts = []*containerv1.Mount{{Destination: "data", Source: "/srv", Type: "bind"}}
	case "duplicate":
		mount := &containerv1.Mount{Destination: "/data", Source: "/srv", Type: "bind"}
		out.Proposal.Mounts = []*containerv1.Mount{mount, mount}
	case "negative":
		out.Proposal.Cgroup = &containerv1.CgroupResources{MemoryLimitBytes: proto.Int64(-5)}
	case "nul":
		out.Proposal.Environment["A"] = "b\x00c"
	case "big-state":
		out.State = make([]byte, maxState+1)
	case "wrong-state-version":
		out.StateVersion = 3
	case "many":
		for i := range maxItems + 1 {
			out.Proposal.Environment[fmt.Sprint("K", i)] = "v"
		}
	case "print":
		fmt.Println("printed to standard output")
		fmt.Fprintln(os.Stderr, "printed to standard error")
	case "flood":
		line := append(bytes.Repeat([]byte("x"), 1000), '\n')
		stderr := os.NewFile(2, "stderr")
		for range 20_000 {
			stderr.Write(line)
		}
		stderr.Write(bytes.Repeat([]byte("y"), 1<<20))
	case "close-fds":
		for fd := range 256 {
			unix.Close(fd)
		}
		select {}
	case "slow-with-progress":
		for range 5 {
			time.Sleep(100 * time.Millisecond)
			m.watchers <- &modulev1.WatchEvent{Event: &modulev1.WatchEvent_Progress{Progress: &modulev1.Progress{
				OperationId: r.GetOperationId(), ExtendMs: 400,
			}}}
		}
	case "health-failed":
		m.watchers <- &modulev1.WatchEvent{Event: &modulev1.WatchEvent_Health{Health: &modulev1.Health{
			State: modulev1.Health_FAILED, Reason: "the card fell off",
		}}}
	case "metrics":
		m.watchers <- &modulev1.WatchEvent{Event: &modulev1.WatchEvent_Metrics{Metrics: hostileMetrics()}}
	}
	return out, nil
}

func hostileMetrics() *modulev1.Metrics {
	out := &modulev1.Metrics{Samples: []*modulev1.Metrics_Sample{
		{Name: "dropped_packets_total", Labels: map[string]string{"nic": "eth0"}, Value: 7, Counter: true},
		{Name: "dropped_packets_total", Labels: map[string]string{"nic": "eth0"}, Value: 8, Counter: true}, // twice
		{Name: "dropped_packets_total", Labels: map[string]string{"other": "label"}, Value: 9, Counter: true},
		{Name: "Bad Name!", Value: 1},
		{Name: "x", Labels: map[string]string{"__name__": "y"}, Value: 1},
	}}
	for i := range 1000 {
		out.Samples = append(out.Samples, &modulev1.Metrics_Sample{Name: fmt.Sprint("g", i), Value: float64(i)})
	}
	return out
}

func (m *testModule) Isolate(_ context.Context, r *isolatorv1.IsolateRequest) (*isolatorv1.IsolateResponse, error) {
	if r.GetRecord().GetContainer().GetId() == "limit" {
		m.watchers <- &modulev1.WatchEvent{Event: &modulev1.WatchEvent_Limitation{Limitation: &modulev1.Limitation{
			ContainerId: "limit", Reason: "REASON_CONTAINER_LIMITATION_MEMORY", Message: "ate too much",
		}}}
		m.watchers <- &modulev1.WatchEvent{Event: &modulev1.WatchEvent_Limitation{Limitation: &modulev1.Limitation{
			ContainerId: "limit", Reason: "REASON_INVENTED",
		}}}
	}
	return &isolatorv1.IsolateResponse{}, nil
}

func (m *testModule) Update(context.Context, *isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
	return &isolatorv1.UpdateResponse{}, nil
}

func (m *testModule) Usage(_ context.Context, r *isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error) {
	out := &isolatorv1.UsageResponse{Results: make(map[string]*isolatorv1.UsageResult)}
	for _, record := range r.GetRecords() {
		id := record.GetContainer().GetId()
		s := &mesosv1.ResourceStatistics{Timestamp: proto.Float64(1), CpusUserTimeSecs: proto.Float64(2)}
		switch id {
		case "nan":
			s.CpusUserTimeSecs = proto.Float64(math.NaN())
		case "negative":
			s.CpusUserTimeSecs = proto.Float64(-1)
		case "stranger":
			id = "somebody-elses"
		}
		out.Results[id] = &isolatorv1.UsageResult{Statistics: s}
	}
	return out, nil
}

func (m *testModule) Status(context.Context, *isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error) {
	return &isolatorv1.StatusResponse{}, nil
}

func (m *testModule) Cleanup(context.Context, *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	return &isolatorv1.CleanupResponse{}, nil
}

// testSchema has an attribute of each type and blocks of each form.
func testSchema() *modulev1.Schema {
	return &modulev1.Schema{
		Attributes: []*modulev1.Attribute{
			{Name: "policy", Type: modulev1.Attribute_STRING, DefaultJson: `"lenient"`, OneOf: []string{"strict", "lenient"}, Doc: "How strict to be."},
			{Name: "ratio", Type: modulev1.Attribute_NUMBER, Min: proto.Float64(0), Max: proto.Float64(1), Doc: "Share."},
			{Name: "count", Type: modulev1.Attribute_INTEGER, DefaultJson: "3", Doc: "How many."},
			{Name: "enabled", Type: modulev1.Attribute_BOOL, Doc: "Whether."},
			{Name: "interval", Type: modulev1.Attribute_DURATION, DefaultJson: "1000000000", Min: proto.Float64(1e6), Doc: "How often."},
			{Name: "cache", Type: modulev1.Attribute_SIZE, Doc: "How much."},
			{Name: "names", Type: modulev1.Attribute_STRING_LIST, Pattern: "[a-z]+", Doc: "Which."},
			{Name: "labels", Type: modulev1.Attribute_STRING_MAP, Doc: "Labels."},
			{Name: "weights", Type: modulev1.Attribute_NUMBER_LIST, Doc: "Weights."},
			{Name: "extra", Type: modulev1.Attribute_ANY, Doc: "Passed on."},
			{Name: "token", Type: modulev1.Attribute_STRING, Sensitive: true, Pattern: "tok-[0-9]+", ConflictsWith: []string{"token_file"}, Doc: "Secret."},
			{Name: "token_file", Type: modulev1.Attribute_STRING, ConflictsWith: []string{"token"}, Doc: "File of the secret."},
			{Name: "old", Type: modulev1.Attribute_STRING, Deprecated: "use policy", Doc: "Old."},
		},
		Blocks: []*modulev1.Block{
			{Name: "limit", MaxItems: 2, Labels: []string{"resource"}, Doc: "Limits.", Body: &modulev1.Schema{
				Attributes: []*modulev1.Attribute{{Name: "soft", Type: modulev1.Attribute_INTEGER, Required: true, Doc: "Soft limit"}},
			}},
			{Name: "store", MaxItems: 1, Doc: "Where.", Body: &modulev1.Schema{
				Attributes: []*modulev1.Attribute{{Name: "path", Type: modulev1.Attribute_STRING, DefaultJson: `"/var"`, Doc: "Path."}},
			}},
		},
	}
}

type testAuthorizer struct {
	authorizerv1.UnimplementedAuthorizerServer
	m *testModule
}

func (a testAuthorizer) Approver(_ context.Context, r *authorizerv1.ApproverRequest) (*authorizerv1.ApproverResponse, error) {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	a.m.prepared["approver"]++
	out := &authorizerv1.ApproverResponse{Revision: uint64(a.m.prepared["revision"])}
	values := func(allow bool, v ...string) *authorizerv1.Rule {
		return &authorizerv1.Rule{Match: authorizerv1.Rule_VALUES, Values: v, Allow: allow}
	}
	switch r.GetAction() {
	case "ALLOW":
		out.Decision = &authorizerv1.ApproverResponse_AllowAll{}
	case "DENY":
		out.Decision = &authorizerv1.ApproverResponse_DenyAll{}
	case "RULES":
		out.Decision = &authorizerv1.ApproverResponse_Rules{Rules: &authorizerv1.Rules{Rules: []*authorizerv1.Rule{
			values(false, "eng/secret"), values(true, "eng/%", "ops"),
		}}}
	case "ASK":
		out.Decision = &authorizerv1.ApproverResponse_Ask{}
	case "LIE": // no decision
	case "CRASH":
		os.Exit(1)
	case "REVISE":
		a.m.prepared["revision"]++
		a.m.watchers <- &modulev1.WatchEvent{Event: &modulev1.WatchEvent_Revision{Revision: &modulev1.Revision{Revision: uint64(a.m.prepared["revision"])}}}
		out.Decision = &authorizerv1.ApproverResponse_AllowAll{}
	case "COUNT": // how often it was asked, as a rule
		out.Decision = &authorizerv1.ApproverResponse_Rules{Rules: &authorizerv1.Rules{Rules: []*authorizerv1.Rule{
			values(true, fmt.Sprint(a.m.prepared["approver"])),
		}}}
	}
	return out, nil
}

func (a testAuthorizer) Authorize(_ context.Context, r *authorizerv1.AuthorizeRequest) (*authorizerv1.AuthorizeResponse, error) {
	out := &authorizerv1.AuthorizeResponse{}
	for _, o := range r.GetObjects() {
		if o.GetValue() == "short" {
			return &authorizerv1.AuthorizeResponse{Allowed: []bool{true}}, nil
		}
		out.Allowed = append(out.Allowed, o.GetValue() == "yes")
	}
	return out, nil
}

type testEstimator struct {
	resourceestimatorv1.UnimplementedResourceEstimatorServer
}

func (testEstimator) Estimate(s grpc.BidiStreamingServer[resourceestimatorv1.UsageReport, resourceestimatorv1.Estimation]) error {
	for {
		u, err := s.Recv()
		if err != nil {
			return err
		}
		if len(u.GetExecutors()) == 13 {
			os.Exit(1)
		}
		r := &mesosv1.Resource{
			Name: proto.String("cpus"), Type: mesosv1.Value_SCALAR.Enum(),
			Scalar: &mesosv1.Value_Scalar{Value: proto.Float64(float64(len(u.GetExecutors())))}, Revocable: &mesosv1.Resource_RevocableInfo{},
		}
		if err := s.Send(&resourceestimatorv1.Estimation{Revocable: []*mesosv1.Resource{r}}); err != nil {
			return err
		}
	}
}

// The last kinds, each with a right answer and a wrong one.

type testAuthenticator struct {
	authenticatorv1.UnimplementedAuthenticatorServer
}

func (testAuthenticator) Authenticate(_ context.Context, r *authenticatorv1.AuthenticateRequest) (*authenticatorv1.AuthenticateResponse, error) {
	out := &authenticatorv1.AuthenticateResponse{}
	switch r.GetHeaders()["Authorization"] {
	case "alice":
		out.Result = &authenticatorv1.AuthenticateResponse_Principal{Principal: &authenticatorv1.Principal{Value: proto.String("alice")}}
	case "nobody":
		out.Result = &authenticatorv1.AuthenticateResponse_Principal{Principal: &authenticatorv1.Principal{}}
	}
	return out, nil
}

type testSecrets struct {
	secretresolverv1.UnimplementedSecretResolverServer
}

func (testSecrets) Resolve(_ context.Context, r *secretresolverv1.ResolveRequest) (*secretresolverv1.ResolveResponse, error) {
	switch r.GetPrincipal() {
	case "mallory":
		return nil, status.Error(codes.PermissionDenied, "not yours")
	case "big":
		return &secretresolverv1.ResolveResponse{Data: make([]byte, maxSecret+1)}, nil
	}
	return &secretresolverv1.ResolveResponse{Data: []byte("s3cret")}, nil
}

type testLogger struct {
	containerloggerv1.UnimplementedContainerLoggerServer
}

func (testLogger) Prepare(_ context.Context, r *containerloggerv1.PrepareRequest) (*containerloggerv1.PrepareResponse, error) {
	path := func(p string) *containerloggerv1.PrepareResponse {
		return &containerloggerv1.PrepareResponse{Stdout: &containerloggerv1.Sink{Sink: &containerloggerv1.Sink_Path{Path: p}}}
	}
	switch r.GetContainer().GetId() {
	case "relative":
		return path("log"), nil
	case "no-helper":
		return &containerloggerv1.PrepareResponse{Stderr: &containerloggerv1.Sink{Sink: &containerloggerv1.Sink_Helper{Helper: "ghost"}}}, nil
	}
	return path("/var/log/task"), nil
}

type testHook struct{ hookv1.UnimplementedHookServer }

func (testHook) DecorateEnvironment(_ context.Context, r *hookv1.DecorateEnvironmentRequest) (*hookv1.DecorateEnvironmentResponse, error) {
	name := "ADDED"
	if r.GetContainer().GetId() == "wrong" {
		name = "A=B"
	}
	return &hookv1.DecorateEnvironmentResponse{Environment: map[string]string{name: "1"}}, nil
}
