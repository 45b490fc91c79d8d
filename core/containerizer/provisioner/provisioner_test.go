package provisioner

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

type file struct {
	name, body, link string
	kind             byte
	mode             int64
	uid              int
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if f.kind == 0 {
			f.kind = tar.TypeReg
		}
		if f.mode == 0 {
			f.mode = 0o644
		}
		if err := w.WriteHeader(&tar.Header{Name: f.name, Size: int64(len(f.body)), Mode: f.mode, Typeflag: f.kind, Linkname: f.link, Uid: f.uid, Gid: f.uid}); err != nil {
			t.Fatalf("tar: %v", err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatalf("tar: %v", err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatalf("tar: %v", err)
	}
	return b.Bytes()
}

func layerOf(t testing.TB, files ...file) v1.Layer {
	t.Helper()
	b := tarOf(t, files...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	if err != nil {
		t.Fatalf("layer: %v", err)
	}
	return l
}

func imageWith(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatalf("image: %v", err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatalf("image: %v", err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", runtime.GOARCH
	c.Config = v1.Config{Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "true"}, Env: []string{"A=1"}, WorkingDir: "/srv", User: "daemon"}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatalf("image: %v", err)
	}
	return img
}

func writeLayout(t *testing.T, img v1.Image, options ...layout.Option) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatalf("layout: %v", err)
	}
	if err := p.AppendImage(img, options...); err != nil {
		t.Fatalf("layout: %v", err)
	}
	return dir
}

func writeDocker(t *testing.T, img v1.Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "docker.tar")
	if err := tarball.WriteToFile(path, name.MustParseReference("x/y:z"), img); err != nil {
		t.Fatalf("docker save: %v", err)
	}
	return path
}

func tarFolder(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "oci.tar")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w := tar.NewWriter(out)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatalf("tar: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatalf("tar: %v", err)
	}
	return path
}

func gzipFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "image.tar.gz")
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	w := gzip.NewWriter(f)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return out
}

func newProvisioner(t *testing.T, change ...func(*Config)) *Provisioner {
	t.Helper()
	cfg := Config{Dir: filepath.Join(t.TempDir(), "images")}
	for _, c := range change {
		c(&cfg)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() {
		if err := p.Recover(context.Background(), nil); err != nil {
			t.Errorf("Recover: %v", err)
		}
	})
	return p
}

func copyBackend(c *Config) { c.Backend = BackendCopy }

// backends runs a test with each backend that works here.
func backends(t *testing.T, test func(t *testing.T, change func(*Config))) {
	t.Run(BackendCopy, func(t *testing.T) { test(t, copyBackend) })
	t.Run(BackendOverlay, func(t *testing.T) {
		if err := probeOverlay(t.TempDir()); err != nil {
			t.Skipf("overlayfs does not work here: %v", err)
		}
		test(t, func(c *Config) { c.Backend = BackendOverlay })
	})
}

func read(t *testing.T, parts ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Errorf("read: %v", err)
	}
	return string(b)
}

func TestEveryFormOfAnImageIsTaken(t *testing.T) {
	img := imageWith(t,
		layerOf(t, file{name: "etc/", kind: tar.TypeDir, mode: 0o755}, file{name: "etc/a", body: "first"}, file{name: "etc/gone", body: "x"},
			file{name: "old/", kind: tar.TypeDir, mode: 0o755}, file{name: "old/x", body: "x"}),
		layerOf(t, file{name: "etc/a", body: "second"}, file{name: "etc/.wh.gone"}, file{name: "old/.wh..wh..opq"}, file{name: "old/y", body: "y"},
			file{name: "link", kind: tar.TypeSymlink, link: "etc/a"}, file{name: "hard", kind: tar.TypeLink, link: "etc/a"}),
	)
	oci := writeLayout(t, img)
	docker := writeDocker(t, img)
	folder := t.TempDir()
	for path, body := range map[string]string{"etc/a": "second", "old/y": "y", "link": "second", "hard": "second"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(folder, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, path), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	backends(t, func(t *testing.T, change func(*Config)) {
		p := newProvisioner(t, change)
		n := 0
		for kind, image := range map[string]string{
			"layout": oci, "docker save": docker, "OCI archive": tarFolder(t, oci),
			"docker save, gzip": gzipFile(t, docker), "OCI archive, gzip": gzipFile(t, tarFolder(t, oci)), "folder": folder,
		} {
			n++
			id := fmt.Sprintf("c%d", n)
			rootfs, config, err := p.Provision(t.Context(), id, image)
			if err != nil {
				t.Errorf("Provision from %s: %v", kind, err)
				continue
			}
			for path, want := range map[string]string{"etc/a": "second", "old/y": "y", "link": "second", "hard": "second"} {
				if got := read(t, rootfs, path); got != want {
					t.Errorf("%s: %s: got %q, want %q", kind, path, got, want)
				}
			}
			for _, path := range []string{"etc/gone", "old/x", "etc/.wh.gone"} {
				if _, err := os.Lstat(filepath.Join(rootfs, path)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %s: got %v, want it gone", kind, path, err)
				}
			}
			if kind == "folder" {
				continue
			}
			if config.GetWorkingDirectory() != "/srv" || !slices.Equal(config.GetEntrypoint(), []string{"/bin/sh"}) ||
				!slices.Equal(config.GetCmd(), []string{"-c", "true"}) || !slices.Equal(config.GetEnvironment(), []string{"A=1"}) || config.GetUser() != "daemon" {
				t.Errorf("%s: got configuration %v, want the image's", kind, config)
			}
		}
		if entries, err := os.ReadDir(p.dir("images")); err != nil || len(entries) != 1 {
			t.Errorf("unpacked: got %v, %v, want one for five forms of the same image", entries, err)
		}
		if entries, err := os.ReadDir(p.dir("tmp")); err != nil || len(entries) != 0 {
			t.Errorf("temporary files: got %v, %v, want none", entries, err)
		}
	})
}

func TestContainersDoNotSeeEachOthersWrites(t *testing.T) {
	image := writeLayout(t, imageWith(t, layerOf(t, file{name: "data", body: "image"}, file{name: "tmp/", kind: tar.TypeDir, mode: 0o1777})))
	backends(t, func(t *testing.T, change func(*Config)) {
		p := newProvisioner(t, change)
		a, _, err := p.Provision(t.Context(), "a", image)
		if err != nil {
			t.Fatalf("Provision: %v", err)
		}
		if err := os.WriteFile(filepath.Join(a, "data"), []byte("a's"), 0o644); err != nil {
			t.Fatal(err)
		}
		b, _, err := p.Provision(t.Context(), "b", image)
		if err != nil {
			t.Fatalf("Provision: %v", err)
		}
		if got := read(t, b, "data"); got != "image" {
			t.Errorf("data of b: got %q, want the image's", got)
		}
		if got := read(t, a, "data"); got != "a's" {
			t.Errorf("data of a: got %q, want what a wrote", got)
		}
		if info, err := os.Stat(filepath.Join(b, "tmp")); err != nil || info.Mode().Perm() != 0o777 || info.Mode()&os.ModeSticky == 0 {
			t.Errorf("tmp: got %v, %v, want mode 1777", info.Mode(), err)
		}
		if info, err := os.Stat(b); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("root: got mode %v, %v, want 0755", info.Mode(), err)
		}
		for range 2 {
			if err := p.Remove(t.Context(), "a"); err != nil {
				t.Errorf("Remove: %v", err)
			}
		}
		if _, err := os.Lstat(a); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("root of a after Remove: got %v, want it gone", err)
		}
		if err := p.Recover(t.Context(), []string{"b"}); err != nil {
			t.Errorf("Recover: %v", err)
		}
		if got := read(t, b, "data"); got != "image" {
			t.Errorf("data of b after Recover: got %q, want it still there", got)
		}
		if err := p.Recover(t.Context(), nil); err != nil {
			t.Errorf("Recover: %v", err)
		}
		if entries, err := os.ReadDir(p.dir("containers")); err != nil || len(entries) != 0 {
			t.Errorf("containers after Recover: got %v, %v, want none", entries, err)
		}
	})
}

func TestAProgramRunsInTheRootfs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for chroot")
	}
	program := busybox(t)
	image := writeDocker(t, imageWith(t, layerOf(t, file{name: "bin/", kind: tar.TypeDir, mode: 0o755}, file{name: "bin/true", body: program, mode: 0o755})))
	backends(t, func(t *testing.T, change func(*Config)) {
		rootfs, _, err := newProvisioner(t, change).Provision(t.Context(), "c1", image)
		if err != nil {
			t.Fatalf("Provision: %v", err)
		}
		c := exec.CommandContext(t.Context(), "/bin/true")
		c.Path, c.Dir, c.SysProcAttr = "/bin/true", "/", &syscall.SysProcAttr{Chroot: rootfs}
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("/bin/true of the image: %v: %s", err, out)
		}
	})
}

// busybox is a static program that can be called true: Debian's busybox, or one built here.
func busybox(t *testing.T) string {
	t.Helper()
	if b, err := os.ReadFile("/bin/busybox"); err == nil {
		return string(b)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", "true", "main.go")
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return read(t, dir, "true")
}

func TestOneImageIsUnpackedOnceForMany(t *testing.T) {
	image := writeLayout(t, imageWith(t, layerOf(t, file{name: "data", body: strings.Repeat("x", 1<<20)})))
	p := newProvisioner(t)
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			if _, _, err := p.Provision(t.Context(), fmt.Sprintf("c%d", n), image); err != nil {
				t.Errorf("Provision: %v", err)
			}
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(p.dir("images"))
	if err != nil || len(entries) != 1 {
		t.Fatalf("unpacked: got %v, %v, want one", entries, err)
	}
	before, err := os.Stat(p.dir("images", entries[0].Name()))
	if err != nil {
		t.Fatal(err)
	}
	again, err := New(p.cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	if _, _, err := again.Provision(t.Context(), "later", image); err != nil {
		t.Errorf("Provision after a restart: %v", err)
	}
	if after, err := os.Stat(p.dir("images", entries[0].Name())); err != nil || !os.SameFile(before, after) {
		t.Errorf("unpacked after a restart: got %v, %v, want the same", after, err)
	}
}

func TestAnotherTakesOverAnUnpackThatWasGivenUp(t *testing.T) {
	image := writeLayout(t, imageWith(t, layerOf(t, file{name: "data", body: "x"})))
	p := newProvisioner(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := p.Provision(ctx, "a", image); !errors.Is(err, context.Canceled) {
		t.Errorf("Provision that was given up: got %v, want %v", err, context.Canceled)
	}
	if _, _, err := p.Provision(t.Context(), "a", image); err != nil {
		t.Errorf("Provision after one that was given up: %v", err)
	}
}

func TestImageForThisMachineIsChosen(t *testing.T) {
	mine := imageWith(t, layerOf(t, file{name: "data", body: "mine"}))
	other := imageWith(t, layerOf(t, file{name: "data", body: "other"}))
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: mine, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	nested := mutate.IndexMediaType(mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: index}), types.OCIImageIndex)
	dir := t.TempDir()
	if _, err := layout.Write(dir, nested); err != nil {
		t.Fatalf("layout: %v", err)
	}
	p := newProvisioner(t)
	rootfs, _, err := p.Provision(t.Context(), "c1", dir)
	if err != nil {
		t.Fatalf("Provision: %v", err)
	}
	if got := read(t, rootfs, "data"); got != "mine" {
		t.Errorf("data: got %q, want that of linux/%s", got, runtime.GOARCH)
	}
	only := writeLayout(t, other, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "s390x"}))
	if _, _, err := p.Provision(t.Context(), "c2", only); err == nil || !strings.Contains(err.Error(), "nothing for linux/"+runtime.GOARCH+": got linux/s390x") {
		t.Errorf("Provision: got %v, want what the image has instead", err)
	}
}

func TestHostileImagesAreRefusedOrKeptInside(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	good := writeLayout(t, imageWith(t, layerOf(t, file{name: "data", body: "x"})))
	images := map[string]string{}
	layers := map[string][]file{
		"up":             {{name: "../../../../../../../../../.." + outside, body: "x"}},
		"absolute":       {{name: outside, body: "x"}},
		"link up":        {{name: "l", kind: tar.TypeSymlink, link: dir}, {name: "l/outside", body: "x"}},
		"hard link out":  {{name: "h", kind: tar.TypeLink, link: "../../../../../../../../etc/passwd"}},
		"whiteout up":    {{name: "../../.wh.images"}},
		"whiteout of ..": {{name: ".wh..."}},
	}
	for what, files := range layers {
		images[what] = writeLayout(t, imageWith(t, layerOf(t, files...)))
	}
	// One changed byte in a layer, a configuration, a manifest.
	blobs, err := os.ReadDir(filepath.Join(good, "blobs", "sha256"))
	if err != nil {
		t.Fatal(err)
	}
	for n, b := range blobs {
		bad := t.TempDir()
		if err := os.CopyFS(bad, os.DirFS(good)); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(bad, "blobs", "sha256", b.Name())
		content := []byte(read(t, path))
		content[len(content)/2] ^= 1
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		images[fmt.Sprintf("changed blob %d", n)] = bad
	}
	writeFile := func(what, name, body string) {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
		images[what] = path
	}
	writeFile("empty file", "x.tar", "")
	writeFile("no archive", "x.tar", strings.Repeat("garbage", 1000))
	writeFile("broken gzip", "x.tar.gz", "\x1f\x8b\x08garbage")
	writeFile("loop of links", "x.tar", string(tarOf(t, file{name: "manifest.json", kind: tar.TypeSymlink, link: "b"}, file{name: "b", kind: tar.TypeSymlink, link: "manifest.json"})))
	writeFile("layers from outside", "x.tar", string(tarOf(t, file{name: "manifest.json", body: `[{"Config":"/etc/passwd","Layers":["../../etc/passwd"]}]`})))
	writeFile("null", "x.tar", string(tarOf(t, file{name: "index.json", body: "null"})))
	writeFile("bad digest", "x.tar", string(tarOf(t, file{name: "index.json", body: `{"manifests":[{"digest":"sha256:../../x"}]}`})))
	writeFile("huge manifest", "x.tar", string(tarOf(t, file{name: "manifest.json", body: "[" + strings.Repeat(" ", maxDocument) + "]"})))
	images["empty folder"] = t.TempDir()
	images["nothing there"] = filepath.Join(dir, "absent")
	images["a device"] = "/dev/null"

	p := newProvisioner(t)
	keeps := []string{"up", "absolute", "link up", "whiteout up"} // such names stay below the root, as in a chroot
	for what, image := range images {
		t.Run(what, func(t *testing.T) {
			rootfs, _, err := p.Provision(t.Context(), "c1", image)
			if err == nil && !slices.Contains(keeps, what) {
				t.Errorf("Provision: got %s, want a refusal", rootfs)
			}
			if _, err := os.Lstat(outside); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("outside: got %v, want nothing there", err)
			}
			if !isDir(p.dir("images")) {
				t.Error("the provisioner's own folder was removed")
			}
			if err := p.Remove(t.Context(), "c1"); err != nil {
				t.Errorf("Remove: %v", err)
			}
			if entries, err := os.ReadDir(p.dir("tmp")); err != nil || len(entries) != 0 {
				t.Errorf("temporary files: got %v, %v, want none", entries, err)
			}
		})
	}
	small := newProvisioner(t, func(c *Config) { c.MaxSize = 1024 })
	if _, _, err := small.Provision(t.Context(), "c1", writeLayout(t, imageWith(t, layerOf(t, file{name: "data", body: strings.Repeat("x", 4096)})))); err == nil || !strings.Contains(err.Error(), "larger than allowed") {
		t.Errorf("Provision of too large an image: got %v, want a refusal", err)
	}
	for _, id := range []string{"", ".", "..", "a/b"} {
		if _, _, err := p.Provision(t.Context(), id, good); err == nil {
			t.Errorf("Provision for container %q: got no error, want one", id)
		}
	}
	if _, _, err := p.Provision(t.Context(), "c1", "/"); err == nil {
		t.Error("Provision from /: got no error, want one: it holds the provisioner's own folder")
	}
}

func TestPathsWithSpecialCharactersAreMounted(t *testing.T) {
	base := filepath.Join(t.TempDir(), `with:colon,comma\and space`)
	folder := filepath.Join(base, "root")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "data"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	backends(t, func(t *testing.T, change func(*Config)) {
		p := newProvisioner(t, change, func(c *Config) { c.Dir = filepath.Join(base, "images-"+c.Backend) })
		rootfs, _, err := p.Provision(t.Context(), "c1", folder)
		if err != nil {
			t.Fatalf("Provision: %v", err)
		}
		if got := read(t, rootfs, "data"); got != "x" {
			t.Errorf("data: got %q, want x", got)
		}
	})
}

func TestAReplacedArchiveIsReadAgain(t *testing.T) {
	p := newProvisioner(t)
	path := filepath.Join(t.TempDir(), "current.tar")
	for n, body := range []string{"one", "two"} {
		from := writeDocker(t, imageWith(t, layerOf(t, file{name: "data", body: body})))
		if err := os.Rename(from, path); err != nil {
			t.Fatal(err)
		}
		rootfs, _, err := p.Provision(t.Context(), fmt.Sprintf("c%d", n), path)
		if err != nil {
			t.Fatalf("Provision: %v", err)
		}
		if got := read(t, rootfs, "data"); got != body {
			t.Errorf("data: got %q, want %q", got, body)
		}
	}
}
