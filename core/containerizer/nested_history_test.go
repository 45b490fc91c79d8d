package containerizer

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// history is a random life of an agent with nested and standalone containers, and what must be true of it.
type history struct {
	t    *testing.T
	rnd  *rand.Rand
	m    *machine
	dir  string
	c    *Containerizer
	made map[string]*containerv1.Container // whose Launch succeeded and that have not been removed or forgotten
	done map[string]bool                   // of these, those that ended
}

func (h *history) start() {
	h.c, _ = startAgent(h.t, h.m, h.dir, &fakeIsolator{m: h.m, name: "a", state: []byte("s")}, &fakeIsolator{m: h.m, name: "flat", flat: true})
	var known []string
	for id, c := range h.made {
		if c.GetParentId() == "" && !c.GetStandalone() {
			known = append(known, id)
		}
	}
	if _, err := h.c.Recover(h.t.Context(), known); err != nil {
		h.t.Fatalf("Recover: %v", err)
	}
}

// pick returns one of the containers that ok holds for, nil if there is none. By the seed: in order of ids.
func (h *history) pick(ok func(*containerv1.Container) bool) *containerv1.Container {
	var list []*containerv1.Container
	for _, id := range slices.Sorted(maps.Keys(h.made)) {
		if ok(h.made[id]) {
			list = append(list, h.made[id])
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list[h.rnd.IntN(len(list))]
}

// under calls f for a container and all that is nested in it.
func (h *history) under(id string, f func(string)) {
	for other := range h.made {
		for up := other; up != ""; up = parentOf(up) {
			if up == id {
				f(other)
			}
		}
	}
}

// end notes that a container ends, with all in it, and waits for it.
func (h *history) end(id string) {
	h.under(id, func(x string) {
		wait(h.t, h.c, x)
		h.done[x] = true
	})
}

func (h *history) step(n int) string {
	runs := func(c *containerv1.Container) bool { return !h.done[c.Id] }
	ended := func(c *containerv1.Container) bool { return h.done[c.Id] }
	switch h.rnd.IntN(8) {
	case 0, 1: // a root container
		c := testContainer(h.t, fmt.Sprintf("r%d", n))
		c.Standalone = h.rnd.IntN(3) == 0
		launch(h.t, h.c, c)
		h.made[c.Id] = c
		return "launch " + c.Id
	case 2, 3: // one in another
		parent := h.pick(func(*containerv1.Container) bool { return true })
		if parent == nil {
			return "nothing"
		}
		c := nestedIn(parent, fmt.Sprintf("n%d", n))
		_, err := h.c.Launch(h.t.Context(), c)
		if h.done[parent.Id] != errors.Is(err, ErrNotRunning) || !h.done[parent.Id] && err != nil {
			h.t.Errorf("Launch(%s) = %v, want success unless its parent ended (%v)", c.Id, err, h.done[parent.Id])
		}
		if err == nil {
			h.made[c.Id] = c
		}
		return "launch " + c.Id
	case 4: // a process ends
		if c := h.pick(runs); c != nil {
			h.m.exit(c.Id, 0)
			h.end(c.Id)
			return "exit " + c.Id
		}
	case 5:
		if c := h.pick(runs); c != nil {
			if err := h.c.Destroy(h.t.Context(), c.Id, nil); err != nil {
				h.t.Errorf("Destroy(%s): %v", c.Id, err)
			}
			h.end(c.Id)
			return "destroy " + c.Id
		}
	case 6: // what is left of one goes
		c := h.pick(ended)
		if c == nil {
			break
		}
		var err error
		if c.GetParentId() == "" && !c.GetStandalone() {
			err = h.c.Forget(h.t.Context(), c.Id)
		} else {
			err = h.c.Remove(h.t.Context(), c.Id)
		}
		if err != nil {
			h.t.Errorf("Forget or Remove(%s): %v", c.Id, err)
		}
		h.under(c.Id, func(x string) { defer delete(h.made, x) })
		waitFor(h.t, c.Id+" to be forgotten", func() bool { _, err := h.c.find(c.Id); return err != nil })
		return "remove " + c.Id
	case 7: // the agent is started anew; while it was away something may have ended
		stopAgent(h.t, h.c)
		var away *containerv1.Container
		if h.rnd.IntN(2) == 0 {
			if away = h.pick(runs); away != nil {
				h.m.exit(away.Id, 0)
			}
		}
		h.start()
		if away != nil {
			h.end(away.Id)
			return "restart, and " + away.Id + " ended"
		}
		return "restart"
	}
	return "nothing"
}

// holds checks what must be true between two steps.
func (h *history) holds(after string) {
	h.t.Helper()
	known := map[string]Known{}
	for _, k := range h.c.Containers() {
		known[k.ID] = k
	}
	for id := range h.made {
		if runs := h.m.runs(id); runs == h.done[id] {
			h.t.Errorf("after %s: %s runs: %v, want %v", after, id, runs, !h.done[id])
		}
		if k, ok := known[id]; !ok || k.Running == h.done[id] {
			h.t.Errorf("after %s: Containers() says %+v (%v) of %s, want it with Running %v", after, k, ok, id, !h.done[id])
		}
	}
	if len(known) != len(h.made) {
		h.t.Errorf("after %s: Containers() lists %d, want %d", after, len(known), len(h.made))
	}
}

func TestRandomHistoriesOfNestedContainers(t *testing.T) {
	for range 25 {
		seed := rand.Uint64()
		h := &history{
			t: t, rnd: rand.New(rand.NewPCG(seed, 0)), m: newMachine(t), dir: t.TempDir(),
			made: map[string]*containerv1.Container{}, done: map[string]bool{},
		}
		h.start()
		var told []string
		for n := range 40 {
			what := h.step(n)
			told = append(told, what)
			h.holds(what)
			if t.Failed() {
				t.Fatalf("seed %d: %q", seed, told)
			}
		}
		// In the end everything can be taken away.
		for _, id := range slices.Sorted(maps.Keys(h.made)) {
			if c := h.made[id]; c.GetParentId() == "" {
				if err := h.c.Destroy(t.Context(), id, nil); err != nil {
					t.Errorf("seed %d: Destroy(%s): %v", seed, id, err)
				}
				if err := h.c.Forget(t.Context(), id); err != nil {
					t.Errorf("seed %d: Forget(%s): %v", seed, id, err)
				}
			}
		}
		waitFor(t, "nothing is left", func() bool { return len(h.c.all()) == 0 && len(h.m.disk) == 0 })
		h.m.mu.Lock()
		if len(h.m.processes) > 0 || len(h.m.done["a"]) > 0 {
			t.Errorf("seed %d: left are %d processes, and %v of the isolator's: %q", seed, len(h.m.processes), h.m.done["a"], told)
		}
		h.m.mu.Unlock()
		stopAgent(t, h.c)
	}
}
