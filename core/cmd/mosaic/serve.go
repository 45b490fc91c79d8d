package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/soheilhy/cmux"
	"google.golang.org/grpc"
)

const (
	// headerTimeout is how long a client may take for its request's head; a slow one must not hold a connection for ever.
	headerTimeout = 10 * time.Second
	// idleTimeout closes connections that clients keep without use.
	idleTimeout = 2 * time.Minute
	// maxHeader bounds a request's head. Mesos's clients send a few hundred bytes.
	maxHeader = 64 << 10
	// shutdownTimeout is what calls in flight get when a daemon ends; streams are cut.
	shutdownTimeout = 2 * time.Second
)

// listen opens a daemon's one port.
func listen(addr, flag string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s (--%s chooses another): %w", addr, flag, err)
	}
	return l, nil
}

// checkExposure refuses to listen for the world without saying so: there is no TLS and no authentication yet.
func checkExposure(l net.Listener, insecure bool, flag string) error {
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok || addr.IP.IsLoopback() || insecure {
		return nil
	}
	return fmt.Errorf("--%s %s is reachable from outside, and whoever reaches it may run commands here: "+
		"listen on loopback, or accept that with --insecure (insecure = true)", flag, addr)
}

// serve answers HTTP, and gRPC if there is a server for it, on one port until ctx ends.
func serve(ctx context.Context, l net.Listener, h http.Handler, rpc *grpc.Server, log *slog.Logger) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 3)
	servers := 1
	web := l
	if rpc != nil {
		// gRPC begins with HTTP/2's preface; everything else here is HTTP/1.
		mux := cmux.New(l)
		mux.SetReadTimeout(headerTimeout)
		rpcListener := mux.Match(cmux.HTTP2())
		web = mux.Match(cmux.Any())
		servers = 3
		go func() { ended <- rpc.Serve(rpcListener) }()
		go func() { ended <- mux.Serve() }()
	}
	go func() { ended <- srv.Serve(web) }()

	var err error
	select {
	case <-ctx.Done():
	case err = <-ended:
		servers--
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if srv.Shutdown(stop) != nil {
		_ = srv.Close()
	}
	if rpc != nil {
		rpc.Stop()
	}
	_ = l.Close()
	for range servers {
		_ = <-ended
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// newLogger logs text lines from level on. With a file, all from level on goes there and only warnings to w.
func newLogger(w io.Writer, level string) (*slog.Logger, *slog.LevelVar, error) {
	v := &slog.LevelVar{}
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, nil, &exitError{exitUsage, fmt.Errorf("log level: got %q, want debug, info, warn or error", level)}
	}
	v.Set(l)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: v})), v, nil
}

// discard is a logger for those who need none.
func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// absolute makes a work directory's path absolute and the folder itself.
func absolute(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("work directory %s: %w", dir, err)
	}
	if err := os.MkdirAll(abs, 0o755); err != nil {
		return "", fmt.Errorf("make the work directory: %w", err)
	}
	return abs, nil
}

// runDir is the folder for sockets that belongs to a work directory: short, in memory where there is such a place, and
// the same after a restart.
func runDir(workDir string) string {
	sum := sha256.Sum256([]byte(workDir))
	base := "/run/mosaic"
	if os.Geteuid() != 0 {
		base = filepath.Join(envOr("XDG_RUNTIME_DIR", fmt.Sprintf("/tmp/mosaic-%d", os.Getuid())), "mosaic")
	}
	return filepath.Join(base, hex.EncodeToString(sum[:4]))
}

// makeRunDir makes the folder for sockets and refuses one that somebody else may have put there first.
func makeRunDir(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make the folder for sockets: %w", err)
	}
	for _, d := range []string{filepath.Dir(dir), dir} {
		info, err := os.Lstat(d)
		if err != nil {
			return fmt.Errorf("folder for sockets: %w", err)
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !info.IsDir() || !ok || int(stat.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
			return fmt.Errorf("folder for sockets %s: want it to be ours alone (owner uid %d, not writable by others)", d, os.Geteuid())
		}
	}
	return nil
}

// self is the path of this program.
func self() (string, error) {
	path, err := os.Executable()
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	return path, nil
}

// beside is the path of a program that lies next to this one.
func beside(name string) (string, error) {
	self, err := self()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s must lie beside %s: %w", name, filepath.Base(self), err)
	}
	return path, nil
}

// moduleDir is where packages of modules put their programs, unless the operator names another folder.
const moduleDir = "/usr/lib/mosaic/modules"

// programDirs are where a module has its program that the bundle does not hold: beside this program, and in the
// operator's folder.
func programDirs(folder string) ([]string, error) {
	self, err := self()
	if err != nil {
		return nil, err
	}
	if folder == "" {
		folder = moduleDir
	}
	return []string{filepath.Dir(self), folder}, nil
}
