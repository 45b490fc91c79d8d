package modulehost

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// A second version of the isolator contract, for tests only. What it changes is the name of one call: Prepare is Plan,
// as a breaking change would be.

const serviceV2 = "mosaic.isolator.v2.Isolator"

func registerIsolatorV2(server *grpc.Server, m *testModule) {
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceV2,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Plan",
			Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				in := new(isolatorv1.PrepareRequest)
				if err := decode(in); err != nil {
					return nil, err
				}
				return &isolatorv1.PrepareResponse{Proposal: &containerv1.Proposal{
					Environment: map[string]string{"SPOKEN": "v2 to " + in.GetContainer().GetId()},
				}}, nil
			},
		}},
		Streams: []grpc.StreamDesc{{
			StreamName: "Recover", ClientStreams: true,
			Handler: func(_ any, s grpc.ServerStream) error {
				for {
					if err := s.RecvMsg(new(isolatorv1.RecoverRequest)); err != nil {
						return s.SendMsg(&isolatorv1.RecoverResponse{})
					}
				}
			},
		}},
	}, m)
}

// isolatorV2 is what the newest adapter of a host with version 2 looks like; isolatorV1 then lifts the older one.
type isolatorV2 struct {
	isolatorV1
	conn grpc.ClientConnInterface
}

func liftIsolatorV2(conn grpc.ClientConnInterface) any { return isolatorV2{conn: conn} }

func (i isolatorV2) Prepare(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	out := new(isolatorv1.PrepareResponse)
	return out, i.conn.Invoke(ctx, "/"+serviceV2+"/Plan", r, out)
}

func (i isolatorV2) Recover(ctx context.Context, pages [][]*isolatorv1.ContainerRecord) (*isolatorv1.RecoverResponse, error) {
	s, err := i.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, "/"+serviceV2+"/Recover")
	if err != nil {
		return nil, err
	}
	for _, page := range pages {
		if err := s.SendMsg(&isolatorv1.RecoverRequest{Containers: page}); err != nil {
			break
		}
	}
	if err := s.CloseSend(); err != nil {
		return nil, err
	}
	out := new(isolatorv1.RecoverResponse)
	return out, s.RecvMsg(out)
}

// contractsWithV2 are those of a host that knows both versions.
func contractsWithV2() map[string][]contract {
	c := contracts()
	c[KindIsolator] = append([]contract{{serviceV2, liftIsolatorV2}}, c[KindIsolator]...)
	return c
}

func TestTheNewestContractOfBothIsSpoken(t *testing.T) {
	for _, c := range []struct {
		how, service string
		known        map[string][]contract
		spoken       string
	}{
		{"v1 and v2", serviceV2, contractsWithV2(), "v2 to c1"},
		{"v2", serviceV2, contractsWithV2(), "v2 to c1"},
		{"good", "mosaic.isolator.v1.Isolator", contractsWithV2(), ""},
		{"v1 and v2", "mosaic.isolator.v1.Isolator", contracts(), ""},
	} {
		t.Run(c.how+" chooses "+c.service, func(t *testing.T) {
			h := startHost(t, Options{contracts: c.known}, testConfig(c.how))
			if got := h.Status()[0].Service; got != c.service {
				t.Errorf("Status().Service = %s, want %s", got, c.service)
			}
			r, err := h.Isolators()[0].Prepare(t.Context(), prepareRequest("c1"))
			if err != nil {
				t.Fatalf("Prepare: %v", err)
			}
			if got := r.GetProposal().GetEnvironment()["SPOKEN"]; got != c.spoken {
				t.Errorf("Prepare spoke %q, want %q", got, c.spoken)
			}
		})
	}
}

func TestAVersionNobodyKnowsIsRefusedNamingBothSides(t *testing.T) {
	for _, c := range []struct {
		how  string
		want []string
	}{
		{"v9", []string{"isolator(test)", "mosaic.isolator.v9.Isolator", "mosaic.isolator.v1.Isolator", "1.2.3", "upgrade mosaic"}},
		{"no service", []string{"isolator(test)", "no service", "mosaic.isolator.v1.Isolator"}},
	} {
		_, err := Start(t.Context(), testOptions(t), []ModuleConfig{testConfig(c.how)})
		if err == nil {
			t.Fatalf("Start with a module that speaks %s: no error", c.how)
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("Start with %s: %v, want it to name %q", c.how, err, want)
			}
		}
	}
}

func TestTheSideThatIsBehindIsTold(t *testing.T) {
	v1, v2 := contracts()[KindIsolator], contractsWithV2()[KindIsolator][:1]
	for _, c := range []struct {
		known    []contract
		services []string
		want     string
	}{
		{v1, []string{"mosaic.isolator.v3.Isolator"}, "upgrade mosaic"},
		{v2, []string{"mosaic.isolator.v1.Isolator"}, "upgrade the module"},
		{v1, []string{"mosaic.authorizer.v1.Authorizer"}, "no module of this kind"},
	} {
		_, err := choose(c.known, &modulev1.DescribeResponse{Services: c.services})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("choose(%v, %v) = %v, want %q", c.known, c.services, err, c.want)
		}
	}
}
