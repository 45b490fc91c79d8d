package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// floor is what the machine cannot do faster, in milliseconds (medians).
type floor struct {
	forkExec float64 // start /bin/true and wait for it
	cgroup   float64 // make, limit and remove a cpu and a memory cgroup
	grpc     float64 // unary call over a unix socket
	sync     float64 // append 512 bytes and fdatasync
}

func (f floor) rows() []row {
	return []row{
		{name: "floor/fork+exec", value: f.forkExec, unit: "ms"},
		{name: "floor/cgroup", value: f.cgroup, unit: "ms"},
		{name: "floor/grpc-unix", value: f.grpc, unit: "ms"},
		{name: "floor/fdatasync", value: f.sync, unit: "ms"},
	}
}

// launch is the least a launch can cost: two processes, the cgroups, three hops, two syncs.
func (f floor) launch() float64 { return 2*f.forkExec + f.cgroup + 3*f.grpc + 2*f.sync }

// median runs step n times and gives the middle of its times in milliseconds.
func median(n int, step func() error) (float64, error) {
	var times []float64
	for range n {
		t := time.Now()
		if err := step(); err != nil {
			return 0, err
		}
		times = append(times, ms(time.Since(t)))
	}
	return quantile(times, 0.5), nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func quantile(v []float64, q float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func measureFloor(dir string) (f floor, err error) {
	if f.forkExec, err = median(200, func() error { return exec.Command("/bin/true").Run() }); err != nil {
		return f, err
	}
	if f.cgroup, err = measureCgroup(); err != nil {
		return f, err
	}
	if f.grpc, err = measureGRPC(dir); err != nil {
		return f, err
	}
	f.sync, err = measureSync(dir)
	return f, err
}

// measureCgroup works in cgroups of its own; without the right to make any the floor is 0.
func measureCgroup() (float64, error) {
	name := fmt.Sprintf("mosaic-bench-%d", os.Getpid())
	paths := []string{"/sys/fs/cgroup/cpu/" + name, "/sys/fs/cgroup/memory/" + name}
	files := []string{"cpu.shares", "memory.limit_in_bytes"}
	values := []string{"512", "67108864"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		paths, files, values = []string{"/sys/fs/cgroup/" + name}, []string{"cgroup.max.depth"}, []string{"5"}
	}
	if os.Getuid() != 0 {
		return 0, nil
	}
	return median(200, func() error {
		for i, p := range paths {
			if err := os.Mkdir(p, 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(p, files[i]), []byte(values[i]), 0); err != nil {
				return err
			}
		}
		for _, p := range paths {
			if err := unix.Rmdir(p); err != nil {
				return err
			}
		}
		return nil
	})
}

func measureGRPC(dir string) (float64, error) {
	l, err := net.Listen("unix", filepath.Join(dir, "floor.sock"))
	if err != nil {
		return 0, err
	}
	s := grpc.NewServer()
	healthv1.RegisterHealthServer(s, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() { s.Stop(); _ = <-served }()
	conn, err := grpc.NewClient("unix://"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	h := healthv1.NewHealthClient(conn)
	check := func() error {
		_, err := h.Check(context.Background(), &healthv1.HealthCheckRequest{})
		return err
	}
	if err := check(); err != nil {
		return 0, err
	}
	return median(2000, check)
}

func measureSync(dir string) (float64, error) {
	f, err := os.Create(filepath.Join(dir, "sync"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	record := make([]byte, 512)
	return median(500, func() error {
		if _, err := f.Write(record); err != nil {
			return err
		}
		return unix.Fdatasync(int(f.Fd()))
	})
}
