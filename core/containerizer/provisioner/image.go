package provisioner

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"

	"github.com/containerd/containerd/v2/pkg/archive"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// image is one image of a source.
type image struct {
	// key is the sha256 of the configuration in hex. It stands for the files too, since the configuration holds the
	// digests of the layers, which are checked while they are unpacked.
	key    string
	config *containerv1.ImageConfig
	layers []layer // lowest first
}

type layer struct {
	open   func() (io.ReadCloser, int64, error)
	diffID string // sha256:hex of the plain tar
}

// Media types of lists of images, OCI's and Docker's.
const dockerList = "application/vnd.docker.distribution.manifest.list.v2+json"

// maxIndexDepth bounds lists of images in lists of images.
const maxIndexDepth = 4

// image finds the image for this machine. An archive may hold both forms at once; OCI's goes before.
func (s *source) image() (*image, error) {
	switch {
	case s.has("index.json"):
		return s.fromLayout()
	case s.has("manifest.json"):
		return s.fromDocker()
	}
	return nil, errors.New("neither an OCI image (no index.json) nor one of docker save (no manifest.json)")
}

// fromLayout reads an OCI layout. Source: OCI image specification 1.1, image-layout.md and image-index.md.
func (s *source) fromLayout() (*image, error) {
	b, err := s.document("index.json")
	if err != nil {
		return nil, err
	}
	d, err := s.choose(b, 0)
	if err != nil {
		return nil, err
	}
	if b, err = s.blob(d); err != nil {
		return nil, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	config, err := s.blob(m.Config)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range m.Layers {
		name, err := blobName(l)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return s.assemble(config, names)
}

// choose returns the manifest for this machine from a list of images.
func (s *source) choose(list []byte, depth int) (v1.Descriptor, error) {
	var index v1.Index
	if err := json.Unmarshal(list, &index); err != nil {
		return v1.Descriptor{}, fmt.Errorf("index: %w", err)
	}
	if depth > maxIndexDepth {
		return v1.Descriptor{}, errors.New("index: lists of images are nested too deep")
	}
	var fitting []v1.Descriptor
	var other []string
	for _, d := range index.Manifests {
		p := d.Platform
		if p != nil && p.OS != "" && (p.OS != "linux" || p.Architecture != runtime.GOARCH) {
			other = append(other, p.OS+"/"+p.Architecture)
			continue
		}
		fitting = append(fitting, d)
	}
	switch len(fitting) {
	case 0:
		return v1.Descriptor{}, fmt.Errorf("image has nothing for linux/%s: got %s", runtime.GOARCH, strings.Join(other, ", "))
	case 1:
	default:
		return v1.Descriptor{}, fmt.Errorf("image path holds %d images for linux/%s, want one", len(fitting), runtime.GOARCH)
	}
	d := fitting[0]
	if d.MediaType != v1.MediaTypeImageIndex && d.MediaType != dockerList {
		return d, nil
	}
	b, err := s.blob(d)
	if err != nil {
		return d, err
	}
	return s.choose(b, depth+1)
}

// blobName is where a layout keeps what a descriptor names.
func blobName(d v1.Descriptor) (string, error) {
	hexDigest, ok := strings.CutPrefix(string(d.Digest), "sha256:")
	if _, err := hex.DecodeString(hexDigest); !ok || err != nil || len(hexDigest) != 2*sha256.Size {
		return "", fmt.Errorf("digest %q: want sha256: and 64 hex digits", d.Digest)
	}
	return path.Join("blobs", "sha256", hexDigest), nil
}

// blob reads a document that a descriptor names, and checks that it is the one.
func (s *source) blob(d v1.Descriptor) ([]byte, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, err
	}
	b, err := s.document(name)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(b); "sha256:"+hex.EncodeToString(sum[:]) != string(d.Digest) {
		return nil, fmt.Errorf("%s: content does not match its digest", d.Digest)
	}
	return b, nil
}

// fromDocker reads what `docker save` writes.
func (s *source) fromDocker() (*image, error) {
	b, err := s.document("manifest.json")
	if err != nil {
		return nil, err
	}
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	if len(list) != 1 {
		return nil, fmt.Errorf("archive holds %d images, want one", len(list))
	}
	config, err := s.document(list[0].Config)
	if err != nil {
		return nil, err
	}
	return s.assemble(config, list[0].Layers)
}

// assemble joins a configuration and the names of its layers' files.
func (s *source) assemble(config []byte, names []string) (*image, error) {
	var c v1.Image
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	if len(c.RootFS.DiffIDs) != len(names) || len(names) == 0 {
		return nil, fmt.Errorf("image configuration names %d layers and the manifest %d, want the same and at least one", len(c.RootFS.DiffIDs), len(names))
	}
	sum := sha256.Sum256(config)
	img := &image{key: hex.EncodeToString(sum[:]), config: &containerv1.ImageConfig{
		Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Environment: c.Config.Env,
		WorkingDirectory: c.Config.WorkingDir, User: c.Config.User, Labels: c.Config.Labels,
		StopSignal: c.Config.StopSignal,
	}}
	for n, name := range names {
		img.layers = append(img.layers, layer{
			open:   func() (io.ReadCloser, int64, error) { return s.open(name) },
			diffID: string(c.RootFS.DiffIDs[n]),
		})
	}
	return img, nil
}

// unpack applies the layers, lowest first, to an empty folder, and checks each against its digest.
func (i *image) unpack(ctx context.Context, rootfs string, most int64) error {
	for _, l := range i.layers {
		n, err := l.apply(ctx, rootfs, most)
		if err != nil {
			return fmt.Errorf("layer %s: %w", l.diffID, err)
		}
		most -= n
	}
	return nil
}

func (l layer) apply(ctx context.Context, rootfs string, most int64) (int64, error) {
	in, _, err := l.open()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	plain, err := decompress(in)
	if err != nil {
		return 0, err
	}
	defer plain.Close()
	sum := sha256.New()
	stream := &limited{ctx: ctx, r: io.TeeReader(plain, sum), left: most}
	var opts []archive.ApplyOpt
	if os.Geteuid() != 0 {
		opts = append(opts, archive.WithNoSameOwner())
	}
	if _, err := archive.Apply(ctx, rootfs, stream, opts...); err != nil {
		if stream.err != nil {
			err = stream.err
		}
		return 0, err
	}
	if _, err := io.Copy(io.Discard, stream); err != nil { // what lies behind the end of the tar counts for the digest
		return 0, err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != l.diffID {
		return 0, fmt.Errorf("content does not match its digest: got %s", got)
	}
	return most - stream.left, nil
}

// limited ends with its context, and with an error once too much came.
type limited struct {
	ctx  context.Context
	r    io.Reader
	left int64
	err  error
}

func (l *limited) Read(b []byte) (int, error) {
	if l.ctx.Err() != nil {
		l.err = context.Cause(l.ctx)
		return 0, l.err
	}
	n, err := l.r.Read(b)
	if l.left -= int64(n); l.left < 0 {
		l.err = errors.New("image is larger than allowed")
		return 0, l.err
	}
	return n, err
}
