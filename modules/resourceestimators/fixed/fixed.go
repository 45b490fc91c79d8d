// Package fixed is the resource estimator that always lends out the same: what the operator says.
//
// It looks at no usage. That what it lends does not hurt those it belongs to is the operator's promise, or a QoS
// controller's to enforce.
package fixed

import (
	"errors"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	resourceestimatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceestimator/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// Config is what the operator may set.
type Config struct {
	Resources string `hcl:"resources" doc:"What is lent out, as \"cpus:2;mem:1024\" or as a JSON array of Mesos's resources."`

	revocable []*mesosv1.Resource
}

// Estimator is the module.
type Estimator struct {
	resourceestimatorv1.UnimplementedResourceEstimatorServer
	config *module.Config[Config]
}

// New returns the module; its resources must be configured.
func New() *Estimator { return &Estimator{config: module.NewConfig(Config{}, parse)} }

// Info describes the module.
func (e *Estimator) Info() module.Info {
	return module.Info{
		Kind: "resource_estimator", Name: "fixed", Version: "1.0.0", Doc: "lends out a fixed amount of resources as revocable",
		Config: e.config,
	}
}

func parse(c *Config) error {
	list, err := resources.Parse(c.Resources, "*")
	if err != nil {
		return module.Wrong("resources", "%v", err)
	}
	if len(list) == 0 {
		return module.Wrong("resources", "got nothing, want some, as \"cpus:2;mem:1024\"")
	}
	for _, r := range list {
		if len(r.GetReservations()) > 0 {
			return module.Wrong("resources", "got %s reserved for a role, want all unreserved", r.GetName())
		}
		if r.GetDisk() != nil {
			return module.Wrong("resources", "got a volume or a disk of its own, which cannot be taken back")
		}
		r.Revocable = &mesosv1.Resource_RevocableInfo{}
	}
	c.revocable = list
	return nil
}

// Estimate answers the first report, and later ones when the configuration has changed.
func (e *Estimator) Estimate(s resourceestimatorv1.ResourceEstimator_EstimateServer) error {
	var told *Config
	for {
		if _, err := s.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		c := e.config.Get()
		if c == told {
			continue
		}
		answer := &resourceestimatorv1.Estimation{}
		for _, r := range c.revocable {
			answer.Revocable = append(answer.Revocable, proto.CloneOf(r))
		}
		if err := s.Send(answer); err != nil {
			return err
		}
		told = c
	}
}
