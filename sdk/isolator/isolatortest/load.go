package isolatortest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/kit"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// loadCases are about many calls at a time, and about figures.
func (s *suite) loadCases() []kit.Case {
	return []kit.Case{
		{Level: kit.Full, Name: "DrainUnderLoadFinishesWhatItBegan", Why: "upgrades happen while tasks start", Do: s.drainUnderLoad},
		{Level: kit.Stress, Name: "AThousandLaunchesWithKills", Why: "figures of a long run show what a short one hides", Do: s.stress},
	}
}

func (s *suite) drainUnderLoad(t kit.T) {
	i := s.start(t)
	const callers = 20
	template := i.container(t, "load")
	var done, late atomic.Int64
	var wg sync.WaitGroup
	begun := make(chan struct{}, callers)
	for n := range callers {
		wg.Go(func() {
			for round := 0; ; round++ {
				c := proto.CloneOf(template)
				c.Id = fmt.Sprintf("load-%d-%d", n, round)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				_, err := i.Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: c.Id, Container: c, Granted: i.Desc.GetPowers()})
				cancel()
				if round == 0 {
					begun <- struct{}{}
				}
				switch status.Code(err) {
				case codes.OK:
					done.Add(1)
				case codes.Unavailable:
					late.Add(1)
					return
				default:
					t.Errorf("Prepare during Drain: %v, want success or UNAVAILABLE", err)
					return
				}
				if round == 10_000 {
					t.Errorf("Prepare still succeeds long after Drain, want UNAVAILABLE")
					return
				}
			}
		})
	}
	for range callers {
		<-begun
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := i.Control.Drain(ctx, &modulev1.DrainRequest{DeadlineMs: 5000}); err != nil {
		t.Errorf("Drain under load: %v, want success%s", err, i.Words())
	}
	wg.Wait()
	if done.Load() == 0 || late.Load() != callers {
		t.Errorf("Drain under load: %d calls succeeded and %d callers were sent away, want some and all %d", done.Load(), late.Load(), callers)
	}
}

// stress launches a thousand containers, kills the module every hundred, and reports what it cost.
func (s *suite) stress(t kit.T) {
	i := s.start(t)
	const total, between = 1000, 100
	var prepare, cleanup []time.Duration
	var live []*isolatorv1.ContainerRecord
	for n := range total {
		begin := time.Now()
		r := i.prepare(t, i.container(t, fmt.Sprintf("stress-%d", n)))
		prepare = append(prepare, time.Since(begin))
		i.hold(t, r)
		retire := func() {
			oldest := live[0]
			live = live[1:]
			i.end(t, oldest)
			begin := time.Now()
			i.cleanup(t, oldest, isolatorv1.CleanupRequest_ENDED)
			cleanup = append(cleanup, time.Since(begin))
		}
		for !i.isolateIfRoom(t, r) {
			if len(live) == 0 {
				t.Fatalf("Isolate of the only container: there is no room for it%s", i.Words())
			}
			retire()
		}
		live = append(live, r)
		if n%between == between/2 {
			i = s.reborn(t, i, live...)
		}
		if len(live) > 20 {
			retire()
		}
	}
	figures(t, "Prepare", prepare)
	figures(t, "Cleanup", cleanup)
	if i.Process != nil {
		kit.Measure(t, "RSS after the run", rss(i.Process.Pid())/(1<<20), "MiB")
	}
	for _, r := range live {
		i.end(t, r)
		i.cleanup(t, r, isolatorv1.CleanupRequest_ENDED)
	}
}

// figures reports the middle and the end of a distribution.
func figures(t kit.T, what string, list []time.Duration) {
	t.Helper()
	if len(list) == 0 {
		return
	}
	slices.Sort(list)
	kit.Measure(t, what+" p50", list[len(list)/2].Seconds()*1000, "ms")
	kit.Measure(t, what+" p99", list[len(list)*99/100].Seconds()*1000, "ms")
}

// rss is a process's resident memory in bytes; 0 if nobody tells.
func rss(pid int) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			return kb * 1024
		}
	}
	return 0
}
