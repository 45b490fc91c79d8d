package main

import (
	"context"
	"strings"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// pullTimeout bounds the question how far a pull is: the task's own updates must not wait for it.
const pullTimeout = time.Second

// showPull shows how far the agent is with the image of a task that does not run yet. A pull that was over before anybody
// could look is not shown.
func (r *runner) showPull(ctx context.Context) {
	if r.launched && r.image != "" && !r.all((*running).ran) {
		r.tellPulls(ctx)
	}
}

// endPull shows how the pull ended that was shown while it went on, once the tasks run or have ended.
func (r *runner) endPull(ctx context.Context) {
	if r.pulling != nil && !r.pulled && r.all((*running).ran) {
		r.tellPulls(ctx)
		r.pulled = true
	}
}

func (r *runner) tellPulls(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	pulls, err := operator.NewAgent(r.agent).Pulls(ctx)
	if err != nil {
		return // the task's own status says what goes wrong
	}
	for _, p := range pulls {
		if !ofImage(p.Name, r.image) || r.pulling == nil && (p.State == operator.PullDone || p.State == operator.PullFailed) {
			continue
		}
		if r.pulling == nil {
			r.pulling = newPullView(r.err, "")
		}
		r.pulling.tell(p)
	}
}

// ofImage says whether a pull of a whole name is that of an image as it was asked for.
func ofImage(whole, asked string) bool {
	for _, name := range []string{asked, asked + ":latest"} {
		if whole == name || strings.HasSuffix(whole, "/"+name) {
			return true
		}
	}
	return false
}
