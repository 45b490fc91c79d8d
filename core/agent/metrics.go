package agent

import (
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// counters only grow. Guarded by Agent.mu.
type counters struct {
	ended             map[mesosv1.TaskState]uint64
	validUpdates      uint64
	invalidUpdates    uint64
	frameworkMessages uint64
	droppedMessages   uint64
	launchErrors      uint64
	preempted         uint64
	sandboxesRemoved  uint64
	sandboxesKept     uint64 // removal failed
	maxAge            time.Duration
}

func (c *counters) count(s mesosv1.TaskState) {
	if c.ended == nil {
		c.ended = make(map[mesosv1.TaskState]uint64)
	}
	c.ended[s]++
}
