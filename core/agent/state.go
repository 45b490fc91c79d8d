package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// What the agent knows of frameworks, executors and tasks. All guarded by Agent.mu; messages in it are never
// changed once they are there, so that views and senders may read them without the lock.

type framework struct {
	id        FrameworkID
	info      *mesosv1.FrameworkInfo
	executors map[ExecutorID]*executor // those with tasks: custom ones and those of task groups
	tasks     map[TaskID]*task         // until their terminal update is acknowledged
	completed []completedExecutor
	// terminating: it was shut down; nobody waits for updates.
	terminating bool
}

// phase is how far an executor's container has come.
type phase int

const (
	phaseAccepted    phase = iota // being written down
	phaseQueued                   // waits for a launch slot
	phaseLaunching                // in Containerizer.Launch
	phaseRegistering              // custom: runs, has not subscribed yet
	phaseRunning
	phaseTerminating // custom: told to shut down, or being destroyed
	phaseTerminated
)

// executor is one container: that of a custom executor with its tasks; that of a task group's executor, which only
// holds together those of its tasks; or that of one task, for which the agent itself is the executor.
type executor struct {
	framework  *framework
	id         ExecutorID
	command    *task                 // the task, if it is the container of one
	parent     *executor             // the one that it is nested in, if it is that of a task of a group
	info       *mesosv1.ExecutorInfo // of executors with tasks
	container  ContainerID
	generation uint64
	phase      phase
	directory  string // sandbox
	pid        int32
	status     *mesosv1.ContainerStatus // as last known; nil until launched
	inspected  []byte                   // what its task's framework is told of it; of type DOCKER only

	launchDone   chan struct{} // closed when Launch has returned
	cancelLaunch context.CancelFunc
	destroying   bool

	// Executors with tasks only.
	tasks    map[TaskID]*task
	stream   ExecutorStream // nil while not subscribed
	launched bool           // was started once
	reported bool           // sent an update
	shutdown bool           // was told to shut down
	timer    *timer         // for registration, then for shutdown
	resizing bool           // an Update of its container is under way
	resize   bool           // another one is wanted

	// Executors of task groups only (group_executor.go).
	applied *allowance            // what its container may use
	over    bool                  // it and all in it have ended
	idle    bool                  // it is ended because it has nothing left to do
	end     *containerTermination // how its container ended
	endErr  error                 // or why that is not known
	above   *containerTermination // nested ones: how the container around ended, if it was asked for
}

// task is one task, from its acceptance until its terminal update is acknowledged.
type task struct {
	framework *framework
	executor  *executor
	id        TaskID
	info      *mesosv1.TaskInfo
	progress
	state     mesosv1.TaskState // newest, which the scheduler may not know yet
	updates   []*update         // acknowledged ones kept for reference, then those that wait
	sequence  uint64            // of the last update
	stored    bool              // in an executor with tasks: on disk
	delivered bool              // in an executor with tasks: handed to it
	settling  bool              // an acknowledgement is being written down; the next update waits for that
	retry     *timer
	backoff   time.Duration
	sent      time.Time // the head, to the master
	killTimer *timer
	maxTimer  *timer
	checkers  []*checker // while it runs
}

// command tells whether it is a task with a container of its own that no other task is in.
func (t *task) command() bool { return t.builtin() && t.executor.parent == nil }

// builtin tells whether the agent itself is its executor: of command tasks and of those in task groups.
func (t *task) builtin() bool { return t.executor.command != nil }

// owner is the executor that the task was launched in; that of a command task is its own.
func (t *task) owner() *executor {
	if p := t.executor.parent; p != nil {
		return p
	}
	return t.executor
}

// executorID is what updates say; command tasks are their own executors.
func (t *task) executorID() string {
	if t.progress.executor != "" {
		return string(t.progress.executor)
	}
	if x := t.info.GetExecutor(); x != nil {
		return x.GetExecutorId().GetValue()
	}
	return string(t.id)
}

func (f *framework) capable(c mesosv1.FrameworkInfo_Capability_Type) bool {
	for _, have := range f.info.GetCapabilities() {
		if have.GetType() == c {
			return true
		}
	}
	return false
}

func (f *framework) partitionAware() bool {
	return f.capable(mesosv1.FrameworkInfo_Capability_PARTITION_AWARE)
}

func (f *framework) empty() bool { return len(f.tasks) == 0 && len(f.executors) == 0 }

// framework returns the framework that info describes, and writes it down if it is new or has changed.
func (a *Agent) framework(c *change, info *mesosv1.FrameworkInfo) (*framework, error) {
	id := FrameworkID(info.GetId().GetValue())
	if err := checkID(string(id)); err != nil {
		return nil, fmt.Errorf("framework id: %w", err)
	}
	f := a.frameworks[id]
	if f != nil && f.info.EqualVT(info) {
		return f, nil
	}
	if f == nil {
		f = newFramework(id, info)
		a.frameworks[id] = f
		a.resume(c, f)
	}
	data, err := info.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("framework %s: %w", id, err)
	}
	f.info = info
	c.put(bucketFrameworks, recordKey(string(id)), data)
	return f, nil
}

func newFramework(id FrameworkID, info *mesosv1.FrameworkInfo) *framework {
	return &framework{
		id:        id,
		info:      info,
		executors: make(map[ExecutorID]*executor),
		tasks:     make(map[TaskID]*task),
	}
}

func (a *Agent) sortedFrameworks() []*framework {
	return slices.SortedFunc(maps.Values(a.frameworks), func(x, y *framework) int { return cmp.Compare(x.id, y.id) })
}

// sortedTasks returns the tasks in the order in which they came.
func (f *framework) sortedTasks() []*task {
	return slices.SortedFunc(maps.Values(f.tasks), func(x, y *task) int {
		return cmp.Or(cmp.Compare(x.order, y.order), cmp.Compare(x.id, y.id))
	})
}

func (f *framework) sortedExecutors() []*executor {
	return slices.SortedFunc(maps.Values(f.executors), func(x, y *executor) int { return cmp.Compare(x.id, y.id) })
}

// find returns a task, or nil.
func (a *Agent) find(f FrameworkID, t TaskID) *task {
	if fw := a.frameworks[f]; fw != nil {
		return fw.tasks[t]
	}
	return nil
}

// forgetTask takes a task out of memory and off the disk, and with it what has no purpose left.
func (a *Agent) forgetTask(c *change, t *task) {
	f := t.framework
	key := recordKey(string(f.id), string(t.id))
	c.delete(bucketTasks, key)
	c.delete(bucketProgress, key)
	for _, u := range t.updates {
		c.delete(bucketUpdates, updateKey(f.id, t.id, u.sequence))
	}
	a.timers.stop(t.retry)
	a.timers.stop(t.killTimer)
	a.timers.stop(t.maxTimer)
	delete(f.tasks, t.id)
	a.remember(c, t)
	if t.command() {
		delete(a.containers, t.executor.container)
	} else {
		delete(t.owner().tasks, t.id)
		a.forgetExecutor(c, t.owner())
	}
	a.forgetFramework(c, f)
	a.finishDrain(c)
}

// forgetExecutor drops an executor with tasks when it has ended and nothing of its tasks is owed.
func (a *Agent) forgetExecutor(c *change, e *executor) {
	if e.phase != phaseTerminated || len(e.tasks) > 0 {
		return
	}
	a.timers.stop(e.timer)
	c.delete(bucketExecutors, recordKey(string(e.framework.id), string(e.id)))
	delete(a.containers, e.container)
	if e.framework.executors[e.id] == e {
		delete(e.framework.executors, e.id)
	}
}

func (a *Agent) forgetFramework(c *change, f *framework) {
	if !f.empty() || a.frameworks[f.id] != f {
		return
	}
	c.delete(bucketFrameworks, recordKey(string(f.id)))
	delete(a.frameworks, f.id)
	a.leave(c)
	a.complete(c, f)
}

// describe returns the executor as views and master see it. For a command task it is the one that Mesos
// would have made up.
func (e *executor) describe() *mesosv1.ExecutorInfo {
	if e.command == nil {
		return e.info
	}
	t := e.command.info
	return &mesosv1.ExecutorInfo{
		Type:        mesosv1.ExecutorInfo_CUSTOM.Enum(),
		ExecutorId:  &mesosv1.ExecutorID{Value: new(string(e.id))},
		FrameworkId: &mesosv1.FrameworkID{Value: new(string(e.framework.id))},
		Name:        new("Command Executor (Task: " + string(e.id) + ") " + describeCommand(t.GetCommand())),
		Source:      new(string(e.id)),
		Command:     t.GetCommand(),
		Container:   t.GetContainer(),
		Discovery:   t.GetDiscovery(),
		Labels:      t.GetLabels(),
	}
}

// describeCommand shows the beginning of a command, in the form that tools know from Mesos.
func describeCommand(c *mesosv1.CommandInfo) string {
	const most = 15
	short := func(s string) string {
		if len(s) > most {
			return strings.ToValidUTF8(s[:most-3], "") + "..."
		}
		return s
	}
	if c.GetShell() {
		if c == nil || c.Value == nil {
			return "(Command: NO COMMAND)"
		}
		return "(Command: sh -c '" + short(c.GetValue()) + "')"
	}
	if c.Value == nil {
		return "(Command: NO EXECUTABLE)"
	}
	return "(Command: [" + short(strings.Join(append([]string{c.GetValue()}, c.GetArguments()...), ", ")) + "])"
}

// describe returns the task as views and master see it.
func (t *task) describe() *mesosv1.Task {
	x := &mesosv1.Task{
		Name:        t.info.Name,
		TaskId:      t.info.TaskId,
		FrameworkId: &mesosv1.FrameworkID{Value: new(string(t.framework.id))},
		AgentId:     t.info.AgentId,
		State:       t.state.Enum(),
		Resources:   t.info.Resources,
		Labels:      t.info.Labels,
		Discovery:   t.info.Discovery,
		Container:   t.info.Container,
		HealthCheck: t.info.HealthCheck,
		KillPolicy:  t.info.KillPolicy,
		Limits:      t.info.Limits,
		User:        new(t.framework.user(t.info.GetCommand())),
	}
	x.ExecutorId = t.info.GetExecutor().GetExecutorId() // none for a command task
	if t.progress.executor != "" {
		x.ExecutorId = &mesosv1.ExecutorID{Value: new(t.executorID())}
	}
	for _, u := range t.updates {
		x.Statuses = append(x.Statuses, u.status)
		x.StatusUpdateState, x.StatusUpdateUuid = u.status.State, u.status.Uuid
		if !u.acknowledged {
			break
		}
	}
	return x
}

// user is whom a command runs as, before the agent's own settings.
func (f *framework) user(c *mesosv1.CommandInfo) string {
	if c.GetUser() != "" {
		return c.GetUser()
	}
	return f.info.GetUser()
}

// checkID says what is wrong with an id that others chose. Ids become parts of paths.
func checkID(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("is empty")
	case id == "." || id == "..":
		return fmt.Errorf("%q stands for a folder", id)
	case len(id) > 255:
		return fmt.Errorf("is %d bytes long, at most 255 make a file name", len(id))
	}
	for _, r := range id {
		if r < ' ' || r == 0x7f || r == '/' || r == '\\' {
			return fmt.Errorf("%q contains %q", id, r)
		}
	}
	return nil
}

func terminal(s mesosv1.TaskState) bool {
	switch s {
	case mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_KILLED,
		mesosv1.TaskState_TASK_ERROR, mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_DROPPED,
		mesosv1.TaskState_TASK_GONE, mesosv1.TaskState_TASK_GONE_BY_OPERATOR:
		return true
	}
	return false
}
