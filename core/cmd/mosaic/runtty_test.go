package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

func TestATerminalForATaskIsAskedForWell(t *testing.T) {
	keys, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	defer tty.Close()
	for _, test := range []struct {
		o    runOptions
		in   io.Reader
		want string // what is wrong
	}{
		{runOptions{}, strings.NewReader(""), ""},
		{runOptions{tty: true}, strings.NewReader(""), ""},
		{runOptions{tty: true, detach: true}, strings.NewReader(""), ""},
		{runOptions{tty: true, interactive: true}, tty, ""},
		{runOptions{tty: true, interactive: true}, strings.NewReader(""), "wants a terminal"},
		{runOptions{interactive: true}, tty, "say -it"},
		{runOptions{tty: true, interactive: true, detach: true}, tty, "--detach"},
		{runOptions{keys: "ctrl-1"}, tty, "--detach-keys"},
	} {
		if err := test.o.checkTerminal(test.in); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.o, err, test.want)
		}
	}
	if err := pty.Setsize(keys, &pty.Winsize{Rows: 12, Cols: 34}); err != nil {
		t.Fatal(err)
	}
	o := &runOptions{tty: true, containerFlags: containerFlags{image: "/"}, user: "nobody", argv: []string{"sh"}, in: tty, out: io.Discard}
	task, err := o.task()
	if size := task.GetContainer().GetTtyInfo().GetWindowSize(); err != nil || size.GetRows() != 12 || size.GetColumns() != 34 || task.GetContainer().GetMesos().GetImage() == nil {
		t.Errorf("task %v, %v; want the size of our terminal, and its image", task, err)
	}
}

// talker is a `mosaic run -it` whose task is a container of a fake agent.
func talker(t *testing.T, agent *enterable, id string) (r *runner, keys *atTerminal) {
	t.Helper()
	s := terminalFor(t, 24, 80)
	detach, err := parseDetachKeys(defaultDetachKeys)
	if err != nil {
		t.Fatal(err)
	}
	addr := agent.srv.Listener.Addr().String()
	task := &running{
		info:   &mesosv1.TaskInfo{TaskId: &mesosv1.TaskID{Value: &id}},
		status: &mesosv1.TaskStatus{State: mesosv1.TaskState_TASK_RUNNING.Enum(), ContainerStatus: &mesosv1.ContainerStatus{ContainerId: &mesosv1.ContainerID{Value: &id}}},
		out:    s.tty, err: s.tty,
	}
	task.stdout, task.stderr = newTail(operator.NewAgent(addr), id, s.tty), newTail(operator.NewAgent(addr), "none", s.tty)
	return &runner{
		runOptions: &runOptions{in: s.tty, out: s.tty, err: s.tty, tty: true, interactive: true, detachKeys: detach},
		tasks:      []*running{task}, agent: addr,
	}, s
}

func TestRunShowsWhatATaskWroteBeforeItWasConnected(t *testing.T) {
	agent := newEnterable(t)
	c, err := agent.run("c", []string{"sh", "-c", "echo before; read x; echo got $x; exit 3"}, nil, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.await("before\r\n")
	<-c.output // read once, by a file: who attaches now gets what comes
	r, s := talker(t, agent, "c")
	r.begin(t.Context(), r.tasks[0])
	s.see("before")
	s.typeKeys("key\r")
	s.see("got key")
	if err := <-r.talk; err != nil {
		t.Errorf("conversation: %v", err)
	}
	r.talk = make(chan error, 1)
	r.tasks[0].status.State = mesosv1.TaskState_TASK_FAILED.Enum()
	if err := r.talked(t.Context(), nil); !errors.Is(err, errDone) || r.talk != nil {
		t.Errorf("after a task and its output have ended: %v, want the end of the run", err)
	}
	if now := s.termios(); now != s.state {
		t.Errorf("terminal is %+v afterwards, was %+v", now, s.state)
	}
}

func TestATaskThatEndsBeforeItIsConnectedIsReadFromItsFile(t *testing.T) {
	agent := newEnterable(t)
	r, s := talker(t, agent, "gone")
	r.begin(t.Context(), r.tasks[0])
	var refused *operator.StatusError
	err := <-r.talk
	if !errors.As(err, &refused) {
		t.Fatalf("conversation with nobody: %v, want the agent's refusal", err)
	}
	if err := r.talked(t.Context(), err); err != nil || r.connected || r.interactive {
		t.Errorf("after it: %v, connected %v; want output from the file, and no second attempt", err, r.connected)
	}
	if _, err := agent.run("gone", []string{"echo", "quick"}, nil, true, nil); err != nil {
		t.Fatal(err)
	}
	c := agent.find(&mesosv1.ContainerID{Value: ptr("gone")})
	<-c.ended
	if err := r.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.see("quick")
}

func TestAConversationIsWaitedForABitAfterItsTaskHasEnded(t *testing.T) {
	r := &runner{runOptions: &runOptions{err: io.Discard}, talk: make(chan error), endTalk: func() {}}
	ended := &running{info: &mesosv1.TaskInfo{TaskId: &mesosv1.TaskID{Value: ptr("t")}}, stdout: &tail{}, out: io.Discard, err: io.Discard}
	r.connected, r.tasks = true, []*running{ended}
	status := &mesosv1.TaskStatus{TaskId: &mesosv1.TaskID{Value: ptr("t")}, State: mesosv1.TaskState_TASK_FINISHED.Enum()}
	if err := r.update(t.Context(), status); err != nil || r.hangUp == nil {
		t.Fatalf("update = %v, want the run to go on for %v", err, farewell)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.talked(ctx, context.Canceled); !errors.Is(err, errDone) || r.hangUp != nil {
		t.Errorf("talked = %v, want the end of the run", err)
	}
}
