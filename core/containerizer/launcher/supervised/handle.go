// Package supervised is the container that both launchers hand out: a shim, a cgroup and a first
// process, and how they are found again, told apart from strangers, and taken down.
//
// It promises that a process is only taken for the container's when pid, start time and boot agree,
// and that Destroy returns nil only when the cgroup, and what descends from the shim, is empty. How
// the first process comes to be, and what a runtime leaves behind beside it, is the launcher's.
package supervised

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/cgroup"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// RootDir is the folder of a run folder onto which a root file system may be mounted, in another
// mount namespace. It is never emptied, only removed.
const RootDir = "rootfs"

// A Record is what a container is found again by. Its JSON is the handle's state.
type Record struct {
	ID         string          `json:"id"`
	RunDir     string          `json:"run_dir"`
	Cgroup     string          `json:"cgroup,omitempty"` // relative path, empty without cgroup
	Pid        int             `json:"pid"`
	StartTicks uint64          `json:"start_ticks"`
	BootID     string          `json:"boot_id"`
	Launcher   json.RawMessage `json:"launcher,omitempty"` // the launcher's own
	Shim       string          `json:"shim,omitempty"`     // run folder of the container beside which the shim keeps this one
	Streams    uint8           `json:"streams,omitempty"`  // as in wire.Spec
}

// Options are what a launcher adds.
type Options struct {
	// Start, if not nil, lets the first process, pid, go after the shim did its part. ended is closed
	// when that process ends.
	Start func(ctx context.Context, pid int, ended <-chan struct{}) error
	// Remove, if not nil, takes down what a runtime keeps of a container whose processes are gone.
	Remove func(ctx context.Context) error
	Log    *slog.Logger
}

// A Handle is one container. It implements launcher.Handle.
type Handle struct {
	rec   Record
	state []byte
	group *cgroup.Group // nil without cgroup
	opts  Options
	pidfd int // of the first process, -1 when it could not be had; closed by Destroy

	destroying sync.Mutex // held by Destroy

	mu        sync.Mutex   // guards what follows, and pidfd
	client    *shim.Client // nil when the shim is lost
	end       *end
	destroyed bool
	attached  map[*attachment]struct{}
	drained   bool             // what clients have not read of the output was fetched; nobody attaches to the shim any more
	rest      []launcher.Chunk // what nobody has read, for the next that attaches
}

// An end is how the first process ended.
type end struct {
	status int
	known  bool
}

// New makes the handle of a container that client's shim has created.
func New(client *shim.Client, rec Record, group *cgroup.Group, opts Options) (*Handle, error) {
	state, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	return &Handle{rec: rec, state: state, group: group, client: client, opts: opts, pidfd: openPidfd(rec.Pid, rec.StartTicks)}, nil
}

// ParseRecord decodes a handle's state.
func ParseRecord(state []byte) (Record, error) {
	var rec Record
	if err := json.Unmarshal(state, &rec); err != nil {
		return rec, fmt.Errorf("decode launcher state: %w", err)
	}
	if rec.RunDir == "" || !filepath.IsAbs(rec.RunDir) || rec.Pid <= 0 {
		return rec, fmt.Errorf("decode launcher state: got run folder %q and pid %d", rec.RunDir, rec.Pid)
	}
	return rec, nil
}

// Reattach finds the container of rec again. See launcher.Launcher for its errors.
func Reattach(ctx context.Context, rec Record, group *cgroup.Group, opts Options) (*Handle, error) {
	h, err := New(nil, rec, group, opts)
	if err != nil {
		return nil, err
	}
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	if boot != rec.BootID {
		return nil, h.gone(ctx, end{}, "the machine was restarted")
	}
	client, err := h.connect(ctx)
	if err == nil {
		h.client = client
		return h, nil
	}
	if !errors.Is(err, shim.ErrLost) {
		h.Detach()
		return nil, err
	}
	// The record first: it is written while the process is not yet reaped.
	if e, ok := readExit(rec.RunDir); ok {
		return nil, h.gone(ctx, e, "it ended while the agent was away")
	}
	if isSame(rec.Pid, rec.StartTicks) {
		h.opts.Log.Warn("container has lost its shim and is adopted", "container", rec.ID, "pid", rec.Pid)
		return h, nil
	}
	if e, ok := readExit(rec.RunDir); ok {
		return nil, h.gone(ctx, e, "it ended while the agent was away")
	}
	var e end
	if h.pidfd >= 0 { // a zombie: whoever reaps it, the kernel tells
		if e, err = h.watch(ctx); err != nil {
			return nil, err
		}
	}
	return nil, h.gone(ctx, e, "neither its shim nor its first process is there")
}

// gone takes down what is left and returns why there is no handle.
func (h *Handle) gone(ctx context.Context, e end, why string) error {
	if err := h.Destroy(ctx); err != nil {
		return fmt.Errorf("container %s is gone (%s), but not all of it: %w", h.rec.ID, why, err)
	}
	return &launcher.GoneError{WaitStatus: e.status, Known: e.known, Why: why}
}

// connect connects to the container's shim and makes sure that it is this container's.
func (h *Handle) connect(ctx context.Context) (*shim.Client, error) {
	client, err := shim.Connect(ctx, h.rec.RunDir)
	if err != nil {
		return nil, err
	}
	s, err := client.State(ctx)
	if err == nil && (s.Pid != h.rec.Pid || s.StartTicks != h.rec.StartTicks) {
		err = fmt.Errorf("shim in %s: got process %d started at %d, want %d at %d", h.rec.RunDir, s.Pid, s.StartTicks, h.rec.Pid, h.rec.StartTicks)
	}
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	return client, nil
}

// State implements launcher.Handle.
func (h *Handle) State() []byte { return h.state }

// Pid implements launcher.Handle.
func (h *Handle) Pid() int { return h.rec.Pid }

// StartTicks implements launcher.Handle.
func (h *Handle) StartTicks() uint64 { return h.rec.StartTicks }

// Cgroups implements launcher.Handle.
func (h *Handle) Cgroups() map[string]string {
	if h.group == nil {
		return map[string]string{}
	}
	return h.group.Paths()
}

func (h *Handle) shim() *shim.Client {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.client
}

// Start implements launcher.Handle.
func (h *Handle) Start(ctx context.Context) error {
	client := h.shim()
	if client == nil {
		return fmt.Errorf("start container %s: %w", h.rec.ID, launcher.ErrEnded)
	}
	err := client.Start(ctx)
	if err == nil && h.opts.Start != nil {
		err = h.opts.Start(ctx, h.rec.Pid, client.Exited())
	}
	if errors.Is(err, syscall.ESRCH) || errors.Is(err, shim.ErrLost) {
		err = fmt.Errorf("%w: %w", launcher.ErrEnded, err)
	}
	if err != nil {
		return fmt.Errorf("start container %s: %w", h.rec.ID, err)
	}
	return nil
}

// Wait implements launcher.Handle.
func (h *Handle) Wait(ctx context.Context) (waitStatus int, known bool, err error) {
	for {
		h.mu.Lock()
		client, e, destroyed := h.client, h.end, h.destroyed
		h.mu.Unlock()
		switch {
		case e != nil:
			return e.status, e.known, nil
		case destroyed:
			return 0, false, nil
		case client == nil:
			e, err := h.watch(ctx)
			if err != nil {
				return 0, false, fmt.Errorf("wait for container %s: %w", h.rec.ID, err)
			}
			h.setEnd(e)
			continue
		}
		select {
		case <-client.Exited():
			h.setEnd(end{status: int(client.End().WaitStatus), known: true})
		case <-client.Lost():
			h.recoverShim(ctx, client)
		case <-ctx.Done():
			return 0, false, fmt.Errorf("wait for container %s: %w", h.rec.ID, ctx.Err())
		}
	}
}

func (h *Handle) setEnd(e end) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.end == nil {
		h.end = &e
	}
}

// recoverShim replaces a client whose connection is gone: by a new connection if the shim lives,
// and else by none. What the lost one knew of the end is kept.
func (h *Handle) recoverShim(ctx context.Context, lost *shim.Client) {
	select {
	case <-lost.Exited():
		h.setEnd(end{status: int(lost.End().WaitStatus), known: true})
		return
	default:
	}
	again, err := h.connect(ctx)
	if err != nil {
		again = nil
		if e, ok := readExit(h.rec.RunDir); ok {
			h.setEnd(e) // it wrote that down before it ended itself
		} else if !h.isDestroyed() && ctx.Err() == nil {
			h.opts.Log.Warn("container has lost its shim", "container", h.rec.ID, "pid", h.rec.Pid, "error", err)
		}
	}
	h.mu.Lock()
	if h.client == lost {
		h.client, again = again, nil
	}
	h.mu.Unlock()
	if again != nil {
		_ = again.Close()
	}
}

func (h *Handle) isDestroyed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.destroyed
}

// Signal implements launcher.Handle.
func (h *Handle) Signal(ctx context.Context, sig syscall.Signal) error {
	err := shim.ErrLost
	if client := h.shim(); client != nil {
		err = client.Signal(ctx, sig)
	}
	if errors.Is(err, shim.ErrLost) {
		err = h.signalAlone(sig)
	}
	if errors.Is(err, syscall.ESRCH) {
		err = launcher.ErrEnded
	}
	if err != nil {
		return fmt.Errorf("signal %d to container %s: %w", sig, h.rec.ID, err)
	}
	return nil
}

// Update implements launcher.Handle.
func (h *Handle) Update(_ context.Context, c *containerv1.CgroupResources) error {
	if h.group == nil {
		if cgroup.Asks(c) {
			return fmt.Errorf("update container %s: it has no cgroup", h.rec.ID)
		}
		return nil
	}
	if err := h.group.Set(c); err != nil {
		return fmt.Errorf("update container %s: %w", h.rec.ID, err)
	}
	return nil
}

// Destroy implements launcher.Handle. The order is that of proof: everything is killed and the
// group seen empty before anything that would help to find it again is taken away.
func (h *Handle) Destroy(ctx context.Context) error {
	h.destroying.Lock()
	defer h.destroying.Unlock()
	if h.isDestroyed() {
		return nil
	}
	if err := h.destroy(ctx); err != nil {
		return fmt.Errorf("destroy container %s: %w", h.rec.ID, err)
	}
	h.mu.Lock()
	h.destroyed = true
	h.mu.Unlock()
	h.Detach()
	return nil
}

// Detach gives up what the handle holds in this process, for an agent that ends or hands over. The
// container goes on, if it was started, and is found again by Reattach. The handle is of no use then.
func (h *Handle) Detach() {
	h.mu.Lock()
	client := h.client
	h.client = nil
	if h.pidfd >= 0 {
		_ = unix.Close(h.pidfd)
		h.pidfd = -1
	}
	h.mu.Unlock()
	if client != nil {
		_ = client.Close()
	}
}

func (h *Handle) destroy(ctx context.Context) error {
	if h.group != nil {
		if err := h.group.Kill(ctx); err != nil {
			return err
		}
	}
	client := h.shim()
	if client != nil {
		// Also what left the cgroup, or where there is none.
		if err := client.Kill(ctx); err != nil && !errors.Is(err, shim.ErrLost) {
			return err
		}
		h.keepEnd(client)
	}
	if err := h.killAlone(ctx); err != nil {
		return err
	}
	h.drain(ctx)
	if h.opts.Remove != nil {
		if err := h.opts.Remove(ctx); err != nil {
			return err
		}
	}
	if client != nil {
		if err := client.Dismiss(ctx); err != nil {
			return err
		}
		h.keepEnd(client)
	}
	if h.group != nil {
		if err := h.group.Remove(ctx); err != nil {
			return err
		}
	}
	return removeRunDir(h.rec.RunDir)
}

// keepEnd remembers how the first process ended if the shim has said so, for Wait after the shim
// is gone.
func (h *Handle) keepEnd(client *shim.Client) {
	select {
	case <-client.Exited():
		h.setEnd(end{status: int(client.End().WaitStatus), known: true})
	default:
	}
}

// Discard takes down whatever a Create that never returned may have left: processes, cgroup and
// run folder. Nil when there is nothing.
func Discard(ctx context.Context, group *cgroup.Group, runDir string, remove func(context.Context) error) error {
	client, err := shim.Connect(ctx, runDir)
	if err != nil && !errors.Is(err, shim.ErrLost) {
		return err
	}
	if group != nil {
		if err := group.Kill(ctx); err != nil {
			return err
		}
	}
	if err == nil {
		defer client.Close()
		if err := client.Dismiss(ctx); err != nil {
			return err
		}
	}
	if remove != nil {
		if err := remove(ctx); err != nil {
			return err
		}
	}
	if group != nil {
		if err := group.Remove(ctx); err != nil {
			return err
		}
	}
	return removeRunDir(runDir)
}

// removeRunDir removes the run folder. A root file system is never descended into, should one
// still be mounted there.
func removeRunDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove run folder: %w", err)
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if e.Name() == RootDir {
			err = os.Remove(name)
		} else {
			err = os.RemoveAll(name)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove run folder: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove run folder: %w", err)
	}
	return nil
}

var _ launcher.Handle = (*Handle)(nil)
