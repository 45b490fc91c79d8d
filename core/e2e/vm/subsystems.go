package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// disk is the guest's, on which sandboxes lie.
const disk = "/dev/vda"

const (
	coresComposition = `
isolator "cgroups" {
  config {
    exclusive_cores = "1"
  }
}
`
	countsComposition = `
isolator "cgroups" {
  config {
    hugetlb_limits = { "2MB" = "4MiB" }
    perf_events    = ["task-clock", "page-faults"]
    perf_interval  = "500ms"
    perf_duration  = "500ms"
    io {
      device           = "` + disk + `"
      write_per_second = "1MiB"
    }
  }
}
`
	devicesComposition = `
isolator "cgroups" {
  config {
    restrict_devices = true
    allowed_devices  = ["/dev/kmsg:r"]
  }
}
isolator "namespaces" {}
`
)

// ownCore needs a second core for the rest.
const ownCore = "a task that asks for a core of its own has it alone"

// subsystemChecks are those of further controllers, which version 2 does in ways of its own.
func subsystemChecks(src string, skipped *skips) []check {
	var checks []check
	for _, c := range []struct {
		name, composition string
		run               func(ctx context.Context, c *cluster.Cluster) error
	}{
		{ownCore, coresComposition, hasItsCoreAlone},
		{"huge pages and writing have limits, and events and blocks are counted", countsComposition, pagesAndBlocks},
		{"a task opens no device that is not listed", devicesComposition, devicesListed},
	} {
		if c.name == ownCore && runtime.NumCPU() < 2 {
			*skipped = append(*skipped, c.name+": this machine has one core only")
			continue
		}
		o := cluster.Options{Bin: filepath.Join(src, "bin"), Composition: c.composition, Dev: true}
		checks = append(checks, check{c.name, func(ctx context.Context) error { return withCluster(ctx, o, c.run) }})
	}
	return checks
}

// cores is a line that tells again and again on which cores its task may run.
const cores = `while :; do echo cores=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status); sleep 0.2; done`

func hasItsCoreAlone(ctx context.Context, c *cluster.Cluster) error {
	f, err := cluster.Subscribe(ctx, c.Master, "cores", "*")
	if err != nil {
		return err
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 1.2, 64)
	if err != nil {
		return err
	}
	shared, alone := cluster.Task(o, "shared", 0.2, 32, cluster.Shell(cores)), cluster.Task(o, "alone", 1, 32, cluster.Shell(cores))
	alone.Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: proto.String("mosaic.cpus"), Value: proto.String("exclusive")}}}
	if err := f.Launch(ctx, o, shared, alone); err != nil {
		return err
	}
	running, err := f.State(ctx, []string{"shared", "alone"}, append([]mesosv1.TaskState{mesosv1.TaskState_TASK_RUNNING}, ended...)...)
	if err != nil {
		return err
	}
	for name, want := range map[string]string{"shared": "0", "alone": "1"} {
		if s := running[name].Status; s.GetState() != mesosv1.TaskState_TASK_RUNNING {
			return fmt.Errorf("task %s: %s: %s", name, s.GetState(), s.GetMessage())
		}
		err := until(ctx, "task "+name+" runs on core "+want, func() (bool, string) {
			out, _ := output(c, name)
			return strings.HasSuffix(out, "cores="+want+"\n"), out
		})
		if err != nil {
			return err
		}
	}
	return f.Teardown(ctx)
}

// output is what a task has written to its standard output.
func output(c *cluster.Cluster, task string) (string, error) {
	dir, err := sandbox(c, task)
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(filepath.Join(dir, "stdout"))
	return string(data), err
}

func pagesAndBlocks(ctx context.Context, c *cluster.Cluster) error {
	f, err := cluster.Subscribe(ctx, c.Master, "writers", "*")
	if err != nil {
		return err
	}
	defer f.Disconnect()
	line := show("hugetlb.2MB.max", "io.max") + `; u() { cut -d. -f1 /proc/uptime; }; w=$(u); ` +
		`dd if=/dev/zero of=big bs=256k count=16 oflag=direct 2>/dev/null; echo took=$(($(u)-w)); while :; do :; done`
	if err := runs(ctx, f, map[string]string{"writer": line}); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(disk, &st); err != nil {
		return err
	}
	device := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	var out string
	err = until(ctx, "the task has written", func() (bool, string) {
		var err error
		out, err = output(c, "writer")
		return strings.Contains(out, "took="), fmt.Sprint(out, err)
	})
	if err != nil {
		return err
	}
	fmt.Println(indent(strings.TrimSpace(out)))
	if err := expect(out, map[string]string{"hugetlb.2MB.max": strconv.Itoa(4 << 20), "io.max": device + " rbps=max wbps=1048576 riops=max wiops=max"}); err != nil {
		return err
	}
	_, took, _ := strings.Cut(out, "took=")
	if s, err := strconv.Atoi(strings.TrimSpace(took)); err != nil || s < 2 {
		return fmt.Errorf("writing 4 MB at 1 MB in a second took %q s", took)
	}
	a := operator.NewAgent(c.Agent)
	err = until(ctx, "the statistics tell what was written and what was counted", func() (bool, string) {
		resp, err := a.Call(ctx, &agentv1.Call{Type: agentv1.Call_GET_CONTAINERS.Enum()})
		list := resp.GetGetContainers().GetContainers()
		if err != nil || len(list) != 1 {
			return false, fmt.Sprint(err, list)
		}
		s := list[0].GetResourceStatistics()
		written := uint64(0)
		for _, d := range s.GetBlkioStatistics().GetThrottling() {
			for _, v := range d.GetIoServiceBytes() {
				if v.GetOp() == mesosv1.CgroupInfo_Blkio_WRITE && fmt.Sprintf("%d:%d", d.GetDevice().GetMajorNumber(), d.GetDevice().GetMinorNumber()) == device {
					written += v.GetValue()
				}
			}
		}
		return written >= 4<<20 && s.GetPerf().GetTaskClock() > 0 && s.GetPerf().GetDuration() > 0, fmt.Sprint(s)
	})
	if err != nil {
		return err
	}
	return f.Teardown(ctx)
}

func devicesListed(ctx context.Context, c *cluster.Cluster) error {
	image, err := os.MkdirTemp("", "image")
	if err != nil {
		return err
	}
	defer os.RemoveAll(image)
	bin := filepath.Join(image, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(filepath.Join(bin, "busybox"), program, 0o755), os.Symlink("busybox", filepath.Join(bin, "sh"))); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(disk, &st); err != nil {
		return err
	}
	// The nodes are there in both; whoever may make them may not open them.
	for _, n := range []struct {
		name string
		mode uint32
		dev  int
	}{{"kmsg", unix.S_IFCHR, int(unix.Mkdev(1, 11))}, {"mem", unix.S_IFCHR, int(unix.Mkdev(1, 1))}, {"disk", unix.S_IFBLK, int(st.Rdev)}} {
		if err := unix.Mknod(filepath.Join(image, n.name), n.mode|0o666, n.dev); err != nil {
			return err
		}
	}
	line := `for f in /dev/null /dev/urandom /kmsg /mem /disk; do if (exec 3<$f) 2>/why; then echo $f=open; else echo "$f=$(busybox sed 's/.*: //' /why)"; fi; done; ` +
		`if (exec 3>/kmsg) 2>/why; then echo written=open; else echo "written=$(busybox sed 's/.*: //' /why)"; fi`
	r, err := mosaic(ctx, c, 0, "run", "--image", image, "--cpus", "0.5", "--mem", "64", "--", "/bin/sh", "-c", line)
	if err != nil {
		return err
	}
	fmt.Println(indent(strings.TrimSpace(r.Stdout)))
	err = expect(r.Stdout, map[string]string{
		"/dev/null": "open", "/dev/urandom": "open", "/kmsg": "open", "/mem": "Operation not permitted", "/disk": "Operation not permitted",
		"written": "Operation not permitted",
	})
	if err != nil {
		return err
	}
	// A task without an image is held to the rules as well.
	line = "for f in /dev/null " + disk + `; do if (exec 3<$f) 2>why; then echo $f=open; else echo "$f=$(sed 's/.*: //' why)"; fi; done`
	if r, err = mosaic(ctx, c, 0, "run", "--cpus", "0.5", "--mem", "64", "--shell", "--", line); err != nil {
		return err
	}
	return expect(r.Stdout, map[string]string{"/dev/null": "open", disk: "Operation not permitted"})
}
