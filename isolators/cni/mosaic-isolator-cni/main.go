// Command mosaic-isolator-cni serves the isolator cni as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/isolators/cni"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(cni.New()) }
