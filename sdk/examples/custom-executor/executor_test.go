package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

// TestMain makes the test binary the executor too: an agent starts it with its environment.
func TestMain(m *testing.M) {
	if _, ok := os.LookupEnv("MESOS_EXECUTOR_ID"); ok {
		main()
	}
	os.Exit(m.Run())
}

// agent is a fake of an agent with one executor, which it starts. It acknowledges what it is told.
type agent struct {
	t       *testing.T
	program *exec.Cmd
	stderr  bytes.Buffer
	sandbox string

	mu       sync.Mutex // guards what follows
	events   chan *executorv1.Event
	cut      chan struct{} // closed to break the stream
	begun    int
	states   []string // TASK:STATE, each once
	uuids    map[string]bool
	texts    map[string]string // the last message of each task
	messages []string
	changed  chan struct{} // closed and replaced at each change
}

// startAgent starts the executor as an agent would.
func startAgent(t *testing.T) *agent {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{
		t: t, sandbox: t.TempDir(), uuids: map[string]bool{}, texts: map[string]string{}, changed: make(chan struct{}),
		cut: make(chan struct{}),
	}
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	t.Cleanup(srv.CloseClientConnections)
	a.program = exec.CommandContext(t.Context(), program)
	a.program.Stderr = &a.stderr
	a.program.Env = []string{
		"PATH=" + os.Getenv("PATH"), "MESOS_FRAMEWORK_ID=f", "MESOS_EXECUTOR_ID=pool", "MESOS_AGENT_ENDPOINT=" + srv.Listener.Addr().String(),
		"MESOS_DIRECTORY=" + a.sandbox, "MESOS_SANDBOX=" + a.sandbox, "MESOS_CHECKPOINT=1", "MESOS_RECOVERY_TIMEOUT=1mins",
		"MESOS_SUBSCRIPTION_BACKOFF_MAX=100ms", "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD=20secs",
	}
	if err := a.program.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if a.program.ProcessState == nil {
			_ = a.program.Process.Kill()
			_ = a.program.Wait()
		}
		if t.Failed() {
			t.Logf("the executor said:\n%s", &a.stderr)
		}
	})
	a.await("a subscription", func() bool { return a.begun == 1 })
	return a
}

func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	call := &executorv1.Call{}
	if err == nil {
		err = call.UnmarshalVT(body)
	}
	if err != nil {
		a.t.Errorf("%s %s: %v", r.Method, r.URL, err)
		http.Error(w, "bad", http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() {
		close(a.changed)
		a.changed = make(chan struct{})
	}()
	switch call.GetType() {
	case executorv1.Call_UPDATE:
		a.take(call.GetUpdate().GetStatus())
	case executorv1.Call_MESSAGE:
		a.messages = append(a.messages, string(call.GetMessage().GetData()))
	case executorv1.Call_SUBSCRIBE:
		a.serve(w, r, call)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// take remembers an update and acknowledges it. The caller holds the lock.
func (a *agent) take(s *mesosv1.TaskStatus) {
	id := s.GetTaskId().GetValue()
	if !a.uuids[string(s.GetUuid())] {
		a.uuids[string(s.GetUuid())] = true
		a.states = append(a.states, fmt.Sprintf("%s:%s", id, s.GetState()))
		a.texts[id] = s.GetMessage()
	}
	a.events <- &executorv1.Event{
		Type:         executorv1.Event_ACKNOWLEDGED.Enum(),
		Acknowledged: &executorv1.Event_Acknowledged{TaskId: s.TaskId, Uuid: s.Uuid},
	}
}

// serve plays a subscription. The lock is let go while it lasts.
func (a *agent) serve(w http.ResponseWriter, r *http.Request, call *executorv1.Call) {
	events := make(chan *executorv1.Event, 1024)
	a.events = events
	a.begun++
	events <- &executorv1.Event{Type: executorv1.Event_SUBSCRIBED.Enum(), Subscribed: &executorv1.Event_Subscribed{
		ExecutorInfo:  &mesosv1.ExecutorInfo{ExecutorId: call.GetExecutorId()},
		FrameworkInfo: &mesosv1.FrameworkInfo{User: new("u"), Name: new("n")},
		AgentInfo:     &mesosv1.AgentInfo{Hostname: new("h")},
	}}
	for _, u := range call.GetSubscribe().GetUnacknowledgedUpdates() {
		a.take(u.GetStatus())
	}
	cut := a.cut
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	defer a.mu.Lock()
	for {
		select {
		case e := <-events:
			data, err := e.MarshalVT()
			if err != nil {
				a.t.Errorf("encode %v: %v", e, err)
			}
			_, _ = w.Write(recordio.Append(nil, data)) // the executor may have gone
			w.(http.Flusher).Flush()
		case <-cut:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (a *agent) send(e *executorv1.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events <- e
}

func info(id, command string) *mesosv1.TaskInfo {
	return &mesosv1.TaskInfo{Name: &id, TaskId: &mesosv1.TaskID{Value: &id}, AgentId: &mesosv1.AgentID{Value: new("a")}, Data: []byte(command)}
}

func (a *agent) launch(id, command string) {
	a.send(&executorv1.Event{Type: executorv1.Event_LAUNCH.Enum(), Launch: &executorv1.Event_Launch{Task: info(id, command)}})
}

func (a *agent) kill(id string, grace int64) {
	a.send(&executorv1.Event{Type: executorv1.Event_KILL.Enum(), Kill: &executorv1.Event_Kill{
		TaskId: &mesosv1.TaskID{Value: &id}, KillPolicy: &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: &grace}},
	}})
}

func (a *agent) message(text string) {
	a.send(&executorv1.Event{Type: executorv1.Event_MESSAGE.Enum(), Message: &executorv1.Event_Message{Data: []byte(text)}})
}

// await waits until is, called under the lock, holds.
func (a *agent) await(what string, is func() bool) {
	a.t.Helper()
	for {
		a.mu.Lock()
		ok, changed := is(), a.changed
		a.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-a.t.Context().Done():
			a.t.Fatalf("wait for %s: the test is over", what)
		}
	}
}

// awaitState waits until a task has had a state.
func (a *agent) awaitState(id string, state mesosv1.TaskState) {
	a.t.Helper()
	want := id + ":" + state.String()
	a.await(want, func() bool { return slices.Contains(a.states, want) })
}

// of are the states that a task had, in order.
func (a *agent) of(id string) (out []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.states {
		if state, ok := strings.CutPrefix(s, id+":TASK_"); ok {
			out = append(out, state)
		}
	}
	return out
}

func (a *agent) check(id string, want ...string) {
	a.t.Helper()
	if got := a.of(id); !slices.Equal(got, want) {
		a.t.Errorf("%s was %v, want %v", id, got, want)
	}
}

func TestTasksRunBesideEachOther(t *testing.T) {
	a := startAgent(t)
	a.launch("good", "echo hello; echo oops >&2")
	a.launch("bad", "exit 7")
	a.launch("empty", "")
	a.send(&executorv1.Event{Type: executorv1.Event_LAUNCH_GROUP.Enum(), LaunchGroup: &executorv1.Event_LaunchGroup{
		TaskGroup: &mesosv1.TaskGroupInfo{Tasks: []*mesosv1.TaskInfo{info("one", "mkfifo p && cat p"), info("a/b", "until test -p p; do sleep 0.01; done; echo met > p")}},
	}})
	for _, id := range []string{"good", "one", "a/b"} {
		a.awaitState(id, mesosv1.TaskState_TASK_FINISHED)
		a.check(id, "RUNNING", "FINISHED")
	}
	a.awaitState("bad", mesosv1.TaskState_TASK_FAILED)
	a.check("bad", "RUNNING", "FAILED")
	a.check("empty", "FAILED")
	if a.texts["bad"] != "Command exited with status 7" || a.texts["empty"] != "Failed to start: data holds no command" {
		t.Errorf("messages %q, want why they failed", a.texts)
	}
	for file, want := range map[string]string{"good.stdout": "hello\n", "good.stderr": "oops\n", "one.stdout": "met\n", "a_b.stdout": ""} {
		if got, err := os.ReadFile(filepath.Join(a.sandbox, file)); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", file, got, err, want)
		}
	}
}

func TestATaskIsKilledWithAllThatItStarted(t *testing.T) {
	a := startAgent(t)
	a.launch("polite", "echo $$ > polite.pid; sleep 1000")
	a.launch("stubborn", "trap '' TERM; (trap '' TERM; echo $$ > stubborn.pid; while :; do sleep 1000; done)")
	a.launch("other", "cat")
	for _, id := range []string{"polite", "stubborn"} {
		a.awaitState(id, mesosv1.TaskState_TASK_RUNNING)
	}
	a.kill("polite", int64(1e12))
	a.kill("nobody", 0)
	a.awaitState("polite", mesosv1.TaskState_TASK_KILLED)
	a.check("polite", "RUNNING", "KILLING", "KILLED")
	a.kill("stubborn", int64(1e12))
	a.awaitState("stubborn", mesosv1.TaskState_TASK_KILLING)
	a.kill("stubborn", 0) // enough
	a.awaitState("stubborn", mesosv1.TaskState_TASK_KILLED)
	a.awaitState("other", mesosv1.TaskState_TASK_FINISHED)
	a.message("status")
	a.message("what?")
	a.await("two answers", func() bool { return len(a.messages) == 2 })
	slices.Sort(a.messages)
	if want := []string{`I know no "what?"; I know "status"`, `{"running":[],"ended":3}`}; !slices.Equal(a.messages, want) {
		t.Errorf("answers %q, want %q", a.messages, want)
	}
}

func TestTasksGoOnWhileTheAgentIsAway(t *testing.T) {
	a := startAgent(t)
	a.launch("task", "mkfifo p; read x < p; echo $x")
	a.awaitState("task", mesosv1.TaskState_TASK_RUNNING)
	a.mu.Lock()
	close(a.cut)
	a.cut = make(chan struct{})
	a.mu.Unlock()
	a.await("another subscription", func() bool { return a.begun == 2 })
	pipe := filepath.Join(a.sandbox, "p")
	f, err := os.OpenFile(pipe, os.O_RDWR, 0) // opens whether or not the task has come so far
	for err != nil && os.IsNotExist(err) {
		f, err = os.OpenFile(pipe, os.O_RDWR, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("back\n"); err != nil {
		t.Fatal(err)
	}
	a.awaitState("task", mesosv1.TaskState_TASK_FINISHED)
	a.check("task", "RUNNING", "FINISHED")
}

func TestShutdownKillsAllAndTellsOfIt(t *testing.T) {
	a := startAgent(t)
	for _, id := range []string{"t1", "t2", "t3"} {
		a.launch(id, "sleep 1000")
		a.awaitState(id, mesosv1.TaskState_TASK_RUNNING)
	}
	a.send(&executorv1.Event{Type: executorv1.Event_SHUTDOWN.Enum()})
	if err := a.program.Wait(); err != nil {
		t.Errorf("the executor ended with %v, want 0", err)
	}
	for _, id := range []string{"t1", "t2", "t3"} {
		a.check(id, "RUNNING", "KILLED")
	}
}

func TestASignalEndsTheExecutorAndItsTasks(t *testing.T) {
	a := startAgent(t)
	pipe := filepath.Join(a.sandbox, "p")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	a.launch("task", "sleep 1000 > p & sleep 1000 > p; wait")
	held, err := os.Open(pipe) // opens when the task does
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := a.program.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = a.program.Wait()
	if code := a.program.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if _, err := io.ReadAll(held); err != nil { // ends when nobody holds the other end any more
		t.Errorf("read what the task holds: %v", err)
	}
}

func TestWhatNoAgentStartedIsTold(t *testing.T) {
	var errs bytes.Buffer
	code := run(t.Context(), func(string) (string, bool) { return "", false }, &errs)
	if code != 2 || !strings.Contains(errs.String(), "MESOS_FRAMEWORK_ID is not set") {
		t.Errorf("code %d, %q; want 2 and what is missing", code, &errs)
	}
}
