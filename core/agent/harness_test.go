package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// host is a machine in memory: processes that live on while agents come and go.
type host struct {
	mu         sync.Mutex
	procs      map[string]*process // by container id
	nextPid    int32
	started    map[string]int // how often a container's process was started
	launches   func(ctx context.Context, c *containerv1.Container) error
	peak       int // most launches at once
	busy       int
	updates    []float64   // cpus of each Update
	allowed    []allowance // all of each Update
	failUpdate error
	measured   int                // calls of Usage
	attached   map[string]*fakeIO // streams, by container id (session_test.go)
}

type process struct {
	pid      int32
	ended    chan struct{}
	status   int32
	why      *containerv1.Termination
	stubborn bool
	signals  []int
}

func newHost() *host {
	return &host{procs: make(map[string]*process), started: make(map[string]int), nextPid: 100}
}

func (h *host) end(id string, status int32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.endInside(id)
	h.procs[id].end(status, nil)
}

// endInside ends what is nested in a container, the innermost first. The caller holds the lock.
func (h *host) endInside(id string) {
	for _, other := range slices.Backward(slices.Sorted(maps.Keys(h.procs))) {
		if strings.HasPrefix(other, id+".") {
			h.procs[other].end(int32(syscall.SIGKILL), nil)
		}
	}
}

func (p *process) end(status int32, why *containerv1.Termination) {
	select {
	case <-p.ended:
	default:
		p.status, p.why = status, why
		close(p.ended)
	}
}

// containers is a Containerizer over a host: it checkpoints as a real one does, and runs the commands "true", "exit N",
// "sleep" (until a signal) and "stubborn" (until SIGKILL).
type containers struct {
	*host
	store *Store
}

func (x *containers) put(ctx context.Context, c *containerv1.Container, phase containerv1.Checkpoint_Phase, pid int32) error {
	return x.store.PutContainer(ctx, &containerv1.Checkpoint{Container: c, Phase: phase, Pid: pid})
}

func (x *containers) Launch(ctx context.Context, c *containerv1.Container) (int32, error) {
	x.mu.Lock()
	x.busy++
	x.peak = max(x.peak, x.busy)
	hook := x.launches
	x.mu.Unlock()
	defer func() {
		x.mu.Lock()
		x.busy--
		x.mu.Unlock()
	}()
	if err := x.put(ctx, c, containerv1.Checkpoint_PREPARING, 0); err != nil {
		return 0, err
	}
	if hook != nil {
		if err := hook(ctx, c); err != nil {
			return 0, errors.Join(err, x.store.DeleteContainer(context.WithoutCancel(ctx), c.GetId()))
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, errors.Join(err, x.store.DeleteContainer(context.WithoutCancel(ctx), c.GetId()))
	}
	if c.GetClass() != containerv1.Container_DEBUG && (c.GetParentId() != "" || c.GetCommand().GetValue() == "pause") {
		if err := os.MkdirAll(c.GetSandbox(), 0o755); err != nil {
			return 0, err
		}
	}
	p := &process{ended: make(chan struct{})}
	x.mu.Lock()
	if parent := c.GetParentId(); parent != "" {
		over := true
		if around := x.procs[parent]; around != nil {
			select {
			case <-around.ended:
			default:
				over = false
			}
		}
		if over {
			x.mu.Unlock()
			return 0, errors.Join(fmt.Errorf("parent %s is not running", parent), x.store.DeleteContainer(context.WithoutCancel(ctx), c.GetId()))
		}
	}
	if old := x.procs[c.GetId()]; old != nil {
		select {
		case <-old.ended:
		default:
			x.mu.Unlock()
			return 0, fmt.Errorf("container %s runs already", c.GetId())
		}
	}
	x.nextPid++
	p.pid = x.nextPid
	x.procs[c.GetId()] = p
	x.started[c.GetId()]++
	x.mu.Unlock()
	if err := x.put(ctx, c, containerv1.Checkpoint_RUNNING, p.pid); err != nil {
		if ctx.Err() == nil {
			return 0, err // the disk is gone, and with it the agent
		}
		x.end(c.GetId(), int32(syscall.SIGKILL)) // cut short: undone
		return 0, errors.Join(err, x.store.DeleteContainer(context.WithoutCancel(ctx), c.GetId()))
	}
	word, arg, _ := strings.Cut(c.GetCommand().GetValue(), " ")
	x.mu.Lock()
	defer x.mu.Unlock()
	switch word {
	case "true":
		p.end(0, nil)
	case "exit":
		n, _ := strconv.Atoi(arg)
		p.end(int32(n)<<8, nil)
	case "stubborn":
		p.stubborn = true
	}
	return p.pid, nil
}

func (x *containers) find(id string) (*process, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p := x.procs[id]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("unknown container %s", id)
}

func (x *containers) Wait(ctx context.Context, id string) (*containerv1.Termination, error) {
	p, err := x.find(id)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.ended:
		x.mu.Lock()
		defer x.mu.Unlock()
		t := &containerv1.Termination{WaitStatus: new(p.status)}
		if p.why != nil {
			t.State, t.Reason, t.Message, t.LimitedResources = p.why.State, p.why.Reason, p.why.Message, p.why.LimitedResources
		}
		return t, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (x *containers) Signal(_ context.Context, id string, sig int) error {
	p, err := x.find(id)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	p.signals = append(p.signals, sig)
	if !p.stubborn || sig == int(syscall.SIGKILL) {
		x.endInside(id)
		p.end(int32(sig), nil)
	}
	return nil
}

func (x *containers) Destroy(_ context.Context, id string, why *containerv1.Termination) error {
	p, err := x.find(id)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.endInside(id)
	p.end(int32(syscall.SIGKILL), why)
	return nil
}

func (x *containers) Update(_ context.Context, id string, rs []*mesosv1.Resource, limits map[string]float64) error {
	if _, err := x.find(id); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.updates = append(x.updates, resources.New(rs...).Scalar("cpus"))
	x.allowed = append(x.allowed, allowance{rs, limits})
	return x.failUpdate
}

func (x *containers) Usage(_ context.Context, ids []string) (map[string]*mesosv1.ResourceStatistics, error) {
	x.mu.Lock()
	x.measured++
	x.mu.Unlock()
	all := make(map[string]*mesosv1.ResourceStatistics)
	for _, id := range ids {
		if _, err := x.find(id); err == nil {
			all[id] = &mesosv1.ResourceStatistics{Timestamp: new(1.0), MemRssBytes: new(uint64(4096))}
		}
	}
	return all, nil
}

func (x *containers) Status(_ context.Context, id string) (*mesosv1.ContainerStatus, error) {
	p, err := x.find(id)
	if err != nil {
		return nil, err
	}
	return &mesosv1.ContainerStatus{ContainerId: &mesosv1.ContainerID{Value: &id}, ExecutorPid: new(uint32(p.pid))}, nil
}

func (x *containers) Forget(ctx context.Context, id string) error {
	x.mu.Lock()
	if strings.Contains(id, ".") { // tests ask for others' pasts
		delete(x.procs, id)
	}
	x.mu.Unlock()
	return x.store.DeleteContainer(ctx, id)
}

func (x *containers) Recover(ctx context.Context, known []string) ([]*containerv1.Checkpoint, error) {
	all, err := x.store.Containers(ctx)
	if err != nil {
		return nil, err
	}
	var found []*containerv1.Checkpoint
	for _, cp := range all {
		id := cp.GetContainer().GetId()
		p, _ := x.find(id)
		switch {
		case cp.GetPhase() == containerv1.Checkpoint_PREPARING || !slices.Contains(known, id):
			if p != nil {
				x.Destroy(ctx, id, nil)
			}
			if err := x.store.DeleteContainer(ctx, id); err != nil {
				return nil, err
			}
			continue
		case p == nil:
			return nil, fmt.Errorf("container %s was never started", id)
		}
		select {
		case <-p.ended:
			cp.Phase = containerv1.Checkpoint_ENDED
		default:
		}
		found = append(found, cp)
	}
	return found, nil
}

// world is a host, a master, and one agent at a time, in a work directory that outlives it.
type world struct {
	t      *testing.T
	dir    string
	host   *host
	master *controller
	config Config
	deps   Deps

	agent  *Agent
	store  *Store
	cancel context.CancelFunc
	done   chan error
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), host: newHost(), master: newController(t)}
	w.config = Config{
		WorkDir:   filepath.Join(w.dir, "work"),
		Masters:   []string{"passthrough:///master"},
		Hostname:  "here",
		Resources: "cpus:4;mem:4096;disk:1000;ports:[31000-32000]",
		KeepUser:  true,
		Pause:     []string{"pause"},
	}
	t.Cleanup(func() {
		if w.agent != nil {
			w.stop()
		}
	})
	return w
}

// open prepares an agent without running it. fail, if not nil, is asked before each transaction.
func (w *world) open(fail func(n int, ops []op) error) {
	w.t.Helper()
	store, err := OpenStore(filepath.Join(w.dir, "checkpoints.db"))
	if err != nil {
		w.t.Fatal(err)
	}
	store.beforeCommit = fail
	deps := w.deps
	deps.Containerizer = &containers{w.host, store}
	deps.Store = store
	deps.Logger = w.logger()
	deps.DialOptions = []grpc.DialOption{grpc.WithContextDialer(w.master.dial)}
	agent, err := New(w.config, deps)
	if err != nil {
		store.Close()
		w.t.Fatal(err)
	}
	w.agent, w.store = agent, store
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.done = make(chan error, 1)
	agent := w.agent
	go func() { w.done <- agent.Run(ctx) }()
}

// start runs an agent and waits until it is registered.
func (w *world) start() {
	w.t.Helper()
	before := w.master.count()
	w.open(nil)
	w.run()
	w.master.wait(w.t, "a registration", func() bool { return w.master.streams > before })
	synctest.Wait() // the agent has taken it
}

func (m *controller) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.streams
}

// stop ends the agent in good order.
func (w *world) stop() {
	w.t.Helper()
	w.cancel()
	if err := <-w.done; err != nil {
		w.t.Errorf("Run = %v, want nil after its context ended", err)
	}
	w.close()
}

func (w *world) close() {
	w.cancel()
	w.store.Close()
	w.agent = nil
}

// crash ends the agent as kill -9 does: nothing is written any more, nothing undone.
func (w *world) crash() {
	w.store.mu.Lock()
	w.store.err = errCrash
	w.store.mu.Unlock()
	w.cancel()
	<-w.done
	w.close()
}

var errCrash = errors.New("killed")

// wait returns when cond, called with the lock held, is true.
func (m *controller) wait(t *testing.T, what string, cond func() bool) {
	t.Helper()
	limit := time.NewTimer(2 * time.Hour) // of the bubble's clock
	defer limit.Stop()
	for {
		m.mu.Lock()
		ok, changed := cond(), m.changed
		m.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit.C:
			all := m.states("")
			t.Fatalf("no %s; the last of %d updates are %v", what, len(all), all[max(0, len(all)-20):])
		}
	}
}

func (m *controller) send(t *testing.T, x any) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil {
		t.Fatal("no agent is connected")
	}
	if err := m.current.Send(m.message(x)); err != nil {
		t.Fatal(err)
	}
}

// updates returns what came about a task, "" for all.
func (m *controller) updates(task string) []*clusterv1.StatusUpdate {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.updatesLocked(task)
}

func (m *controller) updatesLocked(task string) []*clusterv1.StatusUpdate {
	var us []*clusterv1.StatusUpdate
	for _, msg := range m.received {
		if u := msg.GetUpdate(); u != nil && (task == "" || u.GetStatus().GetTaskId().GetValue() == task) {
			us = append(us, u)
		}
	}
	return us
}

func (m *controller) states(task string) []string {
	var s []string
	for _, u := range m.updates(task) {
		s = append(s, u.GetStatus().GetState().String())
	}
	return s
}

// history returns the states of a task, repetitions left out.
func (m *controller) history(task string) []string {
	seen := make(map[string]bool)
	var s []string
	for _, u := range m.updates(task) {
		if id := string(u.GetStatus().GetUuid()); !seen[id] {
			seen[id] = true
			s = append(s, u.GetStatus().GetState().String())
		}
	}
	return s
}

// await returns the first update of task with this state.
func (m *controller) await(t *testing.T, task string, state mesosv1.TaskState) *clusterv1.StatusUpdate {
	t.Helper()
	var found *clusterv1.StatusUpdate
	m.wait(t, fmt.Sprintf("%v of %s", state, task), func() bool {
		for _, u := range m.updatesLocked(task) {
			if u.GetStatus().GetState() == state {
				found = u
				return true
			}
		}
		return false
	})
	return found
}

func (m *controller) ack(t *testing.T, u *clusterv1.StatusUpdate) {
	t.Helper()
	m.send(t, &clusterv1.ToAgent_Acknowledge{Acknowledge: ackOf(u)})
}

func checkpointed(id string, capabilities ...mesosv1.FrameworkInfo_Capability_Type) *mesosv1.FrameworkInfo {
	f := &mesosv1.FrameworkInfo{
		Id: &mesosv1.FrameworkID{Value: new(id)}, Name: new("f"), User: new("nobody"), Checkpoint: new(true),
	}
	for _, c := range capabilities {
		f.Capabilities = append(f.Capabilities, &mesosv1.FrameworkInfo_Capability{Type: c.Enum()})
	}
	return f
}

func command(id, value string) *mesosv1.TaskInfo {
	return &mesosv1.TaskInfo{
		Name:      new(id),
		TaskId:    &mesosv1.TaskID{Value: new(id)},
		AgentId:   &mesosv1.AgentID{Value: new("M-S0")},
		Resources: resources.MustParse("cpus:1;mem:32").Resources(),
		Command:   &mesosv1.CommandInfo{Value: new(value)},
	}
}

func (w *world) launch(f *mesosv1.FrameworkInfo, task *mesosv1.TaskInfo) {
	w.t.Helper()
	w.master.send(w.t, &clusterv1.ToAgent_RunTask{RunTask: &clusterv1.RunTask{Framework: f, Task: task}})
}

func (w *world) kill(task string, grace ...time.Duration) {
	w.t.Helper()
	k := &clusterv1.KillTask{FrameworkId: "F", TaskId: task}
	if len(grace) > 0 {
		k.KillPolicy = &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: new(int64(grace[0]))}}
	}
	w.master.send(w.t, &clusterv1.ToAgent_KillTask{KillTask: k})
}

// container returns the container id that the updates of a task name.
func (w *world) container(task string) string {
	w.t.Helper()
	us := w.master.updates(task)
	if len(us) == 0 {
		w.t.Fatalf("no updates of %s", task)
	}
	id := us[0].GetStatus().GetContainerStatus().GetContainerId()
	name := id.GetValue()
	for id = id.GetParent(); id != nil; id = id.GetParent() {
		name = id.GetValue() + "." + name
	}
	return name
}

// records counts what the store holds, by bucket, empty ones and what is past left out. Lazy writes are written before.
func (w *world) records() map[string]int {
	if err := w.store.put(context.Background(), nil); err != nil {
		w.t.Errorf("write what is queued: %v", err)
	}
	counts := make(map[string]int)
	for _, b := range buckets {
		w.store.each(b, func(_, _ []byte) error {
			counts[string(b)]++
			return nil
		})
	}
	delete(counts, string(bucketAgent))
	for _, past := range [][]byte{bucketPastFrameworks, bucketPastExecutors, bucketPastTasks} {
		delete(counts, string(past))
	}
	return maps.Clone(counts)
}

func equal[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}

// dropStream ends the current connection as a master that resigns does.
func (m *controller) dropStream() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.drop)
}

func (m *controller) setRefusal(r *clusterv1.Refused) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse = r
}

// hello returns the last Hello.
func (m *controller) hello() *clusterv1.Hello {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hellos[len(m.hellos)-1]
}

func (w *world) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{w.t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
