package cgroup

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"syscall"
)

// leafName is the group below a container's own that its processes move to when containers with limits of their own are
// made below it. No container's id begins with a dot.
const leafName = ".leaf"

// maxMoves bounds how often a group is looked at while its processes are moved: each time, those are found that were
// born meanwhile to one not yet moved.
const maxMoves = 100

// Vacate moves the processes that are in the group itself, not those in groups below it, to a leaf below it. On version
// 2 controllers can be handed on to groups below only by a group without processes. The group's own limits and its
// accounts go on to hold for all of them. Until there is need the processes stay: programs look for their limits in the
// group they find themselves in. On version 1, where nothing of it is needed, it does nothing. Repeatable.
func (g *Group) Vacate() error {
	if g.h.unified == "" || g.h.legacy() {
		return nil
	}
	if err := vacate(g.CloneInto()); err != nil {
		return fmt.Errorf("vacate cgroup %s: %w", g.rel, err)
	}
	return nil
}

func vacate(dir string) error {
	leaf := filepath.Join(dir, leafName)
	for range maxMoves {
		pids, err := procs(dir)
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := syscall.Mkdir(leaf, 0o755); err != nil && err != syscall.EEXIST {
			return fmt.Errorf("make %s: %w", leafName, err)
		}
		for _, pid := range pids {
			err := write(filepath.Join(leaf, "cgroup.procs"), strconv.Itoa(pid))
			if err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("move process: %w", err)
			}
		}
	}
	return errors.New("processes are born faster than they can be moved")
}
