package agent

import (
	"context"
	"errors"
	"slices"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
)

// shelf is images in memory.
type shelf struct {
	asked    bool
	excluded []string
	err      error
}

func (s *shelf) Prune(_ context.Context, excluded []string) ([]string, error) {
	s.asked, s.excluded = true, excluded
	return []string{"gone"}, s.err
}

func TestPruneImagesRemovesAllButTheExcluded(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		images := &shelf{}
		w.deps.Images = images
		w.start()
		prune := func(excluded ...*mesosv1.Image) error {
			images.asked, images.excluded = false, nil
			r, err := w.agent.OperatorCall(t.Context(), "", &agentv1.Call{
				Type: agentv1.Call_PRUNE_IMAGES.Enum(), PruneImages: &agentv1.Call_PruneImages{ExcludedImages: excluded},
			})
			if r != nil {
				t.Errorf("PRUNE_IMAGES = %v, want no answer", r)
			}
			return err
		}
		if err := prune(); err != nil || !images.asked || images.excluded != nil {
			t.Errorf("PRUNE_IMAGES: %v; asked with %v, want none, so that the operator's hold", err, images.excluded)
		}
		image := func(kind mesosv1.Image_Type, name string) *mesosv1.Image {
			return &mesosv1.Image{Type: kind.Enum(), Docker: &mesosv1.Image_Docker{Name: &name}}
		}
		if err := prune(image(mesosv1.Image_DOCKER, "alpine"), image(mesosv1.Image_DOCKER, "busybox:1")); err != nil || !slices.Equal(images.excluded, []string{"alpine", "busybox:1"}) {
			t.Errorf("PRUNE_IMAGES: %v; excluded %v, want those of the call", err, images.excluded)
		}
		for _, bad := range []*mesosv1.Image{image(mesosv1.Image_APPC, "alpine"), image(mesosv1.Image_DOCKER, ""), {}} {
			if err := prune(bad); httpStatus(err) != 400 || images.asked {
				t.Errorf("PRUNE_IMAGES without %v: %v, want 400 and nothing removed", bad, err)
			}
		}
		images.err = errors.New("disk is on fire")
		if err := prune(); !errors.Is(err, images.err) {
			t.Errorf("PRUNE_IMAGES: got %v, want %v", err, images.err)
		}
	})
}
