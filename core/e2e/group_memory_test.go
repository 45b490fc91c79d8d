package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// Two tasks of a group that share a memory limit end together when one of them reaches it; with share_cgroups false only
// the one whose own limit it was does, and the other by the failure policy.
func TestMemoryLimitOfAGroup(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	for _, share := range []bool{true, false} {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		p := subscribe(ctx, t, c.Master, "application/json", "groups", nil)
		o := p.offer(1, nil)
		name := "together"
		info := func(x object) object {
			if !share {
				x["container"] = object{"type": "MESOS", "linux_info": object{"share_cgroups": false}}
				name = "apart"
			}
			return x
		}
		hog, calm := info(taskOf(o, "hog", "sleep 1; exec tail /dev/zero")), info(taskOf(o, "calm", "exec sleep 1000"))
		p.accept(o, groupOf(p, name, hog, calm))
		ends := map[string]object{}
		for len(ends) < 2 {
			e := p.await("UPDATE", func(e object) bool {
				s := dig(e, "update", "status", "state")
				return s != "TASK_RUNNING" && s != "TASK_KILLING" && s != "TASK_STARTING"
			})
			s := dig(e, "update", "status").(object)
			ends[dig(s, "task_id", "value").(string)] = s
		}
		limited := func(s object) bool {
			m, _ := s["message"].(string)
			return s["state"] == "TASK_FAILED" && s["reason"] == "REASON_CONTAINER_LIMITATION_MEMORY" && strings.HasPrefix(m, "Memory limit exceeded")
		}
		if !limited(ends["hog"]) {
			t.Errorf("hog, sharing %v: %v, want the limitation", share, ends["hog"])
		}
		if share != limited(ends["calm"]) || !share && ends["calm"]["state"] != "TASK_KILLED" {
			t.Errorf("the other, sharing %v: %v, want the limitation if it shares, else TASK_KILLED", share, ends["calm"])
		}
		p.call(202, object{"type": "TEARDOWN"})
		p.ended()
		cancel()
	}
}
