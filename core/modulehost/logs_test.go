package modulehost

import (
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestLogLinesKeepTheirLevelInEachForm(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		line  string
		level slog.Level
		text  string
		attrs string
	}{
		{`{"level":"warn","msg":"low","time":"2025-01-01T00:00:00Z","disk":"sda"}`, slog.LevelWarn, "low", "disk=sda"},
		{`{"@level":"error","@message":"lost","@timestamp":"2025-01-01T00:00:00.5Z","@module":"x"}`, slog.LevelError, "lost", "@module=x"},
		{`{"level":"trace","message":"in"}`, slog.LevelDebug, "in", ""},
		{`{"level":3,"msg":["not text"]}`, slog.LevelInfo, "", "level=3 msg=[not text]"},
		{`plain text`, slog.LevelInfo, "plain text", ""},
		{`{"broken": `, slog.LevelInfo, `{"broken": `, ""},
		{`[1,2]`, slog.LevelInfo, `[1,2]`, ""},
		{``, slog.LevelInfo, "", ""},
		{"panic: oops", slog.LevelError, "panic: oops", ""},
		{"bad \xff utf", slog.LevelInfo, "bad \uFFFD utf", ""},
	} {
		r := parseLogLine([]byte(c.line), now)
		var attrs []string
		r.Attrs(func(a slog.Attr) bool { attrs = append(attrs, a.String()); return true })
		if r.Level != c.level || r.Message != c.text || strings.Join(attrs, " ") != c.attrs {
			t.Errorf("parseLogLine(%q) = %s %q %v, want %s %q %s", c.line, r.Level, r.Message, attrs, c.level, c.text, c.attrs)
		}
		if strings.Contains(c.line, "2025") == r.Time.Equal(now) {
			t.Errorf("parseLogLine(%q) has the time %s", c.line, r.Time)
		}
	}
}

func TestALongLineIsCutAndTheNextOneIsWhole(t *testing.T) {
	var log syncBuffer
	p := newLogPump(slog.New(slog.NewTextHandler(&log, nil)), "", "x")
	p.read(strings.NewReader("before\n" + strings.Repeat("x", 3*maxLogLine) + "\nafter\nunfinished"))
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	text := log.String()
	for _, want := range []string{"msg=before\n", "msg=after\n", "msg=unfinished\n", strings.Repeat("x", maxLogLine) + " [cut]"} {
		if !strings.Contains(text, want) {
			t.Errorf("log lacks %.40q", want)
		}
	}
	if strings.Count(text, "\n") != 4 {
		t.Errorf("log has %d lines, want 4", strings.Count(text, "\n"))
	}
}

// stuckLog is a log whose disk does not answer.
type stuckLog struct{ release chan struct{} }

func (s stuckLog) Write(p []byte) (int, error) {
	<-s.release
	return len(p), nil
}

func TestALogThatCannotBeWrittenDoesNotHoldTheModuleUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := stuckLog{make(chan struct{})}
		p := newLogPump(slog.New(slog.NewTextHandler(stuck, nil)), "", "x")
		p.read(strings.NewReader(strings.Repeat("line\n", 5*logQueue))) // returns, or the test deadlocks
		if dropped := p.dropped.Load(); dropped < 3*logQueue {
			t.Errorf("dropped %d of %d lines, want all that neither fit the queue nor the rate", dropped, 5*logQueue)
		}
		close(stuck.release)
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
}

func TestAPipeThatSomebodyElseKeepsOpenIsGivenUp(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ended := make(chan struct{})
	close(ended)
	done := make(chan struct{})
	go func() {
		defer close(done)
		drain(r, ended, 10*time.Millisecond, func(r io.Reader) { io.Copy(io.Discard, r) })
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("drain waits for a pipe that stays open")
	}
}
