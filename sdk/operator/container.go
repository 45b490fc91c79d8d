package operator

import (
	"context"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
)

// LaunchContainer launches a container: nested if its id has a parent, else by itself. The caller chooses the id. It
// returns false when a container with this id was there already and nothing was done.
//
// Errors: *StatusError, with 400 and the reason when it could not be launched.
func (a *Agent) LaunchContainer(ctx context.Context, launch *agentv1.Call_LaunchContainer) (launched bool, err error) {
	status, err := a.call(ctx, &agentv1.Call{
		Type: agentv1.Call_LAUNCH_CONTAINER.Enum(), LaunchContainer: launch,
	}, &agentv1.Response{})
	// 202 is how the agent says that a call did nothing.
	return err == nil && status != 202, err
}

// WaitContainer waits until a container has ended, which may take as long as ctx allows, and returns how it ended. The
// exit status is that of wait(2): exit code 1 is 256.
//
// Errors: *StatusError with 404 for a container that the agent does not know, or no longer.
func (a *Agent) WaitContainer(ctx context.Context, id *mesosv1.ContainerID) (*agentv1.Response_WaitContainer, error) {
	resp, err := a.Call(ctx, &agentv1.Call{
		Type:          agentv1.Call_WAIT_CONTAINER.Enum(),
		WaitContainer: &agentv1.Call_WaitContainer{ContainerId: id},
	})
	if err != nil {
		return nil, err
	}
	if w := resp.GetWaitContainer(); w != nil {
		return w, nil
	}
	return &agentv1.Response_WaitContainer{}, nil // JSON and protobuf leave out what is empty
}

// KillContainer sends a signal to a container's first process; 0 means SIGKILL.
//
// Errors: *StatusError with 404 for a container that the agent does not know.
func (a *Agent) KillContainer(ctx context.Context, id *mesosv1.ContainerID, signal int) error {
	kill := &agentv1.Call_KillContainer{ContainerId: id}
	if signal != 0 {
		kill.Signal = new(int32(signal))
	}
	_, err := a.Call(ctx, &agentv1.Call{Type: agentv1.Call_KILL_CONTAINER.Enum(), KillContainer: kill})
	return err
}

// RemoveContainer removes the sandbox and the record of a container that has ended.
//
// Errors: *StatusError with 500 while it runs.
func (a *Agent) RemoveContainer(ctx context.Context, id *mesosv1.ContainerID) error {
	_, err := a.Call(ctx, &agentv1.Call{
		Type:            agentv1.Call_REMOVE_CONTAINER.Enum(),
		RemoveContainer: &agentv1.Call_RemoveContainer{ContainerId: id},
	})
	return err
}
