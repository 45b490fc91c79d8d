package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

const (
	// streamBuffer bounds what waits for one subscriber, in bytes of protobuf. A framework that is
	// told of 10,000 lost tasks at once is sent some 5 MiB, offers of 10,000 agents are as much; a
	// reader that is further behind than several of those is not coming back.
	streamBuffer = 32 << 20

	// processIOPatience is what may wait for a client that is attached to a container. A person who pages through the
	// output of a command wants it to wait; a terminal's pipe holds 64 KiB for the same reason.
	processIOPatience = 256 << 10

	// eventOverhead is what an event costs the buffer beside its bytes, so that empty ones are bounded
	// too.
	eventOverhead = 128

	// writeTimeout bounds each write of at most writePiece bytes. A reader that takes nothing for four
	// heartbeats would itself think the stream dead.
	writeTimeout = time.Minute
	writePiece   = 1 << 20

	// maxKeptScratch is how large an encoding buffer a stream keeps while it waits.
	maxKeptScratch = 64 << 10
)

// errSlowReader ends a stream whose buffer is full.
var errSlowReader = errors.New("reader is too slow, its buffer is full")

// stream is one subscriber's outgoing events: a bounded queue between whoever sends and the goroutine
// of the request, which encodes and writes.
type stream[E codec.Message] struct {
	encoding    codec.Type
	contentType string // of the answer; empty is that of the records
	heartbeat   E
	interval    time.Duration
	// subscribed tells the event after which heartbeats begin, with one at once; nil is from the
	// beginning, without.
	subscribed func(E) bool
	// patience, if not 0, is how much may wait before Send waits for the reader, instead of cutting it off.
	patience int

	room chan struct{} // holds one token when a patient Send may find place
	wake chan struct{} // holds one token when there is something new to see under mu
	done chan struct{} // closed when run has ended

	mu      sync.Mutex
	queue   []E         // guarded by mu
	waiting int         // guarded by mu; size of queue and of what run is writing
	closed  bool        // guarded by mu; nothing more is accepted
	cut     bool        // guarded by mu; what is queued is not written either
	ended   bool        // guarded by mu; done is closed
	conn    interface { // guarded by mu; nil until run begins
		SetWriteDeadline(time.Time) error
	}
}

func newStream[E codec.Message](t codec.Type, interval time.Duration, heartbeat E, subscribed func(E) bool) *stream[E] {
	return &stream[E]{
		encoding:   t,
		subscribed: subscribed,
		heartbeat:  heartbeat,
		interval:   interval,
		room:       make(chan struct{}, 1),
		wake:       make(chan struct{}, 1),
		done:       make(chan struct{}),
	}
}

// Send queues e, or cuts the stream off when its buffer is full; on a patient stream it waits for place.
func (s *stream[E]) Send(e E) bool {
	size := e.SizeVT() + eventOverhead
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.patience > 0 && !s.closed && s.waiting > 0 && s.waiting+size > s.patience {
		s.mu.Unlock()
		select {
		case <-s.room:
		case <-s.done:
		}
		s.mu.Lock()
	}
	if s.patience > 0 {
		s.makeRoom() // for another that waits, to see for itself
	}
	if s.closed {
		return false
	}
	// A single event may be larger than the buffer: the state of a large cluster is.
	if s.waiting > 0 && s.waiting+size > streamBuffer {
		s.closed, s.cut = true, true
		s.queue = nil
		if s.conn != nil {
			// run may be in a write that waits for the reader.
			_ = s.conn.SetWriteDeadline(time.Unix(1, 0))
		}
		s.notify()
		return false
	}
	s.queue = append(s.queue, e)
	s.waiting += size
	s.notify()
	return true
}

// Close ends the stream after what was sent.
func (s *stream[E]) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.notify()
	s.makeRoom()
}

// Done is closed when the stream has ended.
func (s *stream[E]) Done() <-chan struct{} { return s.done }

// notify must be called with mu held.
func (s *stream[E]) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// makeRoom lets a Send that waits look again. It must be called with mu held.
func (s *stream[E]) makeRoom() {
	select {
	case s.room <- struct{}{}:
	default:
	}
}

// end makes the stream refuse what is sent, and closes Done.
func (s *stream[E]) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.queue = nil
	s.conn = nil
	if !s.ended {
		s.ended = true
		close(s.done)
	}
}

// run writes what is sent to w, in records, with heartbeats, until Close and then nil; or until ctx
// ends (its error), the reader is cut off (errSlowReader) or does not take what is written. The
// headers must have been written.
func (s *stream[E]) run(ctx context.Context, w http.ResponseWriter) error {
	defer s.end()
	c := http.NewResponseController(w)
	s.mu.Lock()
	s.conn = c
	s.mu.Unlock()

	heartbeat, err := codec.Append(s.encoding, nil, s.heartbeat)
	if err != nil {
		return fmt.Errorf("encode heartbeat: %w", err)
	}
	heartbeat = recordio.Append(nil, heartbeat)

	var ticks <-chan time.Time
	if s.subscribed == nil {
		ticker := time.NewTicker(s.interval)
		defer ticker.Stop()
		ticks = ticker.C
	}
	var scratch, out []byte
	if err := s.write(w, c, nil); err != nil { // the headers
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticks:
			if err := s.write(w, c, heartbeat); err != nil {
				return err
			}
			continue
		case <-s.wake:
		}

		s.mu.Lock()
		batch, last, cut := s.queue, s.closed, s.cut
		s.queue = nil
		s.mu.Unlock()
		if cut {
			return errSlowReader
		}
		for i, e := range batch {
			batch[i] = *new(E) // what is written need not be kept until the batch is
			if scratch, err = codec.Append(s.encoding, scratch[:0], e); err != nil {
				return fmt.Errorf("encode event: %w", err)
			}
			out = recordio.Append(out, scratch)
			if s.subscribed != nil && s.subscribed(e) {
				out = append(out, heartbeat...)
				if ticks == nil {
					ticker := time.NewTicker(s.interval)
					defer ticker.Stop()
					ticks = ticker.C
				}
			}
			// Small events that came together leave together.
			if len(out) >= maxKeptScratch || i == len(batch)-1 {
				if err := s.write(w, c, out); err != nil {
					return err
				}
				out = out[:0]
			}
			s.mu.Lock()
			s.waiting -= e.SizeVT() + eventOverhead
			s.makeRoom()
			s.mu.Unlock()
		}
		if cap(scratch)+cap(out) > 4*maxKeptScratch {
			scratch, out = nil, nil
		}
		if last {
			return nil
		}
	}
}

// write sends b and what was written before, in pieces that each have their time.
func (s *stream[E]) write(w http.ResponseWriter, c *http.ResponseController, b []byte) error {
	for {
		s.mu.Lock()
		cut := s.cut
		if !cut {
			// Not every ResponseWriter has a connection behind it; without one nothing can wait.
			_ = c.SetWriteDeadline(time.Now().Add(writeTimeout))
		}
		s.mu.Unlock()
		if cut {
			return errSlowReader
		}
		piece := b[:min(len(b), writePiece)]
		b = b[len(piece):]
		_, err := w.Write(piece)
		if err == nil {
			err = c.Flush()
		}
		if err != nil {
			s.mu.Lock()
			cut = s.cut
			s.mu.Unlock()
			if cut {
				return errSlowReader
			}
			return fmt.Errorf("write to the reader: %w", err)
		}
		if len(b) == 0 {
			return nil
		}
	}
}

// serveStream writes the headers of a stream and then its events, until it ends.
func serveStream[E codec.Message](e *edge, w http.ResponseWriter, r *http.Request, s *stream[E], route, streamID string) {
	if rec, ok := w.(*response); ok {
		rec.streamed = true // from here on the stream sets the deadlines
	}
	h := w.Header()
	h.Set("Content-Type", cmp.Or(s.contentType, s.encoding.String()))
	if streamID != "" {
		h.Set("Mesos-Stream-Id", streamID)
	}
	w.WriteHeader(http.StatusOK)
	err := s.run(r.Context(), w)
	if err == nil {
		return
	}
	switch {
	case errors.Is(err, errSlowReader):
		e.log.Warn("stream cut off", "route", route, "remote", r.RemoteAddr, "error", err)
	case r.Context().Err() == nil:
		e.log.Info("stream broke off", "route", route, "remote", r.RemoteAddr, "error", err)
	}
	// The reader must not take this for the stream's proper end.
	panic(http.ErrAbortHandler)
}
