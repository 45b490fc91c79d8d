package fetcher

import (
	"archive/tar"
	"archive/zip"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/ulikunitz/xz"
)

// format is how a file is packed.
type format int

const (
	formatNone format = iota
	formatTar
	formatTarGzip
	formatTarBzip2
	formatTarXz
	formatZip
	formatGzip
)

// formats by suffix, as Mesos takes them; the longer one first where one ends with the other.
var formats = []struct {
	suffix string
	format format
}{
	{".tar.gz", formatTarGzip}, {".tgz", formatTarGzip},
	{".tar.bz2", formatTarBzip2}, {".tbz2", formatTarBzip2},
	{".tar.xz", formatTarXz}, {".txz", formatTarXz},
	{".tar", formatTar}, {".zip", formatZip}, {".gz", formatGzip},
}

func formatOf(name string) format {
	for _, f := range formats {
		if strings.HasSuffix(name, f.suffix) && len(name) > len(f.suffix) {
			return f.format
		}
	}
	return formatNone
}

// maxXzDictionary bounds what an .xz may make us hold in memory; xz -9 asks for 64 MiB.
const maxXzDictionary = 128 << 20

// extract unpacks in into the folder of the item.
func (f *Fetcher) extract(ctx context.Context, root *os.Root, i item, in *os.File) error {
	stream := io.Reader(&reader{ctx: ctx, r: in})
	u := &unpacker{root: root, dir: path.Dir(i.name), left: f.cfg.MaxSize}
	err := func() error {
		switch i.extract {
		case formatTar:
			return u.tar(stream)
		case formatTarGzip, formatGzip:
			z, err := gzip.NewReader(stream)
			if err != nil {
				return err
			}
			if i.extract == formatGzip {
				return u.file(strings.TrimSuffix(path.Base(i.name), ".gz"), 0o644, z)
			}
			return u.tar(z)
		case formatTarBzip2:
			return u.tar(bzip2.NewReader(stream))
		case formatTarXz:
			if err := checkXz(in); err != nil {
				return err
			}
			x, err := xz.NewReader(stream)
			if err != nil {
				return err
			}
			return u.tar(x)
		case formatZip:
			info, err := in.Stat()
			if err != nil {
				return err
			}
			return u.zip(ctx, in, info.Size())
		}
		return nil
	}()
	if err != nil {
		return fmt.Errorf("extract: %w", err)
	}
	return nil
}

// checkXz refuses a first block that wants a dictionary beyond our bound, before the decoder sets it up. Layout of
// stream and block header: the .xz file format 1.2.1, sections 2.1.1 and 3.1.
func checkXz(in *os.File) error {
	var b [12 + 64]byte
	n, err := in.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if n < 12+8 {
		return errors.New("xz: too short")
	}
	h := b[12:n]
	if h[0] == 0 { // no block at all, but the index
		return nil
	}
	at, flags := 2, h[1]
	for range int(flags>>6&1) + int(flags>>7) { // optional sizes, in the variable-length form
		for at < len(h) && h[at]&0x80 != 0 {
			at++
		}
		at++
	}
	if flags&3 != 0 || at+2 >= len(h) || h[at] != 0x21 || h[at+1] != 1 {
		return errors.New("xz: want LZMA2 as the only filter")
	}
	bits := h[at+2]
	if bits > 40 || (2|uint64(bits&1))<<(bits/2+11) > maxXzDictionary {
		return fmt.Errorf("xz: dictionary is larger than %d bytes", maxXzDictionary)
	}
	return nil
}

// unpacker writes entries below a folder of the sandbox, within bounds.
type unpacker struct {
	root    *os.Root
	dir     string
	left    int64 // bytes still allowed
	entries int
}

// place is where an entry goes. A leading slash is dropped, as tar does; anything that leads up is refused.
func (u *unpacker) place(name string) (string, error) {
	if u.entries++; u.entries > maxEntries {
		return "", fmt.Errorf("more than %d entries", maxEntries)
	}
	local := path.Clean(strings.TrimLeft(name, "/"))
	if !filepath.IsLocal(local) {
		return "", fmt.Errorf("entry %q leads out of the sandbox", name)
	}
	return path.Join(u.dir, local), nil
}

func (u *unpacker) tar(r io.Reader) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		mode := os.FileMode(h.Mode).Perm() // no set-user-id by download
		switch h.Typeflag {
		case tar.TypeDir:
			err = u.folder(h.Name, mode)
		case tar.TypeReg:
			err = u.file(h.Name, mode, t)
		case tar.TypeSymlink:
			err = u.symlink(h.Name, h.Linkname)
		case tar.TypeLink:
			err = u.link(h.Name, h.Linkname)
		case tar.TypeXGlobalHeader:
		default:
			err = fmt.Errorf("entry %q of type %q: want files, folders and links", h.Name, h.Typeflag)
		}
		if err != nil {
			return err
		}
	}
}

func (u *unpacker) zip(ctx context.Context, in io.ReaderAt, size int64) error {
	z, err := zip.NewReader(in, size)
	if err != nil {
		return err
	}
	for _, e := range z.File {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		mode := e.Mode()
		if mode.IsDir() || strings.HasSuffix(e.Name, "/") {
			if err := u.folder(e.Name, mode.Perm()); err != nil {
				return err
			}
			continue
		}
		if mode.Type()&^os.ModeSymlink != 0 {
			return fmt.Errorf("entry %q: want files, folders and links", e.Name)
		}
		r, err := e.Open()
		if err != nil {
			return fmt.Errorf("entry %q: %w", e.Name, err)
		}
		if mode.Type() == os.ModeSymlink {
			var target []byte
			if target, err = io.ReadAll(io.LimitReader(r, 4096)); err == nil {
				err = u.symlink(e.Name, string(target))
			}
		} else {
			perm := mode.Perm()
			if perm == 0 { // made on a system without modes
				perm = 0o644
			}
			err = u.file(e.Name, perm, &reader{ctx: ctx, r: r})
		}
		if err = errors.Join(err, r.Close()); err != nil {
			return fmt.Errorf("entry %q: %w", e.Name, err)
		}
	}
	return nil
}

func (u *unpacker) file(name string, mode os.FileMode, r io.Reader) error {
	at, err := u.place(name)
	if err != nil {
		return err
	}
	out, err := create(u.root, at, mode|0o200)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(r, u.left+1))
	if u.left -= n; u.left < 0 {
		err = errTooLarge
	}
	return errors.Join(err, out.Chmod(mode), out.Close())
}

func (u *unpacker) folder(name string, mode os.FileMode) error {
	at, err := u.place(name)
	if err != nil {
		return err
	}
	if err := u.root.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if at == u.dir { // "./" would change the mode of the sandbox itself
		return nil
	}
	return u.root.Chmod(at, mode|0o700) // what follows goes into it
}

func (u *unpacker) symlink(name, target string) error {
	at, err := u.place(name)
	if err != nil {
		return err
	}
	if err := u.clear(at); err != nil {
		return err
	}
	// Where it points is the task's own affair: we never follow it out of the sandbox.
	return u.root.Symlink(target, at)
}

func (u *unpacker) link(name, target string) error {
	at, err := u.place(name)
	if err != nil {
		return err
	}
	from, err := u.place(target)
	if err != nil {
		return err
	}
	if err := u.clear(at); err != nil {
		return err
	}
	return u.root.Link(from, at)
}

// clear makes the place of a link free and its folders.
func (u *unpacker) clear(at string) error {
	if err := u.root.MkdirAll(path.Dir(at), 0o755); err != nil {
		return err
	}
	if err := u.root.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
