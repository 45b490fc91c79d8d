package provisioner

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A root filesystem that is taken away goes before what says what it runs from: who looks for images in use meanwhile
// finds what is in use. Here it stops midway, at a mount that somebody else made.
func TestWhatSaysWhatAContainerRunsFromGoesLast(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	dir := t.TempDir()
	at := filepath.Join(dir, "containers", "c1")
	busy := filepath.Join(at, "rootfs", "busy")
	if err := os.MkdirAll(busy, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("layers sha256:1 name", filepath.Join(at, "image")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(busy, busy, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	unmounted := false
	t.Cleanup(func() {
		if !unmounted {
			_ = unix.Unmount(busy, 0)
		}
	})
	if err := discard(at); err == nil {
		t.Fatal("a root filesystem with a mount in it was taken away")
	}
	p := &Provisioner{cfg: Config{Dir: dir}}
	if uses, err := p.uses(); err != nil || len(uses) != 1 || uses[0].what != "sha256:1" {
		t.Errorf("uses = %+v, %v, want the image of what is left", uses, err)
	}
	if err := unix.Unmount(busy, 0); err != nil {
		t.Fatal(err)
	}
	unmounted = true
	if err := discard(at); err != nil {
		t.Fatal(err)
	}
	if uses, err := p.uses(); err != nil || len(uses) != 0 {
		t.Errorf("uses = %+v, %v, want none", uses, err)
	}
}
