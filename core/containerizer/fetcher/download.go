package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// download writes what the URL brings to w and returns its length. size, if given, is told the length before the
// first byte if the server says it (else -1); its error ends the download.
func (f *Fetcher) download(ctx context.Context, u *url.URL, w io.Writer, size func(int64) error) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(f.cfg.StallTimeout, func() {
		cancel(fmt.Errorf("nothing came for %s", f.cfg.StallTimeout))
	})
	defer stall.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, errors.New("malformed URI")
	}
	req.Header.Set("User-Agent", "mosaic-fetcher")
	resp, err := f.client.Do(req)
	if err != nil {
		return 0, reason(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("server answered %s", resp.Status)
	}
	if resp.ContentLength > f.cfg.MaxSize {
		return 0, fmt.Errorf("%d bytes: %w of %d", resp.ContentLength, errTooLarge, f.cfg.MaxSize)
	}
	if size != nil {
		if err := size(resp.ContentLength); err != nil {
			return 0, err
		}
	}
	body := &reader{ctx: ctx, r: resp.Body, left: f.cfg.MaxSize, bounded: true}
	n, err := io.Copy(w, &restarting{r: body, timer: stall, after: f.cfg.StallTimeout})
	if err != nil {
		return n, reason(ctx, err)
	}
	return n, nil
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

// restarting winds a timer up with each read that brought something.
type restarting struct {
	r     io.Reader
	timer *time.Timer
	after time.Duration
}

func (r *restarting) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if n > 0 {
		r.timer.Reset(r.after)
	}
	return n, err
}
