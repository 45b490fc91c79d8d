package containerizer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	containerloggerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/containerlogger/v1"
)

// A ContainerLogger says where a container's output goes. *modulehost.ContainerLogger is one.
//
// It is asked once, before the container is created. Files are written, and rotated, by the container's shim, and pipes
// are read by helpers (helper.go): what runs needs neither the logger nor the agent any more.
type ContainerLogger interface {
	Prepare(ctx context.Context, r *containerloggerv1.PrepareRequest) (*containerloggerv1.PrepareResponse, error)
}

// UseLogger replaces the container logger; nil means plain files in the sandbox. Containers that run go on as they are.
func (c *Containerizer) UseLogger(l ContainerLogger) {
	c.logging.mu.Lock()
	defer c.logging.mu.Unlock()
	c.logging.logger = l
}

// askLogger begins to ask the container logger where the output of a container goes. The answer is waited for by what it
// returns; nil stands for the files of the sandbox. The container must be furnished.
//
// A logger that cannot be asked costs a warning and means those files. One that refuses what the container itself asked
// for fails the launch.
func (c *Containerizer) askLogger(ctx context.Context, ct *container) func() (*containerloggerv1.PrepareResponse, error) {
	c.logging.mu.Lock()
	logger := c.logging.logger
	c.logging.mu.Unlock()
	if logger == nil {
		return func() (*containerloggerv1.PrepareResponse, error) { return nil, nil }
	}
	spec := ct.spec
	var answer *containerloggerv1.PrepareResponse
	var err error
	done := make(chan struct{})
	c.wg.Go(func() {
		defer close(done)
		ask, cancel := context.WithTimeout(ctx, createTimeout)
		defer cancel()
		answer, err = logger.Prepare(ask, &containerloggerv1.PrepareRequest{Container: spec})
	})
	return func() (*containerloggerv1.PrepareResponse, error) {
		<-done
		switch {
		case err != nil && (status.Code(err) == codes.InvalidArgument || ctx.Err() != nil):
			return nil, err // the host names the module
		case err != nil:
			c.log.Warn("container logs to plain files", "container", ct.id, "error", err)
			return nil, nil
		}
		return answer, nil
	}
}

// direct says in r, which has the files of the sandbox by now, where the output of a container goes by the container
// logger's word. It returns the helpers to start when the container is created, before its command runs, numbered from
// first.
func (c *Containerizer) direct(ct *container, r *launcher.Request, answer *containerloggerv1.PrepareResponse, first int) (helpers []*helper, err error) {
	if answer == nil {
		return nil, nil
	}
	helpers = c.newHelpers(ct.id, "container_logger", first, answer.GetHelpers())
	stdout, stderr := r.Stdout, r.Stderr
	if r.Stdout, r.StdoutRotation, err = c.sink(ct.spec, answer.GetStdout(), stdout, helpers); err != nil {
		return nil, fmt.Errorf("container_logger: stdout: %w", err)
	}
	if r.Stderr, r.StderrRotation, err = c.sink(ct.spec, answer.GetStderr(), stderr, helpers); err != nil {
		return nil, fmt.Errorf("container_logger: stderr: %w", err)
	}
	for _, h := range helpers {
		r.Pumped = r.Pumped || h.rec.Stdin != ""
	}
	return helpers, nil
}

// minRotation is the least size at which a file is rotated, Mesos's: below it the agent would do nothing else.
const minRotation = 4096

// sink is the path of one output, where plain is that of its file in the sandbox, and how it is rotated.
func (c *Containerizer) sink(spec *containerv1.Container, s *containerloggerv1.Sink, plain string, helpers []*helper) (string, launcher.Rotation, error) {
	rotation := launcher.Rotation{Size: s.GetRotateBytes(), Keep: s.GetKeep()}
	if rotation.Size > 0 {
		rotation.Size = max(rotation.Size, minRotation)
	}
	switch to := s.GetSink().(type) {
	case *containerloggerv1.Sink_Path:
		at := filepath.Clean(to.Path)
		rel, err := filepath.Rel(spec.GetSandbox(), at)
		if err != nil || !filepath.IsLocal(rel) {
			return at, rotation, nil
		}
		// Folders of a sandbox are the container's, who may put links there.
		if rel == "." || strings.ContainsRune(rel, filepath.Separator) {
			return "", rotation, fmt.Errorf("path %q: want a file in the sandbox itself, or outside of it", to.Path)
		}
		return filepath.Dir(plain) + "/" + rel, rotation, nil
	case *containerloggerv1.Sink_Helper:
		for _, h := range helpers {
			if h.rec.Name == to.Helper {
				return h.pipe(), launcher.Rotation{}, h.makePipe()
			}
		}
		return "", rotation, fmt.Errorf("helper %q is not among its helpers", to.Helper)
	}
	return plain, rotation, nil
}

// makePipe makes the pipe that the helper reads, unless it is there. The container's shim opens it, as the agent's user.
func (h *helper) makePipe() error {
	if h.rec.Stdin != "" {
		return nil // the other stream's too
	}
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mkfifo(h.pipe(), 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkfifo", Path: h.pipe(), Err: err}
	}
	h.rec.Stdin = h.pipe()
	return nil
}
