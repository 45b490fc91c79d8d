package provisioner

import (
	"archive/tar"
	"crypto/sha512"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

func appcImage(t *testing.T, name, manifest string, more ...file) []byte {
	t.Helper()
	if manifest == "" {
		manifest = fmt.Sprintf(`{"acKind":"ImageManifest","acVersion":"0.8.11","name":%q,"labels":[{"name":"os","value":"linux"},{"name":"arch","value":%q}],
			"app":{"exec":["/bin/app","-x"],"user":"0","group":"0","workingDirectory":"/srv","environment":[{"name":"A","value":"1"}]}}`, name, runtime.GOARCH)
	}
	return tarOf(t, append([]file{{name: "manifest", body: manifest}, {name: "rootfs/", kind: tar.TypeDir, mode: 0o755},
		{name: "rootfs/data", body: "appc"}, {name: "rootfs/hard", kind: tar.TypeLink, link: "rootfs/data"}}, more...)...)
}

func TestAppcImagesAreFoundAndConverted(t *testing.T) {
	const name = "example.com/app"
	good := appcImage(t, name, "")
	id := fmt.Sprintf("sha512-%x", sha512.Sum512(good))
	bad := map[string][]byte{
		"depends": appcImage(t, "example.com/depends", `{"acKind":"ImageManifest","name":"example.com/depends","dependencies":[{"imageName":"example.com/base"}]}`),
		"other":   appcImage(t, "example.com/another", ""),
		"outside": appcImage(t, "example.com/outside", "", file{name: "rootfs/../../../../../../../../../../tmp/appc-outside", body: "x"}, file{name: "rootfs/l", kind: tar.TypeLink, link: "../../etc/passwd"}),
		"none":    tarOf(t, file{name: "rootfs/x", body: "x"}),
		"windows": appcImage(t, "example.com/windows", `{"acKind":"ImageManifest","name":"example.com/windows","labels":[{"name":"os","value":"windows"}]}`),
		"junk":    []byte("this is no archive"),
	}
	var mu sync.Mutex
	asked := 0
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked++
		suffix := "-linux-" + runtime.GOARCH + ".aci"
		if r.URL.Path == "/"+name+"-1.2"+suffix {
			_, _ = w.Write(good)
			return
		}
		for n, b := range bad {
			if r.URL.Path == "/example.com/"+n+"-latest"+suffix {
				_, _ = w.Write(b)
				return
			}
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	defer site.Close()
	image := func(name, id, version string) *mesosv1.Image {
		a := &mesosv1.Image_Appc{Name: &name}
		if id != "" {
			a.Id = &id
		}
		if version != "" {
			key := "version"
			a.Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: &key, Value: &version}}}
		}
		return &mesosv1.Image{Type: mesosv1.Image_APPC.Enum(), Appc: a}
	}
	stored := t.TempDir()
	home := filepath.Join(stored, "images", "sha512-"+strings.Repeat("ab", 32))
	if err := os.MkdirAll(filepath.Join(home, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, body := range map[string]string{"manifest": `{"acKind":"ImageManifest","name":"example.com/stored"}`, "rootfs/data": "stored"} {
		if err := os.WriteFile(filepath.Join(home, path), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	backends(t, func(t *testing.T, change func(*Config)) {
		p := newPuller(t, change, func(c *Config) { c.AppcPrefix, c.AppcStore = site.URL+"/", stored })
		before := asked
		for n, i := range []*mesosv1.Image{image(name, "", "1.2"), image(name, "", "1.2"), image(name, id, "1.2"), image(name, id[:40], "1.2")} {
			rootfs, config, err := p.ProvisionImage(t.Context(), fmt.Sprint(n), i)
			if err != nil {
				t.Errorf("ProvisionImage: %v", err)
				continue
			}
			if read(t, rootfs, "data") != "appc" || read(t, rootfs, "hard") != "appc" {
				t.Error("files: want the image's")
			}
			if !slices.Equal(config.GetEntrypoint(), []string{"/bin/app", "-x"}) || config.GetWorkingDirectory() != "/srv" || config.GetUser() != "0:0" ||
				!slices.Equal(config.GetEnvironment(), []string{"A=1"}) {
				t.Errorf("configuration: got %v, want the manifest's", config)
			}
		}
		if n := asked - before; n != 3 {
			t.Errorf("requests: got %d, want one for the name and one for each id", n)
		}
		if rootfs, _, err := p.ProvisionImage(t.Context(), "stored", image("example.com/stored", "sha512-"+strings.Repeat("ab", 32), "")); err != nil || read(t, rootfs, "data") != "stored" {
			t.Errorf("ProvisionImage from the operator's store: %v", err)
		}
		refused := []*mesosv1.Image{image(name, "sha512-"+strings.Repeat("00", 32), "1.2"), image(name, "", "9"), image("../x", "", ""), image(name, "../../x", ""), image(name, "", "../x")}
		for n := range bad {
			refused = append(refused, image("example.com/"+n, "", ""))
		}
		for _, i := range refused {
			if _, _, err := p.ProvisionImage(t.Context(), "x", i); err == nil {
				t.Errorf("ProvisionImage(%v): got no error", i)
			}
		}
		if _, err := os.Lstat("/tmp/appc-outside"); err == nil {
			t.Error("an image wrote outside its folder")
		}
		wantEmpty(t, p.dir("tmp"))
		if gone, err := p.Prune(t.Context(), nil); err != nil || len(gone) != 0 {
			t.Errorf("Prune: got %v, %v, want nothing removed that is in use", gone, err)
		}
	})
}
