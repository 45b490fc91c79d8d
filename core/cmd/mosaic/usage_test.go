package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWrongArgumentsEndWithCode2(t *testing.T) {
	for _, test := range []struct {
		args string
		want []string
	}{
		{"frob", []string{"frob", "mosaic --help"}},
		{"taks ls", []string{"taks", "task"}},
		{"task lgs", []string{"lgs", "logs"}},
		{"task logs", []string{"1 arg", "mosaic task logs --help"}},
		{"version extra", []string{"extra"}},
		{"dev extra", []string{"extra"}},
		{"config validate", []string{"1 arg"}},
		{"module describe", []string{"at least 1 arg"}},
		{"task ls -o xml", []string{`"xml"`, "table, wide, json, yaml"}},
		{"version -o xml", []string{`"xml"`}},
	} {
		_, _, err := execute(t, strings.Fields(test.args)...)
		if code := silently(t, err); code != exitUsage {
			t.Errorf("mosaic %s: exit code %d (%v), want %d", test.args, code, err, exitUsage)
			continue
		}
		for _, w := range test.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("mosaic %s said %q, want it to contain %q", test.args, err, w)
			}
		}
	}
}

func TestVersionHasAnExample(t *testing.T) {
	if got := newVersion().Example; !strings.Contains(got, "mosaic version") {
		t.Errorf("example %q", got)
	}
}

func TestNoRowsAreAnEmptyListInYAML(t *testing.T) {
	var out bytes.Buffer
	if err := printRows(&out, "yaml", []taskRow(nil), taskColumns); err != nil || out.String() != "[]\n" {
		t.Errorf("%q, %v; want an empty list", out.String(), err)
	}
}

func TestTheFlagTakesBackWhatTheFileAllows(t *testing.T) {
	file := filepath.Join(t.TempDir(), "site.hcl")
	if err := os.WriteFile(file, []byte("master {\n  insecure = true\n}\nagent {\n  insecure = true\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, daemon := range []string{"master", "agent"} {
		_, _, err := execute(t, daemon, "--config", file, "--listen", "0.0.0.0:0", "--insecure=false")
		if err == nil || !strings.Contains(err.Error(), "reachable from outside") {
			t.Errorf("mosaic %s --insecure=false = %v, want a refusal to listen", daemon, err)
		}
	}
}
