package registry

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newZap returns a logger for etcd that hands warnings and errors on, and turns what etcd
// thinks fatal into a panic, so that it can become an error with a name.
func newZap(to *slog.Logger) *zap.Logger {
	return zap.New(slogCore{to: to.With("component", "etcd")}, zap.WithFatalHook(fatal{}))
}

type slogCore struct {
	to     *slog.Logger
	fields []zapcore.Field
}

// maxField bounds what is logged of a value: etcd logs slow requests whole, which may be
// megabytes and hold labels that are nobody's business.
const maxField = 256

// chatter are warnings that say nothing about a member that is used as we use it.
var chatter = [...]string{
	"Running http and grpc server on single port",
	"serving insecure",
	"simple token is not cryptographically signed",
	"exceeded recommended request limit",
	"failed to apply request", // logged again, and returned, by the caller
	// Said once by a new member, which knows its version a moment later.
	"Failed to detect schema version",
	"failed to update storage version",
	"cannot campaign at term",
}

func (c slogCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{c.to, append(append([]zapcore.Field{}, c.fields...), fields...)}
}

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	for _, s := range chatter {
		if strings.Contains(e.Message, s) {
			return nil
		}
	}
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range append(append([]zapcore.Field{}, c.fields...), fields...) {
		f.AddTo(encoder)
	}
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	attrs := make([]slog.Attr, 0, len(encoder.Fields))
	for _, k := range slices.Sorted(maps.Keys(encoder.Fields)) {
		text := fmt.Sprint(encoder.Fields[k])
		if len(text) > maxField {
			text = strings.ToValidUTF8(text[:maxField], "") + "..."
		}
		attrs = append(attrs, slog.String(k, text))
	}
	c.to.LogAttrs(context.Background(), level, e.Message, attrs...)
	return nil
}

func (c slogCore) Sync() error { return nil }

// fatal panics where zap would end the process.
type fatal struct{}

func (fatal) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(encoder)
	}
	if reason, ok := encoder.Fields["error"]; ok {
		panic(fmt.Sprintf("%s: %v", e.Message, reason))
	}
	panic(e.Message)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
