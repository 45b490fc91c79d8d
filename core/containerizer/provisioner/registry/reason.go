package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// Why a pull failed. Explain wraps one of these where it knows; nothing but time helps against the others.
var (
	// ErrNotFound: the registry has no such image, or does not tell us.
	ErrNotFound = errors.New("the registry has no such image")
	// ErrUnauthorized: the registry wants to know who we are, or that is not enough.
	ErrUnauthorized = errors.New("the registry refuses: unauthorized")
	// ErrCorrupt: what came is not what its digest says.
	ErrCorrupt = errors.New("content does not match its digest")
	// ErrTruncated: less came than was announced.
	ErrTruncated = errors.New("content is truncated")
	// ErrTLS: the registry did not prove who it is.
	ErrTLS = errors.New("the registry cannot be trusted")
	// ErrNoSpace: the disk is full.
	ErrNoSpace = errors.New("no space left on the agent's disk")
	// ErrStalled: nothing came for too long.
	ErrStalled = errors.New("the registry stalled")
)

// Explain makes an error of a pull one that says what to do about it, and says whether trying again may help.
func Explain(err error) (reason error, again bool) {
	var (
		status  remoteserrors.ErrUnexpectedStatus
		netErr  net.Error
		dial    *net.OpError
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		named   x509.HostnameError
		verify  *tls.CertificateVerificationError
		record  tls.RecordHeaderError
	)
	with := func(kind error) error {
		if errors.Is(err, kind) {
			return err
		}
		return fmt.Errorf("%w: %w", kind, err)
	}
	switch {
	case err == nil:
		return nil, false
	case errors.Is(err, ErrStalled):
		return err, true
	case errors.As(err, &dial) && dial.Op == "dial": // before the next, as which a dial that takes too long looks, too
		return err, true
	case errors.As(err, &netErr) && netErr.Timeout() && !errors.Is(err, context.Canceled):
		return with(ErrStalled), true
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err, false
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return with(ErrNoSpace), false
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return with(ErrUnauthorized), false
	case errors.As(err, &unknown), errors.As(err, &invalid), errors.As(err, &named), errors.As(err, &verify), errors.As(err, &record):
		return with(ErrTLS), false
	case errors.As(err, &status):
		switch code := status.StatusCode; {
		case code == http.StatusUnauthorized, code == http.StatusForbidden:
			return with(ErrUnauthorized), false
		case code == http.StatusNotFound:
			return with(ErrNotFound), false
		case Unsatisfiable(err): // it has less than it said, or does not go on in the middle
			return with(ErrTruncated), true
		default:
			return err, code >= 500 || code == http.StatusTooManyRequests || code == http.StatusRequestTimeout
		}
	case errors.Is(err, ErrCorrupt), errors.Is(err, ErrTruncated):
		return err, false
	case errdefs.IsNotFound(err):
		return with(ErrNotFound), false
	case errors.Is(err, io.ErrUnexpectedEOF):
		return with(ErrTruncated), true
	case errdefs.IsFailedPrecondition(err) && strings.Contains(err.Error(), "digest"):
		return with(ErrCorrupt), false
	case errdefs.IsFailedPrecondition(err) && strings.Contains(err.Error(), "size"):
		return with(ErrTruncated), true
	case errors.As(err, &netErr), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, io.EOF):
		return err, true
	}
	return err, false
}

// Unsatisfiable says whether a registry does not go on where a fetch was cut: it has to be fetched from its beginning.
func Unsatisfiable(err error) bool {
	var status remoteserrors.ErrUnexpectedStatus
	return errors.As(err, &status) && status.StatusCode == http.StatusRequestedRangeNotSatisfiable
}
