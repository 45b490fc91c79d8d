//go:build !linux

package master

import "runtime"

// systemMetrics adds what the machine says of itself.
func systemMetrics(out map[string]float64) { out["system/cpus_total"] = float64(runtime.NumCPU()) }
