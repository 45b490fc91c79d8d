package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"syscall"
	"time"
)

// redirected says whether a download may go where it is sent on to.
func (f *Fetcher) redirected(to *http.Request, via []*http.Request) error {
	from := via[len(via)-1].URL.Scheme
	switch {
	case f.cfg.Redirects < 0:
		return fmt.Errorf("server redirects to %s, and this agent follows none", to.URL.Redacted())
	case len(via) > f.cfg.Redirects:
		return fmt.Errorf("more than %d redirects", f.cfg.Redirects)
	case from == "https" && to.URL.Scheme != "https":
		return fmt.Errorf("server redirects from https to %s", to.URL.Redacted())
	case to.URL.Scheme != "http" && to.URL.Scheme != "https" || !slices.Contains(f.cfg.Schemes, to.URL.Scheme):
		return fmt.Errorf("server redirects to %s, by which this agent fetches nothing", to.URL.Redacted())
	}
	return nil
}

// denied refuses connections to addresses in list. It is asked for each address that is tried, after its name was
// looked up.
func denied(list []netip.Prefix) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("address %s: %w", address, err)
		}
		for _, p := range list {
			if p.Contains(to.Addr().Unmap().WithZone("")) {
				return fmt.Errorf("this agent fetches nothing from %s", p)
			}
		}
		return nil
	}
}

// open asks for what the item's URL names. size is -1 where nobody says it.
func (f *Fetcher) open(ctx context.Context, i item, user *User) (body io.ReadCloser, size int64, err error) {
	switch i.url.Scheme {
	case "http", "https":
		return f.openHTTP(ctx, i.url)
	case "ftp", "ftps":
		return f.openFTP(ctx, i.url)
	}
	return f.openHadoop(ctx, i.url.String(), user)
}

func (f *Fetcher) openHTTP(ctx context.Context, u *url.URL) (io.ReadCloser, int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, 0, errors.New("malformed URI")
	}
	req.Header.Set("User-Agent", "mosaic-fetcher")
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, 0, errors.Join(fmt.Errorf("server answered %s", resp.Status), resp.Body.Close())
	}
	return resp.Body, resp.ContentLength, nil
}

// download writes what the item's URL brings to w and returns its length. size, if given, is told the length before the
// first byte if the server says it (else -1); its error ends the download. tell is told how far it is, often.
func (f *Fetcher) download(ctx context.Context, i item, user *User, w io.Writer, size func(int64) error, tell func(n, of int64)) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(f.cfg.StallTimeout, func() {
		cancel(fmt.Errorf("nothing came for %s", f.cfg.StallTimeout))
	})
	defer stall.Stop()
	in, length, err := f.open(ctx, i, user)
	if err != nil {
		return 0, reason(ctx, err)
	}
	defer in.Close()
	if length > f.cfg.MaxSize {
		return 0, fmt.Errorf("%d bytes: %w of %d", length, errTooLarge, f.cfg.MaxSize)
	}
	if size != nil {
		if err := size(length); err != nil {
			return 0, err
		}
	}
	body := &reader{ctx: ctx, r: in, left: f.cfg.MaxSize, bounded: true}
	c := i.sum.check(w)
	n, err := io.Copy(c, &restarting{r: body, timer: stall, after: f.cfg.StallTimeout, of: length, tell: tell})
	if err != nil {
		return n, reason(ctx, err)
	}
	return n, c.done()
}

// reason prefers the cause of a context that ended to what the HTTP client makes of it, whose text would also repeat
// the URL with its password.
func reason(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// restarting winds a timer up with each read that brought something, and tells of it.
type restarting struct {
	r     io.Reader
	timer *time.Timer
	after time.Duration
	n, of int64
	tell  func(n, of int64)
}

func (r *restarting) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if n > 0 {
		r.timer.Reset(r.after)
		r.n += int64(n)
		r.tell(r.n, r.of)
	}
	return n, err
}
