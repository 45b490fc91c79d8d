// Package agent is the agent: it takes tasks from the master, has them run in containers, and reports what
// becomes of them.
//
// It promises that what it says and does survives its own death: whatever it acknowledges, reports or begins
// is on disk first (checkpoint.go), and an agent that is killed at any point and started again on the same
// work directory finds its tasks running, reports those that ended meanwhile with their true exit codes, and
// repeats every status update until the scheduler has seen it (update.go). Command tasks and task groups need no
// executor process: their life is told in command.go and group_executor.go. Custom executors speak Mesos's executor
// API (executor.go).
//
// How a container is made, isolated and found again it leaves to its Containerizer; HTTP to the edge that
// calls ExecutorSubscribe, ExecutorCall, OperatorCall and Legacy; what may run where to the master.
//
// One lock guards all state. Under it only decisions are taken: a decision collects what it changes on disk
// and what shall follow, and what follows is done when the disk has it, in the order of the decisions.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Identifiers. FrameworkID and TaskID are chosen by others and only checked (checkID).
type (
	FrameworkID string
	ExecutorID  string
	TaskID      string
	ContainerID string
)

// Containerizer runs containers. Launch, Wait and Destroy of different containers may go on at once.
type Containerizer interface {
	// Recover takes up all containers again that were there before, and returns them. Those that run but
	// are not known are destroyed.
	Recover(ctx context.Context, known []string) ([]*containerv1.Checkpoint, error)
	// Launch returns when the process runs. After an error nothing is left of the container.
	Launch(ctx context.Context, c *containerv1.Container) (pid int32, err error)
	// Wait returns when the container has ended, the same each time until Forget.
	Wait(ctx context.Context, id string) (*containerv1.Termination, error)
	// Signal sends sig to the container's process group.
	Signal(ctx context.Context, id string, sig int) error
	// Destroy kills all that is in the container. Wait then returns what why says, where it says something.
	Destroy(ctx context.Context, id string, why *containerv1.Termination) error
	// Update changes what the container may use.
	Update(ctx context.Context, id string, resources []*mesosv1.Resource, limits map[string]float64) error
	// Usage measures containers; those it cannot measure are left out.
	Usage(ctx context.Context, ids []string) (map[string]*mesosv1.ResourceStatistics, error)
	// Status describes a running container.
	Status(ctx context.Context, id string) (*mesosv1.ContainerStatus, error)
	// Forget says that the end of the container is on record here.
	Forget(ctx context.Context, id string) error
	Attacher
}

// Config says who the agent is and how patient. Durations left zero get Mesos's defaults.
type Config struct {
	// WorkDir holds sandboxes. Required, absolute.
	WorkDir string
	// Masters are addresses (host:port) to try in turn. At least one is required.
	Masters []string

	// Hostname frameworks find the agent under; the machine's if empty.
	Hostname string
	// IP and Port on which the agent's HTTP API is reached. Default 127.0.0.1 and 5051.
	IP   string
	Port int

	// Resources as text ("cpus:2;mem:1024") or JSON; what it leaves out of cpus, mem, disk and ports is
	// detected. DefaultRole, if set, reserves what names no role.
	Resources   string
	DefaultRole string
	// Attributes as text ("rack:a1;zone:west").
	Attributes string
	Domain     *mesosv1.DomainInfo
	// ReconfigurationPolicy says which changes of the above an agent that keeps its id may come back
	// with: "equal" (default) or "additive".
	ReconfigurationPolicy string

	// CgroupRoot is the cgroup below which containers get theirs, relative to the controllers' mounts.
	// Default "mosaic".
	CgroupRoot string
	// KeepUser runs tasks as the agent's own user instead of the framework's or task's (--no-switch_user).
	KeepUser bool
	// Pause is the command line of a program of this machine that does nothing until it is killed, for the container
	// around those of a task group. Without it groups for executors of type DEFAULT are refused.
	Pause []string
	// ExecutorEnvironment replaces what containers inherit of the agent's environment (PATH and locale).
	ExecutorEnvironment map[string]string
	// SandboxDirectory is where a container with its own root filesystem sees its sandbox. Default
	// /mnt/mesos/sandbox.
	SandboxDirectory string

	ExecutorRegistrationTimeout   time.Duration // 1 min
	ExecutorReregistrationTimeout time.Duration // 2 s, at most 15 s
	ExecutorShutdownGracePeriod   time.Duration // 5 s
	RecoveryTimeout               time.Duration // 15 min; told to executors
	RegistrationBackoffMin        time.Duration // 100 ms
	RegistrationBackoffMax        time.Duration // 1 min

	OversubscribedResourcesInterval time.Duration // 15 s
	QoSCorrectionInterval           time.Duration // 15 s

	GCDelay           time.Duration // 1 week
	GCDiskHeadroom    float64       // 0.1
	DiskWatchInterval time.Duration // 1 min

	// MaxCompletedExecutors is how many ended executors are shown per framework, and kept over restarts. Default 150; a
	// negative number means none.
	MaxCompletedExecutors int

	// LaunchParallelism is how many containers are started at once; default one per core and one more, which
	// waits for a disk or a module while the others compute: with more the first of many starts later, and the
	// last no sooner.
	LaunchParallelism int

	// Version as dotted numbers.
	Version *mesosv1.VersionInfo
	// Flags as GET_FLAGS shows them, beside those that Config itself knows.
	Flags map[string]string
}

// Deps is what an agent is built on.
type Deps struct {
	Containerizer Containerizer // required
	Store         *Store        // required; opened before the containerizer, which shares it
	Logger        *slog.Logger  // required
	// LogLevel, if not nil, is what SET_LOGGING_LEVEL changes.
	LogLevel *slog.LevelVar
	// DialOptions for the connection to the master. Without any it is in clear.
	DialOptions []grpc.DialOption
	// Estimate and Correct open the streams of the resource estimator and the QoS controller; nil means
	// there is none.
	Estimate func(ctx context.Context) (EstimateStream, error)
	Correct  func(ctx context.Context) (CorrectStream, error)
	// ExecutorToken makes what an executor proves with who it is when it calls; "" for none. It does not block. Nil means
	// that executors are not asked for it.
	ExecutorToken func(framework, executor, container string) string
	// Approver says who may do what to which container; nil allows everything.
	Approver Approver
	// Images are what PRUNE_IMAGES removes; nil answers 501.
	Images Images
}

// ErrShutdown is returned by Run when the master told the agent to shut down, or refuses it for good. A new
// start on the same work directory registers a new agent where the master said so.
var ErrShutdown = errors.New("the master shut this agent down")

// Agent is one agent. Its methods may be called from any goroutine, also before Run: they then answer that
// it is recovering.
type Agent struct {
	cfg   Config
	log   *slog.Logger
	store *Store
	ctzr  Containerizer
	deps  Deps

	timers  *timers
	started time.Time
	bootID  string

	mu            sync.Mutex // guards all below
	info          *mesosv1.AgentInfo
	recovered     bool
	stopping      bool
	leaving       bool // shut down by the master
	arrivals      uint64
	fatal         error
	term          uint64
	drain         *mesosv1.DrainConfig
	drainSince    time.Time
	frameworks    map[FrameworkID]*framework
	containers    map[ContainerID]*executor
	guests        map[string]*guest // launched over the API, by id
	guestParents  map[string]bool   // of those, containers of executors and tasks that others are in
	completed     []*completedFramework
	pastNumber    uint64      // of what was completed last
	queue         []*executor // waiting for a launch slot
	launching     int         // slots taken
	slow          int         // launches that gave their slot away
	master        *masterConn // nil while not connected
	masterInfo    *mesosv1.MasterInfo
	revocable     []*mesosv1.Resource // the estimator's last word
	holdings      holdings
	operations    map[string]*operation // by uuid; those the master has not acknowledged
	toldRevocable []*mesosv1.Resource   // what the master was told of it
	counters      counters

	networkChecks, commandChecks checkGate // guarded by mu

	work       context.Context // of calls to the containerizer; outlives Run's a little, ends before Run does
	cancelWork context.CancelCauseFunc
	failed     chan struct{} // closed when fatal is set
	wg         sync.WaitGroup
	usage      usageCache
	runs       sync.RWMutex // held for reading while folders of sandboxes are made, for writing while they are removed
}

// New checks cfg, detects resources, and reads who the agent was. Nothing runs before Run.
func New(cfg Config, deps Deps) (*Agent, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("agent configuration: %w", err)
	}
	switch {
	case deps.Containerizer == nil:
		return nil, errors.New("agent: no containerizer")
	case deps.Store == nil:
		return nil, errors.New("agent: no store")
	case deps.Logger == nil:
		return nil, errors.New("agent: no logger")
	}
	info, err := cfg.agentInfo()
	if err != nil {
		return nil, fmt.Errorf("agent configuration: %w", err)
	}
	a := &Agent{
		cfg:          cfg,
		log:          deps.Logger,
		store:        deps.Store,
		ctzr:         deps.Containerizer,
		deps:         deps,
		timers:       newTimers(),
		started:      time.Now(),
		bootID:       readBootID(),
		info:         info,
		frameworks:   make(map[FrameworkID]*framework),
		containers:   make(map[ContainerID]*executor),
		guests:       make(map[string]*guest),
		guestParents: make(map[string]bool),
		failed:       make(chan struct{}),
	}
	a.work, a.cancelWork = context.WithCancelCause(context.Background())
	if err := a.recoverIdentity(); err != nil {
		return nil, fmt.Errorf("recover agent: %w", err)
	}
	if err := a.recoverHoldings(); err != nil {
		return nil, fmt.Errorf("recover agent: %w", err)
	}
	return a, nil
}

func (c *Config) complete() error {
	defaults := []struct {
		d    *time.Duration
		want time.Duration
	}{
		{&c.ExecutorRegistrationTimeout, time.Minute},
		{&c.ExecutorReregistrationTimeout, 2 * time.Second},
		{&c.ExecutorShutdownGracePeriod, 5 * time.Second},
		{&c.RecoveryTimeout, 15 * time.Minute},
		{&c.RegistrationBackoffMin, 100 * time.Millisecond},
		{&c.RegistrationBackoffMax, time.Minute},
		{&c.OversubscribedResourcesInterval, 15 * time.Second},
		{&c.QoSCorrectionInterval, 15 * time.Second},
		{&c.GCDelay, 7 * 24 * time.Hour},
		{&c.DiskWatchInterval, time.Minute},
	}
	for _, d := range defaults {
		if *d.d < 0 {
			return fmt.Errorf("got a negative duration %v", *d.d)
		}
		if *d.d == 0 {
			*d.d = d.want
		}
	}
	if c.GCDiskHeadroom == 0 {
		c.GCDiskHeadroom = 0.1
	}
	if c.IP == "" {
		c.IP = "127.0.0.1"
	}
	if c.Port == 0 {
		c.Port = 5051
	}
	if c.CgroupRoot == "" {
		c.CgroupRoot = "mosaic"
	}
	if c.SandboxDirectory == "" {
		c.SandboxDirectory = "/mnt/mesos/sandbox"
	}
	if c.LaunchParallelism <= 0 {
		c.LaunchParallelism = runtime.NumCPU() + 1
	}
	switch {
	case c.MaxCompletedExecutors == 0:
		c.MaxCompletedExecutors = maxCompletedExecutors
	case c.MaxCompletedExecutors < 0:
		c.MaxCompletedExecutors = 0
	}
	if c.Version == nil {
		c.Version = &mesosv1.VersionInfo{Version: new("0.0.0")}
	}
	if c.ReconfigurationPolicy == "" {
		c.ReconfigurationPolicy = "equal"
	}
	switch {
	case len(c.WorkDir) == 0 || c.WorkDir[0] != '/':
		return fmt.Errorf("work directory %q: want an absolute path", c.WorkDir)
	case len(c.Masters) == 0:
		return errors.New("no master to register with")
	case c.ExecutorReregistrationTimeout > 15*time.Second:
		return fmt.Errorf("executor re-registration timeout: got %v, want at most 15s", c.ExecutorReregistrationTimeout)
	case c.ReconfigurationPolicy != "equal" && c.ReconfigurationPolicy != "additive":
		return fmt.Errorf("reconfiguration policy: got %q, want equal or additive", c.ReconfigurationPolicy)
	case c.GCDiskHeadroom < 0 || c.GCDiskHeadroom > 1:
		return fmt.Errorf("disk headroom: got %v, want 0 to 1", c.GCDiskHeadroom)
	}
	return nil
}

// stopGrace is how long Run waits at its end for launches that are under way, so that an agent that is
// upgraded does not undo half of a launch. The slowest steps (fetching, unpacking) are repeated instead.
const stopGrace = 5 * time.Second

// Run recovers what was there, registers with the master and serves it, until ctx ends or the agent cannot go
// on. Tasks live on after it. All it started has ended when it returns. It may be called once.
//
// Errors: nil when ctx ended; ErrShutdown; else what made the agent stop.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.wg.Go(func() { a.timers.run(a.work) })
	defer a.wg.Wait()
	defer a.cancelWork(errors.New("the agent stops"))

	if err := a.recover(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("recover: %w", err)
	}
	var loops sync.WaitGroup
	loops.Go(func() { a.stayRegistered(ctx) })
	loops.Go(func() { a.collectGarbage(ctx) })
	if a.deps.Estimate != nil {
		loops.Go(func() { a.oversubscribe(ctx) })
	}
	if a.deps.Correct != nil {
		loops.Go(func() { a.obeyCorrections(ctx) })
	}
	select {
	case <-ctx.Done():
	case <-a.failed:
	case <-a.store.failed:
		// Perhaps a write of the containerizer's, which has no say in whether we go on.
		a.mu.Lock()
		a.fail(fmt.Errorf("checkpoint: %w", a.store.failure()))
		a.mu.Unlock()
	}
	cancel()
	loops.Wait()
	a.finishLaunches()

	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fatal
}

// finishLaunches lets no new launch begin and waits a moment for the others.
func (a *Agent) finishLaunches() {
	a.mu.Lock()
	a.stopping = true
	a.queue = nil
	var busy []*executor
	for _, e := range a.containers {
		if e.phase == phaseLaunching {
			busy = append(busy, e)
		}
		for _, t := range e.tasks {
			if x := t.executor; x != e && x.phase == phaseLaunching {
				busy = append(busy, x)
			}
		}
	}
	a.mu.Unlock()
	limit := time.NewTimer(stopGrace)
	defer limit.Stop()
	for _, e := range busy {
		select {
		case <-e.launchDone:
		case <-limit.C:
			return
		case <-a.failed:
			return
		}
	}
}

// fail makes Run return err. The caller holds the lock.
func (a *Agent) fail(err error) {
	if a.fatal == nil {
		a.fatal = err
		close(a.failed)
	}
}

// change is what one decision does: ops are written together, then each of after is called, with the lock
// held and in order. What decisions later in time do comes later.
type change struct {
	ops   []op
	after []func()
	lazy  bool // may wait a little for others to be written with
}

func (c *change) put(bucket, key, value []byte) { c.ops = append(c.ops, op{bucket, key, value}) }
func (c *change) delete(bucket, key []byte)     { c.ops = append(c.ops, op{bucket, key, nil}) }
func (c *change) then(fn func())                { c.after = append(c.after, fn) }

// decide calls fn with the lock held and has done what it decided. It does not wait for that.
func (a *Agent) decide(fn func(c *change)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var c change
	fn(&c)
	a.do(&c)
}

// do submits c. The caller holds the lock, so that changes reach the disk in the order of decisions.
func (a *Agent) do(c *change) {
	if len(c.ops) == 0 && len(c.after) == 0 {
		return
	}
	after, submit := c.after, a.store.submit
	if c.lazy {
		submit = a.store.submitLazily
	}
	submit(c.ops, func(err error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if err != nil {
			// What is on disk is not what was decided: only a new start can tell them apart.
			if !errors.Is(err, ErrStoreClosed) || !a.stopping {
				a.fail(fmt.Errorf("checkpoint: %w", err))
			}
			return
		}
		for _, fn := range after {
			fn()
		}
	})
}

// spawn runs fn in a goroutine that Run waits for. The caller holds the lock.
func (a *Agent) spawn(fn func(ctx context.Context)) {
	if a.work.Err() != nil {
		return
	}
	a.wg.Go(func() { fn(a.work) })
}

// Recovered tells whether executors and operators may call.
func (a *Agent) Recovered() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.recovered
}

// statusError is an answer over HTTP that is not 500.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string   { return e.text }
func (e *statusError) HTTPStatus() int { return e.status }

func refuse(status int, format string, args ...any) error {
	return &statusError{status, fmt.Sprintf(format, args...)}
}
