package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

// execute runs the program in this process and returns what it printed and how it would have ended.
func execute(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errs)
	err = root.ExecuteContext(ctx)
	return out.String(), errs.String(), err
}

// silently gives the exit code of an error without its text on standard error.
func silently(t *testing.T, err error) int {
	t.Helper()
	null, e := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if e != nil {
		t.Fatal(e)
	}
	defer null.Close()
	stderr := os.Stderr
	os.Stderr = null
	defer func() { os.Stderr = stderr }()
	return report(err)
}

// commands are all commands of ours, with those below them.
func commands(cmd *cobra.Command) []*cobra.Command {
	list := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		list = append(list, commands(c)...)
	}
	return list
}

func TestEveryCommandThatDoesSomethingHasAnExample(t *testing.T) {
	for _, c := range commands(newRoot()) {
		if c.Short == "" {
			t.Errorf("%s: no short description", c.CommandPath())
		}
		if !c.Runnable() || c.HasSubCommands() || c.Name() == "version" {
			continue
		}
		if !strings.Contains(c.Example, c.CommandPath()) {
			t.Errorf("%s: example %q, want one that shows the command", c.CommandPath(), c.Example)
		}
		for _, line := range strings.Split(c.Example, "\n") {
			if !strings.HasPrefix(line, "  mosaic ") {
				t.Errorf("%s: line %q of the example, want it to begin with two blanks and the program", c.CommandPath(), line)
			}
		}
	}
}

func TestExamplesHaveOnlyFlagsThatExist(t *testing.T) {
	for _, c := range commands(newRoot()) {
		for _, line := range strings.Split(c.Example, "\n") {
			words := strings.Fields(line)
			if len(words) == 0 {
				continue
			}
			for _, w := range words {
				if w == "--" {
					break
				}
				name, ok := strings.CutPrefix(w, "--")
				name, _, _ = strings.Cut(name, "=")
				if ok && c.Flags().Lookup(name) == nil {
					t.Errorf("%s: example has --%s, which is no flag", c.CommandPath(), name)
				}
			}
		}
	}
}

func TestHelpShowsTheExample(t *testing.T) {
	out, _, err := execute(t, "run", "--help")
	if err != nil || !strings.Contains(out, "mosaic run -- echo hello") || !strings.Contains(out, "--detach") {
		t.Errorf("run --help = %v\n%s", err, out)
	}
}

func TestWrongFlagsEndWithCode2(t *testing.T) {
	for _, test := range []struct {
		args string
		want []string
	}{
		{"run --cpu 1 -- true", []string{"unknown flag: --cpu", "mosaic run --help"}},
		{"run --cpus many -- true", []string{`"many"`, "--cpus"}},
		{"agent --listen", []string{"--listen", "mosaic agent --help"}},
		{"run", []string{"mosaic run -- COMMAND"}},
		{"run --memory 64m --image i", []string{"memory is --mem", "mosaic run --help"}},
		{"run --env-file f -- true", []string{"--env KEY=VALUE"}},
		{"run -P --image i", []string{"--publish PORT"}},
		{"run --gpus all -- true", []string{"--gpus 1"}},
		{"run --mem lots -- true", []string{"512m"}},
		{"run --init=perhaps --image i", []string{"true or false"}},
		{"run -v /a:/b ls", []string{"--volume /a:/b"}},
		{"run --image i -v /a:/b ls", []string{"--volume /a:/b"}},
		{"run -o json -- true", []string{"--detach"}},
		{"ps", []string{"did you mean task?"}},
		{"master --log-level loud --listen 127.0.0.1:0", []string{`"loud"`, "debug, info, warn or error"}},
	} {
		_, _, err := execute(t, strings.Fields(test.args)...)
		if code := silently(t, err); code != exitUsage {
			t.Errorf("mosaic %s: exit code %d (%v), want %d", test.args, code, err, exitUsage)
			continue
		}
		for _, w := range test.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("mosaic %s said %q, want it to contain %q", test.args, err, w)
			}
		}
	}
}

func TestAGroupOfCommandsShowsItsHelp(t *testing.T) {
	for _, group := range []string{"task", "node", "framework", "module", "config"} {
		out, _, err := execute(t, group)
		if err != nil || !strings.Contains(out, "Available Commands:") {
			t.Errorf("mosaic %s = %v\n%s", group, err, out)
		}
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out, _, err := execute(t, "completion", shell); err != nil || !strings.Contains(out, "__complete") || !strings.Contains(out, "mosaic") {
			t.Errorf("completion %s = %v, %d bytes", shell, err, len(out))
		}
	}
	addr := fakeMaster(t, state())
	for _, test := range []struct {
		args []string
		want []string
	}{
		{[]string{"ta"}, []string{"task\t"}},
		{[]string{"run", "--max-"}, []string{"--max-cpus\t", "--max-mem\t"}},
		{[]string{"run", "--network", ""}, []string{"host\n", "bridge\n", "none\n", ":4\n"}},
		{[]string{"task", "ls", "-o", ""}, []string{"table\n", "wide\n", "json\n", "yaml\n"}},
		{[]string{"task", "logs", "--master", addr, ""}, []string{"web-1\n", "old-1\n"}},
		{[]string{"task", "kill", "--master", "127.0.0.1:1", ""}, []string{":4\n"}}, // nobody there: nothing, and no files either
	} {
		out, _, err := execute(t, append([]string{"__complete"}, test.args...)...)
		for _, w := range test.want {
			if err != nil || !strings.Contains(out, w) {
				t.Errorf("__complete %q = %v\n%s\nwant %q", test.args, err, out, w)
			}
		}
	}
}

func TestSettingsOfTheFileGiveWayToFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "site.hcl")
	text := `
master {
  listen = "203.0.113.1:1"
  insecure = true
}
agent {
  listen = "203.0.113.2:2"
}
`
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args string
		want string
	}{
		{"master --config " + file, "listen on 203.0.113.1:1 "},
		{"master --config " + file + " --listen 203.0.113.3:3", "listen on 203.0.113.3:3 "},
		{"agent --config " + file, "listen on 203.0.113.2:2 "},
		{"agent --config " + file + " --listen 203.0.113.3:3", "listen on 203.0.113.3:3 "},
	} {
		_, _, err := execute(t, strings.Fields(test.args)...)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("mosaic %s = %v, want %q", test.args, err, test.want)
		}
	}
	cmd := newMaster()
	o := &masterOptions{}
	if err := o.configure(cmd); err != nil || o.listen != "" || o.insecure {
		t.Errorf("without a file: %v, listen %q, insecure %v; want what was there", err, o.listen, o.insecure)
	}
	if _, _, err := execute(t, "master", "--config", "/no/such/file.hcl"); silently(t, err) != exitFailed || !strings.Contains(err.Error(), "/no/such/file.hcl") {
		t.Errorf("master with a file that is not there = %v, want it named", err)
	}
}

// fakeMaster answers every call with a state.
func fakeMaster(t *testing.T, s *masterv1.Response_GetState) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		call := &masterv1.Call{}
		if err == nil {
			err = call.UnmarshalVT(body)
		}
		if err != nil || call.GetType() != masterv1.Call_GET_STATE {
			t.Errorf("master was asked %v, %v; want GET_STATE", call, err)
		}
		data, err := (&masterv1.Response{Type: masterv1.Response_GET_STATE.Enum(), GetState: s}).MarshalVT()
		if err != nil {
			t.Errorf("encode the state: %v", err)
		}
		_, _ = w.Write(data)
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

func ptr[T any](v T) *T { return &v }

func amount(name string, v float64) *mesosv1.Resource {
	return &mesosv1.Resource{Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &v}}
}

// state is a small cluster: two agents, a framework that lives and one that has ended, a task of each.
func state() *masterv1.Response_GetState {
	started := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := &mesosv1.TimeInfo{Nanoseconds: ptr(started.UnixNano())}
	task := func(id, framework string, s mesosv1.TaskState, message string) *mesosv1.Task {
		return &mesosv1.Task{
			Name: ptr(strings.TrimSuffix(id, "-1")), TaskId: &mesosv1.TaskID{Value: &id}, FrameworkId: &mesosv1.FrameworkID{Value: &framework},
			AgentId: &mesosv1.AgentID{Value: ptr("agent-a")}, State: &s, Resources: []*mesosv1.Resource{amount("cpus", 0.5), amount("mem", 64)},
			Statuses: []*mesosv1.TaskStatus{{
				TaskId: &mesosv1.TaskID{Value: &id}, State: &s, Message: &message, Timestamp: ptr(float64(started.Unix())),
				ContainerStatus: &mesosv1.ContainerStatus{ContainerId: &mesosv1.ContainerID{Value: ptr("container-" + id)}},
			}},
		}
	}
	agent := func(id, host string, active bool) *masterv1.Response_GetAgents_Agent {
		return &masterv1.Response_GetAgents_Agent{
			AgentInfo: &mesosv1.AgentInfo{
				Id: &mesosv1.AgentID{Value: &id}, Hostname: &host, Port: ptr(int32(5051)),
				Attributes: []*mesosv1.Attribute{{Name: ptr("rack"), Type: mesosv1.Value_TEXT.Enum(), Text: &mesosv1.Value_Text{Value: ptr("a1")}}},
			},
			Active: &active, Version: ptr("1.11.0"), RegisteredTime: at,
			TotalResources: []*mesosv1.Resource{amount("cpus", 4), amount("mem", 4096), amount("disk", 1000)},
			AllocatedResources: []*mesosv1.Resource{
				amount("cpus", 0.25), amount("cpus", 0.25), amount("mem", 64), // of two roles
			},
		}
	}
	framework := func(id, name string, active bool) *masterv1.Response_GetFrameworks_Framework {
		return &masterv1.Response_GetFrameworks_Framework{
			FrameworkInfo: &mesosv1.FrameworkInfo{Id: &mesosv1.FrameworkID{Value: &id}, Name: &name, User: ptr("nobody"), Roles: []string{"web", "batch"}},
			Active:        &active, Connected: &active, Recovered: ptr(false), RegisteredTime: at, AllocatedResources: []*mesosv1.Resource{amount("cpus", 0.5)},
		}
	}
	return &masterv1.Response_GetState{
		GetTasks: &masterv1.Response_GetTasks{
			Tasks:          []*mesosv1.Task{task("web-1", "f-1", mesosv1.TaskState_TASK_RUNNING, "")},
			CompletedTasks: []*mesosv1.Task{task("old-1", "f-0", mesosv1.TaskState_TASK_FAILED, "Command exited with status 1")},
		},
		GetAgents: &masterv1.Response_GetAgents{Agents: []*masterv1.Response_GetAgents_Agent{
			agent("agent-b", "beta", false), agent("agent-a", "alpha", true),
		}},
		GetFrameworks: &masterv1.Response_GetFrameworks{
			Frameworks:          []*masterv1.Response_GetFrameworks_Framework{framework("f-1", "marathon", true)},
			CompletedFrameworks: []*masterv1.Response_GetFrameworks_Framework{framework("f-0", "mosaic run", false)},
		},
	}
}

// fakeAgent answers /mosaic/v1/modules and READ_FILE of one file, in pieces.
func fakeAgent(t *testing.T, modules, path, content string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && r.URL.Path == modulesPath {
			_, _ = io.WriteString(w, modules)
			return
		}
		body, err := io.ReadAll(r.Body)
		call := &agentv1.Call{}
		if err == nil {
			err = call.UnmarshalVT(body)
		}
		if err != nil || call.GetType() != agentv1.Call_READ_FILE {
			t.Errorf("agent was asked %s %s %v, %v", r.Method, r.URL, call, err)
		}
		read := call.GetReadFile()
		if read.GetPath() != path {
			http.Error(w, "File not found.", http.StatusNotFound)
			return
		}
		begin := min(int(read.GetOffset()), len(content))
		end := min(begin+min(int(read.GetLength()), 5), len(content))
		answer := &agentv1.Response{Type: agentv1.Response_READ_FILE.Enum(), ReadFile: &agentv1.Response_ReadFile{
			Data: []byte(content[begin:end]), Size: ptr(uint64(len(content))),
		}}
		data, err := answer.MarshalVT()
		if err != nil {
			t.Errorf("encode: %v", err)
		}
		_, _ = w.Write(data)
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}
