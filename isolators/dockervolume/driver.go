package dockervolume

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A driver is a volume plugin of Docker's: a server that is asked by POST with JSON, over a unix socket or TCP.
// Source: Docker's plugin API and its protocol for volume plugins.
type driver struct {
	name    string
	url     string // up to the method's name
	client  *http.Client
	timeout time.Duration // for each call
}

// contentType is that of version 1.2 of the plugin API, the newest.
const contentType = "application/vnd.docker.plugins.v1.2+json"

const (
	// maxAnswer bounds an answer of a driver; what we ask for is a name and a path.
	maxAnswer = 1 << 20
	// maxSpec bounds a file that says where a driver is.
	maxSpec = 64 << 10
	// maxText bounds what of a driver's words is repeated.
	maxText = 1024
)

// errNoDriver is returned for a driver of which the machine has neither socket nor file.
var errNoDriver = errors.New("there is no such driver on this machine")

// findDriver looks for a driver as Docker does: a socket first, then a file that names an address.
//
// Errors: errNoDriver; or what is wrong with the file.
func findDriver(cfg *Config, name string) (*driver, error) {
	d := &driver{name: name, timeout: cfg.Timeout}
	for _, socket := range []string{filepath.Join(cfg.Sockets, name+".sock"), filepath.Join(cfg.Sockets, name, name+".sock")} {
		if info, err := os.Stat(socket); err == nil && info.Mode()&fs.ModeSocket != 0 {
			d.unix(socket)
			return d, nil
		}
	}
	for _, dir := range cfg.Specs {
		for _, base := range []string{filepath.Join(dir, name), filepath.Join(dir, name, name)} {
			if data, err := readSpec(base + ".spec"); err == nil {
				return d, d.at(strings.TrimSpace(string(data)), nil)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			if data, err := readSpec(base + ".json"); err == nil {
				return d, d.described(base+".json", data)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	return nil, errNoDriver
}

func readSpec(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err == nil && len(data) > maxSpec {
		err = fmt.Errorf("%s: more than %d bytes", path, maxSpec)
	}
	return data, err
}

// described takes the address of a file in JSON, which may have keys for TLS beside it.
func (d *driver) described(file string, data []byte) error {
	var spec struct {
		Addr      string
		TLSConfig *struct {
			InsecureSkipVerify        bool
			CAFile, CertFile, KeyFile string
		}
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if t := spec.TLSConfig; t != nil {
		config.InsecureSkipVerify = t.InsecureSkipVerify // the operator's own word, in the operator's file
		if t.CAFile != "" {
			pem, err := readSpec(t.CAFile)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			config.RootCAs = x509.NewCertPool()
			if !config.RootCAs.AppendCertsFromPEM(pem) {
				return fmt.Errorf("%s: %s holds no certificate", file, t.CAFile)
			}
		}
		if t.CertFile != "" || t.KeyFile != "" {
			pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
	}
	if err := d.at(spec.Addr, config); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// at sets where the driver listens: unix, tcp, http or https.
func (d *driver) at(address string, config *tls.Config) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("address %.200q of driver %s: %w", address, d.name, err)
	}
	switch u.Scheme {
	case "unix":
		if !filepath.IsAbs(u.Path) {
			return fmt.Errorf("address %.200q of driver %s: want the absolute path of a socket", address, d.name)
		}
		d.unix(u.Path)
	case "tcp", "http", "https":
		if u.Host == "" {
			return fmt.Errorf("address %.200q of driver %s: want a host", address, d.name)
		}
		if u.Scheme == "tcp" {
			u.Scheme = "http"
			if config != nil && (len(config.Certificates) > 0 || config.RootCAs != nil) {
				u.Scheme = "https"
			}
		}
		d.url = strings.TrimSuffix(u.Scheme+"://"+u.Host+u.Path, "/")
		d.speak(&http.Transport{TLSClientConfig: config})
	default:
		return fmt.Errorf("address %.200q of driver %s: want unix://, tcp://, http:// or https://", address, d.name)
	}
	return nil
}

// unix sets the socket that the driver listens at.
func (d *driver) unix(socket string) {
	d.url = "http://plugin"
	d.speak(&http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", socket)
	}})
}

// speak sets the transport. Calls are too rare to keep connections, and a driver may restart in between.
func (d *driver) speak(t *http.Transport) {
	t.DisableKeepAlives = true
	d.client = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// refusal is what a driver that could be asked answered instead of doing what was asked.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

// request is what the calls on one volume carry.
type request struct {
	Name string            `json:"Name"`
	ID   string            `json:"ID,omitempty"`
	Opts map[string]string `json:"Opts,omitempty"`
}

// call makes one call. Its error is a *refusal if the driver gave it.
func (d *driver) call(ctx context.Context, method string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	wrong := func(err error) error {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %v", d.timeout)
		}
		return fmt.Errorf("driver %s: %s: %w", d.name, method, err)
	}
	body, err := json.Marshal(in)
	if err != nil {
		return wrong(err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url+"/"+method, bytes.NewReader(body))
	if err != nil {
		return wrong(err)
	}
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Accept", contentType)
	answer, err := d.client.Do(r)
	if err != nil {
		return wrong(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return wrong(err)
	case len(data) > maxAnswer:
		return wrong(fmt.Errorf("an answer of more than %d bytes", maxAnswer))
	}
	var said struct{ Err string }
	broken := json.Unmarshal(data, &said)
	switch {
	case said.Err != "":
		return wrong(&refusal{valid(said.Err)})
	case answer.StatusCode != http.StatusOK:
		return wrong(&refusal{fmt.Sprintf("status %d: %s", answer.StatusCode, valid(string(data)))})
	case broken != nil && len(bytes.TrimSpace(data)) > 0:
		return wrong(fmt.Errorf("an answer that is no JSON object: %s", valid(string(data))))
	}
	if out == nil || len(bytes.TrimSpace(data)) == 0 {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return wrong(err)
	}
	return nil
}

// valid is a driver's text as it can be repeated.
func valid(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "..."
	}
	return strings.ToValidUTF8(strings.TrimSpace(s), "\uFFFD")
}

// activate says hello, and refuses what is no volume driver.
func (d *driver) activate(ctx context.Context) error {
	var said struct{ Implements []string }
	if err := d.call(ctx, "Plugin.Activate", struct{}{}, &said); err != nil {
		return err
	}
	if !slices.Contains(said.Implements, "VolumeDriver") {
		return fmt.Errorf("driver %s implements %.200q, want VolumeDriver", d.name, said.Implements)
	}
	return nil
}

// scope says whether a volume of the driver is the same on all machines, "global", or not, "local". Drivers need not
// know; then it is local, as for Docker.
func (d *driver) scope(ctx context.Context) string {
	var said struct{ Capabilities struct{ Scope string } }
	if err := d.call(ctx, "VolumeDriver.Capabilities", struct{}{}, &said); err == nil && said.Capabilities.Scope == "global" {
		return "global"
	}
	return "local"
}

// get says whether the driver knows a volume, and where it is mounted, "" if nowhere.
func (d *driver) get(ctx context.Context, name string) (at string, known bool, err error) {
	var said struct {
		Volume struct{ Name, Mountpoint string }
	}
	err = d.call(ctx, "VolumeDriver.Get", request{Name: name}, &said)
	var no *refusal
	if errors.As(err, &no) {
		return "", false, nil
	}
	return said.Volume.Mountpoint, err == nil, err
}

// path is where a mounted volume is.
func (d *driver) path(ctx context.Context, name string) (string, error) {
	var said struct{ Mountpoint string }
	if err := d.call(ctx, "VolumeDriver.Path", request{Name: name}, &said); err != nil {
		return "", err
	}
	return d.believable(name, said.Mountpoint)
}

func (d *driver) create(ctx context.Context, name string, options map[string]string) error {
	return d.call(ctx, "VolumeDriver.Create", request{Name: name, Opts: options}, nil)
}

// mount mounts a volume for id and returns where.
func (d *driver) mount(ctx context.Context, name, id string) (string, error) {
	var said struct{ Mountpoint string }
	if err := d.call(ctx, "VolumeDriver.Mount", request{Name: name, ID: id}, &said); err != nil {
		return "", err
	}
	return d.believable(name, said.Mountpoint)
}

func (d *driver) unmount(ctx context.Context, name, id string) error {
	return d.call(ctx, "VolumeDriver.Unmount", request{Name: name, ID: id}, nil)
}

// believable checks where a driver says that a volume is, and returns the path without links: a container gets to see
// whatever lies there.
func (d *driver) believable(name, at string) (string, error) {
	wrong := func(what string) error {
		return fmt.Errorf("driver %s says that volume %s is at %.200q: %s", d.name, name, at, what)
	}
	if !filepath.IsAbs(at) || strings.ContainsRune(at, 0) {
		return "", wrong("want an absolute path")
	}
	real, err := filepath.EvalSymlinks(at)
	if err != nil {
		return "", wrong(valid(err.Error()))
	}
	info, err := os.Stat(real)
	switch {
	case err != nil:
		return "", wrong(valid(err.Error()))
	case !info.IsDir():
		return "", wrong("want a folder")
	case real == "/" || real == "/proc" || real == "/sys" || real == "/dev":
		return "", wrong("no volume can be there")
	}
	return real, nil
}
