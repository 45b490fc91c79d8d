package agent

import (
	"fmt"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// Ends that the master or the operator asks for: of frameworks, of all work here (drain), of the agent.

// shutdownFramework kills a framework's tasks and shuts its executors down. Nobody is left to acknowledge
// updates, so none are made.
func (a *Agent) shutdownFramework(m *clusterv1.ShutdownFramework) {
	a.decide(func(c *change) {
		if f := a.frameworks[FrameworkID(m.GetFrameworkId())]; f != nil {
			a.endFramework(c, f)
		}
	})
}

func (a *Agent) endFramework(c *change, f *framework) {
	f.terminating = true
	for _, t := range f.sortedTasks() {
		switch {
		case terminal(t.state):
			a.forgetTask(c, t)
		case t.builtin():
			a.kill(c, t, nil)
		}
	}
	for _, e := range f.sortedExecutors() {
		a.stopExecutor(c, e)
	}
	a.forgetFramework(c, f)
}

func (a *Agent) updateFramework(m *clusterv1.UpdateFramework) {
	a.decide(func(c *change) {
		if a.frameworks[FrameworkID(m.GetFramework().GetId().GetValue())] == nil {
			return // nothing of it is here
		}
		if _, err := a.framework(c, m.GetFramework()); err != nil {
			a.log.Warn("update framework", "error", err)
		}
	})
}

// startDrain kills all tasks and takes no more.
func (a *Agent) startDrain(config *mesosv1.DrainConfig) {
	a.decide(func(c *change) {
		if config == nil {
			config = new(mesosv1.DrainConfig)
		}
		data, err := config.MarshalVT()
		if err != nil {
			a.fail(fmt.Errorf("encode drain: %w", err))
			return
		}
		if data == nil {
			data = []byte{}
		}
		c.put(bucketAgent, keyDrain, data)
		if a.drain == nil {
			a.drainSince = time.Now()
		}
		a.drain = config
		a.log.Info("draining", "frameworks", len(a.frameworks))
		for _, f := range a.sortedFrameworks() {
			for _, t := range f.sortedTasks() {
				switch {
				case terminal(t.state):
				case t.builtin():
					a.kill(c, t, nil)
				default:
					a.killCustom(c, t, nil)
				}
			}
			for _, e := range f.sortedExecutors() {
				if e.ofGroups() && !e.busy() {
					a.endGroups(c, e) // nothing comes that it could wait for
				}
			}
		}
		a.finishDrain(c)
	})
}

// drained gives what a drain kills the reason that tells the scheduler so.
func (a *Agent) drained(t *task, s *mesosv1.TaskStatus) {
	if !t.draining || a.drain == nil {
		return
	}
	switch s.GetState() {
	case mesosv1.TaskState_TASK_KILLED:
		if a.drain.GetMarkGone() && t.framework.partitionAware() {
			s.State = mesosv1.TaskState_TASK_GONE_BY_OPERATOR.Enum()
		}
		fallthrough
	case mesosv1.TaskState_TASK_KILLING:
		s.Reason = mesosv1.TaskStatus_REASON_AGENT_DRAINING.Enum()
	}
}

// finishDrain ends the drain when nothing is left, unless the agent shall not come back.
func (a *Agent) finishDrain(c *change) {
	if a.drain == nil || a.drain.GetMarkGone() || len(a.frameworks) > 0 {
		return
	}
	a.log.Info("drained")
	a.drain = nil
	c.delete(bucketAgent, keyDrain)
}

// shutDown ends the agent: all tasks are killed, the id is given up, and Run returns ErrShutdown.
func (a *Agent) shutDown(message string) {
	a.decide(func(c *change) {
		if a.leaving {
			return
		}
		a.leaving = true
		a.log.Warn("the master shuts this agent down", "message", message)
		c.delete(bucketAgent, keyInfo)
		c.delete(bucketAgent, keyDrain)
		for _, f := range a.sortedFrameworks() {
			a.endFramework(c, f)
		}
		a.leave(c)
	})
}

// leave ends Run when the last task is gone.
func (a *Agent) leave(c *change) {
	if a.leaving && len(a.frameworks) == 0 {
		c.then(func() { a.fail(ErrShutdown) })
	}
}
