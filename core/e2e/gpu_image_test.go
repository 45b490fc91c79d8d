package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	change "github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// imageThatSays is a layout of an image of busybox with an environment and labels.
func imageThatSays(t *testing.T, environment []string, labels map[string]string) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a busybox to make an image of: " + err.Error())
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	entries := []*tar.Header{{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))}}
	for _, name := range []string{"sh", "cat", "env", "find", "head", "ls", "sort", "sleep"} {
		entries = append(entries, &tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777})
	}
	for _, h := range entries {
		err := w.WriteHeader(h)
		if err == nil && h.Size > 0 {
			_, err = w.Write(program)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := change.AppendLayers(change.MediaType(empty.Image, types.OCIManifestSchema1), static.NewLayer(data.Bytes(), types.OCIUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = v1.Config{Env: append([]string{"PATH=/bin"}, environment...), Labels: labels}
	if img, err = change.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "layout")
	path, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = path.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestImagesSeeTheirOwnGPUsAndThePartsOfTheDriverThatTheyAskFor(t *testing.T) {
	m := gpuStub(t, 2, 0)
	c := start(t, cluster.Options{Composition: m.composition("")})
	look := "for d in /dev/nvidia[0-9]*; do echo $d; done; cd /usr/local/nvidia 2>/dev/null && find . -type f | sort; echo $NVIDIA_VISIBLE_DEVICES $PATH $LD_LIBRARY_PATH; "
	const (
		compute, ml, smi, video, graphics = "./lib64/libcuda.so.1\n./lib64/libcuda.so.580.99\n", "./lib64/libnvidia-ml.so.1\n", "./bin/nvidia-smi\n",
			"./lib64/libnvcuvid.so.580.99\n./lib64/libnvidia-encode.so.1.hidden\n", "./lib64/libnvidia-glcore.so.580.99\n"
		paths = " /usr/local/nvidia/bin:/bin /usr/local/nvidia/lib64\n"
	)
	for _, test := range []struct {
		name        string
		environment []string
		labels      map[string]string
		args        []string
		code        int
		want        string
	}{
		{"asks for nothing", nil, nil, nil, 0, "/dev/nvidia0\nGPU-stub-0 /bin\n"},
		{"asks by variable", []string{"NVIDIA_VISIBLE_DEVICES=all"}, nil, nil, 0, "/dev/nvidia0\n" + smi + compute + ml + "GPU-stub-0" + paths},
		{"asks for a part", []string{"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=utility"}, nil, nil, 0, "/dev/nvidia0\n" + smi + ml + "GPU-stub-0" + paths},
		{"asks for all", []string{"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=all"}, nil, nil, 0,
			"/dev/nvidia0\n" + smi + compute + "./lib64/libnvcuvid.so.580.99\n./lib64/libnvidia-encode.so.1.hidden\n" + graphics + ml + "GPU-stub-0" + paths},
		{"asks by label", nil, map[string]string{"com.nvidia.volumes.needed": "nvidia_driver"}, nil, 0,
			"/dev/nvidia0\n" + smi + compute + "./lib64/libnvcuvid.so.580.99\n./lib64/libnvidia-encode.so.1.hidden\n" + graphics + ml + "GPU-stub-0" + paths},
		{"the task asks", nil, nil, []string{"--env", "NVIDIA_VISIBLE_DEVICES=all", "--env", "NVIDIA_DRIVER_CAPABILITIES=video"}, 0, "/dev/nvidia0\n" + video + "all" + paths},
		{"asks for what there is not", []string{"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=telepathy"}, nil, nil, 125, "telepathy"},
	} {
		image := imageThatSays(t, test.environment, test.labels)
		r := mosaic(t, c, test.code, append(append([]string{"run", "--gpus", "1", "--mem", "64", "--image", image}, test.args...), "--shell", "--", look)...)
		if test.code == 0 && r.Stdout != test.want || test.code != 0 && !strings.Contains(r.Stderr, test.want) {
			t.Errorf("%s: the task said\n%s%s\nwant\n%s", test.name, r.Stdout, r.Stderr, test.want)
		}
	}
	// A node of another GPU that a task makes by itself cannot be opened, and the driver's files are not its own to change.
	image := imageThatSays(t, []string{"NVIDIA_VISIBLE_DEVICES=all"}, nil)
	r := mosaic(t, c, 0, "run", "--gpus", "1", "--mem", "64", "--image", image, "--shell", "--",
		"busybox mkdir /x && busybox mknod /x/nvidia0 c 195 0 && busybox mknod /x/nvidia1 c 195 1; "+m.opens("/x", 2)+"; echo no > /usr/local/nvidia/bin/nvidia-smi || nvidia-smi")
	if want := "0:yes 1:no visible:GPU-stub-0\n/dev/nvidia0\n"; r.Stdout != want {
		t.Errorf("a task that makes nodes said %q%s, want %q", r.Stdout, r.Stderr, want)
	}
	imagesGone(t, c)
	if list, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(list), m.root) {
		t.Errorf("mounts are left, %v:\n%s", err, list)
	}
}

func TestPartsOfADividedGPUAreResources(t *testing.T) {
	m := gpuStub(t, 2, 2)
	c := start(t, cluster.Options{Composition: m.composition("")})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	f := gpuFramework(ctx, t, c, "parts")
	o, err := f.Offer(ctx, 2, 256)
	if err != nil {
		t.Fatal(err)
	}
	const profile = "mig-1g.5gb"
	if whole, parts := cluster.Scalar(o.GetResources(), "gpus"), cluster.Scalar(o.GetResources(), profile); whole != 1 || parts != 2 {
		t.Fatalf("the offer has %v whole GPUs and %v parts, want 1 and 2: %v", whole, parts, o.GetResources())
	}
	image := imageThatSays(t, nil, nil)
	line := "cd /dev; echo $(ls -d nvidia[0-9]* nvidia-caps/* | sort) visible:$NVIDIA_VISIBLE_DEVICES; exec sleep 1000"
	var tasks []*mesosv1.TaskInfo
	for _, id := range []string{"p", "q"} {
		tasks = append(tasks, withGPUs(o, imageTask(o, id, image, cluster.Shell(line)), profile, 1))
	}
	tasks = append(tasks, withGPUs(o, imageTask(o, "w", image, cluster.Shell(line)), "gpus", 1))
	if err := f.Launch(ctx, o, tasks...); err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(ctx, []string{"p", "q", "w"}, mesosv1.TaskState_TASK_RUNNING); err != nil {
		t.Fatal(err)
	}
	got := []string{says(t, c, "p"), says(t, c, "q"), says(t, c, "w")}
	slices.Sort(got)
	want := []string{"nvidia1 visible:GPU-stub-1"}
	for i := range 2 {
		access := 10 * (i + 1)
		want = append(want, fmt.Sprintf("nvidia-caps/nvidia-cap%d nvidia-caps/nvidia-cap%d nvidia0 visible:MIG-stub-0-%d", access, access+1, i))
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the tasks see\n%q, want\n%q", got, want)
	}
}

// TestASpecificationOfTheGPUsServesByName has one agent's isolator write the machine's GPUs down as CDI devices, and another
// agent's tasks ask for them by their names.
func TestASpecificationOfTheGPUsServesByName(t *testing.T) {
	m := gpuStub(t, 2, 0)
	dir := t.TempDir()
	start(t, cluster.Options{Composition: m.composition(fmt.Sprintf("cdi_spec = %q", filepath.Join(dir, "gpus.json")))})
	c := start(t, cluster.Options{Composition: fmt.Sprintf(`
isolator "cgroups" {}
isolator "devices" {
  config {
    cdi           = ["nvidia.com/gpu=*"]
    cdi_spec_dirs = [%q]
  }
}
`, dir)})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	f := checkFramework(ctx, t, c)
	image := imageThatSays(t, nil, nil)
	for id, test := range map[string]struct{ device, want string }{
		"index": {"nvidia.com/gpu=1", "0:none 1:yes"}, "uuid": {"nvidia.com/gpu=GPU-stub-0", "0:yes 1:none"}, "all": {"nvidia.com/gpu=all", "0:yes 1:yes"},
		"unknown": {"nvidia.com/gpu=7", "nvidia.com/gpu=7"}, "another": {"acme.com/gpu=1", "not among those"},
	} {
		o, err := f.Offer(ctx, 0.5, 64)
		if err != nil {
			t.Fatal(err)
		}
		task := imageTask(o, id, image, cluster.Shell(m.opens("/dev", 2)+"; cat /usr/local/nvidia/lib64/libcuda.so.1"))
		key := "mosaic.devices"
		task.Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: &key, Value: &test.device}}}
		if err := f.Launch(ctx, o, task); err != nil {
			t.Fatal(err)
		}
		ended, err := f.State(ctx, []string{id}, mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED)
		if err != nil {
			t.Fatal(err)
		}
		s := ended[id].Status
		if s.GetState() == mesosv1.TaskState_TASK_FAILED {
			if !strings.Contains(s.GetMessage(), test.want) {
				t.Errorf("%s failed with %v, want %q", test.device, s, test.want)
			}
			continue
		}
		if got := wroteSoFar(t, c, id); !strings.HasPrefix(got, test.want) || !strings.HasSuffix(got, "compute") {
			t.Errorf("%s: the task said %q, want %q and the driver", test.device, got, test.want)
		}
	}
}
