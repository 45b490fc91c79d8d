package isolatortest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/isolator"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// launchCases are about the life of containers, one at a time and many.
func (s *suite) launchCases() []kit.Case {
	return []kit.Case{
		{Level: kit.Core, Name: "EveryDeclaredCallAnswers", Why: "the agent makes every call that Describe names, and a launch fails with the first that is missing", Do: s.everyCall},
		{Level: kit.Core, Name: "UndeclaredPowersAreNeverUsed", Why: "operators grant powers by what Describe says; the agent refuses answers beyond it", Do: s.powers},
		{Level: kit.Core, Name: "DryRunChangesNothing", Why: "a plan must not change what runs", Do: s.dryRunChangesNothing},
		{Level: kit.Core, Name: "CleanupOfUnknownContainerSucceeds", Why: "the agent repeats cleanups until they succeed, also after a launch that never reached the module", Do: s.cleanupUnknown},
		{Level: kit.Core, Name: "UnknownContainersAreNoErrorInUsageAndStatus", Why: "containers end while they are asked for, and one must not cost the others their figures", Do: s.measureUnknown},
		{Level: kit.Core, Name: "CancelledCallsStopWorking", Why: "an agent that gave up has sent Cleanup already; work that goes on comes after it", Do: s.cancelled},
		{Level: kit.Core, Name: "FiftyLaunchesLeaveNothingBehind", Why: "an agent launches millions; whatever is lost each time ends the machine", Do: s.leaks},
		{Level: kit.Full, Name: "TwoContainersAtOnce", Why: "launches of different containers run at the same time", Do: s.twoAtOnce},
		{Level: kit.Full, Name: "UsageAnswersForManyAtOnce", Why: "the agent asks for all containers in one call each second", Do: s.manyUsages},
	}
}

func (s *suite) everyCall(t kit.T) {
	i := s.start(t)
	r := i.launch(t, "one")
	if i.Wants("validate") {
		ctx, cancel := call(t)
		defer cancel()
		if _, err := i.Validate(ctx, &isolatorv1.ValidateRequest{Container: r.GetContainer(), Spec: &containerv1.Spec{Merged: &containerv1.Proposal{}}}); !refused(err) {
			t.Errorf("Validate of a plain container: %v", err)
		}
	}
	i.measure(t, r)
	i.update(t, r)
	i.measure(t, r)
	i.end(t, r)
	i.measure(t, r) // asked before the agent decides how a task ended
	i.cleanup(t, r, isolatorv1.CleanupRequest_ENDED)
	i.PrintedNothing(t)
}

// variants are containers as frameworks make them. A module may refuse those that ask for what it does not allow.
func (i *instance) variants(t kit.T) map[string]*containerv1.Container {
	t.Helper()
	mesos := func(c *mesosv1.ContainerInfo) *mesosv1.ContainerInfo {
		c.Type = mesosv1.ContainerInfo_MESOS.Enum()
		return c
	}
	list := map[string]*containerv1.Container{}
	add := func(name string, change func(*containerv1.Container)) {
		c := i.container(t, name)
		change(c)
		list[name] = c
	}
	add("limits", func(c *containerv1.Container) { c.Limits = map[string]float64{"cpus": 2, "mem": 256} })
	add("no-resources", func(c *containerv1.Container) { c.Resources = nil })
	add("revocable", func(c *containerv1.Container) {
		for _, r := range c.Resources {
			r.Revocable = &mesosv1.Resource_RevocableInfo{}
		}
	})
	add("rlimits", func(c *containerv1.Container) {
		c.ContainerInfo = mesos(&mesosv1.ContainerInfo{RlimitInfo: &mesosv1.RLimitInfo{Rlimits: []*mesosv1.RLimitInfo_RLimit{
			{Type: mesosv1.RLimitInfo_RLimit_RLMT_NOFILE.Enum(), Soft: proto.Uint64(100), Hard: proto.Uint64(200)},
		}}})
	})
	add("linux", func(c *containerv1.Container) {
		c.ContainerInfo = mesos(&mesosv1.ContainerInfo{LinuxInfo: &mesosv1.LinuxInfo{
			IpcMode: mesosv1.LinuxInfo_PRIVATE.Enum(), ShmSize: proto.Uint32(16), SharePidNamespace: proto.Bool(true),
		}})
	})
	add("rootfs", func(c *containerv1.Container) {
		c.Rootfs, c.SandboxInContainer = c.Sandbox+"/rootfs", "/mnt/mesos/sandbox"
		c.ImageConfig = &containerv1.ImageConfig{Entrypoint: []string{"/bin/sh"}, Environment: []string{"A=B"}, WorkingDirectory: "/"}
	})
	if i.Desc.GetNesting() {
		add("parent.child", func(c *containerv1.Container) { c.ParentId, c.TaskId = "parent", "" })
		add("parent.debug", func(c *containerv1.Container) {
			c.ParentId, c.Class, c.Resources = "parent", containerv1.Container_DEBUG, nil
		})
	}
	if i.Desc.GetStandalone() {
		add("standalone", func(c *containerv1.Container) {
			c.Standalone, c.FrameworkId, c.ExecutorId, c.TaskId = true, "", "", ""
		})
	}
	return list
}

func (s *suite) powers(t kit.T) {
	i := s.start(t)
	for name, c := range i.variants(t) {
		ctx, cancel := call(t)
		r, err := i.Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: i.op(), Container: c, Granted: i.Desc.GetPowers()})
		cancel()
		if !refused(err) {
			t.Errorf("Prepare of the container %q: %v, want an answer or a refusal%s", name, err, i.Words())
		}
		for _, wrong := range isolator.CheckPrepare(i.Desc, r) {
			t.Errorf("Prepare of the container %q: %s", name, wrong)
		}
		i.cleanup(t, &isolatorv1.ContainerRecord{Container: c, State: r.GetState(), StateVersion: r.GetStateVersion()}, isolatorv1.CleanupRequest_LAUNCH_FAILED)
	}
}

func (s *suite) dryRunChangesNothing(t kit.T) {
	i := s.start(t)
	ask := func() *isolatorv1.PrepareResponse {
		ctx, cancel := call(t)
		defer cancel()
		r, err := i.Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: "same", Container: i.container(t, "one"), Granted: i.Desc.GetPowers()})
		if err != nil {
			t.Fatalf("Prepare: %v%s", err, i.Words())
		}
		return r
	}
	before := ask()
	i.cleanup(t, unknown("one"), isolatorv1.CleanupRequest_LAUNCH_FAILED)
	if n := s.Flips(t, i.Module, i.machine); n == 0 {
		t.Skipf("the schema has nothing that can be set differently without knowing more")
	}
	if after := ask(); !proto.Equal(before.GetProposal(), after.GetProposal()) {
		t.Errorf("Prepare after Configure with dry_run proposed %v, before it was %v; want the same", after.GetProposal(), before.GetProposal())
	}
	i.cleanup(t, unknown("one"), isolatorv1.CleanupRequest_LAUNCH_FAILED)
}

func (s *suite) cleanupUnknown(t kit.T) {
	i := s.start(t)
	for _, why := range []isolatorv1.CleanupRequest_Reason{
		isolatorv1.CleanupRequest_ENDED, isolatorv1.CleanupRequest_LAUNCH_FAILED, isolatorv1.CleanupRequest_ORPHAN,
		isolatorv1.CleanupRequest_REASON_UNSPECIFIED,
	} {
		i.cleanup(t, unknown("never-seen"), why)
		i.cleanup(t, unknown("parent.never-seen"), why)
	}
	gone := unknown("gone")
	gone.Pid, gone.Cgroups = 1<<22-1, i.machine.Cgroups("gone")
	i.cleanup(t, gone, isolatorv1.CleanupRequest_ORPHAN)
}

func (s *suite) measureUnknown(t kit.T) {
	i := s.start(t)
	r := i.launch(t, "known")
	gone := unknown("gone")
	gone.Pid, gone.Cgroups = 1<<22-1, i.machine.Cgroups("gone")
	i.measure(t, unknown("never-seen"), r, gone)
	i.end(t, r)
	i.measure(t, r)
	i.cleanup(t, r, isolatorv1.CleanupRequest_ENDED)
	i.measure(t)
}

func (s *suite) cancelled(t kit.T) {
	i := s.start(t)
	var wg sync.WaitGroup
	records := make([]*isolatorv1.ContainerRecord, 20)
	for n := range records {
		c := i.container(t, fmt.Sprintf("cut-%d", n))
		records[n] = &isolatorv1.ContainerRecord{Container: c}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n)*200*time.Microsecond)
			defer cancel()
			_, _ = i.Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: fmt.Sprintf("cut-%d", n), Container: c, Granted: i.Desc.GetPowers()})
		})
	}
	wg.Wait()
	for _, r := range records {
		i.cleanup(t, r, isolatorv1.CleanupRequest_LAUNCH_FAILED)
	}
	// Drain waits for the calls in flight: one that never ends shows here.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := i.Control.Drain(ctx, &modulev1.DrainRequest{DeadlineMs: 2000}); err != nil {
		t.Errorf("Drain after cancelled calls: %v, want it to find none in flight", err)
	}
}

// launches is how many the contract's leak check makes.
const launches = 50

func (s *suite) leaks(t kit.T) {
	i := s.start(t)
	for n := range 3 { // what is made once, at first use, is no leak
		s.wholeLife(t, i, fmt.Sprintf("first-%d", n))
	}
	check := kit.Traces(t, i.Module, i.machine)
	begin := time.Now()
	for n := range launches {
		s.wholeLife(t, i, fmt.Sprintf("leak-%d", n))
	}
	check(fmt.Sprintf("after %d launches", launches))
	kit.Measure(t, "a launch's calls", time.Since(begin).Seconds()*1000/launches, "ms")
}

// wholeLife takes a container from Prepare to Cleanup.
func (s *suite) wholeLife(t kit.T, i *instance, id string) {
	t.Helper()
	r := i.launch(t, id)
	i.measure(t, r)
	i.update(t, r)
	i.end(t, r)
	i.cleanup(t, r, isolatorv1.CleanupRequest_ENDED)
}

func (s *suite) twoAtOnce(t kit.T) {
	i := s.start(t)
	a, b := i.container(t, "a"), i.container(t, "b")
	b.Resources = []*mesosv1.Resource{number("cpus", 2), number("mem", 512)}
	ask := func(c *containerv1.Container) (*isolatorv1.PrepareResponse, error) {
		ctx, cancel := call(t)
		defer cancel()
		return i.Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: fmt.Sprintf("prepare-%s-%d", c.GetId(), c.GetGeneration()), Container: c, Granted: i.Desc.GetPowers()})
	}
	alone := map[string]*isolatorv1.PrepareResponse{}
	for _, c := range []*containerv1.Container{a, b} {
		r, err := ask(c)
		if err != nil {
			t.Fatalf("Prepare of container %s: %v%s", c.GetId(), err, i.Words())
		}
		alone[c.GetId()] = r
		i.cleanup(t, &isolatorv1.ContainerRecord{Container: c, State: r.GetState(), StateVersion: r.GetStateVersion()}, isolatorv1.CleanupRequest_LAUNCH_FAILED)
	}
	other := s.startOn(t, i.machine)
	other.recover(t)
	i = other
	var wg sync.WaitGroup
	for _, c := range []*containerv1.Container{a, b} {
		wg.Go(func() {
			r, err := ask(c)
			if err != nil {
				t.Errorf("Prepare of container %s beside another: %v", c.GetId(), err)
			} else if !proto.Equal(r.GetProposal(), alone[c.GetId()].GetProposal()) {
				t.Errorf("Prepare of container %s beside another proposed %v, alone %v", c.GetId(), r.GetProposal(), alone[c.GetId()].GetProposal())
			}
		})
	}
	wg.Wait()
	i.cleanup(t, unknown("a"), isolatorv1.CleanupRequest_LAUNCH_FAILED)
	// The end of one is not the end of the other, and each is prepared again as if it were alone.
	for _, c := range []*containerv1.Container{a, b} {
		i.cleanup(t, unknown(c.GetId()), isolatorv1.CleanupRequest_LAUNCH_FAILED)
		c.Generation++
		if r, err := ask(c); err != nil || !proto.Equal(r.GetProposal(), alone[c.GetId()].GetProposal()) {
			t.Errorf("Prepare of %s again, beside the other = %v, %v; want what it was alone: %v", c.GetId(), r.GetProposal(), err, alone[c.GetId()].GetProposal())
		}
	}
	i.cleanup(t, unknown("a"), isolatorv1.CleanupRequest_LAUNCH_FAILED)
	i.cleanup(t, unknown("b"), isolatorv1.CleanupRequest_LAUNCH_FAILED)
}

func (s *suite) manyUsages(t kit.T) {
	i := s.start(t)
	if !i.Wants("usage") && !i.Wants("status") {
		t.Skipf("the module wants neither usage nor status")
	}
	var live, records []*isolatorv1.ContainerRecord
	for n := range 10 {
		r := i.prepare(t, i.container(t, fmt.Sprintf("used-%d", n)))
		i.hold(t, r)
		live = append(live, r)
		if !i.isolateIfRoom(t, r) {
			break
		}
	}
	if len(live) < 3 { // the last found no room
		t.Fatalf("Isolate of a second container: there is no room for it%s", i.Words())
	}
	records = append(records, live...)
	for n := range 1000 {
		r := unknown(fmt.Sprintf("gone-%d", n))
		r.Cgroups = i.machine.Cgroups(r.GetContainer().GetId())
		records = append(records, r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // the agent's deadline
	defer cancel()
	if i.Wants("usage") {
		begin := time.Now()
		if _, err := i.Usage(ctx, &isolatorv1.UsageRequest{Records: records}); status.Code(err) != codes.OK {
			t.Errorf("Usage of %d containers: %v", len(records), err)
		}
		kit.Measure(t, "usage of 1010 containers", time.Since(begin).Seconds()*1000, "ms")
	}
	i.measure(t, records...)
	for _, r := range live {
		i.end(t, r)
		i.cleanup(t, r, isolatorv1.CleanupRequest_ENDED)
	}
}
