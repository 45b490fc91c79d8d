package api

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"mime"
	"net/http"
	"os"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/mesosjson"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

const (
	// maxRead bounds one read of a file: 16 pages, as in Mesos, whose web page reads in such steps.
	maxRead = 16 * 4096

	// maxBrowse bounds how many entries of a folder are listed. A task can make any number.
	maxBrowse = 1 << 16
)

// opened is a file or folder that was found under a virtual path.
type opened struct {
	*os.File
	info    fs.FileInfo
	virtual string
	root    *os.Root // the published folder that it lies in; nil when it is itself a published file
	inRoot  string   // its path there
}

// Close closes it and the folder that it was found in.
func (o *opened) Close() error {
	err := o.File.Close()
	if o.root != nil {
		err = errors.Join(err, o.root.Close())
	}
	return err
}

// open finds and opens what a virtual path names, for reading. The shortest published prefix counts, and
// what follows is looked up below it without ever leaving it.
func (e *edge) open(ctx context.Context, principal, virtual string) (*opened, error) {
	if virtual == "" {
		return nil, statusf(http.StatusBadRequest, "Expecting 'path=value' in query.")
	}
	virtual = path.Clean("/" + virtual)
	isLog := virtual == "/master/log" || virtual == "/slave/log"
	if isLog && e.cfg.Approver != nil {
		if err := e.cfg.Approver.Approve(ctx, principal, "ACCESS_MESOS_LOG", virtual); err != nil {
			return nil, err
		}
	}
	if e.files == nil {
		return nil, notFound(virtual)
	}
	for end := 1; ; end++ {
		next := strings.IndexByte(virtual[end:], '/')
		if next < 0 {
			end = len(virtual)
		} else {
			end += next
		}
		host, err := e.files.ResolveFile(virtual[:end])
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		default:
			if !isLog {
				if err := e.mayAccess(ctx, principal, virtual, host); err != nil {
					return nil, err
				}
			}
			o, err := openBelow(host, strings.TrimPrefix(virtual[end:], "/"))
			if err != nil {
				return nil, fileError(virtual, err)
			}
			o.virtual = virtual
			return o, nil
		}
		if end == len(virtual) {
			return nil, notFound(virtual)
		}
	}
}

// mayAccess asks whether a principal may read what is published as virtual and lies at host. Rules for sandboxes are about the user that the
// container runs as, who owns its sandbox.
func (e *edge) mayAccess(ctx context.Context, principal, virtual, host string) error {
	if e.cfg.Approver == nil {
		return nil
	}
	info, err := os.Stat(host)
	if err != nil {
		return fileError(virtual, err)
	}
	owner := ""
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = ownerNames{}.user(st.Uid)
	}
	return e.cfg.Approver.Approve(ctx, principal, "ACCESS_SANDBOX", owner)
}

// openBelow opens host itself, or rest below it.
func openBelow(host, rest string) (*opened, error) {
	if rest == "" {
		info, err := os.Stat(host)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			f, err := os.OpenFile(host, os.O_RDONLY|syscall.O_NONBLOCK, 0)
			return checked(&opened{File: f, inRoot: "."}, err)
		}
		rest = "."
	}
	root, err := os.OpenRoot(host)
	if err != nil {
		return nil, err
	}
	o := &opened{root: root, inRoot: rest}
	// A task may have put a pipe or a device there; those are not even opened, but for a race that
	// O_NONBLOCK makes harmless.
	info, err := root.Stat(rest)
	if err == nil && !info.IsDir() && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err == nil {
		o.File, err = root.OpenFile(rest, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	}
	return checked(o, err)
}

// checked completes o after its File has been opened, or releases it.
func checked(o *opened, err error) (*opened, error) {
	if err == nil {
		o.info, err = o.File.Stat()
	}
	if err == nil && !o.info.IsDir() && !o.info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err == nil {
		return o, nil
	}
	if o.File != nil {
		_ = o.File.Close() // it was only read
	}
	if o.root != nil {
		_ = o.root.Close()
	}
	return nil, err
}

func notFound(virtual string) error {
	return statusf(http.StatusNotFound, "Requested file '%s' was not found", clip(virtual))
}

// fileError makes the answer of a failed open. What a task's links and names can bring about is "not
// found"; what is ours to look into stays as it is.
func fileError(virtual string, err error) error {
	for _, ours := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO} {
		if errors.Is(err, ours) {
			return err
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return statusf(http.StatusForbidden, "Requested file '%s' may not be read", clip(virtual))
	}
	return notFound(virtual)
}

// list returns the entries of a folder, sorted by path; none for a plain file.
func (e *edge) list(ctx context.Context, principal, virtual string) ([]*mesosv1.FileInfo, error) {
	o, err := e.open(ctx, principal, virtual)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	if !o.info.IsDir() {
		return nil, nil
	}
	names, err := o.Readdirnames(maxBrowse)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fileError(virtual, err)
	}
	slices.Sort(names)
	owners := ownerNames{}
	infos := make([]*mesosv1.FileInfo, 0, len(names))
	for _, name := range names {
		inRoot := path.Join(o.inRoot, name)
		info, err := o.root.Stat(inRoot)
		if err != nil {
			// A link to nowhere, or out of the sandbox, is shown as the link it is.
			if info, err = o.root.Lstat(inRoot); err != nil {
				continue // it has gone meanwhile
			}
		}
		f := &mesosv1.FileInfo{
			Path:  proto.String(path.Join(o.virtual, name)),
			Size:  proto.Uint64(uint64(info.Size())),
			Mtime: &mesosv1.TimeInfo{Nanoseconds: proto.Int64(info.ModTime().UnixNano())},
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			f.Nlink = proto.Int32(int32(min(st.Nlink, math.MaxInt32)))
			f.Mode = proto.Uint32(st.Mode)
			f.Uid = proto.String(owners.user(st.Uid))
			f.Gid = proto.String(owners.group(st.Gid))
		}
		infos = append(infos, f)
	}
	return infos, nil
}

// readFile returns at most maxRead bytes of a file from offset, and the file's size. length nil is to
// the end.
func (e *edge) readFile(ctx context.Context, principal, virtual string, offset uint64, length *uint64) (data []byte, size uint64, err error) {
	o, err := e.open(ctx, principal, virtual)
	if err != nil {
		return nil, 0, err
	}
	defer o.Close()
	if o.info.IsDir() {
		return nil, 0, statusf(http.StatusBadRequest, "Cannot read a directory")
	}
	size = uint64(o.info.Size())
	if offset >= size {
		return []byte{}, size, nil
	}
	n := min(size-offset, maxRead)
	if length != nil {
		n = min(n, *length)
	}
	data = make([]byte, n)
	got, err := o.ReadAt(data, int64(offset))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, fileError(virtual, err)
	}
	return data[:got], size, nil
}

// browse answers /files/browse.
func (e *edge) browse(w http.ResponseWriter, r *http.Request, principal string) error {
	query, err := readQuery(r)
	if err != nil {
		return err
	}
	infos, err := e.list(r.Context(), principal, query.Get("path"))
	if err != nil {
		return err
	}
	b := []byte{'['}
	for i, f := range infos {
		if i > 0 {
			b = append(b, ',')
		}
		b = mesosjson.AppendString(append(b, `{"path":`...), f.GetPath())
		b = mesosjson.AppendInt(append(b, `,"nlink":`...), f.GetNlink())
		b = mesosjson.AppendUint(append(b, `,"size":`...), f.GetSize())
		b = mesosjson.AppendInt(append(b, `,"mtime":`...), time.Unix(0, f.GetMtime().GetNanoseconds()).Unix())
		b = mesosjson.AppendString(append(b, `,"mode":`...), modeString(f.GetMode()))
		b = mesosjson.AppendString(append(b, `,"uid":`...), f.GetUid())
		b = mesosjson.AppendString(append(b, `,"gid":`...), f.GetGid())
		b = append(b, '}')
	}
	return writeLegacy(w, r, query, append(b, ']'))
}

// read answers /files/read.
func (e *edge) read(w http.ResponseWriter, r *http.Request, principal string) error {
	query, err := readQuery(r)
	if err != nil {
		return err
	}
	number := func(name string) (n uint64, given bool, err error) {
		s := query.Get(name)
		if s == "" || s == "-1" {
			return 0, false, nil
		}
		if n, err = strconv.ParseUint(s, 10, 63); err != nil {
			return 0, false, statusf(http.StatusBadRequest, "Failed to parse %s: got '%s', want a number from 0 on, or -1", name, clip(s))
		}
		return n, true, nil
	}
	offset, fromOffset, err := number("offset")
	if err != nil {
		return err
	}
	n, bounded, err := number("length")
	if err != nil {
		return err
	}
	length := &n
	if !bounded {
		length = nil
	}
	if !fromOffset {
		// Only the size is asked for.
		length = new(uint64)
	}
	data, size, err := e.readFile(r.Context(), principal, query.Get("path"), offset, length)
	if err != nil {
		return err
	}
	if !fromOffset {
		offset = size
	}
	b := mesosjson.AppendUint([]byte(`{"offset":`), offset)
	b = mesosjson.AppendString(append(b, `,"data":`...), string(data))
	return writeLegacy(w, r, query, append(b, '}'))
}

// download answers /files/download.
func (e *edge) download(w http.ResponseWriter, r *http.Request, principal string) error {
	query, err := readQuery(r)
	if err != nil {
		return err
	}
	o, err := e.open(r.Context(), principal, query.Get("path"))
	if err != nil {
		return err
	}
	defer o.Close()
	if o.info.IsDir() {
		return statusf(http.StatusBadRequest, "Cannot download a directory")
	}
	name := path.Base(o.virtual)
	contentType := mime.TypeByExtension(path.Ext(name))
	if contentType == "" {
		contentType = "application/octet-stream"
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
	http.ServeContent(w, r, name, o.info.ModTime(), o.File)
	return nil
}

// modeString writes a file's mode as ls does: -rw-r--r--.
func modeString(mode uint32) string {
	kinds := map[uint32]byte{
		syscall.S_IFDIR: 'd', syscall.S_IFLNK: 'l', syscall.S_IFBLK: 'b',
		syscall.S_IFCHR: 'c', syscall.S_IFIFO: 'p', syscall.S_IFSOCK: 's',
	}
	b := []byte("-rwxrwxrwx")
	if k, ok := kinds[mode&syscall.S_IFMT]; ok {
		b[0] = k
	}
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	return string(b)
}

// ownerNames remembers names of users and groups while one folder is listed.
type ownerNames map[string]string

func (o ownerNames) user(id uint32) string {
	return o.lookup("u", id, func(s string) (string, error) {
		u, err := user.LookupId(s)
		if err != nil {
			return "", err
		}
		return u.Username, nil
	})
}

func (o ownerNames) group(id uint32) string {
	return o.lookup("g", id, func(s string) (string, error) {
		g, err := user.LookupGroupId(s)
		if err != nil {
			return "", err
		}
		return g.Name, nil
	})
}

// lookup returns the name, or the number for those without one.
func (o ownerNames) lookup(kind string, id uint32, find func(string) (string, error)) string {
	number := strconv.FormatUint(uint64(id), 10)
	if name, ok := o[kind+number]; ok {
		return name
	}
	name, err := find(number)
	if err != nil {
		name = number
	}
	o[kind+number] = name
	return name
}
