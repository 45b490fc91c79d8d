package provisioner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// A store keeps what was pulled: documents and layers by digest, unpacked layers by what lies below them, and which
// name means which image. It is containerd's, in this process; nobody else may have it open.
//
// What a lease or the name of an image leads to stays; collect removes the rest. A lease whose name begins with
// leasePull is for a pull under way and is void after a restart; one that begins with leaseView keeps an image's layers
// mountable.
type store struct {
	dir     string
	bolt    *bolt.DB
	db      *metadata.DB
	leases  leases.Manager
	images  images.Store
	content content.Store
	layers  snapshots.Snapshotter // nil: layers are not kept apart, since overlayfs does not work here
	logger  *logrus.Entry

	mu    sync.Mutex                 // held over writes of views: a few milliseconds, once for each image
	views map[digest.Digest][]string // guarded by mu; chain to folders, topmost first
	kept  map[string]*pulled         // guarded by mu; by name
}

const (
	namespace   = "mosaic"
	snapshotter = "overlayfs"
	leasePull   = "pull-"
	leaseView   = "view-"
	// openMark is a file that is there while a process has the store open, and afterwards if the process was killed.
	openMark = "open"
	// lockTimeout bounds the wait for an agent that is just ending to let go of the store.
	lockTimeout = 10 * time.Second
)

// pulled is an image that is in the store and unpacked.
type pulled struct {
	name   string
	target digest.Digest // of the manifest or list that the name led to
	config *containerv1.ImageConfig
	layers int
	chain  digest.Digest // of the topmost unpacked layer, where layers are kept apart
	flat   string        // else key of the unpacked image
	at     time.Time
}

func openStore(ctx context.Context, dir string, layered bool) (_ *store, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &store{dir: dir, views: map[digest.Digest][]string{}, kept: map[string]*pulled{}, logger: silent()}
	if s.bolt, err = bolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bolt.Options{Timeout: lockTimeout}); err != nil {
		if errors.Is(err, bolterrors.ErrTimeout) {
			err = errors.New("another process has it open")
		}
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.bolt.Close())
		}
	}()
	// Halves of fetches are worth nothing to a new process: their leases are void. It may be that not even their names
	// were written.
	if _, err := os.Lstat(filepath.Join(dir, openMark)); err == nil {
		if err := os.RemoveAll(filepath.Join(dir, "content", "ingest")); err != nil {
			return nil, err
		}
	}
	// The collector looks through blobs before it looks for halves of fetches, and gives up where there is no such folder.
	if err := os.MkdirAll(filepath.Join(dir, "content", "blobs", "sha256"), 0o755); err != nil {
		return nil, err
	}
	blobs, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		return nil, err
	}
	kinds := map[string]snapshots.Snapshotter{}
	if layered {
		overlays, err := overlay.NewSnapshotter(filepath.Join(dir, "layers"), overlay.AsynchronousRemove)
		if err != nil {
			return nil, err
		}
		kinds[snapshotter] = overlays
		if err := s.dropUnknownLayers(ctx, overlays); err != nil {
			return nil, errors.Join(err, overlays.Close())
		}
	}
	s.db = metadata.NewDB(s.bolt, blobs, kinds)
	ctx = s.context(ctx)
	if err := s.db.Init(ctx); err != nil {
		return nil, errors.Join(err, s.closeLayers())
	}
	s.leases, s.images, s.content = metadata.NewLeaseManager(s.db), metadata.NewImageStore(s.db), s.db.ContentStore()
	if layered {
		s.layers = s.db.Snapshotter(snapshotter)
	}
	if err := s.recover(ctx); err != nil {
		return nil, errors.Join(err, s.closeLayers())
	}
	return s, nil
}

// dropUnknownLayers removes folders of layers that the database does not know: a folder has its number before the database
// has it, and one left by a crash is in the way of the next layer of that number.
func (s *store) dropUnknownLayers(ctx context.Context, overlays snapshots.Snapshotter) error {
	c, ok := overlays.(snapshots.Cleaner)
	if !ok {
		return nil
	}
	err := c.Cleanup(s.context(ctx))
	if errdefs.IsNotFound(err) { // the database knows of no layer at all
		folders := filepath.Join(s.dir, "layers", "snapshots")
		if err = os.RemoveAll(folders); err == nil {
			err = os.MkdirAll(folders, 0o700)
		}
	}
	if err != nil {
		return fmt.Errorf("remove layers that nobody knows: %w", err)
	}
	return nil
}

// silent takes what containerd logs: it comes back as errors, too. Some of it goes past the context; nobody else in this
// process logs there.
func silent() *logrus.Entry {
	log.L.Logger.SetOutput(io.Discard)
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}

// context is what containerd's calls need to have.
func (s *store) context(ctx context.Context) context.Context {
	return log.WithLogger(namespaces.WithNamespace(ctx, namespace), s.logger)
}

// recover removes what a process that was killed left: leases of its pulls, and files that nothing leads to any more.
func (s *store) recover(ctx context.Context) error {
	all, err := s.leases.List(ctx)
	if err != nil {
		return err
	}
	for _, l := range all {
		if strings.HasPrefix(l.ID, leasePull) {
			if err := s.leases.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
	}
	mark := filepath.Join(s.dir, openMark)
	if _, err := os.Lstat(mark); err == nil {
		if err := s.sweep(ctx); err != nil {
			return fmt.Errorf("clean up after a crash: %w", err)
		}
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return err
	}
	return syncTree(s.dir) // the mark has to be found also after a power cut, which layers that were not written do not outlive
}

// sweep collects also what was left between a database's change and that of the files. The collector looks at files
// only where something was deleted; so something is.
func (s *store) sweep(ctx context.Context) error {
	lease, err := s.leases.Create(ctx, leases.WithID(leasePull+"sweep"))
	if err != nil {
		return err
	}
	held := leases.WithLease(ctx, lease.ID)
	probe := []byte("sweep")
	d := v1.Descriptor{Digest: digest.FromBytes(probe), Size: int64(len(probe))}
	if err := content.WriteBlob(held, s.content, "sweep", strings.NewReader(string(probe)), d); err != nil {
		return err
	}
	if err := s.content.Delete(held, d.Digest); err != nil {
		return err
	}
	if s.layers != nil {
		if _, err := s.layers.Prepare(held, "sweep", ""); err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
		if err := s.layers.Remove(held, "sweep"); err != nil {
			return err
		}
	}
	if err := s.leases.Delete(ctx, lease); err != nil {
		return err
	}
	return s.collect(ctx)
}

// collect removes what nothing leads to.
func (s *store) collect(ctx context.Context) error {
	_, err := s.db.GarbageCollect(s.context(ctx))
	return err
}

func (s *store) closeLayers() error {
	if s.layers == nil {
		return nil
	}
	return s.layers.Close()
}

// Close lets go of the files.
func (s *store) Close() error {
	err := errors.Join(s.closeLayers(), s.bolt.Close())
	if err == nil {
		err = os.Remove(filepath.Join(s.dir, openMark))
	}
	return err
}

// lease is for work under way. What it does not turn into an image is gone after release.
func (s *store) lease(ctx context.Context, id string) (held context.Context, release func() error, err error) {
	lease, err := s.leases.Create(s.context(ctx), leases.WithID(leasePull+id))
	if err != nil {
		return nil, nil, err
	}
	return leases.WithLease(s.context(ctx), lease.ID), func() error {
		err := s.leases.Delete(s.context(context.WithoutCancel(ctx)), lease)
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}, nil
}

// find returns an image that was pulled under a name, if all of it is still there.
func (s *store) find(ctx context.Context, name string) (*pulled, bool, error) {
	s.mu.Lock()
	known := s.kept[name]
	s.mu.Unlock()
	if known != nil {
		return known, true, nil
	}
	ctx = s.context(ctx)
	img, err := s.images.Get(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	p, err := s.read(ctx, img)
	if errdefs.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	s.mu.Lock()
	s.kept[name] = p
	s.mu.Unlock()
	return p, true, nil
}

// read finds out what an image is made of. It is not found if something of it is missing.
func (s *store) read(ctx context.Context, img images.Image) (*pulled, error) {
	manifest, err := images.Manifest(ctx, s.content, img.Target, platform{})
	if err != nil {
		return nil, err
	}
	b, err := content.ReadBlob(ctx, s.content, manifest.Config)
	if err != nil {
		return nil, err
	}
	config, diffs, err := readConfig(b)
	if err != nil {
		return nil, err
	}
	p := &pulled{name: img.Name, target: img.Target.Digest, config: config, layers: len(diffs), at: img.UpdatedAt}
	if s.layers == nil {
		p.flat = manifest.Config.Digest.Encoded()
		return p, nil
	}
	p.chain = identity.ChainID(diffs)
	_, err = s.layers.Stat(ctx, p.chain.String())
	return p, err
}

// readConfig reads an image's configuration and the digests of its plain layers.
func readConfig(b []byte) (*containerv1.ImageConfig, []digest.Digest, error) {
	var c v1.Image
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, nil, fmt.Errorf("image configuration: %w", err)
	}
	return &containerv1.ImageConfig{
		Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Environment: c.Config.Env,
		WorkingDirectory: c.Config.WorkingDir, User: c.Config.User, Labels: c.Config.Labels,
		StopSignal: c.Config.StopSignal,
	}, c.RootFS.DiffIDs, nil
}

// keep makes a name mean an image whose parts are all there. They are on disk before: a name must not outlive what it leads
// to. Layers that no name leads to go after a crash, with what of them was written.
func (s *store) keep(ctx context.Context, name string, target v1.Descriptor) (*pulled, error) {
	if err := syncTree(s.dir); err != nil {
		return nil, err
	}
	ctx = s.context(ctx)
	img, err := s.images.Create(ctx, images.Image{Name: name, Target: target})
	if errdefs.IsAlreadyExists(err) {
		img, err = s.images.Update(ctx, images.Image{Name: name, Target: target}, "target")
	}
	if err != nil {
		return nil, err
	}
	p, err := s.read(ctx, img)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.kept[name] = p
	s.mu.Unlock()
	return p, nil
}

// drop makes a name mean nothing.
func (s *store) drop(ctx context.Context, name string) error {
	s.mu.Lock()
	delete(s.kept, name)
	s.mu.Unlock()
	err := s.images.Delete(s.context(ctx), name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// view returns the folders of an image's layers, topmost first, and keeps them until unview. It is not found if the
// layers are not there.
func (s *store) view(ctx context.Context, chain digest.Digest) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if dirs := s.views[chain]; dirs != nil {
		return dirs, nil
	}
	ctx = s.context(ctx)
	id := leaseView + chain.String()
	if _, err := s.leases.Create(ctx, leases.WithID(id)); err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, err
	}
	held := leases.WithLease(ctx, id)
	mounts, err := s.layers.View(held, id, chain.String())
	if errdefs.IsAlreadyExists(err) {
		mounts, err = s.layers.Mounts(held, id)
	}
	if err != nil {
		return nil, err
	}
	dirs, err := lowerDirs(mounts)
	if err != nil {
		return nil, err
	}
	s.views[chain] = dirs
	return dirs, nil
}

// viewed are the chains that view was asked for and that were not let go of.
func (s *store) viewed(ctx context.Context) ([]digest.Digest, error) {
	all, err := s.leases.List(s.context(ctx))
	if err != nil {
		return nil, err
	}
	var chains []digest.Digest
	for _, l := range all {
		if chain, ok := strings.CutPrefix(l.ID, leaseView); ok {
			chains = append(chains, digest.Digest(chain))
		}
	}
	return chains, nil
}

func (s *store) unview(ctx context.Context, chain digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.views, chain)
	err := s.leases.Delete(s.context(ctx), leases.Lease{ID: leaseView + chain.String()})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// blob opens a layer.
func (s *store) blob(ctx context.Context, d v1.Descriptor, tell func(digest.Digest)) func() (io.ReadCloser, int64, error) {
	return func() (io.ReadCloser, int64, error) {
		tell(d.Digest)
		r, err := s.content.ReaderAt(ctx, d)
		if err != nil {
			return nil, 0, err
		}
		return struct {
			io.Reader
			io.Closer
		}{content.NewReader(r), r}, r.Size(), nil
	}
}

// forget has an image looked up anew.
func (s *store) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.kept, name)
}

// size is what an unpacked image takes on disk, layers that it shares with others included.
func (s *store) size(ctx context.Context, chain digest.Digest) int64 {
	ctx = s.context(ctx)
	var total int64
	for name := chain.String(); name != ""; {
		usage, err := s.layers.Usage(ctx, name)
		if err != nil {
			return total
		}
		total += usage.Size
		info, err := s.layers.Stat(ctx, name)
		if err != nil {
			return total
		}
		name = info.Parent
	}
	return total
}

// lowerDirs are the folders in the mounts of a view.
func lowerDirs(mounts []mount.Mount) ([]string, error) {
	if len(mounts) == 1 {
		if mounts[0].Type == "bind" {
			return []string{mounts[0].Source}, nil
		}
		for _, o := range mounts[0].Options {
			if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
				return strings.Split(dirs, ":"), nil
			}
		}
	}
	return nil, fmt.Errorf("layers are not folders: got %v", mounts)
}

// platform takes what runs on this machine, and images that do not say what they run on.
type platform struct{}

func (platform) Match(p v1.Platform) bool {
	return p.Architecture == "" || platforms.Default().Match(p)
}

func (platform) Less(a, b v1.Platform) bool {
	return platforms.Default().Less(a, b)
}
