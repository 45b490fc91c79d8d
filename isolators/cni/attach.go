package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Order of things. The folder and the record of what is to come are written first; the namespace is made; each network
// is marked as begun before its ADD and gets its result after it; the files come last. Whatever of this a crash cuts
// off, the record names all that may be there, and detach takes it back.

// attach makes a container's namespace, interfaces and files, or undoes an unfinished attempt at them and makes them
// anew.
func (i *Isolator) attach(ctx context.Context, cfg *Config, operation string, c *containerv1.Container, w *wish) (*record, error) {
	f := folderOf(cfg.RunDir, c.GetId())
	old, err := f.load()
	if err != nil {
		return nil, module.FailedPrecondition("%v", err)
	}
	if old != nil {
		if old.Done && old.Operation == operation && old.Generation == c.GetGeneration() && isNetns(old.Netns) {
			return old, nil
		}
		if err := i.disconnect(ctx, old); err != nil {
			return nil, module.FailedPrecondition("an earlier attempt is not undone: %v", err)
		}
		if err := i.detach(ctx, cfg, f, old); err != nil {
			return nil, module.FailedPrecondition("an earlier attempt is not undone: %v", err)
		}
	}
	r, err := i.plan(cfg, f, operation, c, w)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return nil, module.FailedPrecondition("%v", err)
	}
	if err := f.save(r); err != nil {
		return nil, module.FailedPrecondition("write record of networks: %v", err)
	}
	if err := makeNetns(r.Netns); err != nil {
		return nil, module.FailedPrecondition("%v", err)
	}
	for n := range r.Networks {
		if err := ctx.Err(); err != nil {
			return nil, status.FromContextError(err).Err()
		}
		if err := i.join(ctx, cfg, f, c, r, &r.Networks[n]); err != nil {
			return nil, err
		}
	}
	if r.Files, err = writeFiles(f, r, cfg); err != nil {
		return nil, module.FailedPrecondition("write files of the network: %v", err)
	}
	r.Done = true
	if _, err := r.state(); err != nil {
		return nil, module.InvalidArgument("%v", err)
	}
	if err := f.save(r); err != nil {
		return nil, module.FailedPrecondition("write record of networks: %v", err)
	}
	return r, nil
}

// plan finds the networks and says what is to be made; it makes nothing.
func (i *Isolator) plan(cfg *Config, f folder, operation string, c *containerv1.Container, w *wish) (*record, error) {
	r := &record{
		Operation: operation, Generation: c.GetGeneration(), ID: pluginID(c.GetId()), Netns: f.netns(),
		Hostname: w.hostname,
	}
	if r.Hostname == "" {
		r.Hostname = hostnameOf(c.GetId())
	}
	if len(w.networks) == 0 {
		return r, nil
	}
	all, broken, err := i.networks(cfg)
	if err != nil {
		return nil, err
	}
	for n, info := range w.networks {
		net := all[info.GetName()]
		if net == nil {
			text := fmt.Sprintf("network %q is not known: %s", info.GetName(), names(all))
			for _, err := range broken {
				text += "; " + err.Error()
			}
			return nil, module.FailedPrecondition("%s", text)
		}
		if err := net.can(info); err != nil {
			return nil, err
		}
		if err := net.missing(cfg.plugins()); err != nil {
			return nil, module.FailedPrecondition("%v", err)
		}
		a := attachment{Network: net.Name, Interface: fmt.Sprintf("eth%d", n), BuiltIn: net.builtIn, Rules: net.rules}
		if a.Config, err = json.Marshal(net); err != nil {
			return nil, err
		}
		if a.Info, err = (protojson.MarshalOptions{UseProtoNames: true, AllowPartial: true}).Marshal(info); err != nil {
			return nil, module.InvalidArgument("network %s: %v", net.Name, err)
		}
		r.Networks = append(r.Networks, a)
	}
	// What does not fit is refused before anything was made. Results come on top and are small.
	if _, err := r.state(); err != nil {
		return nil, module.InvalidArgument("%v", err)
	}
	return r, nil
}

// invocation is how plugins are called for an attachment.
func (cfg *Config) invocation(r *record, a *attachment) (*invocation, error) {
	arguments, capability, err := wanted(a.info())
	if err != nil {
		return nil, err
	}
	in := &invocation{
		path: cfg.plugins(), id: r.ID, ifname: a.Interface, arguments: arguments, runtime: capability,
		timeout: cfg.PluginTimeout,
	}
	if isNetns(r.Netns) {
		in.netns = r.Netns
	}
	return in, nil
}

// join makes one interface.
func (i *Isolator) join(ctx context.Context, cfg *Config, f folder, c *containerv1.Container, r *record, a *attachment) error {
	net, err := parseNetwork(a.Config)
	if err != nil {
		return err
	}
	in, err := cfg.invocation(r, a)
	if err != nil {
		return err
	}
	if a.BuiltIn {
		if err := ensureBridge(); err != nil {
			return module.FailedPrecondition("network %s: %v", a.Network, err)
		}
	}
	a.Begun = true
	if err := f.save(r); err != nil {
		return module.FailedPrecondition("write record of networks: %v", err)
	}
	i.progress(cfg, r, "joins network "+a.Network)
	result, err := in.add(ctx, net)
	if err != nil {
		return explain(ctx, fmt.Errorf("network %s: %w", a.Network, err))
	}
	if missing := absent(a.info(), result); missing != "" {
		return module.FailedPrecondition("network %s: the address %s was asked for and not given", a.Network, missing)
	}
	a.Result = result
	if err := f.save(r); err != nil {
		return module.FailedPrecondition("write record of networks: %v", err)
	}
	if err := i.connectSoon(ctx, cfg, c, r, a); err != nil {
		return explain(ctx, fmt.Errorf("network %s: %w", a.Network, err))
	}
	return nil
}

// progress tells the host that a Prepare is at work, as long as one plugin may take.
func (i *Isolator) progress(cfg *Config, r *record, what string) {
	if r.Operation != "" {
		i.events.Progress(r.Operation, cfg.PluginTimeout+time.Second, what)
	}
}

// tryLater is what a plugin answers that wants to be asked again.
const tryLater = 11

// explain gives a plugin's failure its code.
func explain(ctx context.Context, err error) error {
	var said *pluginError
	switch {
	case status.Code(err) != codes.Unknown:
		return err
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case errors.As(err, &said) && said.Code == tryLater:
		return status.Error(codes.Unavailable, err.Error())
	}
	return module.FailedPrecondition("%v", err)
}

// addresses are those that a result gives to the container, not those of other interfaces.
func addresses(result json.RawMessage) []netip.Addr {
	r := parseResult(result)
	if r == nil {
		return nil
	}
	var list []netip.Addr
	for _, ip := range r.IPs {
		if n := ip.Interface; n != nil && *n >= 0 && *n < len(r.Interfaces) && r.Interfaces[*n] != nil && r.Interfaces[*n].Sandbox == "" {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			list = append(list, a.Unmap())
		}
	}
	return list
}

// parseResult reads a result that was normalized before; nil where there is none.
func parseResult(data json.RawMessage) *types100.Result {
	if data == nil {
		return nil
	}
	var v struct {
		Version string `json:"cniVersion"`
	}
	if json.Unmarshal(data, &v) != nil {
		return nil
	}
	if v.Version != types100.ImplementedSpecVersion {
		newer, err := normalize(data, types100.ImplementedSpecVersion)
		if err != nil {
			return nil
		}
		data = newer
	}
	r := &types100.Result{}
	if json.Unmarshal(data, r) != nil {
		return nil
	}
	r.IPs = slices.DeleteFunc(r.IPs, func(ip *types100.IPConfig) bool { return ip == nil })
	return r
}

// absent returns the first address that was asked for and is not among those given, or "".
func absent(info *mesosv1.NetworkInfo, result json.RawMessage) string {
	given := addresses(result)
	for _, text := range requested(info) {
		if a, err := parseAddress(text); err != nil || !slices.Contains(given, a.Unmap()) {
			return text
		}
	}
	return ""
}

// detach takes back what a record names, the last network first. What fails is told and may be tried again; the rest is
// gone.
func (i *Isolator) detach(ctx context.Context, cfg *Config, f folder, r *record) error {
	if !r.Done {
		if err := endStrays(ctx, r.ID); err != nil {
			return err
		}
	}
	var errs []error
	for n := range slices.Backward(r.Networks) {
		a := &r.Networks[n]
		if !a.Begun || a.Gone {
			continue
		}
		if err := i.leave(ctx, cfg, r, a); err != nil {
			errs = append(errs, fmt.Errorf("network %s: %w", a.Network, err))
			continue
		}
		a.Gone = true
	}
	if len(errs) > 0 {
		if _, err := os.Stat(string(f)); err == nil {
			errs = append(errs, f.save(r)) // what is gone need not go again
		}
		return errors.Join(errs...)
	}
	if err := dropNetns(f.netns()); err != nil {
		return err
	}
	return f.remove()
}

// leave takes one interface back.
func (i *Isolator) leave(ctx context.Context, cfg *Config, r *record, a *attachment) error {
	net, err := parseNetwork(a.Config)
	if len(a.Config) == 0 { // kept without, or guessed
		all, broken, failed := i.networks(cfg)
		if failed != nil {
			return failed
		}
		if net = all[a.Network]; net == nil {
			return fmt.Errorf("its configuration is gone, %s: %w", names(all), errors.Join(broken...))
		}
	} else if err != nil {
		return err
	}
	in, err := cfg.invocation(r, a)
	if err != nil {
		return err
	}
	if err := in.del(ctx, net, a.Result); err != nil {
		return err
	}
	return closeDown(ctx, a)
}

// guess is the record of a container whose record is lost, by what it asked for. Networks that are no longer known
// cannot have been joined by this module's doing, as far as anybody can tell.
func (i *Isolator) guess(cfg *Config, c *containerv1.Container) *record {
	w, err := wishOf(c, cfg.BridgeName)
	if err != nil || len(w.networks) == 0 {
		return nil
	}
	r, err := i.plan(cfg, folderOf(cfg.RunDir, c.GetId()), "", c, w)
	if err != nil {
		return nil
	}
	for n := range r.Networks {
		r.Networks[n].Begun = true
	}
	return r
}

// turns lets so many at a time have a turn.
type turns chan struct{}

// patience is how long a call waits for its turn before its caller is told to ask again. It is well below the shortest
// deadline of those calls: when hundreds of containers start or end at once it is not the module that is slow.
const patience = 5 * time.Second

// enter waits for a turn; leave gives it back.
func (t turns) enter(ctx context.Context) (leave func(), err error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case t <- struct{}{}:
		return func() { <-t }, nil
	case <-timer.C:
		return nil, status.Error(codes.Aborted, "other containers' networks come first")
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}
