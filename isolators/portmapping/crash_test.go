package portmapping_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/isolators/portmapping"
	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// asModule in the environment makes the test's own executable the module.
const asModule = "module"

func serveModule() { module.Serve(portmapping.New()) }

func TestConformanceAsAProcess(t *testing.T) {
	newMachine(t, "{}") // what it furnishes has an uplink
	isolatortest.Run(t, kit.Program{Path: os.Args[0], Args: []string{asModule}}.Dial)
}

// TestKilledAtAnyMomentNothingIsLeft kills the module during launches. Whatever it had done by then, the next one takes
// it back by the container's id alone, and a container that runs beside keeps its ports.
func TestKilledAtAnyMomentNothingIsLeft(t *testing.T) {
	m := newMachine(t, `{"ephemeral_ports_per_container":64}`)
	stays := m.container("stays", ports([2]uint64{31999, 31999}))
	listen(t, int(stays.Pid), ":31999", "stays")
	before := m.usage(stays).GetNetEphemeralPorts()
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	subject := kit.Subject{Dial: kit.Program{Path: os.Args[0], Args: []string{asModule}}.Dial, Config: `{"ephemeral_ports_per_container":64}`}
	furnished := 0
	for n := range 15 {
		victim := subject.Start(t, kit.NewMachine(t))
		r := &isolatorv1.ContainerRecord{Pid: int32(sleeper(t)), Container: &containerv1.Container{
			Id: fmt.Sprintf("c%d", n), Generation: 1,
		}}
		r.Container.Resources = append(r.Container.Resources, ports([2]uint64{31000, 31100}))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		answered := make(chan error, 1)
		go func() {
			_, err := isolatorv1.NewIsolatorClient(victim.Conn).Isolate(ctx, &isolatorv1.IsolateRequest{OperationId: "i", Record: r})
			answered <- err
		}()
		timer := time.NewTimer(time.Duration(random.IntN(60_000)) * time.Microsecond)
		select {
		case <-timer.C:
			victim.Kill()
			<-answered
		case err := <-answered:
			if err != nil {
				t.Errorf("Isolate: %v", err)
			}
			furnished++
			victim.Kill()
		}
		timer.Stop()
		cancel()
		m.cleanup(r) // by another module, which never saw it
		next := m.container(fmt.Sprintf("next%d", n), ports([2]uint64{31000, 31100}))
		wantAnswer(t, "the next container", int(next.Pid), machineIP+":31999", "stays")
		m.cleanup(next)
	}
	t.Logf("%d of 15 launches ended before the kill", furnished)
	if after := m.usage(stays).GetNetEphemeralPorts(); after.GetBegin() != before.GetBegin() || after.GetEnd() != before.GetEnd() {
		t.Errorf("the container that stays has the ports %v, had %v", after, before)
	}
	wantAnswer(t, "outside", m.outside, machineIP+":31999", "stays")
}

func TestManyAtOnceDoNotGetEachOthersPorts(t *testing.T) {
	m := newMachine(t, `{"ephemeral_ports_per_container":64}`)
	const many = 24
	records := make([]*isolatorv1.ContainerRecord, many)
	for n := range records {
		port := uint64(31000 + n)
		records[n] = &isolatorv1.ContainerRecord{Pid: int32(sleeper(t)), Container: &containerv1.Container{Id: fmt.Sprintf("c%d", n)}}
		records[n].Container.Resources = append(records[n].Container.Resources, ports([2]uint64{port, port}))
	}
	all := func(what string, call func(*isolatorv1.ContainerRecord) error) {
		t.Helper()
		begin := time.Now()
		var wg sync.WaitGroup
		for _, r := range records {
			wg.Go(func() {
				if err := call(r); err != nil {
					t.Errorf("%s of %s: %v", what, r.GetContainer().GetId(), err)
				}
			})
		}
		wg.Wait()
		t.Logf("%s of %d at once: %.1f ms each", what, many, time.Since(begin).Seconds()*1000/many)
	}
	t.Cleanup(func() {
		all("Cleanup", func(r *isolatorv1.ContainerRecord) error {
			_, err := m.client.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{Record: r})
			return err
		})
	})
	all("Isolate", func(r *isolatorv1.ContainerRecord) error {
		_, err := m.client.Isolator.Isolate(t.Context(), &isolatorv1.IsolateRequest{Record: r})
		return err
	})
	taken := map[uint64]string{}
	for n, r := range records {
		own := m.usage(r).GetNetEphemeralPorts()
		if other := taken[own.GetBegin()]; other != "" || own.GetEnd()-own.GetBegin() != 63 {
			t.Errorf("%s has the ports %v, as %s", r.GetContainer().GetId(), own, other)
		}
		taken[own.GetBegin()] = r.GetContainer().GetId()
		listen(t, int(r.Pid), fmt.Sprintf(":%d", 31000+n), r.GetContainer().GetId())
	}
	for n, r := range records {
		wantAnswer(t, "outside", m.outside, fmt.Sprintf("%s:%d", machineIP, 31000+n), r.GetContainer().GetId())
	}
}

func TestTheLastContainerTakesTheProgramsWithIt(t *testing.T) {
	m := newMachine(t, `{"ephemeral_ports_per_container":64}`)
	for range 3 { // and the next brings them back
		r := m.container("a", ports([2]uint64{31000, 31000}))
		l := listen(t, int(r.Pid), ":31000", "a")
		wantAnswer(t, "outside", m.outside, machineIP+":31000", "a")
		_ = l.Close()
		m.cleanup(r)
		m.nothingLeft()
	}
}

func TestAnUplinkThatComesLaterIsUsed(t *testing.T) {
	m := newMachine(t, `{"eth0_name":"late0","ephemeral_ports_per_container":64}`)
	health := func(state modulev1.Health_State) {
		t.Helper()
		m.client.Next(t, func(e *modulev1.WatchEvent) bool { return e.GetHealth().GetState() == state })
	}
	health(modulev1.Health_DEGRADED)
	r := &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: "a"}, Pid: int32(sleeper(t))}
	t.Cleanup(func() { m.cleanup(r) })
	isolate := func() error {
		_, err := m.client.Isolator.Isolate(t.Context(), &isolatorv1.IsolateRequest{Record: r})
		return err
	}
	if err := isolate(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "late0") {
		t.Errorf("Isolate without the uplink = %v, want FailedPrecondition that names it", err)
	}
	up, err := netlink.LinkByName("up0")
	if err != nil {
		t.Fatal(err)
	}
	// Older kernels rename only what is down, and that takes its route.
	if err := errors.Join(netlink.LinkSetDown(up), netlink.LinkSetName(up, "late0"), netlink.LinkSetUp(up), defaultRoute()); err != nil {
		t.Fatal(err)
	}
	if err := isolate(); err != nil {
		t.Errorf("Isolate with the uplink: %v", err)
	}
	health(modulev1.Health_OK)
	listen(t, m.outside, ":5000", "outside")
	wantAnswer(t, "a", int(r.Pid), outsideIP+":5000", "outside")
}
