// Program custom-executor runs the tasks of a framework, each a shell command, as processes of its own. It is an example
// of a custom executor: an agent starts it with the first task and tells it of the others.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"

	"github.com/mosaic-cluster/mosaic/sdk/executor"
)

const (
	// defaultGrace is the time between SIGTERM and SIGKILL of a task that says nothing of it, as for Mesos's executors.
	defaultGrace = 3 * time.Second
	// messageTimeout bounds a message to the framework.
	messageTimeout = 5 * time.Second
)

func main() {
	// A signal from elsewhere ends the executor like a lost agent: its tasks go with it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.LookupEnv, os.Stderr)
	stop()
	os.Exit(code)
}

// pool is the executor: the tasks that run.
type pool struct {
	client  *executor.Client
	sandbox string
	log     *slog.Logger
	group   sync.WaitGroup // of the goroutines that wait for tasks

	mu    sync.Mutex // guards what follows
	tasks map[string]*task
	ended int
}

func run(ctx context.Context, lookup func(string) (string, bool), errs io.Writer) int {
	log := slog.New(slog.NewTextHandler(errs, nil))
	environment, err := executor.ReadEnvironment(lookup)
	if err != nil {
		log.Error("cannot begin", "error", err)
		return 2
	}
	p := &pool{
		client:  executor.New(executor.Config{Environment: environment, Logger: log}),
		sandbox: environment.Sandbox, log: log, tasks: map[string]*task{},
	}
	err = p.client.Run(ctx, p.handle)
	p.kill(0)
	p.group.Wait()
	if err != nil {
		log.Error("ended", "error", err)
		return 1
	}
	return 0
}

// handle returns soon: while it runs no other event is handled.
func (p *pool) handle(ctx context.Context, e *executorv1.Event) error {
	switch e.GetType() {
	case executorv1.Event_LAUNCH:
		return p.launch(e.GetLaunch().GetTask())
	case executorv1.Event_LAUNCH_GROUP:
		for _, t := range e.GetLaunchGroup().GetTaskGroup().GetTasks() {
			if err := p.launch(t); err != nil {
				return err
			}
		}
	case executorv1.Event_KILL:
		return p.killTask(e.GetKill())
	case executorv1.Event_MESSAGE:
		p.group.Go(func() { p.answer(ctx, e.GetMessage().GetData()) })
	case executorv1.Event_SHUTDOWN:
		return p.shutDown(ctx)
	}
	return nil
}

// launch starts a task and says how it is, then and when it has ended. That it cannot be started is the task's failure.
func (p *pool) launch(info *mesosv1.TaskInfo) error {
	id := info.GetTaskId().GetValue()
	t, err := start(p.sandbox, info)
	if err != nil {
		p.log.Warn("task did not start", "task", id, "error", err)
		return p.client.UpdateState(info.GetTaskId(), mesosv1.TaskState_TASK_FAILED, "Failed to start: "+err.Error())
	}
	p.mu.Lock()
	p.tasks[id] = t
	p.mu.Unlock()
	// RUNNING is queued before anybody waits for the end, and so is first.
	if err := p.client.UpdateState(info.GetTaskId(), mesosv1.TaskState_TASK_RUNNING, ""); err != nil {
		return err
	}
	p.group.Go(func() {
		state, message := t.wait()
		p.mu.Lock()
		delete(p.tasks, id)
		p.ended++
		p.mu.Unlock()
		if err := p.client.UpdateState(info.GetTaskId(), state, message); err != nil {
			p.log.Error("the end of a task cannot be told", "task", id, "error", err)
		}
		close(t.told)
	})
	return nil
}

// killTask begins to kill a task. One that has ended, or never was, has nothing more to say.
func (p *pool) killTask(kill *executorv1.Event_Kill) error {
	p.mu.Lock()
	t := p.tasks[kill.GetTaskId().GetValue()]
	p.mu.Unlock()
	if t == nil {
		return nil
	}
	grace := defaultGrace
	for _, policy := range []*mesosv1.KillPolicy{t.info.GetKillPolicy(), kill.GetKillPolicy()} { // the later wins
		if g := policy.GetGracePeriod(); g != nil {
			grace = time.Duration(g.GetNanoseconds())
		}
	}
	t.kill(grace)
	return p.client.UpdateState(kill.GetTaskId(), mesosv1.TaskState_TASK_KILLING, "")
}

// kill kills all tasks and returns those that ran.
func (p *pool) kill(grace time.Duration) []*task {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*task
	for _, t := range p.tasks {
		t.kill(grace)
		all = append(all, t)
	}
	return all
}

// shutDown kills all tasks, and returns when their ends have been told or ctx, the grace period, ends. Half of it is the
// tasks', to end by themselves.
func (p *pool) shutDown(ctx context.Context) error {
	grace := time.Duration(0)
	if deadline, ok := ctx.Deadline(); ok {
		grace = time.Until(deadline) / 2
	}
	for _, t := range p.kill(grace) {
		select {
		case <-t.told:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// status is the answer to a message of "status".
type status struct {
	Running []string `json:"running"`
	Ended   int      `json:"ended"`
}

// answer answers a message of the framework's.
func (p *pool) answer(ctx context.Context, data []byte) {
	answer := []byte(fmt.Sprintf("I know no %.64q; I know \"status\"", data))
	if string(data) == "status" {
		s := status{Running: []string{}}
		p.mu.Lock()
		for id := range p.tasks {
			s.Running = append(s.Running, id)
		}
		s.Ended = p.ended
		p.mu.Unlock()
		slices.Sort(s.Running)
		var err error
		if answer, err = json.Marshal(s); err != nil {
			p.log.Error("encode status", "error", err)
			return
		}
	}
	ctx, cancel := context.WithTimeout(ctx, messageTimeout)
	defer cancel()
	if err := p.client.Message(ctx, answer); err != nil {
		p.log.Warn("message to the framework is lost", "error", err) // messages may be
	}
}
