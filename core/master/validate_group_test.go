package master

import (
	"strings"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

func TestTaskGroupsKeepMesossRulesOfCgroupsAndNetworks(t *testing.T) {
	type change = func(*mesosv1.ExecutorInfo, []*mesosv1.TaskInfo)
	cgroups := func(share bool) *mesosv1.ContainerInfo {
		return &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: &mesosv1.LinuxInfo{ShareCgroups: &share}}
	}
	network := func(name string) *mesosv1.ContainerInfo {
		n := &mesosv1.NetworkInfo{}
		if name != "" {
			n.Name = &name
		}
		return &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), NetworkInfos: []*mesosv1.NetworkInfo{n}}
	}
	limits := map[string]*mesosv1.Value_Scalar{"cpus": {Value: ptr(2.0)}}
	for name, x := range map[string]struct {
		change change
		want   string // empty: it runs
	}{
		"plain":                {func(*mesosv1.ExecutorInfo, []*mesosv1.TaskInfo) {}, ""},
		"executor that shares": {func(e *mesosv1.ExecutorInfo, _ []*mesosv1.TaskInfo) { e.Container = cgroups(true) }, "must not be set to 'true' for an executor"},
		"one apart": {func(_ *mesosv1.ExecutorInfo, ts []*mesosv1.TaskInfo) {
			ts[1].Container = cgroups(false)
		}, "must be the same for all tasks"},
		"limits of a task that shares": {func(_ *mesosv1.ExecutorInfo, ts []*mesosv1.TaskInfo) { ts[0].Limits = limits }, "resource limits need"},
		"limits of tasks apart": {func(_ *mesosv1.ExecutorInfo, ts []*mesosv1.TaskInfo) {
			ts[0].Container, ts[1].Container, ts[0].Limits = cgroups(false), cgroups(false), limits
		}, ""},
		"network without a name": {func(_ *mesosv1.ExecutorInfo, ts []*mesosv1.TaskInfo) { ts[0].Container = network("") }, "must name a CNI network"},
		"own network":            {func(_ *mesosv1.ExecutorInfo, ts []*mesosv1.TaskInfo) { ts[0].Container = network("net") }, ""},
		"check on an own network": {func(_ *mesosv1.ExecutorInfo, ts []*mesosv1.TaskInfo) {
			ts[0].Container = network("net")
			ts[0].Check = &mesosv1.CheckInfo{Tcp: &mesosv1.CheckInfo_Tcp{Port: ptr(uint32(1))}}
		}, "HTTP and TCP checks"},
		"health check on an own network": {func(_ *mesosv1.ExecutorInfo, ts []*mesosv1.TaskInfo) {
			ts[0].Container = network("net")
			ts[0].HealthCheck = &mesosv1.HealthCheck{Http: &mesosv1.HealthCheck_HTTPCheckInfo{Port: ptr(uint32(1))}}
		}, "HTTP and TCP health checks"},
		"docker container": {func(_ *mesosv1.ExecutorInfo, ts []*mesosv1.TaskInfo) {
			ts[0].Container = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_DOCKER.Enum()}
		}, "Docker ContainerInfo is not supported"},
		"executor of a task": {func(e *mesosv1.ExecutorInfo, ts []*mesosv1.TaskInfo) { ts[0].Executor = e }, "must not be set"},
		"executor without mem": {func(e *mesosv1.ExecutorInfo, _ []*mesosv1.TaskInfo) {
			e.Resources = resources.MustParse("cpus:0.1;disk:1").Resources()
		}, "Executor's mem"},
		"executor of no type": {func(e *mesosv1.ExecutorInfo, _ []*mesosv1.TaskInfo) { e.Type = nil }, "must be set"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
				c.agent("cpus:4;mem:1024;disk:100")
				f, events := c.framework(frameworkInfo())
				o := one(t, "offers", offers(events))
				e := &mesosv1.ExecutorInfo{Type: mesosv1.ExecutorInfo_DEFAULT.Enum(), ExecutorId: &mesosv1.ExecutorID{Value: ptr("e")},
					Resources: resources.MustParse("cpus:0.1;mem:32;disk:1").Resources()}
				tasks := []*mesosv1.TaskInfo{commandTask("t1", o, "cpus:0.1;mem:32"), commandTask("t2", o, "cpus:0.1;mem:32")}
				x.change(e, tasks)
				us := updates(f.accept([]*mesosv1.Offer{o}, nil, &mesosv1.Offer_Operation{
					Type:        mesosv1.Offer_Operation_LAUNCH_GROUP.Enum(),
					LaunchGroup: &mesosv1.Offer_Operation_LaunchGroup{Executor: e, TaskGroup: &mesosv1.TaskGroupInfo{Tasks: tasks}}}))
				if x.want == "" {
					if len(us) != 0 || len(c.m.s.frameworks[f.id].tasks) != 2 {
						t.Errorf("updates = %v, want none and two tasks", us)
					}
					return
				}
				if len(us) != 2 {
					t.Fatalf("updates = %v, want an error for each task", us)
				}
				for _, u := range us {
					if u.GetReason() != mesosv1.TaskStatus_REASON_TASK_GROUP_INVALID || !strings.Contains(u.GetMessage(), x.want) {
						t.Errorf("update = %v, want REASON_TASK_GROUP_INVALID with %q", u, x.want)
					}
				}
			})
		})
	}
}

func TestLaterGroupsOfAnExecutorShareAsTheFirst(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024;disk:100")
		f, events := c.framework(frameworkInfo())
		o := one(t, "offers", offers(events))
		group := func(id string, share *bool) *mesosv1.Offer_Operation {
			task := commandTask(id, o, "cpus:0.1;mem:32")
			if share != nil {
				task.Container = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: &mesosv1.LinuxInfo{ShareCgroups: share}}
			}
			return &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_LAUNCH_GROUP.Enum(), LaunchGroup: &mesosv1.Offer_Operation_LaunchGroup{
				Executor: &mesosv1.ExecutorInfo{Type: mesosv1.ExecutorInfo_DEFAULT.Enum(), ExecutorId: &mesosv1.ExecutorID{Value: ptr("e")},
					Resources: resources.MustParse("cpus:0.1;mem:32;disk:1").Resources()},
				TaskGroup: &mesosv1.TaskGroupInfo{Tasks: []*mesosv1.TaskInfo{task}}}}
		}
		us := updates(f.accept([]*mesosv1.Offer{o}, nil, group("t1", ptr(false)), group("t2", nil), group("t3", ptr(false))))
		if u := one(t, "updates", us); u.GetTaskId().GetValue() != "t2" || !strings.Contains(u.GetMessage(), "must be the same") {
			t.Errorf("update = %v, want an error for t2", u)
		}
		alone := commandTask("t4", o, "cpus:0.1;mem:32")
		alone.Container = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: &mesosv1.LinuxInfo{ShareCgroups: ptr(false)}}
		c.pass(6e9)
		o = one(t, "offers", offers(f.stream.take()))
		alone.AgentId = o.AgentId
		if u := one(t, "updates", updates(f.launch(o, alone))); !strings.Contains(u.GetMessage(), "task group only") {
			t.Errorf("update = %v, want an error", u)
		}
	})
}
