package containerizer

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func intended(id, state string) *containerv1.Checkpoint {
	return &containerv1.Checkpoint{
		Container: &containerv1.Container{Id: id}, Phase: containerv1.Checkpoint_PREPARING,
		Modules: []*containerv1.ModuleState{{Module: "a", State: []byte(state)}},
	}
}

func reopen(t *testing.T, path string) (*intents, map[string]string) {
	t.Helper()
	i, list, err := openIntents(path)
	if err != nil {
		t.Fatalf("openIntents: %v", err)
	}
	t.Cleanup(func() {
		if err := i.close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Errorf("close: %v", err)
		}
	})
	found := map[string]string{}
	for _, cp := range list {
		found[cp.GetContainer().GetId()] = string(cp.GetModules()[0].GetState())
	}
	return i, found
}

func TestIntentsAreFoundAgainCutAnywhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "intents")
	i, _ := reopen(t, path)
	want := []map[string]string{{}}
	sizes := []int64{0}
	state := map[string]string{}
	step := func(cp *containerv1.Checkpoint) {
		if err := i.write(cp); err != nil {
			t.Fatalf("write: %v", err)
		}
		want, sizes = append(want, maps.Clone(state)), append(sizes, i.size)
	}
	for n := range 6 {
		id := fmt.Sprint("c", n%4)
		state[id] = fmt.Sprint(n)
		step(intended(id, fmt.Sprint(n)))
		if n%2 == 1 {
			delete(state, id)
			step(&containerv1.Checkpoint{Container: &containerv1.Container{Id: id}})
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) + 1 {
		file := filepath.Join(t.TempDir(), "intents")
		if err := os.WriteFile(file, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		at := 0
		for at+1 < len(sizes) && sizes[at+1] <= int64(cut) {
			at++
		}
		again, found := reopen(t, file)
		if !maps.Equal(found, want[at]) {
			t.Fatalf("cut at byte %d: got %v, want %v", cut, found, want[at])
		}
		// What is written after such a death is found, too.
		if err := again.write(intended("later", "x")); err != nil {
			t.Fatalf("write: %v", err)
		}
		if _, found := reopen(t, file); found["later"] != "x" || len(found) != len(want[at])+1 {
			t.Fatalf("cut at byte %d, then written: got %v, want %v and the later one", cut, found, want[at])
		}
	}
}

func TestIntentsStaySmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "intents")
	i, _ := reopen(t, path)
	big := strings.Repeat("x", 60<<10)
	if err := i.write(intended("stays", "s")); err != nil {
		t.Fatal(err)
	}
	for n := range 300 {
		id := fmt.Sprint("c", n)
		if err := i.write(intended(id, big)); err != nil {
			t.Fatal(err)
		}
		if err := i.write(&containerv1.Checkpoint{Container: &containerv1.Container{Id: id}}); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Size() > compactAt+100<<10 || info.Size() != i.size {
		t.Errorf("file: got %d bytes and %d counted, %v, want the same, at most about %d", info.Size(), i.size, err, compactAt)
	}
	if _, found := reopen(t, path); !maps.Equal(found, map[string]string{"stays": "s"}) {
		t.Errorf("intents: got %v, want the one that stays", slices.Collect(maps.Keys(found)))
	}
}

func FuzzIntents(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 20))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "intents")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		i, _, err := openIntents(path)
		if err != nil {
			t.Fatalf("openIntents: got %v, want garbage to be left behind", err)
		}
		if err := i.close(); err != nil {
			t.Error(err)
		}
	})
}
