package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// site answers by path.
func site(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/moved":
		http.Redirect(w, r, "/ok", http.StatusFound)
	case r.URL.Path == "/circle":
		http.Redirect(w, r, "/circle", http.StatusFound)
	case r.URL.Path == "/missing":
		w.WriteHeader(http.StatusNotFound)
	case r.URL.Path == "/broken":
		w.WriteHeader(http.StatusInternalServerError)
	case r.URL.Path == "/hang":
		<-r.Context().Done()
	case r.URL.Path == "/endless":
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	case r.URL.Path == "/headers":
		for i := range 1000 {
			w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 1000))
		}
	case r.Method != http.MethodGet || r.Header.Get("Accept") != "*/*":
		w.WriteHeader(http.StatusBadRequest)
	}
}

func port(addr net.Addr) uint32 { return uint32(addr.(*net.TCPAddr).Port) }

func TestHTTPChecksTakeAnswersAsCurlDoes(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(site))
	defer plain.Close()
	secret := httptest.NewTLSServer(http.HandlerFunc(site))
	defer secret.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for _, test := range []struct {
		name, scheme, path string
		port               uint32
		code               uint32 // 0: none
		problem            string // in it; empty: healthy
	}{
		{"an answer", "", "/", port(plain.Listener.Addr()), 200, ""},
		{"no path", "http", "", port(plain.Listener.Addr()), 200, ""},
		{"a query", "http", "/?a=[1-3]&b={x}", port(plain.Listener.Addr()), 200, ""},
		{"a certificate that nobody vouches for", "https", "/", port(secret.Listener.Addr()), 200, ""},
		{"a redirect", "http", "/moved", port(plain.Listener.Addr()), 200, ""},
		{"redirects without end", "http", "/circle", port(plain.Listener.Addr()), 0, "redirects"},
		{"not found", "http", "/missing", port(plain.Listener.Addr()), 404, "got HTTP status 404, want 200 to 399"},
		{"an error", "http", "/broken", port(plain.Listener.Addr()), 500, "500"},
		{"an endless body", "http", "/endless", port(plain.Listener.Addr()), 200, ""},
		{"a megabyte of headers", "http", "/headers", port(plain.Listener.Addr()), 0, "headers"},
		{"no answer in time", "http", "/hang", port(plain.Listener.Addr()), 0, "deadline"},
		{"nobody there", "http", "/", port(gone.Addr()), 0, "connection refused"},
		{"no such port", "http", "/", 70000, 0, "invalid port"},
		{"a path that is none", "http", "/%zz", port(plain.Listener.Addr()), 0, "invalid URL"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			h := &mesosv1.HealthCheck{Http: &mesosv1.HealthCheck_HTTPCheckInfo{Port: &test.port, Scheme: &test.scheme, Path: &test.path}}
			p := healthProbe(h)
			if p.kind != mesosv1.CheckInfo_HTTP {
				t.Fatalf("kind of a health check with http alone = %v, want HTTP", p.kind)
			}
			r := p.run(ctx, int32(os.Getpid()))
			if (r.code == nil) != (test.code == 0) || r.code != nil && *r.code != test.code {
				t.Errorf("status code = %v, want %d", r.status(p.kind), test.code)
			}
			if got := r.problem(); (got == "") != (test.problem == "") || !strings.Contains(got, test.problem) {
				t.Errorf("problem = %q, want %q in it", got, test.problem)
			}
		})
	}
}

func TestTCPChecksConnect(t *testing.T) {
	for _, test := range []struct {
		listen   string
		protocol mesosv1.NetworkInfo_Protocol
	}{{"127.0.0.1:0", mesosv1.NetworkInfo_IPv4}, {"[::1]:0", mesosv1.NetworkInfo_IPv6}} {
		l, err := net.Listen("tcp", test.listen)
		if err != nil {
			t.Skip("there is no loopback address of " + test.protocol.String())
		}
		p := healthProbe(&mesosv1.HealthCheck{Tcp: &mesosv1.HealthCheck_TCPCheckInfo{Port: new(port(l.Addr())), Protocol: &test.protocol}})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		r := p.run(ctx, int32(os.Getpid()))
		if p.kind != mesosv1.CheckInfo_TCP || r.connected == nil || !*r.connected || r.problem() != "" {
			t.Errorf("%s: check of a port that is open = %+v, want connected", test.protocol, r)
		}
		l.Close()
		if r = p.run(ctx, int32(os.Getpid())); r.connected == nil || *r.connected || r.problem() == "" {
			t.Errorf("%s: check of a port that is closed = %+v, want not connected, and a problem", test.protocol, r)
		}
	}
}

func TestACheckOfATaskThatIsGoneHasNoResult(t *testing.T) {
	const nobody = 1 << 30 // above what the kernel gives out
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	p := checkProbe(&mesosv1.CheckInfo{Tcp: &mesosv1.CheckInfo_Tcp{Port: new(uint32(1))}})
	if r := p.run(ctx, nobody); r.connected != nil || r.err == nil {
		t.Errorf("check of a process that is not there = %+v, want an error", r)
	}
	if r := checkProbe(&mesosv1.CheckInfo{}).run(ctx, int32(os.Getpid())); r.err == nil {
		t.Errorf("check of no kind = %+v, want an error", r)
	}
}

func TestChecksEnterTheTasksNetwork(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	type network struct {
		tid  int
		port uint32
		err  error
	}
	made, done := make(chan network), make(chan struct{})
	serve := func() (n network, l net.Listener) {
		if n.err = unix.Unshare(unix.CLONE_NEWNET); n.err != nil {
			return n, nil
		}
		if n.err = raiseLoopback(); n.err != nil {
			return n, nil
		}
		l, n.err = net.Listen("tcp", "127.0.0.1:0")
		if n.err == nil {
			n.tid, n.port = unix.Gettid(), port(l.Addr())
		}
		return n, l
	}
	var begin func()
	begin = func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		if unix.Gettid() == os.Getpid() {
			// The first thread stands for the process, whose network must stay what it is.
			go begin()
			<-done
			return
		}
		n, l := serve()
		if n.err == nil {
			server := &http.Server{Handler: http.HandlerFunc(site), ReadHeaderTimeout: time.Minute}
			go server.Serve(l)
			defer server.Close()
		}
		made <- n
		<-done
	}
	go begin()
	defer close(done)
	n := <-made
	if n.err != nil {
		t.Fatalf("make a network: %v", n.err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	p := healthProbe(&mesosv1.HealthCheck{Http: &mesosv1.HealthCheck_HTTPCheckInfo{Port: &n.port, Path: new("/moved")}})
	for range 20 {
		if r := p.run(ctx, int32(n.tid)); r.code == nil || *r.code != 200 {
			t.Fatalf("check in the task's network = %+v, want 200", r)
		}
	}
	if r := p.run(ctx, int32(os.Getpid())); r.code != nil {
		t.Errorf("check of the same port in the agent's network = %d, want no answer", *r.code)
	}
	// All threads that visited it are back: whoever listens now does so in the agent's network.
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		tcp := checkProbe(&mesosv1.CheckInfo{Tcp: &mesosv1.CheckInfo_Tcp{Port: new(port(l.Addr()))}})
		if r := tcp.run(ctx, int32(os.Getpid())); r.connected == nil || !*r.connected {
			t.Errorf("check in the agent's network = %+v, want connected", r)
		}
		l.Close()
	}
}

func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
