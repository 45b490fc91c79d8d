package config

import "time"

// Master has the settings of the master block. What is zero was not said.
type Master struct {
	// Address to listen on, HOST:PORT.
	Listen string `name:"listen" form:"address"`
	// Address under which others reach it, HOST:PORT.
	Advertise string `name:"advertise" form:"address"`
	// Folder for what must survive a restart.
	WorkDir string `name:"work_dir" form:"path"`
	// Name under which clients reach it.
	Hostname string `name:"hostname"`
	// The cluster's name, for people.
	Cluster string `name:"cluster"`
	// Listen on other addresses than loopback without authentication.
	Insecure bool `name:"insecure"`

	AllocationInterval time.Duration `name:"allocation_interval" min:"1ms"`
	// How long a framework may keep an offer without an answer; "0s" is for ever, as in Mesos, nil if not said.
	OfferTimeout           *time.Duration `name:"offer_timeout" min:"0s"`
	PingInterval           time.Duration  `name:"ping_interval" min:"100ms"`
	MaxPingTimeouts        int            `name:"max_ping_timeouts" min:"1"`
	AgentReregisterTimeout time.Duration  `name:"agent_reregister_timeout" min:"1s"`

	// Least time between two agents that are given up as unreachable.
	AgentRemovalInterval time.Duration `name:"agent_removal_interval" min:"1ms"`
	// Greatest part of a former master's agents that may fail to return before the master stops instead.
	RecoveryAgentRemovalLimit float64 `name:"recovery_agent_removal_limit" min:"0" max:"1"`

	// How much of the past is known; 0 is nothing, nil if not said.
	MaxCompletedFrameworks          *int `name:"max_completed_frameworks" min:"0"`
	MaxCompletedTasksPerFramework   *int `name:"max_completed_tasks_per_framework" min:"0"`
	MaxUnreachableTasksPerFramework *int `name:"max_unreachable_tasks_per_framework" min:"0"`

	// Agents that left: how often they are looked through, how long and how many of them are known.
	RegistryGCInterval time.Duration `name:"registry_gc_interval" min:"1s"`
	RegistryMaxAge     time.Duration `name:"registry_max_agent_age" min:"1s"`
	RegistryMaxAgents  int           `name:"registry_max_agent_count" min:"1"`

	// Whether frameworks that are slow to refuse all they are offered go behind the others; nil if not said.
	DemoteRefusers *bool `name:"demote_refusers"`
	// How roles, and frameworks within a role, are put in line.
	RoleSorter      string `name:"role_sorter" oneof:"drf,random"`
	FrameworkSorter string `name:"framework_sorter" oneof:"drf,random"`
	// Resources that do not count in shares.
	FairSharingExcluded []string `name:"fair_sharing_excluded_resource_names"`
	// Whether agents with gpus are for GPU_RESOURCES frameworks only; nil if not said.
	FilterGPUResources *bool `name:"filter_gpu_resources"`
	// The only roles that may be used, if any are named, beside "*".
	Roles []string `name:"roles"`
	// File with the hostnames of the agents that may be offered, read again when it changes.
	Whitelist string `name:"whitelist" form:"path"`
	// Fault domain of the master, and whether agents must have one.
	Region             string `name:"region"`
	Zone               string `name:"zone"`
	RequireAgentDomain bool   `name:"require_agent_domain"`
	// Whether /metrics/snapshot has numbers of single frameworks; nil if not said.
	PerFrameworkMetrics *bool `name:"publish_per_framework_metrics"`

	// Whether frameworks and tasks may run as root; nil if not said.
	RootSubmissions *bool `name:"root_submissions"`

	// Folder with the programs of modules that the bundle does not hold.
	ModuleDir string `name:"module_dir" form:"path"`
}

// Agent has the settings of the agent block. What is zero was not said.
type Agent struct {
	// Address to listen on, HOST:PORT.
	Listen string `name:"listen" form:"address"`
	// Address under which others reach it, HOST:PORT.
	Advertise string `name:"advertise" form:"address"`
	// Addresses of the masters, HOST:PORT, to be tried in turn.
	Masters []string `name:"master" form:"address"`
	// Folder for sandboxes and what must survive a restart.
	WorkDir string `name:"work_dir" form:"path"`
	// Folder for sockets, best in memory.
	RunDir string `name:"run_dir" form:"path"`
	// Name under which frameworks find the agent.
	Hostname string `name:"hostname"`
	// Resources as text, such as "cpus:4;mem:8192"; what is not said is detected.
	Resources string `name:"resources"`
	// Role of what Resources gives no role.
	DefaultRole string `name:"default_role"`
	// Attributes as text, such as "rack:a1;zone:west".
	Attributes string `name:"attributes"`
	// Fault domain of the agent.
	Region string `name:"region"`
	Zone   string `name:"zone"`
	// Listen on other addresses than loopback without authentication.
	Insecure bool `name:"insecure"`

	// cgroup below which containers get theirs, relative to the hierarchies' mounts.
	CgroupRoot string `name:"cgroup_root"`
	// Launchers in the order in which they are tried.
	Launchers []string `name:"launchers" oneof:"process,oci"`
	// OCI runtime for containers with a root filesystem.
	Runtime string `name:"runtime" form:"path"`
	// The multi-call binary with the bundle's modules.
	Bundle string `name:"bundle" form:"path"`
	// Folder with the programs of modules that the bundle does not hold.
	ModuleDir string `name:"module_dir" form:"path"`
	// The containers' supervisor.
	Shim string `name:"shim" form:"path"`

	// Whether tasks run as their own user; nil if not said.
	SwitchUser *bool `name:"switch_user"`
	// Replaces what containers inherit of the agent's environment.
	ExecutorEnvironment map[string]string `name:"executor_environment"`
	// Where a container with its own root filesystem sees its sandbox.
	SandboxDirectory string `name:"sandbox_directory" form:"path"`
	// Which changes of resources and attributes an agent may come back with.
	ReconfigurationPolicy string `name:"reconfiguration_policy" oneof:"equal,additive"`

	ExecutorRegistrationTimeout   time.Duration `name:"executor_registration_timeout" min:"1s"`
	ExecutorReregistrationTimeout time.Duration `name:"executor_reregistration_timeout" min:"1s" max:"15s"`
	ExecutorShutdownGracePeriod   time.Duration `name:"executor_shutdown_grace_period" min:"0s"`
	RecoveryTimeout               time.Duration `name:"recovery_timeout" min:"1s"`
	RegistrationBackoffMin        time.Duration `name:"registration_backoff_min" min:"1ms"`
	RegistrationBackoffMax        time.Duration `name:"registration_backoff_max" min:"1ms"`

	OversubscribedResourcesInterval time.Duration `name:"oversubscribed_resources_interval" min:"100ms"`
	QoSCorrectionInterval           time.Duration `name:"qos_correction_interval" min:"100ms"`

	// Age at which sandboxes of ended executors are removed, and the share of the disk to be kept free by removing
	// them earlier.
	GCDelay        time.Duration `name:"gc_delay" min:"0s"`
	GCDiskHeadroom float64       `name:"gc_disk_headroom" min:"0" max:"1"`

	// Ended executors of each framework that are known; 0 is none, nil if not said.
	MaxCompletedExecutors *int `name:"max_completed_executors_per_framework" min:"0"`

	// Images: the registry of names that say none, Docker's configuration file with credentials, certificates of further
	// authorities, mirrors of registries as URLs, and registries spoken with in plain HTTP.
	DockerRegistry    string              `name:"docker_registry"`
	DockerConfig      string              `name:"docker_config" form:"path"`
	RegistryCA        string              `name:"registry_ca" form:"path"`
	RegistryMirrors   map[string][]string `name:"registry_mirrors"`
	RegistryPlainHTTP []string            `name:"registry_plain_http"`
	// Folder of archives to take images from instead; where Appc images are found, and those that are there.
	ImageArchives string `name:"image_archives" form:"path"`
	AppcPrefix    string `name:"appc_simple_discovery_uri_prefix"`
	AppcStore     string `name:"appc_store_dir" form:"path"`
	// How containers get roots of their own.
	ImageBackend string `name:"image_provisioner_backend" oneof:"overlay,copy"`
	// Share of the disk to be kept free by removing images nobody uses, how often it is looked at, and which stay.
	ImageDiskHeadroom      float64       `name:"image_disk_headroom" min:"0" max:"0.99"`
	ImageDiskWatchInterval time.Duration `name:"image_disk_watch_interval" min:"1s"`
	ImageGCExcluded        []string      `name:"image_gc_excluded"`

	// Containers of type DOCKER: the network that BRIDGE means, the capabilities and the seccomp profile that they have if
	// they ask for none, devices of the machine that they may ask for, and whether they may be privileged.
	DockerBridge       string   `name:"docker_bridge"`
	DockerCapabilities []string `name:"docker_capabilities"`
	DockerSeccomp      string   `name:"docker_seccomp"`
	DockerDevices      []string `name:"docker_devices"`
	DockerPrivileged   bool     `name:"docker_privileged"`

	// Fetching of URIs: schemes and redirects allowed, networks nothing is fetched from, certificates that servers are
	// trusted by beside the machine's, Hadoop's client, how long a download may stand still, how much one may bring, and how
	// much of it is kept.
	FetcherSchemes      []string      `name:"fetcher_schemes" oneof:"http,https,ftp,ftps,file,hdfs,webhdfs,swebhdfs,hftp,viewfs,s3,s3n,s3a,gs,abfs,abfss,wasb,wasbs,maprfs"`
	FetcherCA           string        `name:"fetcher_ca" form:"path"`
	FetcherHadoop       string        `name:"fetcher_hadoop" form:"path"`
	FetcherRedirects    *int          `name:"fetcher_redirects" min:"0"`
	FetcherDeny         []string      `name:"fetcher_deny"`
	FetcherStallTimeout time.Duration `name:"fetcher_stall_timeout" min:"1s"`
	FetcherMaxSize      Bytes         `name:"fetcher_max_size"`
	FetcherCacheSize    Bytes         `name:"fetcher_cache_size" min:"0"`
}

// Bytes is an amount of memory or disk.
type Bytes uint64
