package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func openStore(t *testing.T, path string) *Store {
	t.Helper()
	s, err := OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func checkpoint(id string, pid int32) *containerv1.Checkpoint {
	return &containerv1.Checkpoint{Container: &containerv1.Container{Id: id, Generation: 1}, Pid: pid, Phase: containerv1.Checkpoint_RUNNING}
}

func TestContainersAreThereAfterReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "checkpoints.db")
	s := openStore(t, path)
	ctx := t.Context()
	for _, cp := range []*containerv1.Checkpoint{checkpoint("a", 1), checkpoint("b", 2), checkpoint("a", 3)} {
		if err := s.PutContainer(ctx, cp); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"b", "never there"} {
		if err := s.DeleteContainer(ctx, id); err != nil {
			t.Errorf("DeleteContainer(%q) = %v", id, err)
		}
	}
	if err := s.PutContainer(ctx, &containerv1.Checkpoint{}); err == nil {
		t.Error("a checkpoint without id was taken")
	}
	s.Close()
	got, err := openStore(t, path).Containers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]*containerv1.Checkpoint{checkpoint("a", 3)}, got, protocmp.Transform()); diff != "" {
		t.Errorf("Containers after reopening (-want +got):\n%s", diff)
	}
}

func TestWritersShareCommitsAndKeepTheirOrder(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	gate := make(chan struct{})
	var sizes []int
	s.beforeCommit = func(n int, ops []op) error {
		if n == 1 {
			<-gate
		}
		sizes = append(sizes, len(ops))
		return nil
	}
	const n = 500
	var mu sync.Mutex
	var order []int
	var all sync.WaitGroup
	for i := range n {
		all.Add(1)
		s.submit([]op{{bucketTasks, fmt.Appendf(nil, "%04d", i), []byte("x")}}, func(err error) {
			defer all.Done()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			order = append(order, i)
		})
	}
	close(gate)
	all.Wait()
	if len(sizes) > 3 {
		t.Errorf("%d commits of sizes %v for writes that waited together, want at most 3", len(sizes), sizes)
	}
	for i, got := range order {
		if got != i {
			t.Fatalf("write %d was reported as number %d", got, i)
		}
	}
}

func TestAfterAFailedWriteNothingIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	full := errors.New("no space left on device")
	s.beforeCommit = func(n int, _ []op) error {
		if n == 2 {
			return full
		}
		return nil
	}
	ctx := t.Context()
	if err := s.PutContainer(ctx, checkpoint("a", 1)); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"b", "c"} {
		if err := s.PutContainer(ctx, checkpoint(id, 1)); !errors.Is(err, full) {
			t.Errorf("PutContainer(%s) = %v, want %v", id, err, full)
		}
	}
	s.Close()
	got, err := openStore(t, path).Containers(ctx)
	if err != nil || len(got) != 1 || got[0].GetContainer().GetId() != "a" {
		t.Errorf("Containers = %v, %v, want a", got, err)
	}
}

func TestCloseWritesWhatIsQueued(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	for i := range 100 {
		s.submit([]op{{bucketContainers, fmt.Appendf(nil, "%d", i), []byte{}}}, func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
	if err := s.PutContainer(t.Context(), checkpoint("late", 1)); !errors.Is(err, ErrStoreClosed) {
		t.Errorf("PutContainer after Close = %v, want ErrStoreClosed", err)
	}
	if got, err := openStore(t, path).Containers(t.Context()); err != nil || len(got) != 100 {
		t.Errorf("%d containers, %v, want 100", len(got), err)
	}
}

func TestWriteEndsWithItsContext(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	gate := make(chan struct{})
	s.beforeCommit = func(int, []op) error {
		<-gate
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if err := s.PutContainer(ctx, checkpoint("a", 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("PutContainer = %v, want the context's end", err)
	}
	close(gate)
}

func TestStoreThatCannotBeOpenedSaysWhich(t *testing.T) {
	synctest.Test(t, storeThatCannotBeOpened) // waiting for the lock costs nothing
}

func storeThatCannotBeOpened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	openStore(t, path)
	if _, err := OpenStore(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("OpenStore of an open file = %v, want its name and the reason", err)
	}
	damaged := filepath.Join(t.TempDir(), "damaged")
	if err := os.WriteFile(damaged, []byte(strings.Repeat("no database\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(damaged); err == nil || !strings.Contains(err.Error(), damaged) {
		t.Errorf("OpenStore of a damaged file = %v, want its name", err)
	}
}

// Every record but those of Mesos's messages alone.
func FuzzRecordsAreReadOrRefused(f *testing.F) {
	p := progress{container: "c", generation: 2, started: time.Unix(3, 4), kill: time.Unix(5, 6), grace: 7, expired: true, draining: true, order: 8}
	f.Add(p.encode())
	r := executorRecord{info: &mesosv1.ExecutorInfo{ExecutorId: &mesosv1.ExecutorID{Value: new("e")}}, container: "c", generation: 1, launched: true, shutdown: true}
	b, err := r.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	if b, err = encodeUpdate(status("t", mesosv1.TaskState_TASK_RUNNING), true); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := decodeProgress(b); err == nil {
			again, err := decodeProgress(p.encode())
			if err != nil || again != p {
				t.Errorf("progress %+v reads back as %+v, %v", p, again, err)
			}
		}
		if r, err := decodeExecutor(b); err == nil && r.info.GetExecutorId() != nil {
			if _, err := r.encode(); err != nil {
				t.Errorf("executor %+v: %v", r, err)
			}
		}
		_, _, _ = decodeUpdate(b)
	})
}

func BenchmarkPut(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			s, err := OpenStore(filepath.Join(b.TempDir(), "db"))
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			b.SetParallelism(writers)
			var n int
			var mu sync.Mutex
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					mu.Lock()
					n++
					k := n
					mu.Unlock()
					if err := s.put(b.Context(), []op{{bucketUpdates, fmt.Appendf(nil, "%08d", k%1000), make([]byte, 500)}}); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(s.commits)/float64(b.N), "commits/op")
		})
	}
}

func TestLazyWritesGoWithTheNextOneOrAfterAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, filepath.Join(t.TempDir(), "db"))
		defer s.Close()
		var sizes []int
		s.beforeCommit = func(_ int, ops []op) error {
			sizes = append(sizes, len(ops))
			return nil
		}
		began := time.Now()
		var written time.Duration
		lazy := func() {
			s.submitLazily([]op{{bucketTasks, []byte("k"), []byte("v")}}, func(error) { written = time.Since(began) })
		}
		lazy()
		lazy()
		synctest.Wait()
		if len(sizes) != 0 {
			t.Errorf("commits before anything is urgent: %v, want none", sizes)
		}
		if err := s.put(t.Context(), []op{{bucketTasks, []byte("k"), []byte("w")}}); err != nil {
			t.Fatal(err)
		}
		if len(sizes) != 1 || sizes[0] != 3 || written != 0 {
			t.Errorf("commits %v after %v, want one of 3 at once", sizes, written)
		}
		for range 3 { // each within the time of the first: it does not begin anew
			lazy()
			time.Sleep(lazyDelay / 4)
		}
		time.Sleep(lazyDelay / 4)
		synctest.Wait()
		if len(sizes) != 2 || sizes[1] != 3 || written != lazyDelay {
			t.Errorf("commits %v, the last after %v, want a second one of 3 after %v", sizes, written, lazyDelay)
		}
	})
}
