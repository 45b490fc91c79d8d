package master

import (
	"math"
	"strings"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

func TestTheTypeOfACheckIsWhatItHoldsWhenItDoesNotSay(t *testing.T) {
	run := &mesosv1.CommandInfo{Value: new("true")}
	for want, test := range map[string]struct {
		check  *mesosv1.CheckInfo
		health *mesosv1.HealthCheck
	}{
		"COMMAND": {&mesosv1.CheckInfo{Command: &mesosv1.CheckInfo_Command{Command: run}}, &mesosv1.HealthCheck{Command: run}},
		"HTTP": {
			&mesosv1.CheckInfo{Http: &mesosv1.CheckInfo_Http{Port: new(uint32(80))}},
			&mesosv1.HealthCheck{Http: &mesosv1.HealthCheck_HTTPCheckInfo{Port: new(uint32(80))}},
		},
		"TCP": {
			&mesosv1.CheckInfo{Tcp: &mesosv1.CheckInfo_Tcp{Port: new(uint32(80))}},
			&mesosv1.HealthCheck{Tcp: &mesosv1.HealthCheck_TCPCheckInfo{Port: new(uint32(80))}},
		},
	} {
		if err := validateCheck(test.check); err != nil || test.check.GetType().String() != want {
			t.Errorf("validateCheck(%v) = %v, want nil and type %s", test.check, err, want)
		}
		if err := validateHealthCheck(test.health); err != nil || test.health.GetType().String() != want {
			t.Errorf("validateHealthCheck(%v) = %v, want nil and type %s", test.health, err, want)
		}
	}
}

func TestChecksThatCannotBeAreRefused(t *testing.T) {
	run := &mesosv1.CommandInfo{Value: new("true")}
	tcp := func(change func(*mesosv1.CheckInfo)) *mesosv1.CheckInfo {
		c := &mesosv1.CheckInfo{Type: mesosv1.CheckInfo_TCP.Enum(), Tcp: &mesosv1.CheckInfo_Tcp{Port: new(uint32(80))}}
		change(c)
		return c
	}
	for _, test := range []struct {
		check *mesosv1.CheckInfo
		want  string
	}{
		{&mesosv1.CheckInfo{}, "must specify 'type'"},
		{&mesosv1.CheckInfo{Command: &mesosv1.CheckInfo_Command{Command: run}, Tcp: &mesosv1.CheckInfo_Tcp{}}, "must specify 'type'"},
		{&mesosv1.CheckInfo{Type: mesosv1.CheckInfo_COMMAND.Enum()}, "Expecting 'command'"},
		{&mesosv1.CheckInfo{Command: &mesosv1.CheckInfo_Command{Command: &mesosv1.CommandInfo{}}}, "must specify 'value'"},
		{&mesosv1.CheckInfo{Type: mesosv1.CheckInfo_HTTP.Enum()}, "Expecting 'http'"},
		{&mesosv1.CheckInfo{Http: &mesosv1.CheckInfo_Http{Path: new("health")}}, "must start with '/'"},
		{&mesosv1.CheckInfo{Type: mesosv1.CheckInfo_TCP.Enum()}, "Expecting 'tcp'"},
		{tcp(func(c *mesosv1.CheckInfo) { c.DelaySeconds = new(-1.0) }), "non-negative"},
		{tcp(func(c *mesosv1.CheckInfo) { c.IntervalSeconds = new(math.NaN()) }), "non-negative"},
		{tcp(func(c *mesosv1.CheckInfo) { c.TimeoutSeconds = new(-0.1) }), "non-negative"},
	} {
		if err := validateCheck(test.check); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("validateCheck(%v) = %v, want %q", test.check, err, test.want)
		}
	}
	for _, test := range []struct {
		check *mesosv1.HealthCheck
		want  string
	}{
		{&mesosv1.HealthCheck{}, "must specify 'type'"},
		{&mesosv1.HealthCheck{Type: mesosv1.HealthCheck_HTTP.Enum(), Command: run}, "Expecting 'http'"},
		{&mesosv1.HealthCheck{Http: &mesosv1.HealthCheck_HTTPCheckInfo{Scheme: new("ftp")}}, "scheme: 'ftp'"},
		{&mesosv1.HealthCheck{Http: &mesosv1.HealthCheck_HTTPCheckInfo{Path: new("x")}}, "must start with '/'"},
		{&mesosv1.HealthCheck{Command: run, GracePeriodSeconds: new(-1.0)}, "non-negative"},
	} {
		if err := validateHealthCheck(test.check); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("validateHealthCheck(%v) = %v, want %q", test.check, err, test.want)
		}
	}
}
