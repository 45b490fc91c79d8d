package main

import (
	"os"
	"testing"

	"github.com/mosaic-cluster/mosaic/sdk/kit"
	hookv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/hook/v1"
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

func TestContainersAreToldWhereTheyAre(t *testing.T) {
	r, err := newModule().DecorateEnvironment(t.Context(), &hookv1.DecorateEnvironmentRequest{})
	if err != nil || r.GetEnvironment()["SITE"] != "here" {
		t.Errorf("DecorateEnvironment = %v, %v; want SITE=here", r, err)
	}
}
