package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// startRegistry serves the image of core/e2e/registry with so many MiB of ballast, and returns its name.
func (b *bench) startRegistry(ctx context.Context, ballast int) (string, error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return "", fmt.Errorf("an image is made of a static busybox: %w", err)
	}
	program := filepath.Join(b.dir, "registry")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "./core/e2e/registry").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the registry: %w\n%s", err, out)
	}
	cmd := exec.CommandContext(ctx, program, "-busybox", busybox, "-ballast", strconv.Itoa(ballast))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	name, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("start the registry: %w", err)
	}
	return strings.TrimSpace(name), nil
}

// images measures containers from an image of a registry: a shell that exits from the image that is there on the
// machine's network, on a bridge and with a published port, many at once, and many that run.
func (b *bench) images() error {
	if !b.report.wants("image") {
		return nil
	}
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel() // ends the registries
	small, err := b.startRegistry(ctx, 0)
	if err != nil {
		return err
	}
	return b.with(cluster.Options{}, func(c *cluster.Cluster) error {
		f, err := cluster.Subscribe(ctx, c.Master, "images", "*")
		if err != nil {
			return err
		}
		defer f.Disconnect()
		// The entrypoint of the image is not what is measured.
		command := cluster.Exec("/bin/sh", "-c", "exit 0")
		bridge := "mosaic"
		published := &mesosv1.NetworkInfo{Name: &bridge, PortMappings: []*mesosv1.NetworkInfo_PortMapping{{HostPort: new(uint32(31999)), ContainerPort: new(uint32(80))}}}
		for _, k := range []struct {
			name string
			info *mesosv1.ContainerInfo
			goal float64
		}{
			{"host-network", imageInfo(small, nil), 50}, {"bridge", imageInfo(small, &mesosv1.NetworkInfo{Name: &bridge}), 80},
			{"published-port", imageInfo(small, published), 150},
		} {
			if err := b.oneByOne(c, f, k.name, command, k.info, k.goal); err != nil {
				return err
			}
		}
		for _, n := range []int{200, 1000} {
			name := fmt.Sprintf("image/%d-true", n)
			if !b.report.wants(name) {
				continue
			}
			before, counts := b.account.used(c.CgroupRoot())
			d, err := b.crowd(f, n, command, imageInfo(small, nil))
			if err != nil {
				return err
			}
			goal := 0.0
			if n == 1000 {
				goal = 65 // 40 s to launch and 25 s to destroy
			}
			b.report.add(row{name, d.Seconds(), "s", 0, goal})
			if err := emptied(ctx, c); err != nil {
				return err
			}
			if after, _ := b.account.used(c.CgroupRoot()); counts {
				b.report.add(row{name + "-cpu-each", ms(after-before) / float64(n), "ms", 0, 0})
			}
		}
		return b.running(ctx, c, f, imageInfo(small, nil))
	})
}

// imageInfo asks for a container of an image.
func imageInfo(image string, network *mesosv1.NetworkInfo) *mesosv1.ContainerInfo {
	info := &mesosv1.ContainerInfo{
		Type: mesosv1.ContainerInfo_MESOS.Enum(),
		Mesos: &mesosv1.ContainerInfo_MesosInfo{Image: &mesosv1.Image{
			Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: &image},
		}},
	}
	if network != nil {
		info.NetworkInfos = []*mesosv1.NetworkInfo{network}
	}
	return info
}

// oneByOne measures the start to the end of one container after the other, and the processor time of each until nothing
// is left of it.
func (b *bench) oneByOne(c *cluster.Cluster, f *cluster.Framework, name string, command *mesosv1.CommandInfo, info *mesosv1.ContainerInfo, goal float64) error {
	row50 := "image/true-" + name + "-p50"
	if !b.report.wants(row50) {
		return nil
	}
	const warm, rounds = 3, 20 // the first pulls
	var times []float64
	var used time.Duration
	for i := range warm + rounds {
		if i == warm {
			if err := emptied(b.ctx, c); err != nil {
				return err
			}
			used, _ = b.account.used(c.CgroupRoot())
		}
		t := time.Now()
		if _, _, err := b.one(f, fmt.Sprintf("%s-%d", name, i), command, info); err != nil {
			return err
		}
		if i >= warm {
			times = append(times, ms(time.Since(t)))
		}
	}
	b.report.add(row{row50, quantile(times, 0.5), "ms", 0, goal})
	if err := emptied(b.ctx, c); err != nil {
		return err
	}
	if now, ok := b.account.used(c.CgroupRoot()); ok {
		b.report.add(row{"image/true-" + name + "-cpu-each", ms(now-used) / rounds, "ms", 0, 0})
	}
	return nil
}

// emptied waits until no container's root filesystem is mounted, which is among the last things that go.
func emptied(ctx context.Context, c *cluster.Cluster) error {
	for {
		table, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return err
		}
		if !strings.Contains(string(table), c.Dir+"/") {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for root filesystems to go: %w", ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// running measures 1,000 containers that run at the same time: their launch, their memory, and their end until nothing is
// left of them.
func (b *bench) running(ctx context.Context, c *cluster.Cluster, f *cluster.Framework, info *mesosv1.ContainerInfo) error {
	if !b.report.wants("image/1000-launched") && !b.report.wants("image/1000-destroyed") && !b.report.wants("image/memory-per-container") {
		return nil
	}
	const n = 1000
	before, err := available()
	if err != nil {
		return err
	}
	used, counts := b.account.used(c.CgroupRoot())
	o, tasks, ids, err := b.tasks(f, "running", n, cluster.Exec("/bin/sleep", "1000"), info)
	if err != nil {
		return err
	}
	t := time.Now()
	if err := f.Launch(ctx, o, tasks...); err != nil {
		return err
	}
	if err := reached(ctx, f, ids, mesosv1.TaskState_TASK_RUNNING); err != nil {
		return err
	}
	b.report.add(row{"image/1000-launched", time.Since(t).Seconds(), "s", 0, 40})
	now, _ := b.account.used(c.CgroupRoot())
	if counts {
		b.report.add(row{"image/1000-launched-cpu-each", ms(now-used) / n, "ms", 0, 0})
	}
	time.Sleep(5 * time.Second) // what is freed late
	after, err := available()
	if err != nil {
		return err
	}
	b.report.add(row{"image/memory-per-container", (before - after) / n, "MiB", 0, 0})
	b.report.add(row{"image/helpers-per-container", float64(processesBelow(c.CgroupRoot()))/n - 1, "x", 0, 1.01}) // the spare ones are the hundredth

	used, _ = b.account.used(c.CgroupRoot())
	t = time.Now()
	kills, step := errgroup.WithContext(ctx)
	kills.SetLimit(16)
	for _, id := range ids {
		kills.Go(func() error { return f.Client().Kill(step, &mesosv1.TaskID{Value: &id}, o.GetAgentId()) })
	}
	if err := kills.Wait(); err != nil {
		return err
	}
	if err := reached(ctx, f, ids, mesosv1.TaskState_TASK_KILLED); err != nil {
		return err
	}
	b.report.add(row{"image/1000-killed", time.Since(t).Seconds(), "s", 0, 25})
	if err := emptied(ctx, c); err != nil {
		return err
	}
	b.report.add(row{"image/1000-destroyed", time.Since(t).Seconds(), "s", 0, 25})
	if now, _ := b.account.used(c.CgroupRoot()); counts {
		b.report.add(row{"image/1000-destroyed-cpu-each", ms(now-used) / n, "ms", 0, 0})
	}
	return nil
}

// reached waits until all tasks had an update of a state, and fails if one ended in another.
func reached(ctx context.Context, f *cluster.Framework, ids []string, state mesosv1.TaskState) error {
	states, err := f.State(ctx, ids, append([]mesosv1.TaskState{state}, ended...)...)
	if err != nil {
		return err
	}
	for id, u := range states {
		if s := u.Status; s.GetState() != state {
			return fmt.Errorf("task %s: got %s, want %s: %s", id, s.GetState(), state, s.GetMessage())
		}
	}
	return nil
}

// crowd launches n tasks at once and waits until the last has finished.
func (b *bench) crowd(f *cluster.Framework, n int, command *mesosv1.CommandInfo, info *mesosv1.ContainerInfo) (time.Duration, error) {
	o, tasks, ids, err := b.tasks(f, fmt.Sprintf("crowd-%d", n), n, command, info)
	if err != nil {
		return 0, err
	}
	t := time.Now()
	if err := f.Launch(b.ctx, o, tasks...); err != nil {
		return 0, err
	}
	if err := reached(b.ctx, f, ids, mesosv1.TaskState_TASK_FINISHED); err != nil {
		return 0, err
	}
	return time.Since(t), nil
}

// tasks makes n tasks for one offer.
func (b *bench) tasks(f *cluster.Framework, name string, n int, command *mesosv1.CommandInfo, info *mesosv1.ContainerInfo) (*mesosv1.Offer, []*mesosv1.TaskInfo, []string, error) {
	o, err := f.Offer(b.ctx, float64(n), 32*float64(n))
	if err != nil {
		return nil, nil, nil, err
	}
	var tasks []*mesosv1.TaskInfo
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprintf("%s-%d", name, i))
		task := cluster.Task(o, ids[i], 0.1, 32, command)
		task.Container = info
		tasks = append(tasks, task)
	}
	return o, tasks, ids, nil
}
