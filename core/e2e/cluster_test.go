package e2e

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestAClusterThatIsStoppedWhileItsTasksRunLeavesNothing: what a failed test would leave disturbs those after it.
func TestAClusterThatIsStoppedWhileItsTasksRunLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	w := signOn(ctx, t)
	ever, ends := containersEver(t, w.c), hostEnds(t, w.calm.container)
	if len(ever) < 4 || len(ends) == 0 {
		t.Fatalf("the containers %v with interfaces %v, want four and one", ever, ends)
	}
	of := func(text string) bool {
		return slices.ContainsFunc(ever, func(id string) bool { return strings.Contains(text, id) })
	}
	if !slices.ContainsFunc(rules(t), of) {
		t.Error("no rule names a container that has a published port: this test looks in the wrong places")
	}
	if err := w.c.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, line := range mountLines(t) {
		at := mountPoint(line)
		if of(line) || strings.HasPrefix(at, w.c.Dir+"/") || strings.HasPrefix(at, w.c.RunDir()+"/") {
			t.Errorf("left: mount %s", line)
		}
	}
	for _, line := range rules(t) {
		if of(line) {
			t.Errorf("left: rule %s", line)
		}
	}
	if found := w.seen.leftOfNetworks(t, of); len(found) > 0 {
		t.Errorf("left: %s", strings.Join(found, "\n"))
	}
	eventually(t, "interfaces to be gone with their namespaces", 10*time.Second, func() bool {
		return !slices.ContainsFunc(ends, func(name string) bool { _, err := net.InterfaceByName(name); return err == nil })
	})
	if dirs := cgroupsOf(t, w.c); len(dirs) > 0 {
		t.Errorf("left: cgroups %v", dirs)
	}
	if _, err := os.Stat(filepath.Join(w.c.RunDir(), "c")); err == nil {
		t.Errorf("left: %s", w.c.RunDir())
	}
}
