// Package process launches tasks without a runtime: a bare process under the task's user, in its
// cgroup, with the limits, namespaces, capabilities and filter that were asked for; on the host's
// file system and, where the agent wants it, in a root file system of its own with mounts and devices.
//
// A shim clones the first process straight into its namespaces; nothing but two executions of one
// small program happens between Create and the command. What it cannot do like a runtime, such as a
// terminal in an image or a volume that shows its mounts on the host, is refused by Supports and left
// to the oci launcher.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/cgroup"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/supervised"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Name is the launcher's name.
const Name = "process"

// A Launcher makes containers on the host's file system.
type Launcher struct {
	nest    *supervised.Nest
	cgroups *cgroup.Hierarchy // nil without
	log     *slog.Logger
	roots   bool
}

// New returns a launcher that runs shims from bin. cgroups is nil on a machine without: containers
// that ask for nothing of it are launched all the same, and kept together by session.
func New(bin *shim.Binary, cgroups *cgroup.Hierarchy, log *slog.Logger) *Launcher {
	return &Launcher{nest: supervised.NewNest(bin, cgroups, log), cgroups: cgroups, log: log}
}

// WithRoots lets the launcher take containers with a root file system of their own, too, as far as it can do for them
// what a runtime would. It is called before the launcher is used.
func (l *Launcher) WithRoots() *Launcher {
	l.roots = true
	return l
}

// Name implements launcher.Launcher.
func (l *Launcher) Name() string { return Name }

// Warm keeps shims ready for containers below the cgroup root; see launcher.Warmer.
func (l *Launcher) Warm(root string) { l.nest.Warm(root, nil) }

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
	if p == nil {
		p = &containerv1.Proposal{}
	}
	ns, err := supervised.ParseNamespaces(p)
	if err != nil {
		return err
	}
	switch {
	case len(r.Argv) == 0 || r.Program() == "":
		return errors.New("no command")
	case p.GetWindowsJob() != nil:
		return errors.New("windows jobs")
	case p.GetHostname() != "" && !ns.Own(unix.CLONE_NEWUTS):
		return errors.New("a hostname without a uts namespace")
	case ns.Own(unix.CLONE_NEWUSER):
		return errors.New("user namespaces")
	case l.nest.Version() == 2 && len(p.GetCgroup().GetDeviceRules()) > 0:
		return errors.New("device rules on cgroup version 2")
	case os.Geteuid() != 0 && (r.User.UID != uint32(os.Geteuid()) || r.User.GID != uint32(os.Getegid())):
		return fmt.Errorf("running as user %d without being root", r.User.UID)
	}
	if r.Container.GetRootfs() != "" {
		err = l.supportsRoot(r, ns)
	} else {
		err = supportsHost(p)
	}
	if err != nil {
		return err
	}
	_, err = stage(r)
	return err
}

// supportsHost says what of a proposal is left to a runtime on the host's file system; nil for nothing.
func supportsHost(p *containerv1.Proposal) error {
	switch {
	case len(p.GetMounts()) > 0:
		return fmt.Errorf("mounts (%s)", p.GetMounts()[0].GetDestination())
	case len(p.GetMaskedPaths()) > 0:
		return fmt.Errorf("masked paths (%s)", p.GetMaskedPaths()[0])
	case len(p.GetReadonlyPaths()) > 0:
		return fmt.Errorf("read-only paths (%s)", p.GetReadonlyPaths()[0])
	case len(p.GetDevices()) > 0:
		return fmt.Errorf("devices (%s)", p.GetDevices()[0].GetPath())
	}
	return nil
}

// stage converts a request to what the first process does to itself.
func stage(r *launcher.Request) (*wire.Stage, error) {
	p := r.Proposal
	ns, err := supervised.ParseNamespaces(p)
	if err != nil {
		return nil, err
	}
	st := &wire.Stage{
		Hostname:        p.GetHostname(),
		Loopback:        ns.New&unix.CLONE_NEWNET != 0,
		CgroupNamespace: ns.New&unix.CLONE_NEWCGROUP != 0,
		PrivateMounts:   ns.New&(unix.CLONE_NEWNS|unix.CLONE_NEWPID) != 0,
		Proc:            ns.New&unix.CLONE_NEWPID != 0,
		NoNewPrivileges: p.GetNoNewPrivileges(),
		Seccomp:         p.GetSeccomp().GetBpf(),
		Dir:             r.Dir,
		Path:            r.Path,
		Argv:            r.Argv,
		Env:             r.Env,
	}
	if p.GetSeccomp() != nil && (len(st.Seccomp) == 0 || len(st.Seccomp)%8 != 0) {
		return nil, fmt.Errorf("seccomp: got a compiled filter of %d bytes, want records of 8", len(st.Seccomp))
	}
	if st.Proc && ns.Join[unix.CLONE_NEWNS] != "" {
		return nil, errors.New("a new pid namespace in a joined mount namespace")
	}
	// The mount namespace last: it decides what the paths of the others mean.
	for _, flag := range slices.Sorted(maps.Keys(ns.Join)) {
		if flag != unix.CLONE_NEWPID && flag != unix.CLONE_NEWNS {
			st.Joins = append(st.Joins, wire.Join{Type: flag, Path: ns.Join[flag]})
		}
	}
	if path := ns.Join[unix.CLONE_NEWNS]; path != "" {
		st.Joins = append(st.Joins, wire.Join{Type: unix.CLONE_NEWNS, Path: path})
	}
	for _, name := range slices.Sorted(maps.Keys(p.GetSysctls())) {
		if err := supervised.CheckSysctl(name, ns); err != nil {
			return nil, err
		}
		st.Sysctls = append(st.Sysctls, wire.Sysctl{File: supervised.SysctlFile(name), Value: p.GetSysctls()[name]})
	}
	for _, l := range p.GetRlimits() {
		n, err := supervised.Rlimit(l.GetType())
		if err != nil {
			return nil, err
		}
		st.Rlimits = append(st.Rlimits, wire.Rlimit{Resource: n, Soft: l.GetSoft(), Hard: l.GetHard()})
	}
	if p != nil && p.OomScoreAdj != nil {
		st.HasOOMScore, st.OOMScore = true, *p.OomScoreAdj
	}
	if c := p.GetCapabilities(); c != nil {
		st.HasCapabilities = true
		for _, set := range []struct {
			names []string
			mask  *uint64
		}{
			{c.GetBounding(), &st.Capabilities.Bounding},
			{c.GetEffective(), &st.Capabilities.Effective},
			{c.GetPermitted(), &st.Capabilities.Permitted},
			{c.GetInheritable(), &st.Capabilities.Inheritable},
			{c.GetAmbient(), &st.Capabilities.Ambient},
		} {
			if *set.mask, err = supervised.CapabilityMask(set.names); err != nil {
				return nil, err
			}
		}
	}
	if r.Container.GetRootfs() != "" {
		if st.Root, err = rootOf(r, ns); err != nil {
			return nil, err
		}
		st.PrivateMounts, st.Proc = true, false // one of the root's mounts
	}
	if os.Geteuid() == 0 {
		st.SwitchUser, st.UID, st.GID, st.Groups = true, r.User.UID, r.User.GID, r.User.Groups
	}
	return st, nil
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
	ns, err := supervised.ParseNamespaces(r.Proposal)
	if err != nil {
		return nil, err
	}
	st, err := stage(r)
	if err != nil {
		return nil, err
	}
	asked := r.Proposal.GetCgroup()
	if st.Root != nil {
		if asked, err = l.rootedResources(r); err != nil {
			return nil, err
		}
	}
	birth, err := l.nest.Spawn(ctx, r, asked, nil)
	if err != nil {
		return nil, err
	}
	spec := birth.Spec
	spec.CloneFlags = ns.New &^ unix.CLONE_NEWCGROUP // that one only once it is in its cgroup
	if st.PrivateMounts {
		spec.CloneFlags |= unix.CLONE_NEWNS
	}
	spec.PidNamespace = ns.Join[unix.CLONE_NEWPID]
	spec.AwaitReady = len(st.Joins) > 0 || st.Root != nil
	spec.Stage = st.Append(nil)
	if err := birth.BearInside(); err != nil {
		return nil, birth.Undo(ctx, err)
	}
	return birth.Create(ctx, nil, supervised.Options{Log: l.log})
}

// Reattach implements launcher.Launcher.
func (l *Launcher) Reattach(ctx context.Context, state []byte) (launcher.Handle, error) {
	h, err := l.nest.Reattach(ctx, state, func(supervised.Record) (supervised.Options, error) {
		return supervised.Options{Log: l.log}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("launcher(%s): reattach: %w", Name, err)
	}
	return h, nil
}

// Discard takes down whatever a Create left that never returned, because the agent ended in it.
// Nil when there is nothing.
func (l *Launcher) Discard(ctx context.Context, c *containerv1.Container, runDir string) error {
	if err := l.nest.Discard(ctx, c, runDir, nil); err != nil {
		return fmt.Errorf("launcher(%s): discard container %s: %w", Name, c.GetId(), err)
	}
	return nil
}

var (
	_ launcher.Launcher = (*Launcher)(nil)
	_ launcher.Warmer   = (*Launcher)(nil)
)
