package fixed_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/modules/resourceestimators/fixed"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	resourceestimatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceestimator/v1"
)

func open(t *testing.T, c *moduletest.Client) resourceestimatorv1.ResourceEstimator_EstimateClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	s, err := c.Estimator.Estimate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// next sends a report and gives the answer as "cpus 2 revocable ...".
func next(t *testing.T, s resourceestimatorv1.ResourceEstimator_EstimateClient) string {
	t.Helper()
	if err := s.Send(&resourceestimatorv1.UsageReport{}); err != nil {
		t.Fatalf("send a report: %v", err)
	}
	e, err := s.Recv()
	if err != nil {
		t.Fatalf("receive an estimate: %v", err)
	}
	var words []string
	for _, r := range e.GetRevocable() {
		if r.GetRevocable() == nil {
			t.Errorf("%s is not revocable", r.GetName())
		}
		words = append(words, fmt.Sprint(r.GetName(), ":", r.GetScalar().GetValue()))
	}
	return strings.Join(words, ";")
}

func TestTheEstimateIsWhatTheOperatorSays(t *testing.T) {
	c := moduletest.Start(t, fixed.New(), `{"resources":"cpus:2;mem:1024"}`)
	for range 2 { // a second stream is told as well
		s := open(t, c)
		if got := next(t, s); got != "cpus:2;mem:1024" {
			t.Errorf("estimate %s, want cpus:2;mem:1024", got)
		}
	}
}

func TestOneEstimateUntilTheConfigurationChanges(t *testing.T) {
	c := moduletest.Start(t, fixed.New(), `{"resources":"cpus:2"}`)
	s := open(t, c)
	next(t, s)
	for range 3 { // these are not answered: the next answer is the new one
		if err := s.Send(&resourceestimatorv1.UsageReport{}); err != nil {
			t.Fatal(err)
		}
	}
	if errs := c.Configure(t, `{"resources":"cpus:3"}`); len(errs) > 0 {
		t.Fatalf("Configure: %v", errs)
	}
	if got := next(t, s); got != "cpus:3" {
		t.Errorf("estimate after the change %s, want cpus:3", got)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v, %v; want nothing", e, err)
	}
}

func TestWrongResourcesAreRefused(t *testing.T) {
	for _, config := range []string{`{}`, `{"resources":""}`, `{"resources":"cpus"}`, `{"resources":"cpus(role):1"}`, `{"resources":"cpus:-1"}`, `{"resources":7}`} {
		errs := moduletest.Dial(t, fixed.New()).Configure(t, config)
		if len(errs) != 1 || errs[0].GetPath() != "resources" {
			t.Errorf("Configure(%s) = %v, want one error at resources", config, errs)
		}
	}
}
