// Command authenticator-hello is the smallest authenticator that recognises somebody: requests with the configured token
// come from the configured principal.
package main

import (
	"context"
	"crypto/subtle"
	"strings"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	authenticatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authenticator/v1"
)

func main() { module.Serve(newModule()) }

// config is what an operator may set in the module's config block.
type config struct {
	Token     string `hcl:"token,optional" doc:"Bearer token of the principal; without one nobody is recognised." sensitive:"true"`
	Principal string `hcl:"principal,optional" doc:"Who sends the token."`
}

type authenticator struct {
	authenticatorv1.UnimplementedAuthenticatorServer
	config *module.Config[config]
}

func newModule() *authenticator {
	return &authenticator{config: module.NewConfig(config{Principal: "operator"}, nil)}
}

// Info is what the host knows of the module before it runs.
func (a *authenticator) Info() module.Info {
	return module.Info{Kind: "authenticator", Name: "hello", Version: "1.0.0", Doc: "recognises one token", Config: a.config}
}

// Authenticate says who sent a request. Whoever is not recognised is asked to come again with a token.
func (a *authenticator) Authenticate(_ context.Context, r *authenticatorv1.AuthenticateRequest) (*authenticatorv1.AuthenticateResponse, error) {
	c := a.config.Get()
	token, ok := strings.CutPrefix(r.GetHeaders()["Authorization"], "Bearer ")
	if !ok || c.Token == "" || subtle.ConstantTimeCompare([]byte(token), []byte(c.Token)) == 0 {
		return &authenticatorv1.AuthenticateResponse{Result: &authenticatorv1.AuthenticateResponse_Unauthorized{
			Unauthorized: &authenticatorv1.Unauthorized{Challenges: []string{"Bearer realm=\"" + r.GetRealm() + "\""}},
		}}, nil
	}
	return &authenticatorv1.AuthenticateResponse{Result: &authenticatorv1.AuthenticateResponse_Principal{
		Principal: &authenticatorv1.Principal{Value: &c.Principal},
	}}, nil
}
