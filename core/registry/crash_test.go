package registry

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// crashDir, set in the environment, makes this test binary a writer in that directory.
const crashDir = "MOSAIC_REGISTRY_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := writeUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// writeUntilKilled applies pairs of changes for ever, and prints the number of each pair once
// it is acknowledged.
func writeUntilKilled(dir string) error {
	ctx := context.Background()
	s, err := OpenEmbedded(ctx, EmbeddedConfig{Dir: dir})
	if err != nil {
		return err
	}
	if _, err := s.Campaign(ctx, "writer", "127.0.0.1:1"); err != nil {
		return err
	}
	from, err := s.Load(ctx)
	if err != nil {
		return err
	}
	for n := len(from.Agents); ; n++ {
		err := s.Apply(ctx, []Change{
			PutAgent(fmt.Sprintf("S%d", n), Agent{Info: agentInfo(strings.Repeat("h", n%500))}),
			PutWeight(fmt.Sprintf("S%d", n), float64(n)),
		})
		if err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// Killed in the middle of a stream of writes, again and again, in the same directory: what
// was acknowledged is there, and every pair of changes is there whole or not at all.
func TestAcknowledgedChangesSurviveKill9(t *testing.T) {
	dir := t.TempDir()
	acknowledged := -1
	for round, after := range []int{1, 37, 250, 600} {
		cmd := exec.CommandContext(within(t), os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for seen := 0; lines.Scan(); seen++ {
			if acknowledged, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatalf("round %d: the writer says %q", round, lines.Text())
			}
			if seen == after {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
			t.Fatalf("round %d: the writer ended by itself: %v", round, err)
		}

		s := open(t, dir)
		got, err := s.Load(within(t))
		if err != nil {
			t.Fatalf("round %d: Load: %v", round, err)
		}
		if len(got.Agents) <= acknowledged {
			t.Errorf("round %d: %d agents, want the %d acknowledged", round, len(got.Agents), acknowledged+1)
		}
		for n := range len(got.Agents) {
			id := fmt.Sprintf("S%d", n)
			weight, has := got.Weights[id]
			if a := got.Agents[id]; len(a.Info.GetHostname()) != n%500 || !has || weight != float64(n) {
				t.Fatalf("round %d: pair %d is %v and %v, %v", round, n, a.Info, weight, has)
			}
		}
		if len(got.Weights) != len(got.Agents) {
			t.Errorf("round %d: %d weights and %d agents, want pairs", round, len(got.Weights), len(got.Agents))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
