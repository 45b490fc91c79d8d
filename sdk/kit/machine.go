package kit

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// Machine is what a case needs of a machine: facts for Configure, cgroups, and processes to isolate. The cgroups are
// the kernel's where we may make some, and folders with the same files otherwise.
type Machine struct {
	Node *modulev1.NodeFacts
	// Real says that the cgroups are the kernel's.
	Real bool

	dir   string            // sandboxes, and the cgroups that are no real ones
	roots map[string]string // controller to the folder below which containers get theirs
	procs map[int]*exec.Cmd
}

// NewMachine makes a machine that ends with the case.
func NewMachine(t T) *Machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "mkit-")
	if err != nil {
		t.Fatalf("make a folder for sandboxes: %v", err)
	}
	m := &Machine{dir: dir, roots: map[string]string{}, procs: map[int]*exec.Cmd{}}
	t.Cleanup(func() {
		if err := m.close(); err != nil {
			t.Errorf("clean up after the case: %v", err)
		}
	})
	name := "mosaic-kit-" + strings.TrimPrefix(filepath.Base(dir), "mkit-") // a number that nobody else has now
	version := uint32(1)
	if mounts := cgroupMounts(); len(mounts) > 0 && m.makeRoots(mounts, name) {
		m.Real = true
		if _, unified := mounts[""]; unified {
			version = 2
		}
	} else {
		for _, controller := range []string{"cpu", "cpuacct", "memory", "pids"} {
			m.roots[controller] = filepath.Join(dir, "cgroup", controller)
		}
	}
	m.Node = &modulev1.NodeFacts{
		Hostname: "kit", Os: runtime.GOOS, Arch: runtime.GOARCH, Kernel: kernel(), CgroupVersion: version,
		CgroupRoots: m.roots, Cpus: float64(runtime.NumCPU()), MemBytes: 8 << 30, Root: os.Geteuid() == 0,
		BootId: "6f6d5ac2-1c0e-4e58-a4b5-6f2b6f3c1d1e", WorkDir: dir,
	}
	return m
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// cgroupMounts gives the mount of each controller that containers are limited by, or "" of version 2 when the machine
// has no other.
func cgroupMounts() map[string]string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	wanted := []string{"cpu", "cpuacct", "memory", "pids"}
	v1 := map[string]string{}
	unified := ""
	for s := bufio.NewScanner(f); s.Scan(); {
		left, right, ok := strings.Cut(s.Text(), " - ")
		fields, super := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 5 || len(super) < 3 {
			continue
		}
		switch super[0] {
		case "cgroup":
			for o := range strings.SplitSeq(super[2], ",") {
				if slices.Contains(wanted, o) {
					v1[o] = fields[4]
				}
			}
		case "cgroup2":
			unified = fields[4]
		}
	}
	if len(v1) == 0 && unified != "" {
		return map[string]string{"": unified}
	}
	return v1
}

// makeRoots makes the folder below which containers get their cgroups; nothing is left when it cannot.
func (m *Machine) makeRoots(mounts map[string]string, name string) bool {
	for controller, mount := range mounts {
		root := filepath.Join(mount, name)
		if err := os.Mkdir(root, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			for _, made := range m.roots {
				_ = unix.Rmdir(made)
			}
			clear(m.roots)
			return false
		}
		m.roots[controller] = root
		if controller == "" { // else the children's files are missing; what cannot be had is had without
			for _, c := range []string{"cpu", "memory", "pids"} {
				_ = os.WriteFile(filepath.Join(mount, "cgroup.subtree_control"), []byte("+"+c), 0)
				_ = os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+c), 0)
			}
		}
	}
	return true
}

// Folder gives a folder of the machine for a container's sandbox.
func (m *Machine) Folder(name string) (string, error) {
	dir := filepath.Join(m.dir, "sandboxes", name)
	return dir, os.MkdirAll(dir, 0o755)
}

// Cgroups gives the paths of a container's cgroup without making it.
func (m *Machine) Cgroups(id string) map[string]string {
	paths := make(map[string]string, len(m.roots))
	for controller, root := range m.roots {
		paths[controller] = filepath.Join(root, id)
	}
	return paths
}

// Start makes a container's cgroup and a process in it that does nothing, as it is when a launcher holds it. The process
// is in new namespaces of these kinds, where we may make some: nothing can furnish what is not there.
func (m *Machine) Start(id string, namespaces ...containerv1.Namespace_Type) (pid int, cgroups map[string]string, err error) {
	cgroups = m.Cgroups(id)
	for _, dir := range cgroups {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return 0, nil, fmt.Errorf("make the cgroup of %s: %w", id, err)
		}
		if !m.Real {
			if err := fakeCgroup(dir); err != nil {
				return 0, nil, err
			}
		}
	}
	cmd := exec.Command("sleep", "3600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if m.Node.GetRoot() {
		for _, kind := range namespaces {
			cmd.SysProcAttr.Cloneflags |= cloneFlags[kind]
		}
	}
	if err := cmd.Start(); err != nil {
		return 0, nil, fmt.Errorf("start a process to isolate: %w", err)
	}
	m.procs[cmd.Process.Pid] = cmd
	if m.Real {
		for _, dir := range cgroups {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Appendf(nil, "%d", cmd.Process.Pid), 0); err != nil {
				return 0, nil, fmt.Errorf("move the process of %s into its cgroup: %w", id, err)
			}
		}
	}
	return cmd.Process.Pid, cgroups, nil
}

// cloneFlags are those of the namespaces that a process can be started in as it is.
var cloneFlags = map[containerv1.Namespace_Type]uintptr{
	containerv1.Namespace_PID: unix.CLONE_NEWPID, containerv1.Namespace_IPC: unix.CLONE_NEWIPC, containerv1.Namespace_UTS: unix.CLONE_NEWUTS,
	containerv1.Namespace_MOUNT: unix.CLONE_NEWNS, containerv1.Namespace_NETWORK: unix.CLONE_NEWNET, containerv1.Namespace_CGROUP: unix.CLONE_NEWCGROUP,
}

// fakeCgroup writes the files that a cgroup of version 1 has and that isolators read.
func fakeCgroup(dir string) error {
	for name, text := range map[string]string{
		"cgroup.procs": "", "tasks": "", "cgroup.event_control": "",
		"cpu.shares": "1024\n", "cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n",
		"cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n", "cpuacct.stat": "user 0\nsystem 0\n", "cpuacct.usage": "0\n",
		"memory.limit_in_bytes": "9223372036854771712\n", "memory.soft_limit_in_bytes": "9223372036854771712\n",
		"memory.usage_in_bytes": "4096\n", "memory.max_usage_in_bytes": "4096\n",
		"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
		"memory.stat":        "cache 0\nrss 4096\ntotal_cache 0\ntotal_rss 4096\n", "pids.max": "max\n", "pids.current": "1\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write a cgroup of plain files: %w", err)
		}
	}
	return nil
}

// End kills a container's process and removes its cgroup, as the agent does before Cleanup.
func (m *Machine) End(id string, pid int) error {
	if cmd := m.procs[pid]; cmd != nil {
		delete(m.procs, pid)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	var errs []error
	for _, dir := range m.Cgroups(id) {
		errs = append(errs, m.remove(dir))
	}
	return errors.Join(errs...)
}

// remove removes a cgroup; one that a process is just leaving is busy for a moment.
func (m *Machine) remove(dir string) error {
	if !m.Real {
		return os.RemoveAll(dir)
	}
	var err error
	for range 100 {
		if err = unix.Rmdir(dir); err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("remove cgroup %s: %w", dir, err)
}

// Count counts the cgroups below the machine's roots.
func (m *Machine) Count() int {
	n := 0
	for _, root := range m.roots {
		_ = filepath.WalkDir(root, func(_ string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				n++
			}
			return nil
		})
	}
	return n
}

func (m *Machine) close() error {
	var errs []error
	for _, cmd := range m.procs {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	clear(m.procs)
	if m.Real {
		for _, root := range m.roots {
			entries, _ := os.ReadDir(root)
			for _, e := range entries {
				if e.IsDir() {
					errs = append(errs, m.remove(filepath.Join(root, e.Name())))
				}
			}
			errs = append(errs, m.remove(root))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(m.dir))...)
}
