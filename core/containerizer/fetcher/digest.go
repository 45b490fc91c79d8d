package fetcher

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
)

// digest is what a URI must bring; the zero value takes anything.
//
// Mesos's URIs have no field for it. It is the URI's fragment, which is sent to no server, and which Mesos ignores:
// https://example.org/tool.tgz#sha256=9f86...
type digest struct {
	name string // sha256 or sha512
	want string // in hex
}

// cutDigest takes the digest off the end of a URI. Another fragment stays where it is.
func cutDigest(value string) (string, digest, error) {
	at := strings.LastIndexByte(value, '#')
	if at < 0 {
		return value, digest{}, nil
	}
	name, want, _ := strings.Cut(value[at+1:], "=")
	size := 0
	switch name {
	case "sha256":
		size = sha256.Size
	case "sha512":
		size = sha512.Size
	default:
		return value, digest{}, nil
	}
	b, err := hex.DecodeString(want)
	if err != nil || len(b) != size {
		return value, digest{}, fmt.Errorf("malformed digest: want %s= and %d hex digits", name, 2*size)
	}
	return value[:at], digest{name: name, want: hex.EncodeToString(b)}, nil
}

// ErrDigest is matched by the error of a URI that brought something else than its digest says.
var ErrDigest = errors.New("digest does not match")

// checked passes on what it is given and says at the end whether it was what it should be.
type checked struct {
	w   io.Writer
	of  digest
	sum hash.Hash // nil without digest
}

func (d digest) check(w io.Writer) *checked {
	c := &checked{w: w, of: d}
	switch d.name {
	case "sha256":
		c.sum = sha256.New()
	case "sha512":
		c.sum = sha512.New()
	}
	return c
}

func (c *checked) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	if c.sum != nil {
		c.sum.Write(b[:n])
	}
	return n, err
}

func (c *checked) done() error {
	if c.sum == nil {
		return nil
	}
	if got := hex.EncodeToString(c.sum.Sum(nil)); got != c.of.want {
		return fmt.Errorf("%w: got %s %s, want %s", ErrDigest, c.of.name, got, c.of.want)
	}
	return nil
}
