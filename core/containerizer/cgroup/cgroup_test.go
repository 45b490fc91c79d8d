package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func ptr[T any](v T) *T { return &v }

func TestMountTablesAreUnderstood(t *testing.T) {
	for name, c := range map[string]struct {
		table   string
		version int
		unified string
		v1      map[string]string
	}{
		"version 2": {
			table:   "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
			version: 2, unified: "/sys/fs/cgroup",
		},
		"version 1, controllers together": {
			table: "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
				"33 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n",
			version: 1, v1: map[string]string{"cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct", systemd: "/sys/fs/cgroup/systemd"},
		},
		"hybrid": {
			table: "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:1 master:2 - cgroup cgroup rw,memory\n" +
				"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			version: 1, unified: "/sys/fs/cgroup/unified", v1: map[string]string{"memory": "/sys/fs/cgroup/memory"},
		},
		"systemd's own hierarchy limits nothing": {
			table: "33 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n" +
				"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			version: 2, unified: "/sys/fs/cgroup/unified", v1: map[string]string{systemd: "/sys/fs/cgroup/systemd"},
		},
		"escapes and nonsense": {
			table:   "nonsense\n1 2 3\n- - -\n\n30 23 0:26 / /a\\040b rw - cgroup2 cgroup2 rw\n30 23 0:26 / /second rw - cgroup2 cgroup2 rw\n",
			version: 2, unified: "/a b",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := parse(strings.NewReader(c.table))
			if err != nil {
				t.Fatal(err)
			}
			if h.Version() != c.version || h.unified != c.unified || len(h.v1) != len(c.v1) {
				t.Errorf("parse = version %d, unified %q, v1 %v; want %d, %q, %v", h.Version(), h.unified, h.v1, c.version, c.unified, c.v1)
			}
			for k, v := range c.v1 {
				if h.v1[k] != v {
					t.Errorf("mount of %s = %q, want %q", k, h.v1[k], v)
				}
			}
		})
	}
}

func TestPathsOutsideAreRefused(t *testing.T) {
	h := &Hierarchy{unified: "/nowhere"}
	for _, bad := range []string{"", ".", "..", "/", "/a", "a/../..", "../a", "a//b", "a/", "./a", "a/./b", "a\nb"} {
		if _, err := h.Group(bad); err == nil {
			t.Errorf("Group(%q) = nil error", bad)
		}
	}
	if _, err := h.Group("mosaic/c1.c2"); err != nil {
		t.Error(err)
	}
}

// fakeV2 is a version 2 tree of plain folders, with the control files of one group in it.
func fakeV2(t *testing.T, files ...string) (*Group, func(file string) string) {
	t.Helper()
	h := &Hierarchy{v1: map[string]string{}, unified: t.TempDir(), v2: []string{"cpu", "memory", "pids"}}
	g, err := h.Group("mosaic/c1")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	for _, f := range append(files, "cgroup.procs") {
		if err := os.WriteFile(filepath.Join(g.CloneInto(), f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return g, func(file string) string {
		b, err := os.ReadFile(filepath.Join(g.CloneInto(), file))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

func TestVersion2SettingsAreConverted(t *testing.T) {
	files := []string{"cpu.weight", "cpu.max", "memory.max", "memory.low", "memory.swap.max", "pids.max", "cpuset.cpus", "cpuset.mems", "memory.high"}
	for name, c := range map[string]struct {
		set  *containerv1.CgroupResources
		want map[string]string
		err  string
	}{
		"a limit for everything": {
			set: &containerv1.CgroupResources{
				CpuShares: ptr(uint64(1024)), CpuQuotaUs: ptr(int64(50000)), CpuPeriodUs: ptr(uint64(100000)),
				MemoryLimitBytes: ptr(int64(1 << 30)), MemoryReservationBytes: ptr(int64(1 << 29)), MemorySwapBytes: ptr(int64(3 << 29)),
				PidsLimit: ptr(int64(10)), CpusetCpus: "0-1", CpusetMems: "0", Files: map[string]string{"memory.high": "12345"},
			},
			want: map[string]string{
				"cpu.weight": "100", "cpu.max": "50000 100000", "memory.max": "1073741824", "memory.low": "536870912",
				"memory.swap.max": "536870912", "pids.max": "10", "cpuset.cpus": "0-1", "cpuset.mems": "0", "memory.high": "12345",
			},
		},
		"no limits": {
			set: &containerv1.CgroupResources{
				CpuQuotaUs: ptr(int64(-1)), CpuPeriodUs: ptr(uint64(100000)), MemoryLimitBytes: ptr(int64(-1)),
				MemorySwapBytes: ptr(int64(-1)), PidsLimit: ptr(int64(-1)),
			},
			want: map[string]string{"cpu.max": "max 100000", "memory.max": "max", "memory.swap.max": "max", "pids.max": "max"},
		},
		"quota without period":      {set: &containerv1.CgroupResources{CpuQuotaUs: ptr(int64(2000))}, want: map[string]string{"cpu.max": "2000"}},
		"nothing":                   {set: &containerv1.CgroupResources{}, want: map[string]string{"cpu.max": ""}},
		"swap below memory":         {set: &containerv1.CgroupResources{MemoryLimitBytes: ptr(int64(10)), MemorySwapBytes: ptr(int64(5))}, err: "want at least"},
		"swap without memory":       {set: &containerv1.CgroupResources{MemorySwapBytes: ptr(int64(5))}, err: "memory is not"},
		"device rules":              {set: &containerv1.CgroupResources{DeviceRules: []*containerv1.DeviceRule{{Type: "a"}}}, err: "OCI runtime"},
		"a file the kernel has not": {set: &containerv1.CgroupResources{Files: map[string]string{"io.latency": "1"}}, err: "io controller"},
		"a file of the mechanism":   {set: &containerv1.CgroupResources{Files: map[string]string{"cgroup.procs": "1"}}, err: "not the name"},
		"a path":                    {set: &containerv1.CgroupResources{Files: map[string]string{"../c2/cpu.max": "1"}}, err: "not the name"},
		"version 1's name":          {set: &containerv1.CgroupResources{Files: map[string]string{"memory/memory.high": "1"}}, err: "not the name"},
	} {
		t.Run(name, func(t *testing.T) {
			g, read := fakeV2(t, files...)
			err := g.Set(c.set)
			if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("Set = %v, want error %q", err, c.err)
			}
			for f, v := range c.want {
				if got := read(f); got != v {
					t.Errorf("%s = %q, want %q", f, got, v)
				}
			}
		})
	}
}

func TestVersion2ControllersAreEnabledFromTheTop(t *testing.T) {
	h := &Hierarchy{v1: map[string]string{}, unified: t.TempDir(), v2: []string{"cpu"}}
	top := filepath.Join(h.unified, "cgroup.subtree_control")
	if err := os.WriteFile(top, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	g, err := h.Group("mosaic/c1")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(top); err != nil || string(b) != "+cpu" {
		t.Errorf("subtree control = %q (%v), want +cpu", b, err)
	}
	if got := g.Paths(); len(got) != 1 || got[""] != filepath.Join(h.unified, "mosaic/c1") {
		t.Errorf("Paths = %v", got)
	}
}

func TestVersion2GroupWithProcessesKeepsItsControllers(t *testing.T) {
	g, read := fakeV2(t, "cgroup.subtree_control")
	below, err := g.h.Group("mosaic/c1/deeper")
	if err != nil {
		t.Fatal(err)
	}
	procs := filepath.Join(g.CloneInto(), "cgroup.procs")
	for _, c := range []struct{ procs, want string }{{"1234\n", ""}, {"", "+pids"}} {
		if err := os.WriteFile(procs, []byte(c.procs), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := below.Create(); err != nil {
			t.Fatal(err)
		}
		// A plain file keeps what was written last.
		if got := read("cgroup.subtree_control"); got != c.want {
			t.Errorf("with processes %q: subtree control = %q, want %q", c.procs, got, c.want)
		}
	}
}

func TestWeightMeetsTheEndsAndTheDefault(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 100, 262144: 10000, 1 << 40: 10000} {
		if got := Weight(shares); got != want {
			t.Errorf("Weight(%d) = %d, want %d", shares, got, want)
		}
	}
	last := uint64(0)
	for s := uint64(2); s <= 262144; s += 17 {
		if w := Weight(s); w < last || w < 1 || w > 10000 {
			t.Fatalf("Weight(%d) = %d after %d: not monotonic or out of range", s, w, last)
		} else {
			last = w
		}
	}
}

// real makes a group in this machine's hierarchies, removed at the end.
func real(t *testing.T) *Group {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making cgroups needs root")
	}
	h, err := Detect()
	if err != nil {
		t.Skipf("no cgroups: %v", err)
	}
	root := fmt.Sprintf("mosaic-cgroup-test-%d", os.Getpid())
	g, err := h.Group(root + "/c1")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		above, err := h.Group(root)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(above.Kill(ctx), above.Remove(ctx)); err != nil {
			t.Error(err)
		}
	})
	return g
}

// spawn starts a shell in the group and returns it.
func spawn(t *testing.T, g *Group, script string) *exec.Cmd {
	t.Helper()
	// The shell waits for its input to end, by then it is in the group.
	cmd := exec.Command("sh", "-c", "read x; "+script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range g.JoinFiles() {
		if err := write(f, fmt.Sprint(cmd.Process.Pid)); err != nil {
			end(cmd)
			t.Fatal(err)
		}
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// end ends a shell that a failed test may have left running.
func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("it did not come about that %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestKillLeavesNobody(t *testing.T) {
	for name, hide := range map[string]func(*Hierarchy){
		"as this machine is":         func(*Hierarchy) {},
		"without cgroup.kill":        func(h *Hierarchy) { h.unified = "" },
		"without kill and freezer":   func(h *Hierarchy) { h.unified = ""; delete(h.v1, freezer) },
		"with a group below":         func(*Hierarchy) {},
		"with a group below, frozen": func(*Hierarchy) {},
	} {
		t.Run(name, func(t *testing.T) {
			g := real(t)
			h := *g.h
			h.v1 = map[string]string{}
			for k, v := range g.h.v1 {
				h.v1[k] = v
			}
			hide(&h)
			if h.unified == "" && !h.legacy() {
				t.Skip("this machine has only version 2")
			}
			g = &Group{h: &h, rel: g.rel}
			if err := g.Create(); err != nil {
				t.Fatal(err)
			}
			cmd := spawn(t, g, "trap '' TERM HUP; for i in 1 2 3 4 5 6 7 8; do setsid sh -c 'while :; do sleep 0.001; done' & done; wait")
			defer end(cmd)
			// Only now: on version 2 a process cannot enter a group whose controllers are handed on.
			var below *Group
			if strings.Contains(name, "below") {
				below = &Group{h: &h, rel: g.rel + "/deeper"}
				if err := below.Create(); err != nil {
					t.Fatal(err)
				}
				other := spawn(t, below, "sleep 1000")
				defer end(other)
			}
			until(t, "all have started", func() bool {
				pids, err := g.Pids()
				return err == nil && len(pids) >= 9
			})
			if strings.Contains(name, "frozen") {
				below.freeze()
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := g.Kill(ctx); err != nil {
				t.Fatal(err)
			}
			if pids, err := g.Pids(); err != nil || len(pids) > 0 {
				t.Errorf("after Kill = %v, %v", pids, err)
			}
			if err := g.Remove(ctx); err != nil {
				t.Fatal(err)
			}
			if left := g.folders(); len(left) > 0 {
				t.Errorf("after Remove %v are left", left)
			}
			if err := g.Remove(ctx); err != nil {
				t.Errorf("Remove of nothing = %v", err)
			}
		})
	}
}

func TestKillAndRemoveEndWithTheirContext(t *testing.T) {
	g, _ := fakeV2(t)
	// A process that will not die: it is listed, but not there to be killed.
	if err := os.WriteFile(filepath.Join(g.CloneInto(), "cgroup.procs"), []byte("4194305\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := g.Kill(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 processes left") {
		t.Errorf("Kill = %v, want the deadline and what is left", err)
	}
}

func TestDeviceRulesAreInEffect(t *testing.T) {
	g := real(t)
	if _, ok := g.h.v1["devices"]; !ok {
		t.Skip("this machine has no devices controller of version 1")
	}
	rules := []*containerv1.DeviceRule{{Type: "a"}, {Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "rw"}}
	if err := g.Set(&containerv1.CgroupResources{DeviceRules: rules}); err != nil {
		t.Fatal(err)
	}
	cmd := spawn(t, g, "echo > /dev/null || exit 1; head -c 1 /dev/zero && exit 2; exit 3")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("exit %d (%v), want 3: /dev/null open, /dev/zero closed", cmd.ProcessState.ExitCode(), err)
	}
	if err := g.Set(&containerv1.CgroupResources{DeviceRules: []*containerv1.DeviceRule{{Type: "x"}}}); err == nil {
		t.Error("Set of a device type x = nil")
	}
}

func TestSwapAndMemoryGrowAndShrinkTogether(t *testing.T) {
	g := real(t)
	if _, ok := g.h.v1["memory"]; !ok {
		t.Skip("this machine has no memory controller of version 1")
	}
	for _, mib := range []int64{64, 128, 32, 256, -1, 16} {
		n := mib << 20
		if mib < 0 {
			n = -1
		}
		err := g.Set(&containerv1.CgroupResources{MemoryLimitBytes: &n, MemorySwapBytes: &n})
		if err != nil {
			t.Errorf("Set to %d MiB = %v", mib, err)
		}
	}
	low := int64(1 << 20)
	err := g.Set(&containerv1.CgroupResources{MemorySwapBytes: &low})
	if !errors.Is(err, syscall.EINVAL) || !strings.Contains(err.Error(), "memory.memsw.limit_in_bytes") {
		t.Errorf("Set of swap below memory = %v, want EINVAL and the file's name", err)
	}
}

func TestMissingControllerMattersOnlyWhenAsked(t *testing.T) {
	h := &Hierarchy{v1: map[string]string{"memory": t.TempDir()}}
	g, err := h.Group("mosaic/c1")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(); err != nil {
		t.Fatalf("Create without most controllers = %v", err)
	}
	err = g.Set(&containerv1.CgroupResources{PidsLimit: ptr(int64(3))})
	if err == nil || !strings.Contains(err.Error(), "no controller pids on this machine") {
		t.Errorf("Set of a pids limit = %v, want an error that names the controller", err)
	}
}
