package modulehost

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// isolatorV1 speaks mosaic.isolator.v1, which is the newest: nothing to lift but the stream of Recover.
type isolatorV1 struct{ client isolatorv1.IsolatorClient }

func liftIsolatorV1(conn grpc.ClientConnInterface) any {
	return isolatorV1{isolatorv1.NewIsolatorClient(conn)}
}

func (i isolatorV1) Recover(ctx context.Context, pages [][]*isolatorv1.ContainerRecord) (*isolatorv1.RecoverResponse, error) {
	stream, err := i.client.Recover(ctx)
	if err != nil {
		return nil, err
	}
	for _, page := range pages {
		if err := stream.Send(&isolatorv1.RecoverRequest{Containers: page}); err != nil {
			if errors.Is(err, io.EOF) {
				break // the module has answered already; CloseAndRecv tells what
			}
			return nil, fmt.Errorf("send page: %w", err)
		}
	}
	return stream.CloseAndRecv()
}

func (i isolatorV1) Prepare(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	return i.client.Prepare(ctx, r)
}

func (i isolatorV1) Isolate(ctx context.Context, r *isolatorv1.IsolateRequest) (*isolatorv1.IsolateResponse, error) {
	return i.client.Isolate(ctx, r)
}

func (i isolatorV1) Update(ctx context.Context, r *isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
	return i.client.Update(ctx, r)
}

func (i isolatorV1) Validate(ctx context.Context, r *isolatorv1.ValidateRequest) (*isolatorv1.ValidateResponse, error) {
	return i.client.Validate(ctx, r)
}

func (i isolatorV1) Usage(ctx context.Context, r *isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error) {
	return i.client.Usage(ctx, r)
}

func (i isolatorV1) Status(ctx context.Context, r *isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error) {
	return i.client.Status(ctx, r)
}

func (i isolatorV1) Cleanup(ctx context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	return i.client.Cleanup(ctx, r)
}
