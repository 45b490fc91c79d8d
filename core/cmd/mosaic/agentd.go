package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mosaic-cluster/mosaic/core/agent"
	"github.com/mosaic-cluster/mosaic/core/api"
	"github.com/mosaic-cluster/mosaic/core/config"
	"github.com/mosaic-cluster/mosaic/core/containerizer"
	"github.com/mosaic-cluster/mosaic/core/containerizer/cgroup"
	"github.com/mosaic-cluster/mosaic/core/containerizer/fetcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/oci"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/process"
	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner"
	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner/registry"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
	"github.com/mosaic-cluster/mosaic/core/modulehost"
)

// agentOptions are the settings of `mosaic agent`. What is empty comes from the configuration file, and what that does
// not say has a default.
type agentOptions struct {
	master     string
	listen     string
	workDir    string
	config     string
	hostname   string
	resources  string
	attributes string
	cgroupRoot string
	runtime    string
	logLevel   string
	insecure   bool
	// composition is what the configuration says.
	composition *config.Config
	// ephemeral ends all containers when the agent ends (mosaic dev).
	ephemeral bool
}

func newAgent() *cobra.Command {
	o := &agentOptions{}
	cmd := &cobra.Command{
		Use: "agent", Short: "Run an agent", Args: cobra.NoArgs,
		Long: `Runs an agent: it offers this machine's resources through a master and runs the tasks it is given.

It may be killed, upgraded and started again at any time on the same work directory: its tasks
go on meanwhile, and what happened to them is reported afterwards.`,
		Example: `  mosaic agent --master 10.0.0.1:5050 --work-dir /var/lib/mosaic/agent --config /etc/mosaic
  mosaic agent --resources 'cpus:8;mem:16384' --attributes 'rack:a1'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.configure(cmd); err != nil {
				return err
			}
			log, level, err := newLogger(cmd.ErrOrStderr(), o.logLevel)
			if err != nil {
				return err
			}
			l, err := listen(o.listen, "listen")
			if err != nil {
				return err
			}
			defer l.Close()
			if err := checkExposure(l, o.insecure, "listen"); err != nil {
				return err
			}
			return runAgent(cmd.Context(), *o, l, log, level, nil)
		},
	}
	f := cmd.Flags()
	masterFlag(cmd, &o.master)
	f.StringVar(&o.listen, "listen", defaultAgent, "address to listen on, HOST:PORT")
	f.StringVar(&o.workDir, "work-dir", "/var/lib/mosaic/agent", "folder for sandboxes and what must survive a restart")
	f.BoolVar(&o.insecure, "insecure", false, "listen on other addresses than loopback without authentication")
	f.StringVar(&o.hostname, "hostname", "", "name that others reach this machine under (default: the listening address, or the machine's name)")
	o.shared(cmd, "info")
	return cmd
}

// shared are the flags that `mosaic dev` has as well.
func (o *agentOptions) shared(cmd *cobra.Command, logLevel string) {
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "", "HCL file or folder with settings and the composition (default: the bundle's modules)")
	f.StringVar(&o.resources, "resources", "", "what to offer, such as 'cpus:4;mem:8192;ports:[31000-32000]' (default: what the machine has)")
	f.StringVar(&o.attributes, "attributes", "", "what frameworks may choose by, such as 'rack:a1;zone:west'")
	f.StringVar(&o.cgroupRoot, "cgroup-root", "mosaic", "cgroup below which containers get theirs")
	f.StringVar(&o.runtime, "runtime", "", "OCI runtime for all containers with a root filesystem (default: runc beside this program, for what needs one)")
	f.StringVar(&o.logLevel, "log-level", logLevel, "debug, info, warn or error")
}

// configure reads the configuration; what a flag says goes before it.
func (o *agentOptions) configure(cmd *cobra.Command) error {
	c, err := loadConfig(o.config)
	if err != nil {
		return err
	}
	o.composition = c
	f := settingsOf(cmd)
	f.text("log-level", c.LogLevel, &o.logLevel)
	f.text("listen", c.Agent.Listen, &o.listen)
	f.text("work-dir", c.Agent.WorkDir, &o.workDir)
	f.text("hostname", c.Agent.Hostname, &o.hostname)
	f.text("resources", c.Agent.Resources, &o.resources)
	f.text("attributes", c.Agent.Attributes, &o.attributes)
	f.text("cgroup-root", c.Agent.CgroupRoot, &o.cgroupRoot)
	f.text("runtime", c.Agent.Runtime, &o.runtime)
	f.text("master", strings.Join(c.Agent.Masters, ","), &o.master)
	if !cmd.Flags().Changed("insecure") {
		o.insecure = c.Agent.Insecure
	}
	return nil
}

// runAgent runs an agent on an open port until ctx ends. ready, if not nil, is called once it takes part.
func runAgent(ctx context.Context, o agentOptions, l net.Listener, log *slog.Logger, level *slog.LevelVar, ready func(*modulehost.Host)) (err error) {
	workDir, err := absolute(o.workDir)
	if err != nil {
		return err
	}
	if o.ephemeral {
		defer removeCgroups(ctx, o, workDir)
	}
	c, set := o.composition, o.composition.Agent
	store, err := agent.OpenStore(filepath.Join(workDir, "agent.db"))
	if err != nil {
		return fmt.Errorf("open the checkpoint: %w", err)
	}
	defer closing(&err, store.Close)

	run := set.RunDir
	if run == "" {
		run = runDir(workDir)
	}
	if err := makeRunDir(run); err != nil {
		return err
	}
	if o.ephemeral {
		defer os.RemoveAll(run)
	}
	resolver := &secrets{}
	images, err := newImages(o, workDir, resolver, log)
	if err != nil {
		return err
	}
	defer closing(&err, images.Close)
	ctzr, err := newContainerizer(o, workDir, run, store, images, resolver, log)
	if err != nil {
		return err
	}
	defer closing(&err, func() error { return withTimeout(ctx, ctzr.Close) })

	metrics := newMetrics()
	bundle, err := orBeside(set.Bundle, "mosaic-modules")
	if err != nil {
		return err
	}
	node, err := nodeFacts(workDir, o.cgroupRoot)
	if err != nil {
		return err
	}
	node.Ports = offeredPorts(o.resources)
	programs, err := programDirs(set.ModuleDir)
	if err != nil {
		return err
	}
	host, err := modulehost.Start(ctx, modulehost.Options{
		Version: version, Bundle: bundle, ProgramDirs: programs, RunDir: filepath.Join(run, "m"), LogDir: filepath.Join(workDir, "logs", "modules"),
		CacheDir: schemaCacheDir(), Cgroup: moduleCgroup(o, workDir), Node: node, Containers: ctzr, Logger: log, Metrics: metrics,
	}, ofKinds(c, agentKinds()))
	if err != nil {
		return compositionError(err, c)
	}
	defer closing(&err, func() error { return withTimeout(ctx, host.Close) })
	resolver.host = host
	offered, err := offeredResources(ctx, o.resources, host)
	if err != nil {
		return compositionError(err, c)
	}
	var isolators []containerizer.Isolator
	for _, i := range host.Isolators() {
		isolators = append(isolators, i)
	}
	if err := ctzr.Use(isolators); err != nil {
		return err
	}
	if logger := host.ContainerLogger(); logger != nil {
		ctzr.UseLogger(logger)
	}

	machine := o.hostname
	if machine == "" {
		if machine, err = os.Hostname(); err != nil {
			return fmt.Errorf("find the machine's name (set --hostname): %w", err)
		}
	}
	name, port, err := reachedAt(set.Advertise, l.Addr(), machine)
	if err != nil {
		return err
	}
	if o.hostname != "" {
		name = o.hostname
	}
	deps := agent.Deps{
		Containerizer: ctzr, Images: images, Store: store, Logger: log, LogLevel: level,
		DialOptions: []grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		},
	}
	oversubscription(host, &deps)
	edgeConfig := api.Config{Version: versionInfo(), Metrics: metrics, Log: log}
	if authorizer := host.Authorizer(); authorizer != nil {
		a := approvers{authorizer}
		deps.Approver, edgeConfig.Approver = onContainers{a}, routes{a}
	}
	pause, err := orBeside(set.Shim, "mosaic-shim")
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Config{
		WorkDir: workDir, Masters: strings.Split(o.master, ","), Hostname: name, IP: ipv4(name), Port: port,
		Resources: offered, Attributes: o.attributes, CgroupRoot: o.cgroupRoot, KeepUser: !switchUser(set),
		DefaultRole: set.DefaultRole, ReconfigurationPolicy: set.ReconfigurationPolicy, ExecutorEnvironment: set.ExecutorEnvironment,
		SandboxDirectory: set.SandboxDirectory, ExecutorRegistrationTimeout: set.ExecutorRegistrationTimeout,
		ExecutorReregistrationTimeout: set.ExecutorReregistrationTimeout, ExecutorShutdownGracePeriod: set.ExecutorShutdownGracePeriod,
		RecoveryTimeout: set.RecoveryTimeout, RegistrationBackoffMin: set.RegistrationBackoffMin, RegistrationBackoffMax: set.RegistrationBackoffMax,
		OversubscribedResourcesInterval: set.OversubscribedResourcesInterval, QoSCorrectionInterval: set.QoSCorrectionInterval,
		GCDelay: set.GCDelay, GCDiskHeadroom: set.GCDiskHeadroom, Domain: domainOf(set.Region, set.Zone), Pause: []string{pause, "pause"},
		MaxCompletedExecutors: zeroIsNone(set.MaxCompletedExecutors),
		Version:               versionInfo(), Flags: map[string]string{"work_dir": workDir, "port": strconv.Itoa(port), "config": o.config},
	}, deps)
	if err != nil {
		return err
	}
	edge := api.NewAgent(edgeConfig,
		api.AgentDeps{Agent: a, ContainerIO: a, Files: a, Images: images, Modules: func() any { return moduleRows(host.Status()) }})
	if ready != nil {
		ready(host)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.Run(gctx) })
	g.Go(func() error { return reportOwed(gctx, host, ctzr.Owed) })
	g.Go(func() error { return images.Run(gctx) })
	g.Go(func() error { return serve(gctx, l, edge, nil, log) })
	err = ended(ctx, g.Wait())
	if o.ephemeral {
		err = errors.Join(err, endContainers(ctx, ctzr, store))
	}
	return err
}

// moduleCgroup is where an agent's modules get their cgroups: two agents of one machine must not share it. An ordinary
// user has none.
func moduleCgroup(o agentOptions, workDir string) string {
	if os.Geteuid() != 0 {
		return ""
	}
	return o.cgroupRoot + "-modules-" + filepath.Base(runDir(workDir))
}

// removeCgroups takes the cgroups of an ephemeral agent away, as far as nobody else uses them.
func removeCgroups(ctx context.Context, o agentOptions, workDir string) {
	groups, err := cgroup.Detect()
	if err != nil || os.Geteuid() != 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	for _, path := range []string{o.cgroupRoot, moduleCgroup(o, workDir)} {
		if g, err := groups.Group(path); err == nil {
			_ = g.Remove(ctx) // another agent may have the same root, and something in it
		}
	}
}

// newImages wires what makes root filesystems.
func newImages(o agentOptions, workDir string, resolver *secrets, log *slog.Logger) (*provisioner.Provisioner, error) {
	set := o.composition.Agent
	return provisioner.New(provisioner.Config{
		Dir: filepath.Join(workDir, "images"), Backend: set.ImageBackend, Archives: set.ImageArchives,
		AppcPrefix: set.AppcPrefix, AppcStore: set.AppcStore, Secret: resolver.resolve, Logger: log,
		PullStall: set.FetcherStallTimeout,
		Registries: registry.Config{
			Default: set.DockerRegistry, CredentialsFile: set.DockerConfig, CAFile: set.RegistryCA,
			Mirrors: set.RegistryMirrors, PlainHTTP: set.RegistryPlainHTTP,
		},
		GC: provisioner.GCConfig{Headroom: set.ImageDiskHeadroom, Interval: set.ImageDiskWatchInterval, Excluded: set.ImageGCExcluded},
	})
}

// newContainerizer wires launchers and the fetcher.
func newContainerizer(o agentOptions, workDir, run string, store *agent.Store, images *provisioner.Provisioner, resolver *secrets, log *slog.Logger) (*containerizer.Containerizer, error) {
	groups, err := cgroup.Detect()
	if err != nil && !errors.Is(err, cgroup.ErrNone) {
		return nil, err
	}
	launchers, err := newLaunchers(o, groups, log)
	if err != nil {
		return nil, err
	}
	set := o.composition.Agent
	var deny []netip.Prefix
	for _, text := range set.FetcherDeny {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("fetcher_deny: %w", err)
		}
		deny = append(deny, p)
	}
	var ca []byte
	if set.FetcherCA != "" {
		if ca, err = os.ReadFile(set.FetcherCA); err != nil {
			return nil, fmt.Errorf("fetcher_ca: %w", err)
		}
	}
	fetch, err := fetcher.New(fetcher.Config{
		CacheDir: filepath.Join(workDir, "fetch"), CacheSize: int64(set.FetcherCacheSize), StallTimeout: set.FetcherStallTimeout,
		MaxSize: int64(set.FetcherMaxSize), Schemes: set.FetcherSchemes, Redirects: zeroIsNone(set.FetcherRedirects), Deny: deny, CA: ca, Hadoop: set.FetcherHadoop, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	initProgram, _ := beside("mosaic-init") // without it containers that ask for an init are refused
	return containerizer.New(containerizer.Config{
		Init: initProgram,
		Docker: containerizer.DockerConfig{
			Bridge: set.DockerBridge, Capabilities: set.DockerCapabilities, Seccomp: set.DockerSeccomp,
			Devices: set.DockerDevices, Privileged: set.DockerPrivileged,
		},
		Launchers: launchers, Store: store, Images: images, Fetcher: fetch,
		RunDir: run, CgroupRoot: o.cgroupRoot, SwitchUser: switchUser(o.composition.Agent), Logger: log,
		Secret: resolver.resolve,
		Fence: func(ctx context.Context, path string) error {
			if groups == nil {
				return nil
			}
			g, err := groups.Group(path)
			if err != nil {
				return err
			}
			if err := g.Kill(ctx); err != nil {
				return err
			}
			return g.Remove(ctx)
		},
	})
}

// newLaunchers wires the ways to start a container, the cheapest first.
func newLaunchers(o agentOptions, groups *cgroup.Hierarchy, log *slog.Logger) ([]launcher.Launcher, error) {
	set := o.composition.Agent
	path, err := orBeside(set.Shim, "mosaic-shim")
	if err != nil {
		return nil, err
	}
	supervisor, err := shim.Open(path)
	if err != nil {
		return nil, err
	}
	order := set.Launchers
	if len(order) == 0 {
		order = []string{process.Name, oci.Name}
	}
	var launchers []launcher.Launcher
	for _, name := range order {
		if name == process.Name {
			bare := process.New(supervisor, groups, log)
			if o.runtime == "" { // who names a runtime wants it used
				bare = bare.WithRoots()
			}
			launchers = append(launchers, bare)
			continue
		}
		path, err := orBeside(o.runtime, "runc")
		var runtime *shim.Binary
		if err == nil {
			runtime, err = shim.Open(path)
		}
		switch {
		case err == nil:
			launchers = append(launchers, oci.New(supervisor, runtime, groups, log))
		case o.runtime != "" || len(order) == 1:
			return nil, err
		default:
			log.Warn("containers with a root filesystem of their own cannot run here", "error", err)
		}
	}
	return launchers, nil
}

// orBeside is a configured path, or that of a program beside this one.
func orBeside(configured, name string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	return beside(name)
}

// switchUser says whether tasks run as their own user.
func switchUser(set config.Agent) bool {
	return os.Geteuid() == 0 && (set.SwitchUser == nil || *set.SwitchUser)
}

// endContainers ends everything the agent runs and waits until nothing is owed for it, for clusters that do not outlive
// their terminal.
func endContainers(ctx context.Context, c *containerizer.Containerizer, store *agent.Store) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	list, err := store.Containers(ctx)
	if err != nil {
		return fmt.Errorf("list what still runs: %w", err)
	}
	g := errgroup.Group{}
	g.SetLimit(16)
	for _, cp := range list {
		id := cp.GetContainer().GetId()
		g.Go(func() error {
			err := c.Destroy(ctx, id, nil)
			if err == nil {
				err = c.Forget(ctx, id)
			}
			if err != nil && !errors.Is(err, containerizer.ErrNotFound) {
				return fmt.Errorf("end container %s: %w", id, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for {
		if list, err = store.Containers(ctx); err != nil || len(list) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d containers are not cleaned up: %w", len(list), ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// closing runs a deferred close and keeps its error if there is no other.
func closing(err *error, closer func() error) {
	if cerr := closer(); *err == nil {
		*err = cerr
	}
}

// withTimeout bounds what is done after the daemon's own context has ended.
func withTimeout(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return f(ctx)
}
