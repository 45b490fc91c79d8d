package provisioner

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner/registry"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// depot is a registry on this machine.
type depot struct {
	host string
	http *httptest.Server

	mu       sync.Mutex
	requests []string                                                // guarded by mu
	first    func(w http.ResponseWriter, r *http.Request) (end bool) // guarded by mu; sees requests first
}

func newDepot(t testing.TB, start ...func(*httptest.Server)) *depot {
	t.Helper()
	d := &depot{}
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	d.http = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		d.requests = append(d.requests, r.Method+" "+r.URL.Path)
		first := d.first
		d.mu.Unlock()
		if first != nil && first(w, r) {
			return
		}
		inner.ServeHTTP(w, r)
	}))
	d.http.Config.ErrorLog = log.New(io.Discard, "", 0)
	if len(start) > 0 {
		start[0](d.http)
	} else {
		d.http.Start()
	}
	t.Cleanup(d.http.Close)
	d.host = d.http.Listener.Addr().String()
	return d
}

// intercept sets who sees requests first.
func (d *depot) intercept(first func(w http.ResponseWriter, r *http.Request) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.first = first
}

// asked counts requests whose method and path contain all of what is given, and forgets them all if nothing is.
func (d *depot) asked(what ...string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, r := range d.requests {
		if !slices.ContainsFunc(what, func(s string) bool { return !strings.Contains(r, s) }) {
			n++
		}
	}
	if len(what) == 0 {
		d.requests = nil
	}
	return n
}

func (d *depot) push(t testing.TB, repository string, what any) string {
	t.Helper()
	ref, err := name.ParseReference(d.host+"/"+repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	opt := remote.WithTransport(d.http.Client().Transport)
	switch w := what.(type) {
	case v1.Image:
		err = remote.Write(ref, w, opt)
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, w, opt)
	}
	if err != nil {
		t.Fatalf("push: %v", err)
	}
	d.asked()
	return d.host + "/" + repository
}

func docker(name string) *mesosv1.Image {
	return &mesosv1.Image{Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: &name}}
}

func anew(image *mesosv1.Image) *mesosv1.Image {
	no := false
	image.Cached = &no
	return image
}

// newPuller is a provisioner that is closed with the test.
func newPuller(t *testing.T, change ...func(*Config)) *Provisioner {
	t.Helper()
	p := newProvisioner(t, append([]func(*Config){func(c *Config) { c.PullPause = time.Millisecond }}, change...)...)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return p
}

func simpleImage(t testing.TB, body string) v1.Image {
	return imageWith(t, layerOf(t, file{name: "etc/", kind: tar.TypeDir, mode: 0o755}, file{name: "etc/os", body: "base"}),
		layerOf(t, file{name: "data", body: body}))
}

func digestOf(t *testing.T, what interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	d, err := what.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// empty fails unless nothing of pulls is left.
func wantNothingLeft(t *testing.T, p *Provisioner) {
	t.Helper()
	s := p.store.Load()
	if s == nil {
		t.Fatal("nothing was ever pulled")
	}
	ctx := s.context(context.Background())
	if err := s.content.Walk(ctx, func(i content.Info) error { return fmt.Errorf("content %s is left", i.Digest) }); err != nil {
		t.Error(err)
	}
	if all, err := s.content.ListStatuses(ctx); err != nil || len(all) > 0 {
		t.Errorf("half of a fetch is left: got %v, %v", all, err)
	}
	if s.layers != nil {
		if err := s.layers.Walk(ctx, func(_ context.Context, i snapshots.Info) error { return fmt.Errorf("layer %s is left", i.Name) }); err != nil {
			t.Error(err)
		}
		wantEmpty(t, filepath.Join(s.dir, "layers", "snapshots"))
	}
	if all, err := s.leases.List(ctx); err != nil || len(all) > 0 {
		t.Errorf("leases are left: got %v, %v", all, err)
	}
	for _, dir := range []string{"content/ingest", "content/blobs/sha256"} {
		wantEmpty(t, filepath.Join(s.dir, dir))
	}
	wantEmpty(t, p.dir("tmp"))
	wantEmpty(t, p.dir("containers"))
	wantEmpty(t, p.dir("images"))
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); len(entries) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: got %v, %v, want nothing", dir, entries, err)
	}
}

func TestAnImageIsPulledAndRunFrom(t *testing.T) {
	d := newDepot(t)
	first, second := simpleImage(t, "first"), simpleImage(t, "second")
	image := d.push(t, "team/app:1", first)
	backends(t, func(t *testing.T, change func(*Config)) {
		d.push(t, "team/app:1", first)
		p := newPuller(t, change)
		rootfs, config, err := p.ProvisionImage(t.Context(), "a", docker(image))
		if err != nil {
			t.Fatalf("ProvisionImage: %v", err)
		}
		if got := read(t, rootfs, "data") + read(t, rootfs, "etc/os"); got != "firstbase" {
			t.Errorf("files: got %q, want the image's", got)
		}
		if config.GetWorkingDirectory() != "/srv" || config.GetUser() != "daemon" || !slices.Equal(config.GetEntrypoint(), []string{"/bin/sh"}) {
			t.Errorf("configuration: got %v, want the image's", config)
		}
		d.asked()
		if rootfs, _, err = p.ProvisionImage(t.Context(), "b", docker(image)); err != nil || read(t, rootfs, "data") != "first" {
			t.Errorf("ProvisionImage again: %v", err)
		}
		if n := d.asked(""); n != 0 {
			t.Errorf("the second container made %d requests to the registry, want none", n)
		}
		d.push(t, "team/app:1", second)
		if rootfs, _, err = p.ProvisionImage(t.Context(), "c", anew(docker(image))); err != nil || read(t, rootfs, "data") != "second" {
			t.Errorf("ProvisionImage with cached=false: %v, want what the tag means now", err)
		}
		if rootfs, _, err = p.ProvisionImage(t.Context(), "d", docker(image)); err != nil || read(t, rootfs, "data") != "second" {
			t.Errorf("ProvisionImage afterwards: %v, want what was pulled last", err)
		}
		if got := read(t, p.dir("containers", "a", "rootfs"), "data"); got != "first" {
			t.Errorf("the container from before: got %q, want its own image", got)
		}
		rootfs, _, err = p.ProvisionImage(t.Context(), "e", docker(d.host+"/team/app@"+digestOf(t, first)))
		if err != nil || read(t, rootfs, "data") != "first" {
			t.Errorf("ProvisionImage by digest: %v", err)
		}
	})
}

func TestPulledImagesSurviveARestart(t *testing.T) {
	d := newDepot(t)
	image := d.push(t, "app:1", simpleImage(t, "x"))
	backends(t, func(t *testing.T, change func(*Config)) {
		p := newPuller(t, change)
		if err := p.Pull(t.Context(), image, false); err != nil {
			t.Fatalf("Pull: %v", err)
		}
		if _, _, err := p.ProvisionImage(t.Context(), "a", docker(image)); err != nil {
			t.Fatalf("ProvisionImage: %v", err)
		}
		if err := p.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		again, err := New(p.cfg)
		if err != nil {
			t.Fatalf("New: %v", err)
		}
		defer again.Close()
		if err := again.Recover(t.Context(), []string{"a"}); err != nil {
			t.Errorf("Recover: %v", err)
		}
		d.asked()
		rootfs, _, err := again.ProvisionImage(t.Context(), "b", docker(image))
		if err != nil || read(t, rootfs, "data") != "x" || read(t, again.dir("containers", "a", "rootfs"), "data") != "x" {
			t.Errorf("ProvisionImage after a restart: %v", err)
		}
		if n := d.asked(""); n != 0 {
			t.Errorf("after a restart %d requests were made to the registry, want none", n)
		}
		if gone, err := again.Prune(t.Context(), nil); err != nil || len(gone) > 0 {
			t.Errorf("Prune: got %v, %v, want nothing removed that is in use", gone, err)
		}
		if err := again.Recover(t.Context(), nil); err != nil {
			t.Errorf("Recover: %v", err)
		}
	})
}

func TestImageForThisMachineIsPulled(t *testing.T) {
	d := newDepot(t)
	mine, other := simpleImage(t, "mine"), simpleImage(t, "other")
	as := func(img v1.Image, os, arch string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch}}}
	}
	for kind, list := range map[string]types.MediaType{"oci": types.OCIImageIndex, "docker": types.DockerManifestList} {
		index := mutate.IndexMediaType(mutate.AppendManifests(empty.Index,
			as(other, "linux", "s390x"), as(simpleImage(t, "attestation"), "unknown", "unknown"), as(mine, "linux", runtime.GOARCH), as(other, "windows", runtime.GOARCH)), list)
		image := d.push(t, kind+":1", index)
		p := newPuller(t)
		rootfs, _, err := p.ProvisionImage(t.Context(), "a", docker(image))
		if err != nil || read(t, rootfs, "data") != "mine" {
			t.Errorf("%s: ProvisionImage: %v, want the image for linux/%s", kind, err, runtime.GOARCH)
		}
	}
	p := newPuller(t)
	only := mutate.AppendManifests(empty.Index, as(other, "linux", "s390x"))
	if err := p.Pull(t.Context(), d.push(t, "only:1", only), false); err == nil || !strings.Contains(err.Error(), "nothing for linux/"+runtime.GOARCH+": got linux/s390x") {
		t.Errorf("Pull of an image for others: got %v, want what there is", err)
	}
	c, err := other.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.Architecture = "s390x"
	alone, err := mutate.ConfigFile(other, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Pull(t.Context(), d.push(t, "alone:1", alone), false); err == nil || !strings.Contains(err.Error(), "nothing for linux/"+runtime.GOARCH+": got linux/s390x") {
		t.Errorf("Pull of an image for others: got %v, want what there is", err)
	}
	wantNothingLeft(t, p)
}

func TestImagesShareLayers(t *testing.T) {
	d := newDepot(t)
	base := layerOf(t, file{name: "base", body: strings.Repeat("b", 1<<16)})
	one := d.push(t, "one:1", imageWith(t, base, layerOf(t, file{name: "data", body: "1"})))
	two := d.push(t, "two:1", mutate.MediaType(imageWith(t, base, layerOf(t, file{name: "data", body: "2"})), types.OCIManifestSchema1))
	p := newPuller(t)
	for n, image := range []string{one, two} {
		rootfs, _, err := p.ProvisionImage(t.Context(), fmt.Sprint(n), docker(image))
		if err != nil || read(t, rootfs, "data") != fmt.Sprint(n+1) || len(read(t, rootfs, "base")) != 1<<16 {
			t.Errorf("ProvisionImage of %s: %v", image, err)
		}
	}
	if n := d.asked("GET", "/blobs/"+digestOf(t, base)); n != 1 {
		t.Errorf("the shared layer was fetched %d times, want once", n)
	}
	if p.Backend() != BackendOverlay {
		return
	}
	layers := 0
	s := p.store.Load()
	if err := s.layers.Walk(s.context(t.Context()), func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindCommitted {
			layers++
		}
		return nil
	}); err != nil || layers != 3 {
		t.Errorf("unpacked layers: got %d, %v, want 3", layers, err)
	}
	list, err := p.List(t.Context())
	if err != nil || len(list) != 2 || !slices.Equal(list[0].UsedBy, []string{"0"}) || list[1].Layers != 2 || list[0].Size < 1<<16 || list[0].Name != one {
		t.Errorf("List: got %+v, %v, want both images with their layers and users", list, err)
	}
}

func TestOnePullForMany(t *testing.T) {
	d := newDepot(t)
	image := d.push(t, "app:1", simpleImage(t, "x"))
	p := newPuller(t)
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			if _, _, err := p.ProvisionImage(t.Context(), fmt.Sprint(n), docker(image)); err != nil {
				t.Errorf("ProvisionImage: %v", err)
			}
		})
	}
	wg.Wait()
	if n := d.asked("GET", "/blobs/"); n != 3 {
		t.Errorf("20 containers made %d requests for blobs, want 3: a configuration and two layers", n)
	}
}

func TestWhatLayersSayHoldsInThePulledImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for owners and setuid")
	}
	d := newDepot(t)
	dir := func(name string) file { return file{name: name, kind: tar.TypeDir, mode: 0o755} }
	image := d.push(t, "app:1", imageWith(t,
		layerOf(t, dir("etc/"), file{name: "etc/a", body: "first"}, file{name: "etc/gone", body: "x"}, dir("old/"), file{name: "old/x", body: "x"},
			file{name: "tmp/", kind: tar.TypeDir, mode: 0o1777}, file{name: "kept", body: "kept"}),
		layerOf(t, file{name: "etc/a", body: "second", uid: 12}, file{name: "etc/.wh.gone"}, dir("old/"), file{name: "old/.wh..wh..opq"}, file{name: "old/y", body: "y"},
			file{name: "su", body: "su", mode: 0o4755}, file{name: "hard", kind: tar.TypeLink, link: "su", mode: 0o4755}, file{name: "link", kind: tar.TypeSymlink, link: "etc/a"},
			file{name: "tmp/inner", body: "x"}),
	))
	backends(t, func(t *testing.T, change func(*Config)) {
		p := newPuller(t, change)
		rootfs, _, err := p.ProvisionImage(t.Context(), "a", docker(image))
		if err != nil {
			t.Fatalf("ProvisionImage: %v", err)
		}
		for path, want := range map[string]string{"etc/a": "second", "old/y": "y", "link": "second", "hard": "su", "kept": "kept"} {
			if got := read(t, rootfs, path); got != want {
				t.Errorf("%s: got %q, want %q", path, got, want)
			}
		}
		for _, path := range []string{"etc/gone", "old/x", "etc/.wh.gone", "old/.wh..wh..opq"} {
			if _, err := os.Lstat(filepath.Join(rootfs, path)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: got %v, want it gone", path, err)
			}
		}
		su, err := os.Stat(filepath.Join(rootfs, "su"))
		if err != nil || su.Mode()&os.ModeSetuid == 0 {
			t.Errorf("su: got mode %v, %v, want setuid", su.Mode(), err)
		}
		if hard, err := os.Stat(filepath.Join(rootfs, "hard")); err != nil || !os.SameFile(su, hard) {
			t.Errorf("hard: got %v, want the same file as su", err)
		}
		if a, err := os.Stat(filepath.Join(rootfs, "etc/a")); err != nil || a.Sys().(*syscall.Stat_t).Uid != 12 {
			t.Errorf("etc/a: got %v, want owner 12", err)
		}
		if tmp, err := os.Stat(filepath.Join(rootfs, "tmp")); err != nil || tmp.Mode().Perm() != 0o777 || tmp.Mode()&os.ModeSticky == 0 {
			t.Errorf("tmp, which the upper layer does not name: got mode %v, %v, want 1777", tmp.Mode(), err)
		}
	})
}

func TestAnImageOfManyLayersIsMounted(t *testing.T) {
	var layers []v1.Layer
	for n := range 120 {
		layers = append(layers, layerOf(t, file{name: fmt.Sprintf("f%d", n), body: fmt.Sprint(n)}, file{name: "last", body: fmt.Sprint(n)}))
	}
	d := newDepot(t)
	image := d.push(t, "deep:1", imageWith(t, layers...))
	p := newPuller(t)
	rootfs, _, err := p.ProvisionImage(t.Context(), "a", docker(image))
	if errors.Is(err, syscall.EINVAL) && p.Backend() == BackendOverlay {
		t.Skipf("this kernel takes no long lists of layers: %v", err)
	}
	if err != nil {
		t.Fatalf("ProvisionImage: %v", err)
	}
	if read(t, rootfs, "f0") != "0" || read(t, rootfs, "f119") != "119" || read(t, rootfs, "last") != "119" {
		t.Error("files: want those of all layers, the topmost first")
	}
}

func TestImagesAreVolumes(t *testing.T) {
	d := newDepot(t)
	image := docker(d.push(t, "data:1", simpleImage(t, "x")))
	backends(t, func(t *testing.T, change func(*Config)) {
		p := newPuller(t, change)
		if _, _, err := p.ProvisionImage(t.Context(), "a", image); err != nil {
			t.Fatalf("ProvisionImage: %v", err)
		}
		own, err := p.ProvisionVolume(t.Context(), "a", "0", image, false)
		if err != nil {
			t.Fatalf("ProvisionVolume: %v", err)
		}
		if err := os.WriteFile(filepath.Join(own, "data"), []byte("mine"), 0o644); err != nil {
			t.Errorf("write to a volume: %v", err)
		}
		if got := read(t, p.dir("containers", "a", "rootfs"), "data"); got != "x" {
			t.Errorf("the root filesystem: got %q, want the image's", got)
		}
		alone, err := p.ProvisionVolume(t.Context(), "b", "1", image, true)
		if err != nil || read(t, alone, "data") != "x" {
			t.Errorf("ProvisionVolume for a container without image: %v", err)
		}
		if p.Backend() == BackendOverlay {
			if err := os.WriteFile(filepath.Join(alone, "data"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
				t.Errorf("write to a volume that is read-only: got %v, want %v", err, syscall.EROFS)
			}
		}
		if gone, err := p.Prune(t.Context(), nil); err != nil || len(gone) > 0 {
			t.Errorf("Prune: got %v, %v, want nothing removed", gone, err)
		}
		if _, err := p.ProvisionVolume(t.Context(), "b", "../c", image, true); err == nil {
			t.Error("ProvisionVolume: got no error for a name that leads elsewhere")
		}
		for _, id := range []string{"a", "b"} {
			if err := p.Remove(t.Context(), id); err != nil {
				t.Errorf("Remove: %v", err)
			}
		}
		if gone, err := p.Prune(t.Context(), nil); err != nil || len(gone) != 1 {
			t.Errorf("Prune: got %v, %v, want the image", gone, err)
		}
		wantNothingLeft(t, p)
	})
}

// only lets intercept see requests whose path contains part.
func only(part string, then func(w http.ResponseWriter, r *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, part) && then(w, r)
	}
}

// respond answers with a status, the first times; for ever if times is 0.
func respond(status, times int) func(http.ResponseWriter, *http.Request) bool {
	var mu sync.Mutex
	n := 0
	return func(w http.ResponseWriter, _ *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if n++; times > 0 && n > times {
			return false
		}
		w.WriteHeader(status)
		return true
	}
}

func TestFailedPullsSayWhyAndLeaveNothing(t *testing.T) {
	body := strings.Repeat("0123456789abcdef", 1<<14)
	img := simpleImage(t, body)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	top := "/blobs/" + digestOf(t, layers[1])
	compressed, err := layers[1].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(compressed)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(blob)
	changed[len(changed)/2] ^= 1
	serve := func(announced int, b []byte) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", fmt.Sprint(announced))
			_, _ = w.Write(b)
			return true
		}
	}
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	for what, c := range map[string]struct {
		image string
		first func(w http.ResponseWriter, r *http.Request) bool
		want  error
		text  string
	}{
		"unknown":      {image: "nobody/has:this", want: registry.ErrNotFound},
		"refused":      {first: only("", respond(http.StatusUnauthorized, 0)), want: registry.ErrUnauthorized},
		"forbidden":    {first: only(top, respond(http.StatusForbidden, 0)), want: registry.ErrUnauthorized},
		"layer gone":   {first: only(top, respond(http.StatusNotFound, 0)), want: registry.ErrNotFound},
		"changed":      {first: only(top, serve(len(changed), changed)), want: registry.ErrCorrupt},
		"truncated":    {first: only(top, serve(len(blob), blob[:len(blob)/2])), want: registry.ErrTruncated},
		"shorter":      {first: only(top, serve(len(blob)/2, blob[:len(blob)/2])), want: registry.ErrTruncated},
		"broken":       {first: only(top, respond(http.StatusInternalServerError, 0)), text: "given up after"},
		"busy":         {first: only(top, respond(http.StatusTooManyRequests, 0)), text: "429"},
		"bad manifest": {first: only("/manifests/", serve(2, []byte("{}"))), want: registry.ErrTruncated},
		"stalled": {first: only(top, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
				_, _ = w.Write(blob[:len(blob)/2])
				_ = http.NewResponseController(w).Flush()
			}
			select {
			case <-hang:
			case <-r.Context().Done():
			}
			return true
		}), want: registry.ErrStalled},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			d := newDepot(t)
			image := d.push(t, "app:1", img)
			if c.image != "" {
				image = d.host + "/" + c.image
			}
			d.intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if what == "refused" && r.Method == http.MethodHead {
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				return c.first != nil && c.first(w, r)
			})
			p := newPuller(t, func(c *Config) {
				if what == "stalled" {
					c.PullStall = 100 * time.Millisecond
				}
			})
			_, _, err := p.ProvisionImage(t.Context(), "a", docker(image))
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("ProvisionImage: got %v, want %v %s", err, c.want, c.text)
			}
			wantNothingLeft(t, p)
			pulls := p.Pulls()
			if len(pulls) != 1 || pulls[0].State != operator.PullFailed || pulls[0].Error == "" {
				t.Errorf("Pulls: got %+v, want one that failed and says why", pulls)
			}
			d.intercept(nil)
			if c.image == "" {
				if rootfs, _, err := p.ProvisionImage(t.Context(), "a", docker(image)); err != nil || read(t, rootfs, "data") != body {
					t.Errorf("ProvisionImage once the registry is well: %v", err)
				}
			}
		})
	}
}

func TestPullsGoOnWhereTheyWereCut(t *testing.T) {
	noise := make([]byte, 1<<20)
	source := rand.New(rand.NewPCG(1, 2)) // so that it does not get small
	for n := range noise {
		noise[n] = byte(source.Uint32())
	}
	img := imageWith(t, layerOf(t, file{name: "data", body: string(noise)}))
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	for kind, goesOn := range map[string]bool{"a registry that goes on": true, "one that starts anew": false} {
		backends(t, func(t *testing.T, change func(*Config)) {
			d := newDepot(t)
			image := d.push(t, "app:1", img)
			var mu sync.Mutex
			var ranges []string
			d.intercept(only("/blobs/"+digestOf(t, layers[0]), func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				ranges = append(ranges, r.Header.Get("Range"))
				switch {
				case len(ranges) == 1:
					w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
					_, _ = w.Write(blob[:len(blob)/2])
					panic(http.ErrAbortHandler)
				case r.Header.Get("Range") != "" && !goesOn:
					w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				default:
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
				}
				return true
			}))
			p := newPuller(t, change)
			rootfs, _, err := p.ProvisionImage(t.Context(), "a", docker(image))
			if err != nil || read(t, rootfs, "data") != string(noise) {
				t.Fatalf("ProvisionImage from %s: %v", kind, err)
			}
			if len(ranges) < 2 || !strings.HasPrefix(ranges[1], "bytes=") || ranges[1] == "bytes=0-" || !goesOn && ranges[len(ranges)-1] != "" {
				t.Errorf("%s: requests for the layer had ranges %q, want the second to go on where the first was cut", kind, ranges)
			}
		})
	}
}

func TestPullsOutlastARegistryThatIsBusy(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway} {
		d := newDepot(t)
		image := d.push(t, "app:1", simpleImage(t, "x"))
		d.intercept(only("/blobs/", respond(status, 3)))
		if err := newPuller(t).Pull(t.Context(), image, false); err != nil {
			t.Errorf("Pull from a registry that answers %d at first: %v", status, err)
		}
	}
}

func TestPullEndsWhenNobodyWaits(t *testing.T) {
	d := newDepot(t)
	image := d.push(t, "app:1", simpleImage(t, "x"))
	arrived := make(chan struct{}, 10)
	d.intercept(only("/blobs/", func(_ http.ResponseWriter, r *http.Request) bool {
		arrived <- struct{}{}
		<-r.Context().Done()
		return true
	}))
	p := newPuller(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	for range 2 {
		go func() { ended <- p.Pull(ctx, image, false) }()
	}
	<-arrived
	stays, leave := context.WithCancel(t.Context())
	third := make(chan error, 1)
	go func() { third <- p.Pull(stays, image, false) }()
	waitFor(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, x := range p.pulls {
			return x.waiters == 3
		}
		return false
	})
	cancel()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Pull: got %v, want %v", err, context.Canceled)
		}
	}
	if pulls := p.Pulls(); len(pulls) != 1 || pulls[0].Ended() {
		t.Errorf("Pulls: got %+v, want one that goes on for who still waits", pulls)
	}
	leave()
	if err := <-third; !errors.Is(err, context.Canceled) {
		t.Errorf("Pull: got %v, want %v", err, context.Canceled)
	}
	wantNothingLeft(t, p)
	d.intercept(nil)
	if err := p.Pull(t.Context(), image, false); err != nil {
		t.Errorf("Pull afterwards: %v", err)
	}
}

// waitFor waits for what other goroutines do.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("waited 30 s in vain")
		}
	}
}

func TestProgressIsSeenLayerByLayer(t *testing.T) {
	d := newDepot(t)
	img := simpleImage(t, "x")
	image := d.push(t, "app:1", img)
	arrived, goOn := make(chan struct{}), make(chan struct{})
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d.intercept(only("/blobs/"+digestOf(t, layers[1]), func(http.ResponseWriter, *http.Request) bool {
		close(arrived)
		<-goOn
		return false
	}))
	p := newPuller(t)
	ended := make(chan error, 1)
	go func() { ended <- p.Pull(t.Context(), image, false) }()
	<-arrived
	pulls := p.Pulls()
	if len(pulls) != 1 || pulls[0].Name != image || pulls[0].State != operator.PullDownloading || len(pulls[0].Layers) != 2 ||
		pulls[0].Layers[1].Done != 0 || pulls[0].Layers[1].Total == 0 || pulls[0].Digest != digestOf(t, img) {
		t.Errorf("Pulls: got %+v, want the second layer waiting", pulls)
	}
	close(goOn)
	if err := <-ended; err != nil {
		t.Fatalf("Pull: %v", err)
	}
	pulls = p.Pulls()
	if len(pulls) != 1 || pulls[0].State != operator.PullDone {
		t.Fatalf("Pulls: got %+v, want it done", pulls)
	}
	for _, l := range pulls[0].Layers {
		if l.State != operator.PullDone || l.Done != l.Total {
			t.Errorf("layer: got %+v, want it done", l)
		}
	}
}

// withBasic asks for a user and a password.
func withBasic(user, password string) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); ok && u == user && p == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="depot"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

// withToken asks for a token, which it gives to a user with a password.
func withToken(host func() string, user, password string) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			u, p, ok := r.BasicAuth()
			if !ok || u != user || p != password || !strings.Contains(r.URL.Query().Get("scope"), "repository:private/app:pull") {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"token": "let-me-in", "expires_in": 300})
			return true
		}
		if r.Header.Get("Authorization") == "Bearer let-me-in" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="depot",scope="repository:private/app:pull"`, host()))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

func dockerConfig(host, user, password string) []byte {
	return fmt.Appendf(nil, `{"auths":{"http://%s/v1/":{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

func TestPrivateRegistriesAreToldWhoWeAre(t *testing.T) {
	for kind, guard := range map[string]func(d *depot) func(http.ResponseWriter, *http.Request) bool{
		"basic": func(*depot) func(http.ResponseWriter, *http.Request) bool { return withBasic("me", "pw") },
		"token": func(d *depot) func(http.ResponseWriter, *http.Request) bool {
			return withToken(func() string { return d.host }, "me", "pw")
		},
	} {
		t.Run(kind, func(t *testing.T) {
			d := newDepot(t)
			image := d.push(t, "private/app:1", simpleImage(t, "x"))
			d.intercept(guard(d))
			config := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(config, dockerConfig(d.host, "me", "pw"), 0o600); err != nil {
				t.Fatal(err)
			}
			secrets := func(_ context.Context, s *mesosv1.Secret) ([]byte, error) {
				return dockerConfig(d.host, "me", s.GetReference().GetName()), nil
			}
			withSecret := func(password string) *mesosv1.Image {
				i := docker(image)
				i.Docker.Config = &mesosv1.Secret{Type: mesosv1.Secret_REFERENCE.Enum(), Reference: &mesosv1.Secret_Reference{Name: &password}}
				return i
			}
			anonymous := newPuller(t, func(c *Config) { c.Secret = secrets })
			if _, _, err := anonymous.ProvisionImage(t.Context(), "a", docker(image)); !errors.Is(err, registry.ErrUnauthorized) {
				t.Errorf("ProvisionImage as nobody: got %v, want %v", err, registry.ErrUnauthorized)
			}
			if _, _, err := anonymous.ProvisionImage(t.Context(), "a", withSecret("wrong")); !errors.Is(err, registry.ErrUnauthorized) {
				t.Errorf("ProvisionImage with a wrong password: got %v, want %v", err, registry.ErrUnauthorized)
			} else if strings.Contains(err.Error(), "wrong") {
				t.Errorf("ProvisionImage: error %v has the password", err)
			}
			wantNothingLeft(t, anonymous)
			if _, _, err := anonymous.ProvisionImage(t.Context(), "a", withSecret("pw")); err != nil {
				t.Errorf("ProvisionImage with the image's own configuration: %v", err)
			}
			known := newPuller(t, func(c *Config) { c.Registries.CredentialsFile = config })
			if _, _, err := known.ProvisionImage(t.Context(), "a", docker(image)); err != nil {
				t.Errorf("ProvisionImage with the agent's configuration: %v", err)
			}
			if _, _, err := known.ProvisionImage(t.Context(), "b", withSecret("pw")); err == nil || !strings.Contains(err.Error(), "cannot read secrets") {
				t.Errorf("ProvisionImage on an agent without secrets: got %v, want it refused", err)
			}
		})
	}
}

func TestRegistriesAreTrustedByTheirAuthority(t *testing.T) {
	d := newDepot(t, func(s *httptest.Server) { s.TLS = &tls.Config{MinVersion: tls.VersionTLS12}; s.StartTLS() })
	image := d.push(t, "app:1", simpleImage(t, "x"))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.http.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPuller(t, func(c *Config) { c.Registries.CAFile = ca })
	if _, _, err := p.ProvisionImage(t.Context(), "a", docker(image)); err != nil {
		t.Errorf("ProvisionImage from a registry whose authority is known: %v", err)
	}
	stranger := newPuller(t)
	if _, _, err := stranger.ProvisionImage(t.Context(), "a", docker(image)); !errors.Is(err, registry.ErrTLS) {
		t.Errorf("ProvisionImage from a registry that nobody vouches for: got %v, want %v", err, registry.ErrTLS)
	}
	wantNothingLeft(t, stranger)
}

func TestMirrorsAreAskedFirst(t *testing.T) {
	origin, mirror := newDepot(t), newDepot(t)
	img := simpleImage(t, "x")
	image := origin.push(t, "app:1", img)
	mirror.push(t, "app:1", img)
	with := func(c *Config) { c.Registries.Mirrors = map[string][]string{origin.host: {"http://" + mirror.host}} }
	if err := newPuller(t, with).Pull(t.Context(), image, false); err != nil {
		t.Fatalf("Pull: %v", err)
	}
	if origin.asked("") != 0 || mirror.asked("GET", "/blobs/") == 0 {
		t.Errorf("requests: got %d at the registry and %d at the mirror, want them at the mirror", origin.asked(""), mirror.asked(""))
	}
	mirror.intercept(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true })
	if err := newPuller(t, with).Pull(t.Context(), image, false); err != nil {
		t.Errorf("Pull while the mirror is broken: %v", err)
	}
}

func TestArchivesAtURLsAndInTheOperatorsFolder(t *testing.T) {
	img := simpleImage(t, "x")
	archive := gzipFile(t, writeDocker(t, img))
	b, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	asked := 0
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if asked++; r.URL.Path != "/app.tar.gz" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write(b)
	}))
	defer site.Close()
	p := newPuller(t)
	for _, id := range []string{"a", "b"} {
		rootfs, config, err := p.ProvisionImage(t.Context(), id, docker(site.URL+"/app.tar.gz"))
		if err != nil || read(t, rootfs, "data") != "x" || config.GetUser() != "daemon" {
			t.Errorf("ProvisionImage from a URL: %v", err)
		}
	}
	if asked != 1 {
		t.Errorf("the archive was fetched %d times, want once", asked)
	}
	if _, _, err := p.ProvisionImage(t.Context(), "c", anew(docker(site.URL+"/app.tar.gz"))); err != nil || asked != 2 {
		t.Errorf("ProvisionImage with cached=false: %v after %d requests, want a second one", err, asked)
	}
	if _, _, err := p.ProvisionImage(t.Context(), "d", docker(site.URL+"/none.tar")); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("ProvisionImage from a URL with nothing: got %v, want %v", err, registry.ErrNotFound)
	}
	wantEmpty(t, p.dir("tmp"))
	if list, err := p.List(t.Context()); err != nil || len(list) != 1 || list[0].Name != site.URL+"/app.tar.gz" || len(list[0].UsedBy) != 3 {
		t.Errorf("List: got %+v, %v, want the archive", list, err)
	}

	folder := t.TempDir()
	if err := os.MkdirAll(filepath.Join(folder, "team"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "team", "app:latest.tar"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	local := newPuller(t, func(c *Config) { c.Archives = folder })
	for n, name := range []string{"team/app", "team/app:latest"} {
		if rootfs, _, err := local.ProvisionImage(t.Context(), fmt.Sprint(n), docker(name)); err != nil || read(t, rootfs, "data") != "x" {
			t.Errorf("ProvisionImage of %s from the operator's folder: %v", name, err)
		}
	}
	for _, name := range []string{"../../etc/passwd", "other", "a/../../b", "team/app@sha256:1"} {
		if _, _, err := local.ProvisionImage(t.Context(), "x", docker(name)); err == nil {
			t.Errorf("ProvisionImage of %s: got no error", name)
		}
	}
}

func TestImagesNobodyCanUseAreRefused(t *testing.T) {
	p := newPuller(t)
	for _, image := range []*mesosv1.Image{
		nil, {}, docker(""), docker("UPPER"), docker("a b"), docker("http://"), docker("x:y:z"), docker("example.com/"), {Type: mesosv1.Image_APPC.Enum()},
	} {
		if _, _, err := p.ProvisionImage(t.Context(), "a", image); err == nil {
			t.Errorf("ProvisionImage(%v): got no error", image)
		}
	}
	wantEmpty(t, p.dir("containers"))
	d := newDepot(t)
	small := newPuller(t, func(c *Config) { c.MaxSize = 4 << 10 })
	image := d.push(t, "big:1", imageWith(t, layerOf(t, file{name: "zeros", body: strings.Repeat("\x00", 1<<20)})))
	if err := small.Pull(t.Context(), image, false); err == nil || !strings.Contains(err.Error(), "larger than allowed") {
		t.Errorf("Pull of what unpacks to more than is allowed: got %v, want it refused", err)
	}
	wantNothingLeft(t, small)
}
