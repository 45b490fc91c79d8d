package containerizer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/containerizer/fetcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// sandboxInImage is where a container with an image sees its sandbox, unless the agent says otherwise. Mesos's default.
const sandboxInImage = "/mnt/mesos/sandbox"

// furnish gets everything in place that the isolators may look at: the root filesystem, the sandbox, what the URIs
// name. The image is provisioned while the URIs are being fetched, unless only the image knows who the user is. It
// returns whom the container runs as.
func (c *Containerizer) furnish(ctx context.Context, ct *container) (launcher.User, error) {
	var who launcher.User
	if _, pulls := c.cfg.Images.(NamedImages); !pulls || askedImage(ct.spec) == nil {
		if _, err := imageName(ct.spec); err != nil {
			return who, err
		}
	}
	if !hasImage(ct.spec) {
		if err := c.fill(ctx, ct, ct.spec, "", &who); err != nil || !usesImages(ct.spec) {
			return who, err
		}
		ctx, cancel := context.WithTimeout(ctx, provisionTimeout)
		defer cancel()
		return who, c.provideVolumes(ctx, ct)
	}
	if c.cfg.Images == nil {
		return who, fmt.Errorf("image %s: this agent has no image provisioner", cmp.Or(ct.spec.GetLocalImage(), imageLabel(askedImage(ct.spec))))
	}
	early := !c.cfg.SwitchUser || numericUser(ct.spec.GetUser()) && ct.docker.knowsUser()
	spec := ct.spec // before provision replaces it
	var rootfs string
	var config *containerv1.ImageConfig
	both, step := errgroup.WithContext(ctx)
	both.Go(func() error {
		step, cancel := context.WithTimeout(step, provisionTimeout)
		defer cancel()
		var err error
		if rootfs, config, err = c.provide(step, ct); err != nil {
			return err
		}
		if user := ct.docker.runsAs(spec, config); user != spec.GetUser() {
			spec = proto.CloneOf(spec)
			spec.User = user
		}
		if !early {
			return c.fill(step, ct, spec, rootfs, &who)
		}
		return nil
	})
	if early {
		both.Go(func() error { return c.fill(step, ct, ct.spec, "", &who) })
	}
	if err := both.Wait(); err != nil {
		return who, err
	}
	next := proto.CloneOf(spec)
	next.Rootfs, next.ImageConfig = rootfs, ct.docker.configOf(config)
	if next.SandboxInContainer == "" || next.SandboxInContainer == next.Sandbox {
		next.SandboxInContainer = sandboxInImage
	}
	ct.change(func() { ct.spec = next })
	return who, nil
}

// fill makes the sandbox with its stdout and stderr and fetches the URIs into it, all as the container's user.
func (c *Containerizer) fill(ctx context.Context, ct *container, spec *containerv1.Container, rootfs string, who *launcher.User) error {
	user, err := c.identify(spec.GetUser(), rootfs)
	if err != nil {
		return err
	}
	if err := c.keepsRoot(ct.docker, spec.GetUser(), user, rootfs); err != nil {
		return err
	}
	if err := c.joinGroups(ct.docker, &user, rootfs); err != nil {
		return err
	}
	*who = user
	if err := c.makeSandbox(spec, user); err != nil {
		return fmt.Errorf("make sandbox: %w", err)
	}
	if err := c.handOver(spec, user, !hasImage(spec)); err != nil {
		return err
	}
	uris := spec.GetCommand().GetUris()
	if len(uris) == 0 {
		return nil
	}
	if c.cfg.Fetcher == nil {
		return errors.New("this agent has no fetcher")
	}
	r := fetcher.Request{URIs: uris, Sandbox: spec.GetSandbox(), CacheKey: spec.GetUser()}
	r.Open = func() (*os.Root, error) { return c.openSandbox(spec) } // also where tasks may move it
	if c.cfg.SwitchUser {
		r.User = &fetcher.User{UID: user.UID, GID: user.GID, Groups: user.Groups}
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	if err := c.cfg.Fetcher.Fetch(ctx, r); err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	return nil
}

// imageName returns the image of a container as a path on this machine, or "" if it has none. It is for those agents
// whose images have no other names.
func imageName(spec *containerv1.Container) (string, error) {
	if local := spec.GetLocalImage(); local != "" {
		if !filepath.IsAbs(local) {
			return "", fmt.Errorf("image %q: want an absolute path", local)
		}
		return filepath.Clean(local), nil
	}
	image := spec.GetContainerInfo().GetMesos().GetImage()
	switch {
	case spec.GetContainerInfo().GetType() == mesosv1.ContainerInfo_DOCKER && spec.GetContainerInfo() != nil:
		return "", errors.New("container of type DOCKER: want it in the words of type MESOS by now") // by asDocker
	case image == nil:
		return "", nil
	case image.GetType() != mesosv1.Image_DOCKER:
		return "", fmt.Errorf("image of type %s: want DOCKER", image.GetType())
	}
	name := image.GetDocker().GetName()
	if p, ok := strings.CutPrefix(name, "file://"); ok {
		name = p
	}
	if !filepath.IsAbs(name) {
		return "", fmt.Errorf("image %q: this agent takes images from its own disk only, as an absolute path or a file:// URL to an OCI layout, "+
			"an image archive or a root filesystem; it pulls nothing from registries", image.GetDocker().GetName())
	}
	return filepath.Clean(name), nil
}

// hasImage says whether a container is to have a root filesystem of its own.
func hasImage(spec *containerv1.Container) bool {
	return spec.GetLocalImage() != "" || spec.GetContainerInfo().GetMesos().GetImage() != nil
}

// addOwnMounts adds what a container with its own root filesystem needs whatever its isolators say: its sandbox, its
// persistent volumes, and, while it shares the host's or its parent's network, the names that go with it. What an
// isolator mounts at the same place goes before.
func addOwnMounts(spec *containerv1.Container, parent *container, merged *containerv1.Spec) error {
	if spec.GetRootfs() == "" {
		return nil
	}
	if err := hidesSandbox(spec, merged.Merged.GetMounts()); err != nil {
		return err
	}
	m := merger{spec: merged}
	own := []*containerv1.Mount{{
		Destination: spec.GetSandboxInContainer(), Source: spec.GetSandbox(), Type: "bind", Options: []string{"rbind", "rw"},
	}}
	if owner := merged.Owners["namespaces."+containerv1.Namespace_NETWORK.String()]; owner == "" || owner == agentOwner {
		for _, m := range namesOf(parent) {
			if merged.Owners["mounts."+m.Destination] == "" {
				own = append(own, m)
			}
		}
	}
	volumes, err := volumeMounts(spec)
	if err != nil {
		return err
	}
	own = append(own, volumes...)
	for n, mount := range own {
		first, taken := merged.Owners["mounts."+mount.Destination]
		switch {
		case taken && first == agentOwner:
			return fmt.Errorf("mounts.%s is the place of two volumes", mount.Destination)
		case taken:
			return fmt.Errorf("%s set mounts.%s, which is the place of the sandbox or of a persistent volume", m.name(first), mount.Destination)
		}
		merged.Owners["mounts."+mount.Destination] = agentOwner
		if n == 0 { // first of all, so that isolators can mount below it
			m.spec.Merged.Mounts = append([]*containerv1.Mount{mount}, m.spec.Merged.Mounts...)
		} else {
			m.spec.Merged.Mounts = append(m.spec.Merged.Mounts, mount)
		}
	}
	return nil
}

// hidesSandbox refuses a read-only mount above the place of the sandbox, which could not be made below it. Above one that
// can be written the launcher makes the place, as Docker does.
func hidesSandbox(spec *containerv1.Container, mounts []*containerv1.Mount) error {
	for _, m := range mounts {
		rest, below := strings.CutPrefix(spec.GetSandboxInContainer(), strings.TrimSuffix(m.GetDestination(), "/")+"/")
		if !below || !slices.Contains(m.GetOptions(), "ro") {
			continue
		}
		if _, err := os.Lstat(filepath.Join(m.GetSource(), rest)); err != nil {
			return fmt.Errorf("a read-only volume at %s leaves no place for the sandbox, which is at %s: mount it elsewhere, or have the agent's sandbox_directory changed",
				m.GetDestination(), spec.GetSandboxInContainer())
		}
	}
	return nil
}

// agentOwner is the owner of settings that the agent made itself. No module can have this name.
const agentOwner = "(agent)"
