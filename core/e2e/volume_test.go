package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// busyboxFolder is a folder to be used as an image.
func busyboxFolder(t *testing.T) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a busybox to make an image of: " + err.Error())
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("busybox", filepath.Join(dir, "bin", "sh")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// sharedFolder is a folder that is a mount of its own, shared with those who ask for that.
func sharedFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("this machine does not mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

// mounted says whether something is mounted at a place of this machine.
func mounted(t *testing.T, at string) bool {
	t.Helper()
	list, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(list), " "+at+" ")
}

// imagesGone waits until the root file systems of all containers have been taken away.
func imagesGone(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	eventually(t, "root file systems are gone", 20*time.Second, func() bool {
		left, err := os.ReadDir(filepath.Join(c.Dir, "agent", "images", "containers"))
		return err == nil && len(left) == 0
	})
}

// bidirectional is a composition that allows volumes to show what is mounted in them.
const bidirectional = `
isolator "cgroups" {}
isolator "namespaces" {}
isolator "volumes" {
  config {
    allow_bidirectional = true
  }
}
`

func TestABidirectionalVolumeShowsOnTheMachineWhatATaskMountsInIt(t *testing.T) {
	needRoot(t)
	image := busyboxFolder(t)
	c := start(t, cluster.Options{Composition: bidirectional})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "volumes", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 1, 256)
	if err != nil {
		t.Fatal(err)
	}
	var tasks []*mesosv1.TaskInfo
	folders := map[string]string{}
	for id, how := range map[string]mesosv1.MountPropagation_Mode{
		"shows": mesosv1.MountPropagation_BIDIRECTIONAL, "sees": mesosv1.MountPropagation_HOST_TO_CONTAINER,
	} {
		dir := sharedFolder(t)
		for _, d := range []string{"made", "given"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o777); err != nil {
				t.Fatal(err)
			}
		}
		folders[id] = dir
		task := imageTask(o, id, image, cluster.Shell(
			"busybox mount -t tmpfs made /vol/made && echo from the task > /vol/made/file || exit 9; touch /vol/ready; "+
				"until [ -f /vol/given/file ]; do busybox sleep 0.05; done"))
		task.Container.Volumes = []*mesosv1.Volume{{
			ContainerPath: proto.String("/vol"), Mode: mesosv1.Volume_RW.Enum(),
			Source: &mesosv1.Volume_Source{
				Type: mesosv1.Volume_Source_HOST_PATH.Enum(),
				HostPath: &mesosv1.Volume_Source_HostPath{
					Path: &dir, MountPropagation: &mesosv1.MountPropagation{Mode: how.Enum()},
				},
			},
		}}
		tasks = append(tasks, task)
	}
	if err := f.Launch(ctx, o, tasks...); err != nil {
		t.Fatal(err)
	}
	for id, dir := range folders {
		eventually(t, id+" has mounted", 30*time.Second, func() bool {
			if u := f.Updates(id); len(u) > 0 && u[len(u)-1].Status.GetState() == mesosv1.TaskState_TASK_FAILED {
				t.Fatalf("%s: %v", id, u[len(u)-1].Status)
			}
			_, err := os.Stat(filepath.Join(dir, "ready"))
			return err == nil
		})
		made := filepath.Join(dir, "made")
		t.Cleanup(func() { _ = unix.Unmount(made, unix.MNT_DETACH) })
		if got, want := mounted(t, made), id == "shows"; got != want {
			t.Errorf("%s: what the task mounted is on the machine: %v, want %v", id, got, want)
		}
		if text, err := os.ReadFile(filepath.Join(made, "file")); id == "shows" && (err != nil || string(text) != "from the task\n") {
			t.Errorf("%s: the task's file is read as %q, %v", id, text, err)
		}
		// The other way, both see it.
		given := filepath.Join(dir, "given")
		if err := unix.Mount("given", given, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(given, unix.MNT_DETACH) })
		if err := os.WriteFile(filepath.Join(given, "file"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.State(ctx, []string{"shows", "sees"}, mesosv1.TaskState_TASK_FINISHED); err != nil {
		t.Fatal(err)
	}
	imagesGone(t, c)
	// What was mounted for good stays when the task has ended; nothing else of it does.
	list, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		for id, dir := range folders {
			if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir+"/") && at != dir+"/given" && fmt.Sprint(id, at) != "shows"+dir+"/made" {
				t.Errorf("%s: left on the machine: %s", id, line)
			}
		}
	}
}

func TestATaskOfAGroupShowsWhatItMountsToo(t *testing.T) {
	needRoot(t)
	image, dir := busyboxFolder(t), sharedFolder(t)
	c := start(t, cluster.Options{Composition: bidirectional})
	made := filepath.Join(dir, "made")
	if err := os.Mkdir(made, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(made, unix.MNT_DETACH) })
	file := filepath.Join(t.TempDir(), "group.yaml")
	text := strings.NewReplacer("IMAGE", image, "FOLDER", dir).Replace(`
tasks:
  - name: mounts
    command: {value: "busybox mount -t tmpfs made /vol/made && echo from the task > /vol/made/file"}
    container:
      type: MESOS
      mesos: {image: {type: DOCKER, docker: {name: IMAGE}}}
      volumes:
        - container_path: /vol
          mode: RW
          source: {type: HOST_PATH, host_path: {path: FOLDER, mount_propagation: {mode: BIDIRECTIONAL}}}
`)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	mosaic(t, c, 0, "run", "--group", file, "--user", "root")
	if text, err := os.ReadFile(filepath.Join(made, "file")); err != nil || string(text) != "from the task\n" {
		t.Errorf("the task's file is read as %q, %v", text, err)
	}
	imagesGone(t, c)
}

// TestALaunchThatAnIsolatorRefusesLateLeavesNothing: of two volumes one hides the other, which is seen when both are
// mounted and the container's checkpoint is on its way.
func TestALaunchThatAnIsolatorRefusesLateLeavesNothing(t *testing.T) {
	needRoot(t)
	image := busyboxFolder(t)
	c := start(t, cluster.Options{Dev: true})
	outer, inner := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(outer, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "volumes", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	for i := range 5 {
		o, err := f.Offer(ctx, 0.1, 64)
		if err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprint("hidden-", i)
		task := imageTask(o, id, image, cluster.Shell("true"))
		for _, v := range []struct{ at, from string }{{"/vol/x", inner}, {"/vol", outer}} {
			task.Container.Volumes = append(task.Container.Volumes, &mesosv1.Volume{
				ContainerPath: &v.at, Mode: mesosv1.Volume_RO.Enum(),
				Source: &mesosv1.Volume_Source{Type: mesosv1.Volume_Source_HOST_PATH.Enum(), HostPath: &mesosv1.Volume_Source_HostPath{Path: &v.from}},
			})
		}
		if err := f.Launch(ctx, o, task); err != nil {
			t.Fatal(err)
		}
		got, err := f.State(ctx, []string{id}, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_FINISHED)
		if err != nil {
			t.Fatal(err)
		}
		if s := got[id].Status; s.GetState() != mesosv1.TaskState_TASK_FAILED || !strings.Contains(s.GetMessage(), "isolator(volumes): Isolate: volume at /vol/x") {
			t.Errorf("%s: %v, want the refusal of the hidden volume", id, s)
		}
	}
	// The end waits for whatever is not cleaned up, 15 s long.
	begun := time.Now()
	if err := c.StopAgent(); err != nil {
		t.Fatal(err)
	}
	if took, said := time.Since(begun), c.Logs(); took > 10*time.Second || strings.Contains(said, "not cleaned up") {
		t.Errorf("the end took %s; the log ends with\n%s", took, said[max(0, len(said)-1000):])
	}
}
