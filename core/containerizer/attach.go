package containerizer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// ErrNotAttachable is returned for containers without streams to attach to.
var ErrNotAttachable = errors.New("container has no streams to attach to")

// ErrInput is joined by errors of AttachInput about what the client sent.
var ErrInput = errors.New("input is not understood")

const (
	// attachTimeout bounds the opening of a container's streams.
	attachTimeout = 10 * time.Second
	// drainPatience is how long a session that ended is kept for the client that still reads its last output: what a pipe
	// and a few buffers hold, over a slow line. Any other container has its output in files too, and what it left running
	// is not to go on for a spectator's sake.
	drainPatience     = time.Minute
	spectatorPatience = 2 * time.Second
)

// AttachOutput sends what a container writes, from now on, or from its start if it is the first to read a container
// whose output goes to no file. It returns nil when the output ended or send returned false, and ctx's error when ctx
// is done. Of a container whose output goes to files, what is appended to these in its sandbox is sent.
//
// Errors: ErrNotFound; ErrNotRunning while it is being launched; launcher.ErrSlow if send took so long that output was
// lost.
func (c *Containerizer) AttachOutput(ctx context.Context, id string, send func(*agentv1.ProcessIO) bool) error {
	ct, err := c.find(id)
	if err != nil {
		return err
	}
	ct.mu.Lock()
	spec, h := ct.spec, ct.handle
	ended := ct.phase == containerv1.Checkpoint_ENDED
	ct.mu.Unlock()
	switch {
	case spec.GetStreams() == containerv1.Container_FILES:
		err = c.follow(ctx, ct, send)
	case h == nil && ended:
		return nil // before the agent was started anew
	case h == nil:
		err = ErrNotRunning
	default:
		err = c.readStreams(ctx, ct, h, send)
	}
	if err != nil {
		return fmt.Errorf("attach to the output of container %s: %w", id, err)
	}
	return nil
}

func (c *Containerizer) readStreams(ctx context.Context, ct *container, h launcher.Handle, send func(*agentv1.ProcessIO) bool) error {
	defer ct.reading()()
	s := ct.takeStreams()
	if s == nil {
		var err error
		if s, err = openStreams(ctx, h); err != nil {
			if errors.Is(err, launcher.ErrEnded) {
				return nil
			}
			return err
		}
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	for {
		chunk, err := s.Read()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case !send(output(chunk.Stderr, chunk.Data)):
			return nil
		}
	}
}

// output is a piece of output as the API speaks of it.
func output(stderr bool, data []byte) *agentv1.ProcessIO {
	kind := agentv1.ProcessIO_Data_STDOUT
	if stderr {
		kind = agentv1.ProcessIO_Data_STDERR
	}
	return &agentv1.ProcessIO{
		Type: agentv1.ProcessIO_DATA.Enum(),
		Data: &agentv1.ProcessIO_Data{Type: kind.Enum(), Data: data},
	}
}

func openStreams(ctx context.Context, h launcher.Handle) (launcher.Streams, error) {
	a, ok := h.(launcher.Attacher)
	if !ok {
		return nil, ErrNotAttachable
	}
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	s, err := a.Attach(ctx)
	if errors.Is(err, launcher.ErrNotAttached) {
		return nil, ErrNotAttachable
	}
	return s, err
}

// AttachInput gives a container what next returns until that is io.EOF, which leaves the input open for others, or
// until nobody in the container takes input any more; nil in both cases. No data ends the input. A window size is the
// terminal's. Heartbeats are passed over.
//
// Errors: ErrNotFound; ErrNotRunning; ErrNotAttachable; ErrInput; those of next; ctx's, when it is done while the
// container does not read.
func (c *Containerizer) AttachInput(ctx context.Context, id string, next func() (*agentv1.ProcessIO, error)) error {
	ct, err := c.find(id)
	if err != nil {
		return err
	}
	if err := c.writeStreams(ctx, ct, next); err != nil {
		return fmt.Errorf("attach to the input of container %s: %w", id, err)
	}
	return nil
}

func (c *Containerizer) writeStreams(ctx context.Context, ct *container, next func() (*agentv1.ProcessIO, error)) error {
	ct.mu.Lock()
	spec := ct.spec
	ct.mu.Unlock()
	if spec.GetStreams() == containerv1.Container_FILES {
		return ErrNotAttachable
	}
	h := ct.running()
	if h == nil {
		return ErrNotRunning
	}
	s, err := openStreams(ctx, h) // of its own: one that is never read is sent nothing
	if err != nil {
		if errors.Is(err, launcher.ErrEnded) {
			return ErrNotRunning
		}
		return err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	for {
		piece, err := next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = give(s, piece)
		}
		switch {
		case errors.Is(err, launcher.ErrEnded):
			return nil
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		}
	}
}

// give passes on one message of a client.
func give(s launcher.Streams, piece *agentv1.ProcessIO) error {
	switch piece.GetType() {
	case agentv1.ProcessIO_DATA:
		d := piece.GetData()
		switch {
		case d.GetType() != agentv1.ProcessIO_Data_STDIN:
			return fmt.Errorf("%w: got data of %s, want STDIN", ErrInput, d.GetType())
		case len(d.GetData()) == 0:
			return s.CloseWrite()
		}
		return s.Write(d.GetData())
	case agentv1.ProcessIO_CONTROL:
		switch control := piece.GetControl(); control.GetType() {
		case agentv1.ProcessIO_Control_HEARTBEAT:
			return nil
		case agentv1.ProcessIO_Control_TTY_INFO:
			size := control.GetTtyInfo().GetWindowSize()
			rows, columns := size.GetRows(), size.GetColumns()
			if size == nil || rows > math.MaxUint16 || columns > math.MaxUint16 {
				return fmt.Errorf("%w: got a window of %d rows and %d columns", ErrInput, rows, columns)
			}
			return s.Resize(uint16(rows), uint16(columns))
		default:
			return fmt.Errorf("%w: got control of type %s", ErrInput, control.GetType())
		}
	}
	return fmt.Errorf("%w: got a message of type %s", ErrInput, piece.GetType())
}

// holdStreams opens the streams of a container whose output goes to no file before its command is started, so that
// the first who reads misses nothing, however short the command is.
func (c *Containerizer) holdStreams(ctx context.Context, ct *container, h launcher.Handle) error {
	s, err := openStreams(ctx, h)
	if err != nil {
		return fmt.Errorf("open its streams: %w", err)
	}
	ct.mu.Lock()
	defer ct.mu.Unlock()
	ct.streams = s
	return nil
}

// takeStreams returns the streams that were opened before the start, once.
func (ct *container) takeStreams() launcher.Streams {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	s := ct.streams
	ct.streams = nil
	return s
}

// dropStreams closes streams that nobody ever read.
func (ct *container) dropStreams() {
	if s := ct.takeStreams(); s != nil {
		_ = s.Close()
	}
}

// reading notes that a client reads the container's output, until the function that it returns is called.
func (ct *container) reading() (done func()) {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	if ct.readers++; ct.readers == 1 {
		ct.drained = make(chan struct{})
	}
	return func() {
		ct.mu.Lock()
		defer ct.mu.Unlock()
		if ct.readers--; ct.readers == 0 {
			close(ct.drained)
		}
	}
}

func (ct *container) hasReaders() bool {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	return ct.readers > 0
}

// awaitReaders waits, within bounds, until the clients that read a container that ended have read everything. What takes
// the container down would take it from them. Nothing nested in the container runs by then.
func (c *Containerizer) awaitReaders(ct *container) {
	ct.mu.Lock()
	drained := ct.drained
	ct.mu.Unlock()
	patience := spectatorPatience
	if ct.debug {
		patience = drainPatience
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
		c.log.Warn("a client does not read a container's last output", "container", ct.id)
	case <-c.life.Done():
	}
}
