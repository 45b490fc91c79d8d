package kit

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// Cases are those that hold for modules of every kind.
func (s *Subject) Cases() []Case {
	return []Case{
		{Level: Core, Name: "HandshakeComesWithinTwoSeconds", Why: "an agent starts all modules at once and its tasks wait for the slowest", Do: s.handshake},
		{Level: Core, Name: "NothingIsPrintedAfterTheHandshakeLine", Why: "standard output is the handshake's; what else stands there is lost or takes a host by surprise", Do: s.printed},
		{Level: Core, Name: "HealthIsServed", Why: "hosts that supervise go-plugin modules ask for the service \"plugin\"", Do: s.health},
		{Level: Core, Name: "DescribeNeedsNoConfiguration", Why: "operators describe modules before they configure them", Do: s.describeFirst},
		{Level: Core, Name: "DescribeIsStable", Why: "answers are kept by the binary's digest and used when the module does not run", Do: s.describeStable},
		{Level: Core, Name: "DescriptionIsComplete", Why: "the host decides by it what to call and what to allow", Do: s.description},
		{Level: Core, Name: "SchemaIsWellFormed", Why: "`mosaic config validate` checks compositions by the schema alone", Do: s.schema},
		{Level: Core, Name: "DefaultConfigurationIsTaken", Why: "a block without settings must work, or the schema must say what is missing", Do: s.defaults},
		{Level: Core, Name: "EachWrongAttributeIsToldByItsPath", Why: "an operator finds a mistake by file and line, which follow from the path", Do: s.wrongAttributes},
		{Level: Core, Name: "UnknownAttributeIsRefused", Why: "a misspelt setting that is ignored is a setting that does not hold", Do: s.unknownAttribute},
		{Level: Core, Name: "GarbageIsNoConfiguration", Why: "a document that cannot be read must be refused, not guessed at", Do: s.garbage},
		{Level: Core, Name: "DryRunOfAWrongConfigurationIsRefused", Why: "a plan asks with dry_run what a start would say", Do: s.dryRun},
		{Level: Core, Name: "WatchStaysOpen", Why: "limits, health and metrics come on it; a stream that ends at once is opened for ever", Do: s.watchStays},
		{Level: Core, Name: "DrainEndsWatchAndMayBeRepeated", Why: "the host drains before each stop and each upgrade", Do: s.drain},
		{Level: Core, Name: "EndsWithItsHost", Why: "a module that outlives its agent is an orphan that nobody ends", Do: s.endsWithHost},
		{Level: Core, Name: "StopsWithoutForce", Why: "a module that must be killed cannot finish what it does", Do: s.stops},
		{Level: Full, Name: "HeartbeatComesWithinTenSeconds", Why: "the host takes a silent module for one that hangs", Do: s.heartbeat, Beside: true},
		{Level: Full, Name: "DescribeWorksWithoutPrivileges", Why: "`mosaic module describe` runs strangers' binaries without privileges", Do: s.unprivileged},
		{Level: Full, Name: "WrongBytesAreNoCrash", Why: "a bug in a host must not take down what others depend on", Do: s.wrongBytes},
		{Level: Full, Name: "OversizeMessageIsRefused", Why: "messages are at most 16 MiB both ways; more must not eat the machine's memory", Do: s.oversize},
		{Level: Full, Name: "UnknownServiceAndCallAreUnimplemented", Why: "a newer host tries newer calls and falls back by that code", Do: s.unknownCall},
	}
}

// maxHandshake is the contract's: two seconds from exec to line.
const maxHandshake = 2 * time.Second

func (s *Subject) handshake(t T) {
	m := s.Open(t)
	NeedProcess(t, m)
	if d := m.Process.Handshake(); d > maxHandshake {
		t.Errorf("the handshake line came after %s, want at most %s", d.Round(time.Millisecond), maxHandshake)
	}
	Measure(t, "handshake", m.Process.Handshake().Seconds()*1000, "ms")
}

func (s *Subject) printed(t T) {
	machine := NewMachine(t)
	m := s.Start(t, machine)
	NeedProcess(t, m)
	m.PrintedNothing(t)
}

func (s *Subject) health(t T) {
	m := s.Open(t)
	ctx, cancel := Timeout(t)
	defer cancel()
	r, err := healthv1.NewHealthClient(m.Conn).Check(ctx, &healthv1.HealthCheckRequest{Service: "plugin"})
	if err != nil || r.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health of service \"plugin\" = %v, %v; want SERVING", r.GetStatus(), err)
	}
}

func (s *Subject) describeFirst(t T) { s.Describe(t) }

func (s *Subject) describeStable(t T) {
	machine := NewMachine(t)
	m := s.Start(t, machine)
	ctx, cancel := Timeout(t)
	defer cancel()
	again, err := m.Control.Describe(ctx, &modulev1.DescribeRequest{HostVersion: "another"})
	if err != nil {
		t.Fatalf("Describe after Configure: %v%s", err, m.Words())
	}
	if !proto.Equal(m.Desc, again) {
		t.Errorf("Describe after Configure = %v, before it was %v; want the same", again, m.Desc)
	}
	if other := s.Describe(t); !proto.Equal(m.Desc, other.Desc) {
		t.Errorf("Describe of a second instance = %v, want that of the first: %v", other.Desc, m.Desc)
	}
}

func (s *Subject) description(t T) {
	for _, wrong := range checkDescription(s.Describe(t).Desc) {
		t.Errorf("Describe: %s", wrong)
	}
}

func (s *Subject) schema(t T) {
	for _, wrong := range checkSchema(s.Describe(t).Desc.GetSchema(), "", 0) {
		t.Errorf("schema: %s", wrong)
	}
}

// configure sends a document and wants an answer of the call itself.
func (m *Module) configure(t T, machine *Machine, doc string, dryRun bool) []*modulev1.AttributeError {
	t.Helper()
	ctx, cancel := Timeout(t)
	defer cancel()
	r, err := m.Control.Configure(ctx, &modulev1.ConfigureRequest{ConfigJson: doc, Node: machine.Node, DryRun: dryRun})
	if err != nil {
		t.Fatalf("Configure(%s): %v, want an answer with attribute errors or none%s", cut(doc, 400), err, m.Words())
	}
	return r.GetErrors()
}

func (s *Subject) defaults(t T) {
	machine := NewMachine(t)
	m := s.Start(t, machine)
	if errs := m.configure(t, machine, s.Document(m.Desc), false); len(errs) > 0 {
		t.Errorf("the same configuration again: got %s, want none", paths(errs))
	}
}

func (s *Subject) wrongAttributes(t T) {
	machine := NewMachine(t)
	m := s.Describe(t)
	list := mistakes(m.Desc.GetSchema())
	if len(list) == 0 {
		t.Skipf("the schema has no attributes")
	}
	for _, w := range list {
		errs := m.configure(t, machine, w.doc, false)
		found := false
		for _, e := range errs {
			found = found || covers(e.GetPath(), w.path)
		}
		if !found {
			t.Errorf("%s: %s: got %s, want an error at %q", w.path, w.what, paths(errs), w.path)
		}
	}
	m.Alive(t, "wrong configurations")
}

func (s *Subject) unknownAttribute(t T) {
	machine := NewMachine(t)
	m := s.Describe(t)
	doc := strings.TrimSuffix(strings.TrimSpace(s.Document(m.Desc)), "}")
	if strings.TrimSpace(doc) != "{" {
		doc += ","
	}
	doc += `"no_such_attribute":1}`
	if len(m.Desc.GetSchema().GetAttributes())+len(m.Desc.GetSchema().GetBlocks()) == 0 {
		doc = `{"no_such_attribute":1}`
	}
	errs := m.configure(t, machine, doc, false)
	for _, e := range errs {
		if covers(e.GetPath(), "no_such_attribute") {
			return
		}
	}
	if len(errs) == 0 && len(m.Desc.GetSchema().GetAttributes())+len(m.Desc.GetSchema().GetBlocks()) == 0 {
		t.Skipf("the module has no configuration; the host lets none through")
	}
	t.Errorf("Configure(%s): got %s, want an error at \"no_such_attribute\"", cut(doc, 400), paths(errs))
}

func (s *Subject) garbage(t T) {
	machine := NewMachine(t)
	m := s.Describe(t)
	none := len(m.Desc.GetSchema().GetAttributes())+len(m.Desc.GetSchema().GetBlocks()) == 0
	for _, doc := range []string{"{", "[]", "\"text\"", strings.Repeat("[", 100_000), "{\"\":" + strings.Repeat("1", 100_000) + "}"} {
		ctx, cancel := Timeout(t)
		r, err := m.Control.Configure(ctx, &modulev1.ConfigureRequest{ConfigJson: doc, Node: machine.Node})
		cancel()
		switch status.Code(err) {
		case codes.OK:
			if len(r.GetErrors()) == 0 && !none {
				t.Errorf("Configure(%s) took it, want errors", cut(doc, 40))
			}
		case codes.InvalidArgument:
		default:
			t.Errorf("Configure(%s): %v, want attribute errors or InvalidArgument%s", cut(doc, 40), err, m.Words())
		}
	}
	m.Alive(t, "garbage for a configuration")
}

func (s *Subject) dryRun(t T) {
	machine := NewMachine(t)
	m := s.Start(t, machine)
	list := mistakes(m.Desc.GetSchema())
	if len(list) == 0 {
		t.Skipf("the schema has no attributes")
	}
	if errs := m.configure(t, machine, list[0].doc, true); len(errs) == 0 {
		t.Errorf("Configure(%s) with dry_run: got no error, want one at %q", cut(list[0].doc, 400), list[0].path)
	}
	if errs := m.configure(t, machine, s.Document(m.Desc), true); len(errs) > 0 {
		t.Errorf("Configure with dry_run and a right document: got %s, want none", paths(errs))
	}
}

// Flips configures with dry_run what differs from the configuration at work in one bool each, which must change
// nothing, and says how many such documents there were.
func (s *Subject) Flips(t T, m *Module, machine *Machine) int {
	t.Helper()
	list := flips(m.Desc.GetSchema(), s.Document(m.Desc))
	for _, doc := range list {
		m.configure(t, machine, doc, true)
	}
	return len(list)
}

// watch opens the stream and hands on its events until it ends.
func (m *Module) watch(t T) (events <-chan *modulev1.WatchEvent, ended <-chan error) {
	t.Helper()
	stream, err := m.Control.Watch(t.Context(), &modulev1.WatchRequest{})
	if err != nil {
		t.Fatalf("Watch: %v", err)
	}
	out, end := make(chan *modulev1.WatchEvent, 1024), make(chan error, 1)
	go func() { // ends with the stream, and that with the case
		for {
			e, err := stream.Recv()
			if err != nil {
				end <- err
				return
			}
			select {
			case out <- e:
			default: // nobody reads any more
			}
		}
	}()
	return out, end
}

// glance is how long a stream must stay open to count as one that does.
const glance = 300 * time.Millisecond

func (s *Subject) watchStays(t T) {
	machine := NewMachine(t)
	m := s.Start(t, machine)
	events, ended := m.watch(t)
	timer := time.NewTimer(glance)
	defer timer.Stop()
	last := uint64(0)
	for {
		select {
		case e := <-events:
			if e.GetSequence() <= last {
				t.Errorf("Watch sent sequence %d after %d, want it to rise", e.GetSequence(), last)
			}
			last = e.GetSequence()
			if e.GetTime() == nil || e.GetEvent() == nil {
				t.Errorf("Watch sent %v, want a time and an event", e)
			}
			if h := e.GetHealth(); h != nil && h.GetState() != modulev1.Health_OK && h.GetReason() == "" {
				t.Errorf("Watch sent health %s without a reason", h.GetState())
			}
		case err := <-ended:
			t.Fatalf("Watch ended at once: %v%s", err, m.Words())
		case <-timer.C:
			return
		}
	}
}

func (s *Subject) heartbeat(t T) {
	machine := NewMachine(t)
	m := s.Start(t, machine)
	events, ended := m.watch(t)
	const patience = 11 * time.Second // the contract's ten and what a busy machine takes
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case e := <-events:
			if e.GetHeartbeat() != nil {
				return
			}
		case err := <-ended:
			t.Fatalf("Watch ended: %v%s", err, m.Words())
		case <-timer.C:
			t.Fatalf("Watch sent no heartbeat within %s", patience)
		}
	}
}

func (s *Subject) drain(t T) {
	machine := NewMachine(t)
	m := s.Start(t, machine)
	_, ended := m.watch(t)
	for n := range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), stopTimeout)
		_, err := m.Control.Drain(ctx, &modulev1.DrainRequest{DeadlineMs: stopTimeout.Milliseconds()})
		cancel()
		if err != nil {
			t.Fatalf("Drain, time %d: %v%s", n+1, err, m.Words())
		}
	}
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case err := <-ended:
		if !errors.Is(err, io.EOF) {
			t.Errorf("Watch ended with %v after Drain, want its regular end", err)
		}
	case <-timer.C:
		t.Errorf("Watch is still open %s after Drain", stopTimeout)
	}
}

func (s *Subject) endsWithHost(t T) {
	machine := NewMachine(t)
	m := s.Start(t, machine)
	NeedProcess(t, m)
	m.Process.HangUp()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-m.Process.Ended():
	case <-timer.C:
		t.Errorf("it still runs %s after its standard input ended", stopTimeout)
	}
	if left := m.Process.Leftovers(); len(left) > 0 {
		t.Errorf("it left the processes %v behind", left)
	}
}

func (s *Subject) stops(t T) {
	machine := NewMachine(t)
	m := s.Start(t, machine)
	NeedProcess(t, m)
	if !m.Stop() {
		t.Errorf("told to end, it had to be killed after %s", stopTimeout)
	}
}

// nobody is a user without rights, by the number that every distribution uses.
const nobody = 65534

func (s *Subject) unprivileged(t T) {
	m := s.Describe(t)
	NeedProcess(t, m)
	if os.Geteuid() != 0 {
		t.Skipf("needs root to become another user")
	}
	user := m.Process.Program()
	user.User = &syscall.Credential{Uid: nobody, Gid: nobody}
	conn, stop, err := user.Dial(t.Context())
	if errors.Is(err, ErrCannotRun) {
		t.Skipf("%v", err)
	}
	if err != nil {
		t.Fatalf("start the module as uid %d: %v", nobody, err)
	}
	defer stop()
	ctx, cancel := context.WithTimeout(t.Context(), describeTimeout)
	defer cancel()
	d, err := modulev1.NewModuleClient(conn).Describe(ctx, &modulev1.DescribeRequest{HostVersion: "kit"})
	if err != nil {
		t.Fatalf("Describe as uid %d: %v", nobody, err)
	}
	if !proto.Equal(d, m.Desc) {
		t.Errorf("Describe as uid %d = %v, want the same as else: %v", nobody, d, m.Desc)
	}
}

func (s *Subject) wrongBytes(t T) {
	machine := NewMachine(t)
	m := s.Start(t, machine)
	methods := []string{"/mosaic.module.v1.Module/Describe", "/mosaic.module.v1.Module/Configure", "/mosaic.module.v1.Module/Drain"}
	for _, service := range m.Desc.GetServices() {
		for _, call := range unaryCalls(service) {
			methods = append(methods, "/"+service+"/"+call)
		}
	}
	for _, method := range methods {
		for _, data := range wrongMessages() {
			ctx, cancel := Timeout(t)
			var answer raw
			err := m.Conn.Invoke(ctx, method, raw(data), &answer, grpc.ForceCodec(rawCodec{}))
			cancel()
			if err == nil {
				t.Errorf("%s took the bytes %x, want an error", method, data)
			}
		}
	}
	m.Alive(t, "messages of wrong bytes")
}

func (s *Subject) oversize(t T) {
	machine := NewMachine(t)
	m := s.Start(t, machine)
	ctx, cancel := Timeout(t)
	defer cancel()
	_, err := m.Control.Configure(ctx, &modulev1.ConfigureRequest{ConfigJson: strings.Repeat(" ", maxMessage+1024), Node: machine.Node})
	if err == nil {
		t.Errorf("a message of more than 16 MiB was taken, want it refused")
	}
	m.Alive(t, "a message of more than 16 MiB")
}

func (s *Subject) unknownCall(t T) {
	m := s.Open(t)
	for _, method := range []string{"/mosaic.module.v1.Module/NoSuchCall", "/mosaic.none.v9.None/Call"} {
		ctx, cancel := Timeout(t)
		var answer raw
		err := m.Conn.Invoke(ctx, method, raw(nil), &answer, grpc.ForceCodec(rawCodec{}))
		cancel()
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: got %v, want Unimplemented", method, err)
		}
	}
	m.Alive(t, "a call that does not exist")
}
