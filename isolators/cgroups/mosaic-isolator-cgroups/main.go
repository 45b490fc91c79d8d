// Command mosaic-isolator-cgroups serves the isolator cgroups as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/isolators/cgroups"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(cgroups.New()) }
