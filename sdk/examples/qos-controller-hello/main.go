// Command qos-controller-hello is the smallest QoS controller that corrects something: when the machine is overloaded it
// ends one executor on revocable resources.
package main

import (
	"errors"
	"io"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	qoscontrollerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/qoscontroller/v1"
)

func main() { module.Serve(newModule()) }

// config is what an operator may set in the module's config block.
type config struct {
	Load float64 `hcl:"load,optional" doc:"Load average over five minutes above which an executor is ended." min:"0"`
}

type controller struct {
	qoscontrollerv1.UnimplementedQoSControllerServer
	config *module.Config[config]
}

func newModule() *controller {
	return &controller{config: module.NewConfig(config{Load: 100}, nil)}
}

// Info is what the host knows of the module before it runs.
func (c *controller) Info() module.Info {
	return module.Info{Kind: "qos_controller", Name: "hello", Version: "1.0.0", Doc: "ends one executor at a time under load", Config: c.config}
}

// Correct hears how the machine is, and answers who must go.
func (c *controller) Correct(s qoscontrollerv1.QoSController_CorrectServer) error {
	for {
		situation, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		answer := &qoscontrollerv1.Corrections{}
		if situation.GetLoad_5() > c.config.Get().Load {
			answer.Corrections = first(situation)
		}
		if err := s.Send(answer); err != nil {
			return err
		}
	}
}

// first picks an executor that has revocable resources.
func first(situation *qoscontrollerv1.Situation) []*qoscontrollerv1.Correction {
	for _, e := range situation.GetUsage().GetExecutors() {
		for _, r := range e.GetAllocated() {
			if r.Revocable != nil {
				return []*qoscontrollerv1.Correction{{
					FrameworkId: e.GetFrameworkId(), ExecutorId: e.GetExecutor().GetExecutorId().GetValue(), ContainerId: e.GetContainerId(),
					Message: "the machine is overloaded",
				}}
			}
		}
	}
	return nil
}
