package agent

import (
	"context"
	"net/http"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
)

// Images are the images on this machine.
type Images interface {
	// Prune removes every image that no container runs from, but for those excluded by name, and returns the names of what
	// it removed. Without excluded it is those that the operator excluded.
	Prune(ctx context.Context, excluded []string) ([]string, error)
}

// pruneImages answers PRUNE_IMAGES.
func (a *Agent) pruneImages(ctx context.Context, call *agentv1.Call_PruneImages) error {
	if a.deps.Images == nil {
		return refuse(http.StatusNotImplemented, "This agent has no images")
	}
	var excluded []string
	for _, image := range call.GetExcludedImages() {
		name := image.GetDocker().GetName()
		if image.GetType() != mesosv1.Image_DOCKER || name == "" {
			return refuse(http.StatusBadRequest, "Expecting 'excluded_images' to be of type DOCKER and to have names")
		}
		excluded = append(excluded, name)
	}
	_, err := a.deps.Images.Prune(ctx, excluded)
	return err
}
