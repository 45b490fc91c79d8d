package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

func TestALogIsRotatedAndGoesOnWithoutItsModule(t *testing.T) {
	c := start(t, cluster.Options{Composition: `
container_logger "file" {
  config {
    max_size = "4KiB"
    keep     = 2
  }
}
`})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	gates := t.TempDir()
	first, second := filepath.Join(gates, "first"), filepath.Join(gates, "second")
	// 500 lines of 20 bytes are more than two files of 4 KiB.
	lines := func(word string) string {
		return fmt.Sprintf("i=1000; while [ $i -lt 1500 ]; do echo \"%s line number $i\"; i=$((i+1)); done; ", word)
	}
	await := func(gate string) string { return "while ! [ -e " + gate + " ]; do sleep 0.05; done; " }
	r := mosaic(t, c, 0, "run", "--detach", "--name", "talker", "--mem", "64", "--shell", "--",
		lines("a")+await(first)+lines("b")+"echo done; "+await(second))
	id := strings.TrimSpace(r.Stdout)

	var sandbox string
	eventually(t, "the log", 20*time.Second, func() bool {
		found, err := filepath.Glob(filepath.Join(c.Dir, "agent/slaves/*/frameworks/*/executors", id, "runs/latest"))
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 1 {
			sandbox = found[0]
		}
		return strings.Contains(mosaic(t, c, 0, "task", "logs", id).Stdout, "a line number 1499")
	})
	// read is a file of the sandbox, by the API.
	agent := newPeer(ctx, t, agentAPI, c.Agent, mediaJSON)
	read := func(name string) string {
		t.Helper()
		a := agent.call(http.StatusOK, object{"type": "READ_FILE", "read_file": object{"path": filepath.Join(sandbox, name), "offset": 0}})
		encoded, _ := dig(a.object, "read_file", "data").(string)
		data, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			t.Fatalf("data of %s: %v", name, err)
		}
		return string(data)
	}
	// whole is the log as the files that there are have it, from the oldest on.
	whole := func() string { return read("stdout.2") + read("stdout.1") + read("stdout") }
	check := func(word string) {
		t.Helper()
		log := whole()
		if !strings.Contains(log, word+" line number 1499\n") {
			t.Errorf("the log does not end with the last line of %s: %q", word, log[max(0, len(log)-200):])
		}
		numbers := strings.Split(strings.TrimSuffix(log, "\n"), "\n")
		for i, line := range numbers {
			var was, is int
			if i == 0 || !strings.HasPrefix(numbers[i-1], word) || !strings.HasPrefix(line, word) {
				continue
			}
			if _, err := fmt.Sscanf(numbers[i-1]+" "+line, word+" line number %d "+word+" line number %d", &was, &is); err != nil || is != was+1 {
				t.Errorf("line %q follows %q", line, numbers[i-1])
			}
		}
		for _, name := range []string{"stdout", "stdout.1", "stdout.2"} {
			if info, err := os.Stat(filepath.Join(sandbox, name)); err != nil || info.Size() > 4096 {
				t.Errorf("%s: %v, %v; want at most 4096 bytes", name, info, err)
			}
		}
		if _, err := os.Stat(filepath.Join(sandbox, "stdout.3")); err == nil {
			t.Error("there is a stdout.3, want two rotated files kept")
		}
	}
	check("a")

	const logger = "container_logger/file"
	was := modules(t, c)[logger]
	if was.Pid == 0 {
		t.Fatalf("the logger has no process: %+v", was)
	}
	if err := syscall.Kill(was.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(first, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log after its module's end", 20*time.Second, func() bool {
		return strings.Contains(read("stdout"), "done\n")
	})
	check("b")
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(second, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the task's end", 20*time.Second, func() bool {
		return strings.Contains(mosaic(t, c, 0, "task", "ls", "--all").Stdout, "TASK_FINISHED")
	})
	check("b")
}
