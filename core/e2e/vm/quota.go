package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// Three projects, so that a fourth container finds none.
const (
	projectsComposition = `
isolator "cgroups" {}
isolator "disk" {
  config {
    enforce  = true
    interval = "1s"
    projects = "5000-5002"
  }
}
`
	killingComposition = `
isolator "cgroups" {}
isolator "disk" {
  config {
    enforce  = true
    interval = "1s"
    projects = "5000-5002"
    kill     = true
  }
}
`
	firstProject, lastProject = 5000, 5002
)

func quotaChecks(src string) []check {
	var checks []check
	for _, c := range []struct {
		name, options, composition string
		run                        func(ctx context.Context, c *cluster.Cluster) error
	}{
		{"tasks on XFS get no more disk than they asked for, whatever happens to the agent", "prjquota", projectsComposition, projectsHold},
		{"a task on XFS that takes more disk ends where the operator wants that", "prjquota", killingComposition, projectsEnd},
		{"on XFS that keeps no quotas a task that needs them is refused", "noquota", projectsComposition, projectsRefused},
	} {
		o := cluster.Options{Bin: filepath.Join(src, "bin"), Composition: c.composition}
		checks = append(checks, check{c.name, func(ctx context.Context) error {
			return withXFS(ctx, c.options, func(dir string) error {
				o.Dir = dir
				return errors.Join(withCluster(ctx, o, c.run), projectsFree(dir, c.options))
			})
		}})
	}
	return checks
}

// withXFS gives run an XFS of its own.
func withXFS(ctx context.Context, options string, run func(dir string) error) (err error) {
	base, err := os.MkdirTemp("", "xfs")
	if err != nil {
		return err
	}
	defer os.RemoveAll(base)
	image, dir := filepath.Join(base, "image"), filepath.Join(base, "at")
	for _, command := range [][]string{
		{"truncate", "-s", "1G", image},
		{"mkfs.xfs", "-q", image},
		{"mkdir", dir},
		{"mount", "-o", "loop," + options, image, dir},
	} {
		if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, out)
		}
	}
	// What is still mounted or open on it keeps it busy: that, too, would be something left.
	defer func() { err = errors.Join(err, os.NewSyscallError("umount", unix.Unmount(dir, 0))) }()
	return run(dir)
}

// projectOf is the project of a folder.
// Source: struct fsxattr in include/uapi/linux/fs.h of Linux.
func projectOf(dir string) (uint32, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	const getAttributes = 0x801c581f // FS_IOC_FSGETXATTR
	var a struct {
		Flags, ExtentSize, Extents, Project, CowExtentSize uint32
		_                                                  [8]byte
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), getAttributes, uintptr(unsafe.Pointer(&a)))
	if errno != 0 {
		return 0, fmt.Errorf("ask for the project of %s: %w", dir, errno)
	}
	return a.Project, nil
}

// hasProject demands that a folder counts for a project.
func hasProject(dir string, want uint32) error {
	got, err := projectOf(dir)
	if err == nil && got != want {
		err = fmt.Errorf("%s has project %d, want %d", dir, got, want)
	}
	return err
}

// quota is what a project may use of a file system and what it uses, in bytes; most is 0 for no limit.
// Source: struct fs_disk_quota in include/uapi/linux/dqblk_xfs.h of Linux.
func quota(dir string, project uint32) (most, used uint64, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	const getQuota = ('X'<<8+3)<<8 | 2 // Q_XGETQUOTA of PRJQUOTA
	var q struct {
		_      [8]byte
		Hard   uint64
		_      [3]uint64
		Blocks uint64
		_      [64]byte
	}
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.Fd(), getQuota, uintptr(project), uintptr(unsafe.Pointer(&q)), 0, 0)
	if errno != 0 && errno != unix.ENOENT {
		return 0, 0, fmt.Errorf("ask for the quota of project %d: %w", project, errno)
	}
	return q.Hard * 512, q.Blocks * 512, nil
}

// projectsFree demands that no limit is left, and that no folder or file counts for a project.
func projectsFree(dir, options string) error {
	if options != "prjquota" {
		return nil
	}
	var errs []error
	for p := uint32(firstProject); p <= lastProject; p++ {
		most, used, err := quota(dir, p)
		if err == nil && (most != 0 || used != 0) {
			err = fmt.Errorf("project %d is left with a limit of %d and %d in use", p, most, used)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sandbox is a task's.
func sandbox(c *cluster.Cluster, task string) (string, error) {
	work := "agent"
	if c.Dev {
		work = "work/agent"
	}
	found, err := filepath.Glob(filepath.Join(c.Dir, work, "slaves", "*", "frameworks", "*", "executors", task, "runs", "latest"))
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("sandbox of task %s: found %v", task, found)
	}
	return filepath.EvalSymlinks(found[0])
}

// withDisk gives a task disk, in MB.
func withDisk(o *mesosv1.Offer, task *mesosv1.TaskInfo, mb float64) *mesosv1.TaskInfo {
	task.Resources = append(task.Resources, &mesosv1.Resource{
		Name: proto.String("disk"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &mb}, AllocationInfo: o.GetAllocationInfo(),
	})
	return task
}

// writer tries to write 20 MB as often as a folder has a file that says so, and tells how each try went. Its output lies in
// the sandbox, too, so that there must be room for it again: it keeps 4 MB.
func writer(folder, name string) string {
	return `i=1; while :; do while ! [ -e ` + folder + `/` + name + `-$i ]; do sleep 0.1; done; ` +
		`if why=$(dd if=/dev/zero of=big bs=1M count=20 2>&1); then said=done; else said=$(echo "$why" | grep -o "Disk quota exceeded\|No space left on device"); fi; ` +
		`truncate -s 4M big; echo "write $i: $said"; i=$((i+1)); done`
}

// launch launches tasks of 5 MB of disk, each with 0.2 cpus, and waits for one of the states.
func launch(ctx context.Context, f *cluster.Framework, lines map[string]string, states ...mesosv1.TaskState) (map[string]cluster.Update, error) {
	o, err := f.Offer(ctx, 0.2*float64(len(lines)), 32*float64(len(lines)))
	if err != nil {
		return nil, err
	}
	var list []*mesosv1.TaskInfo
	var names []string
	for name, line := range lines {
		list = append(list, withDisk(o, cluster.Task(o, name, 0.2, 32, cluster.Shell(line)), 5))
		names = append(names, name)
	}
	if err := f.Launch(ctx, o, list...); err != nil {
		return nil, err
	}
	return f.State(ctx, names, states...)
}

var ended = []mesosv1.TaskState{mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_KILLED, mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_ERROR}

// runs launches such tasks and demands that they run.
func runs(ctx context.Context, f *cluster.Framework, lines map[string]string) error {
	got, err := launch(ctx, f, lines, append([]mesosv1.TaskState{mesosv1.TaskState_TASK_RUNNING}, ended...)...)
	if err != nil {
		return err
	}
	for name, u := range got {
		if s := u.Status; s.GetState() != mesosv1.TaskState_TASK_RUNNING {
			return fmt.Errorf("task %s: %s: %s", name, s.GetState(), s.GetMessage())
		}
	}
	return nil
}

func projectsHold(ctx context.Context, c *cluster.Cluster) error {
	f, err := cluster.Subscribe(ctx, c.Master, "disks", "*")
	if err != nil {
		return err
	}
	defer f.Disconnect()
	signals, err := os.MkdirTemp("", "signals")
	if err != nil {
		return err
	}
	defer os.RemoveAll(signals)
	if err := runs(ctx, f, map[string]string{"one": writer(signals, "one"), "two": writer(signals, "two")}); err != nil {
		return err
	}
	projects := map[string]uint32{}
	dirs := map[string]string{}
	for _, name := range []string{"one", "two"} {
		if dirs[name], err = sandbox(c, name); err != nil {
			return err
		}
		if projects[name], err = projectOf(dirs[name]); err != nil {
			return err
		}
		most, _, err := quota(c.Dir, projects[name])
		if err != nil {
			return err
		}
		if most != 5<<20 {
			return fmt.Errorf("task %s has project %d with a limit of %d, want 5 MB", name, projects[name], most)
		}
	}
	if projects["one"] == projects["two"] || min(projects["one"], projects["two"]) != firstProject {
		return fmt.Errorf("projects %v, want two different ones, the first free ones", projects)
	}
	// try makes a task write and returns what became of it.
	tries := map[string]int{}
	try := func(name string) error {
		tries[name]++
		n := strconv.Itoa(tries[name])
		if err := os.WriteFile(filepath.Join(signals, name+"-"+n), nil, 0o644); err != nil {
			return err
		}
		return until(ctx, "task "+name+" gets no more than its disk", func() (bool, string) {
			out, _ := os.ReadFile(filepath.Join(dirs[name], "stdout"))
			text := string(out)
			refused := strings.Contains(text, "write "+n+": Disk quota exceeded") || strings.Contains(text, "write "+n+": No space left on device")
			_, used, err := quota(c.Dir, projects[name])
			return refused && err == nil && used > 3<<20 && used <= 5<<20, fmt.Sprint(text, " ", used, " ", err)
		})
	}
	if err := try("one"); err != nil {
		return err
	}
	out, _ := os.ReadFile(filepath.Join(dirs["one"], "stdout"))
	fmt.Println(indent(strings.TrimSpace(string(out))))
	if err := diskStatistics(ctx, c); err != nil {
		return err
	}

	// Neither the agent nor the module is needed for the limits, and both know them again.
	if err := c.KillAgent(); err != nil {
		return err
	}
	if err := try("two"); err != nil {
		return fmt.Errorf("while there is no agent: %w", err)
	}
	if err := c.StartAgent(); err != nil {
		return err
	}
	recovered, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := c.WaitAgentRecovered(recovered); err != nil {
		return err
	}
	if err := modulesUp(ctx, c); err != nil {
		return err
	}
	if err := killModule(ctx, "disk"); err != nil {
		return err
	}
	if err := modulesUp(ctx, c); err != nil {
		return err
	}
	for _, name := range []string{"one", "two"} {
		if err := hasProject(dirs[name], projects[name]); err != nil {
			return fmt.Errorf("after the restarts: %w", err)
		}
		if err := try(name); err != nil {
			return fmt.Errorf("after the restarts: %w", err)
		}
	}
	if err := diskStatistics(ctx, c); err != nil {
		return fmt.Errorf("after the restarts: %w", err)
	}

	// The last project goes to a third task, and a fourth is refused.
	if err := runs(ctx, f, map[string]string{"three": "sleep 1000"}); err != nil {
		return err
	}
	got, err := launch(ctx, f, map[string]string{"four": "sleep 1000"}, append([]mesosv1.TaskState{mesosv1.TaskState_TASK_RUNNING}, ended...)...)
	if err != nil {
		return err
	}
	if s := got["four"].Status; s.GetState() != mesosv1.TaskState_TASK_FAILED || !strings.Contains(s.GetMessage(), "all projects (5000-5002) are in use") {
		return fmt.Errorf("a task for which there is no project: %s: %s", s.GetState(), s.GetMessage())
	}
	// What a task leaves in its sandbox counts for nobody, so that its project is the next one's.
	if _, err := mosaic(ctx, c, 0, "task", "kill", "one"); err != nil {
		return err
	}
	err = until(ctx, "the killed task's project is free", func() (bool, string) {
		most, used, err := quota(c.Dir, projects["one"])
		return err == nil && most == 0 && used == 0, fmt.Sprint(most, " ", used, " ", err)
	})
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dirs["one"], "big")); err != nil {
		return fmt.Errorf("what the killed task wrote is gone: %w", err)
	}
	if err := runs(ctx, f, map[string]string{"five": "sleep 1000"}); err != nil {
		return err
	}
	dir, err := sandbox(c, "five")
	if err != nil {
		return err
	}
	if err := hasProject(dir, projects["one"]); err != nil {
		return fmt.Errorf("after the end of the killed task: %w", err)
	}
	return f.Teardown(ctx)
}

// diskStatistics demands that the agent tells of each container what it uses and may use.
func diskStatistics(ctx context.Context, c *cluster.Cluster) error {
	a := operator.NewAgent(c.Agent)
	return until(ctx, "the statistics tell the use of the disk and its limit", func() (bool, string) {
		resp, err := a.Call(ctx, &agentv1.Call{Type: agentv1.Call_GET_CONTAINERS.Enum()})
		if err != nil {
			return false, err.Error()
		}
		most := uint64(0)
		list := resp.GetGetContainers().GetContainers()
		for _, x := range list {
			s := x.GetResourceStatistics()
			if s.GetDiskLimitBytes() != 5<<20 || s.GetDiskUsedBytes() > 5<<20 {
				return false, fmt.Sprint(x)
			}
			most = max(most, s.GetDiskUsedBytes())
		}
		return len(list) > 0 && most > 3<<20, fmt.Sprint(list)
	})
}

// killModule kills the process of a module and waits until there is another.
func killModule(ctx context.Context, name string) error {
	old, err := modulePids(name)
	if err != nil {
		return err
	}
	if len(old) != 1 {
		return fmt.Errorf("processes of module %s: %v, want one", name, old)
	}
	if err := syscall.Kill(old[0], syscall.SIGKILL); err != nil {
		return err
	}
	return until(ctx, "module "+name+" runs again", func() (bool, string) {
		now, err := modulePids(name)
		return err == nil && len(now) == 1 && now[0] != old[0], fmt.Sprint(now, " ", err)
	})
}

// modulePids are the processes that serve an isolator.
func modulePids(name string) ([]int, error) {
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, path := range found {
		line, _ := os.ReadFile(path) // it may have ended
		words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if strings.HasSuffix(words[0], "/mosaic-modules") && slices.Contains(words, "isolator/"+name) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				return nil, err
			}
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func projectsEnd(ctx context.Context, c *cluster.Cluster) error {
	f, err := cluster.Subscribe(ctx, c.Master, "disks", "*")
	if err != nil {
		return err
	}
	defer f.Disconnect()
	got, err := launch(ctx, f, map[string]string{
		"modest": "dd if=/dev/zero of=big bs=1M count=3 && sleep 5",
		"greedy": "dd if=/dev/zero of=big bs=1M count=8; sleep 1000", // 10 MB more are there until it is seen
	}, ended...)
	if err != nil {
		return err
	}
	s := got["greedy"].Status
	if s.GetState() != mesosv1.TaskState_TASK_FAILED || s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_DISK ||
		cluster.Scalar(s.GetLimitation().GetResources(), "disk") != 5 {
		return fmt.Errorf("a task with 8 MB where 5 are allowed ended as %s, %s, %v: %s", s.GetState(), s.GetReason(), s.GetLimitation(), s.GetMessage())
	}
	fmt.Println(indent(strings.SplitN(s.GetMessage(), "\n", 2)[0]))
	if s := got["modest"].Status; s.GetState() != mesosv1.TaskState_TASK_FINISHED {
		return fmt.Errorf("a task with 3 MB where 5 are allowed ended as %s: %s", s.GetState(), s.GetMessage())
	}
	return nil
}

func projectsRefused(ctx context.Context, c *cluster.Cluster) error {
	f, err := cluster.Subscribe(ctx, c.Master, "disks", "*")
	if err != nil {
		return err
	}
	defer f.Disconnect()
	got, err := launch(ctx, f, map[string]string{"one": "true"}, append([]mesosv1.TaskState{mesosv1.TaskState_TASK_RUNNING}, ended...)...)
	if err != nil {
		return err
	}
	s := got["one"].Status
	if s.GetState() != mesosv1.TaskState_TASK_FAILED || !strings.Contains(s.GetMessage(), "isolator(disk)") || !strings.Contains(s.GetMessage(), "prjquota") {
		return fmt.Errorf("the task: %s: %s", s.GetState(), s.GetMessage())
	}
	fmt.Println(indent(strings.SplitN(s.GetMessage(), "\n", 2)[0]))
	return nil
}
