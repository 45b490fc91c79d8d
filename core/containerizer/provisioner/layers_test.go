package provisioner

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

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
