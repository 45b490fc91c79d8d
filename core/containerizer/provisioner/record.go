package provisioner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	continuity "github.com/containerd/continuity/fs"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// record is what is remembered of an image that is kept whole, in a file beside its files.
type record struct {
	Names  []string                 `json:"names"`
	Config *containerv1.ImageConfig `json:"config,omitempty"`
	Layers int                      `json:"layers"`
	Size   int64                    `json:"size_bytes"`
	Pulled time.Time                `json:"pulled"`
}

// maxNames bounds the names of one image. Paths to the same image may be made without end.
const maxNames = 100

const recordFile = "image.json"

// write completes a record in the folder of an image that is being made.
func (r *record) write(ctx context.Context, dir, name string) error {
	usage, err := continuity.DiskUsage(ctx, filepath.Join(dir, "rootfs"))
	if err != nil {
		return err
	}
	r.Names, r.Size, r.Pulled = []string{name}, usage.Size, time.Now()
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, recordFile), b, 0o600)
}

// record reads what is remembered of an image. Images of older agents have none; they are known by their key.
func (p *Provisioner) record(key string) (*record, error) {
	b, err := os.ReadFile(p.dir("images", key, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return &record{Names: []string{key}}, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("image %s: %s: %w", key, recordFile, err)
	}
	return r, nil
}

// readNames finds out at the start which images are kept whole, and under which names.
func (p *Provisioner) readNames() error {
	entries, err := os.ReadDir(p.dir("images"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		r, err := p.record(e.Name())
		if err != nil {
			return err
		}
		for _, name := range r.Names {
			p.names[name] = e.Name()
		}
	}
	return nil
}

// addName makes an image known by one more name, also after a restart. The right to unpack the image is held.
func (p *Provisioner) addName(name, key string) error {
	p.mu.Lock()
	known := p.names[name] == key
	p.mu.Unlock()
	if known {
		return nil
	}
	r, err := p.record(key)
	if err != nil {
		return err
	}
	if !slices.Contains(r.Names, name) && len(r.Names) < maxNames {
		r.Names = append(r.Names, name)
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		next := p.dir("images", key, recordFile+".next")
		if err := os.WriteFile(next, b, 0o600); err != nil {
			return err
		}
		if err := os.Rename(next, p.dir("images", key, recordFile)); err != nil {
			return err
		}
	}
	p.mu.Lock()
	p.names[name] = key
	p.mu.Unlock()
	return nil
}

// whole is an image kept whole that is there under a name.
func (p *Provisioner) whole(name string) (*base, bool) {
	p.mu.Lock()
	key, ok := p.names[name]
	p.mu.Unlock()
	if !ok || !isDir(p.dir("images", key, "rootfs")) {
		return nil, false
	}
	r, err := p.record(key)
	if err != nil {
		return nil, false // it is made anew
	}
	return &base{name: name, config: r.Config, flat: key}, true
}
