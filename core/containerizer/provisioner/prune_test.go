package provisioner

import (
	"bufio"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"archive/tar"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

func TestPruneRemovesWhatNobodyUses(t *testing.T) {
	d := newDepot(t)
	base := layerOf(t, file{name: "base", body: "b"})
	used := d.push(t, "used:1", imageWith(t, base, layerOf(t, file{name: "data", body: "used"})))
	excluded := d.push(t, "excluded:1", imageWith(t, base, layerOf(t, file{name: "data", body: "excluded"})))
	unused := d.push(t, "unused:1", imageWith(t, base, layerOf(t, file{name: "data", body: "unused"})))
	local := writeLayout(t, imageWith(t, layerOf(t, file{name: "data", body: "local"})))
	backends(t, func(t *testing.T, change func(*Config)) {
		p := newPuller(t, change)
		rootfs, _, err := p.ProvisionImage(t.Context(), "a", docker(used))
		if err != nil {
			t.Fatalf("ProvisionImage: %v", err)
		}
		for _, image := range []string{excluded, unused, local} {
			if err := p.Pull(t.Context(), image, false); err != nil {
				t.Fatalf("Pull: %v", err)
			}
		}
		gone, err := p.Prune(t.Context(), []string{excluded})
		if want := []string{local, unused}; err != nil || !slices.Equal(gone, sorted(want)) {
			t.Errorf("Prune: got %v, %v, want %v", gone, err, want)
		}
		if read(t, rootfs, "data") != "used" || read(t, rootfs, "base") != "b" {
			t.Error("the container lost its image")
		}
		d.asked()
		for image, requests := range map[string]bool{used: false, excluded: false, unused: true} {
			if _, err := p.ProvisionVolume(t.Context(), "v", strings.ReplaceAll(filepath.Base(image), ":", "-"), docker(image), true); err != nil {
				t.Errorf("ProvisionVolume of %s after Prune: %v", image, err)
			}
			if asked := d.asked("/blobs/") > 0; asked != requests {
				t.Errorf("%s was pulled again: got %t, want %t", image, asked, requests)
			}
			d.asked()
		}
		for _, id := range []string{"a", "v"} {
			if err := p.Remove(t.Context(), id); err != nil {
				t.Errorf("Remove: %v", err)
			}
		}
		if gone, err = p.Prune(t.Context(), nil); err != nil || len(gone) != 3 {
			t.Errorf("Prune: got %v, %v, want the three that are left", gone, err)
		}
		wantNothingLeft(t, p)
	})
}

func sorted(s []string) []string { slices.Sort(s); return s }

func TestImagesAreRemovedWhenTheDiskFills(t *testing.T) {
	d := newDepot(t)
	image, stays := d.push(t, "app:1", simpleImage(t, "x")), d.push(t, "stays:1", simpleImage(t, "y"))
	looked := make(chan float64)
	p := newPuller(t, func(c *Config) {
		c.GC = GCConfig{Headroom: 0.2, Interval: time.Millisecond, Excluded: []string{stays}}
		c.used = func() (float64, error) { return <-looked, nil }
	})
	for _, name := range []string{image, stays} {
		if err := p.Pull(t.Context(), name, false); err != nil {
			t.Fatalf("Pull: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	count := func() int {
		list, err := p.List(t.Context())
		if err != nil {
			t.Errorf("List: %v", err)
		}
		return len(list)
	}
	looked <- 0.79
	looked <- 0.79 // the round before is over
	if n := count(); n != 2 {
		t.Errorf("images while there is room: got %d, want 2", n)
	}
	looked <- 0.81
	looked <- 0.1
	if n := count(); n != 1 {
		t.Errorf("images once the disk is full: got %d, want the excluded one", n)
	}
	cancel()
	close(looked)
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestLaunchesAndPrunesAtTheSameTime(t *testing.T) {
	d := newDepot(t)
	image := d.push(t, "app:1", simpleImage(t, "x"))
	p := newPuller(t)
	stop := make(chan struct{})
	var pruning, launching sync.WaitGroup
	pruning.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := p.Prune(t.Context(), nil); err != nil {
				t.Errorf("Prune: %v", err)
				return
			}
		}
	})
	for worker := range 4 {
		launching.Go(func() {
			for n := range 5 {
				id := fmt.Sprintf("c%d-%d", worker, n)
				rootfs, _, err := p.ProvisionImage(t.Context(), id, docker(image))
				if errors.Is(err, errPruned) {
					continue // three times in a row: the launch fails, and says why
				}
				if err != nil {
					t.Errorf("ProvisionImage: %v", err)
					continue
				}
				if got := read(t, rootfs, "data"); got != "x" {
					t.Errorf("data: got %q, want the image's", got)
				}
				if err := p.Remove(t.Context(), id); err != nil {
					t.Errorf("Remove: %v", err)
				}
			}
		})
	}
	launching.Wait()
	close(stop)
	pruning.Wait()
	if _, err := p.Prune(t.Context(), nil); err != nil {
		t.Errorf("Prune: %v", err)
	}
	wantNothingLeft(t, p)
}

// Set in the environment, crashDir makes this test binary pull, launch and prune there without end.
const (
	crashDir   = "MOSAIC_PROVISIONER_CRASH_DIR"
	crashImage = "MOSAIC_PROVISIONER_CRASH_IMAGES"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := workUntilKilled(dir, strings.Split(os.Getenv(crashImage), ",")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func workUntilKilled(dir string, names []string) error {
	ctx := context.Background()
	p, err := New(Config{Dir: dir})
	if err != nil {
		return err
	}
	fmt.Println("started")
	for n := 0; ; n++ {
		id := fmt.Sprintf("c%d", n)
		if _, _, err := p.ProvisionImage(ctx, id, docker(names[n%len(names)])); err != nil {
			return err
		}
		if n%2 == 0 {
			if err := p.Remove(ctx, id); err != nil {
				return err
			}
		}
		if n%3 == 2 {
			if _, err := p.Prune(ctx, nil); err != nil {
				return err
			}
		}
	}
}

// Killed at any point of pulls, launches and removals, again and again, in the same folder: the next start works, what
// lives keeps its image, and once nothing lives nothing is left.
func TestKill9LeavesNothing(t *testing.T) {
	d := newDepot(t)
	var names []string
	for n := range 3 {
		names = append(names, d.push(t, fmt.Sprintf("app%d:1", n), simpleImage(t, strings.Repeat(fmt.Sprint(n), 1<<17))))
	}
	dir := t.TempDir()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir, crashImage+"="+strings.Join(names, ","))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if !bufio.NewScanner(out).Scan() {
			t.Fatalf("round %d: the process did not start", round)
		}
		kill := time.AfterFunc(time.Duration(random.IntN(300))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
			t.Fatalf("round %d: the process ended by itself: %v", round, err)
		}
		kill.Stop()

		p, err := New(Config{Dir: dir})
		if err != nil {
			t.Fatalf("round %d: New: %v", round, err)
		}
		entries, err := os.ReadDir(p.dir("containers"))
		if err != nil {
			t.Fatal(err)
		}
		var live []string // every other one lives on
		for n, e := range entries {
			if _, err := os.Stat(p.dir("containers", e.Name(), "rootfs", "data")); err == nil && n%2 == 0 {
				live = append(live, e.Name())
			}
		}
		if err := p.Recover(t.Context(), live); err != nil {
			t.Fatalf("round %d: Recover: %v", round, err)
		}
		if _, err := p.Prune(t.Context(), nil); err != nil {
			t.Fatalf("round %d: Prune: %v", round, err)
		}
		for _, id := range live {
			if got := read(t, p.dir("containers", id, "rootfs"), "data"); len(got) != 1<<17 {
				t.Errorf("round %d: container %s has %d bytes of its image, want all", round, id, len(got))
			}
		}
		if err := p.Recover(t.Context(), nil); err != nil {
			t.Fatalf("round %d: Recover: %v", round, err)
		}
		for _, name := range names {
			rootfs, _, err := p.ProvisionImage(t.Context(), "check", docker(name))
			if err != nil {
				t.Fatalf("round %d: ProvisionImage: %v", round, err)
			}
			if got := read(t, rootfs, "data"); len(got) != 1<<17 {
				t.Errorf("round %d: image %s has %d bytes, want all", round, name, len(got))
			}
			if err := p.Remove(t.Context(), "check"); err != nil {
				t.Errorf("round %d: Remove: %v", round, err)
			}
		}
		if round%2 == 0 { // else the next one finds what is there
			if _, err := p.Prune(t.Context(), nil); err != nil {
				t.Fatalf("round %d: Prune: %v", round, err)
			}
			wantNothingLeft(t, p)
		}
		if err := p.Close(); err != nil {
			t.Fatalf("round %d: Close: %v", round, err)
		}
	}
}

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

// What a process that was killed between a change of the database and that of the files left is found at the next start.
func TestFilesThatNothingLeadsToAreRemovedAfterACrash(t *testing.T) {
	d := newDepot(t)
	image := d.push(t, "app:1", simpleImage(t, "x"))
	p := newPuller(t)
	if err := p.Pull(t.Context(), image, false); err != nil {
		t.Fatalf("Pull: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	orphans := []string{
		p.dir("store", "content", "blobs", "sha256", strings.Repeat("ab", 32)),
		p.dir("store", "content", "ingest", strings.Repeat("cd", 32), "data"), // killed before the name was written
	}
	if p.Backend() == BackendOverlay {
		orphans = append(orphans, p.dir("store", "layers", "snapshots", "999", "fs", "file"))
	}
	for _, path := range append(orphans, p.dir("store", openMark)) { // the last one is what says that there was a crash
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("orphan"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	again := newPuller(t, func(c *Config) { c.Dir = p.cfg.Dir })
	d.asked()
	if rootfs, _, err := again.ProvisionImage(t.Context(), "a", docker(image)); err != nil || read(t, rootfs, "data") != "x" || d.asked("") > 0 {
		t.Errorf("ProvisionImage after a crash: %v, want what was pulled before", err)
	}
	for _, path := range orphans {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
}
