package registry

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// operatorsEtcd runs an etcd as an operator would have it, with etcd's defaults, and returns
// its URL.
func operatorsEtcd(t *testing.T) string {
	t.Helper()
	c := embed.NewConfig()
	c.Dir = t.TempDir()
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	c.TickMs, c.ElectionMs = singleTick, singleElection
	address := "http://" + freePort(t)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{*u}, []url.URL{*u}
	c.ListenPeerUrls = nil
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	select {
	case <-e.Server.ReadyNotify():
	case <-within(t).Done():
		t.Fatal("etcd does not start")
	}
	return address
}

func TestOperatorsEtcdServesSeveralMasters(t *testing.T) {
	address := operatorsEtcd(t)
	connect := func() *Etcd {
		s, err := OpenEtcd(within(t), EtcdConfig{Endpoints: []string{address}, Prefix: "/clusters/test/", LeaseTTL: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	one, two := connect(), connect()
	if _, ok := one.Leader(within(t)); ok {
		t.Error("a leader before any campaign")
	}
	first, err := one.Campaign(within(t), "m1", "one:5050")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if l, err := two.Campaign(ctx, "m2", "two:5050"); err == nil {
		t.Fatalf("m2 leads in term %d beside m1 in term %d", l.Term, first.Term)
	}
	if err := one.Apply(within(t), []Change{PutWeight("a", 1)}); err != nil {
		t.Fatal(err)
	}

	// The first master is killed and started again: it need not wait for its own lease.
	three := connect()
	again, err := three.Campaign(within(t), "m1", "one:5050")
	if err != nil {
		t.Fatal(err)
	}
	if again.Term <= first.Term {
		t.Errorf("terms %d then %d, want them to grow", first.Term, again.Term)
	}
	if err := one.Apply(within(t), []Change{PutWeight("a", 2)}); !errors.Is(err, ErrNotLeader) {
		t.Errorf("Apply in the old term: %v, want ErrNotLeader", err)
	}
	if err := three.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := two.Campaign(within(t), "m2", "two:5050"); err != nil {
		t.Fatal(err)
	}
	if addr, ok := one.Leader(within(t)); !ok || addr != "two:5050" {
		t.Errorf("Leader() = %q, %v, want two:5050", addr, ok)
	}
	want := newSnapshot()
	want.Weights["a"] = 1
	check(t, one, want)
}

func TestUnreachableEtcdIsNamed(t *testing.T) {
	address := freePort(t)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := OpenEtcd(ctx, EtcdConfig{Endpoints: []string{address}}); err == nil {
		t.Errorf("OpenEtcd of %s, where nothing listens, succeeded", address)
	}
}

// manyChanges are far more, in number and bytes, than an etcd with its defaults takes at once.
func manyChanges(want *Snapshot) []Change {
	var out []Change
	for i := range 1000 {
		id := fmt.Sprintf("S%d", i)
		want.Agents[id] = Agent{Info: agentInfo(strings.Repeat("h", 3000))}
		out = append(out, PutAgent(id, want.Agents[id]))
	}
	return append(out, RemoveWeight("old"))
}

func TestMoreChangesThanATransactionTakesAreStillAtomic(t *testing.T) {
	address := operatorsEtcd(t)
	connect := func(id string) *Etcd {
		s, err := OpenEtcd(within(t), EtcdConfig{Endpoints: []string{address}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		if id == "" {
			return s
		}
		if _, err := s.Campaign(within(t), id, id+":1"); err != nil {
			t.Fatal(err)
		}
		return s
	}
	one, reader := connect("m1"), connect("")
	if err := one.Apply(within(t), []Change{PutWeight("old", 1)}); err != nil {
		t.Fatal(err)
	}
	before, after := newSnapshot(), newSnapshot()
	before.Weights["old"] = 1
	changes := manyChanges(after)

	// The leader dies before the journal holds: nothing has happened, for readers and leaders.
	for i, p := range one.pieces(changes) {
		if err := one.txn(within(t), one.fence, clientv3.OpPut(one.pieceKey(i), string(encodePiece(p)))); err != nil {
			t.Fatal(err)
		}
	}
	check(t, reader, before)
	one = connect("m1")
	check(t, reader, before)

	// It dies once the journal holds: all has happened, before and after the next leader.
	if err := one.prepare(within(t), one.fence, changes); err != nil {
		t.Fatal(err)
	}
	check(t, reader, after)
	one = connect("m1")
	check(t, reader, after)
	left, err := one.client.Get(within(t), one.journal(), clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || left.Count != 0 {
		t.Errorf("%d keys of the journal are left, %v", left.Count, err)
	}

	// It does not die.
	var undo []Change
	for id := range after.Agents {
		undo = append(undo, RemoveAgent(id))
	}
	if err := one.Apply(within(t), undo); err != nil {
		t.Fatal(err)
	}
	check(t, reader, newSnapshot())
}

func FuzzJournalPiece(f *testing.F) {
	f.Add(encodePiece([]Change{PutWeight("a", 1), RemoveAgent("b")}))
	f.Add([]byte{1, 3, 'a'})
	f.Fuzz(func(t *testing.T, b []byte) {
		changes, err := decodePiece(b)
		if err != nil {
			return
		}
		again, err := decodePiece(encodePiece(changes))
		if err != nil || len(again) != len(changes) {
			t.Errorf("decoded %v, then %v, %v", changes, again, err)
		}
	})
}
