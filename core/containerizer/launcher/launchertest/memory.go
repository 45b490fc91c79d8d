package launchertest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
)

// field reads a line such as "MemAvailable: 12 kB" of a file below /proc, in KiB.
func field(t testing.TB, file, name string) int {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(status(string(b), name))
	if len(f) == 0 {
		t.Fatalf("%s has no %s", file, name)
	}
	n, err := strconv.Atoi(f[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// IdleMemory holds n sleeping containers and returns, in KiB, the private memory of one shim, and by
// how much available memory dropped for one container, the sleeping command included.
func IdleMemory(t testing.TB, e *Env, l launcher.Launcher, n int) (private, drop int) {
	t.Helper()
	Start(t, l, e.Request("sleep", "1000")) // what the first one pays for all
	before := field(t, "/proc/meminfo", "MemAvailable")
	for range n {
		h := Start(t, l, e.Request("sleep", "1000"))
		rollup := fmt.Sprintf("/proc/%d/smaps_rollup", ShimOf(t, h))
		private += field(t, rollup, "Private_Dirty") + field(t, rollup, "Private_Clean")
	}
	return private / n, (before - field(t, "/proc/meminfo", "MemAvailable")) / n
}
