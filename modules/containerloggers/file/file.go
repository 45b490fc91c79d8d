// Package file is the container logger for files in the sandbox that are rotated by size: stdout and stderr, where
// Mesos's API and tools look for them, with stdout.1 and so on beside them.
//
// It only says how; the container's shim writes and rotates, so that output goes on without this module and without the
// agent. It keeps no state.
package file

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	containerloggerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/containerlogger/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// minSize is the least size of a file, Mesos's: below a page rotating would be all there is to do.
const minSize = 4096

// maxKeep is how many rotated files there may be of one stream.
const maxKeep = 1000

// Config is what the operator may set.
type Config struct {
	Size   module.Size `hcl:"max_size,optional" doc:"Size at which stdout and stderr are rotated, each; 0 is never."`
	Keep   int         `hcl:"keep,optional" doc:"How many rotated files of each are kept." min:"0" max:"1000"`
	Prefix string      `hcl:"environment_variable_prefix,optional" doc:"What a task's variables and labels about its log begin with; empty: it has no say."`
	Limit  module.Size `hcl:"limit,optional" doc:"What a task may ask for at most, one stream with all its files; 0 is anything."`
}

// Logger is the module.
type Logger struct {
	containerloggerv1.UnimplementedContainerLoggerServer
	config *module.Config[Config]
}

// New returns the module with its defaults, those of Mesos's logrotate module: 10 MiB, 9 files.
func New() *Logger {
	return &Logger{config: module.NewConfig(Config{Size: 10 << 20, Keep: 9, Prefix: "CONTAINER_LOGGER_"}, validate)}
}

func validate(c *Config) error {
	if c.Size != 0 && c.Size < minSize {
		return module.Wrong("max_size", "got %d bytes, want 0 or at least %d", c.Size, minSize)
	}
	if c.Keep < 0 || c.Keep > maxKeep {
		return module.Wrong("keep", "got %d, want 0 to %d", c.Keep, maxKeep)
	}
	return nil
}

// Info describes the module.
func (l *Logger) Info() module.Info {
	return module.Info{
		Kind: "container_logger", Name: "file", Version: "1.0.0", Doc: "files in the sandbox, rotated by size", Config: l.config,
	}
}

// A stream is how one of the two is rotated.
type stream struct{ size, keep uint64 }

// Prepare says how a container's output is rotated: as its variables ask, else its labels, else the operator.
func (l *Logger) Prepare(_ context.Context, r *containerloggerv1.PrepareRequest) (*containerloggerv1.PrepareResponse, error) {
	c, ct := l.config.Get(), r.GetContainer()
	if !path.IsAbs(ct.GetSandbox()) {
		return nil, module.InvalidArgument("sandbox: got %q, want an absolute path", ct.GetSandbox())
	}
	streams := map[string]*stream{}
	for _, name := range []string{"STDOUT", "STDERR"} {
		streams[name] = &stream{size: uint64(c.Size), keep: uint64(c.Keep)}
	}
	asked := wishes(ct, c.Prefix)
	for _, key := range slices.Sorted(maps.Keys(asked)) {
		if err := apply(streams, strings.TrimPrefix(key, c.Prefix), asked[key]); err != nil {
			return nil, module.InvalidArgument("%s=%q: %v", key, asked[key], err)
		}
	}
	answer := &containerloggerv1.PrepareResponse{}
	for name, sink := range map[string]**containerloggerv1.Sink{"STDOUT": &answer.Stdout, "STDERR": &answer.Stderr} {
		s := streams[name]
		if len(asked) > 0 && c.Limit > 0 && (s.size == 0 || s.size > uint64(c.Limit)/(s.keep+1)) {
			return nil, module.InvalidArgument("%s: asks for %d files of %s, want %s in all at most", strings.ToLower(name), s.keep+1,
				resources.Bytes(s.size), resources.Bytes(c.Limit))
		}
		*sink = &containerloggerv1.Sink{
			Sink:        &containerloggerv1.Sink_Path{Path: path.Join(ct.GetSandbox(), strings.ToLower(name))},
			RotateBytes: s.size, Keep: uint32(s.keep),
		}
	}
	return answer, nil
}

// wishes are the labels and, over them, the variables that begin with prefix.
func wishes(ct *containerv1.Container, prefix string) map[string]string {
	found := map[string]string{}
	if prefix == "" {
		return found
	}
	for k, v := range ct.GetLabels() {
		if strings.HasPrefix(k, prefix) {
			found[k] = v
		}
	}
	for _, v := range ct.GetCommand().GetEnvironment().GetVariables() {
		if strings.HasPrefix(v.GetName(), prefix) {
			found[v.GetName()] = v.GetValue()
		}
	}
	return found
}

// apply takes over one wish: MAX_STDOUT_SIZE and LOGROTATE_STDOUT_OPTIONS as Mesos's module has them, KEEP_STDOUT of our
// own, and the same for stderr.
func apply(streams map[string]*stream, name, value string) error {
	for which, s := range streams {
		switch name {
		case "MAX_" + which + "_SIZE":
			return s.setSize(value)
		case "KEEP_" + which:
			return s.setKeep(value)
		case "LOGROTATE_" + which + "_OPTIONS":
			return s.setOptions(value)
		}
	}
	return errors.New("there is no such option, want MAX_STDOUT_SIZE, KEEP_STDOUT, LOGROTATE_STDOUT_OPTIONS or one of those for STDERR")
}

func (s *stream) setSize(value string) error {
	b, err := resources.ParseBytes(value)
	if err != nil {
		return err
	}
	if b != 0 && b < minSize {
		return fmt.Errorf("got %s, want 0B or at least %dB", b, minSize)
	}
	s.size = uint64(b)
	return nil
}

func (s *stream) setKeep(value string) error {
	n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
	if err != nil || n > maxKeep {
		return fmt.Errorf("want a number of files up to %d", maxKeep)
	}
	s.keep = n
	return nil
}

// setOptions takes a piece of logrotate's configuration. What it says beside the number and the size of files must be
// what happens anyway: anything else, such as compressing, cannot be given.
func (s *stream) setOptions(value string) error {
	for line := range strings.SplitSeq(value, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		option, rest := words[0], strings.Join(words[1:], " ")
		var err error
		switch option {
		case "rotate":
			err = s.setKeep(rest)
		case "size":
			err = s.setLogrotateSize(rest)
		case "nocompress", "nodelaycompress", "missingok", "notifempty", "nocopy", "nocopytruncate", "nodateext", "nomail", "noolddir", "nosharedscripts", "create":
		default:
			err = fmt.Errorf("option %q of logrotate is not to be had here, want rotate and size", option)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// setLogrotateSize takes a size as logrotate writes it: 100, 100k, 100M, 1G.
func (s *stream) setLogrotateSize(value string) error {
	number := strings.TrimPrefix(strings.TrimSpace(value), "=")
	unit := "B"
	for suffix, u := range map[string]string{"k": "KiB", "M": "MiB", "G": "GiB"} {
		if n, ok := strings.CutSuffix(number, suffix); ok {
			number, unit = n, u
			break
		}
	}
	return s.setSize(strings.TrimSpace(number) + unit)
}
