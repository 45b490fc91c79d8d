package master

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestSnapshotsOfATableNeverChange(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var tab table[int]
	now := make(map[int]int) // slot to value
	type taken struct {
		snapshot snapshot[int]
		values   []int
	}
	var all []taken
	values := func() []int {
		var out []int
		for _, v := range now {
			out = append(out, v)
		}
		slices.Sort(out)
		return out
	}
	for i := range 20_000 {
		switch slot := r.IntN(400); {
		case r.IntN(3) == 0 || len(now) == 0:
			v := i
			now[tab.add(&v)] = v
		case r.IntN(50) == 0:
			all = append(all, taken{tab.snapshot(), values()})
		default:
			if _, ok := now[slot]; !ok {
				continue
			}
			if r.IntN(2) == 0 {
				tab.remove(slot)
				delete(now, slot)
			} else {
				v := -i
				tab.set(slot, &v)
				now[slot] = v
			}
		}
	}
	if len(all) < 50 {
		t.Fatalf("only %d snapshots were taken", len(all))
	}
	for i, x := range all {
		var got []int
		for v := range x.snapshot.all() {
			got = append(got, *v)
		}
		slices.Sort(got)
		if !slices.Equal(got, x.values) || x.snapshot.length != len(x.values) {
			t.Fatalf("snapshot %d has %d values (length %d), want the %d it was taken with", i, len(got), x.snapshot.length, len(x.values))
		}
	}
}
