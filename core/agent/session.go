package agent

import (
	"context"
	"errors"
	"net/http"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
)

// Clients attached to containers. Output goes to a stream whose Send waits for its reader; input comes from a function
// that waits for its client. A session is a container that lives as long as the stream of the client that had it launched.

// ProcessIOStream carries a container's output to one client. Send waits while the client is slow; it returns false when
// the stream is over. The edge that serves clients spells the same type.
type ProcessIOStream = interface {
	Send(*agentv1.ProcessIO) bool
	Close()
	Done() <-chan struct{}
}

// Attacher is the part of a Containerizer that attaches clients and removes what is left of containers. Ids are those of
// Containerizer: of a nested container the values from the root down, joined by dots.
type Attacher interface {
	// AttachOutput hands a container's output from now on to send, until the output ended (nil), ctx is done, or send
	// returned false. It fails for a container without streams to attach to.
	AttachOutput(ctx context.Context, id string, send func(*agentv1.ProcessIO) bool) error
	// AttachInput feeds a container what next returns, until that is io.EOF (nil) or another error, which it returns.
	AttachInput(ctx context.Context, id string, next func() (*agentv1.ProcessIO, error)) error
	// Remove removes the sandbox and all else that is left of a nested or standalone container that ended.
	Remove(ctx context.Context, id string) error
}

const (
	// sessionMemory is how long WAIT_NESTED_CONTAINER tells how a session ended, when nobody removes it before.
	sessionMemory = 10 * time.Minute
	// sessionGrace is how long an agent that stops waits for the end of its sessions.
	sessionGrace = 2 * time.Second
	// attachPatience is how long a client waits to hear that it cannot attach. A container without streams says so at
	// once, and one with streams says nothing until there is output.
	attachPatience = 250 * time.Millisecond
)

// AttachOutput sends what a container prints from now on to s, and returns when that has begun. s is closed when the
// output ended.
//
// Errors: 403; 404 for a container that does not run here; else the container has no streams.
func (a *Agent) AttachOutput(ctx context.Context, principal string, id *mesosv1.ContainerID, s ProcessIOStream) error {
	p, err := a.ask(ctx, principal, "ATTACH_CONTAINER_OUTPUT", "ATTACH_CONTAINER_OUTPUT", id)
	if err != nil {
		return err
	}
	if err := a.findRunning(p, false); err != nil {
		return err
	}
	_, err = a.attach(ctx, p, s, nil)
	return err
}

// attach begins to send output to s. over is closed when there is no more, or nobody to take it; with ended, not before
// that is closed either, since a process may close its output long before it ends.
func (a *Agent) attach(ctx context.Context, p containerPath, s ProcessIOStream, ended <-chan struct{}) (over <-chan struct{}, err error) {
	began := make(chan struct{}, 1)
	result := make(chan error, 1)
	done := make(chan struct{})
	a.mu.Lock()
	if a.work.Err() != nil {
		a.mu.Unlock()
		return nil, refuse(http.StatusServiceUnavailable, "The agent is stopping")
	}
	a.spawn(func(work context.Context) {
		defer close(done)
		attached, cancel := context.WithCancel(work)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		stop := make(chan struct{})
		defer close(stop)
		a.wg.Go(func() { // Run waits for it, and so may this: it ends with what follows
			select {
			case <-s.Done():
				cancel()
			case <-stop:
			}
		})
		err := a.ctzr.AttachOutput(attached, p.id(), func(m *agentv1.ProcessIO) bool {
			select {
			case began <- struct{}{}:
			default:
			}
			return s.Send(m)
		})
		result <- err
		if err != nil && attached.Err() == nil {
			a.log.Info("output of a container broke off", "container", p.id(), "error", err)
		}
		if err == nil && ended != nil {
			select {
			case <-ended:
			case <-attached.Done():
			}
		}
		s.Close()
	})
	a.mu.Unlock()
	timer := time.NewTimer(attachPatience)
	defer timer.Stop()
	select {
	case <-began:
	case <-timer.C:
	case <-ctx.Done():
		return done, context.Cause(ctx)
	case err := <-result:
		if err != nil && ctx.Err() == nil {
			return done, refuse(http.StatusInternalServerError, "Failed to attach to container %s: %v", p.id(), err)
		}
	}
	return done, nil
}

// AttachInput feeds a container what next returns until that is io.EOF, or the container has ended.
//
// Errors: those of next; 403; 404 for a container that does not run here; else the container takes no input.
func (a *Agent) AttachInput(ctx context.Context, principal string, id *mesosv1.ContainerID, next func(context.Context) (*agentv1.ProcessIO, error)) error {
	p, err := a.ask(ctx, principal, "ATTACH_CONTAINER_INPUT", "ATTACH_CONTAINER_INPUT", id)
	if err != nil {
		return err
	}
	if err := a.findRunning(p, false); err != nil {
		return err
	}
	// The client may have nothing more to say for hours; when the container ends it need not.
	attached, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(a.work, func() { cancel(errAgentStops) })()
	watched := make(chan struct{})
	defer func() {
		cancel(nil)
		<-watched
	}()
	go func() { // ends with attached, and is waited for above
		defer close(watched)
		if _, err := a.ctzr.Wait(attached, p.id()); err == nil || attached.Err() == nil {
			cancel(errContainerEnded)
		}
	}()
	err = a.ctzr.AttachInput(attached, p.id(), func() (*agentv1.ProcessIO, error) { return next(attached) })
	switch {
	case err == nil || errors.Is(context.Cause(attached), errContainerEnded):
		return nil
	case errors.Is(context.Cause(attached), errAgentStops):
		return errAgentStops
	}
	var s interface{ HTTPStatus() int }
	if errors.As(err, &s) || ctx.Err() != nil {
		return err
	}
	if a.findRunning(p, false) != nil {
		return nil // it ended while it was written to
	}
	return refuse(http.StatusInternalServerError, "Failed to attach to container %s: %v", p.id(), err)
}

var (
	errContainerEnded = errors.New("the container has ended")
	errAgentStops     = refuse(http.StatusServiceUnavailable, "The agent is stopping")
)

// LaunchSession launches a container in another one's place, sends its output to s, and returns when that has begun. The
// container is destroyed when s is over.
//
// Errors: as of a launch; 500 when the client cannot be attached.
func (a *Agent) LaunchSession(ctx context.Context, principal string, call *agentv1.Call_LaunchNestedContainerSession, s ProcessIOStream) error {
	if err := checkSession(call); err != nil {
		return refuse(http.StatusBadRequest, "Failed to launch container: %v", err)
	}
	g, err := a.admit(ctx, principal, "LAUNCH_NESTED_CONTAINER_SESSION", &agentv1.Call_LaunchContainer{
		ContainerId: call.GetContainerId(), Command: call.GetCommand(), Container: call.GetContainer(),
	})
	if err != nil {
		return err
	}
	// Without its client nobody wants it: a launch ends with the request.
	launch, cancel := context.WithTimeout(a.work, launchTimeout)
	defer context.AfterFunc(ctx, cancel)()
	a.mu.Lock()
	g.cancel = cancel
	a.startGuest(launch, g)
	a.mu.Unlock()
	select {
	case <-g.launched:
	case <-a.work.Done():
		return errAgentStops
	}
	if g.failure != nil {
		return g.failure
	}
	over, err := a.attach(ctx, g.path, s, g.ended)
	a.mu.Lock()
	a.spawn(func(work context.Context) {
		if err == nil {
			select {
			case <-over:
			case <-work.Done():
			}
		}
		if work.Err() != nil {
			// Sessions end with the agent. What is left of one in spite of that, the next agent takes down.
			var cancel context.CancelFunc
			work, cancel = context.WithTimeout(context.WithoutCancel(work), sessionGrace)
			defer cancel()
		}
		a.endSession(work, g)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.forgetGuest(g) // how it ended is remembered here
	})
	a.mu.Unlock()
	return err
}

// checkSession says what a session cannot have of its own.
func checkSession(call *agentv1.Call_LaunchNestedContainerSession) error {
	c := call.GetContainer()
	switch {
	case call.GetContainerId().GetParent() == nil:
		return errors.New("a session needs a parent")
	case call.GetCommand().GetValue() == "":
		return errors.New("a session needs a command")
	case len(call.GetCommand().GetUris()) > 0:
		return errors.New("a session fetches nothing")
	case c.GetMesos().GetImage() != nil || c.GetDocker() != nil:
		return errors.New("a session has its parent's root filesystem")
	case len(c.GetVolumes()) > 0 || len(c.GetNetworkInfos()) > 0 || c.GetHostname() != "":
		return errors.New("a session has its parent's volumes and networks")
	case c.GetRlimitInfo() != nil || c.GetLinuxInfo() != nil:
		return errors.New("a session has its parent's limits and powers")
	}
	return nil
}

// endSession destroys a session and returns when nothing of it runs.
func (a *Agent) endSession(ctx context.Context, g *guest) {
	for wait := destroyRetryMin; !g.over(); wait = min(2*wait, destroyRetryMax) {
		once, cancel := context.WithTimeout(ctx, destroyTimeout)
		err := a.ctzr.Destroy(once, g.spec.GetId(), nil)
		cancel()
		if err == nil || ctx.Err() != nil {
			return
		}
		if g.over() {
			return // and forgotten before it could be asked for
		}
		a.log.Warn("a session cannot be ended, will be tried again", "container", g.spec.GetId(), "after", wait, "error", err)
		if !sleep(ctx, wait) {
			return
		}
	}
}
