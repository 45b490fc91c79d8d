package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// A test may end while its containers run, or because they left something. What they have on this machine is then taken
// away from outside: with no word to the modules that made it, since those are gone.

// sweepCgroups kills what runs in the cluster's own cgroups and removes them.
func (c *Cluster) sweepCgroups() error {
	deadline := time.Now().Add(15 * time.Second)
	for {
		roots, err := filepath.Glob("/sys/fs/cgroup/*/" + c.CgroupRoot() + "*")
		if err != nil {
			return err
		}
		if r := "/sys/fs/cgroup/" + c.CgroupRoot(); exists(r) {
			roots = append(roots, r)
		}
		if len(roots) == 0 {
			return nil
		}
		for _, root := range roots {
			removeCgroups(root)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroups %v cannot be removed", roots)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// removeCgroups kills the processes below root and removes its folders, children first, as far as they let themselves.
func removeCgroups(root string) {
	var dirs []string
	_ = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		data, _ := os.ReadFile(filepath.Join(dirs[i], "cgroup.procs"))
		for _, f := range strings.Fields(string(data)) {
			var pid int
			if _, err := fmt.Sscan(f, &pid); err == nil && pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		_ = os.WriteFile(filepath.Join(dirs[i], "freezer.state"), []byte("THAWED"), 0)
		_ = syscall.Rmdir(dirs[i])
	}
}

// workDir is the agent's.
func (c *Cluster) workDir() string {
	if c.Dev {
		return filepath.Join(c.Dir, "work", "agent")
	}
	return filepath.Join(c.Dir, "agent")
}

// RunDir is the folder in memory that an agent of root's has for its work directory.
func (c *Cluster) RunDir() string {
	sum := sha256.Sum256([]byte(c.workDir()))
	return filepath.Join("/run/mosaic", hex.EncodeToString(sum[:4]))
}

// containers are the ids of all containers that the agent has had: each has a sandbox, made before all else.
func (c *Cluster) containers() []string {
	var found []string
	_ = filepath.WalkDir(c.workDir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // it goes
		}
		if parent := filepath.Base(filepath.Dir(path)); parent == "runs" || parent == "containers" {
			found = append(found, d.Name())
		}
		return nil
	})
	return found
}

// sweepMounts takes away the mounts of the cluster on this machine: those in its folders, and those that name one of its
// containers.
func (c *Cluster) sweepMounts(containers []string) error {
	list, err := os.ReadFile("/proc/self/mountinfo")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	lines := slices.Collect(strings.Lines(string(list)))
	for _, line := range slices.Backward(lines) { // the last is on top
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		at := f[4]
		ours := slices.ContainsFunc([]string{c.Dir, c.RunDir()}, func(dir string) bool { return strings.HasPrefix(at, dir+"/") })
		if ours || names(at, containers) {
			if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
				errs = append(errs, &os.PathError{Op: "umount", Path: at, Err: err})
			}
		}
	}
	return errors.Join(errs...)
}

// names says whether a text has the id of one of the containers in it.
func names(text string, containers []string) bool {
	return slices.ContainsFunc(containers, func(id string) bool { return strings.Contains(text, id) })
}

// sweepNetworks takes away what the built-in network keeps of containers. Their interfaces went with their namespaces,
// which no mount and no process holds any more.
func sweepNetworks(containers []string) error {
	if len(containers) == 0 || os.Geteuid() != 0 {
		return nil // an ordinary user's containers have none
	}
	var errs []error
	for _, id := range containers {
		errs = append(errs, os.RemoveAll(filepath.Join("/run/mosaic/cni", id)))
	}
	leases, err := filepath.Glob("/run/mosaic/cni-leases/*/*.*.*.*")
	errs = append(errs, err)
	for _, lease := range leases {
		if data, err := os.ReadFile(lease); err == nil && names(string(data), containers) {
			errs = append(errs, os.Remove(lease))
		}
	}
	return errors.Join(append(errs, sweepRules(containers), sweepPorts(containers))...)
}

// sweepPorts takes away what the built-in network's own tables hold of published ports: elements of maps, whose comment
// is a container.
func sweepPorts(containers []string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil //nolint:nilerr // a kernel without nftables has none of it
	}
	for _, table := range tables {
		sets, err := c.GetSets(table)
		if err != nil {
			continue // somebody else's, which went meanwhile
		}
		for _, set := range sets {
			elements, err := c.GetSetElements(set)
			if err != nil {
				continue
			}
			elements = slices.DeleteFunc(elements, func(e nftables.SetElement) bool { return e.Comment == "" || !slices.Contains(containers, e.Comment) })
			if len(elements) == 0 {
				continue
			}
			if err := c.SetDeleteElements(set, elements); err != nil {
				return err
			}
			if err := c.Flush(); err != nil {
				return fmt.Errorf("take elements of %s away: %w", set.Name, err)
			}
		}
	}
	return nil
}

// sweepRules takes away the rules of iptables whose comment names a container, and the chains that only those lead to.
func sweepRules(containers []string) error {
	if _, err := exec.LookPath("iptables-save"); err != nil {
		return nil //nolint:nilerr // whoever has no iptables has no rules of it
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	saved, err := exec.CommandContext(ctx, "iptables-save", "-t", "nat").Output()
	if err != nil {
		return fmt.Errorf("iptables-save: %w", err)
	}
	var rules, chains bytes.Buffer
	for line := range strings.Lines(string(saved)) {
		rest, ok := strings.CutPrefix(line, "-A ")
		if !ok || !names(line, containers) {
			continue
		}
		rules.WriteString("-D " + rest)
		if _, to, ok := strings.Cut(strings.TrimSpace(line), " -j CNI-"); ok && !strings.ContainsAny(to, " ") {
			fmt.Fprintf(&chains, "-F CNI-%s\n-X CNI-%s\n", to, to)
		}
	}
	if rules.Len() == 0 {
		return nil
	}
	restore := exec.CommandContext(ctx, "iptables-restore", "--noflush", "-w", "10")
	restore.Stdin = strings.NewReader("*nat\n" + rules.String() + chains.String() + "COMMIT\n")
	if out, err := restore.CombinedOutput(); err != nil {
		return fmt.Errorf("take rules away: %w\n%s", err, out)
	}
	return nil
}
