package provisioner

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner/registry"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

const (
	// pullTries bounds how often a pull is tried that fails for what may pass and gets no further. With the pauses in
	// between that is some 15 seconds of a registry that is being restarted.
	pullTries = 6
	// stallTries bounds how often a pull is tried that stalls and gets no further. One more may find another way; with more
	// the task's owner would wait long for what a person has to look into.
	stallTries = 2
	// further is how many more bytes a try has to bring to have got further. A line that is cut every few megabytes brings a
	// large image in the end; a registry that gives a byte at a time does not keep a pull going for ever.
	further = 1 << 20
	// Pauses between tries double from the first to the last, give or take a third.
	firstPause = 500 * time.Millisecond
	lastPause  = 8 * time.Second
	// stallTimeout ends a fetch that brings nothing. Slow is fine.
	stallTimeout = time.Minute
	// fetchesAtOnce bounds the layers that all pulls together fetch at once: more share the same line.
	fetchesAtOnce = 6
	// maxLayers bounds what an image may be stacked of: overlayfs takes 500.
	maxLayers = 500
)

// pulling is one pull that some wait for.
type pulling struct {
	progress *progress
	cancel   context.CancelFunc
	waiters  int           // guarded by the provisioner's mu
	done     chan struct{} // closed when got and err are set
	got      *pulled
	err      error
}

// ask is what a pull is for.
type ask struct {
	name string // whole
	key  string // pulls with the same key are one
	do   func(ctx context.Context, progress *progress) (*pulled, error)
	see  func(*progress) // optional
}

// keyOf tells pulls from one another: one who may must not wait in vain for one who may not.
func keyOf(name string, config []byte, fresh bool) string {
	sum := sha256.Sum256(config)
	return fmt.Sprintf("%s %s %t", name, hex.EncodeToString(sum[:]), fresh)
}

// pull brings an image, or waits for who is bringing it. It is given up when nobody waits any more.
func (p *Provisioner) pull(ctx context.Context, a ask) (*pulled, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, errClosed
	}
	x := p.pulls[a.key]
	if x == nil {
		work, cancel := context.WithCancel(context.WithoutCancel(ctx))
		x = &pulling{progress: newProgress(a.name), cancel: cancel, done: make(chan struct{})}
		p.pulls[a.key] = x
		p.work.Go(func() { p.carryOut(work, a, x) })
	}
	x.waiters++
	p.mu.Unlock()
	if a.see != nil {
		a.see(x.progress)
	}
	select {
	case <-x.done:
		return x.got, x.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	x.waiters--
	last := x.waiters == 0
	if last && p.pulls[a.key] == x {
		delete(p.pulls, a.key) // whoever comes now wants a pull that goes on
	}
	p.mu.Unlock()
	if last {
		x.cancel()
		<-x.done // nothing is left when we say that it failed
	}
	return nil, context.Cause(ctx)
}

func (p *Provisioner) carryOut(ctx context.Context, a ask, x *pulling) {
	defer x.cancel()
	x.got, x.err = a.do(ctx, x.progress)
	if x.err == nil {
		x.progress.done()
		p.log.Info("image pulled", "image", a.name, "digest", x.got.target, "layers", x.got.layers)
	} else {
		x.progress.state(operator.PullFailed, x.err)
	}
	p.mu.Lock()
	if p.pulls[a.key] == x {
		delete(p.pulls, a.key)
	}
	p.forget()
	p.over = append(p.over, x.progress)
	p.mu.Unlock()
	close(x.done)
	// Compressed layers are not needed once they are unpacked. What is not removed now is with the next pull.
	if s := p.store.Load(); s != nil && x.err == nil {
		if err := s.collect(context.WithoutCancel(ctx)); err != nil {
			p.log.Warn("layers that were unpacked are still on disk", "error", err)
		}
	}
}

// fromRegistry pulls an image from its registry. On error nothing of it is left.
func (p *Provisioner) fromRegistry(ctx context.Context, s *store, ref registry.Reference, creds *registry.Credentials, progress *progress) (got *pulled, err error) {
	held, release, err := s.lease(ctx, uuid.NewString())
	if err != nil {
		return nil, fmt.Errorf("pull: %w", err)
	}
	defer func() {
		cleanup := release()
		if err != nil || cleanup != nil {
			cleanup = errors.Join(cleanup, s.collect(context.WithoutCancel(ctx)))
		}
		err = errors.Join(err, cleanup)
	}()
	err = p.repeat(held, ref.String(), progress, func() error {
		got, err = p.once(held, s, ref.String(), creds, progress)
		return corrupt(err)
	})
	return got, err
}

// repeat tries until it succeeds or there is no point in going on.
func (p *Provisioner) repeat(ctx context.Context, name string, progress *progress, once func() error) error {
	pause := p.cfg.PullPause
	stalls, most := 0, int64(0)
	for try := 1; ; try++ {
		err := once()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		reason, again := registry.Explain(err)
		if !again {
			return reason
		}
		if come := progress.come(); come >= most+further {
			try, stalls, most, pause = 1, 0, come, p.cfg.PullPause
		}
		if errors.Is(reason, registry.ErrStalled) {
			stalls++
		}
		if try == pullTries || stalls == stallTries {
			return fmt.Errorf("given up after %d tries: %w", try, reason)
		}
		progress.state(operator.PullRetrying, reason)
		p.log.Info("pull is tried again", "image", name, "try", try, "error", reason)
		timer := time.NewTimer(pause*2/3 + rand.N(pause*2/3+1))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		pause = min(2*pause, lastPause)
	}
}

// once is one try. What it fetched so far stays for the next one, while the lease holds it.
func (p *Provisioner) once(ctx context.Context, s *store, name string, creds *registry.Credentials, progress *progress) (*pulled, error) {
	resolver, err := p.registries.Resolver(ctx, creds)
	if err != nil {
		return nil, err
	}
	_, top, err := resolver.Resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	progress.resolved(top.Digest)
	if err := usable(top); err != nil {
		return nil, err
	}
	plain, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return nil, err
	}
	fetch := remotes.FetchHandler(s.content, &fetcher{Fetcher: plain, progress: progress, stall: p.cfg.PullStall})
	wholeSize := p.cfg.MaxSize
	var chosen chosen
	children := images.HandlerFunc(func(ctx context.Context, d v1.Descriptor) ([]v1.Descriptor, error) {
		list, err := images.Children(ctx, s.content, d)
		if err != nil {
			return nil, err
		}
		if images.IsIndexType(d.MediaType) {
			return fitting(list)
		}
		if images.IsManifestType(d.MediaType) {
			return list, chosen.take(d, list, wholeSize, progress)
		}
		return nil, nil
	})
	// Layers are not among what the manifest holds on to: once unpacked they are needed no more.
	labelled := images.SetChildrenMappedLabels(s.content, children, images.ChildGCLabelsFilterLayers)
	guarded := images.HandlerFunc(func(ctx context.Context, d v1.Descriptor) ([]v1.Descriptor, error) {
		if !images.IsLayerType(d.MediaType) && d.Size > maxDocument {
			return nil, fmt.Errorf("%s of type %s has %d bytes, want at most %d", d.Digest, d.MediaType, d.Size, maxDocument)
		}
		return fetch(ctx, d)
	})
	all := images.Handlers(guarded, labelled)
	if s.layers == nil {
		if err := images.Dispatch(ctx, all, p.fetches, top); err != nil {
			if registry.Unsatisfiable(err) {
				err = errors.Join(err, p.startOver(ctx, s, chosen))
			}
			return nil, err
		}
		if err := p.unpackFlat(ctx, s, name, chosen, progress); err != nil {
			return nil, err
		}
		return s.keep(ctx, name, top)
	}
	work, err := unpack.NewUnpacker(ctx, s.content,
		unpack.WithUnpackPlatform(unpack.Platform{
			Platform: platform{}, SnapshotterKey: snapshotter, Snapshotter: s.layers,
			Applier: &applier{content: s.content, left: wholeSize, tell: progress.unpacking},
		}),
		unpack.WithLimiter(p.fetches), unpack.WithDuplicationSuppressor(&p.turns))
	if err != nil {
		return nil, err
	}
	err = images.Dispatch(ctx, work.Unpack(all), nil, top)
	result, unpackErr := work.Wait() // also after an error: it may still be writing
	if registry.Unsatisfiable(unpackErr) {
		if err := p.startOver(ctx, s, chosen); err != nil {
			return nil, err
		}
	}
	switch {
	case unpackErr != nil && (err == nil || errors.Is(err, context.Canceled)):
		return nil, fmt.Errorf("unpack: %w", unpackErr)
	case err != nil:
		return nil, err
	case result.Unpacks == 0:
		return nil, chosen.foreign(ctx, s.content)
	}
	return s.keep(ctx, name, top)
}

// usable refuses what a name leads to if it is no image that anybody can use today.
func usable(top v1.Descriptor) error {
	switch {
	case images.IsManifestType(top.MediaType), images.IsIndexType(top.MediaType):
		return nil
	case top.MediaType == images.MediaTypeDockerSchema1Manifest, top.MediaType == schema1:
		return errors.New("image is in Docker's schema 1, which is given up: want it pushed anew, by today's tools")
	}
	return fmt.Errorf("the registry has something of type %q under that name, want an image", clipName(top.MediaType))
}

// schema1 is Docker's first schema without signature.
const schema1 = "application/vnd.docker.distribution.manifest.v1+json"

// startOver drops what was fetched of layers that the registry does not go on with.
func (p *Provisioner) startOver(ctx context.Context, s *store, c chosen) error {
	for _, l := range c.layers {
		key := "blob://" + l.Digest.String() // as the unpacker calls it
		if err := p.turns.Lock(ctx, key); err != nil {
			return err
		}
		err := s.content.Abort(ctx, remotes.MakeRefKey(ctx, l))
		p.turns.Unlock(key)
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// fitting chooses the image for this machine from a list of images.
func fitting(list []v1.Descriptor) ([]v1.Descriptor, error) {
	var best *v1.Descriptor
	var other []string
	for n := range list {
		d := &list[n]
		switch {
		case !images.IsManifestType(d.MediaType) && !images.IsIndexType(d.MediaType):
		case d.Platform != nil && d.Platform.OS != "" && !(platform{}).Match(*d.Platform):
			if d.Platform.OS != "unknown" { // attestations
				other = append(other, d.Platform.OS+"/"+d.Platform.Architecture)
			}
		case best == nil, d.Platform != nil && best.Platform != nil && (platform{}).Less(*d.Platform, *best.Platform):
			best = d
		}
	}
	if best == nil {
		return nil, fmt.Errorf("image has nothing for linux/%s: got %s", runtime.GOARCH, strings.Join(other, ", "))
	}
	return []v1.Descriptor{*best}, nil
}

// chosen is the manifest that a pull came to.
type chosen struct {
	config v1.Descriptor
	layers []v1.Descriptor
}

// take notes what a manifest is made of, and refuses what nobody could use.
func (c *chosen) take(d v1.Descriptor, children []v1.Descriptor, most int64, progress *progress) error {
	c.config, c.layers = v1.Descriptor{}, nil
	var size int64
	for _, ch := range children {
		switch {
		case ch.Size < 0:
			return fmt.Errorf("manifest %s: %s has a size of %d bytes", d.Digest, ch.Digest, ch.Size)
		case images.IsConfigType(ch.MediaType):
			c.config = ch
		case images.IsLayerType(ch.MediaType):
			c.layers = append(c.layers, ch)
			if size += ch.Size; size > most || ch.Size > most {
				return errors.New("image is larger than allowed")
			}
		}
	}
	if c.config.Digest == "" {
		return fmt.Errorf("manifest %s is of something else than an image to run", d.Digest)
	}
	if n := len(c.layers); n == 0 || n > maxLayers {
		return fmt.Errorf("image has %d layers, want 1 to %d", n, maxLayers)
	}
	progress.expect(c.layers)
	return nil
}

// foreign says what an image is for that is not for this machine and did not say so in its manifest.
func (c *chosen) foreign(ctx context.Context, from content.Provider) error {
	p, err := images.ConfigPlatform(ctx, from, c.config)
	if err != nil {
		return err
	}
	return fmt.Errorf("image has nothing for linux/%s: got %s/%s", runtime.GOARCH, p.OS, p.Architecture)
}

// unpackFlat unpacks an image as a whole, for machines without overlayfs.
func (p *Provisioner) unpackFlat(ctx context.Context, s *store, name string, c chosen, progress *progress) error {
	b, err := content.ReadBlob(ctx, s.content, c.config)
	if err != nil {
		return err
	}
	own, err := images.ConfigPlatform(ctx, s.content, c.config)
	if err != nil {
		return err
	}
	if !(platform{}).Match(own) {
		return c.foreign(ctx, s.content)
	}
	config, diffs, err := readConfig(b)
	if err != nil {
		return err
	}
	if len(diffs) != len(c.layers) {
		return fmt.Errorf("image configuration names %d layers and the manifest %d, want the same", len(diffs), len(c.layers))
	}
	img := &image{key: c.config.Digest.Encoded(), config: config}
	for n, l := range c.layers {
		img.layers = append(img.layers, layer{diffID: diffs[n].String(), open: s.blob(ctx, l, progress.unpacking)})
	}
	return p.unpackOnce(ctx, name, img)
}

// Lock takes the right to work on what key names; of two pulls one fetches or unpacks what they share.
func (k *keyed) Lock(ctx context.Context, key string) error {
	k.mu.Lock()
	e := k.held[key]
	if e == nil {
		e = &turn{right: make(chan struct{}, 1)}
		k.held[key] = e
	}
	e.users++
	k.mu.Unlock()
	select {
	case e.right <- struct{}{}:
		return nil
	case <-ctx.Done():
		k.leave(key, e)
		return context.Cause(ctx)
	}
}

// Unlock gives it to the next.
func (k *keyed) Unlock(key string) {
	k.mu.Lock()
	e := k.held[key]
	k.mu.Unlock()
	<-e.right
	k.leave(key, e)
}

func (k *keyed) leave(key string, e *turn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e.users--; e.users == 0 {
		delete(k.held, key)
	}
}

// keyed are locks by name.
type keyed struct {
	mu   sync.Mutex
	held map[string]*turn // guarded by mu
}

type turn struct {
	right chan struct{}
	users int // guarded by keyed.mu
}

// Pull brings the image of that name to this machine, so that containers start from it without waiting. fresh asks the
// registry what the name means even if there is an image of that name.
//
// Errors: those of package registry, and whatever else there is no telling.
func (p *Provisioner) Pull(ctx context.Context, name string, fresh bool) error {
	_, err := p.named(ctx, name, nil, fresh, nil)
	return err
}

// tellEvery is how often progress is told: as often as an eye follows.
const tellEvery = 100 * time.Millisecond

// PullAndTell is Pull that tells how far it is while it goes on, and at last that it is done or has failed.
func (p *Provisioner) PullAndTell(ctx context.Context, name string, fresh bool, tell func(operator.Pull)) error {
	seen := make(chan *progress, 1)
	ended := make(chan error, 1)
	go func() {
		_, err := p.named(ctx, name, nil, fresh, func(x *progress) { seen <- x })
		ended <- err
	}()
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	last := operator.Pull{Name: p.canonical(name), State: operator.PullResolving, Started: time.Now()}
	tell(last)
	var x *progress
	for {
		select {
		case x = <-seen:
		case <-tick.C:
			if x == nil {
				continue
			}
			if now := x.snapshot(); !now.Ended() && !now.Same(last) {
				last = now
				tell(now)
			}
		case err := <-ended:
			if x == nil && len(seen) > 0 {
				x = <-seen
			}
			if x != nil {
				last = x.snapshot()
			}
			last.State, last.Error = operator.PullDone, ""
			if err != nil {
				last.State, last.Error = operator.PullFailed, err.Error()
			}
			tell(last)
			return err
		}
	}
}
