package provisioner

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner/registry"
)

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
