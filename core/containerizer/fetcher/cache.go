package fetcher

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// errBypass says that something does not fit into the cache and is to be fetched past it.
var errBypass = errors.New("does not fit into the cache")

// reserveStep is how much room is made at once for a download whose length the server did not tell.
const reserveStep = 1 << 20

// cache holds downloads in files, at most so many bytes of them. The one used longest ago goes first, unless it is in
// use. Its table is in memory: what the folder held before is removed at the start.
type cache struct {
	dir  string
	size int64

	mu      sync.Mutex
	used    int64             // guarded by mu; bytes stored and reserved
	entries map[string]*entry // guarded by mu
	idle    *list.List        // guarded by mu; entries nobody uses, longest first
	next    int               // guarded by mu; for file names
}

type entry struct {
	key  string
	path string
	size int64
	done chan struct{} // closed when the download is over
	err  error         // set before done is closed
	refs int           // guarded by cache.mu
	at   *list.Element // guarded by cache.mu; in idle
}

func newCache(dir string, size int64) (*cache, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &cache{dir: dir, size: size, entries: map[string]*entry{}, idle: list.New()}, nil
}

// acquire returns the entry of key, downloading it if it is not there. Callers with the same key share one download;
// if whoever does it gives up, the next one begins anew. The caller releases the entry. errBypass: it does not fit.
func (c *cache) acquire(ctx context.Context, key string, download func(w io.Writer, size func(int64) error) (int64, error)) (*entry, error) {
	for {
		c.mu.Lock()
		e := c.entries[key]
		if e == nil {
			sum := sha256.Sum256([]byte(key))
			c.next++
			e = &entry{key: key, done: make(chan struct{}), refs: 1}
			e.path = filepath.Join(c.dir, fmt.Sprintf("%s-%d", hex.EncodeToString(sum[:8]), c.next))
			c.entries[key] = e
			c.mu.Unlock()
			if err := c.fill(ctx, e, download); err != nil {
				return nil, err
			}
			return e, nil
		}
		e.refs++
		if e.at != nil {
			c.idle.Remove(e.at)
			e.at = nil
		}
		c.mu.Unlock()
		select {
		case <-e.done:
		case <-ctx.Done():
			c.release(e)
			return nil, context.Cause(ctx)
		}
		if e.err == nil {
			return e, nil
		}
		if !errors.Is(e.err, errAbandoned) {
			return nil, e.err
		}
	}
}

// errAbandoned says that the caller who downloaded for all gave up; another one takes over.
var errAbandoned = errors.New("download was abandoned")

// fill downloads into e. When it fails, e is taken out of the table.
func (c *cache) fill(ctx context.Context, e *entry, download func(w io.Writer, size func(int64) error) (int64, error)) error {
	w := &room{c: c}
	err := func() error {
		f, err := os.OpenFile(e.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		w.f = f
		n, err := download(w, w.expect)
		e.size = n
		return errors.Join(err, f.Close())
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.used -= w.reserved
		delete(c.entries, e.key)
		if rm := os.Remove(e.path); rm != nil && !errors.Is(rm, os.ErrNotExist) {
			err = errors.Join(err, rm)
		}
	} else {
		c.used -= w.reserved - e.size
	}
	e.err = err
	if err != nil && ctx.Err() != nil {
		e.err = errAbandoned
	}
	close(e.done)
	return err
}

func (c *cache) release(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.refs--
	if e.refs == 0 && c.entries[e.key] == e {
		e.at = c.idle.PushBack(e)
	}
}

// reserve makes room for n more bytes, if need be by removing what nobody uses.
func (c *cache) reserve(n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > c.size {
		return errBypass
	}
	for c.used+n > c.size {
		oldest := c.idle.Front()
		if oldest == nil {
			return errBypass
		}
		e := oldest.Value.(*entry)
		if err := os.Remove(e.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("make room in the cache: %w", err)
		}
		c.idle.Remove(oldest)
		delete(c.entries, e.key)
		c.used -= e.size
	}
	c.used += n
	return nil
}

// room is a file of the cache that reserves its bytes before they are written.
type room struct {
	c        *cache
	f        *os.File
	reserved int64
	written  int64
}

func (r *room) expect(size int64) error {
	if size <= 0 {
		return nil
	}
	if err := r.c.reserve(size); err != nil {
		return err
	}
	r.reserved += size
	return nil
}

func (r *room) Write(b []byte) (int, error) {
	for r.written+int64(len(b)) > r.reserved {
		step := max(int64(len(b)), min(reserveStep, r.c.size-r.reserved))
		if err := r.c.reserve(step); err != nil {
			return 0, err
		}
		r.reserved += step
	}
	n, err := r.f.Write(b)
	r.written += int64(n)
	return n, err
}
