package api

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
)

// statusError is an error that chooses its answer.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string   { return e.text }
func (e *statusError) HTTPStatus() int { return e.status }

func statusf(status int, format string, args ...any) error {
	return &statusError{status, fmt.Sprintf(format, args...)}
}

// answerError answers with what err says, see Master.
func (e *edge) answerError(w http.ResponseWriter, route string, err error) {
	var s interface{ HTTPStatus() int }
	if !errors.As(err, &s) || s.HTTPStatus() < 200 || s.HTTPStatus() > 599 {
		e.log.Error("request failed", "route", route, "error", err)
		writeError(w, http.StatusInternalServerError, err.Error())
		return
	}
	var u *unauthenticated
	if errors.As(err, &u) {
		w.Header().Set("WWW-Authenticate", u.challenge)
	}
	status := s.HTTPStatus()
	if status < 300 {
		writeEmpty(w, status)
		return
	}
	writeError(w, status, err.Error())
}

// writeError answers with a sentence. Some of it may be a client's own text, so that it is never taken
// for a page.
func writeError(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // a client that is gone has nothing to be told
}

// writeEmpty answers without a body: length 0 and no content type.
func writeEmpty(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(status)
}

// gzipFrom is the shortest body that is worth compressing, as in Mesos: below it all fits in one packet.
const gzipFrom = 1024

// writeBody answers 200 with a whole body, compressed when the client asks for it.
func writeBody(w http.ResponseWriter, r *http.Request, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	if len(body) >= gzipFrom {
		h.Add("Vary", "Accept-Encoding")
		if codec.AcceptsGzip(r.Header.Values("Accept-Encoding")) {
			h.Set("Content-Encoding", "gzip")
			z := gzipWriters.Get().(*gzip.Writer)
			defer gzipWriters.Put(z)
			z.Reset(w)
			_, _ = z.Write(body) // a client that is gone has nothing to be told
			_ = z.Close()
			return
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

// gzipWriters spares each answer the 800 KiB of tables that a writer allocates.
var gzipWriters = sync.Pool{New: func() any {
	z, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		panic(err) // the level is a constant
	}
	return z
}}

// writeMessage answers 200 with a message in media type t.
func writeMessage(w http.ResponseWriter, r *http.Request, t codec.Type, m codec.Message) error {
	body, err := codec.Append(t, nil, m)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	writeBody(w, r, t.String(), body)
	return nil
}

// maxClip bounds how much of a client's text a sentence repeats.
const maxClip = 512

func clip(s string) string {
	if len(s) > maxClip {
		s = s[:maxClip] + "..."
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
