// Package isolatortest is the conformance kit of the isolator contract, version 1: what an agent relies on, as cases
// with names.
//
//	func TestConformance(t *testing.T) {
//		isolatortest.Run(t, kit.InProcess(hello.New))
//	}
//
// `mosaic module test` runs the same cases against any binary, in whatever language. The kit uses real cgroups where it
// may and folders with the same files elsewhere. Of what a module proposes it gives its processes the new namespaces,
// since Isolate may be there to furnish them; all else is the agent's work and tested there.
package isolatortest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/isolator"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// Contract is what the cases hold a module to.
const Contract = "mosaic.isolator.v1.Isolator"

// options are what an author may change.
type options struct {
	level    kit.Level
	config   string
	complete func(*containerv1.Container)
}

// Option changes a run.
type Option func(*options)

// Level runs the cases up to this level; the default is kit.Full.
func Level(l kit.Level) Option { return func(o *options) { o.level = l } }

// Config is the configuration document for the module, as JSON; the default is made from its schema.
func Config(document string) Option { return func(o *options) { o.config = document } }

// Container completes the containers of the cases for modules that need something special in them.
func Container(complete func(*containerv1.Container)) Option {
	return func(o *options) { o.complete = complete }
}

// Run runs the kit as subtests of a *testing.T.
func Run[X kit.Testing[X]](t X, dial kit.Dial, opts ...Option) {
	t.Helper()
	o := options{level: kit.Full}
	for _, opt := range opts {
		opt(&o)
	}
	kit.Run(kit.InTest(t), o.level, Cases(dial, opts...))
}

// Cases are all cases against a module, those of every kind first.
func Cases(dial kit.Dial, opts ...Option) []kit.Case {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	s := &suite{Subject: kit.Subject{Dial: dial, Config: o.config}, complete: o.complete, proposed: map[string][]containerv1.Namespace_Type{}}
	cases := s.Subject.Cases()
	cases = append(cases, s.launchCases()...)
	cases = append(cases, s.orderCases()...)
	cases = append(cases, s.restartCases()...)
	cases = append(cases, s.hostileCases()...)
	return append(cases, s.loadCases()...)
}

// suite is one module under test.
type suite struct {
	kit.Subject
	complete func(*containerv1.Container)

	mu       sync.Mutex                              // guards proposed
	proposed map[string][]containerv1.Namespace_Type // new namespaces, by container
}

// instance is one running instance with the machine that it works on.
type instance struct {
	*kit.Module
	isolatorv1.IsolatorClient
	machine *kit.Machine
	suite   *suite
	ops     int
}

// start starts an instance on a machine of its own and tells it that nothing lives.
func (s *suite) start(t kit.T) *instance {
	t.Helper()
	i := s.startOn(t, kit.NewMachine(t))
	i.recover(t)
	return i
}

// startOn starts an instance, which has not heard what lives.
func (s *suite) startOn(t kit.T, machine *kit.Machine) *instance {
	t.Helper()
	m := s.Start(t, machine)
	return &instance{Module: m, IsolatorClient: isolatorv1.NewIsolatorClient(m.Conn), machine: machine, suite: s}
}

// op gives a new operation id.
func (i *instance) op() string {
	i.ops++
	return fmt.Sprintf("op-%d", i.ops)
}

// number makes a resource.
func number(name string, v float64) *mesosv1.Resource {
	role := "*"
	return &mesosv1.Resource{Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Role: &role, Scalar: &mesosv1.Value_Scalar{Value: &v}}
}

// container is a command task as most are.
func (i *instance) container(t kit.T, id string) *containerv1.Container {
	t.Helper()
	sandbox, err := i.machine.Folder("sandbox")
	if err != nil {
		t.Fatalf("make a sandbox: %v", err)
	}
	c := &containerv1.Container{
		Id: id, Generation: 1, FrameworkId: "framework-1", ExecutorId: "executor-" + id, TaskId: "task-" + id, AgentId: "agent-1",
		Command:   &mesosv1.CommandInfo{Value: proto.String("sleep 1000"), Shell: proto.Bool(true)},
		Resources: []*mesosv1.Resource{number("cpus", 0.5), number("mem", 64), number("disk", 64)},
		User:      "root", Sandbox: sandbox, SandboxInContainer: sandbox, Cgroup: id,
		Environment: map[string]string{"MESOS_SANDBOX": sandbox, "MESOS_TASK_ID": "task-" + id},
		Labels:      map[string]string{"kit": "yes"},
	}
	if i.suite.complete != nil {
		i.suite.complete(c)
	}
	return c
}

// call is a context for one call whose speed is not what the case is about.
func call(t kit.T) (context.Context, context.CancelFunc) { return kit.Timeout(t) }

// prepare must succeed with a proposal that an agent takes. The record is what the agent would keep.
func (i *instance) prepare(t kit.T, c *containerv1.Container) *isolatorv1.ContainerRecord {
	t.Helper()
	ctx, cancel := call(t)
	defer cancel()
	r, err := i.Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: i.op(), Container: c, Granted: i.Desc.GetPowers()})
	if err != nil {
		t.Fatalf("Prepare of container %s: %v, want a plain command task to be taken%s", c.GetId(), err, i.Words())
	}
	for _, wrong := range isolator.CheckPrepare(i.Desc, r) {
		t.Errorf("Prepare of container %s: %s", c.GetId(), wrong)
	}
	i.suite.note(c.GetId(), r.GetProposal())
	return &isolatorv1.ContainerRecord{Container: c, State: r.GetState(), StateVersion: r.GetStateVersion()}
}

// note remembers what hold needs of a proposal.
func (s *suite) note(id string, p *containerv1.Proposal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.proposed, id)
	for _, n := range p.GetNamespaces() {
		if n.GetPath() == "" {
			s.proposed[id] = append(s.proposed[id], n.GetType())
		}
	}
}

// hold makes the container's process and cgroup, as a launcher does after Prepare.
func (i *instance) hold(t kit.T, r *isolatorv1.ContainerRecord) {
	t.Helper()
	i.suite.mu.Lock()
	namespaces := i.suite.proposed[r.GetContainer().GetId()]
	i.suite.mu.Unlock()
	pid, cgroups, err := i.machine.Start(r.GetContainer().GetCgroup(), namespaces...)
	if err != nil {
		t.Fatalf("make container %s: %v", r.GetContainer().GetId(), err)
	}
	r.Pid, r.Cgroups = int32(pid), cgroups
}

// isolate must succeed, if the module wants the call.
func (i *instance) isolate(t kit.T, r *isolatorv1.ContainerRecord) {
	t.Helper()
	if !i.isolateIfRoom(t, r) {
		t.Fatalf("Isolate of container %s: there is no room for it%s", r.GetContainer().GetId(), i.Words())
	}
}

// isolateIfRoom says whether the module has what one more container needs: it may give out something that is scarce.
func (i *instance) isolateIfRoom(t kit.T, r *isolatorv1.ContainerRecord) bool {
	t.Helper()
	if !i.Wants("isolate") {
		return true
	}
	ctx, cancel := call(t)
	defer cancel()
	_, err := i.Isolate(ctx, &isolatorv1.IsolateRequest{OperationId: i.op(), Record: r})
	if err != nil && status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("Isolate of container %s: %v%s", r.GetContainer().GetId(), err, i.Words())
	}
	return err == nil
}

// update must succeed, if the module wants the call, and changes the record.
func (i *instance) update(t kit.T, r *isolatorv1.ContainerRecord) {
	t.Helper()
	if !i.Wants("update") {
		return
	}
	r.Container.Resources = []*mesosv1.Resource{number("cpus", 1), number("mem", 128)}
	ctx, cancel := call(t)
	defer cancel()
	answer, err := i.Update(ctx, &isolatorv1.UpdateRequest{OperationId: i.op(), Record: r})
	if err != nil {
		t.Fatalf("Update of container %s: %v%s", r.GetContainer().GetId(), err, i.Words())
	}
	for _, wrong := range isolator.CheckUpdate(i.Desc, answer) {
		t.Errorf("Update of container %s: %s", r.GetContainer().GetId(), wrong)
	}
	if len(answer.GetState()) > 0 {
		r.State, r.StateVersion = answer.GetState(), answer.GetStateVersion()
	}
}

// measure asks for usage and status of containers, as far as the module wants the calls.
func (i *instance) measure(t kit.T, records ...*isolatorv1.ContainerRecord) {
	t.Helper()
	known := map[string]bool{}
	for _, r := range records {
		known[r.GetContainer().GetId()] = true
	}
	ctx, cancel := call(t)
	defer cancel()
	if i.Wants("usage") {
		answer, err := i.Usage(ctx, &isolatorv1.UsageRequest{Records: records})
		if err != nil {
			t.Fatalf("Usage of %d containers: %v, want errors inside the answer if there are any%s", len(records), err, i.Words())
		}
		for id, result := range answer.GetResults() {
			if !known[id] {
				t.Errorf("Usage answered for container %.80q, which was not asked for", id)
			}
			if result.GetStatistics() == nil && result.GetError() == "" {
				t.Errorf("Usage of container %.80q gave neither statistics nor an error; leave it out then", id)
			}
		}
	}
	if i.Wants("status") {
		answer, err := i.Status(ctx, &isolatorv1.StatusRequest{Records: records})
		if err != nil {
			t.Fatalf("Status of %d containers: %v, want errors inside the answer if there are any%s", len(records), err, i.Words())
		}
		for id, result := range answer.GetResults() {
			if !known[id] {
				t.Errorf("Status answered for container %.80q, which was not asked for", id)
			}
			if l := result.GetLimitation(); l != nil {
				if _, ok := mesosv1.TaskStatus_Reason_value[l.GetReason()]; !ok || l.GetContainerId() != id {
					t.Errorf("Status of container %.80q gave the limitation %v, want its own with a reason of Mesos", id, l)
				}
			}
		}
	}
}

// end ends the container's process and cgroup, as the agent does before Cleanup.
func (i *instance) end(t kit.T, r *isolatorv1.ContainerRecord) {
	t.Helper()
	if err := i.machine.End(r.GetContainer().GetCgroup(), int(r.GetPid())); err != nil {
		t.Errorf("end container %s: %v; what keeps its cgroup alive?", r.GetContainer().GetId(), err)
	}
}

// cleanup must succeed.
func (i *instance) cleanup(t kit.T, r *isolatorv1.ContainerRecord, why isolatorv1.CleanupRequest_Reason) {
	t.Helper()
	ctx, cancel := call(t)
	defer cancel()
	if _, err := i.Cleanup(ctx, &isolatorv1.CleanupRequest{OperationId: i.op(), Record: r, Reason: why}); err != nil {
		t.Errorf("Cleanup of container %.80q (%s): %v, want success%s", r.GetContainer().GetId(), why, err, i.Words())
	}
}

// launch takes a container to where its command would start.
func (i *instance) launch(t kit.T, id string) *isolatorv1.ContainerRecord {
	t.Helper()
	r := i.prepare(t, i.container(t, id))
	i.hold(t, r)
	i.isolate(t, r)
	return r
}

// recover tells the instance what lives, in pages of at most 500 as the agent does, and gives the ids it does not know.
func (i *instance) recover(t kit.T, records ...*isolatorv1.ContainerRecord) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), recoverTime(len(records)))
	defer cancel()
	stream, err := i.Recover(ctx)
	if err != nil {
		t.Fatalf("Recover: %v%s", err, i.Words())
	}
	for rest := records; len(rest) > 0; {
		n := min(len(rest), page)
		if err := stream.Send(&isolatorv1.RecoverRequest{Containers: rest[:n]}); err != nil {
			break // CloseAndRecv says why
		}
		rest = rest[n:]
	}
	answer, err := stream.CloseAndRecv()
	if err != nil {
		t.Fatalf("Recover of %d containers: %v%s", len(records), err, i.Words())
	}
	return answer.GetUnknown()
}

// page is how many containers the agent puts into one message.
const page = 500

// recoverTime is the agent's deadline: 30 s and 5 ms a container.
func recoverTime(containers int) time.Duration {
	return 30*time.Second + time.Duration(containers)*5*time.Millisecond
}

// refused says whether an error is one of those that the contract has for requests that cannot be done.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.OK, codes.InvalidArgument, codes.FailedPrecondition, codes.ResourceExhausted, codes.NotFound, codes.OutOfRange:
		return true
	}
	return false
}

// unknown is a record of a container that the module never saw.
func unknown(id string) *isolatorv1.ContainerRecord {
	return &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: id, Generation: 1}}
}
