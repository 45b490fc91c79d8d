package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// registryPage is what the image of the tests' registry serves.
const registryPage = "hello from a container\n"

// imageRegistry starts a registry of its own for the test and returns the name of its image.
func imageRegistry(t *testing.T, args ...string) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a busybox to make an image of: " + err.Error())
	}
	if out, err := exec.CommandContext(t.Context(), "ldd", busybox).CombinedOutput(); err == nil {
		t.Skipf("needs a static busybox: %s", out)
	}
	program := filepath.Join(t.TempDir(), "registry")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./registry")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the registry: %v\n%s", err, out)
	}
	cmd := exec.Command(program, append([]string{"-busybox", busybox, "-page", registryPage}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the registry ended: %v", err)
	}
	return strings.TrimSpace(line)
}

// imagesOf are the names of the images that the agent has, and the large files in its folder for them.
func imagesOf(t *testing.T, c *cluster.Cluster) (names []string, files []string) {
	t.Helper()
	var list []struct{ Name string }
	r := mosaic(t, c, 0, "image", "ls", "-o", "json")
	if err := json.Unmarshal([]byte(r.Stdout), &list); err != nil {
		t.Fatalf("image ls -o json: %v\n%s", err, r.Stdout)
	}
	for _, image := range list {
		names = append(names, image.Name)
	}
	err := filepath.WalkDir(filepath.Join(c.Dir, "agent", "images"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // it is being removed
		}
		// What is smaller is the store's bookkeeping; larger ones of that are its indexes.
		if info, err := d.Info(); err == nil && info.Size() > 64<<10 && filepath.Ext(path) != ".db" {
			files = append(files, fmt.Sprintf("%s (%d bytes)", path, info.Size()))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names, files
}

func TestAnImageThatCannotBeHadFailsItsTaskWithTheReason(t *testing.T) {
	needRoot(t)
	image := imageRegistry(t)
	private := imageRegistry(t, "-user", "carol", "-password", "open sesame")
	host := strings.TrimSuffix(image, "/web:latest")
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 110*time.Second)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "images", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 1, 512)
	if err != nil {
		t.Fatal(err)
	}
	var tasks []*mesosv1.TaskInfo
	var ids []string
	wants := map[string][]string{}
	for _, test := range []struct {
		id, image string
		wants     []string
	}{
		{"unknown", host + "/nobody-made-this:latest", []string{"nobody-made-this", "not found"}},
		{"no-such-digest", host + "/web@sha256:" + strings.Repeat("0", 64), []string{"web@sha256:0000", "not found"}},
		{"forged", host + "/forged:latest", []string{"forged:latest", "digest"}},
		{"truncated", host + "/truncated:latest", []string{"truncated:latest", "given up after"}},
		{"unauthorized", private, []string{private, "the registry refuses: unauthorized"}},
		{"no-registry", "127.0.0.1:1/web:latest", []string{"127.0.0.1:1/web", "connection refused"}},
		{"no-name", "Not/A:Name:At all", []string{"Not/A:Name:At all"}},
	} {
		tasks = append(tasks, imageTask(o, test.id, test.image, nil))
		ids = append(ids, test.id)
		wants[test.id] = test.wants
	}
	if err := f.Launch(ctx, o, tasks...); err != nil {
		t.Fatal(err)
	}
	got, err := f.State(ctx, ids, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_RUNNING)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		s := got[id].Status
		t.Logf("%s: %s %s %s", id, s.GetState(), s.GetReason(), s.GetMessage())
		if s.GetState() != mesosv1.TaskState_TASK_FAILED {
			t.Errorf("%s: %s, want TASK_FAILED", id, s.GetState())
		}
		for _, want := range wants[id] {
			if !strings.Contains(s.GetMessage(), want) {
				t.Errorf("%s: the reason is %q, want it to contain %q", id, s.GetMessage(), want)
			}
		}
	}
	if names, files := imagesOf(t, c); len(names) > 0 || len(files) > 0 {
		t.Errorf("images that could not be had left %v, %v", names, files)
	}
	if err := f.Enough(ctx); err != nil {
		t.Fatal(err)
	}
	// The same registry gives what is whole.
	if r := mosaic(t, c, 0, "run", "--image", image, "--mem", "64", "--", "/bin/cat", "/www/index.html"); r.Stdout != registryPage {
		t.Errorf("a sound image ran with %q, want %q", r.Stdout, registryPage)
	}
	if names, files := imagesOf(t, c); len(names) != 1 || !strings.Contains(names[0], host) || len(files) == 0 {
		t.Errorf("after a sound image there are %v, %v; want that one", names, files)
	}
	mosaic(t, c, 0, "image", "prune")
	if names, files := imagesOf(t, c); len(names) > 0 || len(files) > 0 {
		t.Errorf("image prune left %v, %v", names, files)
	}
}

func TestAnAgentHasCredentialsForAPrivateRegistry(t *testing.T) {
	needRoot(t)
	image := imageRegistry(t, "-user", "carol", "-password", "open sesame")
	host, _, _ := strings.Cut(image, "/")
	folder := t.TempDir()
	credentials := func(name, password string) string {
		auth := base64.StdEncoding.EncodeToString([]byte("carol:" + password))
		file := filepath.Join(folder, name)
		if err := os.WriteFile(file, fmt.Appendf(nil, `{"auths": {%q: {"auth": %q}}}`, host, auth), 0o600); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("agent {\n  docker_config = %q\n}\n", file)
	}
	wrong := start(t, cluster.Options{Composition: credentials("wrong.json", "open barley")})
	r := mosaic(t, wrong, 125, "run", "-v", "--image", image, "--mem", "64", "--", "/bin/cat", "/www/index.html")
	if !strings.Contains(r.Stderr, "the registry refuses") {
		t.Errorf("with a wrong password: %q, want the registry's refusal", r.Stderr)
	}
	if strings.Contains(r.Stderr, "barley") {
		t.Errorf("the password is told: %q", r.Stderr)
	}
	right := start(t, cluster.Options{Composition: credentials("right.json", "open sesame")})
	if r := mosaic(t, right, 0, "run", "--image", image, "--mem", "64", "--", "/bin/cat", "/www/index.html"); r.Stdout != registryPage {
		t.Errorf("with the right password: %q, want %q", r.Stdout, registryPage)
	}
}

func TestAnAgentAsksACredentialHelper(t *testing.T) {
	needRoot(t)
	image := imageRegistry(t, "-user", "carol", "-password", "open sesame")
	host, _, _ := strings.Cut(image, "/")
	folder := t.TempDir()
	for name, script := range map[string]string{
		"knows":   fmt.Sprintf("read registry\n[ \"$1 $registry\" = 'get %s' ] && echo '{\"Username\":\"carol\",\"Secret\":\"open sesame\"}'\n", host),
		"refuses": "echo 'this machine has no role'\nexit 1\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	with := func(helper string) *cluster.Cluster {
		config := filepath.Join(folder, helper+".json")
		if err := os.WriteFile(config, fmt.Appendf(nil, `{"credHelpers": {%q: %q}}`, host, helper), 0o600); err != nil {
			t.Fatal(err)
		}
		return start(t, cluster.Options{
			Composition: fmt.Sprintf("agent {\n  docker_config = %q\n}\n", config), Env: []string{"PATH=" + folder + ":" + os.Getenv("PATH")},
		})
	}
	if r := mosaic(t, with("knows"), 0, "run", "--image", image, "--mem", "64", "--", "/bin/cat", "/www/index.html"); r.Stdout != registryPage {
		t.Errorf("with a helper: %q, want %q", r.Stdout, registryPage)
	}
	r := mosaic(t, with("refuses"), 125, "run", "--image", image, "--mem", "64", "--", "/bin/cat", "/www/index.html")
	if !strings.Contains(r.Stderr, "docker-credential-refuses") || !strings.Contains(r.Stderr, "this machine has no role") {
		t.Errorf("with a helper that refuses: %q, want what it says", r.Stderr)
	}
}
