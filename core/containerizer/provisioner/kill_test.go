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
)

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
