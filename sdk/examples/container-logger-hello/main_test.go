package main

import (
	"os"
	"testing"

	"github.com/mosaic-cluster/mosaic/sdk/kit"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	containerloggerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/containerlogger/v1"
)

// TestMain lets the test's own executable be the module when the kit starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv("MOSAIC_MODULE") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestConformance(t *testing.T) {
	kit.Conform(t, kit.Program{Path: os.Args[0]}.Dial, kit.Core)
}

func TestBothStreamsGoIntoOneFileOfTheSandbox(t *testing.T) {
	m := newModule()
	r, err := m.Prepare(t.Context(), &containerloggerv1.PrepareRequest{Container: &containerv1.Container{Sandbox: "/sandbox"}})
	if err != nil || r.GetStdout().GetPath() != "/sandbox/output" || r.GetStderr().GetPath() != "/sandbox/output" {
		t.Errorf("Prepare = %v, %v; want /sandbox/output twice", r, err)
	}
	if r, err := m.Prepare(t.Context(), &containerloggerv1.PrepareRequest{}); err == nil {
		t.Errorf("Prepare without a sandbox = %v, want an error", r)
	}
}
