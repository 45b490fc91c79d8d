package cgroups_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/isolators/cgroups"
	"github.com/mosaic-cluster/mosaic/sdk/isolator"
	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// TestMain lets the test's own executable be the module when the kit starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv("MOSAIC_MODULE") != "" {
		module.Serve(cgroups.New())
		return
	}
	os.Exit(m.Run())
}

func TestConformanceWithAllSubsystems(t *testing.T) {
	isolatortest.Run(t, kit.Program{Path: os.Args[0]}.Dial, isolatortest.Config(
		`{"exclusive_cores":"`+lastCore(t)+`","exclusive_cores_for":"whole","hugetlb_limits":{"2MB":"64MiB"},"restrict_devices":true,"allowed_devices":["c 10:229 rw"]}`))
}

// lastCore is the highest core of the machine; one must be left for the others.
func lastCore(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		t.Skipf("this machine does not tell its cores: %v", err)
	}
	list := strings.TrimSpace(string(text))
	last := list[strings.LastIndexAny(list, ",-")+1:]
	if last == list {
		t.Skip("this machine has one core only")
	}
	return last
}

// begin starts a module that knows what lives.
func begin(t *testing.T, config string, node *modulev1.NodeFacts, live ...*isolatorv1.ContainerRecord) (*moduletest.Client, []string) {
	t.Helper()
	c := moduletest.Dial(t, cgroups.New())
	if node == nil {
		node = moduletest.Node()
	}
	r, err := c.Module.Configure(context.Background(), &modulev1.ConfigureRequest{ConfigJson: config, Node: node})
	if err != nil || len(r.GetErrors()) > 0 {
		t.Fatalf("Configure(%s) = %v, %v; want it taken", config, r, err)
	}
	s, err := c.Isolator.Recover(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&isolatorv1.RecoverRequest{Containers: live}); err != nil {
		t.Fatal(err)
	}
	a, err := s.CloseAndRecv()
	if err != nil {
		t.Fatalf("Recover: %v", err)
	}
	return c, a.GetUnknown()
}

func prepare(t *testing.T, c *moduletest.Client, container *containerv1.Container) (*isolatorv1.PrepareResponse, error) {
	t.Helper()
	r, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{OperationId: "op", Container: container})
	for _, wrong := range isolator.CheckPrepare(c.Describe(t), r) {
		t.Errorf("Prepare(%s): %s", container.GetId(), wrong)
	}
	return r, err
}

func exclusive(id string, cpus float64) *containerv1.Container {
	return &containerv1.Container{Id: id, Labels: map[string]string{"mosaic.cpus": "exclusive"}, Resources: []*mesosv1.Resource{scalar("cpus", cpus, false)}}
}

func TestExclusiveCoresBelongToOneContainer(t *testing.T) {
	last := lastCore(t)
	config := `{"patience":0,"exclusive_cores":"` + last + `"}`
	c, _ := begin(t, config, nil)
	first, err := prepare(t, c, exclusive("a", 1))
	if err != nil || first.GetProposal().GetCgroup().GetCpusetCpus() != last {
		t.Fatalf("Prepare = %v, %v; want core %s", first, err, last)
	}
	if _, err := prepare(t, c, exclusive("b", 1)); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "0 of 1 are free") {
		t.Errorf("Prepare of another: %v, want ResourceExhausted", err)
	}
	if _, err := prepare(t, c, exclusive("b", 0.5)); status.Code(err) != codes.InvalidArgument {
		t.Errorf("Prepare with half a core: %v, want InvalidArgument", err)
	}
	shared, err := prepare(t, c, &containerv1.Container{Id: "s", Resources: []*mesosv1.Resource{scalar("cpus", 1, false)}})
	if set := shared.GetProposal().GetCgroup().GetCpusetCpus(); err != nil || set == "" || set == last || len(shared.GetState()) > 0 {
		t.Errorf("Prepare of one that does not ask = %v, %v; want the other cores and no state", shared, err)
	}
	nested := exclusive("a.n", 1)
	nested.ParentId, nested.ContainerInfo = "a", &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: &mesosv1.LinuxInfo{ShareCgroups: new(bool)}}
	if r, err := prepare(t, c, nested); err != nil || r.GetProposal().GetCgroup() == nil || r.GetProposal().GetCgroup().GetCpusetCpus() != "" {
		t.Errorf("Prepare of a nested one = %v, %v; want its root's cores", r, err)
	}

	// Killed: what lives keeps its cores, also when its state is of another version.
	record := &isolatorv1.ContainerRecord{Container: exclusive("a", 1), State: first.GetState(), StateVersion: first.GetStateVersion(), Orphan: true}
	c, unknown := begin(t, config, nil, record)
	if _, err := prepare(t, c, exclusive("b", 1)); status.Code(err) != codes.ResourceExhausted || len(unknown) > 0 {
		t.Errorf("after a restart: %v, unknown %v; want ResourceExhausted", err, unknown)
	}
	u, err := c.Isolator.Update(context.Background(), &isolatorv1.UpdateRequest{Record: &isolatorv1.ContainerRecord{
		Container: &containerv1.Container{Id: "a", Resources: []*mesosv1.Resource{scalar("cpus", 1, false)}}, State: first.GetState(), StateVersion: 1,
	}})
	if err != nil || string(u.GetState()) != "{}" || u.GetProposal().GetCgroup().GetCpusetCpus() == last {
		t.Errorf("Update to no core of its own = %v, %v; want the shared ones and an empty state", u, err)
	}
	if _, err := prepare(t, c, exclusive("b", 1)); err != nil {
		t.Errorf("Prepare when the core is free again: %v", err)
	}
	record.StateVersion = 9
	c, unknown = begin(t, config, nil, record)
	if _, err := prepare(t, c, exclusive("b", 1)); status.Code(err) != codes.FailedPrecondition || !slices.Equal(unknown, []string{"a"}) {
		t.Errorf("beside state that cannot be read: %v, unknown %v; want FailedPrecondition and a", err, unknown)
	}
	if _, err := c.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{Record: record}); err != nil {
		t.Fatal(err)
	}
	if _, err := prepare(t, c, exclusive("b", 1)); err != nil {
		t.Errorf("Prepare after its end: %v", err)
	}
}

func TestALaunchWaitsForCoresThatAreJustGivenBack(t *testing.T) {
	last := lastCore(t)
	c, _ := begin(t, `{"exclusive_cores":"`+last+`"}`, nil)
	if _, err := prepare(t, c, exclusive("a", 1)); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() {
		r, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{OperationId: "op", Container: exclusive("b", 1)})
		got <- fmt.Sprint(r.GetProposal().GetCgroup().GetCpusetCpus(), " ", err)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := c.Isolator.Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: "op", Container: exclusive("c", 1)})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("Prepare with little time: %v, want DeadlineExceeded", err)
	}
	if _, err := prepare(t, c, exclusive("d", 2000)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("Prepare with more cores than there are: %v, want ResourceExhausted at once", err)
	}
	if _, err := c.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{Record: &isolatorv1.ContainerRecord{Container: exclusive("a", 1)}}); err != nil {
		t.Fatal(err)
	}
	if g := <-got; g != last+" <nil>" {
		t.Errorf("Prepare after the cleanup gave %q, want core %s", g, last)
	}
}

func TestContainersWithWholeCpusHaveCoresOfTheirOwnAsLongAsThereAreSome(t *testing.T) {
	last := lastCore(t)
	c, _ := begin(t, `{"exclusive_cores":"`+last+`","exclusive_cores_for":"whole"}`, nil)
	whole := func(id string, cpus float64) string {
		r, err := prepare(t, c, &containerv1.Container{Id: id, Resources: []*mesosv1.Resource{scalar("cpus", cpus, false)}})
		if err != nil {
			t.Fatalf("Prepare(%s): %v", id, err)
		}
		return r.GetProposal().GetCgroup().GetCpusetCpus()
	}
	if got := whole("half", 0.5); got == last || got == "" {
		t.Errorf("half a cpu has core %q, want the shared ones", got)
	}
	if got := whole("a", 1); got != last {
		t.Errorf("a whole cpu has core %q, want %s", got, last)
	}
	if got := whole("b", 1); got == last || got == "" {
		t.Errorf("a second whole cpu has core %q, want the shared ones", got)
	}
}

func TestNothingExclusiveIsGivenBeforeItIsKnownWhatLives(t *testing.T) {
	c := moduletest.Start(t, cgroups.New(), `{"exclusive_cores":"`+lastCore(t)+`"}`)
	if _, err := prepare(t, c, exclusive("a", 1)); status.Code(err) != codes.Unavailable {
		t.Errorf("Prepare before Recover: %v, want Unavailable", err)
	}
	c, _ = begin(t, `{}`, nil)
	if _, err := prepare(t, c, exclusive("a", 1)); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Prepare where no cores are set aside: %v, want FailedPrecondition", err)
	}
}

func TestFurtherSubsystemsAreSetOnBothVersions(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := unix.Mknod(disk, unix.S_IFBLK|0o600, int(unix.Mkdev(8, 16))); err != nil {
		t.Skipf("this machine does not let us make device nodes: %v", err)
	}
	config := `{"hugetlb_limits":{"2MB":"64MiB","1GB":"0B"},"io":{"device":"` + disk + `","read_per_second":1048576,"writes_per_second":100}%s}`
	for version, want := range map[uint32]string{
		1: "blkio/blkio.throttle.read_bps_device=8:16 1048576 blkio/blkio.throttle.write_iops_device=8:16 100 hugetlb/hugetlb.1GB.limit_in_bytes=0 " +
			"hugetlb/hugetlb.2MB.limit_in_bytes=67108864 net_cls/net_cls.classid=1048578",
		2: "hugetlb.1GB.max=0 hugetlb.2MB.max=67108864 io.max=8:16 rbps=1048576 wiops=100",
	} {
		node := moduletest.Node()
		node.CgroupVersion = version
		more := ""
		if version == 1 {
			more = `,"net_cls_primary_handle":"0x10","net_cls_secondary_handles":"0x2,0x3"`
		}
		c, _ := begin(t, fmt.Sprintf(config, more), node)
		r, err := prepare(t, c, &containerv1.Container{Id: "c"})
		var got []string
		for name, value := range r.GetProposal().GetCgroup().GetFiles() {
			got = append(got, name+"="+value)
		}
		slices.Sort(got)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("version %d: files %q, %v; want %q", version, strings.Join(got, " "), err, want)
		}
	}
}

func TestNetworkClassesAreToldAndRunOut(t *testing.T) {
	c, _ := begin(t, `{"patience":0,"net_cls_primary_handle":"0x0010","net_cls_secondary_handles":"0x0002,0x0003"}`, nil)
	for _, id := range []string{"a", "b"} {
		if _, err := prepare(t, c, &containerv1.Container{Id: id}); err != nil {
			t.Fatalf("Prepare(%s): %v", id, err)
		}
	}
	if _, err := prepare(t, c, &containerv1.Container{Id: "c"}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("Prepare of a third: %v, want ResourceExhausted", err)
	}
	s, err := c.Isolator.Status(context.Background(), &isolatorv1.StatusRequest{Records: []*isolatorv1.ContainerRecord{{Container: &containerv1.Container{Id: "b"}}}})
	if got := s.GetResults()["b"].GetStatus().GetCgroupInfo().GetNetCls().GetClassid(); err != nil || got != 0x100003 {
		t.Errorf("Status tells class %#x, %v; want 0x100003", got, err)
	}
	node := moduletest.Node()
	node.CgroupVersion = 2
	c, _ = begin(t, `{"net_cls_primary_handle":"16"}`, node)
	if _, err := prepare(t, c, &containerv1.Container{Id: "a"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Prepare on version 2: %v, want FailedPrecondition", err)
	}
}

func TestMistakesAreToldByTheirPath(t *testing.T) {
	c := moduletest.Dial(t, cgroups.New())
	for config, want := range map[string]string{
		`{"exclusive_cores":"1-"}`:                                                       "exclusive_cores",
		`{"exclusive_cores":"8191"}`:                                                     "exclusive_cores",
		`{"exclusive_cores":"0-8191"}`:                                                   "exclusive_cores",
		`{"exclusive_cores_for":"nobody"}`:                                               "exclusive_cores_for",
		`{"hugetlb_limits":{"../x":"1MB"}}`:                                              "hugetlb_limits",
		`{"hugetlb_limits":{"2MB":"many"}}`:                                              "hugetlb_limits",
		`{"net_cls_primary_handle":"0x10000"}`:                                           "net_cls_primary_handle",
		`{"net_cls_secondary_handles":"1,2"}`:                                            "net_cls_secondary_handles",
		`{"net_cls_primary_handle":"1","net_cls_secondary_handles":"3,2"}`:               "net_cls_secondary_handles",
		`{"restrict_devices":true,"allowed_devices":["/dev/null:rw","x 1:2 r"]}`:         "allowed_devices[1]",
		`{"restrict_devices":true,"allowed_devices":["/dev/../etc:rw"]}`:                 "allowed_devices[0]",
		`{"allowed_devices":["/dev/fuse:rw"]}`:                                           "allowed_devices",
		`{"perf_events":["cycles","none"]}`:                                              "perf_events[1]",
		`{"perf_events":["task-clock","task-clock"]}`:                                    "perf_events[1]",
		`{"perf_events":["task-clock"],"perf_interval":1000000,"perf_duration":2000000}`: "perf_duration",
		`{"io":{"device":"sda"}}`:                                                        "io.device",
	} {
		errs := c.Configure(t, config)
		if len(errs) != 1 || errs[0].GetPath() != want {
			t.Errorf("Configure(%s) = %v, want one error at %s", config, errs, want)
		}
	}
}

func TestDiskStatisticsAreReadOnBothVersions(t *testing.T) {
	want := "8:0 serviced TOTAL=3 READ=1 WRITE=2 bytes TOTAL=12288 READ=4096 WRITE=8192"
	one := t.TempDir()
	for name, text := range map[string]string{
		"blkio.throttle.io_serviced":                "8:0 Read 0\n",
		"blkio.throttle.io_serviced_recursive":      "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nnonsense\n8:x Read 1\n8:0 Read -1\nTotal 3\n",
		"blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\nTotal 12288\n",
		"memory.usage_in_bytes":                     "1\n", "cgroup.procs": "",
	} {
		if err := os.WriteFile(filepath.Join(one, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	two := v2(t, map[string]string{"cpu.stat": "usage_usec 1\n", "io.stat": "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2\n8:1\nx\n"})
	c := moduletest.Start(t, cgroups.New(), `{}`)
	for name, paths := range map[string]map[string]string{"1": {"blkio": one, "memory": one}, "2": two} {
		r, err := c.Isolator.Usage(context.Background(), &isolatorv1.UsageRequest{Records: []*isolatorv1.ContainerRecord{{Container: &containerv1.Container{Id: "c"}, Cgroups: paths}}})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range r.GetResults()["c"].GetStatistics().GetBlkioStatistics().GetThrottling() {
			text := fmt.Sprintf("%d:%d serviced", d.GetDevice().GetMajorNumber(), d.GetDevice().GetMinorNumber())
			for _, v := range d.GetIoServiced() {
				text += fmt.Sprintf(" %s=%d", v.GetOp(), v.GetValue())
			}
			text += " bytes"
			for _, v := range d.GetIoServiceBytes() {
				text += fmt.Sprintf(" %s=%d", v.GetOp(), v.GetValue())
			}
			got = append(got, text)
		}
		sum := strings.ReplaceAll(strings.Join(got, ", "), " DISCARD=0", "")
		if sum != want {
			t.Errorf("version %s: %q, want %q", name, sum, want)
		}
	}
}

func TestEventsAreCountedInContainers(t *testing.T) {
	dir := realGroup(t, "unified", "cgroup.procs")
	node := moduletest.Node()
	node.CgroupVersion = 2
	probe := moduletest.Dial(t, cgroups.New())
	config := `{"perf_events":["task-clock","page-faults"],"perf_interval":50000000,"perf_duration":50000000}`
	if r, err := probe.Module.Configure(context.Background(), &modulev1.ConfigureRequest{ConfigJson: config, Node: node}); err != nil || len(r.GetErrors()) > 0 {
		t.Skipf("this machine counts no events: %v %v", r, err)
	}
	c, _ := begin(t, config, node)
	record := &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: "c"}, Cgroups: map[string]string{"perf_event": dir, "cpu": v2(t, map[string]string{"cpu.stat": "nr_periods 0\n"})[""]}}
	if _, err := c.Isolator.Isolate(context.Background(), &isolatorv1.IsolateRequest{Record: record}); err != nil {
		t.Fatal(err)
	}
	busy := exec.Command("/bin/sh", "-c", "echo $$ >"+dir+"/cgroup.procs; while :; do :; done")
	if err := busy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = busy.Process.Kill()
		_ = busy.Wait()
	})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var p *mesosv1.PerfStatistics
	for p.GetTaskClock() == 0 {
		r, err := c.Isolator.Usage(ctx, &isolatorv1.UsageRequest{Records: []*isolatorv1.ContainerRecord{record}})
		if err != nil {
			t.Fatalf("Usage: %v; the last count was %v", err, p)
		}
		p = r.GetResults()["c"].GetStatistics().GetPerf()
		time.Sleep(5 * time.Millisecond) // between two questions; what is waited for is counted by the kernel
	}
	if ms, most := p.GetTaskClock(), 1000*p.GetDuration()*1.5; ms <= 0 || ms > most || p.PageFaults == nil || p.Cycles != nil || p.GetTimestamp() == 0 {
		t.Errorf("counted %v, want up to %v ms of one busy process, its page faults, and nothing else", p, most)
	}
	if _, err := c.Isolator.Cleanup(ctx, &isolatorv1.CleanupRequest{Record: record}); err != nil {
		t.Fatal(err)
	}
	r, err := c.Isolator.Usage(ctx, &isolatorv1.UsageRequest{Records: []*isolatorv1.ContainerRecord{record}})
	if err != nil || r.GetResults()["c"].GetStatistics().GetPerf() != nil {
		t.Errorf("Usage after Cleanup = %v, %v; want no count", r, err)
	}
	node.CgroupVersion = 1
	if r, err := probe.Module.Configure(ctx, &modulev1.ConfigureRequest{ConfigJson: config, Node: node}); err != nil || len(r.GetErrors()) != 1 || r.GetErrors()[0].GetPath() != "perf_events" {
		t.Errorf("Configure on version 1 = %v, %v; want an error at perf_events", r, err)
	}
	if errs := probe.Configure(t, `{}`); len(errs) > 0 {
		t.Errorf("Configure without events = %v", errs)
	}
}

// realGroup makes a cgroup of version 1 that ends with the test.
func realGroup(t *testing.T, controller, probe string) string {
	t.Helper()
	root := "/sys/fs/cgroup/" + controller
	if _, err := os.Stat(root + "/" + probe); err != nil || os.Getuid() != 0 {
		t.Skipf("needs root and the %s controller of cgroup version 1", controller)
	}
	dir := filepath.Join(root, fmt.Sprintf("mosaic-isolator-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 100 {
			if err := syscall.Rmdir(dir); err == nil || errors.Is(err, syscall.ENOENT) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("cgroup %s cannot be removed", dir)
	})
	return dir
}

func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0); err != nil {
		t.Fatalf("write %q: %v", text, err)
	}
}

func TestRestrictedContainersOpenOnlyWhatIsListed(t *testing.T) {
	dir := realGroup(t, "devices", "devices.list")
	c, _ := begin(t, `{"restrict_devices":true,"allowed_devices":["/dev/kmsg:r"]}`, nil)
	r, err := prepare(t, c, &containerv1.Container{Id: "c"})
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	for _, rule := range r.GetProposal().GetCgroup().GetDeviceRules() { // as the agent writes them
		file, number := "devices.deny", func(n *int64) string {
			if n == nil {
				return "*"
			}
			return fmt.Sprint(*n)
		}
		if rule.GetAllow() {
			file = "devices.allow"
		}
		text := rule.GetType()
		if text != "a" {
			text = fmt.Sprintf("%s %s:%s %s", text, number(rule.Major), number(rule.Minor), rule.GetAccess())
		}
		put(t, filepath.Join(dir, file), text)
	}
	node := filepath.Join(t.TempDir(), "rtc") // any device that is not on the list
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 12))); err != nil {
		t.Skipf("this machine does not let us make device nodes: %v", err)
	}
	for path, want := range map[string]bool{"/dev/null": true, "/dev/urandom": true, "/dev/kmsg": true, node: false} {
		// Without the rules the kernel says what else is wrong with the device, but not that it is forbidden.
		out, _ := exec.Command("/bin/sh", "-c", "echo $$ >"+dir+"/cgroup.procs; exec 3<"+path).CombinedOutput()
		if denied := strings.Contains(string(out), "not permitted"); denied == want {
			t.Errorf("open %s: %q, want it permitted: %v", path, out, want)
		}
	}
}

func TestExclusiveCoresHoldInTheKernel(t *testing.T) {
	last := lastCore(t)
	dir := realGroup(t, "cpuset", "cpuset.cpus")
	c, _ := begin(t, `{"exclusive_cores":"`+last+`"}`, nil)
	r, err := prepare(t, c, exclusive("c", 1))
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	put(t, filepath.Join(dir, "cpuset.mems"), "0")
	put(t, filepath.Join(dir, "cpuset.cpus"), r.GetProposal().GetCgroup().GetCpusetCpus())
	out, err := exec.Command("/bin/sh", "-c", "echo $$ >"+dir+"/cgroup.procs; grep Cpus_allowed_list /proc/self/status").CombinedOutput()
	if err != nil || strings.TrimSpace(strings.TrimPrefix(string(out), "Cpus_allowed_list:")) != last {
		t.Errorf("a process there may run on %q, %v; want core %s", out, err, last)
	}
}
