package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// vendor runs mosaic as a vendor does: in a folder of their own, with no cluster.
func vendor(t *testing.T, dir string, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "mosaic"), args...)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("mosaic %s: %v", strings.Join(args, " "), err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("mosaic %s: exit code %d, want %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), got, code, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

// workshop is a folder that modules running as other users can reach.
func workshop(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "me2e-vendor-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// needPython skips a test where modules in Python cannot run.
func needPython(t *testing.T) {
	t.Helper()
	cmd := exec.Command("/usr/bin/env", "python3", "-c", "import grpc, google.protobuf")
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} // as modules have it
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skip("needs python3 with grpc and protobuf: " + string(out))
	}
}

func TestANewModulePassesTheKitUntouched(t *testing.T) {
	dir := workshop(t)
	vendor(t, dir, 0, "module", "new", "isolator", "demo")
	begin := time.Now()
	out, _ := vendor(t, dir, 0, "module", "test")
	if !strings.Contains(out, "isolator demo: conformant to isolator v1, full") {
		t.Errorf("module test said:\n%s\nwant the claim", out)
	}
	t.Logf("built and tested in %s", time.Since(begin).Round(time.Second))

	// Its own tests pass too, with what `new` wrote and nothing else.
	test := exec.CommandContext(t.Context(), "go", "test", "-mod=mod", "-run", "InProcess", "./...")
	test.Dir, test.Env = filepath.Join(dir, "demo"), append(os.Environ(), "GOWORK=off")
	if out, err := test.CombinedOutput(); err != nil {
		t.Errorf("go test in the new module: %v\n%s", err, out)
	}
	_, stderr := vendor(t, dir, 1, "module", "new", "isolator", "demo")
	if !strings.Contains(stderr, "not empty") || !strings.Contains(stderr, "--dir") {
		t.Errorf("module new into a folder that is there said %q, want what is wrong and what to do", stderr)
	}
}

func TestANewModuleInPythonPassesTheKitAndRunsInAnAgent(t *testing.T) {
	needPython(t)
	dir := workshop(t)
	vendor(t, dir, 0, "module", "new", "isolator", "snake", "--lang", "python")
	out, _ := vendor(t, dir, 0, "module", "test", "snake", "-o", "json")
	var report struct {
		Kind, Name, Contract, Level, Claim string
		Passed                             bool
		Results                            []struct {
			Level, Case, Result string
			Reasons             []string
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("module test -o json: %v\n%s", err, out)
	}
	if !report.Passed || report.Claim != "conformant to isolator v1, full" || report.Name != "snake" || len(report.Results) < 40 {
		t.Errorf("report = %+v, want a pass of all cases", report)
	}
	for _, r := range report.Results {
		if r.Result == "skip" && len(r.Reasons) == 0 {
			t.Errorf("%s was skipped without a reason", r.Case)
		}
	}

	main := filepath.Join(dir, "snake", "main.py")
	if out, _ := vendor(t, dir, 0, "module", "describe", main); !strings.Contains(out, "greeting (string, default \"world\")") {
		t.Errorf("module describe said:\n%s\nwant its attribute with the default", out)
	}
	c := start(t, cluster.Options{Composition: "isolator \"snake\" {\n  command = \"" + main + "\"\n  config {\n    greeting = \"cluster\"\n  }\n}\n"})
	r := mosaic(t, c, 0, "run", "--cpus", "0.1", "--mem", "32", "--", "sh", "-c", "echo $HELLO")
	if !strings.Contains(r.Stdout, "cluster") {
		t.Errorf("the task printed %q, want the greeting that the module proposed", r.Stdout)
	}
}

func TestTheKitFindsWhatIsWrong(t *testing.T) {
	dir := workshop(t)
	script := filepath.Join(dir, "broken")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho 'no licence' >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, stderr := vendor(t, dir, 1, "module", "test", script); !strings.Contains(stderr, "no licence") {
		t.Errorf("module test of a program that is no module said %q, want its last words", stderr)
	}
	if _, stderr := vendor(t, dir, 1, "module", "test"); !strings.Contains(stderr, "no module") {
		t.Errorf("module test in a folder without modules said %q", stderr)
	}
	if _, stderr := vendor(t, dir, 2, "module", "test", "--level", "half", script); !strings.Contains(stderr, "core, full or stress") {
		t.Errorf("module test with a wrong level said %q", stderr)
	}
}

func TestModulesOfTheBundleAreTestedWithAConfiguration(t *testing.T) {
	dir := workshop(t)
	composition := filepath.Join(dir, "c.hcl")
	write := func(text string) {
		if err := os.WriteFile(composition, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("isolator \"rlimits\" {\n  config {\n    limit \"nofile\" {\n      soft = 10\n      hard = 20\n    }\n  }\n}\n")
	out, _ := vendor(t, dir, 0, "module", "test", "isolator/rlimits", "--level", "core", "--config", composition)
	if !strings.Contains(out, "conformant to isolator v1, core") {
		t.Errorf("module test said:\n%s", out)
	}
	write("isolator \"rlimits\" {\n  config {\n    limit \"nofile\" {\n      sofd = 10\n      hard = 20\n    }\n  }\n}\n")
	if _, stderr := vendor(t, dir, 1, "module", "test", "isolator/rlimits", "--config", composition); !strings.Contains(stderr, "c.hcl:4") || !strings.Contains(stderr, `"soft"`) {
		t.Errorf("a misspelt attribute gave %q, want the line and a suggestion", stderr)
	}
	// What cannot be guessed is asked for once, not in every case.
	_, stderr := vendor(t, dir, 1, "module", "test", "resource_estimator/fixed")
	if !strings.Contains(stderr, "--config") {
		t.Errorf("a module that needs a configuration gave %q, want a hint at --config", stderr)
	}
	write("resource_estimator \"fixed\" {\n  config {\n    resources = \"cpus:2\"\n  }\n}\n")
	vendor(t, dir, 0, "module", "test", "resource_estimator/fixed", "--level", "core", "--config", composition)
}
