package cgroups_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/isolators/cgroups"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

func TestWhichContainersHaveLimitsOfTheirOwn(t *testing.T) {
	shares := func(v bool) *mesosv1.ContainerInfo {
		return &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: &mesosv1.LinuxInfo{ShareCgroups: &v}}
	}
	c := moduletest.Start(t, cgroups.New(), `{}`)
	for _, test := range []struct {
		name string
		c    *containerv1.Container
		want bool
	}{
		{"root", &containerv1.Container{Id: "c"}, true},
		{"root that says nothing of sharing", &containerv1.Container{Id: "c", ContainerInfo: shares(true)}, true},
		{"nested", &containerv1.Container{Id: "c.d", ParentId: "c", Cgroup: "m/c/nested-d"}, false},
		{"nested that shares", &containerv1.Container{Id: "c.d", ParentId: "c", Cgroup: "m/c/nested-d", ContainerInfo: shares(true)}, false},
		{"nested that does not share", &containerv1.Container{Id: "c.d", ParentId: "c", Cgroup: "m/c/d", ContainerInfo: shares(false)}, true},
		{"debug", &containerv1.Container{Id: "c.d", ParentId: "c", Class: containerv1.Container_DEBUG, ContainerInfo: shares(false)}, false},
	} {
		test.c.Resources = []*mesosv1.Resource{scalar("cpus", 1, false), scalar("mem", 64, false)}
		r, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{OperationId: "op", Container: test.c})
		if err != nil {
			t.Fatalf("%s: Prepare: %v", test.name, err)
		}
		if got := r.GetProposal().GetCgroup() != nil; got != test.want {
			t.Errorf("%s: Prepare proposed %v, want settings: %v", test.name, r.GetProposal(), test.want)
		}
		u, err := c.Isolator.Update(context.Background(), &isolatorv1.UpdateRequest{OperationId: "op", Record: &isolatorv1.ContainerRecord{Container: test.c}})
		if err != nil {
			t.Fatalf("%s: Update: %v", test.name, err)
		}
		if got := u.GetProposal().GetCgroup() != nil; got != test.want {
			t.Errorf("%s: Update proposed %v, want settings: %v", test.name, u.GetProposal(), test.want)
		}
	}
}

// limited asks for the limitation of one container.
func limited(t *testing.T, c *moduletest.Client, id string, paths map[string]string) *modulev1.Limitation {
	t.Helper()
	rec := &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: id}, Cgroups: paths}
	s, err := c.Isolator.Status(context.Background(), &isolatorv1.StatusRequest{Records: []*isolatorv1.ContainerRecord{rec}})
	if err != nil {
		t.Fatalf("Status(%s): %v", id, err)
	}
	return s.GetResults()[id].GetLimitation()
}

func TestOutOfMemoryOnVersion2BelongsToWhoseLimitWasReached(t *testing.T) {
	const none, one = "oom 0\noom_kill 0\n", "oom 1\noom_kill 1\n"
	killed := "oom 0\noom_kill 1\n"
	for _, test := range []struct {
		name                        string
		all, local, leaf            string
		want                        bool
		nestedAll, nestedLocal, max string
		nested                      bool
	}{
		{"a nested one reached its own limit", one, none, none, false, one, one, "33554432", true},
		{"a nested one was killed for the outer limit", one, "oom 1\noom_kill 0\n", none, true, killed, killed, "max", true},
		{"the outer one's own process was killed", one, "oom 1\noom_kill 0\n", killed, true, none, none, "max", false},
		{"the machine ran out, and the outer one's process was killed", killed, none, killed, true, none, none, "max", false},
		{"nothing happened", none, none, none, false, none, none, "max", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := moduletest.Start(t, cgroups.New(), `{}`)
			outer := v2(t, map[string]string{"memory.max": "67108864\n", "memory.peak": "67108864\n", "memory.events": test.all, "memory.events.local": test.local})
			inner := map[string]string{"": filepath.Join(outer[""], "nested-d")}
			for name, files := range map[string]map[string]string{
				"leaf":     {"memory.events.local": test.leaf},
				"nested-d": {"memory.max": test.max + "\n", "memory.peak": "33554432\n", "memory.events": test.nestedAll, "memory.events.local": test.nestedLocal},
			} {
				if err := os.Mkdir(filepath.Join(outer[""], name), 0o755); err != nil {
					t.Fatal(err)
				}
				for file, text := range files {
					if err := os.WriteFile(filepath.Join(outer[""], name, file), []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			if l := limited(t, c, "c", outer); (l != nil) != test.want {
				t.Errorf("outer container: %v, want a limitation: %v", l, test.want)
			}
			l := limited(t, c, "c.d", inner)
			if (l != nil) != test.nested {
				t.Errorf("nested container: %v, want a limitation: %v", l, test.nested)
			}
			want := "Requested: 64MB Maximum Used: 64MB" // the outer one's
			if test.max != "max" {
				want = "Requested: 32MB Maximum Used: 32MB"
			}
			if l != nil && !strings.Contains(l.GetMessage(), want) {
				t.Errorf("message %q, want %s", l.GetMessage(), want)
			}
		})
	}
}

func TestOutOfMemoryOfANestedContainerOnVersion1TellsTheSharedLimit(t *testing.T) {
	const root = "/sys/fs/cgroup/memory"
	if _, err := os.Stat(root + "/memory.oom_control"); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and the memory controller of cgroup version 1")
	}
	outer := filepath.Join(root, fmt.Sprintf("mosaic-isolator-test-nested-%d", os.Getpid()))
	inner := filepath.Join(outer, "nested-d")
	for _, dir := range []string{outer, inner} {
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
	}
	if err := os.WriteFile(outer+"/memory.limit_in_bytes", []byte("67108864"), 0); err != nil {
		t.Fatal(err)
	}
	c := moduletest.Start(t, cgroups.New(), `{}`)
	rec := &isolatorv1.ContainerRecord{
		Container: &containerv1.Container{Id: "c.d", ParentId: "c"}, Cgroups: map[string]string{"memory": inner},
	}
	if _, err := c.Isolator.Isolate(context.Background(), &isolatorv1.IsolateRequest{Record: rec}); err != nil {
		t.Fatalf("Isolate: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	w, err := c.Module.Watch(ctx, &modulev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	hog := exec.Command("/bin/sh", "-c", "echo $$ >"+inner+"/cgroup.procs; exec tail /dev/zero")
	if err := hog.Run(); err == nil {
		t.Fatal("the hog ended well, want it killed")
	}
	expectLimitation(t, w, "c.d")
	if l := limited(t, c, "c", map[string]string{"memory": outer}); l != nil && !proto.Equal(l.GetResources()[0], limited(t, c, "c.d", rec.Cgroups).GetResources()[0]) {
		t.Errorf("limitation of the outer container: %v, want none or the same", l)
	}
}

func TestProcessesOfNestedContainersAreCounted(t *testing.T) {
	c := moduletest.Start(t, cgroups.New(), `{}`)
	paths := v2(t, map[string]string{"cpu.stat": "usage_usec 1\nuser_usec 1\n", "cgroup.procs": "1\n"})
	for dir, procs := range map[string]string{"leaf": "2\n3\n", "nested-d": "", "nested-d/leaf": "4\n"} {
		if err := os.MkdirAll(filepath.Join(paths[""], dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(paths[""], dir, "cgroup.procs"), []byte(procs), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	rec := &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: "c"}, Cgroups: paths}
	u, err := c.Isolator.Usage(context.Background(), &isolatorv1.UsageRequest{Records: []*isolatorv1.ContainerRecord{rec}})
	if got := u.GetResults()["c"].GetStatistics().GetProcesses(); err != nil || got != 4 {
		t.Errorf("Usage: %d processes, %v, want 4", got, err)
	}
}
