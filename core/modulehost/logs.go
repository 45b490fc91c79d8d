package modulehost

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"gopkg.in/natefinch/lumberjack.v2"
)

const (
	// maxLogLine is the longest line kept of what a module writes; the rest of it is cut and marked.
	maxLogLine = 16 << 10
	// logLinesPerSecond is what a module may log; what is above is counted and told in one line.
	logLinesPerSecond = 1000
	// logQueue is how many lines may wait for a slow disk before they are dropped: one second's worth.
	logQueue = logLinesPerSecond
	// lastWords is how many of the last lines explain a module that did not come up.
	lastWords = 5
	// keptLines is how many are kept: the bundle lists its modules when it does not have the one it is asked for.
	keptLines = 200
)

// logPump takes what a module writes to its error stream, one line a record, to the agent's log and the module's own
// file. It never holds the module up: what cannot be written in time is dropped and counted.
type logPump struct {
	out     *slog.Logger
	level   *slog.LevelVar
	file    io.Closer // nil without a file
	lines   chan []byte
	limit   *rate.Limiter
	dropped atomic.Int64
	done    chan struct{}

	mu      sync.Mutex // guards what follows
	last    []string
	crashed bool // last begins with a crash
	held    bool // lines wait in waiting until it is known whether they are of the module
	waiting [][]byte
}

// newLogPump starts the writer; close ends it. folder may be empty, for no file.
func newLogPump(out *slog.Logger, folder, name string) *logPump {
	p := &logPump{
		level: new(slog.LevelVar),
		lines: make(chan []byte, logQueue),
		limit: rate.NewLimiter(logLinesPerSecond, logLinesPerSecond),
		done:  make(chan struct{}),
	}
	handlers := fanout{out.Handler()}
	if folder != "" {
		file := &lumberjack.Logger{Filename: filepath.Join(folder, name+".log"), MaxSize: 10, MaxBackups: 3}
		p.file = file
		handlers = append(handlers, slog.NewJSONHandler(file, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	p.out = slog.New(handlers)
	go p.write()
	return p
}

// close writes what is queued and ends. Nothing may be read any more.
func (p *logPump) close() error {
	close(p.lines)
	<-p.done
	if p.file == nil {
		return nil
	}
	return p.file.Close()
}

// read queues the lines of r until it ends.
func (p *logPump) read(r io.Reader) {
	buf := make([]byte, 0, 4096)
	cut := false // inside a line that is already queued up to the cap
	chunk := make([]byte, 4096)
	for {
		n, err := r.Read(chunk)
		for data := chunk[:n]; len(data) > 0; {
			line, rest, end := bytes.Cut(data, []byte{'\n'})
			data = rest
			if !cut {
				take := min(len(line), maxLogLine-len(buf))
				buf = append(buf, line[:take]...)
				if take < len(line) {
					buf = append(buf, " [cut]"...)
					p.queue(buf)
					buf, cut = buf[:0], true
				}
			}
			if end {
				if !cut && len(buf) > 0 {
					p.queue(buf)
				}
				buf, cut = buf[:0], false
			}
		}
		if err != nil {
			if len(buf) > 0 {
				p.queue(buf)
			}
			return
		}
	}
}

func (p *logPump) queue(line []byte) {
	p.remember(line)
	if p.wait(line) {
		return
	}
	p.send(line)
}

// hold keeps lines back until release: those of a bundle that does not hold the module are not the module's.
func (p *logPump) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = true
}

// release sends what was held back, or forgets it.
func (p *logPump) release(send bool) {
	p.mu.Lock()
	waiting := p.waiting
	p.held, p.waiting = false, nil
	p.mu.Unlock()
	if send {
		for _, line := range waiting {
			p.send(line)
		}
	}
}

// wait says whether a line is held back.
func (p *logPump) wait(line []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held && len(p.waiting) < keptLines {
		p.waiting = append(p.waiting, bytes.Clone(line))
	}
	return p.held
}

func (p *logPump) send(line []byte) {
	if !p.limit.Allow() {
		p.dropped.Add(1)
		return
	}
	select {
	case p.lines <- bytes.Clone(line):
	default:
		p.dropped.Add(1)
	}
}

// remember keeps the last lines. Of a crash the first lines say why and the others where, so those are kept.
func (p *logPump) remember(line []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if isPanic(line) && !p.crashed {
		p.last, p.crashed = nil, true
	}
	if len(p.last) == keptLines {
		if p.crashed {
			return
		}
		copy(p.last, p.last[1:])
		p.last = p.last[:keptLines-1]
	}
	p.last = append(p.last, string(line[:min(len(line), 300)]))
}

// words gives the lines that explain an end.
func (p *logPump) words() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	words := p.last
	if n := len(words); n > lastWords && p.crashed {
		words = words[:lastWords]
	} else if n > lastWords {
		words = words[n-lastWords:]
	}
	return strings.Join(words, "; ")
}

// usage gives the names of one kind that the bundle listed, a line each: "  isolator/cgroups  what it is for".
func (p *logPump) usage(kind string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for _, line := range p.last {
		if fields := strings.Fields(line); len(fields) > 0 {
			if name, ok := strings.CutPrefix(fields[0], kind+"/"); ok {
				names = append(names, name)
			}
		}
	}
	return names
}

// forget begins the words of another life.
func (p *logPump) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.crashed = nil, false
}

func isPanic(line []byte) bool {
	return bytes.HasPrefix(line, []byte("panic: ")) || bytes.HasPrefix(line, []byte("fatal error: "))
}

func (p *logPump) write() {
	defer close(p.done)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	tell := func() {
		if n := p.dropped.Swap(0); n > 0 {
			p.out.Warn(fmt.Sprintf("dropped %d log lines of the module", n), "dropped", n)
		}
	}
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				tell()
				return
			}
			p.emit(parseLogLine(line, time.Now()))
		case <-tick.C:
			tell()
		}
	}
}

func (p *logPump) emit(r slog.Record) {
	if r.Level < p.level.Level() {
		return
	}
	if h := p.out.Handler(); h.Enabled(context.Background(), r.Level) {
		// A log that cannot be written has nowhere to be told.
		_ = h.Handle(context.Background(), r)
	}
}

// parseLogLine reads JSON with the keys level, msg and time, or hclog's @level, @message and @timestamp; anything else
// is a message at level INFO.
func parseLogLine(line []byte, now time.Time) slog.Record {
	var fields map[string]any
	if len(line) == 0 || line[0] != '{' || json.Unmarshal(line, &fields) != nil {
		level := slog.LevelInfo
		if isPanic(line) {
			level = slog.LevelError
		}
		return slog.NewRecord(now, level, strings.ToValidUTF8(string(line), "\uFFFD"), 0)
	}
	take := func(keys ...string) string {
		for _, key := range keys {
			if s, ok := fields[key].(string); ok {
				delete(fields, key)
				return s
			}
		}
		return ""
	}
	level := logLevel(take("level", "@level"))
	message := take("msg", "@message", "message")
	when, err := time.Parse(time.RFC3339Nano, take("time", "@timestamp", "ts"))
	if err != nil {
		when = now
	}
	r := slog.NewRecord(when, level, message, 0)
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		r.AddAttrs(slog.Any(key, fields[key]))
	}
	return r
}

func logLevel(text string) slog.Level {
	switch strings.ToUpper(text) {
	case "TRACE", "DEBUG":
		return slog.LevelDebug
	case "WARN", "WARNING":
		return slog.LevelWarn
	case "ERROR", "FATAL", "PANIC", "CRITICAL":
		return slog.LevelError
	default:
		return slog.LevelInfo
	}
}

// fanout writes each record to several handlers.
type fanout []slog.Handler

func (f fanout) Enabled(ctx context.Context, level slog.Level) bool {
	return slices.ContainsFunc(f, func(h slog.Handler) bool { return h.Enabled(ctx, level) })
}

func (f fanout) Handle(ctx context.Context, r slog.Record) error {
	var errs []error
	for _, h := range f {
		if h.Enabled(ctx, r.Level) {
			errs = append(errs, h.Handle(ctx, r.Clone()))
		}
	}
	return errors.Join(errs...)
}

func (f fanout) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := make(fanout, len(f))
	for i, h := range f {
		out[i] = h.WithAttrs(attrs)
	}
	return out
}

func (f fanout) WithGroup(name string) slog.Handler {
	out := make(fanout, len(f))
	for i, h := range f {
		out[i] = h.WithGroup(name)
	}
	return out
}

// drain reads a pipe until everybody who could write to it is gone, or for patience after ended is closed: a process
// that escaped its cgroup may hold the other end for ever.
func drain(r *os.File, ended <-chan struct{}, patience time.Duration, read func(io.Reader)) {
	finished := make(chan struct{})
	go func() {
		select {
		case <-ended:
			_ = r.SetReadDeadline(time.Now().Add(patience))
		case <-finished:
		}
	}()
	read(r)
	close(finished)
	r.Close()
}
