package main

import (
	"os"
	"testing"

	"github.com/mosaic-cluster/mosaic/sdk/kit"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	qoscontrollerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/qoscontroller/v1"
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

func TestUnderLoadARevocableExecutorGoes(t *testing.T) {
	conn, stop, err := kit.InProcess(newModule)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	s, err := qoscontrollerv1.NewQoSControllerClient(conn).Correct(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	name, cpus := "cpus", 1.0
	firm := &mesosv1.Resource{Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &cpus}}
	lent := &mesosv1.Resource{Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &cpus}, Revocable: &mesosv1.Resource_RevocableInfo{}}
	usage := &resourceestimatorv1.UsageReport{Executors: []*resourceestimatorv1.ExecutorUsage{
		{ContainerId: "firm", Allocated: []*mesosv1.Resource{firm}}, {ContainerId: "lent", Allocated: []*mesosv1.Resource{lent}},
	}}
	for load, want := range map[float64]string{1: "", 200: "lent"} {
		if err := s.Send(&qoscontrollerv1.Situation{Usage: usage, Load_5: load}); err != nil {
			t.Fatal(err)
		}
		r, err := s.Recv()
		got := ""
		for _, c := range r.GetCorrections() {
			got += c.GetContainerId()
		}
		if err != nil || got != want {
			t.Errorf("Correct at load %v = %v, %v; want %q to go", load, r, err, want)
		}
	}
}
