package agent

import (
	"context"
	"errors"
	"net/http"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
)

// Approver says whether a principal may do something to a container. It is never asked with a lock held.
type Approver interface {
	// Approve returns nil for yes. action is Mesos's name of it. object holds the user that the container's processes
	// run as (for a launch: would run as, and in parent_value the parent's), its framework and its id; or nothing for an
	// action without objects.
	//
	// Errors: one with HTTPStatus is the answer. 403 is a no; any other says that nobody can tell now.
	Approve(ctx context.Context, principal, action string, object *authorizerv1.Object) error
}

// ask reads a container's id and asks whether the principal may do the action to it: nested where it belongs to an
// executor, else standalone.
func (a *Agent) ask(ctx context.Context, principal, nested, standalone string, id *mesosv1.ContainerID) (containerPath, error) {
	p := pathOf(id)
	if p == nil {
		return nil, refuse(http.StatusBadRequest, "Expecting 'container_id' with a value at each level")
	}
	return p, a.approve(ctx, principal, nested, standalone, p, nil)
}

// approve asks for one container. launch is the command of a launch, nil for what is not one.
func (a *Agent) approve(ctx context.Context, principal, nested, standalone string, p containerPath, launch *mesosv1.CommandInfo) error {
	if a.deps.Approver == nil {
		return nil
	}
	action, object := standalone, &authorizerv1.Object{ContainerId: p.id()}
	a.mu.Lock()
	if e := a.containers[p.root()]; e != nil {
		action = nested
		user := a.executorUser(e)
		object.Value, object.ParentValue = &user, &user
		object.FrameworkId = string(e.framework.id)
		if e.command != nil {
			object.TaskId = string(e.command.id)
		}
	} else if g := a.guests[p[0]]; g != nil {
		object.Value = new(g.spec.GetUser())
	} else {
		object.Value = new(a.switchedUser(""))
	}
	if u := launch.GetUser(); u != "" {
		object.Value = new(a.switchedUser(u))
	}
	a.mu.Unlock()
	return a.deps.Approver.Approve(ctx, principal, action, object)
}

// visible says whether a principal may see a container.
//
// Errors: nobody can tell now.
func (a *Agent) visible(ctx context.Context, principal string, v containerView) (bool, error) {
	if a.deps.Approver == nil {
		return true, nil
	}
	action := "VIEW_STANDALONE_CONTAINER"
	if v.executor != nil {
		action = "VIEW_CONTAINER"
	}
	err := a.deps.Approver.Approve(ctx, principal, action, &authorizerv1.Object{
		Value: new(v.user), FrameworkId: string(v.framework), ContainerId: v.path.id(),
	})
	var s interface{ HTTPStatus() int }
	if errors.As(err, &s) && s.HTTPStatus() == http.StatusForbidden {
		return false, nil
	}
	return err == nil, err
}
