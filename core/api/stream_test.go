package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

// memoryWriter is a ResponseWriter without a connection.
type memoryWriter struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *memoryWriter) Header() http.Header { return http.Header{} }
func (w *memoryWriter) WriteHeader(int)     {}
func (w *memoryWriter) Flush()              {}
func (w *memoryWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(b)
}

// types returns the types of the events written since the last call.
func (w *memoryWriter) types(t *testing.T) string {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	r := recordio.NewReader(&w.buf, 0)
	out := ""
	for {
		record, err := r.Next()
		if err == io.EOF {
			return out
		}
		var e schedulerv1.Event
		if err == nil {
			err = codec.Unmarshal(codec.JSON, record, &e)
		}
		if err != nil {
			t.Fatal(err)
		}
		out += e.GetType().String() + " "
	}
}

func testStream() *stream[*schedulerv1.Event] {
	return newStream(codec.JSON, 15*time.Second, event(schedulerv1.Event_HEARTBEAT),
		func(e *schedulerv1.Event) bool { return e.GetType() == schedulerv1.Event_SUBSCRIBED })
}

func event(t schedulerv1.Event_Type) *schedulerv1.Event { return &schedulerv1.Event{Type: t.Enum()} }

func TestHeartbeatsFollowSubscribedAtOnceAndThenEachInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := testStream(), &memoryWriter{}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.run(ctx, w) }()

		time.Sleep(time.Minute)
		if got := w.types(t); got != "" {
			t.Errorf("before SUBSCRIBED came %s, want nothing", got)
		}
		s.Send(event(schedulerv1.Event_SUBSCRIBED))
		synctest.Wait()
		if got := w.types(t); got != "SUBSCRIBED HEARTBEAT " {
			t.Errorf("on SUBSCRIBED came %s, want a heartbeat at once", got)
		}
		time.Sleep(14 * time.Second)
		s.Send(event(schedulerv1.Event_OFFERS))
		synctest.Wait()
		if got := w.types(t); got != "OFFERS " {
			t.Errorf("within 14 s came %s, want OFFERS only", got)
		}
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if got := w.types(t); got != "HEARTBEAT HEARTBEAT HEARTBEAT " {
			t.Errorf("until 45 s came %s, want three heartbeats", got)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("run = %v, want context.Canceled", err)
		}
		<-s.Done()
		if s.Send(event(schedulerv1.Event_OFFERS)) {
			t.Error("Send after the end = true, want false")
		}
	})
}

func TestCloseWritesWhatWasSentBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := testStream(), &memoryWriter{}
		s.Send(event(schedulerv1.Event_UPDATE))
		s.Send(event(schedulerv1.Event_ERROR))
		s.Close()
		if s.Send(event(schedulerv1.Event_UPDATE)) {
			t.Error("Send after Close = true, want false")
		}
		if err := s.run(t.Context(), w); err != nil {
			t.Errorf("run = %v, want nil", err)
		}
		if got := w.types(t); got != "UPDATE ERROR " {
			t.Errorf("written: %s, want UPDATE ERROR", got)
		}
		<-s.Done()
	})
}

// Whoever never reads costs the buffer, no more, and is cut off; the one event that is larger than the
// buffer passes, since it comes first.
func TestTheBufferIsBounded(t *testing.T) {
	s := testStream()
	large := func(n int) *schedulerv1.Event {
		return &schedulerv1.Event{
			Type:  schedulerv1.Event_ERROR.Enum(),
			Error: &schedulerv1.Event_Error{Message: proto.String(string(make([]byte, n)))},
		}
	}
	if !s.Send(large(streamBuffer + 1)) {
		t.Error("Send of an event larger than the buffer, first = false, want true")
	}
	if s.Send(event(schedulerv1.Event_UPDATE)) {
		t.Error("Send beyond the buffer = true, want false")
	}
	if err := s.run(t.Context(), &memoryWriter{}); !errors.Is(err, errSlowReader) {
		t.Errorf("run = %v, want errSlowReader", err)
	}

	s = testStream()
	sent := 0
	for s.Send(event(schedulerv1.Event_HEARTBEAT)) {
		if sent++; sent > streamBuffer {
			t.Fatal("small events are not bounded")
		}
	}
	if s.queue != nil {
		t.Errorf("%d events are kept after the cut, want none", len(s.queue))
	}
}

func TestASlowReaderIsCutOffAndOthersAreNot(t *testing.T) {
	started := make(chan *stream[*schedulerv1.Event], 2)
	e := newEdge(Config{Log: slog.New(slog.DiscardHandler)}, nil)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := testStream()
		started <- s
		serveStream(e, w, r, s, "/test", "")
	}))
	defer server.Close()

	// The slow one sends a request and never reads.
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	slow := <-started

	resp, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	fast := <-started
	received := make(chan int, 1)
	go func() {
		r, n := recordio.NewReader(resp.Body, 0), 0
		for {
			if _, err := r.Next(); err != nil {
				received <- n
				return
			}
			n++
		}
	}()

	message := &schedulerv1.Event{
		Type:  schedulerv1.Event_ERROR.Enum(),
		Error: &schedulerv1.Event_Error{Message: proto.String(string(bytes.Repeat([]byte("x"), 64<<10)))},
	}
	sent := 0
	for slow.Send(message) {
		if sent++; sent > 10000 {
			t.Fatal("640 MB were taken for a reader that does not read")
		}
	}
	select {
	case <-slow.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the slow reader's stream has not ended 10 s after the cut")
	}
	// What it finds when it reads at last is a broken stream, not a proper end.
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(conn)
	if bytes.HasSuffix(rest, []byte("\r\n0\r\n\r\n")) {
		t.Errorf("the slow reader's stream ends as if complete (%v), want it broken off", err)
	}

	for range 10 {
		if !fast.Send(message) {
			t.Fatal("the other reader was cut off too")
		}
	}
	fast.Close()
	if n := <-received; n != 10 {
		t.Errorf("the other reader got %d events, want 10", n)
	}
}

// A reader that takes nothing while nothing new comes is given writeTimeout.
func TestAWriteThatWaitsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe() // nobody reads from there
		defer there.Close()
		s := testStream()
		s.Send(event(schedulerv1.Event_SUBSCRIBED))
		begin := time.Now()
		err := s.run(t.Context(), pipeWriter{here})
		if err == nil || time.Since(begin) != writeTimeout {
			t.Errorf("run = %v after %v, want an error after %v", err, time.Since(begin), writeTimeout)
		}
	})
}

// pipeWriter is a ResponseWriter on a connection.
type pipeWriter struct{ net.Conn }

func (w pipeWriter) Header() http.Header { return http.Header{} }
func (w pipeWriter) WriteHeader(int)     {}
func (w pipeWriter) Flush()              {}
func (w pipeWriter) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil // net.Pipe waits for a reader even then
	}
	return w.Conn.Write(b)
}
