package provisioner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner/registry"
)

// applier unpacks the layers of one pull, one after the other, into the folders that the snapshotter gives. Unlike
// containerd's it ends with its context also while it writes, and bounds what layers unpack to.
type applier struct {
	content content.Provider
	left    int64 // bytes that may still come
	tell    func(d digest.Digest)
}

// Apply unpacks a layer and returns the digest of its plain tar, which the caller compares. It need not be on disk then:
// keep sees to that for all layers of an image.
func (a *applier) Apply(ctx context.Context, d v1.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (v1.Descriptor, error) {
	a.tell(d.Digest)
	dir, opts, err := target(mounts)
	if err != nil {
		return v1.Descriptor{}, err
	}
	blob, err := a.content.ReaderAt(ctx, d)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer blob.Close()
	plain, err := decompress(content.NewReader(blob))
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer plain.Close()
	sum := digest.SHA256.Digester()
	stream := &limited{ctx: ctx, r: io.TeeReader(plain, sum.Hash()), left: a.left}
	if _, err := archive.Apply(ctx, dir, stream, opts...); err != nil {
		if stream.err != nil {
			err = stream.err
		}
		return v1.Descriptor{}, err
	}
	if _, err := io.Copy(io.Discard, stream); err != nil { // what lies behind the end of the tar counts for the digest
		return v1.Descriptor{}, err
	}
	size := a.left - stream.left
	a.left = stream.left
	return v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: sum.Digest(), Size: size}, nil
}

// target is the folder that a snapshot's own files go to. Above other layers, what a layer removes becomes what
// overlayfs takes for removed; without any below, there is nothing to remove.
func target(mounts []mount.Mount) (string, []archive.ApplyOpt, error) {
	if len(mounts) != 1 {
		return "", nil, fmt.Errorf("layer is to be unpacked to %d mounts, want one", len(mounts))
	}
	if m := mounts[0]; m.Type == "bind" {
		return m.Source, nil, nil
	}
	var upper string
	var parents []string
	for _, o := range mounts[0].Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = dir
		}
		if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
			parents = strings.Split(dirs, ":")
		}
	}
	if upper == "" {
		return "", nil, errors.New("layer is to be unpacked to a mount without a folder of its own")
	}
	return upper, []archive.ApplyOpt{archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(parents)}, nil
}

// corrupt says whether an unpack failed because a layer was not what the configuration says.
func corrupt(err error) error {
	if err != nil && strings.Contains(err.Error(), "wrong diff id") {
		return fmt.Errorf("%w: %w", registry.ErrCorrupt, err)
	}
	return err
}
