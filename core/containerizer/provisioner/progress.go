package provisioner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner/registry"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// progress is how far one pull is.
type progress struct {
	mu     sync.Mutex
	pull   operator.Pull // guarded by mu
	layers map[digest.Digest]int
	ended  time.Time // guarded by mu
}

func newProgress(name string) *progress {
	return &progress{
		pull:   operator.Pull{Name: name, State: operator.PullResolving, Started: time.Now()},
		layers: map[digest.Digest]int{},
	}
}

func (p *progress) snapshot() operator.Pull {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.pull
	s.Layers = slices.Clone(s.Layers)
	return s
}

func (p *progress) state(state string, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pull.State, p.pull.Error = state, ""
	if why != nil {
		p.pull.Error = why.Error()
	}
	if p.pull.Ended() {
		p.ended = time.Now()
	}
}

func (p *progress) resolved(d digest.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pull.State, p.pull.Error, p.pull.Digest = operator.PullDownloading, "", d.String()
}

// expect adds the layers of a manifest.
func (p *progress) expect(layers []v1.Descriptor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range layers {
		if _, ok := p.layers[l.Digest]; ok {
			continue
		}
		p.layers[l.Digest] = len(p.pull.Layers)
		p.pull.Layers = append(p.pull.Layers, operator.Layer{Digest: l.Digest.String(), State: operator.PullWaiting, Total: l.Size})
	}
}

// come is how many bytes of layers have come.
func (p *progress) come() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var n int64
	for _, l := range p.pull.Layers {
		n += l.Done
	}
	return n
}

// layer changes what is said of a layer, if it is one.
func (p *progress) layer(d digest.Digest, change func(*operator.Layer)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n, ok := p.layers[d]; ok {
		change(&p.pull.Layers[n])
	}
}

// unpacking is told by the applier: the layers are unpacked in their order, so those before are done.
func (p *progress) unpacking(d digest.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ok := p.layers[d]
	if !ok {
		return
	}
	for i := range n {
		p.pull.Layers[i].State, p.pull.Layers[i].Done = operator.PullDone, p.pull.Layers[i].Total
	}
	l := &p.pull.Layers[n]
	l.State, l.Done = operator.PullUnpacking, l.Total
	if !slices.ContainsFunc(p.pull.Layers, func(l operator.Layer) bool { return l.Done < l.Total }) {
		p.pull.State = operator.PullUnpacking
	}
}

func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.pull.Layers {
		l := &p.pull.Layers[i]
		l.State, l.Done = operator.PullDone, l.Total
	}
	p.pull.State, p.pull.Error, p.ended = operator.PullDone, "", time.Now()
}

// fetcher counts what comes, and ends a fetch that brings nothing.
type fetcher struct {
	remotes.Fetcher
	progress *progress
	stall    time.Duration
}

// Fetch opens what d names. Addresses that a manifest gives for its layers are not followed: who writes a manifest
// would choose what this machine asks for in its own network.
func (f *fetcher) Fetch(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	d.URLs = nil
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(f.stall, func() {
		cancel(fmt.Errorf("%w: nothing came for %s", registry.ErrStalled, f.stall))
	})
	rc, err := f.Fetcher.Fetch(ctx, d)
	if err != nil {
		timer.Stop()
		err = f.why(ctx, err)
		cancel(nil)
		return nil, err
	}
	timer.Stop()
	f.progress.layer(d.Digest, func(l *operator.Layer) { l.State = operator.PullDownloading })
	return &counted{ctx: ctx, cancel: cancel, rc: rc, f: f, d: d.Digest, timer: timer}, nil
}

func (f *fetcher) why(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// counted is the body of a fetch. It can be positioned if the fetcher's can, which is how a fetch is resumed.
type counted struct {
	ctx    context.Context //nolint:containedctx // of this fetch: ends it from inside
	cancel context.CancelCauseFunc
	rc     io.ReadCloser
	f      *fetcher
	d      digest.Digest
	timer  *time.Timer
	at     int64
}

func (c *counted) Read(b []byte) (int, error) {
	c.timer.Reset(c.f.stall)
	n, err := c.rc.Read(b)
	c.timer.Stop() // what takes its time with what came, a disk, is not the registry
	if n > 0 {
		c.at += int64(n)
		c.f.progress.layer(c.d, func(l *operator.Layer) { l.Done = min(c.at, l.Total) })
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = c.f.why(c.ctx, err)
	}
	return n, err
}

func (c *counted) Seek(offset int64, whence int) (int64, error) {
	s, ok := c.rc.(io.Seeker)
	if !ok {
		return 0, fmt.Errorf("resume at %d: the registry's answer cannot be positioned", offset)
	}
	at, err := s.Seek(offset, whence)
	c.at = at
	return at, err
}

func (c *counted) Close() error {
	c.timer.Stop()
	err := c.rc.Close()
	c.cancel(nil)
	return err
}

// How long, and how many, ended pulls are shown.
const (
	showEnded    = 5 * time.Minute
	maxPullsOver = 100
)

// Pulls are those under way and those that ended a short while ago, the oldest first.
func (p *Provisioner) Pulls() []operator.Pull {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []operator.Pull
	for _, x := range p.pulls {
		list = append(list, x.progress.snapshot())
	}
	p.forget()
	for _, x := range p.over {
		list = append(list, x.snapshot())
	}
	slices.SortFunc(list, func(a, b operator.Pull) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// forget drops pulls that ended long ago. p.mu is held.
func (p *Provisioner) forget() {
	p.over = slices.DeleteFunc(p.over, func(x *progress) bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return time.Since(x.ended) > showEnded
	})
	if n := len(p.over) - maxPullsOver; n > 0 {
		p.over = slices.Delete(p.over, 0, n)
	}
}
