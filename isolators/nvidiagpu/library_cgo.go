//go:build cgo && linux

package nvidiagpu

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

const (
	// waitMs is how long one wait for events lasts; the end of the module waits no longer.
	waitMs = 1000
	// mostMIG bounds what a driver says of the number of MIG devices.
	mostMIG = 64
)

// Open returns the library at path, or found by the linker if path is a bare name. It is loaded at the first use, and
// again after a failure: a driver may come later.
func Open(path string) Library {
	return &library{lib: nvml.New(nvml.WithLibraryPath(path)), path: path}
}

// NewLibrary returns one that asks lib; with NVIDIA's fakes of whole machines it is tested.
func NewLibrary(lib nvml.Interface) Library { return &library{lib: lib, path: "a fake"} }

// library asks NVIDIA's library. A function that an older driver lacks must not be called: the linker would end the
// process. So each is looked up first.
type library struct {
	lib  nvml.Interface
	path string

	mu     sync.Mutex // guards loaded
	loaded bool
}

// failed is what NVML says, in words; its own words are in the library that may be missing.
type failed struct {
	what string
	code nvml.Return
}

func (f failed) Error() string {
	text := map[nvml.Return]string{
		nvml.ERROR_UNINITIALIZED: "not initialized", nvml.ERROR_NOT_SUPPORTED: "not supported", nvml.ERROR_NO_PERMISSION: "no permission",
		nvml.ERROR_NOT_FOUND: "not found", nvml.ERROR_DRIVER_NOT_LOADED: "the kernel's driver is not loaded", nvml.ERROR_TIMEOUT: "timeout",
		nvml.ERROR_LIBRARY_NOT_FOUND: "library not found", nvml.ERROR_FUNCTION_NOT_FOUND: "this driver does not have it",
		nvml.ERROR_GPU_IS_LOST: "the GPU is lost", nvml.ERROR_RESET_REQUIRED: "the GPU must be reset",
		nvml.ERROR_LIB_RM_VERSION_MISMATCH: "library and kernel driver have different versions",
	}[f.code]
	if text == "" {
		return fmt.Sprintf("%s: NVML error %d", f.what, int(f.code))
	}
	return f.what + ": " + text
}

func (l *library) load() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.loaded {
		return nil
	}
	if r := l.lib.Init(); r != nvml.SUCCESS {
		return fmt.Errorf("%w: %w", ErrNoLibrary, failed{"load " + l.path, r})
	}
	l.loaded = true
	return nil
}

// has says whether the driver has all of these functions.
func (l *library) has(symbols ...string) bool {
	for _, s := range symbols {
		if l.lib.Extensions().LookupSymbol(s) != nil {
			return false
		}
	}
	return true
}

func (l *library) Driver() string {
	if l.load() != nil || !l.has("nvmlSystemGetDriverVersion") {
		return ""
	}
	v, r := l.lib.SystemGetDriverVersion()
	if r != nvml.SUCCESS {
		return ""
	}
	return v
}

func (l *library) Devices() ([]Device, error) {
	if err := l.load(); err != nil {
		return nil, err
	}
	if !l.has("nvmlDeviceGetUUID", "nvmlDeviceGetMinorNumber") {
		return nil, fmt.Errorf("%w: %s has not the functions of NVIDIA's library", ErrNoLibrary, l.path)
	}
	n, r := l.lib.DeviceGetCount()
	if r != nvml.SUCCESS {
		return nil, failed{"count the GPUs", r}
	}
	var list []Device
	for i := range n {
		h, r := l.lib.DeviceGetHandleByIndex(i)
		if r == nvml.ERROR_NO_PERMISSION || r == nvml.ERROR_GPU_IS_LOST {
			continue // not ours, or broken; the others are still good
		}
		if r != nvml.SUCCESS {
			return nil, failed{fmt.Sprintf("open GPU %d", i), r}
		}
		d := Device{Index: i}
		if d.UUID, r = h.GetUUID(); r != nvml.SUCCESS {
			return nil, failed{fmt.Sprintf("UUID of GPU %d", i), r}
		}
		if d.Minor, r = h.GetMinorNumber(); r != nvml.SUCCESS {
			return nil, failed{fmt.Sprintf("device number of GPU %d", i), r}
		}
		d.Name = l.name(h)
		parts, divided, err := l.parts(h, d)
		if err != nil {
			return nil, err
		}
		if divided {
			list = append(list, parts...)
		} else {
			list = append(list, d)
		}
	}
	return list, nil
}

func (l *library) name(h nvml.Device) string {
	if !l.has("nvmlDeviceGetName") {
		return ""
	}
	name, r := h.GetName()
	if r != nvml.SUCCESS {
		return ""
	}
	return name
}

// parts are the MIG devices of a GPU, and whether it is divided at all. A divided GPU cannot be used as a whole.
func (l *library) parts(h nvml.Device, gpu Device) (list []Device, divided bool, err error) {
	if !l.has("nvmlDeviceGetMigMode", "nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetMigDeviceHandleByIndex",
		"nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId") {
		return nil, false, nil
	}
	mode, _, r := h.GetMigMode()
	if r != nvml.SUCCESS || mode != nvml.DEVICE_MIG_ENABLE {
		return nil, false, nil
	}
	n, r := h.GetMaxMigDeviceCount()
	if r != nvml.SUCCESS {
		return nil, true, failed{fmt.Sprintf("count the parts of GPU %d", gpu.Index), r}
	}
	for i := range min(n, mostMIG) {
		m, r := h.GetMigDeviceHandleByIndex(i)
		if r == nvml.ERROR_NOT_FOUND || r == nvml.ERROR_INVALID_ARGUMENT {
			continue
		}
		d := Device{Index: gpu.Index, Minor: gpu.Minor, Parent: gpu.UUID, MIGIndex: i}
		if r == nvml.SUCCESS {
			d.UUID, r = m.GetUUID()
		}
		if r == nvml.SUCCESS {
			d.GPUInstance, r = m.GetGpuInstanceId()
		}
		if r == nvml.SUCCESS {
			d.ComputeInstance, r = m.GetComputeInstanceId()
		}
		if r != nvml.SUCCESS {
			return nil, true, failed{fmt.Sprintf("part %d of GPU %d", i, gpu.Index), r}
		}
		d.Name = l.name(m)
		if d.Profile = profileOf(strings.TrimPrefix(d.Name, gpu.Name)); d.Profile == "" {
			d.Profile = "unknown"
		}
		list = append(list, d)
	}
	return list, true, nil
}

func (l *library) Measure(uuid string) Figures {
	if l.load() != nil || !l.has("nvmlDeviceGetHandleByUUID") {
		return nil
	}
	h, r := l.lib.DeviceGetHandleByUUID(uuid)
	if r != nvml.SUCCESS {
		return nil
	}
	f := Figures{}
	if l.has("nvmlDeviceGetMemoryInfo") {
		if m, r := h.GetMemoryInfo(); r == nvml.SUCCESS {
			f["memory_total_bytes"], f["memory_used_bytes"] = float64(m.Total), float64(m.Used)
		}
	}
	if l.has("nvmlDeviceGetUtilizationRates") {
		if u, r := h.GetUtilizationRates(); r == nvml.SUCCESS {
			f["utilization_ratio"], f["memory_utilization_ratio"] = float64(u.Gpu)/100, float64(u.Memory)/100
		}
	}
	if l.has("nvmlDeviceGetTemperature") {
		if t, r := h.GetTemperature(nvml.TEMPERATURE_GPU); r == nvml.SUCCESS {
			f["temperature_celsius"] = float64(t)
		}
	}
	if l.has("nvmlDeviceGetPowerUsage") {
		if mw, r := h.GetPowerUsage(); r == nvml.SUCCESS {
			f["power_watts"] = float64(mw) / 1000
		}
	}
	if l.has("nvmlDeviceGetTotalEccErrors") {
		if n, r := h.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); r == nvml.SUCCESS {
			f["ecc_uncorrected_errors"] = float64(n)
		}
	}
	return f
}

func (l *library) Faults(ctx context.Context, tell func(Fault)) error {
	if err := l.load(); err != nil {
		return err
	}
	if !l.has("nvmlEventSetCreate", "nvmlEventSetFree", "nvmlEventSetWait", "nvmlDeviceRegisterEvents", "nvmlDeviceGetSupportedEventTypes") {
		return nil
	}
	set, r := l.lib.EventSetCreate()
	if r != nvml.SUCCESS {
		return failed{"listen for errors of GPUs", r}
	}
	defer func() { _ = set.Free() }() // there is nothing to do about it
	n, r := l.lib.DeviceGetCount()
	if r != nvml.SUCCESS {
		return failed{"count the GPUs", r}
	}
	registered := 0
	for i := range n {
		h, r := l.lib.DeviceGetHandleByIndex(i)
		if r != nvml.SUCCESS {
			continue
		}
		can, r := h.GetSupportedEventTypes()
		wanted := can & (nvml.EventTypeXidCriticalError | nvml.EventTypeDoubleBitEccError)
		if r != nvml.SUCCESS || wanted == 0 {
			continue
		}
		if h.RegisterEvents(wanted, set) == nvml.SUCCESS {
			registered++
		}
	}
	if registered == 0 {
		return nil
	}
	for ctx.Err() == nil {
		e, r := set.Wait(waitMs)
		switch {
		case r == nvml.ERROR_TIMEOUT:
			continue
		case r != nvml.SUCCESS:
			return errors.Join(failed{"wait for errors of GPUs", r}, ctx.Err())
		}
		f := Fault{}
		if e.Device != nil {
			if uuid, r := e.Device.GetUUID(); r == nvml.SUCCESS {
				f.UUID = uuid
			}
		}
		if e.EventType == nvml.EventTypeXidCriticalError {
			f.XID = e.EventData
		}
		tell(f)
	}
	return nil
}
