package main

import (
	"os"
	"testing"

	"github.com/mosaic-cluster/mosaic/sdk/kit"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	resourceestimatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceestimator/v1"
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

func TestAShareOfTheCpusIsLentOut(t *testing.T) {
	conn, stop, err := kit.InProcess(newModule)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	s, err := resourceestimatorv1.NewResourceEstimatorClient(conn).Estimate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	name, cpus := "cpus", 40.0
	report := &resourceestimatorv1.UsageReport{Total: []*mesosv1.Resource{{
		Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &cpus},
	}}}
	if err := s.Send(report); err != nil {
		t.Fatal(err)
	}
	r, err := s.Recv()
	if err != nil || len(r.GetRevocable()) != 1 || r.GetRevocable()[0].GetScalar().GetValue() != 4 || r.GetRevocable()[0].Revocable == nil {
		t.Errorf("Estimate of 40 cpus = %v, %v; want 4 revocable", r, err)
	}
}
