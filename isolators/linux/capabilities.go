package linux

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// capability is the kernel's name of a capability that somebody wrote with or without CAP_.
func capability(text string) (string, error) {
	name := strings.TrimPrefix(strings.ToUpper(text), "CAP_")
	if n, ok := mesosv1.CapabilityInfo_Capability_value[name]; !ok || n == int32(mesosv1.CapabilityInfo_UNKNOWN) {
		return "", fmt.Errorf("got %q, want a capability such as NET_RAW", text)
	}
	return "CAP_" + name, nil
}

// names are those of a set in a task; nil if it has none.
func names(what string, info *mesosv1.CapabilityInfo) ([]string, error) {
	if info == nil {
		return nil, nil
	}
	list := []string{}
	for _, c := range info.GetCapabilities() {
		name, err := capability(c.String())
		if err != nil {
			return nil, module.InvalidArgument("%s: %v", what, err)
		}
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list, nil
}

// without is the first of list that bound does not have, or "".
func without(list, bound []string) string {
	for _, c := range list {
		if !slices.Contains(bound, c) {
			return c
		}
	}
	return ""
}

// capabilities are the sets of a container: the task's, else the operator's. Nil leaves them as they are.
//
// As in Mesos effective capabilities are given in all sets, so that a program keeps them whoever runs it, and bound it
// where no other bound is set. Outside the bound a launch fails.
func capabilities(cfg *Config, asked *mesosv1.LinuxInfo) (*containerv1.Capabilities, error) {
	old := asked.GetCapabilityInfo() // frameworks of before Mesos 1.4 still send it
	if asked.GetEffectiveCapabilities() != nil && old != nil {
		return nil, module.InvalidArgument("got effective_capabilities and the older capability_info, want one of them")
	}
	info := asked.GetEffectiveCapabilities()
	if info == nil {
		info = old
	}
	effective, err := names("effective_capabilities", info)
	if err != nil {
		return nil, err
	}
	bounding, err := names("bounding_capabilities", asked.GetBoundingCapabilities())
	if err != nil {
		return nil, err
	}
	if cfg.Bounding != nil {
		if over := without(bounding, cfg.Bounding); over != "" {
			return nil, module.InvalidArgument("bounding_capabilities: got %s, which the operator does not allow (bounding_capabilities)", over)
		}
		if over := without(effective, cfg.Bounding); over != "" {
			return nil, module.InvalidArgument("effective_capabilities: got %s, which the operator does not allow (bounding_capabilities)", over)
		}
	}
	if effective == nil {
		effective = cfg.Effective
		if bounding != nil { // the task bounds itself: the operator's defaults beyond that are not for it
			effective = slices.DeleteFunc(slices.Clone(effective), func(c string) bool { return !slices.Contains(bounding, c) })
		}
	}
	switch {
	case bounding == nil && cfg.Bounding != nil:
		bounding = cfg.Bounding
	case bounding == nil && effective != nil:
		bounding = effective
	}
	if bounding == nil {
		return nil, nil
	}
	if over := without(effective, bounding); over != "" {
		return nil, module.InvalidArgument("effective_capabilities: got %s, want it among bounding_capabilities", over)
	}
	return &containerv1.Capabilities{
		Bounding: bounding, Effective: effective, Permitted: effective, Inheritable: effective, Ambient: effective,
	}, nil
}

// bounded is the most a container may ever have, which decides on parts of a seccomp profile. A container that nothing
// is proposed for may have all.
func bounded(cfg *Config, c *containerv1.Capabilities) []string {
	switch {
	case c != nil:
		return c.GetBounding()
	case cfg.Bounding != nil:
		return cfg.Bounding
	}
	var all []string
	for name, n := range mesosv1.CapabilityInfo_Capability_value {
		if n != int32(mesosv1.CapabilityInfo_UNKNOWN) {
			all = append(all, "CAP_"+name)
		}
	}
	return all
}
