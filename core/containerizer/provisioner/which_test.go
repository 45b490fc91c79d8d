package provisioner

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Of the images that a layout or an archive holds, the one is taken that is called by name or digest.
func TestOneOfSeveralImagesOnDiskIsChosen(t *testing.T) {
	one, two := imageWith(t, layerOf(t, file{name: "data", body: "one"})), imageWith(t, layerOf(t, file{name: "data", body: "two"}))
	dir := filepath.Join(t.TempDir(), "lay.out")
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatalf("layout: %v", err)
	}
	for tag, img := range map[string]v1.Image{"one": one, "two": two, "also-two": two} {
		if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag, containerdName: "example.com/x:full-" + tag})); err != nil {
			t.Fatalf("layout: %v", err)
		}
	}
	saved := filepath.Join(t.TempDir(), "saved.tar")
	err = tarball.MultiWriteToFile(saved, map[name.Tag]v1.Image{name.MustParseReference("example.com/x:one").(name.Tag): one, name.MustParseReference("example.com/y:two").(name.Tag): two})
	if err != nil {
		t.Fatalf("docker save: %v", err)
	}
	config, err := two.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	packed := tarFolder(t, dir)
	p := newProvisioner(t)
	for image, want := range map[string]string{
		dir + ":one": "one", dir + ":two": "two", dir + ":also-two": "two", dir + "@" + digestOf(t, one): "one", dir + ":example.com/x:full-one": "one",
		packed + ":one": "one", packed + "@" + digestOf(t, two): "two",
		saved + ":one": "one", saved + ":example.com/y:two": "two", saved + "@" + config.String(): "two",
		"file://" + dir + ":two": "two",
	} {
		rootfs, _, err := p.ProvisionImage(t.Context(), "a", docker(image))
		if err != nil || read(t, rootfs, "data") != want {
			t.Errorf("ProvisionImage of %s: %v, want %s", image, err, want)
		}
		if err := p.Remove(t.Context(), "a"); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	for image, want := range map[string]string{
		dir: "want one, or PATH:NAME", saved: "want one, or PATH:NAME", dir + ":three": "has no image three: got ", saved + ":three": "example.com/x:one",
		dir + "@sha256:00": "has no image sha256:00", dir + ":": "has no image", dir + "x:one": "no such file", packed + ":three": "has no image three",
	} {
		if _, _, err := p.ProvisionImage(t.Context(), "a", docker(image)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ProvisionImage of %s: got %v, want %q", image, err, want)
		}
	}
	wantEmpty(t, p.dir("containers"))
	// A file whose own name has a colon is what it is.
	odd := filepath.Join(t.TempDir(), "odd:one")
	if err := os.Rename(writeLayout(t, one), odd); err != nil {
		t.Fatal(err)
	}
	if rootfs, _, err := p.ProvisionImage(t.Context(), "a", docker(odd)); err != nil || read(t, rootfs, "data") != "one" {
		t.Errorf("ProvisionImage of %s: %v", odd, err)
	}
}

func TestFoldersThatAreNoRootFilesystemSaySo(t *testing.T) {
	plain, skopeo := t.TempDir(), t.TempDir()
	for path, body := range map[string]string{filepath.Join(plain, "version"): "1", filepath.Join(skopeo, "version"): skopeoMark + " 1.1\n"} {
		if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := newProvisioner(t)
	if _, _, err := p.Provision(t.Context(), "a", plain); err != nil {
		t.Errorf("Provision of a folder with a file called version: %v", err)
	}
	for image, want := range map[string]string{skopeo: "want an OCI layout", plain + ":one": "is no OCI layout"} {
		if _, _, err := p.Provision(t.Context(), "b", image); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Provision of %s: got %v, want %q", image, err, want)
		}
	}
}
