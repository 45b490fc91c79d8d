// Package codec turns messages of Mesos's v1 API into bytes and back, in the two media types that the
// API has, and reads the headers that choose between them.
//
// Decoding is total and bounded in depth and in memory, and both media types end in the same message:
// an enum value that this build does not know counts as unset in either, and text that is not UTF-8 is
// refused in either. What a message means is the caller's business.
package codec

import (
	"mime"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/mesosjson"
)

// A Type is a media type of the v1 API.
type Type int

const (
	// JSON is application/json as Mesos writes it; see sdk/mesosjson.
	JSON Type = iota
	// Protobuf is application/x-protobuf: the binary encoding.
	Protobuf
)

// The names of the media types, as they stand in headers. Answers carry them without parameters: client
// libraries compare the whole string.
const (
	TypeJSON     = "application/json"
	TypeProtobuf = "application/x-protobuf"
	TypeRecordIO = "application/recordio"
)

// String returns the media type's name.
func (t Type) String() string {
	if t == Protobuf {
		return TypeProtobuf
	}
	return TypeJSON
}

// A Message is a generated message of the v1 API.
type Message interface {
	proto.Message
	AppendJSON(b []byte) []byte
	SizeVT() int
	MarshalToSizedBufferVT(b []byte) (int, error)
	UnmarshalVT(b []byte) error
}

// Append appends m to b in media type t.
func Append(t Type, b []byte, m Message) ([]byte, error) {
	if t == JSON {
		return m.AppendJSON(b), nil
	}
	n := m.SizeVT()
	start := len(b)
	b = append(b, make([]byte, n)...)
	if _, err := m.MarshalToSizedBufferVT(b[start:]); err != nil {
		return b[:start], err
	}
	return b, nil
}

// Unmarshal replaces m with what data, in media type t, says. The errors are sentences for the client.
func Unmarshal(t Type, data []byte, m Message) error {
	if t == JSON {
		return mesosjson.Unmarshal(data, m)
	}
	return unmarshalProtobuf(data, m)
}

// FromContentType returns the media type that a Content-Type header names; ok is false when it names
// none of ours. Parameters are ignored.
func FromContentType(header string) (t Type, ok bool) {
	name := header
	if name != TypeJSON && name != TypeProtobuf {
		parsed, _, err := mime.ParseMediaType(header)
		if err != nil {
			return 0, false
		}
		name = parsed
	}
	switch name {
	case TypeJSON:
		return JSON, true
	case TypeProtobuf:
		return Protobuf, true
	}
	return 0, false
}

// FromAccept returns the media type to answer in: JSON when the Accept headers allow it or there are
// none, else protobuf when they allow that; ok is false when they allow neither.
func FromAccept(headers []string) (t Type, ok bool) {
	if Accepts(headers, TypeJSON) {
		return JSON, true
	}
	return Protobuf, Accepts(headers, TypeProtobuf)
}

// Accepts reports whether Accept headers allow a media type, with wildcards and q=0 honoured. No header
// allows everything.
func Accepts(headers []string, name string) bool {
	if len(headers) == 0 {
		return true
	}
	family, _, _ := strings.Cut(name, "/")
	// An exact range overrides a wildcard, whichever comes first.
	allowed, precision := false, -1
	for _, h := range headers {
		for part := range strings.SplitSeq(h, ",") {
			rng, params, _ := strings.Cut(part, ";")
			rng = strings.ToLower(strings.TrimSpace(rng))
			p := -1
			switch rng {
			case name:
				p = 2
			case family + "/*":
				p = 1
			case "*/*":
				p = 0
			}
			if p > precision {
				allowed, precision = !isZeroQuality(params), p
			}
		}
	}
	return allowed
}

// AcceptsGzip reports whether Accept-Encoding headers allow gzip.
func AcceptsGzip(headers []string) bool {
	for _, h := range headers {
		for part := range strings.SplitSeq(h, ",") {
			coding, params, _ := strings.Cut(part, ";")
			switch strings.ToLower(strings.TrimSpace(coding)) {
			case "gzip", "x-gzip", "*":
				return !isZeroQuality(params)
			}
		}
	}
	return false
}

// isZeroQuality reports whether the parameters of a range hold q=0.
func isZeroQuality(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		key, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(strings.TrimSpace(key), "q") {
			q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return err == nil && q == 0
		}
	}
	return false
}
