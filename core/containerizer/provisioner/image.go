package provisioner

import (
	"cmp"
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
	"slices"
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

// image finds the image for this machine: of several the one that which says, as :NAME or @DIGEST. An archive may hold both
// forms at once; OCI's goes before.
func (s *source) image(which string) (*image, error) {
	switch {
	case s.has("index.json"):
		return s.fromLayout(which)
	case s.has("manifest.json"):
		return s.fromDocker(which)
	}
	return nil, errors.New("neither an OCI image (no index.json) nor one of docker save (no manifest.json)")
}

// fromLayout reads an OCI layout. Source: OCI image specification 1.1, image-layout.md and image-index.md.
func (s *source) fromLayout(which string) (*image, error) {
	b, err := s.document("index.json")
	if err != nil {
		return nil, err
	}
	d, err := s.choose(b, which, 0)
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

// choose returns the manifest for this machine from a list of images. Those that a layout has, or an archive, have names;
// those for one machine and another in a list do not.
func (s *source) choose(list []byte, which string, depth int) (v1.Descriptor, error) {
	var index v1.Index
	if err := json.Unmarshal(list, &index); err != nil {
		return v1.Descriptor{}, fmt.Errorf("index: %w", err)
	}
	if depth > maxIndexDepth {
		return v1.Descriptor{}, errors.New("index: lists of images are nested too deep")
	}
	var fitting []v1.Descriptor
	var other, names []string
	for _, d := range index.Manifests {
		name := d.Annotations[v1.AnnotationRefName]
		names = append(names, cmp.Or(name, string(d.Digest)))
		if which != "" && !means(which, string(d.Digest), name, d.Annotations[containerdName]) {
			continue
		}
		p := d.Platform
		if p != nil && p.OS != "" && (p.OS != "linux" || p.Architecture != runtime.GOARCH) {
			other = append(other, p.OS+"/"+p.Architecture)
			continue
		}
		if slices.ContainsFunc(fitting, func(f v1.Descriptor) bool { return f.Digest == d.Digest }) {
			continue // one image with two names
		}
		fitting = append(fitting, d)
	}
	switch len(fitting) {
	case 0:
		if which != "" && len(other) == 0 {
			return v1.Descriptor{}, noSuch(which, names)
		}
		return v1.Descriptor{}, fmt.Errorf("image has nothing for linux/%s: got %s", runtime.GOARCH, strings.Join(other, ", "))
	case 1:
	default:
		return v1.Descriptor{}, fmt.Errorf("image path holds %d images for linux/%s, want one, or PATH:NAME: got %s", len(fitting), runtime.GOARCH, listed(names))
	}
	d := fitting[0]
	if d.MediaType != v1.MediaTypeImageIndex && d.MediaType != dockerList {
		return d, nil
	}
	b, err := s.blob(d)
	if err != nil {
		return d, err
	}
	return s.choose(b, "", depth+1)
}

// containerdName is an annotation with the whole name of an image, which docker save and containerd write.
const containerdName = "io.containerd.image.name"

// means says whether which, as :NAME or @DIGEST, is the image with that digest and one of those names. The tag will do.
func means(which, digest string, names ...string) bool {
	kind, want := which[0], which[1:]
	if kind == '@' {
		return want == digest
	}
	return want != "" && slices.ContainsFunc(names, func(n string) bool { return n == want || strings.HasSuffix(n, ":"+want) })
}

func noSuch(which string, names []string) error {
	return fmt.Errorf("image path has no image %s: got %s", clipName(which[1:]), listed(names))
}

// listed are names as an error shows them.
func listed(names []string) string {
	const most = 10
	if len(names) > most {
		names = append(slices.Clone(names[:most]), "...")
	}
	return strings.Join(names, ", ")
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
func (s *source) fromDocker(which string) (*image, error) {
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
	var names []string
	chosen := -1
	for n, i := range list {
		names = append(names, i.RepoTags...)
		digest := "sha256:" + strings.TrimPrefix(strings.TrimSuffix(path.Base(i.Config), ".json"), "sha256:") // of the configuration: there is no other
		if which != "" && means(which, digest, i.RepoTags...) || which == "" && len(list) == 1 {
			chosen = n
		}
	}
	switch {
	case chosen < 0 && which != "":
		return nil, noSuch(which, names)
	case chosen < 0:
		return nil, fmt.Errorf("archive holds %d images, want one, or PATH:NAME: got %s", len(list), listed(names))
	}
	config, err := s.document(list[chosen].Config)
	if err != nil {
		return nil, err
	}
	return s.assemble(config, list[chosen].Layers)
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
