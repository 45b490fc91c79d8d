// Package load is the QoS controller that takes back all that is lent out when the machine's load is too high.
//
// It kills every executor with revocable resources as long as a load average is above its threshold, as Mesos's
// controller of that name does.
package load

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	qoscontrollerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/qoscontroller/v1"
)

// Config is what the operator may set.
type Config struct {
	Threshold5  float64 `hcl:"load_threshold_5min,optional" doc:"Highest load average over 5 minutes; 0 is any." min:"0"`
	Threshold15 float64 `hcl:"load_threshold_15min,optional" doc:"Highest load average over 15 minutes; 0 is any." min:"0"`
}

// Controller is the module.
type Controller struct {
	qoscontrollerv1.UnimplementedQoSControllerServer
	config *module.Config[Config]
}

// New returns the module; at least one threshold must be configured.
func New() *Controller { return &Controller{config: module.NewConfig(Config{}, validate)} }

// Info describes the module.
func (c *Controller) Info() module.Info {
	return module.Info{
		Kind: "qos_controller", Name: "load", Version: "1.0.0", Doc: "kills revocable executors when the load average is too high",
		Config: c.config,
	}
}

func validate(c *Config) error {
	for name, v := range map[string]float64{"load_threshold_5min": c.Threshold5, "load_threshold_15min": c.Threshold15} {
		if v < 0 {
			return module.Wrong(name, "got %v, want 0 or more", v)
		}
	}
	if c.Threshold5 == 0 && c.Threshold15 == 0 {
		return module.Wrong("", "want load_threshold_5min, load_threshold_15min, or both")
	}
	return nil
}

// Correct answers each situation that needs it.
func (c *Controller) Correct(s qoscontrollerv1.QoSController_CorrectServer) error {
	for {
		now, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if list := corrections(c.config.Get(), now); len(list) > 0 {
			if err := s.Send(&qoscontrollerv1.Corrections{Corrections: list}); err != nil {
				return err
			}
		}
	}
}

// corrections names all revocable executors if a threshold is exceeded.
func corrections(c *Config, now *qoscontrollerv1.Situation) []*qoscontrollerv1.Correction {
	var why string
	switch {
	case c.Threshold5 > 0 && now.GetLoad_5() > c.Threshold5:
		why = fmt.Sprintf("load average over 5 minutes is %.2f, above the threshold %.2f", now.GetLoad_5(), c.Threshold5)
	case c.Threshold15 > 0 && now.GetLoad_15() > c.Threshold15:
		why = fmt.Sprintf("load average over 15 minutes is %.2f, above the threshold %.2f", now.GetLoad_15(), c.Threshold15)
	default:
		return nil
	}
	var list []*qoscontrollerv1.Correction
	for _, e := range now.GetUsage().GetExecutors() {
		if slices.ContainsFunc(e.GetAllocated(), func(r *mesosv1.Resource) bool { return r.GetRevocable() != nil }) {
			list = append(list, &qoscontrollerv1.Correction{
				FrameworkId: e.GetFrameworkId(), ExecutorId: e.GetExecutor().GetExecutorId().GetValue(),
				ContainerId: e.GetContainerId(), Message: why,
			})
		}
	}
	return list
}
