package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// Images are the images of an agent.
type Images interface {
	// List returns those that are on its disk.
	List(ctx context.Context) ([]operator.Image, error)

	// Pulls returns the pulls that are under way, and those that ended a short while ago.
	Pulls() []operator.Pull

	// PullAndTell pulls an image and tells how far it is, at last that it is done or has failed and why.
	PullAndTell(ctx context.Context, name string, fresh bool, tell func(operator.Pull)) error
}

// imageRoutes are those of an agent that has images.
func (a *agentEdge) imageRoutes() []Route {
	if a.images == nil {
		return nil
	}
	show := func(path, doc string, what func(ctx context.Context) (any, error)) Route {
		return Route{
			Path: path, Exact: true, Methods: onlyGet, Realm: RealmAgentReadOnly, Action: "GET_ENDPOINT_WITH_PATH", Doc: doc,
			handler: a.legacy(path, func(ctx context.Context, _, _ string, _ url.Values) ([]byte, error) {
				v, err := what(ctx)
				if err != nil {
					return nil, err
				}
				return json.Marshal(v)
			}),
		}
	}
	return []Route{
		show("/mosaic/v1/images", "The images on the agent's disk.", func(ctx context.Context) (any, error) { return a.images.List(ctx) }),
		show("/mosaic/v1/images/pulls", "How far the agent is with pulling images.", func(context.Context) (any, error) {
			if list := a.images.Pulls(); list != nil {
				return list, nil
			}
			return []operator.Pull{}, nil
		}),
		{
			Path: "/mosaic/v1/images/pull", Exact: true, Methods: onlyPost, Realm: RealmAgentReadWrite, Action: "PRUNE_IMAGES", Streams: true, // who decides what is on the disk
			Doc:     "Pulls an image; answers with a line of JSON for each step.",
			handler: a.pullImage, first: a.notRecovered,
		},
	}
}

// pullImage answers with lines of JSON until the pull has ended. A client that leaves gives it up, unless a container
// waits for the image, too.
func (a *agentEdge) pullImage(w http.ResponseWriter, r *http.Request, _ string) error {
	if t, err := contentType(r); err != nil {
		return err
	} else if t != codec.JSON {
		return statusf(http.StatusUnsupportedMediaType, "Expecting 'Content-Type' of %s", codec.TypeJSON)
	}
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	var call operator.PullRequest
	if err := json.Unmarshal(body, &call); err != nil {
		return statusf(http.StatusBadRequest, "Failed to parse body: %s", clip(err.Error()))
	}
	if call.Name == "" {
		return statusf(http.StatusBadRequest, "Expecting 'name' to be the name of an image")
	}
	w.Header().Set("Content-Type", "application/jsonl")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	lines, flush := json.NewEncoder(w), http.NewResponseController(w)
	// The last line says how it ended; a client that is gone has nothing to be told.
	_ = a.images.PullAndTell(r.Context(), call.Name, call.Fresh, func(p operator.Pull) {
		_ = lines.Encode(p)
		_ = flush.Flush()
	})
	return nil
}
