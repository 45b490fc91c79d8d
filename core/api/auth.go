package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// An Authenticator says who sent a request. It may read the headers and the connection, not the body.
//
// Errors: one with HTTPStatus gives the answer (403 for a principal that has claims but no value, 503
// when it cannot be told now); any other is a 401.
type Authenticator interface {
	Authenticate(r *http.Request) (principal string, err error)
}

// An Approver says whether a principal may do an action. The object is the route's path, or for files
// the virtual path. An error with HTTPStatus is the answer; ErrForbidden serves for no.
type Approver interface {
	Approve(ctx context.Context, principal, action, object string) error
}

// ErrForbidden is the error of an Approver that says no. It is answered 403.
var ErrForbidden error = &statusError{http.StatusForbidden, "Not authorized"}

// unauthenticated is a 401 with its challenge.
type unauthenticated struct {
	challenge string
	cause     error
}

func (e *unauthenticated) Error() string   { return "Unauthorized: " + e.cause.Error() }
func (e *unauthenticated) Unwrap() error   { return e.cause }
func (e *unauthenticated) HTTPStatus() int { return http.StatusUnauthorized }

// asUnauthenticated makes the answer of an authenticator's error. An error with a method Challenge
// gives its own WWW-Authenticate header; Basic is what all clients know.
func asUnauthenticated(realm string, err error) error {
	var s interface{ HTTPStatus() int }
	if errors.As(err, &s) && s.HTTPStatus() != http.StatusUnauthorized {
		return err
	}
	challenge := fmt.Sprintf("Basic realm=%q", realm)
	var c interface{ Challenge() string }
	if errors.As(err, &c) {
		challenge = c.Challenge()
	}
	return &unauthenticated{challenge, err}
}
