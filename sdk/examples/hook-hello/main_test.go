package main

import (
	"os"
	"testing"

	"github.com/mosaic-cluster/mosaic/sdk/kit"
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
