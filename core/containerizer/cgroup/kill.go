package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Pauses between looks at a group that is emptying: most are empty at once, and one with a process
// in a long system call must not cost a processor.
const (
	firstPause = 100 * time.Microsecond
	lastPause  = 20 * time.Millisecond
)

// Pids lists the processes in the group and below it, each once.
func (g *Group) Pids() ([]int, error) {
	var all []int
	for _, dir := range g.folders() {
		err := walk(dir, func(d string) error {
			pids, err := procs(d)
			all = append(all, pids...)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list cgroup %s: %w", g.rel, err)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// walk calls f for dir and every folder below it, the deepest first. What vanishes meanwhile is
// passed over.
func walk(dir string, f func(string) error) error {
	info, err := os.Lstat(dir)
	if err == nil {
		// A control group without others below it has exactly two links.
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink == 2 {
			return f(dir)
		}
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := walk(filepath.Join(dir, e.Name()), f); err != nil {
				return err
			}
		}
	}
	return f(dir)
}

func procs(dir string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EOPNOTSUPP) {
		return nil, nil // gone meanwhile, or a threaded group, whose processes its domain lists
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for line := range strings.Lines(string(b)) {
		// 0 stands for a process in a pid namespace that we cannot see: not ours to kill by pid.
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Kill kills every process in the group and below it, and returns when none is left. It returns
// ctx's error, and how many were left, when they would not go in time.
func (g *Group) Kill(ctx context.Context) error {
	pause := firstPause
	for {
		pids, err := g.Pids()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		g.killOnce(pids)
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill cgroup %s: %d processes left: %w", g.rel, len(pids), ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// killOnce kills at one moment what is in the group: atomically where the kernel can, and else
// with the group frozen, so that nothing is born meanwhile and no pid changes hands.
func (g *Group) killOnce(pids []int) {
	if dir := g.CloneInto(); dir != "" {
		if write(filepath.Join(dir, "cgroup.kill"), "1") == nil {
			// On a hybrid machine something may be in the old hierarchies alone.
			left, err := g.Pids()
			if err != nil || len(left) == 0 {
				return
			}
			if !g.h.legacy() {
				return
			}
			pids = left
		}
	}
	thaw := g.freeze()
	if again, err := g.Pids(); err == nil {
		pids = again
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	thaw()
}

// freeze stops the group if it can and returns how to let it go on. It does not wait for those in
// a long system call: they are killed all the same, in this round or the next.
func (g *Group) freeze() (thaw func()) {
	if point, ok := g.h.v1[freezer]; ok {
		file := filepath.Join(point, g.rel, "freezer.state")
		if write(file, "FROZEN") == nil {
			return func() { _ = write(file, "THAWED") }
		}
	}
	if g.h.unified != "" {
		file := filepath.Join(g.h.unified, g.rel, "cgroup.freeze")
		if write(file, "1") == nil {
			return func() { _ = write(file, "0") }
		}
	}
	return func() {}
}

// Remove removes the group and what was made below it. All processes must be gone; zombies hold a
// group for a moment, so removal is tried again until ctx ends. Nil when there is nothing.
func (g *Group) Remove(ctx context.Context) error {
	pause := firstPause
	for {
		var busy error
		for _, dir := range g.folders() {
			err := walk(dir, func(d string) error {
				err := syscall.Rmdir(d)
				if err == nil || err == syscall.ENOENT {
					return nil
				}
				return &fs.PathError{Op: "rmdir", Path: d, Err: err}
			})
			if err != nil && !errors.Is(err, syscall.EBUSY) {
				return fmt.Errorf("remove cgroup %s: %w", g.rel, err)
			}
			if err != nil {
				busy = err
			}
		}
		if busy == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w: %w", g.rel, busy, ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}
