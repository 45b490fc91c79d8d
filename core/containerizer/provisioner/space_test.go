package provisioner

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner/registry"
)

// A disk that is full fails the pull and keeps nothing of it, and the next pull of what fits works.
func TestAFullDiskFailsThePullAndKeepsNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small disk")
	}
	noise := make([]byte, 12<<20)
	source := rand.New(rand.NewPCG(3, 4))
	for n := range noise {
		noise[n] = byte(source.Uint32())
	}
	d := newDepot(t)
	big := d.push(t, "big:1", simpleImage(t, string(noise)))
	tight := d.push(t, "tight:1", simpleImage(t, string(noise[:5<<20]))) // fits compressed, and not unpacked beside that
	small := d.push(t, "small:1", simpleImage(t, "x"))
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("no small disk: %v", err)
	}
	t.Cleanup(func() {
		// The content store forgets to close a file with which it tries what the disk can.
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	backends(t, func(t *testing.T, change func(*Config)) {
		p := newPuller(t, change, func(c *Config) { c.Dir = filepath.Join(disk, filepath.Base(t.Name())) })
		for _, image := range []string{big, tight} {
			if _, _, err := p.ProvisionImage(t.Context(), "a", docker(image)); !errors.Is(err, registry.ErrNoSpace) {
				t.Errorf("ProvisionImage of what does not fit: got %v, want %v", err, registry.ErrNoSpace)
			}
			wantNothingLeft(t, p)
		}
		if rootfs, _, err := p.ProvisionImage(t.Context(), "a", docker(small)); err != nil || read(t, rootfs, "data") != "x" {
			t.Errorf("ProvisionImage of what fits: %v", err)
		}
		if err := p.Remove(t.Context(), "a"); err != nil {
			t.Errorf("Remove: %v", err)
		}
	})
}
