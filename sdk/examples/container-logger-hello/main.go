// Command container-logger-hello is the smallest container logger that logs somewhere: both streams go into one file of
// the sandbox, which is rotated.
package main

import (
	"context"
	"path"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerloggerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/containerlogger/v1"
)

func main() { module.Serve(newModule()) }

// config is what an operator may set in the module's config block.
type config struct {
	Size module.Size `hcl:"size,optional" doc:"Size at which the file is rotated; 0 is never."`
	Keep int         `hcl:"keep,optional" doc:"How many rotated files are kept." min:"0" max:"1000"`
}

type logger struct {
	containerloggerv1.UnimplementedContainerLoggerServer
	config *module.Config[config]
}

func newModule() *logger {
	return &logger{config: module.NewConfig(config{Size: 10 << 20, Keep: 3}, nil)}
}

// Info is what the host knows of the module before it runs.
func (l *logger) Info() module.Info {
	return module.Info{Kind: "container_logger", Name: "hello", Version: "1.0.0", Doc: "one rotated file for both streams", Config: l.config}
}

// Prepare says where a container's output goes. The agent opens the file, so that output goes on without this module.
func (l *logger) Prepare(_ context.Context, r *containerloggerv1.PrepareRequest) (*containerloggerv1.PrepareResponse, error) {
	sandbox := r.GetContainer().GetSandbox()
	if !path.IsAbs(sandbox) {
		return nil, module.InvalidArgument("sandbox: got %q, want an absolute path", sandbox)
	}
	c := l.config.Get()
	sink := &containerloggerv1.Sink{
		Sink: &containerloggerv1.Sink_Path{Path: path.Join(sandbox, "output")}, RotateBytes: uint64(c.Size), Keep: uint32(c.Keep),
	}
	return &containerloggerv1.PrepareResponse{Stdout: sink, Stderr: sink}, nil
}
