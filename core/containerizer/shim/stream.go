package shim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// ErrSlow is returned by Stream.Read when the shim cut the stream off because it was not read.
var ErrSlow = errors.New("stream was read too slowly")

// A Stream is one client's connection to the streams of a container's first process. Nobody but the caller reads from
// it, so that what he does not read is left to the shim's patience. Read and the writing methods may be called at the
// same time, and Close beside anything.
type Stream struct {
	dir  string
	conn net.Conn
	r    *bufio.Reader

	reading sync.Mutex // held by Read
	asked   bool       // for output
	end     error      // what Read returned last, once it failed

	writing sync.Mutex // held while a frame is written
	wrote   bool       // input
	broken  bool       // a frame was written in part

	mu     sync.Mutex // guards what follows
	closed bool
	output *Stream // what Read reads from, if that is another connection
}

// streamBuffer is how much is read of a stream at once.
const streamBuffer = wire.HeaderSize + wire.MaxChunk

// Attach connects to the streams of the container whose run folder is dir. ctx bounds the connecting. The error matches
// ErrLost when there is no shim, and syscall.ENXIO when the container has no streams.
func Attach(ctx context.Context, dir string) (*Stream, error) {
	conn, err := dial(ctx, dir)
	if err != nil {
		return nil, err
	}
	s := &Stream{dir: dir, conn: conn, r: bufio.NewReaderSize(conn, streamBuffer)}
	if err := s.attach(ctx); err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("attach to streams: %w", err)
	}
	return s, nil
}

func (s *Stream) attach(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	err := s.write(wire.KindAttach, nil)
	var f frame
	if err == nil {
		f, _, err = readFrame(s.r)
	}
	if !stop() {
		return ctx.Err()
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrLost, err)
	case f.kind == wire.KindError:
		errno, text, err := wire.ParseError(f.payload)
		if err != nil {
			return ErrLost
		}
		return &RefusedError{Text: text, Errno: syscall.Errno(errno)}
	case f.kind != wire.KindOK:
		return ErrLost
	}
	return nil
}

// Read returns the next piece of output. io.EOF after the last, ErrSlow, ErrLost when the shim is gone, and
// net.ErrClosed after Close. From the first error on it returns that.
func (s *Stream) Read() (data []byte, stderr bool, err error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.end != nil {
		return nil, false, s.end
	}
	data, stderr, err = s.read()
	s.end = err
	return data, stderr, err
}

func (s *Stream) read() (data []byte, stderr bool, err error) {
	if !s.asked {
		if err := s.ask(); err != nil {
			return nil, false, s.lost(err)
		}
		s.asked = true
	}
	if s.output != nil {
		return s.output.Read()
	}
	f, _, err := readFrame(s.r)
	if err != nil {
		return nil, false, s.lost(err)
	}
	switch f.kind {
	case wire.KindOut, wire.KindErrOut:
		return f.payload, f.kind == wire.KindErrOut, nil
	case wire.KindOutEnd:
		return nil, false, io.EOF
	case wire.KindSlow:
		return nil, false, ErrSlow
	}
	return nil, false, ErrLost
}

// askTimeout bounds the connecting of another stream. A healthy shim answers within microseconds.
const askTimeout = 10 * time.Second

// ask asks for the output. If input was written before, the question would wait until the process has taken that, and
// its output be lost meanwhile: then another connection asks.
func (s *Stream) ask() error {
	if s.writing.TryLock() {
		if wrote := s.wrote; !wrote {
			defer s.writing.Unlock()
			return s.writeLocked(wire.KindRead, nil)
		}
		s.writing.Unlock()
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	output, err := Attach(ctx, s.dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = output.Close()
		return net.ErrClosed
	}
	s.output = output
	return nil
}

// lost says what the end of the connection means.
func (s *Stream) lost(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return net.ErrClosed
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // not to be taken for the end of the output
	}
	return fmt.Errorf("%w: %w", ErrLost, err)
}

// Write gives input to the process. It blocks while the process does not read, at most until Close. ErrLost when the
// shim has closed the stream.
func (s *Stream) Write(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), wire.MaxChunk)
		if err := s.write(wire.KindInput, p[:n]); err != nil {
			return s.lost(err)
		}
		p = p[n:]
	}
	return nil
}

// CloseWrite ends the input.
func (s *Stream) CloseWrite() error {
	if err := s.write(wire.KindInputEnd, nil); err != nil {
		return s.lost(err)
	}
	return nil
}

func (s *Stream) write(kind uint8, payload []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.writeLocked(kind, payload)
}

func (s *Stream) writeLocked(kind uint8, payload []byte) error {
	if s.broken {
		return io.ErrClosedPipe
	}
	s.wrote = s.wrote || kind == wire.KindInput
	_, err := s.conn.Write(wire.AppendFrame(make([]byte, 0, wire.HeaderSize+len(payload)), kind, 0, payload))
	s.broken = err != nil
	return err
}

// Close gives up the stream. What was written is delivered all the same.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	err := s.conn.Close()
	if s.output != nil {
		err = errors.Join(err, s.output.Close())
	}
	return err
}
