package linux

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

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

// everything stands for all capabilities in image_capabilities.
const everything = "ALL"

// imageCapabilities are those that the usual runtimes of images leave to root: what an entrypoint needs that installs
// files, changes owners and steps down to another user.
var imageCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE",
	"CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// ofImages are the most that a container with a root filesystem of its own has without asking; nil is no bound. What
// the operator or the machine does not have for anybody is not among those that nobody named.
func ofImages(cfg *Config) []string {
	switch {
	case slices.Contains(cfg.Image, everything):
		return cfg.Bounding
	case cfg.Image != nil:
		return cfg.Image
	}
	return slices.DeleteFunc(slices.Clone(imageCapabilities), func(c string) bool {
		return cfg.Bounding != nil && !slices.Contains(cfg.Bounding, c) || !held(c)
	})
}

// held says whether any process that the agent starts may have a capability.
func held(name string) bool {
	number := mesosv1.CapabilityInfo_Capability_value[strings.TrimPrefix(name, "CAP_")] - int32(mesosv1.CapabilityInfo_CHOWN)
	has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(number), 0, 0, 0)
	return err == nil && has == 1
}

// rootUser says whether a container's user is root by what it is called. One that an image calls otherwise is given
// less than it could have, never more.
func rootUser(name string) bool {
	name, _, _ = strings.Cut(name, ":")
	return name == "" || name == "root" || name == "0"
}

// capabilities are the sets of a container: the task's, else the operator's. Nil leaves them as they are.
//
// As in Mesos effective capabilities are given in all sets, so that a program keeps them whoever runs it, and bound it
// where no other bound is set. Outside the bound a launch fails. A container with a root filesystem of its own is
// bounded in any case, and what is in the bound is root's there and nobody else's.
func capabilities(cfg *Config, c *containerv1.Container) (*containerv1.Capabilities, error) {
	asked, image := c.GetContainerInfo().GetLinuxInfo(), c.GetRootfs() != ""
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
	case bounding != nil:
	case image && (effective == nil || cfg.Bounding != nil):
		bounding = slices.Clone(ofImages(cfg))
		for _, c := range effective { // asked for by name, and within the operator's bound
			if bounding != nil && !slices.Contains(bounding, c) {
				bounding = append(bounding, c)
			}
		}
	case cfg.Bounding != nil:
		bounding = cfg.Bounding
	case effective != nil:
		bounding = effective
	}
	if bounding == nil {
		return nil, nil
	}
	if over := without(effective, bounding); over != "" {
		return nil, module.InvalidArgument("effective_capabilities: got %s, want it among bounding_capabilities", over)
	}
	if image && effective == nil {
		sets := &containerv1.Capabilities{Bounding: bounding}
		if rootUser(c.GetUser()) {
			sets.Effective, sets.Permitted = bounding, bounding
		}
		return sets, nil
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
