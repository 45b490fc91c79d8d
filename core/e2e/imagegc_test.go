package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// A disk that fills loses the images that nobody uses, and those that operators prune; what runs, and what is excluded by
// name, stays. What is gone is pulled anew when it is asked for.
func TestImagesThatNobodyUsesGo(t *testing.T) {
	needRoot(t)
	checked := newCheckedImage(t)
	var blobs atomic.Int64
	host := registryBefore(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			blobs.Add(1)
		}
		next.ServeHTTP(w, r)
	})
	// Each has a layer of its own that takes a tenth of the disk, above one that they share.
	image := func(name string) string {
		large := layerTar(t, []entry{{name: "noise", mode: 0o644, data: noise(t, 8<<20)}})
		return pushTo(t, host, name, assemble(t, ociForm, checked.below, large))
	}
	runs, stays := image("runs:1"), image("stays:1")
	c := prepare(t, cluster.Options{Composition: fmt.Sprintf(`
agent {
  image_disk_headroom       = 0.5
  image_disk_watch_interval = "1s"
  image_gc_excluded         = [%q]
}
`, stays)})
	imagesOnADiskOf(t, c, "80m")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	f, err := cluster.Subscribe(ctx, c.Master, "images", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 1, 512)
	if err != nil {
		t.Fatal(err)
	}
	// It looks at its files when it is told to, by a file in its sandbox.
	command := cluster.Shell(`until [ -e /mnt/mesos/sandbox/look ]; do sleep 0.1; done; [ $(wc -c </noise) = 8388608 ] && ls /bin/busybox /etc/passwd`)
	if err := f.Launch(ctx, o, imageTask(o, "runs", runs, command)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(ctx, []string{"runs"}, mesosv1.TaskState_TASK_RUNNING); err != nil {
		t.Fatal(err)
	}
	has := func() []string {
		names, _ := imagesOf(t, c)
		return names
	}
	wantOnly := func(what string, want ...string) {
		t.Helper()
		slices.Sort(want)
		eventually(t, fmt.Sprintf("%s there are %v only", what, want), 30*time.Second, func() bool { return slices.Equal(has(), want) })
	}
	mosaic(t, c, 0, "image", "pull", "--cached", stays)
	wantOnly("at first", runs, stays)
	var last string
	for n := 0; n < 3; n++ { // more than half of the disk in the end
		last = image(fmt.Sprintf("unused%d:1", n))
		mosaic(t, c, 0, "image", "pull", last)
	}
	wantOnly("when the disk is full", runs, stays)

	// An operator prunes; what is excluded by name is what the call says.
	other := image("other:1")
	mosaic(t, c, 0, "image", "pull", other)
	wantOnly("with room for one more", runs, stays, other)
	body, err := json.Marshal(object{"type": "PRUNE_IMAGES", "prune_images": object{"excluded_images": []any{
		object{"type": "DOCKER", "docker": object{"name": other}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := post(ctx, c.Agent, "/api/v1", "application/json", "", body)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("PRUNE_IMAGES answered %d %s, want 200", resp.StatusCode, text)
	}
	wantOnly("after PRUNE_IMAGES", runs, other)

	// The task has all of its image, and ends; then its image may go.
	sandbox, err := filepath.Glob(filepath.Join(c.Dir, "agent", "slaves", "*", "frameworks", "*", "executors", "runs", "runs", "latest"))
	if err != nil || len(sandbox) != 1 {
		t.Fatalf("sandboxes of the task: %v, %v, want one", sandbox, err)
	}
	if err := os.WriteFile(filepath.Join(sandbox[0], "look"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := f.State(ctx, []string{"runs"}, mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED)
	if err != nil {
		t.Fatal(err)
	}
	if s := got["runs"].Status; s.GetState() != mesosv1.TaskState_TASK_FINISHED {
		t.Errorf("the running task: %s %s, want that it found its files", s.GetState(), s.GetMessage())
	}
	if err := f.Enough(ctx); err != nil {
		t.Fatal(err)
	}
	prune(t, c)
	blobs.Store(0)
	mosaic(t, c, 0, "run", "--image", runs, "--mem", "64", "--", "/bin/ls", "/noise")
	if blobs.Load() == 0 {
		t.Error("an image that was removed was not asked for at its registry")
	}
	prune(t, c)
	wantNoTraceOfImages(t, c)
}
