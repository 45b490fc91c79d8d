package registry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Credentials are what a Docker configuration file holds of registries: who we are at each.
type Credentials struct {
	hosts map[string]credential
}

// credential is for one registry.
type credential struct {
	user, secret string // secret is a token to get tokens with where user is empty
	bearer       string // a token to show as it is
}

// maxCredentials bounds a configuration file. People have a handful of registries.
const maxCredentials = 1 << 20

// ParseCredentials reads a Docker configuration file (`~/.docker/config.json`), or the older form of it that is the
// list of registries alone (`.dockercfg`).
//
// Helpers for credentials are programs of the person whose file it is. They are not run, and a file that has nothing
// else is refused: pulls would go on as nobody, and fail for a reason that nobody understands.
func ParseCredentials(b []byte) (*Credentials, error) {
	if len(b) > maxCredentials {
		return nil, fmt.Errorf("docker configuration: %d bytes, want at most %d", len(b), maxCredentials)
	}
	type entry struct {
		Auth          string `json:"auth"`
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	}
	var file struct {
		Auths       map[string]entry  `json:"auths"`
		CredsStore  string            `json:"credsStore"`
		CredHelpers map[string]string `json:"credHelpers"`
	}
	// The text of a decoding error may hold a part of the secret, and is not repeated.
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, errors.New("docker configuration: not the JSON of a Docker configuration file")
	}
	if file.Auths == nil && file.CredsStore == "" && file.CredHelpers == nil {
		older := map[string]entry{}
		if err := json.Unmarshal(b, &older); err == nil {
			file.Auths = older
		}
	}
	c := &Credentials{hosts: map[string]credential{}}
	for name, e := range file.Auths {
		user, secret := e.Username, e.Password
		if e.Auth != "" {
			plain, err := base64.StdEncoding.DecodeString(e.Auth)
			u, s, ok := strings.Cut(string(plain), ":")
			if err != nil || !ok {
				return nil, fmt.Errorf("docker configuration: auth of %s: want user:password in base64", name)
			}
			user, secret = u, strings.TrimRight(s, "\x00")
		}
		if e.IdentityToken != "" {
			user, secret = "", e.IdentityToken
		}
		if secret == "" && e.RegistryToken == "" {
			continue
		}
		c.hosts[hostOf(name)] = credential{user: user, secret: secret, bearer: e.RegistryToken}
	}
	if len(c.hosts) == 0 && (file.CredsStore != "" || len(file.CredHelpers) > 0) {
		return nil, errors.New("docker configuration: names credential helpers, which are not run here; want entries under auths")
	}
	return c, nil
}

// hostOf is the registry that an entry's name means: older files have whole URLs.
func hostOf(name string) string {
	if _, rest, ok := strings.Cut(name, "://"); ok {
		name = rest
	}
	name, _, _ = strings.Cut(name, "/")
	return canonical(name)
}

// canonical is one name for what has several.
func canonical(host string) string {
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return DockerHub
	}
	return host
}

// of is what is known for a registry; nothing, if nothing is.
func (c *Credentials) of(host string) credential {
	if c == nil {
		return credential{}
	}
	return c.hosts[canonical(host)]
}

// over are these credentials, and for registries they do not know those of below.
func (c *Credentials) over(below *Credentials) *Credentials {
	if c == nil {
		return below
	}
	if below == nil {
		return c
	}
	all := &Credentials{hosts: map[string]credential{}}
	for host, cred := range below.hosts {
		all.hosts[host] = cred
	}
	for host, cred := range c.hosts {
		all.hosts[host] = cred
	}
	return all
}
