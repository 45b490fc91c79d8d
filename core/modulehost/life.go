package modulehost

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"github.com/hashicorp/hcl/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

const (
	// The handshake, the same for every kind and version for ever: versions are those of the gRPC services.
	cookieKey       = "MOSAIC_MODULE"
	cookieValue     = "mosaic.module.v1"
	protocolVersion = 1
	pluginName      = "module"

	// maxMessage bounds messages both ways.
	maxMessage = 16 << 20

	describeTimeout  = 2 * time.Second
	configureTimeout = 10 * time.Second
)

// life is one life of a module: a process, a connection, and what was agreed over it.
type life struct {
	module   *module
	process  *process
	conn     *grpc.ClientConn
	control  modulev1.ModuleClient
	desc     *modulev1.DescribeResponse
	contract contract
	calls    any // the kind's calls, as contract.lift made them
	granted  []string

	lost     chan struct{} // closed when the process ended or the connection broke
	lostOnce sync.Once
	cancel   context.CancelFunc // ends the streams
	streams  sync.WaitGroup
}

// bringUp starts the process and takes it to where it takes calls. On error nothing of it is left.
func (m *module) bringUp(ctx context.Context) (_ *life, err error) {
	l, err := m.startDescribed(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if err := m.configure(ctx, l); err != nil {
		return nil, err
	}
	streams, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.cancel = cancel
	l.streams.Go(func() { m.watch(streams, l) })
	l.streams.Go(func() { m.answer(streams, l) })
	l.streams.Go(func() { l.readStdio(streams) })
	if m.cfg.Kind == KindIsolator {
		m.set(StateRecovering, "is told what lives", nil)
		if err := m.recover(ctx, l); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// startDescribed starts the process and has it say what it is.
func (m *module) startDescribed(ctx context.Context) (_ *life, err error) {
	m.pump.hold()
	l, err := m.start(ctx)
	var missing *errNotInBundle
	isMissing := errors.As(err, &missing)
	m.pump.release(!isMissing)
	if isMissing {
		own, ok := m.ownProgram()
		if !ok {
			return nil, m.refuseMissing(missing)
		}
		m.program = own // the next life need not ask the bundle
		l, err = m.start(ctx)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	l.desc, err = m.describe(ctx, l)
	if err != nil {
		return nil, err
	}
	l.contract, err = choose(m.host.contracts[m.cfg.Kind], l.desc)
	if err != nil {
		return nil, m.refuse("command", "Module speaks no version that the host knows", err.Error())
	}
	l.granted, err = m.grant(l.desc)
	if err != nil {
		return nil, err
	}
	l.calls = l.contract.lift(l.conn)
	m.host.cache.put(m.cfg.Kind, m.cfg.Name, l.process.exe.digest, l.desc)
	m.mu.Lock()
	m.desc, m.service, m.digest = l.desc, l.contract.service, l.process.exe.digest
	m.mu.Unlock()
	return l, nil
}

// start opens the executable, starts it, reads the handshake and connects.
//
// Errors: *errNotInBundle, after which the module's own program can be tried.
func (m *module) start(ctx context.Context) (*life, error) {
	exe, args, err := m.executable()
	if err != nil {
		return nil, err
	}
	p := &process{
		spawner: m.host.spawner, pump: m.pump, exe: exe, args: args, cred: m.cred, ended: make(chan struct{}),
	}
	memory, pids := m.cfg.MemoryBytes, m.cfg.Pids
	if memory == 0 {
		memory = defaultMemory
	}
	if pids == 0 {
		pids = defaultPids
	}
	group := m.cfg.Kind + "." + m.cfg.Name
	if m.cfg.Kind == "" {
		group = "described"
	}
	p.cgroup, err = m.host.cgroups.make(group, memory, pids)
	if err != nil {
		// The limits guard the machine against the module; the module works without them.
		m.log.Warn("limit the module's cgroup", "error", err)
	}
	return m.handshake(ctx, p)
}

func (m *module) handshake(ctx context.Context, p *process) (*life, error) {
	m.pump.forget()
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: protocolVersion, MagicCookieKey: cookieKey, MagicCookieValue: cookieValue,
		},
		Plugins:          plugin.PluginSet{pluginName: &plugin.NetRPCUnsupportedPlugin{}},
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		SkipHostEnv:      true,
		StartTimeout:     handshakeTimeout,
		Logger:           hclog.NewNullLogger(),
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: m.host.runDir},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			return p, p.prepare(cmd, dir)
		},
	})
	m.set(StateStarting, m.lastReason(), nil)
	// go-plugin's start takes no context: killing the process is what ends it early.
	stop := context.AfterFunc(ctx, p.kill)
	address, err := client.Start()
	stop()
	if p.proc.Load() == nil {
		p.discard()
		return nil, fmt.Errorf("start: %w", err)
	}
	if err != nil {
		p.kill()
		p.pipes.Wait()
		return nil, m.handshakeError(err, p)
	}
	l := &life{module: m, process: p, lost: make(chan struct{}), cancel: func() {}}
	l.streams.Go(func() {
		<-p.ended
		l.lose()
	})
	m.mu.Lock()
	m.pid = p.proc.Load().Pid
	m.mu.Unlock()
	if err := l.connect(address.String()); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// handshakeError says why a process gave no handshake, by what the operator can see: its end and its last words.
func (m *module) handshakeError(err error, p *process) error {
	if p.exe.path == m.host.opts.Bundle && m.cfg.Command == "" && p.end == "exit status 2" {
		if known := m.pump.usage(m.cfg.Kind); len(known) > 0 {
			return &errNotInBundle{bundle: p.exe.path, known: known}
		}
	}
	words := m.pump.words()
	if words != "" {
		words = "; it wrote: " + words
	}
	const unrecognized = "Unrecognized remote plugin message: "
	var text string
	switch what := firstLine(err.Error()); {
	case strings.HasPrefix(what, "timeout"):
		text = fmt.Sprintf("no handshake within %s", handshakeTimeout)
	case strings.HasPrefix(what, unrecognized):
		text = fmt.Sprintf("wrote %q before its handshake", cutText(strings.TrimPrefix(what, unrecognized), 200))
	case strings.HasPrefix(what, strings.TrimSpace(unrecognized)), strings.HasPrefix(what, "plugin exited"):
		text = "ended before its handshake (" + p.end + ")"
	default:
		text = "handshake: " + what
	}
	return fmt.Errorf("%s%s", text, words)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return strings.TrimSpace(line)
}

func cutText(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}

// connect makes the one connection of this life. When it breaks the life is over, whether or not the process lives.
func (l *life) connect(address string) error {
	var once sync.Once
	conn, err := grpc.NewClient("passthrough:///module",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var c net.Conn
			err := errors.New("the connection to the module broke")
			once.Do(func() { c, err = l.process.dial(ctx, address) })
			if err != nil {
				l.lose()
				return nil, err
			}
			return &endingConn{Conn: c, end: l.lose}, nil
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	l.conn = conn
	l.control = modulev1.NewModuleClient(conn)
	return nil
}

// endingConn tells when the connection ended.
type endingConn struct {
	net.Conn
	end func()
}

func (c *endingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.end()
	}
	return n, err
}

func (c *endingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil {
		c.end()
	}
	return n, err
}

func (l *life) lose() { l.lostOnce.Do(func() { close(l.lost) }) }

func (l *life) isLost() bool {
	select {
	case <-l.lost:
		return true
	default:
		return false
	}
}

// obituary says how the life ended.
func (l *life) obituary() string {
	// The connection breaks a moment before the end of the process is seen.
	select {
	case <-l.process.ended:
	case <-time.After(20 * time.Millisecond):
		return "closed its connection"
	}
	text := "ended (" + l.process.end + ")"
	if words := l.module.pump.words(); words != "" {
		text += "; it wrote: " + words
	}
	return text
}

// drain asks the module to finish and waits until it did, or ctx ends.
func (l *life) drain(ctx context.Context) {
	deadline, _ := ctx.Deadline()
	request := &modulev1.DrainRequest{DeadlineMs: time.Until(deadline).Milliseconds()}
	if _, err := l.control.Drain(ctx, request); err != nil {
		l.module.log.Debug("drain", "error", err)
	}
	l.cancel()
	// What go-plugin servers in any language end at; others end when their standard input does.
	ctx, cancel := context.WithTimeout(ctx, exitPatience)
	defer cancel()
	_ = l.conn.Invoke(ctx, "/plugin.GRPCController/Shutdown", &emptypb.Empty{}, &emptypb.Empty{})
	l.process.stdin.Close()
	select {
	case <-l.process.ended:
	case <-ctx.Done():
	}
}

// close kills what is left of the process and waits for everything that served the life.
func (l *life) close() {
	l.cancel()
	l.process.kill()
	if l.conn != nil {
		l.conn.Close()
	}
	l.streams.Wait()
	l.process.pipes.Wait()
}

// describe asks the module what it is and compares that with what the composition says it is.
func (m *module) describe(ctx context.Context, l *life) (*modulev1.DescribeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout("describe", describeTimeout))
	defer cancel()
	d, err := l.control.Describe(ctx, &modulev1.DescribeRequest{HostVersion: m.host.opts.Version})
	if err != nil {
		return nil, fmt.Errorf("Describe: %s", status.Convert(err).Message())
	}
	if _, known := m.host.contracts[d.GetKind()]; known && m.cfg.Kind == "" {
		m.cfg.Kind, m.cfg.Name = d.GetKind(), d.GetName() // whoever asks what it is
	}
	if d.GetKind() != m.cfg.Kind || d.GetName() != m.cfg.Name {
		return nil, m.refuse("command", "Not the module of this block", fmt.Sprintf(
			"The executable %s is %s(%s), want %s.", l.process.exe.path, cutText(d.GetKind(), 64), cutText(d.GetName(), 64), m.cfg.id()))
	}
	if err := checkDescription(d); err != nil {
		return nil, fmt.Errorf("Describe: %w", err)
	}
	return d, nil
}

// grant gives the powers that the module may use: what it declares, less what the operator cut.
func (m *module) grant(d *modulev1.DescribeResponse) ([]string, error) {
	if m.cfg.Allow == nil {
		return d.GetPowers(), nil
	}
	for _, power := range m.cfg.Allow {
		if !slices.Contains(powers(), power) {
			return nil, m.refuse("allow", "Unknown power", fmt.Sprintf(
				"Got %q, want one of %s.%s", power, strings.Join(powers(), ", "), didYouMean(power, powers())))
		}
	}
	granted := []string{}
	for _, power := range d.GetPowers() {
		if slices.Contains(m.cfg.Allow, power) {
			granted = append(granted, power)
		}
	}
	return granted, nil
}

// configure decodes the config body by the module's schema and gives it to the module.
func (m *module) configure(ctx context.Context, l *life) error {
	doc, places, diags := decodeConfig(m.cfg.Config, l.desc.GetSchema(), &m.cfg)
	for _, d := range diags {
		if d.Severity == hcl.DiagWarning {
			m.log.Warn("composition", "diagnostic", d.Error())
		}
	}
	if diags.HasErrors() {
		return &CompositionError{diags}
	}
	ctx, cancel := context.WithTimeout(ctx, m.timeout("configure", configureTimeout))
	defer cancel()
	r, err := l.control.Configure(ctx, &modulev1.ConfigureRequest{ConfigJson: string(doc), Node: m.host.opts.Node})
	if err != nil {
		return fmt.Errorf("Configure: %s", status.Convert(err).Message())
	}
	if len(r.GetErrors()) == 0 {
		if err := checkFound(m.cfg.Kind, r.GetResources()); err != nil {
			return fmt.Errorf("Configure: %w", err)
		}
		m.mu.Lock()
		m.found, m.configured = r.GetResources(), true
		m.mu.Unlock()
		return nil
	}
	for i, e := range r.GetErrors() {
		if i == maxAttributeErrors {
			break
		}
		detail := cutText(e.GetMessage(), 1024)
		if e.GetSuggestion() != "" {
			detail += " Did you mean " + strconv.Quote(cutText(e.GetSuggestion(), 128)) + "?"
		}
		at, sensitive, ok := places.find(e.GetPath())
		if !ok {
			at = *m.cfg.rangeOf("config")
		}
		diag := &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  fmt.Sprintf("%s refuses %s", m.cfg.id(), orElse(cutText(e.GetPath(), 128), "its configuration")),
			Detail:   detail,
			Subject:  &at,
		}
		if sensitive {
			// Modules like to repeat what they got.
			diag.Detail, diag.Extra = "The value is not accepted. It is sensitive, so what the module says of it is not shown.", hidden{}
		}
		diags = append(diags, diag)
	}
	return &CompositionError{diags}
}

// maxAttributeErrors is how many errors of one Configure are shown.
const maxAttributeErrors = 50

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// refuse makes the error of a module that the composition asks for and that cannot be run.
func (m *module) refuse(attribute, summary, detail string) error {
	return &CompositionError{hcl.Diagnostics{{
		Severity: hcl.DiagError, Summary: m.cfg.id() + ": " + summary, Detail: detail, Subject: m.cfg.rangeOf(attribute),
	}}}
}

// refuseFile says what is wrong with the executable.
func (m *module) refuseFile(err error) error {
	switch {
	case errors.Is(err, errChecksum):
		return m.refuse("checksum", "Checksum differs",
			err.Error()+". Install the file that the checksum is of, or pin the one that is there after checking where it came from.")
	case errors.Is(err, fs.ErrNotExist):
		return m.refuse("command", "Missing executable", err.Error()+".")
	case errors.Is(err, errUntrusted):
		return m.refuse("command", "Executable that others can change", err.Error()+".")
	default:
		return m.refuse("command", "Executable cannot be used", err.Error()+".")
	}
}
