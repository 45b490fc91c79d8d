package containerizer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Helpers are processes that a module wants to run as long as a container does: daemons that serve a file system of an
// isolator's, readers of a container logger's pipes. They belong neither to the module nor to the container: each has a
// shim and a cgroup of its own, so that it outlives module and agent, and the task's limits do not strike it.
//
// Those of isolators run before the container is made, which may mount what they serve. An isolator that must know that
// its own is ready waits for that in Isolate. Those of the logger run before the command does.
//
// One that ends is started again, if it is to be, as long as the container lives; else the container fails with it. Only
// the reader of a pipe may end well before that, when it has seen the end of what it reads. When the container ended,
// readers may finish reading, and all others are asked to end; then they are killed. What modules clean up comes after.
//
// What is needed to find them again is in files of the run directory, RunDir/h/<container>/<number>: it is lost with the
// machine, as they are.

const (
	// helperPatience is how long a helper may take to end when its container is gone.
	helperPatience = 5 * time.Second
	// helperSettled is how long a helper must have run for its next start to be at once.
	helperSettled = time.Minute
)

// logging is what a containerizer keeps of loggers and helpers.
type logging struct {
	mu      sync.Mutex
	logger  ContainerLogger      // guarded by mu
	helpers map[string][]*helper // guarded by mu; by container, of those that were taken up
}

// helperRecord is what a helper is started and found again by.
type helperRecord struct {
	Container   string            `json:"container"`
	Module      string            `json:"module"` // as errors name it
	Name        string            `json:"name"`
	Argv        []string          `json:"argv"`
	Environment map[string]string `json:"environment,omitempty"`
	Restart     bool              `json:"restart,omitempty"`
	Stdin       string            `json:"stdin,omitempty"`
	Launcher    string            `json:"launcher,omitempty"`
	State       []byte            `json:"state,omitempty"` // the launcher's
}

type helper struct {
	c   *Containerizer
	n   int
	dir string // RunDir/h/<container>
	rec helperRecord

	over chan struct{} // closed when its container is gone
	done chan struct{} // closed when it is not kept any more; nil before its first start

	mu     sync.Mutex
	handle launcher.Handle // guarded by mu; nil between two
}

func (c *Containerizer) helperDir(id string) string {
	return filepath.Join(c.cfg.RunDir, "h", shortName(id))
}

// newHelpers are those that a module asks for, numbered from first.
func (c *Containerizer) newHelpers(id, module string, first int, asked []*containerv1.Helper) []*helper {
	var list []*helper
	for n, s := range asked {
		list = append(list, &helper{
			c: c, n: first + n, dir: c.helperDir(id), over: make(chan struct{}),
			rec: helperRecord{
				Container: id, Module: module, Name: s.GetName(), Argv: s.GetArgv(), Environment: s.GetEnvironment(), Restart: s.GetRestart(),
			},
		})
	}
	return list
}

// helpersOf are those that isolators ask for.
func (c *Containerizer) helpersOf(id string, answers []answer) []*helper {
	var list []*helper
	for _, a := range answers {
		list = append(list, c.newHelpers(id, "isolator("+a.module+")", len(list), a.helpers)...)
	}
	return list
}

func (h *helper) file(suffix string) string { return filepath.Join(h.dir, strconv.Itoa(h.n)+suffix) }
func (h *helper) pipe() string              { return h.file(".pipe") }
func (h *helper) runDir() string            { return h.file(".run") }

// container is the helper as launchers see it.
func (h *helper) container() *containerv1.Container {
	name := fmt.Sprintf("%s.h%d", shortName(h.rec.Container), h.n)
	return &containerv1.Container{Id: name, Cgroup: path.Join(h.c.cfg.CgroupRoot, name)}
}

// startHelpers starts helpers of a container that is being launched.
func (c *Containerizer) startHelpers(ctx context.Context, ct *container, list []*helper) error {
	if len(list) == 0 {
		return nil
	}
	c.logging.mu.Lock()
	c.logging.helpers[ct.id] = append(c.logging.helpers[ct.id], list...)
	c.logging.mu.Unlock()
	for _, h := range list {
		if err := h.start(ctx); err != nil {
			return fmt.Errorf("%s: helper %s: %w", h.rec.Module, h.rec.Name, err)
		}
		h.done = make(chan struct{})
		c.wg.Go(h.keep)
	}
	return nil
}

// start makes the process and lets it go, when what finds it again is written.
func (h *helper) start(ctx context.Context) error {
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return err
	}
	env := map[string]string{"PATH": defaultPath}
	maps.Copy(env, h.rec.Environment)
	r := &launcher.Request{
		Container: h.container(), Proposal: &containerv1.Proposal{}, Argv: h.rec.Argv, Dir: "/",
		User:  launcher.User{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())},
		Stdin: h.rec.Stdin, Stderr: h.file(".err"), StderrRotation: launcher.Rotation{Size: 16 << 10, Keep: 1},
		RunDir: h.runDir(),
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		r.Env = append(r.Env, name+"="+env[name])
	}
	chosen, err := h.c.choose(r)
	if err != nil {
		return err
	}
	handle, err := create(ctx, chosen, r)
	if err != nil {
		return err
	}
	h.rec.Launcher, h.rec.State = chosen.Name(), handle.State()
	h.mu.Lock()
	h.handle = handle
	h.mu.Unlock()
	if err := h.write(); err == nil {
		if err = start(ctx, handle); err == nil {
			return nil
		}
		return errors.Join(err, h.destroy(ctx))
	}
	return errors.Join(err, h.destroy(ctx))
}

func (h *helper) write() error {
	b, err := json.Marshal(h.rec)
	if err != nil {
		return err
	}
	if err := os.WriteFile(h.file(".new"), b, 0o600); err != nil {
		return err
	}
	return os.Rename(h.file(".new"), h.file(".json"))
}

func (h *helper) destroy(ctx context.Context) error {
	h.mu.Lock()
	handle := h.handle
	h.mu.Unlock()
	if handle == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTimeout)
	defer cancel()
	if err := handle.Destroy(ctx); err != nil {
		return err
	}
	h.mu.Lock()
	if h.handle == handle {
		h.handle = nil
	}
	h.mu.Unlock()
	return nil
}

// discard takes down what an agent left that died while it made the process.
func (h *helper) discard(ctx context.Context) error {
	for _, l := range h.c.cfg.Launchers {
		if d, ok := l.(discarder); ok {
			if err := d.Discard(ctx, h.container(), h.runDir()); err != nil {
				return err // the launcher names itself
			}
		}
	}
	return nil
}

// keep watches the helper, and starts it again, until it ended well, its container is gone, or the containerizer is
// closed, which leaves it running.
func (h *helper) keep() {
	defer close(h.done)
	c, wait := h.c, retryFirst
	for {
		began := time.Now()
		h.mu.Lock()
		handle := h.handle
		h.mu.Unlock()
		why := errors.New("it is gone")
		if handle != nil {
			code, known, err := handle.Wait(c.life)
			if c.life.Err() != nil {
				return
			}
			why = errors.Join(fmt.Errorf("it ended with wait status %#x", code), err, h.destroy(c.life))
			if known && code == 0 && h.rec.Stdin != "" && h.current() == nil {
				return // it read to the end
			}
		}
		if h.isOver() {
			return
		}
		if !h.rec.Restart {
			h.failContainer(why)
			return
		}
		if time.Since(began) > helperSettled {
			wait = retryFirst
		}
		c.log.Warn("helper of a container is started again", "container", h.rec.Container, "helper", h.rec.Name, "error", why, "after", wait)
		if !h.sleep(wait) {
			return
		}
		wait = min(2*wait, retryMost)
		if h.current() != nil {
			continue // still not taken down
		}
		// Not cut off by Close in the middle, which would end a helper that is to go on.
		if err := h.start(context.WithoutCancel(c.life)); err != nil && c.life.Err() == nil {
			c.log.Warn("helper of a container cannot be started", "container", h.rec.Container, "helper", h.rec.Name, "error", err)
		}
	}
}

func (h *helper) current() launcher.Handle {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.handle
}

func (h *helper) isOver() bool {
	select {
	case <-h.over:
		return true
	default:
		return false
	}
}

// sleep waits, and says false when there is nothing more to wait for.
func (h *helper) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-h.over:
	case <-h.c.life.Done():
	}
	return false
}

// failContainer ends the container whose helper is gone and is not to be started again.
func (h *helper) failContainer(why error) {
	c := h.c
	ctx, cancel := context.WithTimeout(c.life, destroyTimeout)
	defer cancel()
	err := c.Destroy(ctx, h.rec.Container, &containerv1.Termination{
		State:   mesosv1.TaskState_TASK_FAILED.String(),
		Message: fmt.Sprintf("%s: helper %s: %v", h.rec.Module, h.rec.Name, why),
	})
	if err != nil && !errors.Is(err, ErrNotFound) && c.life.Err() == nil {
		c.log.Warn("destroy a container whose helper is gone", "container", h.rec.Container, "error", err)
	}
}

// takeUpHelpers finds the helpers of a container that was found, once, and watches them again. over says that the
// container is gone, and nothing is to be started for it any more.
func (c *Containerizer) takeUpHelpers(ctx context.Context, id string, over bool) {
	dir := c.helperDir(id)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // it has none
	}
	c.logging.mu.Lock()
	_, taken := c.logging.helpers[id]
	if !taken {
		c.logging.helpers[id] = nil
	}
	c.logging.mu.Unlock()
	if taken {
		return
	}
	var list []*helper
	for _, e := range entries {
		number, suffix, _ := strings.Cut(e.Name(), ".")
		n, err := strconv.Atoi(number)
		if suffix != "json" && suffix != "run" || err != nil {
			continue
		}
		h := &helper{c: c, n: n, dir: dir, over: make(chan struct{})}
		h.rec.Container = id
		b, err := os.ReadFile(h.file(".json"))
		if suffix == "run" {
			if errors.Is(err, os.ErrNotExist) { // the agent died while it was being made for the first time
				if err := h.discard(ctx); err != nil {
					c.log.Warn("remains of a helper stay", "container", id, "error", err)
				}
			}
			continue
		}
		if err == nil {
			err = json.Unmarshal(b, &h.rec)
		}
		if err != nil {
			c.log.Warn("helper of a container cannot be read", "container", id, "error", err)
			continue
		}
		if i := slices.IndexFunc(c.cfg.Launchers, func(l launcher.Launcher) bool { return l.Name() == h.rec.Launcher }); i >= 0 {
			step, cancel := context.WithTimeout(ctx, destroyTimeout)
			handle, err := c.cfg.Launchers[i].Reattach(step, h.rec.State)
			cancel()
			switch {
			case err == nil:
				h.handle = handle
			case errors.Is(err, launcher.ErrGone):
				err = h.discard(ctx) // of one that was being made anew
			}
			if err != nil {
				c.log.Warn("helper of a container cannot be found again", "container", id, "error", err)
			}
		}
		list = append(list, h)
	}
	c.logging.mu.Lock()
	c.logging.helpers[id] = list
	c.logging.mu.Unlock()
	for _, h := range list {
		h.done = make(chan struct{})
		if over {
			close(h.over)
		}
		if handle := h.current(); handle != nil && !over {
			// It may have been made and not been let go.
			if err := start(ctx, handle); err != nil && !errors.Is(err, launcher.ErrEnded) {
				c.log.Warn("helper of a container cannot be started", "container", id, "error", err)
			}
		}
		c.wg.Go(h.keep)
	}
}

// endHelpers ends the helpers of a container that is gone, after a while in which they may read what it left, and takes
// away all that is kept of them.
func (c *Containerizer) endHelpers(ctx context.Context, id string) error {
	c.takeUpHelpers(ctx, id, true)
	c.logging.mu.Lock()
	list, any := c.logging.helpers[id]
	c.logging.mu.Unlock()
	if !any {
		return nil
	}
	timer := time.NewTimer(helperPatience)
	defer timer.Stop()
	patient := true
	var errs []error
	for _, h := range list {
		if !h.isOver() {
			close(h.over)
		}
		if handle := h.current(); handle != nil && h.rec.Stdin == "" {
			// Whether it heard that, and what it makes of it, is seen by waiting for its end.
			_ = handle.Signal(ctx, syscall.SIGTERM)
		}
	}
	for _, h := range list {
		if h.done != nil && patient {
			select {
			case <-h.done:
			case <-timer.C:
				patient = false
			case <-ctx.Done():
				patient = false
			}
		}
		if err := h.destroy(ctx); err != nil {
			errs = append(errs, fmt.Errorf("end helper %s: %w", h.rec.Name, err))
			continue
		}
		if h.done != nil {
			<-h.done // it ends at the latest with its process
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(c.helperDir(id)); err != nil {
		return fmt.Errorf("remove what is kept of helpers: %w", err)
	}
	c.logging.mu.Lock()
	delete(c.logging.helpers, id)
	c.logging.mu.Unlock()
	return nil
}

// endStrayHelpers ends helpers of containers that are not there any more.
func (c *Containerizer) endStrayHelpers(ctx context.Context) {
	root := filepath.Join(c.cfg.RunDir, "h")
	dirs, err := os.ReadDir(root)
	if err != nil {
		return // none was ever made
	}
	known := map[string]bool{}
	for _, ct := range c.all() {
		known[shortName(ct.id)] = true
	}
	for _, d := range dirs {
		if known[d.Name()] {
			continue
		}
		// A short name is its own short name, so that it may stand for the id.
		if err := c.endHelpers(ctx, d.Name()); err != nil {
			c.log.Warn("helpers of a container that is gone stay", "error", err)
		}
	}
}
