package containerizer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// sandboxPath describes a volume that shows a path of a sandbox.
func sandboxPath(of mesosv1.Volume_Source_SandboxPath_Type, path, inside string, mode mesosv1.Volume_Mode) *mesosv1.Volume {
	return &mesosv1.Volume{ContainerPath: &inside, Mode: &mode, Source: &mesosv1.Volume_Source{
		Type: mesosv1.Volume_Source_SANDBOX_PATH.Enum(), SandboxPath: &mesosv1.Volume_Source_SandboxPath{Type: &of, Path: &path},
	}}
}

func withVolumes(c *containerv1.Container, volumes ...*mesosv1.Volume) *containerv1.Container {
	if c.ContainerInfo == nil {
		c.ContainerInfo = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum()}
	}
	c.ContainerInfo.Volumes = append(c.ContainerInfo.Volumes, volumes...)
	return c
}

const (
	ofParent = mesosv1.Volume_Source_SandboxPath_PARENT
	ofSelf   = mesosv1.Volume_Source_SandboxPath_SELF
)

func TestNestedContainersShareAPathOfTheirParentsSandbox(t *testing.T) {
	c, _ := startAgent(t, newMachine(t), t.TempDir())
	defer stopAgent(t, c)
	root := testContainer(t, "root")
	a := withVolumes(nestedIn(root, "a"), sandboxPath(ofParent, "shared/deep", "in/here", mesosv1.Volume_RW))
	b := withVolumes(nestedIn(root, "b"), sandboxPath(ofParent, "shared/deep", "there", mesosv1.Volume_RW), sandboxPath(ofSelf, "mine", "also/mine", mesosv1.Volume_RW))
	launch(t, c, root, a, b)
	if err := os.WriteFile(filepath.Join(a.Sandbox, "in/here/file"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{filepath.Join(b.Sandbox, "there/file"), filepath.Join(root.Sandbox, "shared/deep/file")} {
		if got, err := os.ReadFile(place); err != nil || string(got) != "hello" {
			t.Errorf("read %s = %q, %v, want what the other container wrote", place, got, err)
		}
	}
	if err := os.WriteFile(filepath.Join(b.Sandbox, "also/mine/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(b.Sandbox, "mine/file")); err != nil {
		t.Errorf("a path of its own sandbox: %v, want the file", err)
	}
}

func TestSandboxPathReachesThePersistentVolumeOfTheParent(t *testing.T) {
	c, _ := startAgent(t, newMachine(t), t.TempDir())
	defer stopAgent(t, c)
	volume := t.TempDir()
	root := testContainer(t, "root")
	root.Resources = []*mesosv1.Resource{volumeAt(volume, "data", mesosv1.Volume_RW)}
	a := withVolumes(nestedIn(root, "a"), sandboxPath(ofParent, "data", "data", mesosv1.Volume_RW), sandboxPath(ofParent, "data/sub", "sub", mesosv1.Volume_RW))
	launch(t, c, root, a)
	for inside, want := range map[string]string{"data": volume, "sub": filepath.Join(volume, "sub")} {
		if got, err := os.Readlink(filepath.Join(a.Sandbox, inside)); err != nil || got != want {
			t.Errorf("%s leads to %q, %v, want %s", inside, got, err, want)
		}
	}
}

func TestSandboxPathsThatLeadElsewhereAreRefused(t *testing.T) {
	for what, test := range map[string]struct {
		volume *mesosv1.Volume
		want   string
	}{
		"a link out of the sandbox": {sandboxPath(ofParent, "trap", "here", mesosv1.Volume_RW), "escapes"},
		"below such a link":         {sandboxPath(ofParent, "trap/etc", "here", mesosv1.Volume_RW), "escapes"},
		"parent folders":            {sandboxPath(ofParent, "../other", "here", mesosv1.Volume_RW), "below the sandbox"},
		"the sandbox itself":        {sandboxPath(ofParent, ".", "here", mesosv1.Volume_RW), "below the sandbox"},
		"an absolute path":          {sandboxPath(ofParent, "/etc", "here", mesosv1.Volume_RW), "below the sandbox"},
		"into the parent's sandbox": {sandboxPath(ofParent, "x", "../here", mesosv1.Volume_RW), "below the sandbox"},
		"a pipe":                    {sandboxPath(ofParent, "pipe", "here", mesosv1.Volume_RW), "regular file"},
		"no type":                   {sandboxPath(mesosv1.Volume_Source_SandboxPath_UNKNOWN, "x", "here", mesosv1.Volume_RW), "want SELF or PARENT"},
		"a place that is not there": {sandboxPath(ofParent, "x", "/no/such/place", mesosv1.Volume_RW), "no such file"},
	} {
		c, _ := startAgent(t, newMachine(t), t.TempDir())
		root := testContainer(t, "root")
		launch(t, c, root)
		if err := os.Symlink("/", filepath.Join(root.Sandbox, "trap")); err != nil {
			t.Fatal(err)
		}
		makePipe(t, filepath.Join(root.Sandbox, "pipe"))
		_, err := c.Launch(t.Context(), withVolumes(nestedIn(root, "a"), test.volume))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Launch = %v, want an error with %q", what, err, test.want)
		}
		stopAgent(t, c)
	}
	c, _ := startAgent(t, newMachine(t), t.TempDir())
	defer stopAgent(t, c)
	if _, err := c.Launch(t.Context(), withVolumes(testContainer(t, "root"), sandboxPath(ofParent, "x", "y", mesosv1.Volume_RW))); err == nil {
		t.Error("Launch of a root container with a path of its parent succeeded, want an error")
	}
}

func TestSandboxOfANestedContainerIsNotMadeBehindALink(t *testing.T) {
	c, _ := startAgent(t, newMachine(t), t.TempDir())
	defer stopAgent(t, c)
	root, elsewhere := testContainer(t, "root"), t.TempDir()
	launch(t, c, root)
	if err := os.Symlink(elsewhere, filepath.Join(root.Sandbox, "containers")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Launch(t.Context(), nestedIn(root, "a")); err == nil || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("Launch = %v, want it refused", err)
	}
	if err := os.Remove(filepath.Join(root.Sandbox, "containers")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root.Sandbox, "containers"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..", filepath.Join(root.Sandbox, "containers", "b")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Launch(t.Context(), nestedIn(root, "b")); err == nil || !strings.Contains(err.Error(), "want a folder") {
		t.Errorf("Launch = %v, want it refused", err)
	}
	if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
		t.Errorf("where the link leads: %v, %v, want nothing", left, err)
	}
}

func TestReadOnlySandboxPathIsMountedFromAPlaceOfTheAgents(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	m := newMachine(t)
	c, _ := startAgent(t, m, dir)
	root := testContainer(t, "root")
	a := withVolumes(nestedIn(root, "a"), sandboxPath(ofParent, "shared", "here", mesosv1.Volume_RO))
	launch(t, c, root, a)
	mounts := m.process(a.Id).request.Proposal.GetMounts()
	if len(mounts) != 1 || mounts[0].GetDestination() != filepath.Join(a.Sandbox, "here") || !slices.Contains(mounts[0].GetOptions(), "ro") ||
		!strings.HasPrefix(mounts[0].GetSource(), filepath.Join(dir, "v")) {
		t.Fatalf("mounts = %v, want one, read-only, from below %s", mounts, dir)
	}
	// What the parent does to the path afterwards changes nothing.
	if err := os.Rename(filepath.Join(root.Sandbox, "shared"), filepath.Join(root.Sandbox, "moved")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root.Sandbox, "moved", "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(mounts[0].GetSource(), "file")); err != nil {
		t.Errorf("file of the volume: %v", err)
	}
	if info, err := os.Stat(filepath.Join(a.Sandbox, "here")); err != nil || !info.IsDir() {
		t.Errorf("place of the mount: %v, %v, want a folder", info, err)
	}

	// The agent's end changes nothing; the container's takes the mount away, and not what it showed.
	stopAgent(t, c)
	c, _ = startAgent(t, m, dir)
	defer stopAgent(t, c)
	if _, err := c.Recover(t.Context(), []string{"root"}); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	if _, err := os.Stat(filepath.Join(mounts[0].GetSource(), "file")); err != nil {
		t.Errorf("file of the volume after the agent was started anew: %v", err)
	}
	m.exit(a.Id, 0)
	waitFor(t, "the mount is gone", func() bool { _, err := os.Lstat(filepath.Join(dir, "v", shortName(a.Id))); return os.IsNotExist(err) })
	if _, err := os.Stat(filepath.Join(root.Sandbox, "moved", "file")); err != nil {
		t.Errorf("file of the volume after the container's end: %v", err)
	}
}

func TestMountsOfContainersThatAreGoneAreTakenAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir, data := t.TempDir(), t.TempDir()
	m := newMachine(t)
	c, _ := startAgent(t, m, dir)
	f, err := os.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tree, err := treeAt(f)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	place, err := c.stage("stranger", "v0", tree, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(place, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	stopAgent(t, c)
	c, _ = startAgent(t, m, dir)
	defer stopAgent(t, c)
	if _, err := c.Recover(t.Context(), nil); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	if _, err := os.Lstat(place); !os.IsNotExist(err) {
		t.Errorf("place of the mount: %v, want it gone", err)
	}
	if _, err := os.Stat(filepath.Join(data, "file")); err != nil {
		t.Errorf("what was mounted: %v, want it untouched", err)
	}
}

// TestAPlaceThatLeadsOutOfTheSandboxIsNone: an archive that was fetched may have put a link there, and what is mounted
// for a container without image is mounted on the files of the machine as it sees them.
func TestAPlaceThatLeadsOutOfTheSandboxIsNone(t *testing.T) {
	dir := t.TempDir()
	c, _ := startAgent(t, newMachine(t), dir)
	spec := testContainer(t, "c")
	if err := os.MkdirAll(spec.Sandbox, 0o755); err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"out": outside, "deep/out": outside, "file": filepath.Join(outside, "file"), "up": "../../..", "in": "folder", "loop": "loop",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(spec.Sandbox, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(spec.Sandbox, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(spec.Sandbox, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		inside     string
		folder, ok bool
	}{
		{"out", true, false}, {"deep/out", true, false}, {"out/below", true, false}, {"file", false, false}, {"up", true, false}, {"loop", true, false},
		{"in", true, true}, {"in", false, false}, {"new", true, true}, {"fresh/file", false, true}, {"/etc", true, true}, {"/etc", false, false},
		{"/no/such/place", true, false},
	} {
		if err := c.placeOnHost(spec, test.inside, test.folder); (err == nil) != test.ok {
			t.Errorf("placeOnHost(%q, folder %v) = %v, want success %v", test.inside, test.folder, err, test.ok)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 1 {
		t.Errorf("where the links lead: %v, %v; want the one file", left, err)
	}
}
