// Package dockervolume is the isolator for volumes of Docker's volume plugins. It speaks to the plugins itself, over
// their sockets; there is no Docker and no other program in between.
//
// It promises that a volume is mounted once however many containers use it and unmounted when the last of them has
// ended, also if a crash lies between: who uses what is known from the containers that the agent tells of. Volumes are
// made where they do not exist and never removed.
//
// Plugins that Docker runs in containers of its own (with a slash in their name) are not found. What a plugin's daemon
// does when it restarts under mounted volumes is its own affair.
package dockervolume

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/moby/sys/user"

	"github.com/mosaic-cluster/mosaic/sdk/isolator"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// stateVersion is the version of what is kept of a container.
const stateVersion = 1

// Config is what the operator may set.
type Config struct {
	DefaultDriver string        `hcl:"default_driver,optional" doc:"Driver of volumes that name none."`
	Allow         []string      `hcl:"allow,optional" doc:"Drivers that containers may use; unset allows all."`
	Timeout       time.Duration `hcl:"timeout,optional" doc:"Time for each call to a driver." min:"100ms" max:"10m"`
	Chown         bool          `hcl:"chown,optional" doc:"Give the top folder of a volume to the container's user."`
	Sockets       string        `hcl:"sockets,optional" doc:"Folder with the sockets of drivers."`
	Specs         []string      `hcl:"specs,optional" doc:"Folders with files that say where drivers listen."`
}

// Isolator is the module.
type Isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config *module.Config[Config]
	events *module.Events
	node   atomic.Pointer[modulev1.NodeFacts]
	table  table
}

// New returns the module with its defaults: the places where Docker looks.
func New() *Isolator {
	return &Isolator{
		config: module.NewConfig(Config{
			Timeout: 30 * time.Second, Sockets: "/run/docker/plugins", Specs: []string{"/etc/docker/plugins", "/usr/lib/docker/plugins"},
		}, validate),
		events: module.NewEvents(),
	}
}

func validate(c *Config) error {
	var wrong []error
	if c.Timeout <= 0 {
		wrong = append(wrong, module.Wrong("timeout", "got %v, want more than 0", c.Timeout))
	}
	if !filepath.IsAbs(c.Sockets) {
		wrong = append(wrong, module.Wrong("sockets", "got %q, want an absolute path", c.Sockets))
	}
	for _, dir := range c.Specs {
		if !filepath.IsAbs(dir) {
			wrong = append(wrong, module.Wrong("specs", "got %q, want an absolute path", dir))
		}
	}
	if c.DefaultDriver != "" && !driverName.MatchString(c.DefaultDriver) {
		wrong = append(wrong, module.Wrong("default_driver", "got %q, want letters, digits, dots, dashes and underscores", c.DefaultDriver))
	}
	return errors.Join(wrong...)
}

// Info describes the module.
func (i *Isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "docker_volume", Version: "1.0.0", Doc: "volumes of Docker's volume plugins",
		Powers: []string{"mounts"}, Nesting: true, Standalone: true, NeedsRoot: true,
		MinState: stateVersion, MaxState: stateVersion, Config: i.config, Events: i.events, Configured: i.configured,
	}
}

func (i *Isolator) configured(_ context.Context, node *modulev1.NodeFacts) error {
	i.node.Store(node)
	return nil
}

// state is what is kept of a container.
type state struct {
	Boot    string `json:"boot"` // the boot of the machine in which they were mounted
	Volumes []kept `json:"volumes"`
}

type kept struct {
	Driver string `json:"driver"`
	Name   string `json:"name"`
	At     string `json:"at"`
}

// driverName is what a driver may be called: it becomes a file's name.
var driverName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// maxName bounds a volume's name; file systems take no longer ones, and most drivers make a folder of it.
const maxName = 255

// wanted is a volume that a container asks for.
type wanted struct {
	key
	at      string // in the container
	write   bool
	options map[string]string
}

// wantedOf are the Docker volumes of a container.
func wantedOf(cfg *Config, c *containerv1.Container) ([]wanted, error) {
	var list []wanted
	seen := map[key]bool{}
	for _, v := range c.GetContainerInfo().GetVolumes() {
		if v.GetSource().GetType() != mesosv1.Volume_Source_DOCKER_VOLUME {
			continue
		}
		d := v.GetSource().GetDockerVolume()
		w := wanted{key: key{cmp.Or(d.GetDriver(), cfg.DefaultDriver), d.GetName()}, write: v.GetMode() == mesosv1.Volume_RW, options: map[string]string{}}
		name := d.GetName()
		switch {
		case w.driver == "":
			return nil, module.InvalidArgument("volume at %s: it names no driver, and there is none by default here (default_driver)", v.GetContainerPath())
		case !driverName.MatchString(w.driver):
			return nil, module.InvalidArgument("volume at %s: got driver %.128q, want letters, digits, dots, dashes and underscores", v.GetContainerPath(), w.driver)
		case name == "" || len(name) > maxName || strings.ContainsAny(name, "/\x00") || name == "." || name == "..":
			return nil, module.InvalidArgument("volume at %s: got the name %.255q, want 1 to %d characters without slash", v.GetContainerPath(), name, maxName)
		case cfg.Allow != nil && !slices.Contains(cfg.Allow, w.driver):
			return nil, module.InvalidArgument("volume at %s: driver %s is not among those allowed here (allow)", v.GetContainerPath(), w.driver)
		case seen[w.key]:
			return nil, module.InvalidArgument("volume at %s: volume %s is mounted in this container already", v.GetContainerPath(), w.key)
		}
		seen[w.key] = true
		for _, o := range d.GetDriverOptions().GetParameter() {
			if was, ok := w.options[o.GetKey()]; ok && was != o.GetValue() {
				return nil, module.InvalidArgument("volume at %s: option %.128q is there twice", v.GetContainerPath(), o.GetKey())
			}
			w.options[o.GetKey()] = o.GetValue()
		}
		at, err := place(c, v)
		if err != nil {
			return nil, err
		}
		w.at = at
		list = append(list, w)
	}
	return list, nil
}

// Prepare has the volumes mounted. What was mounted when it fails is unmounted by the Cleanup that follows.
func (i *Isolator) Prepare(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	cfg, c := i.config.Get(), r.GetContainer()
	list, err := wantedOf(cfg, c)
	if err != nil || len(list) == 0 {
		return &isolatorv1.PrepareResponse{}, err
	}
	p, notes := &containerv1.Proposal{}, state{Boot: i.node.Load().GetBootId()}
	for _, w := range list {
		if err := makePlace(c, w.at); err != nil {
			return nil, err
		}
		at, err := i.mountFor(ctx, cfg, r.GetOperationId(), c, w)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, module.FailedPrecondition("volume at %s: %v", w.at, err)
		}
		mode := "ro"
		if w.write {
			mode = "rw"
		}
		p.Mounts = append(p.Mounts, &containerv1.Mount{Destination: w.at, Source: at, Type: "bind", Options: []string{"rbind", mode, "rslave"}})
		notes.Volumes = append(notes.Volumes, kept{w.driver, w.name, at})
	}
	data, err := json.Marshal(notes)
	if err != nil {
		return nil, err
	}
	if len(data) > isolator.MaxState {
		return nil, module.InvalidArgument("%d volumes are more than can be kept track of", len(list))
	}
	return &isolatorv1.PrepareResponse{Proposal: p, State: data, StateVersion: stateVersion}, nil
}

// mountFor has one volume mounted, and made if need be. It tells the agent that drivers need their time.
func (i *Isolator) mountFor(ctx context.Context, cfg *Config, operation string, c *containerv1.Container, w wanted) (string, error) {
	d, err := findDriver(cfg, w.driver)
	if err != nil {
		if errors.Is(err, errNoDriver) {
			return "", errors.New("driver " + w.driver + ": " + err.Error() + " (in " + cfg.Sockets + ", " + strings.Join(cfg.Specs, ", ") + ")")
		}
		return "", err
	}
	i.events.Progress(operation, cfg.Timeout, "waiting for driver "+w.driver+" to mount volume "+w.name)
	if err := d.activate(ctx); err != nil {
		return "", err
	}
	i.know(ctx, d)
	at, err := i.attach(ctx, d, w.key, c.GetId(), w.options)
	if err != nil {
		return "", err
	}
	i.report()
	if cfg.Chown {
		if err := give(c, at); err != nil {
			return "", err
		}
	}
	return at, nil
}

// give makes the container's user the owner of a volume's top folder.
func give(c *containerv1.Container, at string) error {
	root, err := os.OpenRoot(cmp.Or(c.GetRootfs(), "/"))
	if err != nil {
		return err
	}
	defer root.Close()
	list, err := root.Open("etc/passwd")
	if err != nil {
		list = nil
	} else {
		defer list.Close()
	}
	var who *user.ExecUser
	if list == nil {
		who, err = user.GetExecUser(c.GetUser(), nil, strings.NewReader(""), nil)
	} else {
		who, err = user.GetExecUser(c.GetUser(), nil, list, nil)
	}
	if err != nil {
		return err
	}
	return os.Lchown(at, who.Uid, who.Gid)
}

// place is where a volume lies in the container, absolute and clean.
func place(c *containerv1.Container, v *mesosv1.Volume) (string, error) {
	where := path.Clean(v.GetContainerPath())
	if !path.IsAbs(where) {
		if !filepath.IsLocal(where) || where == "." {
			return "", module.InvalidArgument("volume at %q: want a path below the sandbox or an absolute one", v.GetContainerPath())
		}
		where = path.Join(cmp.Or(c.GetSandboxInContainer(), c.GetSandbox()), where)
	}
	if where == "/" || !path.IsAbs(where) {
		return "", module.InvalidArgument("volume at %q: a container's root is no place for a volume", v.GetContainerPath())
	}
	return where, nil
}

// makePlace makes the place of a volume below the sandbox, where links must not lead out of it. Elsewhere a container
// without image sees the machine's files, in which nothing is made.
func makePlace(c *containerv1.Container, at string) error {
	inside := path.Clean(cmp.Or(c.GetSandboxInContainer(), c.GetSandbox()))
	rest, ok := strings.CutPrefix(at, inside+"/")
	if !ok {
		if c.GetRootfs() != "" {
			return nil
		}
		if info, err := os.Stat(at); err != nil || !info.IsDir() {
			return module.FailedPrecondition("volume at %s: a container without image sees the machine's files, and there is no folder at that place", at)
		}
		return nil
	}
	root, err := os.OpenRoot(c.GetSandbox())
	if err != nil {
		return module.FailedPrecondition("open sandbox: %v", err)
	}
	defer root.Close()
	if err := root.MkdirAll(rest, 0o755); err != nil {
		return module.FailedPrecondition("make the place of the volume at %s: %v", at, err)
	}
	return nil
}

// notesOf reads what was kept of a container. ok is false if there is nothing that can be read.
func notesOf(r *isolatorv1.ContainerRecord) (notes state, ok bool) {
	if len(r.GetState()) == 0 || r.GetStateVersion() != stateVersion || json.Unmarshal(r.GetState(), &notes) != nil {
		return state{}, false
	}
	return notes, true
}

// volumesOf are the volumes of a container by what was kept of it, and by what it asks for where that was lost.
func volumesOf(cfg *Config, r *isolatorv1.ContainerRecord, notes state) []kept {
	list := slices.Clone(notes.Volumes)
	for _, v := range r.GetContainer().GetContainerInfo().GetVolumes() {
		if v.GetSource().GetType() != mesosv1.Volume_Source_DOCKER_VOLUME {
			continue
		}
		d := v.GetSource().GetDockerVolume()
		k := kept{Driver: cmp.Or(d.GetDriver(), cfg.DefaultDriver), Name: d.GetName()}
		if !slices.ContainsFunc(list, func(o kept) bool { return o.Driver == k.Driver && o.Name == k.Name }) {
			list = append(list, k)
		}
	}
	return slices.DeleteFunc(list, func(k kept) bool { return !driverName.MatchString(k.Driver) || k.Name == "" })
}

// Recover learns who uses which volume. A container of which nothing was kept may have had its volumes mounted in a
// Prepare that was cut short: its Cleanup will unmount them, as that of an orphan will.
func (i *Isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	cfg, boot := i.config.Get(), i.node.Load().GetBootId()
	for {
		page, err := s.Recv()
		if err != nil {
			return s.SendAndClose(&isolatorv1.RecoverResponse{})
		}
		for _, r := range page.GetContainers() {
			notes, ok := notesOf(r)
			for _, k := range volumesOf(cfg, r, notes) {
				// State that cannot be read was written after the mounts. An orphan's cleanup may have been tried before.
				was := len(r.GetState()) > 0 && (!ok || notes.Boot == boot)
				i.table.recall(key{k.Driver, k.Name}, r.GetContainer().GetId(), was, was && !r.GetOrphan(), k.At)
			}
		}
	}
}

// Cleanup has the volumes unmounted that no other container uses.
func (i *Isolator) Cleanup(ctx context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	cfg, record := i.config.Get(), r.GetRecord()
	notes, ok := notesOf(record)
	stale := ok && notes.Boot != i.node.Load().GetBootId()
	list := volumesOf(cfg, record, notes)
	if len(list) == 0 {
		return &isolatorv1.CleanupResponse{}, nil
	}
	defer i.report()
	var wrong []error
	for _, k := range list {
		if err := i.detach(ctx, cfg, key{k.Driver, k.Name}, record.GetContainer().GetId(), stale); err != nil {
			wrong = append(wrong, err)
		}
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, module.FailedPrecondition("unmount: %v", err)
	}
	return &isolatorv1.CleanupResponse{}, nil
}

// isMount says whether something is mounted at a path. When in doubt it is.
func isMount(at string) bool {
	mounted, err := mountinfo.Mounted(at)
	return mounted || err != nil && !errors.Is(err, os.ErrNotExist)
}
