package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// TestScripts runs testdata/script/*.txtar: sessions at a terminal, readable by an operator. Each script has a cluster
// of its own once it says `cluster`, and finds the programs in its PATH.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("BIN", bin)
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Getuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"cluster": startCluster},
	})
}

// startCluster implements `cluster [FILE]`: a master and an agent, with the composition in FILE.
func startCluster(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: cluster [FILE]")
	}
	// Sockets lie below the folder, and their paths must stay short.
	dir, err := os.MkdirTemp("", "mscr-")
	ts.Check(err)
	o := cluster.Options{Bin: bin, Dir: dir, Name: fmt.Sprintf("%d-%d", os.Getpid(), clusters.Add(1))}
	if len(args) == 1 {
		o.Composition = ts.ReadFile(args[0])
	}
	c, err := cluster.New(o)
	ts.Check(err)
	ts.Defer(func() {
		if err := errors.Join(c.Stop(), os.RemoveAll(dir)); err != nil {
			ts.Logf("stop the cluster: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ts.Check(c.Start(ctx))
	ts.Setenv("MOSAIC_MASTER", c.Master)
	ts.Setenv("MOSAIC_AGENT", c.Agent)
	ts.Setenv("CGROUP_ROOT", c.CgroupRoot())
	ts.Setenv("AGENT_LOG", filepath.Join(dir, "agent.log"))
}
