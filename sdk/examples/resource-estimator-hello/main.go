// Command resource-estimator-hello is the smallest resource estimator that estimates something: it lends out a share of
// the agent's processors.
package main

import (
	"errors"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	resourceestimatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceestimator/v1"
)

func main() { module.Serve(newModule()) }

// config is what an operator may set in the module's config block.
type config struct {
	Share float64 `hcl:"share,optional" doc:"Part of the agent's cpus that is lent out." min:"0" max:"1"`
}

type estimator struct {
	resourceestimatorv1.UnimplementedResourceEstimatorServer
	config *module.Config[config]
}

func newModule() *estimator {
	return &estimator{config: module.NewConfig(config{Share: 0.1}, nil)}
}

// Info is what the host knows of the module before it runs.
func (e *estimator) Info() module.Info {
	return module.Info{Kind: "resource_estimator", Name: "hello", Version: "1.0.0", Doc: "lends out a share of the cpus", Config: e.config}
}

// Estimate hears what the agent has and uses, and answers what may be lent out. An estimate holds until the next one.
func (e *estimator) Estimate(s resourceestimatorv1.ResourceEstimator_EstimateServer) error {
	for {
		report, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		cpus := 0.0
		for _, r := range report.GetTotal() {
			if r.GetName() == "cpus" {
				cpus += r.GetScalar().GetValue()
			}
		}
		answer := &resourceestimatorv1.Estimation{Revocable: []*mesosv1.Resource{{
			Name: proto.String("cpus"), Type: mesosv1.Value_SCALAR.Enum(),
			Scalar:    &mesosv1.Value_Scalar{Value: proto.Float64(cpus * e.config.Get().Share)},
			Revocable: &mesosv1.Resource_RevocableInfo{},
		}}}
		if err := s.Send(answer); err != nil {
			return err
		}
	}
}
