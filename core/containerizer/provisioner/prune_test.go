package provisioner

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
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
