package agent

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

func TestMaxAgeShrinksAsTheDiskFills(t *testing.T) {
	a := &Agent{cfg: Config{GCDelay: 100 * time.Hour, GCDiskHeadroom: 0.1}}
	for used, want := range map[float64]time.Duration{0: 90 * time.Hour, 0.4: 50 * time.Hour, 0.9: 0, 1: 0} {
		if got := a.maxAge(used).Round(time.Second); got != want {
			t.Errorf("maxAge(%v) = %v, want %v", used, got, want)
		}
	}
}

func TestOldSandboxesGoAndLiveOnesStay(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), command("alive", "sleep"))
		w.launch(checkpointed("F"), command("dead", "true"))
		w.master.await(t, "alive", mesosv1.TaskState_TASK_RUNNING)
		w.master.await(t, "dead", mesosv1.TaskState_TASK_FINISHED)
		synctest.Wait()
		executors := filepath.Join(w.config.WorkDir, "slaves/M-S0/frameworks/F/executors")
		alive := filepath.Join(executors, "alive/runs", w.container("alive"))
		dead := filepath.Join(executors, "dead/runs", w.container("dead"))
		outside := filepath.Join(w.dir, "precious")
		old := filepath.Join(w.config.WorkDir, "slaves/OLD/frameworks/G/executors/x/runs/c1")
		for _, dir := range []string{alive, dead, outside, old} {
			if err := os.MkdirAll(dir, 0o750); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(dir, time.Now(), time.Now()); err != nil { // files live in real time
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(outside, "data"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, filepath.Join(old, "link")); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		if err := os.Chtimes(old, now, now); err != nil {
			t.Fatal(err)
		}
		if n, _ := w.agent.collect(t.Context(), now.Add(59*time.Minute), time.Hour); n != 0 {
			t.Errorf("%d sandboxes were removed before their time", n)
		}
		if n, failed := w.agent.collect(t.Context(), now.Add(time.Hour), time.Hour); n != 2 || failed != 0 {
			t.Errorf("collect removed %d, failed on %d, want 2 and 0", n, failed)
		}
		for path, want := range map[string]bool{
			alive: true, filepath.Join(executors, "alive/runs/latest"): true, filepath.Join(outside, "data"): true,
			filepath.Join(executors, "dead"): false, filepath.Join(w.config.WorkDir, "slaves/OLD"): false,
		} {
			if _, err := os.Lstat(path); (err == nil) != want {
				t.Errorf("%s is there: %v, want %v", path, err == nil, want)
			}
		}
	})
}

func TestAgeOfASandboxCountsFromTheEnd(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.config.DiskWatchInterval = 365 * 24 * time.Hour // collected by hand below
		w.start()
		w.launch(checkpointed("F"), command("t", "sleep"))
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		dir := filepath.Join(w.config.WorkDir, "slaves/M-S0/frameworks/F/executors/t/runs", w.container("t"))
		if err := os.MkdirAll(dir, 0o750); err != nil { // the containerizer's work
			t.Fatal(err)
		}
		begin := time.Now()
		if err := os.Chtimes(dir, begin, begin); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * 24 * time.Hour)
		w.host.end(w.container("t"), 0)
		w.master.await(t, "t", mesosv1.TaskState_TASK_FINISHED)
		synctest.Wait()
		if n, _ := w.agent.collect(t.Context(), time.Now(), time.Hour); n != 0 {
			t.Error("the sandbox of a task that ran for a month was removed at its end")
		}
		if n, _ := w.agent.collect(t.Context(), time.Now().Add(time.Hour), time.Hour); n != 1 {
			t.Error("the sandbox stayed beyond its time")
		}
	})
}
