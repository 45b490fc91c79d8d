// Package containerizer runs containers: it asks the isolators what a container needs, merges their answers, has a
// launcher create it, notices its end, and takes everything back.
//
// It promises that no process starts before everything that isolates it is in place and written down; that a failed
// launch is undone last step first; that what isolators did is taken back once a container ended, however often that
// takes and across restarts of the agent; that no id is started again before nothing of its last start is left; and
// that what is nested in a container ends with it.
//
// Clients attach to containers by it, and get all that a session prints, however short it is.
//
// Order, state, deadlines and application are its business; isolators only advise. What to run, when to give up on a
// task, what a task's status becomes and what happens to sandboxes afterwards are the agent's. How a process is made
// and supervised is the launcher's; root filesystems and downloads are the provisioner's and the fetcher's.
package containerizer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/containerizer/fetcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

const (
	// createTimeout bounds what a launcher may take for one step of a launch. An OCI runtime takes 50 ms; on a machine
	// that swaps, seconds have been seen.
	createTimeout = time.Minute
	// destroyTimeout bounds one attempt to kill what is in a cgroup; a process in uninterruptible sleep needs more
	// than one.
	destroyTimeout = 30 * time.Second
	// cleanupTimeout bounds one round of cleanups of a container; the module host has its own deadline for each call.
	cleanupTimeout = 5 * time.Minute
	// provisionTimeout bounds making a root filesystem, which may mean unpacking gigabytes onto a slow disk.
	provisionTimeout = 30 * time.Minute
	// fetchTimeout bounds all URIs of a container together; a download that stalls ends far sooner.
	fetchTimeout = 2 * time.Hour
	// storeTimeout bounds one write of a checkpoint.
	storeTimeout = 30 * time.Second
	// reasonTimeout bounds the question why a container ended badly: its status update waits for the answer.
	reasonTimeout = time.Second
	// Owed work is repeated after retryFirst, then after twice as long each time up to retryMost.
	retryFirst = 100 * time.Millisecond
	retryMost  = 30 * time.Second
)

// ErrNotFound is returned for ids of containers that never were, or were forgotten.
var ErrNotFound = errors.New("no such container")

// ErrExists is returned by Launch for an id that is in use.
var ErrExists = errors.New("container exists already")

// ErrNotRunning is returned by calls that need a running container.
var ErrNotRunning = errors.New("container is not running")

// A Store keeps checkpoints across restarts of the agent.
type Store interface {
	// PutContainer replaces the checkpoint of cp's container; it is durable when PutContainer returns nil. When ctx ends
	// first it may yet be replaced, but before anything that is asked for later.
	PutContainer(ctx context.Context, cp *containerv1.Checkpoint) error
	DeleteContainer(ctx context.Context, id string) error
	Containers(ctx context.Context) ([]*containerv1.Checkpoint, error)
}

// Images makes root filesystems. *provisioner.Provisioner is one.
type Images interface {
	// Provision makes a root filesystem for one container from an image on this machine: an absolute path.
	Provision(ctx context.Context, id, image string) (rootfs string, config *containerv1.ImageConfig, err error)
	// Remove takes it away again; it succeeds for a container that has none.
	Remove(ctx context.Context, id string) error
	// Recover removes root filesystems of containers not in live.
	Recover(ctx context.Context, live []string) error
}

// Fetcher brings URIs into sandboxes. *fetcher.Fetcher is one.
type Fetcher interface {
	Fetch(ctx context.Context, r fetcher.Request) error
}

// Config is what a containerizer is made of.
type Config struct {
	// Required. In order of preference: the first that supports what a container needs launches it.
	Launchers []launcher.Launcher
	// Required.
	Store Store
	// In the order of the composition. May be given later by Use, when the modules want to know from Records what
	// lives before they can be had.
	Isolators []Isolator
	// Without it containers with images are refused.
	Images Images
	// Without it containers with URIs are refused.
	Fetcher Fetcher
	// Required. Folder for sockets and intents, at most 40 characters; best in memory (/run/mosaic/...).
	RunDir string
	// Root of the containers' cgroups, relative to the controllers' mounts. Default "mosaic".
	CgroupRoot string
	// Fence kills everything in a cgroup, given relative to the controllers' mounts, proves it empty and removes it;
	// it succeeds for one that does not exist. For containers whose launcher cannot be asked: the agent died while they
	// were being made, or the launcher is no longer configured. Without it the launchers' word is taken.
	Fence func(ctx context.Context, cgroup string) error
	// Run containers as their user. Needs root; without it everything runs as the agent.
	SwitchUser bool
	// What containers of type DOCKER may have.
	Docker DockerConfig
	// Program of this machine, linked with nothing, that serves containers as init: it is seen by those that ask for one,
	// and given their command as arguments. Without it they are refused.
	Init string
	// Secret resolves a secret by reference. Without it containers that refer to secrets are refused.
	Secret func(ctx context.Context, s *mesosv1.Secret) ([]byte, error)
	// Default: the machine's.
	BootID string
	// Default: discarded.
	Logger *slog.Logger
}

// A Containerizer runs the containers of one agent. Its methods may be called at the same time; Recover comes first.
type Containerizer struct {
	cfg     Config
	log     *slog.Logger
	runDir  string // one folder a container, for its launcher
	intents *intents

	hostUsers hostUsers
	logging   logging
	// inside looks up a container's namespaces; another in tests, whose processes are none.
	inside func(*container) (*namespaces, error)

	warming sync.Once
	warmed  bool // set in warming

	// life ends at Close; it bounds what goes on between calls (watching, owed cleanups). wg holds those goroutines.
	life context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup

	mu          sync.Mutex
	composition *composition          // guarded by mu; replaced as a whole
	containers  map[string]*container // guarded by mu
	skips       map[string]int        // guarded by mu; launches that went on without an optional isolator
}

// New reads the store, so that Records can answer at once, and touches no container. An order of isolators that
// cannot be is an error that names those on the cycle.
func New(cfg Config) (*Containerizer, error) {
	if cfg.Store == nil || cfg.RunDir == "" || len(cfg.Launchers) == 0 {
		return nil, errors.New("containerizer: store, run directory and a launcher are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.CgroupRoot == "" {
		cfg.CgroupRoot = "mosaic"
	}
	if cfg.BootID == "" {
		cfg.BootID = bootID()
	}
	if cfg.SwitchUser && os.Geteuid() != 0 {
		cfg.SwitchUser = false
		cfg.Logger.Warn("user switching is off: the agent does not run as root")
	}
	c := &Containerizer{
		cfg: cfg, log: cfg.Logger,
		runDir:     filepath.Join(cfg.RunDir, "c"),
		containers: map[string]*container{}, skips: map[string]int{},
		inside:  namespacesOf,
		logging: logging{helpers: map[string][]*helper{}},
	}
	c.life, c.end = context.WithCancel(context.Background())
	if err := os.MkdirAll(c.runDir, 0o700); err != nil {
		return nil, fmt.Errorf("containerizer: make run directory: %w", err)
	}
	if err := c.Use(cfg.Isolators); err != nil {
		return nil, err
	}
	if err := c.load(); err != nil {
		return nil, fmt.Errorf("containerizer: %w", err)
	}
	return c, nil
}

// Use replaces the isolators; launches under way go on with those they began with.
func (c *Containerizer) Use(isolators []Isolator) error {
	composed, err := compose(isolators)
	if err != nil {
		return fmt.Errorf("containerizer: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.composition = composed
	return nil
}

// Close stops watching and returns when no goroutine of the containerizer is left. Containers go on; what is owed is
// taken up again by the next Recover. It comes last: after the return of every other call.
func (c *Containerizer) Close(ctx context.Context) error {
	c.end()
	done := make(chan struct{})
	go func() { // ends with wg; every goroutine in it ends with life
		c.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return errors.Join(c.cool(ctx), c.intents.close())
	case <-ctx.Done():
		return fmt.Errorf("close containerizer: %w", ctx.Err())
	}
}

// warm lets the launchers prepare for containers to come, once.
func (c *Containerizer) warm() {
	c.warming.Do(func() {
		for _, l := range c.cfg.Launchers {
			if w, ok := l.(launcher.Warmer); ok {
				w.Warm(c.cfg.CgroupRoot)
			}
		}
		c.warmed = true
	})
}

// cool undoes warm.
func (c *Containerizer) cool(ctx context.Context) error {
	c.warming.Do(func() {})
	if !c.warmed {
		return nil
	}
	var errs []error
	for _, l := range c.cfg.Launchers {
		if w, ok := l.(launcher.Warmer); ok {
			errs = append(errs, w.Cool(ctx))
		}
	}
	return errors.Join(errs...)
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (c *Containerizer) isolators() *composition {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.composition
}

func (c *Containerizer) find(id string) (*container, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ct := c.containers[id]
	if ct == nil {
		return nil, fmt.Errorf("container %s: %w", id, ErrNotFound)
	}
	return ct, nil
}

func (c *Containerizer) all() []*container {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*container, 0, len(c.containers))
	for _, ct := range c.containers {
		list = append(list, ct)
	}
	return list
}

// Wait blocks until the container ended and says how. It may be repeated until Forget. The answer is the caller's.
func (c *Containerizer) Wait(ctx context.Context, id string) (*containerv1.Termination, error) {
	ct, err := c.find(id)
	if err != nil {
		return nil, err
	}
	select {
	case <-ct.ended:
		ct.mu.Lock()
		defer ct.mu.Unlock()
		return proto.CloneOf(ct.termination), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for container %s: %w", id, ctx.Err())
	}
}

// Signal sends sig to the process group of the container's first process, which it ends also where the kernel keeps such
// a signal from the first process of a pid namespace. Containers of type DOCKER may have another than SIGTERM for it.
func (c *Containerizer) Signal(ctx context.Context, id string, sig int) error {
	ct, err := c.find(id)
	if err != nil {
		return err
	}
	h := ct.running()
	if h == nil {
		return fmt.Errorf("signal container %s: %w", id, ErrNotRunning)
	}
	ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	if err := h.Signal(ctx, ct.stopSignal(syscall.Signal(sig))); err != nil {
		return fmt.Errorf("signal container %s: %w", id, err)
	}
	return nil
}

// Destroy kills everything in the container and returns when it has ended and no process of it is left. Its
// termination carries the state, reason and message of why, if given and if it is the first reason. A launch that is
// under way is ended, and undone by Launch itself. For a container that ended already Destroy changes nothing.
//
// On error (the caller's deadline, a process that cannot be killed) the attempt goes on in the background.
func (c *Containerizer) Destroy(ctx context.Context, id string, why *containerv1.Termination) error {
	ct, err := c.find(id)
	if err != nil {
		return err
	}
	first := ct.condemn(why) // first of all: nothing is nested in it any more
	if err := c.destroyNested(ctx, ct, why); err != nil {
		return fmt.Errorf("destroy container %s: %w", id, err)
	}
	if h := ct.running(); h != nil {
		kill, cancel := context.WithTimeout(ctx, destroyTimeout)
		err = ct.destroyHandle(kill)
		cancel()
		if err != nil {
			if first {
				c.wg.Go(func() { c.insist(ct) })
			}
			return fmt.Errorf("destroy container %s: %w", id, err)
		}
	}
	select {
	case <-ct.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("destroy container %s: %w", id, ctx.Err())
	}
}

// destroyNested ends the containers nested in ct, the deepest first, and returns when no process of them is left. why is
// why ct itself ends, if anybody said.
func (c *Containerizer) destroyNested(ctx context.Context, ct *container, why *containerv1.Termination) error {
	children := c.childrenOf(ct.id)
	errs := make([]error, len(children))
	var wg sync.WaitGroup
	for n, child := range children {
		wg.Go(func() {
			err := c.Destroy(ctx, child.id, c.endedWith(child, why))
			if errors.Is(err, ErrNotFound) {
				return // gone meanwhile
			}
			if err == nil {
				// One that had ended already: how is written before what tells it goes with its parent.
				if err = c.save(ctx, child); err == nil {
					err = child.destroyHandle(ctx)
				}
			}
			errs[n] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// insist goes on killing what could not be killed at once.
func (c *Containerizer) insist(ct *container) {
	for wait := range c.retries() {
		ctx, cancel := context.WithTimeout(c.life, destroyTimeout)
		err := ct.destroyHandle(ctx)
		cancel()
		if err == nil {
			return
		}
		c.log.Warn("container cannot be killed", "container", ct.id, "error", err, "again_in", wait)
	}
}

// Forget says that the container's end has been recorded elsewhere: its checkpoint goes when nothing is owed any
// more. Unknown ids are fine, since a failed launch forgets itself.
func (c *Containerizer) Forget(_ context.Context, id string) error {
	ct, err := c.find(id)
	if err != nil {
		return nil
	}
	select {
	case <-ct.ended:
		ct.forget()
		return nil
	default:
		return fmt.Errorf("forget container %s: it has not ended", id)
	}
}

// Limited ends a container that reached a limit; the module host calls it when a module says so. One that shares its
// parent's limits reached those of its parent, which ends with all that is nested in it.
func (c *Containerizer) Limited(module string, l *modulev1.Limitation) {
	ct, err := c.find(l.GetContainerId())
	if err != nil {
		return // ended and forgotten while the event travelled
	}
	c.log.Info("container reached a limit", "container", ct.id, "module", module, "reason", l.GetReason(), "message", l.GetMessage())
	c.limit(c.held(ct), l)
}

// limit ends a container whose limit was reached.
func (c *Containerizer) limit(ct *container, l *modulev1.Limitation) {
	c.wg.Go(func() {
		ctx, cancel := context.WithTimeout(c.life, destroyTimeout)
		defer cancel()
		err := c.Destroy(ctx, ct.id, limitation(l))
		if err != nil && !errors.Is(err, ErrNotFound) && c.life.Err() == nil {
			c.log.Warn("destroy a container that reached a limit", "container", ct.id, "error", err)
		}
	})
}

// limitation is how a container ends that reached a limit.
func limitation(l *modulev1.Limitation) *containerv1.Termination {
	return &containerv1.Termination{
		State: mesosv1.TaskState_TASK_FAILED.String(), Reason: l.GetReason(), Message: l.GetMessage(),
		LimitedResources: l.GetResources(),
	}
}

// childrenOf returns the containers directly nested in id of which anything is left.
func (c *Containerizer) childrenOf(id string) []*container {
	var children []*container
	for _, ct := range c.all() {
		ct.mu.Lock()
		if ct.spec.GetParentId() == id {
			children = append(children, ct)
		}
		ct.mu.Unlock()
	}
	return children
}

// Skipped says how many launches went on without each optional isolator, since New.
func (c *Containerizer) Skipped() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.skips)
}

// Owed says how many cleanups of each module are outstanding: containers that ended, or failed to start, and whose
// Cleanup has not succeeded yet.
func (c *Containerizer) Owed() map[string]int {
	owed := map[string]int{}
	for _, ct := range c.all() {
		ct.mu.Lock()
		if ct.phase == containerv1.Checkpoint_ENDED {
			for _, m := range ct.modules {
				if !m.GetClean() {
					owed[m.GetModule()]++
				}
			}
		}
		ct.mu.Unlock()
	}
	return owed
}
