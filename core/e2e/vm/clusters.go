package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// composition limits everything the module can limit. Tasks see the guest's pids, so that checks can follow them.
const composition = `
isolator "cgroups" {
  config {
    cpu_hard_limit = true
    limit_swap     = true
    pids_limit     = 64
  }
}
isolator "rlimits" {}
`

// resources leave room for the daemons themselves in a small guest.
const resources = "cpus:2;mem:512;disk:256;ports:[31000-31100]"

func clusterChecks(src string) []check {
	var checks []check
	for _, c := range []struct {
		name string
		dev  bool
		run  func(ctx context.Context, c *cluster.Cluster) error
	}{
		{"a task's cgroup holds what it asked for", true, holdsWhatItAskedFor},
		{"a busy task gets no more than its half core", true, busyTaskIsThrottled},
		{"a task may use more where it says so", true, limitsBeyondRequests},
		{"a task over its memory is killed and told why", true, overItsMemory},
		{"a task that forks without end stays within its pids", true, forksWithoutEnd},
		{"a task's use is measured", true, useIsMeasured},
		{"a killed task leaves no process and no cgroup", true, killLeavesNothing},
		{"a task in its own root filesystem is limited too", true, ownRootFilesystem(filepath.Join(src, "rootfs"))},
		{"an agent that was killed finds its tasks again", false, agentFindsItsTasks},
	} {
		o := cluster.Options{Bin: filepath.Join(src, "bin"), Composition: composition, Dev: c.dev}
		checks = append(checks, check{c.name, func(ctx context.Context) error { return withCluster(ctx, o, c.run) }})
	}
	return checks
}

var clusters int

// withCluster gives run a fresh cluster, in o.Dir if that is set, and afterwards demands that no container's cgroup is left.
func withCluster(ctx context.Context, o cluster.Options, run func(ctx context.Context, c *cluster.Cluster) error) error {
	clusters++
	o.Name, o.Resources = fmt.Sprint("vm-", clusters), resources
	if o.Dir == "" {
		dir, err := os.MkdirTemp("", "vm")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		o.Dir = dir
	}
	c, err := cluster.New(o)
	if err != nil {
		return err
	}
	start, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := c.Start(start); err != nil {
		return errors.Join(fmt.Errorf("start a cluster: %w", err), c.Stop())
	}
	err = modulesUp(ctx, c)
	if err == nil {
		err = run(ctx, c)
	}
	if err == nil {
		err = until(ctx, "the tasks' cgroups are removed", func() (bool, string) {
			left := containers(c)
			return len(left) == 0, fmt.Sprint(left)
		})
	}
	logs := c.Logs()
	err = errors.Join(err, c.Stop())
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, logs)
	}
	return err
}

// modulesUp waits until all modules take calls. A launch waits for them too, but not as long as an emulated machine may take.
func modulesUp(ctx context.Context, c *cluster.Cluster) error {
	return until(ctx, "all modules are up", func() (bool, string) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Agent+"/metrics", nil)
		if err != nil {
			return false, err.Error()
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false, err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		up, down := 0, 0
		for line := range strings.Lines(string(body)) {
			if strings.HasPrefix(line, "mosaic_module_up{") {
				if strings.HasSuffix(line, " 1\n") {
					up++
				} else {
					down++
				}
			}
		}
		return err == nil && up > 0 && down == 0, fmt.Sprintf("%d are, %d are not; %v", up, down, err)
	})
}

// containers are the cgroups of containers that there are.
func containers(c *cluster.Cluster) []string {
	var list []string
	root := filepath.Join(hierarchy, c.CgroupRoot())
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		// What begins with a dot is the agent's own and no container's.
		if err == nil && d.IsDir() && path != root && !strings.HasPrefix(d.Name(), ".") {
			list = append(list, path)
		}
		return nil
	})
	return list
}

// until waits for what other processes bring about; the condition also says what there is instead.
func until(ctx context.Context, what string, ok func() (bool, string)) error {
	deadline := time.Now().Add(2 * time.Minute)
	for {
		done, got := ok()
		if done {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("it did not come about that %s: %s", what, got)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// mosaic runs the program, which must end with code.
func mosaic(ctx context.Context, c *cluster.Cluster, code int, args ...string) (cluster.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	r, err := c.Mosaic(ctx, args...)
	if err == nil && r.Code != code {
		err = fmt.Errorf("exit code %d, want %d\nstandard output: %s\nstandard error: %s", r.Code, code, r.Stdout, r.Stderr)
	}
	if err != nil {
		return r, fmt.Errorf("mosaic %s: %w", strings.Join(args, " "), err)
	}
	return r, nil
}

// show prints the files named, from the cgroup of the process that runs it, as NAME=TEXT.
func show(files ...string) string {
	return `d=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup); echo in=$d; for f in ` + strings.Join(files, " ") + `; do echo $f=$(cat $d/$f); done`
}

// expect compares lines NAME=TEXT with those wanted.
func expect(out string, want map[string]string) error {
	got := map[string]string{}
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			got[k] = v
		}
	}
	var errs []error
	for k, v := range want {
		if got[k] != v {
			errs = append(errs, fmt.Errorf("%s: got %q, want %q", k, got[k], v))
		}
	}
	if len(errs) > 0 {
		errs = append(errs, errors.New(out))
	}
	return errors.Join(errs...)
}

func holdsWhatItAskedFor(ctx context.Context, c *cluster.Cluster) error {
	r, err := mosaic(ctx, c, 0, "run", "--cpus", "0.5", "--mem", "64", "--shell", "--",
		show("cpu.weight", "cpu.max", "memory.max", "memory.low", "memory.swap.max", "pids.max"))
	if err != nil {
		return err
	}
	if !strings.Contains(r.Stdout, "in="+hierarchy+"/"+c.CgroupRoot()+"/") {
		return fmt.Errorf("the task is not in a cgroup below %s:\n%s", c.CgroupRoot(), r.Stdout)
	}
	// 512 shares of half a core are a weight of 59 by runc's conversion.
	return expect(r.Stdout, map[string]string{
		"cpu.weight": "59", "cpu.max": "50000 100000", "memory.max": "67108864", "memory.low": "67108864", "memory.swap.max": "0", "pids.max": "64",
	})
}

func limitsBeyondRequests(ctx context.Context, c *cluster.Cluster) error {
	r, err := mosaic(ctx, c, 0, "run", "--cpus", "0.5", "--mem", "64", "--max-cpus", "1.5", "--max-mem", "128", "--shell", "--",
		show("cpu.weight", "cpu.max", "memory.max", "memory.low")+`; echo score=$(cat /proc/self/oom_score_adj)`)
	if err != nil {
		return err
	}
	if strings.Contains(r.Stdout, "score=0\n") {
		return fmt.Errorf("a task that may use more memory than it asked for is not the first to die:\n%s", r.Stdout)
	}
	return expect(r.Stdout, map[string]string{"cpu.weight": "59", "cpu.max": "150000 100000", "memory.max": "134217728", "memory.low": "67108864"})
}

// busyTaskIsThrottled measures a loop by the cgroup's own account, over the time on the wall.
func busyTaskIsThrottled(ctx context.Context, c *cluster.Cluster) error {
	const usec = `u() { sed -n 's/^usage_usec //p' $d/cpu.stat; }; w() { cut -d. -f1 /proc/uptime; }; `
	r, err := mosaic(ctx, c, 0, "run", "--cpus", "0.5", "--mem", "64", "--shell", "--", `d=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup); `+usec+
		`u0=$(u); w0=$(w); while [ $(($(w)-w0)) -lt 8 ]; do i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; done; `+
		`echo used=$(($(u)-u0)); echo wall=$(($(w)-w0)); sed -n 's/^nr_throttled /throttled=/p' $d/cpu.stat`)
	if err != nil {
		return err
	}
	var used, wall, throttled float64
	for line := range strings.Lines(r.Stdout) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		n, _ := strconv.ParseFloat(v, 64)
		switch k {
		case "used":
			used = n / 1e6
		case "wall":
			wall = n
		case "throttled":
			throttled = n
		}
	}
	fmt.Printf("    %.2f s of processor in %.0f s, throttled in %.0f periods\n", used, wall, throttled)
	// The clock has whole seconds, so that the share may seem greater by a seventh.
	if wall < 8 || used == 0 || throttled == 0 || used/wall > 0.6 {
		return fmt.Errorf("a busy loop under half a core used %.2f of one, throttled %.0f times; want about half and often", used/wall, throttled)
	}
	return nil
}

func overItsMemory(ctx context.Context, c *cluster.Cluster) error {
	// As an operator sees it.
	r, err := mosaic(ctx, c, 137, "run", "-v", "--cpus", "0.5", "--mem", "48", "--", "tail", "/dev/zero")
	if err != nil {
		return err
	}
	if !strings.Contains(r.Stderr, "REASON_CONTAINER_LIMITATION_MEMORY") {
		return fmt.Errorf("mosaic run does not tell the reason:\n%s", r.Stderr)
	}
	// As a framework sees it. The child dies, and the shell would go on if the container were not ended.
	f, err := cluster.Subscribe(ctx, c.Master, "hog", "*")
	if err != nil {
		return err
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 0.5, 48)
	if err != nil {
		return err
	}
	if err := f.Launch(ctx, o, cluster.Task(o, "hog", 0.5, 48, cluster.Shell("tail /dev/zero; sleep 1000"))); err != nil {
		return err
	}
	got, err := f.State(ctx, []string{"hog"}, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_FINISHED)
	if err != nil {
		return err
	}
	s := got["hog"].Status
	fmt.Println(indent(strings.SplitN(s.GetMessage(), "\n", 2)[0]))
	if s.GetState() != mesosv1.TaskState_TASK_FAILED || s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_MEMORY {
		return fmt.Errorf("the hog ended as %s, %s: %s", s.GetState(), s.GetReason(), s.GetMessage())
	}
	if cluster.Scalar(s.GetLimitation().GetResources(), "mem") != 48 {
		return fmt.Errorf("the update does not name 48 MB as what was exceeded: %v", s.GetLimitation())
	}
	return nil
}

func forksWithoutEnd(ctx context.Context, c *cluster.Cluster) error {
	r, err := mosaic(ctx, c, 0, "run", "--cpus", "1", "--mem", "64", "--shell", "--",
		`d=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup); (i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done) 2>/dev/null; sed -n 's/^max /refused=/p' $d/pids.events; read n <$d/pids.current; echo now=$n`)
	if err != nil {
		return err
	}
	if strings.Contains(r.Stdout, "refused=0") || !strings.Contains(r.Stdout, "refused=") {
		return fmt.Errorf("200 processes under a limit of 64, and none was refused:\n%s\n%s", r.Stdout, r.Stderr)
	}
	return nil
}

// detached launches a task that stays, and returns its container's cgroup.
func detached(ctx context.Context, c *cluster.Cluster, name, line string) (string, error) {
	if _, err := mosaic(ctx, c, 0, "run", "--detach", "--name", name, "--cpus", "0.5", "--mem", "64", "--shell", "--", line); err != nil {
		return "", err
	}
	dirs := containers(c)
	if len(dirs) != 1 {
		return "", fmt.Errorf("one task runs, and the cgroups of containers are %v", dirs)
	}
	return dirs[0], nil
}

func useIsMeasured(ctx context.Context, c *cluster.Cluster) error {
	if _, err := detached(ctx, c, "user", "sleep 1000 & i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; wait"); err != nil {
		return err
	}
	a := operator.NewAgent(c.Agent)
	var last *mesosv1.ResourceStatistics
	err := until(ctx, "the statistics say what the task uses", func() (bool, string) {
		resp, err := a.Call(ctx, &agentv1.Call{Type: agentv1.Call_GET_CONTAINERS.Enum()})
		if err != nil {
			return false, err.Error()
		}
		list := resp.GetGetContainers().GetContainers()
		if len(list) != 1 {
			return false, fmt.Sprintf("%d containers", len(list))
		}
		last = list[0].GetResourceStatistics()
		ok := last.GetMemLimitBytes() == 64<<20 && last.GetMemTotalBytes() > 0 && last.GetMemAnonBytes() > 0 && last.GetProcesses() == 2 &&
			last.GetThreads() == 2 && last.GetCpusLimit() == 0.5 && last.GetCpusUserTimeSecs() > 0 && last.GetCpusNrPeriods() > 0
		return ok, fmt.Sprint(last)
	})
	if err != nil {
		return err
	}
	fmt.Println(indent(fmt.Sprint(last)))
	_, err = mosaic(ctx, c, 0, "task", "kill", "user")
	return err
}

func killLeavesNothing(ctx context.Context, c *cluster.Cluster) error {
	// Some leave the session, some ignore being asked.
	dir, err := detached(ctx, c, "stay", "trap '' TERM; setsid sleep 1000 & setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' & while :; do sleep 1; done")
	if err != nil {
		return err
	}
	var pids []string
	err = until(ctx, "all its processes run", func() (bool, string) {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		pids = strings.Fields(string(b))
		return len(pids) >= 4, fmt.Sprint(pids, err)
	})
	if err != nil {
		return err
	}
	if _, err := mosaic(ctx, c, 0, "task", "kill", "stay"); err != nil {
		return err
	}
	err = until(ctx, "the task is TASK_KILLED and its cgroup removed", func() (bool, string) {
		r, err := mosaic(ctx, c, 0, "task", "ls", "--all")
		_, gone := os.Stat(dir)
		return err == nil && strings.Contains(r.Stdout, "TASK_KILLED") && errors.Is(gone, fs.ErrNotExist), fmt.Sprint(r.Stdout, err, gone)
	})
	if err != nil {
		return err
	}
	for _, pid := range pids {
		// A zombie that the first process has not taken yet is dead.
		if b, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && !strings.Contains(string(b), ") Z") && !strings.Contains(string(b), ") X") {
			return fmt.Errorf("process %s of the killed task lives: %s", pid, b)
		}
	}
	return nil
}

func ownRootFilesystem(root string) func(ctx context.Context, c *cluster.Cluster) error {
	return func(ctx context.Context, c *cluster.Cluster) error {
		// A container in a cgroup namespace does not see where it is: it is looked at from outside while it runs.
		seen := make(chan string, 1)
		watch, stop := context.WithCancel(ctx)
		go func() {
			found := ""
			for watch.Err() == nil && found == "" {
				for _, dir := range containers(c) {
					limit, _ := os.ReadFile(filepath.Join(dir, "memory.max"))
					quota, _ := os.ReadFile(filepath.Join(dir, "cpu.max"))
					if strings.TrimSpace(string(limit)) == "67108864" && strings.TrimSpace(string(quota)) == "50000 100000" {
						found = dir
					}
				}
				time.Sleep(2 * time.Millisecond)
			}
			seen <- found
		}()
		r, err := mosaic(ctx, c, 0, "run", "--image", root, "--cpus", "0.5", "--mem", "64", "--", "/bin/inside", "/proc/self/cgroup")
		stop()
		where := <-seen
		if err != nil {
			return err
		}
		if !strings.Contains(r.Stdout, "root: bin") || strings.Contains(r.Stdout, "src") {
			return fmt.Errorf("the root filesystem is not the image's:\n%s", r.Stdout)
		}
		if where == "" {
			return fmt.Errorf("no cgroup with the limits asked for was seen while it ran:\n%s", r.Stdout)
		}
		return nil
	}
}

func agentFindsItsTasks(ctx context.Context, c *cluster.Cluster) error {
	f, err := cluster.Subscribe(ctx, c.Master, "lasting", "*")
	if err != nil {
		return err
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 1, 128)
	if err != nil {
		return err
	}
	done, err := os.MkdirTemp("", "vm")
	if err != nil {
		return err
	}
	defer os.RemoveAll(done)
	ended := cluster.Task(o, "ended", 0.5, 64, cluster.Shell("while ! [ -e "+done+"/now ]; do sleep 0.05; done; exit 7"))
	hog := cluster.Task(o, "hog", 0.5, 48, cluster.Shell("while ! [ -e "+done+"/eat ]; do sleep 0.05; done; tail /dev/zero; sleep 1000"))
	if err := f.Launch(ctx, o, ended, hog); err != nil {
		return err
	}
	if _, err := f.State(ctx, []string{"ended", "hog"}, mesosv1.TaskState_TASK_RUNNING); err != nil {
		return err
	}
	if err := c.KillAgent(); err != nil {
		return err
	}
	// One ends while nobody looks, the other runs out of memory afterwards.
	if err := os.WriteFile(filepath.Join(done, "now"), nil, 0o644); err != nil {
		return err
	}
	if err := c.StartAgent(); err != nil {
		return err
	}
	recovered, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := c.WaitAgentRecovered(recovered); err != nil {
		return err
	}
	got, err := f.State(ctx, []string{"ended"}, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_FINISHED)
	if err != nil {
		return err
	}
	if s := got["ended"].Status; s.GetState() != mesosv1.TaskState_TASK_FAILED || !strings.Contains(s.GetMessage(), "7") {
		return fmt.Errorf("the task that exited with 7 while the agent was away ended as %v", s)
	}
	if len(containers(c)) == 0 {
		return errors.New("the other task's cgroup is gone after the agent's restart")
	}
	if err := os.WriteFile(filepath.Join(done, "eat"), nil, 0o644); err != nil {
		return err
	}
	got, err = f.State(ctx, []string{"hog"}, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_FINISHED)
	if err != nil {
		return err
	}
	if s := got["hog"].Status; s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_MEMORY {
		return fmt.Errorf("the hog after the restart ended as %v", s)
	}
	return nil
}
