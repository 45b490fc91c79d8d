package allocator

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
	"golang.org/x/sys/unix"
)

// meter counts the processor time of this thread, which is what an allocation takes on a machine
// that has nothing else to do. The time that is usually reported grows with the load.
type meter struct{ sum time.Duration }

func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

func (m *meter) measure(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begun := threadTime()
	f()
	m.sum += threadTime() - begun
}

func (m *meter) allocate(a *Allocator) (offers []Offer) {
	m.measure(func() { offers = a.Allocate(epoch) })
	return offers
}

func (m *meter) report(b *testing.B) {
	b.ReportMetric(float64(m.sum.Nanoseconds())/float64(b.N)/1e6, "cpu-ms/op")
}

func ptr[T any](v T) *T { return &v }

func frameworkInfo(roles []string, capabilities ...mesosv1.FrameworkInfo_Capability_Type) *mesosv1.FrameworkInfo {
	info := &mesosv1.FrameworkInfo{User: ptr("u"), Name: ptr("n"), Roles: roles}
	for _, c := range append(capabilities, mesosv1.FrameworkInfo_Capability_MULTI_ROLE) {
		info.Capabilities = append(info.Capabilities, &mesosv1.FrameworkInfo_Capability{Type: c.Enum()})
	}
	return info
}

var agentCapabilities = []*mesosv1.AgentInfo_Capability{
	{Type: mesosv1.AgentInfo_Capability_MULTI_ROLE.Enum()},
	{Type: mesosv1.AgentInfo_Capability_HIERARCHICAL_ROLE.Enum()},
	{Type: mesosv1.AgentInfo_Capability_RESERVATION_REFINEMENT.Enum()},
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// newCluster has agents and frameworks in one role, and on every agent something is used: the
// shape of Mesos's benchmarks AddAndUpdateSlave and DeclineOffers.
func newCluster(o Options, agents, frameworks int) *Allocator {
	a := New(o)
	for i := range frameworks {
		a.AddFramework(fmt.Sprintf("f%04d", i), frameworkInfo([]string{"role"}), nil, true)
	}
	total := resources.MustParse("cpus:24;mem:4096;disk:4096;ports:[31000-32000]")
	used := resources.MustParse("cpus:1;mem:128;disk:1024;ports:[31126-31510,31512-31623,31810-31852,31854-31964]").Allocate("role")
	for i := range agents {
		a.AddAgent(fmt.Sprintf("s%05d", i), &mesosv1.AgentInfo{Hostname: ptr("h")}, agentCapabilities, total,
			map[string]resources.Set{fmt.Sprintf("f%04d", i%frameworks): used})
	}
	return a
}

// allocateAll hands out every agent, takes all back with long refusals, and again.
func allocateAll(b *testing.B, o Options, agents, frameworks int) {
	a := newCluster(o, agents, frameworks)
	filters := &mesosv1.Filters{RefuseSeconds: ptr(1e6)}
	var m meter
	for b.Loop() {
		offers := m.allocate(a)
		if len(offers) != agents {
			b.Fatalf("%d offers, want one per agent", len(offers))
		}
		b.StopTimer()
		for _, o := range offers {
			a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, filters, epoch)
		}
		runtime.GC() // of what was not measured
		b.StartTimer()
	}
	m.report(b)
}

func BenchmarkAllocate1000x1000(b *testing.B)  { allocateAll(b, Options{}, 1000, 1000) }
func BenchmarkAllocate10000x1000(b *testing.B) { allocateAll(b, Options{}, 10000, 1000) }
func BenchmarkAllocate20000x2000(b *testing.B) { allocateAll(b, Options{}, 20000, 2000) }

func BenchmarkAllocate10000x1000Random(b *testing.B) {
	allocateAll(b, Options{RoleSorter: Random, FrameworkSorter: Random}, 10000, 1000)
}

// BenchmarkAllocate10000x100AllRefused looks at every agent when every framework has refused it.
func BenchmarkAllocate10000x100AllRefused(b *testing.B) {
	const agents, frameworks = 10000, 100
	a := newCluster(Options{KeepPlace: true}, agents, frameworks)
	for range frameworks {
		for _, o := range a.Allocate(epoch) {
			a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, &mesosv1.Filters{RefuseSeconds: ptr(1e6)}, epoch)
		}
	}
	var m meter
	for b.Loop() {
		b.StopTimer()
		for _, ag := range a.agentList {
			a.refresh(ag)
		}
		b.StartTimer()
		if offers := m.allocate(a); len(offers) != 0 {
			b.Fatalf("%d offers, want none", len(offers))
		}
	}
	m.report(b)
}

// onePercent is a cycle in which resources came back on some of the agents.
func onePercent(b *testing.B, a *Allocator, some int) {
	offers := a.Allocate(epoch)
	var m meter
	for b.Loop() {
		b.StopTimer()
		for _, o := range offers[:some] {
			a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, nil, epoch)
		}
		b.StartTimer()
		again := m.allocate(a)
		if len(again) < some*9/10 { // with quotas it may be fewer agents' parts
			b.Fatalf("%d offers, want %d", len(again), some)
		}
		offers = append(offers[some:], again...)
	}
	m.report(b)
}

func BenchmarkAllocate10000x1000OnePercent(b *testing.B) {
	onePercent(b, newCluster(Options{}, 10000, 1000), 100)
}

func BenchmarkAllocate20000x2000OnePercent(b *testing.B) {
	onePercent(b, newCluster(Options{}, 20000, 2000), 200)
}

// The same number of agents as in one percent of 10,000, of fewer and of more: what it costs must
// not depend on those that did not change.
func BenchmarkAllocate1000x1000HundredDirty(b *testing.B) {
	onePercent(b, newCluster(Options{}, 1000, 1000), 100)
}

func BenchmarkAllocate40000x1000HundredDirty(b *testing.B) {
	onePercent(b, newCluster(Options{}, 40000, 1000), 100)
}

// With a guarantee that keeps back a part of every tenth agent, and a limit.
func BenchmarkAllocate10000x1000OnePercentWithQuota(b *testing.B) {
	a := newCluster(Options{}, 10000, 1000)
	a.SetQuota("kept", resources.Quantities{"cpus": 23000}, nil)
	a.SetQuota("limited", nil, resources.Quantities{"cpus": 10})
	a.AddFramework("limited", frameworkInfo([]string{"limited"}), nil, true)
	onePercent(b, a, 100)
}

// largeAndSmallQuota is Mesos's benchmark of that name: 2500 roles with a quota of half an agent,
// 500 with one of two agents, one framework each, and 3000 agents.
func largeAndSmallQuota(sorter string) *Allocator {
	a := New(Options{RoleSorter: sorter, FrameworkSorter: sorter})
	small := resources.Quantities{"cpus": 1, "mem": 1024, "disk": 1024}
	large := resources.Quantities{"cpus": 4, "mem": 4096, "disk": 4096}
	for i := range 3000 {
		role, q := fmt.Sprintf("small%04d", i), small
		if i >= 2500 {
			role, q = fmt.Sprintf("large%04d", i), large
		}
		a.SetQuota(role, q, q)
		a.AddFramework("f-"+role, frameworkInfo([]string{role}), nil, true)
	}
	for i := range 3000 {
		a.AddAgent(fmt.Sprintf("s%04d", i), &mesosv1.AgentInfo{Hostname: ptr("h")}, agentCapabilities,
			resources.MustParse("cpus:2;mem:2048;disk:2048"), nil)
	}
	return a
}

func BenchmarkAllocateLargeAndSmallQuota(b *testing.B) {
	for _, sorter := range []string{DRF, Random} {
		b.Run(sorter, func(b *testing.B) {
			var m meter
			for b.Loop() {
				b.StopTimer()
				a := largeAndSmallQuota(sorter)
				runtime.GC()
				b.StartTimer()
				if n := len(m.allocate(a)); n < 3500 {
					b.Fatalf("%d offers, want 3500 or more", n)
				}
			}
			m.report(b)
		})
	}
}

func BenchmarkAllocateLargeAndSmallQuotaNothing(b *testing.B) {
	for _, sorter := range []string{DRF, Random} {
		b.Run(sorter, func(b *testing.B) {
			a := largeAndSmallQuota(sorter)
			a.Allocate(epoch)
			var m meter
			for b.Loop() {
				b.StopTimer()
				a.all = true
				b.StartTimer()
				if n := len(m.allocate(a)); n != 0 {
					b.Fatalf("%d offers, want none", n)
				}
			}
			m.report(b)
		})
	}
}

// BenchmarkAllocateNonQuotaVsQuota is Mesos's benchmark of that name: two agents and two frameworks for each of 1000
// roles, with and without a quota of two whole agents.
func BenchmarkAllocateNonQuotaVsQuota(b *testing.B) {
	for _, quota := range []bool{false, true} {
		b.Run(fmt.Sprintf("quota=%v", quota), func(b *testing.B) {
			var m meter
			for b.Loop() {
				b.StopTimer()
				a := New(Options{})
				for i := range 1000 {
					role := fmt.Sprintf("role%04d", i)
					if quota {
						q := resources.Quantities{"cpus": 4, "mem": 4096, "disk": 4096}
						a.SetQuota(role, q, q)
					}
					for j := range 2 {
						a.AddFramework(fmt.Sprintf("f%04d-%d", i, j), frameworkInfo([]string{role}), nil, true)
						a.AddAgent(fmt.Sprintf("s%04d-%d", i, j), &mesosv1.AgentInfo{Hostname: ptr("h")}, agentCapabilities,
							resources.MustParse("cpus:2;mem:2048;disk:2048"), nil)
					}
				}
				runtime.GC()
				b.StartTimer()
				if n := len(m.allocate(a)); n != 2000 {
					b.Fatalf("%d offers, want one per agent", n)
				}
			}
			m.report(b)
		})
	}
}

// BenchmarkAddAgents adds 10,000 agents to a cluster with 1000 frameworks.
func BenchmarkAddAgents10000x1000(b *testing.B) {
	for b.Loop() {
		newCluster(Options{}, 10000, 1000)
	}
}

func BenchmarkExplain10000x1000(b *testing.B) {
	a := newCluster(Options{}, 10000, 1000)
	a.SetQuota("other", resources.Quantities{"cpus": 2400}, nil)
	for range 2 { // half is held, the rest refused by some
		for i, o := range a.Allocate(epoch) {
			if i%2 == 0 {
				a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, &mesosv1.Filters{RefuseSeconds: ptr(1e6)}, epoch)
			}
		}
	}
	for _, q := range []Question{
		{FrameworkID: "f0001"}, {Role: "role"},
		{FrameworkID: "f0001", Need: resources.Quantities{"cpus": 30, "mem": 100}, Ports: 2}, {Need: resources.Quantities{"cpus": 1}},
	} {
		b.Run(fmt.Sprintf("framework=%s,role=%s,need=%s", q.FrameworkID, q.Role, q.Need), func(b *testing.B) {
			var m meter
			for b.Loop() {
				var e Explanation
				if m.measure(func() { e = a.Explain(q, epoch) }); len(e.Asked) == 0 {
					b.Fatal("no answer")
				}
			}
			m.report(b)
		})
	}
}

// BenchmarkReviveAll10000x1000 has every framework suppress and revive, and allocates.
func BenchmarkReviveAll10000x1000(b *testing.B) {
	a := newCluster(Options{}, 10000, 1000)
	a.Allocate(epoch)
	for b.Loop() {
		for i := range 1000 {
			a.Suppress(fmt.Sprintf("f%04d", i))
		}
		for i := range 1000 {
			a.Revive(fmt.Sprintf("f%04d", i))
		}
		a.Allocate(epoch)
	}
}

// BenchmarkRemoveFrameworks10000x1000 removes all frameworks of a full cluster.
func BenchmarkRemoveFrameworks10000x1000(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		a := newCluster(Options{}, 10000, 1000)
		a.Allocate(epoch)
		b.StartTimer()
		for i := range 1000 {
			a.RemoveFramework(fmt.Sprintf("f%04d", i))
		}
	}
}
