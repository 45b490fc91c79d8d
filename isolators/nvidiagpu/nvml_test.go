//go:build cgo && linux

package nvidiagpu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"github.com/mosaic-cluster/mosaic/isolators/nvidiagpu"
	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// dgx is NVIDIA's fake of a machine with eight A100, which lacks most of what a driver has.
func dgx() *server.Server {
	s := dgxa100.New()
	has := map[string]bool{
		"nvmlDeviceGetUUID": true, "nvmlDeviceGetMinorNumber": true, "nvmlDeviceGetName": true, "nvmlSystemGetDriverVersion": true,
		"nvmlDeviceGetMemoryInfo": true, "nvmlDeviceGetHandleByUUID": true, "nvmlDeviceGetMigMode": true, "nvmlDeviceGetMaxMigDeviceCount": true,
		"nvmlDeviceGetMigDeviceHandleByIndex": true, "nvmlDeviceGetGpuInstanceId": true, "nvmlDeviceGetComputeInstanceId": true,
	}
	s.LookupSymbolFunc = func(symbol string) error {
		if has[symbol] {
			return nil
		}
		return fmt.Errorf("no symbol %s", symbol)
	}
	return s
}

func TestADGXHasEightGPUs(t *testing.T) {
	s := dgx()
	l := nvidiagpu.NewLibrary(s)
	list, err := l.Devices()
	if err != nil || len(list) != 8 {
		t.Fatalf("Devices = %d of them, %v; want 8", len(list), err)
	}
	for i, d := range list {
		if !strings.HasPrefix(d.UUID, "GPU-") || d.Index != i || d.Minor != i || d.Resource() != "gpus" || !strings.Contains(d.Name, "A100") {
			t.Errorf("device %d is %+v, want the GPU of that index and number", i, d)
		}
	}
	f := l.Measure(list[3].UUID)
	if f["memory_total_bytes"] != 40960<<20 || len(f) != 2 {
		t.Errorf("Measure = %v, want the memory, and nothing that this driver does not have", f)
	}
	if f := l.Measure("GPU-none"); len(f) > 0 {
		t.Errorf("Measure of an unknown GPU = %v, want nothing", f)
	}
	if err := l.Faults(t.Context(), func(nvidiagpu.Fault) {}); err != nil {
		t.Errorf("Faults of a driver without events: %v, want nothing to wait for", err)
	}
}

func TestADividedGPUIsItsParts(t *testing.T) {
	s := dgx()
	gpu := s.Devices[2].(*server.Device)
	gpu.MigMode = nvml.DEVICE_MIG_ENABLE
	gpu.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	gpu.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i != 0 && i != 3 {
			return nil, nvml.ERROR_NOT_FOUND
		}
		m := dgxa100.NewDevice(i)
		m.GetUUIDFunc = func() (string, nvml.Return) { return fmt.Sprintf("MIG-%d", i), nvml.SUCCESS }
		m.GetNameFunc = func() (string, nvml.Return) { return "Mock NVIDIA A100-SXM4-40GB MIG 2g.10gb", nvml.SUCCESS }
		m.GetGpuInstanceIdFunc = func() (int, nvml.Return) { return i + 1, nvml.SUCCESS }
		m.GetComputeInstanceIdFunc = func() (int, nvml.Return) { return 0, nvml.SUCCESS }
		return m, nvml.SUCCESS
	}
	if text, err := nvidiagpu.Resources(func(string) nvidiagpu.Library { return nvidiagpu.NewLibrary(s) }); err != nil || text != "gpus:7;mig-2g.10gb:2" {
		t.Errorf("Resources = %q, %v; want gpus:7;mig-2g.10gb:2", text, err)
	}
	list, err := nvidiagpu.NewLibrary(s).Devices()
	if err != nil {
		t.Fatal(err)
	}
	if d := list[3]; d.UUID != "MIG-3" || d.Parent != gpu.UUID || d.GPUInstance != 4 || d.MIGIndex != 3 || d.Minor != 2 {
		t.Errorf("the second part is %+v, want number 3 of GPU 2", d)
	}
}

func TestABrokenGPUDoesNotHideTheOthers(t *testing.T) {
	s := dgx()
	before := s.DeviceGetHandleByIndexFunc
	s.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i == 1 {
			return nil, nvml.ERROR_GPU_IS_LOST
		}
		return before(i)
	}
	if list, err := nvidiagpu.NewLibrary(s).Devices(); err != nil || len(list) != 7 || list[1].Index != 2 {
		t.Errorf("Devices beside a lost GPU = %v, %v; want the seven others", list, err)
	}
}

// driverLibrary compiles the stub of a driver's library with four GPUs.
func driverLibrary(t *testing.T) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("there is no C compiler to build the stub with")
	}
	library := filepath.Join(t.TempDir(), "libnvidia-ml.so.1")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, gcc, "-shared", "-fPIC", "-o", library, "testdata/nvml.c").CombinedOutput(); err != nil {
		t.Fatalf("build the stub: %v\n%s", err, out)
	}
	return library
}

func TestADriverLibraryIsLoadedAndWhatItLacksIsNotCalled(t *testing.T) {
	l := nvidiagpu.Open(driverLibrary(t))
	list, err := l.Devices()
	if err != nil || len(list) != 4 || list[3].UUID != "GPU-stub-3" || list[3].Minor != 3 {
		t.Fatalf("Devices = %+v, %v; want the stub's four", list, err)
	}
	if v := l.Driver(); v != "580.99" {
		t.Errorf("Driver = %q, want 580.99", v)
	}
	if f := l.Measure("GPU-stub-2"); f["utilization_ratio"] != 0.52 || len(f) != 2 {
		t.Errorf("Measure = %v, want the utilization alone", f)
	}
	if err := l.Faults(t.Context(), nil); err != nil {
		t.Errorf("Faults of a driver without events: %v", err)
	}
}

func TestConformanceWithGPUs(t *testing.T) {
	config := fmt.Sprintf(`{"library":%q,"driver_root":%q,"measure_interval":1000000000}`, driverLibrary(t), driverRoot(t, 4))
	isolatortest.Run(t, kit.Program{Path: os.Args[0]}.Dial, isolatortest.Level(kit.Core), isolatortest.Config(config),
		isolatortest.Container(func(c *containerv1.Container) { c.Resources = append(c.Resources, number("gpus", 1)) }))
}

// realGPUs are those of this machine, by the driver's library where the module finds it.
func realGPUs(t *testing.T) (nvidiagpu.Library, []nvidiagpu.Device) {
	t.Helper()
	var why []error
	for _, path := range []string{nvidiagpu.DefaultLibrary, "/usr/local/nvidia/lib64/" + nvidiagpu.DefaultLibrary, "/usr/local/nvidia/lib/" + nvidiagpu.DefaultLibrary} {
		l := nvidiagpu.Open(path)
		list, err := l.Devices()
		if err == nil && len(list) > 0 {
			return l, list
		}
		why = append(why, err)
	}
	t.Skipf("no GPU on this machine: %v", errors.Join(why...))
	return nil, nil
}

func TestRealGPUsAreFoundMeasuredAndGiven(t *testing.T) {
	l, list := realGPUs(t)
	t.Logf("driver %s, devices %+v", l.Driver(), list)
	for _, d := range list {
		f := l.Measure(d.UUID)
		t.Logf("%s: %v", d.UUID, f)
		if d.Parent == "" && !(f["memory_total_bytes"] > 0) {
			t.Errorf("Measure(%s) = %v, want at least its memory", d.UUID, f)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	if err := l.Faults(ctx, func(f nvidiagpu.Fault) { t.Logf("fault %+v", f) }); err != nil {
		t.Logf("Faults: %v, which a container of others may not be told", err)
	}
	for _, node := range []string{"/dev/nvidiactl", "/dev/nvidia-uvm", fmt.Sprintf("/dev/nvidia%d", list[0].Minor)} {
		if _, err := os.Stat(node); err != nil {
			t.Skipf("found and measured; this machine has not all nodes to give it: %v", err)
		}
	}
	b := &bench{t: t, fake: nil, root: "/"}
	b.real(l)
	c := task("a", number(list[0].Resource(), 1))
	c.Rootfs, c.ImageConfig = "/rootfs", &containerv1.ImageConfig{Environment: []string{"NVIDIA_VISIBLE_DEVICES=all"}}
	r, p := b.prepare(c)
	t.Logf("nodes %s", nodes(p))
	if devices(r) != list[0].UUID || !strings.Contains(nodes(p), "nvidiactl c195:255") || len(p.GetMounts()) == 0 {
		t.Errorf("the task has %s with nodes %q and %d mounts, want %s with its nodes and the driver", devices(r), nodes(p), len(p.GetMounts()), list[0].UUID)
	}
}
