// Command hook-hello is the smallest hook that does something: it adds a variable to each container's environment.
package main

import (
	"context"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	hookv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/hook/v1"
)

func main() { module.Serve(newModule()) }

// config is what an operator may set in the module's config block.
type config struct {
	Value string `hcl:"value,optional" doc:"Value of the variable SITE."`
}

type hook struct {
	hookv1.UnimplementedHookServer
	config *module.Config[config]
}

func newModule() *hook {
	return &hook{config: module.NewConfig(config{Value: "here"}, nil)}
}

// Info is what the host knows of the module before it runs. Calls names the points at which the hook wants to be called.
func (h *hook) Info() module.Info {
	return module.Info{
		Kind: "hook", Name: "hello", Version: "1.0.0", Doc: "tells containers where they are",
		Calls: []string{"decorate_environment"}, Config: h.config,
	}
}

// DecorateEnvironment gives variables to add before a container is created.
func (h *hook) DecorateEnvironment(context.Context, *hookv1.DecorateEnvironmentRequest) (*hookv1.DecorateEnvironmentResponse, error) {
	return &hookv1.DecorateEnvironmentResponse{Environment: map[string]string{"SITE": h.config.Get().Value}}, nil
}
