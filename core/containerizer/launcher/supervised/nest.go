package supervised

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/cgroup"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// A Nest is where shims and cgroups come from: what both launchers share.
type Nest struct {
	bin     *shim.Binary
	cgroups *cgroup.Hierarchy // nil without
	log     *slog.Logger

	spares *spares // nil unless warm
	cool   context.CancelFunc

	mu    sync.Mutex // guards shims
	shims map[string]*cgroup.Group
}

// NewNest returns a nest. cgroups may be nil.
func NewNest(bin *shim.Binary, cgroups *cgroup.Hierarchy, log *slog.Logger) *Nest {
	return &Nest{bin: bin, cgroups: cgroups, log: log, shims: map[string]*cgroup.Group{}}
}

// Version is the version of cgroups, 0 without.
func (n *Nest) Version() int {
	if n.cgroups == nil {
		return 0
	}
	return n.cgroups.Version()
}

// shimDir is the folder, beside the containers, that shims live in: out of the agent's own cgroup,
// which a service manager empties when it stops the agent.
const shimDir = ".shims"

// shimGroup returns the group for shims of containers below rel's first element, nil when none can
// be made: then they stay with the agent.
func (n *Nest) shimGroup(rel string) *cgroup.Group {
	if n.cgroups == nil || rel == "" {
		return nil
	}
	root, _, _ := strings.Cut(rel, "/")
	n.mu.Lock()
	defer n.mu.Unlock()
	if g, ok := n.shims[root]; ok {
		return g
	}
	g, err := n.cgroups.Group(root + "/" + shimDir)
	if err == nil {
		err = g.Create()
	}
	if err == nil {
		err = mayJoin(g)
	}
	if err != nil {
		n.log.Warn("shims stay in the agent's cgroup", "error", err)
		g = nil
	}
	n.shims[root] = g
	return g
}

// mayJoin says whether processes can be started in a group: it may be there already, and somebody else's.
func mayJoin(g *cgroup.Group) error {
	dirs := slices.Collect(maps.Values(g.Paths()))
	if dir := g.CloneInto(); dir != "" {
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		file := filepath.Join(dir, "cgroup.procs")
		if err := unix.Access(file, unix.W_OK); err != nil {
			return &fs.PathError{Op: "write", Path: file, Err: err}
		}
	}
	return nil
}

// group names the container's cgroup, nil if it has none.
func (n *Nest) group(c *containerv1.Container) (*cgroup.Group, error) {
	if n.cgroups == nil || c.GetCgroup() == "" {
		return nil, nil
	}
	return n.cgroups.Group(c.GetCgroup())
}

// undoTimeout bounds the taking down of a container whose creation failed, however that ended.
const undoTimeout = 30 * time.Second

// A Birth is a container half made: its shim is coming up, its cgroup is there with its limits.
type Birth struct {
	Spec *wire.Spec // for the launcher to complete
	// Explain, if not nil, adds what the launcher knows to an error, before all is undone.
	Explain func(error) error
	// Remove, if not nil, takes down what a runtime may have made.
	Remove func(ctx context.Context) error

	nest   *Nest
	req    *launcher.Request
	group  *cgroup.Group
	home   *cgroup.Group // where the shim lives, nil for where the agent does
	client *shim.Client
	beside string // run folder of the first container of a shim that keeps this one too; empty for a shim of its own
	handed bool   // the shim was given the spec
}

// Spawn makes the run folder, starts the shim, and makes the cgroup while the shim comes up.
// asked are the settings to write to the cgroup; runtime, if not nil, is handed to the shim.
func (n *Nest) Spawn(ctx context.Context, r *launcher.Request, asked *containerv1.CgroupResources, runtime *shim.Binary) (*Birth, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(r.RunDir) || filepath.Clean(r.RunDir) != r.RunDir {
		return nil, fmt.Errorf("run folder %q: want a clean absolute path", r.RunDir)
	}
	group, err := n.group(r.Container)
	if err != nil {
		return nil, err
	}
	if err := makeRunDir(r.RunDir); err != nil {
		return nil, err
	}
	b := &Birth{nest: n, req: r, group: group}
	if err := b.spawn(ctx, asked, runtime); err != nil {
		return nil, b.Undo(ctx, err)
	}
	b.Spec = &wire.Spec{
		ID: r.Container.GetId(), RunDir: r.RunDir,
		Stdout: r.Stdout, Stderr: r.Stderr, LogUID: r.User.UID, LogGID: r.User.GID,
		Streams: streamsOf[r.Streams], Rows: r.Rows, Columns: r.Columns, Stdin: r.Stdin,
		TerminalRoot: r.TerminalRoot,
		RotateStdout: wire.Rotation(r.StdoutRotation), RotateStderr: wire.Rotation(r.StderrRotation),
	}
	if b.Spec.Streams == wire.StreamsFiles && (r.Pumped || r.StdoutRotation.Size > 0 || r.StderrRotation.Size > 0) {
		b.Spec.Streams = wire.StreamsLogged
	}
	return b, nil
}

var streamsOf = map[containerv1.Container_Streams]uint8{
	containerv1.Container_FILES:    wire.StreamsFiles,
	containerv1.Container_ATTACHED: wire.StreamsPipes,
	containerv1.Container_TERMINAL: wire.StreamsTerminal,
}

// Overfull says whether a creation failed only because the shim of another container cannot keep one more: it is gone,
// or has as many files open as it may.
func Overfull(r *launcher.Request, err error) bool {
	return r.Beside != nil && (errors.Is(err, shim.ErrLost) || errors.Is(err, syscall.EMFILE))
}

// take finds a shim: that of another container if it is to be and can be, one that is ready, or a new one.
func (b *Birth) take(ctx context.Context, runtime *shim.Binary) error {
	b.home = b.nest.shimGroup(b.req.Container.GetCgroup())
	if other, ok := b.req.Beside.(*Handle); ok && other != nil && other.shim() != nil {
		dir := other.rec.Shim
		if dir == "" {
			dir = other.rec.RunDir
		}
		abilities := uint32(0)
		if runtime == nil && b.req.Container.GetRootfs() != "" {
			abilities = wire.CanRoot
		}
		client, err := shim.Beside(ctx, dir, runtime, abilities)
		if err == nil {
			b.client, b.beside = client, dir
			return nil
		}
		if !errors.Is(err, shim.ErrLost) {
			return err
		}
	}
	if b.client = b.nest.spares.take(b.home, runtime); b.client != nil {
		return nil
	}
	client, err := shim.Spawn(b.nest.bin, spawnOptions(b.home, runtime))
	if err != nil {
		return err
	}
	b.client = client
	return nil
}

// BearInside lets the first process be born in the container's cgroups.
func (b *Birth) BearInside() error {
	if b.group == nil {
		return nil
	}
	b.Spec.CloneInto = b.group.CloneInto()
	if b.home == nil {
		b.Spec.JoinFiles = b.group.JoinFiles()
		return nil
	}
	enter, leave, err := b.birthFiles()
	b.Spec.EnterFiles, b.Spec.LeaveFiles = enter, leave
	return err
}

// MoveInside lets a process that a runtime made be moved to the container's cgroups, as far as the
// runtime did not. On a hybrid machine the runtime itself is born in the unified one, which limits
// nothing, since moving is slow.
func (b *Birth) MoveInside() error {
	if b.group == nil {
		return nil
	}
	b.Spec.JoinFiles = b.group.JoinFiles()
	if b.nest.Version() == 1 {
		b.Spec.CloneInto = b.group.CloneInto()
	}
	if b.home == nil {
		return nil
	}
	_, leave, err := b.birthFiles()
	b.Spec.LeaveFiles = leave // of the agent's cgroups, that is
	return err
}

func (b *Birth) birthFiles() (enter, leave []string, err error) {
	b.nest.mu.Lock() // home may grow
	defer b.nest.mu.Unlock()
	return b.group.BirthFiles(b.home)
}

// makeRunDir makes the run folder, which must not hold another container.
func makeRunDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make run folder: %w", err)
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		var entries []fs.DirEntry
		if entries, err = os.ReadDir(dir); err == nil && len(entries) > 0 {
			err = fmt.Errorf("%s is in use: it holds %s", dir, entries[0].Name())
		}
	}
	if err != nil {
		return fmt.Errorf("make run folder: %w", err)
	}
	return nil
}

func (b *Birth) spawn(ctx context.Context, asked *containerv1.CgroupResources, runtime *shim.Binary) error {
	if err := b.take(ctx, runtime); err != nil {
		return err
	}
	if b.group == nil {
		if cgroup.Asks(asked) {
			return errors.New("cgroup settings are asked for, but there is no cgroup")
		}
		return nil
	}
	err := b.makeGroup(cgroup.Asks(asked) || runtime != nil)
	if notAllowed(err) && !cgroup.Asks(asked) {
		b.nest.log.Warn("container runs without a cgroup", "container", b.req.Container.GetId(), "error", err)
		b.group = nil
		return nil
	}
	if err != nil {
		return err
	}
	// What was here under that name is gone by the caller's word; this is the proof.
	pids, err := b.group.Occupants()
	if err != nil {
		return err
	}
	if len(pids) > 0 {
		stranger := b.group
		b.group = nil // not ours to empty
		return fmt.Errorf("cgroup %s is in use by process %d and %d others", stranger.Name(), pids[0], len(pids)-1)
	}
	return b.group.Set(asked)
}

// makeGroup makes the container's cgroup. Where it is to limit something below another's, or a runtime will try to let
// it, the processes of the other make room first: without that, on version 2, nothing could be limited, and an attempt
// would make the group one that no process may enter.
func (b *Birth) makeGroup(limits bool) error {
	if b.req.Within == "" {
		return b.group.Create()
	}
	outer, err := b.nest.cgroups.Group(b.req.Within)
	if err != nil {
		return err
	}
	if limits {
		if err := outer.Vacate(); err != nil {
			return err
		}
	}
	return b.group.CreateWithin(outer)
}

// notAllowed says whether the machine does not let this process make cgroups.
func notAllowed(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
}

// Create hands the spec to the shim and returns the handle of what it made. On error everything is
// undone. own, if not nil, gives the launcher's part of the record once the process exists.
func (b *Birth) Create(ctx context.Context, own func() any, opts Options) (*Handle, error) {
	h, err := b.create(ctx, own, opts)
	if err != nil {
		if b.Explain != nil {
			err = b.Explain(err)
		}
		return nil, b.Undo(ctx, err)
	}
	return h, nil
}

func (b *Birth) create(ctx context.Context, own func() any, opts Options) (*Handle, error) {
	b.handed = true
	s, err := b.client.Create(ctx, b.Spec)
	if err != nil {
		return nil, err
	}
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	rec := Record{ID: b.req.Container.GetId(), RunDir: b.req.RunDir, Pid: s.Pid, StartTicks: s.StartTicks, BootID: boot, Shim: b.beside, Streams: streamsOf[b.req.Streams]}
	if b.group != nil {
		rec.Cgroup = b.group.Name()
	}
	if own != nil {
		if rec.Launcher, err = json.Marshal(own()); err != nil {
			return nil, fmt.Errorf("encode state: %w", err)
		}
	}
	return New(b.client, rec, b.group, opts)
}

// Undo takes down what was made so far and returns why, joined with what could not be undone. It
// does its work even when ctx has ended.
func (b *Birth) Undo(ctx context.Context, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	undo := func() error {
		if b.group != nil {
			if err := b.group.Kill(ctx); err != nil {
				return err
			}
		}
		switch {
		case b.client == nil:
		case b.beside == "":
			// A shim that never got its spec answers nothing; it ends with the connection.
			_ = b.client.Abandon(ctx)
		default:
			// Before the spec the connection is about the other container, which is not to be touched.
			if b.handed {
				_ = b.client.Dismiss(ctx)
			}
			_ = b.client.Close()
		}
		if b.Remove != nil {
			if err := b.Remove(ctx); err != nil {
				return err
			}
		}
		if b.group != nil {
			if err := b.group.Kill(ctx); err != nil {
				return err
			}
			if err := b.group.Remove(ctx); err != nil {
				return err
			}
		}
		return removeRunDir(b.req.RunDir)
	}
	if err := undo(); err != nil {
		return errors.Join(why, fmt.Errorf("undo: %w", err))
	}
	return why
}

// Reattach finds a container again by its state; options gives what the launcher adds.
func (n *Nest) Reattach(ctx context.Context, state []byte, options func(Record) (Options, error)) (*Handle, error) {
	rec, err := ParseRecord(state)
	if err != nil {
		return nil, err
	}
	var group *cgroup.Group
	if rec.Cgroup != "" {
		if n.cgroups == nil {
			return nil, fmt.Errorf("container %s has cgroup %s, but there are no cgroups now", rec.ID, rec.Cgroup)
		}
		if group, err = n.cgroups.Group(rec.Cgroup); err != nil {
			return nil, err
		}
	}
	opts, err := options(rec)
	if err != nil {
		return nil, err
	}
	return Reattach(ctx, rec, group, opts)
}

// Discard takes down what a Create that never returned left; see the function Discard.
func (n *Nest) Discard(ctx context.Context, c *containerv1.Container, runDir string, remove func(context.Context) error) error {
	group, err := n.group(c)
	if err != nil {
		return err
	}
	return Discard(ctx, group, runDir, remove)
}
