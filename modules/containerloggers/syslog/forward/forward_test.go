package forward

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func at() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC) }

func TestMessagesHaveTheirForm(t *testing.T) {
	full := Config{
		Facility: 16, Severity: 3, Hostname: "h", App: "web:1 x", ProcID: "c1", Now: at,
		Data: []string{"task", `a"b]c\d`, "executor", "", "stream", "stderr"},
	}
	for _, x := range []struct{ address, format, want string }{
		{"udp://h:514", "", `<131>1 2026-01-02T03:04:05.000006Z h web:1_x c1 - [mosaic@32473 task="a\"b\]c\\d" stream="stderr"] a line`},
		{"tcp://h:601", "", `132 <131>1 2026-01-02T03:04:05.000006Z h web:1_x c1 - [mosaic@32473 task="a\"b\]c\\d" stream="stderr"] a line`},
		{"unix:///dev/log", "", `<131>` + at().Local().Format(time.Stamp) + ` web_1_x[c1]: a line`},
		{"udp://h:514", "rfc3164", `<131>` + at().Local().Format(time.Stamp) + ` h web_1_x[c1]: a line`},
	} {
		c := full
		c.Address, c.Format = x.address, x.format
		target, err := prepare(c)
		if err != nil {
			t.Fatal(err)
		}
		got := string(target.message(at(), []byte("a\x1bline")))
		if x.address == "tcp://h:601" {
			length, rest, _ := strings.Cut(got, " ")
			if n, err := strconv.Atoi(length); err != nil || n != len(rest) {
				t.Errorf("length: got %s, want %d", length, len(rest))
			}
			_, x.want, _ = strings.Cut(x.want, " ")
			got = rest
		}
		if got != x.want {
			t.Errorf("%s %s: got\n%s, want\n%s", x.address, x.format, got, x.want)
		}
	}
	empty, err := prepare(Config{Address: "udp://h:514", Now: at})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(empty.message(at(), nil)), "<0>1 2026-01-02T03:04:05.000006Z - - - - - "; got != want {
		t.Errorf("of nothing: got %q, want %q", got, want)
	}
}

func TestWrongConfigurationsAreRefused(t *testing.T) {
	for _, c := range []Config{
		{}, {Address: "/dev/log"}, {Address: "unix://dev"}, {Address: "tcp://h"}, {Address: "udp://h:"}, {Address: "tls://h:1"},
		{Address: "udp://h:1", Format: "x"}, {Address: "udp://h:1", Facility: 24}, {Address: "udp://h:1", Severity: -1},
	} {
		if err := Check(c); err == nil {
			t.Errorf("Check(%+v): got no error", c)
		}
	}
}

// receive reads messages framed by their length until the connection ends.
func receive(conn net.Conn) (texts []string, err error) {
	r := bufio.NewReader(conn)
	for {
		length, err := r.ReadString(' ')
		if err == io.EOF {
			return texts, nil
		}
		if err != nil {
			return texts, err
		}
		n, err := strconv.Atoi(strings.TrimSpace(length))
		if err != nil {
			return texts, err
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return texts, err
		}
		_, text, _ := strings.Cut(string(b), " - - - - - ")
		texts = append(texts, text)
	}
}

func TestEveryLineArrivesByTCPAlsoWhenTheServerComesLate(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil { // nobody is there at first
		t.Fatal(err)
	}
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- Run(in, Config{Address: "tcp://" + address, Line: 100}) }()
	long := strings.Repeat("x", 100)
	fmt.Fprintf(out, "early\n%s\n%sy\n\n", long, long)
	if l, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	first := make(chan []string, 1)
	go func() {
		texts, _ := receive(conn) // ends with the connection
		first <- texts
	}()
	for n := range 1000 {
		fmt.Fprintf(out, "line %d\n", n)
	}
	out.Write([]byte("no end"))
	out.Close()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	want := []string{"early", long, long, "y", ""}
	for n := range 1000 {
		want = append(want, fmt.Sprintf("line %d", n))
	}
	want = append(want, "no end")
	if got := <-first; strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %d messages, want %d: %q...", len(got), len(want), got[:min(8, len(got))])
	}
}

func TestALocalDaemonGetsDatagramsOrLines(t *testing.T) {
	for _, network := range []string{"unixgram", "unix"} {
		path := filepath.Join(t.TempDir(), "log")
		var texts chan string
		if network == "unixgram" {
			c, err := net.ListenUnixgram(network, &net.UnixAddr{Name: path, Net: network})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			texts = make(chan string, 2)
			go func() { // ends after two
				b := make([]byte, 9000)
				for range 2 {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					texts <- string(b[:n])
				}
			}()
		} else {
			l, err := net.Listen(network, path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			texts = make(chan string, 2)
			go func() { // ends with the connection
				conn, err := l.Accept()
				if err != nil {
					return
				}
				for s := bufio.NewScanner(conn); s.Scan(); {
					texts <- s.Text()
				}
			}()
		}
		if err := Run(strings.NewReader("one\ntwo\n"), Config{Address: "unix://" + path, Facility: 1, Severity: 6, App: "t", ProcID: "c"}); err != nil {
			t.Errorf("%s: %v", network, err)
		}
		for _, text := range []string{"one", "two"} {
			if got := <-texts; !regexp.MustCompile(`^<14>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d t\[c\]: ` + text + `$`).MatchString(got) {
				t.Errorf("%s: got %q, want %s", network, got, text)
			}
		}
	}
}

func TestAServerThatIsAwayHoldsUpNobodyAndWhatIsLostIsCounted(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "log")
	done := make(chan error, 1)
	go func() { done <- Run(r, Config{Address: "unix://" + path, Buffer: 4096}) }()
	const lines = 100_000 // far more than pipe and buffer hold
	for n := range lines {
		if _, err := fmt.Fprintf(w, "line %d\n", n); err != nil {
			t.Fatal(err)
		}
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// What was held comes, and how many lines did not.
	b := make([]byte, 9000)
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	came, dropped := 0, 0
	for came+dropped < lines {
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("after %d lines that came and %d that were dropped: %v", came, dropped, err)
		}
		_, text, _ := strings.Cut(string(b[:n]), ": ")
		var k int
		if _, err := fmt.Sscanf(text, "mosaic: %d lines were dropped here", &k); err == nil {
			dropped += k
			continue
		}
		if text != fmt.Sprintf("line %d", came+dropped) {
			t.Fatalf("got %q, want line %d", text, came+dropped)
		}
		came++
	}
	if came == 0 || dropped == 0 {
		t.Errorf("got %d lines and %d dropped, want some of both", came, dropped)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestAnEndWithoutServerIsToldInTime(t *testing.T) {
	began := time.Now()
	err := Run(strings.NewReader("x\n"), Config{Address: "unix://" + filepath.Join(t.TempDir(), "log")})
	if err == nil || !strings.Contains(err.Error(), "not everything was taken") {
		t.Errorf("Run: got %v, want it to say that something was not sent", err)
	}
	if took := time.Since(began); took > lastWords+10*time.Second {
		t.Errorf("Run took %s, want about %s", took, lastWords)
	}
}
