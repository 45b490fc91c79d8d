package containerizer

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// A nested container has a root filesystem, volumes and a sandbox of its own. It joins those namespaces of its parent
// that no isolator makes anew for it, the network first of all, and its cgroup lies below its parent's: without limits
// of its own where it shares the parent's, with them where it does not. It ends with its parent, always before it.

// parentOf is the id of the container that id is nested in, "" for that of a root container.
func parentOf(id string) string {
	if dot := strings.LastIndexByte(id, '.'); dot >= 0 {
		return id[:dot]
	}
	return ""
}

// rootOf is the id of the root container that id belongs to.
func rootOf(id string) string {
	root, _, _ := strings.Cut(id, ".")
	return root
}

// sharesCgroup says whether a container is held to its parent's limits alone. Its own cgroup is there to kill it by.
func sharesCgroup(spec *containerv1.Container) bool {
	return spec.GetParentId() != "" &&
		(spec.GetClass() == containerv1.Container_DEBUG || spec.GetContainerInfo().GetLinuxInfo().GetShareCgroups())
}

// Names of the cgroups below a container's own by what lives in them. Those that share its limits are told by them, also
// by who reads statistics.
const (
	sharedPrefix = "nested-"
	debugPrefix  = "debug-"
)

// placeIn completes the description of a container by what follows from its parent's: its cgroup, unless one below the
// parent's was given, and whom it runs as.
func placeIn(spec, parent *containerv1.Container) {
	if spec.GetUser() == "" && spec.GetClass() == containerv1.Container_DEFAULT {
		spec.User = parent.GetUser()
	}
	outer := parent.GetCgroup()
	switch {
	case outer == "":
		spec.Cgroup = ""
	case !strings.HasPrefix(spec.GetCgroup(), outer+"/") || !filepath.IsLocal(spec.GetCgroup()):
		name := strings.TrimPrefix(spec.GetId(), parent.GetId()+".")
		switch {
		case spec.GetClass() == containerv1.Container_DEBUG:
			name = debugPrefix + name
		case sharesCgroup(spec):
			name = sharedPrefix + name
		}
		spec.Cgroup = path.Join(outer, name)
	}
}

// parent returns the container that ct is nested in, nil for a root container.
func (c *Containerizer) parent(ct *container) (*container, error) {
	id := ct.spec.GetParentId()
	if id == "" {
		return nil, nil
	}
	p, err := c.find(id)
	if err != nil {
		return nil, fmt.Errorf("parent: %w", err)
	}
	return p, nil
}

// rootHandle returns the handle of the root container that ct belongs to: its shim keeps what is nested in it.
func (c *Containerizer) rootHandle(ct *container) launcher.Handle {
	root, err := c.find(rootOf(ct.id))
	if err != nil {
		return nil
	}
	return root.running()
}

// nest adds to the settings of a nested container what it shares with its parent: the namespaces that nobody else
// set, and what belongs to them. inside are the parent's.
func (c *Containerizer) nest(ct, parent *container, inside *namespaces, spec *containerv1.Spec) error {
	joins := map[containerv1.Namespace_Type]bool{}
	var view *containerv1.Namespace
	for _, n := range inside.list {
		if n.GetType() == containerv1.Namespace_MOUNT {
			view = n
			continue
		}
		field := "namespaces." + n.GetType().String()
		if spec.Owners[field] != "" {
			continue
		}
		joins[n.GetType()] = true
		spec.Owners[field] = agentOwner
		spec.Merged.Namespaces = append(spec.Merged.Namespaces, n)
	}
	parent.mu.Lock()
	parentRoot := parent.spec.GetRootfs()
	parent.mu.Unlock()
	hosted := ct.spec.GetRootfs() == ""
	shares := func(t containerv1.Namespace_Type) bool {
		return spec.Owners["namespaces."+t.String()] == "" || joins[t]
	}
	mounts := len(spec.Merged.GetMounts()) > 0 || len(spec.Merged.GetMaskedPaths()) > 0 || len(spec.Merged.GetReadonlyPaths()) > 0 ||
		len(spec.Merged.GetDevices()) > 0
	if hosted && parentRoot == "" && view != nil && !mounts && shares(containerv1.Namespace_MOUNT) &&
		shares(containerv1.Namespace_PID) && shares(containerv1.Namespace_IPC) {
		// It mounts nothing, and sees the machine's files as its parent does: in the parent's own view of them, in which
		// /proc and /dev/shm belong to the namespaces that both share.
		spec.Owners["namespaces.MOUNT"] = agentOwner
		spec.Merged.Namespaces = append(spec.Merged.Namespaces, view)
		return nil
	}
	if hosted && joins[containerv1.Namespace_PID] && spec.Owners["mounts./proc"] == "" {
		spec.Owners["mounts./proc"] = agentOwner
		spec.Merged.Mounts = append(spec.Merged.Mounts, &containerv1.Mount{
			Destination: "/proc", Source: "proc", Type: "proc", Options: []string{"nosuid", "nodev", "noexec"},
		})
	}
	if shares(containerv1.Namespace_IPC) && spec.Owners["mounts./dev/shm"] == "" {
		if err := c.shareMemory(ct, parent, hosted, joins[containerv1.Namespace_IPC], spec); err != nil {
			return err
		}
	}
	return nil
}

// shareMemory gives a container that shares its parent's ipc namespace the parent's /dev/shm too. A parent on the machine's
// files may have a namespace of its own and yet no such folder of its own: its children with images, for which it is made
// when the first of them comes, never see the machine's.
func (c *Containerizer) shareMemory(ct, parent *container, hosted, own bool, spec *containerv1.Spec) error {
	const place = "/dev/shm"
	parent.mu.Lock()
	pid := parent.pid
	parent.mu.Unlock()
	var theirs, ours unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/root%s", pid, place), &theirs); err != nil {
		return nil // a parent without has none to share
	}
	source := place
	switch machines := unix.Stat(place, &ours) == nil && ours.Dev == theirs.Dev && ours.Ino == theirs.Ino; {
	case !machines:
		tree, err := treeOf(int(pid), place)
		if err != nil {
			return fmt.Errorf("share the parent's %s: %w", place, err)
		}
		defer unix.Close(tree)
		if source, err = c.stage(ct.id, "shm", tree, true); err != nil {
			return fmt.Errorf("share the parent's %s: %w", place, err)
		}
	case hosted:
		return nil
	case own:
		var err error
		if source, err = c.memoryOf(parent); err != nil {
			return fmt.Errorf("make a %s for what is nested in %s: %w", place, parent.id, err)
		}
	}
	spec.Owners["mounts."+place] = agentOwner
	m := &containerv1.Mount{Destination: place, Source: source, Type: "bind", Options: []string{"bind", "rw"}}
	if !hosted {
		m.Options = append(m.Options, "nosuid", "nodev", "noexec")
	}
	spec.Merged.Mounts = append(spec.Merged.Mounts, m)
	return nil
}

// memoryOf returns where the /dev/shm is that the children of a container share and it has not; it goes with the
// container.
func (c *Containerizer) memoryOf(parent *container) (string, error) {
	parent.sharing.Lock()
	defer parent.sharing.Unlock()
	place := filepath.Join(c.stagedDir(parent.id), "memory")
	var at, above unix.Stat_t
	if unix.Stat(place, &at) == nil && unix.Stat(filepath.Dir(place), &above) == nil && at.Dev != above.Dev {
		return place, nil
	}
	if err := os.Remove(place); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err // the last agent died before it was mounted
	}
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	for key, value := range map[string]string{"source": "shm", "size": strconv.Itoa(memorySize), "mode": "1777"} {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return "", os.NewSyscallError("fsconfig "+key, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return "", os.NewSyscallError("fsconfig", err)
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return "", os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(tree)
	return c.stage(parent.id, "memory", tree, true)
}

// memorySize is that of the /dev/shm that containers with images have of their own.
const memorySize = 64 << 20

// namesOf are the files that tell a container of its network: /etc/resolv.conf and /etc/hosts as the host has them, or,
// in a network that is its parent's, what the parent has in their places, and its /etc/hostname.
func namesOf(parent *container) []*containerv1.Mount {
	var own []*containerv1.Mount
	taken := map[string]bool{}
	if parent != nil {
		parent.mu.Lock()
		for _, m := range parent.merged.GetMerged().GetMounts() {
			if slices.Contains([]string{"/etc/resolv.conf", "/etc/hosts", "/etc/hostname"}, m.GetDestination()) && m.GetType() == "bind" {
				own = append(own, m)
				taken[m.GetDestination()] = true
			}
		}
		parent.mu.Unlock()
	}
	for _, file := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if source, err := filepath.EvalSymlinks(file); err == nil && !taken[file] {
			own = append(own, &containerv1.Mount{Destination: file, Source: source, Type: "bind", Options: []string{"bind", "ro"}})
		}
	}
	return own
}

// held is the container whose limits hold for ct: ct itself, or the nearest above it with a cgroup of its own.
func (c *Containerizer) held(ct *container) *container {
	for {
		ct.mu.Lock()
		spec := ct.spec
		ct.mu.Unlock()
		if !sharesCgroup(spec) {
			return ct
		}
		parent, err := c.find(spec.GetParentId())
		if err != nil {
			return ct
		}
		ct = parent
	}
}

// endedWith is how a container ends because the one it is nested in does, for why, nil where nobody gave a reason.
// A limit that held for both is the reason of both.
func (c *Containerizer) endedWith(child *container, why *containerv1.Termination) *containerv1.Termination {
	child.mu.Lock()
	parent := child.spec.GetParentId()
	child.mu.Unlock()
	end := &containerv1.Termination{Message: fmt.Sprintf("the container it is nested in, %s, ended", parent)}
	if why.GetReason() != "" {
		adopt(end, why)
	} else if why.GetMessage() != "" {
		end.Message += ": " + why.GetMessage()
	}
	return end
}
