package executor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
)

var environment = Environment{
	FrameworkID: "f", ExecutorID: "e", AgentEndpoint: "agent:5051", Checkpoint: true,
	RecoveryTimeout: 15 * time.Minute, SubscriptionBackoffMax: 2 * time.Second, ShutdownGracePeriod: 5 * time.Second,
}

// client returns a client on the network.
func (n *network) client(e Environment) *Client {
	c := New(Config{Environment: e})
	c.hc.Transport = n
	return c
}

// runner runs every task to its end at once, and remembers what it was told.
type runner struct {
	c    *Client
	seen []string
}

func (r *runner) handle(_ context.Context, e *executorv1.Event) error {
	r.seen = append(r.seen, strings.TrimSpace(e.GetType().String()+" "+e.GetLaunch().GetTask().GetTaskId().GetValue()))
	if id := e.GetLaunch().GetTask().GetTaskId(); id != nil {
		for _, s := range []mesosv1.TaskState{mesosv1.TaskState_TASK_RUNNING, mesosv1.TaskState_TASK_FINISHED} {
			if err := r.c.UpdateState(id, s, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// run runs a client until the test ends and returns where its error comes.
func run(t *testing.T, c *Client, handle Handler) (ended <-chan error, cancel func()) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		done <- c.Run(ctx, handle)
	}()
	t.Cleanup(func() {
		stop()
		<-finished
	})
	return done, stop
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestUpdatesAreSentInOrderAndFilledIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t, "t1", "t2")
		c := (&network{handler: a}).client(environment)
		r := &runner{c: c}
		_, stop := run(t, c, r.handle)
		a.await(timeout(t), "four updates", func() bool { return len(a.updates) == 4 })
		if err := c.Flush(timeout(t)); err != nil {
			t.Errorf("Flush = %v, want all acknowledged", err)
		}
		stop()
		if want := []string{"t1:TASK_RUNNING", "t1:TASK_FINISHED", "t2:TASK_RUNNING", "t2:TASK_FINISHED"}; !slices.Equal(a.states(), want) {
			t.Errorf("updates %v, want %v", a.states(), want)
		}
		for _, u := range a.updates {
			if len(u.GetUuid()) != 16 || u.GetSource() != mesosv1.TaskStatus_SOURCE_EXECUTOR || u.GetExecutorId().GetValue() != "e" || u.GetTimestamp() == 0 {
				t.Errorf("update %v, want uuid, source, executor and time", u)
			}
		}
		if a.repeated != 0 || a.begun != 1 {
			t.Errorf("%d updates repeated, %d subscriptions; want none and one", a.repeated, a.begun)
		}
	})
}

// TestNothingIsLostWhereverTheConnectionBreaks plays the same tasks again and again, and breaks the connection one step
// later each time, until there is no later step.
func TestNothingIsLostWhereverTheConnectionBreaks(t *testing.T) {
	cuts := map[string]bool{}
	for at := 0; ; at++ {
		where := ""
		synctest.Test(t, func(t *testing.T) {
			a := newAgent(t, "t1", "t2")
			steps := 0
			a.cut = func(step string) bool {
				steps++
				if steps-1 == at {
					where = step
					return true
				}
				return false
			}
			c := (&network{handler: a}).client(environment)
			r := &runner{c: c}
			ended, _ := run(t, c, r.handle)
			a.await(timeout(t), "all updates", func() bool { return len(a.updates) == 4 })
			if err := c.Flush(timeout(t)); err != nil {
				t.Errorf("Flush = %v", err)
			}
			a.do(func() {
				a.cut = func(string) bool { return false }
				a.shutDown = true // should it not be there just now
				a.send(&executorv1.Event{Type: executorv1.Event_SHUTDOWN.Enum()})
			})
			if err := <-ended; err != nil || r.seen[len(r.seen)-1] != "SHUTDOWN" {
				t.Errorf("cut %d, %s: Run = %v after %v, want nil after SHUTDOWN", at, where, err, r.seen)
			}
			for _, task := range []string{"t1", "t2"} {
				n := 0
				for _, s := range r.seen {
					if s == "LAUNCH "+task {
						n++
					}
				}
				states := slices.DeleteFunc(a.states(), func(s string) bool { return !strings.HasPrefix(s, task) })
				if want := []string{task + ":TASK_RUNNING", task + ":TASK_FINISHED"}; n != 1 || !slices.Equal(states, want) {
					t.Errorf("cut %d, %s: %s was launched %d times and had updates %v; want once and %v", at, where, task, n, states, want)
				}
			}
		})
		if where == "" {
			break
		}
		cuts[where] = true
		if t.Failed() {
			return
		}
	}
	for _, step := range []string{
		"SUBSCRIBE arrives", "before SUBSCRIBED", "after SUBSCRIBED", "before LAUNCH", "after LAUNCH",
		"UPDATE arrives", "before ACKNOWLEDGED", "after ACKNOWLEDGED", "UPDATE is answered",
	} {
		if !cuts[step] {
			t.Errorf("no run was cut at %q; there were %v", step, cuts)
		}
	}
}

func TestAnAgentThatComesBackIsToldWhatItMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t, "t1")
		n := &network{handler: a}
		c := n.client(environment)
		var handlers []context.Context
		_, _ = run(t, c, func(ctx context.Context, e *executorv1.Event) error {
			handlers = append(handlers, ctx)
			return nil
		})
		synctest.Wait()
		id := &mesosv1.TaskID{Value: new("t1")}
		n.set(nil) // the agent dies
		a.do(func() { a.stream.cut() })
		synctest.Wait()
		if err := c.Message(timeout(t), []byte("x")); !errors.Is(err, ErrNotSubscribed) {
			t.Errorf("Message = %v, want ErrNotSubscribed", err)
		}
		for _, s := range []mesosv1.TaskState{mesosv1.TaskState_TASK_RUNNING, mesosv1.TaskState_TASK_FAILED} {
			if err := c.UpdateState(id, s, "said while it was away"); err != nil {
				t.Errorf("UpdateState = %v", err)
			}
		}
		time.Sleep(10 * time.Minute) // of the bubble's clock; less than the recovery timeout
		n.set(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "Agent has not finished recovery", http.StatusServiceUnavailable)
		}))
		time.Sleep(time.Minute)
		n.set(a)
		back := time.Now()
		a.await(timeout(t), "the second subscription", func() bool { return a.begun == 2 })
		if d := time.Since(back); d > environment.SubscriptionBackoffMax {
			t.Errorf("it came back %v after its agent, want within %v", d, environment.SubscriptionBackoffMax)
		}
		synctest.Wait()
		last := a.calls[len(a.calls)-1].GetSubscribe()
		if len(last.GetUnacknowledgedTasks()) != 1 || len(last.GetUnacknowledgedUpdates()) != 2 || last.GetUnacknowledgedUpdates()[1].GetStatus().GetState() != mesosv1.TaskState_TASK_FAILED {
			t.Errorf("SUBSCRIBE with %v, want the task and both updates", last)
		}
		if err := c.Message(timeout(t), []byte("hello")); err != nil || string(a.calls[len(a.calls)-1].GetMessage().GetData()) != "hello" {
			t.Errorf("Message = %v, and the agent got %v", err, a.calls[len(a.calls)-1])
		}
		for _, ctx := range handlers {
			if ctx.Err() != nil {
				t.Errorf("a handler's context ended with the connection: %v", ctx.Err())
			}
		}
		if err := c.Flush(timeout(t)); err != nil || len(c.pending.tasks) != 0 {
			t.Errorf("Flush = %v with %v, want nothing left", err, c.pending.tasks)
		}
	})
}

func TestALostAgentShutsTheExecutorDown(t *testing.T) {
	for _, test := range []struct {
		name       string
		checkpoint bool
		recovery   time.Duration
		least      time.Duration
		most       time.Duration
	}{
		{"after the recovery timeout", true, 3 * time.Minute, 3 * time.Minute, 3*time.Minute + 10*time.Second},
		{"at once without checkpoints", false, 0, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAgent(t)
				n := &network{handler: a}
				e := environment
				e.Checkpoint, e.RecoveryTimeout = test.checkpoint, test.recovery
				var seen []string
				ended, _ := run(t, n.client(e), func(ctx context.Context, e *executorv1.Event) error {
					seen = append(seen, e.GetType().String())
					if e.GetType() == executorv1.Event_SHUTDOWN {
						<-ctx.Done() // all that it has
					}
					return nil
				})
				synctest.Wait()
				// The agent's machine takes connections and says nothing.
				n.set(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
				begun := time.Now()
				a.do(func() { a.stream.cut() })
				err := <-ended
				d := time.Since(begun) - environment.ShutdownGracePeriod
				if !errors.Is(err, ErrAgentLost) || d < test.least || d > test.most {
					t.Errorf("Run = %v after %v, want ErrAgentLost after %v to %v and the grace period", err, d, test.least, test.most)
				}
				if want := []string{"SUBSCRIBED", "SHUTDOWN"}; !slices.Equal(seen, want) {
					t.Errorf("handled %v, want %v", seen, want)
				}
			})
		})
	}
}

func TestAnAgentThatNeverWasThereIsGivenAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		ended, _ := run(t, (&network{}).client(environment), func(context.Context, *executorv1.Event) error { return nil })
		err := <-ended
		if d := time.Since(begun); !errors.Is(err, ErrAgentLost) || !strings.Contains(err.Error(), "connection refused") || d < time.Minute || d > time.Minute+3*time.Second {
			t.Errorf("Run = %v after %v, want ErrAgentLost and why after a minute", err, d)
		}
	})
}

func TestShuttingDownWaitsForTheLastAcknowledgement(t *testing.T) {
	for _, test := range []struct {
		name  string
		acks  bool
		least time.Duration
		most  time.Duration
	}{
		{"that comes", true, 4500 * time.Millisecond, 4600 * time.Millisecond},
		{"at most for the grace period", false, 5 * time.Second, 5 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAgent(t, "t1")
				c := (&network{handler: a}).client(environment)
				ended, _ := run(t, c, func(ctx context.Context, e *executorv1.Event) error {
					if e.GetType() != executorv1.Event_SHUTDOWN {
						return nil
					}
					<-ctx.Done() // the task takes its time
					return c.UpdateState(&mesosv1.TaskID{Value: new("t1")}, mesosv1.TaskState_TASK_KILLED, "")
				})
				synctest.Wait()
				begun := time.Now()
				a.do(func() {
					a.send(&executorv1.Event{Type: executorv1.Event_SHUTDOWN.Enum()})
					a.send(&executorv1.Event{Type: executorv1.Event_SHUTDOWN.Enum()}) // an impatient agent
					if test.acks {
						return
					}
					a.refuse = func(call *executorv1.Call) int { // takes the update, and says nothing of it
						if call.GetType() == executorv1.Call_UPDATE {
							a.updates = append(a.updates, call.GetUpdate().GetStatus())
							return http.StatusAccepted
						}
						return 0
					}
				})
				err := <-ended
				if d := time.Since(begun); err != nil || d < test.least || d > test.most {
					t.Errorf("Run = %v after %v, want nil within %v to %v", err, d, test.least, test.most)
				}
				if got := a.states(); !slices.Equal(got, []string{"t1:TASK_KILLED"}) {
					t.Errorf("updates %v, want the last", got)
				}
			})
		})
	}
}

func TestAnExecutorThatIsNotWantedShutsDownAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		a.shutDown = true
		c := (&network{handler: a}).client(environment)
		ended, _ := run(t, c, func(context.Context, *executorv1.Event) error { return nil })
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
}

func TestARefusalEndsTheExecutor(t *testing.T) {
	for _, code := range []int{400, 401, 403, 404} {
		synctest.Test(t, func(t *testing.T) {
			a := newAgent(t)
			a.refuse = func(*executorv1.Call) int { return code }
			shutdown := false
			ended, _ := run(t, (&network{handler: a}).client(environment), func(_ context.Context, e *executorv1.Event) error {
				shutdown = shutdown || e.GetType() == executorv1.Event_SHUTDOWN
				return nil
			})
			err := <-ended
			var status *StatusError
			if !errors.As(err, &status) || status.Code != code || err.Error() != fmt.Sprintf("agent answered %d: not now", code) || !shutdown {
				t.Errorf("Run = %v, shut down: %v; want %d and the agent's words, and the tasks killed", err, shutdown, code)
			}
		})
	}
}

func TestAnErrorEventEndsTheExecutor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		ended, _ := run(t, (&network{handler: a}).client(environment), func(context.Context, *executorv1.Event) error { return nil })
		synctest.Wait()
		a.do(func() {
			a.send(&executorv1.Event{Type: executorv1.Event_ERROR.Enum(), Error: &executorv1.Event_Error{Message: new("enough")}})
		})
		var fatal *FatalError
		if err := <-ended; !errors.As(err, &fatal) || fatal.Message != "enough" {
			t.Errorf("Run = %v, want the agent's words", err)
		}
	})
}

func TestAHandlersErrorEndsTheExecutor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mine := errors.New("mine")
		ended, _ := run(t, (&network{handler: newAgent(t)}).client(environment), func(context.Context, *executorv1.Event) error { return mine })
		if err := <-ended; err != mine {
			t.Errorf("Run = %v, want the handler's error", err)
		}
	})
}

func TestAnUpdateThatIsRefusedDoesNotHoldUpTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		a.refuse = func(call *executorv1.Call) int {
			if call.GetUpdate().GetStatus().GetTaskId().GetValue() == "unknown" {
				return 400
			}
			return 0
		}
		c := (&network{handler: a}).client(environment)
		_, _ = run(t, c, func(context.Context, *executorv1.Event) error { return nil })
		synctest.Wait() // later ones are calls of their own
		for _, id := range []string{"unknown", "known"} {
			if err := c.UpdateState(&mesosv1.TaskID{Value: &id}, mesosv1.TaskState_TASK_RUNNING, ""); err != nil {
				t.Errorf("UpdateState = %v", err)
			}
		}
		if err := c.Flush(timeout(t)); err != nil || !slices.Equal(a.states(), []string{"known:TASK_RUNNING"}) {
			t.Errorf("Flush = %v with updates %v, want the one that is not refused", err, a.states())
		}
	})
}

func TestUpdatesThatNobodyAcknowledgesAreBounded(t *testing.T) {
	c := New(Config{Environment: environment})
	id := &mesosv1.TaskID{Value: new("t")}
	for i := range maxUpdates {
		if err := c.UpdateState(id, mesosv1.TaskState_TASK_RUNNING, ""); err != nil {
			t.Fatalf("update %d: %v", i, err)
		}
	}
	if err := c.UpdateState(id, mesosv1.TaskState_TASK_RUNNING, ""); !errors.Is(err, ErrTooManyUpdates) {
		t.Errorf("one more = %v, want ErrTooManyUpdates", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Flush(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), fmt.Sprint(maxUpdates)) {
		t.Errorf("Flush = %v, want how many wait", err)
	}
	for _, s := range []*mesosv1.TaskStatus{nil, {TaskId: id}, {State: mesosv1.TaskState_TASK_LOST.Enum()}} {
		if err := New(Config{}).Update(s); err == nil {
			t.Errorf("Update(%v) succeeded", s)
		}
	}
}

func TestAQuietConnectionIsKeptKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		_, _ = run(t, (&network{handler: a}).client(environment), func(context.Context, *executorv1.Event) error { return nil })
		time.Sleep(heartbeatInterval + time.Second)
		synctest.Wait()
		if last := a.calls[len(a.calls)-1]; last.GetType() != executorv1.Call_HEARTBEAT {
			t.Errorf("last call %v, want a HEARTBEAT", last)
		}
	})
}

func TestTheAgentIsReachedByItsSocketAndWithAToken(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	a := newAgent(t, "t1")
	var token string
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.do(func() { token = r.Header.Get("Authorization") })
		a.ServeHTTP(w, r)
	}))
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	defer srv.Close()
	defer srv.CloseClientConnections()
	e := environment
	e.DomainSocket, e.AuthenticationToken = socket, "secret"
	c := New(Config{Environment: e})
	r := &runner{c: c}
	_, stop := run(t, c, r.handle)
	a.await(timeout(t), "the updates", func() bool { return len(a.updates) == 2 && token == "Bearer secret" })
	stop()
}

func TestTheEnvironmentIsRead(t *testing.T) {
	all := map[string]string{
		"MESOS_FRAMEWORK_ID": "f", "MESOS_EXECUTOR_ID": "e", "MESOS_SLAVE_ID": "s", "MESOS_AGENT_ENDPOINT": "10.0.0.1:5051",
		"MESOS_DIRECTORY": "/work", "MESOS_SANDBOX": "/mnt/mesos/sandbox", "MESOS_CHECKPOINT": "1", "MESOS_RECOVERY_TIMEOUT": "1.5mins",
		"MESOS_SUBSCRIPTION_BACKOFF_MAX": "500ms", "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": "3secs",
		"MESOS_EXECUTOR_AUTHENTICATION_TOKEN": "jwt", "MESOS_DOMAIN_SOCKET": "/run/agent.sock",
	}
	with := func(change map[string]string) func(string) (string, bool) {
		return func(name string) (string, bool) {
			if v, ok := change[name]; ok {
				return v, v != ""
			}
			v, ok := all[name]
			return v, ok
		}
	}
	want := Environment{
		FrameworkID: "f", ExecutorID: "e", AgentID: "s", AgentEndpoint: "10.0.0.1:5051", DomainSocket: "/run/agent.sock",
		Directory: "/work", Sandbox: "/mnt/mesos/sandbox", Checkpoint: true, RecoveryTimeout: 90 * time.Second,
		SubscriptionBackoffMax: 500 * time.Millisecond, ShutdownGracePeriod: 3 * time.Second, AuthenticationToken: "jwt",
	}
	if got, err := ReadEnvironment(with(nil)); err != nil || got != want {
		t.Errorf("ReadEnvironment = %+v, %v; want %+v", got, err, want)
	}
	least := with(map[string]string{
		"MESOS_SLAVE_ID": "", "MESOS_SANDBOX": "", "MESOS_CHECKPOINT": "0", "MESOS_RECOVERY_TIMEOUT": "", "MESOS_SUBSCRIPTION_BACKOFF_MAX": "",
		"MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": "", "MESOS_EXECUTOR_AUTHENTICATION_TOKEN": "", "MESOS_DOMAIN_SOCKET": "",
	})
	want = Environment{
		FrameworkID: "f", ExecutorID: "e", AgentEndpoint: "10.0.0.1:5051", Directory: "/work", Sandbox: "/work",
		SubscriptionBackoffMax: 2 * time.Second, ShutdownGracePeriod: 5 * time.Second,
	}
	if got, err := ReadEnvironment(least); err != nil || got != want {
		t.Errorf("ReadEnvironment of little = %+v, %v; want %+v", got, err, want)
	}
	for name, value := range map[string]string{
		"MESOS_FRAMEWORK_ID": "", "MESOS_EXECUTOR_ID": "", "MESOS_AGENT_ENDPOINT": "nowhere", "MESOS_RECOVERY_TIMEOUT": "soon",
		"MESOS_SUBSCRIPTION_BACKOFF_MAX": "-1secs", "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": "99999999999weeks",
	} {
		if _, err := ReadEnvironment(with(map[string]string{name: value})); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("ReadEnvironment with %s=%q = %v, want it named", name, value, err)
		}
	}
}

func TestDurationsAreReadAsMesosSpellsThem(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"0ns": 0, "5secs": 5 * time.Second, "1.5hrs": 90 * time.Minute, "2days": 48 * time.Hour, "1weeks": 168 * time.Hour,
		"10us": 10 * time.Microsecond, "250ms": 250 * time.Millisecond, "15mins": 15 * time.Minute,
	} {
		if got, err := parseDuration(s); got != want || err != nil {
			t.Errorf("parseDuration(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "5", "secs", "5s", "5 secs", "-5secs", "1e3secs x", "nansecs", "infsecs", "1.2.3secs"} {
		if got, err := parseDuration(s); err == nil {
			t.Errorf("parseDuration(%q) = %v, want an error", s, got)
		}
	}
}
