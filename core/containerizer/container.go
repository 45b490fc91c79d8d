package containerizer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// container is one container in memory. The messages it points to are replaced, never changed, so that a checkpoint
// or a record made of them stays true while it is being written or sent.
type container struct {
	id     string
	debug  bool        // of class DEBUG: not stored (debug.go)
	docker *dockerWish // of type DOCKER; nil for others, and once found by load
	// Where the files of its volumes are that are images, by their number; for Launch alone.
	imageVolumes map[int]string
	// What its volumes are to hold that are secrets by reference, by their number; for Launch alone.
	secretVolumes map[int][]byte

	ended    chan struct{} // closed when termination is set
	launched chan struct{} // closed when no launch is under way
	gone     chan struct{} // closed when nothing is left and the id is free
	dropped  chan struct{} // closed by forget

	// changing holds one token: who has it may send mutating calls for this container to modules. Prepare and Isolate
	// need none, since before the launch is over nobody else has the container.
	changing chan struct{}

	saving  sync.Mutex // held while a checkpoint is written, so that they are written in order; guards the next three
	saved   uint64     // version last written
	stored  bool       // the store may hold a checkpoint: one was given to it, whatever it said
	deleted bool

	sharing sync.Mutex // held while memoryOf makes what is nested in it a place to share

	destroying sync.Mutex // held while the handle is destroyed; guards destroyed
	destroyed  bool

	mu            sync.Mutex // guards everything below
	version       uint64     // rises with each change that a checkpoint must hold
	spec          *containerv1.Container
	phase         containerv1.Checkpoint_Phase
	modules       []*containerv1.ModuleState
	launcherName  string
	launcherState []byte
	merged        *containerv1.Spec
	pid           int32
	ticks         uint64
	bootID        string
	cgroups       map[string]string
	termination   *containerv1.Termination
	handle        launcher.Handle
	why           *containerv1.Termination // first reason given to Destroy
	condemned     bool
	cancel        context.CancelCauseFunc // ends the launch under way
	reason        isolatorv1.CleanupRequest_Reason
	orphan        bool
	found         bool // by load, not launched by this containerizer
	held          bool // found with its intent: its command has never been started
	resumed       bool // Recover, or Launch, has taken it up
	lost          *launcher.GoneError
	skipped       map[string]bool   // optional modules whose Prepare failed
	cleanups      map[string]string // operation ids of cleanups whose outcome is unknown
	forgotten     bool
	early         *mesosv1.ContainerStatus // for the first Status after the launch, nil when that was
	streams       launcher.Streams         // opened before the start, for the first that reads; nil once it does
	readers       int                      // clients that read its streams
	drained       chan struct{}            // closed when readers came back to 0; nil before the first
}

func newContainer(spec *containerv1.Container) *container {
	ct := &container{
		id: spec.GetId(), debug: spec.GetClass() == containerv1.Container_DEBUG, spec: spec,
		ended: make(chan struct{}), launched: make(chan struct{}), gone: make(chan struct{}), dropped: make(chan struct{}),
		changing: make(chan struct{}, 1),
		phase:    containerv1.Checkpoint_PREPARING,
		reason:   isolatorv1.CleanupRequest_ENDED,
	}
	ct.changing <- struct{}{}
	return ct
}

// change applies f under the lock and notes that there is something to write.
func (ct *container) change(f func()) {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	f()
	ct.version++
}

// checkpoint is the container as it is to be kept.
func (ct *container) checkpoint() (*containerv1.Checkpoint, uint64) {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	return &containerv1.Checkpoint{
		Container: ct.spec, Phase: ct.phase, Modules: slices.Clone(ct.modules),
		Launcher: ct.launcherName, LauncherState: ct.launcherState, Spec: ct.merged,
		Pid: ct.pid, PidStartTicks: ct.ticks, BootId: ct.bootID, Cgroups: ct.cgroups, Termination: ct.termination,
	}, ct.version
}

// save makes the container's present state durable. Callers that find their change written by another return at once.
func (c *Containerizer) save(ctx context.Context, ct *container) error {
	ct.mu.Lock()
	want := ct.version
	ct.mu.Unlock()
	ct.saving.Lock()
	defer ct.saving.Unlock()
	if ct.debug || ct.deleted || ct.saved >= want && ct.saved > 0 {
		return nil
	}
	cp, version := ct.checkpoint()
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	ct.stored = true
	if err := c.cfg.Store.PutContainer(ctx, cp); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", ct.id, err)
	}
	ct.saved = version
	return nil
}

// running returns the handle of a container that was created and has not ended.
func (ct *container) running() launcher.Handle {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	if ct.phase == containerv1.Checkpoint_CREATED || ct.phase == containerv1.Checkpoint_RUNNING {
		return ct.handle
	}
	return nil
}

// takesNested says whether containers may be nested in it: it runs, and nobody has begun to end it.
func (ct *container) takesNested() bool {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	return !ct.condemned && ct.handle != nil && ct.phase == containerv1.Checkpoint_RUNNING
}

// condemn notes why the container is to end, ends a launch under way, and says whether it is the first to do so.
func (ct *container) condemn(why *containerv1.Termination) bool {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	first := !ct.condemned
	ct.condemned = true
	if ct.why == nil && why != nil && ct.phase != containerv1.Checkpoint_ENDED {
		ct.why = proto.CloneOf(why)
	}
	if ct.cancel != nil {
		ct.cancel(errDestroyed)
	}
	return first
}

// destroyHandle kills what is in the container. Once it succeeded it does nothing more.
func (ct *container) destroyHandle(ctx context.Context) error {
	ct.destroying.Lock()
	defer ct.destroying.Unlock()
	ct.mu.Lock()
	h := ct.handle
	ct.mu.Unlock()
	if ct.destroyed || h == nil {
		return nil
	}
	if err := h.Destroy(ctx); err != nil {
		return fmt.Errorf("kill its processes: %w", err)
	}
	ct.destroyed = true
	return nil
}

// forget closes dropped, once.
func (ct *container) forget() {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	if !ct.forgotten {
		ct.forgotten = true
		close(ct.dropped)
	}
}

func (ct *container) isForgotten() bool {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	return ct.forgotten
}

// record is what a module is told of the container. slim leaves out the command and its environment, which may hold
// secrets and are no business of calls that only measure.
func (ct *container) record(module string, slim bool) *isolatorv1.ContainerRecord {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	r := &isolatorv1.ContainerRecord{
		Container: ct.spec, Pid: ct.pid, Cgroups: ct.cgroups,
		Orphan: ct.orphan || ct.phase == containerv1.Checkpoint_ENDED,
	}
	if ct.phase == containerv1.Checkpoint_ENDED {
		r.Pid = 0 // may be someone else's by now
	}
	if slim {
		s := ct.spec
		r.Container = &containerv1.Container{
			Id: s.GetId(), ParentId: s.GetParentId(), Generation: s.GetGeneration(), Class: s.GetClass(),
			Standalone: s.GetStandalone(), FrameworkId: s.GetFrameworkId(), ExecutorId: s.GetExecutorId(),
			TaskId: s.GetTaskId(), AgentId: s.GetAgentId(), Resources: s.GetResources(), Limits: s.GetLimits(),
			User: s.GetUser(), Sandbox: s.GetSandbox(), Rootfs: s.GetRootfs(), Cgroup: s.GetCgroup(),
		}
	}
	for _, m := range ct.modules {
		if m.GetModule() == module {
			r.State, r.StateVersion = m.GetState(), m.GetStateVersion()
		}
	}
	return r
}

// setState replaces what the agent keeps for one module. Callers hold no lock.
func (ct *container) setState(module string, f func(*containerv1.ModuleState)) {
	ct.change(func() {
		ct.modules = slices.Clone(ct.modules)
		for n, m := range ct.modules {
			if m.GetModule() == module {
				next := proto.CloneOf(m)
				f(next)
				ct.modules[n] = next
			}
		}
	})
}

// takesPart says whether the container has been prepared by module and has not been cleaned up.
func (ct *container) takesPart(module string) bool {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	return !ct.skipped[module] && slices.ContainsFunc(ct.modules, func(m *containerv1.ModuleState) bool {
		return m.GetModule() == module && !m.GetClean()
	})
}

// claim takes the right to send mutating calls for the container; the caller gives it back by release.
func (ct *container) claim(ctx context.Context) error {
	select {
	case <-ct.changing:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (ct *container) release() { ct.changing <- struct{}{} }

// retries yields after waiting, first briefly and then longer and longer with some jitter, until life ends. Its first
// value comes after the first wait; each value is the wait that would follow.
func (c *Containerizer) retries() func(yield func(next time.Duration) bool) {
	return func(yield func(time.Duration) bool) {
		for wait := retryFirst; ; wait = min(2*wait, retryMost) {
			timer := time.NewTimer(wait/2 + rand.N(wait/2))
			select {
			case <-timer.C:
			case <-c.life.Done():
				timer.Stop()
				return
			}
			if !yield(min(2*wait, retryMost)) {
				return
			}
		}
	}
}
