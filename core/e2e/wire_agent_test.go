package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

func TestWireAgentReads(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, time.Minute, func(ctx context.Context, t *testing.T, media string) {
		name := "reads-" + mediaName(media)
		p := subscribe(ctx, t, c.Master, media, "wire-agent", nil)
		o := p.offer(1, nil)
		p.accept(o, launchOf(taskOf(o, name, "echo hello; sleep 1000")))
		status := p.state(name, "TASK_RUNNING")

		a := newPeer(ctx, t, agentAPI, c.Agent, media)
		read := func(call string, body object, path ...string) any {
			t.Helper()
			if body == nil {
				body = object{}
			}
			body["type"] = call
			answer := a.call(http.StatusOK, body)
			if got := dig(answer.object, "type"); got != call {
				t.Errorf("%s is answered with type %v", call, got)
			}
			return dig(answer.object, path...)
		}
		find := func(list any, ok func(any) bool) any {
			t.Helper()
			items, _ := list.([]any)
			for _, i := range items {
				if ok(i) {
					return i
				}
			}
			t.Errorf("not found in %v", list)
			return nil
		}
		mine := func(path ...string) func(any) bool {
			return func(i any) bool { return dig(i, path...) == dig(p.framework, "value") }
		}
		if got := read("GET_HEALTH", nil, "get_health", "healthy"); got != true {
			t.Errorf("healthy is %v", got)
		}
		find(read("GET_FLAGS", nil, "get_flags", "flags"), func(f any) bool { return dig(f, "name") == "work_dir" })
		if got := read("GET_VERSION", nil, "get_version", "version_info", "version"); got != "1.11.0" {
			t.Errorf("version %v, want dotted numbers", got)
		}
		find(read("GET_METRICS", object{"get_metrics": object{}}, "get_metrics", "metrics"), func(m any) bool { return dig(m, "name") == "slave/tasks_running" })
		a.call(http.StatusOK, object{"type": "SET_LOGGING_LEVEL", "set_logging_level": object{"level": 1, "duration": object{"nanoseconds": 1000000000}}})
		if got := read("GET_LOGGING_LEVEL", nil, "get_logging_level", "level"); got != 1.0 {
			t.Errorf("level %v after it was set to 1", got)
		}
		container := find(read("GET_CONTAINERS", nil, "get_containers", "containers"), mine("framework_id", "value"))
		if a, b := dig(container, "container_id", "value"), dig(status, "container_status", "container_id", "value"); a != b {
			t.Errorf("GET_CONTAINERS says container %v, the update %v", a, b)
		}
		eventually(t, "statistics of the container", 15*time.Second, func() bool { // measured now and then, not while one asks
			container := find(read("GET_CONTAINERS", nil, "get_containers", "containers"), mine("framework_id", "value"))
			return dig(container, "resource_statistics", "timestamp") != nil
		})
		find(read("GET_FRAMEWORKS", nil, "get_frameworks", "frameworks"), mine("framework_info", "id", "value"))
		read("GET_EXECUTORS", nil)
		find(read("GET_TASKS", nil, "get_tasks", "launched_tasks"), mine("framework_id", "value"))
		find(read("GET_STATE", nil, "get_state", "get_tasks", "launched_tasks"), mine("framework_id", "value"))
		if got := read("GET_AGENT", nil, "get_agent", "agent_info", "id", "value"); got != dig(o, "agent_id", "value") {
			t.Errorf("GET_AGENT says %v", got)
		}
		read("GET_OPERATIONS", nil)
		read("GET_RESOURCE_PROVIDERS", nil)

		virtual := fmt.Sprintf("/frameworks/%s/executors/%s/runs/latest", dig(p.framework, "value"), name)
		find(read("LIST_FILES", object{"list_files": object{"path": virtual}}, "list_files", "file_infos"), func(f any) bool {
			path, _ := dig(f, "path").(string)
			return strings.HasSuffix(path, "/stdout")
		})
		eventually(t, "the task's output", 10*time.Second, func() bool {
			data := read("READ_FILE", object{"read_file": object{"path": virtual + "/stdout", "offset": 0}}, "read_file", "data")
			return data == base64.StdEncoding.EncodeToString([]byte("hello\n"))
		})
		a.call(http.StatusNotImplemented, object{"type": "UNKNOWN"})
		// An agent without resource providers.
		provider := object{"type": "org.apache.mesos.rp.local.storage", "name": "disks"}
		a.call(http.StatusNotImplemented, object{"type": "ADD_RESOURCE_PROVIDER_CONFIG", "add_resource_provider_config": object{"info": provider}})
		a.call(http.StatusNotImplemented, object{"type": "UPDATE_RESOURCE_PROVIDER_CONFIG", "update_resource_provider_config": object{"info": provider}})
		a.call(http.StatusNotImplemented, object{"type": "REMOVE_RESOURCE_PROVIDER_CONFIG", "remove_resource_provider_config": provider})
		a.call(http.StatusNotImplemented, object{"type": "MARK_RESOURCE_PROVIDER_GONE", "mark_resource_provider_gone": object{"resource_provider_id": object{"value": "x"}}})
		a.call(http.StatusOK, object{"type": "PRUNE_IMAGES"})
		p.call(http.StatusAccepted, object{"type": "TEARDOWN"})
		p.ended()
	})
}

// idOf is a container's id, the outermost first.
func idOf(values ...string) object {
	var id object
	for _, v := range values {
		next := object{"value": v}
		if id != nil {
			next["parent"] = id
		}
		id = next
	}
	return id
}

func TestWireStandaloneAndNestedContainers(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	inBothMedia(t, time.Minute, func(ctx context.Context, t *testing.T, media string) {
		a := newPeer(ctx, t, agentAPI, c.Agent, media)
		root := "alone-" + mediaName(media)
		launch := object{"type": "LAUNCH_CONTAINER", "launch_container": object{
			"container_id": idOf(root), "command": object{"value": "sleep 1000"}, "resources": []any{scalarOf("cpus", 0.1), scalarOf("mem", 32)},
		}}
		a.call(http.StatusOK, launch)
		a.call(http.StatusAccepted, launch) // it is there already
		a.call(http.StatusOK, object{"type": "LAUNCH_CONTAINER", "launch_container": object{"container_id": idOf(root, "child"), "command": object{"value": "exit 9"}}})
		w := a.call(http.StatusOK, object{"type": "WAIT_CONTAINER", "wait_container": object{"container_id": idOf(root, "child")}})
		if got := dig(w.object, "wait_container", "exit_status"); got != 2304.0 {
			t.Errorf("exit status of exit 9: %v, want 2304 as wait(2) gives it", got)
		}
		a.call(http.StatusOK, object{"type": "REMOVE_CONTAINER", "remove_container": object{"container_id": idOf(root, "child")}})
		a.call(http.StatusNotFound, object{"type": "WAIT_CONTAINER", "wait_container": object{"container_id": idOf(root, "child")}})

		// The older names, which need a parent.
		old := object{"type": "LAUNCH_NESTED_CONTAINER", "launch_nested_container": object{"container_id": idOf(root, "old"), "command": object{"value": "sleep 1000"}}}
		a.call(http.StatusOK, old)
		a.call(http.StatusAccepted, old)
		a.call(http.StatusInternalServerError, object{"type": "REMOVE_NESTED_CONTAINER", "remove_nested_container": object{"container_id": idOf(root, "old")}})
		a.call(http.StatusOK, object{"type": "KILL_NESTED_CONTAINER", "kill_nested_container": object{"container_id": idOf(root, "old"), "signal": 15}})
		w = a.call(http.StatusOK, object{"type": "WAIT_NESTED_CONTAINER", "wait_nested_container": object{"container_id": idOf(root, "old")}})
		if got := dig(w.object, "wait_nested_container", "exit_status"); got != 15.0 {
			t.Errorf("exit status of a container ended by SIGTERM: %v, want 15", got)
		}
		a.call(http.StatusOK, object{"type": "REMOVE_NESTED_CONTAINER", "remove_nested_container": object{"container_id": idOf(root, "old")}})
		a.call(http.StatusNotFound, object{"type": "KILL_NESTED_CONTAINER", "kill_nested_container": object{"container_id": idOf(root, "old")}})
		a.call(http.StatusBadRequest, object{"type": "LAUNCH_CONTAINER", "launch_container": object{"container_id": idOf("nobody", "child"), "command": object{"value": "true"}}})
		a.call(http.StatusBadRequest, object{"type": "LAUNCH_CONTAINER", "launch_container": object{"container_id": idOf("a.b"), "command": object{"value": "true"}}})

		found := false
		list := a.call(http.StatusOK, object{"type": "GET_CONTAINERS", "get_containers": object{"show_standalone": true, "show_nested": true}})
		containers, _ := dig(list.object, "get_containers", "containers").([]any)
		for _, i := range containers {
			found = found || dig(i, "container_id", "value") == root
		}
		if !found {
			t.Errorf("GET_CONTAINERS %s, want %s", list.text, root)
		}
		a.call(http.StatusOK, object{"type": "KILL_CONTAINER", "kill_container": object{"container_id": idOf(root)}})
		w = a.call(http.StatusOK, object{"type": "WAIT_CONTAINER", "wait_container": object{"container_id": idOf(root)}})
		if got := dig(w.object, "wait_container", "exit_status"); got != 9.0 {
			t.Errorf("exit status of a container that was killed: %v, want 9", got)
		}
	})
}

// input is an ATTACH_CONTAINER_INPUT that a test feeds.
type input struct {
	p    *peer
	pipe *io.PipeWriter
	done chan answer
}

// attachInput begins to feed a container.
func (p *peer) attachInput(id object) *input {
	p.t.Helper()
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(p.ctx, http.MethodPost, "http://"+p.addr+p.api.path, r)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/recordio")
	req.Header.Set("Message-Content-Type", p.media)
	req.Header.Set("Accept", p.media)
	in := &input{p: p, pipe: w, done: make(chan answer, 1)}
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			in.done <- answer{text: err.Error()}
			return
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		in.done <- answer{status: resp.StatusCode, text: string(text)}
	}()
	in.send(object{"type": "CONTAINER_ID", "container_id": id})
	return in
}

func (in *input) send(attach object) {
	in.p.t.Helper()
	record := in.p.encode(object{"type": "ATTACH_CONTAINER_INPUT", "attach_container_input": attach})
	if _, err := fmt.Fprintf(in.pipe, "%d\n%s", len(record), record); err != nil {
		in.p.t.Errorf("feed a container: %v", err)
	}
}

func (in *input) data(text string) {
	in.p.t.Helper()
	in.send(object{"type": "PROCESS_IO", "process_io": object{"type": "DATA", "data": object{
		"type": "STDIN", "data": base64.StdEncoding.EncodeToString([]byte(text)),
	}}})
}

// end ends the input and returns what the call was answered.
func (in *input) end() answer {
	in.p.t.Helper()
	_ = in.pipe.Close()
	select {
	case a := <-in.done:
		observe(in.p.t, "agent", "call", "ATTACH_CONTAINER_INPUT", in.p.media, a.status)
		return a
	case <-in.p.ctx.Done():
		in.p.t.Fatal("ATTACH_CONTAINER_INPUT is not answered")
		return answer{}
	}
}

// output collects what a container prints until it has what ok wants.
func (p *peer) output(ok func(stdout, stderr string) bool) (stdout, stderr string) {
	p.t.Helper()
	var out, errs bytes.Buffer
	for !ok(out.String(), errs.String()) {
		select {
		case e, open := <-p.events:
			if !open {
				p.t.Fatalf("the output ended with %q and %q", out.String(), errs.String())
			}
			if e["type"] == "DATA" {
				observe(p.t, "agent", "event", "DATA", p.media, 0)
			}
			data, err := base64.StdEncoding.DecodeString(fmt.Sprint(dig(e, "data", "data")))
			switch {
			case dig(e, "type") != "DATA":
			case err != nil:
				p.t.Fatalf("%v: %v", e, err)
			case dig(e, "data", "type") == "STDERR":
				errs.Write(data)
			default:
				out.Write(data)
			}
		case <-p.ctx.Done():
			p.t.Fatalf("no more output than %q and %q", out.String(), errs.String())
		}
	}
	return out.String(), errs.String()
}

func TestWireASessionInATasksContainer(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	inBothMedia(t, time.Minute, func(ctx context.Context, t *testing.T, media string) {
		p := subscribe(ctx, t, c.Master, media, "wire-session", nil)
		o := p.offer(1, nil)
		p.accept(o, launchOf(taskOf(o, "task", "echo started; sleep 1000")))
		status := p.state("task", "TASK_RUNNING")
		parent, _ := dig(status, "container_status", "container_id", "value").(string)

		// Pipes: what goes in comes out, on either stream, and the code is the command's.
		s := newPeer(ctx, t, agentAPI, c.Agent, media)
		pipes := idOf(parent, "pipes")
		s.open(object{"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": object{
			"container_id": pipes, "command": object{"value": "cat; echo complaint >&2; exit 7"},
		}})
		in := newPeer(ctx, t, agentAPI, c.Agent, media).attachInput(pipes)
		in.send(object{"type": "PROCESS_IO", "process_io": object{"type": "CONTROL", "control": object{
			"type": "HEARTBEAT", "heartbeat": object{"interval": object{"nanoseconds": 30000000000}},
		}}})
		in.data("one\n")
		in.data("two\n")
		in.data("") // end of input
		s.output(func(stdout, stderr string) bool { return stdout == "one\ntwo\n" && stderr == "complaint\n" })
		s.ended()
		if a := in.end(); a.status != http.StatusOK {
			t.Errorf("ATTACH_CONTAINER_INPUT answered %d %s, want 200", a.status, a.text)
		}

		// A command that closes its output first is not over with that.
		mute := idOf(parent, "mute")
		s = newPeer(ctx, t, agentAPI, c.Agent, media)
		s.open(object{"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": object{
			"container_id": mute, "command": object{"value": "exec >&- 2>&-; sleep 0.5; exit 7"},
		}})
		s.ended()
		w := newPeer(ctx, t, agentAPI, c.Agent, media).call(http.StatusOK, object{"type": "WAIT_NESTED_CONTAINER", "wait_nested_container": object{"container_id": mute}})
		if got := dig(w.object, "wait_nested_container", "exit_status"); got != 1792.0 {
			t.Errorf("a session that closed its output ended with status %v, want 1792 for its code 7", got)
		}

		// A terminal: its size is what it is told, ^D ends the session and not the task.
		terminal := idOf(parent, "terminal")
		s = newPeer(ctx, t, agentAPI, c.Agent, media)
		s.open(object{"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": object{
			"container_id": terminal, "command": object{"value": "/bin/sh", "shell": false, "arguments": []any{"sh"}},
			"container": object{"type": "MESOS", "tty_info": object{"window_size": object{"rows": 20, "columns": 70}}},
		}})
		in = newPeer(ctx, t, agentAPI, c.Agent, media).attachInput(terminal)
		has := func(text string) func(stdout, _ string) bool {
			return func(stdout, _ string) bool { return strings.Contains(stdout, text) }
		}
		in.data("stty size\n")
		s.output(has("20 70"))
		in.send(object{"type": "PROCESS_IO", "process_io": object{"type": "CONTROL", "control": object{
			"type": "TTY_INFO", "tty_info": object{"window_size": object{"rows": 33, "columns": 111}},
		}}})
		in.data("stty size\n")
		s.output(has("33 111"))
		in.data("\x04")
		s.ended()
		in.end()

		// A client that vanishes takes its session along.
		s = newPeer(ctx, t, agentAPI, c.Agent, media)
		gone := idOf(parent, "gone")
		s.open(object{"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": object{
			"container_id": gone, "command": object{"value": "echo ready; sleep 1000"},
		}})
		s.output(has("ready"))
		s.body.Close()
		a := newPeer(ctx, t, agentAPI, c.Agent, media)
		eventually(t, "the end of the session", 10*time.Second, func() bool {
			list := a.call(http.StatusOK, object{"type": "GET_CONTAINERS", "get_containers": object{"show_nested": true}})
			return !strings.Contains(list.text, "gone")
		})

		// The task lives.
		p.call(http.StatusAccepted, object{"type": "RECONCILE", "reconcile": object{"tasks": []any{object{"task_id": object{"value": "task"}}}}})
		e := p.await("UPDATE", func(e object) bool { return dig(e, "update", "status", "reason") == "REASON_RECONCILIATION" })
		if got := dig(e, "update", "status", "state"); got != "TASK_RUNNING" {
			t.Errorf("task after the sessions: %v, want TASK_RUNNING", got)
		}
		p.call(http.StatusAccepted, object{"type": "TEARDOWN"})
		p.ended()
	})
}

func TestWireATaskWithATerminalIsAttached(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	inBothMedia(t, time.Minute, func(ctx context.Context, t *testing.T, media string) {
		p := subscribe(ctx, t, c.Master, media, "wire-attach", nil)
		o := p.offer(1, nil)
		task := taskOf(o, "shell", "/bin/sh")
		task["container"] = object{"type": "MESOS", "tty_info": object{"window_size": object{"rows": 24, "columns": 80}}}
		p.accept(o, launchOf(task))
		status := p.state("shell", "TASK_RUNNING")
		id, _ := dig(status, "container_status", "container_id", "value").(string)

		s := newPeer(ctx, t, agentAPI, c.Agent, media)
		s.open(object{"type": "ATTACH_CONTAINER_OUTPUT", "attach_container_output": object{"container_id": idOf(id)}})
		in := newPeer(ctx, t, agentAPI, c.Agent, media).attachInput(idOf(id))
		in.data("echo $((40 + 2)); exit 5\n")
		s.output(func(stdout, _ string) bool { return strings.Contains(stdout, "42") })
		p.await("UPDATE", func(e object) bool {
			return dig(e, "update", "status", "state") == "TASK_FAILED" && dig(e, "update", "status", "message") == "Command exited with status 5"
		})
		s.ended()
		in.end()
		newPeer(ctx, t, agentAPI, c.Agent, media).call(http.StatusNotFound, object{"type": "ATTACH_CONTAINER_OUTPUT", "attach_container_output": object{"container_id": idOf("nobody")}})
		p.call(http.StatusAccepted, object{"type": "TEARDOWN"})
		p.ended()
	})
}
