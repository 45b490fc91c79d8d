package containerizer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// machine is what outlives the agent: processes, what isolators did, the disk with the checkpoints. Everything that
// happens to it is noted, and once it is cut nothing happens any more: the agent is dead from there on.
type machine struct {
	mu        sync.Mutex
	boot      string
	nextPid   int
	processes map[string]*process        // by container
	done      map[string]map[string]bool // module to containers it did something for
	disk      map[string][]byte
	log       []string
	steps     int // steps taken
	cutAfter  int // steps before the agent dies; 0: never
	dead      bool
	alone     map[string]bool // "module/container" with a mutating call in flight
	faults    []string        // broken promises, told at the end of the test
}

type process struct {
	id      string
	pid     int
	ticks   uint64
	started bool
	ended   chan struct{}
	over    bool
	status  int
	signals []syscall.Signal
	request *launcher.Request
	cgroup  *containerv1.CgroupResources
	stuck   bool // Destroy fails
	blind   bool // nobody knows the status
	streams *fakeStreams
}

func newMachine(t *testing.T) *machine {
	m := &machine{boot: "boot-1", nextPid: 5_000_000 /* above any the kernel gives */, processes: map[string]*process{}, done: map[string]map[string]bool{},
		disk: map[string][]byte{}, alone: map[string]bool{}}
	t.Cleanup(func() {
		for _, f := range m.faults {
			t.Error(f)
		}
	})
	return m
}

var errCut = errors.New("the agent is dead")

// step notes what happens and says whether the agent still lives to do it.
func (m *machine) step(format string, args ...any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead || m.cutAfter > 0 && m.steps >= m.cutAfter {
		m.dead = true
		return errCut
	}
	m.steps++
	m.log = append(m.log, fmt.Sprintf(format, args...))
	return nil
}

func (m *machine) revive() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead, m.cutAfter, m.steps = false, 0, 0
}

func (m *machine) history() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.log)
}

func (m *machine) exit(id string, status int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endLocked(m.processes[id], status)
}

func (m *machine) endLocked(p *process, status int) {
	if p != nil && !p.over {
		p.over, p.status = true, status
		close(p.ended)
	}
}

func (m *machine) process(id string) *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.processes[id]
}

func (m *machine) runs(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.processes[id]
	return p != nil && !p.over
}

// namespacesOf are those of a process: what its request made anew or joined.
func (m *machine) namespacesOf(ct *container) (*namespaces, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.processes[ct.id]
	if p == nil || p.over {
		return &namespaces{}, ErrNotRunning
	}
	n := &namespaces{}
	for _, ns := range p.request.Proposal.GetNamespaces() {
		where := ns.GetPath()
		if where == "" {
			where = fmt.Sprintf("/ns/%s/%s", p.id, ns.GetType())
		}
		n.list = append(n.list, &containerv1.Namespace{Type: ns.GetType(), Path: where})
	}
	return n, nil
}

// left says what is still there of a container.
func (m *machine) left(id string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var left []string
	if m.processes[id] != nil {
		left = append(left, "process")
	}
	for module, ids := range m.done {
		if ids[id] {
			left = append(left, "isolator "+module)
		}
	}
	if m.disk[id] != nil {
		left = append(left, "checkpoint")
	}
	slices.Sort(left)
	return left
}

// fakeStore is the agent's store on the machine's disk.
type fakeStore struct{ m *machine }

func (s fakeStore) PutContainer(_ context.Context, cp *containerv1.Checkpoint) error {
	if err := s.m.step("put %s %s", cp.GetContainer().GetId(), cp.GetPhase()); err != nil {
		return err
	}
	b, err := proto.Marshal(cp)
	if err != nil {
		return err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.disk[cp.GetContainer().GetId()] = b
	return nil
}

func (s fakeStore) DeleteContainer(_ context.Context, id string) error {
	if err := s.m.step("delete %s", id); err != nil {
		return err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	delete(s.m.disk, id)
	return nil
}

func (s fakeStore) Containers(context.Context) ([]*containerv1.Checkpoint, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	var list []*containerv1.Checkpoint
	for _, b := range s.m.disk {
		cp := &containerv1.Checkpoint{}
		if err := proto.Unmarshal(b, cp); err != nil {
			return nil, err
		}
		list = append(list, cp)
	}
	return list, nil
}

// fakeLauncher keeps its processes on the machine.
type fakeLauncher struct {
	m       *machine
	name    string
	refuses func(*launcher.Request) error
	fail    func(step string) error
}

func (l *fakeLauncher) Name() string { return l.name }

func (l *fakeLauncher) Supports(r *launcher.Request) error {
	if l.refuses != nil {
		return l.refuses(r)
	}
	return nil
}

func (l *fakeLauncher) failing(step string) error {
	if l.fail != nil {
		return l.fail(step)
	}
	return nil
}

func (l *fakeLauncher) Create(_ context.Context, r *launcher.Request) (launcher.Handle, error) {
	id := r.Container.GetId()
	if err := l.failing("create"); err != nil {
		return nil, fmt.Errorf("launcher(%s): %w", l.name, err)
	}
	if err := l.m.step("create %s", id); err != nil {
		return nil, err
	}
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.m.processes[id] != nil {
		l.m.faults = append(l.m.faults, fmt.Sprintf("container %s was created a second time beside its first start", id))
	}
	l.m.nextPid++
	p := &process{id: id, pid: l.m.nextPid, ticks: uint64(l.m.nextPid) * 7, ended: make(chan struct{}), request: r, cgroup: r.Proposal.GetCgroup()}
	if r.Streams != containerv1.Container_FILES {
		p.streams = newFakeStreams()
	}
	l.m.processes[id] = p
	return &fakeHandle{l: l, p: p}, nil
}

func (l *fakeLauncher) Reattach(_ context.Context, state []byte) (launcher.Handle, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	p := l.m.processes[string(state)]
	if p == nil {
		return nil, &launcher.GoneError{Why: "no such cgroup"}
	}
	if p.over {
		delete(l.m.processes, p.id)
		return nil, &launcher.GoneError{WaitStatus: p.status, Known: !p.blind, Why: "exit record"}
	}
	return &fakeHandle{l: l, p: p}, nil
}

type fakeHandle struct {
	l *fakeLauncher
	p *process
}

func (h *fakeHandle) State() []byte      { return []byte(h.p.id) }
func (h *fakeHandle) Pid() int           { return h.p.pid }
func (h *fakeHandle) StartTicks() uint64 { return h.p.ticks }
func (h *fakeHandle) Cgroups() map[string]string {
	return map[string]string{"cpu": "/sys/fs/cgroup/cpu/mosaic/" + h.p.id}
}

func (h *fakeHandle) Start(context.Context) error {
	if err := h.l.failing("start"); err != nil {
		return err
	}
	if err := h.l.m.step("start %s", h.p.id); err != nil {
		return err
	}
	h.l.m.mu.Lock()
	defer h.l.m.mu.Unlock()
	if h.p.over {
		return launcher.ErrEnded
	}
	h.p.started = true
	return nil
}

func (h *fakeHandle) Wait(ctx context.Context) (int, bool, error) {
	select {
	case <-h.p.ended:
		return h.p.status, !h.p.blind, nil
	case <-ctx.Done():
		return 0, false, ctx.Err()
	}
}

func (h *fakeHandle) Signal(_ context.Context, sig syscall.Signal) error {
	h.l.m.mu.Lock()
	defer h.l.m.mu.Unlock()
	h.p.signals = append(h.p.signals, sig)
	return nil
}

func (h *fakeHandle) Update(_ context.Context, c *containerv1.CgroupResources) error {
	h.l.m.mu.Lock()
	defer h.l.m.mu.Unlock()
	if h.p.cgroup == nil {
		h.p.cgroup = &containerv1.CgroupResources{}
	}
	proto.Merge(h.p.cgroup, c)
	return nil
}

func (h *fakeHandle) Destroy(context.Context) error {
	if err := h.l.failing("destroy"); err != nil {
		return err
	}
	if err := h.l.m.step("destroy %s", h.p.id); err != nil {
		return err
	}
	h.l.m.mu.Lock()
	defer h.l.m.mu.Unlock()
	if h.p.stuck {
		return errors.New("a process does not die")
	}
	for id, p := range h.l.m.processes {
		if !p.over && strings.HasPrefix(p.request.Container.GetCgroup(), h.p.request.Container.GetCgroup()+"/") {
			h.l.m.faults = append(h.l.m.faults, fmt.Sprintf("container %s was destroyed while %s, nested in it, ran", h.p.id, id))
		}
	}
	h.l.m.endLocked(h.p, int(syscall.SIGKILL))
	if h.l.m.processes[h.p.id] == h.p {
		delete(h.l.m.processes, h.p.id)
	}
	return nil
}

// fakeIsolator behaves like a module behind the host: it keeps no state but what it did to the machine.
type fakeIsolator struct {
	m           *machine
	name        string
	optional    bool
	after       []string
	calls       []string
	flat        bool // no nesting, no standalone
	proposal    *containerv1.Proposal
	state       []byte
	onPrepare   func(context.Context, *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error)
	onIsolate   func(*isolatorv1.IsolateRequest) error
	onUpdate    func(*isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error)
	onValidate  func(*isolatorv1.ValidateRequest) error
	onUsage     func(*isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error)
	onStatus    func(*isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error)
	onCleanup   func(*isolatorv1.CleanupRequest) error
	mu          sync.Mutex
	operations  []string // of cleanups
	usageCalls  int
	cleanupSeen []*isolatorv1.CleanupRequest
}

func (i *fakeIsolator) Name() string           { return i.name }
func (i *fakeIsolator) Required() bool         { return !i.optional }
func (i *fakeIsolator) After() []string        { return i.after }
func (i *fakeIsolator) Wants(call string) bool { return slices.Contains(i.calls, call) }
func (i *fakeIsolator) Nesting() bool          { return !i.flat }
func (i *fakeIsolator) Standalone() bool       { return !i.flat }

// alone notes a broken promise when two mutating calls for one container meet in one module.
func (i *fakeIsolator) alone(id string) func() {
	key := i.name + "/" + id
	i.m.mu.Lock()
	defer i.m.mu.Unlock()
	if i.m.alone[key] {
		i.m.faults = append(i.m.faults, "two mutating calls in flight for "+key)
	}
	i.m.alone[key] = true
	return func() {
		i.m.mu.Lock()
		defer i.m.mu.Unlock()
		delete(i.m.alone, key)
	}
}

func (i *fakeIsolator) Prepare(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	id := r.GetContainer().GetId()
	defer i.alone(id)()
	if err := i.m.step("prepare %s %s", i.name, id); err != nil {
		return nil, err
	}
	if r.GetOperationId() == "" {
		i.m.mu.Lock()
		i.m.faults = append(i.m.faults, "Prepare without operation id")
		i.m.mu.Unlock()
	}
	i.m.mu.Lock()
	if i.m.done[i.name] == nil {
		i.m.done[i.name] = map[string]bool{}
	}
	i.m.done[i.name][id] = true
	i.m.mu.Unlock()
	if i.onPrepare != nil {
		return i.onPrepare(ctx, r)
	}
	a := &isolatorv1.PrepareResponse{Proposal: i.proposal, State: i.state}
	if i.state != nil {
		a.StateVersion = 1
	}
	return a, nil
}

func (i *fakeIsolator) Isolate(_ context.Context, r *isolatorv1.IsolateRequest) (*isolatorv1.IsolateResponse, error) {
	id := r.GetRecord().GetContainer().GetId()
	defer i.alone(id)()
	if err := i.m.step("isolate %s %s", i.name, id); err != nil {
		return nil, err
	}
	if p := i.m.process(id); p == nil || int(r.GetRecord().GetPid()) != p.pid || string(r.GetRecord().GetState()) != string(i.state) {
		i.m.mu.Lock()
		i.m.faults = append(i.m.faults, fmt.Sprintf("Isolate(%s): got pid %d state %q, want those of the container", id, r.GetRecord().GetPid(), r.GetRecord().GetState()))
		i.m.mu.Unlock()
	}
	if i.onIsolate != nil {
		return &isolatorv1.IsolateResponse{}, i.onIsolate(r)
	}
	return &isolatorv1.IsolateResponse{}, nil
}

func (i *fakeIsolator) Update(_ context.Context, r *isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
	defer i.alone(r.GetRecord().GetContainer().GetId())()
	if i.onUpdate != nil {
		return i.onUpdate(r)
	}
	return &isolatorv1.UpdateResponse{}, nil
}

func (i *fakeIsolator) Validate(_ context.Context, r *isolatorv1.ValidateRequest) (*isolatorv1.ValidateResponse, error) {
	if i.onValidate != nil {
		return &isolatorv1.ValidateResponse{}, i.onValidate(r)
	}
	return &isolatorv1.ValidateResponse{}, nil
}

func (i *fakeIsolator) Usage(_ context.Context, r *isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error) {
	i.mu.Lock()
	i.usageCalls++
	i.mu.Unlock()
	if i.onUsage != nil {
		return i.onUsage(r)
	}
	return &isolatorv1.UsageResponse{}, nil
}

func (i *fakeIsolator) Status(_ context.Context, r *isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error) {
	if i.onStatus != nil {
		return i.onStatus(r)
	}
	return &isolatorv1.StatusResponse{}, nil
}

func (i *fakeIsolator) Cleanup(_ context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	id := r.GetRecord().GetContainer().GetId()
	defer i.alone(id)()
	if p := i.m.process(id); p != nil && !p.over {
		i.m.mu.Lock()
		i.m.faults = append(i.m.faults, fmt.Sprintf("Cleanup(%s) of %s while its process lives", i.name, id))
		i.m.mu.Unlock()
	}
	i.mu.Lock()
	i.operations = append(i.operations, r.GetOperationId())
	i.cleanupSeen = append(i.cleanupSeen, r)
	i.mu.Unlock()
	if i.onCleanup != nil {
		if err := i.onCleanup(r); err != nil {
			return nil, err
		}
	}
	if err := i.m.step("cleanup %s %s", i.name, id); err != nil {
		return nil, err
	}
	i.m.mu.Lock()
	delete(i.m.done[i.name], id)
	i.m.mu.Unlock()
	return &isolatorv1.CleanupResponse{}, nil
}

// asked returns the operation ids of the cleanups since it was last called.
func (i *fakeIsolator) asked() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	got := i.operations
	i.operations = nil
	return got
}

// startAgent makes a containerizer on a machine; start it again after a crash on the same one.
func startAgent(t *testing.T, m *machine, runDir string, isolators ...Isolator) (*Containerizer, *fakeLauncher) {
	t.Helper()
	l := &fakeLauncher{m: m, name: "fake"}
	c, err := New(Config{
		Launchers: []launcher.Launcher{l}, Store: fakeStore{m}, Isolators: isolators, RunDir: runDir, BootID: m.boot,
		Fence: func(_ context.Context, cgroup string) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			for id, p := range m.processes {
				if where := p.request.Container.GetCgroup(); where == cgroup || strings.HasPrefix(where, cgroup+"/") {
					m.endLocked(p, int(syscall.SIGKILL))
					delete(m.processes, id)
				}
			}
			return nil
		},
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	c.inside = m.namespacesOf
	return c, l
}

func stopAgent(t *testing.T, c *Containerizer) {
	t.Helper()
	if err := c.Close(t.Context()); err != nil {
		t.Errorf("Close: %v", err)
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	if os.Getenv("MOSAIC_TEST_LOG") != "" {
		w.t.Logf("%s", b)
	}
	return len(b), nil
}

func testContainer(t *testing.T, id string) *containerv1.Container {
	shell, value := true, "sleep 1000"
	return &containerv1.Container{
		Id: id, Generation: 1, Command: &mesosv1.CommandInfo{Shell: &shell, Value: &value},
		Sandbox: filepath.Join(t.TempDir(), "sandbox"), Cgroup: "mosaic/" + id, User: "root",
	}
}
