package cgroups_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/isolators/cgroups"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

func scalar(name string, v float64, revocable bool) *mesosv1.Resource {
	r := &mesosv1.Resource{Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &v}}
	if revocable {
		r.Revocable = &mesosv1.Resource_RevocableInfo{}
	}
	return r
}

func TestSettingsAreThoseOfMesos(t *testing.T) {
	mb := func(n int64) *int64 { return proto.Int64(n << 20) }
	for _, test := range []struct {
		name, config string
		resources    []*mesosv1.Resource
		limits       map[string]float64
		want         *containerv1.CgroupResources
	}{
		{"half a cpu, 64 MB", `{}`, []*mesosv1.Resource{scalar("cpus", 0.5, false), scalar("mem", 64, false)}, nil,
			&containerv1.CgroupResources{CpuShares: proto.Uint64(512), MemoryReservationBytes: mb(64), MemoryLimitBytes: mb(64)}},
		{"hard limit", `{"cpu_hard_limit":true}`, []*mesosv1.Resource{scalar("cpus", 0.5, false)}, nil,
			&containerv1.CgroupResources{CpuShares: proto.Uint64(512), CpuQuotaUs: proto.Int64(50000), CpuPeriodUs: proto.Uint64(100000)}},
		{"least shares and quota", `{"cpu_hard_limit":true}`, []*mesosv1.Resource{scalar("cpus", 0.001, false)}, nil,
			&containerv1.CgroupResources{CpuShares: proto.Uint64(2), CpuQuotaUs: proto.Int64(1000), CpuPeriodUs: proto.Uint64(100000)}},
		{"least memory", `{}`, []*mesosv1.Resource{scalar("mem", 1, false)}, nil,
			&containerv1.CgroupResources{MemoryReservationBytes: mb(32), MemoryLimitBytes: mb(32)}},
		{"bursting", `{}`, []*mesosv1.Resource{scalar("cpus", 1, false), scalar("mem", 64, false)}, map[string]float64{"cpus": 2, "mem": 128},
			&containerv1.CgroupResources{CpuShares: proto.Uint64(1024), CpuQuotaUs: proto.Int64(200000), CpuPeriodUs: proto.Uint64(100000), MemoryReservationBytes: mb(64), MemoryLimitBytes: mb(128)}},
		{"no limit at all", `{"cpu_hard_limit":true}`, []*mesosv1.Resource{scalar("cpus", 1, false), scalar("mem", 64, false)}, map[string]float64{"cpus": math.Inf(1), "mem": math.Inf(1)},
			&containerv1.CgroupResources{CpuShares: proto.Uint64(1024), CpuQuotaUs: proto.Int64(-1), CpuPeriodUs: proto.Uint64(100000), MemoryReservationBytes: mb(64), MemoryLimitBytes: proto.Int64(-1)}},
		{"revocable", `{}`, []*mesosv1.Resource{scalar("cpus", 2, true)}, nil, &containerv1.CgroupResources{CpuShares: proto.Uint64(20)}},
		{"swap and pids", `{"limit_swap":true,"pids_limit":100}`, []*mesosv1.Resource{scalar("mem", 64, false)}, nil,
			&containerv1.CgroupResources{MemoryReservationBytes: mb(64), MemoryLimitBytes: mb(64), MemorySwapBytes: mb(64), PidsLimit: proto.Int64(100)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := moduletest.Start(t, cgroups.New(), test.config)
			r, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{
				OperationId: "op", Container: &containerv1.Container{Id: "c", Resources: test.resources, Limits: test.limits},
			})
			if err != nil {
				t.Fatalf("Prepare: %v", err)
			}
			if got := r.GetProposal().GetCgroup(); !proto.Equal(got, test.want) {
				t.Errorf("Prepare proposed %v, want %v", got, test.want)
			}
		})
	}
}

func TestContainersThatMayUseMoreThanTheyAskedForDieFirst(t *testing.T) {
	c := moduletest.Start(t, cgroups.New(), `{}`) // on a machine of 8192 MB
	for _, test := range []struct {
		name      string
		container *containerv1.Container
		want      int32 // -1 is none
	}{
		{"no more than asked", &containerv1.Container{Id: "c", TaskId: "t"}, -1},
		{"more", &containerv1.Container{Id: "c", TaskId: "t", Limits: map[string]float64{"mem": 4096}}, 750},
		{"without bound", &containerv1.Container{Id: "c.n", ParentId: "c", Limits: map[string]float64{"mem": math.Inf(1)}}, 750},
		{"executor", &containerv1.Container{Id: "c", Limits: map[string]float64{"mem": 4096}}, -1},
	} {
		test.container.Resources = []*mesosv1.Resource{scalar("mem", 2048, false)}
		r, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{Container: test.container})
		if err != nil {
			t.Fatalf("%s: Prepare: %v", test.name, err)
		}
		p := r.GetProposal()
		if got := p.GetOomScoreAdj(); test.want < 0 && p.OomScoreAdj != nil || test.want >= 0 && got != test.want {
			t.Errorf("%s: oom score %d, want %d", test.name, got, test.want)
		}
		if nested := test.container.GetParentId() != ""; (p.GetCgroup() == nil) != nested {
			t.Errorf("%s: cgroup %v, want one unless it shares its parent's", test.name, p.GetCgroup())
		}
	}
}

func TestAmountsNoMachineHasAreRefused(t *testing.T) {
	c := moduletest.Start(t, cgroups.New(), `{}`)
	for _, r := range []*mesosv1.Resource{scalar("cpus", math.NaN(), false), scalar("mem", -1, false), scalar("mem", 1e300, false), scalar("cpus", math.Inf(1), false)} {
		_, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{Container: &containerv1.Container{Id: "c", Resources: []*mesosv1.Resource{r}}})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("Prepare with %v = %v, want InvalidArgument", r, err)
		}
	}
}

func TestUnknownContainersAreNoError(t *testing.T) {
	c := moduletest.Start(t, cgroups.New(), `{}`)
	unknown := &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: "never-seen"}, Cgroups: map[string]string{"memory": "/no/such/cgroup", "cpu": "relative"}}
	if _, err := c.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{Record: unknown}); err != nil {
		t.Errorf("Cleanup: %v, want success", err)
	}
	u, err := c.Isolator.Usage(context.Background(), &isolatorv1.UsageRequest{Records: []*isolatorv1.ContainerRecord{unknown, {Container: &containerv1.Container{Id: "x"}}}})
	if err != nil || u.GetResults()["never-seen"].GetError() == "" || u.GetResults()["x"] != nil {
		t.Errorf("Usage = %v, %v; want an error for one and nothing for the other", u, err)
	}
	if _, err := c.Isolator.Status(context.Background(), &isolatorv1.StatusRequest{Records: []*isolatorv1.ContainerRecord{unknown}}); err != nil {
		t.Errorf("Status: %v, want success", err)
	}
}

// v2 is a folder that looks like a cgroup of version 2.
func v2(t *testing.T, files map[string]string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return map[string]string{"": dir}
}

func TestVersion2IsReadAndWatched(t *testing.T) {
	c := moduletest.Start(t, cgroups.New(), `{}`)
	paths := v2(t, map[string]string{
		"cpu.stat":       "usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 500000\n",
		"memory.current": "1048576\n", "memory.max": "67108864\n", "memory.low": "33554432\n", "memory.peak": "67108864\n",
		"memory.stat": "anon 4096\nfile 8192\nfile_mapped 1024\nunevictable 0\n", "memory.events": "low 0\nhigh 0\nmax 3\noom 0\noom_kill 0\n",
		"pids.current": "7\n", "cgroup.procs": "1\n2\n3\n",
	})
	rec := &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: "c", Resources: []*mesosv1.Resource{scalar("cpus", 2, false)}}, Cgroups: paths}
	u, err := c.Isolator.Usage(context.Background(), &isolatorv1.UsageRequest{Records: []*isolatorv1.ContainerRecord{rec}})
	if err != nil {
		t.Fatalf("Usage: %v", err)
	}
	s := u.GetResults()["c"].GetStatistics()
	got := fmt.Sprint(s.GetCpusUserTimeSecs(), s.GetCpusSystemTimeSecs(), s.GetCpusNrThrottled(), s.GetCpusThrottledTimeSecs(), s.GetMemTotalBytes(),
		s.GetMemLimitBytes(), s.GetMemSoftLimitBytes(), s.GetMemRssBytes(), s.GetMemCacheBytes(), s.GetProcesses(), s.GetThreads(), s.GetCpusLimit())
	if want := "2 1 4 0.5 1048576 67108864 33554432 4096 8192 3 7 2"; got != want {
		t.Errorf("statistics %s, want %s", got, want)
	}
	if _, err := c.Isolator.Isolate(context.Background(), &isolatorv1.IsolateRequest{Record: rec}); err != nil {
		t.Fatalf("Isolate: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	w, err := c.Module.Watch(ctx, &modulev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(paths[""], "memory.events"), []byte("oom 1\noom_kill 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	expectLimitation(t, w, "c")
}

func TestOutOfMemoryWhileNobodyWatchedIsReportedAfterRecovery(t *testing.T) {
	c := moduletest.Start(t, cgroups.New(), `{}`)
	paths := v2(t, map[string]string{"memory.max": "67108864\n", "memory.peak": "67108864\n", "memory.events": "oom 1\noom_kill 1\n"})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := c.Isolator.Recover(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&isolatorv1.RecoverRequest{Containers: []*isolatorv1.ContainerRecord{
		{Container: &containerv1.Container{Id: "orphan"}, Cgroups: paths, Orphan: true},
		{Container: &containerv1.Container{Id: "without"}},
		{Container: &containerv1.Container{Id: "gone"}, Cgroups: map[string]string{"": "/no/such/cgroup"}},
		{Container: &containerv1.Container{Id: "c"}, Cgroups: paths},
	}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CloseAndRecv(); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	w, err := c.Module.Watch(ctx, &modulev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	expectLimitation(t, w, "c")
}

func expectLimitation(t *testing.T, w modulev1.Module_WatchClient, id string) {
	t.Helper()
	for {
		e, err := w.Recv()
		if err != nil {
			t.Fatalf("wait for a limitation: %v", err)
		}
		if l := e.GetLimitation(); l != nil {
			if l.GetContainerId() != id || l.GetReason() != "REASON_CONTAINER_LIMITATION_MEMORY" || !strings.Contains(l.GetMessage(), "Requested: 64MB Maximum Used: ") || len(l.GetResources()) != 1 {
				t.Errorf("limitation %v, want one for %s with the reason, 64MB, and the resource", l, id)
			}
			return
		}
	}
}

func TestOutOfMemoryOnVersion1IsReportedAndRemembered(t *testing.T) {
	const root = "/sys/fs/cgroup/memory"
	if _, err := os.Stat(root + "/memory.oom_control"); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and the memory controller of cgroup version 1")
	}
	dir := filepath.Join(root, fmt.Sprintf("mosaic-isolator-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 100 {
			if syscall.Rmdir(dir) == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("cgroup %s cannot be removed", dir)
	})
	if err := os.WriteFile(dir+"/memory.limit_in_bytes", []byte("67108864"), 0); err != nil {
		t.Fatal(err)
	}
	c := moduletest.Start(t, cgroups.New(), `{}`)
	rec := &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: "c"}, Cgroups: map[string]string{"memory": dir}}
	for range 2 { // twice is once
		if _, err := c.Isolator.Isolate(context.Background(), &isolatorv1.IsolateRequest{Record: rec}); err != nil {
			t.Fatalf("Isolate: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	w, err := c.Module.Watch(ctx, &modulev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	hog := exec.Command("/bin/sh", "-c", "echo $$ >"+dir+"/cgroup.procs; exec tail /dev/zero")
	if err := hog.Run(); err == nil {
		t.Fatal("the hog ended well, want it killed")
	}
	expectLimitation(t, w, "c")
	s, err := c.Isolator.Status(ctx, &isolatorv1.StatusRequest{Records: []*isolatorv1.ContainerRecord{rec}})
	if err != nil || s.GetResults()["c"].GetLimitation() == nil {
		t.Errorf("Status after the end = %v, %v; want the limitation", s, err)
	}
	usage, err := c.Isolator.Usage(ctx, &isolatorv1.UsageRequest{Records: []*isolatorv1.ContainerRecord{rec}})
	if got := usage.GetResults()["c"].GetStatistics(); err != nil || got.GetMemLimitBytes() != 64<<20 || got.MemTotalBytes == nil || got.GetProcesses() != 0 {
		t.Errorf("Usage after the end = %v, %v; want the limit, a total and no process", usage, err)
	}
	gone := &isolatorv1.ContainerRecord{Container: rec.Container, Cgroups: map[string]string{"memory": dir + "-gone"}}
	s, err = c.Isolator.Status(ctx, &isolatorv1.StatusRequest{Records: []*isolatorv1.ContainerRecord{gone}})
	if err != nil || s.GetResults()["c"].GetLimitation() == nil {
		t.Errorf("Status without the cgroup = %v, %v; want the limitation all the same", s, err)
	}
	u, err := c.Isolator.Update(ctx, &isolatorv1.UpdateRequest{Record: &isolatorv1.ContainerRecord{
		Container: &containerv1.Container{Id: "c", Resources: []*mesosv1.Resource{scalar("mem", 32, false)}}, Cgroups: rec.Cgroups,
	}})
	if err != nil || u.GetProposal().GetCgroup().MemoryLimitBytes != nil {
		t.Errorf("Update to less memory = %v, %v; want the limit left alone", u, err)
	}
}
