package e2e

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// groupOf is a LAUNCH_GROUP for the default executor.
func groupOf(p *peer, executor string, tasks ...object) object {
	list := []any{}
	for _, t := range tasks {
		list = append(list, t)
	}
	return object{"type": "LAUNCH_GROUP", "launch_group": object{
		"executor": object{
			"type": "DEFAULT", "executor_id": object{"value": executor}, "framework_id": p.framework,
			"resources": []any{scalarOf("cpus", 0.1), scalarOf("mem", 32), scalarOf("disk", 16)},
		},
		"task_group": object{"tasks": list},
	}}
}

// shared mounts a folder of the executor's sandbox into a task of a group.
func shared(task object) object {
	task["container"] = object{"type": "MESOS", "volumes": []any{object{
		"mode": "RW", "container_path": "shared",
		"source": object{"type": "SANDBOX_PATH", "sandbox_path": object{"type": "PARENT", "path": "shared"}},
	}}}
	return task
}

// serveHTTP is a command that answers every HTTP request with a word, of what any machine has.
func serveHTTP(port, word string) string {
	return `exec python3 -c '
import http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"` + word + `")
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", ` + port + `), H).serve_forever()'`
}

func TestATaskGroupSharesNetworkAndVolumeAndFate(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	inBothMedia(t, 90*time.Second, func(ctx context.Context, t *testing.T, media string) {
		p := subscribe(ctx, t, c.Master, media, "groups", nil)
		o := p.offer(1, nil)
		name := "pod-" + mediaName(media)
		server := shared(taskOf(o, "server", "echo from the server > shared/file; "+serveHTTP("31999", "answer")))
		client := shared(taskOf(o, "client", `
until [ "$(python3 -c 'import urllib.request as u; print(u.urlopen("http://127.0.0.1:31999/").read().decode())' 2>/dev/null)" = answer ]; do sleep 0.1; done
cat shared/file; echo reached > shared/reached; until [ -e shared/fail ]; do sleep 0.1; done; exit 4`))
		p.accept(o, groupOf(p, name, server, client))
		running := map[string]object{}
		for _, id := range []string{"server", "client"} {
			running[id] = p.state(id, "TASK_RUNNING")
		}
		// Both in containers of their own, within the executor's.
		a, b := running["server"], running["client"]
		outer := dig(a, "container_status", "container_id", "parent", "value")
		if outer == nil || outer != dig(b, "container_status", "container_id", "parent", "value") ||
			dig(a, "container_status", "container_id", "value") == dig(b, "container_status", "container_id", "value") {
			t.Errorf("containers %v and %v, want two in one", dig(a, "container_status"), dig(b, "container_status"))
		}
		var sandbox string
		eventually(t, "the client to reach the server and to see its file", 30*time.Second, func() bool {
			found, _ := filepath.Glob(filepath.Join(c.Dir, "agent/slaves/*/frameworks/*/executors", name, "runs/latest"))
			if len(found) == 0 {
				return false
			}
			sandbox = found[0]
			_, err := os.Stat(filepath.Join(sandbox, "shared/reached"))
			return err == nil
		})
		data, err := os.ReadFile(filepath.Join(sandbox, "tasks/client/stdout"))
		if err != nil || string(data) != "from the server\n" {
			t.Errorf("the client printed %q (%v), want what the server wrote", data, err)
		}

		// A second group joins the executor, and ends without touching the first.
		o = p.offer(0.2, func(o object) bool {
			ids, _ := o["executor_ids"].([]any)
			return len(ids) > 0
		})
		p.accept(o, groupOf(p, name, taskOf(o, "later", "exit 0")))
		p.state("later", "TASK_FINISHED")

		// One fails: the other of its group is killed.
		if err := os.WriteFile(filepath.Join(sandbox, "shared/fail"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		ends := map[string]object{}
		for len(ends) < 2 {
			e := p.await("UPDATE", func(e object) bool {
				s := dig(e, "update", "status", "state")
				return s != "TASK_RUNNING" && s != "TASK_KILLING" && s != "TASK_STARTING"
			})
			s := dig(e, "update", "status").(object)
			ends[dig(s, "task_id", "value").(string)] = s
		}
		if s := ends["client"]; s["state"] != "TASK_FAILED" || s["message"] != "Command exited with status 4" {
			t.Errorf("client: %v, want TASK_FAILED with its code", s)
		}
		if s := ends["server"]; s["state"] != "TASK_KILLED" || s["reason"] != nil {
			t.Errorf("server: %v, want TASK_KILLED without a reason", s)
		}
		p.call(202, object{"type": "TEARDOWN"})
		p.ended()
	})
}

func TestATaskGroupSurvivesTheAgent(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Composition: hostPids})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p := subscribe(ctx, t, c.Master, mediaJSON, "groups", nil)
	o := p.offer(1, nil)
	p.accept(o, groupOf(p, "pod", taskOf(o, "one", "echo $$ > pid; until [ -e go ]; do sleep 0.1; done; exit 3"), taskOf(o, "two", "echo $$ > pid; sleep 1000")))
	p.state("one", "TASK_RUNNING")
	p.state("two", "TASK_RUNNING")
	sandbox := func(task string) string {
		found, err := filepath.Glob(filepath.Join(c.Dir, "agent/slaves/*/frameworks/*/executors/pod/runs/latest/tasks", task))
		if err != nil || len(found) != 1 {
			t.Fatalf("sandbox of %s: %v %v", task, found, err)
		}
		return found[0]
	}
	pids := map[string]string{}
	for _, task := range []string{"one", "two"} {
		eventually(t, "pid of "+task, 10*time.Second, func() bool {
			data, _ := os.ReadFile(filepath.Join(sandbox(task), "pid"))
			pids[task] = strings.TrimSpace(string(data))
			return pids[task] != ""
		})
	}
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	// One ends while nobody looks.
	if err := os.WriteFile(filepath.Join(sandbox("one"), "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of one", 10*time.Second, func() bool {
		_, err := os.Stat("/proc/" + pids["one"])
		return err != nil
	})
	if _, err := os.Stat("/proc/" + pids["two"]); err != nil {
		t.Errorf("two did not survive the agent: %v", err)
	}
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	got := map[any]any{}
	for len(got) < 2 {
		e := p.await("UPDATE", func(e object) bool {
			s := dig(e, "update", "status", "state")
			return s != "TASK_RUNNING" && s != "TASK_KILLING"
		})
		got[dig(e, "update", "status", "task_id", "value")] = dig(e, "update", "status", "state")
	}
	if got["one"] != "TASK_FAILED" || got["two"] != "TASK_KILLED" {
		t.Errorf("after the restart: %v, want one TASK_FAILED and, for that, two TASK_KILLED", got)
	}
	p.call(202, object{"type": "TEARDOWN"})
	p.ended()
}

// screen collects what a terminal shows.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
	end  chan struct{}
}

func watch(r io.Reader) *screen {
	s := &screen{end: make(chan struct{})}
	go func() {
		defer close(s.end)
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *screen) shows(t *testing.T, text string) {
	t.Helper()
	eventually(t, "the terminal to show "+text, 15*time.Second, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return strings.Contains(s.text.String(), text)
	})
}

func TestExecIntoATaskOfAGroupWithATerminal(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p := subscribe(ctx, t, c.Master, mediaJSON, "groups", nil)
	o := p.offer(1, nil)
	p.accept(o, groupOf(p, "pod", taskOf(o, "inside", "echo here > mark; sleep 1000"), taskOf(o, "beside", "sleep 1000")))
	p.state("inside", "TASK_RUNNING")
	p.state("beside", "TASK_RUNNING")
	cmd := c.Command(ctx, "task", "exec", "-i", "-t", "inside", "--", "/bin/sh")
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 20, Cols: 70})
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	s := watch(terminal)
	say := func(text string) {
		t.Helper()
		if _, err := terminal.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	say("stty size; cat mark\n")
	s.shows(t, "20 70")
	s.shows(t, "here")
	if err := pty.Setsize(terminal, &pty.Winsize{Rows: 31, Cols: 97}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the window's new size", 10*time.Second, func() bool {
		say("stty size\n")
		s.mu.Lock()
		defer s.mu.Unlock()
		return strings.Contains(s.text.String(), "31 97")
	})
	say("(exit 6)\n\x04") // ^D: the shell ends with the last code
	err = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 6 {
		t.Errorf("exec ended with code %d (%v), want the shell's 6", code, err)
	}
	// The session ended, the tasks did not.
	r := mosaic(t, c, 0, "task", "ls", "-o", "json")
	if n := strings.Count(r.Stdout, "TASK_RUNNING"); n < 2 {
		t.Errorf("task ls after the session:\n%s\nwant both running", r.Stdout)
	}
	// Without a terminal: input and output are the command's, the code too.
	pipe := c.Command(ctx, "task", "exec", "-i", "inside", "--", "sh", "-c", "tr a-z A-Z; echo bad >&2; exit 3")
	var stdout, stderr strings.Builder
	pipe.Stdin, pipe.Stdout, pipe.Stderr = strings.NewReader("piped\n"), &stdout, &stderr
	_ = pipe.Run()
	if pipe.ProcessState.ExitCode() != 3 || stdout.String() != "PIPED\n" || !strings.Contains(stderr.String(), "bad\n") {
		t.Errorf("exec ended with %v, stdout %q, stderr %q", pipe.ProcessState, stdout.String(), stderr.String())
	}
	p.call(202, object{"type": "TEARDOWN"})
	p.ended()
}
