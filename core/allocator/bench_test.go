package allocator

import (
	"fmt"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

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

// newCluster has agents of 24 cpus, each with something used, and frameworks in one role.
func newCluster(agents, frameworks int) *Allocator {
	a := New(Options{})
	for i := range frameworks {
		a.AddFramework(fmt.Sprintf("f%04d", i), frameworkInfo([]string{"role"}), nil, true)
	}
	total := resources.MustParse("cpus:24;mem:4096;disk:4096;ports:[31000-32000]")
	used := resources.MustParse("cpus:1;mem:128;disk:1024;ports:[31126-31126,31510-31510,31700-31700]").Allocate("role")
	for i := range agents {
		a.AddAgent(fmt.Sprintf("s%05d", i), &mesosv1.AgentInfo{Hostname: ptr("h")}, agentCapabilities, total,
			map[string]resources.Set{fmt.Sprintf("f%04d", i%frameworks): used})
	}
	return a
}

// BenchmarkFullCycle hands out every agent, takes all back with long refusals, and again:
// the shape of Mesos's DeclineOffers.
func BenchmarkFullCycle(b *testing.B) {
	for _, size := range []struct{ agents, frameworks int }{{1000, 1000}, {10000, 1000}, {20000, 2000}} {
		b.Run(fmt.Sprintf("%dx%d", size.agents, size.frameworks), func(b *testing.B) {
			a := newCluster(size.agents, size.frameworks)
			now := epoch
			filters := &mesosv1.Filters{RefuseSeconds: ptr(1e6)}
			for b.Loop() {
				offers := a.Allocate(now)
				if len(offers) != size.agents {
					b.Fatalf("%d offers, want one per agent", len(offers))
				}
				b.StopTimer()
				for _, o := range offers {
					a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, filters, now)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkNothingToGive looks at every agent when every framework has refused it.
func BenchmarkNothingToGive(b *testing.B) {
	const agents, frameworks = 10000, 100
	a := newCluster(agents, frameworks)
	for range frameworks {
		for _, o := range a.Allocate(epoch) {
			a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, &mesosv1.Filters{RefuseSeconds: ptr(1e6)}, epoch)
		}
	}
	for b.Loop() {
		b.StopTimer()
		for _, ag := range a.agentList {
			a.refresh(ag)
		}
		b.StartTimer()
		if offers := a.Allocate(epoch); len(offers) != 0 {
			b.Fatalf("%d offers, want none", len(offers))
		}
	}
}

// BenchmarkOnePercentDirty is a cycle in which resources came back on one agent in a hundred.
func BenchmarkOnePercentDirty(b *testing.B) {
	a := newCluster(10000, 1000)
	offers := a.Allocate(epoch)
	for b.Loop() {
		b.StopTimer()
		for _, o := range offers[:100] {
			a.RecoverResources(o.FrameworkID, o.AgentID, o.Resources, nil, epoch)
		}
		b.StartTimer()
		again := a.Allocate(epoch)
		if len(again) != 100 {
			b.Fatalf("%d offers, want 100", len(again))
		}
		offers = append(offers[100:], again...)
	}
}

// BenchmarkQuota is Mesos's LargeAndSmallQuota: 3000 agents, 3000 roles with guarantees, one
// framework each; first the cycle that serves them, then one that can give nothing.
func BenchmarkQuota(b *testing.B) {
	build := func() *Allocator {
		a := New(Options{})
		for i := range 3000 {
			role := fmt.Sprintf("r%04d", i)
			size := 1.0
			if i < 500 {
				size = 5
			}
			a.SetQuota(role, resources.Quantities{"cpus": size, "mem": size * 100}, resources.Quantities{"cpus": size, "mem": size * 100})
			a.AddFramework(fmt.Sprintf("f%04d", i), frameworkInfo([]string{role}), nil, true)
		}
		for i := range 3000 {
			a.AddAgent(fmt.Sprintf("s%04d", i), &mesosv1.AgentInfo{Hostname: ptr("h")}, agentCapabilities,
				resources.MustParse("cpus:2;mem:1024;disk:4096;ports:[31000-32000]"), nil)
		}
		return a
	}
	b.Run("serving", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			a := build()
			b.StartTimer()
			if len(a.Allocate(epoch)) == 0 {
				b.Fatal("no offers")
			}
		}
	})
	b.Run("nothing", func(b *testing.B) {
		a := build()
		a.Allocate(epoch)
		for b.Loop() {
			b.StopTimer()
			a.touchAll()
			b.StartTimer()
			a.Allocate(epoch)
		}
	})
}
