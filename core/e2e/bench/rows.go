package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// bench holds what the rows share.
type bench struct {
	ctx     context.Context
	dir     string
	bin     string
	floor   floor
	report  *report
	account *account
	// composition is the agent's, if not the default.
	composition string
	n           int // clusters started so far
}

// bigResources are what no row runs out of.
const bigResources = "cpus:2000;mem:900000;disk:900000;ports:[31000-32000]"

// with runs step on a fresh cluster.
func (b *bench) with(o cluster.Options, step func(*cluster.Cluster) error) (err error) {
	b.n++
	o.Bin, o.Dir, o.Name = b.bin, filepath.Join(b.dir, strconv.Itoa(b.n)), fmt.Sprintf("bench-%d-%d", os.Getpid(), b.n)
	o.Composition = b.composition
	if o.Resources == "" {
		o.Resources = bigResources
	}
	c, err := cluster.New(o)
	if err != nil {
		return err
	}
	defer func() {
		if stop := c.Stop(); err == nil {
			err = stop
		}
	}()
	if err := c.Start(b.ctx); err != nil {
		return err
	}
	return step(c)
}

// idle measures master and agent ten seconds after their start.
func (b *bench) idle() error {
	if !b.report.wants("idle") {
		return nil
	}
	return b.with(cluster.Options{}, func(c *cluster.Cluster) error {
		time.Sleep(10 * time.Second)
		for _, p := range []struct {
			name string
			pid  int
		}{{"idle/master-rss", c.MasterPid()}, {"idle/agent-rss", c.AgentPid()}} {
			m, err := rssMiB(p.pid)
			if err != nil {
				return err
			}
			b.report.add(row{name: p.name, value: m, unit: "MiB", goal: 40})
		}
		return nil
	})
}

func rssMiB(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("no VmRSS for pid %d", pid)
}

var ended = []mesosv1.TaskState{mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_ERROR,
	mesosv1.TaskState_TASK_DROPPED, mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_KILLED}

// one launches a task and measures ACCEPT to RUNNING in milliseconds; the terminal update comes with it.
func (b *bench) one(f *cluster.Framework, id string, command *mesosv1.CommandInfo, info *mesosv1.ContainerInfo) (float64, cluster.Update, error) {
	o, err := f.Offer(b.ctx, 1, 64)
	if err != nil {
		return 0, cluster.Update{}, err
	}
	task := cluster.Task(o, id, 0.1, 32, command)
	task.Container = info
	for _, n := range info.GetNetworkInfos() {
		for _, m := range n.GetPortMappings() { // who publishes a port takes it from the offer
			port := resources.New(o.GetResources()...).Ranges("ports").Value().GetRange()[0].GetBegin()
			m.HostPort = new(uint32(port))
			task.Resources = append(task.Resources, &mesosv1.Resource{
				Name: new("ports"), Type: mesosv1.Value_RANGES.Enum(), AllocationInfo: o.GetAllocationInfo(),
				Ranges: &mesosv1.Value_Ranges{Range: []*mesosv1.Value_Range{{Begin: &port, End: &port}}},
			})
		}
	}
	t := time.Now()
	if err := f.Launch(b.ctx, o, task); err != nil {
		return 0, cluster.Update{}, err
	}
	end, err := f.State(b.ctx, []string{id}, ended...)
	if err != nil {
		return 0, cluster.Update{}, err
	}
	if s := end[id].Status; s.GetState() != mesosv1.TaskState_TASK_FINISHED {
		return 0, cluster.Update{}, fmt.Errorf("task %s ended as %s: %s", id, s.GetState(), s.GetMessage())
	}
	running, err := f.State(b.ctx, []string{id}, mesosv1.TaskState_TASK_RUNNING)
	if err != nil {
		return 0, cluster.Update{}, err
	}
	return ms(running[id].At.Sub(t)), end[id], nil
}

// launches measures one task at a time, by both launchers, and how soon an end is seen.
func (b *bench) launches() error {
	if !b.report.wants("launch") && !b.report.wants("exit") {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return b.with(cluster.Options{}, func(c *cluster.Cluster) error {
		f, err := cluster.Subscribe(b.ctx, c.Master, "bench", "*")
		if err != nil {
			return err
		}
		defer f.Disconnect()
		var process, exit []float64
		for i := range 105 {
			id := fmt.Sprintf("true-%d", i)
			d, _, err := b.one(f, id, cluster.Exec("/bin/true"), nil)
			if err != nil {
				return err
			}
			if i >= 5 { // the first few warm caches
				process = append(process, d)
			}
		}
		for i := range 30 {
			id := fmt.Sprintf("stamp-%d", i)
			_, end, err := b.one(f, id, cluster.Exec(self, "stamp"), nil)
			if err != nil {
				return err
			}
			r, err := c.Mosaic(b.ctx, "task", "logs", id)
			if err != nil {
				return err
			}
			at, err := strconv.ParseInt(strings.TrimSpace(r.Stdout), 10, 64)
			if err != nil {
				return fmt.Errorf("task's output %q: %w", r.Stdout, err)
			}
			exit = append(exit, ms(end.At.Sub(time.Unix(0, at))))
		}
		b.report.add(row{"launch/process-p50", quantile(process, 0.5), "ms", b.floor.launch(), 8})
		b.report.add(row{"launch/process-p99", quantile(process, 0.99), "ms", b.floor.launch(), 30})
		b.report.add(row{"exit/finished-p50", quantile(exit, 0.5), "ms", 2*b.floor.grpc + b.floor.sync, 3})
		return b.oci(f)
	})
}

func (b *bench) oci(f *cluster.Framework) error {
	root := filepath.Join(b.dir, "rootfs")
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		return err
	}
	build := exec.CommandContext(b.ctx, "go", "build", "-o", filepath.Join(root, "bin", "inside"), "./core/e2e/inside")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the image's program: %w\n%s", err, out)
	}
	info := &mesosv1.ContainerInfo{
		Type: mesosv1.ContainerInfo_MESOS.Enum(),
		Mesos: &mesosv1.ContainerInfo_MesosInfo{Image: &mesosv1.Image{
			Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: &root},
		}},
	}
	var times []float64
	for i := range 33 {
		d, _, err := b.one(f, fmt.Sprintf("oci-%d", i), cluster.Exec("/bin/inside"), info)
		if err != nil {
			return err
		}
		if i >= 3 {
			times = append(times, d)
		}
	}
	b.report.add(row{"launch/oci-p50", quantile(times, 0.5), "ms", b.floor.launch(), 45})
	return nil
}

// many measures 200 tasks that end at once.
func (b *bench) many() error {
	if !b.report.wants("many") {
		return nil
	}
	return b.with(cluster.Options{}, func(c *cluster.Cluster) error {
		f, err := cluster.Subscribe(b.ctx, c.Master, "many", "*")
		if err != nil {
			return err
		}
		defer f.Disconnect()
		d, _, err := b.batch(f, 200, cluster.Exec("/bin/true"), mesosv1.TaskState_TASK_FINISHED)
		if err != nil {
			return err
		}
		b.report.add(row{"many/200-true", d.Seconds(), "s", 200 * b.floor.launch() / 1000 / 2, 2})
		return nil
	})
}

// batch launches n tasks in one ACCEPT and measures until the last and the first have reached state.
func (b *bench) batch(f *cluster.Framework, n int, command *mesosv1.CommandInfo, state mesosv1.TaskState) (last, first time.Duration, err error) {
	o, err := f.Offer(b.ctx, float64(n), 32*float64(n))
	if err != nil {
		return 0, 0, err
	}
	var tasks []*mesosv1.TaskInfo
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprintf("%s-%d", command.GetValue()[strings.LastIndex(command.GetValue(), "/")+1:], i))
		tasks = append(tasks, cluster.Task(o, ids[i], 0.1, 32, command))
	}
	t := time.Now()
	if err := f.Launch(b.ctx, o, tasks...); err != nil {
		return 0, 0, err
	}
	reached, err := f.State(b.ctx, ids, state)
	if err != nil {
		return 0, 0, err
	}
	first = time.Hour
	for _, u := range reached {
		last = max(last, u.At.Sub(t))
		first = min(first, u.At.Sub(t))
	}
	return last, first, nil
}

// memory measures 1,000 running tasks: time, memory, helpers, and the agent's restart.
func (b *bench) memory() error {
	if !b.report.wants("1000") {
		return nil
	}
	const n = 1000
	return b.with(cluster.Options{}, func(c *cluster.Cluster) error {
		f, err := cluster.Subscribe(b.ctx, c.Master, "thousand", "*")
		if err != nil {
			return err
		}
		defer f.Disconnect()
		baseline, err := sleepCost(100)
		if err != nil {
			return err
		}
		time.Sleep(2 * time.Second)
		before, err := available()
		if err != nil {
			return err
		}
		procs := processes()
		last, first, err := b.batch(f, n, cluster.Exec("/bin/sleep", "1000"), mesosv1.TaskState_TASK_RUNNING)
		if err != nil {
			return err
		}
		b.report.add(row{"1000-sleep/all-running", last.Seconds(), "s", n * b.floor.launch() / 1000 / 2, 10})
		b.report.add(row{"1000-sleep/first-running", ms(first), "ms", b.floor.launch(), 50})
		time.Sleep(5 * time.Second)
		after, err := available()
		if err != nil {
			return err
		}
		agent, err := rssMiB(c.AgentPid())
		if err != nil {
			return err
		}
		// What the sleeps themselves cost, and the agent's growth, are not the helpers'.
		b.report.add(row{"1000-sleep/memory-per-task", (before-after)/n - baseline, "MiB", 0, 1.5})
		b.report.add(row{"1000-sleep/helpers-per-task", float64(processes()-procs)/n - 1, "x", 0, 1.01})
		b.report.add(row{"1000-sleep/agent-rss", agent, "MiB", 0, 100})

		if err := c.KillAgent(); err != nil {
			return err
		}
		t := time.Now()
		if err := c.StartAgent(); err != nil {
			return err
		}
		if err := c.WaitAgentRecovered(b.ctx); err != nil {
			return err
		}
		b.report.add(row{"1000-sleep/agent-restart", time.Since(t).Seconds(), "s", 0, 2})
		return f.Teardown(b.ctx)
	})
}

// sleepCost is what one bare `sleep` costs, in MiB of available memory.
func sleepCost(n int) (float64, error) {
	before, err := available()
	if err != nil {
		return 0, err
	}
	var cmds []*exec.Cmd
	for range n {
		c := exec.Command("/bin/sleep", "1000")
		if err := c.Start(); err != nil {
			return 0, err
		}
		cmds = append(cmds, c)
	}
	time.Sleep(time.Second)
	after, err := available()
	for _, c := range cmds {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	return max(0, (before-after)/float64(n)), err
}

func available() (float64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemAvailable:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no MemAvailable")
}

func processes() int {
	list, _ := filepath.Glob("/proc/[0-9]*")
	return len(list)
}

// moduleRestart kills a module and measures until a launch that needs it has gone through.
func (b *bench) moduleRestart() error {
	if !b.report.wants("module/restart") {
		return nil
	}
	return b.with(cluster.Options{}, func(c *cluster.Cluster) error {
		var times []float64
		for range 10 {
			pid, _, err := b.module(c)
			if err != nil {
				return err
			}
			t := time.Now()
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				return err
			}
			for {
				now, state, err := b.module(c)
				if err != nil {
					return err
				}
				if now != pid && state == "up" {
					break
				}
			}
			times = append(times, time.Since(t).Seconds())
			time.Sleep(1500 * time.Millisecond)
		}
		b.report.add(row{"module/restart-p50", quantile(times, 0.5), "s", b.floor.forkExec / 1000, 0.2})
		return nil
	})
}

// module gives the pid and state of the cgroups isolator.
func (b *bench) module(c *cluster.Cluster) (int, string, error) {
	r, err := c.Mosaic(b.ctx, "module", "ls", "-o", "json")
	if err != nil {
		return 0, "", err
	}
	var list []struct {
		Name, State string
		Pid         int
	}
	if err := json.Unmarshal([]byte(r.Stdout), &list); err != nil {
		return 0, "", fmt.Errorf("module ls: %w: %s%s", err, r.Stdout, r.Stderr)
	}
	for _, m := range list {
		if m.Name == "cgroups" {
			return m.Pid, m.State, nil
		}
	}
	return 0, "", fmt.Errorf("no module cgroups in %s", r.Stdout)
}

var benchLine = regexp.MustCompile(`^Benchmark(\S+?)(-\d+)?\s+\d+\s+([\d.]+) ns/op`)

// moduleCall runs the module host's own benchmark and compares a module's call with a bare one.
func (b *bench) moduleCall() error {
	if !b.report.wants("module/call") {
		return nil
	}
	out, err := exec.CommandContext(b.ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkCall$", "-benchtime", "2s", "./core/modulehost").CombinedOutput()
	if err != nil {
		return fmt.Errorf("benchmark of the module host: %w\n%s", err, out)
	}
	ns := map[string]float64{}
	s := bufio.NewScanner(strings.NewReader(string(out)))
	for s.Scan() {
		if m := benchLine.FindStringSubmatch(s.Text()); m != nil {
			ns[m[1]], _ = strconv.ParseFloat(m[3], 64)
		}
	}
	host, bare := ns["Call/host"], ns["Call/bare"]
	if host == 0 || bare == 0 {
		return fmt.Errorf("benchmark of the module host printed no figures:\n%s", out)
	}
	b.report.add(row{"module/call-over-bare", host / bare, "x", 0, 1.2})
	return nil
}

// coldStart measures `mosaic dev` on empty disks until a framework has its first offer.
func (b *bench) coldStart() error {
	if !b.report.wants("cold-start") {
		return nil
	}
	var times []float64
	for range 5 {
		t := time.Now()
		err := b.with(cluster.Options{Dev: true}, func(c *cluster.Cluster) error {
			f, err := cluster.Subscribe(b.ctx, c.Master, "first", "*")
			if err != nil {
				return err
			}
			defer f.Disconnect()
			if _, err := f.Offer(b.ctx, 1, 1); err != nil {
				return err
			}
			times = append(times, time.Since(t).Seconds())
			return nil
		})
		if err != nil {
			return err
		}
	}
	b.report.add(row{"cold-start/first-offer", quantile(times, 0.5), "s", 0, 1.5})
	return nil
}
