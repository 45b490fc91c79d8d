package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

type fakeMachine struct {
	mem, space uint64
	err        error
}

func (m fakeMachine) cpus() int                   { return 8 }
func (m fakeMachine) memory() (uint64, error)     { return m.mem, m.err }
func (m fakeMachine) disk(string) (uint64, error) { return m.space, m.err }

func TestResourcesAreDetectedWhereTheyAreNotConfigured(t *testing.T) {
	big := fakeMachine{mem: 16 * gib, space: 100 * gib}
	small := fakeMachine{mem: 2 * gib, space: 10 * gib}
	for _, test := range []struct {
		text, role string
		m          fakeMachine
		want       string
	}{
		{"", "", big, "cpus:8;mem:15360;disk:97280;ports:[31000-32000]"},
		{"", "", small, "cpus:8;mem:1024;disk:5120;ports:[31000-32000]"},
		{"cpus:2;ports:[1-9];gpus:1", "", big, "cpus:2;gpus:1;mem:15360;disk:97280;ports:[1-9]"},
		{"cpus(eng):2", "", big, "cpus(eng):2;mem:15360;disk:97280;ports:[31000-32000]"},
		{"cpus:2;mem:64;disk:1", "eng", big, "cpus(eng):2;mem(eng):64;disk(eng):1;ports(eng):[31000-32000]"},
	} {
		c := Config{Resources: test.text, DefaultRole: test.role}
		got, err := c.resources(test.m)
		if err != nil {
			t.Errorf("resources %q: %v", test.text, err)
			continue
		}
		if want := resources.MustParse(test.want); !resources.New(got...).Equal(want) {
			t.Errorf("resources %q = %v, want %v", test.text, resources.New(got...), want)
		}
	}
	c := Config{Resources: "cpus:2;cpus:x"}
	if _, err := c.resources(big); err == nil {
		t.Error("cpus:x was taken")
	}
	c = Config{}
	if _, err := c.resources(fakeMachine{err: errors.New("no such file")}); err == nil || !strings.Contains(err.Error(), "set it in resources") {
		t.Errorf("a machine that does not tell: %v, want advice", err)
	}
}

func TestThisMachineIsDetected(t *testing.T) {
	c := Config{WorkDir: t.TempDir()}
	rs, err := c.resources(machine{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cpus", "mem", "disk"} {
		if resources.New(rs...).Scalar(name) <= 0 {
			t.Errorf("%s of this machine = %v", name, resources.New(rs...).Scalar(name))
		}
	}
}

func TestReconfigurationPolicy(t *testing.T) {
	info := func(res, attributes string) *mesosv1.AgentInfo {
		as, err := resources.ParseAttributes(attributes)
		if err != nil {
			t.Fatal(err)
		}
		return &mesosv1.AgentInfo{Hostname: new("h"), Port: new(int32(5051)), Resources: resources.MustParse(res).Resources(), Attributes: as}
	}
	const base = "cpus:4;mem:100;ports:[1-10]"
	for _, test := range []struct {
		name            string
		old, new        *mesosv1.AgentInfo
		equal, additive bool
	}{
		{"nothing", info(base, "a:x"), info(base, "a:x"), true, true},
		{"more cpus", info(base, ""), info("cpus:5;mem:100;ports:[1-10]", ""), false, true},
		{"fewer cpus", info(base, ""), info("cpus:3;mem:100;ports:[1-10]", ""), false, false},
		{"more ports", info(base, ""), info("cpus:4;mem:100;ports:[1-20]", ""), false, true},
		{"another resource", info(base, ""), info(base+";gpus:1", ""), false, true},
		{"new attribute", info(base, "a:x"), info(base, "a:x;b:y"), false, true},
		{"lost attribute", info(base, "a:x;b:y"), info(base, "a:x"), false, false},
		{"other text", info(base, "a:x"), info(base, "a:y"), false, false},
		{"larger scalar attribute", info(base, "a:1"), info(base, "a:2"), false, false},
		{"wider range attribute", info(base, "a:[1-2]"), info(base, "a:[1-5]"), false, true},
	} {
		if err := compatible(test.old, test.new, "equal"); (err == nil) != test.equal {
			t.Errorf("%s, equal: %v", test.name, err)
		}
		if err := compatible(test.old, test.new, "additive"); (err == nil) != test.additive {
			t.Errorf("%s, additive: %v", test.name, err)
		}
	}
}

func TestDurationsAreSpelledAsInMesos(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0ns", 5 * time.Second: "5secs", 15 * time.Minute: "15mins", 90 * time.Second: "90secs", time.Hour: "1hrs",
		36 * time.Hour: "36hrs", 7 * 24 * time.Hour: "1weeks", 1500 * time.Millisecond: "1500ms", 3: "3ns",
	} {
		if got := mesosDuration(d); got != want {
			t.Errorf("mesosDuration(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	good := Config{WorkDir: "/w", Masters: []string{"m:1"}}
	if err := good.complete(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"relative work directory": func(c *Config) { c.WorkDir = "w" },
		"no master":               func(c *Config) { c.Masters = nil },
		"negative duration":       func(c *Config) { c.GCDelay = -1 },
		"re-registration timeout": func(c *Config) { c.ExecutorReregistrationTimeout = 16 * time.Second },
		"policy":                  func(c *Config) { c.ReconfigurationPolicy = "lax" },
		"headroom":                func(c *Config) { c.GCDiskHeadroom = 2 },
	} {
		c := Config{WorkDir: "/w", Masters: []string{"m:1"}}
		change(&c)
		if err := c.complete(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
