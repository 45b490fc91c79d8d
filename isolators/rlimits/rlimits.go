// Package rlimits is the isolator for POSIX resource limits: it turns a task's rlimit_info, and the operator's
// defaults, into limits that the agent sets before the command starts.
//
// It keeps no state and touches nothing on the machine.
package rlimits

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// infinity is no limit, as the contract writes it.
const infinity = math.MaxUint64

// Config is what the operator may set.
type Config struct {
	Defaults []Limit `hcl:"limit,block" doc:"Limit for containers that do not ask for one of that type."`
}

// Limit is one default.
type Limit struct {
	Type string `hcl:"type,label" doc:"Name without RLIMIT_, such as nofile."`
	Soft int64  `hcl:"soft" doc:"Soft limit; -1 is none." min:"-1"`
	Hard int64  `hcl:"hard" doc:"Hard limit; -1 is none." min:"-1"`
}

// Isolator is the module.
type Isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config *module.Config[Config]
}

// New returns the module with its defaults: no limit beyond what a task asks for.
func New() *Isolator {
	return &Isolator{config: module.NewConfig(Config{}, validate)}
}

// Info describes the module.
func (i *Isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "rlimits", Version: "1.0.0", Doc: "POSIX resource limits of a container's processes",
		Powers: []string{"rlimits"}, Nesting: true, Standalone: true, Config: i.config,
	}
}

// types are the limits Linux has; Mesos's RLMT_ names differ in the prefix only.
func types() []string {
	return []string{
		"AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RSS", "RTPRIO",
		"RTTIME", "SIGPENDING", "STACK",
	}
}

func validate(c *Config) error {
	seen := map[string]bool{}
	for n, l := range c.Defaults {
		path := fmt.Sprintf("limit[%d]", n)
		name := strings.ToUpper(l.Type)
		switch {
		case !slices.Contains(types(), name):
			return module.Wrong(path, "got type %q, want one of %s", l.Type, strings.ToLower(strings.Join(types(), ", ")))
		case seen[name]:
			return module.Wrong(path, "type %q is there twice", l.Type)
		case bound(l.Soft) > bound(l.Hard):
			return module.Wrong(path+".soft", "got %d, want at most the hard limit %d", l.Soft, l.Hard)
		}
		seen[name] = true
	}
	return nil
}

func bound(v int64) uint64 {
	if v < 0 {
		return infinity
	}
	return uint64(v)
}

// Recover knows nothing between calls, so there is nothing to recover.
func (i *Isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	for {
		if _, err := s.Recv(); err != nil {
			return s.SendAndClose(&isolatorv1.RecoverResponse{})
		}
	}
}

// Prepare proposes the limits that the container asks for, and the operator's for the other types.
func (i *Isolator) Prepare(_ context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	var limits []*containerv1.Rlimit
	asked := map[string]bool{}
	for _, l := range r.GetContainer().GetContainerInfo().GetRlimitInfo().GetRlimits() {
		name := strings.TrimPrefix(l.GetType().String(), "RLMT_")
		if l.GetType() == mesosv1.RLimitInfo_RLimit_UNKNOWN || !slices.Contains(types(), name) {
			return nil, module.InvalidArgument("rlimit_info: unknown type %s", l.GetType())
		}
		if asked[name] {
			return nil, module.InvalidArgument("rlimit_info: %s is there twice", strings.ToLower(name))
		}
		asked[name] = true
		soft, hard := uint64(infinity), uint64(infinity)
		if (l.Soft == nil) != (l.Hard == nil) {
			return nil, module.InvalidArgument("%s: both soft and hard must be set, or neither", strings.ToLower(name))
		}
		if l.Soft != nil {
			soft, hard = l.GetSoft(), l.GetHard()
		}
		if soft > hard {
			return nil, module.InvalidArgument("%s: soft %d above hard %d", strings.ToLower(name), soft, hard)
		}
		limits = append(limits, &containerv1.Rlimit{Type: "RLIMIT_" + name, Soft: soft, Hard: hard})
	}
	for _, l := range i.config.Get().Defaults {
		if name := strings.ToUpper(l.Type); !asked[name] {
			limits = append(limits, &containerv1.Rlimit{Type: "RLIMIT_" + name, Soft: bound(l.Soft), Hard: bound(l.Hard)})
		}
	}
	if len(limits) == 0 {
		return &isolatorv1.PrepareResponse{}, nil
	}
	return &isolatorv1.PrepareResponse{Proposal: &containerv1.Proposal{Rlimits: limits}}, nil
}

// Cleanup has nothing to take back: limits end with their processes.
func (i *Isolator) Cleanup(context.Context, *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	return &isolatorv1.CleanupResponse{}, nil
}
