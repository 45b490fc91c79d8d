package module_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// sample is an isolator whose Prepare does what a test wants.
type sample struct {
	isolatorv1.UnimplementedIsolatorServer
	info    module.Info
	prepare func(context.Context) error
}

func (s *sample) Info() module.Info {
	i := s.info
	i.Kind, i.Name, i.Version, i.Doc = "isolator", "sample", "1.0.0", "for tests"
	return i
}

func (s *sample) Prepare(ctx context.Context, _ *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	return &isolatorv1.PrepareResponse{}, s.prepare(ctx)
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestDescribeNamesTheServicesThatTheModuleImplements(t *testing.T) {
	c := moduletest.Dial(t, &sample{info: module.Info{Powers: []string{"rlimits"}}})
	d := c.Describe(t)
	if len(d.GetServices()) != 1 || d.GetServices()[0] != "mosaic.isolator.v1.Isolator" || d.GetKind() != "isolator" || d.GetPowers()[0] != "rlimits" || d.GetSchema() == nil {
		t.Errorf("Describe = %v, want the isolator service and what Info says", d)
	}
	if _, err := c.Authorizer.Approver(timeout(t), nil); status.Code(err) != codes.Unimplemented {
		t.Errorf("a call of another kind: %v, want Unimplemented", err)
	}
}

func TestErrorsKeepTheirCodeAndOthersGetOne(t *testing.T) {
	for _, test := range []struct {
		err  error
		want codes.Code
	}{
		{module.InvalidArgument("soft above hard"), codes.InvalidArgument},
		{module.FailedPrecondition("no cgroups"), codes.FailedPrecondition},
		{errors.New("oops"), codes.Internal},
		{nil, codes.OK},
	} {
		c := moduletest.Dial(t, &sample{prepare: func(context.Context) error { return test.err }})
		if _, err := c.Isolator.Prepare(timeout(t), &isolatorv1.PrepareRequest{}); status.Code(err) != test.want {
			t.Errorf("Prepare that returns %v = %v, want %v", test.err, err, test.want)
		}
	}
}

func TestADeadlineEndsTheModulesWork(t *testing.T) {
	ended := make(chan error, 1)
	c := moduletest.Dial(t, &sample{prepare: func(ctx context.Context) error {
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Isolator.Prepare(ctx, &isolatorv1.PrepareRequest{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("Prepare = %v, want DeadlineExceeded", err)
	}
	if err := <-ended; err == nil {
		t.Error("the module's context did not end")
	}
}

func TestDryRunAndRefusalChangeNothing(t *testing.T) {
	config := module.NewConfig(struct {
		Limit int `hcl:"limit,optional" doc:"Most."`
	}{1}, nil)
	var taken int
	s := &sample{info: module.Info{Config: config, Configured: func(context.Context, *modulev1.NodeFacts) error {
		taken++
		if config.Get().Limit > 100 {
			return module.Wrong("limit", "got too much")
		}
		return nil
	}}}
	c := moduletest.Dial(t, s)
	r, err := c.Module.Configure(timeout(t), &modulev1.ConfigureRequest{ConfigJson: `{"limit":5}`, DryRun: true})
	if err != nil || len(r.GetErrors()) > 0 || config.Get().Limit != 1 || taken != 0 {
		t.Errorf("dry run = %v, %v, limit %d; want no change", r, err, config.Get().Limit)
	}
	if errs := c.Configure(t, `{"limit":"five"}`); len(errs) != 1 || config.Get().Limit != 1 {
		t.Errorf("Configure = %v, limit %d; want an error and no change", errs, config.Get().Limit)
	}
	if errs := c.Configure(t, `{"limit":5}`); len(errs) != 0 || config.Get().Limit != 5 || taken != 1 {
		t.Errorf("Configure = %v, limit %d; want 5", errs, config.Get().Limit)
	}
	if errs := c.Configure(t, `{"limit":500}`); len(errs) != 1 || errs[0].GetPath() != "limit" || config.Get().Limit != 5 {
		t.Errorf("Configure = %v, limit %d; want an error at limit and the configuration of before", errs, config.Get().Limit)
	}
}

func TestDrainWaitsForCallsAndRefusesNewOnes(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	c := moduletest.Dial(t, &sample{prepare: func(context.Context) error {
		close(entered)
		<-leave
		return nil
	}})
	ctx := timeout(t)
	watch, err := c.Module.Watch(ctx, &modulev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	prepared := make(chan error, 1)
	go func() {
		_, err := c.Isolator.Prepare(ctx, &isolatorv1.PrepareRequest{})
		prepared <- err
	}()
	<-entered
	drained := make(chan error, 1)
	go func() {
		_, err := c.Module.Drain(ctx, &modulev1.DrainRequest{DeadlineMs: 10_000})
		drained <- err
	}()
	for { // Watch ends when draining begins
		if _, err := watch.Recv(); err != nil {
			break
		}
	}
	if _, err := c.Isolator.Prepare(ctx, &isolatorv1.PrepareRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("Prepare while draining = %v, want Unavailable", err)
	}
	select {
	case err := <-drained:
		t.Errorf("Drain = %v while a call is in flight, want it to wait", err)
	default:
	}
	close(leave)
	if err := <-prepared; err != nil {
		t.Errorf("the call in flight = %v, want success", err)
	}
	if err := <-drained; err != nil {
		t.Errorf("Drain = %v, want success", err)
	}
	if _, err := c.Module.Drain(ctx, &modulev1.DrainRequest{}); err != nil {
		t.Errorf("Drain again = %v, want success", err)
	}
	c.Describe(t)
}

func TestQuestionsAreAnsweredInPages(t *testing.T) {
	host := module.NewHost()
	c := moduletest.Dial(t, &sample{info: module.Info{Host: host}})
	ctx := timeout(t)
	s, err := c.Module.Ask(ctx)
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		for {
			q, err := s.Recv()
			if err != nil {
				answered <- err
				return
			}
			page := &modulev1.ContainersReply{Containers: []*modulev1.ContainerFact{{Id: "a"}}, NextPageToken: "more"}
			if q.GetContainers().GetPageToken() == "more" {
				page = &modulev1.ContainersReply{Containers: []*modulev1.ContainerFact{{Id: "b"}}}
			}
			reply := &modulev1.Reply{Id: q.GetId(), Reply: &modulev1.Reply_Containers{Containers: page}}
			if len(q.GetContainers().GetIds()) > 0 {
				reply.Reply = &modulev1.Reply_Error{Error: "not today"}
			}
			if err := errors.Join(s.Send(&modulev1.Reply{Id: 999}), s.Send(reply)); err != nil { // an answer nobody waits for is no harm
				answered <- err
				return
			}
		}
	}()
	list, err := host.Containers(ctx)
	if err != nil || len(list) != 2 || list[0].GetId() != "a" || list[1].GetId() != "b" {
		t.Errorf("Containers = %v, %v; want both pages", list, err)
	}
	if _, err := host.Containers(ctx, "x"); err == nil || !strings.Contains(err.Error(), "not today") {
		t.Errorf("Containers = %v, want what the host says", err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	<-answered
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := host.Containers(short); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("Containers without a host = %v, want DeadlineExceeded", err)
	}
}

func TestTheFakeHostOfTestsAnswersAndListens(t *testing.T) {
	host, events := module.NewHost(), module.NewEvents()
	c := moduletest.Dial(t, &sample{info: module.Info{Host: host, Events: events}})
	c.Answer(t, &modulev1.ContainerFact{Id: "a"}, &modulev1.ContainerFact{Id: "b"})
	if list, err := host.Containers(timeout(t), "b"); err != nil || len(list) != 1 || list[0].GetId() != "b" {
		t.Errorf("Containers(b) = %v, %v; want b", list, err)
	}
	events.Health(modulev1.Health_DEGRADED, "no cgroups")
	events.Progress("op", 3*time.Second, "formatting")
	e := c.Next(t, func(e *modulev1.WatchEvent) bool { return e.GetProgress() != nil })
	if p := e.GetProgress(); p.GetExtendMs() != 3000 || p.GetOperationId() != "op" {
		t.Errorf("progress %v, want 3 s more for op", p)
	}
}
