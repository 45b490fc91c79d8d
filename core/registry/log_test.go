package registry

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/zap"
)

func TestEtcdsWarningsAreHandedOnBounded(t *testing.T) {
	var out bytes.Buffer
	l := newZap(slog.New(slog.NewTextHandler(&out, nil)))
	l.Info("not this")
	l.Warn("Running http and grpc server on single port. Nor this")
	l.With(zap.String("b", "2")).Warn("apply request took too long", zap.String("request", strings.Repeat("x", 1<<20)), zap.Int("a", 1))
	got := out.String()
	if strings.Contains(got, "this") || !strings.Contains(got, "a=1 b=2 request=xxx") || len(got) > 2*maxField {
		t.Errorf("logged %d bytes: %.600s", len(got), got)
	}
	defer func() {
		if r := recover(); r != "disk: gone" {
			t.Errorf("a fatal error panics with %v, want its text", r)
		}
	}()
	l.Fatal("disk", zap.String("error", "gone"))
}
