package dockervolume_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/isolators/dockervolume"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// TestRandomHistoriesLeaveNothingMounted launches and ends containers, loses answers and kills the module, in any
// order. What a running container uses is mounted all the time, and in the end nothing is, though the driver counts
// each call.
func TestRandomHistoriesLeaveNothingMounted(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("MOSAIC_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatal(err)
		}
	}
	for n := range uint64(15) {
		history(t, seed+n)
		if t.Failed() {
			t.Fatalf("again with MOSAIC_SEED=%d", seed+n)
		}
	}
}

func history(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	sockets := folder(t)
	p := serve(t, sockets, "d")
	names := []string{"u", "v", "w"}
	c := moduletest.Start(t, dockervolume.New(), config(sockets, ""))
	type container struct {
		record *isolatorv1.ContainerRecord
		runs   bool
		uses   []string
	}
	var all []*container
	var log []string
	say := func(format string, args ...any) { log = append(log, fmt.Sprintf(format, args...)) }
	end := func(x *container) {
		x.runs = false
		if err := cleanup(c, x.record); err != nil {
			say("cleanup of %s: %v", x.record.Container.Id, err)
			return
		}
		say("cleanup of %s", x.record.Container.Id)
		all = slices.DeleteFunc(all, func(o *container) bool { return o == x })
	}
	for step := range 60 {
		switch r.IntN(8) {
		case 0, 1, 2: // launch, and perhaps lose an answer
			x := &container{}
			var list []*mesosv1.Volume
			for _, name := range names {
				if r.IntN(2) == 0 {
					x.uses = append(x.uses, name)
					list = append(list, dockerVolume(name, "d", name))
				}
			}
			deaf := []string{"", "", "", "Mount", "Get", "Create", "Unmount", "Plugin.Activate"}[r.IntN(8)]
			p.change(func() { p.deaf = map[string]bool{deaf: true} })
			var err error
			x.record, _, err = prepare(c, box(t, fmt.Sprint("c", step), list...))
			p.change(func() { p.deaf = map[string]bool{} })
			say("prepare of c%d with %v, deaf to %q: %v", step, x.uses, deaf, err)
			x.runs = err == nil
			if err == nil && r.IntN(5) == 0 { // the agent never got it
				x.runs, x.record.State, x.record.StateVersion = false, nil, 0
				say("its answer is lost")
			}
			all = append(all, x)
		case 3, 4, 5:
			if len(all) > 0 {
				end(all[r.IntN(len(all))])
			}
		case 6: // an unmount that does not work
			if len(all) > 0 && p.real { // without real mounts nobody can tell it from what was never mounted
				p.change(func() { p.lie["Unmount"] = `{"Err":"busy"}` })
				end(all[r.IntN(len(all))])
				p.change(func() { delete(p.lie, "Unmount") })
			}
		case 7:
			say("crash")
			c = moduletest.Start(t, dockervolume.New(), config(sockets, ""))
			var records []*isolatorv1.ContainerRecord
			for _, x := range all {
				x.record.Orphan = !x.runs
				records = append(records, x.record)
			}
			recover(t, c, records...)
		}
		for _, x := range all {
			for _, name := range x.uses {
				if n := p.count(name); x.runs && n != 1 {
					t.Errorf("%s runs and uses %s, which is mounted %d times\n%s", x.record.Container.Id, name, n, strings.Join(log, "\n"))
					return
				}
			}
		}
	}
	for len(all) > 0 {
		before := len(all)
		end(all[0])
		if len(all) == before {
			t.Errorf("a cleanup fails though the driver works\n%s", strings.Join(log, "\n"))
			return
		}
	}
	for _, name := range names {
		if n := p.count(name); n != 0 {
			t.Errorf("in the end %s is mounted %d times\n%s\n%v", name, n, strings.Join(log, "\n"), p.asked())
			return
		}
	}
}
