package fetcher

import (
	"archive/tar"
	"archive/zip"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// format is how a file is packed.
type format int

const (
	formatNone format = iota
	formatTar
	formatTarGzip
	formatTarBzip2
	formatTarXz
	formatTarZstd
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
	{".tar.zst", formatTarZstd}, {".tzst", formatTarZstd}, // beyond Mesos
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

// Bounds of what one archive may be. Nobody packs such a tree by hand; whoever comes near them wants to fill a disk, an
// inode table, or the memory of an agent.
const (
	// maxEntries: a million empty files is a full inode table.
	maxEntries = 1_000_000
	// maxName is the longest path that the kernel takes at once, and maxDepth how many folders it may have.
	maxName, maxDepth = 4096, 256
	// maxZipDirectory bounds the list of a .zip, which is held in memory, at several times its size.
	maxZipDirectory = 32 << 20
	// maxZstdWindow is to .zst what maxXzDictionary is to .xz; zstd --ultra -22 asks for 128 MiB.
	maxZstdWindow = 128 << 20
	// freeOfRatio is how much may come out of an archive however small it is. Beyond, MaxRatio counts.
	freeOfRatio = 1 << 30
)

// extract unpacks in into the folder of the item.
func (f *Fetcher) extract(ctx context.Context, root *os.Root, i item, in *os.File) error {
	ctx, cancel := context.WithTimeoutCause(ctx, f.cfg.ExtractTimeout, fmt.Errorf("takes longer than %s", f.cfg.ExtractTimeout))
	defer cancel()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	u := &unpacker{ctx: ctx, root: root, dir: path.Dir(i.name), links: map[string]bool{}, left: f.allowed(info.Size())}
	if err := u.unpack(i, in, info.Size()); err != nil {
		return fmt.Errorf("extract: %w", err)
	}
	return nil
}

// allowed is how much may come out of an archive of size bytes.
func (f *Fetcher) allowed(size int64) int64 {
	if size > (f.cfg.MaxSize-freeOfRatio)/f.cfg.MaxRatio {
		return f.cfg.MaxSize
	}
	return min(f.cfg.MaxSize, freeOfRatio+size*f.cfg.MaxRatio)
}

func (u *unpacker) unpack(i item, in *os.File, size int64) error {
	stream := io.Reader(&reader{ctx: u.ctx, r: in})
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
		x, err := newXzReader(stream)
		if err != nil {
			return err
		}
		return u.tar(x)
	case formatTarZstd:
		z, err := zstd.NewReader(stream, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return err
		}
		defer z.Close()
		return u.tar(z)
	case formatZip:
		return u.zip(in, size)
	}
	return nil
}

// unpacker writes entries below a folder of the sandbox, within bounds.
type unpacker struct {
	ctx     context.Context // of the one call that it lives for
	root    *os.Root
	dir     string
	left    int64 // bytes still allowed
	entries int
	links   map[string]bool // symbolic links that the archive made
}

// errThroughLink is an entry's whose path has a link of the same archive in it. Archives that other tools make of a
// folder never have one: those that do, want to see it followed.
var errThroughLink = errors.New("leads through a symbolic link of the archive")

// place is where an entry goes. A leading slash is dropped, as tar does; anything that leads up or over a link of this
// archive is refused. That no link in the file system leads out, whoever made it, is the root's to see to.
func (u *unpacker) place(name string) (string, error) {
	if u.entries++; u.entries > maxEntries {
		return "", fmt.Errorf("more than %d entries", maxEntries)
	}
	if u.ctx.Err() != nil {
		return "", context.Cause(u.ctx)
	}
	local := path.Clean(strings.TrimLeft(name, "/"))
	if len(local) > maxName || strings.Count(local, "/") >= maxDepth {
		return "", fmt.Errorf("entry %q...: want names of at most %d bytes and %d folders", local[:min(64, len(local))], maxName, maxDepth)
	}
	if !filepath.IsLocal(local) {
		return "", fmt.Errorf("entry %q leads out of the sandbox", name)
	}
	at := path.Join(u.dir, local)
	if len(u.links) > 0 {
		for dir := path.Dir(at); dir != "."; dir = path.Dir(dir) {
			if u.links[dir] {
				return "", fmt.Errorf("entry %q %w", name, errThroughLink)
			}
		}
	}
	return at, nil
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
		case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
			if h.Size > u.left { // said before a byte of it is written; one full of holes is only a few bytes here
				return fmt.Errorf("entry %q of %d bytes: %w", h.Name, h.Size, errTooLarge)
			}
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

func (u *unpacker) zip(in io.ReaderAt, size int64) error {
	limit := &boundedAt{in: in, left: maxZipDirectory}
	z, err := zip.NewReader(limit, size)
	if err != nil {
		return err
	}
	limit.left = math.MaxInt64 // the rest is not held
	for _, e := range z.File {
		if e.UncompressedSize64 > uint64(u.left) {
			return fmt.Errorf("entry %q of %d bytes: %w", e.Name, e.UncompressedSize64, errTooLarge)
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
			err = u.file(e.Name, perm, r)
		}
		if err = errors.Join(err, r.Close()); err != nil {
			return fmt.Errorf("entry %q: %w", e.Name, err)
		}
	}
	return nil
}

// boundedAt gives so many bytes and no more.
type boundedAt struct {
	in   io.ReaderAt
	left int64
}

func (b *boundedAt) ReadAt(p []byte, off int64) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, fmt.Errorf("zip: its list of entries is larger than %d bytes", maxZipDirectory)
	}
	return b.in.ReadAt(p, off)
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
	delete(u.links, at)
	n, err := io.Copy(out, io.LimitReader(&reader{ctx: u.ctx, r: r}, u.left+1))
	if u.left -= n; u.left < 0 {
		err = fmt.Errorf("entry %q: %w", name, errTooLarge)
	}
	return errors.Join(err, out.Chmod(mode), out.Close())
}

func (u *unpacker) folder(name string, mode os.FileMode) error {
	at, err := u.place(name)
	if err != nil {
		return err
	}
	if u.links[at] {
		return fmt.Errorf("entry %q %w", name, errThroughLink)
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
	u.links[at] = true
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
	if from == at {
		return fmt.Errorf("entry %q is a link to itself", name)
	}
	if err := u.clear(at); err != nil {
		return err
	}
	if u.links[from] {
		u.links[at] = true // the link itself has two names now
	} else {
		delete(u.links, at)
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
