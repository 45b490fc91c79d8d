package provisioner

import (
	"archive/tar"
	"compress/bzip2"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/ulikunitz/xz"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// appcName is what names, versions and the like are made of. Source: App Container specification 0.8, types.
var appcName = regexp.MustCompile(`^[A-Za-z0-9]+([-._~/+][A-Za-z0-9]+)*$`)

// appcID is the id of an image: the digest of its plain archive.
var appcID = regexp.MustCompile(`^sha512-[0-9a-f]{32,128}$`)

// appc finds an Appc image: in the operator's store by its id, else kept from before, else by simple discovery.
func (p *Provisioner) appc(ctx context.Context, image *mesosv1.Image_Appc, fresh bool) (*base, error) {
	if !appcName.MatchString(image.GetName()) {
		return nil, fmt.Errorf("appc image %q: want letters and digits with -._~/ between them", clipName(image.GetName()))
	}
	labels := map[string]string{"version": "latest", "os": "linux", "arch": runtime.GOARCH}
	for _, l := range image.GetLabels().GetLabels() {
		if !appcName.MatchString(l.GetValue()) || strings.Contains(l.GetValue(), "/") {
			return nil, fmt.Errorf("appc image %s: label %s: got %q, want letters and digits with -._~ between them", image.GetName(), l.GetKey(), clipName(l.GetValue()))
		}
		labels[l.GetKey()] = l.GetValue()
	}
	id := image.GetId()
	if id != "" && !appcID.MatchString(id) {
		return nil, fmt.Errorf("appc image %s: id %q: want sha512- and hex digits", image.GetName(), clipName(id))
	}
	file := fmt.Sprintf("%s-%s-%s-%s.aci", image.GetName(), labels["version"], labels["os"], labels["arch"])
	if id != "" && p.cfg.AppcStore != "" {
		b, err := p.appcStored(id, image.GetName())
		if !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
	}
	if p.cfg.AppcPrefix == "" {
		return nil, fmt.Errorf("appc image %s: this agent has no place to look for Appc images", image.GetName())
	}
	name := p.cfg.AppcPrefix + file
	if b, ok := p.whole(name); ok && !fresh && id == "" {
		return b, nil
	}
	if at, ok := onDisk(p.cfg.AppcPrefix); ok {
		return p.appcFile(ctx, filepath.Join(at, file), name, image, labels)
	}
	var found *base
	got, err := p.pull(ctx, ask{
		name: name, key: keyOf(name, []byte(id), fresh),
		do: func(ctx context.Context, progress *progress) (*pulled, error) {
			err := p.repeat(ctx, name, progress, func() error {
				return p.download(ctx, name, progress, func(path string) (err error) {
					found, err = p.appcFile(ctx, path, name, image, labels)
					return err
				})
			})
			if err != nil {
				return nil, err
			}
			return &pulled{name: name, config: found.config, flat: found.flat, layers: 1}, nil
		},
	})
	if err != nil {
		return nil, err
	}
	return got.base(), nil
}

func clipName(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}

// appcStored is an image in the operator's store, which is the operator's: it is used as it is and never removed.
func (p *Provisioner) appcStored(id, name string) (*base, error) {
	dir := filepath.Join(p.cfg.AppcStore, "images", id)
	f, err := os.Open(filepath.Join(dir, "manifest"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDocument))
	if err != nil {
		return nil, err
	}
	m, err := readAppc(b)
	if err != nil {
		return nil, err
	}
	if m.Name != name {
		return nil, fmt.Errorf("appc image %s in the store is called %s, want %s", id, m.Name, name)
	}
	if !isDir(filepath.Join(dir, "rootfs")) {
		return nil, fmt.Errorf("appc image %s in the store has no rootfs", id)
	}
	return &base{name: name, config: m.config(), folder: filepath.Join(dir, "rootfs")}, nil
}

// appcFile unpacks an archive, once, and checks that it is the image that was asked for.
func (p *Provisioner) appcFile(ctx context.Context, file, name string, image *mesosv1.Image_Appc, labels map[string]string) (*base, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	plain, err := inflateAppc(f)
	if err != nil {
		return nil, err
	}
	sum := sha512.New()
	stream := &limited{ctx: ctx, r: plain, left: p.cfg.MaxSize}
	m, err := manifestOf(io.TeeReader(stream, sum))
	if err != nil {
		if stream.err != nil {
			err = stream.err
		}
		return nil, fmt.Errorf("appc image %s: %w", image.GetName(), err)
	}
	digest := hex.EncodeToString(sum.Sum(nil))
	if want, _ := strings.CutPrefix(image.GetId(), "sha512-"); !strings.HasPrefix(digest, want) {
		return nil, fmt.Errorf("appc image %s: content does not match its id: got sha512-%s", image.GetName(), digest)
	}
	if err := m.fits(image.GetName(), labels); err != nil {
		return nil, err
	}
	key := digest[:64] // as long as other keys
	config := m.config()
	err = p.unpackWhole(ctx, name, key, func(ctx context.Context, rootfs string) (*record, error) {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		plain, err := inflateAppc(f)
		if err != nil {
			return nil, err
		}
		again := sha512.New()
		stream := &limited{ctx: ctx, r: io.TeeReader(plain, again), left: p.cfg.MaxSize}
		if err := applyAppc(ctx, rootfs, stream); err != nil {
			return nil, err
		}
		if hex.EncodeToString(again.Sum(nil)) != digest {
			return nil, errors.New("archive changed while it was read")
		}
		return &record{Config: config, Layers: 1}, nil
	})
	if err != nil {
		return nil, err
	}
	return &base{name: name, config: config, flat: key}, nil
}

// inflateAppc returns the plain archive: the specification allows gzip, bzip2 and xz.
func inflateAppc(f *os.File) (io.Reader, error) {
	var magic [6]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case string(magic[:3]) == "BZh":
		return bzip2.NewReader(f), nil
	case string(magic[:]) == "\xfd7zXZ\x00":
		return xz.ReaderConfig{DictCap: maxWindow, SingleStream: true}.NewReader(f)
	}
	return decompress(f)
}

// appcManifest is what we need of an image manifest.
type appcManifest struct {
	Kind   string `json:"acKind"`
	Name   string `json:"name"`
	Labels []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"labels"`
	App struct {
		Exec             []string `json:"exec"`
		User             string   `json:"user"`
		Group            string   `json:"group"`
		WorkingDirectory string   `json:"workingDirectory"`
		Environment      []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"environment"`
	} `json:"app"`
	Dependencies []struct {
		ImageName string `json:"imageName"`
	} `json:"dependencies"`
	PathWhitelist []string `json:"pathWhitelist"`
}

func readAppc(b []byte) (*appcManifest, error) {
	m := new(appcManifest)
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if m.Kind != "ImageManifest" {
		return nil, fmt.Errorf("manifest is of kind %q, want ImageManifest", clipName(m.Kind))
	}
	if len(m.Dependencies) > 0 {
		return nil, fmt.Errorf("image depends on %s: this agent takes images that are whole", clipName(m.Dependencies[0].ImageName))
	}
	if len(m.PathWhitelist) > 0 {
		return nil, errors.New("image has a pathWhitelist: this agent takes images as they are")
	}
	return m, nil
}

// manifestOf finds the manifest in an archive, and reads the archive to its end.
func manifestOf(r io.Reader) (*appcManifest, error) {
	var m *appcManifest
	t := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if n == maxAppcEntries {
			return nil, fmt.Errorf("more than %d files", maxAppcEntries)
		}
		if path.Clean(h.Name) != "manifest" || h.Typeflag != tar.TypeReg || m != nil {
			continue
		}
		if h.Size > maxDocument {
			return nil, fmt.Errorf("manifest has %d bytes, want at most %d", h.Size, maxDocument)
		}
		b, err := io.ReadAll(t)
		if err != nil {
			return nil, err
		}
		if m, err = readAppc(b); err != nil {
			return nil, err
		}
	}
	if m == nil {
		return nil, errors.New("archive has no manifest")
	}
	_, err := io.Copy(io.Discard, r)
	return m, err
}

// maxAppcEntries bounds the files of an image: a large distribution has some 500,000.
const maxAppcEntries = 5_000_000

// fits checks that an image is what was asked for.
func (m *appcManifest) fits(name string, labels map[string]string) error {
	if m.Name != name {
		return fmt.Errorf("appc image is called %q, want %s", clipName(m.Name), name)
	}
	for _, l := range m.Labels {
		want := labels[l.Name]
		if (l.Name == "os" || l.Name == "arch") && l.Value != want {
			return fmt.Errorf("appc image %s: label %s is %q, want %s", name, l.Name, clipName(l.Value), want)
		}
	}
	return nil
}

// config is what a container makes of the manifest.
func (m *appcManifest) config() *containerv1.ImageConfig {
	c := &containerv1.ImageConfig{Entrypoint: m.App.Exec, WorkingDirectory: m.App.WorkingDirectory, User: m.App.User}
	if m.App.User != "" && m.App.Group != "" {
		c.User += ":" + m.App.Group
	}
	for _, e := range m.App.Environment {
		c.Environment = append(c.Environment, e.Name+"="+e.Value)
	}
	return c
}

// applyAppc unpacks what lies below rootfs in an archive, with the care that layers are unpacked with.
func applyAppc(ctx context.Context, rootfs string, r *limited) error {
	out, in := io.Pipe()
	converted := make(chan error, 1)
	go func() {
		err := rebase(in, r)
		in.CloseWithError(err)
		converted <- err
	}()
	var opts []archive.ApplyOpt
	if os.Geteuid() != 0 {
		opts = append(opts, archive.WithNoSameOwner())
	}
	_, err := archive.Apply(ctx, rootfs, out, opts...)
	if err == nil {
		_, err = io.Copy(io.Discard, out)
	}
	out.CloseWithError(errors.New("given up"))
	if cerr := <-converted; err == nil {
		err = cerr
	}
	if r.err != nil {
		return r.err
	}
	return err
}

// rebase copies the entries below rootfs, with names and hard links as seen from there. Files whose names mean removal
// in layers are files like others here, and cannot be kept; an image with such is refused.
func rebase(w io.Writer, r io.Reader) error {
	from, to := tar.NewReader(r), tar.NewWriter(w)
	for {
		h, err := from.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		name, ok := below(h.Name)
		if !ok {
			continue
		}
		if strings.HasPrefix(path.Base(name), ".wh.") {
			return fmt.Errorf("%s: names that begin with .wh. cannot be kept", clipName(name))
		}
		h.Name = name
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		if h.Typeflag == tar.TypeLink {
			if h.Linkname, ok = below(h.Linkname); !ok {
				return fmt.Errorf("%s is a hard link to what is not in rootfs", clipName(name))
			}
		}
		if err := to.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(to, from); err != nil {
			return err
		}
	}
	if err := to.Close(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r) // what lies behind the end of the tar counts for the digest
	return err
}

func below(name string) (string, bool) {
	name = strings.TrimPrefix(path.Clean(strings.TrimLeft(name, "/")), "./")
	if name == "rootfs" {
		return ".", true
	}
	return strings.CutPrefix(name, "rootfs/")
}
