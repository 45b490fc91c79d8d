package isolatortest

import (
	"context"
	"math"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/isolator"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// hostileCases are about requests that no agent sends on purpose; frameworks fill in most of what is in them.
func (s *suite) hostileCases() []kit.Case {
	return []kit.Case{
		{Level: kit.Core, Name: "EmptyRequestsAreNoCrash", Why: "a field that an older or newer host leaves out must not take the module down", Do: s.empty},
		{Level: kit.Full, Name: "HostileContainersAreNoCrash", Why: "frameworks choose names, numbers and paths, and any of them may lie", Do: s.hostile},
		{Level: kit.Full, Name: "HostilePathsAreNotFollowed", Why: "what stands in a record must not lead a module that runs as root out of its cgroups", Do: s.paths},
	}
}

func (s *suite) empty(t kit.T) {
	i := s.start(t)
	for _, record := range []*isolatorv1.ContainerRecord{nil, {}, {Container: &containerv1.Container{}}} {
		i.tolerate(t, "Prepare without a container", func(ctx context.Context) error {
			_, err := i.Prepare(ctx, &isolatorv1.PrepareRequest{Container: record.GetContainer()})
			return err
		})
		if i.Wants("isolate") {
			i.tolerate(t, "Isolate without a record", func(ctx context.Context) error {
				_, err := i.Isolate(ctx, &isolatorv1.IsolateRequest{Record: record})
				return err
			})
		}
		if i.Wants("update") {
			i.tolerate(t, "Update without a record", func(ctx context.Context) error {
				_, err := i.Update(ctx, &isolatorv1.UpdateRequest{Record: record})
				return err
			})
		}
		if i.Wants("validate") {
			i.tolerate(t, "Validate of nothing", func(ctx context.Context) error {
				_, err := i.Validate(ctx, &isolatorv1.ValidateRequest{Container: record.GetContainer()})
				return err
			})
		}
		if record != nil {
			i.measure(t, record)
		}
		i.tolerate(t, "Cleanup without a record", func(ctx context.Context) error {
			_, err := i.Cleanup(ctx, &isolatorv1.CleanupRequest{Record: record})
			return err
		})
	}
	i.recover(t, &isolatorv1.ContainerRecord{}, &isolatorv1.ContainerRecord{Container: &containerv1.Container{}})
	i.Alive(t, "empty requests")
}

// hostiles are containers in which one thing is as no agent would send it.
func (i *instance) hostiles(t kit.T) map[string]*containerv1.Container {
	t.Helper()
	long := strings.Repeat("x", 1<<20)
	list := map[string]*containerv1.Container{}
	add := func(name string, change func(*containerv1.Container)) {
		c := i.container(t, "hostile")
		change(c)
		list[name] = c
	}
	for name, v := range map[string]float64{"NaN": math.NaN(), "infinite": math.Inf(1), "negative": -1, "huge": math.MaxFloat64, "tiny": math.SmallestNonzeroFloat64} {
		add(name+" resources", func(c *containerv1.Container) {
			c.Resources = []*mesosv1.Resource{number("cpus", v), number("mem", v), number("disk", v), number("gpus", v)}
		})
		add(name+" limits", func(c *containerv1.Container) { c.Limits = map[string]float64{"cpus": v, "mem": v} })
	}
	add("a resource of another type", func(c *containerv1.Container) {
		c.Resources = []*mesosv1.Resource{{Name: proto.String("cpus"), Type: mesosv1.Value_RANGES.Enum(), Ranges: &mesosv1.Value_Ranges{
			Range: []*mesosv1.Value_Range{{Begin: proto.Uint64(math.MaxUint64), End: proto.Uint64(0)}},
		}}}
	})
	add("10,000 resources", func(c *containerv1.Container) {
		for range 10_000 {
			c.Resources = append(c.Resources, number("cpus", 1e300))
		}
	})
	add("a long id", func(c *containerv1.Container) { c.Id, c.Cgroup = long, long })
	add("an id that climbs", func(c *containerv1.Container) { c.Id, c.Cgroup = "../../../etc", "../../../etc" })
	add("an id with line ends", func(c *containerv1.Container) { c.Id = "a\nb\r\x00c" })
	add("long names", func(c *containerv1.Container) {
		c.User, c.FrameworkId, c.ExecutorId, c.TaskId, c.ParentId = long, long, long, long, "p"
	})
	add("paths that climb", func(c *containerv1.Container) {
		c.Sandbox, c.SandboxInContainer, c.Rootfs = "/../../..", "relative", "../../.."
	})
	add("a large environment", func(c *containerv1.Container) {
		c.Environment = map[string]string{"": long, "A=B": "C", "X\x00Y": "Z", long: ""}
	})
	add("labels with no end", func(c *containerv1.Container) {
		c.Labels = map[string]string{}
		for n := range 10_000 {
			c.Labels[strings.Repeat("k", n%100)+string(rune('a'+n%26))] = "v"
		}
	})
	add("unknown enums", func(c *containerv1.Container) { c.Class = 77 })
	add("strange Linux settings", func(c *containerv1.Container) {
		c.ContainerInfo = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(),
			LinuxInfo: &mesosv1.LinuxInfo{
				ShmSize: proto.Uint32(math.MaxUint32), IpcMode: mesosv1.LinuxInfo_SHARE_PARENT.Enum(),
				Seccomp: &mesosv1.SeccompInfo{ProfileName: proto.String("../../../etc/passwd"), Unconfined: proto.Bool(true)},
				EffectiveCapabilities: &mesosv1.CapabilityInfo{Capabilities: []mesosv1.CapabilityInfo_Capability{
					mesosv1.CapabilityInfo_SYS_ADMIN, mesosv1.CapabilityInfo_SYS_ADMIN, mesosv1.CapabilityInfo_UNKNOWN,
				}},
			},
			RlimitInfo: &mesosv1.RLimitInfo{Rlimits: []*mesosv1.RLimitInfo_RLimit{
				{}, {Type: mesosv1.RLimitInfo_RLimit_RLMT_NOFILE.Enum(), Soft: proto.Uint64(math.MaxUint64), Hard: proto.Uint64(0)},
			}},
		}
	})
	add("no command", func(c *containerv1.Container) { c.Command = nil })
	return list
}

func (s *suite) hostile(t kit.T) {
	i := s.start(t)
	for name, c := range i.hostiles(t) {
		ctx, cancel := call(t)
		r, err := i.Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: i.op(), Container: c, Granted: []string{"everything"}})
		cancel()
		if !refused(err) {
			t.Errorf("Prepare with %s: %v, want an answer or a refusal%s", name, err, i.Words())
		}
		for _, wrong := range isolator.CheckPrepare(i.Desc, r) {
			t.Errorf("Prepare with %s: %s", name, wrong)
		}
		record := &isolatorv1.ContainerRecord{Container: c, State: r.GetState(), StateVersion: r.GetStateVersion()}
		if i.Wants("update") {
			ctx, cancel := call(t)
			r, err := i.Update(ctx, &isolatorv1.UpdateRequest{OperationId: i.op(), Record: record})
			cancel()
			if !refused(err) {
				t.Errorf("Update with %s: %v, want an answer or a refusal", name, err)
			}
			for _, wrong := range isolator.CheckUpdate(i.Desc, r) {
				t.Errorf("Update with %s: %s", name, wrong)
			}
		}
		i.measure(t, record)
		i.tolerate(t, "Cleanup with "+name, func(ctx context.Context) error {
			_, err := i.Cleanup(ctx, &isolatorv1.CleanupRequest{OperationId: i.op(), Record: record, Reason: isolatorv1.CleanupRequest_LAUNCH_FAILED})
			return err
		})
		i.Alive(t, "a container with "+name)
	}
	i.cleanup(t, unknown("hostile"), isolatorv1.CleanupRequest_LAUNCH_FAILED)
}

func (s *suite) paths(t kit.T) {
	i := s.start(t)
	for name, cgroups := range map[string]map[string]string{
		"relative": {"memory": "etc", "cpu": "."}, "climbing": {"memory": i.machine.Node.GetWorkDir() + "/../../../etc", "": "/proc/self/../../etc"},
		"a file": {"memory": "/etc/passwd", "pids": "/etc/passwd"}, "long": {"memory": "/" + strings.Repeat("a/", 100_000)},
		"with NUL": {"memory": "/sys\x00/fs"}, "of no controller": {"nonsense": "/"},
	} {
		record := &isolatorv1.ContainerRecord{Container: i.container(t, "paths"), Pid: -1, Cgroups: cgroups}
		if i.Wants("isolate") {
			i.tolerate(t, "Isolate with cgroup paths that are "+name, func(ctx context.Context) error {
				_, err := i.Isolate(ctx, &isolatorv1.IsolateRequest{OperationId: i.op(), Record: record})
				return err
			})
		}
		i.measure(t, record)
		i.tolerate(t, "Cleanup with cgroup paths that are "+name, func(ctx context.Context) error {
			_, err := i.Cleanup(ctx, &isolatorv1.CleanupRequest{OperationId: i.op(), Record: record})
			return err
		})
		i.Alive(t, "cgroup paths that are "+name)
	}
}
