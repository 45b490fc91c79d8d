package main

import (
	"strings"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

func TestSizesHaveTheUnitsThatPeopleType(t *testing.T) {
	for text, want := range map[string]megabytes{"64": 64, "64m": 64, "64MB": 64, "64MiB": 64, "1.5g": 1536, "1T": 1 << 20, "512k": 0.5, "0": 0} {
		var got megabytes
		if err := got.Set(text); err != nil || got != want {
			t.Errorf("Set(%q): got %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "m", "lots", "-1", "64q", "1mm", "NaNm", "64bm"} {
		var got megabytes
		if err := got.Set(text); err == nil {
			t.Errorf("Set(%q): got %v, want an error", text, got)
		}
	}
}

func TestWhoTakesAnImageForACommandIsToldHow(t *testing.T) {
	const failed = "launcher(process): start container c: exec nginx:1: no such file or directory"
	o := &runOptions{argv: []string{"nginx:1", "ls", "/"}}
	if got := o.imageHint(failed); !strings.HasSuffix(got, "mosaic run --image nginx:1 -- ls /") {
		t.Errorf("imageHint: got %q, want the command line", got)
	}
	o.image = "other"
	if got := o.imageHint(failed); got != "" {
		t.Errorf("imageHint with an image: got %q, want nothing", got)
	}
	o = &runOptions{argv: []string{"ls"}}
	if got := o.imageHint(failed); got != "" {
		t.Errorf("imageHint for another command: got %q, want nothing", got)
	}
}

func TestWhatFollowsTheCommandsNameIsTheCommands(t *testing.T) {
	cmd := newRun()
	if err := cmd.ParseFlags([]string{"--cpus", "2", "ls", "-l", "--mem", "1"}); err != nil {
		t.Fatalf("ParseFlags: %v", err)
	}
	if got := strings.Join(cmd.Flags().Args(), " "); got != "ls -l --mem 1" || cmd.Flags().Changed("mem") {
		t.Errorf("the command: got %q, want all that follows its name", got)
	}
}

func TestTaskIsFoundByItsNameBeforeTheBeginningOfOthersIds(t *testing.T) {
	task := func(id, name string, s mesosv1.TaskState) *mesosv1.Task {
		return &mesosv1.Task{TaskId: &mesosv1.TaskID{Value: &id}, Name: &name, State: &s}
	}
	c := &cluster{state: &masterv1.Response_GetState{GetTasks: &masterv1.Response_GetTasks{
		Tasks:          []*mesosv1.Task{task("web-1", "web", mesosv1.TaskState_TASK_RUNNING), task("web2-7", "web2", mesosv1.TaskState_TASK_RUNNING)},
		CompletedTasks: []*mesosv1.Task{task("web-0", "web", mesosv1.TaskState_TASK_FAILED), task("old-1", "old", mesosv1.TaskState_TASK_FINISHED)},
	}}}
	for name, want := range map[string]string{"web": "web-1", "web-0": "web-0", "web2": "web2-7", "web2-": "web2-7", "old": "old-1"} {
		got, err := c.findTask(name, "")
		if err != nil || got.GetTaskId().GetValue() != want {
			t.Errorf("findTask(%q): got %v, %v, want %s", name, got, err, want)
		}
	}
	if _, err := c.findTask("we", ""); err == nil || !strings.Contains(err.Error(), "could be any of") {
		t.Errorf("findTask(we): got %v, want all that it may be", err)
	}
}
