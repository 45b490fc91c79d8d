package main

import (
	"os"
	"testing"

	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
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

func TestConformanceInProcess(t *testing.T) {
	isolatortest.Run(t, kit.InProcess(newModule), isolatortest.Level(kit.Core))
}

func TestConformanceAsAProcess(t *testing.T) {
	isolatortest.Run(t, kit.Program{Path: os.Args[0]}.Dial)
}
