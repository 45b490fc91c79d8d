package provisioner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"

	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner/registry"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// fromURL finds an image whose archive is at a URL.
func (p *Provisioner) fromURL(ctx context.Context, address string, fresh bool, see func(*progress)) (*base, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return nil, errors.New("malformed URL of an image")
	}
	name := u.Redacted()
	if b, ok := p.whole(name); ok && !fresh {
		return b, nil
	}
	got, err := p.pull(ctx, ask{
		name: name, key: keyOf(name, []byte(address), fresh), see: see,
		do: func(ctx context.Context, progress *progress) (*pulled, error) {
			var got *pulled
			err := p.repeat(ctx, name, progress, func() error {
				return p.download(ctx, address, progress, func(path string) error {
					src, err := open(path, p.dir("tmp"))
					if err != nil {
						return err
					}
					defer src.Close()
					img, err := src.image("")
					if err != nil {
						return err
					}
					got = &pulled{name: name, config: img.config, flat: img.key, layers: len(img.layers)}
					return p.unpackOnce(ctx, name, img)
				})
			})
			return got, err
		},
	})
	if err != nil {
		return nil, err
	}
	return got.base(), nil
}

// download brings what a URL names to a file that use may read, and removes the file.
func (p *Provisioner) download(ctx context.Context, address string, progress *progress, use func(path string) error) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(p.cfg.PullStall, func() {
		cancel(fmt.Errorf("%w: nothing came for %s", registry.ErrStalled, p.cfg.PullStall))
	})
	defer timer.Stop()
	fail := func(err error) error {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		var wrapped *url.Error // its text has the URL, with a password perhaps
		if errors.As(err, &wrapped) {
			return wrapped.Err
		}
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return errors.New("malformed URL of an image")
	}
	resp, err := p.registries.HTTP().Do(req)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return remoteserrors.ErrUnexpectedStatus{Status: resp.Status, StatusCode: resp.StatusCode, RequestMethod: "GET", RequestURL: req.URL.Redacted()}
	}
	if resp.ContentLength > p.cfg.MaxSize {
		return errors.New("image is larger than allowed")
	}
	f, err := os.CreateTemp(p.dir("tmp"), "download-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	d := v1.Descriptor{Digest: digest.FromString(address), Size: max(resp.ContentLength, 0)}
	progress.expect([]v1.Descriptor{d})
	progress.state(operator.PullDownloading, nil)
	body := &fed{r: &limited{ctx: ctx, r: resp.Body, left: p.cfg.MaxSize}, more: func(at int64) {
		timer.Reset(p.cfg.PullStall)
		progress.layer(d.Digest, func(l *operator.Layer) {
			l.State, l.Done, l.Total = operator.PullDownloading, at, max(l.Total, at)
		})
	}}
	n, err := io.Copy(f, body)
	timer.Stop()
	if err == nil && resp.ContentLength >= 0 && n < resp.ContentLength {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fail(err)
	}
	progress.unpacking(d.Digest)
	return use(f.Name())
}

// fed tells how much came.
type fed struct {
	r    io.Reader
	at   int64
	more func(at int64)
}

func (f *fed) Read(b []byte) (int, error) {
	n, err := f.r.Read(b)
	if n > 0 {
		f.at += int64(n)
		f.more(f.at)
	}
	return n, err
}
