package containerizer

import (
	"fmt"
	"path"
	"strings"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// unmet says what was asked for that no isolator of this agent took care of. Running without it would be running
// without isolation, or without data; a task that asked for nothing special never ends up here.
func unmet(spec *containerv1.Container, merged *containerv1.Spec) error {
	owned := func(field string) bool { return merged.Owners[field] != "" }
	mounted := func(where string) bool {
		if !path.IsAbs(where) {
			where = path.Join(inContainer(spec), where)
		}
		return owned("mounts." + path.Clean(where))
	}
	info := spec.GetContainerInfo()
	for _, v := range info.GetVolumes() {
		if !isSandboxPath(v) && !mounted(v.GetContainerPath()) {
			return fmt.Errorf("volume at %s: no isolator of this agent mounts it", v.GetContainerPath())
		}
	}
	for _, r := range spec.GetResources() {
		v := r.GetDisk().GetVolume()
		furnished := r.GetDisk().GetPersistence() != nil && v.GetHostPath() != "" // by the agent: volume.go
		if v != nil && !furnished && !mounted(v.GetContainerPath()) {
			return fmt.Errorf("persistent volume at %s: no isolator of this agent mounts it", v.GetContainerPath())
		}
	}
	for _, n := range info.GetNetworkInfos() {
		if n.GetName() != "" && !owned("namespaces.NETWORK") {
			return fmt.Errorf("network %q: no isolator of this agent joins it", n.GetName())
		}
	}
	linux := info.GetLinuxInfo()
	for _, x := range []struct {
		what  string
		asked bool
		met   bool
	}{
		{"capabilities", linux.GetCapabilityInfo() != nil || linux.GetEffectiveCapabilities() != nil || linux.GetBoundingCapabilities() != nil, owned("capabilities")},
		{"a seccomp profile", linux.GetSeccomp().GetProfileName() != "", owned("seccomp")},
		{"its own ipc namespace", linux.GetIpcMode() == mesosv1.LinuxInfo_PRIVATE, owned("namespaces.IPC")},
		{"a size of /dev/shm", linux.GetShmSize() > 0, owned("mounts./dev/shm")},
		{"resource limits", len(info.GetRlimitInfo().GetRlimits()) > 0, ownsAny(merged, "rlimits.")},
		{"a hostname", info.GetHostname() != "", owned("hostname")},
	} {
		if x.asked && !x.met {
			return fmt.Errorf("container asks for %s: no isolator of this agent sets that", x.what)
		}
	}
	return nil
}

func ownsAny(merged *containerv1.Spec, prefix string) bool {
	for field := range merged.GetOwners() {
		if strings.HasPrefix(field, prefix) {
			return true
		}
	}
	return false
}
