package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// The agent's container API: containers that no task asked for. An operator, or an executor for what runs inside its own
// container, launches them by an id of its own choice, waits for them, signals and removes them. Nested ones end with
// their parent; standalone ones belong to nobody and outlive everything but their own end. guest.go keeps them,
// session.go attaches clients to them.

// containerCall answers the calls that are about one container and need no stream. Response is nil for an empty one.
//
// Errors: 202 for a launch of what is there already, 400 for one that fails, 403, 404 for a container that is not here,
// 500 for the removal of one that runs.
func (a *Agent) containerCall(ctx context.Context, principal string, call *agentv1.Call) (*agentv1.Response, error) {
	switch call.GetType() {
	case agentv1.Call_LAUNCH_NESTED_CONTAINER:
		r := call.GetLaunchNestedContainer()
		return nil, a.launchContainer(ctx, principal, &agentv1.Call_LaunchContainer{
			ContainerId: r.GetContainerId(), Command: r.GetCommand(), Container: r.GetContainer(),
		})
	case agentv1.Call_LAUNCH_CONTAINER:
		return nil, a.launchContainer(ctx, principal, call.GetLaunchContainer())
	case agentv1.Call_WAIT_NESTED_CONTAINER:
		r, err := a.waitContainer(ctx, principal, call.GetWaitNestedContainer().GetContainerId())
		if err != nil {
			return nil, err
		}
		return &agentv1.Response{
			Type: agentv1.Response_WAIT_NESTED_CONTAINER.Enum(),
			WaitNestedContainer: &agentv1.Response_WaitNestedContainer{
				ExitStatus: r.ExitStatus, State: r.State, Reason: r.Reason, Limitation: r.Limitation, Message: r.Message,
			},
		}, nil
	case agentv1.Call_WAIT_CONTAINER:
		r, err := a.waitContainer(ctx, principal, call.GetWaitContainer().GetContainerId())
		if err != nil {
			return nil, err
		}
		return &agentv1.Response{Type: agentv1.Response_WAIT_CONTAINER.Enum(), WaitContainer: r}, nil
	case agentv1.Call_KILL_NESTED_CONTAINER:
		k := call.GetKillNestedContainer()
		return nil, a.killContainer(ctx, principal, k.GetContainerId(), k.Signal)
	case agentv1.Call_KILL_CONTAINER:
		k := call.GetKillContainer()
		return nil, a.killContainer(ctx, principal, k.GetContainerId(), k.Signal)
	case agentv1.Call_REMOVE_NESTED_CONTAINER:
		return nil, a.removeContainer(ctx, principal, call.GetRemoveNestedContainer().GetContainerId())
	case agentv1.Call_REMOVE_CONTAINER:
		return nil, a.removeContainer(ctx, principal, call.GetRemoveContainer().GetContainerId())
	}
	return nil, refuse(http.StatusNotImplemented, "This agent does not implement %v calls", call.GetType())
}

// containerPath is a container's place in the tree: the values of its ids from the root down.
type containerPath []string

// pathOf returns the path of an id, nil for one without a value somewhere.
func pathOf(id *mesosv1.ContainerID) containerPath {
	var p containerPath
	for ; id != nil; id = id.GetParent() {
		if id.GetValue() == "" {
			return nil
		}
		p = append(p, id.GetValue())
	}
	slices.Reverse(p)
	return p
}

// id is the container's id on this agent: its path joined by dots, which no value can contain.
func (p containerPath) id() string           { return strings.Join(p, ".") }
func (p containerPath) root() ContainerID    { return ContainerID(p[0]) }
func (p containerPath) nested() bool         { return len(p) > 1 }
func (p containerPath) own() string          { return p[len(p)-1] }
func (p containerPath) up() containerPath    { return p[:len(p)-1] }
func (p containerPath) below(id string) bool { return strings.HasPrefix(p.id(), id+".") }

// message is the id as the API has it.
func (p containerPath) message() *mesosv1.ContainerID {
	var id *mesosv1.ContainerID
	for _, v := range p {
		id = &mesosv1.ContainerID{Value: new(v), Parent: id}
	}
	return id
}

// pathOfID is the path of a container by its id on this agent.
func pathOfID(id string) containerPath { return strings.Split(id, ".") }

// taskContainer is the container of a task of a group, nil for all others. The caller holds the lock.
func (a *Agent) taskContainer(p containerPath) *executor {
	e := a.containers[p.root()]
	if e == nil || len(p) != 2 {
		return nil
	}
	for _, t := range e.tasks {
		if x := t.executor; x.parent == e && x.container == ContainerID(p.id()) {
			return x
		}
	}
	return nil
}

// parentOf is what a nested container is launched into.
type parentOf struct {
	executor *executor // of the root; nil below a standalone container
	user     string
	sandbox  string
}

// parent returns a container that others can be nested in, or says why there is none. The caller holds the lock.
func (a *Agent) parent(p containerPath) (parentOf, error) {
	var found parentOf
	missing := fmt.Errorf("parent container %s does not exist", p.id())
	ended := fmt.Errorf("parent container %s is not running", p.id())
	e, g := a.containers[p.root()], a.guests[p[0]]
	switch {
	case e == nil && g == nil:
		return found, missing
	case e != nil && !e.running(), e == nil && !g.running():
		return found, ended
	case e != nil:
		found = parentOf{executor: e, user: a.executorUser(e), sandbox: e.directory}
	default:
		found = parentOf{user: g.spec.GetUser(), sandbox: g.spec.GetSandbox()}
	}
	if !p.nested() {
		return found, nil
	}
	found.sandbox = sandboxBelow(found.sandbox, p)
	if x := a.taskContainer(p); x != nil {
		if !x.running() {
			return found, ended
		}
		found.user = a.executorUser(x)
		return found, nil
	}
	switch g := a.guests[p.id()]; {
	case g == nil:
		return found, missing
	case g.session:
		return found, fmt.Errorf("parent container %s is a session", p.id())
	case !g.running():
		return found, ended
	default:
		found.user = g.spec.GetUser()
		return found, nil
	}
}

// sandboxBelow is the sandbox of a nested container, below that of its root.
func sandboxBelow(root string, p containerPath) string {
	for _, v := range p[1:] {
		root = filepath.Join(root, "containers", v)
	}
	return root
}

// executorUser is whom an executor's container runs as. The caller holds the lock.
func (a *Agent) executorUser(e *executor) string {
	command := e.info.GetCommand()
	if e.command != nil {
		command = e.command.info.GetCommand()
	}
	return a.switchedUser(e.framework.user(command))
}

// switchedUser is whom a container runs as that wants to run as user, "" for the agent's own.
func (a *Agent) switchedUser(want string) string {
	if want != "" && !a.cfg.KeepUser {
		return want
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Geteuid())
}

// launchContainer answers LAUNCH_CONTAINER and its older name. It returns when the container runs.
func (a *Agent) launchContainer(ctx context.Context, principal string, r *agentv1.Call_LaunchContainer) error {
	g, err := a.admit(ctx, principal, "LAUNCH_NESTED_CONTAINER", r)
	if err != nil {
		return err
	}
	// The launch goes on when its client goes: a second one with the same id is told that it is there.
	launch, cancel := context.WithTimeout(a.work, launchTimeout)
	a.mu.Lock()
	g.cancel = cancel
	a.startGuest(launch, g)
	a.mu.Unlock()
	select {
	case <-g.launched:
		return g.failure
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// admit takes a launch, whose form the edge has checked, asks whether the principal may have it, and takes the id. nested is the action's name for a
// container with a parent.
//
// Errors: 202 when the container is there already; 400, 403.
func (a *Agent) admit(ctx context.Context, principal, nested string, r *agentv1.Call_LaunchContainer) (*guest, error) {
	p := pathOf(r.GetContainerId())
	if p == nil {
		return nil, refuse(http.StatusBadRequest, "Expecting 'container_id' with a value at each level")
	}
	if c := r.GetContainer(); c != nil && c.GetType() != mesosv1.ContainerInfo_MESOS {
		return nil, refuse(http.StatusBadRequest, "Failed to launch container: the provided ContainerInfo is not supported")
	}
	session := nested == "LAUNCH_NESTED_CONTAINER_SESSION"
	if err := a.approve(ctx, principal, nested, "LAUNCH_STANDALONE_CONTAINER", p, r.GetCommand()); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	id := p.id()
	if a.stopping || a.work.Err() != nil {
		return nil, refuse(http.StatusServiceUnavailable, "The agent is stopping")
	}
	if a.guests[id] != nil || a.taskContainer(p) != nil || !p.nested() && a.containers[p.root()] != nil {
		return nil, refuse(http.StatusAccepted, "Container %s was launched before", id)
	}
	var parent parentOf
	if p.nested() {
		var err error
		if parent, err = a.parent(p.up()); err != nil {
			return nil, refuse(http.StatusBadRequest, "Failed to launch container: %v", err)
		}
	}
	g := newGuest(a.guestContainer(p, parent, r, session), session)
	a.guests[id] = g
	return g, nil
}

// guestContainer describes a container that is launched over the API.
func (a *Agent) guestContainer(p containerPath, parent parentOf, r *agentv1.Call_LaunchContainer, session bool) *containerv1.Container {
	c := &containerv1.Container{
		Id: p.id(), Generation: 1, AgentId: a.info.GetId().GetValue(), Created: timestamppb.Now(), Command: r.GetCommand(),
		ContainerInfo: r.GetContainer(), Resources: r.GetResources(),
	}
	if c.Command == nil { // the image's
		c.Command = &mesosv1.CommandInfo{Shell: new(false)}
	}
	for name, l := range r.GetLimits() {
		if c.Limits == nil {
			c.Limits = make(map[string]float64)
		}
		c.Limits[name] = l.GetValue()
	}
	terminalOf(c)
	if !p.nested() {
		c.Standalone = true
		c.Cgroup = a.cfg.CgroupRoot + "/" + p.own()
		c.Sandbox = filepath.Join(a.cfg.WorkDir, "containers", p.own())
		c.User = a.switchedUser(c.GetCommand().GetUser())
	} else { // its cgroup is the containerizer's to choose, below its parent's
		c.ParentId = p.up().id()
		c.Sandbox = filepath.Join(parent.sandbox, "containers", p.own())
		c.User = parent.user
		if u := c.GetCommand().GetUser(); u != "" {
			c.User = a.switchedUser(u)
		}
		if e := parent.executor; e != nil {
			c.FrameworkId, c.ExecutorId = string(e.framework.id), string(e.id)
		}
	}
	if session {
		// It sees what its parent sees, and has nothing of its own but its streams.
		c.Class, c.Sandbox, c.ContainerInfo = containerv1.Container_DEBUG, parent.sandbox, nil
		if c.Streams == containerv1.Container_FILES {
			c.Streams = containerv1.Container_ATTACHED
		}
	}
	c.SandboxInContainer = c.Sandbox
	if c.GetContainerInfo().GetMesos().GetImage() != nil {
		c.SandboxInContainer = a.cfg.SandboxDirectory
	}
	if !session {
		c.Environment = a.ownEnvironment(c)
		c.Environment["MESOS_SANDBOX"] = c.SandboxInContainer
	}
	return c
}

// terminalOf gives a container the terminal that its ContainerInfo asks for.
func terminalOf(c *containerv1.Container) {
	tty := c.GetContainerInfo().GetTtyInfo()
	if tty == nil {
		return
	}
	c.Streams = containerv1.Container_TERMINAL
	c.TerminalRows = tty.GetWindowSize().GetRows()
	c.TerminalColumns = tty.GetWindowSize().GetColumns()
}

// ownEnvironment is what a container gets of the agent's environment. Where it has files of its own, paths and languages
// of this machine mean nothing.
func (a *Agent) ownEnvironment(c *containerv1.Container) map[string]string {
	env := make(map[string]string, 20)
	if a.cfg.ExecutorEnvironment != nil {
		for k, v := range a.cfg.ExecutorEnvironment {
			env[k] = v
		}
		return env
	}
	env["PATH"] = defaultPath
	info := c.GetContainerInfo()
	if info.GetMesos().GetImage() != nil || info.GetDocker().GetImage() != "" {
		return env
	}
	for _, k := range inherited {
		if v, ok := os.LookupEnv(k); ok && v != "" {
			env[k] = v
		}
	}
	return env
}

// waitContainer answers WAIT_CONTAINER: it returns when the container has ended, also long after that until it is
// removed.
func (a *Agent) waitContainer(ctx context.Context, principal string, id *mesosv1.ContainerID) (*agentv1.Response_WaitContainer, error) {
	p, err := a.ask(ctx, principal, "WAIT_NESTED_CONTAINER", "WAIT_STANDALONE_CONTAINER", id)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	g, e := a.guests[p.id()], a.containers[p.root()]
	a.mu.Unlock()
	var end *containerTermination
	switch {
	case g != nil:
		select {
		case <-g.ended:
			end = g.end // written before ended was closed
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	case e != nil && e.running():
		end, err = a.ctzr.Wait(ctx, p.id())
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	if err != nil || end == nil {
		return nil, notFound(p)
	}
	r := &agentv1.Response_WaitContainer{ExitStatus: end.WaitStatus}
	s := &mesosv1.TaskStatus{}
	if decided(s, end) {
		r.State, r.Reason, r.Limitation = s.State, s.Reason, s.Limitation
	}
	if end.GetMessage() != "" {
		r.Message = new(end.GetMessage())
	}
	return r, nil
}

func notFound(p containerPath) error {
	return refuse(http.StatusNotFound, "Container %s cannot be found", p.id())
}

// maxSignal is the last signal that Linux has.
const maxSignal = 64

// killContainer answers KILL_CONTAINER: it sends a signal, SIGKILL if nil, to the container's first process. A container
// that is being launched is not launched.
func (a *Agent) killContainer(ctx context.Context, principal string, id *mesosv1.ContainerID, signal *int32) error {
	number := 9
	if signal != nil {
		number = int(*signal)
	}
	p, err := a.ask(ctx, principal, "KILL_NESTED_CONTAINER", "KILL_STANDALONE_CONTAINER", id)
	if err != nil {
		return err
	}
	if number < 1 || number > maxSignal {
		return refuse(http.StatusBadRequest, "Invalid signal %d: want 1 to %d", number, maxSignal)
	}
	if err := a.findRunning(p, true); err != nil {
		return err
	}
	a.mu.Lock()
	if g := a.guests[p.id()]; g != nil && !g.running() {
		if g.cancel != nil {
			g.cancel()
		}
		a.mu.Unlock()
		return nil
	}
	a.mu.Unlock()
	once, cancel := context.WithTimeout(ctx, signalTimeout)
	defer cancel()
	if err := a.ctzr.Signal(once, p.id(), number); err != nil {
		if a.findRunning(p, false) != nil {
			return notFound(p) // it ended meanwhile
		}
		return fmt.Errorf("kill container %s: %w", p.id(), err)
	}
	return nil
}

// findRunning says 404 unless a container runs, or with launching also when it is about to.
func (a *Agent) findRunning(p containerPath, launching bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if g := a.guests[p.id()]; g != nil {
		if g.running() || launching && !g.over() {
			return nil
		}
		return notFound(p)
	}
	e := a.containers[p.root()]
	if p.nested() {
		e = a.taskContainer(p)
	}
	if e == nil || !e.running() {
		return notFound(p)
	}
	return nil
}

// removeContainer answers REMOVE_CONTAINER: of a container that ended it removes the sandbox and all that is known of it.
// Of one that is not here nothing is left, which is what was asked for.
func (a *Agent) removeContainer(ctx context.Context, principal string, id *mesosv1.ContainerID) error {
	p, err := a.ask(ctx, principal, "REMOVE_NESTED_CONTAINER", "REMOVE_STANDALONE_CONTAINER", id)
	if err != nil {
		return err
	}
	a.mu.Lock()
	g, e, x := a.guests[p.id()], a.containers[p.root()], a.taskContainer(p)
	running := g != nil && !g.over() || x != nil && x.phase != phaseTerminated
	a.mu.Unlock()
	switch {
	case running:
		return refuse(http.StatusInternalServerError, "Failed to remove container %s: it has not terminated yet", p.id())
	case g == nil && e != nil && !p.nested():
		return refuse(http.StatusInternalServerError, "Failed to remove container %s: it belongs to an executor", p.id())
	case g == nil && x != nil:
		return refuse(http.StatusInternalServerError, "Failed to remove container %s: its end is still being reported", p.id())
	case g == nil && e != nil:
		return removeRemains(e.directory, p)
	case g == nil:
		return nil
	}
	if err := a.removeGuest(ctx, g); err != nil {
		return refuse(http.StatusInternalServerError, "Failed to remove container %s: %v", p.id(), err)
	}
	return nil
}

// removeRemains removes the sandbox of a nested container that nothing else is known of. It lies where the task could put
// links, and none is followed out of the task's own sandbox.
func removeRemains(sandbox string, p containerPath) error {
	root, err := os.OpenRoot(sandbox)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove container %s: %w", p.id(), err)
	}
	defer root.Close()
	if err := root.RemoveAll(sandboxBelow(".", p)); err != nil {
		return fmt.Errorf("remove container %s: %w", p.id(), err)
	}
	return nil
}
