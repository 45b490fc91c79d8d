package nvidiagpu

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/sdk/module"
)

// stateVersion is that of holding in JSON.
const stateVersion = 1

// holding is what one container has; the agent keeps it for us.
type holding struct {
	Devices []string `json:"devices"` // UUIDs
}

// table says who has which device. A device that is in it is given to nobody else, whatever else is known of it: of
// two wrongs, an idle GPU is the lesser.
type table struct {
	mu     sync.Mutex          // guards what follows
	held   map[string][]string // UUIDs by container
	opaque map[string]bool     // containers with GPUs of which we cannot read which
	freed  chan struct{}       // closed and replaced when something was given back
}

func newTable() *table {
	return &table{held: map[string][]string{}, opaque: map[string]bool{}, freed: make(chan struct{})}
}

// free wakes those that wait. mu is held.
func (t *table) free() {
	close(t.freed)
	t.freed = make(chan struct{})
}

// await is give, but for a while it waits for what others are just giving back: a task's end is told, and its resources
// are offered again, before its container is cleaned up.
func (t *table) await(ctx context.Context, patience time.Duration, id string, want map[string]int, pool []Device, wishes []string) ([]Device, error) {
	for resource, n := range want { // what is not there will not come
		if len(slices.DeleteFunc(slices.Clone(pool), func(d Device) bool { return d.Resource() != resource })) < n {
			patience = 0
		}
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		t.mu.Lock()
		freed := t.freed
		t.mu.Unlock()
		given, err := t.give(id, want, pool, wishes)
		if status.Code(err) != codes.ResourceExhausted || patience == 0 {
			return given, err
		}
		select {
		case <-freed:
		case <-timer.C:
			return nil, err
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
}

// rootOf is the container that the resources of id belong to.
func rootOf(id string) string {
	root, _, _ := strings.Cut(id, ".")
	return root
}

// related says whether one is nested in the other: what the outer one has is the inner one's to have.
func related(a, b string) bool {
	return a == b || strings.HasPrefix(a, b+".") || strings.HasPrefix(b, a+".")
}

// taken is what id cannot have: what other containers have, or, for a nested container, its siblings. mu is held.
func (t *table) taken(id string) map[string]bool {
	m := map[string]bool{}
	for other, list := range t.held {
		if related(id, other) {
			continue
		}
		for _, uuid := range list {
			m[uuid] = true
		}
	}
	return m
}

// give makes id hold as many devices of each resource as it wants, out of those in pool. What it has already it keeps,
// as far as it still wants as many. wishes are names of devices that it would have; all others come in their order.
func (t *table) give(id string, want map[string]int, pool []Device, wishes []string) ([]Device, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(want) > 0 && len(t.opaque) > 0 {
		return nil, module.FailedPrecondition("container %s has GPUs, and a version of this module that is newer or broken gave them: which they are is not known, so that no more can be given until it has ended",
			slices.Sorted(maps.Keys(t.opaque))[0])
	}
	taken, before := t.taken(id), t.held[id]
	if rootOf(id) != id {
		pool = slices.DeleteFunc(slices.Clone(pool), func(d Device) bool { return !slices.Contains(t.held[rootOf(id)], d.UUID) })
	}
	// In this order: those it has, those it wishes, the rest.
	rank := func(d Device) int {
		switch {
		case slices.Contains(before, d.UUID):
			return slices.Index(before, d.UUID) - len(before)
		case slices.ContainsFunc(wishes, d.is):
			return 0
		}
		return 1
	}
	order := slices.Clone(pool)
	slices.SortStableFunc(order, func(a, b Device) int { return rank(a) - rank(b) })
	var given []Device
	for _, resource := range slices.Sorted(maps.Keys(want)) {
		n, has := want[resource], 0
		for _, d := range order {
			if d.Resource() == resource {
				has++
				if n > 0 && !taken[d.UUID] {
					given = append(given, d)
					n--
				}
			}
		}
		if n > 0 {
			return nil, status.Errorf(codes.ResourceExhausted, "%s: got a request for %d, and %d of %d are free here", resource, want[resource], want[resource]-n, has)
		}
	}
	for _, w := range wishes {
		if !slices.ContainsFunc(given, func(d Device) bool { return d.is(w) }) {
			return nil, status.Errorf(codes.ResourceExhausted, "GPU %.80q is not free here, or more are asked for by name than by number", w)
		}
	}
	if len(given) < len(before) {
		defer t.free()
	}
	if len(given) == 0 {
		delete(t.held, id)
		return nil, nil
	}
	t.held[id] = uuids(given)
	return given, nil
}

func uuids(list []Device) []string {
	names := make([]string, len(list))
	for i, d := range list {
		names[i] = d.UUID
	}
	return names
}

// of is what a container has.
func (t *table) of(id string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.held[id])
}

// owners says which container has a device: the innermost, where one is nested in another.
func (t *table) owners() map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := map[string]string{}
	for _, id := range slices.Sorted(maps.Keys(t.held)) {
		for _, uuid := range t.held[id] {
			if first, ok := m[uuid]; !ok || len(id) > len(first) {
				m[uuid] = id
			}
		}
	}
	return m
}

// recover takes over what the agent kept of a container. It never takes anything away: what was given since the agent
// last wrote is still given.
func (t *table) recover(id string, state []byte, version uint32) error {
	var h holding
	err := fmt.Errorf("state version %d, want %d", version, stateVersion)
	if version == stateVersion {
		err = json.Unmarshal(state, &h)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		if _, known := t.held[id]; !known {
			t.opaque[id] = true
		}
		return err
	}
	delete(t.opaque, id)
	for _, uuid := range h.Devices {
		if !slices.Contains(t.held[id], uuid) {
			t.held[id] = append(t.held[id], uuid)
		}
	}
	return nil
}

// forget gives back what a container has.
func (t *table) forget(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.held, id)
	delete(t.opaque, id)
	t.free()
}
