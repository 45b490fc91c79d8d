package provisioner

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

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

// waitFor waits for what other goroutines do.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("waited 30 s in vain")
		}
	}
}
