package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// crew is a cluster with a task of each way to have volumes: with an image and a network, with an image in a group, and
// without either. Two of them share a persistent volume and a Docker volume.
type crew struct {
	*cluster.Framework
	calm    *bystander // the one with everything, whose Docker volume is its own
	f       *furniture
	c       *cluster.Cluster
	seen    *survey
	tasks   []string // the others
	machine string   // a shared mount of the machine, which they see
	agent   *mesosv1.AgentID
}

// waits is a command that writes a line into its volumes and waits.
func waits(id string, files ...string) *mesosv1.CommandInfo {
	var line strings.Builder
	for _, f := range files {
		fmt.Fprintf(&line, "echo %s >>%s && ", id, f)
	}
	return cluster.Shell(line.String() + "echo >ready && while :; do sleep 1000; done")
}

func signOn(ctx context.Context, t *testing.T) *crew {
	t.Helper()
	needBridge(t)
	f := furnish(t)
	w := &crew{f: f, machine: sharedFolder(t)}
	for _, dir := range []string{"given", "made"} {
		if err := os.Mkdir(filepath.Join(w.machine, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	composition := strings.Replace(f.composition(), `isolator "volumes" {}`, "isolator \"volumes\" {\n  config {\n    allow_bidirectional = true\n  }\n}", 1)
	w.c = start(t, cluster.Options{Composition: composition})
	w.seen = newSurvey(t, w.c, f.plugin, "")
	w.calm = standBy(ctx, t, w.c, f)
	w.Framework = subscribeShared(ctx, t, w.c.Master, "crew", "crew")
	o, err := w.Offer(ctx, 0.6, 256)
	if err != nil {
		t.Fatal(err)
	}
	w.agent = o.GetAgentId()
	const ro, rw = mesosv1.Volume_RO, mesosv1.Volume_RW
	reserved, volume := persistent("crew", "common", "linked", true)
	inTask := func(task *mesosv1.TaskInfo) *mesosv1.TaskInfo {
		v := proto.CloneOf(volume)
		v.AllocationInfo = o.GetAllocationInfo()
		task.Resources = append(task.Resources, v)
		return task
	}
	plain := inTask(cluster.Task(o, "plain", 0.1, 32, waits("plain", "linked/file", "docker/file", "machine/of-plain", "own/file")))
	*plain.Command.Value = `test "$(cat image/www/index.html) $(cat secret)" = "` + strings.TrimSpace(registryPage) + ` referred" && ! echo x 2>/dev/null >image/x && ` + *plain.Command.Value
	plain.Container = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), Volumes: []*mesosv1.Volume{
		hostVolume(w.machine, "machine", rw, mesosv1.MountPropagation_HOST_TO_CONTAINER),
		sandboxVolume(mesosv1.Volume_Source_SandboxPath_SELF, "other", "own", rw),
		sandboxVolume(mesosv1.Volume_Source_SandboxPath_SELF, "other", "read", ro),
		secretVolume("secret", secretNamed("referred")),
		imageVolume(f.image, "image"),
		f.plugin.volume("common", "docker", rw),
	}}
	image := inTask(imageTask(o, "image", f.image, waits("image", "linked/file", "/docker/file", "/machine/of-image")))
	image.Container.Volumes = []*mesosv1.Volume{
		hostVolume(w.machine, "/machine", rw, mesosv1.MountPropagation_BIDIRECTIONAL),
		f.plugin.volume("common", "/docker", rw),
		imageVolume(f.image, "/image"),
	}
	grouped := imageTask(o, "grouped", f.image, waits("grouped", "/shared/file", "/docker/file", "/machine/of-grouped"))
	grouped.Container.Volumes = []*mesosv1.Volume{
		sandboxVolume(mesosv1.Volume_Source_SandboxPath_PARENT, "shared", "/shared", rw),
		hostVolume(w.machine, "/machine", rw, mesosv1.MountPropagation_UNKNOWN),
		secretVolume("/secret", secretOf("value")),
		f.plugin.volume("of-the-group", "/docker", rw),
	}
	group := (&churn{Framework: w.Framework, f: f}).group(o, grouped)
	ops := append(makeVolumes([]*mesosv1.Resource{reserved}, []*mesosv1.Resource{volume}), launching(plain, image), group)
	if err := w.Client().Accept(ctx, []*mesosv1.OfferID{o.GetId()}, ops, 0); err != nil {
		t.Fatal(err)
	}
	w.tasks = []string{"plain", "image", "grouped"}
	running, err := w.State(ctx, w.tasks, mesosv1.TaskState_TASK_RUNNING, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_ERROR, mesosv1.TaskState_TASK_DROPPED)
	if err != nil {
		t.Fatal(err)
	}
	for id, u := range running {
		if u.Status.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Fatalf("task %s: %v", id, u.Status)
		}
		dir := "*/runs/" + u.Status.GetContainerStatus().GetContainerId().GetValue()
		if id == "grouped" {
			dir = "*/runs/latest/tasks/grouped"
		}
		eventually(t, id+" to have written into its volumes", 20*time.Second, func() bool {
			found, _ := filepath.Glob(filepath.Join(w.c.Dir, "agent/slaves/*/frameworks/*/executors", dir, "ready"))
			return len(found) > 0
		})
	}
	return w
}

// haveTheirs checks what the volumes of all tasks hold, from the machine's side.
func (w *crew) haveTheirs(t *testing.T, when string) {
	t.Helper()
	w.calm.isWell(t, when)
	for file, want := range map[string][]string{
		filepath.Join(w.c.Dir, "agent/volumes/roles/crew/common/file"): {"image", "plain"},
		filepath.Join(w.f.plugin.at("common"), "file"):                 {"image", "plain"}, // where it is mounted
		filepath.Join(w.f.plugin.at("of-the-group"), "file"):           {"grouped"},
		filepath.Join(w.machine, "of-plain"):                           {"plain"},
		filepath.Join(w.machine, "of-image"):                           {"image"},
		filepath.Join(w.machine, "of-grouped"):                         {"grouped"},
	} {
		data, err := os.ReadFile(file)
		if got := strings.Fields(string(data)); err != nil || !slices.Equal(slices.Sorted(slices.Values(got)), want) {
			t.Errorf("%s: %s holds %q, %v; want %q", when, file, data, err, want)
		}
	}
	for _, name := range []string{"common", "of-the-group"} {
		if n := w.f.plugin.count(name); n != 1 {
			t.Errorf("%s: Docker volume %s is mounted %d times, want once", when, name, n)
		}
	}
}

// kill kills a task of the crew and waits for its end.
func (w *crew) kill(ctx context.Context, t *testing.T, id string) {
	t.Helper()
	if err := w.Client().Kill(ctx, &mesosv1.TaskID{Value: &id}, w.agent); err != nil {
		t.Fatal(err)
	}
	if _, err := w.State(ctx, []string{id}, mesosv1.TaskState_TASK_KILLED); err != nil {
		t.Fatal(err)
	}
}

// unmountedAll checks that the plugin was asked to unmount each volume that it mounted, as often.
func (w *crew) unmountedAll(t *testing.T) {
	t.Helper()
	for _, name := range []string{bystanderID, "common", "of-the-group"} {
		if n, m := w.f.plugin.asked("VolumeDriver.Mount", name), w.f.plugin.asked("VolumeDriver.Unmount", name); n != 1 || m != 1 {
			t.Errorf("the plugin was asked %d times to mount volume %s and %d times to unmount it, want once each", n, name, m)
		}
	}
}

func TestVolumesOfAllKindsOutliveTheAgentAndEndWithTheirTasks(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Second)
	defer cancel()
	w := signOn(ctx, t)
	w.haveTheirs(t, "at first")
	crashAgent(ctx, t, w.c)
	if err := w.c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	w.haveTheirs(t, "after the agent's end")
	// What the machine mounts now is seen by who asked for that.
	given := filepath.Join(w.machine, "given")
	if err := unix.Mount("given", given, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(given, unix.MNT_DETACH) })
	w.seen.known = append(w.seen.known, given)
	for id, sees := range map[string]bool{"plain": true, "image": true} {
		container := w.Updates(id)[0].Status.GetContainerStatus().GetContainerId().GetValue()
		saw := false
		for pid := range processes(t, w.c, container) {
			list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid)) // it may be a sleep that ends
			saw = saw || strings.Contains(string(list), "/machine/given ")
		}
		if saw != sees {
			t.Errorf("task %s sees what was mounted on the machine after its begin: %v, want %v", id, saw, sees)
		}
	}

	w.kill(ctx, t, "plain")
	if n := w.f.plugin.asked("VolumeDriver.Unmount", "common"); n != 0 {
		t.Errorf("a volume that another task uses was unmounted %d times", n)
	}
	w.kill(ctx, t, "image")
	eventually(t, "the volume of both to be unmounted", 30*time.Second, func() bool { return w.f.plugin.count("common") == 0 })
	w.kill(ctx, t, "grouped")
	w.calm.isWell(t, "after the others' ends")
	if err := w.Teardown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.calm.Teardown(ctx); err != nil {
		t.Fatal(err)
	}
	w.seen.nothing(t, "nobody")
	w.unmountedAll(t)
	if !mounted(t, given) {
		t.Error("what the machine itself mounted in a volume is gone")
	}
	for file, want := range map[string]string{"roles/crew/common/file": "image\n", "roles/calm/own/file": bystanderID} {
		if data, err := os.ReadFile(filepath.Join(w.c.Dir, "agent/volumes", file)); err != nil || !strings.Contains(string(data), want) {
			t.Errorf("the persistent volume's %s is %q, %v; want it kept", file, data, err)
		}
	}
}

func TestVolumesOfTasksThatEndedWithoutTheAgentAreTakenAway(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Second)
	defer cancel()
	w := signOn(ctx, t)
	if err := w.c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	w.killProcesses(t)
	crashAgent(ctx, t, w.c)
	if err := w.c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	w.seen.nothing(t, "nobody")
	w.unmountedAll(t)
	got, err := w.State(ctx, w.tasks, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_KILLED, mesosv1.TaskState_TASK_FINISHED)
	if err != nil {
		t.Fatal(err)
	}
	for id, u := range got {
		t.Logf("%s: %s %q", id, u.Status.GetState(), u.Status.GetMessage())
	}
}

// killProcesses kills all processes of all containers.
func (w *crew) killProcesses(t *testing.T) {
	t.Helper()
	for _, id := range containersEver(t, w.c) {
		for pid := range processes(t, w.c, id) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func TestVolumesOfFrameworksThatAreGoneWhenTheAgentReturnsAreTakenAway(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Second)
	defer cancel()
	w := signOn(ctx, t)
	if err := w.c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*cluster.Framework{w.Framework, w.calm.Framework} {
		if err := f.Teardown(ctx); err != nil {
			t.Fatal(err)
		}
	}
	crashAgent(ctx, t, w.c)
	w.seen.nothing(t, "nobody")
	w.unmountedAll(t)
}
