// Command mosaic-qos-controller-load serves the QoS controller load as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/modules/qoscontrollers/load"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(load.New()) }
