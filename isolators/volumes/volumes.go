// Package volumes is the isolator for volumes that are folders or files of the machine (HOST_PATH), and for secrets that
// a container reads as files.
//
// It promises that what is mounted is what was looked at and allowed: before the container's first program runs, the
// module looks again at what lies at the volume's place. A secret lies in memory only, in a file system that nobody but
// the container has mounted, and ends with it. The module keeps nothing of its own and mounts nothing on the machine.
//
// Persistent volumes, images as volumes and paths of sandboxes are the agent's; volumes of Docker's drivers are those of
// the isolator docker_volume. Secrets that are references must have been resolved by the agent before.
package volumes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"path"
	"path/filepath"

	"github.com/mosaic-cluster/mosaic/sdk/isolator"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// stateVersion is the version of what is kept of a container.
const stateVersion = 1

// Config is what the operator may set.
type Config struct {
	Allow              []string `hcl:"allow,optional" doc:"Folders of the machine that containers may have paths below of; unset allows all."`
	AllowReadOnly      []string `hcl:"allow_read_only,optional" doc:"More such folders, for reading only."`
	ForceCreation      []string `hcl:"force_creation,optional" doc:"Folders below which a path that does not exist is made."`
	AllowBidirectional bool     `hcl:"allow_bidirectional,optional" doc:"Containers may ask that what they mount in a volume appears on the machine."`
	Secrets            bool     `hcl:"secrets,optional" doc:"Containers may have secrets as files."`
}

// Isolator is the module.
type Isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config *module.Config[Config]
}

// New returns the module with its defaults, which are those of Mesos: every path of the machine is allowed.
func New() *Isolator {
	return &Isolator{config: module.NewConfig(Config{Secrets: true}, validate)}
}

// validate checks that folders are absolute: a relative one would mean something else on each start.
func validate(c *Config) error {
	var wrong []error
	for name, list := range map[string][]string{"allow": c.Allow, "allow_read_only": c.AllowReadOnly, "force_creation": c.ForceCreation} {
		for _, dir := range list {
			if !filepath.IsAbs(dir) {
				wrong = append(wrong, module.Wrong(name, "got %q, want an absolute path", dir))
			}
		}
	}
	return errors.Join(wrong...)
}

// Info describes the module.
func (i *Isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "volumes", Version: "1.0.0", Doc: "paths of the machine, and secrets, as volumes of containers",
		Calls: []string{"isolate"}, Powers: []string{"mounts"}, Nesting: true, Standalone: true, NeedsRoot: true,
		MinState: stateVersion, MaxState: stateVersion, Config: i.config,
	}
}

// state is what is kept of a container: what lay at the sources of its volumes when they were looked at.
type state struct {
	Paths []seen `json:"paths"`
}

// seen is one file or folder, by what cannot be bent by renaming things.
type seen struct {
	At    string `json:"at"` // in the container
	Dev   uint64 `json:"dev"`
	Ino   uint64 `json:"ino"`
	Peers string `json:"peers,omitempty"` // the group of mounts that it must belong to, if what is mounted in it is to show on the machine
}

// Recover learns nothing that the calls after it do not bring themselves.
func (i *Isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	for {
		if _, err := s.Recv(); err != nil {
			return s.SendAndClose(&isolatorv1.RecoverResponse{})
		}
	}
}

// Prepare proposes the mounts. It makes the places below the sandbox, which go with the sandbox.
func (i *Isolator) Prepare(_ context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	cfg, c := i.config.Get(), r.GetContainer()
	p, kept := &containerv1.Proposal{}, state{}
	for _, v := range c.GetContainerInfo().GetVolumes() {
		var m *containerv1.Mount
		var at seen
		var err error
		switch kindOf(v) {
		case hostPath, sandboxPath:
			m, at, err = i.hostPath(cfg, c, v)
			kept.Paths = append(kept.Paths, at)
		case secret:
			m, err = i.secret(cfg, c, v)
		default:
			continue // another's
		}
		if err != nil {
			return nil, err
		}
		p.Mounts = append(p.Mounts, m)
	}
	if len(p.Mounts) == 0 {
		return &isolatorv1.PrepareResponse{}, nil
	}
	answer := &isolatorv1.PrepareResponse{Proposal: p}
	if len(kept.Paths) > 0 {
		data, err := json.Marshal(kept)
		if err != nil {
			return nil, err
		}
		if len(data) > isolator.MaxState {
			return nil, module.InvalidArgument("%d volumes of the machine's paths are more than can be kept track of", len(kept.Paths))
		}
		answer.State, answer.StateVersion = data, stateVersion
	}
	return answer, nil
}

// Isolate looks at what was mounted, and gives the container its secrets. The first program has not run yet.
func (i *Isolator) Isolate(_ context.Context, r *isolatorv1.IsolateRequest) (*isolatorv1.IsolateResponse, error) {
	record := r.GetRecord()
	c := record.GetContainer()
	var kept state
	if len(record.GetState()) > 0 {
		if v := record.GetStateVersion(); v != stateVersion {
			return nil, module.FailedPrecondition("state of version %d, want %d", v, stateVersion)
		}
		if err := json.Unmarshal(record.GetState(), &kept); err != nil {
			return nil, module.FailedPrecondition("read what was kept of the container: %v", err)
		}
	}
	var secrets []*mesosv1.Volume
	for _, v := range c.GetContainerInfo().GetVolumes() {
		if kindOf(v) == secret {
			secrets = append(secrets, v)
		}
	}
	if len(kept.Paths) == 0 && len(secrets) == 0 {
		return &isolatorv1.IsolateResponse{}, nil
	}
	view, err := openView(record.GetPid())
	if err != nil {
		return nil, module.FailedPrecondition("look into the container: %v", err)
	}
	defer view.Close()
	for _, p := range kept.Paths {
		if err := view.check(p); err != nil {
			return nil, err
		}
	}
	for _, v := range secrets {
		at, err := place(c, v)
		if err != nil {
			return nil, err
		}
		data, err := secretData(v)
		if err != nil {
			return nil, err
		}
		if err := view.hand(at, data, c.GetUser()); err != nil {
			return nil, module.FailedPrecondition("secret at %s: %v", at, err)
		}
	}
	return &isolatorv1.IsolateResponse{}, nil
}

// Cleanup has nothing to take back: all mounts are the container's own and end with it.
func (i *Isolator) Cleanup(context.Context, *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	return &isolatorv1.CleanupResponse{}, nil
}

// kind is what a volume is to this module.
type kind int

const (
	other kind = iota
	hostPath
	sandboxPath // the old form: a host path that is relative
	secret
)

// kindOf looks at what is set and not only at the type, as frameworks leave one or the other out.
func kindOf(v *mesosv1.Volume) kind {
	s := v.GetSource()
	switch {
	case s.GetType() == mesosv1.Volume_Source_HOST_PATH:
		return hostPath
	case s.GetType() == mesosv1.Volume_Source_SECRET:
		return secret
	case s != nil || v.GetImage() != nil || v.HostPath == nil:
		return other
	case filepath.IsAbs(v.GetHostPath()):
		return hostPath
	}
	return sandboxPath
}

// place is where a volume lies in the container, absolute and clean.
func place(c *containerv1.Container, v *mesosv1.Volume) (string, error) {
	where := path.Clean(v.GetContainerPath())
	if !path.IsAbs(where) {
		if !filepath.IsLocal(where) || where == "." {
			return "", module.InvalidArgument("volume at %q: want a path below the sandbox or an absolute one", v.GetContainerPath())
		}
		where = path.Join(cmp.Or(c.GetSandboxInContainer(), c.GetSandbox()), where)
	}
	if where == "/" || !path.IsAbs(where) {
		return "", module.InvalidArgument("volume at %q: a container's root is no place for a volume", v.GetContainerPath())
	}
	return where, nil
}
