package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/mosaic-cluster/mosaic/core/api"
	"github.com/mosaic-cluster/mosaic/core/config"
	"github.com/mosaic-cluster/mosaic/core/master"
	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// masterOptions are the settings of `mosaic master`.
type masterOptions struct {
	listen   string
	workDir  string
	config   string
	hostname string
	cluster  string
	logLevel string
	insecure bool
	settings config.Master
	// composition is what the configuration says.
	composition *config.Config
}

func newMaster() *cobra.Command {
	o := &masterOptions{}
	cmd := &cobra.Command{
		Use: "master", Short: "Run a master", Args: cobra.NoArgs,
		Long: `Runs a master: it offers the agents' resources to the frameworks and keeps what must survive it
in its work directory. It may be killed and started again at any time; tasks go on meanwhile.`,
		Example: "  mosaic master --work-dir /var/lib/mosaic/master",
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
			return runMaster(cmd.Context(), *o, l, log, level)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", defaultMaster, "address to listen on, HOST:PORT")
	f.StringVar(&o.workDir, "work-dir", "/var/lib/mosaic/master", "folder for what must survive a restart")
	f.StringVar(&o.config, "config", "", "HCL file or folder with settings and the composition")
	f.StringVar(&o.hostname, "hostname", "", "name that others reach this machine under (default: the machine's)")
	f.StringVar(&o.cluster, "cluster", "", "name of the cluster, for people")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.BoolVar(&o.insecure, "insecure", false, "listen on other addresses than loopback without authentication")
	return cmd
}

// configure reads the configuration; what a flag says goes before it.
func (o *masterOptions) configure(cmd *cobra.Command) error {
	c, err := loadConfig(o.config)
	if err != nil {
		return err
	}
	o.settings, o.composition = c.Master, c
	f := settingsOf(cmd)
	f.text("log-level", c.LogLevel, &o.logLevel)
	f.text("listen", c.Master.Listen, &o.listen)
	f.text("work-dir", c.Master.WorkDir, &o.workDir)
	f.text("hostname", c.Master.Hostname, &o.hostname)
	f.text("cluster", c.Master.Cluster, &o.cluster)
	if !cmd.Flags().Changed("insecure") {
		o.insecure = c.Master.Insecure
	}
	return nil
}

// maxMessage bounds what agents and masters send each other at once: an agent's registration names all its tasks.
const maxMessage = 256 << 20

// runMaster runs a master on an open port until ctx ends.
func runMaster(ctx context.Context, o masterOptions, l net.Listener, log *slog.Logger, level *slog.LevelVar) (err error) {
	workDir, err := absolute(o.workDir)
	if err != nil {
		return err
	}
	store, err := registry.OpenEmbedded(ctx, registry.EmbeddedConfig{Dir: filepath.Join(workDir, "registry"), Name: "master", Logger: log})
	if err != nil {
		return fmt.Errorf("open the registry: %w", err)
	}
	defer store.Close()
	hostname := o.hostname
	if hostname == "" {
		if hostname, err = os.Hostname(); err != nil {
			return fmt.Errorf("find the machine's name (set --hostname): %w", err)
		}
	}
	host, port, err := reachedAt(o.settings.Advertise, l.Addr(), hostname)
	if err != nil {
		return err
	}
	metrics := newMetrics()
	deps := master.Deps{Registry: store, Logger: log, LogLevel: level}
	edgeConfig := api.Config{Version: versionInfo(), Metrics: metrics, Log: log}
	modules, err := masterModules(ctx, o.composition, workDir, log, metrics)
	if err != nil {
		return err
	}
	if modules != nil {
		defer closing(&err, func() error { return withTimeout(ctx, modules.Close) })
		a := approvers{modules.Authorizer()}
		deps.Approvers, edgeConfig.Approver = a, routes{a}
	}
	set := o.settings
	m, err := master.New(master.Config{
		AllocationInterval: set.AllocationInterval, OfferTimeout: zeroIsNone(set.OfferTimeout), PingInterval: set.PingInterval,
		MaxPingTimeouts: set.MaxPingTimeouts, AgentReregisterTimeout: set.AgentReregisterTimeout,
		RemovalInterval: set.AgentRemovalInterval, RecoveryRemovalLimit: set.RecoveryAgentRemovalLimit,
		MaxCompletedFrameworks: zeroIsNone(set.MaxCompletedFrameworks), MaxCompletedTasksPerFramework: zeroIsNone(set.MaxCompletedTasksPerFramework),
		MaxUnreachableTasksPerFramework: zeroIsNone(set.MaxUnreachableTasksPerFramework),
		RegistryGCInterval:              set.RegistryGCInterval, RegistryMaxAge: set.RegistryMaxAge, RegistryMaxAgents: set.RegistryMaxAgents,
		KeepPlace:  isFalse(set.DemoteRefusers),
		RoleSorter: set.RoleSorter, FrameworkSorter: set.FrameworkSorter, ShareExcluded: set.FairSharingExcluded,
		NoFilterGPUResources: isFalse(set.FilterGPUResources), NoPerFrameworkMetrics: isFalse(set.PerFrameworkMetrics),
		Domain: domainOf(set.Region, set.Zone), RequireAgentDomain: set.RequireAgentDomain, Roles: set.Roles, Whitelist: set.Whitelist,
		NoRootSubmissions: isFalse(set.RootSubmissions),
		Hostname:          host, IP: ipv4(host), Port: port, Version: mesosVersion, Cluster: o.cluster,
		Flags: map[string]string{
			"work_dir": workDir, "port": strconv.Itoa(port), "hostname": host, "cluster": o.cluster, "version": version,
		},
	}, deps)
	if err != nil {
		return err
	}
	metrics.MustRegister(m.Collector())
	rpc := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}))
	m.Register(rpc)
	edge := api.NewMaster(edgeConfig, api.MasterDeps{Master: m, UI: http.HandlerFunc(front)})
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.Run(gctx) })
	g.Go(func() error { return serve(gctx, l, edge, rpc, log) })
	return ended(ctx, g.Wait())
}

// isFalse is for settings that are on unless said otherwise.
func isFalse(setting *bool) bool { return setting != nil && !*setting }

// zeroIsNone is a setting as daemons take it: negative for 0, which is none, and 0, which is the default, when nothing is said.
func zeroIsNone[T int | time.Duration](setting *T) T {
	switch {
	case setting == nil:
		return 0
	case *setting == 0:
		return -1
	}
	return *setting
}

// domainOf is a fault domain, nil when there is none.
func domainOf(region, zone string) *mesosv1.DomainInfo {
	if region == "" && zone == "" {
		return nil
	}
	return &mesosv1.DomainInfo{FaultDomain: &mesosv1.DomainInfo_FaultDomain{
		Region: &mesosv1.DomainInfo_FaultDomain_RegionInfo{Name: &region},
		Zone:   &mesosv1.DomainInfo_FaultDomain_ZoneInfo{Name: &zone},
	}}
}

// front is the page at / until there is a web page.
func front(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "Mosaic %s. The v1 API of Apache Mesos %s is below /api/v1; 'mosaic --help' shows the tools.\n", version, mesosVersion)
}

// ended drops the error of a daemon that was told to end.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func versionInfo() *mesosv1.VersionInfo {
	v, build := mesosVersion, version
	return &mesosv1.VersionInfo{Version: &v, GitTag: &build}
}

func newMetrics() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "mosaic_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": version, "mesos_version": mesosVersion},
	})
	build.Set(1)
	r.MustRegister(build)
	return r
}

// ipv4 is an address that old fields of the API want; names are resolved once.
func ipv4(host string) string {
	if ip := net.ParseIP(host); ip != nil {
		return ip.String()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupIP(ctx, "ip4", host)
	if err != nil || len(addrs) == 0 {
		return "127.0.0.1"
	}
	return addrs[0].String()
}
