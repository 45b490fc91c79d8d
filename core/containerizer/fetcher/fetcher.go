// Package fetcher brings what a command's URIs name into its sandbox: by http, https, ftp and ftps, by Hadoop's client
// from the stores that it knows, and from files of this machine, checked, unpacked and made executable as asked.
//
// It promises that nothing is read from this machine or written to the sandbox with more rights than the container's
// user has, that no name in a URI or an archive leads out of the sandbox, and that a download or an archive that
// stalls, never ends or grows without bound fails with its URI named. A URI that ends in #sha256= or #sha512= and a
// digest in hex brings exactly that, or fails. Downloads shared by several containers go through a cache that is
// emptied with each start. When to fetch, and what a failure means, is the containerizer's.
package fetcher

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

const (
	defaultCacheSize    = 2_000_000_000 // Mesos's 2 GB
	defaultStallTimeout = time.Minute
	// defaultMaxSize bounds one file, downloaded or unpacked; larger ones belong on a volume.
	defaultMaxSize = 64 << 30
	// defaultMaxRatio is what only files of one repeated byte reach; text and programs stay below 20.
	defaultMaxRatio = 200
	// defaultExtractTimeout unpacks 64 GiB at 70 MB/s.
	defaultExtractTimeout = 15 * time.Minute
	// defaultRedirects is what browsers and curl --location stop at, or earlier.
	defaultRedirects = 10
	// defaultTellEvery leaves a few lines of a long download in the sandbox, and none of most.
	defaultTellEvery = 10 * time.Second
)

// Config is what a fetcher is made of.
type Config struct {
	// Folder of the cache; emptied by New. Without it nothing is cached.
	CacheDir string
	// Bytes that the cache may hold. Default 2 GB. A file larger than that is fetched past the cache.
	CacheSize int64
	// How long a download may stand still. Default 1 minute.
	StallTimeout time.Duration
	// Bytes that one URI may bring, downloaded and unpacked each. Default 64 GiB.
	MaxSize int64
	// Bytes that may come out for each byte of an archive, beyond the first GiB. Default 200.
	MaxRatio int64
	// How long unpacking one archive may take. Default 15 minutes.
	ExtractTimeout time.Duration
	// Schemes that tasks may use, of those of KnownSchemes; file is absolute paths, too. Default: all. The way on from a
	// redirect is bound by it as well.
	Schemes []string
	// How many redirects a download may follow; negative: none. Default 10. Whatever it is, none leads from https to
	// http.
	Redirects int
	// Time between two words in the sandbox's stderr on a download that goes on. Default 10 seconds.
	TellEvery time.Duration
	// Addresses that nothing is fetched from, whatever name or redirect leads there: the agent reaches what a task with
	// its own network may not, such as a cloud's metadata service (169.254.0.0/16). Counts without Transport, and not for
	// what Hadoop's client does.
	Deny []netip.Prefix
	// Certificates in PEM that servers are trusted by, beside this machine's own. Counts without Transport.
	CA []byte
	// Hadoop's client. Default: hadoop, wherever PATH has it.
	Hadoop string
	// Default: http.DefaultTransport's settings.
	Transport http.RoundTripper
	// Default: discarded.
	Logger *slog.Logger
}

// User is whom files are read and written as.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Request is what one container wants fetched.
type Request struct {
	URIs []*mesosv1.CommandInfo_URI
	// Absolute; exists and belongs to the user.
	Sandbox string
	// Optional. Opens the sandbox, for one that lies in folders which tasks may move or replace by links meanwhile.
	Open func() (*os.Root, error)
	// Whose cached downloads may be used: the name of the user.
	CacheKey string
	// nil: whoever the agent is.
	User *User
}

func (r *Request) open() (*os.Root, error) {
	if r.Open != nil {
		return r.Open()
	}
	return os.OpenRoot(r.Sandbox)
}

// A Fetcher fetches for all containers of an agent. Its methods may be called at the same time.
type Fetcher struct {
	cfg    Config
	client *http.Client
	dialer *net.Dialer
	tls    *tls.Config
	cache  *cache // nil without one
}

// KnownSchemes are all that a fetcher can be asked for.
func KnownSchemes() []string {
	return append([]string{"http", "https", "ftp", "ftps", "file"}, hadoopSchemes...)
}

// New makes a fetcher and empties its cache.
func New(cfg Config) (*Fetcher, error) {
	known := KnownSchemes()
	if cfg.CacheSize <= 0 {
		cfg.CacheSize = defaultCacheSize
	}
	if cfg.StallTimeout <= 0 {
		cfg.StallTimeout = defaultStallTimeout
	}
	if cfg.MaxSize <= 0 {
		cfg.MaxSize = defaultMaxSize
	}
	if cfg.MaxRatio <= 0 {
		cfg.MaxRatio = defaultMaxRatio
	}
	if cfg.ExtractTimeout <= 0 {
		cfg.ExtractTimeout = defaultExtractTimeout
	}
	if cfg.TellEvery <= 0 {
		cfg.TellEvery = defaultTellEvery
	}
	if cfg.Redirects == 0 {
		cfg.Redirects = defaultRedirects
	}
	if len(cfg.Schemes) == 0 {
		cfg.Schemes = known
	}
	for _, s := range cfg.Schemes {
		if !slices.Contains(known, s) {
			return nil, fmt.Errorf("fetcher: scheme %q: want some of %s", s, strings.Join(known, ", "))
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Fetcher{
		dialer: &net.Dialer{Timeout: cfg.StallTimeout, Control: denied(cfg.Deny)},
		tls:    &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if len(cfg.CA) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("fetcher: this machine's certificates: %w", err)
		}
		if !pool.AppendCertsFromPEM(cfg.CA) {
			return nil, errors.New("fetcher: CA holds no certificate")
		}
		f.tls.RootCAs = pool
	}
	if cfg.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.ResponseHeaderTimeout = cfg.StallTimeout
		t.DisableCompression = true // a .gz must arrive as it is
		t.DialContext = f.dialer.DialContext
		t.TLSClientConfig = f.tls.Clone()
		cfg.Transport = t
	}
	f.cfg = cfg
	f.client = &http.Client{Transport: cfg.Transport, CheckRedirect: f.redirected}
	if cfg.CacheDir != "" {
		c, err := newCache(cfg.CacheDir, cfg.CacheSize)
		if err != nil {
			return nil, fmt.Errorf("fetcher cache: %w", err)
		}
		f.cache = c
	}
	return f, nil
}

// Fetch fetches the URIs in their order and returns at the first that fails, naming it. What came before stays in the
// sandbox, whose stderr tells what was done.
func (f *Fetcher) Fetch(ctx context.Context, r Request) error {
	for _, u := range r.URIs {
		i, err := f.parse(u)
		if err != nil {
			return fmt.Errorf("%s: %w", redact(u.GetValue()), err)
		}
		began := time.Now()
		n, err := f.fetch(ctx, r, i)
		if err != nil {
			f.tell(r, "Failed to fetch %s: %v", i.shown, err)
			return fmt.Errorf("%s: %w", i.shown, err)
		}
		f.tell(r, "Fetched %s to %s: %d bytes in %s", i.shown, i.name, n, time.Since(began).Round(time.Millisecond))
	}
	return nil
}

// item is one URI, understood.
type item struct {
	shown      string // for people: without a password
	url        *url.URL
	file       string // path on this machine, instead of url
	sum        digest
	name       string // in the sandbox, relative
	executable bool
	extract    format
	cache      bool
}

func (f *Fetcher) parse(u *mesosv1.CommandInfo_URI) (item, error) {
	i := item{shown: redact(u.GetValue()), executable: u.GetExecutable(), cache: u.GetCache()}
	value, sum, err := cutDigest(strings.TrimSpace(u.GetValue()))
	if err != nil {
		return i, err
	}
	i.sum = sum
	scheme, base := "file", path.Base(value)
	if filepath.IsAbs(value) {
		i.file = filepath.Clean(value)
	} else {
		parsed, err := url.Parse(value)
		if err != nil {
			return i, errors.New("malformed URI")
		}
		scheme, base = parsed.Scheme, path.Base(parsed.Path)
		switch scheme {
		case "http", "https", "ftp", "ftps":
			if parsed.Host == "" {
				return i, errors.New("URI without host")
			}
			i.url = parsed
		case "file":
			if parsed.Host != "" && parsed.Host != "localhost" || !filepath.IsAbs(parsed.Path) {
				return i, errors.New("want a file URI with an absolute path on this machine")
			}
			i.file = filepath.Clean(parsed.Path)
		default:
			if !slices.Contains(hadoopSchemes, scheme) {
				return i, fmt.Errorf("scheme %q is not supported: want one of %s, or an absolute path", scheme, strings.Join(KnownSchemes(), ", "))
			}
			i.url = parsed
		}
	}
	if !slices.Contains(f.cfg.Schemes, scheme) {
		return i, fmt.Errorf("this agent fetches nothing by %s, only by %s", scheme, strings.Join(f.cfg.Schemes, ", "))
	}
	i.name = base
	if out := u.GetOutputFile(); out != "" {
		i.name = path.Clean(out)
	}
	if !filepath.IsLocal(i.name) || i.name == "." {
		return i, fmt.Errorf("%q is no name for a file in the sandbox", i.name)
	}
	if u.GetExtract() && !i.executable { // an executable is not unpacked, says Mesos
		i.extract = formatOf(i.name)
		if i.extract == formatNone {
			i.extract = formatOf(base)
		}
	}
	return i, nil
}

// redact is a URI as people and logs may see it.
func redact(value string) string {
	u, err := url.Parse(value)
	if err != nil || u.User == nil {
		return value
	}
	return u.Redacted()
}

// fetch brings one item and returns how many bytes it had on the way.
func (f *Fetcher) fetch(ctx context.Context, r Request, i item) (int64, error) {
	if i.url != nil && i.cache && f.cache != nil {
		e, err := f.cache.acquire(ctx, r.CacheKey+"\x00"+i.url.String()+"\x00"+i.sum.want, func(w io.Writer, size func(int64) error) (int64, error) {
			return f.download(ctx, i, r.User, w, size, f.teller(r, i))
		})
		if err == nil {
			defer f.cache.release(e)
			return e.size, f.placeCached(ctx, r, i, e)
		}
		if !errors.Is(err, errBypass) {
			return 0, err
		}
	}
	var n int64
	err := as(r.User, func() error {
		root, err := r.open()
		if err != nil {
			return err
		}
		defer root.Close()
		n, err = f.bring(ctx, root, i, r.User, f.teller(r, i))
		if err != nil {
			return err
		}
		return f.finish(ctx, root, i)
	})
	return n, err
}

// bring writes the item into the sandbox under its name.
func (f *Fetcher) bring(ctx context.Context, root *os.Root, i item, user *User, tell func(n, of int64)) (int64, error) {
	out, err := create(root, i.name, 0o644)
	if err != nil {
		return 0, err
	}
	var n int64
	if i.url != nil {
		n, err = f.download(ctx, i, user, out, nil, tell)
	} else {
		n, err = f.copyFile(ctx, out, i)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return n, errors.Join(err, root.Remove(i.name)) // half a file is worse than none
	}
	return n, nil
}

// finish unpacks what was brought, or makes it executable.
func (f *Fetcher) finish(ctx context.Context, root *os.Root, i item) error {
	if i.executable {
		return root.Chmod(i.name, 0o755)
	}
	if i.extract == formatNone {
		return nil
	}
	in, err := root.Open(i.name)
	if err != nil {
		return err
	}
	defer in.Close()
	return f.extract(ctx, root, i, in)
}

// placeCached puts a cached file into the sandbox: unpacked straight from the cache, or as a copy.
func (f *Fetcher) placeCached(ctx context.Context, r Request, i item, e *entry) error {
	in, err := os.Open(e.path) // by the agent, since the cache is the agent's alone
	if err != nil {
		return err
	}
	defer in.Close()
	return as(r.User, func() error {
		root, err := r.open()
		if err != nil {
			return err
		}
		defer root.Close()
		if i.extract != formatNone {
			return f.extract(ctx, root, i, in)
		}
		out, err := create(root, i.name, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, &reader{ctx: ctx, r: in})
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
		return f.finish(ctx, root, i)
	})
}

// copyFile copies a file of this machine, opened with the user's rights.
func (f *Fetcher) copyFile(ctx context.Context, out io.Writer, i item) (int64, error) {
	// Not blocking: a named pipe would otherwise keep the open waiting for a writer.
	in, err := os.OpenFile(i.file, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", i.file)
	}
	c := i.sum.check(out)
	n, err := io.Copy(c, &reader{ctx: ctx, r: in, left: f.cfg.MaxSize, bounded: true})
	if err == nil {
		err = c.done()
	}
	return n, err
}

// create makes a file anew, with its folders. What has the name goes, so that nothing is written through a link or
// into a file that something else has open.
func create(root *os.Root, name string, mode os.FileMode) (*os.File, error) {
	if dir := path.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
}

// teller tells the sandbox how far a download has come, every few seconds.
func (f *Fetcher) teller(r Request, i item) func(n, of int64) {
	last := time.Now()
	return func(n, of int64) {
		if time.Since(last) < f.cfg.TellEvery {
			return
		}
		last = time.Now()
		if of > 0 {
			f.tell(r, "Fetching %s: %d of %d bytes (%d%%)", i.shown, n, of, 100*n/of)
		} else {
			f.tell(r, "Fetching %s: %d bytes", i.shown, n)
		}
	}
}

// tell appends a line to the sandbox's stderr. It is for people: that it cannot be written fails nothing.
func (f *Fetcher) tell(r Request, format string, args ...any) {
	err := as(r.User, func() error {
		root, err := r.open()
		if err != nil {
			return err
		}
		defer root.Close()
		out, err := root.OpenFile("stderr", os.O_WRONLY|os.O_CREATE|os.O_APPEND|nonblock, 0o644)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s fetcher: %s\n", time.Now().UTC().Format(time.RFC3339), fmt.Sprintf(format, args...))
		return errors.Join(err, out.Close())
	})
	if err != nil {
		f.cfg.Logger.Warn("fetcher cannot write to a sandbox's stderr", "sandbox", r.Sandbox, "error", err)
	}
}

// errTooLarge is the end of a stream that passed its bound.
var errTooLarge = errors.New("larger than the fetcher's limit")

// reader ends with its context and, if bounded, with an error once more than left bytes came.
type reader struct {
	ctx     context.Context
	r       io.Reader
	left    int64
	bounded bool
}

func (r *reader) Read(b []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	n, err := r.r.Read(b)
	if r.bounded {
		if r.left -= int64(n); r.left < 0 {
			return 0, errTooLarge
		}
	}
	return n, err
}
