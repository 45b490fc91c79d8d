package master

import (
	"runtime"
	"syscall"
)

// systemMetrics adds what the machine says of itself.
func systemMetrics(out map[string]float64) {
	out["system/cpus_total"] = float64(runtime.NumCPU())
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) != nil {
		return
	}
	const one = 1 << 16 // loads are fixed-point numbers
	for i, name := range []string{"system/load_1min", "system/load_5min", "system/load_15min"} {
		out[name] = float64(info.Loads[i]) / one
	}
	out["system/mem_total_bytes"] = float64(info.Totalram) * float64(info.Unit)
	out["system/mem_free_bytes"] = float64(info.Freeram) * float64(info.Unit)
}
