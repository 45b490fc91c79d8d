// Package recordio frames a sequence of records on a byte stream, as Mesos's streaming APIs do: each
// record is its length in decimal digits, a line feed, and that many bytes.
//
// Reader is total: whatever the bytes, it returns records no longer than its limit or an error, and
// holds no more memory than what has arrived. What a record contains is the caller's business.
//
// Source: docs/recordio.md of Apache Mesos.
package recordio

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// DefaultMaxRecord bounds a record's length when NewReader is given no limit. The largest records are
// the SUBSCRIBED events of the operator API, which hold the state of the cluster: 78 MB of JSON for
// 10,000 agents and 200,000 tasks.
const DefaultMaxRecord = 256 << 20

// maxLengthDigits is the length of the largest 64-bit number. Longer headers are garbage, and reading
// on would only collect it.
const maxLengthDigits = 20

var (
	// ErrMalformed is returned by Next when what should be a length is not a decimal number followed
	// by a line feed. The stream cannot be read any further.
	ErrMalformed = errors.New("recordio: malformed record length")
	// ErrTooLarge is returned by Next when a record is announced that is longer than the reader's
	// limit. The stream cannot be read any further.
	ErrTooLarge = errors.New("recordio: record is longer than the limit")
	// ErrTruncated is returned by Next when the stream ends inside a record or its length.
	ErrTruncated = errors.New("recordio: stream ended inside a record")
)

// Append appends record to b, framed.
func Append(b, record []byte) []byte {
	b = strconv.AppendInt(b, int64(len(record)), 10)
	b = append(b, '\n')
	return append(b, record...)
}

// Writer writes records to a stream. It does not buffer across records.
type Writer struct {
	w   io.Writer
	buf []byte // reused between records
}

// NewWriter returns a Writer on w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// maxKeptBuffer is how large a buffer a Writer keeps for the next record; one state of a large cluster
// must not be held for the life of a stream.
const maxKeptBuffer = 64 << 10

// Write writes one record, framed, in one call to the underlying writer.
func (w *Writer) Write(record []byte) error {
	w.buf = Append(w.buf[:0], record)
	_, err := w.w.Write(w.buf)
	if cap(w.buf) > maxKeptBuffer {
		w.buf = nil
	}
	return err
}

// Reader reads records from a stream.
type Reader struct {
	r   *bufio.Reader
	max int
	err error // what ended the stream; Next repeats it
}

// NewReader returns a Reader on r for records of at most maxRecord bytes; 0 means DefaultMaxRecord.
func NewReader(r io.Reader, maxRecord int) *Reader {
	if maxRecord <= 0 {
		maxRecord = DefaultMaxRecord
	}
	return &Reader{r: bufio.NewReader(r), max: maxRecord}
}

// Next returns the next record, which the caller owns.
//
// Errors: io.EOF when the stream ends between records; ErrMalformed, ErrTooLarge, ErrTruncated; or what
// the underlying reader returned. All are final.
func (r *Reader) Next() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	record, err := r.next()
	if err != nil {
		r.err = err
		return nil, err
	}
	return record, nil
}

func (r *Reader) next() ([]byte, error) {
	n, err := r.length()
	if err != nil {
		return nil, err
	}
	// The announced length is a claim: memory grows with what really arrives.
	const firstChunk = 64 << 10
	record := make([]byte, min(n, firstChunk))
	for have := 0; ; {
		if _, err := io.ReadFull(r.r, record[have:]); err != nil {
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return nil, fmt.Errorf("%w of %d bytes", ErrTruncated, n)
			}
			return nil, err
		}
		have = len(record)
		if have == n {
			return record, nil
		}
		grown := make([]byte, min(n, 2*have))
		copy(grown, record)
		record = grown
	}
}

// length reads a record's header.
func (r *Reader) length() (int, error) {
	var n uint64
	for digits := 0; ; digits++ {
		c, err := r.r.ReadByte()
		if err == io.EOF && digits > 0 {
			return 0, ErrTruncated
		}
		if err != nil {
			return 0, err
		}
		switch {
		case c == '\n' && digits > 0:
			if n > uint64(r.max) {
				return 0, fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, n, r.max)
			}
			return int(n), nil
		case c < '0' || c > '9':
			return 0, fmt.Errorf("%w: byte %#02x", ErrMalformed, c)
		case digits == maxLengthDigits:
			return 0, fmt.Errorf("%w: more than %d digits", ErrMalformed, maxLengthDigits)
		}
		// Twenty digits can exceed 64 bits; anything above the limit need not be exact.
		if n > uint64(r.max) {
			continue
		}
		n = n*10 + uint64(c-'0')
	}
}
