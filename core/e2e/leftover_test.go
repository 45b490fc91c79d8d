package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
)

// cgroupsOf are the cgroups below the cluster's own, as they are named there, in all hierarchies.
func cgroupsOf(t *testing.T, c *cluster.Cluster) []string {
	t.Helper()
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + c.CgroupRoot())
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, root := range append(roots, "/sys/fs/cgroup/"+c.CgroupRoot()) {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != root {
				found = append(found, path)
			}
			return nil
		})
	}
	return found
}

// processes are the pids of a container's processes, each with the time at which it began.
func processes(t *testing.T, c *cluster.Cluster, container string) map[int]string {
	t.Helper()
	found := map[int]string{}
	for _, dir := range cgroupsOf(t, c) {
		if !strings.Contains(dir, container) {
			continue
		}
		procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, f := range strings.Fields(string(procs)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			_, rest, _ := strings.Cut(string(stat), ") ")
			if f := strings.Fields(rest); len(f) > 19 {
				found[pid] = f[19]
			}
		}
	}
	return found
}

// containersEver are the ids of all containers that the agent has had: each has a sandbox, made before all else.
func containersEver(t *testing.T, c *cluster.Cluster) []string {
	t.Helper()
	found := map[string]bool{}
	_ = filepath.WalkDir(filepath.Join(c.Dir, "agent"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // it goes
		}
		if parent := filepath.Base(filepath.Dir(path)); parent == "runs" || parent == "containers" && !strings.Contains(path, "/images/") {
			found[d.Name()] = true
		}
		return nil
	})
	return slices.Sorted(maps.Keys(found))
}

var vethName = regexp.MustCompile(`^veth[0-9a-f]+$`)

// A survey says what of a cluster's containers is left on the machine, but for one that goes on.
type survey struct {
	c      *cluster.Cluster
	plugin *volumePlugin // nil: containers have no Docker volumes
	known  []string      // mounts, interfaces and folders that were there before
	shims  int           // processes that looked after containers, or were ready to
}

// newSurvey begins a survey at a moment at which only the container `but` runs: what is there and is not its is somebody
// else's.
func newSurvey(t *testing.T, c *cluster.Cluster, plugin *volumePlugin, but string) *survey {
	t.Helper()
	s := &survey{c: c, plugin: plugin, shims: shimsOf(t, c)}
	var ends []string
	if but != "" {
		ends = hostEnds(t, but)
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range interfaces {
		if !slices.Contains(ends, in.Name) {
			s.known = append(s.known, in.Name)
		}
	}
	for _, line := range mountLines(t) {
		if but == "" || !strings.Contains(line, but) {
			s.known = append(s.known, mountPoint(line))
		}
	}
	s.known = append(s.known, s.places()...)
	return s
}

// places are the folders in memory that containers have: where their shims listen, and where their mounts are made ready.
func (s *survey) places() []string {
	var found []string
	for _, dir := range []string{"c", "h", "v"} {
		dir = filepath.Join(s.c.RunDir(), dir)
		entries, _ := os.ReadDir(dir) // there is none before the first
		for _, e := range entries {
			found = append(found, filepath.Join(dir, e.Name()))
		}
	}
	return found
}

// spareShims is how many processes an agent has at most that have no container yet.
const spareShims = 4

// shimsOf is the number of processes that look after containers, or are ready to.
func shimsOf(t *testing.T, c *cluster.Cluster) int {
	t.Helper()
	var found []string
	for _, dir := range cgroupsOf(t, c) {
		if filepath.Base(dir) != ".shims" {
			continue
		}
		procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, pid := range strings.Fields(string(procs)) {
			if !slices.Contains(found, pid) {
				found = append(found, pid)
			}
		}
	}
	return len(found)
}

func mountLines(t *testing.T) []string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(strings.Lines(string(mounts)))
}

// mountPoint is the place of a mount, from its line in mountinfo.
func mountPoint(line string) string {
	f := strings.Fields(line)
	if len(f) < 5 {
		return ""
	}
	return f[4]
}

// rules are the machine's rules for packets, one a line.
func rules(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, command := range [][]string{{"iptables-save"}, {"nft", "list", "ruleset"}} {
		out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).Output()
		if err != nil && command[0] == "iptables-save" {
			t.Fatalf("iptables-save: %v", err)
		}
		found = append(found, slices.Collect(strings.Lines(string(out)))...)
	}
	return found
}

// left is what the machine has of the cluster's containers except one, each thing in words. but is "nobody" when none is
// to be left; volumes are the names of that one's Docker volumes.
func (s *survey) left(t *testing.T, but string, volumes ...string) []string {
	t.Helper()
	var found []string
	for _, dir := range cgroupsOf(t, s.c) {
		// Shims of all containers are in one cgroup, which stays.
		if !strings.Contains(dir, but) && filepath.Base(dir) != ".shims" {
			found = append(found, "cgroup "+dir)
		}
	}
	if n := shimsOf(t, s.c); n > s.shims+spareShims {
		found = append(found, fmt.Sprintf("%d shims, where there were %d", n, s.shims))
	}
	ever := containersEver(t, s.c)
	of := func(text string) bool { // it speaks of this cluster's containers
		return !strings.Contains(text, but) && slices.ContainsFunc(ever, func(id string) bool { return strings.Contains(text, id) })
	}
	for _, line := range mountLines(t) {
		at := mountPoint(line)
		ours := strings.Contains(line, s.c.Dir) || strings.HasPrefix(at, s.c.RunDir()+"/")
		if of(line) || ours && !strings.Contains(line, but) && !slices.Contains(s.known, at) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	for _, place := range s.places() {
		if !slices.Contains(s.known, place) {
			found = append(found, "folder "+place)
		}
	}
	for _, line := range rules(t) {
		if of(line) {
			found = append(found, "rule "+strings.TrimSpace(line))
		}
	}
	found = append(found, s.leftOfNetworks(t, of)...)
	roots, err := os.ReadDir(filepath.Join(s.c.Dir, "agent", "images", "containers"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range roots {
		if r.Name() != but {
			found = append(found, "root filesystem "+r.Name())
		}
	}
	found = append(found, s.leftInAgent(t, but)...)
	if s.plugin != nil {
		found = append(found, s.plugin.held(volumes)...)
	}
	return found
}

// leftOfNetworks are leases, records and interfaces.
func (s *survey) leftOfNetworks(t *testing.T, of func(string) bool) []string {
	t.Helper()
	var found []string
	leases, err := filepath.Glob(cniLeases + "/*/*.*.*.*")
	if err != nil {
		t.Fatal(err)
	}
	for _, lease := range leases {
		if data, err := os.ReadFile(lease); err == nil && of(string(data)) {
			found = append(found, "lease "+lease)
		}
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var records strings.Builder // read after the interfaces were: who made one since is in none
	entries, err := os.ReadDir(cniRecords)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if of(e.Name()) {
			found = append(found, "record "+e.Name())
		}
		data, _ := os.ReadFile(filepath.Join(cniRecords, e.Name(), "record.json"))
		records.Write(data)
	}
	for _, in := range interfaces {
		if vethName.MatchString(in.Name) && !slices.Contains(s.known, in.Name) && !strings.Contains(records.String(), in.Name) {
			found = append(found, "interface "+in.Name)
		}
	}
	return found
}

// leftInAgent is what the agent itself says: containers, and cleanups that modules owe.
func (s *survey) leftInAgent(t *testing.T, but string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var found []string
	resp, err := operator.NewAgent(s.c.Agent).Call(ctx, &agentv1.Call{
		Type:          agentv1.Call_GET_CONTAINERS.Enum(),
		GetContainers: &agentv1.Call_GetContainers{ShowNested: proto.Bool(true), ShowStandalone: proto.Bool(true)},
	})
	if err != nil {
		return []string{"no word of the agent: " + err.Error()}
	}
	for _, ct := range resp.GetGetContainers().GetContainers() {
		if id := ct.GetContainerId().GetValue(); id != but {
			found = append(found, "container "+id+", by the agent's word")
		}
	}
	for _, m := range modules(t, s.c) {
		if m.State != "up" {
			found = append(found, fmt.Sprintf("module %s is %s", m.Name, m.State))
		}
		if m.Owed > 0 {
			found = append(found, fmt.Sprintf("module %s owes %d cleanups", m.Name, m.Owed))
		}
	}
	return found
}

// nothing waits until nothing is left but one container.
func (s *survey) nothing(t *testing.T, but string, volumes ...string) {
	t.Helper()
	const within = 60 * time.Second // what is owed is tried again after some time
	deadline := time.Now().Add(within)
	for {
		left := s.left(t, but, volumes...)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s later there is still, beside %s:\n%s", within, but, strings.Join(left, "\n"))
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}
