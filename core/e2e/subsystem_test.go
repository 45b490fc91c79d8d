package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// The subsystems of cgroup version 1; those of version 2 are shown in the guest of tools/vm.

// needV1 skips a test of a controller that this machine has not mounted in version 1.
func needV1(t *testing.T, controllers ...string) {
	t.Helper()
	needRoot(t)
	for _, c := range controllers {
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", c)); err != nil {
			t.Skip("needs a controller of cgroup version 1: " + err.Error())
		}
	}
}

// groupFile is what the kernel says in a file of the cgroup of a task's container.
func groupFile(t *testing.T, c *cluster.Cluster, controller string, s *mesosv1.TaskStatus, file string) string {
	t.Helper()
	id := s.GetContainerStatus().GetContainerId().GetValue()
	data, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, c.CgroupRoot(), id, file))
	if err != nil {
		t.Errorf("cgroup of %s: %v", s.GetTaskId().GetValue(), err)
	}
	return strings.TrimSpace(string(data))
}

func labelled(task *mesosv1.TaskInfo, key, value string) *mesosv1.TaskInfo {
	task.Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: &key, Value: &value}}}
	return task
}

func TestACoreOfItsOwnStaysATasksOwnWhateverIsKilled(t *testing.T) {
	needV1(t, "cpuset")
	if online, err := os.ReadFile("/sys/devices/system/cpu/online"); err != nil || strings.TrimSpace(string(online)) == "0" {
		t.Skipf("needs two cores, has %s", online)
	}
	c := start(t, cluster.Options{Composition: "isolator \"cgroups\" {\n  config {\n    exclusive_cores = \"1\"\n    patience        = \"1s\"\n  }\n}\nisolator \"namespaces\" {}\n"})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	f := checkFramework(ctx, t, c)
	launch := func(id string, cpus float64, exclusive bool) *mesosv1.TaskStatus {
		t.Helper()
		o, err := f.Offer(ctx, cpus, 32)
		if err != nil {
			t.Fatal(err)
		}
		task := cluster.Task(o, id, cpus, 32, cluster.Shell("grep Cpus_allowed_list /proc/self/status; exec sleep 1000"))
		if exclusive {
			labelled(task, "mosaic.cpus", "exclusive")
		}
		if err := f.Launch(ctx, o, task); err != nil {
			t.Fatal(err)
		}
		now, err := f.State(ctx, []string{id}, mesosv1.TaskState_TASK_RUNNING, mesosv1.TaskState_TASK_FAILED)
		if err != nil {
			t.Fatal(err)
		}
		return now[id].Status
	}
	runsOn := func(s *mesosv1.TaskStatus, core string) {
		t.Helper()
		id := s.GetTaskId().GetValue()
		if s.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Fatalf("%s: %v", id, s)
		}
		if got := groupFile(t, c, "cpuset", s, "cpuset.cpus"); got != core {
			t.Errorf("the cpuset of %s is %q, want %q", id, got, core)
		}
		eventually(t, id+" says where it may run", 10*time.Second, func() bool { return strings.Contains(wroteSoFar(t, c, id), "\n") })
		if got := strings.Fields(wroteSoFar(t, c, id)); got[1] != core {
			t.Errorf("%s may run on %q, want %q", id, got[1], core)
		}
	}
	refused := func(id string) {
		t.Helper()
		if s := launch(id, 1, true); s.GetState() != mesosv1.TaskState_TASK_FAILED || !strings.Contains(s.GetMessage(), "0 of 1 are free") {
			t.Errorf("%s, with the core taken: %v, want TASK_FAILED that says so", id, s)
		}
	}
	own, others := launch("own", 1, true), launch("others", 1, false)
	runsOn(own, "1")
	runsOn(others, "0")
	refused("second")

	if err := syscall.Kill(modules(t, c)["isolator/cgroups"].Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	refused("after the module's end")
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitAgentRecovered(ctx); err != nil {
		t.Fatal(err)
	}
	refused("after the agent's end")
	runsOn(own, "1")

	if err := f.Client().Kill(ctx, own.GetTaskId(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(ctx, []string{"own"}, mesosv1.TaskState_TASK_KILLED); err != nil {
		t.Fatal(err)
	}
	runsOn(launch("next", 1, true), "1")
	if err := f.Teardown(ctx); err != nil {
		t.Fatal(err)
	}
	groupsGone(t, c, "/sys/fs/cgroup/cpuset")
}

// groupsGone waits until no container of a cluster has a cgroup below a hierarchy's folder.
func groupsGone(t *testing.T, c *cluster.Cluster, hierarchy string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		left, err := filepath.Glob(filepath.Join(hierarchy, c.CgroupRoot(), "*-*-*-*-*")) // containers have UUIDs
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("cgroups are left: %v", left)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// wholeDisk is a disk of this machine with its number.
func wholeDisk(t *testing.T) (path string, number uint64) {
	t.Helper()
	entries, err := os.ReadDir("/sys/block")
	if err != nil {
		t.Skip("needs a disk: " + err.Error())
	}
	for _, e := range entries {
		var st unix.Stat_t
		path := filepath.Join("/dev", e.Name())
		if strings.HasPrefix(e.Name(), "loop") || strings.HasPrefix(e.Name(), "zram") || strings.HasPrefix(e.Name(), "ram") || unix.Stat(path, &st) != nil {
			continue
		}
		return path, st.Rdev
	}
	t.Skip("needs a disk, and /sys/block has none with a node")
	return "", 0
}

func TestWritingToADiskIsLimitedAndCounted(t *testing.T) {
	needV1(t, "blkio")
	disk, number := wholeDisk(t)
	device := fmt.Sprintf("%d:%d", unix.Major(number), unix.Minor(number))
	c := start(t, cluster.Options{Composition: fmt.Sprintf("isolator \"cgroups\" {\n  config {\n    io {\n      device           = %q\n      write_per_second = \"1MiB\"\n      reads_per_second = 5000\n    }\n  }\n}\n", disk)})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	f := checkFramework(ctx, t, c)
	launchOne(ctx, t, f, "writer", "dd if=/dev/zero of=big bs=256k count=16 oflag=direct 2>&1; echo written; exec sleep 1000", func(*mesosv1.TaskInfo) {})
	begun := time.Now()
	s := f.Updates("writer")[len(f.Updates("writer"))-1].Status
	for file, want := range map[string]string{
		"blkio.throttle.write_bps_device": device + " 1048576", "blkio.throttle.read_iops_device": device + " 5000", "blkio.throttle.read_bps_device": "",
	} {
		if got := groupFile(t, c, "blkio", s, file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(c.Dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Dev != number {
		t.Skipf("the limits are set; the sandbox is on another device than %s, so that nothing is written to it", disk)
	}
	eventually(t, "the task has written", time.Minute, func() bool { return strings.Contains(wroteSoFar(t, c, "writer"), "written") })
	if took := time.Since(begun); took < 2*time.Second {
		t.Errorf("writing 4 MB at 1 MB in a second took %s:\n%s", took, wroteSoFar(t, c, "writer"))
	}
	eventually(t, "the statistics tell what was written", 20*time.Second, func() bool {
		written := uint64(0)
		for _, d := range statisticsOf(ctx, t, c).GetBlkioStatistics().GetThrottling() {
			for _, v := range d.GetIoServiceBytes() {
				if v.GetOp() == mesosv1.CgroupInfo_Blkio_WRITE && fmt.Sprintf("%d:%d", d.GetDevice().GetMajorNumber(), d.GetDevice().GetMinorNumber()) == device {
					written += v.GetValue()
				}
			}
		}
		return written >= 4<<20
	})
}

// statisticsOf are those of the only container of an agent; nil if there is none, or more.
func statisticsOf(ctx context.Context, t *testing.T, c *cluster.Cluster) *mesosv1.ResourceStatistics {
	t.Helper()
	resp, err := operator.NewAgent(c.Agent).Call(ctx, &agentv1.Call{Type: agentv1.Call_GET_CONTAINERS.Enum()})
	if err != nil {
		t.Fatal(err)
	}
	list := resp.GetGetContainers().GetContainers()
	if len(list) != 1 {
		return nil
	}
	return list[0].GetResourceStatistics()
}

func TestOnlyListedDevicesCanBeOpened(t *testing.T) {
	needV1(t, "devices")
	image := busyboxFolder(t)
	disk, _ := wholeDisk(t)
	c := start(t, cluster.Options{Composition: `
isolator "cgroups" {
  config {
    restrict_devices = true
    allowed_devices  = ["/dev/kmsg:r"]
  }
}
isolator "namespaces" {}
isolator "devices" {
  config {
    device "/dev/loop-control" {}
    device "/dev/kmsg" {
      access = "r"
    }
  }
}
`})
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs a device that nobody misses: " + err.Error())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	f := checkFramework(ctx, t, c)
	try := `try() { if (eval "exec 3$1$2") 2>why; then echo "$1$2 open"; else case "$(cat why 2>/dev/null || busybox cat why)" in *"not permitted"*) echo "$1$2 not permitted";; *"such file"*|*nonexistent*) echo "$1$2 not there";; *) busybox cat why || cat why;; esac; fi; }; ` +
		`try "<" /dev/null; try "<" ` + disk + `; try "<" /dev/kmsg; try ">" /dev/kmsg; try "<" /dev/loop-control`
	for _, test := range []struct {
		id, asks string
		image    bool
		want     string
	}{
		{"plain", "", false, "</dev/null open\n<DISK not permitted\n</dev/kmsg open\n>/dev/kmsg not permitted\n</dev/loop-control not permitted\n"},
		{"asks", "/dev/loop-control", false, "</dev/null open\n<DISK not permitted\n</dev/kmsg open\n>/dev/kmsg not permitted\n</dev/loop-control open\n"},
		{"image", "", true, "</dev/null open\n<DISK not there\n</dev/kmsg not there\n"},
		{"image-asks", "/dev/loop-control, /dev/kmsg:/dev/messages:r", true, "</dev/null open\n<DISK not there\n</dev/kmsg not there\n"},
		{"image-too-much", "/dev/kmsg:rw", true, "access rw"},
		{"not-listed", "/dev/kvm-not-lent", true, "is not among those"},
	} {
		o, err := f.Offer(ctx, 0.1, 64)
		if err != nil {
			t.Fatal(err)
		}
		line := try
		if test.image { // writing to what is not there makes a file
			line = strings.ReplaceAll(strings.ReplaceAll(try, `try ">" /dev/kmsg; `, ""), `try "<" /dev/loop-control`, `try "<" /dev/loop-control; try "<" /dev/messages; try ">" /dev/messages`)
		}
		task := cluster.Task(o, test.id, 0.1, 64, cluster.Shell(line))
		if test.image {
			task = imageTask(o, test.id, image, cluster.Shell(line))
		}
		if test.asks != "" {
			labelled(task, "mosaic.devices", test.asks)
		}
		if err := f.Launch(ctx, o, task); err != nil {
			t.Fatal(err)
		}
		ended, err := f.State(ctx, []string{test.id}, mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.ReplaceAll(test.want, "DISK", disk)
		switch test.id {
		case "image":
			want += "</dev/loop-control not there\n</dev/messages not there\n>/dev/messages open\n" // a file of its own
		case "image-asks":
			want += "</dev/loop-control open\n</dev/messages open\n>/dev/messages not permitted\n"
		}
		if s := ended[test.id].Status; s.GetState() == mesosv1.TaskState_TASK_FAILED {
			if !strings.Contains(s.GetMessage(), want) {
				t.Errorf("%s: %v, want %q", test.id, s, want)
			}
		} else if got := wroteSoFar(t, c, test.id); got != want {
			t.Errorf("%s: the task opens\n%swant\n%s", test.id, got, want)
		}
	}
}

// inOwnHierarchies has a cluster's programs run where further controllers of version 1 are mounted, which nobody else sees.
func inOwnHierarchies(t *testing.T, c *cluster.Cluster, controllers ...string) (mountedAt string) {
	t.Helper()
	dir := t.TempDir()
	var mounts []string
	for _, name := range controllers {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		mounts = append(mounts, fmt.Sprintf("mount -t cgroup -o %s mosaic-e2e %s", name, filepath.Join(dir, name)))
	}
	wrapped := func(command string) string {
		return fmt.Sprintf("unshare --mount --propagation private /bin/sh -c '%s && %s' mosaic", strings.Join(mounts, " && "), command)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "/bin/sh", "-c", wrapped("true")).CombinedOutput(); err != nil {
		t.Skipf("this machine does not mount the controllers %v of version 1: %v: %s", controllers, err, out)
	}
	script := "#!/bin/sh\nexec " + wrapped(`exec `+filepath.Join(bin, "mosaic")+` "$@"`) + " \"$@\"\n"
	programs := t.TempDir()
	if err := os.WriteFile(filepath.Join(programs, "mosaic"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	c.Bin = programs
	return dir
}

func TestNetworkClassesAreTheKernelsAndOneTasksOnly(t *testing.T) {
	needV1(t, "cpu")
	var c *cluster.Cluster
	t.Cleanup(func() { sweepHierarchy(t, c, "net_cls") }) // after the cluster's end, which sees what is mounted for all
	c = prepare(t, cluster.Options{Composition: `
isolator "cgroups" {
  config {
    net_cls_primary_handle    = "0x0010"
    net_cls_secondary_handles = "0x0007,0x0008"
    patience                  = "1s"
  }
}
isolator "namespaces" {}
`})
	at := inOwnHierarchies(t, c, "net_cls")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	f := checkFramework(ctx, t, c)
	class := func(id string) (told uint32, kernel string) {
		t.Helper()
		s := f.Updates(id)[len(f.Updates(id))-1].Status
		file := filepath.Join("/proc", strconv.Itoa(c.AgentPid()), "root", at, "net_cls", c.CgroupRoot(), s.GetContainerStatus().GetContainerId().GetValue(), "net_cls.classid")
		data, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		return s.GetContainerStatus().GetCgroupInfo().GetNetCls().GetClassid(), strings.TrimSpace(string(data))
	}
	launchOne(ctx, t, f, "a", "exec sleep 1000", func(*mesosv1.TaskInfo) {})
	if told, kernel := class("a"); told != 0x100007 || kernel != strconv.Itoa(0x100007) {
		t.Errorf("the class of a is told as %#x and is %s, want 0x100007", told, kernel)
	}
	launchOne(ctx, t, f, "b", "exec sleep 1000", func(*mesosv1.TaskInfo) {})
	if told, kernel := class("b"); told != 0x100008 || kernel != strconv.Itoa(0x100008) {
		t.Errorf("the class of b is told as %#x and is %s, want 0x100008", told, kernel)
	}
	// What is taken stays taken when the agent is killed, and is free again with its task.
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitAgentRecovered(ctx); err != nil {
		t.Fatal(err)
	}
	o, err := f.Offer(ctx, 0.1, 32)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Launch(ctx, o, cluster.Task(o, "third", 0.1, 32, cluster.Shell("true"))); err != nil {
		t.Fatal(err)
	}
	ended, err := f.State(ctx, []string{"third"}, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_FINISHED)
	if err != nil {
		t.Fatal(err)
	}
	if s := ended["third"].Status; s.GetState() != mesosv1.TaskState_TASK_FAILED || !strings.Contains(s.GetMessage(), "all network classes") {
		t.Errorf("a third task: %v, want TASK_FAILED for want of a class", s)
	}
	if err := f.Client().Kill(ctx, &mesosv1.TaskID{Value: proto.String("a")}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(ctx, []string{"a"}, mesosv1.TaskState_TASK_KILLED); err != nil {
		t.Fatal(err)
	}
	launchOne(ctx, t, f, "next", "exec sleep 1000", func(*mesosv1.TaskInfo) {})
	if told, kernel := class("next"); told != 0x100007 || kernel != strconv.Itoa(0x100007) {
		t.Errorf("the class of next is told as %#x and is %s, want that of a again", told, kernel)
	}
	if err := f.Teardown(ctx); err != nil {
		t.Fatal(err)
	}
	groupsGone(t, c, filepath.Join("/proc", strconv.Itoa(c.AgentPid()), "root", at, "net_cls"))
}

// sweepHierarchy removes a cluster's cgroups from a controller that is mounted for nobody.
func sweepHierarchy(t *testing.T, c *cluster.Cluster, controller string) {
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	line := fmt.Sprintf("mount -t cgroup -o %s mosaic-e2e $1 && test ! -e $1/$2 || find $1/$2 -depth -type d -exec rmdir {} +", controller)
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", line, "sh", t.TempDir(), c.CgroupRoot())
	if out, err := cmd.CombinedOutput(); err != nil && !t.Skipped() {
		t.Errorf("remove the cluster's cgroups from %s: %v: %s", controller, err, out)
	}
}

// TestAControllerThatIsNotThereFailsTheLaunch names controllers that this machine has not mounted.
func TestAControllerThatIsNotThereFailsTheLaunch(t *testing.T) {
	needV1(t, "cpu")
	for controller, config := range map[string]string{"hugetlb": `hugetlb_limits = { "2MB" = "4MiB" }`, "net_cls": `net_cls_primary_handle = "0x10"`} {
		if _, err := os.Stat("/sys/fs/cgroup/" + controller); err == nil {
			continue
		}
		c := start(t, cluster.Options{Dev: true, Composition: "isolator \"cgroups\" {\n  config {\n    " + config + "\n  }\n}\n"})
		if r := mosaic(t, c, 125, "run", "--", "true"); !strings.Contains(r.Stderr, controller) {
			t.Errorf("the launch failed with\n%s\nwant it to name %s", r.Stderr, controller)
		}
	}
}
