package e2e

import (
	"bytes"
	"context"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// filesWith are the files of a folder, below it, that contain a text, each with its mode.
func filesWith(t *testing.T, dir, text string) map[string]fs.FileMode {
	t.Helper()
	found := map[string]fs.FileMode{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // sandboxes come and go
		}
		info, err := d.Info()
		if err != nil || info.Size() > 8<<20 || strings.Contains(path, "/snapshots/") {
			return nil //nolint:nilerr // the same; files of images
		}
		if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(text)) {
			found[path] = info.Mode()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// processesWith are the processes, but for those in but, whose environment or arguments have a text.
func processesWith(t *testing.T, text string, but map[int]string) []string {
	t.Helper()
	var found []string
	for _, name := range []string{"environ", "cmdline"} {
		files, err := filepath.Glob("/proc/[0-9]*/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			pid, err := strconv.Atoi(strings.Split(file, "/")[2])
			if err != nil {
				t.Fatal(err)
			}
			data, _ := os.ReadFile(file) // it may have ended
			if _, known := but[pid]; !known && pid != os.Getpid() && bytes.Contains(data, []byte(text)) {
				found = append(found, file)
			}
		}
	}
	return found
}

func TestASecretIsTheTasksAlone(t *testing.T) {
	needRoot(t)
	image := imageRegistry(t)
	secrets := t.TempDir()
	const value, referred = "by-value-6f1d2c", "by-reference-83aa0e"
	if err := os.WriteFile(filepath.Join(secrets, "db"), []byte(referred), 0o600); err != nil {
		t.Fatal(err)
	}
	c := start(t, cluster.Options{Composition: `
secret_resolver "file" {
  config {
    folder = "` + secrets + `"
  }
}
`})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "secrets", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 0.3, 192)
	if err != nil {
		t.Fatal(err)
	}
	variables := &mesosv1.Environment{Variables: []*mesosv1.Environment_Variable{
		secretVariable("VALUE", secretOf(value)), secretVariable("REFERRED", secretNamed("db")),
	}}
	inImage := imageTask(o, "image", image, cluster.Shell("cd /mnt/mesos/sandbox && env >env && cat /keys/value /keys/referred >files && echo >ready && exec busybox sleep 1000"))
	inImage.Container.Volumes = []*mesosv1.Volume{secretVolume("/keys/value", secretOf(value)), secretVolume("/keys/referred", secretNamed("db"))}
	plain := cluster.Task(o, "plain", 0.1, 32, cluster.Shell("env >env && cat keys/value keys/referred >files && echo >ready && exec sleep 1000"))
	plain.Container = &mesosv1.ContainerInfo{
		Type:    mesosv1.ContainerInfo_MESOS.Enum(),
		Volumes: []*mesosv1.Volume{secretVolume("keys/value", secretOf(value)), secretVolume("keys/referred", secretNamed("db"))},
	}
	inImage.Command.Environment, plain.Command.Environment = variables, variables
	if err := f.Launch(ctx, o, inImage, plain); err != nil {
		t.Fatal(err)
	}
	running, err := f.State(ctx, []string{"image", "plain"}, mesosv1.TaskState_TASK_RUNNING, mesosv1.TaskState_TASK_FAILED)
	if err != nil {
		t.Fatal(err)
	}
	inside := map[int]string{}
	for id, u := range running {
		if u.Status.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Fatalf("task %s: %v", id, u.Status)
		}
		container := u.Status.GetContainerStatus().GetContainerId().GetValue()
		var sandbox string
		eventually(t, "the task "+id, 20*time.Second, func() bool {
			found, _ := filepath.Glob(filepath.Join(c.Dir, "agent/slaves/*/frameworks/*/executors/*/runs", container, "ready"))
			if len(found) == 1 {
				sandbox = filepath.Dir(found[0])
			}
			return len(found) == 1
		})
		for name, wants := range map[string][]string{"env": {"VALUE=" + value + "\n", "REFERRED=" + referred + "\n"}, "files": {value + referred}} {
			data, err := os.ReadFile(filepath.Join(sandbox, name))
			for _, want := range wants {
				if err != nil || !strings.Contains(string(data), want) {
					t.Errorf("task %s found %s %q, %v; want %q", id, name, data, err, want)
				}
			}
			if err := os.Remove(filepath.Join(sandbox, name)); err != nil {
				t.Fatal(err)
			}
		}
		for pid, began := range processes(t, c, container) {
			inside[pid] = began
		}
	}

	for _, text := range []string{value, referred} {
		for _, dir := range []string{c.Dir, c.RunDir()} {
			for file, mode := range filesWith(t, dir, text) {
				// What a framework writes into its task is part of the task, which must outlive the agent. And who starts
				// the container's first program is told its environment, by a file in memory.
				told := strings.HasPrefix(file, c.RunDir()) && filepath.Base(file) == "config.json"
				if text == referred && !told || mode.Perm()&0o077 != 0 {
					t.Errorf("%s has %s in clear, with mode %s", file, text, mode)
				}
			}
		}
		if found := processesWith(t, text, inside); len(found) > 0 {
			t.Errorf("%s is in %v, want it in the tasks' own processes alone", text, found)
		}
		for _, url := range []string{
			c.Master + "/state", c.Master + "/tasks", c.Master + "/frameworks", c.Master + "/state-summary", c.Agent + "/state", c.Agent + "/containers",
		} {
			if page, err := get("http://" + url); err != nil || strings.Contains(page, text) {
				t.Errorf("%s shows %s, or nothing: %v", url, text, err)
			}
		}
	}
	agent := newPeer(ctx, t, agentAPI, c.Agent, mediaJSON)
	for _, call := range []string{"GET_STATE", "GET_CONTAINERS", "GET_EXECUTORS"} {
		if a := agent.call(http.StatusOK, object{"type": call}); strings.Contains(a.text, referred) {
			t.Errorf("%s shows the secret behind a reference", call)
		}
	}
	for _, text := range []string{value, referred} {
		if strings.Contains(c.Logs(), text) {
			t.Errorf("a log has %s", text)
		}
	}
}

func TestWithoutItsResolverALaunchThatNeedsASecretFails(t *testing.T) {
	needRoot(t)
	try := func(t *testing.T, c *cluster.Cluster, wants ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		f, err := cluster.Subscribe(ctx, c.Master, "secrets", "*")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Disconnect()
		o, err := f.Offer(ctx, 0.3, 96)
		if err != nil {
			t.Fatal(err)
		}
		variable := cluster.Task(o, "variable", 0.1, 32, cluster.Shell("true"))
		variable.Command.Environment = &mesosv1.Environment{Variables: []*mesosv1.Environment_Variable{secretVariable("DB", secretNamed("db"))}}
		file := cluster.Task(o, "file", 0.1, 32, cluster.Shell("true"))
		file.Container = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), Volumes: []*mesosv1.Volume{secretVolume("db", secretNamed("db"))}}
		none := cluster.Task(o, "none", 0.1, 32, cluster.Shell("true"))
		if err := f.Launch(ctx, o, variable, file, none); err != nil {
			t.Fatal(err)
		}
		got, err := f.State(ctx, []string{"variable", "file", "none"}, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_FINISHED)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"variable", "file"} {
			s := got[id].Status
			if s.GetState() != mesosv1.TaskState_TASK_FAILED || s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED ||
				!slices.ContainsFunc(wants, func(want string) bool { return strings.Contains(s.GetMessage(), want) }) {
				t.Errorf("task %s: %s %s %q, want TASK_FAILED with one of %q", id, s.GetState(), s.GetReason(), s.GetMessage(), wants)
			}
		}
		if s := got["none"].Status; s.GetState() != mesosv1.TaskState_TASK_FINISHED {
			t.Errorf("the task that needs no secret: %s %q", s.GetState(), s.GetMessage())
		}
	}
	t.Run("none in the composition", func(t *testing.T) {
		try(t, start(t, cluster.Options{}), "secret db: the composition has no secret_resolver")
	})
	t.Run("one that is down", func(t *testing.T) {
		c := start(t, cluster.Options{Composition: `
secret_resolver "file" {
  required = false
  config {
    folder = "/etc"
  }
}
`})
		// Stopped it answers nothing, and is not started anew as a dead one is.
		resolver := modules(t, c)["secret_resolver/file"].Pid
		if resolver < 2 {
			t.Fatalf("the resolver has no process")
		}
		if err := syscall.Kill(resolver, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		try(t, c, "secret db: secret_resolver(file)")
	})
	t.Run("one that does not know it", func(t *testing.T) {
		try(t, start(t, cluster.Options{Composition: "secret_resolver \"file\" {\n  config {\n    folder = \"" + t.TempDir() + "\"\n  }\n}\n"}),
			`there is no secret "db"`)
	})
}
