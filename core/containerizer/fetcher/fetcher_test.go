package fetcher

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ulikunitz/xz"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// helloBzip2 is a tar of dir/hello, mode 0755, by Python's bz2; Go has no bzip2 writer.
const helloBzip2 = "QlpoOTFBWSZTWXNVSmgAAG57gMmQAARAAMOAAIBmZJ4ACAggAFQlKaaGg09Rk02p6gkknqPUaaAAaV6mSQgh0IRZ3SDKdtyBDBhIij3sh2ELBCGIpOMcBlsdvb0YLs7vNEQPxdyRThQkHNVSmgA="

func uri(value string, change ...func(*mesosv1.CommandInfo_URI)) *mesosv1.CommandInfo_URI {
	u := &mesosv1.CommandInfo_URI{Value: &value}
	for _, c := range change {
		c(u)
	}
	return u
}

func cached(u *mesosv1.CommandInfo_URI)     { yes := true; u.Cache = &yes }
func executable(u *mesosv1.CommandInfo_URI) { yes := true; u.Executable = &yes }
func packed(u *mesosv1.CommandInfo_URI)     { no := false; u.Extract = &no }
func to(name string) func(*mesosv1.CommandInfo_URI) {
	return func(u *mesosv1.CommandInfo_URI) { u.OutputFile = &name }
}

func newFetcher(t *testing.T, change ...func(*Config)) *Fetcher {
	t.Helper()
	cfg := Config{CacheDir: filepath.Join(t.TempDir(), "cache")}
	for _, c := range change {
		c(&cfg)
	}
	f, err := New(cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return f
}

// site serves fixed contents by path and counts what is asked.
type site struct {
	*httptest.Server
	files map[string][]byte
	gets  atomic.Int32
}

func newSite(t *testing.T, files map[string][]byte) *site {
	s := &site{files: files}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.gets.Add(1)
		b, ok := s.files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write(b)
	}))
	t.Cleanup(s.Close)
	return s
}

type tarEntry struct {
	name, body, link string
	kind             byte
	mode             int64
}

func tarOf(t *testing.T, entries ...tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		if e.mode == 0 {
			e.mode = 0o644
		}
		if err := w.WriteHeader(&tar.Header{Name: e.name, Size: int64(len(e.body)), Mode: e.mode, Typeflag: e.kind, Linkname: e.link}); err != nil {
			t.Fatalf("tar: %v", err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatalf("tar: %v", err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatalf("tar: %v", err)
	}
	return b.Bytes()
}

func gzipOf(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatalf("gzip: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatalf("gzip: %v", err)
	}
	return out.Bytes()
}

func xzOf(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := xz.NewWriter(&out)
	if err != nil {
		t.Fatalf("xz: %v", err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatalf("xz: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatalf("xz: %v", err)
	}
	return out.Bytes()
}

func zipOf(t *testing.T, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, name := range names {
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(0o755)
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatalf("zip: %v", err)
		}
		if _, err := io.WriteString(f, "hello\n"); err != nil {
			t.Fatalf("zip: %v", err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatalf("zip: %v", err)
	}
	return b.Bytes()
}

func TestEveryArchiveTypeLandsUnpacked(t *testing.T) {
	hello := tarOf(t, tarEntry{name: "dir/hello", body: "hello\n", mode: 0o755})
	bz, err := base64.StdEncoding.DecodeString(helloBzip2)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		"/a.tar": hello, "/a.tgz": gzipOf(t, hello), "/a.tar.gz": gzipOf(t, hello), "/a.tar.bz2": bz, "/a.tbz2": bz,
		"/a.tar.xz": xzOf(t, hello), "/a.txz": xzOf(t, hello), "/a.tar.zst": zstdOf(t, hello), "/a.tzst": zstdOf(t, hello), "/a.zip": zipOf(t, "dir/hello"), "/dir/hello.gz": gzipOf(t, []byte("hello\n")),
	}
	s := newSite(t, files)
	for name := range files {
		for _, cache := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s cached %v", name, cache), func(t *testing.T) {
				sandbox := t.TempDir()
				u := uri(s.URL + name)
				u.Cache = &cache
				where := "dir/hello"
				if strings.HasSuffix(name, "hello.gz") {
					where = "hello"
				}
				if err := newFetcher(t).Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{u}, Sandbox: sandbox}); err != nil {
					t.Fatalf("Fetch: %v", err)
				}
				if got, err := os.ReadFile(filepath.Join(sandbox, where)); err != nil || string(got) != "hello\n" {
					t.Errorf("%s: got %q, %v, want hello", where, got, err)
				}
				if where == "dir/hello" {
					if info, err := os.Stat(filepath.Join(sandbox, where)); err != nil || info.Mode() != 0o755 {
						t.Errorf("%s: got mode %v, %v, want 0755", where, info.Mode(), err)
					}
				}
			})
		}
	}
}

func TestFilesLandUnderTheirNameAndMode(t *testing.T) {
	source := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(source, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, map[string][]byte{"/x/run.tgz": []byte("not packed at all"), "/q": []byte("q")})
	sandbox := t.TempDir()
	err := newFetcher(t).Fetch(t.Context(), Request{Sandbox: sandbox, URIs: []*mesosv1.CommandInfo_URI{
		uri("file://"+source, executable), uri(source, to("sub/dir/copy")),
		uri(s.URL+"/x/run.tgz?token=1", executable), uri(s.URL+"/x/run.tgz", packed, to("plain.tgz")), uri(s.URL+"/q?a=b/c", cached),
	}})
	if err != nil {
		t.Fatalf("Fetch: %v", err)
	}
	for name, mode := range map[string]os.FileMode{"tool": 0o755, "sub/dir/copy": 0o644, "run.tgz": 0o755, "plain.tgz": 0o644, "q": 0o644} {
		if info, err := os.Stat(filepath.Join(sandbox, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: got %v, %v, want mode %v", name, info, err, mode)
		}
	}
	log, err := os.ReadFile(filepath.Join(sandbox, "stderr"))
	if err != nil || strings.Count(string(log), "Fetched") != 5 {
		t.Errorf("stderr: got %q, %v, want five lines", log, err)
	}
}

func TestFailuresNameTheURI(t *testing.T) {
	hello := tarOf(t, tarEntry{name: "hello", body: "hello\n"})
	s := newSite(t, map[string][]byte{
		"/broken.zip": zipOf(t, "a")[:20], "/cut.tar.gz": gzipOf(t, hello)[:30], "/bad.tar.xz": []byte("xz? no"), "/bad.gz": []byte("gz? no, nothing of the kind"),
		"/huge.tar.xz": append([]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46"), 0x02, 0x00, 0x21, 0x01, 40, 0, 0, 0, 0xe6, 0xa0, 0x11, 0xb3),
	})
	for value, want := range map[string]string{
		s.URL + "/absent":                  "404 Not Found",
		s.URL + "/broken.zip":              "zip",
		s.URL + "/cut.tar.gz":              "unexpected EOF",
		s.URL + "/bad.tar.xz":              "xz",
		s.URL + "/bad.gz":                  "gzip",
		s.URL + "/huge.tar.xz":             "dictionary",
		"hdfs://x/y":                       "needs Hadoop's client",
		"relative/path":                    `scheme "" is not supported`,
		"file://elsewhere/etc/motd":        "this machine",
		"/does/not/exist":                  "no such file",
		"/tmp":                             "not a regular file",
		"http://127.0.0.1:1/x":             "refused",
		"http://user:secret@127.0.0.1:1/x": "http://user:xxxxx@127.0.0.1:1/x: ",
		"http://%zz":                       "malformed",
		s.URL:                              "no name",
	} {
		sandbox := t.TempDir()
		err := newFetcher(t).Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(value)}, Sandbox: sandbox})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("Fetch(%s): got %v, want it to say %q", value, err, want)
		}
		if err != nil && !strings.Contains(value, "@") && !strings.HasPrefix(err.Error(), value+": ") {
			t.Errorf("Fetch(%s): got %v, want the URI in front", value, err)
		}
	}
}

func TestNothingLeavesTheSandbox(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, archive := range map[string][]byte{
		"up":                  tarOf(t, tarEntry{name: "../outside", body: "x"}),
		"up in the middle":    tarOf(t, tarEntry{name: "a/../../outside", body: "x"}),
		"through a link":      tarOf(t, tarEntry{name: "l", kind: tar.TypeSymlink, link: ".."}, tarEntry{name: "l/outside", body: "x"}),
		"through a long link": tarOf(t, tarEntry{name: "l", kind: tar.TypeSymlink, link: dir}, tarEntry{name: "l/outside", body: "x"}),
		"hard link out":       tarOf(t, tarEntry{name: "h", kind: tar.TypeLink, link: "../outside"}, tarEntry{name: "h", body: "x"}),
		"hard link via link":  tarOf(t, tarEntry{name: "l", kind: tar.TypeSymlink, link: ".."}, tarEntry{name: "h", kind: tar.TypeLink, link: "l/outside"}),
		"device":              tarOf(t, tarEntry{name: "null", kind: tar.TypeChar}),
		"pipe":                tarOf(t, tarEntry{name: "pipe", kind: tar.TypeFifo}),
		"mode through a link": tarOf(t, tarEntry{name: "l", kind: tar.TypeSymlink, link: ".."}, tarEntry{name: "l", kind: tar.TypeDir, mode: 0o777}),
	} {
		t.Run(name, func(t *testing.T) {
			sandbox := filepath.Join(dir, "sandbox")
			if err := os.Mkdir(sandbox, 0o750); err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(sandbox)
			file := filepath.Join(t.TempDir(), "a.tar")
			if err := os.WriteFile(file, archive, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := newFetcher(t).Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(file)}, Sandbox: sandbox}); err == nil {
				t.Error("Fetch: got no error, want a refusal")
			}
			if b, err := os.ReadFile(outside); err != nil || string(b) != "untouched" {
				t.Errorf("outside: got %q, %v, want it untouched", b, err)
			}
		})
	}
	// What replaces a link is a file of its own.
	sandbox := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(sandbox, "stderr")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(sandbox, "copy")); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(source, []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := newFetcher(t).Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(source, to("copy"))}, Sandbox: sandbox}); err != nil {
		t.Errorf("Fetch over a link: %v", err)
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "untouched" {
		t.Errorf("outside: got %q, %v, want it untouched", b, err)
	}
	for _, name := range []string{"../x", "/x", "a/../../x", "."} {
		if err := newFetcher(t).Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(source, to(name))}, Sandbox: sandbox}); err == nil {
			t.Errorf("Fetch to %s: got no error, want a refusal", name)
		}
	}
}

func TestFetchingHasTheRightsOfTheUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to act as another user")
	}
	dir, err := os.MkdirTemp("/tmp", "mosaic-fetcher-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sandbox := filepath.Join(dir, "sandbox")
	for name, mode := range map[string]os.FileMode{"secret": 0o600, "open": 0o644, "group": 0o640} {
		if err := os.WriteFile(filepath.Join(dir, name), gzipOf(t, []byte("x")), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(dir, "group"), 0, 4242); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(sandbox, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(sandbox, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	user := &User{UID: 65534, GID: 65534, Groups: []uint32{4242}}
	f := newFetcher(t)
	if err := f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(filepath.Join(dir, "secret"))}, Sandbox: sandbox, User: user}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("Fetch of root's file as nobody: got %v, want permission denied", err)
	}
	s := newSite(t, map[string][]byte{"/a.tar.gz": gzipOf(t, tarOf(t, tarEntry{name: "d/f", body: "x", mode: 0o4755}))})
	if err := f.Fetch(t.Context(), Request{User: user, Sandbox: sandbox, CacheKey: "nobody", URIs: []*mesosv1.CommandInfo_URI{
		uri(filepath.Join(dir, "open")), uri(filepath.Join(dir, "group")), uri(s.URL+"/a.tar.gz", cached),
	}}); err != nil {
		t.Fatalf("Fetch: %v", err)
	}
	for _, name := range []string{"open", "group", "d", "d/f", "stderr"} {
		info, err := os.Stat(filepath.Join(sandbox, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 65534 || st.Gid != 65534 || info.Mode()&os.ModeSetuid != 0 {
			t.Errorf("%s: got owner %d:%d mode %v, want the user's, without set-user-id", name, st.Uid, st.Gid, info.Mode())
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "after"), nil, 0o600); err != nil {
		t.Errorf("the agent's own rights afterwards: %v", err)
	}
}

func TestContainersShareOneDownload(t *testing.T) {
	release := make(chan struct{})
	var gets atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gets.Add(1)
		<-release
		io.WriteString(w, "shared")
	}))
	defer s.Close()
	f := newFetcher(t)
	var wg sync.WaitGroup
	fetch := func(key string) {
		sandbox := t.TempDir()
		wg.Go(func() {
			if err := f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(s.URL+"/x", cached)}, Sandbox: sandbox, CacheKey: key}); err != nil {
				t.Errorf("Fetch: %v", err)
			}
			if b, err := os.ReadFile(filepath.Join(sandbox, "x")); err != nil || string(b) != "shared" {
				t.Errorf("x: got %q, %v, want shared", b, err)
			}
		})
	}
	for range 10 {
		fetch("alice")
	}
	close(release)
	wg.Wait()
	if got := gets.Load(); got != 1 {
		t.Errorf("requests for ten containers: got %d, want 1", got)
	}
	fetch("bob")
	wg.Wait()
	if got := gets.Load(); got != 2 {
		t.Errorf("requests with another user: got %d, want 2", got)
	}
}

func TestAnotherTakesOverADownloadThatWasGivenUp(t *testing.T) {
	first, started := make(chan struct{}), make(chan struct{}, 2)
	var gets atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started <- struct{}{}
		if gets.Add(1) == 1 {
			<-first
			return
		}
		io.WriteString(w, "whole")
	}))
	defer s.Close()
	defer close(first)
	f := newFetcher(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	a, b := t.TempDir(), t.TempDir()
	wg.Go(func() {
		if err := f.Fetch(ctx, Request{URIs: []*mesosv1.CommandInfo_URI{uri(s.URL+"/x", cached)}, Sandbox: a}); !errors.Is(err, context.Canceled) {
			t.Errorf("Fetch that was given up: got %v, want %v", err, context.Canceled)
		}
	})
	<-started
	wg.Go(func() {
		if err := f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(s.URL+"/x", cached)}, Sandbox: b}); err != nil {
			t.Errorf("Fetch: %v", err)
		}
	})
	cancel()
	wg.Wait()
	if got, err := os.ReadFile(filepath.Join(b, "x")); err != nil || string(got) != "whole" {
		t.Errorf("x: got %q, %v, want whole", got, err)
	}
}

func TestCacheStaysWithinItsSize(t *testing.T) {
	kib := bytes.Repeat([]byte("x"), 1024)
	s := newSite(t, map[string][]byte{"/a": kib, "/b": kib, "/c": kib, "/big": bytes.Repeat(kib, 8)})
	f := newFetcher(t, func(c *Config) { c.CacheSize = 2500 })
	get := func(name string, want int32) {
		t.Helper()
		before := s.gets.Load()
		sandbox := t.TempDir()
		if err := f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(s.URL+"/"+name, cached)}, Sandbox: sandbox}); err != nil {
			t.Fatalf("Fetch(%s): %v", name, err)
		}
		if info, err := os.Stat(filepath.Join(sandbox, name)); err != nil || info.Size() != int64(len(s.files["/"+name])) {
			t.Errorf("%s: got %v, %v, want the whole file", name, info, err)
		}
		if got := s.gets.Load() - before; got != want {
			t.Errorf("requests for %s: got %d, want %d", name, got, want)
		}
		var used int64
		entries, err := os.ReadDir(f.cfg.CacheDir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			used += info.Size()
		}
		if used > 2500 || used != f.cache.used {
			t.Errorf("cache: got %d bytes on disk and %d counted, want the same, at most 2500", used, f.cache.used)
		}
	}
	get("a", 1)
	get("b", 1)
	get("a", 0) // now b is the one used longest ago
	get("c", 1)
	get("a", 0)
	get("b", 1)
	get("big", 2) // tried for the cache, then past it
	get("b", 0)
}

func TestDownloadsEnd(t *testing.T) {
	hang, bomb := make(chan struct{}), gzipOf(t, make([]byte, 1<<21))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/stall":
			io.WriteString(w, "a little")
			w.(http.Flusher).Flush()
			<-hang
		case "/endless":
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		case "/bomb.gz":
			w.Write(bomb)
		}
	}))
	defer s.Close()
	defer close(hang)
	for name, x := range map[string]struct {
		stall time.Duration
		want  string
	}{
		"stall":   {100 * time.Millisecond, "nothing came for 100ms"},
		"endless": {time.Minute, "larger than the fetcher's limit"},
		"bomb.gz": {time.Minute, "larger than the fetcher's limit"},
	} {
		f := newFetcher(t, func(c *Config) { c.StallTimeout, c.MaxSize = x.stall, 1<<20 })
		for _, change := range []func(*mesosv1.CommandInfo_URI){cached, func(*mesosv1.CommandInfo_URI) {}} {
			sandbox := t.TempDir()
			err := f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(s.URL+"/"+name, change)}, Sandbox: sandbox})
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("Fetch(%s): got %v, want %s", name, err, x.want)
			}
			if _, err := os.Stat(filepath.Join(sandbox, name)); name != "bomb.gz" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: got %v, want no half file", name, err)
			}
		}
	}
}

func FuzzExtract(f *testing.F) {
	f.Add([]byte("PK\x03\x04"), "a.zip")
	f.Add([]byte{0x1f, 0x8b, 8}, "a.tgz")
	f.Add([]byte("BZh9"), "a.tbz2")
	f.Add([]byte("\xfd7zXZ\x00"), "a.txz")
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd}, "a.tzst")
	f.Add(make([]byte, 1024), "a.tar")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		if formatOf(name) == formatNone || !filepath.IsLocal(name) || strings.ContainsAny(name, "/\x00") {
			return
		}
		outer, file := t.TempDir(), filepath.Join(t.TempDir(), "in")
		sandbox := filepath.Join(outer, "sandbox")
		if err := os.Mkdir(sandbox, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		fetch, err := New(Config{MaxSize: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		// Whatever comes of it, it must end and stay inside.
		_ = fetch.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(file, to(name))}, Sandbox: sandbox})
		if entries, err := os.ReadDir(outer); err != nil || len(entries) != 1 {
			t.Errorf("beside the sandbox: got %v, %v, want nothing", entries, err)
		}
	})
}
