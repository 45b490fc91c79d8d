// Command mosaic-isolator-ports serves the isolator ports as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/isolators/ports"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(ports.New()) }
