package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// withVolume gives a task a folder of the machine as /data.
func withVolume(task *mesosv1.TaskInfo, path string, mode mesosv1.Volume_Mode) *mesosv1.TaskInfo {
	task.Container.Volumes = append(task.Container.Volumes, &mesosv1.Volume{
		Mode: &mode, ContainerPath: proto.String("/data"),
		Source: &mesosv1.Volume_Source{Type: mesosv1.Volume_Source_HOST_PATH.Enum(), HostPath: &mesosv1.Volume_Source_HostPath{Path: &path}},
	})
	return task
}

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
		if err == nil && d.IsDir() && filepath.Base(filepath.Dir(path)) == "runs" {
			found[d.Name()] = true
			return fs.SkipDir
		}
		return nil
	})
	return slices.Sorted(maps.Keys(found))
}

var vethName = regexp.MustCompile(`^veth[0-9a-f]+$`)

// leftOver is what the machine has of the cluster's containers except one, each thing in words.
func leftOver(t *testing.T, c *cluster.Cluster, but string, known []string) []string {
	t.Helper()
	var found []string
	for _, dir := range cgroupsOf(t, c) {
		// Shims of containers that ended are in one cgroup for all, which stays.
		if !strings.Contains(dir, but) && filepath.Base(dir) != ".shims" {
			found = append(found, "cgroup "+dir)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := exec.CommandContext(t.Context(), "iptables-save").Output()
	if err != nil {
		t.Fatalf("iptables-save: %v", err)
	}
	ever := containersEver(t, c)
	of := func(text string) bool { // it speaks of this cluster's containers
		return !strings.Contains(text, but) && slices.ContainsFunc(ever, func(id string) bool { return strings.Contains(text, id) })
	}
	for line := range strings.Lines(string(mounts)) {
		if of(line) || strings.Contains(line, c.Dir) && !strings.Contains(line, but) && !slices.Contains(known, mountPoint(line)) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	for line := range strings.Lines(string(rules)) {
		if of(line) {
			found = append(found, "rule "+strings.TrimSpace(line))
		}
	}
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
		if vethName.MatchString(in.Name) && !slices.Contains(known, in.Name) && !strings.Contains(records.String(), in.Name) {
			found = append(found, "interface "+in.Name)
		}
	}
	return found
}

// mountPoint is the place of a mount, from its line in mountinfo.
func mountPoint(line string) string {
	f := strings.Fields(line)
	if len(f) < 5 {
		return ""
	}
	return f[4]
}

func TestKillsInTheMidstOfLaunchesAndEndsLeaveNothing(t *testing.T) {
	needBridge(t)
	kills := 15
	if text := os.Getenv("MOSAIC_KILLS"); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil {
			t.Fatalf("MOSAIC_KILLS: %v", err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("MOSAIC_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("MOSAIC_SEED: %v", err)
		}
	}
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("%d kills, MOSAIC_SEED=%d", kills, seed)

	image := imageRegistry(t)
	volume := t.TempDir()
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(kills)*30*time.Second)
	defer cancel()

	// One that has nothing to do with all this.
	calm, err := cluster.Subscribe(ctx, c.Master, "bystander", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer calm.Disconnect()
	o, err := calm.Offer(ctx, 0.1, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := calm.Launch(ctx, o, withVolume(onBridge(imageTask(o, "bystander", image, nil)), volume, mesosv1.Volume_RW)); err != nil {
		t.Fatal(err)
	}
	if err := calm.Enough(ctx); err != nil {
		t.Fatal(err)
	}
	running, err := calm.State(ctx, []string{"bystander"}, mesosv1.TaskState_TASK_RUNNING)
	if err != nil {
		t.Fatal(err)
	}
	bystander, ip := address(t, running["bystander"].Status)
	var pids map[int]string
	eventually(t, "the bystander's processes", 10*time.Second, func() bool {
		_, err := get("http://" + ip + "/")
		pids = processes(t, c, bystander)
		return err == nil && len(pids) > 0
	})

	ends := hostEnds(t, bystander)
	var known []string // what was there before: others' interfaces, and mounts that are the cluster's as a whole
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range interfaces {
		if !slices.Contains(ends, in.Name) {
			known = append(known, in.Name)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if !strings.Contains(line, bystander) {
			known = append(known, mountPoint(line))
		}
	}

	f, err := cluster.Subscribe(ctx, c.Master, "churn", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	var before []*mesosv1.TaskInfo
	ran := 0 // of the tasks, how many came as far as running
	for round := range kills {
		o, err := f.Offer(ctx, 0.4, 256)
		if err != nil {
			t.Fatalf("kill %d: %v", round, err)
		}
		var tasks []*mesosv1.TaskInfo
		for i := range 3 {
			var command *mesosv1.CommandInfo // the web server, which stays
			if random.IntN(3) == 0 {
				command = cluster.Exec("/bin/echo", "gone at once")
			}
			task := onBridge(imageTask(o, fmt.Sprintf("task-%d-%d", round, i), image, command))
			tasks = append(tasks, withVolume(task, volume, mesosv1.Volume_RO))
		}
		if err := f.Launch(ctx, o, tasks...); err != nil {
			t.Fatalf("kill %d: %v", round, err)
		}
		for _, task := range before {
			if err := f.Client().Kill(ctx, task.GetTaskId(), task.GetAgentId()); err != nil {
				t.Fatalf("kill %d: %v", round, err)
			}
		}
		pause := time.Duration(random.IntN(1500)) * time.Millisecond
		module := random.IntN(3) == 0
		time.Sleep(pause) // the random point; nothing is waited for
		if module {
			list := modules(t, c)
			names := slices.Sorted(maps.Keys(list))
			name := names[random.IntN(len(names))]
			if pid := list[name].Pid; pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			t.Logf("kill %d: %s after %s", round, name, pause)
		} else {
			if err := c.KillAgent(); err != nil {
				t.Fatal(err)
			}
			if err := c.StartAgent(); err != nil {
				t.Fatal(err)
			}
			if err := c.WaitAgentRecovered(ctx); err != nil {
				t.Fatalf("kill %d: %v", round, err)
			}
			t.Logf("kill %d: the agent after %s", round, pause)
		}
		if err := c.WaitReady(ctx); err != nil {
			t.Fatalf("kill %d: %v", round, err)
		}
		before = tasks
		for _, task := range tasks {
			for _, u := range f.Updates(task.GetTaskId().GetValue()) {
				if u.Status.GetState() == mesosv1.TaskState_TASK_RUNNING {
					ran++
					break
				}
			}
		}
		if page, err := get("http://" + ip + "/"); err != nil || page != registryPage {
			t.Fatalf("kill %d: the bystander serves %q, %v", round, page, err)
		}
	}
	t.Logf("%d of %d tasks ran before a kill hit", ran, 3*kills)
	if ran == 0 {
		t.Error("no task ever ran: the kills hit nothing but beginnings")
	}
	if err := f.Teardown(ctx); err != nil {
		t.Fatal(err)
	}
	if n := len(containersEver(t, c)); n < kills/2 {
		t.Errorf("there have been %d containers in all; is their place another now?", n)
	}
	nothingLeft := func(but string) {
		t.Helper()
		deadline := time.Now().Add(90 * time.Second)
		for {
			left := leftOver(t, c, but, known)
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%d kills (MOSAIC_SEED=%d) left beside %s:\n%s", kills, seed, but, strings.Join(left, "\n"))
				return
			}
			time.Sleep(200 * time.Millisecond)
		}
	}
	nothingLeft(bystander)
	for _, m := range modules(t, c) {
		if m.State != "up" {
			t.Errorf("module %s is %s in the end", m.Name, m.State)
		}
	}
	if now := processes(t, c, bystander); !maps.Equal(now, pids) {
		t.Errorf("the bystander's processes were %v, are %v", pids, now)
	}
	for _, u := range calm.Updates("bystander") {
		if s := u.Status.GetState(); s != mesosv1.TaskState_TASK_STARTING && s != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("the bystander had update %s: %s", s, u.Status.GetMessage())
		}
	}
	if seen := traces(t, bystander, ip, nil); len(seen) == 0 {
		t.Error("nothing is seen of the bystander either: this test looks in the wrong places")
	}
	if err := calm.Teardown(ctx); err != nil {
		t.Fatal(err)
	}
	nothingLeft("nobody")
}
