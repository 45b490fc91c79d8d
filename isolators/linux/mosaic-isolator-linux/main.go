// Command mosaic-isolator-linux serves the isolator linux as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/isolators/linux"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(linux.New()) }
