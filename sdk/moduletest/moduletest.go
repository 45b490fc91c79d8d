// Package moduletest runs a module in the test's own process and talks to it as a host does: over gRPC, through the
// whole of sdk/module, without a process and a socket file.
package moduletest

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
	qoscontrollerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/qoscontroller/v1"
	resourceestimatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceestimator/v1"
)

// Client is the host's side of one module. Clients of kinds that the module is not answer Unimplemented.
type Client struct {
	Conn       *grpc.ClientConn
	Module     modulev1.ModuleClient
	Isolator   isolatorv1.IsolatorClient
	Authorizer authorizerv1.AuthorizerClient
	Estimator  resourceestimatorv1.ResourceEstimatorClient
	QoS        qoscontrollerv1.QoSControllerClient
}

// Node is what the module is told of the machine; tests change it where that matters.
func Node() *modulev1.NodeFacts {
	return &modulev1.NodeFacts{
		Hostname: "host", Os: "linux", Arch: "amd64", Kernel: "6.1.0", CgroupVersion: 1, Root: true,
		CgroupRoots: map[string]string{"cpu": "/sys/fs/cgroup/cpu", "memory": "/sys/fs/cgroup/memory"},
		Cpus:        4, MemBytes: 8 << 30, BootId: "boot", WorkDir: "/var/lib/mosaic",
	}
}

// Dial serves the module and connects to it, unconfigured. Everything ends with the test.
func Dial(t testing.TB, m module.Module) *Client {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	s := module.NewServer(m)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:module", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatalf("connect to the module: %v", err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		s.Stop()
		_ = <-served
	})
	return &Client{
		Conn: conn, Module: modulev1.NewModuleClient(conn), Isolator: isolatorv1.NewIsolatorClient(conn),
		Authorizer: authorizerv1.NewAuthorizerClient(conn), Estimator: resourceestimatorv1.NewResourceEstimatorClient(conn),
		QoS: qoscontrollerv1.NewQoSControllerClient(conn),
	}
}

// Start is Dial and Configure with a JSON document that must be taken.
func Start(t testing.TB, m module.Module, config string) *Client {
	t.Helper()
	c := Dial(t, m)
	if errs := c.Configure(t, config); len(errs) > 0 {
		t.Fatalf("Configure(%s) = %v, want no errors", config, errs)
	}
	return c
}

// Configure sends a configuration and returns the attributes found wrong.
func (c *Client) Configure(t testing.TB, config string) []*modulev1.AttributeError {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := c.Module.Configure(ctx, &modulev1.ConfigureRequest{ConfigJson: config, Node: Node()})
	if err != nil {
		t.Fatalf("Configure(%s): %v", config, err)
	}
	return r.GetErrors()
}

// Answer is a host that answers the module's questions: these containers live here. It ends with the test.
func (c *Client) Answer(t testing.TB, facts ...*modulev1.ContainerFact) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := c.Module.Ask(ctx)
	if err != nil {
		cancel()
		t.Fatalf("Ask: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			q, err := s.Recv()
			if err != nil {
				return
			}
			page := &modulev1.ContainersReply{}
			for _, f := range facts {
				if ids := q.GetContainers().GetIds(); len(ids) == 0 || slices.Contains(ids, f.GetId()) {
					page.Containers = append(page.Containers, f)
				}
			}
			if s.Send(&modulev1.Reply{Id: q.GetId(), Reply: &modulev1.Reply_Containers{Containers: page}}) != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

// Next waits for the first event of Watch that wanted takes.
func (c *Client) Next(t testing.TB, wanted func(*modulev1.WatchEvent) bool) *modulev1.WatchEvent {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := c.Module.Watch(ctx, &modulev1.WatchRequest{})
	if err != nil {
		t.Fatalf("Watch: %v", err)
	}
	for {
		e, err := s.Recv()
		if err != nil {
			t.Fatalf("wait for an event: %v", err)
		}
		if wanted(e) {
			return e
		}
	}
}

// Describe asks for the description.
func (c *Client) Describe(t testing.TB) *modulev1.DescribeResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	d, err := c.Module.Describe(ctx, &modulev1.DescribeRequest{HostVersion: "test"})
	if err != nil {
		t.Fatalf("Describe: %v", err)
	}
	return d
}
