// Command daemonmodule is an isolator whose containers are served by a process of their own, as those of a network file
// system would be: a helper, which the agent runs. Who reads /served/pid in a container is told the helper's pid.
//
// It promises what an isolator with helpers has to: its answer to Prepare can be given again, Isolate waits until the
// helper is ready, and Cleanup takes away what Prepare and the helper made, also for containers it never saw.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// place is where containers see what is served.
const place = "/served"

func main() {
	if len(os.Args) == 3 && os.Args[1] == "serve" {
		if err := serve(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	module.Serve(newModule())
}

// serve is the helper: it writes its pid for each reader of a pipe.
func serve(dir string) error {
	pipe := filepath.Join(dir, "pid")
	if err := unix.Mkfifo(pipe, 0o644); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make pipe %s: %w", pipe, err)
	}
	for {
		f, err := os.OpenFile(pipe, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(f, os.Getpid())
		if err := errors.Join(err, f.Close()); err != nil && !errors.Is(err, unix.EPIPE) {
			return err
		}
		time.Sleep(50 * time.Millisecond) // else one reader may be given two answers
	}
}

type config struct {
	Dir  string `hcl:"dir,optional" doc:"Folder in which each container has one of its own."`
	Once bool   `hcl:"once,optional" doc:"A helper that ends takes its container along."`
}

type isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config *module.Config[config]
}

func newModule() *isolator {
	return &isolator{config: module.NewConfig(config{Dir: os.TempDir()}, nil)}
}

// Info describes the module.
func (i *isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "daemon", Version: "1.0.0", Doc: "serves each container by a helper",
		Calls: []string{"isolate"}, Powers: []string{"helpers", "mounts"}, Nesting: true, Standalone: true, Config: i.config,
	}
}

// Recover remembers nothing: what there is follows from ids.
func (i *isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	for {
		if _, err := s.Recv(); err != nil {
			return s.SendAndClose(&isolatorv1.RecoverResponse{})
		}
	}
}

func (i *isolator) dir(id string) string { return filepath.Join(i.config.Get().Dir, "daemon-"+id) }

// Prepare makes the container's folder and asks for its mount and for the helper.
func (i *isolator) Prepare(_ context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	dir := i.dir(r.GetContainer().GetId())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, module.FailedPrecondition("%v", err)
	}
	program, err := os.Executable()
	if err != nil {
		return nil, module.FailedPrecondition("%v", err)
	}
	return &isolatorv1.PrepareResponse{
		Proposal: &containerv1.Proposal{Mounts: []*containerv1.Mount{{Destination: place, Source: dir, Type: "bind", Options: []string{"bind", "ro"}}}},
		Helpers:  []*containerv1.Helper{{Name: "serve", Argv: []string{program, "serve", dir}, Restart: !i.config.Get().Once}},
	}, nil
}

// Isolate waits for the helper's pipe.
func (i *isolator) Isolate(ctx context.Context, r *isolatorv1.IsolateRequest) (*isolatorv1.IsolateResponse, error) {
	pipe := filepath.Join(i.dir(r.GetRecord().GetContainer().GetId()), "pid")
	for {
		if _, err := os.Stat(pipe); err == nil {
			return &isolatorv1.IsolateResponse{}, nil
		}
		select {
		case <-ctx.Done():
			return nil, module.FailedPrecondition("the helper does not come up: %s is not there", pipe)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Cleanup removes the folder.
func (i *isolator) Cleanup(_ context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	if err := os.RemoveAll(i.dir(r.GetRecord().GetContainer().GetId())); err != nil {
		return nil, module.FailedPrecondition("%v", err)
	}
	return &isolatorv1.CleanupResponse{}, nil
}
