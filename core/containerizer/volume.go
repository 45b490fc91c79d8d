package containerizer

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// persistentVolume is a volume among a container's resources that the agent keeps a folder for.
type persistentVolume struct {
	host   string // absolute
	inside string // as the framework gave it
	write  bool
	shared bool
}

// persistentVolumes are those volumes of a container whose folder the agent named. Those that it did not name are
// nobody's, and unmet says so.
func persistentVolumes(spec *containerv1.Container) ([]persistentVolume, error) {
	var all []persistentVolume
	for _, r := range spec.GetResources() {
		v := r.GetDisk().GetVolume()
		if r.GetDisk().GetPersistence() == nil || v.GetHostPath() == "" {
			continue
		}
		if !filepath.IsAbs(v.GetHostPath()) {
			return nil, fmt.Errorf("persistent volume at %s: host path %q: want an absolute path", v.GetContainerPath(), v.GetHostPath())
		}
		all = append(all, persistentVolume{
			host:   filepath.Clean(v.GetHostPath()),
			inside: v.GetContainerPath(),
			write:  v.GetMode() == mesosv1.Volume_RW,
			shared: r.GetShared() != nil,
		})
	}
	return all, nil
}

// handOver gives volumes to the user of the container, and, where the container has no root filesystem of its own,
// links them into its sandbox. A shared volume keeps its owner: others use it too. Only the folder itself changes
// hands; what is in it was written by whom it was written by.
func (c *Containerizer) handOver(spec *containerv1.Container, user launcher.User, linked bool) error {
	volumes, err := persistentVolumes(spec)
	if err != nil || len(volumes) == 0 {
		return err
	}
	sandbox, err := c.openSandbox(spec)
	if err != nil {
		return err
	}
	defer sandbox.Close()
	for _, v := range volumes {
		if err := c.giveTo(v, user); err != nil {
			return fmt.Errorf("persistent volume at %s: %w", v.inside, err)
		}
		if !linked {
			continue
		}
		if !filepath.IsLocal(v.inside) || path.Clean(v.inside) == "." {
			return fmt.Errorf("persistent volume at %s: a container without image takes a path below its sandbox only", v.inside)
		}
		if parent := path.Dir(path.Clean(v.inside)); parent != "." {
			if err := sandbox.MkdirAll(parent, 0o755); err != nil {
				return fmt.Errorf("persistent volume at %s: %w", v.inside, err)
			}
		}
		err := sandbox.Symlink(v.host, path.Clean(v.inside))
		if errors.Is(err, os.ErrExist) { // of a launch that was cut short
			if target, e := sandbox.Readlink(path.Clean(v.inside)); e == nil && target == v.host {
				err = nil
			}
		}
		if err != nil {
			return fmt.Errorf("persistent volume at %s: %w", v.inside, err)
		}
	}
	return nil
}

func (c *Containerizer) giveTo(v persistentVolume, user launcher.User) error {
	d, err := unix.Open(v.host, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: v.host, Err: err}
	}
	defer unix.Close(d)
	if !c.cfg.SwitchUser || v.shared {
		return nil
	}
	if err := unix.Fchown(d, int(user.UID), int(user.GID)); err != nil {
		return &os.PathError{Op: "chown", Path: v.host, Err: err}
	}
	return nil
}

// volumeMounts bind the persistent volumes into a container that has a root filesystem of its own.
func volumeMounts(spec *containerv1.Container) ([]*containerv1.Mount, error) {
	volumes, err := persistentVolumes(spec)
	if err != nil {
		return nil, err
	}
	var mounts []*containerv1.Mount
	for _, v := range volumes {
		where := v.inside
		if !path.IsAbs(where) {
			if !filepath.IsLocal(where) || path.Clean(where) == "." {
				return nil, fmt.Errorf("persistent volume at %s: want a path below the sandbox or an absolute one", v.inside)
			}
			where = path.Join(spec.GetSandboxInContainer(), where)
		}
		if where = path.Clean(where); where == "/" {
			return nil, fmt.Errorf("persistent volume at %s: the root is the image's", v.inside)
		}
		mode := "ro"
		if v.write {
			mode = "rw"
		}
		mounts = append(mounts, &containerv1.Mount{Destination: where, Source: v.host, Type: "bind", Options: []string{"rbind", mode}})
	}
	return mounts, nil
}
