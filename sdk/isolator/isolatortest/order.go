package isolatortest

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/kit"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// orderCases are about calls that come twice, too early, too late, or are cut off.
func (s *suite) orderCases() []kit.Case {
	return []kit.Case{
		{Level: kit.Full, Name: "SameOperationTwiceGivesTheSame", Why: "an agent that lost an answer asks again with the same operation id", Do: s.twice},
		{Level: kit.Full, Name: "CleanupTwiceSucceeds", Why: "an agent that died before it wrote the success down asks again", Do: s.cleanupTwice},
		{Level: kit.Full, Name: "WrongOrderIsRefusedOrDone", Why: "after crashes calls come in orders that nobody planned", Do: s.wrongOrder},
		{Level: kit.Full, Name: "SameIdAgainAfterCleanupIsNew", Why: "a container's id may be used again, with a higher generation", Do: s.again},
		{Level: kit.Full, Name: "CleanupAfterACutOffPrepareSucceeds", Why: "a Prepare that missed its deadline may have done anything from nothing to all", Do: s.cutOff},
	}
}

func (s *suite) twice(t kit.T) {
	i := s.start(t)
	request := &isolatorv1.PrepareRequest{OperationId: "prepare-1", Container: i.container(t, "one"), Granted: i.Desc.GetPowers()}
	var first *isolatorv1.PrepareResponse
	for n := range 2 {
		ctx, cancel := call(t)
		r, err := i.Prepare(ctx, request)
		cancel()
		if err != nil {
			t.Fatalf("Prepare, time %d: %v%s", n+1, err, i.Words())
		}
		if n == 0 {
			first = r
		} else if !proto.Equal(first, r) {
			t.Errorf("Prepare with the same operation id = %v, the first time it was %v", r, first)
		}
	}
	i.suite.note(request.GetContainer().GetId(), first.GetProposal())
	record := &isolatorv1.ContainerRecord{Container: request.Container, State: first.GetState(), StateVersion: first.GetStateVersion()}
	i.hold(t, record)
	for n := range 2 {
		ctx, cancel := call(t)
		if i.Wants("isolate") {
			if _, err := i.Isolate(ctx, &isolatorv1.IsolateRequest{OperationId: "isolate-1", Record: record}); err != nil {
				t.Errorf("Isolate, time %d: %v", n+1, err)
			}
		}
		cancel()
	}
	if i.Wants("update") {
		record.Container = proto.Clone(record.Container).(*containerv1.Container)
		record.Container.Resources[0] = number("cpus", 1)
		var before *isolatorv1.UpdateResponse
		for n := range 2 {
			ctx, cancel := call(t)
			r, err := i.Update(ctx, &isolatorv1.UpdateRequest{OperationId: "update-1", Record: record})
			cancel()
			if err != nil {
				t.Fatalf("Update, time %d: %v%s", n+1, err, i.Words())
			}
			if n == 0 {
				before = r
			} else if !proto.Equal(before, r) {
				t.Errorf("Update with the same operation id = %v, the first time it was %v", r, before)
			}
		}
	}
	i.end(t, record)
	i.cleanup(t, record, isolatorv1.CleanupRequest_ENDED)
}

func (s *suite) cleanupTwice(t kit.T) {
	i := s.start(t)
	r := i.launch(t, "one")
	i.end(t, r)
	for range 2 {
		ctx, cancel := call(t)
		if _, err := i.Cleanup(ctx, &isolatorv1.CleanupRequest{OperationId: "cleanup-1", Record: r, Reason: isolatorv1.CleanupRequest_ENDED}); err != nil {
			t.Errorf("Cleanup with the same operation id: %v%s", err, i.Words())
		}
		cancel()
	}
	i.cleanup(t, r, isolatorv1.CleanupRequest_ENDED) // and with another
}

// tolerate makes a call that may be refused but must not break anything.
func (i *instance) tolerate(t kit.T, what string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := call(t)
	defer cancel()
	if err := f(ctx); !refused(err) {
		t.Errorf("%s: %v, want success, INVALID_ARGUMENT, FAILED_PRECONDITION, RESOURCE_EXHAUSTED or NOT_FOUND%s", what, err, i.Words())
	}
}

func (s *suite) wrongOrder(t kit.T) {
	i := s.start(t)
	record := &isolatorv1.ContainerRecord{Container: i.container(t, "one")}
	i.cleanup(t, record, isolatorv1.CleanupRequest_LAUNCH_FAILED)
	i.hold(t, record)
	after := func(when string) {
		if i.Wants("isolate") {
			i.tolerate(t, "Isolate "+when, func(ctx context.Context) error {
				_, err := i.Isolate(ctx, &isolatorv1.IsolateRequest{OperationId: i.op(), Record: record})
				return err
			})
		}
		if i.Wants("update") {
			i.tolerate(t, "Update "+when, func(ctx context.Context) error {
				_, err := i.Update(ctx, &isolatorv1.UpdateRequest{OperationId: i.op(), Record: record})
				return err
			})
		}
		i.measure(t, record)
	}
	after("before Prepare")
	prepared := i.prepare(t, record.GetContainer())
	record.State, record.StateVersion = prepared.GetState(), prepared.GetStateVersion()
	after("after Prepare")
	i.end(t, record)
	i.cleanup(t, record, isolatorv1.CleanupRequest_ENDED)
	after("after Cleanup")
	i.cleanup(t, record, isolatorv1.CleanupRequest_ENDED)
	// A container that never got a process, as after a launch that failed in between.
	none := &isolatorv1.ContainerRecord{Container: i.container(t, "two")}
	if i.Wants("isolate") {
		i.tolerate(t, "Isolate without pid and cgroups", func(ctx context.Context) error {
			_, err := i.Isolate(ctx, &isolatorv1.IsolateRequest{OperationId: i.op(), Record: none})
			return err
		})
	}
	i.cleanup(t, none, isolatorv1.CleanupRequest_LAUNCH_FAILED)
	i.Alive(t, "calls in the wrong order")
}

func (s *suite) again(t kit.T) {
	i := s.start(t)
	first := i.prepare(t, i.container(t, "one"))
	i.cleanup(t, first, isolatorv1.CleanupRequest_LAUNCH_FAILED)
	c := i.container(t, "one")
	c.Generation = 2
	second := i.prepare(t, c)
	i.hold(t, second)
	i.isolate(t, second)
	i.measure(t, second)
	i.end(t, second)
	i.cleanup(t, second, isolatorv1.CleanupRequest_ENDED)
}

func (s *suite) cutOff(t kit.T) {
	i := s.start(t)
	check := kit.Traces(t, i.Module, i.machine)
	for _, limit := range []time.Duration{0, 100 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond,
		20 * time.Millisecond, 30 * time.Millisecond, 40 * time.Millisecond, 50 * time.Millisecond} {
		c := i.container(t, "cut-"+limit.String())
		c.Id, c.Cgroup = "cut", "cut"
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		_, _ = i.Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: i.op(), Container: c, Granted: i.Desc.GetPowers()})
		cancel()
		// The agent has no state of a Prepare without an answer.
		i.cleanup(t, &isolatorv1.ContainerRecord{Container: c}, isolatorv1.CleanupRequest_LAUNCH_FAILED)
	}
	i.Alive(t, "cut off calls")
	check("after calls that were cut off")
}
