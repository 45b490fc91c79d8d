package containerizer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// errDestroyed is the cause of a launch's end when Destroy came in between.
var errDestroyed = errors.New("destroyed during its launch")

// Launch makes a container and returns the pid of its first process once its command is being executed.
//
// The caller has written the id down durably and names it to Recover until the container is forgotten. That is why
// one durable write of ours is enough: before the first Prepare only an unsynced intent is written, which survives
// the agent's death; a power cut, which it may not survive, takes every process, mount and cgroup with it, and what a
// module left on a disk is cleaned up by the id that the caller still knows.
//
// On error everything is undone, last step first, what cannot be undone at once is owed, and the error names the
// module or the launcher. The container is forgotten; its id can be used again when nothing of it is left.
func (c *Containerizer) Launch(ctx context.Context, want *containerv1.Container) (pid int32, err error) {
	ct, ctx, err := c.admit(ctx, want)
	if err != nil {
		return 0, fmt.Errorf("launch container %s: %w", want.GetId(), err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("launch container %s: %w", ct.id, c.abandon(ctx, ct, err))
		}
		close(ct.launched)
	}()

	if ct.debug {
		return c.launchDebug(ctx, ct)
	}
	isolators := c.isolators().forContainer(ct.spec)
	if err := c.intend(ct, isolators); err != nil {
		return 0, err
	}
	who, err := c.furnish(ctx, ct)
	if err != nil {
		return 0, err
	}
	if err := c.resolveSecrets(ctx, ct); err != nil {
		return 0, err
	}
	output := c.askLogger(ctx, ct)
	answers, err := c.prepare(ctx, ct, isolators)
	if err != nil {
		return 0, err
	}
	if ct.docker != nil {
		own, err := ct.docker.answer(ct.spec, c.cfg.Init)
		if err != nil {
			return 0, err
		}
		answers = append([]answer{own}, answers...)
	}
	spec, err := merge(answers)
	if err != nil {
		return 0, err
	}
	if ct.docker != nil {
		ct.docker.settle(ct.spec, who, spec)
	}
	parent, err := c.parent(ct)
	if err != nil {
		return 0, err
	}
	if err := c.showSandboxPaths(ct, parent, spec); err != nil {
		return 0, err
	}
	if parent != nil {
		inside, err := c.inside(parent)
		defer inside.close()
		if err != nil {
			return 0, fmt.Errorf("parent: %w", err)
		}
		if err := c.nest(ct, parent, inside, spec); err != nil {
			return 0, err
		}
	}
	if err := addOwnMounts(ct.spec, parent, spec); err != nil {
		return 0, err
	}
	if ct.docker != nil {
		if err := c.giveNames(ct, spec); err != nil {
			return 0, err
		}
	}
	if err := c.showImages(ct, spec); err != nil {
		return 0, err
	}
	if err := unmet(ct.spec, spec); err != nil {
		return 0, err
	}
	if err := c.validate(ctx, ct, isolators, spec); err != nil {
		return 0, err
	}
	request, err := c.request(ctx, ct.spec, spec.GetMerged(), who)
	if err != nil {
		return 0, err
	}
	if ct.docker != nil {
		request.ReadOnly, request.Privileged = ct.docker.readOnly, ct.docker.privileged
	}
	if parent != nil {
		parent.mu.Lock()
		request.Within = parent.spec.GetCgroup()
		parent.mu.Unlock()
		request.Beside = c.rootHandle(ct)
		sandbox, err := c.openSandboxDir(ct.spec)
		if err != nil {
			return 0, fmt.Errorf("open sandbox: %w", err)
		}
		defer sandbox.Close()
		request.Stdout, request.Stderr = logsOf(sandbox)
	}
	served := c.helpersOf(ct.id, answers)
	answer, err := output()
	if err != nil {
		return 0, err
	}
	helpers, err := c.direct(ct, request, answer, len(served))
	if err != nil {
		return 0, err
	}
	chosen, err := c.choose(request)
	if err != nil {
		return 0, err
	}
	if err := c.startHelpers(ctx, ct, served); err != nil {
		return 0, err
	}
	handle, err := create(ctx, chosen, request)
	if err != nil {
		return 0, err // the launcher names itself
	}
	c.created(ct, chosen, handle, spec)

	// The process is held. Its checkpoint is being written while the isolators look at it; it goes when both are done.
	both, step := errgroup.WithContext(ctx)
	both.Go(func() error { return c.save(step, ct) })
	both.Go(func() error { return c.isolate(step, ct, isolators) })
	both.Go(func() error { return c.startHelpers(step, ct, helpers) })
	if err := both.Wait(); err != nil {
		return 0, err
	}
	// From here on the command may have run: without its intent a container found CREATED is not launched anew.
	if err := c.dropIntent(ct.id); err != nil {
		return 0, err
	}
	// The caller's first question, asked while the command is being started.
	early := make(chan struct{})
	c.wg.Go(func() {
		defer close(early)
		c.describe(ctx, ct)
	})
	err = start(ctx, handle)
	<-early
	if err != nil {
		return 0, fmt.Errorf("launcher(%s): %w", chosen.Name(), err)
	}
	if err := c.runs(ct); err != nil {
		return 0, err
	}
	return int32(handle.Pid()), nil
}

// admit checks what can be checked by looking and takes the id. If something of an earlier container of that id is
// still left, it waits until it is gone: nothing is started a second time beside its first start.
func (c *Containerizer) admit(ctx context.Context, want *containerv1.Container) (*container, context.Context, error) {
	if err := checkContainer(want); err != nil {
		return nil, nil, err
	}
	want = proto.CloneOf(want)
	attachable(want)
	docker, err := asDocker(want, c.cfg.Docker, thisMachine())
	if err != nil {
		return nil, nil, err
	}
	ct := newContainer(want)
	ct.docker = docker
	if docker != nil && len(docker.unheeded) > 0 {
		c.log.Info("parameters of a container mean nothing here", "container", ct.id, "parameters", docker.unheeded)
	}
	ct.bootID, ct.resumed = c.cfg.BootID, true
	ct.reason = isolatorv1.CleanupRequest_LAUNCH_FAILED
	ctx, ct.cancel = context.WithCancelCause(ctx)
	if ct.spec.Created == nil {
		ct.spec.Created = timestampNow()
	}
	for {
		c.mu.Lock()
		old := c.containers[ct.id]
		if old == nil {
			if parent := want.GetParentId(); parent != "" {
				p := c.containers[parent]
				if p == nil || !p.takesNested() {
					c.mu.Unlock()
					ct.cancel(nil)
					return nil, nil, fmt.Errorf("parent %s: %w", parent, ErrNotRunning)
				}
				p.mu.Lock()
				outer := p.spec
				p.mu.Unlock()
				if p.debug {
					c.mu.Unlock()
					ct.cancel(nil)
					return nil, nil, fmt.Errorf("parent %s: nothing is nested in a debug container", parent)
				}
				placeIn(ct.spec, outer)
			}
			c.containers[ct.id] = ct
			c.mu.Unlock()
			return ct, ctx, nil
		}
		c.mu.Unlock()
		old.mu.Lock()
		leaving := old.forgotten
		old.mu.Unlock()
		if !leaving {
			ct.cancel(nil)
			return nil, nil, ErrExists
		}
		select {
		case <-old.gone:
		case <-ctx.Done():
			err := fmt.Errorf("an earlier container of this id is not cleaned up: %w", context.Cause(ctx))
			ct.cancel(nil)
			return nil, nil, err
		}
	}
}

// maxID is the longest container id that Mesos takes.
const maxID = 242

func checkContainer(want *containerv1.Container) error {
	id := want.GetId()
	own := id
	if want.GetStandalone() && (want.GetParentId() != "" || want.GetFrameworkId() != "" || want.GetExecutorId() != "") {
		return errors.New("a standalone container has neither parent nor framework nor executor")
	}
	if parent := want.GetParentId(); parent != "" {
		if !strings.HasPrefix(id, parent+".") {
			return fmt.Errorf("id %q: want parent %q and a dot before it", id, parent)
		}
		own = strings.TrimPrefix(id, parent+".")
	}
	switch {
	case own == "" || len(id) > maxID || strings.ContainsAny(own, "./ \t\n\x00"):
		return fmt.Errorf("id %q: want 1 to %d characters without dot, slash or space", id, maxID)
	case want.GetCommand() == nil:
		return errors.New("no command")
	case !filepath.IsAbs(want.GetSandbox()) || filepath.Clean(want.GetSandbox()) != want.GetSandbox():
		return fmt.Errorf("sandbox %q: want an absolute, clean path", want.GetSandbox())
	case want.GetParentId() == "" && want.GetCgroup() != "" && !filepath.IsLocal(want.GetCgroup()):
		return fmt.Errorf("cgroup %q: want a path below the containers' root", want.GetCgroup())
	}
	if max(want.GetTerminalRows(), want.GetTerminalColumns()) > math.MaxUint16 {
		return fmt.Errorf("terminal: got %d rows and %d columns", want.GetTerminalRows(), want.GetTerminalColumns())
	}
	return checkDebug(want)
}

// attachable gives a container that asks for a terminal in Mesos's words what those mean here.
func attachable(want *containerv1.Container) {
	tty := want.GetContainerInfo().GetTtyInfo()
	if tty == nil {
		return
	}
	want.Streams = containerv1.Container_TERMINAL
	if size := tty.GetWindowSize(); size != nil && want.GetTerminalRows() == 0 && want.GetTerminalColumns() == 0 {
		want.TerminalRows, want.TerminalColumns = size.GetRows(), size.GetColumns()
	}
}

// choose returns the first launcher that can apply everything. There is no second best: a container is not run with
// less isolation than was merged.
func (c *Containerizer) choose(r *launcher.Request) (launcher.Launcher, error) {
	var reasons []string
	for _, l := range c.cfg.Launchers {
		err := l.Supports(r)
		if err == nil {
			return l, nil
		}
		reasons = append(reasons, fmt.Sprintf("launcher(%s): %v", l.Name(), err))
	}
	return nil, fmt.Errorf("no launcher can apply it: %s", strings.Join(reasons, "; "))
}

func create(ctx context.Context, l launcher.Launcher, r *launcher.Request) (launcher.Handle, error) {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	return l.Create(ctx, r)
}

func start(ctx context.Context, h launcher.Handle) error {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	return h.Start(ctx)
}

// created notes what a launcher made.
func (c *Containerizer) created(ct *container, l launcher.Launcher, h launcher.Handle, spec *containerv1.Spec) {
	ct.change(func() {
		ct.phase = containerv1.Checkpoint_CREATED
		ct.launcherName, ct.launcherState = l.Name(), h.State()
		ct.handle, ct.merged = h, spec
		ct.pid, ct.ticks, ct.cgroups = int32(h.Pid()), h.StartTicks(), h.Cgroups()
	})
}

// runs marks the container as running and begins to watch it. That is not worth a write of its own: a container found
// CREATED and without intent after a crash is started again, which changes nothing for one that runs.
func (c *Containerizer) runs(ct *container) error {
	ct.mu.Lock()
	if ct.condemned {
		ct.mu.Unlock()
		return errDestroyed
	}
	ct.phase = containerv1.Checkpoint_RUNNING
	ct.reason = isolatorv1.CleanupRequest_ENDED
	ct.cancel(nil)
	ct.cancel = nil
	ct.mu.Unlock()
	c.wg.Go(func() { c.watch(ct) })
	return nil
}

// abandon undoes a failed launch, as far as that can be done now, and returns the error to give: cause, or that the
// container was destroyed meanwhile.
func (c *Containerizer) abandon(ctx context.Context, ct *container, cause error) error {
	unwanted := errors.Is(ctx.Err(), context.Canceled) // by Destroy, or by the caller
	if errors.Is(context.Cause(ctx), errDestroyed) {
		cause = errDestroyed
	}
	end := &containerv1.Termination{
		State: mesosv1.TaskState_TASK_FAILED.String(), Reason: mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED.String(),
		Message: cause.Error(), Time: timestampNow(),
	}
	ct.change(func() {
		ct.cancel(nil)
		ct.cancel = nil
		ct.reason = isolatorv1.CleanupRequest_LAUNCH_FAILED
	})
	ct.forget()
	kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTimeout)
	if err := c.fence(kill, ct); err != nil {
		c.log.Warn("remains of a failed launch cannot be removed yet", "container", ct.id, "error", err)
	}
	cancel()
	undone := make(chan struct{})
	c.wg.Go(func() {
		owed := c.dismantle(c.life, ct)
		close(undone)
		<-ct.ended
		c.settle(ct, owed)
	})
	patience := undoPatience
	if unwanted {
		patience = killPatience
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-undone:
	case <-timer.C:
	}
	ct.mu.Lock()
	adopt(end, ct.why)
	ct.mu.Unlock()
	c.finish(ct, end)
	return cause
}

// undoPatience bounds how long a failed launch keeps its caller once none of its processes is left. Cleanups that are
// not done by then go on in the background, and the id stays taken until they are.
const undoPatience = 2 * time.Second

// killPatience is the same for a launch that somebody ended: often because of the very module whose cleanup would be
// waited for.
const killPatience = 100 * time.Millisecond
