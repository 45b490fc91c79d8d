package kit

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/mosaic-cluster/mosaic/sdk/module"
)

// InProcess serves a fresh instance of a module within this process at each dial. Cases that need a process of its own
// are skipped.
func InProcess[M module.Module](build func() M) Dial {
	return func(context.Context) (grpc.ClientConnInterface, func() bool, error) {
		l := bufconn.Listen(1 << 20)
		s := module.NewServer(build())
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		conn, err := grpc.NewClient("passthrough:///module", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(2*maxMessage)),
			grpc.WithDisableServiceConfig(), grpc.WithIdleTimeout(0))
		if err != nil {
			s.Stop()
			_ = <-served
			return nil, nil, err
		}
		return conn, func() bool {
			_ = conn.Close()
			s.Stop()
			_ = <-served
			return true
		}, nil
	}
}
