package cni

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// program is this test's executable as the module.
func program() kit.Dial { return kit.Program{Path: os.Args[0]}.Dial }

func TestConformance(t *testing.T) {
	asksForANetwork := isolatortest.Container(func(c *containerv1.Container) {
		c.ContainerInfo = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), NetworkInfos: []*mesosv1.NetworkInfo{named("net")}}
	})
	for name, dial := range map[string]kit.Dial{"in process": kit.InProcess(New), "as a process": program()} {
		t.Run(name, func(t *testing.T) {
			h := scripted(t, answers("10.1.2.3/16"))
			t.Run("kit", func(t *testing.T) {
				isolatortest.Run(t, dial, isolatortest.Level(kit.Full), isolatortest.Config(h.json()), asksForANetwork)
			})
			// What it prepared under a Drain it cannot clean up any more.
			folders, err := os.ReadDir(h.run)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range folders {
				if !strings.HasPrefix(f.Name(), "load-") {
					t.Errorf("the kit's container %s left its folder behind", f.Name())
				}
				h.cleanup(&isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: f.Name()}})
			}
			h.leaks(nil)
		})
	}
}

// TestKilledInTheMidstOfAddNothingStays kills the module after its plugins made an interface and leased an address, and
// before anybody was told of it.
func TestKilledInTheMidstOfAddNothingStays(t *testing.T) {
	plugins := builtPlugins(t)
	h := newHost(t, nil)
	before := h.traces()
	h.config["plugins_dir"] = plugins + ":" + h.plugins
	h.script("slow", `[ "$CNI_COMMAND" = ADD ] && { sleep 1000 & sleep 1001; }; exit 0`)
	h.network("net", `{"type":"bridge","bridge":"kept1","isGateway":true,"ipam":{"type":"host-local","dataDir":"`+leases+
		`","ranges":[[{"subnet":"10.77.0.0/16"}]]}}`, `{"type":"slow"}`)
	s := kit.Subject{Dial: program(), Config: h.json()}
	kit.Run(kit.InTest(t), kit.Core, []kit.Case{{Level: kit.Core, Name: "KillAndCleanUp", Why: "crashes come at any moment", Do: func(kt kit.T) {
		machine := kit.NewMachine(kt)
		m := s.Start(kt, machine)
		c := asking("cut", named("net"))
		failed := make(chan error, 1)
		ctx, cancel := context.WithTimeout(kt.Context(), time.Minute)
		defer cancel()
		go func() {
			_, err := isolatorv1.NewIsolatorClient(m.Conn).Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: "op", Container: c})
			failed <- err
		}()
		for len(h.calls("slow")) == 0 {
			select {
			case err := <-failed:
				kt.Fatalf("Prepare ended before it was killed: %v", err)
			case <-time.After(5 * time.Millisecond): // another process's step
			}
		}
		if got := h.traces(); len(got) <= len(before) {
			kt.Fatalf("the plugin made nothing: %v", got)
		}
		m.Kill()
		if err := <-failed; err == nil {
			kt.Fatalf("Prepare succeeds although its module was killed")
		}
		next := s.Start(kt, machine)
		if _, err := isolatorv1.NewIsolatorClient(next.Conn).Cleanup(ctx, &isolatorv1.CleanupRequest{
			OperationId: "clean", Record: &isolatorv1.ContainerRecord{Container: c}, Reason: isolatorv1.CleanupRequest_LAUNCH_FAILED,
		}); err != nil {
			kt.Errorf("Cleanup: %v", err)
		}
	}}})
	h.leaks(before)
	if err := noneLeft("cut"); err != nil {
		t.Error(err)
	}
}

func TestALongPrepareSaysThatItGoesOn(t *testing.T) {
	h := scripted(t, answers("10.1.2.3/16"))
	h.launch(asking("c", named("net")))
	e := h.Next(t, func(e *modulev1.WatchEvent) bool { return e.GetProgress() != nil })
	if p := e.GetProgress(); p.GetOperationId() != "op-c" || p.GetExtendMs() < 20_000 {
		t.Errorf("progress = %v, want the operation and at least a plugin's time", p)
	}
}

// TestKilledAtAnyMomentNothingStays kills the module at random moments of launches and removals. The agent's part is
// played: it keeps a state only when it got the answer, and repeats a Cleanup until it succeeds.
func TestKilledAtAnyMomentNothingStays(t *testing.T) {
	plugins := builtPlugins(t)
	h := newHost(t, nil)
	before := h.traces()
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(uint64(seed), 0))
	// What the machine would drop is let through, and no longer once all are gone.
	if len(firewalls(t)) > 0 {
		f := firewalls(t)[0]
		command(t, f.up[0])
		t.Cleanup(func() { command(t, f.down[0]) })
	}
	h.config["plugins_dir"], h.config["default_bridge"] = plugins, true
	s := kit.Subject{Dial: program(), Config: h.json()}
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	kit.Run(kit.InTest(t), kit.Core, []kit.Case{{Level: kit.Core, Name: "KillAndCleanUp", Why: "crashes come at any moment", Do: func(kt kit.T) {
		machine := kit.NewMachine(kt)
		for round := range rounds {
			m := s.Start(kt, machine)
			client := isolatorv1.NewIsolatorClient(m.Conn)
			kill := time.Duration(dice.IntN(120_000)) * time.Microsecond
			records := make([]*isolatorv1.ContainerRecord, 3)
			ctx, cancel := context.WithTimeout(kt.Context(), time.Minute)
			var agents sync.WaitGroup
			for n := range records {
				r := &isolatorv1.ContainerRecord{Container: asking(fmt.Sprintf("round-%d-%d", round, n), published("mosaic", uint32(18080+n), 80))}
				records[n] = r
				agents.Go(func() {
					a, err := client.Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: "op", Container: r.Container})
					if err == nil {
						r.State, r.StateVersion = a.GetState(), a.GetStateVersion()
						_, _ = client.Cleanup(ctx, &isolatorv1.CleanupRequest{OperationId: "clean", Record: r})
					}
				})
			}
			time.Sleep(kill) // the moment is the dice's
			m.Kill()
			agents.Wait()
			next := s.Start(kt, machine)
			for _, r := range records {
				if _, err := isolatorv1.NewIsolatorClient(next.Conn).Cleanup(ctx, &isolatorv1.CleanupRequest{OperationId: "again", Record: r}); err != nil {
					kt.Errorf("Cleanup of container %s after a kill at %s: %v", r.GetContainer().GetId(), kill, err)
				}
				if err := noneLeft(r.GetContainer().GetId()); err != nil {
					kt.Errorf("after a kill at %s: %v", kill, err)
				}
			}
			next.Kill()
			cancel()
		}
	}}})
	h.leaks(before)
}
