package provisioner

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner/registry"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// typed says of manifests that they are of a type.
func typed(mediaType string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		b := []byte(`{"schemaVersion":1}`)
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(b).String())
		if r.Method == http.MethodGet {
			_, _ = w.Write(b)
		}
		return true
	}
}

func TestFailedPullsSayWhyAndLeaveNothing(t *testing.T) {
	body := strings.Repeat("0123456789abcdef", 1<<14)
	img := simpleImage(t, body)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	top := "/blobs/" + digestOf(t, layers[1])
	compressed, err := layers[1].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(compressed)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(blob)
	changed[len(changed)/2] ^= 1
	serve := func(announced int, b []byte) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", fmt.Sprint(announced))
			_, _ = w.Write(b)
			return true
		}
	}
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	for what, c := range map[string]struct {
		image string
		first func(w http.ResponseWriter, r *http.Request) bool
		want  error
		text  string
	}{
		"unknown":      {image: "nobody/has:this", want: registry.ErrNotFound},
		"refused":      {first: only("", respond(http.StatusUnauthorized, 0)), want: registry.ErrUnauthorized},
		"forbidden":    {first: only(top, respond(http.StatusForbidden, 0)), want: registry.ErrUnauthorized},
		"layer gone":   {first: only(top, respond(http.StatusNotFound, 0)), want: registry.ErrNotFound},
		"changed":      {first: only(top, serve(len(changed), changed)), want: registry.ErrCorrupt},
		"truncated":    {first: only(top, serve(len(blob), blob[:len(blob)/2])), want: registry.ErrTruncated},
		"shorter":      {first: only(top, serve(len(blob)/2, blob[:len(blob)/2])), want: registry.ErrTruncated},
		"broken":       {first: only(top, respond(http.StatusInternalServerError, 0)), text: "given up after"},
		"busy":         {first: only(top, respond(http.StatusTooManyRequests, 0)), text: "429"},
		"bad manifest": {first: only("/manifests/", serve(2, []byte("{}"))), want: registry.ErrTruncated},
		"schema 1":     {first: typed(images.MediaTypeDockerSchema1Manifest), text: "schema 1"},
		"no image":     {first: typed("application/vnd.example.song"), text: `something of type "application/vnd.example.song"`},
		"stalled": {first: only(top, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
				_, _ = w.Write(blob[:len(blob)/2])
				_ = http.NewResponseController(w).Flush()
			}
			select {
			case <-hang:
			case <-r.Context().Done():
			}
			return true
		}), want: registry.ErrStalled, text: "given up after 2 tries"},
		"no answer": {first: func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				select {
				case <-hang:
				case <-r.Context().Done():
				}
				return true
			}
			return false
		}, want: registry.ErrStalled, text: "given up after 2 tries"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			d := newDepot(t)
			image := d.push(t, "app:1", img)
			if c.image != "" {
				image = d.host + "/" + c.image
			}
			d.intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if what == "refused" && r.Method == http.MethodHead {
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				return c.first != nil && c.first(w, r)
			})
			p := newPuller(t, func(c *Config) {
				if what == "stalled" || what == "no answer" {
					c.PullStall = time.Second
				}
			})
			_, _, err := p.ProvisionImage(t.Context(), "a", docker(image))
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("ProvisionImage: got %v, want %v %s", err, c.want, c.text)
			}
			wantNothingLeft(t, p)
			pulls := p.Pulls()
			if len(pulls) != 1 || pulls[0].State != operator.PullFailed || pulls[0].Error == "" {
				t.Errorf("Pulls: got %+v, want one that failed and says why", pulls)
			}
			d.intercept(nil)
			if c.image == "" {
				if rootfs, _, err := p.ProvisionImage(t.Context(), "a", docker(image)); err != nil || read(t, rootfs, "data") != body {
					t.Errorf("ProvisionImage once the registry is well: %v", err)
				}
			}
		})
	}
}

// noisy is an image of one layer with one file, which compression does not make small.
type noisy struct {
	image v1.Image
	layer v1.Layer
	noise string // of the file "data"
	blob  []byte // the layer as it is sent
}

func newNoisy(t *testing.T, size int) noisy {
	t.Helper()
	noise := make([]byte, size)
	source := rand.New(rand.NewPCG(1, 2))
	for n := range noise {
		noise[n] = byte(source.Uint32())
	}
	img := imageWith(t, layerOf(t, file{name: "data", body: string(noise)}))
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return noisy{image: img, layer: layers[0], noise: string(noise), blob: blob}
}

func TestPullsGoOnWhereTheyWereCut(t *testing.T) {
	n := newNoisy(t, 1<<20)
	for kind, goesOn := range map[string]bool{"a registry that goes on": true, "one that starts anew": false} {
		backends(t, func(t *testing.T, change func(*Config)) {
			d := newDepot(t)
			image := d.push(t, "app:1", n.image)
			var mu sync.Mutex
			var ranges []string
			d.intercept(only("/blobs/"+digestOf(t, n.layer), func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				ranges = append(ranges, r.Header.Get("Range"))
				switch {
				case len(ranges) == 1:
					w.Header().Set("Content-Length", fmt.Sprint(len(n.blob)))
					_, _ = w.Write(n.blob[:len(n.blob)/2])
					panic(http.ErrAbortHandler)
				case r.Header.Get("Range") != "" && !goesOn:
					w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				default:
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(n.blob))
				}
				return true
			}))
			p := newPuller(t, change)
			rootfs, _, err := p.ProvisionImage(t.Context(), "a", docker(image))
			if err != nil || read(t, rootfs, "data") != n.noise {
				t.Fatalf("ProvisionImage from %s: %v", kind, err)
			}
			if len(ranges) < 2 || !strings.HasPrefix(ranges[1], "bytes=") || ranges[1] == "bytes=0-" || !goesOn && ranges[len(ranges)-1] != "" {
				t.Errorf("%s: requests for the layer had ranges %q, want the second to go on where the first was cut", kind, ranges)
			}
		})
	}
}

func TestPullsOutlastARegistryThatIsBusy(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway} {
		d := newDepot(t)
		image := d.push(t, "app:1", simpleImage(t, "x"))
		d.intercept(only("/blobs/", respond(status, 3)))
		if err := newPuller(t).Pull(t.Context(), image, false); err != nil {
			t.Errorf("Pull from a registry that answers %d at first: %v", status, err)
		}
	}
}

func TestImagesNobodyCanUseAreRefused(t *testing.T) {
	p := newPuller(t)
	for _, image := range []*mesosv1.Image{
		nil, {}, docker(""), docker("UPPER"), docker("a b"), docker("http://"), docker("x:y:z"), docker("example.com/"), {Type: mesosv1.Image_APPC.Enum()},
	} {
		if _, _, err := p.ProvisionImage(t.Context(), "a", image); err == nil {
			t.Errorf("ProvisionImage(%v): got no error", image)
		}
	}
	wantEmpty(t, p.dir("containers"))
	d := newDepot(t)
	small := newPuller(t, func(c *Config) { c.MaxSize = 4 << 10 })
	image := d.push(t, "big:1", imageWith(t, layerOf(t, file{name: "zeros", body: strings.Repeat("\x00", 1<<20)})))
	if err := small.Pull(t.Context(), image, false); err == nil || !strings.Contains(err.Error(), "larger than allowed") {
		t.Errorf("Pull of what unpacks to more than is allowed: got %v, want it refused", err)
	}
	wantNothingLeft(t, small)
}

// A line that is cut again and again brings a large image in the end, as long as it gets further.
func TestAPullThatGetsFurtherIsNotGivenUp(t *testing.T) {
	n := newNoisy(t, 12<<20)
	d := newDepot(t)
	image := d.push(t, "app:1", n.image)
	cuts := 0 // of one connection after the other
	d.intercept(only("/blobs/"+digestOf(t, n.layer), func(w http.ResponseWriter, r *http.Request) bool {
		var from int
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err != nil {
			from = 0
		}
		const atOnce = 3 << 19
		w.Header().Set("Content-Length", fmt.Sprint(len(n.blob)-from))
		if from > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(n.blob)-1, len(n.blob)))
			w.WriteHeader(http.StatusPartialContent)
		}
		if from+atOnce >= len(n.blob) {
			_, _ = w.Write(n.blob[from:])
			return true
		}
		cuts++
		_, _ = w.Write(n.blob[from : from+atOnce])
		panic(http.ErrAbortHandler)
	}))
	p := newPuller(t)
	rootfs, _, err := p.ProvisionImage(t.Context(), "a", docker(image))
	if err != nil || read(t, rootfs, "data") != n.noise {
		t.Fatalf("ProvisionImage: %v", err)
	}
	if cuts <= pullTries {
		t.Errorf("the line was cut %d times, want more than the %d tries of a pull that gets nowhere", cuts, pullTries)
	}
}
