package containerizer

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// A volume of type SANDBOX_PATH is a file or folder of the container's own sandbox, or of its parent's, shown at another
// place. By it nested containers share data. Where the container sees the host's files, and may write to the volume, it
// is a link in the sandbox; else it is mounted.
//
// Sandboxes belong to tasks, which may put links into them to anywhere. A path that leads out of its sandbox is refused,
// and what is mounted is what was looked at, not what the path leads to a moment later.

// sandboxVolume is one such volume.
type sandboxVolume struct {
	ofParent bool   // whose sandbox
	sandbox  string // on the host
	path     string // below it
	inside   string // where the container wants it
	write    bool
}

func (v sandboxVolume) String() string { return "volume at " + v.inside }

// sandboxVolumes are those volumes of a container. parent is nil for root containers.
func sandboxVolumes(spec *containerv1.Container, parent *containerv1.Container) ([]sandboxVolume, error) {
	var all []sandboxVolume
	for _, x := range spec.GetContainerInfo().GetVolumes() {
		if !isSandboxPath(x) {
			continue
		}
		source := x.GetSource().GetSandboxPath()
		v := sandboxVolume{sandbox: spec.GetSandbox(), path: path.Clean(source.GetPath()), inside: x.GetContainerPath(), write: x.GetMode() == mesosv1.Volume_RW}
		switch source.GetType() {
		case mesosv1.Volume_Source_SandboxPath_SELF:
		case mesosv1.Volume_Source_SandboxPath_PARENT:
			if parent == nil {
				return nil, fmt.Errorf("%s: a path of the parent's sandbox, but the container has no parent", v)
			}
			v.ofParent, v.sandbox = true, parent.GetSandbox()
		default:
			return nil, fmt.Errorf("%s: got sandbox path of type %s, want SELF or PARENT", v, source.GetType())
		}
		if !filepath.IsLocal(v.path) || v.path == "." {
			return nil, fmt.Errorf("%s: got path %q, want one below the sandbox", v, source.GetPath())
		}
		if inside := path.Clean(v.inside); inside == "." || inside == "/" || !filepath.IsAbs(inside) && !filepath.IsLocal(inside) {
			return nil, fmt.Errorf("%s: want a path below the sandbox or an absolute one", v)
		}
		all = append(all, v)
	}
	return all, nil
}

func isSandboxPath(v *mesosv1.Volume) bool {
	return v.GetSource().GetType() == mesosv1.Volume_Source_SANDBOX_PATH && v.GetSource().GetSandboxPath() != nil
}

// linked says whether a volume is a link in the container's sandbox instead of a mount.
func (v sandboxVolume) linked(spec *containerv1.Container) bool {
	return spec.GetRootfs() == "" && v.write && !filepath.IsAbs(v.inside)
}

// persistent returns the persistent volume of the parent that the path leads into, nil if none, and where in it.
func (v sandboxVolume) persistent(outer *containerv1.Container) (p *persistentVolume, sub string, err error) {
	if !v.ofParent {
		return nil, "", nil
	}
	volumes, err := persistentVolumes(outer)
	for _, p := range volumes {
		if inside := path.Clean(p.inside); v.path == inside || strings.HasPrefix(v.path, inside+"/") {
			return &p, path.Clean(strings.TrimPrefix(strings.TrimPrefix(v.path, inside), "/")), err
		}
	}
	return nil, "", err
}

// target is where a link to the volume leads.
func (v sandboxVolume) target(outer *containerv1.Container) string {
	if p, sub, err := v.persistent(outer); err == nil && p != nil {
		return filepath.Join(p.host, sub)
	}
	return filepath.Join(v.sandbox, v.path)
}

// showSandboxPaths makes the volumes of type SANDBOX_PATH of a container whose sandbox and root filesystem are there: it
// links them, or adds their mounts to the settings.
func (c *Containerizer) showSandboxPaths(ct, parent *container, spec *containerv1.Spec) error {
	var outer *containerv1.Container
	if parent != nil {
		parent.mu.Lock()
		outer = parent.spec
		parent.mu.Unlock()
	}
	volumes, err := sandboxVolumes(ct.spec, outer)
	if err != nil {
		return err
	}
	for n, v := range volumes {
		if err := c.showSandboxPath(ct, outer, v, n, spec); err != nil {
			return fmt.Errorf("%s: %w", v, err)
		}
	}
	return nil
}

func (c *Containerizer) showSandboxPath(ct *container, outer *containerv1.Container, v sandboxVolume, n int, spec *containerv1.Spec) error {
	source, err := c.openVolume(ct.spec, outer, v)
	if err != nil {
		return err
	}
	defer source.Close()
	if v.linked(ct.spec) {
		return c.linkInto(ct.spec, v.inside, v.target(outer))
	}
	where := v.inside
	if !filepath.IsAbs(where) {
		where = path.Join(inContainer(ct.spec), where)
	}
	where = path.Clean(where)
	if first := spec.Owners["mounts."+where]; first != "" {
		return fmt.Errorf("%s mounts something there, too", first)
	}
	info, err := source.Stat()
	if err != nil {
		return err
	}
	if ct.spec.GetRootfs() == "" {
		// Seen by the container is the host's file system, in which the launcher would make the missing place.
		if err := c.placeOnHost(ct.spec, v.inside, info.IsDir()); err != nil {
			return err
		}
	}
	tree, err := treeAt(source)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	staged, err := c.stage(ct.id, fmt.Sprintf("v%d", n), tree, info.IsDir())
	if err != nil {
		return err
	}
	mode := "ro"
	if v.write {
		mode = "rw"
	}
	spec.Owners["mounts."+where] = agentOwner
	spec.Merged.Mounts = append(spec.Merged.Mounts, &containerv1.Mount{Destination: where, Source: staged, Type: "bind", Options: []string{"rbind", mode}})
	return nil
}

// openVolume opens what the volume shows. A path that nothing is at becomes a folder of the sandbox's owner.
//
// A persistent volume in the parent's sandbox is a link that leads out of it, put there by the agent.
func (c *Containerizer) openVolume(spec, outer *containerv1.Container, v sandboxVolume) (*os.File, error) {
	var root *os.Root
	rest := v.path
	p, sub, err := v.persistent(outer)
	switch {
	case err != nil:
	case p != nil && v.write && !p.write:
		err = fmt.Errorf("the parent's volume at %s is read-only", p.inside)
	case p != nil:
		rest = sub
		root, err = os.OpenRoot(p.host)
	case v.ofParent:
		root, err = c.openSandbox(outer)
	default:
		root, err = c.openSandbox(spec)
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(rest, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err = makeBelow(root, rest); err == nil {
			f, err = root.Open(rest)
		}
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.IsDir() && !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s: want a folder or a regular file", v.path), err, f.Close())
	}
	return f, nil
}

// makeBelow makes a folder, and those on the way to it, for the owner of root.
func makeBelow(root *os.Root, name string) error {
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("the file system knows no owners")
	}
	at := ""
	for part := range strings.SplitSeq(name, "/") {
		at = path.Join(at, part)
		if err := root.Mkdir(at, 0o755); errors.Is(err, os.ErrExist) {
			continue
		} else if err != nil {
			return err
		}
		if os.Geteuid() == 0 {
			if err := root.Lchown(at, int(owner.Uid), int(owner.Gid)); err != nil {
				return err
			}
		}
	}
	return nil
}

// linkInto links target at name below a sandbox. A link that a launch cut short left is taken as it is.
func (c *Containerizer) linkInto(spec *containerv1.Container, name, target string) error {
	name = path.Clean(name)
	if filepath.Join(spec.GetSandbox(), name) == target {
		return nil // a path of its own sandbox in its own place
	}
	sandbox, err := c.openSandbox(spec)
	if err != nil {
		return err
	}
	defer sandbox.Close()
	if parent := path.Dir(name); parent != "." {
		if err := makeBelow(sandbox, parent); err != nil {
			return err
		}
	}
	err = sandbox.Symlink(target, name)
	if errors.Is(err, os.ErrExist) {
		if there, e := sandbox.Readlink(name); e == nil && there == target {
			return nil
		}
	}
	return err
}

// placeOnHost sees to it that there is something to mount on. Below the sandbox it is made; anywhere else on the host
// nothing is. What is in a sandbox may be a link of an archive that was fetched: one that leads out of it is no place.
func (c *Containerizer) placeOnHost(spec *containerv1.Container, inside string, folder bool) error {
	wrong := errors.New("one is a folder, the other is not")
	if filepath.IsAbs(inside) {
		place, err := os.Stat(inside)
		if err != nil {
			return fmt.Errorf("a container without image takes a place that is there: %w", err)
		}
		if place.IsDir() != folder {
			return wrong
		}
		return nil
	}
	sandbox, err := c.openSandbox(spec)
	if err != nil {
		return err
	}
	defer sandbox.Close()
	name := path.Clean(inside)
	parent := name
	if !folder {
		parent = path.Dir(name)
	}
	if parent != "." {
		if err := makeBelow(sandbox, parent); err != nil {
			return err
		}
	}
	if !folder {
		f, err := sandbox.OpenFile(name, os.O_CREATE|os.O_WRONLY|unix.O_NONBLOCK, 0o644)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	place, err := sandbox.Stat(name)
	if err != nil {
		return err
	}
	if place.IsDir() != folder {
		return wrong
	}
	return nil
}
