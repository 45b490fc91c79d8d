// Command rival is an isolator that wants what another has: a pid namespace for every container.
package main

import (
	"context"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

type rival struct {
	isolatorv1.UnimplementedIsolatorServer
}

func (rival) Info() module.Info {
	return module.Info{Kind: "isolator", Name: "rival", Version: "1.0.0", Doc: "wants every container's pid namespace", Powers: []string{"namespaces"}}
}

func (rival) Recover(s isolatorv1.Isolator_RecoverServer) error {
	for {
		if _, err := s.Recv(); err != nil {
			return s.SendAndClose(&isolatorv1.RecoverResponse{})
		}
	}
}

func (rival) Prepare(context.Context, *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	return &isolatorv1.PrepareResponse{Proposal: &containerv1.Proposal{
		Namespaces: []*containerv1.Namespace{{Type: containerv1.Namespace_PID}},
	}}, nil
}

func (rival) Cleanup(context.Context, *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	return &isolatorv1.CleanupResponse{}, nil
}

func main() { module.Serve(rival{}) }
