package modulehost

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// cgroups knows where on this machine modules get their cgroups. The zero value makes none: modules then run without
// limits and are killed by process group only, which a module that forks can escape.
type cgroups struct {
	unified string             // version 2: folder below which modules live; empty on version 1
	v1      map[string]v1Mount // version 1: by controller, memory and pids
}

type v1Mount struct {
	controller string
	mountpoint string
	root       string // what of the hierarchy is mounted there
	folder     string // folder below which modules live
}

// findCgroups looks for the hierarchies and makes the folder relative in each. An error says why there are none.
func findCgroups(relative string) (*cgroups, error) {
	if relative == "" {
		return &cgroups{}, nil
	}
	if !filepath.IsLocal(relative) {
		return nil, fmt.Errorf("cgroup %q: want a path below the root", relative)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	c := &cgroups{v1: make(map[string]v1Mount)}
	unified := ""
	for _, m := range mounts {
		if m.FSType == "cgroup2" {
			unified = m.Mountpoint
			continue
		}
		for _, option := range strings.Split(m.VFSOptions, ",") {
			if option == "memory" || option == "pids" {
				c.v1[option] = v1Mount{
					controller: option, mountpoint: m.Mountpoint, root: m.Root,
					folder: filepath.Join(m.Mountpoint, relative),
				}
			}
		}
	}
	switch {
	case len(c.v1) > 0:
		for _, m := range c.v1 {
			if err := os.MkdirAll(m.folder, 0o755); err != nil {
				return nil, fmt.Errorf("make cgroup: %w", err)
			}
		}
	case unified != "":
		c.unified = filepath.Join(unified, relative)
		if err := os.MkdirAll(c.unified, 0o755); err != nil {
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
		delegate(unified, relative)
	default:
		return nil, errors.New("no cgroup hierarchy is mounted")
	}
	return c, nil
}

// remove removes the folders that findCgroups made, unless something is left in them.
func (c *cgroups) remove() {
	if c.unified != "" {
		_ = os.Remove(c.unified)
	}
	for _, m := range c.v1 {
		_ = os.Remove(m.folder)
	}
}

// delegate switches the controllers on from the mount down to the folder. What cannot be switched on is missed by
// name when a limit is written.
func delegate(mount, relative string) {
	folder := mount
	for _, part := range append([]string{""}, strings.Split(relative, "/")...) {
		folder = filepath.Join(folder, part)
		for _, controller := range []string{"+memory", "+pids"} {
			_ = os.WriteFile(filepath.Join(folder, "cgroup.subtree_control"), []byte(controller), 0)
		}
	}
}

// make makes the cgroup of one module, empties it of what an earlier agent left in it, and writes the limits; zero is
// no limit.
func (c *cgroups) make(name string, memory, pids uint64) (*moduleCgroup, error) {
	g := &moduleCgroup{}
	limit := func(folder, file string, value uint64) error {
		text := "max"
		if value > 0 {
			text = strconv.FormatUint(value, 10)
		} else if file == "memory.limit_in_bytes" {
			text = "-1"
		}
		return os.WriteFile(filepath.Join(folder, file), []byte(text), 0)
	}
	if c.unified != "" {
		g.unified = filepath.Join(c.unified, name)
		if err := os.MkdirAll(g.unified, 0o755); err != nil {
			return nil, err
		}
		if err := g.kill(); err != nil {
			return nil, err
		}
		return g, errors.Join(limit(g.unified, "memory.max", memory), limit(g.unified, "pids.max", pids))
	}
	for _, controller := range []string{"pids", "memory"} {
		m, ok := c.v1[controller]
		if !ok {
			continue
		}
		folder := filepath.Join(m.folder, name)
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, err
		}
		m.folder = folder
		g.v1 = append(g.v1, m)
		if controller == "pids" {
			g.pids = folder
		}
	}
	if len(g.v1) == 0 {
		return g, nil
	}
	if err := g.kill(); err != nil {
		return nil, err
	}
	var errs []error
	for _, m := range g.v1 {
		if m.controller == "pids" {
			errs = append(errs, limit(m.folder, "pids.max", pids))
		} else {
			errs = append(errs, limit(m.folder, "memory.limit_in_bytes", memory))
		}
	}
	return g, errors.Join(errs...)
}

// moduleCgroup is the cgroup of one life of one module.
type moduleCgroup struct {
	unified string
	v1      []v1Mount
	pids    string // the folder of v1 with the pids controller, if there is one
}

// killPatience bounds how long processes are waited for that got SIGKILL; longer means that the kernel holds them in
// an uninterruptible call.
const killPatience = 2 * time.Second

// kill ends everything in the cgroup and waits until it is empty.
func (g *moduleCgroup) kill() error {
	folders := g.folders()
	if g.unified != "" {
		// Missing before Linux 5.14; the loop below does the same, only slower.
		_ = os.WriteFile(filepath.Join(g.unified, "cgroup.kill"), []byte("1"), 0)
	}
	if g.pids != "" {
		// No forks from here on, so that the loop below ends even against a fork bomb. The limit is written again
		// before the next start.
		_ = os.WriteFile(filepath.Join(g.pids, "pids.max"), []byte("0"), 0)
	}
	pause := 200 * time.Microsecond
	for deadline := time.Now().Add(killPatience); ; {
		left := 0
		for _, folder := range folders {
			pids, err := members(folder)
			if err != nil {
				return err
			}
			left += len(pids)
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes in %s do not die", left, folders[0])
		}
		time.Sleep(pause)
		pause = min(2*pause, 20*time.Millisecond)
	}
}

func members(folder string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list cgroup: %w", err)
	}
	var pids []int
	for _, field := range bytes.Fields(data) {
		// 0 is a process of another pid namespace, and kill(0) would be our own group. Our own number is there while
		// the spawner's thread is inside, which is listed by its process.
		if pid, err := strconv.Atoi(string(field)); err == nil && pid > 0 && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func (g *moduleCgroup) folders() []string {
	if g.unified != "" {
		return []string{g.unified}
	}
	folders := make([]string, len(g.v1))
	for i, m := range g.v1 {
		folders[i] = m.folder
	}
	return folders
}

// exists says whether the module has a cgroup at all.
func (g *moduleCgroup) exists() bool { return g != nil && (g.unified != "" || len(g.v1) > 0) }

// remove removes the empty cgroup.
func (g *moduleCgroup) remove() {
	for _, folder := range g.folders() {
		// Busy for a moment while the last process is torn down; what stays is emptied and used again at the next start.
		for range 20 {
			if err := os.Remove(folder); err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// threadHome gives the folder of the cgroup that the calling thread is in, in the hierarchy of m.
func threadHome(m v1Mount) (string, error) {
	own, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(own)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 || !slices.Contains(strings.Split(parts[1], ","), m.controller) {
			continue
		}
		relative, err := filepath.Rel(m.root, parts[2])
		if err != nil || !filepath.IsLocal(relative) {
			return "", fmt.Errorf("own cgroup %s is outside the mount %s", parts[2], m.mountpoint)
		}
		return filepath.Join(m.mountpoint, relative), nil
	}
	return "", fmt.Errorf("own cgroup of controller %s not found", m.controller)
}
