// Command mosaic-resource-estimator-fixed serves the resource estimator fixed as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/modules/resourceestimators/fixed"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(fixed.New()) }
