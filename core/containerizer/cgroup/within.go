package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// CreateWithin makes the group, which must lie below outer, with every controller that outer has. A group of a
// container within another must miss none of them: what is born in it would be free of the outer one's limits there.
func (g *Group) CreateWithin(outer *Group) error {
	if !strings.HasPrefix(g.rel, outer.rel+"/") {
		return fmt.Errorf("cgroup %s: want one below %s", g.rel, outer.rel)
	}
	if err := g.Create(); err != nil {
		return err
	}
	for controller, point := range g.h.v1 {
		if _, err := os.Lstat(filepath.Join(point, outer.rel)); err != nil {
			continue
		}
		if err := g.makeV1(point); err != nil {
			return fmt.Errorf("create cgroup %s for %s: %w", g.rel, controller, err)
		}
	}
	return nil
}
