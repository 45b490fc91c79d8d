package oci_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// mountsBelow are the places below a folder that something is mounted at on this machine.
func mountsBelow(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir+"/") {
			found = append(found, strings.TrimPrefix(at, dir+"/"))
		}
	}
	return strings.Join(found, " ")
}

// TestOnlyAVolumeThatIsSharedShowsWhatIsMountedInIt: all is in shared mounts of this machine, the image too.
func TestOnlyAVolumeThatIsSharedShowsWhatIsMountedInIt(t *testing.T) {
	for _, test := range []struct{ name, option, want string }{
		{"shared", "rshared", "top/volume/in top/volume/from-here"},
		{"not shared", "rslave", "top/volume/from-here"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := launchertest.New(t)
			l := newLauncher(t, e)
			image, top := launchertest.Image(t, e), filepath.Join(e.Dir, "top")
			if err := os.Mkdir(top, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, d := range []string{image, top} { // a runtime makes the mount private that an image lies in
				if err := unix.Mount(d, d, "", unix.MS_BIND, ""); err != nil {
					t.Skipf("this machine does not mount: %v", err)
				}
				t.Cleanup(func() { _ = unix.Unmount(d, unix.MNT_DETACH) })
				if err := unix.Mount("", d, "", unix.MS_SHARED, ""); err != nil {
					t.Fatal(err)
				}
			}
			for _, d := range []string{"volume/in", "volume/from-here", "other/in"} {
				if err := os.MkdirAll(filepath.Join(top, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			test.want = "image top " + test.want
			r := e.Attached(containerv1.Container_ATTACHED, "sh", "-c", "for d in volume other; do /bin/busybox mount -t tmpfs in /$d/in || exit 9; done; "+
				"echo mounted; read x; /bin/busybox grep -c ' /volume/from-here ' /proc/self/mountinfo")
			r.Container.Rootfs = image
			r.Proposal.Mounts = []*containerv1.Mount{
				{Destination: "/volume", Source: filepath.Join(top, "volume"), Type: "bind", Options: []string{"rbind", "rw", test.option}},
				{Destination: "/other", Source: filepath.Join(top, "other"), Type: "bind", Options: []string{"rbind", "rw"}},
			}
			h := launchertest.Start(t, l, r)
			s := launchertest.Attach(t, h)
			launchertest.ReadUntil(t, s, "mounted\n")
			if err := unix.Mount("from-here", filepath.Join(top, "volume/from-here"), "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(filepath.Join(top, "volume/from-here"), unix.MNT_DETACH) })
			t.Cleanup(func() { _ = unix.Unmount(filepath.Join(top, "volume/in"), unix.MNT_DETACH) })
			if got := mountsBelow(t, e.Dir); got != test.want {
				t.Errorf("mounted on this machine: %q, want %q", got, test.want)
			}
			if err := s.Write([]byte("\n")); err != nil {
				t.Fatal(err)
			}
			if out, _ := launchertest.ReadAll(t, s); !strings.HasSuffix(out, "1\n") {
				t.Errorf("got %q, want what this machine mounts in the volume to be in the container", out)
			}
			launchertest.Wait(t, h)
			if err := h.Destroy(launchertest.Context(t)); err != nil {
				t.Fatal(err)
			}
			if got := mountsBelow(t, e.Dir); got != test.want {
				t.Errorf("mounted on this machine after the container's end: %q, want %q", got, test.want)
			}
		})
	}
}
