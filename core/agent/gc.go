package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Sandboxes of containers that ended are kept for a while, so that people can read them. How long depends on the
// disk: GCDelay when it is empty, nothing when only the headroom is left.

// collectGarbage removes old sandboxes until ctx ends.
func (a *Agent) collectGarbage(ctx context.Context) {
	for sleep(ctx, a.cfg.DiskWatchInterval) {
		used, err := diskUsage(a.cfg.WorkDir)
		if err != nil {
			a.log.Warn("disk usage of the work directory", "error", err)
			continue
		}
		removed, failed := a.collect(ctx, time.Now(), a.maxAge(used))
		a.mu.Lock()
		a.counters.sandboxesRemoved += uint64(removed)
		a.counters.sandboxesKept += uint64(failed)
		a.counters.maxAge = a.maxAge(used)
		a.mu.Unlock()
	}
}

// maxAge is how old a sandbox may get when a share of the disk is used. Source: Mesos,
// gc_delay × max(0, 1 − gc_disk_headroom − usage).
func (a *Agent) maxAge(used float64) time.Duration {
	return time.Duration(float64(a.cfg.GCDelay) * max(0, 1-a.cfg.GCDiskHeadroom-used))
}

func diskUsage(dir string) (float64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	if s.Blocks == 0 {
		return 0, nil
	}
	return float64(s.Blocks-s.Bfree) / float64(s.Blocks), nil
}

// collect removes sandboxes of no container that were last changed longer than age ago, and folders that this
// leaves empty. Nothing outside of slaves/ and containers/ is touched, and links are removed, not followed. Sandboxes of
// nested containers go with those they lie in.
func (a *Agent) collect(ctx context.Context, now time.Time, age time.Duration) (removed, failed int) {
	removed, failed = a.collectRuns(ctx, now, age)
	r, f := a.collectStandalone(ctx, now, age)
	return removed + r, failed + f
}

// collectStandalone removes what is left of standalone containers that ended, and what is known of them.
func (a *Agent) collectStandalone(ctx context.Context, now time.Time, age time.Duration) (removed, failed int) {
	top := filepath.Join(a.cfg.WorkDir, "containers")
	entries, err := os.ReadDir(top)
	if err != nil {
		return 0, 0 // there never was one
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !info.IsDir() || now.Sub(info.ModTime()) < age {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		a.mu.Lock()
		g := a.guests[entry.Name()]
		a.mu.Unlock()
		if g != nil && !g.over() {
			continue
		}
		if g != nil {
			err = a.removeGuest(ctx, g)
		}
		if err == nil {
			err = a.removeStandalone(top, entry.Name())
		}
		if err != nil {
			a.log.Warn("remove sandbox", "path", filepath.Join(top, entry.Name()), "error", err)
			failed++
			continue
		}
		removed++
	}
	return removed, failed
}

// removeStandalone removes the sandbox of a standalone container that is not known any more. It is moved away first, lest
// a container that is given the id meanwhile loses its own.
func (a *Agent) removeStandalone(top, id string) error {
	const prefix = ".removed-" // no id begins with a dot
	away := filepath.Join(top, id)
	if !strings.HasPrefix(id, prefix) {
		away = filepath.Join(top, prefix+id)
		a.mu.Lock()
		if a.guests[id] != nil {
			a.mu.Unlock()
			return nil
		}
		err := os.Rename(filepath.Join(top, id), away)
		a.mu.Unlock()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.RemoveAll(away)
}

func (a *Agent) collectRuns(ctx context.Context, now time.Time, age time.Duration) (removed, failed int) {
	slaves := filepath.Join(a.cfg.WorkDir, "slaves")
	runs, err := filepath.Glob(filepath.Join(slaves, "*", "frameworks", "*", "executors", "*", "runs"))
	if err != nil {
		return 0, 0 // the pattern is a constant but for the work directory; then nothing is collected
	}
	for _, dir := range runs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		left := 0
		for _, entry := range entries {
			if ctx.Err() != nil {
				return removed, failed
			}
			info, err := entry.Info()
			if err != nil || !info.IsDir() {
				continue
			}
			path := filepath.Join(dir, entry.Name())
			if now.Sub(info.ModTime()) < age || a.inUse(ContainerID(entry.Name())) {
				left++
				continue
			}
			if err := os.RemoveAll(path); err != nil {
				a.log.Warn("remove sandbox", "path", path, "error", err)
				failed++
				left++
				continue
			}
			removed++
		}
		if left == 0 {
			a.removeEmpty(slaves, dir)
		}
	}
	return removed, failed
}

// removeEmpty removes the runs folder dir, whose sandboxes are gone, and what above it holds nothing else, unless a
// container is about to get its sandbox there.
func (a *Agent) removeEmpty(top, dir string) {
	a.runs.Lock()
	defer a.runs.Unlock()
	a.mu.Lock()
	busy := false
	for _, e := range a.containers {
		busy = busy || filepath.Dir(e.directory) == dir
	}
	a.mu.Unlock()
	if busy {
		return
	}
	if err := os.Remove(filepath.Join(dir, "latest")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return
	}
	for dir != top && os.Remove(dir) == nil {
		dir = filepath.Dir(dir)
	}
}

// inUse tells whether a container's end is not acknowledged yet.
func (a *Agent) inUse(id ContainerID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.containers[id] != nil
}
