package registry

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

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
	var many []Change
	for range 200 {
		many = append(many, PutWeight(string(rune('A'+len(many))), 1))
	}
	if err := one.Apply(within(t), many); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Apply of 200 changes to an etcd that takes 128: %v, want ErrTooLarge", err)
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
