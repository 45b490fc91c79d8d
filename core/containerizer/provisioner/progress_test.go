package provisioner

import (
	"net/http"
	"testing"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

func TestProgressIsSeenLayerByLayer(t *testing.T) {
	d := newDepot(t)
	img := simpleImage(t, "x")
	image := d.push(t, "app:1", img)
	arrived, goOn := make(chan struct{}), make(chan struct{})
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d.intercept(only("/blobs/"+digestOf(t, layers[1]), func(http.ResponseWriter, *http.Request) bool {
		close(arrived)
		<-goOn
		return false
	}))
	p := newPuller(t)
	ended := make(chan error, 1)
	go func() { ended <- p.Pull(t.Context(), image, false) }()
	<-arrived
	pulls := p.Pulls()
	if len(pulls) != 1 || pulls[0].Name != image || pulls[0].State != operator.PullDownloading || len(pulls[0].Layers) != 2 ||
		pulls[0].Layers[1].Done != 0 || pulls[0].Layers[1].Total == 0 || pulls[0].Digest != digestOf(t, img) {
		t.Errorf("Pulls: got %+v, want the second layer waiting", pulls)
	}
	close(goOn)
	if err := <-ended; err != nil {
		t.Fatalf("Pull: %v", err)
	}
	pulls = p.Pulls()
	if len(pulls) != 1 || pulls[0].State != operator.PullDone {
		t.Fatalf("Pulls: got %+v, want it done", pulls)
	}
	for _, l := range pulls[0].Layers {
		if l.State != operator.PullDone || l.Done != l.Total {
			t.Errorf("layer: got %+v, want it done", l)
		}
	}
}
