// Package linux is the isolator for what Linux lets a process do at all: its capabilities, a seccomp filter for its
// system calls, no_new_privileges, and paths hidden from it.
//
// It promises Mesos's rules on capabilities, a bound of them for containers with a root filesystem of their own, and
// filters compiled once for each profile and set of capabilities. It proposes only, and keeps no state but those filters.
package linux

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// Config is what the operator may set.
type Config struct {
	Effective       []string `hcl:"effective_capabilities,optional" doc:"Capabilities of containers that ask for none, such as NET_RAW; unset leaves what the user has."`
	Bounding        []string `hcl:"bounding_capabilities,optional" doc:"The most capabilities that any container may get; unset is no bound."`
	Image           []string `hcl:"image_capabilities,optional" doc:"The most that containers with a root filesystem of their own have without asking; unset are the 14 that runtimes of images give, [\"ALL\"] is no bound."`
	SeccompProfiles string   `hcl:"seccomp_profiles,optional" doc:"Folder with seccomp profiles in Docker's format, by the names that tasks use."`
	SeccompDefault  string   `hcl:"seccomp_default,optional" doc:"Profile of containers that ask for none; \"default\" is built in, unset is no filter."`
	NoNewPrivileges bool     `hcl:"no_new_privileges,optional" doc:"No program in a container gives more privileges than its user has, not even sudo."`
	MaskedPaths     []string `hcl:"masked_paths,optional" doc:"Paths hidden from containers, beyond those that an own root filesystem hides anyway."`
	ReadonlyPaths   []string `hcl:"readonly_paths,optional" doc:"Paths read-only for containers."`
}

// Isolator is the module.
type Isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config  *module.Config[Config]
	filters *filters
}

// New returns the module with its defaults: it bounds containers that have a root filesystem of their own, and else, as
// Mesos, changes nothing that nobody asks for.
func New() *Isolator {
	i := &Isolator{filters: newFilters()}
	i.config = module.NewConfig(Config{}, i.validate)
	return i
}

// Info describes the module.
func (i *Isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "linux", Version: "1.0.0", Doc: "capabilities, seccomp, no_new_privileges, masked paths",
		Powers:  []string{"capabilities", "masked_paths", "no_new_privileges", "seccomp"},
		Nesting: true, Standalone: true, Platforms: []string{"linux/amd64", "linux/arm64"}, Config: i.config,
	}
}

func (i *Isolator) validate(c *Config) error {
	var errs []error
	for name, list := range map[string]*[]string{
		"effective_capabilities": &c.Effective, "bounding_capabilities": &c.Bounding, "image_capabilities": &c.Image,
	} {
		for n, text := range *list {
			if list == &c.Image && strings.EqualFold(text, everything) && len(*list) == 1 {
				(*list)[n] = everything
				continue
			}
			canonical, err := capability(text)
			if err != nil {
				errs = append(errs, module.Wrong(fmt.Sprintf("%s[%d]", name, n), "%v", err))
				continue
			}
			(*list)[n] = canonical
		}
	}
	if len(errs) == 0 && c.Bounding != nil {
		if over := without(c.Effective, c.Bounding); over != "" {
			errs = append(errs, module.Wrong("effective_capabilities", "got %s, want it among bounding_capabilities", over))
		}
		if over := without(c.Image, c.Bounding); over != "" && over != everything {
			errs = append(errs, module.Wrong("image_capabilities", "got %s, want it among bounding_capabilities", over))
		}
	}
	for name, list := range map[string][]string{"masked_paths": c.MaskedPaths, "readonly_paths": c.ReadonlyPaths} {
		for n, p := range list {
			if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
				errs = append(errs, module.Wrong(fmt.Sprintf("%s[%d]", name, n), "got %q, want an absolute path without . and ..", p))
			}
		}
	}
	if c.SeccompDefault != "" && len(errs) == 0 {
		if _, err := i.filters.get(c.SeccompProfiles, c.SeccompDefault, bounded(c, nil)); err != nil {
			errs = append(errs, module.Wrong("seccomp_default", "%v", err))
		}
	}
	return errors.Join(errs...)
}

// Recover knows nothing between calls, so there is nothing to recover.
func (i *Isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	for {
		if _, err := s.Recv(); err != nil {
			return s.SendAndClose(&isolatorv1.RecoverResponse{})
		}
	}
}

// Prepare proposes what the container asks for, within what the operator allows.
func (i *Isolator) Prepare(_ context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	cfg := i.config.Get()
	asked := r.GetContainer().GetContainerInfo().GetLinuxInfo()
	p := &containerv1.Proposal{MaskedPaths: cfg.MaskedPaths, ReadonlyPaths: cfg.ReadonlyPaths}
	var err error
	if p.Capabilities, err = capabilities(cfg, r.GetContainer()); err != nil {
		return nil, err
	}

	name := cfg.SeccompDefault
	switch s := asked.GetSeccomp(); {
	case s.GetUnconfined() && s.GetProfileName() != "":
		return nil, module.InvalidArgument("seccomp: got unconfined and profile_name %q, want one of them", s.GetProfileName())
	case s.GetUnconfined():
		name = ""
	case s.GetProfileName() != "":
		name = s.GetProfileName()
	}
	if name != "" {
		if p.Seccomp, err = i.filters.get(cfg.SeccompProfiles, name, bounded(cfg, p.Capabilities)); err != nil {
			if errors.Is(err, errNoProfile) {
				return nil, module.InvalidArgument("%v", err)
			}
			return nil, module.FailedPrecondition("%v", err)
		}
	}
	if cfg.NoNewPrivileges {
		p.NoNewPrivileges = &cfg.NoNewPrivileges
	}
	return &isolatorv1.PrepareResponse{Proposal: p}, nil
}

// Cleanup has nothing to take back: all of it ends with the processes.
func (i *Isolator) Cleanup(context.Context, *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	return &isolatorv1.CleanupResponse{}, nil
}
