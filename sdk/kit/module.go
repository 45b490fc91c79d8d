package kit

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

const (
	// describeTimeout is the contract's.
	describeTimeout = 2 * time.Second
	// callTimeout is for calls whose speed is not what a case is about.
	callTimeout = 20 * time.Second
)

// Subject is the module under test, whatever its kind.
type Subject struct {
	Dial Dial
	// Config is the document that instances are configured with; "" takes one made from the schema.
	Config string
}

// Module is one instance of the subject.
type Module struct {
	Conn    grpc.ClientConnInterface
	Control modulev1.ModuleClient
	Process Process // nil in the test's own process
	Desc    *modulev1.DescribeResponse

	stop    func() bool
	stopped bool
}

// Open starts an instance and does not speak to it. It ends with the case.
func (s *Subject) Open(t T) *Module {
	t.Helper()
	conn, stop, err := s.Dial(t.Context())
	if err != nil {
		t.Fatalf("start the module: %v", err)
	}
	m := &Module{Conn: conn, Control: modulev1.NewModuleClient(conn), stop: stop}
	m.Process, _ = conn.(Process)
	t.Cleanup(func() { m.Stop() })
	return m
}

// Describe starts an instance and asks what it is.
func (s *Subject) Describe(t T) *Module {
	t.Helper()
	m := s.Open(t)
	ctx, cancel := context.WithTimeout(t.Context(), describeTimeout)
	defer cancel()
	d, err := m.Control.Describe(ctx, &modulev1.DescribeRequest{HostVersion: "kit"})
	if err != nil {
		t.Fatalf("Describe: %v%s", err, m.Words())
	}
	m.Desc = d
	return m
}

// Start starts an instance and configures it.
func (s *Subject) Start(t T, machine *Machine) *Module {
	t.Helper()
	m := s.Describe(t)
	doc := s.Document(m.Desc)
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	r, err := m.Control.Configure(ctx, &modulev1.ConfigureRequest{ConfigJson: doc, Node: machine.Node})
	if err != nil {
		t.Fatalf("Configure(%s): %v%s", cut(doc, 400), err, m.Words())
	}
	if len(r.GetErrors()) > 0 {
		t.Fatalf("Configure(%s) refused %s; give the kit a configuration that the module takes", cut(doc, 400), paths(r.GetErrors()))
	}
	return m
}

// Document is what instances are configured with.
func (s *Subject) Document(d *modulev1.DescribeResponse) string {
	if s.Config != "" {
		return s.Config
	}
	return Document(d.GetSchema())
}

// Wants says whether the module declared a call.
func (m *Module) Wants(call string) bool { return slices.Contains(m.Desc.GetCalls(), call) }

// Kill ends the instance as a crash does. In the test's own process it is merely forgotten, which is the same to it.
func (m *Module) Kill() {
	if m.Process != nil {
		m.Process.Kill()
	}
	m.Stop()
}

// Stop ends the instance as a host does and says whether no force was needed. Further calls do nothing.
func (m *Module) Stop() bool {
	if m.stopped {
		return true
	}
	m.stopped = true
	return m.stop()
}

// Words are the last lines of the module's log, for messages.
func (m *Module) Words() string {
	if m.Process == nil || m.Process.Log() == "" {
		return ""
	}
	return "; the module wrote: " + m.Process.Log()
}

// Alive fails the case when the module does not answer any more.
func (m *Module) Alive(t T, after string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), describeTimeout)
	defer cancel()
	if _, err := m.Control.Describe(ctx, &modulev1.DescribeRequest{HostVersion: "kit"}); err != nil {
		t.Fatalf("after %s the module does not answer: %v%s", after, err, m.Words())
	}
}

// PrintedNothing ends the instance and fails the case if it has printed something.
func (m *Module) PrintedNothing(t T) {
	t.Helper()
	if m.Process == nil {
		return
	}
	m.Stop()
	if text := m.Process.Printed(); text != "" {
		t.Errorf("after the handshake line it printed %q, want nothing: logs belong on standard error", cut(text, 200))
	}
}

// Timeout is a context for one call whose speed does not matter.
func Timeout(t T) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), callTimeout)
}

// NeedProcess skips a case that looks at a process.
func NeedProcess(t T, m *Module) {
	t.Helper()
	if m.Process == nil {
		t.Skipf("the module runs within the test's own process")
	}
}

// Conform runs the cases of every kind as subtests of a *testing.T: what there is for kinds without a kit of their own.
func Conform[X Testing[X]](t X, dial Dial, level Level) {
	t.Helper()
	s := Subject{Dial: dial}
	Run(InTest(t), level, s.Cases())
}
