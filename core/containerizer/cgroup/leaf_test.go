package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestVacatedGroupHandsItsControllersOn takes the unified hierarchy for all there is, whatever this machine has beside.
func TestVacatedGroupHandsItsControllersOn(t *testing.T) {
	g := real(t)
	if g.h.unified == "" {
		t.Skip("no unified cgroup hierarchy is mounted")
	}
	v2 := &Group{h: &Hierarchy{v1: map[string]string{}, unified: g.h.unified, v2: g.h.v2}, rel: g.rel}
	cmd := spawn(t, v2, "sleep 1000 & sleep 1000; true")
	defer end(cmd)
	until(t, "both children run", func() bool { pids, err := v2.Pids(); return err == nil && len(pids) == 3 })
	before, err := v2.Pids()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // repeatable
		if err := v2.Vacate(); err != nil {
			t.Fatal(err)
		}
	}
	if direct, err := procs(v2.CloneInto()); err != nil || len(direct) > 0 {
		t.Errorf("processes %v (%v) are left in the group itself", direct, err)
	}
	if after, err := v2.Pids(); err != nil || !slices.Equal(after, before) {
		t.Errorf("processes in and below the group = %v (%v), want %v", after, err, before)
	}
	below, err := v2.h.Group(v2.rel + "/deeper")
	if err != nil {
		t.Fatal(err)
	}
	if err := below.CreateWithin(v2); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(v2.CloneInto(), "cgroup.controllers"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(below.CloneInto(), "cgroup.controllers"))
	if err != nil || len(want) == 0 || strings.TrimSpace(string(got)) != strings.TrimSpace(string(want)) {
		t.Errorf("controllers below = %q (%v), want the group's own %q", got, err, want)
	}
}

func TestVacateOfVersion1LeavesProcessesWhereTheyAre(t *testing.T) {
	g := real(t)
	if g.h.Version() != 1 {
		t.Skip("this machine has no cgroup version 1")
	}
	cmd := spawn(t, g, "sleep 1000")
	defer end(cmd)
	if err := g.Vacate(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range g.folders() {
		if pids, err := procs(dir); err != nil || len(pids) == 0 {
			t.Errorf("%s has no process any more (%v)", dir, err)
		}
	}
}
