package main

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

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

// images measures containers from an image of a registry: the pull, /bin/true from the image that is there on the machine's
// network, on a bridge and with a published port, and many at once.
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
	big, err := b.startRegistry(ctx, 90)
	if err != nil {
		return err
	}
	return b.with(cluster.Options{}, func(c *cluster.Cluster) error {
		t := time.Now()
		if r, err := c.Mosaic(ctx, "image", "pull", big); err != nil || r.Code != 0 {
			return fmt.Errorf("pull %s: %w: %s", big, err, r.Stderr)
		}
		b.report.add(row{"image/pull-and-unpack-90MiB", time.Since(t).Seconds(), "s", 0, 0})
		f, err := cluster.Subscribe(ctx, c.Master, "images", "*")
		if err != nil {
			return err
		}
		defer f.Disconnect()
		from := func(network *mesosv1.NetworkInfo) *mesosv1.ContainerInfo {
			info := &mesosv1.ContainerInfo{
				Type: mesosv1.ContainerInfo_MESOS.Enum(),
				Mesos: &mesosv1.ContainerInfo_MesosInfo{Image: &mesosv1.Image{
					Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: &small},
				}},
			}
			if network != nil {
				info.NetworkInfos = []*mesosv1.NetworkInfo{network}
			}
			return info
		}
		// The entrypoint of the image is not what is measured.
		command := cluster.Exec("/bin/sh", "-c", "exit 0")
		bridge := "mosaic"
		published := &mesosv1.NetworkInfo{Name: &bridge, PortMappings: []*mesosv1.NetworkInfo_PortMapping{{HostPort: new(uint32(31999)), ContainerPort: new(uint32(80))}}}
		for _, k := range []struct {
			name string
			info *mesosv1.ContainerInfo
			goal float64
		}{
			{"host-network", from(nil), 50}, {"bridge", from(&mesosv1.NetworkInfo{Name: &bridge}), 80}, {"published-port", from(published), 150},
		} {
			var times []float64
			for i := range 12 {
				t := time.Now()
				if _, _, err := b.one(f, fmt.Sprintf("%s-%d", k.name, i), command, k.info); err != nil {
					return err
				}
				if i >= 2 { // the first pulls
					times = append(times, ms(time.Since(t)))
				}
			}
			b.report.add(row{"image/true-" + k.name + "-p50", quantile(times, 0.5), "ms", 0, k.goal})
		}
		for _, n := range []int{200, 1000} {
			d, err := b.crowd(f, n, command, from(nil))
			if err != nil {
				return err
			}
			goal := 0.0
			if n == 1000 {
				goal = 65 // 40 s to launch and 25 s to destroy
			}
			b.report.add(row{fmt.Sprintf("image/%d-true", n), d.Seconds(), "s", 0, goal})
		}
		return nil
	})
}

// crowd launches n tasks at once and waits until the last has finished.
func (b *bench) crowd(f *cluster.Framework, n int, command *mesosv1.CommandInfo, info *mesosv1.ContainerInfo) (time.Duration, error) {
	o, err := f.Offer(b.ctx, float64(n), 32*float64(n))
	if err != nil {
		return 0, err
	}
	var tasks []*mesosv1.TaskInfo
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprintf("crowd-%d-%d", n, i))
		task := cluster.Task(o, ids[i], 0.1, 32, command)
		task.Container = info
		tasks = append(tasks, task)
	}
	t := time.Now()
	if err := f.Launch(b.ctx, o, tasks...); err != nil {
		return 0, err
	}
	states, err := f.State(b.ctx, ids, ended...)
	if err != nil {
		return 0, err
	}
	for id, u := range states {
		if s := u.Status; s.GetState() != mesosv1.TaskState_TASK_FINISHED {
			return 0, fmt.Errorf("task %s ended as %s: %s", id, s.GetState(), s.GetMessage())
		}
	}
	return time.Since(t), nil
}
