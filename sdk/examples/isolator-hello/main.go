// Command isolator-hello is the smallest isolator that does something: it adds a greeting to each container's
// environment. What is not here is done by sdk/module or may be left out.
package main

import (
	"context"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

func main() { module.Serve(newModule()) }

// config is what an operator may set in the module's config block.
type config struct {
	Greeting string `hcl:"greeting,optional" doc:"Value of the variable HELLO."`
}

type isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config *module.Config[config]
}

func newModule() *isolator {
	return &isolator{config: module.NewConfig(config{Greeting: "world"}, nil)}
}

// Info is what the host knows of the module before it runs.
func (i *isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "hello", Version: "1.0.0", Doc: "greets each container by its environment",
		Powers: []string{"environment"}, Nesting: true, Standalone: true, Config: i.config,
	}
}

// Recover is told what lives. This module remembers nothing, so it only listens to the end.
func (i *isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	for {
		if _, err := s.Recv(); err != nil {
			return s.SendAndClose(&isolatorv1.RecoverResponse{})
		}
	}
}

// Prepare proposes what the container shall get; the agent applies it.
func (i *isolator) Prepare(context.Context, *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	return &isolatorv1.PrepareResponse{Proposal: &containerv1.Proposal{
		Environment: map[string]string{"HELLO": i.config.Get().Greeting},
	}}, nil
}

// Cleanup takes back what Prepare did to the machine, which is nothing.
func (i *isolator) Cleanup(context.Context, *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	return &isolatorv1.CleanupResponse{}, nil
}
