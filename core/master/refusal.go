package master

import (
	"fmt"
	"net/http"
)

// Refusal is an answer to a call that is not carried out: an HTTP status and the sentence that the
// client reads.
type Refusal struct {
	Status int
	Text   string
}

func (r *Refusal) Error() string { return r.Text }

// HTTPStatus is the status with which the edge answers.
func (r *Refusal) HTTPStatus() int { return r.Status }

func badRequest(format string, args ...any) error {
	return &Refusal{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

func forbidden(format string, args ...any) error {
	return &Refusal{http.StatusForbidden, fmt.Sprintf(format, args...)}
}

func conflict(format string, args ...any) error {
	return &Refusal{http.StatusConflict, fmt.Sprintf(format, args...)}
}

func notImplemented(format string, args ...any) error {
	return &Refusal{http.StatusNotImplemented, fmt.Sprintf(format, args...)}
}
