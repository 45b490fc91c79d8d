package master

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// The whitelist is a file with one hostname on each line. Agents elsewhere keep what they have and are not offered. An
// empty file stops all offers; a file that is not there, or that has the line "*", restricts nothing.

const (
	whitelistInterval = 5 * time.Second // between two looks at the file; Mesos's
	maxWhitelist      = 16 << 20        // bytes; ten times what the largest cluster needs
)

// readWhitelist returns the hostnames in a file; nil if all agents may be offered.
func readWhitelist(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the whitelist: %w", err)
	}
	defer f.Close()
	hostnames := []string{}
	lines := bufio.NewScanner(io.LimitReader(f, maxWhitelist))
	for lines.Scan() {
		switch line := strings.TrimSpace(lines.Text()); line {
		case "":
		case "*":
			return nil, nil
		default:
			hostnames = append(hostnames, line)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the whitelist %s: %w", path, err)
	}
	slices.Sort(hostnames)
	return slices.Compact(hostnames), nil
}

// watchWhitelist has the loop obey the whitelist, as it is now and whenever it changes until ctx ends. The caller waits
// for the group. A file that cannot be read changes nothing.
func (m *Master) watchWhitelist(ctx context.Context) *sync.WaitGroup {
	var group sync.WaitGroup
	if m.cfg.Whitelist == "" || m.cfg.Whitelist == "*" {
		return &group
	}
	var last []string
	failed := false
	look := func() (changed bool) {
		next, err := readWhitelist(m.cfg.Whitelist)
		if err != nil {
			if !failed {
				m.log.Error("whitelist not read", "error", err)
			}
			failed = true
			return false
		}
		failed = false
		if (next == nil) == (last == nil) && slices.Equal(next, last) {
			return false
		}
		last = next
		return true
	}
	if look() { // before the first offer
		m.s.allocator.SetWhitelist(last)
	}
	group.Go(func() {
		tick := time.NewTicker(whitelistInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if !look() {
				continue
			}
			hostnames := last
			m.post(ctx, func(now time.Time) {
				m.log.Info("whitelist changed", "hostnames", len(hostnames))
				m.s.allocator.SetWhitelist(hostnames)
				m.s.allocateBy(now)
			})
		}
	})
	return &group
}
