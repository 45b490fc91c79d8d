package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	maintenancev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/maintenance"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"
)

func ptr[T any](v T) *T { return &v }

// patience bounds every test's calls: none takes a tenth of it on a loaded machine.
const patience = 30 * time.Second

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func open(t testing.TB, dir string) *Etcd {
	t.Helper()
	s, err := OpenEmbedded(within(t), EmbeddedConfig{Dir: dir, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		t.Fatalf("OpenEmbedded: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func lead(t testing.TB, s Store) Leadership {
	t.Helper()
	l, err := s.Campaign(within(t), "m1", "127.0.0.1:5050")
	if err != nil {
		t.Fatalf("Campaign: %v", err)
	}
	return l
}

// stores runs a test on every store, led.
func stores(t *testing.T, test func(t *testing.T, s Store)) {
	t.Run("memory", func(t *testing.T) { test(t, NewMemory()) })
	t.Run("embedded", func(t *testing.T) {
		s := open(t, t.TempDir())
		lead(t, s)
		test(t, s)
	})
}

func agentInfo(host string) *mesosv1.AgentInfo {
	return &mesosv1.AgentInfo{Hostname: &host, Port: ptr(int32(5051))}
}

func TestEveryKindOfObjectComesBackAsItWasPut(t *testing.T) {
	drain := &mesosv1.DrainInfo{State: mesosv1.DrainState_DRAINING.Enum(), Config: &mesosv1.DrainConfig{MarkGone: ptr(true)}}
	since := time.Date(2026, 5, 6, 7, 8, 9, 10, time.UTC)
	machine := &mesosv1.MachineInfo{Id: &mesosv1.MachineID{Hostname: ptr("H/1"), Ip: ptr("10.0.0.1")}, Mode: mesosv1.MachineInfo_DOWN.Enum()}
	quota := &quotav1.QuotaConfig{Role: ptr("eng"), Limits: map[string]*mesosv1.Value_Scalar{"cpus": {Value: ptr(4.0)}}}
	schedule := &maintenancev1.Schedule{Windows: []*maintenancev1.Window{{
		MachineIds:     []*mesosv1.MachineID{{Hostname: ptr("h")}},
		Unavailability: &mesosv1.Unavailability{Start: &mesosv1.TimeInfo{Nanoseconds: ptr(int64(5))}}}}}
	master := &mesosv1.MasterInfo{Id: ptr("m"), Ip: ptr(uint32(1)), Port: ptr(uint32(5050))}
	stores(t, func(t *testing.T, s Store) {
		want := newSnapshot()
		want.Master = master
		want.Agents["S0/odd id%"] = Agent{Info: agentInfo("a"), Drain: drain, Deactivated: true}
		want.Agents["S1"] = Agent{Info: agentInfo("b")}
		want.Unreachable["S2"] = Departure{Since: since, Agent: Agent{Info: agentInfo("c")}}
		want.Gone["S3"] = Departure{Since: since}
		want.Quotas["eng"] = quota
		want.Weights["eng/dev"] = 2.5
		want.Schedule = schedule
		want.Machines = []*mesosv1.MachineInfo{machine}
		changes := []Change{
			PutMaster(master), PutAgent("S0/odd id%", want.Agents["S0/odd id%"]), PutAgent("S1", want.Agents["S1"]),
			PutUnreachable("S2", want.Unreachable["S2"]), PutGone("S3", want.Gone["S3"]), PutQuota(quota),
			PutWeight("eng/dev", 2.5), PutSchedule(schedule), PutMachine(machine),
		}
		if err := s.Apply(within(t), changes); err != nil {
			t.Fatalf("Apply: %v", err)
		}
		check(t, s, want)

		removals := []Change{
			RemoveAgent("S0/odd id%"), RemoveUnreachable("S2"), RemoveGone("S3"), RemoveQuota("eng"), RemoveWeight("eng/dev"),
			RemoveMachine(&mesosv1.MachineID{Hostname: ptr("h/1"), Ip: ptr("10.0.0.1")}), RemoveAgent("never there"),
			PutAgent("S1", Agent{Info: agentInfo("first")}), PutAgent("S1", Agent{Info: agentInfo("last")}),
		}
		if err := s.Apply(within(t), removals); err != nil {
			t.Fatalf("Apply: %v", err)
		}
		want = newSnapshot()
		want.Master, want.Schedule = master, schedule
		want.Agents["S1"] = Agent{Info: agentInfo("last")}
		check(t, s, want)
	})
}

func check(t testing.TB, s Store, want *Snapshot) {
	t.Helper()
	got, err := s.Load(within(t))
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("Load (-want +got):\n%s", diff)
	}
}

func TestChangesAreRefusedWithoutLeadership(t *testing.T) {
	stores(t, func(t *testing.T, s Store) {
		first := lead(t, s)
		if err := s.Apply(within(t), []Change{PutWeight("a", 1)}); err != nil {
			t.Fatalf("Apply of the leader: %v", err)
		}
		second := lead(t, s)
		select {
		case <-first.Lost:
		case <-within(t).Done():
			t.Fatal("the first leadership goes on beside the second")
		}
		if second.Term <= first.Term {
			t.Errorf("terms %d then %d, want them to grow", first.Term, second.Term)
		}
		if addr, ok := s.Leader(within(t)); !ok || addr != "127.0.0.1:5050" {
			t.Errorf("Leader() = %q, %v, want 127.0.0.1:5050", addr, ok)
		}
		if err := s.Apply(within(t), []Change{{}}); err == nil {
			t.Error("Apply of an empty change succeeded")
		}
		if err := s.Apply(within(t), []Change{PutQuota(&quotav1.QuotaConfig{})}); err == nil {
			t.Error("Apply of a quota without a role succeeded")
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		select {
		case <-second.Lost:
		case <-within(t).Done():
			t.Error("leadership goes on after Close")
		}
		if err := s.Apply(within(t), []Change{PutWeight("a", 1)}); !errors.Is(err, ErrClosed) {
			t.Errorf("Apply after Close: %v, want ErrClosed", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

func TestApplyBeforeCampaignIsRefused(t *testing.T) {
	if err := open(t, t.TempDir()).Apply(within(t), []Change{PutWeight("a", 1)}); !errors.Is(err, ErrNotLeader) {
		t.Errorf("Apply: %v, want ErrNotLeader", err)
	}
}

// A master that was cut off still believes that it leads; its writes must not land.
func TestATermThatHasEndedCannotWrite(t *testing.T) {
	s := open(t, t.TempDir())
	l := lead(t, s)
	if _, err := s.client.Delete(within(t), s.fence.key); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(within(t), []Change{PutWeight("a", 1)}); !errors.Is(err, ErrNotLeader) {
		t.Errorf("Apply: %v, want ErrNotLeader", err)
	}
	select {
	case <-l.Lost:
	case <-within(t).Done():
		t.Error("Lost stays open after a refused write")
	}
	check(t, s, newSnapshot())
}

func TestMemoryFailsAndIsDeposedOnRequest(t *testing.T) {
	m := NewMemory()
	broken := errors.New("disk full")
	m.Fail(broken)
	if err := m.Apply(within(t), []Change{PutWeight("a", 1)}); !errors.Is(err, broken) {
		t.Errorf("Apply: %v, want %v", err, broken)
	}
	m.Fail(nil)
	m.Depose()
	if err := m.Apply(within(t), []Change{PutWeight("a", 1)}); !errors.Is(err, ErrNotLeader) {
		t.Errorf("Apply: %v, want ErrNotLeader", err)
	}
	check(t, m, newSnapshot())
}

func TestReopenedRegistryLeadsAtOnceAndHasEverything(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	first := lead(t, s)
	var changes []Change
	want := newSnapshot()
	for i := range 2500 { // more than two pages
		id := fmt.Sprintf("S%d", i)
		want.Agents[id] = Agent{Info: agentInfo("host-" + id)}
		changes = append(changes, PutAgent(id, want.Agents[id]))
	}
	if err := s.Apply(within(t), changes); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	began := time.Now()
	s = open(t, dir)
	second := lead(t, s)
	t.Logf("reopened and leading after %v", time.Since(began))
	if second.Term <= first.Term {
		t.Errorf("terms %d then %d, want them to grow over a restart", first.Term, second.Term)
	}
	check(t, s, want)
}

func TestApplyIsAllOrNothing(t *testing.T) {
	s := open(t, t.TempDir())
	lead(t, s)
	big := []Change{PutWeight("a", 1), PutAgent("S", Agent{Info: agentInfo(strings.Repeat("x", embeddedMaxBytes))})}
	if err := s.Apply(within(t), big); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Apply of too many bytes: %v, want ErrTooLarge", err)
	}
	check(t, s, newSnapshot())
}

func TestWritersOfManyGoroutinesAllLand(t *testing.T) {
	s := open(t, t.TempDir())
	lead(t, s)
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	for w := range 64 {
		wg.Go(func() {
			for i := range 20 {
				if err := s.Apply(context.Background(), []Change{PutWeight(fmt.Sprintf("w%d", w), float64(i)), PutWeight("shared", float64(w))}); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Fatalf("Apply: %v", err)
	}
	got, err := s.Load(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Weights) != 65 {
		t.Errorf("%d weights, want 65", len(got.Weights))
	}
	for w := range 64 {
		if v := got.Weights[fmt.Sprintf("w%d", w)]; v != 19 {
			t.Errorf("weight of w%d = %v, want its last, 19", w, v)
		}
	}
}

func TestCallersContextBoundsApply(t *testing.T) {
	s := open(t, t.TempDir())
	lead(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Apply(ctx, []Change{PutWeight("a", 1)}); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Apply: %v, want nil or context.Canceled", err)
	}
}

func TestDirectoryInUseIsNamed(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	_, err := OpenEmbedded(within(t), EmbeddedConfig{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("OpenEmbedded = %v, want an error that names %s and the process", err, dir)
	}
}

func TestUnreadableDirectoryIsNamed(t *testing.T) {
	for _, pattern := range []string{"etcd/member/wal/*.wal", "etcd/member/snap/db"} {
		dir := t.TempDir()
		s := open(t, dir)
		lead(t, s)
		if err := s.Apply(within(t), []Change{PutWeight("a", 1)}); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for i := range min(len(text), 64<<10) {
				text[i] ^= 0x5a
			}
			if err := os.WriteFile(f, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err = OpenEmbedded(within(t), EmbeddedConfig{Dir: dir})
		if err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s damaged: OpenEmbedded = %v, want an error that names %s", pattern, err, dir)
		}
		t.Logf("%s damaged: %v", pattern, err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenEmbedded(within(t), EmbeddedConfig{Dir: file}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("OpenEmbedded of a file = %v, want an error that names it", err)
	}
}

func TestValuesOfANewerMasterAreNotMisread(t *testing.T) {
	s := newSnapshot()
	if err := s.load("agent/S1", []byte{valueVersion + 1, 1, 2}); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("load of a newer version: %v, want an error that says so", err)
	}
	if err := s.load("comet/halley", []byte{99}); err != nil {
		t.Errorf("load of an unknown kind: %v, want it left out", err)
	}
	later := PutAgent("S1", Agent{Info: agentInfo("h")})
	later.value = append(later.value, 0xfa, 0x01, 2, 'x', 'y') // field 31, which is not known yet
	if err := s.load(later.key, later.value); err != nil || s.Agents["S1"].Info.GetHostname() != "h" {
		t.Errorf("load with an unknown field = %v, %v, want it skipped", s.Agents, err)
	}
}

func FuzzLoad(f *testing.F) {
	for _, c := range []Change{
		PutAgent("S1", Agent{Info: agentInfo("h"), Drain: &mesosv1.DrainInfo{State: mesosv1.DrainState_DRAINED.Enum(), Config: &mesosv1.DrainConfig{}}}),
		PutWeight("a/b", 2), PutGone("x", Departure{Since: time.Unix(1, 2)}), PutQuota(&quotav1.QuotaConfig{Role: ptr("r")}),
	} {
		f.Add(c.key, c.value)
	}
	f.Add("agent/%zz", []byte{1, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		s := newSnapshot()
		if s.load(key, value) != nil {
			return
		}
		for id, a := range s.Agents { // what was read is written as what reads the same
			again := newSnapshot()
			c := PutAgent(id, a)
			if c.err != nil {
				continue
			}
			if err := again.load(c.key, c.value); err != nil || !proto.Equal(again.Agents[id].Info, a.Info) {
				t.Errorf("agent %q: read %v, wrote and read %v, %v", id, a, again.Agents[id], err)
			}
		}
	})
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestThreeMembersElectOneLeaderAndSurviveItsLoss(t *testing.T) {
	members := map[string]string{}
	for _, name := range []string{"m1", "m2", "m3"} {
		members[name] = "http://" + freePort(t)
	}
	all := map[string]*Etcd{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for name := range members {
		dir := t.TempDir()
		wg.Go(func() {
			s, err := OpenEmbedded(within(t), EmbeddedConfig{Dir: dir, Name: name, Members: members, LeaseTTL: 2 * time.Second})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all[name] = s
		})
	}
	wg.Wait()
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for _, s := range all {
			wg.Go(func() { s.Close() })
		}
		wg.Wait()
	})
	if t.Failed() {
		return
	}
	first, err := all["m1"].Campaign(within(t), "m1", "one:5050")
	if err != nil {
		t.Fatal(err)
	}
	if err := all["m1"].Apply(within(t), []Change{PutWeight("a", 3)}); err != nil {
		t.Fatal(err)
	}
	won := make(chan Leadership, 1)
	ctx := within(t)
	wg.Go(func() {
		l, err := all["m2"].Campaign(ctx, "m2", "two:5050")
		if err != nil {
			t.Errorf("m2: %v", err)
			return
		}
		won <- l
	})
	for _, name := range []string{"m2", "m3"} {
		if addr, ok := all[name].Leader(within(t)); !ok || addr != "one:5050" {
			t.Errorf("%s: Leader() = %q, %v, want one:5050", name, addr, ok)
		}
	}
	if err := all["m3"].Apply(within(t), []Change{PutWeight("a", 4)}); !errors.Is(err, ErrNotLeader) {
		t.Errorf("Apply of a follower: %v, want ErrNotLeader", err)
	}
	select {
	case l := <-won:
		t.Fatalf("m2 leads in term %d while m1 leads in term %d", l.Term, first.Term)
	default:
	}
	if err := all["m1"].Close(); err != nil {
		t.Logf("Close: %v", err)
	}
	select {
	case l := <-won:
		if l.Term <= first.Term {
			t.Errorf("terms %d then %d, want them to grow", first.Term, l.Term)
		}
	case <-ctx.Done():
		t.Fatal("m2 does not lead after m1 has gone")
	}
	wg.Wait()
	if err := all["m2"].Apply(within(t), []Change{PutWeight("b", 5)}); err != nil {
		t.Fatal(err)
	}
	want := newSnapshot()
	want.Weights = map[string]float64{"a": 3, "b": 5}
	check(t, all["m3"], want)
}

func TestMembersOffLoopbackNeedTLS(t *testing.T) {
	_, err := OpenEmbedded(within(t), EmbeddedConfig{Dir: t.TempDir(), Name: "a", Members: map[string]string{"a": "http://10.1.2.3:2380", "b": "http://10.1.2.4:2380"}})
	if err == nil || !strings.Contains(err.Error(), "TLS") {
		t.Errorf("OpenEmbedded = %v, want an error that asks for TLS", err)
	}
}
