package provisioner

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// find finds what an image is made of, which may mean pulling it. fresh does so even if an image of that name is there.
func (p *Provisioner) find(ctx context.Context, image *mesosv1.Image, fresh bool) (*base, error) {
	switch image.GetType() {
	case mesosv1.Image_APPC:
		return p.appc(ctx, image.GetAppc(), fresh)
	case mesosv1.Image_DOCKER:
	default:
		return nil, fmt.Errorf("image of type %s: want DOCKER or APPC", image.GetType())
	}
	docker := image.GetDocker()
	if path, ok := onDisk(docker.GetName()); ok {
		return p.lower(ctx, path)
	}
	config, err := p.ownConfig(ctx, docker.GetConfig())
	if err != nil {
		return nil, err
	}
	creds, err := credentials(config, docker)
	if err != nil {
		return nil, err
	}
	return p.named(ctx, docker.GetName(), creds, fresh, nil)
}

// ownConfig is the Docker configuration that comes with an image, nil if none does.
func (p *Provisioner) ownConfig(ctx context.Context, secret *mesosv1.Secret) ([]byte, error) {
	switch {
	case secret == nil:
		return nil, nil
	case secret.GetType() == mesosv1.Secret_VALUE:
		return append([]byte{}, secret.GetValue().GetData()...), nil // nobody has to resolve it; one that is empty is refused as such
	case p.cfg.Secret == nil:
		return nil, errors.New("image comes with a Docker configuration, and this agent cannot read secrets")
	}
	config, err := p.cfg.Secret(ctx, secret)
	if err != nil {
		return nil, fmt.Errorf("read the image's Docker configuration: %w", err)
	}
	return config, nil
}

// credentials are those that come with an image.
func credentials(config []byte, docker *mesosv1.Image_Docker) (*pullAs, error) {
	switch c := docker.GetCredential(); { // deprecated, and in use
	case config != nil:
		creds, err := registry.ParseCredentials(config)
		if err != nil {
			return nil, err
		}
		return &pullAs{creds: creds, sum: string(config)}, nil
	case c != nil:
		ref, err := registry.Parse(docker.GetName(), registry.DockerHub)
		if err != nil {
			return nil, err
		}
		creds, err := registry.Basic(ref.Host, c.GetPrincipal(), c.GetSecret())
		if err != nil {
			return nil, err
		}
		return &pullAs{creds: creds, sum: c.GetPrincipal() + "\x00" + c.GetSecret()}, nil
	}
	return nil, nil
}

// pullAs is as whom an image is pulled; nil is whom the operator says.
type pullAs struct {
	creds *registry.Credentials
	sum   string // tells one from another
}

// onDisk says whether a name is a path on this machine, and which.
func onDisk(name string) (string, bool) {
	if path, ok := strings.CutPrefix(name, "file://"); ok {
		return filepath.Clean("/" + path), true
	}
	return filepath.Clean(name), filepath.IsAbs(name)
}

// named finds an image by its name: of a registry, a URL, a path. see, if given, is told of the progress when it has to be
// pulled.
func (p *Provisioner) named(ctx context.Context, name string, who *pullAs, fresh bool, see func(*progress)) (*base, error) {
	if path, ok := onDisk(name); ok {
		return p.lower(ctx, path)
	}
	if strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://") {
		return p.fromURL(ctx, name, fresh, see)
	}
	ref, err := p.registries.Parse(name)
	if err != nil {
		return nil, err
	}
	if p.cfg.Archives != "" {
		return p.lower(ctx, filepath.Join(p.cfg.Archives, archiveName(name, ref)))
	}
	s, err := p.opened(ctx)
	if err != nil {
		return nil, err
	}
	whole := ref.String()
	if !fresh {
		got, ok, err := s.find(ctx, whole)
		if err != nil {
			return nil, fmt.Errorf("look for image %s: %w", whole, err)
		}
		if ok && (got.flat == "" || isDir(p.dir("images", got.flat, "rootfs"))) {
			return got.base(), nil
		}
	}
	var creds *registry.Credentials
	var sum string
	if who != nil {
		creds, sum = who.creds, who.sum
	}
	got, err := p.pull(ctx, ask{
		name: whole, key: keyOf(whole, []byte(sum), fresh), see: see,
		do: func(ctx context.Context, progress *progress) (*pulled, error) {
			return p.fromRegistry(ctx, s, ref, creds, progress)
		},
	})
	if err != nil {
		return nil, err
	}
	return got.base(), nil
}

// archiveName is what the archive of an image is called in the operator's folder: the name as it was given, with a tag.
// Parse has seen to it that no part of the name leads elsewhere.
func archiveName(name string, ref registry.Reference) string {
	if ref.Digest == "" && !strings.HasSuffix(name, ":"+ref.Tag) {
		name += ":" + ref.Tag
	}
	return name + ".tar"
}

func (p *pulled) base() *base {
	return &base{name: p.name, config: p.config, chain: p.chain, flat: p.flat}
}
