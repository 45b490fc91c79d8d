package provisioner

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func TestAnImageIsPulledAndRunFrom(t *testing.T) {
	d := newDepot(t)
	first, second := simpleImage(t, "first"), simpleImage(t, "second")
	image := d.push(t, "team/app:1", first)
	backends(t, func(t *testing.T, change func(*Config)) {
		d.push(t, "team/app:1", first)
		p := newPuller(t, change)
		rootfs, config, err := p.ProvisionImage(t.Context(), "a", docker(image))
		if err != nil {
			t.Fatalf("ProvisionImage: %v", err)
		}
		if got := read(t, rootfs, "data") + read(t, rootfs, "etc/os"); got != "firstbase" {
			t.Errorf("files: got %q, want the image's", got)
		}
		if config.GetWorkingDirectory() != "/srv" || config.GetUser() != "daemon" || !slices.Equal(config.GetEntrypoint(), []string{"/bin/sh"}) {
			t.Errorf("configuration: got %v, want the image's", config)
		}
		d.asked()
		if rootfs, _, err = p.ProvisionImage(t.Context(), "b", docker(image)); err != nil || read(t, rootfs, "data") != "first" {
			t.Errorf("ProvisionImage again: %v", err)
		}
		if n := d.asked(""); n != 0 {
			t.Errorf("the second container made %d requests to the registry, want none", n)
		}
		d.push(t, "team/app:1", second)
		if rootfs, _, err = p.ProvisionImage(t.Context(), "c", anew(docker(image))); err != nil || read(t, rootfs, "data") != "second" {
			t.Errorf("ProvisionImage with cached=false: %v, want what the tag means now", err)
		}
		if rootfs, _, err = p.ProvisionImage(t.Context(), "d", docker(image)); err != nil || read(t, rootfs, "data") != "second" {
			t.Errorf("ProvisionImage afterwards: %v, want what was pulled last", err)
		}
		if got := read(t, p.dir("containers", "a", "rootfs"), "data"); got != "first" {
			t.Errorf("the container from before: got %q, want its own image", got)
		}
		rootfs, _, err = p.ProvisionImage(t.Context(), "e", docker(d.host+"/team/app@"+digestOf(t, first)))
		if err != nil || read(t, rootfs, "data") != "first" {
			t.Errorf("ProvisionImage by digest: %v", err)
		}
	})
}

func TestPulledImagesSurviveARestart(t *testing.T) {
	d := newDepot(t)
	image := d.push(t, "app:1", simpleImage(t, "x"))
	backends(t, func(t *testing.T, change func(*Config)) {
		p := newPuller(t, change)
		if err := p.Pull(t.Context(), image, false); err != nil {
			t.Fatalf("Pull: %v", err)
		}
		if _, _, err := p.ProvisionImage(t.Context(), "a", docker(image)); err != nil {
			t.Fatalf("ProvisionImage: %v", err)
		}
		if err := p.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		again, err := New(p.cfg)
		if err != nil {
			t.Fatalf("New: %v", err)
		}
		defer again.Close()
		if err := again.Recover(t.Context(), []string{"a"}); err != nil {
			t.Errorf("Recover: %v", err)
		}
		d.asked()
		rootfs, _, err := again.ProvisionImage(t.Context(), "b", docker(image))
		if err != nil || read(t, rootfs, "data") != "x" || read(t, again.dir("containers", "a", "rootfs"), "data") != "x" {
			t.Errorf("ProvisionImage after a restart: %v", err)
		}
		if n := d.asked(""); n != 0 {
			t.Errorf("after a restart %d requests were made to the registry, want none", n)
		}
		if gone, err := again.Prune(t.Context(), nil); err != nil || len(gone) > 0 {
			t.Errorf("Prune: got %v, %v, want nothing removed that is in use", gone, err)
		}
		if err := again.Recover(t.Context(), nil); err != nil {
			t.Errorf("Recover: %v", err)
		}
	})
}

func TestImageForThisMachineIsPulled(t *testing.T) {
	d := newDepot(t)
	mine, other := simpleImage(t, "mine"), simpleImage(t, "other")
	as := func(img v1.Image, os, arch string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch}}}
	}
	for kind, list := range map[string]types.MediaType{"oci": types.OCIImageIndex, "docker": types.DockerManifestList} {
		index := mutate.IndexMediaType(mutate.AppendManifests(empty.Index,
			as(other, "linux", "s390x"), as(simpleImage(t, "attestation"), "unknown", "unknown"), as(mine, "linux", runtime.GOARCH), as(other, "windows", runtime.GOARCH)), list)
		image := d.push(t, kind+":1", index)
		p := newPuller(t)
		rootfs, _, err := p.ProvisionImage(t.Context(), "a", docker(image))
		if err != nil || read(t, rootfs, "data") != "mine" {
			t.Errorf("%s: ProvisionImage: %v, want the image for linux/%s", kind, err, runtime.GOARCH)
		}
	}
	p := newPuller(t)
	only := mutate.AppendManifests(empty.Index, as(other, "linux", "s390x"))
	if err := p.Pull(t.Context(), d.push(t, "only:1", only), false); err == nil || !strings.Contains(err.Error(), "nothing for linux/"+runtime.GOARCH+": got linux/s390x") {
		t.Errorf("Pull of an image for others: got %v, want what there is", err)
	}
	c, err := other.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.Architecture = "s390x"
	alone, err := mutate.ConfigFile(other, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Pull(t.Context(), d.push(t, "alone:1", alone), false); err == nil || !strings.Contains(err.Error(), "nothing for linux/"+runtime.GOARCH+": got linux/s390x") {
		t.Errorf("Pull of an image for others: got %v, want what there is", err)
	}
	wantNothingLeft(t, p)
}

func TestOnePullForMany(t *testing.T) {
	d := newDepot(t)
	image := d.push(t, "app:1", simpleImage(t, "x"))
	p := newPuller(t)
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			if _, _, err := p.ProvisionImage(t.Context(), fmt.Sprint(n), docker(image)); err != nil {
				t.Errorf("ProvisionImage: %v", err)
			}
		})
	}
	wg.Wait()
	if n := d.asked("GET", "/blobs/"); n != 3 {
		t.Errorf("20 containers made %d requests for blobs, want 3: a configuration and two layers", n)
	}
}

func TestImagesAreVolumes(t *testing.T) {
	d := newDepot(t)
	image := docker(d.push(t, "data:1", simpleImage(t, "x")))
	backends(t, func(t *testing.T, change func(*Config)) {
		p := newPuller(t, change)
		if _, _, err := p.ProvisionImage(t.Context(), "a", image); err != nil {
			t.Fatalf("ProvisionImage: %v", err)
		}
		own, err := p.ProvisionVolume(t.Context(), "a", "0", image, false)
		if err != nil {
			t.Fatalf("ProvisionVolume: %v", err)
		}
		if err := os.WriteFile(filepath.Join(own, "data"), []byte("mine"), 0o644); err != nil {
			t.Errorf("write to a volume: %v", err)
		}
		if got := read(t, p.dir("containers", "a", "rootfs"), "data"); got != "x" {
			t.Errorf("the root filesystem: got %q, want the image's", got)
		}
		alone, err := p.ProvisionVolume(t.Context(), "b", "1", image, true)
		if err != nil || read(t, alone, "data") != "x" {
			t.Errorf("ProvisionVolume for a container without image: %v", err)
		}
		if p.Backend() == BackendOverlay {
			if err := os.WriteFile(filepath.Join(alone, "data"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
				t.Errorf("write to a volume that is read-only: got %v, want %v", err, syscall.EROFS)
			}
		}
		if gone, err := p.Prune(t.Context(), nil); err != nil || len(gone) > 0 {
			t.Errorf("Prune: got %v, %v, want nothing removed", gone, err)
		}
		if _, err := p.ProvisionVolume(t.Context(), "b", "../c", image, true); err == nil {
			t.Error("ProvisionVolume: got no error for a name that leads elsewhere")
		}
		for _, id := range []string{"a", "b"} {
			if err := p.Remove(t.Context(), id); err != nil {
				t.Errorf("Remove: %v", err)
			}
		}
		if gone, err := p.Prune(t.Context(), nil); err != nil || len(gone) != 1 {
			t.Errorf("Prune: got %v, %v, want the image", gone, err)
		}
		wantNothingLeft(t, p)
	})
}

func TestPullEndsWhenNobodyWaits(t *testing.T) {
	d := newDepot(t)
	image := d.push(t, "app:1", simpleImage(t, "x"))
	arrived := make(chan struct{}, 10)
	d.intercept(only("/blobs/", func(_ http.ResponseWriter, r *http.Request) bool {
		arrived <- struct{}{}
		<-r.Context().Done()
		return true
	}))
	p := newPuller(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	for range 2 {
		go func() { ended <- p.Pull(ctx, image, false) }()
	}
	<-arrived
	stays, leave := context.WithCancel(t.Context())
	third := make(chan error, 1)
	go func() { third <- p.Pull(stays, image, false) }()
	waitFor(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, x := range p.pulls {
			return x.waiters == 3
		}
		return false
	})
	cancel()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Pull: got %v, want %v", err, context.Canceled)
		}
	}
	if pulls := p.Pulls(); len(pulls) != 1 || pulls[0].Ended() {
		t.Errorf("Pulls: got %+v, want one that goes on for who still waits", pulls)
	}
	leave()
	if err := <-third; !errors.Is(err, context.Canceled) {
		t.Errorf("Pull: got %v, want %v", err, context.Canceled)
	}
	wantNothingLeft(t, p)
	d.intercept(nil)
	if err := p.Pull(t.Context(), image, false); err != nil {
		t.Errorf("Pull afterwards: %v", err)
	}
}
