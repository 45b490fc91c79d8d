package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	"github.com/mosaic-cluster/mosaic/sdk/scheduler"
)

// moduleStatus is what `mosaic module ls -o json` says of one module.
type moduleStatus struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	State    string `json:"state"`
	Pid      int    `json:"pid"`
	Restarts int    `json:"restarts"`
	Owed     int    `json:"cleanups_owed"`
}

func modules(t *testing.T, c *cluster.Cluster) map[string]moduleStatus {
	t.Helper()
	var list []moduleStatus
	r := mosaic(t, c, 0, "module", "ls", "-o", "json")
	if err := json.Unmarshal([]byte(r.Stdout), &list); err != nil {
		t.Fatalf("module ls -o json: %v\n%s", err, r.Stdout)
	}
	m := map[string]moduleStatus{}
	for _, s := range list {
		m[s.Kind+"/"+s.Name] = s
	}
	return m
}

// fleet is a framework with tasks that write their pids.
type fleet struct {
	*cluster.Framework
	ids []string
	dir string
}

// launchFleet runs n tasks; each writes its pid into dir and then runs script.
func launchFleet(ctx context.Context, t *testing.T, c *cluster.Cluster, n int, script func(i int) string) *fleet {
	t.Helper()
	f, err := cluster.Subscribe(ctx, c.Master, "fleet", "*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Disconnect)
	o, err := f.Offer(ctx, 0.01*float64(n), 16*float64(n))
	if err != nil {
		t.Fatal(err)
	}
	fl := &fleet{Framework: f, dir: t.TempDir()}
	var tasks []*mesosv1.TaskInfo
	for i := range n {
		id := fmt.Sprintf("task-%02d", i)
		fl.ids = append(fl.ids, id)
		line := fmt.Sprintf("awk '{print $1}' /proc/self/stat >/dev/null; echo $$ >%s/%s.tmp; mv %[1]s/%[2]s.tmp %[1]s/%[2]s; %s", fl.dir, id, script(i))
		tasks = append(tasks, cluster.Task(o, id, 0.01, 16, cluster.Shell(line)))
	}
	if err := f.Launch(ctx, o, tasks...); err != nil {
		t.Fatal(err)
	}
	if err := f.Enough(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(ctx, fl.ids, mesosv1.TaskState_TASK_RUNNING); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all pids written", 10*time.Second, func() bool { return len(fl.pids(t)) == n })
	return fl
}

// pids are the pids that tasks wrote, by task. Without an own pid namespace they are the host's.
func (f *fleet) pids(t *testing.T) map[string]int {
	t.Helper()
	m := map[string]int{}
	for _, id := range f.ids {
		data, err := os.ReadFile(filepath.Join(f.dir, id))
		if err != nil {
			continue
		}
		var pid int
		if _, err := fmt.Sscan(string(data), &pid); err == nil {
			m[id] = pid
		}
	}
	return m
}

// checkUndisturbed fails if a task changed its pid or had an update beyond TASK_RUNNING.
func (f *fleet) checkUndisturbed(t *testing.T, before map[string]int) {
	t.Helper()
	now := f.pids(t)
	for _, id := range f.ids {
		if now[id] != before[id] || !alive(now[id]) {
			t.Errorf("task %s: pid was %d, is %d, alive %v", id, before[id], now[id], alive(now[id]))
		}
		for _, u := range f.Updates(id) {
			if s := u.Status.GetState(); s != mesosv1.TaskState_TASK_STARTING && s != mesosv1.TaskState_TASK_RUNNING {
				t.Errorf("task %s had update %s: %s", id, s, u.Status.GetMessage())
			}
		}
	}
}

// hostPids composes the bundle so that tasks see the host's pids.
const hostPids = `
isolator "cgroups" {}
isolator "rlimits" {}
isolator "linux" {}
`

func TestKillingModulesDisturbsNoTask(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Composition: hostPids})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	fl := launchFleet(ctx, t, c, 50, func(int) string { return "sleep 1000" })
	before := fl.pids(t)

	kill := func(names ...string) {
		t.Helper()
		was := modules(t, c)
		for _, n := range names {
			if err := syscall.Kill(was[n].Pid, syscall.SIGKILL); err != nil {
				t.Fatalf("kill module %s (pid %d): %v", n, was[n].Pid, err)
			}
		}
		// A launch within the outage waits for the module and succeeds.
		mosaic(t, c, 0, "run", "--", "true")
		for _, n := range names {
			eventually(t, n+" is back", 5*time.Second, func() bool {
				is := modules(t, c)[n]
				return is.State == "up" && is.Pid != was[n].Pid && is.Restarts > was[n].Restarts
			})
		}
		fl.checkUndisturbed(t, before)
	}
	var all []string
	for name := range modules(t, c) {
		kill(name)
		all = append(all, name)
	}
	if len(all) != 3 {
		t.Errorf("modules %v, want the three of the composition", all)
	}
	kill(all...)
}

func TestKillingTheAgentLosesNoTaskAndNoUpdate(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Composition: hostPids})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const n, leaving = 50, 10
	gate := filepath.Join(t.TempDir(), "gate")
	fl := launchFleet(ctx, t, c, n, func(i int) string {
		if i < leaving { // ends with a code of its own while the agent is away
			return fmt.Sprintf("while ! [ -e %s ]; do sleep 0.05; done; exit %d", gate, i)
		}
		return "sleep 1000"
	})
	before := fl.pids(t)
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the leaving tasks end", 10*time.Second, func() bool {
		for _, id := range fl.ids[:leaving] {
			if alive(before[id]) {
				return false
			}
		}
		return true
	})
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	ended, err := fl.State(ctx, fl.ids[:leaving], mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED,
		mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_GONE, mesosv1.TaskState_TASK_DROPPED)
	if err != nil {
		t.Fatalf("%v\n%s", err, c.Logs())
	}
	for i, id := range fl.ids[:leaving] {
		s := ended[id].Status
		wantState, wantMessage := mesosv1.TaskState_TASK_FAILED, fmt.Sprintf("Command exited with status %d", i)
		if i == 0 {
			wantState = mesosv1.TaskState_TASK_FINISHED
		}
		if s.GetState() != wantState || s.GetMessage() != wantMessage {
			t.Errorf("task %s ended as %s %q, want %s %q", id, s.GetState(), s.GetMessage(), wantState, wantMessage)
		}
	}
	stay := &fleet{Framework: fl.Framework, ids: fl.ids[leaving:], dir: fl.dir}
	stay.checkUndisturbed(t, before)
	// The agent has them all again: it can still end them.
	if err := fl.Client().Kill(ctx, &mesosv1.TaskID{Value: &stay.ids[0]}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := fl.State(ctx, stay.ids[:1], mesosv1.TaskState_TASK_KILLED); err != nil {
		t.Errorf("kill after recovery: %v", err)
	}
	if err := fl.Teardown(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all tasks end with their framework", 20*time.Second, func() bool {
		for _, pid := range before {
			if alive(pid) {
				return false
			}
		}
		return true
	})
}

func TestKillingTheMasterLosesNoTask(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Composition: hostPids})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	fl := launchFleet(ctx, t, c, 10, func(int) string { return "sleep 1000" })
	before := fl.pids(t)
	if err := c.KillMaster(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartMaster(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the tasks are back in the master", 30*time.Second, func() bool {
		r, err := c.Mosaic(ctx, "task", "ls")
		return err == nil && strings.Count(r.Stdout, "TASK_RUNNING") == 10
	})
	fl.checkUndisturbed(t, before)
	eventually(t, "the framework is subscribed again", 20*time.Second, func() bool {
		return !errors.Is(fl.Client().Suppress(ctx), scheduler.ErrNotSubscribed)
	})
	if err := fl.Teardown(ctx); err != nil {
		t.Fatalf("teardown after the framework resubscribed: %v", err)
	}
	eventually(t, "all tasks end with their framework", 20*time.Second, func() bool {
		for _, pid := range before {
			if alive(pid) {
				return false
			}
		}
		return true
	})
}
