// Package oci launches containers through an OCI runtime, such as runc: whatever has a root file
// system, mounts, devices or masked paths.
//
// The runtime is run under the container's shim, which thereby becomes the parent of the
// container's first process and keeps its exit status; the runtime itself does not stay. Cgroups
// are made and set as for every other container; the bundle repeats their settings so that the
// runtime agrees. What a container without an image sees is the host's file system, bound whole.
//
// Runtimes that hold the first process on a named pipe called exec.fifo, as runc does, are started
// and deleted without running them again.
package oci

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/cgroup"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/supervised"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Name is the launcher's name.
const Name = "oci"

// A Launcher makes containers with an OCI runtime.
type Launcher struct {
	nest    *supervised.Nest
	cgroups *cgroup.Hierarchy // nil without
	runtime *shim.Binary
	log     *slog.Logger
}

// New returns a launcher that runs shims from bin, which run runtime. cgroups is nil on a machine
// without.
func New(bin, runtime *shim.Binary, cgroups *cgroup.Hierarchy, log *slog.Logger) *Launcher {
	return &Launcher{nest: supervised.NewNest(bin, cgroups, log), cgroups: cgroups, runtime: runtime, log: log}
}

// Name implements launcher.Launcher.
func (l *Launcher) Name() string { return Name }

// own is the launcher's part of a container's record.
type own struct {
	Runtime string `json:"runtime"` // path of the program
	Fifo    bool   `json:"fifo"`    // it holds the first process on exec.fifo
}

// Files of a run folder.
func bundleDir(runDir string) string { return filepath.Join(runDir, "bundle") }
func stateDir(runDir string) string  { return filepath.Join(runDir, "state") }
func logFile(runDir string) string   { return filepath.Join(runDir, "runtime.log") }
func pidFile(runDir string) string   { return filepath.Join(runDir, "runtime.pid") }
func fifoFile(runDir, id string) string {
	return filepath.Join(stateDir(runDir), id, "exec.fifo")
}

// Warm keeps shims ready for containers below the cgroup root; see launcher.Warmer.
func (l *Launcher) Warm(root string) { l.nest.Warm(root, l.runtime) }

// Cool ends what Warm began.
func (l *Launcher) Cool(ctx context.Context) error {
	if err := l.nest.Cool(ctx); err != nil {
		return fmt.Errorf("launcher(%s): %w", Name, err)
	}
	return nil
}

// Supports implements launcher.Launcher.
func (l *Launcher) Supports(r *launcher.Request) error {
	p := r.Proposal
	ns, err := supervised.ParseNamespaces(p)
	if err != nil {
		return err
	}
	switch {
	case os.Geteuid() != 0:
		return errors.New("running without being root")
	case len(r.Argv) == 0 || r.Program() == "":
		return errors.New("no command")
	case p.GetWindowsJob() != nil:
		return errors.New("windows jobs")
	case p.GetHostname() != "" && !ns.Own(unix.CLONE_NEWUTS):
		return errors.New("a hostname without a uts namespace")
	case ns.Own(unix.CLONE_NEWUSER):
		return errors.New("user namespaces")
	case ns.Join[unix.CLONE_NEWNS] != "":
		return errors.New("joining a mount namespace")
	case r.Container.GetRootfs() != "" && !filepath.IsAbs(r.Container.GetRootfs()):
		return fmt.Errorf("root file system %q, which is not absolute", r.Container.GetRootfs())
	}
	_, err = spec(r, l.nest.Version())
	return err
}

// Create implements launcher.Launcher.
func (l *Launcher) Create(ctx context.Context, r *launcher.Request) (launcher.Handle, error) {
	h, err := l.create(ctx, r)
	if supervised.Overfull(r, err) {
		alone := *r
		alone.Beside = nil
		h, err = l.create(ctx, &alone)
	}
	if err != nil {
		return nil, fmt.Errorf("launcher(%s): create container %s: %w", Name, r.Container.GetId(), err)
	}
	return h, nil
}

func (l *Launcher) create(ctx context.Context, r *launcher.Request) (*supervised.Handle, error) {
	if err := l.Supports(r); err != nil {
		return nil, fmt.Errorf("not supported: %w", err)
	}
	s, err := spec(r, l.nest.Version())
	if err != nil {
		return nil, err
	}
	if l.nest.Version() != 0 {
		around, err := supervised.DevicesAround(l.cgroups, r.Container.GetCgroup())
		if err != nil {
			return nil, err
		}
		s.Linux.Resources.Devices = deviceRules(supervised.DevicesWithin(around, supervised.DeviceRules(r)))
	}
	config, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode bundle: %w", err)
	}
	birth, err := l.nest.Spawn(ctx, r, withoutDevices(r.Proposal.GetCgroup()), l.runtime)
	if err != nil {
		return nil, err
	}
	id := r.Container.GetId()
	birth.Explain = func(err error) error { return explain(r.RunDir, err) }
	birth.Remove = func(ctx context.Context) error { return l.remove(ctx, r.RunDir, id, false) }
	if err := writeBundle(r.RunDir, config); err != nil {
		return nil, birth.Undo(ctx, err)
	}
	if err := birth.MoveInside(); err != nil {
		return nil, birth.Undo(ctx, err)
	}
	argv := []string{
		shim.RuntimePath(l.runtime), "--root", stateDir(r.RunDir), "--log", logFile(r.RunDir), "--log-format", "json",
		"create", "--bundle", bundleDir(r.RunDir), "--pid-file", pidFile(r.RunDir),
	}
	if r.Streams == containerv1.Container_TERMINAL {
		argv = append(argv, "--console-socket", filepath.Join(r.RunDir, wire.ConsoleName))
	}
	argv = append(argv, id)
	birth.Spec.Runtime = wire.Runtime{Argv: argv, Env: runtimeEnv(), PidFile: pidFile(r.RunDir)}
	if r.Container.GetRootfs() == "" {
		st := wire.Stage{PrivateMounts: true, BindRoot: filepath.Join(r.RunDir, supervised.RootDir), NoHold: true, Argv: argv, Env: runtimeEnv()}
		birth.Spec.CloneFlags = unix.CLONE_NEWNS
		birth.Spec.Stage = st.Append(nil)
	}
	// Whether there is a pipe is known only when the runtime was there; the record must not change
	// after, so it is asked for in between.
	o := &own{Runtime: l.runtime.Path()}
	opts := l.options(r.RunDir, id, o)
	return birth.Create(ctx, func() any {
		_, err := os.Lstat(fifoFile(r.RunDir, id))
		o.Fifo = err == nil
		return o
	}, opts)
}

// withoutDevices leaves out the rules that the runtime applies: it knows both versions of cgroups.
func withoutDevices(c *containerv1.CgroupResources) *containerv1.CgroupResources {
	if len(c.GetDeviceRules()) == 0 {
		return c
	}
	return &containerv1.CgroupResources{
		CpuShares: c.CpuShares, CpuQuotaUs: c.CpuQuotaUs, CpuPeriodUs: c.CpuPeriodUs,
		CpusetCpus: c.CpusetCpus, CpusetMems: c.CpusetMems,
		MemoryLimitBytes: c.MemoryLimitBytes, MemoryReservationBytes: c.MemoryReservationBytes, MemorySwapBytes: c.MemorySwapBytes,
		PidsLimit: c.PidsLimit, Files: c.Files,
	}
}

func runtimeEnv() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

func writeBundle(runDir string, config []byte) error {
	for _, d := range []string{bundleDir(runDir), stateDir(runDir), filepath.Join(runDir, supervised.RootDir)} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return fmt.Errorf("write bundle: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(bundleDir(runDir), "config.json"), config, 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

// explain adds the runtime's own last complaint to an error.
func explain(runDir string, err error) error {
	f, oerr := os.Open(logFile(runDir))
	if oerr != nil {
		return err
	}
	defer f.Close()
	last := ""
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var line struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
		}
		if json.Unmarshal(sc.Bytes(), &line) == nil && (line.Level == "error" || line.Level == "fatal") {
			last = line.Msg
		}
	}
	if last == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, last)
}

// options are what this launcher adds to a handle.
func (l *Launcher) options(runDir, id string, o *own) supervised.Options {
	return supervised.Options{
		Log: l.log,
		Start: func(ctx context.Context, pid int, ended <-chan struct{}) error {
			if !o.Fifo {
				return l.command(ctx, runDir, "start", id)
			}
			exe := fmt.Sprintf("/proc/%d/exe", pid)
			held, err := os.Readlink(exe)
			if err != nil {
				return fmt.Errorf("%w: %w", launcher.ErrEnded, err)
			}
			err = releaseFifo(ctx, fifoFile(runDir, id), ended)
			if errors.Is(err, fs.ErrNotExist) {
				return nil // let go before, perhaps by an agent that died before it could say so
			}
			if err != nil {
				return err
			}
			return awaitExec(ctx, exe, held, ended)
		},
		Remove: func(ctx context.Context) error { return l.remove(ctx, runDir, id, o.Fifo) },
	}
}

// remove lets a runtime forget a container, unless all it keeps lies in the run folder.
func (l *Launcher) remove(ctx context.Context, runDir, id string, fifo bool) error {
	entries, err := os.ReadDir(stateDir(runDir))
	if err != nil || len(entries) == 0 || fifo {
		return nil
	}
	return l.command(ctx, runDir, "delete", "--force", id)
}

// commandTimeout bounds a run of the runtime beside create.
const commandTimeout = 30 * time.Second

// command runs the runtime from the file on disk.
func (l *Launcher) command(ctx context.Context, runDir string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	all := append([]string{"--root", stateDir(runDir), "--log", logFile(runDir), "--log-format", "json"}, args...)
	cmd := exec.CommandContext(ctx, l.runtime.Path(), all...)
	cmd.Env = runtimeEnv()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(out.String())
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(l.runtime.Path()), args[0], err, text)
	}
	return nil
}

// releaseFifo lets go a process that waits for its pipe to be read.
func releaseFifo(ctx context.Context, name string, ended <-chan struct{}) error {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-ended:
			cancel(launcher.ErrEnded)
		case <-done:
		}
	}()
	defer func() { close(done); <-watched }()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var rerr error
	err = conn.Read(func(fd uintptr) bool {
		// A pipe that nobody has opened for writing yet reads as its end; poll tells the two apart.
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if k, err := unix.Poll(p, 0); err != nil || k == 0 {
			return false
		}
		var b [16]byte
		n, rerr = unix.Read(int(fd), b[:])
		return rerr != unix.EAGAIN
	})
	if ctx.Err() != nil && n == 0 {
		// A short command may have come and gone before this goroutine ran: what its process wrote is
		// still in the pipe then.
		var b [16]byte
		if n, _ = unix.Read(fd, b[:]); n <= 0 {
			return fmt.Errorf("let go: %w", context.Cause(ctx))
		}
		err, rerr = nil, nil
	}
	if err == nil {
		err = rerr
	}
	if err == nil && n == 0 {
		err = errors.New("the container's process closed its pipe")
	}
	if err != nil {
		return fmt.Errorf("let go: %w", err)
	}
	// Its absence tells the runtime that the container runs.
	if err := os.Remove(name); err != nil {
		return fmt.Errorf("let go: %w", err)
	}
	return nil
}

// awaitExec waits until a process that was just let go runs another program than held. Until then a
// signal would meet the runtime instead of the command, and could be lost there.
func awaitExec(ctx context.Context, exe, held string, ended <-chan struct{}) error {
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		if now, err := os.Readlink(exe); err != nil || now != held {
			return nil // or it has ended, which Wait tells
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("await exec: %w", ctx.Err())
		case <-ended:
			return nil
		case <-time.After(pause):
		}
	}
}

// Reattach implements launcher.Launcher.
func (l *Launcher) Reattach(ctx context.Context, state []byte) (launcher.Handle, error) {
	h, err := l.nest.Reattach(ctx, state, func(rec supervised.Record) (supervised.Options, error) {
		o := &own{}
		if err := json.Unmarshal(rec.Launcher, o); err != nil {
			return supervised.Options{}, fmt.Errorf("decode launcher state: %w", err)
		}
		return l.options(rec.RunDir, rec.ID, o), nil
	})
	if err != nil {
		return nil, fmt.Errorf("launcher(%s): reattach: %w", Name, err)
	}
	return h, nil
}

// Discard takes down whatever a Create left that never returned, because the agent ended in it.
// Nil when there is nothing.
func (l *Launcher) Discard(ctx context.Context, c *containerv1.Container, runDir string) error {
	remove := func(ctx context.Context) error {
		_, err := os.Lstat(fifoFile(runDir, c.GetId()))
		return l.remove(ctx, runDir, c.GetId(), err == nil)
	}
	if err := l.nest.Discard(ctx, c, runDir, remove); err != nil {
		return fmt.Errorf("launcher(%s): discard container %s: %w", Name, c.GetId(), err)
	}
	return nil
}

var (
	_ launcher.Launcher = (*Launcher)(nil)
	_ launcher.Warmer   = (*Launcher)(nil)
)
