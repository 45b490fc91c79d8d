package config

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
)

const site = `
log_level = "debug"

agent {
  listen              = "10.0.0.7:5051"
  master              = "10.0.0.1:5050"
  work_dir            = "/var/lib/mosaic/agent"
  resources           = "cpus:4;mem:8192"
  launchers           = ["oci", "process"]
  switch_user         = false
  gc_delay            = "36h"
  gc_disk_headroom    = 0.25
  fetcher_cache_size  = "2GiB"
  executor_environment = { LANG = "C" }
  registry_mirrors    = { "docker.io" = ["http://one:5000", "http://two:5000"], "quay.io" = "https://three" }
  max_completed_executors_per_framework = 0
}

master {
  work_dir           = "/var/lib/mosaic/master"
  max_ping_timeouts  = 7
  offer_timeout      = "90s"
  root_submissions   = true
}

isolator "rlimits" {}

authorizer "acl" {
  config {
    file = "acls.hcl"
  }
}

isolator "acme_numa" {
  command  = "/opt/acme/mosaic-isolator-acme-numa"
  args     = ["--fast"]
  checksum = "sha256:9f2c"
  required = false
  allow    = ["cgroup", "environment"]
  user     = "nobody"
  memory   = "64MiB"
  pids     = 32
  timeouts { prepare = "5s" }
  config {
    policy = "strict"
  }
}
`

func mustParse(t *testing.T, name, text string) *Config {
	t.Helper()
	c, err := Parse(name, []byte(text))
	if err != nil {
		t.Fatalf("Parse(%s): %v", name, err)
	}
	return c
}

func TestAWholeSiteIsRead(t *testing.T) {
	c := mustParse(t, "site.hcl", site)
	no, yes := false, true
	wantAgent := Agent{
		Listen: "10.0.0.7:5051", Masters: []string{"10.0.0.1:5050"}, WorkDir: "/var/lib/mosaic/agent",
		Resources: "cpus:4;mem:8192", Launchers: []string{"oci", "process"}, SwitchUser: &no, GCDelay: 36 * time.Hour,
		GCDiskHeadroom: 0.25, FetcherCacheSize: 2 << 30, ExecutorEnvironment: map[string]string{"LANG": "C"},
		RegistryMirrors:       map[string][]string{"docker.io": {"http://one:5000", "http://two:5000"}, "quay.io": {"https://three"}},
		MaxCompletedExecutors: new(0),
	}
	if !reflect.DeepEqual(c.Agent, wantAgent) {
		t.Errorf("Agent = %+v, want %+v", c.Agent, wantAgent)
	}
	lease := 90 * time.Second
	wantMaster := Master{WorkDir: "/var/lib/mosaic/master", MaxPingTimeouts: 7, OfferTimeout: &lease, RootSubmissions: &yes}
	if !reflect.DeepEqual(c.Master, wantMaster) {
		t.Errorf("Master = %+v, want %+v", c.Master, wantMaster)
	}
	if c.LogLevel != "debug" {
		t.Errorf("LogLevel = %q, want debug", c.LogLevel)
	}
	var names []string
	for _, m := range c.Modules {
		names = append(names, m.Kind+"/"+m.Name)
	}
	if want := []string{"isolator/rlimits", "authorizer/acl", "isolator/acme_numa"}; !slices.Equal(names, want) {
		t.Errorf("modules are %v, want %v in the order of the file", names, want)
	}
	if m := c.Modules[0]; !m.Required || m.Allow != nil || m.Config != nil {
		t.Errorf("a bare block is %+v, want it required, with all powers and no config", m)
	}
	m := c.Modules[2]
	m.Config, m.Source, m.Ranges, m.Range = nil, nil, nil, hcl.Range{}
	want := Module{
		Kind: "isolator", Name: "acme_numa", Command: "/opt/acme/mosaic-isolator-acme-numa", Args: []string{"--fast"},
		Checksum: "sha256:9f2c", Allow: []string{"cgroup", "environment"}, User: "nobody", Memory: 64 << 20, Pids: 32,
		Timeouts: map[string]time.Duration{"prepare": 5 * time.Second},
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("module = %+v, want %+v", m, want)
	}
	m = c.Modules[2]
	if m.Range.Start.Line != 34 || m.Ranges["checksum"].Start.Line != 37 || m.Ranges["config"].Start.Line != 44 {
		t.Errorf("places are %s, checksum %s, config %s", m.Range, m.Ranges["checksum"], m.Ranges["config"])
	}
	attributes, diags := m.Config.JustAttributes()
	if diags.HasErrors() || attributes["policy"] == nil || attributes["policy"].Range.Start.Line != 45 {
		t.Errorf("config body has %v (%v), want policy at line 45", attributes, diags)
	}
}

func TestTheJSONFormSaysTheSame(t *testing.T) {
	text := `{
  "log_level": "debug",
  "agent": {"listen": "10.0.0.7:5051", "master": ["10.0.0.1:5050"], "gc_delay": "36h", "switch_user": false},
  "isolator": {
    "rlimits": {},
    "acme_numa": {"command": "/opt/acme/numa", "memory": "64MiB", "timeouts": {"prepare": "5s"}, "config": {"policy": "strict"}}
  }
}`
	c := mustParse(t, "site.hcl.json", text)
	if c.LogLevel != "debug" || c.Agent.Listen != "10.0.0.7:5051" || c.Agent.GCDelay != 36*time.Hour || *c.Agent.SwitchUser {
		t.Errorf("Agent = %+v", c.Agent)
	}
	if len(c.Modules) != 2 || c.Modules[1].Name != "acme_numa" || c.Modules[1].Memory != 64<<20 || c.Modules[1].Timeouts["prepare"] != 5*time.Second {
		t.Fatalf("Modules = %+v", c.Modules)
	}
	if attributes, diags := c.Modules[1].Config.JustAttributes(); diags.HasErrors() || attributes["policy"] == nil {
		t.Errorf("config body has %v (%v), want policy", attributes, diags)
	}
}

func TestAllThatIsWrongIsToldAtOnceWithItsPlace(t *testing.T) {
	text := `agent {
  lisen   = "127.0.0.1:5051"
  master  = "somewhere"
  gc_delay = "a week"
  gc_disk_headroom = 1.5
  launchers = ["proces"]
  work_dir = "var"
  fetcher_cache_size = "lots"
  executor_reregistration_timeout = "1m"
}
isolater "cgroups" {}
isolator "Cgroups" {
  comand = "/bin/x"
  required = "maybe"
  timeouts {
    prepare = "0s"
  }
}
isolator "a" { args = ["x"] }
isolator "b" {}
isolator "b" {}
authorizer "acl" { required = false }
log_level = "loud"
`
	_, err := Parse("site.hcl", []byte(text))
	var diags Diagnostics
	if !errors.As(err, &diags) {
		t.Fatalf("Parse = %v, want Diagnostics", err)
	}
	for _, want := range []struct {
		line, column int
		text         string
		suggestion   string
	}{
		{2, 3, "lisen", "listen"},
		{3, 13, `Got "somewhere", want HOST:PORT.`, ""},
		{4, 14, `want a duration such as "15s"`, ""},
		{5, 22, "Got 1.5, want 0 to 1.", ""},
		{6, 15, "want one of process, oci.", "process"},
		{7, 14, `Got "var", want an absolute path.`, ""},
		{8, 24, "want a size", ""},
		{9, 37, `Got "1m", want 1s to 15s.`, ""},
		{11, 1, "isolater", "isolator"},
		{12, 10, "want lower_snake_case", ""},
		{13, 3, "comand", "command"},
		{14, 14, "want true or false", ""},
		{16, 15, "want more than 0", ""},
		{19, 23, "Arguments without a command", ""},
		{21, 1, "isolator b is already set at site.hcl:20:1.", ""},
		{22, 31, "cannot be optional", ""},
		{23, 13, "want one of debug, info, warn, error.", ""},
	} {
		i := slices.IndexFunc(diags, func(d Diagnostic) bool { return d.Line == want.line })
		if i < 0 {
			t.Errorf("nothing is told of line %d (%s)", want.line, want.text)
			continue
		}
		d := diags[i]
		if d.Column != want.column || d.File != "site.hcl" || !strings.Contains(d.String(), want.text) || d.Suggestion != want.suggestion {
			t.Errorf("line %d: column %d, suggestion %q:\n%s\nwant column %d, suggestion %q, text %q",
				d.Line, d.Column, d.Suggestion, d, want.column, want.suggestion, want.text)
		}
		if want := strings.Split(text, "\n")[want.line-1]; d.Source != want {
			t.Errorf("line %d quotes %q, want %q", d.Line, d.Source, want)
		}
	}
	if len(diags) != 17 {
		t.Errorf("%d diagnostics, want 17:\n%v", len(diags), err)
	}
}

func TestADiagnosticReadsLikeThis(t *testing.T) {
	_, err := Parse("site.hcl", []byte("agent {\n\tlisen = \"127.0.0.1:5051\"\n}\n"))
	want := `site.hcl:2:2: error: Unsupported argument
   2 | ` + "\t" + `lisen = "127.0.0.1:5051"
     | ` + "\t" + `^^^^^
  An argument named "lisen" is not expected here. Did you mean "listen"?
`
	if err == nil || err.Error() != want {
		t.Errorf("Parse:\n%v\nwant\n%s", err, want)
	}
}

func TestDiagnosticsHaveAFormForMachines(t *testing.T) {
	_, err := Parse("site.hcl", []byte("agnt {}\n"))
	var diags Diagnostics
	if !errors.As(err, &diags) {
		t.Fatalf("Parse = %v, want Diagnostics", err)
	}
	out, err := json.Marshal(diags)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"severity":"error"`, `"file":"site.hcl"`, `"line":1`, `"column":1`, `"suggestion":"agent"`, `"source":"agnt {}"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("JSON is %s, want it to have %s", out, want)
		}
	}
}

func TestAFolderIsMergedInTheOrderOfNamesAndDuplicatesNameBothPlaces(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("20-site.hcl", `isolator "b" {}`)
	write("10-base.hcl", `isolator "a" {}`)
	write("30-more.hcl.json", `{"isolator": {"c": {}}}`)
	write("README.md", "not configuration")
	write(".swp.hcl", "not configuration either {")
	c, err := Load(dir)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	var names []string
	for _, m := range c.Modules {
		names = append(names, m.Name)
	}
	if !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("modules are %v, want a, b, c", names)
	}
	write("40-again.hcl", "\nisolator \"a\" {}\nagent {}\n")
	write("50-again.hcl", "agent {}\n")
	_, err = Load(dir)
	for _, want := range []string{
		filepath.Join(dir, "40-again.hcl") + ":2:1", filepath.Join(dir, "10-base.hcl") + ":1:1",
		filepath.Join(dir, "50-again.hcl") + ":1:1", filepath.Join(dir, "40-again.hcl") + ":3:1",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load with duplicates = %v, want it to name %s", err, want)
		}
	}
}

func TestFilesThatCannotBeReadAreTold(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "missing.hcl"), dir, "/dev/zero"} {
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("Load(%s) = %v, want an error that names it", path, err)
		}
	}
}

func TestTheDefaultHasWhatEveryAgentNeeds(t *testing.T) {
	var names []string
	for _, m := range Default().Modules {
		if !m.Required || m.Command != "" {
			t.Errorf("default module %+v, want a required one of the bundle", m)
		}
		names = append(names, m.Kind+"/"+m.Name)
	}
	want := []string{"isolator/cgroups", "isolator/rlimits", "isolator/namespaces", "isolator/linux", "isolator/volumes", "container_logger/file"}
	if !slices.Equal(names, want) {
		t.Errorf("default modules are %v, want %v", names, want)
	}
}

func TestDeepNestingIsRefusedAndNotFollowed(t *testing.T) {
	for name, text := range map[string]string{
		"a.hcl":  "log_level = " + strings.Repeat("[", maxFile/2),
		"b.hcl":  strings.Repeat("agent {\n", 200_000),
		"c.json": strings.Repeat(`{"agent":`, 200_000),
		"d.hcl":  "log_level = " + strings.Repeat("!", maxFile/2) + "true",
		"e.hcl":  "log_level = " + strings.Repeat("-", maxFile/2) + "1",
	} {
		if _, err := Parse(name, []byte(text)); err == nil || !strings.Contains(err.Error(), "deep") {
			t.Errorf("Parse(%s) = %.200v, want it refused for its depth", name, err)
		}
	}
}

type secret struct{}

func (secret) HideSource() bool { return true }

func TestTheLineOfASecretIsNotQuoted(t *testing.T) {
	files := map[string][]byte{"f.hcl": []byte("token = \"hunter2\"\n")}
	r := hcl.Range{Filename: "f.hcl", Start: hcl.Pos{Line: 1, Column: 9}, End: hcl.Pos{Line: 1, Column: 18}}
	shown := FromHCL(hcl.Diagnostics{{Severity: hcl.DiagError, Summary: "Wrong", Subject: &r}}, files)
	hidden := FromHCL(hcl.Diagnostics{{Severity: hcl.DiagError, Summary: "Wrong", Subject: &r, Extra: secret{}}}, files)
	if !strings.Contains(shown.Error(), "hunter2") || strings.Contains(hidden.Error(), "hunter2") {
		t.Errorf("shown:\n%v\nhidden:\n%v", shown, hidden)
	}
	if hidden[0].Line != 1 || hidden[0].Column != 9 {
		t.Errorf("hidden diagnostic is at %d:%d, want its place kept", hidden[0].Line, hidden[0].Column)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("a.hcl", site)
	f.Add("a.json", `{"agent": {"master": [1]}, "isolator": [{"x": []}]}`)
	f.Add("a.hcl", `isolator "x" "y" { timeouts { a = 1 / 0 } config "l" {} }`)
	f.Add("a.hcl", `agent { listen = "${" }`)
	f.Add("a.hcl", strings.Repeat("agent {", 1000))
	f.Add("a.json", strings.Repeat("[", 10000))
	f.Add("a.hcl", "a = "+strings.Repeat("(", 60000))
	f.Fuzz(func(t *testing.T, name, text string) {
		if len(text) > 1<<16 {
			return
		}
		if c, err := Parse(name, []byte(text)); (c == nil) == (err == nil) {
			t.Errorf("Parse gave %v and %v", c, err)
		}
	})
}
