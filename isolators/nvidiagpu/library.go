package nvidiagpu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DefaultLibrary is the driver's management library, found where the dynamic linker looks.
const DefaultLibrary = "libnvidia-ml.so.1"

// ErrNoLibrary says that this machine has no NVIDIA driver, or this binary cannot load its library.
var ErrNoLibrary = errors.New("no GPUs")

// find opens the library that is called name and lists its devices. A bare name is looked for where the linker looks and
// where the driver's files are: on machines whose driver lies apart, the linker need not know of it.
//
// Errors: ErrNoLibrary if there is none.
func find(name string, d driver, open func(path string) Library) (Library, []Device, error) {
	var paths []string
	if !strings.Contains(name, "/") {
		for _, folder := range libraryFolders() {
			path := filepath.Join(d.path(folder), name)
			if _, err := os.Stat(path); err == nil {
				paths = append(paths, path)
			}
		}
	}
	if d == "/" {
		paths = slices.Insert(paths, 0, name)
	} else {
		paths = append(paths, name) // a driver apart is the one that is meant
	}
	var first error
	for _, path := range paths {
		l := open(path)
		list, err := l.Devices()
		if !errors.Is(err, ErrNoLibrary) {
			return l, list, err
		}
		if first == nil {
			first = err
		}
	}
	return nil, nil, first
}

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
