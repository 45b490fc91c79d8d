// Package provisioner makes root filesystems for containers from images on this machine: OCI layouts, archives as
// `docker save` or OCI tools write them, and plain folders.
//
// It promises that each image is verified by its digests and unpacked once, however many containers start at the same
// moment; that containers never see each other's writes nor change an image; that nothing in an image is written
// outside its folder; and that whatever is half done is gone after a restart. Registries, other image formats and the
// removal of images nobody uses are not its business yet; which containers live is the containerizer's to say.
package provisioner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Backends: how a container gets its own writable root.
const (
	// BackendOverlay mounts a writable layer over the image: a fraction of a millisecond, nothing is copied.
	BackendOverlay = "overlay"
	// BackendCopy copies the image: for machines and users without overlayfs.
	BackendCopy = "copy"
)

// Config is what a provisioner is made of.
type Config struct {
	// Required. Folder for unpacked images and containers' roots.
	Dir string
	// BackendOverlay, BackendCopy, or empty: overlay where it works.
	Backend string
	// Bytes that an image may unpack to. Default 64 GiB.
	MaxSize int64
	// Default: discarded.
	Logger *slog.Logger
}

// A Provisioner makes and removes root filesystems. Its methods may be called at the same time.
type Provisioner struct {
	cfg     Config
	log     *slog.Logger
	overlay bool

	mu    sync.Mutex
	known map[string]seen          // guarded by mu; image path to what it was when last read
	locks map[string]chan struct{} // guarded by mu; image key to the right to unpack it
}

// seen is an image file or folder that has been read before.
type seen struct {
	stamp  string
	key    string
	config *containerv1.ImageConfig
}

// New makes the folders, removes what an earlier run left half done, and finds out whether overlayfs works.
func New(cfg Config) (*Provisioner, error) {
	if cfg.MaxSize <= 0 {
		cfg.MaxSize = 64 << 30
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("provisioner: folder %q is not absolute", cfg.Dir)
	}
	p := &Provisioner{cfg: cfg, log: cfg.Logger, known: map[string]seen{}, locks: map[string]chan struct{}{}}
	if err := os.RemoveAll(p.dir("tmp")); err != nil {
		return nil, fmt.Errorf("provisioner: %w", err)
	}
	for _, d := range []string{"images", "containers", "tmp"} {
		if err := os.MkdirAll(p.dir(d), 0o700); err != nil {
			return nil, fmt.Errorf("provisioner: %w", err)
		}
	}
	switch cfg.Backend {
	case BackendOverlay, "":
		err := probeOverlay(p.dir("tmp"))
		if err != nil && cfg.Backend == BackendOverlay {
			return nil, fmt.Errorf("provisioner: overlay backend: %w", err)
		}
		if err != nil {
			p.log.Info("images are copied: overlayfs does not work here", "error", err)
		}
		p.overlay = err == nil
	case BackendCopy:
	default:
		return nil, fmt.Errorf("provisioner: got backend %q, want %s or %s", cfg.Backend, BackendOverlay, BackendCopy)
	}
	return p, nil
}

// Backend is the one in use.
func (p *Provisioner) Backend() string {
	if p.overlay {
		return BackendOverlay
	}
	return BackendCopy
}

func (p *Provisioner) dir(parts ...string) string {
	return filepath.Join(append([]string{p.cfg.Dir}, parts...)...)
}

// container is the folder of one container. Ids come from outside the agent.
func (p *Provisioner) container(id string) (string, error) {
	if id == "" || id == "." || id == ".." || strings.ContainsAny(id, "/\x00") {
		return "", fmt.Errorf("container id %q is no file name", id)
	}
	return p.dir("containers", id), nil
}

// Provision makes a writable root filesystem for a container from the image at an absolute path and returns where it
// is, and how the image wants to be run. A folder that is no OCI layout is taken as a root filesystem without
// configuration; it must not change while containers use it.
//
// On error nothing of it is left.
func (p *Provisioner) Provision(ctx context.Context, id, image string) (string, *containerv1.ImageConfig, error) {
	dir, err := p.container(id)
	if err != nil {
		return "", nil, err
	}
	lower, config, err := p.lower(ctx, image)
	if err != nil {
		return "", nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("make root filesystem: %w", err)
	}
	rootfs := filepath.Join(dir, "rootfs")
	if p.overlay {
		err = mountOverlay(dir, lower)
	} else {
		err = copyTree(ctx, rootfs, lower)
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("make root filesystem: %w", err), p.Remove(context.WithoutCancel(ctx), id))
	}
	return rootfs, config, nil
}

// Remove takes a container's root filesystem away. It succeeds if there is none.
func (p *Provisioner) Remove(_ context.Context, id string) error {
	dir, err := p.container(id)
	if err != nil {
		return err
	}
	if err := unmount(filepath.Join(dir, "rootfs")); err != nil {
		return fmt.Errorf("remove root filesystem: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove root filesystem: %w", err)
	}
	return nil
}

// Recover removes the root filesystems of containers that are not in live.
func (p *Provisioner) Recover(ctx context.Context, live []string) error {
	entries, err := os.ReadDir(p.dir("containers"))
	if err != nil {
		return fmt.Errorf("look through root filesystems: %w", err)
	}
	for _, e := range entries {
		if !slices.Contains(live, e.Name()) {
			p.log.Info("root filesystem of an unknown container is removed", "container", e.Name())
			if err := p.Remove(ctx, e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// lower returns a folder with the image's files, unpacking it if that has not been done yet.
func (p *Provisioner) lower(ctx context.Context, image string) (string, *containerv1.ImageConfig, error) {
	if !filepath.IsAbs(image) {
		return "", nil, errors.New("want an absolute path")
	}
	image, err := filepath.EvalSymlinks(image) // a name such as "current" may be moved while we read
	if err != nil {
		return "", nil, err
	}
	info, err := os.Stat(image)
	if err != nil {
		return "", nil, err
	}
	stamp := image
	if info.IsDir() {
		index := filepath.Join(image, "index.json")
		info, err = os.Stat(index)
		if _, layout := os.Stat(filepath.Join(image, "oci-layout")); layout != nil || errors.Is(err, fs.ErrNotExist) {
			return p.plainFolder(image)
		}
		if err != nil {
			return "", nil, err
		}
		stamp = index
	} else if !info.Mode().IsRegular() {
		return "", nil, errors.New("neither a folder nor an archive")
	}
	stamp += identity(info)
	p.mu.Lock()
	before, ok := p.known[image]
	p.mu.Unlock()
	if ok && before.stamp == stamp {
		if lower := p.dir("images", before.key, "rootfs"); isDir(lower) {
			return lower, before.config, nil
		}
	}
	src, err := open(image, p.dir("tmp"))
	if err != nil {
		return "", nil, err
	}
	defer src.Close()
	img, err := src.image()
	if err != nil {
		return "", nil, err
	}
	lower, err := p.unpackOnce(ctx, img)
	if err != nil {
		return "", nil, err
	}
	p.mu.Lock()
	if len(p.known) >= maxKnown {
		clear(p.known) // a memory of what can be read again
	}
	p.known[image] = seen{stamp: stamp, key: img.key, config: img.config}
	p.mu.Unlock()
	return lower, img.config, nil
}

// maxKnown bounds the memory of images read before; an entry saves reading two small files.
const maxKnown = 1000

// plainFolder takes a folder as the image's files. Our own folder may not lie in it: overlayfs would see itself.
func (p *Provisioner) plainFolder(image string) (string, *containerv1.ImageConfig, error) {
	own, err := filepath.EvalSymlinks(p.cfg.Dir)
	if err != nil {
		return "", nil, err
	}
	if rel, err := filepath.Rel(image, own); err == nil && filepath.IsLocal(rel) {
		return "", nil, fmt.Errorf("folder contains %s, where root filesystems are made", p.cfg.Dir)
	}
	entries, err := os.ReadDir(image)
	if err != nil {
		return "", nil, err
	}
	if len(entries) == 0 {
		return "", nil, errors.New("folder is empty")
	}
	return image, nil, nil
}

// unpackOnce returns the folder of an image's files. Of several that ask for the same image at once the first unpacks
// it; if that one fails or gives up, the next one tries.
func (p *Provisioner) unpackOnce(ctx context.Context, img *image) (string, error) {
	p.mu.Lock()
	lock := p.locks[img.key]
	if lock == nil {
		lock = make(chan struct{}, 1)
		p.locks[img.key] = lock
	}
	p.mu.Unlock()
	select {
	case lock <- struct{}{}:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	defer func() { <-lock }()
	final := p.dir("images", img.key)
	lower := filepath.Join(final, "rootfs")
	if isDir(lower) {
		return lower, nil
	}
	tmp, err := os.MkdirTemp(p.dir("tmp"), "unpack-")
	if err != nil {
		return "", err
	}
	err = func() error {
		rootfs := filepath.Join(tmp, "rootfs")
		if err := os.Mkdir(rootfs, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(rootfs, 0o755); err != nil { // whatever the umask
			return err
		}
		if err := img.unpack(ctx, rootfs, p.cfg.MaxSize); err != nil {
			return err
		}
		// On disk before it has its name: a half written image must not be found after a power cut.
		if err := syncTree(tmp); err != nil {
			return err
		}
		return os.Rename(tmp, final)
	}()
	if err != nil {
		return "", errors.Join(fmt.Errorf("unpack: %w", err), os.RemoveAll(tmp))
	}
	p.log.Info("image unpacked", "image", img.key, "layers", len(img.layers))
	return lower, nil
}

func isDir(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}
