package registry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
)

// Credentials are what a Docker configuration file holds of registries: who we are at each.
type Credentials struct {
	hosts   map[string]credential
	helpers map[string]string // registry to the helper that knows who we are there
	store   string            // helper for registries that are in neither
}

// credential is for one registry.
type credential struct {
	user, secret string // secret is a token to get tokens with where user is empty
	bearer       string // a token to show as it is
}

// maxCredentials bounds a configuration file. People have a handful of registries.
const maxCredentials = 1 << 20

// ParseCredentials reads a Docker configuration file (`~/.docker/config.json`), or the older form of it that is the
// list of registries alone (`.dockercfg`), which came with a task.
//
// Helpers for credentials that it names are not run: they would speak for this machine, which is not the task's. A file
// that has nothing else is refused: pulls would go on as nobody, and fail for a reason that nobody understands.
func ParseCredentials(b []byte) (*Credentials, error) {
	c, err := parseCredentials(b)
	if err != nil {
		return nil, err
	}
	if len(c.hosts) == 0 && (c.store != "" || len(c.helpers) > 0) {
		return nil, errors.New("docker configuration: names credential helpers, which are run for the agent's own configuration only; want entries under auths")
	}
	c.helpers, c.store = nil, ""
	return c, nil
}

func parseCredentials(b []byte) (*Credentials, error) {
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
	c := &Credentials{hosts: map[string]credential{}, helpers: map[string]string{}, store: file.CredsStore}
	for name, helper := range file.CredHelpers {
		c.helpers[hostOf(name)] = helper
	}
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

// of is what is known for a registry, or who is to be asked; nothing, if nothing is. A helper for one registry goes before
// what the file says, and that before the helper for all of them.
func (c *Credentials) of(host string) (known credential, helper string) {
	if c == nil {
		return credential{}, ""
	}
	host = canonical(host)
	if helper = c.helpers[host]; helper != "" {
		return credential{}, helper
	}
	if known, ok := c.hosts[host]; ok {
		return known, ""
	}
	return credential{}, c.store
}

// over are these credentials, and for registries they do not know those of below.
func (c *Credentials) over(below *Credentials) *Credentials {
	if c == nil {
		return below
	}
	if below == nil {
		return c
	}
	all := &Credentials{hosts: maps.Clone(below.hosts), helpers: maps.Clone(below.helpers), store: below.store}
	for host, cred := range c.hosts {
		all.hosts[host] = cred
		delete(all.helpers, host)
	}
	return all
}
