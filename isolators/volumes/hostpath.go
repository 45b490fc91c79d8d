package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// hostPath proposes the mount of a volume that is a path of the machine, or of the sandbox in the old form.
func (i *Isolator) hostPath(cfg *Config, c *containerv1.Container, v *mesosv1.Volume) (*containerv1.Mount, seen, error) {
	at, err := place(c, v)
	if err != nil {
		return nil, seen{}, err
	}
	real, err := source(cfg, c, v)
	if err != nil {
		return nil, seen{}, err
	}
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil {
		return nil, seen{}, module.FailedPrecondition("volume at %s: %v", at, &os.PathError{Op: "stat", Path: real, Err: err})
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFREG, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO:
	default:
		return nil, seen{}, module.FailedPrecondition("volume at %s: %s is nothing that can be mounted", at, real)
	}
	options, peers := []string{"rbind", mode(v)}, ""
	if kindOf(v) == hostPath {
		var how string
		if how, peers, err = propagation(cfg, c, v, real); err != nil {
			return nil, seen{}, err
		}
		options = append(options, how)
	}
	if err := makePlace(c, v, at, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return nil, seen{}, err
	}
	return &containerv1.Mount{Destination: at, Source: real, Type: "bind", Options: options}, seen{At: at, Dev: st.Dev, Ino: st.Ino, Peers: peers}, nil
}

func mode(v *mesosv1.Volume) string {
	if v.GetMode() == mesosv1.Volume_RW {
		return "rw"
	}
	return "ro"
}

// source returns what is to be mounted, without symbolic links, if the operator allows it. Links on the way are what
// makes the difference between the path that is asked for and what it leads to, so only the latter is judged.
func source(cfg *Config, c *containerv1.Container, v *mesosv1.Volume) (string, error) {
	asked := v.GetHostPath()
	if s := v.GetSource(); s != nil {
		asked = s.GetHostPath().GetPath()
	}
	if kindOf(v) == sandboxPath {
		return ofSandbox(c, asked)
	}
	if !filepath.IsAbs(asked) || strings.ContainsRune(asked, 0) {
		return "", module.InvalidArgument("volume at %s: host path %q: want an absolute path", v.GetContainerPath(), asked)
	}
	asked = filepath.Clean(asked)
	real, err := filepath.EvalSymlinks(asked)
	if errors.Is(err, fs.ErrNotExist) {
		if dir, ok := below(cfg.ForceCreation, asked); ok {
			real, err = create(dir, asked)
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", module.FailedPrecondition("volume at %s: host path %s does not exist on this machine", v.GetContainerPath(), asked)
	case err != nil:
		return "", module.FailedPrecondition("volume at %s: host path: %v", v.GetContainerPath(), err)
	}
	if cfg.Allow == nil && cfg.AllowReadOnly == nil {
		return real, nil
	}
	if _, ok := below(cfg.Allow, real); ok {
		return real, nil
	}
	leads := ""
	if real != asked {
		leads = fmt.Sprintf(", which leads to %s,", real)
	}
	if _, ok := below(cfg.AllowReadOnly, real); ok {
		if v.GetMode() == mesosv1.Volume_RW {
			return "", module.InvalidArgument("volume at %s: host path %s%s may only be read here (allow_read_only)", v.GetContainerPath(), asked, leads)
		}
		return real, nil
	}
	return "", module.InvalidArgument("volume at %s: host path %s%s is not among those allowed here (allow)", v.GetContainerPath(), asked, leads)
}

// below returns the folder of list that p is, or lies below. Folders that are links count as what they lead to.
func below(list []string, p string) (string, bool) {
	for _, dir := range list {
		for _, d := range []string{filepath.Clean(dir), resolved(dir)} {
			if d == "/" || p == d || strings.HasPrefix(p, d+"/") {
				return d, true
			}
		}
	}
	return "", false
}

// resolved is a folder without links, or as it is if it does not exist.
func resolved(dir string) string {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real
	}
	return filepath.Clean(dir)
}

// create makes the folder p below dir, which must exist, and returns it without links. Links that lead out of dir are
// not followed.
func create(dir, p string) (string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	rest, err := filepath.Rel(dir, p)
	if err != nil {
		return "", err
	}
	if err := root.MkdirAll(rest, 0o755); err != nil {
		return "", fmt.Errorf("make %s: %w", p, err)
	}
	return filepath.EvalSymlinks(p)
}

// ofSandbox returns a path of the container's own sandbox; one that does not exist becomes a folder.
func ofSandbox(c *containerv1.Container, asked string) (string, error) {
	rest := filepath.Clean(asked)
	if !filepath.IsLocal(rest) || rest == "." || strings.ContainsRune(rest, 0) {
		return "", module.InvalidArgument("host path %q: want an absolute path or one below the sandbox", asked)
	}
	root, err := os.OpenRoot(c.GetSandbox())
	if err != nil {
		return "", module.FailedPrecondition("open sandbox: %v", err)
	}
	defer root.Close()
	if _, err := root.Stat(rest); errors.Is(err, fs.ErrNotExist) {
		if err := root.MkdirAll(rest, 0o755); err != nil {
			return "", module.FailedPrecondition("host path %q: %v", asked, err)
		}
	} else if err != nil {
		return "", module.FailedPrecondition("host path %q: %v", asked, err)
	}
	real, err := filepath.EvalSymlinks(filepath.Join(c.GetSandbox(), rest))
	if err != nil {
		return "", module.FailedPrecondition("host path %q: %v", asked, err)
	}
	if _, ok := below([]string{c.GetSandbox()}, real); !ok {
		return "", module.FailedPrecondition("host path %q leads out of the sandbox", asked)
	}
	return real, nil
}

// propagation is the mount option for what a volume wants to see of later mounts, or to show; then peers is the group
// of mounts that it must be in. Unset is as in Mesos: the container sees what the machine mounts there, where the
// machine's own settings allow that.
func propagation(cfg *Config, c *containerv1.Container, v *mesosv1.Volume, real string) (option, peers string, err error) {
	how := v.GetSource().GetHostPath().GetMountPropagation().GetMode()
	if how == mesosv1.MountPropagation_UNKNOWN {
		return "rslave", "", nil
	}
	id, err := mountOf(unix.AT_FDCWD, real)
	if err != nil {
		return "", "", module.FailedPrecondition("volume at %s: %v", v.GetContainerPath(), err)
	}
	shared, slave, err := sharing("/proc/self/mountinfo", id)
	if err != nil {
		return "", "", module.FailedPrecondition("volume at %s: %v", v.GetContainerPath(), err)
	}
	switch how {
	case mesosv1.MountPropagation_HOST_TO_CONTAINER:
		if shared == "" && !slave {
			return "", "", module.FailedPrecondition("volume at %s: %s lies in a private mount of this machine, so that nothing can be propagated from it", v.GetContainerPath(), real)
		}
		return "rslave", "", nil
	case mesosv1.MountPropagation_BIDIRECTIONAL:
		switch {
		case !cfg.AllowBidirectional:
			return "", "", module.FailedPrecondition("volume at %s: mounts of containers do not appear on this machine (allow_bidirectional)", v.GetContainerPath())
		case c.GetRootfs() == "":
			return "", "", module.InvalidArgument("volume at %s: bidirectional propagation needs a container with an image", v.GetContainerPath())
		case v.GetMode() != mesosv1.Volume_RW:
			return "", "", module.InvalidArgument("volume at %s: bidirectional propagation of a read-only volume", v.GetContainerPath())
		case shared == "":
			return "", "", module.FailedPrecondition("volume at %s: %s lies in a mount of this machine that is not shared", v.GetContainerPath(), real)
		}
		return "rshared", shared, nil
	}
	return "", "", module.InvalidArgument("volume at %s: mount propagation %s", v.GetContainerPath(), how)
}

// mountOf is the number of the mount that a path lies in, or the open file dir itself if the path is empty.
func mountOf(dir int, p string) (uint64, error) {
	flags := unix.AT_NO_AUTOMOUNT
	if p == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	if err := unix.Statx(dir, p, flags, unix.STATX_MNT_ID, &st); err != nil {
		return 0, &os.PathError{Op: "statx", Path: p, Err: err}
	}
	return st.Mnt_id, nil
}

// sharing says how a mount is shared with others: by which group of peers, "" for none, and whether it is their slave.
// list is the process's mountinfo that the mount is in.
func sharing(list string, id uint64) (peers string, slave bool, err error) {
	data, err := os.ReadFile(list)
	if err != nil {
		return "", false, err
	}
	want := fmt.Sprint(id)
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 7 || fields[0] != want {
			continue
		}
		optional := fields[6:]
		if end := slices.Index(optional, "-"); end >= 0 {
			optional = optional[:end]
		}
		for _, o := range optional {
			if group, ok := strings.CutPrefix(o, "shared:"); ok {
				peers = group
			}
			slave = slave || strings.HasPrefix(o, "master:")
		}
		return peers, slave, nil
	}
	return "", false, fmt.Errorf("mount %s is not listed", want)
}

// makePlace makes the place of a volume if it lies below the sandbox: there a container may have put links before,
// which the launcher would follow. Elsewhere a container without root filesystem sees the machine's files, where
// nothing is made for it.
func makePlace(c *containerv1.Container, v *mesosv1.Volume, at string, folder bool) error {
	inside := c.GetSandboxInContainer()
	if inside == "" {
		inside = c.GetSandbox()
	}
	rest, ok := strings.CutPrefix(at, path.Clean(inside)+"/")
	if !ok {
		if c.GetRootfs() != "" {
			return nil
		}
		info, err := os.Stat(at)
		if err != nil {
			return module.FailedPrecondition("volume at %s: a container without image sees the machine's files, and there is nothing at that place: %v", v.GetContainerPath(), err)
		}
		if info.IsDir() != folder {
			return module.FailedPrecondition("volume at %s: only a folder can lie on a folder, and a file on a file", v.GetContainerPath())
		}
		return nil
	}
	root, err := os.OpenRoot(c.GetSandbox())
	if err != nil {
		return module.FailedPrecondition("open sandbox: %v", err)
	}
	defer root.Close()
	wrong := func(err error) error {
		return module.FailedPrecondition("make the place of the volume at %s: %v", v.GetContainerPath(), err)
	}
	parent := rest
	if !folder {
		parent = path.Dir(rest)
	}
	if parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return wrong(err)
		}
	}
	if folder {
		return nil
	}
	f, err := root.OpenFile(rest, os.O_WRONLY|os.O_CREATE|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return wrong(err)
	}
	return f.Close()
}
