package containerizer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// The agent is cut down after each single thing it does in the life of a container, and started again on what is left.
func TestAgentDiesAtEachStepOfALifeAndRecovers(t *testing.T) {
	for cut := 1; ; cut++ {
		var whole bool
		t.Run(fmt.Sprintf("after %d", cut), func(t *testing.T) {
			m, dir := newMachine(t), t.TempDir()
			isolators := []Isolator{
				&fakeIsolator{m: m, name: "a", state: []byte("a's"), calls: []string{"isolate"}},
				&fakeIsolator{m: m, name: "b", after: []string{"a"}},
			}
			want := testContainer(t, "c1")
			m.cutAfter = cut
			c, _ := startAgent(t, m, dir, isolators...)
			// Half of the time the agent dies before it has the end written down, and asks for the container again.
			told := cut%2 == 1
			_, launchErr := c.Launch(t.Context(), want)
			if launchErr == nil {
				m.exit("c1", 7<<8)
				if _, err := c.Wait(t.Context(), "c1"); err != nil {
					t.Fatalf("Wait: %v", err)
				}
				if told {
					if err := c.Forget(t.Context(), "c1"); err != nil {
						t.Fatalf("Forget: %v", err)
					}
				}
				// Let it get as far as it can before it is cut.
				waitFor(t, "the end or the cut", func() bool {
					m.mu.Lock()
					defer m.mu.Unlock()
					return m.dead || len(c.all()) == 0 || !told && slices.Contains(m.log, "cleanup a c1")
				})
			}
			m.mu.Lock()
			whole = !m.dead
			m.mu.Unlock()
			stopAgent(t, c)
			m.revive()

			c, _ = startAgent(t, m, dir, isolators...)
			defer stopAgent(t, c)
			var known []string
			if launchErr != nil || !told {
				known = []string{"c1"}
			}
			found, err := c.Recover(t.Context(), known)
			if err != nil {
				t.Fatalf("Recover: %v", err)
			}
			for _, cp := range found {
				id := cp.GetContainer().GetId()
				if !slices.Contains(m.history(), "start c1") {
					t.Errorf("Recover: got %s %s, want nothing for a command that never ran", id, cp.GetPhase())
				}
				if cp.GetPhase() == containerv1.Checkpoint_RUNNING {
					m.exit(id, 7<<8)
				}
				end, err := c.Wait(t.Context(), id)
				if err != nil {
					t.Fatalf("Wait: %v", err)
				}
				if launchErr == nil && (end.WaitStatus == nil || *end.WaitStatus != 7<<8) {
					t.Errorf("Wait: got %v, want wait status %d", end, 7<<8)
				}
				if err := c.Forget(t.Context(), id); err != nil {
					t.Fatalf("Forget: %v", err)
				}
			}
			waitFor(t, "nothing is left", func() bool { return len(m.left("c1")) == 0 && len(c.all()) == 0 })
			if len(c.intents.live) > 0 {
				t.Errorf("intents: got %v, want none", c.intents.live)
			}
			if len(found) == 0 { // the agent launches what never ran
				if _, err := c.Launch(t.Context(), want); err != nil {
					t.Errorf("Launch again: %v", err)
				}
			}
		})
		if whole {
			break
		}
		if cut > 40 {
			t.Fatalf("the life of a container has more than %d steps", cut)
		}
	}
}

func TestRunningContainersAreFoundAgainUnderTheirPid(t *testing.T) {
	m, dir := newMachine(t), t.TempDir()
	a := &fakeIsolator{m: m, name: "a", state: []byte("a's")}
	c, _ := startAgent(t, m, dir, a)
	pids := map[string]int32{}
	for n := range 50 {
		id := fmt.Sprintf("c%02d", n)
		pid, err := c.Launch(t.Context(), testContainer(t, id))
		if err != nil {
			t.Fatalf("Launch: %v", err)
		}
		pids[id] = pid
	}
	stopAgent(t, c)
	m.exit("c07", 9)
	m.exit("c08", 0)
	m.processes["c08"].blind = true

	c, _ = startAgent(t, m, dir, a)
	defer stopAgent(t, c)
	if got := c.Records("a"); len(got) != 50 || string(got[3].GetState()) != "a's" || got[3].GetPid() != pids["c03"] {
		t.Errorf("Records before Recover: got %d, the fourth %v, want 50 with state and pid", len(got), got[3])
	}
	var known []string
	for id := range pids {
		if id != "c09" {
			known = append(known, id)
		}
	}
	found, err := c.Recover(t.Context(), known)
	if err != nil || len(found) != 49 {
		t.Fatalf("Recover: got %d containers, %v, want 49", len(found), err)
	}
	for _, cp := range found {
		id := cp.GetContainer().GetId()
		switch id {
		case "c07":
			if cp.GetPhase() != containerv1.Checkpoint_ENDED || cp.GetTermination().GetWaitStatus() != 9 {
				t.Errorf("%s: got %v, want ENDED with wait status 9", id, cp)
			}
		case "c08":
			if e := cp.GetTermination(); cp.GetPhase() != containerv1.Checkpoint_ENDED || e.WaitStatus != nil || e.GetState() != "TASK_FAILED" || e.GetMessage() != "container status unknown" {
				t.Errorf("%s: got %v, want ENDED, TASK_FAILED, container status unknown", id, cp)
			}
		default:
			if cp.GetPhase() != containerv1.Checkpoint_RUNNING || cp.GetPid() != pids[id] {
				t.Errorf("%s: got %s pid %d, want RUNNING pid %d", id, cp.GetPhase(), cp.GetPid(), pids[id])
			}
		}
	}
	waitFor(t, "the orphan is gone", func() bool { return len(m.left("c09")) == 0 })
	if last := a.cleanupSeen[slices.IndexFunc(a.cleanupSeen, func(r *isolatorv1.CleanupRequest) bool { return r.GetRecord().GetContainer().GetId() == "c09" })]; last.GetReason() != isolatorv1.CleanupRequest_ORPHAN {
		t.Errorf("Cleanup of the orphan: got reason %s, want ORPHAN", last.GetReason())
	}
	m.exit("c11", 3)
	if end, err := c.Wait(t.Context(), "c11"); err != nil || end.GetWaitStatus() != 3 {
		t.Errorf("Wait after Recover: got %v, %v, want wait status 3", end, err)
	}
	if err := c.Destroy(t.Context(), "c12", nil); err != nil {
		t.Errorf("Destroy after Recover: %v", err)
	}
}

func TestNothingOutlivesTheMachine(t *testing.T) {
	m, dir := newMachine(t), t.TempDir()
	a := &fakeIsolator{m: m, name: "a", state: []byte("on disk")}
	c, _ := startAgent(t, m, dir, a)
	if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	stopAgent(t, c)
	m.boot = "boot-2"
	clear(m.processes)
	c, _ = startAgent(t, m, dir, a)
	defer stopAgent(t, c)
	if got := c.Records("a"); len(got) != 1 || got[0].GetPid() != 0 || !got[0].GetOrphan() {
		t.Errorf("Records after a reboot: got %v, want one orphan without pid", got)
	}
	found, err := c.Recover(t.Context(), []string{"c1"})
	if err != nil || len(found) != 1 || found[0].GetPhase() != containerv1.Checkpoint_ENDED || found[0].GetTermination().GetState() != "TASK_FAILED" {
		t.Errorf("Recover: got %v, %v, want c1 ENDED and TASK_FAILED", found, err)
	}
	waitFor(t, "its cleanup", func() bool { return slices.Contains(m.history(), "cleanup a c1") })
}

func TestModulesCleanUpAfterAnIdWithoutTrace(t *testing.T) {
	m := newMachine(t)
	a := &fakeIsolator{m: m, name: "a"}
	c, _ := startAgent(t, m, t.TempDir(), a)
	defer stopAgent(t, c)
	m.done["a"] = map[string]bool{"lost": true} // it was prepared, and a power cut took the intent
	found, err := c.Recover(t.Context(), []string{"lost"})
	if err != nil || len(found) != 0 {
		t.Fatalf("Recover: got %v, %v, want nothing", found, err)
	}
	if _, err := c.Launch(t.Context(), testContainer(t, "lost")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	h := m.history()
	if clean, prepare := slices.Index(h, "cleanup a lost"), slices.Index(h, "prepare a lost"); clean < 0 || clean > prepare {
		t.Errorf("history: got %v, want the cleanup before the next Prepare", h)
	}
}

func TestOwedCleanupIsRepeatedUntilItSucceedsAndAcrossRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, dir := newMachine(t), t.TempDir()
		below := &fakeIsolator{m: m, name: "below"}
		broken := &fakeIsolator{m: m, name: "broken", after: []string{"below"}}
		other := &fakeIsolator{m: m, name: "other"}
		var code atomic.Uint32
		code.Store(uint32(codes.FailedPrecondition))
		broken.onCleanup = func(*isolatorv1.CleanupRequest) error {
			return status.Error(codes.Code(code.Load()), "isolator(broken): not now") // nil for OK
		}
		c, _ := startAgent(t, m, dir, below, broken, other)
		if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		m.exit("c1", 0)
		if _, err := c.Wait(t.Context(), "c1"); err != nil {
			t.Fatalf("Wait: %v", err)
		}
		if err := c.Forget(t.Context(), "c1"); err != nil {
			t.Fatalf("Forget: %v", err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got, want := m.left("c1"), []string{"checkpoint", "isolator below", "isolator broken"}; !slices.Equal(got, want) {
			t.Errorf("left: got %v, want %v: the one that fails, and the one it stands on", got, want)
		}
		if got := c.Owed(); got["broken"] != 1 || got["below"] != 1 || got["other"] != 0 {
			t.Errorf("Owed: got %v, want broken and below", got)
		}
		if got := broken.asked(); len(got) < 3 || got[0] == got[1] {
			t.Errorf("operations: got %v, want several, each new since each was answered", got)
		}
		stopAgent(t, c)

		c, _ = startAgent(t, m, dir, below, broken, other)
		if _, err := c.Recover(t.Context(), nil); err != nil {
			t.Fatalf("Recover: %v", err)
		}
		synctest.Wait()
		broken.asked()
		code.Store(uint32(codes.Unavailable))
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := broken.asked(); len(got) < 2 || len(slices.Compact(got)) != 1 {
			t.Errorf("operations: got %v, want one repeated, since nobody knows how it went", got)
		}
		code.Store(uint32(codes.OK))
		time.Sleep(time.Minute)
		synctest.Wait()
		if left := m.left("c1"); len(left) > 0 || len(c.Owed()) > 0 {
			t.Errorf("left: got %v, owed %v, want nothing", left, c.Owed())
		}
		stopAgent(t, c)
	})
}

func TestFailedLaunchLeavesWhatIsOwedToTheNextAgent(t *testing.T) {
	m, dir := newMachine(t), t.TempDir()
	a := &fakeIsolator{m: m, name: "a", state: []byte("a's"), onCleanup: func(*isolatorv1.CleanupRequest) error { return errors.New("isolator(a): not now") }}
	c, l := startAgent(t, m, dir, a)
	l.fail = failAt("create")
	if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err == nil {
		t.Fatal("Launch: got no error, want one")
	}
	waitFor(t, "the debt to be written", func() bool { return slices.Contains(m.left("c1"), "checkpoint") })
	stopAgent(t, c)
	a.onCleanup = nil
	c, _ = startAgent(t, m, dir, a)
	defer stopAgent(t, c)
	if _, err := c.Recover(t.Context(), nil); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	waitFor(t, "the cleanup", func() bool { return len(m.left("c1")) == 0 })
	last := a.cleanupSeen[len(a.cleanupSeen)-1]
	if last.GetReason() != isolatorv1.CleanupRequest_LAUNCH_FAILED || string(last.GetRecord().GetState()) != "a's" {
		t.Errorf("Cleanup: got %v, want reason LAUNCH_FAILED and the state of its Prepare", last)
	}
}

func TestCleanupOfAModuleThatLeftTheCompositionStaysOwed(t *testing.T) {
	m, dir := newMachine(t), t.TempDir()
	old := &fakeIsolator{m: m, name: "old"}
	c, _ := startAgent(t, m, dir, old)
	if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	stopAgent(t, c)
	m.exit("c1", 0)
	c, _ = startAgent(t, m, dir)
	if _, err := c.Recover(t.Context(), nil); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	waitFor(t, "its processes to be gone", func() bool { return m.process("c1") == nil })
	if c.Owed()["old"] != 1 {
		t.Errorf("Owed: got %v, want one of isolator(old)", c.Owed())
	}
	stopAgent(t, c)
	c, _ = startAgent(t, m, dir, old)
	defer stopAgent(t, c)
	if _, err := c.Recover(t.Context(), nil); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	waitFor(t, "the cleanup", func() bool { return len(m.left("c1")) == 0 })
}

func TestNoIdIsStartedAgainBesideWhatIsLeftOfIt(t *testing.T) {
	m := newMachine(t)
	c, _ := startAgent(t, m, t.TempDir(), &fakeIsolator{m: m, name: "a"})
	defer stopAgent(t, c)
	if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	p := m.process("c1")
	p.stuck = true // a child of the first process is in uninterruptible sleep
	m.exit("c1", 0)
	if _, err := c.Wait(t.Context(), "c1"); err != nil {
		t.Fatalf("Wait: got %v, want the end to be told although something is left", err)
	}
	if err := c.Forget(t.Context(), "c1"); err != nil {
		t.Fatalf("Forget: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.Launch(short, testContainer(t, "c1")); err == nil || !strings.Contains(err.Error(), "an earlier container of this id is not cleaned up") {
		t.Errorf("Launch: got %v, want it to wait for the first one in vain", err)
	}
	if slices.Contains(m.history(), "cleanup a c1") {
		t.Error("the isolator was told to clean up while something of the container lives")
	}
	m.mu.Lock()
	p.stuck = false
	m.mu.Unlock()
	if _, err := c.Launch(t.Context(), testContainer(t, "c1")); err != nil {
		t.Errorf("Launch: got %v, want it to go on when the first one is gone", err)
	}
}
