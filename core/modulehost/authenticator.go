package modulehost

import (
	"context"
	"errors"

	"google.golang.org/grpc"

	authenticatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authenticator/v1"
)

type authenticatorCalls interface {
	Authenticate(ctx context.Context, r *authenticatorv1.AuthenticateRequest) (*authenticatorv1.AuthenticateResponse, error)
}

type authenticatorV1 struct {
	client authenticatorv1.AuthenticatorClient
}

func liftAuthenticatorV1(conn grpc.ClientConnInterface) any {
	return authenticatorV1{authenticatorv1.NewAuthenticatorClient(conn)}
}

func (a authenticatorV1) Authenticate(ctx context.Context, r *authenticatorv1.AuthenticateRequest) (*authenticatorv1.AuthenticateResponse, error) {
	return a.client.Authenticate(ctx, r)
}

// Authenticator says who sent a request. Whatever goes wrong with its module is an error, never a principal.
type Authenticator struct{ m *module }

// Authenticator gives the authenticator of the composition; nil if there is none.
func (h *Host) Authenticator() *Authenticator {
	if ms := h.ofKind(KindAuthenticator); len(ms) > 0 {
		return &Authenticator{ms[0]}
	}
	return nil
}

// Authenticate asks who sent a request. On an error the caller answers 503.
func (a *Authenticator) Authenticate(ctx context.Context, r *authenticatorv1.AuthenticateRequest) (*authenticatorv1.AuthenticateResponse, error) {
	return call(ctx, a.m, request{name: "Authenticate"}, func(ctx context.Context, c authenticatorCalls) (*authenticatorv1.AuthenticateResponse, error) {
		return c.Authenticate(ctx, r)
	}, checkAuthenticate)
}

func checkAuthenticate(_ *life, r *authenticatorv1.AuthenticateResponse) error {
	if r.GetResult() == nil {
		return errors.New("no result")
	}
	if p := r.GetPrincipal(); p != nil && p.Value == nil && len(p.GetClaims()) == 0 {
		return errors.New("a principal without value and claims")
	}
	return nil
}
