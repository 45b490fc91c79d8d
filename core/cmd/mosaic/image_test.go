package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

func TestImagesAreShownPulledAndPruned(t *testing.T) {
	images := []operator.Image{
		{Name: "docker.io/library/alpine:3", Digest: "sha256:1", Size: 8 << 20, Layers: 1, Pulled: time.Now(), UsedBy: []string{"c1", "c2"}},
		{Name: "docker.io/library/busybox:1", Digest: "sha256:2", Size: 4 << 20, Layers: 1, Pulled: time.Now()},
	}
	layer := func(state string, done int64) []operator.Layer {
		return []operator.Layer{{Digest: "sha256:0123456789abcdef", State: state, Done: done, Total: 1 << 20}}
	}
	var asked operator.PullRequest
	mux := http.NewServeMux()
	mux.HandleFunc("GET /mosaic/v1/images", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(images) })
	mux.HandleFunc("POST /mosaic/v1/images/pull", func(w http.ResponseWriter, r *http.Request) {
		asked = operator.PullRequest{}
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Errorf("pull: %v", err)
		}
		p := operator.Pull{Name: asked.Name, State: operator.PullDownloading, Layers: layer(operator.PullDownloading, 1<<19)}
		_ = json.NewEncoder(w).Encode(p)
		_ = json.NewEncoder(w).Encode(p)
		p.State, p.Layers, p.Started, p.Digest = operator.PullDone, layer(operator.PullDone, 1<<20), time.Now(), "sha256:3"
		if asked.Name == "bad" {
			p.State, p.Error = operator.PullFailed, "the registry refuses:\nunauthorized"
		}
		_ = json.NewEncoder(w).Encode(p)
	})
	mux.HandleFunc("POST /api/v1", func(http.ResponseWriter, *http.Request) { images = images[:1] })
	server := httptest.NewServer(mux)
	defer server.Close()
	agent := strings.TrimPrefix(server.URL, "http://")

	out, _, err := execute(t, "image", "ls", "--agent", agent)
	if err != nil || !strings.Contains(out, "docker.io/library/alpine:3") || !strings.Contains(out, "8.0 MiB") || !strings.Contains(out, "USED BY") {
		t.Errorf("image ls: %v\n%s", err, out)
	}
	out, _, err = execute(t, "image", "ls", "--agent", agent, "-o", "json")
	var rows []operator.Image
	if err != nil || json.Unmarshal([]byte(out), &rows) != nil || len(rows) != 2 || rows[0].UsedBy[1] != "c2" {
		t.Errorf("image ls -o json: %v\n%s", err, out)
	}
	out, _, err = execute(t, "image", "pull", "--agent", agent, "alpine")
	want := "alpine: downloading\n  0123456789ab downloading 1.0 MiB\nalpine: done sha256:3 in "
	if err != nil || !strings.HasPrefix(out, want) || !strings.Contains(out, "  0123456789ab done") || asked != (operator.PullRequest{Name: "alpine", Fresh: true}) {
		t.Errorf("image pull: %v, asked %v\n%s\nwant\n%s", err, asked, out, want)
	}
	out, _, err = execute(t, "image", "pull", "--agent", agent, "--cached", "-o", "json", "alpine")
	if err != nil || strings.Count(out, "\n") != 3 || asked.Fresh {
		t.Errorf("image pull -o json: %v, asked %v\n%s", err, asked, out)
	}
	out, _, err = execute(t, "image", "pull", "--agent", agent, "bad")
	if err == nil || !strings.Contains(err.Error(), "pull bad: the registry refuses") || !strings.Contains(out, "bad: failed: the registry refuses:") {
		t.Errorf("image pull that fails: %v\n%s", err, out)
	}
	out, _, err = execute(t, "image", "prune", "--agent", agent, "--exclude", "alpine:3")
	if err != nil || !strings.Contains(out, "busybox:1") || strings.Contains(out, "alpine") {
		t.Errorf("image prune: %v\n%s", err, out)
	}
}

func TestPullsAreDrawnWithinTheTerminal(t *testing.T) {
	p := operator.Pull{Name: "registry.example.com/a/b:1", State: operator.PullDownloading}
	for n := range 40 {
		p.Layers = append(p.Layers, operator.Layer{
			Digest: fmt.Sprintf("sha256:%064d", n), State: operator.PullDownloading, Done: int64(n), Total: 39,
		})
	}
	rows := pullRows(p, 60)
	if len(rows) != 1+maxBars+1 || rows[len(rows)-1] != "  and 28 more layers" {
		t.Errorf("rows: got %d, the last %q, want %d and the rest counted", len(rows), rows[len(rows)-1], maxBars+2)
	}
	for _, r := range rows {
		if len([]rune(r)) >= 60 {
			t.Errorf("row %q is as wide as the terminal", r)
		}
	}
	for _, c := range []struct {
		done, total int64
		want        string
	}{{0, 0, "[    ]"}, {1, 2, "[==  ]"}, {9, 2, "[====]"}} {
		if got := bar(c.done, c.total, 4); got != c.want {
			t.Errorf("bar(%d, %d) = %q, want %q", c.done, c.total, got, c.want)
		}
	}
	if got := pullRows(operator.Pull{Name: "x", State: operator.PullFailed, Error: "bad\x1b[2J\ntext"}, 80)[0]; got != "x: failed: bad?[2J text" {
		t.Errorf("row: got %q, want nothing in it that moves the cursor", got)
	}
	var drawn strings.Builder
	v := &pullView{w: &drawn, width: 80}
	v.tell(p)
	v.tell(p)
	if n := strings.Count(drawn.String(), fmt.Sprintf("\x1b[%dA\x1b[J", maxBars+2)); n != 1 {
		t.Errorf("drawn: %q, want the second over the first", drawn.String())
	}
}
