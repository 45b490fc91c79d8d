package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	change "github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// commandImages writes four images, with and without entrypoint and default arguments, as archives, and returns their paths
// in this order: neither, arguments only, entrypoint only, both. The program in each of them says how it was called.
func commandImages(t *testing.T) [4]string {
	t.Helper()
	checked := newCheckedImage(t)
	said := "/proc/self/cmdline"
	var paths [4]string
	for n, form := range []struct{ entrypoint, cmd []string }{
		{},
		{cmd: []string{"/bin/cat", said, "/c"}},
		{entrypoint: []string{"/bin/cat", said, "/e"}},
		{entrypoint: []string{"/bin/cat", said, "/e"}, cmd: []string{"/c"}},
	} {
		files := []entry{{name: "show", mode: 0o755, data: []byte("#!/bin/sh\ncat /proc/$$/cmdline\n")}, {name: "a", mode: 0o644, data: []byte("and a")}}
		for _, empty := range []string{"c", "e"} {
			files = append(files, entry{name: empty, mode: 0o644})
		}
		img := assemble(t, dockerForm, checked.below, layerTar(t, files))
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		config = config.DeepCopy()
		config.Config.Entrypoint, config.Config.Cmd = form.entrypoint, form.cmd
		if img, err = change.ConfigFile(img, config); err != nil {
			t.Fatal(err)
		}
		paths[n] = filepath.Join(t.TempDir(), "image.tar")
		tag, err := name.NewTag("example.com/commands:1")
		if err == nil {
			err = tarball.WriteToFile(paths[n], tag, img)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(paths[n], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

// Mesos's table of what a task's command and an image's configuration come to, each cell of it.
func TestCommandsAndImagesComeTogetherByTheTable(t *testing.T) {
	needRoot(t)
	images := commandImages(t)
	columns := [4]string{"neither", "cmd", "entrypoint", "both"}
	// What the program says of how it was called; "" where the task fails.
	table := []struct {
		row     string
		command object
		want    [4]string
	}{
		{"nothing", object{"shell": false}, [4]string{
			"", "/bin/cat /proc/self/cmdline /c", "/bin/cat /proc/self/cmdline /e", "/bin/cat /proc/self/cmdline /e /c",
		}},
		{"arguments", object{"shell": false, "arguments": []any{"/a"}}, [4]string{
			"", "and a", "/bin/cat /proc/self/cmdline /e /a and a", "/bin/cat /proc/self/cmdline /e /a and a",
		}},
		{"value", object{"shell": false, "value": "/show"}, [4]string{"/bin/sh /show", "/bin/sh /show", "/bin/sh /show", "/bin/sh /show"}},
		{"value-arguments", object{"shell": false, "value": "/bin/busybox", "arguments": []any{"cat", "/proc/self/cmdline", "/a"}}, [4]string{
			"cat /proc/self/cmdline /a and a", "cat /proc/self/cmdline /a and a", "cat /proc/self/cmdline /a and a", "cat /proc/self/cmdline /a and a",
		}},
		{"shell", object{"shell": true}, [4]string{}},
		{"shell-value", object{"shell": true, "value": "cat /proc/$$/cmdline; :"}, [4]string{
			"/bin/sh -c cat /proc/$$/cmdline; :", "/bin/sh -c cat /proc/$$/cmdline; :", "/bin/sh -c cat /proc/$$/cmdline; :", "/bin/sh -c cat /proc/$$/cmdline; :",
		}},
		// Arguments beside a line for the shell count for nothing.
		{"shell-value-arguments", object{"shell": true, "value": "cat /proc/$$/cmdline; :", "arguments": []any{"/a"}}, [4]string{
			"/bin/sh -c cat /proc/$$/cmdline; :", "/bin/sh -c cat /proc/$$/cmdline; :", "/bin/sh -c cat /proc/$$/cmdline; :", "/bin/sh -c cat /proc/$$/cmdline; :",
		}},
	}
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	s := subscribeScript(ctx, t, c.Master, "images")
	for _, row := range table {
		offer := s.offer(`"cpus"`)
		wants := map[string]string{}
		var tasks []any
		for n, column := range columns {
			id := row.row + "." + column
			wants[id] = row.want[n]
			tasks = append(tasks, object{
				"name": id, "task_id": object{"value": id}, "agent_id": dig(offer, "agent_id"), "command": row.command,
				"resources": []any{scalar("cpus", 0.1), scalar("mem", 32)},
				"container": object{"type": "MESOS", "mesos": object{"image": object{"type": "DOCKER", "docker": object{"name": images[n]}}}},
			})
		}
		s.accept(offer, object{"type": "LAUNCH", "launch": object{"task_infos": tasks}})
		for len(wants) > 0 {
			status := dig(s.await("UPDATE", func(object) bool { return true }), "update", "status")
			id, _ := dig(status, "task_id", "value").(string)
			want, ours := wants[id]
			state, _ := dig(status, "state").(string)
			if !ours || state == "TASK_STARTING" || state == "TASK_RUNNING" {
				continue
			}
			delete(wants, id)
			message, _ := dig(status, "message").(string)
			got := strings.TrimSuffix(strings.ReplaceAll(stdoutOf(t, c, id), "\x00", " "), " ")
			switch {
			case want == "" && ((state != "TASK_FAILED" && state != "TASK_ERROR") || !strings.Contains(message, "command") && !strings.Contains(message, "value")):
				t.Errorf("%s: got %s %q, it said %q; want a failure that tells what the command lacks", id, state, message, got)
			case want != "" && (state != "TASK_FINISHED" || got != want):
				t.Errorf("%s: got %s %q, it said %q, want %q", id, state, message, got, want)
			}
		}
	}
}
