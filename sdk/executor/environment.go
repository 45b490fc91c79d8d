package executor

import (
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"
)

// Environment is what an agent tells an executor by its environment variables.
type Environment struct {
	FrameworkID string // MESOS_FRAMEWORK_ID
	ExecutorID  string // MESOS_EXECUTOR_ID
	AgentID     string // MESOS_SLAVE_ID; may be empty
	// AgentEndpoint is host:port of the agent, MESOS_AGENT_ENDPOINT.
	AgentEndpoint string
	// DomainSocket is a socket to reach the agent by, in place of its endpoint; mostly empty. MESOS_DOMAIN_SOCKET.
	DomainSocket string
	// Directory is the sandbox on the machine, and Sandbox as the executor sees it. MESOS_DIRECTORY, MESOS_SANDBOX.
	Directory, Sandbox string
	// Checkpoint says whether the executor survives its agent's restart. MESOS_CHECKPOINT.
	Checkpoint bool
	// RecoveryTimeout is how long to wait for an agent that is away; 0 without Checkpoint. MESOS_RECOVERY_TIMEOUT.
	RecoveryTimeout time.Duration
	// SubscriptionBackoffMax bounds the pause between attempts to reach the agent. MESOS_SUBSCRIPTION_BACKOFF_MAX.
	SubscriptionBackoffMax time.Duration
	// ShutdownGracePeriod is the time between SHUTDOWN and being killed. MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD.
	ShutdownGracePeriod time.Duration
	// AuthenticationToken is sent with every call; mostly empty. MESOS_EXECUTOR_AUTHENTICATION_TOKEN.
	AuthenticationToken string
}

const (
	defaultRecoveryTimeout = 15 * time.Minute
	defaultBackoffMax      = 2 * time.Second
	defaultGrace           = 5 * time.Second
)

// ReadEnvironment reads what an agent has given, by a function such as os.LookupEnv. What an older agent does not give
// has Mesos's defaults.
//
// Errors: a required variable is missing, or one makes no sense; it is named. The process was then not started by an
// agent.
func ReadEnvironment(lookup func(string) (string, bool)) (Environment, error) {
	get := func(name string) string {
		v, _ := lookup(name)
		return v
	}
	e := Environment{
		FrameworkID: get("MESOS_FRAMEWORK_ID"), ExecutorID: get("MESOS_EXECUTOR_ID"), AgentID: get("MESOS_SLAVE_ID"),
		AgentEndpoint: get("MESOS_AGENT_ENDPOINT"), DomainSocket: get("MESOS_DOMAIN_SOCKET"),
		Directory: get("MESOS_DIRECTORY"), Sandbox: get("MESOS_SANDBOX"),
		Checkpoint:          get("MESOS_CHECKPOINT") == "1",
		AuthenticationToken: get("MESOS_EXECUTOR_AUTHENTICATION_TOKEN"),
	}
	for _, required := range []struct{ name, value string }{
		{"MESOS_FRAMEWORK_ID", e.FrameworkID}, {"MESOS_EXECUTOR_ID", e.ExecutorID}, {"MESOS_AGENT_ENDPOINT", e.AgentEndpoint},
	} {
		if required.value == "" {
			return Environment{}, fmt.Errorf("%s is not set: executors are started by agents", required.name)
		}
	}
	if _, _, err := net.SplitHostPort(e.AgentEndpoint); err != nil {
		return Environment{}, fmt.Errorf("MESOS_AGENT_ENDPOINT: %w", err)
	}
	if e.Sandbox == "" {
		e.Sandbox = e.Directory
	}
	for _, d := range []struct {
		name string
		into *time.Duration
		none time.Duration
	}{
		{"MESOS_RECOVERY_TIMEOUT", &e.RecoveryTimeout, defaultRecoveryTimeout},
		{"MESOS_SUBSCRIPTION_BACKOFF_MAX", &e.SubscriptionBackoffMax, defaultBackoffMax},
		{"MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD", &e.ShutdownGracePeriod, defaultGrace},
	} {
		v := get(d.name)
		if v == "" {
			*d.into = d.none
			continue
		}
		var err error
		if *d.into, err = parseDuration(v); err != nil {
			return Environment{}, fmt.Errorf("%s: %w", d.name, err)
		}
	}
	if !e.Checkpoint {
		e.RecoveryTimeout = 0
	}
	return e, nil
}

// units are Mesos's words for units of time.
var units = []struct {
	name string
	d    time.Duration
}{
	{"ns", time.Nanosecond}, {"us", time.Microsecond}, {"ms", time.Millisecond}, {"secs", time.Second},
	{"mins", time.Minute}, {"hrs", time.Hour}, {"days", 24 * time.Hour}, {"weeks", 7 * 24 * time.Hour},
}

// parseDuration reads a duration as Mesos spells it, a number and a unit: 5secs, 1.5hrs.
func parseDuration(s string) (time.Duration, error) {
	end := strings.LastIndexAny(s, "0123456789.") + 1
	for _, u := range units {
		if s[end:] != u.name {
			continue
		}
		n, err := strconv.ParseFloat(s[:end], 64)
		if d := n * float64(u.d); err == nil && d >= 0 && d < math.MaxInt64 {
			return time.Duration(d), nil
		}
		break
	}
	return 0, fmt.Errorf("got %q, want a duration such as 5secs or 15mins", s)
}
