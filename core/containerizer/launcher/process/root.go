package process

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/supervised"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// A container with a root file system of its own sees and may what an OCI runtime would let it see and do by the same
// request. What is said here only of the common cases; the others are refused, and left to a runtime.

// rootedKernel says whether this kernel has the calls that roots are put together with; nil if so.
var rootedKernel = sync.OnceValue(func() error {
	// The youngest of them, of Linux 5.12, asked for nothing; the others are older.
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("a root file system of its own on this kernel: mount_setattr: %w", err)
	}
	return nil
})

// supportsRoot says what of a request with a root file system of its own is left to a runtime; nil for nothing.
func (l *Launcher) supportsRoot(r *launcher.Request, ns supervised.Namespaces) error {
	switch {
	case !l.roots:
		return errors.New("a root file system of its own")
	case ns.Join[unix.CLONE_NEWNS] != "":
		return errors.New("a root file system of its own in a mount namespace that is joined")
	case r.Streams == containerv1.Container_TERMINAL:
		return errors.New("a terminal in a root file system of its own")
	case l.nest.Version() == 2:
		return errors.New("a root file system of its own on cgroup version 2, whose devices only a runtime can keep from it")
	case !filepath.IsAbs(r.Container.GetRootfs()) || filepath.Clean(r.Container.GetRootfs()) != r.Container.GetRootfs():
		return fmt.Errorf("root file system %q: want a clean absolute path", r.Container.GetRootfs())
	case r.Dir != "" && !filepath.IsAbs(r.Dir):
		return fmt.Errorf("working directory %q, which is not absolute", r.Dir)
	}
	return rootedKernel()
}

// rootOf converts what a request says of its root file system.
func rootOf(r *launcher.Request, ns supervised.Namespaces) (*wire.Root, error) {
	root := &wire.Root{Path: r.Container.GetRootfs(), ReadOnly: r.ReadOnly, OwnDev: true, Home: true}
	for _, m := range supervised.Mounts(r, ns) {
		o, err := mountOf(m)
		if err != nil {
			return nil, err
		}
		if o.Destination == "/dev" && o.Type == "" {
			root.OwnDev = false // whoever brought it has filled it
		}
		root.Mounts = append(root.Mounts, o)
	}
	if root.OwnDev {
		root.Devices = usualDevices()
	}
	for _, d := range r.Proposal.GetDevices() {
		o, err := deviceOf(d)
		if err != nil {
			return nil, err
		}
		root.Devices = append(slices.DeleteFunc(root.Devices, func(u wire.Device) bool { return u.Path == o.Path }), o)
	}
	root.Masked, root.Fixed = slices.Clone(r.Proposal.GetMaskedPaths()), slices.Clone(r.Proposal.GetReadonlyPaths())
	if !r.Privileged {
		root.Masked, root.Fixed = append(supervised.MaskedPaths(), root.Masked...), append(supervised.ReadonlyPaths(), root.Fixed...)
	}
	root.Masked, root.Fixed = distinct(root.Masked), distinct(root.Fixed)
	for _, p := range append(slices.Clone(root.Masked), root.Fixed...) {
		if !filepath.IsAbs(p) {
			return nil, fmt.Errorf("path %q to hide or protect, which is not absolute", p)
		}
	}
	return root, nil
}

// distinct leaves out what comes again: a mask on a mask hides nothing more.
func distinct(paths []string) []string {
	var list []string
	for _, p := range paths {
		if p = filepath.Clean(p); !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

// fileSystems are those that are mounted here; a runtime knows more about others.
var fileSystems = []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue"}

// attributes are the options that a mount has of its own, set or cleared.
var attributes = map[string]struct{ set, clear uint64 }{
	"ro": {set: unix.MOUNT_ATTR_RDONLY}, "rw": {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid": {set: unix.MOUNT_ATTR_NOSUID}, "suid": {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev": {set: unix.MOUNT_ATTR_NODEV}, "dev": {clear: unix.MOUNT_ATTR_NODEV},
	"noexec": {set: unix.MOUNT_ATTR_NOEXEC}, "exec": {clear: unix.MOUNT_ATTR_NOEXEC},
	"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW}, "symfollow": {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"nodiratime": {set: unix.MOUNT_ATTR_NODIRATIME}, "diratime": {clear: unix.MOUNT_ATTR_NODIRATIME},
	"noatime":     {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime": {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"relatime":    {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"defaults":    {},
}

// usualAttributes are cleared of what is bound as soon as any attribute is asked for: those asked for are then all
// there are, wherever the source lies, as runtimes have it.
const usualAttributes = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW

// spreads are how mounts are shared with others, without those that show on the machine what is mounted inside: for
// these a runtime keeps the whole root shared.
var spreads = map[string]uint64{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC, "slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// foreign are options with a meaning that is not known here: of whole file systems, of runtimes, and the propagation
// that is left to those.
var foreign = []string{
	"shared", "rshared", "remount", "sync", "async", "dirsync", "mand", "nomand", "lazytime", "nolazytime", "iversion", "noiversion",
	"acl", "noacl", "silent", "loud", "tmpcopyup", "idmap", "ridmap", "rro", "rrw", "rnosuid", "rsuid", "rnodev", "rdev", "rnoexec", "rexec",
	"rnodiratime", "rdiratime", "rrelatime", "rnorelatime", "rnoatime", "ratime", "rstrictatime", "rnostrictatime", "rnosymfollow", "rsymfollow",
	"norelatime", "nostrictatime", "atime",
}

// mountOf converts one mount.
func mountOf(m *containerv1.Mount) (wire.Mount, error) {
	o := wire.Mount{Destination: filepath.Clean(m.GetDestination()), Type: m.GetType(), Source: m.GetSource()}
	refuse := func(why string, args ...any) (wire.Mount, error) {
		return o, fmt.Errorf("mount %s: %w", m.GetDestination(), fmt.Errorf(why, args...))
	}
	switch {
	case !filepath.IsAbs(o.Destination):
		return refuse("destination that is not absolute")
	case o.Destination == "/":
		return refuse("over the root")
	case strings.HasPrefix(o.Destination, "/proc/"):
		return refuse("in /proc")
	case o.Type == "bind":
		o.Type, o.Recursive = "", !slices.Contains(m.GetOptions(), "bind")
		if !filepath.IsAbs(o.Source) {
			return refuse("source %q, which is not absolute", o.Source)
		}
	case !slices.Contains(fileSystems, o.Type):
		return refuse("file system %q", o.Type)
	}
	asked := false
	for _, option := range m.GetOptions() {
		spread, spreads := spreads[option]
		name, _, _ := strings.Cut(option, "=")
		switch a, known := attributes[option]; {
		case option == "bind" && o.Type == "":
		case option == "rbind" && o.Type == "":
			o.Recursive = true
		case spreads:
			o.Propagation = spread
		case known:
			// What comes later counts.
			o.Set, o.Clear = o.Set&^a.clear|a.set, o.Clear&^(a.set&^unix.MOUNT_ATTR__ATIME)|a.clear
			asked = asked || option != "defaults"
		case slices.Contains(foreign, name) || o.Type == "" || option == "":
			return refuse("option %q", option)
		default:
			o.Options = append(o.Options, option)
		}
	}
	if o.Type == "" && asked {
		o.Clear |= usualAttributes &^ o.Set
	}
	if o.Type != "" && o.Source == "" {
		o.Source = o.Type
	}
	return o, nil
}

// Devices that every container with a /dev of its own has, all of the machine's memory driver but the terminal.
var usualNodes = []struct {
	name         string
	major, minor uint32
}{{"null", 1, 3}, {"random", 1, 8}, {"full", 1, 7}, {"tty", 5, 0}, {"zero", 1, 5}, {"urandom", 1, 9}}

func usualDevices() []wire.Device {
	var list []wire.Device
	for _, n := range usualNodes {
		list = append(list, wire.Device{Path: "/dev/" + n.name, Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(n.major, n.minor)})
	}
	return list
}

func deviceOf(d *containerv1.Device) (wire.Device, error) {
	o := wire.Device{Path: filepath.Clean(d.GetPath()), Mode: d.GetMode() & 0o777, UID: d.GetUid(), GID: d.GetGid()}
	if o.Mode == 0 {
		o.Mode = 0o660
	}
	if !filepath.IsAbs(o.Path) {
		return o, fmt.Errorf("device %q, whose path is not absolute", d.GetPath())
	}
	if o.Path == "/dev/ptmx" {
		return o, errors.New("device /dev/ptmx, which is a link to the container's own")
	}
	switch d.GetType() {
	case "c", "u":
		o.Mode |= unix.S_IFCHR
	case "b":
		o.Mode |= unix.S_IFBLK
	case "p":
		o.Mode |= unix.S_IFIFO
		return o, nil
	default:
		return o, fmt.Errorf("device %s of type %q", o.Path, d.GetType())
	}
	if d.GetMajor() < 0 || d.GetMinor() < 0 || d.GetMajor() > 1<<12-1 || d.GetMinor() > 1<<20-1 {
		return o, fmt.Errorf("device %s: got number %d:%d", o.Path, d.GetMajor(), d.GetMinor())
	}
	o.Dev = unix.Mkdev(uint32(d.GetMajor()), uint32(d.GetMinor()))
	return o, nil
}

// usualRules are what every container with a root file system of its own may do with devices, beside what it is
// allowed: make any node, and use the harmless ones, its own terminals, and network devices of its own making.
//
// Source: what runc allows.
func usualRules() []*containerv1.DeviceRule {
	list := []*containerv1.DeviceRule{{Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "b", Access: "m"}}
	for _, n := range usualNodes {
		list = append(list, allowed(int64(n.major), new(int64(n.minor))))
	}
	return append(list, allowed(136, nil), allowed(5, new(int64(2))), allowed(10, new(int64(200))))
}

func allowed(major int64, minor *int64) *containerv1.DeviceRule {
	return &containerv1.DeviceRule{Allow: true, Type: "c", Major: &major, Minor: minor, Access: "rwm"}
}

// rootedResources are a request's cgroup settings with what its container may do with devices.
func (l *Launcher) rootedResources(r *launcher.Request) (*containerv1.CgroupResources, error) {
	asked := r.Proposal.GetCgroup()
	if l.nest.Version() == 0 || r.Container.GetCgroup() == "" {
		return asked, nil // nothing can be kept from it, by a runtime neither
	}
	around, err := supervised.DevicesAround(l.cgroups, r.Container.GetCgroup())
	if err != nil {
		return nil, err
	}
	rules := supervised.DevicesWithin(around, supervised.DeviceRules(r))
	limited := &containerv1.CgroupResources{}
	if asked != nil {
		limited = proto.CloneOf(asked)
	}
	limited.DeviceRules = append(rules, usualRules()...)
	return limited, nil
}
