// Package fetcher brings what a command's URIs name into its sandbox: by http and https, and from files of this
// machine, unpacked and made executable as asked.
//
// It promises that nothing is read from this machine or written to the sandbox with more rights than the container's
// user has, that no name in a URI or an archive leads out of the sandbox, and that a download that stalls, never ends
// or grows without bound fails with its URI named. Downloads shared by several containers go through a cache that is
// emptied with each start. When to fetch, and what a failure means, is the containerizer's.
package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

const (
	defaultCacheSize    = 2_000_000_000 // Mesos's 2 GB
	defaultStallTimeout = time.Minute
	// defaultMaxSize bounds one file, downloaded or unpacked; larger ones belong on a volume.
	defaultMaxSize = 64 << 30
	// maxEntries bounds what one archive may unpack to: a million empty files is a full inode table.
	maxEntries = 1_000_000
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
	// Whose cached downloads may be used: the name of the user.
	CacheKey string
	// nil: whoever the agent is.
	User *User
}

// A Fetcher fetches for all containers of an agent. Its methods may be called at the same time.
type Fetcher struct {
	cfg    Config
	client *http.Client
	cache  *cache // nil without one
}

// New makes a fetcher and empties its cache.
func New(cfg Config) (*Fetcher, error) {
	if cfg.CacheSize <= 0 {
		cfg.CacheSize = defaultCacheSize
	}
	if cfg.StallTimeout <= 0 {
		cfg.StallTimeout = defaultStallTimeout
	}
	if cfg.MaxSize <= 0 {
		cfg.MaxSize = defaultMaxSize
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.ResponseHeaderTimeout = cfg.StallTimeout
		t.DisableCompression = true // a .gz must arrive as it is
		cfg.Transport = t
	}
	f := &Fetcher{cfg: cfg, client: &http.Client{Transport: cfg.Transport}}
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
		i, err := parse(u)
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
	name       string // in the sandbox, relative
	executable bool
	extract    format
	cache      bool
}

func parse(u *mesosv1.CommandInfo_URI) (item, error) {
	i := item{shown: redact(u.GetValue()), executable: u.GetExecutable(), cache: u.GetCache()}
	value := strings.TrimSpace(u.GetValue())
	var base string
	if filepath.IsAbs(value) {
		i.file, base = filepath.Clean(value), path.Base(value)
	} else {
		parsed, err := url.Parse(value)
		if err != nil {
			return i, errors.New("malformed URI")
		}
		base = path.Base(parsed.Path)
		switch parsed.Scheme {
		case "http", "https":
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
			return i, fmt.Errorf("scheme %q is not supported: want http, https, file or an absolute path", parsed.Scheme)
		}
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
		e, err := f.cache.acquire(ctx, r.CacheKey+"\x00"+i.url.String(), func(w io.Writer, size func(int64) error) (int64, error) {
			return f.download(ctx, i.url, w, size)
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
		root, err := os.OpenRoot(r.Sandbox)
		if err != nil {
			return err
		}
		defer root.Close()
		n, err = f.bring(ctx, root, i)
		if err != nil {
			return err
		}
		return f.finish(ctx, root, i)
	})
	return n, err
}

// bring writes the item into the sandbox under its name.
func (f *Fetcher) bring(ctx context.Context, root *os.Root, i item) (int64, error) {
	out, err := create(root, i.name, 0o644)
	if err != nil {
		return 0, err
	}
	var n int64
	if i.url != nil {
		n, err = f.download(ctx, i.url, out, nil)
	} else {
		n, err = f.copyFile(ctx, out, i.file)
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
		root, err := os.OpenRoot(r.Sandbox)
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
func (f *Fetcher) copyFile(ctx context.Context, out io.Writer, name string) (int64, error) {
	// Not blocking: a named pipe would otherwise keep the open waiting for a writer.
	in, err := os.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", name)
	}
	return io.Copy(out, &reader{ctx: ctx, r: in, left: f.cfg.MaxSize, bounded: true})
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

// tell appends a line to the sandbox's stderr. It is for people: that it cannot be written fails nothing.
func (f *Fetcher) tell(r Request, format string, args ...any) {
	err := as(r.User, func() error {
		root, err := os.OpenRoot(r.Sandbox)
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
