package api_test

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/api"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// gallery is images in memory.
type gallery struct {
	images []operator.Image
	pulls  []operator.Pull
	asked  operator.PullRequest
	steps  []operator.Pull
	err    error
	hang   chan struct{} // closed when the client has left
}

func (g *gallery) List(context.Context) ([]operator.Image, error) { return g.images, g.err }
func (g *gallery) Pulls() []operator.Pull                         { return g.pulls }

func (g *gallery) PullAndTell(ctx context.Context, name string, fresh bool, tell func(operator.Pull)) error {
	g.asked = operator.PullRequest{Name: name, Fresh: fresh}
	for _, p := range g.steps {
		tell(p)
	}
	if g.hang != nil {
		<-ctx.Done()
		close(g.hang)
	}
	return g.err
}

func withImages(g *gallery) func(*api.Config, *api.AgentDeps) {
	return func(_ *api.Config, d *api.AgentDeps) { d.Images = g }
}

func TestImagesAreListedAndPulled(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	g := &gallery{
		images: []operator.Image{{Name: "docker.io/library/alpine:3", Digest: "sha256:1", Size: 7, Layers: 1, Pulled: at, UsedBy: []string{"c1"}}},
		steps: []operator.Pull{
			{Name: "x", State: operator.PullDownloading, Started: at, Layers: []operator.Layer{{Digest: "sha256:2", State: operator.PullDownloading, Done: 1, Total: 2}}},
			{Name: "x", State: operator.PullDone, Started: at, Digest: "sha256:3"},
		},
	}
	server := serveAgent(t, newFakeAgent(), withImages(g))
	a := operator.NewAgent(server.URL)
	if got, err := a.Images(t.Context()); err != nil || !reflect.DeepEqual(got, g.images) {
		t.Errorf("Images = %v, %v, want %v", got, err, g.images)
	}
	if got, err := a.Pulls(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("Pulls = %v, %v, want none", got, err)
	}
	g.pulls = g.steps
	if got, err := a.Pulls(t.Context()); err != nil || !reflect.DeepEqual(got, g.steps) {
		t.Errorf("Pulls = %v, %v, want %v", got, err, g.steps)
	}
	var told []operator.Pull
	if err := a.PullImage(t.Context(), operator.PullRequest{Name: "x", Fresh: true}, func(p operator.Pull) { told = append(told, p) }); err != nil ||
		!reflect.DeepEqual(told, g.steps) || g.asked != (operator.PullRequest{Name: "x", Fresh: true}) {
		t.Errorf("PullImage: %v; told %v of %v, want %v", err, told, g.asked, g.steps)
	}
	g.steps = []operator.Pull{{Name: "x", State: operator.PullFailed, Error: "the registry refuses"}}
	if err := a.PullImage(t.Context(), operator.PullRequest{Name: "x"}, func(operator.Pull) {}); err == nil || err.Error() != "the registry refuses" {
		t.Errorf("PullImage that fails: %v, want the reason", err)
	}
	g.steps = nil
	if err := a.PullImage(t.Context(), operator.PullRequest{Name: "x"}, func(operator.Pull) {}); err == nil {
		t.Error("PullImage whose agent leaves: got no error")
	}
	var refused *operator.StatusError
	if err := a.PullImage(t.Context(), operator.PullRequest{}, nil); !errors.As(err, &refused) || refused.Code != 400 {
		t.Errorf("PullImage without a name: %v, want 400", err)
	}
	for body, contentType := range map[string]string{"{": "application/json", "x": "text/plain"} {
		resp, err := http.Post(server.URL+"/mosaic/v1/images/pull", contentType, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode/100 != 4 {
			t.Errorf("pull with %q of %s = %d, want it refused", body, contentType, resp.StatusCode)
		}
	}
	g.err = errors.New("no")
	if _, err := a.Images(t.Context()); !errors.As(err, &refused) || refused.Code != 500 {
		t.Errorf("Images that cannot be listed: %v, want 500", err)
	}
}

func TestAClientThatLeavesGivesItsPullUp(t *testing.T) {
	g := &gallery{hang: make(chan struct{}), steps: []operator.Pull{{Name: "x", State: operator.PullDownloading}}}
	a := operator.NewAgent(serveAgent(t, newFakeAgent(), withImages(g)).URL)
	ctx, cancel := context.WithCancel(t.Context())
	err := a.PullImage(ctx, operator.PullRequest{Name: "x"}, func(operator.Pull) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("PullImage = %v, want %v", err, context.Canceled)
	}
	<-g.hang
}

func TestAnAgentWithoutImagesHasNoPathsOfThem(t *testing.T) {
	a := operator.NewAgent(serveAgent(t, newFakeAgent()).URL)
	var refused *operator.StatusError
	if _, err := a.Images(t.Context()); !errors.As(err, &refused) || refused.Code != 404 {
		t.Errorf("Images = %v, want 404", err)
	}
}
