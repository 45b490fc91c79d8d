package provisioner

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// source is an OCI layout or an archive, as a set of named files.
type source struct {
	root  *os.Root        // a layout
	file  *os.File        // an archive
	index map[string]span // of the archive
}

// span is where a file lies in an archive; link is another name to look under.
type span struct {
	at, size int64
	link     string
}

const (
	// maxDocument bounds manifests and configurations, which are read as a whole. The largest in use are some 100 KB.
	maxDocument = 8 << 20
	// maxArchiveEntries bounds the files of an archive: a few for each layer.
	maxArchiveEntries = 100_000
	// maxLinks bounds how often a name in an archive leads to another; `docker save` once wrote links for equal layers.
	maxLinks = 8
	// maxWindow bounds what a compressed layer may make us hold in memory.
	maxWindow = 128 << 20
)

// open opens a layout or an archive. A compressed archive is unpacked into a nameless file in tmp, since layers are
// read in an order of their own.
func open(image, tmp string) (*source, error) {
	if isDir(image) {
		root, err := os.OpenRoot(image)
		if err != nil {
			return nil, err
		}
		return &source{root: root}, nil
	}
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	var magic [4]byte
	n, err := f.ReadAt(magic[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, f.Close())
	}
	if compressed(magic[:n]) {
		plain, err := inflate(f, tmp)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("decompress archive: %w", err)
		}
		f = plain
	}
	s := &source{file: f}
	if s.index, err = indexTar(f); err != nil {
		return nil, errors.Join(fmt.Errorf("read archive: %w", err), f.Close())
	}
	return s, nil
}

// Close closes the source.
func (s *source) Close() error {
	if s.root != nil {
		return s.root.Close()
	}
	return s.file.Close()
}

func compressed(magic []byte) bool {
	return bytes.HasPrefix(magic, []byte{0x1f, 0x8b}) || bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd})
}

// decompress returns the plain stream of r, which may be gzip, zstd or plain already.
func decompress(r io.Reader) (io.ReadCloser, error) {
	head := make([]byte, 4)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	head = head[:n]
	whole := io.MultiReader(bytes.NewReader(head), r)
	switch {
	case !compressed(head):
		return io.NopCloser(whole), nil
	case head[0] == 0x1f:
		return gzip.NewReader(whole)
	}
	z, err := zstd.NewReader(whole, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

func inflate(f *os.File, tmp string) (*os.File, error) {
	in, err := decompress(f)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, err := os.CreateTemp(tmp, "archive-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(out.Name()); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	if n, err := io.Copy(out, io.LimitReader(in, maxInflated+1)); err != nil || n > maxInflated {
		if err == nil {
			err = fmt.Errorf("larger than %d bytes", int64(maxInflated))
		}
		return nil, errors.Join(err, out.Close())
	}
	_, err = out.Seek(0, io.SeekStart)
	return out, err
}

// maxInflated bounds a compressed archive.
const maxInflated = 64 << 30

// indexTar notes where the files of an archive lie. It reads headers only: the tar reader seeks over the rest.
func indexTar(f *os.File) (map[string]span, error) {
	index := map[string]span{}
	t := tar.NewReader(f)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return index, nil
		}
		if err != nil {
			return nil, err
		}
		if len(index) >= maxArchiveEntries {
			return nil, fmt.Errorf("more than %d files", maxArchiveEntries)
		}
		name := path.Clean(strings.TrimLeft(h.Name, "/"))
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			index[name] = span{at: at, size: h.Size}
		case tar.TypeSymlink:
			index[name] = span{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			index[name] = span{link: path.Clean(strings.TrimLeft(h.Linkname, "/"))}
		}
	}
}

// has says whether there is a file of that name.
func (s *source) has(name string) bool {
	if s.root != nil {
		info, err := s.root.Stat(name)
		return err == nil && info.Mode().IsRegular()
	}
	_, ok := s.index[name]
	return ok
}

// open opens one file and tells its size.
func (s *source) open(name string) (io.ReadCloser, int64, error) {
	if s.root != nil {
		f, err := s.root.OpenFile(name, os.O_RDONLY|nonblock, 0)
		if err != nil {
			return nil, 0, err
		}
		info, err := f.Stat()
		if err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%s is not a regular file", name)
		}
		if err != nil {
			return nil, 0, errors.Join(err, f.Close())
		}
		return f, info.Size(), nil
	}
	at := path.Clean(name)
	for range maxLinks {
		found, ok := s.index[at]
		if !ok {
			break
		}
		if found.link == "" {
			return io.NopCloser(io.NewSectionReader(s.file, found.at, found.size)), found.size, nil
		}
		at = found.link
	}
	return nil, 0, fmt.Errorf("archive has no file %s", name)
}

// document reads a small file as a whole.
func (s *source) document(name string) ([]byte, error) {
	r, size, err := s.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > maxDocument {
		return nil, fmt.Errorf("%s has %d bytes, want at most %d", name, size, maxDocument)
	}
	return io.ReadAll(io.LimitReader(r, maxDocument))
}
