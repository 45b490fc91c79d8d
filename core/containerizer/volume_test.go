package containerizer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// volumeAt is a persistent volume as the agent hands it on; host is "" where the agent keeps no folder for it.
func volumeAt(host, inside string, mode mesosv1.Volume_Mode) *mesosv1.Resource {
	r := &mesosv1.Resource{
		Name: new("disk"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: new(64.0)},
		Disk: &mesosv1.Resource_DiskInfo{
			Persistence: &mesosv1.Resource_DiskInfo_Persistence{Id: new("v")},
			Volume:      &mesosv1.Volume{ContainerPath: &inside, Mode: mode.Enum()},
		},
	}
	if host != "" {
		r.Disk.Volume.HostPath = &host
	}
	return r
}

func TestPersistentVolumesAreLinkedIntoTheSandbox(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir())
	defer stopAgent(t, c)
	host := t.TempDir()
	want := testContainer(t, "c1")
	want.Resources = []*mesosv1.Resource{volumeAt(host, "deep/data", mesosv1.Volume_RW)}
	if _, err := c.Launch(t.Context(), want); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	if got, err := os.Readlink(filepath.Join(want.GetSandbox(), "deep/data")); err != nil || got != host {
		t.Errorf("link in the sandbox leads to %q, %v, want %q", got, err, host)
	}
}

func TestVolumesThatCannotBeGivenFailTheLaunch(t *testing.T) {
	host := t.TempDir()
	for name, x := range map[string]struct {
		volume *mesosv1.Resource
		want   string
	}{
		"nobody keeps it":     {volumeAt("", "data", mesosv1.Volume_RW), "no isolator of this agent mounts it"},
		"absolute, no image":  {volumeAt(host, "/data", mesosv1.Volume_RW), "below its sandbox only"},
		"out of the sandbox":  {volumeAt(host, "../data", mesosv1.Volume_RW), "below its sandbox only"},
		"over a file":         {volumeAt(host, "stdout", mesosv1.Volume_RW), "file exists"},
		"folder is not there": {volumeAt(filepath.Join(host, "none"), "data", mesosv1.Volume_RW), "no such file"},
		"relative host path":  {volumeAt("etc", "data", mesosv1.Volume_RW), "want an absolute path"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			c, _ := startAgent(t, m, t.TempDir())
			defer stopAgent(t, c)
			spec := testContainer(t, "c1")
			spec.Resources = []*mesosv1.Resource{x.volume}
			if _, err := c.Launch(t.Context(), spec); err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("Launch = %v, want an error with %q", err, x.want)
			}
		})
	}
}

func TestPersistentVolumesAreMountedIntoAnImage(t *testing.T) {
	spec := &containerv1.Container{
		Sandbox: "/host/sandbox", SandboxInContainer: "/mnt/mesos/sandbox", Rootfs: "/r",
		Resources: []*mesosv1.Resource{
			volumeAt("/vol/a", "data", mesosv1.Volume_RW),
			volumeAt("/vol/b", "/var/lib/b", mesosv1.Volume_RO),
		},
	}
	merged := &containerv1.Spec{Merged: &containerv1.Proposal{}, Owners: map[string]string{"namespaces.NETWORK": "n"}}
	if err := addOwnMounts(spec, nil, merged); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, mount := range merged.GetMerged().GetMounts() {
		got = append(got, mount.GetSource()+" "+mount.GetDestination()+" "+strings.Join(mount.GetOptions(), ","))
	}
	want := []string{
		"/host/sandbox /mnt/mesos/sandbox rbind,rw",
		"/vol/a /mnt/mesos/sandbox/data rbind,rw",
		"/vol/b /var/lib/b rbind,ro",
	}
	if !slices.Equal(got, want) {
		t.Errorf("mounts = %q, want %q", got, want)
	}
	if err := unmet(spec, merged); err != nil {
		t.Errorf("unmet = %v, want nil", err)
	}
	taken := &containerv1.Spec{Merged: &containerv1.Proposal{}, Owners: map[string]string{"mounts./var/lib/b": "x", "namespaces.NETWORK": "n"}}
	if err := addOwnMounts(spec, nil, taken); err == nil || !strings.Contains(err.Error(), "isolator(x)") {
		t.Errorf("a place that an isolator took: %v, want an error that names it", err)
	}
}

func TestAReadOnlyVolumeAboveTheSandboxIsRefused(t *testing.T) {
	source := t.TempDir()
	launch := func(destination, option string) error {
		spec := &containerv1.Container{Sandbox: "/host/sandbox", SandboxInContainer: "/mnt/mesos/sandbox", Rootfs: "/r"}
		mount := &containerv1.Mount{Source: source, Destination: destination, Type: "bind", Options: []string{"rbind", option}}
		return addOwnMounts(spec, nil, &containerv1.Spec{
			Merged: &containerv1.Proposal{Mounts: []*containerv1.Mount{mount}},
			Owners: map[string]string{"mounts." + destination: "volumes", "namespaces.NETWORK": "n"},
		})
	}
	for destination, option := range map[string]string{"/mnt": "rw", "/mnt/mesos-data": "ro", "/data": "ro"} {
		if err := launch(destination, option); err != nil {
			t.Errorf("a volume at %s, %s: %v", destination, option, err)
		}
	}
	for _, destination := range []string{"/mnt", "/mnt/mesos"} {
		if err := launch(destination, "ro"); err == nil || !strings.Contains(err.Error(), "read-only volume at "+destination) {
			t.Errorf("a read-only volume at %s: %v, want it refused", destination, err)
		}
	}
	if err := os.MkdirAll(filepath.Join(source, "mesos/sandbox"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := launch("/mnt", "ro"); err != nil {
		t.Errorf("a read-only volume that has the place: %v", err)
	}
}
