// Command mosaic-isolator-volumes serves the isolator volumes as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/isolators/volumes"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(volumes.New()) }
