// Command mosaic-isolator-rlimits serves the isolator rlimits as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/isolators/rlimits"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(rlimits.New()) }
