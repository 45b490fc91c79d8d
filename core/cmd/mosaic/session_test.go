package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// typed runs a command with an input.
func typed(t *testing.T, in io.Reader, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(&out)
	root.SetErr(&errs)
	err = root.ExecuteContext(ctx)
	return out.String(), errs.String(), err
}

func TestExecPassesOutputAndExitCodeOn(t *testing.T) {
	a := newEnterable(t)
	master := a.clusterOf(t, nil)
	for _, test := range []struct {
		args        string
		out, errout string
		code        int
	}{
		{"web-1 -- sh -c exit\t7", "", "", 7},
		{"web-1 -- sh -c echo\tout;echo\terr>&2", "out\n", "err\n", 0},
		{"web-1 sh -c kill\t-9\t$$", "", "", 137},
		{"web-1 -- cat", "", "", 0}, // has no input, and is told so
		{"-e WHO=world web-1 -- sh -c echo\t$WHO", "world\n", "", 0},
		{"web-1 -- /no/such/program", "", "", exitNotFound},
		{"nobody -- true", "", "", exitRun},
		{"old-1 -- true", "", "", exitRun}, // has ended
		{"web-1", "", "", exitUsage},
		{"-i web-1", "", "", exitUsage},
		{"web-1 -it -- sh", "", "", exitUsage},
		{"--detach-keys ctrl-1 web-1 -- sh", "", "", exitUsage},
	} {
		args := append([]string{"task", "exec", "--master", master}, strings.Fields(strings.ReplaceAll(test.args, "\t", "\x01"))...)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "\x01", " ")
		}
		out, errout, err := execute(t, args...)
		if code := silently(t, err); code != test.code || out != test.out || errout != test.errout {
			t.Errorf("mosaic task exec %q = %q, %q, code %d (%v); want %q, %q, %d", test.args, out, errout, code, err, test.out, test.errout, test.code)
		}
	}
}

func TestExecEntersTheContainerOfATaskInAGroup(t *testing.T) {
	a := newEnterable(t)
	master := a.clusterOf(t, func(task *mesosv1.Task) {
		task.Statuses[0].ContainerStatus.ContainerId = &mesosv1.ContainerID{Value: ptr("child"), Parent: &mesosv1.ContainerID{Value: ptr("executor")}}
	})
	if _, _, err := execute(t, "task", "exec", "--master", master, "web-1", "--", "true"); err != nil {
		t.Fatal(err)
	}
	id := a.launched[0].GetContainerId()
	if id.GetParent().GetValue() != "child" || id.GetParent().GetParent().GetValue() != "executor" || id.GetValue() == "" {
		t.Errorf("session ran in %v, want it in executor.child", id)
	}
}

func TestExecSaysWhyATaskCannotBeEntered(t *testing.T) {
	a := newEnterable(t)
	waiting := a.clusterOf(t, func(task *mesosv1.Task) { task.State, task.Statuses = mesosv1.TaskState_TASK_STAGING.Enum(), nil })
	if _, _, err := execute(t, "task", "exec", "--master", waiting, "web-1", "--", "true"); err == nil || !strings.Contains(err.Error(), "TASK_STAGING") {
		t.Errorf("exec in a task without a container = %v, want its state", err)
	}
	a.refuse = "Container is being destroyed"
	if _, _, err := execute(t, "task", "exec", "--master", a.clusterOf(t, nil), "web-1", "--", "true"); silently(t, err) != exitRun || !strings.Contains(err.Error(), "is being destroyed") {
		t.Errorf("refused exec = %v, want the agent's words", err)
	}
}

func TestExecEndsQuietlyWhenNobodyReadsItsOutput(t *testing.T) {
	agent := newEnterable(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	var errs bytes.Buffer
	root := newRoot()
	root.SetArgs([]string{"task", "exec", "--master", agent.clusterOf(t, nil), "web-1", "--", "yes"})
	root.SetOut(w)
	root.SetErr(&errs)
	err = root.ExecuteContext(t.Context())
	var exit *exitError
	if !errors.As(err, &exit) || exit.code != 141 || exit.err != nil || errs.Len() > 0 {
		t.Errorf("exec of yes into a closed pipe = %v, %q; want code 141 and no word", err, errs.String())
	}
	for _, c := range agent.containers {
		<-c.ended // the command does not write on
	}
}

func TestExecPipesInputToItsEnd(t *testing.T) {
	master := newEnterable(t).clusterOf(t, nil)
	data := bytes.Repeat([]byte("some line of text\n"), 200_000)
	out, _, err := typed(t, bytes.NewReader(data), "task", "exec", "--master", master, "-i", "web-1", "--", "sha256sum")
	if want := fmt.Sprintf("%x  -\n", sha256.Sum256(data)); err != nil || out != want {
		t.Errorf("3.6 MB through a pipe = %q, %v; want %q", out, err, want)
	}
	// Keys are keys on a terminal only.
	if out, _, err := typed(t, strings.NewReader("a\x10\x11b"), "task", "exec", "--master", master, "-i", "web-1", "--", "cat"); err != nil || out != "a\x10\x11b" {
		t.Errorf("detach keys in a pipe = %q, %v; want them passed on", out, err)
	}
	// A command that does not read to the end ends all the same, and leaves the rest to others.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, _, err = typed(t, r, "task", "exec", "--master", master, "-i", "web-1", "--", "true"); err != nil {
		t.Errorf("exec of a command that reads nothing = %v", err)
	}
	if _, err := w.WriteString("rest"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "rest" {
		t.Errorf("%q was left of the input (%v), want all", got, err)
	}
}

func TestExecAtATerminalFeelsLikeAShell(t *testing.T) {
	t.Setenv("TERM", "vt100")
	agent := newEnterable(t)
	s := runAtTerminal(t, 31, 97, "task", "exec", "--master", agent.clusterOf(t, nil), "-it", "web-1")
	s.typeKeys("PS1=pro''mpt:; echo re''ady\r")
	s.see("ready")
	if now := s.termios(); now.Lflag&(unix.ECHO|unix.ICANON|unix.ISIG) != 0 {
		t.Errorf("terminal echoes or interprets keys: flags %#x", now.Lflag)
	}
	s.typeKeys("stty size; echo $TERM\r")
	s.see("31 97\r\nvt100")
	// A window that grows.
	if err := pty.Setsize(s.keys, &pty.Winsize{Rows: 40, Cols: 120}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil { // to the group in front of it, were it ours
		t.Fatal(err)
	}
	s.typeKeys("until stty size | grep '40 120'; do sleep 0.02; done\r")
	s.see("40 120\r\n")
	// Ctrl-C is a key of the command's.
	s.typeKeys("cat\rhey\r")
	s.see("hey\r\n") // as typed
	s.see("hey\r\n") // from cat, which is in front of the terminal now
	s.typeKeys("\x03")
	s.see("prompt:") // what is typed before may be lost: a terminal drops it
	s.typeKeys("echo st''ill here\r")
	s.see("still here")
	// ^D ends the shell, and the shell's code is ours.
	s.typeKeys("(exit 9)\r\x04")
	s.end(9)
	if shell := agent.launched[0].GetCommand(); shell.GetValue() != defaultShell || shell.GetShell() {
		t.Errorf("ran %v, want %s", shell, defaultShell)
	}
}

func TestTheTerminalIsPutRightHoweverASessionEnds(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(*atTerminal, *enterable)
		code int
	}{
		"the command is killed": {func(_ *atTerminal, e *enterable) {
			e.mu.Lock()
			defer e.mu.Unlock()
			for _, c := range e.containers {
				_ = c.cmd.Process.Kill()
			}
		}, 137},
		"the agent is lost":    {func(_ *atTerminal, e *enterable) { e.srv.CloseClientConnections() }, exitRun},
		"a signal to us":       {func(*atTerminal, *enterable) { _ = syscall.Kill(os.Getpid(), syscall.SIGTERM) }, 143},
		"our terminal is gone": {func(*atTerminal, *enterable) { _ = syscall.Kill(os.Getpid(), syscall.SIGHUP) }, 129},
		"the detach keys":      {func(s *atTerminal, _ *enterable) { s.typeKeys("\x10\x11") }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			agent := newEnterable(t)
			s := runAtTerminal(t, 24, 80, "task", "exec", "--master", agent.clusterOf(t, nil), "-it", "web-1", "sh")
			s.typeKeys("PS1=; echo re''ady\r")
			s.see("ready")
			test.end(s, agent)
			s.end(test.code)
			for _, c := range agent.containers {
				select {
				case <-c.ended:
				case <-time.After(10 * time.Second):
					t.Error("the command runs on after its session")
				}
			}
		})
	}
}

func TestASignalGoesToACommandWithoutATerminalFirst(t *testing.T) {
	agent := newEnterable(t)
	master := agent.clusterOf(t, nil)
	r, w := io.Pipe()
	ended := make(chan error, 1)
	root := newRoot()
	root.SetArgs([]string{"task", "exec", "--master", master, "web-1", "--", "sh", "-c", "trap 'exit 3' INT; echo ready; while :; do sleep 0.1; done"})
	root.SetOut(w)
	root.SetErr(io.Discard)
	go func() { ended <- root.ExecuteContext(context.Background()) }()
	if _, err := io.ReadFull(r, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := silently(t, <-ended); code != 3 {
		t.Errorf("code %d, want that of the command's own handler", code)
	}
}

// ttyTask makes a task one that was given a terminal.
func ttyTask(task *mesosv1.Task) {
	task.Container = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), TtyInfo: &mesosv1.TTYInfo{}}
}

func TestAttachLeavesTheTaskRunning(t *testing.T) {
	agent := newEnterable(t)
	master := agent.clusterOf(t, ttyTask)
	c, err := agent.run("container-web-1", []string{"sh", "-c", "stty -echo; trap 'stty size' WINCH; echo up; until [ \"$line\" = two ]; do line=; read line; echo got $line; done; exit 5"}, nil, true,
		&mesosv1.TTYInfo_WindowSize{Rows: ptr(uint32(10)), Columns: ptr(uint32(20))})
	if err != nil {
		t.Fatal(err)
	}
	c.await("up")
	s := runAtTerminal(t, 24, 80, "task", "attach", "--master", master, "web-1")
	s.see("24 80") // our window is the task's, and it draws
	s.typeKeys("one\r")
	s.see("got one")
	s.typeKeys("\x10x\r") // the beginning of the keys alone is input, once that is known
	s.see("got \x10x")
	s.typeKeys("\x10\x11")
	s.see("detached from web-1")
	s.end(0)
	select {
	case <-c.ended:
		t.Fatal("the task ended with its visitor")
	default:
	}
	// Its end is ours when we are there.
	s = runAtTerminal(t, 24, 80, "task", "attach", "--master", master, "web-1")
	s.typeKeys("two\r")
	s.see("got two")
	s.end(5)
}

func TestAttachToATaskWithoutATerminalWatches(t *testing.T) {
	agent := newEnterable(t)
	if _, err := agent.run("container-web-1", []string{"sh", "-c", "echo out; echo err >&2; exit 4"}, nil, false, nil); err != nil {
		t.Fatal(err)
	}
	out, errout, err := typed(t, strings.NewReader("ignored"), "task", "attach", "--master", agent.clusterOf(t, nil), "web-1")
	if silently(t, err) != 4 || out != "out\n" || errout != "err\n" {
		t.Errorf("attach = %q, %q, %v; want both outputs and code 4", out, errout, err)
	}
	if _, _, err := execute(t, "task", "attach", "--master", agent.clusterOf(t, func(task *mesosv1.Task) {
		task.Statuses[0].ContainerStatus.ContainerId = &mesosv1.ContainerID{Value: ptr("elsewhere")}
	}), "web-1"); silently(t, err) != exitRun || !strings.Contains(err.Error(), "404") {
		t.Errorf("attach to a container that is not there = %v", err)
	}
}

func TestDetachKeys(t *testing.T) {
	for text, want := range map[string]string{"": "", "ctrl-p,ctrl-q": "\x10\x11", "a": "a", "ctrl-@,ctrl-[,ctrl-_": "\x00\x1b\x1f", "~,.": "~."} {
		if got, err := parseDetachKeys(text); err != nil || string(got) != want {
			t.Errorf("parseDetachKeys(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"ctrl-", "ctrl-1", "ctrl-P", "ab", "a,", ",", "é"} {
		if got, err := parseDetachKeys(text); err == nil {
			t.Errorf("parseDetachKeys(%q) = %q, want an error", text, got)
		}
	}
	for _, test := range []struct {
		keys, typed string
		hold        bool
		pass        string
		detached    bool
	}{
		{"pq", "apbpq!", true, "apb", true},
		{"pq", "apbpq!", false, "apbp", true},
		{"pq", "p", true, "", false}, // not known yet
		{"pq", "p", false, "p", false},
		{"ppq", "pppq", true, "p", true}, // the keys may begin inside what looked like them
		{"ppq", "ppp", true, "p", false},
		{"ppq", "pppx", true, "pppx", false},
		{"", "pq", true, "pq", false},
	} {
		for size := 1; size <= len(test.typed); size++ { // however it comes in
			d := detacher{keys: []byte(test.keys), hold: test.hold}
			var pass []byte
			detached := false
			for rest := test.typed; rest != "" && !detached; {
				n := min(size, len(rest))
				var p []byte
				p, detached = d.feed([]byte(rest[:n]))
				pass, rest = append(pass, p...), rest[n:]
			}
			if string(pass) != test.pass || detached != test.detached {
				t.Errorf("keys %q, hold %v: %q in pieces of %d gave %q, %v; want %q, %v", test.keys, test.hold, test.typed, size, pass, detached, test.pass, test.detached)
			}
		}
	}
}

func TestAReadThatIsStoppedTakesNothing(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	p, err := newPolled(r)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() { _, err := p.Read(make([]byte, 1)); read <- err }()
	p.stop()
	if err := <-read; !errors.Is(err, errStopped) {
		t.Errorf("Read = %v, want errStopped", err)
	}
	p.Close()
	if p, err = newPolled(r); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	defer p.stop()
	if _, err := w.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2)
	if n, err := p.Read(buf); n != 1 || err != nil {
		t.Errorf("Read = %d, %v; want the byte that was there", n, err)
	}
	w.Close()
	if n, err := p.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("Read at the end = %d, %v; want io.EOF", n, err)
	}
}
