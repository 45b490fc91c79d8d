package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// Tasks of a group have an image each, and one network: that of their executor.
func TestTasksOfAGroupHaveImagesOfTheirOwnAndOneNetwork(t *testing.T) {
	needBridge(t)
	image := imageRegistry(t)
	c := start(t, cluster.Options{Dev: true})
	busybox, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Skip("needs a busybox to make an image of: " + err.Error())
	}
	root := t.TempDir()
	for name, data := range map[string][]byte{"bin/busybox": busybox, "which": []byte("the other image\n")} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), data, 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	if err := os.Symlink("busybox", filepath.Join(root, "bin/sh")); err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(t.TempDir(), "group.yaml")
	text := fmt.Sprintf(`
executor:
  container:
    type: MESOS
    network_infos: [{name: mosaic}]
task_group:
  tasks:
  - name: server
    command: {value: "httpd -f -h /www -p 80"}
    container: {type: MESOS, mesos: {image: {type: DOCKER, docker: {name: %q}}}}
  - name: client
    command: {value: "busybox cat /which; until busybox wget -q -O - http://127.0.0.1/; do busybox sleep 0.1; done; exit 7"}
    container: {type: MESOS, mesos: {image: {type: DOCKER, docker: {name: %q}}}}
`, image, root)
	if err := os.WriteFile(group, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := mosaic(t, c, 7, "run", "--group", group)
	for _, want := range []string{"client | the other image", "client | hello from a container"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("the group printed %q, want %q in it", r.Stdout, want)
		}
	}
}
