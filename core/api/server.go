package api

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// statusClientGone is what metrics count for a client that left before its answer; it is never sent.
const statusClientGone = 499

// A Server answers HTTP requests by a table of routes.
type Server struct {
	*edge
	table    *table
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newServer(e *edge, prefix string, routes []Route) *Server {
	s := &Server{
		edge: e,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mosaic_api_requests_total",
			Help: "Requests answered, by route and status code; streams count when they end.",
		}, []string{"route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mosaic_api_request_seconds",
			Help:    "Time from a request's headers to its whole answer, by route; streams not included.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"route"}),
	}
	s.table = newTable(prefix, append(routes, Route{
		Path: "/help", Exact: true, Doc: "This list.", handler: s.help,
	}))
	if e.cfg.Metrics != nil {
		// Master and agent may share a process and then a registry: the second finds its metrics there.
		s.requests = registered(e.cfg.Metrics, s.requests)
		s.seconds = registered(e.cfg.Metrics, s.seconds)
	}
	return s
}

func registered[C prometheus.Collector](r *prometheus.Registry, c C) C {
	err := r.Register(c)
	var twice prometheus.AlreadyRegisteredError
	if errors.As(err, &twice) {
		if existing, ok := twice.ExistingCollector.(C); ok {
			return existing
		}
	}
	return c
}

// Routes returns the rows of the server's table, by path, for documentation and tests.
func (s *Server) Routes() []Route {
	return slices.SortedStableFunc(slices.Values(s.table.routes), func(a, b Route) int { return cmp.Compare(a.Path, b.Path) })
}

// help answers /help: the table, for people.
func (s *Server) help(w http.ResponseWriter, r *http.Request, _ string) error {
	var b bytes.Buffer
	tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, route := range s.Routes() {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", cmp.Or(strings.Join(route.Methods, ","), "any"), route.Path, route.Doc)
	}
	_ = tw.Flush() // into memory
	writeBody(w, r, "text/plain; charset=utf-8", b.Bytes())
	return nil
}

// ServeHTTP answers one request. A panic in a handler is logged and becomes a 500, or, when the answer
// had begun, the end of the connection.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w := &response{ResponseWriter: rw}
	w.extendDeadline() // the connection may still have that of the request before
	limitBodyTime(rw, r)
	route := s.table.find(r.Method, r.URL.Path)
	name := "none"
	if route.Route != nil {
		name = route.Path
	}
	start := time.Now()
	defer func() {
		v := recover()
		if v != nil && v != http.ErrAbortHandler { //nolint:errorlint // what was panicked with, not a chain
			s.log.Error("handler panicked", "route", name, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			if w.status == 0 {
				writeError(w, http.StatusInternalServerError, "Internal error")
				v = nil
			} else {
				v = http.ErrAbortHandler
			}
		}
		s.requests.WithLabelValues(name, strconv.Itoa(w.status)).Inc()
		if !w.streamed {
			s.seconds.WithLabelValues(name).Observe(time.Since(start).Seconds())
		}
		if v != nil {
			panic(v)
		}
	}()

	if route.Route == nil {
		writeError(w, http.StatusNotFound, "Not found: "+clip(r.URL.Path))
		return
	}
	err := s.serve(w, r, route)
	if err == nil {
		return
	}
	if w.status != 0 {
		s.log.Warn("answer broke off", "route", name, "error", err)
		panic(http.ErrAbortHandler)
	}
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		// Nobody is there to be answered, and nothing went wrong here.
		w.status = statusClientGone
		panic(http.ErrAbortHandler)
	}
	s.answerError(w, name, err)
}

// serve applies a route's row: who asks, whether they may, and only then the rest, as Mesos orders it.
func (s *Server) serve(w *response, r *http.Request, route match) error {
	principal := ""
	if a := s.cfg.Authenticators[route.Realm]; route.Realm != "" && a != nil {
		p, err := a.Authenticate(r)
		if err != nil {
			return asUnauthenticated(route.Realm, err)
		}
		principal = p
	}
	if route.first != nil && route.first(w, r) {
		return nil
	}
	if !route.serves(r.Method) {
		w.Header().Set("Allow", strings.Join(route.allow, ", "))
		return statusf(http.StatusMethodNotAllowed, "Expecting one of { '%s' }, but received '%s'",
			strings.Join(route.allow, "', '"), clip(r.Method))
	}
	if route.Action != "" && s.cfg.Approver != nil {
		if err := s.cfg.Approver.Approve(r.Context(), principal, route.Action, route.Path); err != nil {
			return err
		}
	}
	return route.handler(w, r, principal)
}

// response records what has been answered.
type response struct {
	http.ResponseWriter
	status   int
	streamed bool
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write gives the client writeTimeout for each piece, however long the whole is.
func (w *response) Write(b []byte) (n int, err error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if w.streamed {
		return w.ResponseWriter.Write(b)
	}
	for err == nil {
		w.extendDeadline()
		piece := b[n:min(len(b), n+writePiece)]
		var written int
		written, err = w.ResponseWriter.Write(piece)
		n += written
		if n == len(b) {
			break
		}
	}
	return n, err
}

// extendDeadline bounds the next write. Not every ResponseWriter has a connection behind it; without
// one nothing can wait.
func (w *response) extendDeadline() {
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(writeTimeout))
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack is refused: an answer goes through the table or not at all.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return nil, nil, errors.ErrUnsupported
}
