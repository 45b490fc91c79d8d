package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	change "github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// registryBefore is a registry in this process behind a handler that sees requests first, and may answer them itself.
func registryBefore(t *testing.T, first func(w http.ResponseWriter, r *http.Request, next http.Handler)) (host string) {
	t.Helper()
	quiet := log.New(io.Discard, "", 0)
	next := ggcr.New(ggcr.Logger(quiet))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			first(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}))
	server.Config.ErrorLog = quiet
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.Listener.Addr().String()
}

func pushTo(t *testing.T, host, repository string, what any) string {
	t.Helper()
	ref, err := name.NewTag(host+"/"+repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	switch w := what.(type) {
	case v1.Image:
		err = remote.Write(ref, w)
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, w)
	}
	if err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
	return ref.Name()
}

// noise does not get smaller when it is compressed.
func noise(t *testing.T, size int) []byte {
	t.Helper()
	b := make([]byte, size)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// wantNoTraceOfImages fails unless the agent has nothing of any image: no content, no half of a fetch, no unpacked layer, no
// root filesystem and no mount. It stops the agent to look at the leases, which the agent keeps to itself.
func wantNoTraceOfImages(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	dir := filepath.Join(c.Dir, "agent", "images")
	for _, sub := range []string{"store/content/ingest", "store/content/blobs/sha256", "store/layers/snapshots", "images", "containers", "tmp"} {
		eventually(t, "nothing is in "+sub, 20*time.Second, func() bool {
			entries, err := os.ReadDir(filepath.Join(dir, sub))
			return os.IsNotExist(err) || err == nil && len(entries) == 0
		})
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir+"/") {
			t.Errorf("a mount is left: %s", line)
		}
	}
	if err := c.StopAgent(); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, "store", "meta.db")
	if _, err := os.Stat(store); os.IsNotExist(err) {
		return
	}
	db, err := bolt.Open(store, 0o600, &bolt.Options{ReadOnly: true, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("v1"))
		for _, name := range []string{"mosaic", "leases"} {
			if b != nil {
				b = b.Bucket([]byte(name))
			}
		}
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, _ []byte) error { return fmt.Errorf("lease %s is left", k) })
	})
	if err != nil {
		t.Error(err)
	}
}

// failed launches a task from each image and returns what their failures say.
func failed(ctx context.Context, t *testing.T, f *cluster.Framework, images map[string]string) map[string]string {
	t.Helper()
	o, err := f.Offer(ctx, 1, 512)
	if err != nil {
		t.Fatal(err)
	}
	var tasks []*mesosv1.TaskInfo
	var ids []string
	for id, image := range images {
		ids = append(ids, id)
		tasks = append(tasks, imageTask(o, id, image, nil))
	}
	if err := f.Launch(ctx, o, tasks...); err != nil {
		t.Fatal(err)
	}
	got, err := f.State(ctx, ids, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_FINISHED)
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for _, id := range ids {
		s := got[id].Status
		if s.GetState() != mesosv1.TaskState_TASK_FAILED || s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED {
			t.Errorf("%s: %s %s %s, want TASK_FAILED by REASON_CONTAINER_LAUNCH_FAILED", id, s.GetState(), s.GetReason(), s.GetMessage())
		}
		t.Logf("%s: %s", id, s.GetMessage())
		said[id] = s.GetMessage()
	}
	return said
}

func TestImagesForOtherMachinesSaySo(t *testing.T) {
	needRoot(t)
	checked := newCheckedImage(t)
	host := registryBefore(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "images", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	other := assemble(t, ociForm, layerTar(t, []entry{{name: "of", mode: 0o644, data: []byte("another machine")}}))
	config, err := other.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.Architecture = "s390x"
	if other, err = change.ConfigFile(other, config); err != nil {
		t.Fatal(err)
	}
	list := change.AppendManifests(empty.Index,
		change.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		change.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "riscv64"}}})
	// It says that it is for this machine, and its programs are not: the first bytes of one for another.
	strange := bytes.Clone(checked.inside)
	strange[18], strange[19] = 22, 0 // e_machine: S390
	lies := assemble(t, ociForm, layerTar(t, []entry{{name: "bin/", mode: 0o755}, {name: "bin/sh", mode: 0o755, data: strange}}))
	said := failed(ctx, t, f, map[string]string{
		"alone": pushTo(t, host, "alone:1", other),
		"list":  pushTo(t, host, "list:1", list),
		"lies":  pushTo(t, host, "lies:1", lies),
	})
	for id, wants := range map[string][]string{
		"alone": {"alone:1", "image has nothing for linux/amd64: got linux/s390x"},
		"list":  {"list:1", "image has nothing for linux/amd64: got linux/s390x, linux/riscv64"},
		"lies":  {"/bin/sh", "exec format error"},
	} {
		for _, want := range wants {
			if !strings.Contains(said[id], want) {
				t.Errorf("%s: the reason is %q, want it to contain %q", id, said[id], want)
			}
		}
	}
	if err := f.Enough(ctx); err != nil {
		t.Fatal(err)
	}
	sound := pushTo(t, host, "sound:1", checked.small(t, ociForm, "sound"))
	if r := mosaic(t, c, 0, "run", "--image", sound, "--mem", "128"); r.Stdout != verdict {
		t.Errorf("a sound image of the same registry ran with %q", r.Stdout)
	}
	prune(t, c)
	wantNoTraceOfImages(t, c)
}

// imagesOnADiskOf puts the images of a cluster that has not begun on a disk of their own, of a size.
func imagesOnADiskOf(t *testing.T, c *cluster.Cluster, size string) {
	t.Helper()
	disk := filepath.Join(c.Dir, "agent", "images")
	if err := os.MkdirAll(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("no small disk: %v", err)
	}
	t.Cleanup(func() {
		// The cluster stops after this; its agent may hold files of the disk until then.
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
}

func TestAFullDiskFailsTheTaskAndTheNextPullWorks(t *testing.T) {
	needRoot(t)
	checked := newCheckedImage(t)
	host := registryBefore(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
	big := func(size int) v1.Image {
		return assemble(t, ociForm, layerTar(t, []entry{{name: "noise", mode: 0o644, data: noise(t, size)}}))
	}
	c := prepare(t, cluster.Options{})
	imagesOnADiskOf(t, c, "24m")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	f, err := cluster.Subscribe(ctx, c.Master, "images", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	for id, said := range failed(ctx, t, f, map[string]string{
		"too-large-to-fetch":  pushTo(t, host, "large:1", big(32<<20)),
		"too-large-to-unpack": pushTo(t, host, "larger:1", big(15<<20)),
	}) {
		if !strings.Contains(said, "no space left on the agent's disk") {
			t.Errorf("%s: the reason is %q, want that there is no space left", id, said)
		}
	}
	if err := f.Enough(ctx); err != nil {
		t.Fatal(err)
	}
	sound := pushTo(t, host, "sound:1", checked.small(t, ociForm, "sound"))
	if r := mosaic(t, c, 0, "run", "--image", sound, "--mem", "128"); r.Stdout != verdict {
		t.Errorf("an image that fits ran with %q", r.Stdout)
	}
	prune(t, c)
	wantNoTraceOfImages(t, c)
}

// stallPiece is the time between two pieces of a slow registry's answer.
const stallPiece = 300 * time.Millisecond

// stallComposition has pulls end that bring nothing for three seconds.
const stallComposition = `
agent {
  fetcher_stall_timeout = "3s"
}
`

func TestARegistryThatHangsFailsTheTask(t *testing.T) {
	needRoot(t)
	checked := newCheckedImage(t)
	hang := make(chan struct{})
	defer close(hang)
	wait := func(r *http.Request) {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}
	host := registryBefore(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v2/mute/"):
			wait(r)
		case strings.HasPrefix(r.URL.Path, "/v2/halfway/blobs/"):
			r.Header.Del("Range")
			whole := httptest.NewRecorder()
			next.ServeHTTP(whole, r)
			body := whole.Body.Bytes()
			if len(body) < 1<<20 {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:len(body)/2])
			_ = http.NewResponseController(w).Flush()
			wait(r)
		default:
			next.ServeHTTP(w, r)
		}
	})
	// Somebody who takes connections and never says a word.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := start(t, cluster.Options{Composition: stallComposition})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "images", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	for id, said := range failed(ctx, t, f, map[string]string{
		"mute":    host + "/mute/app:1",
		"halfway": pushTo(t, host, "halfway:1", checked.small(t, ociForm, "halfway")),
		"nobody":  l.Addr().String() + "/app:1",
	}) {
		if !strings.Contains(said, "the registry stalled") {
			t.Errorf("%s: the reason is %q, want that the registry stalled", id, said)
		}
	}
	// A task that waits for its image is killed at once.
	o, err := f.Offer(ctx, 1, 512)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Launch(ctx, o, imageTask(o, "impatient", host+"/mute/other:1", nil)); err != nil {
		t.Fatal(err)
	}
	agent := operator.NewAgent(c.Agent)
	eventually(t, "the pull has begun", 20*time.Second, func() bool {
		pulls, err := agent.Pulls(ctx)
		return err == nil && slices.ContainsFunc(pulls, func(p operator.Pull) bool { return strings.Contains(p.Name, "/mute/other") })
	})
	if err := f.Client().Kill(ctx, &mesosv1.TaskID{Value: proto.String("impatient")}, o.GetAgentId()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(ctx, []string{"impatient"}, mesosv1.TaskState_TASK_KILLED); err != nil {
		t.Fatal(err)
	}
	wantNoTraceOfImages(t, c)
}

func TestASlowRegistryIsWaitedForAndItsProgressSeen(t *testing.T) {
	needRoot(t)
	checked := newCheckedImage(t)
	host := registryBefore(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		whole := httptest.NewRecorder()
		next.ServeHTTP(whole, r)
		for key, values := range whole.Header() {
			w.Header()[key] = values
		}
		w.WriteHeader(whole.Code)
		// Longer in all than what a silent one is given, in pieces that come sooner.
		const pieces = 20
		body := whole.Body.Bytes()
		for size := len(body)/pieces + 1; len(body) > 64<<10; body = body[min(size, len(body)):] {
			_, _ = w.Write(body[:min(size, len(body))])
			_ = http.NewResponseController(w).Flush()
			time.Sleep(stallPiece)
		}
		_, _ = w.Write(body)
	})
	c := start(t, cluster.Options{Composition: stallComposition})
	image := pushTo(t, host, "slow:1", checked.small(t, ociForm, "slow"))
	began := time.Now()
	r := mosaic(t, c, 0, "run", "--image", image, "--mem", "128")
	if took := time.Since(began); r.Stdout != verdict || took < 3*time.Second {
		t.Errorf("after %s the task from a slow registry said %q, want %q after more than the time that a silent one is given", took, r.Stdout, verdict)
	}
	if !strings.Contains(r.Stderr, " downloading ") || !strings.Contains(r.Stderr, image+": done") {
		t.Errorf("mosaic run told of the pull %q, want its progress", r.Stderr)
	}
}
