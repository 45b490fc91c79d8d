// Package cgroup makes, sets, empties and removes the control groups of containers.
//
// It knows version 1, where each controller has a mount of its own, version 2, and the hybrid of
// both, and finds out from the mount table which it is. One container is one Group: the same
// relative path in every hierarchy. A controller that the machine lacks is an error only when a
// setting needs it.
//
// The package promises that Kill returns nil only when no process is left in the group or below
// it, and that no path it touches lies outside the group. What the limits should be, and reading
// statistics, is left to others.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// systemd is the hierarchy without controllers by which systemd on version 1 knows what belongs to
// a service. A container must leave the agent's, or ends with it.
const systemd = "name=systemd"

// standard are the version 1 controllers every container gets a group in, where present. Each
// costs a launch some 0.1 ms, so the others are used from the moment a setting names them.
var standard = []string{"cpu", "cpuacct", "memory", "pids", "blkio", systemd}

// known are all version 1 hierarchies that Detect takes up.
var known = append([]string{"devices", "cpuset", freezer, "net_cls", "net_prio", "perf_event", "hugetlb", "rdma", "misc"}, standard...)

// freezer stops a group while it is killed, where there is no unified hierarchy to do that.
const freezer = "freezer"

// A Hierarchy says where control groups are mounted on this machine.
type Hierarchy struct {
	v1      map[string]string // controller to mount point
	unified string            // mount point of version 2, "" when absent
	v2      []string          // controllers of version 2 at its root
}

// ErrNone is returned by Detect when no control groups are mounted.
var ErrNone = errors.New("no cgroup hierarchy is mounted")

// Detect reads the mount table of the calling process.
func Detect() (*Hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("detect cgroups: %w", err)
	}
	defer f.Close()
	h, err := parse(f)
	if err != nil {
		return nil, fmt.Errorf("detect cgroups: %w", err)
	}
	if h.unified != "" {
		b, err := os.ReadFile(filepath.Join(h.unified, "cgroup.controllers"))
		if err != nil {
			return nil, fmt.Errorf("detect cgroups: %w", err)
		}
		h.v2 = strings.Fields(string(b))
	}
	if h.unified == "" && len(h.v1) == 0 {
		return nil, fmt.Errorf("detect cgroups: %w", ErrNone)
	}
	return h, nil
}

// parse finds the mounts in a mountinfo table, proc(5). The first mount of a kind counts.
func parse(r io.Reader) (*Hierarchy, error) {
	h := &Hierarchy{v1: map[string]string{}}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		before, after, ok := strings.Cut(sc.Text(), " - ")
		l, t := strings.Fields(before), strings.Fields(after)
		if !ok || len(l) < 6 || len(t) < 3 {
			continue
		}
		point := unescape(l[4])
		switch t[0] {
		case "cgroup2":
			if h.unified == "" {
				h.unified = point
			}
		case "cgroup":
			for _, o := range strings.Split(t[2], ",") {
				if _, dup := h.v1[o]; !dup && slices.Contains(known, o) {
					h.v1[o] = point
				}
			}
		}
	}
	return h, sc.Err()
}

// unescape undoes the octal escapes of the mount table.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Version is 2 where limits are set through the unified hierarchy alone, and 1 where any
// controller is mounted the old way.
func (h *Hierarchy) Version() int {
	if h.legacy() {
		return 1
	}
	return 2
}

func (h *Hierarchy) legacy() bool {
	for c := range h.v1 {
		if c != systemd {
			return true
		}
	}
	return false
}

// Group names the group at rel, relative to the mounts; nothing is made yet.
func (h *Hierarchy) Group(rel string) (*Group, error) {
	if rel == "" || rel == "." || !filepath.IsLocal(rel) || path.Clean(rel) != rel || strings.ContainsRune(rel, '\n') {
		return nil, fmt.Errorf("cgroup path %q: want a clean relative path", rel)
	}
	return &Group{h: h, rel: rel}, nil
}

// A Group is the control group of one container.
type Group struct {
	h   *Hierarchy
	rel string
	old bool // Create found a part of it there

	fresh bool // Create made all of it, and nobody was told the way in since
}

// dirs are the group's folders by controller, "" for version 2; only those that may be used.
// Controllers mounted together share one.
func (g *Group) dirs() map[string]string {
	m := map[string]string{}
	for c, point := range g.h.v1 {
		m[c] = filepath.Join(point, g.rel)
	}
	if g.h.unified != "" {
		m[""] = filepath.Join(g.h.unified, g.rel)
	}
	return m
}

// folders are the distinct existing folders of the group.
func (g *Group) folders() []string {
	var list []string
	for _, d := range g.dirs() {
		if _, err := os.Lstat(d); err == nil && !slices.Contains(list, d) {
			list = append(list, d)
		}
	}
	slices.Sort(list)
	return list
}

// Create makes the group with the standard controllers. Repeatable, but not at the same time. When
// the machine does not allow it, the error matches fs.ErrPermission or syscall.EROFS.
func (g *Group) Create() error {
	list := standard
	if g.h.unified == "" {
		list = append([]string{freezer}, standard...)
	}
	for _, c := range list {
		if point, ok := g.h.v1[c]; ok {
			if err := g.makeV1(point); err != nil {
				return fmt.Errorf("create cgroup %s: %w", g.rel, err)
			}
		}
	}
	if g.h.unified != "" {
		if err := g.makeV2(); err != nil {
			return fmt.Errorf("create cgroup %s: %w", g.rel, err)
		}
	}
	g.fresh = !g.old
	return nil
}

// parents are the group's path and those above it, the topmost first.
func (g *Group) parents() []string {
	var list []string
	for p := g.rel; p != "."; p = path.Dir(p) {
		list = append(list, p)
	}
	slices.Reverse(list)
	return list
}

func (g *Group) makeV1(point string) error {
	set := point == g.h.v1["cpuset"]
	if !set {
		if err := g.mkdir(filepath.Join(point, g.rel)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, p := range g.parents() {
		dir := filepath.Join(point, p)
		if err := g.mkdir(dir); err != nil {
			return err
		}
		if !set {
			continue
		}
		// A fresh cpuset is empty, and nothing can be moved into an empty one.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			if err := inherit(dir, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// inherit copies a setting from the parent when it is empty.
func inherit(dir, file string) error {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil || len(strings.TrimSpace(string(b))) > 0 {
		return err
	}
	b, err = os.ReadFile(filepath.Join(filepath.Dir(dir), file))
	if err != nil {
		return err
	}
	return write(filepath.Join(dir, file), strings.TrimSpace(string(b)))
}

// mkdir makes one folder of the group or above it.
func (g *Group) mkdir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		g.old = g.old || strings.HasSuffix(dir, "/"+g.rel)
		return nil
	}
	return err
}

// Occupants lists the processes in a group that Create did not make anew.
func (g *Group) Occupants() ([]int, error) {
	if !g.old {
		return nil, nil
	}
	return g.Pids()
}

// use takes a further version 1 controller into use, also when the group has processes already.
func (g *Group) use(controller string) error {
	point, ok := g.h.v1[controller]
	if !ok {
		return fmt.Errorf("no controller %s on this machine", controller)
	}
	dir := filepath.Join(point, g.rel)
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	if g.fresh {
		return g.makeV1(point)
	}
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	if err := g.makeV1(point); err != nil {
		return err
	}
	// What is born meanwhile is born where its parent is; so go on until nothing new is found.
	for moved := 0; len(pids) > moved; {
		for _, pid := range pids {
			err := write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid))
			if err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
		moved = len(pids)
		if pids, err = g.Pids(); err != nil {
			return err
		}
	}
	return nil
}

// makeV2 makes the folders of version 2 and turns on, from the top down, every controller that can
// be. One that cannot is missed only by a setting that needs it: its file is not there then.
func (g *Group) makeV2() error {
	above := g.h.unified
	for _, p := range g.parents() {
		if !g.h.legacy() {
			g.enable(above)
		}
		above = filepath.Join(g.h.unified, p)
		if err := g.mkdir(above); err != nil {
			return err
		}
	}
	return nil
}

func (g *Group) enable(dir string) {
	if dir != g.h.unified {
		// A group with processes of its own cannot hand on memory or io, but processor and pids it can: it then becomes
		// the root of a threaded subtree, and no process may enter what is below it.
		if pids, err := procs(dir); err != nil || len(pids) > 0 {
			return
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return
	}
	on := strings.Fields(string(b))
	for _, c := range g.h.v2 {
		if !slices.Contains(on, c) {
			_ = write(filepath.Join(dir, "cgroup.subtree_control"), "+"+c)
		}
	}
}

// Paths maps each controller to the group's absolute path; on version 2 the one name is "".
func (g *Group) Paths() map[string]string {
	m := g.dirs()
	delete(m, systemd)
	if g.h.legacy() {
		delete(m, "") // the unified hierarchy of a hybrid machine limits nothing
	}
	maps.DeleteFunc(m, func(_, dir string) bool {
		_, err := os.Lstat(dir)
		return err != nil
	})
	return m
}

// JoinFiles are the files to write a process id to, so that the process belongs to the group.
func (g *Group) JoinFiles() []string {
	g.fresh = false
	var list []string
	for _, d := range g.folders() {
		list = append(list, filepath.Join(d, "cgroup.procs"))
	}
	return list
}

// CloneInto is the group's folder in the unified hierarchy, in which a process can be born; ""
// without one.
func (g *Group) CloneInto() string {
	g.fresh = false
	if g.h.unified == "" {
		return ""
	}
	return filepath.Join(g.h.unified, g.rel)
}

// write writes to an existing file, in one call as control files want it.
func write(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		_ = f.Close()
		return fmt.Errorf("%q: %w", text, err)
	}
	return f.Close()
}

// Name is the group's path relative to the mounts.
func (g *Group) Name() string { return g.rel }

// BirthFiles are the files through which a thread takes itself into the group, and back to home,
// by writing 0: what it forks in between is born in the group. Version 1 has no other way that does
// not wait for every processor: writing another process's id to cgroup.procs takes milliseconds on a
// busy machine, as long as the kernel's read-copy-update needs to see all processors pass.
// home is made to have every controller that g has. In the unified hierarchy a process is born by
// CloneInto.
func (g *Group) BirthFiles(home *Group) (enter, leave []string, err error) {
	g.fresh = false
	for c, point := range g.h.v1 {
		dir := filepath.Join(point, g.rel)
		if _, err := os.Lstat(dir); err != nil {
			continue
		}
		if file := filepath.Join(dir, "tasks"); !slices.Contains(enter, file) {
			if _, err := os.Lstat(filepath.Join(point, home.rel)); err != nil {
				if err := home.makeV1(g.h.v1[c]); err != nil {
					return nil, nil, fmt.Errorf("create cgroup %s: %w", home.rel, err)
				}
			}
			enter = append(enter, file)
			leave = append(leave, filepath.Join(point, home.rel, "tasks"))
		}
	}
	return enter, leave, nil
}
