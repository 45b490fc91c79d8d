package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

func TestTheACLModuleDecidesWhoMayRunWhat(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Dev: true, Composition: hostPids + `
authorizer "acl" {
  config {
    acl "run_tasks" {
      principals = ["NONE"]
      objects    = ["nobody"]
    }
    acl "register_frameworks" {
      principals = ["NONE"]
      objects    = ["secret", "secret/%"]
    }
  }
}
`})
	mosaic(t, c, 0, "run", "--user", "root", "--", "true")
	r := mosaic(t, c, 1, "run", "--user", "nobody", "--", "true")
	if !strings.Contains(r.Stderr, "REASON_TASK_UNAUTHORIZED") {
		t.Errorf("a task of user nobody: %q, want REASON_TASK_UNAUTHORIZED", r.Stderr)
	}
	for _, role := range []string{"secret", "secret/deep"} {
		r := mosaic(t, c, 125, "run", "--role", role, "--", "true")
		if !strings.Contains(r.Stderr, "not authorized") {
			t.Errorf("a framework of role %s: %q, want it refused", role, r.Stderr)
		}
	}
	mosaic(t, c, 0, "run", "--role", "other", "--", "true")
}

func TestTheACLModuleDecidesWhoMayEnterAContainer(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Dev: true, Composition: hostPids + `
authorizer "acl" {
  config {
    acl "launch_nested_container_sessions_under_parent_with_user" {
      principals = ["NONE"]
      objects    = ["root"]
    }
    acl "access_sandboxes" {
      principals = ["NONE"]
      objects    = ["root"]
    }
  }
}
`})
	for _, user := range []string{"root", "nobody"} {
		mosaic(t, c, 0, "run", "--detach", "--name", user, "--user", user, "--", "sh", "-c", "echo seen; exec sleep 600")
	}
	if r := mosaic(t, c, 125, "task", "exec", "root", "--", "true"); !strings.Contains(r.Stderr, "not authorized") {
		t.Errorf("a command beside root's task: %q, want it refused", r.Stderr)
	}
	if r := mosaic(t, c, 1, "task", "logs", "root"); !strings.Contains(r.Stderr, "not authorized") {
		t.Errorf("the output of root's task: %q, want it refused", r.Stderr)
	}
	mosaic(t, c, 0, "task", "exec", "nobody", "--", "true")
	eventually(t, "the output of nobody's task", 10*time.Second, func() bool {
		return strings.Contains(mosaic(t, c, 0, "task", "logs", "nobody").Stdout, "seen")
	})
}

func TestAFixedEstimateIsOfferedAsRevocable(t *testing.T) {
	c := start(t, cluster.Options{Composition: `
agent {
  oversubscribed_resources_interval = "100ms"
}
isolator "rlimits" {}
resource_estimator "fixed" {
  config { resources = "cpus:3" }
}
`})
	eventually(t, "revocable cpus in the agent's total", 10*time.Second, func() bool {
		resp, err := http.Get("http://" + c.Master + "/slaves")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		data, _ := io.ReadAll(resp.Body)
		var state struct {
			Slaves []struct {
				Resources map[string]any `json:"resources"`
			} `json:"slaves"`
		}
		if json.Unmarshal(data, &state) != nil || len(state.Slaves) == 0 {
			return false
		}
		return state.Slaves[0].Resources["cpus_revocable"] != nil
	})
}

func TestAKindThatNobodyAsksIsRefused(t *testing.T) {
	c := prepare(t, cluster.Options{})
	file := filepath.Join(c.Dir, "hook.hcl")
	if err := os.WriteFile(file, []byte("isolator \"rlimits\" {}\n\nhook \"mine\" {\n  command = \"/bin/true\"\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := mosaic(t, c, 1, "config", "validate", file)
	if !strings.Contains(r.Stderr, "hook.hcl:3") || !strings.Contains(r.Stderr, "hook(mine)") {
		t.Errorf("config validate: %q, want the place and the name", r.Stderr)
	}
}
