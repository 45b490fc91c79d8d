// Command mosaic-isolator-devices serves the isolator devices as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/isolators/devices"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(devices.New()) }
