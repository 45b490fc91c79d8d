package file_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/modules/containerloggers/file"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	containerloggerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/containerlogger/v1"
)

// prepare asks for a container with these variables and labels, and gives the answer in short.
func prepare(c *moduletest.Client, variables, labels map[string]string) (string, error) {
	ct := &containerv1.Container{Id: "c", Sandbox: "/s", Labels: labels, Command: &mesosv1.CommandInfo{Environment: &mesosv1.Environment{}}}
	for k, v := range variables {
		ct.Command.Environment.Variables = append(ct.Command.Environment.Variables, &mesosv1.Environment_Variable{Name: &k, Value: &v})
	}
	r, err := containerloggerv1.NewContainerLoggerClient(c.Conn).Prepare(context.Background(), &containerloggerv1.PrepareRequest{Container: ct})
	if err != nil {
		return "", err
	}
	short := func(s *containerloggerv1.Sink) string {
		return fmt.Sprintf("%s %d %d", s.GetPath(), s.GetRotateBytes(), s.GetKeep())
	}
	return short(r.GetStdout()) + ", " + short(r.GetStderr()), nil
}

func TestWishesOfATaskGoBeforeTheOperators(t *testing.T) {
	type m = map[string]string
	for _, x := range []struct {
		config            string
		variables, labels m
		want              string
	}{
		{`{}`, nil, nil, "/s/stdout 10485760 9, /s/stderr 10485760 9"},
		{`{"max_size":8192,"keep":0}`, m{"OTHER": "1"}, m{"other": "2"}, "/s/stdout 8192 0, /s/stderr 8192 0"},
		{`{"max_size":0}`, nil, nil, "/s/stdout 0 9, /s/stderr 0 9"},
		{`{}`, m{"CONTAINER_LOGGER_MAX_STDOUT_SIZE": "5MB"}, nil, "/s/stdout 5242880 9, /s/stderr 10485760 9"},
		{`{}`, nil, m{"CONTAINER_LOGGER_KEEP_STDERR": "3"}, "/s/stdout 10485760 9, /s/stderr 10485760 3"},
		{`{}`, m{"CONTAINER_LOGGER_KEEP_STDERR": "4"}, m{"CONTAINER_LOGGER_KEEP_STDERR": "3"}, "/s/stdout 10485760 9, /s/stderr 10485760 4"},
		{`{}`, m{"CONTAINER_LOGGER_LOGROTATE_STDOUT_OPTIONS": "rotate 2\n  size 100k\n\n# words\nnocompress"}, nil, "/s/stdout 102400 2, /s/stderr 10485760 9"},
		{`{}`, m{"CONTAINER_LOGGER_LOGROTATE_STDERR_OPTIONS": "size 8192"}, nil, "/s/stdout 10485760 9, /s/stderr 8192 9"},
		{`{}`, m{"CONTAINER_LOGGER_MAX_STDOUT_SIZE": "0B"}, nil, "/s/stdout 0 9, /s/stderr 10485760 9"},
		{`{"environment_variable_prefix":""}`, m{"CONTAINER_LOGGER_MAX_STDOUT_SIZE": "5MB"}, nil, "/s/stdout 10485760 9, /s/stderr 10485760 9"},
		{`{"environment_variable_prefix":"LOG_"}`, m{"LOG_KEEP_STDOUT": "1", "CONTAINER_LOGGER_KEEP_STDOUT": "2"}, nil, "/s/stdout 10485760 1, /s/stderr 10485760 9"},
		{`{"limit":104857600}`, m{"CONTAINER_LOGGER_KEEP_STDOUT": "9"}, nil, "/s/stdout 10485760 9, /s/stderr 10485760 9"},
	} {
		got, err := prepare(moduletest.Start(t, file.New(), x.config), x.variables, x.labels)
		if err != nil || got != x.want {
			t.Errorf("Prepare with %s, %v, %v = %q, %v; want %q", x.config, x.variables, x.labels, got, err, x.want)
		}
	}
}

func TestWishesThatCannotBeGivenAreRefused(t *testing.T) {
	c := moduletest.Start(t, file.New(), `{"limit":104857600}`)
	for name, x := range map[string]struct{ value, want string }{
		"MAX_STDOUT_SIZE":          {"5", "want a number and one of"},
		"MAX_STDERR_SIZE":          {"100B", "at least 4096B"},
		"KEEP_STDOUT":              {"-1", "a number of files"},
		"KEEP_STDERR":              {"1001", "a number of files"},
		"LOGROTATE_STDOUT_OPTIONS": {"rotate 3\ncompress", `option "compress"`},
		"LOGROTATE_STDERR_OPTIONS": {"size many", "size"},
		"MAX_STDUOT_SIZE":          {"5MB", "no such option"},
		"":                         {"", "no such option"},
	} {
		_, err := prepare(c, map[string]string{"CONTAINER_LOGGER_" + name: x.value}, nil)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s=%s: got %v, want INVALID_ARGUMENT that says %q", name, x.value, err, x.want)
		}
	}
	for name, value := range map[string]string{"MAX_STDOUT_SIZE": "11MB", "KEEP_STDERR": "10", "MAX_STDERR_SIZE": "0B"} {
		_, err := prepare(c, map[string]string{"CONTAINER_LOGGER_" + name: value}, nil)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "at most") {
			t.Errorf("%s=%s above the limit: got %v, want INVALID_ARGUMENT", name, value, err)
		}
	}
}

func TestWrongConfigurationIsToldByAttribute(t *testing.T) {
	for config, path := range map[string]string{`{"max_size":100}`: "max_size", `{"keep":1001}`: "keep", `{"keep":-1}`: "keep", `{"size":1}`: "size"} {
		errs := moduletest.Dial(t, file.New()).Configure(t, config)
		if len(errs) != 1 || errs[0].GetPath() != path {
			t.Errorf("Configure(%s) = %v, want one error at %s", config, errs, path)
		}
	}
}
