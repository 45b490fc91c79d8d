// Command secret-resolver-hello is the smallest secret resolver that resolves something: references name files of one
// folder.
package main

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	secretresolverv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/secretresolver/v1"
)

func main() { module.Serve(newModule()) }

// maxSecret is what the contract allows.
const maxSecret = 1 << 20

// config is what an operator may set in the module's config block.
type config struct {
	Folder string `hcl:"folder,optional" doc:"Folder with a file for each secret."`
}

type resolver struct {
	secretresolverv1.UnimplementedSecretResolverServer
	config *module.Config[config]
}

func newModule() *resolver {
	return &resolver{config: module.NewConfig(config{Folder: "/etc/mosaic/secrets"}, nil)}
}

// Info is what the host knows of the module before it runs.
func (r *resolver) Info() module.Info {
	return module.Info{Kind: "secret_resolver", Name: "hello", Version: "1.0.0", Doc: "reads secrets from files", Config: r.config}
}

// Resolve gives the value behind a reference.
func (r *resolver) Resolve(_ context.Context, q *secretresolverv1.ResolveRequest) (*secretresolverv1.ResolveResponse, error) {
	root, err := os.OpenRoot(r.config.Get().Folder) // a reference cannot lead out of it
	if err != nil {
		return nil, module.FailedPrecondition("open the folder of secrets: %v", err)
	}
	defer root.Close()
	name := q.GetSecret().GetReference().GetName()
	data, err := root.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, status.Errorf(codes.NotFound, "there is no secret %q", name)
	case err != nil:
		return nil, module.InvalidArgument("secret %q: %v", name, err)
	case len(data) > maxSecret:
		return nil, module.FailedPrecondition("secret %q has %d bytes, want at most %d", name, len(data), maxSecret)
	}
	return &secretresolverv1.ResolveResponse{Data: data}, nil
}
