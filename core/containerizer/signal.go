package containerizer

import (
	"context"
	"fmt"
	"syscall"
)

// Signal sends sig to the process group of the container's first process. What a signal would do to any other process it
// does to the first of a pid namespace as well: see supervise.
func (c *Containerizer) Signal(ctx context.Context, id string, sig int) error {
	ct, err := c.find(id)
	if err != nil {
		return err
	}
	h := ct.running()
	if h == nil {
		return fmt.Errorf("signal container %s: %w", id, ErrNotRunning)
	}
	ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	if err := h.Signal(ctx, syscall.Signal(sig)); err != nil {
		return fmt.Errorf("signal container %s: %w", id, err)
	}
	return nil
}
