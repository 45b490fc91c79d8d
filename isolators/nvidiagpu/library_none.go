//go:build !cgo || !linux

package nvidiagpu

import (
	"context"
	"fmt"
)

// Open returns a library without devices: without cgo the driver's library cannot be loaded.
func Open(string) Library { return none{} }

type none struct{}

func (none) Devices() ([]Device, error) {
	return nil, fmt.Errorf("%w: this binary was built without cgo and cannot load NVIDIA's library", ErrNoLibrary)
}
func (none) Driver() string                            { return "" }
func (none) Measure(string) Figures                    { return nil }
func (none) Faults(context.Context, func(Fault)) error { return nil }
