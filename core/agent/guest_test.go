package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func TestStandaloneSandboxesAreReadAndCollected(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.config.DiskWatchInterval = 365 * 24 * time.Hour // collected by hand below
		w.start()
		for _, id := range []string{"alive", "over"} {
			command := map[string]string{"alive": "sleep", "over": "true"}[id]
			dir := filepath.Join(w.config.WorkDir, "containers", id)
			if err := os.MkdirAll(dir, 0o750); err != nil { // the containerizer's work
				t.Fatal(err)
			}
			w.expect(200, launchOf(&mesosv1.ContainerID{Value: &id}, command))
			for _, virtual := range []string{dir, "/containers/" + id} {
				if got, err := w.agent.ResolveFile(virtual); err != nil || got != dir {
					t.Errorf("ResolveFile(%q) = %q, %v, want %q", virtual, got, err, dir)
				}
			}
		}
		for _, virtual := range []string{"/containers", "/containers/", "/containers/none", "/containers/over/x", "/containers/..", filepath.Join(w.config.WorkDir, "containers")} {
			if got, err := w.agent.ResolveFile(virtual); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("ResolveFile(%q) = %q, %v, want ErrNotExist", virtual, got, err)
			}
		}
		synctest.Wait()
		now := time.Now()
		if n, _ := w.agent.collect(t.Context(), now, time.Hour); n != 0 {
			t.Errorf("%d sandboxes were removed before their time", n)
		}
		if n, failed := w.agent.collect(t.Context(), now.Add(2*365*24*time.Hour), time.Hour); n != 1 || failed != 0 {
			t.Errorf("collect removed %d and failed on %d, want 1 and 0", n, failed)
		}
		entries, err := os.ReadDir(filepath.Join(w.config.WorkDir, "containers"))
		if err != nil || len(entries) != 1 || entries[0].Name() != "alive" {
			t.Errorf("left are %v, %v, want the sandbox of the one that lives", entries, err)
		}
		w.expect(404, waitOf(&mesosv1.ContainerID{Value: new("over")}))
	})
}

// The sandbox of a task is the task's to arrange: a link in it leads nobody out.
func TestRemovalFollowsNoLinkOutOfTheSandbox(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withExecutor()
		sandbox := w.agent.containers[ContainerID(root)].directory
		outside := filepath.Join(w.dir, "precious")
		for _, dir := range []string{sandbox, filepath.Join(outside, "x")} {
			if err := os.MkdirAll(dir, 0o750); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(outside, filepath.Join(sandbox, "containers")); err != nil {
			t.Fatal(err)
		}
		if _, err := w.operate(removeOf(nestedID(root, "x"))); err == nil {
			t.Error("REMOVE_CONTAINER through a link succeeded")
		}
		if _, err := os.Stat(filepath.Join(outside, "x")); err != nil {
			t.Errorf("what lies outside is gone: %v", err)
		}
		if err := os.Remove(filepath.Join(sandbox, "containers")); err != nil {
			t.Fatal(err)
		}
		left := filepath.Join(sandbox, "containers/x")
		if err := os.MkdirAll(left, 0o750); err != nil {
			t.Fatal(err)
		}
		w.expect(200, removeOf(nestedID(root, "x")))
		if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the sandbox of a container that ended long ago: %v, want it removed", err)
		}
	})
}

func TestContainersThatEndedAreRememberedUpToABound(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withExecutor()
		w.agent.mu.Lock()
		for n := range maxEndedGuests - 2 { // as if launched long ago
			g := newGuest(&containerv1.Container{Id: fmt.Sprintf("%s.old%d", root, n), ParentId: root}, false)
			g.end = &containerv1.Termination{}
			close(g.launched)
			close(g.ended)
			w.agent.guests[g.spec.GetId()] = g
		}
		w.agent.mu.Unlock()
		for n := range 2 + 5 {
			if n < 5 {
				time.Sleep(time.Second)
			}
			w.expect(200, launchOf(nestedID(root, fmt.Sprintf("c%d", n)), "true"))
			synctest.Wait()
		}
		if n := len(w.agent.guests); n != maxEndedGuests {
			t.Errorf("%d are remembered, want %d", n, maxEndedGuests)
		}
		for n := range 7 { // the newest
			w.expect(200, waitOf(nestedID(root, fmt.Sprintf("c%d", n))))
		}
		if n := w.records()["guests"]; n != 7 {
			t.Errorf("%d are on disk, want 7", n)
		}
	})
}

// Calls at random, and an agent that is killed now and then: what is said to run runs, what is on disk is in memory, and
// nothing runs that nobody knows.
func TestAnyHistoryOfContainersIsKeptTrack(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for n := range uint64(6) {
		seed := seed + n
		in(t, func(t *testing.T, w *world) {
			random := rand.New(rand.NewPCG(seed, 1))
			root := w.withTask()
			roots := []string{root, "sa", "sb", root + ".a", "sa.a", root + ".a.b"}
			id := func() *mesosv1.ContainerID {
				r := roots[random.IntN(len(roots))]
				if r != root && random.IntN(2) == 0 {
					return pathOfID(r).message()
				}
				return nestedID(r, []string{"a", "b", "c"}[random.IntN(3)])
			}
			for range 60 {
				var call *agentv1.Call
				switch k := random.IntN(20); {
				case k < 8:
					call = launchOf(id(), []string{"sleep", "true", "exit 4"}[random.IntN(3)])
				case k < 11:
					call = killOf(id())
				case k < 14:
					call = removeOf(id())
				case k < 16:
					if p := id(); p.GetParent() != nil {
						c := newClient()
						if w.agent.LaunchSession(t.Context(), "", session(pathOf(p).up().id(), pathOf(p).own(), "sh"), c) == nil && random.IntN(2) == 0 {
							c.leave()
						}
					}
				case k < 17:
					w.crash()
					w.start()
				}
				if call != nil {
					if _, err := w.operate(call); err != nil && !slices.Contains([]int{202, 400, 404, 500}, httpStatus(err)) {
						t.Errorf("seed %d: %v = %v", seed, call, err)
					}
				}
				synctest.Wait()
				w.agent.mu.Lock()
				durable := 0
				for id, g := range w.agent.guests {
					if g.running() != w.host.runs(id) {
						t.Errorf("seed %d: %s is said to run: %v, and runs: %v", seed, id, g.running(), w.host.runs(id))
					}
					if !g.session {
						durable++
					}
				}
				known := func(id string) bool { return id == root || w.agent.guests[id] != nil }
				var strays []string
				for id := range w.host.procs {
					if w.host.runs(id) && !known(id) {
						strays = append(strays, id)
					}
				}
				w.agent.mu.Unlock()
				if len(strays) > 0 {
					t.Errorf("seed %d: nobody knows %v", seed, strays)
				}
				if n := w.records()["guests"]; n != durable {
					t.Errorf("seed %d: %d are on disk, %d in memory", seed, n, durable)
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}
