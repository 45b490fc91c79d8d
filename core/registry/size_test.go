package registry

import (
	"fmt"
	"strings"
	"testing"
)

func TestSizeFollowsWhatIsAppliedAndLoaded(t *testing.T) {
	stores(t, func(t *testing.T, s Store) {
		if got := s.Size(); got != 0 {
			t.Errorf("Size of nothing = %d, want 0", got)
		}
		apply := func(changes ...Change) int64 {
			t.Helper()
			if err := s.Apply(within(t), changes); err != nil {
				t.Fatalf("Apply: %v", err)
			}
			applied := s.Size()
			if _, err := s.Load(within(t)); err != nil {
				t.Fatalf("Load: %v", err)
			}
			if loaded := s.Size(); loaded != applied {
				t.Errorf("Size = %d after Load, %d before, want the same", loaded, applied)
			}
			return applied
		}
		one := apply(PutAgent("S0", Agent{Info: agentInfo("a")}))
		if one < int64(len("S0")+len("a")) {
			t.Errorf("Size of one agent = %d, want its name and its host at least", one)
		}
		if got := apply(PutAgent("S0", Agent{Info: agentInfo(strings.Repeat("a", 101))})); got < one+100 || got > one+110 {
			t.Errorf("Size of an agent whose name is 100 bytes longer = %d, want about %d", got, one+100)
		}
		if got := apply(PutAgent("S0", Agent{Info: agentInfo("a")}), PutAgent("S1", Agent{Info: agentInfo("b")})); got != 2*one {
			t.Errorf("Size of two = %d, want %d", got, 2*one)
		}
		if got := apply(RemoveAgent("S1"), RemoveAgent("never there")); got != one {
			t.Errorf("Size after one went = %d, want %d", got, one)
		}
		// Too many for one transaction.
		var many []Change
		for i := range 2000 {
			many = append(many, PutAgent(fmt.Sprintf("T%04d", i), Agent{Info: agentInfo("a")}))
		}
		if got, want := apply(many...), one+2000*(one+3); got != want {
			t.Errorf("Size of 2001 = %d, want %d", got, want)
		}
	})
}
