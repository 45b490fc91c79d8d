package modulehost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
)

// copyOfTest puts a copy of the test executable into a folder of its own.
func copyOfTest(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	path := filepath.Join(t.TempDir(), "module")
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestACompositionThatCannotRunIsRefusedWithItsPlaces(t *testing.T) {
	at := hcl.Range{Filename: "site.hcl", Start: hcl.Pos{Line: 4, Column: 1}, End: hcl.Pos{Line: 4, Column: 2}}
	checksum := hcl.Range{Filename: "site.hcl", Start: hcl.Pos{Line: 6, Column: 14}, End: hcl.Pos{Line: 6, Column: 20}}
	path := copyOfTest(t)
	make := func(change func(*ModuleConfig)) ModuleConfig {
		c := testConfig("good")
		c.Command, c.Range, c.Ranges = path, at, map[string]hcl.Range{"checksum": checksum}
		change(&c)
		return c
	}
	world := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(world, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(world, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path, filepath.Join(world, "module")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		config ModuleConfig
		line   int
		want   []string
	}{
		"missing binary":               {make(func(c *ModuleConfig) { c.Command = "/nowhere/module" }), 4, []string{"Missing executable", "/nowhere/module"}},
		"no command and no bundle":     {make(func(c *ModuleConfig) { c.Command = "" }), 4, []string{"no bundle"}},
		"wrong checksum":               {make(func(c *ModuleConfig) { c.Checksum = "sha256:" + strings.Repeat("0", 64) }), 6, []string{"Checksum differs", path, "is sha256:"}},
		"malformed checksum":           {make(func(c *ModuleConfig) { c.Checksum = "md5:1" }), 6, []string{"64 hex digits"}},
		"folder":                       {make(func(c *ModuleConfig) { c.Command = world }), 4, []string{"not a regular file"}},
		"folder that others can write": {make(func(c *ModuleConfig) { c.Command = filepath.Join(world, "module") }), 4, []string{"writable by everybody", "chmod o-w"}},
		"unknown kind":                 {make(func(c *ModuleConfig) { c.Kind = "isolater" }), 4, []string{`Did you mean "isolator"?`}},
		"unknown power":                {make(func(c *ModuleConfig) { c.Allow = []string{"mount"} }), 4, []string{`Did you mean "mounts"?`}},
		"unknown call":                 {make(func(c *ModuleConfig) { c.Timeouts = map[string]time.Duration{"prepar": 1} }), 4, []string{`Did you mean "prepare"?`}},
		"unknown user":                 {make(func(c *ModuleConfig) { c.User = "nobody-of-this-name" }), 4, []string{"nobody-of-this-name"}},
	} {
		_, err := Start(t.Context(), testOptions(t), []ModuleConfig{c.config})
		var composition *CompositionError
		if !errors.As(err, &composition) {
			t.Errorf("%s: Start = %v, want a *CompositionError", name, err)
			continue
		}
		d := composition.Diagnostics[0]
		if d.Subject.Start.Line != c.line {
			t.Errorf("%s: told at %s, want line %d", name, d.Subject, c.line)
		}
		for _, want := range c.want {
			if !strings.Contains(d.Summary+": "+d.Detail, want) {
				t.Errorf("%s: %s: %s, want it to say %q", name, d.Summary, d.Detail, want)
			}
		}
	}
}

func TestModulesTwiceAreRefusedNamingBothPlaces(t *testing.T) {
	a, b := testConfig("good"), testConfig("good")
	a.Range = hcl.Range{Filename: "a.hcl", Start: hcl.Pos{Line: 1, Column: 1}, End: hcl.Pos{Line: 1, Column: 1}}
	b.Range = hcl.Range{Filename: "b.hcl", Start: hcl.Pos{Line: 7, Column: 1}, End: hcl.Pos{Line: 7, Column: 1}}
	_, err := Start(t.Context(), testOptions(t), []ModuleConfig{a, b})
	if err == nil || !strings.Contains(err.Error(), "a.hcl:1") || !strings.Contains(err.Error(), "b.hcl:7") {
		t.Errorf("Start with one module twice = %v, want both places", err)
	}
}

func TestTheRightChecksumIsAccepted(t *testing.T) {
	path := copyOfTest(t)
	var d digests
	exe, err := d.open(path, "")
	if err != nil {
		t.Fatal(err)
	}
	exe.file.Close()
	c := testConfig("good")
	c.Command, c.Checksum = path, exe.digest
	h := startHost(t, Options{}, c)
	if got := h.Status()[0].Digest; got != exe.digest {
		t.Errorf("Status().Digest = %s, want %s", got, exe.digest)
	}
}

// The file that was hashed is what runs: exchanging the path behind the host's back changes nothing until a restart,
// which hashes anew.
func TestAFileExchangedUnderARunningModuleIsNoticedAtItsRestart(t *testing.T) {
	path := copyOfTest(t)
	var d digests
	exe, err := d.open(path, "")
	if err != nil {
		t.Fatal(err)
	}
	exe.file.Close()
	c := testConfig("good")
	c.Command, c.Checksum = path, exe.digest
	h := startHost(t, Options{}, c)
	other := filepath.Join(filepath.Dir(path), "other")
	if err := os.WriteFile(other, []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	mustPrepare(t, h, "c")
	ctx, cancel := context.WithCancel(t.Context())
	restarted := make(chan error)
	go func() { restarted <- h.Restart(ctx, "test") }()
	eventually(t, "the checksum is refused", func() bool { return strings.Contains(h.Status()[0].Reason, "Checksum differs") })
	cancel()
	if err := <-restarted; err == nil {
		t.Error("Restart with another file succeeded")
	}
}

// A descriptor opened before the exchange still gives the file that was hashed.
func TestTheOpenedDescriptorIsWhatWasHashed(t *testing.T) {
	path := copyOfTest(t)
	var d digests
	exe, err := d.open(path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.file.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexit 9\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	again, err := d.open(path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer again.file.Close()
	if again.digest == exe.digest || !again.script || exe.script {
		t.Errorf("open after the exchange: digest %s script %v, before %s script %v", again.digest, again.script, exe.digest, exe.script)
	}
}

func TestAScriptCanBeAModule(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "module.sh")
	if err := os.WriteFile(path, []byte(fmt.Sprintf("#!/bin/sh\nexec %q \"$@\"\n", exe)), 0o755); err != nil {
		t.Fatal(err)
	}
	c := testConfig("good")
	c.Command = path
	h := startHost(t, Options{}, c)
	if env := mustPrepare(t, h, "c"); !strings.Contains(env["ENV"], "MOSAIC_MODULE_FILE="+path) {
		t.Errorf("the module does not know its file: %s", env["ENV"])
	}
}

func TestAModuleRunsAsItsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	c := testConfig("good")
	c.User = "65534"
	// The folder of the test executable may be closed to others; what is executed is a descriptor.
	h := startHost(t, Options{}, c)
	mustPrepare(t, h, "c")
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.Status()[0].PID))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), "Uid:\t65534\t65534\t65534\t65534") {
		t.Errorf("the module runs as\n%s", data)
	}
}

func TestAModuleHasLimitsOfItsOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for cgroups")
	}
	c := testConfig("good")
	c.MemoryBytes, c.Pids = 128<<20, 77
	h := startHost(t, Options{}, c)
	g, err := h.cgroups.make("probe", 1<<20, 1)
	if err != nil || !g.exists() {
		t.Skipf("no cgroups here: %v", err)
	}
	g.remove()
	read := func(v1, v2 string) string {
		for _, f := range []string{
			filepath.Join("/sys/fs/cgroup", strings.SplitN(v1, ".", 2)[0], h.opts.Cgroup, "isolator.test", v1),
			filepath.Join("/sys/fs/cgroup", h.opts.Cgroup, "isolator.test", v2),
		} {
			if data, err := os.ReadFile(f); err == nil {
				return strings.TrimSpace(string(data))
			}
		}
		return ""
	}
	if got := read("pids.max", "pids.max"); got != "77" {
		t.Errorf("pids.max = %s, want 77", got)
	}
	if got := read("memory.limit_in_bytes", "memory.max"); got != fmt.Sprint(128<<20) {
		t.Errorf("memory limit = %s, want %d", got, 128<<20)
	}
	if got := read("pids.current", "pids.current"); got == "" || got == "0" {
		t.Errorf("pids.current = %q, want the module inside", got)
	}
}

func TestACompositionIsCheckedOfflineOnceItsModulesAreKnown(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "schemas")
	right, wrong := parseConfig(t, `policy = "strict"`), parseConfig(t, `policy = "strct"`)
	opts := Options{CacheDir: cache}
	diags := Validate(opts, []ModuleConfig{wrong})
	if diags.HasErrors() || len(diags) != 1 || !strings.Contains(diags[0].Detail, "mosaic module describe") {
		t.Errorf("Validate without the schema = %v, want a warning that says how to get it", diags)
	}
	o := testOptions(t)
	o.CacheDir = cache
	d, err := Describe(t.Context(), o, testConfig("good"))
	if err != nil || d.GetName() != "test" || len(d.GetSchema().GetAttributes()) == 0 {
		t.Fatalf("Describe = %v, %v", d, err)
	}
	if diags := Validate(opts, []ModuleConfig{right}); len(diags) != 0 {
		t.Errorf("Validate of a right composition = %v, want nothing", diags)
	}
	diags = Validate(opts, []ModuleConfig{wrong})
	if !diags.HasErrors() || !strings.Contains(diags.Error(), `Did you mean "strict"?`) {
		t.Errorf("Validate of a wrong composition = %v, want the attribute", diags)
	}
}

func TestDescribeNeedsNoNameBeforehand(t *testing.T) {
	c := testConfig("good")
	c.Kind, c.Name = "", ""
	d, err := Describe(t.Context(), testOptions(t), c)
	if err != nil || d.GetKind() != KindIsolator || d.GetName() != "test" {
		t.Errorf("Describe of an unnamed module = %v, %v", d, err)
	}
	c = testConfig("exits")
	if _, err := Describe(t.Context(), testOptions(t), c); err == nil || !strings.Contains(err.Error(), "no such device") {
		t.Errorf("Describe of a module that does not start = %v, want its last words", err)
	}
}

func TestAModuleThatIsNotInTheBundleIsRefusedWithThoseThatAre(t *testing.T) {
	bundle := filepath.Join(t.TempDir(), "bundle")
	script := "#!/bin/sh\necho 'usage: bundle MODULE' >&2\necho '  isolator/cgroups   limits' >&2\necho '  authorizer/acl  rules' >&2\nexit 2\n"
	if err := os.WriteFile(bundle, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	o := testOptions(t)
	o.Bundle = bundle
	_, err := Start(t.Context(), o, []ModuleConfig{{Kind: KindIsolator, Name: "cgroup", Required: true}})
	var composition *CompositionError
	if !errors.As(err, &composition) || !strings.Contains(err.Error(), `Did you mean "cgroups"?`) {
		t.Errorf("Start with a module that the bundle lacks = %v, want a suggestion", err)
	}
}
