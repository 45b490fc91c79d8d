package fetcher

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// ftpServer speaks enough FTP to be fetched from, and lies where a test asks for it.
type ftpServer struct {
	net.Listener
	files   map[string]string
	secure  *tls.Config       // nil: no TLS
	instead map[string]string // by verb: the answer given instead, without its line end; "" hangs up
	cut     int               // bytes of a file after which the data ends early; 0: none
	holds   chan struct{}     // if not nil, files wait for it

	mu    sync.Mutex // guards asked
	asked []string
}

func newFTP(t *testing.T, change ...func(*ftpServer)) *ftpServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &ftpServer{Listener: l, files: map[string]string{"pub/a.txt": "by ftp\n", "/etc/absolute": "from the root\n"}, instead: map[string]string{}}
	for _, c := range change {
		c(s)
	}
	var sessions sync.WaitGroup
	sessions.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			sessions.Go(func() { s.session(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		sessions.Wait()
	})
	return s
}

func (s *ftpServer) session(conn net.Conn) {
	defer conn.Close()
	if s.secure != nil {
		conn = tls.Server(conn, s.secure)
	}
	var data net.Listener
	defer func() {
		if data != nil {
			data.Close()
		}
	}()
	say := func(text string) { fmt.Fprintf(conn, "%s\r\n", text) }
	listen := func() int {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0
		}
		data = l
		return l.Addr().(*net.TCPAddr).Port
	}
	say("220-welcome\r\n220-220 is not the end\r\n220 ready")
	in := bufio.NewScanner(conn)
	for in.Scan() {
		verb, argument, _ := strings.Cut(in.Text(), " ")
		s.mu.Lock()
		s.asked = append(s.asked, in.Text())
		s.mu.Unlock()
		if answer, ok := s.instead[verb]; ok {
			if answer == "" {
				return
			}
			say(answer)
			continue
		}
		switch verb {
		case "USER":
			say("331 your password?")
		case "PASS", "PBSZ", "PROT", "TYPE":
			say(map[bool]string{true: "230 in", false: "200 well"}[verb == "PASS"])
		case "SIZE":
			if body, ok := s.files[argument]; ok {
				say(fmt.Sprint("213 ", len(body)))
			} else {
				say("550 no such file")
			}
		case "EPSV":
			say(fmt.Sprintf("229 come (|||%d|)", listen()))
		case "PASV":
			port := listen()
			say(fmt.Sprintf("227 come (203,0,113,7,%d,%d).", port>>8, port&255)) // not here
		case "RETR":
			body, ok := s.files[argument]
			if !ok {
				say("550 no such file")
				continue
			}
			say("150 coming")
			if out, err := data.Accept(); err == nil {
				if s.secure != nil {
					out = tls.Server(out, s.secure)
				}
				if s.cut > 0 {
					body = body[:s.cut]
				}
				if s.holds != nil {
					<-s.holds
				}
				io.WriteString(out, body)
				out.Close()
			}
			say("226 sent")
		default:
			say("502 what?")
		}
	}
}

func (s *ftpServer) url(path string) string { return "ftp://" + s.Addr().String() + path }

// count is how often the server was asked that.
func (s *ftpServer) count(line string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, l := range s.asked {
		if l == line {
			n++
		}
	}
	return n
}

func TestFilesComeByFTP(t *testing.T) {
	plain := newFTP(t)
	old := newFTP(t, func(s *ftpServer) { s.instead["EPSV"] = "500 what?"; s.instead["SIZE"] = "500 what?" })
	open := newFTP(t, func(s *ftpServer) { s.instead["USER"] = "230 come in" })
	for _, x := range []struct{ value, want string }{
		{plain.url("/pub/a.txt"), "by ftp\n"},
		{plain.url("/%2Fetc/absolute"), "from the root\n"},
		{"ftp://carol:open%20sesame@" + plain.Addr().String() + "/pub/a.txt", "by ftp\n"},
		{old.url("/pub/a.txt"), "by ftp\n"},
		{open.url("/pub/a.txt"), "by ftp\n"},
	} {
		for _, change := range []func(*mesosv1.CommandInfo_URI){cached, func(*mesosv1.CommandInfo_URI) {}} {
			sandbox := t.TempDir()
			if err := newFetcher(t).Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(x.value, change, to("out"))}, Sandbox: sandbox}); err != nil {
				t.Errorf("Fetch(%s): %v", x.value, err)
			}
			if b, err := os.ReadFile(filepath.Join(sandbox, "out")); string(b) != x.want {
				t.Errorf("Fetch(%s) brought %q, %v; want %q", x.value, b, err, x.want)
			}
		}
	}
	if plain.count("PASS open sesame") != 2 || plain.count("USER carol") != 2 {
		t.Errorf("the server was told %q, want carol and her password twice", plain.asked)
	}
	f := newFetcher(t)
	for range 3 {
		if err := f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(plain.url("/pub/a.txt"), cached)}, Sandbox: t.TempDir()}); err != nil {
			t.Fatal(err)
		}
	}
	if n := plain.count("RETR pub/a.txt"); n != 5 {
		t.Errorf("the file was sent %d times, want 4 before and once for three that cache", n)
	}
}

func TestFilesComeByFTPS(t *testing.T) {
	https := httptest.NewTLSServer(nil) // for its certificate
	defer https.Close()
	secure := newFTP(t, func(s *ftpServer) {
		s.secure = &tls.Config{Certificates: https.TLS.Certificates, MinVersion: tls.VersionTLS12}
	})
	value := "ftps://" + secure.Addr().String() + "/pub/a.txt"
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: https.Certificate().Raw})
	sandbox := t.TempDir()
	r := Request{URIs: []*mesosv1.CommandInfo_URI{uri(value)}, Sandbox: sandbox}
	if err := newFetcher(t, func(c *Config) { c.CA = ca }).Fetch(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(sandbox, "a.txt")); string(b) != "by ftp\n" {
		t.Errorf("Fetch(%s) brought %q, %v", value, b, err)
	}
	if secure.count("PROT P") != 1 {
		t.Errorf("the server was told %q, want PROT P", secure.asked)
	}
	if err := newFetcher(t).Fetch(t.Context(), r); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("Fetch(%s) of a server that nobody knows: %v, want its certificate refused", value, err)
	}
}

func TestWhatAnFTPServerSaysIsNotBelievedBlindly(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	for name, x := range map[string]struct {
		path   string
		change func(*ftpServer)
		want   string
	}{
		"no such file":          {"/pub/none", func(*ftpServer) {}, "server answered RETR with 550 no such file"},
		"not let in":            {"/pub/a.txt", func(s *ftpServer) { s.instead["PASS"] = "530 go away" }, "530 go away"},
		"less than it said":     {"/pub/a.txt", func(s *ftpServer) { s.cut = 3 }, "3 of 7 bytes came"},
		"no word at the end":    {"/pub/a.txt", func(s *ftpServer) { s.instead["RETR"] = "" }, "EOF"},
		"an answer without end": {"/pub/a.txt", func(s *ftpServer) { s.instead["TYPE"] = "200-" + long }, "more than 65536 bytes"},
		"no FTP":                {"/pub/a.txt", func(s *ftpServer) { s.instead["USER"] = "SSH-2.0-x" }, "no answer of FTP"},
		"no port":               {"/pub/a.txt", func(s *ftpServer) { s.instead["EPSV"] = "229 come (||||)" }, "names no port"},
		"a port beyond all":     {"/pub/a.txt", func(s *ftpServer) { s.instead["EPSV"] = "229 come (|||99999|)" }, "names no port"},
		"numbers that are none": {"/pub/a.txt", func(s *ftpServer) { s.instead["EPSV"] = "500 no"; s.instead["PASV"] = "227 (1,2,3,4,999,1)" }, "names no port"},
		"a folder":              {"/pub/", func(*ftpServer) {}, "URI of a folder"},
		"a command in the path": {"/pub/a%0D%0ADELE%20b", func(*ftpServer) {}, "line end"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFTP(t, x.change)
			sandbox := t.TempDir()
			err := newFetcher(t).Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(s.url(x.path), to("out"))}, Sandbox: sandbox})
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("Fetch: got %v, want %q", err, x.want)
			}
			if _, err := os.Stat(filepath.Join(sandbox, "out")); err == nil {
				t.Error("half a file is there")
			}
		})
	}
}

func TestAnFTPServerThatStandsStillIsGivenUp(t *testing.T) {
	s := newFTP(t, func(s *ftpServer) { s.holds = make(chan struct{}) })
	defer close(s.holds)
	r := Request{URIs: []*mesosv1.CommandInfo_URI{uri(s.url("/pub/a.txt"))}, Sandbox: t.TempDir()}
	err := newFetcher(t, func(c *Config) { c.StallTimeout = 100 * time.Millisecond }).Fetch(t.Context(), r)
	if err == nil || !strings.Contains(err.Error(), "nothing came for 100ms") {
		t.Errorf("Fetch: got %v, want that nothing came", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if err := newFetcher(t).Fetch(ctx, r); err == nil || time.Since(begun) > 30*time.Second {
		t.Errorf("Fetch that is called off ended with %v after %s", err, time.Since(begun))
	}
}
