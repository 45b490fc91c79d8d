package recordio_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

func TestRecordsAreLengthLineFeedBytes(t *testing.T) {
	var b bytes.Buffer
	w := recordio.NewWriter(&b)
	for _, r := range []string{"hello", "", "two\nlines", strings.Repeat("x", 100000)} {
		if err := w.Write([]byte(r)); err != nil {
			t.Fatal(err)
		}
	}
	want := "5\nhello0\n9\ntwo\nlines100000\n" + strings.Repeat("x", 100000)
	if b.String() != want {
		t.Errorf("Write made %.60q..., want %.60q...", b.String(), want)
	}
	// One byte at a time, as a slow connection delivers it.
	r := recordio.NewReader(iotest.OneByteReader(&b), 0)
	for _, want := range []int{5, 0, 9, 100000} {
		got, err := r.Next()
		if err != nil || len(got) != want {
			t.Errorf("Next = %d bytes, %v; want %d", len(got), err, want)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("Next at the end: %v, want io.EOF", err)
	}
}

func TestWhatIsNoRecordIsATypedError(t *testing.T) {
	for _, c := range []struct {
		in   string
		want error
	}{
		{"", io.EOF},
		{"5", recordio.ErrTruncated},
		{"5\n", recordio.ErrTruncated},
		{"5\nabcd", recordio.ErrTruncated},
		{"\n", recordio.ErrMalformed},
		{"-1\n", recordio.ErrMalformed},
		{"+1\na", recordio.ErrMalformed},
		{" 1\na", recordio.ErrMalformed},
		{"1 \na", recordio.ErrMalformed},
		{"1\r\na", recordio.ErrMalformed},
		{"0x5\nhello", recordio.ErrMalformed},
		{"\xff\n", recordio.ErrMalformed},
		{"101\n", recordio.ErrTooLarge},
		{"18446744073709551615\n", recordio.ErrTooLarge},
		{"18446744073709551616\n", recordio.ErrTooLarge},
		{"99999999999999999999\n", recordio.ErrTooLarge},
		{"999999999999999999999\n", recordio.ErrMalformed},
		{strings.Repeat("0", 100), recordio.ErrMalformed},
		{strings.Repeat("9", 1<<20), recordio.ErrMalformed},
	} {
		r := recordio.NewReader(strings.NewReader(c.in), 100)
		_, err := r.Next()
		if !errors.Is(err, c.want) {
			t.Errorf("Next of %.40q: %v, want %v", c.in, err, c.want)
		}
		if _, again := r.Next(); again != err {
			t.Errorf("Next of %.40q again: %v, want %v: errors are final", c.in, again, err)
		}
	}
}

// A header may claim anything; only what arrives costs memory.
func TestAHugeLengthCostsNoMemory(t *testing.T) {
	in := strings.NewReader(fmt.Sprintf("%d\nabc", recordio.DefaultMaxRecord))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := recordio.NewReader(in, 0).Next()
	runtime.ReadMemStats(&after)
	if !errors.Is(err, recordio.ErrTruncated) {
		t.Errorf("Next: %v, want ErrTruncated", err)
	}
	allocated := after.TotalAlloc - before.TotalAlloc
	if allocated > 256<<10 {
		t.Errorf("a claim of %d bytes cost %d, want the first chunk only", recordio.DefaultMaxRecord, allocated)
	}
}

func TestAReadersErrorIsPassedOn(t *testing.T) {
	broken := errors.New("connection reset")
	r := recordio.NewReader(io.MultiReader(strings.NewReader("5\nab"), iotest.ErrReader(broken)), 0)
	if _, err := r.Next(); !errors.Is(err, broken) {
		t.Errorf("Next: %v, want %v", err, broken)
	}
}

// FuzzReader: whatever the bytes, records are within the limit, and writing them again gives a stream
// that reads the same.
func FuzzReader(f *testing.F) {
	for _, s := range []string{"", "0\n", "5\nhello3\nabc", "5\nhel", "-1\n", "18446744073709551616\n", "007\nseven77", "\xff\xfe", "1\n\xff"} {
		f.Add([]byte(s))
	}
	const limit = 1000
	f.Fuzz(func(t *testing.T, data []byte) {
		var records [][]byte
		r := recordio.NewReader(bytes.NewReader(data), limit)
		var end error
		for {
			record, err := r.Next()
			if err != nil {
				end = err
				break
			}
			if len(record) > limit {
				t.Fatalf("Next(%q) = %d bytes, limit %d", data, len(record), limit)
			}
			records = append(records, record)
		}
		if end != io.EOF && !errors.Is(end, recordio.ErrMalformed) && !errors.Is(end, recordio.ErrTooLarge) && !errors.Is(end, recordio.ErrTruncated) {
			t.Fatalf("Next(%q): %v, want one of the package's errors", data, end)
		}
		var out []byte
		for _, record := range records {
			out = recordio.Append(out, record)
		}
		again := recordio.NewReader(bytes.NewReader(out), limit)
		for i, want := range records {
			got, err := again.Next()
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("record %d of %q reads back as %q, %v; want %q", i, data, got, err, want)
			}
		}
	})
}
