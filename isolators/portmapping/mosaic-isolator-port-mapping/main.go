// Command mosaic-isolator-port-mapping serves the isolator port_mapping as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/isolators/portmapping"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(portmapping.New()) }
