package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// TestAVendorsProgramIsFoundInTheFolderForModules installs an isolator as a package would: by its name, in the operator's
// folder. The composition says its name and no more.
func TestAVendorsProgramIsFoundInTheFolderForModules(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "mosaic-isolator-rival"), "./rival")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the rival: %v\n%s", err, out)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	composition := fmt.Sprintf("agent {\n  module_dir = %q\n}\nisolator \"rival\" {}\n", dir)
	c := start(t, cluster.Options{Composition: composition})
	if s := modules(t, c)["isolator/rival"]; s.State != "up" {
		t.Errorf("the rival is %+v, want it up", s)
	}
	mosaic(t, c, 0, "run", "--", "true")

	// Who can write to the folder could have the agent run anything.
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	o := prepare(t, cluster.Options{Composition: composition})
	file := filepath.Join(o.Dir, "agent.hcl")
	if err := os.WriteFile(file, []byte(composition), 0o644); err != nil {
		t.Fatal(err)
	}
	for what, r := range map[string]cluster.Result{
		"mosaic agent": mosaic(t, o, 1, "agent", "--master", o.Master, "--listen", o.Agent, "--work-dir", filepath.Join(o.Dir, "agent"),
			"--cgroup-root", o.CgroupRoot(), "--config", file),
		"mosaic config validate": mosaic(t, o, 1, "config", "validate", file),
	} {
		for _, want := range []string{"agent.hcl:4", "isolator(rival)", "writable by everybody", dir} {
			if !strings.Contains(r.Stderr, want) {
				t.Errorf("%s said\n%s\nwant it to say %q", what, r.Stderr, want)
			}
		}
	}
}

// TestTheIsolatorForGPUsIsDescribedAndCheckedByItsName uses it as one of the bundle's, though it is a program of its own.
func TestTheIsolatorForGPUsIsDescribedAndCheckedByItsName(t *testing.T) {
	if _, err := os.Stat(filepath.Join(bin, "mosaic-isolator-nvidia-gpu")); err != nil {
		t.Skip("needs the isolator for GPUs: " + err.Error())
	}
	c := prepare(t, cluster.Options{})
	if out := mosaic(t, c, 0, "module", "describe", "isolator/nvidia_gpu").Stdout; !strings.Contains(out, "driver_root") {
		t.Errorf("module describe said\n%s\nwant its configuration", out)
	}
	file := filepath.Join(c.Dir, "agent.hcl")
	for text, code := range map[string]int{"devices = [\"0\"]": 0, "deviecs = [\"0\"]": 1} {
		if err := os.WriteFile(file, []byte("isolator \"nvidia_gpu\" {\n  config {\n    "+text+"\n  }\n}\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if r := mosaic(t, c, code, "config", "validate", file); code != 0 && (!strings.Contains(r.Stderr, "agent.hcl:3") || !strings.Contains(r.Stderr, `"devices"`)) {
			t.Errorf("config validate said\n%s\nwant the line, and what may have been meant", r.Stderr)
		}
	}
}
