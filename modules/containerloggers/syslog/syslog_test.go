package syslog_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/modules/containerloggers/syslog"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	containerloggerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/containerlogger/v1"
)

func prepare(c *moduletest.Client, variables, labels map[string]string) (*containerloggerv1.PrepareResponse, error) {
	ct := &containerv1.Container{
		Id: "c1", FrameworkId: "f1", ExecutorId: "e1", TaskId: "t1", Sandbox: "/s", Labels: labels,
		Command: &mesosv1.CommandInfo{Environment: &mesosv1.Environment{}},
	}
	for k, v := range variables {
		ct.Command.Environment.Variables = append(ct.Command.Environment.Variables, &mesosv1.Environment_Variable{Name: &k, Value: &v})
	}
	return containerloggerv1.NewContainerLoggerClient(c.Conn).Prepare(context.Background(), &containerloggerv1.PrepareRequest{Container: ct})
}

// program makes a file that passes for the forwarder, and a configuration with it.
func program(t *testing.T, more string) (path, config string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "forwarder")
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	return path, fmt.Sprintf(`{"forwarder":%q%s}`, path, more)
}

func TestEachStreamHasAForwarderThatSaysWhoseItIs(t *testing.T) {
	path, config := program(t, `,"address":"tcp://h:601","facility":"local3","stderr_severity":"warning","buffer":100000`)
	c := moduletest.Start(t, syslog.New(), config)
	r, err := prepare(c, nil, nil)
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	if r.GetStdout().GetHelper() != "stdout" || r.GetStderr().GetHelper() != "stderr" || len(r.GetHelpers()) != 2 {
		t.Fatalf("Prepare = %v, want a helper for each", r)
	}
	for n, want := range []string{
		"-address tcp://h:601 -format  -facility 19 -severity 6 -app t1 -procid c1 -line 8192 -buffer 100000 -- framework f1 executor e1 task t1 container c1 stream stdout",
		"-address tcp://h:601 -format  -facility 19 -severity 4 -app t1 -procid c1 -line 8192 -buffer 100000 -- framework f1 executor e1 task t1 container c1 stream stderr",
	} {
		h := r.Helpers[n]
		if got := strings.Join(h.GetArgv(), " "); got != path+" "+want || !h.GetRestart() {
			t.Errorf("helper %s: got %s, want %s", h.GetName(), got, want)
		}
	}
}

func TestATaskMayNameItself(t *testing.T) {
	_, config := program(t, "")
	c := moduletest.Start(t, syslog.New(), config)
	r, err := prepare(c, map[string]string{"CONTAINER_LOGGER_SYSLOG_APP_NAME": "shop"}, map[string]string{
		"CONTAINER_LOGGER_SYSLOG_APP_NAME": "not this", "CONTAINER_LOGGER_SYSLOG_FACILITY": "local7", "CONTAINER_LOGGER_MAX_STDOUT_SIZE": "another logger's",
	})
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	argv := r.GetHelpers()[0].GetArgv()
	if app, facility := argv[slices.Index(argv, "-app")+1], argv[slices.Index(argv, "-facility")+1]; app != "shop" || facility != "23" {
		t.Errorf("got app %s and facility %s, want shop and 23", app, facility)
	}
	for name, value := range map[string]string{"APP_NAME": strings.Repeat("x", 49), "FACILITY": "local8", "SEVERITY": "err"} {
		if _, err := prepare(c, map[string]string{"CONTAINER_LOGGER_SYSLOG_" + name: value}, nil); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s=%s: got %v, want INVALID_ARGUMENT", name, value, err)
		}
	}
}

func TestWithoutItsForwarderTheModuleSaysSo(t *testing.T) {
	for _, config := range []string{`{}`, `{"forwarder":"/no/such"}`, `{"forwarder":"/etc"}`} {
		if _, err := prepare(moduletest.Start(t, syslog.New(), config), nil, nil); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("Prepare with %s: got %v, want FAILED_PRECONDITION", config, err)
		}
	}
}

func TestWrongConfigurationIsToldByAttribute(t *testing.T) {
	for config, path := range map[string]string{
		`{"address":"/dev/log"}`: "address", `{"facility":"local8"}`: "facility", `{"stdout_severity":"loud"}`: "stdout_severity",
		`{"stderr_severity":""}`: "stderr_severity", `{"max_line":100}`: "max_line", `{"buffer":10}`: "buffer",
		`{"forwarder":"x"}`: "forwarder", `{"format":"json"}`: "format",
	} {
		errs := moduletest.Dial(t, syslog.New()).Configure(t, config)
		if len(errs) != 1 || errs[0].GetPath() != path {
			t.Errorf("Configure(%s) = %v, want one error at %s", config, errs, path)
		}
	}
}
