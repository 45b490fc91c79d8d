package registry

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestNamesAreReadAsDockerReadsThem(t *testing.T) {
	for name, want := range map[string]string{
		"alpine":                             "docker.io/library/alpine:latest",
		"alpine:3.22":                        "docker.io/library/alpine:3.22",
		"grafana/grafana":                    "docker.io/grafana/grafana:latest",
		"docker.io/alpine":                   "docker.io/library/alpine:latest",
		"index.docker.io/library/x:1":        "docker.io/library/x:1",
		"registry-1.docker.io/a/b":           "docker.io/a/b:latest",
		"quay.io/a/b/c:V1.0_x-y":             "quay.io/a/b/c:V1.0_x-y",
		"localhost/x":                        "localhost/x:latest",
		"localhost:5000/x:1":                 "localhost:5000/x:1",
		"127.0.0.1:5000/a/b":                 "127.0.0.1:5000/a/b:latest",
		"[::1]:5000/a":                       "[::1]:5000/a:latest",
		"host.name/a__b/c-----d/e.f":         "host.name/a__b/c-----d/e.f:latest",
		"x@" + someDigest:                    "docker.io/library/x@" + someDigest,
		"quay.io/x:tag@" + someDigest:        "quay.io/x@" + someDigest,
		"alpine:" + strings.Repeat("a", 128): "docker.io/library/alpine:" + strings.Repeat("a", 128),
	} {
		if got, err := Parse(name, DockerHub); err != nil || got.String() != want {
			t.Errorf("Parse(%q) = %v, %v, want %s", name, got, err, want)
		}
	}
	if got, err := Parse("team/x", "registry.example.com:5000"); err != nil || got.String() != "registry.example.com:5000/team/x:latest" {
		t.Errorf("Parse with another default = %v, %v", got, err)
	}
	if got, err := Parse("alpine", "registry.example.com"); err != nil || got.String() != "registry.example.com/alpine:latest" {
		t.Errorf("Parse with another default = %v, %v, want no library", got, err)
	}
	for _, name := range []string{
		"", ":", "/", "@", "x:", "x@", "x@sha256:12", "x@md5:0123", "x@" + strings.ToUpper(someDigest), "UPPER", "a b", "a/", "/a", "a//b", "a/../b", "..", "a.", ".a",
		"a..b", "a___b", "a.-b", "x:y:z", "x:-a", "x:.a", "x:" + strings.Repeat("a", 129), "ho st.name/x", "host.name:/x", "host.name:123456/x", "host.name:a/x", "-host.name/x",
		"host..name/x", "[::1/x", "[zz]:1/x", "[]/x", "h.n/" + strings.Repeat("a", 256), "x\x00", "é", "http://x/y", "x?y", "x#y", "x%2fy",
	} {
		if got, err := Parse(name, DockerHub); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", name, got)
		}
	}
}

// FuzzParse: whatever comes, an answer is given, and what is taken is spelled in a way that means the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"alpine", "localhost:5000/x:1", "a b", "x@" + someDigest, "[::1]:5/x", "a-_b", "a/b:c@d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		r, err := Parse(name, DockerHub)
		if err != nil {
			return
		}
		again, err := Parse(r.String(), DockerHub)
		if err != nil || again.String() != r.String() {
			t.Errorf("Parse(%q) = %v, but Parse(%q) = %v, %v", name, r, r.String(), again, err)
		}
		if strings.ContainsAny(r.String(), "?#%\\ \x00") || strings.Contains(r.String(), "..") || strings.Contains(r.Repository, "//") {
			t.Errorf("Parse(%q) = %v, which could lead elsewhere", name, r)
		}
	})
}

func TestCredentialsComeFromADockerConfiguration(t *testing.T) {
	auth := base64.StdEncoding.EncodeToString([]byte("me:p:w"))
	c, err := ParseCredentials(fmt.Appendf(nil, `{"auths":{"https://index.docker.io/v1/":{"auth":%q},"Quay.IO":{"username":"u","password":"p"},
		"token.example.com":{"identitytoken":"refresh"},"bearer.example.com":{"registrytoken":"shown"},"empty.example.com":{}},"credsStore":"osxkeychain"}`, auth))
	if err != nil {
		t.Fatalf("ParseCredentials: %v", err)
	}
	for host, want := range map[string]credential{
		"docker.io": {user: "me", secret: "p:w"}, "registry-1.docker.io": {user: "me", secret: "p:w"}, "quay.io": {user: "u", secret: "p"},
		"token.example.com": {secret: "refresh"}, "bearer.example.com": {bearer: "shown"}, "empty.example.com": {}, "other.example.com": {},
	} {
		if got, _ := c.of(host); got != want {
			t.Errorf("credentials for %s = %v, want %v", host, got, want)
		}
	}
	older, err := ParseCredentials(fmt.Appendf(nil, `{"https://old.example.com/v1/":{"auth":%q}}`, auth))
	if err != nil || userAt(older, "old.example.com") != "me" {
		t.Errorf("ParseCredentials of the older form = %v, %v", older, err)
	}
	both := older.over(c)
	if userAt(both, "old.example.com") != "me" || userAt(both, "quay.io") != "u" {
		t.Error("credentials over others: want those of both")
	}
	for _, bad := range []string{"", "[]", `{"auths":{"x":{"auth":"!"}}}`, `{"auths":{"x":{"auth":"bm9jb2xvbg=="}}}`, `{"auths":{"x":3}}`, `{"credsStore":"pass"}`,
		strings.Repeat(" ", maxCredentials+1)} {
		if _, err := ParseCredentials([]byte(bad)); err == nil {
			t.Errorf("ParseCredentials(%.40q): got no error", bad)
		}
	}
	if _, err := ParseCredentials([]byte(`{"auths":{"x":{"auth":"topsecret`)); err == nil || strings.Contains(err.Error(), "topsecret") {
		t.Errorf("ParseCredentials: got %v, want an error without the secret", err)
	}
	var none *Credentials
	if got, _ := none.of("x"); got != (credential{}) {
		t.Errorf("no credentials = %v, want none", got)
	}
}

func userAt(c *Credentials, host string) string {
	known, _ := c.of(host)
	return known.user
}

func TestRegistriesAreReachedOverTLSUnlessAllowedOtherwise(t *testing.T) {
	c, err := New(Config{PlainHTTP: []string{"plain.example.com"}, Mirrors: map[string][]string{"docker.io": {"https://mirror.example.com/hub/"}}})
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	defer c.Close()
	creds, err := Basic("docker.io", "me", "pw")
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{
		"quay.io":           "[https://quay.io/v2]",
		"plain.example.com": "[http://plain.example.com/v2]",
		"127.0.0.1:5000":    "[https://127.0.0.1:5000/v2]", // with a way back to HTTP
		"docker.io":         "[https://mirror.example.com/hub/v2 https://registry-1.docker.io/v2]",
	} {
		var got []string
		for _, h := range c.hosts(t.Context(), host, creds) {
			got = append(got, h.Scheme+"://"+h.Host+h.Path)
			if fallback := h.Client.Transport != http.RoundTripper(c.transport); fallback != strings.HasPrefix(h.Host, "127.") {
				t.Errorf("%s falls back to HTTP: got %t", h.Host, fallback)
			}
		}
		if fmt.Sprint(got) != want {
			t.Errorf("hosts(%s) = %v, want %s", host, got, want)
		}
	}
	for host, want := range map[string]bool{"localhost": true, "localhost:1": true, "127.8.8.8:1": true, "[::1]:5": true, "::1": true, "10.0.0.1": false, "localhost.example.com": false} {
		if got := isLoopback(host); got != want {
			t.Errorf("isLoopback(%s) = %t", host, got)
		}
	}
}

func TestConfigurationsThatMakeNoSenseAreRefused(t *testing.T) {
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []Config{
		{Default: "no host"}, {CAFile: junk}, {CAFile: junk + "x"}, {CredentialsFile: junk}, {CredentialsFile: junk + "x"},
		{Mirrors: map[string][]string{"docker.io": {"mirror.example.com"}}}, {Mirrors: map[string][]string{"docker.io": {"ftp://x"}}},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("New(%+v): got no error", cfg)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	status := func(code int) error {
		return fmt.Errorf("fetch: %w", remoteserrors.ErrUnexpectedStatus{StatusCode: code, Status: fmt.Sprint(code)})
	}
	for _, c := range []struct {
		err   error
		want  error
		again bool
	}{
		{status(401), ErrUnauthorized, false},
		{status(403), ErrUnauthorized, false},
		{status(404), ErrNotFound, false},
		{status(400), nil, false},
		{status(429), nil, true},
		{status(503), nil, true},
		{status(416), ErrTruncated, true},
		{fmt.Errorf("x: %w", errdefs.ErrNotFound), ErrNotFound, false},
		{fmt.Errorf("write: %w", syscall.ENOSPC), ErrNoSpace, false},
		{fmt.Errorf("write: %w", syscall.EDQUOT), ErrNoSpace, false},
		{fmt.Errorf("dial: %w", x509.UnknownAuthorityError{}), ErrTLS, false},
		{fmt.Errorf("dial: %w", x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}), ErrTLS, false},
		{fmt.Errorf("unexpected commit digest a, expected b: %w", errdefs.ErrFailedPrecondition), ErrCorrupt, false},
		{fmt.Errorf("short: %w", io.ErrUnexpectedEOF), ErrTruncated, true},
		{fmt.Errorf("dial: %w", syscall.ECONNREFUSED), syscall.ECONNREFUSED, true},
		{fmt.Errorf("x: %w", ErrStalled), ErrStalled, true},
		{fmt.Errorf("read: %w", os.ErrDeadlineExceeded), ErrStalled, true},
		{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, os.ErrDeadlineExceeded, true},
		{fmt.Errorf("x: %w", context.Canceled), context.Canceled, false},
		{errors.New("something"), nil, false},
	} {
		got, again := Explain(c.err)
		if got == nil || !errors.Is(got, c.err) && !errors.Is(got, errors.Unwrap(c.err)) || c.want != nil && !errors.Is(got, c.want) || again != c.again {
			t.Errorf("Explain(%v) = %v, again %t; want %v, %t", c.err, got, again, c.want, c.again)
		}
	}
	if got, again := Explain(nil); got != nil || again {
		t.Errorf("Explain(nil) = %v, %t", got, again)
	}
}
