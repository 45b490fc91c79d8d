package fetcher

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// maxXzDictionary bounds what an .xz may make us hold in memory; xz -9 asks for 64 MiB.
const maxXzDictionary = 128 << 20

// xzReader takes an .xz file apart itself and leaves only the data of blocks to the lzma package: every block, and not
// only the first, names the dictionary that its reader sets up, up to 4 GiB, and is to be refused before that.
//
// Layout: the .xz file format 1.2.1. Blocks have LZMA2 as their only filter, which is what xz makes unless told
// otherwise.
type xzReader struct {
	in     counting
	flags  [2]byte // of the stream
	blocks uint64  // of the stream so far
	total  uint64  // bytes of the stream so far, unpacked

	data *lzma.Reader2 // of the block; nil between two
	from int64         // where the block's data begins in the file
	sum  hash.Hash     // nil for none
	size int           // bytes of the block's check
	n    uint64        // unpacked of the block
	err  error
}

// counting counts what is read, one byte or many.
type counting struct {
	r *bufio.Reader
	n int64
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

func (c *counting) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

var errXz = errors.New("xz: malformed")

func newXzReader(r io.Reader) (*xzReader, error) {
	x := &xzReader{in: counting{r: bufio.NewReader(r)}}
	return x, x.stream()
}

// stream reads a stream's header.
func (x *xzReader) stream() error {
	var h [12]byte
	if err := x.full(h[:]); err != nil {
		return fmt.Errorf("xz: header: %w", err)
	}
	if !bytes.Equal(h[:6], []byte("\xfd7zXZ\x00")) || crc32.ChecksumIEEE(h[6:8]) != binary.LittleEndian.Uint32(h[8:]) {
		return errors.New("xz: not an xz file")
	}
	x.flags, x.blocks, x.total = [2]byte(h[6:8]), 0, 0
	if x.flags[0] != 0 {
		return errXz
	}
	switch x.flags[1] {
	case 0x00, 0x01, 0x04, 0x0a:
		return nil
	}
	return fmt.Errorf("xz: unknown check %#x", x.flags[1])
}

// full is io.ReadFull for which an end in the middle is always one too early.
func (x *xzReader) full(b []byte) error {
	_, err := io.ReadFull(&x.in, b)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (x *xzReader) Read(b []byte) (int, error) {
	for x.err == nil {
		if x.data == nil {
			x.err = x.next()
			continue
		}
		n, err := x.data.Read(b)
		x.n += uint64(n)
		if x.sum != nil {
			x.sum.Write(b[:n])
		}
		if errors.Is(err, io.EOF) {
			err = x.endBlock()
		}
		x.err = err
		if n > 0 || len(b) == 0 {
			return n, nil
		}
	}
	return 0, x.err
}

// next begins the next block, or ends the stream and goes on with the next; io.EOF at the end of the file.
func (x *xzReader) next() error {
	first, err := x.in.ReadByte()
	if err != nil {
		return io.ErrUnexpectedEOF
	}
	if first == 0 {
		if err := x.index(); err != nil {
			return err
		}
		return x.padding()
	}
	h := make([]byte, 4*(int(first)+1))
	h[0] = first
	if err := x.full(h[1:]); err != nil {
		return err
	}
	h, crc := h[:len(h)-4], binary.LittleEndian.Uint32(h[len(h)-4:])
	if crc32.ChecksumIEEE(h) != crc {
		return errXz
	}
	at, flags := 2, h[1]
	for range int(flags>>6&1) + int(flags>>7) { // sizes, which the block tells itself
		n, err := binary.ReadUvarint(bytes.NewReader(h[min(at, len(h)):]))
		if err != nil {
			return errXz
		}
		at += len(binary.AppendUvarint(nil, n))
	}
	if flags&0x3f != 0 || at+2 >= len(h) || h[at] != 0x21 || h[at+1] != 1 {
		return errors.New("xz: want LZMA2 as the only filter")
	}
	bits := h[at+2]
	if bits > 40 || (2|uint64(bits&1))<<(bits/2+11) > maxXzDictionary {
		return fmt.Errorf("xz: dictionary is larger than %d bytes", maxXzDictionary)
	}
	x.blocks, x.n, x.from = x.blocks+1, 0, x.in.n
	switch x.flags[1] {
	case 0x00:
		x.sum, x.size = nil, 0
	case 0x01:
		x.sum, x.size = crc32.NewIEEE(), 4
	case 0x04:
		x.sum, x.size = crc64.New(crc64.MakeTable(crc64.ECMA)), 8
	case 0x0a:
		x.sum, x.size = sha256.New(), 32
	}
	x.data, err = lzma.Reader2Config{DictCap: max(int((2|uint64(bits&1))<<(bits/2+11)), lzma.MinDictCap)}.NewReader2(&x.in)
	return err
}

// endBlock reads a block's padding and check.
func (x *xzReader) endBlock() error {
	x.data = nil
	x.total += x.n
	pad := int(-(x.in.n - x.from) & 3)
	rest := make([]byte, pad+x.size)
	if err := x.full(rest); err != nil {
		return err
	}
	if x.sum == nil {
		return nil
	}
	got, want := x.sum.Sum(nil), rest[pad:]
	if x.size < 32 { // in the file the small ones are little endian
		want = bytes.Clone(want)
		for i, j := 0, len(want)-1; i < j; i, j = i+1, j-1 {
			want[i], want[j] = want[j], want[i]
		}
	}
	if !bytes.Equal(got, want) {
		return errors.New("xz: the check of a block does not match")
	}
	return nil
}

// index reads what follows the blocks. Its first byte is read already.
func (x *xzReader) index() error {
	from := x.in.n - 1
	count, err := binary.ReadUvarint(&x.in)
	if err != nil || count != x.blocks {
		return errXz
	}
	var total uint64
	for range count {
		if _, err := binary.ReadUvarint(&x.in); err != nil {
			return errXz
		}
		n, err := binary.ReadUvarint(&x.in)
		if err != nil {
			return errXz
		}
		total += n
	}
	if total != x.total {
		return errors.New("xz: the index does not match")
	}
	var rest [3 + 4 + 12]byte // padding, its checksum, the footer
	pad := int(-(x.in.n - from) & 3)
	if err := x.full(rest[:pad+4+12]); err != nil {
		return err
	}
	if footer := rest[pad+4 : pad+16]; [2]byte(footer[8:10]) != x.flags || string(footer[10:]) != "YZ" {
		return errXz
	}
	return nil
}

// padding skips the zeros after a stream, in fours, and begins the stream that may follow.
func (x *xzReader) padding() error {
	for {
		b, err := x.in.r.Peek(4)
		switch {
		case len(b) == 0 && errors.Is(err, io.EOF):
			return io.EOF
		case err != nil:
			return errXz
		case !bytes.Equal(b, []byte{0, 0, 0, 0}):
			return x.stream()
		}
		n, err := x.in.r.Discard(4)
		x.in.n += int64(n)
		if err != nil {
			return err
		}
	}
}
