package provisioner

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// Set in the environment, crashDir makes this test binary pull, launch and prune there without end.
const (
	crashDir   = "MOSAIC_PROVISIONER_CRASH_DIR"
	crashImage = "MOSAIC_PROVISIONER_CRASH_IMAGES"
	// crashBackend is the backend that it uses.
	crashBackend = "MOSAIC_PROVISIONER_CRASH_BACKEND"
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

// workUntilKilled pulls, launches, removes and prunes, and says what it is about to do.
func workUntilKilled(dir string, names []string) error {
	ctx := context.Background()
	p, err := New(Config{Dir: dir, Backend: os.Getenv(crashBackend)})
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		fmt.Println("pull")
		var group errgroup.Group
		for _, name := range names {
			group.Go(func() error { return p.Pull(ctx, name, n%2 == 0) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
		fmt.Println("launch")
		id := fmt.Sprintf("c%d", n)
		if _, _, err := p.ProvisionImage(ctx, id, docker(names[n%len(names)])); err != nil {
			return err
		}
		if n%2 == 0 {
			fmt.Println("remove")
			if err := p.Remove(ctx, id); err != nil {
				return err
			}
		}
		fmt.Println("prune")
		if _, err := p.Prune(ctx, nil); err != nil {
			return err
		}
	}
}

// killedWorker lets a worker go on until a random point of a random step.
func killedWorker(t *testing.T, dir string, names []string, random *rand.Rand) (where string) {
	t.Helper()
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
	step := []string{"pull", "pull", "prune", "prune", "launch", "remove"}[random.IntN(6)]
	before, after := random.IntN(3), time.Duration(random.IntN(map[string]int{"pull": 60_000, "prune": 15_000, "launch": 5_000, "remove": 3_000}[step]))*time.Microsecond
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if lines.Text() != step {
			continue
		}
		if before--; before < 0 {
			time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
			break
		}
	}
	for lines.Scan() { // it may be on the way to the next step, and must not wait for us
		continue
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
		t.Fatalf("the process ended by itself before %s: %v", step, err)
	}
	return fmt.Sprintf("%s in a %s", after, step)
}

// wantSound fails unless every image in the store has all it is made of, as its digests say, and nothing is there that no
// image leads to but what containers run from.
func wantSound(t *testing.T, p *Provisioner) {
	t.Helper()
	s, err := p.opened(t.Context())
	if err != nil {
		t.Fatalf("open the store: %v", err)
	}
	ctx := s.context(t.Context())
	all, err := s.images.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	blobs, layers := map[string]bool{}, map[string]bool{} // that something leads to
	parents := func(what, name string) {
		for name != "" {
			info, err := s.layers.Stat(ctx, name)
			if err != nil {
				t.Errorf("%s: layer %s: %v", what, name, err)
				return
			}
			layers[name] = true
			name = info.Parent
		}
	}
	for _, img := range all {
		got, err := s.read(ctx, img)
		if err != nil {
			t.Errorf("image %s: %v", img.Name, err)
			continue
		}
		manifest, err := images.Manifest(ctx, s.content, img.Target, platform{})
		if err != nil {
			t.Errorf("image %s: %v", img.Name, err)
			continue
		}
		blobs[img.Target.Digest.Encoded()], blobs[manifest.Config.Digest.Encoded()] = true, true
		if s.layers != nil {
			parents("image "+img.Name, got.chain.String())
		} else if !isDir(p.dir("images", got.flat, "rootfs")) {
			t.Errorf("image %s: its files are not there", img.Name)
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "content", "blobs", "sha256"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(s.dir, "content", "blobs", "sha256", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if digest.FromBytes(b).Encoded() != e.Name() {
			t.Errorf("content %s is not what its digest says", e.Name())
		}
		if !blobs[e.Name()] {
			t.Errorf("content %s is of no image", e.Name())
		}
	}
	wantEmpty(t, filepath.Join(s.dir, "content", "ingest"))
	if s.layers == nil {
		return
	}
	views, err := s.viewed(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, chain := range views {
		name := leaseView + chain.String()
		if _, err := s.layers.Stat(ctx, name); err == nil {
			parents("view", name)
		} else if !errdefs.IsNotFound(err) { // killed between its lease and itself
			t.Error(err)
		}
	}
	known := 0
	err = s.layers.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if known++; !layers[i.Name] {
			t.Errorf("layer %s is of no image", i.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	folders, err := os.ReadDir(filepath.Join(s.dir, "layers", "snapshots"))
	if err != nil || len(folders) != known {
		t.Errorf("folders of layers: got %d, %v, want %d", len(folders), err, known)
	}
}

// Killed at any point of pulls, launches, removals and prunes, again and again, in the same folder: the store is sound, the
// next start works, what lives keeps its image, and once nothing lives nothing is left.
func TestKill9LeavesASoundStore(t *testing.T) {
	d := newDepot(t)
	body := func(n int) string { return strings.Repeat(fmt.Sprint(n), 1<<17) }
	base := layerOf(t, file{name: "base", body: body(9)})
	var names []string
	for n := range 3 {
		names = append(names, d.push(t, fmt.Sprintf("app%d:1", n), imageWith(t, base, layerOf(t, file{name: "data", body: body(n)}))))
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	points := 50
	if testing.Short() {
		points = 6
	}
	backends(t, func(t *testing.T, change func(*Config)) {
		cfg := Config{Dir: t.TempDir()}
		change(&cfg)
		rounds := points
		if cfg.Backend == BackendCopy {
			rounds = min(points, 12) // what is kept whole is the simpler half
			t.Setenv(crashBackend, cfg.Backend)
		}
		for point := range rounds {
			where := killedWorker(t, cfg.Dir, names, random)
			killedOnce(t, cfg, names, random, point)
			if t.Failed() {
				t.Fatalf("at point %d, killed %s", point, where)
			}
		}
	})
}

// killedOnce looks at what a killed process left, as the next one finds it.
func killedOnce(t *testing.T, cfg Config, names []string, random *rand.Rand, point int) {
	t.Helper()
	p, err := New(cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	wantSound(t, p)
	entries, err := os.ReadDir(p.dir("containers"))
	if err != nil {
		t.Fatal(err)
	}
	var live []string // some live on, of those whose launch was over
	for _, e := range entries {
		complete := true
		for _, name := range []string{"base", "data"} {
			info, err := os.Stat(p.dir("containers", e.Name(), "rootfs", name))
			complete = complete && err == nil && info.Size() == 1<<17
		}
		if complete && random.IntN(2) == 0 {
			live = append(live, e.Name())
		}
	}
	if err := p.Recover(t.Context(), live); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	if _, err := p.Prune(t.Context(), nil); err != nil {
		t.Fatalf("Prune: %v", err)
	}
	wantSound(t, p)
	whole := func(what, rootfs string) {
		if data, base := read(t, rootfs, "data"), read(t, rootfs, "base"); len(data) != 1<<17 || len(base) != 1<<17 {
			t.Errorf("%s has %d and %d bytes of its image, want all", what, len(data), len(base))
		}
	}
	for _, id := range live {
		whole("container "+id, p.dir("containers", id, "rootfs"))
	}
	if err := p.Recover(t.Context(), nil); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	for _, name := range names {
		rootfs, _, err := p.ProvisionImage(t.Context(), "check", docker(name))
		if err != nil {
			t.Fatalf("ProvisionImage: %v", err)
		}
		whole("image "+name, rootfs)
		if err := p.Remove(t.Context(), "check"); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if point%2 == 0 { // else the next one finds what is there
		if _, err := p.Prune(t.Context(), nil); err != nil {
			t.Fatalf("Prune: %v", err)
		}
		wantNothingLeft(t, p)
	}
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
