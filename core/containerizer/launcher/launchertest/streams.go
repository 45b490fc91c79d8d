package launchertest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Streaming runs the cases about attached streams that hold for every launcher whose handles are Attachers.
func Streaming(t *testing.T, with func(t testing.TB, e *Env) launcher.Launcher) {
	runCases(t, with, []testCase{
		{"FilesCannotBeAttachedTo", filesCannotBeAttachedTo},
		{"PipesCarryInputAndBothOutputs", pipesCarryInputAndBothOutputs},
		{"OutputBeforeTheFirstClientIsKept", outputBeforeTheFirstClientIsKept},
		{"OutputLeftAtDestroyIsStillRead", outputLeftAtDestroyIsStillRead},
		{"OutputGoesToFilesToo", outputGoesToFilesToo},
		{"EveryReaderGetsTheSame", everyReaderGetsTheSame},
		{"WritersInterleave", writersInterleave},
		{"InputOfOneThatDoesNotReadBlocksAndIsLostAtItsEnd", blockedInput},
		{"TerminalIsOne", terminalIsOne},
		{"EndOfFileIsTypedIntoATerminal", endOfFileIsTyped},
		{"InterruptIsTypedIntoATerminal", interruptIsTyped},
		{"TerminalOutlivesTheAgent", terminalOutlivesTheAgent},
		{"BigOutputArrivesWhole", bigOutputArrivesWhole},
		{"FirstReaderIsWaitedFor", firstReaderIsWaitedFor},
		{"SlowLookerOnIsCutOff", slowLookerOnIsCutOff},
		{"GoneReaderHoldsNobodyUp", goneReaderHoldsNobodyUp},
		{"GrandchildThatHoldsThePipeDelaysTheEndByASecond", grandchildHoldsPipe},
		{"LostShimEndsItsStreams", lostShimEndsItsStreams},
		{"UserMayReopenItsStreams", userMayReopenItsStreams},
	})
}

// Attached asks for a container with attached streams and no files.
func (e *Env) Attached(s containerv1.Container_Streams, argv ...string) *launcher.Request {
	r := e.Request(argv...)
	r.Streams, r.Stdout, r.Stderr = s, "", ""
	r.Env = append(r.Env, "TERM=xterm")
	return r
}

// Attach opens the streams of a container, closed at the end of the test.
func Attach(t testing.TB, h launcher.Handle) launcher.Streams {
	t.Helper()
	a, ok := h.(launcher.Attacher)
	if !ok {
		t.Fatalf("%T is no Attacher", h)
	}
	s, err := a.Attach(Context(t))
	if err != nil {
		t.Fatalf("Attach = %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// ReadAll reads to the end and returns both outputs.
func ReadAll(t testing.TB, s launcher.Streams) (stdout, stderr string) {
	t.Helper()
	var out [2]strings.Builder
	for {
		c, err := s.Read()
		if errors.Is(err, io.EOF) {
			return out[0].String(), out[1].String()
		}
		if err != nil {
			t.Fatalf("Read = %v after %q and %q", err, tail(out[0].String()), tail(out[1].String()))
		}
		if c.Stderr {
			out[1].Write(c.Data)
		} else {
			out[0].Write(c.Data)
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-200):] }

// ReadUntil reads until the output has want in it, and returns what it read.
func ReadUntil(t testing.TB, s launcher.Streams, want string) string {
	t.Helper()
	var out strings.Builder
	for !strings.Contains(out.String(), want) {
		c, err := s.Read()
		if err != nil {
			t.Fatalf("Read = %v after %q, want %q", err, tail(out.String()), want)
		}
		out.Write(c.Data)
	}
	return out.String()
}

func write(t testing.TB, s launcher.Streams, text string) {
	t.Helper()
	if err := s.Write([]byte(text)); err != nil {
		t.Fatalf("Write(%q) = %v", text, err)
	}
}

func closeWrite(t testing.TB, s launcher.Streams) {
	t.Helper()
	if err := s.CloseWrite(); err != nil {
		t.Fatalf("CloseWrite = %v", err)
	}
}

func filesCannotBeAttachedTo(t *testing.T, e *Env, l launcher.Launcher) {
	h := Start(t, l, e.Request("sleep", "1000"))
	if _, err := h.(launcher.Attacher).Attach(Context(t)); !errors.Is(err, launcher.ErrNotAttached) {
		t.Errorf("Attach = %v, want ErrNotAttached", err)
	}
}

func pipesCarryInputAndBothOutputs(t *testing.T, e *Env, l launcher.Launcher) {
	h := Start(t, l, e.Attached(containerv1.Container_ATTACHED, "sh", "-c", "echo up; cat; echo oops >&2; [ -t 0 ] || echo no terminal; exit 5"))
	s := Attach(t, h)
	ReadUntil(t, s, "up\n")
	write(t, s, "one\n")
	if got := ReadUntil(t, s, "\n"); got != "one\n" {
		t.Errorf("cat says %q, want %q", got, "one\n")
	}
	write(t, s, "two\n")
	closeWrite(t, s)
	out, errs := ReadAll(t, s)
	if out != "two\nno terminal\n" || errs != "oops\n" {
		t.Errorf("outputs = %q and %q", out, errs)
	}
	if ws := syscall.WaitStatus(Wait(t, h)); ws.ExitStatus() != 5 {
		t.Errorf("Wait = %#x, want exit 5", ws)
	}
	if err := s.Write([]byte("more")); !errors.Is(err, launcher.ErrEnded) {
		t.Errorf("Write after the end = %v, want ErrEnded", err)
	}
	if err := s.Resize(10, 10); !errors.Is(err, launcher.ErrNotAttached) {
		t.Errorf("Resize without terminal = %v, want ErrNotAttached", err)
	}
}

func outputBeforeTheFirstClientIsKept(t *testing.T, e *Env, l launcher.Launcher) {
	mark := e.Dir + "/mark"
	h := Start(t, l, e.Attached(containerv1.Container_ATTACHED, "sh", "-c", "echo early; echo error >&2; touch "+mark+"; read x; echo $x"))
	Eventually(t, "it has written", func() bool { _, err := os.Lstat(mark); return err == nil })
	writer := Attach(t, h) // one that never reads takes nothing from those who do
	reader := Attach(t, h)
	write(t, writer, "late\n")
	if out, errs := ReadAll(t, reader); out != "early\nlate\n" || errs != "error\n" {
		t.Errorf("outputs = %q and %q", out, errs)
	}
	Wait(t, h)
	// Everything was given.
	if out, errs := ReadAll(t, Attach(t, h)); out != "" || errs != "" {
		t.Errorf("outputs for a second reader at the end = %q and %q, want none", out, errs)
	}
}

func outputLeftAtDestroyIsStillRead(t *testing.T, e *Env, l launcher.Launcher) {
	nobody := Start(t, l, e.Attached(containerv1.Container_ATTACHED, "echo", "last words"))
	Wait(t, nobody)
	if err := nobody.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
	if out, _ := ReadAll(t, Attach(t, nobody)); out != "last words\n" {
		t.Errorf("first reader after Destroy gets %q", out)
	}
	if out, _ := ReadAll(t, Attach(t, nobody)); out != "" {
		t.Errorf("second reader after Destroy gets %q", out)
	}
	somebody := Start(t, l, e.Attached(containerv1.Container_ATTACHED, "sh", "-c", "echo up; head -c 200000 /dev/zero; echo end"))
	s := Attach(t, somebody)
	first := ReadUntil(t, s, "up\n")
	Eventually(t, "it waits for its reader or has ended", func() bool { return !alive(somebody.Pid()) || blocked(somebody.Pid()) })
	if err := syscall.Kill(somebody.Pid(), 0); err == nil {
		Wait(t, somebody)
	}
	if err := somebody.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
	rest, _ := ReadAll(t, s)
	if out := first + rest; len(out) != 3+200000+4 || !strings.HasSuffix(out, "end\n") {
		t.Errorf("the reader gets %d bytes in all, the last %q", len(out), tail(out)[190:])
	}
}

// blocked says whether a process waits for a pipe.
func blocked(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	return err == nil && strings.Contains(string(b), "pipe")
}

func outputGoesToFilesToo(t *testing.T, e *Env, l launcher.Launcher) {
	for _, kind := range []containerv1.Container_Streams{containerv1.Container_ATTACHED, containerv1.Container_TERMINAL} {
		r := e.Request("sh", "-c", "echo before; read x; echo after; echo oops >&2")
		r.Streams = kind
		r.User = launcher.User{UID: 65534, GID: 65534}
		h := Start(t, l, r)
		Eventually(t, "output is in the file without a reader", func() bool { return strings.Contains(Output(t, r), "before") })
		s := Attach(t, h)
		write(t, s, "\n")
		out, errs := ReadAll(t, s)
		all := out + errs
		if strings.Contains(all, "before") || !strings.Contains(all, "after") || !strings.Contains(all, "oops") {
			t.Errorf("%v: a reader gets %q, want what came from then on", kind, all)
		}
		Wait(t, h)
		file := Output(t, r)
		if kind == containerv1.Container_ATTACHED {
			b, err := os.ReadFile(r.Stderr)
			if file != "before\nafter\n" || err != nil || string(b) != "oops\n" {
				t.Errorf("files have %q and %q (%v)", file, b, err)
			}
		} else if !strings.Contains(file, "before\r\n") || !strings.Contains(file, "oops\r\n") {
			t.Errorf("the file has %q", file)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(r.Stdout, &st); err != nil || st.Uid != 65534 {
			t.Errorf("the file belongs to %d (%v)", st.Uid, err)
		}
	}
}

func everyReaderGetsTheSame(t *testing.T, e *Env, l launcher.Launcher) {
	h := Create(t, l, e.Attached(containerv1.Container_ATTACHED, "sh", "-c", "for i in $(seq 2000); do echo line $i; done; read x; echo $x"))
	const readers = 5
	var all [readers]launcher.Streams
	results := make(chan string, readers)
	for i := range all {
		all[i] = Attach(t, h)
	}
	if err := h.Start(Context(t)); err != nil {
		t.Fatal(err)
	}
	var met sync.WaitGroup
	for _, s := range all {
		met.Add(1)
		go func() {
			// All read before the last line is written.
			c, err := s.Read()
			met.Done()
			var out bytes.Buffer
			for ; err == nil; c, err = s.Read() {
				out.Write(c.Data)
			}
			if !errors.Is(err, io.EOF) {
				t.Errorf("Read = %v", err)
			}
			results <- out.String()
		}()
	}
	met.Wait()
	write(t, all[0], "done\n")
	for range readers {
		out := <-results
		// Who came late has missed the beginning, and nothing after.
		if !strings.HasSuffix(out, "line 1999\nline 2000\ndone\n") && out != "done\n" {
			t.Errorf("a reader got %d bytes, the last %q", len(out), tail(out))
		}
	}
}

func writersInterleave(t *testing.T, e *Env, l launcher.Launcher) {
	const writers, lines = 4, 500
	h := Start(t, l, e.Attached(containerv1.Container_ATTACHED, "sh", "-c", fmt.Sprintf("head -n %d | sort -n", writers*lines)))
	var wg sync.WaitGroup
	for w := range writers {
		s := Attach(t, h)
		wg.Go(func() {
			for i := range lines {
				if err := s.Write(fmt.Appendln(nil, i*writers+w)); err != nil {
					t.Error(err)
				}
			}
			if err := s.Close(); err != nil { // what was written is delivered all the same
				t.Error(err)
			}
		})
	}
	wg.Wait()
	want := ""
	for i := range writers * lines {
		want += fmt.Sprintln(i)
	}
	if out, _ := ReadAll(t, Attach(t, h)); out != want {
		t.Errorf("sort says %d bytes, want %d; the last are %q", len(out), len(want), tail(out))
	}
}

func blockedInput(t *testing.T, e *Env, l launcher.Launcher) {
	h := Start(t, l, e.Attached(containerv1.Container_ATTACHED, "sh", "-c", "read x; echo $x; read y"))
	s := Attach(t, h)
	done := make(chan error, 1)
	go func() {
		line := append(bytes.Repeat([]byte("x"), 9), '\n')
		done <- s.Write(bytes.Repeat(line, 1<<19))
	}()
	// Output of it comes all the same, though the input written before it was asked for is not yet taken.
	ReadUntil(t, s, "xxxxxxxxx\n")
	ReadAll(t, s)
	if err := <-done; err != nil && !errors.Is(err, launcher.ErrEnded) {
		t.Errorf("Write = %v, want nil or ErrEnded", err)
	}

	deaf := Start(t, l, e.Attached(containerv1.Container_ATTACHED, "sleep", "1000"))
	s = Attach(t, deaf)
	go func() { done <- s.Write(make([]byte, 8<<20)) }()
	other := Attach(t, deaf)
	if err := deaf.Signal(Context(t), syscall.SIGCONT); err != nil {
		t.Errorf("Signal beside blocked input = %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("Write of more than anybody holds = nil after Close")
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}

func terminalIsOne(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Attached(containerv1.Container_TERMINAL, "sh", "-c", `tty; stty size; trap "stty size" WINCH; echo ready; until [ "$x" = go ]; do read x; done; echo $TERM; echo here >/dev/tty; echo oops >&2; cut -d" " -f1,6 /proc/$$/stat`)
	r.Rows, r.Columns = 33, 111
	h := Start(t, l, r)
	s := Attach(t, h)
	out := ReadUntil(t, s, "ready\r\n")
	if !strings.HasPrefix(out, "/dev/") || !strings.Contains(out, "\r\n33 111\r\n") {
		t.Errorf("got %q, want a terminal of 33 rows and 111 columns", out)
	}
	if err := s.Resize(50, 200); err != nil {
		t.Fatal(err)
	}
	write(t, s, "a\n") // the trap runs when read returns
	ReadUntil(t, s, "50 200\r\n")
	write(t, s, "go\n")
	rest, errs := ReadAll(t, s)
	if !strings.Contains(rest, "xterm\r\nhere\r\noops\r\n") || errs != "" {
		t.Errorf("got %q and %q", rest, errs)
	}
	if f := strings.Fields(rest); len(f) < 2 || f[len(f)-2] != f[len(f)-1] {
		t.Errorf("the process does not lead its session: %q", rest)
	}
}

func endOfFileIsTyped(t *testing.T, e *Env, l launcher.Launcher) {
	for input, want := range map[string]string{"": "", "line\n": "line\r\nline\r\n", "part of one": "part of onepart of one"} {
		h := Start(t, l, e.Attached(containerv1.Container_TERMINAL, "cat"))
		s := Attach(t, h)
		if input != "" {
			write(t, s, input)
		}
		closeWrite(t, s)
		if out, _ := ReadAll(t, s); out != want {
			t.Errorf("cat on a terminal, given %q, says %q, want %q", input, out, want)
		}
		if status := Wait(t, h); status != 0 {
			t.Errorf("Wait = %#x, want 0", status)
		}
	}
}

func interruptIsTyped(t *testing.T, e *Env, l launcher.Launcher) {
	h := Start(t, l, e.Attached(containerv1.Container_TERMINAL, "sh", "-c", "echo up; sleep 1000; echo unreached"))
	s := Attach(t, h)
	ReadUntil(t, s, "up")
	write(t, s, "\x03")
	ReadAll(t, s)
	if ws := syscall.WaitStatus(Wait(t, h)); !ws.Signaled() || ws.Signal() != syscall.SIGINT {
		t.Errorf("Wait = %#x, want death by SIGINT", ws)
	}
}

func terminalOutlivesTheAgent(t *testing.T, e *Env, l launcher.Launcher) {
	h := Start(t, l, e.Attached(containerv1.Container_TERMINAL, "sh", "-c", "stty -echo; echo up; while read x; do echo got $x; done"))
	s := Attach(t, h)
	ReadUntil(t, s, "up")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := l.Reattach(Context(t), h.State())
	if err != nil {
		t.Fatal(err)
	}
	s = Attach(t, again)
	write(t, s, "hello\n")
	if out := ReadUntil(t, s, "got hello\r\n"); strings.Contains(out, "up") {
		t.Errorf("what was read before comes again: %q", out)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// Written while nobody was there.
	writer := Attach(t, again)
	write(t, writer, "away\n")
	closeWrite(t, writer)
	Wait(t, again)
	if out, _ := ReadAll(t, Attach(t, again)); out != "got away\r\n" {
		t.Errorf("the next reader gets %q", out)
	}
	if err := again.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
}

func bigOutputArrivesWhole(t *testing.T, e *Env, l launcher.Launcher) {
	const size = 64 << 20
	name := e.Dir + "/big"
	var text []byte
	for i := 0; len(text) < size; i++ {
		text = fmt.Appendf(text, "line %d %s\n", i, "and some more, so that there are fewer of them, and a terminal that ends each in its own way has less to do")
	}
	// The kernel's part of a terminal is slow.
	for kind, text := range map[containerv1.Container_Streams][]byte{containerv1.Container_ATTACHED: text, containerv1.Container_TERMINAL: text[:size/8]} {
		if err := os.WriteFile(name, text, 0o644); err != nil {
			t.Fatal(err)
		}
		h := Create(t, l, e.Attached(kind, "sh", "-c", "cat "+name+"; read x"))
		s := Attach(t, h)
		shim := ShimOf(t, h)
		if err := h.Start(Context(t)); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		for n := 0; n < len(text); {
			c, err := s.Read()
			if err != nil {
				t.Fatalf("Read = %v after %d bytes", err, n)
			}
			got := bytes.ReplaceAll(c.Data, []byte{'\r'}, nil)
			if !bytes.HasPrefix(text[n:], got) {
				t.Fatalf("%v: output is not as written after %d bytes: %q", kind, n, tail(string(got)))
			}
			n += len(got)
		}
		t.Logf("%v: %d MiB in %v", kind, len(text)>>20, time.Since(begin).Round(time.Millisecond))
		if n := field(t, fmt.Sprintf("/proc/%d/status", shim), "RssAnon"); n > 2048 {
			t.Errorf("%v: the shim has grown to %d KiB", kind, n)
		}
		closeWrite(t, s)
		if out, _ := ReadAll(t, s); out != "" {
			t.Errorf("%v: %q follows", kind, tail(out))
		}
	}
}

// count asks for a container that writes n bytes and then makes a file, and returns what says whether the file is there.
func (e *Env) count(n int) (*launcher.Request, func() bool) {
	e.n++
	mark := fmt.Sprintf("%s/wrote%d", e.Dir, e.n)
	r := e.Attached(containerv1.Container_ATTACHED, "sh", "-c", fmt.Sprintf("head -c %d /dev/zero; touch %s; read x", n, mark))
	return r, func() bool { _, err := os.Lstat(mark); return err == nil }
}

func firstReaderIsWaitedFor(t *testing.T, e *Env, l launcher.Launcher) {
	const size = 8 << 20
	r, wrote := e.count(size)
	h := Create(t, l, r)
	s := Attach(t, h)
	if err := h.Start(Context(t)); err != nil {
		t.Fatal(err)
	}
	c, err := s.Read() // and no more
	if err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the process waits", func() bool { return anyBlocked(t, e, r) })
	if wrote() {
		t.Error("the process has written 8 MiB that nobody read")
	}
	n := len(c.Data)
	for n < size {
		c, err := s.Read()
		if err != nil {
			t.Fatalf("Read = %v after %d bytes", err, n)
		}
		n += len(c.Data)
	}
	Eventually(t, "the process goes on", wrote)
}

func anyBlocked(t *testing.T, e *Env, r *launcher.Request) bool {
	for _, pid := range Members(t, e, r) {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid)); err == nil && strings.Contains(string(b), "pipe_write") {
			return true
		}
	}
	return false
}

func slowLookerOnIsCutOff(t *testing.T, e *Env, l launcher.Launcher) {
	const size = 8 << 20
	r, wrote := e.count(size)
	h := Create(t, l, r)
	person, looker := Attach(t, h), Attach(t, h)
	if err := h.Start(Context(t)); err != nil {
		t.Fatal(err)
	}
	n := 0
	read := func() {
		c, err := person.Read()
		if err != nil {
			t.Fatalf("Read = %v after %d bytes", err, n)
		}
		n += len(c.Data)
	}
	read()
	c, err := looker.Read() // and no more for the time
	if err != nil {
		t.Fatal(err)
	}
	seen := len(c.Data)
	for n < size {
		read()
	}
	Eventually(t, "the process is done", wrote)
	for err == nil {
		c, err = looker.Read()
		seen += len(c.Data)
	}
	if !errors.Is(err, launcher.ErrSlow) || seen >= size {
		t.Errorf("who looked on slowly gets %d bytes and %v, want fewer than all and ErrSlow", seen, err)
	}
}

func goneReaderHoldsNobodyUp(t *testing.T, e *Env, l launcher.Launcher) {
	r, wrote := e.count(8 << 20)
	h := Create(t, l, r)
	s := Attach(t, h)
	if err := h.Start(Context(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the process waits", func() bool { return anyBlocked(t, e, r) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the process goes on", wrote)
	s = Attach(t, h)
	write(t, s, "\n")
	if out, _ := ReadAll(t, s); len(out) != 64<<10 {
		t.Errorf("the next reader gets %d bytes, want the last 64 KiB", len(out))
	}
}

func grandchildHoldsPipe(t *testing.T, e *Env, l launcher.Launcher) {
	for _, kind := range []containerv1.Container_Streams{containerv1.Container_ATTACHED, containerv1.Container_TERMINAL} {
		h := Start(t, l, e.Attached(kind, "sh", "-c", "trap '' HUP; setsid sleep 1000 & echo out"))
		s := Attach(t, h)
		begin := time.Now()
		out, _ := ReadAll(t, s)
		if took := time.Since(begin); !strings.HasPrefix(out, "out") || took > 10*time.Second {
			t.Errorf("%v: got %q after %v", kind, out, took)
		}
		Wait(t, h)
	}
}

func lostShimEndsItsStreams(t *testing.T, e *Env, l launcher.Launcher) {
	Subreaper(t)
	h := Start(t, l, e.Attached(containerv1.Container_TERMINAL, "sh", "-c", "echo up; sleep 1000"))
	s := Attach(t, h)
	ReadUntil(t, s, "up")
	if err := syscall.Kill(ShimOf(t, h), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		_, err = s.Read()
	}
	if !errors.Is(err, launcher.ErrGone) {
		t.Errorf("Read of a lost shim's streams = %v, want ErrGone", err)
	}
	// The terminal hung up, which ends the process; this test is its heir.
	Eventually(t, "the container has another parent", func() bool { return ShimOf(t, h) == os.Getpid() })
	if _, err := syscall.Wait4(h.Pid(), nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Write([]byte("x")); !errors.Is(err, launcher.ErrEnded) {
		t.Errorf("Write to a lost shim = %v, want ErrEnded", err)
	}
	if _, err := h.(launcher.Attacher).Attach(Context(t)); !errors.Is(err, launcher.ErrGone) {
		t.Errorf("Attach to a lost shim = %v, want ErrGone", err)
	}
}

func userMayReopenItsStreams(t *testing.T, e *Env, l launcher.Launcher) {
	for _, kind := range []containerv1.Container_Streams{containerv1.Container_ATTACHED, containerv1.Container_TERMINAL} {
		r := e.Attached(kind, "sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr; cat </dev/stdin")
		r.User = launcher.User{UID: 65534, GID: 65534}
		h := Start(t, l, r)
		s := Attach(t, h)
		write(t, s, "in\n")
		closeWrite(t, s)
		out, errs := ReadAll(t, s)
		if all := out + errs; !strings.Contains(all, "out") || !strings.Contains(all, "err") || !strings.Contains(all, "in") {
			t.Errorf("%v: got %q and %q", kind, out, errs)
		}
		Wait(t, h)
	}
}
