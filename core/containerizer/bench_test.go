package containerizer

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// BenchmarkIdentify is the look-up of a host user that each launch makes.
func BenchmarkIdentify(b *testing.B) {
	c := &Containerizer{cfg: Config{SwitchUser: true}}
	for b.Loop() {
		if _, err := c.identify("nobody", ""); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLaunchOwnCost is a whole life of a container without modules, launcher and disk: what remains is ours.
func BenchmarkLaunchOwnCost(b *testing.B) {
	m := &machine{processes: map[string]*process{}, disk: map[string][]byte{}}
	dir := b.TempDir()
	c, err := New(Config{Launchers: []launcher.Launcher{&fakeLauncher{m: m, name: "fake"}}, Store: fakeStore{m}, RunDir: filepath.Join(dir, "run"), BootID: "x"})
	if err != nil {
		b.Fatal(err)
	}
	shell, value := false, "/bin/true"
	for n := 0; b.Loop(); n++ {
		id := fmt.Sprintf("c%d", n)
		if _, err := c.Launch(b.Context(), &containerv1.Container{
			Id: id, Generation: 1, Command: &mesosv1.CommandInfo{Shell: &shell, Value: &value}, Sandbox: filepath.Join(dir, "s", id),
		}); err != nil {
			b.Fatal(err)
		}
		m.exit(id, 0)
		if _, err := c.Wait(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		if err := c.Forget(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
	if err := c.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
}
