package oci

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
)

// held makes a pipe as a runtime does, and lets act play the process behind it once the pipe has a
// reader.
func held(t *testing.T, act func(name string)) (name string, wait func()) {
	t.Helper()
	name = filepath.Join(t.TempDir(), "exec.fifo")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		act(name)
	}()
	return name, func() { <-done }
}

// TestCommandThatEndsAtOnceHasStarted: it wrote to the pipe and ended before anyone looked.
func TestCommandThatEndsAtOnceHasStarted(t *testing.T) {
	for range 200 {
		ended := make(chan struct{})
		name, wait := held(t, func(name string) {
			if err := os.WriteFile(name, []byte("0"), 0); err != nil { // opens when there is a reader
				t.Error(err)
			}
			close(ended)
		})
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := releaseFifo(ctx, name, ended); err != nil {
			t.Fatalf("releaseFifo = %v, want nil: the process wrote before it ended", err)
		}
		cancel()
		wait()
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the pipe is there after the start: %v", err)
		}
	}
}

func TestProcessThatEndsWithoutWritingHasNotStarted(t *testing.T) {
	ended := make(chan struct{})
	name, wait := held(t, func(string) { close(ended) })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := releaseFifo(ctx, name, ended); !errors.Is(err, launcher.ErrEnded) {
		t.Errorf("releaseFifo = %v, want ErrEnded", err)
	}
	wait()
}

func TestReleaseEndsWithItsContext(t *testing.T) {
	name, wait := held(t, func(string) {})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := releaseFifo(ctx, name, make(chan struct{})); !errors.Is(err, context.Canceled) {
		t.Errorf("releaseFifo = %v, want that its context was cancelled", err)
	}
	wait()
}
