package containerizer

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
)

const (
	// followPause is the time between two looks at files that are followed: short for a person who watches, and nothing
	// to the machine.
	followPause = 100 * time.Millisecond
	// followPiece is the most that is read of a file at once.
	followPiece = 32 << 10
)

// follow sends what is appended to the files stdout and stderr of a container's sandbox until the container ended.
func (c *Containerizer) follow(ctx context.Context, ct *container, send func(*agentv1.ProcessIO) bool) error {
	ct.mu.Lock()
	spec := ct.spec
	ct.mu.Unlock()
	dir, err := c.openSandboxDir(spec)
	if err != nil {
		return err
	}
	defer dir.Close()
	var tails []*tail
	for _, name := range []string{"stdout", "stderr"} {
		t := &tail{dir: dir, name: name, stderr: name == "stderr"}
		defer t.close()
		if err := t.toEnd(); err != nil {
			return err
		}
		tails = append(tails, t)
	}
	tick := time.NewTicker(followPause)
	defer tick.Stop()
	for over := false; ; {
		for _, t := range tails {
			more := true
			for more {
				var data []byte
				var err error
				if data, more, err = t.read(); err != nil {
					return err
				}
				if len(data) > 0 && !send(output(t.stderr, data)) {
					return nil
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
		}
		if over {
			return nil
		}
		select {
		case <-tick.C:
		case <-ct.ended:
			over = true // once more, for the last
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tail is a file that grows, is cut, or is replaced by a new one under its name.
type tail struct {
	dir    *os.File // that it is in
	name   string
	stderr bool
	f      *os.File // nil while there is none
	at     int64
}

func (t *tail) close() {
	if t.f != nil {
		_ = t.f.Close()
		t.f = nil
	}
}

// open opens what is there now under the name, nil if nothing is. The container may put there what it likes: only a
// regular file is read, and no link followed.
func (t *tail) open() (*os.File, error) {
	fd, err := unix.Openat(int(t.dir.Fd()), t.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ELOOP || err == unix.ENXIO {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: t.name, Err: err}
	}
	f := os.NewFile(uintptr(fd), t.name)
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// toEnd begins at the file's end.
func (t *tail) toEnd() (err error) {
	if t.f, err = t.open(); err != nil || t.f == nil {
		return err
	}
	t.at, err = t.f.Seek(0, io.SeekEnd)
	return err
}

// read returns the next piece and whether there may be more right now.
func (t *tail) read() (data []byte, more bool, err error) {
	if t.f != nil {
		info, err := t.f.Stat()
		if err != nil {
			return nil, false, err
		}
		if info.Size() < t.at {
			t.at = 0 // it was cut
		}
		data = make([]byte, min(followPiece, info.Size()-t.at))
		n, err := t.f.ReadAt(data, t.at)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, false, err
		}
		t.at += int64(n)
		if n > 0 {
			return data[:n], true, nil
		}
	}
	// Nothing more in this one: is there another under its name?
	f, err := t.open()
	if err != nil || f == nil {
		return nil, false, err // none, while it is being replaced
	}
	if t.f != nil {
		mine, err := t.f.Stat()
		if err != nil {
			return nil, false, errors.Join(err, f.Close())
		}
		if now, err := f.Stat(); err != nil || os.SameFile(mine, now) {
			return nil, false, errors.Join(err, f.Close())
		}
	}
	t.close()
	t.f, t.at = f, 0
	return nil, true, nil
}
