package shim_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/supervise"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

// binary builds the shim.
func binary(t *testing.T) *shim.Binary {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mosaic-shim")
	cmd := exec.Command("go", "build", "-o", path, "./mosaic-shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	b, err := shim.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// launch starts a shim with a process of this user, without cgroups: it needs no root.
func launch(t *testing.T, b *shim.Binary, dir string, argv ...string) (*shim.Client, wire.State) {
	t.Helper()
	c, err := shim.Spawn(b, shim.SpawnOptions{})
	if err != nil {
		t.Fatal(err)
	}
	st := wire.Stage{Argv: argv, Env: []string{"PATH=/usr/bin:/bin"}}
	s, err := c.Create(deadline(t), &wire.Spec{ID: "c1", RunDir: dir, Stage: st.Append(nil)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Dismiss(deadline(t)); err != nil {
			t.Error(err)
		}
	})
	return c, s
}

func TestReplacingTheProgramDoesNotReachRunningCopies(t *testing.T) {
	b := binary(t)
	if !b.Sealed() {
		t.Skip("this kernel does not execute sealed copies")
	}
	c, s := launch(t, b, t.TempDir(), "sleep", "1000")
	if err := os.WriteFile(b.Path()+".new", []byte("garbage"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b.Path()+".new", b.Path()); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	// Also new shims come from the copy that was made.
	d, _ := launch(t, b, t.TempDir(), "true")
	if err := d.Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	<-d.Exited()
	ppid, err := os.ReadFile("/proc/" + itoa(s.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(ppid), "PPid:\t")
	parent, _, _ := strings.Cut(after, "\n")
	f, err := os.OpenFile("/proc/"+parent+"/exe", os.O_WRONLY, 0)
	if err == nil {
		_, err = f.Write([]byte("x"))
		_ = f.Close()
	}
	if err == nil {
		t.Error("the program of a running shim can be written to")
	}
}

func itoa(v int) string {
	if v == 0 {
		return ""
	}
	return itoa(v/10) + string(rune('0'+v%10))
}

func TestNonsenseOnTheSocketHarmsNobody(t *testing.T) {
	dir := t.TempDir()
	c, s := launch(t, binary(t), dir, "sleep", "1000")
	if err := c.Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"noise":              []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"a huge frame":       {0xff, 0xff, 0x10, 0, 1, 0, 0, 0, wire.KindSignal},
		"a second creation":  wire.AppendFrame(nil, wire.KindCreate, 1, nil),
		"signal 0":           wire.AppendFrame(nil, wire.KindSignal, 1, wire.AppendUint32(nil, 0)),
		"signal 1000":        wire.AppendFrame(nil, wire.KindSignal, 1, wire.AppendUint32(nil, 1000)),
		"a release too soon": wire.AppendFrame(nil, wire.KindRelease, 1, nil),
		"half a frame":       {5, 0, 0, 0, 1},
		"nothing":            {},
	} {
		conn, err := net.Dial("unix", filepath.Join(dir, supervise.SocketName))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := conn.Write(b); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if u, ok := conn.(*net.UnixConn); ok {
			_ = u.CloseWrite()
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		// It answers, or refuses, and closes; it does not hang.
		buf := make([]byte, 4096)
		for err = nil; err == nil; {
			_, err = conn.Read(buf)
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			t.Errorf("%s: the shim does not close the connection", name)
		}
		_ = conn.Close()
	}
	got, err := c.State(deadline(t))
	if err != nil || got.Pid != s.Pid || got.Exited {
		t.Errorf("State after all that = %+v, %v", got, err)
	}
}

func TestManyConnectionsAreBounded(t *testing.T) {
	dir := t.TempDir()
	c, _ := launch(t, binary(t), dir, "sleep", "1000")
	if err := c.Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	for range 50 {
		conn, err := net.DialTimeout("unix", filepath.Join(dir, supervise.SocketName), 10*time.Second)
		if err != nil {
			break // the backlog is full, which is a bound too
		}
		conns = append(conns, conn)
	}
	if _, err := c.State(deadline(t)); err != nil {
		t.Errorf("State beside many idle connections = %v", err)
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
	again, err := shim.Connect(deadline(t), dir)
	if err != nil {
		t.Fatalf("Connect after they have gone = %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestSignalsToTheShimItselfDoNotEndIt(t *testing.T) {
	dir := t.TempDir()
	c, _ := launch(t, binary(t), dir, "sleep", "1000")
	if err := c.Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE, syscall.SIGQUIT} {
		if err := syscall.Kill(c.Pid(), sig); err != nil {
			t.Fatal(err)
		}
		if _, err := c.State(deadline(t)); err != nil {
			t.Errorf("State after %v = %v", sig, err)
		}
	}
}

func TestCommandHasDefaultSignalsAndNoDescriptors(t *testing.T) {
	b := binary(t)
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	c, err := shim.Spawn(b, shim.SpawnOptions{Runtime: b})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Dismiss(deadline(t)); err != nil {
			t.Error(err)
		}
	})
	st := wire.Stage{Argv: []string{"sh", "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/$$/fd"}, Env: []string{"PATH=/usr/bin:/bin"}}
	if _, err := c.Create(deadline(t), &wire.Spec{ID: "c1", RunDir: dir, Stdout: out, Stage: st.Append(nil)}); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	<-c.Exited()
	got, err := os.ReadFile(out)
	want := "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n0\n1\n2\n"
	if err != nil || string(got) != want {
		t.Errorf("got %q (%v), want %q", got, err, want)
	}
}

func TestTheRecordsSayWhatTheSocketSays(t *testing.T) {
	dir := t.TempDir()
	c, s := launch(t, binary(t), dir, "sh", "-c", "exit 6")
	b, err := os.ReadFile(filepath.Join(dir, supervise.PidName))
	if err != nil || !strings.HasPrefix(string(b), itoa(s.Pid)+" ") {
		t.Errorf("pid record = %q (%v), want %d", b, err, s.Pid)
	}
	if err := c.Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	<-c.Exited()
	// A shim nobody is connected to ends when its container has, and leaves the record.
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for {
		again, err := shim.Connect(deadline(t), dir)
		if errors.Is(err, shim.ErrLost) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = again.Close()
	}
	b, err = os.ReadFile(filepath.Join(dir, supervise.ExitName))
	if err != nil || !strings.HasPrefix(string(b), "1536 ") {
		t.Errorf("exit record = %q (%v), want status 1536", b, err)
	}
}

func TestOpenOfNoProgramIsAnError(t *testing.T) {
	if _, err := shim.Open(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("Open of a missing program = nil")
	}
	if _, err := shim.Connect(deadline(t), filepath.Join(t.TempDir(), "none")); !errors.Is(err, shim.ErrLost) {
		t.Errorf("Connect to nothing = %v, want ErrLost", err)
	}
}

// stream starts a shim whose container has pipes, with the first one's record in dir.
func stream(t *testing.T, b *shim.Binary, dir string, argv ...string) *shim.Client {
	t.Helper()
	c, err := shim.Spawn(b, shim.SpawnOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Dismiss(deadline(t)); err != nil {
			t.Error(err)
		}
	})
	st := wire.Stage{Argv: argv, Env: []string{"PATH=/usr/bin:/bin"}}
	if _, err := c.Create(deadline(t), &wire.Spec{ID: "c1", RunDir: dir, Stage: st.Append(nil), Streams: wire.StreamsPipes}); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNonsenseOnAStreamHarmsNobody(t *testing.T) {
	dir := t.TempDir()
	c := stream(t, binary(t), dir, "cat")
	hello := wire.AppendFrame(nil, wire.KindAttach, 1, nil)
	for name, b := range map[string][]byte{
		"noise":                     []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"a huge frame":              wire.AppendFrame(nil, wire.KindInput, 1, make([]byte, wire.MaxChunk+1)),
		"a request":                 wire.AppendFrame(nil, wire.KindKill, 1, nil),
		"a creation":                wire.AppendFrame(nil, wire.KindCreate, 1, make([]byte, 100)),
		"an end of input with more": wire.AppendFrame(nil, wire.KindInputEnd, 1, []byte("x")),
		"half a frame":              {5, 0, 0, 0, 1},
		"half of some input":        wire.AppendFrame(nil, wire.KindInput, 1, make([]byte, 100))[:50],
		"nothing":                   {},
	} {
		for _, patient := range []bool{true, false} {
			conn, err := net.Dial("unix", filepath.Join(dir, supervise.SocketName))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err = conn.Write(hello); err == nil && patient {
				_, err = conn.Read(make([]byte, wire.HeaderSize))
			}
			if err == nil {
				_, err = conn.Write(b)
			}
			if err != nil && !errors.Is(err, syscall.EPIPE) {
				t.Fatalf("%s: %v", name, err)
			}
			if u, ok := conn.(*net.UnixConn); ok {
				_ = u.CloseWrite()
			}
			buf := make([]byte, 4096)
			for err = nil; err == nil; {
				_, err = conn.Read(buf)
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				t.Errorf("%s: the shim does not close the connection", name)
			}
			_ = conn.Close()
		}
	}
	if s, err := c.State(deadline(t)); err != nil || s.Exited {
		t.Fatalf("State after all that = %+v, %v", s, err)
	}
	s, err := shim.Attach(deadline(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.CloseWrite(); err != nil {
		t.Error(err)
	}
	for n := 0; err == nil; {
		var b []byte
		if b, _, err = s.Read(); err == nil {
			if n += len(b); n > 2*(50-wire.HeaderSize) {
				t.Errorf("cat says %d bytes, want no more than the two halves of an input", n)
			}
		}
	}
	if err != io.EOF {
		t.Errorf("Read = %v, want EOF", err)
	}
}

func TestManyStreamsAreBounded(t *testing.T) {
	dir := t.TempDir()
	c := stream(t, binary(t), dir, "sleep", "1000")
	var held []*shim.Stream
	var err error
	for range 100 {
		var s *shim.Stream
		if s, err = shim.Attach(deadline(t), dir); err != nil {
			break
		}
		held = append(held, s)
	}
	if !errors.Is(err, syscall.EUSERS) || len(held) < 8 {
		t.Errorf("Attach number %d = %v, want a refusal", len(held)+1, err)
	}
	if _, err := c.State(deadline(t)); err != nil {
		t.Errorf("State beside many streams = %v", err)
	}
	for _, s := range held {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	for err != nil { // it sees them go one after the other
		var s *shim.Stream
		if s, err = shim.Attach(deadline(t), dir); err == nil {
			_ = s.Close()
		} else if !errors.Is(err, syscall.EUSERS) {
			t.Fatal(err)
		}
	}
}

func TestAttachEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, supervise.SocketName)) // it accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := shim.Attach(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Attach to a shim that is silent = %v, want DeadlineExceeded", err)
	}
}
