package dockervolume

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// key names a volume on this machine.
type key struct{ driver, name string }

func (k key) String() string { return k.driver + "/" + k.name }

// A volume is one that containers use, or may. It is mounted by its driver once, however many containers use it:
// drivers differ in whether they count.
type volume struct {
	// turn is held by who asks the driver about the volume, so that a mount and an unmount never cross.
	turn chan struct{}

	// What follows is guarded by the table's mu.
	users   int             // who hold the turn or wait for it
	holders map[string]bool // ids of containers
	mounted bool            // the driver mounted it
	doubt   bool            // it may have been mounted: the answer was lost, or it was before a crash
	stuck   bool            // it was mounted, and could not be unmounted
	at      string          // where, "" if that was lost
}

// table holds the volumes in use. It is filled anew by Recover.
type table struct {
	mu     sync.Mutex // guards what follows
	all    map[key]*volume
	scopes map[string]string // of drivers that were asked, for the metrics
}

// take waits for a volume's turn. The caller gives it back.
func (t *table) take(ctx context.Context, k key) (*volume, func(), error) {
	t.mu.Lock()
	v := t.get(k)
	v.users++
	t.mu.Unlock()
	back := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		v.users--
		if v.users == 0 && len(v.holders) == 0 && !v.mounted {
			delete(t.all, k)
		}
	}
	select {
	case v.turn <- struct{}{}:
		return v, func() { <-v.turn; back() }, nil
	case <-ctx.Done():
		back()
		return nil, nil, fmt.Errorf("wait for volume %s: %w", k, ctx.Err())
	}
}

// get needs mu held.
func (t *table) get(k key) *volume {
	if t.all == nil {
		t.all = map[key]*volume{}
	}
	v := t.all[k]
	if v == nil {
		v = &volume{turn: make(chan struct{}, 1), holders: map[string]bool{}}
		t.all[k] = v
	}
	return v
}

// change changes a volume.
func (t *table) change(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
}

// recall notes that a container uses a volume, or did before a crash. was says that it was mounted for it, is that it
// still is. Of a volume that is in use already it only adds the container.
func (t *table) recall(k key, id string, was, is bool, at string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.get(k)
	if v.holders[id] {
		return
	}
	v.holders[id] = true
	switch {
	case is && !v.mounted:
		v.mounted, v.doubt, v.stuck, v.at = true, false, false, at // nobody mounts again what is mounted
	case !is && !v.mounted:
		v.doubt, v.stuck = true, v.stuck || was
	}
}

// holds says whether a container uses a volume, and whether it alone does.
func (t *table) holds(k key, id string) (holds, alone bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.all[k]
	if v == nil || !v.holders[id] {
		return false, false
	}
	return true, len(v.holders) == 1
}

// mountID is by whom a volume is mounted, for drivers that count by that. It is the same for all containers of an agent
// and after its restart, so that a mount whose answer was lost is not counted twice.
func mountID(workDir string, k key) string {
	sum := sha256.Sum256([]byte("mosaic\x00" + workDir + "\x00" + k.driver + "\x00" + k.name))
	return hex.EncodeToString(sum[:])
}

// attach mounts a volume for a container and returns where it is.
func (i *Isolator) attach(ctx context.Context, d *driver, k key, id string, options map[string]string) (string, error) {
	v, back, err := i.table.take(ctx, k)
	if err != nil {
		return "", err
	}
	defer back()
	i.table.mu.Lock()
	mounted, doubt, at := v.mounted, v.doubt, v.at
	i.table.mu.Unlock()
	if mounted {
		if at == "" { // its state was of another version
			at, err = d.path(ctx, k.name)
		} else {
			at, err = d.believable(k.name, at)
		}
		if err != nil {
			return "", err
		}
		i.table.change(func() { v.holders[id], v.at = true, at })
		return at, nil
	}
	mount := mountID(i.node.Load().GetWorkDir(), k)
	if doubt {
		// For drivers that count: if it was mounted, once is enough. That it was not is no error.
		var no *refusal
		if err := d.unmount(ctx, k.name, mount); err != nil && !errors.As(err, &no) {
			return "", err
		}
	}
	_, known, err := d.get(ctx, k.name)
	if err != nil {
		return "", err
	}
	if !known {
		if err := d.create(ctx, k.name, options); err != nil {
			return "", err
		}
	}
	i.table.change(func() { v.holders[id], v.doubt = true, true })
	at, err = d.mount(ctx, k.name, mount)
	if err != nil {
		return "", err
	}
	i.table.change(func() { v.mounted, v.doubt, v.stuck, v.at = true, false, false, at })
	return at, nil
}

// detach takes a container from those that use a volume, and unmounts it if there is no other. stale says that the
// machine was started anew since it was mounted, so that it is not mounted any more.
func (i *Isolator) detach(ctx context.Context, cfg *Config, k key, id string, stale bool) error {
	v, back, err := i.table.take(ctx, k)
	if err != nil {
		return err
	}
	defer back()
	holds, alone := i.table.holds(k, id)
	if !holds {
		return nil // it was never mounted for this one, or is not any more
	}
	if alone {
		i.table.mu.Lock()
		certain := v.mounted || v.stuck
		i.table.mu.Unlock()
		if err := i.release(ctx, cfg, k, certain && !stale); err != nil {
			i.table.change(func() { v.mounted, v.doubt, v.stuck, v.at = false, true, certain, "" })
			return err
		}
	}
	i.table.change(func() {
		delete(v.holders, id)
		if len(v.holders) == 0 {
			v.mounted, v.doubt, v.stuck, v.at = false, false, false, ""
		}
	})
	return nil
}

// release unmounts a volume. certain says that it was mounted; else it only may have been.
func (i *Isolator) release(ctx context.Context, cfg *Config, k key, certain bool) error {
	d, err := findDriver(cfg, k.driver)
	if errors.Is(err, errNoDriver) && !certain {
		return nil
	}
	if err != nil {
		return fmt.Errorf("driver %s: %w", k.driver, err)
	}
	err = d.unmount(ctx, k.name, mountID(i.node.Load().GetWorkDir(), k))
	var no *refusal
	if err == nil || !errors.As(err, &no) {
		return err
	}
	// It refuses: because it is not mounted?
	at, known, asked := d.get(ctx, k.name)
	if asked == nil && (!known || at == "" || !certain && !isMount(at)) {
		return nil
	}
	return err
}

// report gives the module's metrics: how many volumes are mounted, by driver.
func (i *Isolator) report() {
	i.table.mu.Lock()
	count := map[string]int{}
	for driver := range i.table.scopes {
		count[driver] = 0
	}
	for k, v := range i.table.all {
		if v.mounted {
			count[k.driver]++
		}
	}
	var samples []*modulev1.Metrics_Sample
	for _, driver := range slices.Sorted(maps.Keys(count)) {
		if len(samples) == maxSeries {
			break
		}
		samples = append(samples, &modulev1.Metrics_Sample{
			Name: "mounted_volumes", Labels: map[string]string{"driver": driver, "scope": i.table.scopes[driver]}, Value: float64(count[driver]),
		})
	}
	i.table.mu.Unlock()
	i.events.Metrics(samples...)
}

// maxSeries is below what the contract allows; no machine has that many drivers.
const maxSeries = 100

// know asks a driver once what its volumes are.
func (i *Isolator) know(ctx context.Context, d *driver) {
	i.table.mu.Lock()
	_, known := i.table.scopes[d.name]
	i.table.mu.Unlock()
	if known {
		return
	}
	scope := d.scope(ctx)
	i.table.change(func() {
		if i.table.scopes == nil {
			i.table.scopes = map[string]string{}
		}
		i.table.scopes[d.name] = scope
	})
}
