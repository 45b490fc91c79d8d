package provisioner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// GCConfig says when images are removed that nobody uses.
type GCConfig struct {
	// Share of the disk that is to be free, above 0 and below 1. When less is, images are removed. 0: never.
	Headroom float64
	// How often it is looked. Default a minute.
	Interval time.Duration
	// Images that stay, by name.
	Excluded []string
}

func (g *GCConfig) check() error {
	if g.Headroom < 0 || g.Headroom >= 1 {
		return fmt.Errorf("image disk headroom: got %g, want 0 or more and below 1", g.Headroom)
	}
	if g.Interval <= 0 {
		g.Interval = time.Minute
	}
	return nil
}

// Run removes images when the disk fills, until ctx ends. An error to do so is logged: the next round may succeed.
func (p *Provisioner) Run(ctx context.Context) error {
	if p.cfg.GC.Headroom == 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(p.cfg.GC.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		used, err := p.used()
		if err == nil && used > 1-p.cfg.GC.Headroom {
			p.log.Info("disk is filling, images that nobody uses are removed", "used", used, "headroom", p.cfg.GC.Headroom)
			_, err = p.Prune(ctx, nil)
		}
		if err != nil && ctx.Err() == nil {
			p.log.Warn("images that nobody uses are still there", "error", err)
		}
	}
}

// used is the share of the disk that is in use.
func (p *Provisioner) used() (float64, error) {
	if p.cfg.used != nil {
		return p.cfg.used()
	}
	return diskUsed(p.cfg.Dir)
}

// Prune removes every image that no container runs from, but for those excluded by name, or, if excluded is nil, those
// that the operator excluded. It returns the names of what it removed. What is being pulled stays. It may be killed at any point: what it had begun is completed by the next start.
func (p *Provisioner) Prune(ctx context.Context, excluded []string) ([]string, error) {
	s, err := p.openedIfAny(ctx)
	if err != nil {
		return nil, fmt.Errorf("prune images: %w", err)
	}
	if excluded == nil {
		excluded = p.cfg.GC.Excluded
	}
	keep := map[string]bool{}
	for _, name := range excluded {
		keep[p.canonical(name)] = true
	}
	gone, bins, err := p.unhook(ctx, s, keep)
	if s != nil {
		err = errors.Join(err, s.collect(ctx))
	}
	for _, bin := range bins {
		err = errors.Join(err, os.RemoveAll(bin))
	}
	if err != nil {
		return gone, fmt.Errorf("prune images: %w", err)
	}
	if len(gone) > 0 {
		p.log.Info("images removed", "images", gone)
	}
	return gone, nil
}

// canonical is how an image is called that somebody calls by name.
func (p *Provisioner) canonical(name string) string {
	if path, ok := onDisk(name); ok {
		return path
	}
	if strings.Contains(name, "://") {
		return name
	}
	if ref, err := p.registries.Parse(name); err == nil {
		return ref.String()
	}
	return name
}

// unhook makes images that nobody uses unknown, so that no container can take hold of them. Their files go afterwards:
// layers are collected, and what is returned as bins is removed.
func (p *Provisioner) unhook(ctx context.Context, s *store, keep map[string]bool) (gone, bins []string, err error) {
	p.gc.Lock()
	defer p.gc.Unlock()
	uses, err := p.uses()
	if err != nil {
		return nil, nil, err
	}
	held := map[string]bool{} // chains and keys
	for _, u := range uses {
		held[u.what] = true
	}
	p.mu.Lock()
	for _, x := range p.pulls {
		keep[x.progress.snapshot().Name] = true
	}
	p.mu.Unlock()
	if s != nil {
		list, err := s.list(ctx)
		if err != nil {
			return nil, nil, err
		}
		for _, img := range list {
			if what := img.what(); keep[img.name] || held[what] {
				held[what] = true
				continue
			}
			if err := s.drop(ctx, img.name); err != nil {
				return gone, nil, err
			}
			gone = append(gone, img.name)
		}
		chains, err := s.viewed(ctx)
		if err != nil {
			return gone, nil, err
		}
		for _, chain := range chains {
			if !held[chain.String()] {
				if err := s.unview(ctx, chain); err != nil {
					return gone, nil, err
				}
			}
		}
	}
	entries, err := os.ReadDir(p.dir("images"))
	if err != nil {
		return gone, nil, err
	}
	for _, e := range entries {
		r, err := p.record(e.Name())
		if err != nil {
			r = &record{} // nobody can start from it
		}
		if held[e.Name()] || slices.ContainsFunc(r.Names, func(n string) bool { return keep[n] }) {
			continue
		}
		bin, err := os.MkdirTemp(p.dir("tmp"), "prune-")
		if err != nil {
			return gone, bins, err
		}
		bins = append(bins, bin)
		if err := os.Rename(p.dir("images", e.Name()), filepath.Join(bin, "image")); err != nil {
			return gone, bins, err
		}
		for _, name := range r.Names {
			if !slices.Contains(gone, name) {
				gone = append(gone, name)
			}
		}
	}
	p.mu.Lock()
	for name, key := range p.names {
		if !isDir(p.dir("images", key)) {
			delete(p.names, name)
		}
	}
	p.mu.Unlock()
	slices.Sort(gone)
	return gone, bins, nil
}

// use is an image that a container runs from.
type use struct {
	container string
	what      string // chain or key
	name      string
}

// uses reads what containers run from. It fails rather than leave one out: what it does not return may be removed.
func (p *Provisioner) uses() ([]use, error) {
	containers, err := os.ReadDir(p.dir("containers"))
	if err != nil {
		return nil, err
	}
	var all []use
	add := func(container, dir string) error {
		link, err := os.Readlink(filepath.Join(dir, "image"))
		if errors.Is(err, fs.ErrNotExist) {
			if isDir(filepath.Join(dir, "rootfs")) {
				return fmt.Errorf("container %s does not say what it runs from: an older agent started it, and images stay until it ends", container)
			}
			return nil // not a root filesystem yet, or not any more
		}
		if err != nil {
			return err
		}
		parts := strings.SplitN(link, " ", 3)
		if len(parts) != 3 {
			return fmt.Errorf("container %s runs from %q, want a kind, a key and a name", container, link)
		}
		all = append(all, use{container: container, what: parts[1], name: parts[2]})
		return nil
	}
	for _, c := range containers {
		dir := p.dir("containers", c.Name())
		if err := add(c.Name(), dir); err != nil {
			return nil, err
		}
		volumes, err := os.ReadDir(filepath.Join(dir, "volumes"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, v := range volumes {
			if err := add(c.Name(), filepath.Join(dir, "volumes", v.Name())); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// what an image is made of, as containers remember it.
func (p *pulled) what() string {
	if p.chain != "" {
		return p.chain.String()
	}
	return p.flat
}

// list are the images that have a name. One of which something is missing is among them, to be removed.
func (s *store) list(ctx context.Context) ([]*pulled, error) {
	ctx = s.context(ctx)
	all, err := s.images.List(ctx)
	if err != nil {
		return nil, err
	}
	var list []*pulled
	for _, img := range all {
		got, err := s.read(ctx, img)
		if err != nil || got == nil {
			got = &pulled{name: img.Name, target: img.Target.Digest, at: img.UpdatedAt}
		}
		list = append(list, got)
	}
	return list, nil
}

// List are the images on this machine, by name.
func (p *Provisioner) List(ctx context.Context) ([]operator.Image, error) {
	s, err := p.openedIfAny(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	p.gc.RLock()
	defer p.gc.RUnlock()
	uses, err := p.uses()
	if err != nil {
		uses = nil // of an older agent; shown as unused, never removed
	}
	users := map[string][]string{}
	for _, u := range uses {
		if !slices.Contains(users[u.what], u.container) {
			users[u.what] = append(users[u.what], u.container)
		}
	}
	list := []operator.Image{}
	if s != nil {
		all, err := s.list(ctx)
		if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		for _, img := range all {
			if img.chain == "" {
				continue // among those kept whole
			}
			list = append(list, operator.Image{
				Name: img.name, Digest: img.target.String(), Size: s.size(ctx, img.chain), Layers: img.layers, Pulled: img.at,
				UsedBy: users[img.what()],
			})
		}
	}
	entries, err := os.ReadDir(p.dir("images"))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	for _, e := range entries {
		r, err := p.record(e.Name())
		if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		for _, name := range r.Names {
			list = append(list, operator.Image{
				Name: name, Digest: digest.NewDigestFromEncoded(digest.SHA256, e.Name()).String(), Size: r.Size, Layers: r.Layers, Pulled: r.Pulled,
				UsedBy: users[e.Name()],
			})
		}
	}
	slices.SortFunc(list, func(a, b operator.Image) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}
