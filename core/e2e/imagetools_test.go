package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// needTools skips a test that needs programs of others.
func needTools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(toolPath(name)); err != nil {
			t.Skip("needs a tool for images that the machine lacks: " + err.Error())
		}
	}
}

// toolPath is where tools/install.sh put a program, or else its name.
func toolPath(name string) string {
	own := filepath.Join(bin, "..", ".tools", "bin", name)
	if _, err := os.Stat(own); err == nil {
		return own
	}
	return name
}

// tool runs a program that must succeed and returns what it wrote to standard output.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		var stderr []byte
		if e, ok := err.(*exec.ExitError); ok {
			stderr = e.Stderr
		}
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, stderr)
	}
	return string(out)
}

// distribution is the registry that most people run, as Debian packages it, here with TLS by an authority of its own and
// for one user only.
type distribution struct {
	host           string
	user, password string
	ca             string // file
	transport      *http.Transport
}

// startDistribution starts one that ends with the test.
func startDistribution(t *testing.T) *distribution {
	t.Helper()
	needTools(t, "docker-registry", "htpasswd")
	dir := t.TempDir()
	d := &distribution{user: "carol", password: "open sesame", ca: filepath.Join(dir, "ca.pem")}
	key, certificate, pool := authority(t, dir)
	d.transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	t.Cleanup(d.transport.CloseIdleConnections)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.host = l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	users := filepath.Join(dir, "htpasswd")
	if err := os.WriteFile(users, []byte(tool(t, "htpasswd", "-Bbn", d.user, d.password)), 0o600); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "registry.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}
http: {addr: %q, tls: {certificate: %q, key: %q}}
auth: {htpasswd: {realm: tests, path: %q}}
`, filepath.Join(dir, "data"), d.host, certificate, key, users), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command(toolPath("docker-registry"), "serve", config)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the registry said:\n%s", &said)
		}
	})
	client := &http.Client{Transport: d.transport, Timeout: 5 * time.Second}
	eventually(t, "the registry answers", 30*time.Second, func() bool {
		resp, err := client.Get("https://" + d.host + "/v2/")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusUnauthorized
	})
	return d
}

// authority makes an authority and a certificate for this machine that it signed, in files of dir. The authority's own is
// ca.pem there, and lies in certs.d, too, where tools look for it.
func authority(t *testing.T, dir string) (key, certificate string, pool *x509.CertPool) {
	t.Helper()
	write := func(path, kind string, der []byte) string {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of a test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	ownKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "registry of a test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	ownDER, err := x509.CreateCertificate(rand.Reader, own, ca, &ownKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(ownKey)
	if err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(dir, "certs.d", "ca.crt"), "CERTIFICATE", caDER)
	pool = x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})) {
		t.Fatal("the authority's certificate is none")
	}
	write(filepath.Join(dir, "ca.pem"), "CERTIFICATE", caDER)
	return write(filepath.Join(dir, "key.pem"), "PRIVATE KEY", keyDER), write(filepath.Join(dir, "cert.pem"), "CERTIFICATE", ownDER), pool
}

// certs is the folder where tools look for the authority.
func (d *distribution) certs() string { return filepath.Join(filepath.Dir(d.ca), "certs.d") }

// creds are the user and password as tools take them.
func (d *distribution) creds() string { return d.user + ":" + d.password }

// composition lets an agent in.
func (d *distribution) composition(t *testing.T) string {
	t.Helper()
	file := filepath.Join(filepath.Dir(d.ca), "docker.json")
	auth := base64.StdEncoding.EncodeToString([]byte(d.creds()))
	if err := os.WriteFile(file, fmt.Appendf(nil, `{"auths": {%q: {"auth": %q}}}`, d.host, auth), 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("agent {\n  docker_config = %q\n  registry_ca   = %q\n}\n", file, d.ca)
}

// push puts an image or a list of images there and returns its name, and its name by digest.
func (d *distribution) push(t *testing.T, repository string, what any) (byTag, byDigest string) {
	t.Helper()
	ref, err := name.NewTag(d.host + "/" + repository)
	if err != nil {
		t.Fatal(err)
	}
	options := []remote.Option{remote.WithTransport(d.transport), remote.WithAuth(&authn.Basic{Username: d.user, Password: d.password})}
	var digest v1.Hash
	switch w := what.(type) {
	case v1.Image:
		if err = remote.Write(ref, w, options...); err == nil {
			digest, err = w.Digest()
		}
	case v1.ImageIndex:
		if err = remote.WriteIndex(ref, w, options...); err == nil {
			digest, err = w.Digest()
		}
	default:
		t.Fatalf("push %T: want an image or an index", what)
	}
	if err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
	return ref.Name(), ref.Context().Name() + "@" + digest.String()
}

// skopeoCopy copies an image from one place to another, of which either may be in the registry.
func (d *distribution) skopeoCopy(t *testing.T, from, to string, args ...string) {
	t.Helper()
	tool(t, "skopeo", append(append([]string{"copy", "--insecure-policy", "--src-cert-dir", d.certs(), "--dest-cert-dir", d.certs(),
		"--src-creds", d.creds(), "--dest-creds", d.creds()}, args...), from, to)...)
}
