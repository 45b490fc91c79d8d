package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/google/uuid"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// probe is what one run of a check does. CheckInfo's kinds stand for those of health checks, too.
type probe struct {
	kind    mesosv1.CheckInfo_Type
	command *mesosv1.CommandInfo
	scheme  string // of HTTP
	path    string // of HTTP
	address string // of HTTP and TCP: a loopback address and a port
}

// healthProbe reads a health check. Its type is what it holds when it does not say.
func healthProbe(h *mesosv1.HealthCheck) probe {
	kind := mesosv1.CheckInfo_Type(h.GetType())
	if kind == mesosv1.CheckInfo_UNKNOWN {
		kind = inferKind(h.Command != nil, h.Http != nil, h.Tcp != nil)
	}
	p := probe{kind: kind, command: h.GetCommand(), scheme: h.GetHttp().GetScheme(), path: h.GetHttp().GetPath()}
	if kind == mesosv1.CheckInfo_HTTP {
		p.address = loopback(h.GetHttp().GetProtocol(), h.GetHttp().GetPort())
	} else {
		p.address = loopback(h.GetTcp().GetProtocol(), h.GetTcp().GetPort())
	}
	return p
}

func checkProbe(i *mesosv1.CheckInfo) probe {
	kind := i.GetType()
	if kind == mesosv1.CheckInfo_UNKNOWN {
		kind = inferKind(i.Command != nil, i.Http != nil, i.Tcp != nil)
	}
	p := probe{kind: kind, command: i.GetCommand().GetCommand(), path: i.GetHttp().GetPath()}
	if kind == mesosv1.CheckInfo_HTTP {
		p.address = loopback(mesosv1.NetworkInfo_IPv4, i.GetHttp().GetPort())
	} else {
		p.address = loopback(mesosv1.NetworkInfo_IPv4, i.GetTcp().GetPort())
	}
	return p
}

func inferKind(command, http, tcp bool) mesosv1.CheckInfo_Type {
	switch {
	case command:
		return mesosv1.CheckInfo_COMMAND
	case http:
		return mesosv1.CheckInfo_HTTP
	case tcp:
		return mesosv1.CheckInfo_TCP
	}
	return mesosv1.CheckInfo_UNKNOWN
}

func loopback(protocol mesosv1.NetworkInfo_Protocol, port uint32) string {
	host := "127.0.0.1"
	if protocol == mesosv1.NetworkInfo_IPv6 {
		host = "::1"
	}
	return net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
}

// result is what one run found: the value of its kind, or err if there is none.
type result struct {
	exit      *int32
	code      *uint32
	connected *bool
	err       error
	// discard, if not nil, takes away what the run left. It returns when that is done, or ctx has ended.
	discard func(ctx context.Context)
}

// status is the result as a check reports it. Without a result the value is empty.
func (r result) status(kind mesosv1.CheckInfo_Type) *mesosv1.CheckStatusInfo {
	s := &mesosv1.CheckStatusInfo{Type: kind.Enum()}
	switch kind {
	case mesosv1.CheckInfo_COMMAND:
		s.Command = &mesosv1.CheckStatusInfo_Command{ExitCode: r.exit}
	case mesosv1.CheckInfo_HTTP:
		s.Http = &mesosv1.CheckStatusInfo_Http{StatusCode: r.code}
	case mesosv1.CheckInfo_TCP:
		s.Tcp = &mesosv1.CheckStatusInfo_Tcp{Succeeded: r.connected}
	}
	return s
}

// problem says why a task is unhealthy; empty when it is healthy.
func (r result) problem() string {
	switch {
	case r.err != nil:
		return r.err.Error()
	case r.exit != nil && *r.exit != 0:
		return fmt.Sprintf("the command exited with status %d", *r.exit)
	case r.code != nil && (*r.code < 200 || *r.code >= 400):
		return fmt.Sprintf("got HTTP status %d, want 200 to 399", *r.code)
	}
	return ""
}

type errCheckTimeout time.Duration

func (e errCheckTimeout) Error() string { return "no result within " + time.Duration(e).String() }

// run is one run of an HTTP or TCP check, on the loopback device of the network that process pid is in.
func (p probe) run(ctx context.Context, pid int32) result {
	switch p.kind {
	case mesosv1.CheckInfo_HTTP:
		code, err := p.get(ctx, pid)
		if err != nil {
			return result{err: err}
		}
		return result{code: &code}
	case mesosv1.CheckInfo_TCP:
		conn, err := dialIn(ctx, pid, p.address)
		switch {
		case err == nil:
			_ = conn.Close() // nothing was written
			return result{connected: new(true)}
		case ctx.Err() != nil || !isConnectError(err):
			return result{err: err}
		}
		return result{connected: new(false), err: err}
	}
	return result{err: fmt.Errorf("a check of kind %s cannot be run", p.kind)}
}

// isConnectError says whether it is the other side that did not take the connection.
func isConnectError(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && (errno == syscall.ECONNREFUSED || errno == syscall.ECONNRESET || errno == syscall.ETIMEDOUT ||
		errno == syscall.EHOSTUNREACH || errno == syscall.ENETUNREACH || errno == syscall.EADDRNOTAVAIL)
}

// Bounds of an HTTP check: how many redirects are followed (as many as curl, which Mesos has do this), how much of the
// headers is read, and how much of the body.
const (
	maxRedirects   = 50
	maxCheckHeader = 256 << 10
	maxCheckBody   = 1 << 20
)

// get asks for the path and follows redirects. Certificates are not verified: the task's is hardly for 127.0.0.1.
func (p probe) get(ctx context.Context, pid int32) (uint32, error) {
	scheme := p.scheme
	if scheme == "" {
		scheme = "http"
	}
	url := scheme + "://" + p.address + p.path
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Accept", "*/*")
	request.Header.Set("User-Agent", "mosaic-check")
	transport := &http.Transport{
		DialContext:            func(ctx context.Context, _, address string) (net.Conn, error) { return dialIn(ctx, pid, address) },
		TLSClientConfig:        &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxCheckHeader,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fmt.Errorf("more than %d redirects", maxRedirects)
		}
		return nil
	}}
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if _, err := io.CopyN(io.Discard, response.Body, maxCheckBody); err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read the answer of %s: %w", url, err)
	}
	return uint32(response.StatusCode), nil
}

// commandCheckOf describes the container in which a COMMAND check of e's task runs: one more command in the task's.
// The caller holds the lock.
func (a *Agent) commandCheckOf(e *executor, command *mesosv1.CommandInfo) *containerv1.Container {
	c := a.containerOf(e)
	own := uuid.NewString()
	c.ParentId, c.Id = c.Id, c.Id+"."+own
	c.Generation, c.Class = 1, containerv1.Container_DEBUG
	c.Cgroup += "/debug-" + own
	c.ContainerInfo, c.Resources, c.Limits, c.Environment = nil, nil, nil, nil // the task's are its own
	c.Command = command.CloneVT()
	if c.Command != nil {
		// Of the check's own command only what is run and its variables count: another user would be a way around what the
		// framework may run tasks as.
		c.Command.User, c.Command.Uris = nil, nil
	}
	return c
}

// runCommandCheck runs a command to its end. A command ended by a signal counts as exit code 128 and its number, as in
// a shell.
func (a *Agent) runCommandCheck(ctx context.Context, c *containerv1.Container) result {
	if _, err := a.ctzr.Launch(ctx, c); err != nil {
		return result{err: fmt.Errorf("run its command: %w", err)}
	}
	r := result{discard: func(work context.Context) { a.discardCommandCheck(work, c.GetId()) }}
	end, err := a.ctzr.Wait(ctx, c.GetId())
	switch {
	case err != nil:
		r.err = fmt.Errorf("wait for its command: %w", err)
	case end == nil || end.WaitStatus == nil:
		r.err = errors.New("nobody knows how its command ended")
	default:
		w := syscall.WaitStatus(end.GetWaitStatus())
		code := int32(w.ExitStatus())
		if w.Signaled() {
			code = 128 + int32(w.Signal())
		}
		r.exit = &code
	}
	return r
}

// discardCommandCheck sees to it that nothing is left of a check's container. Until then its check is not run again.
func (a *Agent) discardCommandCheck(ctx context.Context, id string) {
	for wait := destroyRetryMin; ; wait = min(2*wait, destroyRetryMax) {
		once, cancel := context.WithTimeout(ctx, destroyTimeout)
		err := a.ctzr.Destroy(once, id, nil)
		if err == nil {
			err = a.ctzr.Forget(once, id)
		}
		cancel()
		if err == nil || ctx.Err() != nil {
			return
		}
		a.log.Warn("a check's command cannot be ended, will be tried again", "container", id, "after", wait, "error", err)
		if !sleep(ctx, wait) {
			return
		}
	}
}
