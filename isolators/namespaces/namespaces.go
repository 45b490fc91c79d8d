// Package namespaces is the isolator that gives containers their own pid and ipc namespaces, and the size of /dev/shm
// that belongs to the latter.
//
// It proposes only; the agent makes the namespaces. It keeps no state.
package namespaces

import (
	"context"
	"fmt"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// Config is what the operator may set.
type Config struct {
	PID                bool        `hcl:"pid,optional" doc:"Own pid namespace for containers that do not ask to share the agent's."`
	IPC                bool        `hcl:"ipc,optional" doc:"Own ipc namespace for containers that do not ask to share the agent's."`
	DisallowSharingPID bool        `hcl:"disallow_sharing_agent_pid_namespace,optional" doc:"Refuse containers that ask for the agent's pid namespace."`
	DisallowSharingIPC bool        `hcl:"disallow_sharing_agent_ipc_namespace,optional" doc:"Refuse containers that ask for the agent's ipc namespace."`
	DefaultShmSize     module.Size `hcl:"default_shm_size,optional" doc:"Size of /dev/shm for private ipc namespaces; 0 leaves it as it is."`
}

// Isolator is the module.
type Isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config *module.Config[Config]
}

// New returns the module with its defaults: own namespaces of both types.
func New() *Isolator {
	return &Isolator{config: module.NewConfig(Config{PID: true, IPC: true}, nil)}
}

// Info describes the module.
func (i *Isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "namespaces", Version: "1.0.0", Doc: "own pid and ipc namespaces, size of /dev/shm",
		Powers: []string{"mounts", "namespaces"}, Nesting: true, Standalone: true, Config: i.config,
	}
}

// Recover knows nothing between calls, so there is nothing to recover.
func (i *Isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	for {
		if _, err := s.Recv(); err != nil {
			return s.SendAndClose(&isolatorv1.RecoverResponse{})
		}
	}
}

// Prepare proposes the namespaces.
func (i *Isolator) Prepare(_ context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	cfg, c := i.config.Get(), r.GetContainer()
	linux := c.GetContainerInfo().GetLinuxInfo()
	p := &containerv1.Proposal{}
	// A nested container shares with its parent what it does not ask to have for itself; a debug container everything.
	nested := c.GetParentId() != ""
	debug := c.GetClass() == containerv1.Container_DEBUG
	add := func(t containerv1.Namespace_Type) {
		p.Namespaces = append(p.Namespaces, &containerv1.Namespace{Type: t})
	}

	if cfg.PID && !debug {
		switch {
		case linux.GetSharePidNamespace():
			if cfg.DisallowSharingPID && !nested {
				return nil, module.FailedPrecondition("sharing the agent's pid namespace is not allowed here (disallow_sharing_agent_pid_namespace)")
			}
		default:
			add(containerv1.Namespace_PID)
		}
	}

	shm := uint64(linux.GetShmSize()) << 20
	mode := linux.GetIpcMode()
	switch {
	case !cfg.IPC:
		if mode == mesosv1.LinuxInfo_PRIVATE || shm > 0 {
			return nil, module.FailedPrecondition("private ipc namespaces are switched off here (ipc = false)")
		}
	case debug || mode == mesosv1.LinuxInfo_SHARE_PARENT || nested && mode == mesosv1.LinuxInfo_UNKNOWN:
		if shm > 0 {
			return nil, module.InvalidArgument("shm_size needs ipc_mode PRIVATE")
		}
		if cfg.DisallowSharingIPC && !nested && mode == mesosv1.LinuxInfo_SHARE_PARENT {
			return nil, module.FailedPrecondition("sharing the agent's ipc namespace is not allowed here (disallow_sharing_agent_ipc_namespace)")
		}
		if !nested && c.GetRootfs() != "" {
			// Shared memory by file goes with the namespace. A nested container gets its parent's, by the agent.
			p.Mounts = append(p.Mounts, &containerv1.Mount{
				Destination: "/dev/shm", Source: "/dev/shm", Type: "bind", Options: []string{"bind", "rw"},
			})
		}
	default:
		add(containerv1.Namespace_IPC)
		if shm == 0 {
			shm = uint64(cfg.DefaultShmSize)
		}
		// Who asks for PRIVATE gets a /dev/shm of its own too. One that only gets it by default does not where that would
		// be all it has mounted: an own root filesystem has one anyway, and without one nobody looks for it there.
		if shm > 0 || mode == mesosv1.LinuxInfo_PRIVATE && c.GetRootfs() == "" {
			m := &containerv1.Mount{Destination: "/dev/shm", Source: "tmpfs", Type: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777"}}
			if shm > 0 {
				m.Options = append(m.Options, fmt.Sprintf("size=%d", shm))
			}
			p.Mounts = append(p.Mounts, m)
		}
	}
	if len(p.Namespaces) == 0 && len(p.Mounts) == 0 {
		return &isolatorv1.PrepareResponse{}, nil
	}
	return &isolatorv1.PrepareResponse{Proposal: p}, nil
}

// Cleanup has nothing to take back: namespaces end with their processes.
func (i *Isolator) Cleanup(context.Context, *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	return &isolatorv1.CleanupResponse{}, nil
}
