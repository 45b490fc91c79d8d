package module

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

// The handshake of every module, in go-plugin's terms. It never changes: versions are those of the gRPC services.
const (
	cookieKey   = "MOSAIC_MODULE"
	cookieValue = "mosaic.module.v1"
	protocol    = 1
	pluginName  = "module"
)

// Serve is a module's whole main. It returns when the host has gone or has told the module to end; it ends the program
// when it was not started by a host.
func Serve(m Module) {
	if os.Getenv(cookieKey) != cookieValue {
		info := m.Info()
		fmt.Fprintf(os.Stderr, "This is the %s %q of Mosaic (version %s): %s\n"+
			"It is not run by hand. Name it in a composition:\n\n  %s %q {\n    command = %q\n  }\n",
			info.Kind, info.Name, info.Version, info.Doc, info.Kind, info.Name, os.Args[0])
		os.Exit(2)
	}
	// A host that dies takes the reading end of our error stream with it: a log line must not kill us before we
	// have noticed.
	signal.Ignore(syscall.SIGPIPE)
	go exitWithHost()

	// go-plugin sends what is printed through a stream of its own, which blocks when nobody reads it. Prints belong
	// into the log, so both streams are set back to the real standard error at the first call.
	realErr := os.Stderr
	var once sync.Once
	restore := func() { once.Do(func() { os.Stdout, os.Stderr = realErr, realErr }) }
	intercept := grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		restore()
		return h(ctx, req)
	})
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{ProtocolVersion: protocol, MagicCookieKey: cookieKey, MagicCookieValue: cookieValue},
		Plugins:         map[string]plugin.Plugin{pluginName: registered{}},
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return newServer(m, append(opts, intercept)...)
		},
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: realErr, JSONFormat: true}),
	})
}

// registered is the plugin that go-plugin wants to see; NewServer has registered everything before.
type registered struct{ plugin.NetRPCUnsupportedPlugin }

func (registered) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

func (registered) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this side serves")
}

// exitWithHost ends the program when standard input ends: the host holds the other end for as long as it lives. A
// standard input that is no pipe says nothing.
func exitWithHost() {
	info, err := os.Stdin.Stat()
	if err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// Main is the main of a binary with many modules: the first argument says which, as "isolator/cgroups".
func Main(modules map[string]func() Module) {
	names := slices.Sorted(maps.Keys(modules))
	if len(os.Args) == 2 {
		if build, ok := modules[os.Args[1]]; ok {
			Serve(build())
			return
		}
	}
	fmt.Fprintf(os.Stderr, "usage: %s MODULE\nThe modules of this bundle:\n", os.Args[0])
	for _, n := range names {
		fmt.Fprintf(os.Stderr, "  %-32s %s\n", n, modules[n]().Info().Doc)
	}
	os.Exit(2)
}

// NewLogger returns a logger whose lines the host takes over with level and fields.
func NewLogger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
