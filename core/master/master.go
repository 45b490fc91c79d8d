// Package master keeps the cluster together: it knows frameworks, agents, offers and tasks, makes
// offers of what agents have, hands accepted tasks to agents and tells frameworks what became of them.
//
// One goroutine, the loop, owns all state and does no I/O. What comes from outside (calls of
// schedulers and operators, messages of agents, answers of the registry, timers) reaches it as
// commands, each with the time at which it is run; what goes out is queued: events on streams that
// never block, messages in an outbox per agent, changes to the registry, which are made by another
// goroutine and whose success comes back as a command. Hence no lock is ever held while someone else
// is waited for, and the same commands give the same state.
//
// Reads never enter the loop. After each round of commands it publishes an immutable view, made by
// copying only what changed (view.go); all reads work on the newest one.
//
// The package promises what Mesos's master does on the wire, and that what the registry must know
// (agents admitted, unreachable, gone; weights) is written before it takes effect. Frameworks, tasks and
// offers are not written anywhere: agents and schedulers tell a new master about them. It leaves HTTP
// to core/api, shares to core/allocator, storage and election to core/registry, and who may do what to
// an Approvers.
package master

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/mosaic-cluster/mosaic/core/allocator"
	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// Config is how a master behaves. The zero value of each optional field means the default named there,
// which is Mesos's unless the comment says otherwise.
type Config struct {
	ID        string            // optional; prefix of all ids that this master gives. Default: a fresh UUID
	Hostname  string            // required; under which clients reach this master
	IP        string            // optional; IPv4 that clients are told. Default 127.0.0.1
	Port      int               // optional; HTTP port. Default 5050
	Version   string            // optional; dotted numbers. Default "1.12.0"
	Cluster   string            // optional; the cluster's name
	Flags     map[string]string // optional; what GET_FLAGS and /flags show
	BuildDate string            // optional
	BuildUser string            // optional

	AllocationInterval     time.Duration // default 1 s
	OfferTimeout           time.Duration // lease of an offer. Default 1 min (Mesos: none); negative is none
	PingInterval           time.Duration // default 15 s
	MaxPingTimeouts        int           // default 5
	AgentReregisterTimeout time.Duration // default 10 min
	RegistryTimeout        time.Duration // default 20 s; a registry that takes longer stops the master

	RegistryGCInterval time.Duration // how often agents that left are looked through. Default 15 min
	RegistryMaxAge     time.Duration // how long agents that are unreachable or gone are known. Default two weeks
	RegistryMaxAgents  int           // how many of each. Default 102,400

	// RemovalInterval is the least time between two agents that are given up, so that a network that fails does not
	// take the cluster with it. 0 is none.
	RemovalInterval time.Duration
	// RecoveryRemovalLimit is the greatest part of the agents of a former master that may not return; beyond it the
	// master stops. Default 1, which is all.
	RecoveryRemovalLimit float64

	MaxCompletedFrameworks            int  // default 50; negative is none
	MaxCompletedTasksPerFramework     int  // default 1000; negative is none
	MaxUnreachableTasksPerFramework   int  // default 1000; negative is none
	MaxOperatorEventStreamSubscribers int  // default 1000
	NoRootSubmissions                 bool // tasks and frameworks of user root are refused
	NoPerFrameworkMetrics             bool // /metrics/snapshot has none of single frameworks

	MinAllocatable       []resources.Quantities // default cpus:0.01 or mem:32
	NoFilterGPUResources bool                   // agents with gpus are offered to all frameworks
	RoleSorter           string                 // "drf" or "random". Default "drf"
	FrameworkSorter      string                 // the same
	KeepPlace            bool                   // frameworks that refuse everything stay first in line, as in Mesos
	ShareExcluded        []string               // resources that do not count in shares

	Domain             *mesosv1.DomainInfo // optional; fault domain of this master
	RequireAgentDomain bool                // agents without a fault domain are refused
	Roles              []string            // optional; no roles but these and "*" may be used
	Whitelist          string              // optional; file with the hostnames of agents that may be offered

	Rand io.Reader        // optional; where ids come from. Default crypto/rand
	Now  func() time.Time // optional. Default time.Now
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.AllocationInterval, time.Second)
	set(&c.OfferTimeout, time.Minute)
	set(&c.PingInterval, 15*time.Second)
	set(&c.AgentReregisterTimeout, 10*time.Minute)
	set(&c.RegistryTimeout, 20*time.Second)
	set(&c.RegistryGCInterval, 15*time.Minute)
	set(&c.RegistryMaxAge, 14*24*time.Hour)
	if c.RecoveryRemovalLimit == 0 {
		c.RecoveryRemovalLimit = 1
	}
	count := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
		*n = max(*n, 0)
	}
	count(&c.MaxPingTimeouts, 5)
	count(&c.MaxCompletedFrameworks, 50)
	count(&c.MaxCompletedTasksPerFramework, 1000)
	count(&c.MaxUnreachableTasksPerFramework, 1000)
	count(&c.MaxOperatorEventStreamSubscribers, 1000)
	count(&c.RegistryMaxAgents, 102_400)
	count(&c.Port, 5050)
	if c.IP == "" {
		c.IP = "127.0.0.1"
	}
	if c.Version == "" {
		c.Version = "1.12.0"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Deps is what a master works with.
type Deps struct {
	Registry  registry.Store // required
	Logger    *slog.Logger   // optional
	LogLevel  *slog.LevelVar // optional; the logger's, which operators may change
	Approvers Approvers      // optional; nil allows everything
}

// Approvers says whether a principal may do something to an object. It is asked outside the loop, and
// an error of whatever kind is a no.
type Approvers interface {
	// Approve returns nil for yes. action is Mesos's name of it (REGISTER_FRAMEWORK with a role,
	// RUN_TASK with a user, TEARDOWN_FRAMEWORK with the framework's principal); principal is "" for
	// someone who is not authenticated.
	Approve(ctx context.Context, principal, action string, object ...string) error
}

// ErrLeadershipLost is returned by Run when another master may lead. The caller exits, or starts a new
// Master that campaigns again: nothing of this one is of use any more.
var ErrLeadershipLost = errors.New("master: leadership lost")

// errStopped is the answer to calls that come when the loop has ended.
var errStopped = &Refusal{Status: 503, Text: "Master is shutting down"}

const (
	// commandQueue bounds the commands that wait. Senders block when it is full, which slows down
	// agents and schedulers rather than growing memory.
	commandQueue = 4096
	// roundLimit bounds the commands of one round, so that a flood delays the view and the answers by
	// some milliseconds at most.
	roundLimit = 512
	// leaderTimeout bounds the question where the leader is.
	leaderTimeout = time.Second
	// approveTimeout bounds one question to the approvers; no answer is a no.
	approveTimeout = 10 * time.Second
	// freedDelay is how long resources that ended tasks gave back wait for more of their kind, so that
	// a burst of ends becomes one offer and not one per task.
	freedDelay = 50 * time.Millisecond
)

// A command is run by the loop. done, if not nil, is closed when its effects are visible in the view.
type command struct {
	run  func(now time.Time)
	done chan struct{}
}

// Master is the leading master of a cluster. New makes it, Run works until its context ends; calls
// before that are answered 503.
type Master struct {
	cfg  Config
	deps Deps
	log  *slog.Logger

	commands chan command
	stopped  chan struct{} // closed when the loop has ended
	ran      atomic.Bool

	leading   atomic.Bool
	recovered atomic.Bool
	term      atomic.Uint64

	questions *questions

	s       *state // the loop's own
	view    atomic.Pointer[view]
	metrics *metrics

	watchMu     sync.Mutex
	watchesOver bool           // guarded by watchMu; no more are begun
	watches     sync.WaitGroup // goroutines that wait for streams to end
}

// New returns a master that is not running yet.
//
// Errors: Config or Deps lack something required, or an address is not an IPv4 address.
func New(cfg Config, deps Deps) (*Master, error) {
	if deps.Registry == nil {
		return nil, errors.New("master: Deps.Registry is required")
	}
	cfg = cfg.withDefaults()
	if cfg.Hostname == "" {
		return nil, errors.New("master: Config.Hostname is required")
	}
	ip := net.ParseIP(cfg.IP).To4()
	if ip == nil {
		return nil, fmt.Errorf("master: Config.IP is %q, want an IPv4 address", cfg.IP)
	}
	if err := checkConfig(cfg); err != nil {
		return nil, err
	}
	if cfg.ID == "" {
		id, err := newUUID(cfg.Rand)
		if err != nil {
			return nil, fmt.Errorf("master: make an id: %w", err)
		}
		cfg.ID = id
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Master{
		cfg:       cfg,
		deps:      deps,
		log:       deps.Logger,
		commands:  make(chan command, commandQueue),
		stopped:   make(chan struct{}),
		metrics:   newMetrics(cfg.Now()),
		questions: newQuestions(),
	}
	m.s = newState(m, masterInfo(cfg, ip), allocator.New(allocator.Options{
		MinAllocatable:  cfg.MinAllocatable,
		ShareExcluded:   cfg.ShareExcluded,
		OfferGPUsToAll:  cfg.NoFilterGPUResources,
		Region:          cfg.Domain.GetFaultDomain().GetRegion().GetName(),
		MinFilter:       cfg.AllocationInterval,
		RoleSorter:      cfg.RoleSorter,
		FrameworkSorter: cfg.FrameworkSorter,
		KeepPlace:       cfg.KeepPlace,
	}))
	if deps.LogLevel != nil {
		m.s.baseLevel = deps.LogLevel.Level()
	}
	m.view.Store(m.s.views.publish())
	return m, nil
}

// checkConfig says what is wrong with a configuration, apart from names and addresses.
func checkConfig(c Config) error {
	for name, sorter := range map[string]string{"RoleSorter": c.RoleSorter, "FrameworkSorter": c.FrameworkSorter} {
		if sorter != "" && sorter != allocator.DRF && sorter != allocator.Random {
			return fmt.Errorf("master: Config.%s is %q, want %q or %q", name, sorter, allocator.DRF, allocator.Random)
		}
	}
	for _, role := range c.Roles {
		if err := resources.ValidateRole(role); err != nil {
			return fmt.Errorf("master: Config.Roles: %w", err)
		}
	}
	if d := c.Domain.GetFaultDomain(); c.Domain != nil && (d.GetRegion().GetName() == "" || d.GetZone().GetName() == "") {
		return errors.New("master: Config.Domain lacks a region or a zone")
	}
	if l := c.RecoveryRemovalLimit; !(l > 0 && l <= 1) {
		return fmt.Errorf("master: Config.RecoveryRemovalLimit is %v, want more than 0 and at most 1", l)
	}
	return nil
}

// knownRole says why a role may not be used, whoever wants to.
func (c *Config) knownRole(role string) error {
	if len(c.Roles) == 0 || role == "*" || contains(c.Roles, role) {
		return nil
	}
	return fmt.Errorf("Role '%s' is not present in the master's --roles", role)
}

// masterInfo describes this master to frameworks and agents.
func masterInfo(cfg Config, ip net.IP) *mesosv1.MasterInfo {
	// Mesos packs the address in network order into an integer of the host's, little-endian, order.
	packed := uint32(ip[0]) | uint32(ip[1])<<8 | uint32(ip[2])<<16 | uint32(ip[3])<<24
	address := ip.String()
	port := int32(cfg.Port)
	return &mesosv1.MasterInfo{
		Id:       &cfg.ID,
		Ip:       &packed,
		Port:     ptr(uint32(cfg.Port)),
		Pid:      ptr(fmt.Sprintf("master@%s:%d", address, cfg.Port)),
		Hostname: &cfg.Hostname,
		Version:  &cfg.Version,
		Address:  &mesosv1.Address{Hostname: &cfg.Hostname, Ip: &address, Port: &port},
		Domain:   cfg.Domain,
		// Frameworks of the era fail on capabilities that they do not know: these two only.
		Capabilities: []*mesosv1.MasterInfo_Capability{
			{Type: mesosv1.MasterInfo_Capability_AGENT_UPDATE.Enum()},
			{Type: mesosv1.MasterInfo_Capability_AGENT_DRAINING.Enum()},
		},
	}
}

// forOperators is a master as operators and their tools see it: with all it can do.
func forOperators(info *mesosv1.MasterInfo) *mesosv1.MasterInfo {
	info = info.CloneVT()
	info.Capabilities = append(info.Capabilities, &mesosv1.MasterInfo_Capability{Type: mesosv1.MasterInfo_Capability_QUOTA_V2.Enum()})
	return info
}

// Register adds the service that agents connect to.
func (m *Master) Register(r grpc.ServiceRegistrar) {
	clusterv1.RegisterMasterServer(r, &connector{master: m})
}

// Leader tells whether this master leads and has recovered, and else where the leader is.
func (m *Master) Leader() (leads, recovered bool, addr string) {
	if m.leading.Load() {
		return true, m.recovered.Load(), ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaderTimeout)
	defer cancel()
	addr, _ = m.deps.Registry.Leader(ctx)
	return false, false, addr
}

// Run campaigns, recovers from the registry, and is the master until ctx ends or leadership is lost. It
// returns when everything that it started has ended: nil after ctx ended, ErrLeadershipLost, or why the
// registry failed (agents and frameworks then wait for another master). It can be called once.
func (m *Master) Run(ctx context.Context) error {
	if m.ran.Swap(true) {
		return errors.New("master: Run called twice")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopped := sync.OnceFunc(func() { close(m.stopped) })
	defer stopped()

	self := net.JoinHostPort(m.cfg.Hostname, strconv.Itoa(m.cfg.Port))
	leadership, err := m.deps.Registry.Campaign(ctx, self, self)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("campaign for leadership: %w", err)
	}
	over := make(chan struct{})
	var guard sync.WaitGroup
	guard.Go(func() {
		select {
		case <-leadership.Lost:
			cancel(ErrLeadershipLost)
		case <-over:
		}
	})
	defer guard.Wait()
	defer close(over)
	m.term.Store(leadership.Term)
	m.leading.Store(true)
	defer m.leading.Store(false)

	snapshot, err := m.loadRegistry(ctx)
	if err != nil {
		if errors.Is(context.Cause(ctx), ErrLeadershipLost) {
			return ErrLeadershipLost
		}
		if ctx.Err() != nil {
			return nil
		}
		return err
	}

	var registrar sync.WaitGroup
	batches := make(chan []step, 1)
	registrar.Go(func() { m.runRegistrar(ctx, batches, cancel) })

	m.s.batches, m.s.fail = batches, cancel
	m.s.recover(m.cfg.Now(), snapshot)
	m.view.Store(m.s.views.publish())
	m.recovered.Store(true)
	m.log.Info("master leads", "id", m.cfg.ID, "term", leadership.Term, "agents", len(m.s.recovered))

	whitelist := m.watchWhitelist(ctx)
	m.loop(ctx)
	cancel(nil)
	whitelist.Wait()

	m.recovered.Store(false)
	stopped()
	m.s.closeStreams()
	close(batches)
	registrar.Wait()
	m.watchMu.Lock()
	m.watchesOver = true
	m.watchMu.Unlock()
	m.watches.Wait()
	cause := context.Cause(ctx)
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return nil
	}
	return cause
}

// loop runs commands and timers in rounds. After each round come the allocation if one is due, the new
// view, the changes for the registry, and then the answers to those who wait.
func (m *Master) loop(ctx context.Context) {
	s := m.s
	var round []command
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		round = round[:0]
		select {
		case <-ctx.Done():
			return
		case c := <-m.commands:
			round = append(round, c)
		case <-timer.C:
		}
	gather:
		for len(round) < roundLimit {
			select {
			case c := <-m.commands:
				round = append(round, c)
			default:
				break gather
			}
		}
		for _, c := range round {
			c.run(m.cfg.Now())
		}
		now := m.cfg.Now()
		s.timers.fire(now)
		s.finishDrains(now)
		s.allocateIfDue(now)
		m.view.Store(s.views.publish())
		s.flushRegistry()
		for i := range round {
			if round[i].done != nil {
				close(round[i].done)
			}
			round[i] = command{}
		}
		timer.Reset(s.untilNext(m.cfg.Now()))
	}
}

// do has the loop run f and returns when its effects are visible.
//
// Errors: ctx ended first (f may run all the same), or the master is not running.
func (m *Master) do(ctx context.Context, f func(now time.Time)) error {
	if !m.recovered.Load() {
		return &Refusal{Status: 503, Text: "Master has not finished recovery"}
	}
	c := command{run: f, done: make(chan struct{})}
	select {
	case m.commands <- c:
	case <-ctx.Done():
		return fmt.Errorf("wait for the master: %w", ctx.Err())
	case <-m.stopped:
		return errStopped
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the master: %w", ctx.Err())
	case <-m.stopped:
		return errStopped
	}
}

// post has the loop run f some time later. It is false when the loop has ended.
func (m *Master) post(ctx context.Context, f func(now time.Time)) bool {
	select {
	case m.commands <- command{run: f}:
		return true
	case <-ctx.Done():
	case <-m.stopped:
	}
	return false
}

// watch runs f in the loop when ended is closed.
func (m *Master) watch(ended <-chan struct{}, f func(now time.Time)) {
	m.goWatch(func() {
		select {
		case <-ended:
			m.post(context.Background(), f) // waits no longer than the loop runs
		case <-m.stopped:
		}
	})
}

// goWatch runs f in a goroutine that Run waits for. It is false when Run waits already.
func (m *Master) goWatch(f func()) bool {
	m.watchMu.Lock()
	defer m.watchMu.Unlock()
	if m.watchesOver {
		return false
	}
	m.watches.Go(f)
	return true
}

// approve asks the approvers, who allow everything when there are none.
func (m *Master) approve(ctx context.Context, principal, action string, object ...string) error {
	if m.deps.Approvers == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, approveTimeout)
	defer cancel()
	if err := m.deps.Approvers.Approve(ctx, principal, action, object...); err != nil {
		return fmt.Errorf("principal %q may not %s %s: %w", principal, action, strings.Join(object, " "), err)
	}
	return nil
}

func ptr[T any](v T) *T { return &v }
