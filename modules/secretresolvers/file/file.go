// Package file is the secret resolver that finds secrets in a folder of the agent's machine, one file each, as an
// operator, a configuration manager or a key store's own agent puts them there.
//
// It promises that no reference leads out of the folder, that a file which everybody on the machine may read is no
// secret, and that no value stands in a log or an error. It keeps nothing: a changed file holds for the next launch.
// Where the value goes, into an environment or a file of the container, is the agent's business.
package file

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
	secretresolverv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/secretresolver/v1"
)

// maxSecret is what the contract allows, and maxName is longer than any path the kernel takes.
const (
	maxSecret = 1 << 20
	maxName   = 4096
)

// Config is what the operator may set.
type Config struct {
	Folder        string `hcl:"folder,optional" doc:"Folder with a file for each secret."`
	TrimNewline   bool   `hcl:"trim_newline,optional" doc:"One line end at the end of a file is not part of the secret."`
	WorldReadable bool   `hcl:"allow_world_readable,optional" doc:"Take files that everybody on the machine may read."`
}

// Resolver is the module.
type Resolver struct {
	secretresolverv1.UnimplementedSecretResolverServer
	config *module.Config[Config]
	events *module.Events
}

// New returns the module with its defaults.
func New() *Resolver {
	return &Resolver{
		config: module.NewConfig(Config{Folder: "/etc/mosaic/secrets"}, check),
		events: module.NewEvents(),
	}
}

func check(c *Config) error {
	if !filepath.IsAbs(c.Folder) {
		return module.Wrong("folder", "got %q, want an absolute path", c.Folder)
	}
	return nil
}

// Info describes the module.
func (r *Resolver) Info() module.Info {
	return module.Info{
		Kind: "secret_resolver", Name: "file", Version: "1.0.0", Doc: "secrets from the files of a folder",
		Config: r.config, Events: r.events, Configured: r.configured,
	}
}

// configured tells of a folder that is not there yet; it may come with the first secret, and is looked for each time.
func (r *Resolver) configured(context.Context, *modulev1.NodeFacts) error {
	root, err := os.OpenRoot(r.config.Get().Folder)
	if err != nil {
		r.events.Health(modulev1.Health_DEGRADED, "open the folder of secrets: "+err.Error())
		return nil
	}
	_ = root.Close()
	r.events.Health(modulev1.Health_OK, "")
	return nil
}

// Resolve gives the value behind a secret. A reference's name is a file of the folder; with a key it is one member of
// the JSON object in that file, or the file of that name where name is a folder.
func (r *Resolver) Resolve(_ context.Context, q *secretresolverv1.ResolveRequest) (*secretresolverv1.ResolveResponse, error) {
	cfg, secret := r.config.Get(), q.GetSecret()
	switch {
	case secret.GetType() == mesosv1.Secret_VALUE:
		return answer(secret.GetValue().GetData())
	case secret.GetType() != mesosv1.Secret_REFERENCE:
		return nil, module.InvalidArgument("the secret is of type %s, want a value or a reference", secret.GetType())
	}
	name, key := secret.GetReference().GetName(), secret.GetReference().GetKey()
	for what, s := range map[string]string{"name": name, "key": key} {
		if len(s) > maxName || strings.ContainsRune(s, 0) {
			return nil, module.InvalidArgument("the secret's %s has %d bytes or a zero byte, want at most %d without", what, len(s), maxName)
		}
	}
	if name == "" {
		return nil, module.InvalidArgument("the secret has no name")
	}
	root, err := os.OpenRoot(cfg.Folder) // whatever the name or a link says, it does not lead out of it
	if err != nil {
		return nil, module.FailedPrecondition("open the folder of secrets: %v", err)
	}
	defer root.Close()
	file, member := name, key
	if info, err := root.Stat(name); err == nil && info.IsDir() && key != "" {
		file, member = path.Join(name, key), ""
	}
	data, err := read(root, file, cfg.WorldReadable)
	if err != nil {
		return nil, err
	}
	if member != "" {
		if data, err = pick(data, file, member); err != nil {
			return nil, err
		}
	} else if cfg.TrimNewline {
		data = []byte(strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r"))
	}
	return answer(data)
}

func answer(data []byte) (*secretresolverv1.ResolveResponse, error) {
	if len(data) > maxSecret {
		return nil, module.FailedPrecondition("the secret has %d bytes, want at most %d", len(data), maxSecret)
	}
	return &secretresolverv1.ResolveResponse{Data: data}, nil
}

// read reads one file that is a file: a pipe or a device in its place would block the launch or never end.
func read(root *os.Root, name string, worldReadable bool) ([]byte, error) {
	info, err := root.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, status.Errorf(codes.NotFound, "there is no secret %q", name)
	case err != nil:
		return nil, module.InvalidArgument("secret %q: %v", name, reason(err))
	case !info.Mode().IsRegular():
		return nil, module.InvalidArgument("secret %q is a %s, want a file", name, kind(info.Mode()))
	case info.Mode().Perm()&0o004 != 0 && !worldReadable:
		return nil, module.FailedPrecondition("secret %q has mode %#o: everybody on the machine may read it; take the right away, or set allow_world_readable", name, info.Mode().Perm())
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, module.FailedPrecondition("secret %q: %v", name, reason(err))
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, module.FailedPrecondition("secret %q: %v", name, reason(err))
	}
	return data, nil
}

// reason is an error without the path that it names a second time.
func reason(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "folder"
	case m&fs.ModeNamedPipe != 0:
		return "pipe"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// pick takes one member of a JSON object: a string as it is, anything else as its JSON.
func pick(data []byte, name, key string) ([]byte, error) {
	var members map[string]json.RawMessage
	if len(data) > maxSecret || json.Unmarshal(data, &members) != nil { // its error would quote the secret
		return nil, module.FailedPrecondition("secret %q is no JSON object, and the key %q of it is asked for", name, key)
	}
	value, ok := members[key]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "secret %q has no key %q", name, key)
	}
	var text string
	if json.Unmarshal(value, &text) == nil {
		return []byte(text), nil
	}
	return value, nil
}
