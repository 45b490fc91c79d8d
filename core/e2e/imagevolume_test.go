package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// secretVolume is a volume with a secret as a file.
func secretVolume(place string, secret *mesosv1.Secret) *mesosv1.Volume {
	return &mesosv1.Volume{
		Mode: mesosv1.Volume_RO.Enum(), ContainerPath: &place,
		Source: &mesosv1.Volume_Source{Type: mesosv1.Volume_Source_SECRET.Enum(), Secret: secret},
	}
}

func TestVolumesInAnImageAreWhatWasAskedForOrTheLaunchFails(t *testing.T) {
	needRoot(t)
	image := imageRegistry(t)
	allowed, other, secrets := t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(secrets, "db"), []byte("by reference"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(allowed, "file")
	if err := os.WriteFile(file, []byte("from the machine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, filepath.Join(allowed, "link")); err != nil {
		t.Fatal(err)
	}
	c := start(t, cluster.Options{Composition: `
isolator "cgroups" {}
isolator "namespaces" {}
isolator "linux" {}
isolator "volumes" {
  config {
    allow = ["` + allowed + `"]
  }
}
secret_resolver "file" {
  config {
    folder = "` + secrets + `"
  }
}
`})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "volumes", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 2, 1024)
	if err != nil {
		t.Fatal(err)
	}
	value := &mesosv1.Secret{Type: mesosv1.Secret_VALUE.Enum(), Value: &mesosv1.Secret_Value{Data: []byte("by value")}}
	reference := func(name string) *mesosv1.Secret {
		return &mesosv1.Secret{Type: mesosv1.Secret_REFERENCE.Enum(), Reference: &mesosv1.Secret_Reference{Name: proto.String(name)}}
	}
	const ro, rw = mesosv1.Volume_RO, mesosv1.Volume_RW
	var tasks []*mesosv1.TaskInfo
	var ids []string
	task := func(id, line string) *mesosv1.TaskInfo {
		info := imageTask(o, id, image, cluster.Shell(line))
		tasks, ids = append(tasks, info), append(ids, id)
		return info
	}
	with := func(t *mesosv1.TaskInfo, v *mesosv1.Volume) { t.Container.Volumes = append(t.Container.Volumes, v) }

	// Those that end well, as the task itself finds.
	withVolume(task("reads", `test "$(cat /data/file)" = "from the machine" && ! echo spoiled >/data/file && ! echo new >/data/new`), allowed, ro)
	withVolume(task("writes", `echo "from the task" >/data/written`), allowed, rw)
	with(task("secret", `test "$(cat /keys/value)" = "by value" && busybox grep -E "^[^ ]+ /keys/value (tmpfs|ramfs) ro," /proc/mounts && ! echo spoiled >/keys/value`), secretVolume("/keys/value", value))
	with(task("referred", `test "$(cat /keys/db)" = "by reference"`), secretVolume("/keys/db", reference("db")))
	well := len(tasks)
	// Those that fail, with what their reason says.
	reasons := map[string][]string{
		"elsewhere": {"isolator(volumes)", other, "allow"},
		"linked":    {"isolator(volumes)", filepath.Join(allowed, "link")},
		"missing":   {"isolator(volumes)", filepath.Join(allowed, "nothing"), "not exist"},
		"unknown":   {"nobody-knows-it"},
	}
	withVolume(task("elsewhere", "true"), other, ro)
	withVolume(task("linked", "true"), filepath.Join(allowed, "link"), ro)
	withVolume(task("missing", "true"), filepath.Join(allowed, "nothing"), ro)
	with(task("unknown", "true"), secretVolume("/keys/db", reference("nobody-knows-it")))

	if err := f.Launch(ctx, o, tasks...); err != nil {
		t.Fatal(err)
	}
	got, err := f.State(ctx, ids, mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_ERROR)
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		s := got[id].Status
		want := mesosv1.TaskState_TASK_FINISHED
		if i >= well {
			want = mesosv1.TaskState_TASK_FAILED
		}
		if s.GetState() != want {
			t.Errorf("task %s: %s %s %q, want %s", id, s.GetState(), s.GetReason(), s.GetMessage(), want)
		}
		for _, text := range reasons[id] {
			if !strings.Contains(s.GetMessage(), text) {
				t.Errorf("task %s: the reason is %q, want it to contain %q", id, s.GetMessage(), text)
			}
		}
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "from the machine\n" {
		t.Errorf("the file that was to be read is %q now, %v", data, err)
	}
	if data, err := os.ReadFile(filepath.Join(allowed, "written")); err != nil || string(data) != "from the task\n" {
		t.Errorf("the file that was to be written is %q, %v", data, err)
	}
	err = filepath.WalkDir(c.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // sandboxes come and go
		}
		if info, err := d.Info(); err != nil || info.Size() > 1<<20 {
			return nil //nolint:nilerr // the same; a store of layers
		}
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), "by reference") && !strings.HasSuffix(path, "agent.hcl") {
			t.Errorf("the secret that was resolved lies in %s", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAPersistentVolumeIsThereInAnImage(t *testing.T) {
	needRoot(t)
	image := imageRegistry(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	s := subscribeScript(ctx, t, c.Master, "eng")
	volume := volumeJSON("eng", "v1", 64)
	inImage := func(launch object) object {
		task := dig(launch, "launch", "task_infos", "0").(object)
		task["container"] = object{"type": "MESOS", "mesos": object{"image": object{"type": "DOCKER", "docker": object{"name": image}}}}
		return launch
	}
	offer := s.offer()
	s.accept(offer,
		object{"type": "RESERVE", "reserve": object{"resources": []any{reservedScalar("eng", "disk", 64)}}},
		object{"type": "CREATE", "create": object{"volumes": []any{volume}}},
		inImage(taskOn(offer, "writer", "cd /mnt/mesos/sandbox && echo kept >data/file", volume)))
	s.state("writer", "TASK_FINISHED")
	data, err := os.ReadFile(filepath.Join(c.Dir, "agent", "volumes", "roles", "eng", "v1", "file"))
	if err != nil || string(data) != "kept\n" {
		t.Errorf("the volume has %q, %v; want what the task wrote", data, err)
	}
	offer = s.offer(`"id":"v1"`)
	s.accept(offer, inImage(taskOn(offer, "reader", `test "$(cat /mnt/mesos/sandbox/data/file)" = kept`, volume)))
	s.state("reader", "TASK_FINISHED")
}
