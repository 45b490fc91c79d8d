package nvidiagpu

import (
	"context"
	"errors"
)

// DefaultLibrary is the driver's management library, found where the dynamic linker looks.
const DefaultLibrary = "libnvidia-ml.so.1"

// ErrNoLibrary says that this machine has no NVIDIA driver, or this binary cannot load its library.
var ErrNoLibrary = errors.New("no GPUs")

// A Library is what the module needs of the driver. It is safe for several goroutines.
type Library interface {
	// Devices lists what can be given to containers, by the GPUs' order: MIG devices where a GPU is divided, the GPU
	// itself where it is not. ErrNoLibrary if there is no driver.
	Devices() ([]Device, error)
	// Driver is the driver's version, "" if it does not tell.
	Driver() string
	// Measure reads the figures of one device; those that it does not have are left out.
	Measure(uuid string) Figures
	// Faults tells of errors of GPUs until ctx ends. It returns at once if the driver has no events.
	Faults(ctx context.Context, tell func(Fault)) error
}

// Figures are the measured values of one device by name: utilization_ratio, memory_utilization_ratio,
// memory_used_bytes, memory_total_bytes, temperature_celsius, power_watts, ecc_uncorrected_errors.
type Figures map[string]float64

// A Fault is an error that a GPU reported.
type Fault struct {
	UUID string // "" if the driver does not say which: all of them then
	XID  uint64 // NVIDIA's number of the error, 0 for an uncorrectable memory error
}

// Fatal says whether the GPU is at fault, and not the program that used it.
//
// Source: NVIDIA, "XID Errors": those whose cause is the application alone.
func (f Fault) Fatal() bool {
	switch f.XID {
	case 13, 31, 43, 45, 68, 109:
		return false
	}
	return true
}
