package containerizer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// ErrRunning is returned by Remove for a container that has not ended.
var ErrRunning = errors.New("container has not ended")

// Known is a container that the containerizer answers for.
type Known struct {
	ID       string
	ParentID string // "" for a root container
	// Launched by an operator, without framework and executor.
	Standalone bool
	Class      containerv1.Container_Class
	// False once it has ended.
	Running     bool
	FrameworkID string // of the framework and executor that it belongs to, "" for none
	ExecutorID  string
}

// Containers lists the containers that run, and those that ended and have not been forgotten or removed, by id.
func (c *Containerizer) Containers() []Known {
	var list []Known
	for _, ct := range c.all() {
		ct.mu.Lock()
		s := ct.spec
		k := Known{
			ID: ct.id, ParentID: s.GetParentId(), Standalone: s.GetStandalone(), Class: s.GetClass(),
			Running: ct.phase != containerv1.Checkpoint_ENDED, FrameworkID: s.GetFrameworkId(), ExecutorID: s.GetExecutorId(),
		}
		hidden := ct.forgotten
		ct.mu.Unlock()
		if !hidden {
			list = append(list, k)
		}
	}
	slices.SortFunc(list, func(a, b Known) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Remove takes away what is left of a nested or standalone container that ended: its record, what is kept of it in the
// run directory, and its sandbox. It returns when they are gone; that of an unknown container succeeds.
//
// Errors: ErrRunning, also while it is being launched. ctx ended first, mostly because a module's cleanup is owed: what
// a sandbox holds is not touched before that. Remove may be repeated.
func (c *Containerizer) Remove(ctx context.Context, id string) error {
	if err := c.remove(ctx, id); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	return nil
}

func (c *Containerizer) remove(ctx context.Context, id string) error {
	ct, err := c.find(id)
	if err != nil {
		return nil
	}
	ct.mu.Lock()
	spec, phase := ct.spec, ct.phase
	ct.mu.Unlock()
	if spec.GetParentId() == "" && !spec.GetStandalone() {
		return errors.New("it is neither nested nor standalone; it goes with its executor")
	}
	if phase != containerv1.Checkpoint_ENDED {
		return ErrRunning
	}
	ct.forget()
	select {
	case <-ct.gone:
	case <-ctx.Done():
		return fmt.Errorf("its cleanup is not done: %w", ctx.Err())
	}
	if !c.hasOwnSandbox(spec) {
		return nil
	}
	outer, name, err := c.openOuter(spec)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil // its root went meanwhile; what becomes of the whole sandbox is the agent's business
	case err != nil:
		return err
	case outer == nil:
		return os.RemoveAll(spec.GetSandbox())
	}
	defer outer.Close()
	return outer.RemoveAll(name)
}

// hasOwnSandbox says whether a container's sandbox is nobody else's. That of a debug container is its parent's.
func (c *Containerizer) hasOwnSandbox(spec *containerv1.Container) bool {
	if spec.GetClass() == containerv1.Container_DEBUG {
		return false
	}
	for _, other := range c.all() {
		other.mu.Lock()
		theirs := other.spec.GetSandbox()
		other.mu.Unlock()
		if theirs == spec.GetSandbox() || strings.HasPrefix(theirs, spec.GetSandbox()+string(filepath.Separator)) {
			return false
		}
	}
	return true
}
