package modulehost

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"google.golang.org/grpc"

	containerloggerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/containerlogger/v1"
	hookv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/hook/v1"
	secretresolverv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/secretresolver/v1"
)

// The kinds beside isolators that a launch may ask: secret resolver, container logger, hooks.

type secretResolverCalls interface {
	Resolve(ctx context.Context, r *secretresolverv1.ResolveRequest) (*secretresolverv1.ResolveResponse, error)
}

type secretResolverV1 struct {
	client secretresolverv1.SecretResolverClient
}

func liftSecretResolverV1(conn grpc.ClientConnInterface) any {
	return secretResolverV1{secretresolverv1.NewSecretResolverClient(conn)}
}

func (s secretResolverV1) Resolve(ctx context.Context, r *secretresolverv1.ResolveRequest) (*secretresolverv1.ResolveResponse, error) {
	return s.client.Resolve(ctx, r)
}

// maxSecret is the size of a secret, by the contract.
const maxSecret = 1 << 20

// SecretResolver gives the values behind references. Failing means that the launch fails.
type SecretResolver struct{ m *module }

// SecretResolver gives the secret resolver of the composition; nil if there is none.
func (h *Host) SecretResolver() *SecretResolver {
	if ms := h.ofKind(KindSecretResolver); len(ms) > 0 {
		return &SecretResolver{ms[0]}
	}
	return nil
}

// Resolve gives the value behind a reference.
func (s *SecretResolver) Resolve(ctx context.Context, r *secretresolverv1.ResolveRequest) (*secretresolverv1.ResolveResponse, error) {
	return call(ctx, s.m, request{name: "Resolve"}, func(ctx context.Context, c secretResolverCalls) (*secretresolverv1.ResolveResponse, error) {
		return c.Resolve(ctx, r)
	}, func(_ *life, a *secretresolverv1.ResolveResponse) error {
		if len(a.GetData()) > maxSecret {
			return fmt.Errorf("secret of %d bytes, want at most %d", len(a.GetData()), maxSecret)
		}
		return nil
	})
}

type containerLoggerCalls interface {
	Prepare(ctx context.Context, r *containerloggerv1.PrepareRequest) (*containerloggerv1.PrepareResponse, error)
}

type containerLoggerV1 struct {
	client containerloggerv1.ContainerLoggerClient
}

func liftContainerLoggerV1(conn grpc.ClientConnInterface) any {
	return containerLoggerV1{containerloggerv1.NewContainerLoggerClient(conn)}
}

func (c containerLoggerV1) Prepare(ctx context.Context, r *containerloggerv1.PrepareRequest) (*containerloggerv1.PrepareResponse, error) {
	return c.client.Prepare(ctx, r)
}

// ContainerLogger says where a container's output goes. Failing means plain files, with a warning.
type ContainerLogger struct{ m *module }

// ContainerLogger gives the container logger of the composition; nil if there is none.
func (h *Host) ContainerLogger() *ContainerLogger {
	if ms := h.ofKind(KindContainerLogger); len(ms) > 0 {
		return &ContainerLogger{ms[0]}
	}
	return nil
}

// Prepare asks where the output of a container goes.
func (c *ContainerLogger) Prepare(ctx context.Context, r *containerloggerv1.PrepareRequest) (*containerloggerv1.PrepareResponse, error) {
	q := request{name: "Logger", container: r.GetContainer().GetId()}
	return call(ctx, c.m, q, func(ctx context.Context, l containerLoggerCalls) (*containerloggerv1.PrepareResponse, error) {
		return l.Prepare(ctx, r)
	}, checkSinks)
}

func checkSinks(_ *life, r *containerloggerv1.PrepareResponse) error {
	if err := checkHelpers(r.GetHelpers()); err != nil {
		return err
	}
	for _, sink := range []*containerloggerv1.Sink{r.GetStdout(), r.GetStderr()} {
		switch s := sink.GetSink().(type) {
		case *containerloggerv1.Sink_Path:
			if !path.IsAbs(s.Path) {
				return fmt.Errorf("sink %q, want an absolute path", cutText(s.Path, 256))
			}
		case *containerloggerv1.Sink_Helper:
			named := false
			for _, h := range r.GetHelpers() {
				named = named || h.GetName() == s.Helper
			}
			if !named {
				return fmt.Errorf("sink is the helper %q, which is not among its helpers", cutText(s.Helper, 64))
			}
		}
	}
	return nil
}

type hookCalls interface {
	DecorateEnvironment(ctx context.Context, r *hookv1.DecorateEnvironmentRequest) (*hookv1.DecorateEnvironmentResponse, error)
	DecorateLabels(ctx context.Context, r *hookv1.DecorateLabelsRequest) (*hookv1.DecorateLabelsResponse, error)
	DecorateStatus(ctx context.Context, r *hookv1.DecorateStatusRequest) (*hookv1.DecorateStatusResponse, error)
	Notify(ctx context.Context, r *hookv1.NotifyRequest) (*hookv1.NotifyResponse, error)
}

type hookV1 struct{ client hookv1.HookClient }

func liftHookV1(conn grpc.ClientConnInterface) any { return hookV1{hookv1.NewHookClient(conn)} }

func (h hookV1) DecorateEnvironment(ctx context.Context, r *hookv1.DecorateEnvironmentRequest) (*hookv1.DecorateEnvironmentResponse, error) {
	return h.client.DecorateEnvironment(ctx, r)
}

func (h hookV1) DecorateLabels(ctx context.Context, r *hookv1.DecorateLabelsRequest) (*hookv1.DecorateLabelsResponse, error) {
	return h.client.DecorateLabels(ctx, r)
}

func (h hookV1) DecorateStatus(ctx context.Context, r *hookv1.DecorateStatusRequest) (*hookv1.DecorateStatusResponse, error) {
	return h.client.DecorateStatus(ctx, r)
}

func (h hookV1) Notify(ctx context.Context, r *hookv1.NotifyRequest) (*hookv1.NotifyResponse, error) {
	return h.client.Notify(ctx, r)
}

// Hook decorates and is told at fixed points. One that fails is skipped by the caller, with a warning.
type Hook struct{ m *module }

// Hooks gives the hooks in the order of the composition.
func (h *Host) Hooks() []*Hook {
	var out []*Hook
	for _, m := range h.ofKind(KindHook) {
		out = append(out, &Hook{m})
	}
	return out
}

// Name gives its name in the composition.
func (h *Hook) Name() string { return h.m.cfg.Name }

// Wants says whether it declared a call: decorate_environment, decorate_labels, decorate_status, notify.
func (h *Hook) Wants(call string) bool { return slices.Contains(h.m.description().GetCalls(), call) }

// DecorateEnvironment asks for environment to add to a container.
func (h *Hook) DecorateEnvironment(ctx context.Context, r *hookv1.DecorateEnvironmentRequest) (*hookv1.DecorateEnvironmentResponse, error) {
	return call(ctx, h.m, request{name: "DecorateEnvironment"}, func(ctx context.Context, c hookCalls) (*hookv1.DecorateEnvironmentResponse, error) {
		return c.DecorateEnvironment(ctx, r)
	}, func(_ *life, a *hookv1.DecorateEnvironmentResponse) error {
		return errors.Join(checkEnvironment(a.GetEnvironment()), checkBounds(a.ProtoReflect(), ""))
	})
}

// DecorateLabels asks for the labels of a task.
func (h *Hook) DecorateLabels(ctx context.Context, r *hookv1.DecorateLabelsRequest) (*hookv1.DecorateLabelsResponse, error) {
	return call(ctx, h.m, request{name: "DecorateLabels"}, func(ctx context.Context, c hookCalls) (*hookv1.DecorateLabelsResponse, error) {
		return c.DecorateLabels(ctx, r)
	}, func(_ *life, a *hookv1.DecorateLabelsResponse) error { return checkBounds(a.ProtoReflect(), "") })
}

// DecorateStatus asks for what to add to a status update.
func (h *Hook) DecorateStatus(ctx context.Context, r *hookv1.DecorateStatusRequest) (*hookv1.DecorateStatusResponse, error) {
	return call(ctx, h.m, request{name: "DecorateStatus"}, func(ctx context.Context, c hookCalls) (*hookv1.DecorateStatusResponse, error) {
		return c.DecorateStatus(ctx, r)
	}, func(_ *life, a *hookv1.DecorateStatusResponse) error { return checkBounds(a.ProtoReflect(), "") })
}

// Notify tells that something happened.
func (h *Hook) Notify(ctx context.Context, r *hookv1.NotifyRequest) error {
	_, err := call(ctx, h.m, request{name: "Notify"}, func(ctx context.Context, c hookCalls) (*hookv1.NotifyResponse, error) {
		return c.Notify(ctx, r)
	}, unchecked)
	return err
}
