package e2e

import (
	"context"
	"encoding/base64"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// environmentOf waits for the file env.txt that an executor's command wrote into its sandbox, and returns what is in it.
func environmentOf(t *testing.T, c *cluster.Cluster, executor string) map[string]string {
	t.Helper()
	env := map[string]string{}
	eventually(t, "the environment of "+executor, 15*time.Second, func() bool {
		var found string
		_ = filepath.WalkDir(c.Dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == "env.txt" && strings.Contains(path, "/executors/"+executor+"/") {
				found = path
				return fs.SkipAll
			}
			return nil
		})
		data, err := os.ReadFile(found)
		if err != nil || !strings.HasSuffix(string(data), "DONE=1\n") {
			return false
		}
		for line := range strings.Lines(string(data)) {
			k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			env[k] = v
		}
		return true
	})
	return env
}

// runHeadless launches a task of an executor whose process only waits: the test speaks in its place. It returns a peer with
// the executor's ids.
func runHeadless(ctx context.Context, t *testing.T, c *cluster.Cluster, p *peer, executor string, operation func(offer, info object) object) (*peer, object) {
	t.Helper()
	o := p.offer(1, nil)
	info := object{
		"type": "CUSTOM", "executor_id": object{"value": executor}, "framework_id": p.framework,
		"command":   object{"value": "env > env.tmp; echo DONE=1 >> env.tmp; mv env.tmp env.txt; exec sleep 1000"},
		"resources": []any{scalarOf("cpus", 0.1), scalarOf("mem", 32), scalarOf("disk", 16)},
	}
	p.accept(o, operation(o, info))
	env := environmentOf(t, c, executor)
	for _, name := range []string{
		"MESOS_FRAMEWORK_ID", "MESOS_EXECUTOR_ID", "MESOS_SLAVE_ID", "MESOS_SLAVE_PID", "MESOS_AGENT_ENDPOINT", "MESOS_DIRECTORY", "MESOS_SANDBOX",
		"MESOS_CHECKPOINT", "MESOS_RECOVERY_TIMEOUT", "MESOS_SUBSCRIPTION_BACKOFF_MAX", "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD",
	} {
		if env[name] == "" {
			t.Errorf("the executor's environment has no %s", name)
		}
	}
	e := newPeer(ctx, t, executorAPI, env["MESOS_AGENT_ENDPOINT"], p.media)
	e.framework, e.executor = object{"value": env["MESOS_FRAMEWORK_ID"]}, object{"value": env["MESOS_EXECUTOR_ID"]}
	return e, o
}

// update sends a status of a task and returns its uuid.
func (p *peer) update(task, state string) string {
	p.t.Helper()
	id := uuid.New()
	u := base64.StdEncoding.EncodeToString(id[:])
	p.call(http.StatusAccepted, object{"type": "UPDATE", "update": object{"status": object{
		"task_id": object{"value": task}, "state": state, "uuid": u, "source": "SOURCE_EXECUTOR",
	}}})
	return u
}

func TestWireAnExecutorsLife(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, time.Minute, func(ctx context.Context, t *testing.T, media string) {
		p := subscribe(ctx, t, c.Master, media, "wire-executor", nil)
		name := "executor-" + mediaName(media)
		e, o := runHeadless(ctx, t, c, p, name, func(o, info object) object {
			task := taskOf(o, "first", "")
			delete(task, "command")
			task["executor"] = info
			return launchOf(task)
		})
		// Not subscribed yet, and strangers.
		e.call(http.StatusForbidden, object{"type": "MESSAGE", "message": object{"data": "aGk="}})
		stranger := newPeer(ctx, t, executorAPI, e.addr, media)
		stranger.framework, stranger.executor = e.framework, object{"value": "nobody"}
		stranger.call(http.StatusBadRequest, object{"type": "MESSAGE", "message": object{"data": "aGk="}})

		e.open(object{"type": "SUBSCRIBE", "subscribe": object{}})
		s := e.await("SUBSCRIBED", nil)
		if dig(s, "subscribed", "executor_info", "executor_id", "value") != name || dig(s, "subscribed", "container_id", "value") == nil ||
			dig(s, "subscribed", "framework_info", "name") == nil || dig(s, "subscribed", "agent_info", "hostname") == nil {
			t.Errorf("SUBSCRIBED %v, want executor, framework, agent and container", s)
		}
		l := e.await("LAUNCH", nil)
		if got := dig(l, "launch", "task", "task_id", "value"); got != "first" {
			t.Errorf("LAUNCH of %v, want first", got)
		}
		u := e.update("first", "TASK_RUNNING")
		if got := dig(e.await("ACKNOWLEDGED", nil), "acknowledged", "uuid"); got != u {
			t.Errorf("acknowledged %v, want %s", got, u)
		}
		p.state("first", "TASK_RUNNING")
		e.call(http.StatusAccepted, object{"type": "HEARTBEAT"})
		e.call(http.StatusNotImplemented, object{"type": "UNKNOWN"})

		// Messages, both ways.
		p.call(http.StatusAccepted, object{"type": "MESSAGE", "message": object{"agent_id": o["agent_id"], "executor_id": e.executor, "data": "cGluZw=="}})
		if got := dig(e.await("MESSAGE", nil), "message", "data"); got != "cGluZw==" {
			t.Errorf("the executor got %v, want cGluZw==", got)
		}
		e.call(http.StatusAccepted, object{"type": "MESSAGE", "message": object{"data": "cG9uZw=="}})
		if got := dig(p.await("MESSAGE", nil), "message", "data"); got != "cG9uZw==" {
			t.Errorf("the scheduler got %v, want cG9uZw==", got)
		}

		// A connection is lost; an update made meanwhile comes with the next SUBSCRIBE.
		e.body.Close()
		id := uuid.New()
		late := object{"status": object{
			"task_id": object{"value": "first"}, "state": "TASK_RUNNING", "message": "made while away",
			"uuid": base64.StdEncoding.EncodeToString(id[:]), "source": "SOURCE_EXECUTOR",
		}}
		e.open(object{"type": "SUBSCRIBE", "subscribe": object{"unacknowledged_updates": []any{late}}})
		e.await("SUBSCRIBED", nil)
		p.await("UPDATE", func(u object) bool { return dig(u, "update", "status", "message") == "made while away" })

		p.call(http.StatusAccepted, object{"type": "KILL", "kill": object{"task_id": object{"value": "first"}, "agent_id": o["agent_id"]}})
		if got := dig(e.await("KILL", nil), "kill", "task_id", "value"); got != "first" {
			t.Errorf("KILL of %v, want first", got)
		}
		e.update("first", "TASK_KILLED")
		p.state("first", "TASK_KILLED")

		p.call(http.StatusAccepted, object{"type": "SHUTDOWN", "shutdown": object{"executor_id": e.executor, "agent_id": o["agent_id"]}})
		e.await("SHUTDOWN", nil)
		// It does not end by itself: the agent ends it after the grace period.
		f := p.await("FAILURE", nil)
		if dig(f, "failure", "executor_id", "value") != name {
			t.Errorf("FAILURE %v, want that of %s", f, name)
		}
		p.call(http.StatusAccepted, object{"type": "TEARDOWN"})
		p.ended()
	})
}

func TestWireAGroupGoesToACustomExecutorWhole(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, 30*time.Second, func(ctx context.Context, t *testing.T, media string) {
		p := subscribe(ctx, t, c.Master, media, "wire-group", nil)
		name := "group-" + mediaName(media)
		e, _ := runHeadless(ctx, t, c, p, name, func(o, info object) object {
			return object{"type": "LAUNCH_GROUP", "launch_group": object{"executor": info, "task_group": object{"tasks": []any{taskOf(o, "one", "true"), taskOf(o, "two", "true")}}}}
		})
		e.open(object{"type": "SUBSCRIBE", "subscribe": object{}})
		e.await("SUBSCRIBED", nil)
		l := e.await("LAUNCH_GROUP", nil)
		if tasks, _ := dig(l, "launch_group", "task_group", "tasks").([]any); len(tasks) != 2 {
			t.Errorf("LAUNCH_GROUP %v, want two tasks", l)
		}
		for _, task := range []string{"one", "two"} {
			e.update(task, "TASK_FINISHED")
			p.state(task, "TASK_FINISHED")
		}
		p.call(http.StatusAccepted, object{"type": "TEARDOWN"})
		p.ended()
	})
}
