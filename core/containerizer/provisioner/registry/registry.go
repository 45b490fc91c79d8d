// Package registry speaks with registries of images: whose names they are, where they are reached, who we are there,
// and what went wrong.
//
// It promises that credentials go to the registry they are for and to no other, that plain HTTP is spoken only with
// registries for which the operator allowed it and with this machine, and that every step of a request ends. What is
// done with what was fetched, and how often a fetch is tried, is the provisioner's business.
package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
)

const (
	// dialTimeout bounds reaching a machine; one that is there answers in a second, across the world.
	dialTimeout = 15 * time.Second
	// answerTimeout is the default of Config.AnswerTimeout. Registries that fetch from others first take seconds.
	answerTimeout = 60 * time.Second
	// idleTimeout is how long a connection is kept for the next pull.
	idleTimeout = 30 * time.Second
)

// Config is what the operator says of registries.
type Config struct {
	// Registry of names that say none. Default: DockerHub.
	Default string
	// Docker configuration file with credentials, read anew for each pull, since tokens in it are. Optional.
	CredentialsFile string
	// File with certificates in PEM of authorities to trust besides the system's. Optional.
	CAFile string
	// Registry to the URLs of mirrors, tried in this order before it.
	Mirrors map[string][]string
	// Registries spoken with in plain HTTP.
	PlainHTTP []string
	// Time to the first byte of an answer. Default a minute.
	AnswerTimeout time.Duration
}

// A Client reaches registries. Its methods may be called at the same time.
type Client struct {
	cfg       Config
	transport *http.Transport
	mirrors   map[string][]*url.URL

	mu       sync.Mutex
	loopback map[string]http.RoundTripper // guarded by mu; by host: what it found out about the host
}

// maxLoopback bounds the memory of registries on this machine.
const maxLoopback = 100

// New reads the certificates and checks the rest.
func New(cfg Config) (*Client, error) {
	if cfg.Default == "" {
		cfg.Default = DockerHub
	}
	if cfg.AnswerTimeout <= 0 {
		cfg.AnswerTimeout = answerTimeout
	}
	if cfg.Default = canonical(cfg.Default); !isHost(cfg.Default) {
		return nil, fmt.Errorf("default registry %q: want a host name and perhaps a port", cfg.Default)
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("certificate authorities of registries: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificate authorities of registries: %s has no certificate in PEM", cfg.CAFile)
		}
		tlsConfig.RootCAs = pool
	}
	c := &Client{cfg: cfg, mirrors: map[string][]*url.URL{}, loopback: map[string]http.RoundTripper{}}
	for host, list := range cfg.Mirrors {
		for _, m := range list {
			u, err := url.Parse(m)
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
				return nil, fmt.Errorf("mirror %q of %s: want a URL of http or https", m, host)
			}
			c.mirrors[canonical(host)] = append(c.mirrors[canonical(host)], u)
		}
	}
	if cfg.CredentialsFile != "" {
		if _, err := c.credentials(); err != nil {
			return nil, err
		}
	}
	c.transport = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   min(dialTimeout, cfg.AnswerTimeout),
		ResponseHeaderTimeout: cfg.AnswerTimeout,
		ExpectContinueTimeout: time.Second,
		MaxIdleConnsPerHost:   4,
		IdleConnTimeout:       idleTimeout,
		ForceAttemptHTTP2:     true,
	}
	return c, nil
}

// Close ends connections that nobody uses.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// HTTP is for what is fetched by URL, with the same authorities.
func (c *Client) HTTP() *http.Client { return &http.Client{Transport: c.transport} }

// Parse reads a name with this client's default registry.
func (c *Client) Parse(name string) (Reference, error) { return Parse(name, c.cfg.Default) }

func (c *Client) credentials() (*Credentials, error) {
	if c.cfg.CredentialsFile == "" {
		return nil, nil
	}
	b, err := os.ReadFile(c.cfg.CredentialsFile)
	if err != nil {
		return nil, fmt.Errorf("credentials of registries: %w", err)
	}
	creds, err := parseCredentials(b)
	if err != nil {
		return nil, fmt.Errorf("credentials of registries: %s: %w", c.cfg.CredentialsFile, err)
	}
	return creds, nil
}

// Resolver is for one pull, which ctx is of, as whom own says and, for registries it does not know, as the operator's file
// says or the helpers that it names.
func (c *Client) Resolver(ctx context.Context, own *Credentials) (remotes.Resolver, error) {
	creds, err := c.credentials()
	if err != nil {
		return nil, err
	}
	creds = own.over(creds)
	return docker.NewResolver(docker.ResolverOptions{
		Headers: http.Header{"User-Agent": {"mosaic-agent"}},
		Hosts:   func(host string) ([]docker.RegistryHost, error) { return c.hosts(ctx, host, creds), nil },
	}), nil
}

// hosts are where images of a registry may be had, the best first.
func (c *Client) hosts(ctx context.Context, host string, creds *Credentials) []docker.RegistryHost {
	var list []docker.RegistryHost
	for _, m := range c.mirrors[canonical(host)] {
		list = append(list, c.host(ctx, m.Scheme, m.Host, strings.TrimRight(m.Path, "/")+"/v2", m.Host, creds))
	}
	scheme, reached := "https", host
	if canonical(host) == DockerHub {
		reached = "registry-1.docker.io"
	}
	if slices.Contains(c.cfg.PlainHTTP, host) {
		scheme = "http"
	}
	return append(list, c.host(ctx, scheme, reached, "/v2", host, creds))
}

// host is where a registry is reached, which is known by name among the credentials.
func (c *Client) host(ctx context.Context, scheme, host, path, name string, creds *Credentials) docker.RegistryHost {
	client := &http.Client{Transport: c.transport}
	if scheme == "https" && isLoopback(host) {
		client.Transport = c.fallback(host)
	}
	h := docker.RegistryHost{
		Client: client, Scheme: scheme, Host: host, Path: path,
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}
	if known, _ := creds.of(name); known.bearer != "" {
		h.Header = http.Header{"Authorization": {"Bearer " + known.bearer}}
		return h
	}
	who := creds.asked(ctx, name)
	h.Authorizer = docker.NewDockerAuthorizer(
		docker.WithAuthClient(client),
		docker.WithAuthCreds(func(asked string) (string, string, error) {
			if asked != host { // somebody sent us elsewhere
				return "", "", nil
			}
			cred, err := who()
			return cred.user, cred.secret, err
		}))
	return h
}

// fallback tries HTTPS first and then HTTP: on this machine nobody listens in between.
func (c *Client) fallback(host string) http.RoundTripper {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.loopback[host]
	if t == nil {
		if len(c.loopback) >= maxLoopback {
			clear(c.loopback)
		}
		t = docker.NewHTTPFallback(c.transport)
		c.loopback[host] = t
	}
	return t
}

func isLoopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if name == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil && ip.IsLoopback()
}

// Basic are the credentials of a user at one registry.
func Basic(host, user, secret string) (*Credentials, error) {
	if user == "" || secret == "" {
		return nil, errors.New("credential: want a principal and a secret")
	}
	return &Credentials{hosts: map[string]credential{canonical(host): {user: user, secret: secret}}}, nil
}
