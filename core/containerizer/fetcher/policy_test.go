package fetcher

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

func TestADigestIsHeldOrNothingComes(t *testing.T) {
	body := []byte("content")
	right, other := fmt.Sprintf("%x", sha256.Sum256(body)), strings.Repeat("0", 64)
	s := newSite(t, map[string][]byte{"/x": body})
	local := filepath.Join(t.TempDir(), "a#b")
	if err := os.WriteFile(local, body, 0o644); err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]string{
		s.URL + "/x#sha256=" + right:                             "",
		s.URL + "/x#sha256=" + strings.ToUpper(right):            "",
		s.URL + fmt.Sprintf("/x#sha512=%x", sha512.Sum512(body)): "",
		s.URL + "/x#section":                                     "",
		local + "#sha256=" + right:                               "",
		local:                                                    "",
		"file://" + strings.ReplaceAll(local, "#", "%23") + "#sha256=" + right: "",
		s.URL + "/x#sha256=" + other: "digest does not match",
		local + "#sha256=" + other:   "digest does not match",
		s.URL + "/x#sha256=12":       "malformed digest",
		s.URL + "/x#sha512=" + right: "malformed digest",
	} {
		for _, change := range []func(*mesosv1.CommandInfo_URI){cached, func(*mesosv1.CommandInfo_URI) {}} {
			sandbox := t.TempDir()
			f := newFetcher(t)
			err := f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(value, change, to("out"))}, Sandbox: sandbox})
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("Fetch(%s): got %v, want %q", value, err, want)
			}
			if _, err := os.Stat(filepath.Join(sandbox, "out")); (err == nil) != (want == "") {
				t.Errorf("Fetch(%s): the file: %v", value, err)
			}
			if want != "" && f.cache.used != 0 {
				t.Errorf("Fetch(%s): the cache holds %d bytes, want none", value, f.cache.used)
			}
		}
	}
}

func TestSchemesAndRedirectsAreTheOperatorsToAllow(t *testing.T) {
	plain := newSite(t, map[string][]byte{"/x": []byte("x")})
	mux := http.NewServeMux()
	secure := httptest.NewTLSServer(mux)
	defer secure.Close()
	hops := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/0" {
			fmt.Fprint(w, "arrived")
			return
		}
		var n int
		fmt.Sscanf(r.URL.Path, "/%d", &n)
		http.Redirect(w, r, fmt.Sprintf("/%d", n-1), http.StatusFound)
	}))
	defer hops.Close()
	mux.HandleFunc("/down", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL+"/x", http.StatusFound)
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "file:///etc/hostname", http.StatusFound)
	})
	mux.HandleFunc("/x", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "x") })
	for _, x := range []struct {
		value  string
		change func(*Config)
		want   string
	}{
		{hops.URL + "/10", func(*Config) {}, ""},
		{hops.URL + "/11", func(*Config) {}, "more than 10 redirects"},
		{hops.URL + "/2", func(c *Config) { c.Redirects = 2 }, ""},
		{hops.URL + "/3", func(c *Config) { c.Redirects = 2 }, "more than 2 redirects"},
		{hops.URL + "/0", func(c *Config) { c.Redirects = -1 }, ""},
		{hops.URL + "/1", func(c *Config) { c.Redirects = -1 }, "follows none"},
		{secure.URL + "/x", func(*Config) {}, ""},
		{secure.URL + "/down", func(*Config) {}, "redirects from https"},
		{secure.URL + "/file", func(*Config) {}, "redirects from https to file:"},
		{plain.URL + "/x", func(c *Config) { c.Schemes = []string{"https"} }, "fetches nothing by http, only by https"},
		{"/etc/passwd", func(c *Config) { c.Schemes = []string{"https", "http"} }, "fetches nothing by file"},
		{"file:///etc/passwd", func(c *Config) { c.Schemes = []string{"https", "http"} }, "fetches nothing by file"},
		{"hdfs://nn/x", func(*Config) {}, "WebHDFS"},
		{"s3a://bucket/x", func(*Config) {}, "signed URL"},
		{"ftp://host/x", func(c *Config) { c.Schemes = []string{"https", "ftps"} }, "fetches nothing by ftp, only by https, ftps"},
		{"hdfs://nn/x", func(c *Config) { c.Schemes = []string{"https"} }, "fetches nothing by hdfs"},
		{"gopher://host/x", func(*Config) {}, `scheme "gopher" is not supported: want one of http, https, ftp, ftps, file, hdfs,`},
	} {
		f := newFetcher(t, func(c *Config) { c.Transport = secure.Client().Transport }, x.change)
		err := f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(x.value)}, Sandbox: t.TempDir()})
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("Fetch(%s): got %v, want %q", x.value, err, x.want)
		}
	}
	if _, err := New(Config{Schemes: []string{"gopher"}}); err == nil {
		t.Error("New with a scheme that nobody speaks: got no error")
	}
}

func TestTheSandboxIsOpenedByWhoeverKnowsHow(t *testing.T) {
	sandbox, opened := t.TempDir(), 0
	source := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(source, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	open := func() (*os.Root, error) { opened++; return os.OpenRoot(sandbox) }
	r := Request{URIs: []*mesosv1.CommandInfo_URI{uri(source)}, Sandbox: "/nowhere", Open: open}
	if err := newFetcher(t).Fetch(t.Context(), r); err != nil || opened == 0 {
		t.Errorf("Fetch: got %v after %d calls of Open, want no error and some", err, opened)
	}
	if _, err := os.Stat(filepath.Join(sandbox, "x")); err != nil {
		t.Error(err)
	}
}

func TestTheSandboxIsToldHowFarADownloadHasCome(t *testing.T) {
	half := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/known" {
			w.Header().Set("Content-Length", "200")
		}
		w.Write(make([]byte, 100))
		w.(http.Flusher).Flush()
		<-half
		w.Write(make([]byte, 100))
	}))
	defer s.Close()
	sandbox := t.TempDir()
	f := newFetcher(t, func(c *Config) { c.TellEvery = 1 })
	go close(half)
	for _, name := range []string{"/known", "/unknown"} {
		if err := f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(s.URL + name)}, Sandbox: sandbox}); err != nil {
			t.Fatalf("Fetch: %v", err)
		}
	}
	told, err := os.ReadFile(filepath.Join(sandbox, "stderr"))
	for _, want := range []string{"/known: 200 of 200 bytes (100%)", "/unknown: 200 bytes"} {
		if err != nil || !strings.Contains(string(told), want) {
			t.Errorf("stderr: got %q, %v, want it to say %q", told, err, want)
		}
	}
}

func TestNothingComesFromAddressesThatTheOperatorDenies(t *testing.T) {
	s := newSite(t, map[string][]byte{"/x": []byte("x")})
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	f := newFetcher(t, func(c *Config) {
		c.Deny = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	})
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		err := f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri("http://" + host + ":" + port + "/x")}, Sandbox: t.TempDir()})
		if err == nil || !strings.Contains(err.Error(), "fetches nothing from") {
			t.Errorf("Fetch from %s: got %v, want a refusal", host, err)
		}
	}
	if s.gets.Load() != 0 {
		t.Errorf("got %d requests, want none", s.gets.Load())
	}
	f = newFetcher(t, func(c *Config) { c.Deny = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16")} })
	if err := f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(s.URL + "/x")}, Sandbox: t.TempDir()}); err != nil {
		t.Errorf("Fetch from elsewhere: %v", err)
	}
}
