package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
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

// gpuMachine is a driver's root with a library that tells of GPUs that are not there. Their nodes are real: whoever may
// open one learns from the kernel that there is no such device, and whoever may not, that it is not permitted.
type gpuMachine struct{ root string }

// gpuStub makes a machine with so many GPUs; the first is divided into parts if there are any.
func gpuStub(t *testing.T, gpus, parts int) gpuMachine {
	t.Helper()
	needRoot(t)
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("needs a C compiler to build a driver's library with: " + err.Error())
	}
	if _, err := os.Stat(filepath.Join(bin, "mosaic-isolator-nvidia-gpu")); err != nil {
		t.Skip("needs the isolator for GPUs: " + err.Error())
	}
	if _, err := os.Stat("/dev/nvidiactl"); err == nil {
		t.Skip("this machine has a driver of its own, whose devices answer")
	}
	m := gpuMachine{root: t.TempDir()}
	// Tasks of other users pass through.
	for dir := m.root; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"dev/nvidia-caps", "proc/driver/nvidia-caps", "usr/lib64", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(m.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	node := func(name string, major, minor int) {
		if err := unix.Mknod(filepath.Join(m.root, "dev", name), unix.S_IFCHR|0o666, int(unix.Mkdev(uint32(major), uint32(minor)))); err != nil {
			t.Skipf("this machine does not let us make device nodes: %v", err)
		}
	}
	node("nvidiactl", 195, 255)
	node("nvidia-uvm", 510, 0)
	for i := range gpus {
		node(fmt.Sprintf("nvidia%d", i), 195, i)
	}
	var minors strings.Builder
	for i := range parts {
		access, compute := 10*(i+1), 10*(i+1)+1
		node(fmt.Sprintf("nvidia-caps/nvidia-cap%d", access), 511, access)
		node(fmt.Sprintf("nvidia-caps/nvidia-cap%d", compute), 511, compute)
		fmt.Fprintf(&minors, "gpu0/gi%d/access %d\ngpu0/gi%d/ci0/access %d\n", i+1, access, i+1, compute)
	}
	for name, text := range map[string]string{
		"proc/driver/nvidia-caps/mig-minors": minors.String(),
		"usr/lib64/libcuda.so.580.99":        "compute", "usr/lib64/libnvcuvid.so.580.99": "video",
		"usr/bin/nvidia-smi":                     "#!/bin/sh\nfor d in /dev/nvidia[0-9]*; do echo $d; done\n",
		"usr/lib64/libnvidia-glcore.so.580.99":   "graphics",
		"usr/lib64/libsomething-else.so.580.99":  "not the driver's",
		"usr/lib64/libnvidia-encode.so.1.hidden": "video",
	} {
		if err := os.WriteFile(filepath.Join(m.root, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("libcuda.so.580.99", filepath.Join(m.root, "usr/lib64/libcuda.so.1")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, gcc, fmt.Sprintf("-DGPUS=%d", gpus), fmt.Sprintf("-DPARTS=%d", parts), "-shared", "-fPIC",
		"-o", m.library(), "../../isolators/nvidiagpu/testdata/nvml.c")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build a driver's library: %v\n%s", err, out)
	}
	return m
}

func (m gpuMachine) library() string { return filepath.Join(m.root, "usr/lib64/libnvidia-ml.so.1") }

// composition gives its GPUs to containers; the isolator is named without a command. more is further configuration.
func (m gpuMachine) composition(more string) string {
	return fmt.Sprintf("isolator \"cgroups\" {}\nisolator \"nvidia_gpu\" {\n  config {\n    library          = %q\n    driver_root      = %q\n    measure_interval = \"100ms\"\n%s\n  }\n}\n",
		m.library(), m.root, more)
}

// opens is a command line that tells in one line which of the machine's GPUs can be opened, in the machine's own folder
// or in the container's: "0:yes 1:no" and so on; no is not permitted, none is not there.
func (m gpuMachine) opens(folder string, gpus int) string {
	var b strings.Builder
	for i := range gpus {
		fmt.Fprintf(&b, `e=$(head -c1 %s/nvidia%d 2>&1 >/dev/null); case "$e" in *"No such device"*) w=yes;; *"not permitted"*) w=no;; *"No such file"*) w=none;; *) w="$e";; esac; printf '%d:%%s ' "$w"; `, folder, i, i)
	}
	return b.String() + `echo "visible:$NVIDIA_VISIBLE_DEVICES"`
}

// gpuFramework is one that may have GPUs.
func gpuFramework(ctx context.Context, t *testing.T, c *cluster.Cluster, name string) *cluster.Framework {
	t.Helper()
	f, err := cluster.SubscribeAs(ctx, c.Master, &mesosv1.FrameworkInfo{
		Name: &name, User: proto.String("root"), Roles: []string{"*"}, Checkpoint: proto.Bool(true), FailoverTimeout: proto.Float64(60),
		Capabilities: []*mesosv1.FrameworkInfo_Capability{
			{Type: mesosv1.FrameworkInfo_Capability_MULTI_ROLE.Enum()}, {Type: mesosv1.FrameworkInfo_Capability_GPU_RESOURCES.Enum()},
			{Type: mesosv1.FrameworkInfo_Capability_RESERVATION_REFINEMENT.Enum()},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Disconnect)
	return f
}

// withGPUs adds an amount of a resource to a task.
func withGPUs(o *mesosv1.Offer, task *mesosv1.TaskInfo, name string, n float64) *mesosv1.TaskInfo {
	task.Resources = append(task.Resources, &mesosv1.Resource{
		Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &n}, AllocationInfo: o.GetAllocationInfo(),
	})
	return task
}

// wroteSoFar is what the task of a cluster's agent wrote so far.
func wroteSoFar(t *testing.T, c *cluster.Cluster, executor string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.Dir, "agent", "slaves", "*", "frameworks", "*", "executors", executor, "runs", "latest", "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		return ""
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// written gives a program's output a file, and returns what reads it.
func written(t *testing.T, to *io.Writer) func() string {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "output")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	*to = file
	return func() string {
		data, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
}

// says waits for the line that opens writes.
func says(t *testing.T, c *cluster.Cluster, task string) string {
	t.Helper()
	eventually(t, task+" tells what it can open", 20*time.Second, func() bool { return strings.Contains(wroteSoFar(t, c, task), "visible:") })
	line, _, _ := strings.Cut(wroteSoFar(t, c, task), "\n")
	return line
}

func TestTwoGPUsAreTwoTasksAndTheThirdWaits(t *testing.T) {
	m := gpuStub(t, 2, 0)
	c := start(t, cluster.Options{Composition: m.composition("")})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	// Who is not made for GPUs is never offered this agent, though it asked first.
	plain, err := cluster.Subscribe(ctx, c.Master, "plain", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Disconnect()
	f := gpuFramework(ctx, t, c, "learners")
	o, err := f.Offer(ctx, 2, 128)
	if err != nil {
		t.Fatal(err)
	}
	if n := cluster.Scalar(o.GetResources(), "gpus"); n != 2 {
		t.Fatalf("the offer has %v gpus, want the machine's 2, which nobody wrote down: %v", n, o.GetResources())
	}
	if n := plain.Offers(); n != 0 {
		t.Errorf("a framework without GPU_RESOURCES has %d offers, want none", n)
	}
	line := m.opens(filepath.Join(m.root, "dev"), 2) + "; exec sleep 1000"
	a := withGPUs(o, cluster.Task(o, "a", 0.1, 32, cluster.Shell(line)), "gpus", 1)
	b := withGPUs(o, cluster.Task(o, "b", 0.1, 32, cluster.Shell(line)), "gpus", 1)
	half := withGPUs(o, cluster.Task(o, "half", 0.1, 32, cluster.Shell("true")), "gpus", 0.5)
	if err := f.Launch(ctx, o, half, a, b); err != nil {
		t.Fatal(err)
	}
	ended, err := f.State(ctx, []string{"half"}, mesosv1.TaskState_TASK_ERROR, mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_RUNNING)
	if err != nil {
		t.Fatal(err)
	}
	if s := ended["half"].Status; s.GetState() != mesosv1.TaskState_TASK_ERROR || !strings.Contains(s.GetMessage(), "gpus") {
		t.Errorf("half a GPU ended as %v, want TASK_ERROR that names gpus", s)
	}
	if _, err := f.State(ctx, []string{"a", "b"}, mesosv1.TaskState_TASK_RUNNING); err != nil {
		t.Fatal(err)
	}
	said := []string{says(t, c, "a"), says(t, c, "b")}
	first, second := "0:yes 1:no visible:GPU-stub-0", "0:no 1:yes visible:GPU-stub-1"
	if !slices.Contains(said, first) || !slices.Contains(said, second) {
		t.Fatalf("the two tasks open %q, want %q and %q", said, first, second)
	}
	holder, other := "a", "b" // of the first GPU, and of the second
	if said[0] != first {
		holder, other = other, holder
	}

	// The third waits, whatever becomes of the module and of the agent.
	third := c.Command(ctx, "run", "--gpus", "1", "--wait", "2m", "--shell", "--", m.opens(filepath.Join(m.root, "dev"), 2))
	out, errs := written(t, &third.Stdout), written(t, &third.Stderr)
	if err := third.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the third waits", 30*time.Second, func() bool { return strings.Contains(errs(), "waiting for an offer") })
	if err := syscall.Kill(modules(t, c)["isolator/nvidia_gpu"].Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the module is up again", 20*time.Second, func() bool {
		s := modules(t, c)["isolator/nvidia_gpu"]
		return s.State == "up" && s.Restarts > 0
	})
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if out() != "" {
		t.Errorf("the third ran while both GPUs were taken: %q", out())
	}
	if err := f.Enough(ctx); err != nil {
		t.Fatal(err)
	}
	if err := f.Client().Kill(ctx, &mesosv1.TaskID{Value: &other}, nil); err != nil {
		t.Fatal(err)
	}
	if err := third.Wait(); err != nil {
		t.Fatalf("the third: %v\n%s", err, errs())
	}
	if got := strings.TrimSpace(out()); got != second {
		t.Errorf("the third opens %q, want what %s had: %q", got, other, second)
	}
	if all := f.Updates(holder); all[len(all)-1].Status.GetState() != mesosv1.TaskState_TASK_RUNNING {
		t.Errorf("%s is %v, want it undisturbed", holder, all[len(all)-1].Status)
	}
	// Its GPU is told with its container in the metrics.
	eventually(t, "the metrics know the holder", 20*time.Second, func() bool {
		text, err := get("http://" + c.Agent + "/metrics")
		if err != nil {
			return false
		}
		for l := range strings.Lines(text) {
			if strings.HasPrefix(l, "mosaic_isolator_nvidia_gpu_utilization_ratio") && strings.Contains(l, `uuid="GPU-stub-0"`) {
				return !strings.Contains(l, `container=""`) && strings.HasSuffix(strings.TrimSpace(l), " 0.5")
			}
		}
		return false
	})
}

func TestAgentsDoNotStartWithGPUsThatAreNotThere(t *testing.T) {
	m := gpuStub(t, 2, 0)
	for _, test := range []struct {
		name, resources, composition string
		want                         []string
	}{
		{"more than there are", "cpus:1;gpus:4", m.composition(""), []string{"agent.hcl:2", "isolator(nvidia_gpu)", "gpus:4", "has 2"}},
		{"more than the operator lends", "cpus:1;gpus:2", m.composition(`devices = ["1"]`), []string{"agent.hcl:2", "gpus:2", "has 1"}},
		{"no driver", "cpus:1;gpus:1", strings.ReplaceAll(m.composition(""), "libnvidia-ml", "libnone"), []string{"agent.hcl:2", "has 0", "no GPUs"}},
		{"no isolator", "cpus:1;gpus:1", "isolator \"cgroups\" {}\n", []string{"gpus:1", `isolator "nvidia_gpu" {}`}},
		{"a GPU that is not there", "cpus:1", m.composition(`devices = ["7"]`), []string{"agent.hcl:7", "7", "GPU-stub-1"}},
		{"a module that is not there", "cpus:1", "isolator \"acme_gpu\" {}\n", []string{"agent.hcl:1", "mosaic-isolator-acme-gpu", bin, "/usr/lib/mosaic/modules"}},
	} {
		c := prepare(t, cluster.Options{Composition: test.composition, Resources: test.resources})
		file := filepath.Join(c.Dir, "agent.hcl")
		if err := os.WriteFile(file, []byte(test.composition), 0o644); err != nil {
			t.Fatal(err)
		}
		r := mosaic(t, c, 1, "agent", "--master", c.Master, "--listen", c.Agent, "--work-dir", filepath.Join(c.Dir, "agent"),
			"--cgroup-root", c.CgroupRoot(), "--resources", test.resources, "--config", file)
		for _, want := range test.want {
			if !strings.Contains(r.Stderr, want) {
				t.Errorf("%s: the agent said\n%s\nwant it to say %q", test.name, r.Stderr, want)
			}
		}
	}
}

func TestTasksOfAGroupShareTheirGPUs(t *testing.T) {
	m := gpuStub(t, 3, 0)
	c := start(t, cluster.Options{Composition: m.composition(""), Resources: "cpus:4;mem:2048;disk:1024;gpus:2"})
	met := t.TempDir()
	group := filepath.Join(met, "group.yaml")
	text := "tasks:\n"
	for name, gpus := range map[string]int{"one": 1, "two": 1} {
		// When a task ends the executor gives back as many GPUs as it had, so each waits for the other.
		line := fmt.Sprintf("%s; touch %s/%s; until [ -e %[2]s/one ] && [ -e %[2]s/two ]; do sleep 0.05; done", m.opens(filepath.Join(m.root, "dev"), 3), met, name)
		text += fmt.Sprintf("  - name: %s\n    command: {value: %q}\n    resources:\n      - {name: cpus, type: SCALAR, scalar: {value: 0.1}}\n      - {name: mem, type: SCALAR, scalar: {value: 32}}\n      - {name: gpus, type: SCALAR, scalar: {value: %d}}\n",
			name, line, gpus)
	}
	if err := os.WriteFile(group, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out := mosaic(t, c, 0, "run", "--group", group).Stdout
	if n := strings.Count(out, "0:yes 1:yes 2:no visible:GPU-stub-0,GPU-stub-1"); n != 2 {
		t.Errorf("the tasks of the group said\n%s\nwant both to open the executor's two GPUs and not the third", out)
	}
}
