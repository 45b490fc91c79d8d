package load_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/modules/qoscontrollers/load"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	qoscontrollerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/qoscontroller/v1"
	resourceestimatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceestimator/v1"
)

// executors are one on revocable cpus and one on its own.
func executors() *resourceestimatorv1.UsageReport {
	cpus, lent, firm := "cpus", "lent", "firm"
	own := &mesosv1.Resource{Name: &cpus, Type: mesosv1.Value_SCALAR.Enum()}
	revocable := &mesosv1.Resource{Name: &cpus, Type: mesosv1.Value_SCALAR.Enum(), Revocable: &mesosv1.Resource_RevocableInfo{}}
	return &resourceestimatorv1.UsageReport{Executors: []*resourceestimatorv1.ExecutorUsage{
		{Executor: &mesosv1.ExecutorInfo{ExecutorId: &mesosv1.ExecutorID{Value: &firm}}, FrameworkId: "f", ContainerId: "c1", Allocated: []*mesosv1.Resource{own}},
		{Executor: &mesosv1.ExecutorInfo{ExecutorId: &mesosv1.ExecutorID{Value: &lent}}, FrameworkId: "f", ContainerId: "c2", Allocated: []*mesosv1.Resource{own, revocable}},
		{}, // a host that says nothing
	}}
}

func TestRevocableExecutorsGoWhenTheLoadIsAboveAThreshold(t *testing.T) {
	for _, test := range []struct {
		name, config string
		load5        float64
		load15       float64
		want         string // part of the message; empty for no correction
	}{
		{"below", `{"load_threshold_5min":4,"load_threshold_15min":3}`, 3.9, 2.9, ""},
		{"at the threshold", `{"load_threshold_5min":4}`, 4, 9, ""},
		{"above over 5 minutes", `{"load_threshold_5min":4}`, 4.5, 0, "over 5 minutes is 4.50, above the threshold 4.00"},
		{"above over 15 minutes", `{"load_threshold_5min":4,"load_threshold_15min":3}`, 2, 3.5, "over 15 minutes is 3.50"},
		{"only the other is watched", `{"load_threshold_15min":3}`, 100, 2, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := moduletest.Start(t, load.New(), test.config)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			s, err := c.QoS.Correct(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Send(&qoscontrollerv1.Situation{Usage: executors(), Load_5: test.load5, Load_15: test.load15}); err != nil {
				t.Fatal(err)
			}
			if err := s.CloseSend(); err != nil {
				t.Fatal(err)
			}
			var got []*qoscontrollerv1.Correction
			for {
				r, err := s.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, r.GetCorrections()...)
			}
			if test.want == "" {
				if len(got) > 0 {
					t.Errorf("corrections %v, want none", got)
				}
				return
			}
			if len(got) != 1 || got[0].GetExecutorId() != "lent" || got[0].GetContainerId() != "c2" || got[0].GetFrameworkId() != "f" || !strings.Contains(got[0].GetMessage(), test.want) {
				t.Errorf("corrections %v, want one for lent about %q", got, test.want)
			}
		})
	}
}

func TestAThresholdMustBeSet(t *testing.T) {
	for config, path := range map[string]string{
		`{}`:                              "",
		`{"load_threshold_5min":-1}`:      "load_threshold_5min",
		`{"load_threshold_15min":"high"}`: "load_threshold_15min",
	} {
		errs := moduletest.Dial(t, load.New()).Configure(t, config)
		if len(errs) != 1 || errs[0].GetPath() != path {
			t.Errorf("Configure(%s) = %v, want one error at %q", config, errs, path)
		}
	}
}
