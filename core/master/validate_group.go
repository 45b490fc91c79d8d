package master

import (
	"errors"
	"fmt"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// What only task groups may have, and what they may not: cgroups and networks of single tasks.

// sharesCgroups says whether a task's container lives in its executor's cgroups, as it does unless it says otherwise.
func sharesCgroups(c *mesosv1.ContainerInfo) bool {
	info := c.GetLinuxInfo()
	return info == nil || info.GetShareCgroups()
}

// validateAlone says what is wrong with a task that is in no group.
func validateAlone(t *mesosv1.TaskInfo) error {
	if !sharesCgroups(t.GetContainer()) {
		return errors.New("'share_cgroups' may be set to 'false' for tasks of a task group only")
	}
	return nil
}

// validateGroupContainers says what is wrong with the containers of a task group. others are the tasks that its
// executor has already.
func validateGroupContainers(g *mesosv1.Offer_Operation_LaunchGroup, others []*mesosv1.Task) error {
	if info := g.GetExecutor().GetContainer().GetLinuxInfo(); info != nil && info.ShareCgroups != nil && info.GetShareCgroups() {
		return errors.New("'share_cgroups' must not be set to 'true' for an executor")
	}
	tasks := g.GetTaskGroup().GetTasks()
	shared := sharesCgroups(tasks[0].GetContainer())
	for _, t := range others {
		if sharesCgroups(t.GetContainer()) != shared {
			return fmt.Errorf("'share_cgroups' must be the same for all tasks of an executor, and task '%s' has %v",
				t.GetTaskId().GetValue(), !shared)
		}
	}
	for _, t := range tasks {
		id := t.GetTaskId().GetValue()
		if sharesCgroups(t.GetContainer()) != shared {
			return fmt.Errorf("Task '%s' is invalid: 'share_cgroups' must be the same for all tasks of an executor", id)
		}
		if shared && len(t.GetLimits()) > 0 {
			return fmt.Errorf("Task '%s' is invalid: resource limits need 'share_cgroups' set to 'false' in a task group", id)
		}
		networks := t.GetContainer().GetNetworkInfos()
		for _, n := range networks {
			if n.GetName() == "" {
				return fmt.Errorf("Task '%s' is invalid: NetworkInfos of a task in a group must name a CNI network", id)
			}
		}
		if len(networks) == 0 {
			continue
		}
		switch {
		case t.GetCheck().GetHttp() != nil || t.GetCheck().GetTcp() != nil:
			return fmt.Errorf("Task '%s' is invalid: HTTP and TCP checks are not supported for nested containers that join CNI networks", id)
		case t.GetHealthCheck().GetHttp() != nil || t.GetHealthCheck().GetTcp() != nil:
			return fmt.Errorf("Task '%s' is invalid: HTTP and TCP health checks are not supported for nested containers that join CNI networks", id)
		}
	}
	return nil
}

// tasksOf returns the tasks of an executor that have not ended, by id.
func tasksOf(e *executor) []*mesosv1.Task {
	var out []*mesosv1.Task
	if !e.known {
		return nil
	}
	for _, t := range sortedAgentTasks(e.agent) {
		if t.framework == e.framework && t.proto.GetExecutorId().GetValue() == e.info.GetExecutorId().GetValue() && !terminal(t.state()) {
			out = append(out, t.proto)
		}
	}
	return out
}
