package scheduler

import (
	"context"
	"maps"
	"slices"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// Launch is the operation that launches tasks, each by itself.
func Launch(tasks ...*mesosv1.TaskInfo) *mesosv1.Offer_Operation {
	return &mesosv1.Offer_Operation{
		Type:   mesosv1.Offer_Operation_LAUNCH.Enum(),
		Launch: &mesosv1.Offer_Operation_Launch{TaskInfos: tasks},
	}
}

// LaunchGroup is the operation that launches tasks as a group: all or none, in one executor, and killed when one fails.
// A group of the default executor needs its executor_id, type and resources in executor.
func LaunchGroup(executor *mesosv1.ExecutorInfo, tasks ...*mesosv1.TaskInfo) *mesosv1.Offer_Operation {
	return &mesosv1.Offer_Operation{
		Type:        mesosv1.Offer_Operation_LAUNCH_GROUP.Enum(),
		LaunchGroup: &mesosv1.Offer_Operation_LaunchGroup{Executor: executor, TaskGroup: &mesosv1.TaskGroupInfo{Tasks: tasks}},
	}
}

// Accept uses offers of one agent for operations. refuse says for how long the rest is not wanted.
func (c *Client) Accept(ctx context.Context, offers []*mesosv1.OfferID, ops []*mesosv1.Offer_Operation, refuse time.Duration) error {
	if slices.ContainsFunc(ops, func(op *mesosv1.Offer_Operation) bool { return op.Id != nil }) {
		c.setOperations()
	}
	return c.Call(ctx, &schedulerv1.Call{
		Type: schedulerv1.Call_ACCEPT.Enum(),
		Accept: &schedulerv1.Call_Accept{
			OfferIds: offers, Operations: ops, Filters: filters(refuse),
		},
	})
}

// Decline gives offers back. refuse says for how long the same is not wanted again.
func (c *Client) Decline(ctx context.Context, offers []*mesosv1.OfferID, refuse time.Duration) error {
	return c.Call(ctx, &schedulerv1.Call{
		Type:    schedulerv1.Call_DECLINE.Enum(),
		Decline: &schedulerv1.Call_Decline{OfferIds: offers, Filters: filters(refuse)},
	})
}

// AcceptInverse says that the tasks on machines of inverse offers will have gone when their maintenance begins.
func (c *Client) AcceptInverse(ctx context.Context, offers []*mesosv1.OfferID, refuse time.Duration) error {
	return c.Call(ctx, &schedulerv1.Call{
		Type:                schedulerv1.Call_ACCEPT_INVERSE_OFFERS.Enum(),
		AcceptInverseOffers: &schedulerv1.Call_AcceptInverseOffers{InverseOfferIds: offers, Filters: filters(refuse)},
	})
}

// DeclineInverse says that they will not. refuse says for how long not to ask again.
func (c *Client) DeclineInverse(ctx context.Context, offers []*mesosv1.OfferID, refuse time.Duration) error {
	return c.Call(ctx, &schedulerv1.Call{
		Type:                 schedulerv1.Call_DECLINE_INVERSE_OFFERS.Enum(),
		DeclineInverseOffers: &schedulerv1.Call_DeclineInverseOffers{InverseOfferIds: offers, Filters: filters(refuse)},
	})
}

func filters(refuse time.Duration) *mesosv1.Filters {
	s := refuse.Seconds()
	return &mesosv1.Filters{RefuseSeconds: &s}
}

// Kill asks for the end of a task; its terminal update comes as an event.
func (c *Client) Kill(ctx context.Context, task *mesosv1.TaskID, agent *mesosv1.AgentID) error {
	return c.KillWithin(ctx, task, agent, -1)
}

// KillWithin is Kill with a grace period of its own between SIGTERM and SIGKILL; below 0 means the task's.
func (c *Client) KillWithin(ctx context.Context, task *mesosv1.TaskID, agent *mesosv1.AgentID, grace time.Duration) error {
	kill := &schedulerv1.Call_Kill{TaskId: task, AgentId: agent}
	if grace >= 0 {
		kill.KillPolicy = &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: new(grace.Nanoseconds())}}
	}
	return c.Call(ctx, &schedulerv1.Call{Type: schedulerv1.Call_KILL.Enum(), Kill: kill})
}

// Shutdown asks for the end of an executor and its tasks.
func (c *Client) Shutdown(ctx context.Context, executor *mesosv1.ExecutorID, agent *mesosv1.AgentID) error {
	return c.Call(ctx, &schedulerv1.Call{
		Type:     schedulerv1.Call_SHUTDOWN.Enum(),
		Shutdown: &schedulerv1.Call_Shutdown{ExecutorId: executor, AgentId: agent},
	})
}

// Message sends data to an executor, at most once.
func (c *Client) Message(ctx context.Context, executor *mesosv1.ExecutorID, agent *mesosv1.AgentID, data []byte) error {
	return c.Call(ctx, &schedulerv1.Call{
		Type:    schedulerv1.Call_MESSAGE.Enum(),
		Message: &schedulerv1.Call_Message{ExecutorId: executor, AgentId: agent, Data: data},
	})
}

// Acknowledge says that an update has been handled. Run does it by itself.
func (c *Client) Acknowledge(ctx context.Context, status *mesosv1.TaskStatus) error {
	return c.Call(ctx, &schedulerv1.Call{
		Type: schedulerv1.Call_ACKNOWLEDGE.Enum(),
		Acknowledge: &schedulerv1.Call_Acknowledge{
			AgentId: status.GetAgentId(), TaskId: status.GetTaskId(), Uuid: status.GetUuid(),
		},
	})
}

// AcknowledgeOperation says that an operation's update has been handled. Run does it by itself.
func (c *Client) AcknowledgeOperation(ctx context.Context, status *mesosv1.OperationStatus) error {
	return c.Call(ctx, &schedulerv1.Call{
		Type: schedulerv1.Call_ACKNOWLEDGE_OPERATION_STATUS.Enum(),
		AcknowledgeOperationStatus: &schedulerv1.Call_AcknowledgeOperationStatus{
			AgentId: status.GetAgentId(), ResourceProviderId: status.GetResourceProviderId(),
			Uuid: status.GetUuid().GetValue(), OperationId: status.GetOperationId(),
		},
	})
}

// Reconcile asks how tasks are; the answers come as UPDATE events. Without any it asks for all that the master knows,
// which Run does after each reconnection; a task that the master has never heard of is then not answered for. It is,
// TASK_LOST or TASK_GONE, when it is named.
func (c *Client) Reconcile(ctx context.Context, tasks ...*schedulerv1.Call_Reconcile_Task) error {
	return c.Call(ctx, &schedulerv1.Call{
		Type: schedulerv1.Call_RECONCILE.Enum(), Reconcile: &schedulerv1.Call_Reconcile{Tasks: tasks},
	})
}

// ReconcileOperations is Reconcile for operations that have ids; the answers come as UPDATE_OPERATION_STATUS events. Run
// does it after each reconnection once there have been some; a framework that was restarted asks itself.
func (c *Client) ReconcileOperations(ctx context.Context, ops ...*schedulerv1.Call_ReconcileOperations_Operation) error {
	return c.Call(ctx, &schedulerv1.Call{
		Type:                schedulerv1.Call_RECONCILE_OPERATIONS.Enum(),
		ReconcileOperations: &schedulerv1.Call_ReconcileOperations{Operations: ops},
	})
}

func (c *Client) setOperations() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.operations = true
}

// UpdateFramework changes what the framework said when it subscribed, such as its roles. What it says is what a
// reconnection says too. Roles that were suppressed stay so.
//
// Errors: *StatusError for what may not change, or makes no sense; nothing has changed then.
func (c *Client) UpdateFramework(ctx context.Context, info *mesosv1.FrameworkInfo) error {
	info = info.CloneVT()
	c.mu.Lock()
	info.Id = c.framework.GetId()
	kept := c.suppressed.keep(info)
	c.mu.Unlock()
	err := c.Call(ctx, &schedulerv1.Call{
		Type:            schedulerv1.Call_UPDATE_FRAMEWORK.Enum(),
		UpdateFramework: &schedulerv1.Call_UpdateFramework{FrameworkInfo: info, SuppressedRoles: kept.list()},
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.framework, c.suppressed = info, kept
	return nil
}

// suppressed are the roles that want no offers. A subscription says them anew, or else it would revive them.
type suppressed map[string]bool

func suppress(roles []string) suppressed {
	s := suppressed{}
	for _, r := range roles {
		s[r] = true
	}
	return s
}

// rolesOf are a framework's roles, in either form.
func rolesOf(f *mesosv1.FrameworkInfo) []string {
	if len(f.GetRoles()) > 0 {
		return f.GetRoles()
	}
	return []string{f.GetRole()}
}

// list is what a subscription says of them.
func (s suppressed) list() []string { return slices.Sorted(maps.Keys(s)) }

// keep forgets those that a framework does not have any more: a master refuses them.
func (s suppressed) keep(f *mesosv1.FrameworkInfo) suppressed {
	kept := suppressed{}
	for _, r := range rolesOf(f) {
		if s[r] {
			kept[r] = true
		}
	}
	return kept
}

// Suppress stops offers for the roles (all without any) until Revive, also over reconnections.
func (c *Client) Suppress(ctx context.Context, roles ...string) error {
	err := c.Call(ctx, &schedulerv1.Call{
		Type: schedulerv1.Call_SUPPRESS.Enum(), Suppress: &schedulerv1.Call_Suppress{Roles: roles},
	})
	if err == nil {
		c.setSuppressed(roles, true)
	}
	return err
}

// Revive asks for offers again and drops filters, for the roles (all without any).
func (c *Client) Revive(ctx context.Context, roles ...string) error {
	err := c.Call(ctx, &schedulerv1.Call{
		Type: schedulerv1.Call_REVIVE.Enum(), Revive: &schedulerv1.Call_Revive{Roles: roles},
	})
	if err == nil {
		c.setSuppressed(roles, false)
	}
	return err
}

func (c *Client) setSuppressed(roles []string, to bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(roles) == 0 {
		roles = rolesOf(c.framework)
	}
	for _, r := range roles {
		if to {
			c.suppressed[r] = true
		} else {
			delete(c.suppressed, r)
		}
	}
}

// Teardown ends the framework: its tasks are killed and its id cannot be used again.
func (c *Client) Teardown(ctx context.Context) error {
	return c.Call(ctx, &schedulerv1.Call{Type: schedulerv1.Call_TEARDOWN.Enum()})
}
