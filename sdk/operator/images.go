package operator

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
)

// Image is an image that an agent has on its disk.
type Image struct {
	// Name that it was pulled under, whole: docker.io/library/alpine:3.
	Name string `json:"name"`
	// Digest of its manifest, or of its configuration where it came from a file.
	Digest string `json:"digest"`
	// Bytes on disk, layers that it shares with others included.
	Size int64 `json:"size_bytes"`
	// How many layers it has.
	Layers int `json:"layers"`
	// When it was pulled.
	Pulled time.Time `json:"pulled"`
	// Ids of the containers that run from it.
	UsedBy []string `json:"used_by,omitempty"`
}

// States of a pull and of its layers, in this order. A pull that failed says why.
const (
	PullResolving   = "resolving"
	PullDownloading = "downloading"
	PullUnpacking   = "unpacking"
	PullWaiting     = "waiting" // of a layer: it is not its turn
	PullRetrying    = "retrying"
	PullDone        = "done"
	PullFailed      = "failed"
)

// Pull is how far an agent is with an image.
type Pull struct {
	Name    string    `json:"name"`
	State   string    `json:"state"`
	Started time.Time `json:"started"`
	Layers  []Layer   `json:"layers,omitempty"`
	// Why it failed, or why it is tried again.
	Error string `json:"error,omitempty"`
	// Digest that the name led to, once known.
	Digest string `json:"digest,omitempty"`
}

// Same says whether nothing happened between p and q.
func (p Pull) Same(q Pull) bool {
	return p.Name == q.Name && p.State == q.State && p.Error == q.Error && p.Digest == q.Digest && slices.Equal(p.Layers, q.Layers)
}

// Layer is one layer of a pull.
type Layer struct {
	Digest string `json:"digest"`
	State  string `json:"state"`
	// Compressed bytes that came, and that there are.
	Done  int64 `json:"done_bytes"`
	Total int64 `json:"total_bytes"`
}

// Ended says whether nothing more is to come of the pull.
func (p Pull) Ended() bool { return p.State == PullDone || p.State == PullFailed }

// maxPullLine bounds one line of a pull's progress: some 200 bytes for each of a hundred layers.
const maxPullLine = 1 << 20

// Images lists the images that the agent has.
func (a *Agent) Images(ctx context.Context) ([]Image, error) {
	var out []Image
	return out, a.list(ctx, "/mosaic/v1/images", &out)
}

// Pulls lists the pulls that are under way on the agent, and those that ended a short while ago.
func (a *Agent) Pulls(ctx context.Context) ([]Pull, error) {
	var out []Pull
	return out, a.list(ctx, "/mosaic/v1/images/pulls", &out)
}

func (a *Agent) list(ctx context.Context, path string, out any) error {
	b, err := a.get(ctx, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("decode %s of agent %s: %w", path, a.addr, err)
	}
	return nil
}

// PullRequest is the body of a pull: JSON.
type PullRequest struct {
	// Required. As in alpine, registry.example.com/name:tag or name@sha256:...
	Name string `json:"name"`
	// Ask the registry what the name means even if the agent has an image of that name.
	Fresh bool `json:"fresh,omitempty"`
}

// PullImage has the agent pull an image, and tells how far it is a few times a second until it ended. When the client
// leaves, a pull that nobody else waits for is given up.
//
// Errors: *StatusError for a name that is none; the reason of a pull that failed.
func (a *Agent) PullImage(ctx context.Context, r PullRequest, tell func(Pull)) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode pull: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+a.addr+"/mosaic/v1/images/pull", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("agent address %q: %w", a.addr, err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.hc.Do(req)
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return err
		}
		return fmt.Errorf("reach the agent at %s: %w", a.addr, unwrapURL(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return refusal(resp)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxPullLine)
	for lines.Scan() {
		var p Pull
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			return fmt.Errorf("decode progress of agent %s: %w", a.addr, err)
		}
		tell(p)
		switch p.State {
		case PullDone:
			return nil
		case PullFailed:
			return errors.New(p.Error)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read progress of agent %s: %w", a.addr, err)
	}
	return fmt.Errorf("agent %s left in the middle of a pull: %w", a.addr, io.ErrUnexpectedEOF)
}

// PruneImages has the agent remove every image that no container runs from, but for those excluded by name.
func (a *Agent) PruneImages(ctx context.Context, excluded ...string) error {
	call := &agentv1.Call{Type: agentv1.Call_PRUNE_IMAGES.Enum(), PruneImages: &agentv1.Call_PruneImages{}}
	for _, name := range excluded {
		call.PruneImages.ExcludedImages = append(call.PruneImages.ExcludedImages, &mesosv1.Image{
			Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: &name},
		})
	}
	_, err := a.Call(ctx, call)
	return err
}
