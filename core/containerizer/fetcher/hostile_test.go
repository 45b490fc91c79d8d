package fetcher

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// many makes n entries of one kind.
func many(n int, e func(n int) tarEntry) []tarEntry {
	list := make([]tarEntry, n)
	for i := range list {
		list[i] = e(i)
	}
	return list
}

// sparseTar is a tar of one file that says to be of size bytes, all of them holes.
func sparseTar(t *testing.T, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	// Version 1.0 of GNU's format: the list of what is no hole is at the beginning of the data, and empty.
	list := append([]byte("0\n"), make([]byte, 510)...)
	pax := fmt.Sprintf("GNU.sparse.major=1\nGNU.sparse.minor=0\nGNU.sparse.name=holes\nGNU.sparse.realsize=%d\n", size)
	var records strings.Builder
	for line := range strings.SplitSeq(strings.TrimSpace(pax), "\n") {
		n := len(line) + 2 // a space before and a newline after
		for n != len(line)+2+len(fmt.Sprint(n)) {
			n = len(line) + 2 + len(fmt.Sprint(n))
		}
		fmt.Fprintf(&records, "%d %s\n", n, line)
	}
	if err := w.WriteHeader(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: int64(records.Len()), Format: tar.FormatUSTAR}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, records.String())
	if err := w.WriteHeader(&tar.Header{Name: "GNUSparseFile.0/holes", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(list)), Format: tar.FormatUSTAR}); err != nil {
		t.Fatal(err)
	}
	w.Write(list)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out := b.Bytes()
	out[156] = tar.TypeXHeader // the writer makes none by hand
	copy(out[148:156], "        ")
	sum := 0
	for _, c := range out[:512] {
		sum += int(c)
	}
	copy(out[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return out
}

type zipEntry struct {
	name, body string
	mode       os.FileMode
}

func zipWith(t *testing.T, entries ...zipEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		if e.mode == 0 {
			e.mode = 0o644
		}
		h.SetMode(e.mode)
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// overlapping is a zip whose entries all lie on one piece of data.
func overlapping(t *testing.T, n int, body string) []byte {
	t.Helper()
	one := zipWith(t, zipEntry{name: "aaaaaaaa", body: body})
	at := bytes.Index(one, []byte("PK\x01\x02"))
	end := bytes.LastIndex(one, []byte("PK\x05\x06"))
	dir, tail := one[at:end], bytes.Clone(one[end:])
	out := bytes.Clone(one[:at])
	for i := range n {
		e := bytes.Clone(dir)
		copy(e[46:], fmt.Sprintf("%08d", i))
		out = append(out, e...)
	}
	binary.LittleEndian.PutUint16(tail[8:], uint16(n))
	binary.LittleEndian.PutUint16(tail[10:], uint16(n))
	binary.LittleEndian.PutUint32(tail[12:], uint32(n*len(dir)))
	return append(out, tail...)
}

func zstdOf(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// greedyXz is an xz of two blocks, the second of which asks for 4 GiB of dictionary.
func greedyXz(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	whole := tarOf(t, tarEntry{name: "a", body: "x"})
	w.Write(whole[:len(whole)-1024]) // without its end, so that more is asked for
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out := b.Bytes()
	index := int(binary.LittleEndian.Uint32(out[len(out)-8:])+1) * 4
	out = out[:len(out)-12-index]
	h := []byte{0x02, 0x00, 0x21, 0x01, 40, 0, 0, 0}
	return append(append(out, h...), binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(h))...)
}

// The corpus: what each archive tries, and what comes of it. What is refused names the reason; what is not has lost its
// teeth. Nothing of either kind changes a thing outside of the sandbox.
func TestHostileArchivesStayInTheSandboxAndWithinBounds(t *testing.T) {
	outer := t.TempDir()
	outside := filepath.Join(outer, "outside")
	deep := strings.Repeat("d/", maxDepth) + "f"
	for _, x := range []struct {
		name, file string
		archive    []byte
		refused    string // "": it is unpacked
	}{
		{"zip slip", "a.zip", zipWith(t, zipEntry{name: "../outside", body: "x"}), "leads out"},
		{"zip slip in the middle", "a.zip", zipWith(t, zipEntry{name: "a/../../outside", body: "x"}), "leads out"},
		{"absolute in zip", "a.zip", zipWith(t, zipEntry{name: outside, body: "x"}), ""},
		{"symlink then write in zip", "a.zip", zipWith(t, zipEntry{"l", outer, os.ModeSymlink | 0o777}, zipEntry{name: "l/outside", body: "x"}), "through a symbolic link"},
		{"device in zip", "a.zip", zipWith(t, zipEntry{"null", "", os.ModeDevice | os.ModeCharDevice}), "want files"},
		{"setuid in zip", "a.zip", zipWith(t, zipEntry{"f", "x", os.ModeSetuid | 0o755}), ""},
		{"long symlink in zip", "a.zip", zipWith(t, zipEntry{"l", strings.Repeat("x/", 4000), os.ModeSymlink | 0o777}), "too long"},
		{"overlapping entries", "a.zip", overlapping(t, 60000, strings.Repeat("x", 4096)), "larger than"},
		{"a list without end", "a.zip", overlapping(t, 1+maxZipDirectory/54, ""), "list of entries"},
		{"up", "a.tar", tarOf(t, tarEntry{name: "../outside", body: "x"}), "leads out"},
		{"up in a folder's name", "a.tar", tarOf(t, tarEntry{name: "a/../../", kind: tar.TypeDir}), "leads out"},
		{"absolute", "a.tar", tarOf(t, tarEntry{name: outside, body: "x"}), ""},
		{"symlink out then write", "a.tar", tarOf(t, tarEntry{name: "l", kind: tar.TypeSymlink, link: outer}, tarEntry{name: "l/outside", body: "x"}), "through a symbolic link"},
		{"symlink up then write", "a.tar", tarOf(t, tarEntry{name: "d/l", kind: tar.TypeSymlink, link: "../.."}, tarEntry{name: "d/l/outside", body: "x"}), "through a symbolic link"},
		{"symlink to a symlink", "a.tar", tarOf(t, tarEntry{name: "l", kind: tar.TypeSymlink, link: outer}, tarEntry{name: "m", kind: tar.TypeSymlink, link: "l"}, tarEntry{name: "m/outside", body: "x"}), "through a symbolic link"},
		{"symlink then its file", "a.tar", tarOf(t, tarEntry{name: "l", kind: tar.TypeSymlink, link: outside}, tarEntry{name: "l", body: "x"}), ""},
		{"symlink then its folder", "a.tar", tarOf(t, tarEntry{name: "l", kind: tar.TypeSymlink, link: outer}, tarEntry{name: "l/", kind: tar.TypeDir, mode: 0o777}), "through a symbolic link"},
		{"symlink over the log", "a.tar", tarOf(t, tarEntry{name: "stderr", kind: tar.TypeSymlink, link: outside}), ""},
		{"hard link out", "a.tar", tarOf(t, tarEntry{name: "h", kind: tar.TypeLink, link: "../outside"}), "leads out"},
		{"hard link to what is absolute", "a.tar", tarOf(t, tarEntry{name: "h", kind: tar.TypeLink, link: outside}), "no such file"},
		{"hard link through a symlink", "a.tar", tarOf(t, tarEntry{name: "l", kind: tar.TypeSymlink, link: outer}, tarEntry{name: "h", kind: tar.TypeLink, link: "l/outside"}), "through a symbolic link"},
		{"hard link to a symlink then write", "a.tar", tarOf(t, tarEntry{name: "l", kind: tar.TypeSymlink, link: outside}, tarEntry{name: "h", kind: tar.TypeLink, link: "l"}, tarEntry{name: "h", body: "x"}), ""},
		{"hard link to a linked folder", "a.tar", tarOf(t, tarEntry{name: "l", kind: tar.TypeSymlink, link: outer}, tarEntry{name: "h", kind: tar.TypeLink, link: "l"}, tarEntry{name: "h/outside", body: "x"}), "through a symbolic link"},
		{"hard link to itself", "a.tar", tarOf(t, tarEntry{name: "f", body: "x"}, tarEntry{name: "f", kind: tar.TypeLink, link: "./f"}), "itself"},
		{"character device", "a.tar", tarOf(t, tarEntry{name: "null", kind: tar.TypeChar}), "want files"},
		{"block device", "a.tar", tarOf(t, tarEntry{name: "sda", kind: tar.TypeBlock}), "want files"},
		{"named pipe", "a.tar", tarOf(t, tarEntry{name: "pipe", kind: tar.TypeFifo}), "want files"},
		{"setuid, setgid, sticky", "a.tar", tarOf(t, tarEntry{name: "f", body: "x", mode: 0o7777}, tarEntry{name: "d", kind: tar.TypeDir, mode: 0o7777}), ""},
		{"folder that locks its owner out", "a.tar", tarOf(t, tarEntry{name: "d", kind: tar.TypeDir, mode: 0o001}, tarEntry{name: "d/f", body: "x"}), ""},
		{"mode of the sandbox", "a.tar", tarOf(t, tarEntry{name: "./", kind: tar.TypeDir, mode: 0o777}), ""},
		{"duplicates", "a.tar", tarOf(t, many(100, func(n int) tarEntry { return tarEntry{name: "f", body: fmt.Sprint(n)} })...), ""},
		{"file in place of a full folder", "a.tar", tarOf(t, tarEntry{name: "d/f", body: "x"}, tarEntry{name: "d", body: "x"}), "not empty"},
		{"file in place of a parent", "a.tar", tarOf(t, tarEntry{name: "f", body: "x"}, tarEntry{name: "f/g", body: "x"}), "file exists"},
		{"case", "a.tar", tarOf(t, tarEntry{name: "L", kind: tar.TypeSymlink, link: outer}, tarEntry{name: "l/outside", body: "x"}), ""},
		{"composed and not", "a.tar", tarOf(t, tarEntry{name: "\u00e9", kind: tar.TypeSymlink, link: outer}, tarEntry{name: "e\u0301/outside", body: "x"}), ""},
		{"dots that are none", "a.tar", tarOf(t, tarEntry{name: "\u2024\u2024/outside", body: "x"}, tarEntry{name: "..\\outside", body: "x"}, tarEntry{name: ".../outside", body: "x"}), ""},
		{"deep", "a.tar", tarOf(t, tarEntry{name: deep, body: "x"}), "folders"},
		{"long", "a.tar", tarOf(t, tarEntry{name: strings.Repeat("n", maxName+1), body: "x"}), "bytes"},
		{"a name of 256", "a.tar", tarOf(t, tarEntry{name: strings.Repeat("n", 256), body: "x"}), "too long"},
		{"holes", "a.tar", sparseTar(t, 1<<50), "larger than"},
		{"holes within bounds", "a.tar", sparseTar(t, 1<<12), ""},
		{"bomb", "a.tar.gz", gzipOf(t, tarOf(t, tarEntry{name: "f", body: strings.Repeat("x", 2<<20)})), "larger than"},
		{"bomb of many", "a.tar.zst", zstdOf(t, tarOf(t, many(40, func(n int) tarEntry { return tarEntry{name: fmt.Sprint(n), body: strings.Repeat("x", 64<<10)} })...)), "larger than"},
		{"greedy second block", "a.tar.xz", greedyXz(t), "dictionary"},
	} {
		t.Run(x.name, func(t *testing.T) {
			if err := os.WriteFile(outside, []byte("untouched"), 0o640); err != nil {
				t.Fatal(err)
			}
			before := snapshot(t, outer)
			sandbox := filepath.Join(outer, "sandbox")
			if err := os.Mkdir(sandbox, 0o750); err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(sandbox)
			file := filepath.Join(t.TempDir(), x.file)
			if err := os.WriteFile(file, x.archive, 0o644); err != nil {
				t.Fatal(err)
			}
			f := newFetcher(t, func(c *Config) { c.MaxSize = 1 << 20 })
			source := uri(file, to("in/"+x.file))
			if len(x.archive) > 1<<20 {
				source = nil
			}
			var err error
			if source != nil {
				err = f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{source}, Sandbox: sandbox})
			} else { // larger than what may be fetched: only unpacked
				err = extractFile(t, f, sandbox, file)
			}
			switch {
			case x.refused == "" && err != nil:
				t.Errorf("Fetch: got %v, want it unpacked", err)
			case x.refused != "" && (err == nil || !strings.Contains(err.Error(), x.refused)):
				t.Errorf("Fetch: got %v, want it to say %q", err, x.refused)
			}
			var size int64
			filepath.WalkDir(sandbox, func(at string, d fs.DirEntry, err error) error {
				if err != nil {
					t.Error(err)
					return nil
				}
				info, err := d.Info()
				if err != nil {
					t.Error(err)
					return nil
				}
				size += info.Size()
				if info.Mode()&(os.ModeSetuid|os.ModeSetgid|os.ModeSticky|os.ModeDevice|os.ModeNamedPipe) != 0 {
					t.Errorf("%s: got mode %v, want plain files, folders and links", at, info.Mode())
				}
				if st := info.Sys().(*syscall.Stat_t); info.Mode().IsRegular() && st.Nlink > 1 {
					t.Errorf("%s: got %d names, want its own only", at, st.Nlink)
				}
				return nil
			})
			if size > 8<<20 {
				t.Errorf("sandbox: got %d bytes, want them bounded", size)
			}
			if info, err := os.Stat(sandbox); err != nil || info.Mode().Perm() != 0o750 {
				t.Errorf("sandbox: got %v, %v, want its mode as it was", info.Mode(), err)
			}
			if err := os.RemoveAll(sandbox); err != nil {
				t.Errorf("remove the sandbox: %v", err)
			}
			if after := snapshot(t, outer); after != before {
				t.Errorf("outside: got\n%swant\n%s", after, before)
			}
		})
	}
}

func extractFile(t *testing.T, f *Fetcher, sandbox, file string) error {
	t.Helper()
	root, err := os.OpenRoot(sandbox)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	return f.extract(t.Context(), root, item{name: filepath.Base(file), extract: formatOf(file)}, in)
}

// snapshot says what is in a folder, with modes and contents.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := []byte(nil)
		if info.Mode().IsRegular() {
			if content, err = os.ReadFile(at); err != nil {
				return err
			}
		}
		fmt.Fprintf(&b, "%s %v %q\n", at, info.Mode(), content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWhatComesOutOfAnArchiveIsBoundByItsSize(t *testing.T) {
	sandbox := t.TempDir()
	file := filepath.Join(t.TempDir(), "a.gz")
	if err := os.WriteFile(file, gzipOf(t, make([]byte, 1<<20)), 0o644); err != nil { // about 1 KiB
		t.Fatal(err)
	}
	f := newFetcher(t, func(c *Config) { c.MaxRatio = 100 })
	u := &unpacker{}
	root, err := os.OpenRoot(sandbox)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := f.allowed(info.Size()), int64(freeOfRatio)+100*info.Size(); got != want {
		t.Errorf("allowed(%d) = %d, want %d", info.Size(), got, want)
	}
	if got := f.allowed(1 << 40); got != defaultMaxSize {
		t.Errorf("allowed(1 TiB) = %d, want %d", got, defaultMaxSize)
	}
	*u = unpacker{ctx: t.Context(), root: root, dir: ".", links: map[string]bool{}, left: 100 * info.Size()}
	if err := u.unpack(item{name: "a.gz", extract: formatGzip}, in, info.Size()); !errors.Is(err, errTooLarge) {
		t.Errorf("unpack: got %v, want %v", err, errTooLarge)
	}
}

func TestUnpackingEndsInTime(t *testing.T) {
	sandbox := t.TempDir()
	file := filepath.Join(t.TempDir(), "a.tar.gz")
	if err := os.WriteFile(file, gzipOf(t, tarOf(t, many(1000, func(n int) tarEntry { return tarEntry{name: fmt.Sprint(n)} })...)), 0o644); err != nil {
		t.Fatal(err)
	}
	f := newFetcher(t, func(c *Config) { c.ExtractTimeout = time.Nanosecond })
	err := f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(file)}, Sandbox: sandbox})
	if err == nil || !strings.Contains(err.Error(), "takes longer than 1ns") {
		t.Errorf("Fetch: got %v, want it to end in time", err)
	}
}

func TestXzOfSeveralStreamsAndBlocksIsReadAndChecked(t *testing.T) {
	hello := []byte("hello\n")
	for _, sum := range []byte{xz.None, xz.CRC32, xz.CRC64, xz.SHA256} {
		var b bytes.Buffer
		w, err := xz.WriterConfig{CheckSum: sum, NoCheckSum: sum == xz.None, BlockSize: 4096}.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(bytes.Repeat(hello, 2000)) // three blocks
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		one := b.Bytes()
		for name, in := range map[string][]byte{
			"one":              one,
			"two":              append(bytes.Clone(one), one...),
			"two, with zeros":  append(append(bytes.Clone(one), 0, 0, 0, 0), one...),
			"zeros at the end": append(bytes.Clone(one), make([]byte, 8)...),
		} {
			want := bytes.Repeat(hello, 2000)
			if strings.HasPrefix(name, "two") {
				want = append(want, want...)
			}
			r, err := newXzReader(bytes.NewReader(in))
			if err != nil {
				t.Fatalf("check %d, %s: %v", sum, name, err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
				t.Errorf("check %d, %s: got %d bytes, %v, want %d", sum, name, len(got), err, len(want))
			}
		}
		if sum == xz.None {
			continue
		}
		for cut := range len(one) { // nothing shorter is taken for the whole
			r, err := newXzReader(bytes.NewReader(one[:cut]))
			if err == nil {
				_, err = io.ReadAll(r)
			}
			if err == nil {
				t.Errorf("check %d, the first %d of %d bytes: got no error", sum, cut, len(one))
			}
		}
		for at := range one { // and nothing that was changed; what the decoder makes of it may not matter
			bad := bytes.Clone(one)
			bad[at] ^= 0x10
			r, err := newXzReader(bytes.NewReader(bad))
			var got []byte
			if err == nil {
				got, err = io.ReadAll(r)
			}
			if err == nil && !bytes.Equal(got, bytes.Repeat(hello, 2000)) {
				t.Errorf("check %d, byte %d changed: got other data and no error", sum, at)
			}
		}
	}
}
