package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// TestAWrongCompositionIsRefusedWithTheFileAndLine starts agents that must not come up, and validates the same files.
func TestAWrongCompositionIsRefusedWithTheFileAndLine(t *testing.T) {
	for _, test := range []struct {
		name        string
		composition string
		want        []string
		offline     bool // `config validate` finds it too
	}{
		{"misspelt attribute", "isolator \"cgroups\" {\n  config {\n    cpu_hard_limti = true\n  }\n}\n",
			[]string{"agent.hcl:3", "cpu_hard_limti", "cpu_hard_limit"}, true},
		{"wrong type", "isolator \"cgroups\" {\n  config {\n    cpu_hard_limit = \"maybe\"\n  }\n}\n",
			[]string{"agent.hcl:3", "cpu_hard_limit"}, true},
		{"misspelt block", "isolater \"cgroups\" {}\n", []string{"agent.hcl:1", "isolater", "isolator"}, true},
		{"no such module", "isolator \"cgruops\" {}\n", []string{"agent.hcl:1", "cgruops"}, false},
		{"missing binary", "isolator \"acme\" {\n  command = \"/opt/acme/no-such-binary\"\n}\n",
			[]string{"agent.hcl:", "/opt/acme/no-such-binary"}, false},
		{"twice the same", "isolator \"cgroups\" {}\nisolator \"cgroups\" {}\n", []string{"agent.hcl:2", "cgroups"}, true},
		{"a capability beyond the bound", "isolator \"linux\" {\n  config {\n    bounding_capabilities = [\"CHOWN\"]\n    image_capabilities = [\"SYS_ADMIN\"]\n  }\n}\n",
			[]string{"agent.hcl:4", "image_capabilities", "CAP_SYS_ADMIN"}, false},
		{"syntax", "isolator \"cgroups\" {\n", []string{"agent.hcl:"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := prepare(t, cluster.Options{Composition: test.composition})
			file := filepath.Join(c.Dir, "agent.hcl")
			if err := os.WriteFile(file, []byte(test.composition), 0o644); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			r, err := c.Mosaic(ctx, "agent", "--master", c.Master, "--listen", c.Agent, "--work-dir", filepath.Join(c.Dir, "agent"),
				"--cgroup-root", c.CgroupRoot(), "--config", file)
			if err != nil {
				t.Fatal(err)
			}
			check := func(what string, r cluster.Result) {
				if r.Code == 0 {
					t.Errorf("%s ended with code 0, want a refusal", what)
				}
				for _, w := range test.want {
					if !strings.Contains(r.Stderr, w) {
						t.Errorf("%s said:\n%s\nwant it to contain %q", what, r.Stderr, w)
					}
				}
			}
			check("mosaic agent", r)
			if test.offline {
				r, err := c.Mosaic(ctx, "config", "validate", file)
				if err != nil {
					t.Fatal(err)
				}
				check("mosaic config validate", r)
			}
		})
	}
}

func TestAWrongChecksumIsRefused(t *testing.T) {
	c := prepare(t, cluster.Options{})
	file := filepath.Join(c.Dir, "agent.hcl")
	composition := "isolator \"rlimits\" {\n  command  = \"" + filepath.Join(bin, "mosaic-modules") + "\"\n  args     = [\"isolator/rlimits\"]\n  checksum = \"sha256:" + strings.Repeat("0", 64) + "\"\n}\n"
	if err := os.WriteFile(file, []byte(composition), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := c.Mosaic(ctx, "agent", "--master", c.Master, "--listen", c.Agent, "--work-dir", filepath.Join(c.Dir, "agent"),
		"--cgroup-root", c.CgroupRoot(), "--config", file)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code == 0 || !strings.Contains(r.Stderr, "agent.hcl:4") || !strings.Contains(r.Stderr, "checksum") {
		t.Errorf("code %d, said:\n%s\nwant a refusal that names agent.hcl:4 and the checksum", r.Code, r.Stderr)
	}
}

func TestAGoodCompositionValidates(t *testing.T) {
	c := prepare(t, cluster.Options{})
	file := filepath.Join(c.Dir, "good.hcl")
	if err := os.WriteFile(file, []byte("isolator \"cgroups\" {\n  config {\n    cpu_hard_limit = true\n  }\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mosaic(t, c, 0, "config", "validate", file)
}

func TestTwoIsolatorsThatClaimTheSameNamespaceFailTheLaunchByName(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	binary := filepath.Join(dir, "rival")
	build := exec.Command("go", "build", "-o", binary, "./rival")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the rival: %v\n%s", err, out)
	}
	// Others must not be able to change what is executed, nor its folder.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := start(t, cluster.Options{Dev: true, Composition: "isolator \"namespaces\" {}\n\nisolator \"rival\" {\n  command = \"" + binary + "\"\n}\n"})
	r := mosaic(t, c, 125, "run", "--", "true")
	for _, want := range []string{"isolator(namespaces)", "agent.hcl:1", "isolator(rival)", "agent.hcl:3", "namespaces.PID", "REASON_CONTAINER_LAUNCH_FAILED"} {
		if !strings.Contains(r.Stderr, want) {
			t.Errorf("the launch failed with:\n%s\nwant it to contain %q", r.Stderr, want)
		}
	}
}
