package modulehost

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
)

// bundleWithout is a bundle that holds cgroups alone.
func bundleWithout(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mosaic-modules")
	text := "#!/bin/sh\necho 'usage: mosaic-modules MODULE' >&2\necho '  isolator/cgroups   limits' >&2\nexit 2\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// programIn puts the test module under the name of its own program into a new folder.
func programIn(t *testing.T, name string) (dir string) {
	t.Helper()
	path := copyOfTest(t)
	if err := os.Rename(path, filepath.Join(filepath.Dir(path), name)); err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(path)
}

// withoutCommand is the test module as a composition names it that says no command.
func withoutCommand() ModuleConfig {
	c := testConfig("good")
	c.Command = ""
	c.Range = hcl.Range{Filename: "site.hcl", Start: hcl.Pos{Line: 3, Column: 1}, End: hcl.Pos{Line: 3, Column: 2}}
	return c
}

func TestAModuleThatTheBundleLacksHasAProgramOfItsOwn(t *testing.T) {
	for kindAndName, want := range map[[2]string]string{
		{"isolator", "nvidia_gpu"}: "mosaic-isolator-nvidia-gpu", {"container_logger", "file"}: "mosaic-container-logger-file",
	} {
		if got := ProgramName(kindAndName[0], kindAndName[1]); got != want {
			t.Errorf("ProgramName(%v) = %s, want %s", kindAndName, got, want)
		}
	}
	for name, bundle := range map[string]string{"with a bundle": bundleWithout(t), "without one": ""} {
		dir := programIn(t, "mosaic-isolator-test")
		o := Options{Bundle: bundle, ProgramDirs: []string{filepath.Join(t.TempDir(), "none"), dir}, CacheDir: t.TempDir()}
		h := startHost(t, o, withoutCommand())
		if s := h.Status()[0]; s.State != StateUp {
			t.Fatalf("%s: the module is %s: %s", name, s.State, s.Reason)
		}
		mustPrepare(t, h, "c")
		if err := h.Restart(t.Context(), "test"); err != nil {
			t.Errorf("%s: Restart: %v", name, err)
		}
		mustPrepare(t, h, "d")
		// What the bundle said of itself is not in the module's log.
		if text, err := os.ReadFile(filepath.Join(h.opts.LogDir, "isolator-test.log")); err == nil && strings.Contains(string(text), "usage") {
			t.Errorf("%s: the module's log has the bundle's list:\n%s", name, text)
		}
		// What it said of itself is known to a check that runs nothing.
		c := withoutCommand()
		if diags := Validate(o, []ModuleConfig{c}); len(diags) > 0 {
			t.Errorf("%s: Validate = %v, want nothing", name, diags)
		}
	}
}

func TestAPinnedModuleIsItsOwnProgramIfThatHasTheChecksum(t *testing.T) {
	dir := programIn(t, "mosaic-isolator-test")
	var d digests
	exe, err := d.open(filepath.Join(dir, "mosaic-isolator-test"), "")
	if err != nil {
		t.Fatal(err)
	}
	exe.file.Close()
	c := withoutCommand()
	c.Checksum = exe.digest
	h := startHost(t, Options{Bundle: bundleWithout(t), ProgramDirs: []string{dir}}, c)
	if got := h.Status()[0].Digest; got != exe.digest {
		t.Errorf("Status().Digest = %s, want %s", got, exe.digest)
	}
}

func TestAModuleThatIsNowhereIsRefusedWithThePlacesLookedAt(t *testing.T) {
	bundle := bundleWithout(t)
	open := programIn(t, "mosaic-isolator-test")
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	good := programIn(t, "mosaic-isolator-test")
	a, b := t.TempDir(), t.TempDir()
	pinned := withoutCommand()
	pinned.Checksum = "sha256:" + strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		config ModuleConfig
		bundle string
		dirs   []string
		want   []string
	}{
		"nowhere":                     {withoutCommand(), bundle, []string{a, b}, []string{bundle + " has no isolator/test, and there is no mosaic-isolator-test in " + a + " or " + b, "cgroups"}},
		"no folders":                  {withoutCommand(), bundle, nil, []string{bundle + " has no isolator/test; say where its executable is"}},
		"no bundle":                   {withoutCommand(), "", []string{a}, []string{"no bundle", "no mosaic-isolator-test in " + a}},
		"a folder others can change":  {withoutCommand(), bundle, []string{open, good}, []string{"writable by everybody", open}},
		"neither has the checksum":    {pinned, bundle, []string{good}, []string{"Checksum differs", filepath.Join(good, "mosaic-isolator-test")}},
		"the bundle has not the same": {pinned, bundle, []string{a}, []string{"Checksum differs", bundle}},
	} {
		o := testOptions(t)
		o.Bundle, o.ProgramDirs = c.bundle, c.dirs
		_, err := Start(t.Context(), o, []ModuleConfig{c.config})
		var composition *CompositionError
		if !errors.As(err, &composition) {
			t.Errorf("%s: Start = %v, want a *CompositionError", name, err)
			continue
		}
		d := composition.Diagnostics[0]
		for _, want := range c.want {
			if !strings.Contains(d.Summary+": "+d.Detail, want) {
				t.Errorf("%s: %s: %s, want it to say %q", name, d.Summary, d.Detail, want)
			}
		}
		if d.Subject.Start.Line != 3 {
			t.Errorf("%s: told at %s, want line 3", name, d.Subject)
		}
	}
}

func TestWhatModulesFindIsTold(t *testing.T) {
	list := startHost(t, Options{}, testConfig("finds gpus:2;mig-1g.5gb:7")).Found()
	if len(list) != 1 || !list[0].Known || list[0].Module != "isolator(test)" || len(list[0].Resources) != 2 {
		t.Fatalf("Found = %+v, want two resources of isolator(test)", list)
	}
	for _, r := range list[0].Resources {
		if want := map[string]float64{"gpus": 2, "mig-1g.5gb": 7}[r.GetName()]; r.GetScalar().GetValue() != want {
			t.Errorf("found %v, want %v", r, want)
		}
	}
	for text, want := range map[string]string{
		"finds cpus:2": "agent's own", "finds gpus(r):2": "nothing else", "finds disks:{a}": "want a number",
	} {
		h := startHost(t, Options{}, testConfig(text))
		s, f := h.Status()[0], h.Found()[0]
		if s.State == StateUp || !strings.Contains(s.Reason, want) || f.Known || len(f.Resources) > 0 {
			t.Errorf("%s: the module is %s (%s) and found %v, want a refusal for %q", text, s.State, s.Reason, f, want)
		}
	}
}
