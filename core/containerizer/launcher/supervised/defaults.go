package supervised

import (
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// What a container with a root file system of its own sees beside that is the same whoever launches it.

// MaskedPaths are kept from such a container, and ReadonlyPaths from its writing: files below /proc and /sys that tell
// about, or change, the whole machine.
//
// Source: the lists that OCI runtimes generate by default.
func MaskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

// ReadonlyPaths: see MaskedPaths.
func ReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// usualMounts are those of a container with a root file system of its own.
func usualMounts() []*containerv1.Mount {
	return []*containerv1.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
}

// Mounts are a container's: the usual ones, unless something else is wanted there, then the proposal's in their order.
func Mounts(r *launcher.Request, ns Namespaces) []*containerv1.Mount {
	var list []*containerv1.Mount
	switch {
	case r.Container.GetRootfs() != "":
		list = usualMounts()
	default:
		// The host's devices as they are: without this a runtime makes nodes of its own in them.
		list = append(list, &containerv1.Mount{Destination: "/dev", Type: "bind", Source: "/dev", Options: []string{"rbind"}})
		if ns.New&unix.CLONE_NEWPID != 0 {
			list = append(list, &containerv1.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}})
		}
	}
	wanted := r.Proposal.GetMounts()
	list = slices.DeleteFunc(list, func(m *containerv1.Mount) bool {
		return slices.ContainsFunc(wanted, func(o *containerv1.Mount) bool { return filepath.Clean(o.GetDestination()) == m.Destination })
	})
	return append(list, wanted...)
}
