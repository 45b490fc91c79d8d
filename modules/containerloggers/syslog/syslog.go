// Package syslog is the container logger for a syslog server: the machine's own daemon, or one on the network.
//
// It only says what runs: a forwarder for each stream, a small process that the agent keeps as a helper, so that output
// goes on without this module. It keeps no state.
package syslog

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mosaic-cluster/mosaic/modules/containerloggers/syslog/forward"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	containerloggerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/containerlogger/v1"
)

// program is the forwarder's name.
const program = "mosaic-syslog-forwarder"

// Config is what the operator may set.
type Config struct {
	Address   string      `hcl:"address,optional" doc:"unix:///dev/log, udp://host:514 or tcp://host:601."`
	Format    string      `hcl:"format,optional" doc:"Form of messages; empty is what fits the address." oneof:",rfc5424,rfc3164"`
	Facility  string      `hcl:"facility,optional" doc:"Facility of messages, such as user or local3."`
	Stdout    string      `hcl:"stdout_severity,optional" doc:"Severity of what is written to stdout." oneof:"emerg,alert,crit,err,warning,notice,info,debug"`
	Stderr    string      `hcl:"stderr_severity,optional" doc:"Severity of what is written to stderr." oneof:"emerg,alert,crit,err,warning,notice,info,debug"`
	Line      module.Size `hcl:"max_line,optional" doc:"Longest text of a message; longer lines become several."`
	Buffer    module.Size `hcl:"buffer,optional" doc:"What is held of each stream while the server takes nothing; more is dropped, and counted."`
	Forwarder string      `hcl:"forwarder,optional" doc:"Path of mosaic-syslog-forwarder; empty: beside this module's program."`
	Prefix    string      `hcl:"environment_variable_prefix,optional" doc:"What a task's variables and labels about its log begin with; empty: it has no say."`
}

// Logger is the module.
type Logger struct {
	containerloggerv1.UnimplementedContainerLoggerServer
	config *module.Config[Config]
}

// New returns the module with its defaults: the machine's own daemon.
func New() *Logger {
	return &Logger{config: module.NewConfig(Config{
		Address: "unix:///dev/log", Facility: "user", Stdout: "info", Stderr: "err",
		Line: forward.DefaultLine, Buffer: forward.DefaultBuffer, Prefix: "CONTAINER_LOGGER_",
	}, validate)}
}

// severities by number, as in RFC 5424, table 2.
func severities() []string {
	return []string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}
}

// facilities by number, as in RFC 5424, table 1, by the names that syslog daemons know.
func facilities() []string {
	return []string{
		"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp", "security", "console",
		"solaris-cron", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
	}
}

const (
	// leastLine and mostLine bound messages: what every receiver takes, and what fits a datagram with its head.
	leastLine, mostLine = 480, 32 << 10
	// mostBuffer bounds what a forwarder may come to hold in memory, which is charged to the machine and no task.
	mostBuffer = 64 << 20
)

func validate(c *Config) error {
	switch {
	case !slices.Contains(facilities(), c.Facility):
		return module.Wrong("facility", "got %q, want one of %s", c.Facility, strings.Join(facilities(), ", "))
	case !slices.Contains(severities(), c.Stdout):
		return module.Wrong("stdout_severity", "got %q, want one of %s", c.Stdout, strings.Join(severities(), ", "))
	case !slices.Contains(severities(), c.Stderr):
		return module.Wrong("stderr_severity", "got %q, want one of %s", c.Stderr, strings.Join(severities(), ", "))
	case c.Line < leastLine || c.Line > mostLine:
		return module.Wrong("max_line", "got %d bytes, want %d to %d", c.Line, leastLine, mostLine)
	case c.Buffer < c.Line || c.Buffer > mostBuffer:
		return module.Wrong("buffer", "got %d bytes, want %d to %d", c.Buffer, c.Line, mostBuffer)
	case c.Forwarder != "" && !filepath.IsAbs(c.Forwarder):
		return module.Wrong("forwarder", "got %q, want an absolute path", c.Forwarder)
	}
	if err := forward.Check(forward.Config{Address: c.Address}); err != nil {
		return module.Wrong("address", "%v", err)
	}
	if err := forward.Check(forward.Config{Address: c.Address, Format: c.Format}); err != nil {
		return module.Wrong("format", "%v", err)
	}
	return nil
}

// Info describes the module.
func (l *Logger) Info() module.Info {
	return module.Info{
		Kind: "container_logger", Name: "syslog", Version: "1.0.0", Doc: "a syslog server, on this machine or on the network", Config: l.config,
	}
}

// Prepare says which forwarders read a container's output.
func (l *Logger) Prepare(_ context.Context, r *containerloggerv1.PrepareRequest) (*containerloggerv1.PrepareResponse, error) {
	c, ct := l.config.Get(), r.GetContainer()
	w, err := wishes(c, ct)
	if err != nil {
		return nil, err
	}
	path, err := forwarder(c)
	if err != nil {
		return nil, module.FailedPrecondition("%v", err)
	}
	answer := &containerloggerv1.PrepareResponse{
		Stdout: &containerloggerv1.Sink{Sink: &containerloggerv1.Sink_Helper{Helper: "stdout"}},
		Stderr: &containerloggerv1.Sink{Sink: &containerloggerv1.Sink_Helper{Helper: "stderr"}},
	}
	for _, s := range []struct{ name, severity string }{{"stdout", c.Stdout}, {"stderr", c.Stderr}} {
		argv := []string{
			path, "-address", c.Address, "-format", c.Format, "-facility", strconv.Itoa(w.facility),
			"-severity", strconv.Itoa(slices.Index(severities(), s.severity)), "-app", w.app, "-procid", ct.GetId(),
			"-line", strconv.FormatUint(uint64(c.Line), 10), "-buffer", strconv.FormatUint(uint64(c.Buffer), 10), "--",
		}
		for _, d := range [][2]string{
			{"framework", ct.GetFrameworkId()}, {"executor", ct.GetExecutorId()}, {"task", ct.GetTaskId()},
			{"container", ct.GetId()}, {"agent", ct.GetAgentId()}, {"stream", s.name},
		} {
			if d[1] != "" {
				argv = append(argv, d[0], d[1])
			}
		}
		answer.Helpers = append(answer.Helpers, &containerv1.Helper{
			Name: s.name, Argv: argv, Restart: true,
			// It moves bytes; the least memory is worth more than speed.
			Environment: map[string]string{"GOMAXPROCS": "1", "GOGC": "50"},
		})
	}
	return answer, nil
}

type wish struct {
	app      string
	facility int
}

// wishes are how a task wants to be named: by its variables, else its labels, else by its ids.
func wishes(c *Config, ct *containerv1.Container) (wish, error) {
	w := wish{facility: slices.Index(facilities(), c.Facility)}
	for _, id := range []string{ct.GetTaskId(), ct.GetExecutorId(), ct.GetId()} {
		if w.app == "" {
			w.app = id
		}
	}
	asked := map[string]string{}
	prefix := c.Prefix + "SYSLOG_"
	if c.Prefix != "" {
		for k, v := range ct.GetLabels() {
			if strings.HasPrefix(k, prefix) {
				asked[k] = v
			}
		}
		for _, v := range ct.GetCommand().GetEnvironment().GetVariables() {
			if strings.HasPrefix(v.GetName(), prefix) {
				asked[v.GetName()] = v.GetValue()
			}
		}
	}
	for k, v := range asked {
		switch strings.TrimPrefix(k, prefix) {
		case "APP_NAME":
			if v == "" || len(v) > 48 {
				return w, module.InvalidArgument("%s=%q: want 1 to 48 characters", k, v)
			}
			w.app = v
		case "FACILITY":
			if w.facility = slices.Index(facilities(), v); w.facility < 0 {
				return w, module.InvalidArgument("%s=%q: want one of %s", k, v, strings.Join(facilities(), ", "))
			}
		default:
			return w, module.InvalidArgument("%s: there is no such option, want %sAPP_NAME or %sFACILITY", k, prefix, prefix)
		}
	}
	return w, nil
}

// forwarder is the path of the forwarder.
func forwarder(c *Config) (string, error) {
	path := c.Forwarder
	if path == "" {
		own, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find %s: %w", program, err)
		}
		path = filepath.Join(filepath.Dir(own), program)
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("find %s: %w; `forwarder` says where it is", program, err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("%s is no program", path)
	}
	return path, nil
}
