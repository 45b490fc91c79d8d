package containerizer

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// pushed puts a folder with further files into a registry on loopback as an image, and returns its name there.
func pushed(t *testing.T, folder string, files map[string]string, config v1.Config) string {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if folder != "" {
		if err := w.AddFS(os.DirFS(folder)); err != nil {
			t.Fatal(err)
		}
	}
	for file, body := range files {
		if err := w.WriteHeader(&tar.Header{Name: file, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	if image, err = mutate.Config(image, config); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	where := strings.TrimPrefix(server.URL, "http://") + "/tests/image:1"
	ref, err := name.ParseReference(where)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return where
}

func TestRealDockerContainerOfARegistrysImage(t *testing.T) {
	r := newRig(t)
	image := pushed(t, busyboxImage(t, r), nil, v1.Config{
		Entrypoint: []string{"/bin/busybox"}, Cmd: []string{"echo", "the image's own"}, Env: []string{"A=b"}, WorkingDir: "/etc", User: "4242",
	})
	data := pushed(t, "", map[string]string{"file": "of another image\n"}, v1.Config{})
	want := r.docker(t, image, "force_pull_image: true", "")
	no := false
	want.Command = &mesosv1.CommandInfo{Shell: &no}
	if got := runDocker(t, r, want); len(got) != 1 || got[0] != "the image's own" {
		t.Errorf("output: got %q, want that of entrypoint and command", got)
	}

	r = newRig(t)
	want = r.docker(t, image, "", "pwd; id -u; echo $A; busybox cat /data/file; touch /data/new 2>/dev/null || echo sealed; touch $MESOS_SANDBOX/mine && echo mine")
	place := "/data"
	want.ContainerInfo.Volumes = []*mesosv1.Volume{{ContainerPath: &place, Mode: mesosv1.Volume_RO.Enum(), Image: &mesosv1.Image{
		Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: &data},
	}}}
	got := strings.Join(runDocker(t, r, want), "|")
	if got != "/etc|4242|b|of another image|sealed|mine" {
		t.Errorf("output: got %q, want the image's folder, user and variable, and the other image read-only", got)
	}
	if entries, err := os.ReadDir(filepath.Join(r.env.Dir, "images", "containers")); err != nil || len(entries) > 0 {
		t.Errorf("root filesystems: got %v, %v, want none left", entries, err)
	}
}

func TestRealImageThatNoRegistryHasFailsTheLaunch(t *testing.T) {
	r := newRig(t)
	image := strings.TrimSuffix(pushed(t, "", map[string]string{"file": ""}, v1.Config{}), ":1") + ":2"
	c := r.start(t)
	defer stopAgent(t, c)
	want := r.docker(t, image, "", "id")
	if _, err := c.Launch(launchertest.Context(t), want); err == nil || !strings.Contains(err.Error(), "image "+image) {
		t.Errorf("Launch: got %v, want the image by its name", err)
	}
	waitFor(t, "everything is undone", func() bool { return len(c.all()) == 0 })
}
