package supervised

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// Attach implements launcher.Attacher.
func (h *Handle) Attach(ctx context.Context) (launcher.Streams, error) {
	a, err := h.attach(ctx)
	if err != nil {
		return nil, fmt.Errorf("attach to container %s: %w", h.rec.ID, err)
	}
	return a, nil
}

func (h *Handle) attach(ctx context.Context) (*attachment, error) {
	if h.rec.Streams == wire.StreamsFiles {
		return nil, launcher.ErrNotAttached
	}
	if a := h.attachRest(); a != nil {
		return a, nil
	}
	if h.shim() == nil {
		return nil, fmt.Errorf("its shim is lost: %w", launcher.ErrGone)
	}
	st, err := shim.Attach(ctx, h.rec.RunDir)
	if err != nil {
		if a := h.attachRest(); a != nil { // destroyed meanwhile
			return a, nil
		}
		if errors.Is(err, shim.ErrLost) {
			err = fmt.Errorf("%w: %w", launcher.ErrGone, err)
		}
		return nil, err
	}
	a := &attachment{h: h, st: st}
	h.mu.Lock()
	drained := h.drained
	if !drained {
		if h.attached == nil {
			h.attached = map[*attachment]struct{}{}
		}
		h.attached[a] = struct{}{}
	}
	h.mu.Unlock()
	if drained {
		_ = st.Close()
		return h.attachRest(), nil
	}
	return a, nil
}

// attachRest gives what is left of the output of a container that was destroyed, nil when it was not.
func (h *Handle) attachRest() *attachment {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.drained {
		return nil
	}
	a := &attachment{h: h, queue: h.rest, end: io.EOF}
	h.rest = nil
	return a
}

// drainTimeout bounds the fetching of output at the end, which takes milliseconds: the processes are gone.
const drainTimeout = 5 * time.Second

// drain fetches what the shim still has of the output before the shim forgets it, for those who read and, if nobody
// does, for the next who attaches. It is a few hundred KiB for each at most. What cannot be fetched is lost, and holds up
// nothing.
func (h *Handle) drain(ctx context.Context) {
	if h.rec.Streams == wire.StreamsFiles {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	h.mu.Lock()
	done := h.drained
	h.drained = true
	var all []*attachment
	for a := range h.attached {
		all = append(all, a)
	}
	h.mu.Unlock()
	if done {
		return
	}
	if len(all) == 0 && h.shim() != nil {
		st, err := shim.Attach(ctx, h.rec.RunDir)
		if err != nil {
			return
		}
		a := &attachment{h: h, st: st}
		a.drain(ctx)
		_ = st.Close()
		h.mu.Lock()
		h.rest = a.queue
		h.mu.Unlock()
		return
	}
	var wg sync.WaitGroup
	for _, a := range all {
		wg.Go(func() { a.drain(ctx) })
	}
	wg.Wait()
}

// An attachment is one client's streams. It implements launcher.Streams.
type attachment struct {
	h  *Handle
	st *shim.Stream // nil when only the rest is given

	reading sync.Mutex // held by Read and drain
	queue   []launcher.Chunk
	end     error // what follows queue, nil for the stream
}

// Read implements launcher.Streams.
func (a *attachment) Read() (launcher.Chunk, error) {
	a.reading.Lock()
	defer a.reading.Unlock()
	if len(a.queue) > 0 {
		c := a.queue[0]
		a.queue = a.queue[1:]
		return c, nil
	}
	if a.end != nil {
		return launcher.Chunk{}, a.end
	}
	return a.next()
}

func (a *attachment) next() (launcher.Chunk, error) {
	data, stderr, err := a.st.Read()
	switch {
	case err == nil:
		return launcher.Chunk{Stderr: stderr, Data: data}, nil
	case errors.Is(err, shim.ErrLost):
		err = fmt.Errorf("%w: %w", launcher.ErrGone, err)
	case errors.Is(err, shim.ErrSlow):
		err = launcher.ErrSlow
	}
	a.end = err
	return launcher.Chunk{}, err
}

// drain reads everything that is left into memory.
func (a *attachment) drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = a.st.Close() })
	defer stop()
	for {
		a.reading.Lock()
		if a.end == nil {
			if c, err := a.next(); err == nil {
				a.queue = append(a.queue, c)
			}
		}
		done := a.end != nil
		a.reading.Unlock()
		if done {
			return
		}
	}
}

// Write implements launcher.Streams.
func (a *attachment) Write(p []byte) error {
	if a.ended() {
		return launcher.ErrEnded
	}
	return a.input(a.st.Write(p))
}

// CloseWrite implements launcher.Streams.
func (a *attachment) CloseWrite() error {
	if a.ended() {
		return nil
	}
	return a.input(a.st.CloseWrite())
}

// ended says whether nobody is left to take input.
func (a *attachment) ended() bool {
	client := a.h.shim()
	if a.st == nil || client == nil {
		return true
	}
	select {
	case <-client.Exited():
		return true
	default:
		return false
	}
}

// input says what an error of writing means.
func (a *attachment) input(err error) error {
	if errors.Is(err, shim.ErrLost) {
		return fmt.Errorf("%w: %w", launcher.ErrEnded, err)
	}
	return err
}

// resizeTimeout bounds the answer of the shim.
const resizeTimeout = 10 * time.Second

// Resize implements launcher.Streams.
func (a *attachment) Resize(rows, columns uint16) error {
	client := a.h.shim()
	if client == nil {
		return fmt.Errorf("resize terminal of container %s: %w", a.h.rec.ID, launcher.ErrEnded)
	}
	ctx, cancel := context.WithTimeout(context.Background(), resizeTimeout)
	defer cancel()
	err := client.Resize(ctx, rows, columns)
	if errors.Is(err, shim.ErrLost) {
		err = fmt.Errorf("%w: %w", launcher.ErrEnded, err)
	}
	if errors.Is(err, syscall.ENOTTY) {
		err = fmt.Errorf("%w: %w", launcher.ErrNotAttached, err)
	}
	if err != nil {
		return fmt.Errorf("resize terminal of container %s: %w", a.h.rec.ID, err)
	}
	return nil
}

// Close implements launcher.Streams.
func (a *attachment) Close() error {
	a.h.mu.Lock()
	delete(a.h.attached, a)
	a.h.mu.Unlock()
	if a.st == nil {
		return nil
	}
	return a.st.Close()
}

var (
	_ launcher.Attacher = (*Handle)(nil)
	_ launcher.Streams  = (*attachment)(nil)
)
