package nvidiagpu_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/mosaic-cluster/mosaic/isolators/nvidiagpu"
	"github.com/mosaic-cluster/mosaic/sdk/isolator"
	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// TestMain lets the test's own executable be the module when the kit starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv("MOSAIC_MODULE") != "" {
		module.Serve(nvidiagpu.New())
		return
	}
	os.Exit(m.Run())
}

func TestConformanceWithoutADriver(t *testing.T) {
	isolatortest.Run(t, kit.Program{Path: os.Args[0]}.Dial, isolatortest.Config(`{"library":"/no/such/libnvidia-ml.so.1"}`))
}

// fake is a driver that has what a test says.
type fake struct {
	mu      sync.Mutex // guards what follows
	devices []nvidiagpu.Device
	err     error
	faults  chan nvidiagpu.Fault
}

func (f *fake) Devices() ([]nvidiagpu.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.devices), f.err
}
func (f *fake) Driver() string { return "580.1" }
func (f *fake) Measure(string) nvidiagpu.Figures {
	return nvidiagpu.Figures{"utilization_ratio": 0.5, "memory_used_bytes": 1024}
}
func (f *fake) Faults(ctx context.Context, tell func(nvidiagpu.Fault)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case x := <-f.faults:
			tell(x)
		}
	}
}

func whole(n int) []nvidiagpu.Device {
	var list []nvidiagpu.Device
	for i := range n {
		list = append(list, nvidiagpu.Device{UUID: fmt.Sprintf("GPU-%d", i), Name: "NVIDIA Test", Index: i, Minor: i})
	}
	return list
}

// part is a MIG device.
func part(gpu, index int, profile string) nvidiagpu.Device {
	return nvidiagpu.Device{
		UUID: fmt.Sprintf("MIG-%d-%d", gpu, index), Index: gpu, Minor: gpu, Parent: fmt.Sprintf("GPU-%d", gpu), Profile: profile,
		GPUInstance: index + 1, MIGIndex: index,
	}
}

// driverRoot is a folder with the nodes and files that a driver makes. The nodes are real, and nothing opens them.
func driverRoot(t *testing.T, gpus int) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"dev/nvidia-caps", "proc/driver/nvidia-caps", "usr/lib64", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	node := func(name string, major, minor uint32) {
		if err := unix.Mknod(filepath.Join(root, "dev", name), unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor))); err != nil {
			t.Skipf("this machine does not let us make device nodes: %v", err)
		}
	}
	node("nvidiactl", 195, 255)
	node("nvidia-uvm", 510, 0)
	node("nvidia-uvm-tools", 510, 1)
	var minors strings.Builder
	for i := range gpus {
		node(fmt.Sprintf("nvidia%d", i), 195, uint32(i))
		for g := 1; g <= 2; g++ {
			access, compute := 100*i+10*g, 100*i+10*g+1
			node(fmt.Sprintf("nvidia-caps/nvidia-cap%d", access), 240, uint32(access))
			node(fmt.Sprintf("nvidia-caps/nvidia-cap%d", compute), 240, uint32(compute))
			fmt.Fprintf(&minors, "gpu%d/gi%d/access %d\ngpu%d/gi%d/ci0/access %d\n", i, g, access, i, g, compute)
		}
	}
	for name, text := range map[string]string{
		"proc/driver/nvidia-caps/mig-minors": minors.String(), "usr/lib64/libcuda.so.580.1": "x", "usr/lib64/libnvidia-ml.so.580.1": "x",
		"usr/lib64/libother.so.1": "x", "usr/bin/nvidia-smi": "x",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"libcuda.so.1": "libcuda.so.580.1", "libcuda.so": "libcuda.so.1", "libnvidia-ml.so.1": "libnvidia-ml.so.580.1", "libnvidia-cfg.so.1": "gone"} {
		if err := os.Symlink(to, filepath.Join(root, "usr/lib64", name)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// bench is a configured module that knows that nothing lives.
type bench struct {
	*moduletest.Client
	t    *testing.T
	fake *fake
	root string
}

func start(t *testing.T, devices []nvidiagpu.Device, config string) *bench {
	t.Helper()
	b := &bench{t: t, fake: &fake{devices: devices, faults: make(chan nvidiagpu.Fault)}, root: driverRoot(t, 4)}
	b.reborn(config)
	return b
}

// real starts the module on a driver's library.
func (b *bench) real(l nvidiagpu.Library) {
	b.t.Helper()
	b.Client = moduletest.Start(b.t, nvidiagpu.With(func(string) nvidiagpu.Library { return l }), `{}`)
	b.recover()
}

// reborn starts the module anew, and tells it what lives.
func (b *bench) reborn(config string, live ...*isolatorv1.ContainerRecord) []string {
	b.t.Helper()
	doc := map[string]any{"driver_root": b.root, "patience": 0}
	if err := json.Unmarshal([]byte(config), &doc); err != nil {
		b.t.Fatal(err)
	}
	text, err := json.Marshal(doc)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Client = moduletest.Start(b.t, nvidiagpu.With(func(string) nvidiagpu.Library { return b.fake }), string(text))
	return b.recover(live...)
}

func (b *bench) recover(live ...*isolatorv1.ContainerRecord) []string {
	b.t.Helper()
	s, err := b.Isolator.Recover(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := s.Send(&isolatorv1.RecoverRequest{Containers: live}); err != nil {
		b.t.Fatal(err)
	}
	answer, err := s.CloseAndRecv()
	if err != nil {
		b.t.Fatalf("Recover: %v", err)
	}
	return answer.GetUnknown()
}

func number(name string, v float64) *mesosv1.Resource {
	return &mesosv1.Resource{Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &v}}
}

func task(id string, resources ...*mesosv1.Resource) *containerv1.Container {
	c := &containerv1.Container{Id: id, Generation: 1, Resources: append([]*mesosv1.Resource{number("cpus", 1)}, resources...)}
	if i := strings.LastIndex(id, "."); i > 0 {
		c.ParentId = id[:i]
	}
	return c
}

// prepare must succeed; the names of the GPUs are in the record's state.
func (b *bench) prepare(c *containerv1.Container) (*isolatorv1.ContainerRecord, *containerv1.Proposal) {
	b.t.Helper()
	r, err := b.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{OperationId: "op-" + c.GetId(), Container: c})
	if err != nil {
		b.t.Fatalf("Prepare(%s): %v", c.GetId(), err)
	}
	for _, wrong := range isolator.CheckPrepare(b.Describe(b.t), r) {
		b.t.Errorf("Prepare(%s): %s", c.GetId(), wrong)
	}
	return &isolatorv1.ContainerRecord{Container: c, State: r.GetState(), StateVersion: r.GetStateVersion()}, r.GetProposal()
}

func (b *bench) refused(c *containerv1.Container, want codes.Code, words string) {
	b.t.Helper()
	_, err := b.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{OperationId: "op", Container: c})
	if status.Code(err) != want || !strings.Contains(fmt.Sprint(err), words) {
		b.t.Errorf("Prepare(%s) = %v, want %s with %q", c.GetId(), err, want, words)
	}
}

func (b *bench) cleanup(id string) {
	b.t.Helper()
	if _, err := b.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{Record: &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: id}}}); err != nil {
		b.t.Errorf("Cleanup(%s): %v", id, err)
	}
}

func devices(r *isolatorv1.ContainerRecord) string {
	var h struct{ Devices []string }
	_ = json.Unmarshal(r.GetState(), &h)
	return strings.Join(h.Devices, " ")
}

func nodes(p *containerv1.Proposal) string {
	var list []string
	for _, d := range p.GetDevices() {
		list = append(list, fmt.Sprintf("%s %s%d:%d", strings.TrimPrefix(d.GetPath(), "/dev/"), d.GetType(), d.GetMajor(), d.GetMinor()))
	}
	return strings.Join(list, ", ")
}

func rules(p *containerv1.Proposal) string {
	var list []string
	for _, r := range p.GetCgroup().GetDeviceRules() {
		sign := "-"
		if r.GetAllow() {
			sign = "+"
		}
		if r.GetType() == "a" {
			list = append(list, sign+"all")
			continue
		}
		list = append(list, fmt.Sprintf("%s%d:%d%s", sign, r.GetMajor(), r.GetMinor(), r.GetAccess()))
	}
	return strings.Join(list, " ")
}

func TestTwoTasksSeeDifferentGPUsAndAThirdWaits(t *testing.T) {
	b := start(t, whole(2), `{}`)
	a, p := b.prepare(task("a", number("gpus", 1)))
	if got, want := rules(p), "+all -195:1rw"; got != want || devices(a) != "GPU-0" {
		t.Errorf("the first has %s with rules %q, want GPU-0 with %q", devices(a), got, want)
	}
	if got := p.GetEnvironment()["NVIDIA_VISIBLE_DEVICES"]; got != "GPU-0" {
		t.Errorf("NVIDIA_VISIBLE_DEVICES is %q, want GPU-0", got)
	}
	image := task("b", number("gpus", 1))
	image.Rootfs = "/rootfs"
	r, p := b.prepare(image)
	if got, want := nodes(p), "nvidiactl c195:255, nvidia-uvm c510:0, nvidia-uvm-tools c510:1, nvidia1 c195:1"; got != want || devices(r) != "GPU-1" || p.GetCgroup() != nil {
		t.Errorf("the second has %s with nodes %q and rules %v, want GPU-1 with %q alone", devices(r), got, p.GetCgroup(), want)
	}
	b.refused(task("c", number("gpus", 1)), codes.ResourceExhausted, "0 of 2 are free")
	b.refused(task("c", number("gpus", 0.5)), codes.InvalidArgument, "whole number")
	b.refused(task("c", number("gpus", 1e9)), codes.InvalidArgument, "whole number")
	if _, p := b.prepare(task("without")); rules(p) != "+all -195:0rw -195:1rw" {
		t.Errorf("a task without GPUs has rules %q, want both denied", rules(p))
	}
	if again, _ := b.prepare(task("a", number("gpus", 1))); devices(again) != "GPU-0" {
		t.Errorf("the first, asked again, has %s, want what it had", devices(again))
	}
	b.cleanup("a")
	b.cleanup("a")
	if r, _ := b.prepare(task("c", number("gpus", 1))); devices(r) != "GPU-0" {
		t.Errorf("after the first has ended the third has %s, want GPU-0", devices(r))
	}
}

func TestWhatLivesKeepsItsGPUsWhenTheModuleIsKilled(t *testing.T) {
	b := start(t, whole(2), `{}`)
	a, _ := b.prepare(task("a", number("gpus", 1)))
	orphan, _ := b.prepare(task("o", number("gpus", 1)))
	orphan.Orphan = true
	if unknown := b.reborn(`{}`, a, orphan, &isolatorv1.ContainerRecord{Container: task("plain")}); len(unknown) > 0 {
		t.Errorf("Recover does not know %v", unknown)
	}
	b.refused(task("c", number("gpus", 1)), codes.ResourceExhausted, "0 of 2")
	b.cleanup("o")
	if r, _ := b.prepare(task("c", number("gpus", 1))); devices(r) != "GPU-1" {
		t.Errorf("after the orphan's end the next has %s, want GPU-1", devices(r))
	}

	// State that cannot be read may stand for any GPU.
	strange := &isolatorv1.ContainerRecord{Container: task("a", number("gpus", 1)), State: []byte("{"), StateVersion: 7}
	if unknown := b.reborn(`{}`, strange); !slices.Equal(unknown, []string{"a"}) {
		t.Errorf("Recover of strange state does not know %v, want a", unknown)
	}
	b.refused(task("c", number("gpus", 1)), codes.FailedPrecondition, "container a")
	b.prepare(task("plain"))
	b.cleanup("a")
	b.prepare(task("c", number("gpus", 1)))
}

func TestALaunchWaitsForAContainerThatIsJustEnding(t *testing.T) {
	b := start(t, whole(1), `{"patience":10000000000}`)
	b.prepare(task("a", number("gpus", 1)))
	type answer struct {
		r   *isolatorv1.PrepareResponse
		err error
	}
	got := make(chan answer, 1)
	go func() {
		r, err := b.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{OperationId: "b", Container: task("b", number("gpus", 1))})
		got <- answer{r, err}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := b.Isolator.Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: "c", Container: task("c", number("gpus", 1))})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("Prepare with little time: %v, want DeadlineExceeded", err)
	}
	b.cleanup("a")
	if a := <-got; a.err != nil || devices(&isolatorv1.ContainerRecord{State: a.r.GetState()}) != "GPU-0" {
		t.Errorf("Prepare after the cleanup = %v, %v; want GPU-0", a.r, a.err)
	}
}

func TestNothingIsGivenBeforeItIsKnownWhatLives(t *testing.T) {
	f := &fake{devices: whole(1)}
	c := moduletest.Start(t, nvidiagpu.With(func(string) nvidiagpu.Library { return f }), `{"driver_root":"`+driverRoot(t, 1)+`"}`)
	_, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{Container: task("a", number("gpus", 1))})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("Prepare before Recover: %v, want Unavailable", err)
	}
	if _, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{Container: task("a")}); err != nil {
		t.Errorf("Prepare of a task without GPUs before Recover: %v, want success", err)
	}
}

func TestTheLibraryOfADriverThatLiesApartIsFound(t *testing.T) {
	root := driverRoot(t, 1)
	apart := filepath.Join(root, "usr/lib64/libnvidia-ml.so.1")
	for name, test := range map[string]struct {
		config string
		works  string // the only library that does
		want   []string
	}{
		"in the driver's root":   {`{"driver_root":"` + root + `"}`, apart, []string{apart}},
		"known to the linker":    {`{"driver_root":"` + root + `"}`, "libnvidia-ml.so.1", []string{apart, "libnvidia-ml.so.1"}},
		"by a path":              {`{"driver_root":"` + root + `","library":"/x/libnvidia-ml.so.1"}`, "/x/libnvidia-ml.so.1", []string{"/x/libnvidia-ml.so.1"}},
		"nowhere":                {`{"driver_root":"` + root + `"}`, "", []string{apart, "libnvidia-ml.so.1"}},
		"nowhere, asked by path": {`{"driver_root":"` + root + `","library":"/x/y"}`, apart, []string{"/x/y"}},
	} {
		var opened []string
		open := func(path string) nvidiagpu.Library {
			opened = append(opened, path)
			if path == test.works {
				return &fake{devices: whole(1)}
			}
			return &fake{err: nvidiagpu.ErrNoLibrary}
		}
		m := nvidiagpu.With(open)
		moduletest.Start(t, m, test.config)
		if !slices.Equal(opened, test.want) {
			t.Errorf("%s: opened %v, want %v", name, opened, test.want)
		}
		want := 1.0
		if test.works != opened[len(opened)-1] {
			want = 0
		}
		if found := m.Info().Resources(); len(found) != 1 || found[0].GetName() != "gpus" || found[0].GetScalar().GetValue() != want {
			t.Errorf("%s: resources %v, want gpus:%v", name, found, want)
		}
	}
}

func TestPartsOfAGPUAreResourcesOfTheirOwn(t *testing.T) {
	list := append(whole(1), part(1, 0, "1g.5gb"), part(1, 1, "1g.5gb"), part(2, 0, "3g.20gb"))
	if text, err := nvidiagpu.Resources(func(string) nvidiagpu.Library { return &fake{devices: list} }); err != nil || text != "gpus:1;mig-1g.5gb:2;mig-3g.20gb:1" {
		t.Errorf("Resources = %q, %v; want gpus:1;mig-1g.5gb:2;mig-3g.20gb:1", text, err)
	}
	b := start(t, list, `{}`)
	image := task("a", number("mig-1g.5gb", 1))
	image.Rootfs = "/rootfs"
	r, p := b.prepare(image)
	if got, want := nodes(p), "nvidiactl c195:255, nvidia-uvm c510:0, nvidia-uvm-tools c510:1, nvidia1 c195:1, nvidia-caps/nvidia-cap110 c240:110, nvidia-caps/nvidia-cap111 c240:111"; got != want || devices(r) != "MIG-1-0" {
		t.Errorf("%s has nodes %q, want MIG-1-0 with %q", devices(r), got, want)
	}
	r, p = b.prepare(task("b", number("mig-1g.5gb", 1)))
	if got, want := rules(p), "+all -195:0rw -240:110rw -240:111rw -195:2rw -240:210rw -240:211rw"; got != want || devices(r) != "MIG-1-1" {
		t.Errorf("%s has rules %q, want MIG-1-1 with %q", devices(r), got, want)
	}
	b.refused(task("c", number("mig-1g.5gb", 1)), codes.ResourceExhausted, "mig-1g.5gb")
	b.refused(task("c", number("mig-7g.40gb", 1)), codes.ResourceExhausted, "0 of 0")
	b.prepare(task("c", number("gpus", 1), number("mig-3g.20gb", 1)))
}

func TestNestedContainersHaveWhatTheirRootHas(t *testing.T) {
	b := start(t, whole(3), `{}`)
	b.prepare(task("x", number("gpus", 1)))
	b.prepare(task("r", number("gpus", 2)))
	one, p := b.prepare(task("r.a", number("gpus", 1)))
	if devices(one) != "GPU-1" || p.GetEnvironment()["CUDA_VISIBLE_DEVICES"] != "GPU-1" || p.GetCgroup() != nil {
		t.Errorf("the first nested has %s and %v, want GPU-1, told by CUDA_VISIBLE_DEVICES", devices(one), p)
	}
	image := task("r.b", number("gpus", 1))
	image.Rootfs = "/rootfs"
	if two, p := b.prepare(image); devices(two) != "GPU-2" || !strings.HasSuffix(nodes(p), "nvidia2 c195:2") {
		t.Errorf("the second nested has %s with nodes %q, want GPU-2", devices(two), nodes(p))
	}
	b.refused(task("r.c", number("gpus", 1)), codes.ResourceExhausted, "")
	if r, p := b.prepare(task("r.d")); devices(r) != "" || len(p.GetEnvironment()) > 0 {
		t.Errorf("a nested one with cpus only has %s, want nothing", devices(r))
	}
	for _, id := range []string{"r.e", "r.g"} { // the tasks of a group share
		plain := &containerv1.Container{Id: id, ParentId: "r", Rootfs: "/rootfs"}
		r, p := b.prepare(plain)
		if got := p.GetEnvironment()["NVIDIA_VISIBLE_DEVICES"]; got != "GPU-1,GPU-2" || !strings.HasSuffix(nodes(p), "nvidia1 c195:1, nvidia2 c195:2") || len(r.GetState()) > 0 {
			t.Errorf("the nested %s without resources has %q with nodes %q, want all that its root has, and nothing kept", id, got, nodes(p))
		}
	}
	debug := &containerv1.Container{Id: "r.e.f", ParentId: "r.e", Class: containerv1.Container_DEBUG}
	if r, p := b.prepare(debug); devices(r) != "" || p != nil {
		t.Errorf("a debug container has %s and %v, want nothing proposed", devices(r), p)
	}
}

func TestARunningGroupGetsMoreAndGivesBack(t *testing.T) {
	b := start(t, whole(2), `{}`)
	record, _ := b.prepare(task("r"))
	update := func(c *containerv1.Container) (*isolatorv1.UpdateResponse, error) {
		return b.Isolator.Update(context.Background(), &isolatorv1.UpdateRequest{OperationId: "u", Record: &isolatorv1.ContainerRecord{Container: c, State: record.GetState()}})
	}
	for _, step := range []struct {
		gpus        float64
		state, want string
	}{
		{1, "GPU-0", "+195:255rwm +510:0rwm +510:1rwm +195:0rwm -195:1rw"},
		{2, "GPU-0 GPU-1", "+195:255rwm +510:0rwm +510:1rwm +195:0rwm +195:1rwm"},
		{0, "", "-195:0rw -195:1rw"},
	} {
		a, err := update(task("r", number("gpus", step.gpus)))
		if err != nil {
			t.Fatalf("Update to %v: %v", step.gpus, err)
		}
		if got := devices(&isolatorv1.ContainerRecord{State: a.GetState()}); got != step.state || rules(a.GetProposal()) != step.want {
			t.Errorf("Update to %v: has %q with rules %q, want %q with %q", step.gpus, got, rules(a.GetProposal()), step.state, step.want)
		}
	}
	if a, err := update(task("r")); err != nil || a.GetProposal() != nil {
		t.Errorf("Update without a change = %v, %v; want nothing", a, err)
	}
	image := task("i", number("gpus", 1))
	image.Rootfs = "/rootfs"
	b.prepare(image)
	more := proto.CloneOf(image)
	more.Resources = []*mesosv1.Resource{number("gpus", 2)}
	if _, err := update(more); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Update of a container with an image to more GPUs: %v, want FailedPrecondition", err)
	}
}

func TestImagesThatAskForTheDriverSeeIt(t *testing.T) {
	b := start(t, whole(1), `{}`)
	for _, test := range []struct {
		name        string
		environment []string
		labels      map[string]string
		rootfs      string
		want        bool
		path        string
	}{
		{"says nothing", nil, nil, "/r", false, ""},
		{"by variable", []string{"NVIDIA_VISIBLE_DEVICES=all"}, nil, "/r", true, "/usr/local/nvidia/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		{"by variable, with a path", []string{"NVIDIA_VISIBLE_DEVICES=all", "PATH=/usr/local/nvidia/bin:/bin"}, nil, "/r", true, ""},
		{"void", []string{"NVIDIA_VISIBLE_DEVICES=void"}, nil, "/r", false, ""},
		{"by label", nil, map[string]string{"com.nvidia.volumes.needed": "nvidia_driver"}, "/r", true, "/usr/local/nvidia/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		{"by the image's label", []string{"LABELLED=1"}, nil, "/r", true, "/usr/local/nvidia/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		{"no image", nil, map[string]string{"com.nvidia.volumes.needed": "nvidia_driver"}, "", false, ""},
	} {
		c := task("c")
		c.Rootfs, c.Labels, c.ImageConfig = test.rootfs, test.labels, &containerv1.ImageConfig{Environment: test.environment}
		if slices.Contains(test.environment, "LABELLED=1") {
			c.ImageConfig.Labels = map[string]string{"com.nvidia.volumes.needed": "nvidia_driver"}
		}
		_, p := b.prepare(c)
		var got []string
		for _, m := range p.GetMounts() {
			got = append(got, m.GetDestination())
			if !slices.Contains(m.GetOptions(), "ro") {
				t.Errorf("%s: %s is mounted with %v, want ro", test.name, m.GetDestination(), m.GetOptions())
			}
		}
		want := ""
		if test.want {
			want = "/usr/local/nvidia/lib64/libcuda.so /usr/local/nvidia/lib64/libcuda.so.1 /usr/local/nvidia/lib64/libcuda.so.580.1 " +
				"/usr/local/nvidia/lib64/libnvidia-ml.so.1 /usr/local/nvidia/lib64/libnvidia-ml.so.580.1 /usr/local/nvidia/bin/nvidia-smi"
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: mounts %q, want %q", test.name, got, want)
		}
		if p.GetEnvironment()["PATH"] != test.path {
			t.Errorf("%s: PATH is %q, want %q", test.name, p.GetEnvironment()["PATH"], test.path)
		}
		if len(test.environment) > 0 && c.GetImageConfig().GetLabels() == nil && p.GetEnvironment()["NVIDIA_VISIBLE_DEVICES"] != "void" {
			t.Errorf("%s: NVIDIA_VISIBLE_DEVICES is %q without a GPU, want void", test.name, p.GetEnvironment()["NVIDIA_VISIBLE_DEVICES"])
		}
		b.cleanup("c")
	}
}

func TestGPUsAreChosenByTheOperatorAndByName(t *testing.T) {
	b := start(t, whole(4), `{"devices":["1","GPU-3"]}`)
	wish := task("a", number("gpus", 1))
	wish.Labels = map[string]string{"mosaic.gpus": "nvidia.com/gpu=3"}
	if r, p := b.prepare(wish); devices(r) != "GPU-3" || rules(p) != "+all -195:0rw -195:1rw -195:2rw" {
		t.Errorf("the wish was answered by %s with %q, want GPU-3 and all others denied", devices(r), rules(p))
	}
	again := proto.CloneOf(wish)
	again.Id = "b"
	b.refused(again, codes.ResourceExhausted, `"3"`)
	again.Labels["mosaic.gpus"] = "vendor.com/net=3"
	b.refused(again, codes.InvalidArgument, "nvidia.com/gpu=0")
	if r, _ := b.prepare(task("b", number("gpus", 1))); devices(r) != "GPU-1" {
		t.Errorf("the next has %s, want GPU-1", devices(r))
	}
	b.refused(task("c", number("gpus", 1)), codes.ResourceExhausted, "0 of 2")
	if errs := b.Configure(t, `{"driver_root":"`+b.root+`","patience":0,"devices":["0","9"]}`); len(errs) != 1 || errs[0].GetPath() != "devices[1]" {
		t.Errorf("Configure with a GPU that is not there = %v, want an error at devices[1]", errs)
	}
}

func TestAListOfAllowedDevicesBeforeUsIsAddedTo(t *testing.T) {
	b := start(t, whole(2), `{}`)
	list := &containerv1.Spec{Merged: &containerv1.Proposal{Cgroup: &containerv1.CgroupResources{DeviceRules: []*containerv1.DeviceRule{{Type: "a"}}}}}
	r, err := b.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{Container: task("a", number("gpus", 1)), SoFar: list})
	if got, want := rules(r.GetProposal()), "+195:255rwm +510:0rwm +510:1rwm +195:0rwm"; err != nil || got != want {
		t.Errorf("rules %q, %v; want %q, and nothing that opens the rest", got, err, want)
	}
}

func TestAGPUThatFailedIsGivenToNobody(t *testing.T) {
	b := start(t, whole(2), `{"measure_interval":1000000}`)
	b.fake.faults <- nvidiagpu.Fault{UUID: "GPU-0", XID: 31} // the program's own fault
	b.fake.faults <- nvidiagpu.Fault{UUID: "GPU-0", XID: 79}
	e := b.Next(t, func(e *modulev1.WatchEvent) bool { return e.GetHealth().GetState() == modulev1.Health_DEGRADED })
	if !strings.Contains(e.GetHealth().GetReason(), "GPU-0 reported XID 79") {
		t.Errorf("health %v, want a word of GPU-0 and XID 79", e.GetHealth())
	}
	if r, _ := b.prepare(task("a", number("gpus", 1))); devices(r) != "GPU-1" {
		t.Errorf("the next has %s, want the GPU that is whole", devices(r))
	}
	b.refused(task("b", number("gpus", 1)), codes.ResourceExhausted, "0 of 1")
	found := b.Next(t, func(e *modulev1.WatchEvent) bool {
		for _, s := range e.GetMetrics().GetSamples() {
			if s.GetName() == "faults_total" && s.GetLabels()["uuid"] == "GPU-0" && s.GetValue() == 2 {
				return slices.ContainsFunc(e.GetMetrics().GetSamples(), func(s *modulev1.Metrics_Sample) bool {
					return s.GetName() == "utilization_ratio" && s.GetLabels()["container"] == "a" && s.GetValue() == 0.5
				})
			}
		}
		return false
	})
	if n := len(found.GetMetrics().GetSamples()); n > 200 {
		t.Errorf("%d series, want at most 200", n)
	}
}

func TestAMachineWithoutGPUsSaysSoAndTakesOthers(t *testing.T) {
	b := start(t, nil, `{}`)
	b.fake.mu.Lock()
	b.fake.err = fmt.Errorf("%w: nothing there", nvidiagpu.ErrNoLibrary)
	b.fake.mu.Unlock()
	b.reborn(`{}`)
	b.Next(t, func(e *modulev1.WatchEvent) bool { return strings.HasPrefix(e.GetHealth().GetReason(), "no GPUs") })
	if _, p := b.prepare(task("plain")); p != nil {
		t.Errorf("a plain task: %v, want nothing proposed", p)
	}
	b.refused(task("a", number("gpus", 1)), codes.ResourceExhausted, "0 of 0")
	if _, err := nvidiagpu.Resources(func(string) nvidiagpu.Library { return b.fake }); !errors.Is(err, nvidiagpu.ErrNoLibrary) {
		t.Errorf("Resources: %v, want ErrNoLibrary", err)
	}
	b.fake.mu.Lock()
	b.fake.err, b.fake.devices = nil, whole(1)
	b.fake.mu.Unlock()
	if r, _ := b.prepare(task("a", number("gpus", 1))); devices(r) != "GPU-0" {
		t.Errorf("after the driver came the task has %s, want GPU-0", devices(r))
	}
}

func TestMissingNodesFailTheLaunchWithTheReason(t *testing.T) {
	b := start(t, whole(1), `{}`)
	if err := os.Remove(filepath.Join(b.root, "dev/nvidia-uvm")); err != nil {
		t.Fatal(err)
	}
	b.refused(task("a", number("gpus", 1)), codes.FailedPrecondition, "nvidia-modprobe")
	b.reborn(`{}`)
	b.Next(t, func(e *modulev1.WatchEvent) bool { return strings.Contains(e.GetHealth().GetReason(), "nvidia-uvm") })
}

func TestTheCDISpecificationNamesEachDevice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cdi", "mosaic.json")
	start(t, append(whole(1), part(1, 0, "1g.5gb")), `{"cdi_spec":"`+file+`"}`)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var spec struct {
		CDIVersion, Kind string
		Devices          []struct {
			Name           string
			ContainerEdits struct {
				DeviceNodes []struct{ Path, HostPath string }
			}
		}
		ContainerEdits struct {
			DeviceNodes []struct{ Path string }
			Mounts      []struct{ HostPath, ContainerPath string }
		}
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, d := range spec.Devices {
		got[d.Name] = len(d.ContainerEdits.DeviceNodes)
		if err := parser.ValidateDeviceName(d.Name); err != nil {
			t.Errorf("device %q: %v", d.Name, err)
		}
		for _, n := range d.ContainerEdits.DeviceNodes {
			if _, err := os.Stat(n.HostPath); err != nil {
				t.Errorf("device %s: %v", d.Name, err)
			}
		}
	}
	if want := map[string]int{"0": 1, "GPU-0": 1, "1:0": 3, "MIG-1-0": 3, "all": 4}; !maps.Equal(got, want) {
		t.Errorf("devices with their nodes: %v, want %v", got, want)
	}
	if vendor, class := parser.ParseQualifier(spec.Kind); parser.ValidateVendorName(vendor) != nil || parser.ValidateClassName(class) != nil || spec.CDIVersion != "0.6.0" {
		t.Errorf("kind %q, version %q; want nvidia.com/gpu, 0.6.0", spec.Kind, spec.CDIVersion)
	}
	if len(spec.ContainerEdits.DeviceNodes) != 3 || len(spec.ContainerEdits.Mounts) != 6 {
		t.Errorf("edits for all: %v, want 3 nodes and 6 mounts", spec.ContainerEdits)
	}
}
