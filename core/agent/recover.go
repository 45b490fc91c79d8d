package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// recoverIdentity reads who the agent was. An agent that comes back with something that its policy does not
// allow is refused; after a reboot, when nothing of the old one runs any more, it becomes a new one instead.
func (a *Agent) recoverIdentity() error {
	saved := make(map[string][]byte)
	err := a.store.each(bucketAgent, func(key, value []byte) error {
		saved[string(key)] = bytes.Clone(value)
		return nil
	})
	if err != nil {
		return err
	}
	if b := saved[string(keyTerm)]; len(b) == 8 {
		a.term = binary.BigEndian.Uint64(b)
	}
	if b, ok := saved[string(keyDrain)]; ok {
		a.drain = new(mesosv1.DrainConfig)
		if err := a.drain.UnmarshalVT(b); err != nil {
			return fmt.Errorf("drain: %w", err)
		}
		a.drainSince = time.Now()
	}
	b, ok := saved[string(keyInfo)]
	if !ok {
		return nil
	}
	old := new(mesosv1.AgentInfo)
	if err := old.UnmarshalVT(b); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if old.GetId() == nil {
		return nil
	}
	ops := []op{{bucketAgent, keyBoot, []byte(a.bootID)}}
	if err := compatible(old, a.info, a.cfg.ReconfigurationPolicy); err != nil {
		if string(saved[string(keyBoot)]) == a.bootID {
			return fmt.Errorf("%w; set the old value again, or reconfiguration_policy = \"additive\" where that suffices, "+
				"or drain the agent and give it an empty work directory", err)
		}
		a.log.Warn("the machine was rebooted and the agent changed, it registers as a new one", "old", old.GetId().GetValue(), "change", err)
		a.drain = nil
		return a.forgetAll()
	}
	a.info = a.info.CloneVT()
	a.info.Id = old.GetId()
	data, err := a.info.MarshalVT()
	if err != nil {
		return err
	}
	return a.store.put(context.Background(), append(ops, op{bucketAgent, keyInfo, data}))
}

// forgetAll drops all records of the agent that was here before. Its containers, which nobody knows then, are
// destroyed as orphans.
func (a *Agent) forgetAll() error {
	ops := []op{{bucketAgent, keyInfo, nil}, {bucketAgent, keyDrain, nil}}
	for _, b := range [][]byte{bucketFrameworks, bucketExecutors, bucketTasks, bucketProgress, bucketUpdates, bucketOperations,
		bucketPastFrameworks, bucketPastExecutors, bucketPastTasks} {
		err := a.store.each(b, func(key, _ []byte) error {
			ops = append(ops, op{b, bytes.Clone(key), nil})
			return nil
		})
		if err != nil {
			return err
		}
	}
	return a.store.put(context.Background(), ops)
}

// readBootID returns the kernel's id of this boot; empty where there is none, so that every start counts as the
// same boot.
func readBootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// recover takes up what the last agent on this work directory left: state from disk, containers from the
// containerizer. What was accepted and never launched is launched.
func (a *Agent) recover(ctx context.Context) error {
	began := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.load(); err != nil {
		return err
	}
	var c change
	if err := a.loadPast(&c); err != nil {
		return err
	}
	var known []string
	for id, e := range a.containers {
		if e.command == nil || !terminal(e.command.state) {
			known = append(known, string(id))
		}
		for _, t := range e.tasks {
			if x := t.executor; x != e && !terminal(t.state) {
				known = append(known, string(x.container))
			}
		}
	}
	guests, err := a.loadGuests()
	if err != nil {
		return err
	}
	known = append(known, guests...)
	slices.Sort(known)
	a.mu.Unlock()
	found, err := a.ctzr.Recover(ctx, known)
	a.mu.Lock()
	if err != nil {
		return fmt.Errorf("containers: %w", err)
	}
	checkpoints := make(map[ContainerID]*containerv1.Checkpoint, len(found))
	for _, cp := range found {
		checkpoints[ContainerID(cp.GetContainer().GetId())] = cp
	}

	a.recoverVolumes()
	waiting := 0
	for _, f := range a.sortedFrameworks() {
		for _, t := range f.sortedTasks() {
			if t.command() {
				a.recoverCommand(&c, t, checkpoints[t.executor.container])
			}
		}
		for _, e := range f.sortedExecutors() {
			if e.ofGroups() {
				a.recoverGroups(&c, e, checkpoints)
			} else if a.recoverCustom(&c, e, checkpoints[e.container]) {
				waiting++
			}
		}
		a.forgetFramework(&c, f)
	}
	a.recoverGuests(&c, checkpoints)
	for id, cp := range checkpoints {
		// What the store does not know any more has nobody to report to. Standalone containers have none
		// by design.
		if cp.GetContainer().GetParentId() != "" {
			continue // known are only those whose tasks go on, or whose end is being told
		}
		if e := a.containers[id]; (e == nil || e.phase == phaseTerminated) && !cp.GetContainer().GetStandalone() {
			c.then(func() { a.forget(&executor{container: id}) })
		}
	}
	a.finishDrain(&c)
	a.do(&c)
	a.recovered = true
	a.counters.recovery = time.Since(began)
	a.log.Info("recovered", "agent", a.info.GetId().GetValue(), "frameworks", len(a.frameworks),
		"containers", len(a.containers), "executors_awaited", waiting, "took", time.Since(began))
	return nil
}

// load reads frameworks, executors, tasks and updates. The containers they name become known.
func (a *Agent) load() error {
	err := a.store.each(bucketFrameworks, func(key, value []byte) error {
		info := new(mesosv1.FrameworkInfo)
		if err := info.UnmarshalVT(value); err != nil {
			return fmt.Errorf("framework %s: %w", key, err)
		}
		a.frameworks[FrameworkID(key)] = newFramework(FrameworkID(key), info)
		return nil
	})
	if err != nil {
		return err
	}
	framework := func(key []byte) (*framework, string, error) {
		ids, err := splitKey(key, 2)
		if err != nil {
			return nil, "", err
		}
		f := a.frameworks[FrameworkID(ids[0])]
		if f == nil {
			return nil, "", fmt.Errorf("framework %s is missing", ids[0])
		}
		return f, ids[1], nil
	}
	err = a.store.each(bucketExecutors, func(key, value []byte) error {
		f, id, err := framework(key)
		if err != nil {
			return fmt.Errorf("executor %q: %w", key, err)
		}
		r, err := decodeExecutor(value)
		if err != nil {
			return fmt.Errorf("executor %q: %w", key, err)
		}
		e := newExecutor(f, ExecutorID(id), r.info)
		e.container, e.generation, e.launched, e.shutdown = r.container, r.generation, r.launched, r.shutdown
		e.directory = a.sandbox(e)
		f.executors[e.id] = e
		a.containers[e.container] = e
		return nil
	})
	if err != nil {
		return err
	}
	states := make(map[string]progress)
	err = a.store.each(bucketProgress, func(key, value []byte) error {
		p, err := decodeProgress(value)
		if err != nil {
			return fmt.Errorf("progress of task %q: %w", key, err)
		}
		states[string(key)] = p
		return nil
	})
	if err != nil {
		return err
	}
	err = a.store.each(bucketTasks, func(key, value []byte) error {
		f, id, err := framework(key)
		if err != nil {
			return fmt.Errorf("task %q: %w", key, err)
		}
		t := &task{framework: f, id: TaskID(id), info: new(mesosv1.TaskInfo), state: mesosv1.TaskState_TASK_STAGING}
		if err := t.info.UnmarshalVT(value); err != nil {
			return fmt.Errorf("task %q: %w", key, err)
		}
		t.progress = states[string(key)]
		a.arrivals = max(a.arrivals, t.order)
		a.replace(t)
		return nil
	})
	if err != nil {
		return err
	}
	return a.store.each(bucketUpdates, func(key, value []byte) error {
		if len(key) < 9 {
			return fmt.Errorf("update %q: %w", key, errRecord)
		}
		f, id, err := framework(key[:len(key)-9])
		if err != nil {
			return fmt.Errorf("update %q: %w", key, err)
		}
		t := f.tasks[TaskID(id)]
		if t == nil {
			return fmt.Errorf("update %q: task is missing", key)
		}
		s, acknowledged, err := decodeUpdate(value)
		if err != nil {
			return fmt.Errorf("update %q: %w", key, err)
		}
		t.sequence = binary.BigEndian.Uint64(key[len(key)-8:])
		t.updates = append(t.updates, &update{sequence: t.sequence, status: s, durable: true, acknowledged: acknowledged})
		t.state = s.GetState()
		if s.GetContainerStatus() != nil && t.builtin() {
			t.executor.status = s.GetContainerStatus()
		}
		return nil
	})
}

// replace gives a recovered task its executor again.
func (a *Agent) replace(t *task) {
	f := t.framework
	if name := t.progress.executor; name != "" {
		if e := f.executors[name]; e != nil && e.holds(t.progress.container) {
			t.executor = e
			if e.ofGroups() {
				t.executor = newNested(e, t)
				t.executor.directory = a.sandbox(t.executor)
			}
			e.tasks[t.id] = t
			f.tasks[t.id] = t
			return
		}
	}
	if x := t.info.GetExecutor(); x != nil {
		if e := f.executors[ExecutorID(x.GetExecutorId().GetValue())]; e != nil && e.container == t.progress.container {
			t.executor = e
			e.tasks[t.id] = t
			f.tasks[t.id] = t
			return
		}
	}
	e := &executor{
		framework:  f,
		id:         ExecutorID(t.id),
		command:    t,
		container:  t.progress.container,
		generation: t.generation,
	}
	t.executor = e
	e.directory = a.sandbox(e)
	f.tasks[t.id] = t
	a.containers[e.container] = e
}

// errNotCheckpointed is how tasks end whose framework did not ask for checkpoints: Mesos promises them the
// agent's own life, and they may rely on ending with it.
var errNotCheckpointed = errors.New("the agent was restarted, and the framework does not checkpoint")

// recoverCommand goes on with a command task, or one of a group.
func (a *Agent) recoverCommand(c *change, t *task, cp *containerv1.Checkpoint) {
	e := t.executor
	switch {
	case terminal(t.state):
		e.phase = phaseTerminated
	case cp == nil:
		// It was accepted, and of a container there is no trace: nothing of it ever ran.
		if !t.kill.IsZero() {
			e.phase = phaseAccepted
			a.ended(c, e, nil, errKilledBeforeLaunch)
			return
		}
		if e.parent != nil {
			e.generation++
			t.generation = e.generation
			c.progress(t)
			return // its executor has it launched
		}
		if !t.framework.info.GetCheckpoint() {
			a.update(c, t, a.restarted(t.framework))
			e.phase = phaseTerminated
			return
		}
		e.generation++
		t.generation = e.generation
		c.progress(t)
		c.then(func() { a.enqueue(e) })
	default:
		e.phase = phaseRunning
		e.pid = cp.GetPid()
		t.delivered = true
		ended := cp.GetPhase() == containerv1.Checkpoint_ENDED
		told := t.state == mesosv1.TaskState_TASK_RUNNING || t.state == mesosv1.TaskState_TASK_KILLING
		if !ended && !told {
			// It was started and the agent died before saying so.
			if t.started.IsZero() {
				t.started = time.Now()
			}
			c.then(func() { a.spawn(func(ctx context.Context) { a.sayRunning(ctx, t) }) })
		}
		if !ended && !t.framework.info.GetCheckpoint() && e.parent == nil {
			a.abandon(c, e)
		}
		if !ended {
			a.limitTime(t)
			if t.expired {
				c.then(func() { a.destroy(e, nil) })
			} else if !t.kill.IsZero() {
				a.beginKill(c, t)
			} else if told {
				a.beginChecks(c, t)
			}
		}
		c.then(func() { a.await(e) })
	}
}

// sayRunning makes the update that the agent before did not get to.
func (a *Agent) sayRunning(ctx context.Context, t *task) {
	status := a.statusOf(ctx, t.executor)
	a.decide(func(c *change) {
		if t.state != mesosv1.TaskState_TASK_KILLING {
			t.executor.status = status
			a.update(c, t, &mesosv1.TaskStatus{
				State:  mesosv1.TaskState_TASK_RUNNING.Enum(),
				Source: mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum(),
			})
			a.beginChecks(c, t)
		}
	})
}

// abandon destroys a container whose framework does not checkpoint.
func (a *Agent) abandon(c *change, e *executor) {
	why := &containerTermination{
		State:   e.framework.lost(mesosv1.TaskState_TASK_GONE).String(),
		Reason:  mesosv1.TaskStatus_REASON_AGENT_RESTARTED.String(),
		Message: errNotCheckpointed.Error(),
	}
	c.then(func() { a.destroy(e, why) })
}

func (a *Agent) restarted(f *framework) *mesosv1.TaskStatus {
	return &mesosv1.TaskStatus{
		State:   f.lost(mesosv1.TaskState_TASK_DROPPED).Enum(),
		Reason:  mesosv1.TaskStatus_REASON_AGENT_RESTARTED.Enum(),
		Message: new(errNotCheckpointed.Error()),
		Source:  mesosv1.TaskStatus_SOURCE_AGENT.Enum(),
	}
}
