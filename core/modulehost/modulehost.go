// Package modulehost runs modules: it starts each as a process of its own, agrees with it on a contract version,
// configures it from the composition, supervises it, and carries the core's calls to it.
//
// It promises that a module harms only its own calls. Every call has a deadline; every answer is bounded and checked
// before anybody sees it; a module that dies is started again and told what lives; one that hangs is restarted when
// several calls missed their deadline; whatever it forked dies with it; its output never blocks it and never floods
// the log. A module that is down is waited for until the deadline of the call, which then fails with its name.
//
// It keeps no state of containers: what lives comes from the Containers that the agent gives it, and what a module
// wants to remember goes into the agent's checkpoint. The order of isolators, the merging of what they propose, and
// owed cleanups are the containerizer's.
//
// go-plugin spawns nothing here and keeps nothing alive: it settles the environment and reads the handshake line, so
// that its ecosystem of modules works. All of life after that is this package's.
package modulehost

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/prometheus/client_golang/prometheus"

	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// Containers is what the host asks of the side that holds the containers.
type Containers interface {
	// Records gives all containers, live and orphaned, with what is kept of them for the module.
	Records(module string) []*isolatorv1.ContainerRecord
	// Limited tells that a module saw a container reach a limit. It must not block.
	Limited(module string, l *modulev1.Limitation)
}

// ModuleConfig is one module block of a composition.
type ModuleConfig struct {
	// Required. One of the Kind constants.
	Kind string
	// Required. In lower_snake_case.
	Name string
	// Optional. Absolute path of the executable; empty takes the module from the bundle, or if that does not hold it, its
	// own program (Options.ProgramDirs).
	Command string
	// Optional. Arguments of Command.
	Args []string
	// Optional. "sha256:" and 64 hex digits that the executable must have.
	Checksum string
	// Whether launches need it. Isolators only; the other kinds fail as their contracts say.
	Required bool
	// Optional. Powers granted; nil grants all that the module declares.
	Allow []string
	// Optional. User to run it as, by name or number; empty is the agent's own.
	User string
	// Optional. Limits of the module's own cgroup; 0 is the default.
	MemoryBytes, Pids uint64
	// Optional. Deadlines by call in lower case, such as "prepare"; others have the contract's default.
	Timeouts map[string]time.Duration
	// Optional. Body of the config block; nil is an empty one.
	Config hcl.Body
	// Optional. Text of the file of the block, for suggestions in diagnostics.
	Source []byte
	// Where the block begins, and where its attributes are, for diagnostics.
	Range  hcl.Range
	Ranges map[string]hcl.Range
}

// id is the name by which everything about the module is said: isolator(cgroups).
func (c *ModuleConfig) id() string { return c.Kind + "(" + c.Name + ")" }

// rangeOf gives the place of an attribute, or else of the block.
func (c *ModuleConfig) rangeOf(attribute string) *hcl.Range {
	if r, ok := c.Ranges[attribute]; ok {
		return &r
	}
	r := c.Range
	return &r
}

// Options are the host's own settings.
type Options struct {
	// Optional. Version of the program, told to modules.
	Version string
	// Optional. Path of the multi-call binary with the modules of the bundle. Absolute.
	Bundle string
	// Optional. Folders in which a module that the bundle does not hold has a program of its own, looked at in this order.
	// The program is called mosaic-KIND-NAME with hyphens, as in mosaic-isolator-nvidia-gpu. Absolute.
	ProgramDirs []string
	// Optional. Folder for the modules' sockets, made if missing; at most 60 bytes, for the path of a socket is
	// bounded by the kernel. It belongs to this host alone. Empty makes a temporary one.
	RunDir string
	// Optional. Folder for a log file of each module; empty for none.
	LogDir string
	// Optional. Folder in which descriptions of modules are kept by digest, for checks without running them.
	CacheDir string
	// Optional. Folder of the modules' cgroups relative to the hierarchies' mounts; empty runs modules without
	// cgroups of their own. It belongs to this host alone: what is found in it is killed.
	Cgroup string
	// Optional. Facts for the modules' Configure.
	Node *modulev1.NodeFacts
	// Optional. Who holds the containers; can be given later by Attach.
	Containers Containers
	// Required.
	Logger *slog.Logger
	// Optional. Where to register metrics.
	Metrics prometheus.Registerer

	// For tests: other contract versions than the real ones.
	contracts map[string][]contract
}

// Limits of a module's cgroup where the composition says nothing.
const (
	defaultMemory = 256 << 20
	defaultPids   = 256
	// maxRunDir leaves room for what go-plugin puts behind it: two folders with random numbers, within 107 bytes.
	maxRunDir = 60
)

// Host runs the modules of one composition.
type Host struct {
	opts      Options
	log       *slog.Logger
	contracts map[string][]contract
	spawner   *spawner
	cgroups   *cgroups
	digests   digests
	cache     schemaCache
	metrics   *metrics
	runDir    string
	ownRunDir bool // made here, removed at Close
	modules   []*module

	cancel context.CancelFunc
	wg     sync.WaitGroup // one run loop a module
	hurry  chan struct{}  // closed when Close may not wait for drains any more

	mu         sync.Mutex // guards containers
	containers Containers

	closeOnce sync.Once
	closed    chan struct{}
}

// CompositionError says that the composition cannot be run as it is: an attribute is wrong, a file missing, a checksum
// differs. Nothing runs when Start returns it.
type CompositionError struct{ Diagnostics hcl.Diagnostics }

// Error gives the first of the diagnostics and how many more there are.
func (e *CompositionError) Error() string { return e.Diagnostics.Error() }

// Start starts all modules at once, waits until each has come up or failed for the first time, and returns the host.
//
// A module that cannot be run because of what the composition says is an error of Start: a *CompositionError with all
// that is wrong. One that merely does not come up is not: the host goes on trying, and Status tells (see Degraded).
// ctx bounds the start only; Close stops everything.
func Start(ctx context.Context, opts Options, configs []ModuleConfig) (*Host, error) {
	h, err := newHost(opts)
	if err != nil {
		return nil, err
	}
	if diags := h.checkConfigs(configs); diags.HasErrors() {
		return nil, errors.Join(&CompositionError{diags}, h.release())
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	h.cancel = cancel
	for i := range configs {
		m, err := newModule(h, configs[i])
		if err != nil {
			return nil, errors.Join(err, h.Close(ctx))
		}
		h.modules = append(h.modules, m)
	}
	for _, m := range h.modules {
		h.wg.Go(func() { m.run(run) })
	}
	var diags hcl.Diagnostics
	for _, m := range h.modules {
		select {
		case err := <-m.first:
			var composition *CompositionError
			if errors.As(err, &composition) {
				diags = append(diags, composition.Diagnostics...)
			}
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("start modules: waiting for %s: %w", m.cfg.id(), ctx.Err()),
				h.Close(context.WithoutCancel(ctx)))
		}
	}
	if diags.HasErrors() {
		return nil, errors.Join(&CompositionError{diags}, h.Close(ctx))
	}
	for _, d := range diags {
		h.log.Warn("composition", "diagnostic", d.Error())
	}
	return h, nil
}

// newHost makes what all modules share.
func newHost(opts Options) (*Host, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Host{
		opts:       opts,
		log:        opts.Logger,
		contracts:  opts.contracts,
		cgroups:    &cgroups{},
		cache:      schemaCache{opts.CacheDir},
		runDir:     opts.RunDir,
		containers: opts.Containers,
		hurry:      make(chan struct{}),
		closed:     make(chan struct{}),
	}
	if h.contracts == nil {
		h.contracts = contracts()
	}
	if err := h.makeRunDir(); err != nil {
		return nil, err
	}
	if opts.LogDir != "" {
		if err := os.MkdirAll(opts.LogDir, 0o755); err != nil {
			return nil, errors.Join(fmt.Errorf("make folder for module logs: %w", err), h.release())
		}
	}
	if c, err := findCgroups(opts.Cgroup); err != nil {
		h.log.Warn("modules run without cgroups of their own", "error", err)
	} else {
		h.cgroups = c
	}
	h.metrics = newMetrics()
	if opts.Metrics != nil {
		if err := opts.Metrics.Register(h.metrics); err != nil {
			return nil, errors.Join(fmt.Errorf("register metrics of modules: %w", err), h.release())
		}
	}
	h.spawner = newSpawner()
	return h, nil
}

func (h *Host) makeRunDir() error {
	if h.runDir == "" {
		base := os.TempDir()
		if len(base) > maxRunDir/2 {
			base = "/tmp" // where TMPDIR is too long for a socket's path
		}
		dir, err := os.MkdirTemp(base, "mosaic-")
		if err != nil {
			return fmt.Errorf("make folder for sockets: %w", err)
		}
		h.runDir, h.ownRunDir = dir, true
	}
	if !filepath.IsAbs(h.runDir) || len(h.runDir) > maxRunDir {
		return fmt.Errorf("folder for sockets %s: want an absolute path of at most %d bytes", h.runDir, maxRunDir)
	}
	if err := os.MkdirAll(h.runDir, 0o700); err != nil {
		return fmt.Errorf("make folder for sockets: %w", err)
	}
	// What an agent that was killed left there. The folder is this host's alone.
	stale, err := filepath.Glob(filepath.Join(h.runDir, "plugin-dir*"))
	if err != nil {
		return fmt.Errorf("look for old sockets: %w", err)
	}
	for _, folder := range stale {
		if err := os.RemoveAll(folder); err != nil {
			return fmt.Errorf("remove old sockets: %w", err)
		}
	}
	// Modules that run as another user pass through to their own folder, which nobody else can enter.
	if err := os.Chmod(h.runDir, 0o711); err != nil {
		return fmt.Errorf("make folder for sockets: %w", err)
	}
	return nil
}

// release undoes newHost.
func (h *Host) release() error {
	if h.spawner != nil {
		h.spawner.stop()
	}
	h.cgroups.remove()
	if h.opts.Metrics != nil && h.metrics != nil {
		h.opts.Metrics.Unregister(h.metrics)
	}
	if h.ownRunDir {
		return os.RemoveAll(h.runDir)
	}
	return nil
}

// Attach gives the host the side that holds the containers and tells every isolator what lives. It returns when all
// that are up have taken it; those that come up later are told then.
func (h *Host) Attach(ctx context.Context, c Containers) error {
	h.mu.Lock()
	h.containers = c
	h.mu.Unlock()
	var wg sync.WaitGroup
	errs := make([]error, len(h.modules))
	for i, m := range h.modules {
		if m.cfg.Kind == KindIsolator {
			wg.Go(func() { errs[i] = m.recoverAgain(ctx) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// attached gives the side that holds the containers; nil if there is none.
func (h *Host) attached() Containers {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.containers
}

// Restart drains one module and starts it anew, and returns when it is up again. name is "isolator/cgroups", or the
// name alone if only one kind has it.
func (h *Host) Restart(ctx context.Context, name string) error {
	m, err := h.find(name)
	if err != nil {
		return err
	}
	return m.restart(ctx)
}

// SetLogLevel changes which lines of a module are kept.
func (h *Host) SetLogLevel(name string, level slog.Level) error {
	m, err := h.find(name)
	if err != nil {
		return err
	}
	m.pump.level.Set(level)
	return nil
}

// SetOwed tells how many cleanups are owed to a module, for its metrics and status.
func (h *Host) SetOwed(name string, n int) {
	if m, err := h.find(name); err == nil {
		m.owed.Store(int64(n))
	}
}

// ErrNoModule is returned for a name that is not in the composition, or that two kinds share.
var ErrNoModule = errors.New("no such module")

func (h *Host) find(name string) (*module, error) {
	var found *module
	for _, m := range h.modules {
		if name != m.cfg.Name && name != m.cfg.Kind+"/"+m.cfg.Name && name != m.cfg.id() {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%w: %q is both %s and %s; say kind/name", ErrNoModule, name, found.cfg.id(), m.cfg.id())
		}
		found = m
	}
	if found == nil {
		return nil, fmt.Errorf("%w: %q", ErrNoModule, name)
	}
	return found, nil
}

// ofKind gives the modules of a kind in the order of the composition.
func (h *Host) ofKind(kind string) []*module {
	var out []*module
	for _, m := range h.modules {
		if m.cfg.Kind == kind {
			out = append(out, m)
		}
	}
	return out
}

// Close drains and stops all modules at once and returns when everything of them is dead. It may be called again.
// When ctx ends, modules are killed instead of drained.
func (h *Host) Close(ctx context.Context) error {
	var err error
	h.closeOnce.Do(func() {
		if h.cancel != nil {
			defer context.AfterFunc(ctx, func() { close(h.hurry) })()
			h.cancel()
		}
		h.wg.Wait()
		var errs []error
		for _, m := range h.modules {
			errs = append(errs, m.pump.close())
		}
		errs = append(errs, h.release())
		err = errors.Join(errs...)
		close(h.closed)
	})
	<-h.closed
	return err
}
