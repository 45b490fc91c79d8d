package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

var usualNeed = resources.Quantities{"cpus": 0.1, "mem": 32}

func TestAGroupFileNeedsOnlyWhatAPersonKnows(t *testing.T) {
	for name, text := range map[string]string{
		"JSON": `{"tasks": [{"name": "web", "command": {"value": "sleep 1000"}},
			{"command": {"value": "true", "user": "daemon"}, "resources": [{"name": "cpus", "type": "SCALAR", "scalar": {"value": 2}}]}]}`,
		"YAML": `
tasks:
  - name: web
    command:
      value: sleep 1000
  - command: {value: "true", user: daemon}
    resources:
      - {name: cpus, type: SCALAR, scalar: {value: 2}}
`,
	} {
		g, err := parseGroup([]byte(text), usualNeed, "nobody")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		web, other := g.tasks[0], g.tasks[1]
		if web.GetName() != "web" || !strings.HasPrefix(web.GetTaskId().GetValue(), "web-") || web.GetCommand().GetValue() != "sleep 1000" || web.GetCommand().GetUser() != "nobody" {
			t.Errorf("%s: first task %v", name, web)
		}
		if other.GetName() != "task" || other.GetCommand().GetUser() != "daemon" || other.GetTaskId().GetValue() == "" {
			t.Errorf("%s: second task %v", name, other)
		}
		if amountsText(g.needs[0]) != "cpus:0.1;mem:32" || amountsText(g.needs[1]) != "cpus:2" || amountsText(g.own) != amountsText(groupExecutor) {
			t.Errorf("%s: needs %v, executor %v", name, g.needs, g.own)
		}
		if g.executor.GetType() != mesosv1.ExecutorInfo_DEFAULT || g.executor.GetExecutorId().GetValue() == "" {
			t.Errorf("%s: executor %v", name, g.executor)
		}
	}
}

func TestAGroupWhoseTasksOrExecutorNeedGPUsIsOfferedThem(t *testing.T) {
	for _, test := range []struct {
		name, tasks, executor string
		want                  bool
	}{
		{"none", "cpus", "cpus", false},
		{"a task", "gpus", "cpus", true},
		{"a part of one", "mig-1g.5gb", "cpus", true},
		{"the executor", "cpus", "gpus", true},
		{"other letters", "gpusticks", "cpus", false},
	} {
		file := filepath.Join(t.TempDir(), "group.yaml")
		text := strings.NewReplacer("TASK", test.tasks, "EXECUTOR", test.executor).Replace(`
executor: {resources: [{name: EXECUTOR, type: SCALAR, scalar: {value: 1}}]}
task_group:
  tasks:
    - {command: {value: "true"}}
    - {command: {value: "true"}, resources: [{name: TASK, type: SCALAR, scalar: {value: 1}}]}
`)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r := &runner{runOptions: &runOptions{out: io.Discard, err: io.Discard, user: "nobody", cpus: 0.1, mem: 32, file: file}}
		if err := r.prepare(); err != nil {
			t.Errorf("%s: %v", test.name, err)
		} else if got := r.wantsGPUs(); got != test.want {
			t.Errorf("%s: wants GPUs %v, want %v; needs %v", test.name, got, test.want, r.needs)
		}
	}
}

func TestAGroupFileMayBeAWholeOperation(t *testing.T) {
	g, err := parseGroup([]byte(`{
		"executor": {"type": "DEFAULT", "executor_id": {"value": "e"}, "resources": [{"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.5}}],
			"container": {"type": "MESOS", "linux_info": {"share_pid_namespace": false}}},
		"task_group": {"tasks": [{"name": "a", "task_id": {"value": "a-1"}, "command": {"value": "true"}}]}}`), usualNeed, "nobody")
	if err != nil || g.executor.GetExecutorId().GetValue() != "e" || g.own["cpus"] != 0.5 || g.executor.GetContainer().GetLinuxInfo() == nil || g.tasks[0].GetTaskId().GetValue() != "a-1" {
		t.Errorf("parseGroup = %+v, %v", g, err)
	}
}

func TestWrongGroupFilesSayWhatIsWanted(t *testing.T) {
	for text, want := range map[string]string{
		``:                         "want tasks",
		`[]`:                       "cannot unmarshal",
		`{"tasks": []}`:            "want tasks",
		`{"tasks": {}}`:            "want tasks",
		`{"tasks": [1]}`:           "task 1: want an object",
		`{"executor": 1}`:          "executor: want an object",
		`{"task_group": 1}`:        "task_group: want an object",
		`{`:                        "yaml",
		`{"tasks": [{"name": 7}]}`: "name",
		`{"tasks": [{"name": "a", "resources": [{"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 1, "end": 2}]}}]}]}`: "task a: resource ports",
		`{"tasks": [{"name": "a", "command": {"value": .nan}}]}`:                                                                        "not",
	} {
		if g, err := parseGroup([]byte(text), usualNeed, "nobody"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseGroup(%s) = %+v, %v; want %q", text, g, err, want)
		}
	}
	file := filepath.Join(t.TempDir(), "group.json")
	if err := os.WriteFile(file, []byte(strings.Repeat(" ", maxGroupFile+1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readGroup(file, usualNeed, "nobody"); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a file without end = %v", err)
	}
	for _, args := range []string{"run -f " + file + " -- true", "run -f " + file + " --image /", "run -f " + file + " --env A=b"} {
		if _, _, err := execute(t, strings.Fields(args)...); silently(t, err) != exitUsage {
			t.Errorf("mosaic %s = %v, want exit code %d", args, err, exitUsage)
		}
	}
	if _, _, err := execute(t, "run", "-f", "/no/such/file"); silently(t, err) != exitRun || !strings.Contains(err.Error(), "/no/such/file") {
		t.Errorf("a file that is not there = %v", err)
	}
}

func TestOutputOfAGroupIsToldApartByLine(t *testing.T) {
	var out bytes.Buffer
	lock := &sync.Mutex{}
	a, b := &prefixed{mu: lock, w: &out, prefix: "a | "}, &prefixed{mu: lock, w: &out, prefix: "b | "}
	for _, w := range []struct {
		to   *prefixed
		text string
	}{{a, "one\ntw"}, {b, "other\n"}, {a, "o\n\nthr"}, {a, "ee"}} {
		if n, err := io.WriteString(w.to, w.text); n != len(w.text) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	for _, p := range []*prefixed{a, b, a} {
		if err := p.flush(); err != nil {
			t.Fatal(err)
		}
	}
	if want := "a | one\nb | other\na | two\na | \na | three\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	out.Reset()
	if _, err := a.Write(bytes.Repeat([]byte("x"), 2*maxLine)); err != nil || out.Len() < maxLine || len(a.rest) > maxLine {
		t.Errorf("a line without end: %d bytes written, %d held back, %v", out.Len(), len(a.rest), err)
	}
}

func TestTheCodeOfAGroupIsThatOfTheTaskThatFailed(t *testing.T) {
	task := func(id string, s mesosv1.TaskState, message string) *running {
		return &running{info: &mesosv1.TaskInfo{TaskId: &mesosv1.TaskID{Value: &id}}, status: &mesosv1.TaskStatus{State: &s, Message: &message}}
	}
	killed := task("killed", mesosv1.TaskState_TASK_KILLED, "Command terminated with signal Terminated")
	failed := task("failed", mesosv1.TaskState_TASK_FAILED, "Command exited with status 7")
	finished := task("finished", mesosv1.TaskState_TASK_FINISHED, "Command exited with status 0")
	for name, test := range map[string]struct {
		tasks []*running
		want  int
	}{
		"one failed":   {[]*running{killed, finished, failed}, 7},
		"all killed":   {[]*running{killed, finished}, 143},
		"all finished": {[]*running{finished, finished}, 0},
	} {
		var said bytes.Buffer
		r := &runner{runOptions: &runOptions{err: &said}, group: &group{}, tasks: test.tasks}
		if got := r.exitCode(); got != test.want {
			t.Errorf("%s: code %d, want %d", name, got, test.want)
		}
		if name == "one failed" && !strings.Contains(said.String(), "task failed: TASK_FAILED: Command exited with status 7") {
			t.Errorf("said %q, want which task failed", said.String())
		}
	}
}

func TestLogsOfATaskInAGroupAreInItsOwnSandbox(t *testing.T) {
	s := func(v string) *string { return &v }
	task := &mesosv1.Task{TaskId: &mesosv1.TaskID{Value: s("t")}, FrameworkId: &mesosv1.FrameworkID{Value: s("f")}, ExecutorId: &mesosv1.ExecutorID{Value: s("e")}}
	id := func(chain ...string) *mesosv1.ContainerID {
		var c *mesosv1.ContainerID
		for _, v := range chain {
			c = &mesosv1.ContainerID{Value: &v, Parent: c}
		}
		return c
	}
	for want, c := range map[string]*mesosv1.ContainerID{
		"/frameworks/f/executors/e/runs/latest/stdout":                         id("root"),
		"/frameworks/f/executors/e/runs/root/containers/child/stdout":          id("root", "child"),
		"/frameworks/f/executors/e/runs/root/containers/a/containers/b/stdout": id("root", "a", "b"),
	} {
		task.Statuses = []*mesosv1.TaskStatus{{ContainerStatus: &mesosv1.ContainerStatus{ContainerId: c}}, {}} // the last says nothing of it
		if got := sandboxFile(task, "stdout"); got != want {
			t.Errorf("output of a task in %v is %s, want %s", c, got, want)
		}
	}
}
