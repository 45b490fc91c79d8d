package containerizer

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
)

func TestRealNestedContainersWithImagesShareMemoryThatIsNotTheMachines(t *testing.T) {
	r := newRig(t, separate(newMachine(t)))
	image := busyboxImage(t, r)
	c := r.start(t)
	defer func() { stopAgent(t, c) }()
	root := r.container("root", "exec sleep 1000") // with an ipc namespace of its own, on the machine's files
	if _, err := c.Launch(launchertest.Context(t), root); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	name := filepath.Base(r.env.Root)
	writer := r.child(root, "writer", image, "echo kept > /dev/shm/"+name+" && exec sleep 1000")
	if _, err := c.Launch(launchertest.Context(t), writer); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	reads := func(id string) {
		t.Helper()
		// Programs are not run from there.
		reader := r.child(root, id, image, `until [ -e /dev/shm/`+name+` ]; do sleep 0.05; done
[ "$(cat /dev/shm/`+name+`)" = kept ] || exit 2
busybox cp /bin/busybox /dev/shm/program && ! /dev/shm/program true`)
		if _, err := c.Launch(launchertest.Context(t), reader); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		succeeds(t, c, reader)
	}
	reads("first")
	stopAgent(t, c)
	c = r.start(t)
	if _, err := c.Recover(t.Context(), []string{root.Id, writer.Id, "root.first"}); err != nil {
		t.Fatal(err)
	}
	reads("second") // what the last agent made
	if _, err := os.Stat("/dev/shm/" + name); err == nil {
		t.Error("what a container wrote is in the machine's /dev/shm")
		os.Remove("/dev/shm/" + name)
	}
	r.takenDown(t, c, root)
}
