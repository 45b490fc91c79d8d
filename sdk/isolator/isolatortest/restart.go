package isolatortest

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/kit"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// restartCases are about modules that die, and what they are told then.
func (s *suite) restartCases() []kit.Case {
	return []kit.Case{
		{Level: kit.Core, Name: "RecoverOfNothingSucceeds", Why: "that is what an agent's first start tells", Do: s.recoverNothing},
		{Level: kit.Core, Name: "RestartThenRecoverThenCleanup", Why: "modules are restarted under running tasks, and still owe their cleanups", Do: s.restart},
		{Level: kit.Full, Name: "KilledBetweenAnyTwoCallsItGoesOn", Why: "a crash comes at any moment, and tasks must not notice", Do: s.killed},
		{Level: kit.Full, Name: "RecoverMayBeRepeated", Why: "it comes after each configuration and when an agent's connection broke", Do: s.recoverTwice},
		{Level: kit.Full, Name: "RecoverCleansNothingUp", Why: "orphans get a Cleanup of their own; what is taken away before may be in use", Do: s.recoverCleansNothing},
		{Level: kit.Full, Name: "RecoverTakesFiveThousandContainers", Why: "large machines have that many, and a restart must not stop them", Do: s.recoverMany},
		{Level: kit.Full, Name: "StateOfAnotherVersionIsNoCrash", Why: "after an upgrade and back a module sees state that it did not write", Do: s.foreignState},
	}
}

func (s *suite) recoverNothing(t kit.T) {
	i := s.startOn(t, kit.NewMachine(t))
	if unknown := i.recover(t); len(unknown) > 0 {
		t.Errorf("Recover of nothing does not know %q", unknown)
	}
	i.Alive(t, "Recover of nothing")
}

// reborn kills an instance and starts another on the same machine, which is told what lives.
func (s *suite) reborn(t kit.T, i *instance, records ...*isolatorv1.ContainerRecord) *instance {
	t.Helper()
	i.Kill()
	next := s.startOn(t, i.machine)
	if unknown := next.recover(t, records...); len(unknown) > 0 {
		t.Errorf("Recover does not know %q although it was given their state back", unknown)
	}
	return next
}

func (s *suite) restart(t kit.T) {
	i := s.start(t)
	live, ended := i.launch(t, "live"), i.launch(t, "ended")
	i.end(t, ended)
	orphan := proto.Clone(ended).(*isolatorv1.ContainerRecord)
	orphan.Orphan = true
	i = s.reborn(t, i, live, orphan)
	i.measure(t, live)
	i.update(t, live)
	i.cleanup(t, orphan, isolatorv1.CleanupRequest_ORPHAN)
	i.end(t, live)
	i.cleanup(t, live, isolatorv1.CleanupRequest_ENDED)
}

func (s *suite) killed(t kit.T) {
	machine := kit.NewMachine(t)
	steps := []string{"Prepare", "the process", "Isolate", "Usage", "Update", "the end"}
	var check func(string)
	for cut := range steps {
		i := s.startOn(t, machine)
		i.recover(t)
		id := fmt.Sprintf("cut-%d", cut)
		var r *isolatorv1.ContainerRecord
		for n, step := range steps {
			switch step {
			case "Prepare":
				r = i.prepare(t, i.container(t, id))
			case "the process":
				i.hold(t, r)
			case "Isolate":
				i.isolate(t, r)
			case "Usage":
				i.measure(t, r)
			case "Update":
				i.update(t, r)
			case "the end":
				i.end(t, r)
			}
			if n == cut {
				i = s.reborn(t, i, r)
				check = kit.Traces(t, i.Module, i.machine)
			}
		}
		i.cleanup(t, r, isolatorv1.CleanupRequest_ENDED)
		check("killed after " + steps[cut] + " and cleaned up,")
		if t.Failed() {
			t.Fatalf("killed after %s", steps[cut])
		}
		i.Kill()
	}
}

func (s *suite) recoverTwice(t kit.T) {
	i := s.start(t)
	r := i.launch(t, "live")
	for range 3 {
		if unknown := i.recover(t, r); len(unknown) > 0 {
			t.Errorf("Recover again does not know %q", unknown)
		}
	}
	i.measure(t, r)
	i.end(t, r)
	i.cleanup(t, r, isolatorv1.CleanupRequest_ENDED)
}

func (s *suite) recoverCleansNothing(t kit.T) {
	i := s.start(t)
	r := i.launch(t, "orphan")
	orphan := proto.Clone(r).(*isolatorv1.ContainerRecord)
	orphan.Orphan = true
	cgroups := i.machine.Count()
	i = s.reborn(t, i, orphan)
	if n := i.machine.Count(); n != cgroups {
		t.Errorf("after Recover of an orphan there are %d cgroups, were %d; want them untouched", n, cgroups)
	}
	i.end(t, orphan)
	i.cleanup(t, orphan, isolatorv1.CleanupRequest_ORPHAN)
}

// many is how many containers a large machine may have.
const many = 5000

func (s *suite) recoverMany(t kit.T) {
	i := s.start(t)
	first := i.launch(t, "live-0")
	records := []*isolatorv1.ContainerRecord{first}
	for n := 1; n < many; n++ {
		r := &isolatorv1.ContainerRecord{Container: i.container(t, fmt.Sprintf("live-%d", n)), Orphan: n%10 == 0}
		if n%2 == 0 { // the others died before they had a cgroup, or theirs has gone meanwhile
			r.Cgroups, r.Pid = i.machine.Cgroups(r.GetContainer().GetId()), 1<<22-1
		}
		records = append(records, r)
	}
	i.Kill()
	next := s.startOn(t, i.machine)
	begin := time.Now()
	unknown := next.recover(t, records...)
	kit.Measure(t, "recover of 5000 containers", time.Since(begin).Seconds()*1000, "ms")
	if slices.Contains(unknown, first.GetContainer().GetId()) {
		t.Errorf("Recover does not know %q although it was given its state back", first.GetContainer().GetId())
	}
	for _, r := range records[1:100] {
		next.cleanup(t, r, isolatorv1.CleanupRequest_ORPHAN)
	}
	next.measure(t, first)
	next.end(t, first)
	next.cleanup(t, first, isolatorv1.CleanupRequest_ENDED)
}

func (s *suite) foreignState(t kit.T) {
	i := s.start(t)
	r := i.launch(t, "live")
	for _, state := range []struct {
		data    []byte
		version uint32
	}{{nil, 0}, {[]byte("{"), 1}, {slices.Repeat([]byte{0xff}, 64<<10), i.Desc.GetMaxStateVersion()}, {r.GetState(), 1 << 30}} {
		strange := proto.Clone(r).(*isolatorv1.ContainerRecord)
		strange.State, strange.StateVersion = state.data, state.version
		next := s.startOn(t, i.machine)
		next.recover(t, strange) // it may say that it does not know it
		next.measure(t, strange)
		next.Alive(t, "state that it cannot read")
		next.Kill()
	}
	i.end(t, r)
	i.cleanup(t, r, isolatorv1.CleanupRequest_ENDED)
}
