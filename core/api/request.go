package api

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
	"github.com/mosaic-cluster/mosaic/sdk/mesosjson"
)

const (
	// maxBody bounds a request's body, also after decompression. It is what the JSON decoder takes: an
	// ACCEPT that launches 10,000 tasks of 3 KiB each.
	maxBody = mesosjson.DefaultMaxBytes

	// bodyTimeout bounds the time that a body takes to arrive. A body of the greatest length needs
	// 6 Mbit/s to make it. It is shorter than writeTimeout, so that time is left to answer.
	bodyTimeout = 45 * time.Second
)

// readCall decodes a request's body into call. what names the call's type in sentences, as in
// "scheduler::Call".
func readCall(w http.ResponseWriter, r *http.Request, what string, call codec.Message) (codec.Type, error) {
	t, err := contentType(r)
	if err != nil {
		return t, err
	}
	body, err := readBody(w, r)
	if err != nil {
		return t, err
	}
	if err := codec.Unmarshal(t, body, call); err != nil {
		if t == codec.JSON {
			return t, statusf(http.StatusBadRequest, "Failed to convert JSON into %s protobuf: %s", what, clip(err.Error()))
		}
		return t, statusf(http.StatusBadRequest, "Failed to parse body into %s protobuf: %s", what, clip(err.Error()))
	}
	return t, nil
}

func contentType(r *http.Request) (codec.Type, error) {
	header := r.Header.Get("Content-Type")
	if header == "" {
		return 0, statusf(http.StatusBadRequest, "Expecting 'Content-Type' to be present")
	}
	t, ok := codec.FromContentType(header)
	if !ok {
		return 0, statusf(http.StatusUnsupportedMediaType, "Expecting 'Content-Type' of %s or %s", codec.TypeJSON, codec.TypeProtobuf)
	}
	return t, nil
}

// limitBodyTime begins the time that a request's body has, whether a handler reads it or not: what no
// handler reads, the server reads before it answers.
func limitBodyTime(w http.ResponseWriter, r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody {
		return // a deadline would then end the watch for the client's leaving
	}
	// Not every ResponseWriter has a connection behind it; without one there is nothing to wait for.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
}

// unlimitBodyTime ends that time, once the body is there or when it may go on for ever.
func unlimitBodyTime(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
}

// readBody returns the whole body, decompressed.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	var body io.Reader = http.MaxBytesReader(w, r.Body, maxBody)
	switch encoding := strings.ToLower(r.Header.Get("Content-Encoding")); encoding {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, bodyError(err)
		}
		body = z
	default:
		return nil, statusf(http.StatusUnsupportedMediaType, "Expecting 'Content-Encoding' of gzip or none")
	}
	// One byte more than allowed tells a body that decompresses to too much.
	data, err := io.ReadAll(io.LimitReader(body, maxBody+1))
	if err != nil {
		return nil, bodyError(err)
	}
	if len(data) > maxBody {
		return nil, bodyError(&http.MaxBytesError{Limit: maxBody})
	}
	unlimitBodyTime(w)
	return data, nil
}

func bodyError(err error) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return statusf(http.StatusRequestEntityTooLarge, "Request body is larger than %d bytes", maxBody)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return statusf(http.StatusRequestTimeout, "Request body did not arrive within %v", bodyTimeout)
	}
	return statusf(http.StatusBadRequest, "Failed to read the request body: %s", clip(err.Error()))
}

// accepted returns the media type to answer in.
func accepted(r *http.Request) (codec.Type, error) {
	t, ok := codec.FromAccept(r.Header.Values("Accept"))
	if !ok {
		return t, statusf(http.StatusNotAcceptable, "Expecting 'Accept' to allow %s or %s", codec.TypeJSON, codec.TypeProtobuf)
	}
	return t, nil
}
