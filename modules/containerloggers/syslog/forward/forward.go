// Package forward sends lines to a syslog server: a local daemon's socket, or one on the network by UDP or TCP.
//
// It promises that who writes the lines is never held up by the server: what does not fit into the buffer while the
// server is away or slow is dropped, and how many lines that were is told in their place. A line is sent again when it
// is not known to have arrived, so a TCP server may see one twice. It uses nothing but the standard library: it is linked
// into a process of its own for each stream of each container.
//
// Sources: RFC 5424 for the message, RFC 5426 and 6587 (octet counting) for UDP and TCP, RFC 3164 as local daemons and
// journald read it on their socket.
package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// DefaultLine is how long a message may be; receivers should take 2048 bytes and mostly take 8192.
	DefaultLine = 8192
	// DefaultBuffer is what is held while the server is away: some seconds of a talkative task.
	DefaultBuffer = 1 << 20
	// lastWords is how long the end of the input may take to be sent.
	lastWords = 3 * time.Second
	// ioTimeout is how long a server may take nothing before its connection is given up.
	ioTimeout = 5 * time.Second
	// Connecting is tried again after retryFirst, then after twice as long each time up to retryMost.
	retryFirst = 100 * time.Millisecond
	retryMost  = 10 * time.Second
)

// Config says where to and how.
type Config struct {
	// Required. "unix:///dev/log", "udp://host:514" or "tcp://host:601".
	Address string
	// "rfc5424" or "rfc3164"; empty means the latter for unix, the former for the others.
	Format string
	// Facility and severity by number: 0 to 23, 0 to 7.
	Facility, Severity int
	// What the message is of; parts that are empty are left out.
	Hostname, App, ProcID string
	// Name and value of structured data, in pairs.
	Data []string
	// Bytes of one message's text; a longer line is cut into several. Default DefaultLine.
	Line int
	// Bytes that are held. Default DefaultBuffer.
	Buffer int
	// Default: time.Now.
	Now func() time.Time
}

// A target is a Config made ready.
type target struct {
	Config
	network, address string
	head, tail       string // of a message, around its time
}

// Check says what is wrong with a configuration.
func Check(c Config) error {
	_, err := prepare(c)
	return err
}

func prepare(c Config) (*target, error) {
	t := &target{Config: c}
	var ok bool
	if t.network, t.address, ok = strings.Cut(c.Address, "://"); !ok {
		return nil, fmt.Errorf("address %q: want unix://path, udp://host:port or tcp://host:port", c.Address)
	}
	switch t.network {
	case "unix":
		if !strings.HasPrefix(t.address, "/") {
			return nil, fmt.Errorf("address %q: want an absolute path", c.Address)
		}
	case "udp", "tcp":
		if _, port, err := net.SplitHostPort(t.address); err != nil || port == "" {
			return nil, fmt.Errorf("address %q: want a host and a port", c.Address)
		}
	default:
		return nil, fmt.Errorf("address %q: want unix, udp or tcp", c.Address)
	}
	if t.Format == "" {
		t.Format = "rfc5424"
		if t.network == "unix" {
			t.Format = "rfc3164"
		}
	}
	if c.Facility < 0 || c.Facility > 23 || c.Severity < 0 || c.Severity > 7 {
		return nil, fmt.Errorf("facility %d, severity %d: want 0 to 23 and 0 to 7", c.Facility, c.Severity)
	}
	if t.Line <= 0 {
		t.Line = DefaultLine
	}
	if t.Buffer <= 0 {
		t.Buffer = DefaultBuffer
	}
	if t.Now == nil {
		t.Now = time.Now
	}
	priority := "<" + strconv.Itoa(8*c.Facility+c.Severity) + ">"
	switch t.Format {
	case "rfc5424":
		t.head = priority + "1 "
		t.tail = " " + word(c.Hostname, 255) + " " + word(c.App, 48) + " " + word(c.ProcID, 128) + " - " + data(c.Data) + " "
	case "rfc3164":
		t.head, t.tail = priority, " "
		if t.network != "unix" { // local daemons know where they are
			t.tail += word(c.Hostname, 255) + " "
		}
		t.tail += strings.ReplaceAll(word(c.App, 48), ":", "_")
		if c.ProcID != "" {
			t.tail += "[" + word(c.ProcID, 128) + "]"
		}
		t.tail += ": "
	default:
		return nil, fmt.Errorf("format %q: want rfc5424 or rfc3164", c.Format)
	}
	return t, nil
}

// word is a field of a header: printable ASCII without spaces, "-" for none.
func word(s string, most int) string {
	b := []byte(s[:min(len(s), most)])
	for i, c := range b {
		if c <= ' ' || c > '~' {
			b[i] = '_'
		}
	}
	if len(b) == 0 {
		return "-"
	}
	return string(b)
}

// data is RFC 5424's structured data of pairs. 32473 is the number that RFC 5612 sets aside for those without their own.
func data(pairs []string) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			continue
		}
		value := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`).Replace(strings.ToValidUTF8(pairs[i+1], "?"))
		b.WriteString(" " + word(pairs[i], 32) + `="` + value + `"`)
	}
	if b.Len() == 0 {
		return "-"
	}
	return "[mosaic@32473" + b.String() + "]"
}

// message is one line, ready to be sent; a stream's with its length or end.
func (t *target) message(at time.Time, line []byte) []byte {
	stamp := at.UTC().Format("2006-01-02T15:04:05.000000Z07:00")
	if t.Format == "rfc3164" {
		stamp = at.Local().Format(time.Stamp)
	}
	m := make([]byte, 0, len(t.head)+len(stamp)+len(t.tail)+len(line)+8)
	m = append(append(append(m, t.head...), stamp...), t.tail...)
	for _, c := range line { // what a terminal would be told to do is no text
		if c < ' ' && c != '\t' || c == 0x7f {
			c = ' '
		}
		m = append(m, c)
	}
	if t.network == "tcp" {
		return append([]byte(strconv.Itoa(len(m))+" "), m...)
	}
	return m
}

// A queue holds lines that are not sent yet.
type queue struct {
	mu      sync.Mutex
	lines   [][]byte // guarded by mu; messages
	bytes   int      // guarded by mu; in lines
	dropped int      // guarded by mu; lines since the last that had room
	ended   bool     // guarded by mu
	more    chan struct{}
}

// put appends a line, or drops it if there is no room.
func (q *queue) put(t *target, line []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bytes+len(line) > t.Buffer && len(q.lines) > 0 {
		q.dropped++
		return
	}
	q.tell(t)
	m := t.message(t.Now(), line)
	q.lines, q.bytes = append(q.lines, m), q.bytes+len(m)
	q.rouse()
}

// tell puts in how many lines were dropped. mu is held.
func (q *queue) tell(t *target) {
	if q.dropped > 0 {
		m := t.message(t.Now(), fmt.Appendf(nil, "mosaic: %d lines were dropped here: the syslog server did not take them in time", q.dropped))
		q.lines, q.bytes, q.dropped = append(q.lines, m), q.bytes+len(m), 0
	}
}

func (q *queue) rouse() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

func (q *queue) end(t *target) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.tell(t)
	q.ended = true
	q.rouse()
}

// first is the line to be sent next; nil when there is none, and then whether there will be.
func (q *queue) first() (line []byte, ended bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.lines) == 0 {
		return nil, q.ended
	}
	return q.lines[0], false
}

func (q *queue) sent() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes -= len(q.lines[0])
	q.lines[0] = nil
	q.lines = q.lines[1:]
}

// Run sends what in brings, line by line, until it ends and everything is sent, or some seconds passed after its end.
//
// Errors: a wrong configuration, an error of in other than its end, lines that could not be sent at the end.
func Run(in io.Reader, c Config) error {
	t, err := prepare(c)
	if err != nil {
		return err
	}
	q := &queue{more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- t.send(ctx, q) }() // ends with the queue or with ctx
	err = read(in, t, q)
	q.end(t)
	timer := time.AfterFunc(lastWords, cancel)
	defer timer.Stop()
	return errors.Join(err, <-done)
}

// read puts the lines of in into the queue. It never waits for anything but in.
func read(in io.Reader, t *target, q *queue) error {
	r := bufio.NewReaderSize(in, max(t.Line, 16))
	for cut := false; ; {
		line, err := r.ReadSlice('\n')
		rest := cut && len(line) == 1 && line[0] == '\n' // the end of a line that had just room
		cut = errors.Is(err, bufio.ErrBufferFull)
		if len(line) > 0 && !rest {
			n := len(line)
			if line[n-1] == '\n' {
				line = line[:n-1]
			}
			q.put(t, line)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !cut:
			return fmt.Errorf("read: %w", err)
		}
	}
}

// send sends what is in the queue, over as many connections as that takes.
func (t *target) send(ctx context.Context, q *queue) error {
	var conn net.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close() // everything is written or lost by now
		}
	}()
	wait := retryFirst
	for {
		line, ended := q.first()
		if line == nil {
			if ended {
				return nil
			}
			select {
			case <-q.more:
			case <-ctx.Done():
			}
			if ctx.Err() == nil {
				continue
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("send to %s: not everything was taken in time", t.Address)
		}
		var err error
		if conn == nil {
			conn, err = t.connect(ctx)
		}
		if err == nil {
			if err = conn.SetWriteDeadline(time.Now().Add(ioTimeout)); err == nil {
				_, err = conn.Write(line)
			}
			if err != nil && !tooLong(err) {
				_ = conn.Close()
				conn = nil
			} else {
				err = nil // what no server can take is not tried for ever
			}
		}
		if err == nil {
			q.sent()
			wait = retryFirst
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		wait = min(2*wait, retryMost)
	}
}

func (t *target) connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	var d net.Dialer
	if t.network != "unix" {
		return d.DialContext(ctx, t.network, t.address)
	}
	conn, err := d.DialContext(ctx, "unixgram", t.address)
	if err == nil {
		return conn, nil
	}
	stream, serr := d.DialContext(ctx, "unix", t.address)
	if serr != nil {
		return nil, err
	}
	return lines{stream}, nil
}

// lines ends each message on a local stream by a newline.
type lines struct{ net.Conn }

func (l lines) Write(b []byte) (int, error) {
	n, err := l.Conn.Write(append(b[:len(b):len(b)], '\n'))
	return min(n, len(b)), err
}

// tooLong says whether a message is larger than the transport takes.
func tooLong(err error) bool { return errors.Is(err, errTooLong) }

// Hostname is the machine's, for messages.
func Hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}
