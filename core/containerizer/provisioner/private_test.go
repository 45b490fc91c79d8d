package provisioner

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// withBasic asks for a user and a password.
func withBasic(user, password string) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); ok && u == user && p == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="depot"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

// withToken asks for a token, which it gives to a user with a password.
func withToken(host func() string, user, password string) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			u, p, ok := r.BasicAuth()
			if !ok || u != user || p != password || !strings.Contains(r.URL.Query().Get("scope"), "repository:private/app:pull") {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"token": "let-me-in", "expires_in": 300})
			return true
		}
		if r.Header.Get("Authorization") == "Bearer let-me-in" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="depot",scope="repository:private/app:pull"`, host()))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

func dockerConfig(host, user, password string) []byte {
	return fmt.Appendf(nil, `{"auths":{"http://%s/v1/":{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

func TestPrivateRegistriesAreToldWhoWeAre(t *testing.T) {
	for kind, guard := range map[string]func(d *depot) func(http.ResponseWriter, *http.Request) bool{
		"basic": func(*depot) func(http.ResponseWriter, *http.Request) bool { return withBasic("me", "pw") },
		"token": func(d *depot) func(http.ResponseWriter, *http.Request) bool {
			return withToken(func() string { return d.host }, "me", "pw")
		},
	} {
		t.Run(kind, func(t *testing.T) {
			d := newDepot(t)
			image := d.push(t, "private/app:1", simpleImage(t, "x"))
			d.intercept(guard(d))
			config := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(config, dockerConfig(d.host, "me", "pw"), 0o600); err != nil {
				t.Fatal(err)
			}
			secrets := func(_ context.Context, s *mesosv1.Secret) ([]byte, error) {
				return dockerConfig(d.host, "me", s.GetReference().GetName()), nil
			}
			withSecret := func(password string) *mesosv1.Image {
				i := docker(image)
				i.Docker.Config = &mesosv1.Secret{Type: mesosv1.Secret_REFERENCE.Enum(), Reference: &mesosv1.Secret_Reference{Name: &password}}
				return i
			}
			anonymous := newPuller(t, func(c *Config) { c.Secret = secrets })
			if _, _, err := anonymous.ProvisionImage(t.Context(), "a", docker(image)); !errors.Is(err, registry.ErrUnauthorized) {
				t.Errorf("ProvisionImage as nobody: got %v, want %v", err, registry.ErrUnauthorized)
			}
			if _, _, err := anonymous.ProvisionImage(t.Context(), "a", withSecret("wrong")); !errors.Is(err, registry.ErrUnauthorized) {
				t.Errorf("ProvisionImage with a wrong password: got %v, want %v", err, registry.ErrUnauthorized)
			} else if strings.Contains(err.Error(), "wrong") {
				t.Errorf("ProvisionImage: error %v has the password", err)
			}
			wantNothingLeft(t, anonymous)
			if _, _, err := anonymous.ProvisionImage(t.Context(), "a", withSecret("pw")); err != nil {
				t.Errorf("ProvisionImage with the image's own configuration: %v", err)
			}
			known := newPuller(t, func(c *Config) { c.Registries.CredentialsFile = config })
			if _, _, err := known.ProvisionImage(t.Context(), "a", docker(image)); err != nil {
				t.Errorf("ProvisionImage with the agent's configuration: %v", err)
			}
			byValue := docker(image)
			byValue.Docker.Config = &mesosv1.Secret{Type: mesosv1.Secret_VALUE.Enum(), Value: &mesosv1.Secret_Value{Data: dockerConfig(d.host, "me", "pw")}}
			if _, _, err := newPuller(t).ProvisionImage(t.Context(), "a", byValue); err != nil {
				t.Errorf("ProvisionImage with a configuration by value on an agent without secrets: %v", err)
			}
			byValue.Docker.Config.Value = nil
			if _, _, err := newPuller(t).ProvisionImage(t.Context(), "a", byValue); err == nil || !strings.Contains(err.Error(), "docker configuration") {
				t.Errorf("ProvisionImage with a configuration that is empty: got %v, want it refused", err)
			}
			if _, _, err := known.ProvisionImage(t.Context(), "b", withSecret("pw")); err == nil || !strings.Contains(err.Error(), "cannot read secrets") {
				t.Errorf("ProvisionImage on an agent without secrets: got %v, want it refused", err)
			}
		})
	}
}

func TestRegistriesAreTrustedByTheirAuthority(t *testing.T) {
	d := newDepot(t, func(s *httptest.Server) { s.TLS = &tls.Config{MinVersion: tls.VersionTLS12}; s.StartTLS() })
	image := d.push(t, "app:1", simpleImage(t, "x"))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.http.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPuller(t, func(c *Config) { c.Registries.CAFile = ca })
	if _, _, err := p.ProvisionImage(t.Context(), "a", docker(image)); err != nil {
		t.Errorf("ProvisionImage from a registry whose authority is known: %v", err)
	}
	stranger := newPuller(t)
	if _, _, err := stranger.ProvisionImage(t.Context(), "a", docker(image)); !errors.Is(err, registry.ErrTLS) {
		t.Errorf("ProvisionImage from a registry that nobody vouches for: got %v, want %v", err, registry.ErrTLS)
	}
	wantNothingLeft(t, stranger)
}

func TestMirrorsAreAskedFirst(t *testing.T) {
	origin, mirror := newDepot(t), newDepot(t)
	img := simpleImage(t, "x")
	image := origin.push(t, "app:1", img)
	mirror.push(t, "app:1", img)
	with := func(c *Config) { c.Registries.Mirrors = map[string][]string{origin.host: {"http://" + mirror.host}} }
	if err := newPuller(t, with).Pull(t.Context(), image, false); err != nil {
		t.Fatalf("Pull: %v", err)
	}
	if origin.asked("") != 0 || mirror.asked("GET", "/blobs/") == 0 {
		t.Errorf("requests: got %d at the registry and %d at the mirror, want them at the mirror", origin.asked(""), mirror.asked(""))
	}
	mirror.intercept(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true })
	if err := newPuller(t, with).Pull(t.Context(), image, false); err != nil {
		t.Errorf("Pull while the mirror is broken: %v", err)
	}
}
