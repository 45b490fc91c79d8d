// Package provisioner makes root filesystems for containers from images: of Docker and OCI registries, of Appc, of archives
// and layouts on this machine or at a URL, and plain folders.
//
// It promises that each image is verified by its digests, pulled and unpacked once, however many containers start at the
// same moment, with layers that images share kept once; that containers never see each other's writes nor change an
// image; that nothing in an image is written outside its folder; that no image is removed that a container runs from;
// and that whatever is half done, when a pull fails or the agent is killed, is gone afterwards. Which containers live,
// and how a configuration becomes a command line, is the containerizer's to say.
package provisioner

import (
	"bytes"
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
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
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
	// Registries, and who we are there.
	Registries registry.Config
	// Folder of archives to take images of registries' names from, instead of from registries: alpine from
	// alpine:latest.tar. Optional.
	Archives string
	// What the URI of an Appc image begins with: the name, the version, the platform and .aci follow. Optional.
	AppcPrefix string
	// Folder with Appc images that are there already, unpacked, as images/ID/manifest and images/ID/rootfs. Optional.
	AppcStore string
	// Secret resolves what an image's own Docker configuration refers to. Without it such images are refused.
	Secret func(ctx context.Context, s *mesosv1.Secret) ([]byte, error)
	// Automatic removal of images. None unless Headroom is set.
	GC GCConfig
	// Pause before a pull is tried again, at first. Default half a second.
	PullPause time.Duration
	// Time after which a pull ends that brings nothing. Default a minute.
	PullStall time.Duration
	// Default: discarded.
	Logger *slog.Logger

	used func() (float64, error) // share of the disk in use; tests say another
}

// A Provisioner makes and removes root filesystems. Its methods may be called at the same time. Close ends it.
type Provisioner struct {
	cfg        Config
	log        *slog.Logger
	overlay    bool
	registries *registry.Client
	fetches    *semaphore.Weighted
	turns      keyed

	opening sync.Mutex // held while store is opened
	store   atomic.Pointer[store]

	// gc is held for reading while a container takes hold of an image that is there, and for writing while it is
	// decided which images nobody has: milliseconds both.
	gc   sync.RWMutex
	work sync.WaitGroup // pulls

	mu     sync.Mutex
	known  map[string]seen          // guarded by mu; image path to what it was when last read
	locks  map[string]chan struct{} // guarded by mu; image key to the right to unpack it
	names  map[string]string        // guarded by mu; of images kept whole: name to key
	pulls  map[string]*pulling      // guarded by mu; by key
	over   []*progress              // guarded by mu; of pulls that ended, the oldest first
	closed bool                     // guarded by mu
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
	if cfg.PullPause <= 0 {
		cfg.PullPause = firstPause
	}
	if cfg.PullStall <= 0 {
		cfg.PullStall = stallTimeout
	}
	if err := cfg.GC.check(); err != nil {
		return nil, fmt.Errorf("provisioner: %w", err)
	}
	if cfg.Registries.AnswerTimeout <= 0 {
		cfg.Registries.AnswerTimeout = cfg.PullStall
	}
	registries, err := registry.New(cfg.Registries)
	if err != nil {
		return nil, fmt.Errorf("provisioner: %w", err)
	}
	p := &Provisioner{
		cfg: cfg, log: cfg.Logger, registries: registries, fetches: semaphore.NewWeighted(fetchesAtOnce),
		turns: keyed{held: map[string]*turn{}},
		known: map[string]seen{}, locks: map[string]chan struct{}{}, names: map[string]string{}, pulls: map[string]*pulling{},
	}
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
	if err := p.readNames(); err != nil {
		return nil, fmt.Errorf("provisioner: %w", err)
	}
	return p, nil
}

// Close ends pulls and lets go of the files. Containers keep their root filesystems.
func (p *Provisioner) Close() error {
	p.mu.Lock()
	p.closed = true
	for _, x := range p.pulls {
		x.cancel()
	}
	p.mu.Unlock()
	p.work.Wait()
	p.registries.Close()
	p.opening.Lock()
	defer p.opening.Unlock()
	if s := p.store.Swap(nil); s != nil {
		return s.Close()
	}
	return nil
}

// opened is the store of pulled images, which is opened when first needed: an agent that pulls nothing has none.
func (p *Provisioner) opened(ctx context.Context) (*store, error) {
	if s := p.store.Load(); s != nil {
		return s, nil
	}
	p.opening.Lock()
	defer p.opening.Unlock()
	if s := p.store.Load(); s != nil {
		return s, nil
	}
	p.mu.Lock()
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return nil, errClosed
	}
	s, err := openStore(ctx, p.dir("store"), p.overlay)
	if err != nil {
		return nil, fmt.Errorf("open the store of images: %w", err)
	}
	p.store.Store(s)
	return s, nil
}

// openedIfAny is the store, or nil if nothing was ever pulled.
func (p *Provisioner) openedIfAny(ctx context.Context) (*store, error) {
	if p.store.Load() == nil && !isDir(p.dir("store")) {
		return nil, nil
	}
	return p.opened(ctx)
}

// errClosed is returned when an agent that is ending is asked for an image.
var errClosed = errors.New("the agent is ending")

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
	return p.furnish(ctx, dir, 0, func(ctx context.Context) (*base, error) { return p.lower(ctx, image) })
}

// ProvisionImage is Provision from an image as frameworks name it, which is pulled if it is not there or is not to be
// taken from what is.
func (p *Provisioner) ProvisionImage(ctx context.Context, id string, image *mesosv1.Image) (string, *containerv1.ImageConfig, error) {
	dir, err := p.container(id)
	if err != nil {
		return "", nil, err
	}
	return p.furnish(ctx, dir, 0, p.finder(image))
}

// ProvisionVolume makes the files of an image available to a container beside its root filesystem, and returns where
// they are. Several volumes of one container are told apart by name. What the container writes there is its own; of a
// volume that is read-only the caller mounts it so, and where overlayfs works nobody else can write there either.
// Remove takes it away with the rest of the container.
func (p *Provisioner) ProvisionVolume(ctx context.Context, id, name string, image *mesosv1.Image, readOnly bool) (string, error) {
	dir, err := p.container(id)
	if err != nil {
		return "", err
	}
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return "", fmt.Errorf("volume %q: want a file name", name)
	}
	var flags uintptr
	if readOnly {
		flags = readOnlyMount
	}
	rootfs, _, err := p.furnish(ctx, filepath.Join(dir, "volumes", name), flags, p.finder(image))
	return rootfs, err
}

// finder is how an image is found, for furnish. Only the first time is a fresh pull: the second one is because what it
// brought was removed at once.
func (p *Provisioner) finder(image *mesosv1.Image) func(ctx context.Context) (*base, error) {
	fresh := !image.GetCached() && image != nil
	return func(ctx context.Context) (*base, error) {
		b, err := p.find(ctx, image, fresh)
		fresh = false
		return b, err
	}
}

// base is what a root filesystem is made over.
type base struct {
	name   string // "" for a plain folder, which nobody counts
	config *containerv1.ImageConfig
	chain  digest.Digest // topmost of layers kept apart; else
	flat   string        // key of an image kept whole; else
	folder string        // a plain folder
}

// link is what containers remember their image by.
func (b *base) link() string {
	name := b.name
	if len(name) > maxLinkedName {
		name = name[:maxLinkedName]
	}
	switch {
	case b.chain != "":
		return "layers " + b.chain.String() + " " + name
	case b.flat != "":
		return "whole " + b.flat + " " + name
	}
	return "folder - " + name
}

// maxLinkedName keeps a link within a page.
const maxLinkedName = 3000

// pruneTries bounds how often an image is looked for again that was removed between being found and being held.
const pruneTries = 3

// errPruned says that an image is not there any more.
var errPruned = errors.New("image was removed meanwhile")

// furnish makes dir/rootfs over what find finds. On error nothing of it is left.
func (p *Provisioner) furnish(ctx context.Context, dir string, flags uintptr, find func(ctx context.Context) (*base, error)) (string, *containerv1.ImageConfig, error) {
	var (
		b     *base
		lower []string
		err   error
	)
	for range pruneTries {
		if b, err = find(ctx); err != nil {
			return "", nil, err
		}
		if lower, err = p.claim(ctx, dir, b); !errors.Is(err, errPruned) {
			break
		}
	}
	if err != nil {
		return "", nil, fmt.Errorf("make root filesystem: %w", err)
	}
	rootfs := filepath.Join(dir, "rootfs")
	if p.overlay {
		err = mountOverlay(dir, lower, flags)
	} else {
		err = copyTree(ctx, rootfs, lower[0])
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("make root filesystem: %w", err), discard(dir))
	}
	return rootfs, b.config, nil
}

// claim makes the folder dir, which keeps its image from being removed, and returns the image's folders.
func (p *Provisioner) claim(ctx context.Context, dir string, b *base) ([]string, error) {
	p.gc.RLock()
	defer p.gc.RUnlock()
	var lower []string
	switch {
	case b.chain != "":
		s, err := p.opened(ctx)
		if err != nil {
			return nil, err
		}
		lower, err = s.view(ctx, b.chain)
		if errdefs.IsNotFound(err) {
			s.forget(b.name)
			return nil, errPruned
		}
		if err != nil {
			return nil, err
		}
	case b.flat != "":
		lower = []string{p.dir("images", b.flat, "rootfs")}
		if !isDir(lower[0]) {
			return nil, errPruned
		}
	default:
		lower = []string{b.folder}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return lower, os.Symlink(b.link(), filepath.Join(dir, "image"))
}

// discard takes a root filesystem away, with the volumes beside it. What says what they run from goes last: whoever looks
// for images in use meanwhile must not find files of nobody knows what.
func discard(dir string) error {
	volumes, err := os.ReadDir(filepath.Join(dir, "volumes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	roots := []string{filepath.Join(dir, "rootfs")}
	for _, v := range volumes {
		roots = append(roots, filepath.Join(dir, "volumes", v.Name(), "rootfs"))
	}
	for _, root := range roots {
		if err := unmount(root); err != nil {
			return err
		}
	}
	for _, root := range roots {
		if err := os.RemoveAll(root); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// Remove takes a container's root filesystem and its volumes away. It succeeds if there are none.
func (p *Provisioner) Remove(_ context.Context, id string) error {
	dir, err := p.container(id)
	if err != nil {
		return err
	}
	if err := discard(dir); err != nil {
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

// lower returns what an image on this machine is made of, unpacking it if that has not been done yet.
func (p *Provisioner) lower(ctx context.Context, image string) (*base, error) {
	if !filepath.IsAbs(image) {
		return nil, errors.New("want an absolute path")
	}
	image, which := locate(image)
	image, err := filepath.EvalSymlinks(image) // a name such as "current" may be moved while we read
	if err != nil {
		return nil, err
	}
	name := image + which
	info, err := os.Stat(image)
	if err != nil {
		return nil, err
	}
	stamp := image
	if info.IsDir() {
		index := filepath.Join(image, "index.json")
		info, err = os.Stat(index)
		if _, layout := os.Stat(filepath.Join(image, "oci-layout")); layout != nil || errors.Is(err, fs.ErrNotExist) {
			if which != "" {
				return nil, fmt.Errorf("folder %s is no OCI layout, and has no image %s", image, which[1:])
			}
			return p.plainFolder(image)
		}
		if err != nil {
			return nil, err
		}
		stamp = index
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("neither a folder nor an archive")
	}
	stamp += stampOf(info)
	p.mu.Lock()
	before, ok := p.known[name]
	p.mu.Unlock()
	if ok && before.stamp == stamp {
		if isDir(p.dir("images", before.key, "rootfs")) {
			return &base{name: name, config: before.config, flat: before.key}, nil
		}
	}
	src, err := open(image, p.dir("tmp"))
	if err != nil {
		return nil, err
	}
	defer src.Close()
	img, err := src.image(which)
	if err != nil {
		return nil, err
	}
	if err := p.unpackOnce(ctx, name, img); err != nil {
		return nil, err
	}
	p.mu.Lock()
	if len(p.known) >= maxKnown {
		clear(p.known) // a memory of what can be read again
	}
	p.known[name] = seen{stamp: stamp, key: img.key, config: img.config}
	p.mu.Unlock()
	return &base{name: name, config: img.config, flat: img.key}, nil
}

// locate tells the path of a layout or an archive from what may follow it to say which of its images is meant: PATH:NAME or
// PATH@DIGEST. What is there under the whole name is that.
func locate(image string) (path, which string) {
	if _, err := os.Lstat(image); err == nil {
		return image, ""
	}
	for n, c := range image {
		if c != ':' && c != '@' {
			continue
		}
		if _, err := os.Lstat(image[:n]); err == nil {
			return image[:n], image[n:]
		}
	}
	return image, ""
}

// maxKnown bounds the memory of images read before; an entry saves reading two small files.
const maxKnown = 1000

// skopeoMark is what skopeo writes into the folders of its transport dir. Taken for root filesystems they would hold nothing
// that runs.
const skopeoMark = "Directory Transport Version:"

// plainFolder takes a folder as the image's files. Our own folder may not lie in it: overlayfs would see itself.
func (p *Provisioner) plainFolder(image string) (*base, error) {
	own, err := filepath.EvalSymlinks(p.cfg.Dir)
	if err != nil {
		return nil, err
	}
	if rel, err := filepath.Rel(image, own); err == nil && filepath.IsLocal(rel) {
		return nil, fmt.Errorf("folder contains %s, where root filesystems are made", p.cfg.Dir)
	}
	entries, err := os.ReadDir(image)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, errors.New("folder is empty")
	}
	if b, err := os.ReadFile(filepath.Join(image, "version")); err == nil && bytes.HasPrefix(b, []byte(skopeoMark)) {
		return nil, errors.New("folder is skopeo's own form of an image: want an OCI layout, as of skopeo copy dir:FOLDER oci:LAYOUT:NAME")
	}
	return &base{folder: image, name: image}, nil
}

// unpackOnce unpacks an image as a whole. Of several that ask for the same image at once the first does; if that one
// fails or gives up, the next one tries. The image is known by name afterwards.
func (p *Provisioner) unpackOnce(ctx context.Context, name string, img *image) error {
	return p.unpackWhole(ctx, name, img.key, func(ctx context.Context, rootfs string) (*record, error) {
		if err := img.unpack(ctx, rootfs, p.cfg.MaxSize); err != nil {
			return nil, err
		}
		return &record{Config: img.config, Layers: len(img.layers)}, nil
	})
}

func (p *Provisioner) unpackWhole(ctx context.Context, name, key string, unpack func(ctx context.Context, rootfs string) (*record, error)) error {
	p.mu.Lock()
	lock := p.locks[key]
	if lock == nil {
		lock = make(chan struct{}, 1)
		p.locks[key] = lock
	}
	p.mu.Unlock()
	select {
	case lock <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-lock }()
	final := p.dir("images", key)
	if isDir(filepath.Join(final, "rootfs")) {
		return p.addName(name, key)
	}
	tmp, err := os.MkdirTemp(p.dir("tmp"), "unpack-")
	if err != nil {
		return err
	}
	err = func() error {
		rootfs := filepath.Join(tmp, "rootfs")
		if err := os.Mkdir(rootfs, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(rootfs, 0o755); err != nil { // whatever the umask
			return err
		}
		r, err := unpack(ctx, rootfs)
		if err != nil {
			return err
		}
		if err := r.write(ctx, tmp, name); err != nil {
			return err
		}
		// On disk before it has its name: a half written image must not be found after a power cut.
		if err := syncTree(tmp); err != nil {
			return err
		}
		return os.Rename(tmp, final)
	}()
	if err != nil {
		return errors.Join(fmt.Errorf("unpack: %w", err), os.RemoveAll(tmp))
	}
	p.mu.Lock()
	p.names[name] = key
	p.mu.Unlock()
	p.log.Info("image unpacked", "image", name, "key", key)
	return nil
}

func isDir(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}
