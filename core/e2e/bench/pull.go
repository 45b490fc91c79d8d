package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

const (
	pullRow  = "image/pull-and-unpack-90MiB"
	pullPeer = "peer/skopeo+umoci-90MiB"
	// pullRounds is how often each of the two pulls, in turns: the machine is the same for both then.
	pullRounds = 5
)

// pulls measures an image of 90 MiB in some 5,600 files on its way from a registry to files: brought and unpacked by the
// agent, and in the same run by skopeo and umoci, as Debian packages them. The agent's is on disk at the end.
func (b *bench) pulls() error {
	if !b.report.wants(pullRow) && !b.report.wants(pullPeer) {
		return nil
	}
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel() // ends the registry
	big, err := b.startRegistry(ctx, 90)
	if err != nil {
		return err
	}
	peer := true
	for _, name := range []string{"skopeo", "umoci"} {
		if _, err := exec.LookPath(name); err != nil {
			fmt.Fprintf(os.Stderr, "%s: skipped: %v (tools/install.sh bench)\n", pullPeer, err)
			peer = false
		}
	}
	return b.with(cluster.Options{}, func(c *cluster.Cluster) error { return b.inTurns(ctx, c, big, peer) })
}

// inTurns pulls by the agent and, if there is one, by the peer, and reports the middle of each.
func (b *bench) inTurns(ctx context.Context, c *cluster.Cluster, big string, peer bool) error {
	var ours, theirs []float64
	for range pullRounds {
		t := time.Now()
		if r, err := c.Mosaic(ctx, "image", "pull", big); err != nil || r.Code != 0 {
			return fmt.Errorf("pull %s: %w: %s", big, err, r.Stderr)
		}
		ours = append(ours, time.Since(t).Seconds())
		if r, err := c.Mosaic(ctx, "image", "prune"); err != nil || r.Code != 0 {
			return fmt.Errorf("prune: %w: %s", err, r.Stderr)
		}
		if !peer {
			continue
		}
		took, err := b.pullAsPeer(ctx, big)
		if err != nil {
			return err
		}
		theirs = append(theirs, took.Seconds())
	}
	w := row{name: pullRow, value: quantile(ours, 0.5), unit: "s"}
	if peer {
		w.floor = quantile(theirs, 0.5)
		w.goal = w.floor
		b.report.add(row{name: pullPeer, value: w.floor, unit: "s"})
	}
	b.report.add(w)
	return nil
}

// pullAsPeer brings an image to a layout with skopeo and unpacks it with umoci.
func (b *bench) pullAsPeer(ctx context.Context, image string) (took time.Duration, err error) {
	dir, err := os.MkdirTemp(b.dir, "peer-")
	if err != nil {
		return 0, err
	}
	defer func() {
		if rmErr := os.RemoveAll(dir); err == nil {
			err = rmErr
		}
	}()
	layout := filepath.Join(dir, "layout")
	t := time.Now()
	for _, argv := range [][]string{
		{"skopeo", "copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", "docker://" + image, "oci:" + layout + ":it"},
		{"umoci", "unpack", "--image", layout + ":it", filepath.Join(dir, "bundle")},
	} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%s: %w: %s", argv[0], err, out)
		}
	}
	return time.Since(t), nil
}
