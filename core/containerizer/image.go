package containerizer

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// A NamedImages is Images that has them by the names frameworks give them, too, and brings what is not there. Without
// one containers run in images of this machine's own disk only. *provisioner.Provisioner is one.
type NamedImages interface {
	Images
	// ProvisionImage is Provision from an image as a framework names it.
	ProvisionImage(ctx context.Context, id string, image *mesosv1.Image) (rootfs string, config *containerv1.ImageConfig, err error)
	// ProvisionVolume makes the files of one more image available to a container, and says where. name tells several of one
	// container apart. Remove takes them away with the rest.
	ProvisionVolume(ctx context.Context, id, name string, image *mesosv1.Image, readOnly bool) (string, error)
}

// askedImage is the image a framework asks for as the container's root filesystem, nil if an operator's tools named one
// on this machine, or nobody any.
func askedImage(spec *containerv1.Container) *mesosv1.Image {
	if spec.GetLocalImage() != "" {
		return nil
	}
	return spec.GetContainerInfo().GetMesos().GetImage()
}

// imageLabel is an image as errors name it.
func imageLabel(image *mesosv1.Image) string {
	if image.GetType() == mesosv1.Image_APPC {
		return image.GetAppc().GetName()
	}
	return image.GetDocker().GetName()
}

// provide makes the container's root filesystem and the files of its volumes that are images.
func (c *Containerizer) provide(ctx context.Context, ct *container) (rootfs string, config *containerv1.ImageConfig, err error) {
	named, pulls := c.cfg.Images.(NamedImages)
	image := askedImage(ct.spec)
	if image != nil && pulls {
		if rootfs, config, err = named.ProvisionImage(ctx, ct.id, image); err != nil {
			return "", nil, fmt.Errorf("image %s: %w", imageLabel(image), err)
		}
	} else {
		name, err := imageName(ct.spec)
		if err != nil {
			return "", nil, err
		}
		if rootfs, config, err = c.cfg.Images.Provision(ctx, ct.id, name); err != nil {
			return "", nil, fmt.Errorf("image %s: %w", name, err)
		}
	}
	return rootfs, config, c.provideVolumes(ctx, ct)
}

// provideVolumes makes the files of a container's volumes that are images.
func (c *Containerizer) provideVolumes(ctx context.Context, ct *container) error {
	named, pulls := c.cfg.Images.(NamedImages)
	for n, v := range ct.spec.GetContainerInfo().GetVolumes() {
		if v.GetImage() == nil {
			continue
		}
		if !pulls {
			return fmt.Errorf("volume at %s: image %s: this agent has no images by name", v.GetContainerPath(), imageLabel(v.GetImage()))
		}
		where, err := named.ProvisionVolume(ctx, ct.id, fmt.Sprintf("v%d", n), v.GetImage(), v.GetMode() == mesosv1.Volume_RO)
		if err != nil {
			return fmt.Errorf("volume at %s: image %s: %w", v.GetContainerPath(), imageLabel(v.GetImage()), err)
		}
		if ct.imageVolumes == nil {
			ct.imageVolumes = map[int]string{}
		}
		ct.imageVolumes[n] = where
	}
	return nil
}

// showImages mounts a container's volumes that are images, which unmet would find missing otherwise.
func (c *Containerizer) showImages(ct *container, merged *containerv1.Spec) error {
	for n, v := range ct.spec.GetContainerInfo().GetVolumes() {
		source, ok := ct.imageVolumes[n] // a folder always
		if !ok {
			continue
		}
		where := v.GetContainerPath()
		if !path.IsAbs(where) {
			if !filepath.IsLocal(where) || path.Clean(where) == "." {
				return fmt.Errorf("volume at %s: want a path below the sandbox or an absolute one", v.GetContainerPath())
			}
			where = path.Join(inContainer(ct.spec), where)
		}
		if where = path.Clean(where); where == "/" {
			return fmt.Errorf("volume at %s: the root is the container's own image", v.GetContainerPath())
		}
		if first := merged.Owners["mounts."+where]; first != "" {
			return fmt.Errorf("volume at %s: %s mounts something there, too", v.GetContainerPath(), first)
		}
		mode := "ro"
		if v.GetMode() == mesosv1.Volume_RW {
			mode = "rw"
		}
		if ct.spec.GetRootfs() == "" {
			if err := c.placeOnHost(ct.spec, v.GetContainerPath(), true); err != nil {
				return fmt.Errorf("volume at %s: %w", v.GetContainerPath(), err)
			}
		}
		merged.Owners["mounts."+where] = agentOwner
		merged.Merged.Mounts = append(merged.Merged.Mounts, &containerv1.Mount{Destination: where, Source: source, Type: "bind", Options: []string{"rbind", mode}})
	}
	return nil
}

// usesImages says whether a container has images, be it as its root filesystem or as volumes.
func usesImages(spec *containerv1.Container) bool {
	return hasImage(spec) || slices.ContainsFunc(spec.GetContainerInfo().GetVolumes(), func(v *mesosv1.Volume) bool { return v.GetImage() != nil })
}
