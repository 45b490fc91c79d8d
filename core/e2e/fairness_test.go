package e2e

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// taker is a framework that wants all there is and takes it task by task.
type taker struct {
	f     *cluster.Framework
	role  string
	tasks int
}

// fill has every taker take tasks of so many cpus until n of them are launched in all.
func fill(ctx context.Context, t *testing.T, takers []*taker, cpus float64, n int) {
	t.Helper()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	launched := make(chan *taker)
	failed := make(chan error, len(takers))
	var wait sync.WaitGroup
	for i, k := range takers {
		wait.Go(func() {
			for n := 0; ; n++ {
				o, err := k.f.Offer(ctx, cpus, 8)
				if err == nil {
					err = k.f.Launch(ctx, o, cluster.Task(o, fmt.Sprintf("fill-%d-%d", i, n), cpus, 8, cluster.Exec("sleep", "1000")))
				}
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					failed <- err
					return
				}
				select {
				case launched <- k:
				case <-ctx.Done():
				}
			}
		})
	}
	for range n {
		select {
		case k := <-launched:
			k.tasks++
		case err := <-failed:
			t.Fatal(err)
		case <-ctx.Done():
			for _, k := range takers {
				t.Logf("%s has %d tasks", k.role, k.tasks)
			}
			t.Fatal(ctx.Err())
		}
	}
	stop()
	wait.Wait()
}

func TestTenFrameworksOfATreeOfRolesShareByWeight(t *testing.T) {
	c := start(t, cluster.Options{Dev: true, Resources: "cpus:12;mem:8192;disk:1000"})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	m := newPeer(ctx, t, masterAPI, c.Master, mediaJSON)
	m.call(http.StatusOK, object{"type": "UPDATE_WEIGHTS", "update_weights": object{"weight_infos": []any{
		object{"role": "one", "weight": 1}, object{"role": "two", "weight": 2}, object{"role": "three", "weight": 3},
	}}})
	var takers []*taker
	for _, role := range []string{"one/a", "one/b", "one/c", "two/a", "two/b", "two/c", "three/a", "three/b", "three/c", "three/d"} {
		f, err := cluster.Subscribe(ctx, c.Master, strings.ReplaceAll(role, "/", "-"), role)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Disconnect()
		takers = append(takers, &taker{f: f, role: role})
	}
	const all = 120 // tasks of 0.1 cpus fill the agent
	fill(ctx, t, takers, 0.1, all)
	share := map[string]int{}
	leaves := map[string][]int{}
	for _, k := range takers {
		top, _, _ := strings.Cut(k.role, "/")
		share[top] += k.tasks
		leaves[top] = append(leaves[top], k.tasks)
	}
	for top, weight := range map[string]float64{"one": 1, "two": 2, "three": 3} {
		want := all * weight / 6
		if got := float64(share[top]); math.Abs(got-want) > 0.05*want {
			t.Errorf("role %s of weight %v has %v of %d tasks, want %v within 5 %%", top, weight, got, all, want)
		}
		// Equals within a role share equally, to a task.
		for _, n := range leaves[top] {
			if mean := float64(share[top]) / float64(len(leaves[top])); math.Abs(float64(n)-mean) > 1 {
				t.Errorf("below role %s the frameworks have %v tasks, want about %.1f each", top, leaves[top], mean)
				break
			}
		}
	}
}

// quotaOf sets a role's quota: cpus, and with a guarantee memory as well, for an offer of cpus alone is of little use. A
// negative limit is none.
func quotaOf(m *peer, role string, guarantee, limit float64) {
	m.t.Helper()
	config := object{"role": role, "guarantees": object{"cpus": object{"value": guarantee}}}
	if guarantee > 0 {
		config["guarantees"].(object)["mem"] = object{"value": 512}
	}
	if limit >= 0 {
		config["limits"] = object{"cpus": object{"value": limit}}
	}
	m.call(http.StatusOK, object{"type": "UPDATE_QUOTA", "update_quota": object{"quota_configs": []any{config}}})
}

func TestAGuaranteeIsMetAtOnceAndALimitIsNeverPassed(t *testing.T) {
	c := start(t, cluster.Options{Dev: true, Resources: "cpus:4;mem:4096;disk:1000"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m := newPeer(ctx, t, masterAPI, c.Master, mediaJSON)
	hog, err := cluster.Subscribe(ctx, c.Master, "hog", "hog")
	if err != nil {
		t.Fatal(err)
	}
	defer hog.Disconnect()
	// It holds an offer of everything.
	if _, err := hog.Offer(ctx, 4, 32); err != nil {
		t.Fatal(err)
	}
	quotaOf(m, "vip", 2.5, -1)
	vip, err := cluster.Subscribe(ctx, c.Master, "vip", "vip")
	if err != nil {
		t.Fatal(err)
	}
	defer vip.Disconnect()
	begun := time.Now()
	o, err := vip.Offer(ctx, 2.5, 32)
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begun); d > 3*time.Second {
		t.Errorf("the guarantee was offered after %s, want it with the next allocation", d)
	}
	if err := vip.Launch(ctx, o, cluster.Task(o, "guaranteed", 2.5, 32, cluster.Exec("sleep", "1000"))); err != nil {
		t.Fatal(err)
	}
	if _, err := vip.State(ctx, []string{"guaranteed"}, mesosv1.TaskState_TASK_RUNNING); err != nil {
		t.Fatal(err)
	}
	if err := vip.Enough(ctx); err != nil {
		t.Fatal(err)
	}
	if err := hog.Enough(ctx); err != nil {
		t.Fatal(err)
	}

	quotaOf(m, "capped", 0, 0.5)
	capped, err := cluster.Subscribe(ctx, c.Master, "capped", "capped")
	if err != nil {
		t.Fatal(err)
	}
	defer capped.Disconnect()
	o, err = capped.Offer(ctx, 0.5, 32)
	if err != nil {
		t.Fatal(err)
	}
	if got := cluster.Scalar(o.GetResources(), "cpus"); got != 0.5 {
		t.Errorf("a role with a limit of 0.5 cpus is offered %v", got)
	}
	if err := capped.Launch(ctx, o, cluster.Task(o, "capped", 0.5, 32, cluster.Exec("sleep", "1000"))); err != nil {
		t.Fatal(err)
	}
	if _, err := capped.State(ctx, []string{"capped"}, mesosv1.TaskState_TASK_RUNNING); err != nil {
		t.Fatal(err)
	}
	// It wants more, and a cpu is free; the master says why it gets none.
	short, stop := context.WithTimeout(ctx, 3*time.Second)
	defer stop()
	if o, err := capped.Offer(short, 0.1, 8); err == nil {
		t.Errorf("at its limit the role is offered %v", o)
	}
	if r := mosaic(t, c, 0, "explain", "role", "capped"); !strings.Contains(r.Stdout, "limit") {
		t.Errorf("explain role capped:\n%s\nwant the limit", r.Stdout)
	}
}

func TestAFrameworkThatNeverAnswersDelaysTheOthersByALeaseAtMost(t *testing.T) {
	const lease = 2 * time.Second
	c := start(t, cluster.Options{Dev: true, Resources: "cpus:4;mem:4096;disk:1000", Composition: `master { offer_timeout = "2s" }`})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	silent, err := cluster.Subscribe(ctx, c.Master, "silent", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Disconnect()
	// It is offered everything, and says nothing for ever.
	if _, err := silent.Offer(ctx, 4, 32); err != nil {
		t.Fatal(err)
	}
	worker, err := cluster.Subscribe(ctx, c.Master, "worker", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer worker.Disconnect()
	for n := range 4 {
		begun := time.Now()
		o, err := worker.Offer(ctx, 1, 32)
		if err != nil {
			t.Fatal(err)
		}
		// An allocation follows an event within a second at most.
		if d := time.Since(begun); d > lease+1500*time.Millisecond {
			t.Errorf("offer %d came after %s, want it within a lease of %s and an allocation", n, d, lease)
		}
		id := fmt.Sprintf("work-%d", n)
		if err := worker.Launch(ctx, o, cluster.Task(o, id, 1, 32, cluster.Exec("true"))); err != nil {
			t.Fatal(err)
		}
		if _, err := worker.State(ctx, []string{id}, mesosv1.TaskState_TASK_FINISHED); err != nil {
			t.Fatal(err)
		}
	}
}
